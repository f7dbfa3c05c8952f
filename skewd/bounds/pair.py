"""How far one remote clock is from the local one, with a bound that holds by proof.

**The problem.** Two clocks exchange messages. Each message is stamped when it is sent and when it arrives, by
different clocks, after a delay nobody knows. Assuming the delay is the same both ways is how clock tools get a
single number, and how they get it wrong without noticing.

**The insight.** Nothing arrives before it leaves. Let ``offset(t) = C_remote - C_local`` when the local clock
reads ``t``. A message sent at local ``s`` and received at remote ``r`` proves ``offset(s) <= r - s``, because the
remote clock read at most ``r`` when the message left. One sent at remote ``s`` and received at local ``r`` proves
``offset(r) >= s - r``. No assumption about the network is made, so none can fail. What remains is motion: between
messages the offset moves at the relative drift ``v``, and the drift itself wanders, both within declared limits,
``|v| <= max_drift`` and ``|dv/dt| <= max_wander``.

**The set.** We keep the set of states (offset x, drift v) that are still possible: set-membership filtering
(Schweppe 1968, Bertsekas and Rhodes 1971). A proof made at time ``p`` is a half-plane of states at any other time
``t``, before or after. With ``tau = t - p`` and the drift's path ``v(u)`` from ``v`` at ``t``,

    offset(p) = x - v tau + integral of (wander x weight),   |that integral| <= a tau^2 / 2,   a = max_wander,

and the extreme is attained (wander at its limit all the way), so

    offset(p) <= c   implies   x <= c + v tau + a tau^2 / 2,     and the mirror image below.

This is the exact support function of the reachable set in that direction: the set of reachable (x, v) is no
polygon (its edge is a parabola, reached by bang-bang motion), but each half-plane is carried by exactly as much as
the true set needs, no less (which would be wrong) and no more. Corners would be lost that way over a long silence,
so four more half-planes are computed from the whole set each time it moves: largest and smallest offset,
``max over vertices of (x + v T) + a T^2 / 2`` (less where the drift limit forbids to go on accelerating), and
largest and smallest drift, ``max v + a T``. Hence:

*Theorem.* If the stamps are not later than the sends and not earlier than the receives, and the limits hold, then
the true (offset, drift) lies in the set at every moment, and ``offset(t)`` contains the true offset at every ``t``.
*Proof.* Each half-plane alone contains the true state by the inequalities above; the set is their intersection;
dropping or rounding half-planes outward only enlarges it. QED. The silence after the last message needs no rule of
its own: holdover is what the same set says later. A late or repeated message is simply one more half-plane.

**Limits.** The bound is as good as the declared limits of the two oscillators (100 ppm and 10 ppb/s each are wide
for quartz; a virtual machine that is paused, migrated or whose raw clock jumps violates any). A violation larger
than the set's width empties it, which is counted, and a new set begins; a smaller one may stay unseen. Memory is
constant: at most ``CONSTRAINTS_MAX`` half-planes a side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from skewd.interval import Interval

CONSTRAINTS_MAX = 12
"""Half-planes kept on each side; beyond it the ones that shape the set least are dropped (sound, see the proof)."""

_OUTWARD_NS = 1.0
"""Every half-plane stands this far outward, so that an exactly tight pair of messages does not empty the set."""

_WORTH_A_SEARCH_NS = 100.0
"""Below this there is nothing to gain from knowing where the drift limit stops the wander."""

_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Proof:
    """One inequality about the offset at one local instant.

    ``upper``: offset(local_ns) <= limit_ns; otherwise offset(local_ns) >= limit_ns.
    """

    upper: bool
    local_ns: int
    limit_ns: int


def pair_limits(
    here_drift_ppm: float, here_wander_ppb_per_s: float, there_drift_ppm: float, there_wander_ppb_per_s: float
) -> tuple[float, float]:
    """The limits of a pair's relative motion, from each oscillator's own: (ppm, ppb/s).

    Each oscillator's limits are relative to true time. Seen per *local* second the relative drift is
    (rho_there - rho_here) / rho_here, which for rates within 1 +- d exceeds the sum of the two limits by the
    factor 1 / (1 - d_here); the wander's, by at most the third power of it times (1 + d_there) for the faster
    numerator. The sum alone would be short by 0.02 ppm at 100 ppm each.
    """
    slowest = 1 - here_drift_ppm * 1e-6
    fastest = 1 + max(here_drift_ppm, there_drift_ppm) * 1e-6
    return (
        (here_drift_ppm + there_drift_ppm) / slowest,
        (here_wander_ppb_per_s + there_wander_ppb_per_s) * fastest / slowest**3,
    )


# A vertex of the set: offset less the reference, in ns; drift, in ppb; and which half-plane the edge that starts
# here lies on (None: a limit on the drift).
_Vertex = tuple[float, float, "Proof | None"]


class PairBound:
    """The set of (offset, drift) that two clocks can still have, and its projections.

    Args:
        max_drift_ppm: the pair's limit on the relative drift (see :func:`pair_limits`).
        max_wander_ppb_per_s: the pair's limit on the drift's rate of change.

    All local instants are readings of the local raw clock, all remote ones of the remote raw clock, in ns.

    Raises:
        ValueError: a limit is negative or not finite.
    """

    __slots__ = (
        "_accel",
        "_asked",
        "_drift_max",
        "_latest_ns",
        "_lowers",
        "_reference_ns",
        "_uppers",
        "_vertices",
        "contradictions",
    )

    def __init__(self, *, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        for name, value in (("max_drift_ppm", max_drift_ppm), ("max_wander_ppb_per_s", max_wander_ppb_per_s)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; a limit is a number that is not negative")
        self._drift_max = max_drift_ppm * 1_000.0
        self._accel = float(max_wander_ppb_per_s)
        self.contradictions: int = 0
        """How often the set became empty: each time an assumption broke and a new set was begun."""
        self._begin()

    def _begin(self) -> None:
        self._uppers: list[Proof] = []
        self._lowers: list[Proof] = []
        self._vertices: list[_Vertex] | None = None
        self._asked: tuple[int, list[_Vertex]] | None = None  # the last answer: offset and drift are asked in pairs
        self._latest_ns: int | None = None
        self._reference_ns = 0

    # -- what messages prove -------------------------------------------------------------------------------------

    def outgoing(self, sent_local_ns: int, received_remote_ns: int) -> bool:
        """A message left here at ``sent_local_ns`` (or later) and had arrived there by ``received_remote_ns``.

        Returns False when it contradicts what was known; the set then begins anew from this message alone.
        """
        return self._observe(Proof(True, sent_local_ns, received_remote_ns - sent_local_ns))

    def incoming(self, sent_remote_ns: int, received_local_ns: int) -> bool:
        """A message left there at ``sent_remote_ns`` (or later) and had arrived here by ``received_local_ns``.

        Returns False when it contradicts what was known; the set then begins anew from this message alone.
        """
        return self._observe(Proof(False, received_local_ns, sent_remote_ns - received_local_ns))

    def _observe(self, proof: Proof) -> bool:
        at_ns = proof.local_ns if self._latest_ns is None else max(self._latest_ns, proof.local_ns)
        side = self._uppers if proof.upper else self._lowers
        if proof in side:
            return True
        vertices = self._set_at(at_ns)
        if vertices is None:
            # One side only so far: keep what is tightest by now, whatever the drift was.
            side.append(proof)
            self._latest_ns = at_ns
            if self._uppers and self._lowers:
                return self._settle(at_ns, self._from_proofs(at_ns), proof)
            sign = 1 if proof.upper else -1
            side.sort(key=lambda p: sign * p.limit_ns + self._drift_max * abs(at_ns - p.local_ns) / _SECOND_NS)
            del side[CONSTRAINTS_MAX:]
            return True
        clipped = self._clip(vertices, proof, at_ns)
        side.append(proof)
        return self._settle(at_ns, clipped, proof)

    def _settle(self, at_ns: int, vertices: list[_Vertex], newest: Proof) -> bool:
        """Takes the new set, drops half-planes that no longer shape it; begins anew if it is empty."""
        if not vertices:
            contradictions = self.contradictions + 1
            self._begin()
            self.contradictions = contradictions
            self._observe(newest)
            return False
        # The reference follows the set, so that floats stay small however long this runs.
        shift = round(vertices[0][0])
        if abs(shift) > 1_000_000_000:
            vertices = [(x - shift, v, edge) for x, v, edge in vertices]
            self._reference_ns += shift
        self._vertices = vertices
        self._asked = None
        self._latest_ns = at_ns
        self._uppers, self._lowers = self._shaping(vertices, True), self._shaping(vertices, False)
        return True

    @staticmethod
    def _shaping(vertices: list[_Vertex], upper: bool) -> list[Proof]:
        """The proofs that the set's edges lie on; of too many, those with the longest edges (in drift)."""
        extent: dict[Proof, float] = {}
        for i, (_, v, edge) in enumerate(vertices):
            if edge is not None and edge.upper is upper:
                extent[edge] = extent.get(edge, 0.0) + abs(vertices[(i + 1) % len(vertices)][1] - v)
        kept = sorted(extent, key=lambda proof: -extent[proof])[:CONSTRAINTS_MAX]
        kept.sort(key=lambda proof: proof.local_ns)
        return kept

    # -- what is known -------------------------------------------------------------------------------------------

    def offset(self, at_local_ns: int) -> Interval | None:
        """remote - local at a local instant, before or after the latest message; None while a side is unknown."""
        vertices = self._set_at(at_local_ns)
        if not vertices:
            return None
        low, high = min(x for x, _, _ in vertices), max(x for x, _, _ in vertices)
        return Interval(self._reference_ns + math.floor(low), self._reference_ns + math.ceil(high))

    def drift(self, at_local_ns: int) -> Interval | None:
        """d(offset)/dt at a local instant, in ppb; None while a side is unknown."""
        vertices = self._set_at(at_local_ns)
        if not vertices:
            return None
        return Interval(math.floor(min(v for _, v, _ in vertices)), math.ceil(max(v for _, v, _ in vertices)))

    # -- kept over a restart -------------------------------------------------------------------------------------

    def proofs(self) -> tuple[Proof, ...]:
        """The half-planes that shape the set: all that is worth keeping of it, at most ``2 x CONSTRAINTS_MAX``.

        They hold for ever, so whoever takes them later (:meth:`resume`) need not know when they were given out.
        """
        return tuple(sorted((*self._uppers, *self._lowers), key=lambda proof: proof.local_ns))

    def resume(self, proofs: Iterable[Proof]) -> bool:
        """Takes what :meth:`proofs` of another filter of the same two clocks and limits gave.

        Each is one more inequality about the same offset, before or after what is known. False when they contradict
        each other or what is known; the set then began anew, as with a message.
        """
        before = self.contradictions
        for proof in proofs:
            self._observe(proof)
        return self.contradictions == before

    @property
    def latest_local_ns(self) -> int | None:
        """The latest local instant that a message told of; None before the first."""
        return self._latest_ns

    # -- the set -------------------------------------------------------------------------------------------------

    def _set_at(self, at_ns: int) -> list[_Vertex] | None:
        """The set at ``at_ns``; None while one side is unknown."""
        if self._vertices is None:
            return None
        assert self._latest_ns is not None
        if at_ns == self._latest_ns:
            return self._vertices
        if self._asked is not None and self._asked[0] == at_ns:
            return self._asked[1]
        elapsed = (at_ns - self._latest_ns) / _SECOND_NS
        box = self._derived_box(self._vertices, at_ns, elapsed)
        for proof in (*self._uppers, *self._lowers):
            box = self._clip(box, proof, at_ns)
        # Rounding can in principle empty an almost degenerate set; the derived box alone is sound then.
        found = box or self._derived_box(self._vertices, at_ns, elapsed)
        self._asked = (at_ns, found)
        return found

    def _from_proofs(self, at_ns: int) -> list[_Vertex]:
        """The first set: proofs on both sides, any drift within the limit."""
        self._reference_ns = self._uppers[-1].limit_ns
        span = [
            [
                proof.limit_ns - self._reference_ns + sign * self._drift_max * abs(at_ns - proof.local_ns) / _SECOND_NS
                for proof in side
            ]
            for side, sign in ((self._uppers, 1), (self._lowers, -1))
        ]
        high, low = min(span[0]) + _OUTWARD_NS, max(span[1]) - _OUTWARD_NS
        if low > high:
            return []
        vertices = self._box(at_ns, low, high, -self._drift_max, self._drift_max)
        for proof in (*self._uppers, *self._lowers):
            vertices = self._clip(vertices, proof, at_ns)
        return vertices

    def _box(self, at_ns: int, low: float, high: float, slowest: float, fastest: float) -> list[_Vertex]:
        # The ends in offset are inequalities about the offset at this instant, as messages are: they live on as such.
        upper = Proof(True, at_ns, self._reference_ns + math.ceil(high))
        lower = Proof(False, at_ns, self._reference_ns + math.floor(low))
        return [(low, slowest, None), (high, slowest, upper), (high, fastest, None), (low, fastest, lower)]

    def _derived_box(self, vertices: list[_Vertex], at_ns: int, elapsed: float) -> list[_Vertex]:
        """The set's exact extent in offset and in drift at ``at_ns``, ``elapsed`` seconds later (or earlier)."""
        wander = self._accel * abs(elapsed)
        slowest = max(-self._drift_max, min(v for _, v, _ in vertices) - wander)
        fastest = min(self._drift_max, max(v for _, v, _ in vertices) + wander)
        high = self._farthest([(x, v) for x, v, _ in vertices], elapsed)
        low = -self._farthest([(-x, -v) for x, v, _ in vertices], elapsed)
        # Floats of this size err by less than the outward nanosecond up to offsets of weeks, relative to the
        # reference; scale with them beyond.
        slack = _OUTWARD_NS * 0.01 + (abs(high) + abs(low)) * 1e-14
        return self._box(at_ns, low - slack, high + slack, slowest, fastest)

    def _farthest(self, points: list[tuple[float, float]], elapsed: float) -> float:
        """max over the points' hull of the largest offset reachable after ``elapsed`` seconds.

        Wander at its limit all the way gives x + v T + a T^2 / 2. Where that would break the drift limit, it is
        valid to let the wander act for any ``tau`` <= T only and run at the limit after that:
        x + v tau + a tau^2 / 2 + D (T - tau) bounds the same motion for every tau, and the least over tau is exact
        (the two bounds meet by the minimax theorem: convex in tau, concave in the state). The drift seen
        backwards in time is reversed, hence the sign.
        """
        duration, sign = abs(elapsed), math.copysign(1.0, elapsed)
        accel, limit = self._accel, self._drift_max
        directed = [(x, v * sign) for x, v in points]

        def bound(tau: float) -> float:
            return max(x + v * tau for x, v in directed) + accel * tau * tau / 2 + limit * (duration - tau)

        best = bound(duration)
        if accel * duration * duration > _WORTH_A_SEARCH_NS and max(v for _, v in directed) + accel * duration > limit:
            # Any tau is valid, so an inexact minimum only costs width; 40 ternary steps leave 1e-7 of the way.
            left, right = 0.0, duration
            for _ in range(40):
                third = (right - left) / 3
                if bound(left + third) < bound(right - third):
                    right -= third
                else:
                    left += third
            best = min(best, bound((left + right) / 2))
        return best

    def _clip(self, vertices: list[_Vertex], proof: Proof, at_ns: int) -> list[_Vertex]:
        """The part of the convex set that ``proof`` allows at ``at_ns`` (Sutherland-Hodgman on one edge)."""
        tau = (at_ns - proof.local_ns) / _SECOND_NS
        reach = self._accel * tau * tau / 2 + _OUTWARD_NS
        sign = 1.0 if proof.upper else -1.0
        limit = proof.limit_ns - self._reference_ns
        excess = [sign * (x - limit - v * tau) - reach for x, v, _ in vertices]
        if max(excess) <= 0:
            return vertices
        result: list[_Vertex] = []
        count = len(vertices)
        for i, vertex in enumerate(vertices):
            here, there = excess[i], excess[(i + 1) % count]
            if here <= 0:
                result.append(vertex)
            if (here <= 0) != (there <= 0):
                share = here / (here - there)
                following = vertices[(i + 1) % count]
                result.append(
                    (
                        vertex[0] + share * (following[0] - vertex[0]),
                        vertex[1] + share * (following[1] - vertex[1]),
                        proof if here <= 0 else vertex[2],
                    )
                )
        return result
