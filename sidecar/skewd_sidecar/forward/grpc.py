"""To an OTLP/gRPC endpoint with gRPC's own library: one attempt, bytes out, bytes back.

Connections are kept, and made again within about a second of the endpoint's return. gRPC's own retries are off: an
exporter retries, and so do we, and three of them multiply.

Limits: answers of ``ANSWER_MAX_BYTES``. Compression happens inside gRPC's core, on the loop's thread.
"""

from __future__ import annotations

from typing import Any

from skewd.ports import is_loopback
from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES, content, headers, limit_s
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INTERNAL, Outcome

_RECONNECT_MAX_MS = 1000
_STATUS_DETAILS = "grpc-status-details-bin"


class GrpcForwarder:
    """One OTLP/gRPC endpoint and signal. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, signal: Signal, destination: Destination) -> None:
        import grpc
        import grpc.aio

        self._destination = destination
        self._error = grpc.aio.AioRpcError
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", ANSWER_MAX_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
            ("grpc.enable_retries", 0),
        ]
        if destination.unix:
            # What it makes of a path by itself is no authority that RFC 3986 allows, and some servers refuse it.
            options.append(("grpc.default_authority", "localhost"))
        elif is_loopback(destination.host):
            options.append(("grpc.enable_http_proxy", 0))
        compression = grpc.Compression.Gzip if destination.gzip else grpc.Compression.NoCompression
        if destination.secure:
            credentials = grpc.ssl_channel_credentials(
                content(destination.certificate),
                content(destination.client_key),
                content(destination.client_certificate),
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

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = limit_s(self._destination, timeout_s)
        try:
            answer: bytes | None = await self._call(
                body, timeout=limit, metadata=headers(self._destination, metadata) or None
            )
        except self._error as error:
            trailing: Any = error.trailing_metadata()  # the stubs' type is not the one that is returned
            details = trailing.get(_STATUS_DETAILS) if trailing is not None else None
            code = error.code().value[0]
            return Outcome.failed(code, f"{self._destination}: {error.details() or error.code().name}", details)
        if answer is None:  # gRPC's library takes that for success
            return Outcome.failed(INTERNAL, f"{self._destination}: the answer is OK, without a whole message")
        return Outcome.delivered(answer)

    async def close(self) -> None:
        await self._channel.close(None)
