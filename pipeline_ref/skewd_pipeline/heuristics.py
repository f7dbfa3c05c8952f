"""What trace tools do about skew today, from their formulas, beside measured offsets, on the same traces.

The problem: a tool that knows only the trace must guess. Where a child does not fit into its parent it moves the
child until it does, on the assumption that the way there takes as long as the way back, and that a child belongs
inside. Both may be wrong, and nothing in a trace says so. The insight: here the truth is known, so a guess can be
scored: how far from the true start is the corrected one, how many relations of order that were broken stay broken,
and how many that held are broken *by the correction*.

Times below are as corrected so far for the parent, as stamped for the child; *pd* and *cd* are durations.

- **raw**: nothing is moved.
- **centring** (Jaeger's): where a child is on another host than its parent and does not nest in it, all spans of that
  host below are moved by parent start + (pd - cd) / 2 - child start; if the child is the longer one, by
  max(0, parent start - child start).
- **client-server** (Zipkin's): where a server's span is the child of a client's on another host and starts no later,
  the server's host below is moved back by its skew, server start - client start - (pd - cd) / 2.
- **measured** (ours): each span is moved by its own ``clock.offset_ns``, which no edge has a part in.

A *relation* is any two of the four stamps of a parent and its child (start before start, end before start, ...), one of
each, and any two starts of one host in a trace, in the order in which they truly were. ``introduced`` counts those that
the raw stamps have right and the corrected ones do not. Measured offsets say how sure they are: a relation that they
turn round by less than the two spans' summed uncertainty is ``undecided``, which is what its verdict says of it too.

Limits: the formulas, not the tools: no rounding to microseconds, no tags that switch an adjuster off, no limit on the
largest adjustment. A child whose parent is missing is a root and stays where it is. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from skewd_pipeline.pairs import quantile
from skewd_pipeline.results import Heuristic
from skewd_pipeline.spans import ROLE, SpanRecord

OURS = "measured"
HEURISTICS = ("centring", "client-server")
REAL_CALLS = "calls between two stages"
KINDS = ("client", "server", "producer", "consumer", "internal")


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """A span with the truth about it.

    Attributes:
        host: whose clock stamped it.
        start_ns, end_ns: as stamped.
        true_start_ns, true_end_ns: on the reference timescale.
        asynchronous: its parent does not wait for it.
        offset_ns, uncertainty_ns: what the sidecar's tag says; None without a tag.
    """

    span_id: str
    parent_id: str
    trace_id: str
    host: str
    kind: str
    start_ns: int
    end_ns: int
    true_start_ns: int
    true_end_ns: int
    asynchronous: bool = False
    offset_ns: int | None = None
    uncertainty_ns: int | None = None

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


Moves = dict[str, int]
"""By span, what a method adds to its times."""


def raw(trace: Sequence[TraceSpan]) -> Moves:
    """Nothing is moved."""
    return {span.span_id: 0 for span in trace}


def measured(trace: Sequence[TraceSpan]) -> Moves:
    """Each span by its own tag; one without a tag stays where it is."""
    return {span.span_id: span.offset_ns or 0 for span in trace}


def centring_delta(parent_start_ns: int, parent_end_ns: int, start_ns: int, end_ns: int) -> int:
    """By how much Jaeger's rule moves a child of another host."""
    if start_ns >= parent_start_ns and end_ns <= parent_end_ns:
        return 0
    parent_duration, duration = parent_end_ns - parent_start_ns, end_ns - start_ns
    if duration > parent_duration:
        return max(0, parent_start_ns - start_ns)
    return parent_start_ns + (parent_duration - duration) // 2 - start_ns


def centring(trace: Sequence[TraceSpan]) -> Moves:
    """Jaeger's rule, from the root downwards; a host's delta holds until the host changes."""
    moves: Moves = {}

    def visit(span: TraceSpan, parent: TraceSpan | None, carried_ns: int) -> int:
        if parent is None:
            return 0
        if span.host == parent.host:
            return carried_ns
        moved = moves[parent.span_id]
        return centring_delta(parent.start_ns + moved, parent.end_ns + moved, span.start_ns, span.end_ns)

    _descend(trace, moves, visit)
    return moves


def client_server_skew(client_start_ns: int, client_duration_ns: int, start_ns: int, duration_ns: int) -> int:
    """The skew that Zipkin's rule finds in a server's clock; 0 where it does not look for one."""
    if start_ns > client_start_ns:
        return 0
    return start_ns - client_start_ns - (client_duration_ns - duration_ns) // 2


def client_server(trace: Sequence[TraceSpan]) -> Moves:
    """Zipkin's rule, from the root downwards; a server's skew holds for its host until another pair is found."""
    moves: Moves = {}

    def visit(span: TraceSpan, parent: TraceSpan | None, carried_ns: int) -> int:
        if parent is None:
            return 0
        if (parent.kind, span.kind) == ("client", "server") and parent.host != span.host:
            start_ns = parent.start_ns + moves[parent.span_id]
            return -client_server_skew(start_ns, parent.duration_ns, span.start_ns, span.duration_ns)
        return carried_ns if span.host == parent.host else 0

    _descend(trace, moves, visit)
    return moves


def _descend(
    trace: Sequence[TraceSpan], moves: Moves, visit: Callable[[TraceSpan, TraceSpan | None, int], int]
) -> None:
    """Visits parents before children; a span in a cycle of parents is left where it is."""
    by_id = {span.span_id: span for span in trace}
    children: dict[str, list[TraceSpan]] = {}
    for span in trace:
        children.setdefault(span.parent_id if span.parent_id in by_id else "", []).append(span)
    queue: list[tuple[TraceSpan, TraceSpan | None]] = [(span, None) for span in children.get("", ())]
    while queue:
        span, parent = queue.pop()
        if span.span_id in moves:
            continue
        moves[span.span_id] = visit(span, parent, moves[parent.span_id] if parent is not None else 0)
        queue += [(child, span) for child in children.get(span.span_id, ())]
    for span in trace:
        moves.setdefault(span.span_id, 0)


METHODS: Mapping[str, Callable[[Sequence[TraceSpan]], Moves]] = {
    "raw": raw,
    "centring": centring,
    "client-server": client_server,
    OURS: measured,
}


def pipeline_traces(spans: Iterable[SpanRecord], truth_ns: Mapping[str, int]) -> list[list[TraceSpan]]:
    """The traces of one cell of the pipeline, where every child is asynchronous: nobody waits for an answer.

    Args:
        spans: of the ``tag`` mode: as stamped, with their tags.
        truth_ns: by node, what must be added to its wall clock to reach the reference's.
    """
    found: dict[str, list[TraceSpan]] = {}
    for span in {each.span_id: each for each in spans}.values():
        kind = "consumer" if span.parent_id else "producer"
        traced = _traced(span, truth_ns[span.stage], kind, asynchronous=bool(span.parent_id))
        found.setdefault(span.trace_id, []).append(traced)
    return list(found.values())


def _traced(span: SpanRecord, truth_ns: int, kind: str, *, asynchronous: bool) -> TraceSpan:
    offset, uncertainty = (span.attributes.get(f"clock.{name}") for name in ("offset_ns", "uncertainty_ns"))
    known = isinstance(offset, int) and isinstance(uncertainty, int)
    return TraceSpan(
        span_id=span.span_id,
        parent_id=span.parent_id,
        trace_id=span.trace_id,
        host=span.stage,
        kind=kind,
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        true_start_ns=span.start_ns + truth_ns,
        true_end_ns=span.end_ns + truth_ns,
        asynchronous=asynchronous,
        offset_ns=int(offset) if known and isinstance(offset, int) else None,
        uncertainty_ns=int(uncertainty) if known and isinstance(uncertainty, int) else None,
    )


CALL_KINDS = {"request": "internal", "client": "client", "server": "server", "audit": "internal"}


def call_traces(spans: Iterable[SpanRecord], truth_ns: Mapping[str, int]) -> list[list[TraceSpan]]:
    """The traces of a cell of calls (``calls_stage.py``): only the audit is asynchronous.

    Args:
        spans: of the ``tag`` mode; those without a role are no part of a call.
        truth_ns: by node, what its wall clock lacks to the reference's.
    """
    found: dict[str, list[TraceSpan]] = {}
    for span in {each.span_id: each for each in spans}.values():
        role = str(span.attributes.get(ROLE, ""))
        if role in CALL_KINDS:
            traced = _traced(span, truth_ns[span.stage], CALL_KINDS[role], asynchronous=role == "audit")
            found.setdefault(span.trace_id, []).append(traced)
    return list(found.values())


# -- the score ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relation:
    """Two stamps in their true order: each of a span, and whether it is its end."""

    earlier: TraceSpan
    earlier_is_end: bool
    later: TraceSpan
    later_is_end: bool
    asynchronous: bool

    def gap_ns(self, moves: Mapping[str, int]) -> int:
        """Later minus earlier after a correction; negative: turned round."""
        earlier = self.earlier.end_ns if self.earlier_is_end else self.earlier.start_ns
        later = self.later.end_ns if self.later_is_end else self.later.start_ns
        return later + moves[self.later.span_id] - earlier - moves[self.earlier.span_id]


def relations(trace: Sequence[TraceSpan]) -> list[Relation]:
    """Every relation of order that the trace has, as it truly is."""
    by_id = {span.span_id: span for span in trace}
    found: list[Relation] = []
    for child in trace:
        parent = by_id.get(child.parent_id)
        if parent is None:
            continue
        for parent_end in (False, True):
            for child_end in (False, True):
                one = parent.true_end_ns if parent_end else parent.true_start_ns
                other = child.true_end_ns if child_end else child.true_start_ns
                if one < other:
                    found.append(Relation(parent, parent_end, child, child_end, child.asynchronous))
                elif other < one:
                    found.append(Relation(child, child_end, parent, parent_end, child.asynchronous))
    by_host: dict[str, list[TraceSpan]] = {}
    for span in trace:
        by_host.setdefault(span.host, []).append(span)
    for spans in by_host.values():
        spans.sort(key=lambda span: span.true_start_ns)
        found += [
            Relation(a, False, b, False, b.asynchronous)
            for a, b in pairwise(spans)
            if a.true_start_ns < b.true_start_ns
        ]
    return found


def _unsure_by(relation: Relation) -> int:
    return (relation.earlier.uncertainty_ns or 0) + (relation.later.uncertainty_ns or 0)


def compare(name: str, skew_ms: float, traces: Iterable[Sequence[TraceSpan]]) -> list[Heuristic]:
    """Every method on the same traces, on synchronous and asynchronous children apart (where there are any).

    Errors are those of children's starts whose host is not their root's: only there has a correction work to do.
    """
    kept = [trace for trace in traces if trace]
    hosts = [_root_host(trace) for trace in kept]
    known = [relations(trace) for trace in kept]
    still = [raw(trace) for trace in kept]
    rows = []
    for method, correct in METHODS.items():
        moved = [correct(trace) for trace in kept]
        for asynchronous in (False, True):
            errors = sorted(
                abs(span.start_ns + moves[span.span_id] - span.true_start_ns)
                for trace, moves, host in zip(kept, moved, hosts, strict=True)
                for span in trace
                if span.parent_id and span.host != host and span.asynchronous == asynchronous
            )
            if not errors:
                continue
            before = left = introduced = undecided = total = 0
            for found, moves, unmoved in zip(known, moved, still, strict=True):
                for relation in found:
                    if relation.asynchronous != asynchronous:
                        continue
                    total += 1
                    was, gap = relation.gap_ns(unmoved) < 0, relation.gap_ns(moves)
                    before += was
                    if gap >= 0:
                        continue
                    if method == OURS and -gap <= _unsure_by(relation):
                        undecided += 1
                    elif was:
                        left += 1
                    else:
                        introduced += 1
            rows.append(
                Heuristic(
                    traces=name,
                    method=method,
                    edges="asynchronous" if asynchronous else "synchronous",
                    skew_ms=skew_ms,
                    spans=len(errors),
                    rms_us=round(math.sqrt(sum(error * error for error in errors) / len(errors)) / 1e3, 3),
                    p99_us=round(quantile(errors, 0.99) / 1e3, 3),
                    max_us=round(errors[-1] / 1e3, 3),
                    relations=total,
                    violated_before=before,
                    left=left,
                    introduced=introduced,
                    undecided=undecided,
                )
            )
    return rows


def _root_host(trace: Sequence[TraceSpan]) -> str:
    ids = {span.span_id for span in trace}
    return next((span.host for span in trace if span.parent_id not in ids), trace[0].host)
