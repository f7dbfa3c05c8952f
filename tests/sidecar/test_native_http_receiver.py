"""What the native HTTP receiver withstands: noise, heads without an end, hoarders, who leaves, faults of its own.

What it answers to ordinary and to odd requests is tested with its twin, in ``test_receiving.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from skewd_sidecar.outcome import Outcome
from tests.sidecar.sidecar_lab import LIMIT_S, NATIVE_MISSING
from tests.sidecar.test_native_receiver import Handled
from tests.waiting import until

pytestmark = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))
if NATIVE_MISSING is None:
    from skewd_sidecar.native_hub import Hub
    from skewd_sidecar.receive.http_native import NativeHttpReceiver

BODY = b"spans of somebody"


def post(body: bytes = BODY, *more: str, length: int | None = None) -> bytes:
    """An export request; ``length``: what it says of its body's."""
    lines = [
        "POST /v1/traces HTTP/1.1",
        "Host: sidecar",
        "Content-Type: application/x-protobuf",
        f"Content-Length: {len(body) if length is None else length}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Served:
    receiver: NativeHttpReceiver
    handled: Handled
    hub: Hub

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Peer]:
        assert isinstance(self.receiver.address, tuple)
        reader, writer = await asyncio.open_connection(*self.receiver.address)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def works(self) -> bool:
        """Whether an ordinary client is served."""
        async with self.connected() as (reader, writer):
            writer.write(post())
            head = await reader.readuntil(b"\r\n\r\n")
        return head.startswith(b"HTTP/1.1 200 ") and self.handled.requests[-1][1] == BODY

    async def settled(self, **wanted: int) -> None:
        """Waits until the transport's counts are as they should be: nothing there, unless ``wanted`` says otherwise."""
        expected = {"connections": 0, "requests": 0, "held_bytes": 0} | wanted
        await until(lambda: {name: self.hub.stats[name] for name in expected} == expected, f"{expected}")


@contextlib.asynccontextmanager
async def served(handled: Handled | None = None, **limits: Any) -> AsyncIterator[Served]:
    handled = handled or Handled()
    receiver = await NativeHttpReceiver.open("127.0.0.1:0", handled, **limits)
    hub = Hub.acquire()
    try:
        async with asyncio.timeout(2 * LIMIT_S):
            yield Served(receiver, handled, hub)
    finally:
        await receiver.close(0)
        hub.release()


def damaged(chance: random.Random) -> bytes:
    """Noise, or a request of which something is cut, doubled, or another byte."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(1, 2_000))
    more = chance.choice(((), ("Transfer-Encoding: chunked",), ("Expect: 100-continue",), ("Content-Length: 3",)))
    body = chance.choice((BODY, b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", chance.randbytes(300)))
    request = bytearray(post(body, *more, length=chance.choice((None, 0, 5, 10**18))))
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(request))
        match chance.randrange(3):
            case 0:
                request[at] = chance.randrange(256)
            case 1:
                del request[at : at + chance.randrange(20)]
            case _:
                request[at:at] = request[at : at + chance.randrange(20)]
        if not request:
            return b"\r\n"
    return bytes(request)


@pytest.mark.parametrize("seed", range(4))
async def test_noise_and_damaged_requests_end_their_connection_at_most(seed: int) -> None:
    chance = random.Random(seed)
    async with served() as serving:
        for _ in range(50):
            async with serving.connected() as (reader, writer):
                for _ in range(chance.randrange(1, 4)):
                    writer.write(damaged(chance))
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    answers = await reader.read(1 << 20)  # to the end: it closes, whatever it made of that
                    assert not answers or answers.startswith(b"HTTP/1.1 ")
        assert await serving.works()
        await serving.settled()
        assert serving.hub.stats["panics"] == 0


async def test_a_head_without_an_end_is_refused_and_not_kept() -> None:
    async with served() as serving:
        async with serving.connected() as (reader, writer):
            writer.write(b"POST /v1/traces HTTP/1.1\r\nHost: sidecar\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(64):
                    writer.write(b"X-More: " + b"x" * 4_000 + b"\r\n")
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 4")
        await serving.settled()
        assert serving.handled.requests == []
        assert await serving.works()


async def test_what_is_arriving_is_bounded_for_all_together() -> None:
    async with served(held_max_bytes=40_000) as serving, serving.connected() as hoarder:
        hoarder[1].write(post(bytes(30_000), length=30_001))  # one byte is missing
        await until(lambda: serving.hub.stats["held_bytes"] >= 30_000, "the bytes to arrive")
        async with serving.connected() as (reader, writer):
            writer.write(post(bytes(30_000)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in head
        assert await serving.works()  # a small one still fits
        hoarder[1].write(b"!")
        assert (await hoarder[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await serving.settled(connections=1)


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    handled = Handled(hold=asyncio.Event())
    async with served(handled) as serving:
        async with serving.connected() as (_, writer):
            writer.write(post())
            await handled.arrived.wait()
        await handled.cancelled.wait()
        await serving.settled()


async def test_an_answer_that_nobody_reads_holds_nobody_else_up() -> None:
    async with served(Handled(Outcome.delivered(bytes(32 << 20)))) as serving:
        async with serving.connected() as (_, writer):
            writer.write(post())
            await serving.handled.arrived.wait()
            serving.handled.outcome = Outcome.delivered(b"taken")
            assert await serving.works()
        await serving.settled()


@pytest.mark.parametrize("what", [1, 2], ids=["connection", "request"])
async def test_a_fault_ends_its_connection_and_nothing_else(what: int) -> None:
    async with served() as serving:
        assert await serving.works()
        await serving.settled()
        serving.hub._transport.panic_once(what)
        async with serving.connected() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(post())
                assert await reader.read(1 << 16) == b""
        assert await serving.works()
        await serving.settled()
        assert serving.hub.stats["panics"] == 1
