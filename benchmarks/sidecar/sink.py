"""The next hop of a benchmark: takes any OTLP request and acknowledges it. ``python -m benchmarks.sidecar.sink``.

One port for both protocols: what begins with HTTP/2's preface is gRPC. Requests are not parsed: their spans are counted
by their name (see ``work.py``). ``GET /stats`` tells what came since the last time it was asked, and shows the last
request. With ``--capacity N`` it takes at most N spans a second, and lets whoever sends more wait: a next hop whose
limit is known.

Limits: for benchmarks on loopback. The first line printed is ``READY PORT``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import sys
from collections.abc import Callable

from benchmarks.sidecar import frames
from benchmarks.sidecar.work import MARK

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
TOP_UP = 1 << 28


class Account:
    """What was taken, and how fast more may be."""

    def __init__(self, capacity: float | None) -> None:
        self.capacity = capacity
        self.clear()
        self._free_at = 0.0
        self.last = b""

    def clear(self) -> None:
        self.requests = self.spans = self.bytes = 0

    def take(self, body: bytes) -> int:
        """Counts a request; its spans."""
        spans = body.count(MARK)
        self.requests += 1
        self.spans += spans
        self.bytes += len(body)
        self.last = body
        return spans

    def answer(self, spans: int, how: Callable[[], None]) -> None:
        """Calls ``how``, at once or when so many spans may have been worked on."""
        if self.capacity is None:
            how()
            return
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + spans / self.capacity
        loop.call_at(self._free_at, how)

    def stats(self) -> bytes:
        said = {"requests": self.requests, "spans": self.spans, "bytes": self.bytes}
        answer = json.dumps(said | {"last": base64.b64encode(self.last).decode()}).encode()
        self.clear()
        return answer


class Connection(asyncio.Protocol):
    """One connection, of either protocol."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._held = bytearray()
        self._grpc: frames.Frames | None = None
        self._bodies: dict[int, list[bytes]] = {}
        self._taken = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._grpc is not None:
            self._frames(data)
            return
        self._held += data
        if self._held.startswith(frames.PREFACE[: len(self._held)]):
            if len(self._held) >= len(frames.PREFACE):
                self._grpc = frames.Frames()
                window = frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_AT_FIRST)
                self._transport.write(frames.settings(window=frames.WINDOW_MAX, frame=1 << 20, table=0) + window)
                self._frames(bytes(self._held[len(frames.PREFACE) :]))
            return
        self._http()

    # -- gRPC

    def _frames(self, data: bytes) -> None:
        assert self._grpc is not None
        for kind, flags, stream, content in self._grpc.feed(data):
            if kind == frames.DATA:
                self._taken += len(content)
                if self._taken > TOP_UP:
                    self._transport.write(frames.window_update(0, self._taken))
                    self._taken = 0
                self._bodies.setdefault(stream, []).append(content)
                if flags & frames.END_STREAM:
                    self._call(stream)
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                self._transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                self._transport.write(frames.frame(frames.PING, frames.ACK, 0, content))
            elif kind == frames.RST_STREAM:
                self._bodies.pop(stream, None)
            elif kind == frames.HEADERS and flags & frames.END_STREAM:
                self._call(stream)

    def _call(self, stream: int) -> None:
        spans = self._account.take(b"".join(self._bodies.pop(stream, []))[5:])
        answer = (
            frames.frame(frames.HEADERS, frames.END_HEADERS, stream, frames.ANSWER_HEADERS)
            + frames.frame(frames.DATA, 0, stream, frames.ANSWER_MESSAGE)
            + frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, frames.TRAILERS_OK)
        )
        self._account.answer(spans, lambda: self._transport.write(answer))

    # -- HTTP/1.1

    def _http(self) -> None:
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._held[: end + 4])
            body: bytes | None
            if _CHUNKED.search(head):
                body, until = self._chunks(end + 4)
            else:
                length = _LENGTH.search(head)
                until = end + 4 + (int(length[1]) if length else 0)
                body = bytes(self._held[end + 4 : until]) if len(self._held) >= until else None
            if body is None:
                return
            del self._held[:until]
            if head.startswith(b"GET /stats"):
                said = self._account.stats()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
            else:
                self._account.answer(self._account.take(body), lambda: self._transport.write(_OK))

    def _chunks(self, at: int) -> tuple[bytes | None, int]:
        parts: list[bytes] = []
        while True:
            line = self._held.find(b"\r\n", at)
            if line < 0:
                return None, 0
            size = int(bytes(self._held[at:line]).split(b";")[0], 16)
            at = line + 2 + size + 2
            if len(self._held) < at:
                return None, 0
            if size == 0:
                return b"".join(parts), at
            parts.append(bytes(self._held[line + 2 : at - 2]))


async def main() -> None:
    parser = argparse.ArgumentParser(description="Acknowledges OTLP.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--capacity", type=float, help="spans a second; unlimited unless given")
    chosen = parser.parse_args()
    account = Account(chosen.capacity)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(account), "127.0.0.1", chosen.port)
    print("READY", server.sockets[0].getsockname()[1], flush=True)
    # Whoever started it holds its standard input: when that one is gone, so is this.
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
