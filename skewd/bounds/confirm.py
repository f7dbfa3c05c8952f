"""Who exists: the clocks that surely belong to members, whoever of them lies.

**The problem.** Anyone who holds the mesh key can sign records in any number of made-up names, and two of those would
make two "disjoint" paths. So a node is relied upon only if it is *confirmed*. What speaks for a node are the claims of
others about its clock: an honest node claims only what it has met, by exchanging messages with that very clock and key.
Claims name clocks by a tag that covers name, key, boot and raw era (``compose.clock_tag``), so a forged record of a
real name is another clock, that no honest node ever claims anything about.

**The insight.** Draw an arrow from each node to those that it claims to have met, and walk from nodes that are known to
exist. The first node on such a walk that does not exist was claimed by one that does, and that lies. So a walk over
nobody that lies leads to a node that exists. Take ``f`` + 1 walks to X that begin at different nodes that exist and
have no node in common but X: at most f of them have a liar on them, so one has none, and X exists. Whom this node has
met itself is where that begins, and whoever was confirmed is one more place to begin.

(Menger 1927: there are f + 1 such walks unless f nodes stand between. Then those f could have made all of it up, and
nothing more can be known here.)

**How.** Most are claimed by f + 1 confirmed nodes directly, which counting finds. For those that are left, the walks
are searched as a flow: each goes backwards over claims to a confirmed node, and makes room for the next one by turning
earlier ones aside (Ford and Fulkerson 1956). A search is begun only for whom f + 1 different confirmed nodes lead to at
all, so what one member makes up costs no search.

Limits: at most f members lie, each in one name. (Members who exchange messages under several names at once are several
liars. They need the mesh key and an address each; a mesh that fears that must give f accordingly.) After
``SEARCHES_MAX`` searches that find nothing, which takes f > 1, those that are left count as not confirmed. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from skewd.bounds.record import Record

SEARCHES_MAX = 64
"""Searches in a row that find nothing: each may look at every claim of those that are not confirmed."""


def spread(
    met: Mapping[bytes, str],
    taken: Collection[str],
    records: Mapping[str, Record],
    liars_max: int,
    excluded: Collection[str] = frozenset(),
) -> dict[bytes, str]:
    """Clocks that surely belong to members, by tag: their names. One clock for each name.

    Args:
        met: clocks that this node has exchanged messages with.
        taken: names that get no other clock than that.
        records: the newest record of each owner.
        liars_max: f, how many members may lie.
        excluded: owners of whom what they say does not count.
    """
    by_tag = {record.clock: name for name, record in records.items()}
    found = dict(met)
    queue = list(found)
    votes: dict[bytes, int] = {}
    while queue:
        for tag in queue:
            owner = by_tag.get(tag)
            if owner is None or found[tag] != owner or owner in excluded:
                continue
            for other in {edge.clock for edge in records[owner].edges}:
                name = by_tag.get(other)
                if name is None or name in taken or other in found:
                    continue
                votes[other] = votes.get(other, 0) + 1
                if votes[other] > liars_max:
                    found[other] = name
                    queue.append(other)
        left = {tag: name for tag, name in by_tag.items() if tag not in found and name not in taken}
        queue = _led_to(left, found, records, liars_max + 1, excluded) if left and votes else []
        found.update((tag, left[tag]) for tag in queue)
    return found


_Claims = dict[bytes, list[bytes]]
"""By clock: the clocks of those who claim to have met it."""


def _led_to(
    left: Mapping[bytes, str],
    found: Mapping[bytes, str],
    records: Mapping[str, Record],
    count: int,
    excluded: Collection[str],
) -> list[bytes]:
    """Those of ``left`` that ``count`` walks lead to, from different clocks of ``found`` and otherwise disjoint."""
    claims: _Claims = {tag: [] for tag in left}
    says: _Claims = {}
    for name, record in records.items():
        tag = record.clock
        if name in excluded or (tag not in left and found.get(tag) != name):
            continue
        for other in {edge.clock for edge in record.edges} & left.keys():
            if other != tag:
                claims[other].append(tag)
                says.setdefault(tag, []).append(other)
    begun = _begun(says, left, count)
    failed, led = 0, list[bytes]()
    for tag in (tag for tag, sources in begun.items() if len(sources) == count):
        if _apart(tag, claims, count):
            led.append(tag)
            continue
        # Somebody stands between, who came before in this order. If that one was led to just now it is one more place
        # to begin, and those behind it are no more led to by f + 1: nearly always that spares searching for them.
        failed += 1
        if led or failed == SEARCHES_MAX:
            break
    return led


def _begun(says: _Claims, left: Collection[bytes], count: int) -> dict[bytes, set[bytes]]:
    """For each of ``left``, the confirmed clocks that lead to it in any way; of more than ``count`` any ``count``."""
    begun: dict[bytes, set[bytes]] = {}
    queue = [(other, tag) for tag, others in says.items() if tag not in left for other in others]
    for tag, source in queue:
        sources = begun.setdefault(tag, set())
        if source not in sources and len(sources) < count:
            sources.add(source)
            queue.extend((other, source) for other in says.get(tag, ()))
    return begun


def _apart(target: bytes, claims: _Claims, count: int) -> bool:
    """Whether ``count`` walks go from ``target`` backwards over claims to confirmed clocks, with nothing in common.

    The confirmed ones are those that ``claims`` has no entry for. A step of a walk is (clock, by whom it is claimed).
    """
    walks: set[tuple[bytes, bytes]] = set()
    for _ in range(count):
        nearer = {farther: clock for clock, farther in walks}  # of each clock on a walk, the one before it
        # A state is a clock, and whether the search may go on from it to anyone who claims it. If not, the clock is on
        # a walk already and was come upon from aside: all one can do there is to take over what leads on from it, which
        # leaves the clock before it in want of another way.
        start = (target, True)
        came: dict[tuple[bytes, bool], tuple[bytes, bool] | None] = {start: None}
        queue = [start]
        end: tuple[bytes, bool] | None = None
        for state in queue:
            clock, free = state
            if not free:
                following = [(nearer[clock], True)]
            else:
                if clock not in claims:
                    end = state
                    break
                others = [other for other in claims[clock] if (clock, other) not in walks and other != target]
                following = [(other, other not in nearer) for other in others]
                if clock in nearer:
                    following.append((clock, False))
            for after in following:
                if after not in came:
                    came[after] = state
                    queue.append(after)
        if end is None:
            return False
        state = end
        while (before := came[state]) is not None:
            if before[1] and before[0] != state[0]:
                walks.add((before[0], state[0]))
            elif not before[1]:
                walks.discard((state[0], before[0]))
            state = before
    return True
