"""Spans read from OTLP bodies."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from skewd_pipeline.session import of_cell
from skewd_pipeline.spans import spans_of


def attribute(key: str, **value: Any) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(**value))


def request() -> ExportTraceServiceRequest:
    span = Span(
        trace_id=bytes(range(16)),
        span_id=b"\1" * 8,
        parent_span_id=b"\2" * 8,
        start_time_unix_nano=1_000,
        end_time_unix_nano=2_000,
        attributes=[
            attribute("skewd.experiment.cell", string_value="5ms"),
            attribute("clock.offset_ns", int_value=-5),
            attribute("clock.corrected", bool_value=False),
            attribute("a.list", array_value=ArrayValue()),
        ],
        events=[
            Span.Event(name="message.sent", time_unix_nano=1_900),
            Span.Event(name="message.sent", time_unix_nano=1_950),
        ],
    )
    resource = Resource(attributes=[attribute("service.name", string_value="inference")])
    scope = ScopeSpans(spans=[span])
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])])


def test_a_span_keeps_its_times_ids_attributes_and_first_events() -> None:
    (span,) = spans_of(request().SerializeToString())
    assert (span.stage, span.cell, span.span_id, span.parent_id) == ("inference", "5ms", "01" * 8, "02" * 8)
    assert (span.start_ns, span.end_ns, dict(span.events)) == (1_000, 2_000, {"message.sent": 1_900})
    assert span.attributes["clock.offset_ns"] == -5
    assert span.attributes["clock.corrected"] is False
    assert "a.list" not in span.attributes


def test_a_span_of_nobody_has_no_cell() -> None:
    body = request()
    body.resource_spans[0].scope_spans[0].spans[0].ClearField("attributes")
    body.resource_spans[0].resource.ClearField("attributes")
    (span,) = spans_of(body.SerializeToString())
    assert (span.stage, span.cell) == ("", "")


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(ValueError, match="no OTLP trace request"):
        spans_of(b"\x0a\xff")
    assert spans_of(b"") == []


def test_a_block_is_given_its_own_spans_of_all_that_arrived() -> None:
    other = request()
    other.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.string_value = "6ms"
    bodies = [request().SerializeToString(), other.SerializeToString(), b""]
    assert [span.cell for span in of_cell(bodies, "5ms")] == ["5ms"]
    assert of_cell(bodies, "5m") == []
