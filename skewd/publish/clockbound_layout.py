"""What ClockBound's clients are told: the claim that the node's bound allows, and its bytes in two layouts.

AWS's ClockBound clients (Rust, C, and what is built on them) read a small file in shared memory and answer

    CLOCK_REALTIME +- (bound + age x drift),   age = CLOCK_MONOTONIC_COARSE - as_of,

with a status. The node knows more: an interval for UTC - wall that need not be centred on the wall clock, a rate and
how fast that rate may change. The insight is that a symmetric, linear claim can hold all of it, if each part is
rounded the right way:

- *centre*: the bound is the distance from 0 to the farther end, so the wall clock's own error is part of it;
- *rate*: the larger end of the drift's interval, plus half the wander over the whole life of the claim, because
  w e^2 / 2 <= (w L / 2) e for every elapsed e up to L;
- *age*: the coarse clock stands still between two kernel ticks, and longer when the kernel is late, so a reader's age
  may fall short of the true one by ``late_ns``: the bound contains the growth of that time from the start;
- the reader cuts off fractions: 2 ns.

Limits: between a step of the wall clock and the daemon's next look a reader still has the claim before it;
nothing in these layouts can help that, as the disruption marker is for clients that watch a VM's clock device, and
support for it is written as off. After the daemon's sudden death the claim stands until ``void_after`` and assumes
that nobody sets the clock or steers it otherwise than before; clients call it free running after 5 s. Pure: numbers
in, bytes out; the file is ``clockbound.py``'s.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from skewd.bounds.history import Status
from skewd.interval import Interval

VOID_AFTER_NS = 1_000_000_000_000
"""For how long after ``as_of`` a claim may be used at all: ClockBound's own 1000 s."""

GENERATION_WORD = 7
"""Index of the header's generation, counted in 16-bit words."""

HEADER_BYTES = 16
_HEADER = struct.Struct("=IIIHH")
_MAGIC = (0x414D5A4E, 0x43420200)
_ROUNDING_NS = 2
_PPB = 1_000_000_000
_SECOND_NS = 1_000_000_000


class ClockStatus(IntEnum):
    """ClockBound's words for what its clients may trust; ``disrupted`` (3) is never written here."""

    UNKNOWN = 0
    SYNCHRONIZED = 1
    FREE_RUNNING = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """One version of the segment: ``name`` is its file's in the directory, ``size`` the whole file's."""

    version: int
    name: str
    size: int


V1 = Layout(1, "shm", 72)
V2 = Layout(2, "shm0", 80)
# as_of and void_after as seconds and nanoseconds, bound; then: drift, reserved, status
_V1_BODY = struct.Struct("=qqqqqIIi4x")
# ... disruption marker, drift, status, disruption support
_V2_BODY = struct.Struct("=qqqqqQIiB7x")


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement to ClockBound's clients; times are CLOCK_MONOTONIC_COARSE nanoseconds."""

    as_of_ns: int
    void_after_ns: int
    bound_ns: int
    drift_ppb: int
    status: ClockStatus


UNKNOWN_BOUND_NS = 10**18
"""Written with the status unknown, 31 years: a reader that ignores the status is not told that the clock is right."""


def unknown(as_of_ns: int) -> Claim:
    """Nothing is claimed."""
    return Claim(as_of_ns, as_of_ns + VOID_AFTER_NS, UNKNOWN_BOUND_NS, 0, ClockStatus.UNKNOWN)


def claim(
    utc_minus_wall: Interval,
    drift_ppb: Interval,
    wander_ppb_per_s: int,
    status: Status,
    *,
    as_of_ns: int,
    late_ns: int,
    max_bound_ns: int,
) -> Claim:
    """The tightest claim that holds whatever the node's bound allows, until ``void_after``.

    Args:
        utc_minus_wall: the bound at an instant not before the one at which ``as_of_ns`` was read.
        drift_ppb: d(UTC - wall)/d(wall) at that instant.
        wander_ppb_per_s: how fast that may change.
        status: what the node calls this bound.
        as_of_ns: the coarse monotonic clock, read before the instant of the bound.
        late_ns: how far the coarse monotonic clock may lag behind the true one when a client reads it.
        max_bound_ns: a wider claim is none: unknown.
    """
    life_ns = VOID_AFTER_NS + late_ns
    rate = max(abs(drift_ppb.lo), abs(drift_ppb.hi)) + -(-wander_ppb_per_s * life_ns // (2 * _SECOND_NS))
    bound = utc_minus_wall.farthest(0) + -(-rate * late_ns // _PPB) + _ROUNDING_NS
    if status is Status.UNSYNCHRONIZED or bound > max_bound_ns or rate >= _PPB:  # clients refuse such a rate
        return unknown(as_of_ns)
    said = ClockStatus.SYNCHRONIZED if status is Status.SYNCHRONIZED else ClockStatus.FREE_RUNNING
    return Claim(as_of_ns, as_of_ns + VOID_AFTER_NS, bound, rate, said)


def header(layout: Layout, generation: int) -> bytes:
    """The first 16 bytes of a segment."""
    return _HEADER.pack(*_MAGIC, layout.size, layout.version, generation)


def is_header(layout: Layout, data: bytes) -> bool:
    """Whether these bytes begin a segment of this layout that readers may have mapped."""
    if len(data) < HEADER_BYTES:
        return False
    *magic, size, version, generation = _HEADER.unpack_from(data)
    return tuple(magic) == _MAGIC and size == layout.size and version == layout.version and generation != 0


def body(layout: Layout, said: Claim) -> bytes:
    """What follows the header."""
    times = (*divmod(said.as_of_ns, _SECOND_NS), *divmod(said.void_after_ns, _SECOND_NS))
    if layout.version == V1.version:
        return _V1_BODY.pack(*times, said.bound_ns, said.drift_ppb, 0, said.status)
    return _V2_BODY.pack(*times, said.bound_ns, 0, said.drift_ppb, said.status, 0)


def generations(last: int) -> tuple[int, int]:
    """The generation while writing (odd) and after it (even, never 0), after a segment was left at ``last``."""
    writing = last | 1
    return writing, (writing + 1) & 0xFFFF or 2
