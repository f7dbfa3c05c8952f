"""What a running node learns, as evidence, for those who asked for it.

The problem: evidence must hold every proof that changed a bound, in the order taken, and the exact state of each filter
where it begins; yet nobody may notice it, in the daemon's loop, in its memory, or by a filter replaced at a place that
forgot to tell. The insight: all proofs pass one function (``pairing.learn``). While somebody listens it is called from
here, and what went before is compared with what came after: a filter that is another object than last time, or whose
``revision`` moved without a proof, was changed elsewhere, and begins anew in the evidence with all its state.

A listener has a queue. One that does not keep up loses everything in it, is told how many proofs that were, and
begins anew with the state of every pair: a gap, never a wrong bound.

Limits: ``LISTENERS_MAX`` listeners, ``QUEUE_MAX`` facts each. With nobody listening this costs nothing: the node does
not call it. Pure: whoever listens is woken by a callback that is handed in.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from skewd import __version__
from skewd.bounds.history import Knot
from skewd.bounds.observed import Observed, ObservedState
from skewd.evidence import (
    ALONE,
    EXPECTED,
    NAME_MAX,
    UNWATCHED,
    WATCHED,
    About,
    Begin,
    Fact,
    Gone,
    Learnt,
    Look,
    Missed,
    Published,
    Restart,
    Step,
    Term,
)
from skewd.over_links import OverLinks
from skewd.pairing import PairKey, Subject, learn
from skewd.replay import looked, watch_proof

if TYPE_CHECKING:
    from skewd.node import Node

LISTENERS_MAX = 4
QUEUE_MAX = 20_000
LOOK_SOON_NS = 5_000_000_000

@dataclass(slots=True)
class _Entry:
    """A pair as it was after its last message."""

    index: int
    subject: Subject
    revision: int
    latest: list[tuple[int, int] | None]
    """The latest proofs, upper and lower, in the watch of whoever replays the evidence."""
    proofs: int = 0


class _Taken(NamedTuple):
    """A proof that changed something: in the watch (``watched``), by meeting ``met``; or everything (``fell``)."""

    upper: bool
    local_ns: int
    limit_ns: int
    watched: bool
    fell: bool
    met: tuple[int, int] | None


def _told(
    entry: _Entry, taken: Sequence[_Taken], *, forget: bool
) -> tuple[list[Learnt], list[tuple[int, int] | None]]:
    """The facts of one message's proofs, and the latest ones in the watch of whoever replays them.

    Args:
        forget: whether a proof may forget what it met, where that was not told.
    """
    latest, facts, here = list(entry.latest), list[Learnt](), set[tuple[int, int] | None]()
    for upper, local_ns, limit_ns, watched, fell, met in taken:
        kind, expected = UNWATCHED, None
        if watched:
            kind = WATCHED
            if fell:
                latest = [None, None]
            elif latest[upper] != met:
                kind, expected = (ALONE, None) if forget and met not in here else (EXPECTED, met)
                latest[upper] = expected
            latest[not upper] = local_ns, limit_ns
        here.add((local_ns, limit_ns))
        facts.append(Learnt(entry.index, upper, local_ns, limit_ns, kind, expected))
    return facts, latest


def _same_watch(
    before: ObservedState, latest: Sequence[tuple[int, int] | None], facts: Iterable[Learnt], watch: Observed
) -> bool:
    """Whether facts lead another watch to where this one is, but for the proofs that it met last."""
    other = Observed.restored(before)
    other.expect(*latest)
    for fact in facts:
        watch_proof(other, fact)
    return other.state()._replace(upper=None, lower=None) == watch.state()._replace(upper=None, lower=None)


class Listener:
    """Somebody who wants evidence from now on.

    Args:
        wake: called when there is something to take.
        look_every_ns: how often the daemon's own conclusions are wanted.
    """

    def __init__(self, wake: Callable[[], None], look_every_ns: int) -> None:
        self.look_every_ns = look_every_ns
        self.next_look_ns: int | None = None
        self._soon_ns = LOOK_SOON_NS
        self.lost = 0
        self.closed = False
        self._wake = wake
        self._queue: deque[Fact] = deque()

    def looked(self, now_raw_ns: int) -> None:
        """A look is due again: soon at first, so that a short record has some, then as often as is wanted."""
        self.next_look_ns = now_raw_ns + min(self._soon_ns, self.look_every_ns)
        self._soon_ns = min(2 * self._soon_ns, self.look_every_ns)

    def put(self, fact: Fact) -> None:
        """Adds a fact; with a full queue all of it is lost."""
        if self.lost:
            self.lost += isinstance(fact, Learnt)
            return
        if len(self._queue) >= QUEUE_MAX:
            self.lost = max(sum(isinstance(one, Learnt) for one in self._queue), 1)
            self._queue.clear()
        self._queue.append(fact)
        self._wake()

    def take(self, anew: Callable[[], Iterable[Fact]]) -> list[Fact]:
        """All there is. After a loss that is how much was lost, and ``anew``: everything as it is now."""
        if self.lost:
            facts: list[Fact] = [Missed(self.lost), *anew()]
            self.lost = 0
        else:
            facts = list(self._queue)
        self._queue.clear()
        return facts

    def close(self) -> None:
        """No more will come."""
        self.closed = True
        self._wake()


class Tap:
    """Where a node's evidence comes out.

    Args:
        node: whose.
        clock_source: what its raw clock is made of.
        now_raw_ns: reads its raw clock.
        on_fault: told of an error of this module's own, which must not cost a proof; it should end the tap.
    """

    def __init__(
        self,
        node: Node,
        clock_source: Callable[[], str | None],
        now_raw_ns: Callable[[], int],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._node = node
        self._clock_source = clock_source
        self._now_raw_ns = now_raw_ns
        self._on_fault = on_fault
        self._closed = False
        self._listeners: list[Listener] = []
        self._entries: dict[PairKey, _Entry] = {}

    # -- who listens -------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether nobody more may listen."""
        return len(self._listeners) >= LISTENERS_MAX

    @property
    def listeners(self) -> int:
        """How many do."""
        return len(self._listeners)

    def listen(self, listener: Listener) -> None:
        """Gives the listener all that is known, and what is learnt from now on."""
        for fact in self.anew():
            listener.put(fact)
        self._listeners.append(listener)
        self._node.tap_with(self)

    def leave(self, listener: Listener) -> None:
        """Ends it."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners and not self._closed:  # after that another tap may have its place
            self._entries.clear()
            self._node.tap_with(None)

    def close(self) -> None:
        """Nothing more comes, for anybody."""
        self._closed = True
        self._node.tap_with(None)
        for listener in self._listeners:
            listener.close()

    def anew(self) -> list[Fact]:
        """Whose evidence this is, and every pair with its exact state."""
        return [self._about(), *(self._begin(self._entry(subject)) for subject in self._node.subjects())]

    def _about(self) -> About:
        now, node = self._now_raw_ns(), self._node
        clock = node.config.clock
        return About(
            __version__,
            node.name,
            node.boot,
            node.raw_era,
            node.virtual,
            self._clock_source(),
            now,
            now + node.wall.wall_minus_raw(now).midpoint,
            float(clock.max_drift_ppm),
            float(clock.max_wander_ppb_per_s),
        )

    def _put(self, fact: Fact) -> None:
        for listener in self._listeners:
            listener.put(fact)

    # -- what is learnt ----------------------------------------------------------------------------------------------

    def _entry(self, subject: Subject) -> _Entry:
        """The pair's entry as its filter is now. One that changed behind our back begins anew, for everybody."""
        entry = self._entries.get(subject.key)
        if entry is None:
            used = {one.index for one in self._entries.values()}
            index = next(index for index in itertools.count() if index not in used)
            entry = _Entry(index, subject, subject.pair.revision, list(subject.observed.latest))
            self._entries[subject.key] = entry
            self._put(self._begin(entry))
            return entry
        before = entry.subject
        same = before.pair is subject.pair and before.observed is subject.observed and before.clock == subject.clock
        entry.subject = subject
        if not same or entry.revision != subject.pair.revision:
            entry.revision, entry.latest = subject.pair.revision, list(subject.observed.latest)
            self._put(self._begin(entry))
        return entry

    @staticmethod
    def _begin(entry: _Entry) -> Begin:
        subject = entry.subject
        return Begin(
            entry.index,
            subject.kind,
            subject.name[:NAME_MAX],
            subject.clock,
            max(subject.interval_ns, 1),
            subject.smear,
            entry.proofs,
            subject.pair.state(),
            subject.observed.state(),
        )

    def learn(
        self,
        subject: Subject,
        outgoing: Sequence[tuple[int, int]],
        incoming: Sequence[tuple[int, int]],
        links: OverLinks | None = None,
    ) -> None:
        """Gives a message's proofs to the filter and its watch, as ``pairing.learn`` does, and tells who listens."""
        pair, watch = subject.pair, subject.observed
        try:
            entry, before, taken = self._entry(subject), watch.state(), list[_Taken]()
        except Exception as error:
            self._on_fault(error)
            learn(pair, watch, outgoing, incoming, links)
            return
        # One by one, in the order of pairing.learn.
        proofs = [(True, stamps) for stamps in outgoing] + [(False, stamps) for stamps in incoming]
        for upper, (sent, received) in proofs:
            revisions, contradictions, met = (pair.revision, watch.revision), pair.contradictions, watch.latest[upper]
            stamps = ((sent, received),)
            learn(pair, watch, stamps if upper else (), () if upper else stamps, links)
            entry.proofs += 1
            if (pair.revision, watch.revision) != revisions:
                local_ns, limit_ns = (sent, received - sent) if upper else (received, sent - received)
                watched, fell = watch.revision != revisions[1], pair.contradictions != contradictions
                taken.append(_Taken(upper, local_ns, limit_ns, watched, fell, met))
        entry.revision = pair.revision
        if not taken:
            return
        try:
            self._tell(entry, before, taken, watch)
        except Exception as error:
            self._on_fault(error)

    def _tell(self, entry: _Entry, before: ObservedState, taken: Sequence[_Taken], watch: Observed) -> None:
        """Tells of one message's proofs that changed something."""
        # Its first one often meets one of the message before, to no avail: the next ones tell more.
        facts, latest = _told(entry, taken, forget=True)
        if any(fact.watch == ALONE for fact in facts) and not _same_watch(before, entry.latest, facts, watch):
            facts, latest = _told(entry, taken, forget=False)
        entry.latest = latest
        for fact in facts:
            self._put(fact)

    # -- what is concluded -------------------------------------------------------------------------------------------

    def look(self, now_raw_ns: int, knot: Knot | None) -> None:
        """Tells what is concluded now, and what was published, to those for whom that is due."""
        due = [one for one in self._listeners if one.next_look_ns is None or now_raw_ns >= one.next_look_ns]
        if not due:
            return
        self._forget_departed()
        entries = [self._entry(subject) for subject in self._node.subjects()]
        wall = self._node.wall
        minus_raw = wall.wall_minus_raw(now_raw_ns)
        look = Look(
            now_raw_ns,
            wall.era,
            minus_raw.lo,
            minus_raw.hi,
            wall.slew_ppb(),
            tuple(looked(entry.index, entry.subject.pair, now_raw_ns, entry.proofs) for entry in entries),
            None if knot is None else self._published(knot),
        )
        for listener in due:
            listener.looked(now_raw_ns)
            listener.put(look)

    def _forget_departed(self) -> None:
        living = {subject.key for subject in self._node.subjects()}
        for key in self._entries.keys() - living:
            self._put(Gone(self._entries.pop(key).index))

    def _published(self, knot: Knot) -> Published | None:
        if knot.bound is None:
            return None
        at, wall = knot.raw_ns, self._node.wall.wall_minus_raw(knot.raw_ns)
        basis, parts = self._node.basis(at)
        terms = [
            Term(entry.index, part.lower_ns, part.upper_ns, part.others, part.preferred)
            for part in parts
            if (entry := self._entries.get(part.key)) is not None
        ]
        estimate = self._node.reference_estimate(at)
        widened = None if estimate is None else knot.bound.hi - estimate.bound.hi
        if len(terms) != len(parts) or estimate is None or widened != estimate.bound.lo - knot.bound.lo:
            basis, terms, widened = "other", [], 0
        quorum = self._node.quorum
        return Published(
            at,
            knot.bound.lo,
            knot.bound.hi,
            basis,
            tuple(terms),
            wall.lo,
            wall.hi,
            widened or 0,
            quorum.configured,
            quorum.min_sources,
        )

    # -- what befalls the clocks -------------------------------------------------------------------------------------

    def stepped(self, raw_ns: int, by_ns: int) -> None:
        """The wall clock was stepped."""
        self._put(Step(raw_ns, self._node.wall.era, by_ns))

    def restarted(self, raw_ns: int) -> None:
        """The raw clock was not continuous: every pair begins anew."""
        self._put(Restart(raw_ns, self._node.raw_era))
        self._entries.clear()
        self._put(self._about())
        for subject in self._node.subjects():
            self._entry(subject)
