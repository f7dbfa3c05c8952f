"""What the experiment's processes cost while nothing is sent: ``python -m benchmarks.idle_nodes``.

The problem: five virtual nodes share the cores that the measured pipeline runs on. Whatever they spend on waiting is
missing there, and on a slower machine it is several times as much. So the nodes are started exactly as the experiment
starts them (daemons, sidecars, stages with every transport's ends open, a Kafka broker, Aeron's driver), nothing is
sent, and each process is watched from outside: processor time of all its threads, and how often they went to sleep,
which is how often they woke.

    python -m benchmarks.idle_nodes [--seconds 60] [--transports zmq,kafka,aeron] [--kafka-bootstrap mock]

Besides the processes, ``run`` is the one that started them. Start-up, from the start of the first process to the last
one's being ready, is told apart, by process.

Limits: Linux (``/proc``). Figures of one machine: compare them with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from skewd_pipeline import run
from skewd_pipeline.children import Children
from skewd_pipeline.collector import Collector
from skewd_pipeline.media import start as start_media
from skewd_pipeline.nodes import Nodes
from skewd_pipeline.results import STAGES

MODES = ("off", "tag", "rewrite")
SEED = "idle"


def threads(pid: int) -> dict[str, tuple[int, int]]:
    """By thread, processor time in ns and how often it went to sleep of its own accord."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            lines = (task / "status").read_text().splitlines()
            sleeps = next(line for line in lines if line.startswith("voluntary_ctxt")).split()[1]
            used = (task / "schedstat").read_text().split()[0]
            found[f"{(task / 'comm').read_text().strip()} {task.name}"] = (int(used), int(sleeps))
    return found


def processes() -> dict[int, str]:
    """This process and all below it, with names for people."""
    parents: dict[int, int] = {}
    words: dict[int, list[str]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(directory.name)
            parents[pid] = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            words[pid] = (directory / "cmdline").read_text().split("\0")
    found = {os.getpid(): "run"}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        for pid in more:
            found[pid] = name_of(words[pid])
    return found


def name_of(words: list[str]) -> str:
    """What a process is, by its command line."""
    text = " ".join(words)
    node = next((part for part in text.split("/") if part in STAGES), "")
    if "kafka.Kafka" in text:
        return "kafka broker"
    for program, kind in (
        ("skewd_pipeline.stages", f"{node} stage"),
        ("skewd run", f"{node} daemon"),
        ("skewd sidecar", f"{node} sidecar {words[words.index('--mode') + 1] if '--mode' in words else ''}"),
        ("skewd_pipeline.aeron_driver", "aeron driver"),
        ("skewd_pipeline.kafka_mock", "kafka mock"),
    ):
        if program in text:
            return kind
    return text[:40]


def measured(pids: dict[int, str], *, apart: bool) -> dict[str, tuple[int, int]]:
    """By process (or by thread), processor time and sleeps so far; those that are gone are left out."""
    found = {}
    for pid, name in pids.items():
        with contextlib.suppress(OSError):
            each = threads(pid)
            if apart:
                found.update({f"{name}: {thread}": numbers for thread, numbers in each.items()})
            else:
                found[name] = (sum(cpu for cpu, _ in each.values()), sum(sleeps for _, sleeps in each.values()))
    return found


def order(name: str) -> tuple[str, str]:
    """Processes of a kind stand together."""
    words = name.split(" ")
    return (" ".join(words[1:]) if words[0] in STAGES else name, name)


async def measure(options: argparse.Namespace) -> list[tuple[str, float, float, float]]:
    """Name, processor time at start-up in ms, and while idle: ms of processor time and wakes a second."""
    transports = options.transports.split(",")
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(run.short_directory())
        logs = directory / "logs"
        logs.mkdir()
        collector = await stack.enter_async_context(Collector())
        children = await stack.enter_async_context(Children(logs))
        broker: Any = None
        if "kafka" in transports:
            from skewd_pipeline.kafka_broker import open_broker

            opening = open_broker(options.kafka_bootstrap, progress=lambda text: None)
            broker = await asyncio.to_thread(stack.enter_context, opening)
        items = directory / "items"
        await children.once("prepare", ["-m", "skewd_pipeline.prepare", str(items), "1"], 300)
        media = None
        if "aeron" in transports:
            media = await start_media(children, directory, None, options.aeron_channel, time.time_ns() // 1_000_000)
        addresses = {mode: await collector.listen(mode, run.FORWARD[mode]) for mode in MODES}
        nodes = Nodes(directory, children, skewed=STAGES[2], reference=STAGES[1])
        began = time.monotonic()
        await nodes.start_clocks(addresses, progress=lambda text: None)
        await nodes.start_stages(items=items, model=None)
        topics = {pair: f"idle-{os.getpid()}-{pair[0]}-{pair[1]}" for pair in pairwise(STAGES)}
        if broker is not None:
            await asyncio.to_thread(broker.create_topics, list(topics.values()))

        def hops(upstream: str, downstream: str, endpoint: str | None) -> list[dict[str, Any]]:
            ends = {"upstream": upstream, "downstream": downstream}
            found: list[dict[str, Any]] = []
            if "zmq" in transports:
                found.append({"transport": "zmq", "endpoint": endpoint or "tcp://127.0.0.1:0", **ends})
            if broker is not None:
                topic = topics[(upstream, downstream)]
                found.append({"transport": "kafka", "bootstrap": broker.bootstrap, "topic": topic, **ends})
            if media is not None:
                found.append(media.hop(upstream, downstream))
            return found

        await nodes.connect(hops)
        await nodes.settled()
        pids = processes()
        started = measured(pids, apart=options.threads)
        print(f"all up and bounded after {time.monotonic() - began:.1f} s", file=sys.stderr)
        await asyncio.sleep(options.warm)
        before, before_ns = measured(pids, apart=options.threads), time.monotonic_ns()
        await asyncio.sleep(options.seconds)
        after, elapsed_s = measured(pids, apart=options.threads), (time.monotonic_ns() - before_ns) / 1e9
        rows = []
        for name in sorted(after.keys() & before.keys() & started.keys(), key=order):
            cpu, sleeps = (later - earlier for later, earlier in zip(after[name], before[name], strict=True))
            rows.append((name, started[name][0] / 1e6, cpu / 1e6 / elapsed_s, sleeps / elapsed_s))
        return rows


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, once all is up")
    parser.add_argument("--warm", type=float, default=5.0, help="seconds before that are not measured")
    parser.add_argument("--transports", default="zmq,kafka,aeron")
    parser.add_argument("--aeron-channel", default="ipc", choices=("ipc", "udp"))
    parser.add_argument("--threads", action="store_true", help="a row for each thread")
    parser.add_argument("--kafka-bootstrap", help="a broker of one's own, 'mock' for librdkafka's")
    options = parser.parse_args()
    rows = asyncio.run(measure(options))
    print("| process | start-up, ms of CPU | idle, ms of CPU a second | wakes a second |")
    print("| --- | --- | --- | --- |")
    for name, started_ms, ms_a_second, wakes in rows:
        print(f"| {name} | {started_ms:.0f} | {ms_a_second:.1f} | {wakes:.0f} |")
    started_ms, ms_a_second, wakes = (sum(each) for each in zip(*(row[1:] for row in rows), strict=True))
    print(f"| all {len(rows)} rows | {started_ms:.0f} | {ms_a_second:.1f} | {wakes:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
