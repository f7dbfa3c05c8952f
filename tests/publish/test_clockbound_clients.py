"""AWS's own clients, built from their published crates, read our segments: what they say is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from skewd.clock import HostClock, NodeClock, VirtualClock, VirtualPage
from skewd.config import ClockBoundConfig, Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.failures import StartError
from skewd.publish import clockbound
from skewd.publish.clockbound import ClockBoundSegments, NoBarrier, store_barrier
from skewd.publish.clockbound_layout import Claim, ClockStatus
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
MS, SECOND = 1_000_000, 1_000_000_000
WRONG_NS = 5 * MS
"""UTC minus this host's wall clock, as the test's time server has it."""


@pytest.fixture(scope="session")
def client() -> Path:
    """The client, built once for all runs of this checkout."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        pytest.skip("AWS's clients are built with cargo, which is not here")
    target = ROOT / "build" / "clockbound_client"
    command = [cargo, "build", "--locked", "--quiet", "--manifest-path", f"{ROOT}/tests/clockbound_client/Cargo.toml"]
    path = f"{os.environ.get('PATH', '')}:{Path(cargo).parent}"  # where rustc is, too
    env = {**os.environ, "CARGO_TARGET_DIR": str(target), "PATH": path}
    built = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    if built.returncode and re.search(r"failed to (download|fetch|query|get)|Could not resolve", built.stderr):
        pytest.skip("cargo cannot reach the crates of AWS's clients")
    assert built.returncode == 0, built.stderr
    return target / "debug" / "clockbound-client"


class Clients:
    """Both versions, opened once in one process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(LIMIT_S):
            line = await self._process.stdout.readline()
        assert line, "the client ended"
        return cast("dict[str, Any]", json.loads(line))

    async def statuses(self) -> tuple[str, str]:
        said = await self.ask()
        return said["v1"]["status"], said["v2"]["status"]

    async def until(self, status: str) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while True:
                said = await self.ask()
                if said["v1"]["status"] == said["v2"]["status"] == status:
                    return said
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def clients(client: Path, directory: Path) -> AsyncIterator[Clients]:
    process = await asyncio.create_subprocess_exec(
        client, directory / "shm", directory / "shm0", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Clients(process)
    finally:
        process.kill()
        await process.wait()


class TimeServer(asyncio.DatagramProtocol):
    """A time server of stratum 1 on whose clock it is ``WRONG_NS`` later than here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        def stamp() -> int:
            return ((time.time_ns() + WRONG_NS + 2_208_988_800 * SECOND) << 32) // SECOND & ((1 << 64) - 1)

        head = struct.pack("!BBbbII4sQ8s", 4 << 3 | 4, 1, 6, -23, 0, 66, b"GPS\0", 0, data[40:48])
        self.transport.sendto(head + struct.pack("!QQ", stamp(), stamp()), addr)


@pytest.fixture
async def server() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(TimeServer, local_addr=("127.0.0.1", 0))
    yield "{}:{}".format(*transport.get_extra_info("sockname"))
    transport.close()


def daemon(root: Path, sources: tuple[SourceConfig, ...], clock: NodeClock | None = None) -> Daemon:
    config = Config(
        node=NodeConfig(name="n", runtime_dir=root / "run", state_dir=root),
        mesh=MeshConfig(listen=None, reference="utc" if sources else "auto"),
        metrics=MetricsConfig(listen=None),
        source=sources,
        clockbound=ClockBoundConfig(enabled=True, directory=root / "clockbound"),
    )
    return Daemon(config, clock or HostClock())


def ntp(address: str) -> tuple[SourceConfig, ...]:
    return (SourceConfig(type="ntp", address=address, interval=100 * MS),)


def holds(said: dict[str, Any]) -> None:
    """Both intervals hold UTC, though this host's clock is wrong, and are of use."""
    for version in ("v1", "v2"):
        earliest, latest = said[version]["earliest_ns"], said[version]["latest_ns"]
        read = (earliest + latest) // 2  # CLOCK_REALTIME when the client asked
        assert said["before_ns"] <= read <= said["after_ns"], "symmetric about the wall clock"
        assert earliest <= read + WRONG_NS <= latest
        assert latest - earliest < 2 * (WRONG_NS + SECOND)


@pytest.mark.long
async def test_clients_are_told_the_truth_and_survive_a_restart(client: Path, tmp_path: Path, server: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with daemon(tmp_path, ntp(server)).running():
            both = await stack.enter_async_context(clients(client, tmp_path / "clockbound"))
            for _ in range(200):
                holds(await both.until("Synchronized"))
        assert await both.statuses() == ("Unknown", "Unknown"), "after the daemon's exit"
        second = daemon(tmp_path, ntp(server))
        async with second.running():
            holds(await both.until("Synchronized"))
            assert second.status()["messages"] == []


@pytest.mark.long
async def test_without_utc_nothing_is_claimed(client: Path, tmp_path: Path) -> None:
    alone = daemon(tmp_path, ())
    async with alone.running(), clients(client, tmp_path / "clockbound") as both:
        assert await both.statuses() == ("Unknown", "Unknown")
        alone.tick()
        assert any("ask for UTC" in message for message in alone.status()["messages"])


@pytest.mark.long
async def test_a_virtual_node_says_nothing_of_the_hosts_clock(client: Path, tmp_path: Path, server: str) -> None:
    virtual = daemon(tmp_path, ntp(server), VirtualClock(VirtualPage.create(None, offset_ns=3 * MS)))
    async with virtual.running(), clients(client, tmp_path / "clockbound") as both:
        async with asyncio.timeout(LIMIT_S):
            while virtual.status()["status"] != "synchronized":
                await asyncio.sleep(0.02)
        assert await both.statuses() == ("Unknown", "Unknown")
        assert any("this node's is virtual" in message for message in virtual.status()["messages"])


@pytest.mark.long
async def test_how_clients_judge_age_and_status(client: Path, tmp_path: Path) -> None:
    segments = ClockBoundSegments(tmp_path, store_barrier())
    try:
        async with clients(client, tmp_path) as both:
            assert await both.statuses() == ("Unknown", "Unknown"), "before anything was published"
            for age_s, left_s, status, told in [
                (0, 1_000, ClockStatus.SYNCHRONIZED, "Synchronized"),
                (4, 1_000, ClockStatus.SYNCHRONIZED, "Synchronized"),
                (6, 1_000, ClockStatus.SYNCHRONIZED, "FreeRunning"),
                (6, -1, ClockStatus.SYNCHRONIZED, "Unknown"),
                (0, 1_000, ClockStatus.FREE_RUNNING, "FreeRunning"),
                (0, 1_000, ClockStatus.UNKNOWN, "Unknown"),
            ]:
                now = clockbound.as_of_ns()
                said = Claim(now - age_s * SECOND, now + left_s * SECOND, 1_000, 1_000_000, status)
                segments.publish(said)
                heard = await both.ask()
                for version in ("v1", "v2"):
                    assert heard[version]["status"] == told
                    width = heard[version]["latest_ns"] - heard[version]["earliest_ns"]
                    assert width >= 2 * (1_000 + age_s * MS), "the bound grows with age"
    finally:
        segments.close()


async def test_the_daemon_says_why_there_are_no_segments(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> clockbound.Barrier:
        raise NoBarrier(38, "no memory barrier is known for a vax processor")

    with monkeypatch.context() as patched:
        patched.setattr(clockbound, "store_barrier", none)
        off = daemon(tmp_path, ntp(server))
        async with off.running():
            said = "ClockBound segments are off: no memory barrier is known for a vax processor"
            assert said in off.status()["messages"]
        assert not (tmp_path / "clockbound").exists()
    (tmp_path / "clockbound").write_text("in the way")
    with pytest.raises(StartError, match=r"ClockBound segments cannot be written in .*\[clockbound\] directory"):
        async with daemon(tmp_path, ntp(server)).running():
            pass


async def test_a_daemon_whose_segments_are_taken_goes_on_without_them(tmp_path: Path, server: str) -> None:
    running = daemon(tmp_path, ntp(server))
    async with running.running():
        (tmp_path / "clockbound" / "shm0").unlink()
        async with asyncio.timeout(LIMIT_S):
            while not any("another program writes or removed" in m for m in running.status()["messages"]):
                await asyncio.sleep(0.02)
        assert not running.ticker.done()
