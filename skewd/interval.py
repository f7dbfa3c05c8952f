"""The one value everything here speaks: a closed interval of whole nanoseconds.

A clock reading is never a point. A measured offset is known to lie between two ends, and whatever is computed
from it must be at least as wide as the truth allows. So an interval only ever grows by rounding (outward), and
operations follow interval arithmetic: the result holds every value that the operands could have produced.

Limits: ends are Python integers, so nothing overflows; an interval is never empty (an empty intersection is
``None``, and whoever asked must say what that means).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """Every value from ``lo`` to ``hi``, both included, in nanoseconds unless the owner says otherwise.

    Raises:
        ValueError: ``lo`` is greater than ``hi``.
    """

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if self.lo > self.hi:
            raise ValueError(f"an interval's lower end {self.lo} is above its upper end {self.hi}")

    @property
    def width(self) -> int:
        """``hi - lo``."""
        return self.hi - self.lo

    @property
    def midpoint(self) -> int:
        """The middle, rounded down; inside the interval always."""
        return (self.lo + self.hi) // 2

    def farthest(self, value: int) -> int:
        """The largest distance from ``value`` to either end: the uncertainty of saying ``value``."""
        return max(self.hi - value, value - self.lo, 0)

    def contains(self, value: int) -> bool:
        """Whether ``value`` lies between the ends, ends included."""
        return self.lo <= value <= self.hi

    def clamp(self, value: int) -> int:
        """The point of the interval nearest to ``value``."""
        return min(max(value, self.lo), self.hi)

    def intersect(self, other: Interval) -> Interval | None:
        """What both allow, or ``None`` when they exclude each other."""
        lo, hi = max(self.lo, other.lo), min(self.hi, other.hi)
        return Interval(lo, hi) if lo <= hi else None

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def widen(self, by: int) -> Interval:
        """Both ends moved outward by ``by`` (>= 0)."""
        if by < 0:
            raise ValueError(f"an interval is widened outward only, not by {by}")
        return Interval(self.lo - by, self.hi + by)

    def shift(self, by: int) -> Interval:
        """Both ends moved by ``by``."""
        return Interval(self.lo + by, self.hi + by)

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.lo - other.hi, self.hi - other.lo)

    def __str__(self) -> str:
        return f"[{self.lo}, {self.hi}] ns"
