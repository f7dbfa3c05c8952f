"""Five real daemons over each transport: how narrow their bounds are, and what they cost.

``python benchmarks/mesh_widths.py --minutes 1`` (as root; about that for each transport; ``--help``)

Five daemons in network namespaces (``tests/mesh/five_nodes.py``), each with a virtual clock whose truth is known. Two
seconds after all have agreed on a reference it begins. For 20 s nobody is asked anything: *processor* is the
mean share of a core that a daemon takes then, all threads. After that each is asked four times a second, every bound on
another node is compared with the truth, and its width is kept. *Misses* are bounds that do not contain the truth: there
must be none.

The width is also told as a multiple of UDP's, as microseconds on one machine say little about another. What can't be
had on this machine is left out, and said. Clients reach the broker through a relay in this process, one more hop.

Limits: one machine; two cores that five daemons, the broker and other work share (look at the medians).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.mesh.five_nodes import (
    Mesh,
    Network,
    Relay,
    agreed,
    mesh,
    network,
    over_aeron,
    over_aeron_ipc,
    over_kafka,
    over_udp,
    over_zmq,
    whole,
)

LOOK_S = 0.25
QUIET_S = 20.0


@dataclass(frozen=True)
class Result:
    """One transport's row; widths in microseconds, the processor as a share of a core, memory in MiB."""

    name: str
    widths: list[float]
    reference: list[float]
    misses: int
    share: float
    resident: float


def used_s(five: Mesh) -> float:
    """Processor time that the daemons have taken, together."""
    times = [psutil.Process(node.process.pid).cpu_times() for node in five.living if node.process is not None]
    return sum(time.user + time.system for time in times)


def measured(name: str, five: Mesh, seconds: float) -> Result:
    """Looks at one mesh for a while."""
    five.start()
    five.until(lambda told: agreed(told) is not None and whole(told), "one reference")
    time.sleep(2)
    before, began = used_s(five), time.monotonic()
    time.sleep(QUIET_S)
    share = (used_s(five) - before) / (time.monotonic() - began) / len(five.living)
    five.widths_ns.clear()
    reference: list[float] = []
    misses, began = 0, time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        for here in five.living:
            answer = here.ask()
            try:
                five.check_peers(answer, here)
                five.check_reference(answer, here)
            except AssertionError as missed:
                misses += 1
                print(f"{name}: {missed}", file=sys.stderr)
            if answer.status["reference"] != f"node:{here.name}":
                reference.append(answer.status["uncertainty_ns"] / 1e3)
        time.sleep(max(0.0, now + LOOK_S - time.monotonic()))
    resident = statistics.mean(
        psutil.Process(node.process.pid).memory_info().rss / 2**20 for node in five.living if node.process is not None
    )
    widths = [width / 1e3 for widths in five.widths_ns.values() for width in widths]
    return Result(name, widths, reference, misses, share, resident)


def cases(net: Network, wanted: list[str]) -> Iterator[tuple[str, Callable[[int], str], bool]]:
    """Each transport that was asked for and can be had: its name, its configuration, whether UDP is used."""
    if "udp" in wanted:
        yield "UDP, kernel stamps", over_udp(), True
    if "zmq" in wanted and _there("zmq"):
        yield "ZeroMQ tcp, CURVE", over_zmq, False
    if "kafka" in wanted and _there("confluent_kafka"):
        from skewd_pipeline.kafka_broker import open_broker

        with open_broker(warm_messages=20_000) as broker, Relay(net, int(broker.bootstrap.rpartition(":")[2])):
            yield broker.label, over_kafka(broker.bootstrap, "skewd-widths"), False
    if "aeron" in wanted and _there("pyaeron"):
        import pyaeron

        yield "Aeron UDP", over_aeron, False
        with tempfile.TemporaryDirectory(prefix="skewd-aeron-") as directory:
            driver = pyaeron.MediaDriver(dir=f"{directory}/driver")
            try:
                yield "Aeron IPC", over_aeron_ipc(Path(directory) / "driver"), False
            finally:
                driver.close()


def _there(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        print(f"left out: {module} is not here", file=sys.stderr)
        return False
    return True


def table(results: list[Result]) -> Iterator[str]:
    """A row each, in Markdown."""
    yield "| transport | width p50 | p99 | x UDP | reference +- p50 | misses | bounds | processor | memory |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    first = statistics.median(results[0].widths)
    for one in results:
        widths = sorted(one.widths)
        median, p99 = statistics.median(widths), widths[min(len(widths) - 1, len(widths) * 99 // 100)]
        yield (
            f"| {one.name} | {median:.0f} us | {p99:.0f} us | {median / first:.1f} |"
            f" {statistics.median(one.reference):.0f} us | {one.misses} | {len(widths)} |"
            f" {one.share:.1%} | {one.resident:.0f} MiB |"
        )


def main(wanted: list[str], seconds: float, interval: str) -> int:
    """Measures all that can be had here; 1 if any bound missed the truth."""
    results = []
    with network() as net:
        for name, configure, udp in cases(net, wanted):
            print(f"{name} ...", file=sys.stderr, flush=True)
            with mesh(net, configure, udp=udp, interval=interval) as five:
                results.append(measured(name, five, seconds))
    if not results:
        return 1
    print("\n".join(table(results)))
    return int(any(one.misses for one in results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transports", default="udp,zmq,kafka,aeron", help="of udp, zmq, kafka, aeron; commas")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each transport")
    parser.add_argument("--interval", default="1s", help="between exchanges, as in the configuration")
    options = parser.parse_args()
    try:
        sys.exit(main(options.transports.split(","), options.minutes * 60, options.interval))
    except pytest.skip.Exception as reason:
        sys.exit(f"left out: {reason}")
