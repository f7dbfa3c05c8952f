"""One request's way through the sidecar: admitted, patched, sent on, answered.

Every receiver hands its requests to the same relay, so a request's fate does not depend on how it came. Memory is
bounded here: so many requests and so many bytes at once, and whoever comes beyond that is told at once to try again,
rather than put into a queue that grows until the kernel ends us. How long it should stay away grows with how long
there has been too much (``Overload``), and is drawn anew for each, so that exporters do not come back in step.

A request is in memory as it was received, as it was patched, and as part of the body that is sent: ``COPIES`` times.
What it will be once it is patched is not what it is now: a record of eleven bytes grows by more than a hundred, and may
have come compressed as one. So a request is counted first (``Gateway.foresee``), which takes no memory, and charged for
what will come out, and for what the patch keeps in mind meanwhile; once it is patched, for what did come out. That is
what is admitted by, so the bound is one on memory: what a process needs beyond its start is about this much, and what
the transports' own buffers hold.

Counting and patching a long body would keep the others waiting, so it is done in one of ``THREADS`` threads, the short
ones meanwhile where they are. The native kernel does both without Python's lock.

What goes wrong in here is not the request's fault: the exporter is told to send it again, to this sidecar or another.

Limits: ``REQUESTS_MAX`` requests and ``BYTES_MAX`` bytes under way. A request larger than what is left is refused even
if smaller ones would fit; one alone is always admitted, unless it would make more than ``Budget.most_for_one``: that is
refused for good, with the key to change. A request that is given up while a thread has it keeps that thread until it is
done, and its memory, which is no longer charged: that of ``THREADS`` requests at most.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from skewd.quiet import QuietLog
from skewd_sidecar.budget import Budget, Charge
from skewd_sidecar.counts import Reading
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.retry import try_again
from skewd_sidecar.gateway import Foreseen, Gateway, Metadata, Signal
from skewd_sidecar.handler import REQUESTS_MAX
from skewd_sidecar.hop import HopMark, RequestLoops
from skewd_sidecar.outcome import FAILED_PRECONDITION, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Outcome, own_fault
from skewd_sidecar.patch import MalformedRequest, PatchResult, TooMuch

BYTES_MAX = 128 * 1024 * 1024
COPIES = 3
THREADS = 2
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 5.0
_CALM_S = 2.0

log = QuietLog(__name__)

_T = TypeVar("_T")


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


class _Busy(Exception):
    """Too little is left for what a request will need."""


class Relay:
    """See the module's text. A :class:`~skewd_sidecar.handler.Handler`.

    Attributes:
        budget: what requests under way are charged to; a receiver charges for what it converts as well.
    """

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
        # What exporters have given up on, but is still on its way, needs its memory too.
        self.budget = Budget(bytes_max, lambda: COPIES * forwarders.held_bytes)
        self._overload = Overload(random.random)
        self._hop = hop if hop is not None else HopMark(secrets.token_hex(8))
        self._threads: ThreadPoolExecutor | None = None
        self._requests = 0
        self._received_bytes = 0
        gateway.counts.readings += [
            Reading("skewd_requests_in_flight", "Requests under way.", "gauge", (), self._requests_in_flight),
            Reading(
                "skewd_bytes_in_flight",
                "Bytes of requests under way.",
                "gauge",
                (),
                self._bytes_in_flight,
            ),
            Reading(
                "skewd_charged_bytes",
                "Memory that requests under way are charged for, of [sidecar] max_bytes.",
                "gauge",
                (),
                lambda: {(): self.budget.held_bytes},
            ),
        ]

    def _requests_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._requests}

    def _bytes_in_flight(self) -> Mapping[tuple[str, ...], float]:
        return {(): self._received_bytes}

    def close(self) -> None:
        """Ends the threads, if there are any; what one of them has at this moment it still finishes."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

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
        if self._requests >= self._requests_max or not self.budget.admits(size):
            return self._busy(signal)
        try:
            metadata = self._hop.onward(metadata)
        except RequestLoops as error:
            self._gateway.undelivered(signal, "loop")
            self._gateway.counts.refused["loop"] += 1
            log.warning("a request loops", why=str(error))
            return Outcome(FAILED_PRECONDITION, 508, str(error))
        self._requests += 1
        self._received_bytes += len(body)
        charge = Charge(self.budget, size)
        try:
            try:
                result = await self._patched(signal, body, charge)
            except MalformedRequest as error:
                return self._refused(signal, "malformed", INVALID_ARGUMENT, str(error))
            except TooMuch as error:
                return self._refused(signal, "too_many", RESOURCE_EXHAUSTED, str(error))
            except _Busy:
                return self._busy(signal)
            except Exception as error:
                log.error("a request could not be handled", exc_info=error)
                self._gateway.undelivered(signal, "fault")
                self._gateway.counts.refused["fault"] += 1
                return own_fault()
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
            self._received_bytes -= len(body)
            charge.set(0)

    async def _patched(self, signal: Signal, body: bytes, charge: Charge) -> PatchResult:
        """
        Raises:
            MalformedRequest, TooMuch: it is refused for good.
            _Busy: for now.
        """
        at_once = len(body) <= self._gateway.inline_bytes
        if at_once:
            foreseen = self._gateway.foresee(signal, body)
        else:
            foreseen = await self._aside(self._gateway.foresee, signal, body)
        self._admit(foreseen, len(body), charge)
        if at_once:
            result = self._gateway.handle(signal, body)
        else:
            result = await self._aside(self._gateway.handle, signal, body)
        charge.set(len(body) + (COPIES - 1) * len(result.body))
        return result

    def _admit(self, foreseen: Foreseen, received: int, charge: Charge) -> None:
        """
        Raises:
            TooMuch: one alone may not make so much.
            _Busy: others have what it would need.
        """
        more = (COPIES - 1) * foreseen.growth_bytes + foreseen.notes_bytes
        if more > self.budget.most_for_one:
            raise TooMuch(
                f"to patch the request would take {more >> 20} MiB beside its own bytes, and one may take "
                f"{self.budget.most_for_one >> 20}; send less at once, or raise [sidecar] max_bytes"
            )
        if not self.budget.admits(more, own=charge.size):
            raise _Busy
        charge.set(COPIES * received + more)

    async def _aside(self, work: Callable[[Signal, bytes], _T], signal: Signal, body: bytes) -> _T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "relay")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, signal, body)

    def _busy(self, signal: Signal) -> Outcome:
        self._gateway.undelivered(signal, "busy")
        self._gateway.counts.refused["busy"] += 1
        delay_s = self._overload.refused(time.monotonic())
        return try_again("the sidecar has too many requests under way; try again", delay_s)

    def _refused(self, signal: Signal, reason: str, code: int, why: str) -> Outcome:
        self._gateway.undelivered(signal, reason)
        self._gateway.counts.refused[reason] += 1
        return Outcome.failed(code, why)

