"""How a message gets from one stage to the next: one small interface, whatever carries it.

The problem: the experiment compares transports, so nothing in a stage may depend on which one it runs over. The
insight: a stage needs only two ends of one-way links. It waits on an inbox, it sends on an outbox, and whenever it
has nothing to do it *waits inside the transport* (``pump``) instead of in ``time.sleep``, so that a transport which
also carries the clocks' own conversation (see ``zmq.py``) keeps that conversation turning.

Names: a *hop* is one link between two neighbouring stages, called after both ("producer-preprocess"). Its *upstream*
stage owns the outbox, its *downstream* stage the inbox.

Limits: a body of at most ``MAX_BODY_BYTES``, at most ``MAX_HEADERS`` headers of ``MAX_HEADER_BYTES`` together. An end
belongs to the thread that opened it. ZeroMQ acknowledges nothing (a neighbour that dies loses what it had), on Kafka
the broker does. Messages arrive in the order of sending, except on Kafka after the client had to retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

MAX_BODY_BYTES = 1 << 20
MAX_HEADERS = 64
MAX_HEADER_BYTES = 8 << 10
TransportName = Literal["zmq", "kafka", "aeron"]
KafkaClients = Literal["latency", "default"]


class TransportError(RuntimeError):
    """A hop cannot do what was asked of it; the message names the hop, what went wrong and what to do."""


class MessageRefused(ValueError):
    """A message is outside the limits every transport shares; nothing was sent."""


@dataclass(slots=True)
class Message:
    """One unit of work.

    Args:
        headers: text by name, as the W3C trace context wants it; carried beside the body, never inside it.
        body: the payload, opaque to the transport.
    """

    headers: dict[str, str]
    body: bytes


def check_limits(message: Message) -> None:
    """Refuse what one transport would carry and another would not, before anything is sent.

    Raises:
        MessageRefused: too large a body, or too many or too large headers.
    """
    if len(message.body) > MAX_BODY_BYTES:
        raise MessageRefused(f"a body of {len(message.body)} bytes is over the limit of {MAX_BODY_BYTES}; split it")
    if len(message.headers) > MAX_HEADERS:
        raise MessageRefused(f"{len(message.headers)} headers are over the limit of {MAX_HEADERS}")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in message.headers.items())
    if size > MAX_HEADER_BYTES:
        raise MessageRefused(f"headers of {size} bytes are over the limit of {MAX_HEADER_BYTES}")


class Inbox(Protocol):
    """The downstream end of a hop."""

    @property
    def address(self) -> str:
        """Where the other end finds this one: the bound endpoint (its real port when 0 was asked), or the topic."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What happened so far, by name: ``received``, ``malformed``, and the transport's own."""

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or ``None`` after ``timeout_s`` seconds (0: only what is already here).

        Raises:
            TransportError: the hop is broken, or this end is closed.
        """

    def pump(self, timeout_s: float, *, until: int | None = None) -> None:
        """Wait ``timeout_s`` seconds inside the transport; messages that arrive are kept.

        Args:
            until: a descriptor; once it is readable, the wait is over. Without one it is never less than asked.
        """

    def rest(self) -> None:
        """No work is expected until :meth:`attend`: an end that would look for it all the same may stop doing so."""

    def attend(self) -> None:
        """Work may come at any moment; it must not find this end asleep. An end that was just opened attends."""

    def close(self) -> None:
        """Give everything back. Messages not yet received here are lost. Closing twice is fine."""


class Outbox(Protocol):
    """The upstream end of a hop."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What happened so far, by name: ``sent``, and the transport's own."""

    def send(self, message: Message) -> None:
        """Hand over one message; returns once the transport owns it, not once it arrived.

        Raises:
            MessageRefused: the message is outside the shared limits.
            TransportError: the hop stays full for too long, or an earlier message was not delivered.
        """

    def flush(self) -> None:
        """Wait until the transport delivered what it can confirm (Kafka: the broker's acknowledgements).

        Raises:
            TransportError: something was not delivered.
        """

    def pump(self, timeout_s: float, *, before_send: bool = False, until: int | None = None) -> None:
        """Wait ``timeout_s`` seconds inside the transport.

        Args:
            before_send: a message is sent right after it; a daemon's stamp for it is asked for in time.
            until: a descriptor; once it is readable, the wait is over. Without one it is never less than asked.
        """

    def close(self) -> None:
        """Deliver what was sent, then give everything back. Closing twice is fine.

        Raises:
            TransportError: something that was sent could not be delivered (all is given back nevertheless).
        """


@dataclass(frozen=True, slots=True)
class HopConfig:
    """All that one end of one hop needs to know; plain values, so that it travels as JSON to the stage's process.

    Args:
        transport: "zmq", "kafka" or "aeron".
        upstream: the stage (and node) that sends.
        downstream: the stage (and node) that receives.
        endpoint: zmq: where the inbox binds and the outbox connects, ``tcp://127.0.0.1:PORT`` (an inbox may ask for
            port 0 and tell its ``address``).
        bootstrap: kafka: ``host:port`` of the broker.
        topic: kafka: the hop's topic; only its partition 0 is used.
        start_offset: kafka: where the inbox starts; ``None`` is the topic's end when the inbox opens, so whatever is
            sent after ``open_inbox`` returned is received.
        fetch_wait_ms: kafka: how long the broker may hold an empty fetch; ``None`` is what suits the broker found.
        clients: kafka: ``latency`` sends and fetches at once, ``default`` leaves librdkafka's own waits in place.
        directory: aeron: of the media driver that both ends' machine runs.
        channel: aeron: where the inbox subscribes, ``aeron:ipc`` or ``aeron:udp?endpoint=host:port``.
        back_channel: aeron: where the outbox hears the neighbour's clock frames; ``None`` is ``channel`` itself over
            IPC, and over UDP that none are carried back.
        stream: aeron: the stream id of the work; the next one is that of the clock frames on their way back.
        daemon_link: address of *this* node's daemon (``ipc://...``), for the relay (zmq, aeron) and for stamps;
            ``None``: neither.
        stamps: whether the work carries the daemon's stamps (see ``daemon_link.py``).

    Raises:
        ValueError: a value the transport needs is missing or makes no sense.
    """

    transport: TransportName
    upstream: str
    downstream: str
    endpoint: str | None = None
    bootstrap: str | None = None
    topic: str | None = None
    start_offset: int | None = None
    fetch_wait_ms: int | None = None
    clients: KafkaClients = "latency"
    directory: str | None = None
    channel: str | None = None
    back_channel: str | None = None
    stream: int = 1000
    daemon_link: str | None = None
    stamps: bool = False

    def __post_init__(self) -> None:
        if not self.upstream or not self.downstream:
            raise ValueError("a hop needs the names of its upstream and its downstream stage")
        if self.transport == "zmq":
            if not self.endpoint:
                raise ValueError(f"hop {self.name}: zmq needs an endpoint, such as tcp://127.0.0.1:5555")
        elif self.transport == "kafka":
            if not self.bootstrap or not self.topic:
                raise ValueError(f"hop {self.name}: kafka needs a bootstrap address (host:port) and a topic")
            if self.clients not in ("latency", "default"):
                raise ValueError(f"hop {self.name}: clients is '{self.clients}'; write latency or default")
        elif self.transport == "aeron":
            if not self.directory or not self.channel:
                raise ValueError(f"hop {self.name}: aeron needs a driver's directory and a channel, such as aeron:ipc")
            if not 1 <= self.stream < 2**31 - 1:
                raise ValueError(f"hop {self.name}: stream is {self.stream}; write 1 to 2147483646")
        else:
            raise ValueError(f"hop {self.name}: '{self.transport}' is not a transport; write zmq, kafka or aeron")
        if self.fetch_wait_ms is not None and not 1 <= self.fetch_wait_ms <= 500:
            raise ValueError(f"hop {self.name}: fetch_wait_ms is {self.fetch_wait_ms}; write 1 to 500")

    @property
    def name(self) -> str:
        """The hop's name: both stages, the upstream one first."""
        return f"{self.upstream}-{self.downstream}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HopConfig:
        """The configuration that ``to_dict`` gave.

        Raises:
            ValueError: a key that is not ours, one that is missing, or a bad value.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown key '{unknown[0]}' in a hop's configuration; known: {', '.join(sorted(known))}")
        if missing := sorted({"transport", "upstream", "downstream"} - set(values)):
            raise ValueError(f"a hop's configuration needs '{missing[0]}'")
        return cls(**values)
