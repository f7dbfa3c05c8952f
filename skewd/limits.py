"""How large a number may be that another node, a server, a daemon or a file says: the one list, with the reasons.

The problem: a message is 64-bit integers, and whoever holds the mesh key may write any of them. A sum of three such
numbers does not fit 64 bits, and what is published, kept or signed must. One number near 2^63 from the node that is the
reference ended every daemon that follows it, when the bound was to be written.

The insight: check each number where it is decoded, against what a clock can show, and choose these limits so that
every sum that is later made of them fits. So there is no check in the arithmetic, and nothing is cut off in it. What
is out of range is refused as a whole: no honest node says it.

**The sums.** A *raw* clock counts from a boot, and is within 2^60 ns (36 years) of its zero. So two raw clocks are at
most 2^61 apart. A *scale* (a wall clock, UTC, a timescale that is carried on) less a raw clock is within 2^62 (146
years, until the year 2116 counted from 1970), so what it shows is within 2^62 + 2^60 < 2^63. A bound that is *told*
(reference less this node's wall clock) has both ends within 2^62, or there is no bound: two scales on raw clocks can be
farther apart than that, and widening by a declared slew has no end, but a reference 146 years away is none.

**The rates.** Limits on drift, slew and wander are those that messages can carry, and far beyond any clock: a tenth,
all of it, and all of it each second. What they widen in 15 minutes, the longest that anything is carried, is below
2^50 ns.

Integers in Python do not overflow; 64 bits are what is written: the segment (``publish/segment.py``), records and
messages, the state file. Limits: the local machine's own clocks are not checked here. Pure.
"""

from __future__ import annotations

from skewd.interval import Interval

RAW_MAX_NS = 1 << 60
"""A reading of a raw clock, either sign: 36 years since its zero."""

RAW_OFFSET_MAX_NS = 1 << 61
"""One raw clock less another."""

SCALE_MAX_NS = 1 << 62
"""A wall clock, UTC or a timescale less a raw clock: 146 years."""

TOLD_MAX_NS = 1 << 62
"""Reference less this node's wall clock, either end of the bound, where it is published."""

WIDTH_MAX_NS = (1 << 48) - 1
"""What is said about one clock is at most this wide: 78 hours."""

DRIFT_MAX_PPM = 100_000
SLEW_MAX_PPB = 1_000_000_000
WANDER_MAX_PPB_PER_S = 1_000_000_000
"""What may be declared of an oscillator or a wall clock."""

ERROR_MAX_NS = 16_000_000_000
"""A source of UTC that may be farther off than this knows nothing (RFC 5905's MAXDISP)."""

RESERVED_NAMES = frozenset(("utc", "auto"))
"""Words that name a timescale, so no node."""


def is_raw(*readings_ns: int) -> bool:
    """Whether all can be readings of a raw clock."""
    return all(-RAW_MAX_NS <= ns <= RAW_MAX_NS for ns in readings_ns)


def within(value: Interval, most: int) -> bool:
    """Whether both ends are at most ``most`` from zero."""
    return value.lo >= -most and value.hi <= most


def sayable(value: Interval, most: int) -> bool:
    """Whether a node can say it of a clock: within ``most`` of zero, and not absurdly wide."""
    return within(value, most) and value.width <= WIDTH_MAX_NS
