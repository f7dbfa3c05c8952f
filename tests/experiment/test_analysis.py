"""The analysis on spans made by hand: a known truth, and what each mode would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.analysis import (
    CellFacts,
    analyse,
    durations_changed,
    edges,
    joined,
    order_changed,
    quantile,
)
from skewd_pipeline.law import predict
from skewd_pipeline.results import RULES, STAGES, Run, Separations
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_SENT, RECEIVED, SENT, SpanRecord

MS = 1_000_000
US = 1_000
T0 = 1_700_000_000_000_000_000


def facts(skew_ns: int, *, stage: str = "inference", direction: str = "behind", messages: int = 1) -> CellFacts:
    truth = dict.fromkeys(STAGES, 0)
    truth[stage] = skew_ns if direction == "behind" else -skew_ns
    return CellFacts(
        transport="zmq",
        broker=None,
        stage=stage,
        direction=direction,
        skew_ns=skew_ns,
        floor_ns=3_500_000,
        truth_ns=truth,
        messages=messages,
        outputs_correct=1.0,
        throughput_per_s=40.0,
    )


def raw_spans(
    cell: CellFacts, *, messages: int = 1, work_ns: int = 3_500 * US, delay_ns: int = 200 * US
) -> list[SpanRecord]:
    """One span per stage and message, as the nodes' clocks would have stamped them."""
    spans = []
    for number in range(messages):
        true = T0 + number * 25 * MS
        parent = ""
        for stage in STAGES:
            wall = true - cell.truth_ns[stage]
            span_id = f"{number:08x}{STAGES.index(stage):08x}"
            sent = wall + work_ns
            events = {} if stage == STAGES[0] else {RECEIVED: wall}
            if stage != STAGES[-1]:
                events[SENT] = sent
            spans.append(SpanRecord(span_id, parent, f"{number:032x}", stage, wall, sent + 10 * US, {}, events))
            parent = span_id
            true += work_ns + delay_ns
    return spans


def tagged(
    spans: Sequence[SpanRecord], cell: CellFacts, *, error_ns: int = 30 * US, uncertainty_ns: int = 80 * US
) -> list[SpanRecord]:
    """The same spans with tags: the truth, wrong by ``error_ns`` on every node but the producer's."""
    found = []
    for span in spans:
        wrong = 0 if span.stage == STAGES[0] else error_ns
        attributes: dict[str, str | bool | int | float] = {
            "clock.offset_ns": cell.truth_ns[span.stage] + wrong,
            "clock.uncertainty_ns": 0 if span.stage == STAGES[0] else uncertainty_ns,
            "clock.reference": "node:producer",
            "clock.status": "synchronized",
            "clock.node.name": span.stage,
            "clock.corrected": False,
        }
        found.append(replace(span, attributes=attributes))
    return found


def rewritten(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """Tagged spans, moved by what their tags say."""
    found = []
    for span in spans:
        by = int(span.attributes["clock.offset_ns"])
        found.append(
            replace(
                span,
                start_ns=span.start_ns + by,
                end_ns=span.end_ns + by,
                events={name: at + by for name, at in span.events.items()},
                attributes={**span.attributes, "clock.corrected": True},
            )
        )
    return found


def rows_of(spans: dict[str, Sequence[SpanRecord]], cell: CellFacts) -> dict[tuple[str, str], Run]:
    return {(row.mode, row.rule): row for row in analyse(spans, cell).rows}


def all_modes(cell: CellFacts, messages: int = 4, **tags: int) -> dict[str, Sequence[SpanRecord]]:
    raw = raw_spans(cell, messages=messages)
    tag = tagged(raw, cell, **tags)
    return {"off": raw, "tag": tag, "rewrite": rewritten(tag)}


def test_four_edges_a_message_by_both_rules() -> None:
    raw = raw_spans(facts(0), messages=3)
    for rule in RULES:
        found = list(edges(raw, rule))
        assert len(found) == 12
        assert {(edge.sender.stage, edge.receiver.stage) for edge in found} == set(pairwise(STAGES))
    assert {edge.gap_ns for edge in edges(raw, "send-receive")} == {200 * US}
    assert {edge.gap_ns for edge in edges(raw, "span-start")} == {3_700 * US}


def test_a_skew_below_the_separation_is_seen_by_send_receive_only() -> None:
    cell = facts(3 * MS, messages=4)
    rows = rows_of(all_modes(cell), cell)
    assert (rows["off", "send-receive"].violations, rows["off", "span-start"].violations) == (4, 0)
    assert rows["off", "send-receive"].edges == 4
    assert rows["off", "send-receive"].all is not None
    assert rows["off", "send-receive"].all.edges == 16
    assert rows["tag", "send-receive"].violation_verdicts == {"skewed": 4}
    assert rows["rewrite", "send-receive"].violations == 0
    assert rows["off", "send-receive"].verdicts == {}


@pytest.mark.parametrize(
    ("stage", "direction"), [("inference", "ahead"), ("producer", "ahead"), ("consumer", "behind")]
)
def test_the_counted_edge_follows_stage_and_direction(stage: str, direction: str) -> None:
    cell = facts(5 * MS, stage=stage, direction=direction, messages=4)
    row = rows_of({"off": raw_spans(cell, messages=4)}, cell)["off", "span-start"]
    assert (row.edges, row.violations, row.violation_rate) == (4, 4, 1.0)
    assert row.separation_ms is not None
    assert row.separation_ms.min == pytest.approx(3.7)


def test_a_negative_gap_inside_the_uncertainty_is_indeterminate_after_a_rewrite() -> None:
    cell = facts(0, messages=2)
    spans = all_modes(cell, messages=2, error_ns=-220 * US, uncertainty_ns=230 * US)
    row = rows_of(spans, cell)["rewrite", "send-receive"]
    # Only the producer is exact, so its edge comes out 20 us negative; between the others the errors cancel.
    assert row.all is not None
    assert (row.all.violations, row.residuals_ns) == (0, [20 * US, 20 * US])
    assert row.all.verdicts["indeterminate"] == 8


def test_a_negative_gap_beyond_the_uncertainty_stays_a_violation() -> None:
    cell = facts(0)
    spans = all_modes(cell, messages=1, error_ns=-400 * US, uncertainty_ns=100 * US)
    row = rows_of(spans, cell)["rewrite", "send-receive"]
    assert row.all is not None
    assert (row.all.violations, row.residuals_ns) == (1, [])
    assert row.bound_misses == 4


def test_bound_misses_need_an_error_larger_than_the_uncertainty() -> None:
    cell = facts(5 * MS)
    exact = rows_of(all_modes(cell, error_ns=80 * US, uncertainty_ns=80 * US), cell)["tag", "span-start"]
    beyond = rows_of(all_modes(cell, error_ns=80 * US + 1, uncertainty_ns=80 * US), cell)["tag", "span-start"]
    assert (exact.bound_misses, beyond.bound_misses) == (0, 16)
    assert exact.error_ns is not None
    assert exact.error_ns.max == 80 * US


def test_an_unsynchronized_span_is_counted_and_has_no_verdict() -> None:
    cell = facts(5 * MS)
    tag = tagged(raw_spans(cell), cell)
    tag[2] = replace(
        tag[2], attributes={"clock.status": "unsynchronized", "clock.node.name": "inference", "clock.corrected": False}
    )
    row = rows_of({"tag": tag}, cell)["tag", "span-start"]
    assert (row.spans_unsynchronized, row.bound_misses) == (1, 0)
    assert row.verdicts == {"unsynchronized": 1}


def test_lost_and_duplicated_spans_are_counted() -> None:
    cell = facts(0, messages=2)
    raw = raw_spans(cell, messages=2)
    row = rows_of({"off": [*raw[1:], raw[3]]}, cell)["off", "span-start"]
    assert (row.spans, row.spans_missing, row.spans_duplicated, row.edges) == (9, 1, 1, 2)


def test_changed_times_durations_and_order_are_noticed() -> None:
    cell = facts(0, messages=3)
    raw = raw_spans(cell, messages=3)
    by_id = {span.span_id: span for span in raw}
    moved = [replace(span, end_ns=span.end_ns + (span.stage == "inference")) for span in raw]
    assert durations_changed(by_id, moved) == 3
    assert durations_changed(by_id, raw) == 0
    swapped = [
        replace(span, start_ns=span.start_ns + (60 * MS if span.span_id.startswith("00000000") else 0)) for span in raw
    ]
    assert order_changed(by_id, swapped) == 5
    assert order_changed(by_id, raw) == 0
    touched = rows_of({"off": raw, "tag": moved}, cell)["tag", "span-start"]
    assert touched.times_changed == 3


def test_prediction_is_the_share_of_shorter_separations() -> None:
    cell = facts(5 * MS, messages=4)
    rows = analyse(all_modes(cell), cell).rows
    known = [Separations(transport="zmq", rule="span-start", floor_ms=3.5, separations_ns=[4 * MS, 6 * MS])]
    predict(rows, known)
    found = {(row.mode, row.rule): row.predicted_rate for row in rows}
    assert found["off", "span-start"] == found["tag", "span-start"] == 0.5
    assert found["rewrite", "span-start"] is None
    assert found["off", "send-receive"] is None


def test_separations_are_kept_for_every_edge_whatever_the_skew() -> None:
    skewed, straight = facts(7 * MS, messages=3), facts(0, messages=3)
    found = analyse(all_modes(skewed, messages=3), skewed)
    assert found.by_edge_ns == analyse(all_modes(straight, messages=3), straight).by_edge_ns
    assert {edge for _, edge in found.by_edge_ns} == {">".join(pair) for pair in pairwise(STAGES)}
    assert found.by_edge_ns["span-start", "preprocess>inference"] == found.separations_ns["span-start"]


def test_the_hosts_raw_clock_says_which_edges_were_closer_together_than_the_skew() -> None:
    cell = facts(5 * MS, messages=6)

    def noted(slow: int, *, boot_ns: int = 0) -> list[SpanRecord]:
        """Raw readings as if the first ``slow`` messages' work before the skewed stage had taken 9 ms."""
        found = []
        for span in raw_spans(cell, messages=6):
            place, number = STAGES.index(span.stage), int(span.trace_id, 16)
            begun = number * 25 * MS + place * 3_700 * US + (place >= 2 and number < slow) * 9 * MS
            other = boot_ns if span.stage == "inference" else 0
            raw: dict[str, str | bool | int | float] = {HOST_RAW: begun + other, HOST_RAW_SENT: begun + 3_500 * US}
            found.append(replace(span, attributes=raw))
        return found

    rows = rows_of({"off": noted(2)}, cell)
    assert rows["off", "span-start"].shorter_separations == 4
    assert rows["off", "send-receive"].shorter_separations == 4
    assert rows_of({"off": raw_spans(cell, messages=6)}, cell)["off", "span-start"].shorter_separations is None
    assert rows_of({"off": noted(2, boot_ns=10**15)}, cell)["off", "span-start"].shorter_separations is None


def test_without_raw_modes_the_separations_come_from_the_recovered_originals() -> None:
    cell = facts(7 * MS, messages=4)
    spans = all_modes(cell)
    from_raw = analyse(spans, cell).separations_ns
    from_rewritten = analyse({"rewrite": spans["rewrite"]}, cell).separations_ns
    assert from_raw == from_rewritten


@given(
    skew=st.integers(0, 20 * MS),
    ahead=st.booleans(),
    error=st.integers(-90 * US, 90 * US),
    work=st.integers(0, 9 * MS),
    delay=st.integers(0, 2 * MS),
)
def test_tags_that_hold_the_truth_never_blame_the_innocent(
    skew: int, ahead: bool, error: int, work: int, delay: int
) -> None:
    cell = facts(skew, direction="ahead" if ahead else "behind")
    raw = raw_spans(cell, work_ns=work, delay_ns=delay)
    tag = tagged(raw, cell, error_ns=error, uncertainty_ns=90 * US)
    for row in analyse({"off": raw, "tag": tag, "rewrite": rewritten(tag)}, cell).rows:
        assert row.all is not None
        assert "impossible" not in row.all.verdicts
        assert row.bound_misses == 0
        if row.mode == "rewrite" and row.rule == "send-receive":
            assert row.all.violations == 0
        if row.mode == "rewrite":
            assert (row.durations_changed, row.order_changed) == (0, 0)
        if row.mode != "rewrite":
            separation = delay if row.rule == "send-receive" else work + delay
            assert row.violations == (separation < skew)
            assert set(row.violation_verdicts) <= {"skewed", "indeterminate"}


@given(st.lists(st.integers(0, 100), min_size=1), st.floats(0, 1))
def test_quantiles_are_members_in_order(values: list[int], share: float) -> None:
    ordered = sorted(values)
    assert quantile(ordered, share) in values
    assert quantile(ordered, 0) == ordered[0]
    assert quantile(ordered, 1) == ordered[-1]


@given(
    cuts=st.lists(st.integers(1, 9), max_size=3, unique=True).map(sorted),
    skew_ms=st.integers(0, 8),
    delays_us=st.lists(st.integers(20, 4_000), min_size=10, max_size=10),
    error_us=st.integers(0, 120),
)
def test_a_cell_run_in_blocks_is_counted_as_one(
    cuts: list[int], skew_ms: int, delays_us: list[int], error_us: int
) -> None:
    cell = facts(skew_ms * MS, messages=10)
    by_message = [
        [
            replace(span, span_id=f"{number}-{span.span_id}", parent_id=span.parent_id and f"{number}-{span.parent_id}")
            for span in raw_spans(cell, delay_ns=delay * US)
        ]
        for number, delay in enumerate(delays_us)
    ]

    def modes(first: int, last: int) -> dict[str, Sequence[SpanRecord]]:
        raw = [span for spans in by_message[first:last] for span in spans]
        raw = [
            replace(span, attributes={HOST_RAW: span.start_ns, HOST_RAW_SENT: span.events.get(SENT, 0)}) for span in raw
        ]
        tag = tagged(raw, cell, error_ns=error_us * US)
        return {"off": [*raw, *raw[:2]], "tag": tag[: len(tag) - (last == 10)], "rewrite": rewritten(tag)}

    ends = [0, *cuts, 10]
    parts = [analyse(modes(first, last), replace(cell, messages=last - first)) for first, last in pairwise(ends)]
    whole, at_once = joined(parts), analyse(modes(0, 10), cell)
    for row in at_once.rows:  # each block had its own two duplicates
        row.spans_duplicated *= len(parts)
    assert whole.rows == at_once.rows
    assert whole.by_edge_ns == at_once.by_edge_ns
    assert whole.separations_ns == at_once.separations_ns


def test_blocks_of_different_cells_are_not_joined() -> None:
    one, other = facts(0), facts(5 * MS)
    with pytest.raises(ValueError, match=r"skew_ms is (0\.0 and 5\.0|5\.0 and 0\.0)"):
        joined([analyse(all_modes(one), one), analyse(all_modes(other), other)])


def test_a_block_of_which_nothing_arrived_is_counted_as_missing() -> None:
    cell = facts(0, messages=4)
    arrived, lost = analyse({"off": raw_spans(cell, messages=4)}, cell), analyse({"off": []}, cell)
    row = joined([arrived, lost]).rows[0]
    assert (row.messages, row.edges, row.spans, row.spans_missing) == (8, 4, 20, 20)
