"""The wall map as a short history: past instants, slews and steps of a simulated clock."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.wall import HISTORY_NS, SLEW_MAX_PPM, WallMap, passage

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
    clock = Wall(500)
    wall = WallMap(clock.sample(0))
    for i in range(1, 5_000):
        wall.sample(clock.sample(i * MS))
    latest = wall.latest.raw_ns
    # Within the readings kept it is known by those around it, before them by the carried earliest one.
    assert wall.wall_minus_raw(latest - 400 * MS).width < 2_000
    assert wall.wall_minus_raw(latest - 4_000 * MS).width > 1_000_000


@given(
    gap=st.integers(1, 20 * MS),
    slow_ppm=st.integers(-84_000, 0),
    fast_ppm=st.integers(0, 84_000),
    turns=st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=6),
    widths=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    within=st.tuples(st.integers(0, 100), st.integers(0, 100)),
)
def test_between_two_readings_the_clock_is_where_passage_says_however_it_turned(
    gap: int,
    slow_ppm: int,
    fast_ppm: int,
    turns: list[tuple[int, bool]],
    widths: tuple[int, int],
    within: tuple[int, int],
) -> None:
    """A clock slewed bang-bang between its fastest and its slowest, read imprecisely at both ends."""
    rates = [fast_ppm if up else slow_ppm for _, up in turns]
    total = sum(part for part, _ in turns)
    spans = [gap * part // total for part, _ in turns]
    path = [0]
    for span, rate in zip(spans, rates, strict=True):
        path.append(path[-1] + span * rate)  # in 1e-6 ns
    exact = [EPOCH + at // 1_000_000 for at in path]

    def reading(raw_ns: int, at: int, width: int, share: int) -> WallSample:
        lo = at - width * share // 100
        return WallSample(raw_ns, Interval(lo, lo + width))

    before = reading(0, exact[0], widths[0], within[0])
    after = reading(sum(spans), exact[-1], widths[1], within[1])
    told = passage(before, after, Interval(slow_ppm * 1_000, fast_ppm * 1_000))
    assert told is not None
    assert all(told.contains(at) for at in exact)
    steepest = gap * max(fast_ppm, -slow_ppm) // 1_000_000
    assert told.width <= sum(widths) + 2 * steepest + 100


def test_passage_is_no_wider_than_the_worst_turn() -> None:
    flat = passage(WallSample(0, Interval(0, 0)), WallSample(10 * MS, Interval(0, 0)), Interval(-500_000, 1_000_000))
    assert flat is not None
    assert 3_333 <= flat.hi <= 3_338  # up at 1000 ppm for a third of the time, down at 500 for the rest
    assert -3_338 <= flat.lo <= -3_333
    assert passage(WallSample(0, Interval(0, 9)), WallSample(MS, Interval(2_000, 2_009)), Interval(-900, 900)) is None


@given(
    by_ns=st.integers(1 * MS, 40 * MS),
    forward=st.booleans(),
    wide_ns=st.lists(st.integers(0, 60 * MS), min_size=0, max_size=4),
    when=st.floats(0, 1),
    slew_ppb=st.integers(-900_000, 900_000),
    share=st.floats(0, 1),
)
def test_a_wide_reading_is_no_bridge_over_a_step(
    by_ns: int, forward: bool, wide_ns: list[int], when: float, slew_ppb: int, share: float
) -> None:
    """Readings that waited in the middle come between two narrow ones; the step is anywhere between those."""
    step = by_ns if forward else -by_ns
    begin = 10**15
    ends = [begin]
    for wide in wide_ns:
        ends.append(ends[-1] + 3 * MS + wide)
    last = ends[-1] + 7 * MS
    stepped_ns = begin + 1 + round((last - 300 - begin) * when)

    def wall(raw: int) -> int:
        return 1_700_000_000 * 10**9 + raw + slew_ppb * (raw - begin) // 10**9 + step * (raw >= stepped_ns)

    def sample(end: int, width: int) -> WallSample:
        read = end - round(width * share)
        return WallSample(end, Interval(wall(read) - end, wall(read) - end + width))

    found = WallMap(sample(begin, 200))
    seen = [found.sample(sample(end, wide)) for end, wide in zip(ends[1:], wide_ns, strict=True)]
    seen.append(found.sample(sample(last, 200)))
    assert seen.count(True) == 1, seen
    assert found.era == 2
    assert found.era_begin_wall_ns <= wall(stepped_ns)
    assert found.previous_end_wall_ns is not None
    assert found.previous_end_wall_ns >= wall(stepped_ns - 1)
    assert found.last_step_ns is not None


@given(st.lists(st.tuples(st.integers(1 * MS, 300 * MS), st.integers(100, 60 * MS), st.floats(0, 1)), max_size=60))
def test_wide_readings_of_a_clock_that_is_only_slewed_are_no_step(looks: list[tuple[int, int, float]]) -> None:
    raw = 10**15
    rate_ppb = 0
    shown = 0
    found = WallMap(WallSample(raw, Interval(0, 200)))
    for number, (wait, width, share) in enumerate(looks):
        before, raw = raw, raw + wait + width
        read = raw - round(width * share)
        rate_ppb = 1_000_000 if number % 5 < 2 else -1_000_000
        at_read = shown + rate_ppb * (read - before) // 10**9
        shown += rate_ppb * (raw - before) // 10**9
        offset = at_read - (raw - read)
        assert not found.sample(WallSample(raw, Interval(offset, offset + width)))
    assert found.era == 1
