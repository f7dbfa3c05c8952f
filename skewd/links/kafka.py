"""The link over Kafka: a topic that every node of the mesh reads, for nodes that only a broker connects.

Nothing arrives before it leaves, whatever lies between: a record's way through the broker only widens. So the same
messages go through a topic, as records keyed by the receiver's name (the sender's is in the header ``from``). A record
is stamped right before it is handed to the client and right after ``poll`` returned it, in the thread that polled.

A broker costs more than a packet, so nobody asks without need. Each node writes one record an interval, for everybody,
which says when it received the newest records of the others: one topic that all write and read makes whole exchanges
between all pairs, with N records where asking would take N x k x 2. Only a configured peer that this does not reach (a
record answers the newest 32; a link may be slow to start) is asked by name, and answers; a peer that asks is not asked
in turn (``asked_already``).

Settings for latency, each measured in the reference pipeline: ``linger.ms`` 0, Nagle off, ``acks`` 1. A partition is
*assigned*, from the end: no consumer group has to form, nothing is committed, old records are never read. A real
broker answers a held fetch the moment a record comes, so the hold is long (half a second); librdkafka's mock answers
when the hold is over, so there it is 1 ms.

The topic is made if it is missing and this user may: one partition, retention 60 s in segments of 60 s. Kafka deletes
whole closed segments, when it looks (every five minutes by default), so a record may stay for some minutes. In a
topic with more partitions, made by hand, a node's records go to the partition that its name hashes to, and it reads
that one and number 0: this is how a large mesh keeps a node from reading everybody's records.

Direction: ``both``; ``send`` only writes, ``receive`` only reads. What came over a one-way link proves one side of a
bound; it is believed while anything else confirms its sender's clock: another link, or a topic in the other direction.

The event loop never waits for a broker: its client queues (``QUEUE_MESSAGES``, 5 s), a thread connects, makes the
topic, polls, and starts anew with growing pauses when something is gone. That is said once, and once when it is over.

Limits: 2,000 records a second are read per node; beyond that what has piled up is skipped (``flooded``), which is
sound, as each is a proof of its own. The number of partitions is learnt when the topic is found. With Kafka alone, two
nodes must be able to read and write the topic both.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from skewd.keys import KeyNeeded
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.links.shell import OnProofs, RawClock, Shell
from skewd.links.threaded import Budget, Condition, Handover, ThreadedLink
from skewd.links.unavailable import LinkUnavailable
from skewd.links.wire import Kind, is_name
from skewd.ports import is_loopback, split_address

if TYPE_CHECKING:
    import confluent_kafka as ck

Direction = Literal["both", "send", "receive"]

RETENTION_MS = 60_000
QUEUE_MESSAGES = 1000
_MAX_BATCH_BYTES = 16 << 10
_MAX_RECORD_BYTES = 64 << 10
_MESSAGE_LIMIT_MS = 5000
_REQUEST_LIMIT_S = 10.0
_POLL_S = 0.2
_FETCH_HOLD_MS = 500
_MOCK_FETCH_HOLD_MS = 1
_MOCK = "mockCluster"
_RECORDS_PER_WINDOW = 200
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MAX_PROPERTIES_BYTES = 64 << 10
_PROPERTIES = ("security.", "sasl.", "ssl.", "enable.ssl.")
_FROM = "from"

_COUNTERS = ("send_dropped", "asked_already", "not_answered")
# Written by the client's thread only, so that no count is lost.
_THREAD_COUNTERS = ("delivered", "undelivered", "receive_failed", "bad_records", "queue_full", "flooded", "reconnects")


class _Arrived(NamedTuple):
    data: bytes
    sender: str
    received_ns: int


class _Taking(NamedTuple):
    """A peer's message that is being looked at."""

    address: str
    kind: int


class _Anew(Exception):
    """What was connected to is of no use any more; the message says why."""


class KafkaLink(ThreadedLink):
    """Make one with :meth:`open`."""

    def __init__(
        self,
        shell: Shell,
        bootstrap: str,
        topic: str,
        settings: Mapping[str, Any],
        peers: Sequence[str],
        interval_ns: int,
        direction: Direction,
    ) -> None:
        import confluent_kafka as ck

        self._ck = ck
        super().__init__(shell, interval_ns, _THREAD_COUNTERS)
        self._bootstrap, self._topic, self._direction = bootstrap, topic, direction
        self._settings = {**_COMMON, **settings, "bootstrap.servers": bootstrap, "error_cb": self._on_error}
        self._interval_ns = interval_ns
        self._names = {self._address(name): name for name in peers}
        self._quiet_until: dict[str, int] = {}
        self._taking: _Taking | None = None
        self._partitions = 0  # until the topic is found: a record for an unknown one would have the broker make it
        self._handover: Handover[_Arrived] = Handover(self._take)
        self._condition = Condition(shell.protocol.link, f"waiting for the broker at {bootstrap}")
        self._writing = Condition(shell.protocol.link, "")
        self._writing.well()
        self._lost: str | None = None
        self._producer: ck.Producer | None = None
        if direction != "receive":
            try:
                self._producer = ck.Producer({**self._settings, **_PRODUCER})
            except ck.KafkaException as error:
                raise ValueError(f"Kafka's client refuses its settings: {_text(error)}; correct properties") from None

    @classmethod
    async def open(
        cls,
        bootstrap: str,
        topic: str,
        protocol: LinkProtocol,
        clock: RawClock,
        on_proofs: OnProofs,
        peers: Sequence[str],
        interval_ns: int,
        *,
        direction: Direction = "both",
        properties: Mapping[str, str] | None = None,
    ) -> KafkaLink:
        """Read ``topic`` and ask ``peers`` once per ``interval_ns``. Does not wait for the broker.

        Args:
            bootstrap: ``host:port``, or several with commas.
            on_proofs: called in the event loop with every message's proofs.
            peers: names of nodes that are asked if the records for everybody don't reach them. All that write to the
                topic are measured, and all that ask are answered.
            direction: ``send`` or ``receive`` where only one is possible or allowed.
            properties: further settings of the client, for TLS and SASL (see :func:`read_properties`).

        Raises:
            LinkUnavailable: confluent-kafka is not installed.
            KeyNeeded: a broker beyond this machine, and no mesh key.
            ValueError: an address or name that can't be, or settings that the client refuses.
        """
        try:
            import confluent_kafka  # noqa: F401
        except ImportError:
            raise LinkUnavailable(
                "the kafka link needs confluent-kafka; install it with: pip install 'skewd[kafka]'"
            ) from None
        for text in bootstrap.split(","):
            if not is_loopback(split_address(text.strip())[0]) and not protocol.keyed:
                raise KeyNeeded(text)
        if peers and direction != "both":
            raise ValueError(f"a kafka link that only {direction}s asks nobody; remove its peers")
        for name in peers:
            if not is_name(name):
                raise ValueError(f"'{name[:80]}' is no node's name; a kafka link's peers are names, as node-b")

        def proven(proofs: Proofs) -> None:
            link._note(proofs)
            on_proofs(proofs)

        shell = Shell(protocol, clock, proven, _COUNTERS)
        link = cls(shell, bootstrap, topic, properties or {}, peers, interval_ns, direction)
        link._start(None if direction == "receive" else ["", *link._names])
        return link

    @property
    def address(self) -> str:
        """The broker and the topic."""
        return f"{self._bootstrap}/{self._topic}"

    @property
    def trouble(self) -> str | None:
        """What is wrong with the broker or the topic, and what to do; ``None`` when all is well."""
        return self._condition.trouble or self._writing.trouble

    # -- in the event loop

    def _address(self, name: str) -> str:
        return f"{self._topic}/{name}"

    def _note(self, proofs: Proofs) -> None:
        """A peer whose own message completed an exchange need not be asked."""
        if proofs.rtt_ns is None or self._taking is None or self._taking.address != proofs.address:
            return
        if self._taking.kind == Kind.REPLY:
            return
        # Of two that ask each other, the one whose name comes first goes on; else both would stop and start at once.
        mine = self._taking.kind == Kind.REQUEST and self.protocol.name < proofs.peer.name
        quiet_ns = self._interval_ns * (3 if mine else 6) // 4
        self._quiet_until[proofs.address] = self._shell.clock.raw_ns() + quiet_ns

    def _ask(self, key: Hashable) -> None:
        address = str(key)
        if not address:
            self._send(self.protocol.prepare_one_way(), "")
            return
        until_ns = self._quiet_until.get(address)
        if until_ns is not None and self._shell.clock.raw_ns() < until_ns:
            self._shell.count("asked_already")
            return
        self._send(self.protocol.prepare(address), self._names[address])

    def _take(self, arrived: _Arrived) -> None:
        address = self._address(arrived.sender)
        self._taking = _Taking(address, _kind(arrived.data)) if address in self._names else None

        def reply(build: Callable[[int], bytes]) -> None:
            self._send(build, arrived.sender)

        self._shell.handle(arrived.data, address, arrived.received_ns, reply)

    def _send(self, build: Callable[[int], bytes], receiver: str) -> None:
        if self._producer is None:
            self._shell.count("not_answered")  # a link that only receives
            return
        if not self._partitions:
            self._shell.count("send_dropped")
            return
        data = build(self._shell.clock.raw_ns())
        try:
            self._producer.produce(
                self._topic,
                data,
                receiver.encode() or None,
                self._partition_of(receiver),
                on_delivery=self._on_delivery,
                headers=[(_FROM, self.protocol.name.encode())],
            )
        except (BufferError, self._ck.KafkaException):
            # The queue is full, or the topic is not known (yet): the next interval asks again.
            self._shell.count("send_dropped")

    def _partition_of(self, receiver: str) -> int:
        return zlib.crc32(receiver.encode()) % self._partitions if receiver else 0

    # -- in the client's thread

    def _work(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._session()
            except _Anew as reason:
                self._condition.wrong(str(reason))
            except self._ck.KafkaException as error:
                self._condition.wrong(self._explain(_error(error)))
            except Exception as error:  # a fault of ours or the client's: said, and tried again
                self._condition.wrong(f"the Kafka client failed: {type(error).__name__}: {error}")
            if self._stop.is_set():
                break
            failures = 0 if time.monotonic() - began > 2 * _BACKOFF_S[-1] else failures + 1
            self._partitions = 0
            self._counted["reconnects"] += 1
            self._pause(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1 if failures else 0])
        if self._producer is not None:
            self._producer.purge()
            self._producer.poll(0)

    def _pause(self, seconds: float) -> None:
        """Waits, and learns meanwhile what became of records."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (rest := until - time.monotonic()) > 0:
            if self._producer is not None:
                self._producer.poll(0)
            self._stop.wait(min(rest, _POLL_S))

    def _session(self) -> None:
        """From finding the topic to losing it.

        Raises:
            KafkaException: the broker does not answer, or refuses.
            _Anew: the topic went away.
        """
        mock = self._find_topic()
        self._condition.well()
        if self._direction == "send":
            assert self._producer is not None, "made for every direction but receive"
            while not self._stop.is_set():
                self._producer.poll(_POLL_S)
                self._check_not_lost()
            return
        hold_ms = _MOCK_FETCH_HOLD_MS if mock else _FETCH_HOLD_MS
        consumer = self._ck.Consumer({**self._settings, **_CONSUMER, "fetch.wait.max.ms": hold_ms})
        try:
            self._read(consumer)
        finally:
            consumer.close()

    def _read(self, consumer: ck.Consumer) -> None:
        ours = {0, self._partition_of(self.protocol.name)}
        assignment = [self._ck.TopicPartition(self._topic, number, self._ck.OFFSET_END) for number in sorted(ours)]
        consumer.assign(assignment)
        budget = Budget(_RECORDS_PER_WINDOW)
        me = self.protocol.name
        raw_ns = self._shell.clock.raw_ns
        while not self._stop.is_set():
            record = consumer.poll(_POLL_S)
            received_ns = raw_ns()
            if record is not None:
                error = record.error()
                if error is None:
                    self._on_record(record, received_ns, me)
                    pause_s = budget.spend(time.monotonic())
                    if pause_s > 0:
                        self._counted["flooded"] += 1
                        self._stop.wait(pause_s)
                        consumer.assign(assignment)  # from the end again: what piled up is not worth its time
                else:
                    self._on_read_error(error)
            if self._producer is not None:
                self._producer.poll(0)
                self._check_not_lost()

    def _check_not_lost(self) -> None:
        """
        Raises:
            _Anew: a record was not taken because the topic is gone.
        """
        if self._lost is not None:
            reason, self._lost = self._lost, None
            raise _Anew(reason)

    def _on_record(self, record: ck.Message, received_ns: int, me: str) -> None:
        if self._condition.trouble is not None:
            self._condition.well()
        key = record.key() or b""
        if key and key != me.encode():
            return  # for another node
        sender = _sender(record)
        data = record.value()
        if sender is None or not isinstance(data, bytes):
            self._counted["bad_records"] += 1
        elif sender != me and not self._handover.put(_Arrived(data, sender, received_ns)):
            self._counted["queue_full"] += 1

    def _on_read_error(self, error: ck.KafkaError) -> None:
        """
        Raises:
            _Anew: it does not pass by itself.
        """
        self._counted["receive_failed"] += 1
        codes = self._ck.KafkaError
        if error.code() in self._gone or error.code() == codes.TOPIC_AUTHORIZATION_FAILED or error.fatal():
            raise _Anew(self._explain(error))
        if error.code() != codes.GROUP_AUTHORIZATION_FAILED:  # of a group that nobody uses
            self._condition.wrong(self._explain(error))

    def _on_delivery(self, error: ck.KafkaError | None, _record: ck.Message) -> None:
        if error is None:
            self._counted["delivered"] += 1
            self._writing.well()
            if self._direction == "send":
                self._condition.well()
            return
        self._counted["undelivered"] += 1
        if error.code() in self._gone:
            self._lost = self._explain(error)
        elif error.code() not in self._given_up:
            self._writing.wrong(self._explain(error))

    def _on_error(self, error: ck.KafkaError) -> None:
        """Of a whole client; it goes on trying by itself."""
        codes = self._ck.KafkaError
        if error.code() in (codes._ALL_BROKERS_DOWN, codes._AUTHENTICATION, codes._RESOLVE, codes._SSL):
            self._condition.wrong(self._explain(error))

    # -- the topic

    def _find_topic(self) -> bool:
        """Looks for the topic, makes it if it is missing; whether the broker is librdkafka's mock.

        Raises:
            KafkaException: the broker does not answer, or refuses.
            _Anew: the topic is missing and can't be made.
        """
        # A consumer asks without having the topic made; a producer's question would make it where brokers do that.
        asking = self._ck.Consumer({**self._settings, **_CONSUMER})
        try:
            until = time.monotonic() + _REQUEST_LIMIT_S
            created = False
            while True:
                cluster = asking.list_topics(self._topic, timeout=_REQUEST_LIMIT_S)
                found = cluster.topics[self._topic]
                if found.error is None and found.partitions:
                    break
                if found.error is not None and found.error.code() not in self._appearing:
                    raise _Anew(self._explain(found.error))
                if not created:
                    self._create(mock=str(cluster.cluster_id).startswith(_MOCK))
                    created = True
                if self._stop.wait(0.05) or time.monotonic() > until:
                    raise _Anew(f"topic '{self._topic}' has no leader at {self._bootstrap}; see the broker's log")
        finally:
            asking.close()
        self._partitions = len(found.partitions)
        return str(cluster.cluster_id).startswith(_MOCK)

    @property
    def _gone(self) -> tuple[int, ...]:
        """What the client says of a topic that was there."""
        codes = self._ck.KafkaError
        return codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC, codes._UNKNOWN_PARTITION

    @property
    def _given_up(self) -> tuple[int, ...]:
        """What the client says of a message that we gave up ourselves: too late to be of use, or at the end."""
        codes = self._ck.KafkaError
        return codes._MSG_TIMED_OUT, codes._PURGE_QUEUE, codes._PURGE_INFLIGHT

    @property
    def _appearing(self) -> tuple[int, ...]:
        """What a broker says of a topic that is missing, or was made a moment ago."""
        codes = self._ck.KafkaError
        return codes.UNKNOWN_TOPIC_OR_PART, codes.LEADER_NOT_AVAILABLE

    def _create(self, *, mock: bool) -> None:
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        topic = NewTopic(
            self._topic,
            num_partitions=1,
            replication_factor=-1,
            config={
                "retention.ms": str(RETENTION_MS),
                "segment.ms": str(RETENTION_MS),
                "cleanup.policy": "delete",
                "max.message.bytes": str(_MAX_RECORD_BYTES),
            },
        )
        admin = AdminClient(self._settings)
        if mock:  # it makes a topic when a producer asks about it, and knows no other way
            admin.list_topics(self._topic, timeout=_REQUEST_LIMIT_S)
            return
        future = admin.create_topics([topic], operation_timeout=_REQUEST_LIMIT_S, request_timeout=_REQUEST_LIMIT_S)
        try:
            future[self._topic].result(_REQUEST_LIMIT_S + 1)
        except self._ck.KafkaException as error:
            if _error(error).code() != self._ck.KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def _explain(self, error: ck.KafkaError) -> str:
        codes = self._ck.KafkaError
        if error.code() in (
            codes.TOPIC_AUTHORIZATION_FAILED,
            codes.CLUSTER_AUTHORIZATION_FAILED,
            codes.GROUP_AUTHORIZATION_FAILED,
        ):
            operations = {
                "both": "Describe, Read and Write",
                "send": "Describe and Write",
                "receive": "Describe and Read",
            }
            return (
                f"the broker at {self._bootstrap} refuses topic '{self._topic}': allow this user "
                f"{operations[self._direction]} on it, and Create unless it is made beforehand "
                f"(1 partition, retention.ms={RETENTION_MS}, segment.ms={RETENTION_MS})"
            )
        if error.code() in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED):
            return f"the broker at {self._bootstrap} refuses the credentials; correct them in [[link]] properties"
        if error.code() in self._gone:
            return f"topic '{self._topic}' is not at {self._bootstrap}; it is made anew if this user may"
        if error.code() in (codes._ALL_BROKERS_DOWN, codes._TRANSPORT, codes._TIMED_OUT, codes._RESOLVE):
            return f"no Kafka broker answers at {self._bootstrap}; see whether it runs and is reachable"
        return f"Kafka at {self._bootstrap} says: {error.str()}"


def read_properties(path: Path) -> dict[str, str]:
    """Settings of the Kafka client from a file of ``key=value`` lines; ``#`` begins a comment.

    Only what concerns TLS and SASL is taken (``security.``, ``sasl.``, ``ssl.``, ``enable.ssl.``), with librdkafka's
    names; the rest is ours, as the bounds' width hangs on it.

    Raises:
        ValueError: the file can't be read, or a line is none of these; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PROPERTIES_BYTES + 1)
        lines = content.decode().splitlines()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; let the user that runs skewd own it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; write key=value lines") from None
    if len(content) > _MAX_PROPERTIES_BYTES:
        raise ValueError(f"{path} is longer than {_MAX_PROPERTIES_BYTES} bytes; is it the right file?")
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        key, separator, value = (part.strip() for part in text.partition("="))
        if not separator:
            raise ValueError(f"{path}, line {number}: no '='; write key=value")
        if not key.startswith(_PROPERTIES):
            raise ValueError(f"{path}, line {number}: '{key[:60]}' is not for TLS or SASL; remove it")
        settings[key] = value
    return settings


def _kind(data: bytes) -> int:
    """What a message says it is (``wire.py`` has the layout); only asked for one that was found authentic."""
    return data[5] if len(data) > 5 else 0


def _sender(record: ck.Message) -> str | None:
    headers: Any = record.headers() or ()
    for name, value in headers.items() if isinstance(headers, dict) else headers:
        if name == _FROM:
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
            return text if is_name(text) else None
    return None


def _error(error: ck.KafkaException) -> Any:
    return error.args[0]


def _text(error: ck.KafkaException) -> str:
    inner = error.args[0] if error.args else error
    text = getattr(inner, "str", None)
    return str(text() if text is not None else inner)


_COMMON: dict[str, Any] = {
    "client.id": "skewd",
    "socket.nagle.disable": True,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": 10_000,
    "enable.metrics.push": False,
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 5000,
    "topic.metadata.propagation.max.ms": 5000,  # how long a topic that is gone may still be one that is being made
    "log_level": 0,  # what matters is said once, by us
}
_PRODUCER: dict[str, Any] = {
    "linger.ms": 0,
    "acks": 1,
    "compression.type": "none",
    "message.max.bytes": _MAX_RECORD_BYTES,
    "batch.size": _MAX_BATCH_BYTES,  # what waits for one is sent together, and the topic takes it
    "message.timeout.ms": _MESSAGE_LIMIT_MS,
    "queue.buffering.max.messages": QUEUE_MESSAGES,
    "queue.buffering.max.kbytes": 4096,
}
_CONSUMER: dict[str, Any] = {
    "group.id": "skewd",  # asked for by the client, used by nobody: partitions are assigned
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "latest",
    "fetch.min.bytes": 1,
    "fetch.error.backoff.ms": 100,
    "fetch.message.max.bytes": 64 << 10,
    "queued.max.messages.kbytes": 1024,
    "allow.auto.create.topics": False,
}
