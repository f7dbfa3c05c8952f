"""The one value everything here speaks: a closed interval of whole nanoseconds.

A clock reading is never a point. A measured offset is known to lie between two ends, and whatever is computed
from it must be at least as wide as the truth allows. So an interval only ever grows by rounding (outward), and
operations follow interval arithmetic: the result holds every value that the operands could have produced.

Limits: ends are Python integers, so nothing overflows; an interval is never empty (an empty intersection is
``None``, and whoever asked must say what that means).

Written by hand, not as a frozen dataclass: a daemon makes thousands of these a second, and a check that is run every
few seconds would spend more on importing ``dataclasses`` than on its verdict.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, without importing it
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Interval:
    """Every value from ``lo`` to ``hi``, both included, in nanoseconds unless the owner says otherwise. Immutable.

    Raises:
        ValueError: ``lo`` is greater than ``hi``.
    """

    __slots__ = ("hi", "lo")
    __match_args__ = ("lo", "hi")

    lo: int
    hi: int

    def __init__(self, lo: int, hi: int) -> None:
        if lo > hi:
            raise ValueError(f"an interval's lower end {lo} is above its upper end {hi}")
        _set_lo(self, lo)
        _set_hi(self, hi)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an interval is never changed, so its {name} cannot be set; make another")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an interval is never changed, so its {name} cannot be removed; make another")

    def __reduce__(self) -> tuple[type[Interval], tuple[int, int]]:
        return Interval, (self.lo, self.hi)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interval):
            return NotImplemented
        return self.lo == other.lo and self.hi == other.hi

    def __hash__(self) -> int:
        return hash((self.lo, self.hi))

    def __repr__(self) -> str:
        return f"Interval(lo={self.lo}, hi={self.hi})"

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


# The slots' own setters, past the class's refusal to be changed.
_set_lo: Any = Interval.__dict__["lo"].__set__
_set_hi: Any = Interval.__dict__["hi"].__set__
