"""Records what real SDKs send: ``python -m tests.sidecar.captures.record [python javascript java go]``.

Each language has a small program beside this file that exports a trace, log records and metrics (every kind of
attribute, events, links, unicode, 64-bit extremes) by each protocol that its SDK offers. Here they export to a
recorder, which keeps the bodies as they came, after decompression, in ``recorded/``:
``<language>-<protocol>-<signal>.<bin|json>``. ``python`` runs in this environment; ``javascript`` needs node and npm,
``java`` a JDK and Maven, ``go`` Go; each fetches its SDK, in the versions written down beside it, into ``build/``.

What is recorded names no machine: programs give their resource themselves. Times and ids of spans are new each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from tests.sidecar.sidecar_lab import grpc_collector

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
BUILD = Path(__file__).resolve().parents[3] / "build" / "captures"


@dataclass(frozen=True)
class Program:
    """One language's program.

    Attributes:
        makes: the commands that fetch and build it, in its folder under ``build/``.
        runs: the command that exports, to which a protocol is appended.
        protocols: those that its SDK offers.
    """

    makes: tuple[tuple[str, ...], ...]
    runs: tuple[str, ...]
    protocols: tuple[str, ...] = ("grpc", "http")


_NPM = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent")
PROGRAMS = {
    "python": Program((), (sys.executable, "export.py")),
    "javascript": Program((_NPM,), ("node", "export.mjs"), ("grpc", "http", "json")),
    "java": Program(
        (("mvn", "-q", "-B", "package", "dependency:copy-dependencies"),),
        ("java", "-cp", "target/classes:target/dependency/*", "Export"),
    ),
    "go": Program((("go", "build", "-o", "export", "."),), ("./export",)),
}


def sources(language: str) -> bytes:
    """What a program is made from: it is made again when this changes."""
    files = sorted(file for file in (HERE / language).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest().encode()


def is_made(language: str) -> bool:
    """Whether a language's program is there, as its sources are."""
    stamp = BUILD / language / "made"
    return stamp.exists() and stamp.read_bytes() == sources(language)


def make(language: str) -> None:
    """Fetches and builds a language's program where that was not done.

    Raises:
        OSError, subprocess.CalledProcessError: what it needs is missing, or failed.
    """
    if is_made(language):
        return
    work = BUILD / language
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(HERE / language, work)
    for words in PROGRAMS[language].makes:
        subprocess.run(["nice", *words], cwd=work, check=True)
    (work / "made").write_bytes(sources(language))


async def export(language: str, protocol: str, grpc: str, http: str) -> None:
    """Lets a program that was made export to ``grpc`` (host:port) or ``http`` (URL), by one protocol.

    Raises:
        RuntimeError: it failed; the message has what it said.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    child = await asyncio.create_subprocess_exec(
        *PROGRAMS[language].runs,
        protocol,
        cwd=BUILD / language,
        env={**environment, "CAPTURE_GRPC": grpc, "CAPTURE_HTTP": http},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await child.communicate()
    if child.returncode:
        raise RuntimeError(f"the program for {language} failed over {protocol}: {said.decode()[-1000:]}")


async def record(language: str) -> None:
    """Runs one language's program by each of its protocols, and keeps what it sent."""
    await asyncio.to_thread(make, language)
    kept: list[tuple[str, str, bytes]] = []

    async def take(request: web.Request) -> web.Response:
        body = await request.read()  # decompressed
        kept.append((request.path.rpartition("/")[2], request.content_type, body))
        answer = b"{}" if request.content_type == "application/json" else b""
        return web.Response(body=answer, content_type=request.content_type)

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with grpc_collector() as collector:
        grpc = f"127.0.0.1:{collector.url.rpartition(':')[2]}"
        for protocol in PROGRAMS[language].protocols:
            kept.clear()
            collector.requests.clear()
            await export(language, protocol, grpc, http)
            sent = [(signal, kind.rpartition("-")[2], body) for signal, kind, body in kept]
            sent += [(each.signal.value, "protobuf", each.body) for each in collector.requests]
            if sorted(signal for signal, _, _ in sent) != ["logs", "metrics", "traces"]:
                raise SystemExit(
                    f"{language} over {protocol} sent {[signal for signal, _, _ in sent]}, not one of each"
                )
            for signal, kind, body in sent:
                end = "json" if kind.endswith("json") else "bin"
                (RECORDED / f"{language}-{protocol}-{signal}.{end}").write_bytes(body)
                print(f"{language}-{protocol}-{signal}.{end}: {len(body)} bytes")
    await runner.cleanup()


async def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    for language in sys.argv[1:] or PROGRAMS:
        if language not in PROGRAMS:
            raise SystemExit(f"{language!r} is not a language here: {', '.join(PROGRAMS)}")
        await record(language)


if __name__ == "__main__":
    asyncio.run(main())
