"""Which Kafka broker an experiment gets, and how it is configured. Pure: what was found comes in, a decision goes out.

The problem: a Kafka experiment needs a broker, and machines differ: some have one, some could run one, some can do
neither. The insight: take the realest that is possible, and let every result say which it was and why. So the
choice is a value with its reason, never a silent fallback:

1. ``external``: the user named one;
2. ``apache``: a real Apache Kafka started for the run, where Java (>= 17) and the jars are there;
3. ``mock``: librdkafka's mock cluster, which speaks the protocol but is no broker. It is called a mock everywhere.

Limits: one broker that is its own controller, everything once (replication factor 1), data that nobody keeps.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["external", "apache", "mock"]
Prefer = Literal["auto", "apache", "mock"]
MIN_JAVA = 17
MAX_MESSAGE_BYTES = 2 << 20

_JAVA_VERSION = re.compile(r'version "(\d+)(?:\.(\d+))?')
_KAFKA_JAR = re.compile(r"kafka_[\d.]+-(\d[\w.]*)\.jar")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class BrokerError(RuntimeError):
    """There is no broker to be had; the message says why, with the end of its log when there is one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be started, and why that."""

    kind: Kind
    version: str
    reason: str


def java_major(version_output: str) -> int | None:
    """The major version from what ``java -version`` prints ("1.8.0" is 8), or ``None`` if it cannot be read."""
    match = _JAVA_VERSION.search(version_output)
    if match is None:
        return None
    return int(match[2]) if match[1] == "1" and match[2] else int(match[1])


def kafka_version(jar_names: Iterable[str]) -> str | None:
    """The version of the broker among the names of jars, or ``None`` if there is no broker among them."""
    return next((match[1] for name in sorted(jar_names) if (match := _KAFKA_JAR.fullmatch(name))), None)


def choose(
    *,
    bootstrap: str | None,
    prefer: Prefer,
    java: int | None,
    kafka: str | None,
    libs: str,
    librdkafka: str,
    not_fetched: str | None = None,
) -> Plan:
    """Decide.

    Args:
        bootstrap: the user's own broker, if any.
        prefer: "auto", or one kind and no other.
        java: major version of the Java that was found, if any.
        kafka: version of the broker's jars that were found, if any.
        libs: where the jars were looked for, for the reason.
        librdkafka: version of the client library, which brings the mock.
        not_fetched: why the jars could not be fetched, if that was tried.

    Raises:
        BrokerError: "apache" was asked for and is not possible.
    """
    if bootstrap:
        return Plan("external", "unknown", f"the broker at {bootstrap} was given")
    if prefer == "mock":
        return Plan("mock", librdkafka, "the mock was asked for")
    missing = None
    if java is None:
        missing = f"there is no java on the PATH (install a Java runtime >= {MIN_JAVA})"
    elif java < MIN_JAVA:
        missing = f"Java {java} is too old for Apache Kafka (install >= {MIN_JAVA})"
    elif kafka is None:
        why = not_fetched or "the set-up fetches them where Maven is installed"
        missing = f"Apache Kafka's jars are not in {libs} ({why})"
    if missing is None:
        return Plan("apache", str(kafka), f"Java {java} and the jars of Apache Kafka {kafka} are here")
    if prefer == "apache":
        raise BrokerError(f"no Apache Kafka: {missing}")
    return Plan("mock", librdkafka, missing)


def cluster_id(random16: bytes) -> str:
    """A cluster id in Kafka's form (22 characters of URL-safe base64) from 16 random bytes."""
    if len(random16) != 16:
        raise ValueError(f"a cluster id is made of 16 bytes, not {len(random16)}")
    # Kafka's command line would take a leading dash for an option.
    return base64.urlsafe_b64encode(bytes([random16[0] & 0x7F]) + random16[1:]).rstrip(b"=").decode()


def server_properties(data_dir: str, broker_port: int, controller_port: int) -> str:
    """The configuration of a small broker on loopback that is its own controller."""
    broker, controller = f"127.0.0.1:{broker_port}", f"127.0.0.1:{controller_port}"
    return "\n".join(
        (
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{controller}",
            f"listeners=PLAINTEXT://{broker},CONTROLLER://{controller}",
            f"advertised.listeners=PLAINTEXT://{broker}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAINTEXT",
            f"log.dirs={data_dir}",
            # A topic that somebody misspelt is an error, not a topic with other settings.
            "auto.create.topics.enable=false",
            "num.partitions=1",
            "default.replication.factor=1",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=1",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            f"message.max.bytes={MAX_MESSAGE_BYTES}",
            # Nobody keeps the data, so nobody compacts it; the cleaner alone would take 128 MiB.
            "log.cleaner.enable=false",
            "controlled.shutdown.enable=false",
            "num.network.threads=2",
            "num.io.threads=2",
            "background.threads=2",
            "",
        )
    )


def check_topics(names: Iterable[str]) -> list[str]:
    """The names, each once, in order.

    Raises:
        ValueError: a name that Kafka does not take.
    """
    unique = list(dict.fromkeys(names))
    for name in unique:
        if not _TOPIC.fullmatch(name) or name in (".", ".."):
            raise ValueError(
                f"'{name[:60]}' is no name for a topic; use letters, digits, '.', '_' and '-', at most 249"
            )
    return unique


def tail(text: str, lines: int = 20) -> str:
    """The last lines of a log, each cut at 300 characters."""
    return "\n".join(line[:300] for line in text.splitlines()[-lines:])
