"""Two clocks read as one: for a truth that a busy machine does not spoil."""

from __future__ import annotations

import time
from collections.abc import Callable

NEAR_NS = 5_000


def at_once(raw: Callable[[], int]) -> tuple[int, int]:
    """This machine's wall clock and a raw one, read while nobody was put aside in between."""
    while True:
        before, wall, after = raw(), time.time_ns(), raw()
        if after - before < NEAR_NS:
            return wall, (before + after) // 2


def wall_minus_raw(raw: Callable[[], int]) -> int:
    """What the wall clock reads more than that one."""
    wall, other = at_once(raw)
    return wall - other
