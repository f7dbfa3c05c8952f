"""The command ``skewd sidecar`` looks at the clocks of its node before it believes what the daemon said of them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import Knot, Status
from skewd.clock import VirtualClock, VirtualPage, read_wall
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentWriter
from tests.sidecar.sidecar_lab import http_collector
from tests.waiting import LIMIT_S

MS = 1_000_000


async def test_a_span_from_after_a_step_is_not_judged_by_the_clock_before_it(tmp_path: Path) -> None:
    page = VirtualPage.create(tmp_path / "page")
    clock = VirtualClock(page)
    writer = SegmentWriter(tmp_path / NAME, node="n", boot=bytes(16), virtual=True)

    def look() -> None:
        seen = read_wall(clock)
        writer.publish(
            Knot(1, 0, None, seen.raw_ns, seen.wall_at_ns(), Interval(-MS, MS), Interval(-10_000, 10_000), 20, 0, 0,
                 Status.SYNCHRONIZED, "node:a")
        )  # fmt: skip
        writer.heartbeat()

    async def uncertainty_ns(address: str) -> int:
        request = ExportTraceServiceRequest()
        span = (
            request.resource_spans.add().scope_spans.add().spans.add(name="s", trace_id=bytes(16), span_id=b"8bytes..")
        )
        span.start_time_unix_nano = span.end_time_unix_nano = clock.wall_ns()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as session,
            session.post(f"http://{address}/v1/traces", data=request.SerializeToString(),
                         headers={"Content-Type": "application/x-protobuf"}) as answer,
        ):  # fmt: skip
            assert answer.status == 200
        sent = ExportTraceServiceRequest.FromString(behind.bodies()[-1])
        (tagged,) = sent.resource_spans[0].scope_spans[0].spans
        found = {each.key: each.value for each in tagged.attributes}
        return int(found["clock.uncertainty_ns"].int_value)

    (tmp_path / "node.toml").write_text(f"[node]\nname = 'n'\nruntime_dir = {json.dumps(str(tmp_path))}\n")
    async with http_collector() as behind:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "skewd", "sidecar", "--config", str(tmp_path / "node.toml"), "--grpc", "off",
            "--http", "127.0.0.1:0", "--forward", behind.url, "--stamps", "wall",
            "--virtual-clock", f"page={tmp_path / 'page'}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async with asyncio.timeout(LIMIT_S):
                line = await process.stdout.readline()
            address = json.loads(line.removeprefix(b"READY "))["http"]
            look()
            assert await uncertainty_ns(address) < 20 * MS
            look()
            page.step_to(-20 * MS)
            assert 20 * MS < await uncertainty_ns(address) < 40 * MS
        finally:
            process.kill()
            await process.wait()
            writer.close()
