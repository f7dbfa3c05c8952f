"""What may block is done here, in threads that nobody waits for.

The problem: a resolver, a disk and whoever reads a log may each take a minute for what takes a microsecond as a rule.
A loop that waits for one of them stamps nothing meanwhile. The usual pool of threads moves the wait to the end: its
threads are waited for when the loop ends and again when the interpreter does, so a dead name server decides how long
a stop takes.

The insight: nothing that is done here is worth a wait. So the threads are daemon threads: the process ends without
them. There are few of each kind, so that a hung disk takes no thread from the resolver, and what waits for a thread
is limited as well. Outcomes come back by ``call_soon_threadsafe``; a loop that has ended gets none.

A file that is kept (:class:`Keeper`) has one write under way at most and one waiting, the latest; unchanged content is
not written again, and a failure is tried again whenever the content is offered the next time. Log lines
(:class:`LineWriter`) wait in a bounded queue for one thread; what finds it full is dropped, counted, and the count is
said.

Limits: a thread that hangs in the kernel hangs on; each pool has ``threads_max`` of them, and refuses beyond
``waiting_max`` waiting calls (:class:`Busy`). Work that was begun can't be taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from typing import TextIO

T = TypeVar("T")

IDLE_S = 10.0
"""A thread without work ends after so long."""

OVERDUE_S = 10.0
"""A write that takes longer is a trouble of its own."""

LINES_MAX = 4_096
LINES_BYTES_MAX = 1 << 20
"""Log lines, and their characters, that may wait for whoever reads them."""


class Busy(OSError):
    """So much waits already that this was not begun; the message says of which kind."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EAGAIN, f"too much is under way already ({name})")


class Pool:
    """Up to ``threads_max`` daemon threads, started when there is work and ended when there is none.

    Args:
        name: of the threads.
        threads_max: at once.
        waiting_max: calls that may wait for a thread.
        idle_s: see :data:`IDLE_S`.
    """

    def __init__(self, name: str, threads_max: int, waiting_max: int = 1_024, idle_s: float = IDLE_S) -> None:
        self._name, self._threads_max, self._waiting_max, self._idle_s = name, threads_max, waiting_max, idle_s
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads = self._idle = 0

    def start(self, work: Callable[[], object]) -> None:
        """Has ``work`` done, from any thread; it must not raise.

        Raises:
            Busy: too much waits, or no thread can be had.
        """
        with self._changed:
            if len(self._waiting) >= self._waiting_max:
                raise Busy(self._name)
            self._waiting.append(work)
            if self._idle >= len(self._waiting) or self._threads >= self._threads_max:
                self._changed.notify()
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # a limit on processes: those that run take it in their time, if there are any
            with self._changed:
                self._threads -= 1
                if self._threads == 0:
                    self._waiting.clear()
                    raise Busy(self._name) from error

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Has ``work`` done; its outcome, for the running loop. What it raises is raised there.

        A future that is cancelled, or given up, leaves the work to end by itself.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def at_work() -> None:
            told: T | None = None
            failure: Exception | None = None
            try:
                told = work()
            except Exception as error:
                failure = error
            hand_over(loop, partial(settle, outcome, told, failure))

        try:
            self.start(at_work)
        except Busy as error:
            outcome.set_exception(error)
        return outcome

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                got = self._changed.wait_for(lambda: self._waiting, self._idle_s)
                self._idle -= 1
                if not got:
                    self._threads -= 1
                    return
                work = self._waiting.popleft()
            work()
            del work  # what it holds on to is not kept for the sake of an idle thread


def hand_over(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Has ``call`` called in the loop, from any thread; a loop that has ended calls nothing."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def settle(outcome: asyncio.Future[T], told: T | None, failure: Exception | None) -> None:
    """In the loop: what a thread found out, unless nobody waits for it any more."""
    if outcome.done():
        return
    if failure is not None:
        outcome.set_exception(failure)
    else:
        outcome.set_result(cast(T, told))


DISK = Pool("skewd-disk", 8)
"""For what reads and writes files, and looks through processes."""


async def joined(thread: threading.Thread, limit_s: float) -> bool:
    """Waits for another thread, ``limit_s`` at most; whether it has ended."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def wait() -> None:
        thread.join(limit_s)
        hand_over(loop, partial(settle, over, None, None))

    try:
        # A thread of its own: as many as there are to wait for.
        threading.Thread(target=wait, name=f"{thread.name}-end", daemon=True).start()
    except RuntimeError:
        pass
    else:
        await over
    if thread.is_alive():
        _left_behind.append(thread)
    return not thread.is_alive()


_left_behind: list[threading.Thread] = []


def leave(code: int) -> int:
    """The exit code of a process that is over; where a thread was left behind, the process ends here and now.

    A library whose thread hangs would be waited for by its own clean-up, at the interpreter's end.
    """
    if any(thread.is_alive() for thread in _left_behind):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def within(limit_s: float, work: Callable[[], T]) -> T:
    """Does ``work`` in a thread and waits ``limit_s`` at most, where no loop turns.

    Raises:
        TimeoutError: it took longer, and is left behind.
        Exception: what ``work`` raised.
    """
    told: list[T] = []
    failed: list[Exception] = []

    def at_work() -> None:
        try:
            told.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=at_work, name="skewd-within", daemon=True)
    thread.start()
    thread.join(max(0.0, limit_s))
    if failed:
        raise failed[0]
    if not told:
        raise TimeoutError(f"not within {limit_s:g} s")
    return told[0]


class Keeper:
    """Keeps one file as it was last wanted. Used within the running event loop.

    Args:
        write: replaces the file's content; called in a thread, once at a time.
        pool: whose thread.
    """

    def __init__(self, write: Callable[[bytes], None], pool: Pool = DISK) -> None:
        self._write, self._pool = write, pool
        self._wanted: bytes | None = None
        self._written: bytes | None = None
        self._writing: asyncio.Future[None] | None = None
        self._began_s = 0.0
        self._error: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why the file is not as it was last wanted, in words; None while it is, or is being written in good time."""
        if self._writing is not None and time.monotonic() - self._began_s > OVERDUE_S:
            return f"a write has been under way for {time.monotonic() - self._began_s:.0f} s"
        return self._error

    @property
    def error(self) -> str | None:
        """Why the last write that ended failed; None if it did not."""
        return self._error

    @property
    def written(self) -> bytes | None:
        """What the file is known to hold; None before the first write, and after one that failed."""
        return self._written

    def keep(self, content: bytes) -> None:
        """Has ``content`` written, unless the file holds it; of several that wait the latest is."""
        self._wanted = content
        if self._writing is None and content != self._written:
            self._begin()

    async def finish(self, limit_s: float) -> bool:
        """Waits ``limit_s`` at most for what is under way; whether the file holds what was last wanted."""
        until_s = time.monotonic() + limit_s
        while (writing := self._writing) is not None and (left_s := until_s - time.monotonic()) > 0:
            await asyncio.wait({writing}, timeout=left_s)
            await asyncio.sleep(0)  # the callback that notes the outcome, and begins the next
        return self._writing is None and self._wanted == self._written

    def _begin(self) -> None:
        content = self._wanted
        assert content is not None
        self._began_s = time.monotonic()
        self._writing = self._pool.call(lambda: self._write(content))
        self._writing.add_done_callback(lambda done: self._over(done, content))

    def _over(self, done: asyncio.Future[None], content: bytes) -> None:
        self._writing = None
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            self._written = None  # half of it may be there
            self._error = str(getattr(error, "strerror", None) or error)
        else:
            self._written, self._error = content, None
        if self._wanted is not content and self._wanted != self._written and error is None:
            self._begin()


class LineWriter:
    """A text stream that never makes its writer wait: lines go out in a thread.

    Args:
        stream: where they go. One without a descriptor (a test's) is written at once.
        dropped: a line that says how many were dropped.

    Attributes:
        lost: lines that were dropped so far.
    """

    def __init__(self, stream: TextIO, dropped: Callable[[int], str]) -> None:
        self._stream, self._dropped = stream, dropped
        self.lost = 0
        self._said = 0
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._size = 0
        self._under_way = False
        self._thread: threading.Thread | None = None
        try:
            stream.fileno()
            self._direct = False
        except (OSError, ValueError, AttributeError):
            self._direct = True

    def write(self, text: str) -> int:
        """Takes ``text``, or drops it where too much waits."""
        if self._direct:
            return self._stream.write(text)
        with self._changed:
            if len(self._waiting) >= LINES_MAX or self._size + len(text) > LINES_BYTES_MAX:
                self.lost += 1
                return len(text)
            self._waiting.append(text)
            self._size += len(text)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="skewd-log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread to be had: the next line tries again
                    return len(text)
                self._thread = thread
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: what waits is on its way."""
        if self._direct:
            self._stream.flush()

    def drain(self, limit_s: float) -> bool:
        """Waits ``limit_s`` at most until all that was written is out; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._under_way, limit_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._under_way = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._under_way = True
                text = "".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                missing, self._said = self.lost - self._said, self.lost
            try:
                self._stream.write(text)
                if missing:
                    self._stream.write(self._dropped(missing))
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more
                continue
