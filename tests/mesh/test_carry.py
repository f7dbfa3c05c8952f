"""A claim holds at any other instant, in both directions, for every motion within the limits."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds.carry import Claim, backward, chain, forward, unchain
from skewd.interval import Interval
from tests.mesh.worlds import SECOND, honest_claim, member, true_drift, true_offset

HERE_SLACK = 4  # whole ns of two readings, and the floats of the made-up world


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), then=st.floats(-590, 0), now=st.floats(-590, 0))
def test_carried_claims_hold_at_other_instants(seed: int, then: float, now: float) -> None:
    choose = random.Random(seed)
    here, owner, peer = (member(choose, name) for name in ("here", "owner", "peer"))
    claim = honest_claim(choose, owner, peer, then, tight=0.8)
    at_ns, now_ns = owner.clock.raw(then), here.clock.raw(now)

    def around(other_offset: float) -> Interval:
        slack = 0 if choose.random() < 0.5 else choose.randrange(3_000_000)
        return Interval(math.floor(other_offset) - HERE_SLACK - slack, math.ceil(other_offset) + HERE_SLACK)

    to_owner, to_peer = true_offset(here, owner, now), true_offset(here, peer, now)
    forth = forward(claim, at_ns, now_ns, around(to_owner))
    assert forth.lo <= to_peer <= forth.hi
    back = backward(claim, at_ns, now_ns, around(to_peer))
    assert back.lo <= to_owner <= back.hi


@settings(max_examples=300, deadline=None)
@given(
    limit=st.integers(0, 250_000_000),
    wander=st.integers(0, 1 << 32) | st.integers(0, 50),
    offset=st.integers(-(1 << 60), 1 << 60),
    width=st.integers(0, 10**9),
    elapsed=st.integers(-(10**13), 10**13),
    ends=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_forward_and_backward_agree_at_every_limit(
    limit: int, wander: int, offset: int, width: int, elapsed: int, ends: tuple[float, float]
) -> None:
    low, high = sorted(int(end * limit) for end in ends)
    claim = Claim(Interval(offset, offset + width), Interval(low, high), limit, min(wander, (1 << 32) - 1))
    owner = Interval(-500, 1_000_000)
    peer = forward(claim, 0, elapsed, owner)
    again = backward(claim, 0, elapsed, peer)
    # Whoever was possible is still possible.
    assert again.lo <= owner.lo
    assert owner.hi <= again.hi
    assert peer.width >= width
    there_again = forward(claim, 0, elapsed, again)
    assert there_again.lo <= peer.lo <= peer.hi <= there_again.hi


def test_the_reach_is_the_exact_integral_of_the_fastest_motion() -> None:
    claim = Claim(Interval(0, 0), Interval(-100, 200), 1_000, 10)
    # 20 s at 200 rising by 10 a second, 80 s until the limit of 1,000 ppb is reached.
    assert claim.upper(20 * SECOND) == 200 * 20 + 10 * 20 * 20 // 2
    assert claim.upper(100 * SECOND) == (200 * 80 + 10 * 80 * 80 // 2) + 1_000 * 20
    assert claim.lower(20 * SECOND) == -(100 * 20 + 10 * 20 * 20 // 2)
    # Backwards in time a positive rate lowers the offset.
    assert claim.lower(-20 * SECOND) == -(200 * 20 + 10 * 20 * 20 // 2)
    assert claim.upper(-20 * SECOND) == 100 * 20 + 10 * 20 * 20 // 2
    assert claim.drift_over(Interval(-SECOND, 20 * SECOND)) == Interval(-300, 400)
    assert claim.offset_over(Interval(-20 * SECOND, 20 * SECOND)) == Interval(-6_000, 6_000)


def test_rates_chain_and_unchain() -> None:
    choose = random.Random(5)
    a, b, c = (member(choose, name) for name in "abc")
    one, two = true_drift(a, b, 0), true_drift(b, c, 0)
    whole = chain(Interval(math.floor(one), math.ceil(one)), Interval(math.floor(two), math.ceil(two)))
    assert whole.lo <= true_drift(a, c, 0) <= whole.hi
    assert whole.width <= 4
    back = unchain(whole, Interval(math.floor(two), math.ceil(two)))
    assert back.lo <= one <= back.hi
    assert back.width <= 8


@pytest.mark.parametrize(
    ("drift", "limit", "wander", "named"),
    [((0, 0), -1, 0, "limit"), ((0, 0), 1 << 40, 0, "limit"), ((-5, 5), 4, 0, "drift"), ((0, 0), 0, -1, "wander")],
)
def test_impossible_claims_are_errors(drift: tuple[int, int], limit: int, wander: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Claim(Interval(0, 0), Interval(*drift), limit, wander)
