"""The figures of a run, counted from made-up rows whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline import figures
from skewd_pipeline.edges import EdgeRow, constant, edge_rows, separations_ns
from skewd_pipeline.results import MODES, RULES, Calibration, Rate, Run, Spread
from tests.experiment.made_rows import (
    MS,
    US,
    all_modes,
    block_of,
    connect_rows,
    good_rows,
    raw_spans,
    rows_at,
    tagged,
    truth_of,
)

EDGE = ("preprocess", "inference")
SKEWS_MS = (0.0, 3.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def rows() -> list[EdgeRow]:
    """Two rounds of a sweep, and quiet and overloaded blocks that are none of it."""
    beside = []
    for purpose in ("calibration", "overload"):
        block, truth = block_of(0, purpose=purpose), truth_of(0)
        beside += list(edge_rows(block, all_modes(block, truth), constant(truth)))
    return good_rows() + beside


@pytest.fixture(scope="module")
def database(rows: list[EdgeRow], tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect_rows(rows, tmp_path_factory.mktemp("figures")) as database:
        yield database


def predicted(rows: Sequence[EdgeRow], edges: int = 16) -> list[Rate]:
    calibration = Calibration(
        capacity_per_s=50, offered_per_s=20, floor_ms=3.5, hop_p50_ms=0.25, predicted_threshold_ms=3.7,
        stage="inference", direction="behind",
    )  # fmt: skip
    quiet = [row for row in rows if row.purpose == "calibration"]
    by_rule = {rule: separations_ns(quiet, rule, EDGE) for rule in RULES}
    return figures.predictions(calibration, "zmq", by_rule, SKEWS_MS, edges, seed="1")


@pytest.fixture(scope="module")
def runs(rows: list[EdgeRow], database: duckdb.DuckDBPyConnection) -> dict[tuple[float, str, str], Run]:
    found = figures.runs(database, predicted(rows), {("zmq", 5 * MS): 19.5})
    return {(run.skew_ms, run.mode, run.rule): run for run in found}


def test_each_cell_has_a_row_for_each_mode_and_rule_and_nothing_else_has(
    runs: dict[tuple[float, str, str], Run],
) -> None:
    assert set(runs) == {(skew, mode, rule) for skew in SKEWS_MS for mode in MODES for rule in RULES}
    for run in runs.values():
        assert (run.messages, run.edges, run.outputs_correct, run.floor_ms) == (16, 16, 1.0, 3.5)
        assert run.all is not None
        assert run.all.edges == 64
        assert (run.spans, run.spans_missing, run.spans_duplicated, run.spans_unsynchronized) == (80, 0, 0, 0)


def test_violations_are_the_edges_whose_stamps_come_out_backwards(runs: dict[tuple[float, str, str], Run]) -> None:
    rates = {key: run.violation_rate for key, run in runs.items()}
    for mode in ("off", "tag"):
        assert [rates[skew, mode, "send-receive"] for skew in SKEWS_MS] == [0, 1, 1, 1]
        assert [rates[skew, mode, "span-start"] for skew in SKEWS_MS] == [0, 0, 1, 1]
    assert {rates[skew, "rewrite", rule] for skew in SKEWS_MS for rule in RULES} == {0}
    off, tag = runs[5, "off", "span-start"], runs[5, "tag", "span-start"]
    assert (off.violations, off.verdicts, off.violation_verdicts) == (16, {}, {})
    assert (tag.verdicts, tag.violation_verdicts) == ({"skewed": 16}, {"skewed": 16})
    assert tag.all is not None
    assert tag.all.verdicts == {"skewed": 16, "ordered": 48}
    assert off.residual_max_ns > 0.8 * MS
    assert runs[3, "tag", "span-start"].verdicts == {"ordered": 16}


def test_the_predicted_rate_stands_beside_what_is_not_rewritten(runs: dict[tuple[float, str, str], Run]) -> None:
    assert [runs[skew, "off", "span-start"].predicted_rate for skew in SKEWS_MS] == [0, 0, 1, 1]
    assert runs[5, "tag", "span-start"].predicted_rate == 1
    assert runs[5, "rewrite", "span-start"].predicted_rate is None
    assert (runs[5, "off", "span-start"].throughput_per_s, runs[3, "off", "span-start"].throughput_per_s) == (19.5, 0)


def test_separations_are_true_gaps_in_ms_at_any_skew(
    rows: list[EdgeRow], runs: dict[tuple[float, str, str], Run]
) -> None:
    for skew in SKEWS_MS:
        cell = [row for row in rows if row.purpose == "sweep" and row.skew_ns == skew * MS]
        known = sorted(separations_ns(cell, "span-start", EDGE))
        for mode in MODES:
            found = runs[skew, mode, "span-start"].separation_ms
            assert found is not None
            assert (found.min, found.p50) == (round(known[0] / 1e6, 4), round(known[7] / 1e6, 4))


def test_bounds_and_errors_are_spread_and_misses_counted(runs: dict[tuple[float, str, str], Run]) -> None:
    tag, off = runs[5, "tag", "span-start"], runs[5, "off", "span-start"]
    assert (off.uncertainty_ns, off.error_ns, off.bound_misses) == (None, None, 0)
    assert (tag.uncertainty_ns, tag.error_ns) == (Spread(0, 9 * US, 9 * US), Spread(0, 3 * US, 3 * US))
    assert tag.bound_misses == 0


def test_a_rewritten_gap_within_the_uncertainty_is_excused_and_one_beyond_is_not(tmp_path: Path) -> None:
    rows = []
    for number, (error_ns, uncertainty_ns) in enumerate(((-400 * US, 410 * US), (-400 * US, 5 * US))):
        block, truth = replace(block_of(0, round=number), skew_ns=number * MS), truth_of(0)
        ways = all_modes(block, truth, error_ns=error_ns, uncertainty_ns=uncertainty_ns)
        rows += list(edge_rows(block, ways, constant(truth)))
    with connect_rows(rows, tmp_path) as database:
        excused, beyond = (
            run for run in figures.runs(database, [], {}) if (run.mode, run.rule) == ("rewrite", "send-receive")
        )
        (worth,) = figures.bounds(
            database, path="in-band only", reference="preprocess", messages={"zmq": {"stamps": 7}}
        )
    # Only the reference is exact, so the counted edge comes out by 400 us less than its 200 to 300.
    assert (excused.violations, len(excused.residuals_ns)) == (0, 8)
    assert excused.residuals_ns == sorted(excused.residuals_ns)
    assert excused.residual_max_ns == excused.residuals_ns[-1]
    assert excused.verdicts == {"indeterminate": 8}
    assert (beyond.violations, beyond.residuals_ns) == (8, [])
    assert beyond.residual_max_ns > 100 * US
    assert beyond.bound_misses == 8 * 4
    # Four nodes of five are wrong in one of two cells.
    assert (worth.path, worth.spans, worth.coverage, worth.messages) == ("in-band only", 80, 0.6, {"stamps": 7})
    assert worth.width_ns == Spread(10 * US, 10 * US, 820 * US)
    assert set(worth.width_p50_ns) == {"producer", "inference", "postprocess", "consumer"}
    assert (worth.residual_max_ns, worth.residuals_beyond) == (excused.residual_max_ns, 8)


def test_lost_repeated_and_unbounded_spans_are_counted(tmp_path: Path) -> None:
    block, truth = block_of(0), truth_of(0)
    tags = tagged(raw_spans(block, truth), truth)
    bare = {key: value for key, value in tags[-1].attributes.items() if not key.startswith("clock.")}
    spans = [*tags[3:-1], replace(tags[-1], attributes=bare), tags[7], tags[7], tags[8]]
    with connect_rows(list(edge_rows(block, {"tag": spans}, constant(truth))), tmp_path) as database:
        (_, run) = figures.runs(database, [], {})
        (worth,) = figures.bounds(database, path="UDP and in-band", reference="preprocess", messages={})
    assert (run.spans, run.spans_missing, run.spans_duplicated, run.spans_unsynchronized) == (37, 3, 3, 1)
    assert (run.edges, run.messages) == (7, 8)
    assert (worth.spans, worth.spans_unsynchronized, worth.coverage) == (37, 1, 1.0)


def test_nothing_bounded_has_no_coverage_rather_than_a_perfect_one(tmp_path: Path) -> None:
    block, truth = block_of(0), truth_of(0)
    with connect_rows(list(edge_rows(block, {"tag": raw_spans(block, truth)}, constant(truth))), tmp_path) as database:
        (worth,) = figures.bounds(database, path="UDP and in-band", reference="preprocess", messages={})
    assert (worth.coverage, worth.width_ns, worth.spans_unsynchronized) == (None, None, 40)


def test_ahead_the_outgoing_edge_is_counted(tmp_path: Path) -> None:
    rows = []
    for skew_ms in (0, 5):
        block, truth = block_of(skew_ms * MS, direction="ahead"), truth_of(skew_ms * MS, direction="ahead")
        rows += list(edge_rows(block, all_modes(block, truth, ("off",)), constant(truth)))
    with connect_rows(rows, tmp_path) as database:
        found = {(run.skew_ms, run.rule): run for run in figures.runs(database, [], {})}
        (trace, bars) = (figures.trace(database), database.execute("SELECT count(*) FROM spans").fetchone())
    assert {key: run.violations for key, run in found.items()} == {
        (0, "span-start"): 0, (0, "send-receive"): 0, (5, "span-start"): 8, (5, "send-receive"): 8,
    }  # fmt: skip
    assert {run.direction for run in found.values()} == {"ahead"}
    assert trace is None, "there is no rewritten side to show"
    assert bars == (2 * 8 * 5,)


def test_measured_rates_stand_beside_what_was_predicted(
    rows: list[EdgeRow], database: duckdb.DuckDBPyConnection
) -> None:
    beforehand = predicted(rows)
    assert {rate.measured_high for rate in beforehand} == {0.0}, "nothing is measured yet"
    found = {(rate.rule, rate.skew_ms): rate for rate in figures.measure(database, beforehand, seed="1")}
    assert len(found) == 8
    for (rule, skew_ms), rate in found.items():
        expected = 1.0 if skew_ms >= (5 if rule == "span-start" else 3) else 0.0
        assert (rate.edges, rate.measured_rate, rate.predicted_rate, rate.agrees) == (16, expected, expected, True)
        assert rate.measured_low <= expected <= rate.measured_high
        assert not rate.informative
    other = [replace_rate(rate, skew_ms=7.0) for rate in beforehand[:1]]
    assert figures.measure(database, other, seed="1") == [], "a cell that was not run has no rate"
    wrong = [replace_rate(rate, predicted_low=0.0, predicted_high=0.4) for rate in beforehand if rate.skew_ms == 5]
    assert [rate.agrees for rate in figures.measure(database, wrong, seed="1")] == [False, False]


def replace_rate(rate: Rate, **changes: float) -> Rate:
    return Rate(**{name: changes.get(name, getattr(rate, name)) for name in Rate.__struct_fields__})


def test_confusion_sets_verdicts_beside_what_was_true(database: duckdb.DuckDBPyConnection) -> None:
    found = {
        (row.situation, row.rule, row.truth, row.verdict): row.count for row in figures.confusion(database)
    }  # fmt: skip
    assert {situation for situation, *_ in found} == {"synchronized", "skewed", "overloaded"}
    # Of eight messages one is noted late on each of its four edges, and no clock has a part in that.
    assert found["overloaded", "stamp-after-send", "not the clock", "impossible"] == 4
    assert found["overloaded", "stamp-after-send", "in order", "ordered"] == 28
    assert found["synchronized", "span-start", "in order", "ordered"] == 3 * 8 * 4
    # Of three skews, 5 and 10 ms turn the counted edge round by span-start.
    assert found["skewed", "span-start", "clock", "skewed"] == 2 * 2 * 8
    right = {("in order", "ordered"), ("clock", "skewed"), ("not the clock", "impossible")}
    assert {(truth, verdict) for _, _, truth, verdict in found} <= right | {("hidden", "impossible")}


def test_the_trace_that_is_shown_is_a_violated_one_near_5_ms(database: duckdb.DuckDBPyConnection) -> None:
    trace = figures.trace(database)
    assert trace is not None
    assert (trace.transport, trace.skew_ms, trace.stage) == ("zmq", 5.0, "inference")
    bars = {bar.stage: bar for bar in trace.spans}
    assert list(bars) == ["producer", "preprocess", "inference", "postprocess", "consumer"]
    assert bars["inference"].raw_start_us < bars["preprocess"].raw_start_us
    assert bars["inference"].rewritten_start_us > bars["preprocess"].rewritten_start_us
    assert min(bar.true_start_us for bar in bars.values()) == 0
    for bar in bars.values():
        assert abs(bar.rewritten_start_us - bar.true_start_us) <= bar.uncertainty_us <= 9
    assert bars["inference"].true_start_us - bars["inference"].raw_start_us == 5000


def test_without_a_violation_no_trace_is_shown(tmp_path: Path) -> None:
    with connect_rows(rows_at(3 * MS), tmp_path) as database:
        assert figures.trace(database) is None


def test_a_ratio_of_pairs_is_their_geometric_mean_between_students_ends() -> None:
    ratio, low, high = figures.ratio_of_pairs([10.0, 20.0, 40.0], [9.0, 20.0, 44.0])
    logs = [math.log(0.9), 0.0, math.log(1.1)]
    middle = sum(logs) / 3
    spread = math.sqrt(sum((each - middle) ** 2 for each in logs) / 2)
    assert ratio == pytest.approx((0.9 * 1.0 * 1.1) ** (1 / 3))
    assert math.log(high / ratio) == pytest.approx(4.303 * spread / math.sqrt(3))  # t at 97.5 %, 2 degrees of freedom
    assert ratio / low == pytest.approx(high / ratio)
    assert figures.ratio_of_pairs([10.0], [5.0]) == (0.5, 0.0, math.inf)


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=12), st.floats(0.1, 10))
def test_a_constant_ratio_is_found_exactly(without: list[float], ratio: float) -> None:
    found, low, high = figures.ratio_of_pairs(without, [each * ratio for each in without])
    assert found == pytest.approx(ratio)
    assert low <= found * (1 + 1e-9)
    assert high >= found * (1 - 1e-9)


def test_the_ratios_interval_holds_as_often_as_it_says() -> None:
    draws = random.Random(3)
    held = 0
    for _ in range(1000):
        without = [draws.lognormvariate(3, 0.3) for _ in range(3)]
        beside = [each * 0.97 * draws.lognormvariate(0, 0.05) for each in without]
        _, low, high = figures.ratio_of_pairs(without, beside)
        held += low <= 0.97 <= high
    assert 930 <= held <= 970


@pytest.mark.parametrize(("without", "beside"), [([], []), ([1.0], []), ([1.0, 0.0], [1.0, 1.0])])
def test_what_makes_no_pairs_is_refused(without: list[float], beside: list[float]) -> None:
    with pytest.raises(ValueError, match="as many rates with as without"):
        figures.ratio_of_pairs(without, beside)
