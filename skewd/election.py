"""Which timescale a mesh expresses its times on, as every record tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timescale:
    """A timescale, and who keeps it.

    Attributes:
        epoch: its generation, a u32.
        origin: ``utc``, or the name of the node whose wall clock it began with.
        keeper: the node that keeps it now.
        keeper_boot: the keeper's boot, 16 bytes; with ``keeper_raw_era`` it names the keeper's raw clock.
        keeper_raw_era: a u32.
        k_ns: timescale - keeper's raw clock, in ns; None while the keeper is the origin.
    """

    epoch: int
    origin: str
    keeper: str
    keeper_boot: bytes
    keeper_raw_era: int
    k_ns: int | None
