"""For links that a thread reads: their start and end, handing messages to the event loop, saying once what is wrong.

The receive stamp is what counts, and it is taken in the thread, right after the call that returned the message. What
happens to the message afterwards may take its time: a receive stamp is part of the proof, the way to the event loop is
not. So the thread does no thinking. It stamps, looks at the label that says for whom the message is, and puts it into
a bounded queue that the loop empties a batch at a time.

A broker or a driver that is gone is a state, not an event: it is said when it begins and when it ends, however often
the library repeats it in between.

Limits: a full queue refuses (the caller counts it), so a flood costs memory for ``limit`` messages and no more. At the
end a thread is waited for ``_CLOSE_LIMIT_S``: one whose library hangs (a broker's name that does not resolve) is left
behind.
"""

from __future__ import annotations

import asyncio
import random
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from skewd.background import joined
from skewd.lean import structlog
from skewd.links.protocol import LinkProtocol
from skewd.links.shell import Schedule, Shell

T = TypeVar("T")

QUEUE_LIMIT = 256
_BATCH = 32
_CLOSE_LIMIT_S = 2.0
_S = 1_000_000_000


class Handover(Generic[T]):
    """From one thread to the event loop in which this was made.

    Args:
        take: called in the loop with each item, in order. What it raises is the loop's affair, and drops the item.
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
            try:
                self._take(item)
            except Exception as error:  # the next item must still be taken, whatever this one was
                self._loop.call_exception_handler({"message": "a link could not take a message", "exception": error})
        self._loop.call_soon(self._drain)


class ThreadedLink(ABC):
    """What such links have in common. They have ``_handover``, to which their thread gives what it read.

    Args:
        shell: what they are around.
        interval_ns: how often each peer is asked.
        counters: what the thread alone counts, in ``_counted``, so that no count is lost.
    """

    _handover: Handover[Any]

    def __init__(self, shell: Shell, interval_ns: int, counters: Iterable[str]) -> None:
        self._shell = shell
        self._schedule = Schedule(interval_ns / _S, random.random)
        self._changed = asyncio.Event()
        self._counted = dict.fromkeys(counters, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"skewd-{shell.protocol.link}", daemon=True)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @abstractmethod
    def _work(self) -> None:
        """The thread, until ``_stop`` is set."""

    @abstractmethod
    def _ask(self, key: Hashable) -> None:
        """It is time for this one, in the event loop."""

    def _start(self, keys: Iterable[Hashable] | None) -> None:
        """Starts the thread, and asks each of these once an interval; None for a link that only receives."""
        self._thread.start()
        if keys is None:
            return
        now_s = asyncio.get_running_loop().time()
        for key in keys:
            self._schedule.add(key, now_s)
        asking = self._shell.ask(self._schedule, self._changed, self._ask)
        self._task = asyncio.create_task(asking, name=f"{self._thread.name}-ask")

    @property
    def counters(self) -> dict[str, int]:
        """What was sent, accepted and refused, by reason."""
        return {**self._shell.counters, **self._counted}

    @property
    def protocol(self) -> LinkProtocol:
        """The protocol behind it, for its peers and targets."""
        return self._shell.protocol

    async def close(self) -> None:
        """End the task and the thread, and leave what they were connected to."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._handover.close()
        self._stop.set()
        await joined(self._thread, _CLOSE_LIMIT_S)


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
