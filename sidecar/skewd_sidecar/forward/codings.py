"""Answers' codings: what a server or proxy compressed though nobody asked it to.

Limits: gzip and deflate, at most ``CODINGS_MAX`` over each other. Pure.
"""

from __future__ import annotations

import zlib

CODINGS_MAX = 3

_GZIP, _ZLIB, _RAW = 31, 15, -15


def decoded(answer: bytes, coding: str | None, max_bytes: int) -> bytes | None:
    """An answer as it was before it was coded; None if that cannot be told, or is longer than ``max_bytes``.

    Args:
        answer: as it came.
        coding: its ``Content-Encoding``; None for none (RFC 9110, section 8.4).
        max_bytes: of the result, and of what is between two codings.
    """
    names = [each.strip().lower() for each in (coding or "").split(",")]
    names = [each for each in names if each not in ("", "identity")]
    if len(names) > CODINGS_MAX:
        return None
    found: bytes | None = answer
    for name in reversed(names):
        if name in ("gzip", "x-gzip"):
            found = _inflated(found or b"", _GZIP, max_bytes)
        elif name == "deflate":
            plain = _inflated(found or b"", _ZLIB, max_bytes)
            found = plain if plain is not None else _inflated(found or b"", _RAW, max_bytes)
        else:
            return None
        if found is None:
            return None
    return found


def _inflated(data: bytes, window: int, max_bytes: int) -> bytes | None:
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(data, max_bytes + 1)
    except zlib.error:
        return None
    return plain if inflater.eof and len(plain) <= max_bytes else None
