"""The attributes that are ours: their names, and their bytes, of which what repeats is made once.

Two kinds: numbers, which differ from span to span (an offset, an uncertainty, an original time), and facts, which
hardly ever do. Of a number everything before its digits is made beforehand, once for each length it can have; a fact
is made once whole.

Limits: at most ``_TEXTS_MAX`` facts are remembered for one prefix and kind of owner, and 32 such pairs. Pure.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TypeAlias

from skewd_sidecar.patch.wire import UINT64_MAX, encode_field, encode_varint

_TEXTS_MAX = 64

OFFSET = "offset_ns"
UNCERTAINTY = "uncertainty_ns"
REFERENCE = "reference"
STATUS = "status"
NODE = "node.name"
CORRECTED = "corrected"
ORIGINAL_START = "original.start_time_unix_nano"
ORIGINAL_END = "original.end_time_unix_nano"
ORIGINAL_TIME = "original.time_unix_nano"
ORIGINAL_OBSERVED = "original.observed_time_unix_nano"
ORIGINALS = (ORIGINAL_START, ORIGINAL_END, ORIGINAL_TIME, ORIGINAL_OBSERVED)
END_OFFSET = "end.offset_ns"
"""What a span's end deserves, where one offset does not serve for both: the clock was stepped in between, as a rule."""

FACTS = (REFERENCE, STATUS, NODE, CORRECTED)
"""What is usually the same for a whole batch; of these a Resource may say what never changes (``facts.py``)."""

NAMES = (OFFSET, UNCERTAINTY, *FACTS, *ORIGINALS, END_OFFSET)
"""The attributes that are ours, without their prefix, in the order in which they are appended."""

RESOURCE = 0x0A
"""The tag of a Resource's attributes."""


class Record(Enum):
    """What is patched; the value is the tag of its attributes."""

    SPAN = 0x4A
    LOG = 0x32


Ours: TypeAlias = list[tuple[str, int, int, int]]
"""Attributes of ours that arrived: name, where the field begins, where its KeyValue begins, where it ends."""


def _attribute(tag: int, key: bytes, value: bytes) -> bytes:
    """A field with this tag that holds a KeyValue whose AnyValue is ``value``."""
    return encode_field(tag, encode_field(0x0A, key) + encode_field(0x12, value))


class IntAttribute:
    """An integer attribute whose bytes before the number are made once for each length of the number."""

    def __init__(self, tag: int, key: bytes) -> None:
        # A value of n zero bytes has the right lengths; they are cut off again.
        self._heads = [_attribute(tag, key, b"\x18" + bytes(n))[: -n or None] for n in range(11)]

    def encode(self, value: int) -> bytes:
        number = encode_varint(value & UINT64_MAX)
        return self._heads[len(number)] + number


class Attributes:
    """Our attributes in bytes, for one prefix and one kind of owner; what repeats is made once."""

    def __init__(self, prefix: str, tag: int) -> None:
        self.prefix = prefix.encode()
        keys = {name: self.prefix + name.encode() for name in NAMES}
        self.names = {key: name for name, key in keys.items()}
        self.offset, self.uncertainty = (IntAttribute(tag, keys[name]) for name in (OFFSET, UNCERTAINTY))
        self.end_offset = IntAttribute(tag, keys[END_OFFSET])
        self.originals = tuple(IntAttribute(tag, keys[name]) for name in ORIGINALS)
        self._keys = keys
        self._tag = tag
        self._made: dict[tuple[str, str | bool], bytes] = {}

    def fact(self, name: str, value: str | bool) -> bytes:
        """One of ``FACTS``."""
        made = self._made.get((name, value))
        if made is None:
            if len(self._made) >= _TEXTS_MAX:
                self._made.clear()
            content = bytes((0x10, value)) if isinstance(value, bool) else encode_field(0x0A, value.encode())
            made = self._made[name, value] = _attribute(self._tag, self._keys[name], content)
        return made


@lru_cache(maxsize=32)
def attributes_of(prefix: str, tag: int) -> Attributes:
    return Attributes(prefix, tag)
