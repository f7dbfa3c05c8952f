"""chronyd, ptp4l and the kernel played by the test: the shells, the loop around them, and the whole daemon."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from skewd import hostclock
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.interval import Interval
from skewd.kernel_clock import KernelClock
from skewd.sources import find
from skewd.sources.chrony import ChronyReader
from skewd.sources.claim import Claim, Refused
from skewd.sources.kernel import KernelReader
from skewd.sources.local import LocalSource
from skewd.sources.ntp import State
from skewd.sources.phc import PhcReader, device_of
from skewd.sources.ptp import PtpReader
from tests.sources.at_once import wall_minus_raw
from tests.waiting import until

S = 1_000_000_000
MS = 1_000_000
US = 1_000
UNSYNCHRONIZED = KernelClock(5, 0x40, 0, 10_000, 1_501, 10, 37)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


def number(seconds: float) -> int:
    """chronyd's way to write a number of seconds."""
    exponent = 0
    while seconds and abs(seconds) < 0.25:
        seconds, exponent = seconds * 2, exponent - 1
    return ((exponent + 1) & 0x7F) << 25 | round(seconds * (1 << 24)) & 0x1FFFFFF


class Fake(asyncio.DatagramProtocol):
    """Answers each datagram with those that ``answer`` gives."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self.answer = answer
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        for datagram in self.answer(data):
            self.transport.sendto(datagram, addr)


def tracking(question: bytes, *, correction_s: float = 0.0, leap: int = 0) -> bytes:
    """A report as chronyd gives it: half a millisecond of root delay, 100 us of dispersion."""
    (sequence,) = struct.unpack_from("!I", question, 8)
    now = time.time_ns()
    return struct.pack(
        "!BBBBHHHHHHIIII16sHHHHIII9I",
        *(6, 2, 0, 0, 33, 5, 0, 0, 0, 0, sequence, 0, 0),
        *(0x0A000001, bytes(16), 1, 0, 2, leap, 0, now // S, now % S),
        *(number(correction_s), 0, 0, 0, 0, 0, number(0.0005), number(0.0001), 0),
    )


@contextlib.asynccontextmanager
async def serving(answer: Callable[[bytes], list[bytes]], path: Path | None = None) -> AsyncIterator[tuple[Fake, str]]:
    """A daemon that answers so, on loopback or on a Unix socket; its address."""
    loop = asyncio.get_running_loop()
    if path is None:
        transport, fake = await loop.create_datagram_endpoint(lambda: Fake(answer), local_addr=("127.0.0.1", 0))
        host, port = transport.get_extra_info("sockname")
        address = f"{host}:{port}"
    else:
        transport, fake = await loop.create_datagram_endpoint(
            lambda: Fake(answer), local_addr=str(path), family=socket.AF_UNIX
        )
        address = str(path)
    try:
        yield fake, address
    finally:
        transport.close()


def truth(clock: Any) -> int:
    """UTC - raw, the host's wall clock being UTC."""
    return wall_minus_raw(clock.raw_ns)


@pytest.mark.parametrize("unix", [False, True])
async def test_chronyd_over_udp_and_over_its_socket(short: Path, unix: bool) -> None:
    def answer(question: bytes) -> list[bytes]:
        assert len(question) == 104
        other = tracking(question[:8] + bytes(4) + question[12:], correction_s=9)
        return [b"", b"short", other, tracking(question, correction_s=0.25)]

    async with serving(answer, short / "chronyd.sock" if unix else None) as (_, address):
        read = ChronyReader(address, HostClock(), short, 100, 10)
        claims = [await read() for _ in range(20)]
    assert all(claim.utc_minus_raw.contains(truth(HostClock()) + S // 4) for claim in claims)
    # What is read on a busy machine is wider.
    assert 700 * US <= min(claim.utc_minus_raw.width for claim in claims) <= 900 * US


async def test_chronyd_that_is_not_there_or_says_nothing(short: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match=rf"127.0.0.1:{port}: Connection refused"):
        await ChronyReader(f"127.0.0.1:{port}", HostClock(), short, 100, 10)()
    with pytest.raises(OSError, match="does chronyd run"):
        await ChronyReader(str(short / "none"), HostClock(), short, 100, 10)()
    async with serving(lambda question: [b"no"] * 3) as (_, address):
        with pytest.raises(OSError, match="no answer within 1 s"):
            await ChronyReader(address, HostClock(), short, 100, 10)()
    assert not list(short.glob("*.sock"))


class Scripted:
    """A reader that gives what it is told to."""

    def __init__(self, *results: Claim | Exception | None) -> None:
        self.results = list(results)
        self.closed = False

    async def __call__(self) -> Claim | None:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self.closed = True


async def test_failures_make_a_source_unreachable_and_a_claim_brings_it_back() -> None:
    claim = Claim(5, Interval(1, 2))
    seen: list[Claim] = []
    reader = Scripted(Refused("not yet"), OSError("gone"), RuntimeError("ours"), claim)
    source = LocalSource("x", reader, seen.append, 10 * MS)
    before = source.state.value
    await until(lambda: source.state is State.UNREACHABLE, "three failures")
    assert before == "pending"
    assert "skewd's own" in str(source.reason)
    await until(lambda: seen, "a claim")
    await until(lambda: source.state is State.REACHABLE, "its return")
    assert source.reason is None
    await source.close()
    assert reader.closed


async def test_a_virtual_node_is_told_its_own_offset(short: Path) -> None:
    """chronyd speaks of the host's wall clock; the node's is 5 ms ahead of it, with another raw clock."""
    page = VirtualPage.create(None, offset_ns=5 * MS, epoch_ns=10**15)
    async with serving(lambda question: [tracking(question)]) as (_, address):
        config = Config(
            node=NodeConfig(name="n", runtime_dir=short, state_dir=short),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            source=(SourceConfig(type="chrony", address=address, interval=100 * MS),),
        )
        daemon = Daemon(config, VirtualClock(page))
        async with daemon.running():
            told = await until(
                lambda: (t := daemon.status())["status"] == "synchronized" and t["uncertainty_ns"] < MS and t, "it"
            )
    assert told["lower_ns"] <= -5 * MS <= told["upper_ns"]
    (source,) = told["sources"]
    assert (source["state"], source["configured"], source["leap"]) == ("truechimer", True, "none")
    assert told["messages"][0].startswith("this is a VIRTUAL node")


async def test_what_is_found_is_what_makes_a_claim(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd.sources.chrony.USUAL", (str(short / "chronyd.sock"),))
    monkeypatch.setattr("skewd.sources.ptp.USUAL", (str(short / "ptp4l"),))
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: UNSYNCHRONIZED)
    found = await find.find(HostClock(), short, 100, 10)
    assert found.kind is None
    (refused,) = found.refusals  # the others are not here
    assert refused.startswith("kernel: the kernel says that its clock is not synchronized")
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: replace(UNSYNCHRONIZED, state=0, status=0x2000))
    assert (await find.find(HostClock(), short, 100, 10)).kind == "kernel"
    async with serving(lambda question: [tracking(question, leap=3)], short / "chronyd.sock"):
        assert (await find.find(HostClock(), short, 100, 10)).kind == "kernel"
    (short / "chronyd.sock").unlink(missing_ok=True)
    async with serving(lambda question: [tracking(question)], short / "chronyd.sock"):
        assert (await find.find(HostClock(), short, 100, 10)).kind == "chrony"


async def test_the_kernel_is_read_and_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = hostclock.KernelReader()
    before = reader.read()
    if before is None:
        pytest.skip("adjtimex is refused here")
    with contextlib.suppress(Refused):  # this machine's own: whatever it is
        await KernelReader(HostClock(), 100)()
    now = reader.read()
    assert now is not None
    assert (now.frequency, now.tick_us, now.status & ~0xFF00) == (
        before.frequency,
        before.tick_us,
        before.status & ~0xFF00,
    )
    told = replace(UNSYNCHRONIZED, state=1, status=0x10)
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: told)
    claims = [await KernelReader(HostClock(), 100)() for _ in range(20)]
    assert all(claim.utc_minus_raw.contains(truth(HostClock())) for claim in claims)
    assert (claims[0].leap, min(claim.utc_minus_raw.width for claim in claims) // (100 * US)) == (1, 40)
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: None)
    with pytest.raises(Refused, match=r"shipped skewd\.service"):
        await KernelReader(HostClock(), 100)()


class FakePtp:
    """A ptp4l with software stamps, whose Syncs come as often as it is asked."""

    def __init__(self) -> None:
        self.offset_ns, self.ingress_ns, self.present, self.stamping = 2_000_000, 0, 1, 0

    def __call__(self, question: bytes) -> list[bytes]:
        (subject,) = struct.unpack_from("!H", question, 52)
        self.ingress_ns = self.ingress_ns if self.ingress_ns < 0 else time.time_ns() - 5_000_000
        sets = {
            0xC000: struct.pack(
                "!qqiiHHQHi8s", self.offset_ns, abs(self.ingress_ns), 0, 0, 0, 0, 0, 0, self.present, b""
            ),
            0x2001: struct.pack("!Hqq", 1, 0, 20_000 << 16),
            0x2002: struct.pack("!10sBBHIBBBHB8s", b"", 0, 0, 0, 0, 1, 6, 0x21, 0, 0, b""),
            0x2003: struct.pack("!hBB", 37, 0, 0xA0),
            0xC004: struct.pack("!10sBBB", b"", 9, self.stamping, 4) + b"eth0",
        }
        body = sets[subject]
        tlv = struct.pack("!HHH", 1, len(body) + 2, subject) + body
        # An answer to somebody else's question comes first.
        return [question[:30] + b"\xff\xff" + question[32:48] + tlv, question[:48] + tlv]


async def test_ptp4l_over_its_socket(short: Path) -> None:
    fake = FakePtp()
    async with serving(fake, short / "ptp4l"):
        read = PtpReader(str(short / "ptp4l"), HostClock(), short, 100)
        assert [await read() for _ in range(3)] == [None] * 3
        claim = await read()
        assert claim is not None
        assert claim.utc_minus_raw.contains(truth(HostClock()) - 2 * MS)
        assert 40 * US <= claim.utc_minus_raw.width < 200 * US
        fake.ingress_ns = -fake.ingress_ns  # no Sync any more
        assert await read() is None
        fake.present = 0
        with pytest.raises(Refused, match="follows no grandmaster"):
            await read()
        fake.present, fake.ingress_ns = 1, -1
        with pytest.raises(Refused, match="old, or of another clock"):
            await read()
        fake.stamping = 1
        with pytest.raises(Refused, match="tells no TAI"):
            await read()
    with pytest.raises(OSError, match="ptp4l does not answer"):
        await read()
    read.close()


def test_the_hardware_clock_of_an_interface(tmp_path: Path) -> None:
    (tmp_path / "eth0" / "device" / "ptp" / "ptp3").mkdir(parents=True)
    assert device_of("eth0", tmp_path) == "/dev/ptp3"
    for name in ("eth1", "..", "../eth0", ""):
        with pytest.raises(Refused):
            device_of(name, tmp_path)


async def test_a_hardware_clock_must_declare_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without such a device: the wall clock stands in for it."""
    device = tmp_path / "ptp0"
    device.touch()
    monkeypatch.setattr("skewd.sources.phc.Phc.wall_ns", lambda self: time.time_ns())
    read = PhcReader(str(device), HostClock(), tmp_path / "sys")
    with pytest.raises(Refused, match="not how wrong that is"):
        await read()
    bound = tmp_path / "sys" / "ptp0" / "device" / "phc_error_bound"
    bound.parent.mkdir(parents=True)
    bound.write_text("12000\n")
    claim = await read()
    assert claim.utc_minus_raw.contains(truth(HostClock()))
    bound.write_text("0\n")
    with pytest.raises(Refused, match="not synchronized"):
        await read()
    read.close()


async def test_a_source_that_is_wrong_is_outvoted(short: Path) -> None:
    page = VirtualPage.create(None)
    async with contextlib.AsyncExitStack() as stack:
        sources = []
        for name, wrong_s in (("a", 0.0), ("b", 0.0), ("c", 0.75)):
            answer = lambda question, wrong_s=wrong_s: [tracking(question, correction_s=wrong_s)]  # noqa: E731
            _, address = await stack.enter_async_context(serving(answer))
            sources.append(SourceConfig(type="chrony", name=name, address=address, interval=100 * MS))
        config = Config(
            node=NodeConfig(name="n", runtime_dir=short, state_dir=short),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            source=tuple(sources),
        )
        daemon = Daemon(config, VirtualClock(page))
        async with daemon.running():
            told = await until(
                lambda: (t := daemon.status()) and all(s["age_s"] is not None for s in t["sources"]) and t, "answers"
            )
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
    assert [source["state"] for source in told["sources"]] == ["truechimer", "truechimer", "falseticker"]
    assert "source c is falseticker" in told["messages"]
