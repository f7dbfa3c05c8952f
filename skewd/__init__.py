"""skewd: how far is this clock from the others, and how sure are we?

Importing this costs nothing on purpose: readers in applications and short-lived commands begin here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from skewd.interval import Interval

__version__ = "0.1.0"

_now: Callable[[], Interval] | None = None


def now() -> Interval:
    """The time on the reference timescale, Unix nanoseconds: see :func:`skewd.reader.now`."""
    global _now
    if _now is None:
        from skewd import reader

        _now = reader.default()
    return _now()
