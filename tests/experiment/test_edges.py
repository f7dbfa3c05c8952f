"""The table of edges: a row for whatever was planned, of what arrived and of what did not, and back from its file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.edges import FILE, EdgeRow, Table, connect, constant, edge_rows, separations_ns
from skewd_pipeline.results import MODES, RULES, STAGES
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_SENT_AFTER, MESSAGE_ID, NOTED, RECEIVED, SENT
from tests.experiment.made_rows import (
    BESIDE_NS,
    MS,
    US,
    all_modes,
    block_of,
    connect_rows,
    good_rows,
    raw_spans,
    rewritten,
    rows_at,
    tagged,
    truth_of,
)

INTO, OUT_OF = ("preprocess", "inference"), ("inference", "postprocess")


def row_of(rows: list[EdgeRow], message: int, mode: str, edge: tuple[str, str] = INTO) -> EdgeRow:
    (found,) = [row for row in rows if (row.message, row.mode, (row.sender, row.receiver)) == (message, mode, edge)]
    return found


def test_every_planned_message_has_a_row_for_each_edge_and_mode() -> None:
    rows = rows_at(5 * MS, messages=3)
    assert Counter((row.message, row.sender, row.receiver, row.mode) for row in rows) == Counter(
        (message, *edge, mode) for message in range(3) for edge in pairwise(STAGES) for mode in MODES
    )
    assert {row.sender for row in rows if row.counted} == {"preprocess"}
    assert {(row.cell, row.skew_ns, row.output) for row in rows} == {("zmq sweep at 5 ms", 5 * MS, "correct")}


def test_a_row_says_what_was_stamped_between_which_readings_and_what_was_true() -> None:
    block, truth = block_of(5 * MS), truth_of(5 * MS)
    spans = all_modes(block, truth)
    rows = list(edge_rows(block, spans, constant(truth)))
    by_stage = {span.stage: span for span in spans["off"] if span.attributes[MESSAGE_ID] == f"{block.block}/2"}
    sender, receiver = by_stage["preprocess"], by_stage["inference"]
    row = row_of(rows, 2, "off")
    assert (row.sender_start_ns, row.sender_end_ns) == (sender.start_ns, sender.end_ns)
    assert (row.sender_sent_ns, row.sender_noted_ns) == (sender.events[SENT], sender.events[NOTED])
    assert (row.receiver_start_ns, row.receiver_received_ns) == (receiver.start_ns, receiver.events[RECEIVED])
    assert row.trace_id == sender.trace_id
    brackets = [
        (row.sender_start_raw_lo_ns, row.sender_start_raw_hi_ns),
        (row.sender_sent_raw_lo_ns, row.sender_sent_raw_hi_ns),
        (row.receiver_start_raw_lo_ns, row.receiver_start_raw_hi_ns),
    ]
    assert [high - low for low, high in brackets if low is not None and high is not None] == [2 * BESIDE_NS] * 3
    assert row.sender_start_raw_lo_ns == sender.attributes[HOST_RAW]
    assert row.sender_sent_raw_hi_ns == sender.attributes[HOST_RAW_SENT_AFTER]
    assert (row.sender_sent_truth_lo_ns, row.sender_sent_truth_hi_ns) == (0, 0)
    assert (row.receiver_start_truth_lo_ns, row.receiver_start_truth_hi_ns) == (5 * MS, 5 * MS)
    assert (row.receiver_offset_ns, row.receiver_uncertainty_ns) == (None, None), "nobody tags what goes directly"
    assert row.verdict_span_start is None
    tag = row_of(rows, 2, "tag")
    assert (tag.receiver_offset_ns, tag.receiver_uncertainty_ns) == (5 * MS + 3 * US, 9 * US)
    assert tag.receiver_start_ns == row.receiver_start_ns
    fixed = row_of(rows, 2, "rewrite")
    assert fixed.receiver_start_ns == receiver.start_ns + 5 * MS + 3 * US


def test_while_a_clock_is_changed_the_truth_is_an_interval_and_an_edge_has_no_one_separation() -> None:
    block = block_of(0, messages=2)
    spans = all_modes(block, truth_of(0), ("off",))
    asked: list[tuple[str, int, int]] = []

    def truth(node: str, first_ns: int, last_ns: int) -> tuple[int, int]:
        asked.append((node, first_ns, last_ns))
        return (-20 * MS, 3 * MS) if node == "inference" else (0, 0)

    row = row_of(list(edge_rows(block, spans, truth)), 1, "off")
    assert (row.receiver_start_truth_lo_ns, row.receiver_start_truth_hi_ns) == (-20 * MS, 3 * MS)
    assert [row.separation_ns(rule) for rule in RULES] == [None, None]
    assert {last - first for _, first, last in asked} == {2 * BESIDE_NS}, "asked between the readings, not at one"


def test_verdicts_are_those_of_the_tags() -> None:
    rows = rows_at(5 * MS)
    for message in range(8):
        tag = row_of(rows, message, "tag")
        assert (tag.verdict_span_start, tag.verdict_send_receive) == ("skewed", "skewed")
        late = message % 7 == 6
        # Noted only after the receiver had it: the clock turned it round as well, but not the clock alone.
        assert tag.verdict_stamp_after_send == ("impossible" if late else "skewed")
        assert row_of(rows, message, "tag", OUT_OF).verdict_span_start == "ordered"
    alone = [row.verdict_stamp_after_send for row in rows_at(0) if row.mode == "tag"]
    assert Counter(alone) == {"ordered": 7 * 4, "impossible": 4}


def test_a_span_without_a_bound_has_an_unsynchronized_edge() -> None:
    block, truth = block_of(5 * MS), truth_of(5 * MS)
    tags = [
        replace(span, attributes={key: value for key, value in span.attributes.items() if "clock." not in key})
        if span.stage == "inference"
        else span
        for span in tagged(raw_spans(block, truth), truth)
    ]
    rows = list(edge_rows(block, {"tag": tags}, constant(truth)))
    row = row_of(rows, 0, "tag")
    assert (row.receiver_offset_ns, row.verdict_span_start) == (None, "unsynchronized")
    assert row_of(rows, 0, "tag", ("postprocess", "consumer")).verdict_span_start == "ordered"


def test_what_never_arrived_is_a_row_without_stamps_and_what_came_twice_is_counted() -> None:
    block, truth = block_of(0), truth_of(0)
    spans = raw_spans(block, truth)
    kept = [
        span for span in spans if not (span.stage == "inference" and span.attributes[MESSAGE_ID] == f"{block.block}/3")
    ]
    twice = next(
        span for span in kept if span.stage == "preprocess" and span.attributes[MESSAGE_ID] == f"{block.block}/5"
    )
    rows = list(edge_rows(block, {"off": [*kept, twice]}, constant(truth)))
    assert len(rows) == 8 * 4
    into, out_of = row_of(rows, 3, "off"), row_of(rows, 3, "off", OUT_OF)
    assert (into.receiver_copies, into.receiver_start_ns, into.receiver_start_raw_lo_ns) == (0, None, None)
    assert (into.sender_copies, into.receiver_made) == (1, True), "made, says the stage, and never seen"
    assert (out_of.sender_copies, out_of.sender_start_ns, out_of.separation_ns("span-start")) == (0, None, None)
    assert row_of(rows, 5, "off").sender_copies == 2
    assert row_of(rows, 5, "off", ("producer", "preprocess")).receiver_copies == 2
    nothing = list(edge_rows(block, {"off": [], "tag": []}, constant(truth)))
    assert len(nothing) == 8 * 4 * 2
    assert {(row.sender_copies, row.receiver_copies, row.sender_made) for row in nothing} == {(0, 0, True)}


def test_stages_say_what_they_handled_and_the_consumer_what_came_out() -> None:
    handled = {
        "producer": "xxxxx", "preprocess": "xxxxx", "inference": "xxxx-", "postprocess": "xx-x-", "consumer": "cw-",
    }  # fmt: skip
    block = replace(block_of(0, messages=5), handled=handled)
    rows = list(edge_rows(block, {"off": []}, constant(truth_of(0))))
    assert [row_of(rows, message, "off").output for message in range(5)] == [
        "correct", "wrong", "missing", "missing", "missing",
    ]  # fmt: skip
    made = [row_of(rows, message, "off", ("postprocess", "consumer")) for message in range(5)]
    assert [(row.sender_made, row.receiver_made) for row in made] == [
        (True, True), (True, True), (False, False), (True, False), (False, False),
    ]  # fmt: skip
    silent = list(edge_rows(replace(block, handled={}), {"off": []}, constant(truth_of(0))))
    assert {(row.output, row.sender_made, row.receiver_made) for row in silent} == {("missing", False, False)}


def test_a_message_that_was_not_planned_or_has_no_number_is_no_row() -> None:
    block, truth = block_of(0, messages=2), truth_of(0)
    spans = raw_spans(replace(block, messages=4), truth)
    nameless = [replace(spans[0], attributes={}), replace(spans[1], attributes={MESSAGE_ID: f"{block.block}/x"})]
    rows = list(edge_rows(block, {"off": [*spans, *nameless]}, constant(truth)))
    assert {row.message for row in rows} == {0, 1}
    assert {row.sender_copies for row in rows} == {1}


@pytest.mark.parametrize(
    ("stage", "direction", "edge"),
    [
        ("inference", "behind", INTO),
        ("inference", "ahead", OUT_OF),
        ("producer", "ahead", ("producer", "preprocess")),
        ("consumer", "behind", ("postprocess", "consumer")),
    ],
)
def test_the_counted_edge_follows_stage_and_direction(stage: str, direction: str, edge: tuple[str, str]) -> None:
    block = block_of(5 * MS, stage=stage, direction=direction)
    truth = truth_of(5 * MS, stage=stage, direction=direction)
    rows = list(edge_rows(block, all_modes(block, truth, ("off",)), constant(truth)))
    assert {(row.sender, row.receiver) for row in rows if row.counted} == {edge}
    backwards = {
        (row.sender, row.receiver)
        for row in rows
        if row.sender_start_ns is not None and row.receiver_start_ns is not None
        if row.receiver_start_ns < row.sender_start_ns
    }
    assert backwards == {edge}


def test_separations_are_the_true_gaps_once_a_message_in_their_order_whatever_the_skew() -> None:
    block, slow = block_of(7 * MS, messages=12), truth_of(7 * MS)
    spans = raw_spans(block, slow)
    tags = tagged(spans, slow)
    ways = {"off": list(reversed(spans)), "tag": tags, "rewrite": rewritten(tags)}
    rows = list(edge_rows(block, ways, constant(slow)))
    straight = list(edge_rows(block, {"off": raw_spans(block, truth_of(0))}, constant(truth_of(0))))
    for rule in RULES:
        found = separations_ns(rows, rule, INTO)
        assert len(found) == 12
        assert found == separations_ns(straight, rule, INTO)
        assert found != sorted(found), "in the order of the messages, which is what stretches are drawn from"
    assert separations_ns(rows, "span-start", OUT_OF) != separations_ns(rows, "span-start", INTO)
    two = rows_at(0, round=0) + rows_at(0, round=1)
    assert len(separations_ns(two, "span-start", INTO)) == 16


@given(
    skew=st.integers(0, 20 * MS),
    ahead=st.booleans(),
    error=st.integers(-90 * US, 90 * US),
    late_every=st.sampled_from([0, 2]),
)
def test_tags_that_hold_the_truth_never_blame_the_innocent(skew: int, ahead: bool, error: int, late_every: int) -> None:
    direction = "ahead" if ahead else "behind"
    block, truth = block_of(skew, messages=2, direction=direction), truth_of(skew, direction=direction)
    raw = raw_spans(block, truth, late_every=late_every)
    tags = tagged(raw, truth, error_ns=error, uncertainty_ns=90 * US)
    for row in edge_rows(block, {"tag": tags, "rewrite": rewritten(tags)}, constant(truth)):
        assert row.verdict_span_start in ("ordered", "skewed")
        assert row.verdict_send_receive in ("ordered", "skewed", "indeterminate")
        assert row.receiver_received_ns is not None
        assert row.sender_noted_ns is not None
        assert row.sender_sent_ns is not None
        late = bool(late_every) and row.message % late_every == late_every - 1
        assert row.verdict_stamp_after_send != ("ordered" if late else "impossible")
        if late:
            assert row.verdict_stamp_after_send != "skewed", "noted late by a process, not by a clock"
        if row.mode == "tag" and row.counted:
            apart = row.separation_ns("span-start")
            assert apart is not None
            assert (row.verdict_span_start == "skewed") == (skew > apart)


def test_the_table_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    rows = good_rows()[:200]
    rows[3] = replace(rows[3], rate=None, broker="apache", trace_id=None, sender_start_ns=None)
    rows[4] = replace(rows[4], cell='a "quoted" name, with a comma', rate=0.1)
    with connect_rows(rows, tmp_path) as database:
        names = [str(name) for name, *_ in database.execute("DESCRIBE edges").fetchall()]
        back = [
            EdgeRow(**dict(zip(names, values, strict=True))) for values in database.execute("FROM edges").fetchall()
        ]
    assert back == rows
    assert {path.name for path in tmp_path.iterdir()} == {FILE}, "what was kept on the way is gone"


def test_the_file_is_there_whole_or_not_at_all_and_may_be_written_again(tmp_path: Path) -> None:
    rows = rows_at(0, messages=2)
    with Table(tmp_path / "kept.csv") as table:
        table.add(rows[:8])
        table.write(tmp_path / "out" / FILE)
        with connect(tmp_path / "out" / FILE) as database:
            assert database.execute("SELECT count(*) FROM edges").fetchone() == (8,)
        table.add(rows[8:])
        assert table.rows == len(rows) == 24
        table.write(tmp_path / "out" / FILE)
    with connect(tmp_path / "out" / FILE) as database:
        assert database.execute("SELECT count(*) FROM edges").fetchone() == (24,)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {FILE}
    assert not (tmp_path / "kept.csv").exists()


def test_a_table_without_rows_is_a_file_with_its_columns(tmp_path: Path) -> None:
    with connect_rows([], tmp_path) as database:
        assert database.execute("SELECT count(*), max(sender_start_ns) FROM edges").fetchone() == (0, None)
