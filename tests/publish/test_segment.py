"""The shared-memory segment: what a writer wrote is what readers see, whatever happens to the file."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from skewd.bounds.history import UNSYNCHRONIZED, Knot, Status
from skewd.bounds.table import EXCESS_MAX_NS
from skewd.interval import Interval
from skewd.publish import segment
from skewd.publish.segment import CAPACITY, SegmentReader, SegmentWriter
from tests.waiting import LIMIT_S

SECOND = 1_000_000_000
BOOT = bytes(16)


def knot(number: int, half: int = 100, era: int = 1) -> Knot:
    wall = 1_700_000_000 * SECOND + number * SECOND // 4
    return Knot(
        era=era,
        era_begin_wall_ns=1_699_999_999 * SECOND,
        previous_end_wall_ns=None if era == 1 else wall - 1,
        raw_ns=number * SECOND // 4,
        wall_ns=wall,
        bound=Interval(number * 1_000 - half, number * 1_000 + half),
        drift_ppb=Interval(3_000, 5_000),
        wander_ppb_per_s=21,
        applied_ns=number * 1_000,
        applied_slope_ppb=4_000,
        status=Status.SYNCHRONIZED,
        reference="node:a",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / segment.NAME


def test_a_reader_follows_the_writer(path: Path) -> None:
    writer = SegmentWriter(path, node="gpu-7", boot=BOOT, virtual=True)
    reader = SegmentReader(path)
    assert reader.at(knot(0).wall_ns) == UNSYNCHRONIZED
    for number in range(100):
        writer.publish(knot(number))
        writer.heartbeat()
        correction = reader.at(knot(number).wall_ns)
        assert (correction.offset_ns, correction.uncertainty_ns) == (number * 1_000, 100)
        assert reader.latest == knot(number)
    assert reader.node == "gpu-7"
    assert reader.virtual
    assert SegmentReader(path, node="configured").node == "gpu-7", "before anything was read"
    late = SegmentReader(path)
    assert late.at(knot(3).wall_ns) == reader.at(knot(3).wall_ns)
    writer.close()
    assert not path.exists()


def test_recent_knots_get_better_in_place(path: Path) -> None:
    writer = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    reader = SegmentReader(path)
    for number in range(60):
        writer.publish(knot(number))
    writer.heartbeat()
    assert reader.at(knot(55).wall_ns).uncertainty_ns == 100
    writer.tighten(knot(55, half=7))
    writer.tighten(knot(2, half=7))  # no longer recent: readers would not see it
    writer.heartbeat()
    assert reader.at(knot(55).wall_ns).uncertainty_ns == 7
    assert SegmentReader(path).at(knot(2).wall_ns).uncertainty_ns == 100


def test_the_ring_goes_round(path: Path) -> None:
    writer = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    reader = SegmentReader(path)
    for number in range(CAPACITY + 500):
        writer.publish(knot(number))
    writer.heartbeat()
    assert reader.at(knot(CAPACITY + 499).wall_ns).offset_ns == (CAPACITY + 499) * 1_000
    assert reader.at(knot(0).wall_ns) == UNSYNCHRONIZED


def test_a_restarted_daemon_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000 * SECOND]
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: now[0])
    first = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    reader = SegmentReader(path)
    first.publish(knot(0))
    first.heartbeat()
    assert reader.at(knot(0).wall_ns).status is Status.SYNCHRONIZED
    now[0] += 10 * SECOND
    # The daemon is gone: what it said of the past stands, what came later is unknown.
    assert reader.at(knot(0).wall_ns).status is Status.SYNCHRONIZED
    assert reader.at(knot(0).wall_ns + 9 * SECOND) == UNSYNCHRONIZED
    assert reader.latest is None
    second = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    second.publish(knot(50))
    second.heartbeat()
    now[0] += SECOND
    assert reader.at(knot(50).wall_ns).offset_ns == 50_000
    first.close()
    assert path.exists(), "the old daemon must not remove the new one's file"


def test_a_table_says_what_the_reader_says_and_no_more_once_the_daemon_is_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000 * SECOND]
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: now[0])
    reader = SegmentReader(path)
    assert reader.table().at(knot(0).wall_ns) is None
    first = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    now[0] += SECOND
    for number in range(40):
        first.publish(knot(number))
    first.heartbeat()
    newest = knot(39).wall_ns
    table = reader.table()
    first.heartbeat()
    now[0] += 1
    first.heartbeat()
    assert reader.table() is table, "a heartbeat alone brings nothing"
    stamps = [knot(10).wall_ns, newest - 7, newest, newest + SECOND]

    def agree() -> None:
        for stamp in stamps:
            found, truth = reader.table().at(stamp), reader.at(stamp)
            assert found is not None
            assert found.offset_ns == truth.offset_ns
            assert 0 <= found.uncertainty_ns - truth.uncertainty_ns <= EXCESS_MAX_NS

    agree()
    first.tighten(knot(39, half=40_000))  # the writer may take back what it said of the newest
    now[0] += 1
    first.heartbeat()
    assert reader.table() is not table
    agree()
    now[0] += 10 * SECOND
    agree()
    later = newest + 3 * SECOND
    assert (reader.table().at(later), reader.at(later)) == (None, UNSYNCHRONIZED)
    second = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    now[0] += SECOND
    second.publish(knot(50))
    second.heartbeat()
    assert reader.table().at(newest) is None, "the new daemon knows nothing of it"
    assert reader.table().at(knot(50).wall_ns) is not None
    first.close()
    second.close()
    reader.close()


def test_a_missing_segment_is_survived_and_found_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000 * SECOND]
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: now[0])
    reader = SegmentReader(path, node="configured")
    assert reader.at(0) == UNSYNCHRONIZED
    assert reader.node == "configured"
    writer = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    writer.publish(knot(0))
    writer.heartbeat()
    now[0] += SECOND
    assert reader.at(knot(0).wall_ns).status is Status.SYNCHRONIZED


@pytest.mark.parametrize("damage", ["short", "magic", "header", "record"])
def test_damage_is_survived(path: Path, damage: str) -> None:
    writer = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    writer.publish(knot(0))
    writer.heartbeat()
    with path.open("r+b") as file:
        if damage == "short":
            file.truncate(100)
        else:
            file.seek({"magic": 0, "header": 40, "record": segment._HEADER_BYTES + 20}[damage])
            file.write(b"\xff\xee")
    assert SegmentReader(path).at(knot(0).wall_ns) == UNSYNCHRONIZED


def test_readable_by_others_whatever_the_umask(path: Path) -> None:
    before = os.umask(0o077)
    try:
        SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_name_too_long_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="63 bytes"):
        SegmentWriter(path, node="n" * 64, boot=BOOT, virtual=False)


def _read_until(path: str, last: int, results: multiprocessing.Queue[str]) -> None:
    reader = SegmentReader(path)
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        latest = reader.latest
        if latest is not None:
            number = latest.applied_ns // 1_000
            if latest != knot(number):
                results.put(f"torn: {latest}")
                return
            if number == last:
                results.put("ok")
                return
    results.put("never saw the last")


def test_readers_in_other_processes_never_see_a_torn_record(path: Path) -> None:
    writer = SegmentWriter(path, node="n", boot=BOOT, virtual=False)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    readers = [context.Process(target=_read_until, args=(str(path), 20_000, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(20_001):
        writer.publish(knot(number))
        writer.heartbeat()
    # The last record is the last: keep the heartbeat alive until both have seen it.
    outcomes: list[str] = []
    while len(outcomes) < 2 and any(r.is_alive() for r in readers):
        writer.heartbeat()
        while not results.empty():
            outcomes.append(results.get())
    for reader in readers:
        reader.join(LIMIT_S)
    while not results.empty():
        outcomes.append(results.get())
    assert outcomes == ["ok", "ok"]
