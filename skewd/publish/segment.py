"""The node's clock knowledge in shared memory, for any number of readers that never wait.

The daemon writes knots (see ``bounds/history.py``) into a ring of fixed records in a file in memory, one writer, no
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

**Nobody maps the file.** Whoever touches a mapped page that is no longer there, since somebody cut the file off or the
file system is full, is ended by a signal and says nothing. So the writer has all blocks of the file before it has its
name, and both sides read and write it by system calls, which fail in words. A file that is cut off or removed is told
(``intact``), and the daemon makes another.

**A heartbeat from before a sleep is none.** CLOCK_MONOTONIC stands still while the machine sleeps, so to a reader that
wakes first, the heartbeat of a daemon that has not run yet looks young; and what it published is wrong by all that was
slept. So beside the heartbeat stands how long the machine had slept by then, and a reader that finds that it slept
longer believes nothing until the daemon has looked.

A process in another time namespace has other monotonic and raw clocks than the daemon: it refuses the segment and
says why (``problem``).

Limits: ``CAPACITY`` records (15 minutes and more at 4 a second), names up to 63 bytes. When the heartbeat is older than
``STALE_NS``, stamps later than the last knot's reach are unsynchronized, since a step would have gone unnoticed. A
heartbeat from the future (a file that outlived a reboot, another time namespace) is none. A sleep of less than
``SLEPT_NS`` is not seen by readers. A segment of a version that does not tell sleeps is read as it was. Any number of
processes may read, also forked ones; one :class:`SegmentReader` serves one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import time
import zlib
from pathlib import Path
from typing import NamedTuple

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

SLEPT_NS = 1_000_000
"""Less is what two readings of the clocks may be apart."""

# magic, version, flags, header size, record size, capacity, boot id, identity, node; then the CRC-32 of these
_HEADER = struct.Struct("<8sHHIII16s16s64s")
_HEADER_BYTES = 192
# Aligned words: records written so far; the last sign of life in CLOCK_MONOTONIC ns; by how much the writer's
# CLOCK_MONOTONIC and _RAW are ahead of the host's (time namespaces), 0 as a rule; how long the host had slept at that
# sign of life, if the flag says that it is told.
_WORDS = struct.Struct("<4q")
_WORDS_AT = 160
_WORD = struct.Struct("<q")
COUNT_AT, COUNT_BYTES = _WORDS_AT, 8
"""Where the record count stands in the file: it changes with every new record."""

_HEARTBEAT_AT, _SLEPT_AT = _WORDS_AT + 8, _WORDS_AT + 24

_ENDED = -(1 << 62)
"""In place of a heartbeat: the daemon ended in order."""

_MAGIC = b"skewdseg"
_FLAG_VIRTUAL = 1
_FLAG_TELLS_SLEEP = 2

_RECORD = struct.Struct("<QIBBHqqqqqqqqqqq64s")
_RECORD_BYTES = 184
_CRC = struct.Struct("<I")
_NONE = -(1 << 63)
_STATUSES = tuple(Status)

_NO_TABLE = Table((), 0)
_READINGS = 3
"""Readings of the clocks at most, for one that is not interrupted, before a step is believed."""

_monotonic_ns = time.monotonic_ns  # bound at import: see skewd.clock on virtual nodes

_CUT_OFF = "was cut off; the daemon makes another within seconds, if there is room"
_ASLEEP = "is from before this machine slept; its daemon looks at the clocks within a second"


class SegmentError(OSError):
    """The segment cannot be made; the message says why and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


_FILE_BYTES = _HEADER_BYTES + CAPACITY * _RECORD_BYTES


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
    if len(data) < _RECORD.size + _CRC.size or _CRC.unpack_from(data, _RECORD.size)[0] != zlib.crc32(body):
        return None
    found, era, status, known, epoch, *times, name = _RECORD.unpack(body)
    if found != number:
        return None
    begin, end, raw, wall, lo, hi, drift_lo, drift_hi, wander, applied, slope = times
    if status >= len(_STATUSES) or lo > hi or drift_lo > drift_hi or wander < 0 or not name.isascii():
        return None  # no writer of ours wrote it
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
    if shape[:3] == (_HEADER_BYTES, _RECORD_BYTES, CAPACITY) and size < _FILE_BYTES:
        return _CUT_OFF
    if shape != (_HEADER_BYTES, _RECORD_BYTES, CAPACITY, _FILE_BYTES):
        return "is damaged; restart the daemon, which makes a new one"
    return None


class SegmentWriter:
    """The daemon's side. Makes the file, with all its blocks, under a temporary name and renames it into place.

    Attributes:
        trouble: why the last write failed, in words; None if it did not.

    Raises:
        SegmentError: the directory cannot be written, or has no room; the message names the file and the fix.
        ValueError: the node's name is longer than 63 bytes.
    """

    def __init__(self, path: str | os.PathLike[str], *, node: str, boot: bytes, virtual: bool) -> None:
        name = node.encode()
        if len(name) > 63:
            raise ValueError(f"the node's name {node!r} is longer than 63 bytes")
        self.path = Path(path)
        self.trouble: str | None = None
        self._count = 0
        self._recent: dict[tuple[int, int], int] = {}
        self._slept_ns = 0
        self._slept_shift_ns = hostclock.slept_shift_ns()
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _not_made(self.path, error) from error
        try:
            os.fchmod(self._descriptor, 0o644)  # readers are other users' processes, whatever the umask
            # All of it now: a file system that is full later has nothing to refuse.
            os.posix_fallocate(self._descriptor, 0, _FILE_BYTES)
            flags = _FLAG_TELLS_SLEEP | (_FLAG_VIRTUAL if virtual else 0)
            header = _HEADER.pack(
                _MAGIC, VERSION, flags, _HEADER_BYTES, _RECORD_BYTES, CAPACITY, boot, secrets.token_bytes(16), name
            )
            os.pwrite(self._descriptor, header + _CRC.pack(zlib.crc32(header)), 0)
            self._slept_ns = self._slept()
            words = _WORDS.pack(0, _monotonic_ns(), hostclock.shift_ns(), self._slept_ns)
            os.pwrite(self._descriptor, words, _WORDS_AT)
            os.rename(temporary, self.path)
            status = os.fstat(self._descriptor)
            self._file = (status.st_dev, status.st_ino)
        except BaseException as error:
            os.close(self._descriptor)
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _not_made(self.path, error) from error
            raise

    def publish(self, knot: Knot) -> None:
        """Adds the newest knot."""
        number = self._count
        self._write(number, knot)
        self._recent[(knot.era, knot.wall_ns)] = number
        if len(self._recent) > TIGHTENED_MAX - 8:  # a margin for readers that refresh while knots are added
            del self._recent[next(iter(self._recent))]
        self._count = number + 1
        self._put(_WORD.pack(self._count), COUNT_AT)  # after the record: who sees the count finds the record

    def tighten(self, knot: Knot) -> None:
        """Rewrites a recent knot in place; one that is no longer recent stays as it is."""
        number = self._recent.get((knot.era, knot.wall_ns))
        if number is not None:
            self._write(number, knot)

    def heartbeat(self, slept_ns: int | None = None) -> None:
        """Says that the daemon runs and that the clocks were just looked at.

        Args:
            slept_ns: how long this host had slept since its boot when they were (``hostclock.suspended_ns``, its
                later end): a sleep since then is one that the daemon does not know of. None: now.
        """
        slept_ns = self._slept() if slept_ns is None else slept_ns - self._slept_shift_ns
        if abs(slept_ns - self._slept_ns) > SLEPT_NS // 4:
            self._slept_ns = slept_ns
            self._put(_WORD.pack(slept_ns), _SLEPT_AT)
        self._put(_WORD.pack(_monotonic_ns()), _HEARTBEAT_AT)

    def intact(self) -> bool:
        """Whether the file is there as it was made: whole, and under its name."""
        try:
            named, held = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == self._file and held.st_size == _FILE_BYTES

    def _slept(self) -> int:
        return hostclock.suspended_ns().hi - self._slept_shift_ns

    def _write(self, number: int, knot: Knot) -> None:
        self._put(_pack(number, knot), _HEADER_BYTES + (number % CAPACITY) * _RECORD_BYTES)

    def _put(self, data: bytes, at: int) -> None:
        try:
            os.pwrite(self._descriptor, data, at)
        except OSError as error:  # it was cut off, and now there is no room
            self.trouble = error.strerror
        else:
            self.trouble = None

    def close(self) -> None:
        """Ends the heartbeat and removes the file, if it is still ours."""
        self._put(_WORD.pack(_ENDED), _HEARTBEAT_AT)
        with contextlib.suppress(OSError):
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._file:
                self.path.unlink()
        os.close(self._descriptor)


def _not_made(path: Path, error: OSError) -> SegmentError:
    return SegmentError(
        error.errno,
        f"{path} ({_FILE_BYTES // 1024 + 1} KiB) can't be made: {error.strerror}; make room in {path.parent}, let this"
        " user write there, or choose another [node] runtime_dir",
    )


class _Opened:
    """A descriptor that is closed when nobody holds this any more: no other thread reads another file by its number."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Newest(NamedTuple):
    """The newest knot alone.

    Attributes:
        knot: it.
        left_ns: for how long it may be used without looking at the heartbeat again.
        file: what holds the file open; its ``descriptor`` is good for as long as this is held.
        counted: the bytes at ``COUNT_AT`` while it is the newest.
        awake_ns: while this process's ``hostclock.suspended_ns`` does not exceed this, the machine has not slept since.
    """

    knot: Knot
    left_ns: int
    file: _Opened
    counted: bytes
    awake_ns: int


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
        self._opened: _Opened | None = None
        self._next_open_ns = 0
        self._slept_shift_ns = 0
        self._tells_sleep = False
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
        if self._opened is None:
            self._open()
        return self._node

    @property
    def latest(self) -> Knot | None:
        """The newest knot read, if the daemon runs."""
        return self._history.latest if self.refresh() else None

    def at(self, wall_ns: int) -> Correction:
        """The correction for a stamp of this node's wall clock, made before this is called.

        With a clock to look at, a stamp later than it has shown is not this node's, and unsynchronized.
        """
        running = self.refresh()
        latest = self._history.latest
        # Where the daemon is gone, what it said of the past stands, and what came after it is unknown.
        if latest is None or (not running and wall_ns > latest.wall_ns + STALE_NS):
            return UNSYNCHRONIZED
        step = self._unseen(latest)
        known = self._history.at(wall_ns, self._shown_ns(step))
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

    def reading_ns(self) -> int | None:
        """What this node's wall clock reads: what was stamped with it is not later. None: no clock can be looked at."""
        self.refresh()
        return None if self._looked_at is None else self._looked_at.wall_ns()

    @property
    def _looked_at(self) -> Clock | None:
        """The clock, if it is the one that the segment speaks of."""
        clock = self._clock
        return clock if clock is not None and clock.virtual == self.virtual else None

    def _shown_ns(self, step: Unseen | None) -> int | None:
        """The latest reading that the newest era can have shown; of one that an unseen step ended, at that step."""
        clock = self._looked_at
        if clock is None:
            return None
        return clock.wall_ns() if step is None else step.wall_ns - min(step.moved_ns.lo, 0)

    def _unseen(self, knot: Knot) -> Unseen | None:
        """The step that the daemon has not seen yet, by a reading of this moment."""
        clock = self._looked_at
        if clock is None:
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
        if self._opened is None and not self._open():
            return False
        words = self._words()
        if words is not None:
            count, heartbeat, _, slept = words
            if heartbeat != self._seen:
                self._take(count)
                self._seen = heartbeat
            if self._left_ns(heartbeat, slept) > 0:
                return True
        # Perhaps a new daemon has replaced the file.
        if _monotonic_ns() >= self._next_open_ns and self._replaced():
            self.close()
            self._next_open_ns = 0
            return self._open() and self.refresh()
        return False

    def newest(self) -> Newest | None:
        """The newest knot alone, for readers that need no past; None when no daemon writes, or it wrote nothing yet."""
        for _ in range(4):  # once more for a new file, or a record that is being tightened
            if self._opened is None and not self._open():
                return None
            assert self._opened is not None
            words = self._words()
            count, heartbeat, _, slept = (0, 0, 0, 0) if words is None else words
            left = 0 if words is None else self._left_ns(heartbeat, slept)
            if left <= 0:
                if _monotonic_ns() < self._next_open_ns or not self._replaced():
                    return None
                self.close()
                self._next_open_ns = 0
            elif count <= 0:
                return None
            else:
                at = _HEADER_BYTES + ((count - 1) % CAPACITY) * _RECORD_BYTES
                knot = _unpack(count - 1, os.pread(self._opened.descriptor, _RECORD_BYTES, at))
                if knot is not None:
                    awake_ns = slept + self._slept_shift_ns + SLEPT_NS if self._tells_sleep else 1 << 62
                    return Newest(knot, left, self._opened, _WORD.pack(count), awake_ns)
        return None

    def _words(self) -> tuple[int, int, int, int] | None:
        """The count, the heartbeat, the shift and the time slept; None where they are not there any more.

        Each is written and read by one call, which the processor may cut in two, however rarely: what would end an
        answer (:meth:`_left_ns`) is read twice, and a count is believed for the record that it leads to.
        """
        assert self._opened is not None
        data = os.pread(self._opened.descriptor, _WORDS.size, _WORDS_AT)
        if len(data) < _WORDS.size:
            self.problem = _CUT_OFF
            return None
        words = _WORDS.unpack(data)
        if self._left_ns(words[1], words[3]) <= 0:
            again = os.pread(self._opened.descriptor, _WORDS.size, _WORDS_AT)
            words = _WORDS.unpack(again) if len(again) == _WORDS.size else words
        return words

    def _left_ns(self, heartbeat: int, slept_ns: int) -> int:
        """For how long a heartbeat counts from now on; not positive: it does not."""
        # The least that it can have slept: an interruption while the clocks are read is no sleep.
        slept_now_ns = hostclock.suspended_ns().lo - self._slept_shift_ns
        if self._tells_sleep and slept_now_ns - slept_ns > SLEPT_NS:
            self.problem = _ASLEEP
            return 0
        if self.problem is _ASLEEP:
            self.problem = None
        return STALE_NS - abs(_monotonic_ns() - heartbeat)

    def _replaced(self) -> bool:
        self._next_open_ns = _monotonic_ns() + self._REOPEN_NS
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._file or found.st_size != _FILE_BYTES

    def _open(self) -> bool:
        now = _monotonic_ns()
        if now < self._next_open_ns:
            return False
        self._next_open_ns = now + self._REOPEN_NS
        try:
            opened = _Opened(self.path)
        except OSError:
            self.problem = None
            return False
        try:
            status = os.fstat(opened.descriptor)
            head = os.pread(opened.descriptor, _HEADER.size + _CRC.size, 0)
            words = os.pread(opened.descriptor, _WORDS.size, _WORDS_AT)
        except OSError:  # not a file
            return False
        self.problem = _problem(head, status.st_size)
        if self.problem is None and len(words) < _WORDS.size:
            self.problem = _CUT_OFF
        if self.problem is not None:
            return False
        ahead = hostclock.shift_ns() - _WORDS.unpack(words)[2]
        if ahead:
            # Neither the heartbeat nor any raw instant in it can be compared with a clock of this process.
            self.problem = (
                f"is of another time namespace than this process, whose raw clock is off by {ahead / 1e9:g} s;"
                " run both in one, or a daemon in this one"
            )
            return False
        _, _, flags, _, _, _, _, _, name = _HEADER.unpack_from(head)
        self._next_open_ns = 0
        self._opened, self._file = opened, (status.st_dev, status.st_ino)
        self._node = name.rstrip(b"\0").decode("ascii", "replace")
        self.virtual = bool(flags & _FLAG_VIRTUAL)
        self._tells_sleep = bool(flags & _FLAG_TELLS_SLEEP)
        self._slept_shift_ns = hostclock.slept_shift_ns()
        self._reset()
        return True

    def _take(self, count: int) -> None:
        """Reads the new records, and the recent ones again."""
        first = max(self._read - TIGHTENED_MAX, count - CAPACITY, 0)
        if first >= count:
            return
        data = self._records(first, count)
        for number in range(first, count):
            at = (number - first) * _RECORD_BYTES
            record = data[at : at + _RECORD_BYTES]
            if record == self._recent.get(number):
                continue  # most heartbeats bring nothing else
            knot = _unpack(number, record)
            if knot is None:
                if number >= self._read:
                    return  # being written; the next refresh will have it
                continue
            self._recent[number] = record
            if number < self._read:
                self._history.tighten((knot,))
            else:
                with contextlib.suppress(ValueError):  # out of order: no writer of ours wrote it
                    self._history.append(knot)
                self._read = number + 1
        for number in [number for number in self._recent if number < count - TIGHTENED_MAX]:
            del self._recent[number]

    def _records(self, first: int, end: int) -> bytes:
        """The records from ``first`` to before ``end``, which the ring may hold in two pieces."""
        assert self._opened is not None
        data, number = b"", first
        while number < end:
            place = number % CAPACITY
            several = min(end - number, CAPACITY - place)
            at, size = _HEADER_BYTES + place * _RECORD_BYTES, several * _RECORD_BYTES
            data += os.pread(self._opened.descriptor, size, at).ljust(size, b"\0")
            number += several
        return data

    def close(self) -> None:
        """Lets go of the file."""
        self._opened = None
