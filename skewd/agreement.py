"""Do enough of the configured sources say the same? What they then prove, and who of them is believed.

The problem: whoever answers first is a majority of those that have answered. A liar that is quick moves a clock until
the honest ones are heard, after each start and each suspend.

The insight: the assumption is that most of those *configured* are honest, so the count is of those configured. There is
no UTC until ``needed`` of them (by default more than half) share a place. At most f = (n - 1) // 2 of n configured ones
are wrong, so of m that are heard at least m - f are right, and what m - f share holds the truth, whichever they are.
A source that is silent makes the bound wider, never wrong.

A *preferred* source decides a tie and nothing else: where exactly half of those configured agree, the half that it is
in counts as the majority. That is an assumption of whoever configured it, that this source is honest, and the bound is
then never wider than what it says itself. Preferred ones that contradict each other decide nothing.

Limits: with ``min_sources`` below the default whoever answers first is believed, as it was asked for. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from skewd.bounds.select import Selection, select, shared
from skewd.interval import Interval

NOBODY = Selection(None, (), ())


class Quorum(NamedTuple):
    """How many there are, and how many must agree.

    Attributes:
        configured: the sources that are configured, or were found.
        min_sources: what is configured instead of more than half of them; None for that.
    """

    configured: int
    min_sources: int | None = None

    @property
    def needed(self) -> int:
        """How many must share a place."""
        return self.configured // 2 + 1 if self.min_sources is None else self.min_sources

    def decides(self, preferred: Sequence[bool]) -> bool:
        """Whether so many are heard that they could decide, if they agree.

        Args:
            preferred: of each source that is heard, whether it is preferred.
        """
        may_tie = self.configured % 2 == 0 and self.needed <= self.configured // 2 + 1 and any(preferred)
        return len(preferred) >= (min(self.needed, self.configured // 2) if may_tie else self.needed)


class Agreed(NamedTuple):
    """What enough sources agree on.

    Attributes:
        level: how many of those that are heard are surely right.
        preferred: indices of those that are right by declaration, where there was a tie.
        selection: who is believed and who is not.
    """

    level: int
    preferred: tuple[int, ...]
    selection: Selection

    def of(self, intervals: Sequence[Interval]) -> Interval | None:
        """The bound on what each of the sources bounds, their offsets or their drifts; None where they share none."""
        bound = shared(intervals, self.level)
        for index in self.preferred:
            bound = None if bound is None else bound.intersect(intervals[index])
        return bound


def agree(intervals: Sequence[Interval], preferred: Sequence[bool], quorum: Quorum) -> Agreed | None:
    """What the sources that are heard agree on; None where too few of them do.

    Args:
        intervals: one for each source that is heard.
        preferred: of each, whether it is.
    """
    heard = len(intervals)
    if shared(intervals, max(quorum.needed, heard // 2 + 1)) is not None:
        return Agreed(max(1, heard - (quorum.configured - 1) // 2), (), select(intervals))
    favoured = tuple(index for index in range(heard) if preferred[index])
    if not favoured or not quorum.decides(preferred):
        return None
    joint: Interval | None = intervals[favoured[0]]
    for index in favoured[1:]:
        joint = None if joint is None else joint.intersect(intervals[index])
    if joint is None:
        return None
    parts = [part for part in (interval.intersect(joint) for interval in intervals) if part is not None]
    half = quorum.configured // 2
    place = shared(parts, half)
    if place is None:
        return None
    agreed = Agreed(max(1, heard - half), favoured, NOBODY)
    bound = agreed.of(intervals)
    if bound is None:
        return None
    with_it = tuple(index for index in range(heard) if intervals[index].intersect(place) is not None)
    without = tuple(index for index in range(heard) if index not in with_it)
    return agreed._replace(selection=Selection(place, with_it, without))
