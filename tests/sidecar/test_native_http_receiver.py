"""What the native HTTP receiver withstands: noise, heads without an end, hoarders, who does not read.

What it answers to ordinary and to odd requests is tested with its twin, in ``test_receiving.py``; what it has in common
with the native gRPC receiver in ``test_native_receivers.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator

import pytest

from skewd_sidecar.outcome import Outcome
from tests.sidecar import native_lab
from tests.sidecar.http2_lab import connected
from tests.sidecar.native_lab import BODY, HTTP, Handled, Served, post
from tests.sidecar.sidecar_lab import NATIVE_MISSING
from tests.waiting import until

pytestmark = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))

served = functools.partial(native_lab.served, spoken=HTTP)


@contextlib.asynccontextmanager
async def client(serving: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with connected(serving.address, b"") as peer:
        yield peer.reader, peer.writer


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
            async with client(serving) as (reader, writer):
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
        async with client(serving) as (reader, writer):
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
    async with served(held_max_bytes=40_000) as serving, client(serving) as hoarder:
        hoarder[1].write(post(bytes(30_000), length=30_001))  # one byte is missing
        await until(lambda: serving.hub.stats["held_bytes"] >= 30_000, "the bytes to arrive")
        async with client(serving) as (reader, writer):
            writer.write(post(bytes(30_000)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in head
        assert await serving.works()  # a small one still fits
        hoarder[1].write(b"!")
        assert (await hoarder[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await serving.settled(connections=1)


async def test_an_answer_that_nobody_reads_holds_nobody_else_up() -> None:
    async with served(Handled(Outcome.delivered(bytes(32 << 20)))) as serving:
        async with client(serving) as (_, writer):
            writer.write(post())
            await serving.handled.arrived.wait()
            serving.handled.outcome = Outcome.delivered(b"taken")
            assert await serving.works()
        await serving.settled()
