"""A real Jaeger behind the sidecar: built from its module, started on loopback, asked through its query API.

Built once, with Go, into ``build/jaeger/``: ``python -m tests.sidecar.jaeger`` does it, at low priority, and it takes
some four minutes of processor time. So ``make test`` uses it where it is and builds nothing; ``make test-neighbours``
builds it first.

Limits: version 1, whose one binary needs no configuration; it keeps spans in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import LIMIT_S

VERSION = "v1.76.0"
MODULE = f"github.com/jaegertracing/jaeger@{VERSION}"
BINARY = Path(__file__).resolve().parents[2] / "build" / "jaeger" / VERSION / "jaeger"


def build() -> Path:
    """The binary, built if it is not there.

    Raises:
        RuntimeError: there is no Go, or it could not build it.
    """
    if BINARY.exists():
        return BINARY
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("Go is not installed, and Jaeger is built with it")
    print(f"Jaeger: building {VERSION} (once, some minutes)", file=sys.stderr, flush=True)
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BINARY.parent) as scratch:
        got = subprocess.run([go, "mod", "download", "-json", MODULE], cwd=scratch, capture_output=True, text=True)
        if got.returncode:
            raise RuntimeError(f"Jaeger's module could not be fetched: {(got.stderr or got.stdout).strip()[:300]}")
        # The module cache is read-only, and a build may want to write beside its sources.
        source = Path(scratch) / "source"
        shutil.copytree(json.loads(got.stdout)["Dir"], source, copy_function=shutil.copyfile)
        words = ["nice", "-n", "15", go, "build", "-trimpath", "-o", str(BINARY) + ".new", "./cmd/all-in-one"]
        for folder in source.rglob("*"):
            if folder.is_dir():
                folder.chmod(0o755)
        source.chmod(0o755)
        done = subprocess.run(words, cwd=source, env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Jaeger could not be built: {done.stderr.strip()[-300:]}")
    Path(str(BINARY) + ".new").rename(BINARY)
    return BINARY


@dataclass
class Jaeger:
    """One that runs: where it takes OTLP, and where it answers."""

    urls: dict[str, str]
    query: str

    def ask(self, path: str) -> Any:
        """An answer of its query API; None for 404."""
        try:
            with urllib.request.urlopen(f"{self.query}{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def trace(self, trace_id: str, spans: int) -> Any:
        """A trace as ``/api/traces`` tells it, once it has so many spans."""
        limit = time.monotonic() + LIMIT_S
        while time.monotonic() < limit:
            said = self.ask(f"/api/traces/{trace_id}")
            if said and len(said["data"][0]["spans"]) >= spans:
                return said["data"][0]
            time.sleep(0.05)
        raise AssertionError(f"Jaeger does not show the {spans} spans of {trace_id}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on (any more)."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in bound]


@contextlib.contextmanager
def running() -> Iterator[Jaeger]:
    """A Jaeger on free ports, of the binary that was built."""
    grpc, http, query, admin = free_ports(4)
    here = "127.0.0.1"
    where = {
        "collector.otlp.grpc.host-port": f"{here}:{grpc}",
        "collector.otlp.http.host-port": f"{here}:{http}",
        "query.http-server.host-port": f"{here}:{query}",
        "query.grpc-server.host-port": f"{here}:0",
        "admin.http.host-port": f"{here}:{admin}",
        "collector.grpc-server.host-port": f"{here}:0",
        "collector.http-server.host-port": f"{here}:0",
    }
    words = [str(BINARY), *(f"--{name}={value}" for name, value in where.items()), "--log-level=error"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SPAN_STORAGE"))}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            limit = time.monotonic() + LIMIT_S
            while True:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://{here}:{admin}/", timeout=5) as answer,
                ):
                    if answer.status == 200:
                        break
                if child.poll() is not None or time.monotonic() > limit:
                    said.seek(0)
                    raise RuntimeError(f"Jaeger did not start: {said.read()[-500:]!r}")
                time.sleep(0.05)
            yield Jaeger({"grpc": f"grpc://{here}:{grpc}", "http": f"http://{here}:{http}"}, f"http://{here}:{query}")
        finally:
            # Killed, not asked: it would wait ten seconds for connections that are kept open, and has nothing to lose.
            child.kill()
            child.wait()


if __name__ == "__main__":
    try:
        print(build())
    except RuntimeError as problem:
        sys.exit(f"{problem}")
