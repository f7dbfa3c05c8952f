"""How far is a clock that this node does not measure itself: bounds through others, that no liar can make false.

**The problem.** A node measures some peers, which measure others, and each publishes a signed record of what it knows
(``records.py``). Chained, those records bound clocks that were never asked, or bound a congested peer better than the
direct path does. But whoever is chained through is believed, and one of them may lie: about its bounds, its limits,
its clock, or in the name of a node that does not exist.

**One path.** From here, over a first-hand bound to Y1, over Y1's or Y2's claim about the other to Y2, ... to X. A claim
holds at its owner's own raw instant; where that clock is *now* follows from the part of the path before it
(``carry.py``). So if every node that the path **relies on** tells the truth, the path's interval for X - here holds. It
relies on all nodes between here and X, and on X itself if the last claim is X's own.

**f + 1 paths.** Take f + 1 paths to X that rely on pairwise disjoint sets of nodes. At most f nodes lie, so one path
relies on no liar, and its interval holds. Which one is unknown, so X - here lies in the **hull** of all f + 1: above
the least of their lower ends and below the greatest of their upper ends. That is true of every such choice of paths, so
the upper end is the best that any choice proves, and so is the lower end, each with its own paths.

A first-hand bound relies on nobody. It may be intersected with that hull, and with nothing less. If the two exclude
each other, or the hull's two ends do, then more than f nodes lie or a declared limit is broken: the first-hand bound
stands, and the bound is marked ``disputed``.

*Theorem.* If first-hand bounds hold, at most f nodes lie, each in one name, and all others keep to their declared
limits, then X - here lies in the composed interval of every honest X. *Proof.* Above, with :func:`confirmed`. QED.
About a liar's own clock nothing is claimed: it has none but those that it shows. (What honest neighbours saw of it,
under the limits it declared, is what f + 1 paths say.)

**Who exists?** Anyone who holds the mesh key can sign records in any number of made-up names. So a node is relied upon
only if it is *confirmed* (``confirm.py``): this node has exchanged messages with that very clock and key, or f + 1
disjoint chains of members say that somebody has. A record's claims name clocks by :func:`clock_tag`, so a forged record
of a real name is another clock.

**The search.** Paths are labels (interval, set relied upon), settled from the narrowest on as in Dijkstra's algorithm:
a longer path is narrower by the rates of clocks at most, parts in ten thousand. Each node keeps the few narrowest whose
sets are not supersets of others'; beyond the first two, only such as are disjoint from another one. So not every pair
of paths is tried: bounds may be wider than the best possible, never wrong.

``"utc"`` is one more target, for which records claim UTC - own raw clock. No path leads on from it: whether time
servers are right is another question than whether members are.

Limits: paths use records of at most ``AGE_MAX_NS``. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2s
from typing import NamedTuple

from skewd.bounds.carry import Claim, backward, chain, forward, unchain
from skewd.bounds.confirm import spread
from skewd.bounds.mesh import Mesh, Verdict
from skewd.bounds.record import Record
from skewd.interval import Interval

UTC = "utc"
FIRST_HAND = "first-hand"
COMPOSED = "composed"

TAG_BYTES = 12
AGE_MAX_NS = 900_000_000_000
"""A record that is older takes part in no path: 15 minutes."""


def clock_tag(owner: str, public_key: bytes, boot: bytes, raw_era: int) -> bytes:
    """Names one unbroken raw clock of one owner, as claims do: 12 bytes.

    Args:
        public_key: the owner's, 32 bytes: the same name with another key is another clock.
        boot, raw_era: as in ``links.wire.Self.timebase``.
    """
    content = b"%s\0%s%s%d" % (owner.encode(), public_key, boot, raw_era)
    return blake2s(content, digest_size=TAG_BYTES, person=b"skewdclk").digest()


class Here(NamedTuple):
    """This node: its name, and the tag of its raw clock."""

    name: str
    clock: bytes


@dataclass(frozen=True, slots=True)
class FirstHand:
    """What this node knows of a peer (or of ``"utc"``) by its own exchanges, at the instant that is asked about.

    Attributes:
        clock: the peer's :func:`clock_tag`, with the key of a record that came from the peer itself; None while it
            has sent none (and for UTC). Such a peer is a target and no path leads through it.
        offset: peer - here, raw clocks, ns.
        drift_ppb: and its rate, per second of here's.
    """

    clock: bytes | None
    offset: Interval
    drift_ppb: Interval


@dataclass(frozen=True, slots=True)
class Composed:
    """What is known of one clock.

    Attributes:
        interval: X - here, raw clocks, at the instant that was asked about, ns.
        trust: ``first-hand``: rests on own measurement (narrowed by f + 1 disjoint paths at most); ``composed``: on
            f + 1 disjoint paths.
        paths: the paths used, each as the names after here; the first-hand one is ``(X,)``.
        drift_ppb: d(X - here) per second of here's raw clock.
        age_ns: age of the oldest record used; 0 for first-hand alone.
        disputed: f + 1 paths contradict each other or the first-hand bound.
    """

    interval: Interval
    trust: str
    paths: tuple[tuple[str, ...], ...]
    drift_ppb: Interval
    age_ns: int
    disputed: bool = False


def confirmed(
    first_hand: Mapping[str, FirstHand],
    records: Mapping[str, Record],
    liars_max: int = 1,
    excluded: Collection[str] = frozenset(),
) -> dict[bytes, str]:
    """Clocks that surely belong to members, by tag: their names (:func:`~skewd.bounds.confirm.spread`)."""
    met = {known.clock: name for name, known in first_hand.items() if known.clock is not None and name != UTC}
    return spread(met, {name for name in first_hand if name != UTC}, records, liars_max, excluded)


class _Label(NamedTuple):
    """One path's end: the interval, whom it relies on (bits), and how it came there."""

    low: int
    high: int
    relied: int
    node: int
    before: _Label | None
    claim: Claim | None
    at_ns: int
    reverse: bool


class _Hop:
    """One claim, in either direction."""

    __slots__ = ("at_ns", "claim", "other", "owner", "width")

    def __init__(self, owner: int, other: int, at_ns: int, claim: Claim) -> None:
        self.owner, self.other, self.at_ns, self.claim = owner, other, at_ns, claim
        self.width: int | None = None


class _Search:
    """All paths from here, at one instant."""

    def __init__(
        self,
        here: Here,
        now_ns: int,
        first_hand: Mapping[str, FirstHand],
        records: Mapping[str, Record],
        liars_max: int,
        excluded: Collection[str],
    ) -> None:
        self.now_ns, self.liars_max, self.first_hand = now_ns, liars_max, first_hand
        others = {name: record for name, record in records.items() if name not in (here.name, UTC)}
        known = confirmed(first_hand, others, liars_max, excluded)
        # Numbers: 0 here, 1 UTC, then nodes.
        self.names = [here.name, UTC]
        number: dict[bytes, int] = {here.clock: 0}
        by_name: dict[str, int] = {here.name: 0, UTC: 1}
        for tag, name in known.items():
            if name not in by_name:
                by_name[name] = len(self.names)
                self.names.append(name)
            number[tag] = by_name[name]
        for name in first_hand:
            if name not in by_name:
                by_name[name] = len(self.names)
                self.names.append(name)
        by_name.pop(here.name)
        self.number = by_name
        count = len(self.names)
        self.through = [False] * count
        self.says: list[list[_Hop]] = [[] for _ in range(count)]
        self.said_by: list[list[_Hop]] = [[] for _ in range(count)]
        for tag, name in known.items():
            node = number[tag]
            if name in excluded:
                continue
            self.through[node] = True
            record = others.get(name)
            if record is None or record.clock != tag:
                continue
            at_ns = record.raw_ns
            if record.utc is not None:
                self.says[node].append(_Hop(node, 1, at_ns, record.utc))
            for edge in record.edges:
                other = number.get(edge.clock)
                if other is None or other == node:
                    continue
                hop = _Hop(node, other, at_ns, edge.claim)
                if other:
                    self.says[node].append(hop)
                self.said_by[other].append(hop)
        self.labels: list[list[_Label]] = [[] for _ in range(count)]
        self._run()

    def _run(self) -> None:
        """Settles labels, the narrowest first.

        A path is weighed by the sum of its claims' widths, each reckoned once, and carried exactly only when it is
        kept: the order decides which paths are kept, never whether what they say holds.
        """
        start = _Label(0, 0, 0, 0, None, None, 0, False)
        queue: list[tuple[int, int, int, int, _Label, _Hop | None]] = []
        for serial, (name, known) in enumerate(self.first_hand.items()):
            label = _Label(known.offset.lo, known.offset.hi, 0, self.number[name], start, None, 0, False)
            queue.append((known.offset.width, serial, label.node, 0, label, None))
        heapq.heapify(queue)
        serial = len(queue)
        kept_max = 2 * (self.liars_max + 1)
        labels, push = self.labels, heapq.heappush
        for hop in self.said_by[0]:
            serial += 1
            push(queue, (self._width(hop, start), serial, hop.owner, 1 << hop.owner, start, hop))
        while queue:
            weight, _, node, relied, label, way = heapq.heappop(queue)
            held = labels[node]
            if not _worth(held, relied, kept_max):
                continue
            if way is not None:
                found = self._carried(way, label, node, relied)
                if found is None:
                    continue
                label = found
            held.append(label)
            if not self.through[node] or node == 1:
                continue
            relied |= 1 << node
            for hop in self.says[node]:
                other = hop.other
                if not relied >> other & 1 and len(labels[other]) < kept_max:
                    serial += 1
                    push(queue, (weight + self._width(hop, label), serial, other, relied, label, hop))
            for hop in self.said_by[node]:
                other = hop.owner
                if not relied >> other & 1 and len(labels[other]) < kept_max:
                    serial += 1
                    push(queue, (weight + self._width(hop, label), serial, other, relied | 1 << other, label, hop))

    def _width(self, hop: _Hop, before: _Label) -> int:
        """About how much a claim widens a path that leads over it."""
        if hop.width is None:
            claim, middle = hop.claim, (before.low + before.high) >> 1
            if before.node != hop.owner:
                middle -= claim.offset.midpoint
            elapsed = self.now_ns + middle - hop.at_ns
            hop.width = claim.upper(elapsed) - claim.lower(elapsed)
        return hop.width

    def _carried(self, hop: _Hop, before: _Label, node: int, relied: int) -> _Label | None:
        """The label at ``node`` by one more claim; None when that is too old."""
        reverse = node == hop.owner
        carry = backward if reverse else forward
        found = carry(hop.claim, hop.at_ns, self.now_ns, Interval(before.low, before.high))
        if self.now_ns + (found.lo if reverse else before.low) - hop.at_ns > AGE_MAX_NS:
            return None
        return _Label(found.lo, found.hi, relied, node, before, hop.claim, hop.at_ns, reverse)

    # -- answers -------------------------------------------------------------------------------------------------

    def answer(self, name: str) -> Composed | None:
        known = self.first_hand.get(name)
        labels = self.labels[self.number[name]]
        direct = None
        if known is not None:
            direct = Composed(known.offset, FIRST_HAND, ((name,),), known.drift_ppb, 0)
            labels = [label for label in labels if label.relied]
        upper = _agree(sorted(labels, key=lambda label: label.high), self.liars_max + 1)
        lower = _agree(sorted(labels, key=lambda label: -label.low), self.liars_max + 1)
        if upper is None or lower is None:
            return direct
        high, low = max(label.high for label in upper), min(label.low for label in lower)
        if direct is not None and low <= direct.interval.lo and high >= direct.interval.hi:
            return direct
        used = list(dict.fromkeys([*upper, *lower]))
        rate = self._rate(upper).intersect(self._rate(lower)) if low <= high else None
        offset = None if low > high else Interval(low, high)
        paths = tuple(self._path(label) for label in used)
        age = max(self._age(label) for label in used)
        if direct is None:
            if offset is None or rate is None:
                return None
            return Composed(offset, COMPOSED, paths, rate, age)
        both = None if offset is None else offset.intersect(direct.interval)
        rate = None if rate is None else rate.intersect(direct.drift_ppb)
        if both is None or rate is None:
            return Composed(direct.interval, FIRST_HAND, direct.paths, direct.drift_ppb, 0, disputed=True)
        return Composed(both, FIRST_HAND, (*direct.paths, *paths), rate, age)

    def _hops(self, label: _Label) -> list[_Label]:
        hops: list[_Label] = []
        at: _Label | None = label
        while at is not None and at.before is not None:
            hops.append(at)
            at = at.before
        return hops[::-1]

    def _path(self, label: _Label) -> tuple[str, ...]:
        return tuple(self.names[hop.node] for hop in self._hops(label))

    def _elapsed(self, hop: _Label) -> Interval:
        owner = hop if hop.reverse else hop.before
        assert owner is not None
        return Interval(self.now_ns + owner.low - hop.at_ns, self.now_ns + owner.high - hop.at_ns)

    def _age(self, label: _Label) -> int:
        ages = (self._elapsed(hop).hi for hop in self._hops(label) if hop.claim is not None)
        return max(0, *ages, 0)

    def _rate(self, labels: list[_Label]) -> Interval:
        """The hull of the paths' drifts."""
        hull: Interval | None = None
        for label in labels:
            rate = Interval(0, 0)
            for hop in self._hops(label):
                if hop.claim is None:
                    rate = self.first_hand[self.names[hop.node]].drift_ppb
                    continue
                its = hop.claim.drift_over(self._elapsed(hop))
                rate = unchain(rate, its) if hop.reverse else chain(rate, its)
            hull = rate if hull is None else hull.hull(rate)
        assert hull is not None
        return hull


def _worth(held: list[_Label], relied: int, kept_max: int) -> bool:
    """Whether a path that relies on ``relied`` is worth keeping beside narrower ones."""
    if not relied:
        return True  # first-hand: all that follows from it relies on fewest
    if len(held) >= kept_max:
        return False
    apart = len(held) < 2
    for other in held:
        if not other.relied & ~relied:
            return False
        apart = apart or not other.relied & relied
    return apart


def _agree(labels: list[_Label], count: int) -> list[_Label] | None:
    """``count`` labels that rely on disjoint sets; the last of them, in the order given, as early as can be."""
    for last, label in enumerate(labels):
        found = _disjoint(labels[:last], count - 1, label.relied)
        if found is not None:
            return [*found, label]
    return None


def _disjoint(labels: list[_Label], count: int, relied: int) -> list[_Label] | None:
    if count == 0:
        return []
    for index, label in enumerate(labels):
        if not label.relied & relied:
            rest = _disjoint(labels[index + 1 :], count - 1, relied | label.relied)
            if rest is not None:
                return [label, *rest]
    return None


def compose(
    *,
    here: Here,
    now_raw_ns: int,
    first_hand: Mapping[str, FirstHand],
    records: Mapping[str, Record],
    liars_max: int = 1,
    excluded: Collection[str] = frozenset(),
) -> dict[str, Composed]:
    """What is known of every clock at here's raw instant ``now_raw_ns``; names with no bound are left out.

    Args:
        first_hand: own bounds at that instant, by name; ``"utc"`` too, if this node has sources of its own.
        records: the newest record of each owner (``RecordStore.records``).
        liars_max: f, how many members may lie.
        excluded: names that no path may rely on (convicted ones).

    Raises:
        ValueError: ``liars_max`` is negative.
    """
    if liars_max < 0:
        raise ValueError(f"liars_max is not negative, but {liars_max}")
    search = _Search(here, now_raw_ns, first_hand, records, liars_max, excluded)
    found: dict[str, Composed] = {}
    for name in search.names[1:]:
        answer = search.answer(name)
        if answer is not None:
            found[name] = answer
    return found


def judge(
    *,
    here: Here,
    now_raw_ns: int,
    first_hand: Mapping[str, FirstHand],
    records: Mapping[str, Record],
    liars_max: int = 1,
    composed: Mapping[str, Composed] | None = None,
) -> Verdict:
    """Who is shown to lie by all claims together, carried to one instant (``mesh.py``).

    A claim takes part if its owner's clock is known *robustly*: first-hand, or by f + 1 disjoint paths. So a liar can't
    make an honest owner's claim false by misplacing the instant at which it holds.

    Args:
        composed: what :func:`compose` gave for the same arguments and no ``excluded``, if at hand.
    """
    if composed is None:
        composed = compose(
            here=here, now_raw_ns=now_raw_ns, first_hand=first_hand, records=records, liars_max=liars_max
        )
    others = {name: record for name, record in records.items() if name not in (here.name, UTC)}
    known = confirmed(first_hand, others, liars_max)
    known[here.clock] = here.name
    mesh = Mesh()
    for name, bound in first_hand.items():
        if name != UTC:
            mesh.constrain(here.name, name, bound.offset, by=here.name)
    for tag, name in known.items():
        record, timed = others.get(name), composed.get(name)
        if record is None or timed is None or record.clock != tag:
            continue
        elapsed = timed.interval.shift(now_raw_ns - record.raw_ns)
        if elapsed.lo > AGE_MAX_NS:
            continue
        for edge in record.edges:
            other = known.get(edge.clock)
            if other is not None and other != name:
                mesh.constrain(name, other, edge.claim.offset_over(elapsed), by=name)
    return mesh.verdict(liars_max)
