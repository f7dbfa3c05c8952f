"""What may be loaded by what must stay small: milliseconds of a check and MiB of a daemon are imports, nearly all."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.fake_daemon import FakeDaemon
from tests.waiting import LIMIT_S

FRAMEWORKS = {"typer", "rich.console", "pygments", "grpc", "google", "opentelemetry", "skewd_sidecar", "skewd_pipeline"}
"""Of the commands for people, of the sidecar, of the experiment: nothing that a daemon or a check needs."""

DAEMONS = {
    "asyncio",
    "aiohttp",
    "prometheus_client",
    "structlog",
    "psutil",
    "ssl",
    "ctypes",
    "logging",
    "email",
    "http",
}
SLOW = {"argparse", "dataclasses", "inspect", "ipaddress", "tomllib", "urllib", "subprocess"}
"""A millisecond and more each; ``inspect`` stands for typing_extensions too, whose name is told though it is hidden."""

PATHLIBS = {"ipaddress", "urllib"} if sys.version_info < (3, 12) else set()
"""What pathlib itself loads on Python 3.11."""


def loaded(importtime: str) -> set[str]:
    """The modules, and the packages they are of, that ``-X importtime`` told of."""
    rows = [line.rpartition("|")[2].strip() for line in importtime.splitlines() if line.startswith("import time:")]
    return {*rows, *(row.partition(".")[0] for row in rows)}


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKEWD_")}
    return kept | {
        "SKEWD_NODE__RUNTIME_DIR": str(directory),
        "SKEWD_NODE__STATE_DIR": str(directory),
        "SKEWD_MESH__LISTEN": "127.0.0.1:0",
        "SKEWD_MESH__KEY": "none",
        "SKEWD_METRICS__LISTEN": "127.0.0.1:0",
    }


@pytest.mark.skipif(Path("/etc/skewd/skewd.toml").exists(), reason="this machine has a configuration of its own")
@pytest.mark.parametrize("words", [("check", "--warning", "2ms", "--max-age=30s"), ("now", "--json")])
def test_a_check_loads_neither_a_framework_nor_what_is_slow(words: tuple[str, ...], tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path)
    try:
        command = [sys.executable, "-X", "importtime", "-m", "skewd", *words]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT_S)
    finally:
        daemon.close()
    assert done.stdout, done.stderr
    found = loaded(done.stderr)
    assert "skewd.api_client" in found, "it has not come as far as asking the daemon"
    assert found & (FRAMEWORKS | DAEMONS | SLOW - PATHLIBS) == set()


def test_a_daemon_loads_no_command_framework_and_nothing_of_the_sidecar(tmp_path: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "skewd", "run"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
    )
    try:
        assert daemon.stdout is not None
        ready = daemon.stdout.readline()
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT_S) == 0
        daemon.stdout.close() if daemon.stdout else None
    assert ready.startswith("READY "), (tmp_path / "stderr").read_text()
    assert json.loads(ready.removeprefix("READY "))["metrics"]
    found = loaded((tmp_path / "stderr").read_text())
    assert {"skewd.daemon", "skewd.publish.web", "skewd.links.udp"} <= found
    assert found & (FRAMEWORKS | {"skewd.commands", "zmq", "confluent_kafka"}) == set()


def test_a_reader_of_the_time_loads_no_library(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import skewd.reader"]
    done = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    found = loaded(done.stderr)
    assert "skewd.publish.segment" in found
    assert found & (FRAMEWORKS | {"asyncio", "aiohttp", "msgspec", "structlog", "psutil", "prometheus_client"}) == set()


def test_what_is_hidden_from_a_library_is_there_for_everybody_else(tmp_path: Path) -> None:
    code = (
        "from skewd.lean import msgspec, structlog; import sys; assert 'rich' not in sys.modules;"
        "import typing_extensions, rich.console; structlog.get_logger(); msgspec.json.decode(b'1');"
        "import skewd.lean as lean; print(lean.msgspec is sys.modules['msgspec'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


class TestOptionsOfRun:
    """What is read without the framework must mean the same with it; everything else is left to it."""

    def test_plain_words(self) -> None:
        from skewd.start import plain_options

        assert plain_options([]) == {}
        assert plain_options(["--config", "a", "--virtual-clock=offset=5ms"]) == {
            "--config": "a",
            "--virtual-clock": "offset=5ms",
        }

    @pytest.mark.parametrize("words", [["--help"], ["--config"], ["x"], ["--config", "--help"], ["--config=a"] * 2])
    def test_whatever_is_not_plain_is_the_frameworks(self, words: list[str]) -> None:
        from skewd.start import plain_options

        assert plain_options(words) is None


@pytest.mark.parametrize("onward", ["grpc", "http"])
def test_a_sidecar_loads_no_command_framework_and_no_library_of_a_protocol_it_speaks_itself(
    onward: str, tmp_path: Path
) -> None:
    pytest.importorskip("skewd_native", reason="without skewd-native the libraries speak")
    words = ["sidecar", "--grpc", "127.0.0.1:0", "--http=127.0.0.1:0", "--forward", f"{onward}://127.0.0.1:1"]
    words += ["--static-offset=1ms", "--static-uncertainty", "1us", "--metrics", "off"]
    sidecar = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "skewd", *words],
        env=environment(tmp_path) | {"SKEWD_SIDECAR__TRANSPORT": "native"},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
    )
    try:
        assert sidecar.stdout is not None
        ready = sidecar.stdout.readline()
    finally:
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.wait(LIMIT_S) == 0
        sidecar.stdout.close() if sidecar.stdout else None
    assert ready.startswith("READY "), (tmp_path / "stderr").read_text()
    said = (tmp_path / "stderr").read_text()
    found = loaded(said)
    assert {"skewd_sidecar.receive.http_native", f"skewd_sidecar.forward.{onward}_native"} <= found
    assert "kernel=native" in said
    unused = FRAMEWORKS - {"skewd_sidecar"} | {"skewd.commands", "skewd.daemon", "aiohttp", "prometheus_client"}
    assert found & (unused | {"confluent_kafka", "psutil", "tomllib"}) == set()


class TestOptionsOfSidecar:
    def test_plain_words(self) -> None:
        from skewd.start_sidecar import Words, plain_words

        assert plain_words([]) == Words()
        said = ["--forward", "grpc://a", "--forward=grpc://b", "--tls-key=k", "--config", "c", "--static-offset=-1ms"]
        assert plain_words(said) == Words(
            forward=("grpc://a", "grpc://b"), tls_key="k", config=Path("c"), static_offset="-1ms"
        )

    @pytest.mark.parametrize("words", [["--help"], ["--grpc"], ["x"], ["--grpc", "--http"], ["--grpc=a", "--grpc=b"]])
    def test_whatever_is_not_plain_is_the_frameworks(self, words: list[str]) -> None:
        from skewd.start_sidecar import plain_words

        assert plain_words(words) is None

    def test_its_options_are_those_of_the_command(self) -> None:
        from skewd import start_sidecar
        from skewd.commands import sidecar

        assert set(start_sidecar._OPTIONS.values()) == set(inspect.signature(sidecar).parameters)
