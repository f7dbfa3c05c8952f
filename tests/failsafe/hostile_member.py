"""``skewd WORDS...`` as a member that has the key, signs what it says, and says what can't be.

It is the daemon as it is shipped, so it speaks whatever this version's members speak. What it says of its own clocks is
replaced by values at the edge of what a message can carry, another one each time; every third time it tells the truth,
so that it stays a member. So are its records, unless ``HOSTILE_RECORDS`` is ``no``. Nothing checks what it says before
it is sent, but that it fits the message.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from typing import Any

from skewd.interval import Interval

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_SAID: tuple[dict[str, Any], ...] = (
    {},
    {"wall_minus_raw": Interval(_LEAST, _LEAST)},
    {"wall_minus_raw": Interval(_LEAST, _MOST)},
    {},
    {"wall_minus_raw": Interval(_MOST, _MOST), "wall_raw_at_ns": _LEAST},
    {"wall_raw_at_ns": _MOST},
    {},
    {"wall_slew_ppb": 1_000_000_000, "max_drift_ppm": 100_000, "max_wander_ppb_per_s": 1_000_000_000},
    {"era": (1 << 32) - 1, "wall_minus_raw": Interval(_LEAST, _LEAST), "wall_raw_at_ns": _MOST},
)
_RECORDED: tuple[dict[str, Any], ...] = (
    {},
    {"raw_ns": _MOST},
    {"raw_ns": _LEAST},
    {"wall_minus_raw": Interval(_LEAST, _LEAST)},
    {},
    {"wall_minus_raw": Interval(_MOST - 9, _MOST)},
    {"max_drift_ppm": 100_000, "max_wander_ppb_per_s": 1_000_000_000, "wall_slew_ppb": 1_000_000_000},
)


def _altered(value: Any, by: dict[str, Any]) -> Any:
    """A copy that nobody has checked."""
    made = copy.copy(value)
    for key, new in by.items():
        if hasattr(value, key):
            object.__setattr__(made, key, new)
    return made


def become_hostile() -> None:
    """Has this process's skewd say so."""
    from skewd import membership, node

    said, recorded = itertools.cycle(_SAID), itertools.cycle(_RECORDED)
    describe, begin = node.Node.describe, membership.Membership.begin

    def describe_falsely(self: Any) -> Any:
        return _altered(describe(self), next(said))

    def begin_falsely(self: Any, now_raw_ns: int) -> None:
        if os.environ.get("HOSTILE_RECORDS") != "no":
            self.alter = lambda record: _altered(record, next(recorded))
        begin(self, now_raw_ns)

    node.Node.describe = describe_falsely  # type: ignore[method-assign]
    membership.Membership.begin = begin_falsely  # type: ignore[method-assign]


def main(*words: str) -> int:
    become_hostile()
    from skewd.cli import main as skewd

    return skewd(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
