"""The law against brute force, and against runs made from known distributions."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd_pipeline.law import (
    clopper_pearson,
    edge_name,
    exceptions,
    law_cells,
    predict,
    prediction_interval,
    shorter,
    thresholds,
    violable_edge,
)
from skewd_pipeline.results import STAGES, Results, Separations
from tests.experiment.made_results import run_of


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


def made(direction: str, *, seed: int = 1, floors: tuple[float, ...] = (0.0, 2.0, 3.5, 8.0)) -> Results:
    """A run whose edges have known separations: floor + 0.1 ms + exponential, measured twice, skewed and not."""
    draw = random.Random(f"{seed}/{direction}")

    def sample(rule: str, floor: float, slower: float, count: int) -> list[int]:
        least = (floor if rule == "span-start" else 0.0) + 0.1
        return sorted(round((least + draw.expovariate(1 / (0.4 * slower))) * 1e6) for _ in range(count))

    results = Results(runs=[], host={}, versions={})
    for floor in floors:
        for rule in ("send-receive", "span-start"):
            for edge, slower in (("preprocess>inference", 1.0), ("inference>postprocess", 3.0)):
                results.separations.append(
                    Separations(
                        transport="zmq", rule=rule, floor_ms=floor, edge=edge,
                        separations_ns=sample(rule, floor, slower, 1000),
                    )
                )  # fmt: skip
            for skew in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 10.0):
                row = run_of("zmq", skew, "off", rule, floor_ms=floor)
                row.direction, row.edges = direction, 1000
                shifted = sample(rule, floor, 1.0 if direction == "behind" else 3.0, 1000)
                row.violations = shorter(shifted, round(skew * 1e6))
                row.violation_rate = row.violations / 1000
                (results.runs if floor == 3.5 else results.floors).append(row)
    predict((*results.runs, *results.floors), results.separations)
    return results


@pytest.mark.parametrize("direction", ["behind", "ahead"])
def test_each_direction_is_predicted_by_its_own_edge(direction: str) -> None:
    results = made(direction)
    cells = law_cells(results)
    assert len(cells) == 4 * 2 * 7
    assert {cell.edge for cell in cells} == {edge_name(violable_edge("inference", direction) or ("", ""))}
    assert not exceptions(cells)
    assert all(cell.predicted_low <= cell.predicted_rate <= cell.predicted_high for cell in cells)
    assert all(row.predicted_rate is not None for row in results.runs)


def test_of_several_runs_on_a_page_each_row_is_predicted_by_its_own() -> None:
    results = made("behind")
    of_another = [
        Separations(
            transport=each.transport, rule=each.rule, floor_ms=each.floor_ms, edge=each.edge,
            separations_ns=[value + 20_000_000 for value in each.separations_ns], stage="preprocess", direction="ahead",
        )
        for each in results.separations
    ]  # fmt: skip
    for each in results.separations:
        each.stage, each.direction = "inference", "behind"
    results.separations = [*of_another, *results.separations]
    assert not exceptions(law_cells(results))
    assert {each.predicted_ms < 20 for each in thresholds(results)} == {True}
    assert {(each.derived_ms or 99) < 20 for each in thresholds(results)} == {True}


def test_another_distribution_is_an_exception() -> None:
    results = made("behind")
    for each in results.separations:
        each.separations_ns = [value + 700_000 for value in each.separations_ns]
    wrong = exceptions(law_cells(results))
    assert wrong
    assert all(cell.measured_rate > cell.predicted_high for cell in wrong)


def test_the_threshold_is_the_floor_and_the_least_hop() -> None:
    found = {(each.floor_ms, each.rule): each for each in thresholds(made("behind"))}
    assert len(found) == 8
    for (floor, rule), each in found.items():
        expected = 0.1 + (floor if rule == "span-start" else 0.0)
        assert each.derived_ms == pytest.approx(expected, abs=0.01)
        assert each.predicted_ms == pytest.approx(expected, abs=0.01)
        assert each.none_at_ms is not None
        assert each.some_at_ms is not None
        assert each.none_at_ms <= expected <= each.some_at_ms


def test_rewritten_rows_and_unknown_floors_are_not_predicted() -> None:
    results = made("behind", floors=(3.5,))
    results.runs = [run_of("zmq", 5.0, "rewrite", "span-start"), run_of("zmq", 5.0, "off", "span-start", floor_ms=6.0)]
    predict(results.runs, results.separations)
    assert [row.predicted_rate for row in results.runs] == [None, None]
    assert law_cells(results) == []


def test_separations_without_an_edge_serve_the_direction_they_were_counted_in() -> None:
    results = made("behind", floors=(3.5,))
    inbound = [each for each in results.separations if each.edge == "preprocess>inference"]
    results.separations = [
        Separations(transport=each.transport, rule=each.rule, floor_ms=3.5, separations_ns=each.separations_ns)
        for each in inbound
    ]
    assert not exceptions(law_cells(results))
