"""Names become addresses side by side, each of them once at a time, and never in the loop.

The problem: the system's resolver takes one name after the other, can't be interrupted, and waits for a dead server
for ten seconds and more. In a row, one dead name holds up all behind it; in the usual pool of threads a few dead
names fill it, and whoever ends the process waits for them.

The insight: a name is asked for by several (a peer, a source, a search that begins again), and one question serves
them all, however long it takes; each of them waits as long as it cares to. A name that took long the last time is
asked for in a pool of its own, so that dead names wait for each other and living ones don't.

An address is no name: it is read at once, without a thread.

Limits: ``QUICK_THREADS`` and ``SLOW_THREADS`` questions at once (``background.py`` on what waits). When as many names
as there are threads are dead, those that are asked for the first time wait for one resolver's time-out once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from skewd.background import Busy, Pool, hand_over, settle

WAIT_S = 10.0
"""How long an answer is waited for, unless the caller says otherwise."""

SLOW_S = 1.0
"""A name that took longer is asked for beside the others the next time."""

QUICK_THREADS, SLOW_THREADS = 16, 4
_SLOW_MAX = 1_024

Found: TypeAlias = Sequence[tuple[Any, Any, Any, Any, Any]]
"""What ``socket.getaddrinfo`` gives: family, kind, protocol, canonical name, address."""

Resolve: TypeAlias = Callable[..., Found]
_Key = tuple[str, int, int, int, int]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Found]"]


def is_numeric(host: str) -> bool:
    """Whether ``host`` is an IP address (with a zone perhaps), which needs no resolver."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class Names:
    """The names of one process; for any event loop.

    Args:
        resolve: ``socket.getaddrinfo``, or a test's own.
    """

    def __init__(self, resolve: Resolve | None = None) -> None:
        self._resolve = resolve
        self._quick = Pool("skewd-names", QUICK_THREADS)
        self._slow_ones = Pool("skewd-slow-names", SLOW_THREADS)
        self._slow: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._asked: dict[_Key, list[_Waiter]] = {}

    async def find(
        self,
        host: str,
        port: int,
        *,
        family: int = 0,
        kind: int = socket.SOCK_DGRAM,
        flags: int = 0,
        limit_s: float | None = WAIT_S,
    ) -> Found:
        """The addresses of a name, as ``socket.getaddrinfo`` gives them.

        Args:
            limit_s: how long the answer is waited for; None: until it comes. The question goes on all the same, and
                serves whoever asks it next.

        Raises:
            OSError: it has none, nobody answers (``TimeoutError``), or too many names are asked for at once.
            UnicodeError: it is no possible name.
        """
        if is_numeric(host):
            return socket.getaddrinfo(host, port, family, kind, flags=flags | socket.AI_NUMERICHOST)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Found] = loop.create_future()
        key, waiter = (host, port, family, kind, flags), (loop, answer)
        with self._lock:
            waiters = self._asked.get(key)
            first = waiters is None
            if waiters is None:
                waiters = self._asked[key] = []
            waiters.append(waiter)
            pool = self._slow_ones if host in self._slow else self._quick
        if first:
            try:
                pool.start(lambda: self._ask(key))
            except Busy as error:
                self._tell(key, None, error)
        try:
            await asyncio.wait({answer}, timeout=limit_s)
        finally:
            with self._lock:
                if waiter in waiters:
                    waiters.remove(waiter)
            answer.cancel()  # which does nothing to an answer that is here
        if answer.cancelled():
            raise TimeoutError(f"no answer within {limit_s:g} s")
        return answer.result()

    def _ask(self, key: _Key) -> None:
        """In a thread: asks, and tells whoever waits."""
        host, port, family, kind, flags = key
        began_s = time.monotonic()
        found: Found | None = None
        failure: Exception | None = None
        try:
            resolve = self._resolve or socket.getaddrinfo
            found = resolve(host, port, family=family, type=kind, flags=flags)
        except Exception as error:
            failure = error
        with self._lock:
            self._slow.pop(host, None)
            if time.monotonic() - began_s > SLOW_S:
                self._slow[host] = None
                if len(self._slow) > _SLOW_MAX:
                    self._slow.popitem(last=False)
        self._tell(key, found, failure)

    def _tell(self, key: _Key, found: Found | None, failure: Exception | None) -> None:
        with self._lock:
            waiters = tuple(self._asked.pop(key, ()))
        for loop, answer in waiters:
            hand_over(loop, partial(settle, answer, found, failure))


NAMES = Names()
"""The process's own."""


def why(error: OSError | UnicodeError) -> str:
    """In words; a name with an impossible label fails in the codec, not in the resolver."""
    return str(getattr(error, "strerror", None) or error)
