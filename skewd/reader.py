"""``skewd.now()``: what time is it on the reference timescale, and how sure is that?

The answer comes from the daemon's shared memory and this host's raw clock, never from the wall clock: a wall clock
that was stepped a moment ago makes no difference. The daemon's newest knot says what the reference read at one raw
instant; since then the raw clock ran on, at a rate known within the knot's drift bound.

Asking is cheap, because almost every question meets the same knot as the one before: it stays the newest while the
segment's count stands, and usable while the daemon's last sign of life is young. So what is kept of it is one tuple
of integers, and an answer is two clock readings, one look at the count, and a few multiplications.
``benchmarks/reading_now.py`` measures it.

The count is read by a system call, not from a mapped page: the process that asks is somebody else's, and must not die
of a file that was cut off. The second clock is CLOCK_BOOTTIME: after a sleep of the machine it has moved away from the
raw clock, and what was kept is dropped (``publish/segment.py`` tells why).

Limits: a sleep shorter than ``AWAKE_NS`` is not noticed here. A knot that is tightened in place is seen with the next
one, a quarter of a second later. The runtime directory is the default one unless ``SKEWD_NODE__RUNTIME_DIR`` names
another. On a virtual node (a test's) this process must be on the same virtual clock, which ``SKEWD_VIRTUAL_CLOCK``
tells in the words of ``--virtual-clock``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from skewd import hostclock
from skewd.bounds.history import Knot, Status, carried
from skewd.clock import Clock, HostClock, clock_from_option
from skewd.interval import Interval
from skewd.publish.segment import COUNT_AT, COUNT_BYTES, NAME, SegmentReader

_PPB = 1_000_000_000
_SCALE_BITS = 70
# HostClock.raw_ns() without a Python frame of its own; bound at import, as there.
_host_raw_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_MONOTONIC_RAW)
_boottime_ns: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
_pread = os.pread

AWAKE_NS = 200_000
"""CLOCK_BOOTTIME may move so far from the raw clock by slewing alone; then the segment is looked at anew."""

# An Interval's fields, past the constructor's check and the frozen class's setter: both ends are known to be in order.
_new = object.__new__
_set_lo = Interval.__dict__["lo"].__set__
_set_hi = Interval.__dict__["hi"].__set__
# Usable until a raw instant, and while CLOCK_BOOTTIME is not farther ahead of raw than this; what holds the segment
# open, its descriptor, and the count that must stand; the knot's raw instant and reference time; the ends of its drift,
# and half its wander, per nanosecond and scaled by 2 ** _SCALE_BITS.
_Kept = tuple[int, int, object, int, bytes, int, int, int, int, int, int]
_NOTHING: _Kept = (-(1 << 63), 0, None, -1, b"", 0, 0, 0, 0, 0, 0)


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
        self._raw: Callable[[], int] = _host_raw_ns if type(clock) is HostClock else clock.raw_ns
        self._lock = threading.Lock()
        self._kept = _NOTHING

    def __call__(self) -> Interval:
        """The earliest and the latest that the reference timescale can read now, Unix nanoseconds.

        Any number of threads may ask.

        Raises:
            NoBound: no daemon writes, or it has no bound; the message says what to do.
        """
        raw = self._raw()
        # ``_opened`` is held here, so that no other thread's descriptor can get this number meanwhile.
        until, awake, _opened, descriptor, count, knot_raw, lo, hi, rate_lo, rate_hi, bend = self._kept
        if raw >= until or _boottime_ns() - raw > awake or _pread(descriptor, COUNT_BYTES, COUNT_AT) != count:
            return self._anew()
        # reference_time(), written out: calls and small objects would cost more than the arithmetic, and a shift
        # costs less than a division. Each rate was rounded so that the result is outward, by a nanosecond at most.
        elapsed = raw - knot_raw
        bend *= elapsed * elapsed
        if elapsed < 0:
            rate_lo, rate_hi = rate_hi, rate_lo
        answer = _new(Interval)
        _set_lo(answer, lo + elapsed + ((rate_lo * elapsed - bend) >> _SCALE_BITS))
        _set_hi(answer, hi + elapsed - ((-rate_hi * elapsed - bend) >> _SCALE_BITS))
        return answer

    def _anew(self) -> Interval:
        """Reads the segment's newest knot and keeps it."""
        with self._lock:
            self._kept = _NOTHING
            raw = self._raw()
            found = self._reader.newest()
            if found is None:
                if self._reader.problem is not None:
                    raise NoBound(f"{self._reader.path} {self._reader.problem}")
                raise NoBound(f"no daemon writes {self._reader.path}; start 'skewd run' on this node")
            if self._reader.virtual and not self._clock.virtual:
                raise NoBound("this node's clock is virtual and this process is not on it; set SKEWD_VIRTUAL_CLOCK")
            knot = found.knot
            instant, ahead = self._raw(), _boottime_ns()
            answer = reference_time(knot, instant)
            assert knot.bound is not None, "reference_time() refuses such a knot"
            if hostclock.suspended_ns().lo > found.awake_ns:
                raise NoBound("this machine slept a moment ago; ask again in a second")
            self._kept = (
                raw + found.left_ns * 9 // 10,  # a raw clock and CLOCK_MONOTONIC differ by less, a virtual one too
                ahead - instant + AWAKE_NS,
                found.file,
                found.file.descriptor,
                found.counted,
                knot.raw_ns,
                knot.wall_ns + knot.bound.lo,
                knot.wall_ns + knot.bound.hi,
                (knot.drift_ppb.lo << _SCALE_BITS) // _PPB,
                -(-(knot.drift_ppb.hi << _SCALE_BITS) // _PPB),
                -(-(knot.wander_ppb_per_s << _SCALE_BITS) // (2 * _PPB * _PPB)),
            )
            return answer


_default: Now | None = None


def default() -> Now:
    """The reader of this process for this node's segment."""
    global _default
    if _default is None:
        _default = Now()
    return _default


def now() -> Interval:
    """The earliest and the latest time that the reference timescale can read now, Unix nanoseconds.

    Raises:
        NoBound: no daemon runs on this node, or it has no bound; the message says what to do.
    """
    return default()()
