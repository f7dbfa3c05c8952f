"""What forwarding counted: plain numbers that a scrape reads, and a test."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """By signal, unless it says otherwise; all only grow.

    Attributes:
        requests: exporters' requests that were taken downstream.
        batches: bodies that were taken downstream; fewer than requests where requests were joined.
        bytes: of those bodies, before compression.
        retries: attempts beyond a body's first.
        splits: bodies that were divided, because they were refused or too large.
        refused: requests (or parts of one) that were refused for good.
        expired: requests whose exporter's time was over before they were taken.
        gathered_s: seconds that requests waited for company, summed.
        letters: by result: ``kept``, ``dropped`` (the file is full) or ``failed`` (it cannot be written).
    """

    requests: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    gathered_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    letters: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint as one signal sees it; ``up`` is false from a failed request to the next answer."""

    signal: str
    endpoint: str
    up: bool
