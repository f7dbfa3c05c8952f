"""OTLP over HTTP, protobuf or JSON, in bytes.

Decompression is done here rather than by the server: a gzip stream that ends early must be noticed (its last bytes
are a checksum), since what came until then can by chance be a valid request with fewer spans, and the limit must hold
for what comes *out*. JSON becomes the protobuf that says the same, and its answers become JSON. Answers to refusals
carry a ``google.rpc.Status``, as OTLP/HTTP asks, with a text that says what to change.

A client can be slow, silent or many. So the head of a request, and the pause between two, has ``IDLE_S``; a body
``READ_S``; bodies that are arriving or being converted share ``BYTES_MAX``; and there are ``CONCURRENT_MAX`` requests
and ``CONNECTIONS_MAX`` connections. Whoever comes beyond that is told to try again, and when.

Compression: gzip, which the specification asks for, and deflate and zlib, which cost nothing more. zstd, snappy and
lz4, which some exporters offer, need libraries that Python (before 3.14) has not; they are refused with what to set.

Limits: a body of ``body_max_bytes`` before and after decompression, ``GZIP_MEMBERS_MAX`` members in a gzip stream. JSON
bodies beyond ``JSON_INLINE_BYTES`` are converted in a thread, one at a time, so that the loop turns meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from skewd.quiet import QuietLog
from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import BODY_MAX_BYTES, Metadata, Signal
from skewd_sidecar.outcome import (
    BUSY_RETRY_AFTER_S,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Outcome,
)
from skewd_sidecar.patch import MalformedRequest
from skewd_sidecar.receive.listen import BACKLOG, UNIX, Address, UnixSocketFile, bind_tcp, bind_unix, name_of
from skewd_sidecar.receive.metadata import MetadataPicker, MetadataRefused
from skewd_sidecar.receive.tls import ServerTls
from skewd_sidecar.relay import REQUESTS_MAX, Handler
from skewd_sidecar.rpc_status import write_retry_after

CONCURRENT_MAX = 4 * REQUESTS_MAX
BYTES_MAX = 64 * 1024 * 1024
CONNECTIONS_MAX = 1024
READ_S = 30.0
IDLE_S = 75.0
"""Longer than exporters pause: metrics are sent every 60 s by default."""
JSON_INLINE_BYTES = 32 * 1024
GZIP_MEMBERS_MAX = 64
SETTING = "--http or [sidecar] http"

_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_SIGNALS = {signal.http_path: signal for signal in Signal}
_ENCODINGS = ("gzip", "deflate", "zlib", "identity", "")
_FORCE_S = 0.25
_TOO_MANY_CONNECTIONS = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

log = QuietLog(__name__)


class _Refused(Exception):
    """The request is answered without looking at what it holds; ``reason`` is the word that it is counted under."""

    def __init__(self, http_status: int, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.http_status, self.code, self.reason, self.message = http_status, code, reason, message


class _ServerLog(logging.Logger):
    """What aiohttp would say with a stack trace each time: what is no HTTP, and what should not happen."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(__name__)
        self._counts = counts

    def debug(self, msg: object, *args: object, **more: Any) -> None:
        self._counts.refused["not_http"] += 1  # another protocol altogether, as TLS

    def exception(self, msg: object, *args: object, exc_info: Any = None, **more: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self._counts.refused["not_http"] += 1
            log.warning("what arrived is not HTTP", setting=SETTING, why=str(exc_info.message)[:200])
        else:
            log.warning("a request failed unexpectedly", why=repr(exc_info)[:200], exc_info=True)


class _Server(web.Server):
    """With a limit on connections."""

    counts: Counts
    connections_max: int

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self.connections_max:
            self.counts.refused["connections"] += 1
            log.warning("too many connections, new ones are told to try again", connections=self.connections_max)
            transport.write(_TOO_MANY_CONNECTIONS)
            handler.force_close()


class HttpReceiver:
    """Listens for export requests and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, handler: Handler, body_max_bytes: int, metadata: Iterable[str], counts: Counts) -> None:
        self._handler = handler
        self._body_max = body_max_bytes
        self._picker = MetadataPicker(metadata)
        self._counts = counts
        self._active = 0
        self._held = 0  # bytes of bodies that are still arriving, or being converted
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._file: UnixSocketFile | None = None
        self._converter: ThreadPoolExecutor | None = None
        server = _Server(
            self._answer, access_log=None, auto_decompress=False, keepalive_timeout=IDLE_S, logger=_ServerLog(counts)
        )
        server.counts, server.connections_max = counts, CONNECTIONS_MAX
        self._runner = web.ServerRunner(server, shutdown_timeout=_FORCE_S)
        self._site: web.SockSite | None = None
        self.address: Address = ("", 0)

    @classmethod
    async def open(
        cls,
        listen: str,
        handler: Handler,
        *,
        body_max_bytes: int = BODY_MAX_BYTES,
        metadata: Iterable[str] = (),
        tls: ServerTls | None = None,
        counts: Counts | None = None,
    ) -> HttpReceiver:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            handler: what answers.
            body_max_bytes: the largest body, before and after decompression.
            metadata: the names, in lower case, of headers that are handed on.
            tls: the certificates; None for none.
            counts: where to count.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
            TlsError: the certificates changed since they were checked, and can no longer be used.
        """
        context = tls.http_context() if tls is not None else None
        file = UnixSocketFile(listen, SETTING) if listen.startswith(UNIX) else None
        bound = bind_unix(file, SETTING) if file is not None else bind_tcp(listen, SETTING)
        receiver = cls(handler, body_max_bytes, metadata, counts if counts is not None else Counts())
        receiver._file = file
        receiver.address = file.path if file is not None else name_of(bound)
        await receiver._runner.setup()
        receiver._site = web.SockSite(receiver._runner, bound, backlog=BACKLOG, ssl_context=context)
        await receiver._site.start()
        return receiver

    async def close(self, grace_s: float) -> None:
        """Takes no more connections, lets requests under way finish within ``grace_s``, and frees the address."""
        self._closing = True
        if self._site is not None:
            await self._site.stop()
        if self._file is not None:
            self._file.remove()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            await self._runner.cleanup()
            if self._converter is not None:
                self._converter.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._closing or self._active >= CONCURRENT_MAX:
            why = "is shutting down" if self._closing else "has too many requests under way"
            reason = "stopping" if self._closing else "busy"
            return self._refusal(request, _Refused(503, UNAVAILABLE, reason, f"the sidecar {why}; try again"))
        self._active += 1
        self._idle.clear()
        try:
            signal, is_json, encoding = self._check(request)
            metadata = self._metadata(request)
            if is_json:
                return await self._answer_json(signal, encoding, request, metadata)
            body = await self._body(request)
            since_s = None
            if encoding:
                since_s = time.perf_counter()
                body = self._decompressed(encoding, body)
            self._received("protobuf", body)
            outcome = await self._handler(signal, body, None, metadata, since_s=since_s)
        except _Refused as refused:
            return self._refusal(request, refused)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()
        return _response(outcome, None)

    async def _answer_json(
        self, signal: Signal, encoding: str, request: web.BaseRequest, metadata: Metadata
    ) -> web.StreamResponse:
        text = await self._body(request)
        since_s = time.perf_counter()
        if encoding:
            text = self._decompressed(encoding, text)
        size = len(text)
        if self._held + size > BYTES_MAX and self._held:
            raise self._too_many_bytes()
        self._held += size
        try:
            body = await self._convert(signal, text)
        except MalformedRequest as error:
            raise _Refused(400, INVALID_ARGUMENT, "malformed", str(error)) from None
        finally:
            self._held -= size
        if len(body) > self._body_max:
            raise self._too_large()
        self._received("json", body)
        return _response(await self._handler(signal, body, None, metadata, since_s=since_s), signal)

    async def _convert(self, signal: Signal, text: bytes) -> bytes:
        """
        Raises:
            MalformedRequest: it is not OTLP/JSON.
        """
        # Loaded by the first request in JSON: the message classes are the largest part of a sidecar otherwise.
        from skewd_sidecar.receive.otlp_json import to_protobuf

        if len(text) <= JSON_INLINE_BYTES:
            return to_protobuf(signal, text)
        if self._converter is None:
            self._converter = ThreadPoolExecutor(1, "otlp-json")
        return await asyncio.get_running_loop().run_in_executor(self._converter, to_protobuf, signal, text)

    def _received(self, encoding: str, body: bytes) -> None:
        self._counts.received["http", encoding] += 1
        self._counts.received_bytes["http"] += len(body)

    def _check(self, request: web.BaseRequest) -> tuple[Signal, bool, str]:
        """What the head of the request says: the signal, whether it is JSON, and how it is compressed (empty: not).

        Raises:
            _Refused: what can be refused by the head alone.
        """
        signal = _SIGNALS.get(request.path)
        if signal is None:
            where = f"nothing is at {request.path[:100]}; POST to {', '.join(_SIGNALS)}"
            raise _Refused(404, UNIMPLEMENTED, "path", where)
        if request.method != "POST":
            what = f"{request.method} is not for {request.path}; POST an export request"
            raise _Refused(405, UNIMPLEMENTED, "path", what)
        headers = request.headers
        # Nearly all say just this; the rest is for a parser.
        is_json = headers.get("Content-Type") != _PROTOBUF and request.content_type != _PROTOBUF
        if is_json and request.content_type != _JSON:
            given = headers.get("Content-Type", "missing")[:100]
            raise _Refused(
                415,
                INVALID_ARGUMENT,
                "content_type",
                f"the content type is {given}; send {_PROTOBUF} or {_JSON}",
            )
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise _Refused(
                415,
                INVALID_ARGUMENT,
                "content_encoding",
                f"the content encoding is {encoding[:100]}; set the exporter's compression to gzip or none",
            )
        if (request.content_length or 0) > self._body_max:
            raise self._too_large()
        return signal, is_json, "" if encoding == "identity" else encoding

    def _metadata(self, request: web.BaseRequest) -> Metadata:
        try:
            return self._picker.of_http(request.headers)
        except MetadataRefused as error:
            raise _Refused(431, INVALID_ARGUMENT, "metadata", str(error)) from None

    async def _body(self, request: web.BaseRequest) -> bytes:
        """
        Raises:
            _Refused: it is too large, too slow, or cut short.
        """
        content = request.content
        if content.is_eof():  # as usual, it came together with its head
            try:
                body = content.read_nowait()
            except (aiohttp.ClientError, web.RequestPayloadError, OSError):
                raise self._cut_short() from None
            if len(body) > self._body_max:
                raise self._too_large()
            return body
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks = []
        size = 0
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in content.iter_any():
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > self._body_max:
                        raise self._too_large()
                    if self._held > BYTES_MAX and self._held > size:
                        raise self._too_many_bytes()
                    chunks.append(chunk)
        except TimeoutError:
            why = f"the body did not arrive within {READ_S:g} s; try again"
            raise _Refused(503, UNAVAILABLE, "slow", why) from None
        except (aiohttp.ClientError, web.RequestPayloadError, OSError):
            raise self._cut_short() from None
        finally:
            self._held -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _decompressed(self, encoding: str, body: bytes) -> bytes:
        """
        Raises:
            _Refused: it is too large, or not what was announced.
        """
        return self._gunzip(body) if encoding == "gzip" else self._inflate(body)

    def _gunzip(self, body: bytes) -> bytes:
        """All members of a gzip stream, each complete, together within the limit."""
        members: list[bytes] = []
        left = self._body_max
        try:
            while body:
                if len(members) >= GZIP_MEMBERS_MAX:
                    why = f"its gzip stream has more than {GZIP_MEMBERS_MAX} members; compress it as one"
                    raise _Refused(400, INVALID_ARGUMENT, "malformed", f"malformed body: {why}")
                member = zlib.decompressobj(wbits=31)
                content = member.decompress(body, left + 1)
                left -= len(content)
                if left < 0:
                    raise self._too_large()
                if not member.eof:
                    why = "malformed body: its gzip stream is cut short"
                    raise _Refused(400, INVALID_ARGUMENT, "malformed", why)
                members.append(content)
                body = member.unused_data
        except zlib.error as error:
            raise _Refused(
                400, INVALID_ARGUMENT, "malformed", f"malformed body: not gzip as announced: {error}"
            ) from None
        return members[0] if len(members) == 1 else b"".join(members)

    def _inflate(self, body: bytes) -> bytes:
        """A deflate stream, in the zlib format that HTTP means by it or, as some send it, without."""
        framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        stream = zlib.decompressobj(wbits=15 if framed else -15)
        try:
            content = stream.decompress(body, self._body_max + 1)
        except zlib.error as error:
            raise _Refused(
                400, INVALID_ARGUMENT, "malformed", f"malformed body: not deflate as announced: {error}"
            ) from None
        if len(content) > self._body_max:
            raise self._too_large()
        if not stream.eof or stream.unused_data:
            why = "malformed body: its deflate stream is cut short, or followed by something else"
            raise _Refused(400, INVALID_ARGUMENT, "malformed", why)
        return content

    def _too_large(self) -> _Refused:
        why = f"the body is larger than {self._body_max} bytes; send less at once, or raise [sidecar] max_request_bytes"
        return _Refused(413, RESOURCE_EXHAUSTED, "too_large", why)

    @staticmethod
    def _too_many_bytes() -> _Refused:
        return _Refused(503, UNAVAILABLE, "busy", "the sidecar has too many bytes under way; try again")

    @staticmethod
    def _cut_short() -> _Refused:
        return _Refused(400, INVALID_ARGUMENT, "cut_short", "the connection ended before the body did")

    def _refusal(self, request: web.BaseRequest, refused: _Refused) -> web.Response:
        self._counts.refused[refused.reason] += 1
        delay_s = BUSY_RETRY_AFTER_S if refused.http_status == 503 else None
        outcome = Outcome(refused.code, refused.http_status, refused.message, b"", None, delay_s)
        if request.content_type == _JSON:
            response = web.Response(status=outcome.http_status, text=outcome.status_json(), content_type=_JSON)
        else:
            response = web.Response(status=outcome.http_status, body=outcome.status_body(), content_type=_PROTOBUF)
        if delay_s is not None:
            response.headers["Retry-After"] = write_retry_after(delay_s)
        if refused.http_status == 405:
            response.headers["Allow"] = "POST"
        if self._closing:
            response.force_close()
        return response


def _response(outcome: Outcome, json_of: Signal | None) -> web.Response:
    """The answer as protobuf or, for a request in JSON of some signal, as JSON."""
    if outcome.ok:
        if json_of is None:
            return web.Response(body=outcome.body, content_type=_PROTOBUF)
        from skewd_sidecar.receive.otlp_json import answer_to_json

        return web.Response(text=answer_to_json(json_of, outcome.body), content_type=_JSON)
    delay_s = outcome.retry_after_s
    headers = {"Retry-After": write_retry_after(delay_s)} if delay_s is not None else None
    if json_of is not None:
        return web.Response(status=outcome.http_status, text=outcome.status_json(), content_type=_JSON, headers=headers)
    return web.Response(status=outcome.http_status, body=outcome.status_body(), content_type=_PROTOBUF, headers=headers)
