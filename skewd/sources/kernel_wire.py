"""What the kernel was told about its clock's error, as `adjtimex` gives it. The last resort.

Whoever steers the clock tells the kernel how wrong it may be (`maxerror`), and the kernel adds 500 us a second until
it is told again. So UTC lies within the wall clock +- (maxerror + what the kernel has still to slew), if whoever
steers it said so truthfully. chronyd (with `rtcsync`), ntpd and ntpd-rs do.

systemd-timesyncd, ptp4l and phc2sys do not. They know no error of their own; they write 0 so that the clock counts as
synchronized, and the kernel lets the 0 grow: a statement about nothing. What can be stood by is nothing either (a
minute after timesyncd's question its figure says 30 ms, whatever the way to the server is like), so it is refused. It
is recognized by the figure itself: a 0 that has only grown is a multiple of 500 us. `esterror` does not tell. timesyncd
writes 0 there, ptp4l and phc2sys leave it as they found it (16 s after a boot), and chronyd's own is rounded down to 0
where it measures well. A true figure is such a multiple once in 500 times, until the next one is written.

A claim that is taken stands alone at its instant, with the kernel's own growth; claims may be intersected over time
(``claim.py``). The kernel counts whole seconds and microseconds, so one more of each is added.

Limits: what the steering daemon believed, at best; no word on whom it follows. What chronyd has still to slew it does
by the clock's frequency, and does not tell the kernel: after a large offset it can be missing until it is slewed (its
own report has it, which is why chronyd itself is asked first). A steering daemon that is gone leaves a figure that
grows by 500 ppm, which covers this clock only while its declared drift is no larger. Pure.

Sources: systemd's timesyncd-manager.c, linuxptp's clockadj.c, chrony's reference.c, Linux's kernel/time/ntp.c.
"""

from __future__ import annotations

from skewd.interval import Interval
from skewd.kernel_clock import KernelClock
from skewd.sources.claim import DELETE, ERROR_MAX_NS, INSERT, NO_LEAP, Refused

_TIME_ERROR = 5
_LEAPS = {0: NO_LEAP, 1: INSERT, 2: DELETE}
_US = 1_000
_GROWTH_PER_S_US = 500


def claimed(found: KernelClock) -> tuple[Interval, int]:
    """UTC - wall at the reading, and the leap it announces (see :class:`skewd.sources.claim.Claim`).

    Raises:
        Refused: the clock is not synchronized, its error is not known, or a leap second is in progress.
    """
    if found.state == _TIME_ERROR or not found.synchronized:
        raise Refused(
            "the kernel says that its clock is not synchronized; start chronyd (with rtcsync, or it does not tell the "
            "kernel), or add an NTP server"
        )
    if found.state not in _LEAPS:
        raise Refused("a leap second is in progress or just was, and the kernel's clock repeats it; asked again")
    if found.max_error_us < 0 or found.max_error_us % _GROWTH_PER_S_US == 0:
        raise Refused(
            "the kernel's maxerror is a zero that has only grown, so it bounds nothing: systemd-timesyncd, ptp4l and "
            "phc2sys know no error of their own and write 0; add [[source]] type = 'ntp' with the server that "
            "timesyncd follows (timedatectl timesync-status), or type = 'ptp', or run chronyd"
        )
    error = (found.max_error_us + 1 + _GROWTH_PER_S_US) * _US + abs(found.pending_ns)
    if error > ERROR_MAX_NS:
        raise Refused("the kernel's maxerror is above 16 s")
    return Interval(-error, error), _LEAPS[found.state]
