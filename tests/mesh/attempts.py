"""One attempt of a single liar against a small mesh; everything about it follows from the way it lies and a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.mesh.fleet import Fleet
from tests.mesh.liars import WAYS
from tests.mesh.truths import Tally, look
from tests.simulation.world import STYLES, Wire

ROUNDS = 24
NEIGHBOURS = 3
"""An honest member is sure to convict who is contradicted by so many honest neighbours."""


@dataclass
class Attempt:
    """What came of one, or of many."""

    tally: Tally = field(default_factory=Tally)
    count: int = 0
    due: int = 0
    """Verdicts that are claimed: honest members, where the liar is blatant and has honest neighbours enough."""
    convicting: int = 0
    """Of those, the ones that convict it."""
    convicted: int = 0
    """Attempts, of any kind, in which some honest member convicts the liar."""
    jumps: list[str] = field(default_factory=list)

    def add(self, other: Attempt) -> None:
        self.tally.add(other.tally)
        self.count += other.count
        self.due += other.due
        self.convicting += other.convicting
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
    verdicts = [member.node.mesh is not None and liar in member.node.mesh.convicted for member in fleet.honest()]
    outcome.convicted = any(verdicts)
    neighbours = sum(
        liar in member.node.first_hand(member.oscillator.raw(fleet.true_ns)) for member in fleet.honest()
    )
    if lies.blatant and neighbours >= NEIGHBOURS:
        outcome.due, outcome.convicting = len(verdicts), sum(verdicts)
    outcome.jumps = [text for member in fleet.honest() for text in member.published.jumps]
    return outcome
