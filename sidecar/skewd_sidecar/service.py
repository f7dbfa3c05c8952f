"""The sidecar as a whole: its listeners, what lies between, and its end.

It starts with what it can refuse (settings that cannot work are errors before anything listens), then listens, then
makes sure that it does not forward to itself, and only then says that it is ready. It stops in the order of the
traffic: no new requests, those under way finish within ``STOP_S``, then the connections to the next hop go; the metrics
listener stays until the end and says "not ready" meanwhile. If it is cancelled instead, the same happens without the
patience.

One event loop, no polling: a sidecar that nobody exports to costs nothing.

Limits: settings are read once; certificates whenever their files change.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from skewd.bounds.history import CorrectionSource
from skewd_sidecar.endpoint import EndpointError, destinations
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import BODY_MAX_BYTES, Gateway
from skewd_sidecar.health import Health
from skewd_sidecar.kernel import Choice, choose
from skewd_sidecar.patch import Incoming, Mode, PatchOptions, Placement
from skewd_sidecar.receive.listen import Address, show_address
from skewd_sidecar.receive.tls import ServerTls, TlsError, TlsFiles
from skewd_sidecar.relay import Relay
from skewd_sidecar.source import StaticSource

__all__ = ["EndpointError", "SidecarSettings", "StaticSource", "TlsError", "TlsFiles", "serve"]

STOP_S = 5.0
"""How long requests under way may take to finish once the sidecar is told to stop."""


class _Listener(Protocol):
    address: Address

    async def close(self, grace_s: float) -> None: ...


@dataclass(kw_only=True)
class SidecarSettings:
    """All that a sidecar needs to know.

    Attributes:
        grpc, http: ``host:port`` to listen on (port 0 picks one), or ``unix:///path``; None for none.
        metrics_listen: ``host:port``; None for none.
        forward: the next hop, ``grpc://``, ``grpcs://``, ``http://`` or ``https://``; None for
            ``OTEL_EXPORTER_OTLP_*``.
        mode: what is done to spans.
        keep_original: whether rewritten spans carry their times from before.
        attributes: where our attributes go.
        incoming: what becomes of attributes under our names that arrive.
        kernel: which of the patch's twins is wanted.
        attribute_prefix: what our attributes begin with.
        node: whose spans these are; empty for the name that the source gives (this host's until it gives one).
        source: what the node's stamps deserve.
        tls: the files of both listeners' certificates; None for none.
        max_request_bytes: the largest request taken, before and after decompression.
        metadata: the names, in lower case, of request headers that go on with a request.
    """

    source: CorrectionSource
    grpc: str | None = None
    http: str | None = None
    forward: str | None = None
    mode: Mode = Mode.TAG
    keep_original: bool = True
    attributes: Placement = Placement.SPAN
    incoming: Incoming = Incoming.TRUST
    kernel: Choice = Choice.AUTO
    attribute_prefix: str = "clock."
    node: str = ""
    metrics_listen: str | None = None
    tls: TlsFiles | None = None
    max_request_bytes: int = BODY_MAX_BYTES
    metadata: tuple[str, ...] = ()


async def serve(settings: SidecarSettings, ready: Callable[[dict[str, str | None]], None], stop: asyncio.Event) -> None:
    """Runs a sidecar until ``stop`` is set.

    Args:
        settings: what it needs to know.
        ready: called once when all listeners listen, with their addresses: ``{"grpc": "127.0.0.1:4317", "http": ...,
            "metrics": ...}``, None for those that are not wanted.
        stop: ends it.

    Raises:
        ValueError: settings that cannot work (``EndpointError`` for those about the next hop, ``TlsError`` for those
            about certificates).
        PortTaken: an address belongs to someone else; the message says to whom.
        OSError: an address cannot be listened on.
    """
    if settings.grpc is None and settings.http is None:
        raise ValueError("nothing to listen on; give --grpc 127.0.0.1:4317, --http 127.0.0.1:4318, or both")
    hops = destinations(settings.forward, os.environ)
    options = PatchOptions(
        settings.mode,
        settings.node,
        settings.attribute_prefix,
        settings.keep_original,
        settings.attributes,
        settings.incoming,
    )
    gateway = Gateway(options, settings.source, socket.gethostname(), choose(settings.kernel))
    tls = ServerTls(settings.tls) if settings.tls is not None else None
    forwarders = Forwarders(hops)
    health = Health()
    listeners: dict[str, _Listener | None] = {"grpc": None, "http": None, "metrics": None}
    grace_s = 0.0
    try:
        relay = Relay(gateway, forwarders)
        # What listens is imported here, so that nothing unused is loaded.
        if settings.grpc is not None:
            from skewd_sidecar.receive.grpc import GrpcReceiver

            listeners["grpc"] = await GrpcReceiver.open(
                settings.grpc,
                relay,
                body_max_bytes=settings.max_request_bytes,
                metadata=settings.metadata,
                tls=tls,
                counts=gateway.counts,
            )
        if settings.http is not None:
            from skewd_sidecar.receive.http import HttpReceiver

            listeners["http"] = await HttpReceiver.open(
                settings.http,
                relay,
                body_max_bytes=settings.max_request_bytes,
                metadata=settings.metadata,
                tls=tls,
                counts=gateway.counts,
            )
        if settings.metrics_listen is not None:
            from skewd_sidecar.metrics import MetricsListener

            listeners["metrics"] = await MetricsListener.open(settings.metrics_listen, gateway, health)
        addresses = {name: None if each is None else each.address for name, each in listeners.items()}
        await forwarders.refuse_itself([each for each in addresses.values() if isinstance(each, tuple)])
        health.ready, health.why = True, ""
        ready({name: None if each is None else show_address(each) for name, each in addresses.items()})
        await stop.wait()
        grace_s = STOP_S
    finally:
        health.ready, health.why = False, "stopping"
        closing = asyncio.ensure_future(_close(listeners, forwarders, grace_s))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # bounded by the grace: half a stop would leave ports and connections behind
            raise


async def _close(listeners: Mapping[str, _Listener | None], forwarders: Forwarders, grace_s: float) -> None:
    requests = [each for name, each in listeners.items() if each is not None and name != "metrics"]
    await asyncio.gather(*(each.close(grace_s) for each in requests), return_exceptions=True)
    await forwarders.close()
    metrics = listeners["metrics"]
    if metrics is not None:
        await metrics.close(0)
