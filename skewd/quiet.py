"""Saying once what a network can provoke ten thousand times a second.

Counters hold how often; a log line is for a person, who needs it once, with the fix. So each kind of complaint is
said at most once a minute, with how many were kept back.

Limits: kinds are the program's own words, never text from the network, so the table stays as small as the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from skewd.lean import structlog

_EVERY_NS = 60_000_000_000


class QuietLog:
    """A structlog logger that repeats a kind of message at most once a minute."""

    def __init__(self, name: str, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._log = structlog.get_logger(name)
        self._monotonic_ns = monotonic_ns
        self._said: dict[str, tuple[int, int]] = {}

    def warning(self, kind: str, *, exc_info: bool = False, **fields: object) -> None:
        """Say ``kind`` with ``fields``, unless it was said within the last minute."""
        now = self._monotonic_ns()
        said_at, kept_back = self._said.get(kind, (None, 0))
        if said_at is not None and now - said_at < _EVERY_NS:
            self._said[kind] = (said_at, kept_back + 1)
            return
        self._said[kind] = (now, 0)
        if kept_back:
            fields["kept_back"] = kept_back
        self._log.warning(kind, exc_info=exc_info, **fields)
