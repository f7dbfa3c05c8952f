"""Two clocks meet: a filter for the pair, under both oscillators' limits, and a watch on whether these hold.

What a message proves goes to both, and to what remembers over which link it came. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from skewd.bounds.observed import Observed
from skewd.bounds.pair import PairBound, pair_limits
from skewd.over_links import OverLinks


class OscillatorLimits(NamedTuple):
    """What this node's oscillator is declared to keep within."""

    max_drift_ppm: float
    max_wander_ppb_per_s: float

    def sum_with(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> tuple[float, float]:
        """The pair's limits (ppm, ppb/s) with a clock that keeps within these."""
        return pair_limits(self.max_drift_ppm, self.max_wander_ppb_per_s, there_drift_ppm, there_wander_ppb_per_s)

    def filter_with(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> PairBound:
        """A filter for that pair, which knows nothing yet."""
        drift, wander = self.sum_with(there_drift_ppm, there_wander_ppb_per_s)
        return PairBound(max_drift_ppm=drift, max_wander_ppb_per_s=wander)

    def watch_with(self, there_drift_ppm: float, there_wander_ppb_per_s: float) -> Observed:
        """A watch on that pair's limits, which saw nothing yet."""
        drift, wander = self.sum_with(there_drift_ppm, there_wander_ppb_per_s)
        return Observed(max_drift_ppm=drift, max_wander_ppb_per_s=wander)


PairKey = tuple[str, str]
"""``peer`` or ``source``, and its name."""


class Part(NamedTuple):
    """One pair's part in what a node says of the reference.

    Attributes:
        lower_ns, upper_ns: what is added to its offset: a peer's wall - raw, or a leap that may have happened.
        others: the offset as what other members said narrowed it; None if it was not.
        preferred: whether it is a source that decides a tie.
    """

    key: PairKey
    lower_ns: int
    upper_ns: int
    others: tuple[int, int] | None = None
    preferred: bool = False


class Subject(NamedTuple):
    """A pair of a node's: this raw clock and another clock.

    Attributes:
        kind: ``peer`` or ``source``.
        clock: names the other clock; another one after a reboot, or a leap second.
        interval_ns: how often it is asked.
        smear: whether it is UTC that is smeared around leap seconds.
    """

    kind: str
    name: str
    clock: bytes
    interval_ns: int
    smear: bool
    pair: PairBound
    observed: Observed

    @property
    def key(self) -> PairKey:
        return self.kind, self.name


def learn(
    pair: PairBound,
    observed: Observed,
    outgoing: Sequence[tuple[int, int]],
    incoming: Sequence[tuple[int, int]],
    links: OverLinks | None = None,
) -> None:
    """Gives a message's proofs to the filter, to what watches whether its limits hold, and to what knows its links."""
    for sent, received in outgoing:
        if not pair.outgoing(sent, received):
            observed.contradiction(sent)
        observed.outgoing(sent, received)
        if links is not None:
            links.proved(True, sent)
    for sent, received in incoming:
        if not pair.incoming(sent, received):
            observed.contradiction(received)
        observed.incoming(sent, received)
        if links is not None:
            links.proved(False, received)
