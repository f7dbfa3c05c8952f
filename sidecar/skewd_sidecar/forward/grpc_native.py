"""To a plaintext OTLP/gRPC endpoint without gRPC's own library: the twin of :mod:`skewd_sidecar.forward.grpc`.

Same surface, same outcomes, a tenth of the CPU for a small request. One connection an endpoint, shared by all signals,
made when the first request needs it and made again within about a second of the next hop's return.

Limits: one attempt a request; answers of ``ANSWER_MAX_BYTES``. No TLS and no HTTP proxies: see
:func:`skewd_sidecar.transport.fits_native`.
"""

from __future__ import annotations

from dataclasses import replace

from skewd_sidecar.endpoint import Destination, EndpointError
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES, headers, limit_s
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.native_hub import Hub
from skewd_sidecar.outcome import INTERNAL, Outcome


class NativeGrpcForwarder:
    """See the module's text. Made within the running event loop.

    Raises:
        EndpointError: the destination cannot be called so.
    """

    def __init__(self, signal: Signal, destination: Destination) -> None:
        self._signal = signal
        self._destination = destination
        self._hub = Hub.acquire()
        try:
            self._channel = self._hub.connect(
                destination.host,
                destination.port,
                "localhost" if destination.unix else destination.target,
                destination.gzip,
                ANSWER_MAX_BYTES,
                destination.connect_s,
                destination.age_s,
            )
        except ValueError as error:
            self._hub.release()
            raise EndpointError(f"{destination} cannot be called: {error}") from None

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """One attempt; never raises for what the next hop or the network does."""
        limit = limit_s(self._destination, timeout_s)
        beside = headers(self._destination, metadata)
        try:
            code, message, answer, details, heard = await self._hub.call(
                self._channel, self._signal, body, limit, beside
            )
        except ValueError as error:
            return Outcome.failed(INTERNAL, f"{self._destination}: {error}")
        if code == 0:
            return Outcome.delivered(answer)
        outcome = Outcome.failed(code, f"{self._destination}: {message or f'gRPC status {code}'}", details)
        return outcome if heard else replace(outcome, heard=False)

    async def close(self) -> None:
        """Gives the connection back; requests under way fail once nobody else uses it."""
        self._hub.disconnect(self._channel)
        self._hub.release()
