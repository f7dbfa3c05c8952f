"""What is published of the reference: four knots a second that carry one continuous line inside the bound.

The problem: a bound moves with every message, and spans that are corrected by a number that jumps lose their order. The
insight: what is applied is a line of its own (``bounds/applied.py``) that only has to stay inside the bound, so it can
be continuous and monotone; a knot (``bounds/history.py``) has both, the bound at an instant and the line from there on.
A new line begins when what was said before no longer holds (another era, another reference); when another clock carries
the same timescale on, the line goes on.

Knots lie a little in the future, so that the line in force at a stamp was known before the stamp was made. So a knot
may turn out to be wrong before it rules: the wall clock is slewed faster than it allowed for. Then it is widened, and
published again, before a reader relies on it (:meth:`Knots.allow_for_slew`). And what arrives later makes recent knots
narrower (:meth:`Knots.tightened`).

Limits: ``TIGHTEN_NS`` back. Pure: estimates and readings are handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from skewd.bounds import applied
from skewd.bounds.history import Knot, Status
from skewd.estimate import LEAD_NS, SELF, Estimate
from skewd.interval import Interval
from skewd.wall import STEER_PPB, WallMap

KNOT_PERIOD_NS = 250_000_000

TIGHTEN_NS = 2_000_000_000
"""How far back knots are improved by what arrived since."""

_PPB = 1_000_000_000


class Knots:
    """The line of one node.

    Args:
        wall: this node's wall clock against its raw one.
        estimate_at: reference - own wall at an own raw instant; None while unknown.
        worth: what an estimate is worth when the largest error of what is applied is so many nanoseconds.
    """

    def __init__(
        self,
        wall: WallMap,
        estimate_at: Callable[[int], Estimate | None],
        worth: Callable[[Estimate, int], Status],
    ) -> None:
        self._wall = wall
        self._estimate_at = estimate_at
        self._worth = worth
        self._line: applied.Line | None = None
        self._key: tuple[object, ...] | None = None
        """Of what is published now: this clock's era and the estimate's epoch; None while nothing is known."""
        self._scale: tuple[object, ...] | None = None
        self._era = 0
        self._epoch = 0
        self._recent: deque[Knot] = deque(maxlen=TIGHTEN_NS // KNOT_PERIOD_NS)
        self._last_wall_ns: tuple[int, int] | None = None
        self._improved = False
        self._slew_told_ppb = 0
        self._widened = False

    # -- what comes in -------------------------------------------------------------------------------------------

    def improved(self) -> None:
        """Something arrived that may make recent knots narrower."""
        self._improved = True

    def slew_seen(self, since_ns: int) -> None:
        """The wall clock was read: if it is slewed faster than the newest knot allowed for, since ``since_ns`` at the
        earliest, the knot is taken back before a reader relies on it."""
        if self._wall.slew_ppb() > self._slew_told_ppb + STEER_PPB:
            self._allow_for_slew(since_ns)

    def will_slew(self) -> None:
        """The wall clock is about to be slewed as its map already says; the newest knots allow for it once
        :meth:`tightened` was published."""
        if self._wall.slew_ppb() > self._slew_told_ppb:
            self._allow_for_slew(self._wall.latest.raw_ns)

    def _allow_for_slew(self, since_ns: int) -> None:
        if not self._recent:
            return
        # In the knot before the newest as well, which rules until that begins (knots begin a little in the future).
        # Seen per second of a wall clock that is slowed down it is more, as in a drift against it.
        slew = self._wall.slew_ppb()
        more = slew * _PPB // (_PPB - min(slew, _PPB // 2)) + 1 - self._slew_told_ppb
        for back in range(1, min(len(self._recent), 2) + 1):
            knot = self._recent[-back]
            # One that lay ahead when the slew began, at the last reading at the earliest, is wrong itself.
            wrong = max(knot.raw_ns - since_ns, 0) * more // _PPB + 1
            bound = knot.bound.widen(wrong) if knot.bound else None
            self._recent[-back] = replace(knot, bound=bound, drift_ppb=knot.drift_ppb.widen(more))
        self._slew_told_ppb = slew
        self._widened = True

    @property
    def slew_began(self) -> bool:
        """Whether the newest knot had to be widened, and a new one is due at once."""
        return self._widened

    # -- what goes out -------------------------------------------------------------------------------------------

    def next(self, now_raw_ns: int) -> Knot | None:
        """The next knot, a little ahead of now; None before anything is known, or if one was just made."""
        at_raw = now_raw_ns + LEAD_NS
        at_wall = at_raw + self._wall.wall_minus_raw(at_raw).midpoint
        if self._last_wall_ns is not None and self._last_wall_ns >= (self._wall.era, at_wall):
            return None  # within an era knots only go forwards
        estimate = self._estimate_at(at_raw)
        if estimate is None:
            return self._nothing(at_raw, at_wall)
        key = (self._wall.era, *estimate.epoch)
        same = self._line is not None and key == self._key
        # Another clock carries the timescale on: what was said of the former one is not said of it, but times go on.
        carried_on = self._line is not None and self._era == self._wall.era and estimate.continues(self._scale)
        if not same:
            self._epoch = (self._epoch + 1) % (1 << 16)
            self._recent.clear()
        if self._line is not None and (same or carried_on):
            self._line = applied.continue_(self._line, at_wall, estimate.bound, estimate.drift_ppb, KNOT_PERIOD_NS)
        else:
            self._line = applied.begin(at_wall, estimate.bound, estimate.drift_ppb)
        self._key, self._scale, self._era = key, estimate.scale, self._wall.era
        return self._remember(at_raw, at_wall, estimate)

    def unknown(self, now_raw_ns: int) -> Knot | None:
        """A knot that says that nothing is known, whatever is; None if that was said, or nothing before it."""
        at_raw = now_raw_ns + LEAD_NS
        at_wall = at_raw + self._wall.wall_minus_raw(at_raw).midpoint
        self._recent.clear()
        self._widened = self._improved = False
        if self._last_wall_ns is not None and self._last_wall_ns >= (self._wall.era, at_wall):
            at_raw, at_wall = at_raw + self._last_wall_ns[1] + 1 - at_wall, self._last_wall_ns[1] + 1
        return self._nothing(at_raw, at_wall)

    def _nothing(self, at_raw: int, at_wall: int) -> Knot | None:
        if self._key is None:
            return None
        self._key = None
        return self._remember(at_raw, at_wall, None)

    def tightened(self) -> list[Knot]:
        """Recent knots that what arrived since has made narrower, and the one that a slew has made wider."""
        better: list[Knot] = []
        if self._widened:
            better.extend(self._recent)
        self._widened = False
        if not self._improved:
            return better
        self._improved = False
        for index, knot in enumerate(self._recent):
            if knot.era != self._wall.era or knot.bound is None:
                continue
            estimate = self._estimate_at(knot.raw_ns)
            if estimate is None or (self._wall.era, *estimate.epoch) != self._key:
                return better
            bound = knot.bound.intersect(self._published(estimate, knot.drift_ppb, knot.raw_ns, knot.wall_ns))
            if bound is None or bound == knot.bound:
                continue
            # Not its drift: the estimate's has the wall clock's rate of now in it, and then it may have been faster.
            self._recent[index] = narrower = replace(knot, bound=bound)
            better.append(narrower)
        return better

    def _remember(self, at_raw: int, at_wall: int, estimate: Estimate | None) -> Knot:
        line = self._line
        assert line is not None
        drift = estimate.drift_ppb if estimate else Interval(0, 0)
        if estimate is not None and estimate.epoch == SELF:
            drift = drift.widen(self._wall.slew_ppb())
        knot = Knot(
            era=self._wall.era,
            era_begin_wall_ns=self._wall.era_begin_wall_ns,
            previous_end_wall_ns=self._wall.previous_end_wall_ns,
            raw_ns=at_raw,
            wall_ns=at_wall,
            bound=self._published(estimate, drift, at_raw, at_wall) if estimate else None,
            drift_ppb=drift,
            wander_ppb_per_s=estimate.wander_ppb_per_s if estimate else 0,
            applied_ns=line.offset_ns,
            applied_slope_ppb=line.slope_ppb,
            status=(
                self._worth(estimate, estimate.bound.farthest(line.offset_ns)) if estimate else Status.UNSYNCHRONIZED
            ),
            reference=estimate.name if estimate else None,
            epoch=self._epoch,
        )
        self._last_wall_ns = (knot.era, knot.wall_ns)
        if estimate is not None:
            self._recent.append(knot)
            self._slew_told_ppb = self._wall.slew_ppb()
        return knot

    def _published(self, estimate: Estimate, drift_ppb: Interval, at_raw: int, at_wall: int) -> Interval:
        """What a knot says of reference - wall.

        Where the reference is this node's own wall clock that is nothing at all, for a stamp. But a knot also tells
        what the reference reads at a raw instant, and that is known only as well as the wall clock is foretold.
        """
        if estimate.epoch != SELF:
            return self._as_labelled(estimate.bound, drift_ppb, at_raw, at_wall)
        foretold = self._wall.wall_minus_raw(at_raw).shift(at_raw - at_wall).hull(Interval(0, 0))
        return foretold + estimate.bound  # which is nothing, while others go by this clock

    def _as_labelled(self, bound: Interval, drift_ppb: Interval, at_raw: int, at_wall: int) -> Interval:
        """A bound at a raw instant, so that it also holds for the wall reading that its knot has for that instant.

        The reading was foretold, from the middle of what was possible. While the clock is steered hard it read
        something else at that instant, and what it is asked for later is the reading.
        """
        wall = self._wall.wall_minus_raw(at_raw).shift(at_raw)
        rate = max(abs(drift_ppb.lo), abs(drift_ppb.hi))
        return bound.widen(abs(at_wall - wall.clamp(at_wall)) - (-wall.farthest(at_wall) * rate // _PPB))

    # -- what is applied now -------------------------------------------------------------------------------------

    def applied_ns(self, at_raw_ns: int) -> int | None:
        """What is published as reference - own raw at an own raw instant; None when nothing is."""
        if self._line is None or self._key is None or self._era != self._wall.era:
            return None
        wall_minus_raw = self._wall.wall_minus_raw(at_raw_ns).midpoint
        return self._line.at(max(at_raw_ns + wall_minus_raw, self._line.wall_ns)) + wall_minus_raw

    def offset_applied(self, estimate: Estimate, now_raw_ns: int) -> int:
        """What is applied to this node's times now: the line's offset, or the estimate's middle while there is none."""
        same = self._key == (self._wall.era, *estimate.epoch)
        # Handed over, and the next knot is not made yet: it will continue the line that is published now.
        carried_on = self._key is not None and self._era == self._wall.era and estimate.continues(self._scale)
        if self._line is None or not (same or carried_on):
            return estimate.bound.midpoint
        wall = now_raw_ns + self._wall.wall_minus_raw(now_raw_ns).midpoint
        return self._line.at(wall) if wall >= self._line.wall_ns else self._line.offset_ns
