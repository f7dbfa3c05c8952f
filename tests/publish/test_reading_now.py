"""``skewd.now()``: what is kept between two answers never makes one wrong."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skewd
from skewd import reader
from skewd.bounds.history import Knot, Status
from skewd.interval import Interval
from skewd.publish import segment
from skewd.publish.segment import NAME, SegmentReader, SegmentWriter
from skewd.reader import NoBound, Now, reference_time
from tests.waiting import LIMIT_S

SECOND = 1_000_000_000
WALL = 1_700_000_000 * SECOND


class Clock:
    """A raw clock that the test sets."""

    virtual = False
    raw = 0

    def raw_ns(self) -> int:
        return self.raw

    def wall_ns(self) -> int:
        return 0


KNOT = Knot(
    era=1,
    era_begin_wall_ns=0,
    previous_end_wall_ns=None,
    raw_ns=77 * SECOND,
    wall_ns=WALL,
    bound=Interval(-100, 100),
    drift_ppb=Interval(0, 0),
    wander_ppb_per_s=0,
    applied_ns=0,
    applied_slope_ppb=0,
    status=Status.SYNCHRONIZED,
    reference="utc",
)


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The CLOCK_MONOTONIC of writer and reader, in a list of one."""
    now = [1_000 * SECOND]
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: now[0])
    return now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


@pytest.fixture
def writer(path: Path) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    yield writer
    writer.close()


@given(
    st.tuples(st.integers(-(10**10), 10**10), st.integers(0, 10**9)),
    st.tuples(st.integers(-2_000_000, 2_000_000), st.integers(0, 300_000)),
    st.integers(0, 100_000),
    st.lists(st.integers(-20_000_000, 1_700_000_000), min_size=1, max_size=20),
)
def test_an_answer_is_what_the_knot_says_rounded_outward(
    bound: tuple[int, int], drift: tuple[int, int], wander: int, elapsed: list[int]
) -> None:
    knot = replace(
        KNOT,
        bound=Interval(bound[0], sum(bound)),
        drift_ppb=Interval(drift[0], sum(drift)),
        wander_ppb_per_s=wander,
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / NAME
        writer = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
        writer.publish(knot)
        clock = Clock()
        now = Now(path, clock)
        clock.raw = knot.raw_ns - 20_000_000
        assert now() == reference_time(knot, clock.raw), "the first is read anew"
        for gap in elapsed:
            clock.raw = knot.raw_ns + gap
            told, exact = now(), reference_time(knot, clock.raw)
            assert told.lo <= exact.lo
            assert exact.hi <= told.hi
            assert told.width <= exact.width + 4
            assert isinstance(told, Interval)
            assert told == Interval(told.lo, told.hi)
        writer.close()


def test_a_new_knot_is_seen_at_once(writer: SegmentWriter, path: Path, monotonic: list[int]) -> None:
    clock = Clock()
    now = Now(path, clock)
    for number in range(5):
        knot = replace(KNOT, raw_ns=KNOT.raw_ns + number, wall_ns=WALL + number * SECOND)
        writer.publish(knot)
        writer.heartbeat()
        clock.raw = knot.raw_ns + 5
        assert [now(), now()] == [reference_time(knot, clock.raw)] * 2
    writer.publish(replace(KNOT, era=2, bound=None, status=Status.UNSYNCHRONIZED, reference=None))
    for _ in range(2):
        with pytest.raises(NoBound, match="no usable bound"):
            now()


def test_nothing_is_said_after_the_daemons_death_until_the_next_one(path: Path, monotonic: list[int]) -> None:
    clock = Clock()
    now = Now(path, clock)
    for _ in range(2):
        with pytest.raises(NoBound, match=r"no daemon writes .*clock\.shm; start 'skewd run'"):
            now()
    first = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    monotonic[0] += SECOND
    first.heartbeat()
    with pytest.raises(NoBound, match="no daemon writes"):
        now()  # it has said nothing yet
    first.publish(KNOT)
    clock.raw = KNOT.raw_ns
    assert now().contains(WALL)
    # Two seconds without a sign of life.
    clock.raw += 3 * SECOND
    monotonic[0] += 3 * SECOND
    with pytest.raises(NoBound, match="no daemon writes"):
        now()
    second = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    second.publish(replace(KNOT, wall_ns=WALL + 50))
    monotonic[0] += SECOND
    assert now().contains(WALL + 50 + 3 * SECOND)
    first.close()
    assert now().contains(WALL + 50 + 3 * SECOND)
    second.close()
    monotonic[0] += SECOND
    with pytest.raises(NoBound, match="no daemon writes"):
        Now(path, clock)()


def test_an_orderly_end_is_seen_at_once(path: Path, monotonic: list[int]) -> None:
    first = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    first.publish(KNOT)
    first.heartbeat()
    reader = SegmentReader(path)
    assert reader.latest == KNOT
    first.close()
    assert not reader.refresh()
    assert reader.at(WALL).status is Status.SYNCHRONIZED, "the past stands"
    second = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    second.publish(replace(KNOT, wall_ns=WALL + 1))
    monotonic[0] += SECOND // 4
    second.heartbeat()
    assert reader.latest == replace(KNOT, wall_ns=WALL + 1)
    second.close()


def test_a_file_that_outlived_a_reboot_is_no_daemon(path: Path, monotonic: list[int]) -> None:
    writer = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    writer.publish(KNOT)
    monotonic[0] = 60 * SECOND  # the clock began anew
    clock = Clock()
    clock.raw = KNOT.raw_ns
    assert SegmentReader(path).latest is None
    with pytest.raises(NoBound, match="no daemon writes"):
        Now(path, clock)()
    writer.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("version", "has version 2 and this program reads 1; bring both to the same release"),
        ("header", "is damaged; restart the daemon"),
        ("size", "is damaged; restart the daemon"),
        ("other", "is no segment of skewd; .* mount the directory"),
        ("empty", "is no segment of skewd; .* mount the directory"),
    ],
)
def test_a_segment_that_cannot_be_used_is_explained(
    writer: SegmentWriter, path: Path, monotonic: list[int], damage: str, said: str
) -> None:
    writer.publish(KNOT)
    data = bytearray(path.read_bytes())
    if damage == "version":
        struct.pack_into("<H", data, 8, 2)
        size = segment._HEADER.size
        struct.pack_into("<I", data, size, zlib.crc32(data[:size]))
    elif damage == "header":
        data[40] ^= 1
    elif damage == "size":
        data += bytes(8)
    elif damage == "other":
        data = bytearray(b"x" * 4_000)
    else:
        data = bytearray()
    found = path.with_name("found")
    found.write_bytes(data)
    clock = Clock()
    now = Now(found, clock)
    with pytest.raises(NoBound, match=f"found {said}"):
        now()
    monotonic[0] += SECOND
    path.rename(found)
    writer.heartbeat()
    clock.raw = KNOT.raw_ns
    assert now().contains(WALL), "the next one is found"


def test_threads_share_a_reader(writer: SegmentWriter, path: Path) -> None:
    clock = Clock()
    clock.raw = KNOT.raw_ns
    writer.publish(KNOT)
    now = Now(path, clock)
    wrong: list[Interval] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            told = now()
            if told.width != 200 or (told.lo + 100) % SECOND:
                wrong.append(told)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 2_000):
        writer.publish(replace(KNOT, wall_ns=WALL + number * SECOND))
        writer.heartbeat()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_package_offers_it(writer: SegmentWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEWD_NODE__RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(reader, "_default", None)
    monkeypatch.setattr(skewd, "_now", None)
    writer.publish(replace(KNOT, raw_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)))
    for told in (skewd.now(), reader.now(), skewd.now()):
        assert told.lo < WALL + SECOND
        assert told.width <= 204


_FOLLOW = """
import sys
from skewd.publish.segment import SegmentReader
reader = SegmentReader(sys.argv[1])
for line in sys.stdin:
    print(reader.latest.applied_ns if reader.latest else None, flush=True)
"""


def test_a_bind_mounted_directory_shows_the_next_daemons_segment(tmp_path: Path) -> None:
    """As in a container: its own mount namespace, the runtime directory mounted into it."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare")
    runtime, inside = tmp_path / "run", tmp_path / "inside"
    runtime.mkdir()
    inside.mkdir()
    command = ["unshare", "--mount", "sh", "-c", 'mount --bind -o ro "$0" "$1" && exec "$2" -c "$3" "$1/clock.shm"']
    if subprocess.run([*command[:4], 'mount --bind "$0" "$1"', runtime, inside], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace")
    reader = subprocess.Popen(
        [*command, runtime, inside, sys.executable, _FOLLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None

    def heard(writer: SegmentWriter) -> str:
        assert reader.stdin is not None
        assert reader.stdout is not None
        writer.heartbeat()
        reader.stdin.write("\n")
        reader.stdin.flush()
        return reader.stdout.readline().strip()

    def until(writer: SegmentWriter, wanted: str) -> None:
        for _ in range(100_000):
            if heard(writer) == wanted:
                return
        pytest.fail(f"the reader never said {wanted}")

    try:
        for number in (1, 2, 3):
            writer = SegmentWriter(runtime / NAME, node="n", boot=bytes(16), virtual=False)
            writer.publish(replace(KNOT, applied_ns=number))
            until(writer, str(number))
            writer.close()
    finally:
        reader.stdin.close()
        reader.wait(LIMIT_S)
