"""A table says what its history says, never more surely, and leaves to it what is not a matter of two knots."""

from __future__ import annotations

import random

import pytest

from skewd.bounds.history import HULL_AFTER_STEP_NS, UNSYNCHRONIZED, Correction, History, Knot, Status
from skewd.bounds.table import EXCESS_MAX_NS, SPAN_NS, Table, TableKeeper, constant
from skewd.interval import Interval

T0 = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
AHEAD = 2 * SECOND


def knots(chance: random.Random, count: int, *, wander: int = 20, odd: float = 0.0) -> list[Knot]:
    """A daemon's knots; ``odd``: how often something happens that a table may not tabulate."""
    made: list[Knot] = []
    era, begin, previous = 1, T0 - SECOND, None
    wall, offset, epoch, reference = T0, chance.randrange(-(10**8), 10**8), 0, "utc"
    drift = chance.randrange(-(10**5), 10**5)
    for number in range(count):
        if chance.random() < odd / 4:
            era, begin, previous = era + 1, wall + 10, wall + 5
            jump = chance.choice((0, 0, -1, 1)) * chance.randrange(10**9)
            wall, begin, offset = wall + jump, begin + jump, offset - jump
        if chance.random() < odd:
            epoch += 1
        if chance.random() < odd:
            reference = chance.choice(("utc", "node:b"))
        elapsed = chance.choice((SECOND // 4, SECOND // 4, SECOND, chance.randrange(1, 9 * SECOND)))
        wall += elapsed
        offset += drift * elapsed // SECOND
        drift += chance.randrange(-9, 10)
        bound: Interval | None = Interval(offset - chance.randrange(5, 10**5), offset + chance.randrange(5, 10**5))
        if chance.random() < odd:
            bound = None
        if chance.random() < odd and bound is not None:
            bound = bound.shift(chance.choice((-(10**6), 10**6)))  # contradicts its neighbours
        made.append(
            Knot(
                era, begin, previous, number * SECOND, wall, bound,
                Interval(drift - chance.randrange(10, 500), drift + chance.randrange(10, 10**4)),
                chance.randrange(wander + 1), offset + chance.randrange(-100, 100), chance.randrange(-(10**7), 10**7),
                chance.choice((Status.SYNCHRONIZED, Status.HOLDOVER)), reference, epoch,
            )
        )  # fmt: skip
    return made


def compared(history: History, table: Table, chance: random.Random, newest: Knot) -> tuple[int, int]:
    """How many of many stamps the table answered, and by how much it was wider at most."""
    answered = widest = 0
    edges = [edge for piece in table.pieces for edge in (piece.begin_ns, piece.end_ns - 1, piece.end_ns)]
    stamps = [newest.wall_ns + chance.randrange(-SPAN_NS - 5 * SECOND, AHEAD + SECOND) for _ in range(100)]
    for stamp in [*stamps, *edges]:
        found = table.at(stamp)
        if found is None:
            continue
        answered += 1
        truth = history.at(stamp)
        assert (found.offset_ns, found.status, found.reference) == (truth.offset_ns, truth.status, truth.reference)
        assert found.uncertainty_ns >= truth.uncertainty_ns
        widest = max(widest, found.uncertainty_ns - truth.uncertainty_ns)
    return answered, widest


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stamps", ["unknown", "wall"])
@pytest.mark.parametrize("odd", [0.0, 0.05, 0.3])
def test_it_is_the_history_rounded_outward(seed: int, stamps: str, odd: float) -> None:
    chance = random.Random(seed)
    answered = 0
    for _ in range(12):
        history = History(stamps=stamps, max_uncertainty_ns=chance.choice((SECOND, 200_000)))
        keeper = TableKeeper(history, AHEAD)
        for knot in knots(chance, chance.randrange(1, 60), odd=odd):
            history.append(knot)
            if chance.random() < 0.1:
                keeper.table()  # so that what it keeps from one table to the next is put to the test as well
        assert history.latest is not None
        found, widest = compared(history, keeper.table(), chance, history.latest)
        answered += found
        assert widest <= EXCESS_MAX_NS
    assert answered > (100 if odd > 0.1 else 400)


def test_a_wandering_drift_widens_and_never_narrows() -> None:
    chance = random.Random(7)
    for _ in range(20):
        history = History(max_uncertainty_ns=1 << 60)
        keeper = TableKeeper(history, AHEAD)
        for knot in knots(chance, 20, wander=10**6):
            history.append(knot)
        assert history.latest is not None
        compared(history, keeper.table(), chance, history.latest)


def steady(history: History, count: int) -> None:
    for number in range(count):
        wall = T0 + number * SECOND // 4
        bound = Interval(-1000, 1000)
        history.append(
            Knot(1, T0, None, wall - T0, wall, bound, Interval(-10, 10), 10, 5, 2, Status.SYNCHRONIZED, "utc")
        )


def test_it_covers_the_last_half_minute_and_no_more_than_the_newest_knot_stands_for() -> None:
    history = History()
    steady(history, 200)
    table = TableKeeper(history, AHEAD).table()
    newest = T0 + 199 * SECOND // 4
    covered = [newest - SPAN_NS, newest - 17, newest, newest + AHEAD - 1]
    assert all(table.at(stamp) is not None for stamp in covered)
    assert [table.at(stamp) for stamp in (newest - SPAN_NS - 1, newest + AHEAD)] == [None, None]


def test_what_two_eras_can_claim_is_left_to_the_source() -> None:
    history = History()
    steady(history, 100)
    stepped = T0 + 25 * SECOND
    for number in range(200):
        wall = stepped + 1 + number * SECOND // 4
        history.append(
            Knot(
                2, stepped, stepped + 50, 26 * SECOND + number, wall, Interval(-9, 9), Interval(0, 0), 1, 0, 0,
                Status.SYNCHRONIZED, "utc",
            )
        )  # fmt: skip
    table = TableKeeper(history, AHEAD).table()
    assert table.at(stepped + HULL_AFTER_STEP_NS - 1) is None
    assert table.at(stepped + HULL_AFTER_STEP_NS) == history.at(stepped + HULL_AFTER_STEP_NS)


def test_the_same_history_gives_the_same_table_and_another_one_another() -> None:
    history = History()
    keeper = TableKeeper(history, AHEAD)
    assert keeper.table().at(T0) is None
    steady(history, 10)
    table = keeper.table()
    assert keeper.table() is table
    newest = history.latest
    assert newest is not None
    wider = Knot(
        1, T0, None, newest.raw_ns, newest.wall_ns, Interval(-5000, 5000), Interval(-10, 10), 10, 5, 2,
        Status.HOLDOVER, "utc",
    )  # fmt: skip
    history.tighten([wider])
    found = keeper.table().at(newest.wall_ns)
    assert keeper.table() is not table
    assert found is not None
    assert (found.uncertainty_ns, found.status) == (history.at(newest.wall_ns).uncertainty_ns, Status.HOLDOVER)


def test_a_constant_is_one_for_all_time() -> None:
    given = Correction(-7, 3, Status.SYNCHRONIZED, "node:b")
    table = constant(given)
    assert [table.at(stamp) for stamp in (-(1 << 66), 0, T0, (1 << 66))] == [given] * 4
    assert UNSYNCHRONIZED.reference is None


@pytest.mark.parametrize("seed", range(3))
def test_the_native_table_says_the_same(seed: int) -> None:
    native = pytest.importorskip("skewd_native", reason="skewd-native is not installed; `make setup` builds it")
    chance = random.Random(seed)
    for _ in range(10):
        history = History(max_uncertainty_ns=chance.choice((SECOND, 200_000)))
        for knot in knots(chance, 40, odd=0.05):
            history.append(knot)
        assert history.latest is not None
        table = TableKeeper(history, AHEAD).table()
        packed, references = table.packed()
        twin = native.Table(packed, references, table.max_uncertainty_ns)
        edges = [edge for piece in table.pieces for edge in (piece.begin_ns - 1, piece.begin_ns, piece.end_ns)]
        stamps = [history.latest.wall_ns + chance.randrange(-SPAN_NS, AHEAD) for _ in range(100)]
        for stamp in [*stamps, *edges, 0, 1 << 65, -(1 << 65)]:
            found = table.at(stamp)
            said = twin.at(stamp)
            if found is None:
                assert said is None
            else:
                status = list(Status).index(found.status)
                assert said == (found.offset_ns, found.uncertainty_ns, status, found.reference)


def test_a_packed_table_that_is_damaged_is_refused() -> None:
    native = pytest.importorskip("skewd_native", reason="skewd-native is not installed; `make setup` builds it")
    packed, references = constant(Correction(1, 2, Status.SYNCHRONIZED, "utc")).packed()
    with pytest.raises(ValueError, match="whole number of records"):
        native.Table(packed[:-1], references, 2)
    with pytest.raises(ValueError, match="reference that is not there"):
        native.Table(packed, [], 2)
