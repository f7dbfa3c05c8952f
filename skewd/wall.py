"""How this node's wall clock relates to its raw clock, and when it was stepped.

Everything is measured on raw; spans are stamped on wall. The link between the two is a row of sandwich readings
(``clock.read_wall``) of wall - raw. Between readings a wall clock may be *slewed* (its rate changed, up to 1000 ppm
by the kernel's own steering) or *stepped*. A change of wall - raw that no slew can explain is a step: the era ends
there and a new one begins. The step happened somewhere between two readings, so the last reading of the old era
and the first of the new one are each known only within the gap; both are rounded outward, and the readings in
between belong to both.

Limits: a clock steered faster than ``SLEW_MAX_PPM`` (chrony can be told to, up to 83,333 ppm) looks like a row of
small steps: the bounds stay right and become wide. A step smaller than ``SLEW_MAX_PPM`` times the gap between two
readings plus their widths (some 20 us at 20 ms) looks like a slew, and is covered as one. Pure: readings are
handed in.
"""

from __future__ import annotations

from collections import deque

from skewd.clock import WallSample
from skewd.interval import Interval

SLEW_MAX_PPM = 1_000
"""500 ppm of kernel frequency and 500 ppm of adjtime together."""

STEER_PPB = 1_000
"""Allowance for the steering that may begin before the next reading, on top of the rate observed."""

_RATE_BASE_NS = 10_000_000_000
_RATE_EVERY_NS = 500_000_000
_SECOND_NS = 1_000_000_000
_PPB = 1_000_000_000


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
        self._settled_slew_ppb = SLEW_MAX_PPM * 1_000
        self._anchors: deque[WallSample] = deque([first], maxlen=_RATE_BASE_NS // _RATE_EVERY_NS)

    @property
    def latest(self) -> WallSample:
        """The newest reading."""
        return self._latest

    def sample(self, reading: WallSample) -> bool:
        """Takes a reading, later than the ones before; True when the wall clock was stepped since the last."""
        before = self._latest
        elapsed = max(reading.raw_ns - before.raw_ns, 0)
        reach = before.wall_minus_raw.widen(elapsed * SLEW_MAX_PPM // 1_000_000 + 1)
        self._latest = reading
        if reach.intersect(reading.wall_minus_raw) is not None:
            if reading.raw_ns - self._anchors[-1].raw_ns >= _RATE_EVERY_NS:
                self._anchors.append(reading)
            return False
        # Anywhere in the gap: the old era may have lasted until now, the new one may have begun at the last reading.
        self.era += 1
        self.previous_end_wall_ns = reading.raw_ns + reach.hi
        self.era_begin_wall_ns = before.raw_ns + reading.wall_minus_raw.lo - reach.width
        self.last_step_ns = reading.wall_minus_raw.midpoint - before.wall_minus_raw.midpoint
        self._settled_slew_ppb = self.slew_ppb(before)
        self._anchors.clear()
        self._anchors.append(reading)
        return True

    def restart(self, reading: WallSample) -> None:
        """Begins a new era though wall - raw may be unchanged: the raw clock itself was disturbed (suspend)."""
        self.era += 1
        self.previous_end_wall_ns = reading.raw_ns + reading.wall_minus_raw.hi
        self.era_begin_wall_ns = self._latest.raw_ns + self._latest.wall_minus_raw.lo
        self._settled_slew_ppb = self.slew_ppb()
        self._latest = reading
        self._anchors.clear()
        self._anchors.append(reading)

    def slew_ppb(self, until: WallSample | None = None) -> int:
        """How fast wall - raw may be moving: the largest rate that the last ten seconds allow, and an allowance.

        In the first second of an era it is the rate before the step (a step does not change the rate); in the first
        second of all, the kernel's limit.
        """
        first, last = self._anchors[0], until or self._latest
        elapsed = last.raw_ns - first.raw_ns
        if elapsed < _SECOND_NS:
            return self._settled_slew_ppb
        moved = last.wall_minus_raw - first.wall_minus_raw
        rate = max(abs(moved.lo), abs(moved.hi)) * _PPB // elapsed + 1
        return min(rate, SLEW_MAX_PPM * 1_000) + STEER_PPB

    def wall_minus_raw(self, raw_ns: int) -> Interval:
        """wall - raw at a raw instant of this era near the newest reading (before or after it)."""
        gap = abs(raw_ns - self._latest.raw_ns)
        return self._latest.wall_minus_raw.widen(gap * self.slew_ppb() // _PPB + 1)
