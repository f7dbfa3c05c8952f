"""The kernel's own estimate, read with `adjtimex` and never set.

What the figures mean, and when they mean nothing, is in ``kernel_wire.py``.

After a step of the wall clock the kernel's figures count again once somebody has written them anew: the kernel itself
declares its clock unsynchronized at each step, and lets the error grow between two writings, so a figure that is set
after that, or that has become smaller, is new. Whoever writes it slews the step back meanwhile, and does not tell: for
the first writings twice the step is added (``memory.py``).

Limits: `ProtectClock=` of systemd refuses the call even for reading; the shipped unit does without.
"""

from __future__ import annotations

from skewd import hostclock
from skewd.clock import Clock
from skewd.sources.claim import Claim, Refused, between
from skewd.sources.kernel_wire import claimed
from skewd.sources.local import HostWall
from skewd.sources.memory import SETTLED_AFTER, STEPS_MAX, FromBefore, Step, Steps, handled_by_all


class KernelReader:
    """Reads one estimate at a time."""

    def __init__(self, clock: Clock, max_drift_ppm: int, *, steps: Steps | None = None) -> None:
        self._wall, self._max_drift_ppm = HostWall(clock), max_drift_ppm
        self._kernel = hostclock.KernelReader()
        self._steps = steps or Steps(self._wall)
        self._stepped = self._handled = handled_by_all(self._steps)
        self._written, self._error_us, self._fresh = 0, 0, False
        self._mixed: list[Step] = []
        self._settled_at = 0

    async def __call__(self) -> Claim:
        """The claim.

        Raises:
            Refused: the kernel makes none, or may not be asked.
        """
        before = self._wall.before()
        found = self._kernel.read()
        after = self._wall.after()
        self._steps.look()
        if found is None:
            raise Refused(
                "this process may not read the kernel's estimate (adjtimex); "
                "under systemd, use the shipped skewd.service: no ProtectClock=, and adjtimex in SystemCallFilter="
            )
        written = self._was_written(found.max_error_us)
        utc_minus_wall, leap = claimed(found)
        if self._handled != self._steps.count:
            if not written:
                raise FromBefore(
                    "the wall clock was stepped, and the kernel's figure is not known to be newer; the next one that"
                    " whoever steers the clock writes is waited for"
                )
            self._mixed += list(self._steps.kept)[-(self._steps.count - self._handled) :]
            self._handled, self._settled_at = self._steps.count, self._written + SETTLED_AFTER
        if self._written >= self._settled_at:
            self._mixed.clear()
        utc_minus_wall = utc_minus_wall.widen(2 * sum(step.size_ns for step in self._mixed[-STEPS_MAX:]))
        return Claim(
            *between(before, after, utc_minus_wall, self._max_drift_ppm),
            leap,
            root_distance_ns=found.max_error_us * 1_000,
            reference_ns=self._written,
            settled=not self._mixed,
        )

    def _was_written(self, error_us: int) -> bool:
        """Whether somebody has told the kernel its error since the latest step."""
        smaller, self._error_us = error_us < self._error_us, error_us
        self._written += smaller
        if self._stepped != self._steps.count:  # this reading may be from before it
            self._stepped, self._fresh = self._steps.count, False
        elif smaller:
            self._fresh = True
        return self._fresh

    def close(self) -> None:
        """Nothing is open."""
