"""A sidecar of the command line beside a virtual node's segment, of which a test is the daemon; and what comes out."""

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

from skewd.bounds.history import Knot, Status
from skewd.clock import VirtualClock, VirtualPage, read_wall
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentWriter
from skewd_sidecar.gateway import Signal
from tests.sidecar.sidecar_lab import Collector, http_collector, needs_native
from tests.waiting import LIMIT_S

MS = 1_000_000
SECOND = 1_000_000_000
OFFSET = 89 * MS
KINDS = [pytest.param(("native", "native"), marks=needs_native), ("python", "python")]
"""Kernel and transport."""


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

    slope_ppb: int = 0
    sloping_from_ns: int = 0

    def deserved(self, wall_ns: int) -> int:
        """The offset at a reading of this era."""
        return self.applied_ns + self.slope_ppb * (wall_ns - self.sloping_from_ns) // 10**9

    def look(self, ago_ns: int = 0) -> None:
        """Says what is known of this moment, or of one so long ago."""
        seen = read_wall(self.clock)
        wall_ns = seen.wall_at_ns() - ago_ns
        applied_ns = self.deserved(wall_ns)
        self.writer.publish(
            Knot(self.era, self.begin_wall_ns, self.previous_end_wall_ns, seen.raw_ns - ago_ns, wall_ns,
                 Interval(applied_ns - self.radius_ns, applied_ns + self.radius_ns),
                 Interval(self.slope_ppb - 100, self.slope_ppb + 100), 0, applied_ns, self.slope_ppb,
                 Status.SYNCHRONIZED, "node:a", 0)
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

    async def send(self, signal: Signal, body: bytes, over: str, look: bool = True) -> Any:
        """What comes out for a body sent over ``http`` or ``grpc``; the daemon looks before, unless told not to."""
        if look:
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
                await channel.unary_unary(f"/{signal.grpc_service}/Export", None, None)(body, timeout=LIMIT_S)
        parsed: Any = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}[signal]
        return parsed.FromString(self.behind.bodies(signal)[-1])

    async def span(
        self, start: int, end: int, events: Sequence[int] = (), *, over: str = "http", look: bool = True
    ) -> Any:
        """What becomes of a span."""
        made = ExportTraceServiceRequest()
        span = made.resource_spans.add().scope_spans.add().spans.add(
            trace_id=b"t" * 16, span_id=b"s" * 8, name="s", start_time_unix_nano=start, end_time_unix_nano=end
        )  # fmt: skip
        for time in events:
            span.events.add(name="e", time_unix_nano=time)
        sent = await self.send(Signal.TRACES, made.SerializeToString(), over, look)
        return sent.resource_spans[0].scope_spans[0].spans[0]

    async def log_record(self, time: int, observed: int = 0, *, over: str = "http") -> Any:
        """What becomes of a log record."""
        made = ExportLogsServiceRequest()
        made.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=time, observed_time_unix_nano=observed)
        sent = await self.send(Signal.LOGS, made.SerializeToString(), over)
        return sent.resource_logs[0].scope_logs[0].log_records[0]


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
