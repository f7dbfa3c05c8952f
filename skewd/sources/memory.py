"""Is what a time daemon remembers from before the clock it remembers was stepped?

The problem: chronyd, ptp4l and the kernel do not measure when they are asked. They say what they measured last, as a
correction of a clock that has run on since. Somebody else steps that clock (a guest agent, ``date``, a resume), and for
as long as one poll lasts, up to 17 minutes, they go on correcting the clock that it was before.

The insight: each of them says *when* it measured (:class:`Memory`, ``reference_ns``), on the very clock that was
stepped. So a report counts again only when that instant is later than the step. It is carried to the raw clock on two
assumptions that exclude each other: it was read on the clock as it is now, and then it must not lie before the step; or
on the clock as it was, and then it lies between the last report that was seen and the step. Only where the second is
impossible is it believed. Where both are possible the next measurement is waited for, which was made after a question
that was asked after the step. A daemon's own step (``makestep``) passes at once: its report is new, and on the clock as
it is now.

That is not all. chronyd does not report one measurement but a line through its last ones, up to 64. After a step of 2 s
its first new report is wrong by 0.75 s, the fifth by 0.8 s in the other direction, each beyond the error that it
claims; the sixth is right (chronyd 4.3, poll 4 s). A line through points that differ by the step is off by that much at
its end, and hardly by twice as much one poll later: so until a daemon of this kind has settled, twice the step is added
to its error. It has settled when it was emptied ("not synchronized"; ``chronyc reset sources`` does that, and chronyd
itself after a jump of 10 s), after ``SETTLED_AFTER`` measurements, or when its error is as small as before a step that
would have made it many times as large.

A step of any size is told by the kernel (``hostclock.SetWatch``); one that nobody tells is found where the clock moved
by more than it can be slewed (:class:`Steps`), also from the last reading of the process before this one to the first
of this one.

Limits: without the kernel's word a step is noticed from 1000 ppm of the time between two looks on. What was stepped
before this process began can't be known where no earlier one has kept a reading (``resume.py``). That a mixture is off
by twice the step at most is seen, and not proven; where a report contradicts what was known before, it is doubted
besides (``utc.py``). Pure, but for the readings it asks for.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from skewd.clock import WallSample, Watch
from skewd.sources.claim import Refused
from skewd.wall import passage, rates_ppb

STEPS_MAX = 16
"""Steps remembered; of more that come before any new measurement the oldest are forgotten."""

LATE_NS = 2_000_000_000
"""A daemon reports a measurement, and steps the clock by it, this long after it at most."""

SETTLED_AFTER = 8
"""Measurements after which nothing from before a step is in a daemon's estimate any more; chronyd 4 needs six."""

_LARGE = 16
_WIDE_NS = 20_000
_SAME_NS = 5_000_000
"""chronyd corrects the instant it remembers when it slews; two that are this near are one measurement."""


class FromBefore(Refused):
    """A report of the clock as it was before a step. It is no failure of whoever gave it, and passes."""


class Step(NamedTuple):
    """A clock against raw, before and after it was stepped.

    ``disturbed``: raw itself was not continuous in between, so nobody knows by how much.
    """

    before: WallSample
    after: WallSample
    disturbed: bool = False

    @property
    def size_ns(self) -> int:
        """By how much it was stepped, at most."""
        return (self.after.wall_minus_raw - self.before.wall_minus_raw).farthest(0)


class Judgement(NamedTuple):
    """What a report is worth.

    Attributes:
        believed: it is of the clock as it is now.
        wrong_ns: by how much it may be wrong beyond what it says, as older measurements are mixed into it.
        settled: nothing of before a step is in it.
    """

    believed: bool
    wrong_ns: int = 0
    settled: bool = True


class Sampled(Protocol):
    """A clock that can be read against raw."""

    def sample(self) -> WallSample: ...

    def rate_ppb(self) -> int: ...


class Steps:
    """The steps of one clock.

    Args:
        clock: is read against raw.
        watch: tells when it is set; None where nobody does.
        before: a reading by the process before this one, on the same raw clock.
    """

    def __init__(self, clock: Sampled, watch: Watch | None = None, before: WallSample | None = None) -> None:
        self._clock, self._watch = clock, watch
        self.latest, self._rate_ppb = clock.sample(), clock.rate_ppb()
        """The newest reading."""
        self.kept: deque[Step] = deque(maxlen=STEPS_MAX)
        if before is not None and passage(before, self.latest, rates_ppb(self._rate_ppb, self._rate_ppb)) is None:
            self.kept.append(Step(before, self.latest))
        self.inherited = len(self.kept)
        """How many of them were made while no process looked: nobody here has heard anything since."""
        self.count = self.inherited
        """How many there were."""

    def look(self, *, set_since_ns: int | None = None, disturbed: bool = False) -> bool:
        """Reads the clock; True when it was stepped since the last look.

        Args:
            set_since_ns: it surely was set since that raw instant, as somebody else noticed.
            disturbed: the raw clock was not continuous (suspend).

        Raises:
            OSError: it can't be read.
        """
        # Asked first: a clock that is set after this question is found at the next look, as it should be.
        was_set = (self._watch is not None and self._watch.again()) or disturbed
        sample, rate = self._clock.sample(), self._clock.rate_ppb()
        stepped = was_set or passage(self.latest, sample, rates_ppb(self._rate_ppb, rate)) is None
        if set_since_ns is not None and not stepped:
            stepped = not self.kept or self.kept[-1].after.raw_ns < set_since_ns  # or it is known already
        if stepped:
            self.count += 1
            self.kept.append(Step(self.latest, sample, disturbed))
        if stepped or sample.wall_minus_raw.width <= max(_WIDE_NS, self.latest.wall_minus_raw.width):
            self.latest, self._rate_ppb = sample, rate
        return stepped

    def close(self) -> None:
        """Closes the watch."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def handled_by_all(steps: Steps) -> int:
    """How many steps need not concern who asks for the first time: all, unless they were before this process."""
    return 0 if steps.count == steps.inherited else steps.count


class Memory:
    """Judges the reports of one daemon about a clock.

    Args:
        steps: those of that clock; looked at just before each report is judged.
        mixes: whether a report rests on many measurements, of before and after a step.
    """

    def __init__(self, steps: Steps, *, mixes: bool = False) -> None:
        self._steps, self._mixes = steps, mixes
        self._handled = self._judged = handled_by_all(steps)
        self._seen: tuple[int, int] | None = None
        self._since: int | None = None
        self._mixed: list[Step] = []
        self._spread_ns: int | None = None
        self._counted, self._counted_ns = 0, 0
        self._emptied = False

    @property
    def waiting(self) -> bool:
        """Whether the clock was stepped, and no report from after that has come yet."""
        return self._handled != self._steps.count

    def emptied(self) -> None:
        """The daemon says that it follows nothing: what it says after that, it has measured after that."""
        self._note_steps()
        self._emptied = self.waiting or bool(self._mixed)

    def judge(self, reference_ns: int, slack_ns: int, spread_ns: int = 0) -> Judgement:
        """What a report is worth that was just given.

        Args:
            reference_ns: when what it says was measured, on that clock.
            slack_ns: by how much this may differ from what the clock showed then.
            spread_ns: its own error, by its own account.
        """
        self._note_steps()
        believed = not self.waiting or self._emptied or self._is_new(reference_ns, slack_ns)
        self._seen = reference_ns, self._steps.latest.raw_ns
        if not believed:
            return Judgement(False)
        self._handled, self._since = self._steps.count, None
        if abs(reference_ns - self._counted_ns) > _SAME_NS:
            self._counted, self._counted_ns = self._counted + 1, reference_ns
        if self._mixed and self._is_settled(spread_ns):
            self._mixed.clear()
        self._emptied = False
        if self._mixed:
            return Judgement(True, 2 * sum(step.size_ns for step in self._mixed), settled=False)
        self._spread_ns = spread_ns
        return Judgement(True)

    def _note_steps(self) -> None:
        """What was stepped since the last report will be mixed into the next ones."""
        if self._judged != self._steps.count:
            self._mixed = [*self._mixed, *self._pending(self._judged)][-STEPS_MAX:]
            self._counted, self._since, self._emptied = 0, None, False
            self._judged = self._steps.count

    def _pending(self, since: int) -> list[Step]:
        return list(self._steps.kept)[-(self._steps.count - since) :]

    def _is_settled(self, spread_ns: int) -> bool:
        """Whether what a daemon has measured before the steps is in its reports no more."""
        if not self._mixes or self._emptied or self._counted >= SETTLED_AFTER:
            return True
        if self._spread_ns is None:
            return not self._steps.inherited  # nothing was measured before the steps, as far as is known here
        # A mixture is as uncertain as a good part of the step, and the daemon sees that.
        large = all(not step.disturbed and step.size_ns >= _LARGE * self._spread_ns for step in self._mixed)
        return large and spread_ns <= 2 * self._spread_ns

    def _is_new(self, reference_ns: int, slack_ns: int) -> bool:
        if self._since is not None:
            # The report of before was given after the step: another one has been measured since.
            return abs(reference_ns - self._since) > _SAME_NS
        if self._surely_new(reference_ns, slack_ns):
            return True
        self._since = reference_ns
        return False

    def _surely_new(self, reference_ns: int, slack_ns: int) -> bool:
        seen_ns, seen_raw_ns = self._seen or (None, None)
        if seen_ns is not None and abs(reference_ns - seen_ns) <= _SAME_NS:
            return False
        now = self._steps.latest
        pending = self._pending(self._handled)
        earliest = reference_ns - now.wall_minus_raw.hi - slack_ns
        latest = reference_ns - now.wall_minus_raw.lo + slack_ns
        if latest < pending[-1].before.raw_ns - LATE_NS or earliest > now.raw_ns:
            return False
        for step in pending:
            first = reference_ns - step.before.wall_minus_raw.hi - slack_ns
            last = reference_ns - step.before.wall_minus_raw.lo + slack_ns
            if first <= step.after.raw_ns and (seen_raw_ns is None or last >= seen_raw_ns - LATE_NS):
                return False
        return True
