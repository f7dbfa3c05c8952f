"""A stamp that this node's clock cannot have made is left alone, and one of before a step backwards is not mistaken.

On the command ``skewd sidecar`` beside a daemon's segment of a virtual node, over both protocols, with both kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import AHEAD_NS, UNSYNCHRONIZED, Correction, History, Knot, Status
from skewd.bounds.table import constant
from skewd.interval import Interval
from skewd_sidecar.patch import Mode, PatchOptions
from tests.sidecar import twins
from tests.sidecar.segment_lab import KINDS, MS, OFFSET, SECOND, node, said

LEFT = {"status": "unsynchronized", "node.name": "n", "corrected": False}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize("mode", ["tag", "rewrite"])
async def test_a_stamp_later_than_the_nodes_reading_is_left(
    tmp_path: Path, kinds: tuple[str, str], over: str, mode: str
) -> None:
    async with node(tmp_path, *kinds, mode=mode) as here:
        now = here.clock.wall_ns()
        moved = OFFSET if mode == "rewrite" else 0
        mine = await here.span(now - SECOND, now, [now - MS], over=over)
        assert said(mine)["status"] == "synchronized"
        assert (mine.start_time_unix_nano, mine.end_time_unix_nano) == (now - SECOND + moved, now + moved)
        # From within what the table foretells to far beyond; whole spans of another clock, and ends of such.
        hour = 3600 * SECOND
        for start, end in ((hour, hour + MS), (hour, 0), (-SECOND, hour), (0, hour), (SECOND * 60, SECOND * 60)):
            now = here.clock.wall_ns()
            start, end = (start and start + now), (end and end + now)
            other = await here.span(start, end, over=over)
            assert said(other) == LEFT
            assert (other.start_time_unix_nano, other.end_time_unix_nano) == (start, end)
        # An event of another clock stays where it is, and says nothing of its span.
        now = here.clock.wall_ns()
        mixed = await here.span(now - SECOND, now, [now - MS, now + hour], over=over)
        assert said(mixed)["status"] == "synchronized"
        assert [each.time_unix_nano for each in mixed.events] == [now - MS + moved, now + hour]


@pytest.mark.parametrize("kinds", KINDS)
async def test_a_log_record_later_than_the_nodes_reading_is_left(tmp_path: Path, kinds: tuple[str, str]) -> None:
    async with node(tmp_path, *kinds) as here:
        later = here.clock.wall_ns() + 3600 * SECOND
        record = await here.log_record(later)
        assert record.time_unix_nano == later
        assert said(record) == LEFT


@pytest.mark.parametrize("kinds", KINDS)
async def test_stamps_of_before_a_step_backwards_are_known_though_they_lie_in_the_future(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    async with node(tmp_path, *kinds, stamps="wall") as here:
        here.look()
        before = here.clock.wall_ns()
        here.step(-3600 * SECOND)
        old = await here.span(before - MS, before)
        assert said(old)["status"] == "synchronized"
        assert old.start_time_unix_nano == before - MS + OFFSET
        now = here.clock.wall_ns()
        new = await here.span(now, now)
        assert said(new)["status"] == "synchronized"
        assert new.start_time_unix_nano == now + OFFSET + 3600 * SECOND
        never = before - 1800 * SECOND  # between the two, which the clock has shown in neither era yet
        assert said(await here.span(never, never)) == LEFT


# ----------------------------------------------------------------------------------------------- the rule itself


def history(stamps: str, *, step_ns: int = 0) -> History:
    """Known within 1 us; stepped at the reading of 100 s, 10 s before the newest knot."""
    made = History(stamps=stamps, max_uncertainty_ns=10 * SECOND)
    rate = Interval(-100, 100)
    at = 100 * SECOND
    made.append(Knot(1, 0, None, at, at, Interval(-1000, 1000), rate, 0, 0, 0, Status.SYNCHRONIZED, "utc"))
    if step_ns:
        wall = at + step_ns
        bound = Interval(-1000 - step_ns, 1000 - step_ns)
        for later in (0, 10 * SECOND):
            knot = Knot(2, wall, at, at + later, wall + later, bound, rate, 0, -step_ns, 0, Status.SYNCHRONIZED, "utc")
            made.append(knot)
    return made


@pytest.mark.parametrize("stamps", ["wall", "unknown"])
def test_what_the_clock_can_have_shown_is_a_moment_more_than_it_reads(stamps: str) -> None:
    known = history(stamps)
    now = 110 * SECOND
    for wall, status in ((now, "synchronized"), (now + AHEAD_NS, "synchronized"), (now + 2 * MS, "unsynchronized")):
        assert known.at(wall, now).status == status
    assert known.at(now + 2 * MS).status == "synchronized", "nobody looked"
    assert known.at(100 * SECOND + 1, 90 * SECOND).status == "synchronized", "a knot is a reading as well"


def test_an_anchored_stamp_may_be_ahead_by_a_step_that_was_just_made() -> None:
    now = 107 * SECOND  # after 10 s of the new era, which began 3 s back
    ahead = now + 2 * SECOND  # beyond the era before, which ended at 100 s
    assert history("unknown", step_ns=-3 * SECOND).at(ahead, now).uncertainty_ns >= 3 * SECOND
    assert history("wall", step_ns=-3 * SECOND).at(ahead, now).status == "unsynchronized"


def test_a_reading_that_only_the_era_before_has_shown_is_the_era_befores_alone() -> None:
    made = History(stamps="wall")
    rate = Interval(-100, 100)
    for era, wall, applied in ((1, 100, 0), (2, 95, 5)):
        bound = Interval(applied * SECOND - 1000, applied * SECOND + 1000)
        made.append(Knot(era, 0 if era == 1 else wall * SECOND, None if era == 1 else 100 * SECOND, 100 * SECOND,
                         wall * SECOND, bound, rate, 0, applied * SECOND, 0, Status.SYNCHRONIZED, "utc"))  # fmt: skip
    now = 97 * SECOND
    old = made.at(99 * SECOND, now)
    assert (old.offset_ns, old.uncertainty_ns < 2000) == (0, True)
    assert made.at(96 * SECOND, now).status == "unsynchronized", "either era's"


@pytest.mark.skipif(twins.NATIVE is None, reason=twins.MISSING)
def test_the_table_is_not_asked_beyond_the_reading() -> None:
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for start in (100, 101):
        scope.spans.add(start_time_unix_nano=start)
    body, options = made.SerializeToString(), PatchOptions(Mode.TAG, "n")
    table = constant(Correction(5, 6, Status.SYNCHRONIZED, "utc"))
    _, actions = twins.compare(body, False, options, lambda _: UNSYNCHRONIZED, table, 100)
    assert actions == {"tagged": 1, "unsynchronized": 1}
