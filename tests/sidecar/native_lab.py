"""A native receiver of either protocol, a handler that remembers, and a client that speaks by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome
from tests.sidecar.http2_lab import PREFACE, Peer, call, connected, message, settings
from tests.sidecar.sidecar_lab import NATIVE_MISSING
from tests.waiting import LIMIT_S, until

if TYPE_CHECKING or NATIVE_MISSING is None:
    from skewd_sidecar.native_hub import Hub
    from skewd_sidecar.receive.grpc_native import NativeGrpcReceiver
    from skewd_sidecar.receive.http_native import NativeHttpReceiver

BODY = b"spans of somebody"


@dataclass
class Handled:
    """A handler that remembers, and answers what it is told to."""

    outcome: Outcome = field(default_factory=lambda: Outcome.delivered(b"taken"))
    requests: list[tuple[Signal, bytes, float | None, Metadata]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(
        self,
        signal: Signal,
        body: bytes,
        timeout_s: float | None,
        metadata: Metadata = (),
        *,
        since_s: float | None = None,
    ) -> Outcome:
        self.requests.append((signal, body, timeout_s, metadata))
        self.arrived.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return self.outcome


@dataclass(frozen=True)
class Spoken:
    """A protocol: how its receiver is opened, what a client sends for one request, whether that was taken."""

    open: Callable[..., Awaitable[Any]]
    request: bytes
    taken: Callable[[Peer], Awaitable[bool]]


def post(body: bytes = BODY, *more: str, length: int | None = None) -> bytes:
    """An export request over HTTP; ``length``: what it says of its body's."""
    lines = [
        "POST /v1/traces HTTP/1.1",
        "Host: sidecar",
        "Content-Type: application/x-protobuf",
        f"Content-Length: {len(body) if length is None else length}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _taken_over_grpc(peer: Peer) -> bool:
    return message(b"taken") in [each.content for each in await peer.until_end(1)]


async def _taken_over_http(peer: Peer) -> bool:
    return (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def _open_grpc(*arguments: Any, **limits: Any) -> NativeGrpcReceiver:
    return await NativeGrpcReceiver.open(*arguments, **limits)


async def _open_http(*arguments: Any, **limits: Any) -> NativeHttpReceiver:
    return await NativeHttpReceiver.open(*arguments, **limits)


GRPC = Spoken(_open_grpc, PREFACE + settings() + call(1, BODY), _taken_over_grpc)
HTTP = Spoken(_open_http, post(), _taken_over_http)


@dataclass
class Served:
    """A receiver that listens on loopback."""

    spoken: Spoken
    receiver: Any
    handled: Handled
    hub: Hub

    @property
    def address(self) -> tuple[str, int]:
        assert isinstance(self.receiver.address, tuple)
        return self.receiver.address

    async def works(self) -> bool:
        """Whether an ordinary client is served."""
        async with connected(self.address, self.spoken.request) as peer:
            return await self.spoken.taken(peer) and self.handled.requests[-1][1] == BODY

    async def settled(self, **wanted: int) -> None:
        """Waits until the transport's counts are as they should be: nothing there, unless ``wanted`` says otherwise."""
        expected = {"connections": 0, "requests": 0, "held_bytes": 0} | wanted
        await until(lambda: {name: self.hub.stats[name] for name in expected} == expected, f"{expected}")


@contextlib.asynccontextmanager
async def served(
    handled: Handled | None = None, grace_s: float = 0.0, *, spoken: Spoken = GRPC, **limits: Any
) -> AsyncIterator[Served]:
    handled = handled or Handled()
    receiver = await spoken.open("127.0.0.1:0", handled, **limits)
    hub = Hub.acquire()
    try:
        async with asyncio.timeout(2 * LIMIT_S):
            yield Served(spoken, receiver, handled, hub)
    finally:
        await receiver.close(grace_s)
        hub.release()


def transport_threads() -> int:
    """How many threads of this process are the transport's."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
            found += (task / "comm").read_text().strip() == "skewd-transport"
    return found


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
