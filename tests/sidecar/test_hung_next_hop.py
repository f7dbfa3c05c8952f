"""A next hop that hangs hurts nobody while another answers: served sidecars, in both transports.

A hung one takes connections and requests and never says a word, as a stopped process does; that it hangs is not a
matter of time in these tests: it never answers, unless it is told to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward import Forwarder, GrpcForwarder, HttpForwarder
from skewd_sidecar.forward.retry import Balance
from skewd_sidecar.gateway import Signal
from skewd_sidecar.service import Transport
from tests.sidecar import sidecar_lab
from tests.sidecar.raw_http import RawServer, raw_server
from tests.sidecar.sidecar_lab import NATIVE_MISSING, Collector, grpc_collector, http_collector, sidecar
from tests.waiting import LIMIT_S, until

if NATIVE_MISSING is None:
    from skewd_sidecar.forward.grpc_native import NativeGrpcForwarder
    from skewd_sidecar.forward.http_native import NativeHttpForwarder

transport = sidecar_lab.transport

SCHEMES = ["grpc", "http"]
REQUESTS = 160


@asynccontextmanager
async def hung(scheme: str) -> AsyncIterator[Collector]:
    """A next hop that takes everything and answers nothing, until ``hold`` is set."""
    async with grpc_collector() if scheme == "grpc" else http_collector() as behind:
        behind.hold = asyncio.Event()
        try:
            yield behind
        finally:
            behind.hold.set()


def forwarder_of(scheme: str, by: Transport, port: int, **more: Any) -> Forwarder:
    path = Signal.TRACES.http_path if scheme == "http" else ""
    destination = Destination(scheme, False, "127.0.0.1", port, path, **({"timeout_s": LIMIT_S} | more))
    if scheme == "http":
        return NativeHttpForwarder(destination) if by is Transport.NATIVE else HttpForwarder(destination)
    native = by is Transport.NATIVE
    return NativeGrpcForwarder(Signal.TRACES, destination) if native else GrpcForwarder(Signal.TRACES, destination)


def body(number: int) -> bytes:
    """A request that holds its number, in a field that nobody knows."""
    text = b"%d" % number
    return b"\n" + bytes((len(text) + 2,)) + b"\x7a" + bytes((len(text),)) + text


async def posted(session: aiohttp.ClientSession, url: str, number: int) -> int:
    headers = {"Content-Type": "application/x-protobuf"}
    async with session.post(url + "/v1/traces", data=body(number), headers=headers) as response:
        return response.status


@pytest.mark.parametrize("balance", list(Balance))
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_beside_a_next_hop_that_answers_one_that_hangs_fails_no_request(
    scheme: str, balance: Balance, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(int(LIMIT_S * 1000)))
    async with (
        hung(scheme) as first,
        grpc_collector() if scheme == "grpc" else http_collector() as second,
        sidecar(forward=[first.url, second.url], balance=balance, grpc=None, attempt_s=0.2) as running,
        aiohttp.ClientSession() as session,
    ):
        async with asyncio.timeout(LIMIT_S):  # it would be the first's whole time without
            for begin in range(0, REQUESTS, 32):
                numbers = range(begin, begin + 32)
                assert set(await asyncio.gather(*(posted(session, running.http, each) for each in numbers))) == {200}
        taken = b"".join(second.bodies())
        assert all(body(number) in taken for number in range(REQUESTS))
        # Once it answers, it is found by what is sent beside the traffic, and gets its share again.
        assert first.hold is not None
        first.hold.set()
        await until(lambda: b"" in first.bodies(), "a probe")
        before = len([each for each in first.bodies() if each])

        async def shared() -> bool:
            assert await posted(session, running.http, REQUESTS) == 200
            return len([each for each in first.bodies() if each]) > before

        async with asyncio.timeout(LIMIT_S):
            while not await shared():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_next_hop_that_is_alone_has_all_the_time(scheme: str, transport: Transport) -> None:
    async with (
        hung(scheme) as only,
        sidecar(forward=only.url, grpc=None, attempt_s=0.01) as running,
        aiohttp.ClientSession() as session,
    ):
        sending = asyncio.create_task(posted(session, running.http, 1))
        await asyncio.wait_for(only.arrived.wait(), LIMIT_S)
        await asyncio.sleep(0.1)  # ten times what an attempt beside another would have
        assert only.hold is not None
        only.hold.set()
        assert await sending == 200
        assert len(only.bodies()) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_connection_that_is_never_made_is_given_up(scheme: str, transport: Transport) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # with its queue full, the kernel drops what comes: as a host that is gone
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        forwarder = forwarder_of(scheme, transport, full.getsockname()[1], connect_s=0.2)
        try:
            outcome = await asyncio.wait_for(forwarder.send(b"x", LIMIT_S), LIMIT_S / 2)
            assert (outcome.code, outcome.heard) == (14, False)
        finally:
            await forwarder.close()


async def test_a_connection_over_http_has_an_age(transport: Transport) -> None:
    async def taken(server: RawServer, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(taken) as behind:
        for age_s, wanted in ((LIMIT_S * 10, 1), (0.05, 2)):
            before = behind.connections
            forwarder = forwarder_of("http", transport, behind.port, age_s=age_s)
            try:
                for _ in range(5):
                    assert (await forwarder.send(b"x", None)).ok
                if wanted > 1:
                    async with asyncio.timeout(LIMIT_S):
                        while behind.connections - before < wanted:
                            assert (await forwarder.send(b"x", None)).ok
                else:
                    assert behind.connections - before == 1
            finally:
                await forwarder.close()


async def test_a_connection_over_grpc_has_an_age_and_its_end_costs_no_request(transport: Transport) -> None:
    peers: set[str] = set()
    import grpc
    import grpc.aio

    async def taken(request: bytes, context: Any) -> bytes:
        peers.add(context.peer())
        return request

    server = grpc.aio.server()
    service = {"Export": grpc.unary_unary_rpc_method_handler(taken)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(Signal.TRACES.grpc_service, service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    young = forwarder_of("grpc", transport, port, age_s=0.05)
    try:
        async with asyncio.timeout(LIMIT_S):
            while len(peers) < 3:
                outcomes = await asyncio.gather(*(young.send(b"x", None) for _ in range(8)))
                assert all(each.ok for each in outcomes)
    finally:
        await young.close()
        await server.stop(0)
