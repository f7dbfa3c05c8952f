"""What the kernel was told about its clock's error, as `adjtimex` gives it. The last resort.

Whoever steers the clock tells the kernel how wrong it may be (`maxerror`), and the kernel adds 500 us a second until
it is told again. So UTC lies within the wall clock +- (maxerror + what is still to be slewed), if whoever steers it
said so truthfully. chronyd and ntpd do. systemd-timesyncd and phc2sys do not: they write 0 and let it grow, which is
a statement about nothing, and they can be recognized by an `esterror` of 0, which nobody has who measures. Their
figure is refused rather than believed.

A claim that is taken stands alone at its instant, with the kernel's own growth; claims may be intersected over time
(``claim.py``). The kernel counts whole seconds, so one more second of its growth is added.

Limits: what the steering daemon believed, at best; no word on whom it follows. A steering daemon that is gone leaves
a figure that grows by 500 ppm, which covers this clock only while its declared drift is no larger. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from skewd.interval import Interval
from skewd.sources.claim import DELETE, ERROR_MAX_NS, INSERT, NO_LEAP, Refused

TIMEX = struct.Struct("@Illllillllllllillllli44x")
"""struct timex as the C library of this machine has it (208 bytes where a long has 64 bits)."""

TIME_ERROR = 5
_LEAPS = {0: NO_LEAP, 1: INSERT, 2: DELETE}
_STA_UNSYNC, _STA_NANO = 0x0040, 0x2000
_US = 1_000
_GROWTH_PER_S_NS = 500_000


@dataclass(frozen=True, slots=True)
class KernelClock:
    """What the kernel holds of its clock, in ns.

    Attributes:
        max_error_ns: as it was told, with its own growth; ``pending_ns`` what is still to be slewed.
        tai_offset_s: TAI - UTC, 0 if nobody has said.
        leap: see :class:`skewd.sources.claim.Claim`.
    """

    max_error_ns: int
    pending_ns: int
    tai_offset_s: int
    leap: int

    def utc_minus_wall(self) -> Interval:
        """UTC - wall at the reading."""
        error = self.max_error_ns + abs(self.pending_ns) + _GROWTH_PER_S_NS
        return Interval(-error, error)


def parse(state: int, data: bytes) -> KernelClock:
    """What `adjtimex` returned and what it filled in.

    Raises:
        Refused: the clock is not synchronized, its error is not known, or a leap second is in progress.
    """
    if len(data) != TIMEX.size:
        raise Refused(f"the kernel's struct timex of {len(data)} bytes is not one that this version knows")
    _, offset, _, max_error_us, est_error_us, status, *_, tai = TIMEX.unpack(data)
    if state == TIME_ERROR or status & _STA_UNSYNC:
        raise Refused("the kernel says that its clock is not synchronized; start chronyd, or add an NTP server")
    if state not in _LEAPS:
        raise Refused("a leap second is in progress, and the kernel's clock repeats it; asked again")
    if est_error_us <= 0 or max_error_us < 0:
        raise Refused(
            "whoever steers this clock tells the kernel no error of its own (systemd-timesyncd and phc2sys do not), "
            "so its maxerror bounds nothing; run chronyd, or add [[source]] type = 'ntp'"
        )
    if max_error_us * _US > ERROR_MAX_NS:
        raise Refused("the kernel's maxerror is above 16 s")
    return KernelClock(max_error_us * _US, offset * (1 if status & _STA_NANO else _US), tai, _LEAPS[state])
