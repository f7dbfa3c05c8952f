"""What this node's clock was worth at a past instant, by its own stamps.

A span is exported seconds after it was stamped, and its stamp is a wall reading: the question is never "what is the
offset?" but "what was it when this clock read *that*?". The answer is kept as a row of **knots**. A knot says, for
one instant: the bound on reference - wall, how fast that may move from there (drift and wander), and the applied
offset with its slope, which rules from this knot to the next. Between two knots the bound follows forwards from the
first and backwards from the second, and what both allow is the answer. Either way the *first* one's rate is used: it
is kept wide enough for whatever the wall clock does until the second, while a slew may be over by then.

Information that arrived later tightens the past: a knot that is much narrower than the one before it is carried back
from knot to knot, for as far as it makes one of them narrower. After a silence that is half of it.

Knots belong to eras. Within an era the wall clock runs on continuously; between two eras it was stepped, and part
of its readings may have occurred twice (a step back) or never (a step forward). A reading that two eras can claim
gets the hull of both. And since nobody knows how an application takes its stamps (Python's SDK reads the wall clock
at both ends; others anchor a monotonic clock to an earlier wall reading), a reading within ``HULL_AFTER_STEP_NS``
after a step gets the hull with the era before as well, unless the application is known to read the wall.

**What this clock has not shown yet it did not stamp.** A stamp later than the node's own reading is another clock's (a
browser's, another host's), and nothing here measured that one. So whoever asks may say what the clock reads, and the
newest era then claims no reading later than that, but for ``AHEAD_NS``, and for as much as the bound itself is unsure
of where an application may follow an earlier reading: after a step backwards an anchored one is ahead by the step.
Earlier eras claim what they showed: a stamp of before a step backwards may well lie in the future, and is known.

Limits: ``KNOTS_MAX`` knots and ``SPAN_NS`` of time; older stamps are unsynchronized. Pure: no clock is read here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from skewd.interval import Interval

SPAN_NS = 900_000_000_000
"""How far back times are answered: 15 minutes."""

KNOTS_MAX = 8_192
"""Knots kept at most, over all eras."""

ERAS_MAX = 64
"""Eras kept at most: a clock that steps more often than that in 15 minutes has no past worth telling."""

HULL_AFTER_STEP_NS = 30_000_000_000
"""For this long after a step, stamps of unknown making get the hull of both eras."""

AHEAD_NS = 1_000_000
"""A stamp may be so much later than a reading taken after it: some are rounded up, to as much as a millisecond."""

_UNSETTLED = 2
"""A slew that begins makes this many of the newest knots wider again (``node.py``)."""

_WORTH_BITS = 6
"""A past knot is made narrower where that saves more than a 64th of its width."""

_PPB = 1_000_000_000
_SECOND_NS = 1_000_000_000


class Status(StrEnum):
    """What a bound is worth: contract names of ``clock.status``."""

    SYNCHRONIZED = "synchronized"
    HOLDOVER = "holdover"
    UNSYNCHRONIZED = "unsynchronized"


@dataclass(frozen=True, slots=True)
class Correction:
    """What one stamp deserves: add ``offset_ns`` to reach the reference timescale, right within ``uncertainty_ns``.

    Unsynchronized: offset and uncertainty are 0 and mean nothing, reference is None.
    """

    offset_ns: int
    uncertainty_ns: int
    status: Status
    reference: str | None


UNSYNCHRONIZED = Correction(0, 0, Status.UNSYNCHRONIZED, None)


class CorrectionSource(Protocol):
    """Whoever can tell what a stamp of this node's wall clock deserves."""

    @property
    def node(self) -> str: ...

    def at(self, wall_ns: int) -> Correction:
        """The correction for a reading of this node's wall clock."""
        ...


@dataclass(frozen=True, slots=True)
class Knot:
    """What is known of one instant, and the applied offset that rules from it on.

    Attributes:
        era: counts the wall clock's discontinuities.
        era_begin_wall_ns: the earliest reading the wall clock can have shown in this era.
        previous_end_wall_ns: the latest reading it can have shown in the era before; None in the first.
        raw_ns, wall_ns: the instant on the node's two clocks.
        bound: reference - wall at this instant, ns; None when nothing is known (the knot then says so).
        drift_ppb: d(reference - wall)/d(wall) at this instant.
        wander_ppb_per_s: how fast that may change.
        applied_ns: the applied offset at this instant.
        applied_slope_ppb: its rate from this knot until the next.
        status, reference: contract names.
        epoch: changes (modulo 2^16) when the reference's own clock was stepped, or another one: a bound of one epoch
            says nothing of the next.
    """

    era: int
    era_begin_wall_ns: int
    previous_end_wall_ns: int | None
    raw_ns: int
    wall_ns: int
    bound: Interval | None
    drift_ppb: Interval
    wander_ppb_per_s: int
    applied_ns: int
    applied_slope_ppb: int
    status: Status
    reference: str | None
    epoch: int = 0

    def applied_at(self, wall_ns: int) -> int:
        """The applied offset at ``wall_ns``. Rounded down, which keeps ``t + applied(t)`` monotone."""
        return self.applied_ns + self.applied_slope_ppb * (wall_ns - self.wall_ns) // _PPB

    def bound_at(self, wall_ns: int) -> Interval | None:
        """The bound carried to another instant of the same era, before or after, rounded outward."""
        if self.bound is None:
            return None
        elapsed = wall_ns - self.wall_ns
        return self.bound + carried(elapsed, self.drift_ppb, self.wander_ppb_per_s)


def carried(elapsed_ns: int, drift_ppb: Interval, wander_ppb_per_s: int) -> Interval:
    """How far an offset moves in ``elapsed_ns`` (either sign), outward; exact integers."""
    moves = (drift_ppb.lo * elapsed_ns, drift_ppb.hi * elapsed_ns)
    wander = wander_ppb_per_s * elapsed_ns * elapsed_ns // (2 * _SECOND_NS)
    return Interval((min(moves) - wander) // _PPB, -(-(max(moves) + wander) // _PPB))


def _before(after: Knot, wall_ns: int, ruling: Knot | None) -> Interval | None:
    """The bound of ``after`` carried back to ``wall_ns``, at the rates that the knot which rules there allows."""
    if after.bound is None or ruling is None or ruling.bound is None:
        return after.bound_at(wall_ns)
    return after.bound + carried(wall_ns - after.wall_ns, rates_before(after, ruling), after.wander_ppb_per_s)


def rates_before(after: Knot, ruling: Knot) -> Interval:
    """How fast the bound of ``after`` may have moved on its way from ``ruling``, the knot before it, ppb."""
    wandered = ruling.wander_ppb_per_s * (after.wall_ns - ruling.wall_ns) // _SECOND_NS + 1
    rates = ruling.drift_ppb.widen(wandered)
    return rates if ruling.epoch == after.epoch else rates.hull(after.drift_ppb)


@dataclass(slots=True)
class _Era:
    """One era's knots in order of their wall readings."""

    number: int
    begin_wall_ns: int
    end_wall_ns: int | None = None
    knots: list[Knot] = field(default_factory=list)
    walls: list[int] = field(default_factory=list)

    def at(self, wall_ns: int) -> tuple[Knot, Interval] | None:
        """The knot that rules at ``wall_ns`` and the bound there; None when nothing is known."""
        index = bisect_right(self.walls, wall_ns) - 1
        before = self.knots[index] if index >= 0 else None
        after = self.knots[index + 1] if index + 1 < len(self.knots) else None
        forward = before.bound_at(wall_ns) if before is not None else None
        backward = _before(after, wall_ns, before) if after is not None else None
        if before is not None and after is not None and before.reference != after.reference:
            backward = None  # another timescale's bound says nothing of this one
        if forward is None:
            # Before the first bound of the era, what was learnt later reaches back; the applied offset stands still.
            if after is None or backward is None or before is not None:
                return None
            return after, backward
        assert before is not None
        if backward is None:
            return before, forward
        if after is not None and before.epoch != after.epoch:
            return before, forward.hull(backward)  # the reference changed somewhere between, nobody here knows where
        return before, forward.intersect(backward) or forward.hull(backward)

    def reach_back(self, index: int) -> None:
        """Carries the knot at ``index`` back to those before it, as far as it makes one of them narrower.

        Not one of the newest, which may be taken back yet.
        """
        if not 0 < index < len(self.knots) - _UNSETTLED:
            return
        after = self.knots[index]
        while index > 0:
            index -= 1
            knot = self.knots[index]
            if knot.bound is None or (knot.epoch, knot.reference) != (after.epoch, after.reference):
                return
            bound = _before(after, knot.wall_ns, knot)
            both = bound.intersect(knot.bound) if bound is not None else None
            if both is None or knot.bound.width - both.width <= knot.bound.width >> _WORTH_BITS:
                return
            self.knots[index] = after = replace(knot, bound=both)


class History:
    """The knots of the last 15 minutes and what they say of any instant among them.

    Args:
        max_uncertainty_ns: a wider answer is no answer: unsynchronized.
        stamps: ``"wall"`` when the application is known to read the wall clock for each stamp, else ``"unknown"``.
        knots_max: memory limit.
    """

    def __init__(
        self, *, max_uncertainty_ns: int = 1_000_000_000, stamps: str = "unknown", knots_max: int = KNOTS_MAX
    ) -> None:
        if stamps not in ("wall", "unknown"):
            raise ValueError(f"stamps is {stamps!r}; it is 'wall' or 'unknown'")
        self.max_uncertainty_ns = max_uncertainty_ns
        self.stamps = stamps
        self.revision = 0
        """Changes whenever an answer may have."""
        self._knots_max = knots_max
        self._eras: deque[_Era] = deque(maxlen=ERAS_MAX)
        self._count = 0

    @property
    def latest(self) -> Knot | None:
        """The newest knot."""
        return self._eras[-1].knots[-1] if self._eras else None

    def append(self, knot: Knot) -> None:
        """Adds the newest knot; knots older than 15 minutes, or more than the limit, go.

        Raises:
            ValueError: its era or, within the era, its wall reading lies before the newest knot's.
        """
        era = self._eras[-1] if self._eras else None
        if era is None or knot.era > era.number:
            if era is not None:
                era.end_wall_ns = knot.previous_end_wall_ns
                if len(self._eras) == self._eras.maxlen:
                    self._count -= len(self._eras[0].knots)
            era = _Era(knot.era, knot.era_begin_wall_ns)
            self._eras.append(era)
        elif knot.era < era.number or knot.wall_ns <= era.walls[-1]:
            raise ValueError(f"knot of era {knot.era} at {knot.wall_ns} is not after the newest one")
        era.knots.append(knot)
        era.walls.append(knot.wall_ns)
        self._count += 1
        self.revision += 1
        era.reach_back(len(era.knots) - 1 - _UNSETTLED)
        oldest = self._eras[0]
        if self._count > self._knots_max or knot.raw_ns - oldest.knots[0].raw_ns > SPAN_NS + SPAN_NS // 8:
            self._evict(knot.raw_ns - SPAN_NS)

    def _evict(self, before_raw_ns: int) -> None:
        # In lumps (an eighth at a time), so that the cost of shifting a list is paid rarely.
        keep = self._knots_max - self._knots_max // 8
        while self._eras:
            oldest = self._eras[0]
            drop = max(self._count - keep, 0)
            while drop < len(oldest.knots) and oldest.knots[drop].raw_ns < before_raw_ns:
                drop += 1
            drop = min(drop, len(oldest.knots) - (1 if oldest is self._eras[-1] else 0))
            del oldest.knots[:drop], oldest.walls[:drop]
            self._count -= drop
            if oldest.knots:
                oldest.begin_wall_ns = (
                    max(oldest.begin_wall_ns, oldest.knots[0].wall_ns) if drop else (oldest.begin_wall_ns)
                )
                return
            self._eras.popleft()

    def tighten(self, knots: Iterable[Knot]) -> None:
        """Replaces knots by better-informed ones of the same instants (unknown instants are ignored)."""
        self.revision += 1
        for knot in knots:
            for era in reversed(self._eras):
                if era.number == knot.era:
                    index = bisect_right(era.walls, knot.wall_ns) - 1
                    if index >= 0 and era.walls[index] == knot.wall_ns:
                        era.knots[index] = knot
                        era.reach_back(index + 1)
                        era.reach_back(index)
                    break

    def at(self, wall_ns: int, now_ns: int | None = None) -> Correction:
        """The correction for a stamp that this node's wall clock made at reading ``wall_ns``.

        Args:
            now_ns: the latest reading that the clock can have shown in the newest era; None where nobody knows.
        """
        found: tuple[Knot, Interval] | None = None
        hull: Interval | None = None
        for index in range(len(self._eras) - 1, -1, -1):
            era = self._eras[index]
            if wall_ns < era.begin_wall_ns or (era.end_wall_ns is not None and wall_ns > era.end_wall_ns):
                continue
            if era.end_wall_ns is None and now_ns is not None and not self._shown(era, wall_ns, now_ns):
                continue
            answer = era.at(wall_ns)
            if answer is None:
                return UNSYNCHRONIZED
            if found is None:
                found, hull = answer, answer[1]
            assert hull is not None
            if answer[0].reference != found[0].reference:
                return UNSYNCHRONIZED
            hull = hull.hull(answer[1])
            if self.stamps == "unknown":
                hull = self._hull_of_earlier(index, wall_ns, found[0].reference, hull)
        if found is None or hull is None:
            return UNSYNCHRONIZED
        knot = found[0]
        applied = knot.applied_at(wall_ns) if wall_ns >= knot.wall_ns else knot.applied_ns
        uncertainty = hull.farthest(applied)
        if uncertainty > self.max_uncertainty_ns:
            return UNSYNCHRONIZED
        return Correction(applied, uncertainty, knot.status, knot.reference)

    def _shown(self, newest: _Era, wall_ns: int, now_ns: int) -> bool:
        """Whether the newest era can have made a stamp by now: see the module's text."""
        ahead_ns = wall_ns - max(now_ns, newest.walls[-1]) - AHEAD_NS
        if ahead_ns <= 0:
            return True
        return self.stamps == "unknown" and ahead_ns <= self.at(now_ns).uncertainty_ns

    def newest_era(self) -> tuple[Sequence[Knot], int]:
        """The newest era's knots, and the earliest reading from which on nothing but they decides the answer, wall ns.

        Before that reading an earlier era has a say: its own readings reach there, or (unless applications are known
        to read the wall) an anchored stamp may still follow it.
        """
        if not self._eras:
            return (), 0
        newest = self._eras[-1]
        settled_ns = newest.begin_wall_ns
        for era in self._eras:
            if era is newest:
                break
            if era.end_wall_ns is None:
                return (), 0
            settled_ns = max(settled_ns, era.end_wall_ns + 1)
            if self.stamps == "unknown":
                settled_ns = max(settled_ns, newest.begin_wall_ns + HULL_AFTER_STEP_NS)
        return newest.knots, settled_ns

    def _hull_of_earlier(self, index: int, wall_ns: int, reference: str | None, hull: Interval) -> Interval:
        """Adds the eras that ended within 30 s before this reading: an anchored stamp may still follow them."""
        while index > 0 and wall_ns - self._eras[index].begin_wall_ns < HULL_AFTER_STEP_NS:
            index -= 1
            last = self._eras[index].knots[-1]
            bound = last.bound_at(wall_ns)
            if bound is None or last.reference != reference:
                break
            hull = hull.hull(bound)
        return hull
