"""The wall map as a short history: past instants, kernel stamps, slews and steps of a simulated clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.wall import HISTORY_NS, SLEW_MAX_PPM, WallMap

SECOND = 1_000_000_000
MS = 1_000_000
TICK = 20 * MS
EPOCH = 1_700_000_000 * SECOND


class Wall:
    """A wall clock as a function of raw: a rate, and steps at given instants."""

    def __init__(self, ppm: int = 0, steps: dict[int, int] | None = None, *, slew_from: int = 0) -> None:
        self.ppm, self.steps, self.slew_from = ppm, steps or {}, slew_from

    def at(self, raw_ns: int) -> int:
        slewed = max(raw_ns - self.slew_from, 0) * self.ppm // 1_000_000
        return EPOCH + raw_ns + slewed + sum(by for at, by in self.steps.items() if raw_ns >= at)

    def sample(self, raw_ns: int, width: int = 200) -> WallSample:
        return WallSample(raw_ns, Interval(self.at(raw_ns) - raw_ns, self.at(raw_ns) - raw_ns + width))


def run(clock: Wall, until_ns: int, *, kernel: bool = False, seed: int = 0) -> WallMap:
    choose = random.Random(seed)
    wall = WallMap(clock.sample(0))
    raw = 0
    while raw < until_ns:
        raw += TICK + choose.randrange(2 * MS)
        wall.sample(clock.sample(raw, 150 + choose.randrange(300)), clock.ppm * 1_000 if kernel else None)
    return wall


@settings(max_examples=60, deadline=None)
@given(st.integers(-SLEW_MAX_PPM, SLEW_MAX_PPM), st.integers(0, 1_000), st.data())
def test_a_past_instant_is_known_within_the_sandwiches(ppm: int, seed: int, data: st.DataObject) -> None:
    clock = Wall(ppm)
    wall = run(clock, 7 * SECOND, seed=seed)
    back = data.draw(st.integers(0, HISTORY_NS - TICK - 2 * MS))
    raw = wall.latest.raw_ns - back
    told = wall.wall_minus_raw(raw)
    assert told.contains(clock.at(raw) - raw)
    assert told.width <= 500 + 2 * 22 * abs(ppm) + 200  # the readings, and the slew between two of them
    found = wall.raw_of_wall(clock.at(raw), wall.latest.raw_ns)
    if back > 3 * TICK:
        assert found is not None
        assert found.contains(raw)
        assert found.width <= 1_000 + 2 * 22 * abs(ppm) + 200


def test_a_quiet_clock_converts_a_kernel_stamp_within_a_microsecond() -> None:
    clock = Wall(20)
    wall = run(clock, 4 * SECOND)
    for back in range(5 * TICK, 2 * SECOND, 17 * MS):
        raw = wall.latest.raw_ns - back
        found = wall.raw_of_wall(clock.at(raw), raw + TICK)
        assert found is not None
        assert found.contains(raw)
        assert found.width < 1_500


@pytest.mark.parametrize("by", [-50 * MS, 50 * MS, -30 * SECOND, 30 * SECOND])
def test_a_stamp_does_not_convert_across_a_step(by: int) -> None:
    at = 3 * SECOND
    clock = Wall(steps={at: by})
    wall = run(clock, 4 * SECOND)
    assert wall.era == 2
    # Stamped before the step: whoever asks now gets no answer, rather than that of another reading.
    assert wall.raw_of_wall(clock.at(at - 40 * MS), wall.latest.raw_ns) is None
    # In the gap in which it was stepped, on either side.
    for raw in (at - 1, at):
        found = wall.raw_of_wall(clock.at(raw), wall.latest.raw_ns)
        assert found is None or found.contains(raw)
    # Well after it: converts.
    found = wall.raw_of_wall(clock.at(at + 300 * MS), at + 310 * MS)
    assert found is not None
    assert found.contains(at + 300 * MS)


def test_a_reading_that_occurred_twice_does_not_convert() -> None:
    at = 3 * SECOND
    clock = Wall(steps={at: -100 * MS})
    wall = run(clock, 4 * SECOND)
    again = at + 50 * MS  # shows what it showed 50 ms before the step
    assert clock.at(again) == clock.at(at - 50 * MS)
    assert wall.raw_of_wall(clock.at(again), again + MS) is None


def test_a_stamp_without_a_reading_on_both_sides_does_not_convert() -> None:
    clock = Wall()
    wall = run(clock, SECOND)
    latest = wall.latest.raw_ns
    assert wall.raw_of_wall(clock.at(latest + MS), latest) is None  # no reading after it yet
    assert wall.raw_of_wall(clock.at(latest - 5 * TICK), latest + 1) is None  # nor after the instant it is asked for
    assert wall.raw_of_wall(clock.at(0) - SECOND, latest) is None
    long = run(clock, 2 * HISTORY_NS)
    assert long.raw_of_wall(clock.at(SECOND), long.latest.raw_ns) is None  # forgotten


@given(st.sampled_from([-83_333, -5_000, 5_000, 83_333]), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_fast_slew_that_the_kernel_tells_of_is_no_row_of_steps(ppm: int, seed: int) -> None:
    clock = Wall(ppm)
    wall = run(clock, 3 * SECOND, kernel=True, seed=seed)
    assert wall.era <= 2  # the settings were made after the first reading: at most that one looks like a step
    raw = wall.latest.raw_ns - 155 * MS
    assert wall.wall_minus_raw(raw).contains(clock.at(raw) - raw)
    assert wall.slew_ppb() >= abs(ppm) * 1_000
    untold = run(clock, SECOND, seed=seed)
    assert untold.era > 10


def test_a_step_is_told_from_a_fast_slew() -> None:
    clock = Wall(50_000, {2 * SECOND: 20 * MS})
    wall = run(clock, SECOND, kernel=True)
    era = wall.era
    raw = wall.latest.raw_ns
    while wall.era == era:
        raw += TICK
        wall.sample(clock.sample(raw), 50_000_000)
        assert raw < 2 * SECOND + 2 * TICK
    assert raw >= 2 * SECOND
    assert abs((wall.last_step_ns or 0) - 20 * MS) < 2 * MS


def test_a_slew_that_begins_is_allowed_for_at_once() -> None:
    clock = Wall(500, slew_from=5 * SECOND)
    wall = WallMap(clock.sample(0))
    raw = 0
    while raw < 5 * SECOND + 200 * MS:
        raw += TICK
        wall.sample(clock.sample(raw))
        if raw < 5 * SECOND:
            settled = wall.slew_ppb()
        if raw > 5 * SECOND + TICK:
            assert wall.slew_ppb() >= 500_000
    assert settled < 2_000
    assert wall.era == 1


def test_memory_stays_bounded() -> None:
    wall = WallMap(Wall().sample(0))
    for i in range(1, 5_000):
        wall.sample(Wall().sample(i * MS))
    latest = wall.latest.raw_ns
    assert wall.raw_of_wall(Wall().at(latest - 400 * MS), latest) is not None
    assert wall.raw_of_wall(Wall().at(latest - 600 * MS), latest) is None
