"""The applied line: continuous, slow, drawn to the bound and calm inside it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skewd.bounds import applied
from skewd.interval import Interval

PERIOD = 250_000_000
bounds = st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 10**7)).map(lambda b: Interval(b[0], b[0] + b[1]))
drifts = st.tuples(st.integers(-300_000, 300_000), st.integers(0, 400_000)).map(lambda d: Interval(d[0], d[0] + d[1]))


@given(bounds, bounds, drifts, st.integers(0, 10**10))
def test_lines_are_continuous_and_never_steep(first: Interval, second: Interval, drift: Interval, later: int) -> None:
    line = applied.begin(0, first, drift)
    following = applied.continue_(line, later, second, drift, PERIOD)
    assert following.at(later) == line.at(later)
    assert abs(following.slope_ppb) <= applied.SLEW_MAX_PPB < 1_000_000_000


def test_a_breathing_bound_does_not_move_it() -> None:
    line = applied.begin(0, Interval(-1_000, 1_000), Interval(-10, 10))
    for i in range(1, 50):
        breath = 400 * (i % 2)
        line = applied.continue_(line, i * PERIOD, Interval(-1_000 + breath, 1_000 + breath), Interval(-10, 10), PERIOD)
        assert line.slope_ppb == 0


def test_it_follows_the_drift_and_stays_inside() -> None:
    """50 ppm of drift under a bound of +-100 us: inside at every knot, without a correction."""
    line = applied.begin(0, Interval(-100_000, 100_000), Interval(50_000, 50_000))
    for i in range(1, 400):
        centre = 50_000 * i * PERIOD // 1_000_000_000
        bound = Interval(centre - 100_000, centre + 100_000)
        line = applied.continue_(line, i * PERIOD, bound, Interval(50_000, 50_000), PERIOD)
        assert bound.contains(line.offset_ns)


def test_left_outside_it_comes_back_as_fast_as_order_allows() -> None:
    line = applied.begin(0, Interval(-10_000_000, 10_000_000), Interval(0, 0))
    target = Interval(4_900_000, 5_100_000)
    ticks = 0
    while not target.contains(line.at(ticks * PERIOD)):
        line = applied.continue_(line, ticks * PERIOD, target, Interval(0, 0), PERIOD)
        ticks += 1
    assert ticks * PERIOD <= 750_000_000  # 5 ms at 5 %, to a period
    for _ in range(100):
        line = applied.continue_(line, ticks * PERIOD, target, Interval(0, 0), PERIOD)
        ticks += 1
    assert abs(line.at(ticks * PERIOD) - 5_000_000) * 4 <= target.width


def test_a_single_point_is_met_exactly_enough() -> None:
    line = applied.begin(0, Interval(7, 7), Interval(0, 0))
    assert line.at(10**12) == 7
