"""`skewd waitsync`: ready, late, or never, and why."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skewd.cli import main
from skewd.waitsync import Outcome, readiness
from tests.cli.fake_daemon import FakeDaemon, status_of
from tests.cli.test_services import Service
from tests.waiting import LIMIT_S

MS = 1_000_000
ALONE: dict[str, Any] = {"peers": [], "sources": []}


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (status_of(-5_092_000, -4_912_000), Outcome.READY, "inference: 5.002 ms ahead of node:producer (+-0.09 ms)"),
        (status_of(0, 0), Outcome.READY, "inference: agrees with node:producer (+-0 ns)"),
        (status_of(-2 * MS, 2 * MS), Outcome.WAIT, "is +-2ms, wider than --max-uncertainty 1ms; a nearer source"),
        (status_of(0, 9) | {"status": "holdover"}, Outcome.WAIT, "this node is holdover"),
        (status_of(None, None, messages=["odd; do"]), Outcome.WAIT, "no bound on node:producer yet (odd; do)"),
        (status_of(None, None, reference=None) | ALONE, Outcome.NEVER, "no source and no peer"),
        (status_of(0, 0) | ALONE, Outcome.READY, "agrees with"),
        ({}, Outcome.NEVER, "no source and no peer"),
    ],
)
def test_what_a_status_is_worth(status: dict[str, Any], outcome: Outcome, reason: str) -> None:
    found = readiness(status, max_uncertainty_ns=MS, may_hear=False)
    assert found.outcome is outcome
    assert reason in found.reason


def test_what_is_configured_may_still_be_heard() -> None:
    lonely = status_of(None, None, reference=None) | ALONE
    assert readiness(lonely, max_uncertainty_ns=MS, may_hear=True).outcome is Outcome.WAIT


@pytest.fixture
def words(fake_daemon: FakeDaemon) -> list[str]:
    return ["waitsync", "--config", str(fake_daemon.config_path)]


def test_ready(fake_daemon: FakeDaemon, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-90_000, 90_000)
    assert main(words) == 0
    assert capsys.readouterr().out == "inference: agrees with node:producer (+-90 us)\n"


def test_it_waits(fake_daemon: FakeDaemon, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-2 * MS, 2 * MS)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            fake_daemon.answers["/v1/status"] = status_of(-90_000, 90_000)

    monkeypatch.setattr("time.sleep", pause)
    assert main(words) == 0
    assert len(pauses) == 3


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes in two pauses."""
    now_s = [0.0]

    def pause(seconds: float) -> None:
        now_s[0] += 30

    monkeypatch.setattr("time.sleep", pause)
    monkeypatch.setattr("skewd.commands.time.monotonic", lambda: now_s[0])


@pytest.mark.usefixtures("hurried")
def test_not_in_time(fake_daemon: FakeDaemon, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-2 * MS, 2 * MS)
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("skewd: not ready within 60s: the bound against node:producer is +-2ms")


@pytest.mark.usefixtures("hurried")
def test_nobody_to_compare_with(
    fake_daemon: FakeDaemon, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_daemon.answers["/v1/status"] = status_of(None, None, reference=None) | ALONE
    assert main(words) == 2
    assert "no source and no peer" in capsys.readouterr().err
    monkeypatch.setenv("SKEWD_MESH__PEERS", '["127.0.0.1:9"]')
    monkeypatch.setenv("SKEWD_MESH__KEY", "none")
    assert main(words) == 1


def test_no_daemon_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[node]\nruntime_dir = "{tmp_path}/none"')
    assert main(["waitsync", "--timeout", "200ms", "--config", str(file)]) == 2
    assert "not ready within 200ms: no daemon: " in capsys.readouterr().err


def test_a_daemon_that_is_still_starting_is_waited_for(tmp_path: Path) -> None:
    """No socket yet, then one that a daemon of before left, on which nobody listens."""
    file = tmp_path / "a.toml"
    file.write_text(
        f'[node]\nname = "a"\nruntime_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n[metrics]\nlisten = "off"\n'
        '[mesh]\nlisten = "off"\nreference = "a"\n'
    )
    command = [sys.executable, "-m", "skewd", "waitsync", "--timeout", f"{LIMIT_S:.0f}s", "--config", str(file)]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    service = None
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "skewd.sock"))
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        service = Service("run", "--config", str(file), directory=tmp_path)
        out, _ = waiting.communicate(timeout=LIMIT_S)
    finally:
        waiting.kill()
        waiting.wait()
        if service is not None:
            service.close()
    assert (waiting.returncode, out) == (0, "a: agrees with node:a (+-0 ns)\n")


def test_a_daemon_may_still_find_a_source_on_its_machine() -> None:
    lonely = status_of(None, None, reference=None) | ALONE
    found = [
        readiness(lonely | {"uptime_s": uptime_s, "virtual": virtual}, max_uncertainty_ns=MS, may_hear=False).outcome
        for uptime_s, virtual in ((1.0, False), (60.0, False), (1.0, True))
    ]
    assert found == [Outcome.SEARCHING, Outcome.NEVER, Outcome.NEVER]


def test_a_daemon_that_does_not_answer_is_waited_for(
    fake_daemon: FakeDaemon, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_daemon.answers["/v1/status"] = b"HTTP/1.0 200 OK\r\n"
    fake_daemon.parts_delay_s = 5.0
    assert main([*words, "--timeout", "150ms"]) == 1
    assert "did not answer" in capsys.readouterr().err


def test_a_daemon_that_went_away_may_be_restarted(
    fake_daemon: FakeDaemon,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-2 * MS, 2 * MS)
    now_s = [0.0]

    def pause(seconds: float) -> None:
        if now_s[0] == 0.0:
            fake_daemon.close()
        now_s[0] += 0.5

    monkeypatch.setattr("time.sleep", pause)
    monkeypatch.setattr("skewd.commands.time.monotonic", lambda: now_s[0])
    assert main([*words, "--timeout", "60s"]) == 1
    assert now_s[0] >= 60
    assert "no daemon: nobody listens" in capsys.readouterr().err


def test_what_it_said_last_is_the_reason_when_the_time_is_over_before_an_answer(
    fake_daemon: FakeDaemon,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_daemon.answers["/v1/status"] = status_of(-2 * MS, 2 * MS)
    now_s = [0.0]

    def pause(seconds: float) -> None:
        if now_s[0] == 0.0:
            fake_daemon.answers["/v1/status"], fake_daemon.parts_delay_s = b"HTTP/1.0 200 OK\r\n", 5.0
            now_s[0] = 59.99
        else:
            now_s[0] = 60.0

    monkeypatch.setattr("time.sleep", pause)
    monkeypatch.setattr("skewd.commands.time.monotonic", lambda: now_s[0])
    assert main(words) == 1
    assert "the bound against node:producer is +-2ms" in capsys.readouterr().err


def test_real_daemons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services: list[Service] = []

    def start(name: str, peers: str) -> tuple[list[str], str]:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f'[node]\nname = "{name}"\nruntime_dir = "{tmp_path}/{name}"\nstate_dir = "{tmp_path}"\n'
            '[metrics]\nlisten = "off"\n'
            f'[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\ninterval = "50ms"\nreference = "a"\npeers = [{peers}]\n'
        )
        services.append(Service("run", "--config", str(file), directory=tmp_path))
        return ["--config", str(file)], str(services[-1].ready()["mesh"])

    try:
        a, address = start("a", "")
        b, _ = start("b", f'"{address}"')
        assert main(["waitsync", *b, "--max-uncertainty", "100ms", "--timeout", "120s"]) == 0
        assert " node:a (+-" in capsys.readouterr().out
        assert main(["waitsync", *b, "--max-uncertainty", "1ns", "--timeout", "2s"]) == 1
        assert "wider than --max-uncertainty 1ns" in capsys.readouterr().err
        assert main(["waitsync", *a]) == 0  # the reference itself
        capsys.readouterr()
        assert main(["status", "-f", "prometheus", *b]) == 0
        assert 'skewd_peer_offset_lower_seconds{peer="a"}' in capsys.readouterr().out
        services[1].end(signal.SIGTERM)
        assert main(["waitsync", "--timeout", "200ms", *b]) == 2
    finally:
        for service in services:
            service.close()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--timeout", "60"], "--timeout: '60' has no unit"),
        (["--timeout", "0s"], "--timeout: '0s' is not above zero"),
        (["--max-uncertainty", "-1ms"], "--max-uncertainty: '-1ms' is not above zero"),
        (["--bogus"], "No such option"),
    ],
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str], more: list[str], says: str) -> None:
    assert main([*words, *more]) == 64
    assert says in capsys.readouterr().err
