"""Spans paired into edges, as a backend would pair them: a child whose parent is another stage's span.

For what sees spans as they come and knows nothing of a plan: the long run's windows, and a stage that collects what
other hosts send it. What the experiment's figures are computed from is the table of `edges.py`.

Limits: pure; a span whose parent is not among the spans at hand makes no edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from skewd_pipeline.spans import HOST_RAW, HOST_RAW_SENT, RECEIVED, SENT, SpanRecord
from skewd_sidecar.causality import judge, stamp_from_attributes

UNSYNCHRONIZED = "unsynchronized"
"""Counted beside the verdicts: an edge without one, because a side had no bound."""

SAME_HOST_NS = 60_000_000_000
"""Raw readings further apart than this are of different hosts, or boots."""


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


def edges(spans: Iterable[SpanRecord], rule: str) -> Iterator[Edge]:
    """Every edge between two stages, by one rule; an edge whose events are missing is left out."""
    by_id = {span.span_id: span for span in spans}
    for receiver in by_id.values():
        sender = by_id.get(receiver.parent_id)
        if sender is None or sender.stage == receiver.stage:
            continue
        if rule == "span-start":
            yield Edge(sender, receiver, sender.start_ns, receiver.start_ns)
        elif SENT in sender.events and RECEIVED in receiver.events:
            yield Edge(sender, receiver, sender.events[SENT], receiver.events[RECEIVED])


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


def host_separation_ns(edge: Edge, rule: str) -> int | None:
    """An edge's true gap by the host's raw clock alone, in which no node's clock has a part.

    The readings lie beside the stamps, microseconds away. None without them, or when the two are of different hosts.
    """
    begun = edge.sender.attributes.get(HOST_RAW if rule == "span-start" else HOST_RAW_SENT)
    ended = edge.receiver.attributes.get(HOST_RAW)
    if not isinstance(begun, int) or not isinstance(ended, int) or abs(ended - begun) > SAME_HOST_NS:
        return None
    return ended - begun
