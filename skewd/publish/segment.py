"""The node's clock knowledge in shared memory, for any number of readers that never wait.

The daemon writes knots (see ``bounds/history.py``) into a ring of fixed records in a mapped file, one writer, no
locks. A reader copies records out and checks each one's sequence number and CRC-32: a record caught half-written
fails the check and is read again at the next refresh. Records of the last seconds are rewritten in place when later
messages tightened them; a reader re-reads that many each time. So a reader sees the past get better, and never a
value that was not written.

The segment is versioned and carries the boot id, a random identity and a heartbeat in the host's CLOCK_MONOTONIC
(the same for every process of the host, virtual nodes included; containers share it). A restarted daemon makes a
new file and renames it over the old one, so a reader that holds the old one sees the heartbeat end, opens the path
again, and finds the new identity. A bind-mounted *directory* shows the new file; a bind-mounted single file would
not: mount the directory. A daemon that ends in order says so in the file, so readers look for the next one at once.

Nothing here depends on the order in which another processor sees two stores: the newest record is found through the
count, but believed for its number and checksum alone; what is not (or not wholly) there yet is read later.

A daemon sees a step when it next looks, or when the kernel told it and it got to run; until then its knots are of the
clock before. A reader that is given this node's clocks compares them with the newest knot before it answers, and sees
such a step itself (``bounds/unseen.py``).

A process in another time namespace has other monotonic and raw clocks than the daemon: it refuses the segment and
says why (``problem``).

Limits: ``CAPACITY`` records (15 minutes and more at 4 a second), names up to 63 bytes. When the heartbeat is older than
``STALE_NS``, stamps later than the last knot's reach are unsynchronized, since a step would have gone unnoticed. A
heartbeat from the future (a file that outlived a reboot, another time namespace) is none. Any number of processes may
read, also forked ones; one :class:`SegmentReader` serves one thread at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import struct
import time
import zlib
from pathlib import Path

from skewd import hostclock
from skewd.bounds.history import UNSYNCHRONIZED, Correction, History, Knot, Status
from skewd.bounds.table import Table, TableKeeper
from skewd.bounds.unseen import NOTED_NS, NOTED_VIRTUAL_NS, Unseen, unseen
from skewd.clock import Clock
from skewd.interval import Interval

NAME = "clock.shm"
"""File name within the runtime directory."""

VERSION = 1
CAPACITY = 4_096
TIGHTENED_MAX = 48
"""The newest records, which the writer may still rewrite and readers read again."""

STALE_NS = 2_000_000_000
"""A heartbeat older than this: the daemon does not run."""

# magic, version, flags, header size, record size, capacity, boot id, identity, node; then the CRC-32 of these
_HEADER = struct.Struct("<8sHHIII16s16s64s")
_HEADER_BYTES = 192
# Aligned words, stored whole: records written so far; the last sign of life in CLOCK_MONOTONIC ns.
_COUNT, _HEARTBEAT = 20, 21
COUNT_WORD = _COUNT
"""Index of the record count among the segment's 64-bit words: it changes with every new record."""

_ENDED = -(1 << 62)
"""In place of a heartbeat: the daemon ended in order."""

# By how much the writer's CLOCK_MONOTONIC and _RAW are ahead of the host's (time namespaces); 0 as a rule.
_SHIFT = 22
_MAGIC = b"skewdseg"
_FLAG_VIRTUAL = 1

_RECORD = struct.Struct("<QIBBHqqqqqqqqqqq64s")
_RECORD_BYTES = 184
_CRC = struct.Struct("<I")
_NONE = -(1 << 63)
_STATUSES = tuple(Status)

_NO_TABLE = Table((), 0)
_READINGS = 3
"""Readings of the clocks at most, for one that is not interrupted, before a step is believed."""

_monotonic_ns = time.monotonic_ns  # bound at import: see skewd.clock on virtual nodes


class SegmentError(OSError):
    """The segment cannot be used; the message says why."""


def _pack(number: int, knot: Knot) -> bytes:
    body = _RECORD.pack(
        number,
        knot.era,
        _STATUSES.index(knot.status),
        knot.bound is not None,
        knot.epoch,
        knot.era_begin_wall_ns,
        _NONE if knot.previous_end_wall_ns is None else knot.previous_end_wall_ns,
        knot.raw_ns,
        knot.wall_ns,
        knot.bound.lo if knot.bound else 0,
        knot.bound.hi if knot.bound else 0,
        knot.drift_ppb.lo,
        knot.drift_ppb.hi,
        knot.wander_ppb_per_s,
        knot.applied_ns,
        knot.applied_slope_ppb,
        (knot.reference or "").encode()[:63],
    )
    return (body + _CRC.pack(zlib.crc32(body))).ljust(_RECORD_BYTES, b"\0")


def _unpack(number: int, data: bytes) -> Knot | None:
    """The knot of one record; None when it is not (or not yet, or no longer) record ``number``."""
    body = data[: _RECORD.size]
    if _CRC.unpack_from(data, _RECORD.size)[0] != zlib.crc32(body):
        return None
    found, era, status, known, epoch, *times, name = _RECORD.unpack(body)
    if found != number:
        return None
    begin, end, raw, wall, lo, hi, drift_lo, drift_hi, wander, applied, slope = times
    return Knot(
        era=era,
        era_begin_wall_ns=begin,
        previous_end_wall_ns=None if end == _NONE else end,
        raw_ns=raw,
        wall_ns=wall,
        bound=Interval(lo, hi) if known else None,
        drift_ppb=Interval(drift_lo, drift_hi),
        wander_ppb_per_s=wander,
        applied_ns=applied,
        applied_slope_ppb=slope,
        status=_STATUSES[status],
        reference=name.rstrip(b"\0").decode() or None,
        epoch=epoch,
    )


def _problem(head: bytes, size: int) -> str | None:
    """Why a file that begins so is no segment that this version reads; None when it is."""
    if len(head) < _HEADER.size + _CRC.size or not head.startswith(_MAGIC):
        return "is no segment of skewd; a single file that is mounted into a container goes stale: mount the directory"
    _, version, _, header_bytes, record_bytes, capacity, _, _, _ = _HEADER.unpack_from(head)
    if version != VERSION:
        return f"has version {version} and this program reads {VERSION}; bring both to the same release of skewd"
    if _CRC.unpack_from(head, _HEADER.size)[0] != zlib.crc32(head[: _HEADER.size]):
        return "is damaged; restart the daemon, which makes a new one"
    shape = (header_bytes, record_bytes, capacity, size)
    if shape != (_HEADER_BYTES, _RECORD_BYTES, CAPACITY, _HEADER_BYTES + CAPACITY * _RECORD_BYTES):
        return "is damaged; restart the daemon, which makes a new one"
    return None


class SegmentWriter:
    """The daemon's side. Makes the file under a temporary name and renames it into place.

    Raises:
        OSError: the directory cannot be written.
        ValueError: the node's name is longer than 63 bytes.
    """

    def __init__(self, path: str | os.PathLike[str], *, node: str, boot: bytes, virtual: bool) -> None:
        name = node.encode()
        if len(name) > 63:
            raise ValueError(f"the node's name {node!r} is longer than 63 bytes")
        self.path = Path(path)
        self._count = 0
        self._recent: dict[tuple[int, int], int] = {}
        size = _HEADER_BYTES + CAPACITY * _RECORD_BYTES
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # readers are other users' processes, whatever the umask
            os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
            flags = _FLAG_VIRTUAL if virtual else 0
            header = _HEADER.pack(
                _MAGIC, VERSION, flags, _HEADER_BYTES, _RECORD_BYTES, CAPACITY, boot, secrets.token_bytes(16), name
            )
            self._memory[: len(header)] = header
            self._memory[len(header) : len(header) + 4] = _CRC.pack(zlib.crc32(header))
            self._words = memoryview(self._memory).cast("q")
            self._words[_SHIFT] = hostclock.shift_ns()
            self.heartbeat()
            os.rename(temporary, self.path)
            status = os.fstat(descriptor)
            self._file = (status.st_dev, status.st_ino)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def publish(self, knot: Knot) -> None:
        """Adds the newest knot."""
        number = self._count
        self._write(number, knot)
        self._recent[(knot.era, knot.wall_ns)] = number
        if len(self._recent) > TIGHTENED_MAX - 8:  # a margin for readers that refresh while knots are added
            del self._recent[next(iter(self._recent))]
        self._count = number + 1
        self._words[_COUNT] = self._count  # after the record: a reader that sees the count finds the record

    def tighten(self, knot: Knot) -> None:
        """Rewrites a recent knot in place; one that is no longer recent stays as it is."""
        number = self._recent.get((knot.era, knot.wall_ns))
        if number is not None:
            self._write(number, knot)

    def heartbeat(self) -> None:
        """Says that the daemon runs and that the wall clock was just looked at."""
        self._words[_HEARTBEAT] = _monotonic_ns()

    def _write(self, number: int, knot: Knot) -> None:
        at = _HEADER_BYTES + (number % CAPACITY) * _RECORD_BYTES
        self._memory[at : at + _RECORD_BYTES] = _pack(number, knot)

    def close(self) -> None:
        """Ends the heartbeat, unmaps and removes the file, if it is still ours."""
        self._words[_HEARTBEAT] = _ENDED
        with contextlib.suppress(OSError):
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._file:
                self.path.unlink()
        self._words.release()
        self._memory.close()


class SegmentReader:
    """Any reader's side: a :class:`~skewd.bounds.history.CorrectionSource` that follows the daemon of this node.

    A missing, replaced, damaged or stale segment is survived: answers are unsynchronized until it is there again.

    Args:
        path: the segment, usually ``/run/skewd/clock.shm``.
        node: the node's name, until the segment tells it.
        stamps, max_uncertainty_ns: as in :class:`~skewd.bounds.history.History`.
        clock: this node's clocks, which are compared with what the daemon says. Without, a stamp that is asked about
            before the daemon has seen a step is judged by the clock before it.
    """

    _REOPEN_NS = 200_000_000

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        node: str = "",
        stamps: str = "unknown",
        max_uncertainty_ns: int = 1_000_000_000,
        clock: Clock | None = None,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._stamps = stamps
        self._max_uncertainty_ns = max_uncertainty_ns
        self._node = node
        self._memory: mmap.mmap | None = None
        self._next_open_ns = 0
        self.virtual = False
        self.problem: str | None = None
        """Why the segment found last cannot be used, and what to do; None when it can, or when there is none."""
        self._reset()

    def _reset(self) -> None:
        self._history = History(max_uncertainty_ns=self._max_uncertainty_ns, stamps=self._stamps)
        # A knot answers for as long as the daemon may be gone unnoticed, whether or not it is: see `at`.
        self._tables = TableKeeper(self._history, STALE_NS)
        self._recent: dict[int, bytes] = {}
        self._read = 0
        self._seen = 0

    @property
    def node(self) -> str:
        """The node's name: the segment's, once there is one."""
        if self._memory is None:
            self._open()
        return self._node

    @property
    def latest(self) -> Knot | None:
        """The newest knot read, if the daemon runs."""
        return self._history.latest if self.refresh() else None

    def at(self, wall_ns: int) -> Correction:
        """The correction for a stamp of this node's wall clock."""
        running = self.refresh()
        latest = self._history.latest
        # Where the daemon is gone, what it said of the past stands, and what came after it is unknown.
        if latest is None or (not running and wall_ns > latest.wall_ns + STALE_NS):
            return UNSYNCHRONIZED
        step = self._unseen(latest)
        known = self._history.at(wall_ns)
        return known if step is None else step.judged(wall_ns, known, self._max_uncertainty_ns)

    def table(self) -> Table:
        """What :meth:`at` would say of the newest stretch of time; made anew when the daemon has written something.

        Of stamps that were taken before this is called: of later ones, ask for another.
        """
        self.refresh()
        latest = self._history.latest
        if latest is not None and self._unseen(latest) is not None:
            return _NO_TABLE  # each stamp is asked for
        return self._tables.table()

    def _unseen(self, knot: Knot) -> Unseen | None:
        """The step that the daemon has not seen yet, by a reading of this moment."""
        clock = self._clock
        if clock is None or clock.virtual != self.virtual:
            return None
        noted_ns = NOTED_VIRTUAL_NS if self.virtual else NOTED_NS
        found: Unseen | None = None
        for _ in range(_READINGS):
            before_ns, wall_ns, after_ns = clock.raw_ns(), clock.wall_ns(), clock.raw_ns()
            step = unseen(knot, before_ns, wall_ns, after_ns, noted_ns, STALE_NS)
            if step is None:
                return None
            if found is None or step.moved_ns.width < found.moved_ns.width:
                found = step
        return found

    def refresh(self) -> bool:
        """Takes in what the daemon wrote since; False when no daemon is writing."""
        if self._memory is None and not self._open():
            return False
        assert self._memory is not None
        count, heartbeat = self._words[_COUNT], self._words[_HEARTBEAT]
        if heartbeat != self._seen:
            self._take(count)
            self._seen = heartbeat
        if abs(_monotonic_ns() - heartbeat) <= STALE_NS:
            return True
        # Perhaps a new daemon has replaced the file.
        if _monotonic_ns() >= self._next_open_ns and self._replaced():
            self.close()
            self._next_open_ns = 0
            return self._open() and self.refresh()
        return False

    def newest(self) -> tuple[Knot, int, memoryview, int] | None:
        """The newest knot alone, for readers that need no past; None when no daemon writes, or it wrote nothing yet.

        Returns:
            the knot; for how many nanoseconds it may be used without looking at the heartbeat again; the segment's
            64-bit words and the count among them (``COUNT_WORD``) that the knot belongs to.
        """
        for _ in range(4):  # once more for a new file, or a record that is being tightened
            if self._memory is None and not self._open():
                return None
            assert self._memory is not None
            count, heartbeat = self._words[_COUNT], self._words[_HEARTBEAT]
            left = STALE_NS - abs(_monotonic_ns() - heartbeat)
            if left <= 0:
                if _monotonic_ns() < self._next_open_ns or not self._replaced():
                    return None
                self._memory = None  # not close(): another thread may be looking at the words it was given
                self._next_open_ns = 0
            elif count == 0:
                return None
            else:
                at = _HEADER_BYTES + ((count - 1) % CAPACITY) * _RECORD_BYTES
                knot = _unpack(count - 1, self._memory[at : at + _RECORD_BYTES])
                if knot is not None:
                    return knot, left, self._words, count
        return None

    def _replaced(self) -> bool:
        self._next_open_ns = _monotonic_ns() + self._REOPEN_NS
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._file

    def _open(self) -> bool:
        now = _monotonic_ns()
        if now < self._next_open_ns:
            return False
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.problem = None
            self._next_open_ns = now + self._REOPEN_NS
            return False
        try:
            status = os.fstat(descriptor)
            self.problem = _problem(os.pread(descriptor, _HEADER.size + _CRC.size, 0), status.st_size)
            if self.problem is not None:
                self._next_open_ns = now + self._REOPEN_NS
                return False
            memory = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # gone in between, or not a file
            self._next_open_ns = now + self._REOPEN_NS
            return False
        finally:
            os.close(descriptor)
        words = memoryview(memory).cast("q")
        ahead = hostclock.shift_ns() - words[_SHIFT]
        if ahead:
            # Neither the heartbeat nor any raw instant in it can be compared with a clock of this process.
            words.release()
            memory.close()
            self.problem = (
                f"is of another time namespace than this process, whose raw clock is off by {ahead / 1e9:g} s;"
                " run both in one, or a daemon in this one"
            )
            self._next_open_ns = now + self._REOPEN_NS
            return False
        _, _, flags, _, _, _, _, _, name = _HEADER.unpack_from(memory)
        self._memory, self._file = memory, (status.st_dev, status.st_ino)
        self._words = words
        self._node = name.rstrip(b"\0").decode()
        self.virtual = bool(flags & _FLAG_VIRTUAL)
        self._reset()
        return True

    def _take(self, count: int) -> None:
        """Reads the new records, and the recent ones again."""
        assert self._memory is not None
        first = max(self._read - TIGHTENED_MAX, count - CAPACITY, 0)
        for number in range(first, count):
            at = _HEADER_BYTES + (number % CAPACITY) * _RECORD_BYTES
            data = self._memory[at : at + _RECORD_BYTES]
            if data == self._recent.get(number):
                continue  # most heartbeats bring nothing else
            knot = _unpack(number, data)
            if knot is None:
                if number >= self._read:
                    return  # being written; the next refresh will have it
                continue
            self._recent[number] = data
            if number < self._read:
                self._history.tighten((knot,))
            else:
                self._history.append(knot)
                self._read = number + 1
        for number in [number for number in self._recent if number < count - TIGHTENED_MAX]:
            del self._recent[number]

    def close(self) -> None:
        """Unmaps the segment."""
        if self._memory is not None:
            self._words.release()
            self._memory.close()
            self._memory = None
