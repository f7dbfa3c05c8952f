"""Compressed bodies over HTTP: gzip and deflate, complete, and within a limit on what comes *out*.

A gzip stream that ends early must be noticed (its last bytes are a checksum), since what came until then can by chance
be a valid request with fewer spans; and a kilobyte may become a megabyte.

Limits: ``MEMBERS_MAX`` members in a gzip stream. Pure; zlib works without Python's lock, so in a thread it keeps nobody
waiting.
"""

from __future__ import annotations

import zlib

MEMBERS_MAX = 64


class NotCompressed(ValueError):
    """The body is not what was announced; the message says why."""


class TooLong(ValueError):
    """More comes out than the limit."""


def inflated(encoding: str, body: bytes, limit: int) -> bytes:
    """What was compressed.

    Args:
        encoding: ``gzip``, or ``deflate`` (``zlib``), in the zlib format that HTTP means by it or, as some send it,
            without.
        body: the whole stream.
        limit: bytes that may come out.

    Raises:
        NotCompressed, TooLong: see there.
    """
    return _gunzip(body, limit) if encoding == "gzip" else _inflate(body, limit)


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip stream, each complete, together within the limit."""
    members: list[bytes] = []
    left = limit
    try:
        while body:
            if len(members) >= MEMBERS_MAX:
                raise NotCompressed(f"its gzip stream has more than {MEMBERS_MAX} members; compress it as one")
            member = zlib.decompressobj(wbits=31)
            content = member.decompress(body, left + 1)
            left -= len(content)
            if left < 0:
                raise TooLong
            if not member.eof:
                raise NotCompressed("its gzip stream is cut short")
            members.append(content)
            body = member.unused_data
    except zlib.error as error:
        raise NotCompressed(f"not gzip as announced: {error}") from None
    return members[0] if len(members) == 1 else b"".join(members)


def _inflate(body: bytes, limit: int) -> bytes:
    framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    stream = zlib.decompressobj(wbits=15 if framed else -15)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise NotCompressed(f"not deflate as announced: {error}") from None
    if len(content) > limit:
        raise TooLong
    if not stream.eof or stream.unused_data:
        raise NotCompressed("its deflate stream is cut short, or followed by something else")
    return content
