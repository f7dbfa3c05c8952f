"""Members with a valid key that lie, each in its own way; what each does follows from a seed.

The ways: false bounds in its records (shifted, tight, shaved by a little), false rates, false limits (in records, in
messages), false instants; another time shown to each peer, or another one from some moment on; records of others
altered, invented, replayed or held back; other words for each peer under one number; made-up members that vouch for it;
everything at once against one victim, to have it convicted; false UTC, false votes, a false carried timescale.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from skewd.bounds.carry import Claim
from skewd.bounds.compose import clock_tag
from skewd.election import Timescale
from skewd.interval import Interval
from skewd.links.protocol import Self
from skewd.records import (
    EDGES_MAX,
    Edge,
    Record,
    _encode,
    bundle,
    decode,
    private_key,
    public_key_of,
    sign,
    unbundle,
)
from tests.mesh.fleet import Lies, Member
from tests.simulation.world import SECOND

_WANT_BYTES = 38
Way = Callable[[random.Random, list[str]], Lies]


def _edges(record: Record, change: Callable[[int, Claim], Claim]) -> Record:
    return replace(record, edges=tuple(Edge(e.clock, change(i, e.claim)) for i, e in enumerate(record.edges)))


def _moved(claim: Claim, by_ns: int) -> Claim:
    return replace(claim, offset=claim.offset.shift(by_ns))


def _far(choose: random.Random) -> int:
    """A shift beyond any bound of these meshes."""
    return choose.choice((-1, 1)) * choose.randrange(20_000_000, 80_000_000)


def _any(choose: random.Random) -> int:
    """A shift of any size from 1 us on."""
    return choose.choice((-1, 1)) * round(10 ** choose.uniform(3, 7.3))


def shifted(choose: random.Random, names: list[str]) -> Lies:
    by_ns = _far(choose)
    return Lies(record=lambda record: _edges(record, lambda _, claim: _moved(claim, by_ns)), contradicts=1)


def shifted_a_little(choose: random.Random, names: list[str]) -> Lies:
    moves = [_any(choose) for _ in range(EDGES_MAX)]
    return Lies(record=lambda record: _edges(record, lambda index, claim: _moved(claim, moves[index])))


def tight(choose: random.Random, names: list[str]) -> Lies:
    """False bounds of a nanosecond's width, near the truth or far from it."""
    moves = [_any(choose) for _ in range(EDGES_MAX)]

    def change(index: int, claim: Claim) -> Claim:
        at = claim.offset.midpoint + moves[index]
        return replace(claim, offset=Interval(at, at + 1))

    return Lies(record=lambda record: _edges(record, change))


def shaved(choose: random.Random, names: list[str]) -> Lies:
    """Bounds that agree with everybody's, cut to one end."""
    upper = [choose.random() < 0.5 for _ in range(EDGES_MAX)]
    share = choose.choice((2, 10, 100))

    def change(index: int, claim: Claim) -> Claim:
        lo, hi = claim.offset.lo, claim.offset.hi
        part = (hi - lo) // share
        return replace(claim, offset=Interval(hi - part, hi) if upper[index] else Interval(lo, lo + part))

    return Lies(record=lambda record: _edges(record, change))


def rates(choose: random.Random, names: list[str]) -> Lies:
    shares = [choose.uniform(-1, 1) for _ in range(EDGES_MAX)]

    def change(index: int, claim: Claim) -> Claim:
        rate = round(shares[index] * claim.drift_limit_ppb)
        return replace(claim, drift_ppb=Interval(rate, rate))

    return Lies(record=lambda record: _edges(record, change))


def _perfect(record: Record) -> Record:
    changed = _edges(
        record, lambda _, claim: Claim(Interval(claim.offset.midpoint, claim.offset.midpoint), Interval(0, 0), 0, 0)
    )
    return replace(changed, max_drift_ppm=0, max_wander_ppb_per_s=0)


def limits_in_records(choose: random.Random, names: list[str]) -> Lies:
    return Lies(record=_perfect)


def _steady(said: Self) -> Self:
    return replace(said, max_drift_ppm=0, max_wander_ppb_per_s=0)


def limits_in_messages(choose: random.Random, names: list[str]) -> Lies:
    """Its clock is said to be perfect: what others prove of it is false after a while."""
    both = choose.random() < 0.5
    return Lies(describe=_steady, record=_perfect if both else lambda record: record)


def limits_that_change(choose: random.Random, names: list[str]) -> Lies:
    calls = [0]

    def describe(said: Self) -> Self:
        calls[0] += 1
        return _steady(said) if calls[0] // 7 % 2 else said

    return Lies(describe=describe)


def two_faced(choose: random.Random, names: list[str]) -> Lies:
    """Another time for each peer, any two too far apart for one clock; records that agree with what was shown."""
    steps = (choose.randrange(20_000_000, 50_000_000) for _ in names)
    shifts = dict(zip(names, itertools.accumulate(steps), strict=True))
    return Lies(shift_ns=lambda peer, _: shifts[peer], contradicts=2)


def two_faced_a_little(choose: random.Random, names: list[str]) -> Lies:
    shifts = {name: _any(choose) // 10 for name in names}
    return Lies(shift_ns=lambda peer, _: shifts[peer])


def another_time_later(choose: random.Random, names: list[str]) -> Lies:
    at, by_ns, some = choose.uniform(5, 20) * SECOND, _any(choose), set(choose.sample(names, len(names) // 2))
    return Lies(shift_ns=lambda peer, now: by_ns if now > at and peer in some else 0)


def instants(choose: random.Random, names: list[str]) -> Lies:
    by_ns = choose.randrange(-100 * SECOND, 100 * SECOND)
    return Lies(record=lambda record: replace(record, raw_ns=record.raw_ns + by_ns))


def _attached(honest: bytes, records: list[bytes], room: int) -> bytes:
    """Those first, then what an honest member would attach, as far as there is room."""
    fits: list[bytes] = []
    left = room - _WANT_BYTES
    for data in [*records, *unbundle(honest[_WANT_BYTES:])]:
        if len(data) + 2 <= left:
            fits.append(data)
            left -= len(data) + 2
    return honest[:_WANT_BYTES] + bundle(fits)


def forged(choose: random.Random, names: list[str]) -> Lies:
    """Records of others: altered under their keys, or signed anew with its own."""
    key = private_key(choose.randbytes(32))
    by_ns = _far(choose)

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        held = member.membership.store.records()
        if not held:
            return honest
        victim = held[choose.choice(sorted(held))]
        false = _edges(replace(victim, sequence=victim.sequence + 1), lambda _, claim: _moved(claim, by_ns))
        if choose.random() < 0.5:
            return _attached(honest, [_encode(false) + choose.randbytes(64)], room)
        return _attached(honest, [sign(replace(false, public_key=public_key_of(key)), key)], room)

    return Lies(attach=attach)


def sybils(choose: random.Random, names: list[str]) -> Lies:
    """Members that do not exist, and one that does under another key, vouch for each other and for what it says."""
    made_up = [f"a-sybil-{index}" for index in range(3)]
    made_up.append(choose.choice(names))
    keys = [private_key(choose.randbytes(32)) for _ in made_up]
    publics = [public_key_of(key) for key in keys]
    boots = [choose.randbytes(16) for _ in made_up]
    tags = [clock_tag(*what, 1) for what in zip(made_up, publics, boots, strict=True)]
    by_ns, sequence = _far(choose), [0]
    zero = Claim(Interval(0, 1), Interval(0, 0), 0, 0)

    def record(own: Record) -> Record:
        edges = tuple(Edge(tag, zero) for tag in tags)
        return replace(own, edges=(*edges, *own.edges)[:EDGES_MAX])

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        sequence[0] += 1
        index = choose.randrange(len(made_up))
        raw = member.node.wall.latest.raw_ns
        mine = member.node.describe()
        own = member.membership.store
        edges = [Edge(tag, zero) for tag in tags if tag != tags[index]]
        for name, (declared, known) in member.node.first_hand(raw).items():
            tag = own.clock_of(name, declared.boot, declared.raw_era)
            if tag is not None and len(edges) < EDGES_MAX:
                at = known.offset.midpoint + by_ns
                edges.append(Edge(tag, Claim(Interval(at, at + 10), Interval(0, 0), 0, 0)))
        false = Record(
            owner=made_up[index],
            public_key=publics[index],
            boot=boots[index],
            raw_era=1,
            era=1,
            sequence=(1 << 50) + sequence[0],
            raw_ns=raw,
            wall_minus_raw=mine.wall_minus_raw,
            wall_slew_ppb=0,
            max_drift_ppm=0,
            max_wander_ppb_per_s=0,
            edges=tuple(edges),
        )
        return _attached(honest, [sign(false, keys[index])], room)

    return Lies(record=record, attach=attach)


def replays(choose: random.Random, names: list[str]) -> Lies:
    """Passes on old records of others only, again and again."""
    old: list[bytes] = []

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        for data in unbundle(honest[_WANT_BYTES:]):
            if len(old) < 60 and data not in old:
                old.append(data)
        return honest[:_WANT_BYTES] + bundle([choose.choice(old)]) if len(old) > 20 else honest

    return Lies(attach=attach)


def holds_back(choose: random.Random, names: list[str]) -> Lies:
    """Passes nothing on of some members, or of anybody; sometimes not its own words either."""
    hidden = set(choose.sample(names, choose.randrange(1, len(names))))
    return Lies(attach=lambda member, peer, room, honest: honest if peer not in hidden else honest[:_WANT_BYTES])


def equivocates(choose: random.Random, names: list[str]) -> Lies:
    """Its records say something else to each peer, under one number."""
    shifts = {name: _any(choose) for name in names}

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        store = member.membership.store
        own = store._own
        if own is None or peer not in shifts:
            return honest
        false = _edges(decode(own), lambda _, claim: _moved(claim, shifts[peer]))
        others = [data for data in unbundle(honest[_WANT_BYTES:]) if data != own]
        return _attached(honest[:_WANT_BYTES] + bundle(others), [sign(false, private_key(member.secret))], room)

    return Lies(attach=attach)


def frames(choose: random.Random, names: list[str]) -> Lies:
    """Everything against one victim: its bounds are denied, it is shown another time, made-up members agree."""
    victim = choose.choice(names)
    by_ns = _far(choose)
    false = sybils(choose, [name for name in names if name != victim])

    def record(own: Record) -> Record:
        return false.record(_edges(own, lambda index, claim: _moved(claim, by_ns if index == 0 else 0)))

    return Lies(
        shift_ns=lambda peer, _: by_ns if peer == victim else 0,
        record=record,
        attach=false.attach if choose.random() < 0.5 else lambda member, peer, room, honest: honest,
    )


def utc(choose: random.Random, names: list[str]) -> Lies:
    by_ns = _any(choose)

    def record(own: Record) -> Record:
        if own.utc is not None:
            return replace(own, utc=_moved(own.utc, by_ns))
        false = own.wall_minus_raw.midpoint + by_ns
        return replace(own, utc=Claim(Interval(false, false + 100), Interval(0, 0), 200_000, 20))

    return Lies(record=record)


def timescales(choose: random.Random, names: list[str]) -> Lies:
    """Votes for its own wall clock from the start on, or says that it carries what another keeps."""
    own_one = choose.random() < 0.5
    by_ns = _any(choose)

    def record(own: Record) -> Record:
        said = own.timescale
        if own_one or said is None or said.origin == "utc":
            epoch = choose.choice((1, 4_000_000_000))
            return replace(own, timescale=Timescale(epoch, own.owner, own.owner, own.boot, 1))
        k_ns = own.wall_minus_raw.midpoint + by_ns
        return replace(
            own,
            timescale=replace(said, keeper=own.owner, keeper_boot=own.boot, keeper_raw_era=own.raw_era, k_ns=k_ns),
        )

    return Lies(record=record)


def everything(choose: random.Random, names: list[str]) -> Lies:
    """Two or three of the others at once."""
    chosen = [way(choose, names) for way in choose.sample(list(SINGLE.values()), choose.choice((2, 3)))]

    def shift(peer: str, now: int) -> int:
        return sum(lies.shift_ns(peer, now) for lies in chosen)

    def record(own: Record) -> Record:
        for lies in chosen:
            own = lies.record(own)
        return own

    def describe(said: Self) -> Self:
        for lies in chosen:
            said = lies.describe(said)
        return said

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        for lies in chosen:
            honest = lies.attach(member, peer, room, honest)
        return honest

    return Lies(shift, record, describe, attach)


SINGLE: dict[str, Way] = {
    "bounds shifted": shifted,
    "bounds shifted a little": shifted_a_little,
    "bounds of a nanosecond": tight,
    "bounds cut to one end": shaved,
    "rates": rates,
    "limits in records": limits_in_records,
    "limits in messages": limits_in_messages,
    "limits that change": limits_that_change,
    "another time for each peer": two_faced,
    "another time for each peer, nearly right": two_faced_a_little,
    "another time from a moment on": another_time_later,
    "false instants": instants,
    "forged relays": forged,
    "made-up members": sybils,
    "stale records replayed": replays,
    "records held back": holds_back,
    "other words for each peer": equivocates,
    "a victim framed": frames,
    "false UTC": utc,
    "false timescales": timescales,
}
WAYS: dict[str, Way] = {**SINGLE, "several at once": everything}
