"""The work that the sidecar and its peer are given: export requests, made once and sent many times.

A span here is what an instrumented HTTP server exports: ids, a name, one event, and as many of the attributes that the
semantic conventions give it as there is room for in ``SPAN_BYTES``, its size on the wire with its own tag and length.
What a span costs depends on how many parts it has, for the Collector more than for the sidecar: fewer and longer ones
would favour the Collector. All have the same name, so that whoever sits at the end can count them without parsing.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

SPAN_BYTES = 418
SHIFT_NS = 3_000_000
UNCERTAINTY_NS = 50_000
START_NS = 1_790_000_000_000_000_000
MARK = b"GET /benchmark/{item}"
"""The name of every span, which occurs once in each."""


ATTRIBUTES: dict[str, str | int | bool | float] = {
    "http.request.method": "GET",
    "http.route": "/benchmark/{item}",
    "http.response.status_code": 200,
    "url.scheme": "https",
    "url.path": "/benchmark/4217",
    "server.address": "shop.example",
    "server.port": 8443,
    "client.address": "10.1.2.3",
    "network.protocol.version": "1.1",
}


@dataclass(frozen=True)
class Case:
    """One kind of traffic: ``protocol`` ("grpc" or "http") and how many spans a request holds."""

    protocol: str
    spans: int
    wanted: float
    """The ratio Collector / sidecar, in processor time, that is asked for."""

    @property
    def name(self) -> str:
        return f"{'gRPC' if self.protocol == 'grpc' else 'HTTP'}, {self.spans} spans"


CASES = (Case("grpc", 512, 3.0), Case("grpc", 10, 1.0), Case("http", 512, 8.0), Case("http", 10, 4.0))


def _attribute(to: Any, key: str, value: str | int | bool | float) -> None:
    into = to.attributes.add(key=key).value
    if isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int):
        into.int_value = value
    elif isinstance(value, float):
        into.double_value = value
    else:
        into.string_value = value


@cache
def request(spans: int) -> bytes:
    """A serialized ``ExportTraceServiceRequest`` with that many spans."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    _attribute(resource.resource, "service.name", "benchmark")
    _attribute(resource.resource, "telemetry.sdk.language", "none")
    scope = resource.scope_spans.add()
    scope.scope.name = "benchmark"
    for number in range(spans):
        span = scope.spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=(number + 1).to_bytes(8, "big"),
            parent_span_id=(number + 2).to_bytes(8, "big"),
            name=MARK.decode(),
            kind=2,
            start_time_unix_nano=START_NS + number * 1000,
            end_time_unix_nano=START_NS + number * 1000 + 5_000_000,
        )
        for key, value in ATTRIBUTES.items():
            _attribute(span, key, value)
        span.events.add(time_unix_nano=START_NS + number * 1000 + 1_000_000, name="sent")
        _attribute(span, "url.query", "")
        last = span.attributes[-1].value
        # The last attribute fills the span up to its size; its own lengths take a few bytes of that.
        while (missing := SPAN_BYTES - (span.ByteSize() + 3)) > 0:
            last.string_value += "x" * max(1, missing - 4)
    return message.SerializeToString()


def sizes(body: bytes) -> set[int]:
    """The sizes of a request's spans on the wire: a check that they are what they are said to be."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    return {span.ByteSize() + 3 for span in found}


def check_corrected(body: bytes, offset_ns: int = SHIFT_NS) -> str | None:
    """What a request that came out of a target lacks to be the work done; None if nothing."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                number = int.from_bytes(span.trace_id, "big")
                start = START_NS + number * 1000 + offset_ns
                times = (span.start_time_unix_nano, span.end_time_unix_nano, span.events[0].time_unix_nano)
                if times != (start, start + 5_000_000, start + 1_000_000):
                    return f"the times of span {number} are {times}, not {offset_ns} ns later than they were sent"
    return None
