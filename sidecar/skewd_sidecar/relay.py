"""One request's way through the sidecar: admitted, patched, sent on, answered.

Every receiver hands its requests to the same relay, so a request's fate does not depend on how it came. Memory is
bounded here: so many requests and so many bytes at once, and whoever comes beyond that is told at once to try again,
rather than put into a queue that grows until the kernel ends us.

Limits: ``REQUESTS_MAX`` requests and ``BYTES_MAX`` bytes (as received) under way. A request larger than what is left is
refused even if smaller ones would fit; one alone is always admitted.
"""

from __future__ import annotations

from typing import Protocol

from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.outcome import INVALID_ARGUMENT, UNAVAILABLE, Outcome
from skewd_sidecar.patch import MalformedRequest

REQUESTS_MAX = 64
BYTES_MAX = 64 * 1024 * 1024


class Handler(Protocol):
    """What a receiver hands its requests to."""

    async def __call__(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """The answer for a decompressed export request; ``timeout_s`` is what the exporter still waits."""
        ...


class Relay:
    """See the module's text. A :class:`Handler`."""

    def __init__(
        self,
        gateway: Gateway,
        forwarders: Forwarders,
        *,
        requests_max: int = REQUESTS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._gateway = gateway
        self._forwarders = forwarders
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._requests = 0
        self._bytes = 0

    async def __call__(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        size = len(body)
        if self._requests >= self._requests_max or (self._requests and self._bytes + size > self._bytes_max):
            self._gateway.undelivered(signal, "busy")
            return Outcome.failed(UNAVAILABLE, "the sidecar has too many requests under way; try again")
        self._requests += 1
        self._bytes += size
        try:
            try:
                result = self._gateway.handle(signal, body)
            except MalformedRequest as error:
                self._gateway.undelivered(signal, "malformed")
                return Outcome.failed(INVALID_ARGUMENT, str(error))
            outcome = await self._forwarders.send(signal, result.body, timeout_s, metadata)
            if outcome.ok:
                self._gateway.delivered(signal, result)
            else:
                self._gateway.undelivered(signal, "failed")
            return outcome
        finally:
            self._requests -= 1
            self._bytes -= size
