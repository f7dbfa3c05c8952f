"""``skewd record``: takes a daemon's evidence and keeps it in a few files, for as long as it is told to.

The daemon only hands out what it learns; coding, checking and the disk are this process's, so that a full disk or a
slow one is no business of the daemon's. Every fact passes a replica of the estimator (``replay.py``): with its state a
new file can begin at any time, and at the end it is known whether the replica agrees with the daemon.

``FILE`` is the one that is written; when it is full it becomes ``FILE.1``, that ``FILE.2``, and the oldest goes. What
is there already is treated the same: nothing is overwritten. When the daemon is restarted this waits and goes on, with
a gap that the file tells of.

Limits: ``max_bytes`` a file and ``keep`` older ones, at least; what was learnt within the last ``FLUSH_S`` is lost if
this process is killed, and the file then ends with a segment that is cut off, which readers expect.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from skewd.api_client import NoDaemonError, SlowDaemonError
from skewd.evidence import EvidenceError, Fact, Missed, Writer, read, unpack
from skewd.publish.evidence_door import WELCOME, question
from skewd.replay import Replay

FLUSH_S = 60.0
HEAD_S = 5.0
RETRY_S = 1.0
MAX_BYTES = 16 << 20
MAX_BYTES_LEAST = 1 << 16
KEEP = 4
KEEP_MAX = 1_000
_FRAME_MAX = 64 << 20
_HEAD_MAX = 16 << 10


class NotWrittenError(Exception):
    """The files can't be written; one line that says why and what to do."""


class Files:
    """The file that is written, and those before it.

    Raises:
        NotWrittenError: ``path`` is something else, is written by another process, or can't be written.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        self.path, self._max_bytes, self._keep = path, max_bytes, keep
        self.written = 0
        self._size = 0
        self._file: BinaryIO | None = None
        if path.exists() or path.is_symlink():
            self._check()

    def _check(self) -> None:
        try:
            with self.path.open("rb") as file:
                held = _locked(file)
                next(read(file, str(self.path)), None)
        except EvidenceError as error:
            raise NotWrittenError(f"{error}; it is left as it is, so name another file") from None
        except OSError as error:
            raise NotWrittenError(f"{self.path}: {error.strerror or error}") from None
        if not held:
            raise NotWrittenError(f"{self.path} is being written by another 'skewd record'; name another file")

    @property
    def full(self) -> bool:
        """Whether the next file is due."""
        return self._size >= self._max_bytes

    def begin(self) -> None:
        """Begins a new file; the one before becomes ``.1``."""
        self.close()
        try:
            for number in range(self._keep, -1, -1):
                older = part(self.path, number)
                if older.exists():
                    if number == self._keep:
                        older.unlink()
                    else:
                        older.rename(part(self.path, number + 1))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self.path, flags, 0o600), "wb", buffering=0)
        except OSError as error:
            raise NotWrittenError(f"{self.path}: {error.strerror or error}; name a file that can be written") from None
        _locked(self._file)
        self._size = 0

    def write(self, content: bytes) -> None:
        """Appends."""
        assert self._file is not None
        try:
            while content:
                count = self._file.write(content) or 0
                content = content[count:]
                self._size += count
                self.written += count
        except OSError as error:
            raise NotWrittenError(
                f"{self.path}: {error.strerror or error}; what was written until then is good"
            ) from None

    def close(self) -> None:
        """Has the disk take what was written."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def part(path: Path, number: int) -> Path:
    """The file that was written ``number`` files before the present one."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def parts(path: Path) -> list[Path]:
    """A record's files that are there, oldest first."""
    older = [number for number in range(1, KEEP_MAX + 1) if part(path, number).exists()]
    return [part(path, number) for number in reversed(older)] + ([path] if path.exists() else [])


def facts_of(paths: list[Path]) -> Iterator[Fact]:
    """The facts of several files, in order.

    Raises:
        EvidenceError: one is no evidence.
        OSError: one can't be read.
    """
    for path in paths:
        with path.open("rb") as file:
            yield from read(file, str(path))


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Stream:
    """A daemon's evidence as it comes.

    Raises:
        NoDaemonError: there is no daemon, or it gives none; one line that says why and what to do.
    """

    def __init__(self, socket_path: Path, look_ns: int) -> None:
        self._path = socket_path
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(HEAD_S)
            self._socket.connect(str(socket_path))
            self._socket.sendall(question(look_ns))
            self._read_head()
        except BaseException as error:
            self.close()
            if isinstance(error, FileNotFoundError):
                raise NoDaemonError(
                    f"no daemon that gives evidence: {socket_path} does not exist; start one with 'skewd run',"
                    " or name its configuration with --config"
                ) from None
            if isinstance(error, PermissionError):
                raise NoDaemonError("evidence is for root and the daemon's own user; run as one of them") from None
            if isinstance(error, TimeoutError):
                raise SlowDaemonError(f"the daemon on {socket_path} did not answer within {HEAD_S:g} s") from None
            if isinstance(error, OSError):
                why = error.strerror or error
                raise NoDaemonError(f"the daemon on {socket_path} can't be asked: {why}; does it run?") from None
            raise

    def _read_head(self) -> None:
        while b"\n" not in self._buffer:
            content = self._socket.recv(1 << 16)
            if not content or len(self._buffer) > _HEAD_MAX:
                raise NoDaemonError(f"what listens on {self._path} does not answer as a skewd daemon; is it one?")
            self._buffer += content
        line, _, rest = bytes(self._buffer).partition(b"\n")
        if line.decode("utf-8", "replace") != WELCOME:
            raise NoDaemonError(f"the daemon gives no evidence: {line[:200].decode('utf-8', 'replace')}")
        self._buffer = bytearray(rest)

    def facts(self, timeout_s: float) -> list[Fact] | None:
        """What came within ``timeout_s``; None when the daemon ended it.

        Raises:
            EvidenceError: what came can't be understood.
        """
        ready, _, _ = select.select([self._socket], [], [], max(timeout_s, 0))
        if not ready:
            return []
        try:
            content = self._socket.recv(1 << 20)
        except OSError:
            return None
        if not content:
            return None
        self._buffer += content
        facts: list[Fact] = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > _FRAME_MAX:
                raise EvidenceError("what came is no evidence; do the versions agree?")
            if len(self._buffer) < 4 + length:
                break
            facts += unpack(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return facts

    def close(self) -> None:
        """Leaves."""
        self._socket.close()


class Recorder:
    """Keeps what comes.

    Args:
        files: where.
    """

    def __init__(self, files: Files) -> None:
        self.replay = Replay()
        self._files = files
        self._writer: Writer | None = None

    @property
    def written(self) -> int:
        """How many bytes, over all files."""
        return self._files.written

    def take(self, facts: list[Fact]) -> None:
        """Writes facts.

        Raises:
            EvidenceError: they contradict each other.
            NotWrittenError: they can't be written.
        """
        for fact in facts:
            if self._writer is None or self._files.full:
                self._begin_file()
            self.replay.feed(fact)
            self._put(fact)

    def _begin_file(self) -> None:
        if self._writer is not None:
            self._files.write(self._writer.flush())
        self._writer = Writer()
        self._files.begin()
        self._files.write(self._writer.header())
        for begun in self.replay.snapshot():
            self._put(begun)

    def _put(self, fact: Fact) -> None:
        assert self._writer is not None
        try:
            content = self._writer.add(fact)
        except (ValueError, OverflowError) as error:
            raise EvidenceError(f"what came can't be kept: {error}") from None
        if content:
            self._files.write(content)

    def flush(self) -> None:
        """Has a reader find all that came."""
        if self._writer is not None:
            self._files.write(self._writer.flush())

    def close(self) -> None:
        """Ends the last file."""
        self.flush()
        self._files.close()


def record(
    connect: Callable[[], Stream],
    recorder: Recorder,
    stop: threading.Event,
    *,
    duration_s: float | None,
    say: Callable[[str], None],
) -> None:
    """Records until it is told to stop, or for so long.

    Args:
        connect: to the daemon, again when it went away.
        say: told when the daemon goes and comes.

    Raises:
        NoDaemonError: there is none at first.
        EvidenceError, NotWrittenError: it can't go on.
    """
    stream: Stream | None = connect()
    begun = time.monotonic()
    flush_at = begun + FLUSH_S
    try:
        while not stop.is_set():
            now = time.monotonic()
            left_s = FLUSH_S if duration_s is None else begun + duration_s - now
            if left_s <= 0:
                break
            if now >= flush_at:
                recorder.flush()
                flush_at = now + FLUSH_S
            if stream is None:
                stop.wait(min(RETRY_S, left_s))
                with contextlib.suppress(NoDaemonError):
                    stream = connect()
                    say("the daemon is back; recording goes on")
                continue
            facts = stream.facts(min(left_s, max(flush_at - now, 0), 0.5))
            if facts is None:
                stream.close()
                stream = None
                recorder.take([Missed(0)])
                recorder.flush()
                say("the daemon went away; waiting for it")
            else:
                recorder.take(facts)
    finally:
        if stream is not None:
            stream.close()
        recorder.close()
