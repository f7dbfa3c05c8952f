"""One request's way through the sidecar: admitted, patched, sent on, answered.

Every receiver hands its requests to the same relay, so a request's fate does not depend on how it came. Memory is
bounded here: so many requests and so many bytes at once, and whoever comes beyond that is told at once to try again,
rather than put into a queue that grows until the kernel ends us.

Limits: ``REQUESTS_MAX`` requests and ``BYTES_MAX`` bytes (as received) under way. A request larger than what is left is
refused even if smaller ones would fit; one alone is always admitted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Protocol

from skewd.quiet import QuietLog
from skewd_sidecar.counts import Reading
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.hop import HopMark, RequestLoops
from skewd_sidecar.outcome import BUSY_RETRY_AFTER_S, FAILED_PRECONDITION, INVALID_ARGUMENT, UNAVAILABLE, Outcome
from skewd_sidecar.patch import MalformedRequest

REQUESTS_MAX = 64
BYTES_MAX = 64 * 1024 * 1024

log = QuietLog(__name__)


class Handler(Protocol):
    """What a receiver hands its requests to."""

    async def __call__(
        self,
        signal: Signal,
        body: bytes,
        timeout_s: float | None,
        metadata: Metadata = (),
        *,
        since_s: float | None = None,
    ) -> Outcome:
        """The answer for a decompressed export request.

        Args:
            timeout_s: what the exporter still waits.
            metadata: those of its headers that go on with it.
            since_s: when it had arrived, by ``time.perf_counter``; None for this very moment.
        """
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
        hop: HopMark | None = None,
    ) -> None:
        self._gateway = gateway
        self._forwarders = forwarders
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._hop = hop if hop is not None else HopMark(secrets.token_hex(8))
        self._requests = 0
        self._bytes = 0
        gateway.counts.readings += [
            Reading("skewd_requests_in_flight", "Requests under way.", "gauge", (), self._requests_in_flight),
            Reading("skewd_bytes_in_flight", "Bytes of requests under way.", "gauge", (), self._bytes_in_flight),
        ]

    def _requests_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._requests}

    def _bytes_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._bytes}

    async def __call__(
        self,
        signal: Signal,
        body: bytes,
        timeout_s: float | None,
        metadata: Metadata = (),
        *,
        since_s: float | None = None,
    ) -> Outcome:
        began_s = since_s if since_s is not None else time.perf_counter()
        size = len(body)
        if self._requests >= self._requests_max or (self._requests and self._bytes + size > self._bytes_max):
            self._gateway.undelivered(signal, "busy")
            self._gateway.counts.refused["busy"] += 1
            return Outcome.failed(
                UNAVAILABLE,
                "the sidecar has too many requests under way; try again",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        try:
            metadata = self._hop.onward(metadata)
        except RequestLoops as error:
            self._gateway.undelivered(signal, "loop")
            self._gateway.counts.refused["loop"] += 1
            log.warning("a request loops", why=str(error))
            return Outcome(FAILED_PRECONDITION, 508, str(error))
        self._requests += 1
        self._bytes += size
        try:
            try:
                result = self._gateway.handle(signal, body)
            except MalformedRequest as error:
                self._gateway.undelivered(signal, "malformed")
                self._gateway.counts.refused["malformed"] += 1
                return Outcome.failed(INVALID_ARGUMENT, str(error))
            sent_s = time.perf_counter()
            outcome = await self._forwarders.send(signal, result.body, timeout_s, metadata)
            self._gateway.counts.added_s.observe(sent_s - began_s)
            if outcome.ok:
                self._gateway.delivered(signal, result)
            else:
                self._gateway.undelivered(signal, "failed")
            return outcome
        finally:
            self._requests -= 1
            self._bytes -= size
