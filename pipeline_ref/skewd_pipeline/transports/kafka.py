"""Hops over Kafka, set for latency, or as the client comes.

The problem: Kafka's clients are made for throughput. With their defaults a message waits 5 ms for company before it
is sent, and a fetch that finds nothing is held for half a second, so an experiment would measure the defaults and
call it Kafka. The insight: every one of those waits is a setting. Here a message leaves when it is handed over
(``linger.ms`` 0, Nagle off), one acknowledgement is enough (``acks`` 1), the consumer is *assigned* its partition, so
no group has to form, and it starts at an offset that is known before ``open_inbox`` returns.

``clients = "default"`` leaves librdkafka's own waits where they are (5 ms of linger, half a second of fetch, all
acknowledgements): every hop is then milliseconds longer, and with it the skew at which an edge breaks.

A consumer fetches whether anybody wants messages or not, which on a mock is a thousand empty fetches a second. So an
inbox that is at ``rest`` pauses its partition, and ``attend`` returns once it fetches again.

One topic per hop, made beforehand; only partition 0 is used. Headers are Kafka's own message headers.

Limits: ``QUEUE_MESSAGES`` and ``QUEUE_KIB`` wait in the client at most; ``send`` blocks ``SEND_LIMIT_S`` for room, a
message that is not acknowledged within that is reported as undelivered by the next call. The daemons' own
conversation does not travel here: on Kafka they have a link of their own, in a topic of their own. The work carries
their stamps, in the header ``skewd-clock`` (``daemon_link.py``). A stage waits in the client's library, which knows
nothing of the daemon's socket: it is looked at every ``beside.EVERY_S``, and right around each message. (Ends of other
transports that the thread owns are turned as often: ``beside.py``.)
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import confluent_kafka as ck
import zmq
from confluent_kafka.admin import AdminClient

from skewd_pipeline.transports import beside
from skewd_pipeline.transports.base import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    HopConfig,
    KafkaClients,
    Message,
    MessageRefused,
    TransportError,
    check_limits,
)
from skewd_pipeline.transports.daemon_link import STAMP_AHEAD_S, DaemonLink
from skewd_pipeline.transports.frames import MAX_CLOCK_BYTES, is_clock_payload

QUEUE_MESSAGES = 10_000
QUEUE_KIB = 64 << 10
SEND_LIMIT_S = 30.0
OPEN_LIMIT_S = 15.0
# Python sees a signal only between two calls into the client.
SLICE_S = 0.2
# A real broker answers a held fetch the moment a message comes, so a long hold costs nothing and a short one costs
# both sides processor time (at 1 ms the broker alone took half a core, at 20 ms with four consumers a sixth). The mock
# answers when the time is over.
FETCH_WAIT_MS = 250
MOCK_FETCH_WAIT_MS = 1
MOCK_CLUSTER = "mockCluster"
# What librdkafka does when nobody says anything, so that the plan and the tests can name it.
DEFAULT_LINGER_MS = 5
CLOCK_HEADER = "skewd-clock"
# A record is the body, the headers, a stamp and some framing.
MAX_RECORD_BYTES = MAX_BODY_BYTES + 2 * MAX_HEADER_BYTES + MAX_CLOCK_BYTES + 4096
_PASSING = frozenset(
    {
        ck.KafkaError._TRANSPORT,
        ck.KafkaError._ALL_BROKERS_DOWN,
        ck.KafkaError._TIMED_OUT,
        ck.KafkaError._RESOLVE,
        ck.KafkaError._PARTITION_EOF,
    }
)

_NOT_YET = frozenset({ck.KafkaError.NOT_LEADER_FOR_PARTITION, ck.KafkaError.LEADER_NOT_AVAILABLE})
NOT_YET_S = 0.05

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "socket.nagle.disable": True,
        "enable.metrics.push": False,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 3,
    }
)


# What makes the clients fast; without it they are as they come.
_AT_ONCE: Mapping[str, Any] = MappingProxyType({"linger.ms": 0, "acks": 1, "compression.type": "none"})


def _common(clients: KafkaClients) -> dict[str, Any]:
    return {name: value for name, value in COMMON.items() if clients == "latency" or not name.startswith("socket.")}


def producer_settings(bootstrap: str, clients: KafkaClients = "latency") -> dict[str, Any]:
    """Settings of a producer that sends each message at once, or when its own defaults say so."""
    return {
        **_common(clients),
        "bootstrap.servers": bootstrap,
        **(_AT_ONCE if clients == "latency" else {}),
        "message.max.bytes": MAX_RECORD_BYTES,
        "message.timeout.ms": int(SEND_LIMIT_S * 1000),
        "queue.buffering.max.messages": QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": QUEUE_KIB,
    }


def consumer_settings(bootstrap: str, fetch_wait_ms: int | None, clients: KafkaClients = "latency") -> dict[str, Any]:
    """Settings of a consumer that learns of each message at once, or as its defaults have it, and never commits."""
    at_once = {"fetch.min.bytes": 1, "fetch.error.backoff.ms": 10} if clients == "latency" else {}
    return {
        **_common(clients),
        **at_once,
        **({} if fetch_wait_ms is None else {"fetch.wait.max.ms": fetch_wait_ms}),
        "bootstrap.servers": bootstrap,
        "group.id": "skewd-pipeline",  # asked for by the client, used by nobody: partitions are assigned
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_uncommitted",
        "fetch.message.max.bytes": 2 * MAX_RECORD_BYTES,
        "queued.max.messages.kbytes": QUEUE_KIB,
    }


def _require_topic(client: ck.Producer | AdminClient, config: HopConfig) -> bool:
    """Learns who leads the topic, so that the first message does not have to wait for it.

    Returns:
        Whether the broker is librdkafka's mock.

    Raises:
        TransportError: no broker answers, or it has no such topic.
    """
    topic = config.topic
    assert topic is not None, "HopConfig checked it"
    try:
        cluster = client.list_topics(topic, timeout=OPEN_LIMIT_S)
    except ck.KafkaException as error:
        raise TransportError(
            f"hop {config.name}: no Kafka broker answers at {config.bootstrap}: {_text(error)}; see whether it runs"
        ) from error
    found = cluster.topics[topic]
    if found.error is not None or 0 not in found.partitions:
        raise TransportError(
            f"hop {config.name}: topic '{topic}' does not exist at {config.bootstrap}; create it first"
        )
    return str(cluster.cluster_id).startswith(MOCK_CLUSTER)


def _text(error: ck.KafkaException | ck.KafkaError) -> str:
    inner = error.args[0] if isinstance(error, ck.KafkaException) and error.args else error
    return inner.str() if isinstance(inner, ck.KafkaError) else str(inner)


class _Stamps:
    """An end's way to its daemon, where work carries stamps; nothing at all elsewhere."""

    def __init__(self, config: HopConfig, neighbour: str, counters: Counter[str]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.link: DaemonLink | None = None
        if config.stamps and config.daemon_link is not None:
            self._context = zmq.Context()
            try:
                self.link = DaemonLink(
                    self._context, config.daemon_link, neighbour, config.name, counters, relays=False
                )
            except BaseException:
                self._context.term()
                raise

    def turn(self) -> None:
        """Take the stamp that was asked for, pass on what the daemon did not take; never blocks."""
        if self.link is not None:
            self.link.read()
            self.link.drain()

    def close(self) -> None:
        """Give the socket back."""
        if self.link is not None and self._context is not None:
            self.link.socket.close()
            self._context.term()
            self.link = None


class KafkaInbox:
    """The downstream end: a consumer assigned to partition 0 of the hop's topic."""

    def __init__(self, config: HopConfig) -> None:
        """Fix the starting offset and begin to fetch.

        Raises:
            TransportError: no broker answers, or the topic does not exist.
        """
        assert config.topic is not None, "HopConfig checked it"
        assert config.bootstrap is not None, "HopConfig checked it"
        self._config = config
        self._counters: Counter[str] = Counter()
        self._closed = self._rests = False
        mock = _require_topic(AdminClient({**COMMON, "bootstrap.servers": config.bootstrap}), config)
        # The mock would hold each fetch for the whole half second of the default: then it would be all that is seen.
        usual_ms = MOCK_FETCH_WAIT_MS if mock else FETCH_WAIT_MS if config.clients == "latency" else None
        self._stamps = _Stamps(config, config.upstream, self._counters)
        self._consumer = ck.Consumer(
            consumer_settings(config.bootstrap, config.fetch_wait_ms or usual_ms, config.clients)
        )
        try:
            partition = self._partition = ck.TopicPartition(config.topic, 0)
            partition.offset = self._end_of(partition) if config.start_offset is None else config.start_offset
            self._consumer.assign([partition])
        except BaseException:
            self._consumer.close()
            self._stamps.close()
            raise

    def _end_of(self, partition: ck.TopicPartition) -> int:
        deadline = time.monotonic() + OPEN_LIMIT_S
        while True:
            try:
                marks = self._consumer.get_watermark_offsets(partition, timeout=OPEN_LIMIT_S, cached=False)
                break
            except ck.KafkaException as error:
                # A broker that has just made a topic says who leads it some moments before it does.
                if error.args[0].code() not in _NOT_YET or time.monotonic() >= deadline:
                    why = f"hop {self._config.name}: the topic's end is not known: {_text(error)}"
                    raise TransportError(why) from error
                time.sleep(NOT_YET_S)
        if marks is None:
            raise TransportError(f"hop {self._config.name}: the broker did not tell the topic's end in time")
        return int(marks[1])

    @property
    def address(self) -> str:
        """The topic."""
        return self._config.topic or ""

    @property
    def counters(self) -> Mapping[str, int]:
        """``received``, ``malformed`` and ``errors`` (passing ones: the client recovers by itself)."""
        return MappingProxyType(self._counters)

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or ``None`` after ``timeout_s`` seconds."""
        self.attend()
        deadline = time.monotonic() + timeout_s
        while True:
            rest = deadline - time.monotonic()
            # With stamps the daemon may have not taken one: then it is tried again, and soon.
            longest_s = SLICE_S if self._stamps.link is None else beside.EVERY_S
            record = self._consumer.poll(beside.slice_of(rest, longest_s, "kafka"))
            if record is not None:
                message = self._message_of(record)
                if message is not None:
                    self._counters["received"] += 1
                    return message
            elif rest <= 0:
                return None
            else:
                self._stamps.turn()
                beside.turn("kafka")

    def _message_of(self, record: ck.Message) -> Message | None:
        error = record.error()
        if error is not None:
            if error.fatal() or not (error.retriable() or error.code() in _PASSING):
                raise TransportError(f"hop {self._config.name}: Kafka says: {_text(error)}")
            self._counters["errors"] += 1
            return None
        try:
            pairs = dict(_pairs(record.headers()))
            stamp = pairs.pop(CLOCK_HEADER, None)
            if isinstance(stamp, bytes) and is_clock_payload(stamp) and self._stamps.link is not None:
                self._stamps.link.give(stamp)  # first: every moment it is held here widens what it proves
                self._counters["stamps_received"] += 1
            headers = {
                name: value.decode() if isinstance(value, bytes) else (value or "") for name, value in pairs.items()
            }
            message = Message(headers, record.value() or b"")
            check_limits(message)
        except (UnicodeDecodeError, MessageRefused):
            self._counters["malformed"] += 1
            return None
        return message

    def pump(self, timeout_s: float, *, until: int | None = None) -> None:
        """Wait; the client fetches meanwhile, in a thread of its own."""
        _wait(timeout_s, self._stamps, until)

    def rest(self) -> None:
        """Stop fetching; the next message is fetched after :meth:`attend`."""
        if not self._rests and not self._closed:
            self._consumer.pause([self._partition])
            self._rests = True

    def attend(self) -> None:
        """Fetch again, if at rest.

        Raises:
            TransportError: this end is closed, or the broker does not answer.
        """
        if self._closed:
            raise TransportError(f"hop {self._config.name}: this end is closed")
        if self._rests:
            self._consumer.resume([self._partition])
            # The client's thread would notice within a second. A question to the broker wakes it now.
            self._end_of(self._partition)
            self._rests = False

    def close(self) -> None:
        """Leave the broker."""
        if not self._closed:
            self._closed = True
            self._consumer.close()
            self._stamps.close()


class KafkaOutbox:
    """The upstream end: a producer to partition 0 of the hop's topic."""

    def __init__(self, config: HopConfig) -> None:
        """Find the topic.

        Raises:
            TransportError: no broker answers, or the topic does not exist.
        """
        assert config.topic is not None, "HopConfig checked it"
        assert config.bootstrap is not None, "HopConfig checked it"
        self._config = config
        self._topic = config.topic
        self._counters: Counter[str] = Counter()
        self._closed = False
        self._undelivered: str | None = None
        self._producer = ck.Producer(producer_settings(config.bootstrap, config.clients))
        _require_topic(self._producer, config)
        self._stamps = _Stamps(config, config.downstream, self._counters)

    @property
    def counters(self) -> Mapping[str, int]:
        """``sent``, ``delivered`` and ``undelivered``."""
        return MappingProxyType(self._counters)

    def send(self, message: Message) -> None:
        """Hand over one message; blocks while the client's queue is full."""
        self._check()
        check_limits(message)
        headers: list[tuple[str, str | bytes | None]] = list(message.headers.items())
        self._stamps.turn()
        stamp = None if self._stamps.link is None else self._stamps.link.take_stamp()
        if stamp is not None:
            headers.append((CLOCK_HEADER, stamp))
            self._counters["stamps_sent"] += 1
        deadline = time.monotonic() + SEND_LIMIT_S
        while True:
            try:
                self._producer.produce(
                    self._topic, message.body, partition=0, headers=headers, on_delivery=self._delivered
                )
                break
            except BufferError as error:
                if time.monotonic() >= deadline:
                    raise TransportError(
                        f"hop {self._config.name}: the broker at {self._config.bootstrap} took nothing for "
                        f"{SEND_LIMIT_S:.0f} s and {len(self._producer)} messages wait; see whether it still runs"
                    ) from error
                self._producer.poll(0.01)
                self._check()
            except ck.KafkaException as error:
                raise TransportError(f"hop {self._config.name}: not sent: {_text(error)}") from error
        self._counters["sent"] += 1
        self._producer.poll(0)

    def _delivered(self, error: ck.KafkaError | None, record: ck.Message) -> None:
        if error is None:
            self._counters["delivered"] += 1
        else:
            self._counters["undelivered"] += 1
            self._undelivered = self._undelivered or _text(error)

    def _check(self) -> None:
        if self._closed:
            raise TransportError(f"hop {self._config.name}: this end is closed")
        self._raise_undelivered()

    def _raise_undelivered(self) -> None:
        if self._undelivered is not None:
            reason, self._undelivered = self._undelivered, None
            raise TransportError(
                f"hop {self._config.name}: {self._counters['undelivered']} of {self._counters['sent']} messages were "
                f"not delivered to {self._config.bootstrap}: {reason}"
            )

    def flush(self) -> None:
        """Wait until the broker acknowledged everything.

        Raises:
            TransportError: it did not, within the limit.
        """
        self._check()
        self._flush()

    def _flush(self) -> None:
        deadline = time.monotonic() + SEND_LIMIT_S
        while (waiting := self._producer.flush(SLICE_S)) > 0:
            if time.monotonic() >= deadline:
                raise TransportError(
                    f"hop {self._config.name}: {waiting} messages are not acknowledged after {SEND_LIMIT_S:.0f} s"
                )
        self._raise_undelivered()

    def pump(self, timeout_s: float, *, before_send: bool = False, until: int | None = None) -> None:
        """Wait, and learn what was delivered."""
        self._check()
        self._producer.poll(0)
        deadline = time.monotonic() + timeout_s
        if before_send and self._stamps.link is not None:
            _wait(max(0.0, timeout_s - STAMP_AHEAD_S), self._stamps, until)
            self._stamps.link.ask_stamp(time.monotonic())
        _wait(deadline - time.monotonic(), self._stamps, until)
        self._producer.poll(0)

    def close(self) -> None:
        """Deliver what was sent, then leave the broker."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
        finally:
            self._stamps.close()
            self._producer.purge()
            self._producer.poll(0)


def _wait(timeout_s: float, stamps: _Stamps, until: int | None) -> None:
    """Waits, less than asked only for ``until``, and turns what else this thread looks after."""
    deadline = time.monotonic() + timeout_s
    watched = [] if until is None else [until]
    beside.turn("kafka")
    while (rest := deadline - time.monotonic()) > 0:
        if select.select(watched, [], [], beside.slice_of(rest, rest, "kafka"))[0]:
            return
        stamps.turn()
        beside.turn("kafka")


def _pairs(headers: Any) -> list[tuple[str, bytes | str | None]]:
    """A record's headers as pairs, in whichever form the client gives them."""
    if not headers:
        return []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)
