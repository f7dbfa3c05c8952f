"""One answer for many questions: made anew for each, as long as that takes little of the loop's time.

The problem: a status takes a millisecond to make, thirty for 256 peers, in the loop that stamps messages; and whoever
may ask may ask without end. But a bound holds at the instant it was computed for: a clock that drifts by 200 ppm leaves
one of some microseconds within a tick. The insight: whoever asks now and then can have an answer that was just made;
only a flood must share. So making answers, and what is made *of* them (:meth:`Fresh.derived`), may take one part in
``SHARE`` of the time. What was not used of it is saved up, to ``SAVED_NS``; while nothing is left the last answer
serves. A status says of which instant it is (``at_ns``).

Limits: under a flood an answer is up to ``SHARE`` times its cost old; one that raises is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
D = TypeVar("D")

SHARE = 20
"""One part in so many of the time may go into answers."""

SAVED_NS = 50_000_000
"""So much of that time may be saved up by not asking."""


class Fresh(Generic[T]):
    """A value that is made when it is asked for, and kept for a while.

    Args:
        make: makes it.
        clock_ns: any clock that goes on.
    """

    def __init__(self, make: Callable[[], T], clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._make, self._clock_ns = make, clock_ns
        self._value: T | None = None
        self._cost_ns: int | None = None
        self._saved_ns = SAVED_NS
        self._counted_ns = clock_ns()
        self._derived: dict[Hashable, Any] = {}

    def get(self) -> T:
        """It, as it is now or, where too many ask, was a moment ago."""
        began = self._earn()
        if self._cost_ns is None or self._saved_ns >= min(self._cost_ns, SAVED_NS):
            value = self._make()
            self._value = value
            self._derived.clear()
            self._cost_ns = 0
            self._spend(began)
        return cast(T, self._value)

    def derived(self, kind: Hashable, make: Callable[[T], D]) -> D:
        """What ``make`` makes of it, once for each value and kind."""
        value = self.get()
        if kind not in self._derived:
            began = self._earn()
            self._derived[kind] = make(value)
            self._spend(began)
        return cast(D, self._derived[kind])

    def _earn(self) -> int:
        """Adds what this moment's time allows; the moment."""
        now = self._clock_ns()
        earned = (now - self._counted_ns) // SHARE
        self._counted_ns += earned * SHARE
        self._saved_ns = min(self._saved_ns + earned, SAVED_NS)
        return now

    def _spend(self, began_ns: int) -> None:
        assert self._cost_ns is not None
        cost = self._clock_ns() - began_ns
        self._cost_ns += cost
        self._saved_ns -= cost
