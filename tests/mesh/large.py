"""How a mesh behaves as it grows: when all is bounded, what is sent, how old records are, what it costs; and where the
direct path is slow."""

from __future__ import annotations

import gc
import time
import tracemalloc
from dataclasses import dataclass, field

from tests.mesh.fleet import Fleet
from tests.mesh.truths import Tally, bounded, look, quantile, scales
from tests.simulation.world import SECOND, Wire

FANOUT = 8


@dataclass
class Growth:
    """What came of one large mesh; times are in probe rounds (one a second) from a cold start of all members.

    Attributes:
        to_reference: when each member had a bound to the reference; None if not by the end.
        to_pairs: when each member had one on every other's clock.
        to_named: when all named one reference; ``to_agreed``: when all knew that all do.
        ages_s: of the records held at the end (median, 95 %, oldest).
    """

    nodes: int
    reference: str
    rounds: int = 0
    to_reference: int | None = None
    to_pairs: int | None = None
    to_named: int | None = None
    to_agreed: int | None = None
    ages_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tally: Tally = field(default_factory=Tally)


def grow(nodes: int, reference: str, rounds: int, *, fanout: int = FANOUT, seed: int = 1, whole: bool = True) -> Growth:
    """A cold start of so many members at once; ends early when everything was reached.

    Args:
        whole: go on until every pair is bounded, too.
    """
    names = [f"n{index:04}" for index in range(nodes)]
    name = names[nodes * 3 // 5] if reference == "configured" else "auto"
    fleet = Fleet(names, seed, fanout=fanout, reference=name, duration_s=rounds)
    found = Growth(nodes, reference)
    for number in range(1, rounds + 1):
        fleet.run(1.0)
        found.rounds = number
        named, agreed = scales(fleet)
        members = fleet.living()
        if len(named) == 1 and all(m.node.mesh is not None and m.node.mesh.timescale is not None for m in members):
            found.to_named = found.to_named or number
        else:
            found.to_named = None
        found.to_agreed = found.to_agreed or (number if agreed == nodes else None)
        if found.to_reference is None and found.to_named is not None:
            raws = ((member, member.oscillator.raw(fleet.true_ns)) for member in members)
            if all(member.node.reference_estimate(raw) is not None for member, raw in raws):
                found.to_reference = number
        if found.to_pairs is None and all(bounded(fleet, member) == nodes - 1 for member in members):
            found.to_pairs = number
        if found.to_reference and found.to_agreed and (found.to_pairs or not whole):
            break
    look(fleet, found.tally)
    ages = []
    for member in fleet.living():
        for owner, record in member.membership.store.records().items():
            its = fleet.members[owner].oscillator.raw(fleet.true_ns)
            ages.append(max(its - record.raw_ns, 0))
    found.ages_s = (quantile(ages, 0.5) / SECOND, quantile(ages, 0.95) / SECOND, quantile(ages, 1.0) / SECOND)
    return found


@dataclass
class Traffic:
    """What each member sends in one round, once it has begun: mean and most; and what it costs.

    Attributes:
        cpu_ms: of one member for one round, this machine's: measured, and without composing.
    """

    nodes: int
    packets: tuple[float, float] = (0.0, 0.0)
    bytes_sent: tuple[float, float] = (0.0, 0.0)
    requests: tuple[float, float] = (0.0, 0.0)
    cpu_ms: float = 0.0


def traffic(nodes: int, *, before: int = 6, rounds: int = 6, fanout: int = FANOUT) -> Traffic:
    """Counts for ``rounds`` rounds, after ``before``; the reference is configured, so it is asked by all."""
    fleet = _without_composing(nodes, before + rounds, fanout)
    fleet.run(before)
    begun = {name: member.sent.copy() for name, member in fleet.members.items()}
    spent = time.process_time()
    fleet.run(rounds)
    spent = time.process_time() - spent
    found = Traffic(nodes, cpu_ms=spent * 1000 / rounds / nodes)
    for kind in ("packets", "bytes", "requests"):
        each = [(member.sent[kind] - begun[name][kind]) / rounds for name, member in fleet.members.items()]
        setattr(found, "bytes_sent" if kind == "bytes" else kind, (sum(each) / nodes, max(each)))
    return found


def memory(nodes: int, *, rounds: int = 12) -> float:
    """KiB of Python objects that one member holds after so many rounds, without composing: measured."""
    gc.collect()
    tracemalloc.start()
    try:
        fleet = _without_composing(nodes, rounds, FANOUT)
        fleet.run(rounds)
        return tracemalloc.get_traced_memory()[0] / nodes / 1024
    finally:
        tracemalloc.stop()


def _without_composing(nodes: int, rounds: int, fanout: int) -> Fleet:
    names = [f"n{index:04}" for index in range(nodes)]
    reference = names[nodes * 3 // 5]
    return Fleet(names, 1, fanout=fanout, reference=reference, duration_s=rounds + 1, composing=False)


@dataclass
class Congested:
    """Bounds of pairs whose direct path is slow, in us: median of what own exchanges give, and with the others'."""

    own_us: float
    with_others_us: float
    bettered: int
    pairs: int


def congested(seeds: int) -> Congested:
    """A direct path of 20 ms each way with 2 ms jitter in a mesh of 100 us; f = 1."""
    own, both = [], []
    for seed in range(seeds):
        slow = Wire(minimum_us=20_000.0, jitter_us=2_000.0)
        ways = {("n00", "n01"): slow, ("n01", "n00"): slow, ("n02", "n03"): slow, ("n03", "n02"): slow}
        fleet = Fleet([f"n{index:02}" for index in range(8)], seed, wires=ways)
        fleet.run(20)
        for one, other in ways:
            here = fleet.members[one]
            raw = here.oscillator.raw(fleet.true_ns)
            found = here.node._raw_offset(other, raw)
            if found is not None and other in here.node.first_hand(raw):
                own.append(here.node.first_hand(raw)[other][1].offset.width)
                both.append(found[0].offset.width)
    bettered = sum(one > 5 * other for one, other in zip(own, both, strict=True))
    middle = len(own) // 2
    return Congested(sorted(own)[middle] / 1000, sorted(both)[middle] / 1000, bettered, len(own))
