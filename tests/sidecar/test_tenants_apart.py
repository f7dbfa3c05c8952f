"""One tenant's throttling is no other's, whatever speaks: a served sidecar before a next hop that knows its tenants."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from skewd_sidecar.gateway import Signal
from skewd_sidecar.service import Transport
from tests.sidecar import sidecar_lab
from tests.sidecar.raw_http import RawServer, raw_server
from tests.sidecar.sidecar_lab import free_port, grpc_collector, sidecar
from tests.waiting import LIMIT_S

transport = sidecar_lab.transport

BODY = b"\n\x00"
LOUD, QUIET = "loud-secret", "quiet-secret"
NAMES = ("authorization", "x-scope-orgid")


async def posted(session: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str | None]:
    """An export over HTTP: status, and how long to stay away."""
    given = {"Content-Type": "application/x-protobuf"} | {name.replace("_", "-"): headers[name] for name in headers}
    async with session.post(url + "/v1/traces", data=BODY, headers=given) as response:
        return response.status, response.headers.get("Retry-After")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("hint", [b"Retry-After: 20\r\n", b""], ids=["with a hint", "without"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_tenant_that_is_told_to_wait_over_http_waits_alone(
    status: int, hint: bytes, name: str, transport: Transport
) -> None:
    async def answer(server: RawServer, writer: asyncio.StreamWriter) -> None:
        loud = LOUD.encode() in server.heads[-1]
        said = b"HTTP/1.1 %d Slowly\r\n%s" % (status, hint) if loud else b"HTTP/1.1 200 OK\r\n"
        writer.write(said + b"Content-Length: 0\r\n\r\n")

    async with (
        raw_server(answer) as behind,
        sidecar(forward=behind.url, grpc=None, metadata=NAMES, retry_s=0.0) as running,
        aiohttp.ClientSession() as session,
    ):
        with structlog.testing.capture_logs() as lines:
            refused = [await posted(session, running.http, **{name: LOUD}) for _ in range(3)]
            taken = [await posted(session, running.http, **{name: QUIET}) for _ in range(3)]
            taken.append(await posted(session, running.http))
        assert [each[0] for each in refused] == [status] * 3
        assert [each[0] for each in taken] == [200] * 4
        sent = [LOUD.encode() in head for head in behind.heads]
        assert sent.count(False) == 4
        if hint:
            assert sent.count(True) == 1, "it asked for 20 s, and gets it"
            assert all(0 < int(each[1] or 0) <= 20 for each in refused)
        told = repr(lines)
        assert "a next hop takes nothing" in told
        assert LOUD not in told
        assert QUIET not in told


async def test_a_tenant_that_is_told_to_wait_over_grpc_waits_alone(transport: Transport) -> None:
    told = Status(code=14, message="slowly")
    told.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=20)))
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, http=None, metadata=NAMES) as running,
        grpc.aio.insecure_channel(running.grpc) as channel,
    ):
        call: Any = channel.unary_unary(f"/{Signal.TRACES.grpc_service}/Export", None, None)
        details = (("grpc-status-details-bin", told.SerializeToString()),)
        behind.fail_grpc = (grpc.StatusCode.UNAVAILABLE, "slowly", details)
        with pytest.raises(grpc.aio.AioRpcError, match="slowly"):
            await call(BODY, timeout=LIMIT_S, metadata=(("x-scope-orgid", LOUD),))
        behind.fail_grpc = None
        with pytest.raises(grpc.aio.AioRpcError, match="slowly"):
            await call(BODY, timeout=LIMIT_S, metadata=(("x-scope-orgid", LOUD),))
        assert len(behind.requests) == 1
        for tenant in ((("x-scope-orgid", QUIET),), ()):
            assert await call(BODY, timeout=LIMIT_S, metadata=tenant) == b""
        assert [each.metadata.get("x-scope-orgid") for each in behind.requests] == [LOUD, QUIET, None]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_next_hop_that_nobody_reaches_is_away_for_all_tenants(scheme: str, transport: Transport) -> None:
    with free_port() as port:
        async with (
            sidecar(forward=f"{scheme}://127.0.0.1:{port}", grpc=None, metadata=NAMES, retry_s=0.0) as running,
            aiohttp.ClientSession() as session,
        ):
            for tenant in (LOUD, QUIET):
                status, _ = await posted(session, running.http, x_scope_orgid=tenant)
                assert status == 503
