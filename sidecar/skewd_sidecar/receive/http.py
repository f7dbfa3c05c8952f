"""OTLP over HTTP, protobuf or JSON, in bytes, by aiohttp: what speaks TLS, and whatever the native transport does not.

What is asked of a request, and how it is answered, is :mod:`skewd_sidecar.receive.http_rules`; here it is read, within
the limits that stand there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from skewd.quiet import QuietLog
from skewd_sidecar.budget import Budget
from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import BODY_MAX_BYTES
from skewd_sidecar.handler import Handler
from skewd_sidecar.patch import ELEMENTS_MAX
from skewd_sidecar.receive.http_rules import (
    BYTES_MAX,
    CONNECTIONS_MAX,
    IDLE_S,
    READ_S,
    SETTING,
    Head,
    HttpRules,
    cut_short,
    too_many_bytes,
    too_slow,
)
from skewd_sidecar.receive.listen import BACKLOG, UNIX, Address, UnixSocketFile, bind_tcp, bind_unix, name_of
from skewd_sidecar.receive.metadata import MetadataPicker
from skewd_sidecar.receive.tls import ServerTls

_FORCE_S = 0.25
_TOO_MANY_CONNECTIONS = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

log = QuietLog(__name__)


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

    def __init__(self, rules: HttpRules) -> None:
        self._rules = rules
        self._file: UnixSocketFile | None = None
        server = _Server(
            self._answer,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_S,
            logger=_ServerLog(rules.counts),
        )
        server.counts, server.connections_max = rules.counts, CONNECTIONS_MAX
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
        budget: Budget | None = None,
        values_max: int = ELEMENTS_MAX,
    ) -> HttpReceiver:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            handler: what answers.
            body_max_bytes: the largest body, before and after decompression.
            metadata: the names, in lower case, of headers that are handed on.
            tls: the certificates; None for none.
            counts: where to count.
            budget: what conversions are charged to; None for one of their own.
            values_max: values in one JSON body.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
            TlsError: the certificates changed since they were checked, and can no longer be used.
        """
        context = tls.http_context() if tls is not None else None
        file = UnixSocketFile(listen, SETTING) if listen.startswith(UNIX) else None
        bound = bind_unix(file, SETTING) if file is not None else bind_tcp(listen, SETTING)
        counts = counts if counts is not None else Counts()
        receiver = cls(HttpRules(handler, body_max_bytes, MetadataPicker(metadata), counts, budget, values_max))
        receiver._file = file
        receiver.address = file.path if file is not None else name_of(bound)
        await receiver._runner.setup()
        receiver._site = web.SockSite(receiver._runner, bound, backlog=BACKLOG, ssl_context=context)
        await receiver._site.start()
        return receiver

    async def close(self, grace_s: float) -> None:
        """Takes no more connections, lets requests under way finish within ``grace_s``, and frees the address."""
        self._rules.closing = True
        if self._site is not None:
            await self._site.stop()
        if self._file is not None:
            self._file.remove()
        try:
            async with asyncio.timeout(grace_s):
                await self._rules.idle.wait()
        except TimeoutError:
            pass
        finally:
            await self._runner.cleanup()
            self._rules.end()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        head = Head(
            request.method,
            request.path,
            headers.get("Content-Type"),
            headers.get("Content-Encoding"),
            request.content_length or 0,
        )
        picked = [(name, value) for name in self._rules.picker.names for value in headers.getall(name, ())]
        answer = await self._rules.answer(head, picked, lambda: self._body(request))
        response = web.Response(
            status=answer.status,
            body=answer.body,
            headers=[("Content-Type", answer.content_type), *answer.headers],
        )
        if answer.close:
            response.force_close()
        return response

    async def _body(self, request: web.BaseRequest) -> bytes:
        """
        Raises:
            Refused: it is too large, too slow, or cut short.
        """
        rules = self._rules
        content = request.content
        if content.is_eof():  # as usual, it came together with its head
            try:
                body = content.read_nowait()
            except (aiohttp.ClientError, web.RequestPayloadError, OSError):
                raise cut_short() from None
            if len(body) > rules.body_max_bytes:
                raise rules.too_large()
            return body
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunks = []
        size = 0
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in content.iter_any():
                    size += len(chunk)
                    rules.held_bytes += len(chunk)
                    if size > rules.body_max_bytes:
                        raise rules.too_large()
                    if rules.held_bytes > BYTES_MAX and rules.held_bytes > size:
                        raise too_many_bytes()
                    chunks.append(chunk)
        except TimeoutError:
            raise too_slow(READ_S) from None
        except (aiohttp.ClientError, web.RequestPayloadError, OSError):
            raise cut_short() from None
        finally:
            rules.held_bytes -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
