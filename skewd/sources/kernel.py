"""The kernel's own estimate, read with `adjtimex` and never set.

What the figures mean, and when they mean nothing, is in ``kernel_wire.py``.

Limits: `ProtectClock=` of systemd refuses the call even for reading; the shipped unit does without.
"""

from __future__ import annotations

from skewd import hostclock
from skewd.clock import Clock
from skewd.sources.claim import Claim, Refused, between
from skewd.sources.kernel_wire import claimed
from skewd.sources.local import HostWall


class KernelReader:
    """Reads one estimate at a time."""

    def __init__(self, clock: Clock, max_drift_ppm: int) -> None:
        self._wall, self._max_drift_ppm = HostWall(clock), max_drift_ppm
        self._kernel = hostclock.KernelReader()

    async def __call__(self) -> Claim:
        """The claim.

        Raises:
            Refused: the kernel makes none, or may not be asked.
        """
        before = self._wall.before()
        found = self._kernel.read()
        after = self._wall.after()
        if found is None:
            raise Refused(
                "this process may not read the kernel's estimate (adjtimex); "
                "under systemd, use the shipped skewd.service: no ProtectClock=, and adjtimex in SystemCallFilter="
            )
        utc_minus_wall, leap = claimed(found)
        return Claim(*between(before, after, utc_minus_wall, self._max_drift_ppm), leap)

    def close(self) -> None:
        """Nothing is open."""
