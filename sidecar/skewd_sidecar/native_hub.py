"""The native transport's end in an event loop: whole requests and answers, in batches.

Python's gRPC spends most of a small request on crossing between its threads and the loop. The extension's transport
speaks HTTP/2 in a thread of its own that never holds Python's lock, and keeps what it has for us in a queue: one
wake-up of the loop takes all that came meanwhile, and all that the loop's turn produced goes back with one wake-up of
the thread. Receiver and forwarders of one loop share one such thread; it starts with the first and ends with the last.

Limits: a request's handler is a task, cancelled when nobody waits for its answer any more. Should the thread die,
which takes a fault in its outermost loop, everything under way fails as "unavailable", the log says it, and nothing is
listened to any more: start the sidecar again.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterable
from typing import Any, ClassVar

from skewd_native import Transport

from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.handler import Handler
from skewd_sidecar.outcome import INTERNAL, UNAVAILABLE, Outcome

SHUTDOWN_S = 2.0
_CLOSING_S = 2.0  # beyond the grace

# Kinds of events, the first value of each.
_REQUEST, _GONE, _ANSWERED, _CLOSED, _TROUBLE = range(5)

_SIGNALS = list(Signal)

log = logging.getLogger(__name__)


class Hub:
    """One transport, for one event loop. Made by :meth:`acquire`."""

    _hubs: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub]] = weakref.WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._users = 0
        self._transport = Transport([f"/{signal.grpc_service}/Export" for signal in _SIGNALS])
        self._fd = self._transport.fd
        self._handlers: dict[int, Handler] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, asyncio.Future[tuple[Any, ...]]] = {}
        self._closed: dict[int, asyncio.Future[None]] = {}
        self._channels: dict[tuple[str, str, int, bool], tuple[int, int]] = {}
        self._flushing = False
        loop.add_reader(self._fd, self._take)

    @classmethod
    def acquire(cls) -> Hub:
        """The running loop's hub, which lasts until it was released as often as acquired."""
        loop = asyncio.get_running_loop()
        hub = cls._hubs.get(loop)
        if hub is None:
            hub = cls._hubs[loop] = cls(loop)
        hub._users += 1
        return hub

    def release(self) -> None:
        """Ends the thread if this was its last user."""
        self._users -= 1
        if self._users:
            return
        loop = self._loop()
        if loop is not None:
            self._hubs.pop(loop, None)
            loop.remove_reader(self._fd)
        for task in self._tasks.values():
            task.cancel()
        self._fail_calls("the transport has ended")
        if not self._transport.shutdown(SHUTDOWN_S):
            log.warning("the native transport's thread did not end within %g s; it is left behind", SHUTDOWN_S)

    @property
    def stats(self) -> dict[str, int]:
        """What is there at this moment: connections, requests, bytes held, calls; and faults since the start."""
        return self._transport.stats()

    # ------------------------------------------------------------------------------------------------- in

    def listen(
        self,
        fd: int,
        handler: Handler,
        *,
        unix: bool,
        body_max_bytes: int,
        held_max_bytes: int,
        requests_max: int,
        connections_max: int,
        streams_max: int,
        read_s: float,
        metadata: Iterable[str] = (),
    ) -> int:
        """Serves on a listening socket, which is the transport's from here on.

        Args:
            fd: the socket's descriptor, given away.
            handler: gets the requests, each in a task.
            unix: whether it is a Unix socket.
            body_max_bytes: of one request, decompressed.
            held_max_bytes: of all requests that are still arriving.
            requests_max: at once.
            connections_max, streams_max: at once, and requests at once on each.
            read_s: for one request to arrive.
            metadata: names of headers that are handed to the handler.

        Returns:
            What :meth:`close` takes.
        """
        server = self._transport.listen(
            fd,
            unix=unix,
            body_bytes=body_max_bytes,
            held_bytes=held_max_bytes,
            requests=requests_max,
            connections=connections_max,
            streams=streams_max,
            read_s=read_s,
            metadata=sorted(metadata),
        )
        self._handlers[server] = handler
        return server

    async def close(self, server: int, grace_s: float) -> None:
        """Frees the address; requests under way have ``grace_s`` to finish, and are then told to try again."""
        if self._transport.dead:
            self._handlers.pop(server, None)
            return
        closed = self._closed[server] = asyncio.get_running_loop().create_future()
        self._transport.close(server, grace_s)
        try:
            async with asyncio.timeout(grace_s + _CLOSING_S):
                await closed
        except TimeoutError:
            log.warning("the native transport did not close a listener within %g s", grace_s + _CLOSING_S)
        finally:
            del self._closed[server]
            self._handlers.pop(server, None)

    async def _serve(
        self, handler: Handler, number: int, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata
    ) -> None:
        try:
            outcome = await handler(signal, body, timeout_s, metadata)
        except Exception:
            log.exception("a request could not be handled")
            outcome = Outcome.failed(INTERNAL, "the sidecar could not handle the request; its log says why")
        finally:
            self._tasks.pop(number, None)
        details = None if outcome.ok else outcome.grpc_details()
        self._transport.reply(number, outcome.code, outcome.message, outcome.body, details)
        self._flush_soon()

    # ------------------------------------------------------------------------------------------------ out

    def connect(self, host: str, port: int, authority: str, gzip: bool, answer_max_bytes: int) -> int:
        """A channel to an endpoint, shared by all that ask for the same. To be given back by :meth:`disconnect`.

        Args:
            host: a name or address; a path, which begins with a slash, for a Unix socket.
            port: of TCP.
            authority: what the requests say they are for, as ``host:port``.
            gzip: whether requests are compressed.
            answer_max_bytes: longer answers fail.

        Raises:
            ValueError: that cannot be an endpoint.
        """
        key = (authority, host, port, gzip)
        channel, users = self._channels.get(key, (0, 0))
        if not users:
            where: dict[str, Any] = {"unix": host} if host.startswith("/") else {"host": host, "port": port}
            channel = self._transport.connect(authority, gzip=gzip, answer_bytes=answer_max_bytes, **where)
        self._channels[key] = channel, users + 1
        return channel

    def disconnect(self, channel: int) -> None:
        """Gives a channel back. The last one closes it, and fails its calls."""
        key = next(key for key, (each, _) in self._channels.items() if each == channel)
        users = self._channels[key][1] - 1
        self._channels[key] = channel, users
        if not users:
            del self._channels[key]
            self._transport.disconnect(channel)

    async def call(
        self, channel: int, signal: Signal, body: bytes, timeout_s: float | None, metadata: list[tuple[str, str]]
    ) -> tuple[int, str, bytes, bytes | None]:
        """One call.

        Returns:
            gRPC code, message, answer, and the details that came beside a failure.

        Raises:
            ValueError: a header that cannot be sent.
        """
        if self._transport.dead:
            return UNAVAILABLE, "the native transport has ended", b"", None
        number = self._transport.call(channel, _SIGNALS.index(signal), body, timeout_s, metadata)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._flush_soon()
        try:
            _, _, code, message, answer, details = await future
        except asyncio.CancelledError:
            self._calls.pop(number, None)
            self._transport.cancel(number)
            self._flush_soon()
            raise
        return code, message, answer, details

    # ---------------------------------------------------------------------------------------------- both

    def _flush_soon(self) -> None:
        """Once for all that this turn of the loop produces."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._transport.flush()

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for event in self._transport.take():
            kind = event[0]
            if kind == _ANSWERED:
                future = self._calls.pop(event[1], None)
                if future is not None and not future.done():
                    future.set_result(event)
            elif kind == _REQUEST:
                _, server, number, path, body, timeout_s, metadata = event
                handler = self._handlers[server]
                work = self._serve(handler, number, _SIGNALS[path], body, timeout_s, metadata)
                self._tasks[number] = loop.create_task(work)
            elif kind == _GONE:
                task = self._tasks.pop(event[1], None)
                if task is not None:
                    task.cancel()
            elif kind == _CLOSED:
                closed = self._closed.get(event[1])
                if closed is not None and not closed.done():
                    closed.set_result(None)
            elif kind == _TROUBLE:
                log.error("%s", event[1])
                if self._transport.dead:
                    self._fail_calls(event[1])
                    for closed in self._closed.values():
                        if not closed.done():
                            closed.set_result(None)

    def _fail_calls(self, why: str) -> None:
        for number, future in self._calls.items():
            if not future.done():
                future.set_result((_ANSWERED, number, UNAVAILABLE, why, b"", None))
        self._calls.clear()
