"""A stage's spans: the unmodified OpenTelemetry SDK, with as many ways out as the experiment compares."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from skewd_pipeline.stage_orders import StageConfig

EXPORT_EVERY_MS = 5_000
"""The SDK's own default."""

EXPORT_LIMIT_S = 60
"""How long an export may take. The SDK's own 10 s would give spans up on a machine that is merely busy."""


class Telemetry:
    """The SDK with one batching exporter per destination; a cell says which of them its spans go to."""

    def __init__(self, config: StageConfig) -> None:
        self._batches = {
            name: BatchSpanProcessor(
                OTLPSpanExporter(endpoint=f"{address}/v1/traces", timeout=EXPORT_LIMIT_S),
                max_queue_size=65_536,
                schedule_delay_millis=EXPORT_EVERY_MS,
            )
            for name, address in config.exporters.items()
        }
        active = self._active = list[BatchSpanProcessor]()

        class ToActive(SpanProcessor):
            def on_end(self, span: ReadableSpan) -> None:
                for batch in active:
                    batch.on_end(span)

        resource = Resource.create({"service.name": config.stage, "service.namespace": "skewd-experiment"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(ToActive())
        self.tracer = self._provider.get_tracer("skewd_pipeline.stages")
        self.propagator: TextMapPropagator = TraceContextTextMapPropagator()

    def use(self, exporters: list[str]) -> None:
        """From now on spans go to these."""
        self._active[:] = [self._batches[name] for name in exporters]

    def flush(self) -> bool:
        """Exports what waits; True when all of it was acknowledged in time."""
        # All of them, also after a failure.
        done = [batch.force_flush(EXPORT_LIMIT_S * 1_000) for batch in self._active]
        return all(done)
