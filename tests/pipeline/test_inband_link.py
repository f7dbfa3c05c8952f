"""The daemons' own ZeroMQ link, carried by two stages that are busy with work, over each transport that relays, and
stamps on the work itself, over all of them: what is proven is true."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from skewd.clock import VirtualClock, VirtualPage
from skewd.interval import Interval
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.links.wire import MAX_ATTACHMENT_BYTES, Self
from skewd.links.zmq import ZmqLink
from skewd_pipeline.kafka_broker import Broker, free_ports
from skewd_pipeline.media import free_udp_ports
from skewd_pipeline.transports import HopConfig, Message, open_inbox, open_outbox
from tests.links.link_bench import member_keys
from tests.waiting import LIMIT_S

KEY = MeshKey.from_secret(bytes(range(32)))
INTERVAL_NS = 20_000_000
EPOCH_NS = 7_000_000_000_123
MESSAGES = 100
_streams = itertools.count(5000, 2)


class Daemon:
    def __init__(self, name: str, epoch_ns: int) -> None:
        self.name = name
        self.clock = VirtualClock(VirtualPage.create(None, epoch_ns=epoch_ns, at_host_raw_ns=0))
        self.proofs: list[Proofs] = []
        me = Self(name, os.urandom(16), 0, 0, Interval(0, 200), 0, 500_000, 100, 10)
        self.protocol = LinkProtocol(
            link="zmq",
            key=KEY,
            describe=lambda: me,
            random=os.urandom,
            attach=lambda peer, room: b"x" * room,
            member_keys=member_keys(me.name),
        )
        self.link: ZmqLink

    async def open(self, address: str) -> None:
        self.link = await ZmqLink.open(address, self.protocol, self.clock, self.proofs.append, (), INTERVAL_NS)

    def round_trips(self) -> int:
        return sum(proofs.rtt_ns is not None for proofs in self.proofs)


def _produce(config: HopConfig, stop: threading.Event) -> None:
    outbox = open_outbox(config)
    for number in range(MESSAGES):
        outbox.pump(0.005)
        outbox.send(Message({"number": str(number)}, bytes(10_000)))
    while not stop.is_set():
        outbox.pump(0.02)
    outbox.close()


def _consume(config: HopConfig, stop: threading.Event, numbers: list[str]) -> None:
    inbox = open_inbox(config)
    while not stop.is_set():
        message = inbox.receive(0.02)
        if message is not None:
            numbers.append(message.headers["number"])
            inbox.pump(0.003)
    inbox.close()


async def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def hop_of(transport: str, request: pytest.FixtureRequest) -> HopConfig:
    if transport == "zmq":
        return HopConfig("zmq", "a", "b", endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}")
    if transport == "kafka":
        broker: Broker = request.getfixturevalue("mock_broker")
        topic = f"stamped-{os.urandom(4).hex()}"
        broker.create_topics([topic])
        return HopConfig("kafka", "a", "b", bootstrap=broker.bootstrap, topic=topic)
    driver: Path = request.getfixturevalue("media_driver")
    if transport == "aeron-ipc":
        return HopConfig("aeron", "a", "b", directory=str(driver), channel="aeron:ipc", stream=next(_streams))
    there, back = (f"aeron:udp?endpoint=127.0.0.1:{port}" for port in free_udp_ports(2))
    return HopConfig("aeron", "a", "b", directory=str(driver), channel=there, back_channel=back, stream=next(_streams))


@pytest.mark.parametrize("transport", ["zmq", "aeron-ipc", "aeron-udp"])
async def test_daemons_measure_each_other_through_the_stages(transport: str, request: pytest.FixtureRequest) -> None:
    hop = hop_of(transport, request)
    a, b = Daemon("a", 0), Daemon("b", EPOCH_NS)
    stop = threading.Event()
    numbers: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sk-") as directory:
        links = {daemon.name: f"ipc://{Path(directory, daemon.name)}" for daemon in (a, b)}
        await a.open(links["a"])
        await b.open(links["b"])
        out, into = (replace(hop, daemon_link=links[name]) for name in "ab")
        gone = threading.Event()
        # The sender goes first: it waits some seconds for a receiver that has gone.
        threads = {
            stop: threading.Thread(target=_produce, args=(out, stop)),
            gone: threading.Thread(target=_consume, args=(into, gone, numbers)),
        }
        for thread in threads.values():
            thread.start()
        try:
            await _until(lambda: a.round_trips() >= 10 and b.round_trips() >= 10 and len(numbers) >= MESSAGES)
            assert a.link.attached == ("b",)
            assert b.link.attached == ("a",)
        finally:
            for event, thread in threads.items():
                event.set()
                await asyncio.to_thread(thread.join, LIMIT_S)
            await a.link.close()
            await b.link.close()
    assert numbers == [str(number) for number in range(MESSAGES)]
    for local, remote, offset_ns in ((a, "b", EPOCH_NS), (b, "a", -EPOCH_NS)):
        assert {proofs.peer.name for proofs in local.proofs} == {remote}
        # The largest messages there are fit through the stages.
        assert max(len(proofs.attachment) for proofs in local.proofs) == MAX_ATTACHMENT_BYTES
        # Nothing arrives before it leaves: every proof allows the true offset of the two raw clocks.
        assert all(received - sent >= offset_ns for proofs in local.proofs for sent, received in proofs.outgoing)
        assert all(sent - received <= offset_ns for proofs in local.proofs for sent, received in proofs.incoming)


def _produce_stamped(config: HopConfig, stop: threading.Event) -> None:
    outbox = open_outbox(config)
    while not stop.is_set():
        outbox.pump(0.07, before_send=True)
        outbox.send(Message({}, b"work"))
    outbox.close()


@pytest.mark.parametrize("transport", ["zmq", "kafka", "aeron-ipc"])
async def test_the_work_itself_proves_one_side_of_the_bound(transport: str, request: pytest.FixtureRequest) -> None:
    """On Kafka nothing else goes over the hop: b's daemon learns a's clock over a line of their own, then believes."""
    hop = hop_of(transport, request)
    a, b = Daemon("a", 0), Daemon("b", EPOCH_NS)
    stop, gone = threading.Event(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="sk-") as directory:
        links = {daemon.name: f"ipc://{Path(directory, daemon.name)}" for daemon in (a, b)}
        await a.open(links["a"])
        b.link = await ZmqLink.open(links["b"], b.protocol, b.clock, b.proofs.append, (links["a"],), INTERVAL_NS)
        out, into = (replace(hop, daemon_link=links[name], stamps=True) for name in "ab")
        sending = threading.Thread(target=_produce_stamped, args=(out, stop))
        counters: dict[str, int] = {}
        receiving = threading.Thread(target=_consume_counted, args=(into, gone, counters))
        for thread in (sending, receiving):
            thread.start()
        try:
            # Pings over their own line make a's clock known to b; from then on a stamp is a proof.
            await _until(
                lambda: (
                    sum(proofs.address != links["a"] for proofs in b.proofs) >= 3
                    and counters.get("stamps_received", 0) >= 3
                )
            )
        finally:
            stop.set()
            await asyncio.to_thread(sending.join, LIMIT_S)
            gone.set()
            await asyncio.to_thread(receiving.join, LIMIT_S)
            await a.link.close()
            await b.link.close()
    assert counters["stamps_received"] >= 3
    assert a.link.counters["stamps"] >= counters["stamps_received"]
    assert all(sent - received <= -EPOCH_NS for proofs in b.proofs for sent, received in proofs.incoming)
    assert all(received - sent >= -EPOCH_NS for proofs in b.proofs for sent, received in proofs.outgoing)


def _consume_counted(config: HopConfig, stop: threading.Event, counters: dict[str, int]) -> None:
    inbox = open_inbox(config)
    while not stop.is_set():
        inbox.receive(0.02)
        counters.update(inbox.counters)
    inbox.close()
