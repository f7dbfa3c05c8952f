"""Whatever fewer than half of the configured sources say, and whoever is silent: the bound holds the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.agreement import Quorum, agree
from skewd.bounds.select import shared
from skewd.interval import Interval

ENDS = st.tuples(st.integers(-50, 50), st.integers(-50, 50)).map(lambda ends: Interval(min(ends), max(ends)))
TRUE = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda ends: Interval(-ends[0], ends[1]))
"""An interval that holds the truth, which is 0."""


@given(st.data(), st.integers(1, 7))
def test_a_minority_of_liars_never_moves_the_bound_off_the_truth(data: st.DataObject, configured: int) -> None:
    liars = data.draw(st.integers(0, (configured - 1) // 2))
    said = data.draw(st.lists(ENDS, min_size=liars, max_size=liars))
    said += data.draw(st.lists(TRUE, min_size=configured - liars, max_size=configured - liars))
    heard = data.draw(st.lists(st.sampled_from(range(configured)), unique=True))
    intervals = [said[index] for index in heard]
    agreed = agree(intervals, [False] * len(heard), Quorum(configured))
    if len(heard) < configured // 2 + 1:
        assert agreed is None
    if agreed is not None:
        bound = agreed.of(intervals)
        assert bound is not None
        assert bound.contains(0)
        assert set(agreed.selection.truechimers) | set(agreed.selection.falsetickers) == set(range(len(heard)))


@given(st.data(), st.integers(1, 4))
def test_where_half_lie_the_preferred_source_decides(data: st.DataObject, half: int) -> None:
    """It is honest, as was declared; half of the others may not be."""
    said = data.draw(st.lists(TRUE, min_size=half, max_size=half))
    said += data.draw(st.lists(ENDS, min_size=half, max_size=half))
    others = data.draw(st.lists(st.sampled_from(range(1, 2 * half)), unique=True)) if half > 1 else []
    heard = [0, *others]
    intervals = [said[index] for index in heard]
    agreed = agree(intervals, [index == 0 for index in heard], Quorum(2 * half))
    if agreed is not None and agreed.preferred:
        bound = agreed.of(intervals)
        assert bound is not None
        assert bound.contains(0)
        assert bound.intersect(intervals[0]) == bound
        assert 0 in agreed.selection.truechimers


@pytest.mark.parametrize(
    ("intervals", "preferred", "quorum", "bound"),
    [
        # One of three is nobody's majority, and neither is one of two.
        ([Interval(5, 6)], [False], Quorum(3), None),
        ([Interval(5, 6)], [False], Quorum(2), None),
        ([Interval(5, 6)], [False], Quorum(1), Interval(5, 6)),
        # Two of three that agree: one of them may lie, so both are covered.
        ([Interval(0, 6), Interval(4, 9)], [False, False], Quorum(3), Interval(0, 9)),
        ([Interval(0, 6), Interval(4, 9)], [False, False], Quorum(2), Interval(4, 6)),
        ([Interval(0, 3), Interval(4, 9)], [False, False], Quorum(3), None),
        # As configured: whoever answers first.
        ([Interval(5, 6)], [False], Quorum(3, 1), Interval(5, 6)),
        ([Interval(0, 6), Interval(4, 9), Interval(5, 9)], [False] * 3, Quorum(3, 3), Interval(4, 9)),
        ([Interval(0, 6), Interval(4, 9), Interval(7, 9)], [False] * 3, Quorum(3, 3), None),
        # A tie, and alone of two.
        ([Interval(0, 3), Interval(5, 9)], [False, True], Quorum(2), Interval(5, 9)),
        ([Interval(5, 9)], [True], Quorum(2), Interval(5, 9)),
        ([Interval(0, 3), Interval(5, 9)], [True, True], Quorum(2), None),
        # No tie: it decides nothing.
        ([Interval(0, 3), Interval(0, 2), Interval(5, 9)], [False, False, True], Quorum(3), Interval(0, 2)),
        ([Interval(5, 9)], [True], Quorum(3), None),
        ([Interval(5, 9)], [True], Quorum(2, 2), Interval(5, 9)),
    ],
)
def test_who_is_enough(
    intervals: list[Interval], preferred: list[bool], quorum: Quorum, bound: Interval | None
) -> None:
    agreed = agree(intervals, preferred, quorum)
    assert (None if agreed is None else agreed.of(intervals)) == bound


@given(st.lists(ENDS, max_size=6), st.integers(1, 6))
def test_what_so_many_share(intervals: list[Interval], count: int) -> None:
    points = [at for at in range(-51, 52) if sum(one.contains(at) for one in intervals) >= count]
    assert shared(intervals, count) == (Interval(points[0], points[-1]) if points else None)
