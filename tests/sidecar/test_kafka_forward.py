"""Onwards to Kafka: what the Collector's Kafka receiver, and stream processing keyed by trace, find in the topics."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import confluent_kafka as ck
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd_pipeline.kafka_broker import Broker
from skewd_sidecar.endpoint import Destination, EndpointError, next_hops
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Signal
from skewd_sidecar.outcome import UNAVAILABLE
from tests.sidecar.sidecar_lab import sidecar
from tests.waiting import LIMIT_S


@pytest.fixture(params=["mock", pytest.param("apache", marks=pytest.mark.real_kafka)])
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture
def topics(broker: Broker) -> dict[Signal, str]:
    made = {signal: f"{signal}-{uuid.uuid4().hex}" for signal in Signal}
    broker.create_topics(made.values())
    return made


def address(broker: Broker, topics: dict[Signal, str]) -> str:
    query = "&".join(f"{signal}={topic}" for signal, topic in topics.items())
    return f"kafka://{broker.bootstrap}?{query}"


@pytest.fixture
async def forwarders(broker: Broker, topics: dict[Signal, str]) -> AsyncIterator[Forwarders]:
    made = Forwarders(next_hops(address(broker, topics), {}, 20_000))
    yield made
    await made.close()


def messages(broker: Broker, topic: str, count: int) -> list[ck.Message]:
    """All messages of a topic, which are ``count``; those of a key are in one partition."""
    consumer = ck.Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "test",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 1,
        }
    )
    try:
        # A real broker's topics have one partition here, the mock's have four.
        numbers = list(consumer.list_topics(topic, timeout=LIMIT_S).topics[topic].partitions)
        consumer.assign([ck.TopicPartition(topic, number, ck.OFFSET_BEGINNING) for number in numbers])
        found: list[ck.Message] = []
        limit = time.monotonic() + LIMIT_S
        while len(found) < count and time.monotonic() < limit:
            message = consumer.poll(0.05)
            if message is not None and message.error() is None:
                found.append(message)
        each = [consumer.get_watermark_offsets(ck.TopicPartition(topic, number), timeout=LIMIT_S) for number in numbers]
        assert sum(high for _, high in each) == len(found) == count
        partitions = {message.key(): message.partition() for message in found if message.key()}
        assert all(partitions[message.key()] == message.partition() for message in found if message.key())
        return found
    finally:
        consumer.close()


def request(traces: int, spans: int = 1, size: int = 0, at_ns: int = 0) -> bytes:
    made = ExportTraceServiceRequest()
    resource = made.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "stage"
    scope = resource.scope_spans.add()
    for number in range(traces * spans):
        trace = (number % traces + 1).to_bytes(16, "big")
        added = scope.spans.add(
            trace_id=trace, span_id=number.to_bytes(8, "big"), name=str(number), trace_state="x" * size
        )
        added.start_time_unix_nano = at_ns
    return made.SerializeToString()


def spans(value: bytes) -> list[Any]:
    told = ExportTraceServiceRequest.FromString(value)
    assert [each.resource.attributes[0].value.string_value for each in told.resource_spans] == ["stage"]
    return [span for each in told.resource_spans for scope in each.scope_spans for span in scope.spans]


async def test_traces_are_messages_keyed_by_trace_id_that_hold_that_trace_alone(
    forwarders: Forwarders, broker: Broker, topics: dict[Signal, str]
) -> None:
    outcome = await forwarders.send(Signal.TRACES, request(3, spans=4), LIMIT_S, (("tenant", "a"),))
    assert outcome.ok, outcome
    found = await asyncio.to_thread(messages, broker, topics[Signal.TRACES], 3)
    assert sorted(message.key() or b"" for message in found) == [f"{n:032x}".encode() for n in (1, 2, 3)]
    named = []
    for message in found:
        held = spans(message.value() or b"")
        assert {span.trace_id.hex().encode() for span in held} == {message.key()}
        assert message.headers() == [("tenant", b"a")]
        named += [span.name for span in held]
    assert sorted(named, key=int) == [str(number) for number in range(12)]


@pytest.mark.parametrize("signal", [Signal.METRICS, Signal.LOGS, Signal.PROFILES])
async def test_other_signals_go_to_their_own_topics_byte_for_byte_without_a_key(
    signal: Signal, forwarders: Forwarders, broker: Broker, topics: dict[Signal, str]
) -> None:
    body = b"\x0a\x00\xaa\x06\x01x"
    assert (await forwarders.send(signal, body, LIMIT_S)).ok
    (message,) = await asyncio.to_thread(messages, broker, topics[signal], 1)
    assert (message.value(), message.key(), message.headers()) == (body, None, None)


async def test_a_trace_larger_than_a_message_may_be_is_several_messages_of_one_key(
    forwarders: Forwarders, broker: Broker, topics: dict[Signal, str]
) -> None:
    assert (await forwarders.send(Signal.TRACES, request(1, spans=30, size=2000), LIMIT_S)).ok
    found = await asyncio.to_thread(messages, broker, topics[Signal.TRACES], 4)
    assert {message.key() for message in found} == {b"%032x" % 1}
    assert all(len(message.value() or b"") <= 20_000 for message in found)
    assert [span.name for m in found for span in spans(m.value() or b"")] == [str(n) for n in range(30)]


async def test_a_whole_sidecar_writes_corrected_spans(
    broker: Broker, topics: dict[Signal, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_HEADERS", raising=False)
    import aiohttp

    async with (
        sidecar(forward=address(broker, topics), grpc=None) as running,
        aiohttp.ClientSession() as session,
        session.post(
            running.http + "/v1/traces",
            data=request(2, at_ns=1_700_000_000_000_000_000),
            headers={"Content-Type": "application/x-protobuf"},
        ) as response,
    ):
        assert response.status == 200, await response.text()
    for message in await asyncio.to_thread(messages, broker, topics[Signal.TRACES], 2):
        (span,) = spans(message.value() or b"")
        assert "clock.node.name" in {attribute.key for attribute in span.attributes}


# --------------------------------------------------------------------------------------------------- what goes wrong


def destination(port: int, timeout_s: float = LIMIT_S) -> dict[Signal, Destination]:
    brokers = f"127.0.0.1:{port}"
    return {
        Signal.TRACES: Destination(
            "kafka", False, "127.0.0.1", port, brokers=brokers, topic="t", timeout_s=timeout_s, max_bytes=10_000
        )
    }


@pytest.mark.parametrize("who", ["nobody", "somebody silent"])
async def test_nothing_is_acknowledged_that_no_broker_has(who: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if who == "somebody silent":
            bound.listen()
        forwarders = Forwarders(destination(bound.getsockname()[1], 0.3), retry_s=0)
        outcome = await forwarders.send(Signal.TRACES, request(2), None)
        assert (outcome.code, outcome.http_status, outcome.retry_after_s) == (UNAVAILABLE, 503, 1)
        assert "kafka://127.0.0.1:" in outcome.message
        assert [state.up for state in forwarders.endpoints()] == [False]
        await forwarders.close()


async def test_a_body_that_is_no_request_is_refused_by_us(mock_broker: Broker) -> None:
    forwarders = Forwarders(destination(int(mock_broker.bootstrap.rpartition(":")[2])))
    outcome = await forwarders.send(Signal.TRACES, b"\x0a\x02\x0a\x05", LIMIT_S)
    assert (outcome.code, outcome.http_status) == (3, 400)
    await forwarders.close()


async def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(
        EndpointError, match=r"kafka://127.0.0.1:1/t needs the Kafka client; .*pip install 'skewd\[kafka\]'"
    ):
        Forwarders(destination(1))


async def test_settings_that_the_client_refuses_are_named() -> None:
    with pytest.raises(EndpointError, match="the Kafka client refuses its settings"):
        Forwarders(destination(1), kafka_properties={"security.protocol": "nonsense"})
