"""A real Jaeger behind the sidecar: what a person who looks at it, or a tool that asks it, gets to see.

What is known of its API and shown here: ``/api/v3`` tells times in nanoseconds and every integer as a decimal string;
``/api/traces``, which its pages use, tells times in whole microseconds, integers up to 2^53 as numbers and larger ones
as strings, so our originals arrive exactly in both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from skewd_sidecar.patch import Mode
from tests.sidecar import jaeger
from tests.sidecar.exact import OFFSET_NS, UNCERTAINTY_NS
from tests.sidecar.sidecar_lab import Running, sidecar

pytestmark = [
    pytest.mark.xdist_group("jaeger"),
    pytest.mark.skipif(not jaeger.BINARY.exists(), reason="Jaeger is not built: make test-neighbours builds it"),
]
T0 = 1_790_000_000_123_456_789
INTEGERS = {"odd": 2**53 + 1, "largest": 2**63 - 1, "smallest": -(2**63), "small": -7}


@pytest.fixture(scope="module")
def behind() -> Iterator[jaeger.Jaeger]:
    with jaeger.running() as running:
        yield running


def export(protocol: str, running: Running) -> str:
    """A server's span and, inside it, a client's, as an ordinary application exports them; the trace's id."""
    exporter: Any = (
        GrpcSpanExporter(endpoint=running.grpc, insecure=True)
        if protocol == "grpc"
        else HttpSpanExporter(endpoint=running.http + "/v1/traces")
    )
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    server = tracer.start_span("server", kind=SpanKind.SERVER, start_time=T0, attributes=INTEGERS)
    client = tracer.start_span("client", set_span_in_context(server), kind=SpanKind.CLIENT, start_time=T0 + 1000)
    client.add_event("sent", {"clock.offset_ns": 17}, timestamp=T0 + 1001)
    client.end(T0 + 5000)
    server.end(T0 + 6001)
    assert provider.force_flush(10_000)
    provider.shutdown()
    return f"{server.get_span_context().trace_id:032x}"


def v3_values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: each["value"] for each in attributes}


def ours(mode: Mode, start: int, end: int) -> dict[str, Any]:
    """Our attributes, as they were sent on."""
    rewritten = mode is Mode.REWRITE
    tags: dict[str, Any] = {
        "clock.offset_ns": OFFSET_NS,
        "clock.uncertainty_ns": UNCERTAINTY_NS,
        "clock.reference": "utc",
        "clock.status": "synchronized",
        "clock.node.name": "node-a",
        "clock.corrected": rewritten,
    }
    if rewritten:
        tags |= {"clock.original.start_time_unix_nano": start, "clock.original.end_time_unix_nano": end}
    return tags


def as_v3(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def as_shown(value: Any) -> Any:
    return str(value) if isinstance(value, int) and abs(value) > 2**53 else value


@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_jaeger_shows_the_corrected_trace_and_our_attributes_with_integers_intact(
    behind: jaeger.Jaeger, protocol: str, mode: Mode
) -> None:
    async with sidecar(forward=behind.urls[protocol], mode=mode) as running:
        trace_id = await asyncio.to_thread(export, protocol, running)
        shown = await asyncio.to_thread(behind.trace, trace_id, 2)
        told = await asyncio.to_thread(behind.ask, f"/api/v3/traces/{trace_id}")
    by = OFFSET_NS if mode is Mode.REWRITE else 0
    stamps = {"server": (T0, T0 + 6001), "client": (T0 + 1000, T0 + 5000)}
    integers: dict[str, dict[str, Any]] = {"server": dict(INTEGERS), "client": {}}

    spans = [
        span
        for resource in told["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert {span["name"] for span in spans} == set(stamps)
    for span in spans:
        start, end = stamps[span["name"]]
        assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == (str(start + by), str(end + by))
        wanted = ours(mode, start, end) | integers[span["name"]]
        assert v3_values(span["attributes"]) == {key: as_v3(value) for key, value in wanted.items()}
    (client,) = (span for span in spans if span["name"] == "client")
    assert client["events"][0]["timeUnixNano"] == str(T0 + 1001 + by)
    assert v3_values(client["events"][0]["attributes"]) == {"clock.offset_ns": {"intValue": "17"}}

    for span in shown["spans"]:
        start, end = stamps[span["operationName"]]
        assert (span["startTime"], span["duration"]) == ((start + by) // 1000, (end - start) // 1000)
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        for key, value in (ours(mode, start, end) | integers[span["operationName"]]).items():
            assert tags[key] == as_shown(value), key
