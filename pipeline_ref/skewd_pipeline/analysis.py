"""From spans to rows: how many edges a lying clock turned around, and what the sidecar made of it.

The problem: a violation seen in a trace may be the clock's doing or not, and a correction may have been right or
lucky. The insight: the experiment knows more than any tool it judges. It knows the truth (how far each node's page
was off), and it has the *same* spans three times, through three sidecars: as stamped (`off`), tagged, rewritten. So
every claim is checked pairwise: a rewritten span against its raw twin, a tag against the injected offset, a verdict
against the true separation.

Two rules say what an edge from a stage A to the next stage B is:

- `send-receive`: A's event ``message.sent`` (stamped just before the send) to B's ``message.received`` (just after
  the receive). What physics orders; its true gap is the transport's one-way delay.
- `span-start`: the start of A's span to the start of B's, its child. What trace views show; its true gap is A's
  work plus the delay, which is why no violation is seen until the skew exceeds the work.

Names: ``truth_ns[node]`` is what must be added to the node's wall clock to reach the reference's, the number that
``clock.offset_ns`` estimates. A *separation* is an edge's true gap.

A cell that is run in blocks is analysed block by block and then :func:`joined`: only numbers are kept, no span.

Limits: pure (spans in, rows out); one block at a time, at a constant truth; each stage handles a message once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import msgspec

from skewd_pipeline.confusion import Tally, truth_of
from skewd_pipeline.law import edge_name, violable_edge
from skewd_pipeline.results import MODES, RULES, STAGES, AllEdges, Run, Separation, Spread
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_SENT, NOTED, RECEIVED, SENT, SpanRecord
from skewd_sidecar.causality import judge, stamp_from_attributes

_K = TypeVar("_K")

UNSYNCHRONIZED = "unsynchronized"
"""Counted beside the verdicts: an edge without one, because a side had no bound."""


LATE_STAMP = "stamp-after-send"
"""A rule that no clock can satisfy on a busy machine: the sender's stamp is made once the transport took the message.
Edges by it count towards no rate; they are there to see who is blamed."""


SAME_HOST_NS = 60_000_000_000
"""Raw readings further apart than this are of different hosts, or boots."""


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What is known of a cell without looking at its spans.

    Attributes:
        truth_ns: by node, what its wall clock lacks to the reference's.
        messages: how many were sent.
        outputs_correct: share of the delivered outputs that were the expected ones, and of the sent that arrived.
    """

    transport: str
    broker: str | None
    stage: str
    direction: str
    skew_ns: int
    floor_ns: int
    truth_ns: Mapping[str, int]
    messages: int
    outputs_correct: float
    throughput_per_s: float
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """One message's way from a stage to the next, in one mode: the two instants as that mode's spans give them."""

    sender: SpanRecord
    receiver: SpanRecord
    sent_ns: int
    received_ns: int

    @property
    def gap_ns(self) -> int:
        """Received - sent as a backend sees it; negative: it looks as if time had run backwards."""
        return self.received_ns - self.sent_ns


@dataclass(slots=True)
class CellAnalysis:
    """A cell's rows, and the separations they were measured on (by rule, ns, sorted), also those of each edge."""

    rows: list[Run] = field(default_factory=list)
    separations_ns: dict[str, list[int]] = field(default_factory=dict)
    by_edge_ns: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By rule and edge, as ``preprocess>inference``."""
    uncertainties_ns: dict[str, list[int]] = field(default_factory=dict)
    errors_ns: dict[str, list[int]] = field(default_factory=dict)
    """By mode: of every tagged span, how far its tag reaches, and how far it is from the truth."""


def edges(spans: Iterable[SpanRecord], rule: str) -> Iterator[Edge]:
    """Every edge between two stages, by one rule; an edge whose events are missing is left out."""
    by_id = {span.span_id: span for span in spans}
    for receiver in by_id.values():
        sender = by_id.get(receiver.parent_id)
        if sender is None or sender.stage == receiver.stage:
            continue
        if rule == "span-start":
            yield Edge(sender, receiver, sender.start_ns, receiver.start_ns)
        elif (event := NOTED if rule == LATE_STAMP else SENT) in sender.events and RECEIVED in receiver.events:
            yield Edge(sender, receiver, sender.events[event], receiver.events[RECEIVED])


def counted(edge: Edge, stage: str, direction: str) -> bool:
    """Whether the skew of ``stage`` can violate this edge: its incoming one when behind, its outgoing when ahead."""
    return edge.receiver.stage == stage if direction == "behind" else edge.sender.stage == stage


def uncertainty_ns(edge: Edge, prefix: str = "clock.") -> int | None:
    """The summed uncertainty of the two spans; None when one has none."""
    total = 0
    for span in (edge.sender, edge.receiver):
        value = span.attributes.get(prefix + "uncertainty_ns")
        if not isinstance(value, int):
            return None
        total += value
    return total


def verdict_of(edge: Edge, prefix: str = "clock.") -> str:
    """What the tags of both spans say of the edge: a verdict's name, or ``unsynchronized``."""
    verdict = judge(
        stamp_from_attributes(edge.sent_ns, edge.sender.attributes, prefix),
        stamp_from_attributes(edge.received_ns, edge.receiver.attributes, prefix),
    )
    return UNSYNCHRONIZED if verdict is None else str(verdict.value)


def quantile(ordered: Sequence[int], share: float) -> int:
    """The value at ``share`` of an ascending, non-empty sequence, by nearest rank."""
    return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) - 1))))]


@dataclass(slots=True)
class _Tags:
    """What the tags of one mode's spans say, against the truth."""

    misses: int = 0
    unsynchronized: int = 0
    uncertainties: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)


def _against_truth(spans: Iterable[SpanRecord], truth_ns: Mapping[str, int], prefix: str) -> _Tags:
    found = _Tags()
    for span in spans:
        offset = span.attributes.get(prefix + "offset_ns")
        uncertainty = span.attributes.get(prefix + "uncertainty_ns")
        if not isinstance(offset, int) or not isinstance(uncertainty, int):
            found.unsynchronized += 1
            continue
        error = abs(offset - truth_ns[span.stage])
        found.errors.append(error)
        found.uncertainties.append(uncertainty)
        found.misses += error > uncertainty
    return found


def _spread(values: list[int]) -> Spread | None:
    if not values:
        return None
    values = sorted(values)
    return Spread(values[0], quantile(values, 0.5), values[-1])


def _separation(ordered_ns: Sequence[int]) -> Separation | None:
    if not ordered_ns:
        return None
    return Separation(*(round(quantile(ordered_ns, share) / 1e6, 4) for share in (0, 0.01, 0.5, 0.99)))


def _times(span: SpanRecord) -> tuple[int, int, tuple[tuple[str, int], ...]]:
    return span.start_ns, span.end_ns, tuple(sorted(span.events.items()))


def durations_changed(raw: Mapping[str, SpanRecord], corrected: Iterable[SpanRecord]) -> int:
    """How many spans do not last as long as their raw twins."""
    return sum(
        span.end_ns - span.start_ns != raw[span.span_id].end_ns - raw[span.span_id].start_ns
        for span in corrected
        if span.span_id in raw
    )


def order_changed(raw: Mapping[str, SpanRecord], corrected: Iterable[SpanRecord]) -> int:
    """How many neighbours among one node's spans, in the order of their raw starts, changed places."""
    by_stage: dict[str, list[tuple[int, int]]] = {}
    for span in corrected:
        if span.span_id in raw:
            by_stage.setdefault(span.stage, []).append((raw[span.span_id].start_ns, span.start_ns))
    changed = 0
    for starts in by_stage.values():
        starts.sort()
        changed += sum(
            (b_raw > a_raw and b <= a) or (b_raw == a_raw and b != a) for (a_raw, a), (b_raw, b) in pairwise(starts)
        )
    return changed


def separations(
    spans: Iterable[SpanRecord], rule: str, facts: CellFacts, *, tagged: bool = False
) -> dict[tuple[str, str], list[int]]:
    """True gaps, ascending, by the edge's sender and receiver.

    Args:
        spans: raw ones (``off`` or ``tag``), or rewritten ones, whose originals are then recovered (``tagged``).
    """
    found: dict[tuple[str, str], list[int]] = {}
    for edge in edges(spans, rule):
        sent_ns, received_ns = edge.sent_ns, edge.received_ns
        if tagged:
            sent_ns = stamp_from_attributes(sent_ns, edge.sender.attributes).time_ns
            received_ns = stamp_from_attributes(received_ns, edge.receiver.attributes).time_ns
        gap = received_ns - sent_ns + facts.truth_ns[edge.receiver.stage] - facts.truth_ns[edge.sender.stage]
        found.setdefault((edge.sender.stage, edge.receiver.stage), []).append(gap)
    for gaps in found.values():
        gaps.sort()
    return found


def host_separation_ns(edge: Edge, rule: str) -> int | None:
    """An edge's true gap by the host's raw clock alone, in which no node's clock has a part.

    The readings lie beside the stamps, microseconds away. None without them, or when the two are of different hosts.
    """
    begun = edge.sender.attributes.get(HOST_RAW if rule == "span-start" else HOST_RAW_SENT)
    ended = edge.receiver.attributes.get(HOST_RAW)
    if not isinstance(begun, int) or not isinstance(ended, int) or abs(ended - begun) > SAME_HOST_NS:
        return None
    return ended - begun


def _shorter_by_the_host(spans: Iterable[SpanRecord], rule: str, facts: CellFacts) -> int | None:
    separations = [
        host_separation_ns(edge, rule) for edge in edges(spans, rule) if counted(edge, facts.stage, facts.direction)
    ]
    known = [separation for separation in separations if separation is not None]
    if not known or len(known) < len(separations):
        return None
    return sum(separation < facts.skew_ns for separation in known)


def _row(
    spans: Mapping[str, SpanRecord],
    duplicated: int,
    mode: str,
    rule: str,
    facts: CellFacts,
    tags: _Tags,
    prefix: str,
) -> Run:
    verdicts: Counter[str] = Counter()
    bad_verdicts: Counter[str] = Counter()
    all_verdicts: Counter[str] = Counter()
    all_bad: Counter[str] = Counter()
    total = all_total = violations = all_violations = residual_max = 0
    residuals: list[int] = []
    for edge in edges(spans.values(), rule):
        verdict = verdict_of(edge, prefix) if mode != "off" else None
        negative = edge.gap_ns < 0
        excused = False
        if negative and mode == "rewrite" and rule == "send-receive":
            bound = uncertainty_ns(edge, prefix)
            excused = bound is not None and -edge.gap_ns <= bound
            if excused:
                verdict = "indeterminate"
        violation = negative and not excused
        ours = counted(edge, facts.stage, facts.direction)
        all_total += 1
        all_violations += violation
        total += ours
        violations += ours and violation
        if ours and negative:
            residual_max = max(residual_max, -edge.gap_ns)
        if negative and excused:
            residuals.append(-edge.gap_ns)
        if verdict is not None:
            all_verdicts[verdict] += 1
            all_bad[verdict] += violation
            verdicts[verdict] += ours
            bad_verdicts[verdict] += ours and violation
    return Run(
        transport=facts.transport,
        broker=facts.broker,
        client=facts.client,
        stage=facts.stage,
        direction=facts.direction,
        skew_ms=facts.skew_ns / 1e6,
        mode=mode,
        rule=rule,
        messages=facts.messages,
        edges=total,
        violations=violations,
        violation_rate=round(violations / total, 6) if total else 0.0,
        predicted_rate=None,
        verdicts=dict(+verdicts),
        violation_verdicts=dict(+bad_verdicts),
        residual_max_ns=residual_max,
        residuals_ns=sorted(residuals),
        bound_misses=tags.misses,
        throughput_per_s=round(facts.throughput_per_s, 3),
        outputs_correct=facts.outputs_correct,
        separation_ms=None,
        floor_ms=facts.floor_ns / 1e6,
        uncertainty_ns=_spread(tags.uncertainties),
        error_ns=_spread(tags.errors),
        spans=len(spans),
        spans_missing=facts.messages * len(STAGES) - len(spans),
        spans_duplicated=duplicated,
        spans_unsynchronized=tags.unsynchronized,
        all=AllEdges(all_total, all_violations, dict(+all_verdicts), dict(+all_bad)),
    )


def analyse(
    spans_by_mode: Mapping[str, Sequence[SpanRecord]], facts: CellFacts, *, prefix: str = "clock."
) -> CellAnalysis:
    """The rows of one cell: each mode by each rule.

    Args:
        spans_by_mode: what came out of each mode's sidecars, all of this cell; duplicates (a retried export) are
            counted and dropped.
    """
    found = CellAnalysis()
    unique = {mode: {span.span_id: span for span in spans_by_mode[mode]} for mode in MODES if mode in spans_by_mode}
    if not unique:
        return found
    raw = unique.get("off") or unique.get("tag")
    base = raw if raw is not None else unique.get("rewrite", {})
    tags = {
        mode: _against_truth(spans.values(), facts.truth_ns, prefix) if mode != "off" else _Tags()
        for mode, spans in unique.items()
    }
    found.uncertainties_ns = {mode: of.uncertainties for mode, of in tags.items()}
    found.errors_ns = {mode: of.errors for mode, of in tags.items()}
    for rule in RULES:
        by_edge = separations(base.values(), rule, facts, tagged=raw is None)
        found.by_edge_ns |= {(rule, edge_name(edge)): gaps for edge, gaps in by_edge.items()}
        violable = violable_edge(facts.stage, facts.direction)
        found.separations_ns[rule] = by_edge.get(violable, []) if violable is not None else []
        for mode, spans in unique.items():
            row = _row(spans, len(spans_by_mode[mode]) - len(spans), mode, rule, facts, tags[mode], prefix)
            row.separation_ms = _separation(found.separations_ns[rule])
            row.shorter_separations = _shorter_by_the_host(base.values(), rule, facts)
            if raw is not None and mode == "tag" and "off" in unique:
                row.times_changed = sum(
                    _times(span) != _times(raw[span.span_id]) for span in spans.values() if span.span_id in raw
                )
            if raw is not None and mode == "rewrite":
                row.durations_changed = durations_changed(raw, spans.values())
                row.order_changed = order_changed(raw, spans.values())
            found.rows.append(row)
    return found


def joined(parts: Sequence[CellAnalysis]) -> CellAnalysis:
    """One cell from its blocks; what is a rate or a share is weighed by the blocks' messages.

    Raises:
        ValueError: the blocks are not of one cell: their rows are of different modes, rules, skews or transports.
    """
    if len(parts) == 1:
        return parts[0]
    whole = CellAnalysis(
        separations_ns=_gathered([part.separations_ns for part in parts]),
        by_edge_ns=_gathered([part.by_edge_ns for part in parts]),
        uncertainties_ns=_gathered([part.uncertainties_ns for part in parts]),
        errors_ns=_gathered([part.errors_ns for part in parts]),
    )
    for blocks in zip(*(part.rows for part in parts), strict=True):
        row = _joined_row(blocks)
        row.separation_ms = _separation(whole.separations_ns[row.rule])
        row.uncertainty_ns = _spread(whole.uncertainties_ns.get(row.mode, []))
        row.error_ns = _spread(whole.errors_ns.get(row.mode, []))
        whole.rows.append(row)
    return whole


def _gathered(tables: Iterable[Mapping[_K, list[int]]]) -> dict[_K, list[int]]:
    found: dict[_K, list[int]] = {}
    for table in tables:
        for key, values in table.items():
            found.setdefault(key, []).extend(values)
    return {key: sorted(values) for key, values in found.items()}


_SAME_IN_A_CELL = ("transport", "broker", "client", "stage", "direction", "skew_ms", "mode", "rule", "floor_ms")


def _joined_row(blocks: Sequence[Run]) -> Run:
    """Counts added; the separations and spreads are the caller's to fill in."""
    first = blocks[0]
    for name in _SAME_IN_A_CELL:
        if len(found := {getattr(block, name) for block in blocks}) > 1:
            raise ValueError(f"blocks of different cells: {name} is {' and '.join(map(str, found))}")
    messages = sum(block.messages for block in blocks)
    edges = sum(block.edges for block in blocks)
    violations = sum(block.violations for block in blocks)
    sums = {name: _sum(getattr(block, name) for block in blocks) for name in _ADDED}
    every = [block.all for block in blocks if block.all is not None]
    return msgspec.structs.replace(
        first,
        **sums,
        messages=messages,
        edges=edges,
        violations=violations,
        violation_rate=round(violations / edges, 6) if edges else 0.0,
        verdicts=_counted(block.verdicts for block in blocks),
        violation_verdicts=_counted(block.violation_verdicts for block in blocks),
        residual_max_ns=max(block.residual_max_ns for block in blocks),
        residuals_ns=sorted(value for block in blocks for value in block.residuals_ns),
        throughput_per_s=round(sum(block.throughput_per_s * block.messages for block in blocks) / messages, 3),
        outputs_correct=round(sum(block.outputs_correct * block.messages for block in blocks) / messages, 6),
        all=AllEdges(
            sum(part.edges for part in every),
            sum(part.violations for part in every),
            _counted(part.verdicts for part in every),
            _counted(part.violation_verdicts for part in every),
        ),
    )


_ADDED = (
    "bound_misses",
    "spans",
    "spans_missing",
    "spans_duplicated",
    "spans_unsynchronized",
    "times_changed",
    "durations_changed",
    "order_changed",
    "shorter_separations",
)


def _sum(counts: Iterable[int | None]) -> int | None:
    """None if a block does not know."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _counted(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(+total)


def confuse(
    tally: Tally, spans: Iterable[SpanRecord], facts: CellFacts, situation: str, *, prefix: str = "clock."
) -> None:
    """Adds what the tags say of every edge of a cell, late stamps' too, beside what is true.

    Args:
        spans: of the ``tag`` mode.
    """
    unique = {span.span_id: span for span in spans}
    for rule in (*RULES, LATE_STAMP):
        for edge in edges(unique.values(), rule):
            true_gap = edge.gap_ns + facts.truth_ns[edge.receiver.stage] - facts.truth_ns[edge.sender.stage]
            tally.add(situation, facts.transport, rule, truth_of(edge.gap_ns, true_gap), verdict_of(edge, prefix))
