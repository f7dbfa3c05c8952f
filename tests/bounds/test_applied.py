"""The applied line: continuous, slow, drawn to the bound and calm inside it."""

from __future__ import annotations

import random

from hypothesis import given, settings
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


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wander=st.sampled_from([0, 20, 5_000]),
    width=st.sampled_from([2, 500, 200_000, 20_000_000]),
    spread=st.sampled_from([0, 50_000, 400_000]),
)
def test_an_era_of_updates_keeps_the_order_of_all_stamps(seed: int, wander: int, width: int, spread: int) -> None:
    """The truth wanders, bounds breathe and jump around it: no gap, no two stamps that change places, soon inside."""
    choose = random.Random(seed)
    truth, rate, now = 0.0, choose.uniform(-spread, spread), 0
    line: applied.Line | None = None
    last_stamp = last_told = -(1 << 62)
    outside = 0
    for step in range(400):
        wide = max(2, round(width * choose.choice((1.0, 1.0, 0.3, 3.0))))
        lo = round(truth) - choose.randrange(wide + 1)
        bound = Interval(lo, lo + wide)
        drift = Interval(round(rate) - spread - choose.randrange(1_000), round(rate) + choose.randrange(1_000))
        following = (
            applied.begin(now, bound, drift) if line is None else applied.continue_(line, now, bound, drift, PERIOD)
        )
        if line is not None:
            assert following.offset_ns == line.at(now)
        line = following
        away = bound.clamp(line.offset_ns) - line.offset_ns
        outside = outside + 1 if step and away else 0
        # Of several bounds in a row at least one was met, unless they are nearer than what 5 % or the drift may do.
        assert outside < 40 or wide < spread // 4 + 2_000
        end = now + choose.choice((PERIOD, PERIOD, PERIOD + 50_000_000, PERIOD // 5))
        for stamp in sorted({now, now + 1, end - 1, *(choose.randrange(now, end) for _ in range(12))}):
            told = stamp + line.at(stamp)
            assert stamp > last_stamp
            assert told >= last_told, "two stamps changed places"
            last_stamp, last_told = stamp, told
        truth += rate * (end - now) / 1e9
        rate += choose.uniform(-1, 1) * wander
        now = end
