"""A member with a valid key says what no clock shows: it is refused, and no daemon ends; nor by a fault of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from skewd import daemon as running
from skewd import membership
from skewd.api_client import NoDaemonError, SlowDaemonError, get_now, get_status
from skewd.bounds.carry import Claim
from skewd.bounds.history import Knot, Status
from skewd.bounds.pair import PairBound
from skewd.config import ClockBoundConfig, DisciplineConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.election import Election, Timescale
from skewd.interval import Interval
from skewd.knots import Knots
from skewd.links.protocol import Self
from skewd.node import Node
from skewd.publish import prometheus
from skewd.publish.for_clockbound import ClockBoundPublisher
from skewd.publish.segment import NAME, SegmentReader
from skewd.records import Record, RecordError
from skewd.steering import Steering
from tests.daemon.test_daemon import MS, Bench, mesh
from tests.mesh.hostile_values import I64_MAX, I64_MIN, S, forced
from tests.mesh.member_fuzz import EVIL, PARTS, Hostile, Outside, inside
from tests.sources.test_ntp_wire import answer, stamp
from tests.waiting import LIMIT_S, until

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


@pytest.fixture
async def bench(short: Path) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        yield Bench(short, stack)


# -- what a member may not say -----------------------------------------------------------------------------------------


class Saying(Hostile):
    """Otherwise honest: one thing, and always that."""

    def __init__(self, choose: Any, **said: Any) -> None:
        self.always = said
        super().__init__(choose)

    def new_part(self) -> None:
        self.rate, self.raw_shift_ns = 0.0, self.always.get("shift", 0)
        self.wall = self.limits = self.name = None
        self.records = "own" if "record" in self.always else "none"

    def said(self, honest: Self) -> Self:
        return forced(super().said(honest), **self.always.get("message", {}))

    def record(self, peer: Any) -> Record:
        base = super().record(peer)
        return forced(base, utc=None, timescale=None, edges=(), **self.always["record"])


BEYOND = {
    "a wall clock at the least number": {"message": {"wall_minus_raw": Interval(I64_MIN, I64_MIN)}},
    "a wall clock at the greatest": {"message": {"wall_minus_raw": Interval(I64_MAX - 200, I64_MAX)}},
    "a wall clock that may be anything": {"message": {"wall_minus_raw": Interval(I64_MIN, I64_MAX)}},
    "a reading from another age": {"message": {"wall_raw_at_ns": I64_MIN, "wall_slew_ppb": 10**9}},
    "stamps at the least number": {"shift": I64_MIN + 10**17},
    "stamps at the greatest": {"shift": I64_MAX - 10**17},
}


@pytest.mark.parametrize("said", BEYOND.values(), ids=BEYOND.keys())
def test_a_reference_that_says_what_no_clock_shows_ends_nobody(short: Path, said: dict[str, Any]) -> None:
    world = Outside(short, 1, "reference")
    world.evil.hostile = None
    socket_path = short / "run" / "skewd.sock"

    def told() -> dict[str, Any] | None:
        with contextlib.suppress(NoDaemonError, SlowDaemonError):
            return get_status(socket_path)
        return None

    for start in range(2):
        with world.running() as process:
            # Honest until its clock is followed: then it lies.
            world.evil.hostile = None if start == 0 else Saying(world.choose, **said)
            limit = _Patience()
            while start == 0 and ((status := told()) is None or status["offset_ns"] is None):
                assert process.poll() is None, (short / "log").read_text()
                world.speak_now()
                limit.check()
            world.evil.hostile = Saying(world.choose, **said)
            while (status := told()) is None or _refused(status) < 20:
                assert process.poll() is None, (short / "log").read_text()
                world.speak_now()
                limit.check()
            assert "malformed" in [one["code"] for one in status["problems"]]
            assert status["problems"] == [one for one in status["problems"] if not one["code"].endswith("-fault")]
            assert get_now(socket_path)["reference"] in (None, f"node:{EVIL}")
    assert "Traceback" not in (short / "log").read_text()


def _refused(status: dict[str, Any]) -> int:
    return int(status["links"][0]["counters"]["malformed"])


class _Patience:
    def __init__(self) -> None:
        self._end = time.monotonic() + LIMIT_S

    def check(self) -> None:
        assert time.monotonic() < self._end, f"not within {LIMIT_S:g} s"


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_ns": (1 << 60) + 1},
        {"wall_minus_raw": Interval(I64_MIN, I64_MIN)},
        {"utc": Claim(Interval(I64_MAX - 5, I64_MAX), Interval(0, 0), 1, 1)},
        {"timescale": Timescale(1, "x", "x", bytes(16), 1, I64_MIN)},
        {"timescale": Timescale(1, "x", "x", bytes(16), 1, I64_MAX)},
    ],
    ids=str,
)
def test_no_record_carries_it(changes: dict[str, Any]) -> None:
    honest: dict[str, Any] = {
        "owner": "x",
        "public_key": bytes(32),
        "boot": bytes(16),
        "raw_era": 1,
        "era": 1,
        "sequence": 1,
        "raw_ns": 0,
        "wall_minus_raw": Interval(0, 200),
        "wall_slew_ppb": 0,
        "max_drift_ppm": 100,
        "max_wander_ppb_per_s": 10,
    }
    Record(**honest)
    with pytest.raises(RecordError, match="between"):
        Record(**(honest | changes))


@pytest.mark.parametrize("name", ["utc", "auto"])
def test_no_member_is_called_as_a_timescale(name: str) -> None:
    with pytest.raises(ValueError, match="timescale"):
        Self(name, bytes(16), 1, 1, Interval(0, 1), 0, 0, 0, 0)


@pytest.mark.parametrize("part", PARTS)
async def test_whatever_it_says_bounds_hold_and_are_published(short: Path, part: str) -> None:
    found = await inside(short, 7, part, seconds=LIMIT_S, messages=2_500)
    assert found["messages"] >= 2_500
    assert found["restarts"] >= 1
    assert found["checked"] > 10
    assert found["counters"]["malformed"] > 20
    assert found["counters"]["accepted"] > 20


# -- a fault of skewd's own --------------------------------------------------------------------------------------------


class Bug(Exception):
    """What a part that nobody foresaw raises."""


def broken(*_: object, **__: object) -> NoReturn:
    raise Bug


def problem(daemon: Daemon, code: str, subject: str) -> dict[str, Any] | None:
    found = [one for one in daemon.status()["problems"] if (one["code"], one["subject"]) == (code, subject)]
    return found[0] if found else None


class TimeServer(asyncio.DatagramProtocol):
    """Answers as an NTP server does."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        now = stamp(time.time_ns())
        self._transport.sendto(answer(origin=data[40:48], receive=now, transmit=now), addr)


async def pair_of(bench: Bench) -> tuple[Daemon, SegmentReader]:
    """B follows A; B's segment."""
    await bench.start("a", mesh=mesh("a"))
    b = await bench.start("b", offset_ns=5 * MS, mesh=mesh("a", bench.addresses["a"]["mesh"]))
    reader = SegmentReader(bench.root / "b" / NAME)
    await until(lambda: (knot := reader.latest) is not None and knot.bound is not None, "a bound")
    return b, reader


def newer(reader: SegmentReader, than_wall_ns: int) -> Knot | None:
    """A later knot with a bound, once there is one."""
    knot = reader.latest
    return knot if knot is not None and knot.bound is not None and knot.wall_ns > than_wall_ns else None


# Where logs are not set up, a traceback shows lines of this file; this is no line of those functions.
SAID_OF_TURN = re.compile(r"internal_fault\s.*turn")

FAULTS = {
    "compose": (membership, "compose"),
    "election": (Election, "decide"),
    "turn": (membership.Membership, "_publish"),
    "records": (membership.Membership, "heard"),
    "attach": (membership.Membership, "attach"),
}


@pytest.mark.parametrize("where", FAULTS)
async def test_a_fault_of_mesh_code_leaves_first_hand_bounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    b, reader = await pair_of(bench)
    monkeypatch.setattr(*FAULTS[where], broken)
    b.node.forget_peer("a")  # who comes or goes is a reason to compose at once
    told = await until(lambda: problem(b, "mesh-fault", where), "the fault to be said")
    assert "Bug" in told["text"]
    assert "report it" in told["remedy"]
    for _ in range(4):  # knots go on, with a bound that holds
        last = reader.latest
        assert last is not None
        knot = await until(partial(newer, reader, last.wall_ns), "a knot with a bound")
        assert knot.bound.lo <= -5 * MS <= knot.bound.hi
    status = b.status()
    assert status["status"] == "synchronized"
    assert status["faults"]["mesh"] >= 1
    text = prometheus.exposition(prometheus.registry(b.told, {}, lambda: 0.0)).decode()
    assert 'skewd_faults_total{part="mesh"}' in text
    assert not b.ticker.done()


async def test_a_peer_whose_bound_can_not_be_had_begins_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    b, _ = await pair_of(bench)
    spoilt = b.node.peers["a"].pair
    offset = PairBound.offset

    def now_and_then(pair: PairBound, at_local_ns: int) -> Interval | None:
        if pair is spoilt:
            raise Bug
        return offset(pair, at_local_ns)

    monkeypatch.setattr(PairBound, "offset", now_and_then)
    await until(lambda: b.node.peers.get("a") is not None and b.node.peers["a"].pair is not spoilt, "a new filter")
    await until(lambda: b.status()["offset_ns"] is not None, "a bound")
    assert not b.ticker.done()


@pytest.mark.parametrize(("part", "name", "where"), [(Knots, "next", "knot"), (running, "disturbance", "tick")])
async def test_what_can_not_be_published_is_published_as_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, part: object, name: str, where: str
) -> None:
    b, reader = await pair_of(bench)
    monkeypatch.setattr(part, name, broken)
    await until(lambda: (knot := reader.latest) is not None and knot.status is Status.UNSYNCHRONIZED, "unsynchronized")
    assert problem(b, "publish-fault", where) is not None
    monkeypatch.undo()
    await until(lambda: (knot := reader.latest) is not None and knot.bound is not None, "a bound again")
    assert not b.ticker.done()


async def test_a_fault_in_what_a_source_says_leaves_the_source_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "on_utc", broken)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        TimeServer, local_addr=("127.0.0.1", 0)
    )
    try:
        host, port = transport.get_extra_info("sockname")
        source = SourceConfig(type="ntp", name="ntp", address=f"{host}:{port}", interval=S)
        daemon = await bench.start("a", mesh=mesh("auto"), source=(source,))
        await until(lambda: problem(daemon, "source-fault", "ntp"), "the fault to be said")
        assert daemon.status()["faults"]["source"] >= 1
        assert daemon.status()["sources"][0]["lower_ns"] is None
        assert not daemon.ticker.done()
    finally:
        transport.close()


async def test_a_fault_of_the_steering_ends_it_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steering, "look", broken)
    await bench.start("a", mesh=mesh("a"))
    b = await bench.start("b", mesh=mesh("a", bench.addresses["a"]["mesh"]), discipline=DisciplineConfig(mode="slew"))
    await until(lambda: b.status()["offset_ns"] is not None, "a bound")
    assert problem(b, "internal-fault", "look") is not None
    assert b.status()["discipline"]["state"] == "stopped"
    assert not b.ticker.done()


async def test_a_fault_of_the_clockbound_publisher_leaves_knots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClockBoundPublisher, "publish", broken)
    await bench.start("a", mesh=mesh("a"))
    clients = ClockBoundConfig(enabled=True, directory=bench.root / "cb")
    b = await bench.start("b", mesh=mesh("a", bench.addresses["a"]["mesh"]), clockbound=clients)
    reader = SegmentReader(bench.root / "b" / NAME)
    await until(lambda: (knot := reader.latest) is not None and knot.bound is not None, "a bound")
    assert b.status()["faults"]["clockbound"] >= 1
    codes = {one["code"] for one in b.status()["problems"]}
    assert "internal-fault" in codes
    assert codes & {"clockbound-unknown", "clockbound-off"}
    assert not b.ticker.done()


async def test_a_fault_that_repeats_is_said_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = await bench.start("a", mesh=mesh("a"))
    capsys.readouterr()
    for _ in range(100):
        with daemon._faults.guard("mesh", "turn"):
            raise Bug
    said = capsys.readouterr()
    assert len(SAID_OF_TURN.findall(said.out + said.err)) == 1
    assert daemon.status()["faults"]["mesh"] == 100
