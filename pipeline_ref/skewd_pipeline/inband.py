"""Clocks compared over the transport under test and over nothing else: how a node is configured for it, and what its
bounds were worth.

The problem: a mesh that also speaks UDP hides what a transport alone can do, and UDP is what a firewalled pipeline does
not have. The insight: everything needed travels there already. With ``--inband-only`` the daemons' UDP is off, and two
things remain. Pings: on ZeroMQ and Aeron relayed by the stages over the pipeline's own hops, on Kafka in a topic of
the run's broker. And one-way stamps on the pipeline's own messages, one for each that a daemon signed in time. Each
transport gets nodes of its own, for a narrow bound learnt over one would pass as the merit of the next.

On ZeroMQ and Aeron only neighbours hear each other, so a node that is not the reference's neighbour has its bound
through others; a chain has one path, which is believed here because nobody in it lies (``liars = 0``).

What is reported per transport is taken from the tags of the spans, hence from what a backend would have: the width of
offset +- uncertainty, the share of spans whose true offset lay inside, and the largest gap that was negative even after
the correction.

Limits: pure. The figures are over all spans of a transport's tagged cells; a cell of more messages weighs more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from skewd_pipeline.results import Bounds, Run, Spread
from skewd_pipeline.spans import SpanRecord

COUNTED = ("requests", "replies", "one_way", "stamps", "accepted", "one_way_unconfirmed", "rate_limited")
CLOCK_TOPIC = "skewd-clocks"
INBAND_ONLY = "in-band only"
SETTLED_UNCERTAINTY_NS = 10_000_000
"""In-band a bound is as wide as the work's own way, and through others the sum of several; it must only be there."""


@dataclass(frozen=True, slots=True)
class InBand:
    """How the nodes of one run hear each other.

    Args:
        transport: the one under test.
        bootstrap: kafka: the run's broker.
        topic: kafka: of the clocks.
    """

    transport: str
    bootstrap: str | None = None
    topic: str | None = None

    def link_lines(self) -> list[str]:
        """The ``[[link]]`` of a node, beside the one that its stage attaches to."""
        if self.transport != "kafka":
            return []
        return [
            "[[link]]",
            'transport = "kafka"',
            f"address = {json.dumps(self.bootstrap)}",
            f"topic = {json.dumps(self.topic)}",
        ]


@dataclass(slots=True)
class _Seen:
    broker: str | None = None
    widths_ns: dict[str, list[int]] = field(default_factory=dict)
    inside: int = 0
    spans: int = 0
    unsynchronized: int = 0
    residual_max_ns: int = 0
    residuals_beyond: int = 0


class BoundsTally:
    """What the bounds of each transport were worth, gathered cell by cell."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def add(
        self,
        transport: str,
        broker: str | None,
        spans: Iterable[SpanRecord],
        truth_ns: Mapping[str, int],
        rows: Iterable[Run],
        *,
        prefix: str = "clock.",
    ) -> None:
        """One cell's tagged (or rewritten) spans, the truth during it, and its rows."""
        seen = self._seen.setdefault(transport, _Seen())
        seen.broker = broker
        for span in spans:
            seen.spans += 1
            offset = span.attributes.get(prefix + "offset_ns")
            uncertainty = span.attributes.get(prefix + "uncertainty_ns")
            if not isinstance(offset, int) or not isinstance(uncertainty, int):
                seen.unsynchronized += 1
                continue
            seen.widths_ns.setdefault(span.stage, []).append(2 * uncertainty)
            seen.inside += abs(offset - truth_ns[span.stage]) <= uncertainty
        for row in rows:
            if row.mode == "rewrite" and row.rule == "send-receive":
                seen.residual_max_ns = max(seen.residual_max_ns, *row.residuals_ns, 0)
                seen.residuals_beyond += row.all.violations if row.all is not None else row.violations

    def bounds(self, *, inband_only: bool, reference: str, used: Mapping[str, Mapping[str, int]]) -> list[Bounds]:
        """One row for each transport.

        Args:
            reference: the node whose own bound is zero by definition; it is left out of the widths.
            used: by transport, how many messages of each kind the daemons used.
        """
        rows = []
        for transport, seen in self._seen.items():
            others = {stage: sorted(widths) for stage, widths in seen.widths_ns.items() if stage != reference}
            everyone = sorted(width for widths in others.values() for width in widths)
            bounded = seen.spans - seen.unsynchronized
            rows.append(
                Bounds(
                    transport=transport,
                    broker=seen.broker,
                    path=INBAND_ONLY if inband_only else "UDP and in-band",
                    spans=seen.spans,
                    spans_unsynchronized=seen.unsynchronized,
                    coverage=round(seen.inside / bounded, 6) if bounded else None,
                    width_ns=_spread(everyone),
                    width_p50_ns={stage: widths[len(widths) // 2] for stage, widths in others.items()},
                    residual_max_ns=seen.residual_max_ns,
                    residuals_beyond=seen.residuals_beyond,
                    messages=dict(used.get(transport, {})),
                )
            )
        return rows


def messages_used(statuses: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """From the daemons' accounts: requests, replies and one-way messages sent, stamps among them, and what of the
    others' was accepted, over all links."""
    total: dict[str, int] = {}
    for status in statuses:
        links = status.get("links")
        for link in links if isinstance(links, list) else []:
            counters = link.get("counters") if isinstance(link, dict) else None
            for name in COUNTED:
                count = counters.get(name) if isinstance(counters, dict) else None
                if isinstance(count, int):
                    total[name] = total.get(name, 0) + count
    return total


def _spread(ordered: list[int]) -> Spread | None:
    return Spread(ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None
