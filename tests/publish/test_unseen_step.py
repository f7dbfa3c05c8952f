"""A step between two looks of the daemon: whoever asks before the next one is told no wrong bound.

The clocks, the daemon's looks (some of them late, as on a machine without a free core), the steps and the requests
are drawn from a seed; knots, segment, history and table are the ones that ship.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.bounds.history import Correction, Knot, Status
from skewd.bounds.unseen import NOTED_NS, unseen
from skewd.clock import WallSample, read_wall
from skewd.interval import Interval
from skewd.publish import segment
from skewd.publish.segment import STALE_NS, SegmentReader, SegmentWriter
from skewd.wall import WallMap
from tests.shares import first

SECOND = 1_000_000_000
MS = 1_000_000
BEGIN_WALL_NS = 1_700_000_000 * SECOND
LEAD_NS = 20 * MS
KNOT_EVERY_NS = 250 * MS
HALF_NS = 20_000
STEERED_PPB = 30_000
DRIFT_PPB = -17_000
END_NS = 12 * SECOND


@dataclass
class Clocks:
    """A node's two clocks at the instant ``now_ns``, by its raw clock, and the reference's."""

    steps: list[tuple[int, int]]
    now_ns: int = SECOND
    virtual: bool = False
    reading_ns: int = 200

    def raw_ns(self) -> int:
        self.now_ns += self.reading_ns
        return self.now_ns

    def wall_ns(self) -> int:
        self.now_ns += self.reading_ns
        return self.shown(self.now_ns)

    def shown(self, at_ns: int) -> int:
        stepped = sum(by_ns for from_ns, by_ns in self.steps if from_ns <= at_ns)
        return BEGIN_WALL_NS + at_ns + STEERED_PPB * at_ns // SECOND + stepped

    def reference(self, at_ns: int) -> int:
        return BEGIN_WALL_NS + 3 * MS + at_ns + DRIFT_PPB * at_ns // SECOND


@dataclass
class Daemon:
    """Looks at the clocks and publishes, as ``daemon.py`` does; its bounds on the raw clock are right by decree."""

    clocks: Clocks
    writer: SegmentWriter
    choose: random.Random
    wall: WallMap = field(init=False)
    next_knot_ns: int = 0
    last: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.wall = WallMap(read_wall(self.clocks))

    def look(self) -> None:
        # It may be kept waiting in the middle: a reading that is wide may hold the values of both sides of a step.
        self.clocks.reading_ns = self.choose.choice((200, 200, 200, 200, 12 * MS))
        reading = read_wall(self.clocks)
        self.clocks.reading_ns = 200
        self.clocks.now_ns += self.choose.choice((0, 0, 0, 5 * MS))
        stepped = self.wall.sample(reading)
        if stepped or self.clocks.now_ns >= self.next_knot_ns:
            self.next_knot_ns = self.clocks.now_ns + KNOT_EVERY_NS
            self.publish(reading)
        self.writer.heartbeat()

    def publish(self, reading: WallSample) -> None:
        at_raw = self.clocks.now_ns + LEAD_NS
        at_wall = at_raw + self.wall.wall_minus_raw(at_raw).midpoint
        if (self.wall.era, at_wall) <= self.last:
            return
        self.last = self.wall.era, at_wall
        off = self.clocks.reference(at_raw) - at_wall + self.choose.randrange(-HALF_NS, HALF_NS)
        # reference - raw is known within HALF_NS; what the wall clock reads there was foretold.
        slew = self.wall.slew_ppb()
        label = self.wall.wall_minus_raw(at_raw).width + 1
        self.writer.publish(
            Knot(
                era=self.wall.era,
                era_begin_wall_ns=self.wall.era_begin_wall_ns,
                previous_end_wall_ns=self.wall.previous_end_wall_ns,
                raw_ns=at_raw,
                wall_ns=at_wall,
                bound=Interval(off - HALF_NS - label, off + HALF_NS + label),
                drift_ppb=Interval(DRIFT_PPB - slew - 1_000, DRIFT_PPB + slew + 1_000),
                wander_ppb_per_s=20,
                applied_ns=off,
                applied_slope_ppb=0,
                status=Status.SYNCHRONIZED,
                reference="node:a",
            )
        )


def asked(reader: SegmentReader, stamps: list[int]) -> list[Correction]:
    """As a sidecar asks for the stamps of one request."""
    table = reader.table()
    return [table.at(stamp) or reader.at(stamp) for stamp in stamps]


def story(
    seed: str, path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> Iterator[tuple[int, int, Correction, Correction]]:
    """Each stamp's instant, what it truly deserves, and the answers of readers with the clocks and without."""
    choose = random.Random(seed)
    steps, at = [], 3 * SECOND
    while at < END_NS - SECOND:
        size = round(MS * 10 ** choose.uniform(0.5, 2.6))
        steps.append((at, choose.choice((size, -size, 20 * MS, -20 * MS))))
        at += choose.choice((1_500 * MS, 3 * SECOND)) + choose.randrange(SECOND)
    clocks = Clocks(steps)
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: clocks.now_ns)
    writer = SegmentWriter(path, node="n", boot=bytes(16), virtual=False)
    daemon = Daemon(clocks, writer, choose)
    wary, trusting = SegmentReader(path, stamps=kind, clock=clocks), SegmentReader(path, stamps=kind)
    asked_for: list[tuple[int, int]] = []
    while clocks.now_ns < END_NS:
        daemon.look()
        # Steps come one at a time; a look lies between any two.
        next_look_ns = clocks.now_ns + choose.choice((7 * MS, 7 * MS, 125 * MS, 350 * MS))
        while (waits := choose.randrange(20 * MS)) + clocks.now_ns < next_look_ns:
            clocks.now_ns += waits
            near = [at_ns for at_ns, _ in steps if 0 <= clocks.now_ns - at_ns < SECOND]
            taken = [clocks.now_ns - choose.choice((0, 1, 100_000, MS, 6 * MS, 40 * MS, 400 * MS)) for _ in range(4)]
            taken += [at_ns + aside for at_ns in near for aside in (-1, 0, 30_000) if at_ns + aside <= clocks.now_ns]
            stamps = [clocks.shown(instant) for instant in taken]
            careless = asked(trusting, stamps)
            asked_for += zip(taken, stamps, strict=True)
            for instant, stamp, told, other in zip(taken, stamps, asked(wary, stamps), careless, strict=True):
                yield instant, clocks.reference(instant) - stamp, told, other
        clocks.now_ns = max(next_look_ns, clocks.now_ns)
    # Exported seconds later, when all steps have long been seen.
    for instant, stamp in asked_for:
        told = trusting.at(stamp)
        assert not misses(clocks.reference(instant) - stamp, told), ("late", instant, told)
    writer.close()


def misses(truth_ns: int, told: Correction) -> bool:
    return told.status is not Status.UNSYNCHRONIZED and abs(told.offset_ns - truth_ns) > told.uncertainty_ns


@pytest.mark.parametrize("kind", ["wall", "unknown"])
@pytest.mark.parametrize("seed", first(1, range(5)))
def test_no_stamp_is_judged_by_the_clock_before_a_step_that_the_daemon_has_not_seen(
    seed: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = deceived = known = alike = 0
    for instant, truth, told, other in story(f"{seed}", tmp_path / segment.NAME, monkeypatch, kind):
        assert not misses(truth, told), (instant, truth, told)
        count += 1
        deceived += misses(truth, other)
        known += told.status is not Status.UNSYNCHRONIZED
        alike += told == other
    assert count > 2_000
    if kind == "wall":
        assert deceived > 10, "whoever does not look at the clocks is deceived"
    assert known > 0.9 * count, "that nothing is said would be right too"
    assert alike > 0.8 * count, "where there was no step, looking changes nothing"


KNOT = Knot(
    era=1,
    era_begin_wall_ns=0,
    previous_end_wall_ns=None,
    raw_ns=10 * SECOND,
    wall_ns=BEGIN_WALL_NS,
    bound=Interval(-50_000, 70_000),
    drift_ppb=Interval(-60_000, 60_000),
    wander_ppb_per_s=20,
    applied_ns=0,
    applied_slope_ppb=0,
    status=Status.SYNCHRONIZED,
    reference="utc",
)


@given(
    since_ns=st.integers(-20 * MS, 3 * SECOND),
    slew_ppb=st.integers(-60_000, 60_000),
    width_ns=st.integers(0, NOTED_NS),
)
def test_a_slew_that_the_knot_allows_is_no_step(since_ns: int, slew_ppb: int, width_ns: int) -> None:
    raw = KNOT.raw_ns + since_ns
    wall = KNOT.wall_ns + since_ns + slew_ppb * since_ns // SECOND
    assert unseen(KNOT, raw - width_ns // 2, wall, raw + width_ns // 2, NOTED_NS, STALE_NS) is None


@given(
    since_ns=st.integers(0, 3 * SECOND),
    by_ns=st.integers(-SECOND, SECOND).filter(lambda by_ns: abs(by_ns) > 2 * MS),
    before_ns=st.integers(0, 3 * SECOND),
    rate_ppb=st.integers(-60_000, 60_000),
    off_ns=st.integers(-50_000, 70_000),
)
def test_a_step_since_the_knot_is_seen_and_covers_stamps_of_either_side(
    since_ns: int, by_ns: int, before_ns: int, rate_ppb: int, off_ns: int
) -> None:
    """``rate_ppb`` of reference - raw; the wall clock runs as the raw clock does, but for the step."""
    now = KNOT.raw_ns + since_ns
    wall = KNOT.wall_ns + since_ns + by_ns
    step = unseen(KNOT, now - 100, wall, now + 100, NOTED_NS, STALE_NS)
    assert step is not None
    assert step.moved_ns.contains(by_ns)
    stamped = now - min(before_ns, since_ns)
    truth = off_ns + rate_ppb * (stamped - KNOT.raw_ns) // SECOND
    for shown, deserves in (
        (KNOT.wall_ns + stamped - KNOT.raw_ns, truth),
        (KNOT.wall_ns + stamped - KNOT.raw_ns + by_ns, truth - by_ns),
    ):
        bound = KNOT.bound_at(shown)
        assert bound is not None
        known = Correction(0, bound.farthest(0), Status.SYNCHRONIZED, "utc")
        told = step.judged(shown, known, 10 * SECOND)
        if deserves == truth and shown < step.from_wall_ns:
            assert told == known
        assert abs(deserves) <= told.uncertainty_ns
        assert step.judged(shown, known, 1 * MS).status is Status.UNSYNCHRONIZED or shown < step.from_wall_ns
    other = Correction(0, 1, Status.SYNCHRONIZED, "node:b")
    assert step.judged(wall, other, SECOND).status is Status.UNSYNCHRONIZED
    nothing = unseen(replace(KNOT, bound=None), now - 100, wall, now + 100, NOTED_NS, STALE_NS)
    assert nothing is not None
    assert nothing.judged(wall, other, SECOND).status is Status.UNSYNCHRONIZED


def test_a_virtual_node_is_compared_with_its_own_clocks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks([])
    monkeypatch.setattr(segment, "_monotonic_ns", lambda: clocks.now_ns)
    writer = SegmentWriter(tmp_path / segment.NAME, node="n", boot=bytes(16), virtual=True)
    Daemon(clocks, writer, random.Random(1)).look()
    stepped = replace(clocks, steps=[(0, 20 * MS)])
    on_the_host = SegmentReader(tmp_path / segment.NAME, clock=stepped)
    on_the_node = SegmentReader(tmp_path / segment.NAME, clock=replace(stepped, virtual=True))
    stamp = clocks.shown(clocks.now_ns)
    assert on_the_host.at(stamp).uncertainty_ns < MS
    assert on_the_node.at(stamp).uncertainty_ns > 19 * MS
    writer.close()
