"""Clocks compared over the transport under test and over nothing else: how a node is configured for it, and what its
bounds were worth.

The problem: a mesh that also speaks UDP hides what a transport alone can do, and UDP is what a firewalled pipeline does
not have. The insight: everything needed travels there already. With ``--inband-only`` the daemons' UDP is off, and two
things remain. Pings: on ZeroMQ and Aeron relayed by the stages over the pipeline's own hops, on Kafka in a topic of
the run's broker. And one-way stamps on the pipeline's own messages, one for each that a daemon signed in time. Each
transport gets nodes of its own, for a narrow bound learnt over one would pass as the merit of the next.

On ZeroMQ and Aeron only neighbours hear each other, so a node that is not the reference's neighbour has its bound
through others; a chain has one path, which is believed here because nobody in it lies (``liars = 0``).

What the bounds were then worth is a query over the table of edges, as everything else is (``figures.bounds``).

Limits: pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
