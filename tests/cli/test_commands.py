"""The commands, as they are typed: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import structlog

import skewd
from skewd.cli import main, utc_text
from skewd.keys import is_to_come
from skewd.logs import configure_logs
from skewd_sidecar.kernel import choose
from tests.cli.fake_daemon import FakeDaemon, status_of

MS = 1_000_000
REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def config(fake_daemon: FakeDaemon) -> list[str]:
    return ["--config", str(fake_daemon.config_path)]


class TestCheck:
    @pytest.mark.parametrize(
        ("bound", "options", "code", "says"),
        [
            ((-90_000, 90_000), [], 0, "OK: "),
            ((-5_092_000, -4_912_000), [], 2, "CRITICAL: inference is 5.002 ms ahead of producer (+-0.09 ms)"),
            ((-5_092_000, -4_912_000), ["--peer", "producer"], 2, "CRITICAL: inference is 5.002 ms ahead"),
            ((-5_092_000, -4_912_000), ["--warning", "6ms", "--critical", "10ms"], 0, "OK: "),
            ((-5_092_000, -4_912_000), ["--critical=1s"], 1, "WARNING: "),
            ((-14 * MS, 14 * MS), [], 1, "cannot prove 3ms: bound +-14ms"),
            ((-14 * MS, 14 * MS), ["--strict"], 2, "CRITICAL: cannot prove 3ms"),
            ((0, 0), ["--peer", "nobody"], 3, "UNKNOWN: no peer is named 'nobody'"),
            ((0, 0), ["--max-age", "100ms"], 3, "stale"),
            ((None, None), [], 3, "UNKNOWN: no bound"),
        ],
    )
    def test_a_line_with_performance_data_or_json(
        self,
        fake_daemon: FakeDaemon,
        config: list[str],
        capsys: pytest.CaptureFixture[str],
        bound: tuple[int | None, int | None],
        options: list[str],
        code: int,
        says: str,
    ) -> None:
        fake_daemon.answers["/v1/status"] = status_of(*bound)
        assert main(["check", *config, *options]) == code
        line, perfdata = capsys.readouterr().out.rstrip("\n").split(" | ")
        assert says in line
        assert perfdata.startswith("offset=")
        assert main(["check", *config, *options, "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["code"], told["perfdata"]) == (code, perfdata)
        assert told["status"] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code]
        assert line == f"{told['status']}: {told['message']}"
        assert (told["lower_ns"], told["upper_ns"]) == (bound if code != 3 else (None, None))

    def test_thresholds_come_from_the_configuration(self, fake_daemon: FakeDaemon, config: list[str]) -> None:
        fake_daemon.answers["/v1/status"] = status_of(5 * MS, 5 * MS)
        with fake_daemon.config_path.open("a") as file:
            file.write('[check]\nwarning = "6ms"\ncritical = "7ms"\n')
        assert main(["check", *config]) == 0

    def test_slow_sources_are_not_stale_between_their_polls(self, fake_daemon: FakeDaemon, config: list[str]) -> None:
        fake_daemon.answers["/v1/status"] = status_of(0, 0, reference="utc") | {"age_s": 250.0}
        assert main(["check", *config]) == 3
        with fake_daemon.config_path.open("a") as file:
            file.write('[[source]]\ntype = "ntp"\naddress = "127.0.0.1"\ninterval = "64s"\n')
        assert main(["check", *config]) == 0

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--warning", "5"], "--warning 5s is above --critical 3ms"),  # a bare number is seconds
            (["--warning", "5mm"], "'5mm' is not a duration"),
            (["--warning", "-5ms"], "argument -w/--warning: "),
            (["--warning", "0ms"], "not above zero"),
            (["--warning", "9ms"], "--warning 9ms is above --critical 3ms; give both"),
            (["--bogus"], "unrecognized arguments: --bogus"),
            (["--peer"], "argument --peer: expected one argument"),
            (["extra"], "unrecognized arguments: extra"),
        ],
    )
    @pytest.mark.parametrize("json_too", [[], ["--json"]])
    def test_a_usage_error_is_unknown_too(
        self, capsys: pytest.CaptureFixture[str], words: list[str], says: str, json_too: list[str]
    ) -> None:
        assert main(["check", *words, *json_too]) == 3
        out = capsys.readouterr().out
        message = json.loads(out)["message"] if json_too else out
        assert "usage: " in message
        assert says in message

    def test_no_daemon(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "a.toml"
        file.write_text(f'[node]\nruntime_dir = "{tmp_path}/none"')
        assert main(["check", "--config", str(file)]) == 3
        out = capsys.readouterr().out
        assert out.startswith("UNKNOWN: no daemon: ")
        assert out.rstrip().endswith("| offset=U;-0.001:0.001;-0.003:0.003")
        assert main(["check", "--config", str(file), "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["code"] == 3

    def test_a_configuration_that_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "a.toml"
        file.write_text(f'[node]\nruntime_dir = "{tmp_path}/none"\n[mesh]\ninterval = 5\n[zzz]')
        assert main(["check", "--config", str(file)]) == 3
        out = capsys.readouterr().out
        assert out.startswith("UNKNOWN: no daemon: ")
        assert f"[configuration: {file}: [mesh] interval: 5 has no unit" in out
        assert "and 1 more" in out
        assert len(out.splitlines()) == 1

    def test_a_mistake_of_ours_is_unknown_not_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr("skewd.config.load_config", broken)
        assert main(["check"]) == 3
        assert "UNKNOWN: this command failed (RuntimeError: boom)" in capsys.readouterr().out

    def test_it_says_what_it_takes(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            main(["check", "--help"])
        assert end.value.code == 0
        assert "--strict" in capsys.readouterr().out


class TestNow:
    ANSWER: ClassVar = {
        "earliest_ns": 10**18,
        "latest_ns": 10**18 + 200_000,
        "reference": "utc",
        "status": "synchronized",
    }

    def test_a_time_and_its_bound(
        self, fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_daemon.answers["/v1/now"] = self.ANSWER
        assert main(["now", *config]) == 0
        assert capsys.readouterr().out == "2001-09-09T01:46:40.000100000Z +-100us (utc, synchronized)\n"
        assert main(["now", "--json", *config]) == 0
        assert json.loads(capsys.readouterr().out) == self.ANSWER

    @pytest.mark.parametrize("answer", [{"earliest_ns": None, "latest_ns": None, "status": "unsynchronized"}, None])
    def test_nothing_known_is_nulls_and_one(
        self, fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str], answer: Any
    ) -> None:
        fake_daemon.answers["/v1/now"] = answer
        assert main(["now", "--json", *config]) == 1
        nothing = {"earliest_ns": None, "latest_ns": None, "reference": None, "status": "unsynchronized"}
        assert json.loads(capsys.readouterr().out) == nothing
        assert main(["now", *config]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err != ""

    def test_usage_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["now", "--bogus"]) == 64
        assert "--bogus" in capsys.readouterr().err

    def test_times_for_people(self) -> None:
        text = utc_text(1_700_000_000_123_456_789)
        assert text == "2023-11-14T22:13:20.123456789Z"
        assert datetime.fromisoformat(text[:19]).replace(tzinfo=UTC).timestamp() == 1_700_000_000


class TestStatus:
    def test_a_screen_or_json(
        self, fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = fake_daemon.answers["/v1/status"] = status_of(-5_092_000, -4_912_000)
        assert main(["status", *config]) == 0
        assert "5.002 ms ahead of node:producer" in capsys.readouterr().out
        assert main(["status", "--json", *config]) == 0
        assert json.loads(capsys.readouterr().out) == told

    def test_no_daemon(self, fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        fake_daemon.close()
        assert main(["status", "--json", *config]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "nobody listens on" in captured.err

    def test_watching_until_interrupted(
        self,
        fake_daemon: FakeDaemon,
        config: list[str],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fake_daemon.answers["/v1/status"] = status_of(0, 0)
        rounds = iter([None, None])

        class Ended(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                if next(rounds, self) is self:
                    raise KeyboardInterrupt
                return False

        monkeypatch.setattr("skewd.commands.threading", SimpleNamespace(Event=Ended))
        monkeypatch.setattr("signal.signal", lambda *_: None)  # the tests' own Ctrl-C
        assert main(["status", "--watch", "--json", *config]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3


class TestKeygen:
    def test_a_key_that_can_be_loaded(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from skewd.keys import load_key

        file = tmp_path / "mesh.key"
        assert main(["keygen", str(file)]) == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert f"{load_key(file).key_id:08x}" in capsys.readouterr().out
        before = file.read_bytes()
        assert main(["keygen", str(file)]) == 1
        assert "exists and is not overwritten" in capsys.readouterr().err
        assert file.read_bytes() == before

    def test_rotation_says_each_step_and_what_comes_next(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from skewd.keys import load_keys

        file = tmp_path / "mesh.key"
        assert main(["keygen", "--rotate", str(file)]) == 1
        assert f"{file} is missing" in capsys.readouterr().err
        assert main(["keygen", str(file)]) == 0
        (old,) = load_keys(file).keys
        capsys.readouterr()
        assert main(["keygen", "--rotate", str(file)]) == 0
        new = load_keys(file).keys[1]
        said = capsys.readouterr().out
        assert f"step 1 of 3: {new.key_id:08x} is accepted from now on, {old.key_id:08x} still sends; copy it" in said
        assert f"run 'skewd keygen --rotate {file}' again" in said
        assert main(["keygen", "--rotate", str(file)]) == 0
        assert f"step 2 of 3: {new.key_id:08x} sends from now on" in capsys.readouterr().out
        assert main(["keygen", "--rotate", str(file)]) == 0
        assert f"step 3 of 3: {new.key_id:08x} stands alone" in capsys.readouterr().out
        assert load_keys(file).keys == (new,)

    def test_without_a_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["keygen"]) == 64
        assert "FILE" in capsys.readouterr().err


class TestConfig:
    def test_check_says_every_mistake(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "a.toml"
        file.write_text('[mesh]\nintervall = "1s"\n[check]\nwarning = 5')
        for words in ([str(file)], ["--config", str(file)]):
            assert main(["config", "check", *words]) == 64
            err = capsys.readouterr().err
            assert f"skewd: {file}: [mesh] intervall: unknown key; did you mean 'interval'?" in err
            assert f'skewd: {file}: [check] warning: 5 has no unit; write "5ms"' in err

    def test_check_reads_the_key_too(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "a.toml"
        file.write_text(f'[mesh]\nkey_file = "{tmp_path}/mesh.key"')
        assert main(["config", "check", str(file)]) == 64
        assert f"{file}: [mesh] key_file: " in capsys.readouterr().err
        assert main(["keygen", str(tmp_path / "mesh.key")]) == 0
        assert main(["config", "check", str(file)]) == 0

    def test_a_key_that_systemd_will_bring_is_noted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Before the first start of the service; the key of a unit that runs must be there."""
        brought = "/run/credentials/skewd-of-no-test.service/mesh.key"
        monkeypatch.setenv("SKEWD_MESH__KEY_FILE", brought)
        assert main(["config", "check"]) == 0
        out = capsys.readouterr().out
        assert f"note: [mesh] key_file: {brought} is not there (yet)" in out
        assert "ok: " in out
        unit = tmp_path / "skewd.service"
        assert is_to_come(unit / "mesh.key", tmp_path)
        unit.mkdir()
        assert not is_to_come(unit / "mesh.key", tmp_path)
        assert not is_to_come(tmp_path / "elsewhere" / "mesh.key", unit)

    def test_check_says_what_this_version_cannot_do(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SKEWD_SPOOL__PATH", "/var/spool/skewd")
        assert main(["config", "check"]) == 0
        out = capsys.readouterr().out
        assert "note: [spool] path" in out
        assert "ok: no file, all defaults, and 1 from the environment" in out

    def test_show_is_toml(self, fake_daemon: FakeDaemon, config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "show", *config]) == 0
        out = capsys.readouterr().out
        assert tomllib.loads(out)["node"]["name"] == "inference"
        assert "# file" in out

    def test_a_file_named_twice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "check", "a.toml", "--config", "b.toml"]) == 64
        assert "named twice" in capsys.readouterr().err


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ([], "Usage: skewd"),
            (["bogus"], "No such command 'bogus'"),
            (["--bogus"], "No such option: --bogus"),
            (["config"], "Usage: skewd config"),
            (["config", "bogus"], "No such command 'bogus'"),
            (["status", "extra"], "extra"),
            (["run", "--config", "/nonexistent/skewd.toml"], "--config names it, and it does not exist"),
            (["run", "--virtual-clock", "offset=5"], "'5' has no unit"),
            (["sidecar", "--mode", "rewrit"], "--mode: 'rewrit' is unknown; did you mean 'rewrite'?"),
            (["sidecar", "--grpc", "4317"], "--grpc: '4317' has no host; write 127.0.0.1:4317"),
            (["sidecar", "--forward", "collector:4317"], "--forward: 'collector:4317' has no scheme"),
            (["sidecar", "--node", "a b"], "--node: 'a b' is not a node name"),
            (["sidecar", "--forward", ""], "--forward: it is empty"),
            (["sidecar", "--forward", "grpc://a", "--forward", "grpc://a"], "--forward: 'grpc://a' is given twice"),
            (["sidecar", "--balance", "fail"], "--balance: 'fail' is unknown"),
            (["sidecar", "--dead-letter", ""], "--dead-letter: it is empty"),
            (["sidecar", "--tls-key", ""], "--tls-key: it is empty"),
            (["sidecar", "--tls-key", "k.pem"], "--tls-key: is useless without tls_certificate; give both"),
            (
                ["sidecar", "--grpc", "unix:x"],
                "--grpc: 'unix:x' has no absolute path; write unix:///run/skewd/otlp.sock",
            ),
            (["sidecar", "--static-offset", "3ms"], "--static-offset and --static-uncertainty are given together"),
            (["sidecar", "--static-offset", "3", "--static-uncertainty", "1us"], "--static-offset: '3' has no unit"),
            (["sidecar", "--static-offset", "3ms", "--static-uncertainty", "-1us"], "not negative"),
            (["experiment", "run", "--skews", "1,x"], "--skews: 'x' is not a skew"),
            (["experiment", "run", "--stage", "gpu"], "--stage: 'gpu' is unknown"),
            (["experiment", "run", "--service-floor", "3.5"], "--service-floor: '3.5' has no unit"),
            (["experiment", "run", "--messages", "many"], "--messages"),
        ],
    )
    def test_wrong_words_exit_64_and_say_what_is_right(
        self, capsys: pytest.CaptureFixture[str], words: list[str], says: str
    ) -> None:
        assert main(words) == 64
        captured = capsys.readouterr()
        assert says in captured.err + captured.out

    def test_help_lists_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        commands = ["run", "check", "status", "now", "waitsync", "probe", "keygen", "config", "sidecar", "experiment"]
        for command in commands:
            assert f"  {command} " in out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"skewd {skewd.__version__}"
        assert lines[1].startswith(f"python {sys.version_info.major}.{sys.version_info.minor}.")
        assert lines[2] == f"patch: {choose().name}"

    def test_the_version_is_the_packages(self) -> None:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        assert project.get("version", skewd.__version__) == skewd.__version__

    def test_whoever_stops_reading_gets_no_traceback(self) -> None:
        command = f"{sys.executable} -m skewd config show | true"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.stderr == ""


class TestStartUp:
    """What `check` costs is what it imports; the clock of a busy machine cannot be asserted on, the imports can."""

    @pytest.mark.parametrize("command", ["check", "now"])
    def test_a_check_loads_no_library_of_the_daemons(self, command: str) -> None:
        heavy = ["typer", "rich", "asyncio", "aiohttp", "structlog", "psutil", "grpc", "http.client", "ssl", "difflib"]
        script = (
            f"import sys; from skewd.cli import main; main(['{command}'])\n"
            f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


class TestExperiment:
    def test_words_become_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        experiment = pytest.importorskip("skewd_pipeline.experiment")
        taken: list[Any] = []

        def record(options: Any) -> int:
            taken.append(options)
            return 7

        monkeypatch.setattr(experiment, "main", record)
        words = "--skews 0,250us,2s --stage producer --direction ahead --transports zmq --modes off,rewrite --seed 5"
        words += " --messages 50 --rate 12.5 --service-floor 0ms --model a:b --out /tmp/x"
        assert main(["experiment", "run", *words.split()]) == 7
        (options,) = taken
        assert options.skews_ms == (0, 0.25, 2000)
        assert (options.stage, options.direction, options.reference) == ("producer", "ahead", "preprocess")
        assert (options.transports, options.modes) == (("zmq",), ("off", "rewrite"))
        assert (options.messages, options.rate, options.seed, options.service_floor_ns) == (50, 12.5, 5, 0)
        assert (options.model, options.out, options.demo) == ("a:b", Path("/tmp/x"), False)
        assert main(["experiment", "run", "--demo"]) == 7
        assert (taken[1].demo, taken[1].out) == (True, Path("out/demo"))

    @pytest.mark.long
    def test_a_report_of_several_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        results = pytest.importorskip("skewd_pipeline.results")
        from tests.experiment.made_results import demo

        for transport in ("zmq", "kafka"):
            made = demo()
            made.runs = [run for run in made.runs if run.transport == transport]
            made.calibration = {transport: made.calibration[transport]}
            made.host = {"system": "Linux", "cores": 2 if transport == "zmq" else 4}
            results.save(made, tmp_path / transport / "results.json")
        page = tmp_path / "both.html"
        both = [str(tmp_path / "zmq"), str(tmp_path / "kafka" / "results.json")]
        assert main(["experiment", "report", *both, "--out", str(page)]) == 0
        assert capsys.readouterr().out == f"{page}\n"
        assert "kafka" in page.read_text()
        assert "2 / 4" in page.read_text()
        assert main(["experiment", "report", both[0]]) == 0
        assert (tmp_path / "zmq" / "report.html").exists()
        assert main(["experiment", "report", both[0], both[0]]) == 1
        assert "give each its own report" in capsys.readouterr().err
        assert main(["experiment", "report", str(tmp_path / "none.json")]) == 1
        assert "none.json" in capsys.readouterr().err
        assert main(["experiment", "report"]) == 64


class TestLogs:
    def test_they_go_to_standard_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logs("info", "text")
        structlog.get_logger().info("stepped", by="5 ms", node="a", peers=["b", "c"])
        structlog.get_logger().debug("not said")
        logging.getLogger("aiohttp").warning("odd %s", 1)
        captured = capsys.readouterr()
        assert captured.out == ""
        first, second = captured.err.splitlines()
        assert first.endswith('Z info stepped by="5 ms" node=a peers="b; c"')
        assert second.endswith("Z warning odd 1 logger=aiohttp")

    def test_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logs("debug", "json")
        structlog.get_logger().debug("stepped", by_ns=5, path=Path("/x"))
        try:
            raise ValueError("bad")
        except ValueError:
            structlog.get_logger().exception("failed")
        first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
        assert (first["event"], first["level"], first["by_ns"], first["path"]) == ("stepped", "debug", 5, "/x")
        assert "ValueError: bad" in second["exception"]
