"""Sends dead letters again: what was refused for good, once the reason is mended.

The entries go to the next hop one after the other, as they are: their times were corrected when they were first sent,
and with the headers that they had. What is taken is done; what is refused again, or cannot be delivered now, is kept.
What is no entry, since a kill or a disk cut it short, is stepped over, and kept in ``NAME.damaged`` for a person.

A sidecar may go on writing to the file meanwhile: it is renamed first (to ``NAME.replay``), and what is not taken is
appended under the old name. How far it is stands in ``NAME.replay.position``, written after each entry: if a replay is
interrupted, the next one takes up that file where it ended.

Limits: one entry at a time, and one replay of a file. The entry that an interrupted replay was at may be sent again; if
the machine lost power, those of its last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skewd_sidecar.endpoint import next_hops
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.dead_letters import Found, NotDeadLetters, append, same_file, scan
from skewd_sidecar.forward.frames import read_whole
from skewd_sidecar.forward.retry import retryable

_HEAD_BYTES = 512
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class Replayed:
    """What became of the entries.

    Attributes:
        taken, refused, undelivered: how many.
        damaged: stretches that are no entry, of ``damaged_bytes`` together.
        why: the last failure's message.
    """

    taken: int = 0
    refused: int = 0
    undelivered: int = 0
    damaged: int = 0
    damaged_bytes: int = 0
    why: str = ""


async def replay(
    path: Path,
    forward: str | Sequence[str] | None,
    environment: Mapping[str, str],
    *,
    max_bytes: int = 0,
    kafka_properties: Mapping[str, str] | None = None,
) -> Replayed:
    """Sends the entries of a dead-letter file; what is not taken stays in it.

    Args:
        path: of the file.
        forward: the next hop, or several; none for the environment's.
        environment: for ``OTEL_EXPORTER_OTLP_*``.
        max_bytes: the largest request the next hop takes; 0 for what is usual.
        kafka_properties: the Kafka client's settings.

    Raises:
        OSError: the file cannot be read or renamed, or is being replayed.
        NotDeadLetters: it holds something, but no dead letter; it stays where it is.
        EndpointError: nowhere to send to, or it cannot be used.
    """
    forwarders = Forwarders(next_hops(forward, environment, max_bytes), kafka_properties=kafka_properties)
    told = Replayed()
    try:
        with _position(path.with_name(path.name + ".replay.position")) as position:
            under_way = path.with_name(path.name + ".replay")
            if not under_way.exists():  # else an earlier replay was interrupted
                _refuse_others(path)
                os.rename(path, under_way)
            file = os.open(under_way, os.O_RDONLY | os.O_CLOEXEC)
            try:
                begin = position.load(file)
                for found in scan(file, begin):
                    await _one(path, file, found, forwarders, told)
                    position.save(file, found.end)
                    begin = found.end
                # A sidecar that had the file open before it was renamed may have been about to write.
                fcntl.flock(file, fcntl.LOCK_EX)
                for found in scan(file, begin):
                    await _one(path, file, found, forwarders, told)
                    position.save(file, found.end)
                os.unlink(under_way)
            finally:
                os.close(file)
            position.remove()
    finally:
        await forwarders.close()
    return told


async def _one(path: Path, file: int, found: Found, forwarders: Forwarders, told: Replayed) -> None:
    letter = found.letter
    if letter is None:
        _keep_damaged(path.with_name(path.name + ".damaged"), file, found)
        told.damaged += 1
        told.damaged_bytes += found.end - found.begin
        return
    outcome = await forwarders.send(letter.signal, letter.body, None, letter.metadata)
    if outcome.ok:
        told.taken += 1
        return
    append(path, letter.encode())
    told.why = outcome.message
    if retryable(outcome):
        told.undelivered += 1
    else:
        told.refused += 1


def _refuse_others(path: Path) -> None:
    """
    Raises:
        OSError: it cannot be read.
        NotDeadLetters: there is no dead letter in it, though there is something.
    """
    with path.open("rb") as file:
        descriptor = file.fileno()
        if os.fstat(descriptor).st_size and not any(found.letter for found in scan(descriptor)):
            raise NotDeadLetters(f"{path} holds no dead letter; it is left as it is")


def _keep_damaged(path: Path, file: int, found: Found) -> None:
    for begin in range(found.begin, found.end, _CHUNK_BYTES):
        append(path, read_whole(file, min(_CHUNK_BYTES, found.end - begin), begin))


class _Position:
    """How far a replay is: in a file of its own, with a check, and with what tells the file that it is about.

    Args:
        path: of the position's file.
        file: that is open, and locked.
    """

    _FORM = struct.Struct("<QQIII")  # position, inode, bytes and CRC-32 of the beginning, CRC-32 of all before

    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file

    def load(self, about: int) -> int:
        """What was saved about a file; 0 if nothing was, or about another."""
        saved = os.pread(self._file, self._FORM.size, 0)
        if len(saved) != self._FORM.size or zlib.crc32(saved[:-4]).to_bytes(4, "little") != saved[-4:]:
            return 0
        position, inode, size, checksum, _ = self._FORM.unpack(saved)
        stat = os.fstat(about)
        known = stat.st_ino == inode and position <= stat.st_size
        return position if known and zlib.crc32(os.pread(about, size, 0)) == checksum else 0

    def save(self, about: int, position: int) -> None:
        """Everything before ``position`` is done."""
        head = os.pread(about, min(_HEAD_BYTES, position), 0)
        said = self._FORM.pack(position, os.fstat(about).st_ino, len(head), zlib.crc32(head), 0)[:-4]
        os.pwrite(self._file, said + zlib.crc32(said).to_bytes(4, "little"), 0)

    def remove(self) -> None:
        """Nothing is left to be done."""
        os.unlink(self._path)


@contextlib.contextmanager
def _position(path: Path) -> Iterator[_Position]:
    """The saved position, for this process alone.

    Raises:
        OSError: it cannot be opened, or another has it.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another replay of this file is under way", str(path)) from None
            if not same_file(path, file):
                continue  # that replay has just ended
            try:
                yield _Position(path, file)
            finally:
                if not os.pread(file, 1, 0) and same_file(path, file):
                    os.unlink(path)  # nothing was done
            return
        finally:
            os.close(file)
