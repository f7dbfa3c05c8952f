"""A stand-in for the OpenTelemetry Collector: takes OTLP on one address per sidecar mode and keeps it as it came.

A measurement must not be disturbed by its own evaluation, so nothing is parsed here: bodies are kept raw, in order of
arrival, and read when a cell is over. Both of OTLP's protocols are spoken, because a sidecar must forward over both.

Limits: bodies up to ``BODY_MAX``; ``BODIES_MAX_BYTES`` are kept per mode until they are taken, then more is refused
(429 / RESOURCE_EXHAUSTED) rather than dropped. Loopback, unless another host is named; nothing is authenticated.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import grpc
from aiohttp import web

BODY_MAX = 32 << 20
BODIES_MAX_BYTES = 1 << 30
_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_PROTOBUF = "application/x-protobuf"

Protocol = Literal["grpc", "http"]


class Collector:
    """Addresses by mode, bodies by mode."""

    def __init__(self) -> None:
        self._bodies: dict[str, list[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._runners: list[web.AppRunner] = []
        self._servers: list[grpc.aio.Server] = []

    async def __aenter__(self) -> Collector:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(
            *(server.stop(grace=0) for server in self._servers), *(runner.cleanup() for runner in self._runners)
        )

    async def listen(self, mode: str, protocol: Protocol, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Opens one more address; the URL to forward this mode's spans to (``grpc://`` or ``http://``).

        Args:
            host, port: for HTTP, where; port 0 picks one.

        Raises:
            OSError: it can't be listened on.
        """
        self._bodies[mode], self._sizes[mode] = [], 0
        return await (self._listen_http(mode, host, port) if protocol == "http" else self._listen_grpc(mode))

    def take(self, mode: str) -> list[bytes]:
        """Everything that arrived for ``mode`` since the last call."""
        bodies, self._bodies[mode], self._sizes[mode] = self._bodies[mode], [], 0
        return bodies

    def _keep(self, mode: str, body: bytes) -> bool:
        if self._sizes[mode] + len(body) > BODIES_MAX_BYTES:
            return False
        self._bodies[mode].append(body)
        self._sizes[mode] += len(body)
        return True

    async def _listen_http(self, mode: str, host: str, port: int) -> str:
        async def traces(request: web.Request) -> web.Response:
            body = await request.read()  # aiohttp has undone the compression
            if not self._keep(mode, body):
                return web.Response(status=429)
            return web.Response(body=b"", content_type=_PROTOBUF)

        app = web.Application(client_max_size=BODY_MAX)
        app.router.add_post("/v1/traces", traces)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, host, port).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _listen_grpc(self, mode: str) -> str:
        async def export(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            if not self._keep(mode, request):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the collector is full")
            return b""

        handler = grpc.unary_unary_rpc_method_handler(export)  # without serializers: bytes in, bytes out
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", BODY_MAX)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._servers.append(server)
        return f"grpc://127.0.0.1:{port}"
