"""How this node's wall clock relates to its raw clock, and when it was stepped.

Everything is measured on raw; spans are stamped on wall. The link between the two is a row of sandwich readings
(``clock.read_wall``) of wall - raw, kept for the last seconds. Between readings a wall clock may be *slewed* (its
rate changed by the kernel's steering) or *stepped*. A change of wall - raw that no slew can explain is a step: the era
ends there and a new one begins. The step happened somewhere between two readings, so the last reading of the old era
and the first of the new one are each known only within the gap; both are rounded outward, and the readings in
between belong to both.

A process that had to wait in the middle of a reading has a wide one, which may hold the value before a step and the
one after. So a reading is compared with all that the era's readings allow together, carried from one to the next, and
not with the one before alone: a wide one must not be the bridge over which a step goes unseen. The next narrow one
tells, and the era then ends at the last reading that surely was before the step.

How fast a slew can be: the kernel's own loops reach 500 ppm by frequency and 500 ppm by adjtime; whoever sets the
tick's length (chrony, up to 83,333 ppm) is seen by reading the kernel's settings, where that is allowed, and those
are added: a clock steered that fast is then one era and not a row of small steps.

A past instant lies between two readings, and follows from both: forwards from the one before, backwards from the one
after; what both allow is the answer. Over *all* instants between two readings that is :func:`passage`: what a kernel's
stamp, which is a wall reading, means in raw (``stamps.py``), and what a daemon meant that was asked in between
(``sources/claim.py``).

Limits: where the kernel's settings cannot be read (an emulated clock, a seccomp filter), a clock steered faster than
``SLEW_MAX_PPM`` looks like a row of small steps: the bounds stay right and become wide. A step smaller than the
fastest slew times the gap between two readings plus their widths (some 20 us at 20 ms) looks like a slew, and is
covered as one: a rate that suddenly rose counts as ``SLEW_MAX_PPM`` until a second has told what it is. Pure:
readings are handed in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from skewd.clock import WallSample
from skewd.interval import Interval

SLEW_MAX_PPM = 1_000
"""500 ppm of kernel frequency and 500 ppm of adjtime together."""

STEER_PPB = 1_000
"""Allowance for the steering that may begin before the next reading, on top of the rate observed."""

HISTORY_NS = 5_000_000_000
"""How far back instants are converted by the readings on both sides of them."""

HISTORY_MAX = 512
"""Readings kept at most."""

_LOOPS_PPB = 500_000
"""What adjtime and the kernel's phase loop may add to the rate that frequency and tick are set to."""

_RATE_BASE_NS = 10_000_000_000
_RATE_EVERY_NS = 1_000_000_000
_NARROW_NS = 2_000
_SHORT_BACK = 6
"""How many readings back a suddenly risen rate is looked for: long enough to stand out of the readings' widths."""

_STEERED_MAX = 64
"""Rates of our own that are remembered at most; one a second, for as long as readings tell of the past."""

_PPB = 1_000_000_000


def _rate_ppb(earlier: WallSample, later: WallSample) -> tuple[int, int]:
    """At least and at most how fast wall - raw moved between two readings (magnitudes)."""
    elapsed = later.raw_ns - earlier.raw_ns
    one, two = earlier.wall_minus_raw, later.wall_minus_raw
    lo, hi = two.lo - one.hi, two.hi - one.lo
    # The interval [lo, hi] without making one: this is asked several times for each reading.
    most = max(abs(lo), abs(hi)) * _PPB // elapsed + 1
    least = 0 if lo <= 0 <= hi else min(abs(lo), abs(hi)) * _PPB // elapsed
    return least, most


def rates_ppb(*set_ppb: int) -> Interval:
    """How fast wall - raw may be moving: the rates that the kernel's tick and frequency were set to, and its loops.

    Args:
        set_ppb: the settings read before and after; 0 where they are not told.
    """
    unsteered = SLEW_MAX_PPM * 1_000
    return Interval(min(-unsteered, min(set_ppb) - _LOOPS_PPB), max(unsteered, max(set_ppb) + _LOOPS_PPB))


def passage(before: WallSample, after: WallSample, rate_ppb: Interval) -> Interval | None:
    """wall - raw at every instant between two readings; None when no slew leads from one to the other: a step.

    The highest it can have been: up from the first reading as fast as can be, then down to the second. With slopes f
    and -s and a gap g, two lines meet there, at (s first + f second + f s g) / (f + s), unless it is one of the two
    readings itself. The lowest is the mirror image. So a step that is too small to be told from a slew is covered,
    whichever side of it an instant is on.

    Args:
        before: the earlier reading; ``after`` the later one.
        rate_ppb: the rates possible in between, zero among them.
    """
    # The reading before was made up to its width earlier than its instant says.
    gap = max(after.raw_ns - before.raw_ns, 0) + before.wall_minus_raw.width
    up, down = gap * rate_ppb.hi // _PPB + 1, gap * -rate_ppb.lo // _PPB + 1
    # Each reading is in whole nanoseconds, so it may be one off. In plain numbers: this is done for every packet.
    old_lo, old_hi = before.wall_minus_raw.lo - 1, before.wall_minus_raw.hi + 1
    new_lo, new_hi = after.wall_minus_raw.lo - 1, after.wall_minus_raw.hi + 1
    if max(old_lo - down, new_lo) > min(old_hi + up, new_hi):
        return None
    both = up + down
    highest = -(-(down * old_hi + up * new_hi + up * down) // both)
    lowest = (up * old_lo + down * new_lo - up * down) // both
    return Interval(min(old_lo, new_lo, lowest, highest), max(old_hi, new_hi, lowest, highest))


class WallMap:
    """The relation wall - raw, era by era.

    Args:
        first: the first reading; the first era begins there.
        era: the number of the first era.
    """

    def __init__(self, first: WallSample, era: int = 1) -> None:
        self.era = era
        self.era_begin_wall_ns = first.raw_ns + first.wall_minus_raw.lo
        self.previous_end_wall_ns: int | None = None
        self.last_step_ns: int | None = None
        """Size of the latest step, as nearly as it is known; None before any."""
        self._latest = first
        self._allowed = first.wall_minus_raw
        """What wall - raw can have been at the newest reading by all of the era's; usually that reading itself."""
        self._kernel_ppb = Interval(0, 0)
        self._unsettled_ppb = SLEW_MAX_PPM * 1_000
        self._anchors: deque[WallSample] = deque([first])
        self._anchored_ppb: deque[int] = deque(maxlen=_RATE_BASE_NS // _RATE_EVERY_NS)
        self._slew_ppb: int | None = None
        self._history: deque[tuple[WallSample, int]] = deque([(first, era)], maxlen=HISTORY_MAX)
        self._steered: deque[tuple[int, int]] = deque(maxlen=_STEERED_MAX)

    @property
    def latest(self) -> WallSample:
        """The newest reading."""
        return self._latest

    @property
    def _limit_ppb(self) -> int:
        """The fastest that wall - raw can be slewed with the settings last read."""
        fastest = max(abs(self._kernel_ppb.lo), abs(self._kernel_ppb.hi))
        return max(SLEW_MAX_PPM * 1_000, fastest + _LOOPS_PPB)

    def sample(self, reading: WallSample, kernel_rate_ppb: int | None = None) -> bool:
        """Takes a reading, later than the ones before; True when the wall clock was stepped since the last.

        Args:
            reading: the sandwich.
            kernel_rate_ppb: the rate that the kernel's tick and frequency are set to now, where that is known.
        """
        before, rate = self._latest, kernel_rate_ppb or 0
        # The settings may have changed at any time since the last reading.
        kernel, self._kernel_ppb = self._kernel_ppb.hull(Interval(rate, rate)), Interval(rate, rate)
        may = rates_ppb(kernel.lo, kernel.hi)
        # The reading before was made up to its width earlier than its instant says.
        elapsed = max(reading.raw_ns - before.raw_ns, 0) + before.wall_minus_raw.width
        old = self._allowed
        reach = Interval(old.lo + elapsed * may.lo // _PPB - 1, old.hi + elapsed * may.hi // _PPB + 1)
        allowed = reach.intersect(reading.wall_minus_raw)
        if allowed is None:
            surely, reach = self._surely_before(reading, reach)
            # Anywhere in the gap: the old era may have lasted until now, the new one have begun at that reading.
            self._begin(
                end_wall_ns=reading.raw_ns + reach.hi,
                begin_wall_ns=surely.raw_ns + reading.wall_minus_raw.lo - reach.width,
                reading=reading,
            )
            self.last_step_ns = reading.wall_minus_raw.midpoint - surely.wall_minus_raw.midpoint
        self._remember(reading)
        self._allowed = reading.wall_minus_raw if allowed is None else allowed
        return allowed is None

    def _surely_before(self, reading: WallSample, reach: Interval) -> tuple[WallSample, Interval]:
        """The last reading from before the step that ``reading`` shows, and where no step would have led from there.

        Those since then may be from either side of it, and are forgotten.
        """
        if self._latest.wall_minus_raw.width <= self._allowed.width + _NARROW_NS:
            return self._latest, reach  # as a rule
        since, led = self._latest, reach
        for back, (before, era) in enumerate(reversed(self._history)):
            if era != self.era:
                break
            gap = reading.raw_ns - before.raw_ns + before.wall_minus_raw.width
            since, led = before, before.wall_minus_raw.widen(gap * self._limit_ppb // _PPB + 1)
            if led.intersect(reading.wall_minus_raw) is None:
                for _ in range(back):
                    self._history.pop()
                return since, led
        return since, led.hull(reach)  # no single one is sure: from all that is remembered on

    def will_steer(self, rate_ppb: int) -> None:
        """The kernel's rate is about to become this, by this daemon's own hand (``discipline.py``).

        From now on, before it takes effect, :meth:`slew_ppb` allows for it; and for the rate before as long as the
        past is asked about.
        """
        self._steered.append((self._latest.raw_ns, abs(rate_ppb)))
        self._kernel_ppb, self._slew_ppb = self._kernel_ppb.hull(Interval(rate_ppb, rate_ppb)), None

    def restart(self, reading: WallSample) -> None:
        """Begins a new era though wall - raw may be unchanged: the raw clock itself was disturbed (suspend)."""
        self._begin(
            end_wall_ns=reading.raw_ns + reading.wall_minus_raw.hi,
            begin_wall_ns=self._latest.raw_ns + self._latest.wall_minus_raw.lo,
            reading=reading,
        )
        self._history.clear()
        self._remember(reading)
        self._allowed = reading.wall_minus_raw

    def _begin(self, *, end_wall_ns: int, begin_wall_ns: int, reading: WallSample) -> None:
        # A step does not change the rate: until the new era has told its own, that of the old one is used.
        self._unsettled_ppb = self.slew_ppb() - STEER_PPB
        self.era += 1
        self.previous_end_wall_ns, self.era_begin_wall_ns = end_wall_ns, begin_wall_ns
        self._anchors.clear()
        self._anchors.append(reading)
        self._anchored_ppb.clear()

    def _remember(self, reading: WallSample) -> None:
        self._latest, self._slew_ppb = reading, None
        while len(self._steered) > 1 and reading.raw_ns - self._steered[1][0] > _RATE_BASE_NS:
            self._steered.popleft()  # another has ruled for so long
        self._history.append((reading, self.era))
        while reading.raw_ns - self._history[0][0].raw_ns > HISTORY_NS:
            self._history.popleft()
        # A reading that was interrupted is wide and tells little of the rate: better wait for the next.
        due = _RATE_EVERY_NS if reading.wall_minus_raw.width <= _NARROW_NS else 2 * _RATE_EVERY_NS
        if reading.raw_ns - self._anchors[-1].raw_ns >= due:
            self._anchored_ppb.append(_rate_ppb(self._anchors[-1], reading)[1])
            self._anchors.append(reading)
            if len(self._anchors) > 2:
                self._anchors.popleft()

    # -- how fast ------------------------------------------------------------------------------------------------

    def slew_ppb(self) -> int:
        """How fast wall - raw may be moving: the fastest second of the last ten, and an allowance.

        In the first second of an era it is the rate before the step; in the first second of all, the
        kernel's limit. As soon as the newest readings prove a faster rate than that, it is the limit again.
        """
        if self._slew_ppb is None:
            self._slew_ppb = min(self._observed_ppb(), self._limit_ppb) + STEER_PPB
        return self._slew_ppb

    def _observed_ppb(self) -> int:
        latest, history = self._latest, self._history
        known = max(self._anchored_ppb) if self._anchored_ppb else self._unsettled_ppb
        known = max(known, abs(self._kernel_ppb.lo), abs(self._kernel_ppb.hi), *(rate for _, rate in self._steered))
        before = [
            history[-back][0] for back in (2, _SHORT_BACK) if len(history) >= back and history[-back][1] == self.era
        ]
        for earlier in (*before, self._anchors[0]):
            if earlier.raw_ns < latest.raw_ns:
                least, _ = _rate_ppb(earlier, latest)
                if least > known + STEER_PPB:
                    return max(self._limit_ppb, least)
        return known

    # -- conversions ---------------------------------------------------------------------------------------------

    def wall_minus_raw(self, raw_ns: int) -> Interval:
        """wall - raw at a raw instant of this era, from the readings nearest to it (before, after, or both)."""
        latest = self._latest
        if raw_ns >= latest.raw_ns:
            return self._carried(latest, raw_ns)
        after = bisect_left(self._history, raw_ns, key=lambda entry: entry[0].raw_ns)
        between = self._between(after, raw_ns)
        if between is not None:
            return between
        # Before the history or the era: what follows from the earliest reading there is of this era.
        first = next(sample for sample, era in self._history if era == self.era)
        return self._carried(first if raw_ns < first.raw_ns else latest, raw_ns)

    def from_raw(self, minus_raw: Interval, at_raw_ns: int) -> Interval:
        """Of another clock: what it reads more than this wall clock, from what it reads more than this raw clock."""
        return minus_raw - self.wall_minus_raw(at_raw_ns)

    def drift_from_raw(self, raw_drift_ppb: Interval, there_slew_ppb: int = 0) -> Interval:
        """Of another clock: its drift against this wall clock, from that against this raw clock.

        Args:
            there_slew_ppb: how fast the other may be slewed, where it is a wall clock.
        """
        # Both walls may be slewed; and seen per wall second instead of raw second each rate changes by its own size
        # times the slew: a thousandth, or a tenth where chrony steers hard.
        here = self.slew_ppb()
        rate = max(abs(raw_drift_ppb.lo), abs(raw_drift_ppb.hi)) + there_slew_ppb + here
        second_order = rate * max(here, 2_000_000) // (_PPB - min(here, _PPB // 2)) + 1
        return raw_drift_ppb.widen(there_slew_ppb + here + second_order)

    def drift_from_wall(self, wall_drift_ppb: Interval) -> Interval:
        """Of another clock: its drift against this raw clock, from that against this wall clock."""
        slew = self.slew_ppb()
        return wall_drift_ppb.widen(slew + slew * max(abs(wall_drift_ppb.lo), abs(wall_drift_ppb.hi)) // _PPB + 1)

    def _carried(self, sample: WallSample, raw_ns: int) -> Interval:
        gap = abs(raw_ns - sample.raw_ns)
        return sample.wall_minus_raw.widen(gap * self.slew_ppb() // _PPB + 1)

    def _between(self, after: int, raw_ns: int) -> Interval | None:
        """wall - raw from the reading ``after`` and the one before it; None where there are not two of one era."""
        if not 0 < after < len(self._history):
            return None
        (one, era), (two, other) = self._history[after - 1], self._history[after]
        if era != other:
            return None
        both = self._carried(one, raw_ns).intersect(self._carried(two, raw_ns))
        return both or self._surely(one, two)

    def _surely(self, one: WallSample, two: WallSample) -> Interval:
        """What holds between two readings of an era though the rate was another then: the limit explains both."""
        gap = two.raw_ns - one.raw_ns
        return one.wall_minus_raw.hull(two.wall_minus_raw).widen(gap * self._limit_ppb // _PPB + 1)
