"""To an OTLP/gRPC endpoint with gRPC's own library: one attempt, bytes out, bytes back.

Connections are kept, and made again within about a second of the endpoint's return; one that is too old is replaced.
gRPC's own retries are off: an exporter retries, and so do we, and three of them multiply. A status OK is success,
whatever is wrong with the message before it: sent again, the request would be there twice.

Limits: answers of ``ANSWER_MAX_BYTES``, longer ones are left out. Compression happens inside gRPC's core, on the loop's
thread. Whether a failure was told by the endpoint or made here, gRPC's library says in its words alone; where those
change, what nobody heard is taken for what the endpoint told the sender. An answer that does not decompress is success
only where requests go uncompressed: else the words may be the endpoint's, about the request.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skewd.ports import is_loopback
from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.renewed import Renewed
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES, content, headers, limit_s
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INTERNAL, RESOURCE_EXHAUSTED, Outcome

if TYPE_CHECKING:
    import grpc.aio

_RECONNECT_MAX_MS = 1000
_STATUS_DETAILS = "grpc-status-details-bin"
_MADE_HERE = re.compile(
    r"Stream removed \(|failed to connect to all addresses|errors? resolving |DNS resolution failed|Deadline Exceeded\Z"
    r"|connections to all |Socket closed|empty address list|Endpoint closing|keepalive|Channel |Failed to pick",
    re.IGNORECASE,
)
_ANSWER_TOO_LARGE = "CLIENT: Received message larger than max"
_ANSWER_NO_GZIP = "Decompression failed"


class GrpcForwarder:
    """One OTLP/gRPC endpoint and signal. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, signal: Signal, destination: Destination) -> None:
        import grpc.aio

        self._signal = signal
        self._destination = destination
        self._error = grpc.aio.AioRpcError
        self._channels = Renewed(
            self._connect, self._disconnect, destination.age_s, asyncio.get_running_loop().time, random.random
        )

    def _connect(self) -> tuple[grpc.aio.Channel, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
        import grpc
        import grpc.aio

        destination = self._destination
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", ANSWER_MAX_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", max(1, int(destination.connect_s * 1000))),  # what a connection has
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),  # else a new channel takes over the old one's connection
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
            channel = grpc.aio.secure_channel(
                destination.target, credentials, options=options, compression=compression
            )
        else:
            channel = grpc.aio.insecure_channel(destination.target, options=options, compression=compression)
        # Without serializers gRPC takes and gives bytes.
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{self._signal.grpc_service}/Export", request_serializer=None, response_deserializer=None
        )
        return channel, call

    async def _disconnect(
        self, made: tuple[grpc.aio.Channel, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]
    ) -> None:
        await made[0].close(None)

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = limit_s(self._destination, timeout_s)
        held = self._channels.take()
        try:
            answer: bytes | None = await held.thing[1](
                body, timeout=limit, metadata=headers(self._destination, metadata) or None
            )
        except self._error as error:
            trailing: Any = error.trailing_metadata()  # the stubs' type is not the one that is returned
            details = trailing.get(_STATUS_DETAILS) if trailing is not None else None
            code = error.code().value[0]
            words = error.details() or ""
            if (code == RESOURCE_EXHAUSTED and _ANSWER_TOO_LARGE in words) or (
                code == INTERNAL and _ANSWER_NO_GZIP in words and not self._destination.gzip
            ):
                return Outcome.delivered(b"")  # who sends a message, of whatever kind, has taken the request
            outcome = Outcome.failed(code, f"{self._destination}: {words or error.code().name}", details)
            return replace(outcome, heard=False) if _MADE_HERE.match(words) else outcome
        finally:
            self._channels.give_back(held)
        return Outcome.delivered(answer or b"")  # None for a message that is missing, or not whole

    async def close(self) -> None:
        await self._channels.close()
