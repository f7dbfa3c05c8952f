"""Sends one prebuilt request again and again: ``python -m benchmarks.sidecar.load`` (``--help``).

A closed loop: each of ``connections x streams`` senders waits for its answer before it sends the next, as an exporter
does. With ``--rate`` an open one: so many requests a second, whatever becomes of those before, as many exporters
together do; a request that is due while every sender waits is not sent, and counted.

What it measures is told as one line of JSON: how many were acknowledged and how many refused (HTTP: with which status,
and how many of them said when to try again), the seconds that took, the time of an answer (percentiles, microseconds).

Limits: for benchmarks on loopback. HTTP/1.1 has one request at a time on a connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sidecar import frames
from benchmarks.sidecar.work import request

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after:", re.IGNORECASE)
GRPC_PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STALLED_S = 60.0


@dataclass
class Tally:
    """The requests that are left to be sent, and what became of the others."""

    left: int
    until: float = float("inf")
    ok: int = 0
    refused: int = 0
    waits_ns: list[int] = field(default_factory=list)
    under_way: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = ""
    paced: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    retry_after: int = 0

    def next(self) -> bool:
        """Whether one more is to be sent."""
        if self.left <= 0 or time.monotonic() >= self.until:
            if not self.under_way:
                self.done.set()
            return False
        self.left -= 1
        self.under_way += 1
        return True

    def answered(self, ok: bool, wait_ns: int) -> None:
        self.under_way -= 1
        self.waits_ns.append(wait_ns)
        if ok:
            self.ok += 1
        else:
            self.refused += 1

    def broke(self, problem: str) -> None:
        self.problem = problem
        self.done.set()


class HttpSender(asyncio.Protocol):
    """One exporter over HTTP/1.1."""

    def __init__(self, tally: Tally, authority: str, body: bytes) -> None:
        self._tally = tally
        self._request = (
            f"POST /v1/traces HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/x-protobuf\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._held = b""
        self._sent_ns = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 24)

    def close(self) -> None:
        self._transport.abort()

    @property
    def free(self) -> bool:
        """Whether it may send one more."""
        return not self._sent_ns

    def begin(self) -> None:
        """Sends one, if one more is to be sent."""
        if self._tally.next():
            self._sent_ns = time.monotonic_ns()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._held[: end + 4]
        if _CHUNKED.search(head):
            if not self._held.endswith(b"0\r\n\r\n"):
                return
        else:
            length = _LENGTH.search(head)
            if len(self._held) < end + 4 + (int(length[1]) if length else 0):
                return
        self._held = b""
        status = head[9:12].decode()
        self._tally.statuses[status] += 1
        self._tally.retry_after += _RETRY_AFTER.search(head) is not None
        took, self._sent_ns = time.monotonic_ns() - self._sent_ns, 0
        self._tally.answered(status == "200", took)
        if not self._tally.paced:
            self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._tally.done.is_set():
            self._tally.broke(f"the connection was closed ({exc})")


class GrpcSender(asyncio.Protocol):
    """One exporter process: a connection with several calls at a time."""

    def __init__(self, tally: Tally, authority: str, body: bytes, streams: int) -> None:
        self._tally = tally
        self._head = frames.request_headers(authority, GRPC_PATH)
        self._message = b"\x00" + len(body).to_bytes(4, "big") + body
        self._streams = streams
        self._frames = frames.Frames()
        self._next = 1
        self._window = frames.WINDOW_AT_FIRST
        self._stream_window = frames.WINDOW_AT_FIRST
        self._frame_max = frames.FRAME_AT_FIRST
        self._began: dict[int, int] = {}
        self._answered: set[int] = set()
        self._unsent: dict[int, tuple[int, int]] = {}  # stream: where in the message, and its window
        self._transport: asyncio.Transport
        self._credit = 0
        self.ready = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 24)
        transport.write(frames.PREFACE + frames.settings(table=0))

    def close(self) -> None:
        self._transport.abort()

    @property
    def free(self) -> bool:
        """Whether it may make one more call."""
        return len(self._began) < self._streams

    def begin(self) -> None:
        """Makes as many calls as it may; one, if they are paced."""
        for _ in range(1 if self._tally.paced else self._streams):
            self._call()

    def _call(self) -> None:
        if not self._tally.next():
            return
        stream, self._next = self._next, self._next + 2
        self._began[stream] = time.monotonic_ns()
        self._unsent[stream] = (0, self._stream_window)
        self._send(stream, frames.frame(frames.HEADERS, frames.END_HEADERS, stream, self._head))

    def _send(self, stream: int, before: bytes = b"") -> None:
        """As much of a message as the windows allow."""
        at, window = self._unsent[stream]
        size = len(self._message)
        parts = [before]
        while at < size and (room := min(self._window, window, self._frame_max, size - at)) > 0:
            last = frames.END_STREAM if at + room == size else 0
            parts.append(frames.frame(frames.DATA, last, stream, self._message[at : at + room]))
            at += room
            window -= room
            self._window -= room
        if at == size:
            del self._unsent[stream]
        else:
            self._unsent[stream] = (at, window)
        self._transport.write(b"".join(parts))

    def data_received(self, data: bytes) -> None:
        for kind, flags, stream, content in self._frames.feed(data):
            if kind == frames.DATA:
                self._answered.add(stream)
                self._credit += len(content)
                if self._credit > 30_000:
                    self._transport.write(frames.window_update(0, self._credit))
                    self._credit = 0
            elif kind == frames.WINDOW_UPDATE:
                self._open(stream, int.from_bytes(content, "big"))
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                self._settings(frames.settings_of(content))
            elif kind == frames.PING and not flags & frames.ACK:
                self._transport.write(frames.frame(frames.PING, frames.ACK, 0, content))
            elif kind == frames.GOAWAY:
                self._tally.broke(f"the server said GOAWAY: {content!r}")
            if stream in self._began and ((flags & frames.END_STREAM and kind in (0, 1)) or kind == frames.RST_STREAM):
                self._unsent.pop(stream, None)
                took = time.monotonic_ns() - self._began.pop(stream)
                self._tally.answered(stream in self._answered, took)
                self._answered.discard(stream)
                if not self._tally.paced:
                    self._call()

    def _settings(self, said: dict[int, int]) -> None:
        more = said.get(4, self._stream_window) - self._stream_window
        self._stream_window += more
        self._frame_max = max(self._frame_max, said.get(5, 0))
        self._unsent = {stream: (at, window + more) for stream, (at, window) in self._unsent.items()}
        self._transport.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.ready.set()

    def _open(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
            for waiting in list(self._unsent):
                self._send(waiting)
        elif stream in self._unsent:
            at, window = self._unsent[stream]
            self._unsent[stream] = (at, window + by)
            self._send(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._tally.done.is_set():
            self._tally.broke(f"the connection was closed ({exc})")


async def run(
    protocol: str,
    port: int,
    body: bytes,
    requests: int,
    connections: int,
    streams: int,
    seconds: float = float("inf"),
    rate: float | None = None,
) -> dict[str, Any]:
    """Sends ``requests`` of them, or for so many seconds; ``rate`` a second, or as fast as they are answered.

    Raises:
        RuntimeError: a connection broke, or no answer came for ``STALLED_S``.
    """
    loop = asyncio.get_running_loop()
    tally = Tally(requests, paced=rate is not None)
    authority = f"127.0.0.1:{port}"
    senders: list[HttpSender | GrpcSender] = []
    for _ in range(connections):
        if protocol == "http":
            _, http = await loop.create_connection(lambda: HttpSender(tally, authority, body), "127.0.0.1", port)
            senders.append(http)
        else:
            _, grpc = await loop.create_connection(
                lambda: GrpcSender(tally, authority, body, streams), "127.0.0.1", port
            )
            await asyncio.wait_for(grpc.ready.wait(), 10)
            senders.append(grpc)
    began = time.monotonic()
    tally.until = began + seconds
    unsent = 0
    if rate is None:
        for sender in senders:
            sender.begin()
    else:
        unsent = await pace(tally, senders, rate)
    sent = time.monotonic()
    answers = -1
    while not tally.done.is_set():
        try:
            await asyncio.wait_for(tally.done.wait(), STALLED_S)
        except TimeoutError:
            if answers == len(tally.waits_ns):
                raise RuntimeError(f"no answer for {STALLED_S:g} s, {tally.under_way} requests under way") from None
            answers = len(tally.waits_ns)
    took = time.monotonic() - began
    for sender in senders:
        sender.close()
    if tally.problem:
        raise RuntimeError(tally.problem)
    waits = sorted(tally.waits_ns)
    used = time.process_time()
    return {
        "ok": tally.ok,
        "refused": tally.refused,
        "seconds": took,
        "unsent": unsent,
        "drain_s": 0.0 if rate is None else began + took - sent,
        "statuses": dict(tally.statuses),
        "retry_after": tally.retry_after,
        "p50_us": waits[len(waits) // 2] / 1000,
        "p99_us": waits[len(waits) * 99 // 100] / 1000,
        "own_cpu_s": used,
    }


async def pace(tally: Tally, senders: Sequence[HttpSender | GrpcSender], rate: float) -> int:
    """Sends at a rate until the tally's end; how many were due while every sender waited for an answer."""
    began, due, unsent, turn = time.monotonic(), 0, 0, 0
    while tally.left > 0 and (now := time.monotonic()) < tally.until and not tally.problem:
        more = int((now - began) * rate) - due
        due += more
        # Each that is free may send one in each round over all of them; the next time, others come first.
        turn = (turn + 1) % len(senders)
        while more and (free := [one for one in (*senders[turn:], *senders[:turn]) if one.free]):
            for sender in free[:more]:
                sender.begin()
            more -= min(more, len(free))
        unsent += more
        await asyncio.sleep(0.002)
    tally.left = 0
    tally.paced = False  # what is answered from here on may find that it was the last
    for sender in senders:
        if sender.free:
            sender.begin()
    return unsent


def main() -> None:
    parser = argparse.ArgumentParser(description="Sends OTLP as fast as it is answered.")
    parser.add_argument("--protocol", choices=["grpc", "http"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spans", type=int, required=True)
    parser.add_argument("--requests", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--rate", type=float, help="requests a second, answered or not")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=2, help="calls at a time on a gRPC connection")
    chosen = parser.parse_args()
    answer = run(
        chosen.protocol,
        chosen.port,
        request(chosen.spans),
        chosen.requests,
        chosen.connections,
        chosen.streams,
        chosen.seconds,
        chosen.rate,
    )
    print(json.dumps(asyncio.run(answer)))


if __name__ == "__main__":
    main()
