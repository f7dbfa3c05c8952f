"""Bounds through others hold under any single liar, and no honest node is ever convicted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from skewd.bounds.compose import AGE_MAX_NS, COMPOSED, FIRST_HAND, FirstHand, Here, compose, confirmed, judge
from skewd.bounds.mesh import Verdict
from skewd.interval import Interval
from skewd.records import Edge, Record
from tests.mesh import worlds
from tests.mesh.worlds import SECOND, honest_claim, make, make_record, member, true_drift
from tests.shares import first

BATCHES = 8
SEEDS_EACH = 300


@pytest.mark.parametrize("batch", first(2, range(BATCHES)))
def test_under_any_single_liar_bounds_hold_and_no_honest_node_is_convicted(batch: int) -> None:
    composed = narrowed = convicted = 0
    for seed in range(batch * SEEDS_EACH, (batch + 1) * SEEDS_EACH):
        choose = random.Random(seed)
        world = make(choose, nodes=choose.randrange(4, 15), degree=choose.randrange(2, 6), liar=True)
        assert world.liar is not None
        found = compose(here=world.here, now_raw_ns=world.now_ns, first_hand=world.first_hand, records=world.records)
        for name in world.honest:
            bound = found.get(name)
            if bound is None:
                continue
            truth = world.truth(name)
            # Float truth, and one reading of here's clock in whole ns.
            assert bound.interval.lo - 1 <= truth <= bound.interval.hi + 1, (seed, name, bound, world.liar.name)
            drift = true_drift(world.members[0], world.member(name), 0.0)
            assert bound.drift_ppb.lo - 0.01 <= drift <= bound.drift_ppb.hi + 0.01, (seed, name, bound)
            assert not bound.disputed
            composed += bound.trust == COMPOSED
            narrowed += bound.trust == FIRST_HAND and len(bound.paths) > 1
        verdict = judge(
            here=world.here,
            now_raw_ns=world.now_ns,
            first_hand=world.first_hand,
            records=world.records,
            composed=found,
        )
        assert verdict.convicted in (None, world.liar.name), (seed, verdict)
        convicted += verdict.convicted is not None
    # It is no proof of anything if nothing is composed, narrowed or convicted.
    assert composed > 300
    assert narrowed > 50
    assert convicted > SEEDS_EACH // 2


@pytest.mark.long
def test_two_liars_are_no_more_than_f_two_can_stand() -> None:
    composed = 0
    for seed in range(150):
        choose = random.Random(seed)
        world = make(choose, nodes=14, degree=6, liar=True)
        others = [each for each in world.members[1:] if each is not world.liar]
        second = choose.choice(others)
        worlds._lie(choose, world, second)
        found = compose(
            here=world.here, now_raw_ns=world.now_ns, first_hand=world.first_hand, records=world.records, liars_max=2
        )
        for name in set(world.honest) - {second.name}:
            if name in found:
                assert found[name].interval.widen(1).lo <= world.truth(name) <= found[name].interval.hi + 1, (
                    seed,
                    name,
                )
                composed += found[name].trust == COMPOSED
        assert world.liar is not None
        verdict = judge(
            here=world.here, now_raw_ns=world.now_ns, first_hand=world.first_hand, records=world.records, liars_max=2
        )
        assert verdict.convicted in (None, world.liar.name, second.name)
    assert composed > 100


def test_without_liars_nothing_is_disputed() -> None:
    for seed in range(100):
        choose = random.Random(seed)
        world = make(choose, nodes=12, degree=4, liar=False)
        verdict = judge(here=world.here, now_raw_ns=world.now_ns, first_hand=world.first_hand, records=world.records)
        assert verdict == Verdict(None, frozenset(), ())


# -- one mesh by hand: here asks a, b, c; each of them asks x -------------------------------------------------------


class Small:
    """Here measures a, b and c, which all measure x; clocks that don't drift, bounds as given."""

    def __init__(self, width_ns: int = 1_000) -> None:
        choose = random.Random(3)
        self.choose = choose
        names = ("here", "a", "b", "c", "x")
        self.members = {name: member(choose, name) for name in names}
        for each in self.members.values():
            each.clock.path = [(-float(worlds.PAST_S), 0.0, 0.0, 0.0)]
        self.width_ns = width_ns
        self.first_hand: dict[str, FirstHand] = {}
        for name in "abc":
            self.first_hand[name] = FirstHand(self.members[name].tag, self.truth(name).widen(width_ns), Interval(-1, 1))
        self.records: dict[str, Record] = {name: self.record(name, ["x"]) for name in "abc"}
        self.records["x"] = self.record("x", [])

    def truth(self, name: str, of: str = "here") -> Interval:
        offset = self.members[name].clock.epoch_ns - self.members[of].clock.epoch_ns
        return Interval(offset, offset)

    def record(self, owner: str, about: list[str], at_s: float = -1.0) -> Record:
        edges = []
        for other in about:
            claim = honest_claim(self.choose, self.members[owner], self.members[other], at_s, tight=1.0)
            claim = replace(
                claim,
                offset=self.truth(other, owner).widen(self.width_ns),
                drift_ppb=Interval(-1, 1),
                wander_ppb_per_s=0,
            )
            edges.append(Edge(self.members[other].tag, claim))
        return make_record(self.members[owner], at_s, edges)

    def shifted(self, owner: str, by_ns: int) -> None:
        record = self.records[owner]
        edges = [Edge(edge.clock, replace(edge.claim, offset=edge.claim.offset.shift(by_ns))) for edge in record.edges]
        self.records[owner] = replace(record, edges=tuple(edges))

    @property
    def here(self) -> Here:
        return Here("here", self.members["here"].tag)

    @property
    def now_ns(self) -> int:
        return self.members["here"].clock.raw(0)


def composed(small: Small, *, liars_max: int = 1, excluded: frozenset[str] = frozenset()) -> dict[str, object]:
    return dict(
        compose(
            here=small.here,
            now_raw_ns=small.now_ns,
            first_hand=small.first_hand,
            records=small.records,
            liars_max=liars_max,
            excluded=excluded,
        )
    )


def test_two_disjoint_paths_agree_and_are_named() -> None:
    small = Small()
    found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    assert found.trust == COMPOSED
    assert len(found.paths) >= 2
    assert all(path[-1] == "x" and len(path) == 2 for path in found.paths)
    truth = small.truth("x").lo
    assert found.interval.contains(truth)
    assert found.interval.width <= 4 * small.width_ns + 20
    assert SECOND <= found.age_ns <= SECOND + 10_000


def test_a_lone_path_proves_nothing_unless_nobody_lies() -> None:
    small = Small()
    for name in "bc":
        del small.records[name]
    assert "x" not in composed(small)
    assert "x" in composed(small, liars_max=0)
    # Three paths stand two liars, not three.
    assert "x" in composed(Small(), liars_max=2)
    assert "x" not in composed(Small(), liars_max=3)


def test_one_lying_path_widens_and_never_moves_the_bound() -> None:
    for by_ns in (-3_000_000, 3_000_000):
        small = Small()
        small.shifted("a", by_ns)
        found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)[
            "x"
        ]
        assert found.interval.contains(small.truth("x").lo)
        # b and c agree, so the lie does not even widen it.
        assert found.interval.width <= 4 * small.width_ns + 20


def test_excluded_nodes_carry_no_path() -> None:
    small = Small()
    found = compose(
        here=small.here,
        now_raw_ns=small.now_ns,
        first_hand=small.first_hand,
        records=small.records,
        excluded=frozenset({"a"}),
    )
    assert all("a" not in path for path in found["x"].paths)
    assert "a" in found  # it is still known where it is
    assert "x" not in composed(small, excluded=frozenset({"a", "b"}))


def test_a_congested_first_hand_bound_is_narrowed_by_two_paths_and_by_nothing_less() -> None:
    small = Small()
    wide = small.truth("x").widen(10_000_000)
    small.first_hand["x"] = FirstHand(small.members["x"].tag, wide, Interval(-200_000, 200_000))
    found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    assert found.trust == FIRST_HAND
    assert found.paths[0] == ("x",)
    assert len(found.paths) >= 3
    assert found.interval.width < 10_000
    assert found.interval.contains(small.truth("x").lo)
    assert found.drift_ppb.width < 10
    for name in "bc":
        small.records[name] = replace(small.records[name], edges=())
    alone = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    assert alone.interval == wide
    assert alone.paths == (("x",),)


def test_paths_that_exclude_the_first_hand_bound_leave_it_and_say_so() -> None:
    small = Small()
    here = small.truth("x").widen(100)
    small.first_hand["x"] = FirstHand(small.members["x"].tag, here, Interval(-1, 1))
    for name in "abc":
        small.shifted(name, 5_000_000)
    found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    # Narrower paths do not come after a narrower direct bound; a wide one meets them.
    assert found.interval == here
    small.first_hand["x"] = replace(small.first_hand["x"], offset=small.truth("x").widen(1_000_000))
    found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    assert found.disputed
    assert found.interval == small.truth("x").widen(1_000_000)


def test_what_a_target_says_of_itself_counts_once() -> None:
    small = Small()
    for name in "abc":
        small.records[name] = small.record(name, ["x"] if name == "a" else [])
    small.records["x"] = small.record("x", ["b", "c"])
    # a says something of x; x says something of b and c: two paths, not three, and x must be confirmed by two.
    small.records["b"] = small.record("b", ["x"])
    small.shifted("x", 4_000_000)
    found = composed(small, liars_max=2)
    assert "x" not in found
    kept = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["x"]
    assert kept.interval.contains(small.truth("x").lo)


def test_another_boot_of_a_peer_is_another_clock() -> None:
    small = Small()
    for name in "abc":
        stale = replace(small.members["x"], boot=bytes(16))
        edges = tuple(Edge(stale.tag, edge.claim) for edge in small.records[name].edges)
        small.records[name] = replace(small.records[name], edges=edges)
    assert "x" not in composed(small)


def test_records_that_are_too_old_carry_no_path() -> None:
    small = Small()
    for name in "abc":
        record = small.records[name]
        small.records[name] = replace(record, raw_ns=record.raw_ns - AGE_MAX_NS)
    assert "x" not in composed(small)


def test_utc_is_a_target_and_no_way_through() -> None:
    small = Small()
    for name in "abc":
        utc_minus_raw = -small.members[name].clock.epoch_ns
        claim = replace(small.records[name].edges[0].claim, offset=Interval(utc_minus_raw - 500, utc_minus_raw + 500))
        small.records[name] = replace(small.records[name], utc=claim, edges=())
    found = compose(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)["utc"]
    assert found.trust == COMPOSED
    assert found.interval.contains(-small.members["here"].clock.epoch_ns)
    assert found.interval.width < 5_000
    assert all(path[-1] == "utc" for path in found.paths)


def test_made_up_names_confirm_each_other_in_vain() -> None:
    small = Small()
    fakes = [member(small.choose, f"fake{index}") for index in range(4)]
    for fake in fakes:
        small.members[fake.name] = fake
    tags = [fake.tag for fake in fakes]
    claim = small.records["a"].edges[0].claim
    for fake in fakes:
        edges = [Edge(tag, claim) for tag in tags if tag != fake.tag] + [Edge(small.members["x"].tag, claim)]
        small.records[fake.name] = make_record(fake, -1.0, edges)
    small.records["a"] = replace(
        small.records["a"], edges=(*small.records["a"].edges, *(Edge(tag, claim) for tag in tags))
    )
    known = set(confirmed(small.first_hand, small.records, 1).values())
    assert known == {"a", "b", "c", "x"}
    assert set(composed(small)) == {"a", "b", "c", "x"}


def test_a_forged_record_of_a_real_name_is_another_clock() -> None:
    small = Small()
    forged = replace(small.members["x"], key=small.choose.randbytes(32))
    small.records["x"] = make_record(forged, -1.0, [])
    assert "x" not in composed(small)


def test_a_liar_contradicted_by_three_neighbours_is_convicted_by_who_hears_of_it() -> None:
    small = Small()
    small.records["x"] = small.record("x", ["a", "b", "c"])
    small.shifted("x", 1_000_000)
    verdict = judge(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)
    assert verdict.convicted == "x"


def test_a_liar_contradicted_by_one_neighbour_is_disputed() -> None:
    small = Small()
    small.records["x"] = small.record("x", ["a"])
    small.shifted("x", 1_000_000)
    small.records["b"] = replace(small.records["b"], edges=())
    small.records["c"] = small.record("c", ["x"])
    edges = small.records["c"].edges
    # c's bound on x is too wide to say anything.
    small.records["c"] = replace(
        small.records["c"],
        edges=tuple(Edge(edge.clock, replace(edge.claim, offset=edge.claim.offset.widen(10**9))) for edge in edges),
    )
    verdict = judge(here=small.here, now_raw_ns=small.now_ns, first_hand=small.first_hand, records=small.records)
    assert verdict.convicted is None
    assert verdict.disputed == {"a", "x"}


def test_a_negative_number_of_liars_is_an_error() -> None:
    with pytest.raises(ValueError, match="liars_max"):
        composed(Small(), liars_max=-1)
