"""The kernel's own estimate, read with `adjtimex` and never set: every mode bit is zero.

What the figures mean, and when they mean nothing, is in ``kernel_wire.py``.

Limits: `ProtectClock=` of systemd refuses the call even for reading; the shipped unit does without.
"""

from __future__ import annotations

import ctypes
import errno
import os

from skewd.clock import Clock
from skewd.sources.claim import Claim, Refused, between
from skewd.sources.kernel_wire import TIMEX, parse
from skewd.sources.local import HostWall


def adjtimex() -> tuple[int, bytes]:
    """The kernel's state and its struct timex; nothing is changed.

    Raises:
        OSError: the call is refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(TIMEX.size)  # zeros: no mode, so nothing is set
    state = libc.adjtimex(buffer)
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state, buffer.raw


class KernelReader:
    """Reads one estimate at a time."""

    def __init__(self, clock: Clock, max_drift_ppm: int) -> None:
        self._wall, self._max_drift_ppm = HostWall(clock), max_drift_ppm

    async def __call__(self) -> Claim:
        """The claim.

        Raises:
            Refused: the kernel makes none, or may not be asked.
        """
        before = self._wall.before()
        try:
            state, data = adjtimex()
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
                raise Refused(
                    "this process may not read the kernel's estimate (adjtimex); "
                    "under systemd, use the shipped skewd.service: no ProtectClock=, and adjtimex in SystemCallFilter="
                ) from None
            raise
        after = self._wall.after()
        known = parse(state, data)
        return Claim(*between(before, after, known.utc_minus_wall(), self._max_drift_ppm), known.leap)

    def close(self) -> None:
        """Nothing is open."""
