"""What ClockBound's clients are told: UTC and its bound, or that it is not known; never anything else.

Segments that cannot be had, or must not be believed, are off or say "unknown", and ``problem`` says why: no store
barrier on this machine, another daemon in the directory, a time namespace or a virtual clock (clients read the
host's), a reference that is not UTC.
"""

from __future__ import annotations

from skewd.config import Config
from skewd.durations import format_duration
from skewd.failures import StartError
from skewd.node import Node
from skewd.problems import Problem, of_error
from skewd.publish import clockbound, clockbound_layout


class ClockBoundPublisher:
    """Writes the segments, if they are wanted and can be had.

    Args:
        config: ``[clockbound]``, and ``[clock] max_uncertainty``.
        shift_ns: by how much a time namespace moves this process's clocks from the host's.

    Raises:
        StartError: the directory can't be written.

    Attributes:
        problem: what an operator should know; None while UTC is told, or nothing is wanted.
    """

    def __init__(self, config: Config, shift_ns: int) -> None:
        self._max_bound_ns = config.clock.max_uncertainty
        self._late_ns = clockbound.late_ns()
        self._segments: clockbound.ClockBoundSegments | None = None
        self.problem: Problem | None = None
        if not config.clockbound.enabled:
            return
        if shift_ns:
            wrong = (
                "ClockBound segments are off: this daemon is in a time namespace, whose clocks are"
                f" {format_duration(shift_ns)} off the host's and its clients'"
            )
            self.problem = Problem("clockbound-off", "", wrong, "run it outside")
            return
        try:
            self._segments = clockbound.ClockBoundSegments(config.clockbound.directory, clockbound.store_barrier())
        except clockbound.NoBarrier as error:
            self.problem = of_error("clockbound-off", "", f"ClockBound segments are off: {error.strerror}")
        except clockbound.ClockBoundError as error:
            raise StartError(str(error.strerror)) from error

    def publish(self, node: Node, raw_ns: int, *, virtual: bool, as_of_ns: int) -> None:
        """Tells the clients what the node knows of UTC.

        Args:
            node: whose bounds they are.
            raw_ns: now on the raw clock.
            virtual: whether the node's clock is a test's.
            as_of_ns: now on the clients' clock, read before ``raw_ns``: an age measured from it is never too short.
        """
        if self._segments is None:
            return
        estimate = node.reference_estimate(raw_ns)
        said = clockbound_layout.unknown(as_of_ns)
        self.problem = None
        if virtual:
            wrong = "ClockBound clients are told 'unknown': they read the host's clock, and this node's is virtual"
            self.problem = Problem("clockbound-unknown", "", wrong, "")
        elif estimate is None or estimate.name != "utc":
            other = "it knows no reference" if estimate is None else f"its reference is {estimate.name}"
            wrong = f"ClockBound clients are told 'unknown': they ask for UTC, and {other}"
            remedy = "give the mesh a source of UTC, or disable [clockbound]"
            self.problem = Problem("clockbound-unknown", "", wrong, remedy)
        else:
            said = clockbound_layout.claim(
                estimate.bound,
                estimate.drift_ppb,
                estimate.wander_ppb_per_s,
                node.status_of(estimate),
                as_of_ns=as_of_ns,
                late_ns=self._late_ns,
                max_bound_ns=self._max_bound_ns,
            )
        try:
            self._segments.publish(said)
        except clockbound.ClockBoundError as error:
            self.close()
            self.problem = of_error("clockbound-off", "", f"ClockBound segments are off: {error.strerror}")

    def problems(self) -> list[Problem]:
        """What an operator should know now."""
        return [] if self.problem is None else [self.problem]

    def unknown(self) -> None:
        """Tells the clients that nothing is known."""
        if self._segments is None:
            return
        try:
            self._segments.publish(clockbound_layout.unknown(clockbound.as_of_ns()))
            wrong = "ClockBound clients are told 'unknown': what they should be told could not be made out"
            self.problem = Problem("clockbound-unknown", "", wrong, "")
        except clockbound.ClockBoundError as error:
            self.close()
            self.problem = of_error("clockbound-off", "", f"ClockBound segments are off: {error.strerror}")

    def close(self) -> None:
        """Leaves the segments behind, saying "unknown"."""
        if self._segments is not None:
            self._segments.close()
            self._segments = None
