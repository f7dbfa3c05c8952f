"""This host's clocks, and stand-ins for them.

A node has two clocks. **raw** is CLOCK_MONOTONIC_RAW: the oscillator itself, never stepped and never slewed, the
only one that can be reasoned about. **wall** is CLOCK_REALTIME: what applications stamp their spans with, which
anyone may step. Everything here is measured on raw and carried to wall at the end, so that a stepped wall clock is
a local fact (one new reading of wall - raw) and never a reason to measure the network again.

wall - raw is read in a sandwich, raw / wall / raw: the wall reading lies between two raw ones, so the difference is
known within the sandwich's width (about 200 ns), with no assumption on how long a system call takes.

A *virtual* node (test hook) sees the host's clocks through a page: wall = host wall + offset + drift x elapsed, and
its raw clock drifts alike and has an epoch of its own, so nothing on the node can find the injected numbers by
comparing its two clocks. The page is a small file mapped by every process of that node. It serves experiments and
tests only, is said loudly wherever it is in use, and is no part of a shipped unit.

A page may also emulate the kernel's steering of its wall clock (``steerable``): frequency, tick and status, as
adjtimex(2) has them, set by whoever has the page, and a wall clock that is slewed by them. There ``[discipline]`` is
tried: no test ever sets the clock of the machine it runs on.

Whoever steps a page's wall clock tells those who watch it (:meth:`VirtualPage.watch`), as a kernel tells who waits
for its clock to be set. As there, nobody is told of another rate: that is found by looking.

Limits: a page holds one offset and one drift for its lifetime's raw clock; the offset may be stepped while it is in
use (a wall step), the drift may not. The emulated kernel has no phase loop, and its ``maxerror`` stands still. A page
without a file tells those in its own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skewd.durations import parse_duration_ns
from skewd.interval import Interval
from skewd.kernel_clock import TICK_US, KernelClock
from skewd.kernel_clock import rate_ppb as rate_of

PPB = 1_000_000_000


class Clock(Protocol):
    """A node's two clocks, in nanoseconds. ``virtual`` is true for a test's stand-in."""

    @property
    def virtual(self) -> bool: ...

    def raw_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


class Watch(Protocol):
    """A descriptor that becomes readable when a wall clock was set."""

    def fileno(self) -> int: ...

    def again(self) -> bool:
        """Takes what made it readable, and waits for the next; True when there was anything."""
        ...

    def close(self) -> None: ...


class NodeClock(Clock, Protocol):
    """The clocks of a whole node, whose packets the host's kernel stamps."""

    def at_host_raw(self, host_raw_ns: int) -> int:
        """This node's raw reading at an instant of the host's: the kernel stamps packets by the host's clocks."""
        ...


@dataclass(frozen=True, slots=True)
class WallSample:
    """One sandwich: at raw instant ``raw_ns`` (its later end), wall - raw lay in ``wall_minus_raw``."""

    raw_ns: int
    wall_minus_raw: Interval

    def wall_at_ns(self) -> int:
        """The wall reading of the sample, as nearly as it is known."""
        return self.raw_ns + self.wall_minus_raw.midpoint


# The calls are bound here, when the module is imported: a process that later replaces ``time``'s functions by a
# virtual node's must not make the host clock below it virtual too.
_host_clock_gettime_ns: Callable[[int], int] = time.clock_gettime_ns
_host_time_ns: Callable[[], int] = time.time_ns


class HostClock:
    """The host's own CLOCK_MONOTONIC_RAW and CLOCK_REALTIME."""

    virtual = False

    def raw_ns(self) -> int:
        return _host_clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    def wall_ns(self) -> int:
        return _host_time_ns()

    def at_host_raw(self, host_raw_ns: int) -> int:
        return host_raw_ns


class _Bell:
    """Who watches a page that has no file: a descriptor that the stepping hand makes readable."""

    def __init__(self, bells: set[_Bell]) -> None:
        self._bells = bells
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        bells.add(self)

    def ring(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int:
        return self._descriptor

    def again(self) -> bool:
        try:
            return bool(os.eventfd_read(self._descriptor))
        except BlockingIOError:
            return False

    def close(self) -> None:
        if self in self._bells:
            self._bells.remove(self)
            os.close(self._descriptor)


_UNSYNCHRONIZED = 0x40
_MAX_ERROR_US = 16_000_000
_READINGS = 100
_TOGETHER_NS = 100_000


class VirtualPage:
    """One virtual node's clock, shared through a mapped file by all processes of that node.

    The file is 64 bytes: magic, sequence (odd while being written), offset, drift, the host raw instant at which
    the drift's contribution is zero, and the raw clock's own epoch. A steerable one has 128: then follow how far the
    wall clock was slewed until a raw instant, that instant, and the emulated kernel's frequency, tick, status,
    maxerror. Writers take turns; readers retry while one writes, and when one wrote in the middle of a reading: as
    with a kernel's clock, what is read was shown at some instant between the call and the answer.
    """

    _LAYOUT = struct.Struct("<8sQqqqq")
    _STEERED = struct.Struct("<6q")
    _STEERED_AT = 48
    _MAGIC, _MAGIC_STEERABLE = b"skewdvc1", b"skewdvc2"
    SIZE, SIZE_STEERABLE = 64, 128

    def __init__(self, memory: mmap.mmap, path: Path | None) -> None:
        self._memory = memory
        self.path = path
        magic, _, _, drift_ppb, at_ns, epoch_ns = self._LAYOUT.unpack_from(memory)
        if magic != (self._MAGIC if len(memory) == self.SIZE else self._MAGIC_STEERABLE):
            raise ValueError(f"{path} is not a virtual clock's page")
        self.steerable = len(memory) != self.SIZE
        """Whether it emulates a kernel that can be told a frequency."""
        self._drift_ppb: int = drift_ppb
        self._at_ns: int = at_ns
        self._epoch_ns: int = epoch_ns
        self._host = HostClock()
        self._bells: set[_Bell] = set()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        offset_ns: int = 0,
        drift_ppb: int = 0,
        epoch_ns: int = 0,
        at_host_raw_ns: int | None = None,
        steerable: bool = False,
    ) -> VirtualPage:
        """A new page; ``path`` None keeps it inside this process.

        Args:
            offset_ns: wall minus host wall at ``at_host_raw_ns``.
            drift_ppb: rate of this node's oscillator relative to the host's, parts per billion, |drift| < 10^8.
            epoch_ns: raw minus host raw at ``at_host_raw_ns``.
            at_host_raw_ns: the host raw instant at which the two hold; now, if None.
            steerable: with an emulated kernel's frequency, tick and status.

        Raises:
            FileExistsError: ``path`` is there already.
            ValueError: a drift beyond 10 %.
        """
        if abs(drift_ppb) >= PPB // 10:
            raise ValueError(f"a virtual clock's drift of {drift_ppb} ppb is beyond 10 %")
        at = HostClock().raw_ns() if at_host_raw_ns is None else at_host_raw_ns
        size, magic = (cls.SIZE_STEERABLE, cls._MAGIC_STEERABLE) if steerable else (cls.SIZE, cls._MAGIC)
        content = cls._LAYOUT.pack(magic, 0, offset_ns, drift_ppb, at, epoch_ns)
        if steerable:
            # As a kernel that nobody has synchronized since its boot.
            content += cls._STEERED.pack(0, at + epoch_ns, 0, TICK_US, _UNSYNCHRONIZED, _MAX_ERROR_US)
        content = content.ljust(size, b"\0")
        if path is None:
            memory = mmap.mmap(-1, size)
            memory[:] = content
            return cls(memory, None)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, content)
            return cls(mmap.mmap(descriptor, size), Path(path))
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> VirtualPage:
        """An existing page.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is not such a page.
        """
        with Path(path).open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size not in (cls.SIZE, cls.SIZE_STEERABLE):
                raise ValueError(f"{path} is not a virtual clock's page: it has {size} bytes")
            return cls(mmap.mmap(file.fileno(), size), Path(path))

    @property
    def offset_ns(self) -> int:
        """The wall offset now in force, without the drift's contribution."""
        while True:
            _, before, offset, *_ = self._LAYOUT.unpack_from(self._memory)
            if not before & 1 and self._LAYOUT.unpack_from(self._memory)[1] == before:
                return int(offset)

    def step_to(self, offset_ns: int) -> None:
        """Steps the node's wall clock; its raw clock does not notice, as with a real step."""
        with self._writing(steps=True) as words:
            words[2] = offset_ns

    def watch(self) -> Watch:
        """Tells of each step from now on, by whichever process.

        Raises:
            OSError: this system cannot tell.
        """
        if self.path is None:
            return _Bell(self._bells)
        from skewd.hostclock import FileWatch  # here: what only reads clocks need not load it

        return FileWatch(self.path)

    @contextlib.contextmanager
    def _writing(self, *, steps: bool = False) -> Iterator[memoryview]:
        """The page's 64-bit words, while no other process writes them; with ``steps`` the watchers are told after."""
        with contextlib.ExitStack() as stack:
            if self.path is not None:
                # A store into mapped memory tells nobody. Closing a file that was open for writing does.
                file = stack.enter_context(self.path.open("r+b" if steps else "rb"))
                fcntl.flock(file, fcntl.LOCK_EX)
            elif steps:
                stack.callback(self._ring)
            words = stack.enter_context(stack.enter_context(memoryview(self._memory)).cast("q"))
            words[1] += 1
            try:
                yield words
            finally:
                words[1] += 1

    def _ring(self) -> None:
        for bell in list(self._bells):
            bell.ring()

    def _drifted_ns(self, host_raw_ns: int) -> int:
        return self._drift_ppb * (host_raw_ns - self._at_ns) // PPB

    def raw_ns(self) -> int:
        """The node's CLOCK_MONOTONIC_RAW."""
        return self.at_host_raw(self._host.raw_ns())

    def at_host_raw(self, host_raw_ns: int) -> int:
        """The node's CLOCK_MONOTONIC_RAW at an instant of the host's."""
        return host_raw_ns + self._epoch_ns + self._drifted_ns(host_raw_ns)

    def deviation_ns(self, host_raw_ns: int) -> int:
        """This node's wall clock minus the host's at an instant of the host's: the truth, for whoever made the page.

        For instants since the page was last written: what was in force before is not remembered.
        """
        slewed = self._slewed_ns(self.at_host_raw(host_raw_ns)) if self.steerable else 0
        return self.offset_ns + self._drifted_ns(host_raw_ns) + slewed

    def rate_ppb(self) -> int:
        """How fast it changes now: the oscillator's drift and what the emulated kernel is told."""
        steered = 0
        if self.steerable:
            _, _, frequency, tick_us, *_ = self._steered()
            steered = rate_of(tick_us, frequency)
        return self._drift_ppb + steered + steered * self._drift_ppb // PPB

    # -- the emulated kernel -------------------------------------------------------------------------------------

    def _steered(self) -> tuple[int, ...]:
        while True:
            before = self._LAYOUT.unpack_from(self._memory)[1]
            found = self._STEERED.unpack_from(self._memory, self._STEERED_AT)
            if not before & 1 and self._LAYOUT.unpack_from(self._memory)[1] == before:
                return found

    def read(self) -> KernelClock | None:
        """The emulated adjtimex(2); None for a page that emulates none."""
        if not self.steerable:
            return None
        _, _, frequency, tick_us, status, max_error_us = self._steered()
        state = 5 if status & _UNSYNCHRONIZED else 0
        return KernelClock(state, status, frequency, tick_us, max_error_us, max_error_us, 0)

    def set_frequency(self, frequency: int) -> KernelClock:
        """The emulated clock_adjtime(2) with ADJ_FREQUENCY."""
        return self.adjust(frequency=frequency)

    def adjust(
        self,
        *,
        frequency: int | None = None,
        tick_us: int | None = None,
        status: int | None = None,
        max_error_us: int | None = None,
    ) -> KernelClock:
        """Any hand on the emulated kernel: sets what is given, from now on.

        Raises:
            OSError: the page emulates none.
        """
        if not self.steerable:
            raise OSError(f"{self.path or 'this virtual clock'} emulates no kernel to steer; make it steerable")
        with self._writing() as words:
            at = self._STEERED_AT // 8
            slewed, since, frequency_now, tick_now = words[at : at + 4]
            now = self.raw_ns()
            words[at] = slewed + (now - since) * rate_of(tick_now, frequency_now) // PPB
            words[at + 1] = now
            for place, value in enumerate((frequency, tick_us, status, max_error_us), at + 2):
                if value is not None:
                    words[place] = value
        kernel = self.read()
        assert kernel is not None
        return kernel

    def _slewed_ns(self, raw_ns: int) -> int:
        slewed, since, frequency, tick_us, *_ = self._steered()
        return slewed + (raw_ns - since) * rate_of(tick_us, frequency) // PPB

    def wall_ns(self) -> int:
        """The node's CLOCK_REALTIME."""
        # A process may be kept waiting between its reading of the host's clock and that of the offset. A step in
        # between would then show a time that this clock never had: the host's from before, with the offset from after.
        while True:
            before = self._LAYOUT.unpack_from(self._memory)[1]
            wall = self._steered_wall_ns() if self.steerable else self._unsteered_wall_ns()
            if not before & 1 and self._LAYOUT.unpack_from(self._memory)[1] == before:
                return wall

    def _unsteered_wall_ns(self) -> int:
        wall = self._host.wall_ns()
        return wall + self.offset_ns + (self._drifted_ns(self._host.raw_ns()) if self._drift_ppb else 0)

    def _steered_wall_ns(self) -> int:
        # The host's two clocks must be read at one instant: what lies between the readings is drift and slew too much.
        for _ in range(_READINGS):
            before = self._host.raw_ns()
            wall = self._host.wall_ns()
            host_raw = self._host.raw_ns()
            if host_raw - before <= _TOGETHER_NS:
                break
        return wall + self.offset_ns + self._drifted_ns(host_raw) + self._slewed_ns(self.at_host_raw(host_raw))

    def close(self) -> None:
        """Unmaps the page; the file stays."""
        with contextlib.suppress(BufferError):
            self._memory.close()


class VirtualClock:
    """The clocks of a virtual node, as the processes of that node see them."""

    virtual = True

    def __init__(self, page: VirtualPage) -> None:
        self.page = page

    def raw_ns(self) -> int:
        return self.page.raw_ns()

    def wall_ns(self) -> int:
        return self.page.wall_ns()

    def at_host_raw(self, host_raw_ns: int) -> int:
        return self.page.at_host_raw(host_raw_ns)


def clock_from_option(text: str | None) -> NodeClock:
    """The clock a ``--virtual-clock`` option names; the host's own for None.

    ``offset=5ms,drift=20ppm,at=<host raw ns>`` (each part optional; ``steerable=yes`` with an emulated kernel), or
    ``page=<path>`` of a page that an experiment made.

    Raises:
        ValueError: it is neither; the message says what was wrong.
        OSError: the page cannot be opened.
    """
    if text is None:
        return HostClock()
    if text.startswith("page="):
        return VirtualClock(VirtualPage.open(text.removeprefix("page=")))
    offset_ns, drift_ppb, at, steerable = 0, 0, None, False
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f"--virtual-clock: '{part}' is not key=value; write offset=5ms,drift=20ppm,at=<raw ns>")
        if key == "offset":
            offset_ns = parse_duration_ns(value)
        elif key == "drift":
            drift_ppb = _parse_drift_ppb(value)
        elif key == "at":
            if not value.removeprefix("-").isdigit():  # before the boot, too: it is where the drift began
                raise ValueError(f"--virtual-clock: at={value} is not a whole number of host raw nanoseconds")
            at = int(value)
        elif part == "steerable=yes":
            steerable = True
        else:
            keys = "offset, drift, at, steerable=yes, or page alone"
            raise ValueError(f"--virtual-clock: unknown key '{key}'; the keys are {keys}")
    # An epoch of its own, so that no two nodes of a host can compare raw readings; from the text alone, so that a
    # daemon restarted with the same text finds the same node's clock.
    epoch_ns = zlib.crc32(text.encode()) * 1_000_003
    return VirtualClock(
        VirtualPage.create(
            None, offset_ns=offset_ns, drift_ppb=drift_ppb, epoch_ns=epoch_ns, at_host_raw_ns=at, steerable=steerable
        )
    )


def _parse_drift_ppb(text: str) -> int:
    for unit, scale in (("ppm", 1_000), ("ppb", 1)):
        if text.endswith(unit):
            try:
                return round(float(text.removesuffix(unit)) * scale)
            except ValueError:
                break
    raise ValueError(f"--virtual-clock: drift={text} is not a rate; write drift=20ppm or drift=500ppb")


def read_wall(clock: Clock, *, width_ns: int = 1_000, attempts: int = 3) -> WallSample:
    """wall - raw now, from a raw/wall/raw sandwich, retried while wider than ``width_ns``; the narrowest is taken.

    With raw0 <= (instant of the wall reading) <= raw1, wall - raw at that instant lies in
    [wall - raw1, wall - raw0], whatever the scheduler did in between.
    """
    raw_ns, wall_ns = clock.raw_ns, clock.wall_ns
    best: tuple[int, int, int] | None = None
    for _ in range(attempts):
        before, wall, after = raw_ns(), wall_ns(), raw_ns()
        if best is None or after - before < best[2] - best[0]:
            best = before, wall, after
        if after - before <= width_ns:
            break
    assert best is not None, "attempts is at least 1"
    before, wall, after = best
    return WallSample(after, Interval(wall - after, wall - before))
