"""`skewd run` and `skewd sidecar` as a service manager sees them: one line when ready, an orderly end, exit 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from skewd.cli import main
from skewd_sidecar.kernel import choose
from tests.shares import first
from tests.waiting import LIMIT_S, wait_until


class Service:
    """A command in a process of its own."""

    def __init__(self, *words: str, directory: Path) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SKEWD_", "OTEL_"))}
        self.errors = directory / f"{words[0]}.err"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skewd", *words], stdout=subprocess.PIPE, stderr=errors, env=env, text=True
            )
        self._deadline = threading.Timer(LIMIT_S, self.process.kill)
        self._deadline.start()

    def ready(self) -> dict[str, Any]:
        """Waits for the line that says so."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self._deadline.cancel()
        assert line.startswith("READY {"), self.errors.read_text()
        told = json.loads(line.removeprefix("READY "))
        assert isinstance(told, dict)
        return told

    def end(self, number: int) -> tuple[int, str]:
        """Sends the signal; the exit code and what was still printed."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out

    def close(self) -> None:
        self._deadline.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Any]:
    started: list[Service] = []

    def start(*words: str) -> Service:
        started.append(Service(*words, directory=tmp_path))
        return started[-1]

    yield start
    for service in started:
        service.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "skewd.toml"
    file.write_text(
        f'[node]\nname = "inference"\nruntime_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n'
        '[mesh]\nkey = "none"\nlisten = "127.0.0.1:0"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    return file


class Collector:
    """Takes what is exported to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        bodies, headers = self.bodies, self.headers

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers.append({name.lower(): value for name, value in self.headers.items()})
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    taken = Collector()
    yield taken
    taken.close()


@pytest.mark.parametrize("number", first(1, [signal.SIGTERM, signal.SIGINT]))
def test_the_daemon_says_when_it_is_ready_and_ends_in_order(
    services: Any, config: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = services("run", "--config", str(config), "--virtual-clock", "offset=5ms")
    told = daemon.ready()
    assert told["socket"] == str(config.parent / "run" / "skewd.sock")
    assert told["mesh"].startswith("127.0.0.1:")
    assert told["metrics"].startswith("127.0.0.1:")
    assert main(["status", "--json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["node"] == "inference"
    assert main(["check", "--config", str(config)]) == 3
    assert "VIRTUAL CLOCK" in capsys.readouterr().out
    assert "VIRTUAL CLOCK" in daemon.errors.read_text()
    assert daemon.end(number) == (0, "")
    assert main(["check", "--config", str(config)]) == 3
    assert "no daemon" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("clock", "code", "says"), [("offset=5ms", 2, "ms ahead of producer"), ("offset=0ms", 0, "OK: inference ")]
)
def test_a_check_against_a_peer_tells_a_wrong_clock_from_a_right_one(
    services: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: str, code: int, says: str
) -> None:
    other = tmp_path / "producer.toml"
    fast = config.read_text().replace("[mesh]", '[mesh]\ninterval = "50ms"')
    other.write_text(fast.replace("inference", "producer").replace(f"{tmp_path}/run", f"{tmp_path}/run2"))
    producer = services("run", "--config", str(other)).ready()
    config.write_text(fast.replace("[mesh]", f'[mesh]\npeers = ["{producer["mesh"]}"]'))
    services("run", "--config", str(config), "--virtual-clock", clock).ready()
    words = ["check", "--config", str(config), "--peer", "producer"]
    # The first exchanges on a busy machine prove little; the bound narrows with the fastest of them.
    wait_until(lambda: main(words) == code, f"the check exits {code}")
    capsys.readouterr()
    assert main(words) == code
    out = capsys.readouterr().out
    assert says in out
    assert " | offset=" in out


@pytest.mark.parametrize("number", first(1, [signal.SIGTERM, signal.SIGINT]))
def test_the_sidecar_forwards_without_a_daemon(services: Any, config: Path, collector: Collector, number: int) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="work", start_time_unix_nano=10**18)
    sidecar = services(
        "sidecar", "--config", str(config), "--grpc", "off", "--http", "127.0.0.1:0", "--forward", collector.url
    )
    told = sidecar.ready()
    assert told["grpc"] is None
    post = Request(
        f"http://{told['http']}/v1/traces",
        data=request.SerializeToString(),
        headers={"Content-Type": "application/x-protobuf"},
    )
    with urlopen(post, timeout=LIMIT_S) as answer:
        assert answer.status == 200
    forwarded = ExportTraceServiceRequest.FromString(collector.bodies[0])
    span = forwarded.resource_spans[0].scope_spans[0].spans[0]
    attributes = {attribute.key: attribute.value for attribute in span.attributes}
    assert attributes["clock.status"].string_value == "unsynchronized"
    assert attributes["clock.node.name"].string_value == "inference"
    assert sidecar.end(number) == (0, "")


def test_the_sidecar_takes_what_its_file_says(services: Any, config: Path, collector: Collector) -> None:
    path = config.parent / "otlp.sock"
    more = f'http = "unix://{path}"\ngrpc = "off"\nmetadata = ["X-Scope-OrgID"]\nmax_request_bytes = 65536\n'
    config.write_text(config.read_text() + f"[sidecar]\n{more}")
    sidecar = services("sidecar", "--config", str(config), "--forward", collector.url)
    assert sidecar.ready() == {"grpc": None, "http": f"unix://{path}", "metrics": None}
    head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Scope-OrgID: seven\r\n"
    for size, status in ((2, b" 200 "), (70_000, b" 413 ")):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT_S)
            client.connect(str(path))
            client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + b"{}")
            assert status in client.recv(4096)
    assert [each["x-scope-orgid"] for each in collector.headers] == ["seven"]
    assert sidecar.end(signal.SIGTERM) == (0, "")
    assert not path.exists()


def test_dead_letters_are_replayed(config: Path, collector: Collector, capsys: pytest.CaptureFixture[str]) -> None:
    path = config.parent / "letters"
    words = ["sidecar", "--config", str(config), "--forward", collector.url, "--replay", str(path)]
    assert main(words) == 1
    assert f"--replay: [Errno 2] No such file or directory: '{path}'" in capsys.readouterr().err
    path.write_bytes(
        b'{"time_unix_nano": 1, "signal": "traces", "bytes": 2, "code": 3, "http_status": 400, "message": "",'
        b' "metadata": [["tenant", "seven"]]}\n\x0a\x00\n'
    )
    assert main(words) == 0
    assert capsys.readouterr().out == "1 taken, 0 refused, 0 not delivered\n"
    assert (collector.bodies, collector.headers[0]["tenant"]) == ([b"\x0a\x00"], "seven")
    assert not path.exists()


def test_a_static_offset_needs_no_daemon_and_is_said(services: Any, config: Path, collector: Collector) -> None:
    words = "--grpc 127.0.0.1:0 --http off --static-offset 3ms --static-uncertainty 50us --mode rewrite"
    sidecar = services("sidecar", "--config", str(config), *words.split(), "--forward", collector.url)
    assert sidecar.ready()["http"] is None
    assert sidecar.end(signal.SIGTERM)[0] == 0
    assert "STATIC OFFSET" in sidecar.errors.read_text()
    assert f"the sidecar is ready kernel={choose().name} mode=rewrite" in sidecar.errors.read_text()


def test_a_sidecar_whose_port_is_taken_says_by_whom(
    config: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        words = ["--config", str(config), "--grpc", "off", "--http", f"127.0.0.1:{port}", "--forward", collector.url]
        assert main(["sidecar", *words]) == 1
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_a_sidecar_with_nowhere_to_send_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sidecar", "--config", str(config), "--grpc", "off", "--http", "127.0.0.1:0"]) == 64
    assert "forward" in capsys.readouterr().err
