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
import os
import shutil
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from tests.sidecar.sidecar_lab import grpc_collector

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
BUILD = Path(__file__).resolve().parents[3] / "build" / "captures"


def prepared(language: str) -> tuple[list[str], Path, tuple[str, ...]]:
    """The command that exports (a protocol is appended), where it runs, and the protocols."""
    here, work = HERE / language, BUILD / language
    work.mkdir(parents=True, exist_ok=True)
    if language == "python":
        return [sys.executable, str(here / "export.py")], work, ("grpc", "http")
    for file in here.rglob("*"):
        if file.is_file():
            to = work / file.relative_to(here)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    if language == "javascript":
        words = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
        subprocess.run(words, cwd=work, check=True)
        return ["node", "export.mjs"], work, ("grpc", "http", "json")
    if language == "java":
        subprocess.run(["mvn", "-q", "-B", "package", "dependency:copy-dependencies"], cwd=work, check=True)
        return ["java", "-cp", "target/classes:target/dependency/*", "Export"], work, ("grpc", "http")
    if language == "go":
        subprocess.run(["go", "build", "-o", "export", "."], cwd=work, check=True)
        return ["./export"], work, ("grpc", "http")
    raise SystemExit(f"{language!r} is not a language here: python, javascript, java or go")


async def record(language: str) -> None:
    """Runs one language's program by each of its protocols, and keeps what it sent."""
    words, work, protocols = await asyncio.to_thread(prepared, language)
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
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["CAPTURE_HTTP"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with grpc_collector() as collector:
        environment["CAPTURE_GRPC"] = f"127.0.0.1:{collector.url.rpartition(':')[2]}"
        for protocol in protocols:
            kept.clear()
            collector.requests.clear()
            child = await asyncio.create_subprocess_exec(*words, protocol, cwd=work, env=environment)
            if await child.wait():
                raise SystemExit(f"the program for {language} failed: see above")
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
    for language in sys.argv[1:] or ["python", "javascript", "java", "go"]:
        await record(language)


if __name__ == "__main__":
    asyncio.run(main())
