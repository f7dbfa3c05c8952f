"""The clocks' conversation beside the work: two fake daemons talk through two stages' ends of one hop."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.kafka_broker import Broker, free_ports
from skewd_pipeline.transports import HopConfig, Inbox, Message, Outbox, TransportError, open_inbox, open_outbox
from skewd_pipeline.transports import zmq as zmq_transport
from skewd_pipeline.transports.frames import (
    ASK_STAMP,
    MAX_CLOCK_BYTES,
    MAX_FRAMES,
    MalformedFrames,
    decode,
    encode_attach,
    encode_work,
    join,
    split_stamp,
    unjoin,
)
from tests.waiting import LIMIT_S

E = TypeVar("E", Inbox, Outbox)


class FakeDaemon:
    """A daemon's end as the relay sees it: a ROUTER that is told by an attach frame where each connection leads."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(address)
        self.routes: dict[str, bytes] = {}
        self.attachments = 0

    def receive(self, limit_s: float = LIMIT_S) -> tuple[str, bytes] | None:
        """(neighbour, payload) of the next relayed payload; attach frames are taken note of."""
        deadline = time.monotonic() + limit_s
        while (rest := deadline - time.monotonic()) > 0:
            if not self._socket.poll(max(1, int(rest * 1000))):
                break
            route, *frames = self._socket.recv_multipart()
            assert len(frames) == 1, f"a daemon is sent single frames, not {frames}"
            if frames[0].startswith(b"\x00attach:"):
                self.routes[frames[0].removeprefix(b"\x00attach:").decode()] = route
                self.attachments += 1
                return ("attached", frames[0])
            return next(name for name, known in self.routes.items() if known == route), frames[0]
        return None

    def await_attachment(self, neighbour: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while neighbour not in self.routes:
            assert time.monotonic() < deadline, f"nobody attached for {neighbour}"
            self.receive(0.5)

    def payload(self, limit_s: float = LIMIT_S) -> tuple[str, bytes] | None:
        """The next relayed payload, attachments passed over."""
        while (got := self.receive(limit_s)) is not None:
            if got[0] != "attached":
                return got
        return None

    def send(self, neighbour: str, payload: bytes) -> None:
        self._socket.send_multipart([self.routes[neighbour], payload])

    def close(self) -> None:
        self._socket.close()


class Waiting(Generic[E]):
    """A stage's thread: opens its end (and one beside it), then does one kind of waiting until it is told to stop."""

    def __init__(
        self,
        opening: Callable[[], E],
        wait: Callable[[E], Message | None],
        beside: Callable[[], Inbox | Outbox] | None = None,
    ) -> None:
        self._stop = threading.Event()
        self._open = threading.Event()
        self.counters: dict[str, int] = {}
        self.received: list[Message] = []
        self._thread = threading.Thread(target=self._run, args=(opening, wait, beside))
        self._thread.start()
        assert self._open.wait(LIMIT_S)

    def _run(
        self,
        opening: Callable[[], E],
        wait: Callable[[E], Message | None],
        beside: Callable[[], Inbox | Outbox] | None,
    ) -> None:
        end = opening()
        other = beside() if beside is not None else None
        self._open.set()
        while not self._stop.is_set():
            got = wait(end)
            if got is not None:
                self.received.append(got)
            self.counters = dict(end.counters)
        end.close()
        if other is not None:
            other.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sk-") as directory:  # a Unix socket's path must be short
        yield Path(directory)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def daemons(
    sockets: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> Iterator[tuple[FakeDaemon, FakeDaemon, HopConfig, HopConfig]]:
    """Two daemons, and the two ends' configurations of the hop between their stages "a" and "b"."""
    upstream, downstream = (FakeDaemon(context, f"ipc://{sockets}/{name}") for name in ("a", "b"))
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    yield (
        upstream,
        downstream,
        HopConfig("zmq", "a", "b", endpoint=endpoint, daemon_link=upstream.address),
        HopConfig("zmq", "a", "b", endpoint=endpoint, daemon_link=downstream.address),
    )
    upstream.close()
    downstream.close()


Daemons = tuple[FakeDaemon, FakeDaemon, HopConfig, HopConfig]


def _receive(end: Inbox) -> Message | None:
    return end.receive(0.5)


def _pump(end: Inbox | Outbox) -> None:
    end.pump(0.02)


@pytest.mark.parametrize("downstream_waits", [_receive, _pump], ids=["in receive", "in pump"])
def test_two_daemons_converse_while_both_stages_wait(
    daemons: Daemons, downstream_waits: Callable[[Inbox], Message | None]
) -> None:
    a, b, out, into = daemons
    downstream = Waiting(lambda: open_inbox(into), downstream_waits)
    upstream = Waiting(lambda: open_outbox(out), _pump)
    try:
        a.await_attachment("b")
        b.await_attachment("a")
        for number in range(20):
            a.send("b", b"request %d" % number)
            assert b.payload() == ("a", b"request %d" % number)
            b.send("a", b"reply %d" % number)
            assert a.payload() == ("b", b"reply %d" % number)
    finally:
        upstream.stop()
        downstream.stop()
    assert downstream.received == []
    assert upstream.counters["clock_to_neighbour"] == 20
    assert downstream.counters["clock_to_neighbour"] == 20


def test_one_thread_that_waits_in_its_inbox_also_relays_for_its_outbox(
    daemons: Daemons, sockets: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    a, b, _, into = daemons
    c = FakeDaemon(context, f"ipc://{sockets}/c")
    onward = HopConfig("zmq", "b", "c", endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}", daemon_link=b.address)
    last = HopConfig("zmq", "b", "c", endpoint=onward.endpoint, daemon_link=c.address)
    middle = Waiting(lambda: open_inbox(into), _receive, beside=lambda: open_outbox(onward))
    downstream = Waiting(lambda: open_inbox(last), _receive)
    try:
        b.await_attachment("c")
        c.await_attachment("b")
        b.send("c", b"onward")
        assert c.payload() == ("b", b"onward")
        c.send("b", b"back")
        assert b.payload() == ("c", b"back")
    finally:
        middle.stop()
        downstream.stop()
        c.close()
    assert a.routes == {}, "nobody opened a's end"


@pytest.mark.parametrize("stage_waits_in", ["kafka inbox", "kafka pump"])
def test_waiting_on_another_transport_keeps_the_conversation_turning(
    daemons: Daemons, mock_broker: Broker, stage_waits_in: str
) -> None:
    a, b, out, into = daemons
    topic = "relay-beside"
    mock_broker.create_topics([topic])
    kafka = HopConfig("kafka", "a", "b", bootstrap=mock_broker.bootstrap, topic=topic)
    wait = _receive if stage_waits_in == "kafka inbox" else _pump
    downstream = Waiting(lambda: open_inbox(kafka), wait, beside=lambda: open_inbox(into))
    upstream = Waiting(lambda: open_outbox(out), _pump)
    try:
        b.await_attachment("a")
        a.await_attachment("b")
        a.send("b", b"while Kafka is quiet")
        assert b.payload() == ("a", b"while Kafka is quiet")
    finally:
        upstream.stop()
        downstream.stop()


def test_a_flood_of_clock_frames_neither_loses_nor_reorders_work_and_is_bounded(daemons: Daemons) -> None:
    a, b, out, into = daemons
    downstream = Waiting(lambda: open_inbox(into), _receive)
    numbers = iter(range(300))

    def send_next(end: Outbox) -> None:
        number = next(numbers, None)
        if number is not None:
            end.send(Message({"number": str(number)}, b"work"))
        end.pump(0.001)

    upstream = Waiting(lambda: open_outbox(out), send_next)
    try:
        a.await_attachment("b")
        deadline = time.monotonic() + LIMIT_S
        while len(downstream.received) < 300 and time.monotonic() < deadline:
            for _ in range(50):
                a.send("b", b"flood")
            b.receive(0.001)
    finally:
        upstream.stop()
        downstream.stop()
    assert [message.headers["number"] for message in downstream.received] == [str(number) for number in range(300)]


def test_clock_frames_that_cannot_leave_are_dropped_oldest_first(daemons: Daemons) -> None:
    _, b, _, into = daemons
    limit = zmq_transport.CLOCK_QUEUE
    # Nobody is connected upstream, so nothing can leave until somebody is.
    inbox = open_inbox(into)
    deadline = time.monotonic() + LIMIT_S
    while "a" not in b.routes:
        assert time.monotonic() < deadline
        inbox.pump(0.01)
        b.receive(0.01)
    for number in range(limit + 10):
        b.send("a", b"%d" % number)
    while inbox.counters.get("clock_dropped", 0) < 10:
        assert time.monotonic() < deadline
        inbox.pump(0.01)
    assert "clock_to_neighbour" not in inbox.counters
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    neighbour = context.socket(zmq.DEALER)
    neighbour.connect(inbox.address)
    got: list[bytes] = []
    while len(got) < limit:
        assert time.monotonic() < deadline
        inbox.pump(0.01)
        while neighbour.poll(0):
            kind, payload = neighbour.recv_multipart()
            assert kind == b"c"
            got.append(payload)
    context.destroy(linger=0)
    inbox.close()
    assert got == [b"%d" % number for number in range(10, limit + 10)]


@pytest.mark.parametrize(
    "frames",
    [
        [b"x", b"{}", b"unknown kind"],
        [b"w", b"{}"],
        [b"w"],
        [b"w", b"not json", b""],
        [b"w", b'{"number": 1}', b""],
        [b"w", b"[]", b""],
        [b"w", b'{"a": "\xff"}', b""],
        [b"c"],
        [b"c", b""],
        [b"c", bytes(MAX_CLOCK_BYTES + 1)],
        [b"c", b"\x00attach:somebody-else"],
        [b"c", b"two", b"payloads"],
    ],
    ids=lambda frames: b"|".join(frames)[:24].decode(errors="replace"),
)
def test_malformed_frames_are_counted_and_dropped(daemons: Daemons, frames: list[bytes]) -> None:
    _, b, _, into = daemons
    inbox = open_inbox(into)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(inbox.address)
    stranger.send_multipart(frames)
    stranger.send_multipart([b"w", b'{"number": "1"}', b"work"])
    try:
        assert inbox.receive(LIMIT_S) == Message({"number": "1"}, b"work")
        assert inbox.counters["malformed"] == 1
        assert b.payload(0.05) is None, "nothing of it reached the daemon"
    finally:
        context.destroy(linger=0)
        inbox.close()


def test_work_that_flows_upstream_is_malformed(daemons: Daemons) -> None:
    _, _, out, _ = daemons
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    neighbour = context.socket(zmq.DEALER)
    assert out.endpoint is not None
    neighbour.bind(out.endpoint)
    outbox = open_outbox(out)
    neighbour.send_multipart([b"w", b"{}", b"upstream"])
    deadline = time.monotonic() + LIMIT_S
    while "malformed" not in outbox.counters:
        assert time.monotonic() < deadline
        outbox.pump(0.01)
    outbox.close()
    context.destroy(linger=0)


def test_an_attachment_is_renewed_for_a_daemon_that_was_restarted(
    daemons: Daemons, context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_transport, "REATTACH_S", 0.05)
    a, b, out, into = daemons
    downstream = Waiting(lambda: open_inbox(into), _receive)
    upstream = Waiting(lambda: open_outbox(out), _pump)
    again: FakeDaemon | None = None
    try:
        a.await_attachment("b")
        b.await_attachment("a")
        b.close()
        deadline = time.monotonic() + LIMIT_S
        while again is None:
            assert time.monotonic() < deadline
            try:
                again = FakeDaemon(context, into.daemon_link or "")
            except zmq.ZMQError:  # the old socket is closed by another thread, a moment later
                time.sleep(0.01)
        again.await_attachment("a")
        a.send("b", b"hello again")
        assert again.payload() == ("a", b"hello again")
    finally:
        upstream.stop()
        downstream.stop()
        if again is not None:
            again.close()


def test_without_its_daemon_a_stage_works_all_the_same(sockets: Path) -> None:
    nobody = f"ipc://{sockets}/nobody"
    config = HopConfig("zmq", "a", "b", endpoint="tcp://127.0.0.1:0", daemon_link=nobody)
    inbox = open_inbox(config)
    outbox = open_outbox(HopConfig("zmq", "a", "b", endpoint=inbox.address, daemon_link=nobody))
    for number in range(100):
        outbox.send(Message({"number": str(number)}, b""))
        message = inbox.receive(LIMIT_S)
        assert message is not None
        assert message.headers == {"number": str(number)}
    outbox.close()
    inbox.close()


def test_pumping_reads_ahead_only_so_far_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_transport, "READ_AHEAD", 8)
    inbox = open_inbox(HopConfig("zmq", "a", "b", endpoint="tcp://127.0.0.1:0"))
    endpoint = inbox.address

    def send() -> None:
        outbox = open_outbox(HopConfig("zmq", "a", "b", endpoint=endpoint))
        for number in range(1000):
            outbox.send(Message({"number": str(number)}, bytes(1024)))
        outbox.close()

    sender = threading.Thread(target=send)
    sender.start()
    numbers: list[str] = []
    for _ in range(1000):
        if len(numbers) % 100 == 0:
            inbox.pump(0.01)
        message = inbox.receive(LIMIT_S)
        assert message is not None
        numbers.append(message.headers["number"])
    sender.join(LIMIT_S)
    inbox.close()
    assert numbers == [str(number) for number in range(1000)]


def test_a_neighbour_that_takes_nothing_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_transport, "SEND_LIMIT_S", 0.1)
    monkeypatch.setattr(zmq_transport, "LINGER_S", 0.1)
    outbox = open_outbox(HopConfig("zmq", "a", "b", endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}"))
    for _ in range(zmq_transport.HIGH_WATER):
        outbox.send(Message({}, b"for nobody"))
    with pytest.raises(TransportError, match=r"a-b: b took nothing for .*see whether it still runs"):
        outbox.send(Message({}, b"one too many"))
    assert outbox.counters["sent"] == zmq_transport.HIGH_WATER
    outbox.close()


def test_an_end_that_is_forgotten_blocks_nobody() -> None:
    def forget() -> None:
        inbox = open_inbox(HopConfig("zmq", "a", "b", endpoint="tcp://127.0.0.1:0"))
        outbox = open_outbox(HopConfig("zmq", "a", "b", endpoint=inbox.address))
        outbox.send(Message({}, b"never received"))

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join(LIMIT_S)
    collected = threading.Thread(target=gc.collect)
    collected.start()
    collected.join(LIMIT_S)
    assert not collected.is_alive()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=MAX_FRAMES))
def test_frames_survive_being_joined(frames: list[bytes]) -> None:
    assert unjoin(join(frames)) == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedFrames):
        assert join(unjoin(data)) == data


def test_a_stamp_is_taken_off_work_and_off_nothing_else() -> None:
    work = encode_work(Message({"a": "b"}, b"body"), b"SKWDstamp")
    frames, stamp = split_stamp(work)
    assert (decode(frames), stamp) == (Message({"a": "b"}, b"body"), b"SKWDstamp")
    assert split_stamp(frames) == (frames, None)
    # What an application says to its own daemon is no stamp, whoever put it there.
    for bad in (b"", encode_attach("x"), ASK_STAMP, bytes(MAX_CLOCK_BYTES + 1)):
        assert split_stamp([*frames, bad])[1] is None
        with pytest.raises(MalformedFrames):
            decode([*frames, bad])
