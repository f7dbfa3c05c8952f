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
import time
from collections.abc import Callable
from typing import Protocol

from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.retry import try_again
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.outcome import INVALID_ARGUMENT, Outcome
from skewd_sidecar.patch import MalformedRequest

REQUESTS_MAX = 256
BYTES_MAX = 128 * 1024 * 1024
COPIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0
_CALM_S = 2.0


class Handler(Protocol):
    """What a receiver hands its requests to."""

    async def __call__(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """The answer for a decompressed export request; ``timeout_s`` is what the exporter still waits."""
        ...


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
    """See the module's text. A :class:`Handler`.

    Attributes:
        requests, bytes: under way now, as admitted.
    """

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
        self._overload = Overload(random.random)
        self.requests = 0
        self.bytes = 0

    async def __call__(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        size = COPIES * len(body)
        # What exporters have given up on, but is still on its way, is not counted here and needs its memory.
        held = max(self.bytes, COPIES * self._forwarders.held_bytes)
        if self.requests >= self._requests_max or (held and held + size > self._bytes_max):
            self._gateway.undelivered(signal, "busy")
            delay_s = self._overload.refused(time.monotonic())
            return try_again("the sidecar has too many requests under way; try again", delay_s)
        self.requests += 1
        self.bytes += size
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
            self.requests -= 1
            self.bytes -= size
