"""skewd: how far is this clock from the others, and how sure are we?

Importing this costs nothing on purpose: readers in applications and short-lived commands begin here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skewd.interval import Interval

__version__ = "0.1.0"


def now() -> Interval:
    """The time on the reference timescale, Unix nanoseconds: see :func:`skewd.reader.now`."""
    from skewd import reader

    return reader.now()
