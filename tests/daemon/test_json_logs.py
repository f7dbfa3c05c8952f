"""`[log] format = "json"`: every line on standard error is JSON, whoever wrote it and however the process ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_services import Service
from tests.waiting import LIMIT_S

STRAY = """
import logging, os, threading, time, warnings
from skewd.logs import configure_logs
configure_logs("info", "json", own_process=True)
os.write(2, b"%3|1700000000.1|FAIL|rdkafka#producer-1| no broker\\nhalf a ")
os.write(2, b"line\\n" + b"x" * 100_000 + b"\\n")
warnings.warn("an old way", DeprecationWarning)
logging.getLogger("some.library").warning("its %s", "word")
def fail(): raise RuntimeError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
print("printed", file=__import__("sys").stderr)
raise ValueError("nobody caught it")
"""


def lines(text: str) -> list[dict[str, Any]]:
    """Each line as what it says; fails where one is no JSON object."""
    told = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) and line["event"] and line["level"] for line in told)
    return told


def test_what_libraries_write_and_what_nobody_catches() -> None:
    done = subprocess.run([sys.executable, "-c", STRAY], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    told = lines(done.stderr)
    said = [line["event"] for line in told]
    assert "%3|1700000000.1|FAIL|rdkafka#producer-1| no broker" in said
    assert "half a line" in said
    assert "printed" in said
    assert "its word" in said
    assert any("an old way" in text for text in said)
    assert max(map(len, said)) <= 8192
    caught = [line["exception"] for line in told if line["event"] == "uncaught exception"]
    assert any("RuntimeError: in a thread" in trace for trace in caught)
    assert any("ValueError: nobody caught it" in trace for trace in caught)


def refused(*words: str, **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKEWD_", "OTEL_"))}
    command = [sys.executable, "-m", "skewd", *words]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["run", "sidecar"])
def test_a_configuration_that_is_refused(tmp_path: Path, command: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[log]\nformat = "json"\n[mesh]\ninterval = 5\npers = []\n')
    code, text = refused(command, "--config", str(file))
    assert code == 64
    assert [line["event"] for line in lines(text)] == [
        f'{file}: [mesh] interval: 5 has no unit; write "5ms", "5us" or "5s" (ns, us, ms, s, m, h)',
        f"{file}: [mesh] pers: unknown key; did you mean 'peers'?",
    ]
    code, text = refused(command, SKEWD_LOG__FORMAT="json", SKEWD_MESH__INTERVAL="5")
    assert (code, len(lines(text))) == (64, 1)
    code, text = refused(command, SKEWD_LOG__FORMAT="text", SKEWD_MESH__INTERVAL="5")
    assert text.startswith("skewd: ")


def test_a_start_that_fails(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, text = refused(
            *("run", "--virtual-clock", "offset=1ms"),
            SKEWD_LOG__FORMAT="json",
            SKEWD_NODE__RUNTIME_DIR=str(tmp_path),
            SKEWD_NODE__STATE_DIR=str(tmp_path),
            SKEWD_METRICS__LISTEN=listen,
        )
    assert code == 1
    told = lines(text)
    assert "VIRTUAL CLOCK" in told[0]["event"]
    assert f"{listen} is taken by" in told[-1]["event"]


def test_a_daemon_from_start_to_end(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        f'[node]\nruntime_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n[metrics]\nlisten = "off"\n'
        '[log]\nformat = "json"\n[mesh]\nlisten = "off"\n'
    )
    service = Service("run", "--config", str(file), "--virtual-clock", "offset=1ms", directory=tmp_path)
    try:
        service.ready()
        assert service.end(signal.SIGTERM)[0] == 0
        told = lines(service.errors.read_text())
    finally:
        service.close()
    assert {"problem", "unsynchronized"} <= {line["event"] for line in told}
