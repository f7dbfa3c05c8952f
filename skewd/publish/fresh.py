"""One answer for many questions: made at most so often, however often it is asked for.

The problem: a status takes a millisecond to make, thirty for 256 peers, in the loop that stamps messages; and whoever
may ask may ask without end. The insight: nobody can tell an answer that is a tick old from a fresh one. So an answer is
kept for a tick, and longer where it is dear: for ``SHARE`` times what it took to make, itself and all that was made
*of* it (:meth:`Fresh.derived`), so that answering takes the loop at most one part in ``SHARE`` + 1, whoever asks.

Limits: an answer is up to ``LEAST_NS`` old, or ``SHARE`` times its cost; one that raises is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
D = TypeVar("D")

LEAST_NS = 125_000_000
"""An answer serves for so long at least: a tick of the daemon's."""

SHARE = 19


class Fresh(Generic[T]):
    """A value that is made when it is asked for, and kept for a while.

    Args:
        make: makes it.
        clock_ns: any clock that goes on.
    """

    def __init__(self, make: Callable[[], T], clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._make, self._clock_ns = make, clock_ns
        self._value: T | None = None
        self._made_ns: int | None = None
        self._cost_ns = 0
        self._derived: dict[Hashable, Any] = {}

    def get(self) -> T:
        """It, as it is now or was a moment ago."""
        now = self._clock_ns()
        if self._made_ns is None or now - self._made_ns >= max(LEAST_NS, SHARE * self._cost_ns):
            value = self._make()
            self._value = value
            self._made_ns = self._clock_ns()
            self._cost_ns = self._made_ns - now
            self._derived.clear()
            return value
        return cast(T, self._value)

    def derived(self, kind: Hashable, make: Callable[[T], D]) -> D:
        """What ``make`` makes of it, once for each value and kind."""
        value = self.get()
        if kind not in self._derived:
            began = self._clock_ns()
            self._derived[kind] = make(value)
            self._made_ns = self._clock_ns()
            self._cost_ns += self._made_ns - began
        return cast(D, self._derived[kind])
