"""What a sidecar may change of a request, said twice: on the wire, and on parsed messages.

``neutral`` takes a serialized request apart and leaves out the times and the attributes that are ours: two requests
that differ in nothing else are equal, byte for byte of every other field. ``corrected`` is what becomes of a span or a
log record under a fixed offset, by protobuf's own classes: slow, and too simple to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode
from tests.sidecar.otlp_wire import FIXED64, LEN, Field, fields

REQUEST: dict[Signal, Any] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
}
OFFSET_NS, UNCERTAINTY_NS, NODE = -3_000_000, 50_000, "node-a"
"""What ``sidecar_lab.sidecar`` corrects by, unless told otherwise."""
MASK = (1 << 64) - 1
ATTRIBUTES = {Signal.TRACES: 9, Signal.LOGS: 6}
TIMES = {Signal.TRACES: (7, 8), Signal.LOGS: (1, 11)}
OURS = frozenset(
    "clock." + name
    for name in (
        "offset_ns",
        "uncertainty_ns",
        "reference",
        "status",
        "node.name",
        "corrected",
        "original.start_time_unix_nano",
        "original.end_time_unix_nano",
        "original.time_unix_nano",
        "original.observed_time_unix_nano",
        "end.offset_ns",
    )
)


def neutral(body: bytes, signal: Signal) -> list[Any]:
    """A request's fields in their order, without times and our attributes, and without the lengths these change."""

    def inside(data: bytes, depth: int) -> Iterator[Any]:
        for each in fields(data):
            if signal not in TIMES:
                yield each.raw
            elif depth < 3:
                down = (each.number, each.kind) == ((1, 2, 2)[depth], LEN)
                yield (each.number, list(inside(each.value, depth + 1))) if down else each.raw
            elif each.kind == FIXED64 and each.number in TIMES[signal]:
                yield (each.number, "time")
            elif signal is Signal.TRACES and (each.number, each.kind) == (11, LEN):
                yield (
                    11,
                    [(1, "time") if (one.number, one.kind) == (1, FIXED64) else one.raw for one in fields(each.value)],
                )
            elif not _ours(each, signal):
                yield each.raw

    return list(inside(body, 0))


def _ours(each: Field, signal: Signal) -> bool:
    if (each.number, each.kind) != (ATTRIBUTES[signal], LEN):
        return False
    keys = [one.value for one in fields(each.value) if (one.number, one.kind) == (1, LEN)]
    return bool(keys) and keys[-1].decode(errors="replace") in OURS


def items(request: Any) -> Iterator[Any]:
    """The spans or log records of a parsed request."""
    for resource in getattr(request, "resource_spans", ()) or getattr(request, "resource_logs", ()):
        for scope in getattr(resource, "scope_spans", ()) or getattr(resource, "scope_logs", ()):
            yield from getattr(scope, "spans", ()) or getattr(scope, "log_records", ())


def corrected(item: Any, mode: Mode, offset_ns: int = OFFSET_NS) -> None:
    """Does to a span or log record what a sidecar with a static offset should."""
    if mode is Mode.OFF:
        return
    is_span = hasattr(item, "start_time_unix_nano")
    names = ("start_time_unix_nano", "end_time_unix_nano") if is_span else ("time_unix_nano", "observed_time_unix_nano")
    before = {name: getattr(item, name) for name in names}
    if not is_span and not any(before.values()):
        return  # nothing is said that a clock could correct
    said = {each.key: each.value for each in item.attributes if each.key in OURS}
    if (
        said.get("clock.corrected")
        and said["clock.corrected"].bool_value
        and said["clock.reference"].string_value == "utc"
    ):
        return
    events = [event.time_unix_nano for event in item.events] if is_span else []
    moved = mode is Mode.REWRITE and all(0 < time + offset_ns <= MASK for time in [*before.values(), *events] if time)
    if moved:
        for name, time in before.items():
            setattr(item, name, time and time + offset_ns)
        for event in item.events if is_span else ():
            event.time_unix_nano = event.time_unix_nano and event.time_unix_nano + offset_ns
    kept = [each for each in item.attributes if each.key not in OURS]
    del item.attributes[:]
    item.attributes.extend(kept)

    def add(name: str, **value: Any) -> None:
        into = item.attributes.add(key="clock." + name).value
        for kind, given in value.items():
            setattr(into, kind, given)

    add("offset_ns", int_value=offset_ns)
    add("uncertainty_ns", int_value=UNCERTAINTY_NS)
    add("reference", string_value="utc")
    add("status", string_value="synchronized")
    add("node.name", string_value=NODE)
    add("corrected", bool_value=moved)
    for name, time in before.items():
        if moved and time:
            add("original." + name, int_value=time - (time >> 63 << 64))
