"""The estimator, made wrong on purpose in the ways it could be wrong by mistake.

A suite that passes says little until it is seen to fail: each of these is caught by the scenarios that the real one
passes. The second is the subtle one: carrying a proof on needs a T^2 / 2 of slack, and half of it looks right in any
test that is not bang-bang.
"""

from __future__ import annotations

from skewd.bounds.pair import PairBound

TIGHTER_NS = 30_000


class WanderHalved(PairBound):
    """Believes the oscillators to be twice as good."""

    __slots__ = ()

    def __init__(self, *, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        super().__init__(max_drift_ppm=max_drift_ppm, max_wander_ppb_per_s=max_wander_ppb_per_s / 2)


class SlackHalved(PairBound):
    """Carries proofs on with half of the slack that bang-bang motion needs; all else is right."""

    __slots__ = ()

    def _line(self, proof: tuple[int, float]) -> tuple[float, float]:
        self._accel /= 2
        try:
            return super()._line(proof)
        finally:
            self._accel *= 2

    def _outline(self, edge: object) -> tuple[list[float], list[float]]:
        self._accel /= 2
        try:
            return super()._outline(edge)  # type: ignore[arg-type]
        finally:
            self._accel *= 2


class TooTight(PairBound):
    """Takes each message for 30 us more than it proves."""

    __slots__ = ()

    def outgoing(self, sent_local_ns: int, received_remote_ns: int) -> bool:
        return super().outgoing(sent_local_ns, received_remote_ns - TIGHTER_NS)

    def incoming(self, sent_remote_ns: int, received_local_ns: int) -> bool:
        return super().incoming(sent_remote_ns + TIGHTER_NS, received_local_ns)


class DriftLimitShort(PairBound):
    """Believes the drift limit to be 4 % lower."""

    __slots__ = ()

    def __init__(self, *, max_drift_ppm: float, max_wander_ppb_per_s: float) -> None:
        super().__init__(max_drift_ppm=max_drift_ppm * 0.96, max_wander_ppb_per_s=max_wander_ppb_per_s)


MUTANTS: dict[str, type[PairBound]] = {
    "wander halved": WanderHalved,
    "slack halved": SlackHalved,
    "constraints 30 us too tight": TooTight,
    "drift limit x 0.96": DriftLimitShort,
}
