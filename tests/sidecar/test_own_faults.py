"""A fault of the sidecar's own is worth another attempt, and a clock that cannot be read costs no request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import Correction, Knot, Status
from skewd.bounds.table import Table
from skewd.interval import Interval
from skewd.publish.segment import NAME
from skewd_sidecar.gateway import Signal
from skewd_sidecar.kernel import Choice, KernelFault, NativeKernel, PythonKernel, choose
from skewd_sidecar.patch import Mode, PatchOptions
from tests.sidecar import sidecar_lab
from tests.sidecar.segment_lab import KINDS, SECOND, node, said
from tests.sidecar.sidecar_lab import http_collector, sidecar
from tests.sidecar.test_patch import T0, request
from tests.waiting import LIMIT_S

BODY = request({}).SerializeToString()


@pytest.fixture(name="transport", params=sidecar_lab.TRANSPORTS)
def chosen_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sidecar_lab.chosen, "transport", request.param)
    return request.param


class Broken:
    """A clock's source of which one part fails."""

    def __init__(self, what: str) -> None:
        self.what = what

    def _fails(self, what: str) -> None:
        if self.what in (what, "all"):
            raise OSError(5, "Input/output error")

    @property
    def node(self) -> str:
        self._fails("node")
        return "node-a"

    def at(self, wall_ns: int) -> Correction:
        self._fails("at")
        return Correction(5, 6, Status.SYNCHRONIZED, "utc")

    def table(self) -> Table | None:
        self._fails("table")
        return None

    def reading_ns(self) -> int | None:
        self._fails("reading")
        return T0 + 3600 * SECOND


async def send(url: str, body: bytes, signal: Signal = Signal.TRACES) -> aiohttp.ClientResponse:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as session,
        session.post(f"{url}{signal.http_path}", data=body,
                     headers={"Content-Type": "application/x-protobuf"}) as answer,
    ):  # fmt: skip
        await answer.read()
        return answer


async def call(address: str, body: bytes, signal: Signal = Signal.TRACES) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.unary_unary(f"/{signal.grpc_service}/Export", None, None)(body, timeout=LIMIT_S)


@pytest.mark.parametrize("kernel", [Choice.AUTO, Choice.PYTHON])
@pytest.mark.parametrize("what", ["at", "table", "reading", "node", "all"])
async def test_spans_go_on_without_a_clock_that_can_be_read(transport: Any, what: str, kernel: Choice) -> None:
    async with http_collector() as behind, sidecar(source=Broken(what), forward=behind.url, kernel=kernel) as running:
        assert (await send(running.http, BODY)).status == 200
        await call(running.grpc, BODY)
        for body in behind.bodies():
            (span,) = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
            assert said(span)["status"] == ("unsynchronized" if what in ("at", "all") else "synchronized")
            assert span.start_time_unix_nano == T0
        logs = ExportLogsServiceRequest()
        logs.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=T0)
        assert (await send(running.http, logs.SerializeToString(), Signal.LOGS)).status == 200


class BrokenKernel(PythonKernel):
    def traces(self, *_: Any) -> Any:
        raise ZeroDivisionError("a mistake of ours")


async def test_an_own_fault_is_answered_with_try_again(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.service.choose", lambda _: BrokenKernel())
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        answer = await send(running.http, BODY)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(running.grpc, BODY)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        trailing: Any = error.value.trailing_metadata()
        details = trailing.get("grpc-status-details-bin")
        assert isinstance(details, bytes)
        hint = RetryInfo()
        assert any(each.Unpack(hint) for each in RpcStatus.FromString(details).details)
        assert hint.retry_delay.seconds >= 1
        assert not behind.requests
        # Whatever needs no patch still goes on.
        assert (await send(running.http, b"", Signal.METRICS)).status == 200


async def test_a_fault_of_what_forwards_is_answered_with_try_again(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("skewd_sidecar.relay.Relay.__call__", broken)
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        assert (await send(running.http, BODY)).status == 503
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(running.grpc, BODY)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


class PanicException(BaseException):
    """As the extension's: not an ``Exception``."""


def test_a_panic_of_the_native_kernel_is_one_requests_end() -> None:
    class Native:
        MalformedBody = ValueError

        class Patcher:
            def __init__(self, *_: Any) -> None: ...

            def patch(self, *_: Any) -> Any:
                raise PanicException("index out of bounds")

        @staticmethod
        def census(*_: Any) -> Any:
            raise PanicException("index out of bounds")

    with pytest.raises(KernelFault, match="index out of bounds"):
        NativeKernel(Native).census(BODY, False, 1, 1)
    with pytest.raises(KernelFault, match="index out of bounds"):
        NativeKernel(Native).traces(BODY, PatchOptions(Mode.TAG, "n"), Broken("").at, None)
    assert choose(Choice.PYTHON).traces(BODY, PatchOptions(Mode.TAG, "n"), Broken("").at, None).spans == 1


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("to_bytes", [0, 100, 5_000])
async def test_a_segment_that_is_cut_off_costs_no_request(
    tmp_path: Path, kinds: tuple[str, str], to_bytes: int
) -> None:
    async with node(tmp_path, *kinds) as here:
        now = here.clock.wall_ns()
        assert said(await here.span(now, now))["status"] == "synchronized"
        os.truncate(tmp_path / NAME, to_bytes)
        for over in ("http", "grpc", "http"):
            now = here.clock.wall_ns()
            span = await here.span(now, now, over=over, look=False)
            assert said(span)["status"] in ("synchronized", "unsynchronized")


@pytest.mark.parametrize("kinds", KINDS)
async def test_a_knot_whose_time_goes_back_costs_no_request(tmp_path: Path, kinds: tuple[str, str]) -> None:
    async with node(tmp_path, *kinds) as here:
        here.look()
        now = here.clock.wall_ns()
        here.writer.publish(
            Knot(here.era, here.begin_wall_ns, None, 1, now - 50 * SECOND, Interval(-5, 5), Interval(-5, 5), 0, 0, 0,
                 Status.SYNCHRONIZED, "node:a")
        )  # fmt: skip
        here.writer.heartbeat()
        for over in ("http", "grpc"):
            assert said(await here.span(now, now, over=over))["status"] == "synchronized"
