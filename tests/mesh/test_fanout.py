"""Whom a node asks, and how often: the choice as a graph of all nodes, and the pace as requests that are counted."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from skewd.fanout import DIRECT_MAX, RARELY_NS, TRIES, Plan, Role, choose, requests_max
from tests.shares import first

SECOND = 1_000_000_000

S = 1_000_000_000


def members(count: int, seed: int = 0) -> list[str]:
    pick = random.Random(seed)
    return [f"{pick.choice(('node', 'pod', 'gpu'))}-{pick.randrange(16**6):06x}-{number}" for number in range(count)]


def choices(names: list[str], k: int = 8) -> dict[str, frozenset[str]]:
    return {name: choose(name, names, k) for name in names}


def neighbours(chosen: dict[str, frozenset[str]]) -> dict[str, set[str]]:
    """Both ends of an exchange learn from it."""
    near: dict[str, set[str]] = {name: set(others) for name, others in chosen.items()}
    for name, others in chosen.items():
        for other in others:
            near[other].add(name)
    return near


def connected(near: dict[str, set[str]], without: frozenset[str] = frozenset()) -> bool:
    left = near.keys() - without
    look = [min(left)]
    seen = set(look)
    while look:
        for other in near[look.pop()] - without - seen:
            seen.add(other)
            look.append(other)
    return seen == left


def test_the_choice_is_the_same_whoever_is_known_first_and_never_oneself() -> None:
    names = members(50)
    chosen = choose(names[0], names, 8)
    assert len(chosen) == 8
    assert names[0] not in chosen
    assert choose(names[0], reversed(names), 8) == chosen
    assert choose(names[0], names[:5], 8) == frozenset(names[1:5])


def test_the_reference_is_asked_besides_if_it_is_a_member() -> None:
    names = members(50)
    chosen = choose(names[0], names, 8)
    other = min(set(names[1:]) - chosen)
    assert choose(names[0], names, 8, frozenset((other,))) == chosen | {other}
    assert choose(names[0], names, 8, frozenset(("gone", names[0]))) == chosen


@pytest.mark.parametrize("count", first(4, [10, 30, 100, 300, 1000]))
def test_the_load_is_even_and_the_mesh_holds_together_without_any_two(count: int) -> None:
    for seed in range(3 if count <= 300 else 1):
        names = members(count, seed)
        chosen = choices(names)
        asked = Counter(other for others in chosen.values() for other in others)
        assert max(asked.values()) <= 3 * 8
        near = neighbours(chosen)
        assert min(len(others) for others in near.values()) >= 8
        # Three ways from each to each: it stays connected whichever two are taken out. All pairs where they are few,
        # else those around the most weakly connected node, where a cut would be, and random ones.
        pick = random.Random(seed)
        weakest = sorted(near, key=lambda name: (len(near[name]), name))[:3]
        pairs = {frozenset((a, b)) for a in names for b in names if a < b} if count <= 30 else set()
        pairs |= {
            frozenset((a, b)) for name in weakest for a in near[name] for b in near[name] if a < b and count < 300
        }
        pairs |= {frozenset(pick.sample(names, 2)) for _ in range(20)}
        assert all(connected(near, pair) for pair in pairs)


@pytest.mark.parametrize("count", [20, 100, 300])
def test_one_member_more_or_less_moves_one_choice_of_each_node_at_most(count: int) -> None:
    names = members(count)
    before = choices(names)
    moved = []
    for gone in random.Random(1).sample(names, 2):
        left = [name for name in names if name != gone]
        for name in left:
            after = choose(name, left, 8)
            lost = before[name] - after
            assert lost == before[name] & {gone}, "only the place of the one that left is filled anew"
            moved.append(len(after - before[name]))
    assert max(moved) <= 1
    assert sum(moved) / len(moved) <= 8 / (count - 1) * 2


# -- the plan


class Fleet:
    """Addresses that answer, or not; requests are counted, in steps of 40 ms."""

    def __init__(self, count: int, *, k: int = 8, seed: int = 0) -> None:
        self.names = members(count, seed)
        self.at = {f"10.0.{number // 250}.{number % 250 + 1}:9957": name for number, name in enumerate(self.names)}
        self.plan = Plan("me", interval_ns=S, k=k, phase=random.Random(seed).random)
        self.down: set[str] = set()
        self.now_ns = 0
        self.asked: Counter[str] = Counter()
        self.plan.candidates(self.at, 0)

    def run(self, seconds: int) -> Counter[str]:
        self.asked = Counter()
        until = self.now_ns + seconds * S
        while self.now_ns < until:
            for address in self.plan.take(self.now_ns):
                self.asked[address] += 1
                if address in self.at and address not in self.down:
                    self.plan.answered(address, self.at[address])
            self.now_ns += S // 25
        return self.asked

    def chosen_names(self) -> set[str]:
        return {self.at[address] for address in self.plan.chosen()}


def test_a_small_mesh_is_asked_whole_every_interval() -> None:
    fleet = Fleet(8)
    fleet.down = {min(fleet.at)}
    fleet.run(10)
    asked = fleet.run(60)
    assert set(asked) == set(fleet.at)
    assert all(59 <= count <= 61 for count in asked.values())


def test_an_address_is_asked_a_few_times_in_the_first_moments() -> None:
    fleet = Fleet(3)
    fleet.run(1)
    assert all(3 <= count <= 5 for count in fleet.asked.values())


@pytest.mark.parametrize("count", first(2, [10, 100, 1000]))
def test_requests_do_not_grow_with_the_mesh(count: int) -> None:
    fleet = Fleet(count)
    fleet.run(10)
    for _ in range(3):
        asked = fleet.run(60)
        assert 60 * 8 * 0.9 <= sum(asked.values()) <= 60 * requests_max(8) * 1.05
    fleet.run(count // 2)
    asked = fleet.run(60)
    assert sum(asked[address] for address in fleet.plan.chosen()) >= 60 * 8 * 0.95, "names are learnt: most goes there"


def test_names_are_learnt_and_then_the_choice_is_by_name() -> None:
    fleet = Fleet(60)
    fleet.run(40)
    assert fleet.plan.names() == set(fleet.names)
    assert fleet.chosen_names() == choose("me", fleet.names, 8)
    asked = fleet.run(300)
    others = [asked[address] for address in fleet.at if address not in fleet.plan.chosen()]
    assert set(others) <= {4, 5, 6}, "once a minute"
    assert RARELY_NS == 60 * S


def test_a_silent_one_is_replaced_and_taken_back() -> None:
    fleet = Fleet(40)
    fleet.run(60)
    before = fleet.plan.chosen()
    gone = min(before)
    fleet.down = {gone}
    fleet.run(2 * TRIES)
    after = fleet.plan.chosen()
    assert len(after) == 8
    assert after >= before - {gone}
    assert fleet.plan.role(gone) is Role.WAITING
    asked = fleet.run(40)
    assert 8 <= asked[gone] <= 12, "now and then"
    fleet.down = set()
    fleet.run(6)
    assert fleet.plan.chosen() == before


def test_after_an_outage_of_everybody_the_same_ones_are_back_within_seconds() -> None:
    fleet = Fleet(200)
    fleet.run(200)
    before = fleet.plan.chosen()
    fleet.down = set(fleet.at)
    fleet.run(120)
    asked = fleet.run(60)
    assert sum(asked.values()) <= 60 * requests_max(8)
    fleet.down = set()
    fleet.run(6)
    assert fleet.plan.chosen() >= before


@pytest.mark.long
def test_the_reference_is_asked_by_all_but_its_load_stays() -> None:
    for count, least, most in ((40, 58, 62), (16 * DIRECT_MAX, 3, 6)):
        fleet = Fleet(count)
        fleet.run(count // 2 + 10)
        keeper = min(set(fleet.names) - fleet.chosen_names())
        (address,) = (at for at, name in fleet.at.items() if name == keeper)
        fleet.plan.always(frozenset((keeper,)))
        fleet.run(1)
        assert fleet.plan.role(address) is Role.ALWAYS
        assert least <= fleet.run(60)[address] <= most
        fleet.plan.always(frozenset())
        assert fleet.plan.role(address) is Role.RARE


def test_two_addresses_of_one_node_are_one_member() -> None:
    fleet = Fleet(30)
    doubles = {f"[fd00::{number}]:9957": name for number, name in enumerate(fleet.at.values())}
    fleet.at |= doubles
    fleet.plan.candidates(fleet.at, 0)
    fleet.run(120)
    chosen = [fleet.at[address] for address in fleet.plan.chosen()]
    assert len(chosen) == len(set(chosen)) == 8


def test_an_address_that_is_no_candidate_any_more_is_forgotten() -> None:
    fleet = Fleet(20)
    fleet.run(30)
    gone = min(fleet.plan.chosen())
    name = fleet.at.pop(gone)
    assert fleet.plan.candidates(fleet.at, fleet.now_ns) == {gone}
    assert fleet.plan.role(gone) is None
    assert len(fleet.plan.chosen()) == 8
    assert name not in fleet.plan.names()
    fleet.plan.answered(gone, name)  # a late answer
    assert fleet.plan.role(gone) is None
    assert gone not in fleet.run(60)


def test_the_table_is_bounded_and_keeps_what_it_has() -> None:
    fleet = Fleet(10)
    flood = [f"10.9.{number // 250}.{number % 250}:1" for number in range(5_000)]
    fleet.plan.candidates([*flood, *fleet.at], 0)
    assert len(fleet.plan) == 2048
    assert all(fleet.plan.role(address) is not None for address in fleet.at)


def test_it_says_when_it_wants_to_be_asked_again() -> None:
    fleet = Fleet(30)
    fleet.run(60)
    for _ in range(200):
        wait = fleet.plan.wait_ns(fleet.now_ns)
        assert wait is not None
        assert wait <= S
        fleet.now_ns += wait
        for address in fleet.plan.take(fleet.now_ns):
            fleet.plan.answered(address, fleet.at[address])
    assert fleet.now_ns >= 63 * S, "it does not spin"
    fleet.plan.candidates((), 0)
    assert fleet.plan.wait_ns(0) is None


class TestOneOfTwoAsks:
    def plan(self, own: str, other: str) -> Plan:
        plan = Plan(own, interval_ns=SECOND, k=8, phase=lambda: 1.0)
        plan.candidates(["192.0.2.1:9957"], 0)
        for at in range(0, 4 * SECOND, SECOND // 10):
            if plan.take(at):
                plan.answered("192.0.2.1:9957", other)
        return plan

    def asked(self, plan: Plan, other: str, *, asks: bool) -> int:
        count = 0
        for at in range(4 * SECOND, 24 * SECOND, SECOND // 10):
            if asks and at % SECOND == 0:
                plan.asked_by(other, at)
            if plan.take(at):
                count += 1
                plan.answered("192.0.2.1:9957", other)
        return count

    def test_the_greater_name_does_not_ask_while_it_is_asked(self) -> None:
        assert self.asked(self.plan("b", "a"), "a", asks=True) == 0
        assert self.asked(self.plan("b", "a"), "a", asks=False) == 20

    def test_the_lesser_name_asks_whoever_asks_it(self) -> None:
        assert self.asked(self.plan("a", "b"), "b", asks=True) == 20

    def test_it_asks_again_as_soon_as_it_is_not_asked_any_more(self) -> None:
        plan = self.plan("b", "a")
        self.asked(plan, "a", asks=True)
        due = [at for at in range(24 * SECOND, 30 * SECOND, SECOND // 10) if plan.take(at)]
        assert due
        assert due[0] <= 26 * SECOND


def test_what_is_due_soon_is_asked_together_and_everyone_once_an_interval() -> None:
    phases = iter(index / 8 for index in range(8))
    plan = Plan("own", interval_ns=S, k=8, phase=lambda: next(phases))
    addresses = [f"192.0.2.{number}:9957" for number in range(8)]
    plan.candidates(addresses, 0)
    wakes, asked = 0, Counter[str]()
    for at in range(0, 30 * S, S // 100):
        due = plan.take(at)
        for address in due:
            plan.answered(address, f"peer-{address.split(':')[0]}")
        if at >= 10 * S:
            wakes += bool(due)
            asked.update(due)
    assert all(19 <= asked[address] <= 21 for address in addresses)
    assert wakes <= 20 * 5, "eight that are spread would be 8 times a second"
