"""The law behind the threshold: an edge is violated exactly when the skew exceeds its separation.

The problem: "traces break at 5 ms but not at 3 ms" is an observation of one pipeline on one day, and no one can tell
what it says of theirs. The insight: let an edge's two events truly be *d* apart (its separation), and let the clock
that stamps one of them be *s* off in the direction that shrinks the gap. The stamped gap is *d* - *s*, which is
negative exactly when *s* > *d*. So

    P(violation | skew s) = P(d < s) = F(s-),

the distribution of separations, which a single run with synchronized clocks measures. A clock that is behind pulls
the events it stamps into the past and so violates the edges that come *in*; one that is ahead pushes them into the
future and violates those that go *out*. The threshold is where F begins: the minimum separation. By `send-receive`
that is the least one-way delay; by `span-start` it cannot be less than the service floor plus that delay.

So a prediction is made before anything is skewed: the share of the quiet run's separations that are shorter than the
skew. How far may the measured rate be from it? Neighbouring messages share a slow moment of the machine, so they are
not independent draws, and an interval that takes them for such is too narrow. The moving block bootstrap (Kunsch,
Annals of Statistics 17, 1989) draws stretches of neighbours instead of single messages: once for the quiet run, once
for a cell of the coming size, and the spread of the difference is the interval. Where all or none of the quiet run's
separations are shorter, every draw is the same and says nothing of what was not seen; so the interval is never narrower
than the exact one for independent draws: Thatcher's for two samples of one rate (J. R. Stat. Soc. B 26, 1964), Clopper
and Pearson's for one (Biometrika 26, 1934).

Whether each single edge obeys the law needs no interval at all: stages note the host's raw clock on both sides of each
stamp, so an edge's separation is known without the clock that is off. That is a claim (``claims.sql``), and this is
not.

Limits: F is the pipeline's on that machine at that load: another load is another F, and a hop that wanders for longer
than a block does so unseen by the bootstrap. Where some five neighbours share a moment and a cell is short, the
interval holds less often than the 99 % it aims at: 95 % of made-up cells of 200 messages, 90 % of 100
(tests/experiment/test_law.py). Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from skewd_pipeline.results import STAGES

CONFIDENCE = 0.99
INFORMATIVE = (0.02, 0.98)
"""A rate predicted outside of these says nothing about the law: any pipeline would have it."""

BLOCK_MESSAGES = 10
DRAWS = 1_000
_BISECTIONS = 60


def violable_edge(stage: str, direction: str) -> tuple[str, str] | None:
    """Sender and receiver of the edge that a skew of ``stage`` can violate; None where there is none.

    Behind: the edge that comes in. Ahead: the one that goes out.
    """
    at = STAGES.index(stage)
    if direction == "behind":
        return (STAGES[at - 1], stage) if at else None
    return (stage, STAGES[at + 1]) if at + 1 < len(STAGES) else None


def edge_name(edge: tuple[str, str]) -> str:
    """``preprocess>inference``, as ``separations`` in results.json name an edge."""
    return ">".join(edge)


def shorter(separations_ns: Sequence[int], skew_ns: int) -> int:
    """How many separations a skew violates: those strictly shorter than it."""
    return sum(separation_ns < skew_ns for separation_ns in separations_ns)


# -- exact intervals ---------------------------------------------------------------------------------------------------


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _at_most(k: int, n: int, rate: float) -> float:
    """P(X <= k) for X binomial with ``n`` draws; summed from its largest term, which is where the sum is."""
    if k >= n or rate <= 0:
        return 1.0
    if k < 0 or rate >= 1:
        return 0.0
    if k > n * rate:
        return 1.0 - _at_most(n - k - 1, n, 1 - rate)
    odds, term, total = (1 - rate) / rate, 1.0, 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * 1e-17:
            break
    log_first = _log_choose(n, k) + k * math.log(rate) + (n - k) * math.log1p(-rate)
    return min(1.0, math.exp(log_first) * total)


@lru_cache(maxsize=4096)
def clopper_pearson(count: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The rates that ``count`` of ``of`` independent draws do not refute: exact, so never too narrow.

    Raises:
        ValueError: not 0 <= count <= of, or nothing was drawn, or no confidence between 0 and 1.
    """
    _checked(count, of, confidence)
    tail = (1 - confidence) / 2

    def upper(k: int) -> float:
        """The rate at which k or fewer have probability ``tail``."""
        if k >= of:
            return 1.0
        low, high = k / of, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if _at_most(k, of, middle) > tail else (low, middle)
        return high

    return 1.0 - upper(of - count), upper(count)


def _tails(x: int, n: int, y: int, m: int) -> tuple[float, float]:
    """P(Y <= y) and P(Y >= y) given x + y: how extreme the second count is if both have one rate."""
    total = x + y
    first, last = max(0, total - n), min(m, total)

    def weight(j: int) -> float:
        return _log_choose(m, j) + _log_choose(n, total - j)

    # Relative to the term at y itself: towards each side the terms rise to the mode at most, then fall.
    def side(step: int, end: int) -> float:
        term, sum_, j = 1.0, 1.0, y
        while j != end:
            if step < 0:
                term *= j / (m - j + 1) * (n - total + j) / (total - j + 1)
            else:
                term *= (m - j) / (j + 1) * (total - j) / (n - total + j + 1)
            j += step
            sum_ += term
            if term < sum_ * 1e-17:
                break
        return sum_

    at_y = math.exp(weight(y) - _log_choose(n + m, total))
    return min(1.0, at_y * side(-1, first)), min(1.0, at_y * side(1, last))


@lru_cache(maxsize=4096)
def prediction_interval(count: int, of: int, future: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """The least and greatest count in ``future`` draws that ``count`` of ``of`` earlier ones lead to expect.

    Thatcher's two-sided interval: both counts are samples of one unknown rate. At least ``confidence`` of such pairs
    fall inside, whatever the rate is.

    Raises:
        ValueError: not 0 <= count <= of, or nothing was or will be drawn, or no confidence between 0 and 1.
    """
    _checked(count, of, confidence)
    if future < 1:
        raise ValueError(f"an interval for {future} draws says nothing; give at least 1")
    tail = (1 - confidence) / 2
    # P(Y <= y) given the sum grows with y, so each end is found by halving.
    low, high = 0, future
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _tails(count, of, middle, future)[0] > tail else (middle + 1, high)
    least = low
    low, high = 0, future
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _tails(count, of, middle, future)[1] > tail else (low, middle - 1)
    return least, low


def _checked(count: int, of: int, confidence: float) -> None:
    if of < 1 or not 0 <= count <= of:
        raise ValueError(f"{count} of {of} is no count; give 0 <= count <= of with at least one draw")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence:g} is not between 0 and 1")


# -- the law, applied --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """A rate and the interval around it."""

    rate: float
    low: float
    high: float

    @property
    def informative(self) -> bool:
        """Whether a measurement could disagree."""
        return INFORMATIVE[0] <= self.rate <= INFORMATIVE[1]


@dataclass(frozen=True, slots=True)
class _Flags:
    """Flags to draw from; ``before``: how many are true before each place, going on a stretch beyond the end."""

    count: int
    before: Sequence[int]

    @staticmethod
    def of(flags: Sequence[bool]) -> _Flags:
        return _Flags(len(flags), [0, *accumulate([*flags, *flags[:BLOCK_MESSAGES]])])

    def drawn(self, count: int, draws: random.Random) -> float:
        """The share of true flags in ``count`` of them, drawn as stretches of neighbours, round the end."""
        length = min(BLOCK_MESSAGES, self.count)
        total = drawn = 0
        while drawn < count:
            begin, take = draws.randrange(self.count), min(length, count - drawn)
            total += self.before[begin + take] - self.before[begin]
            drawn += take
        return total / count


def _between(values: list[float], confidence: float) -> tuple[float, float]:
    values.sort()
    tail = (1 - confidence) / 2
    return values[math.floor(tail * (len(values) - 1))], values[math.ceil((1 - tail) * (len(values) - 1))]


def predict(separations_ns: Sequence[int], skew_ns: int, edges: int, *, seed: str = "") -> Expected:
    """The violation rate that a skew will have among ``edges`` edges, from a quiet run's separations.

    Args:
        separations_ns: in the order of the messages.

    Raises:
        ValueError: no separations, or no edges.
    """
    if not separations_ns or edges < 1:
        raise ValueError("a prediction needs separations that were measured, and edges that will be")
    flags = [separation_ns < skew_ns for separation_ns in separations_ns]
    rate = sum(flags) / len(flags)
    draws = random.Random(f"{seed}/{skew_ns}/{edges}")
    known = _Flags.of(flags)
    spread = [known.drawn(edges, draws) - known.drawn(len(flags), draws) + rate for _ in range(DRAWS)]
    low, high = _between(spread, CONFIDENCE)
    least, greatest = prediction_interval(sum(flags), len(flags), edges)
    return Expected(rate, max(0.0, min(low, least / edges)), min(1.0, max(high, greatest / edges)))


def measured(flags: Sequence[bool], *, seed: str = "") -> Expected:
    """A measured rate, and the interval of those that might as well have been.

    Args:
        flags: whether each edge was violated, in the order of the messages.
    """
    if not flags:
        return Expected(0.0, 0.0, 1.0)
    draws = random.Random(f"{seed}/{len(flags)}")
    known = _Flags.of(flags)
    low, high = _between([known.drawn(len(flags), draws) for _ in range(DRAWS)], CONFIDENCE)
    least, greatest = clopper_pearson(sum(flags), len(flags))
    return Expected(sum(flags) / len(flags), min(low, least), max(high, greatest))


def mean_wait_s(rate_per_s: float, service_s: Sequence[float]) -> float:
    """How long a message waits on average at one server that messages reach at random (Poisson) times.

    Pollaczek and Khinchine's formula for M/G/1: rate x E[S^2] / (2 (1 - utilization)).

    Raises:
        ValueError: no service times, or a utilization of 1 or more, at which the queue has no end.
    """
    if not service_s:
        raise ValueError("no service times were measured")
    utilization = rate_per_s * sum(service_s) / len(service_s)
    if utilization >= 1:
        raise ValueError(f"at a utilization of {utilization:.2f} the queue grows without end")
    return rate_per_s * sum(one**2 for one in service_s) / len(service_s) / (2 * (1 - utilization))
