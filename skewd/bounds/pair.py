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
(Schweppe 1968, Bertsekas and Rhodes 1971). A proof made at time ``p`` is a half-plane of states at any later time
``t``. With ``tau = t - p`` and the drift's path ending in ``v`` at ``t``,

    offset(p) = x - v tau + integral of (wander x weight),   |that integral| <= a tau^2 / 2,   a = max_wander,

and the extreme is attained (wander at its limit all the way), so

    offset(p) <= c   implies   x <= c + v tau + a tau^2 / 2,     and the mirror image below.

This is the exact support function of the reachable set in that direction: the set of reachable (x, v) is no
polygon (its edge is a parabola, reached by bang-bang motion), but each half-plane is carried by exactly as much as
the true set needs, no less (which would be wrong) and no more.

**Its shape.** Seen as a function of v, each upper proof is a line that rises with slope ``tau >= 0``, so the upper
edge U(v), their minimum, is concave and never falls, and the lower edge L(v) is convex and never falls. Between them
and the two ends of the drift's range lies the set: a lens that leans to the right. Three things follow, and they are
why an observation costs microseconds:

- Two neighbouring lines of U meet where ``v`` makes them equal; carried on by T, they meet at ``v - a T`` (put
  ``tau + T`` for tau: the terms in T cancel but for this). All corners of U move alike, those of L by ``+ a T``, and
  the ends of the drift's range outward by ``a T`` as well, up to the drift limit. So no corner overtakes another, and
  carrying the set on is one subtraction per corner. Only the drift limit ever cuts some off.
- The largest offset and the largest drift are one and the same corner, the right end of U. The largest offset at any
  later time is that corner's, wander at its limit until the drift limit stops it: a formula, not a search. It is
  exact, and when the set is carried on it becomes a line of U itself, since the carried lines alone would forget it.
- A message that this largest offset already implies is answered by that formula and changes nothing at all: the set
  then simply stays where it is, at an earlier time.

The lower edge is the upper one of the mirror image (-x, -v): one piece of code serves both.

*Theorem.* If the stamps are not later than the sends and not earlier than the receives, and the limits hold, then
the true (offset, drift) lies in the set at every moment, and ``offset(t)`` contains the true offset at every ``t``.
*Proof.* Each line alone holds the true state by the inequalities above, the ends of the drift's range by |dv/dt| <= a,
the largest offset by the argument of :meth:`PairBound._reach`; the set is their intersection, and what is left out
only enlarges it. QED. An error in a corner's position is on the safe side too: left or right of the true corner, the
line taken there is above the minimum of both. The silence after the last message needs no rule of its own: holdover
is what the same set says later. A late message is one more line, with its own slope; a repeated one changes nothing.

**Limits.** The bound is as good as the declared limits of the two oscillators (100 ppm and 10 ppb/s each are wide
for quartz; a virtual machine that is paused, migrated or whose raw clock jumps violates any). A violation larger
than the set's width empties it, which is counted, and a new set begins; a smaller one may stay unseen. Memory is
constant: at most ``CONSTRAINTS_MAX`` lines a side; of too many, the one goes whose absence enlarges the set least.
Floats are relative to an integer reference that follows the set, instants are integers: nothing is lost in years.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from skewd.interval import Interval

CONSTRAINTS_MAX = 12
"""Lines kept on each side; beyond it the ones that shape the set least are dropped (sound, see the proof)."""

_OUTWARD_NS = 1.0
"""Every line stands this far outward, so that an exactly tight pair of messages does not empty the set."""

_WORTH_NS = 0.1
"""A line that would cut off less is not worth keeping."""

_ROUNDING = 1e-15
"""Allowance for the floats' own rounding, relative to the terms of a line: over years of silence they grow large."""

_BACK_MAX_S = 1_000.0
_REFERENCE_EVERY_NS = 1e9
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Proof:
    """One inequality about the offset at one local instant.

    ``upper``: offset(local_ns) <= limit_ns; otherwise offset(local_ns) >= limit_ns.
    """

    upper: bool
    local_ns: int
    limit_ns: int


class PairState(NamedTuple):
    """All that a :class:`PairBound` is, to the last bit: what a copy needs to answer as the original does for ever.

    Attributes:
        drift_max_ppb, wander_max_ppb_per_s: the limits, in the units in which they are kept.
        at_ns: the instant at which the set is kept; ``latest_ns`` that of the latest message, None before the first.
        reference_ns: the offset that the lines' floats are relative to.
        whole: whether both sides are known.
        slowest_ppb, fastest_ppb: the ends of the drift's range.
        upper, lower: (local instant, c) of each side's lines; ``upper_corners``, ``lower_corners`` their corners, ppb.
        contradictions: how often the set became empty.
    """

    drift_max_ppb: float
    wander_max_ppb_per_s: float
    at_ns: int
    latest_ns: int | None
    reference_ns: int
    whole: bool
    slowest_ppb: float
    fastest_ppb: float
    upper: tuple[tuple[int, float], ...]
    upper_corners: tuple[float, ...]
    lower: tuple[tuple[int, float], ...]
    lower_corners: tuple[float, ...]
    contradictions: int


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


class _Edge:
    """One side of the set at one instant, seen so that it is the upper one: y = sign x, w = sign v.

    Attributes:
        sign: 1 for the upper side, -1 for the lower one.
        proofs: (local instant p, c in ns), oldest first: at p, y <= c. As lines in w: steepest first.
        corners: the drifts w where one proof's line gives way to the next; one fewer than the proofs.
    """

    __slots__ = ("corners", "proofs", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.proofs: list[tuple[int, float]] = []
        self.corners: list[float] = []

    def trim(self, least: float, most: float) -> None:
        """Leaves the lines that rule somewhere between these drifts."""
        corners = self.corners
        if corners and (corners[0] <= least or corners[-1] >= most):
            first, last = bisect_right(corners, least), bisect_left(corners, most)
            last = max(first, last)
            self.proofs = self.proofs[first : last + 1]
            self.corners = corners[first:last]


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
        "_at_ns",
        "_drift_max",
        "_fastest",
        "_latest_ns",
        "_lower",
        "_reference_ns",
        "_slowest",
        "_upper",
        "_whole",
        "contradictions",
        "revision",
    )

    def __init__(self, *, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        for name, value in (("max_drift_ppm", max_drift_ppm), ("max_wander_ppb_per_s", max_wander_ppb_per_s)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; a limit is a number that is not negative")
        self._drift_max = max_drift_ppm * 1_000.0
        self._accel = float(max_wander_ppb_per_s)
        self.contradictions: int = 0
        """How often the set became empty: each time an assumption broke and a new set was begun."""
        self.revision: int = 0
        """Another number whenever the set is another one. What leaves it as it is changes no answer, ever: a message
        that left this number alone might as well never have come."""
        self._begin()

    def _begin(self) -> None:
        self.revision += 1
        self._upper, self._lower = _Edge(1), _Edge(-1)
        self._whole = False  # whether both sides are known, so that there is a set
        self._slowest, self._fastest = -self._drift_max, self._drift_max
        self._at_ns = 0  # the instant at which the set is kept: that of the latest message that changed it
        self._latest_ns: int | None = None
        self._reference_ns = 0

    # -- what messages prove -------------------------------------------------------------------------------------

    def outgoing(self, sent_local_ns: int, received_remote_ns: int) -> bool:
        """A message left here at ``sent_local_ns`` (or later) and had arrived there by ``received_remote_ns``.

        Returns False when it contradicts what was known; the set then begins anew from this message alone.
        """
        return self._observe(self._upper, self._lower, sent_local_ns, received_remote_ns - sent_local_ns)

    def incoming(self, sent_remote_ns: int, received_local_ns: int) -> bool:
        """A message left there at ``sent_remote_ns`` (or later) and had arrived here by ``received_local_ns``.

        Returns False when it contradicts what was known; the set then begins anew from this message alone.
        """
        return self._observe(self._lower, self._upper, received_local_ns, sent_remote_ns - received_local_ns)

    def _observe(self, edge: _Edge, other: _Edge, local_ns: int, limit_ns: int) -> bool:
        """At ``local_ns`` the offset was at most (upper edge) or at least (lower one) ``limit_ns``."""
        if self._latest_ns is None:
            self._reference_ns = limit_ns
            self._latest_ns = local_ns
        elif local_ns > self._latest_ns:
            self._latest_ns = local_ns
        most = edge.sign * (limit_ns - self._reference_ns) + _OUTWARD_NS
        if not self._whole:
            self.revision += 1
            held = self._first(edge, other, local_ns, most)
        else:
            if local_ns >= self._at_ns:
                elapsed = (local_ns - self._at_ns) / _SECOND_NS
                if most >= self._reach(edge, elapsed) - _WORTH_NS:
                    return True
                self.revision += 1
                self._carry(local_ns, elapsed, other)
                most = edge.sign * (limit_ns - self._reference_ns) + _OUTWARD_NS
            held = self._cut(edge, other, local_ns, most)
        if not held:
            # Nothing known before may be right: begin anew, from this message alone.
            self.contradictions += 1
            self._begin()
            sides = (self._upper, self._lower) if edge.sign > 0 else (self._lower, self._upper)
            self._observe(*sides, local_ns, limit_ns)
        return held

    def _first(self, edge: _Edge, other: _Edge, local_ns: int, most: float) -> bool:
        """A message while one side is unknown: the tightest by now are kept, whatever the drift was."""
        latest = self._latest_ns
        assert latest is not None
        if (local_ns, most) not in edge.proofs:
            edge.proofs.append((local_ns, most))
        if len(edge.proofs) > CONSTRAINTS_MAX:
            edge.proofs.sort(key=lambda proof: proof[1] + self._drift_max * (latest - proof[0]) / _SECOND_NS)
            edge.proofs.pop()
        if not other.proofs:
            return True
        # Both sides: any drift within the limit, one line on each side, and the others cut in.
        proofs = [(side, opposite, proof) for side, opposite in ((edge, other), (other, edge)) for proof in side.proofs]
        self._whole, self._at_ns = True, latest
        for side in (edge, other):
            side.proofs = side.proofs[-1:]
        if not self._narrow(edge, other, *self._line(edge.proofs[0])):
            return False
        return all(self._cut(side, opposite, *proof) for side, opposite, proof in proofs)

    def drift_within(self, at_local_ns: int, ppb: Interval) -> bool:
        """Takes it as known that the drift at a local instant lay in ``ppb``; nothing while a side is unknown.

        Returns False when it contradicts what was known; the set then begins anew.
        """
        if not self._whole:
            return True
        wander = self._accel * abs(at_local_ns - self._at_ns) / _SECOND_NS
        slowest, fastest = max(self._slowest, ppb.lo - wander), min(self._fastest, ppb.hi + wander)
        if slowest > fastest:
            self.contradictions += 1
            self._begin()
            return False
        self.revision += 1
        # Any drift in the range is possible with some offset: none of the set's corners needs to be sought.
        self._slowest, self._fastest = slowest, fastest
        for edge in (self._upper, self._lower):
            edge.trim(*self._range(edge))
        return True

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether both sides are known, so that :meth:`offset` and :meth:`drift` are not None."""
        return self._whole

    def offset(self, at_local_ns: int) -> Interval | None:
        """remote - local at a local instant, before or after the latest message; None while a side is unknown."""
        if not self._whole:
            return None
        elapsed = (at_local_ns - self._at_ns) / _SECOND_NS
        high, low = self._reach(self._upper, elapsed), -self._reach(self._lower, elapsed)
        return Interval(self._reference_ns + math.floor(low), self._reference_ns + math.ceil(high))

    def drift(self, at_local_ns: int) -> Interval | None:
        """d(offset)/dt at a local instant, in ppb; None while a side is unknown."""
        if not self._whole:
            return None
        wander = self._accel * abs(at_local_ns - self._at_ns) / _SECOND_NS
        slowest, fastest = max(-self._drift_max, self._slowest - wander), min(self._drift_max, self._fastest + wander)
        return Interval(math.floor(slowest), math.ceil(fastest))

    def instants(self, *, upper: bool) -> tuple[int, ...]:
        """The local instants of one side's lines. The last line gives that end of :meth:`offset` from now on.

        A line has the instant of the message that told it (when it left here, or when it arrived), or that of a later
        message of the other side, if it carries an older line on.
        """
        return tuple([local_ns for local_ns, _ in (self._upper if upper else self._lower).proofs])

    # -- kept over a restart -------------------------------------------------------------------------------------

    def proofs(self) -> tuple[Proof, ...]:
        """The half-planes that shape the set: all that is worth keeping of it, at most ``2 x CONSTRAINTS_MAX``.

        A line of an edge is an inequality about the offset at its own instant, whether a message told it or it
        followed from what was known then; rounded outward here. So is where the offset must have been before, on any
        motion that leads into the set. They hold for ever, so whoever takes them later
        (:meth:`resume`) need not know when they were given out.
        """
        found = [Proof(True, local_ns, self._reference_ns + math.ceil(c)) for local_ns, c in self._upper.proofs] + [
            Proof(False, local_ns, self._reference_ns - math.ceil(c)) for local_ns, c in self._lower.proofs
        ]
        # The ends of the drift's range are no lines, but where the offset was a while ago tells most of them.
        now = self.offset(self._at_ns)
        if now is not None:
            best = math.sqrt(2 * now.width / self._accel) if self._accel else _BACK_MAX_S
            for factor in (1.0, 0.5, 2.0):
                if len(found) <= 2 * CONSTRAINTS_MAX - 2:
                    at_ns = self._at_ns - round(min(best * factor, _BACK_MAX_S) * _SECOND_NS)
                    then = self.offset(at_ns)
                    assert then is not None
                    found += [Proof(True, at_ns, then.hi), Proof(False, at_ns, then.lo)]
        return tuple(sorted(found, key=lambda proof: proof.local_ns))

    def resume(self, proofs: Iterable[Proof]) -> bool:
        """Takes what :meth:`proofs` of another filter of the same two clocks and limits gave.

        Each is one more inequality about the same offset, before or after what is known. False when they contradict
        each other or what is known; the set then began anew, as with a message.
        """
        before = self.contradictions
        for proof in proofs:
            there_ns = proof.local_ns + proof.limit_ns
            if proof.upper:
                self.outgoing(proof.local_ns, there_ns)
            else:
                self.incoming(there_ns, proof.local_ns)
        return self.contradictions == before

    def state(self) -> PairState:
        """All that this filter is; :meth:`restored` makes another one that is the same to the last bit."""
        upper, lower = self._upper, self._lower
        return PairState(
            self._drift_max,
            self._accel,
            self._at_ns,
            self._latest_ns,
            self._reference_ns,
            self._whole,
            self._slowest,
            self._fastest,
            tuple(upper.proofs),
            tuple(upper.corners),
            tuple(lower.proofs),
            tuple(lower.corners),
            self.contradictions,
        )

    @classmethod
    def restored(cls, state: PairState) -> PairBound:
        """The filter whose :meth:`state` this was.

        Raises:
            ValueError: it is the state of no filter.
        """
        floats = (
            *(state.drift_max_ppb, state.wander_max_ppb_per_s, state.slowest_ppb, state.fastest_ppb),
            *(c for _, c in (*state.upper, *state.lower)),
            *(*state.upper_corners, *state.lower_corners),
        )
        sides = ((state.upper, state.upper_corners), (state.lower, state.lower_corners))
        known = all(lines and len(corners) == len(lines) - 1 for lines, corners in sides)
        if (
            not all(map(math.isfinite, floats))
            or any(len(lines) > CONSTRAINTS_MAX + 1 for lines, _ in sides)
            or (state.whole and not known)
            or state.slowest_ppb > state.fastest_ppb
            or (state.latest_ns is None) != (not state.upper and not state.lower)
        ):
            raise ValueError("these numbers are the state of no filter")
        pair = cls(max_drift_ppm=0, max_wander_ppb_per_s=state.wander_max_ppb_per_s)
        if state.drift_max_ppb < 0:
            raise ValueError("these numbers are the state of no filter")
        pair._drift_max = state.drift_max_ppb
        pair._at_ns, pair._latest_ns, pair._reference_ns = state.at_ns, state.latest_ns, state.reference_ns
        pair._whole, pair._slowest, pair._fastest = state.whole, state.slowest_ppb, state.fastest_ppb
        for edge, (lines, corners) in zip((pair._upper, pair._lower), sides, strict=True):
            edge.proofs, edge.corners = list(lines), list(corners)
        pair.contradictions = state.contradictions
        return pair

    @property
    def latest_local_ns(self) -> int | None:
        """The latest local instant that a message told of; None before the first."""
        return self._latest_ns

    # -- the set -------------------------------------------------------------------------------------------------

    def _line(self, proof: tuple[int, float]) -> tuple[float, float]:
        """(C, tau): what a proof says at the set's instant, y <= C + w tau."""
        tau = (self._at_ns - proof[0]) / _SECOND_NS
        inflated = self._accel * tau * tau / 2
        return proof[1] + inflated + _ROUNDING * (inflated + self._drift_max * tau), tau

    def _range(self, edge: _Edge) -> tuple[float, float]:
        """The drift's range, as this side sees it."""
        return (self._slowest, self._fastest) if edge.sign > 0 else (-self._fastest, -self._slowest)

    def _outline(self, edge: _Edge) -> tuple[list[float], list[float]]:
        """One side's corners, its ends included, from left to right: their drifts w and their offsets y."""
        least, most = self._range(edge)
        drifts = [least, *edge.corners, most]
        at_ns, half, limit = self._at_ns, self._accel / 2, self._drift_max
        offsets: list[float] = []
        constant = tau = 0.0
        for (local_ns, c), w in zip(edge.proofs, drifts, strict=False):
            # As in _line, which a call for each would make twice as slow.
            tau = (at_ns - local_ns) / _SECOND_NS
            inflated = half * tau * tau
            constant = c + inflated + _ROUNDING * (inflated + limit * tau)
            offsets.append(constant + w * tau)
        offsets.append(constant + most * tau)
        return drifts, offsets

    def _reach(self, edge: _Edge, elapsed: float) -> float:
        """The largest y that the set allows ``elapsed`` seconds after its instant (before it, if negative).

        A motion from (y, w) with its wander at the limit for any ``tau`` <= T, and at the drift limit D from there,
        bounds every other: y + w tau + a tau^2 / 2 + D (T - tau), for each tau; the least over tau is exact. From
        the right end of the edge, where both y and w are largest, it is the tau at which D is reached. Backwards in
        time the drift counts the other way, and the corner to start from depends on tau: convex, so it is sought.
        """
        accel, limit = self._accel, self._drift_max
        if elapsed >= 0:
            w = self._fastest if edge.sign > 0 else -self._slowest
            constant, slope = self._line(edge.proofs[-1])
            y = constant + w * slope
            tau = elapsed if accel * elapsed <= limit - w else max(limit - w, 0.0) / accel if accel else elapsed
            found = y + w * tau + accel * tau * tau / 2 + limit * (elapsed - tau)
        else:
            duration = -elapsed
            drifts, offsets = self._outline(edge)

            def corner(tau: float) -> tuple[float, float]:
                return max((y - w * tau, w) for w, y in zip(drifts, offsets, strict=True))

            y, w = corner(duration)
            found = y + accel * duration * duration / 2
            if accel * duration - w > limit:
                # The drift limit comes before the end. Any tau is valid, so an inexact one only costs width.
                left, right = 0.0, duration
                for _ in range(24):
                    tau = (left + right) / 2
                    y, w = corner(tau)
                    found = min(found, y + accel * tau * tau / 2 + limit * (duration - tau))
                    left, right = (left, tau) if accel * tau - w > limit else (tau, right)
        return found + 0.01 + abs(found) * 1e-14

    def _carry(self, to_ns: int, elapsed: float, other: _Edge) -> None:
        """Carries the set on to ``to_ns``; the edge that is not ``other`` is about to get a line of this instant."""
        reach = self._reach(other, elapsed)
        wander = self._accel * elapsed
        self._slowest = max(-self._drift_max, self._slowest - wander)
        self._fastest = min(self._drift_max, self._fastest + wander)
        self._at_ns = to_ns
        for edge in (self._upper, self._lower):
            edge.corners = [corner - wander for corner in edge.corners]
            edge.trim(*self._range(edge))
        self._bend(other, to_ns, reach)
        if abs(reach) > _REFERENCE_EVERY_NS:
            self._follow(round(other.sign * reach))

    def _follow(self, shift_ns: int) -> None:
        """Moves the reference, so that floats stay small however long this runs."""
        self._reference_ns += shift_ns
        for edge in (self._upper, self._lower):
            edge.proofs = [(local_ns, c - edge.sign * shift_ns) for local_ns, c in edge.proofs]

    def _cut(self, edge: _Edge, other: _Edge, local_ns: int, most: float) -> bool:
        """The part of the set that a proof allows; False when nothing is left."""
        line = self._line((local_ns, most))
        if not self._bend(edge, local_ns, most):
            return True
        self.revision += 1
        return self._narrow(edge, other, *line)

    def _bend(self, edge: _Edge, local_ns: int, most: float) -> bool:
        """Puts a proof's line into an edge, where it lies below it; False when that is nowhere."""
        constant, tau = self._line((local_ns, most))
        drifts, offsets = self._outline(edge)
        above = [y - constant - w * tau for w, y in zip(drifts, offsets, strict=True)]
        if max(above) <= _WORTH_NS:
            return False
        found = _not_negative(drifts, above)
        assert found is not None
        begin, end = found
        proofs, corners = edge.proofs, edge.corners
        kept, kept_corners = [(local_ns, most)], []
        if begin > drifts[0]:
            count = bisect_left(corners, begin)
            kept = [*proofs[: count + 1], *kept]
            kept_corners = [*corners[:count], begin]
        if end < drifts[-1]:
            count = bisect_right(corners, end)
            kept += proofs[count:]
            kept_corners += [end, *corners[count:]]
        edge.proofs, edge.corners = kept, kept_corners
        if len(kept) > CONSTRAINTS_MAX:
            self._simplify(edge)
        return True

    def _narrow(self, edge: _Edge, other: _Edge, constant: float, tau: float) -> bool:
        """Leaves the drifts at which a line of ``edge`` is not beyond the other side; False when there are none."""
        drifts, offsets = self._outline(other)  # mirrored: the line is y >= -C + w tau there
        found = _not_negative(drifts, [y + constant - w * tau for w, y in zip(drifts, offsets, strict=True)])
        if found is None:
            return False
        if found[0] > drifts[0] or found[1] < drifts[-1]:
            self._slowest, self._fastest = found if other.sign > 0 else (-found[1], -found[0])
            for side in (edge, other):
                side.trim(*self._range(side))
        return True

    def _simplify(self, edge: _Edge) -> None:
        """Drops the line whose absence moves the edge out least; the first and the last stay."""
        lines = [self._line(proof) for proof in edge.proofs]
        best, place, meets = math.inf, 0, 0.0
        for index in range(1, len(lines) - 1):
            (before, steep), (constant, tau), (after, flat) = lines[index - 1 : index + 2]
            if steep > flat:
                w = (after - before) / (steep - flat)
                growth = before + w * steep - constant - w * tau
                if growth < best:
                    best, place, meets = growth, index, w
        del edge.proofs[place]
        edge.corners[max(place - 1, 0) : place + 1] = [meets] if place else []


def _not_negative(places: list[float], values: list[float]) -> tuple[float, float] | None:
    """Where a concave function, linear between ``places``, is not negative; None when that is nowhere."""
    last = len(values) - 1
    left, right = 0, last
    while left <= last and values[left] < 0:
        left += 1
    if left > last:
        return None
    while values[right] < 0:
        right -= 1
    begin, end = places[left], places[right]
    if left > 0:
        inside, outside = values[left], values[left - 1]
        begin += (places[left - 1] - begin) * (inside / (inside - outside))
    if right < last:
        inside, outside = values[right], values[right + 1]
        end += (places[right + 1] - end) * (inside / (inside - outside))
    return begin, max(begin, end)
