"""Time servers and a real ``skewd run`` beside them, judged by what an operator has: check, waitsync, /readyz."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from skewd.api_client import NoDaemonError, get_status
from tests.sources.test_ntp_source import Server, packet
from tests.waiting import LIMIT_S

S = 1_000_000_000


class TimeServer:
    """One on loopback: ``lie_ns`` off, silent while ``silent``, and saying ``fields`` of itself."""

    def __init__(self) -> None:
        self.lie_ns, self.silent = 0, False
        self.fields: dict[str, Any] = {}
        self.root_dispersion_s = 0.001
        self.server: Server

    @property
    def address(self) -> str:
        return self.server.address

    def reply(self, question: bytes, received_ns: int) -> list[bytes]:
        if self.silent:
            return []
        answer = packet(question, received_ns + self.lie_ns, time.time_ns() + self.lie_ns, **self.fields)
        return [answer[:8] + struct.pack("!I", round(self.root_dispersion_s * 65536)) + answer[12:]]


@contextlib.asynccontextmanager
async def time_servers(count: int, hosts: tuple[str, ...] = ()) -> AsyncIterator[list[TimeServer]]:
    """That many honest ones; on the given addresses, where they all have the port of the first."""
    servers: list[TimeServer] = []
    port = 0
    try:
        for number in range(count):
            one = TimeServer()
            host = hosts[number] if hosts else "127.0.0.1"
            _, one.server = await asyncio.get_running_loop().create_datagram_endpoint(
                partial(Server, one.reply), local_addr=(host, port)
            )
            port = int(one.address.rpartition(":")[2]) if hosts else 0
            servers.append(one)
        yield servers
    finally:
        for one in servers:
            one.server.transport.close()


class Running:
    """A ``skewd run`` of its own process, and the command line beside it."""

    def __init__(self, directory: Path, config: str) -> None:
        self.file, self.socket = directory / "skewd.toml", directory / "skewd.sock"
        self.log = directory / "log"
        self.file.write_text(
            f'[node]\nname = "n"\nruntime_dir = "{directory}"\nstate_dir = "{directory}"\n'
            f'[mesh]\nlisten = "off"\n[metrics]\nlisten = "127.0.0.1:0"\n{config}'
        )
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "skewd", "run", "--config", str(self.file)),
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        await self.until(lambda told: True)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self.process.wait()
            finally:
                if self.process.returncode is None:
                    self.process.kill()

    async def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The status, once that holds."""
        told: dict[str, Any] = {}
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    with contextlib.suppress(NoDaemonError):
                        told = await asyncio.to_thread(get_status, self.socket)
                        if told and holds(told):
                            return told
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never: {told or self.log.read_text()}") from None

    async def command(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a command that asks the daemon."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skewd", *words, "--config", str(self.file)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(LIMIT_S):
            out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def ready(self, told: dict[str, Any]) -> int:
        """What /readyz answers."""

        def ask() -> int:
            try:
                with urllib.request.urlopen(f"http://{told['metrics']}/readyz", timeout=LIMIT_S) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        return await asyncio.to_thread(ask)


@contextlib.asynccontextmanager
async def skewd_run(config: str, directory: Path | None = None) -> AsyncIterator[Running]:
    """A daemon with this configuration, in this directory or in one of its own."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        running = Running(directory or Path(name), config)
        try:
            await running.start()
            yield running
        finally:
            await running.stop()


def ntp(*servers: TimeServer, more: str = "") -> str:
    """The [[source]] tables that name them."""
    return "".join(
        f'[[source]]\ntype = "ntp"\nname = "s{number}"\naddress = "{server.address}"\ninterval = "200ms"\n{more}'
        for number, server in enumerate(servers, 1)
    )


def codes(told: dict[str, Any]) -> set[str]:
    """The codes of what is wrong."""
    return {problem["code"] for problem in told["problems"]}
