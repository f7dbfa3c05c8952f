"""This node as a member of a mesh: what it says in records, what it makes of others', and which timescale it follows.

Once an interval a member *takes its turn*: it looks at the clocks that it measures itself, decides on the timescale
(``election.py``), signs a record of both and hands it to the store. Records travel as attachments of the clock messages
that are exchanged anyway, so a mesh sends nothing more for being large (``records.py``). From time to time all records
are composed into bounds on every clock (``bounds/compose.py``), and it is judged whether somebody lies
(``bounds/mesh.py``). The outcome is a *view*, which the node's own bounds are combined with (``hearsay.py``).

A member that signed two records with one number and different words is convicted by that proof alone
(``record_store.py``); every member comes to hold it.

What is not believed any more: a convicted member takes part in no path, has no vote and keeps no timescale. It stays
convicted for ``CONVICTED_NS`` after it was last shown to lie, for a liar that is left out contradicts nobody.

Once a member has settled, little changes from one interval to the next: a record is renewed every ``RENEW_EVERY``
intervals, and at once when it says something new. All are composed every ``COMPOSE_EVERY`` intervals, the more rarely
the larger the mesh is (every ``COMPOSE_PER`` members add an interval), and at once when members come or go; in between
the outcome is carried on.

Limits: as many members as the store holds. What a record says is as old as the record: a peer's step of its wall clock
is known one round of records later. Pure: time and randomness are handed in, nothing is sent here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from skewd.bounds.carry import Claim
from skewd.bounds.compose import UTC as UTC_NAME
from skewd.bounds.compose import Composed, FirstHand, Here, clock_tag, compose, judge
from skewd.bounds.history import SPAN_NS
from skewd.bounds.pair import pair_limits
from skewd.election import UTC as UTC_SCALE
from skewd.election import Decision, Election, Member, Own, Timescale, Timing
from skewd.fanout import Plan
from skewd.hearsay import Heard, Known, MeshView, Wall
from skewd.interval import Interval
from skewd.limits import RAW_OFFSET_MAX_NS, SCALE_MAX_NS, within
from skewd.links.protocol import Proofs, Self
from skewd.problems import Problem
from skewd.record_store import SEQUENCES_PER_START, RecordStore, sequence_at
from skewd.records import EDGES_MAX, Edge, Record, claimable, private_key, public_key_of, sign
from skewd.status import MeshRow, TimescaleRow

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from skewd.config import Config
    from skewd.node import Node

CONVICTED_NS = 900_000_000_000
"""How long a conviction lasts after the last contradiction: 15 minutes."""

SETTLING = 15
"""For so many intervals after the start everything is done every interval."""

RENEW_EVERY = 3
COMPOSE_EVERY = 3
COMPOSE_EVERY_MET = 10
COMPOSE_PER = 64

NEWS_EVERY_NS = 10_000_000_000
"""News of records and keys are said this often at most, whatever others send."""

Say = Callable[[str, bool], None]
"""A line for a person, and whether it is a warning."""

OnFault = Callable[[str, Exception], None]
"""Where it was, and what was raised."""


class Membership:
    """One member. It reads ``node`` and sets ``node.mesh``.

    Args:
        node: what this node knows by itself.
        store: the records of all.
        key: signs this node's own (``identity.py``); ``first_sequence`` is where their sequences begin.
        plan: whom this node asks.
        say: told what a person should know: news of keys, convictions, changes of timescale.
        on_fault: told where this code failed by a fault of its own, and how; without it such a fault is raised. The
            turn goes on without what failed: without bounds by others, or on the timescale of before.
        now_raw_ns: when it becomes one, if the node was alone before; None at its start.
    """

    def __init__(
        self,
        node: Node,
        store: RecordStore,
        key: Ed25519PrivateKey,
        *,
        plan: Plan,
        first_sequence: int = 0,
        say: Say = lambda text, warning: None,
        on_fault: OnFault | None = None,
        now_raw_ns: int | None = None,
    ) -> None:
        mesh = node.config.mesh
        self._on_fault = on_fault
        self.node, self.store = node, store
        self.plan = plan
        self.decision: Decision | None = None
        self.alter: Callable[[Record], Record] | None = None
        """For tests: changes own records before they are signed."""
        self._interval_ns, self._liars = mesh.interval, mesh.liars
        self._key, self._public_key, self._sequence = key, public_key_of(key), first_sequence
        self._first_sequence = first_sequence - first_sequence % SEQUENCES_PER_START
        # A node that was alone so far, on UTC: nobody who comes now takes that away.
        self._was_on_utc = now_raw_ns is not None and node.reference_name() == UTC_NAME and node.utc_lives(now_raw_ns)
        self._election = Election(
            node.name,
            interval_ns=mesh.interval,
            liars=mesh.liars,
            reference=mesh.reference,
            on_utc=self._was_on_utc,
        )
        self._say = say
        self._raw_era = node.raw_era
        self._turn_at_ns: int | None = None
        self._news_at_ns: int | None = None
        self._turns = 0
        self._compose_at_ns: int | None = None
        self._composed_of: tuple[object, ...] = ()
        self._renew_at_ns: int | None = None
        self._said: tuple[object, ...] = ()
        self._view = node.mesh = MeshView(0, timescale=UTC_SCALE if self._was_on_utc else None)
        self._convicted: dict[str, int] = {}
        self._equivocal: frozenset[str] = frozenset()
        self._disputed: frozenset[str] = frozenset()
        self._objectors: frozenset[str] = frozenset()
        self._unconfirmed: dict[str, int] = {}
        self._strangers: list[str] = []

    # -- messages ------------------------------------------------------------------------------------------------

    def attach(self, peer: str | None, max_bytes: int) -> bytes:
        """What the next message to ``peer`` brings along."""
        return self.store.next_for(peer, max_bytes)

    def heard(self, proofs: Proofs, now_raw_ns: int) -> None:
        """An authentic message came, of which the node has taken the proofs."""
        self.plan.answered(proofs.address, proofs.peer.name)
        if not proofs.attachment:
            return
        outcomes = self.store.receive(
            proofs.attachment,
            first_hand_owner=proofs.peer.name,
            received_raw_ns=now_raw_ns,
            first_hand_boot=proofs.peer.boot,
            first_hand_key=proofs.public_key,
        )
        for outcome in outcomes:
            # A member could make news with each message; the store counts them all.
            if outcome.news is not None and (self._news_at_ns is None or now_raw_ns >= self._news_at_ns):
                self._news_at_ns = now_raw_ns + NEWS_EVERY_NS
                self._say(outcome.news, True)

    # -- the turn ------------------------------------------------------------------------------------------------

    def begin(self, now_raw_ns: int) -> None:
        """Has a record ready before any message goes out; call it once.

        Whoever is asked once and then rarely tells nothing of itself by a message without a record, and can't be named
        in a claim until it is asked again.
        """
        self._publish(None, now_raw_ns)

    def turn(self, now_raw_ns: int) -> None:
        """Does what is due; call it a few times an interval."""
        if self.node.raw_era != self._raw_era:
            self._raw_era = self.node.raw_era
            # Where this machine was put back to an earlier state, its numbers since then are in use already.
            since = sequence_at(self.node.wall.latest.wall_at_ns())
            self._sequence = max(self._sequence, self._first_sequence + since)
            self.store.forget_clock()
            self._turn_at_ns = self._compose_at_ns = self._renew_at_ns = self._news_at_ns = None
            self._turns = 0
            self._view = MeshView(0)
        if self._turn_at_ns is not None and now_raw_ns < self._turn_at_ns:
            return
        self._turn_at_ns = now_raw_ns + self._interval_ns
        self.store.forget_departed(now_raw_ns)
        records = self.store.records()
        self._convict_equivocal(records, now_raw_ns)
        self._turns += 1
        # Of whom there is something to compose: who is met, and whose clock is known to whom.
        met = self.node.met
        of = (frozenset(records), met, self.store.confirmed, frozenset(self._convicted))
        wait_ns = self._interval_ns * (1 + len(records) // COMPOSE_PER)
        if (
            self._compose_at_ns is None
            or now_raw_ns >= self._compose_at_ns
            or (of != self._composed_of and len(records) < COMPOSE_PER)
        ):
            if self.node.reference_estimate(now_raw_ns) is None:
                wait_ns = self._interval_ns  # nothing is more urgent than to know that
            elif self._turns > SETTLING:
                # Where this node measures everybody itself, others can do no more than narrow what it knows.
                every = COMPOSE_EVERY_MET if met.issuperset(records) else COMPOSE_EVERY
                wait_ns = max(wait_ns, self._interval_ns * every)
            self._compose_at_ns, self._composed_of = now_raw_ns + wait_ns, of
            try:
                self._compose(records, now_raw_ns)
            except Exception as error:
                self._fault("compose", error)
                self._view = replace(self._view, at_raw_ns=now_raw_ns, known={})
        try:
            decision = self.decision = self._decide(records, now_raw_ns)
        except Exception as error:
            self._fault("election", error)
            self.first_hand_only()
            self._publish(self._view.timescale, now_raw_ns)
            return
        if decision.changed is not None:
            moved = decision.new_epoch and decision.epochs > 1
            self._say(_changed(decision, moved), moved)
        timing = Timing.of(self._interval_ns, len(records) + 1)
        self._note_unconfirmed(records, timing, now_raw_ns)
        self.node.mesh = self._view = replace(
            self._view,
            timescale=decision.timescale,
            agreed=decision.agreed and not self._objectors,
            alive=decision.alive,
            epochs=decision.epochs,
            members=len(records),
            convicted=frozenset(self._convicted),
            disputed=self._disputed,
            patience_ns=timing.gone_ns,
        )
        keeper = None if decision.timescale is None else decision.timescale.keeper
        self.store.urgent = keeper
        self.plan.always(frozenset() if keeper in (None, UTC_NAME, self.node.name) else frozenset({str(keeper)}))
        self._publish(decision.timescale, now_raw_ns)

    def _fault(self, where: str, error: Exception) -> None:
        if self._on_fault is None:
            raise error
        self._on_fault(where, error)

    def first_hand_only(self) -> None:
        """Until the next turn that succeeds nothing of others is used: bounds are those that this node measures.

        The timescale stays; where there is none yet, UTC by sources of one's own is one.
        """
        scale = self._view.timescale
        if scale is None and self.node.claims_utc and self.node.config.mesh.reference in ("auto", UTC_NAME):
            scale = UTC_SCALE
        self.node.mesh = self._view = replace(self._view, timescale=scale, known={}, agreed=False, alive=False)

    def _convict_equivocal(self, records: Mapping[str, Record], now_raw_ns: int) -> None:
        """Whoever is proven to have signed two things under one number."""
        proven = self.store.equivocal
        self._equivocal = frozenset(name for name, at in proven.items() if 0 <= now_raw_ns - at <= CONVICTED_NS)
        if self._equivocal & records.keys() - self._convicted.keys():
            self._compose_at_ns = None  # nothing goes over a convicted member's clock any more
        for name in self._equivocal & records.keys():
            self._convicted[name] = max(proven[name], self._convicted.get(name, proven[name]))

    def _note_unconfirmed(self, records: Mapping[str, Record], timing: Timing, now_raw_ns: int) -> None:
        """Members that too few vouch for have no vote. But this node does not say over their heads that all agree."""
        unconfirmed = {
            name: record
            for name, record in records.items()
            if name not in self.store.confirmed and self._age_ns(name, record, now_raw_ns) <= timing.fresh_ns
        }
        followed = None if self.decision is None else self.decision.timescale
        self._objectors = frozenset(name for name, record in unconfirmed.items() if record.timescale != followed)
        self._unconfirmed = {name: self._unconfirmed.get(name, now_raw_ns) for name in unconfirmed}
        self._strangers = [name for name, at in self._unconfirmed.items() if now_raw_ns - at > timing.join_ns * 2]

    # -- bounds --------------------------------------------------------------------------------------------------

    def _own_bounds(self, now_raw_ns: int) -> dict[str, FirstHand]:
        store, found = self.store, dict[str, FirstHand]()
        for name, (declared, known) in self.node.first_hand(now_raw_ns).items():
            clock = store.clock_of(name, declared.boot, declared.raw_era)
            found[name] = FirstHand(clock, known.offset, known.drift_ppb)
        utc = self.node.utc_raw(now_raw_ns, own=True)
        if utc is not None:
            found[UTC_NAME] = FirstHand(None, utc.offset, utc.drift_ppb)
        return found

    def _compose(self, records: Mapping[str, Record], now_raw_ns: int) -> None:
        here = Here(self.node.name, clock_tag(self.node.name, self._public_key, self.node.boot, self.node.raw_era))
        first_hand = self._own_bounds(now_raw_ns)
        everyone = compose(
            here=here, now_raw_ns=now_raw_ns, first_hand=first_hand, records=records, liars_max=self._liars
        )
        verdict = judge(
            here=here,
            now_raw_ns=now_raw_ns,
            first_hand=first_hand,
            records=records,
            liars_max=self._liars,
            composed=everyone,
        )
        self._disputed = verdict.disputed
        if verdict.convicted is not None and verdict.convicted != self.node.name:
            if verdict.convicted not in self._convicted:
                self._say(
                    f"{verdict.convicted} is convicted: what it says of clocks contradicts what the others say, and"
                    " nobody else's error explains it; it is left out",
                    True,
                )
            self._convicted[verdict.convicted] = now_raw_ns
        self._convicted = {
            name: at for name, at in self._convicted.items() if 0 <= now_raw_ns - at <= CONVICTED_NS and name in records
        }
        excluded = self._convicted.keys() | self.store.contested
        if excluded:
            everyone = compose(
                here=here,
                now_raw_ns=now_raw_ns,
                first_hand=first_hand,
                records=records,
                liars_max=self._liars,
                excluded=excluded,
            )
        peers = self.node.first_hand(now_raw_ns)
        known = {name: self._known(name, bound, records.get(name), peers) for name, bound in everyone.items()}
        self._view = replace(self._view, at_raw_ns=now_raw_ns, known=known)

    def _known(
        self, name: str, bound: Composed, record: Record | None, peers: Mapping[str, tuple[Self, Heard]]
    ) -> Known:
        clock = self.node.config.clock
        here = (clock.max_drift_ppm, clock.max_wander_ppb_per_s)
        if name == UTC_NAME:
            return Known(bound, None, math.ceil(pair_limits(*here, 0, 0)[1]) + 1, None)
        if record is None:
            declared = peers[name][0]
            wander = pair_limits(*here, declared.max_drift_ppm, declared.max_wander_ppb_per_s)[1]
            return Known(bound, declared.timebase, math.ceil(wander) + 1, None)
        timebase = (record.boot, record.raw_era)
        wall = Wall(timebase, record.era, record.raw_ns, record.wall_minus_raw, record.wall_slew_ppb)
        wander = pair_limits(*here, record.max_drift_ppm, record.max_wander_ppb_per_s)[1]
        if name in peers and peers[name][0].timebase != timebase:
            # The record is of another boot than the clock that this node measures.
            return Known(bound, peers[name][0].timebase, math.ceil(wander) + 1, None)
        return Known(bound, timebase, math.ceil(wander) + 1, wall)

    # -- the timescale -------------------------------------------------------------------------------------------

    def _decide(self, records: Mapping[str, Record], now_raw_ns: int) -> Decision:
        node = self.node
        limit = node.config.clock.max_uncertainty

        def bound(timescale: Timescale) -> Interval | None:
            found = node.raw_estimate(timescale, now_raw_ns)
            if found is None or found.offset.width > 2 * limit or not within(found.offset, SCALE_MAX_NS):
                return None
            return found.offset

        utc = node.utc_raw(now_raw_ns, own=True)
        own = Own(
            boot=node.boot,
            raw_era=node.raw_era,
            claims_utc=node.claims_utc and utc is not None and utc.offset.width <= 2 * limit,
            bound=bound,
            applied_ns=node.applied_ns(now_raw_ns),
            utc_lives=(node.claims_utc or self._was_on_utc) and node.utc_lives(now_raw_ns),
        )
        barred = self._convicted.keys() | self.store.contested
        confirmed = self.store.confirmed
        members = [
            Member(
                name=name,
                boot=record.boot,
                raw_era=record.raw_era,
                age_ns=self._age_ns(name, record, now_raw_ns),
                timescale=record.timescale,
                claims_utc=record.utc is not None and record.utc.offset.width <= 2 * limit,
                barred=name in barred,
            )
            for name, record in records.items()
            if name in confirmed
        ]
        return self._election.decide(now_raw_ns, own, members)

    def _age_ns(self, name: str, record: Record, now_raw_ns: int) -> int:
        """How long ago a record was made, where its owner's clock is known; else how long ago it came."""
        arrived = now_raw_ns - (self.store.received_ns(name) or now_raw_ns)
        known = self._view.known.get(name)
        if known is None or known.timebase != (record.boot, record.raw_era):
            return arrived
        return max(arrived, now_raw_ns + known.composed.interval.lo - record.raw_ns)

    # -- what this node says -------------------------------------------------------------------------------------

    def _publish(self, timescale: Timescale | None, now_raw_ns: int) -> None:
        node = self.node
        me = node.describe()
        edges = self._edges(timescale, now_raw_ns)
        said = (timescale, me.raw_era, me.era, node.claims_utc, frozenset(edge.clock for edge in edges))
        if self._turns > SETTLING and said == self._said and now_raw_ns < (self._renew_at_ns or now_raw_ns):
            return
        self._said, self._renew_at_ns = said, now_raw_ns + self._interval_ns * RENEW_EVERY
        self._sequence = self.store.next_sequence(self._sequence)
        utc = node.utc_raw(now_raw_ns, own=True) if node.claims_utc else None
        # The wall's reading is some milliseconds old; all of a record holds at one instant.
        record = Record(
            owner=node.name,
            public_key=self._public_key,
            boot=me.boot,
            raw_era=me.raw_era,
            era=me.era,
            sequence=self._sequence,
            raw_ns=now_raw_ns,
            wall_minus_raw=node.wall.wall_minus_raw(now_raw_ns),
            wall_slew_ppb=me.wall_slew_ppb,
            max_drift_ppm=me.max_drift_ppm,
            max_wander_ppb_per_s=me.max_wander_ppb_per_s,
            utc=None if utc is None else self._claim(utc, 0, 0, SCALE_MAX_NS),
            timescale=timescale,
            edges=edges,
        )
        if self.alter is not None:
            record = self.alter(record)
        self.store.put_own(sign(record, self._key))

    def _edges(self, timescale: Timescale | None, now_raw_ns: int) -> tuple[Edge, ...]:
        """The clocks that others may want: the keeper's, those that this node asks, then any that it knows."""
        asked = {self.plan.name_of(address) for address in self.plan.chosen()}
        keeper = None if timescale is None else timescale.keeper
        ranked = sorted(
            self.node.first_hand(now_raw_ns).items(),
            key=lambda item: (item[0] != keeper, item[0] not in asked, item[1][1].offset.width, item[0]),
        )
        edges: list[Edge] = []
        for name, (declared, known) in ranked:
            tag = self.store.clock_of(name, declared.boot, declared.raw_era)
            claim = self._claim(known, declared.max_drift_ppm, declared.max_wander_ppb_per_s)
            if tag is not None and claim is not None and known.age_ns <= SPAN_NS:
                edges.append(Edge(tag, claim))
            if len(edges) == EDGES_MAX:
                break
        return tuple(edges)

    def _claim(
        self, known: Heard, drift_ppm: int, wander_ppb_per_s: int, most_ns: int = RAW_OFFSET_MAX_NS
    ) -> Claim | None:
        clock = self.node.config.clock
        drift, wander = pair_limits(clock.max_drift_ppm, clock.max_wander_ppb_per_s, drift_ppm, wander_ppb_per_s)
        limit = math.ceil(drift * 1000) + 1
        within = known.drift_ppb.intersect(Interval(-limit, limit))
        if within is None:
            return None
        claim = Claim(known.offset, within, limit, math.ceil(wander) + 1)
        return claim if claimable(claim, most_ns) else None

    def problems(self) -> list[Problem]:
        """What is wrong in the mesh."""
        view, decision = self._view, self.decision
        found = [
            Problem(
                "member-convicted",
                name,
                f"{name} is convicted of lying about clocks and left out",
                "see what is wrong with it, or with its clock",
            )
            for name in sorted(view.convicted)
        ]
        found += [
            Problem(
                "equivocation",
                name,
                f"{name} signed two records with one number and different words",
                "see whether it lies, or is a copy of another machine; remove identity-NAME from a copy's state"
                " directory and give it its own [node] name",
            )
            for name in sorted(self._equivocal)
        ]
        if view.disputed:
            wrong = f"members contradict each other, and nobody can be named ({', '.join(sorted(view.disputed))})"
            found.append(Problem("members-disputed", "", wrong, "one of them is wrong about a clock, see their status"))
        found += [
            Problem(
                "name-contested",
                name,
                f"two parties with different keys claim to be {name}",
                "give each its own [node] name",
            )
            for name in sorted(self.store.contested)
        ]
        if self._strangers:
            shown = ", ".join(sorted(self._strangers)[:8]) + (" and others" if len(self._strangers) > 8 else "")
            wrong = f"fewer than {self._liars + 1} members vouch for {shown}, so what they say does not count here"
            remedy = "give the nodes more [mesh] peers in common, or a lower [mesh] liars"
            found.append(Problem("members-unvouched", "", wrong, remedy))
        if decision is not None and decision.timescale is not None and not view.agreed:
            wrong = "not all members name the same reference (yet)"
            remedy = "it settles within a minute after a change"
            found.append(Problem("reference-disagreed", "", wrong, remedy))
        return found

    # -- what is told --------------------------------------------------------------------------------------------

    def told(self, now_raw_ns: int) -> MeshRow:
        """The mesh in a status."""
        decision, view = self.decision, self._view
        timescale = None if decision is None else decision.timescale
        records = self.store.records()
        ages = [self._age_ns(name, record, now_raw_ns) for name, record in records.items()]
        return MeshRow(
            members=len(records) + 1,
            bounded=sum(name in view.known for name in records),
            liars=self._liars,
            agreed=view.agreed,
            timescale=None
            if timescale is None
            else TimescaleRow(timescale.origin, timescale.epoch, timescale.keeper, timescale.carried),
            epochs=view.epochs,
            asked=len(self.plan.chosen()),
            convicted=sorted(view.convicted),
            disputed=sorted(view.disputed),
            contested=sorted(self.store.contested),
            oldest_record_s=round(max(ages) / 1e9, 3) if ages else None,
            records=dict(self.store.counters),
        )


def _changed(decision: Decision, moved: bool) -> str:
    """A change of timescale, for a person."""
    timescale = decision.timescale
    assert decision.changed is not None
    if timescale is None:
        return f"no timescale any more ({decision.changed})"
    name = "utc" if timescale.origin == UTC_NAME else f"node:{timescale.origin}"
    carried = f", carried on by {timescale.keeper}" if timescale.carried else ""
    jump = "; published times before and after belong to different epochs" if moved else ""
    return f"the reference timescale is {name}{carried} ({decision.changed}){jump}"


def new_plan(config: Config, phase: Callable[[], float]) -> Plan:
    """Whom a node of this configuration asks; ``phase`` gives numbers from 0 to 1."""
    return Plan(config.node.name, interval_ns=config.mesh.interval, k=config.mesh.fanout, phase=phase)


def simulated(node: Node, randbytes: Callable[[int], bytes], phase: Callable[[], float]) -> Membership:
    """A member with a key from given randomness, and nothing kept: for simulations."""
    store = RecordStore(node.name, liars_max=node.config.mesh.liars)
    plan = new_plan(node.config, phase)
    return Membership(node, store, private_key(randbytes(32)), plan=plan)
