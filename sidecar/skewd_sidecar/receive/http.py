"""OTLP over HTTP, protobuf, in bytes.

Decompression is done here rather than by the server: a gzip stream that ends early must be noticed (its last bytes
are a checksum), since what came until then can by chance be a valid request with fewer spans, and the limit must hold
for what comes *out*. Answers to refusals carry a ``google.rpc.Status``, as OTLP/HTTP asks, with a text that says
what to change.

Limits: a body of ``BODY_MAX_BYTES`` before and after decompression, ``READ_S`` to send it, ``CONCURRENT_MAX``
requests and ``BYTES_MAX`` bytes of bodies at once. JSON is refused with a hint.
"""

from __future__ import annotations

import asyncio
import json
import zlib

import aiohttp
from aiohttp import web

from skewd_sidecar.gateway import BODY_MAX_BYTES, Signal
from skewd_sidecar.outcome import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Outcome,
    encode_status,
)
from skewd_sidecar.receive.listen import BACKLOG, bind_tcp, name_of
from skewd_sidecar.relay import BYTES_MAX, REQUESTS_MAX, Handler
from skewd_sidecar.rpc_status import write_retry_after

CONCURRENT_MAX = 4 * REQUESTS_MAX
READ_S = 30.0
SETTING = "--http or [sidecar] http"

_PROTOBUF = "application/x-protobuf"
_SIGNALS = {signal.http_path: signal for signal in Signal}
_FORCE_S = 0.25


class _Refused(Exception):
    """The request is answered without looking at what it holds."""

    def __init__(self, http_status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.http_status, self.code, self.message = http_status, code, message


class HttpReceiver:
    """Listens for export requests and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, handler: Handler, body_max_bytes: int) -> None:
        self._handler = handler
        self._body_max = body_max_bytes
        self._active = 0
        self._held = 0  # bytes of bodies that are still arriving
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        server = web.Server(self._answer, access_log=None, auto_decompress=False)
        self._runner = web.ServerRunner(server, shutdown_timeout=_FORCE_S)
        self._site: web.SockSite | None = None
        self.address = ("", 0)

    @classmethod
    async def open(cls, listen: str, handler: Handler, *, body_max_bytes: int = BODY_MAX_BYTES) -> HttpReceiver:
        """Listens on ``host:port`` (port 0 picks one).

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp`.
        """
        bound = bind_tcp(listen, SETTING)
        receiver = cls(handler, body_max_bytes)
        receiver.address = name_of(bound)
        await receiver._runner.setup()
        receiver._site = web.SockSite(receiver._runner, bound, backlog=BACKLOG)
        await receiver._site.start()
        return receiver

    async def close(self, grace_s: float) -> None:
        """Takes no more connections, lets requests under way finish within ``grace_s``, and frees the port."""
        self._closing = True
        if self._site is not None:
            await self._site.stop()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._closing or self._active >= CONCURRENT_MAX:
            why = "is shutting down" if self._closing else "has too many requests under way"
            return self._refusal(request, _Refused(503, UNAVAILABLE, f"the sidecar {why}; try again"))
        self._active += 1
        self._idle.clear()
        try:
            signal = self._check(request)
            outcome = await self._handler(signal, await self._body(request), None)
        except _Refused as refused:
            return self._refusal(request, refused)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()
        return _response(outcome)

    def _check(self, request: web.BaseRequest) -> Signal:
        """What can be said from the head of the request alone."""
        signal = _SIGNALS.get(request.path)
        if signal is None:
            raise _Refused(404, UNIMPLEMENTED, f"nothing is at {request.path[:100]}; POST to {', '.join(_SIGNALS)}")
        if request.method != "POST":
            raise _Refused(405, UNIMPLEMENTED, f"{request.method} is not for {request.path}; POST an export request")
        if request.content_type != _PROTOBUF:
            hint = "; OTLP/JSON is not taken, set the exporter's protocol to http/protobuf" if _is_json(request) else ""
            raise _Refused(
                415,
                INVALID_ARGUMENT,
                f"the content type is {request.headers.get('Content-Type', 'missing')[:100]}, not {_PROTOBUF}{hint}",
            )
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("gzip", "identity", ""):
            raise _Refused(415, INVALID_ARGUMENT, f"the content encoding is {encoding[:100]}; send gzip or none")
        if (request.content_length or 0) > self._body_max:
            raise self._too_large()
        return signal

    async def _body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks = []
        size = 0
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in request.content.iter_any():
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > self._body_max:
                        raise self._too_large()
                    if self._held > BYTES_MAX and self._held > size:
                        raise _Refused(503, UNAVAILABLE, "the sidecar has too many bytes under way; try again")
                    chunks.append(chunk)
        except TimeoutError:
            raise _Refused(408, UNAVAILABLE, f"the body did not arrive within {READ_S:g} s") from None
        except (aiohttp.ClientError, web.RequestPayloadError, OSError):
            raise _Refused(400, INVALID_ARGUMENT, "the connection ended before the body did") from None
        finally:
            self._held -= size
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if request.headers.get("Content-Encoding", "").strip().lower() == "gzip":
            return self._gunzip(body)
        return body

    def _gunzip(self, body: bytes) -> bytes:
        """All members of a gzip stream, each complete, together within the limit."""
        members = []
        left = self._body_max
        try:
            while body:
                member = zlib.decompressobj(wbits=31)
                content = member.decompress(body, left + 1)
                left -= len(content)
                if left < 0:
                    raise self._too_large()
                if not member.eof:
                    raise _Refused(400, INVALID_ARGUMENT, "malformed body: its gzip stream is cut short")
                members.append(content)
                body = member.unused_data
        except zlib.error as error:
            raise _Refused(400, INVALID_ARGUMENT, f"malformed body: not gzip as announced: {error}") from None
        return members[0] if len(members) == 1 else b"".join(members)

    def _too_large(self) -> _Refused:
        return _Refused(413, RESOURCE_EXHAUSTED, f"the body is larger than {self._body_max} bytes; send less at once")

    def _refusal(self, request: web.BaseRequest, refused: _Refused) -> web.Response:
        if _is_json(request):
            text = json.dumps({"code": refused.code, "message": refused.message})
            response = web.Response(status=refused.http_status, text=text, content_type="application/json")
        else:
            body = encode_status(refused.code, refused.message)
            response = web.Response(status=refused.http_status, body=body, content_type=_PROTOBUF)
        if refused.http_status == 405:
            response.headers["Allow"] = "POST"
        if self._closing:
            response.force_close()
        return response


def _is_json(request: web.BaseRequest) -> bool:
    return request.content_type == "application/json"


def _response(outcome: Outcome) -> web.Response:
    if outcome.ok:
        return web.Response(body=outcome.body, content_type=_PROTOBUF)
    headers = {"Retry-After": write_retry_after(outcome.retry_after_s)} if outcome.retry_after_s is not None else None
    return web.Response(status=outcome.http_status, body=outcome.status_body(), content_type=_PROTOBUF, headers=headers)
