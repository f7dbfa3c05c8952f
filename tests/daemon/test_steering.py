"""Steering in a simulated world: it converges, whatever is told holds at every tick, and any other hand ends it."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skewd import discipline, steering
from skewd.config import SourceConfig
from skewd.kernel_clock import Adjuster, frequency_of
from skewd.node import Node
from skewd.reader import reference_time
from skewd.state_file import StateFile
from skewd.steering import NotRestoredError, Steering, restore
from skewd.time_daemons import TimeDaemon
from tests.daemon.steering_lab import ANNOUNCE_NS, Lab
from tests.shares import first
from tests.simulation.world import SECOND, Wire

MS, US = 1_000_000, 1_000
NEAR = Wire(minimum_us=15, jitter_us=10)


def steered(tmp_path: Path, **more: Any) -> Lab:
    """A lab whose clock is led to the reference, and kept there."""
    usual: dict[str, Any] = {"offset_ns": 3 * MS, "drift_ppm": 20.0, "wire": NEAR}
    lab = Lab(tmp_path, **(usual | more))
    while not lab.kernel.told:
        assert lab.true_ns < 100 * SECOND
        lab.run(1)
    lab.run(5)
    assert lab.told()["state"] == "steering"
    return lab


@pytest.mark.parametrize(
    ("offset_ms", "drift_ppm", "wire"),
    first(1, [(-20, -50.0, NEAR), (20, 50.0, NEAR), (20, -50.0, Wire()), (-20, 50.0, Wire())]),
)
def test_it_converges_and_every_bound_holds_meanwhile(
    tmp_path: Path, offset_ms: int, drift_ppm: float, wire: Wire
) -> None:
    lab = Lab(tmp_path, offset_ns=offset_ms * MS, drift_ppm=drift_ppm, wire=wire)
    lab.run(600)
    assert lab.checks > 60_000
    bound = lab.node.reference_estimate(lab.here.oscillator.raw(lab.true_ns))
    assert bound is not None
    # What is left is what the bound can't tell, and little more.
    assert max(abs(error) for error in lab.errors_ns[-2400:]) <= bound.bound.width + 50 * US
    # Once the rate is known, it only gets nearer, and is never led past the reference by more than the bound tells.
    toward = [error if offset_ms > 0 else -error for error in lab.errors_ns]
    led = toward[600:]
    assert all(later <= earlier for earlier, later in itertools.pairwise(led) if earlier > 500 * US)
    assert min(led) >= -bound.bound.width - 50 * US
    assert all(abs(frequency) <= frequency_of(discipline.MAX_PPB) for frequency in lab.kernel.told)
    assert (lab.kernel.status, lab.kernel.tick_us, lab.node.wall.era) == (0x40, 10_000, 1)
    told = lab.told()
    assert abs(told["learned_ppb"] + drift_ppm * 1000) < 3_000
    assert told["limit_ppb"] <= abs(told["learned_ppb"]) + 2 * discipline.KEEP_PPB  # what peers must allow for


@pytest.mark.parametrize(
    ("wire", "seed"),
    first(
        1,
        itertools.product((NEAR, Wire(jitter="heavy", jitter_us=200), Wire(minimum_us=0, jitter="none")), range(3)),
    ),
)
def test_bounds_hold_while_both_oscillators_wander_as_they_may(tmp_path: Path, wire: Wire, seed: int) -> None:
    lab = Lab(tmp_path, offset_ns=5 * MS, style="bang", wire=wire, seed=seed)
    lab.run(400)
    assert lab.told()["state"] == "steering"
    assert len(lab.kernel.told) > 20
    assert abs(lab.errors_ns[-1]) < 3 * MS


def test_nothing_is_corrected_that_the_bound_cannot_tell(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offset_ns=40 * US)  # the bound is 200 us wide
    lab.run(200)
    assert lab.told()["state"] == "steering"
    assert lab.kernel.told == []
    assert not lab.file.path.exists()


@pytest.mark.parametrize("broken", ["own bounds", "peers"])
def test_this_world_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Bounds that are not told of the rate beforehand are wrong, here and at the peer, and that is seen."""
    lab = Lab(tmp_path, offset_ns=20 * MS, wire=Wire(minimum_us=0, jitter="none"))
    if broken == "own bounds":
        monkeypatch.setattr(Node, "will_steer", lambda self, rate_ppb: None)
        monkeypatch.setattr(Node, "tightened", lambda self: [])  # nor repaired at the next tick
    else:
        monkeypatch.setattr(Node, "steer_limit_ppb", property(lambda self: 0, lambda self, limit: None), raising=False)
    with pytest.raises(AssertionError):
        lab.run(60)


HANDS: list[tuple[dict[str, int], str, bool]] = [
    ({"frequency": frequency_of(-77_000)}, "frequency", False),
    ({"tick_us": 10_001}, "tick", True),
    ({"status": 0x01}, "status bits", True),
    ({"pending": 5_000}, "began a correction", True),
    ({"max_error_us": 1_000}, "maxerror", True),
]


@pytest.mark.parametrize(("hand", "says", "restored"), HANDS, ids=[says for _, says, _ in HANDS])
def test_another_hand_ends_it_at_once(tmp_path: Path, hand: dict[str, int], says: str, restored: bool) -> None:
    lab = steered(tmp_path, frequency=frequency_of(7_000))
    before = len(lab.kernel.told)
    lab.kernel.hand(**hand)
    lab.run(0.05)
    told = lab.told()
    assert (told["state"], told["limit_ppb"]) == ("stopped", 0)
    assert says in told["reason"]
    (problem,) = lab.steering.problems()
    assert problem.code == "discipline-stopped"
    assert "restart skewd" in problem.line
    assert any(says in line for line in lab.log.lines)
    lab.run(60)  # and every bound holds
    # What is there is ours, and undone; or another's, and left alone.
    assert lab.kernel.told[before:] == ([frequency_of(7_000)] if restored else [])
    assert lab.kernel.frequency == hand.get("frequency", frequency_of(7_000))
    assert not lab.file.path.exists()


@pytest.mark.parametrize("by_ns", first(1, [MS, -40 * MS, 3600 * SECOND]))
def test_a_clock_that_was_set_is_not_steered_back(tmp_path: Path, by_ns: int) -> None:
    lab = steered(tmp_path)
    lab.set_by_hand(by_ns)
    lab.run(30)
    assert "the wall clock was set by another hand" in lab.told()["reason"]
    assert lab.kernel.frequency == 0
    assert abs(lab.errors_ns[-1] + by_ns) < 4 * MS


@pytest.mark.long
def test_a_silent_reference_leaves_the_learned_rate(tmp_path: Path) -> None:
    lab = steered(tmp_path)
    lab.run(300)
    before = abs(lab.errors_ns[-1])
    lab.linked = False
    lab.run(120)
    told = lab.told()
    assert told["state"] == "holdover"
    assert told["rate_ppb"] == pytest.approx(told["learned_ppb"], abs=discipline.WORTH_PPB + 1)
    assert abs(lab.errors_ns[-1]) < before + 120 * 3 * US  # 3 ppm
    changes = len(lab.kernel.told)
    lab.run(60)
    assert len(lab.kernel.told) == changes
    lab.linked = True
    lab.run(30)
    assert lab.told()["state"] == "steering"


def test_what_was_found_comes_back_when_the_daemon_ends(tmp_path: Path) -> None:
    found = frequency_of(-31_000)
    lab = steered(tmp_path, frequency=found)
    assert lab.kernel.frequency != found
    assert lab.file.path.exists()
    lab.steering.close(lab.publish)
    assert lab.kernel.frequency == found
    assert not lab.file.path.exists()
    # A reader goes on with the last knot until it counts as stale.
    assert lab.latest is not None
    for later in range(0, 2 * SECOND, SECOND // 50):
        now = lab.true_ns + later
        assert reference_time(lab.latest, lab.here.oscillator.raw(now)).contains(lab.there.read(now))
    lab.steering.close(lab.publish)  # nothing is left to do
    assert lab.kernel.told[-1] == found


def undo(lab: Lab, boot: bytes = b"here".ljust(16), adjuster: Callable[[], Adjuster] | None = None) -> str | None:
    return restore(
        StateFile(lab.directory, "here", steering.KIND), boot, lab.kernel.read, adjuster or (lambda: lab.kernel)
    )


@pytest.mark.parametrize("when", ["between", "written", "set"])
def test_a_crash_is_undone(tmp_path: Path, when: str) -> None:
    """Killed at any point: between two changes, after the file was written, after the kernel was told."""
    found = frequency_of(12_000)
    lab = steered(tmp_path, frequency=found, offset_ns=20 * MS)
    if when != "between":
        changes = len(lab.kernel.told)
        while len(lab.kernel.told) == changes and lab.steering._order is None:
            lab.run(0.05, act=when == "set")
    latest = lab.latest
    assert "restored" in (undo(lab) or "")
    assert lab.kernel.frequency == found
    # Whoever still reads what the dead one said is not told wrong.
    assert latest is not None
    for later in range(0, 2 * SECOND, SECOND // 50):
        now = lab.true_ns + later
        assert reference_time(latest, lab.here.oscillator.raw(now)).contains(lab.there.read(now))
    assert undo(lab) is None
    lab.start()
    lab.run(60)
    assert lab.told()["found_ppb"] == pytest.approx(12_000, abs=1)


def test_what_is_not_ours_is_not_undone(tmp_path: Path) -> None:
    lab = steered(tmp_path)
    lab.kernel.hand(frequency=5)
    assert "another hand" in (undo(lab) or "")
    assert lab.kernel.frequency == 5
    assert not lab.file.path.exists()

    lab = steered(tmp_path)
    ours = lab.kernel.frequency
    assert "earlier boot" in (undo(lab, boot=bytes(16)) or "")
    assert lab.kernel.frequency == ours


def test_what_cannot_be_undone_is_said_and_kept(tmp_path: Path) -> None:
    lab = steered(tmp_path)

    def refused() -> Adjuster:
        raise OSError(errno.EPERM, "no CAP_SYS_TIME")

    with pytest.raises(NotRestoredError, match=r"no CAP_SYS_TIME.*run 'skewd discipline restore' as root"):
        undo(lab, adjuster=refused)
    assert lab.file.path.exists()
    kept = lab.file.path.read_bytes()
    lab.file.path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(NotRestoredError, match="damaged"):
        undo(lab)
    lab.file.path.write_bytes(kept)
    assert "restored" in (undo(lab) or "")


def test_without_a_place_to_remember_nothing_is_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lab = Lab(tmp_path / "file", offset_ns=20 * MS)  # no directory, not even for root
    lab.run(60)
    assert lab.told()["state"] == "stopped"
    assert "choose another [node] state_dir" in lab.told()["reason"]
    assert lab.kernel.told == []


def test_a_kernel_that_refuses_ends_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offset_ns=20 * MS)
    lab.kernel.refuses = OSError(errno.EPERM, os.strerror(errno.EPERM))
    lab.run(60)
    assert "can't be set: Operation not permitted" in lab.told()["reason"]
    assert lab.log.lines[-1].startswith("discipline: stopped")


def test_it_watches_before_it_begins(tmp_path: Path) -> None:
    lab = Lab(tmp_path, offset_ns=20 * MS)
    lab.run(8)
    assert lab.told()["state"] == "watching"
    lab.kernel.hand(frequency=frequency_of(1_000))
    lab.run(ANNOUNCE_NS / SECOND - 1)
    assert lab.told()["state"] == "watching"
    assert "watched anew" in lab.told()["reason"]
    assert lab.kernel.told == []
    lab.run(4)
    assert lab.told()["state"] == "steering"
    assert lab.told()["found_ppb"] == pytest.approx(1_000, abs=1)


async def test_a_time_daemon_is_waited_for_and_ends_it_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "OWNERS_EVERY_S", 0.001)
    running = [TimeDaemon("chronyd", 812, True)]
    looked, hidden = 0, False

    def owners() -> list[TimeDaemon] | None:
        nonlocal looked
        looked += 1
        return None if hidden else list(running)

    async def look() -> None:
        seen = looked
        while looked < seen + 2:
            await asyncio.sleep(0.001)

    lab = Lab(tmp_path, offset_ns=20 * MS)
    lab.steering = Steering(lab.node, lab.kernel, lab.file, lab.log, announce_ns=ANNOUNCE_NS, owners=owners)
    lab.run(1)
    assert "not known yet" in lab.told()["reason"]
    watcher = asyncio.create_task(lab.steering.watch_owners())
    await look()
    lab.run(30)
    assert lab.told()["state"] == "waiting"
    assert "chronyd (pid 812) may set this clock; stop it" in lab.told()["reason"]
    hidden = True
    await look()
    lab.run(1)
    assert "can't be seen from here; install the drop-in" in lab.told()["reason"]
    hidden = False
    running[:] = [TimeDaemon("chronyd", 812, False)]  # chronyd -x, or in a container that may not
    await look()
    lab.run(30)
    assert lab.told()["state"] == "steering"
    assert lab.kernel.told
    running[:] = [TimeDaemon("ntpd", 9, None)]
    await look()
    lab.run(1)
    assert "ntpd (pid 9) may set this clock" in lab.told()["reason"]
    assert lab.told()["state"] == "stopped"
    assert lab.kernel.frequency == 0
    watcher.cancel()


def test_a_suspend_is_no_hand(tmp_path: Path) -> None:
    lab = steered(tmp_path)
    lab.node.on_raw_disturbed(lab._sample(lab.here))
    lab.run(20)
    assert lab.told()["state"] == "steering"


def test_a_reference_that_is_this_node_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path, reference="here")
    lab.tick()
    assert lab.told()["state"] == "waiting"
    assert "this node itself" in lab.told()["reason"]


def test_a_source_that_judges_by_who_steers_ends_it(tmp_path: Path) -> None:
    """As after a reload of the configuration: such a source's claims would no longer hold."""
    lab = steered(tmp_path)
    lab.node.found_source(SourceConfig(type="kernel"))
    lab.tick()
    assert lab.told()["state"] == "stopped"
    assert "source kernel judges this clock by how another steers it" in lab.told()["reason"]
    assert lab.kernel.frequency == 0


class SlowDisk:
    """What is kept is there ``ticks`` looks later; of several that wait the latest is."""

    def __init__(self, file: StateFile, ticks: int) -> None:
        self._file, self._ticks = file, ticks
        self._wanted: bytes | None = None
        self._left = 0
        self.error: str | None = None
        self._written: bytes | None = None

    def keep(self, content: bytes) -> None:
        if self._wanted is None:
            self._left = self._ticks
        self._wanted = content

    @property
    def written(self) -> bytes | None:
        if self._wanted is not None:
            self._left -= 1
            if self._left <= 0:
                steering.keep_or_remove(self._file, self._wanted)
                self._written, self._wanted = self._wanted, None
        return self._written


@pytest.mark.parametrize("ticks", [1, 7, 10**9])
def test_nothing_is_set_before_the_disk_has_it_and_no_tick_waits_for_the_disk(tmp_path: Path, ticks: int) -> None:
    lab = Lab(tmp_path, offset_ns=3 * MS, drift_ppm=20.0, wire=NEAR)
    disk = SlowDisk(lab.file, ticks)
    lab.steering = Steering(lab.node, lab.kernel, lab.file, lab.log, announce_ns=ANNOUNCE_NS, owners=None, kept=disk)
    told = list[int]()
    while lab.true_ns < 100 * SECOND:
        lab.run(0.05)
        if len(lab.kernel.told) > len(told):
            left = discipline.decode(lab.file.read(discipline.LEFT_BYTES_MAX) or b"")
            assert left is not None
            assert lab.kernel.told[-1] in left.ours
            told = list(lab.kernel.told)
    assert lab.told()["state"] == "steering"
    assert bool(told) == (ticks < 10**9)
    if told:
        assert abs(lab.errors_ns[-1]) < MS
