"""Meshes with known truth: drifting clocks, true records, and members that lie in every way we can think of."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

from skewd.bounds.carry import Claim
from skewd.bounds.compose import FirstHand, Here, clock_tag
from skewd.bounds.pair import pair_limits
from skewd.interval import Interval
from skewd.records import EDGES_MAX, Edge, Record

SECOND = 1_000_000_000
DRIFT_PPM = 100
WANDER = 10
PAST_S = 600


@dataclass
class Clock:
    """A raw clock: its rate wanders at the limit, up or down, within +- ``limit_ppb``. True time in s, from -PAST_S."""

    epoch_ns: int
    path: list[tuple[float, float, float, float]]  # from true t: (t, drift in ppb, ns gained by then, ppb/s)

    @classmethod
    def made(cls, choose: random.Random, limit_ppb: float = DRIFT_PPM * 1000, wander: float = WANDER) -> Clock:
        t, drift, gained = -float(PAST_S), choose.uniform(-limit_ppb, limit_ppb), 0.0
        path = []
        while t < 1:
            accel = choose.choice((-wander, 0.0, wander))
            length = choose.uniform(20, 300)
            if abs(drift + accel * length) > limit_ppb:
                accel = 0.0
            path.append((t, drift, gained, accel))
            gained += drift * length + accel * length * length / 2
            drift += accel * length
            t += length
        return cls(choose.randrange(-(1 << 50), 1 << 50), path)

    def _piece(self, t: float) -> tuple[float, float, float, float]:
        return max(piece for piece in self.path if piece[0] <= t)

    def drift(self, t: float) -> float:
        start, drift, _, accel = self._piece(t)
        return drift + accel * (t - start)

    def gained(self, t: float) -> float:
        """ns ahead of true time since -PAST_S."""
        start, drift, gained, accel = self._piece(t)
        tau = t - start
        return gained + drift * tau + accel * tau * tau / 2

    def raw(self, t: float) -> int:
        return self.epoch_ns + round(t * SECOND + self.gained(t))


@dataclass
class Member:
    name: str
    key: bytes
    boot: bytes
    clock: Clock
    raw_era: int = 1
    drift_ppm: float = DRIFT_PPM
    wander: float = WANDER
    shown: dict[str, int] = field(default_factory=dict)  # a liar shows this much more to that neighbour

    @property
    def tag(self) -> bytes:
        return clock_tag(self.name, self.key, self.boot, self.raw_era)


def true_offset(owner: Member, other: Member, t: float) -> float:
    """other - owner at true time t, as accurately as floats give it, less whole epochs."""
    return (other.clock.epoch_ns - owner.clock.epoch_ns) + (other.clock.gained(t) - owner.clock.gained(t))


def true_drift(owner: Member, other: Member, t: float) -> float:
    mine, its = owner.clock.drift(t), other.clock.drift(t)
    return (its - mine) / (1 + mine * 1e-9)


def outward(low: float, high: float) -> Interval:
    """Whole ns; 2 more for the floats of this world, and for reading the owner's clock in whole ns."""
    return Interval(math.floor(low) - 2, math.ceil(high) + 2)


def honest_claim(choose: random.Random, owner: Member, other: Member, t: float, *, tight: float = 0.3) -> Claim:
    """A true claim about other's clock as it shows itself to the owner; often as tight as truth allows."""
    drift_ppm, wander = pair_limits(owner.drift_ppm, owner.wander, other.drift_ppm, other.wander)
    limit, its_wander = math.ceil(drift_ppm * 1000), math.ceil(wander)
    truth = true_offset(owner, other, t) + other.shown.get(owner.name, 0)
    rate = true_drift(owner, other, t)

    def slack(scale: float) -> float:
        return 0.0 if choose.random() < tight else choose.expovariate(1 / scale)

    offset = outward(truth - slack(100_000), truth + slack(100_000))
    low, high = math.floor(rate - slack(2_000)), math.ceil(rate + slack(2_000))
    # A liar's declared limits may exclude its true rate; then the honest filter would have begun anew within them.
    low, high = max(-limit, min(limit, low)), max(-limit, min(limit, high))
    return Claim(offset, Interval(low, high), limit, its_wander)


@dataclass
class World:
    """One mesh at true time 0, as ``members[0]`` sees it."""

    members: list[Member]
    first_hand: dict[str, FirstHand]
    records: dict[str, Record]
    neighbours: dict[str, set[str]]
    liar: Member | None
    t_now: float = 0.0

    @property
    def here(self) -> Here:
        return Here(self.members[0].name, self.members[0].tag)

    @property
    def now_ns(self) -> int:
        return self.members[0].clock.raw(self.t_now)

    def truth(self, name: str) -> float:
        return true_offset(self.members[0], self.member(name), self.t_now)

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    @property
    def honest(self) -> list[str]:
        return [member.name for member in self.members[1:] if member is not self.liar]


def make_record(owner: Member, t: float, edges: list[Edge], sequence: int = 1, utc: Claim | None = None) -> Record:
    return Record(
        owner=owner.name,
        public_key=owner.key,
        boot=owner.boot,
        raw_era=owner.raw_era,
        era=1,
        sequence=sequence,
        raw_ns=owner.clock.raw(t),
        wall_minus_raw=Interval(0, 200),
        wall_slew_ppb=500_000,
        max_drift_ppm=round(owner.drift_ppm),
        max_wander_ppb_per_s=round(owner.wander),
        utc=utc,
        edges=tuple(edges[:EDGES_MAX]),
    )


def member(choose: random.Random, name: str) -> Member:
    return Member(name, choose.randbytes(32), choose.randbytes(16), Clock.made(choose))


def make(choose: random.Random, *, nodes: int, degree: int, liar: bool, oldest_s: float = 120.0) -> World:
    """A random mesh. With ``liar`` one of the members (never the one who looks) lies in a random way."""
    members = [member(choose, f"n{index:03}") for index in range(nodes)]
    neighbours: dict[str, set[str]] = {each.name: set() for each in members}
    for one in members:
        for other in choose.sample([each for each in members if each is not one], min(degree, nodes - 1)):
            neighbours[one.name].add(other.name)
            neighbours[other.name].add(one.name)
    by_name = {each.name: each for each in members}
    bad = choose.choice(members[1:]) if liar else None
    if bad is not None:
        _two_faced(choose, bad, neighbours)
    here = members[0]
    first_hand: dict[str, FirstHand] = {}
    for name in neighbours[here.name]:
        claim = honest_claim(choose, here, by_name[name], 0.0, tight=0.1)
        first_hand[name] = FirstHand(by_name[name].tag, claim.offset, claim.drift_ppb)
    records: dict[str, Record] = {}
    for owner in members[1:]:
        t = -choose.uniform(0, oldest_s) if choose.random() < 0.9 else -choose.uniform(0, PAST_S - 1)
        about = sorted(neighbours[owner.name])
        choose.shuffle(about)
        edges = [Edge(by_name[name].tag, honest_claim(choose, owner, by_name[name], t)) for name in about]
        records[owner.name] = make_record(owner, t, edges)
    world = World(members, first_hand, records, neighbours, bad)
    if bad is not None:
        _lie(choose, world, bad)
    return world


def _two_faced(choose: random.Random, bad: Member, neighbours: dict[str, set[str]]) -> None:
    """How its clock behaves: limits that it breaks, or another time for each neighbour."""
    if choose.random() < 0.3:
        bad.drift_ppm = bad.wander = 0
    if choose.random() < 0.4:
        common = choose.choice((0, choose.randrange(-5_000_000, 5_000_000)))
        for name in neighbours[bad.name]:
            bad.shown[name] = common or choose.randrange(-5_000_000, 5_000_000)


def _lie(choose: random.Random, world: World, bad: Member) -> None:
    """What it says: false bounds, rates, limits, instants; forged records of others, and of nobody."""
    shift = choose.randrange(-20_000_000, 20_000_000)
    way = choose.randrange(6)
    edges = []
    for edge in world.records[bad.name].edges:
        claim = edge.claim
        if way == 0:
            claim = replace(claim, offset=claim.offset.shift(shift))
        elif way == 1:
            middle = claim.offset.midpoint + choose.randrange(-20_000_000, 20_000_000)
            claim = replace(claim, offset=Interval(middle, middle + choose.randrange(1_000)))
        elif way == 2:
            rate = choose.randrange(-claim.drift_limit_ppb, claim.drift_limit_ppb + 1)
            claim = replace(claim, drift_ppb=Interval(rate, rate))
        elif way == 3:
            claim = Claim(Interval(claim.offset.midpoint, claim.offset.midpoint), Interval(0, 0), 0, 0)
        elif way == 4 and choose.random() < 0.5:
            claim = replace(claim, offset=claim.offset.shift(choose.choice((-1, 1)) * choose.randrange(5_000, 300_000)))
        edges.append(Edge(edge.clock, claim))
    record = replace(world.records[bad.name], edges=tuple(edges))
    if way == 5:
        record = replace(record, raw_ns=record.raw_ns + choose.randrange(-100 * SECOND, 100 * SECOND))
    world.records[bad.name] = record
    if choose.random() < 0.5:
        _forge(choose, world, bad, shift)


def _forge(choose: random.Random, world: World, bad: Member, shift: int) -> None:
    """Records in other names, with keys of the liar's own, that claim what helps it most."""
    tags = [each.tag for each in world.members]
    by_tag = {each.tag: each for each in world.members}
    far = [name for name in world.honest if name not in world.first_hand]
    names = choose.sample(far, min(len(far), 2)) + [f"made-up-{index}" for index in range(choose.randrange(3))]
    forged = [replace(member(choose, name), clock=bad.clock) for name in names]
    mine = list(world.records[bad.name].edges)
    for each in forged:
        about = choose.sample(tags, min(len(tags), EDGES_MAX - len(forged)))
        edges = []
        for tag in about:
            claim = honest_claim(choose, each, by_tag[tag], 0.0, tight=1.0)
            edges.append(Edge(tag, replace(claim, offset=claim.offset.shift(shift))))
        for other in forged:
            if other is not each:
                edges.append(Edge(other.tag, honest_claim(choose, each, other, 0.0, tight=1.0)))
        world.records[each.name] = make_record(each, 0.0, edges)
        mine.insert(0, Edge(each.tag, honest_claim(choose, bad, each, 0.0, tight=1.0)))
    world.records[bad.name] = replace(world.records[bad.name], edges=tuple(mine[:EDGES_MAX]))
