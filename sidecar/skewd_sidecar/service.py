"""The sidecar as a whole: its listeners, what lies between, and its end.

It starts with what it can refuse (settings that cannot work are errors before anything listens), then listens, then
makes sure that it does not forward to itself, and only then says that it is ready. It stops in the order of the
traffic: no new requests, those under way finish within ``STOP_S``, then the connections to the next hop go; the metrics
listener stays until the end and says "not ready" meanwhile. If it is cancelled instead, the same happens without the
patience. If the native transport breaks, the same happens with it, ``/healthz`` says why, and it ends with an error: a
supervisor starts it again, whether or not it probes, and a process that begins anew has no part in what went wrong.

One event loop, no polling: a sidecar that nobody exports to costs nothing.

Limits: settings are read once; certificates whenever their files change.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skewd.bounds.history import CorrectionSource
from skewd_sidecar.counts import Reading
from skewd_sidecar.endpoint import AGE_S, CONNECT_S, EndpointError, next_hops
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.dead_letters import MAX_BYTES as DEAD_LETTER_MAX_BYTES
from skewd_sidecar.forward.hops import ATTEMPT_S, RETRY_S
from skewd_sidecar.forward.retry import Balance
from skewd_sidecar.gateway import BODY_MAX_BYTES, Gateway
from skewd_sidecar.health import Health
from skewd_sidecar.kernel import Choice, choose
from skewd_sidecar.patch import ELEMENTS_MAX, RECORDS_MAX, Incoming, Mode, PatchOptions, Placement, Stamps
from skewd_sidecar.receive.listen import UNIX, Address, show_address
from skewd_sidecar.receive.tls import ServerTls, TlsError, TlsFiles
from skewd_sidecar.relay import BYTES_MAX, Relay
from skewd_sidecar.source import StaticSource
from skewd_sidecar.transport import Transport, use_native

__all__ = [
    "EndpointError",
    "SidecarBroken",
    "SidecarSettings",
    "StaticSource",
    "TlsError",
    "TlsFiles",
    "Transport",
    "serve",
]

STOP_S = 5.0
"""How long requests under way may take to finish once the sidecar is told to stop."""


class SidecarBroken(RuntimeError):
    """It cannot serve any more, and ends: half a sidecar, of which some ports are dead, is worse than a new one."""


class _Listener(Protocol):
    address: Address

    async def close(self, grace_s: float) -> None: ...


@dataclass(kw_only=True)
class SidecarSettings:
    """All that a sidecar needs to know.

    Attributes:
        grpc, http: ``host:port`` to listen on (port 0 picks one), or ``unix:///path``; None for none.
        metrics_listen: ``host:port``; None for none.
        forward: the next hop, ``grpc://``, ``grpcs://``, ``grpc+unix://``, ``http://``, ``https://`` or
            ``kafka://``, or several; none for ``OTEL_EXPORTER_OTLP_*``.
        balance: how several next hops share the work.
        retry_s: how long the sidecar itself tries again, within the exporter's time.
        connect_s: how long a connection to a next hop may take to be made.
        attempt_s: how long a next hop may be silent before a request goes to another one.
        age_s: how old a connection to a next hop gets.
        forward_max_bytes: the largest request the next hop takes; 0 for what is usual for its protocol.
        max_bytes: memory for requests under way.
        dead_letter: a file for requests that were refused for good; None for none.
        dead_letter_max_bytes: how long it may get.
        kafka_properties: a file of the Kafka client's settings for TLS and SASL.
        mode: what is done to spans.
        keep_original: whether rewritten spans carry their times from before.
        attributes: where our attributes go.
        incoming: what becomes of attributes under our names that arrive.
        stamps: how applications take their stamps.
        kernel: which of the patch's twins is wanted.
        attribute_prefix: what our attributes begin with.
        node: whose spans these are; empty for the name that the source gives (this host's until it gives one).
        source: what the node's stamps deserve.
        transport: who speaks gRPC and HTTP.
        tls: the files of both listeners' certificates; None for none.
        max_request_bytes: the largest request taken, before and after decompression.
        max_request_records: spans or log records in one request.
        max_request_elements: what else one may hold: batches, scopes, attributes, events, links; values in JSON.
        metadata: the names, in lower case, of request headers that go on with a request.
    """

    source: CorrectionSource
    grpc: str | None = None
    http: str | None = None
    forward: str | Sequence[str] | None = None
    balance: Balance = Balance.ROUND_ROBIN
    retry_s: float = RETRY_S
    connect_s: float = CONNECT_S
    attempt_s: float = ATTEMPT_S
    age_s: float = AGE_S
    forward_max_bytes: int = 0
    max_bytes: int = BYTES_MAX
    dead_letter: Path | None = None
    dead_letter_max_bytes: int = DEAD_LETTER_MAX_BYTES
    kafka_properties: Path | None = None
    mode: Mode = Mode.TAG
    keep_original: bool = True
    attributes: Placement = Placement.SPAN
    incoming: Incoming = Incoming.TRUST
    stamps: Stamps = Stamps.UNKNOWN
    kernel: Choice = Choice.AUTO
    attribute_prefix: str = "clock."
    node: str = ""
    metrics_listen: str | None = None
    transport: Transport = Transport.AUTO
    tls: TlsFiles | None = None
    max_request_bytes: int = BODY_MAX_BYTES
    max_request_records: int = RECORDS_MAX
    max_request_elements: int = ELEMENTS_MAX
    metadata: tuple[str, ...] = ()


async def serve(
    settings: SidecarSettings,
    ready: Callable[[dict[str, str | None]], None],
    stop: asyncio.Event,
    *,
    spoken: Callable[[dict[str, str]], None] = lambda transports: None,
) -> None:
    """Runs a sidecar until ``stop`` is set, or something without which it cannot serve has broken.

    Args:
        settings: what it needs to know.
        ready: called once when all listeners listen, with their addresses: ``{"grpc": "127.0.0.1:4317", "http": ...,
            "metrics": ...}``, None for those that are not wanted.
        stop: ends it.
        spoken: called before ``ready``, with who speaks what: ``{"grpc_receive": "native", "grpc_forward": "grpcio",
            "http_receive": "aiohttp"}``, without what isn't spoken.

    Raises:
        ValueError: settings that cannot work (``EndpointError`` for those about the next hop, ``TlsError`` for those
            about certificates).
        PortTaken: an address belongs to someone else; the message says to whom.
        OSError: an address cannot be listened on.
        SidecarBroken: the native transport has failed.
    """
    if settings.grpc is None and settings.http is None:
        raise ValueError("nothing to listen on; give --grpc 127.0.0.1:4317, --http 127.0.0.1:4318, or both")
    hops = next_hops(
        settings.forward, os.environ, settings.forward_max_bytes, settings.connect_s, settings.age_s
    )
    options = PatchOptions(
        settings.mode,
        settings.node,
        settings.attribute_prefix,
        settings.keep_original,
        settings.attributes,
        settings.incoming,
        settings.stamps,
    )
    gateway = Gateway(
        options,
        settings.source,
        socket.gethostname(),
        choose(settings.kernel),
        settings.max_request_records,
        settings.max_request_elements,
    )
    native = use_native(settings.transport)
    tls = ServerTls(settings.tls) if settings.tls is not None else None
    forwarders = Forwarders(
        hops,
        balance=settings.balance,
        retry_s=settings.retry_s,
        attempt_s=settings.attempt_s,
        dead_letter=settings.dead_letter,
        dead_letter_max_bytes=settings.dead_letter_max_bytes,
        kafka_properties=kafka_settings(settings.kafka_properties),
        native=native,
    )
    gateway.counts.readings += forwarders.readings()
    health = Health()
    spoken_by = {(protocol, "forward"): by for protocol, by in forwarders.spoken_by.items()}
    listeners: dict[str, _Listener | None] = {"grpc": None, "http": None, "metrics": None}
    grace_s = 0.0
    relay = Relay(gateway, forwarders, bytes_max=settings.max_bytes)
    try:
        # What listens is imported here, so that nothing unused is loaded.
        if settings.grpc is not None:
            receive_native = native and tls is None and _fits(settings)
            if receive_native:
                from skewd_sidecar.receive.grpc_native import NativeGrpcReceiver as Receiver
            else:
                from skewd_sidecar.receive.grpc import GrpcReceiver as Receiver  # type: ignore[assignment]

            listeners["grpc"] = await Receiver.open(
                settings.grpc,
                relay,
                body_max_bytes=settings.max_request_bytes,
                metadata=settings.metadata,
                tls=tls,
                counts=gateway.counts,
            )
            spoken_by["grpc", "receive"] = {"native" if receive_native else "grpcio"}
        if settings.http is not None:
            native_http = native and tls is None
            if native_http:
                from skewd_sidecar.receive.http_native import NativeHttpReceiver as OverHttp
            else:
                from skewd_sidecar.receive.http import HttpReceiver as OverHttp  # type: ignore[assignment]

            listeners["http"] = await OverHttp.open(
                settings.http,
                relay,
                body_max_bytes=settings.max_request_bytes,
                metadata=settings.metadata,
                tls=tls,
                counts=gateway.counts,
                budget=relay.budget,
                values_max=settings.max_request_elements,
            )
            spoken_by["http", "receive"] = {"native" if native_http else "aiohttp"}
        if settings.metrics_listen is not None:
            from skewd_sidecar.metrics import MetricsListener

            listeners["metrics"] = await MetricsListener.open(settings.metrics_listen, gateway, health)
        addresses = {name: None if each is None else each.address for name, each in listeners.items()}
        await forwarders.refuse_itself([each for each in addresses.values() if each is not None])
        gateway.counts.readings.append(_transport_reading(spoken_by))
        spoken({f"{protocol}_{side}": "+".join(sorted(by)) for (protocol, side), by in spoken_by.items() if by})
        health.ready, health.why = True, ""
        ready({name: None if each is None else show_address(each) for name, each in addresses.items()})
        broken = await _until(stop, spoken_by)
        grace_s = STOP_S
        if broken:
            health.fault = broken
            raise SidecarBroken(f"{broken}; the sidecar ends, so that it is started again")
    finally:
        health.ready, health.why = False, health.fault or "stopping"
        closing = asyncio.ensure_future(_close(listeners, relay, forwarders, grace_s))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # bounded by the grace: half a stop would leave ports and connections behind
            raise


def kafka_settings(path: Path | None) -> dict[str, str]:
    """The Kafka client's settings for TLS and SASL, from a file; none without one.

    Raises:
        ValueError: the file cannot be read, or has something else in it.
    """
    if path is None:
        return {}
    from skewd.links.kafka import read_properties

    return read_properties(path)


def _fits(settings: SidecarSettings) -> bool:
    """Whether the native transport may have the listener: see its text about Unix sockets."""
    assert settings.grpc is not None
    return not settings.grpc.startswith(UNIX) or settings.transport == Transport.NATIVE


async def _until(stop: asyncio.Event, spoken_by: Mapping[tuple[str, str], set[str]]) -> str:
    """Waits until the sidecar is told to stop, or cannot serve any more: why, empty if it was told."""
    if not any("native" in by for by in spoken_by.values()):
        await stop.wait()
        return ""
    from skewd_sidecar.native_hub import Hub

    hub = Hub.running()
    assert hub is not None, "who uses it keeps it"
    told, lost = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(hub.until_lost())
    either: set[asyncio.Future[Any]] = {told, lost}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return "" if told.done() else lost.result()
    finally:
        for each in either:
            each.cancel()


def _transport_reading(spoken_by: Mapping[tuple[str, str], set[str]]) -> Reading:
    found = [(*where, transport) for where, transports in spoken_by.items() for transport in sorted(transports)]
    about = "Always 1; who speaks each protocol on each side."
    labels = ("protocol", "side", "transport")
    return Reading("skewd_transport_info", about, "gauge", labels, lambda: dict.fromkeys(found, 1.0))


async def _close(
    listeners: Mapping[str, _Listener | None], relay: Relay, forwarders: Forwarders, grace_s: float
) -> None:
    requests = [each for name, each in listeners.items() if each is not None and name != "metrics"]
    await asyncio.gather(*(each.close(grace_s) for each in requests), return_exceptions=True)
    relay.close()
    await forwarders.close()
    metrics = listeners["metrics"]
    if metrics is not None:
        await metrics.close(0)
