"""``skewd.now()``: what time is it on the reference timescale, and how sure is that?

The answer comes from the daemon's shared memory and this host's raw clock, never from the wall clock: a wall clock
that was stepped a moment ago makes no difference. The daemon's newest knot says what the reference read at one raw
instant; since then the raw clock ran on, at a rate known within the knot's drift bound.

Limits: the runtime directory is the default one unless ``SKEWD_NODE__RUNTIME_DIR`` names another. On a virtual node
(a test's) this process must be on the same virtual clock, which ``SKEWD_VIRTUAL_CLOCK`` tells in the words of
``--virtual-clock``.
"""

from __future__ import annotations

import os
from pathlib import Path

from skewd.bounds.history import Knot, Status, carried
from skewd.clock import Clock, HostClock, clock_from_option
from skewd.interval import Interval
from skewd.publish.segment import NAME, SegmentReader


class NoBound(RuntimeError):
    """The reference's time is not known; the message says why and what to do."""


def reference_time(knot: Knot, raw_ns: int) -> Interval:
    """The reference timescale's time at a raw instant of the knot's node, from the knot alone.

    The knot's drift bound is that of reference - wall, widened on both sides for the wall's own slewing, so it also
    holds for reference - raw.

    Raises:
        NoBound: the knot knows none.
    """
    if knot.bound is None or knot.status is Status.UNSYNCHRONIZED:
        raise NoBound("the daemon has no usable bound yet; 'skewd status' says why")
    elapsed = raw_ns - knot.raw_ns
    return (knot.bound + carried(elapsed, knot.drift_ppb, knot.wander_ppb_per_s)).shift(knot.wall_ns + elapsed)


class Now:
    """A reader of one segment that answers ``now()`` again and again.

    Args:
        path: the segment; by default the one in the runtime directory.
        clock: this node's clocks.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, clock: Clock | None = None) -> None:
        if path is None:
            path = Path(os.environ.get("SKEWD_NODE__RUNTIME_DIR") or "/run/skewd") / NAME
        if clock is None:
            text = os.environ.get("SKEWD_VIRTUAL_CLOCK")
            clock = clock_from_option(text) if text else HostClock()
        self._reader = SegmentReader(path)
        self._clock = clock

    def __call__(self) -> Interval:
        """The earliest and the latest that the reference timescale can read now, Unix nanoseconds.

        Raises:
            NoBound: no daemon writes, or it has no bound; the message says what to do.
        """
        knot = self._reader.latest
        if knot is None and self._reader.refused is not None:
            raise NoBound(self._reader.refused)
        if knot is None:
            raise NoBound(f"no daemon writes {self._reader.path}; start 'skewd run' on this node")
        if self._reader.virtual and not self._clock.virtual:
            raise NoBound("this node's clock is virtual and this process is not on it; set SKEWD_VIRTUAL_CLOCK")
        return reference_time(knot, self._clock.raw_ns())


_default: Now | None = None


def now() -> Interval:
    """The earliest and the latest time that the reference timescale can read now, Unix nanoseconds.

    Raises:
        NoBound: no daemon runs on this node, or it has no bound; the message says what to do.
    """
    global _default
    if _default is None:
        _default = Now()
    return _default()
