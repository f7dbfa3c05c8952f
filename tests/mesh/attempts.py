"""One attempt of a single liar against a small mesh; everything about it follows from the way it lies and a seed.

**Which convictions are due?** A liar that is contradicted by ``NEIGHBOURS`` honest neighbours is to be convicted by
every honest member that is able to. With f = 1 a member is not able to while a single other one might have made up all
that it hears against the liar. That is a matter of who has measured whom (the liars meant here are truthful about that
much), and :func:`able` says it in three conditions, by trying:

1. the judge *knows* enough of the contradicting neighbours: it is one, has measured it, or hears of it in spite of any
   one other member. Else that one may have invented the others;
2. ``NEIGHBOURS`` of those are left;
3. where it takes two neighbours' words to contradict the liar (who showed another time to each), two of them are
   connected without the judge, too. Else the judge takes part in every contradiction and does not rule out that its own
   clock is what is wrong.

Many attempts have a fan-out of 2, and then a member may hang on a single other one: those are ``unable``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.mesh.fleet import Fleet
from tests.mesh.liars import WAYS
from tests.mesh.truths import Tally, look
from tests.simulation.world import STYLES, Wire

ROUNDS = 24
NEIGHBOURS = 3
"""An honest member convicts who is contradicted by so many honest neighbours, if it is able to."""

Met = dict[str, set[str]]
"""Whom each member has measured."""


@dataclass
class Attempt:
    """What came of one, or of many."""

    tally: Tally = field(default_factory=Tally)
    count: int = 0
    due: int = 0
    """Verdicts that are claimed: honest members able to convict a liar that contradicts enough of its neighbours."""
    convicting: int = 0
    """Of those, the ones that convict it."""
    unable: int = 0
    """Honest members, where a liar contradicts enough of its neighbours, that can't know."""
    missed: list[str] = field(default_factory=list)
    convicted: int = 0
    """Attempts, of any kind, in which some honest member convicts the liar."""
    jumps: list[str] = field(default_factory=list)

    def add(self, other: Attempt) -> None:
        self.tally.add(other.tally)
        self.count += other.count
        self.due += other.due
        self.convicting += other.convicting
        self.unable += other.unable
        self.missed += other.missed
        self.convicted += other.convicted
        self.jumps += other.jumps


def attempt(way: str, seed: int) -> Attempt:
    """Plays it."""
    choose = random.Random(f"{way}/{seed}")
    names = [f"n{index:02}" for index in range(choose.choice((6, 6, 7, 7, 8, 8, 9, 10, 12)))]
    liar = choose.choice(names)
    honest = [name for name in names if name != liar]
    with_utc = choose.sample(honest, 2) if way == "false UTC" or choose.random() < 0.2 else []
    fleet = Fleet(
        names,
        choose.randrange(1 << 40),
        fanout=choose.choice((2, 2, 3, 4)),
        wire=Wire(minimum_us=choose.choice((20.0, 100.0, 1000.0)), jitter_us=choose.choice((5.0, 50.0, 500.0))),
        loss=choose.choice((0.0, 0.0, 0.05)),
        style=choose.choice(STYLES),
        lies={liar: WAYS[way](choose, honest)},
        utc=with_utc,
        duration_s=ROUNDS + 10,
        publishing=seed % 4 == 0,
    )
    outcome = Attempt(count=1)
    for _ in range(ROUNDS // 3):
        fleet.run(3.0)
        look(fleet, outcome.tally)
    lies = fleet.members[liar].lies
    assert lies is not None
    verdicts = {m.name: m.node.mesh is not None and liar in m.node.mesh.convicted for m in fleet.honest()}
    outcome.convicted = any(verdicts.values())
    met = {m.name: set(m.node.first_hand(m.oscillator.raw(fleet.true_ns))) for m in fleet.living()}
    neighbours = {name for name in verdicts if liar in met[name]}
    if lies.contradicts and len(neighbours) >= NEIGHBOURS:
        due = {name for name in verdicts if able(name, met, neighbours, liar, lies.contradicts)}
        outcome.due, outcome.unable = len(due), len(verdicts) - len(due)
        outcome.convicting = sum(verdicts[name] for name in due)
        outcome.missed = [f"{way}, seed {seed}: {name} does not convict {liar}" for name in due if not verdicts[name]]
    outcome.jumps = [text for member in fleet.honest() for text in member.published.jumps]
    return outcome


def able(judge: str, met: Met, neighbours: set[str], liar: str, together: int) -> bool:
    """Whether ``judge`` can know that ``liar`` lies, whom each ``together`` of its honest ``neighbours`` contradict."""
    known = {name for name in neighbours if name == judge or _hears(judge, name, met)}
    if len(known) < NEIGHBOURS:
        return False
    others = known - {judge}
    return together == 1 or any(len(others & _around(name, met, {judge, liar})) >= together for name in others)


def _hears(judge: str, name: str, met: Met) -> bool:
    """Whether ``judge`` hears of ``name`` whichever other member would keep it from that."""
    return name in met[judge] or all(
        name in _reach(judge, {one: those - {without} for one, those in met.items()})
        for without in met.keys() - {judge, name}
    )


def _around(name: str, met: Met, without: set[str]) -> set[str]:
    """All whose clocks are compared with ``name``'s, in whatever direction, with some members left out."""
    either = {one: {other for other in met if other in met[one] or one in met[other]} - without for one in met}
    return _reach(name, either)


def _reach(start: str, ways: Met) -> set[str]:
    """What lies at the end of any number of ways, ``start`` included."""
    found = [start]
    for name in found:
        found += sorted(ways[name] - set(found))
    return set(found)
