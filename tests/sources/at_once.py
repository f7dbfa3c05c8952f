"""Two clocks read as one: for a truth that a busy machine does not spoil."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 100


def at_once(raw: Callable[[], int]) -> tuple[int, int]:
    """This machine's wall clock and a raw one, in the reading that took least: nobody was put aside in between."""
    readings = [(raw(), time.time_ns(), raw()) for _ in range(TRIES)]
    before, wall, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return wall, (before + after) // 2


def wall_minus_raw(raw: Callable[[], int]) -> int:
    """What the wall clock reads more than that one."""
    wall, other = at_once(raw)
    return wall - other
