"""What the sidecar did, for Prometheus, and how it is, for probes.

The counters live in the gateway as plain numbers; this collects them when a scrape asks, so that counting costs the
hot path nothing. A registry of its own: a process that embeds a sidecar keeps its default registry.

A part with counters of its own hands them over as ``Reading``s in ``gateway.counts.readings``.

Limits: ``/metrics``, ``/healthz`` and ``/readyz``; the address is not authenticated, so it belongs on loopback or a
private network.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from skewd_sidecar.counts import Histogram
from skewd_sidecar.gateway import Gateway
from skewd_sidecar.health import LAG_MAX_S, Health, loop_lag_s
from skewd_sidecar.receive.listen import BACKLOG, Address, bind_tcp, name_of

SETTING = "--metrics or [metrics] listen"
_FORCE_S = 0.25


class GatewayCollector(Collector):
    """Reads a gateway's counters."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        try:
            self._version = version("skewd")
        except PackageNotFoundError:  # run from a checkout that was never installed
            self._version = "unknown"

    def collect(self) -> Iterator[Metric]:
        """All families, with their current values."""
        spans = CounterMetricFamily("skewd_spans", "Spans delivered, by what was done to them.", labels=["action"])
        for action, count in self._gateway.spans.items():
            spans.add_metric([action], count)
        yield spans
        logs = CounterMetricFamily(
            "skewd_log_records", "Log records delivered, by what was done to them.", labels=["action"]
        )
        for action, count in self._gateway.log_records.items():
            logs.add_metric([action], count)
        yield logs
        requests = CounterMetricFamily(
            "skewd_requests", "Export requests, by signal and how they ended.", labels=["signal", "result"]
        )
        for (signal, result), count in self._gateway.requests.items():
            requests.add_metric([signal, result], count)
        yield requests
        yield from self._of_counts()
        build = GaugeMetricFamily("skewd_build_info", "Always 1.", labels=["version", "component", "patch", "virtual"])
        build.add_metric([self._version, "sidecar", self._gateway.kernel, str(self._gateway.virtual).lower()], 1)
        yield build

    def _of_counts(self) -> Iterator[Metric]:
        counts = self._gateway.counts
        received = CounterMetricFamily(
            "skewd_received_requests",
            "Export requests that arrived whole, by protocol and encoding.",
            labels=["protocol", "encoding"],
        )
        for (protocol, encoding), count in counts.received.items():
            received.add_metric([protocol, encoding], count)
        yield received
        received_bytes = CounterMetricFamily(
            "skewd_received_bytes", "Their bytes, decompressed, as protobuf.", labels=["protocol"]
        )
        for protocol, count in counts.received_bytes.items():
            received_bytes.add_metric([protocol], count)
        yield received_bytes
        refused = CounterMetricFamily("skewd_refused_requests", "Requests not passed on, by reason.", labels=["reason"])
        for reason, count in counts.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield _histogram(
            "skewd_added_latency_seconds",
            "Time that requests spent in the sidecar other than waiting for the next hop.",
            counts.added_s,
        )
        for reading in counts.readings:
            family = (CounterMetricFamily if reading.kind == "counter" else GaugeMetricFamily)(
                reading.name, reading.about, labels=reading.labels
            )
            for labels, value in reading.read().items():
                family.add_metric(labels, value)
            yield family


def _histogram(name: str, about: str, histogram: Histogram) -> Metric:
    buckets, below = [], 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    family = HistogramMetricFamily(name, about)
    family.add_metric([], buckets, histogram.sum)
    return family


class MetricsListener:
    """Answers ``GET /metrics``, ``/healthz`` and ``/readyz``. Made by :meth:`open`."""

    def __init__(self, gateway: Gateway, health: Health) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(gateway))
        self._health = health
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=_FORCE_S)
        self.address: Address = ("", 0)

    @classmethod
    async def open(cls, listen: str, gateway: Gateway, health: Health) -> MetricsListener:
        """Listens on ``host:port`` (port 0 picks one).

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp`.
        """
        bound = bind_tcp(listen, SETTING)
        listener = cls(gateway, health)
        listener.address = name_of(bound)
        await listener._runner.setup()
        await web.SockSite(listener._runner, bound, backlog=BACKLOG).start()
        return listener

    async def close(self, grace_s: float) -> None:
        """Frees the port; a scrape is never waited for."""
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            if request.path == "/metrics":
                return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
            if request.path == "/healthz":
                lag_s = await loop_lag_s()
                wrong = self._health.fault
                if not wrong and lag_s > LAG_MAX_S:
                    wrong = f"slow: the event loop takes {lag_s:.1f} s a turn"
                return web.Response(status=503 if wrong else 200, text=f"{wrong or 'ok'}\n")
            if request.path == "/readyz":
                ready = self._health.ready
                return web.Response(status=200 if ready else 503, text="ready\n" if ready else f"{self._health.why}\n")
        return web.Response(status=404, text="GET /metrics, /healthz or /readyz\n")
