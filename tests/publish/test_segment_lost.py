"""A segment that is cut off, removed, without room, or from before a sleep: nobody dies of it or believes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd import hostclock
from skewd import reader as reading
from skewd.bounds.history import UNSYNCHRONIZED, Knot, Status
from skewd.clock import HostClock
from skewd.interval import Interval
from skewd.publish import segment
from skewd.publish.segment import NAME, SegmentError, SegmentReader, SegmentWriter
from skewd.reader import NoBound, Now
from tests.daemon.hanging import Running, with_little_room
from tests.waiting import LIMIT_S, wait_until

SECOND = 1_000_000_000
BOOT = bytes(16)

ALONE = '[mesh]\nlisten = "off"\nreference = "n"\n'


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sks") as name:
        yield Path(name)


def knot(bound: Interval | None = None) -> Knot:
    raw, wall = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.time_ns()
    return Knot(
        1, 0, None, raw, wall, bound or Interval(-100, 100), Interval(0, 0), 0, 0, 0, Status.SYNCHRONIZED, "utc"
    )


_ASK = """
import sys
import skewd
from skewd.clock import HostClock
from skewd.publish.segment import SegmentReader
from skewd.reader import NoBound
reader = SegmentReader(sys.argv[1], clock=HostClock())
said = None
while True:
    try:
        skewd.now()
        says = "now"
    except NoBound as error:
        says = "none: " + str(error)
    reader.refresh()
    reader.table()
    if says != said:
        said = says
        print(says, flush=True)
"""


@pytest.mark.parametrize("how", ["cut off", "emptied by a shell", "removed"])
def test_readers_and_the_daemon_survive_a_segment_that_is_gone(short: Path, how: str) -> None:
    daemon = Running(short, ALONE)
    try:
        daemon.ready()
        path = daemon.runtime / NAME
        environment = {**os.environ, "SKEWD_NODE__RUNTIME_DIR": str(daemon.runtime)}
        words = [sys.executable, "-c", _ASK, str(path)]
        asking = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert asking.stdout is not None
            while asking.stdout.readline() != "now\n":
                assert asking.poll() is None
            inode = path.stat().st_ino
            if how == "removed":
                path.unlink()
            elif how == "cut off":
                os.truncate(path, 4096)
            else:
                path.write_bytes(b"")
            wait_until(lambda: path.exists() and path.stat().st_ino != inode, "another segment")
            fresh = Now(path, HostClock())

            def answered() -> bool:
                try:
                    return fresh().width >= 0
                except NoBound:
                    return False

            wait_until(answered, "an answer from the new one")
            # The reader that had the old one open goes on, and takes the new one.
            assert asking.poll() is None
            wait_until(lambda: descriptors(asking.pid, path), "the reader to take the new one")
            assert daemon.stop() == 0
            line = asking.stdout.readline()
            while not line.startswith("none: no daemon writes"):
                assert asking.poll() is None, line
                line = asking.stdout.readline()
        finally:
            asking.kill()
            asking.wait(LIMIT_S)
            assert asking.returncode == -signal.SIGKILL
    finally:
        daemon.kill()


def descriptors(pid: int, path: Path) -> list[str]:
    """Those that a process has of this very file."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if entry.stat().st_ino == path.stat().st_ino:
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_without_room_for_the_segment_it_says_so_and_never_that_it_is_ready(short: Path) -> None:
    runtime = short / "run"
    runtime.mkdir()
    daemon = Running(short, ALONE, through=with_little_room(runtime, "256k"))
    try:
        out, err = daemon.process.communicate(timeout=LIMIT_S)
        assert daemon.process.returncode == 1
        assert out == ""
        line = err.strip().splitlines()[-1]
        assert f"skewd: {runtime}/{NAME} (737 KiB) can't be made: No space left on device" in line
        assert f"make room in {runtime}" in line
        assert "[node] runtime_dir" in line
    finally:
        daemon.kill()


def test_a_failed_segment_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, at: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match="No space left on device"):
        SegmentWriter(tmp_path / NAME, node="n", boot=BOOT, virtual=False)
    assert list(tmp_path.iterdir()) == []


def test_all_of_the_segment_is_there_before_it_has_its_name(tmp_path: Path) -> None:
    SegmentWriter(tmp_path / NAME, node="n", boot=BOOT, virtual=False)
    status = (tmp_path / NAME).stat()
    assert status.st_blocks * 512 >= status.st_size


class Sleeper:
    """A machine that sleeps: CLOCK_BOOTTIME goes on, the others stand still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept_ns = 0
        suspended, boottime = hostclock.suspended_ns, reading._boottime_ns
        monkeypatch.setattr(hostclock, "suspended_ns", lambda: suspended().shift(self.slept_ns))
        monkeypatch.setattr(reading, "_boottime_ns", lambda: boottime() + self.slept_ns)


@pytest.mark.parametrize("slept_ns", [5_000_000, 3600 * SECOND])
def test_a_heartbeat_from_before_a_sleep_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept_ns: int
) -> None:
    machine = Sleeper(monkeypatch)
    writer = SegmentWriter(tmp_path / NAME, node="n", boot=BOOT, virtual=False)
    asked, fresh, source = Now(tmp_path / NAME), Now(tmp_path / NAME), SegmentReader(tmp_path / NAME)
    looked_ns = hostclock.suspended_ns().hi
    before = knot()
    writer.publish(before)
    writer.heartbeat(looked_ns)
    assert asked().width >= 200
    assert source.refresh()

    machine.slept_ns = slept_ns
    for _ in range(3):
        with pytest.raises(NoBound, match="slept"):
            asked()
    with pytest.raises(NoBound, match="before this machine slept"):
        fresh()
    assert not source.refresh()
    assert "slept" in str(source.problem)
    assert source.at(before.wall_ns + 3 * SECOND) == UNSYNCHRONIZED

    # A tick that began before the sleep and ends after it is none either.
    writer.heartbeat(looked_ns)
    with pytest.raises(NoBound, match="slept"):
        asked()

    writer.publish(knot(Interval(-7_000, 7_000)))
    writer.heartbeat(hostclock.suspended_ns().hi)
    assert asked().width >= 14_000
    assert fresh().width >= 14_000
    assert source.refresh()
    assert source.problem is None


def test_a_segment_that_does_not_tell_of_sleeps_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_FLAG_TELLS_SLEEP", 0)
    writer = SegmentWriter(tmp_path / NAME, node="n", boot=BOOT, virtual=False)
    monkeypatch.undo()
    machine = Sleeper(monkeypatch)
    writer.publish(knot())
    writer.heartbeat(0)
    machine.slept_ns = 10 * SECOND
    assert Now(tmp_path / NAME)().width >= 200
    assert SegmentReader(tmp_path / NAME).refresh()


def test_the_daemons_own_heartbeat_tells_of_the_sleep_it_knows(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Running(short, ALONE)
    try:
        daemon.ready()
        asked = Now(daemon.runtime / NAME, HostClock())

        def answered() -> bool:
            try:
                return asked().width >= 0
            except NoBound:
                return False

        wait_until(answered, "an answer")
        # This process wakes from a sleep that the daemon has not seen, and never will: the daemon's clocks did not.
        Sleeper(monkeypatch).slept_ns = SECOND
        with pytest.raises(NoBound, match="slept"):
            asked()
    finally:
        daemon.kill()
