"""One claim about two clocks, used at another instant, in either direction.

**The claim.** An owner Y says of a peer P: when Y's raw clock read ``t0``, P's raw clock minus Y's lay in ``offset``,
and it moved by ``drift_ppb`` (per second of Y's raw clock); that rate changes by at most ``wander_ppb_per_s`` a second
and never leaves +- ``drift_limit_ppb``. Let o(y) be P's raw clock minus Y's when Y's reads y, and e = y - t0. Then

    o(t0 + e) <= U(e) = offset.hi + integral from 0 to e of min(limit, drift.hi + wander s) ds            for e >= 0,
    o(t0 - e) <= U(-e) = offset.hi + integral from 0 to e of min(limit, -drift.lo + wander s) ds          for e >= 0,

the second because, walking back in time, the offset changes by minus its rate. The lower side L is the mirror image.
Both integrals have a closed form: a parabola until the limit is reached, a line after it. U is convex: its slope
grows on each side of 0, and at 0 it jumps from drift.lo up to drift.hi.

**Which instant is now?** A node *here* wants P - here at its own raw instant ``now``. Y's reading at that moment is
not known exactly: it is y = now + x, where x = (Y - here) lies in an interval. P's reading is p = y + o(y), and

    y + L(y - t0)  <=  p  <=  y + U(y - t0).

Both sides grow with y, as the limit is far below 10^9 ppb (the slopes are at least 1 - limit > 0). So the largest p
is found at the largest y and the smallest at the smallest, each with *its own* elapsed time: no interval product is
needed, and the second-order term (drift times uncertainty of the instant) is in it exactly. That is :func:`forward`.

**Backwards.** P - here is known and Y - here is wanted, from the same claim (it is Y's, about P). From the same two
inequalities: y is at most the solution of y + L(y - t0) = p.hi, and at least that of y + U(y - t0) = p.lo. Each side
is strictly growing, so the solution is unique; y -> p - L(y - t0) contracts by the factor limit (at most 1/4), and
after a few rounds what it still moves by, r, bounds the error by r / (1 - limit). That is added outward. Nothing is
linearized: rates and instants of the other clock never appear. That is :func:`backward`.

*If the claim is true and x (or p) is in its interval, then so is the result.* Proof: the inequalities above. QED.

Integers throughout, each division rounded outward. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from skewd.interval import Interval

DRIFT_LIMIT_MAX_PPB = 250_000_000
"""The widest limit that a claim may state: a quarter. Clocks are a thousand times better."""

WANDER_MAX_PPB_PER_S = (1 << 32) - 1

_PPB = 1_000_000_000
_HALF = 2 * _PPB * _PPB


@dataclass(frozen=True, slots=True)
class Claim:
    """What an owner says of another clock at one instant of its own raw clock.

    Attributes:
        offset: other - owner's raw clock, ns.
        drift_ppb: how fast that moves, per second of the owner's raw clock; within the limit.
        drift_limit_ppb: what the pair's rate never exceeds (``pair.pair_limits``, rounded up).
        wander_ppb_per_s: how fast the rate may change.

    Raises:
        ValueError: a limit out of range, or a drift beyond its limit.
    """

    offset: Interval
    drift_ppb: Interval
    drift_limit_ppb: int
    wander_ppb_per_s: int

    def __post_init__(self) -> None:
        limit = self.drift_limit_ppb
        if not 0 <= limit <= DRIFT_LIMIT_MAX_PPB:
            raise ValueError(f"a claim's drift limit is between 0 and {DRIFT_LIMIT_MAX_PPB} ppb, not {limit}")
        if not 0 <= self.wander_ppb_per_s <= WANDER_MAX_PPB_PER_S:
            raise ValueError(
                f"a claim's wander is between 0 and {WANDER_MAX_PPB_PER_S} ppb/s, not {self.wander_ppb_per_s}"
            )
        if self.drift_ppb.lo < -limit or self.drift_ppb.hi > limit:
            raise ValueError(
                f"a claim's drift [{self.drift_ppb.lo}, {self.drift_ppb.hi}] ppb exceeds its limit {limit}"
            )

    @classmethod
    def of(
        cls, offset: Interval, drift_ppb: Interval, max_drift_ppm: float, max_wander_ppb_per_s: float
    ) -> Claim | None:
        """The claim of a pair's filter (``pair.PairBound``) and limits (``pair.pair_limits``), rounded outward.

        None when the limits are too wide for any claim.
        """
        limit, wander = math.ceil(max_drift_ppm * 1_000), math.ceil(max_wander_ppb_per_s)
        if limit > DRIFT_LIMIT_MAX_PPB or wander > WANDER_MAX_PPB_PER_S:
            return None
        slowest, fastest = max(-limit, min(limit, drift_ppb.lo)), min(limit, max(-limit, drift_ppb.hi))
        return cls(offset, Interval(slowest, fastest), limit, wander)

    def upper(self, elapsed_ns: int) -> int:
        """U: the largest offset ``elapsed_ns`` of the owner's raw clock after the claim's instant, or before it."""
        if elapsed_ns >= 0:
            return self.offset.hi + _moved(self.drift_ppb.hi, elapsed_ns, self.drift_limit_ppb, self.wander_ppb_per_s)
        return self.offset.hi + _moved(-self.drift_ppb.lo, -elapsed_ns, self.drift_limit_ppb, self.wander_ppb_per_s)

    def lower(self, elapsed_ns: int) -> int:
        """L: the smallest."""
        if elapsed_ns >= 0:
            return self.offset.lo - _moved(-self.drift_ppb.lo, elapsed_ns, self.drift_limit_ppb, self.wander_ppb_per_s)
        return self.offset.lo - _moved(self.drift_ppb.hi, -elapsed_ns, self.drift_limit_ppb, self.wander_ppb_per_s)

    def offset_over(self, elapsed_ns: Interval) -> Interval:
        """The offset at an instant known within an interval. U is convex and L concave: the ends tell."""
        first, last = elapsed_ns.lo, elapsed_ns.hi
        return Interval(min(self.lower(first), self.lower(last)), max(self.upper(first), self.upper(last)))

    def drift_over(self, elapsed_ns: Interval) -> Interval:
        """The rate at such an instant, ppb."""
        longest = max(abs(elapsed_ns.lo), abs(elapsed_ns.hi))
        wander = -(-self.wander_ppb_per_s * longest // _PPB)
        limit = self.drift_limit_ppb
        return Interval(max(-limit, self.drift_ppb.lo - wander), min(limit, self.drift_ppb.hi + wander))


def _moved(rate: int, elapsed: int, limit: int, wander: int) -> int:
    """The integral from 0 to ``elapsed`` (ns, >= 0) of min(limit, rate + wander s), rounded up to ns."""
    if wander * elapsed <= (limit - rate) * _PPB:
        return -(-(2 * _PPB * rate + wander * elapsed) * elapsed // _HALF)
    gain = limit - rate
    return -(-limit * elapsed // _PPB) - gain * gain // (2 * wander)


def forward(claim: Claim, at_ns: int, now_ns: int, owner: Interval) -> Interval:
    """peer - here at here's raw instant ``now_ns``, from owner - here (``owner``) at that instant.

    Args:
        claim: what the owner says of the peer.
        at_ns: the owner's raw instant at which it holds.
    """
    low, high = owner.lo, owner.hi
    elapsed = now_ns - at_ns
    return Interval(low + claim.lower(elapsed + low), high + claim.upper(elapsed + high))


def backward(claim: Claim, at_ns: int, now_ns: int, peer: Interval) -> Interval:
    """owner - here at here's raw instant ``now_ns``, from peer - here (``peer``) at that instant."""
    elapsed = now_ns - at_ns
    middle = claim.offset.midpoint
    low, high = peer.lo - middle, peer.hi - middle
    for _ in range(_ROUNDS):
        found = peer.hi - claim.lower(elapsed + high)
        moved, high = abs(found - high), found
        if moved <= 1:
            break
    high += _remaining(moved)
    for _ in range(_ROUNDS):
        found = peer.lo - claim.upper(elapsed + low)
        moved, low = abs(found - low), found
        if moved <= 1:
            break
    low -= _remaining(moved)
    return Interval(low, high)


_ROUNDS = 12


def _remaining(moved: int) -> int:
    """How far the solution can be from the last value, which differs from the one before by ``moved``.

    d = |last - solution| <= limit x |the one before - solution| + 1 (rounding) <= (moved + d) / 4 + 1, so that
    d <= moved / 3 + 4 / 3.
    """
    return (moved + 1) // 3 + 2


def chain(first_ppb: Interval, second_ppb: Interval) -> Interval:
    """The rate of C seen from A, from B seen from A and C seen from B: (1 + a)(1 + b) - 1, outward, ppb."""
    products = [(_PPB + a) * (_PPB + b) for a in (first_ppb.lo, first_ppb.hi) for b in (second_ppb.lo, second_ppb.hi)]
    return Interval(min(products) // _PPB - _PPB, -(-max(products) // _PPB) - _PPB)


def unchain(whole_ppb: Interval, second_ppb: Interval) -> Interval:
    """The rate of B seen from A, from C seen from A and C seen from B: (1 + c) / (1 + b) - 1, outward, ppb."""
    least, most = _PPB + second_ppb.lo, _PPB + second_ppb.hi
    low, high = _PPB + whole_ppb.lo, _PPB + whole_ppb.hi
    return Interval(
        low * _PPB // (most if low >= 0 else least) - _PPB,
        -(-high * _PPB // (least if high >= 0 else most)) - _PPB,
    )
