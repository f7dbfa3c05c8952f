"""UTC by this node's own sources: a filter for each, and the hull of what a majority of them shares.

A source's answers are proofs about UTC - raw, widened by how far its server may be off, under this oscillator's limits
alone: UTC is true time. From the sources' intervals follow which of them agree, and whether these are enough of those
configured (``agreement.py``); what is said is the hull of all that so many share.

Two majorities that contradict each other can't both be right. Where the one of now excludes what follows from the one
of before, what was said is taken back: the estimate's epoch changes, and the applied offset begins anew instead of
being led over for hours.

A daemon on this machine may still speak of the wall clock of before a step (``sources/memory.py``). Its first word
after one is doubted: where it contradicts what the messages of before prove, one of the two is wrong and nobody knows
which, so this source says nothing until a later word of its own agrees with it.

Around a leap second that a source, or half of all sources, announces its bound is the hull of both readings of UTC:
from ``LEAP_BEFORE_NS`` before the midnight of UTC until it has spoken ``LEAP_AFTER_NS`` after it, and its filter
begins anew there. Smeared sources (all or none of them, see ``config.py``) announce nothing; they may be
``SMEAR_PPM`` off UTC's rate and begin at once, so no limit is put on their wander.

Limits: as many sources as are configured, or found. The guarantee assumes that most of them are honest. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from skewd.agreement import NOBODY, Agreed, Quorum, agree
from skewd.bounds.history import carried
from skewd.bounds.observed import Observed
from skewd.bounds.pair import PairBound
from skewd.bounds.select import Selection
from skewd.config import Config, SourceConfig
from skewd.estimate import Estimate
from skewd.interval import Interval
from skewd.limits import TOLD_MAX_NS, within
from skewd.over_links import RttMinimum
from skewd.pairing import OscillatorLimits, Part, Subject, learn
from skewd.resume import LEAP_AHEAD_NS, DriftPrior, Kept, KeptSource, half_planes, may_have_leapt, plain
from skewd.wall import WallMap

if TYPE_CHECKING:
    from skewd.tap import Tap

LEAP_BEFORE_NS = 2_000_000_000
LEAP_AFTER_NS = 10_000_000_000
"""Servers, kernels and daemons do not all leap at the same moment; this much on each side is left to them."""

SMEAR_PPM = 14
"""A second in 24 hours is 11.6 ppm, and 13.9 in 20 hours, the two smears in use; both change the rate at once."""

_SMEAR_WANDER_PPB_PER_S = 1_000_000
_DAY_NS = 86_400_000_000_000
_PPB = 1_000_000_000


FROM_MEMORY = ("chrony", "kernel", "ptp")
"""Kinds of sources that say what they remember of this machine's wall clock, or of a network card's."""


class Answer(NamedTuple):
    """What is known of an answer beyond what it proves; None where that kind of source does not tell.

    Attributes:
        rtt_ns: the round trip, without what the server declares of its own error.
        root_distance_ns: the server's own error, by its own account: half its root delay and its root dispersion.
        stratum: how many servers away from a reference clock it is.
        reference_ns: by the source's own count, when what it remembers was measured: two answers with the same one rest
            on the same measurement.
        settled: nothing that it measured before a step of its clock is in it.
    """

    rtt_ns: int | None = None
    root_distance_ns: int | None = None
    stratum: int | None = None
    reference_ns: int | None = None
    settled: bool = True


class _Doubt(NamedTuple):
    """A claim that contradicted what was known: waits for a later one that agrees with it."""

    at_raw_ns: int
    utc_minus_raw: Interval
    reference_ns: int | None


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
    told: bool = False
    """Whether it gave a bound since the start; what was kept from before a restart is memory."""
    begun: int = 0
    """How often the filter began anew on another reading of UTC."""
    prefer: bool = False
    pooled: bool = False
    """One of a pool's servers: who that is changes with each start."""
    stratum: int | None = None
    root_distance_ns: int | None = None
    """Its server's own error, as the latest answer declares it."""
    suspect: bool = False
    """The wall clock it remembers was stepped, and it has not said anything since that agrees with what was known."""
    doubt: _Doubt | None = None

    def leaping(self, utc_ns: int) -> bool:
        """Whether at this UTC a leap may have happened that the filter does not know of."""
        return self.leap_at_ns is not None and utc_ns >= self.leap_at_ns - LEAP_BEFORE_NS


class UtcSources:
    """All of a node's.

    Args:
        config: the configuration in force.
        limits: what this node's oscillator keeps within.
        wall: this node's wall clock against its raw one.
    """

    def __init__(self, config: Config, limits: OscillatorLimits, wall: WallMap) -> None:
        self._limits = limits
        self._wall = wall
        self._configured: tuple[SourceConfig, ...] = config.sources
        self._min_sources = config.utc.min_sources
        self._drift_priors: dict[str, DriftPrior] = {}
        self._contradictions_of_departed = 0
        self.tap: Tap | None = None
        """Who wants to know what is learnt; None: nobody."""
        self.by_name: dict[str, Source] = {}
        self.found = False
        """Whether nobody configured the sources: they were found on this machine."""
        self._reached = False
        self._last: _Said | None = None
        self._taken_back = 0
        for source in config.sources:
            self._add(source)

    def _add(self, source: SourceConfig) -> None:
        limits = _utc_limits(source.smear)
        self.by_name[source.name] = Source(
            source.name,
            source.type,
            source.interval,
            self._limits.filter_with(*limits),
            self._limits.watch_with(*limits),
            smear=source.smear,
            address=source.address,
            prefer=source.prefer,
            pooled=source.pool,
        )

    def find(self, source: SourceConfig) -> None:
        """Adds a source that nobody configured: what this machine has anyway."""
        self.found = True
        self._add(source)

    def reconfigure(self, config: Config) -> None:
        """Takes up other sources.

        One that is the same clock as before, asked more or less often, goes on; one that was found on this machine
        goes on only while none is configured.
        """
        self._configured, self._min_sources = config.sources, config.utc.min_sources
        if not config.source and self.found:
            return
        before, self.by_name = self.by_name, {}
        for source in config.sources:
            old = before.get(source.name)
            if old and (old.type, old.address, old.smear) == (source.type, source.address, source.smear):
                old.interval_ns, old.prefer = source.interval, source.prefer
                self.by_name[source.name] = before.pop(source.name)
            else:
                self._add(source)
        self._contradictions_of_departed += sum(gone.pair.contradictions for gone in before.values())
        self.found = False
        self._follow(self._wall.latest.raw_ns)

    def restart(self) -> None:
        """The raw clock was not continuous: every bound is void, and the minimum must be reached anew."""
        self._drift_priors.clear()
        self._reached, self._last = False, None
        for source in self.by_name.values():
            self._void(source)

    def replaced(self, name: str) -> None:
        """Another server speaks under this name from now on: what was heard is void."""
        self._void(self.by_name[name])

    def _void(self, source: Source) -> None:
        limits = _utc_limits(source.smear)
        contradictions = source.pair.contradictions
        source.pair, source.observed = self._limits.filter_with(*limits), self._limits.watch_with(*limits)
        source.pair.contradictions = contradictions
        source.heard_ns = source.doubt = None
        source.rtt, source.root_distance_ns, source.stratum = RttMinimum(), None, None

    def forget(self, name: str) -> None:
        """What one source said so far is void."""
        source = self.by_name.get(name)
        if source is not None:
            self._drift_priors.pop(name, None)
            self._void(source)
            source.leap, source.leap_due, source.leap_at_ns = 0, 0, None
            source.begun += 1

    # -- what comes in -------------------------------------------------------------------------------------------

    def on_answer(
        self,
        name: str,
        outgoing: Sequence[tuple[int, int]],
        incoming: Sequence[tuple[int, int]],
        now_raw_ns: int,
        leap: int = 0,
        about: Answer | None = None,
    ) -> bool:
        """Takes what one answer of the source ``name`` proves about UTC - raw, and the leap it announces.

        Args:
            leap: 0 none, 1 the day's last minute has 61 seconds, 2 it has 59.
            about: what else is known of the answer.

        Returns:
            whether anything could be learnt from it: not so near a leap, and not while it is doubted.
        """
        source = self.by_name[name]
        told = about or Answer()
        source.stratum, source.root_distance_ns = told.stratum, told.root_distance_ns
        known = self._past_leap(source, [utc for _, utc in outgoing] + [utc for utc, _ in incoming], leap)
        known = known and not self._doubted(source, outgoing, incoming, told)
        if known:
            if self.tap is None:
                learn(source.pair, source.observed, outgoing, incoming)
            else:
                self.tap.learn(self.subject(source), outgoing, incoming)
            self._use_prior(source, now_raw_ns)
            if told.rtt_ns is not None:
                source.rtt.add(now_raw_ns, max(told.rtt_ns, 0))
            source.told = source.told or source.pair.offset(now_raw_ns) is not None
            self._follow(now_raw_ns)
        source.heard_ns, source.state = now_raw_ns, "reachable"
        return known

    def on_step(self) -> None:
        """The wall clock was stepped, or may have been: what speaks of it from memory is doubted (see above)."""
        for source in self.by_name.values():
            if source.type in FROM_MEMORY:
                source.suspect = True

    def _doubted(
        self,
        source: Source,
        outgoing: Sequence[tuple[int, int]],
        incoming: Sequence[tuple[int, int]],
        told: Answer,
    ) -> bool:
        """Whether an answer is not to be learnt from: the first after a step, where it contradicts what was known."""
        if not source.suspect:
            return False
        claimed = _offset_of(outgoing, incoming)
        if claimed is None:
            return False
        at_raw_ns, said = claimed
        if source.doubt is None:
            known = source.pair.offset(at_raw_ns)
            if known is None or known.intersect(said) is not None:
                source.suspect = not told.settled
                return False
            # Its memory of the wall clock or our memory of its word is wrong; neither is a bound any more.
            self._void(source)
            source.pair.contradictions += 1
        elif source.doubt.reference_ns != told.reference_ns:
            moved = abs(at_raw_ns - source.doubt.at_raw_ns) * math.ceil(self._limits.max_drift_ppm) // 1_000_000 + 1
            if said.intersect(source.doubt.utc_minus_raw.widen(moved)) is not None:
                source.suspect, source.doubt = not told.settled, None
                return False
        else:
            return True
        source.doubt = _Doubt(at_raw_ns, said, told.reference_ns)
        return True

    def _past_leap(self, source: Source, utc_ns: list[int], leap: int) -> bool:
        """Keeps the announced leap; False for an answer too near to it to tell which reading of UTC it gives."""
        if source.smear or not utc_ns:
            return True
        earliest, latest = min(utc_ns), max(utc_ns)
        if source.leap_at_ns is not None and latest >= source.leap_at_ns - LEAP_BEFORE_NS:
            if earliest <= source.leap_at_ns + LEAP_AFTER_NS:
                return False
            begun = self._limits.filter_with(*_utc_limits(False))
            begun.contradictions = source.pair.contradictions
            source.pair, source.leap_at_ns = begun, None
            source.begun += 1
        source.leap = leap
        if not leap:
            # Not every source announces what it will do; half of them are believed for the others.
            unsmeared = [other for other in self.by_name.values() if not other.smear]
            announced = [other.leap for other in unsmeared if other.leap]
            leap = announced[0] if 2 * len(announced) >= len(unsmeared) else 0
        source.leap_due = leap
        # The leap is due at the end of a day of UTC: the next midnight, if it is not over already.
        source.leap_at_ns = -(-(earliest - LEAP_AFTER_NS) // _DAY_NS) * _DAY_NS if leap else None
        return not source.leaping(latest)

    def on_state(self, name: str, state: str) -> None:
        """Takes a source's state: pending, reachable or unreachable."""
        self.by_name[name].state = state

    # -- kept over a restart -------------------------------------------------------------------------------------

    def kept(self) -> tuple[KeptSource, ...]:
        """What a daemon that is started later may take up again (see ``resume.py``)."""
        addresses = {source.name: source.address for source in self._configured}
        return tuple(
            KeptSource(
                name, source.type, addresses.get(name), source.heard_ns, plain(source.pair.proofs()), source.smear
            )
            for name, source in self.by_name.items()
            if source.heard_ns is not None and source.leap_at_ns is None and not source.pooled
        )

    def _same(self) -> set[tuple[str, str, str | None, bool]]:
        return {(source.name, source.type, source.address, source.smear) for source in self._configured}

    def resume(self, kept: Kept) -> None:
        """Takes it up, unless a leap may have happened since."""
        if may_have_leapt(kept.at_wall_ns, self._wall.latest.wall_at_ns() + LEAP_AHEAD_NS):
            return
        configured = self._same()
        for old in kept.sources:
            if (old.name, old.type, old.address, old.smear) in configured:
                source = self.by_name[old.name]
                source.pair.resume(half_planes(old.proofs))
                source.heard_ns = old.heard_ns
        # The wall clock may have been stepped while nobody looked.
        self.on_step()
        self._follow(self._wall.latest.raw_ns)

    def take_drift(self, priors: Mapping[KeptSource, DriftPrior]) -> None:
        """Takes what another boot knew of the drift against the sources that are still configured, for when each is
        heard (``resume.drift_priors``)."""
        configured = self._same()
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
        drift = prior.at(now_raw_ns + utc.hi, self._limits.sum_with(*_utc_limits(source.smear))[1])
        if drift is not None and not source.pair.drift_within(now_raw_ns, drift):
            source.observed.contradiction(now_raw_ns)

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def contradictions(self) -> int:
        """How often a set of possible states became empty, since the start."""
        return self._contradictions_of_departed + sum(one.pair.contradictions for one in self.by_name.values())

    @property
    def steered_by(self) -> str | None:
        """A source that judges this wall clock by how somebody else steers it; it can't be used if this daemon does."""
        return next((one.name for one in self.by_name.values() if one.type in ("chrony", "kernel")), None)

    @property
    def quorum(self) -> Quorum:
        """How many sources there are, and how many must agree."""
        return Quorum(len(self.by_name), None if self.found else self._min_sources)

    @property
    def enough(self) -> bool:
        """Whether so many sources as are needed were heard since the start, or since the raw clock began anew.

        True where none is configured: then nothing is asked for.
        """
        return self._reached or self.found or not self.by_name

    def short(self) -> tuple[int, int] | None:
        """(how many have a bound, how many are needed) where the former are too few to decide; else None.

        Until the minimum is reached, what was kept from before a restart does not count: it is memory, and has its vote
        only then.
        """
        known = [source for source in self.by_name.values() if source.pair.known]
        heard = [source.prefer for source in known if source.told or self._reached]
        if not self.by_name or self.quorum.decides(heard):
            return None
        return len(heard), self.quorum.needed

    def _known(self, at_raw_ns: int) -> list[tuple[Source, Interval]]:
        """Each source's UTC - own raw."""
        known: list[tuple[Source, Interval]] = []
        for source in self.by_name.values():
            utc = source.pair.offset(at_raw_ns)
            if utc is not None:
                if source.leaping(at_raw_ns + utc.hi):
                    # An inserted second makes UTC read one second less after it, a deleted one more.
                    utc = utc.hull(utc.shift(-_PPB if source.leap_due == 1 else _PPB))
                if within(self._wall.from_raw(utc, at_raw_ns), TOLD_MAX_NS):
                    known.append((source, utc))
        return known

    def _agreed(self, known: Sequence[tuple[Source, Interval]]) -> Agreed | None:
        return agree([utc for _, utc in known], [source.prefer for source, _ in known], self.quorum)

    def selection(self, at_raw_ns: int) -> tuple[list[tuple[Source, Interval]], Selection]:
        """Each source's UTC - own wall, and what enough of them agree on."""
        known = self._known(at_raw_ns)
        agreed = self._agreed(known)
        seen = [(source, self._wall.from_raw(utc, at_raw_ns)) for source, utc in known]
        if agreed is None:
            return seen, NOBODY
        place = agreed.selection.interval
        if place is not None:
            place = self._wall.from_raw(place, at_raw_ns)
        return seen, Selection(place, agreed.selection.truechimers, agreed.selection.falsetickers)

    def _said(self, at_raw_ns: int) -> _Said | None:
        """UTC - own raw as enough sources agree on it; None while they do not."""
        known = self._known(at_raw_ns)
        agreed = self._agreed(known)
        utc = None if agreed is None else agreed.of([one for _, one in known])
        if agreed is None or utc is None:
            return None
        chosen = [known[index][0] for index in agreed.selection.truechimers]
        # The rate is agreed upon as the offset is. The kernel's own estimate tells nothing of it, and one that knows
        # nothing must not hide what the others know.
        drifts = [source.pair.drift(at_raw_ns) or Interval(0, 0) for source, _ in known]
        drift = agreed.of(drifts)
        if drift is None:
            drift = drifts[agreed.selection.truechimers[0]]
            for index in agreed.selection.truechimers[1:]:
                drift = drift.hull(drifts[index])
        wander = math.ceil(max(self._limits.sum_with(*_utc_limits(source.smear))[1] for source in chosen)) + 1
        return _Said(at_raw_ns, utc, drift, wander, chosen)

    def _follow(self, at_raw_ns: int) -> None:
        """Something was heard: notes whether the minimum is reached, and takes back what is contradicted now."""
        self._reached = self._reached or self.short() is None
        said = self._said(at_raw_ns)
        if said is None:
            return
        if self._last is not None and said.utc.intersect(self._last.at(at_raw_ns)) is None:
            self._taken_back += 1
        self._last = said

    def estimate(self, at_raw_ns: int) -> Estimate | None:
        """UTC - own wall; None while too few sources agree."""
        said = self._said(at_raw_ns)
        if said is None:
            return None
        return Estimate(
            self._wall.from_raw(said.utc, at_raw_ns),
            self._wall.drift_from_raw(said.drift_ppb),
            said.wander_ppb_per_s,
            min(at_raw_ns - (source.heard_ns or 0) for source in said.chosen),
            min(source.interval_ns for source in said.chosen),
            ("utc", sum(source.pair.contradictions + source.begun for source in said.chosen) + self._taken_back),
            "utc",
        )

    # -- evidence (``tap.py``) -------------------------------------------------------------------------------------

    @staticmethod
    def subject(source: Source) -> Subject:
        """A source as a pair of clocks: UTC and this raw clock."""
        # Not its address, which whoever reads evidence has no need to know. A filter that began anew may be about
        # another server under the same name.
        clock = b"%x" % (hash((source.type, source.address, source.begun, id(source.pair))) & 0xFFFF_FFFF)
        return Subject("source", source.name, clock, source.interval_ns, source.smear, source.pair, source.observed)

    def parts(self, at_raw_ns: int) -> list[Part]:
        """What :meth:`estimate` is made of: each source that is known."""
        found: list[Part] = []
        for source, utc in self._known(at_raw_ns):
            offset = source.pair.offset(at_raw_ns)
            if offset is not None:
                added = utc.lo - offset.lo, utc.hi - offset.hi
                found.append(Part(("source", source.name), *added, preferred=source.prefer))
        return found


class _Said(NamedTuple):
    """UTC - own raw at an own raw instant, and by whom."""

    at_raw_ns: int
    utc: Interval
    drift_ppb: Interval
    wander_ppb_per_s: int
    chosen: list[Source]

    def at(self, at_raw_ns: int) -> Interval:
        """What follows from it at another instant; a nanosecond outward for its rounding."""
        return (self.utc + carried(at_raw_ns - self.at_raw_ns, self.drift_ppb, self.wander_ppb_per_s)).widen(1)


def _offset_of(
    outgoing: Sequence[tuple[int, int]], incoming: Sequence[tuple[int, int]]
) -> tuple[int, Interval] | None:
    """UTC - raw at a raw instant by one claim, whose two proofs are about the same instant."""
    if not outgoing or not incoming:
        return None
    (sent, above), (below, received) = outgoing[0], incoming[0]
    if sent != received or below > above:
        return None
    return sent, Interval(below - received, above - sent)


def _utc_limits(smear: bool) -> tuple[float, float]:
    """The limits of a source's UTC against true time: ppm, ppb/s."""
    return (SMEAR_PPM, _SMEAR_WANDER_PPB_PER_S) if smear else (0, 0)
