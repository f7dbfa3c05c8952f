"""The claims, each on results that bear it out and on results that do not."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
from msgspec.structs import replace as replaced

from skewd_pipeline.claims import claims, failed
from skewd_pipeline.results import MODES, RULES, AllEdges, Bounds, Results, Run
from tests.experiment.made_results import SKEWS, made_results, run_of


def rows(results: Results, **wanted: object) -> list[Run]:
    return [run for run in results.runs if all(getattr(run, key) == value for key, value in wanted.items())]


@pytest.fixture(autouse=True)
def law_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made results have a hundred messages a cell, and are judged by the law all the same."""
    monkeypatch.setattr("skewd_pipeline.claims.JUDGED_EDGES_LEAST", 100)


def test_of_few_messages_the_law_is_told_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    results = made_results()
    another_machine(results)
    law = next(check for check in claims(results) if check.name == "law")
    assert law.passed is None
    assert "told, not judged" in law.measured
    assert failed(claims(results)) == []


def test_a_good_run_bears_out_every_claim() -> None:
    results = made_results()
    results.runs += [run_of("aeron", skew, mode, rule) for skew in SKEWS for mode in MODES for rule in RULES]
    checks = claims(results)
    assert failed(checks) == []
    assert all(check.passed for check in checks)
    assert len({check.name for check in checks}) == len(checks)


def test_the_model_takes_as_long_as_it_takes() -> None:
    results = made_results()
    for run in rows(results, transport="zmq", rule="span-start", mode="off"):
        run.direction = "ahead"  # out of the inference stage: no rate is claimed of it
        run.violations, run.violation_rate = 0, 0.0
    found = {check.name: check.passed for check in claims(results)}
    assert (found["raw-zmq-5ms"], found["raw-kafka-5ms"]) == (None, True)
    for run in rows(results, transport="zmq"):
        run.stage = "preprocess"
    found = {check.name: check.passed for check in claims(results)}
    assert (found["raw-zmq-5ms"], found["raw-zmq-10ms"], found["raw-kafka-5ms"]) == (False, False, True)


def test_what_needs_narrow_bounds_is_told_where_clocks_were_compared_in_band_only() -> None:
    results = made_results()
    unsure(results)
    results.heuristics = deepcopy(results.heuristics)
    for row in results.heuristics:
        if row.method == "measured":
            row.rms_us = 900.0
    assert {check.name for check in failed(claims(results))} == {"tag-indeterminate", "heuristics-error"}
    path = Bounds(
        transport="zmq", broker=None, path="in-band only", spans=1, spans_unsynchronized=0, coverage=1.0, width_ns=None,
        width_p50_ns={}, residual_max_ns=0, residuals_beyond=0, messages={},
    )  # fmt: skip
    results.bounds = [path]
    assert failed(claims(results)) == []
    told = next(check for check in claims(results) if check.name == "heuristics-error")
    assert "told, not judged: the clocks were compared over the transport under test alone" in told.measured
    results.bounds = [path, replaced(path, path="UDP and in-band")]
    assert len(failed(claims(results))) == 2


def test_each_run_on_the_page_is_compared_with_its_own_throughput() -> None:
    results = made_results()
    results.throughput += [replaced(row, delivered_per_s=row.delivered_per_s / 2) for row in results.throughput]
    assert failed(claims(results)) == []
    results.throughput[-1] = replaced(results.throughput[-1], delivered_per_s=15.0)
    assert [check.name for check in failed(claims(results))] == ["throughput-skew"]


def set_rate(results: Results) -> None:
    for run in rows(results, transport="zmq", skew_ms=5.0, mode="off", rule="span-start"):
        run.violation_rate = 0.8


def early(results: Results) -> None:
    rows(results, transport="kafka", skew_ms=3.0, mode="off", rule="span-start")[0].violations = 1


def left_over(results: Results) -> None:
    rows(results, mode="rewrite", rule="span-start")[0].all = AllEdges(400, 1, {}, {})


def beyond_bound(results: Results) -> None:
    rows(results, mode="rewrite", rule="send-receive")[3].all = AllEdges(400, 2, {}, {})


def missed(results: Results) -> None:
    rows(results, mode="tag", rule="span-start")[2].bound_misses = 1


def blamed(results: Results) -> None:
    run = rows(results, mode="tag", rule="send-receive", skew_ms=0.0)[0]
    run.all = AllEdges(400, 0, {"ordered": 399, "skewed": 1}, {})


def impossible(results: Results) -> None:
    run = rows(results, mode="tag", rule="send-receive", skew_ms=5.0)[0]
    run.all = AllEdges(400, 100, {}, {"skewed": 99, "impossible": 1})


def unsure(results: Results) -> None:
    rows(results, mode="tag", rule="send-receive", skew_ms=10.0)[0].violation_verdicts = {
        "skewed": 95,
        "indeterminate": 5,
    }


def slow(results: Results) -> None:
    results.throughput[4].delivered_per_s = 37.0


def slowed_by_sidecar(results: Results) -> None:
    results.throughput[0].delivered_per_s = 38.0


def quiet_check(results: Results) -> None:
    results.probes[2].exit_code = 1


def another_machine(results: Results) -> None:
    for cell in results.law[:3]:
        cell.agrees = False


def another_law(results: Results) -> None:
    results.law[0].own_rate = 0.123


def window_broken(results: Results) -> None:
    results.windows = deepcopy(results.windows)
    next(window for window in results.windows if window.mode == "rewrite").violations = 1


def another_drift(results: Results) -> None:
    results.windows = deepcopy(results.windows)
    for window in results.windows:
        if window.mode == "off" and window.start_s < 5:
            window.violations, window.own_rate = window.edges, 1.0


def another_law_over_time(results: Results) -> None:
    results.windows = deepcopy(results.windows)
    for window in results.windows:
        if window.mode == "off" and window.violations:
            window.own_rate = 0.0


def bound_missed_over_time(results: Results) -> None:
    results.long_runs = deepcopy(results.long_runs)
    results.long_runs[0].bound_misses = 1


def false_alarm(results: Results) -> None:
    results.long_runs = deepcopy(results.long_runs)
    results.long_runs[0].false_alarms = 1


def wrong_verdict(results: Results) -> None:
    results.confusion[0] = replaced(results.confusion[0], truth="not the clock")


def blamed_under_load(results: Results) -> None:
    results.confusion[4] = replaced(results.confusion[4], truth="clock", verdict="skewed")


def changed_ours(results: Results, **changes: object) -> None:
    results.heuristics = [replaced(row, **changes) if row.method == "measured" else row for row in results.heuristics]


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (another_machine, "law"),
        (another_law, "law-edges"),
        (window_broken, "over-time-rewrite"),
        (another_drift, "over-time-law"),
        (another_law_over_time, "over-time-edges"),
        (bound_missed_over_time, "over-time-bounds"),
        (false_alarm, "over-time-signal"),
        (wrong_verdict, "blame"),
        (blamed_under_load, "blame-overloaded"),
        (lambda results: changed_ours(results, rms_us=300.0), "heuristics-error"),
        (lambda results: changed_ours(results, introduced=1), "heuristics-introduced"),
        (set_rate, "raw-zmq-5ms"),
        (early, "raw-below-floor"),
        (left_over, "rewrite-span-start"),
        (beyond_bound, "rewrite-send-receive"),
        (missed, "bound-misses"),
        (blamed, "tag-unskewed"),
        (impossible, "tag-violations"),
        (unsure, "tag-indeterminate"),
        (slow, "throughput-skew"),
        (slowed_by_sidecar, "throughput-sidecar"),
        (quiet_check, "check-5-ms"),
        (lambda results: setattr(results.runs[7], "outputs_correct", 0.99), "outputs"),
        (lambda results: setattr(results.runs[3], "spans_missing", 1), "spans"),
        (lambda results: setattr(results.runs[3], "spans_unsynchronized", 1), "synchronized"),
        (lambda results: setattr(results.runs[3], "times_changed", 1), "tag-times"),
        (lambda results: setattr(results.runs[5], "durations_changed", 1), "rewrite-durations"),
        (lambda results: setattr(results.runs[5], "order_changed", 1), "rewrite-order"),
    ],
)
def test_each_claim_fails_on_its_own(damage: Callable[[Results], None], name: str) -> None:
    results = made_results()
    damage(results)
    assert [check.name for check in failed(claims(results))] == [name]


def test_what_was_not_run_is_not_applicable() -> None:
    results = made_results()
    results.runs = [run for run in results.runs if run.mode == "off" and run.transport == "zmq" and run.skew_ms == 1]
    results.throughput, results.probes = [], []
    judged = {check.name: check.passed for check in claims(results)}
    assert judged["raw-below-floor"] is True
    assert [name for name, passed in judged.items() if passed is False] == []
    assert judged["rewrite-span-start"] is judged["bound-misses"] is judged["check-5-ms"] is None
