"""What the kernel says about this host's clocks, understood.

The raw clock may only be reasoned about while it is one and the same oscillator, running on. What ends that: the host
slept (CLOCK_BOOTTIME moved against CLOCK_MONOTONIC, which differ by the time slept and nothing else), the kernel
changed to another clock source (another oscillator), or the machine is virtual and was restored from a snapshot or
moved to another host. Each begins a new raw era, in which nothing of the old bounds is used.

How a virtual machine learns that it was copied or moved, in Linux: ``/dev/vmclock0`` (6.13 and later, where the
hypervisor offers it) has a *disruption marker* in a mapped page; the VM generation device (ACPI ``VMGENCTR``) is told
to user space by an event, ``NEW_VMGENID=1`` (6.10 and later), and only while somebody listens.

Limits: where a hypervisor offers neither, a pause, a restore or a move is noticed only by the messages after it: a
jump of the raw clock larger than the bound's width contradicts it and is counted, a smaller one stays unseen until
then. Time namespaces shift CLOCK_MONOTONIC, _RAW and _BOOTTIME of the processes in them by a fixed amount each; the
offsets are those of the process's children, which differ from its own only between ``unshare`` and ``exec``. The
kernel's TAI offset is 0 until somebody sets it, and that is told as unknown. Pure.

Sources: adjtimex(2), time_namespaces(7), Linux's ``vmclock-abi.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

from skewd.durations import format_duration
from skewd.interval import Interval

TICK_US = 10_000
"""The nominal tick of a kernel with USER_HZ = 100, microseconds."""

_INSERT, _DELETE, _UNSYNCHRONIZED, _NANO = 0x10, 0x20, 0x40, 0x2000
_LEAP = {0: "none", 1: "insert", 2: "delete", 3: "in progress", 4: "occurred", 5: "none"}

_VMCLOCK = struct.Struct("<IIHBBIQ")  # magic, size, version, counter, time type, sequence, disruption marker
VMCLOCK_BYTES = _VMCLOCK.size
_VMCLOCK_MAGIC = 0x4B4C4356


@dataclass(frozen=True, slots=True)
class KernelClock:
    """The kernel's steering of CLOCK_REALTIME: the fields of adjtimex(2), read with ``modes = 0``.

    Attributes:
        state: the return value: 0 to 5.
        status: the STA_ bits.
        frequency: ppm x 2^16.
        tick_us: microseconds a tick.
        max_error_us, estimated_error_us: the kernel's own figures; without a daemon that steers it, they only grow.
        tai_offset_s: TAI - UTC; 0 if nobody set it.
        pending: what the kernel's phase loop has still to slew, in ns with STA_NANO and else in us.
    """

    state: int
    status: int
    frequency: int
    tick_us: int
    max_error_us: int
    estimated_error_us: int
    tai_offset_s: int
    pending: int = 0

    @property
    def rate_ppb(self) -> int:
        """The rate that tick and frequency are set to, relative to the raw clock."""
        return rate_ppb(self.tick_us, self.frequency)

    @property
    def pending_ns(self) -> int:
        """What the kernel's phase loop has still to slew."""
        return self.pending * (1 if self.status & _NANO else 1_000)

    @property
    def synchronized(self) -> bool:
        """Whether somebody claims to steer the clock."""
        return not self.status & _UNSYNCHRONIZED and self.state != 5

    @property
    def leap(self) -> str:
        """``none``, ``insert`` or ``delete`` (announced for the end of the UTC day), ``in progress``, ``occurred``."""
        if self.state in (0, 5) and self.status & (_INSERT | _DELETE):
            return "insert" if self.status & _INSERT else "delete"
        return _LEAP.get(self.state, "none")

    def told(self) -> dict[str, Any]:
        """For ``skewd status --json``; what the kernel does not know is None."""
        return {
            "rate_ppb": self.rate_ppb,
            "tick_us": self.tick_us,
            "synchronized": self.synchronized,
            "max_error_ns": self.max_error_us * 1_000,
            "estimated_error_ns": self.estimated_error_us * 1_000,
            "leap": self.leap,
            "tai_offset_s": self.tai_offset_s or None,
        }


_FIXED_BY_HARDWARE = ("hpet", "acpi_pm")


def rate_basis(clock_source: str | None, cpuinfo: str, machine: str) -> str:
    """What the raw clock's nominal rate rests on, if that is the same at each boot; empty where it isn't.

    The raw clock is an oscillator's cycles times a factor that the kernel settles at boot. Mostly it *measures* it,
    the TSC's against another timer, and gets another one by some ppm each time. Where hardware tells it (``tsc`` with
    the CPU flag ``tsc_known_freq``: CPUID leaf 0x15 or an MSR; ``hpet``'s and ``acpi_pm``'s own registers), the same
    kernel on the same machine takes the same. In a virtual machine the hypervisor tells it, from its own measurement,
    and the next boot may be on another host: never the same. Where this can't be read, on ARM among others: unknown.

    Args:
        cpuinfo: ``/proc/cpuinfo``.
        machine: what names this machine and its kernel.

    Sources: Linux's ``arch/x86/kernel/tsc.c`` (``native_calibrate_tsc``, ``init_tsc_clocksource``), ``kvmclock.c``.
    """
    words = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    flags = words.get("flags", [])
    if not flags or "hypervisor" in flags:
        return ""
    if clock_source in _FIXED_BY_HARDWARE or (clock_source == "tsc" and "tsc_known_freq" in flags):
        return f"{clock_source} {' '.join(words.get('model name', []))} {machine}"
    return ""


class Adjuster(Protocol):
    """The kernel's steering of one wall clock: what it is set to, and the one thing that is ever set."""

    def read(self) -> KernelClock | None:
        """All of it; None where it can't be read."""
        ...

    def set_frequency(self, frequency: int) -> KernelClock:
        """Sets the frequency (ppm x 2^16) and nothing else; what the kernel has now.

        Raises:
            OSError: the kernel refused.
        """
        ...


def rate_ppb(tick_us: int, frequency: int) -> int:
    """The rate that a tick and a frequency (ppm x 2^16) amount to."""
    return (tick_us - TICK_US) * 1_000_000_000 // TICK_US + frequency * 1_000 // 65_536


def frequency_of(rate_ppb: int) -> int:
    """The frequency (ppm x 2^16) that amounts to a rate, at the nominal tick; the nearest one."""
    return (rate_ppb * 65_536 + 500) // 1_000


@dataclass(frozen=True, slots=True)
class RawFacts:
    """What must stay as it is for the raw clock to be continued.

    Attributes:
        clock_source: the kernel's, such as ``tsc``; None where it isn't told.
        suspended_ns: how long this host has slept since its boot, as closely as two clock readings tell.
        machine: the virtual machine's disruption marker, or None.
        shift_ns: this process's CLOCK_MONOTONIC and _RAW are ahead of the host's by this (time namespace).
    """

    clock_source: str | None
    suspended_ns: Interval
    machine: int | None
    shift_ns: int


def disturbance(before: RawFacts, now: RawFacts) -> str | None:
    """Why the raw clock is not the one of before, in words for a log; None while it is."""
    if now.suspended_ns.lo > before.suspended_ns.hi or now.suspended_ns.hi < before.suspended_ns.lo:
        slept = abs(now.suspended_ns.midpoint - before.suspended_ns.midpoint)
        return f"the host slept for {format_duration(slept)}"
    if now.clock_source != before.clock_source and None not in (now.clock_source, before.clock_source):
        return f"the kernel changed its clock source from {before.clock_source} to {now.clock_source}"
    if now.machine != before.machine:
        return "the virtual machine was restored or moved"
    if now.shift_ns != before.shift_ns:
        return "this process is in another time namespace"
    return None


def continued(before: RawFacts, now: RawFacts) -> RawFacts:
    """The facts of an undisturbed raw clock, with the time slept as closely as both tell."""
    slept, slept_now = before.suspended_ns, now.suspended_ns
    if (
        slept_now.lo <= slept.lo
        and slept.hi <= slept_now.hi
        and (before.clock_source, before.machine, before.shift_ns) == (now.clock_source, now.machine, now.shift_ns)
    ):
        return before  # as nearly always: nothing new, and nothing told more closely
    both = slept.intersect(slept_now)
    return RawFacts(now.clock_source, both or now.suspended_ns, now.machine, now.shift_ns)


def monotonic_shift_ns(timens_offsets: str) -> int:
    """The shift of CLOCK_MONOTONIC (and _RAW) that ``/proc/self/timens_offsets`` tells; 0 for what isn't it."""
    return _shift_ns(timens_offsets, ("monotonic", "1"))


def boottime_shift_ns(timens_offsets: str) -> int:
    """The same of CLOCK_BOOTTIME."""
    return _shift_ns(timens_offsets, ("boottime", "7"))


def _shift_ns(timens_offsets: str, names: tuple[str, str]) -> int:
    for line in timens_offsets.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in names:
            try:
                return int(words[1]) * 1_000_000_000 + int(words[2])
            except ValueError:
                return 0
    return 0


def is_vmclock(page: bytes) -> bool:
    """Whether this is a page that a hypervisor keeps about its virtual machine's clock, in a version known here."""
    if len(page) < VMCLOCK_BYTES:
        return False
    magic, _, version, *_ = _VMCLOCK.unpack_from(page)
    return bool(magic == _VMCLOCK_MAGIC and version == 1)


def disruption_marker(page: bytes) -> int | None:
    """The marker of such a page, which changes whenever the machine was restored or moved; None while it is written."""
    *_, sequence, marker = _VMCLOCK.unpack_from(page)
    return None if sequence & 1 else int(marker)


def is_new_generation(event: bytes) -> bool:
    """Whether a kernel event (uevent) says that this virtual machine is a copy of another, or was restored."""
    return event.startswith(b"change@") and b"NEW_VMGENID=1" in event.split(b"\0")
