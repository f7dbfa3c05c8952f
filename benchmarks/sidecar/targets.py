"""What is measured: the sidecar of this checkout, and an OpenTelemetry Collector that does the same work.

Each is a process of its own, started for one measurement, on free ports of loopback, with nothing in its environment
that could change it. The Collector is built from its modules by its own builder, once for each ``builder.yaml``, into
``build/otelcol/``, which needs Go and takes some minutes of processor time; it is done at low priority.

Limits: Linux (``/proc``, processor clocks of other processes).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.sidecar.work import SHIFT_NS, UNCERTAINTY_NS

ROOT = Path(__file__).resolve().parents[2]
COLLECTOR = ROOT / "benchmarks" / "collector"
BUILT = ROOT / "build" / "otelcol"
BUILDER = "go.opentelemetry.io/collector/cmd/builder@v0.164.0"
STARTED_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0


class NoCollector(Exception):
    """There is none to compare with; the message says why."""


class Broken(Exception):
    """A process did not do what it was started for; the message says which, and what it printed."""


# ---------------------------------------------------------------------------------------------------------------------
# Building


def collector_binary(plan: Path) -> Path:
    """Where the Collector of a builder's ``plan`` is, or will be, once it is built."""
    said = plan.read_bytes()
    name: str
    (name,) = re.findall(r"^  name: (\S+)$", said.decode(), re.MULTILINE)
    return BUILT / hashlib.sha256(said + BUILDER.encode()).hexdigest()[:16] / name


def build_collector(given: str | None = None, plan: Path = COLLECTOR / "builder.yaml") -> Path:
    """The Collector's binary: the one given, the one built before, or one built now, of what ``plan`` says.

    Raises:
        NoCollector: there is no Go, or it could not build it.
    """
    if given is not None:
        if not os.access(given, os.X_OK):
            raise NoCollector(f"{given} is not a program")
        return Path(given).resolve()
    binary = collector_binary(plan)
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        raise NoCollector("Go is not installed, and the Collector is built with it")
    folder = binary.parent
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "GOBIN": str(BUILT / "tools"), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    (folder / "builder.yaml").write_bytes(
        plan.read_bytes().replace(b"dist:\n", b"dist:\n  output_path: ./distribution\n", 1)
    )
    log = folder / "build.log"
    print(f"building the Collector {binary.name} (once, some minutes)", file=sys.stderr, flush=True)
    steps = [
        [go, "install", BUILDER],
        [str(BUILT / "tools" / "builder"), "--config", "builder.yaml", "--skip-strict-versioning"],
    ]
    with log.open("wb") as output:
        for words in steps:
            done = subprocess.run(
                ["nice", "-n", "15", *words],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            if done.returncode:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise NoCollector(f"the Collector could not be built: {''.join(last)[:300]} ({log})")
    made = folder / "distribution" / binary.name
    if not made.exists():
        raise NoCollector(f"the builder left no binary ({log})")
    made.rename(binary)
    return binary


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without what would configure a sidecar, an exporter or a Collector."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKEWD_", "OTEL_", "BENCH_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def process(words: list[str], env: Mapping[str, str], what: str) -> Iterator[subprocess.Popen[str]]:
    """A child that does not outlive the block. Its standard error is kept in a file and told when it ends early."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            words, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )
        try:
            yield child
            if child.poll() is not None:
                raise Broken(f"{what} ended by itself ({child.returncode})")
        except Broken as error:
            errors.seek(0)
            raise Broken(f"{error}; {what} said: {errors.read()[-800:].strip() or 'nothing'}") from None
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.terminate()
            try:
                child.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def cpu_ns(pid: int) -> int:
    """User and system time of a process, with all threads that it ever had."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory: what it is, and the most that it was."""
    said = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", said, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def line_of(child: subprocess.Popen[str], begins: str, what: str) -> str:
    """The line that a child prints once it is ready."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(begins):
            return line[len(begins) :].strip()
    child.wait()
    raise Broken(f"{what} ended before it was ready")


@dataclass
class Sink:
    """The next hop."""

    port: int

    def stats(self) -> dict[str, Any]:
        """What came since the last time: ``requests``, ``spans``, ``bytes``, and the ``last`` request."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as answer:
            said: dict[str, Any] = json.load(answer)
        said["last"] = base64.b64decode(said["last"])
        return said


@contextlib.contextmanager
def sink(capacity: float | None = None) -> Iterator[Sink]:
    words = [sys.executable, "-m", "benchmarks.sidecar.sink"]
    if capacity is not None:
        words += ["--capacity", str(capacity)]
    with process(words, clean_environment(), "the sink") as child:
        yield Sink(int(line_of(child, "READY", "the sink")))


@dataclass
class Target:
    """Something between the load and the sink."""

    pid: int
    ports: dict[str, int]
    metrics: str | None = None

    def scrape(self) -> str:
        """Its own metrics, as text; empty where there are none."""
        if self.metrics is None:
            return ""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def sidecar(
    protocol: str, to: int, mode: str = "rewrite", *, metrics: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """The sidecar of this checkout. ``settings``: keys of ``[sidecar]``, as their environment variables take them.

    Without metrics unless asked for, as the Collector has none.
    """
    env = clean_environment(**{f"SKEWD_SIDECAR__{key.upper()}": value for key, value in (settings or {}).items()})
    words = [str(Path(sys.executable).with_name("skewd")), "sidecar", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    words += ["--metrics", "127.0.0.1:0"] if metrics else []
    words += ["--mode", mode, "--forward", f"{protocol}://127.0.0.1:{to}"]
    words += ["--static-offset", f"{SHIFT_NS}ns", "--static-uncertainty", f"{UNCERTAINTY_NS}ns", "--node", "node-a"]
    with process(words, env, "the sidecar") as child:
        said = json.loads(line_of(child, "READY ", "the sidecar"))
        ports = {each: int(said[each].rpartition(":")[2]) for each in ("grpc", "http")}
        yield Target(child.pid, ports, said.get("metrics"))


@contextlib.contextmanager
def collector(binary: Path, protocol: str, to: int) -> Iterator[Target]:
    """The Collector, with ``benchmarks/collector/xform.yaml``."""
    ports = {"grpc": free_port(), "http": free_port()}
    env = clean_environment(
        BENCH_GRPC_IN=f"127.0.0.1:{ports['grpc']}",
        BENCH_HTTP_IN=f"127.0.0.1:{ports['http']}",
        BENCH_OUT=f"127.0.0.1:{to}",
        BENCH_EXPORTER="otlp" if protocol == "grpc" else "otlphttp",
    )
    words = [str(binary), "--config", f"file:{COLLECTOR / 'xform.yaml'}"]
    with process(words, env, "the Collector") as child:
        limit = time.monotonic() + STARTED_LIMIT_S
        for port in ports.values():
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                if child.poll() is not None or time.monotonic() > limit:
                    raise Broken("the Collector did not listen")
                time.sleep(0.05)
        yield Target(child.pid, ports)


def load_words(protocol: str, port: int, spans: int, **options: float) -> list[str]:
    """The load generator's command (see ``load.py``)."""
    words = [sys.executable, "-m", "benchmarks.sidecar.load", "--protocol", protocol]
    words += ["--port", str(port), "--spans", str(spans)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return words


def load(protocol: str, port: int, spans: int, **options: float) -> dict[str, Any]:
    """Runs the load generator to its end."""
    words = load_words(protocol, port, spans, **options)
    done = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise Broken(f"the load generator: {done.stderr.strip()[-800:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said
