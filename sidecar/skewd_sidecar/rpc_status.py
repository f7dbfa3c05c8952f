"""``google.rpc.Status`` as bytes: what OTLP answers when it refuses, and when it says how long to wait.

Both protocols carry the same message: gRPC in ``grpc-status-details-bin``, HTTP as the body of a failure. A wait is a
``google.rpc.RetryInfo`` among its details over gRPC, and the header ``Retry-After`` over HTTP; a sidecar between the
two has to read one and write the other. It does so on the bytes: a refusal is most likely when there is the least
time for it, and that is no moment to load two libraries.

Limits: details beyond ``DETAILS_MAX`` are not looked at; delays are cut at ``RETRY_AFTER_MAX_S``. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

DETAILS_MAX = 16
RETRY_AFTER_MAX_S = 3600.0
"""A next hop that asks for more is asked again after this."""

_MESSAGE_MAX_BYTES = 1024
_RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """A status that was read.

    Attributes:
        code: gRPC status code.
        message: for people.
        details: each ``google.protobuf.Any`` as it came.
        retry_after_s: what a RetryInfo among them says, in seconds; None without one.
    """

    code: int
    message: str
    details: tuple[bytes, ...]
    retry_after_s: float | None


def encode_status(code: int, message: str, details: Iterable[bytes] = ()) -> bytes:
    """A serialized ``google.rpc.Status`` of a code (0..16), a message (cut at 1 KiB) and its details."""
    text = message.encode(errors="replace")[:_MESSAGE_MAX_BYTES].decode(errors="ignore").encode()
    return bytes((0x08, code)) + _field(0x12, text) + b"".join(_field(0x1A, each) for each in details)


def encode_retry_info(retry_after_s: float) -> bytes:
    """A ``google.rpc.RetryInfo`` within its ``google.protobuf.Any``."""
    seconds, nanos = divmod(round(retry_after_s * 1e9), 1_000_000_000)
    duration = (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(nanos) if nanos else b"")
    return _field(0x0A, _RETRY_INFO) + _field(0x12, _field(0x0A, duration))


def read_status(status: bytes) -> RpcStatus | None:
    """What a serialized ``google.rpc.Status`` says; None if it is none."""
    code, message = 0, ""
    details: list[bytes] = []
    retry_after_s: float | None = None
    try:
        for tag, value in _fields(status):
            if tag == 0x08 and isinstance(value, int):
                code = value
            elif tag == 0x12 and isinstance(value, bytes):
                message = value.decode(errors="replace")
            elif tag == 0x1A and isinstance(value, bytes) and len(details) < DETAILS_MAX:
                details.append(value)
                delay_s = _retry_delay_s(value)
                retry_after_s = delay_s if delay_s is not None else retry_after_s
    except ValueError:
        return None
    return RpcStatus(code, message, tuple(details), retry_after_s)


def read_retry_after(text: str | None, date: str | None, wall_s: float | None = None) -> float | None:
    """The delay that an HTTP answer asks for, in seconds; None if it asks for none that can be understood.

    Args:
        text: its ``Retry-After``: seconds, or a date (RFC 9110, section 10.2.3).
        date: its ``Date``. A date is a delay by the same clock as this one, whatever clock that is.
        wall_s: this host's wall clock, in Unix time: what a date is compared with if there is no ``Date``, or none that
            can be read. None for nothing.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), RETRY_AFTER_MAX_S)
    until_s = _unix_s(text)
    now_s = None if date is None else _unix_s(date)
    if now_s is None:
        now_s = wall_s
    if until_s is None or now_s is None:
        return None
    return min(max(until_s - now_s, 0.0), RETRY_AFTER_MAX_S)


def _unix_s(date: str) -> float | None:
    """An HTTP date in Unix time; None for what is none. One without a zone is UTC, as all of them are."""
    try:
        found = parsedate_to_datetime(date)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def write_retry_after(retry_after_s: float) -> str:
    """``Retry-After`` in whole seconds: never earlier than asked for."""
    return str(math.ceil(retry_after_s))


def _retry_delay_s(detail: bytes) -> float | None:
    """
    Raises:
        ValueError: this is no ``Any``.
    """
    content = dict(_fields(detail))
    info = content.get(0x12, b"")
    if content.get(0x0A) != _RETRY_INFO or not isinstance(info, bytes):
        return None
    delay = dict(_fields(info)).get(0x0A, b"")
    if not isinstance(delay, bytes):
        return None
    parts = dict(_fields(delay))
    seconds, nanos = parts.get(0x08, 0), parts.get(0x10, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int) or seconds >= 1 << 63 or nanos >= 1_000_000_000:
        return None  # a negative delay
    return min(seconds + nanos / 1e9, RETRY_AFTER_MAX_S)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Tag and value of each field, of the wire types that a status is made of.

    Raises:
        ValueError: it is no such message.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, position = _read_varint(message, position)
        elif kind in (1, 2, 5):
            size, position = _read_varint(message, position) if kind == 2 else (8 if kind == 1 else 4, position)
            value, position = message[position : position + size], position + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        if position > end:
            raise ValueError("a field longer than its message")
        yield tag, value


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("a number cut short")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number longer than 10 bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(content)) + content
