"""The law against brute force, and against runs made from known distributions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd_pipeline.law import (
    BLOCK_MESSAGES,
    clopper_pearson,
    edge_name,
    mean_wait_s,
    measured,
    predict,
    prediction_interval,
    shorter,
    violable_edge,
)
from skewd_pipeline.results import STAGES


def at_most(k: int, n: int, rate: float) -> float:
    return math.fsum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_clopper_pearson_have_the_tails_that_define_them(case: tuple[int, int]) -> None:
    count, of = case
    low, high = clopper_pearson(count, of)
    assert 0 <= low <= count / of <= high <= 1
    assert at_most(count, of, high) == pytest.approx(0.005, rel=1e-6) if count < of else high == 1
    assert 1 - at_most(count - 1, of, low) == pytest.approx(0.005, rel=1e-6) if count else low == 0


def test_known_intervals() -> None:
    # No violation in n: the upper end solves (1 - p)^n = 0.005.
    assert clopper_pearson(0, 1000)[1] == pytest.approx(1 - 0.005 ** (1 / 1000), rel=1e-9)
    low, high = clopper_pearson(9, 10, 0.95)  # a textbook's: 55.5 % to 99.7 %
    assert (round(low, 4), round(high, 4)) == (0.5550, 0.9975)
    low, high = clopper_pearson(500_000, 1_000_000)
    assert high - low == pytest.approx(2 * 2.5758 * 0.5 / 1000, rel=0.01)


def brute_interval(x: int, n: int, m: int) -> tuple[int, int]:
    """Every second count, judged by exact hypergeometric tails."""
    tail = Fraction(1, 200)
    kept = []
    for y in range(m + 1):
        total = x + y
        everything = math.comb(n + m, total)
        weights = {j: math.comb(m, j) * math.comb(n, total - j) for j in range(max(0, total - n), min(m, total) + 1)}
        below = Fraction(sum(weight for j, weight in weights.items() if j <= y), everything)
        above = Fraction(sum(weight for j, weight in weights.items() if j >= y), everything)
        if below > tail and above > tail:
            kept.append(y)
    return kept[0], kept[-1]


@settings(max_examples=150)
@given(st.integers(1, 25).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, 25))))
def test_the_prediction_interval_is_what_exact_tails_leave(case: tuple[int, int, int]) -> None:
    assert prediction_interval(*case) == brute_interval(*case)


def test_the_prediction_interval_holds_at_least_as_often_as_it_says() -> None:
    chosen = random.Random(7)
    inside = tried = 0
    for rate in (0.001, 0.02, 0.3, 0.5, 0.97):
        for _ in range(300):
            x = sum(chosen.random() < rate for _ in range(80))
            y = sum(chosen.random() < rate for _ in range(120))
            least, greatest = prediction_interval(x, 80, 120)
            inside += least <= y <= greatest
            tried += 1
    assert inside / tried >= 0.99


def test_large_counts_are_no_trouble() -> None:
    least, greatest = prediction_interval(50_000, 100_000, 100_000)
    assert least == 100_000 - greatest
    assert greatest - 50_000 == pytest.approx(2.5758 * math.sqrt(2 * 100_000 * 0.25), rel=0.01)
    assert prediction_interval(0, 1000, 1000) == (0, 7)


@pytest.mark.parametrize(("count", "of"), [(3, 2), (-1, 4), (0, 0)])
def test_what_is_no_count_is_refused(count: int, of: int) -> None:
    with pytest.raises(ValueError, match="is no count"):
        clopper_pearson(count, of)
    with pytest.raises(ValueError, match="is no count"):
        prediction_interval(count, of, 3)
    with pytest.raises(ValueError, match="confidence"):
        clopper_pearson(1, 2, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        prediction_interval(1, 2, 0)


def test_behind_violates_what_comes_in_and_ahead_what_goes_out() -> None:
    assert violable_edge("inference", "behind") == ("preprocess", "inference")
    assert violable_edge("inference", "ahead") == ("inference", "postprocess")
    assert violable_edge(STAGES[0], "behind") is None
    assert violable_edge(STAGES[-1], "ahead") is None


@given(st.lists(st.integers(0, 100)), st.integers(-5, 105))
def test_an_edge_is_violated_exactly_by_a_skew_beyond_its_separation(separations: list[int], skew: int) -> None:
    assert shorter(sorted(separations), skew) == sum(each - skew < 0 for each in separations)


SEPARATIONS = st.lists(st.integers(0, 100), min_size=1, max_size=40)


@settings(max_examples=30)
@given(SEPARATIONS, st.integers(0, 101), st.integers(1, 60))
def test_the_predicted_rate_is_the_share_of_shorter_separations(separations: list[int], skew: int, edges: int) -> None:
    found = predict(separations, skew, edges)
    assert found.rate == shorter(separations, skew) / len(separations)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.informative == (0.02 <= found.rate <= 0.98)
    # Never narrower than the exact interval for independent draws: what was not seen may come.
    least, greatest = prediction_interval(shorter(separations, skew), len(separations), edges)
    assert found.low <= least / edges
    assert found.high >= greatest / edges
    assert found == predict(separations, skew, edges), "the same from the same seed"


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_measured_rate_has_an_interval_no_narrower_than_the_exact_one(flags: list[bool]) -> None:
    found = measured(flags, seed="s")
    low, high = clopper_pearson(sum(flags), len(flags))
    assert found.rate == sum(flags) / len(flags)
    assert found.low <= low <= found.rate <= high <= found.high
    assert measured([]).rate == 0
    assert (measured([]).low, measured([]).high) == (0, 1)


def test_nothing_predicts_nothing() -> None:
    for separations, edges in (([], 10), ([1], 0)):
        with pytest.raises(ValueError, match="needs separations that were measured"):
            predict(separations, 5, edges)


def independent(draws: random.Random, count: int) -> list[int]:
    """Each message by itself: half of them are closer together than 4 ms."""
    return [round(draws.uniform(3.0, 5.0) * 1e6) for _ in range(count)]


def in_moments(draws: random.Random, count: int) -> list[int]:
    """Some five neighbours share a slow moment of the machine, or a quick one."""
    found: list[int] = []
    while len(found) < count:
        moment = draws.uniform(3.0, 5.0)
        found += [round((moment + draws.uniform(-0.1, 0.1)) * 1e6) for _ in range(1 + draws.randrange(9))]
    return found[:count]


TRIES, MESSAGES, SKEW_NS = 150, 100, 4_000_000


def times_inside(sample: Callable[[random.Random, int], list[int]]) -> dict[str, int]:
    """Of so many tries, how often each interval holds what it says it does: all are said to in 99 % of them."""
    draws = random.Random(11)
    inside = dict.fromkeys(("predicted", "measured", "predicted as if independent"), 0)
    for number in range(TRIES):
        quiet, skewed = sample(draws, MESSAGES), sample(draws, MESSAGES)
        count = shorter(skewed, SKEW_NS)
        expected = predict(quiet, SKEW_NS, MESSAGES, seed=str(number))
        inside["predicted"] += expected.low <= count / MESSAGES <= expected.high
        found = measured([each < SKEW_NS for each in skewed], seed=str(number))
        inside["measured"] += found.low <= 0.5 <= found.high
        least, greatest = prediction_interval(shorter(quiet, SKEW_NS), MESSAGES, MESSAGES)
        inside["predicted as if independent"] += least <= count <= greatest
    return inside


def test_intervals_hold_as_often_as_they_say_where_messages_are_independent() -> None:
    inside = times_inside(independent)
    # Five outside of 150 would come once in fifty times if 99 % were true.
    assert min(inside["predicted"], inside["measured"]) >= TRIES - 5


def test_where_neighbours_share_moments_intervals_hold_less_often_and_exact_ones_far_less() -> None:
    inside = times_inside(in_moments)
    # A hundred messages are some twenty moments, drawn as ten stretches: few, and each cuts moments at its ends.
    assert min(inside["predicted"], inside["measured"]) >= 0.85 * TRIES
    assert inside["predicted as if independent"] < 0.75 * TRIES


def test_stretches_are_drawn_in_the_order_of_the_messages() -> None:
    turns = [True] * BLOCK_MESSAGES + [False] * BLOCK_MESSAGES
    together, mixed = measured(turns * 10), measured([True, False] * (10 * BLOCK_MESSAGES))
    assert together.rate == mixed.rate
    assert together.high - together.low > mixed.high - mixed.low


def queue_waits_s(rate_per_s: float, service_s: Sequence[float], draws: random.Random) -> list[float]:
    """How long each of many messages that come at random times waits for one server, one after the other."""
    waits, at_s, free_s = [], 0.0, 0.0
    for each in service_s:
        at_s += draws.expovariate(rate_per_s)
        waits.append(max(0.0, free_s - at_s))
        free_s = max(free_s, at_s) + each
    return waits


@pytest.mark.parametrize("utilization", [0.2, 0.5, 0.8])
def test_the_mean_wait_is_that_of_a_simulated_queue(utilization: float) -> None:
    draws = random.Random(5)
    service_s = [0.012 + draws.expovariate(1 / 0.008) for _ in range(200_000)]
    rate_per_s = utilization / 0.020
    waits = queue_waits_s(rate_per_s, service_s, draws)
    assert mean_wait_s(rate_per_s, service_s) == pytest.approx(sum(waits) / len(waits), rel=0.03)


def test_known_waits() -> None:
    # Constant service at half the capacity waits half a service time; exponential service a whole one.
    assert mean_wait_s(25.0, [0.02]) == pytest.approx(0.01)
    draws = random.Random(6)
    assert mean_wait_s(25.0, [draws.expovariate(50) for _ in range(100_000)]) == pytest.approx(0.02, rel=0.02)
    assert mean_wait_s(1e-9, [0.02]) == pytest.approx(0, abs=1e-9)


def test_a_queue_without_end_or_without_service_has_no_mean_wait() -> None:
    with pytest.raises(ValueError, match=r"utilization of 1\.00 the queue grows without end"):
        mean_wait_s(50.0, [0.02])
    with pytest.raises(ValueError, match="no service times"):
        mean_wait_s(50.0, [])


def test_an_edge_has_a_name() -> None:
    assert edge_name(("preprocess", "inference")) == "preprocess>inference"
