"""What the kernel's cross-stamping of a hardware clock (PHC) says: its ioctls' structures, and what they prove.

Reading a PHC between two readings of the raw clock takes a system call, and a bus transfer of a microsecond or so. The
kernel can do closer, in three ways; which of them a device has, only trying tells:

* ``PTP_SYS_OFFSET_PRECISE``: the hardware stamps both clocks at one instant, and the kernel gives the raw clock's
  reading. Its cycle counter may be coarser than a nanosecond: ``CROSS_NS`` outward (a tick of 19.2 MHz is 52 ns).
* ``PTP_SYS_OFFSET_EXTENDED``: the driver reads the system's clock just before and just after the one register. From
  Linux 6.12 on that may be the raw clock; before, the wall clock.
* ``PTP_SYS_OFFSET``: the wall clock before and after the driver's whole reading.

Each says: the PHC showed p at an instant between two readings. Of several such triples the narrowest is taken. Wall
readings are carried to raw by the looks around the call (``wall.passage``). Raw stamps must lie within the call, wall
stamps must when carried; others are no stamps of it and are not believed, whatever the driver means by them.

Limits: what a driver stamps too late or too early is not seen, within the call. Pure.

Source: Linux's ``include/uapi/linux/ptp_clock.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from skewd.interval import Interval
from skewd.limits import SCALE_MAX_NS
from skewd.sources.claim import Look
from skewd.wall import passage, rates_ppb

SAMPLES = 5
"""Triples asked for at once; the kernel gives at most 25."""

CROSS_NS = 100
_MONOTONIC_RAW = 4
_SECOND_NS = 1_000_000_000
_TIME = struct.Struct("@qII")  # seconds, nanoseconds, reserved
_HEAD = struct.Struct("@IiII")  # samples, clock, reserved


@dataclass(frozen=True, slots=True)
class Way:
    """One ioctl: its number, the size of its structure, whether the system's clock in it is the raw one."""

    number: int
    size: int
    raw: bool
    clock: int = 0


class Ways(Enum):
    """From the closest to the widest."""

    PRECISE = Way(0xC0403D08, 64, True)
    EXTENDED_RAW = Way(0xC4C03D09, 1216, True, _MONOTONIC_RAW)
    EXTENDED = Way(0xC4C03D09, 1216, False)
    OFFSET = Way(0x43403D05, 832, False)


@dataclass(frozen=True, slots=True)
class Crossing:
    """The PHC showed ``phc_ns`` while the system's clock (raw or wall) showed ``first_ns`` to ``last_ns``."""

    phc_ns: int
    first_ns: int
    last_ns: int
    raw: bool


def question(way: Ways) -> bytearray:
    """The structure to call with; the kernel fills it in."""
    asked = bytearray(way.value.size)
    if way is not Ways.PRECISE:
        _HEAD.pack_into(asked, 0, SAMPLES, way.value.clock, 0, 0)
    return asked


def crossing(way: Ways, answer: bytes | bytearray) -> Crossing | None:
    """The narrowest triple in an answer; None where it holds none that makes sense."""
    if len(answer) != way.value.size:
        return None
    if way is Ways.PRECISE:
        phc, _, raw = (_time(answer, index * _TIME.size) for index in range(3))
        return None if phc is None or raw is None else Crossing(phc, raw - CROSS_NS, raw + CROSS_NS, True)
    step = 2 if way is Ways.OFFSET else 3  # there the reading after one is the reading before the next
    best: Crossing | None = None
    for index in range(SAMPLES):
        at = _HEAD.size + index * step * _TIME.size
        first, phc, last = (_time(answer, at + part * _TIME.size) for part in range(3))
        if first is None or phc is None or last is None or not 0 <= last - first < _SECOND_NS:
            continue
        if best is None or last - first < best.last_ns - best.first_ns:
            best = Crossing(phc, first, last, way.value.raw)
    return best


def _time(data: bytes | bytearray, at: int) -> int | None:
    """A ``struct ptp_clock_time`` in ns; None for what is none."""
    seconds, nanoseconds, _ = _TIME.unpack_from(data, at)
    if nanoseconds >= _SECOND_NS or not seconds | nanoseconds:
        return None
    time_ns = int(seconds * _SECOND_NS + nanoseconds)
    return time_ns if 0 <= time_ns <= SCALE_MAX_NS else None


def raw_of(found: Crossing, before: Look, after: Look) -> Interval | None:
    """The host's raw instants at which the PHC showed it; None where that is not to be believed.

    Args:
        before: the look before the call; ``after`` the look after it, both of the host's own clocks.
    """
    stamped = Interval(found.first_ns, found.last_ns)
    if not found.raw:
        wall_minus_raw = passage(before.sample, after.sample, rates_ppb(before.set_ppb, after.set_ppb))
        if wall_minus_raw is None:
            return None
        stamped = stamped - wall_minus_raw
    # The look after the call ended at its raw instant, the call before it by up to the look's width.
    return stamped.intersect(Interval(before.sample.raw_ns, after.sample.raw_ns))
