"""Values that no honest member says, put into what the project's own encoders write.

The encoders take values and check them, so a hostile one is put in behind their back: :func:`forced` copies a value and
sets its fields as they are given. What no 64-bit field can carry is left to ``struct`` to refuse.
"""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")

S = 1_000_000_000
EDGES = [
    sign * ((1 << bits) + by)
    for bits in (0, 30, 31, 32, 40, 47, 48, 52, 53, 59, 60, 61, 62, 63)
    for by in (-1, 0, 1)
    for sign in (1, -1)
]
I64_MIN, I64_MAX = -(1 << 63), (1 << 63) - 1


def forced(value: T, **changes: Any) -> T:
    """A copy of a dataclass with these fields, whatever its own checks say of them."""
    made = object.__new__(type(value))
    for field in fields(value):  # type: ignore[arg-type]
        object.__setattr__(made, field.name, changes.get(field.name, getattr(value, field.name)))
    return made


def i64(choose: random.Random, near: int = 0) -> int:
    """Any 64-bit number: an edge of what fits somewhere, a small one, one near ``near``, or any at all."""
    kind = choose.randrange(5)
    if kind == 0:
        found = choose.choice(EDGES)
    elif kind == 1:
        found = near + choose.choice(EDGES)
    elif kind == 2:
        found = near + choose.randrange(-1000 * S, 1000 * S)
    elif kind == 3:
        found = choose.choice((-1, 1)) * choose.getrandbits(choose.randrange(64))
    else:
        found = choose.choice((I64_MIN, I64_MAX, I64_MIN + 1, 0))
    return max(I64_MIN, min(I64_MAX, found))


def unsigned(choose: random.Random, bits: int, limit: int | None = None) -> int:
    """Any unsigned number of so many bits, often at the edge or at ``limit``."""
    most = (1 << bits) - 1
    if limit is not None and choose.random() < 0.5:
        return max(0, min(most, limit + choose.choice((-1, 0, 1))))
    return choose.choice((0, 1, most, most - 1, most >> 1, (most >> 1) + 1, choose.getrandbits(bits)))


def ends(choose: random.Random, near: int = 0) -> tuple[int, int]:
    """Two ends, the lower one first, of any width."""
    one = i64(choose, near)
    other = max(I64_MIN, min(I64_MAX, one + choose.choice((0, 1, 200, S, 1 << 47, (1 << 48) - 1, 1 << 60, 1 << 63))))
    return min(one, other), max(one, other)
