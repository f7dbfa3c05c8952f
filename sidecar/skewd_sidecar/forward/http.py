"""To an OTLP/HTTP endpoint, protobuf: one attempt, bytes out, bytes back.

What a server says of a request is its status. So once the status line is here, whatever else is wrong with the answer
(a header that is none, a body that is cut, chunks that are none, no end, a coding that does not decode) costs the rest
of the answer and the connection, never the status: a request that was taken would be sent again. aiohttp tells no
status of an answer that it cannot parse; so the connection's bytes are looked at on their way to it, up to the end of
that line. The rest of an answer has ``REST_S`` at most, and half of what the caller still waits.

Limits: answers of ``ANSWER_MAX_BYTES``, longer ones are left out; heads of ``HEAD_MAX_BYTES``; ``CONNECTIONS_MAX``
connections, replaced when they are too old. Requests are compressed on the loop's thread up to ``COMPRESS_HERE_BYTES``,
larger ones on another. The environment's HTTP proxies are not used.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gzip
import random
import re
import time
from typing import TYPE_CHECKING, Any

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.codings import decoded
from skewd_sidecar.forward.renewed import Renewed
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES, limit_s, tls_context
from skewd_sidecar.gateway import Metadata
from skewd_sidecar.outcome import Outcome

if TYPE_CHECKING:
    import aiohttp

CONNECTIONS_MAX = 64
COMPRESS_HERE_BYTES = 32 * 1024
REST_S = 2.0
HEAD_MAX_BYTES = 64 * 1024
_HEADERS_MAX = 256
_LEVEL = 1
_PROTOBUF = "application/x-protobuf"
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] +([0-9]{3})(?: ([^\r\n]*))?\r?\Z")


class StatusSeen:
    """The status of an answer, from the first bytes of it.

    Attributes:
        status: None until it is known; never one that only announces another (RFC 9110, section 15.2).
        reason: the words after it.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.reason = ""
        self._head = bytearray()
        self._over = False

    def feed(self, data: bytes) -> bool:
        """What came next on the connection. Whether the status is known since then."""
        if self._over:
            return False
        self._head += data
        while (end := self._head.find(b"\n")) >= 0:
            found = _STATUS_LINE.match(bytes(self._head[:end]))
            if found is not None and int(found[1]) >= 200:
                self.status, self.reason = int(found[1]), (found[2] or b"").decode(errors="replace")
            elif found is not None and (after := self._head.find(b"\r\n\r\n")) >= 0:
                del self._head[: after + 4]
                continue
            elif found is not None and len(self._head) <= HEAD_MAX_BYTES:
                return False
            self._end()
            return self.status is not None
        if len(self._head) > HEAD_MAX_BYTES:
            self._end()
        return False

    def _end(self) -> None:
        self._over = True
        self._head.clear()


class _Watch:
    """A request under way: what is seen of its answer, and how long that may take."""

    def __init__(self, limit: float) -> None:
        self.limit = asyncio.timeout(limit)
        self.seen = StatusSeen()
        self.over = False

    def feed(self, data: bytes) -> None:
        until_s = self.limit.when()
        if not self.over and self.seen.feed(data) and until_s is not None and not self.limit.expired():
            now_s = asyncio.get_running_loop().time()
            self.limit.reschedule(now_s + min(max(until_s - now_s, 0.0) / 2, REST_S))


_WATCH: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("skewd_http_watch", default=None)


@functools.cache
def _watched_connector() -> type[aiohttp.TCPConnector]:
    """aiohttp's connector, with connections that show what comes to who waits for it."""
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

    class Handler(ResponseHandler):
        watch: _Watch | None = None

        def data_received(self, data: bytes) -> None:
            if self.watch is not None and data:
                self.watch.feed(data)
            super().data_received(data)

    class Connector(aiohttp.TCPConnector):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            made: Any = functools.partial(Handler, loop=asyncio.get_running_loop())
            self._factory = made

        async def connect(self, *args: Any, **more: Any) -> Any:
            connection = await super().connect(*args, **more)
            if isinstance(connection.protocol, Handler):
                connection.protocol.watch = _WATCH.get()
            return connection

    return Connector


class HttpForwarder:
    """One OTLP/HTTP endpoint and signal. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, destination: Destination) -> None:
        import aiohttp
        import yarl

        self._destination = destination
        self._errors = (aiohttp.ClientError, OSError)
        self._unconnected = aiohttp.ServerTimeoutError
        scheme = "https" if destination.secure else "http"
        self._url = yarl.URL(f"{scheme}://{destination.target}{destination.path}", encoded=True)
        self._headers = headers_of(destination)
        self._own = {name.lower() for name in self._headers}
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=destination.connect_s)
        self._sessions = Renewed(
            self._connect, self._disconnect, destination.age_s, asyncio.get_running_loop().time, random.random
        )

    def _connect(self) -> aiohttp.ClientSession:
        import aiohttp

        context = tls_context(self._destination) if self._destination.secure else True
        return aiohttp.ClientSession(
            connector=_watched_connector()(limit=CONNECTIONS_MAX, ssl=context),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=HEAD_MAX_BYTES,
            max_field_size=HEAD_MAX_BYTES,
            max_headers=_HEADERS_MAX,
        )

    async def _disconnect(self, session: aiohttp.ClientSession) -> None:
        await session.close()

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = limit_s(self._destination, timeout_s)
        data = await _compressed(body) if self._destination.gzip else body
        watch = _Watch(limit)
        token = _WATCH.set(watch)
        held = self._sessions.take()
        response: aiohttp.ClientResponse | None = None
        answer = b""
        try:
            async with (
                watch.limit,
                held.thing.post(
                    self._url,
                    data=data,
                    headers=[(name, value) for name, value in metadata if name not in self._own],
                    timeout=self._timeout,
                    allow_redirects=False,
                ) as response,
            ):
                answer = await _read(response)
        except self._unconnected:
            return Outcome.unheard(f"{self._destination}: no connection within {self._destination.connect_s:g} s")
        except TimeoutError:
            if watch.seen.status is None:
                return too_late(self._destination, limit)
        except self._errors as error:
            if watch.seen.status is None:
                return Outcome.unheard(f"{self._destination}: {error or type(error).__name__}")
        finally:
            watch.over = True
            _WATCH.reset(token)
            self._sessions.give_back(held)
        wall_s = time.time()
        if response is None:  # its head cannot be read
            status, reason = watch.seen.status or 0, watch.seen.reason
            return outcome_of(self._destination, status, reason, "", None, None, None, b"", wall_s)
        return outcome_of(
            self._destination,
            response.status,
            # Bytes that are no UTF-8 come as lone surrogates, which neither protocol can pass on.
            (response.reason or "").encode(errors="replace").decode(),
            response.content_type,
            response.headers.get("Content-Encoding"),
            response.headers.get("Retry-After"),
            response.headers.get("Date"),
            answer,
            wall_s,
        )

    async def close(self) -> None:
        await self._sessions.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """An answer's body; nothing of one that is too long."""
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > ANSWER_MAX_BYTES:
            response.close()
            return b""
    return bytes(answer)


async def _compressed(body: bytes) -> bytes:
    if len(body) <= COMPRESS_HERE_BYTES:
        return gzip.compress(body, _LEVEL)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL)  # zlib lets go of the interpreter


def headers_of(destination: Destination) -> dict[str, str]:
    """What every request to a destination says."""
    return {
        "User-Agent": "skewd-sidecar",
        "Accept-Encoding": "identity",
        **dict(destination.headers),
        "Content-Type": _PROTOBUF,
        **({"Content-Encoding": "gzip"} if destination.gzip else {}),
    }


def outcome_of(
    destination: Destination,
    status: int,
    reason: str,
    content_type: str,
    content_encoding: str | None,
    retry_after: str | None,
    date: str | None,
    answer: bytes,
    wall_s: float,
) -> Outcome:
    """What an answer means.

    Args:
        content_type: without parameters.
        content_encoding, retry_after, date: the headers of these names.
        answer: its body; empty where it could not be read.
        wall_s: this host's wall clock, in Unix time: what a date without another beside it is compared with.
    """
    said = decoded(answer, content_encoding, ANSWER_MAX_BYTES) if content_type == _PROTOBUF else None
    if 200 <= status < 300:
        return Outcome.delivered(said or b"")
    return Outcome.failed_over_http(
        status, f"{destination}: HTTP {status} {reason}".rstrip(), said or None, retry_after, date, wall_s
    )


def too_late(destination: Destination, limit_s: float) -> Outcome:
    """There was no answer in time."""
    return Outcome.unheard(f"{destination}: no answer within {limit_s:g} s")
