"""Servers over HTTP/1.1 by hand: each request is answered with the bytes that a test gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class RawServer:
    """What it was asked, and over how many connections."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sent(self) -> list[bytes]:
        """The bodies that were not empty: those of exporters, without probes."""
        return [body for body in self.requests if body]


Answer = Callable[[RawServer, asyncio.StreamWriter], Awaitable[None]]


def says(answer: bytes, *, ends: bool = True) -> Answer:
    """Answers with these bytes, and closes the connection if ``ends``."""

    async def say(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        if ends:
            writer.close()

    return say


@contextlib.asynccontextmanager
async def raw_server(answer: Answer, port: int = 0) -> AsyncIterator[RawServer]:
    """A server on loopback; each request is answered by ``answer``, one that never returns never answers."""
    server = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
                server.heads.append(head)
                server.requests.append(await reader.readexactly(int(fields.get(b"content-length", b"0"))))
                await answer(server, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def started(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(started, "127.0.0.1", port)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
