"""Evidence, run through the shipped estimator again: the same bounds, and what they say of the declared limits.

**The insight.** The estimator is a function of the proofs and the limits, integers in, integers out, and its floats are
those of IEEE 754. So what a file keeps (``evidence.py``) makes a filter that is the daemon's own to the last bit, and
whether it *is* can be checked: the file says what the daemon concluded at each :class:`~skewd.evidence.Look`, and what
it published. A difference is a fault of skewd's, or a file that somebody changed.

**What is learnt beside that.** Over a whole record the watch on the limits (``bounds/observed.py``) has seen the mean
drift of every window. The largest of what was proven is what the clocks *at least* did. In every window of some length
the mean was *at most* the largest upper figure; the length for which that is smallest tells most. And with candidates
(:data:`CANDIDATES`) each limit on wander that is smaller or larger than the declared one is tried by a filter of its
own, which knows nothing but the proofs: one that is left without a possible motion *refutes* its limit. That is a proof
too, and a sharper one, for it uses all proofs at once and not the best two of a window.

Limits: ``WIDTHS_MAX`` widths are remembered, evenly spread; a drift that rises and falls within one window is not seen
in that window's mean. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from skewd.agreement import Quorum, agree
from skewd.bounds.observed import Observed, Seen, Verdict
from skewd.bounds.pair import PairBound, PairState
from skewd.evidence import (
    ALONE,
    EXPECTED,
    UNWATCHED,
    About,
    Begin,
    Cut,
    EvidenceError,
    Fact,
    Gone,
    Learnt,
    Look,
    Looked,
    Missed,
    Published,
    Restart,
    Step,
)
from skewd.interval import Interval

WIDTHS_MAX = 100_000
BOUNDS_MAX = 100_000
"""Replayed bounds that are told one by one, at most."""

CANDIDATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Limits on wander that are tried, as multiples of the declared one."""

_DRIFT_FREE_PPM = 100_000.0
"""The limit on drift of the candidates for the wander: beyond any clock, so that it is not what refutes them."""


class Extreme(NamedTuple):
    """Over all windows of one length: the largest of what was at least so, the largest of what was at most so."""

    least: int
    most: int
    windows: int


class _Widths:
    """A row of widths that never grows beyond ``WIDTHS_MAX``: every second one goes when it is full."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self._every = 1
        self._came = 0

    def add(self, width: int) -> None:
        self._came += 1
        if self._came % self._every:
            return
        self._kept.append(width)
        if len(self._kept) >= WIDTHS_MAX:
            self._kept = self._kept[1::2]
            self._every *= 2

    def told(self) -> dict[str, int] | None:
        row = sorted(self._kept)
        if not row:
            return None
        last = len(row) - 1
        return {"min": row[0], "p50": row[last // 2], "p99": row[last * 99 // 100], "max": row[-1]}


@dataclass(slots=True)
class Summary:
    """All that a record says of one pair, over as many beginnings as it had."""

    name: str
    kind: str
    smear: bool
    drift_limit_ppb: float
    wander_limit_ppb_per_s: float
    beginnings: int = 0
    proofs: int = 0
    kept: int = 0
    contradictions: int = 0
    widths: _Widths = field(default_factory=_Widths)
    drift: dict[int, Extreme] = field(default_factory=dict)
    wander: dict[int, Extreme] = field(default_factory=dict)
    refuted: set[float] = field(default_factory=set)
    """Of the candidates for the wander, those that no motion satisfies, as multiples of the declared limit."""
    free_least_ppb: dict[float, int] = field(default_factory=dict)
    """By candidate: the most that its drift, which has no limit to speak of, surely was."""
    last: Looked | None = None
    clocks: tuple[object, ...] = ()
    """Which two clocks ``candidates`` and ``seen_ns`` are about."""
    candidates: dict[float, PairBound] = field(default_factory=dict)
    seen_ns: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class _Live:
    """A pair at this moment of the record."""

    begin: Begin
    pair: PairBound
    watch: Observed
    summary: Summary
    proofs: int
    """By the last look, those left out included."""


def same_but_latest(one: PairState, other: PairState) -> bool:
    """Whether two filters answer alike. When the last message came, which changed nothing, is all they may differ in:
    while both sides are known no answer depends on it."""
    if one.whole and other.whole:
        one, other = one._replace(latest_ns=None), other._replace(latest_ns=None)
    return one == other


class Replay:
    """Takes facts in their order. What they say is in the attributes, at any time.

    Args:
        candidates: whether other limits are tried as well; that costs ten times as much.
        bounds: whether every replayed bound is remembered, the first ``BOUNDS_MAX`` of them.
    """

    def __init__(self, *, candidates: bool = False, bounds: bool = False) -> None:
        self._candidates = candidates
        self.about: About | None = None
        self.live: dict[int, _Live] = {}
        self.pairs: dict[tuple[str, str], Summary] = {}
        self.compared = self.identical = 0
        self.published_compared = self.published_identical = self.published_other = 0
        self.missed = self.cut_bytes = self.steps = self.restarts = self.looks = 0
        self.runs: set[tuple[bytes, int]] = set()
        self.first_wall_ns: int | None = None
        self.last_wall_ns: int | None = None
        self.first_difference: str | None = None
        self.bounds: list[dict[str, Any]] | None = [] if bounds else None

    def feed(self, fact: Fact) -> None:
        """Takes one.

        Raises:
            EvidenceError: it contradicts what came before it: a proof of a pair that never began.
        """
        if isinstance(fact, Learnt):
            self._learnt(fact)
        elif isinstance(fact, Look):
            self._look(fact)
        elif isinstance(fact, Begin):
            self._begin(fact)
        elif isinstance(fact, About):
            self._take_about(fact)
        elif isinstance(fact, Gone):
            self.live.pop(fact.pair, None)
        elif isinstance(fact, Restart):
            self.restarts += 1
            self.live.clear()
        elif isinstance(fact, Step):
            self.steps += 1
        elif isinstance(fact, Missed):
            self.missed += fact.proofs
            self.live.clear()
        elif isinstance(fact, Cut):
            self.cut_bytes += fact.bytes

    def snapshot(self) -> list[Fact]:
        """What a file has to begin with so that it can go on from here alone."""
        if self.about is None:
            return []
        return [
            self.about,
            *(
                Begin(
                    index,
                    live.begin.kind,
                    live.begin.name,
                    live.begin.clock,
                    live.begin.interval_ns,
                    live.begin.smear,
                    live.proofs,
                    live.pair.state(),
                    live.watch.state(),
                )
                for index, live in self.live.items()
            ),
        ]

    # -- facts -------------------------------------------------------------------------------------------------------

    def _take_about(self, about: About) -> None:
        if self.about is not None and (self.about.boot, self.about.raw_era) != (about.boot, about.raw_era):
            self.live.clear()  # another raw clock
        self.about = about
        self.runs.add((about.boot, about.raw_era))
        self._at(about.at_wall_ns)

    def _at(self, wall_ns: int) -> None:
        self.first_wall_ns = wall_ns if self.first_wall_ns is None else min(self.first_wall_ns, wall_ns)
        self.last_wall_ns = wall_ns if self.last_wall_ns is None else max(self.last_wall_ns, wall_ns)

    def _begin(self, begin: Begin) -> None:
        try:
            pair, watch = PairBound.restored(begin.state), Observed.restored(begin.watch)
        except ValueError as error:
            raise EvidenceError(f"the pair with {begin.name} begins with what can't be: {error}") from None
        before = self.live.get(begin.pair)
        summary = self.pairs.setdefault(
            (begin.kind, begin.name),
            Summary(begin.name, begin.kind, begin.smear, begin.state.drift_max_ppb, begin.state.wander_max_ppb_per_s),
        )
        summary.drift_limit_ppb = begin.state.drift_max_ppb
        summary.wander_limit_ppb_per_s = begin.state.wander_max_ppb_per_s
        if before is None or before.summary is not summary or not same_but_latest(before.pair.state(), begin.state):
            summary.beginnings += 1
        # As long as the clocks are the same, what was tried on them goes on, even if proofs are missing in between.
        run = None if self.about is None else (self.about.boot, self.about.raw_era)
        clocks = (run, begin.clock, begin.state.wander_max_ppb_per_s)
        if summary.clocks != clocks:
            summary.clocks = clocks
            summary.candidates = {
                factor: PairBound(
                    max_drift_ppm=_DRIFT_FREE_PPM, max_wander_ppb_per_s=begin.state.wander_max_ppb_per_s * factor
                )
                for factor in (CANDIDATES if self._candidates else ())
            }
            summary.seen_ns = {
                (of, window): seen.at_ns
                for of, by_window in zip(("drift", "wander"), watch.seen, strict=True)
                for window, seen in by_window.items()
            }
        live = _Live(begin, pair, watch, summary, begin.proofs)
        self.live[begin.pair] = live

    def _learnt(self, learnt: Learnt) -> None:
        live = self.live.get(learnt.pair)
        if live is None:
            raise EvidenceError(f"a proof of pair {learnt.pair}, which never began")
        pair, watch, summary = live.pair, live.watch, live.summary
        revision, contradictions = watch.revision, pair.contradictions
        there_ns = learnt.local_ns + learnt.limit_ns
        sent, received = (learnt.local_ns, there_ns) if learnt.upper else (there_ns, learnt.local_ns)
        # As pairing.learn does it: first the filter, then the watch.
        if not (pair.outgoing if learnt.upper else pair.incoming)(sent, received):
            watch.contradiction(learnt.local_ns)
        watch_proof(watch, learnt)
        summary.kept += 1
        summary.contradictions += pair.contradictions - contradictions
        if watch.revision != revision:
            self._watched(live)
        for factor, candidate in summary.candidates.items():
            if not (candidate.outgoing if learnt.upper else candidate.incoming)(sent, received):
                summary.refuted.add(factor)

    def _watched(self, live: _Live) -> None:
        sides = zip(("drift", "wander"), live.watch.seen, (live.summary.drift, live.summary.wander), strict=True)
        for of, by_window, extremes in sides:
            for window, seen in by_window.items():
                if live.summary.seen_ns.get((of, window)) != seen.at_ns:
                    live.summary.seen_ns[of, window] = seen.at_ns
                    extremes[window] = _wider(extremes.get(window), seen)

    def _look(self, look: Look) -> None:
        self.looks += 1
        self._at(look.raw_ns + look.wall_lower_ns)
        for told in look.pairs:
            live = self.live.get(told.pair)
            if live is None:
                continue
            live.summary.proofs += told.proofs - live.proofs
            live.proofs = told.proofs
            live.summary.last = told
            self.compared += 1
            mine = looked(told.pair, live.pair, look.raw_ns, told.proofs)
            if mine == told:
                self.identical += 1
            else:
                self._differs(f"{live.summary.name} at raw {look.raw_ns}: told {told[1:6]}, replayed {mine[1:6]}")
            if mine.lower_ns is not None and mine.upper_ns is not None:
                live.summary.widths.add(mine.upper_ns - mine.lower_ns)
            self._look_at_candidates(live.summary, look.raw_ns)
            if self.bounds is not None and len(self.bounds) < BOUNDS_MAX:
                self.bounds.append(
                    {
                        "raw_ns": look.raw_ns,
                        "kind": live.summary.kind,
                        "name": live.summary.name,
                        "lower_ns": mine.lower_ns,
                        "upper_ns": mine.upper_ns,
                        "drift_lower_ppb": mine.slowest_ppb,
                        "drift_upper_ppb": mine.fastest_ppb,
                    }
                )
        if look.published is not None:
            self._published(look.published)

    @staticmethod
    def _look_at_candidates(summary: Summary, at_raw_ns: int) -> None:
        for factor, candidate in summary.candidates.items():
            drift = candidate.drift(at_raw_ns)
            if drift is not None and not drift.contains(0):
                least = min(abs(drift.lo), abs(drift.hi))
                summary.free_least_ppb[factor] = max(summary.free_least_ppb.get(factor, 0), least)

    def _published(self, told: Published) -> None:
        bound = self.published_bound(told)
        if bound is None:
            self.published_other += 1
            return
        self.published_compared += 1
        if (bound.lo, bound.hi) == (told.lower_ns, told.upper_ns):
            self.published_identical += 1
        else:
            self._differs(f"published at raw {told.raw_ns}: [{told.lower_ns}, {told.upper_ns}], replayed {bound}")
        if self.bounds is not None and len(self.bounds) < BOUNDS_MAX:
            self.bounds.append(
                {
                    "raw_ns": told.raw_ns,
                    "kind": "published",
                    "name": told.basis,
                    "lower_ns": bound.lo,
                    "upper_ns": bound.hi,
                }
            )

    def published_bound(self, told: Published) -> Interval | None:
        """reference - wall at that instant, by the replayed filters; None where it was made of what isn't kept."""
        if told.basis not in ("utc", "peer") or told.wall_lower_ns > told.wall_upper_ns:
            return None
        wall = Interval(told.wall_lower_ns, told.wall_upper_ns)
        offsets: list[Interval] = []
        for term in told.terms:
            live = self.live.get(term.pair)
            offset = None if live is None else live.pair.offset(told.raw_ns)
            if offset is None or offset.lo + term.lower_ns > offset.hi + term.upper_ns:
                return None
            if term.others is not None:
                offset = offset.intersect(Interval(min(term.others), max(term.others))) or offset
            offsets.append(Interval(offset.lo + term.lower_ns, offset.hi + term.upper_ns))
        found = offsets[0] if len(offsets) == 1 else None
        if told.basis == "utc":
            agreed = agree(
                offsets, [term.preferred for term in told.terms], Quorum(told.configured, told.min_sources)
            )
            found = None if agreed is None else agreed.of(offsets)
        return None if found is None else (found - wall).widen(max(told.widened_ns, 0))

    def _differs(self, text: str) -> None:
        if self.first_difference is None:
            self.first_difference = text


def watch_proof(watch: Observed, learnt: Learnt) -> None:
    """Gives a proof to a watch as the evidence says."""
    if learnt.watch in (EXPECTED, ALONE):
        upper, lower = watch.latest
        watch.expect(*((upper, learnt.expected) if learnt.upper else (learnt.expected, lower)))
    if learnt.watch != UNWATCHED:
        there_ns = learnt.local_ns + learnt.limit_ns
        if learnt.upper:
            watch.outgoing(learnt.local_ns, there_ns)
        else:
            watch.incoming(there_ns, learnt.local_ns)


def looked(index: int, pair: PairBound, at_raw_ns: int, proofs: int) -> Looked:
    """What a filter says at an instant, as a :class:`~skewd.evidence.Look` has it."""
    offset, drift = pair.offset(at_raw_ns), pair.drift(at_raw_ns)
    return Looked(
        index,
        None if offset is None else offset.lo,
        None if offset is None else offset.hi,
        None if drift is None else drift.lo,
        None if drift is None else drift.hi,
        pair.contradictions,
        proofs,
    )


def _wider(known: Extreme | None, seen: Seen) -> Extreme:
    if known is None:
        return Extreme(seen.least, seen.most, 1)
    return Extreme(max(known.least, seen.least), max(known.most, seen.most), known.windows + 1)


def replayed(facts: Iterable[Fact], *, candidates: bool = False, bounds: bool = False) -> Replay:
    """A whole record.

    Raises:
        EvidenceError: it contradicts itself.
    """
    replay = Replay(candidates=candidates, bounds=bounds)
    for fact in facts:
        try:
            replay.feed(fact)
        except (ValueError, ArithmeticError) as error:  # a state that no filter can have, with a checksum that is right
            raise EvidenceError(f"a fact makes no sense ({error}); nobody's daemon wrote this file") from None
    return replay


# -- what it says of the limits ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """One limit against a record.

    Attributes:
        verdict: ``within``, ``violated`` or ``unknown``.
        limit: the pair's declared one, ppb or ppb/s.
        at_least: the clocks surely did this at some time: the most that was proven.
        at_most: in every window of ``window_s`` the mean was surely no more than this; None while no window was seen.
        refuted: of the wander, the largest limit that no motion satisfies; None if none, or not tried.
        jump: whether no limit that was tried explains it: not a wander, but a jump, or a stamp that lies.
        declare: what to declare for the pair, in the same unit; None where the record is too short to say.
    """

    verdict: Verdict
    limit: float
    at_least: int
    at_most: int | None
    window_s: int | None
    refuted: float | None
    jump: bool
    declare: float | None

    def told(self, age_s: int = 0) -> dict[str, Any]:
        """As ``status --json`` has it under ``assumptions``, and more."""
        seen = self.at_most is not None
        return {
            "verdict": self.verdict.value,
            "limit": round(self.limit),
            "at_least": self.at_least if seen or self.at_least else None,
            "at_most": self.at_most,
            "window_s": self.window_s,
            "age_s": age_s if seen else None,
            "refuted": self.refuted,
            "jump": self.jump,
            "declare": self.declare,
        }


SAFETY = 2
"""A limit to declare is at least so many times what was seen: a record shows the past, a limit is about the future."""


def judgement(
    extremes: dict[int, Extreme], limit: float, refuted: Iterable[float] = (), at_least: int = 0
) -> Judgement:
    """What a record says of one limit.

    Args:
        extremes: by the windows' length, ns.
        limit: the declared one.
        refuted: multiples of it that no motion satisfies.
        at_least: what is known by other means.
    """
    tried = sorted(set(refuted))
    sharpest = max(tried) * limit if tried else None
    jump = bool(tried) and max(tried) >= CANDIDATES[-1]
    least = max((extreme.least for extreme in extremes.values()), default=0)
    least = max(least, at_least)
    window = min(extremes, key=lambda length: (extremes[length].most, length), default=None)
    most = None if window is None else extremes[window].most
    proven = max(least, 0 if sharpest is None or jump else sharpest)
    if proven > limit or jump or (sharpest is not None and sharpest >= limit):
        verdict = Verdict.VIOLATED
    elif most is not None and most <= limit:
        verdict = Verdict.WITHIN
    else:
        verdict = Verdict.UNKNOWN
    declare: float | None = None
    if jump:
        pass  # no limit would have held
    elif verdict is Verdict.WITHIN and SAFETY * max(most or 0, proven) <= limit:
        declare = limit
    elif most is not None and verdict is not Verdict.UNKNOWN:
        declare = max(limit, _rounded_up(SAFETY * max(most, proven)))
    elif verdict is Verdict.VIOLATED:
        declare = _rounded_up(SAFETY * proven)
    return Judgement(
        verdict,
        limit,
        least,
        most,
        None if window is None else round(window / 1e9),
        sharpest,
        jump,
        declare,
    )


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    if value <= 0:
        return 0.0
    step = 1.0
    while step < value:
        step *= 10
    while step / 10 >= value:
        step /= 10
    return next(one for one in (step / 5, step / 2, step) if one >= value)


def judgements(summary: Summary) -> tuple[Judgement, Judgement]:
    """A pair's drift and wander against its declared limits."""
    # By the smallest wander that was not refuted: what no larger one allows, none of them allows.
    possible = [factor for factor in CANDIDATES if factor not in summary.refuted and factor >= 1]
    free = min((summary.free_least_ppb.get(factor, 0) for factor in possible[:1]), default=0)
    return (
        judgement(summary.drift, summary.drift_limit_ppb, at_least=free),
        judgement(summary.wander, summary.wander_limit_ppb_per_s, summary.refuted),
    )
