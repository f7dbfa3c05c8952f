"""What the sidecar did, for Prometheus.

The counters live in the gateway as plain numbers; this collects them when a scrape asks, so that counting costs the
hot path nothing. A registry of its own: a process that embeds a sidecar keeps its default registry.

Limits: one path, ``/metrics``; the address is not authenticated, so it belongs on loopback or a private network.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from skewd_sidecar.gateway import Gateway
from skewd_sidecar.receive.listen import BACKLOG, bind_tcp, name_of

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
        transports = GaugeMetricFamily(
            "skewd_transport_info", "Always 1; who speaks gRPC on each side.", labels=["side", "transport"]
        )
        for side, transport in self._gateway.transports.items():
            transports.add_metric([side, transport], 1)
        yield transports
        build = GaugeMetricFamily("skewd_build_info", "Always 1.", labels=["version", "component", "patch", "virtual"])
        build.add_metric([self._version, "sidecar", self._gateway.kernel, str(self._gateway.virtual).lower()], 1)
        yield build


class MetricsListener:
    """Answers ``GET /metrics``. Made by :meth:`open`."""

    def __init__(self, gateway: Gateway) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(gateway))
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=_FORCE_S)
        self.address = ("", 0)

    @classmethod
    async def open(cls, listen: str, gateway: Gateway) -> MetricsListener:
        """Listens on ``host:port`` (port 0 picks one).

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp`.
        """
        bound = bind_tcp(listen, SETTING)
        listener = cls(gateway)
        listener.address = name_of(bound)
        await listener._runner.setup()
        await web.SockSite(listener._runner, bound, backlog=BACKLOG).start()
        return listener

    async def close(self, grace_s: float) -> None:
        """Frees the port; a scrape is never waited for."""
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics" or request.method != "GET":
            return web.Response(status=404, text="the metrics are at GET /metrics\n")
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
