"""A second, slow reader and writer of the protobuf wire format, for tests that look at bytes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

VARINT, FIXED64, LEN, GROUP, END, FIXED32 = 0, 1, 2, 3, 4, 5


def varint(value: int, pad: int = 0) -> bytes:
    """A varint, made ``pad`` bytes longer than it need be."""
    out = []
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(pad):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def field(number: int, kind: int, value: int | bytes, pad: int = 0) -> bytes:
    """One field. ``value``: an int, or the bytes of a LEN or GROUP field."""
    tag = varint(number << 3 | kind)
    if isinstance(value, int):
        return tag + (varint(value) if kind == VARINT else value.to_bytes(8 if kind == FIXED64 else 4, "little"))
    if kind == LEN:
        return tag + varint(len(value), pad) + value
    assert kind == GROUP
    return tag + value + varint(number << 3 | END)


@dataclass(frozen=True)
class Field:
    """A field as read: ``raw`` is all of it, ``value`` its content (bytes of a LEN field, an int otherwise)."""

    number: int
    kind: int
    raw: bytes
    value: Any


def fields(data: bytes) -> list[Field]:
    """The fields of a well-formed message."""
    found = []
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def skip(kind: int, of: int) -> Any:
        nonlocal position
        if kind == VARINT:
            return number()
        if kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            position += size
            return int.from_bytes(data[position - size : position], "little")
        if kind == LEN:
            size = number()
            position += size
            return data[position - size : position]
        assert kind == GROUP
        while True:
            tag = number()
            if tag & 7 == END:
                assert tag >> 3 == of
                return None
            skip(tag & 7, tag >> 3)

    while position < len(data):
        begin = position
        tag = number()
        value = skip(tag & 7, tag >> 3)
        found.append(Field(tag >> 3, tag & 7, data[begin:position], value))
    assert position == len(data)
    return found


UNKNOWN = (
    field(1000, VARINT, 7),
    field(1001, FIXED64, 1 << 60),
    field(1002, LEN, b"clock.offset_ns\x08\x01"),
    field(1003, FIXED32, 9),
    field(1004, GROUP, field(7, FIXED64, 5) + field(1, GROUP, field(9, LEN, b"clock.status"))),
    field(7, VARINT, 3),  # a span's start, but of another wire type
    field(9, VARINT, 3),
    field(8, LEN, b"end"),
)

# Which LEN fields of a message are messages, by the names used here.
_CHILDREN = {
    "request": {1: "resource_spans"},
    "resource_spans": {1: "opaque", 2: "scope_spans"},
    "scope_spans": {1: "opaque", 2: "span"},
    "span": {9: "key_value", 11: "event"},
    "event": {3: "opaque"},
    "key_value": {2: "opaque"},
    "opaque": {},
}


def disordered(data: bytes, chance: random.Random, kind: str = "request") -> bytes:
    """The same message written otherwise: fields moved, lengths padded, scalars repeated, unknown fields added.

    Repeated fields keep their order among themselves; of a repeated scalar the true one stays last. A repeated time
    has the true value or none: another one might not bear the shift that the true one does, and then nothing moves.
    """
    pieces: dict[int, list[bytes]] = {}
    for each in fields(data):
        raw = each.raw
        if each.kind == LEN:
            child = _CHILDREN[kind].get(each.number)
            content = each.value
            if child is not None and child != "opaque":
                content = disordered(content, chance, child)
            raw = field(each.number, LEN, content, chance.choice((0, 0, 0, 1, 2)))
        pieces.setdefault(each.number, []).append(raw)
    if kind == "span" and chance.random() < 0.3:
        for number in (7, 8):
            if number in pieces:
                pieces[number].insert(0, chance.choice((field(number, FIXED64, 0), pieces[number][-1])))
    if kind == "event" and 1 in pieces and chance.random() < 0.3:
        pieces[1].insert(0, chance.choice((field(1, FIXED64, 0), pieces[1][-1])))
    if kind == "key_value" and 1 in pieces and chance.random() < 0.2:
        pieces[1].insert(0, field(1, LEN, b"clock.status"))
    if kind not in ("key_value", "opaque"):
        for _ in range(chance.choice((0, 0, 1, 2))):
            raw = chance.choice(UNKNOWN)
            pieces.setdefault(-chance.randrange(1, 100), []).append(raw)
    # A shuffle that keeps each number's own order: draw which number comes next.
    order = [number for number, raws in pieces.items() for _ in raws]
    chance.shuffle(order)
    return b"".join(pieces[number].pop(0) for number in order)
