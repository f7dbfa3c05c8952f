"""A majority of the sources that are configured, not of those that were quick."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd import daemon as running
from skewd import hostclock
from skewd.clock import VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig, UtcConfig
from skewd.publish.segment import NAME, SegmentReader
from tests.daemon.source_lab import S, codes, ntp, skewd_run, time_servers
from tests.waiting import until

MS = 1_000_000
HOUR_NS = 3600 * S


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


async def test_a_liar_that_answers_first_is_not_believed() -> None:
    async with time_servers(3) as (liar, *honest):
        liar.lie_ns = HOUR_NS
        for one in honest:
            one.silent = True
        async with skewd_run(ntp(liar, *honest)) as node:
            told = await node.until(lambda told: told["sources"][0]["lower_ns"] is not None)
            assert (told["status"], told["offset_ns"]) == ("unsynchronized", None)
            assert "sources-below-minimum" in codes(told)
            assert any("1 of the 2 sources" in message for message in told["messages"])
            code, said = await node.command("check")
            assert code == 3, said
            assert "2 sources that must agree" in said
            assert (await node.command("waitsync", "--timeout", "1s"))[0] == 1
            assert await node.ready(told) == 503
            assert (await node.command("now", "--json"))[0] == 1
            for one in honest:
                one.silent = False
            told = await node.until(lambda told: told["status"] == "synchronized")
            assert told["lower_ns"] <= 0 <= told["upper_ns"]
            told = await node.until(lambda told: told["sources"][0]["state"] == "falseticker")
            assert "sources-below-minimum" not in codes(told)
            assert [row["state"] for row in told["sources"]] == ["falseticker", "truechimer", "truechimer"]
            assert (await node.command("check", "--warning", "1s", "--critical", "1s"))[0] == 0
            assert (await node.command("waitsync", "--timeout", "1s", "--max-uncertainty", "1s"))[0] == 0
            assert await node.ready(told) == 200


def node_config(directory: Path, servers: list[Any], **more: Any) -> Config:
    sources = tuple(
        SourceConfig(type="ntp", name=f"s{number}", address=server.address, interval=200 * MS, **options)
        for number, (server, options) in enumerate(zip(servers, more.pop("options", [{}] * 9), strict=False), 1)
    )
    return Config(
        node=NodeConfig(name="n", runtime_dir=directory, state_dir=directory),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
        source=sources,
        **more,
    )


async def test_a_liar_that_answers_first_after_a_suspend_is_not_believed(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with time_servers(3) as (liar, *honest):
        daemon = running.Daemon(node_config(short, [liar, *honest]), VirtualClock(VirtualPage.create(None)))
        async with daemon.running():
            await until(lambda: daemon.status()["status"] == "synchronized", "a majority")
            liar.lie_ns = HOUR_NS
            for one in honest:
                one.silent = True
            slept = hostclock.suspended_ns().shift(60 * S).widen(S)
            monkeypatch.setattr(hostclock, "suspended_ns", lambda: slept)
            await until(lambda: daemon.status()["clock"]["raw_era"] != 1 and daemon.node.sources_short, "the resume")
            told = await until(
                lambda: (t := daemon.status()) and t["sources"][0]["lower_ns"] is not None and t, "the liar's word"
            )
            assert told["status"] == "unsynchronized"
            assert "sources-below-minimum" in codes(told)
            assert not daemon.node.sources_enough
            for one in honest:
                one.silent = False
            told = await until(lambda: (t := daemon.status())["status"] == "synchronized" and t, "a majority")
            assert told["lower_ns"] <= 0 <= told["upper_ns"]
            assert daemon.node.sources_enough


async def test_what_was_kept_over_a_restart_is_memory_and_no_majority(short: Path) -> None:
    """Two of three are silent after a restart: their words of before have a vote, but only once they are heard."""
    # A host's clock, for only its boot outlives a daemon; its page is what it reads.
    page = VirtualPage.create(short / "page")
    async with time_servers(3) as servers:
        config = node_config(short, servers)
        before = running.Daemon(config, VirtualClock(page))
        async with before.running():
            await until(lambda: before.status()["status"] == "synchronized", "a majority")
        others = servers[1:]
        for one in others:
            one.silent = True
        after = running.Daemon(config, VirtualClock(page))
        async with after.running():
            told = await until(lambda: (t := after.status())["sources"][0]["age_s"] is not None and t, "one answer")
            assert all(row["lower_ns"] is not None for row in told["sources"]), "all three are resumed"
            assert told["status"] == "unsynchronized"
            assert "sources-below-minimum" in codes(told)
            others[0].silent = False
            told = await until(lambda: (t := after.status())["status"] == "synchronized" and t, "a majority")
            assert told["lower_ns"] <= 0 <= told["upper_ns"]
            assert "sources-below-minimum" not in codes(told)


async def test_when_the_majority_changes_what_is_applied_begins_anew(short: Path) -> None:
    """Whoever asks for one source only gets the first one's word; it is taken back at once, not led back for hours."""
    async with time_servers(3) as (liar, *honest):
        liar.lie_ns = HOUR_NS
        for one in honest:
            one.silent = True
        page = VirtualPage.create(None)
        config = node_config(short, [liar, *honest], utc=UtcConfig(min_sources=1))
        daemon = running.Daemon(config, VirtualClock(page))
        async with daemon.running():
            told = await until(lambda: (t := daemon.status())["status"] == "synchronized" and t, "the first one's word")
            assert abs(told["offset_ns"] - HOUR_NS) < S
            reader = SegmentReader(short / NAME, stamps="wall")
            for one in honest:
                one.silent = False
            await until(lambda: daemon.status()["sources"][0]["state"] == "falseticker", "the majority")
            # Led back by 5 % of elapsed time it would take 20 hours.
            await until(lambda: abs(reader.at(page.wall_ns()).offset_ns) < S, "a knot of the majority's")
            told = daemon.status()
            assert told["lower_ns"] <= told["offset_ns"] <= told["upper_ns"]
            assert told["lower_ns"] <= 0 <= told["upper_ns"]


async def test_a_preferred_source_decides_between_two(short: Path) -> None:
    async with time_servers(2) as (liar, preferred):
        liar.lie_ns = HOUR_NS
        config = node_config(short, [liar, preferred], options=[{}, {"prefer": True}])
        daemon = running.Daemon(config, VirtualClock(VirtualPage.create(None)))
        async with daemon.running():
            told = await until(lambda: (t := daemon.status())["status"] == "synchronized" and t, "the preferred one")
            told = await until(
                lambda: (t := daemon.status())["sources"][0]["state"] == "falseticker" and t, "the other's word"
            )
            assert told["status"] == "synchronized"
            assert told["lower_ns"] <= 0 <= told["upper_ns"]


async def test_without_a_preferred_source_two_that_disagree_tell_nothing(short: Path) -> None:
    async with time_servers(2) as (liar, other):
        liar.lie_ns = HOUR_NS
        daemon = running.Daemon(node_config(short, [liar, other]), VirtualClock(VirtualPage.create(None)))
        async with daemon.running():
            told = await until(
                lambda: (t := daemon.status()) and all(s["lower_ns"] is not None for s in t["sources"]) and t, "both"
            )
            assert told["status"] == "unsynchronized"
            assert any("disagree" in message for message in told["messages"])


async def test_the_servers_of_a_pool_are_sources_of_their_own(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name, four servers, one of them a liar; one that falls silent gives its place to one that nobody asked."""
    hosts = tuple(f"127.0.0.{number}" for number in range(11, 16))
    async with time_servers(5, hosts) as servers:
        port = int(servers[0].address.rpartition(":")[2])
        entries = [(2, 2, 17, "", (host, port)) for host in hosts]
        real = socket.getaddrinfo

        def resolve(host: Any, *more: Any, **options: Any) -> Any:
            return entries if host == "pool.test" else real(host, *more, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        servers[0].lie_ns = HOUR_NS
        for one in servers[1:]:
            one.silent = True
        pool = SourceConfig(type="ntp", name="p", address=f"pool.test:{port}", interval=100 * MS, pool=True)
        config = Config(
            node=NodeConfig(name="n", runtime_dir=short, state_dir=short),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            source=(pool,),
        )
        daemon = running.Daemon(config, VirtualClock(VirtualPage.create(None)))
        async with daemon.running():
            told = await until(
                lambda: (t := daemon.status())["sources"][0]["lower_ns"] is not None and t, "the liar's word"
            )
            assert [row["name"] for row in told["sources"]] == ["p#1", "p#2", "p#3", "p#4"]
            assert (told["status"], told["offset_ns"]) == ("unsynchronized", None)
            for one in servers[1:4]:
                one.silent = False
            told = await until(lambda: (t := daemon.status())["status"] == "synchronized" and t, "three of four")
            assert told["lower_ns"] <= 0 <= told["upper_ns"]
            asked = {row["server"] for row in told["sources"]}
            assert len(asked) == 4
            # Another one is asked where one is silent.
            servers[4].silent, servers[1].silent = False, True
            left = servers[1].address
            await until(
                lambda: left not in {row["server"] for row in daemon.status()["sources"]}, "a server of the pool to go"
            )
            await until(
                lambda: len({row["server"] for row in daemon.status()["sources"]}) == 4, "another one in its place"
            )
            assert daemon.node.utc_raw(daemon.clock.raw_ns()) is not None


def test_a_pool_counts_as_its_size() -> None:
    config = Config(source=(SourceConfig(type="ntp", address="pool.test:123", pool=True, pool_size=3),))
    assert [source.name for source in config.sources] == [f"ntp:pool.test:123#{number}" for number in (1, 2, 3)]
