"""A made-up mesh for the election alone: true clocks, records that travel, partitions, restarts, and a liar.

Time is true time in nanoseconds, in rounds of a second. Each round every living node decides once, at a phase of its
own, and neighbours exchange their own record and some others, the newest of each owner. Bounds are made up and hold:
a node that can reach a keeper knows its raw clock within some tens of microseconds, and one that can't any more knows
it as it was then, wider by twice the drift limit. What is published is the middle of the bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from skewd.election import UTC, Decision, Election, Member, Own, Timescale
from skewd.interval import Interval

ROUND_NS = 1_000_000_000
DRIFT_PPB = 50_000
GOSSIP = 6


@dataclass(slots=True)
class Clock:
    """A raw clock: ``at_ns`` reads ``base_ns`` plus rate times true time."""

    base_ns: int
    drift_ppb: int
    wall_minus_raw_ns: int

    def raw(self, true_ns: int) -> int:
        return self.base_ns + true_ns + true_ns * self.drift_ppb // 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rumour:
    """An owner's record as it travels."""

    sequence: int
    made_ns: int
    boot: bytes
    raw_era: int
    timescale: Timescale | None
    claims_utc: bool


@dataclass(slots=True)
class Change:
    """A node changed its timescale at a moment."""

    node: str
    at_ns: int
    decision: Decision
    old: Timescale | None
    was: Interval | None
    will: Interval | None
    published_ns: int | None


Lie = Callable[["World", "Node", Rumour, str], Rumour]
"""What the liar tells a neighbour, from what it would honestly say."""


@dataclass(slots=True)
class Node:
    name: str
    clock: Clock
    election: Election
    boot: bytes
    phase_ns: int
    raw_era: int = 1
    up: bool = True
    utc: bool = False
    sequence: int = 0
    record: Rumour | None = None
    """What it said last, under a number of its own."""
    barred: set[str] = field(default_factory=set)
    """Who said two things under one number."""
    timescale: Timescale | None = None
    decision: Decision | None = None
    store: dict[str, Rumour] = field(default_factory=dict)
    reached: dict[tuple[str, bytes, int], tuple[int, Interval]] = field(default_factory=dict)
    """By keeper's clock: when it was last reached, and keeper raw - own raw then."""


class World:
    """A mesh of nodes. Everything follows from the seed."""

    def __init__(self, seed: int, *, liars: int = 1) -> None:
        self.random = random.Random(seed)
        self.liars = liars
        self.now_ns = 10 * ROUND_NS
        self.nodes: dict[str, Node] = {}
        self.clocks: dict[tuple[str, bytes, int], Clock] = {}
        self.links: set[frozenset[str]] = set()
        self.cut: Callable[[str], object] = lambda name: 0
        """Nodes for which this gives different values can't reach each other."""
        self.lies: dict[str, Lie] = {}
        self.changes: list[Change] = []
        self._spreads: dict[tuple[str, str], int] = {}
        self._near: dict[str, list[str]] = {}
        self._parts: dict[str, frozenset[str]] = {}

    # -- building and breaking

    def add(self, name: str, neighbours: Iterable[str] = (), *, utc: bool = False) -> Node:
        """A node starts, linked to those neighbours."""
        node = Node(
            name,
            self._clock(),
            self._election(name),
            self.random.randbytes(16),
            self.random.randrange(ROUND_NS),
            utc=utc,
        )
        self.nodes[name] = node
        self._know(node)
        for neighbour in neighbours:
            self.links.add(frozenset((name, neighbour)))
        return node

    def mesh(self, names: list[str], degree: int = 3) -> None:
        """All these nodes at once, on a random connected graph."""
        for place, name in enumerate(names):
            others = names[:place]
            self.add(name, self.random.sample(others, min(len(others), self.random.randint(1, degree))))

    def restart(self, name: str, *, boot: bool) -> None:
        """The daemon starts anew; with ``boot`` the machine did."""
        node = self.nodes[name]
        node.election, node.timescale, node.decision, node.up = self._election(name), None, None, True
        node.record = None
        node.store.clear()
        node.reached.clear()
        if boot:
            node.boot, node.raw_era, node.clock = self.random.randbytes(16), 1, self._clock()
            self._know(node)

    def corrupt(self, name: str, lie: Lie) -> None:
        """From its next record on the node lies."""
        self.lies[name] = lie
        self.nodes[name].record = None

    def suspend(self, name: str) -> None:
        """The raw clock lost some time, the wall clock did not."""
        node = self.nodes[name]
        lost = self.random.randrange(ROUND_NS, 10 * ROUND_NS)
        node.raw_era += 1
        node.clock = Clock(node.clock.base_ns - lost, node.clock.drift_ppb, node.clock.wall_minus_raw_ns + lost)
        node.reached.clear()
        self._know(node)

    def _election(self, name: str) -> Election:
        return Election(name, interval_ns=ROUND_NS, liars=self.liars)

    def _clock(self) -> Clock:
        pick = self.random
        return Clock(
            pick.randrange(10**15), pick.randint(-DRIFT_PPB, DRIFT_PPB), 10**18 + pick.randint(-(10**9), 10**9)
        )

    def _know(self, node: Node) -> None:
        self.clocks[node.name, node.boot, node.raw_era] = node.clock

    # -- truth

    def value_ns(self, timescale: Timescale, true_ns: int) -> int | None:
        """What a timescale reads; None for one that is made up."""
        if timescale == UTC:
            return 10**18 + true_ns
        clock = self.clocks.get((timescale.keeper, timescale.keeper_boot, timescale.keeper_raw_era))
        if clock is None:
            return None
        return clock.raw(true_ns) + (clock.wall_minus_raw_ns if timescale.k_ns is None else timescale.k_ns)

    def part(self, name: str) -> frozenset[str]:
        """All that ``name`` is connected with, itself included."""
        seen, look = {name}, [name]
        while look:
            here = look.pop()
            for other in self.neighbours(here):
                if other not in seen:
                    seen.add(other)
                    look.append(other)
        return frozenset(seen)

    def parts(self) -> set[frozenset[str]]:
        parts: set[frozenset[str]] = set()
        for name, node in self.nodes.items():
            if node.up and not any(name in part for part in parts):
                parts.add(self.part(name))
        return parts

    def neighbours(self, name: str) -> list[str]:
        if not self.nodes[name].up:
            return []
        found = []
        for link in self.links:
            if name in link:
                (other,) = link - {name}
                if other in self.nodes and self.nodes[other].up and self.cut(name) == self.cut(other):
                    found.append(other)
        return sorted(found)

    # -- what a node knows

    def bound(self, node: Node, timescale: Timescale) -> Interval | None:
        now, own_raw = self.now_ns, node.clock.raw(self.now_ns)
        if timescale == UTC:
            error = 50_000 if node.utc else 400_000
            return Interval(-error, error).shift(10**18 + now - own_raw)
        key = (timescale.keeper, timescale.keeper_boot, timescale.keeper_raw_era)
        clock = self.clocks.get(key)
        if clock is None:
            return None
        offset = self._offset(node, key, clock)
        if offset is None:
            return None
        return offset.shift(clock.wall_minus_raw_ns if timescale.k_ns is None else timescale.k_ns)

    def _offset(self, node: Node, key: tuple[str, bytes, int], clock: Clock) -> Interval | None:
        if key == (node.name, node.boot, node.raw_era):
            return Interval(0, 0)
        keeper = self.nodes.get(key[0])
        if keeper is not None and (keeper.boot, keeper.raw_era) == key[1:] and key[0] in self._parts[node.name]:
            pair = node.name, key[0]
            if pair not in self._spreads:
                self._spreads[pair] = self.random.randint(5_000, 80_000)
            spread = self._spreads[pair]
            off = round(spread * (2 * self.random.random() - 1))
            true = clock.raw(self.now_ns) - node.clock.raw(self.now_ns)
            node.reached[key] = self.now_ns, Interval(true + off - spread, true + off + spread)
        if key not in node.reached:
            return None
        at_ns, offset = node.reached[key]
        return offset.widen(2 * (self.now_ns - at_ns) * 2 * DRIFT_PPB // 1_000_000_000 + 1)

    # -- running

    def run(self, rounds: int, each: Callable[[], None] | None = None) -> None:
        for _ in range(rounds):
            self._round()
            if each is not None:
                each()

    def _round(self) -> None:
        start = self.now_ns
        self._near = {name: self.neighbours(name) for name in self.nodes}
        self._parts = {name: part for part in self.parts() for name in part}
        for node in sorted(self.nodes.values(), key=lambda node: (node.phase_ns, node.name)):
            if node.up:
                self.now_ns = start + node.phase_ns
                self._decide(node)
                self._gossip(node)
        self.now_ns = start + ROUND_NS

    def _decide(self, node: Node) -> None:
        members = [
            Member(
                owner,
                rumour.boot,
                rumour.raw_era,
                self.now_ns - rumour.made_ns,
                rumour.timescale,
                rumour.claims_utc,
                owner in node.barred,
            )
            for owner, rumour in node.store.items()
            if self.now_ns - rumour.made_ns < 120 * ROUND_NS
        ]
        # Bounds of keepers are kept up whether they are asked for or not.
        for timescale in {rumour.timescale for rumour in node.store.values()}:
            if timescale is not None and not timescale.carried:
                self.bound(node, timescale)
        asked: dict[Timescale, Interval | None] = {}

        def bound(timescale: Timescale) -> Interval | None:
            if timescale not in asked:
                asked[timescale] = self.bound(node, timescale)
            return asked[timescale]

        old = node.timescale
        was = None if old is None else bound(old)
        own = Own(node.boot, node.raw_era, node.utc, bound, None if was is None else was.midpoint)
        decision = node.election.decide(node.clock.raw(self.now_ns), own, members)
        node.timescale, node.decision = decision.timescale, decision
        node.sequence += 1
        node.record = Rumour(node.sequence, self.now_ns, node.boot, node.raw_era, decision.timescale, node.utc)
        if decision.changed is not None:
            will = None if decision.timescale is None else bound(decision.timescale)
            published = None if was is None else was.midpoint
            self.changes.append(Change(node.name, self.now_ns, decision, old, was, will, published))

    def _gossip(self, node: Node) -> None:
        for name in self._near[node.name]:
            other = self.nodes[name]
            self._tell(node, other)
            self._tell(other, node)

    def _tell(self, speaker: Node, listener: Node) -> None:
        offered: dict[str, Rumour] = {}
        if speaker.record is not None:
            lie = self.lies.get(speaker.name)
            told = speaker.record if lie is None else lie(self, speaker, speaker.record, listener.name)
            offered[speaker.name] = told
        # The keeper's record always, and others in turn.
        if speaker.timescale is not None and speaker.timescale.keeper in speaker.store:
            offered[speaker.timescale.keeper] = speaker.store[speaker.timescale.keeper]
        owners = list(speaker.store)
        for _ in range(min(GOSSIP, len(owners))):
            owner = owners[int(self.random.random() * len(owners))]
            offered[owner] = speaker.store[owner]
        for owner, rumour in offered.items():
            held = listener.store.get(owner)
            if owner == listener.name:
                continue
            if held is None or rumour.sequence > held.sequence:
                listener.store[owner] = rumour
            elif rumour.sequence == held.sequence and rumour != held:
                listener.barred.add(owner)

    # -- judging

    def honest(self, part: Iterable[str]) -> list[Node]:
        return [self.nodes[name] for name in sorted(part) if name not in self.lies]

    def settled(self) -> bool:
        """Whether in each part all honest nodes name one timescale, and somebody of that part keeps it."""
        return all(self._settled(part) for part in self.parts() if self.honest(part))

    def _settled(self, part: frozenset[str]) -> bool:
        named = {node.timescale for node in self.honest(part)}
        (timescale,) = named if len(named) == 1 else (None,)
        if timescale is None:
            return False
        need = self.liars + 1 if len(part) > 1 else 1
        claims = sum(self.nodes[name].utc for name in part)
        if timescale == UTC:
            return claims + len(self.lies) >= need
        if claims >= need:
            return False  # UTC is about to be taken
        keeper = self.nodes.get(timescale.keeper)
        return (
            keeper is not None
            and keeper.name in part
            and (keeper.boot, keeper.raw_era) == (timescale.keeper_boot, timescale.keeper_raw_era)
        )

    def until_settled(self, most: int) -> int:
        """Rounds until then."""
        for rounds in range(most):
            if self.settled():
                return rounds
            self._round()
        return most
