"""A listener that no one of its askers can take from the others: how many may come, how often, and for how long.

The problem: every local user may ask the daemon, and a scraper on the network the metrics. One that asks without end,
opens connections and leaves them, or reads its answer a byte at a time would take the loop's time, its descriptors and
everybody else's turn.

The insight: who asks is known when the connection is accepted, before a byte of it is read: the user's id on a Unix
socket (SO_PEERCRED), the address over TCP. So each asker has its own few places and its own pace, and all together
theirs (:class:`Gate`). Who comes too often waits for its turn, which a polite program takes for a slow answer. Who has
no place left is turned away at once, for the price of an ``accept``. Each connection serves one request and is cut off
after ``LIFETIME_S``, whatever it waits for.

Limits: on loopback all users are one asker over TCP; the Unix socket tells them apart. Of the first
``ASKERS_MAX`` askers, those that come at once later are turned away. Programs of one user share a place's pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from aiohttp import web

from skewd.quiet import QuietLog

LIFETIME_S = 10.0
"""So long a connection lasts at most, from its acceptance to the last byte of its answer."""

ASKERS_MAX = 256
_BACKLOG = 128
_UNIX_BACKLOG = 16  # who finds it full waits in turn, and what is in it is behind a flood's share of it
_BATCH = 16
_PAUSE_S = 0.02
_END_S = 0.25
_CREDENTIALS = struct.Struct("3i")
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Answer = Callable[[], web.Response]


class Limits(NamedTuple):
    """What one asker, and all of them, may take.

    Attributes:
        places, all_places: connections at once.
        per_s, all_per_s: connections a second; ``burst`` as many may come at once.
    """

    places: int = 8
    all_places: int = 64
    per_s: float = 50.0
    all_per_s: float = 200.0
    burst: int = 50


class _Pace:
    """One more is due at ``due_s``; who comes before waits until then."""

    def __init__(self, gap_s: float, burst: int) -> None:
        self._gap_s, self._burst_s = gap_s, gap_s * burst
        self.due_s = -1e18
        self.inside = 0

    def next_s(self, now_s: float) -> float:
        """How long this one waits."""
        self.due_s = max(self.due_s, now_s - self._burst_s) + self._gap_s
        return max(0.0, self.due_s - now_s)


class Gate:
    """Who may come in, and when. Pure: seconds of any epoch come in."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all = _Pace(1 / limits.all_per_s, limits.burst)
        self._askers: dict[Hashable, _Pace] = {}

    def enter(self, asker: Hashable, now_s: float) -> float | None:
        """For how many seconds ``asker`` waits before it is served; None: it is turned away."""
        pace = self._askers.get(asker)
        if pace is None:
            if len(self._askers) >= ASKERS_MAX:
                self._forget(now_s)
            if len(self._askers) >= ASKERS_MAX:
                return None
            pace = self._askers[asker] = _Pace(1 / self._limits.per_s, self._limits.burst)
        if pace.inside >= self._limits.places or self._all.inside >= self._limits.all_places:
            return None
        pace.inside += 1
        self._all.inside += 1
        return max(pace.next_s(now_s), self._all.next_s(now_s))

    def leave(self, asker: Hashable) -> None:
        """One that came in is gone."""
        self._askers[asker].inside -= 1
        self._all.inside -= 1

    def _forget(self, now_s: float) -> None:
        self._askers = {who: pace for who, pace in self._askers.items() if pace.inside or pace.due_s > now_s}


class _Visit:
    """One connection."""

    def __init__(self, asker: Hashable, sock: socket.socket) -> None:
        self.asker, self.sock = asker, sock
        self.transport: asyncio.Transport | None = None
        self.timers: list[asyncio.TimerHandle] = []


class Door(web.Server):
    """Serves ``GET`` of a few paths on one listening socket.

    Args:
        answers: by path.
        limits: what askers may take.
    """

    def __init__(self, answers: Mapping[str, Answer], limits: Limits | None = None) -> None:
        super().__init__(self._answer, access_log=None, keepalive_timeout=1.0, lingering_time=1.0)
        self._answers = answers
        self._gate = Gate(limits or Limits())
        self._listener: socket.socket | None = None
        self._visits: dict[Hashable, _Visit] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._log = QuietLog("skewd.publish.doors")
        self.refused = 0
        """Connections that were turned away or cut off."""

    def listen(self, listener: socket.socket) -> None:
        """Accepts on a bound socket from now on, and owns it."""
        listener.setblocking(False)
        listener.listen(_UNIX_BACKLOG if listener.family == socket.AF_UNIX else _BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    async def close(self) -> None:
        """Accepts no more; answers that are under way have a moment."""
        loop = asyncio.get_running_loop()
        if self._resume is not None:
            self._resume.cancel()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * _END_S):
                await self.shutdown(_END_S)
        for visit in list(self._visits.values()):
            self._cut(visit)

    # -- coming in

    def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        for _ in range(_BATCH):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # too many descriptors are open, or it is gone already
                break
            self._come(sock, address, loop)
        # A flood is taken in at a pace that leaves the loop to the others.
        loop.remove_reader(self._listener)
        self._resume = loop.call_later(_PAUSE_S, loop.add_reader, self._listener, self._accept)

    def _come(self, sock: socket.socket, address: object, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)
        asker = _asker(sock, address)
        wait_s = self._gate.enter(asker, loop.time())
        if wait_s is None:
            self.refused += 1
            self._log.warning("queries_refused", asker=asker, advice="it asks too much at once, or leaves answers")
            with contextlib.suppress(OSError):
                sock.send(_REFUSAL)
            sock.close()
            return
        visit = _Visit(asker, sock)
        self._visits[visit] = visit
        visit.timers.append(loop.call_later(LIFETIME_S, self._overdue, visit))
        if wait_s > 0:
            visit.timers.append(loop.call_later(wait_s, self._serve, visit))
        else:
            self._serve(visit)

    def _serve(self, visit: _Visit) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(visit), name="skewd-visit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, visit: _Visit) -> None:
        handler = self()
        del self._visits[visit]
        self._visits[handler] = visit  # connection_lost() is told of by it
        try:
            visit.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, visit.sock)
        except OSError:
            self._gone(handler)

    # -- going

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """The library tells."""
        super().connection_lost(handler, exc)
        self._gone(handler)

    def _gone(self, key: Hashable) -> None:
        visit = self._visits.pop(key, None)
        if visit is None:
            return
        for timer in visit.timers:
            timer.cancel()
        self._gate.leave(visit.asker)

    def _overdue(self, visit: _Visit) -> None:
        self.refused += 1
        self._log.warning("query_cut_off", asker=visit.asker, after_s=LIFETIME_S)
        self._cut(visit)

    def _cut(self, visit: _Visit) -> None:
        if visit.transport is not None:
            visit.transport.abort()  # and connection_lost() follows
        else:
            visit.sock.close()
            for key, other in list(self._visits.items()):
                if other is visit:
                    self._gone(key)

    # -- answers

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        answer = self._answers.get(request.path)
        if answer is None:
            told = web.Response(text="404: Not Found\n", status=404)
        elif request.method not in ("GET", "HEAD"):
            told = web.Response(text="405: Method Not Allowed\n", status=405, headers={"Allow": "GET, HEAD"})
        else:
            told = answer()
        told.force_close()
        return told


def _asker(sock: socket.socket, address: object) -> str:
    if sock.family != socket.AF_UNIX:
        return str(address[0]) if isinstance(address, tuple) else ""
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return "uid unknown"
    return f"uid {_CREDENTIALS.unpack(told)[1]}"
