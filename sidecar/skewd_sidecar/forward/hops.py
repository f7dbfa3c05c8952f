"""Several endpoints as one: a body goes to one of them, to another if that fails, and again after a pause.

Retrying here hides a restart of a receiver from exporters that would drop what they hold, and moves work to another
endpoint without their noticing. But whoever waits here holds memory, so it is for a blink only: within the exporter's
own time and ``retry_s``, never beyond. Then the exporter is told to try again, which it knows how to do with its own
buffer, and when: what the receiver asked for, or the end of our pause. Who decides is ``retry.py``; this does it.

An endpoint that hangs must not cost a body all its time. So where another endpoint could take the body, an attempt
that hears nothing is given up after ``attempt_s``, and at half of the exporter's time at the latest; and the body goes
to the other one, as long as there is time at all. One that hung may have taken the body all the same: it may arrive
twice. An endpoint that failed and is not alone is asked by an empty request, beside the traffic, until something comes
back from it; no exporter waits for that. Kafka's brokers are not asked so: an empty request would be a message.

Limits: at most ``ATTEMPTS_MAX`` attempts for a body (or one for each endpoint, if those are more). An empty request has
``PROBE_TIMEOUT_S``, and no metadata but the endpoint's own: an endpoint that refuses it is there. One that answers
empty requests and hangs on all others is believed each time, and costs some bodies ``attempt_s`` each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import Callable, Sequence

from skewd.quiet import QuietLog
from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.counters import Counters, EndpointState
from skewd_sidecar.forward.retry import (
    Attempt,
    Balance,
    Endpoints,
    patience_s,
    retryable,
    tenant_of,
    try_again,
)
from skewd_sidecar.forward.transport import Forwarder
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.hop import HOP_HEADER
from skewd_sidecar.outcome import Outcome

ATTEMPTS_MAX = 5
RETRY_S = 1.0
ATTEMPT_S = 2.0
PROBE_TIMEOUT_S = 2.0
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
        attempt_s: how long an attempt may hear nothing while another endpoint could take the body.

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
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        self._signal = signal
        self._destinations = [destination for destination, _ in endpoints]
        self._forwarders = [forwarder for _, forwarder in endpoints]
        several = len(endpoints) > 1
        self._choice = Endpoints(
            len(endpoints), balance, random, [several and d.protocol != "kafka" for d in self._destinations]
        )
        self._several = several
        self._attempt_s = attempt_s
        # What an endpoint's own header overrides tells nobody who sends.
        self._beside = {HOP_HEADER}.union(
            set.intersection(*({name for name, _ in each.headers} for each in self._destinations))
        )
        self._key = secrets.token_bytes(16)
        self._numbers = itertools.count()
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._closed = False
        self._retry_s = retry_s
        self._counters = counters
        self._clock = asyncio.get_running_loop().time
        self._back = asyncio.Event()
        self._attempts_max = max(ATTEMPTS_MAX, len(endpoints))
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
        last_s = deadline_s - _FUTILE_S
        retry_until_s = min(last_s, self._clock() + self._retry_s)
        elsewhere_until_s = last_s if self._retry_s > 0 else retry_until_s
        tenant = tenant_of(metadata, self._beside, self._key)
        last: Outcome | None = None
        attempts = 0
        number = -1
        tried: set[int] = set()
        while True:
            now_s = self._clock()
            again = last is None or now_s < retry_until_s
            attempt = self._choice.choose(now_s, tenant, tried, again=again)
            if attempt is None and last is not None and not last.heard and self._choice.other(number, tenant, now_s):
                # It hung where it was last, and where it hung before that something came back since.
                attempt = self._choice.choose(now_s, tenant, (number,), again=False)
            if attempt is None:
                at_s, why = self._choice.resting(tenant)
                if at_s >= retry_until_s or not again:
                    return last if last is not None else self._unasked(at_s - now_s, why)
                await self._pause(at_s - now_s)
                continue
            if last is not None:
                self._counters.retries[self._signal] += 1
            last = await self._attempt(attempt, body, deadline_s, metadata)
            attempts += 1
            number = attempt.number
            tried.add(number)
            if not retryable(last) or attempts >= self._attempts_max or self._clock() >= elsewhere_until_s:
                return last

    async def _attempt(self, attempt: Attempt, body: bytes, deadline_s: float, metadata: Metadata) -> Outcome:
        number = attempt.number
        destination = self._destinations[number]
        remaining_s = deadline_s - attempt.began_s
        if remaining_s <= 0:
            return self._unasked(1, None)
        if self._several:
            outcome = await self._send_watched(attempt, body, remaining_s, metadata)
        else:
            outcome = await self._forwarders[number].send(body, remaining_s, metadata)
        now_s = self._clock()
        if not retryable(outcome):
            if self._choice.taken(attempt, now_s):
                self._log.info("a next hop answers again", about=number, signal=self._signal, next_hop=destination)
            self._back.set()
            return outcome
        of_all = self._choice.failed(attempt, now_s, outcome)
        # Said again each minute for as long as it lasts: the first may have been kept back. Whose metadata it was is
        # not said, but by a word that is the same for the same sender.
        self._log.warning(
            "a next hop takes nothing, exporters are told to try again",
            about=number,
            signal=self._signal,
            next_hop=destination,
            why=outcome.message,
            sender="any" if of_all else attempt.tenant.hex()[:8] or "any",
        )
        if of_all:
            self._prove(number)
        return outcome

    async def _send_watched(self, attempt: Attempt, body: bytes, remaining_s: float, metadata: Metadata) -> Outcome:
        """One attempt, given up where it hears nothing while another endpoint could take the body."""
        key = next(self._numbers)
        self._choice.begun(attempt, key)
        watch = _Watch(self, attempt, remaining_s)
        try:
            async with watch.limit:
                return await self._forwarders[attempt.number].send(body, remaining_s, metadata)
        except TimeoutError:
            waited_s = self._clock() - attempt.began_s
            return Outcome.unheard(f"{self._destinations[attempt.number]}: no answer within {waited_s:.3g} s")
        finally:
            watch.end()
            self._choice.ended(attempt, key)

    def look(self, attempt: Attempt, remaining_s: float) -> float | None:
        """When an attempt has to be looked at again; None to give it up now."""
        now_s = self._clock()
        if self._retry_s <= 0:
            return attempt.began_s + remaining_s
        until_s = attempt.began_s + patience_s(remaining_s, self._attempt_s, self._choice.answering(attempt))
        if now_s < until_s:
            return until_s
        if self._choice.other(attempt.number, attempt.tenant, now_s):
            return None
        return now_s + self._attempt_s / 4

    def _prove(self, number: int) -> None:
        """Sees to it that an endpoint that failed is asked until something comes back from it."""
        probed = self._several and self._destinations[number].protocol != "kafka"
        if probed and number not in self._probes and not self._closed:
            task = asyncio.create_task(self._ask(number))
            self._probes[number] = task
            task.add_done_callback(lambda _: self._probes.pop(number, None))

    async def _ask(self, number: int) -> None:
        destination = self._destinations[number]
        while (until_s := self._choice.away_until_s(number)) is not None:
            now_s = self._clock()
            if until_s > now_s:
                await asyncio.sleep(until_s - now_s)
                continue
            probe = self._choice.probe(number, now_s)
            outcome = await self._forwarders[number].send(b"", PROBE_TIMEOUT_S, ())
            if outcome.heard:
                self._choice.proven(number, self._clock())
                self._log.info("a next hop answers again", about=number, signal=self._signal, next_hop=destination)
                self._back.set()
            else:
                self._choice.failed(probe, self._clock(), outcome)

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
            EndpointState(self._signal.value, str(destination), self._choice.up(number))
            for number, destination in enumerate(self._destinations)
        ]

    async def _pause(self, seconds: float) -> None:
        """Waits, but not longer than until an endpoint is known to be back."""
        self._back.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()

    def _unasked(self, seconds: float, why: Outcome | None) -> Outcome:
        """What exporters are told without asking anybody: what is known of the endpoint, and when to come again."""
        message = "there was no time to ask a next hop" if why is None else why.message
        return try_again(message, math.ceil(seconds), why)

    async def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        probes = list(self._probes.values())
        for each in probes:
            each.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        await asyncio.gather(*(forwarder.close() for forwarder in self._forwarders))


class _Watch:
    """Ends what it is the limit of when :meth:`Hops.look` says so."""

    def __init__(self, hops: Hops, attempt: Attempt, remaining_s: float) -> None:
        self.limit = asyncio.timeout(None)
        self._hops = hops
        self._attempt = attempt
        self._remaining_s = remaining_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        at_s = self._hops.look(self._attempt, self._remaining_s)
        if at_s is None:
            self._timer = None
            self.limit.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_at(at_s, self._look)

    def end(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
