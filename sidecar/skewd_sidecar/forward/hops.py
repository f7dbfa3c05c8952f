"""Several endpoints as one: a body goes to one of them, to another if that fails, and again after a pause.

Retrying here hides a restart of a receiver from exporters that would drop what they hold, and moves work to another
endpoint without their noticing. But whoever waits here holds memory, so it is for a blink only: within the exporter's
own time and ``retry_s``, never beyond. Then the exporter is told to try again, which it knows how to do with its own
buffer, and when: what the receiver asked for, or the end of our pause. Who decides is ``retry.py``; this does it.

Limits: at most ``ATTEMPTS_MAX`` attempts for a body (or one for each endpoint, if those are more).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence

from skewd.quiet import QuietLog
from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.counters import Counters, EndpointState
from skewd_sidecar.forward.retry import Balance, Endpoints, retryable, told_to_wait_s, try_again
from skewd_sidecar.forward.transport import Forwarder
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome

ATTEMPTS_MAX = 5
RETRY_S = 1.0
SIZE_LEARNT_MIN_BYTES = 64 * 1024
_FUTILE_S = 0.01


class Hops:
    """The next hops of one signal. Made within the running event loop.

    Args:
        signal: what goes there.
        endpoints: where, and how; at least one.
        balance: how they share the work.
        retry_s: how long a body may be tried again.
        random: evenly distributed in [0, 1).
        counters: where attempts are counted.

    Attributes:
        max_bytes: the largest body they take, as configured or as they said; 0 for no limit known.
        timeout_s: how long one of them may take.
    """

    def __init__(
        self,
        signal: Signal,
        endpoints: Sequence[tuple[Destination, Forwarder]],
        balance: Balance,
        retry_s: float,
        random: Callable[[], float],
        counters: Counters,
    ) -> None:
        self._signal = signal
        self._destinations = [destination for destination, _ in endpoints]
        self._forwarders = [forwarder for _, forwarder in endpoints]
        self._choice = Endpoints(len(endpoints), balance, random)
        self._retry_s = retry_s
        self._counters = counters
        self._clock = asyncio.get_running_loop().time
        self._back = asyncio.Event()
        self._attempts_max = max(ATTEMPTS_MAX, len(endpoints))
        self._last_failure: Outcome | None = None
        self._log = QuietLog(__name__)
        self.max_bytes = min((d.max_bytes for d in self._destinations if d.max_bytes), default=0)
        self.timeout_s = max(d.timeout_s for d in self._destinations)

    async def send(self, body: bytes, deadline_s: float, metadata: Metadata) -> Outcome:
        """How the body ended, after as many attempts as it took. Does not raise.

        Args:
            body: a serialized export request.
            deadline_s: when, on the loop's clock, nobody waits for it any more.
            metadata: sent beside the endpoint's own headers.
        """
        # An attempt that has no time left would only replace a failure that says something by one that does not.
        retry_until_s = min(deadline_s - _FUTILE_S, self._clock() + self._retry_s)
        last: Outcome | None = None
        attempts = 0
        while True:
            now_s = self._clock()
            number = self._choice.choose(now_s)
            if number is None:
                at_s = self._choice.next_at_s()
                if at_s >= retry_until_s:
                    return last if last is not None else self._unasked(at_s - now_s)
                await self._pause(at_s - now_s)
                continue
            if last is not None:
                self._counters.retries[self._signal] += 1
            last = await self._attempt(number, body, deadline_s - now_s, metadata)
            attempts += 1
            if not retryable(last) or attempts >= self._attempts_max or self._clock() >= retry_until_s:
                return last

    async def _attempt(self, number: int, body: bytes, remaining_s: float, metadata: Metadata) -> Outcome:
        destination = self._destinations[number]
        if remaining_s <= 0:
            return self._unasked(1)
        outcome = await self._forwarders[number].send(body, remaining_s, metadata)
        if not retryable(outcome):
            if self._choice.answered(number):
                self._log.info("a next hop answers again", about=number, signal=self._signal, next_hop=destination)
            self._back.set()
            return outcome
        self._last_failure = outcome
        told_s = told_to_wait_s(outcome)
        self._choice.failed(number, self._clock(), told_s)
        # Said again each minute for as long as it lasts: the first may have been kept back.
        self._log.warning(
            "a next hop takes nothing, exporters are told to try again",
            about=number,
            signal=self._signal,
            next_hop=destination,
            why=outcome.message,
        )
        return outcome

    def learn_max_bytes(self, max_bytes: int) -> None:
        """A receiver said, or showed, that it takes no more than this. Below 64 KiB it is not believed of all."""
        learnt = max(max_bytes, SIZE_LEARNT_MIN_BYTES)
        if not self.max_bytes or learnt < self.max_bytes:
            self.max_bytes = learnt
            self._log.info(
                "the next hop does not take requests of any size, larger ones are split",
                signal=self._signal,
                max_bytes=learnt,
            )

    def states(self) -> list[EndpointState]:
        """Each endpoint, and whether it answered last."""
        return [
            EndpointState(self._signal.value, str(destination), not self._choice.away(number))
            for number, destination in enumerate(self._destinations)
        ]

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than until an endpoint is known to be back."""
        self._back.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()

    def _unasked(self, seconds: float) -> Outcome:
        """What exporters are told without asking anybody: what the last one was told, and when to come again."""
        message = "there was no time to ask a next hop" if self._last_failure is None else self._last_failure.message
        return try_again(message, math.ceil(seconds), self._last_failure)

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(forwarder.close() for forwarder in self._forwarders))
