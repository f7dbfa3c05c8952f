"""When to ask a time server next: soon at the start, then ever less often, up to the interval that was asked for.

A few answers in quick succession find a short round trip, and the growing gaps after them a drift, long before the
interval has passed a few times. A lost answer is asked for again soon, twice; a server that stays silent is asked at
the interval, and greeted with a burst when it comes back. A server that says ``RATE`` is never hurried again: the
interval doubles, and no gap is shorter.

Limits: the interval is the most; nothing here asks less often because the bound is good enough. Pure.
"""

from __future__ import annotations

BURST = 4
SOON_S = 2.0
SLOWEST_S = 1024.0
TRIES = 3
"""Questions in a row without a sample after which a server counts as silent."""


class Pace:
    """The gaps between questions, seconds.

    Args:
        interval_s: the most.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.failures = 0
        self._soon_s = min(SOON_S, interval_s)
        self._gap_s = self._soon_s
        self._burst = BURST

    @property
    def silent(self) -> bool:
        """Whether too many questions in a row gave no sample."""
        return self.failures >= TRIES

    def answered(self) -> float:
        """A sample came: the gap until the next question."""
        self.failures = 0
        self._burst = max(self._burst - 1, 0)
        if not self._burst:
            self._gap_s = min(2 * self._gap_s, self.interval_s)
        return self._gap_s

    def failed(self) -> float:
        """None came: the gap until the next question."""
        self.failures += 1
        self._gap_s = self._soon_s
        if not self.silent:
            return self._soon_s
        self._burst = BURST
        return self.interval_s

    def slow_down(self) -> float:
        """The server wants to be asked less: the gap until the next question, and the least from now on."""
        self.failures += 1
        self.interval_s = max(self.interval_s, min(2 * self.interval_s, SLOWEST_S))
        self._soon_s = self._gap_s = self.interval_s
        self._burst = 0
        return self.interval_s
