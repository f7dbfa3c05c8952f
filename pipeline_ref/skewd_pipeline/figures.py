"""From the one table to the rows of ``results.json``: what a reader wants counted, each by one query.

Two rules say what an edge from a stage A to the next stage B is:

- ``send-receive``: A's event ``message.sent`` (stamped just before the send) to B's ``message.received`` (just after
  the receive). What physics orders, and the paper's negative span; its true gap is the transport's one-way delay.
- ``span-start``: the start of A's span to the start of B's, its child. What trace views show; its true gap is A's work
  plus the delay, which is why no violation is seen until the skew exceeds the work.

A violation is an edge of the swept cells that the skew can violate and whose stamps come out backwards; rewritten, a
send-receive gap within the two spans' summed uncertainty is ``indeterminate`` and no violation. ``received`` is stamped
when a stage takes the message up, so waiting in the receiver is part of the separation.

Limits: pure, but for the database, which holds the table and the views of ``claims.sql``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import duckdb

from skewd_pipeline import law
from skewd_pipeline.results import (
    AllEdges,
    Bounds,
    Calibration,
    Confusion,
    Rate,
    Run,
    Separation,
    Spread,
    Trace,
    TraceSpan,
)

_VIOLATIONS = """
CREATE OR REPLACE VIEW violations AS
SELECT *,
    gap_ns < 0 AND mode = 'rewrite' AND rule = 'send-receive' AND coalesce(-gap_ns <= uncertainty_ns, false) AS excused,
    gap_ns < 0 AND NOT excused AS violated,
    CASE WHEN excused THEN 'indeterminate' ELSE verdict END AS said
FROM ruled WHERE purpose = 'sweep' AND rule <> 'stamp-after-send'
"""

_RUNS = """
SELECT transport, broker, client, stage, direction, skew_ns, floor_ns, mode, rule,
    count(DISTINCT (block, message)) AS messages,
    count(*) FILTER (counted) AS edges,
    count(*) FILTER (counted AND violated) AS violations,
    histogram(said) FILTER (counted) AS verdicts,
    histogram(said) FILTER (counted AND violated) AS violation_verdicts,
    coalesce(max(-gap_ns) FILTER (counted AND gap_ns < 0), 0) AS residual_max_ns,
    coalesce(list_sort(list(-gap_ns) FILTER (excused)), []) AS residuals_ns,
    count(*) AS all_edges,
    count(*) FILTER (violated) AS all_violations,
    histogram(said) AS all_verdicts,
    histogram(said) FILTER (violated) AS all_violation_verdicts
FROM violations GROUP BY ALL ORDER BY skew_ns, transport, mode, rule
"""

_SPANS = """
SELECT transport, skew_ns, mode, count(*) FILTER (copies > 0) AS spans,
    count(*) FILTER (made AND copies = 0) AS missing,
    coalesce(sum(copies - 1) FILTER (copies > 1), 0) AS duplicated,
    count(*) FILTER (copies > 0 AND offset_ns IS NULL AND mode <> 'off') AS unsynchronized,
    min(uncertainty_ns), quantile_disc(uncertainty_ns, 0.5), max(uncertainty_ns),
    min(abs(offset_ns - truth_lo_ns)), quantile_disc(abs(offset_ns - truth_lo_ns), 0.5),
    max(abs(offset_ns - truth_lo_ns)),
    count(*) FILTER (truth_hi_ns < offset_ns - uncertainty_ns OR truth_lo_ns > offset_ns + uncertainty_ns) AS misses
FROM spans WHERE purpose = 'sweep' GROUP BY ALL
"""

_OUTPUTS = """
SELECT transport, skew_ns, count(*), avg((output = 'correct')::INT)
FROM (SELECT DISTINCT transport, skew_ns, block, message, output FROM edges WHERE purpose = 'sweep') GROUP BY ALL
"""

_SEPARATIONS = """
SELECT transport, skew_ns, rule, min(true_lo_ns), quantile_disc(true_lo_ns, 0.01), quantile_disc(true_lo_ns, 0.5),
    quantile_disc(true_lo_ns, 0.99)
FROM violations
WHERE counted AND mode = (SELECT min(mode) FROM edges WHERE mode <> 'rewrite') GROUP BY ALL
"""

_FLAGS = """
SELECT transport, skew_ns, rule, list(violated ORDER BY round, block, message)
FROM violations
WHERE counted AND mode = (SELECT min(mode) FROM edges WHERE mode <> 'rewrite') GROUP BY ALL ORDER BY skew_ns
"""

_CONFUSION = """
SELECT CASE WHEN purpose = 'overload' THEN 'overloaded'
        WHEN skew_ns <> 0 THEN 'skewed' ELSE 'synchronized' END AS situation,
    transport, rule,
    CASE WHEN gap_ns >= 0 AND true_lo_ns >= 0 THEN 'in order' WHEN gap_ns >= 0 THEN 'hidden'
        WHEN true_lo_ns >= 0 THEN 'clock' ELSE 'not the clock' END AS truth,
    verdict, count(*)
FROM ruled WHERE mode = 'tag' AND verdict IS NOT NULL AND true_lo_ns = true_hi_ns
    AND purpose <> 'over-time' GROUP BY ALL ORDER BY ALL
"""

_BOUNDS = """
SELECT transport, any_value(broker), count(*) AS spans, count(*) FILTER (offset_ns IS NULL),
    avg((truth_hi_ns >= offset_ns - uncertainty_ns AND truth_lo_ns <= offset_ns + uncertainty_ns)::INT),
    min(2 * uncertainty_ns) FILTER (node <> $reference),
    quantile_disc(2 * uncertainty_ns, 0.5) FILTER (node <> $reference),
    max(2 * uncertainty_ns) FILTER (node <> $reference)
FROM spans JOIN (SELECT DISTINCT transport, broker FROM edges) USING (transport)
WHERE purpose = 'sweep' AND copies > 0 AND mode = $mode GROUP BY transport
"""


def _spread(least: int | None, middle: int | None, most: int | None) -> Spread | None:
    return None if least is None or middle is None or most is None else Spread(int(least), int(middle), int(most))


def _ms(values: Sequence[int]) -> Separation:
    return Separation(*(round(value / 1e6, 4) for value in values))


def prepare(database: duckdb.DuckDBPyConnection) -> None:
    """Makes the view ``violations``; the views of ``claims.sql`` must be there."""
    database.execute(_VIOLATIONS)


def runs(
    database: duckdb.DuckDBPyConnection, rates: Sequence[Rate], throughput_per_s: Mapping[tuple[str, int], float]
) -> list[Run]:
    """One row for each cell of the sweep, mode and rule.

    Args:
        throughput_per_s: by transport and skew (ns), what was delivered.
    """
    predicted = {(rate.transport, rate.skew_ms, rate.rule): rate.predicted_rate for rate in rates}
    of_spans = {row[:3]: row[3:] for row in database.execute(_SPANS).fetchall()}
    outputs = {row[:2]: row[2:] for row in database.execute(_OUTPUTS).fetchall()}
    separations = {row[:3]: row[3:] for row in database.execute(_SEPARATIONS).fetchall()}
    found = []
    cursor = database.execute(_RUNS)
    names = [column[0] for column in cursor.description]
    for values in cursor.fetchall():
        row: dict[str, Any] = dict(zip(names, values, strict=True))
        transport, skew_ns, mode, rule = row["transport"], row["skew_ns"], row["mode"], row["rule"]
        spans, missing, duplicated, unsynchronized, *spreads, misses = of_spans[(transport, skew_ns, mode)]
        messages, correct = outputs[(transport, skew_ns)]
        known = separations.get((transport, skew_ns, rule))
        found.append(
            Run(
                transport=transport,
                broker=row["broker"],
                client=row["client"],
                stage=row["stage"],
                direction=row["direction"],
                skew_ms=skew_ns / 1e6,
                mode=mode,
                rule=rule,
                messages=messages,
                edges=row["edges"],
                violations=row["violations"],
                violation_rate=round(row["violations"] / row["edges"], 6) if row["edges"] else 0.0,
                predicted_rate=None if mode == "rewrite" else predicted.get((transport, skew_ns / 1e6, rule)),
                verdicts=_counts(row["verdicts"]),
                violation_verdicts=_counts(row["violation_verdicts"]),
                residual_max_ns=row["residual_max_ns"],
                residuals_ns=row["residuals_ns"],
                bound_misses=misses,
                throughput_per_s=round(throughput_per_s.get((transport, skew_ns), 0.0), 3),
                outputs_correct=round(correct, 6),
                separation_ms=_ms(known) if known else None,
                floor_ms=row["floor_ns"] / 1e6,
                uncertainty_ns=_spread(*spreads[:3]),
                error_ns=_spread(*spreads[3:]),
                spans=spans,
                spans_missing=missing,
                spans_duplicated=int(duplicated),
                spans_unsynchronized=unsynchronized,
                all=AllEdges(
                    row["all_edges"],
                    row["all_violations"],
                    _counts(row["all_verdicts"]),
                    _counts(row["all_violation_verdicts"]),
                ),
            )
        )
    return found


def _counts(table: Mapping[str, int] | None) -> dict[str, int]:
    return {} if table is None else {str(name): int(count) for name, count in table.items() if name is not None}


def measure(database: duckdb.DuckDBPyConnection, predicted: Sequence[Rate], *, seed: str) -> list[Rate]:
    """The predictions with what was then measured; those whose cell was not run are left out."""
    flags = {row[:3]: row[3] for row in database.execute(_FLAGS).fetchall()}
    found = []
    for rate in predicted:
        seen = flags.get((rate.transport, round(rate.skew_ms * 1e6), rate.rule))
        if not seen:
            continue
        measured = law.measured(seen, seed=seed)
        found.append(
            Rate(
                transport=rate.transport,
                broker=rate.broker,
                stage=rate.stage,
                direction=rate.direction,
                rule=rate.rule,
                floor_ms=rate.floor_ms,
                skew_ms=rate.skew_ms,
                edges=len(seen),
                violations=sum(seen),
                measured_rate=round(measured.rate, 6),
                measured_low=round(measured.low, 6),
                measured_high=round(measured.high, 6),
                predicted_rate=rate.predicted_rate,
                predicted_low=rate.predicted_low,
                predicted_high=rate.predicted_high,
                separations=rate.separations,
                informative=rate.informative,
                agrees=rate.predicted_low <= round(measured.rate, 6) <= rate.predicted_high,
            )
        )
    return found


def predictions(
    calibration: Calibration, transport: str, by_rule_ns: Mapping[str, Sequence[int]], skews_ms: Sequence[float],
    edges: int, *, seed: str,
) -> list[Rate]:  # fmt: skip
    """What each skew will do, by both rules, before it is tried.

    Args:
        by_rule_ns: the quiet run's separations of the edge that the skew can violate, in order.
        edges: how many each cell will have.
    """
    found = []
    for rule, separations_ns in by_rule_ns.items():
        for skew_ms in skews_ms:
            expected = law.predict(separations_ns, round(skew_ms * 1e6), edges, seed=f"{seed}/{transport}/{rule}")
            low, high = round(expected.low, 6), round(expected.high, 6)
            found.append(
                Rate(
                    transport=transport,
                    broker=calibration.broker,
                    stage=calibration.stage,
                    direction=calibration.direction,
                    rule=rule,
                    floor_ms=calibration.floor_ms,
                    skew_ms=skew_ms,
                    edges=edges,
                    violations=0,
                    measured_rate=0.0,
                    measured_low=0.0,
                    measured_high=0.0,
                    predicted_rate=round(expected.rate, 6),
                    predicted_low=low,
                    predicted_high=high,
                    separations=len(separations_ns),
                    informative=expected.informative,
                    agrees=False,
                )
            )
    return found


def confusion(database: duckdb.DuckDBPyConnection) -> list[Confusion]:
    """What was true of each tagged edge, and which verdict it got."""
    names = ("situation", "transport", "rule", "truth", "verdict", "count")
    return [Confusion(**dict(zip(names, row, strict=True))) for row in database.execute(_CONFUSION).fetchall()]


def bounds(
    database: duckdb.DuckDBPyConnection, *, path: str, reference: str, messages: Mapping[str, Mapping[str, int]]
) -> list[Bounds]:
    """What the bounds were worth, by transport, over the spans of its tagged cells."""
    (mode,) = database.execute("SELECT coalesce(max(mode) FILTER (mode = 'tag'), 'rewrite') FROM edges").fetchone() or (
        "tag",
    )
    middle: dict[str, dict[str, int]] = {}
    for transport, node, width_ns in database.execute(
        "SELECT transport, node, quantile_disc(2 * uncertainty_ns, 0.5) FROM spans WHERE purpose = 'sweep' "
        "AND mode = $mode AND node <> $reference AND uncertainty_ns IS NOT NULL GROUP BY ALL ORDER BY ALL",
        {"mode": mode, "reference": reference},
    ).fetchall():
        middle.setdefault(transport, {})[node] = int(width_ns)
    residuals = {
        row[0]: row[1:]
        for row in database.execute(
            "SELECT transport, coalesce(max(-gap_ns) FILTER (excused), 0), count(*) FILTER (violated) FROM violations "
            "WHERE mode = 'rewrite' AND rule = 'send-receive' GROUP BY transport"
        ).fetchall()
    }
    found = []
    for transport, broker, spans, unsynchronized, coverage, *width in database.execute(
        _BOUNDS, {"mode": mode, "reference": reference}
    ).fetchall():
        largest, beyond = residuals.get(transport, (0, 0))
        found.append(
            Bounds(
                transport=transport,
                broker=broker,
                path=path,
                spans=spans,
                spans_unsynchronized=unsynchronized,
                coverage=None if coverage is None else round(coverage, 6),
                width_ns=_spread(*width),
                width_p50_ns=middle.get(transport, {}),
                residual_max_ns=largest,
                residuals_beyond=beyond,
                messages=dict(messages.get(transport, {})),
            )
        )
    return found


def ratio_of_pairs(without: Sequence[float], beside: Sequence[float]) -> tuple[float, float, float]:
    """The mean ratio of pairs that were measured in turn, and a 95 % interval around it (Student's t on logarithms).

    Raises:
        ValueError: not as many of one as of the other, or none, or one that is not above zero.
    """
    if len(without) != len(beside) or not without or min(*without, *beside) <= 0:
        raise ValueError("a ratio of pairs needs as many rates with as without, all above zero")
    logs = [math.log(b / a) for a, b in zip(without, beside, strict=True)]
    middle = fmean(logs)
    if len(logs) == 1:
        return math.exp(middle), 0.0, math.inf
    half = _T_975[min(len(logs) - 1, len(_T_975) - 1)] * stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


_T_975 = (math.inf, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, by degrees of freedom."""

_TRACE = """
WITH whole AS (
    SELECT transport, block, message, max(receiver_start_raw_lo_ns) - min(sender_start_raw_lo_ns) AS took_ns
    FROM edges WHERE mode = 'off' GROUP BY ALL
)
SELECT trace_id, transport, broker, stage, direction, skew_ns
FROM violations JOIN whole USING (transport, block, message)
WHERE counted AND violated AND rule = 'span-start' AND mode = 'off'
ORDER BY abs(skew_ns - 5000000), transport DESC, took_ns LIMIT 1
"""

_BARS = """
SELECT e.node, e.start_ns, e.end_ns, r.start_ns, r.end_ns, e.truth_lo_ns, coalesce(r.uncertainty_ns, 0)
FROM (SELECT s.*, trace_id FROM spans s JOIN
        (SELECT DISTINCT transport, block, message, mode, trace_id FROM edges WHERE trace_id = $trace)
        USING (transport, block, message, mode)) AS e
JOIN spans AS r USING (transport, block, message, node)
WHERE e.mode = 'off' AND r.mode = 'rewrite' AND e.copies > 0 AND r.copies > 0
ORDER BY list_position(['producer', 'preprocess', 'inference', 'postprocess', 'consumer'], e.node)
"""


def trace(database: duckdb.DuckDBPyConnection) -> Trace | None:
    """One message whose child span came out first, as stamped and as rewritten: near 5 ms, the quickest."""
    chosen = database.execute(_TRACE).fetchone()
    if chosen is None:
        return None
    trace_id, transport, broker, stage, direction, skew_ns = chosen
    bars = database.execute(_BARS, {"trace": trace_id}).fetchall()
    if not bars:
        return None
    begun_ns = min(start_ns + truth_ns for _, start_ns, _, _, _, truth_ns, _ in bars)
    return Trace(
        transport=transport,
        broker=broker,
        stage=stage,
        direction=direction,
        skew_ms=skew_ns / 1e6,
        trace_id=trace_id,
        spans=[
            TraceSpan(
                stage=node,
                raw_start_us=(start_ns - begun_ns) / 1e3,
                raw_end_us=(end_ns - begun_ns) / 1e3,
                rewritten_start_us=(new_start_ns - begun_ns) / 1e3,
                rewritten_end_us=(new_end_ns - begun_ns) / 1e3,
                true_start_us=(start_ns + truth_ns - begun_ns) / 1e3,
                uncertainty_us=uncertainty_ns / 1e3,
            )
            for node, start_ns, end_ns, new_start_ns, new_end_ns, truth_ns, uncertainty_ns in bars
        ],
    )
