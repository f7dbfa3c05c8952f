"""What stands behind the sidecar's topics in a fleet: a Collector with the contrib distribution's Kafka receiver.

A real SDK exports to the sidecar as users run it, the sidecar writes to a real Apache Kafka, a Collector reads that
with the configuration of docs/operations.md, and a recording next hop gets what it made of it. That is compared with
what the SDK sent, corrected by protobuf's own classes (``exact.py``): every item once, with its resource and its scope,
and nothing else changed. The messages are compared with those of the Collector's own Kafka exporter.

Limits: a real broker or none. librdkafka's mock cluster does not do: the receiver's client can't read its answer about
versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import grpc
import grpc.aio
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, set_span_in_context

from benchmarks.sidecar import targets
from skewd_pipeline.kafka_broker import Broker
from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode
from tests.sidecar import kafka_collector
from tests.sidecar.exact import NODE, OFFSET_NS, REQUEST, UNCERTAINTY_NS, corrected, items
from tests.sidecar.sidecar_lab import Received, grpc_collector
from tests.sidecar.test_captures import RECORDED, from_json, send, signal_of
from tests.sidecar.test_kafka_forward import address
from tests.waiting import LIMIT_S

pytestmark = [
    pytest.mark.real_kafka,
    pytest.mark.xdist_group("kafka_collector"),
    pytest.mark.skipif(
        not kafka_collector.BINARY.exists(),
        reason="the Collector with the Kafka receiver is not built: make test-neighbours builds it",
    ),
]
T0 = 1_790_000_000_123_456_789
PARTITIONS = 4
TRACES = 24
SIGNALS = (Signal.TRACES, Signal.LOGS, Signal.METRICS)
ATTRIBUTES: dict[str, Any] = {
    "text": 'Grüße, 世界 🌍 "quoted"',
    "empty": "",
    "yes": True,
    "odd": 2**53 + 1,
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "tenth": 0.1,
    "endless": float("inf"),
    "texts": ["a", "", "ß"],
    "none": [],
    "clock.offset_ns": 17,  # a name of ours, put there by somebody else
}


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.fixture
def topics(apache_broker: Broker) -> dict[Signal, str]:
    return make_topics(apache_broker)


def make_topics(broker: Broker) -> dict[Signal, str]:
    """A topic of several partitions for each signal, as a fleet has."""
    made = {signal: f"{signal}-{uuid.uuid4().hex}" for signal in Signal}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for future in admin.create_topics([NewTopic(each, PARTITIONS, 1) for each in made.values()]).values():
        future.result(timeout=LIMIT_S)
    broker.create_topics(made.values())  # waits until they have leaders
    return made


@dataclass
class At:
    """Where a sidecar listens."""

    grpc: str
    http: str


@contextlib.contextmanager
def skewd_sidecar(forward: str, mode: Mode) -> Iterator[At]:
    """``skewd sidecar``, as users run it."""
    words = [str(Path(sys.executable).with_name("skewd")), "sidecar", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    words += ["--forward", forward, "--mode", mode.value, "--node", NODE]
    words += [f"--static-offset={OFFSET_NS}ns", f"--static-uncertainty={UNCERTAINTY_NS}ns"]
    with targets.process(words, targets.clean_environment(), "the sidecar") as child:
        said = json.loads(targets.line_of(child, "READY ", "the sidecar"))
        yield At(said["grpc"], f"http://{said['http']}")


def remembering(base: Any, encode: Callable[[Any], Any], kept: list[Any]) -> Any:
    """An SDK's exporter that keeps what it sends, as a request."""

    class Remembering(base):  # type: ignore[misc]
        def export(self, batch: Any, *others: Any, **named: Any) -> Any:
            kept.append(encode(batch))
            return super().export(batch, *others, **named)

    return Remembering


def export(protocol: str, at: At) -> dict[Signal, list[Any]]:
    """An application's traces, log records and metrics, exported by the SDK; the requests that these were."""
    sent: dict[Signal, list[Any]] = {signal: [] for signal in SIGNALS}

    def exporter(signal: Signal, over_grpc: Any, over_http: Any, encode: Callable[[Any], Any]) -> Any:
        if protocol == "grpc":
            return remembering(over_grpc, encode, sent[signal])(endpoint=at.grpc, insecure=True)
        return remembering(over_http, encode, sent[signal])(endpoint=at.http + signal.http_path)

    resource = Resource({"service.name": "shop", "process.pid": 4242})
    tracing = TracerProvider(resource=resource, shutdown_on_exit=False)
    # Small batches: a trace is in several requests, and a request has spans of several traces.
    tracing.add_span_processor(
        BatchSpanProcessor(
            exporter(Signal.TRACES, GrpcSpanExporter, HttpSpanExporter, encode_spans), max_export_batch_size=7
        )
    )
    logging = LoggerProvider(resource=resource, shutdown_on_exit=False)
    logging.add_log_record_processor(
        BatchLogRecordProcessor(exporter(Signal.LOGS, GrpcLogExporter, HttpLogExporter, encode_logs))
    )
    tracers = [tracing.get_tracer("shop", "2.0", attributes={"scoped": True}), tracing.get_tracer("till")]
    logger = logging.get_logger("shop", "2.0")
    for number in range(TRACES):
        start = T0 + number * 10_000
        server = tracers[0].start_span(
            f"server {number}", kind=SpanKind.SERVER, start_time=start, attributes=ATTRIBUTES
        )
        inside = set_span_in_context(server)
        for tracer in tracers:
            client = tracer.start_span(
                "client",
                inside,
                SpanKind.CLIENT,
                start_time=start + 1000,
                links=[Link(server.get_span_context(), {"odd": 2**53 + 1})],
            )
            client.add_event("sent", ATTRIBUTES, timestamp=start + 1001)
            client.end(start + 5000)
        logger.emit(
            timestamp=start + 2, observed_timestamp=start + 3, context=inside, body="ünïcode", attributes=ATTRIBUTES
        )
        server.end(start + 6001)
    logger.emit(observed_timestamp=T0, body={"deep": {"list": [1, "two", True, b"\x00\xff"]}})
    tracing.shutdown()
    logging.shutdown()

    metric_exporter = exporter(Signal.METRICS, GrpcMetricExporter, HttpMetricExporter, encode_metrics)
    metering = MeterProvider(
        [PeriodicExportingMetricReader(metric_exporter, export_interval_millis=3_600_000)],
        resource,
        shutdown_on_exit=False,
    )
    meter = metering.get_meter("shop", "2.0")
    meter.create_counter("things", "{thing}", "counted").add(2**53 + 1, {"where": "hier"})
    meter.create_up_down_counter("level").add(-3.5)
    meter.create_histogram("took", "ms").record(7, {"route": "/ünïcode"})
    meter.create_gauge("heat").set(36.6)
    metering.shutdown()
    return sent


def pieces(requests: Iterable[Any], signal: Signal) -> Counter[tuple[Any, ...]]:
    """Every span, log record or metric with its resource and scope, and how often it is there."""
    found: Counter[tuple[Any, ...]] = Counter()
    outer, scopes, inner = {
        Signal.TRACES: ("resource_spans", "scope_spans", "spans"),
        Signal.LOGS: ("resource_logs", "scope_logs", "log_records"),
        Signal.METRICS: ("resource_metrics", "scope_metrics", "metrics"),
    }[signal]
    for request in requests:
        for resource in getattr(request, outer):
            for scope in getattr(resource, scopes):
                around = (str(resource.resource), resource.schema_url, str(scope.scope), scope.schema_url)
                found.update((*around, str(item)) for item in getattr(scope, inner))
    return found


def as_corrected(requests: Iterable[Any], mode: Mode) -> list[Any]:
    made = []
    for request in requests:
        copy = type(request)()
        copy.CopyFrom(request)
        for item in items(copy):
            corrected(item, mode)
        made.append(copy)
    return made


def written(broker: Broker, topic: str) -> list[ck.Message]:
    """All messages of a topic."""
    consumer = ck.Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test", "enable.auto.commit": False})
    try:
        parts = [ck.TopicPartition(topic, number, ck.OFFSET_BEGINNING) for number in range(PARTITIONS)]
        consumer.assign(parts)
        count = sum(consumer.get_watermark_offsets(part, timeout=LIMIT_S)[1] for part in parts)
        found: list[ck.Message] = []
        limit = time.monotonic() + LIMIT_S
        while len(found) < count:
            assert time.monotonic() < limit, f"{topic} has {count} messages, of which {len(found)} were read"
            message = consumer.poll(0.05)
            if message is not None and message.error() is None:
                found.append(message)
        return found
    finally:
        consumer.close()


def unread(broker: Broker, topics: dict[Signal, str]) -> int:
    """How many messages the group of the documented configuration has not marked as read."""
    consumer = ck.Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "otel-collector"})
    try:
        parts = [ck.TopicPartition(topics[signal], number) for signal in SIGNALS for number in range(PARTITIONS)]
        ends = [consumer.get_watermark_offsets(part, timeout=LIMIT_S)[1] for part in parts]
        marked = consumer.committed(parts, timeout=LIMIT_S)
        return sum(end - max(0, part.offset) for end, part in zip(ends, marked, strict=True))
    finally:
        consumer.close()


async def all_read(broker: Broker, topics: dict[Signal, str], check: Callable[[], None]) -> None:
    """Returns once the Collector has marked everything as read: then its next hop has all that it will ever get."""
    async with asyncio.timeout(LIMIT_S):
        while await asyncio.to_thread(unread, broker, topics):
            check()
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def whole(broker: Broker, topics: dict[Signal, str], mode: Mode, scratch: Path) -> AsyncIterator[Any]:
    """Sidecar, broker, Collector and a recording next hop; yields the sidecar's addresses, the next hop, and what
    waits until that has all."""
    async with grpc_collector() as sink:
        to = sink.url.removeprefix("grpc://")
        with (
            kafka_collector.from_kafka(broker.bootstrap, topics, to, scratch) as check,
            skewd_sidecar(address(broker, topics), mode) as at,
        ):
            yield at, sink, lambda: all_read(broker, topics, check)


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_an_sdk_exported_comes_out_of_the_collectors_kafka_receiver_corrected_and_once(
    apache_broker: Broker, topics: dict[Signal, str], tmp_path: Path, protocol: str, mode: Mode
) -> None:
    async with whole(apache_broker, topics, mode, tmp_path) as (at, sink, has_all):
        sent = await asyncio.to_thread(export, protocol, at)
        await has_all()
        got = {signal: [REQUEST[signal].FromString(body) for body in sink.bodies(signal)] for signal in SIGNALS}
    wanted = {signal: as_corrected(sent[signal], mode) for signal in (Signal.TRACES, Signal.LOGS)}
    for signal, requests in (wanted | {Signal.METRICS: sent[Signal.METRICS]}).items():
        assert pieces(got[signal], signal) == pieces(requests, signal), signal
    assert pieces(got[Signal.TRACES], Signal.TRACES).total() == 3 * TRACES
    assert len(sent[Signal.TRACES]) > 3

    traces = set()
    for message in await asyncio.to_thread(written, apache_broker, topics[Signal.TRACES]):
        (trace,) = {span.trace_id.hex() for span in items(REQUEST[Signal.TRACES].FromString(message.value()))}
        assert message.key() == trace.encode()
        traces.add((trace, message.partition()))
    assert len(traces) == len({trace for trace, _ in traces}) == TRACES  # all of a trace in one partition
    assert len({partition for _, partition in traces}) > 1
    for signal in (Signal.LOGS, Signal.METRICS):
        keys = {message.key() for message in await asyncio.to_thread(written, apache_broker, topics[signal])}
        assert keys == {None}


async def test_what_sdks_of_four_languages_sent_comes_out_of_it_too(
    apache_broker: Broker, topics: dict[Signal, str], tmp_path: Path
) -> None:
    sent: dict[Signal, list[Any]] = {signal: [] for signal in SIGNALS}
    async with whole(apache_broker, topics, Mode.REWRITE, tmp_path) as (at, sink, has_all):
        for file in sorted(RECORDED.iterdir()):
            await send(file, at)
            sent[signal_of(file)].append(recorded(file))
        await has_all()
        got = {signal: [REQUEST[signal].FromString(body) for body in sink.bodies(signal)] for signal in SIGNALS}
    for signal, requests in sent.items():
        wanted = requests if signal is Signal.METRICS else as_corrected(requests, Mode.REWRITE)
        assert pieces(got[signal], signal) == pieces(wanted, signal), signal
        assert len(requests) == 9


async def test_keys_partitions_and_content_are_those_of_the_collectors_own_kafka_exporter(
    apache_broker: Broker,
) -> None:
    directly, through_collector = make_topics(apache_broker), make_topics(apache_broker)
    with (
        kafka_collector.to_kafka(apache_broker.bootstrap, through_collector) as collector,
        skewd_sidecar(address(apache_broker, directly), Mode.REWRITE) as ours,
        skewd_sidecar(collector, Mode.REWRITE) as theirs,
    ):
        for at in (ours, theirs):
            for file in sorted(RECORDED.iterdir()):
                await send(file, at)
            async with grpc.aio.insecure_channel(at.grpc) as channel:
                path = f"/{Signal.TRACES.grpc_service}/Export"
                await channel.unary_unary(path, None, None)(interleaved(TRACES), timeout=LIMIT_S)
    for signal in SIGNALS:
        found, counts = [], []
        for topics in (directly, through_collector):
            messages = await asyncio.to_thread(written, apache_broker, topics[signal])
            counts.append(len(messages))
            of: dict[tuple[Any, ...], Counter[tuple[Any, ...]]] = {}
            for message in messages:
                # A message without a key goes to any partition.
                where = (message.key(), message.partition() if message.key() else None)
                of.setdefault(where, Counter()).update(
                    pieces([REQUEST[signal].FromString(message.value() or b"")], signal)
                )
            found.append(of)
        assert found[0] == found[1], signal
        # Where a request's trace has several scopes, the Collector's exporter makes a message of each; we make one.
        assert counts == ([9 + TRACES, 9 + 4 * TRACES] if signal is Signal.TRACES else [9, 9])
        assert len(found[0]) == (1 + TRACES if signal is Signal.TRACES else 1)


async def test_the_documented_configuration_loses_nothing_while_the_next_hop_fails_or_the_collector_restarts(
    apache_broker: Broker, topics: dict[Signal, str], tmp_path: Path
) -> None:
    bad = f'name: "server {TRACES // 2}"'
    taken: list[Received] = []
    refusals: list[Received] = []
    recovers_after: float = float("inf")
    several_refused = asyncio.Event()

    async with grpc_collector() as sink:

        def refuse(body: bytes) -> Any:
            now = sink.requests[-1]
            if len(refusals) < recovers_after:
                refusals.append(now)
                if {each.signal for each in refusals} == set(SIGNALS):
                    several_refused.set()
                return grpc.StatusCode.UNAVAILABLE, "come again", ()
            if bad in str(REQUEST[now.signal].FromString(body)):
                return grpc.StatusCode.INVALID_ARGUMENT, "not this one", ()
            taken.append(now)
            return None

        sink.refuse = refuse
        behind = (apache_broker.bootstrap, topics, sink.url.removeprefix("grpc://"), tmp_path)
        with skewd_sidecar(address(apache_broker, topics), Mode.REWRITE) as at:
            with kafka_collector.from_kafka(*behind):
                sent = await asyncio.to_thread(export, "grpc", at)
                async with asyncio.timeout(LIMIT_S):
                    await several_refused.wait()
            recovers_after = len(refusals) + 3
            with kafka_collector.from_kafka(*behind) as check:
                await all_read(apache_broker, topics, check)
    assert len(refusals) == recovers_after
    for signal in SIGNALS:
        got = pieces((REQUEST[signal].FromString(each.body) for each in taken if each.signal is signal), signal)
        wanted = pieces(sent[signal] if signal is Signal.METRICS else as_corrected(sent[signal], Mode.REWRITE), signal)
        assert got.keys() <= wanted.keys()
        missing = [item for *_, item in wanted.keys() - got.keys()]
        if signal is not Signal.TRACES:
            assert not missing
            continue
        # What is refused for good is dropped with the message that it is in, and holds up nobody.
        (refused,) = [item for item in missing if bad in item]
        trace = next(line for line in refused.splitlines() if line.startswith("trace_id"))
        assert all(trace in item for item in missing)


def recorded(file: Path) -> Any:
    signal, body = signal_of(file), file.read_bytes()
    return from_json(body, signal) if file.suffix == ".json" else REQUEST[signal].FromString(body)


def interleaved(traces: int) -> bytes:
    """A request in which spans of many traces follow each other, in two resources of two scopes each."""
    made = REQUEST[Signal.TRACES]()
    for where in range(4):
        if where % 2 == 0:
            resource = made.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.27.0")
            resource.resource.attributes.add(key="service.name").value.string_value = f"service {where}"
        scope = resource.scope_spans.add()
        scope.scope.name = f"scope {where}"
        for number in range(2 * traces):
            scope.spans.add(
                trace_id=(number % traces + 1).to_bytes(16, "big"),
                span_id=(where << 32 | number + 1).to_bytes(8, "big"),
                name=f"span {number}",
                start_time_unix_nano=T0 + number,
                end_time_unix_nano=T0 + number + 1000,
                status={"code": 1},  # the Collector writes one where there is none
            )
    return bytes(made.SerializeToString())
