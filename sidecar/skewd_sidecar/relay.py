"""One request's way through the sidecar: admitted, patched, sent on, answered.

Every receiver hands its requests to the same relay, so a request's fate does not depend on how it came. Memory is
bounded here: so many requests and so many bytes at once, and whoever comes beyond that is told at once to try again,
rather than put into a queue that grows until the kernel ends us. How long it should stay away grows with how long
there has been too much (``Overload``), and is drawn anew for each, so that exporters do not come back in step.

A request is in memory as it was received, as it was patched, and as part of the body that is sent: ``COPIES`` times.
That is what is admitted by, so the bound is one on memory: what a process needs beyond its start is about this much,
and what the transports' own buffers hold.

Limits: ``REQUESTS_MAX`` requests and ``BYTES_MAX`` bytes under way. A request larger than what is left is refused even
if smaller ones would fit; one alone is always admitted.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable, Mapping

from skewd.quiet import QuietLog
from skewd_sidecar.counts import Reading
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.retry import try_again
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.handler import REQUESTS_MAX
from skewd_sidecar.hop import HopMark, RequestLoops
from skewd_sidecar.outcome import FAILED_PRECONDITION, INVALID_ARGUMENT, Outcome
from skewd_sidecar.patch import MalformedRequest

BYTES_MAX = 128 * 1024 * 1024
COPIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0
_CALM_S = 2.0

log = QuietLog(__name__)


class Overload:
    """How long exporters are asked to stay away. Pure.

    The first are asked for ``RETRY_FIRST_S``; then for as long as it has been too much, up to ``RETRY_MAX_S``, so that
    it takes seconds and not minutes until they are back. Two seconds without a refusal end it. Each is told up to half
    as much again, at random.

    Args:
        chance: evenly distributed in [0, 1).
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._since_s = self._last_s = -math.inf

    def refused(self, now_s: float) -> float:
        """One more had to be refused at ``now_s``; how long it should stay away, in seconds."""
        if now_s - self._last_s > _CALM_S + RETRY_MAX_S * 1.5:
            self._since_s = now_s
        self._last_s = now_s
        lasting_s = min(max(now_s - self._since_s, RETRY_FIRST_S), RETRY_MAX_S)
        return lasting_s * (1 + self._chance() / 2)


class Relay:
    """See the module's text. A :class:`~skewd_sidecar.handler.Handler`."""

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
        self._overload = Overload(random.random)
        self._hop = hop if hop is not None else HopMark(secrets.token_hex(8))
        self._requests = 0
        self._bytes = 0
        gateway.counts.readings += [
            Reading("skewd_requests_in_flight", "Requests under way.", "gauge", (), self._requests_in_flight),
            Reading(
                "skewd_bytes_in_flight",
                "Bytes of requests under way.",
                "gauge",
                (),
                self._bytes_in_flight,
            ),
        ]

    def _requests_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._requests}

    def _bytes_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._bytes // COPIES}

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
        size = COPIES * len(body)
        # What exporters have given up on, but is still on its way, needs its memory too.
        held = max(self._bytes, COPIES * self._forwarders.held_bytes)
        if self._requests >= self._requests_max or (held and held + size > self._bytes_max):
            self._gateway.undelivered(signal, "busy")
            self._gateway.counts.refused["busy"] += 1
            delay_s = self._overload.refused(time.monotonic())
            return try_again("the sidecar has too many requests under way; try again", delay_s)
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
