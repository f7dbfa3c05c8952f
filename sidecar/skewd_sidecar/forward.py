"""The way out: requests as bytes to any OTLP endpoint, and its answer back.

The next hop's acknowledgement is the only one there is: nothing is kept here, so nothing that was acknowledged can be
lost, and a next hop that is down is told to the exporter as "unavailable, try again", which every exporter knows how
to do. So a forwarder does one thing: send bytes, wait (within a limit), translate the end into an ``Outcome``.

Connections are kept and made again within about a second of the next hop's return. gRPC and aiohttp are imported by
the forwarder that needs them: a sidecar that speaks HTTP only starts without gRPC.

Limits: one attempt a request; no queue. Answers longer than ``ANSWER_MAX_BYTES`` are cut off as failures. The
environment's HTTP proxies are not used towards loopback.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skewd.ports import is_loopback
from skewd_sidecar.endpoint import Destination, EndpointError, reached_listener
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INTERNAL, UNAVAILABLE, UNIMPLEMENTED, Outcome

if TYPE_CHECKING:
    import aiohttp
    import grpc

ANSWER_MAX_BYTES = 4 * 1024 * 1024
CONNECTIONS_MAX = 64
_RECONNECT_MAX_MS = 1000
_STATUS_DETAILS = "grpc-status-details-bin"

log = logging.getLogger(__name__)


class Forwarder(Protocol):
    """Sends requests of one signal to one next hop."""

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """One attempt; never raises for what the next hop or the network does.

        Args:
            body: the serialized export request.
            timeout_s: what the exporter still waits; the destination's own limit applies too.
            metadata: sent beside the destination's own headers, which win.
        """
        ...

    async def close(self) -> None:
        """Closes the connections; requests under way fail."""
        ...


class GrpcForwarder:
    """To an OTLP/gRPC endpoint. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, signal: Signal, destination: Destination) -> None:
        import grpc
        import grpc.aio

        self._destination = destination
        self._error = grpc.aio.AioRpcError
        options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", ANSWER_MAX_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
            ("grpc.enable_retries", 0),  # an exporter retries; two of them multiply
        ]
        if is_loopback(destination.host):
            options.append(("grpc.enable_http_proxy", 0))
        compression = grpc.Compression.Gzip if destination.gzip else grpc.Compression.NoCompression
        if destination.secure:
            credentials = grpc.ssl_channel_credentials(
                _content(destination.certificate),
                _content(destination.client_key),
                _content(destination.client_certificate),
            )
            self._channel: grpc.aio.Channel = grpc.aio.secure_channel(
                destination.target, credentials, options=options, compression=compression
            )
        else:
            self._channel = grpc.aio.insecure_channel(destination.target, options=options, compression=compression)
        # Without serializers gRPC takes and gives bytes.
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{signal.grpc_service}/Export", request_serializer=None, response_deserializer=None
        )
        self._own = dict(destination.headers)

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        try:
            return Outcome.delivered(await self._call(body, timeout=limit, metadata=self._headers(metadata)))
        except self._error as error:
            trailing: Any = error.trailing_metadata()  # the stubs' type is not the one that is returned
            details = trailing.get(_STATUS_DETAILS) if trailing is not None else None
            code = error.code().value[0]
            return Outcome.failed(code, f"{self._destination}: {error.details() or error.code().name}", details)

    def _headers(self, metadata: Metadata) -> Metadata | None:
        return tuple({**dict(metadata), **self._own}.items()) or None

    async def close(self) -> None:
        await self._channel.close(None)


class HttpForwarder:
    """To an OTLP/HTTP endpoint, protobuf. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, destination: Destination) -> None:
        import aiohttp
        import yarl

        self._destination = destination
        self._errors = (aiohttp.ClientError, OSError)
        scheme = "https" if destination.secure else "http"
        self._url = yarl.URL(f"{scheme}://{destination.target}{destination.path}", encoded=True)
        context = _tls(destination) if destination.secure else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=context),
            headers={
                "User-Agent": "skewd-sidecar",
                **dict(destination.headers),
                "Content-Type": "application/x-protobuf",
                **({"Content-Encoding": "gzip"} if destination.gzip else {}),
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._own = {name.lower() for name in self._session.headers}
        self._timeout = aiohttp.ClientTimeout

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        data = gzip.compress(body, 1) if self._destination.gzip else body
        try:
            async with self._session.post(
                self._url,
                data=data,
                headers=[(name, value) for name, value in metadata if name not in self._own],
                timeout=self._timeout(total=limit),
                allow_redirects=False,
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > ANSWER_MAX_BYTES:
                        return Outcome.failed(
                            INTERNAL, f"{self._destination}: its answer is longer than {ANSWER_MAX_BYTES} bytes"
                        )
                return self._outcome(response, bytes(answer))
        except TimeoutError:
            return Outcome.failed(UNAVAILABLE, f"{self._destination}: no answer within {limit:g} s")
        except self._errors as error:
            return Outcome.failed(UNAVAILABLE, f"{self._destination}: {error or type(error).__name__}")

    def _outcome(self, response: aiohttp.ClientResponse, answer: bytes) -> Outcome:
        protobuf = response.content_type == "application/x-protobuf"
        if 200 <= response.status < 300:
            return Outcome.delivered(answer if protobuf else b"")
        return Outcome.failed_over_http(
            response.status,
            f"{self._destination}: HTTP {response.status} {response.reason or ''}".rstrip(),
            answer if protobuf and answer else None,
            response.headers.get("Retry-After"),
            response.headers.get("Date"),
        )

    async def close(self) -> None:
        await self._session.close()


class Forwarders:
    """The forwarders of all signals; says in the log when a next hop goes away and when it is back.

    Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, destinations: Mapping[Signal, Destination]) -> None:
        self._destinations = dict(destinations)
        self._forwarders: dict[Signal, Forwarder] = {
            signal: GrpcForwarder(signal, destination) if destination.protocol == "grpc" else HttpForwarder(destination)
            for signal, destination in destinations.items()
        }
        self._away: set[Signal] = set()

    async def send(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """One attempt, see :class:`Forwarder`; a signal without a next hop is not implemented."""
        forwarder = self._forwarders.get(signal)
        if forwarder is None:
            return Outcome.failed(UNIMPLEMENTED, f"no next hop for {signal}; give --forward for all signals")
        outcome = await forwarder.send(body, timeout_s, metadata)
        if outcome.code == UNAVAILABLE:
            if signal not in self._away:
                self._away.add(signal)
                log.warning("%s cannot be delivered, exporters are told to try again: %s", signal, outcome.message)
        elif signal in self._away:
            self._away.discard(signal)
            log.info("%s: the next hop %s answers again", signal, self._destinations[signal])
        return outcome

    async def refuse_itself(self, listeners: Iterable[tuple[str, int]]) -> None:
        """Compares each destination, resolved, with the addresses listened on.

        Args:
            listeners: numeric addresses and ports.

        Raises:
            EndpointError: a destination is one of them.
        """
        listening = list(listeners)
        ports = {port for _, port in listening}
        loop = asyncio.get_running_loop()
        for destination in set(self._destinations.values()):
            if destination.port not in ports:
                continue
            try:
                found = await loop.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
            except OSError:
                continue  # a name that does not resolve now; it cannot be told, nor reached
            addresses = {str(entry[4][0]) for entry in found}
            reached = reached_listener(addresses, destination.port, listening, _own_addresses(listening))
            if reached is not None:
                raise EndpointError(
                    f"forwarding to {destination} would lead back to this sidecar, which listens there; "
                    "give --forward the address of the collector or backend"
                )

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(forwarder.close() for forwarder in self._forwarders.values()))


def _own_addresses(listening: list[tuple[str, int]]) -> set[str]:
    """This host's addresses, looked up only if a listener answers to all of them."""
    if not any(host in ("0.0.0.0", "::") for host, _ in listening):
        return set()
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {a.address for each in psutil.net_if_addrs().values() for a in each if a.family in families}


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EndpointError(f"the certificate or key '{path}' cannot be read: {error.strerror or error}") from None


def _tls(destination: Destination) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=destination.certificate)
        if destination.client_certificate is not None:
            context.load_cert_chain(destination.client_certificate, destination.client_key)
    except OSError as error:  # an unreadable file, or ssl.SSLError for its content
        raise EndpointError(f"the certificates for {destination} cannot be used: {error}") from None
    return context
