"""Intervals and durations."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.durations import format_duration, parse_duration_ns
from skewd.interval import Interval

ends = st.tuples(st.integers(), st.integers()).map(lambda e: Interval(min(e), max(e)))


@given(ends, ends, st.data())
def test_arithmetic_holds_every_pair_of_values(a: Interval, b: Interval, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(a.lo, a.hi)), data.draw(st.integers(b.lo, b.hi))
    assert (a + b).contains(x + y)
    assert (a - b).contains(x - y)
    assert (-a).contains(-x)
    assert a.hull(b).contains(x)
    assert a.contains(a.midpoint)
    assert a.farthest(y) >= abs(x - y) or a.contains(y) or abs(x - y) <= a.farthest(y)
    assert abs(x - y) <= a.farthest(y)
    common = a.intersect(b)
    assert (common is None) == (a.hi < b.lo or b.hi < a.lo)
    if common is not None:
        assert common.contains(max(a.lo, b.lo))


def test_ends_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="above"):
        Interval(2, 1)
    with pytest.raises(ValueError, match="outward"):
        Interval(1, 2).widen(-1)


def test_an_interval_is_a_value() -> None:
    interval = Interval(1, 2)
    with pytest.raises(AttributeError, match="lo cannot be set"):
        interval.lo = 5
    with pytest.raises(AttributeError, match="hi cannot be removed"):
        del interval.hi
    assert interval == Interval(1, 2) != Interval(1, 3)
    assert interval != (1, 2)
    assert len({interval, Interval(1, 2), Interval(0, 2)}) == 2
    assert pickle.loads(pickle.dumps(interval)) == copy.deepcopy(interval) == interval
    assert repr(interval) == "Interval(lo=1, hi=2)"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("5ms", 5_000_000),
        ("250us", 250_000),
        ("250µs", 250_000),
        ("-2s", -2_000_000_000),
        ("1.5ms", 1_500_000),
        ("0s", 0),
        ("2m", 120 * 10**9),
        ("1h", 3600 * 10**9),
        ("7 ns", 7),
    ],
)
def test_durations_are_read_exactly(text: str, ns: int) -> None:
    assert parse_duration_ns(text) == ns


@pytest.mark.parametrize(
    ("text", "says"),
    [("5", "5ms"), ("-3.5", "has no unit"), ("5 parsecs", "a number and a unit"), ("", "unit"), ("1.5ns", "finer")],
)
def test_what_is_no_duration_is_refused_with_the_fix(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (5_000_000, "5 ms"),
        (-250_000, "-250 us"),
        (1_250_000_000, "1.25 s"),
        (12, "12 ns"),
        (0, "0 ns"),
        (1500, "1.5 us"),
    ],
)
def test_durations_are_written_short(ns: int, text: str) -> None:
    assert format_duration(ns) == text
