"""What an application in Python exports: one trace, three log records, a handful of metrics, by one protocol.

``python export.py grpc|http``, with ``CAPTURE_GRPC`` and ``CAPTURE_HTTP`` as in record.py.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

T0 = 1_790_000_000_123_456_789
PROTOCOL = sys.argv[1]
ATTRIBUTES: dict[str, Any] = {
    "text": 'Grüße, 世界 🌍 \x00\n"quoted"',
    "empty": "",
    "yes": True,
    "no": False,
    "zero": 0,
    "minus": -1,
    "odd": 2**53 + 1,
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "tenth": 0.1,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "endless": float("inf"),
    "texts": ["a", "", "ß"],
    "numbers": [1, -2, 2**53 + 1],
    "fractions": [0.5, 0.25],
    "truths": [True, False],
    "none": [],
    "clock.offset_ns": 17,  # a name of ours, put there by somebody else
}


def exporter(module: str, name: str, path: str) -> Any:
    base = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{PROTOCOL}.{module}")
    if PROTOCOL == "grpc":
        return getattr(base, name)(endpoint=os.environ["CAPTURE_GRPC"], insecure=True)
    return getattr(base, name)(endpoint=f"{os.environ['CAPTURE_HTTP']}/v1/{path}")


def main() -> None:
    resource = Resource(
        {"service.name": "capture-python", "service.version": "1.0", "host.name": "a-host", "process.pid": 4242}
    )
    tracing = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracing.add_span_processor(BatchSpanProcessor(exporter("trace_exporter", "OTLPSpanExporter", "traces")))
    tracer = tracing.get_tracer("capture", "2.0", "https://opentelemetry.io/schemas/1.27.0", {"scoped": True})
    state = TraceState([("vendor", "opaque")])
    far = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, TraceFlags(1), state)
    parent = tracer.start_span(
        "parent ünïcode",
        context=set_span_in_context(NonRecordingSpan(far)),
        kind=SpanKind.SERVER,
        attributes=ATTRIBUTES,
        links=[Link(far, ATTRIBUTES), Link(far)],
        start_time=T0,
    )
    parent.add_event("sent", ATTRIBUTES, timestamp=T0 + 1000)
    parent.add_event("bare", timestamp=T0 + 1001)
    below = set_span_in_context(parent)
    for kind in (SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER):
        child = tracer.start_span(kind.name.lower(), context=below, kind=kind, start_time=T0 + 2000)
        if kind is SpanKind.CLIENT:
            child.add_event("exception", {"exception.message": "it broke"}, timestamp=T0 + 2500)
            child.set_status(Status(StatusCode.ERROR, "kaputt"))
        child.end(T0 + 3000)
    parent.set_status(StatusCode.OK)
    parent.end(T0 + 4001)
    tracing.shutdown()

    logging = LoggerProvider(resource=resource, shutdown_on_exit=False)
    logging.add_log_record_processor(BatchLogRecordProcessor(exporter("_log_exporter", "OTLPLogExporter", "logs")))
    logger = logging.get_logger("capture", "2.0")
    logger.emit(
        timestamp=T0 + 1,
        observed_timestamp=T0 + 2,
        context=below,
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body="said ünïcode",
        attributes=ATTRIBUTES,
    )
    logger.emit(
        timestamp=T0 + 3, observed_timestamp=T0 + 4, body={"deep": {"list": [1, "two", None, True, b"\x00\xff"]}}
    )
    logger.emit(observed_timestamp=T0 + 5, body="no time of its own", event_name="event.named")
    logging.shutdown()

    reader = PeriodicExportingMetricReader(
        exporter("metric_exporter", "OTLPMetricExporter", "metrics"), export_interval_millis=3_600_000
    )
    metering = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meter = metering.get_meter("capture", "2.0")
    meter.create_counter("things", "{thing}", "counted").add(2**53 + 1, {"where": "hier"})
    meter.create_up_down_counter("level").add(-3.5)
    histogram = meter.create_histogram("took", "ms")
    for value in (0.5, 7, 123456):
        histogram.record(value, {"route": "/ünïcode"})
    meter.create_gauge("heat").set(36.6)
    metering.shutdown()


main()
