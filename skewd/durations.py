"""Durations as people write them: ``5ms``, ``250us``, ``1s``.

A bare number is refused: "5" once meant minutes to one clock tool and seconds to the next, and a clock tool that
guesses its own unit is the problem it was bought to solve. Decimals are exact (no floats in between).
"""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_FORM = re.compile(r"\s*([+-]?\d{1,18}(?:\.\d{1,9})?)\s*(ns|us|µs|ms|s|m|h)\s*")
_BARE = re.compile(r"\s*[+-]?\d+(?:\.\d+)?\s*")


def parse_duration_ns(text: str) -> int:
    """Whole nanoseconds of a written duration; offsets may be negative.

    Raises:
        ValueError: no unit, an unknown unit, or not a number; the message says what to write instead.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        if _BARE.fullmatch(text):
            number = text.strip()
            raise ValueError(f"'{number}' has no unit; write {number}ms, {number}us or {number}s (ns, us, ms, s, m, h)")
        raise ValueError(f"'{text.strip()[:40]}' is not a duration; write a number and a unit, as 5ms, 250us or 1s")
    value = Decimal(match[1]) * _UNITS_NS[match[2]]
    if value != value.to_integral_value():
        raise ValueError(f"'{text.strip()}' is finer than a nanosecond; write whole nanoseconds")
    return int(value)


def format_duration(ns: int) -> str:
    """A short form for people, three significant digits or so: ``5 ms``, ``-250 us``, ``1.25 s``."""
    size = abs(ns)
    unit, scale = next(
        (found for found in (("ns", 1), ("us", 1_000), ("ms", 1_000_000)) if size < found[1] * 1_000),
        ("s", 1_000_000_000),
    )
    value = ns / scale
    digits = 0 if scale == 1 else max(0, 3 - len(str(int(abs(value)))))
    text = f"{value:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}"
