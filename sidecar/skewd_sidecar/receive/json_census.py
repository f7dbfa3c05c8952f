"""How much a JSON body holds, counted before it is read: what its objects will take in memory, at most.

A JSON value of two bytes becomes an object of fifty, and an empty object of three one of two hundred; compressed, they
came as a hundredth. Brackets and commas say how many there are, and they are counted in one pass each, in C. Those
within texts are no values: only if a limit seems passed are the texts, too, stepped over, one by one.

Limits: an estimate from above, of CPython's objects. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

VALUES_MAX = 2_097_152
"""As elements of a protobuf request; see :mod:`skewd_sidecar.patch.census`."""

CONTAINER_BYTES = 200
"""A dictionary of one to five keys, or a list."""
VALUE_BYTES = 64
"""A number or a short text with its place in a container, and its bytes of protobuf."""

# Always to the end of something, so that nothing is looked at twice; the last text may lack its end.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class JsonCensus(NamedTuple):
    """What a body holds.

    Attributes:
        values: objects, lists and what they hold, by their commas; at least as many as there are, but for one in each
            container.
        tree_bytes: what they will take, with the protobuf that they become.
    """

    values: int
    tree_bytes: int


def take_json_census(text: bytes, values_max: int = VALUES_MAX, tree_max_bytes: int = 1 << 40) -> JsonCensus:
    """Counts what a body holds; exactly only if it seems to be more than the limits."""
    census = _census(text, *_marks(text, 0, len(text)))
    if census.values <= values_max and census.tree_bytes <= tree_max_bytes:
        return census
    return _census(text, *_outside_texts(text, values_max))


def _marks(text: bytes, begin: int, end: int) -> tuple[int, int]:
    """Brackets that open, and commas."""
    return text.count(b"{", begin, end) + text.count(b"[", begin, end), text.count(b",", begin, end)


def _outside_texts(text: bytes, most: int) -> tuple[int, int]:
    """The same where they are no part of a text; counted no further than ``most`` of both."""
    containers = commas = position = 0
    for found in _TEXT.finditer(text):
        if found.start() > position:
            opened, more = _marks(text, position, found.start())
            containers += opened
            commas += more
            if containers + commas > most:
                return containers, commas
        position = found.end()
    opened, more = _marks(text, position, len(text))
    return containers + opened, commas + more


def _census(text: bytes, containers: int, commas: int) -> JsonCensus:
    # One character beyond ASCII makes all of its text wider: up to four bytes each.
    wide = 1 if text.isascii() and b"\\u" not in text else 4
    values = containers + commas
    return JsonCensus(values, len(text) * (1 + wide) + containers * CONTAINER_BYTES + values * VALUE_BYTES)
