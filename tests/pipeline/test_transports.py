"""What every transport promises, asked of each: ZeroMQ, Kafka on the mock, Kafka on a real broker where one can run,
Aeron over shared memory and over UDP where its binding is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd_pipeline.kafka_broker import Broker, free_ports
from skewd_pipeline.transports import (
    HopConfig,
    Inbox,
    Message,
    MessageRefused,
    Outbox,
    TransportError,
    open_inbox,
    open_outbox,
    why_no_aeron,
)
from skewd_pipeline.transports.base import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS
from skewd_pipeline.transports.kafka import DEFAULT_LINGER_MS, consumer_settings, producer_settings
from tests.waiting import LIMIT_S

_streams = itertools.count(100, 2)


def aeron_hop(directory: Path, medium: str) -> HopConfig:
    """A hop of its own on a driver that others use too."""
    channel = "aeron:ipc" if medium == "ipc" else f"aeron:udp?endpoint=127.0.0.1:{free_ports(1)[0]}"
    return HopConfig(
        "aeron", "producer", "preprocess", directory=str(directory), channel=channel, stream=next(_streams)
    )


@pytest.fixture(
    params=["zmq", "kafka-mock", pytest.param("kafka-apache", marks=pytest.mark.real_kafka), "aeron-ipc", "aeron-udp"]
)
def hop(request: pytest.FixtureRequest) -> HopConfig:
    if request.param == "zmq":
        return HopConfig("zmq", "producer", "preprocess", endpoint=f"tcp://127.0.0.1:{free_ports(1)[0]}")
    if request.param.startswith("aeron"):
        return aeron_hop(request.getfixturevalue("media_driver"), request.param.removeprefix("aeron-"))
    broker: Broker = request.getfixturevalue("mock_broker" if request.param == "kafka-mock" else "apache_broker")
    topic = f"hop-{uuid.uuid4().hex}"
    broker.create_topics([topic])
    return HopConfig("kafka", "producer", "preprocess", bootstrap=broker.bootstrap, topic=topic)


@pytest.fixture
def ends(hop: HopConfig) -> Iterator[tuple[Inbox, Outbox]]:
    inbox = open_inbox(hop)
    outbox = open_outbox(hop)
    yield inbox, outbox
    inbox.close()
    outbox.close()


def test_a_message_arrives_as_it_was_sent(ends: tuple[Inbox, Outbox]) -> None:
    inbox, outbox = ends
    headers = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "name": 'Grüße, "quoted"\n', "empty": ""}
    outbox.send(Message(headers, bytes(range(256))))
    arrived = inbox.receive(LIMIT_S)
    assert arrived == Message(headers, bytes(range(256)))


@pytest.mark.parametrize("body", [b"", bytes(MAX_BODY_BYTES)], ids=["empty", "largest"])
def test_bodies_at_both_limits_arrive(ends: tuple[Inbox, Outbox], body: bytes) -> None:
    inbox, outbox = ends
    outbox.send(Message({}, body))
    assert inbox.receive(LIMIT_S) == Message({}, body)


def test_the_order_of_sending_is_the_order_of_receiving(ends: tuple[Inbox, Outbox]) -> None:
    inbox, outbox = ends
    for number in range(200):
        outbox.send(Message({"number": str(number)}, b"x" * number))
    arrived = [inbox.receive(LIMIT_S) for _ in range(200)]
    assert [message.headers["number"] for message in arrived if message] == [str(number) for number in range(200)]
    assert inbox.counters["received"] == 200
    assert outbox.counters["sent"] == 200


def test_an_empty_inbox_waits_its_time_and_gives_nothing(ends: tuple[Inbox, Outbox]) -> None:
    inbox, _ = ends
    before = time.monotonic()
    assert inbox.receive(0.05) is None
    assert time.monotonic() - before >= 0.05
    assert inbox.receive(0) is None


def test_what_was_sent_is_delivered_although_the_sender_closes_at_once(hop: HopConfig) -> None:
    inbox = open_inbox(hop)
    sent = threading.Event()

    def send_and_go() -> None:
        outbox = open_outbox(hop)
        for number in range(150):
            outbox.send(Message({"number": str(number)}, bytes(4096)))
        outbox.close()
        sent.set()

    thread = threading.Thread(target=send_and_go)
    thread.start()
    numbers: list[str] = []
    while len(numbers) < 150:
        message = inbox.receive(LIMIT_S)
        assert message is not None, f"only {len(numbers)} of 150 arrived"
        numbers.append(message.headers["number"])
    thread.join(LIMIT_S)
    inbox.close()
    assert sent.is_set()
    assert numbers == [str(number) for number in range(150)]


def test_what_is_sent_once_the_inbox_is_open_is_received(hop: HopConfig) -> None:
    outbox = open_outbox(hop)
    inbox = open_inbox(hop)
    outbox.send(Message({"number": "after"}, b""))
    outbox.flush()
    message = inbox.receive(LIMIT_S)
    assert message is not None
    assert message.headers == {"number": "after"}
    inbox.close()
    outbox.close()


def test_pumping_lasts_as_long_as_was_asked_and_keeps_what_arrives(ends: tuple[Inbox, Outbox]) -> None:
    inbox, outbox = ends
    outbox.send(Message({}, b"kept"))
    for end in (outbox, inbox):
        before = time.monotonic()
        end.pump(0.0123)
        assert time.monotonic() - before >= 0.0123
    message = inbox.receive(LIMIT_S)
    assert message is not None
    assert message.body == b"kept"


def test_a_wait_is_over_once_a_descriptor_is_readable(ends: tuple[Inbox, Outbox]) -> None:
    inbox, outbox = ends
    outbox.send(Message({}, b"kept"))
    for end in (outbox, inbox):
        until = os.eventfd(0)
        ring = threading.Timer(0.05, os.eventfd_write, (until, 1))
        ring.start()
        end.pump(3600, until=until)
        assert os.eventfd_read(until) == 1, "it waited for that"
        end.pump(0.001)  # the descriptor is watched no longer
        ring.join()
        os.close(until)
    message = inbox.receive(LIMIT_S)
    assert message is not None
    assert message.body == b"kept"


def test_an_inbox_that_rested_has_all_that_was_sent(ends: tuple[Inbox, Outbox]) -> None:
    inbox, outbox = ends
    for number in range(6):
        inbox.rest()
        inbox.rest()
        outbox.send(Message({"number": str(number)}, b"x"))
        outbox.flush()
        if number % 2:
            inbox.attend()
            inbox.attend()
        message = inbox.receive(LIMIT_S)  # attends by itself, too
        assert message is not None
        assert message.headers == {"number": str(number)}


def test_a_kafka_inbox_at_rest_fetches_nothing(mock_broker: Broker) -> None:
    topic = f"hop-{uuid.uuid4().hex}"
    mock_broker.create_topics([topic])
    config = HopConfig("kafka", "a", "b", bootstrap=mock_broker.bootstrap, topic=topic)
    inbox = open_inbox(config)
    outbox = open_outbox(config)
    outbox.send(Message({}, b"first"))
    assert inbox.receive(LIMIT_S) is not None

    def sleeps() -> int:
        told = []
        for path in Path("/proc/self/task").glob("*/status"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                told.append(path.read_text())
        return sum(int(text.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in told)

    def client_wakes(seconds: float) -> int:
        """How often the client's threads slept: a mock answers a fetch after a millisecond, and the next is sent."""
        before = sleeps()
        inbox.pump(seconds)
        return sleeps() - before

    awake = client_wakes(1.0)
    inbox.rest()
    inbox.pump(0.1)
    assert client_wakes(1.0) < awake / 2
    inbox.close()
    outbox.close()


@pytest.mark.parametrize(
    "message",
    [
        Message({}, bytes(MAX_BODY_BYTES + 1)),
        Message({str(number): "" for number in range(MAX_HEADERS + 1)}, b""),
        Message({"name": "x" * MAX_HEADER_BYTES}, b""),
    ],
    ids=["body", "headers", "header bytes"],
)
def test_a_message_over_a_limit_is_refused_and_nothing_is_sent(ends: tuple[Inbox, Outbox], message: Message) -> None:
    inbox, outbox = ends
    with pytest.raises(MessageRefused, match="limit of"):
        outbox.send(message)
    outbox.send(Message({}, b"next"))
    assert inbox.receive(LIMIT_S) == Message({}, b"next")


def test_a_closed_end_says_so_and_closing_twice_is_fine(hop: HopConfig) -> None:
    inbox, outbox = open_inbox(hop), open_outbox(hop)
    for end in (inbox, outbox):
        end.close()
        end.close()
    with pytest.raises(TransportError, match=r"producer-preprocess.*closed"):
        inbox.receive(0)
    with pytest.raises(TransportError, match=r"producer-preprocess.*closed"):
        outbox.send(Message({}, b""))


def test_a_configuration_survives_the_way_through_json(hop: HopConfig) -> None:
    assert HopConfig.from_dict(json.loads(json.dumps(hop.to_dict()))) == hop


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"transport": "zmq"}, "needs 'downstream'"),
        ({"transport": "zmq", "upstream": "a", "downstream": "b"}, "zmq needs an endpoint"),
        ({"transport": "kafka", "upstream": "a", "downstream": "b", "topic": "t"}, "kafka needs a bootstrap"),
        (
            {"transport": "aeron", "upstream": "a", "downstream": "b", "channel": "aeron:ipc"},
            "aeron needs a driver's dir",
        ),
        (
            {"transport": "nng", "upstream": "a", "downstream": "b"},
            "'nng' is not a transport; write zmq, kafka or aeron",
        ),
        ({"transport": "zmq", "upstream": "a", "downstream": "b", "endpiont": "x"}, "unknown key 'endpiont'"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(values: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HopConfig.from_dict(values)


def test_a_taken_endpoint_names_its_holder() -> None:
    config = HopConfig("zmq", "a", "b", endpoint="tcp://127.0.0.1:0")
    inbox = open_inbox(config)
    with pytest.raises(TransportError, match=r"a-b.*is taken by pid \d+"):
        open_inbox(HopConfig("zmq", "a", "b", endpoint=inbox.address))
    inbox.close()


def test_a_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_pipeline.transports.kafka.OPEN_LIMIT_S", 0.3)
    config = HopConfig("kafka", "a", "b", bootstrap=f"127.0.0.1:{free_ports(1)[0]}", topic="t")
    for opening in (open_inbox, open_outbox):
        with pytest.raises(TransportError, match=f"no Kafka broker answers at {config.bootstrap}"):
            opening(config)


@pytest.mark.real_kafka
def test_a_topic_that_does_not_exist_is_named(apache_broker: Broker) -> None:
    config = HopConfig("kafka", "a", "b", bootstrap=apache_broker.bootstrap, topic="nobody-made-this")
    for opening in (open_inbox, open_outbox):
        with pytest.raises(TransportError, match="topic 'nobody-made-this' does not exist"):
            opening(config)


def test_what_a_broker_did_not_take_is_an_error_of_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    from skewd_pipeline.kafka_broker import open_broker

    monkeypatch.setattr("skewd_pipeline.transports.kafka.SEND_LIMIT_S", 1.0)
    with open_broker(prefer="mock") as broker:
        broker.create_topics(["soon-gone"])
        outbox = open_outbox(HopConfig("kafka", "a", "b", bootstrap=broker.bootstrap, topic="soon-gone"))
    outbox.send(Message({}, b"for nobody"))
    with pytest.raises(TransportError, match=r"a-b.*not (delivered|acknowledged)"):
        outbox.flush()
    outbox_counters = dict(outbox.counters)
    assert outbox_counters["sent"] == 1
    assert "delivered" not in outbox_counters


@pytest.mark.parametrize("transport", ["zmq", "aeron"])
def test_an_end_belongs_to_its_thread(transport: str, request: pytest.FixtureRequest) -> None:
    if transport == "zmq":
        config = HopConfig("zmq", "a", "b", endpoint="tcp://127.0.0.1:0")
    else:
        config = aeron_hop(request.getfixturevalue("media_driver"), "ipc")
    inbox = open_inbox(config)
    caught: list[Exception] = []

    def use() -> None:
        try:
            inbox.receive(0)
        except TransportError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    inbox.close()
    assert "belongs to the thread that opened it" in str(caught[0])


def test_where_no_media_driver_runs_that_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
    config = HopConfig("aeron", "a", "b", directory=str(tmp_path), channel="aeron:ipc")
    for opening in (open_inbox, open_outbox):
        with pytest.raises(TransportError, match=f"a-b: no Aeron media driver runs in {tmp_path}"):
            opening(config)


def test_a_channel_that_the_driver_refuses_is_explained(media_driver: Path) -> None:
    config = HopConfig("aeron", "a", "b", directory=str(media_driver), channel="aeron:pigeon?loft=1")
    with pytest.raises(TransportError, match="a-b: Aeron says: "):
        open_inbox(config)


@pytest.mark.parametrize(
    ("version", "machine", "why"),
    [
        ((3, 11), "x86_64", "needs Python 3.12 or newer"),
        ((3, 13), "aarch64", "no wheels for aarch64"),
        ((3, 13), "x86_64", r"pip install 'skewd\[aeron\]'"),
    ],
)
def test_what_aeron_lacks_is_named(version: tuple[int, int], machine: str, why: str) -> None:
    assert re.search(why, why_no_aeron(version, machine))


def test_without_the_binding_a_hop_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyaeron", None)
    monkeypatch.delitem(sys.modules, "skewd_pipeline.transports.aeron", raising=False)
    with pytest.raises(TransportError, match=r"a-b: .*Aeron needs"):
        open_inbox(HopConfig("aeron", "a", "b", directory="/nowhere", channel="aeron:ipc"))


def test_a_receiver_that_is_gone_is_an_error_of_the_sender(media_driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_pipeline.transports.aeron.SEND_LIMIT_S", 0.3)
    outbox = open_outbox(aeron_hop(media_driver, "ipc"))
    with pytest.raises(TransportError, match="preprocess took nothing for"):
        outbox.send(Message({}, b"for nobody"))
    outbox.close()


def test_kafka_clients_as_they_come_wait_where_ours_do_not() -> None:
    ours, usual = producer_settings("b:1"), producer_settings("b:1", "default")
    assert (ours["linger.ms"], ours["acks"]) == (0, 1)
    assert not {"linger.ms", "acks", "socket.nagle.disable"} & usual.keys()
    assert "fetch.wait.max.ms" not in consumer_settings("b:1", None, "default")
    assert consumer_settings("b:1", 20)["fetch.wait.max.ms"] == 20


@pytest.mark.real_kafka
def test_the_linger_of_default_clients_is_on_every_message(apache_broker: Broker) -> None:
    topic = f"hop-{uuid.uuid4().hex}"
    apache_broker.create_topics([topic])
    config = HopConfig("kafka", "a", "b", bootstrap=apache_broker.bootstrap, topic=topic, clients="default")
    inbox, outbox = open_inbox(config), open_outbox(config)
    outbox.send(Message({}, b"the first finds its way"))
    assert inbox.receive(LIMIT_S) is not None
    for _ in range(5):
        before = time.monotonic()
        outbox.send(Message({}, b"x"))
        assert inbox.receive(LIMIT_S) is not None
        # The client counts whole milliseconds; that it waits at all is the point, however slow the machine.
        assert time.monotonic() - before >= (DEFAULT_LINGER_MS - 1) / 1000
    inbox.close()
    outbox.close()
