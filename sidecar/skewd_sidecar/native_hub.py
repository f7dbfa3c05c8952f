"""The native transport's end in an event loop: whole requests and answers, in batches.

Python's gRPC spends most of a small request on crossing between its threads and the loop. The extension's transport
speaks HTTP/2 in a thread of its own that never holds Python's lock, and keeps what it has for us in a queue: one
wake-up of the loop takes all that came meanwhile, and all that the loop's turn produced goes back with one wake-up of
the thread. Receiver and forwarders of one loop share one such thread; it starts with the first and ends with the last.

Limits: a request's handler is a task, cancelled when nobody waits for its answer any more. Should the thread die,
which takes a fault in its outermost loop, everything under way fails as "unavailable". Then, and where a listener alone
dies, ``lost`` says why; nothing begins anew here, since what a fault left behind is unknown. The sidecar ends, and is
started again.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

from skewd_native import Transport

from skewd.quiet import QuietLog
from skewd_sidecar.counts import Counts, Reading
from skewd_sidecar.endpoint import AGE_S, CONNECT_S
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.handler import Handler
from skewd_sidecar.outcome import UNAVAILABLE, Outcome, own_fault
from skewd_sidecar.receive.http_rules import HTTP_STOPPING, Answer, Head

SHUTDOWN_S = 2.0
_CLOSING_S = 2.0  # beyond the grace

# Kinds of events, the first value of each.
_REQUEST, _GONE, _ANSWERED, _CLOSED, _TROUBLE, _DEAF, _HTTP_REQUEST, _TURNED_AWAY, _HTTP_ANSWERED = range(9)

_SIGNALS = list(Signal)
_STOPPING = Outcome.failed(UNAVAILABLE, "the sidecar is stopping; try again")
_BROKEN = own_fault()


class HttpAnswer(NamedTuple):
    """What an endpoint answered over HTTP; None for headers that it has not."""

    status: int
    reason: str
    content_type: str | None
    content_encoding: str | None
    retry_after: str | None
    date: str | None
    body: bytes


class HttpRequests(Protocol):
    """What a listener for HTTP hands its requests to; see :mod:`skewd_sidecar.receive.http_native`."""

    async def answer(self, head: Head, headers: Metadata, body: bytes, fault: tuple[str, str] | None) -> Answer: ...

    def broken(self) -> Answer: ...

    def turned_away(self, count: int) -> None: ...


class Hub:
    """One transport, for one event loop. Made by :meth:`acquire`.

    Attributes:
        lost: why nothing is served any more, though nobody closed it; empty as long as it is.
    """

    _hubs: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub]] = weakref.WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._users = 0
        self._transport = Transport([f"/{signal.grpc_service}/Export" for signal in _SIGNALS])
        self._fd = self._transport.fd
        self._handlers: dict[int, Handler] = {}
        self._http: dict[int, HttpRequests] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, asyncio.Future[tuple[Any, ...]]] = {}
        self._closed: dict[int, asyncio.Future[None]] = {}
        self._channels: dict[tuple[object, ...], tuple[int, int]] = {}
        self._flushing = False
        self._log = QuietLog(__name__)
        self.lost = ""
        self._lost = asyncio.Event()  # which, unlike a future, does not keep a loop that is gone
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

    @classmethod
    def running(cls) -> Hub | None:
        """The running loop's hub, if there is one."""
        return cls._hubs.get(asyncio.get_running_loop())

    async def until_lost(self) -> str:
        """Waits until nothing is served any more, though nobody closed it; why."""
        await self._lost.wait()
        return self.lost

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
            self._log.warning("the native transport's thread does not end, it is left behind", within_s=SHUTDOWN_S)

    @property
    def stats(self) -> dict[str, int]:
        """What is there at this moment: connections, requests, bytes held, calls; and faults since the start."""
        return self._transport.stats()

    def show(self, counts: Counts) -> None:
        """Adds what is told of the transport to a sidecar's numbers, once."""
        shown = {each.name for each in counts.readings}
        counts.readings += [each for each in self._readings() if each.name not in shown]

    def _readings(self) -> list[Reading]:
        def read(name: str) -> Callable[[], dict[tuple[str, ...], float]]:
            return lambda: {(): float(self.stats[name])}

        about = {
            "connections": "Connections of clients, by the native transport.",
            "refused": "Requests that the native transport could not take: malformed ones and those beyond its limits.",
            "panics": "Faults within the native transport, each of which ended a connection or a call.",
        }
        return [
            Reading("skewd_transport_connections", about["connections"], "gauge", (), read("connections")),
            Reading("skewd_transport_refused", about["refused"], "counter", (), read("refused")),
            Reading("skewd_transport_faults", about["panics"], "counter", (), read("panics")),
        ]

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

    def listen_http(
        self,
        fd: int,
        requests: HttpRequests,
        *,
        unix: bool,
        paths: Iterable[str],
        body_max_bytes: int,
        held_max_bytes: int,
        connections_max: int,
        idle_s: float,
        read_s: float,
        metadata: Iterable[str] = (),
    ) -> int:
        """The same for OTLP over HTTP/1.1.

        Args:
            requests: gets the requests, each in a task.
            paths: those whose bodies are read.
            idle_s: for the head of a request to arrive.
            read_s: for its body.
        """
        server = self._transport.listen_http(
            fd,
            unix=unix,
            paths=list(paths),
            body_bytes=body_max_bytes,
            held_bytes=held_max_bytes,
            connections=connections_max,
            idle_s=idle_s,
            read_s=read_s,
            metadata=sorted(metadata),
        )
        self._http[server] = requests
        return server

    async def close(self, server: int, grace_s: float) -> None:
        """Frees the address; requests under way have ``grace_s`` to finish, and are then told to try again."""
        if self._transport.dead:
            self._forget(server)
            return
        closed = self._closed[server] = asyncio.get_running_loop().create_future()
        self._transport.close(server, grace_s)
        try:
            async with asyncio.timeout(grace_s + _CLOSING_S):
                await closed
        except TimeoutError:
            self._log.warning("the native transport does not close a listener", within_s=grace_s + _CLOSING_S)
        finally:
            del self._closed[server]
            self._forget(server)

    def _forget(self, server: int) -> None:
        self._handlers.pop(server, None)
        self._http.pop(server, None)

    def _begin(self, loop: asyncio.AbstractEventLoop, number: int, work: Coroutine[Any, Any, None]) -> None:
        """Works on a request, at once as far as it goes without waiting: that saves a turn of the loop for each."""
        if sys.version_info >= (3, 12):
            task = asyncio.Task(work, loop=loop, eager_start=True)
        else:
            task = loop.create_task(work)
        if not task.done():
            self._tasks[number] = task

    async def _serve(
        self, handler: Handler, number: int, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata
    ) -> None:
        try:
            outcome = await handler(signal, body, timeout_s, metadata)
            self._reply(number, outcome)
        except asyncio.CancelledError:
            self._reply(number, _STOPPING)  # unheard, if it was cancelled because nobody waits
            raise
        except Exception as error:
            self._log.error("a request could not be handled", exc_info=error)
            self._reply(number, _BROKEN)
        finally:
            self._tasks.pop(number, None)

    def _reply(self, number: int, outcome: Outcome) -> None:
        details = None if outcome.ok else outcome.grpc_details()
        self._transport.reply(number, outcome.code, outcome.message, outcome.body, details)
        self._flush_soon()

    async def _serve_http(self, requests: HttpRequests, number: int, event: tuple[Any, ...]) -> None:
        _, _, _, method, path, content_type, content_encoding, headers, body, fault = event
        head = Head(method, path, content_type, content_encoding)
        try:
            self._reply_http(number, await requests.answer(head, headers, body, fault))
        except asyncio.CancelledError:
            self._reply_http(number, HTTP_STOPPING)  # unheard, if it was cancelled because nobody waits
            raise
        except Exception as error:
            self._log.error("a request could not be handled", exc_info=error)
            self._reply_http(number, requests.broken())
        finally:
            self._tasks.pop(number, None)

    def _reply_http(self, number: int, answer: Answer) -> None:
        headers = list(answer.headers)
        self._transport.reply_http(number, answer.status, answer.content_type, headers, answer.body, answer.close)
        self._flush_soon()

    # ------------------------------------------------------------------------------------------------ out

    def connect(
        self,
        host: str,
        port: int,
        authority: str,
        gzip: bool,
        answer_max_bytes: int,
        connect_s: float = CONNECT_S,
        age_s: float = AGE_S,
    ) -> int:
        """A channel to an endpoint, shared by all that ask for the same. To be given back by :meth:`disconnect`.

        Args:
            host: a name or address; a path, which begins with a slash, for a Unix socket.
            port: of TCP.
            authority: what the requests say they are for, as ``host:port``.
            gzip: whether requests are compressed.
            answer_max_bytes: longer answers are not read.
            connect_s: how long a connection may take to be made.
            age_s: how old it gets.

        Raises:
            ValueError: that cannot be an endpoint.
        """
        key = (authority, host, port, gzip, connect_s, age_s)
        channel, users = self._channels.get(key, (0, 0))
        if not users:
            where: dict[str, Any] = {"unix": host} if host.startswith("/") else {"host": host, "port": port}
            channel = self._transport.connect(
                authority, gzip=gzip, answer_bytes=answer_max_bytes, connect_s=connect_s, age_s=age_s, **where
            )
        self._channels[key] = channel, users + 1
        return channel

    def connect_http(
        self,
        host: str,
        port: int,
        authority: str,
        path: str,
        headers: Metadata,
        gzip: bool,
        answer_max_bytes: int,
        connect_s: float = CONNECT_S,
        age_s: float = AGE_S,
    ) -> int:
        """The same to POST to over HTTP/1.1.

        Args:
            path: of the requests.
            headers: of every request.

        Raises:
            ValueError: that cannot be an endpoint.
        """
        key = (authority, host, port, gzip, connect_s, age_s, path, headers)
        channel, users = self._channels.get(key, (0, 0))
        if not users:
            where: dict[str, Any] = {"unix": host} if host.startswith("/") else {"host": host, "port": port}
            channel = self._transport.connect_http(
                authority,
                path,
                headers,
                gzip=gzip,
                answer_bytes=answer_max_bytes,
                connect_s=connect_s,
                age_s=age_s,
                **where,
            )
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
        self, channel: int, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata
    ) -> tuple[int, str, bytes, bytes | None, bool]:
        """One call.

        Returns:
            gRPC code, message, answer, the details that came beside a failure, and whether the endpoint said so.

        Raises:
            ValueError: a header that cannot be sent.
        """
        if self._transport.dead:
            return UNAVAILABLE, "the native transport has ended", b"", None, False
        number = self._transport.call(channel, _SIGNALS.index(signal), body, timeout_s, metadata)
        _, _, code, message, answer, details, heard = await self._ended(number)
        return code, message, answer, details, heard

    async def post(self, channel: int, body: bytes, timeout_s: float | None, headers: Metadata) -> HttpAnswer | str:
        """One call over HTTP.

        Args:
            headers: beside the channel's own.

        Returns:
            The answer, or why there is none: ``late``, or a text.

        Raises:
            ValueError: a header that cannot be sent.
        """
        if self._transport.dead:
            return "the native transport has ended"
        event = await self._ended(self._transport.call_http(channel, body, timeout_s, headers))
        return HttpAnswer(*event[2:]) if event[0] == _HTTP_ANSWERED and event[2] is not None else str(event[3])

    async def _ended(self, number: int) -> tuple[Any, ...]:
        """The event that ends a call, which is given up if nobody waits for it any more."""
        future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._flush_soon()
        try:
            return await future
        except asyncio.CancelledError:
            self._calls.pop(number, None)
            self._transport.cancel(number)
            self._flush_soon()
            raise

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
            if kind in (_ANSWERED, _HTTP_ANSWERED):
                future = self._calls.pop(event[1], None)
                if future is not None and not future.done():
                    future.set_result(event)
            elif kind == _REQUEST:
                _, server, number, path, body, timeout_s, metadata = event
                handler = self._handlers.get(server)
                if handler is None:  # closed without having ended in time
                    self._reply(number, _STOPPING)
                    continue
                work = self._serve(handler, number, _SIGNALS[path], body, timeout_s, metadata)
                self._begin(loop, number, work)
            elif kind == _HTTP_REQUEST:
                requests = self._http.get(event[1])
                if requests is None:
                    self._reply_http(event[2], HTTP_STOPPING)
                    continue
                self._begin(loop, event[2], self._serve_http(requests, event[2], event))
            elif kind == _TURNED_AWAY:
                requests = self._http.get(event[1])
                if requests is not None:
                    requests.turned_away(event[2])
            elif kind == _GONE:
                task = self._tasks.pop(event[1], None)
                if task is not None:
                    task.cancel()
            elif kind == _CLOSED:
                closed = self._closed.get(event[1])
                if closed is not None and not closed.done():
                    closed.set_result(None)
            elif kind == _TROUBLE:
                self._log.error(event[1])
                if self._transport.dead:
                    self._fail_calls(event[1])
                    self._lose(event[1])
                    for closed in self._closed.values():
                        if not closed.done():
                            closed.set_result(None)
            elif kind == _DEAF and (event[1] in self._handlers or event[1] in self._http):
                self._lose("a listener of the native transport has ended")

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        self._lost.set()

    def _fail_calls(self, why: str) -> None:
        for number, future in self._calls.items():
            if not future.done():
                future.set_result((_ANSWERED, number, UNAVAILABLE, why, b"", None, False))
        self._calls.clear()
