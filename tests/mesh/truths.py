"""Everything that the members of a fleet say about clocks, compared with the truth.

A *miss* is a bound that does not hold the truth: between honest members, by own exchanges, through others, or as
published. Of a liar's own clock nothing is claimed, nor of a timescale that a liar keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from skewd.bounds.compose import UTC as UTC_NAME
from skewd.election import UTC, Timescale
from skewd.interval import Interval
from skewd.reader import NoBound, reference_time
from tests.mesh.fleet import Fleet, Member
from tests.simulation.world import SECOND, UNIX_NS

TOLERANCE_NS = 1.0
"""Epochs are large numbers, and a float of them has a third of a nanosecond."""

KINDS = ("first-hand", "through others", "both", "rates", "walls", "reference", "published")


@dataclass
class Tally:
    """What was compared, and what was wrong."""

    checks: Counter[str] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)
    accused: set[tuple[str, str]] = field(default_factory=set)
    """(who convicts, whom): honest members that an honest one convicts."""
    narrower: int = 0
    """Bounds that others made narrower than own exchanges had."""

    def take(self, kind: str, what: str, bound: Interval, truth: float) -> None:
        """One bound."""
        self.checks[kind] += 1
        if not bound.lo - TOLERANCE_NS <= truth <= bound.hi + TOLERANCE_NS:
            out = max(bound.lo - truth, truth - bound.hi)
            self.misses.append(f"{kind}: {what}: {out:.0f} ns outside of {bound.width} ns")

    def add(self, other: Tally) -> None:
        """Another run's."""
        self.checks += other.checks
        self.misses += other.misses
        self.accused |= other.accused
        self.narrower += other.narrower

    @property
    def total(self) -> int:
        return sum(self.checks.values())


def look(fleet: Fleet, tally: Tally | None = None, *, whole: bool = True) -> Tally:
    """Compares what every honest member says now; with ``whole`` walls and the reference, too."""
    tally = Tally() if tally is None else tally
    for here in fleet.honest():
        raw = here.oscillator.raw(fleet.true_ns)
        _raw_clocks(fleet, tally, here, raw)
        if whole:
            _walls(fleet, tally, here, raw)
        view = here.node.mesh
        for name in () if view is None else view.convicted:
            other = fleet.members.get(name)
            if other is not None and other.lies is None:
                tally.accused.add((here.name, name))
    return tally


def _rate(fleet: Fleet, here: Member, there: Member) -> float:
    mine, its = here.oscillator.drift(fleet.true_ns), there.oscillator.drift(fleet.true_ns)
    return (its - mine) / (1 + mine * 1e-9)


def _raw_clocks(fleet: Fleet, tally: Tally, here: Member, raw: int) -> None:
    node, now = here.node, fleet.true_ns
    for name, (declared, known) in node.first_hand(raw).items():
        there = fleet.clock(name, declared.timebase)
        if there is not None:
            what, truth = f"{here.name} of {name} at {now / SECOND:.1f} s", fleet.raw_between(here, there)
            tally.take("first-hand", what, known.offset, truth)
            tally.take("rates", what, known.drift_ppb, _rate(fleet, here, there))
    view = node.mesh
    if view is None:
        return
    for name, composed in view.known.items():
        for path in composed.composed.paths:
            if view.convicted.intersection(path[:-1]):
                tally.misses.append(f"{here.name} of {name}: a convicted member is on the path {path}")
        what = f"{here.name} of {name} at {now / SECOND:.1f} s by {composed.composed.paths}"
        heard = view.heard(name, raw, composed.timebase)
        if heard is None:
            continue
        if name == UTC_NAME:
            mine = here.oscillator
            truth = UNIX_NS - mine.epoch_ns - mine.deviation(now)
            tally.take("through others", what, heard.offset, truth)
            continue
        there = fleet.clock(name, composed.timebase)
        if there is not None:
            truth = fleet.raw_between(here, there)
            tally.take("through others", what, heard.offset, truth)
            tally.take("rates", what, heard.drift_ppb, _rate(fleet, here, there))
            both = node._raw_offset(name, raw)
            if both is not None and both[1].timebase == composed.timebase:
                tally.take("both", what, both[0].offset, truth)
                own = node.first_hand(raw).get(name) if name in node._peers else None
                tally.narrower += own is not None and both[0].offset.width < own[1].offset.width


def _walls(fleet: Fleet, tally: Tally, here: Member, raw: int) -> None:
    node, now = here.node, fleet.true_ns
    mine = here.wall.read(now)
    for name in sorted(set(node._peers) | set(node.mesh.known if node.mesh else ())):
        found = node._raw_offset(name, raw)
        there = None if found is None else fleet.clock(name, found[1].timebase)
        if found is None or there is None or found[1].era != there.node.wall.era:
            continue
        estimate = node.peer_estimate(name, raw)
        if estimate is not None:
            what = f"{here.name} of {name}'s wall at {now / SECOND:.1f} s"
            tally.take("walls", what, estimate.bound, there.wall.read(now) - mine)
    scale = None if node.mesh is None else node.mesh.timescale
    if scale is None:
        return
    truth = reading(fleet, here, scale)
    estimate = node.reference_estimate(raw)
    if truth is not None and estimate is not None and not fleet.blind(here, raw):
        tally.take("reference", f"{here.name} at {now / SECOND:.1f} s of {scale}", estimate.bound, truth - mine)
    published = here.published
    if published.latest is None or published.scale is None or fleet.blind(here, raw):
        return
    if now - published.blind_ns < SECOND:
        return  # until the next knot
    truth = reading(fleet, here, published.scale)
    if truth is None or published.latest.bound is None:
        return
    try:
        told = reference_time(published.latest, raw)
    except NoBound:
        return
    what = f"{here.name} at {now / SECOND:.1f} s of {published.scale}"
    tally.take("published", what, told, truth)


def reading(fleet: Fleet, here: Member, scale: Timescale) -> float | None:
    """What a timescale reads now; None if nobody can say (a liar keeps it)."""
    if scale == UTC:
        return UNIX_NS + fleet.true_ns
    if fleet.configured is not None:
        # Its wall clock, as was asked for: reboots included.
        node = fleet.members.get(scale.keeper)
        return None if node is None or node.lies is not None else node.wall.read(fleet.true_ns)
    keeper = fleet.clock(scale.keeper, (scale.keeper_boot, scale.keeper_raw_era))
    if keeper is None:
        return None
    if scale.k_ns is None:
        return keeper.wall.read(fleet.true_ns)
    return keeper.oscillator.raw(fleet.true_ns) + scale.k_ns


def bounded(fleet: Fleet, here: Member) -> int:
    """Of how many other living members it has a bound on the raw clock."""
    raw, count = here.oscillator.raw(fleet.true_ns), 0
    for there in fleet.living():
        if there is not here:
            found = here.node._raw_offset(there.name, raw)
            count += found is not None and found[1].timebase == (there.node.boot, there.node.raw_era)
    return count


def scales(fleet: Fleet) -> tuple[set[object], int]:
    """The clocks that living honest members name, and how many say that all agree."""
    views = [member.node.mesh for member in fleet.honest()]
    named: set[object] = {view.timescale.clock for view in views if view is not None and view.timescale is not None}
    return named, sum(view is not None and view.agreed for view in views)


def quantile(values: list[int], share: float) -> int:
    """The least of which at least that share is not above; 0 of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else 0
