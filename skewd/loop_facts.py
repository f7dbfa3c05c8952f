"""How the daemon itself is doing: whether its loop comes to its turn in time, when it last published, how wide.

A bound is right however late the loop is, but what is published grows old, and an operator wants to see that before a
reader does. So the daemon notes here what it sees of itself while it turns, and a status tells it.

Limits: the lag is the longest of the last one to two minutes; of the widths there is a histogram for the present
reference alone, which begins anew with another one. Pure: instants are handed in.
"""

from __future__ import annotations

import bisect

from skewd.bounds.history import Knot
from skewd.status import LoopRow, WidthsRow

LAG_KEPT_NS = 60_000_000_000

WIDTHS_NS = (
    *(1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000),
    *(10_000_000, 20_000_000, 50_000_000, 100_000_000, 1_000_000_000),
)
"""Upper ends of the histogram's buckets; what is wider counts in one more."""


class LoopFacts:
    """What the daemon has seen of itself."""

    def __init__(self) -> None:
        self._lags: tuple[int, int] = (0, 0)
        self._lags_since_ns = 0
        self._published_ns: int | None = None
        self._reference: str | None = None
        self._epoch: int | None = None
        self._changed_ns: int | None = None
        self._counts = [0] * (len(WIDTHS_NS) + 1)
        self._sum_ns = 0

    def late(self, lag_ns: int, now_ns: int) -> None:
        """The loop came to something ``lag_ns`` after its time, or was busy with one thing for so long."""
        if now_ns - self._lags_since_ns >= LAG_KEPT_NS:
            fresh = now_ns - self._lags_since_ns < 2 * LAG_KEPT_NS
            self._lags, self._lags_since_ns = (0, self._lags[0] if fresh else 0), now_ns
        if lag_ns > self._lags[0]:
            self._lags = (lag_ns, self._lags[1])

    def published(self, knot: Knot | None, now_raw_ns: int) -> None:
        """A knot went out, or there was none to be made."""
        if knot is None:
            return
        self._published_ns = now_raw_ns
        if knot.bound is None:
            return
        if (knot.reference, knot.epoch) != (self._reference, self._epoch):
            if knot.reference != self._reference:
                self._counts, self._sum_ns = [0] * len(self._counts), 0
            self._reference, self._epoch, self._changed_ns = knot.reference, knot.epoch, now_raw_ns
        width = knot.bound.width
        self._counts[bisect.bisect_left(WIDTHS_NS, width)] += 1
        self._sum_ns += width

    def told(self, now_raw_ns: int) -> LoopRow:
        """For a status."""

        def ago_s(at_ns: int | None) -> float | None:
            return None if at_ns is None else round(max(now_raw_ns - at_ns, 0) / 1e9, 3)

        known = self._reference is not None
        return LoopRow(
            lag_s=max(self._lags) / 1e9,
            publish_age_s=ago_s(self._published_ns),
            reference_changed_s=ago_s(self._changed_ns),
            widths=WidthsRow(self._reference, list(WIDTHS_NS), list(self._counts), self._sum_ns) if known else None,
        )
