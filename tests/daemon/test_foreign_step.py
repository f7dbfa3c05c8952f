"""Somebody else steps the wall clock, and the time daemon beside skewd still speaks of the clock of before."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skewd import hostclock
from skewd.check import OK, judge
from skewd.clock import HostClock, WallSample
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from skewd.interval import Interval
from skewd.kernel_clock import KernelClock
from skewd.node import Node
from skewd.sources.claim import Claim, Refused
from skewd.sources.kernel import KernelReader
from skewd.sources.memory import FromBefore, Steps
from skewd.sources.ptp import PtpReader
from skewd.utc import Answer
from tests.sources.test_local_sources import FakePtp, number, serving
from tests.waiting import until

S = 1_000_000_000
MS = 1_000_000
US = 1_000


class SteppedHost(HostClock):
    """This host's clocks, the wall clock stepped by whoever wants to. UTC is what it showed before."""

    step_ns = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + SteppedHost.step_ns


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> SteppedHost:
    """The clock of the node, of which its time daemons speak."""
    monkeypatch.setattr(SteppedHost, "step_ns", 0)
    monkeypatch.setattr("skewd.sources.local.HostClock", SteppedHost)
    return SteppedHost()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


class Chronyd:
    """Measures when it is told to, and says till the next time what it measured then: within 70 us of UTC."""

    def __init__(self, host: SteppedHost) -> None:
        self._host = host
        self.asked = 0
        self.measure()

    def measure(self, wrong_ns: int = 0) -> None:
        self.reference_ns = self._host.wall_ns()
        self.correction_ns = -SteppedHost.step_ns + wrong_ns

    def step(self, by_ns: int) -> None:
        """Its own: it corrects what it remembers."""
        SteppedHost.step_ns += by_ns
        self.reference_ns += by_ns
        self.correction_ns -= by_ns

    def __call__(self, question: bytes) -> list[bytes]:
        self.asked += 1
        (sequence,) = struct.unpack_from("!I", question, 8)
        seconds = self.correction_ns / 1e9
        sign = -1 if seconds < 0 else 1
        big, exponent = abs(seconds), 0
        while big >= 0.5:  # what ``number`` can't write
            big, exponent = big / 2, exponent + 1
        word = number(big) if not big or big < 0.25 or exponent == 0 else (exponent + 1) << 25 | round(big * (1 << 24))
        if sign < 0:
            word = (word & ~0x1FFFFFF) | (-(word & 0x1FFFFFF) & 0x1FFFFFF)
        return [
            struct.pack(
                "!BBBBHHHHHHIIII16sHHHHIII9I",
                *(6, 2, 0, 0, 33, 5, 0, 0, 0, 0, sequence, 0, 0),
                *(0x0A000001, bytes(16), 1, 0, 2, 0, 0, self.reference_ns // S, self.reference_ns % S),
                *(word, 0, 0, 0, 0, 0, number(0.0001), number(0.00002), 0),
            )
        ]


@contextlib.asynccontextmanager
async def beside_chronyd(host: SteppedHost, directory: Path) -> AsyncIterator[tuple[Daemon, Chronyd]]:
    """A daemon that follows it, synchronized."""
    chronyd = Chronyd(host)
    async with serving(chronyd) as (_, address):
        config = Config(
            node=NodeConfig(name="n", runtime_dir=directory, state_dir=directory),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            source=(SourceConfig(type="chrony", address=address, interval=100 * MS),),
        )
        daemon = Daemon(config, host)
        async with daemon.running():
            await until(lambda: daemon.status()["status"] == "synchronized", "chronyd's first word")
            await until(lambda: chronyd.asked > 5, "some more")
            yield daemon, chronyd


def told(daemon: Daemon) -> dict[str, Any]:
    """The status, once it is sure that it is of the clock as it is now; and it holds the truth."""
    status = daemon.status()
    if status["lower_ns"] is not None:
        assert status["lower_ns"] <= -SteppedHost.step_ns <= status["upper_ns"], status
    return status


def codes(status: dict[str, Any]) -> list[str]:
    return [problem["code"] for problem in status["problems"]]


@pytest.mark.parametrize("by_ns", [300 * US, -300 * US, 5 * S, -5 * S, 3600 * S, -3600 * S])
async def test_what_chronyd_remembers_counts_again_when_it_has_measured(
    host: SteppedHost, short: Path, by_ns: int
) -> None:
    async with beside_chronyd(host, short) as (daemon, chronyd):
        era = daemon.status()["era"]
        SteppedHost.step_ns = by_ns
        await until(lambda: daemon.status()["era"] != era, "the step to be seen")
        asked = chronyd.asked
        await until(lambda: told(daemon) and chronyd.asked > asked + 20, "many more questions")
        status = told(daemon)
        assert "foreign-step" in codes(status)
        assert any("chronyd still speaks of the clock of before" in message for message in status["messages"])
        assert status["contradictions"] == 0
        if abs(by_ns) > S:
            verdict = judge(status, warning_ns=MS, critical_ns=3 * MS)
            assert verdict.code != OK, verdict.line
        # It measures: what it says counts again, now or at the second time.
        for _ in range(2):
            chronyd.measure()
            asked = chronyd.asked
            await until(lambda: told(daemon) and chronyd.asked > asked + 5, "some more questions")  # noqa: B023
        status = await until(lambda: (t := told(daemon)) and "foreign-step" not in codes(t) and t, "its word to count")
        assert status["status"] == "synchronized"
        assert status["contradictions"] == 0


async def test_a_step_of_chronyds_own_is_not_foreign(host: SteppedHost, short: Path) -> None:
    async with beside_chronyd(host, short) as (daemon, chronyd):
        SteppedHost.step_ns = 5 * S  # as it was before chronyd was heard
        era = daemon.status()["era"]
        await until(lambda: daemon.status()["era"] != era, "the step to be seen")
        for _ in range(2):
            chronyd.measure()
            asked = chronyd.asked
            await until(lambda: told(daemon) and chronyd.asked > asked + 5, "some questions")  # noqa: B023
        assert "foreign-step" not in codes(told(daemon))
        era, asked = daemon.status()["era"], chronyd.asked
        chronyd.measure()
        chronyd.step(-5 * S)
        await until(lambda: daemon.status()["era"] != era and chronyd.asked > asked + 5, "the step to be seen")
        status = told(daemon)
        assert "foreign-step" not in codes(status)
        assert (status["status"], status["contradictions"]) == ("synchronized", 0)


async def test_a_mixture_of_before_and_after_is_doubted(host: SteppedHost, short: Path) -> None:
    """chronyd's first measurement after a step moves its estimate half of the way: nobody is told that this is UTC."""
    async with beside_chronyd(host, short) as (daemon, chronyd):
        era = daemon.status()["era"]
        SteppedHost.step_ns = 20 * MS
        await until(lambda: daemon.status()["era"] != era, "the step to be seen")
        asked = chronyd.asked
        await until(lambda: told(daemon) and chronyd.asked > asked + 3, "some questions")
        for wrong in (10, 5, 2):
            chronyd.measure(wrong * MS)
            asked = chronyd.asked
            await until(lambda: told(daemon) and chronyd.asked > asked + 5, "some questions")  # noqa: B023
            assert "foreign-step" in codes(told(daemon))
        for _ in range(2):
            chronyd.measure()
            asked = chronyd.asked
            await until(lambda: told(daemon) and chronyd.asked > asked + 5, "some questions")  # noqa: B023
        status = told(daemon)
        assert "foreign-step" not in codes(status)
        assert status["status"] == "synchronized"


# -- the kernel, ptp4l, and what was kept ------------------------------------------------------------------------


async def test_the_kernels_figure_counts_again_once_it_is_written_anew(
    host: SteppedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = KernelClock(0, 0x2000, 0, 10_000, 1_501, 10, 37)
    monkeypatch.setattr(hostclock.KernelReader, "read", lambda self: found)
    read = KernelReader(host, 100)
    assert isinstance(await read(), Claim)
    SteppedHost.step_ns = 5 * S
    for error_us in (1_501, 2_001, 2_501):  # as nobody tells the kernel of it, but somebody set the clock
        found = replace(found, max_error_us=error_us)
        with pytest.raises(FromBefore, match="not known to be newer"):
            await read()
    found = replace(found, max_error_us=701)
    assert isinstance(await read(), Claim)
    # As a kernel does: at a step it declares its clock unsynchronized.
    SteppedHost.step_ns = 0
    found = replace(found, state=5, status=0x2040, max_error_us=16_000_000)
    for _ in range(3):
        with pytest.raises(Refused, match="not synchronized"):
            await read()
    found = replace(found, state=0, status=0x2000, max_error_us=1_301)
    assert isinstance(await read(), Claim)


async def test_ptp4ls_measurement_of_before_a_step_is_not_used(host: SteppedHost, short: Path) -> None:
    fake = FakePtp()

    def answer(question: bytes) -> list[bytes]:
        if not frozen:
            fake.ingress_ns = host.wall_ns() - 5 * MS
        kept, fake.ingress_ns = fake.ingress_ns, -abs(fake.ingress_ns)
        try:
            return fake(question)
        finally:
            fake.ingress_ns = kept

    frozen = False
    async with serving(answer, short / "ptp4l"):
        steps = Steps(_Sampled(host))
        read = PtpReader(str(short / "ptp4l"), host, short, 100, steps=steps)
        claim = None
        while claim is None:
            claim = await read()
        frozen = True
        SteppedHost.step_ns = -20 * MS  # its last Sync seems to be of now
        for _ in range(5):
            with pytest.raises(FromBefore, match="was stepped"):
                await read()
        frozen = False
        claim = None
        while claim is None:
            with contextlib.suppress(FromBefore):
                claim = await read()
        truth = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        # It says that its clock, stepped by -20 ms, is 2 ms ahead of UTC.
        assert claim.utc_minus_raw.widen(MS).contains(truth - 22 * MS)
    read.close()


class _Sampled:
    """The wall clock of the test against raw."""

    def __init__(self, host: SteppedHost) -> None:
        self._host = host

    def sample(self) -> WallSample:
        before, wall, after = self._host.raw_ns(), self._host.wall_ns(), self._host.raw_ns()
        return WallSample(after, Interval(wall - after, wall - before))

    def rate_ppb(self) -> int:
        return 0


def test_what_was_kept_over_a_restart_and_chronyd_contradict_each_other() -> None:
    """The wall clock was stepped while no daemon ran: nobody knows who is right until chronyd has measured again."""
    utc = 1_790_000_000 * S
    config = Config(node=NodeConfig(name="n"), source=(SourceConfig(type="chrony"),))

    def node(at_ns: int) -> Node:
        first = WallSample(at_ns, Interval(utc - 200, utc + 200))
        return Node(config, boot=bytes(16), first=first, virtual=False)

    def claims(there: Node, at_ns: int, utc_minus_raw: int, reference_ns: int) -> None:
        ends = [(at_ns, at_ns + utc_minus_raw + 70 * US)], [(at_ns + utc_minus_raw - 70 * US, at_ns)]
        there.on_utc("chrony", *ends, at_ns, 0, Answer(None, 50_000, 2, reference_ns))

    before = node(0)
    for second in range(1, 20):
        claims(before, second * S, utc, utc)
    kept = before.keep(hostclock.raw_facts(hostclock.MachineWatch()), 20 * S)
    after = node(21 * S)
    after.resume(kept)
    assert after.status(21 * S)["lower_ns"] is not None
    # Of the clock of before, which was 5 s behind the one of now.
    for second in range(22, 30):
        claims(after, second * S, utc + 5 * S, utc)
        told = after.status(second * S)
        assert (told["status"], told["lower_ns"]) == ("unsynchronized", None)
    claims(after, 31 * S, utc, utc + 31 * S)
    assert after.status(31 * S)["lower_ns"] is None, "it may as well be this one that is wrong"
    claims(after, 47 * S, utc, utc + 47 * S)
    told = after.status(47 * S)
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
