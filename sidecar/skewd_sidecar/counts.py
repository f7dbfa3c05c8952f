"""What a sidecar counts beside its spans: plain numbers, read when somebody asks.

Counting is on every request's way, asking is rare. So what counts increments, and knows nothing of Prometheus; a part
with numbers of its own appends a :class:`Reading` to ``Counts.readings`` and is done.

Limits: labels are the program's own words, never text from the network, so no table grows. One thread. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

ADDED_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0)
"""Upper bounds of the histogram of added latency, in seconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric that is read when somebody asks.

    Attributes:
        name: without ``_total``, as ``skewd_dead_letters``.
        about: one sentence.
        kind: whether it only grows.
        labels: the labels' names.
        read: the values by their labels' values; ``{(): 3.0}`` if there are no labels.
    """

    name: str
    about: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    read: Callable[[], Mapping[tuple[str, ...], float]]


class Histogram:
    """How many values fell below each of ``bounds`` (ascending), and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass
class Counts:
    """The numbers of one sidecar.

    Attributes:
        received: requests that arrived whole, by protocol and encoding.
        received_bytes: their bytes, decompressed, by protocol.
        refused: requests not passed on, by reason (one word).
        added_s: seconds that a request spent here other than waiting for the next hop.
        readings: what else is to be shown.
    """

    received: Counter[tuple[str, str]] = field(default_factory=Counter)
    received_bytes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    added_s: Histogram = field(default_factory=lambda: Histogram(ADDED_BOUNDS_S))
    readings: list[Reading] = field(default_factory=list)
