"""The whole sidecar: unmodified OpenTelemetry exporters in front of it, a collector behind it, both protocols."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from skewd.bounds.history import UNSYNCHRONIZED, Correction
from skewd.ports import PortTaken
from skewd_sidecar.endpoint import EndpointError
from skewd_sidecar.gateway import Signal
from skewd_sidecar.kernel import choose
from skewd_sidecar.patch import Mode
from skewd_sidecar.transport import Transport
from tests.sidecar import sidecar_lab
from tests.sidecar.sidecar_lab import Collector, Running, free_port, grpc_collector, http_collector, sidecar
from tests.waiting import LIMIT_S

# Whoever speaks gRPC, all of this holds.
transport = sidecar_lab.transport
pytestmark = pytest.mark.usefixtures("transport")

T0 = 1_790_000_000_000_000_000
PROTOCOLS = ["grpc", "http"]
TYPE = {"Content-Type": "application/x-protobuf"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def collector(protocol: str, port: int = 0) -> contextlib.AbstractAsyncContextManager[Collector]:
    return grpc_collector(port) if protocol == "grpc" else http_collector(port)


def traces(count: int = 1) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(
            trace_id=b"t" * 16,
            span_id=b"s" * 8,
            name="work",
            start_time_unix_nano=T0 + number,
            end_time_unix_nano=T0 + number + 1000,
        )
    return request.SerializeToString()


async def post(protocol: str, running: Running, body: bytes, of: Signal = Signal.TRACES) -> tuple[str, bytes, Any]:
    """Sends one body as it is. Status ("OK", "UNAVAILABLE" .. or the HTTP number), answer, and details or headers."""
    if protocol == "http":
        async with (
            aiohttp.ClientSession() as session,
            session.post(running.http + of.http_path, data=body, headers=TYPE) as response,
        ):
            return str(response.status), await response.read(), response.headers
    async with grpc.aio.insecure_channel(running.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        try:
            answer = await channel.unary_unary(f"/{of.grpc_service}/Export", None, None)(body, timeout=LIMIT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, (error.details() or "").encode(), error.trailing_metadata()
        return "OK", answer, None


OK = {"grpc": "OK", "http": "200"}


# ------------------------------------------------------------------------------------------- with the real SDK


def span_exporter(protocol: str, running: Running, compressed: bool) -> Any:
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if compressed else None
        return GrpcSpanExporter(endpoint=running.grpc, insecure=True, compression=compression, timeout=LIMIT_S)
    return HttpSpanExporter(
        endpoint=running.http + "/v1/traces", compression=Compression.Gzip if compressed else None, timeout=LIMIT_S
    )


def export_two_spans(exporter: Any) -> bool:
    """A parent with an event and its child, through an ordinary provider."""
    provider = TracerProvider(resource=Resource({"service.name": "stage"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("parent", start_time=T0, end_on_exit=False) as parent:
        parent.add_event("halfway", {"clock.offset_ns": 1}, timestamp=T0 + 500)
        parent.set_attribute("clock.foreign", "kept")
        tracer.start_span("child", start_time=T0 + 100).end(T0 + 200)
    parent.end(T0 + 1000)
    flushed = provider.force_flush(round(LIMIT_S * 1000))
    provider.shutdown()
    return flushed


def spans_by_name(collected: Collector) -> dict[str, Any]:
    found = {}
    for body in collected.bodies():
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert resource.resource.attributes[0].value.string_value == "stage"
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found[span.name] = span
    return found


def tags(span: Any) -> dict[str, Any]:
    keys = [each.key for each in span.attributes]
    assert len(keys) == len(set(keys))
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("onward", PROTOCOLS)
@pytest.mark.parametrize("inward", PROTOCOLS)
async def test_spans_of_the_sdk_arrive_corrected(inward: str, onward: str, compressed: bool, mode: Mode) -> None:
    async with collector(onward) as behind, sidecar(forward=behind.url, mode=mode) as running:
        exporter = span_exporter(inward, running, compressed)
        assert await asyncio.to_thread(export_two_spans, exporter)
        found = spans_by_name(behind)
    assert set(found) == {"parent", "child"}
    parent, child = found["parent"], found["child"]
    by = -3_000_000 if mode is Mode.REWRITE else 0
    assert (parent.start_time_unix_nano, parent.end_time_unix_nano) == (T0 + by, T0 + 1000 + by)
    assert (child.start_time_unix_nano, child.end_time_unix_nano) == (T0 + 100 + by, T0 + 200 + by)
    assert parent.events[0].time_unix_nano == T0 + 500 + by
    assert child.parent_span_id == parent.span_id
    wanted: dict[str, Any] = {}
    if mode is not Mode.OFF:
        wanted = {
            "clock.offset_ns": -3_000_000,
            "clock.uncertainty_ns": 50_000,
            "clock.reference": "utc",
            "clock.status": "synchronized",
            "clock.node.name": "node-a",
            "clock.corrected": mode is Mode.REWRITE,
        }
    if mode is Mode.REWRITE:
        wanted |= {"clock.original.start_time_unix_nano": T0, "clock.original.end_time_unix_nano": T0 + 1000}
    assert tags(parent) == {"clock.foreign": "kept"} | wanted


class Unknown:
    """A source whose daemon is not there."""

    node = ""

    def at(self, wall_ns: int) -> Correction:
        return UNSYNCHRONIZED


@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
async def test_without_a_bound_spans_go_on_at_once_and_say_so(mode: Mode) -> None:
    async with grpc_collector() as behind, sidecar(forward=behind.url, mode=mode, source=Unknown()) as running:
        assert await asyncio.to_thread(export_two_spans, span_exporter("grpc", running, False))
        child = spans_by_name(behind)["child"]
    assert child.start_time_unix_nano == T0 + 100
    assert tags(child) == {
        "clock.status": "unsynchronized",
        "clock.node.name": socket.gethostname(),
        "clock.corrected": False,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_sdks_metrics_arrive_as_they_are_and_logs_corrected(protocol: str) -> None:
    async with collector(protocol) as behind, sidecar(forward=behind.url, mode=Mode.REWRITE) as running:

        def export() -> None:
            if protocol == "grpc":
                metric_exporter: Any = GrpcMetricExporter(endpoint=running.grpc, insecure=True)
                log_exporter: Any = GrpcLogExporter(endpoint=running.grpc, insecure=True)
            else:
                metric_exporter = HttpMetricExporter(endpoint=running.http + "/v1/metrics")
                log_exporter = HttpLogExporter(endpoint=running.http + "/v1/logs")
            reader = PeriodicExportingMetricReader(metric_exporter, export_interval_millis=3_600_000)
            meters = MeterProvider([reader], shutdown_on_exit=False)
            meters.get_meter("test").create_counter("things").add(7)
            meters.shutdown()
            logs = LoggerProvider(shutdown_on_exit=False)
            logs.add_log_record_processor(SimpleLogRecordProcessor(log_exporter))
            logs.get_logger("test").emit(body="said", timestamp=T0)
            logs.shutdown()

        await asyncio.to_thread(export)
        (metrics,) = behind.bodies(Signal.METRICS)
        (logs,) = behind.bodies(Signal.LOGS)
    metric = ExportMetricsServiceRequest.FromString(metrics).resource_metrics[0].scope_metrics[0].metrics[0]
    assert (metric.name, metric.sum.data_points[0].as_int) == ("things", 7)
    record = ExportLogsServiceRequest.FromString(logs).resource_logs[0].scope_logs[0].log_records[0]
    assert (record.body.string_value, record.time_unix_nano) == ("said", T0 - 3_000_000)
    assert record.observed_time_unix_nano != 0


@pytest.mark.parametrize("onward", PROTOCOLS)
@pytest.mark.parametrize("inward", PROTOCOLS)
@pytest.mark.parametrize("of", [Signal.METRICS, Signal.PROFILES])
async def test_metrics_and_profiles_are_byte_identical(inward: str, onward: str, of: Signal) -> None:
    request = ExportMetricsServiceRequest()  # of profiles, too, only the outermost fields are looked at
    point = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add(as_int=1)
    point.attributes.add(key="clock.offset_ns").value.int_value = 1
    body = request.SerializeToString() + b"\xfa\x3e\x85\x80\x00later"  # an unknown field, its length padded
    async with collector(onward) as behind, sidecar(forward=behind.url, mode=Mode.REWRITE) as running:
        assert (await post(inward, running, body, of))[0] == OK[inward]
    assert behind.bodies(of) == [body]
    assert len(behind.requests) == 1


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("of", list(Signal))
@pytest.mark.parametrize("mode", list(Mode))
async def test_a_truncated_body_is_refused_with_a_status_and_nothing_goes_on(mode: Mode, of: Signal) -> None:
    body = traces(3)
    async with grpc_collector() as behind, sidecar(forward=behind.url, mode=mode) as running:
        for size in (1, len(body) // 2, len(body) - 1):
            code, message, _ = await post("grpc", running, body[:size], of)
            assert code == "INVALID_ARGUMENT"
            assert b"malformed OTLP body" in message
            number, answer, headers = await post("http", running, body[:size], of)
            assert number == "400"
            assert headers["Content-Type"] == "application/x-protobuf"
            status = RpcStatus.FromString(answer)
            assert status.code == 3
            assert status.message.encode() == message
        assert behind.requests == []
        assert (await post("grpc", running, body, of))[0] == "OK"


async def raw_http(running: Running, path: str, body: bytes, **headers: str) -> tuple[int, bytes, str]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.post(running.http + path, data=body, headers=given) as response,
    ):
        return response.status, await response.read(), response.content_type


async def test_what_http_refuses_it_explains() -> None:
    proto = TYPE["Content-Type"]
    whole = gzip.compress(traces())
    cases = [
        ("/v1/traces", b"{}", {"Content_Type": "text/json"}, 415, "application/json"),
        ("/v1/traces", traces(), {}, 415, "application/x-protobuf"),
        ("/v1/traces", traces(), {"Content_Type": proto, "Content_Encoding": "zstd"}, 415, "compression to gzip"),
        ("/v1/traces", whole[:-3], {"Content_Type": proto, "Content_Encoding": "gzip"}, 400, "cut short"),
        ("/v1/traces", b"x" * 40, {"Content_Type": proto, "Content_Encoding": "gzip"}, 400, "not gzip"),
        ("/v1/spans", traces(), {"Content_Type": proto}, 404, "/v1/traces"),
    ]
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        for path, body, headers, status, text in cases:
            got, answer, kind = await raw_http(running, path, body, **headers)
            assert got == status
            assert text in answer.decode(errors="replace")
            if kind == proto:
                assert text in RpcStatus.FromString(answer).message
            else:
                assert kind == "application/json"
        async with aiohttp.ClientSession() as session, session.get(running.http + "/v1/traces") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert behind.requests == []
        for body in (whole, gzip.compress(traces()[:20]) + gzip.compress(traces()[20:])):  # members count together
            got, _, _ = await raw_http(running, "/v1/traces", body, Content_Type=proto, Content_Encoding="gzip")
            assert got == 200
        assert len(behind.requests) == 2


async def test_a_body_over_the_limit_is_refused_however_small_it_comes() -> None:
    bomb = b"\x7a" + b"\x80\x80\x80\x0c" + bytes(24 * 1024 * 1024)  # one long unknown field, 25 KiB compressed
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        status, answer, _ = await raw_http(
            running, "/v1/traces", gzip.compress(bomb), Content_Encoding="gzip", Content_Type=TYPE["Content-Type"]
        )
        assert status == 413
        assert "larger than 16777216 bytes" in RpcStatus.FromString(answer).message
        status, _, _ = await raw_http(running, "/v1/traces", bomb, Content_Type=TYPE["Content-Type"])
        assert status == 413
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(running.grpc, options=options) as channel:
            call = channel.unary_unary(f"/{Signal.TRACES.grpc_service}/Export", None, None)
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call(bomb, compression=compression, timeout=LIMIT_S)
                assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert behind.requests == []


async def test_a_client_that_waits_for_continue_is_told_to_go_on() -> None:
    body = traces()
    async with http_collector() as behind, sidecar(forward=behind.url) as running, asyncio.timeout(LIMIT_S):
        host, _, port = str(running.addresses["http"]).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {TYPE['Content-Type']}\r\n"
        head += f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        # One that leaves in the middle of its body is not forwarded.
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.replace("Expect: 100-continue\r\n", "").encode() + body[:-5])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await post("http", running, body))[0] == "200"
    assert len(behind.requests) == 2


# ------------------------------------------------------------------------------------------ downstream's answers


@pytest.mark.parametrize("onward", PROTOCOLS)
async def test_a_partial_success_comes_back(onward: str) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "two of them"
    async with collector(onward) as behind, sidecar(forward=behind.url) as running:
        behind.answer = answer.SerializeToString()
        for inward in PROTOCOLS:
            assert (await post(inward, running, traces()))[:2] == (OK[inward], behind.answer)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "400"),
        (grpc.StatusCode.PERMISSION_DENIED, "403"),
        (grpc.StatusCode.UNAUTHENTICATED, "401"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "413"),  # without a RetryInfo it is final
        (grpc.StatusCode.UNAVAILABLE, "503"),
        (grpc.StatusCode.ABORTED, "503"),
        (grpc.StatusCode.INTERNAL, "500"),
    ],
)
async def test_a_grpc_failure_behind_is_the_failure_in_front(code: grpc.StatusCode, status: str) -> None:
    details = RpcStatus(code=code.value[0], message="because").SerializeToString()
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_grpc = (code, "because", (("grpc-status-details-bin", details),))
        got, message, trailing = await post("grpc", running, traces())
        assert got == code.name
        assert b"because" in message
        assert trailing.get("grpc-status-details-bin") == details
        got, answer, _ = await post("http", running, traces())
        assert (got, answer) == (status, details)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (413, "RESOURCE_EXHAUSTED"),
        (418, "INVALID_ARGUMENT"),
        (429, "UNAVAILABLE"),
        (500, "INTERNAL"),
        (502, "UNAVAILABLE"),
        (503, "UNAVAILABLE"),
    ],
)
async def test_an_http_failure_behind_is_the_failure_in_front(status: int, code: str) -> None:
    details = RpcStatus(code=3, message="because").SerializeToString()
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_http = lambda: web.Response(
            status=status, body=details, content_type=TYPE["Content-Type"], headers={"Retry-After": "7"}
        )
        got, answer, headers = await post("http", running, traces())
        assert (got, answer, headers["Retry-After"]) == (str(status), details, "7")
        assert (await post("grpc", running, traces()))[0] == code
        behind.fail_http = lambda: web.Response(status=status, text="plain words")
        got, answer, _ = await post("http", running, traces())
        assert got == str(status)
        assert f"HTTP {status}" in RpcStatus.FromString(answer).message


@pytest.mark.parametrize("inward", PROTOCOLS)
async def test_a_failure_whose_words_are_no_text_is_passed_on_all_the_same(inward: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 nicht ge\xf6ffnet\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, sidecar(forward=f"http://127.0.0.1:{port}") as running:
        got, message, _ = await post(inward, running, traces())
        assert got == {"grpc": "UNAVAILABLE", "http": "503"}[inward]
        assert b"HTTP 503 nicht ge" in message


async def test_a_redirect_is_a_failure_not_a_success() -> None:
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_http = lambda: web.Response(status=307, headers={"Location": behind.url + "/elsewhere"})
        assert (await post("http", running, traces()))[0] == "500"
        assert len(behind.requests) == 1


@pytest.mark.parametrize("onward", PROTOCOLS)
async def test_downstream_down_is_unavailable_and_recovers(onward: str) -> None:
    with free_port() as port:
        async with sidecar(forward=f"{onward}://localhost:{port}") as running:
            for _ in range(2):
                code, message, _ = await post("grpc", running, traces())
                assert code == "UNAVAILABLE"
                assert f"localhost:{port}" in message.decode()
                number, answer, _ = await post("http", running, traces())
                assert number == "503"
                assert f"localhost:{port}" in RpcStatus.FromString(answer).message
            async with collector(onward, port) as behind:
                async with asyncio.timeout(LIMIT_S):
                    while (await post("grpc", running, traces()))[0] != "OK":
                        pass  # until the sidecar has found the collector again
                assert (await post("http", running, traces()))[0] == "200"
                assert len(behind.requests) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_sdk_delivers_once_downstream_is_there(protocol: str) -> None:
    with free_port() as port:
        async with sidecar(forward=f"{protocol}://127.0.0.1:{port}", metrics_listen="127.0.0.1:0") as running:
            exporting = asyncio.create_task(
                asyncio.to_thread(export_two_spans, span_exporter(protocol, running, False))
            )
            async with aiohttp.ClientSession() as session, asyncio.timeout(LIMIT_S):
                while True:  # until the exporter has been told at least once to try again
                    async with session.get(f"http://{running.addresses['metrics']}/metrics") as response:
                        text = await response.text()
                    if 'skewd_requests_total{result="failed",signal="traces"}' in text:
                        break
            async with collector(protocol, port) as behind:
                assert await exporting
                assert set(spans_by_name(behind)) == {"parent", "child"}


async def test_a_next_hop_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
    for onward, inward_grpc, inward_http in (("grpc", "DEADLINE_EXCEEDED", "504"), ("http", "UNAVAILABLE", "503")):
        async with collector(onward) as behind, sidecar(forward=behind.url) as running:
            behind.hold = asyncio.Event()
            assert (await post("grpc", running, traces()))[0] == inward_grpc
            assert (await post("http", running, traces()))[0] == inward_http
            behind.hold.set()


async def test_the_environment_names_the_next_hop_and_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with http_collector() as first, grpc_collector() as second:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", first.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Api-Key=a%20b,tenant=7")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", second.url.replace("grpc", "http", 1))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc")
        async with sidecar(mode=Mode.OFF) as running:
            assert (await post("grpc", running, traces()))[0] == "OK"
            assert (await post("http", running, traces(), Signal.LOGS))[0] == "200"
    (got,), (log,) = first.requests, second.requests
    assert (got.signal, got.body, log.signal, log.body) == (Signal.TRACES, traces(), Signal.LOGS, traces())
    assert got.metadata["content-encoding"] == "gzip"
    assert (got.metadata["api-key"], got.metadata["tenant"]) == ("a b", "7")
    assert (log.metadata["api-key"], log.metadata["tenant"]) == ("a b", "7")


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem", directory / "key.pem"


async def test_onward_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    async with http_collector(ssl=context) as over_http, grpc_collector(credentials=credentials) as over_grpc:
        for behind in (over_http, over_grpc):
            assert behind.url.split(":")[0].endswith("s")
            async with sidecar(forward=behind.url, grpc=None) as running:
                assert (await post("http", running, traces()))[0] == "503", "an unknown authority is not trusted"
            assert behind.requests == []
            with monkeypatch.context() as patch:
                patch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(cert))
                async with sidecar(forward=behind.url, grpc=None) as running:
                    assert (await post("http", running, traces()))[0] == "200"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "none.pem"))
    for scheme in ("grpcs", "https"):
        with pytest.raises(EndpointError, match="cert"):
            async with sidecar(forward=f"{scheme}://localhost:1"):
                pass


# ------------------------------------------------------------------------------------------------ start and stop


@pytest.mark.parametrize("listener", PROTOCOLS)
@pytest.mark.parametrize("scheme", PROTOCOLS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
async def test_forwarding_to_itself_is_refused(listener: str, scheme: str, host: str) -> None:
    with free_port() as port:
        pass  # released: the sidecar shall have it
    before = {listener: f"127.0.0.1:{port}"}
    with pytest.raises(EndpointError, match=f"{host}:{port}.* would lead back to this sidecar"):
        async with sidecar(forward=f"{scheme}://{host}:{port}", **before):
            pass
    with socket.socket() as again:  # and it has let go of its ports
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


async def test_the_environment_that_names_this_sidecar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with free_port() as port:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://localhost:{port}")
    with pytest.raises(EndpointError, match="would lead back"):
        async with sidecar(http=f"0.0.0.0:{port}"):
            pass


@pytest.mark.parametrize("listener", ["grpc", "http", "metrics_listen"])
async def test_a_taken_port_names_its_holder(listener: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken) as error:
            async with sidecar(forward="grpc://localhost:1", **{listener: f"127.0.0.1:{port}"}):
                pass
    text = str(error.value)
    assert f"127.0.0.1:{port}" in text
    assert f"pid {os.getpid()}" in text
    assert "--" + listener.partition("_")[0] in text


async def test_two_sidecars_do_not_share_a_port() -> None:
    async with sidecar(forward="grpc://localhost:1") as first:
        for listener in PROTOCOLS:
            with pytest.raises(PortTaken):
                async with sidecar(forward="grpc://localhost:1", **{listener: first.addresses[listener]}):
                    pass


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"grpc": None, "http": None}, "nothing to listen on"),
        ({"forward": None}, "nowhere to forward to"),
        ({"forward": "collector:4317"}, "grpc://collector:4317"),
        ({"forward": ["grpc://c:1", "kafka://broker:port"]}, "write for example kafka://broker:9092"),
        ({"grpc": "4317"}, "host:port"),
        ({"http": "127.0.0.1:99999"}, "host:port"),
        ({"attribute_prefix": ""}, "prefix"),
    ],
)
async def test_settings_that_cannot_work_are_refused_with_the_fix(bad: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        async with sidecar(**({"forward": "grpc://localhost:1"} | bad)):
            pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stop_lets_requests_under_way_finish(protocol: str) -> None:
    async with collector(protocol) as behind, sidecar(forward=behind.url) as running:
        behind.hold = asyncio.Event()
        exporting = asyncio.create_task(post(protocol, running, traces()))
        await asyncio.wait_for(behind.arrived.wait(), LIMIT_S)
        running.stop.set()
        done, _ = await asyncio.wait({running.task}, timeout=0.2)
        assert not done, "it waits for the request"
        while True:  # the listener is closed within some turns of the loop
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(running.http.rpartition(":")[2]))
                writer.close()
            except ConnectionRefusedError:
                break
        assert not running.task.done()
        behind.hold.set()
        assert (await exporting)[0] == OK[protocol]
        await asyncio.wait_for(running.task, LIMIT_S)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_request_that_never_ends_does_not_hold_up_the_stop(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skewd_sidecar.service.STOP_S", 0.1)
    async with collector(protocol) as behind:
        async with sidecar(forward=behind.url) as running:
            behind.hold = asyncio.Event()
            exporting = asyncio.create_task(post(protocol, running, traces()))
            await asyncio.wait_for(behind.arrived.wait(), LIMIT_S)
            running.stop.set()
            await asyncio.wait_for(running.task, LIMIT_S)
            with contextlib.suppress(aiohttp.ClientError):
                assert (await asyncio.wait_for(exporting, LIMIT_S))[0] != OK[protocol]
        behind.hold.set()


async def test_cancelled_it_frees_its_ports_at_once() -> None:
    async with grpc_collector() as behind:
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(sidecar(forward=behind.url))
            behind.hold = asyncio.Event()
            exporting = asyncio.create_task(post("http", running, traces()))
            await asyncio.wait_for(behind.arrived.wait(), LIMIT_S)
            running.task.cancel()
            await asyncio.wait({running.task}, timeout=LIMIT_S)
            assert running.task.cancelled()
            for address in (running.grpc, str(running.addresses["http"])):
                host, _, port = address.rpartition(":")
                with socket.socket() as again:
                    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    again.bind((host, int(port)))
            await asyncio.wait({exporting}, timeout=LIMIT_S)
            with contextlib.suppress(aiohttp.ClientError):
                assert exporting.result()[0] != "200"
            stack.pop_all()  # the context's own end would report the cancellation
        behind.hold.set()


async def test_metrics_count_spans_that_were_delivered() -> None:
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, metrics_listen="127.0.0.1:0", mode=Mode.REWRITE) as running,
    ):
        assert (await post("grpc", running, traces(3)))[0] == "OK"
        assert (await post("http", running, traces(2)))[0] == "200"
        assert (await post("http", running, traces(2)[:-1]))[0] == "400"
        behind.fail_grpc = (grpc.StatusCode.UNAVAILABLE, "not now", ())
        assert (await post("http", running, traces(9)))[0] == "503"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{running.addresses['metrics']}/metrics") as response:
                text = await response.text()
            async with session.get(f"http://{running.addresses['metrics']}/") as response:
                assert response.status == 404
    lines = text.splitlines()
    assert 'skewd_spans_total{action="rewritten"} 5.0' in lines
    assert 'skewd_spans_total{action="unsynchronized"} 0.0' in lines
    assert 'skewd_requests_total{result="delivered",signal="traces"} 2.0' in lines
    assert 'skewd_requests_total{result="malformed",signal="traces"} 1.0' in lines
    assert 'skewd_requests_total{result="failed",signal="traces"} 1.0' in lines
    (build,) = [line for line in lines if line.startswith("skewd_build_info{")]
    assert 'component="sidecar"' in build
    assert f'patch="{choose().name}"' in build
    assert 'skewd_log_records_total{action="rewritten"} 0.0' in lines
    assert 'virtual="true"' in build, "a static offset is a test hook"


async def test_the_metrics_say_who_speaks_what(transport: Transport) -> None:
    by = "native" if transport is Transport.NATIVE else "grpcio"
    async with sidecar(forward="grpc://localhost:1", metrics_listen="127.0.0.1:0") as running:
        url = f"http://{running.addresses['metrics']}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            lines = (await response.text()).splitlines()
    for side in ("receive", "forward"):
        assert f'skewd_transport_info{{protocol="grpc",side="{side}",transport="{by}"}} 1.0' in lines
    by = "native" if transport is Transport.NATIVE else "aiohttp"
    assert f'skewd_transport_info{{protocol="http",side="receive",transport="{by}"}} 1.0' in lines


_SERVE = """
import asyncio, json, signal, sys
from skewd_sidecar.service import SidecarSettings, StaticSource, serve

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = SidecarSettings(source=StaticSource("a", 1, 2), **json.loads(sys.argv[1]))
    await serve(settings, lambda a: print(json.dumps(a), flush=True), stop)
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ('{"http": "127.0.0.1:0", "forward": "http://localhost:1"}', {"grpc", "prometheus_client"}),
        ('{"grpc": "127.0.0.1:0", "forward": "grpc://localhost:1"}', {"aiohttp", "prometheus_client"}),
    ],
)
async def test_it_loads_what_it_uses_and_ends_on_a_signal(given: str, unused: set[str], transport: Transport) -> None:
    given = given.replace("{", f'{{"transport": "{transport}", ')
    if transport is Transport.NATIVE:
        unused = unused | {"grpc"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            assert process.stdout is not None
            assert b"127.0.0.1:" in await process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (0, b"")
    loaded = {each.strip(' []"\n') for each in out.decode().split(",")}
    assert not loaded & ({"google", "opentelemetry"} | unused)
