"""Marzullo's intersection, against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skewd.bounds.select import Selection, select
from skewd.interval import Interval

intervals = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(0, 10)).map(lambda i: Interval(i[0], i[0] + i[1])), max_size=7
)


def test_all_agree() -> None:
    assert select([Interval(8, 12), Interval(11, 13), Interval(10, 12)]) == Selection(Interval(11, 12), (0, 1, 2), ())


def test_one_is_wrong() -> None:
    assert select([Interval(8, 12), Interval(11, 13), Interval(14, 15)]) == Selection(Interval(11, 12), (0, 1), (2,))


def test_two_against_each_other_are_no_majority() -> None:
    assert select([Interval(1, 2), Interval(3, 4)]) == Selection(None, (), ())
    assert select([]) == Selection(None, (), ())


def test_equally_shared_places_give_the_hull() -> None:
    assert select([Interval(8, 9), Interval(8, 12), Interval(10, 12)]).interval == Interval(8, 12)


def test_touching_ends_share_a_point() -> None:
    assert select([Interval(0, 5), Interval(5, 9)]).interval == Interval(5, 5)


@given(intervals)
def test_the_answer_holds_every_point_that_the_most_share(given_: list[Interval]) -> None:
    counts = {point: sum(i.contains(point) for i in given_) for point in range(-25, 35)}
    most = max(counts.values())
    selection = select(given_)
    if most * 2 <= len(given_):
        assert selection.interval is None
        return
    best = [point for point, count in counts.items() if count == most]
    assert selection.interval == Interval(min(best), max(best))
    assert sorted(selection.truechimers + selection.falsetickers) == list(range(len(given_)))
    for index in selection.falsetickers:
        assert not any(given_[index].contains(point) for point in best)
