"""For links that a thread reads: handing messages to the event loop, and saying once what is wrong.

The receive stamp is what counts, and it is taken in the thread, right after the call that returned the message. What
happens to the message afterwards may take its time: a receive stamp is part of the proof, the way to the event loop is
not. So the thread does no thinking. It stamps, looks at the label that says for whom the message is, and puts it into
a bounded queue that the loop empties a batch at a time.

A broker or a driver that is gone is a state, not an event: it is said when it begins and when it ends, however often
the library repeats it in between.

Limits: a full queue refuses (the caller counts it), so a flood costs memory for ``limit`` messages and no more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from skewd.lean import structlog

T = TypeVar("T")

QUEUE_LIMIT = 256
_BATCH = 32


class Handover(Generic[T]):
    """From one thread to the event loop in which this was made.

    Args:
        take: called in the loop with each item, in order. It must not raise.
        limit: how many may wait.
    """

    def __init__(self, take: Callable[[T], object], limit: int = QUEUE_LIMIT) -> None:
        self._take, self._limit = take, limit
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._items: deque[T] = deque()
        self._called = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Hand ``item`` over (from any thread); false when too many wait already."""
        with self._lock:
            if self._closed or len(self._items) >= self._limit:
                return False
            self._items.append(item)
            if self._called:
                return True
            self._called = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop has ended; nobody will take it
            return False
        return True

    def close(self) -> None:
        """Drop what waits and take no more."""
        with self._lock:
            self._closed = True
            self._items.clear()

    def _drain(self) -> None:
        for _ in range(_BATCH):
            with self._lock:
                if not self._items:
                    self._called = False
                    return
                item = self._items.popleft()
            self._take(item)
        self._loop.call_soon(self._drain)


class Condition:
    """Whether something a link needs is there; its changes are logged, once each. For any thread.

    Args:
        link: the link's name, for the log.
        starting: what is waited for before anything was found out.
    """

    def __init__(self, link: str, starting: str) -> None:
        self._log = structlog.get_logger(f"skewd.links.{link}")
        self._lock = threading.Lock()
        self._trouble: str | None = starting
        self._said: str | None = None

    @property
    def trouble(self) -> str | None:
        """What is wrong, with what to do about it; ``None`` when all is well."""
        return self._trouble

    def well(self) -> None:
        """It is there (again)."""
        with self._lock:
            self._trouble = None
            if self._said is None:
                return
            self._said = None
        self._log.info("link_works_again")

    def wrong(self, trouble: str) -> None:
        """It is not there, for this reason."""
        with self._lock:
            self._trouble = trouble
            if trouble == self._said:
                return
            self._said = trouble
        self._log.warning("link_down", reason=trouble)


class Budget:
    """How much a thread takes in per tenth of a second before it pauses. Pure: seconds of any epoch come in."""

    def __init__(self, per_window: int, window_s: float = 0.1) -> None:
        self._per_window, self._window_s = per_window, window_s
        self._left, self._until_s = per_window, 0.0

    def spend(self, now_s: float) -> float:
        """One more; how long to pause before the next one, usually 0."""
        if now_s >= self._until_s:
            self._left, self._until_s = self._per_window, now_s + self._window_s
        self._left -= 1
        return 0.0 if self._left > 0 else max(0.0, self._until_s - now_s)
