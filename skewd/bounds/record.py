"""What bounds need of a record: whose clock it speaks of, at which instant of that clock, and what it claims.

A record is bytes, a signature and limits on both (``skewd/records.py``). Of that nothing matters to a path over claims:
it reads four things and believes them or not by other rules. So they are all that is known of a record here, and a
test, or a simulation, may hand in anything that has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from skewd.bounds.carry import Claim


class Edge(Protocol):
    """A claim about another clock, which is named by its tag (:func:`~skewd.bounds.compose.clock_tag`)."""

    @property
    def clock(self) -> bytes: ...

    @property
    def claim(self) -> Claim: ...


class Record(Protocol):
    """What one node says, at its own raw instant ``raw_ns``."""

    @property
    def clock(self) -> bytes:
        """The tag of the owner's raw clock."""
        ...

    @property
    def raw_ns(self) -> int: ...

    @property
    def utc(self) -> Claim | None:
        """UTC - own raw clock, or None."""
        ...

    @property
    def edges(self) -> Sequence[Edge]: ...
