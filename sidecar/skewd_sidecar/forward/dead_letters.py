"""Requests that a next hop refused for good, kept in a file for a person to look at, mend and send again.

A request refused for good is lost to its exporter, which is told so and drops it; often it is one application's
mistake, or a receiver's setting, and the data are worth having once that is mended. So the body is kept as it was
sent.

The file is a sequence of records (``frames.py``), of which one that a kill cut short costs no other. A record's payload
is one line of JSON, ended by a newline, and then the body, a serialized export request of as many bytes as the line's
``bytes`` says. The line holds ``time_unix_nano``, ``signal`` (traces, metrics, logs or profiles), ``bytes``, and why:
``code`` (gRPC's), ``http_status``, ``message``; and ``metadata``, the headers that the request was sent on with, as
pairs. ``read`` and ``skewd sidecar --replay`` read it; and files of sidecars before, which had such a line and a body
and another newline for each entry, and nothing around them.

The file is made with mode 0600 (telemetry and tenants' headers are nobody else's business), opened anew for each
entry, so it may be moved away at any time, and never longer than ``max_bytes``: when it is full, what comes is counted
and dropped, for the first mistakes explain the most. Whoever appends holds the file's lock, so a sidecar and a replay
may both, and what is about to be removed gets nothing more.

Limits: entries are not synced to the disk one by one; headers are limited to ``HEADER_MAX_BYTES`` on reading. In an old
file an entry that is damaged may hide the next, or a text that looks like an entry be taken for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skewd.quiet import QuietLog
from skewd_sidecar.forward import frames
from skewd_sidecar.forward.counters import Counters
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome

HEADER_MAX_BYTES = 64 * 1024
BODY_MAX_BYTES = 1 << 30
MAX_BYTES = 64 * 1024 * 1024
_MODE = 0o600
_OLD = b'{"time_unix_nano": '
"""What an entry began with before there were records."""


class NotDeadLetters(ValueError):
    """A file that has no dead letter in it, though it has something; the message says so."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry; see the module's text."""

    time_unix_nano: int
    signal: Signal
    code: int
    http_status: int
    message: str
    metadata: Metadata
    body: bytes

    def encode(self) -> bytes:
        """The entry as it stands in the file."""
        header = {
            "time_unix_nano": self.time_unix_nano,
            "signal": self.signal.value,
            "bytes": len(self.body),
            "code": self.code,
            "http_status": self.http_status,
            "message": self.message[:4096],
            "metadata": [list(pair) for pair in self.metadata],
        }
        return frames.encode(b"".join((json.dumps(header).encode(), b"\n", self.body)))

    @classmethod
    def decode(cls, payload: bytes) -> DeadLetter:
        """What a record holds.

        Raises:
            ValueError, KeyError, TypeError: it is no dead letter.
        """
        line, newline, body = payload.partition(b"\n")
        header = _header(line + newline)
        if header["bytes"] != len(body):
            raise ValueError("its body is cut short")
        return cls._of(header, body)

    @classmethod
    def _of(cls, header: Any, body: bytes) -> DeadLetter:
        return cls(
            int(header["time_unix_nano"]),
            Signal(header["signal"]),
            int(header["code"]),
            int(header["http_status"]),
            str(header["message"]),
            tuple((str(name), str(value)) for name, value in header["metadata"]),
            body,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A stretch of a file: a letter, or what is none.

    Attributes:
        begin, end: where it lies.
        letter: None for what is damaged.
    """

    begin: int
    end: int
    letter: DeadLetter | None


class DeadLetters:
    """Appends to one file. Nothing is opened until the first entry.

    Args:
        path: of the file.
        max_bytes: how long it may get.
        counters: where entries are counted.
        wall_ns: this host's wall clock.
    """

    def __init__(self, path: Path, max_bytes: int, counters: Counters, wall_ns: Callable[[], int]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._counters = counters
        self._wall_ns = wall_ns
        self._turn = asyncio.Lock()
        self._log = QuietLog(__name__)

    async def keep(self, signal: Signal, body: bytes, metadata: Metadata, outcome: Outcome) -> None:
        """Writes one entry, or counts why it could not. Does not raise."""
        letter = DeadLetter(self._wall_ns(), signal, outcome.code, outcome.http_status, outcome.message, metadata, body)
        async with self._turn:
            try:
                result = await asyncio.to_thread(self._append, letter.encode())
                trouble = "" if result == "kept" else f"it has {self._max_bytes} bytes; move it away"
            except OSError as error:
                result, trouble = "failed", error.strerror or str(error)
        self._counters.letters[result] += 1
        if trouble:
            self._log.warning("refused requests are not kept", file=str(self._path), why=trouble)

    def _append(self, entry: bytes) -> str:
        return "kept" if append(self._path, entry, self._max_bytes) else "dropped"


def append(path: Path, entry: bytes, max_bytes: int | None = None) -> bool:
    """Adds an encoded entry to a file, whole or not at all; False if that would make it longer than ``max_bytes``.

    Raises:
        OSError: it cannot be written, or is a symbolic link.
    """
    with _locked(path) as file:
        length = os.fstat(file).st_size
        if max_bytes is not None and length + len(entry) > max_bytes:
            return False
        try:
            rest = memoryview(entry)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, length)  # a reader steps over half an entry, but it takes its room
            raise
        return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file of this name, for this process alone: it may be renamed and removed while its lock is waited for."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        file = os.open(path, flags, _MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if same_file(path, file):
                yield file
                return
        finally:
            os.close(file)


def same_file(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read(path: Path) -> Iterator[DeadLetter]:
    """The whole entries of a file, first to last.

    Raises:
        OSError: it cannot be read.
        NotDeadLetters: it has none, though it has something.
    """
    with path.open("rb") as file:
        anything = False
        for found in scan(file.fileno()):
            if found.letter is not None:
                anything = True
                yield found.letter
        if not anything and os.fstat(file.fileno()).st_size:
            raise NotDeadLetters(f"{path} holds no dead letter")


def scan(descriptor: int, position: int = 0) -> Iterator[Found]:
    """All of a file from a position on, in order: letters, and the stretches between them that are none.

    What is appended meanwhile is found, too.

    Raises:
        OSError: it cannot be read.
    """
    damaged_from = position
    while position < os.fstat(descriptor).st_size:
        found = _letter_at(descriptor, position)
        if found is None:
            position = frames.find(descriptor, position + 1, frames.MARKER, _OLD)
            continue
        if damaged_from < found.begin:
            yield Found(damaged_from, found.begin, None)
        yield found
        position = damaged_from = found.end
    if damaged_from < position:
        yield Found(damaged_from, position, None)


def _letter_at(descriptor: int, position: int) -> Found | None:
    """The letter at a position, if there is a whole one."""
    try:
        record = frames.read_at(descriptor, position)
        if record is not None:
            payload, end = record
            return Found(position, end, DeadLetter.decode(payload))
        return _old_letter_at(descriptor, position)
    except (ValueError, KeyError, TypeError):
        return None


def _old_letter_at(descriptor: int, position: int) -> Found | None:
    """The same as it was before there were records.

    Raises:
        ValueError, KeyError, TypeError: there is none.
    """
    start = os.pread(descriptor, HEADER_MAX_BYTES, position)
    if not start.startswith(b"{"):
        return None
    line, newline, _ = start.partition(b"\n")
    header = _header(line + newline)
    begin = position + len(line) + 1
    size = header["bytes"]
    end = begin + size + 1
    if end > os.fstat(descriptor).st_size:
        return None
    body = frames.read_whole(descriptor, size + 2, begin)
    if body[size : size + 1] != b"\n" or frames.MARKER in body:
        return None
    # The length of an entry that was cut short leads into the middle of another.
    if body[size + 1 :] not in (b"", b"{", frames.MARKER[:1]) and _OLD in body:
        return None
    return Found(position, end, DeadLetter._of(header, body[:size]))


def _header(line: bytes) -> Any:
    """
    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    if len(line) > HEADER_MAX_BYTES or not line.endswith(b"\n"):
        raise ValueError("its header does not end")
    header = json.loads(line)
    size = header["bytes"]
    if type(size) is not int or not 0 <= size <= BODY_MAX_BYTES:
        raise ValueError("'bytes' is not a length")
    return header
