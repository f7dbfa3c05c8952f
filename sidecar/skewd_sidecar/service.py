"""The sidecar as a whole: its listeners, what lies between, and its end.

It starts with what it can refuse (settings that cannot work are errors before anything listens), then listens, then
makes sure that it does not forward to itself, and only then says that it is ready. It stops in the order of the
traffic: no new requests, those under way finish within ``STOP_S``, then the connections to the next hop go. If it is
cancelled instead, the same happens without the patience.

One event loop, no polling: a sidecar that nobody exports to costs nothing.

Limits: settings are read once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from skewd.bounds.history import CorrectionSource
from skewd.ports import format_address
from skewd_sidecar.endpoint import EndpointError, destinations
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Gateway
from skewd_sidecar.kernel import Choice, choose
from skewd_sidecar.patch import Incoming, Mode, PatchOptions, Placement
from skewd_sidecar.relay import Handler, Relay
from skewd_sidecar.source import StaticSource
from skewd_sidecar.transport import Transport, use_native

__all__ = ["EndpointError", "SidecarSettings", "StaticSource", "Transport", "serve"]

log = logging.getLogger(__name__)

STOP_S = 5.0
"""How long requests under way may take to finish once the sidecar is told to stop."""


class _Listener(Protocol):
    address: tuple[str, int]

    async def close(self, grace_s: float) -> None: ...


@dataclass(kw_only=True)
class SidecarSettings:
    """All that a sidecar needs to know.

    Attributes:
        grpc, http, metrics_listen: ``host:port`` to listen on (port 0 picks one); None for none.
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
        transport: who speaks gRPC.
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
    transport: Transport = Transport.AUTO


async def serve(settings: SidecarSettings, ready: Callable[[dict[str, str | None]], None], stop: asyncio.Event) -> None:
    """Runs a sidecar until ``stop`` is set.

    Args:
        settings: what it needs to know.
        ready: called once when all listeners listen, with their addresses: ``{"grpc": "127.0.0.1:4317", "http": ...,
            "metrics": ...}``, None for those that are not wanted.
        stop: ends it.

    Raises:
        ValueError: settings that cannot work (``EndpointError`` for those about the next hop).
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
    log.info("mode %s, attributes %s, patched by the %s kernel", options.mode, options.placement, gateway.kernel)
    native = use_native(settings.transport)
    forwarders = Forwarders(hops, native=native)
    listeners: dict[str, _Listener | None] = {"grpc": None, "http": None, "metrics": None}
    grace_s = 0.0
    try:
        relay = Relay(gateway, forwarders)
        # What listens is imported here, so that nothing unused is loaded.
        if settings.grpc is not None:
            listeners["grpc"] = await _grpc_receiver(settings.grpc, relay, native)
        if settings.http is not None:
            from skewd_sidecar.receive.http import HttpReceiver

            listeners["http"] = await HttpReceiver.open(settings.http, relay)
        if settings.metrics_listen is not None:
            from skewd_sidecar.metrics import MetricsListener

            listeners["metrics"] = await MetricsListener.open(settings.metrics_listen, gateway)
        await forwarders.refuse_itself([each.address for each in listeners.values() if each is not None])
        gateway.transports = _transports(settings, native, forwarders)
        if gateway.transports:
            log.info("gRPC by %s", ", ".join(f"{by} ({way})" for way, by in gateway.transports.items()))
        ready({name: None if each is None else format_address(*each.address) for name, each in listeners.items()})
        await stop.wait()
        grace_s = STOP_S
    finally:
        closing = asyncio.ensure_future(_close([each for each in listeners.values() if each], forwarders, grace_s))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # bounded by the grace: half a stop would leave ports and connections behind
            raise


async def _grpc_receiver(listen: str, handler: Handler, native: bool) -> _Listener:
    if native:
        from skewd_sidecar.receive.grpc_native import NativeGrpcReceiver

        return await NativeGrpcReceiver.open(listen, handler)
    from skewd_sidecar.receive.grpc import GrpcReceiver

    return await GrpcReceiver.open(listen, handler)


def _transports(settings: SidecarSettings, native: bool, forwarders: Forwarders) -> dict[str, str]:
    """Who speaks gRPC on each side, for the log and the metrics; a side that doesn't speak it is left out."""
    found = {}
    if settings.grpc is not None:
        found["receive"] = "native" if native else "grpcio"
    if forwarders.grpc_by:
        found["forward"] = "+".join(sorted(forwarders.grpc_by))
    return found


async def _close(listeners: list[_Listener], forwarders: Forwarders, grace_s: float) -> None:
    await asyncio.gather(*(each.close(grace_s) for each in listeners), return_exceptions=True)
    await forwarders.close()
