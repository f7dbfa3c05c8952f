"""What one ``skewd.now()`` costs, and what a reader must do for the first one and for each new knot.

A segment is written here as the daemon does, four knots and fifty heartbeats a second, by a child process, and read
in this one: by ``skewd.now()`` in a tight loop, and by the pieces it is made of. The median of many loops is the
figure; what interrupts a loop (the other processes of the machine) shows in the spread.

    python benchmarks/reading_now.py

Figures of one machine: compare them with each other only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import skewd
from skewd.bounds.history import Knot, Status
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentReader, SegmentWriter
from skewd.reader import Now

SECOND_NS = 1_000_000_000


def write(path: Path, ready: Event, stop: Event) -> None:
    """The child: a daemon's segment, kept alive."""
    writer = SegmentWriter(path, node="bench", boot=bytes(16), virtual=False)
    due_ns = 0
    while not stop.is_set():
        raw_ns, wall_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.time_ns()
        if raw_ns >= due_ns:
            due_ns = raw_ns + SECOND_NS // 4
            bound, drift = Interval(-40_123, 51_456), Interval(-3_211, 8_765)
            lead_ns = 20_000_000
            writer.publish(
                Knot(
                    1, 0, None, raw_ns + lead_ns, wall_ns + lead_ns, bound, drift, 11, 5_000, 2_000,
                    Status.SYNCHRONIZED, "utc",
                )
            )  # fmt: skip
        writer.heartbeat()
        ready.set()
        stop.wait(0.02)
    writer.close()


def per_call_ns(call: Callable[[], object], loops: int, calls: int) -> str:
    each = sorted(seconds / calls * 1e9 for seconds in timeit.repeat(call, number=calls, repeat=loops))
    return f"median {statistics.median(each):7.0f} ns   fastest {each[0]:7.0f}   slowest {each[-1]:7.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=100)
    parser.add_argument("--calls", type=int, default=10_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / NAME
        child = context.Process(target=write, args=(path, ready, stop))
        child.start()
        try:
            assert ready.wait(30), "the writer did not start"
            os.environ["SKEWD_NODE__RUNTIME_DIR"] = directory
            skewd.now()
            print(f"skewd.now()                {per_call_ns(skewd.now, options.loops, options.calls)}")
            now = Now(path)
            now()
            print(f"Now.__call__               {per_call_ns(now, options.loops, options.calls)}")
            reader = SegmentReader(path)
            print(f"newest knot, read anew     {per_call_ns(reader.newest, 20, 1_000)}")
            raw = time.clock_gettime_ns
            print(f"the raw clock alone        {per_call_ns(lambda: raw(4), options.loops, options.calls)}")
            print(f"first answer of a reader   {per_call_ns(lambda: Now(path)(), 20, 20)}")
        finally:
            stop.set()
            child.join(10)


if __name__ == "__main__":
    main()
