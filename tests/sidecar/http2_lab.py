"""HTTP/2 by hand, right and wrong: frames, header blocks without compression, a peer that says what a test wants.

Limits: header blocks are literals that enter no table (RFC 7541, 6.2.2). None that arrives is decoded: a status is
looked for in the form that it has at its first time on a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 7, 8, 11
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
GRPC = ("content-type", "application/grpc")


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack("!IBI", len(content) << 8 | kind, flags, stream) + content


def settings(**values: int) -> bytes:
    """SETTINGS: ``window``, ``streams``."""
    number = {"streams": 3, "window": 4}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", number[name], value) for name, value in values.items()))


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    head = bytearray(b"\x7f")
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + text


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    """A header block."""
    return b"".join(b"\x00" + _string(name.encode()) + _string(value.encode("latin-1")) for name, value in fields)


def request_block(
    *more: tuple[str, str], path: str = TRACES, method: str = "POST", kind: str | None = GRPC[1]
) -> bytes:
    """The header block of a gRPC call."""
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    if kind is not None:
        fields.append(("content-type", kind))
    return block([*fields, *more])


def message(body: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack("!BI", flag, len(body)) + body


def call(stream: int, body: bytes, *more: tuple[str, str]) -> bytes:
    """A whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, request_block(*more)) + frame(DATA, END_STREAM, stream, message(body))


@dataclass(frozen=True)
class Frame:
    """One that came."""

    kind: int
    flags: int
    stream: int
    content: bytes


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def frame(self) -> Frame | None:
        """The next frame; None at the end. SETTINGS and PING are answered."""
        while True:
            try:
                head = await self.reader.readexactly(9)
                size_kind, flags, stream = struct.unpack("!IBI", head)
                got = Frame(size_kind & 255, flags, stream, await self.reader.readexactly(size_kind >> 8))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            if got.kind in (SETTINGS, PING) and not got.flags & ACK:
                self.send(frame(got.kind, ACK, 0, got.content if got.kind == PING else b""))
            elif got.kind not in (SETTINGS, PING, WINDOW_UPDATE):
                return got

    async def until_end(self, stream: int) -> list[Frame]:
        """A stream's frames up to its last, or to the connection's."""
        found = []
        while (got := await self.frame()) is not None:
            if got.kind == GOAWAY:
                found.append(got)
            if got.stream == stream:
                found.append(got)
                if got.kind == RST_STREAM or got.flags & END_STREAM:
                    return found
        return found

    async def closed(self) -> None:
        """Waits until the other end has closed, whatever it says before."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    async def sent_all(self) -> None:
        """Ends what this end sends."""
        with contextlib.suppress(OSError):  # closed by the other already
            await self.writer.drain()
            self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(address: tuple[str, int], *first: bytes) -> AsyncIterator[Peer]:
    """A client's end; ``first`` is sent at once, the preface and empty settings unless given."""
    peer = Peer(*await asyncio.open_connection(*address))
    peer.send(*(first or (PREFACE, settings())))
    try:
        yield peer
    finally:
        await peer.close()


@contextlib.asynccontextmanager
async def scripted(answer: Callable[[Peer, int], Awaitable[None]], *, greet: bool = True) -> AsyncIterator[int]:
    """A server on loopback that does with each request's end what ``answer`` does (peer, stream). Yields its port."""
    peers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            if greet:
                await reader.readexactly(len(PREFACE))
                peer.send(settings())
                while (got := await peer.frame()) is not None:
                    if got.flags & END_STREAM and got.kind in (DATA, HEADERS):
                        await answer(peer, got.stream)
            else:
                await answer(peer, 0)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            await peer.close()

    def started(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        peers.add(task)
        task.add_done_callback(peers.discard)

    server = await asyncio.start_server(started, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(peers):
            task.cancel()
        await asyncio.gather(*peers, return_exceptions=True)


def _huffman(digits: str) -> bytes:
    """Digits in HPACK's code (RFC 7541, appendix B)."""
    bits = "".join(f"{int(digit):05b}" if digit in "012" else f"{0x19 + int(digit) - 3:06b}" for digit in digits)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


_GRPC_STATUS = bytes.fromhex("889acac8b21234da8f")  # coded the same way, with its length


def status(frames: list[Frame]) -> str:
    """How a call ended: its gRPC status as a number, or ``http 415``, ``reset 8``, ``goaway 11``."""
    last = frames[-1]
    if last.kind == RST_STREAM:
        return f"reset {int.from_bytes(last.content[:4], 'big')}"
    if last.kind == GOAWAY:
        return f"goaway {int.from_bytes(last.content[4:8], 'big')}"
    for code in map(str, range(17)):
        coded = _huffman(code)
        if _GRPC_STATUS + bytes((0x80 | len(coded),)) + coded in last.content:
            return code
    for number in map(str, (200, 405, 415, 431)):
        if _huffman(number) in last.content:
            return f"http {number}"
    return f"unknown {last.content.hex()}"
