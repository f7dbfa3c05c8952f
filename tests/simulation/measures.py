"""Beyond a yes or no: how wide bounds are, and what becomes of them when a declared limit is broken."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, replace

from skewd.bounds.pair import PairBound, pair_limits
from tests.simulation.optimum import Optimum
from tests.simulation.runner import Scenario, World, fresh
from tests.simulation.world import SECOND, Wire

BASELINE_PPM = 15
"""What a common clock client adds per second of age; both ends: twice that."""

SILENCE_S = 60

COMPARED_EVERY = 20
"""Exchanges between two comparisons with the narrowest possible."""


@dataclass(frozen=True)
class Widths:
    """Medians over a run at one exchange a second, after the first minute.

    Attributes:
        rtt_us: least round trip; ``jitter_us``: mean of the exponential jitter, each way.
        to_rtt: width / least round trip seen.
        added_us: by a minute of silence.
        narrower, narrower_silent: how much narrower than min(delay / 2 + 15 ppm x age) each way over the same last
            eight exchanges, and the same after a minute of silence (shares).
        to_optimum, to_optimum_silent: the worst ratio to the narrowest width that any sound filter can give
            (``optimum.py``), at once and after a minute of silence.
    """

    rtt_us: float
    jitter_us: float
    to_rtt: float
    added_us: float
    narrower: float
    narrower_silent: float
    to_optimum: float
    to_optimum_silent: float


def widths(rtt_us: float, jitter_us: float, seed: int = 1, duration_s: float = 900, style: str = "bang") -> Widths:
    """One row of the table of widths."""
    wire = Wire(minimum_us=rtt_us / 2, jitter_us=jitter_us)
    world = World(Scenario("widths", style=style, wire=wire, duration_s=duration_s), seed)
    pair = fresh(world.scenario, PairBound)
    last: deque[tuple[int, int]] = deque(maxlen=8)  # (delay, received)
    possible = Optimum(*pair_limits(*world.scenario.limits, *world.scenario.limits))
    least = 1 << 62
    compared: list[tuple[float, float]] = []
    ours: list[int] = []
    added: list[int] = []
    theirs: list[float] = []
    later: list[float] = []
    for count, (t1, t2, t3, t4) in enumerate(world.exchanges()):
        sent, received = world.here.raw(t1), world.here.raw(t4)
        arrived, left = world.there.raw(t2), world.there.raw(t3)
        pair.outgoing(sent, arrived)
        pair.incoming(left, received)
        possible.at_most(sent, arrived - sent)
        possible.at_least(received, left - received)
        delay = (received - sent) - (left - arrived)
        least = min(least, delay)
        last.append((delay, received))
        if t1 < 60 * SECOND:
            continue
        # At any moment of the second that follows, not at the best one.
        now = received + round(world.choose.random() * 0.99 * SECOND)
        found, silent = pair.offset(now), pair.offset(now + SILENCE_S * SECOND)
        assert found is not None
        assert silent is not None
        grows = 2 * BASELINE_PPM * 1e-6
        common = min(was + grows * (now - at) for was, at in last)
        ours.append(found.width)
        if count % COMPARED_EVERY == 0:
            asked = ((now, found), (now + SILENCE_S * SECOND, silent))
            assert all(possible.holds(at, bound) for at, bound in asked)
            compared.append((asked[0][1].width / possible.width_ns(now), silent.width / possible.width_ns(asked[1][0])))
        added.append(silent.width - found.width)
        theirs.append(found.width / common)
        later.append(silent.width / (common + grows * SILENCE_S * SECOND))
    return Widths(
        rtt_us,
        jitter_us,
        statistics.median(ours) / least,
        statistics.median(added) / 1000,
        1 - statistics.median(theirs),
        1 - statistics.median(later),
        max(ratio for ratio, _ in compared),
        max(ratio for _, ratio in compared),
    )


@dataclass
class Break:
    """What followed a broken limit.

    Attributes:
        exchanges: until it was seen; None if never.
        excess_us: how far outside the bound the truth was at worst.
        lasted_s: from the break until the truth was inside again for good.
        size_us: of the step.
    """

    exchanges: int | None
    excess_us: float
    lasted_s: float
    size_us: float


def after_step(scenario: Scenario, seed: int, share: float) -> Break:
    """The peer's raw clock jumps by ``share`` of (the width + the round trip) of the exchange that follows."""
    world = World(scenario, seed)
    pair = fresh(scenario, PairBound)
    begin = 60 + world.choose.randrange(40)
    jumped = -1
    size = 0
    jump_ns = 0
    seen: int | None = None
    worst, ended = 0.0, 0
    base = world.there.epoch_ns - world.here.epoch_ns
    for count, (t1, t2, t3, t4) in enumerate(world.exchanges()):
        sent, received = world.here.raw(t1), world.here.raw(t4)
        if count == begin:
            before = pair.offset(received)
            assert before is not None
            size = round(share * (before.width + (t4 - t1) - (t3 - t2))) + 1
            jump_ns, jumped = t1 - 1, count
            world.there.jump(jump_ns, size * world.choose.choice((-1, 1)))
        pair.outgoing(sent, world.there.raw(t2))
        pair.incoming(world.there.raw(t3), received)
        if jumped < 0:
            continue
        if seen is None and pair.contradictions:
            seen = count - jumped + 1
        for step in range(8):
            at = t4 + step * round(scenario.interval_s * SECOND) // 8
            found = pair.offset(world.here.raw(at))
            if found is None:
                continue
            truth = world.there.deviation(at) - world.here.deviation(at)
            excess = max(found.lo - base - truth, truth - (found.hi - base))
            if excess > 0:
                worst, ended = max(worst, excess), at
        if count > begin + 200:
            break
    return Break(seen, worst / 1000, max(ended - jump_ns, 0) / SECOND, size / 1000)


def beyond(scenario: Scenario, seed: int, drift: float, wander: float) -> Break:
    """Oscillators that move by more than they declare: ``drift`` and ``wander`` times their limits."""
    limits = (round(scenario.limits[0] * drift), round(scenario.limits[1] * wander))
    world = World(replace(scenario, limits=limits), seed)
    pair = fresh(scenario, PairBound)
    base = world.there.epoch_ns - world.here.epoch_ns
    worst, longest, outside_since = 0.0, 0, None
    seen: int | None = None
    for count, (t1, t2, t3, t4) in enumerate(world.exchanges()):
        pair.outgoing(world.here.raw(t1), world.there.raw(t2))
        pair.incoming(world.there.raw(t3), world.here.raw(t4))
        if seen is None and pair.contradictions:
            seen = count + 1
        for step in range(4):
            at = t4 + step * round(scenario.interval_s * SECOND) // 4
            found = pair.offset(world.here.raw(at))
            if found is None:
                outside_since = None
                continue
            truth = world.there.deviation(at) - world.here.deviation(at)
            excess = max(found.lo - base - truth, truth - (found.hi - base))
            if excess > 0:
                outside_since = at if outside_since is None else outside_since
                worst, longest = max(worst, excess), max(longest, at - outside_since)
            else:
                outside_since = None
    return Break(seen, worst / 1000, longest / SECOND, 0.0)
