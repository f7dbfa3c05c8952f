"""A mistake in the configuration beside a daemon that runs: who asks the daemon gets its answer, and hears of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skewd.cli import main
from skewd.config import ConfigError, Salvaged, load_config, salvage
from tests.cli.fake_daemon import FakeDaemon, status_of

NOW = {"earliest_ns": 10**18, "latest_ns": 10**18 + 200_000, "reference": "utc", "status": "synchronized"}
MISTAKES = {
    "a key": ('[node]\nruntime_dir = "{dir}"\n[mesh]\npers = []\n', "[mesh] pers: unknown key"),
    "a value": ('[node]\nruntime_dir = "{dir}"\nname = "what is this?"\n', "is not a node name"),
    "a section": ('[nodes]\nruntime_dir = "{dir}"\n', "unknown section"),
    "no end of a text": ('[node]\nname = "n\nruntime_dir = "{dir}"\n', "not valid TOML"),
    "no end of a list": ('[node]\nruntime_dir = "{dir}"\n[mesh]\npeers = [\n"a:1",\n', "not valid TOML"),
    "not text": ('[node]\nruntime_dir = "{dir}"\n[mesh]\ndns = "\xff"\n', "not UTF-8"),
    "a rule between keys": ('[node]\nruntime_dir = "{dir}"\nname = "utc"\n', "name the node otherwise"),
}


@pytest.fixture(params=MISTAKES)
def mistaken(request: pytest.FixtureRequest, fake_daemon: FakeDaemon, tmp_path: Path) -> tuple[Path, str]:
    text, says = MISTAKES[request.param]
    file = tmp_path / "mistaken.toml"
    file.write_bytes(text.replace("{dir}", str(tmp_path)).encode("latin-1"))
    fake_daemon.answers = {"/v1/status": status_of(0, 0), "/v1/now": NOW}
    return file, says


def test_check_judges_and_says_so(mistaken: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    file, says = mistaken
    assert main(["check", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("OK: inference agrees with producer")
    assert f"[configuration: {file}: " in out
    assert says in out
    assert len(out.splitlines()) == 1
    main(["check", "--assumptions", "--config", str(file)])
    assert f"[configuration: {file}: " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["now"], ["now", "--json"], ["waitsync"]])
def test_the_others_answer_and_say_so_beside_it(
    mistaken: tuple[Path, str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, says = mistaken
    assert main([*words, "--config", str(file)]) == 0
    said = capsys.readouterr()
    assert says in said.err
    assert says not in said.out
    if "--json" in words:
        json.loads(said.out)


def test_from_the_environment(
    fake_daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers = {"/v1/status": status_of(0, 0)}
    monkeypatch.setenv("SKEWD_NODE__RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("SKEWD_MESH__INTERVAL", "5")
    assert main(["check"]) == 0
    assert "[configuration: environment SKEWD_MESH__INTERVAL: '5' has no unit" in capsys.readouterr().out


@pytest.mark.parametrize("mistake", ['warning = "1"', "warnin = 1", 'warning = "1ms'])
def test_without_the_limits_that_were_meant_nothing_is_ok(
    fake_daemon: FakeDaemon, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers = {"/v1/status": status_of(0, 0)}
    file = tmp_path / "a.toml"
    file.write_text(f'[node]\nruntime_dir = "{tmp_path}"\n[check]\n{mistake}\n')
    assert main(["check", "--config", str(file)]) == 1
    assert "[check] cannot be read, so this may not be the limit that was meant" in capsys.readouterr().out
    assert main(["check", "--config", str(file), "-w", "1ms", "-c", "3ms"]) == 0


def test_a_file_that_is_named_and_is_not_there_is_no_mistake_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--config", str(tmp_path / "none.toml")]
    assert main(["check", *missing]) == 3
    assert "does not exist" in capsys.readouterr().out
    assert main(["status", *missing]) == main(["now", *missing]) == main(["waitsync", *missing]) == 64


def test_what_is_right_is_kept(tmp_path: Path) -> None:
    def read(text: str, **env: str) -> Salvaged:
        file = tmp_path / "a.toml"
        file.write_text(text)
        with pytest.raises(ConfigError) as refused:
            load_config(file, env)
        return salvage(file, env, refused.value)

    found = read(
        '[node\nname = "n"\n[check]\nwarning = "2ms"\n[[source]]\ntype = "ntp"\naddress = "a"\n'
        '[[source]]\ntype = "kernel"\n[mesh]\ninterval = 5\n',
        SKEWD_NODE__NAME="m",
    )
    assert (found.config.check.warning, found.config.node.name) == (2_000_000, "m")
    assert [source.type for source in found.config.source] == ["ntp", "kernel"]
    assert found.doubtful >= {"node", "mesh"}
    assert "check" not in found.doubtful
    assert len(found.problems) == 1, "a file that is no TOML has one mistake first"


class TestWordsOfPlugins:
    """What monitoring systems write: short options, and seconds without a unit."""

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (["-w", "0.001", "-c", "0.003"], 1),
            (["-w", "3ms", "-c", "3ms"], 0),
            (["-w", "0.003", "-c", "0.003"], 0),
            (["-w0.003", "-c0.003"], 0),
            (["--warning=.001", "--critical", "1"], 1),
            (["-w", "0.0001", "-c", "0.001"], 2),
        ],
    )
    def test_limits(self, fake_daemon: FakeDaemon, words: list[str], code: int) -> None:
        fake_daemon.answers = {"/v1/status": status_of(1_500_000, 1_600_000)}
        assert main(["check", "--config", str(fake_daemon.config_path), *words]) == code

    def test_a_bare_number_is_refused_elsewhere(self, fake_daemon: FakeDaemon) -> None:
        assert main(["waitsync", "--config", str(fake_daemon.config_path), "--max-uncertainty", "1"]) == 64

    def test_a_daemon_that_is_late(self, fake_daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        fake_daemon.answers["/v1/status"] = b"HTTP/1.0 200 OK\r\n"
        fake_daemon.parts_delay_s = 60.0
        assert main(["check", "--config", str(fake_daemon.config_path), "-t", "0.15"]) == 3
        assert "did not answer within 0.15 s" in capsys.readouterr().out

    @pytest.mark.parametrize("word", ["-V", "--version"])
    def test_the_version(self, word: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", word]) == 0
        assert capsys.readouterr().out.startswith("skewd ")


def test_what_is_wrong_with_the_configuration_is_in_json_too(
    fake_daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers = {"/v1/status": status_of(0, 0)}
    file = tmp_path / "a.toml"
    file.write_text(f'[node]\nruntime_dir = "{tmp_path}"\nnam = "x"\n')
    assert main(["check", "--json", "--config", str(file)]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert f"[configuration: {file}: [node] nam: unknown key" in data["message"]
