"""A stamp that this node's clock cannot have made is left alone, and one of before a step backwards is not mistaken.

On the command ``skewd sidecar`` beside a daemon's segment of a virtual node, over both protocols, with both kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import AHEAD_NS, UNSYNCHRONIZED, Correction, History, Knot, Status
from skewd.bounds.table import constant
from skewd.clock import VirtualClock, VirtualPage, read_wall
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentWriter
from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode, PatchOptions
from tests.sidecar import twins
from tests.sidecar.sidecar_lab import Collector, http_collector, needs_native
from tests.waiting import LIMIT_S

MS = 1_000_000
SECOND = 1_000_000_000
OFFSET = 89 * MS
KINDS = [
    pytest.param(("native", "native"), marks=needs_native),
    pytest.param(("python", "python"), marks=[]),
]


@dataclass
class Node:
    """A virtual node whose daemon is this test: it says what is known of the clock whenever it is told to look."""

    page: VirtualPage
    clock: VirtualClock
    writer: SegmentWriter
    behind: Collector
    grpc: str = ""
    http: str = ""
    era: int = 1
    begin_wall_ns: int = 0
    previous_end_wall_ns: int | None = None
    applied_ns: int = OFFSET
    radius_ns: int = 1_000

    def look(self) -> None:
        seen = read_wall(self.clock)
        self.writer.publish(
            Knot(self.era, self.begin_wall_ns, self.previous_end_wall_ns, seen.raw_ns, seen.wall_at_ns(),
                 Interval(self.applied_ns - self.radius_ns, self.applied_ns + self.radius_ns),
                 Interval(-10_000, 10_000), 20, self.applied_ns, 0, Status.SYNCHRONIZED, "node:a", 0)
        )  # fmt: skip
        self.writer.heartbeat()

    def step(self, by_ns: int) -> None:
        """Steps the clock, and has the daemon see it."""
        before_ns = self.clock.wall_ns()
        self.page.step_to(self.page.offset_ns + by_ns)
        self.previous_end_wall_ns = before_ns + MS
        self.begin_wall_ns = self.clock.wall_ns() - MS
        self.era += 1
        self.applied_ns -= by_ns
        self.look()

    async def send(self, signal: Signal, body: bytes, over: str) -> Any:
        """What comes out for a body sent over ``http`` or ``grpc``."""
        self.look()
        if over == "http":
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as session,
                session.post(f"http://{self.http}{signal.http_path}", data=body,
                             headers={"Content-Type": "application/x-protobuf"}) as answer,
            ):  # fmt: skip
                assert answer.status == 200, await answer.text()
        else:
            async with grpc.aio.insecure_channel(self.grpc) as channel:
                await channel.unary_unary(f"/{signal.grpc_service}/Export")(body, timeout=LIMIT_S)
        parsed = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}[signal]
        return parsed.FromString(self.behind.bodies(signal)[-1])

    async def span(self, start: int, end: int, events: Sequence[int] = (), *, over: str = "http") -> Any:
        """What becomes of a span."""
        made = ExportTraceServiceRequest()
        span = made.resource_spans.add().scope_spans.add().spans.add(
            trace_id=b"t" * 16, span_id=b"s" * 8, name="s", start_time_unix_nano=start, end_time_unix_nano=end
        )  # fmt: skip
        for time in events:
            span.events.add(name="e", time_unix_nano=time)
        sent = await self.send(Signal.TRACES, made.SerializeToString(), over)
        return sent.resource_spans[0].scope_spans[0].spans[0]


@contextlib.asynccontextmanager
async def node(
    tmp_path: Path, kernel: str, transport: str, *, mode: str = "rewrite", stamps: str = "unknown", more: str = ""
) -> AsyncIterator[Node]:
    """A sidecar beside a virtual node's segment."""
    page = VirtualPage.create(tmp_path / "page")
    writer = SegmentWriter(tmp_path / NAME, node="n", boot=bytes(16), virtual=True)
    (tmp_path / "node.toml").write_text(
        f"[node]\nname = 'n'\nruntime_dir = {json.dumps(str(tmp_path))}\n"
        f"[sidecar]\nkernel = '{kernel}'\ntransport = '{transport}'\n{more}"
    )
    async with http_collector() as behind:
        made = Node(page, VirtualClock(page), writer, behind)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "skewd", "sidecar", "--config", str(tmp_path / "node.toml"), "--grpc", "127.0.0.1:0",
            "--http", "127.0.0.1:0", "--forward", behind.url, "--stamps", stamps, "--mode", mode,
            "--virtual-clock", f"page={tmp_path / 'page'}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(LIMIT_S):
                line = await process.stdout.readline()
            listens = json.loads(line.removeprefix(b"READY "))
            made.begin_wall_ns = made.clock.wall_ns() - 60 * SECOND
            made.grpc, made.http = listens["grpc"], listens["http"]
            made.look()
            yield made
        finally:
            process.kill()
            await process.wait()
            writer.close()


def said(item: Any) -> dict[str, Any]:
    """The attributes of ours."""
    found = {}
    for each in item.attributes:
        kind = each.value.WhichOneof("value")
        found[each.key.removeprefix("clock.")] = getattr(each.value, kind)
    return found


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
        made = ExportLogsServiceRequest()
        made.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=later)
        (record,) = (await here.send(Signal.LOGS, made.SerializeToString(), "http")).resource_logs[0].scope_logs[
            0
        ].log_records
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
