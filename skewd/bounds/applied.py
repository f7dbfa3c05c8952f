"""The one offset that spans get, out of the many that the bound allows.

The momentary middle of the bound would do for a single span, and would be wrong for two: it jumps with each message,
so two spans of one node, a microsecond apart, could change places. So the applied offset is a *line* that is
committed ahead of time: continuous, and slow enough that ``t + applied(t)`` never runs backwards. At each knot
only its slope is chosen anew, from the bound alone (never from an edge of a trace: no clamping to make a trace look
right).

While the line runs well inside the bound it follows the estimated drift and nothing else (hysteresis: a bound that
breathes does not make it wobble). When it nears an end it is steered towards the middle over ``SETTLE_NS``, and if
the bound has moved away from it altogether, back in as fast as ``SLEW_MAX_PPB`` allows; until it is inside again the
published uncertainty says so, as it is always measured from the line itself.

The middle of the drift's range is a poor estimate where the range is wide: a wall clock slewed by 400 ppm may drift by
as much either way for all the range says, and moves by the same amount all the time. A line that took the middle for
the truth would be outside at every knot. So what it was wrong by is kept as a *bias*, within the range.

Limits: a line is outside the bound only after a message has told more than was known when the line was committed, and
for as long as 5 % of elapsed time need to make up for it; a new era begins a new line.
"""

from __future__ import annotations

from dataclasses import dataclass

from skewd.interval import Interval

SLEW_MAX_PPB = 50_000_000
"""Steepest correction: 5 %, far from the -100 % at which order would be lost."""

SETTLE_NS = 2_000_000_000
"""A line that strayed is led back to the middle over this long."""

_PPB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """applied(t) = ``offset_ns`` + ``slope_ppb`` x (t - ``wall_ns``) / 10^9, rounded down, t in wall ns of one era.

    ``bias_ppb``: how much faster than the middle of the drift's range the bound was found to move.
    """

    wall_ns: int
    offset_ns: int
    slope_ppb: int
    bias_ppb: int = 0

    def at(self, wall_ns: int) -> int:
        """The applied offset at a wall reading of this era, at or after the line's start."""
        return self.offset_ns + self.slope_ppb * (wall_ns - self.wall_ns) // _PPB


def begin(wall_ns: int, bound: Interval, drift_ppb: Interval) -> Line:
    """The first line of an era: from the middle of the bound, at the middle of the drift."""
    return Line(wall_ns, bound.midpoint, _limited(drift_ppb.midpoint))


def continue_(line: Line, wall_ns: int, bound: Interval, drift_ppb: Interval, period_ns: int) -> Line:
    """The line from ``wall_ns`` on, continuous with the one before.

    Args:
        line: the line in force.
        wall_ns: where the new one begins; not before the other began.
        bound: what is known of reference - wall there.
        drift_ppb: and of its rate.
        period_ns: when the next choice is made, so that no correction overshoots before it.
    """
    offset = line.at(wall_ns)
    error = bound.midpoint - offset
    if abs(error) * 4 <= bound.width:
        bias = _within(drift_ppb, line.bias_ppb)
        return Line(wall_ns, offset, _limited(drift_ppb.midpoint + bias), bias)
    if bound.contains(offset):
        settle = max(SETTLE_NS, period_ns)
        led = error * _PPB // settle
        bias = _within(drift_ppb, line.bias_ppb + led * period_ns // (4 * settle))  # critically damped
        return Line(wall_ns, offset, _limited(drift_ppb.midpoint + bias + led), bias)
    inside = bound.clamp(offset) - offset + (1 if error > 0 else -1) * bound.width // 4
    # With a wrong drift, and nothing learnt, it would stand as far outside at every knot. Half of it may be that; the
    # other half a message that told more.
    bias = _within(drift_ppb, line.bias_ppb + inside * _PPB // (2 * period_ns))
    return Line(wall_ns, offset, _limited(drift_ppb.midpoint + bias + inside * _PPB // period_ns), bias)


def _within(drift_ppb: Interval, bias_ppb: int) -> int:
    return drift_ppb.clamp(drift_ppb.midpoint + bias_ppb) - drift_ppb.midpoint


def _limited(slope_ppb: int) -> int:
    return max(-SLEW_MAX_PPB, min(SLEW_MAX_PPB, slope_ppb))
