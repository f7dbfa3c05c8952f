"""How narrow a bound each transport gives: ``python benchmarks/link_width.py`` (about three minutes; ``--help``).

Two nodes, each in a process of its own with a virtual clock, one transport between them and nothing else, an exchange
an interval (1 s) as a daemon makes it. Ten times a second the bound on the other node's raw clock is taken and compared
with the truth, which the clocks' pages tell: a bound that does not contain it is a miss, and there must be none.

Microseconds on one machine say little about another, so the width is also told as a multiple of UDP's with the kernel's
stamps, measured in the same run. *Processor time* is that of the node that only answers, all its threads. It has to be
paid while nothing happens, too, where a library can only be polled. What can't be had on this machine is left out, and
said. A mock broker is called one.

Limits: one machine, loopback; two cores that other work may share (look at the medians). On a network its round trip
comes on top: the bound is about as wide as the best recent one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from skewd.bounds.pair import PairBound
from skewd.clock import HostClock, VirtualClock, VirtualPage, read_wall
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Proofs, Self
from skewd.wall import WallMap

KEY = MeshKey.from_secret(bytes(range(32)))
SAMPLE_S = 0.1
WARM_S = 3.0
WARM_BROKER_S = 10.0
ATTACHED = bytes(960)
"""What nodes tell each other in the same messages; a message has 1,400 bytes with it."""


@dataclass(frozen=True)
class Result:
    """One transport's row; widths and round trips in microseconds, processor time as a share of a core."""

    name: str
    widths: list[float]
    rtts: list[float]
    misses: int
    share: float


def protocol(name: str, link: str, clock: VirtualClock) -> LinkProtocol:
    """A daemon's, for a node that says nothing of interest."""
    sample = read_wall(clock)
    me = Self(name, name.encode().ljust(16, b"-"), 0, 0, sample.wall_minus_raw, sample.raw_ns, 500_000, 100, 10)
    return LinkProtocol(
        link=link, key=KEY, describe=lambda: me, random=os.urandom, attach=lambda _, most: ATTACHED[:most]
    )


async def opened(case: dict[str, Any], name: str, clock: VirtualClock, proofs: list[Proofs]) -> Any:
    """The node's end of the link. Only ``a`` asks where one asking is enough for both."""
    kind, interval_ns = case["kind"], case["interval_ns"]
    mine, theirs = case[name], case["b" if name == "a" else "a"].replace("0.0.0.0", "127.0.0.1")
    made = protocol(name, kind, clock)
    asks = name == "a"
    if kind == "udp":
        from skewd.kernel_stamps import SocketStamps
        from skewd.links.udp import UdpLink

        wall = WallMap(read_wall(HostClock()))

        def slew_ppb() -> int:
            wall.sample(read_wall(HostClock()))
            return wall.slew_ppb()

        stamps = SocketStamps(clock, slew_ppb) if case["kernel"] else None
        return await UdpLink.open(
            mine, made, clock, proofs.append, [theirs] if asks else [], interval_ns, stamps=stamps
        )
    if kind == "zmq":
        from skewd.links.zmq import ZmqLink

        return await ZmqLink.open(mine, made, clock, proofs.append, [theirs] if asks else [], interval_ns, keys=KEY)
    if kind == "kafka":
        from skewd.links.kafka import KafkaLink

        return await KafkaLink.open(case["bootstrap"], case["topic"], made, clock, proofs.append, [], interval_ns)
    from skewd.links.aeron import AeronLink

    shared = mine == "aeron:ipc"
    directory = Path(case["directory"])
    # On a unicast channel an answer needs a way back, so both list each other, and both ask.
    peers = (["b"] if asks else []) if shared else [theirs]
    return await AeronLink.open(
        mine,
        made,
        clock,
        proofs.append,
        peers,
        interval_ns,
        own_directory=directory / name,
        directory=directory / "driver" if shared else None,
    )


async def answering(case: dict[str, Any]) -> None:
    """The other node: takes part until its standard input ends; then says what it used of the processor."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    link = await opened(case, "b", VirtualClock(VirtualPage.open(case["page"])), [])
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    await asyncio.to_thread(sys.stdin.readline)
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    await link.close()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps(used / (ended - began)), flush=True)


async def measured(name: str, case: dict[str, Any], seconds: float, directory: Path) -> Result:
    """One transport, from this process's end."""
    here = VirtualPage.create(None, offset_ns=10**6, drift_ppb=40_000, epoch_ns=10**15)
    page = directory / f"{uuid.uuid4().hex}.clock"
    there = VirtualPage.create(page, offset_ns=-(10**6), drift_ppb=-40_000, epoch_ns=-(10**15))
    case = {**case, "page": str(page)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--node",
        json.dumps(case),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None, "asked for"
    assert process.stdout is not None, "asked for"
    try:
        async with asyncio.timeout(30):
            await process.stdout.readline()
        proofs: list[Proofs] = []
        link = await opened(case, "a", VirtualClock(here), proofs)
        try:
            widths, misses = await _watched(proofs, here, there, seconds, process.stdin)
        finally:
            await link.close()
        rtts = [proof.rtt_ns / 1e3 for proof in proofs if proof.rtt_ns is not None]
        process.stdin.write(b"end\n")
        async with asyncio.timeout(30):
            share = float(json.loads(await process.stdout.readline()))
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(name, widths, rtts, misses, share)


async def _watched(
    proofs: list[Proofs], here: VirtualPage, there: VirtualPage, seconds: float, other: asyncio.StreamWriter
) -> tuple[list[float], int]:
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    widths: list[float] = []
    host, used, misses = HostClock(), 0, 0
    deadline = time.monotonic() + 30
    begin = end = 0.0
    while not end or time.monotonic() < end:
        await asyncio.sleep(SAMPLE_S)
        for proof in proofs[used:]:
            for sent, received in proof.outgoing:
                bound.outgoing(sent, received)
            for sent, received in proof.incoming:
                bound.incoming(sent, received)
        used = len(proofs)
        now = host.raw_ns()
        interval = bound.offset(here.at_host_raw(now))
        if interval is None:
            if time.monotonic() > deadline:
                raise SystemExit("no bound within 30 s")
            continue
        if not end:
            begin = time.monotonic() + WARM_S
            end = begin + seconds
            continue
        if time.monotonic() < begin:
            continue
        if not widths:
            other.write(b"begin\n")
        truth = there.at_host_raw(now) - here.at_host_raw(now)
        # A page rounds each reading down, so a difference of two is known to two nanoseconds.
        misses += not interval.lo - 2 <= truth <= interval.hi + 2
        widths.append(interval.width / 1e3)
    return widths, misses + bound.contradictions


# -- what can be had here ----------------------------------------------------------------------------------------------


def ports(kind: int) -> list[str]:
    """Two places on loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, kind)) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


async def cases(wanted: list[str], interval_ns: int, directory: Path) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Each transport that was asked for and can be had here, with what its two ends must know."""
    common = {"interval_ns": interval_ns}
    if "udp" in wanted:
        for kernel in (True, False):
            a, b = ports(socket.SOCK_DGRAM)
            yield (
                f"UDP, {'kernel' if kernel else 'user'} stamps",
                {**common, "kind": "udp", "kernel": kernel, "a": a, "b": b},
            )
    if "zmq" in wanted:
        try:
            import zmq  # noqa: F401
        except ImportError:
            print("zmq: left out, pyzmq is not installed", file=sys.stderr)
        else:
            (a, b), (_, c) = ports(socket.SOCK_STREAM), ports(socket.SOCK_STREAM)
            yield "ZeroMQ tcp", {**common, "kind": "zmq", "a": f"tcp://{a}", "b": f"tcp://{b}"}
            anywhere = f"tcp://0.0.0.0:{c.rpartition(':')[2]}"
            yield "ZeroMQ tcp, CURVE", {**common, "kind": "zmq", "a": f"tcp://{a}", "b": anywhere}
    if "kafka" in wanted:
        for name, bootstrap in brokers():
            case = {"kind": "kafka", "bootstrap": bootstrap, "topic": f"skewd-clock-{uuid.uuid4().hex[:12]}"}
            yield name, {**common, **case, "a": "", "b": ""}
    if "aeron" in wanted:
        try:
            import pyaeron
        except ImportError:
            print("aeron: left out, pyaeron is not here (Python 3.12 or newer, x86_64)", file=sys.stderr)
            return
        driver = pyaeron.MediaDriver(dir=str(directory / "driver"))
        where = {**common, "kind": "aeron", "directory": str(directory)}
        yield "Aeron IPC", {**where, "a": "aeron:ipc", "b": "aeron:ipc"}
        driver.close()
        a, b = ports(socket.SOCK_DGRAM)
        yield "Aeron UDP", {**where, "a": a, "b": b}


def brokers() -> Iterator[tuple[str, str]]:
    """A real broker where Java and its jars are, else a mock that says so."""
    try:
        from skewd_pipeline.kafka_broker import open_broker
    except ImportError:
        print("kafka: left out, confluent-kafka is not installed", file=sys.stderr)
        return
    with open_broker(warm_messages=20_000) as broker:
        warm(broker.bootstrap)
        yield broker.label, broker.bootstrap


def warm(bootstrap: str) -> None:
    """Requests one by one: a JVM interprets what it has not done a thousand times, and a broker in use has done it."""
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    topic = f"skewd-warm-{uuid.uuid4().hex[:12]}"
    producer = ck.Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "acks": 1, "log_level": 0})
    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": "skewd-warm", "log_level": 0})
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    with contextlib.suppress(ck.KafkaException):  # a mock makes topics when they are asked for
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    consumer.assign([ck.TopicPartition(topic, 0, 0)])
    until = time.monotonic() + WARM_BROKER_S
    while time.monotonic() < until:
        producer.produce(topic, ATTACHED, partition=0)
        producer.flush(1.0)
        consumer.poll(0.1)
    consumer.close()


def table(results: list[Result]) -> Iterator[str]:
    """A row each, in Markdown."""
    yield "| transport | width p50 | p99 | x UDP | round trip min | p50 | misses | bounds | processor |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    first = statistics.median(results[0].widths)
    for one in results:
        widths, rtts = sorted(one.widths), sorted(one.rtts)
        median = statistics.median(widths)
        p99 = widths[min(len(widths) - 1, len(widths) * 99 // 100)]
        yield (
            f"| {one.name} | {median:.0f} us | {p99:.0f} us | {median / first:.1f} | {max(0.0, rtts[0]):.0f} us |"
            f" {statistics.median(rtts):.0f} us | {one.misses} | {len(widths)} | {one.share:.1%} |"
        )


async def main(wanted: list[str], seconds: float, interval_s: float) -> int:
    """Measure all that can be had here; 1 if any bound missed the truth."""
    results = []
    with tempfile.TemporaryDirectory(prefix="skewd-width-") as temporary:
        async for name, case in cases(wanted, round(interval_s * 1e9), Path(temporary)):
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(await measured(name, case, seconds, Path(temporary)))
    if not results:
        return 1
    print("\n".join(table(results)))
    return int(any(one.misses for one in results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transports", default="udp,zmq,kafka,aeron", help="of udp, zmq, kafka, aeron; commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each transport")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between exchanges")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        asyncio.run(answering(json.loads(options.node)))
    else:
        sys.exit(asyncio.run(main(options.transports.split(","), options.seconds, options.interval)))
