"""The protobuf wire format, as far as a patch walks it: fields are read and stepped over where they lie.

Of OTLP's messages only KeyValue is known here. A reader takes the whole body and a position, and returns what it read
and where that ends; so no slice is made of what is only passed. What cannot be walked is refused here, with the byte
at which it ends to be a message, and with the same words by the native twin (``wire.rs``).

Limits: a reader may run past the body's end, which is an ``IndexError``, or past its message's, which the caller sees
when it compares; both are refusals to whoever called ``patch_traces`` or :func:`check_message`. Groups nest
``GROUPS_MAX`` deep. Pure.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

GROUPS_MAX = 100
"""Deepest nesting of (deprecated, unknown) groups that is skipped; protobuf's own limit."""

UINT64_MAX = (1 << 64) - 1
FIXED64 = struct.Struct("<Q")
_OTHER_VALUES = (0x21, 0x2A, 0x32, 0x3A, 0x40)  # AnyValue's other members: a oneof, so the last member counts

Value: TypeAlias = str | int | bool | None
"""What a KeyValue holds, as far as it is read: None is anything else."""


class MalformedRequest(ValueError):
    """The body is not a protobuf message of the kind it should be; the message says where it ends to be one."""


def check_message(body: bytes) -> None:
    """Walks the top-level fields of any message: enough to notice that it was cut short.

    Raises:
        MalformedRequest: its fields do not add up to its length.
    """
    position, end = 0, len(body)
    try:
        while position < end:
            tag, position = read_tag(body, position)
            position = skip_value(body, tag, position)
    except IndexError:
        position = end + 1
    if position != end:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {end}")


def read_varint(body: bytes, position: int, longest: int = 10) -> tuple[int, int]:
    """The varint at ``position`` and where it ends. At most ``longest`` bytes; bits beyond the 64th are dropped."""
    byte = body[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift, last = byte & 0x7F, 7, position + longest
    position += 1
    while position < last:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & UINT64_MAX, position
        shift += 7
    raise MalformedRequest(f"malformed OTLP body: a varint longer than {longest} bytes ends at byte {position}")


def read_tag(body: bytes, position: int) -> tuple[int, int]:
    tag, after = read_varint(body, position, 5)
    if not 8 <= tag < 1 << 32:
        raise no_field(tag, position)
    return tag, after


def skip_value(body: bytes, tag: int, position: int) -> int:
    """Where the value of a field with this tag ends. It may lie past the message's end: the caller compares."""
    kind = tag & 7
    if kind == 2:
        size, position = read_varint(body, position, 5)
        return position + size
    if kind == 0:
        return read_varint(body, position)[1]
    if kind == 5:
        return position + 4
    if kind == 1:
        return position + 8
    if kind != 3:
        raise MalformedRequest(f"malformed OTLP body: wire type {kind} has no value to skip, at byte {position}")
    open_groups = [tag >> 3]
    while open_groups:
        tag, position = read_tag(body, position)
        kind = tag & 7
        if kind == 3:
            open_groups.append(tag >> 3)
            if len(open_groups) > GROUPS_MAX:
                raise MalformedRequest(f"malformed OTLP body: groups nest deeper than {GROUPS_MAX}, at byte {position}")
        elif kind == 4:
            if open_groups.pop() != tag >> 3:
                raise MalformedRequest(f"malformed OTLP body: a group ends that did not begin, at byte {position}")
        else:
            position = skip_value(body, tag, position)
    return position


def no_field(tag: int, position: int) -> MalformedRequest:
    return MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {position}")


def overrun(end: int) -> MalformedRequest:
    return MalformedRequest(f"malformed OTLP body: a field runs past the end of its message, at byte {end}")


def read_key(body: bytes, position: int, end: int) -> bytes:
    """The key of the KeyValue that fills ``position`` to ``end``: the last one, empty if there is none."""
    key = b""
    while position < end:
        tag, position = read_tag(body, position)
        if tag == 0x0A:
            size, position = read_varint(body, position, 5)
            key = body[position : position + size]
            position += size
        else:
            position = skip_value(body, tag, position)
    if position != end:
        raise overrun(end)
    return key


def read_value(body: bytes, position: int, end: int) -> Value:
    """A KeyValue's value if it is a string, a boolean or an integer; None otherwise, unreadable ones included."""
    parts = []
    while position < end:
        tag, position = read_tag(body, position)
        stop = skip_value(body, tag, position)
        if tag == 0x12:
            size, position = read_varint(body, position, 5)
            parts.append(body[position : position + size])
        position = stop
    # A submessage that occurs twice is merged, which for the wire format means: concatenated.
    content = b"".join(parts)
    value: Value = None
    position = 0
    try:
        while position < len(content):
            tag, position = read_tag(content, position)
            stop = skip_value(content, tag, position)
            if stop > len(content):
                return None
            if tag == 0x0A:
                size, position = read_varint(content, position, 5)
                value = content[position : position + size].decode()
            elif tag == 0x10:
                value = read_varint(content, position)[0] != 0
            elif tag == 0x18:
                value = read_varint(content, position)[0]
                value -= (value >> 63) << 64
            elif tag in _OTHER_VALUES:
                value = None
            position = stop
    except (IndexError, ValueError):
        return None
    return value


def encode_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value >> 56 and not value >> 63:  # nine bytes: every time of our age, written without a loop
        return bytes(
            (
                value & 0x7F | 0x80,
                value >> 7 & 0x7F | 0x80,
                value >> 14 & 0x7F | 0x80,
                value >> 21 & 0x7F | 0x80,
                value >> 28 & 0x7F | 0x80,
                value >> 35 & 0x7F | 0x80,
                value >> 42 & 0x7F | 0x80,
                value >> 49 & 0x7F | 0x80,
                value >> 56,
            )
        )
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(tag: int, content: bytes) -> bytes:
    return encode_varint(tag) + encode_varint(len(content)) + content
