"""What the patch costs by itself: CPU-seconds per million spans of both twins, and bytes per span of each placement.

Bodies of 512 spans of about 418 bytes each, as an SDK's batch processor sends them, stamped within the last seconds;
corrections come from a segment in shared memory, written in this process four times a second as a daemon does. CPU
time of this process alone, so that what else the machine does shows as little as it can.

    python benchmarks/kernel_cost.py [--spans 400000] [--batch 512]

Figures of one machine: compare them with each other only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import Knot, Status
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentReader, SegmentWriter
from skewd_sidecar.kernel import Choice, Kernel, KernelMissing, choose
from skewd_sidecar.patch import Mode, PatchOptions, Placement

SECOND_NS = 1_000_000_000


def knot_at(raw_ns: int, wall_ns: int) -> Knot:
    bound, drift = Interval(-40_123, 51_456), Interval(-3_211, 8_765)
    return Knot(1, 0, None, raw_ns, wall_ns, bound, drift, 11, 5_000, 2_000, Status.SYNCHRONIZED, "utc")


def request(spans: int, end_ns: int) -> bytes:
    """One exporter's batch."""
    made = ExportTraceServiceRequest()
    batch = made.resource_spans.add()
    for key, value in (("service.name", "checkout"), ("telemetry.sdk.language", "python"), ("host.name", "node-17")):
        batch.resource.attributes.add(key=key).value.string_value = value
    scope = batch.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.requests"
    for number in range(spans):
        start_ns = end_ns - 2 * SECOND_NS + number * 1_000_000
        span = scope.spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            parent_span_id=b"p" * 8,
            name="GET /cart/{id}",
            kind=3,
            start_time_unix_nano=start_ns,
            end_time_unix_nano=start_ns + 3_456_789,
            flags=257,
        )
        for key, text in (
            ("http.request.method", "GET"),
            ("url.full", "https://shop.example.test/cart/8f14e45fceea167a5a36dedd4bea2543?currency=EUR"),
            ("server.address", "shop.example.test"),
            ("user_agent.original", "python-requests/2.34.2"),
            ("network.protocol.version", "1.1"),
            ("thread.name", "worker-pool-3"),
        ):
            span.attributes.add(key=key).value.string_value = text
        span.attributes.add(key="http.response.status_code").value.int_value = 200
        span.attributes.add(key="server.port").value.int_value = 443
    return made.SerializeToString()


def cpu_s_per_million(
    kernel: Kernel, options: PatchOptions, body: bytes, now_ns: int, batch: int, spans: int, folder: Path
) -> float:
    """Patches ``spans`` spans of bodies that ended at ``now_ns``; the daemon's own writing is not counted."""
    writer = SegmentWriter(folder / NAME, node="bench", boot=bytes(16), virtual=False)
    reader = SegmentReader(folder / NAME)
    for quarter in range(-240, 0):
        writer.publish(knot_at(quarter * SECOND_NS // 4 + SECOND_NS * 100, now_ns + quarter * SECOND_NS // 4))
    spent = done = 0.0
    quarter, due = 0, 0.0
    while done < spans:
        if time.monotonic() >= due:  # as often as a daemon does, whatever the kernel's speed
            due = time.monotonic() + 0.25
            writer.publish(knot_at(quarter * SECOND_NS // 4 + SECOND_NS * 100, now_ns + quarter * SECOND_NS // 4))
            writer.heartbeat()
            quarter += 1
        began = time.process_time()
        kernel.traces(body, options, reader.at, reader.table())
        spent += time.process_time() - began
        done += batch
    reader.close()
    writer.close()
    return spent / done * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spans", type=int, default=400_000, help="spans for each native figure; Python's: a tenth")
    parser.add_argument("--batch", type=int, default=512)
    asked = parser.parse_args()
    now_ns = time.time_ns()
    body = request(asked.batch, now_ns)
    print(f"{asked.batch} spans a body, {len(body) / asked.batch:.0f} bytes each")
    print(f"{'kernel':8} {'mode':8} {'attributes':10} {'CPU-s per million':>18} {'bytes added per span':>21}")
    for choice in (Choice.PYTHON, Choice.NATIVE):
        try:
            kernel = choose(choice)
        except KernelMissing as missing:
            print(f"native: not measured: {missing}")
            continue
        for mode in (Mode.TAG, Mode.REWRITE):
            for placement in Placement:
                options = PatchOptions(mode, "node-17", placement=placement)
                spans = asked.spans if kernel.name == "native" else asked.spans // 10
                with tempfile.TemporaryDirectory() as folder:
                    cost = cpu_s_per_million(kernel, options, body, now_ns, asked.batch, spans, Path(folder))
                with tempfile.TemporaryDirectory() as folder:
                    writer = SegmentWriter(Path(folder) / NAME, node="node-17", boot=bytes(16), virtual=False)
                    writer.publish(knot_at(0, now_ns - 20 * SECOND_NS))
                    reader = SegmentReader(Path(folder) / NAME)
                    grown = len(kernel.traces(body, options, reader.at, None).body) - len(body)
                    reader.close()
                    writer.close()
                print(f"{kernel.name:8} {mode:8} {placement:10} {cost:18.3f} {grown / asked.batch:21.1f}")


if __name__ == "__main__":
    main()
