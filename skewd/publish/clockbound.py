"""ClockBound's two segments as files: written while clients that know nothing of us have them mapped.

The problem: AWS's clients map the file once and never look at its name again, so a daemon that restarts must go on
in the *same* file, and no client may ever see half a claim. The protocol is a sequence lock: the generation is odd
while the body changes and even after, and a client that finds it odd or changed keeps what it had. That needs three
stores in order: odd, body, even.

What orders them here. CPython executes one bytecode after the other, and its memoryview stores a 16-bit item by one
aligned 16-bit store (``struct.pack_into`` would zero the field first, and readers would see generation 0). So the
compiler cannot reorder them, but a processor may. x86-64 keeps stores in order by its memory model. Other processors
do not, and Python has no fence; there each boundary is a ``membarrier(2)`` system call, whose global-expedited
command is a full barrier for its caller. Where the kernel refuses that, or the machine is none we know, there is no
real barrier, and segments are off: ``NoBarrier`` says so.

Limits: one writer per directory. A second skewd is refused by a lock; AWS's own daemon takes no lock, so before each
write the generation must be as we left it and the name must still be our file's, else we stop (``Taken``). A file that
is cut off in the microseconds between that look and the write ends this process: its clients' protocol needs stores in
a map. The file stays on exit, with the status unknown: clients that have it mapped see the next daemon's claims in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import secrets
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from skewd.publish.clockbound_layout import (
    GENERATION_WORD,
    HEADER_BYTES,
    V1,
    V2,
    Claim,
    Layout,
    body,
    generations,
    header,
    is_header,
    unknown,
)

Barrier = Callable[[], None]

MEMBARRIER_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
"""The system call's number by machine, as ``platform.machine()`` names it."""

_MEMBARRIER_CMD_QUERY, _MEMBARRIER_CMD_GLOBAL_EXPEDITED = 0, 1 << 1

_clock_gettime_ns = time.clock_gettime_ns  # bound at import: see skewd.clock on virtual nodes
# Linux only, as is all of this; the type checker must not mind where it runs.
_CLOCK_MONOTONIC_COARSE = 6


class ClockBoundError(OSError):
    """Segments cannot be written; the message says why and what to do."""


class NoBarrier(ClockBoundError):
    """This machine gives no store barrier, so clients could read half a claim."""


class Taken(ClockBoundError):
    """Somebody else writes these segments."""


def as_of_ns() -> int:
    """CLOCK_MONOTONIC_COARSE, which ClockBound's times are in."""
    return _clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)


def late_ns() -> int:
    """How far that clock may lag when a client reads it: the kernel's tick, and five of them when it is late.

    At least 20 ms, since a hypervisor may take the processor that keeps the time away for a while.
    """
    return max(5 * round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9), 20_000_000)


def membarrier(number: int) -> Barrier:
    """A full barrier by system call.

    Raises:
        NoBarrier: the kernel has none, or a filter refuses it.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError) as error:
        raise NoBarrier(errno.ENOSYS, f"no C library to ask for a memory barrier: {error}") from error
    call.restype = ctypes.c_long
    arguments = (ctypes.c_long(number), ctypes.c_int(_MEMBARRIER_CMD_GLOBAL_EXPEDITED), ctypes.c_uint(0))
    offered = call(ctypes.c_long(number), ctypes.c_int(_MEMBARRIER_CMD_QUERY), ctypes.c_uint(0))
    if offered < 0 or not offered & _MEMBARRIER_CMD_GLOBAL_EXPEDITED or call(*arguments) != 0:
        raise NoBarrier(errno.ENOSYS, "the kernel offers no membarrier(2), or a system call filter refuses it")

    def barrier() -> None:
        if call(*arguments) != 0:
            raise NoBarrier(ctypes.get_errno(), "membarrier(2) failed after it had worked")

    return barrier


def _none_needed() -> None:
    """x86-64 performs stores in the order of the program."""


def store_barrier(machine: str | None = None) -> Barrier:
    """What must stand between two stores so that no other process sees them in the other order.

    Args:
        machine: as ``platform.machine()`` names it; this one by default.

    Raises:
        NoBarrier: there is no real one.
    """
    machine = platform.machine() if machine is None else machine
    if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
        raise NoBarrier(errno.ENOSYS, "the order of stores is only known for CPython on Linux")
    if machine == "x86_64":
        return _none_needed
    if machine not in MEMBARRIER_NUMBERS:
        raise NoBarrier(errno.ENOSYS, f"no memory barrier is known for a {machine} processor")
    return membarrier(MEMBARRIER_NUMBERS[machine])


class Segment:
    """One layout's file, made or taken over.

    Raises:
        Taken: another skewd has it locked.
        OSError: it can be neither opened nor made.
    """

    def __init__(self, directory: Path, layout: Layout, barrier: Barrier) -> None:
        self.path = directory / layout.name
        self._layout = layout
        self._barrier = barrier
        self._descriptor = self._take_over()
        try:
            self._memory = mmap.mmap(self._descriptor, layout.size)
            self._words = memoryview(self._memory).cast("H")
            self._left = self._words[GENERATION_WORD]
            held = os.fstat(self._descriptor)
            self._file = (held.st_dev, held.st_ino)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take_over(self) -> int:
        """The file's descriptor, locked: the one that is there if clients may be reading it, else a new one."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return self._make()  # missing; or a link, or another user's: replaced, if the directory lets us
        try:
            told = os.fstat(descriptor)
            if (
                stat.S_ISREG(told.st_mode)
                and told.st_uid == os.geteuid()
                and told.st_size >= self._layout.size
                and is_header(self._layout, os.pread(descriptor, HEADER_BYTES, 0))
            ):
                self._lock(descriptor)
                os.fchmod(descriptor, 0o644)
                os.posix_fallocate(descriptor, 0, self._layout.size)  # a hole without room to fill it would end us
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return self._make()

    def _make(self) -> int:
        """A new file, complete before it has its name: no client ever opens half of one."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # readers are other users' processes, whatever the umask
            self._lock(descriptor)
            os.write(descriptor, header(self._layout, 2) + body(self._layout, unknown(as_of_ns())))
            os.rename(temporary, self.path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return descriptor

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(
                errno.EBUSY,
                f"another skewd writes {self.path}; stop it, or choose another [clockbound] directory",
            ) from None

    def publish(self, said: Claim) -> None:
        """Replaces the claim.

        Raises:
            Taken: somebody else wrote here or took the name.
        """
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            named = None
        held = os.fstat(self._descriptor)
        if (
            named is None
            or (named.st_dev, named.st_ino) != self._file
            or held.st_size < self._layout.size  # cut off: touching the map would end this process
            or self._words[GENERATION_WORD] != self._left
        ):
            raise Taken(
                errno.EBUSY,
                f"another program writes or removed {self.path}; stop it (AWS's clockbound daemon?), or choose "
                "another [clockbound] directory, and restart skewd",
            )
        writing, written = generations(self._left)
        content = body(self._layout, said)
        self._words[GENERATION_WORD] = writing
        self._barrier()
        self._memory[HEADER_BYTES : HEADER_BYTES + len(content)] = content
        self._barrier()
        self._words[GENERATION_WORD] = self._left = written

    def close(self) -> None:
        """Unmaps and unlocks; the file stays."""
        self._words.release()
        self._memory.close()
        os.close(self._descriptor)


class ClockBoundSegments:
    """Both segments of a directory, ``shm`` (version 1) and ``shm0`` (version 2).

    Args:
        directory: made if need be, readable by all.
        barrier: see :func:`store_barrier`.

    Raises:
        ClockBoundError: they cannot be written; the message says why and what to do.
    """

    def __init__(self, directory: Path, barrier: Barrier) -> None:
        self.directory = directory
        self._segments: list[Segment] = []
        try:
            if not directory.is_dir():
                directory.mkdir(parents=True)
                directory.chmod(0o755)  # clients are other users' processes, whatever the umask
            for layout in (V1, V2):
                self._segments.append(Segment(directory, layout, barrier))
            self.publish(unknown(as_of_ns()))
        except ClockBoundError:
            self._release()
            raise
        except OSError as error:
            self._release()
            raise ClockBoundError(
                error.errno,
                f"ClockBound segments cannot be written in {directory}: {error.strerror}; choose another "
                "[clockbound] directory, or let this user write there",
            ) from error

    def publish(self, said: Claim) -> None:
        """Tells all clients.

        Raises:
            Taken: somebody else writes these files.
        """
        for segment in self._segments:
            segment.publish(said)

    def close(self) -> None:
        """Says unknown, and leaves the files to clients and to the next daemon."""
        try:
            for segment in self._segments:
                with contextlib.suppress(OSError):
                    segment.publish(unknown(as_of_ns()))
        finally:
            self._release()

    def _release(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments.clear()
