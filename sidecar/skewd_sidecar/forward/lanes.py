"""One signal's way out: requests gather, go out together, and each of them gets its own answer.

An exporter's acknowledgement is the next hop's acknowledgement of the body that its request was part of: nothing is
acknowledged that was not taken. Who goes with whom is ``coalesce.py``'s business, which endpoint ``hops.py``'s. This
is the part between: it makes bodies, and it sees to it that requests that were sent together end apart:

- Taken, with everything: each is told so. Rejected in part: ``responses.py``; and for ``SINGLE_S`` requests go one by
  one, so that each exporter learns what became of its own.
- Not now: all are told to try again.
- Refused for good: the body is divided in halves until the request that is the reason is alone. Only that one is
  refused; it is counted and kept as a dead letter. Refusals that concern no content (credentials, no such service)
  are everybody's at once.
- Too large: the same, and a single request is split (``split.py``); what the receiver said of its limit is remembered.
  Refused parts of a request whose other parts were taken are a partial success.

A request leaves when its exporter's time is over or it hangs up; the body goes on as long as anybody waits for it, and
its memory is counted until it ends (``held_bytes``).

Limits: a split request of which a part fails for now is repeated whole by its exporter: parts may arrive twice. So
may a request whose exporter gave up while it was under way. Delivery is at least once, as it is without a sidecar.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

from skewd.quiet import QuietLog
from skewd_sidecar.forward import responses
from skewd_sidecar.forward.coalesce import Gathering, Limits
from skewd_sidecar.forward.counters import Counters
from skewd_sidecar.forward.dead_letters import DeadLetters
from skewd_sidecar.forward.hops import Hops
from skewd_sidecar.forward.retry import concerns_content, retryable, size_limit, too_large, try_again
from skewd_sidecar.forward.split import NotARequest, mergeable, records, split
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INVALID_ARGUMENT, Outcome, own_fault

SINGLE_S = 60.0
IDLE_LANES_MAX = 64
PART_MIN_BYTES = 1024
_GRACE_S = 0.1
_STOPPING = "the sidecar is stopping"


class _Waiting:
    """A request and its answer; the future is of who waits for it elsewhere than where it is sent."""

    __slots__ = ("body", "deadline_s", "future", "outcome", "since_s")

    def __init__(
        self, body: bytes, since_s: float, deadline_s: float, future: asyncio.Future[Outcome] | None = None
    ) -> None:
        self.body = body
        self.since_s = since_s
        self.deadline_s = deadline_s
        self.future = future
        self.outcome: Outcome | None = None

    @property
    def done(self) -> bool:
        """Whether it has its answer, or nobody waits for one."""
        return self.outcome is not None or (self.future is not None and self.future.done())

    def answer(self, outcome: Outcome) -> None:
        if not self.done:
            self.outcome = outcome
            if self.future is not None:
                self.future.set_result(outcome)


class Lanes:
    """The way out of one signal. Made within the running event loop.

    Attributes:
        held_bytes: bodies that wait or are under way.
    """

    def __init__(
        self,
        signal: Signal,
        hops: Hops,
        counters: Counters,
        letters: DeadLetters | None = None,
        limits: Limits | None = None,
        joins: bool = True,
    ) -> None:
        self.signal = signal
        self.hops = hops
        self.counters = counters
        self.letters = letters
        self.limits = limits or Limits()
        self._hold_below_the_next_hops_limit()
        self.joins = joins and signal is not Signal.PROFILES
        self.held_bytes = 0
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.log = QuietLog(__name__)
        self.alone: set[asyncio.Task[Any]] = set()
        """Who sends by itself, of all lanes."""
        self._lanes: dict[Metadata, _Lane] = {}

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata) -> Outcome:
        """What became of one request. Does not raise for what others do."""
        if self.closed:
            return try_again(_STOPPING, 1)
        now_s = self.loop.time()
        waits_s = self.hops.timeout_s if timeout_s is None else timeout_s
        lane = self._lanes.get(metadata)
        if lane is None:
            lane = self._lanes[metadata] = _Lane(self, metadata)
        if lane.goes_alone:
            outcome = await lane.send_alone(_Waiting(body, now_s, now_s + waits_s))
        else:
            outcome = await self._send_with_others(lane, body, now_s, waits_s)
        if outcome.ok:
            self.counters.requests[self.signal] += 1
        return outcome

    async def _send_with_others(self, lane: _Lane, body: bytes, now_s: float, waits_s: float) -> Outcome:
        waiting = _Waiting(body, now_s, now_s + waits_s, self.loop.create_future())
        assert waiting.future is not None
        joinable = self.joins and len(body) <= self.limits.joined_max_bytes and mergeable(body)
        timer = self.loop.call_at(now_s + waits_s + _GRACE_S, self._expire, lane, waiting, waits_s)
        lane.add(waiting, joinable, now_s)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            lane.left()
            raise
        finally:
            timer.cancel()

    def _expire(self, lane: _Lane, waiting: _Waiting, waits_s: float) -> None:
        self.counters.expired[self.signal] += 1
        waiting.answer(try_again(f"{self.signal}: not taken within {waits_s:g} s", 1))
        lane.left()

    def learn(self, outcome: Outcome, size_bytes: int) -> int:
        """How large bodies may be after one of this size was too large; remembered."""
        told = size_limit(outcome)
        max_bytes = told if told and told < size_bytes else size_bytes // 2
        self.hops.learn_max_bytes(max_bytes)
        self._hold_below_the_next_hops_limit()
        return max(max_bytes, PART_MIN_BYTES)

    def _hold_below_the_next_hops_limit(self) -> None:
        if self.hops.max_bytes:
            self.limits.joined_max_bytes = min(self.limits.joined_max_bytes, self.hops.max_bytes)

    def forget(self, lane: _Lane) -> None:
        """A lane in which nothing waits or moves; a few are kept, since they know how many to expect."""
        if len(self._lanes) > IDLE_LANES_MAX and self._lanes.get(lane.metadata) is lane:
            del self._lanes[lane.metadata]

    async def close(self) -> None:
        """Ends what is under way (exporters are told to try again) and closes the connections."""
        self.closed = True
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.cancel()
        for task in self.alone:
            task.cancel(_STOPPING)
        await asyncio.gather(*(task for lane in lanes for task in lane.tasks), return_exceptions=True)
        await self.hops.close()


class _Lane:
    """Requests of one signal with identical metadata."""

    def __init__(self, lanes: Lanes, metadata: Metadata) -> None:
        self.metadata = metadata
        self._lanes = lanes
        self._gathering: Gathering[_Waiting] = Gathering(lanes.limits)
        self.tasks: dict[asyncio.Task[None], list[_Waiting]] = {}
        self._single_until_s = -math.inf
        self._alone = 0  # under way in the task of who waits for it
        self._turn: asyncio.Handle | None = None
        self._soon = False

    @property
    def _under_way(self) -> int:
        return len(self.tasks) + self._alone

    @property
    def goes_alone(self) -> bool:
        """Whether nothing is under way, nothing waits, and no more than one is expected."""
        return not self._alone and not self.tasks and self._gathering.expects_one

    async def send_alone(self, waiting: _Waiting) -> Outcome:
        """Sends it here and now: without company there is nothing to hand over, and a task costs more than the rest."""
        lanes = self._lanes
        lanes.held_bytes += len(waiting.body)
        self._alone += 1
        task = asyncio.current_task()
        if task is not None:
            lanes.alone.add(task)
        try:
            await self._deliver([waiting])
        except asyncio.CancelledError as cancelled:
            if task is not None and cancelled.args == (_STOPPING,):
                task.uncancel()
            elif task is None or task.cancelling():
                raise  # who waits hung up; else a connection was closed under us
            waiting.answer(try_again(_STOPPING, 1))
        except Exception as error:
            waiting.answer(self._failed(error))
        finally:
            if task is not None:
                lanes.alone.discard(task)
            self._alone -= 1
            lanes.held_bytes -= len(waiting.body)
            self._idle()
        assert waiting.outcome is not None, "_deliver sees to that"
        return waiting.outcome

    def _failed(self, error: BaseException) -> Outcome:
        self._lanes.log.error("forwarding failed", signal=self._lanes.signal, exc_info=error)
        return own_fault()

    def _idle(self) -> None:
        """Something ended: what waits may go."""
        if not self.tasks and not self._alone:
            self._gathering.idle(self._lanes.loop.time())
        if not self._lanes.closed:
            self._go()

    def add(self, waiting: _Waiting, joinable: bool, now_s: float) -> None:
        lanes = self._lanes
        lanes.held_bytes += len(waiting.body)
        self._gathering.add(waiting, len(waiting.body), joinable, now_s)
        if self._gathering.due(self._under_way, now_s):
            # Not here: what the loop has at hand already goes along.
            self._schedule(0)
        elif self._turn is None:
            self._schedule(self._gathering.due_in_s(self._under_way, now_s))

    def left(self) -> None:
        """Somebody waits no more: a body that nobody waits for is not worth sending."""
        for task, batch in self.tasks.items():
            if all(each.done for each in batch):
                task.cancel()

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        while batch := self._gathering.take():
            self._end(batch)

    def _schedule(self, delay_s: float | None) -> None:
        """Makes the next turn come after this time; None: nothing is due by time. A turn that comes at once stays."""
        if self._soon:
            return
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if delay_s is None:
            return
        self._soon = delay_s == 0
        loop = self._lanes.loop
        self._turn = loop.call_soon(self._go) if self._soon else loop.call_later(delay_s, self._go)

    def _go(self) -> None:
        if self._turn is not None:
            self._turn.cancel()  # something ended before its time
        self._turn, self._soon = None, False
        lanes = self._lanes
        now_s = lanes.loop.time()
        single = now_s < self._single_until_s
        while self._gathering.due(self._under_way, now_s):
            batch = self._gathering.take(single)
            live = [each for each in batch if not each.done]
            if live:
                lanes.counters.gathered_s[lanes.signal] += sum(now_s - each.since_s for each in live)
                task = lanes.loop.create_task(self._deliver(live))
                self.tasks[task] = live
                task.add_done_callback(self._ended)
            if len(live) < len(batch):
                lanes.held_bytes -= sum(len(each.body) for each in batch if each.done)
        if not self._under_way and not self._gathering:
            lanes.forget(self)
        else:
            self._schedule(self._gathering.due_in_s(self._under_way, now_s))

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self.tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        self._end(batch, None if error is None else self._failed(error))
        self._idle()

    def _end(self, batch: list[_Waiting], outcome: Outcome | None = None) -> None:
        """Nothing of them is held any more; who has no answer by now is told to try again."""
        for each in batch:
            self._lanes.held_bytes -= len(each.body)
            if not each.done:
                each.answer(outcome or try_again(_STOPPING, 1))

    # -- one body, or several

    async def _deliver(self, batch: list[_Waiting]) -> None:
        """Sees to it that each of them has an answer."""
        max_bytes = self._lanes.hops.max_bytes
        if len(batch) == 1 and max_bytes and len(batch[0].body) > max_bytes:
            await self._deliver_in_parts(batch[0], max_bytes)
            return
        body = batch[0].body if len(batch) == 1 else b"".join([each.body for each in batch])
        outcome = await self._send(body, batch)
        if outcome.ok:
            if len(batch) > 1 and outcome.body:
                told, rejected = responses.of_joined(outcome.body, len(batch))
                outcome = Outcome.delivered(told)
                if rejected:
                    self._single_until_s = self._lanes.loop.time() + SINGLE_S
            for each in batch:
                each.answer(outcome)
        elif retryable(outcome):
            for each in batch:
                each.answer(outcome)
        elif len(batch) > 1 and concerns_content(outcome):
            if too_large(outcome):
                self._lanes.learn(outcome, len(body))
            del body
            self._lanes.counters.splits[self._lanes.signal] += 1
            half = len(batch) // 2
            await self._deliver(batch[:half])
            await self._deliver(batch[half:])
        elif too_large(outcome):
            await self._deliver_in_parts(batch[0], self._lanes.learn(outcome, len(body)))
        else:
            for each in batch:
                await self._refuse(each, outcome)

    async def _deliver_in_parts(self, waiting: _Waiting, max_bytes: int) -> None:
        signal, counters = self._lanes.signal, self._lanes.counters
        try:
            parts = deque(split(waiting.body, max_bytes))
        except NotARequest as error:
            await self._refuse(waiting, Outcome.failed(INVALID_ARGUMENT, f"too large as it is, and {error}"))
            return
        counters.splits[signal] += 1
        taken: list[bytes] = []
        refused: list[tuple[bytes, Outcome]] = []
        while parts:
            part = parts.popleft()
            # A single record larger than that goes too: whether it is taken is the next hop's word.
            outcome = await self._send(part, [waiting])
            if outcome.ok:
                taken.append(outcome.body)
            elif retryable(outcome):
                waiting.answer(outcome)
                return
            elif too_large(outcome) and records(part) > 1:
                max_bytes = min(self._lanes.learn(outcome, len(part)), len(part) - 1)
                parts.extendleft(reversed(split(part, max_bytes)))
            else:
                refused.append((part, outcome))
        if not taken:
            await self._refuse(waiting, refused[0][1])
            return
        for part, outcome in refused:
            await self._keep(part, outcome)
        lost = sum(records(part) for part, _ in refused)
        why = f"part of the request was refused: {refused[0][1].message}" if refused else ""
        waiting.answer(Outcome.delivered(responses.of_parts(taken, lost, why)))

    async def _send(self, body: bytes, batch: list[_Waiting]) -> Outcome:
        lanes = self._lanes
        outcome = await lanes.hops.send(body, max(each.deadline_s for each in batch), self.metadata)
        if outcome.ok:
            lanes.counters.batches[lanes.signal] += 1
            lanes.counters.bytes[lanes.signal] += len(body)
        return outcome

    async def _refuse(self, waiting: _Waiting, outcome: Outcome) -> None:
        if not waiting.done:
            await self._keep(waiting.body, outcome)
        waiting.answer(outcome)

    async def _keep(self, body: bytes, outcome: Outcome) -> None:
        self._lanes.counters.refused[self._lanes.signal] += 1
        if self._lanes.letters is not None:
            await self._lanes.letters.keep(self._lanes.signal, body, self.metadata, outcome)
