"""chronyd and ptp4l themselves, in networks of their own. The truth is this machine's wall clock, which they serve."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.api_client import NoDaemonError, get_status
from skewd.clock import HostClock, read_wall
from skewd.interval import Interval
from skewd.sources.chrony import ChronyReader
from skewd.sources.claim import Claim, Refused
from skewd.sources.local import Reader
from skewd.sources.ptp import PtpReader
from tests.sources.private_network import PrivateNetwork, missing
from tests.waiting import LIMIT_S

MS = 1_000_000
US = 1_000
# Between our reading of the truth and the claim the wall clock may be slewed, by 500 ppm and for milliseconds.
SLEWED_NS = 5 * US

pytestmark = pytest.mark.long
no_chrony = pytest.mark.skipif(bool(missing("chronyd")), reason=f"needs {', '.join(missing('chronyd'))}")
no_ptp4l = pytest.mark.skipif(bool(missing("ptp4l")), reason=f"needs {', '.join(missing('ptp4l'))}")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets, where another user's socket can be reached."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def chronyd(short: Path) -> AsyncIterator[tuple[PrivateNetwork, Path]]:
    """One chronyd serves this machine's wall clock, another is synchronized to it; the second one's socket."""
    (short / "server.conf").write_text(
        "local stratum 1\nallow 127.0.0.0/8\nport 11123\ncmdport 0\n"
        f"bindcmdaddress {short}/s/chronyd.sock\npidfile {short}/server.pid\n"
    )
    socket = short / "c" / "chronyd.sock"
    (short / "client.conf").write_text(
        "server 127.0.0.1 port 11123 minpoll -2 maxpoll -1 iburst\nport 0\n"
        f"bindcmdaddress 127.0.0.1\nbindcmdaddress {socket}\npidfile {short}/client.pid\n"
    )
    with PrivateNetwork(short) as network:
        for name in ("server", "client"):
            network.start(name, "chronyd", "-x", "-d", "-u", "root", "-f", str(short / f"{name}.conf"))
        yield network, socket


async def claims(read: Reader, count: int, every_s: float) -> tuple[list[Claim], set[str]]:
    """The next claims, and the reasons given on the way."""
    found: list[Claim] = []
    reasons: set[str] = set()
    async with asyncio.timeout(LIMIT_S):
        while len(found) < count:
            try:
                claim = await read()
            except (Refused, OSError) as refused:
                reasons.add(str(refused))
            else:
                if claim is not None:
                    found.append(claim)
                    truth = read_wall(HostClock()).wall_minus_raw.widen(SLEWED_NS)
                    assert claim.utc_minus_raw.intersect(truth) is not None, (claim, truth)
            await asyncio.sleep(every_s)
    return found, reasons


@no_chrony
async def test_what_chronyd_claims_is_true(chronyd: tuple[PrivateNetwork, Path], short: Path) -> None:
    _, socket = chronyd
    found, _ = await claims(ChronyReader(str(socket), HostClock(), short, 100, 10), 20, 0.05)
    widths = [claim.utc_minus_raw.width for claim in found]
    assert 0 < min(widths) < 2 * MS, widths
    assert {claim.leap for claim in found} == {0}
    assert not list(short.glob("chronyd.*.sock")), "sockets are left behind"


@no_chrony
async def test_a_chronyd_that_follows_itself_is_refused(short: Path) -> None:
    socket = short / "c" / "chronyd.sock"
    (short / "alone.conf").write_text(
        f"local stratum 1\nport 0\ncmdport 0\nbindcmdaddress {socket}\npidfile {short}/alone.pid\n"
    )
    with PrivateNetwork(short) as network:
        network.start("alone", "chronyd", "-x", "-d", "-u", "root", "-f", str(short / "alone.conf"))
        read = ChronyReader(str(socket), HostClock(), short, 100, 10)
        await refusal(read, "follows its own clock")


async def refusal(read: Reader, says: str) -> None:
    """Asks until the refusal that is expected comes."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                assert await read() is None
            except (Refused, OSError) as refused:
                if says in str(refused):
                    return
            await asyncio.sleep(0.1)


async def status(directory: Path, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """What a daemon says, once it says so."""
    told: dict[str, Any] = {}
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                told = await asyncio.to_thread(get_status, directory / "skewd.sock")
            except NoDaemonError:
                told = {}
            if told and holds(told):
                return told
            await asyncio.sleep(0.1)


def run_skewd(network: PrivateNetwork, directory: Path, more: str = "") -> Path:
    """Starts ``skewd run`` with next to no configuration."""
    (directory / "skewd.toml").write_text(
        f'[node]\nname = "n"\nruntime_dir = "{directory}"\nstate_dir = "{directory}"\n'
        f'[mesh]\nlisten = "off"\n[metrics]\nlisten = "off"\n{more}'
    )
    environment = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH",) if name in os.environ]
    command = (sys.executable, "-m", "skewd", "run", "--config", str(directory / "skewd.toml"))
    return network.start("skewd", "env", *environment, *command)


@no_chrony
async def test_without_configuration_chronyd_is_found(chronyd: tuple[PrivateNetwork, Path], short: Path) -> None:
    """Over UDP, which needs no permission."""
    network, socket = chronyd
    await claims(ChronyReader(str(socket), HostClock(), short, 100, 10), 1, 0.05)
    said = run_skewd(network, short)
    told = await status(short, lambda told: told["status"] == "synchronized")
    assert (told["reference"], told["found"]) == ("utc", "chrony")
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
    assert told["uncertainty_ns"] < 2 * MS
    (source,) = told["sources"]
    assert (source["type"], source["state"], source["configured"]) == ("chrony", "truechimer", False)
    assert "using the one found on this machine" in said.read_text()


PTP = """[global]
time_stamping software
free_running 1
network_transport L2
uds_address {directory}/{name}.uds
logSyncInterval -3
logMinDelayReqInterval -3
logAnnounceInterval -1
{more}
"""


@pytest.fixture
def ptp4l(short: Path) -> Iterator[Callable[[str], Path]]:
    """Starts a grandmaster (with the given lines in its configuration) and a ptp4l that follows it over a cable."""
    with PrivateNetwork(short) as here, PrivateNetwork(short) as there:

        def start(more: str) -> Path:
            here.run("ip", "link", "add", "ptp0", "type", "veth", "peer", "name", "ptp1", "netns", str(there.pid))
            here.run("ip", "link", "set", "ptp0", "up")
            there.run("ip", "link", "set", "ptp1", "up")
            for network, name, port, role in (
                (there, "master", "ptp1", f"priority1 10\n{more}"),
                (here, "slave", "ptp0", "slaveOnly 1"),
            ):
                file = short / f"{name}.cfg"
                file.write_text(PTP.format(directory=short, name=name, more=role))
                network.start(name, "ptp4l", "-m", "-i", port, "-f", str(file))
            return short / "slave.uds"

        yield start


@no_ptp4l
async def test_what_ptp4l_claims_is_true(ptp4l: Callable[[str], Path], short: Path) -> None:
    socket = ptp4l("clockClass 6\nclockAccuracy 0x22")
    read = PtpReader(str(socket), HostClock(), short, 100)
    found, reasons = await claims(read, 20, 0.1)
    assert any("follows no grandmaster" in reason or "can't be reached" in reason for reason in reasons)
    # The first ones know little of how the wall clock is slewed.
    assert all(2 * 250 < claim.utc_minus_raw.width < 3 * MS for claim in found[10:])
    assert len({claim.raw_ns for claim in found}) == len(found)
    joint: Interval | None = found[0].utc_minus_raw.widen(100 * US)
    for claim in found[1:]:
        assert joint is not None
        joint = joint.intersect(claim.utc_minus_raw.widen(100 * US))
    assert joint is not None
    assert not list(short.glob("ptp4l.*.sock")), "sockets are left behind"


@no_ptp4l
async def test_a_grandmaster_that_claims_nothing_is_refused(ptp4l: Callable[[str], Path], short: Path) -> None:
    socket = ptp4l("")
    await refusal(PtpReader(str(socket), HostClock(), short, 100), "does not say how well it knows UTC")
