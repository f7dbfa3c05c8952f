"""The Kafka link where it differs: brokers that go and come back, refuse, are flooded, or hold nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from skewd.keys import KeyNeeded
from skewd.links import kafka
from skewd.links.kafka import KafkaLink, read_properties
from skewd.links.unavailable import LinkUnavailable
from skewd_pipeline import kafka_broker
from skewd_pipeline.broker_plan import cluster_id, server_properties
from skewd_pipeline.kafka_broker import Broker, default_libs, free_ports, open_broker
from tests.links.media import NAMES, Medium, Member, fresh_topic, pages
from tests.waiting import LIMIT_S, until


class RealBroker:
    """An Apache Kafka that can be stopped and started again, with the same data at the same address."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self._libs, self._directory = default_libs(), directory
        ports = free_ports(2)
        self.bootstrap = f"127.0.0.1:{ports[0]}"
        self._properties = directory / "server.properties"
        self._log = directory / "broker.log"
        text = server_properties(str(directory / "data"), *ports)
        if more:
            text = text.replace("PLAINTEXT://", "SASL_PLAINTEXT://").replace("=PLAINTEXT\n", "=SASL_PLAINTEXT\n") + more
        self._properties.write_text(text)
        kafka_broker._format(self._libs, self._properties, cluster_id(secrets.token_bytes(16)), self._log)
        self._process: Any = None

    def start(self) -> None:
        """Start it; who uses it waits until it answers."""
        (self._directory / "guarded").mkdir(exist_ok=True)
        self._process = kafka_broker._start(self._libs, self._properties, self._log, self._directory / "guarded")

    def stop(self) -> None:
        """Stop it, as an operator would."""
        if self._process is not None:
            kafka_broker._end(self._process)
            self._process = None

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


@contextlib.asynccontextmanager
async def nodes(bootstrap: str, topic: str, count: int = 2, **options: Any) -> AsyncIterator[list[Member]]:
    names = NAMES[:count]
    clocks = pages(None, names)
    medium = Medium("kafka", bootstrap=bootstrap, topic=topic)
    members = [Member(name, clocks[name], link="kafka") for name in names]
    async with contextlib.AsyncExitStack() as stack:
        for member in members:
            peers = options.get("peers", [name for name in names if name != member.name])
            more = {key: value for key, value in options.items() if key != "peers"}
            member.link = await medium.open(member, peers, **more)
            stack.push_async_callback(member.link.close)
        yield members


def both(members: list[Member], more_than: int = 0) -> bool:
    a, b = members[:2]
    return a.complete(b.name) > more_than and b.complete(a.name) > more_than


def writes(broker: str, topic: str, records: Iterator[dict[str, Any]]) -> int:
    """Write records, as anyone who may."""
    producer = ck.Producer({"bootstrap.servers": broker, "linger.ms": 5, "batch.size": 8192, "log_level": 0})
    count = 0
    for record in records:
        while True:
            try:
                producer.produce(topic, **record)
                break
            except BufferError:
                producer.poll(0.01)
        count += 1
    assert producer.flush(LIMIT_S) == 0
    return count


@pytest.mark.real_kafka
async def test_a_broker_that_is_restarted_is_survived(apache_possible: None, tmp_path: Path) -> None:
    broker = RealBroker(tmp_path)
    try:
        async with nodes(broker.bootstrap, fresh_topic()) as members:
            a, b = members
            # There is none yet: it is said, and the loop goes on.
            await until(lambda: a.link.trouble is not None and "no Kafka broker answers" in a.link.trouble)
            broker.start()
            await until(lambda: both(members, 2) and a.link.trouble is None)
            await asyncio.to_thread(broker.stop)
            await until(lambda: "no Kafka broker answers" in (a.link.trouble or ""))
            seen = [a.complete(b.name), b.complete(a.name)]
            broker.start()
            await until(lambda: both(members, max(seen) + 3) and a.link.trouble is None)
            a.bound(b)
            b.bound(a)
            assert a.link.counters["internal_errors"] == b.link.counters["internal_errors"] == 0
    finally:
        broker.stop()


@pytest.mark.real_kafka
async def test_the_topic_is_made_as_stated(apache_broker: Broker) -> None:
    topic = fresh_topic()
    async with nodes(apache_broker.bootstrap, topic) as members:
        await until(lambda: both(members))
    admin = AdminClient({"bootstrap.servers": apache_broker.bootstrap})
    resource = ConfigResource(ResourceType.TOPIC, topic)
    settings = admin.describe_configs([resource])[resource].result(LIMIT_S)
    assert {key: settings[key].value for key in ("retention.ms", "segment.ms", "cleanup.policy")} == {
        "retention.ms": "60000",
        "segment.ms": "60000",
        "cleanup.policy": "delete",
    }
    assert len(admin.list_topics(topic, timeout=LIMIT_S).topics[topic].partitions) == 1


@pytest.mark.real_kafka
async def test_a_topic_of_many_partitions_is_shared_out(apache_broker: Broker) -> None:
    topic = fresh_topic()
    admin = AdminClient({"bootstrap.servers": apache_broker.bootstrap})
    admin.create_topics([NewTopic(topic, num_partitions=6, replication_factor=1)])[topic].result(LIMIT_S)
    async with nodes(apache_broker.bootstrap, topic, 5) as members:
        pairs = [(one, other) for one in members for other in members if one is not other]
        await until(lambda: all(one.complete(other.name) >= 2 for one, other in pairs))
        for one, other in pairs:
            one.bound(other)


@pytest.mark.real_kafka
async def test_a_topic_that_is_removed_is_made_again(apache_broker: Broker) -> None:
    topic = fresh_topic()
    async with nodes(apache_broker.bootstrap, topic) as members:
        await until(lambda: both(members))
        admin = AdminClient({"bootstrap.servers": apache_broker.bootstrap})
        admin.delete_topics([topic])[topic].result(LIMIT_S)
        # Whoever notices first makes it; the other goes on in the new one.
        await until(lambda: any(member.link.counters["reconnects"] for member in members))
        seen = max(members[0].complete(NAMES[1]), members[1].complete(NAMES[0]))
        await until(lambda: both(members, seen + 2))
        members[0].bound(members[1])


ACCESS = """
listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="admin" password="admin-secret" user_admin="admin-secret" user_skewd="skewd-secret";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


def login(user: str, password: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": user,
        "sasl.password": password,
    }


@pytest.mark.real_kafka
async def test_what_must_be_allowed_is_said_and_is_enough(apache_possible: None, tmp_path: Path) -> None:
    broker = RealBroker(tmp_path, ACCESS)
    topic = fresh_topic()
    broker.start()
    try:
        async with nodes(broker.bootstrap, topic, properties=login("skewd", "skewd-secret")) as members:
            a, b = members
            await until(lambda: "allow this user" in (a.link.trouble or ""))
            assert "Describe, Read and Write on it, and Create unless it is made beforehand" in a.link.trouble
            admin = AdminClient(
                {"bootstrap.servers": broker.bootstrap, "log_level": 0, **login("admin", "admin-secret")}
            )
            admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(LIMIT_S)
            # On the topic and nothing else: no group, nothing of the cluster.
            allowed = [
                AclBinding(
                    ResourceType.TOPIC,
                    topic,
                    ResourcePatternType.LITERAL,
                    "User:skewd",
                    "*",
                    operation,
                    AclPermissionType.ALLOW,
                )
                for operation in (AclOperation.DESCRIBE, AclOperation.READ, AclOperation.WRITE)
            ]
            for future in admin.create_acls(allowed).values():
                future.result(LIMIT_S)
            await until(lambda: both(members, 2) and a.link.trouble is None)
            a.bound(b)
        wrong = login("skewd", "no")
        async with nodes(broker.bootstrap, topic, 1, peers=[], properties=wrong) as (alone,):
            await until(lambda: "refuses the credentials" in (alone.link.trouble or ""))
    finally:
        broker.stop()


@pytest.mark.parametrize("broker", ["mock_broker", pytest.param("apache_broker", marks=pytest.mark.real_kafka)])
async def test_nonsense_in_the_topic_is_counted_and_moves_nothing(broker: str, request: pytest.FixtureRequest) -> None:
    bootstrap = request.getfixturevalue(broker).bootstrap
    topic = fresh_topic()
    async with nodes(bootstrap, topic) as members:
        a, b = members
        await until(lambda: both(members))
        label = [("from", b"node-x")]
        key = a.name.encode()
        nonsense: list[dict[str, Any]] = [
            {"value": os.urandom(400), "key": key, "headers": label},
            {"value": b"skwd\x02\x01" + bytes(400), "key": key, "headers": label},
            {"value": b"", "key": key, "headers": label},
            {"value": bytes(4000), "key": key, "headers": label},
            {"value": b"no label", "key": key},
            {"value": b"bad label", "key": key, "headers": [("from", b"\xff \x00")]},
            {"value": b"long label", "key": key, "headers": [("from", b"x" * 64)]},
            {"value": None, "key": key, "headers": label},
            {"value": b"for another", "key": b"node-z", "headers": label},
        ]
        # Partition 0 is read by all, whatever the number of partitions.
        writes(bootstrap, topic, ({"partition": 0, **record} for record in nonsense))

        def counters() -> dict[str, int]:
            return dict(a.link.counters)

        await until(lambda: counters()["bad_records"] == 4)
        await until(lambda: counters()["bad_magic"] >= 1 and counters()["oversized"] >= 1)
        seen = a.complete(b.name)
        await until(lambda: a.complete(b.name) > seen + 2)
        a.bound(b)
        b.bound(a)
        assert {proofs.peer.name for proofs in a.proofs} == {b.name}
        assert counters()["internal_errors"] == 0


@pytest.mark.real_kafka
async def test_a_flood_is_bounded_and_what_follows_is_used(apache_broker: Broker) -> None:
    topic = fresh_topic()
    async with nodes(apache_broker.bootstrap, topic) as members:
        a, b = members
        await until(lambda: both(members))
        record = {"value": os.urandom(400), "key": a.name.encode(), "headers": [("from", b"node-x")]}
        began_s = time.monotonic()
        count = await asyncio.to_thread(writes, apache_broker.bootstrap, topic, iter([record] * 20_000))
        assert count == 20_000
        await until(lambda: a.link.counters["flooded"] > 0)
        seen = a.complete(b.name)
        await until(lambda: a.complete(b.name) > seen + 2)
        a.bound(b)
        counters = a.link.counters
        # Of all that was written 2,000 a second are looked at.
        looked_at = counters["bad_magic"] + counters["rate_limited"] + counters["queue_full"]
        assert looked_at <= 2_000 * (time.monotonic() - began_s) + 400
        assert len(a.link._handover) <= 256


async def test_a_broker_that_is_gone_blocks_nobody_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with open_broker(prefer="mock") as broker:
        topic = fresh_topic()
        async with nodes(broker.bootstrap, topic) as members:
            await until(lambda: both(members))
            kafka_end = asyncio.create_task(asyncio.to_thread(_kill_mock, broker))
            await until(lambda: "no Kafka broker answers" in (members[0].link.trouble or ""))
            await kafka_end
            before = members[0].link.counters["one_way"]
            await until(lambda: members[0].link.counters["one_way"] >= before + 10)


def _kill_mock(broker: Broker) -> None:
    """The mock's process is the one of our children that listens there."""
    import psutil

    port = int(broker.bootstrap.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(one.laddr.port == port and one.status == "LISTEN" for one in process.net_connections("tcp")):
                process.kill()


async def test_peers_that_the_records_for_all_do_not_reach_are_asked(mock_broker: Broker) -> None:
    topic = fresh_topic()
    async with nodes(mock_broker.bootstrap, topic) as members:
        a, b = members
        await until(lambda: both(members, 10))
        # At first there was nothing to answer, so both asked; since then the records for all have done.
        asked = a.link.counters["requests"] + b.link.counters["requests"]
        spared = a.link.counters["asked_already"] + b.link.counters["asked_already"]
        assert spared > 0
        exchanged = a.complete(b.name) + b.complete(a.name)
        await until(lambda: both(members, 20))
        # One that comes late, on a busy machine, is asked for all the same.
        more = a.link.counters["requests"] + b.link.counters["requests"] - asked
        assert more < a.complete(b.name) + b.complete(a.name) - exchanged


async def test_what_cannot_be_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    page = pages(None, NAMES[:1])[NAMES[0]]
    keyed, unkeyed = Member(NAMES[0], page, link="kafka"), Member(NAMES[0], page, link="kafka", key=None)

    async def opened(member: Member, bootstrap: str, peers: list[str], **options: Any) -> KafkaLink:
        return await KafkaLink.open(
            bootstrap, "t", member.protocol, member.clock, member.proofs.append, peers, 10**9, **options
        )

    with pytest.raises(KeyNeeded, match=r"kafka\.example:9092"):
        await opened(unkeyed, "127.0.0.1:1,kafka.example:9092", [])
    with pytest.raises(ValueError, match="peers are names, as node-b"):
        await opened(keyed, "127.0.0.1:1", ["10.0.0.5:9092"])
    with pytest.raises(ValueError, match="only receives asks nobody"):
        await opened(keyed, "127.0.0.1:1", ["b"], direction="receive")
    with pytest.raises(ValueError, match="refuses its settings"):
        await opened(keyed, "127.0.0.1:1", [], properties={"security.protocol": "no"})
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(LinkUnavailable, match=r"pip install 'skewd\[kafka\]'"):
        await opened(keyed, "127.0.0.1:1", [])


def test_properties_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("# who we are\n\nsecurity.protocol = SASL_SSL\nsasl.password=a=b\n")
    assert read_properties(file) == {"security.protocol": "SASL_SSL", "sasl.password": "a=b"}
    for text, says in (
        ("linger.ms=5", "line 1: 'linger.ms' is not for TLS or SASL"),
        ("\nssl.ca", "line 2: no '='"),
        ("#" * (kafka._MAX_PROPERTIES_BYTES + 1), "is it the right file"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_properties(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_properties(file)
    with pytest.raises(ValueError, match="can't be read"):
        read_properties(tmp_path / str(uuid.uuid4()))
