"""What a node knows through its mesh, as its bounds use it: composed bounds, walls of others, the common timescale.

``membership.py`` composes all records once in a while; between two of those times knots are made, status is asked for
and spans are corrected. So the outcome is kept as a *view* of one raw instant, and carried from there as any bound is:
by its drift, and by how fast that may change under the declared limits of the two ends. What lies between the ends (the
nodes on the path) plays no part any more: the bound is on two clocks, whoever proved it.

A view names clocks, not nodes: what was composed about a peer's raw clock is not used for the one after its reboot.

Limits: a view is as old as the last composition; nothing in it says that a wall clock was stepped since. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skewd.bounds.compose import UTC, Composed
from skewd.bounds.history import carried
from skewd.election import Timescale
from skewd.interval import Interval

MISSED = 3
"""Renewals missed in a row after which a bound is called holdover."""

_PPB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Wall:
    """A node's wall clock against its raw clock, as that node said it.

    Attributes:
        timebase: boot and raw era: which raw clock.
        era: the wall clock's; another one after a step.
        minus_raw: wall - raw at the node's own raw instant ``at_raw_ns``; it moves by ``slew_ppb`` at most.
    """

    timebase: tuple[bytes, int]
    era: int
    at_raw_ns: int
    minus_raw: Interval
    slew_ppb: int

    def minus_raw_at(self, raw_ns: Interval) -> Interval:
        """wall - raw at an instant of the node's raw clock that is known within an interval, rounded outward."""
        longest = max(abs(raw_ns.lo - self.at_raw_ns), abs(raw_ns.hi - self.at_raw_ns))
        return self.minus_raw.widen(longest * self.slew_ppb // _PPB + 1)


@dataclass(frozen=True, slots=True)
class Heard:
    """X's raw clock (or UTC) minus this node's, at one raw instant of this node.

    Attributes:
        age_ns: of the oldest record that it rests on, or of the last own exchange.
        interval_ns: how often that is renewed while all is well.
    """

    offset: Interval
    drift_ppb: Interval
    age_ns: int
    interval_ns: int


@dataclass(frozen=True, slots=True)
class Known:
    """One clock in a view: what is known of it, and which clock it is."""

    composed: Composed
    timebase: tuple[bytes, int] | None
    wander_ppb_per_s: int
    wall: Wall | None


@dataclass(frozen=True, slots=True)
class MeshView:
    """The mesh as a node sees it.

    Attributes:
        at_raw_ns: this node's raw instant that ``known`` is about.
        known: by name, of every clock that has a bound; ``utc`` too.
        timescale: the one that this node follows; None at first.
        agreed: whether all members name the same one; ``alive``: whether its keeper is heard.
        epochs: how many times a change of it may have moved published time.
        members: how many others there are.
        convicted: members that must lie; ``disputed``: those among whom somebody does.
        patience_ns: how old what is known may be before it counts as missed.
    """

    at_raw_ns: int
    known: Mapping[str, Known] = field(default_factory=dict)
    timescale: Timescale | None = None
    agreed: bool = False
    alive: bool = False
    epochs: int = 0
    members: int = 0
    convicted: frozenset[str] = frozenset()
    disputed: frozenset[str] = frozenset()
    patience_ns: int = 0

    def heard(self, name: str, at_raw_ns: int, timebase: tuple[bytes, int] | None = None) -> Heard | None:
        """What others prove about ``name`` at an own raw instant; None if nothing beyond this node's own exchanges.

        Args:
            timebase: which raw clock of it is meant; whichever was known, if None.
        """
        found = self.known.get(name)
        if found is None or len(found.composed.paths) < 1 or found.composed.paths == ((name,),):
            return None
        if timebase is not None and found.timebase != timebase:
            return None
        composed, elapsed = found.composed, at_raw_ns - self.at_raw_ns
        return Heard(
            composed.interval + carried(elapsed, composed.drift_ppb, found.wander_ppb_per_s),
            composed.drift_ppb.widen(found.wander_ppb_per_s * abs(elapsed) // _PPB + 1),
            composed.age_ns + max(elapsed, 0),
            self.patience_ns // MISSED,
        )

    def utc(self, at_raw_ns: int) -> Heard | None:
        """UTC - own raw clock by what other members say."""
        return self.heard(UTC, at_raw_ns)

    def wall(self, name: str) -> Wall | None:
        """The wall clock of ``name`` as its record has it."""
        found = self.known.get(name)
        return None if found is None else found.wall
