"""How often something happened within the last minute: what a problem is judged by.

The problem: a counter only grows. What was wrong once would be told for as long as the daemon runs, and nobody could
see that the cure has worked. The insight: a problem is what happens *now*, so what counts is the last minute.

Limits: the minute is kept in ``SLOTS`` parts, so one of them more may be counted. Pure: times are handed in.
"""

from __future__ import annotations

from collections import deque

RECENT_NS = 60_000_000_000
"""A minute: so long what happened is told as a problem."""

SLOTS = 12
_SLOT_NS = RECENT_NS // SLOTS


class Recent:
    """Counts events by the time at which they happened, and forgets them after ``RECENT_NS``."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque(maxlen=SLOTS + 1)

    def add(self, now_ns: int) -> None:
        """One happened at ``now_ns``."""
        if self._slots and 0 <= now_ns - self._slots[-1][0] < _SLOT_NS:
            self._slots[-1][1] += 1
        else:
            self._slots.append([now_ns, 1])

    def count(self, now_ns: int) -> int:
        """How many happened within the last minute before ``now_ns``; what lies after it does not count."""
        return sum(number for began_ns, number in self._slots if 0 <= now_ns - began_ns <= RECENT_NS)
