"""What many bounds between many clocks imply together, and who can be shown to lie.

**The graph.** A bound lo <= b - a <= hi, for two clocks at one instant, is two difference constraints: b <= a + hi and
a <= b - lo. As edges of a graph, a -> b with weight hi and b -> a with weight -lo, the tightest upper bound on b - a
that all of them imply is the length of the shortest path from a to b (and the lower one, that of b to a, negated). They
have a common solution if and only if no cycle has a negative length: going round such a cycle would prove that a
clock is ahead of itself. (Bellman 1958; Shostak 1981.)

**Who lies?** A negative cycle shows that one of its claims is false, not which. Let each claim have an owner, who
makes it, and two ends; a node *takes part* in a cycle when it owns or ends one of the cycle's claims. If at most ``f``
nodes lie, every claim among honest nodes is true, so every negative cycle has a liar among those who take part in it.

- f = 1. There is one liar, so it takes part in every negative cycle: removing it, with all that it says and all that
  is said of it, resolves them all. If X is the *only* node whose removal does that, X is the liar. An honest node can
  never be convicted while at most one lies, whatever that one says.
- f > 1. In addition f + 1 negative cycles are asked for that have no participant in common but X. If X were honest
  each of them would hold a liar of its own: f + 1 liars. So X lies.

All else is ``disputed``: those who take part in a cycle are named, and nobody is accused. A liar contradicted by two
or more honest nodes independently is convicted; one contradicted by a single node is one word against another.

**Limits.** Everything is about one instant; ``compose.judge`` carries claims there. More than f liars can convict an
honest node. A false bound that contradicts nobody is not noticed: it then also moves nothing beyond what the others'
bounds allow. "All that take part" is found greedily (cycles with no claim in common, at most ``CYCLES_MAX``):
to list every negative cycle is NP-hard. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from skewd.interval import Interval

CYCLES_MAX = 64
"""Negative cycles looked for at most, for one verdict."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the negative cycles show.

    Attributes:
        convicted: the one node that must lie, if at most ``f`` do; None when nobody can be named.
        disputed: who takes part in a negative cycle, when nobody is convicted.
        cycles: negative cycles with no claim in common, each as its nodes in order.
        suspects: nodes each of whose removal would resolve every cycle. With f = 1 the liar is among them.
    """

    convicted: str | None
    disputed: frozenset[str]
    cycles: tuple[tuple[str, ...], ...]
    suspects: frozenset[str] = frozenset()


_Edge = tuple[int, int, int, int]
"""From, to, weight, and the number of the claim that it is a side of."""


class Mesh:
    """Bounds between named clocks at one instant, each claimed by someone.

    Not thread-safe. Cost: V nodes and E claims take a few passes over 2 E edges when nothing contradicts.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._claims: dict[tuple[int, int, int], list[int | None]] = {}
        self._forget()

    def _forget(self) -> None:
        self._graph: tuple[list[list[tuple[int, int]]], list[int], list[bool]] | None = None
        self._distances: dict[int, list[int | None]] = {}
        self._searched = False
        self._cycle: list[_Edge] | None = None
        self._begin: list[int] | None = None

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every name that was ever constrained or made a claim."""
        return tuple(self._names)

    def constrain(self, a: str, b: str, bound: Interval, *, by: str | None = None) -> None:
        """b - a lies in ``bound`` (ns).

        Several bounds on one pair by one owner intersect, those of different owners are kept apart.

        Args:
            by: who claims it, usually ``a``; None means nobody who could be blamed for it but its two ends.
        """
        first, second = self._number(a), self._number(b)
        owner = -1 if by is None else self._number(by)
        if first > second:
            first, second, bound = second, first, -bound
        claim = self._claims.setdefault((first, second, owner), [None, None])
        claim[0] = bound.lo if claim[0] is None else max(claim[0], bound.lo)
        claim[1] = bound.hi if claim[1] is None else min(claim[1], bound.hi)
        self._forget()

    # -- what follows --------------------------------------------------------------------------------------------

    def offset(self, a: str, b: str) -> Interval | None:
        """The tightest bound on b - a that all constraints imply together.

        None when nothing connects the two, or when what connects them contradicts itself (:meth:`contradiction`):
        then anything would follow.
        """
        first, second = self._numbers.get(a), self._numbers.get(b)
        if first is None or second is None:
            return None
        if self._graph is None:
            self._graph = self._prepare()
        if self._graph[2][first]:
            return None
        most, least = self._distance(first, second), self._distance(second, first)
        return None if most is None or least is None else Interval(-least, most)

    def contradiction(self) -> list[str] | None:
        """The nodes of a negative cycle, in the order in which it runs; None when all constraints can be true."""
        cycle = self._first_cycle()
        return None if cycle is None else [self._names[edge[0]] for edge in cycle]

    def verdict(self, f: int = 1) -> Verdict:
        """Who lies, if at most ``f`` nodes do.

        Raises:
            ValueError: ``f`` is negative.
        """
        if f < 0:
            raise ValueError(f"at most f nodes lie: f is not negative, but {f}")
        cycles: list[list[_Edge]] = []
        left = self._edges()
        cycle = self._first_cycle()
        while cycle is not None and len(cycles) < CYCLES_MAX:
            cycles.append(cycle)
            used = {edge[3] for edge in cycle}
            left = [edge for edge in left if edge[3] not in used]
            cycle = self._search(left)[1]
        if not cycles:
            return Verdict(None, frozenset(), ())
        owners = self._owners()
        members = [self._participants(cycle, owners) for cycle in cycles]
        named = tuple(tuple(self._names[edge[0]] for edge in cycle) for cycle in cycles)
        # Who resolves every cycle takes part in each of those found; whether it resolves the others is tried.
        suspects = [
            node for node in sorted(frozenset.intersection(*members)) if self._without({node}, owners)[1] is None
        ]
        names = frozenset(self._names[node] for node in suspects)
        # If nobody lies, as f = 0 says, an assumption broke that is nobody's: no accusation.
        if len(suspects) == 1 and f > 0 and (f == 1 or self._independent(suspects[0], owners, f + 1)):
            return Verdict(self._names[suspects[0]], frozenset(), named, names)
        everyone = frozenset(self._names[node] for group in members for node in group)
        return Verdict(None, everyone, named, names)

    # -- the graph -----------------------------------------------------------------------------------------------

    def _edges(self) -> list[_Edge]:
        edges: list[_Edge] = []
        for number, ((first, second, _), (lo, hi)) in enumerate(self._claims.items()):
            assert lo is not None
            assert hi is not None
            edges.append((first, second, hi, number))
            edges.append((second, first, -lo, number))
        return edges

    def _owners(self) -> list[frozenset[int]]:
        """By number of a claim: its ends and its owner."""
        return [frozenset(part for part in claim if part >= 0) for claim in self._claims]

    def _participants(self, cycle: Sequence[_Edge], owners: list[frozenset[int]]) -> frozenset[int]:
        return frozenset[int]().union(*(owners[edge[3]] for edge in cycle))

    def _first_cycle(self) -> list[_Edge] | None:
        if not self._searched:
            self._cycle, self._searched = self._search(self._edges())[1], True
        return self._cycle

    def _search(self, edges: Sequence[_Edge]) -> tuple[list[int], list[_Edge] | None]:
        if self._begin is None:
            self._begin = _guess(len(self._names), self._edges())
        return _negative_cycle(self._begin.copy(), edges)

    def _without(self, nodes: set[int], owners: list[frozenset[int]]) -> tuple[list[int], list[_Edge] | None]:
        left = [edge for edge in self._edges() if nodes.isdisjoint(owners[edge[3]])]
        return self._search(left)

    def _independent(self, node: int, owners: list[frozenset[int]], count: int) -> bool:
        """Whether ``count`` negative cycles are found that share no participant but ``node``."""
        removed: set[int] = set()
        for _ in range(count):
            cycle = self._without(removed, owners)[1]
            if cycle is None:
                return False
            removed |= self._participants(cycle, owners) - {node}
        return True

    def _prepare(self) -> tuple[list[list[tuple[int, int]]], list[int], list[bool]]:
        """Neighbours with weights made positive by potentials, the potentials, and which nodes are contradictory."""
        count = len(self._names)
        edges = self._edges()
        component = _components(count, edges)
        broken: set[int] = set()
        while True:
            potentials, cycle = self._search(edges)
            if cycle is None:
                break
            bad = component[cycle[0][0]]
            broken.add(bad)
            edges = [edge for edge in edges if component[edge[0]] != bad]
        least: dict[tuple[int, int], int] = {}
        for start, end, weight, _ in edges:
            least[start, end] = min(weight, least.get((start, end), weight))
        neighbours: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for (start, end), weight in least.items():
            neighbours[start].append((end, weight + potentials[start] - potentials[end]))
        return neighbours, potentials, [number in broken for number in component]

    def _distance(self, start: int, end: int) -> int | None:
        """The length of the shortest path; Dijkstra's algorithm over the positive weights (Johnson 1977)."""
        assert self._graph is not None
        neighbours, potentials, _ = self._graph
        found = self._distances.get(start)
        if found is None:
            found = self._distances[start] = [None] * len(self._names)
            queue = [(0, start)]
            while queue:
                length, node = heapq.heappop(queue)
                if found[node] is not None:
                    continue
                found[node] = length
                for other, weight in neighbours[node]:
                    if found[other] is None:
                        heapq.heappush(queue, (length + weight, other))
        length_to = found[end]
        return None if length_to is None else length_to - potentials[start] + potentials[end]


def _components(count: int, edges: Sequence[_Edge]) -> list[int]:
    """For each node the number of its connected component (edges come in pairs, so direction is no matter)."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for start, end, _, _ in edges:
        parent[root(start)] = root(end)
    return [root(node) for node in range(count)]


def _negative_cycle(distances: list[int], edges: Sequence[_Edge]) -> tuple[list[int], list[_Edge] | None]:
    """Potentials d with d[to] <= d[from] + weight for all edges, or a negative cycle's edges in order.

    Bellman-Ford. It may start from any d (``distances``, which is changed); from one that follows a spanning forest's
    middles, almost nothing is left to improve. A cycle among "improved last by" links is negative, whenever one appears
    (Cherkassky, Goldberg 1999).
    """
    by: list[_Edge | None] = [None] * len(distances)
    while True:
        changed = False
        for edge in edges:
            start, end, weight, _ = edge
            length = distances[start] + weight
            if length < distances[end]:
                distances[end] = length
                by[end] = edge
                changed = True
                if start == end:
                    return distances, [edge]
        if not changed:
            return distances, None
        cycle = _cycle_of(by)
        if cycle is not None:
            return distances, cycle


def _guess(count: int, edges: Sequence[_Edge]) -> list[int]:
    """Where each clock may be: along a spanning forest, in the middle of one bound after another."""
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    # The two sides of a claim stand next to each other.
    for index in range(0, len(edges) - 1, 2):
        start, end, high, _ = edges[index]
        middle = (high - edges[index + 1][2]) // 2
        neighbours[start].append((end, middle))
        neighbours[end].append((start, -middle))
    guessed: list[int | None] = [None] * count
    for begin in range(count):
        if guessed[begin] is None:
            guessed[begin] = 0
            queue = [begin]
            for node in queue:
                here = guessed[node]
                assert here is not None
                for other, middle in neighbours[node]:
                    if guessed[other] is None:
                        guessed[other] = here + middle
                        queue.append(other)
    return [0 if value is None else value for value in guessed]


def _cycle_of(by: Sequence[_Edge | None]) -> list[_Edge] | None:
    """A cycle among the links, in the order in which it runs."""
    seen = [0] * len(by)
    for begin in range(len(by)):
        mark = begin + 1
        node = begin
        while not seen[node]:
            seen[node] = mark
            link = by[node]
            if link is None:
                break
            node = link[0]
        else:
            if seen[node] == mark:
                cycle: list[_Edge] = []
                at = node
                while True:
                    link = by[at]
                    assert link is not None
                    cycle.append(link)
                    at = link[0]
                    if at == node:
                        return cycle[::-1]
    return None
