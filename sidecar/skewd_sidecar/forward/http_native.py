"""To a plaintext OTLP/HTTP endpoint without aiohttp: the twin of :mod:`skewd_sidecar.forward.http`.

Same surface, same outcomes, a fraction of the CPU; bodies are compressed in the native transport's thread.

Limits: as the twin's; a connection that is unused for 15 s is closed. No TLS.
"""

from __future__ import annotations

import time

from skewd_sidecar.endpoint import Destination, EndpointError
from skewd_sidecar.forward.http import headers_of, outcome_of, too_late
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES
from skewd_sidecar.gateway import Metadata
from skewd_sidecar.native_hub import Hub
from skewd_sidecar.outcome import INTERNAL, Outcome


class NativeHttpForwarder:
    """See the module's text. Made within the running event loop.

    Raises:
        EndpointError: the destination cannot be called so.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        own = {name.lower(): value for name, value in headers_of(destination).items()}
        authority = own.pop("host", "localhost" if destination.host.startswith("/") else destination.target)
        self._own = frozenset(own)
        self._hub = Hub.acquire()
        try:
            self._channel = self._hub.connect_http(
                destination.host,
                destination.port,
                authority,
                destination.path,
                tuple(own.items()),
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
        limit = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        headers = tuple(each for each in metadata if each[0] not in self._own)
        try:
            answer = await self._hub.post(self._channel, body, limit, headers)
        except ValueError as error:
            return Outcome.failed(INTERNAL, f"{self._destination}: {error}")
        if isinstance(answer, str):
            if answer == "late":
                return too_late(self._destination, limit)
            return Outcome.unheard(f"{self._destination}: {answer}")
        content_type = (answer.content_type or "").partition(";")[0].strip().lower()
        return outcome_of(
            self._destination,
            answer.status,
            answer.reason,
            content_type,
            answer.content_encoding,
            answer.retry_after,
            answer.date,
            answer.body,
            time.time(),
        )

    async def close(self) -> None:
        """Gives the connections back; requests under way fail once nobody else uses them."""
        self._hub.disconnect(self._channel)
        self._hub.release()
