"""One runner for every scenario: the real estimator, the real node, no socket, no waiting.

A scenario declares clocks, a wire and what goes wrong; ``run`` plays it from a seed, event by event in true time, and
asks the bound again and again: now, in the past, in the future. Each answer is compared with the truth, which only
the simulation knows. What is run is the code that ships: ``PairBound`` for a pair of raw clocks; for a node also
``Node``, ``WallMap``, ``History``, ``reader.reference_time``, over a restart ``resume``, and for UTC
``sources.ntp_wire`` on packets as bytes and what ``claims.py`` runs of the sources on this machine.

A *miss* is an answer that does not hold the truth, or a contradiction, in a world within the declared limits. In a
world beyond them the excess and its length are told. Around a leap second the truth is both readings of UTC
(``world.Utc``): an answer that has one of them alone is a miss.

Of the applied offset every knot is looked at, and ``INSTANTS`` instants up to the next: within an era, on one
reference, it has no gap, and no two stamps change places.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skewd import resume
from skewd.bounds.applied import SLEW_MAX_PPB
from skewd.bounds.history import History, Knot, Status
from skewd.bounds.pair import PairBound, pair_limits
from skewd.config import Config, MeshConfig, NodeConfig, SourceConfig
from skewd.estimate import LEAD_NS
from skewd.interval import Interval
from skewd.kernel_clock import RawFacts
from skewd.knots import KNOT_PERIOD_NS
from skewd.links.protocol import Proofs, Self
from skewd.node import Node
from skewd.pairing import OscillatorLimits
from skewd.reader import NoBound, reference_time
from skewd.sources import ntp_wire
from skewd.sources.claim import Claim, Refused
from tests.simulation.claims import claimant, sample
from tests.simulation.world import SECOND, Leap, Oscillator, Server, Utc, Wall, Wire, set_going

TOLERANCE_NS = 0.001
"""Of the truth's own float."""

USUAL = Wire()
TICK_NS = 50_000_000
PUBLISHED_NS = KNOT_PERIOD_NS + LEAD_NS + TICK_NS
"""From hearing of a peer's step until the next knot rules."""
INSTANTS = 64
REACH_S = 900.0
"""How far back and ahead bounds are asked."""


@dataclass(frozen=True)
class Scenario:
    """What is declared; everything else follows from the seed.

    Attributes:
        style: how the oscillators move (``world.STYLES``).
        limits: (ppm, ppb/s) of each oscillator, declared and kept.
        loss, duplicate: shares of the messages.
        late_s: proofs come to be known up to this much later, in any order.
        gaps: (begin, length) in seconds: nothing passes.
        one_way: "there" or "back": after the first minute only that way passes.
        node: run a whole node, against its peer's wall clock or, with servers, against UTC.
        own_steps, peer_steps: (second, ns): wall clocks set.
        suspends: (second, length in s): the raw clock stands still, the wall clock does not.
        restarts: seconds at which the daemon is started anew, with what ``resume.py`` keeps.
        claims: the types of sources on this machine (``claims.py``).
        steered: the wall clock is slewed by up to 83,333 ppm, as chronyd may do, at random.
        leap: a leap second, or its smear.
        watched: (every, for) in seconds: a day is long, and its node looked at for some seconds now and then. Messages
            come all the time; the daemon is restarted before it is looked at, or the last applied line would rule on.
    """

    name: str
    style: str = "bang"
    wire: Wire = USUAL
    duration_s: float = 600.0
    interval_s: float = 1.0
    limits: tuple[int, int] = (100, 10)
    loss: float = 0.0
    duplicate: float = 0.0
    late_s: float = 0.0
    gaps: tuple[tuple[float, float], ...] = ()
    one_way: str = ""
    epoch_ns: int = 123_456_789
    node: bool = False
    servers: tuple[Server, ...] = ()
    own_steps: tuple[tuple[float, int], ...] = ()
    peer_steps: tuple[tuple[float, int], ...] = ()
    suspends: tuple[tuple[float, float], ...] = ()
    slew_ppm: int = 0
    restarts: tuple[float, ...] = ()
    claims: tuple[str, ...] = ()
    steered: bool = False
    leap: Leap | None = None
    watched: tuple[float, float] = (1.0, 1.0)

    @property
    def follows_utc(self) -> bool:
        return bool(self.servers or self.claims)


@dataclass
class Outcome:
    """What came of one run."""

    checks: int = 0
    misses: int = 0
    contradictions: int = 0
    worst_ns: float = 0.0
    observations: int = 0
    widths_ns: int = 0
    """Sum over the checks."""
    statuses: set[Status] = field(default_factory=set)
    instants: int = 0
    """At which the applied offset was looked at."""
    disorder: int = 0
    """Of these, before the one before; or knots at which it jumped, or was steeper than it may be."""
    knots: int = 0
    strayed: int = 0
    """Knots at which the applied offset lay outside the bound."""

    def take(self, excess_ns: float, width_ns: int) -> None:
        """Notes one answer: by how much the truth lies outside it (negative if inside), and how wide it is."""
        self.checks += 1
        self.widths_ns += width_ns
        if excess_ns > TOLERANCE_NS:
            self.misses += 1
            self.worst_ns = max(self.worst_ns, excess_ns)

    @property
    def failed(self) -> bool:
        return self.misses > 0 or self.contradictions > 0 or self.disorder > 0

    def add(self, other: Outcome) -> None:
        """Another run of the same scenario."""
        self.checks += other.checks
        self.misses += other.misses
        self.contradictions += other.contradictions
        self.worst_ns = max(self.worst_ns, other.worst_ns)
        self.observations += other.observations
        self.widths_ns += other.widths_ns
        self.statuses |= other.statuses
        self.instants += other.instants
        self.disorder += other.disorder
        self.knots += other.knots
        self.strayed += other.strayed

    def take_knot(self, knot: Knot, before: Knot | None) -> None:
        """Notes the applied offset from one knot to the next."""
        if knot.bound is None:
            return
        self.knots += 1
        self.strayed += not knot.bound.contains(knot.applied_ns)
        self.disorder += abs(knot.applied_slope_ppb) > SLEW_MAX_PPB
        if before is None or before.bound is None or (before.era, before.epoch) != (knot.era, knot.epoch):
            return
        self.disorder += before.applied_at(knot.wall_ns) != knot.applied_ns
        length = knot.wall_ns - before.wall_ns
        last = before.wall_ns + before.applied_ns
        for index in range(1, INSTANTS // 2 + 1):
            # Two stamps a nanosecond apart, again and again.
            for stamp in (before.wall_ns + length * index // (INSTANTS // 2) - 1,
                          before.wall_ns + length * index // (INSTANTS // 2)):  # fmt: skip
                told = stamp + before.applied_at(stamp)
                self.disorder += told < last
                last = told
        self.instants += INSTANTS


class World:
    """Two nodes and what is between them."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.choose = choose = random.Random(f"{scenario.name}/{seed}")
        drift, wander = scenario.limits[0] * 1000.0, float(scenario.limits[1])
        self.here = Oscillator(scenario.epoch_ns, drift, wander)
        self.there = Oscillator(choose.randrange(-(10**15), 10**15), drift, wander)
        set_going(scenario.style, self.here, self.there, choose, scenario.duration_s + REACH_S + 10)
        for begin, length in scenario.suspends:
            self.here.jump(round((begin + length) * SECOND), -round(length * SECOND))
        self.utc = Utc(scenario.leap)
        begin = self.utc.begin_ns
        self.here_wall = Wall(self.here, choose.randrange(-(10**8), 10**8), scenario.slew_ppm * 1000, unix_ns=begin)
        self.there_wall = Wall(self.there, choose.randrange(-(10**8), 10**8), unix_ns=begin)
        self.here_wall.steps += [(round(at * SECOND), by) for at, by in scenario.own_steps]
        self.here_wall.steps += [(round((at + length) * SECOND), round(length * SECOND)) for at, length in
                                 scenario.suspends]  # fmt: skip
        self.there_wall.steps += [(round(at * SECOND), by) for at, by in scenario.peer_steps]
        at_s = 4.0
        while scenario.steered and at_s < scenario.duration_s:
            fastest = choose.choice((500_000, 10_000_000, 83_333_000))
            self.here_wall.steer(round(at_s * SECOND), round(choose.uniform(-1, 1) * fastest))
            self.here_wall.steer(round((at_s + choose.uniform(0.2, 3.0)) * SECOND), choose.randrange(-50_000, 50_000))
            at_s += choose.uniform(4.0, 12.0)

    def silent(self, true_ns: int) -> bool:
        t = true_ns / SECOND
        return any(begin <= t < begin + length for begin, length in (*self.scenario.gaps, *self.scenario.suspends))

    def exchanges(self) -> Iterator[tuple[int, int, int, int]]:
        """True (t1, t2, t3, t4) of each exchange, also of those that will be lost."""
        t, scenario = 0.5, self.scenario
        while t < scenario.duration_s:
            t1 = round((t + self.choose.uniform(-0.05, 0.05) * scenario.interval_s) * SECOND)
            t2 = t1 + scenario.wire.delay_ns(self.choose, True)
            t3 = t2 + self.choose.randrange(0, 30_000)
            yield t1, t2, t3, t3 + scenario.wire.delay_ns(self.choose, False)
            t += scenario.interval_s

    def passes(self, begin_ns: int, end_ns: int, way: str) -> bool:
        only = self.scenario.one_way
        if only and only != way and begin_ns > 60 * SECOND:
            return False
        crossed = any(begin_ns / SECOND < begin + length and end_ns / SECOND >= begin
                      for begin, length in self.scenario.suspends)  # fmt: skip
        return not (crossed or self.silent(begin_ns) or self.choose.random() < self.scenario.loss)

    def arrivals(self, known_ns: int) -> list[int]:
        """When a proof made at ``known_ns`` is handed in: once, late, or twice."""
        count = 2 if self.choose.random() < self.scenario.duplicate else 1
        return [known_ns + round(self.choose.random() * self.scenario.late_s * SECOND) for _ in range(count)]


def run(scenario: Scenario, seed: int, bound: type[PairBound] = PairBound, checks_per_exchange: int = 6) -> Outcome:
    """Plays a scenario.

    Args:
        bound: the estimator; a mutant of it, to see that the scenario notices.
        checks_per_exchange: how often the bound of a pair is asked; a node is asked at each of its ticks.
    """
    if scenario.node:
        return _run_node(World(scenario, seed), bound)
    return _run_pair(World(scenario, seed), bound, checks_per_exchange)


def fresh(scenario: Scenario, bound: type[PairBound]) -> PairBound:
    drift, wander = pair_limits(*scenario.limits, *scenario.limits)
    return bound(max_drift_ppm=drift, max_wander_ppb_per_s=wander)


def _run_pair(world: World, bound: type[PairBound], checks_per_exchange: int) -> Outcome:
    scenario, choose, outcome = world.scenario, world.choose, Outcome()
    here, there = world.here, world.there
    pair = fresh(scenario, bound)
    events: list[tuple[int, int, int, int, int]] = []  # instant, kind (1 out, 2 in, 3 check), sent, received, serial
    for serial, (t1, t2, t3, t4) in enumerate(world.exchanges()):
        if world.passes(t1, t2, "there") and not world.silent(t4):
            events += [(at, 1, here.raw(t1), there.raw(t2), serial) for at in world.arrivals(max(t4, t2))]
        if world.passes(t3, t4, "back"):
            events += [(at, 2, there.raw(t3), here.raw(t4), serial) for at in world.arrivals(t4)]
        spacing = scenario.interval_s * SECOND / checks_per_exchange
        events += [(t1 + round((i + choose.random()) * spacing), 3, i, 0, serial) for i in range(checks_per_exchange)]
    base = there.epoch_ns - here.epoch_ns
    last = round((scenario.duration_s + REACH_S) * SECOND)
    events.sort()
    for now, kind, one, two, _ in events:
        if kind == 1:
            outcome.observations += 1
            pair.outgoing(one, two)
        elif kind == 2:
            outcome.observations += 1
            pair.incoming(one, two)
        else:
            # Now; a moment ago; minutes ago; ahead, as in a silence that may follow.
            reach = (0.0, -2.0, -60.0, -REACH_S, 60.0, REACH_S)[one % 6] * choose.random()
            at = min(max(now + round(reach * SECOND), 0), last)
            found = pair.offset(here.raw(at))
            if found is not None:
                truth = there.deviation(at) - here.deviation(at)
                outcome.take(max(found.lo - base - truth, truth - (found.hi - base)), found.width)
    outcome.contradictions = pair.contradictions
    return outcome


class _Limits(OscillatorLimits):
    """Those whose filters may be mutants."""

    bound: type[PairBound] = PairBound

    def filter_with(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> PairBound:
        drift, wander = self.sum_with(there_drift_ppm, there_wander_ppb_per_s)
        return self.bound(max_drift_ppm=drift, max_wander_ppb_per_s=wander)


def _run_node(world: World, bound: type[PairBound]) -> Outcome:
    """A node, its peer or its servers, and an application's stamps judged by the node's history."""
    scenario, choose, outcome = world.scenario, world.choose, Outcome()
    here, there = world.here_wall, world.there_wall
    config = _config(scenario)
    limits = type("Limits", (_Limits,), {"bound": bound})(config.clock.max_drift_ppm, config.clock.max_wander_ppb_per_s)
    node = Node(config, boot=b"here".ljust(16), first=sample(here, 0), virtual=False, limits=limits)
    peer = Node(Config(node=NodeConfig(name="there")), boot=b"there".ljust(16), first=sample(there, 0), virtual=False)
    history = History(stamps="wall")
    said: dict[int, Self] = {}
    # What the peer's wall clock did is not known until it told; answers about that time are the old clock's.
    untold = [[at, 1 << 62] for at, _ in there.steps]
    claiming = {
        kind: claimant(kind, here, world.utc, choose, scenario.limits, scenario.wire) for kind in scenario.claims
    }

    def reference(true_ns: int) -> tuple[int, ...]:
        return world.utc.legitimate(true_ns) if scenario.follows_utc else (there.read(true_ns),)

    queue: list[tuple[int, int, int, tuple[int, ...]]] = []
    for serial, (t1, t2, t3, t4) in enumerate(world.exchanges()):
        if scenario.follows_utc or (world.passes(t1, t2, "there") and world.passes(t3, t4, "back")):
            heapq.heappush(queue, (t3, 1, serial, ()))
            for at in world.arrivals(t4):
                heapq.heappush(queue, (at, 2, serial, (t1, t2, t3, t4)))
    every, watched = (round(seconds * SECOND) // TICK_NS for seconds in scenario.watched)
    for tick in range(1, round(scenario.duration_s * SECOND) // TICK_NS):
        if tick % every < watched:
            heapq.heappush(queue, (tick * TICK_NS, 3, tick, ()))
    restarts = [round(at * SECOND) for at in scenario.restarts]
    if watched < every:
        restarts = [begin * TICK_NS for begin in range(every, round(scenario.duration_s * SECOND) // TICK_NS, every)]
    begun = 0
    asleep = [(round(begin * SECOND), round((begin + length) * SECOND)) for begin, length in scenario.suspends]
    woken = 0
    next_knot = 0
    latest: Knot | None = None
    while queue:
        now, kind, serial, times = heapq.heappop(queue)
        if any(begin <= now < end for begin, end in asleep):
            continue
        if kind == 1:
            said[serial] = peer.describe()
        elif kind == 2:
            outcome.observations += 2
            if scenario.follows_utc:
                _ask_servers(world, node, times)
                _ask_claimants(world, node, times[3], claiming)
            elif serial in said:
                declared = said[serial]
                _hear(node, world, times, declared)
                for window in untold:
                    if declared.wall_raw_at_ns > there.oscillator.raw(window[0]):
                        window[1] = min(window[1], now)
        else:
            peer.on_wall(sample(there, now), there.rate_ppb(now))
            if restarts and now >= restarts[0]:
                del restarts[0]
                begun, latest, next_knot = now, None, 0
                outcome.contradictions += node.contradictions
                following = Node(config, boot=node.boot, first=sample(here, now), virtual=False, limits=limits)
                _resume(following, node)
                node = following
                history = History(stamps="wall")
            if woken < len(asleep) and now >= asleep[woken][1]:
                woken += 1
                node.on_raw_disturbed(sample(here, now))
                stepped = True
            else:
                stepped = node.on_wall(sample(here, now), here.rate_ppb(now))
            raw = here.oscillator.raw(now)
            if stepped or node.slew_began or raw >= next_knot:
                next_knot = raw + KNOT_PERIOD_NS
                knot = node.knot(raw)
                if knot is not None:
                    history.append(knot)
                    outcome.take_knot(knot, latest)
                    latest = knot
                history.tighten(node.tightened())
            if now < 5 * SECOND or any(begin <= now <= end + PUBLISHED_NS for begin, end in untold):
                continue
            truths = reference(now)
            estimate = node.reference_estimate(raw)
            if estimate is not None:
                wall = here.read(now)
                outcome.take(
                    max(estimate.bound.lo - (min(truths) - wall), max(truths) - wall - estimate.bound.hi),
                    estimate.bound.width,
                )
            # As a reader has it that reads now, or that kept the newest knot as it was at first.
            for newest in () if latest is None else (latest, history.latest):
                try:
                    said_now = reference_time(newest, raw) if newest else None
                except NoBound:
                    pass
                else:
                    assert said_now is not None
                    outcome.take(max(said_now.lo - min(truths), max(truths) - said_now.hi), said_now.width)
            for ago_s in (choose.random(), 5 * choose.random(), 600 * choose.random()):
                then = now - round(ago_s * SECOND)
                unknown = any(begin <= then <= end for begin, end in (*untold, *asleep))
                if then < max(begun + SECOND, 5 * SECOND) or unknown:
                    continue
                correction = history.at(here.read(then))
                outcome.statuses.add(correction.status)
                if correction.status is not Status.UNSYNCHRONIZED:
                    wrong = max(abs(truth - here.read(then) - correction.offset_ns) for truth in reference(then))
                    outcome.take(wrong - correction.uncertainty_ns, 2 * correction.uncertainty_ns)
    outcome.contradictions += node.contradictions
    return outcome


def _config(scenario: Scenario) -> Config:
    interval = round(scenario.interval_s * SECOND)
    smear = bool(scenario.leap and scenario.leap.smear_s)
    return Config(
        node=NodeConfig(name="here"),
        mesh=MeshConfig(reference="utc" if scenario.follows_utc else "there", interval=interval),
        source=(
            *(
                SourceConfig(type="ntp", name=server.name, address=server.name, interval=interval, smear=smear)
                for server in scenario.servers
            ),
            *(SourceConfig(type=kind, name=kind, interval=interval, smear=smear) for kind in scenario.claims),
        ),
    )


def _resume(following: Node, node: Node) -> None:
    """A daemon that follows another takes what that one left on disk."""
    facts = RawFacts("tsc", Interval(0, 200), None, 0)
    now_raw_ns = node.wall.latest.raw_ns
    kept = resume.decode(resume.encode(node.keep(facts, now_raw_ns)))
    assert kept is not None
    clock = node.config.clock
    limits = (clock.max_drift_ppm, clock.max_wander_ppb_per_s)
    assert not resume.objection(
        kept, node=node.name, boot=node.boot, facts=facts, limits=limits, now_raw_ns=now_raw_ns + 1
    )
    following.resume(kept)


def _ask_claimants(world: World, node: Node, at_ns: int, claiming: dict[str, Callable[[int], Claim | None]]) -> None:
    for name, ask in claiming.items():
        try:
            claim = None if world.silent(at_ns) else ask(at_ns)
        except Refused:
            continue
        if claim is not None:
            outgoing, incoming = claim.proofs()
            node.on_utc(name, [outgoing], [incoming], world.here.raw(at_ns), claim.leap)


def _hear(node: Node, world: World, times: tuple[int, ...], declared: Self) -> None:
    t1, t2, t3, t4 = times
    here, there = world.here, world.there
    node.on_proofs(
        Proofs(
            peer=declared,
            link="udp",
            address="there:9957",
            outgoing=((here.raw(t1), there.raw(t2)),),
            incoming=((there.raw(t3), here.raw(t4)),),
            rtt_ns=(t4 - t1) - (t3 - t2),
        ),
        here.raw(t4),
    )


def _ask_servers(world: World, node: Node, times: tuple[int, ...]) -> None:
    t1, t2, t3, t4 = times
    for server in world.scenario.servers:
        if not world.passes(t1, t4, "there"):
            continue
        _, nonce = ntp_wire.request(world.choose.randbytes)
        answer = ntp_wire.parse(
            server.answer(nonce, t2, t3, world.utc),
            nonce=nonce,
            sent_raw_ns=world.here.raw(t1),
            received_raw_ns=world.here.raw(t4),
            near_wall_ns=world.here_wall.read(t4),
        )
        outgoing, incoming = answer.proofs()
        node.on_utc(server.name, [outgoing], [incoming], world.here.raw(t4), answer.leap)
