"""Marzullo's intersection, against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skewd.bounds.select import Selection, majority, select
from skewd.interval import Interval

interval = st.tuples(st.integers(-20, 20), st.integers(0, 10)).map(lambda i: Interval(i[0], i[0] + i[1]))
intervals = st.lists(interval, max_size=7)
spans = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5)


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


@given(intervals)
def test_the_majority_is_the_hull_of_what_more_than_half_share(given_: list[Interval]) -> None:
    shared = [point for point in range(-25, 35) if 2 * sum(i.contains(point) for i in given_) > len(given_)]
    assert majority(given_) == (Interval(min(shared), max(shared)) if shared else None)
    assert (majority(given_) is None) == (select(given_).interval is None)


@given(
    st.integers(-20, 20), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5), st.data()
)
def test_it_holds_the_truth_whatever_fewer_liars_say(
    truth: int, honest: list[tuple[int, int]], data: st.DataObject
) -> None:
    right = [Interval(truth - below, truth + above) for below, above in honest]
    lies = data.draw(st.lists(interval, max_size=len(right) - 1))
    told = majority(data.draw(st.permutations([*right, *lies])))
    assert told is not None
    assert told.contains(truth)


def test_liars_who_side_with_wide_sources_do_not_move_it() -> None:
    """Where the most meet is not where the truth is; nobody tells that from four who agree."""
    right, lies = [Interval(0, 100), Interval(0, 100), Interval(0, 1)], [Interval(90, 95), Interval(91, 99)]
    assert select([*right, *lies]).interval == Interval(91, 95)
    assert majority([*right, *lies]) == Interval(0, 99)
