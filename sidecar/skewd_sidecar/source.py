"""A correction that is given, not measured: for tests, and for a clock whose error is known from elsewhere.

Limits: one offset for all time, no drift. Whoever sets it vouches for it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skewd.bounds.history import Correction, Status
from skewd.bounds.table import Table, constant


@dataclass(frozen=True, slots=True)
class StaticSource:
    """A :class:`~skewd.bounds.history.CorrectionSource` that always says the same.

    Args:
        node: the node's name.
        offset_ns: to be added to its stamps.
        uncertainty_ns: and right within this.
        reference: the timescale that leads to.

    Raises:
        ValueError: a negative uncertainty.
    """

    node: str
    offset_ns: int
    uncertainty_ns: int
    reference: str = "utc"
    _correction: Correction = field(init=False, repr=False, compare=False)
    _table: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.uncertainty_ns < 0:
            raise ValueError(f"an uncertainty is not negative: {self.uncertainty_ns} ns")
        correction = Correction(self.offset_ns, self.uncertainty_ns, Status.SYNCHRONIZED, self.reference)
        object.__setattr__(self, "_correction", correction)
        object.__setattr__(self, "_table", constant(correction))

    @property
    def virtual(self) -> bool:
        """True: what is said was not measured, and the metrics say so."""
        return True

    def at(self, wall_ns: int) -> Correction:
        """The given correction, whatever the time."""
        return self._correction

    def table(self) -> Table:
        """The same, as a table."""
        return self._table
