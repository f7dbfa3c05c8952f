"""The heuristics by their formulas, on traces whose truth is known, and what verdicts are right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.calls import call_traces as made_call_traces
from skewd_pipeline.calls import compared
from skewd_pipeline.confusion import RIGHT, TRUTHS, VERDICTS, Tally, is_wrong, truth_of, wrong
from skewd_pipeline.heuristics import (
    HEURISTICS,
    METHODS,
    OURS,
    TraceSpan,
    call_traces,
    centring,
    centring_delta,
    client_server,
    client_server_skew,
    compare,
    measured,
    pipeline_traces,
    relations,
)
from skewd_pipeline.results import Heuristic
from skewd_pipeline.spans import ROLE, SpanRecord
from skewd_pipeline.world import World
from tests.experiment.made_rows import MS, US, block_of, raw_spans, tagged
from tests.experiment.made_rows import truth_of as truth_at


def span(
    name: str, parent: str, host: str, kind: str, start_us: int, end_us: int, *, skew_us: int = 0, later: bool = False
) -> TraceSpan:
    """A span at these true times on a host that is ``skew_us`` behind and whose tag is right."""
    return TraceSpan(
        name, parent, "t", host, kind, (start_us - skew_us) * US, (end_us - skew_us) * US, start_us * US, end_us * US,
        later, skew_us * US, 0,
    )  # fmt: skip


def call(skew_us: int, *, there_us: int = 200, back_us: int = 200, work_us: int = 4_000) -> list[TraceSpan]:
    served = 1_000 + there_us
    return [
        span("root", "", "a", "server", 0, 20_000),
        span("client", "root", "a", "client", 1_000, served + work_us + back_us),
        span("server", "client", "b", "server", served, served + work_us, skew_us=skew_us),
        span("work", "server", "b", "internal", served + 500, served + 900, skew_us=skew_us),
        span("audit", "server", "b", "internal", served + work_us + 3_000, served + work_us + 5_000, skew_us=skew_us,
             later=True),
    ]  # fmt: skip


@given(st.integers(-50_000, 50_000))
def test_both_heuristics_find_the_skew_of_a_call_whose_ways_are_equally_long(skew_us: int) -> None:
    trace = call(skew_us)
    moves = centring(trace)
    nests = -200 <= skew_us <= 200
    assert moves["server"] == moves["work"] == moves["audit"] == (0 if nests else skew_us * US)
    assert moves["root"] == moves["client"] == 0
    # Zipkin's looks only for servers that are behind.
    expected = skew_us * US if skew_us >= 200 else 0
    assert client_server(trace)["server"] == client_server(trace)["work"] == expected


@given(st.integers(300, 50_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_what_they_get_wrong_is_half_the_difference_of_the_ways(skew_us: int, there_us: int, back_us: int) -> None:
    trace = call(skew_us, there_us=there_us, back_us=back_us)
    if skew_us <= max(there_us, back_us):
        return
    for moves in (centring(trace), client_server(trace)):
        assert abs(moves["server"] - skew_us * US - (back_us - there_us) * US // 2) <= 1
    assert measured(trace)["server"] == skew_us * US


def test_the_formulas() -> None:
    assert centring_delta(0, 10, 2, 8) == 0, "it nests"
    assert centring_delta(100, 110, 90, 94) == 100 + 3 - 90
    assert centring_delta(100, 110, 90, 120) == 10, "a longer child is moved to its parent's start at most"
    assert centring_delta(100, 110, 105, 125) == 0
    assert client_server_skew(100, 10, 90, 4) == -10 - 3
    assert client_server_skew(100, 10, 101, 4) == 0, "it starts later: none is looked for"


def test_centring_pulls_a_child_that_nobody_waits_for_into_its_parent_though_no_clock_is_off() -> None:
    trace = [
        span("send", "", "a", "producer", 0, 100),
        span("consume", "send", "b", "consumer", 400, 450, later=True),
    ]
    assert centring(trace)["consume"] < -300 * US
    scores = {row.method: row for row in compare("t", 0.0, [trace])}
    assert scores["centring"].introduced > 0
    assert scores["client-server"].introduced == scores[OURS].introduced == scores["raw"].introduced == 0
    assert scores["centring"].violated_before == 0


def test_a_child_of_nobody_and_a_circle_of_parents_stay_where_they_are() -> None:
    lost = [span("x", "gone", "b", "server", 5, 9, skew_us=7)]
    circle = [span("y", "z", "a", "client", 0, 9), span("z", "y", "b", "server", 50, 60)]
    for method in (centring, client_server):
        assert method(lost) == {"x": 0}
        assert method(circle) == {"y": 0, "z": 0}


@given(st.integers(-20_000, 20_000), st.integers(0, 3_000), st.integers(0, 3_000))
def test_a_right_offset_leaves_no_relation_broken_and_breaks_none(skew_us: int, there_us: int, back_us: int) -> None:
    trace = call(skew_us, there_us=there_us, back_us=back_us)
    assert relations(trace)
    for row in compare("t", 0.0, [trace]):
        assert row.left + row.introduced + row.undecided <= row.relations
        if row.method == OURS:
            assert (row.left, row.introduced, row.undecided, row.rms_us) == (0, 0, 0, 0)
        if row.method == "raw":
            assert (row.left, row.introduced) == (row.violated_before, 0)
            assert row.max_us == abs(skew_us)


@given(st.integers(-20_000, 20_000), st.integers(-300, 300))
def test_a_wrong_offset_within_its_uncertainty_claims_nothing_false(skew_us: int, error_us: int) -> None:
    trace = [
        replace(each, offset_ns=(each.offset_ns or 0) + error_us * US, uncertainty_ns=300 * US)
        if each.host == "b"
        else each
        for each in call(skew_us)
    ]
    (ours, *_) = [row for row in compare("t", 0.0, [trace]) if row.method == OURS]
    assert (ours.left, ours.introduced) == (0, 0)


def by(rows: list[Heuristic], **wanted: object) -> Heuristic:
    (row,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return row


@pytest.mark.parametrize("direction", ["behind", "ahead"])
def test_measured_offsets_are_ten_times_nearer_on_calls_and_introduce_nothing(direction: str) -> None:
    rows = compared(direction=direction, skews_ms=(0.0, 5.0), traces=150)
    assert {row.method for row in rows} == set(METHODS)
    for edges in ("synchronous", "asynchronous"):
        ours = by(rows, edges=edges, method=OURS, skew_ms=5.0)
        assert (ours.left, ours.introduced) == (0, 0)
        assert ours.violated_before > 0
        best = min(by(rows, edges=edges, method=method, skew_ms=5.0).rms_us for method in HEURISTICS)
        assert ours.rms_us * 10 < best
    assert by(rows, edges="asynchronous", method="centring", skew_ms=5.0).introduced > 0
    assert by(rows, edges="synchronous", method="raw", skew_ms=5.0).rms_us == 5000


def test_made_calls_are_traces_with_one_root_and_tags() -> None:
    world = World(stage="inference", reference="preprocess", skew_ns=5 * MS, seed="t")
    for trace in made_call_traces(world, "preprocess", "inference", 20, "t"):
        ids = {each.span_id for each in trace}
        assert len(ids) == len(trace)
        assert [each.kind for each in trace if each.parent_id not in ids] == ["server"]
        assert {each.start_ns - each.true_start_ns for each in trace} == {0, -5 * MS}
        for each in trace:
            assert each.offset_ns is not None
            assert each.uncertainty_ns is not None
            assert abs(each.start_ns + each.offset_ns - each.true_start_ns) <= each.uncertainty_ns


def test_the_pipelines_own_traces_are_compared_too() -> None:
    truth = truth_at(5 * MS)
    spans = raw_spans(block_of(5 * MS, messages=6), truth)
    traces = pipeline_traces(tagged(spans, truth, error_ns=30 * US), truth)
    assert len(traces) == 6
    rows = compare("pipeline", 5.0, traces)
    assert {row.edges for row in rows} == {"asynchronous"}
    assert by(rows, method=OURS).max_us == 30
    assert by(rows, method=OURS).introduced == 0
    assert by(rows, method="centring").introduced > 0


def test_calls_between_stages_become_traces() -> None:
    def record(role: str, parent: str, stage: str, start: int, end: int) -> SpanRecord:
        attributes: dict[str, str | bool | int | float] = {ROLE: role, "clock.offset_ns": 7, "clock.uncertainty_ns": 1}
        return SpanRecord(role, parent, "t", stage, start, end, attributes, {})

    spans = [
        record("request", "", "preprocess", 0, 100),
        record("client", "request", "preprocess", 10, 90),
        record("server", "client", "inference", 30, 40),
        record("audit", "server", "inference", 95, 120),
        SpanRecord("else", "", "u", "inference", 0, 1, {}, {}),
    ]
    (trace,) = call_traces(spans, {"preprocess": 0, "inference": 7})
    assert [(each.kind, each.asynchronous) for each in trace] == [
        ("internal", False), ("client", False), ("server", False), ("internal", True),
    ]  # fmt: skip
    assert [each.true_start_ns - each.start_ns for each in trace] == [0, 0, 7, 7]
    assert [each.offset_ns for each in trace] == [7] * 4


@given(st.integers(-10, 10), st.integers(-10, 10))
def test_the_four_truths(stamped: int, true: int) -> None:
    truth = truth_of(stamped, true)
    assert truth in TRUTHS
    assert (truth in ("clock", "not the clock")) == (stamped < 0)
    assert (truth in ("in order", "clock")) == (true >= 0)
    assert not is_wrong(truth, RIGHT[truth])
    assert not is_wrong(truth, "indeterminate")
    assert sum(is_wrong(truth, verdict) for verdict in VERDICTS) == 2


def test_the_tally_counts_and_finds_what_is_wrong() -> None:
    tally = Tally()
    for verdict in ("impossible", "skewed", "impossible"):
        tally.add("overloaded", "zmq", "stamp-after-send", "not the clock", verdict)
    assert [(row.verdict, row.count) for row in tally.rows()] == [("skewed", 1), ("impossible", 2)]
    assert [row.verdict for row in wrong(tally.rows())] == ["skewed"]
