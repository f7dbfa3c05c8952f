"""Verdicts: the table, and that no truth within the bounds is ever called the wrong thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import UNSYNCHRONIZED, Correction, Status
from skewd.interval import Interval
from skewd_sidecar.causality import Stamp, Verdict, gap, judge, stamp_from_attributes, verdict
from skewd_sidecar.patch import Mode, PatchOptions, patch_traces

T0 = 1_790_000_000_000_000_000
SYNC = Status.SYNCHRONIZED


@pytest.mark.parametrize(
    ("raw", "least", "most", "wanted"),
    [
        (5, 0, 9, "ordered"),
        (0, 0, 0, "ordered"),
        (-1, 0, 9, "skewed"),
        (-5, 3, 9, "skewed"),
        (5, -1, 9, "indeterminate"),
        (-5, -1, 0, "indeterminate"),
        (0, -1, 0, "indeterminate"),
        (-5, -9, -1, "impossible"),
        (5, -9, -1, "impossible"),
    ],
)
def test_the_table(raw: int, least: int, most: int, wanted: str) -> None:
    assert verdict(raw, Interval(least, most)) == wanted


spread = st.integers(-(10**8), 10**8)
bounds = st.integers(0, 10**7)


@st.composite
def stamps(draw: st.DrawFn, true_ns: int, true_offset: int, node: str) -> Stamp:
    """A stamp of a clock whose true offset is known here, tagged with a bound that holds it."""
    uncertainty = draw(bounds)
    applied = true_offset + draw(st.integers(-uncertainty, uncertainty))
    return Stamp(true_ns - true_offset, applied, uncertainty, SYNC, "utc", node)


@given(st.data(), spread, spread, spread)
def test_the_truth_is_never_contradicted(data: st.DataObject, true_gap: int, offset_a: int, offset_b: int) -> None:
    sent = data.draw(stamps(T0, offset_a, "a"))
    received = data.draw(stamps(T0 + true_gap, offset_b, "b"))
    possible = gap(sent, received)
    assert possible is not None
    assert possible.contains(true_gap)
    said = judge(sent, received)
    if true_gap >= 0:
        assert said is not Verdict.IMPOSSIBLE
    else:
        assert said not in (Verdict.ORDERED, Verdict.SKEWED)
    if said is Verdict.SKEWED:  # only ever said of stamps that are the wrong way round, and of clocks that do differ
        assert received.time_ns < sent.time_ns
        assert offset_a != offset_b
    if received.time_ns >= sent.time_ns:
        assert said is not Verdict.SKEWED


@given(st.data(), spread, spread)
def test_between_clocks_that_agree_nothing_is_skewed(data: st.DataObject, true_gap: int, offset: int) -> None:
    sent = data.draw(stamps(T0, offset, "a"))
    received = data.draw(stamps(T0 + true_gap, offset, "b"))
    assert judge(sent, received) is not Verdict.SKEWED


@given(st.data(), spread, spread, spread)
def test_a_violation_wider_than_the_uncertainty_is_decided(
    data: st.DataObject, true_gap: int, offset_a: int, offset_b: int
) -> None:
    sent = data.draw(stamps(T0, offset_a, "a"))
    received = data.draw(stamps(T0 + true_gap, offset_b, "b"))
    if abs(true_gap) > 2 * (sent.uncertainty_ns + received.uncertainty_ns):
        assert judge(sent, received) is not Verdict.INDETERMINATE


@given(spread, st.integers(-(10**9), 10**9), bounds)
def test_on_one_node_the_bound_cancels(raw: int, offset: int, uncertainty: int) -> None:
    sent = Stamp(T0, offset, uncertainty, SYNC, "utc", "a")
    received = replace(sent, time_ns=T0 + raw)
    assert gap(sent, received) == Interval(raw, raw)
    assert judge(sent, received) is (Verdict.ORDERED if raw >= 0 else Verdict.IMPOSSIBLE)


@given(spread, st.integers(-50_000_000, 50_000_000), st.integers(-(10**9), 10**9), bounds)
def test_on_one_node_a_moving_offset_turns_no_order_round(raw: int, slope_ppb: int, offset: int, width: int) -> None:
    sent = Stamp(T0, offset, width, SYNC, "utc", "a")
    received = Stamp(T0 + raw, offset + slope_ppb * raw // 10**9, width, SYNC, "utc", "a")
    possible = gap(sent, received)
    assert possible is not None
    assert possible.contains(raw)
    assert possible.contains(received.time_ns + received.offset_ns - sent.time_ns - sent.offset_ns)
    if raw > 0:
        assert judge(sent, received) is Verdict.ORDERED
    elif raw < -1:
        assert judge(sent, received) is Verdict.IMPOSSIBLE


@given(st.data(), st.integers(0, 10**7), spread, st.integers(-(10**9), 10**9))
def test_on_one_node_a_step_is_not_blamed_on_the_program(
    data: st.DataObject, true_gap: int, offset: int, step: int
) -> None:
    sent = data.draw(stamps(T0, offset, "a"))
    received = data.draw(stamps(T0 + true_gap, offset + step, "a"))
    jump = received.offset_ns - sent.offset_ns
    # Unless the applied offset shows none of it (see the module's limits).
    assume(abs(jump) > abs(received.time_ns - sent.time_ns) // 20 + 1)
    possible = gap(sent, received)
    assert possible is not None
    assert possible.contains(true_gap)
    assert judge(sent, received) is not Verdict.IMPOSSIBLE


def test_without_names_stamps_are_not_taken_for_one_node() -> None:
    stamp = Stamp(T0, 5, 100, SYNC, "utc", None)
    assert gap(stamp, replace(stamp, time_ns=T0 + 50)) == Interval(-150, 250)


@pytest.mark.parametrize("side", ["sent", "received"])
def test_nothing_is_said_when_a_side_is_unknown(side: str) -> None:
    known = Stamp(T0, 5, 6, SYNC, "utc", "a")
    for unknown in (
        replace(known, status=Status.UNSYNCHRONIZED),
        replace(known, reference="node:b", node="b"),
        replace(known, reference=None),
    ):
        pair = (unknown, known) if side == "sent" else (known, unknown)
        assert gap(*pair) is None
        assert judge(*pair) is None
    assert judge(replace(known, status=Status.HOLDOVER), known) is Verdict.ORDERED


def span(mode: Mode, node: str, correction: Correction, start: int, end: int) -> tuple[int, int, dict[str, object]]:
    """A span's start, end and attributes after the sidecar."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.spans.add(start_time_unix_nano=start, end_time_unix_nano=end)
    body = patch_traces(request.SerializeToString(), PatchOptions(mode, node), lambda _: correction).body
    made = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans[0]
    tags = {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in made.attributes}
    return made.start_time_unix_nano, made.end_time_unix_nano, tags


@given(spread, spread, spread, bounds, bounds)
def test_the_verdict_is_the_same_from_tagged_and_rewritten_spans(
    raw: int, offset_a: int, offset_b: int, width_a: int, width_b: int
) -> None:
    a, b = Correction(offset_a, width_a, SYNC, "utc"), Correction(offset_b, width_b, Status.HOLDOVER, "utc")
    wanted = judge(Stamp(T0, offset_a, width_a, SYNC, "utc", "a"), Stamp(T0 + raw, offset_b, width_b, SYNC, "utc", "b"))
    for mode in (Mode.TAG, Mode.REWRITE):
        _, sent, sent_tags = span(mode, "a", a, T0 - 1000, T0)
        received, _, received_tags = span(mode, "b", b, T0 + raw, T0 + raw + 1000)
        first, second = stamp_from_attributes(sent, sent_tags), stamp_from_attributes(received, received_tags)
        assert (first.time_ns, second.time_ns) == (T0, T0 + raw)
        assert second.status is Status.HOLDOVER
        assert judge(first, second) is wanted


def test_an_unsynchronized_span_says_nothing_but_its_node() -> None:
    start, _, tags = span(Mode.REWRITE, "a", UNSYNCHRONIZED, T0, T0 + 1)
    assert stamp_from_attributes(start, tags) == Stamp(T0, 0, 0, Status.UNSYNCHRONIZED, None, "a")


GOOD = {
    "clock.offset_ns": 5,
    "clock.uncertainty_ns": 6,
    "clock.reference": "utc",
    "clock.status": "synchronized",
    "clock.node.name": "a",
    "clock.corrected": True,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clock.offset_ns", None),
        ("clock.offset_ns", True),
        ("clock.offset_ns", "five"),
        ("clock.offset_ns", 5.0),
        ("clock.uncertainty_ns", -1),
        ("clock.uncertainty_ns", None),
        ("clock.reference", 7),
        ("clock.status", "fine"),
        ("clock.status", None),
    ],
)
def test_tags_that_are_not_the_contract_are_not_believed(key: str, value: object) -> None:
    assert stamp_from_attributes(T0, {**GOOD, key: value}).status is Status.UNSYNCHRONIZED


def test_numbers_that_became_text_on_their_way_are_read() -> None:
    text = {**GOOD, "clock.offset_ns": "5", "clock.uncertainty_ns": "6", "clock.corrected": "true"}
    assert stamp_from_attributes(T0, text) == stamp_from_attributes(T0, GOOD) == Stamp(T0 - 5, 5, 6, SYNC, "utc", "a")
    renamed = {key.replace("clock.", "lab."): value for key, value in GOOD.items()}
    assert stamp_from_attributes(T0, renamed, "lab.") == stamp_from_attributes(T0, GOOD)
