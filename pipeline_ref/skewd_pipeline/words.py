"""What the terminal and the report both say: names, numbers, and where a transport's traces begin to break.

The problem: a sentence that is printed in two places must be the same and true in both. So it is made here, from the
rows of the run alone, by functions that take values and return values.

Limits: a threshold is told as the two skews of the run between which it lies. What lies between them was not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from skewd_pipeline.results import Calibration, Claim, Rate, Results, Run, Trace

NAMES = {"zmq": "ZeroMQ", "kafka": "Kafka", "aeron": "Aeron"}
SPAN_START, SEND_RECEIVE = "span-start", "send-receive"


class OnTransport(Protocol):
    """A row that says where it was measured."""

    transport: str
    broker: str | None


def named(row: OnTransport) -> str:
    """``ZeroMQ``, ``Kafka mock``, ``Kafka default clients``: a mock is never shown without saying so."""
    return name_of(row.transport, row.broker, getattr(row, "client", None))


def name_of(transport: str, broker: str | None, client: str | None = None) -> str:
    """As :func:`named`, of the parts."""
    said = "mock" if broker == "mock" else None
    unusual = {"default": "default clients", "latency": None}.get(client or "", client)
    return " ".join(part for part in (NAMES.get(transport, transport), said, unusual) if part)


def percent(share: float | None, digits: int = 0) -> str:
    """A share that is not quite nothing or not quite all is not shown as if it were."""
    if share is None:
        return "-"
    said = f"{share:.{digits}%}"
    if share in (0, 1) or said not in (f"{0:.{digits}%}", f"{1:.{digits}%}"):
        return said
    finer = f"{share:.{digits + 1}%}"
    if finer not in (f"{0:.{digits + 1}%}", f"{1:.{digits + 1}%}"):
        return finer
    least = 10 ** -(digits + 3)
    return f"<{least:.{digits + 1}%}" if share < 0.5 else f">{1 - least:.{digits + 1}%}"


def between(low: float, high: float) -> str:
    """``94-99%``, or one figure where both are shown alike."""
    least, most = percent(low), percent(high)
    return least if least == most else f"{least.removesuffix('%')}-{most}"


def interval(share: float, low: float, high: float) -> str:
    """``97% (94-99%)``, or one figure where the interval is no wider than it is shown."""
    inside = between(low, high)
    return percent(share) if inside == percent(share) else f"{percent(share)} ({inside})"


def brief_ms(skew_ms: float) -> str:
    """``4.02``: a skew, with three digits that count."""
    return f"{skew_ms:.3g}" if skew_ms < 1000 else f"{skew_ms:g}"


def thousands(value: int) -> str:
    """``41,200``."""
    return f"{value:,}"


def raw_rows(results: Results, rule: str) -> list[Run]:
    """The rows that show times as stamped: ``off``, or ``tag``, which moves none, where ``off`` was not run."""
    rows = [row for row in results.runs if row.rule == rule and row.edges]
    mode = "off" if any(row.mode == "off" for row in rows) else "tag"
    return [row for row in rows if row.mode == mode]


def by_way(rows: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Rows by transport, skewed stage and direction, each list by skew."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for row in sorted(rows, key=lambda row: row.skew_ms):
        found.setdefault((row.transport, row.stage, row.direction), []).append(row)
    order = {name: place for place, name in enumerate(NAMES)}
    return dict(sorted(found.items(), key=lambda item: (*item[0][1:], order.get(item[0][0], 9))))


def main_way(results: Results) -> tuple[str, str] | None:
    """Stage and direction of the first row: what the page and the terminal tell first."""
    return (results.runs[0].stage, results.runs[0].direction) if results.runs else None


def calibration_of(results: Results, run: Run) -> Calibration | None:
    """What was calibrated for this row's transport, stage and direction."""
    same = [each for key, each in results.calibration.items() if key.split(" ")[0] == run.transport]
    exact = [each for each in same if (each.stage, each.direction) == (run.stage, run.direction)]
    return next(iter(exact or [each for each in same if not each.stage]), None)


def rate_of(results: Results, run: Run) -> Rate | None:
    """The prediction for this row."""

    def key(row: Run | Rate) -> tuple[object, ...]:
        return row.transport, row.stage, row.direction, row.rule, row.skew_ms

    return next((rate for rate in results.rates if key(rate) == key(run)), None)


@dataclass(frozen=True)
class Threshold:
    """Where violations begin on one transport: none up to ``clean_ms``, some at ``first``, as the run showed."""

    name: str
    clean_ms: float | None
    first: Run | None
    most_ms: float
    predicted_ms: float | None

    def where(self) -> str:
        """``breaks between 3 and 5 ms``: no more than was seen."""
        if self.first is None:
            return f"does not break up to {brief_ms(self.most_ms)} ms"
        if self.first.skew_ms == 0:
            return "breaks with no skew at all"
        if self.clean_ms is None:
            return f"breaks at {brief_ms(self.first.skew_ms)} ms, the least skew run"
        return f"breaks between {brief_ms(self.clean_ms)} and {brief_ms(self.first.skew_ms)} ms"

    def predicted(self) -> str:
        """``predicted 4.0``; empty where nothing was."""
        return "" if self.predicted_ms is None else f"predicted {self.predicted_ms:.1f}"


def thresholds(results: Results, rule: str = SPAN_START) -> list[Threshold]:
    """Of each transport, for the run's first stage and direction."""
    found = []
    for (_, stage, direction), rows in by_way(raw_rows(results, rule)).items():
        if (stage, direction) != main_way(results):
            continue
        first = next((row for row in rows if row.violations), None)
        clean = [row.skew_ms for row in rows if first is None or row.skew_ms < first.skew_ms]
        known = calibration_of(results, rows[0]) if rule == SPAN_START else None
        predicted_ms = known.predicted_threshold_ms if known else None
        found.append(Threshold(named(rows[0]), clean[-1] if clean else None, first, rows[-1].skew_ms, predicted_ms))
    return found


def headline(results: Results) -> str:
    """The first sentence: the thresholds that this run showed, and no other."""
    found = thresholds(results)
    if found:
        parts = [
            f"{each.name} {each.where()}" + (f" ({each.predicted()})" if each.predicted_ms is not None else "")
            for each in found
        ]
        return f"On this machine {', '.join(parts)}"
    if results.long_runs:
        fixed = sum(window.violations for window in results.windows if window.mode == "rewrite")
        after = {0: "not once", 1: "once"}.get(fixed, f"{fixed} times")
        return f"A clock drifts, is stepped and slewed; after rewriting, traces run backwards {after}"
    return "No cell was run"


def early_spans(trace: Trace) -> list[int]:
    """The places of the spans that were stamped as starting before their parent, the span one stage earlier."""
    return [
        place
        for place in range(1, len(trace.spans))
        if trace.spans[place].raw_start_us < trace.spans[place - 1].raw_start_us
    ]


def trace_title(trace: Trace) -> str:
    """``One message over ZeroMQ, inference 5 ms behind``."""
    where = name_of(trace.transport, trace.broker)
    return f"One message over {where}, {trace.stage} {trace.skew_ms:g} ms {trace.direction}"


def failing(results: Results) -> list[Claim]:
    """What must hold and does not, or could not be judged: failures first."""
    bad = [
        claim for claim in results.claims if claim.kind == "must-hold" and claim.verdict in ("fails", "inconclusive")
    ]
    return sorted(bad, key=lambda claim: claim.verdict != "fails")


def holding(claims: Sequence[Claim]) -> str:
    """``all 14 claims that must hold on any machine hold: 0 of 41,200 checks failed``; empty where one does not."""
    must = [claim for claim in claims if claim.kind == "must-hold" and claim.verdict != "not-run"]
    if not must or any(claim.verdict != "holds" for claim in must):
        return ""
    judged, wrong = sum(claim.judged for claim in must), sum(claim.wrong for claim in must)
    counted = f": {thousands(wrong)} of {thousands(judged)} checks failed" if judged else ""
    return f"all {len(must)} claims that must hold on any machine hold{counted}"
