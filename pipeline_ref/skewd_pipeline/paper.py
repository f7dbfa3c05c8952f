"""The paper's findings beside this run's, and why they differ where they do.

The problem: "we could not repeat it" and "we could" both say nothing without the reason. The insight: one law, that
an edge is violated when the skew exceeds its separation, says for each finding what must be true of the pipeline, and
the calibration has measured that. So each finding gets a row: what the paper says, what was measured by which rule,
and what of this pipeline makes it so.

The paper: arXiv 2604.21361, "Time, Causality, and Observability Failures in Distributed AI Inference Systems".
Rules: ``span-start``, a child span starts before its parent, is what trace viewers show; ``send-receive``, a message
is received before it was sent, is the paper's negative span.

Limits: the paper reports no rates that could be compared one by one, only where violations begin. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skewd_pipeline.results import RULES, Calibration, Results, Run
from skewd_pipeline.words import (
    NAMES,
    SEND_RECEIVE,
    SPAN_START,
    brief_ms,
    by_way,
    calibration_of,
    main_way,
    named,
    percent,
    raw_rows,
    thresholds,
)

NONE_UP_TO_MS, CLEAR_AT_MS = 3.0, 5.0
CLEAR_SHARE = 0.1
"""From here on a share is as clear as the paper's word."""
LOSS_MAX = 0.05
SAME = "It does not differ."


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    says: str
    rule: str
    measured: str
    why: str


def findings(results: Results) -> list[Finding]:
    """Every finding of the paper, by both rules where it has to do with edges."""
    found = []
    for judge in (_none_below, _clear, _alike):
        found += [judge(results, rule, _rows(results, rule)) for rule in reversed(RULES)]
    start = _rows(results, SPAN_START)
    return [*found, _throughput(start), _outputs(results), _over_time(results), _aeron(results)]


def _rows(results: Results, rule: str) -> list[list[Run]]:
    """Each transport's raw rows, in the run's first stage and direction."""
    groups = by_way(raw_rows(results, rule)).items()
    return [rows for (_, stage, direction), rows in groups if (stage, direction) == main_way(results)]


def _shares(rows: Sequence[Run]) -> str:
    said = ", ".join(f"{percent(row.violation_rate)} at {brief_ms(row.skew_ms)} ms" for row in rows)
    return f"{named(rows[0])} {said}"


def _none_below(results: Results, rule: str, groups: Sequence[Sequence[Run]]) -> Finding:
    says = f"No violations up to {NONE_UP_TO_MS:g} ms"
    below = [[row for row in rows if row.skew_ms <= NONE_UP_TO_MS] for rows in groups]
    below = [rows for rows in below if rows]
    if not below:
        return Finding(says, rule, f"no cell up to {NONE_UP_TO_MS:g} ms", "")
    why = [_why_some(results, rule, rows) for rows in below if any(row.violations for row in rows)]
    if why and rule == SEND_RECEIVE:
        why.append(f"Such an edge breaks once the skew exceeds its hop; one of {NONE_UP_TO_MS:g} ms would not.")
    return Finding(says, rule, "; ".join(map(_shares, below)), " ".join(why) or SAME)


def _why_some(results: Results, rule: str, rows: Sequence[Run]) -> str:
    name, known = named(rows[0]), calibration_of(results, rows[0])
    if rule == SEND_RECEIVE and known:
        return f"{name}: a hop takes {known.hop_p50_ms:.2f} ms."
    least = _least_ms(known)
    if least is not None and least < NONE_UP_TO_MS:
        return f"{name}: its spans can start {least:.1f} ms apart, which is less."
    return f"{name}: some spans started closer together than any in the quiet run."


def _least_ms(known: Calibration | None) -> float | None:
    return known.predicted_threshold_ms if known else None


def _clear(results: Results, rule: str, groups: Sequence[Sequence[Run]]) -> Finding:
    says = f"Clear violations at {CLEAR_AT_MS:g} ms"
    cells = [row for rows in groups for row in rows if row.skew_ms == CLEAR_AT_MS]
    if not cells:
        return Finding(says, rule, f"no cell at {CLEAR_AT_MS:g} ms", "")
    why = []
    for row in cells:
        if row.violation_rate >= CLEAR_SHARE:
            continue
        known, apart = calibration_of(results, row), row.separation_ms
        least = _least_ms(known) if rule == SPAN_START else known.hop_ms.min if known and known.hop_ms else None
        if least is not None and least > CLEAR_AT_MS:
            why.append(f"{named(row)}: the least separation is {least:.1f} ms here; the threshold lies there.")
        elif apart is not None:
            why.append(f"{named(row)}: half of the edges are {apart.p50:.1f} ms apart or more in this cell.")
    return Finding(says, rule, "; ".join(_shares([row]) for row in cells), " ".join(why) or SAME)


def _alike(results: Results, rule: str, groups: Sequence[Sequence[Run]]) -> Finding:
    says = "Kafka and ZeroMQ alike"
    found = [each for each in thresholds(results, rule) if not each.name.startswith(NAMES["aeron"])]
    if len(found) < 2:
        return Finding(says, rule, "one of them was not part of this run", "")
    hops = []
    for rows in groups:
        known = calibration_of(results, rows[0])
        if known is not None and rows[0].transport != "aeron":
            hops.append(f"{named(rows[0])} {known.hop_p50_ms:.2f} ms")
    where = {(each.clean_ms, each.first.skew_ms if each.first else None) for each in found}
    why = SAME if len(where) == 1 else "One law, other hops: the threshold lies where the least separation does."
    if hops and len(where) > 1:
        why += f" A hop takes {', '.join(hops)}."
    return Finding(says, rule, "; ".join(f"{each.name} {each.where()}" for each in found), why)


def _throughput(groups: Sequence[Sequence[Run]]) -> Finding:
    says = "Throughput unaffected"
    said, lost = [], []
    for rows in groups:
        first, last = rows[0], rows[-1]
        if first.skew_ms == last.skew_ms or first.throughput_per_s <= 0:
            continue
        said.append(
            f"{named(first)} {first.throughput_per_s:.1f}/s at {brief_ms(first.skew_ms)} ms, "
            f"{last.throughput_per_s:.1f}/s at {brief_ms(last.skew_ms)} ms"
        )
        if last.throughput_per_s < (1 - LOSS_MAX) * first.throughput_per_s:
            lost.append(named(first))
    if not said:
        return Finding(says, "", "needs two skews", "")
    why = (
        f"{', '.join(lost)}: no part of it reads another node's clock; see what else the machine did." if lost else SAME
    )
    return Finding(says, "", "; ".join(said), why)


def _outputs(results: Results) -> Finding:
    rows = [row for row in results.runs if row.rule == SPAN_START]
    if not rows:
        return Finding("Outputs unaffected", "", "the pipeline was not run", "")
    least = min(row.outputs_correct for row in rows)
    measured = f"{percent(least, 2) if least < 1 else '100%'} of the answers right in the worst cell"
    return Finding("Outputs unaffected", "", measured, SAME if least == 1 else "Here they are: see the claims.")


def _over_time(results: Results) -> Finding:
    says = "Over long runs the rate drifts as the clocks do"
    raw = [w for w in results.windows if w.rule == SPAN_START and w.mode != "rewrite" and w.predicted_rate is not None]
    if not raw:
        return Finding(says, SPAN_START, "not part of this run: add --duration 10m", "")
    apart = sum(abs(window.violation_rate - (window.predicted_rate or 0.0)) for window in raw) / len(raw)
    rates = [window.violation_rate for window in raw]
    return Finding(
        says, SPAN_START, f"{percent(min(rates))} to {percent(max(rates))} over {len(raw)} windows",
        f"{SAME} The skew of each moment says how many: on average {percent(apart, 1)} apart.",
    )  # fmt: skip


def _aeron(results: Results) -> Finding:
    says = "Aeron left unfinished"
    found = [each for each in thresholds(results) if each.name.startswith(NAMES["aeron"])]
    if found:
        return Finding(says, SPAN_START, "; ".join(f"{each.name} {each.where()}" for each in found), "It runs here.")
    gone = next((each.reason for each in results.missing if each.transport == "aeron"), None)
    return Finding(says, SPAN_START, f"not run: {gone}" if gone else "not part of this run: --transports aeron", "")
