"""ClockBound's segments: the claim holds what the node knows, the bytes are AWS's, no reader sees half a claim."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import multiprocessing
import multiprocessing.synchronize
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd import hostclock
from skewd.bounds.history import Status, carried
from skewd.clock import HostClock
from skewd.config import ClockBoundConfig, Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.interval import Interval
from skewd.publish import clockbound
from skewd.publish.clockbound import (
    MEMBARRIER_NUMBERS,
    ClockBoundError,
    ClockBoundSegments,
    NoBarrier,
    Taken,
    membarrier,
    store_barrier,
)
from skewd.publish.clockbound_layout import (
    V1,
    V2,
    VOID_AFTER_NS,
    Claim,
    ClockStatus,
    Layout,
    body,
    claim,
    generations,
    header,
    is_header,
    unknown,
)
from tests.waiting import LIMIT_S

MS, SECOND = 1_000_000, 1_000_000_000
SAID = Claim(7 * SECOND + 5, 1_007 * SECOND + 5, 0x0102030405, 0x0A0B0C, ClockStatus.FREE_RUNNING)
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the golden bytes are little-endian")


def numbered(number: int) -> Claim:
    """A claim all of whose fields tell its number, so a mixture of two is seen."""
    return Claim(number, number + VOID_AFTER_NS, number * 7, number % 1_000_003, ClockStatus(1 + (number & 1)))


def parse(data: bytes) -> Claim:
    """A segment as a client reads it."""
    version = struct.unpack_from("<H", data, 12)[0]
    as_s, as_ns, void_s, void_ns, bound = struct.unpack_from("<qqqqq", data, 16)
    drift, status = (struct.unpack_from("<I4xi", data, 56)) if version == 1 else struct.unpack_from("<Ii", data, 64)
    return Claim(as_s * SECOND + as_ns, void_s * SECOND + void_ns, bound, drift, ClockStatus(status))


def generation(data: bytes) -> int:
    return int(struct.unpack_from("<H", data, 14)[0])


# -- the bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "golden"),
    [
        (
            V1,
            "4e5a4d41 00024243 48000000 0100 0600"
            "0700000000000000 0500000000000000 ef03000000000000 0500000000000000"
            "0504030201000000 0c0b0a00 00000000 02000000 00000000",
        ),
        (
            V2,
            "4e5a4d41 00024243 50000000 0200 0600"
            "0700000000000000 0500000000000000 ef03000000000000 0500000000000000"
            "0504030201000000 0000000000000000 0c0b0a00 02000000 00 00000000000000",
        ),
    ],
    ids=["v1", "v2"],
)
def test_the_bytes_of_a_segment(layout: Layout, golden: str) -> None:
    data = header(layout, 6) + body(layout, SAID)
    assert data.hex() == golden.replace(" ", "")
    assert len(data) == layout.size
    assert is_header(layout, data)
    assert not is_header(V2 if layout is V1 else V1, data)
    assert not is_header(layout, header(layout, 0))


def test_the_generation_is_odd_while_writing_and_never_zero() -> None:
    left = 2
    seen = set()
    for _ in range(70_000):
        writing, left = generations(left)
        assert writing % 2 == 1
        assert left % 2 == 0 < left <= 0xFFFE
        seen.add(left)
    assert len(seen) == 32_767
    assert generations(65_534) == (65_535, 2)
    assert generations(65_535) == (65_535, 2), "a daemon that died while writing"
    assert generations(7) == (7, 8)


# -- the claim ---------------------------------------------------------------------------------------------------------

whole = st.integers(-(10**12), 10**12)
ppb = st.integers(-2_000_000, 2_000_000)


@given(
    st.tuples(whole, st.integers(0, 10**9)),
    st.tuples(ppb, st.integers(0, 10**5)),
    st.integers(0, 1_000),
    st.integers(0, VOID_AFTER_NS),
    st.integers(0, 20 * MS),
    st.integers(0, 10**9),
)
def test_a_claim_holds_whatever_the_bound_allows(
    offset: tuple[int, int], rate: tuple[int, int], wander: int, elapsed: int, late: int, between: int
) -> None:
    bound, drift = Interval(offset[0], sum(offset)), Interval(rate[0], sum(rate))
    said = claim(bound, drift, wander, Status.SYNCHRONIZED, as_of_ns=9 * SECOND, late_ns=20 * MS, max_bound_ns=10**13)
    assert said.status is ClockStatus.SYNCHRONIZED
    # What a client computes when ``elapsed`` passed since the bound's instant, ``between`` since as_of before that,
    # its coarse clock being ``late``.
    age = elapsed + between - late
    told = said.bound_ns + int(max(age, 0) / 1e9 * said.drift_ppb)
    assert told >= (bound + carried(elapsed, drift, wander)).farthest(0)


@pytest.mark.parametrize(
    ("status", "bound", "drift", "told"),
    [
        (Status.SYNCHRONIZED, Interval(-5, 10), 100, ClockStatus.SYNCHRONIZED),
        (Status.HOLDOVER, Interval(-5, 10), 100, ClockStatus.FREE_RUNNING),
        (Status.UNSYNCHRONIZED, Interval(-5, 10), 100, ClockStatus.UNKNOWN),
        (Status.SYNCHRONIZED, Interval(-5, SECOND), 100, ClockStatus.UNKNOWN),
        (Status.SYNCHRONIZED, Interval(-5, 10), 10**9, ClockStatus.UNKNOWN),
    ],
)
def test_the_status_that_clients_are_told(status: Status, bound: Interval, drift: int, told: ClockStatus) -> None:
    said = claim(bound, Interval(-drift, drift), 0, status, as_of_ns=SECOND, late_ns=0, max_bound_ns=SECOND)
    assert said.status is told
    if told is ClockStatus.UNKNOWN:
        assert said == unknown(SECOND)
        assert said.bound_ns >= 10**18, "a reader that ignores the status is not told that the clock is right"
    else:
        assert (said.bound_ns, said.drift_ppb) == (12, 100)
        assert said.void_after_ns - said.as_of_ns == VOID_AFTER_NS


# -- the files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], ClockBoundSegments]]:
    with contextlib.ExitStack() as stack:

        def open_() -> ClockBoundSegments:
            segments = ClockBoundSegments(tmp_path / "clockbound", store_barrier())
            stack.callback(segments.close)
            return segments

        yield open_


Open = Callable[[], ClockBoundSegments]


def test_both_files_are_there_for_everybody(opened: Open, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        segments = opened()
    finally:
        os.umask(before)
    directory = tmp_path / "clockbound"
    assert directory.stat().st_mode & 0o777 == 0o755
    assert sorted(file.name for file in directory.iterdir()) == ["shm", "shm0"]
    for layout in (V1, V2):
        file = directory / layout.name
        assert file.stat().st_mode & 0o777 == 0o644
        assert parse(file.read_bytes()).status is ClockStatus.UNKNOWN, "before anything was published"
    segments.publish(SAID)
    assert [parse((directory / name).read_bytes()) for name in ("shm", "shm0")] == [SAID, SAID]


def test_a_restart_goes_on_in_the_same_files(opened: Open, tmp_path: Path) -> None:
    first = opened()
    first.publish(SAID)
    files = [tmp_path / "clockbound" / name for name in ("shm", "shm0")]
    inodes = [file.stat().st_ino for file in files]
    first.close()
    assert [parse(file.read_bytes()).status for file in files] == [ClockStatus.UNKNOWN] * 2
    last = generation(files[0].read_bytes())
    with files[0].open("r+b") as file:  # and one that was killed while it wrote
        file.seek(14)
        file.write(struct.pack("<H", last + 1))
    second = opened()
    second.publish(SAID)
    assert [file.stat().st_ino for file in files] == inodes
    assert generation(files[0].read_bytes()) == last + 4
    assert parse(files[0].read_bytes()) == SAID


@pytest.mark.parametrize("found", ["short", "other layout", "link", "not ours"])
def test_what_no_client_can_be_reading_is_replaced(opened: Open, tmp_path: Path, found: str) -> None:
    directory = tmp_path / "clockbound"
    directory.mkdir()
    file = directory / "shm"
    kept = tmp_path / "kept"
    kept.write_bytes(b"precious" * 20)
    if found == "link":
        file.symlink_to(kept)
    elif found == "short":
        file.write_bytes(header(V1, 2))
    elif found == "not ours":
        file.write_bytes(b"\0" * 72)
    else:
        file.write_bytes(header(V2, 2) + body(V2, SAID))
    opened().publish(SAID)
    assert parse(file.read_bytes()) == SAID
    assert not file.is_symlink()
    assert kept.read_bytes() == b"precious" * 20


def test_a_second_writer_is_refused(opened: Open) -> None:
    opened()
    with pytest.raises(Taken, match=r"another skewd writes .*shm; stop it, or choose another \[clockbound\] directory"):
        opened()


@pytest.mark.parametrize("deed", ["wrote", "removed", "replaced", "cut off"])
def test_another_program_in_our_files_ends_ours(opened: Open, tmp_path: Path, deed: str) -> None:
    segments = opened()
    file = tmp_path / "clockbound" / "shm0"
    if deed == "wrote":
        with file.open("r+b") as other:
            other.seek(14)
            other.write(struct.pack("<H", 4_000))
    elif deed == "removed":
        file.unlink()
    elif deed == "replaced":
        (tmp_path / "new").write_bytes(file.read_bytes())
        (tmp_path / "new").rename(file)
    else:
        os.truncate(file, 0)
    with pytest.raises(Taken, match="another program writes or removed"):
        segments.publish(SAID)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClockBoundError, match=r"cannot be written in .*file/x: .*\[clockbound\] directory"):
        ClockBoundSegments(tmp_path / "file" / "x", store_barrier())


# -- the order of stores -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5), st.sampled_from([2, 7, 65_532, 65_534]))
def test_whatever_a_reader_catches_between_two_stores_is_marked(numbers: list[int], start: int) -> None:
    """A barrier stands between any two stores that matter; a reader looks at every one of them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for layout in (V1, V2):
            (directory / layout.name).write_bytes(header(layout, start) + body(layout, numbered(0)))
        looks: list[int] = []
        allowed: list[Claim] = []

        def look() -> None:
            for layout in (V1, V2):
                data = (directory / layout.name).read_bytes()
                looks.append(generation(data))
                if not generation(data) & 1:
                    assert generation(data) != 0
                    assert parse(data) in allowed

        segments = ClockBoundSegments(directory, lambda: None)
        for layout in (V1, V2):
            assert parse((directory / layout.name).read_bytes()).status is ClockStatus.UNKNOWN
        before = parse((directory / "shm").read_bytes())
        for segment in segments._segments:
            segment._barrier = look
        for number in numbers:
            allowed = [before, numbered(number)]
            segments.publish(numbered(number))
            before = numbered(number)
            look()
        assert sum(seen & 1 for seen in looks) >= 4 * len(numbers)
        for segment in segments._segments:
            segment._barrier = lambda: None
        segments.close()


def _write_on(directory: str, ready: multiprocessing.Queue[str], stop: multiprocessing.synchronize.Event) -> None:
    segments = ClockBoundSegments(Path(directory), store_barrier())
    number = 0
    while not stop.is_set():
        for _ in range(200):
            number += 1
            segments.publish(numbered(number))
        if number == 200:
            ready.put("writing")


@pytest.mark.parametrize("layout", [V1, V2], ids=["v1", "v2"])
def test_a_reader_in_another_process_never_sees_half_a_claim(tmp_path: Path, layout: Layout) -> None:
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[str] = context.Queue()
    stop = context.Event()
    writer = context.Process(target=_write_on, args=(str(tmp_path), ready, stop))
    writer.start()
    try:
        assert ready.get(timeout=LIMIT_S) == "writing"
        different: set[int] = set()
        with (tmp_path / layout.name).open("rb") as file:
            memory = mmap.mmap(file.fileno(), layout.size, prot=mmap.PROT_READ)
        words = memoryview(memory).cast("H")
        deadline = time.monotonic() + LIMIT_S
        while len(different) < 3_000:
            assert time.monotonic() < deadline, "the writer hardly writes"
            first = words[7]
            assert first != 0
            data = memory[:]
            if first & 1 or words[7] != first:
                continue
            said = parse(data)
            assert said == numbered(said.as_of_ns)
            different.add(said.as_of_ns)
        words.release()
    finally:
        stop.set()
        writer.join(LIMIT_S)
        writer.kill()


def test_where_stores_may_be_reordered_a_real_barrier_is_asked_for() -> None:
    store_barrier("x86_64")()
    with pytest.raises(NoBarrier, match="no memory barrier is known for a vax processor"):
        store_barrier("vax")
    # The same code that other processors take, with this one's number.
    try:
        barrier = membarrier(MEMBARRIER_NUMBERS["x86_64"])
    except NoBarrier:
        pytest.skip("this kernel offers no membarrier")
    barrier()
    with pytest.raises(NoBarrier, match="no membarrier"):
        membarrier(1 << 20)


def test_a_clock_may_lag_by_more_than_a_tick() -> None:
    assert clockbound.late_ns() >= 20 * MS


async def test_in_a_time_namespace_there_are_none_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostclock, "shift_ns", lambda: 1_000 * SECOND)
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        root = Path(name)
        config = Config(
            node=NodeConfig(name="n", runtime_dir=root / "run", state_dir=root),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            clockbound=ClockBoundConfig(enabled=True, directory=root / "clockbound"),
        )
        daemon = Daemon(config, HostClock())
        async with daemon.running():
            assert any("time namespace, whose clocks are 1000 s off" in text for text in daemon.status()["messages"])
    assert not (root / "clockbound").exists()


@pytest.mark.parametrize("tells", [True, False], ids=["timerfd", "polling"])
async def test_both_files_are_refreshed_twice_a_second_at_least(monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """Whatever else the loop looks at: between most claims lie fewer than four sleeps of an eighth of a second."""

    def none() -> None:
        raise OSError("no timerfd here")

    if not tells:
        monkeypatch.setattr(hostclock, "SetWatch", none)
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        root = Path(name)
        config = Config(
            node=NodeConfig(name="n", runtime_dir=root / "run", state_dir=root),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            clockbound=ClockBoundConfig(enabled=True, directory=root / "clockbound"),
        )
        daemon = Daemon(config, HostClock())
        async with daemon.running(), asyncio.timeout(LIMIT_S):
            assert daemon.status()["clock"]["steps_seen_by"] == ("timerfd" if tells else "polling")
            # A machine that is kept busy makes both late alike.
            slept = 0
            seen: dict[str, dict[int, int]] = {"shm": {}, "shm0": {}}
            while min(map(len, seen.values())) < 9:
                for file, found in seen.items():
                    found.setdefault(parse((root / "clockbound" / file).read_bytes()).as_of_ns, slept)
                await asyncio.sleep(0.125)
                slept += 1
    for found in seen.values():
        gaps = sorted(after - before for before, after in itertools.pairwise(found.values()))
        assert gaps[len(gaps) // 2] < 4, gaps
