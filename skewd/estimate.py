"""What one clock is known to be, seen from this node's wall clock: the value between measuring and publishing.

``node.py`` makes estimates from proofs, others' word and readings; ``knots.py`` publishes them. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from skewd.hearsay import MISSED
from skewd.interval import Interval

LEAD_NS = 20_000_000
"""Knots begin this far in the future, so that the line in force at a stamp was known before the stamp was made."""

HOLDOVER_AFTER = MISSED
"""Missed intervals after which a bound is called holdover."""

HEARD = "heard"
SELF = ("self",)
"""The epoch of a clock that is this node's own wall clock."""


class Estimate(NamedTuple):
    """other - own wall at one instant: the bound, how fast it moves, how well it is kept up."""

    bound: Interval
    drift_ppb: Interval
    wander_ppb_per_s: int
    age_ns: int
    interval_ns: int
    epoch: tuple[object, ...]
    """Changes whenever what was said before may no longer be continued."""
    name: str
    scale: tuple[object, ...] | None = None
    """In a mesh: how often published time may have jumped, and whose clock the timescale is now."""

    @property
    def told_by_others(self) -> bool:
        """Whether it is UTC by what other members say, and not by own sources."""
        return self.epoch[0] == "utc" and self.epoch[1] == HEARD

    def continues(self, scale: tuple[object, ...] | None) -> bool:
        """Whether this is the timescale of before, carried on by another clock: times go on without a jump."""
        mine = self.scale
        return mine is not None and scale is not None and mine != scale and mine[0] == scale[0]

    @property
    def heard(self) -> bool:
        """Whether the other was heard in time; otherwise the bound is in holdover."""
        return self.age_ns <= HOLDOVER_AFTER * self.interval_ns + LEAD_NS
