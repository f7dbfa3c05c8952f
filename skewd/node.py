"""What one node knows: proofs and clock readings in, bounds and knots out.

This is the daemon without its sockets. Messages arrive as proofs about raw clocks (``links``, ``sources``), readings
of this node's own clocks arrive as sandwiches, and from them follow

    peer wall - own wall = (peer raw - own raw) + (peer wall - peer raw) - (own wall - own raw),

each term an interval: the first from the set-membership filter (``bounds/pair.py``), the second as the peer last
declared it, widened by how fast it may have moved since, the third from our own readings. One of the peers, or UTC
from the sources, is the *reference*; its difference to this node's wall clock is what spans are corrected by, and
goes out as knots (``bounds/history.py``) that carry the applied line (``bounds/applied.py``).

Which reference: the timescale that the mesh has agreed on (``election.py``, by way of ``membership.py``); without a
mesh the configured one or, with ``auto``, UTC if there is any source. Sources that nobody configured but that were
found on this machine count only in a node that is alone, for in a mesh all nodes must have the same reference. A node
without source and peer has nothing to compare its clock with, and says so.

What other members say (``hearsay.py``) bounds clocks that this node does not measure, and narrows a bound of its own
where f + 1 disjoint paths agree; the status says which (``trust``).

Around a leap second that a source, or half of all sources, announces its bound is the hull of both readings of UTC:
from ``LEAP_BEFORE_NS`` before the midnight of UTC until it has spoken ``LEAP_AFTER_NS`` after it, and its filter
begins anew there. Smeared sources (all or none of them, see ``config.py``) announce nothing; they may be
``SMEAR_PPM`` off UTC's rate and begin at once, so no limit is put on their wander.

Limits: ``PEERS_MAX`` peers; the one heard least recently gives way. The reference's wall clock may be stepped between
two exchanges: until the next one tells, what is said of it holds for its clock before the step. Pure: no clock is
read and no socket opened here.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from skewd import telling
from skewd.bounds import applied
from skewd.bounds.history import Knot, Status
from skewd.bounds.observed import Observed
from skewd.bounds.pair import PairBound, pair_limits
from skewd.bounds.select import Selection, majority, select
from skewd.clock import WallSample
from skewd.config import Config, SourceConfig
from skewd.election import UTC, Timescale
from skewd.fanout import DIRECT_MAX
from skewd.hearsay import MISSED, Heard, MeshView, Wall
from skewd.interval import Interval
from skewd.kernel_clock import RawFacts
from skewd.links.protocol import Proofs, Self
from skewd.over_links import OverLinks, RttMinimum
from skewd.resume import (
    LEAP_AHEAD_NS,
    PAIRS_MAX,
    DriftPrior,
    Kept,
    KeptPeer,
    KeptSource,
    half_planes,
    may_have_leapt,
    plain,
)
from skewd.wall import STEER_PPB, WallMap

PEERS_MAX = 256
"""Peers remembered at most (memory), whoever sends."""

PEER_GONE_NS = 900_000_000_000
"""A peer not heard for this long is forgotten: 15 minutes."""

KNOT_PERIOD_NS = 250_000_000
LEAD_NS = 20_000_000
"""Knots begin this far in the future, so that the line in force at a stamp was known before the stamp was made."""

DESCRIBE_AGAIN_NS = 250_000_000
"""How old the reading of this node's clocks that goes out with messages may be; it is told with the reading."""

DESCRIBE_WIDER_NS = 500
"""And by how much less sharp than the newest."""

TIGHTEN_NS = 2_000_000_000
"""How far back knots are improved by what arrived since."""

HOLDOVER_AFTER = MISSED
"""Missed intervals after which a bound is called holdover."""

LEAP_BEFORE_NS = 2_000_000_000
LEAP_AFTER_NS = 10_000_000_000
"""Servers, kernels and daemons do not all leap at the same moment; this much on each side is left to them."""

SMEAR_PPM = 14
"""A second in 24 hours is 11.6 ppm, and 13.9 in 20 hours, the two smears in use; both change the rate at once."""

_SMEAR_WANDER_PPB_PER_S = 1_000_000
_DAY_NS = 86_400_000_000_000
_PPB = 1_000_000_000
_HEARD = "heard"
_SELF = ("self",)


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


@dataclass(slots=True)
class Source:
    """One source of UTC."""

    name: str
    type: str
    interval_ns: int
    pair: PairBound
    observed: Observed
    heard_ns: int | None = None
    state: str = "pending"
    rtt: RttMinimum = field(default_factory=RttMinimum)
    smear: bool = False
    address: str | None = None
    leap: int = 0
    """What it announces: 0 nothing, 1 a second inserted, 2 one deleted."""
    leap_due: int = 0
    """What is expected of it, by its own announcement or that of others."""
    leap_at_ns: int | None = None
    """UTC of the midnight at which the announced leap is due."""
    begun: int = 0
    """How often the filter began anew on another reading of UTC."""

    def leaping(self, utc_ns: int) -> bool:
        """Whether at this UTC a leap may have happened that the filter does not know of."""
        return self.leap_at_ns is not None and utc_ns >= self.leap_at_ns - LEAP_BEFORE_NS


class Estimate(NamedTuple):
    """other - own wall at one instant: the bound, how fast it moves, how well it is kept up."""

    bound: Interval
    drift_ppb: Interval
    wander_ppb_per_s: int
    age_ns: int
    interval_ns: int
    epoch: tuple[object, ...]
    name: str
    scale: tuple[object, ...] | None = None
    """In a mesh: how often published time may have jumped, and whose clock the timescale is now."""

    @property
    def told_by_others(self) -> bool:
        """Whether it is UTC by what other members say, and not by own sources."""
        return self.epoch[0] == "utc" and self.epoch[1] == _HEARD

    def continues(self, scale: tuple[object, ...] | None) -> bool:
        """Whether this is the timescale of before, carried on by another clock: times go on without a jump."""
        mine = self.scale
        return mine is not None and scale is not None and mine != scale and mine[0] == scale[0]

    @property
    def heard(self) -> bool:
        """Whether the other was heard in time; otherwise the bound is in holdover."""
        return self.age_ns <= HOLDOVER_AFTER * self.interval_ns + LEAD_NS


def _utc_limits(smear: bool) -> tuple[float, float]:
    """The limits of a source's UTC against true time: ppm, ppb/s."""
    return (SMEAR_PPM, _SMEAR_WANDER_PPB_PER_S) if smear else (0, 0)


def _learn(
    pair: PairBound,
    observed: Observed,
    outgoing: Sequence[tuple[int, int]],
    incoming: Sequence[tuple[int, int]],
    links: OverLinks | None = None,
) -> None:
    """Gives a message's proofs to the filter, to what watches whether its limits hold, and to what knows its links."""
    for sent, received in outgoing:
        if not pair.outgoing(sent, received):
            observed.contradiction(sent)
        observed.outgoing(sent, received)
        if links is not None:
            links.proved(True, sent)
    for sent, received in incoming:
        if not pair.incoming(sent, received):
            observed.contradiction(received)
        observed.incoming(sent, received)
        if links is not None:
            links.proved(False, received)


class Node:
    """The knowledge of one node.

    Args:
        config: the configuration in force.
        boot: 16 bytes that name this run of the raw clock.
        first: the first sandwich of wall - raw.
        virtual: whether the clocks are a test's stand-ins.
        raw_era: the number of the raw clock's first era.
    """

    def __init__(self, config: Config, *, boot: bytes, first: WallSample, virtual: bool, raw_era: int = 1) -> None:
        self.config = config
        self.name = config.node.name
        self.virtual = virtual
        self.boot = boot
        self.raw_era = raw_era
        self.wall = WallMap(first)
        self._began_ns = first.raw_ns
        self._peers: OrderedDict[str, Peer] = OrderedDict()
        self._sources: dict[str, Source] = {}
        self._kept: dict[str, KeptPeer] = {}
        self._drift_priors: dict[str, DriftPrior] = {}
        self._contradictions_of_departed = 0
        self._line: applied.Line | None = None
        self._line_key: tuple[object, ...] | None = None
        self._epoch = 0
        self._recent: deque[Knot] = deque(maxlen=TIGHTEN_NS // KNOT_PERIOD_NS)
        self._last_wall_ns: tuple[int, int] | None = None
        self._described: Self | None = None
        self._improved = False
        self._knot_reference: str | None = None
        self._found = False
        self._slew_told_ppb = 0
        self._widened = False
        self._line_scale: tuple[object, ...] | None = None
        self._line_era = 0
        self.mesh: MeshView | None = None
        """What ``membership.py`` makes of the records of all; None in a node that is alone."""
        self.steer_limit_ppb = 0
        """How fast this daemon may steer this clock before its peers hear of it again; 0 if it does not."""
        for source in config.source:
            self._add_source(source)

    def _add_source(self, source: SourceConfig) -> None:
        # UTC is true time: its own limits are zero, but for a smear.
        limits = _utc_limits(source.smear)
        self._sources[source.name] = Source(
            source.name,
            source.type,
            source.interval,
            self._fresh(*limits),
            self._unseen(*limits),
            smear=source.smear,
            address=source.address,
        )

    def found_source(self, source: SourceConfig) -> None:
        """Adds a source that nobody configured: what this machine has anyway."""
        self._found = True
        self._add_source(source)

    def reconfigure(self, config: Config) -> None:
        """Takes up a configuration that differs in what may change while running (``reload.py``).

        A source that is the same clock as before, asked more or less often, goes on; one that was found on this
        machine goes on only while none is configured.
        """
        self.config = config
        if not config.source and self._found:
            return
        before, self._sources = self._sources, {}
        for source in config.source:
            old = before.get(source.name)
            if old and (old.type, old.address, old.smear) == (source.type, source.address, source.smear):
                old.interval_ns = source.interval
                self._sources[source.name] = before.pop(source.name)
            else:
                self._add_source(source)
        self._contradictions_of_departed += sum(gone.pair.contradictions for gone in before.values())
        self._found = False
        self._improved = True

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
        if not stepped and self.wall.slew_ppb() > self._slew_told_ppb + STEER_PPB:
            # A slew began that the newest knot did not allow for: it is taken back before a reader relies on it.
            self._allow_for_slew(before_ns)
        return stepped

    @property
    def steered_by_source(self) -> str | None:
        """A source that judges this wall clock by how somebody else steers it; it can't be used if this daemon does."""
        return next((one.name for one in self._sources.values() if one.type in ("chrony", "kernel")), None)

    def will_steer(self, rate_ppb: int) -> None:
        """This daemon is about to set the kernel's rate: what is said from now on allows for it.

        The newest knots allow for it as well, as soon as :meth:`tightened` was published; only then is it set.
        """
        self.wall.will_steer(rate_ppb)
        if self.wall.slew_ppb() > self._slew_told_ppb:
            self._allow_for_slew(self.wall.latest.raw_ns)

    def _allow_for_slew(self, since_ns: int) -> None:
        if not self._recent:
            return
        # In the knot before the newest as well, which rules until that begins (knots begin a little in the future).
        # Seen per second of a wall clock that is slowed down it is more, as in _wall_drift.
        slew = self.wall.slew_ppb()
        more = slew * _PPB // (_PPB - min(slew, _PPB // 2)) + 1 - self._slew_told_ppb
        for back in range(1, min(len(self._recent), 2) + 1):
            knot = self._recent[-back]
            # One that lay ahead when the slew began, at the last reading at the earliest, is wrong itself.
            wrong = max(knot.raw_ns - since_ns, 0) * more // _PPB + 1
            bound = knot.bound.widen(wrong) if knot.bound else None
            self._recent[-back] = replace(knot, bound=bound, drift_ppb=knot.drift_ppb.widen(more))
        self._slew_told_ppb = slew
        self._widened = True

    @property
    def slew_began(self) -> bool:
        """Whether the newest knot had to be widened, and a new one is due at once."""
        return self._widened

    def on_raw_disturbed(self, reading: WallSample) -> None:
        """The raw clock was not continuous (suspend): every bound is void, a new era begins."""
        self.raw_era += 1
        self.wall.restart(reading)
        self._peers.clear()
        self._kept.clear()
        if self.mesh is not None:
            self.mesh = replace(self.mesh, known={})
        self._drift_priors.clear()
        for source in self._sources.values():
            limits = _utc_limits(source.smear)
            source.pair, source.observed = self._fresh(*limits), self._unseen(*limits)
            source.heard_ns = None

    def _limits(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> tuple[float, float]:
        clock = self.config.clock
        return pair_limits(clock.max_drift_ppm, clock.max_wander_ppb_per_s, there_drift_ppm, there_wander_ppb_per_s)

    def _fresh(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> PairBound:
        drift, wander = self._limits(there_drift_ppm, there_wander_ppb_per_s)
        return PairBound(max_drift_ppm=drift, max_wander_ppb_per_s=wander)

    def _unseen(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> Observed:
        drift, wander = self._limits(there_drift_ppm, there_wander_ppb_per_s)
        return Observed(max_drift_ppm=drift, max_wander_ppb_per_s=wander)

    def on_proofs(self, proofs: Proofs, now_raw_ns: int) -> None:
        """Takes what one authentic message of a peer proves."""
        declared = proofs.peer
        if declared.name == self.name:
            return
        peer = self._peers.get(declared.name)
        if (
            peer is None
            or peer.declared.timebase != declared.timebase
            or (peer.declared.max_drift_ppm, peer.declared.max_wander_ppb_per_s)
            != (declared.max_drift_ppm, declared.max_wander_ppb_per_s)
        ):
            # A clock not known yet, or another one than before (a reboot): nothing of the old bound applies.
            if peer is not None:
                self._contradictions_of_departed += peer.pair.contradictions
            elif len(self._peers) >= PEERS_MAX:
                _, gone = self._peers.popitem(last=False)
                self._contradictions_of_departed += gone.pair.contradictions
            pair = self._fresh(declared.max_drift_ppm, declared.max_wander_ppb_per_s)
            self._resume_peer(declared, pair)
            observed = self._unseen(declared.max_drift_ppm, declared.max_wander_ppb_per_s)
            _, wander = self._limits(declared.max_drift_ppm, declared.max_wander_ppb_per_s)
            peer = Peer(
                declared,
                pair,
                RttMinimum(),
                now_raw_ns,
                proofs.address,
                proofs.link,
                OverLinks(pair),
                observed,
                wander_ppb_per_s=math.ceil(wander) + 1,
            )
            self._peers[declared.name] = peer
        peer.links.heard(proofs.link, proofs.address, now_raw_ns, proofs.rtt_ns)
        _learn(peer.pair, peer.observed, proofs.outgoing, proofs.incoming, peer.links)
        if declared.wall_raw_at_ns >= peer.declared.wall_raw_at_ns or declared.era > peer.declared.era:
            peer.declared = declared
        if proofs.rtt_ns is not None:
            peer.rtt.add(now_raw_ns, max(proofs.rtt_ns, 0))
        peer.heard_ns, peer.address, peer.link = now_raw_ns, proofs.address, proofs.link
        self._peers.move_to_end(declared.name)
        if declared.name == self._knot_reference:
            self._improved = True  # what other peers say makes no knot narrower

    def on_utc(
        self,
        name: str,
        outgoing: Sequence[tuple[int, int]],
        incoming: Sequence[tuple[int, int]],
        now_raw_ns: int,
        leap: int = 0,
    ) -> None:
        """Takes what one answer of the source ``name`` proves about UTC - raw, and the leap it announces.

        Args:
            leap: 0 none, 1 the day's last minute has 61 seconds, 2 it has 59.
        """
        source = self._sources[name]
        if not self._past_leap(source, [utc for _, utc in outgoing] + [utc for utc, _ in incoming], leap):
            source.heard_ns, source.state = now_raw_ns, "reachable"
            return
        _learn(source.pair, source.observed, outgoing, incoming)
        self._use_prior(source, now_raw_ns)
        for (sent, arrived), (left, received) in zip(outgoing, incoming, strict=False):
            source.rtt.add(now_raw_ns, max((received - sent) - (left - arrived), 0))
        source.heard_ns, source.state = now_raw_ns, "reachable"
        self._improved = True

    def _past_leap(self, source: Source, utc_ns: list[int], leap: int) -> bool:
        """Keeps the announced leap; False for an answer too near to it to tell which reading of UTC it gives."""
        if source.smear or not utc_ns:
            return True
        earliest, latest = min(utc_ns), max(utc_ns)
        if source.leap_at_ns is not None and latest >= source.leap_at_ns - LEAP_BEFORE_NS:
            if earliest <= source.leap_at_ns + LEAP_AFTER_NS:
                return False
            begun = self._fresh(*_utc_limits(False))
            begun.contradictions = source.pair.contradictions
            source.pair, source.leap_at_ns = begun, None
            source.begun += 1
        source.leap = leap
        if not leap:
            # Not every source announces what it will do; half of them are believed for the others.
            unsmeared = [other for other in self._sources.values() if not other.smear]
            announced = [other.leap for other in unsmeared if other.leap]
            leap = announced[0] if 2 * len(announced) >= len(unsmeared) else 0
        source.leap_due = leap
        # The leap is due at the end of a day of UTC: the next midnight, if it is not over already.
        source.leap_at_ns = -(-(earliest - LEAP_AFTER_NS) // _DAY_NS) * _DAY_NS if leap else None
        return not source.leaping(latest)

    def on_source_state(self, name: str, state: str) -> None:
        """Takes a source's state: pending, reachable or unreachable."""
        self._sources[name].state = state

    def forget_departed(self, now_raw_ns: int) -> None:
        """Drops peers that have been silent for too long, and with them their series."""
        while self._peers:
            name, peer = next(iter(self._peers.items()))
            if now_raw_ns - peer.heard_ns <= PEER_GONE_NS:
                return
            self._contradictions_of_departed += peer.pair.contradictions
            del self._peers[name]

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
        addresses = {source.name: source.address for source in self.config.source}
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
            sources=tuple(
                KeptSource(
                    name, source.type, addresses.get(name), source.heard_ns, plain(source.pair.proofs()), source.smear
                )
                for name, source in self._sources.items()
                if source.heard_ns is not None and source.leap_at_ns is None
            ),
            rate_basis=rate_basis,
        )

    def resume(self, kept: Kept) -> None:
        """Takes it up, when nothing objects to it (``resume.objection``): sources now, peers once they are heard."""
        self._kept = {peer.name: peer for peer in kept.peers[:PEERS_MAX]}
        if may_have_leapt(kept.at_wall_ns, self.wall.latest.wall_at_ns() + LEAP_AHEAD_NS):
            return
        configured = {(source.name, source.type, source.address, source.smear) for source in self.config.source}
        for old in kept.sources:
            if (old.name, old.type, old.address, old.smear) in configured:
                source = self._sources[old.name]
                source.pair.resume(half_planes(old.proofs))
                source.heard_ns = old.heard_ns

    def take_drift(self, priors: Mapping[KeptSource, DriftPrior]) -> None:
        """Takes what another boot knew of the drift against the sources that are still configured, for when each is
        heard (``resume.drift_priors``)."""
        configured = {(source.name, source.type, source.address, source.smear) for source in self.config.source}
        self._drift_priors = {
            old.name: prior
            for old, prior in priors.items()
            if (old.name, old.type, old.address, old.smear) in configured
        }

    def _use_prior(self, source: Source, now_raw_ns: int) -> None:
        """Once a source tells how much time has passed, what its drift was then bounds what it is now."""
        prior = self._drift_priors.get(source.name)
        utc = None if prior is None else source.pair.offset(now_raw_ns)
        if prior is None or utc is None:
            return
        del self._drift_priors[source.name]
        drift = prior.at(now_raw_ns + utc.hi, self._limits(*_utc_limits(source.smear))[1])
        if drift is not None and not source.pair.drift_within(now_raw_ns, drift):
            source.observed.contradiction(now_raw_ns)

    def _resume_peer(self, declared: Self, pair: PairBound) -> None:
        kept = self._kept.pop(declared.name, None)
        if (
            kept is not None
            and (kept.boot, kept.raw_era) == declared.timebase
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
            + sum(source.pair.contradictions for source in self._sources.values())
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
        if self._sources and not self._found:
            return "utc"
        bounded = [name for name, peer in self._peers.items() if peer.pair.known]
        return min([self.name, *bounded]) if bounded else "utc" if self._sources else None

    def _own_slew(self, bound: Interval, at_raw_ns: int) -> Interval:
        return bound - self.wall.wall_minus_raw(at_raw_ns)

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
        """Peer's wall - own wall at an own raw instant; None while unknown."""
        found = self._raw_offset(name, at_raw_ns)
        if found is None:
            return None
        known, wall = found
        peer = self._peers.get(name)
        there = known.offset.shift(at_raw_ns)
        bound = self._own_slew(known.offset + wall.minus_raw_at(there), at_raw_ns)
        return Estimate(
            bound,
            self._wall_drift(known.drift_ppb, wall.slew_ppb),
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
            scale = (*scale, None if estimate is None else estimate.epoch[1] == _HEARD)
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
            still = Interval(0, 0)
            return Estimate(still, still, 0, 0, 1, _SELF, "")
        if (timescale.keeper_boot, timescale.keeper_raw_era) != (self.boot, self.raw_era):
            return None
        bound = self._own_slew(Interval(timescale.k_ns, timescale.k_ns), at_raw_ns)
        return Estimate(bound, self._wall_drift(Interval(0, 0), 0), 0, 0, 1, ("self", timescale.clock), "")

    def _carried_estimate(self, timescale: Timescale, at_raw_ns: int) -> Estimate | None:
        found = self.raw_estimate(timescale, at_raw_ns)
        if found is None:
            return None
        peer = self._peers.get(timescale.keeper)
        return Estimate(
            self._own_slew(found.offset, at_raw_ns),
            self._wall_drift(found.drift_ppb, 0),
            self._wander_of(timescale.keeper),
            found.age_ns,
            found.interval_ns,
            ("carried", timescale.clock, peer.pair.contradictions if peer is not None else -1),
            "",
        )

    def _wall_drift(self, raw_drift_ppb: Interval, there_slew_ppb: int) -> Interval:
        # Both walls may be slewed; and seen per wall second instead of raw second each rate changes by its own size
        # times the slew: a thousandth, or a tenth where chrony steers hard.
        here = self.wall.slew_ppb()
        rate = max(abs(raw_drift_ppb.lo), abs(raw_drift_ppb.hi)) + there_slew_ppb + here
        second_order = rate * max(here, 2_000_000) // (_PPB - min(here, _PPB // 2)) + 1
        return raw_drift_ppb.widen(there_slew_ppb + here + second_order)

    def utc_selection(self, at_raw_ns: int) -> tuple[list[tuple[Source, Interval]], Selection]:
        """Each source's UTC - own wall, and what the majority of them agrees on."""
        known: list[tuple[Source, Interval]] = []
        for source in self._sources.values():
            utc = source.pair.offset(at_raw_ns)
            if utc is not None:
                if source.leaping(at_raw_ns + utc.hi):
                    # An inserted second makes UTC read one second less after it, a deleted one more.
                    utc = utc.hull(utc.shift(-_PPB if source.leap_due == 1 else _PPB))
                known.append((source, self._own_slew(utc, at_raw_ns)))
        return known, select([bound for _, bound in known])

    def _own_utc(self, at_raw_ns: int) -> Estimate | None:
        known, selection = self.utc_selection(at_raw_ns)
        bound = majority([one for _, one in known])
        if bound is None:
            return None
        chosen = [known[index][0] for index in selection.truechimers]
        # The rate is agreed upon as the offset is. The kernel's own estimate tells nothing of it, and one that knows
        # nothing must not hide what the others know.
        drifts = [source.pair.drift(at_raw_ns) or Interval(0, 0) for source, _ in known]
        drift = majority(drifts)
        if drift is None:
            drift = drifts[selection.truechimers[0]]
            for index in selection.truechimers[1:]:
                drift = drift.hull(drifts[index])
        return Estimate(
            bound,
            self._wall_drift(drift, 0),
            math.ceil(max(self._limits(*_utc_limits(source.smear))[1] for source in chosen)) + 1,
            min(at_raw_ns - (source.heard_ns or 0) for source in chosen),
            min(source.interval_ns for source in chosen),
            ("utc", sum(source.pair.contradictions + source.begun for source in chosen)),
            "utc",
        )

    @property
    def claims_utc(self) -> bool:
        """Whether this node tells others of its sources: of configured ones, for others may rely on them."""
        return bool(self._sources) and not self._found

    def utc_raw(self, at_raw_ns: int, *, own: bool = False) -> Heard | None:
        """UTC - own raw, by own sources where they agree, else by what other members say (not with ``own``)."""
        estimate = self._own_utc(at_raw_ns)
        if estimate is not None:
            offset = estimate.bound + self.wall.wall_minus_raw(at_raw_ns)
            return Heard(offset, self._raw_drift(estimate.drift_ppb), estimate.age_ns, estimate.interval_ns)
        return None if own or self.mesh is None else self.mesh.utc(at_raw_ns)

    def _raw_drift(self, wall_drift_ppb: Interval) -> Interval:
        slew = self.wall.slew_ppb()
        return wall_drift_ppb.widen(slew + slew * max(abs(wall_drift_ppb.lo), abs(wall_drift_ppb.hi)) // _PPB + 1)

    def _utc_estimate(self, at_raw_ns: int) -> Estimate | None:
        """UTC - own wall: own sources, else what f + 1 members say."""
        own = self._own_utc(at_raw_ns)
        heard = None if self.mesh is None else self.mesh.utc(at_raw_ns)
        if own is not None or heard is None:
            return own
        return Estimate(
            self._own_slew(heard.offset, at_raw_ns),
            self._wall_drift(heard.drift_ppb, 0),
            math.ceil(self._limits(0, 0)[1]) + 1,
            heard.age_ns,
            heard.interval_ns,
            ("utc", _HEARD),
            "utc",
        )

    def reference_estimate(self, at_raw_ns: int) -> Estimate | None:
        """reference - own wall at an own raw instant."""
        if self.mesh is not None and self.mesh.timescale is not None:
            return self._timescale_estimate(self.mesh.timescale, at_raw_ns)
        name = self.reference_name()
        if name is None:
            return None
        if name == "utc":
            return self._utc_estimate(at_raw_ns)
        if name == self.name:
            still = Interval(0, 0)
            return Estimate(still, still, 0, 0, 1, _SELF, f"node:{name}")
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
        at_raw = now_raw_ns + LEAD_NS
        at_wall = at_raw + self.wall.wall_minus_raw(at_raw).midpoint
        if self._last_wall_ns is not None and self._last_wall_ns >= (self.wall.era, at_wall):
            return None  # within an era knots only go forwards
        following = None if self.mesh is None else self.mesh.timescale
        self._knot_reference = self.reference_name() if following is None else following.keeper
        estimate = self.reference_estimate(at_raw)
        if estimate is None:
            if self._line_key is None:
                return None
            self._line_key = None
            return self._remember(at_raw, at_wall, None)
        key = (self.wall.era, *estimate.epoch)
        if (
            self._line is not None
            and key != self._line_key
            and self._line_era == self.wall.era
            and estimate.continues(self._line_scale)
        ):
            # Another clock carries the timescale on: what was said of the former one is not said of it; times go on.
            self._line = applied.continue_(self._line, at_wall, estimate.bound, estimate.drift_ppb, KNOT_PERIOD_NS)
            self._epoch = (self._epoch + 1) % (1 << 16)
            self._recent.clear()
        elif self._line is None or key != self._line_key:
            self._line = applied.begin(at_wall, estimate.bound, estimate.drift_ppb)
            self._epoch = (self._epoch + 1) % (1 << 16)
            self._recent.clear()
        else:
            self._line = applied.continue_(self._line, at_wall, estimate.bound, estimate.drift_ppb, KNOT_PERIOD_NS)
        self._line_key, self._line_scale, self._line_era = key, estimate.scale, self.wall.era
        return self._remember(at_raw, at_wall, estimate)

    def applied_ns(self, at_raw_ns: int) -> int | None:
        """What is published as reference - own raw at an own raw instant; None when nothing is."""
        if self._line is None or self._line_key is None or self._line_era != self.wall.era:
            return None
        wall_minus_raw = self.wall.wall_minus_raw(at_raw_ns).midpoint
        return self._line.at(max(at_raw_ns + wall_minus_raw, self._line.wall_ns)) + wall_minus_raw

    def _as_labelled(self, bound: Interval, drift_ppb: Interval, at_raw: int, at_wall: int) -> Interval:
        """A bound at a raw instant, so that it also holds for the wall reading that its knot has for that instant.

        The reading was foretold, from the middle of what was possible. While the clock is steered hard it read
        something else at that instant, and what it is asked for later is the reading.
        """
        wall = self.wall.wall_minus_raw(at_raw).shift(at_raw)
        rate = max(abs(drift_ppb.lo), abs(drift_ppb.hi))
        return bound.widen(abs(at_wall - wall.clamp(at_wall)) - (-wall.farthest(at_wall) * rate // _PPB))

    def _published(self, estimate: Estimate, drift_ppb: Interval, at_raw: int, at_wall: int) -> Interval:
        """What a knot says of reference - wall.

        Where the reference is this node's own wall clock that is nothing at all, for a stamp. But a knot also tells
        what the reference reads at a raw instant, and that is known only as well as the wall clock is foretold.
        """
        if estimate.epoch != _SELF:
            return self._as_labelled(estimate.bound, drift_ppb, at_raw, at_wall)
        return self.wall.wall_minus_raw(at_raw).shift(at_raw - at_wall).hull(Interval(0, 0))

    def _remember(self, at_raw: int, at_wall: int, estimate: Estimate | None) -> Knot:
        line = self._line
        assert line is not None
        drift = estimate.drift_ppb if estimate else Interval(0, 0)
        if estimate is not None and estimate.epoch == _SELF:
            drift = drift.widen(self.wall.slew_ppb())
        knot = Knot(
            era=self.wall.era,
            era_begin_wall_ns=self.wall.era_begin_wall_ns,
            previous_end_wall_ns=self.wall.previous_end_wall_ns,
            raw_ns=at_raw,
            wall_ns=at_wall,
            bound=self._published(estimate, drift, at_raw, at_wall) if estimate else None,
            drift_ppb=drift,
            wander_ppb_per_s=estimate.wander_ppb_per_s if estimate else 0,
            applied_ns=line.offset_ns,
            applied_slope_ppb=line.slope_ppb,
            status=(
                self.status_with(estimate, estimate.bound.farthest(line.offset_ns))
                if estimate
                else Status.UNSYNCHRONIZED
            ),
            reference=estimate.name if estimate else None,
            epoch=self._epoch,
        )
        self._last_wall_ns = (knot.era, knot.wall_ns)
        if estimate is not None:
            self._recent.append(knot)
            self._slew_told_ppb = self.wall.slew_ppb()
        return knot

    def tightened(self) -> list[Knot]:
        """Recent knots that what arrived since has made narrower, and the one that a slew has made wider."""
        better: list[Knot] = []
        if self._widened:
            better.extend(self._recent)
        self._widened = False
        if not self._improved:
            return better
        self._improved = False
        for index, knot in enumerate(self._recent):
            if knot.era != self.wall.era or knot.bound is None:
                continue
            estimate = self.reference_estimate(knot.raw_ns)
            if estimate is None or (self.wall.era, *estimate.epoch) != self._line_key:
                return better
            bound = knot.bound.intersect(self._published(estimate, knot.drift_ppb, knot.raw_ns, knot.wall_ns))
            if bound is None or bound == knot.bound:
                continue
            # Not its drift: the estimate's has the wall clock's rate of now in it, and then it may have been faster.
            self._recent[index] = tightened = replace(knot, bound=bound)
            better.append(tightened)
        return better

    # -- what is told (``telling.py``) ---------------------------------------------------------------------------

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The peers that this node has heard itself, by name."""
        return self._peers

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources of UTC, by name."""
        return self._sources

    @property
    def sources_found(self) -> bool:
        """Whether nobody configured the sources: they were found on this machine."""
        return self._found

    def uptime_ns(self, now_raw_ns: int) -> int:
        """How long this node has been measuring."""
        return now_raw_ns - self._began_ns

    def offset_applied(self, estimate: Estimate, now_raw_ns: int) -> int:
        """What is applied to this node's times now: the line's offset, or the estimate's middle while there is none."""
        same = self._line_key == (self.wall.era, *estimate.epoch)
        # Handed over, and the next knot is not made yet: it will continue the line that is published now.
        carried_on = self._line_key is not None and self._line_era == self.wall.era
        carried_on = carried_on and estimate.continues(self._line_scale)
        if self._line is None or not (same or carried_on):
            return estimate.bound.midpoint
        wall = now_raw_ns + self.wall.wall_minus_raw(now_raw_ns).midpoint
        return self._line.at(wall) if wall >= self._line.wall_ns else self._line.offset_ns

    def status(self, now_raw_ns: int) -> dict[str, Any]:
        """``skewd status --json``: see ``telling.status``."""
        return telling.status(self, now_raw_ns)
