"""Reading what the kernel tells of its clocks, being told when somebody sets them, and setting their frequency.

A thin layer: the meaning of what is read is in ``kernel_clock.py``. Being told of a step takes a timer on
CLOCK_REALTIME that is cancelled when that clock is set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET): its descriptor
becomes readable at once, so nobody needs to look fifty times a second to see a step within milliseconds. It is
called through ctypes, because Python offers it from 3.13 on only. A virtual node's clock is a file that somebody
writes, and the kernel tells of that as well (inotify(7)).

One class sets anything, and only one thing: :class:`KernelAdjuster`, the kernel's frequency (``[discipline]``). It
cannot be made without CAP_SYS_TIME, so a daemon, or a test, that runs without it cannot move the clock by mistake.

Limits: whatever this system does not have, or does not allow (seccomp filters may refuse adjtimex even for reading),
is None, and the caller looks at the clocks more often or does without. Kernel events reach the network namespaces
of the host only. 64-bit Linux only for adjtimex (the layout of ``struct timex``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from skewd.interval import Interval
from skewd.kernel_clock import (
    VMCLOCK_BYTES,
    KernelClock,
    RawFacts,
    boottime_shift_ns,
    disruption_marker,
    is_new_generation,
    is_vmclock,
    monotonic_shift_ns,
    rate_basis,
    rate_ppb,
)

CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
VMCLOCK = Path("/dev/vmclock0")
GENERATION_DEVICES = ("/sys/bus/platform/drivers/vmgenid", "/sys/bus/acpi/drivers/vmgenid")

_TFD_NONBLOCK, _TFD_CLOEXEC = 0o4000, 0o2000000
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_CLOCK_REALTIME = 0
_KOBJECT_UEVENT = 15
_FAR_S = 1 << 34
"""The year 2514: the timer is never to go off by itself."""

_IN_NONBLOCK, _IN_CLOEXEC = 0o4000, 0o2000000
_IN_CLOSE_WRITE = 0x8
_EVENTS_BYTES = 4096

_ADJ_FREQUENCY = 0x0002
_CAP_SYS_TIME = 1 << 25

_clock_gettime_ns = time.clock_gettime_ns  # bound at import: see skewd.clock on virtual nodes


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _Timex(ctypes.Structure):
    """struct timex of 64-bit Linux."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


_libc = ctypes.CDLL(None, use_errno=True)


class KernelReader:
    """adjtimex(2) for reading, or nothing where that is refused."""

    def __init__(self) -> None:
        self._timex = _Timex()
        self._call: Callable[[], int] | None = None
        if ctypes.sizeof(ctypes.c_long) == 8 and hasattr(_libc, "adjtimex"):
            # Bound to the one argument there will ever be: this is called at every look at the clocks.
            self._call = partial(_libc.adjtimex, ctypes.byref(self._timex))
            if self._read() < 0:
                self._call = None

    def _read(self) -> int:
        self._timex.modes = 0  # nothing is set
        if self._call is None:
            return -1
        return self._call()

    def rate_ppb(self) -> int | None:
        """The rate that the kernel's tick and frequency are set to now; None where it can't be read."""
        if self._read() < 0:
            return None
        return rate_ppb(self._timex.tick, self._timex.freq)

    def read(self) -> KernelClock | None:
        """All of it; None where it can't be read."""
        state = self._read()
        return None if state < 0 else self._found(state)

    def _found(self, state: int) -> KernelClock:
        found = self._timex
        return KernelClock(
            state=state,
            status=found.status,
            frequency=found.freq,
            tick_us=found.tick,
            max_error_us=found.maxerror,
            estimated_error_us=found.esterror,
            tai_offset_s=found.tai,
            pending=found.offset,
        )


def may_set_clocks(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process holds CAP_SYS_TIME now."""
    try:
        held = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("CapEff:"))
        return bool(int(held, 16) & _CAP_SYS_TIME)
    except (OSError, StopIteration, IndexError, ValueError):
        return False


class KernelAdjuster(KernelReader):
    """The frequency of CLOCK_REALTIME, set with clock_adjtime(2); an :class:`~skewd.kernel_clock.Adjuster`.

    Args:
        adjust: clock_adjtime, called with a clock's number and a pointer to a ``struct timex``; a test's own.

    Raises:
        OSError: this process may not set clocks, or the kernel's state can't be read; the message says what to do.
    """

    def __init__(self, adjust: Callable[[int, Any], int] | None = None) -> None:
        super().__init__()
        if adjust is None:
            if not may_set_clocks():
                raise OSError(
                    errno.EPERM,
                    "this process lacks CAP_SYS_TIME; install the drop-in discipline.conf, or run it with it",
                )
            if self._call is None or not hasattr(_libc, "clock_adjtime"):
                raise OSError(errno.ENOSYS, "the kernel's steering of the clock can't be read here")
            adjust = _libc.clock_adjtime
        self._adjust = adjust

    def set_frequency(self, frequency: int) -> KernelClock:
        """Sets the frequency (ppm x 2^16) and nothing else; what the kernel has now.

        Raises:
            OSError: the kernel refused.
        """
        self._timex.modes, self._timex.freq = _ADJ_FREQUENCY, frequency
        try:
            state = self._adjust(_CLOCK_REALTIME, ctypes.byref(self._timex))
        finally:
            self._timex.modes = 0
        if state < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"clock_adjtime: {os.strerror(error)}")
        return self._found(state)


class SetWatch:
    """A descriptor that becomes readable when CLOCK_REALTIME is set.

    Raises:
        OSError: this system has none.
    """

    def __init__(self, *, at_s: int = _FAR_S) -> None:
        if ctypes.sizeof(ctypes.c_long) != 8 or not hasattr(_libc, "timerfd_create"):
            raise OSError(errno.ENOSYS, "no timerfd here")
        self._spec = _TimerSpec(_Timespec(0, 0), _Timespec(at_s, 0))
        self._descriptor: int = _libc.timerfd_create(_CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        try:
            self._arm()
        except OSError:
            self.close()
            raise

    def _arm(self) -> None:
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        # The kernel reports a set that happened in between by failing with ECANCELED, and has armed it all the same.
        if _libc.timerfd_settime(self._descriptor, flags, ctypes.byref(self._spec), None) < 0:
            error = ctypes.get_errno()
            if error != errno.ECANCELED:
                raise OSError(error, "timerfd_settime failed")

    def fileno(self) -> int:
        return self._descriptor

    def again(self) -> bool:
        """Takes what made it readable, and waits for the next; True when the clock was set."""
        was_set = False
        try:
            os.read(self._descriptor, 8)
            self._spec.value.seconds = _FAR_S
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
            was_set = True
        self._arm()
        return was_set

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileWatch:
    """A descriptor that becomes readable when somebody closes a file that was open for writing.

    Raises:
        OSError: this system has none, or not another one; or there is no such file.
    """

    def __init__(self, path: Path) -> None:
        if not hasattr(_libc, "inotify_init1"):
            raise OSError(errno.ENOSYS, "no inotify here")
        self._descriptor: int = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1 failed")
        if _libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_CLOSE_WRITE) < 0:
            error = ctypes.get_errno()
            self.close()
            raise OSError(error, f"inotify_add_watch: {os.strerror(error)}", str(path))

    def fileno(self) -> int:
        return self._descriptor

    def again(self) -> bool:
        """Takes what made it readable, and waits for the next; True when there was anything."""
        found = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, _EVENTS_BYTES):
                found = True
        return found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MachineWatch:
    """What there is to notice that this virtual machine was restored or moved.

    Attributes:
        kind: ``vmclock``, ``events`` (of the VM generation device), or None: nothing.
    """

    def __init__(self, page: Path = VMCLOCK) -> None:
        self._page: mmap.mmap | None = None
        self._events: socket.socket | None = None
        self._generation = self._marker = 0
        with contextlib.suppress(OSError, ValueError), page.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ)
            if is_vmclock(mapped[:VMCLOCK_BYTES]):
                self._page = mapped
            else:
                mapped.close()
        if any(Path(device).exists() for device in GENERATION_DEVICES):
            with contextlib.suppress(OSError):
                events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _KOBJECT_UEVENT)
                events.bind((0, 1))
                self._events = events
        self.kind = "vmclock" if self._page is not None else "events" if self._events is not None else None

    def events(self) -> int | None:
        """A descriptor to wait on and then call :meth:`take`; None without."""
        return None if self._events is None else self._events.fileno()

    def take(self) -> bool:
        """Reads the waiting events; True when one tells of a new generation."""
        found = False
        if self._events is not None:
            for _ in range(64):
                try:
                    event, sender = self._events.recvfrom(8192)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # events were lost: too many at once
                found |= sender[0] == 0 and is_new_generation(event)  # 0: from the kernel, not from a process
        self._generation += found
        return found

    def marker(self) -> int | None:
        """Changes with each restore or move that was noticed."""
        if self._page is not None:
            marker = disruption_marker(self._page[:VMCLOCK_BYTES])
            if marker is not None:  # else it is being written: the next look tells
                self._marker = marker
        return self._marker + self._generation if self._page is not None else self._generation or None

    def close(self) -> None:
        if self._page is not None:
            self._page.close()
        if self._events is not None:
            self._events.close()


def suspended_ns() -> Interval:
    """How long this host has slept since its boot (and, in a time namespace, a constant more)."""
    before = _clock_gettime_ns(time.CLOCK_MONOTONIC)
    boot = _clock_gettime_ns(time.CLOCK_BOOTTIME)
    after = _clock_gettime_ns(time.CLOCK_MONOTONIC)
    return Interval(boot - after, boot - before)


def clock_source() -> str | None:
    """The kernel's clock source; None where it isn't told."""
    try:
        descriptor = os.open(CLOCK_SOURCE, os.O_RDONLY | os.O_CLOEXEC)  # asked once a second: no file object for it
    except OSError:
        return None
    try:
        return os.read(descriptor, 256).decode("ascii", "replace").strip() or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def shift_ns() -> int:
    """How far this process's CLOCK_MONOTONIC and _RAW are ahead of the host's: 0 outside of time namespaces."""
    return monotonic_shift_ns(_time_namespace())


def slept_shift_ns() -> int:
    """How much longer this process's clocks say that the host has slept than the host's do: 0 as a rule."""
    told = _time_namespace()
    return boottime_shift_ns(told) - monotonic_shift_ns(told)


def _time_namespace() -> str:
    try:
        return Path("/proc/self/timens_offsets").read_text()
    except OSError:
        return ""


def raw_rate_basis() -> str:
    """See :func:`skewd.kernel_clock.rate_basis`; empty where it isn't told."""
    with contextlib.suppress(OSError):
        kernel = os.uname()
        machine = Path("/etc/machine-id").read_text().strip()
        cpuinfo = Path("/proc/cpuinfo").read_text()
        return rate_basis(clock_source(), cpuinfo, f"{machine} {kernel.release} {kernel.version}")
    return ""


def raw_facts(machine: MachineWatch) -> RawFacts:
    """What must stay as it is for the raw clock to be continued, now."""
    return RawFacts(clock_source(), suspended_ns(), machine.marker(), shift_ns())
