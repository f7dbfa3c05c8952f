"""Spans as a backend would hold them: plain values, read from OTLP bodies.

The experiment keeps what the sidecars forwarded as the raw bytes it arrived in and reads it only when a cell is
over, so that parsing never takes a core from the pipeline being measured. The analysis then works on these values
and never sees OTLP.

Limits: only what the analysis needs is kept (no links, no scope); attribute values of kinds other than string,
bool, int and double are dropped. A body that is no ExportTraceServiceRequest raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

AttributeValue = str | bool | int | float

# What the stages write and the analysis reads. The semantic conventions' names where there are any.
STAGE = "service.name"
CELL = "skewd.experiment.cell"
MESSAGE_ID = "messaging.message.id"
SENT = "message.sent"
RECEIVED = "message.received"
NOTED = "message.noted"
"""Stamped after the transport had taken the message: the late stamp that a loaded machine makes come out backwards."""
ROLE = "skewd.experiment.role"
"""Of a span of a call: ``request``, ``client``, ``server``, ``audit``."""
HOST_RAW = "skewd.experiment.host_raw_ns"
"""The host's raw clock just before the span's start was stamped. No node's clock is in it: it is the truth's, and
nothing corrects by it."""
HOST_RAW_AFTER = "skewd.experiment.host_raw_after_ns"
"""The same just after that stamp: it was taken at some instant between the two, wherever its process had to wait."""
HOST_RAW_SENT = "skewd.experiment.host_raw_sent_ns"
"""The same just before the send was stamped,"""
HOST_RAW_SENT_AFTER = "skewd.experiment.host_raw_sent_after_ns"
"""and just after."""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One stage's work on one message; times in wall nanoseconds as on the span."""

    span_id: str
    parent_id: str
    trace_id: str
    stage: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    events: Mapping[str, int]

    @property
    def cell(self) -> str:
        """The cell of the sweep this span belongs to; empty for a span from elsewhere."""
        return str(self.attributes.get(CELL, ""))


def _attributes(pairs: list[KeyValue]) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind in ("string_value", "bool_value", "int_value", "double_value"):
            found[pair.key] = getattr(pair.value, kind)
    return found


def spans_of(body: bytes) -> list[SpanRecord]:
    """The spans of one ExportTraceServiceRequest.

    An event name that occurs twice on a span keeps its first time.

    Raises:
        ValueError: ``body`` is no such message.
    """
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise ValueError(f"{len(body)} bytes from a sidecar are no OTLP trace request: {error}") from error
    records = []
    for resource_spans in request.resource_spans:
        stage = str(_attributes(list(resource_spans.resource.attributes)).get(STAGE, ""))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                events: dict[str, int] = {}
                for event in span.events:
                    events.setdefault(event.name, event.time_unix_nano)
                records.append(
                    SpanRecord(
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        trace_id=span.trace_id.hex(),
                        stage=stage,
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        attributes=_attributes(list(span.attributes)),
                        events=events,
                    )
                )
    return records
