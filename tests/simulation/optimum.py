"""The narrowest bound that any sound filter could give for the same messages, by brute force.

A width is large or small only against what was possible. For given messages and declared limits the narrowest sound
bound exists: the extremes of the offset over *all* motions that agree with every message. Here the set of all states
(offset x, drift v) that such motions can be in is carried on from instant to instant, exactly as a polygon: between
two instants the wander is constant, so the set is sheared and every point of it swept along one segment; a message
and the drift's limit cut by a straight line. No message is dropped, no corner merged, and nothing of
``bounds/pair.py`` is used, so that agreement of the two says something.

Motions whose wander changes only at the instants (at most ``STEP_NS`` apart) are fewer than all, so the true optimum
is at least this one, and ours over this at least ours over the true one.

Limits: the newest instant only, in order of time; hundreds of corners, so milliseconds an observation. Floats, in us.
"""

from __future__ import annotations

from skewd.interval import Interval
from tests.simulation.world import SECOND

STEP_NS = SECOND // 2
_FAR_US = 1e9
_Point = tuple[float, float]


class Optimum:
    """All that is possible after the messages so far. Limits as those of ``PairBound``; instants and offsets in ns."""

    def __init__(self, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        self._drift, self._wander = max_drift_ppm, max_wander_ppb_per_s / 1000
        self._at_ns: int | None = None
        self._base_ns = 0
        d = self._drift
        self._corners: list[_Point] = [(-_FAR_US, -d), (_FAR_US, -d), (_FAR_US, d), (-_FAR_US, d)]

    def at_most(self, at_ns: int, offset_ns: int) -> None:
        """The offset at ``at_ns``, not before the last instant given, was at most this."""
        self._carry_to(at_ns, offset_ns)
        self._corners = _cut(self._corners, 1.0, 0.0, (offset_ns - self._base_ns) / 1000)

    def at_least(self, at_ns: int, offset_ns: int) -> None:
        """The same from below."""
        self._carry_to(at_ns, offset_ns)
        self._corners = _cut(self._corners, -1.0, 0.0, (self._base_ns - offset_ns) / 1000)

    def width_ns(self, at_ns: int) -> float:
        """How much the offset at ``at_ns``, not before the last instant given, can differ from itself."""
        assert self._at_ns is not None
        corners = self._carried(at_ns - self._at_ns)
        return (max(x for x, _ in corners) - min(x for x, _ in corners)) * 1000

    def holds(self, at_ns: int, bound: Interval) -> bool:
        """Whether ``bound`` has everything that is possible at ``at_ns``, to a nanosecond."""
        assert self._at_ns is not None
        offsets = [x * 1000 + self._base_ns for x, _ in self._carried(at_ns - self._at_ns)]
        return bound.lo <= min(offsets) + 1 and max(offsets) - 1 <= bound.hi

    def _carry_to(self, at_ns: int, offset_ns: int) -> None:
        if self._at_ns is None:
            self._at_ns, self._base_ns = at_ns, offset_ns
        self._corners = self._carried(at_ns - self._at_ns)
        self._at_ns = at_ns

    def _carried(self, elapsed_ns: int) -> list[_Point]:
        corners = self._corners
        while elapsed_ns > 0:
            step = min(elapsed_ns, STEP_NS)
            elapsed_ns -= step
            t = step / SECOND
            sheared = [(x + v * t, v) for x, v in corners]
            swept = _swept(sheared, self._wander * t * t / 2, self._wander * t)
            corners = _cut(_cut(swept, 0.0, 1.0, self._drift), 0.0, -1.0, self._drift)
        return corners


def _swept(corners: list[_Point], x: float, v: float) -> list[_Point]:
    """A convex polygon (counter-clockwise) with every point swept from -(x, v) to (x, v)."""
    sides = [
        1.0 if (v2 - v1) * x - (x2 - x1) * v >= 0 else -1.0
        for (x1, v1), (x2, v2) in zip(corners, [*corners[1:], corners[0]], strict=True)
    ]
    found: list[_Point] = []
    for index, (at_x, at_v) in enumerate(corners):
        before, after = sides[index - 1], sides[index]
        found.append((at_x + before * x, at_v + before * v))
        if after != before:
            found.append((at_x + after * x, at_v + after * v))
    return found


def _cut(corners: list[_Point], a: float, b: float, most: float) -> list[_Point]:
    """The part of a convex polygon where a x + b v <= most."""
    over = [a * x + b * v - most for x, v in corners]
    if max(over) <= 0:
        return corners
    found: list[_Point] = []
    for index, ((x2, v2), second) in enumerate(zip(corners, over, strict=True)):
        (x1, v1), first = corners[index - 1], over[index - 1]
        if (first > 0) != (second > 0):
            share = first / (first - second)
            found.append((x1 + (x2 - x1) * share, v1 + (v2 - v1) * share))
        if second <= 0:
            found.append((x2, v2))
    assert found, "no motion agrees with the messages"
    return found
