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

How well must measurement and prediction agree? Both are counts: *x* of *n* separations shorter than the skew in the
synchronized run, *y* of *m* edges violated in the skewed one. If the law holds, both are draws from one binomial
rate, and given their sum the one is hypergeometric whatever that rate is. The counts *y* that this does not refute at
99 % are Thatcher's prediction interval (J. R. Stat. Soc. B 26, 1964), exact, with nothing assumed of F and the
finite synchronized run allowed for. A measured rate alone gets Clopper and Pearson's interval (Biometrika 26, 1934).

That asks two things at once: whether the law holds, and whether the pipeline's F stayed what it was from one cell to
the next. They are told apart: stages also note the host's raw clock, which no node's clock has a part in, and so each
edge's separation is known without the clock that is off. By it the law is checked within each cell on its own
(``own_rate``). And cells are run in many short blocks, turn about (``plan.py``): what changes with time, all share.

Limits: binomial intervals take messages for independent. A queue, a pause of the machine or a warm-up lets neighbours
share their fate, and then real scatter is wider than these intervals say: an exception is where to look, not yet a
refutation. And F is the pipeline's on that machine at that load: another load is another F. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache

from skewd_pipeline.results import STAGES, LawCell, Results, Run, Separations, Threshold

CONFIDENCE = 0.99
JUDGED_EDGES_LEAST = 500
"""Below so many edges in a cell the law is told, not judged: one slow stretch of the machine is much of the cell."""

AGREEMENT_LEAST = 0.95
"""The share of cells in which the measured rate must lie inside the interval around the predicted one."""

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
    """How many separations (ascending) a skew violates: those strictly shorter than it."""
    return bisect_left(separations_ns, skew_ns)


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


def separations_for(known: Iterable[Separations], run: Run) -> Separations | None:
    """The synchronized run's separations of the very edge that this row counts.

    Where they are not kept by edge, those counted under the same direction serve; of several runs' on one page, the
    row's own.
    """
    edge = violable_edge(run.stage, run.direction)
    same = [
        each
        for each in known
        if (each.transport, each.rule, each.floor_ms) == (run.transport, run.rule, run.floor_ms) and each.separations_ns
    ]
    same.sort(key=lambda each: (each.stage, each.direction) != (run.stage, run.direction))
    exact = [each for each in same if edge is not None and each.edge == edge_name(edge)]
    whole = [each for each in same if each.edge is None]
    return next(iter(exact or whole), None)


def predict(rows: Iterable[Run], known: Sequence[Separations]) -> None:
    """Fills in ``predicted_rate`` of the raw modes' rows, from the separations of the synchronized cells."""
    for row in rows:
        found = separations_for(known, row) if row.mode != "rewrite" else None
        if found is None:
            row.predicted_rate = None
            continue
        rate = shorter(found.separations_ns, round(row.skew_ms * 1e6)) / len(found.separations_ns)
        row.predicted_rate = round(rate, 6)


def law_cells(results: Results) -> list[LawCell]:
    """Prediction over measurement for each raw cell of the run, skewed ones only: at 0 ms they are one measurement.

    ``off`` rows, or ``tag`` rows (which move no time) where ``off`` was not run.
    """
    rows = [*results.runs, *results.floor0, *results.floors]
    mode = "off" if any(row.mode == "off" for row in rows) else "tag"
    cells = []
    for row in rows:
        known = separations_for(results.separations, row)
        if row.mode != mode or row.skew_ms == 0 or not row.edges or known is None:
            continue
        count, of = shorter(known.separations_ns, round(row.skew_ms * 1e6)), len(known.separations_ns)
        least, greatest = prediction_interval(count, of, row.edges)
        low, high = clopper_pearson(row.violations, row.edges)
        edge = violable_edge(row.stage, row.direction)
        cells.append(
            LawCell(
                transport=row.transport,
                broker=row.broker,
                edge=edge_name(edge) if edge else "",
                direction=row.direction,
                rule=row.rule,
                floor_ms=row.floor_ms,
                skew_ms=row.skew_ms,
                edges=row.edges,
                violations=row.violations,
                measured_rate=round(row.violations / row.edges, 6),
                measured_low=round(low, 6),
                measured_high=round(high, 6),
                separations=of,
                predicted_rate=round(count / of, 6),
                predicted_low=round(least / row.edges, 6),
                predicted_high=round(greatest / row.edges, 6),
                agrees=least <= row.violations <= greatest,
                own_rate=None if row.shorter_separations is None else round(row.shorter_separations / row.edges, 6),
            )
        )
    return cells


def exceptions(cells: Iterable[LawCell]) -> list[LawCell]:
    """The cells whose measured rate lies outside the interval around the predicted one."""
    return [cell for cell in cells if not cell.agrees]


def thresholds(results: Results) -> list[Threshold]:
    """For each transport, rule, floor and direction: where violations begin, derived, predicted and measured.

    Derived: the floor (by `span-start`; 0 by `send-receive`) plus the least one-way delay of the synchronized run.
    Predicted: the least separation of the synchronized run. Measured: between the largest skew below which no cell
    had a violation, and the smallest with one.
    """
    rows = [*results.runs, *results.floor0, *results.floors]
    mode = "off" if any(row.mode == "off" for row in rows) else "tag"
    groups: dict[tuple[str, str, str, str, float], list[Run]] = {}
    for row in rows:
        if row.mode == mode and row.edges:
            groups.setdefault((row.transport, row.rule, row.stage, row.direction, row.floor_ms), []).append(row)
    found = []
    for (transport, rule, _, direction, floor_ms), cells in groups.items():
        known = separations_for(results.separations, cells[0])
        if known is None:
            continue
        cells.sort(key=lambda row: row.skew_ms)
        hops = [
            each.separations_ns[0]
            for each in results.separations
            if (each.transport, each.rule, each.floor_ms, each.edge, each.stage, each.direction)
            == (transport, "send-receive", floor_ms, known.edge, known.stage, known.direction)
            and each.separations_ns
        ]
        first = next((row.skew_ms for row in cells if row.violations), None)
        clean = [row.skew_ms for row in cells if first is None or row.skew_ms < first]
        found.append(
            Threshold(
                transport=transport,
                broker=cells[0].broker,
                rule=rule,
                edge=known.edge or "",
                direction=direction,
                floor_ms=floor_ms,
                derived_ms=round((floor_ms if rule == "span-start" else 0.0) + hops[0] / 1e6, 4) if hops else None,
                predicted_ms=round(known.separations_ns[0] / 1e6, 4),
                separations=len(known.separations_ns),
                none_at_ms=clean[-1] if clean else None,
                some_at_ms=first,
            )
        )
    return found
