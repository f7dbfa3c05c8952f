"""The bound holds for every motion within the declared limits, and is no wider than that needs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds.pair import CONSTRAINTS_MAX, PairBound, pair_limits
from skewd.interval import Interval
from tests.simulation.optimum import Optimum

SECOND = 1_000_000_000


@dataclass
class Motion:
    """A true offset (ns) that moves by bang-bang wander; its whole path can be asked for."""

    drift_max: float
    wander: float
    x: float = 0.0
    v: float = 0.0
    t: float = 0.0
    path: list[tuple[float, float, float, float]] = field(default_factory=list)  # t, x, v, acceleration from t

    def go(self, seconds: float, direction: int) -> None:
        """Accelerates for ``seconds`` in ``direction`` (-1, 0, 1), stopping at the drift limit."""
        accel = direction * self.wander
        until_limit = (math.copysign(self.drift_max, accel) - self.v) / accel if accel else math.inf
        for part, rate in ((min(seconds, until_limit), accel), (seconds - min(seconds, until_limit), 0.0)):
            if part > 0:
                self.path.append((self.t, self.x, self.v, rate))
                self.x += self.v * part + rate * part * part / 2
                self.v += rate * part
                self.t += part

    def at(self, t: float) -> float:
        start, x, v, accel = max((piece for piece in self.path if piece[0] <= t), default=self.path[0])
        return x + v * (t - start) + accel * (t - start) ** 2 / 2


def exchange(bound: PairBound, motion: Motion, t: float, there_s: float, back_s: float) -> None:
    """One message each way around time ``t``, delays as given, exactly stamped (outward to whole ns)."""
    sent = round(t * SECOND)
    bound.outgoing(sent, math.ceil(sent + there_s * SECOND + motion.at(t + there_s)))
    received = round((t + there_s + back_s) * SECOND)
    bound.incoming(math.floor((t + there_s) * SECOND + motion.at(t + there_s)), received)


LIMITS = {"max_drift_ppm": 200, "max_wander_ppb_per_s": 20}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    v0=st.floats(-200_000, 200_000),
    x0=st.floats(-1e12, 1e12),
    gaps=st.lists(st.sampled_from([0.2, 1.0, 1.0, 1.0, 7.0, 60.0, 300.0, 900.0]), min_size=2, max_size=12),
    delay_s=st.sampled_from([0.0, 1e-6, 1e-4, 5e-3]),
)
def test_no_motion_within_the_limits_ever_leaves_the_bound(
    seed: int, v0: float, x0: float, gaps: list[float], delay_s: float
) -> None:
    choose = random.Random(seed)
    motion = Motion(200_000, 20, x=x0, v=v0)
    while motion.t < sum(gaps) + 1_000:
        motion.go(choose.choice([0.5, 3.0, 30.0, 400.0]), choose.choice([-1, 1]))
    bound = PairBound(**LIMITS)
    t = 1.0
    for gap in gaps:
        t += gap
        exchange(bound, motion, t, delay_s * choose.random(), delay_s * choose.random())
        # Now, at past instants, and at later ones up to a long silence, forwards and backwards.
        for away in (0.0, 0.01, 1.0, 10.0, 60.0, 600.0, 900.0):
            for when in (t + 0.02 + away, t - away):
                if 0 <= when <= motion.t:
                    found = bound.offset(round(when * SECOND))
                    assert found is not None
                    assert found.lo <= motion.at(round(when * SECOND) / SECOND) <= found.hi, (when - t, found)
        drift = bound.drift(round(t * SECOND))
        assert drift is not None
        assert drift.lo <= 200_000
        assert drift.hi >= -200_000
    assert bound.contradictions == 0


@pytest.mark.parametrize("silence_s", [1, 5, 10, 60, 120, 300, 600, 900])
@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_of_bang_bang_motion_are_reached_and_not_passed(silence_s: int, forwards: bool, sign: int) -> None:
    """From a known state the farthest motion is full wander all the way; the bound is that, to a few ns."""
    # Two exchanges with no delay, a second apart, while the drift stands at 50 ppm and wander rests.
    motion = Motion(200_000, 20, v=50_000)
    motion.go(2_000, 0)
    bound = PairBound(**LIMITS)
    exchange(bound, motion, 999.5, 0.0, 0.0)
    exchange(bound, motion, 1000.5, 0.0, 0.0)
    start = 1000.5 if forwards else 999.5
    when = start + (silence_s if forwards else -silence_s)
    found = bound.offset(round(when * SECOND))
    assert found is not None
    # Bang-bang: wander at its limit between the two exchanges (mean drift still 50 ppm), then all the way on.
    v = 50_000 + (10 * sign if forwards else -10 * sign)
    reached = motion.at(start) + (when - start) * v + sign * 20 * silence_s**2 / 2
    end = found.hi if sign > 0 else found.lo
    assert sign * (end - reached) >= 0, "the bound is short of a motion that the limits allow"
    # Each of the four messages stands a nanosecond outward, which a drift over a second turns into ppb.
    # Backwards, the set is carried from the latest exchange over the second between the two, whose wander the bound
    # then counts again.
    again = 0 if forwards else 20 * silence_s + 20
    assert sign * (end - reached) <= 4 + 5 * silence_s + again, "the bound is wider than any motion"


def test_drift_limit_bounds_a_long_silence() -> None:
    """At the drift limit nothing accelerates further: after 900 s it is 900 s at the limit, not more."""
    bound = PairBound(**LIMITS)
    bound.outgoing(0, 0)
    bound.incoming(0, 0)
    found = bound.offset(900 * SECOND)
    assert found is not None
    assert abs(found.hi - 200_000 * 900) <= 10
    assert abs(found.lo + 200_000 * 900) <= 10


def test_messages_bound_from_their_own_side_only() -> None:
    bound = PairBound(**LIMITS)
    assert bound.offset(0) is None
    bound.outgoing(1_000, 6_000)
    assert bound.offset(1_000) is None
    assert bound.drift(1_000) is None
    bound.incoming(5_500, 1_900)
    found = bound.offset(1_900)
    assert found is not None
    # offset <= 6000 - 1000; offset >= 5500 - 1900; outward by the stated nanosecond or two.
    assert 5_000 <= found.hi <= 5_003
    assert 3_597 <= found.lo <= 3_600


def test_exactly_tight_messages_do_not_contradict() -> None:
    bound = PairBound(**LIMITS)
    for t in range(0, 50 * SECOND, SECOND):
        bound.outgoing(t, t + 7)
        bound.incoming(t + 7, t)
    assert bound.contradictions == 0
    found = bound.offset(49 * SECOND)
    assert found is not None
    assert found.contains(7)
    assert found.width <= 4


def test_late_and_duplicate_messages_only_narrow() -> None:
    motion = Motion(200_000, 20, v=-30_000, x=4e6)
    motion.go(500, 1)
    kept, late = PairBound(**LIMITS), PairBound(**LIMITS)
    for t in (10.0, 20.0, 30.0, 40.0):
        exchange(kept, motion, t, 1e-4, 3e-4)
        if t != 20.0:
            exchange(late, motion, t, 1e-4, 3e-4)
    before = late.offset(40 * SECOND + 400_000)
    exchange(late, motion, 20.0, 1e-4, 3e-4)
    after = late.offset(40 * SECOND + 400_000)
    assert before is not None
    assert after is not None
    assert before.lo <= after.lo <= after.hi <= before.hi
    exchange(late, motion, 20.0, 1e-4, 3e-4)
    assert late.offset(40 * SECOND + 400_000) == after
    assert late.contradictions == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), delay_s=st.sampled_from([0.0, 1e-6, 1e-4]), gap_s=st.sampled_from([0.05, 1.0, 40.0]))
def test_no_order_of_arrival_leads_to_a_miss(seed: int, delay_s: float, gap_s: float) -> None:
    """Messages late by minutes, each at its own instant, twice or never."""
    choose = random.Random(seed)
    motion = Motion(200_000, 20, x=choose.uniform(-1e6, 1e6), v=choose.uniform(-2e5, 2e5))
    while motion.t < 60 * gap_s + 200:
        motion.go(choose.choice([0.3, 3.0, 30.0]), choose.choice([-1, 1]))
    bound = PairBound(**LIMITS)
    times = [index * gap_s + choose.random() * choose.choice([0.0, 1.0, 9.0 * gap_s]) for index in range(50)]
    for t in times:
        there, back = delay_s * choose.random(), delay_s * choose.random()
        for _ in range(choose.choice([0, 1, 1, 2])):
            exchange(bound, motion, t, there, back)
        if bound.latest_local_ns is not None:
            for when in (t, t - 5.0, t + 5.0, motion.t - 1.0):
                found = bound.offset(round(when * SECOND)) if when >= 0 else None
                if found is not None:
                    assert found.lo <= motion.at(round(when * SECOND) / SECOND) <= found.hi, (when - t, found)
    assert bound.contradictions == 0


def test_years_of_silence_end_in_the_drift_limit_and_go_on() -> None:
    bound = PairBound(**LIMITS)
    for t in range(0, 20 * SECOND, SECOND):
        bound.outgoing(t, t + 100_000)
        bound.incoming(t, t + 100_000)
    later = 315_576_000 * SECOND
    found = bound.offset(later)
    assert found is not None
    assert found.lo <= -199_999 * 315_000_000
    assert found.hi >= 199_999 * 315_000_000
    truth = 150_000 * 315_576_000
    for t in range(later, later + 20 * SECOND, SECOND):
        assert bound.outgoing(t, t + truth + 100_000)
        assert bound.incoming(t + truth, t + 100_000)
    found = bound.offset(later + 20 * SECOND)
    assert found is not None
    assert found.contains(truth)
    assert bound.contradictions == 0


def test_a_step_is_seen_counted_and_recovered_from() -> None:
    bound = PairBound(**LIMITS)
    for t in range(0, 5 * SECOND, SECOND):
        bound.outgoing(t, t + 100_000)
        bound.incoming(t + 100_000, t + 200_000)
    step = 10_000_000
    assert bound.incoming(5 * SECOND + 100_000 + step, 5 * SECOND + 200_000) is False
    assert bound.contradictions == 1
    bound.outgoing(5 * SECOND, 5 * SECOND + 100_000 + step)
    found = bound.offset(5 * SECOND + 200_000)
    assert found is not None
    assert found.contains(step)
    assert found.width < 300_000


def test_any_epochs_and_years_of_uptime() -> None:
    """The clocks' epochs are centuries apart and the local one is at ten years: nothing is lost to floats."""
    bound = PairBound(**LIMITS)
    base, offset = 315_576_000 * SECOND, -7_000_000_000 * SECOND
    for i in range(200):
        t = base + i * SECOND
        bound.outgoing(t, t + offset + 90_000)
        bound.incoming(t + offset + 90_000, t + 170_000)
    found = bound.offset(base + 199 * SECOND + 170_000)
    assert found is not None
    assert found.contains(offset)
    assert found.width < 190_000


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lines_max=st.sampled_from([3, 4, 6, CONSTRAINTS_MAX]),
    gap_s=st.sampled_from([0.1, 1.0, 4.0]),
    jitter_ns=st.sampled_from([300, 3_000, 100_000, 3_000_000]),
)
def test_what_is_simplified_only_grows(seed: int, lines_max: int, gap_s: float, jitter_ns: int) -> None:
    """Of the set that all messages leave, found by brute force, nothing is ever outside, however few lines are kept."""
    choose = random.Random(seed)
    bound, all_of_it = PairBound(**LIMITS), Optimum(**LIMITS)
    motion = Motion(200_000, 20, v=choose.uniform(-2e5, 2e5))
    while motion.t < 60 * gap_s + 10:
        motion.go(choose.choice([0.3, 3.0, 30.0]), choose.choice([-1, 1]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("skewd.bounds.pair.CONSTRAINTS_MAX", lines_max)
        for index in range(1, 40):
            sent = round(index * gap_s * SECOND)
            delay = 100 + round(choose.expovariate(1.0) * jitter_ns)
            at_most = math.ceil(motion.at(sent / SECOND)) + delay
            bound.outgoing(sent, sent + at_most)
            all_of_it.at_most(sent, at_most)
            received = sent + 1_000 + 2 * delay
            at_least = math.floor(motion.at(received / SECOND)) - 100 - round(choose.expovariate(1.0) * jitter_ns)
            bound.incoming(received + at_least, received)
            all_of_it.at_least(received, at_least)
            for later_s in (0, 1, 5):
                found = bound.offset(received + later_s * SECOND)
                assert found is not None
                assert all_of_it.holds(received + later_s * SECOND, found)
            for edge in (bound._upper, bound._lower):
                assert len(edge.proofs) <= lines_max
    assert bound.contradictions == 0


def test_ten_years_of_messages_wear_nothing_out() -> None:
    """An exchange every six hours at 150 ppm: the offset grows to half a day, and the width does not grow at all."""
    bound = PairBound(**LIMITS)
    widths = []
    for at in range(0, 315_576_000, 21_600):
        t, offset = at * SECOND, at * 150_000
        assert bound.outgoing(t, t + offset + 50_000)
        assert bound.incoming(t + offset - 40_000, t)
        found = bound.offset(t)
        assert found is not None
        assert found.contains(offset)
        widths.append(found.width)
    assert max(widths[-1_000:]) <= max(widths[100:1_100]) + 2


def test_memory_is_constant() -> None:
    choose = random.Random(1)
    bound = PairBound(**LIMITS)
    for i in range(3_000):
        t = i * SECOND // 5
        bound.outgoing(t, t + choose.randrange(20_000, 900_000))
        bound.incoming(t, t + choose.randrange(20_000, 900_000))
    for edge in (bound._upper, bound._lower):
        assert len(edge.corners) + 1 == len(edge.proofs) <= CONSTRAINTS_MAX


def test_one_side_only_keeps_its_tightest() -> None:
    bound = PairBound(**LIMITS)
    for i in range(100):
        bound.outgoing(i * SECOND, i * SECOND + 1_000_000 + (0 if i == 97 else 50_000))
    bound.incoming(99 * SECOND, 99 * SECOND)
    found = bound.offset(99 * SECOND)
    assert found is not None
    assert found.hi <= 1_000_000 + 2 * 200_000 + 3


@given(
    here=st.floats(-1, 1), there=st.floats(-1, 1), drift_here=st.integers(1, 50_000), drift_there=st.integers(1, 50_000)
)
def test_pair_limits_cover_any_two_clocks(here: float, there: float, drift_here: int, drift_there: int) -> None:
    drift, wander = pair_limits(drift_here, 10, drift_there, 10)
    rho_here, rho_there = 1 + here * drift_here * 1e-6, 1 + there * drift_there * 1e-6
    assert abs(rho_there / rho_here - 1) * 1e6 <= drift * (1 + 1e-9)
    # d/dt (rho_there / rho_here), per local second, with both wanders at their worst.
    worst = (10 * rho_here + 10 * rho_there) / rho_here**3
    assert worst <= wander * (1 + 1e-9)


@pytest.mark.parametrize("limits", [(-1, 10), (100, -1), (math.nan, 1), (1, math.inf)])
def test_impossible_limits_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="limit"):
        PairBound(max_drift_ppm=limits[0], max_wander_ppb_per_s=limits[1])


def test_steady_clocks_and_no_wander_leave_a_fixed_interval() -> None:
    bound = PairBound(max_drift_ppm=0, max_wander_ppb_per_s=0)
    bound.outgoing(0, 1_000)
    bound.incoming(-200, 0)
    assert bound.offset(10_000 * SECOND) == Interval(-202, 1_002)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    v0=st.floats(-199_000, 199_000),
    gaps=st.lists(st.sampled_from([0.2, 1.0, 7.0, 60.0, 300.0]), min_size=2, max_size=8),
    told_after=st.integers(0, 7),
    told_ago_s=st.sampled_from([0.0, 0.5, 30.0, -2.0]),
    margins=st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)),
)
def test_a_drift_that_is_known_otherwise_narrows_the_set_and_no_motion_leaves_it(
    seed: int, v0: float, gaps: list[float], told_after: int, told_ago_s: float, margins: tuple[int, int]
) -> None:
    choose = random.Random(seed)
    motion = Motion(200_000, 20, v=v0)
    while motion.t < sum(gaps) + 1_000:
        motion.go(choose.choice([0.5, 3.0, 30.0]), choose.choice([-1, 1]))
    bound, plain = PairBound(**LIMITS), PairBound(**LIMITS)
    t = 40.0
    for index, gap in enumerate(gaps):
        t += gap
        there_s, back_s = 5e-3 * choose.random(), 5e-3 * choose.random()
        for each in (bound, plain):
            exchange(each, motion, t, there_s, back_s)
        if index == told_after:
            then = t - told_ago_s
            _, _, v, accel = max(piece for piece in motion.path if piece[0] <= then)
            start = max(piece[0] for piece in motion.path if piece[0] <= then)
            exact = v + accel * (then - start)
            within = Interval(math.floor(exact) - margins[0], math.ceil(exact) + margins[1])
            assert bound.drift_within(round(then * SECOND), within)
            drift, untold = bound.drift(round(t * SECOND)), plain.drift(round(t * SECOND))
            assert drift is not None
            assert untold is not None
            assert drift.width <= untold.width
        for away in (0.0, 1.0, 60.0, 900.0):
            for when in (t + 0.02 + away, max(t - away, 0.0)):
                found, without = bound.offset(round(when * SECOND)), plain.offset(round(when * SECOND))
                assert found is not None
                assert without is not None
                assert found.lo <= motion.at(round(when * SECOND) / SECOND) <= found.hi
                if index <= told_after:
                    assert found.width <= without.width + 2
    assert bound.contradictions == 0


def test_a_drift_that_cannot_be_is_a_contradiction() -> None:
    bound = PairBound(**LIMITS)
    assert bound.drift_within(0, Interval(7, 8))  # nothing known that it could contradict
    for second in range(60):
        bound.outgoing(second * SECOND, second * SECOND + 1_000)
        bound.incoming(second * SECOND, second * SECOND + 1_000)
    assert not bound.drift_within(59 * SECOND, Interval(100_000, 110_000))
    assert bound.contradictions == 1
    assert bound.offset(60 * SECOND) is None
