"""What one node knows: proofs and clock readings in, bounds and knots out.

This is the daemon without its sockets. Messages arrive as proofs about raw clocks (``links``, ``sources``), readings
of this node's own clocks arrive as sandwiches, and from them follow

    peer wall - own wall = (peer raw - own raw) + (peer wall - peer raw) - (own wall - own raw),

each term an interval: the first from the set-membership filter (``bounds/pair.py``), the second as the peer last
declared it, widened by how fast it may have moved since, the third from our own readings. One of the peers, or UTC
from the sources (``utc.py``), is the *reference*; its difference to this node's wall clock is what spans are corrected
by, and goes out as knots (``knots.py``).

Which reference: the timescale that the mesh has agreed on (``election.py``, by way of ``membership.py``); without a
mesh the configured one or, with ``auto``, UTC if there is any source. Sources that nobody configured but that were
found on this machine count only in a node that is alone, for in a mesh all nodes must have the same reference. A node
without source and peer has nothing to compare its clock with, and says so. One that has not what its configuration
asks for gives no estimate of its reference at all (``requirements.py``). Its own clock is its reference as long as the
configuration says so by name; as long as others are heard, else: then they go by it. When they are lost its bound
grows as fast as the clocks may drift apart, for what they go by now is another clock.

What other members say (``hearsay.py``) bounds clocks that this node does not measure, and narrows a bound of its own
where f + 1 disjoint paths agree; the status says which (``trust``).

Limits: ``PEERS_MAX`` peers; the one heard least recently gives way. The reference's wall clock may be stepped between
two exchanges: until the next one tells, what is said of it holds for its clock before the step. Pure: no clock is
read and no socket opened here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skewd import requirements, telling
from skewd.agreement import Quorum
from skewd.bounds.history import Knot, Status
from skewd.bounds.observed import Observed
from skewd.bounds.pair import PairBound
from skewd.bounds.select import Selection
from skewd.clock import WallSample
from skewd.config import Config, SourceConfig
from skewd.election import UTC, Timescale
from skewd.estimate import HEARD, HOLDOVER_AFTER, LEAD_NS, SELF, Estimate
from skewd.fanout import DIRECT_MAX
from skewd.hearsay import Heard, MeshView, Wall
from skewd.interval import Interval
from skewd.kernel_clock import RawFacts
from skewd.knots import Knots
from skewd.limits import TOLD_MAX_NS, within
from skewd.links.protocol import Proofs, Self
from skewd.over_links import OverLinks, RttMinimum
from skewd.pairing import OscillatorLimits, Part, Subject, learn
from skewd.resume import PAIRS_MAX, DriftPrior, Kept, KeptPeer, KeptSource, half_planes, plain
from skewd.status import plain as plain_status
from skewd.utc import Answer, Source, UtcSources
from skewd.wall import STEER_PPB, WallMap

if TYPE_CHECKING:
    from skewd.tap import Tap

PEERS_MAX = 256
"""Peers remembered at most (memory), whoever sends."""

PEER_GONE_NS = 900_000_000_000
"""A peer not heard for this long is forgotten: 15 minutes."""

DESCRIBE_AGAIN_NS = 250_000_000
"""How old the reading of this node's clocks that goes out with messages may be; it is told with the reading."""

DESCRIBE_WIDER_NS = 500
"""And by how much less sharp than the newest."""

_PPB = 1_000_000_000


@dataclass(slots=True)
class Peer:
    """One peer: its filter and what it last said of itself."""

    declared: Self
    pair: PairBound
    rtt: RttMinimum
    heard_ns: int
    address: str
    link: str
    links: OverLinks
    observed: Observed
    public_key: bytes
    """The key that it speaks under; empty where it speaks the protocol's version before."""
    wander_ppb_per_s: int
    """The pair's limit; like that on drift it stays for as long as this entry does."""

    @property
    def epoch(self) -> tuple[object, ...]:
        """Changes whenever what was said of this peer before may no longer be continued."""
        return (
            self.declared.name,
            self.declared.timebase,
            self.declared.era,
            self.pair.contradictions,
        )


class Node:
    """The knowledge of one node.

    Args:
        config: the configuration in force.
        boot: 16 bytes that name this run of the raw clock.
        first: the first sandwich of wall - raw.
        virtual: whether the clocks are a test's stand-ins.
        raw_era: the number of the raw clock's first era.
        limits: this oscillator's, which make the filters; by default as ``[clock]`` declares it.
    """

    def __init__(
        self,
        config: Config,
        *,
        boot: bytes,
        first: WallSample,
        virtual: bool,
        raw_era: int = 1,
        limits: OscillatorLimits | None = None,
    ) -> None:
        self.config = config
        self.name = config.node.name
        self.virtual = virtual
        self.boot = boot
        self.raw_era = raw_era
        self.wall = WallMap(first)
        self._began_ns = first.raw_ns
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._kept: dict[str, KeptPeer] = {}
        self._kept_keys: Mapping[str, bytes] = {}
        self._contradictions_of_departed = 0
        self._described: Self | None = None
        self._knot_reference: str | None = None
        clock = config.clock
        self._limits = limits or OscillatorLimits(clock.max_drift_ppm, clock.max_wander_ppb_per_s)
        self._utc = UtcSources(config, self._limits, self.wall)
        self._knots = Knots(self.wall, self.reference_estimate, self.status_with)
        self.mesh: MeshView | None = None
        """What ``membership.py`` makes of the records of all; None in a node that is alone."""
        self._met_expected: set[str] = set()
        self._last_heard_ns: int | None = None
        self.asked = requirements.Asked(self.name, config.mesh.reference)
        """What is asked for before the node may call itself synchronized: nothing, until :meth:`ask_for` says so."""
        self.silent_peers: frozenset[str] = frozenset()
        """Of the peers, those that were asked often enough to have answered, and never did."""
        self._tap: Tap | None = None
        self.steer_limit_ppb = 0
        """How fast this daemon may steer this clock before its peers hear of it again; 0 if it does not."""

    def ask_for(self, asked: requirements.Asked) -> None:
        """Takes what the configuration asks for, as far as it is known now; who was heard and stays was heard."""
        self.asked = asked
        self._met_expected &= asked.peers

    def has(self, now_raw_ns: int) -> requirements.Has:
        """What of it there is."""
        return requirements.Has(
            heard=frozenset(self._met_expected),
            silent=self.silent_peers,
            members=len(self._peers),
            silence_ns=None if self._last_heard_ns is None else max(now_raw_ns - self._last_heard_ns, 0),
            sources_heard=any(source.told for source in self.sources.values()),
            sources=len(self.sources),
            found=next((source.type for source in self.sources.values()), None) if self.sources_found else None,
            reference=self.reference_name(),
        )

    @property
    def blocked(self) -> str | None:
        """The code of what keeps this node from being synchronized (``requirements.blocked``)."""
        return requirements.blocked(self.asked, heard=bool(self._met_expected), sources_enough=self.sources_enough)

    def found_source(self, source: SourceConfig) -> None:
        """Adds a source that nobody configured: what this machine has anyway."""
        self._utc.find(source)

    def reconfigure(self, config: Config) -> None:
        """Takes up a configuration that differs in what may change while running (``reload.py``)."""
        self.config = config
        self._utc.reconfigure(config)
        self._knots.improved()

    # -- what comes in -------------------------------------------------------------------------------------------

    def describe(self) -> Self:
        """What this node says about itself in each message.

        The same again for ``DESCRIBE_AGAIN_NS``, unless an era or a faster slew began, or the newest reading tells
        more: what was said stays true, and making and checking it anew for each message would cost as much as the
        message's proofs.
        """
        clock, latest = self.config.clock, self.wall.latest
        slew = max(self.wall.slew_ppb(), self.steer_limit_ppb + STEER_PPB)
        said = self._described
        if (
            said is not None
            and (said.raw_era, said.era) == (self.raw_era, self.wall.era)
            and slew <= said.wall_slew_ppb
            and 0 <= (age := latest.raw_ns - said.wall_raw_at_ns) < DESCRIBE_AGAIN_NS
            and age * slew <= DESCRIBE_WIDER_NS * _PPB
            and said.wall_minus_raw.width <= latest.wall_minus_raw.width + DESCRIBE_WIDER_NS
        ):
            return said
        self._described = Self(
            name=self.name,
            boot=self.boot,
            raw_era=self.raw_era,
            era=self.wall.era,
            wall_minus_raw=latest.wall_minus_raw,
            wall_raw_at_ns=latest.raw_ns,
            wall_slew_ppb=slew,
            max_drift_ppm=clock.max_drift_ppm,
            max_wander_ppb_per_s=clock.max_wander_ppb_per_s,
        )
        return self._described

    def on_wall(self, reading: WallSample, kernel_rate_ppb: int | None = None) -> bool:
        """Takes a reading of this node's clocks; True when the wall clock was stepped since the last.

        ``kernel_rate_ppb``: see :meth:`~skewd.wall.WallMap.sample`.
        """
        before_ns = self.wall.latest.raw_ns
        stepped = self.wall.sample(reading, kernel_rate_ppb)
        if stepped:
            self._utc.on_step()
        else:
            self._knots.slew_seen(before_ns)
        return stepped

    @property
    def steered_by_source(self) -> str | None:
        """A source that judges this wall clock by how somebody else steers it; it can't be used if this daemon does."""
        return self._utc.steered_by

    def will_steer(self, rate_ppb: int) -> None:
        """This daemon is about to set the kernel's rate: what is said from now on allows for it.

        The newest knots allow for it as well, as soon as :meth:`tightened` was published; only then is it set.
        """
        self.wall.will_steer(rate_ppb)
        self._knots.will_slew()

    @property
    def slew_began(self) -> bool:
        """Whether the newest knot had to be widened, and a new one is due at once."""
        return self._knots.slew_began

    def on_raw_disturbed(self, reading: WallSample) -> None:
        """The raw clock was not continuous (suspend): every bound is void, a new era begins."""
        self.raw_era += 1
        self.wall.restart(reading)
        self._peers.clear()
        self._kept.clear()
        if self.mesh is not None:
            self.mesh = replace(self.mesh, known={})
        self._utc.restart()

    def on_proofs(self, proofs: Proofs, now_raw_ns: int) -> None:
        """Takes what one authentic message of a peer proves."""
        declared = proofs.peer
        if declared.name == self.name:
            return
        peer = self._peers.get(declared.name)
        if (
            peer is None
            or peer.declared.timebase != declared.timebase
            or peer.public_key != proofs.public_key
            or (peer.declared.max_drift_ppm, peer.declared.max_wander_ppb_per_s)
            != (declared.max_drift_ppm, declared.max_wander_ppb_per_s)
        ):
            # A clock not known yet, or another one than before (a reboot), or known by somebody else's word: nothing of
            # the old bound applies.
            if peer is not None:
                self._contradictions_of_departed += peer.pair.contradictions
            elif len(self._peers) >= PEERS_MAX:
                _, gone = self._peers.popitem(last=False)
                self._contradictions_of_departed += gone.pair.contradictions
            there = declared.max_drift_ppm, declared.max_wander_ppb_per_s
            pair = self._limits.filter_with(*there)
            self._resume_peer(declared, pair, proofs.public_key)
            observed = self._limits.watch_with(*there)
            _, wander = self._limits.sum_with(*there)
            peer = Peer(
                declared,
                pair,
                RttMinimum(),
                now_raw_ns,
                proofs.address,
                proofs.link,
                OverLinks(pair),
                observed,
                proofs.public_key,
                wander_ppb_per_s=math.ceil(wander) + 1,
            )
            self._peers[declared.name] = peer
        peer.links.heard(proofs.link, proofs.address, now_raw_ns, proofs.rtt_ns)
        if self._tap is None:
            learn(peer.pair, peer.observed, proofs.outgoing, proofs.incoming, peer.links)
        else:
            self._tap.learn(self._subject(declared.name, peer), proofs.outgoing, proofs.incoming, peer.links)
        if declared.wall_raw_at_ns >= peer.declared.wall_raw_at_ns or declared.era > peer.declared.era:
            peer.declared = declared
        if proofs.rtt_ns is not None:
            peer.rtt.add(now_raw_ns, max(proofs.rtt_ns, 0))
        peer.heard_ns, peer.address, peer.link = now_raw_ns, proofs.address, proofs.link
        self._last_heard_ns = now_raw_ns
        # By where it is asked; on media that all share by its name.
        self._met_expected |= self.asked.peers & {proofs.address, declared.name}
        self._peers.move_to_end(declared.name)
        if declared.name == self._knot_reference:
            self._knots.improved()  # what other peers say makes no knot narrower

    def on_utc(
        self,
        name: str,
        outgoing: Sequence[tuple[int, int]],
        incoming: Sequence[tuple[int, int]],
        now_raw_ns: int,
        leap: int = 0,
        about: Answer | None = None,
    ) -> None:
        """Takes what one answer of the source ``name`` proves about UTC - raw, and the leap it announces.

        Args:
            leap: 0 none, 1 the day's last minute has 61 seconds, 2 it has 59.
            about: what else is known of the answer.
        """
        if self._utc.on_answer(name, outgoing, incoming, now_raw_ns, leap, about):
            self._knots.improved()

    def on_source_replaced(self, name: str) -> None:
        """Another server speaks under this source's name from now on: what was heard of it is void."""
        self._utc.replaced(name)

    def on_memory_void(self) -> None:
        """The wall clock that this machine's time daemons speak of was stepped, by whoever it was."""
        self._utc.on_step()

    def on_source_state(self, name: str, state: str) -> None:
        """Takes a source's state: pending, reachable or unreachable."""
        self._utc.on_state(name, state)

    def forget_departed(self, now_raw_ns: int) -> None:
        """Drops peers that have been silent for too long, and with them their series."""
        while self._peers:
            name, peer = next(iter(self._peers.items()))
            if now_raw_ns - peer.heard_ns <= PEER_GONE_NS:
                return
            self._contradictions_of_departed += peer.pair.contradictions
            del self._peers[name]

    def forget_peer(self, name: str) -> None:
        """Drops what is known of one peer, and what was kept of it: its next message begins anew."""
        gone = self._peers.pop(name, None)
        self._kept.pop(name, None)
        if gone is not None:
            self._contradictions_of_departed += gone.pair.contradictions

    def forget_source(self, name: str) -> None:
        """Drops what one source said: its next answer begins anew."""
        self._utc.forget(name)

    def forget_unusable(self, now_raw_ns: int) -> list[str]:
        """Drops every peer and source whose own bound can't be had, by a fault of the program; their names.

        One such would spoil what follows from all of them, and be kept over a restart.
        """
        names: list[str] = []
        for name, peer in list(self._peers.items()):
            try:
                peer.pair.offset(now_raw_ns), peer.pair.drift(now_raw_ns), peer.pair.proofs()
                self.peer_estimate(name, now_raw_ns)
            except Exception:
                self.forget_peer(name)
                names.append(name)
        for name, source in self.sources.items():
            try:
                source.pair.offset(now_raw_ns), source.pair.drift(now_raw_ns), source.pair.proofs()
            except Exception:
                self.forget_source(name)
                names.append(name)
        return names

    # -- kept over a restart -------------------------------------------------------------------------------------

    def keep(self, facts: RawFacts, now_raw_ns: int, rate_basis: str = "") -> Kept:
        """What a daemon that is started later may take up again (see ``resume.py``)."""
        peers = [
            KeptPeer(
                name,
                peer.declared.boot,
                peer.declared.raw_era,
                peer.declared.max_drift_ppm,
                peer.declared.max_wander_ppb_per_s,
                peer.heard_ns,
                plain(peer.pair.proofs()),
            )
            for name, peer in self._peers.items()
        ]
        # Not heard since the start, but perhaps after the next.
        peers += [kept for kept in self._kept.values() if now_raw_ns - kept.heard_ns <= PEER_GONE_NS]
        wall = self.wall.wall_minus_raw(now_raw_ns)
        return Kept(
            node=self.name,
            boot=self.boot,
            raw_era=self.raw_era,
            clock_source=facts.clock_source,
            suspended_ns=(facts.suspended_ns.lo, facts.suspended_ns.hi),
            machine=facts.machine,
            shift_ns=facts.shift_ns,
            max_drift_ppm=self.config.clock.max_drift_ppm,
            max_wander_ppb_per_s=self.config.clock.max_wander_ppb_per_s,
            at_raw_ns=now_raw_ns,
            at_wall_ns=self.wall.latest.wall_at_ns(),
            peers=tuple(peers[:PAIRS_MAX]),
            sources=self._utc.kept(),
            rate_basis=rate_basis,
            wall_minus_raw=None if self.virtual else (wall.lo, wall.hi),
        )

    def resume(self, kept: Kept, public_keys: Mapping[str, bytes] | None = None) -> None:
        """Takes it up, when nothing objects to it (``resume.objection``): sources now, peers once they are heard.

        Args:
            public_keys: those that the peers had then, by name. What was learnt from a peer is taken up under the same
                key only, or without one only where it had none.
        """
        self._kept_keys = public_keys or {}
        self._kept = {peer.name: peer for peer in kept.peers[:PEERS_MAX]}
        self._utc.resume(kept)

    def take_drift(self, priors: Mapping[KeptSource, DriftPrior]) -> None:
        """Takes what another boot knew of the drift against the sources that are still configured, for when each is
        heard (``resume.drift_priors``)."""
        self._utc.take_drift(priors)

    def _resume_peer(self, declared: Self, pair: PairBound, public_key: bytes) -> None:
        kept = self._kept.pop(declared.name, None)
        if (
            kept is not None
            and (kept.boot, kept.raw_era) == declared.timebase
            and self._kept_keys.get(declared.name, b"") == public_key
            and (kept.max_drift_ppm, kept.max_wander_ppb_per_s)
            == (declared.max_drift_ppm, declared.max_wander_ppb_per_s)
        ):
            pair.resume(half_planes(kept.proofs))

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def contradictions(self) -> int:
        """How often a set of possible states became empty, since the start."""
        return (
            self._contradictions_of_departed
            + sum(peer.pair.contradictions for peer in self._peers.values())
            + self._utc.contradictions
        )

    def reference_name(self) -> str | None:
        """``utc``, a node's bare name, or None when there is nothing to compare with."""
        configured = self.config.mesh.reference
        if self.mesh is not None and self.mesh.timescale is not None:
            return self.mesh.timescale.origin
        if configured != "auto":
            return configured
        if self.mesh is not None:
            return None  # it listens which one the others follow
        if self.claims_utc:
            return "utc"
        bounded = [name for name, peer in self._peers.items() if peer.pair.known]
        return min([self.name, *bounded]) if bounded else "utc" if self.sources else None

    @property
    def met(self) -> frozenset[str]:
        """The peers that this node has exchanged messages with."""
        return frozenset(self._peers)

    def first_hand(self, at_raw_ns: int) -> dict[str, tuple[Self, Heard]]:
        """Every peer that this node bounds itself: what it said of itself, and its raw clock minus this one's."""
        found: dict[str, tuple[Self, Heard]] = {}
        for name, peer in self._peers.items():
            offset, drift = peer.pair.offset(at_raw_ns), peer.pair.drift(at_raw_ns)
            if offset is not None and drift is not None:
                found[name] = peer.declared, self._own_word(peer, offset, drift, at_raw_ns)
        return found

    def _raw_offset(self, name: str, at_raw_ns: int) -> tuple[Heard, Wall] | None:
        """Peer's raw - own raw, by own exchanges, by others', or by both; and the newest that is said of its wall."""
        peer, told = self._peers.get(name), None if self.mesh is None else self.mesh.wall(name)
        first: Heard | None = None
        wall: Wall | None = None
        if peer is not None:
            declared = peer.declared
            wall = Wall(
                declared.timebase,
                declared.era,
                declared.wall_raw_at_ns,
                declared.wall_minus_raw,
                declared.wall_slew_ppb,
            )
            if told is not None and told.timebase == wall.timebase and told.at_raw_ns > wall.at_raw_ns:
                wall = told
            offset, drift = peer.pair.offset(at_raw_ns), peer.pair.drift(at_raw_ns)
            if offset is not None and drift is not None:
                first = self._own_word(peer, offset, drift, at_raw_ns)
        wall = wall or told
        if wall is None:
            return None
        others = None if self.mesh is None else self.mesh.heard(name, at_raw_ns, wall.timebase)
        if first is None or others is None:
            known = first or others
            return None if known is None else (known, wall)
        both, drift = first.offset.intersect(others.offset), first.drift_ppb.intersect(others.drift_ppb)
        if both is None or drift is None:
            return first, wall  # more than f members lie, or a limit is broken: this node believes itself
        kept_up = first if first.age_ns <= HOLDOVER_AFTER * first.interval_ns else others
        return Heard(both, drift, kept_up.age_ns, kept_up.interval_ns), wall

    def _own_word(self, peer: Peer, offset: Interval, drift_ppb: Interval, at_raw_ns: int) -> Heard:
        return Heard(offset, drift_ppb, at_raw_ns - peer.heard_ns, self._asked_every_ns())

    def _asked_every_ns(self) -> int:
        """How often a peer is heard while all is well; the reference of a large mesh less often (``fanout.py``)."""
        members = 1 if self.mesh is None else self.mesh.members + 1
        return self.config.mesh.interval * max(members, DIRECT_MAX) // DIRECT_MAX

    def peer_estimate(self, name: str, at_raw_ns: int) -> Estimate | None:
        """Peer's wall - own wall at an own raw instant; None while unknown, or where it is nothing that can be told."""
        found = self._raw_offset(name, at_raw_ns)
        if found is None:
            return None
        known, wall = found
        peer = self._peers.get(name)
        there = known.offset.shift(at_raw_ns)
        bound = self.wall.from_raw(known.offset + wall.minus_raw_at(there), at_raw_ns)
        if not within(bound, TOLD_MAX_NS):
            return None
        return Estimate(
            bound,
            self.wall.drift_from_raw(known.drift_ppb, wall.slew_ppb),
            self._wander_of(name),
            known.age_ns,
            known.interval_ns,
            (name, wall.timebase, wall.era, peer.pair.contradictions if peer is not None else -1),
            f"node:{name}",
        )

    def _wander_of(self, name: str) -> int:
        peer = self._peers.get(name)
        if peer is not None:
            return peer.wander_ppb_per_s
        known = None if self.mesh is None else self.mesh.known.get(name)
        return 0 if known is None else known.wander_ppb_per_s

    def raw_estimate(self, timescale: Timescale, at_raw_ns: int) -> Heard | None:
        """Timescale - own raw at an own raw instant, and its drift against the raw clock; None if unknown."""
        if timescale == UTC:
            return self.utc_raw(at_raw_ns)
        keeper, k_ns = timescale.keeper, timescale.k_ns
        if keeper == self.name:
            if k_ns is not None:
                return Heard(Interval(k_ns, k_ns), Interval(0, 0), 0, 1)
            slew = self.wall.slew_ppb()
            return Heard(self.wall.wall_minus_raw(at_raw_ns), Interval(-slew, slew), 0, 1)
        found = self._raw_offset(keeper, at_raw_ns)
        if found is None or not self._keeps(timescale, found[1].timebase):
            return None
        known, wall = found
        if k_ns is not None:
            return replace(known, offset=known.offset.shift(k_ns))
        minus_raw = wall.minus_raw_at(known.offset.shift(at_raw_ns))
        return replace(known, offset=known.offset + minus_raw, drift_ppb=known.drift_ppb.widen(wall.slew_ppb + 1))

    def _keeps(self, timescale: Timescale, timebase: tuple[bytes, int]) -> bool:
        """Whether what is known of the keeper is of the clock that keeps the timescale.

        A wall clock goes on over a suspend, and one that was configured over a reboot, for it is what was asked for.
        Of an elected one the wall clock after a reboot is another clock.
        """
        if timescale.carried:
            return timebase == (timescale.keeper_boot, timescale.keeper_raw_era)
        return self.config.mesh.reference != "auto" or timebase[0] == timescale.keeper_boot

    def _timescale_estimate(self, timescale: Timescale, at_raw_ns: int) -> Estimate | None:
        """Timescale - own wall: what the mesh has agreed on, by whose clock it is now."""
        assert self.mesh is not None
        scale: tuple[object, ...] = (self.mesh.epochs, timescale.clock)
        if timescale == UTC:
            estimate = self._utc_estimate(at_raw_ns)
            # Own sources that fall silent, and others' that take their place, tell the same UTC.
            scale = (*scale, None if estimate is None else estimate.epoch[1] == HEARD)
        elif timescale.keeper == self.name:
            estimate = self._own_estimate(timescale, at_raw_ns)
        elif timescale.carried:
            estimate = self._carried_estimate(timescale, at_raw_ns)
        else:
            found = self._raw_offset(timescale.keeper, at_raw_ns)
            keeps = found is not None and self._keeps(timescale, found[1].timebase)
            estimate = self.peer_estimate(timescale.keeper, at_raw_ns) if keeps else None
        if estimate is None:
            return None
        age = estimate.age_ns
        peer = self._peers.get(timescale.keeper)
        own_word = timescale.keeper == self.name or timescale == UTC
        if peer is not None:
            own_word = at_raw_ns - peer.heard_ns <= HOLDOVER_AFTER * self._asked_every_ns() + LEAD_NS
        if not own_word and not self.mesh.alive:
            # Others' records stay fresh when the keeper, which they tell of, falls silent everywhere.
            age = max(age, HOLDOVER_AFTER * estimate.interval_ns + LEAD_NS + 1)
        name = "utc" if timescale == UTC else f"node:{timescale.origin}"
        return estimate._replace(age_ns=age, name=name, scale=scale)

    def _own_estimate(self, timescale: Timescale, at_raw_ns: int) -> Estimate | None:
        if timescale.k_ns is None:
            return self._while_followed(_own_wall(""), at_raw_ns)
        if (timescale.keeper_boot, timescale.keeper_raw_era) != (self.boot, self.raw_era):
            return None
        bound = self.wall.from_raw(Interval(timescale.k_ns, timescale.k_ns), at_raw_ns)
        still = self.wall.drift_from_raw(Interval(0, 0))
        return self._while_followed(Estimate(bound, still, 0, 0, 1, ("self", timescale.clock), ""), at_raw_ns)

    def _while_followed(self, own: Estimate, at_raw_ns: int) -> Estimate | None:
        """This node's own clock as the reference: what that is worth.

        Where the configuration names it, it is right by definition. An elected one is what others go by, as long as
        there are others. When they fall silent they carry the timescale on by another clock, and it drifts away from
        this one; when they are forgotten, this clock is nobody's reference any more.
        """
        if self.config.mesh.reference == self.name:
            return own
        if not self._peers:
            return None
        silence_ns = max(at_raw_ns - next(reversed(self._peers.values())).heard_ns, 0)
        if silence_ns > PEER_GONE_NS:
            return None
        own = own._replace(age_ns=silence_ns, interval_ns=self._asked_every_ns())
        if own.heard:
            return own
        apart_ppb = math.ceil(self._limits.sum_with(self._limits.max_drift_ppm, 0)[0] * 1000) + 1
        drift = own.drift_ppb.widen(apart_ppb)
        return own._replace(bound=own.bound.widen(silence_ns * apart_ppb // _PPB + 1), drift_ppb=drift)

    def _carried_estimate(self, timescale: Timescale, at_raw_ns: int) -> Estimate | None:
        found = self.raw_estimate(timescale, at_raw_ns)
        if found is None:
            return None
        peer = self._peers.get(timescale.keeper)
        return Estimate(
            self.wall.from_raw(found.offset, at_raw_ns),
            self.wall.drift_from_raw(found.drift_ppb),
            self._wander_of(timescale.keeper),
            found.age_ns,
            found.interval_ns,
            ("carried", timescale.clock, peer.pair.contradictions if peer is not None else -1),
            "",
        )

    def utc_selection(self, at_raw_ns: int) -> tuple[list[tuple[Source, Interval]], Selection]:
        """Each source's UTC - own wall, and what the majority of them agrees on."""
        return self._utc.selection(at_raw_ns)

    @property
    def claims_utc(self) -> bool:
        """Whether this node tells others of its sources: of configured ones, for others may rely on them."""
        return bool(self.sources) and not self.sources_found

    def utc_raw(self, at_raw_ns: int, *, own: bool = False) -> Heard | None:
        """UTC - own raw, by own sources where they agree, else by what other members say (not with ``own``)."""
        estimate = self._utc.estimate(at_raw_ns)
        if estimate is not None:
            offset = estimate.bound + self.wall.wall_minus_raw(at_raw_ns)
            return Heard(offset, self.wall.drift_from_wall(estimate.drift_ppb), estimate.age_ns, estimate.interval_ns)
        return None if own or self.mesh is None else self.mesh.utc(at_raw_ns)

    def utc_lives(self, at_raw_ns: int) -> bool:
        """Whether own sources, configured or found, tell UTC now: not in holdover, and narrow enough to publish."""
        own = self._utc.estimate(at_raw_ns)
        return own is not None and own.heard and own.bound.width <= 2 * self.config.clock.max_uncertainty

    def _utc_estimate(self, at_raw_ns: int) -> Estimate | None:
        """UTC - own wall: own sources, else what f + 1 members say."""
        own = self._utc.estimate(at_raw_ns)
        heard = None if self.mesh is None else self.mesh.utc(at_raw_ns)
        if own is not None or heard is None:
            return own
        return Estimate(
            self.wall.from_raw(heard.offset, at_raw_ns),
            self.wall.drift_from_raw(heard.drift_ppb),
            math.ceil(self._limits.sum_with(0, 0)[1]) + 1,
            heard.age_ns,
            heard.interval_ns,
            ("utc", HEARD),
            "utc",
        )

    def reference_estimate(self, at_raw_ns: int) -> Estimate | None:
        """reference - own wall at an own raw instant.

        None while that is unknown or nothing that can be told, and while this node is blocked.
        """
        if self.blocked is not None:
            return None
        estimate = self._reference_estimate(at_raw_ns)
        return estimate if estimate is not None and within(estimate.bound, TOLD_MAX_NS) else None

    def _reference_estimate(self, at_raw_ns: int) -> Estimate | None:
        if self.mesh is not None and self.mesh.timescale is not None:
            return self._timescale_estimate(self.mesh.timescale, at_raw_ns)
        name = self.reference_name()
        if name is None:
            return None
        if name == "utc":
            return self._utc_estimate(at_raw_ns)
        if name == self.name:
            return self._while_followed(_own_wall(f"node:{name}"), at_raw_ns)
        return self.peer_estimate(name, at_raw_ns)

    def status_with(self, estimate: Estimate, uncertainty_ns: int) -> Status:
        """What an estimate is worth when the largest error of what is applied is ``uncertainty_ns``."""
        if uncertainty_ns > self.config.clock.max_uncertainty:
            return Status.UNSYNCHRONIZED
        return Status.SYNCHRONIZED if estimate.heard else Status.HOLDOVER

    def status_of(self, estimate: Estimate) -> Status:
        """What an estimate is worth as it is, its wall clock not corrected by anything."""
        return self.status_with(estimate, estimate.bound.farthest(0))

    # -- knots ---------------------------------------------------------------------------------------------------

    def knot(self, now_raw_ns: int) -> Knot | None:
        """The next knot, a little ahead of now; None before anything is known, or if one was just made."""
        following = None if self.mesh is None else self.mesh.timescale
        self._knot_reference = self.reference_name() if following is None else following.keeper
        return self._knots.next(now_raw_ns)

    def no_knot(self, now_raw_ns: int) -> Knot | None:
        """A knot that says that nothing is known; None where nothing else was said before."""
        return self._knots.unknown(now_raw_ns)

    def applied_ns(self, at_raw_ns: int) -> int | None:
        """What is published as reference - own raw at an own raw instant; None when nothing is."""
        return self._knots.applied_ns(at_raw_ns)

    def tightened(self) -> list[Knot]:
        """Recent knots that what arrived since has made narrower, and the one that a slew has made wider."""
        return self._knots.tightened()

    # -- what is told (``telling.py``) ---------------------------------------------------------------------------

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The peers that this node has heard itself, by name."""
        return self._peers

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources of UTC, by name."""
        return self._utc.by_name

    @property
    def sources_found(self) -> bool:
        """Whether nobody configured the sources: they were found on this machine."""
        return self._utc.found

    @property
    def sources_enough(self) -> bool:
        """Whether as many sources as ``[utc] min_sources`` asks for were heard (``UtcSources.enough``)."""
        return self._utc.enough

    @property
    def sources_short(self) -> tuple[int, int] | None:
        """How many sources have a bound and how many are needed, where the former are too few to decide; else None."""
        return self._utc.short()

    def uptime_ns(self, now_raw_ns: int) -> int:
        """How long this node has been measuring."""
        return now_raw_ns - self._began_ns

    def offset_applied(self, estimate: Estimate, now_raw_ns: int) -> int:
        """What is applied to this node's times now: the line's offset, or the estimate's middle while there is none."""
        return self._knots.offset_applied(estimate, now_raw_ns)

    # -- evidence (``tap.py``) -----------------------------------------------------------------------------------

    def tap_with(self, tap: Tap | None) -> None:
        """Has every message pass by ``tap`` from now on; None: nobody listens."""
        self._tap = self._utc.tap = tap

    def subjects(self) -> list[Subject]:
        """Every pair of clocks that this node has a filter for."""
        return [self._subject(name, peer) for name, peer in self._peers.items()] + [
            self._utc.subject(source) for source in self._utc.by_name.values()
        ]

    def _subject(self, name: str, peer: Peer) -> Subject:
        boot, era = peer.declared.timebase
        clock = b"%s %d" % (boot, era)
        return Subject("peer", name, clock, self.config.mesh.interval, False, peer.pair, peer.observed)

    @property
    def quorum(self) -> Quorum:
        """How many sources of UTC there are, and how many must agree."""
        return self._utc.quorum

    def basis(self, at_raw_ns: int) -> tuple[str, list[Part]]:
        """What :meth:`reference_estimate` is made of: ``utc`` by own sources, ``peer`` by one clock, or ``other``;
        and of which pairs."""
        timescale = None if self.mesh is None else self.mesh.timescale
        name = self.reference_name()
        if timescale is not None:
            ours = timescale.carried or timescale.keeper == self.name
            name = "utc" if timescale == UTC else None if ours else timescale.keeper
        if name == "utc":
            own = self._utc.estimate(at_raw_ns) is not None
            return ("utc", self._utc.parts(at_raw_ns)) if own else ("other", [])
        peer = None if name is None else self._peers.get(name)
        found = None if name is None else self._raw_offset(name, at_raw_ns)
        own_offset = None if peer is None else peer.pair.offset(at_raw_ns)
        if name is None or found is None or own_offset is None:
            return "other", []
        known, wall = found
        there = wall.minus_raw_at(known.offset.shift(at_raw_ns))
        narrowed = None if known.offset == own_offset else (known.offset.lo, known.offset.hi)
        return "peer", [Part(("peer", name), there.lo, there.hi, narrowed)]

    def status(self, now_raw_ns: int) -> dict[str, Any]:
        """``skewd status --json``, as far as it is the node's: see ``telling.py``."""
        told = telling.status(self, now_raw_ns)
        return plain_status(told.with_problems(telling.problems(self, told, now_raw_ns)))


def _own_wall(name: str) -> Estimate:
    """This node's own wall clock, seen from itself."""
    still = Interval(0, 0)
    return Estimate(still, still, 0, 0, 1, SELF, name)
