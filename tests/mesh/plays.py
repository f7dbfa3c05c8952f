"""What happens to meshes: partitions, restarts, churn, walls that are set, references that die. Nobody lies here.

A *play* is a small mesh, a wire and a script. Every 1.5 s everything that its members say is compared with the truth
(``truths.py``), and whether they agree on the reference, or say that they don't.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.mesh.fleet import Fleet, Member
from tests.mesh.truths import Tally, look
from tests.simulation.world import SECOND, STYLES, Wire

LOOK_S = 1.5
TRAVEL_S = 8.0
"""How long it may take until the last member has heard that another one moved on to another timescale."""

Act = Callable[[Fleet, random.Random], None]


@dataclass(frozen=True)
class Play:
    """What is declared; everything else follows from the seed.

    Attributes:
        script: what happens when, in seconds.
        settled: whether all agree on one reference at the end.
        epochs: new epochs that each member may tell in all.
        steady: so many have better clocks than the others.
        congested: (share of the pairs, factor): direct paths that are slow, both ways.
    """

    name: str
    nodes: int = 8
    fanout: int = 3
    wire: Wire | None = None
    loss: float = 0.0
    style: str = ""
    reference: str = "auto"
    steady: int = 0
    utc: int = 0
    utc_from_s: float = 0.0
    duration_s: float = 60.0
    script: tuple[tuple[float, Act], ...] = ()
    settled: bool = True
    congested: tuple[float, float] = (0.0, 1.0)


@dataclass
class Played:
    """What came of one, or of many."""

    tally: Tally = field(default_factory=Tally)
    plays: int = 0
    changes: int = 0
    """Hand-overs without a new epoch, as the members' knots saw them."""
    jumps: list[str] = field(default_factory=list)
    epochs: int = 0
    """New epochs after the first timescale, the most that one member told."""
    apart_s: float = 0.0
    """The longest that two connected members named different references and both said that all agree."""
    unsettled: int = 0
    """Plays that did not end with one reference and everybody knowing it."""
    contradictions: int = 0
    left: int = 0
    """Departed members of which somebody still had something at the end."""

    def add(self, other: Played) -> None:
        self.tally.add(other.tally)
        self.plays += other.plays
        self.changes += other.changes
        self.jumps += other.jumps
        self.epochs = max(self.epochs, other.epochs)
        self.apart_s = max(self.apart_s, other.apart_s)
        self.unsettled += other.unsettled
        self.contradictions += other.contradictions
        self.left += other.left


def play(what: Play, seed: int) -> Played:
    """Plays it."""
    choose = random.Random(f"{what.name}/{seed}")
    names = [f"n{index:02}" for index in range(what.nodes)]
    wire = what.wire or Wire(jitter_us=choose.choice((0.0, 50.0)))
    share, factor = what.congested
    slow = Wire(wire.minimum_us * factor, "exponential", wire.jitter_us * factor)
    pairs = [(one, other) for one in names for other in names if one < other and choose.random() < share]
    fleet = Fleet(
        names,
        choose.randrange(1 << 40),
        fanout=what.fanout,
        reference=what.reference,
        wire=wire,
        wires={way: slow for one, other in pairs for way in ((one, other), (other, one))},
        loss=what.loss,
        style=what.style or choose.choice(STYLES),
        steady=names[: what.steady],
        utc=choose.sample(names, what.utc),
        utc_from_s=what.utc_from_s,
        duration_s=what.duration_s + 10,
        publishing=True,
    )
    outcome = Played(plays=1)
    script = sorted(what.script, key=lambda entry: entry[0])
    began: int | None = None
    departed: set[str] = set()
    while fleet.true_ns < what.duration_s * SECOND:
        until = fleet.true_ns / SECOND + LOOK_S
        while script and script[0][0] <= until:
            at, act = script.pop(0)
            fleet.run(max(at - fleet.true_ns / SECOND, 0.0))
            before = set(fleet.names)
            act(fleet, choose)
            departed |= before - set(fleet.names)
        fleet.run(max(until - fleet.true_ns / SECOND, 0.0))
        look(fleet, outcome.tally)
        if not _apart(fleet):
            began = None
        else:
            began = fleet.true_ns if began is None else began
            outcome.apart_s = max(outcome.apart_s, (fleet.true_ns - began) / SECOND)
    views = [member.node.mesh for member in fleet.living()]
    clocks = {view.timescale.clock for view in views if view is not None and view.timescale is not None}
    agreed = all(view is not None and view.agreed for view in views)
    outcome.unsettled = int(what.settled and (len(clocks) != 1 or not agreed))
    outcome.epochs = max((view.epochs for view in views if view is not None), default=1)
    for member in fleet.members.values():
        outcome.changes += member.published.changes
        outcome.jumps += member.published.jumps
        outcome.contradictions += member.node.contradictions
    for member in fleet.living():
        kept = set(member.membership.store.records()) | set(member.node._peers) | set(member.node.mesh.known)  # type: ignore[union-attr]
        outcome.left += len(kept & departed - set(fleet.names))
    return outcome


def _apart(fleet: Fleet) -> bool:
    """Whether two members that hear each other name different references and both say that all agree."""
    said: dict[int, set[tuple[object, ...]]] = {}
    for member in fleet.living():
        view = member.node.mesh
        if view is not None and view.agreed and view.timescale is not None:
            said.setdefault(fleet.part_of(member.name), set()).add(view.timescale.clock)
    return any(len(clocks) > 1 for clocks in said.values())


# -- what may happen ---------------------------------------------------------------------------------------------


def keeper(fleet: Fleet) -> Member:
    """Whose clock the reference is: what most say."""
    named: Counter[str] = Counter()
    for member in fleet.living():
        view = member.node.mesh
        if view is not None and view.timescale is not None and view.timescale.keeper in fleet.members:
            named[view.timescale.keeper] += 1
    name = named.most_common(1)[0][0] if named else fleet.names[0]
    return fleet.members[name]


def _other(fleet: Fleet, choose: random.Random) -> Member:
    """Anybody alive but the keeper."""
    first = keeper(fleet)
    return choose.choice([member for member in fleet.living() if member is not first])


def kill_keeper(fleet: Fleet, choose: random.Random) -> None:
    fleet.stop(keeper(fleet).name)


def remove_keeper(fleet: Fleet, choose: random.Random) -> None:
    fleet.leave(keeper(fleet).name)


def restart_keeper(fleet: Fleet, choose: random.Random) -> None:
    fleet.start(keeper(fleet).name, reboot=False)


def reboot_keeper(fleet: Fleet, choose: random.Random) -> None:
    fleet.start(keeper(fleet).name)


def restart(fleet: Fleet, choose: random.Random) -> None:
    fleet.start(_other(fleet, choose).name, reboot=False)


def reboot(fleet: Fleet, choose: random.Random) -> None:
    fleet.start(_other(fleet, choose).name)


def lose_disk(fleet: Fleet, choose: random.Random) -> None:
    fleet.start(_other(fleet, choose).name, disk=False)


def revive(fleet: Fleet, choose: random.Random) -> None:
    """Starts one that is down."""
    down = [name for name in fleet.names if not fleet.members[name].alive]
    if down:
        fleet.start(choose.choice(down))


def step(fleet: Fleet, choose: random.Random) -> None:
    fleet.step_wall(_other(fleet, choose).name, choose.choice((-1, 1)) * choose.randrange(10**5, 10**10))


def step_keeper(fleet: Fleet, choose: random.Random) -> None:
    fleet.step_wall(keeper(fleet).name, choose.choice((-1, 1)) * choose.randrange(10**5, 10**10))


def split(fleet: Fleet, choose: random.Random) -> None:
    """In two halves."""
    names = choose.sample(fleet.names, len(fleet.names))
    fleet.part(names[: len(names) // 2])


def cut_off(fleet: Fleet, choose: random.Random) -> None:
    """One member alone."""
    fleet.part([_other(fleet, choose).name])


def cut_off_steady(fleet: Fleet, choose: random.Random) -> None:
    """One of the steady members alone: it goes on knowing the others of them, and knows the rest by old records."""
    first = keeper(fleet)
    fleet.part([choose.choice(sorted(fleet.steady - {first.name if first else ""}))])


def heal(fleet: Fleet, choose: random.Random) -> None:
    fleet.heal()


def join(fleet: Fleet, choose: random.Random) -> None:
    fleet.join(f"a{len(fleet.members):02}")


def leave(fleet: Fleet, choose: random.Random) -> None:
    fleet.leave(_other(fleet, choose).name)


PLAYS: tuple[Play, ...] = (
    Play("nothing happens"),
    Play("everybody asks everybody", nodes=6, fanout=8),
    Play("no jitter", wire=Wire(jitter="none")),
    Play("heavy tails, every tenth message lost", wire=Wire(jitter="heavy"), loss=0.1),
    Play("30 ms away, 2 ms jitter", wire=Wire(15_000.0, jitter_us=2_000.0)),
    Play("half of the direct paths congested", congested=(0.5, 20.0), wire=Wire(jitter_us=20.0)),
    Play("the reference is configured", reference="n03"),
    Play(
        "walls are set",
        script=((20, step), (30, step_keeper), (35, step), (36, step_keeper), (45, step)),
        duration_s=70,
    ),
    Play("configured, and its wall is set", reference="n03", script=((20, step_keeper), (40, step_keeper))),
    Play("daemons are restarted", script=((20, restart), (25, restart), (40, restart_keeper)), duration_s=90),
    Play("nodes reboot", script=((20, reboot), (30, reboot), (40, lose_disk)), duration_s=100),
    Play("churn", nodes=10, script=((15, join), (20, leave), (25, join), (30, leave), (35, leave)), duration_s=80),
    Play("the reference dies", script=((25, kill_keeper),), duration_s=80),
    Play("the reference dies, and the next one", script=((25, kill_keeper), (70, kill_keeper)), duration_s=130),
    Play("the reference dies and comes back", script=((25, kill_keeper), (55, revive)), duration_s=110),
    Play("the reference reboots", script=((25, reboot_keeper),), duration_s=90),
    Play("the configured reference reboots", reference="n03", script=((25, reboot_keeper),), duration_s=70),
    Play("a member is cut off", script=((20, cut_off), (70, heal)), duration_s=140),
    Play("in two halves, and healed", nodes=10, script=((25, split), (80, heal)), duration_s=160),
    Play("utc from the start", utc=3, duration_s=50),
    Play("utc appears", utc=3, utc_from_s=30, duration_s=90),
    Play(
        "a long silence",
        nodes=7,
        wire=Wire(20.0, "none"),
        style="crossing",
        script=((40, cut_off), (230, heal)),
        duration_s=290,
    ),
    Play(
        "a long silence between steady clocks",
        nodes=9,
        wire=Wire(1.0, "none"),
        style="crossing",
        steady=5,
        script=((40, cut_off_steady), (265, heal)),
        duration_s=330,
    ),
    Play(
        "all of it",
        nodes=10,
        loss=0.02,
        utc=2,
        script=((20, step), (22, kill_keeper), (30, join), (50, split), (60, restart), (70, revive), (75, heal),
                (90, step_keeper), (95, leave)),
        duration_s=190,
    ),
)  # fmt: skip


def play_named(name: str, seed: int) -> Played:
    """The play of that name."""
    return play(next(what for what in PLAYS if what.name == name), seed)
