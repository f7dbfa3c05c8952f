"""A sidecar between real exporters and a collector that remembers what it was sent, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest
from aiohttp import web

from skewd_sidecar.gateway import Signal
from skewd_sidecar.service import SidecarSettings, StaticSource, Transport, serve
from skewd_sidecar.transport import missing
from tests.waiting import LIMIT_S

NATIVE_MISSING = missing()
needs_native = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))
TRANSPORTS = [pytest.param(Transport.NATIVE, marks=needs_native), Transport.PYTHON]


@dataclass
class Chosen:
    """Who speaks gRPC in the sidecars that are started: see the fixture ``transport``."""

    transport: Transport = Transport.AUTO


chosen = Chosen()


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """Runs a test with each transport, in the sidecars that :func:`sidecar` starts."""
    monkeypatch.setattr(chosen, "transport", request.param)
    assert isinstance(request.param, Transport)
    return request.param


@dataclass
class Received:
    """One request as a collector got it."""

    signal: Signal
    body: bytes
    metadata: dict[str, str]


@dataclass
class Collector:
    """What both test collectors are.

    ``fail_grpc``/``fail_http`` make the answer a failure, ``refuse`` makes it one for some bodies (over gRPC); ``hold``
    makes requests wait until it is set.
    """

    requests: list[Received] = field(default_factory=list)
    answer: bytes = b""
    refuse: Callable[[bytes], tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]] | None] | None = None
    fail_grpc: tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]] | None = None
    fail_http: Callable[[], web.Response] | None = None
    hold: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    def bodies(self, signal: Signal = Signal.TRACES) -> list[bytes]:
        return [each.body for each in self.requests if each.signal is signal]

    async def take(self, received: Received) -> None:
        self.requests.append(received)
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()


@contextlib.asynccontextmanager
async def grpc_collector(
    port: int = 0, credentials: grpc.ServerCredentials | None = None, max_bytes: int = -1
) -> AsyncIterator[Collector]:
    collector = Collector()

    def export(signal: Signal) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            await collector.take(Received(signal, request, metadata))
            refusal = collector.refuse(request) if collector.refuse is not None else None
            if refusal is not None:
                await context.abort(*refusal)
            if collector.fail_grpc is not None:
                await context.abort(*collector.fail_grpc)
            return collector.answer

        return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_bytes)])
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(s.grpc_service, {"Export": export(s)}) for s in Signal)
    )
    where = f"127.0.0.1:{port}"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    await server.start()
    collector.url = f"grpc{'s' if credentials else ''}://localhost:{port}"
    try:
        yield collector
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def http_collector(port: int = 0, ssl: Any = None, max_bytes: int = 64 * 1024 * 1024) -> AsyncIterator[Collector]:
    collector = Collector()

    async def handle(request: web.BaseRequest) -> web.Response:
        signal = Signal(request.path.rpartition("/")[2])
        headers = {key.lower(): value for key, value in request.headers.items()}
        body = await request.read()  # refused with 413 if it is larger than client_max_size
        await collector.take(Received(signal, body, headers))
        if collector.fail_http is not None:
            return collector.fail_http()
        return web.Response(body=collector.answer, content_type="application/x-protobuf")

    app = web.Application(client_max_size=max_bytes)
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=ssl)
    await site.start()
    collector.url = f"http{'s' if ssl else ''}://localhost:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


class Addresses(Protocol):
    """Where a sidecar listens: ``host:port`` of gRPC, and the URL of HTTP."""

    @property
    def grpc(self) -> str: ...

    @property
    def http(self) -> str: ...


@dataclass
class Running:
    """A sidecar that serves."""

    addresses: dict[str, str | None]
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def grpc(self) -> str:
        return str(self.addresses["grpc"])

    @property
    def http(self) -> str:
        return f"http://{self.addresses['http']}"


def settings(**more: Any) -> SidecarSettings:
    """A sidecar on free ports of both protocols, whose node is 3 ms off (known within 50 us)."""
    given: dict[str, Any] = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "source": StaticSource("node-a", -3_000_000, 50_000),
        "transport": chosen.transport,
    }
    return SidecarSettings(**(given | more))


@contextlib.asynccontextmanager
async def sidecar(**more: Any) -> AsyncIterator[Running]:
    """A served sidecar; stopped, and waited for, at the end."""
    ready: asyncio.Future[dict[str, str | None]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings(**more), ready.set_result, stop))
    try:
        both: list[asyncio.Future[Any]] = [task, ready]
        await asyncio.wait(both, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield Running(await ready, stop, task)
    finally:
        stop.set()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait({task})
    task.result()


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody listens on while this lasts (bound, so that nobody is given it)."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
