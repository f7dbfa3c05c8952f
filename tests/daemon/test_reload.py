"""A configuration that is read again while the daemon runs: what is taken up, what waits, what is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from skewd import daemon as running
from skewd import hostclock, logs
from skewd.api_client import get_status
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import (
    CheckConfig,
    ClockConfig,
    Config,
    LogConfig,
    MeshConfig,
    MetricsConfig,
    NodeConfig,
    SourceConfig,
    load_config,
)
from skewd.daemon import Daemon
from skewd.kernel_clock import KernelClock
from skewd.node import Node
from skewd.publish import prometheus
from skewd.reload import plan
from tests.daemon.test_node import Clocks
from tests.sources.test_local_sources import serving, tracking
from tests.waiting import LIMIT_S, until

MS = 1_000_000
SECOND = 1_000_000_000


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = logs._least
    yield
    logs._least = before


def config(root: Path, *sources: SourceConfig, peers: tuple[str, ...] = (), **more: Any) -> Config:
    return Config(
        node=NodeConfig(name="n", runtime_dir=root / "run", state_dir=root),
        mesh=MeshConfig(listen="127.0.0.1:0", peers=peers, interval=50 * MS, reference="utc", key="none"),
        metrics=MetricsConfig(listen=None),
        source=sources,
        **more,
    )


def test_what_a_running_daemon_takes_up() -> None:
    udp: dict[str, Any] = {"listen": "127.0.0.1:0", "key": "none"}
    before = Config(mesh=MeshConfig(**udp))
    wanted = Config(
        source=(SourceConfig(type="kernel"),),
        clock=ClockConfig(max_drift_ppm=50, max_uncertainty=5 * MS),
        mesh=MeshConfig(peers=("127.0.0.1:9",), interval=7 * MS, **udp),
        check=CheckConfig(warning=7, critical=8),
        log=LogConfig(level="debug", format="json"),
    )
    made = plan(before, wanted)
    assert made.changed == ("clock.max_uncertainty", "source", "mesh.peers", "log.level")
    assert made.restart == ("clock.max_drift_ppm", "mesh.interval", "log.format")
    assert made.config.clock == ClockConfig(max_uncertainty=5 * MS)
    assert made.config.mesh == MeshConfig(peers=("127.0.0.1:9",), **udp)
    assert made.config.log == LogConfig(level="debug")
    assert (made.config.source, made.config.check) == (wanted.source, wanted.check)
    assert plan(wanted, wanted) == (wanted, (), ())


def test_peers_that_are_the_first_wait_for_a_restart() -> None:
    """Nothing is open to ask them by, and a node that asks for peers and hears none is not synchronized."""
    made = plan(Config(), Config(mesh=MeshConfig(peers=("127.0.0.1:9",), key="none")))
    assert made.restart == ("mesh.listen", "mesh.key", "mesh.peers")
    assert made.config == Config()


async def test_peers_sources_and_limits_change_while_it_runs(short: Path) -> None:
    there = Config(
        node=NodeConfig(name="o", runtime_dir=short / "o", state_dir=short),
        mesh=MeshConfig(listen="127.0.0.1:0", key="none"),
        metrics=MetricsConfig(listen=None),
    )
    other = Daemon(there, VirtualClock(VirtualPage.create(None)))
    async with serving(lambda question: [tracking(question)]) as (first, at), other.running() as addresses:
        a = SourceConfig(type="chrony", name="a", address=at, interval=100 * MS)
        daemon = Daemon(config(short, a), VirtualClock(VirtualPage.create(None)))
        async with daemon.running(), serving(lambda question: [tracking(question)]) as (second, at_b):
            await until(lambda: daemon.status()["status"] == "synchronized", "a bound")
            width = daemon.status()["uncertainty_ns"]
            b = SourceConfig(type="chrony", name="b", address=at_b, interval=100 * MS)
            await daemon.reload(lambda: config(short, a, b, peers=(addresses["mesh"],)))
            told = await until(
                lambda: (t := daemon.status())["peers"] and second.asked and t, "the new peer and source"
            )
            assert [row["name"] for row in told["sources"]] == ["a", "b"]
            assert told["uncertainty_ns"] < 2 * width  # the first one's bound was not begun anew
            assert told["config"] == {"last_reload_successful": True, "needs_restart": []}
            # Both go again, and the bound may only be narrow.
            await daemon.reload(lambda: config(short, b, clock=ClockConfig(max_uncertainty=1_000)))
            asked = first.asked
            told = await until(lambda: (t := daemon.status())["status"] == "unsynchronized" and t, "the narrow limit")
            assert [row["name"] for row in told["sources"]] == ["b"]
            was = second.asked
            await until(lambda: second.asked >= was + 3, "more questions to the source that stays")
            assert first.asked == asked


async def test_a_mistake_changes_nothing_and_is_said(short: Path) -> None:
    async with serving(lambda question: [tracking(question)]) as (_, at):
        a = SourceConfig(type="chrony", name="a", address=at, interval=100 * MS)
        daemon = Daemon(config(short, a), VirtualClock(VirtualPage.create(None)))

        def metric() -> float | None:
            registry = prometheus.registry(daemon.status, {}, lambda: 0.0)
            return registry.get_sample_value("skewd_config_last_reload_successful")

        def mistaken() -> Config:
            return load_config(short / "none.toml", {})

        async with daemon.running():
            await until(lambda: daemon.status()["status"] == "synchronized", "a bound")
            assert metric() == 1
            none = SourceConfig(type="phc", name="p", address=str(short / "none"))
            refused: list[tuple[Callable[[], Config], str]] = [
                (mistaken, "none.toml: --config names it, and it does not exist"),
                (lambda: config(short, a, none), f"{short}/none can't be opened"),
                (lambda: config(short, a, peers=("192.0.2.1:9957",)), "key"),
            ]
            for load, says in refused:
                await daemon.reload(load)
                told = daemon.status()
                assert not told["config"]["last_reload_successful"]
                (said,) = [text for text in told["messages"] if "is refused, the one before is in force" in text]
                assert says in said
                assert metric() == 0
                assert [row["name"] for row in told["sources"]] == ["a"]
                assert daemon.config.mesh.peers == ()
            await until(lambda: daemon.status()["status"] == "synchronized", "the bound, still or again")
            # What needs a restart is named until it is undone.
            await daemon.reload(lambda: config(short, a, clock=ClockConfig(max_drift_ppm=7)))
            told = daemon.status()
            assert (metric(), told["config"]["needs_restart"]) == (1, ["clock.max_drift_ppm"])
            assert "waiting for a restart: clock.max_drift_ppm" in " ".join(told["messages"])
            await daemon.reload(lambda: config(short, a))
            assert daemon.status()["config"]["needs_restart"] == []


async def test_what_was_found_gives_way_to_what_is_configured_and_is_found_again(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skewd.sources.chrony.USUAL", (str(short / "none"),))
    monkeypatch.setattr("skewd.sources.ptp.USUAL", (str(short / "none"),))
    known = KernelClock(0, 0x2000, 0, 10_000, 1_501, 10, 37)
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: known)
    daemon = Daemon(config(short), HostClock())
    async with serving(lambda question: [tracking(question)]) as (_, at), daemon.running():
        await until(lambda: daemon.status()["found"] == "kernel", "what is found")
        await until(lambda: "maxerror alone" in " ".join(daemon.status()["messages"]), "the last resort is said to be")
        a = SourceConfig(type="chrony", name="a", address=at, interval=100 * MS)
        await daemon.reload(lambda: config(short, a))
        told = daemon.status()
        assert (told["found"], [row["name"] for row in told["sources"]]) == (None, ["a"])
        bad = SourceConfig(type="phc", name="p", address=str(short / "none"))
        await daemon.reload(lambda: config(short))
        await until(lambda: daemon.status()["found"] == "kernel", "what is found again")
        await daemon.reload(lambda: config(short, bad))
        await until(lambda: daemon.status()["found"] == "kernel", "what is found after a mistake")
        assert [row["name"] for row in daemon.status()["sources"]] == ["kernel"]


async def test_a_machine_with_timesyncd_alone_is_told_what_to_do(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd.sources.chrony.USUAL", (str(short / "none"),))
    monkeypatch.setattr("skewd.sources.ptp.USUAL", (str(short / "none"),))
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: KernelClock(0, 0x2001, 0, 10_000, 32_000, 0, 0))
    daemon = Daemon(config(short), HostClock())
    async with daemon.running():
        said = await until(
            lambda: [text for text in daemon.status()["messages"] if "systemd-timesyncd" in text], "the reason"
        )
        assert said[0].startswith("no source of UTC is configured, and kernel: the kernel's maxerror is a zero that")
        assert "add [[source]] type = 'ntp' with the server that timesyncd follows" in said[0]
        monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: None)
        a = SourceConfig(type="kernel", name="k", interval=100 * MS)
        await daemon.reload(lambda: config(short, a))
        assert not any("no source of UTC is configured" in text for text in daemon.status()["messages"])


async def test_sighup_reads_the_file_again(short: Path) -> None:
    file = short / "skewd.toml"
    head = (
        f'[node]\nname = "n"\nruntime_dir = "{short}/run"\nstate_dir = "{short}"\n[metrics]\nlisten = "off"\n'
        '[mesh]\nlisten = "off"\n[log]\nlevel = "{level}"\n'
    )
    file.write_text(head.replace("{level}", "info"))
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        running.serve(
            load_config(file, {}),
            VirtualClock(VirtualPage.create(None)),
            lambda addresses: ready.set(),
            stop,
            lambda: load_config(file, {}),
        )
    )
    await asyncio.wait_for(ready.wait(), LIMIT_S)

    async def said(condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while not condition(told := await asyncio.to_thread(get_status, short / "run" / "skewd.sock")):
                pass
        return told

    file.write_text(head.replace("{level}", "loud"))
    os.kill(os.getpid(), signal.SIGHUP)
    told = await said(lambda told: not told["config"]["last_reload_successful"])
    assert any(f"{file}: [log] level" in text for text in told["messages"])
    file.write_text(head.replace("{level}", "debug"))
    os.kill(os.getpid(), signal.SIGHUP)
    await said(lambda told: told["config"]["last_reload_successful"])
    stop.set()
    await task
    assert logs._least == 10


def test_the_level_of_loggers_in_use_follows(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logs("warning", "text")
    log = structlog.get_logger("x").bind(a=1)
    log.info("one")
    logs.set_level("info")
    log.info("two")
    log.debug("three")
    logs.set_level("error")
    log.warning("four")
    lines = [line.split()[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["two"]
    structlog.reset_defaults()


def test_a_source_that_goes_keeps_its_contradictions_counted() -> None:
    clocks = Clocks()
    source = SourceConfig(type="ntp", name="n", address="192.0.2.1:123")
    node = Node(
        Config(node=NodeConfig(name="a"), source=(source,)), boot=bytes(16), first=clocks.sample(0), virtual=False
    )
    for utc in (5 * SECOND, 9 * SECOND):
        node.on_utc("n", [(SECOND, utc)], [(utc, SECOND + 1)], SECOND)
    assert node.contradictions >= 1
    before = node.contradictions
    node.reconfigure(Config(node=NodeConfig(name="a"), source=(SourceConfig(type="kernel"),)))
    assert node.contradictions == before
    assert node.reference_estimate(SECOND) is None
