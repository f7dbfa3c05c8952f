"""A machine for one daemon, which a test can step, put to sleep, and take the disk away from.

The problem: a foreign step of CLOCK_REALTIME, a suspend and a disk that hangs belong to a machine, and a test may do
none of them to the one that it runs on. A virtual node does not do: nothing is looked for there, and what speaks of
the wall clock from memory (chronyd, the kernel) speaks of the host's.

The insight: what a daemon knows of its machine it asks a few functions for. Run as a program, ``PAGE WORDS...``, this
is ``skewd WORDS...`` with those functions answered by a page of memory that the test writes: the host's wall clock,
how long the host has slept, whether its disk takes anything. All else is the command as it is shipped.

Limits: a suspend moves the wall clock and the time slept, the raw clock goes on (no bound may span it anyway). The
kernel's own word on the wall clock is "unsynchronized", and its stamps of packets are not used. A disk that hangs
hangs where files are replaced and flushed.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.01
_WALL, _SLEPT, _STUCK, _WAITED = range(4)


class Machine:
    """The page, for the test (``create``) and for the daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 64)).cast("q")

    @classmethod
    def create(cls, path: Path, wall_offset_ns: int = 0) -> Machine:
        """A machine whose wall clock is so far ahead of the host's."""
        path.write_bytes(bytes(64))
        made = cls(path)
        made._words[_WALL] = wall_offset_ns
        return made

    @property
    def offset_ns(self) -> int:
        """Its wall clock minus the host's."""
        return self._words[_WALL]

    def deviation_ns(self, _host_raw_ns: int) -> int:
        """The same, as a virtual page tells it."""
        return self.offset_ns

    @property
    def slept_ns(self) -> int:
        """How long it has slept."""
        return self._words[_SLEPT]

    def step_to(self, offset_ns: int) -> None:
        """Somebody else sets the wall clock; a kernel tells at once."""
        with self.path.open("r+b"):  # its closing wakes who watches
            self._words[_WALL] = offset_ns

    def sleep(self, slept_ns: int, wall_offset_ns: int) -> None:
        """A suspend: at the resume the wall clock is set from the battery's clock, which is not exact."""
        with self.path.open("r+b"):
            self._words[_WALL] = wall_offset_ns
            self._words[_SLEPT] += slept_ns

    @property
    def disk_waits(self) -> int:
        """How many times the daemon came to wait for the disk."""
        return self._words[_WAITED]

    def hang_disk(self, stuck: bool) -> None:
        """From now on the disk takes nothing, or everything again."""
        self._words[_STUCK] = stuck

    def wait_for_disk(self) -> None:
        """What a process does that writes there."""
        if self._words[_STUCK]:
            self._words[_WAITED] += 1
        while self._words[_STUCK]:
            time.sleep(_POLL_S)


def become(machine: Machine) -> None:
    """Has this process's skewd take that machine for its own."""
    from dataclasses import replace

    import skewd.clock as clocks
    from skewd import hostclock, kernel_stamps

    host_wall, slept, read = clocks._host_time_ns, hostclock.suspended_ns, hostclock.KernelReader.read
    clocks._host_time_ns = lambda: host_wall() + machine.offset_ns
    hostclock.suspended_ns = lambda: slept().shift(machine.slept_ns)
    hostclock.SetWatch = lambda: hostclock.FileWatch(machine.path)  # type: ignore[assignment,misc]
    kernel_stamps.ask_for_stamps = lambda *_, **__: False

    def unsynchronized(self: Any) -> Any:
        found = read(self)
        return None if found is None else replace(found, state=5, status=found.status | 0x40)

    hostclock.KernelReader.read = unsynchronized  # type: ignore[method-assign]
    for name in ("fsync", "fdatasync", "replace", "rename"):
        setattr(os, name, _slowly(machine, getattr(os, name)))


def _slowly(machine: Machine, call: Any) -> Any:
    def waiting(*arguments: Any, **more: Any) -> Any:
        machine.wait_for_disk()
        return call(*arguments, **more)

    return waiting


def main(page: str, *words: str) -> int:
    become(Machine(Path(page)))
    from skewd.cli import main as skewd

    return skewd(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
