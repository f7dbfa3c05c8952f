"""Saying once what a network can provoke ten thousand times a second.

Counters hold how often; a log line is for a person, who needs it once, with the fix. So each kind of complaint is
said at most once a minute, with how many were kept back.

Limits: kinds are the program's own words, and what they are about is configured, never text from the network; so the
table stays as small as the code and the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from skewd.lean import structlog

_EVERY_NS = 60_000_000_000


class QuietLog:
    """A structlog logger that repeats a kind of message at most once a minute."""

    def __init__(self, name: str, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._log = structlog.get_logger(name)
        self._monotonic_ns = monotonic_ns
        self._said: dict[tuple[str, Hashable], tuple[int, int]] = {}

    def info(self, kind: str, *, about: Hashable = None, **fields: object) -> None:
        """What a person may want to know. As :meth:`warning`."""
        self._say(self._log.info, kind, about, fields)

    def warning(
        self, kind: str, *, about: Hashable = None, exc_info: bool | BaseException = False, **fields: object
    ) -> None:
        """Say ``kind`` with ``fields``, unless it was said of the same within the last minute.

        Args:
            about: what it is said of, where one kind of complaint may hide another's; of a few, as next hops are.
            exc_info: an exception, or whether the current one is to be shown.
        """
        self._say(self._log.warning, kind, about, {**fields, "exc_info": exc_info})

    def error(
        self, kind: str, *, about: Hashable = None, exc_info: bool | BaseException = False, **fields: object
    ) -> None:
        """A fault of the program's own. As :meth:`warning`."""
        self._say(self._log.error, kind, about, {**fields, "exc_info": exc_info})

    def _say(self, say: Callable[..., object], kind: str, about: Hashable, fields: dict[str, object]) -> None:
        now = self._monotonic_ns()
        said_at, kept_back = self._said.get((kind, about), (None, 0))
        if said_at is not None and now - said_at < _EVERY_NS:
            self._said[kind, about] = (said_at, kept_back + 1)
            return
        self._said[kind, about] = (now, 0)
        if kept_back:
            fields["kept_back"] = kept_back
        say(kind, **fields)
