"""Requests that a next hop refused for good, kept in a file for a person to look at, mend and send again.

A request refused for good is lost to its exporter, which is told so and drops it; often it is one application's
mistake, or a receiver's setting, and the data are worth having once that is mended. So the body is kept as it was
sent.

The file is a sequence of entries: one line of JSON, ended by a newline, and then exactly as many bytes as its
``bytes`` says, ended by another newline. The line holds ``time_unix_nano``, ``signal`` (traces, metrics, logs or
profiles), ``bytes``, and why: ``code`` (gRPC's), ``http_status``, ``message``; and ``metadata``, the headers that the
request was sent on with, as pairs. The body is a serialized export request. ``read`` and ``skewd sidecar --replay``
read it.

The file is made with mode 0600 (telemetry and tenants' headers are nobody else's business), opened anew for each
entry, so it may be moved away at any time, and never longer than ``max_bytes``: when it is full, what comes is counted
and dropped, for the first mistakes explain the most.

Limits: entries are not synced to the disk one by one; headers are limited to ``HEADER_MAX_BYTES`` on reading.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skewd.quiet import QuietLog
from skewd_sidecar.forward.counters import Counters
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome

HEADER_MAX_BYTES = 64 * 1024
BODY_MAX_BYTES = 1 << 30
MAX_BYTES = 64 * 1024 * 1024
_MODE = 0o600


class NotDeadLetters(ValueError):
    """A file that is not what it should be; the message says where it ends to be."""


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
        return b"".join((json.dumps(header).encode(), b"\n", self.body, b"\n"))


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
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, _MODE)
    try:
        length = os.fstat(file).st_size
        if max_bytes is not None and length + len(entry) > max_bytes:
            return False
        try:
            rest = memoryview(entry)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, length)  # half an entry would make all after it unreadable
            raise
        return True
    finally:
        os.close(file)


def read(path: Path) -> Iterator[DeadLetter]:
    """The entries of a file, first to last.

    Raises:
        OSError: it cannot be read.
        NotDeadLetters: it has something else in it.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(HEADER_MAX_BYTES + 1):
            number += 1
            try:
                header: Any = json.loads(line)
                size = header["bytes"]
                if type(size) is not int or not 0 <= size <= BODY_MAX_BYTES:
                    raise ValueError("'bytes' is not a length")
                body = file.read(size)
                if len(body) != size or file.read(1) != b"\n":
                    raise ValueError("its body is cut short")
                yield DeadLetter(
                    int(header["time_unix_nano"]),
                    Signal(header["signal"]),
                    int(header["code"]),
                    int(header["http_status"]),
                    str(header["message"]),
                    tuple((str(name), str(value)) for name, value in header["metadata"]),
                    body,
                )
            except (ValueError, KeyError, TypeError) as error:
                raise NotDeadLetters(f"{path}: entry {number} is no dead letter: {error}") from None
