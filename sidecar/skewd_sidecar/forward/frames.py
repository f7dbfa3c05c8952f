"""Records in a file that survive what happens to files: a write that a kill cut short, a bad block, an editor.

A file of records whose lengths alone say where the next one begins is lost from the first wrong byte on. So each record
begins with a marker that occurs nowhere else in the file, says its length and two checksums (of what it says, and of
what it holds), and whoever reads it tells a whole record from a damaged one, and finds the next one behind any damage.

A record: ``MARKER`` (8 bytes), the length of what follows the head, its CRC-32, and the CRC-32 of those two numbers and
the marker (each 4 bytes, little-endian); then the payload. In it the marker's first seven bytes are followed by a zero
wherever they occur, which is taken out again on reading: what somebody sends can't look like a record.

Limits: CRC-32 notices damage, not malice. Payloads of ``PAYLOAD_MAX_BYTES``, each in memory as a whole.
"""

from __future__ import annotations

import os
import struct
import zlib

_STEM = b"\xffskewd\xfe"  # no end of it is a beginning of it, and no text in UTF-8 has it
MARKER = _STEM + b"\x01"
_ESCAPED = _STEM + b"\x00"
_HEAD = struct.Struct("<II")
HEAD_BYTES = len(MARKER) + _HEAD.size + 4
PAYLOAD_MAX_BYTES = (1 << 30) + (1 << 20)
_CHUNK_BYTES = 1 << 20


def encode(payload: bytes) -> bytes:
    """A record as it stands in a file."""
    content = payload.replace(_STEM, _ESCAPED)
    head = MARKER + _HEAD.pack(len(content), zlib.crc32(content))
    return b"".join((head, zlib.crc32(head).to_bytes(4, "little"), content))


def read_at(descriptor: int, position: int) -> tuple[bytes, int] | None:
    """The payload of the record at a position, and where the record ends; None if there is no whole one.

    Raises:
        OSError: the file cannot be read.
    """
    head = os.pread(descriptor, HEAD_BYTES, position)
    said, check = head[:-4], head[-4:]
    if len(head) != HEAD_BYTES or not head.startswith(MARKER) or zlib.crc32(said).to_bytes(4, "little") != check:
        return None
    length, checksum = _HEAD.unpack_from(said, len(MARKER))
    begin = position + HEAD_BYTES
    if length > PAYLOAD_MAX_BYTES or begin + length > os.fstat(descriptor).st_size:
        return None
    content = read_whole(descriptor, length, begin)
    if len(content) != length or zlib.crc32(content) != checksum:
        return None
    return content.replace(_ESCAPED, _STEM), begin + length


def read_whole(descriptor: int, size: int, position: int) -> bytes:
    """So many bytes from a position, or what there is of them; the kernel may give fewer at once.

    Raises:
        OSError: the file cannot be read.
    """
    pieces = []
    while size > 0:
        piece = os.pread(descriptor, min(size, 1 << 30), position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def find(descriptor: int, position: int, *marks: bytes) -> int:
    """Where the next of some marks (none given: ``MARKER``) begins at or behind a position; else the file's end.

    Raises:
        OSError: the file cannot be read.
    """
    marks = marks or (MARKER,)
    overlap = max(map(len, marks)) - 1
    while chunk := os.pread(descriptor, _CHUNK_BYTES, position):
        found = [at for at in (chunk.find(mark) for mark in marks) if at >= 0]
        if found:
            return position + min(found)
        if len(chunk) <= overlap:
            return position + len(chunk)
        position += len(chunk) - overlap
    return os.fstat(descriptor).st_size
