"""Real daemons on loopback, on virtual clocks whose truth the test knows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from skewd import daemon as running
from skewd import hostclock
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import Config, LinkConfig, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.failures import StartError
from skewd.keys import generate_key_file
from skewd.ports import PortTaken
from skewd.publish.segment import NAME, SegmentReader
from skewd.reader import Now
from tests.waiting import until

MS = 1_000_000


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


class Bench:
    """Virtual nodes of one test."""

    def __init__(self, root: Path, stack: contextlib.AsyncExitStack) -> None:
        self.root, self.stack = root, stack
        self.pages: dict[str, VirtualPage] = {}
        self.daemons: dict[str, Daemon] = {}
        self.addresses: dict[str, dict[str, Any]] = {}

    async def start(self, name: str, *, offset_ns: int = 0, mesh: MeshConfig, **more: Any) -> Daemon:
        page = VirtualPage.create(None, offset_ns=offset_ns, epoch_ns=len(self.pages) * 10**15)
        config = Config(
            node=NodeConfig(name=name, runtime_dir=self.root / name, state_dir=self.root),
            mesh=mesh,
            metrics=MetricsConfig(listen="127.0.0.1:0"),
            **more,
        )
        daemon = Daemon(config, VirtualClock(page))
        self.addresses[name] = await self.stack.enter_async_context(daemon.running())
        self.pages[name], self.daemons[name] = page, daemon
        return daemon

    def offset(self, of: str, seen_from: str) -> int:
        return self.pages[of].offset_ns - self.pages[seen_from].offset_ns


@pytest.fixture
async def bench(short: Path) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        yield Bench(short, stack)


def mesh(reference: str, *peers: str, key: Path | None = None) -> MeshConfig:
    none = "none" if key is None else None
    return MeshConfig(
        listen="127.0.0.1:0", peers=peers, interval=100 * MS, reference=reference, key_file=key, key=none
    )


async def test_two_nodes_find_their_offset_and_follow_a_step(bench: Bench) -> None:
    generate_key_file(bench.root / "key")
    a = await bench.start("a", mesh=mesh("a", key=bench.root / "key"))
    b = await bench.start("b", offset_ns=5 * MS, mesh=mesh("a", bench.addresses["a"]["mesh"], key=bench.root / "key"))
    told = await until(lambda: b.status()["offset_ns"] is not None and b.status(), "a bound")
    assert told["lower_ns"] <= -5 * MS <= told["upper_ns"]
    assert told["reference"] == "node:a"
    # The side that only answers learns as well.
    peers = await until(lambda: [p for p in a.status()["peers"] if p["offset_ns"] is not None], "a bound at a")
    assert peers[0]["name"] == "b"
    assert peers[0]["lower_ns"] <= 5 * MS <= peers[0]["upper_ns"]

    reader = SegmentReader(bench.root / "b" / NAME, stamps="wall")
    now = bench.pages["b"].wall_ns()
    correction = await until(lambda: (c := reader.at(now)).reference and c, "a knot in the segment")
    assert abs(correction.offset_ns + 5 * MS) <= correction.uncertainty_ns

    bench.pages["b"].step_to(-3 * MS)
    await until(lambda: b.status()["era"] == 2, "the step")
    stamp = bench.pages["b"].wall_ns() + 20 * MS  # beyond the readings that occurred twice
    await until(lambda: bench.pages["b"].wall_ns() > stamp + 300 * MS, "time to pass")
    correction = await until(lambda: (c := reader.at(stamp)).uncertainty_ns < 3 * MS and c, "a bound that tells")
    assert abs(correction.offset_ns - 3 * MS) <= correction.uncertainty_ns

    earliest = Now(bench.root / "b" / NAME, VirtualClock(bench.pages["b"]))
    low = bench.pages["a"].wall_ns()
    told_now = b.now()
    interval = earliest()
    high = bench.pages["a"].wall_ns()
    assert interval.lo <= high
    assert interval.hi >= low
    assert told_now.earliest_ns is not None
    assert told_now.latest_ns is not None
    assert told_now.earliest_ns <= high
    assert told_now.latest_ns >= low


async def test_peers_are_found_by_a_dns_name_and_its_failure_is_said(bench: Bench) -> None:
    await bench.start("a", mesh=mesh("a"))
    port = bench.addresses["a"]["mesh"].rpartition(":")[2]
    found = MeshConfig(listen="127.0.0.1:0", dns=f"localhost:{port}", interval=100 * MS, reference="a", key="none")
    b = await bench.start("b", offset_ns=5 * MS, mesh=found)
    told = await until(lambda: b.status()["offset_ns"] is not None and b.status(), "a bound")
    assert told["lower_ns"] <= -5 * MS <= told["upper_ns"]
    nowhere = "no-such-name.invalid:9957"
    lost = MeshConfig(listen="127.0.0.1:0", dns=nowhere, interval=100 * MS, reference="a", key="none")
    c = await bench.start("c", mesh=lost)
    await until(lambda: any("no-such-name.invalid" in line for line in c.status()["messages"]), "what is wrong")


async def test_messages_travel_over_zeromq_alone(bench: Bench, short: Path) -> None:
    off = MeshConfig(listen=None, interval=100 * MS, reference="a", key="none")
    link = LinkConfig(transport="zmq", address=f"ipc://{short}/a.ipc")
    await bench.start("a", mesh=off, link=(link,))
    b = await bench.start(
        "b",
        offset_ns=-4 * MS,
        mesh=off,
        link=(LinkConfig(transport="zmq", address=f"ipc://{short}/b.ipc", peers=(f"ipc://{short}/a.ipc",)),),
    )
    told = await until(lambda: b.status()["offset_ns"] is not None and b.status(), "a bound")
    assert told["lower_ns"] <= 4 * MS <= told["upper_ns"]
    assert told["peers"][0]["link"] == "zmq"


async def test_who_is_asked_over_another_link_goes_on_asking_over_udp(bench: Bench, short: Path) -> None:
    await bench.start(
        "a",
        mesh=mesh("a"),
        link=(LinkConfig(transport="zmq", address=f"ipc://{short}/a.ipc", peers=(f"ipc://{short}/b.ipc",)),),
    )
    # Of two that ask each other over UDP the one with the greater name need not. "a" asks over ZeroMQ alone.
    b = await bench.start(
        "b",
        mesh=mesh("a", bench.addresses["a"]["mesh"]),
        link=(LinkConfig(transport="zmq", address=f"ipc://{short}/b.ipc"),),
    )

    def counter(link: int, name: str) -> int:
        return int(b.status()["links"][link]["counters"][name])

    await until(lambda: counter(1, "replies") >= 30, "to be asked over ZeroMQ for three seconds")
    assert counter(0, "requests") >= 20
    (peer,) = b.status()["peers"]
    assert (peer["lower_link"], peer["upper_link"]) == ("udp", "udp")


async def test_a_wrong_key_is_counted_ignored_and_said(bench: Bench, short: Path) -> None:
    generate_key_file(short / "k1")
    generate_key_file(short / "k2")
    a = await bench.start("a", mesh=mesh("a", key=short / "k1"))
    b = await bench.start("b", mesh=mesh("a", bench.addresses["a"]["mesh"], key=short / "k2"))
    await until(lambda: a.status()["links"][0]["counters"]["wrong_key"] >= 3, "refusals")
    assert any("another mesh key" in message for message in a.status()["messages"])
    assert a.status()["peers"] == []
    assert b.status()["offset_ns"] is None


async def test_metrics_health_and_page(bench: Bench) -> None:
    await bench.start("a", mesh=mesh("a"))
    b = await bench.start("b", offset_ns=5 * MS, mesh=mesh("a", bench.addresses["a"]["mesh"]))
    url = f"http://{bench.addresses['b']['metrics']}"
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "/healthz") as answer:
            assert answer.status == 200
        await until(lambda: b.status()["offset_ns"] is not None, "a bound")
        async with session.get(url + "/readyz") as answer:
            assert (answer.status, await answer.text()) == (200, "synchronized\n")
        async with session.get(url + "/metrics") as answer:
            text = await answer.text()
        async with session.get(url + "/") as answer:
            assert "VIRTUAL" in await answer.text()
    samples = {
        (s.name, tuple(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    offset = samples["skewd_clock_offset_seconds", ("node:a",)]
    uncertainty = samples["skewd_clock_uncertainty_seconds", ("node:a",)]
    assert abs(offset + 0.005) <= uncertainty
    assert samples["skewd_clock_offset_lower_seconds", ("node:a",)] <= -0.005
    assert samples["skewd_clock_offset_upper_seconds", ("node:a",)] >= -0.005
    assert samples["skewd_clock_status", ("synchronized",)] == 1
    assert samples["skewd_peer_offset_lower_seconds", ("a",)] <= -0.005
    assert samples["skewd_clock_eras_total", ()] == 1
    assert samples["skewd_contradictions_total", ()] == 0
    assert samples["skewd_build_info", ("0.1.0", "true")] == 1
    assert samples["skewd_config_last_reload_successful", ()] == 1
    assert ("skewd_clock_drift_ratio", ("node:a",)) in samples
    assert samples["process_resident_memory_bytes", ()] > 1e6
    assert samples["process_cpu_seconds_total", ()] > 0
    for name in (
        "skewd_peer_offset_seconds",
        "skewd_peer_offset_upper_seconds",
        "skewd_peer_rtt_min_seconds",
        "skewd_peer_last_exchange_timestamp_seconds",
    ):
        assert (name, ("a",)) in samples


async def test_a_taken_port_names_its_holder(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config(
            node=NodeConfig(name="a", runtime_dir=bench.root / "a"),
            mesh=mesh("a"),
            metrics=MetricsConfig(listen=f"127.0.0.1:{port}"),
        )
        with pytest.raises(PortTaken, match=r"is taken by pid \d+ .*\[metrics\] listen"):
            async with Daemon(config, VirtualClock(VirtualPage.create(None))).running():
                pass
    assert not (bench.root / "a" / NAME).exists(), "a failed start leaves nothing behind"


async def test_one_daemon_per_runtime_directory(bench: Bench) -> None:
    await bench.start("a", mesh=mesh("a"))
    config = Config(node=NodeConfig(name="x", runtime_dir=bench.root / "a"), mesh=mesh("a"))
    with pytest.raises(StartError, match=r"another skewd \(pid \d+\) runs in"):
        async with Daemon(config, VirtualClock(VirtualPage.create(None))).running():
            pass


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"source": (SourceConfig(type="phc", address="/dev/none"),)}, "/dev/none can't be opened: No such file"),
        ({"source": (SourceConfig(type="chrony", address="192.0.2.1:323"),)}, "another machine's chronyd"),
        ({"source": (SourceConfig(type="ntp", name="n", interval=10**9),)}, "has no address"),
    ],
)
async def test_what_is_not_built_yet_is_refused_with_a_way_out(bench: Bench, more: dict[str, Any], says: str) -> None:
    config = Config(**({"node": NodeConfig(name="a", runtime_dir=bench.root / "a"), "mesh": mesh("a")} | more))
    with pytest.raises(StartError, match=says):
        async with Daemon(config, VirtualClock(VirtualPage.create(None))).running():
            pass


async def test_random_datagrams_do_not_end_it(bench: Bench) -> None:
    a = await bench.start("a", mesh=mesh("a"))
    host, _, port = bench.addresses["a"]["mesh"].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in (0, 1, 4, 63, 335, 336, 512, 1400):
            sender.sendto(bytes(range(256)) * 6 if size == 1400 else b"skwd\x02\x01" + bytes(size), (host, int(port)))
    counters = a.status()["links"][0]["counters"]
    await until(
        lambda: sum(a.status()["links"][0]["counters"].values()) > sum(counters.values()), "the refusals to be counted"
    )
    assert not a.ticker.done()


async def test_the_kernels_clocks_are_told_and_a_disturbed_raw_clock_begins_anew(
    bench: Bench, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = short / "current_clocksource"
    source.write_text("tsc\n")
    monkeypatch.setattr(hostclock, "CLOCK_SOURCE", source)
    await bench.start("a", mesh=mesh("a"))
    b = await bench.start("b", mesh=mesh("a", bench.addresses["a"]["mesh"]))
    await until(lambda: b.status()["offset_ns"] is not None, "a bound")
    told = b.status()["clock"]
    assert told["clock_source"] == "tsc"
    assert told["steps_seen_by"] == "page"
    assert told["time_namespace_shift_ns"] == hostclock.shift_ns()
    assert told["kernel"] is None or told["kernel"]["leap"] in ("none", "insert", "delete", "in progress", "occurred")
    assert told["kernel"] is None or told["kernel"]["tai_offset_s"] != 0
    era = b.node.raw_era

    source.write_text("hpet\n")
    await until(lambda: b.node.raw_era == era + 1, "the other clock source")
    await until(lambda: b.status()["offset_ns"] is not None, "a bound from the new clock")

    slept = hostclock.suspended_ns
    monkeypatch.setattr(hostclock, "suspended_ns", lambda: slept().shift(3_000_000_000))
    await until(lambda: b.node.raw_era == era + 2, "the sleep")
    await until(lambda: b.status()["offset_ns"] is not None, "a bound from after it")


@pytest.mark.parametrize("where", ["a file", "this process"])
async def test_a_step_of_a_virtual_clock_is_told_at_once(
    short: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(running, "TICK_S", 3600.0)
    monkeypatch.setattr(running, "KNOT_PERIOD_NS", 3600 * 10**9)  # nobody looks: what is seen was told
    page = VirtualPage.create(short / "page" if where == "a file" else None)
    config = Config(
        node=NodeConfig(name="v", runtime_dir=short / "v", state_dir=short),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
    )
    daemon = Daemon(config, VirtualClock(page))
    async with daemon.running():
        assert daemon.status()["clock"]["steps_seen_by"] == "page"
        await asyncio.sleep(0)
        for by_ns in (50 * MS, -80 * MS, 3_600_000 * MS):
            era = daemon.status()["era"]
            page.step_to(page.offset_ns + by_ns)
            for _ in range(3):  # rounds of the loop: in each it asks which descriptors are ready
                await asyncio.sleep(0)
            assert daemon.status()["era"] == era + 1


async def test_a_virtual_clock_that_can_not_be_watched_is_looked_at(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: Path) -> None:
        raise OSError(f"{path}: no inotify here")

    monkeypatch.setattr(hostclock, "FileWatch", none)
    page = VirtualPage.create(short / "page")
    config = Config(
        node=NodeConfig(name="v", runtime_dir=short / "v", state_dir=short),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
    )
    daemon = Daemon(config, VirtualClock(page))
    async with daemon.running():
        assert daemon.status()["clock"]["steps_seen_by"] == "polling"
        page.step_to(5 * MS)
        await until(lambda: daemon.status()["era"] == 2, "the step")


async def test_the_hosts_clock_is_watched_by_the_kernel(short: Path) -> None:
    config = Config(
        node=NodeConfig(name="h", runtime_dir=short / "h", state_dir=short),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
    )
    daemon = Daemon(config, HostClock())
    async with daemon.running():
        assert daemon.status()["clock"]["steps_seen_by"] in ("timerfd", "polling")
        assert daemon.status()["era"] == 1
