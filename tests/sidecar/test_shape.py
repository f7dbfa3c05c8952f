"""A rewrite keeps a span's shape: what lay between its start and its end stays there, in order.

On the command ``skewd sidecar`` beside a daemon's segment, and on the patch itself with whatever a source may say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skewd.bounds.history import UNSYNCHRONIZED, Correction, Status
from skewd_sidecar.patch import Mode, PatchOptions, Stamps, patch_traces
from tests.sidecar import twins
from tests.sidecar.segment_lab import KINDS, MS, OFFSET, SECOND, node, said
from tests.sidecar.test_patch import T0, always, attributes, request, spans_of

MINUTE = 60 * SECOND


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize("stamps", ["wall", "unknown"])
async def test_no_event_leaves_a_long_span_on_a_drifting_clock(
    tmp_path: Path, kinds: tuple[str, str], over: str, stamps: str
) -> None:
    async with node(tmp_path, *kinds, stamps=stamps) as here:
        here.radius_ns = 1_000
        now = here.clock.wall_ns()
        here.begin_wall_ns = now - 60 * MINUTE
        here.era, here.previous_end_wall_ns = 2, here.begin_wall_ns - MINUTE
        here.slope_ppb, here.sloping_from_ns = 100_000, now - 11 * MINUTE
        here.look(ago_ns=11 * MINUTE)
        start, end = now - 10 * MINUTE, now
        events = [start, start + MS, end - MS, end]
        span = await here.span(start, end, events, over=over)
        assert said(span)["status"] == "synchronized"
        moved = [span.start_time_unix_nano, *(each.time_unix_nano for each in span.events), span.end_time_unix_nano]
        if stamps == "unknown":
            (by,) = {after - before for after, before in zip(moved, [start, *events, end], strict=True)}
            assert abs(by - here.deserved(start)) < MS
            assert said(span)["uncertainty_ns"] >= 60 * MS
            assert "end.offset_ns" not in said(span)
        else:
            assert moved == sorted(moved)
            for after, before in zip(moved, [start, *events, end], strict=True):
                assert abs(after - before - here.deserved(before)) < MS
            assert said(span)["uncertainty_ns"] < MS
            assert abs(said(span)["end.offset_ns"] - here.deserved(end)) < MS


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize("by_ns", [5 * SECOND, -3600 * SECOND])
async def test_a_step_inside_a_span_leaves_its_end_right_and_is_told(
    tmp_path: Path, kinds: tuple[str, str], over: str, by_ns: int
) -> None:
    async with node(tmp_path, *kinds, stamps="wall") as here:
        here.look()
        start = here.clock.wall_ns()
        here.step(by_ns)
        end = here.clock.wall_ns()
        span = await here.span(start, end, [start, end], over=over)
        first, last = start + OFFSET, end + OFFSET - by_ns
        assert [span.start_time_unix_nano, *(each.time_unix_nano for each in span.events), span.end_time_unix_nano] == [
            first, first, last, last,
        ]  # fmt: skip
        assert said(span)["uncertainty_ns"] < MS
        assert said(span)["end.offset_ns"] == OFFSET - by_ns
        assert said(span)["original.end_time_unix_nano"] == end


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_both_times_of_a_log_record_move_alike(tmp_path: Path, kinds: tuple[str, str], over: str) -> None:
    async with node(tmp_path, *kinds) as here:
        now = here.clock.wall_ns()
        both = await here.log_record(now - SECOND, now, over=over)
        assert (both.time_unix_nano, both.observed_time_unix_nano) == (now - SECOND + OFFSET, now + OFFSET)
        assert said(both)["original.time_unix_nano"] == now - SECOND
        assert said(both)["original.observed_time_unix_nano"] == now
        only = await here.log_record(0, now, over=over)
        assert (only.time_unix_nano, only.observed_time_unix_nano) == (0, now + OFFSET)
        assert said(only)["original.observed_time_unix_nano"] == now
        assert "original.time_unix_nano" not in said(only)
        later = now + 3600 * SECOND  # another host's, which observed it
        other = await here.log_record(now, later, over=over)
        assert (other.time_unix_nano, other.observed_time_unix_nano) == (now + OFFSET, later)
        assert said(other)["status"] == "synchronized"
        assert "original.observed_time_unix_nano" not in said(other)


# ------------------------------------------------------------------------------------------- whatever a source says

Source = Callable[[int], Correction]


@st.composite
def stepping(draw: st.DrawFn) -> Source:
    """A source that says something else from stretch to stretch, or nothing."""
    says: list[tuple[int, Correction]] = []
    for begin_ns in sorted(draw(st.lists(st.integers(-100, 100), min_size=1, max_size=5, unique=True))):
        offset, uncertainty = draw(st.integers(-200, 200)), draw(st.integers(0, 50))
        known = Correction(offset, uncertainty, Status.SYNCHRONIZED, draw(st.sampled_from(["utc", "utc", "node:b"])))
        says.append((T0 + begin_ns, draw(st.sampled_from([known, known, known, UNSYNCHRONIZED]))))

    def at(wall_ns: int) -> Correction:
        return next((each for begin, each in reversed(says) if begin <= wall_ns), says[0][1])

    return at


near = st.integers(T0 - 120, T0 + 120)


@settings(max_examples=300, deadline=None)
@given(near, near, st.lists(near, max_size=6), stepping(), st.sampled_from(Stamps), st.one_of(st.none(), near))
@example(T0, T0 + 10, [T0 + 5], lambda t: Correction(100 if t == T0 else 0, 1, Status.SYNCHRONIZED, "utc"), Stamps.WALL,
         None)  # fmt: skip
def test_what_lay_between_start_and_end_stays_there_in_order(
    start: int, end: int, events: list[int], at: Source, stamps: Stamps, until_ns: int | None
) -> None:
    options = PatchOptions(Mode.REWRITE, "node-a", stamps=stamps)
    body = request({"start": start, "end": end, "events": events}).SerializeToString()
    result = patch_traces(body, options, at, None, until_ns)
    if twins.NATIVE is not None:
        twins.compare(body, False, options, at, None, until_ns)
    (span,) = spans_of(result.body)
    first, last = span.start_time_unix_nano, span.end_time_unix_nano
    moved = [each.time_unix_nano for each in span.events]
    inside = sorted((was, now) for was, now in zip(events, moved, strict=True) if start <= was <= end)
    assert [now for _, now in inside] == sorted(now for _, now in inside)
    assert all(first <= now <= last for _, now in inside)
    if start <= end:
        assert first <= last
    # What the tag says is so: each time that was moved is within the uncertainty of what its stamp deserves.
    if result.actions == {"rewritten": 1}:
        tag = attributes(span)
        for was, now in zip([start, end, *events], [first, last, *moved], strict=True):
            deserved = at(was)
            if deserved.status is not Status.UNSYNCHRONIZED and deserved.reference == tag["clock.reference"]:
                off = abs(now - was - deserved.offset_ns)
                assert off + deserved.uncertainty_ns <= tag["clock.uncertainty_ns"]
        assert tag.get("clock.end.offset_ns", last - end) == last - end


def two(before: int, after: int, reference: str = "utc") -> Source:
    """Stepped 500 ns after T0."""
    return lambda wall: Correction(before if wall < T0 + 500 else after, 10, Status.SYNCHRONIZED, reference)


@pytest.mark.parametrize("keep", [True, False])
def test_a_span_with_a_step_inside_is_rebased_as_one(keep: bool) -> None:
    """Its shape is right already, and moves from one timescale to the other; its end's total is told."""
    options = PatchOptions(Mode.REWRITE, "node-a", keep_original=keep, stamps=Stamps.WALL)
    body = request({"events": [T0 + 400]}).SerializeToString()
    there = patch_traces(body, options, two(2_000, 7_000, "node:b")).body
    again = patch_traces(there, options, two(12_000, 17_000)).body
    (span,) = spans_of(again)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (T0 + 12_000, T0 + 18_000)
    assert span.events[0].time_unix_nano == T0 + 12_400
    assert attributes(span)["clock.end.offset_ns"] == 17_000
    assert attributes(span)["clock.uncertainty_ns"] == 10
    assert attributes(span).get("clock.original.end_time_unix_nano", T0 + 1000) == T0 + 1000
    assert patch_traces(again, options, two(1, 2)).body == again


def test_a_tag_tells_the_step_and_covers_it_for_whoever_adds_one_offset() -> None:
    body = request({}).SerializeToString()
    for stamps in Stamps:
        (span,) = spans_of(
            patch_traces(body, PatchOptions(Mode.TAG, "node-a", stamps=stamps), two(2_000, 7_000)).body
        )
        tag = attributes(span)
        assert (tag["clock.offset_ns"], tag["clock.uncertainty_ns"]) == (2_000, 5_010)
        assert tag.get("clock.end.offset_ns") == (7_000 if stamps is Stamps.WALL else None)
    (span,) = spans_of(patch_traces(body, PatchOptions(Mode.TAG, "node-a", stamps=Stamps.WALL), always(5)).body)
    assert "clock.end.offset_ns" not in attributes(span)
