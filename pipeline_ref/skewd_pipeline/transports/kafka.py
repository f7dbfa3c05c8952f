"""Hops over Kafka, set for latency.

The problem: Kafka's clients are made for throughput. With their defaults a message waits 5 ms for company before it
is sent, and a fetch that finds nothing is held for half a second, so an experiment would measure the defaults and
call it Kafka. The insight: every one of those waits is a setting. Here a message leaves when it is handed over
(``linger.ms`` 0, Nagle off), one acknowledgement is enough (``acks`` 1), the consumer is *assigned* its partition, so
no group has to form, and it starts at an offset that is known before ``open_inbox`` returns.

One topic per hop, made beforehand; only partition 0 is used. Headers are Kafka's own message headers.

Limits: ``QUEUE_MESSAGES`` and ``QUEUE_KIB`` wait in the client at most; ``send`` blocks ``SEND_LIMIT_S`` for room, a
message that is not acknowledged within that is reported as undelivered by the next call. The clocks' conversation
does not travel here; on Kafka the daemons use their own link. (A thread that owns ZeroMQ ends as well keeps turning
those while it waits here: ``beside.py``.)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient

from skewd_pipeline.transports import beside
from skewd_pipeline.transports.base import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    HopConfig,
    Message,
    MessageRefused,
    TransportError,
    check_limits,
)

QUEUE_MESSAGES = 10_000
QUEUE_KIB = 64 << 10
SEND_LIMIT_S = 30.0
OPEN_LIMIT_S = 15.0
# Python sees a signal only between two calls into the client.
SLICE_S = 0.2
# A real broker answers a held fetch the moment a message comes, so a long hold costs nothing and a short one costs
# both sides processor time (at 1 ms the broker alone took half a core). The mock answers when the time is over.
FETCH_WAIT_MS = 20
MOCK_FETCH_WAIT_MS = 1
MOCK_CLUSTER = "mockCluster"
# A record is the body, the headers and some framing.
MAX_RECORD_BYTES = MAX_BODY_BYTES + 2 * MAX_HEADER_BYTES + 4096
_PASSING = frozenset(
    {
        ck.KafkaError._TRANSPORT,
        ck.KafkaError._ALL_BROKERS_DOWN,
        ck.KafkaError._TIMED_OUT,
        ck.KafkaError._RESOLVE,
        ck.KafkaError._PARTITION_EOF,
    }
)

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "socket.nagle.disable": True,
        "enable.metrics.push": False,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 3,
    }
)


def producer_settings(bootstrap: str) -> dict[str, Any]:
    """Settings of a producer that sends each message at once."""
    return {
        **COMMON,
        "bootstrap.servers": bootstrap,
        "linger.ms": 0,
        "acks": 1,
        "compression.type": "none",
        "message.max.bytes": MAX_RECORD_BYTES,
        "message.timeout.ms": int(SEND_LIMIT_S * 1000),
        "queue.buffering.max.messages": QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": QUEUE_KIB,
    }


def consumer_settings(bootstrap: str, fetch_wait_ms: int) -> dict[str, Any]:
    """Settings of a consumer that learns of each message at once and never commits."""
    return {
        **COMMON,
        "bootstrap.servers": bootstrap,
        "group.id": "skewd-pipeline",  # asked for by the client, used by nobody: partitions are assigned
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_uncommitted",
        "fetch.wait.max.ms": fetch_wait_ms,
        "fetch.min.bytes": 1,
        "fetch.error.backoff.ms": 10,
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
        self._closed = False
        mock = _require_topic(AdminClient({**COMMON, "bootstrap.servers": config.bootstrap}), config)
        wait_ms = config.fetch_wait_ms or (MOCK_FETCH_WAIT_MS if mock else FETCH_WAIT_MS)
        self._consumer = ck.Consumer(consumer_settings(config.bootstrap, wait_ms))
        try:
            partition = ck.TopicPartition(config.topic, 0)
            partition.offset = self._end_of(partition) if config.start_offset is None else config.start_offset
            self._consumer.assign([partition])
        except BaseException:
            self._consumer.close()
            raise

    def _end_of(self, partition: ck.TopicPartition) -> int:
        try:
            marks = self._consumer.get_watermark_offsets(partition, timeout=OPEN_LIMIT_S, cached=False)
        except ck.KafkaException as error:
            raise TransportError(f"hop {self._config.name}: the topic's end is not known: {_text(error)}") from error
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
        if self._closed:
            raise TransportError(f"hop {self._config.name}: this end is closed")
        deadline = time.monotonic() + timeout_s
        while True:
            rest = deadline - time.monotonic()
            record = self._consumer.poll(beside.slice_of(rest, SLICE_S))
            if record is not None:
                message = self._message_of(record)
                if message is not None:
                    self._counters["received"] += 1
                    return message
            elif rest <= 0:
                return None
            else:
                beside.turn()

    def _message_of(self, record: ck.Message) -> Message | None:
        error = record.error()
        if error is not None:
            if error.fatal() or not (error.retriable() or error.code() in _PASSING):
                raise TransportError(f"hop {self._config.name}: Kafka says: {_text(error)}")
            self._counters["errors"] += 1
            return None
        try:
            headers = {
                name: value.decode() if isinstance(value, bytes) else (value or "")
                for name, value in _pairs(record.headers())
            }
            message = Message(headers, record.value() or b"")
            check_limits(message)
        except (UnicodeDecodeError, MessageRefused):
            self._counters["malformed"] += 1
            return None
        return message

    def pump(self, timeout_s: float) -> None:
        """Wait; the client fetches meanwhile, in a thread of its own."""
        _wait(timeout_s)

    def close(self) -> None:
        """Leave the broker."""
        if not self._closed:
            self._closed = True
            self._consumer.close()


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
        self._producer = ck.Producer(producer_settings(config.bootstrap))
        _require_topic(self._producer, config)

    @property
    def counters(self) -> Mapping[str, int]:
        """``sent``, ``delivered`` and ``undelivered``."""
        return MappingProxyType(self._counters)

    def send(self, message: Message) -> None:
        """Hand over one message; blocks while the client's queue is full."""
        self._check()
        check_limits(message)
        headers: list[tuple[str, str | bytes | None]] = list(message.headers.items())
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

    def pump(self, timeout_s: float) -> None:
        """Wait, and learn what was delivered."""
        self._check()
        self._producer.poll(0)
        _wait(timeout_s)
        self._producer.poll(0)

    def close(self) -> None:
        """Deliver what was sent, then leave the broker."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
        finally:
            self._producer.purge()
            self._producer.poll(0)


def _wait(timeout_s: float) -> None:
    """Waits, never less than asked, and turns what else this thread looks after."""
    deadline = time.monotonic() + timeout_s
    beside.turn()
    while (rest := deadline - time.monotonic()) > 0:
        time.sleep(beside.slice_of(rest, rest))
        beside.turn()


def _pairs(headers: Any) -> list[tuple[str, bytes | str | None]]:
    """A record's headers as pairs, in whichever form the client gives them."""
    if not headers:
        return []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)
