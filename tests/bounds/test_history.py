"""Past instants: what two knots allow between them, eras, hulls, memory."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds import applied
from skewd.bounds.history import UNSYNCHRONIZED, Correction, History, Knot, Status, carried
from skewd.interval import Interval

SECOND = 1_000_000_000
MS = 1_000_000


def knot(
    wall_ns: int,
    bound: Interval | None,
    *,
    era: int = 1,
    begin: int = 0,
    end: int | None = None,
    drift: Interval = Interval(-1_000, 1_000),  # noqa: B008 - immutable
    applied_ns: int | None = None,
    slope: int = 0,
    raw_ns: int | None = None,
    reference: str | None = "node:a",
) -> Knot:
    return Knot(
        era=era,
        era_begin_wall_ns=begin,
        previous_end_wall_ns=end,
        raw_ns=wall_ns if raw_ns is None else raw_ns,
        wall_ns=wall_ns,
        bound=bound,
        drift_ppb=drift,
        wander_ppb_per_s=20,
        applied_ns=(bound.midpoint if bound else 0) if applied_ns is None else applied_ns,
        applied_slope_ppb=slope,
        status=Status.SYNCHRONIZED if bound else Status.UNSYNCHRONIZED,
        reference=reference if bound else None,
    )


def test_nothing_is_known_before_the_first_knot_and_before_its_era() -> None:
    history = History()
    assert history.at(0) == UNSYNCHRONIZED
    history.append(knot(10 * SECOND, Interval(-100, 100), begin=9 * SECOND))
    assert history.at(9 * SECOND - 1) == UNSYNCHRONIZED
    assert history.at(9 * SECOND).status is Status.SYNCHRONIZED


def test_what_arrives_later_reaches_back_and_the_offset_stands_still() -> None:
    history = History()
    history.append(knot(10 * SECOND, Interval(400, 600), begin=0, slope=50_000))
    correction = history.at(9 * SECOND)
    assert correction == Correction(500, 100 + 1_000 + 10, Status.SYNCHRONIZED, "node:a")


def test_between_two_knots_both_bounds_hold() -> None:
    history = History()
    history.append(knot(0, Interval(-1_000_000, 1_000_000)))
    history.append(knot(SECOND, Interval(-100, 100), applied_ns=0))
    # From the second knot backwards: 100 + (1000 + the wander of a second) x 0.25; far narrower than forwards.
    assert history.at(SECOND * 3 // 4).uncertainty_ns == 100 + 255 + 1


def test_contradicting_knots_give_the_hull() -> None:
    history = History()
    history.append(knot(0, Interval(0, 10)))
    history.append(knot(SECOND, Interval(5_000, 5_010)))
    correction = history.at(SECOND // 2)
    assert correction.offset_ns - correction.uncertainty_ns <= 0
    assert correction.offset_ns + correction.uncertainty_ns >= 5_010


def test_a_change_of_the_reference_between_two_knots_gives_the_hull() -> None:
    """Their bounds overlap, but one speaks of the reference's clock before its step and the other of it after."""
    history = History()
    history.append(knot(0, Interval(0, 1_000)))
    history.append(replace(knot(SECOND, Interval(900, 1_900)), epoch=1))
    for stamp in (SECOND // 4, SECOND * 3 // 4):
        correction = history.at(stamp)
        assert correction.offset_ns - correction.uncertainty_ns <= 0
        assert correction.offset_ns + correction.uncertainty_ns >= 1_900


def test_too_wide_is_unsynchronized() -> None:
    history = History(max_uncertainty_ns=50)
    history.append(knot(0, Interval(-60, 60)))
    assert history.at(0) == UNSYNCHRONIZED


def test_a_lost_bound_is_unsynchronized_until_the_next() -> None:
    history = History()
    history.append(knot(0, Interval(0, 10)))
    history.append(knot(SECOND, None))
    history.append(knot(2 * SECOND, Interval(0, 10)))
    assert history.at(SECOND // 2).status is Status.SYNCHRONIZED
    assert history.at(SECOND * 3 // 2) == UNSYNCHRONIZED
    assert history.at(2 * SECOND).status is Status.SYNCHRONIZED


@pytest.mark.parametrize("stamps", ["wall", "unknown"])
def test_a_step_back_repeats_readings_and_both_eras_claim_them(stamps: str) -> None:
    history = History(stamps=stamps)
    # Era 1 runs to 100 s and is 0 off; then the clock is set back by 5 ms, so the offset becomes +5 ms.
    for second in range(90, 101):
        history.append(knot(second * SECOND, Interval(-50, 50), raw_ns=second * SECOND))
    begin = 100 * SECOND - 5 * MS
    history.append(knot(begin + 1 * MS, Interval(5 * MS - 50, 5 * MS + 50), era=2, begin=begin, end=100 * SECOND))
    repeated = history.at(begin + 2 * MS)
    assert repeated.offset_ns - repeated.uncertainty_ns <= 0
    assert repeated.offset_ns + repeated.uncertainty_ns >= 5 * MS
    assert abs(history.at(begin - 1).offset_ns) <= 50
    after = history.at(100 * SECOND + 1)
    if stamps == "wall":
        assert after.uncertainty_ns < 200
        assert abs(after.offset_ns - 5 * MS) <= 50
    else:
        assert after.uncertainty_ns >= 5 * MS  # an anchored stamp may still follow the old era
    later = history.at(begin + 31 * SECOND)
    assert later.uncertainty_ns < 100_000


def test_a_reading_that_a_step_forward_skipped_belongs_to_no_era() -> None:
    history = History(stamps="wall")
    history.append(knot(100 * SECOND, Interval(-50, 50)))
    history.append(knot(200 * SECOND, Interval(-50, 50), era=2, begin=199 * SECOND, end=101 * SECOND, raw_ns=101))
    assert history.at(150 * SECOND) == UNSYNCHRONIZED
    assert history.at(101 * SECOND).status is Status.SYNCHRONIZED


def test_knots_only_go_forwards() -> None:
    history = History()
    history.append(knot(SECOND, Interval(0, 1)))
    with pytest.raises(ValueError, match="not after"):
        history.append(knot(SECOND, Interval(0, 1)))


def test_memory_and_age_are_limited() -> None:
    history = History(knots_max=1_000)
    for i in range(5_000):
        history.append(knot(i * SECOND // 4, Interval(-50, 50)))
    assert history._count <= 1_000
    assert history.at(1) == UNSYNCHRONIZED
    assert history.at(4_990 * SECOND // 4).status is Status.SYNCHRONIZED
    old = History()
    for i in range(2_000):
        old.append(knot(i * SECOND, Interval(-50, 50)))
    assert old._count <= 1_100
    assert old.at(1_990 * SECOND - 890 * SECOND).status is Status.SYNCHRONIZED


def test_eras_are_limited() -> None:
    history = History()
    for i in range(500):
        history.append(knot(i * SECOND, Interval(-50, 50), era=i + 1, begin=i * SECOND, end=i * SECOND))
    assert len(history._eras) <= 64
    assert history.latest is not None
    assert history.latest.era == 500


def test_tightened_knots_replace_their_own_instant_only() -> None:
    history = History()
    history.append(knot(0, Interval(-1_000, 1_000), applied_ns=0))
    history.append(knot(SECOND, Interval(-1_000, 1_000), applied_ns=0))
    history.tighten([knot(SECOND, Interval(-10, 10), applied_ns=0), knot(SECOND + 1, Interval(5, 5))])
    assert history.at(SECOND).uncertainty_ns == 10


@given(st.integers(-(10**12), 10**12), st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.integers(0, 1_000))
def test_carried_is_outward(elapsed_ns: int, slowest: int, spread: int, wander: int) -> None:
    moved = carried(elapsed_ns, Interval(slowest, slowest + spread), wander)
    seconds = elapsed_ns / SECOND
    for drift in (slowest, slowest + spread):
        for direction in (-1, 1):
            exact = drift * seconds + direction * wander * seconds**2 / 2
            assert moved.lo - 1 <= exact <= moved.hi + 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_stamps_of_one_node_never_change_places(seed: int, knots: int) -> None:
    """Whatever the bound does, t + applied(t) is monotone within an era: spans keep their order exactly."""
    choose = random.Random(seed)
    history = History(max_uncertainty_ns=10 * SECOND)
    wall, line = 0, None
    for _ in range(knots):
        centre, half = choose.randrange(-5 * MS, 5 * MS), choose.randrange(100, 3 * MS)
        bound, drift = Interval(centre - half, centre + half), Interval(-200_000, choose.randrange(200_000))
        line = (
            applied.begin(wall, bound, drift)
            if line is None
            else applied.continue_(line, wall, bound, drift, 250_000_000)
        )
        history.append(knot(wall, bound, applied_ns=line.offset_ns, slope=line.slope_ppb, drift=drift))
        wall += choose.randrange(1, 600 * MS)
    stamps = sorted(
        {max(0, k.wall_ns + d) for k in history._eras[0].knots for d in (-1_000, -2, -1, 0, 1, 2, 1_000)}
        | {choose.randrange(0, wall) for _ in range(200)}
    )
    corrected = [stamp + history.at(stamp).offset_ns for stamp in stamps]
    assert corrected == sorted(corrected)


def test_what_ends_a_silence_tightens_all_of_it() -> None:
    """A minute without a message, then one: halfway the bound is as wide as from either end, not as from the first."""
    history = History()
    quarter = SECOND // 4
    drift = Interval(-5_000, 5_000)
    for index in range(240):
        wide = 1_000 + 5_000 * index // 4
        history.append(knot(index * quarter, Interval(-wide, wide), applied_ns=0, drift=drift))
    before = history.at(45 * SECOND).uncertainty_ns
    for index in range(240, 244):
        history.append(knot(index * quarter, Interval(-1_000, 1_000), applied_ns=0, drift=drift))
    after = history.at(45 * SECOND).uncertainty_ns
    assert before >= 225_000
    assert after <= 1_000 + 15 * 5_100 + 2_000
    assert history.at(5 * SECOND).uncertainty_ns <= 27_000
    # The daemon gives its newest knots again and again: what later ones told is not lost by that.
    history.tighten(
        [knot(index * quarter, Interval(-300_000, 300_000), applied_ns=0, drift=drift) for index in range(230, 240)]
    )
    assert history.at(58 * SECOND).uncertainty_ns <= 1_000 + 2 * 5_100 + 2_000


def test_the_newest_knots_reach_back_only_once_they_stand() -> None:
    """A slew that begins makes the newest knots wider again; nothing older may have been made narrower by them."""
    history = History()
    for index in range(5):
        history.append(knot(index * SECOND, Interval(-50_000, 50_000), applied_ns=0))
    history.append(knot(5 * SECOND, Interval(-100, 100), applied_ns=0))
    history.tighten([knot(5 * SECOND, Interval(-40_000, 40_000), applied_ns=0)])
    assert history.at(3 * SECOND).uncertainty_ns >= 40_000
