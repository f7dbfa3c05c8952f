"""The Aeron link where it differs: drivers that go and come back, ways back that are not there, noise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from skewd.keys import KeyNeeded
from skewd.links import envelope
from skewd.links.aeron import STREAM, AeronLink, how_to_install
from skewd.links.channel import parse_channel
from skewd.links.unavailable import LinkUnavailable
from skewd.ports import ListenError, PortTaken
from tests.links.media import INTERVAL_NS, NAMES, Medium, Member, pages, udp_places
from tests.waiting import LIMIT_S, until

A, B = NAMES[:2]
IPC = "aeron:ipc?term-length=64k"

DRIVER = """
import pyaeron, sys
driver = pyaeron.MediaDriver(dir=sys.argv[1])
print("READY", flush=True)
sys.stdin.read()
driver.close()
"""


@contextlib.asynccontextmanager
async def driver_process(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A media driver that is somebody else's."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DRIVER,
        str(directory),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            assert await process.stdout.readline() == b"READY\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def nodes(medium: Medium, count: int = 2, **options: Any) -> AsyncIterator[list[Member]]:
    names = NAMES[:count]
    clocks = pages(None, names)
    members = [Member(name, clocks[name], link="aeron") for name in names]
    async with contextlib.AsyncExitStack() as stack:
        for member in members:
            member.link = await medium.open(member, [name for name in names if name != member.name], **options)
            stack.push_async_callback(member.link.close)
        yield members


def both(members: list[Member], more_than: int = 0) -> bool:
    a, b = members[:2]
    return a.complete(b.name) > more_than and b.complete(a.name) > more_than


async def test_a_driver_that_goes_and_comes_back_is_survived(aeron_possible: None, tmp_path: Path) -> None:
    """The library's own answer to this is to end the process."""
    directory = tmp_path / "driver"
    async with nodes(Medium("aeron", directory=str(tmp_path))) as members:
        a, b = members
        await until(lambda: "no Aeron media driver runs in" in (a.link.trouble or ""))
        async with driver_process(directory) as first:
            await until(lambda: both(members, 2) and a.link.trouble is None)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            await until(lambda: a.link.trouble is not None and b.link.trouble is not None)
            seen = max(a.complete(B), b.complete(A))
        async with driver_process(directory):
            await until(lambda: both(members, seen + 2) and a.link.trouble is None)
            a.bound(b)
            b.bound(a)
            assert a.link.counters["internal_errors"] == b.link.counters["internal_errors"] == 0


async def test_a_node_that_restarts_is_found_again_and_leaves_no_files(aeron_possible: None, tmp_path: Path) -> None:
    medium = Medium("aeron", udp_places(), directory=str(tmp_path))
    clocks = pages(None, (A, B))
    a, b, again = (Member(name, clocks[name], link="aeron") for name in (A, B, B))
    link = await medium.open(a, [B])
    try:
        other = await medium.open(b, [A])
        await until(lambda: both([a, b]))
        await other.close()
        other = await medium.open(again, [A])
        try:
            seen = a.complete(B)
            await until(lambda: a.complete(B) > seen + 1 and again.complete(A) > 1)
            a.bound(again)
        finally:
            await other.close()
    finally:
        await link.close()
    assert list(tmp_path.iterdir()) == []


async def test_who_is_not_listed_is_told_of_and_not_answered(aeron_possible: None, tmp_path: Path) -> None:
    medium = Medium("aeron", udp_places(), directory=str(tmp_path))
    clocks = pages(None, (A, B))
    a, b = (Member(name, clocks[name], link="aeron") for name in (A, B))
    a.link = await medium.open(a, [B])
    b.link = await medium.open(b, [])
    try:
        await until(lambda: b.link.counters["no_way_back"] >= 3)
        assert a.proofs == []
    finally:
        await a.link.close()
        await b.link.close()


async def test_noise_is_counted_and_moves_nothing(driver_directory: Path) -> None:
    import pyaeron

    async with nodes(Medium("aeron", directory=str(driver_directory))) as members:
        a, b = members
        await until(lambda: both(members))
        with pyaeron.Aeron(dir=str(driver_directory / "driver")) as client:
            noise = client.add_publication(IPC, STREAM)
            noise.await_connected(LIMIT_S)
            for data in (
                b"",
                b"x",
                os.urandom(400),
                b"skA1",
                b"skA1\xff",
                b"skA1\x01 \x01b",
                envelope.wrap(A, "stranger", os.urandom(400)),
                envelope.wrap(A, "stranger", b"skwd\x02\x01" + bytes(400)),
                envelope.wrap("node-z", "stranger", b"for another"),
                envelope.wrap("", A, b"our own label"),
                bytes(4000),
            ):
                while not noise.offer(data):
                    await asyncio.sleep(0.001)
            await until(lambda: a.link.counters["bad_labels"] >= 6)
            await until(lambda: a.link.counters["oversized_data"] == 1 and a.link.counters["bad_magic"] == 1)
            seen = a.complete(B)
            await until(lambda: a.complete(B) > seen + 2)
        a.bound(b)
        assert {proofs.peer.name for proofs in a.proofs} == {B}
        assert a.link.counters["internal_errors"] == 0


async def test_a_message_longer_than_a_packet_survives_the_end_of_a_poll(driver_directory: Path) -> None:
    """A poll takes so many fragments and no more. Sent faster than they are taken, some message is cut by its end."""
    import pyaeron

    async with nodes(Medium("aeron", directory=str(driver_directory))) as members:
        a, b = members
        await until(lambda: both(members))
        with pyaeron.Aeron(dir=str(driver_directory / "driver")) as client:
            noise = client.add_publication(IPC, STREAM)
            noise.await_connected(LIMIT_S)
            sent = 0
            for data in (b"one fragment", *[bytes(1_500)] * 3) * 100:
                while not noise.offer(data):
                    await asyncio.sleep(0.001)
                sent += 1
            await until(lambda: min(each.link.counters["bad_labels"] for each in (a, b)) >= sent)
        assert a.link.counters["bad_labels"] == b.link.counters["bad_labels"] == sent


async def test_a_flood_is_slowed_and_moves_nothing(driver_directory: Path) -> None:
    import pyaeron

    async with nodes(Medium("aeron", directory=str(driver_directory))) as members:
        a, b = members
        await until(lambda: both(members))
        with pyaeron.Aeron(dir=str(driver_directory / "driver")) as client:
            noise = client.add_publication(IPC, STREAM)
            noise.await_connected(LIMIT_S)
            data = envelope.wrap(A, "stranger", b"skwd\x02\x01" + os.urandom(400))
            sent, began_s = 0, time.monotonic()
            while a.link.counters["flooded"] < 10:
                for _ in range(100):
                    sent += bool(noise.offer(data))
                await asyncio.sleep(0.001)
            passed_s = time.monotonic() - began_s
            assert len(a.link._handover) <= 256
            # What is beyond the budget of 2,000 a second waits at the sender: flow control tells it.
            assert sent <= 2 * (2_000 * passed_s + 500)
        seen = a.complete(B)
        await until(lambda: a.complete(B) > seen + 2)
        a.bound(b)
        counters = a.link.counters
        assert counters["rate_limited"] > 0
        # Of one stranger 20 a second are looked at, after 40 at once.
        assert counters["wrong_key"] <= 40 + 20 * (time.monotonic() - began_s + 1)


async def test_each_round_asks_twice(driver_directory: Path) -> None:
    async with nodes(Medium("aeron", directory=str(driver_directory))) as members:
        a = members[0]
        await until(lambda: both(members, 12))
        assert a.link.counters["second_asks"] > 0
        # Some may be counted and not be sent yet.
        assert a.link.counters["requests"] > a.link.counters["second_asks"]


async def test_what_cannot_be_is_refused_with_the_fix(
    aeron_possible: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pages(None, (A,))[A]
    keyed, unkeyed = Member(A, page, link="aeron"), Member(A, page, link="aeron", key=None)

    async def opened(member: Member, address: str, peers: list[str], **options: Any) -> AeronLink:
        return await AeronLink.open(
            address,
            member.protocol,
            member.clock,
            member.proofs.append,
            peers,
            INTERVAL_NS,
            own_directory=tmp_path / "own",
            **options,
        )

    with pytest.raises(KeyNeeded, match=r"0\.0\.0\.0:9959"):
        await opened(unkeyed, "0.0.0.0:9959", [])
    with pytest.raises(KeyNeeded, match=r"10\.0\.0\.5:9959"):
        await opened(unkeyed, "127.0.0.1:9959", ["10.0.0.5:9959"])
    with pytest.raises(ValueError, match="peers on aeron:ipc are names"):
        await opened(keyed, "aeron:ipc", ["127.0.0.1:1"])
    with pytest.raises(ValueError, match="is not where one node listens"):
        await opened(keyed, "127.0.0.1:9959", ["aeron:ipc"])
    with pytest.raises(ValueError, match="only sends on aeron:ipc asks nobody"):
        await opened(keyed, "aeron:ipc", [B], direction="send")
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:9959 can't be listened on"):
        await opened(keyed, "192.0.2.1:9959", [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        with pytest.raises(PortTaken, match=rf"/udp is taken by pid {os.getpid()}"):
            await opened(keyed, f"127.0.0.1:{holder.getsockname()[1]}", [])
    monkeypatch.setitem(sys.modules, "pyaeron", None)
    with pytest.raises(LinkUnavailable, match=r"pip install 'skewd\[aeron\]'|Python 3.12|no wheels"):
        await opened(keyed, "aeron:ipc", [])


async def test_a_peer_that_cannot_be_resolved_keeps_nobody_else_waiting(aeron_possible: None, tmp_path: Path) -> None:
    places = {**udp_places((A, B)), "node-c": "nowhere.invalid:9959"}
    clocks = pages(None, (A, B))
    medium = Medium("aeron", places, directory=str(tmp_path))
    a, b = (Member(name, clocks[name], link="aeron") for name in (A, B))
    a.link = await medium.open(a, ["node-c", B])
    b.link = await medium.open(b, [A])
    try:
        await until(lambda: both([a, b], 2))
        assert "nowhere.invalid:9959" in a.link.trouble
        assert a.link.counters["unreachable"] == 1
    finally:
        await a.link.close()
        await b.link.close()


@pytest.mark.parametrize(
    ("version", "machine", "says"),
    [
        ((3, 11), "x86_64", "needs Python 3.12 or newer"),
        ((3, 13), "aarch64", "has no wheels for aarch64; use another transport"),
        ((3, 13), "x86_64", "pip install 'skewd[aeron]'"),
    ],
)
def test_the_missing_binding_is_explained(version: tuple[int, int], machine: str, says: str) -> None:
    assert says in how_to_install(version, machine)


@pytest.mark.parametrize(
    ("text", "uri", "shared", "here"),
    [
        ("aeron:ipc", IPC, True, True),
        ("127.0.0.1:9959", "aeron:udp?endpoint=127.0.0.1:9959|term-length=64k", False, True),
        ("node-b:9959", "aeron:udp?endpoint=node-b:9959|term-length=64k", False, False),
        ("[2001:db8::1]:9959", "aeron:udp?endpoint=[2001:db8::1]:9959|term-length=64k", False, False),
        (
            "aeron:udp?endpoint=224.0.1.1:9959|interface=10.0.0.0/24|term-length=1m",
            "aeron:udp?endpoint=224.0.1.1:9959|interface=10.0.0.0/24|term-length=1m",
            True,
            False,
        ),
    ],
)
def test_channels(text: str, uri: str, shared: bool, here: bool) -> None:
    channel = parse_channel(text)
    assert (channel.uri, channel.shared, channel.stays_here) == (uri, shared, here)
