"""What may arrive, how, from whom and how slowly: JSON, compression, TLS, Unix sockets, headers, loops, limits."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import ipaddress
import itertools
import json
import os
import socket
import ssl
import stat
import zlib
from collections.abc import AsyncIterator
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
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from skewd.ports import ListenError, PortTaken
from skewd.quiet import QuietLog
from skewd_sidecar.endpoint import EndpointError
from skewd_sidecar.gateway import Signal
from skewd_sidecar.handler import REQUESTS_MAX
from skewd_sidecar.hop import HOP_HEADER
from skewd_sidecar.patch import Mode
from skewd_sidecar.service import TlsError, TlsFiles, Transport
from tests.sidecar.sidecar_lab import (
    NATIVE_MISSING,
    Collector,
    Running,
    free_port,
    grpc_collector,
    http_collector,
    needs_native,
    sidecar,
    transport,
)
from tests.waiting import LIMIT_S

__all__ = ["transport"]
pytestmark = pytest.mark.usefixtures("transport")
"""Whatever a receiver does, both kinds of it do."""

T0 = 1_790_000_000_000_000_001
PROTOCOLS = ["grpc", "http"]
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
EXPORT = f"/{Signal.TRACES.grpc_service}/Export"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)


def collector(protocol: str) -> contextlib.AbstractAsyncContextManager[Collector]:
    return grpc_collector() if protocol == "grpc" else http_collector()


def traces(count: int = 1) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="work", start_time_unix_nano=T0 + number)
    return request.SerializeToString()


def traces_json(count: int = 1) -> bytes:
    ids = {"traceId": (b"t" * 16).hex(), "spanId": (b"s" * 8).hex(), "name": "work"}
    spans = [{**ids, "startTimeUnixNano": str(T0 + number)} for number in range(count)]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()


async def post(
    running: Running | str, body: bytes, headers: dict[str, str], path: str = "/v1/traces", **more: Any
) -> tuple[int, bytes, Any]:
    url = running if isinstance(running, str) else running.http
    async with (
        aiohttp.ClientSession(connector=more.pop("connector", None)) as session,
        session.post(url + path, data=body, headers=headers, **more) as response,
    ):
        return response.status, await response.read(), response.headers


async def call(
    target: Running | str,
    body: bytes,
    metadata: Any = None,
    credentials: grpc.ChannelCredentials | None = None,
    compression: grpc.Compression | None = None,
) -> tuple[str, str, Any]:
    where = target if isinstance(target, str) else target.grpc
    options: list[tuple[str, int | str]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    if where.startswith("unix:"):
        options.append(("grpc.default_authority", "localhost"))  # the native one takes no other
    channel = (
        grpc.aio.secure_channel(where, credentials, options=options)
        if credentials is not None
        else grpc.aio.insecure_channel(where, options=options)
    )
    async with channel:
        try:
            await channel.unary_unary(EXPORT, None, None)(
                body, timeout=LIMIT_S, metadata=metadata, compression=compression
            )
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", error.trailing_metadata()
    return "OK", "", None


# ------------------------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize("onward", PROTOCOLS)
@pytest.mark.parametrize("count", [1, 2000], ids=["small", "converted in a thread"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
async def test_json_goes_on_as_protobuf_corrected_like_it(onward: str, count: int, compressed: bool) -> None:
    body, headers = traces_json(count), JSON
    if compressed:
        body, headers = gzip.compress(body), {**JSON, "Content-Encoding": "gzip"}
    async with collector(onward) as behind, sidecar(forward=behind.url, mode=Mode.REWRITE) as running:
        status, answer, got = await post(running, body, headers)
        assert (status, answer, got["Content-Type"]) == (200, b"{}", "application/json; charset=utf-8")
        assert (await post(running, traces(count), PROTOBUF))[0] == 200
    assert behind.requests[0].body == behind.requests[1].body
    span = ExportTraceServiceRequest.FromString(behind.bodies()[0]).resource_spans[0].scope_spans[0].spans[0]
    assert (span.trace_id, span.start_time_unix_nano) == (b"t" * 16, T0 - 3_000_000)


async def test_json_of_every_signal() -> None:
    metric = {"name": "m", "sum": {"isMonotonic": True, "dataPoints": [{"timeUnixNano": T0, "asInt": "-5"}]}}
    log = {"timeUnixNano": str(T0), "severityNumber": "SEVERITY_NUMBER_INFO", "body": {"stringValue": "said"}}
    bodies = {
        Signal.TRACES: json.loads(traces_json()),
        Signal.METRICS: {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]},
        Signal.LOGS: {"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]},
        Signal.PROFILES: {"dictionary": {"stringTable": ["", "cpu"]}},
    }
    async with grpc_collector() as behind, sidecar(forward=behind.url, mode=Mode.OFF) as running:
        for signal, body in bodies.items():
            assert (await post(running, json.dumps(body).encode(), JSON, signal.http_path))[0] == 200
    assert [each.signal for each in behind.requests] == list(bodies)
    (metrics,) = behind.bodies(Signal.METRICS)
    found = ExportMetricsServiceRequest.FromString(metrics).resource_metrics[0].scope_metrics[0].metrics[0]
    assert (found.sum.data_points[0].time_unix_nano, found.sum.data_points[0].as_int) == (T0, -5)
    (logs,) = behind.bodies(Signal.LOGS)
    record = ExportLogsServiceRequest.FromString(logs).resource_logs[0].scope_logs[0].log_records[0]
    assert (record.severity_number, record.body.string_value) == (9, "said")


async def test_what_json_asks_is_answered_in_json() -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "two of them"
    async with grpc_collector() as behind, sidecar(forward=behind.url, max_request_bytes=70_000) as running:
        behind.answer = answer.SerializeToString()
        _, got, _ = await post(running, traces_json(), JSON)
        assert json.loads(got) == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "two of them"}}
        status, got, _ = await post(running, b'{"resourceSpans": [{"scopeSpans": 5}]}', JSON)
        assert status == 400
        said = json.loads(got)
        assert (said["code"], "resourceSpans[0].scopeSpans: '5' is not a list" in said["message"]) == (3, True)
        status, got, _ = await post(running, traces_json(2000), JSON)
        assert (status, json.loads(got)["code"]) == (413, 8)
        # Zeros are two characters in JSON and eight bytes in protobuf; the limit holds for both.
        point = b'{"bucketCounts":[' + b"0," * 30_000 + b"0]}"
        metric = b'{"histogram":{"dataPoints":[' + point + b"]}}"
        wide = b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[' + metric + b"]}]}]}"
        status, got, _ = await post(running, wide, JSON, "/v1/metrics")
        assert (status, json.loads(got)["code"]) == (413, 8)
        behind.fail_grpc = (grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", retry_after(8, 3))
        status, got, headers = await post(running, traces_json(), JSON)
        assert (status, headers["Retry-After"]) == (429, "3")
        assert json.loads(got)["details"][0]["retryDelay"] == "3s"


# ----------------------------------------------------------------------------------------------- compression


async def test_deflate_in_either_form_and_nothing_that_is_cut_short_or_blown_up() -> None:
    body = traces(50)
    raw = zlib.compressobj(wbits=-15)
    bare = raw.compress(body) + raw.flush()
    bomb = b"\x7a\x80\x80\x80\x0c" + bytes(2_000_000)
    members = gzip.compress(b"") * 100
    limits = {"mode": Mode.OFF, "max_request_bytes": 1_000_000}
    async with http_collector() as behind, sidecar(forward=behind.url, **limits) as running:
        for encoding, packed in (("deflate", zlib.compress(body)), ("zlib", zlib.compress(body)), ("deflate", bare)):
            assert (await post(running, packed, {**PROTOBUF, "Content-Encoding": encoding}))[0] == 200
        assert behind.bodies() == [body] * 3
        cases = [
            ("deflate", zlib.compress(body)[:-3], 400, "cut short"),
            ("deflate", zlib.compress(body) + b"more", 400, "something else"),
            ("deflate", b"\xff" * 50, 400, "not deflate"),
            ("deflate", zlib.compress(bomb), 413, "larger than"),
            ("gzip", members, 400, "more than 64 members"),
            ("snappy", body, 415, "compression to gzip or none"),
            ("gzip, gzip", body, 415, "compression to gzip or none"),
        ]
        for encoding, packed, wanted, text in cases:
            status, answer, _ = await post(running, packed, {**PROTOBUF, "Content-Encoding": encoding})
            assert (status, text in RpcStatus.FromString(answer).message) == (wanted, True)
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert (await call(running, body, compression=compression))[0] == "OK"
            assert (await call(running, bomb, compression=compression))[0] == "RESOURCE_EXHAUSTED"
        assert behind.bodies() == [body] * 5


# ----------------------------------------------------------------------------------------------- retry hints


def retry_after(code: int, seconds: int) -> tuple[tuple[str, bytes], ...]:
    info = AnyMessage()
    info.Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    return (("grpc-status-details-bin", RpcStatus(code=code, details=[info]).SerializeToString()),)


def delay_s(trailing: Any) -> int | None:
    details = trailing.get("grpc-status-details-bin")
    for each in RpcStatus.FromString(details or b"").details:
        info = RetryInfo()
        if each.Unpack(info):
            return int(info.retry_delay.seconds)
    return None


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [(grpc.StatusCode.UNAVAILABLE, 14, 503), (grpc.StatusCode.RESOURCE_EXHAUSTED, 8, 429)],
)
async def test_a_delay_asked_for_over_grpc_reaches_an_exporter_over_http(
    code: grpc.StatusCode, number: int, status: int
) -> None:
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_grpc = (code, "later", retry_after(number, 7))
        got, _, headers = await post(running, traces(), PROTOBUF)
        assert (got, headers["Retry-After"]) == (status, "7")
        # It is not asked again before that; who comes meanwhile is told the rest.
        name, _, trailing = await call(running, traces())
        rest_s = delay_s(trailing)
        assert name == code.name
        assert rest_s is not None
        assert 0 < rest_s <= 7
        assert len(behind.requests) == 1


async def test_a_quota_is_no_delay() -> None:
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_grpc = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", ())
        got, _, headers = await post(running, traces(), PROTOBUF)
        assert (got, "Retry-After" in headers) == (413, False)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_delay_asked_for_over_http_reaches_an_exporter_over_grpc(status: int) -> None:
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        behind.fail_http = lambda: web.Response(status=status, headers={"Retry-After": "7"})
        name, _, trailing = await call(running, traces())
        assert (name, delay_s(trailing)) == ("UNAVAILABLE", 7)
        assert RpcStatus.FromString(trailing.get("grpc-status-details-bin")).code == 14


async def test_a_delay_may_be_a_date_over_http() -> None:
    async with http_collector() as behind, sidecar(forward=behind.url) as running:
        date = {"Date": "Fri, 31 Dec 1999 23:59:00 GMT", "Retry-After": "Fri, 31 Dec 1999 23:59:09 GMT"}
        behind.fail_http = lambda: web.Response(status=503, headers=date)
        assert delay_s((await call(running, traces()))[2]) == 9


# ------------------------------------------------------------------------------------------------------- TLS


def certificate(directory: Path, name: str = "localhost", passphrase: bytes | None = None) -> tuple[Path, Path]:
    """A self-signed certificate and its key, in place of what was there."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(exist_ok=True)
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase is not None else serialization.NoEncryption()
    )
    for file, content in (
        ("cert.pem", made.public_bytes(serialization.Encoding.PEM)),
        ("key.pem", key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)),
    ):
        (directory / "new").write_bytes(content)
        os.replace(directory / "new", directory / file)
    return directory / "cert.pem", directory / "key.pem"


async def reaches(running: Running, protocol: str, trusted: Path, own: tuple[Path, Path] | None = None) -> bool:
    """Whether a new client that trusts one certificate (and shows its own) gets its request through."""
    if protocol == "grpc":
        mine = (own[1].read_bytes(), own[0].read_bytes()) if own is not None else (None, None)
        credentials = grpc.ssl_channel_credentials(trusted.read_bytes(), *mine)
        return (await call(running, traces(), credentials=credentials))[0] == "OK"
    context = ssl.create_default_context(cafile=str(trusted))
    if own is not None:
        context.load_cert_chain(*own)
    try:
        status, _, _ = await post(running.http.replace("http:", "https:"), traces(), PROTOBUF, ssl=context)
    except (aiohttp.ClientError, ConnectionError):
        return False
    return status == 200


async def test_tls_on_both_listeners_with_the_sdk(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)

    def export(exporter: Any) -> bool:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("test").start_span("work").end()
        provider.shutdown()
        return True

    async with grpc_collector() as behind, sidecar(forward=behind.url, tls=TlsFiles(cert, key)) as running:
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        over_grpc = GrpcSpanExporter(endpoint=f"https://{running.grpc}", credentials=credentials, timeout=LIMIT_S)
        over_http = HttpSpanExporter(
            endpoint=running.http.replace("http:", "https:") + "/v1/traces",
            certificate_file=str(cert),
            compression=Compression.Deflate,
            timeout=LIMIT_S,
        )
        for number, exporter in enumerate((over_grpc, over_http), 1):
            assert await asyncio.to_thread(export, exporter)
            assert len(behind.requests) == number
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await post(running, traces(), PROTOBUF)  # without TLS
    assert len(behind.requests) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.tls.CHECK_S", 0.0)
    cert, key = certificate(tmp_path / "served")
    first = tmp_path / "first.pem"
    first.write_bytes(cert.read_bytes())
    async with grpc_collector() as behind, sidecar(forward=behind.url, tls=TlsFiles(cert, key)) as running:
        assert await reaches(running, protocol, first)
        kept = ssl.create_default_context(cafile=str(first))
        async with aiohttp.ClientSession() as session:

            async def again() -> int:
                url = running.http.replace("http:", "https:") + "/v1/traces"
                async with session.post(url, data=traces(), headers=PROTOBUF, ssl=kept) as response:
                    return response.status

            assert await again() == 200
            certificate(tmp_path / "served")
            assert await reaches(running, protocol, cert), "the new one"
            assert not await reaches(running, protocol, first), "not the old one"
            assert await again() == 200, "connections that stand go on"
        renewed = tmp_path / "renewed.pem"
        renewed.write_bytes(cert.read_bytes())
        certificate(tmp_path / "other")
        os.replace(tmp_path / "other" / "cert.pem", cert)  # and the key is still the old one's
        assert await reaches(running, protocol, renewed), "what does not fit together is not taken"
        os.replace(tmp_path / "other" / "key.pem", key)
        assert await reaches(running, protocol, cert), "until it does"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_mutual_tls_lets_in_whom_the_authority_in_force_signed(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.tls.CHECK_S", 0.0)
    cert, key = certificate(tmp_path / "served")
    known, stranger = certificate(tmp_path / "known", "known"), certificate(tmp_path / "stranger", "stranger")
    authority = tmp_path / "authority.pem"
    authority.write_bytes(known[0].read_bytes())
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, tls=TlsFiles(cert, key, authority)) as running,
    ):
        assert await reaches(running, protocol, cert, known)
        assert not await reaches(running, protocol, cert)
        assert not await reaches(running, protocol, cert, stranger)
        authority.write_bytes(stranger[0].read_bytes())
        assert await reaches(running, protocol, cert, stranger)
        assert not await reaches(running, protocol, cert, known)


@pytest.mark.parametrize("listener", PROTOCOLS)
async def test_certificates_that_cannot_be_used_are_named_with_the_fix(listener: str, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "a")
    _, other = certificate(tmp_path / "b")
    _, locked = certificate(tmp_path / "c", passphrase=b"secret")
    text = tmp_path / "text"
    text.write_text("not a certificate")
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for files, wanted in (
        (TlsFiles(tmp_path / "none", key), "tls_certificate: .*none' cannot be read: No such file.*correct the path"),
        (TlsFiles(cert, tmp_path), "tls_key: .* cannot be read"),
        (TlsFiles(text, key), "tls_certificate: .*text' has no 'BEGIN CERTIFICATE' in it; give a file in PEM"),
        (TlsFiles(cert, text), "tls_key: .*text' has no 'PRIVATE KEY'"),
        (TlsFiles(cert, other), "cannot be used together: key values mismatch; give a PEM certificate"),
        (TlsFiles(cert, locked), "has a passphrase, which nobody can type; store it without"),
        (TlsFiles(cert, key, text), "tls_client_ca: .*text' has no"),
        (TlsFiles(cert, key, broken), "tls_client_ca: .*broken' cannot be used"),
    ):
        with pytest.raises(TlsError, match=wanted):
            async with sidecar(forward="grpc://localhost:1", tls=files, **{listener: None}):
                pass


# ---------------------------------------------------------------------------------------------- Unix sockets


def over(protocol: str, path: Path) -> dict[str, Any]:
    return {"grpc": None, "http": None, protocol: f"unix://{path}"}


async def reach_socket(protocol: str, path: Path) -> bool:
    if protocol == "grpc":
        return (await call(f"unix:{path}", traces()))[0] == "OK"
    return (await post("http://x", traces(), PROTOBUF, connector=aiohttp.UnixConnector(str(path))))[0] == 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_unix_socket_is_served_and_removed_and_a_left_over_one_replaced(protocol: str, tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    async with grpc_collector() as behind:
        for _ in range(2):
            async with sidecar(forward=behind.url, **over(protocol, path)) as running:
                assert running.addresses[protocol] == f"unix://{path}"
                assert await reach_socket(protocol, path)
                assert stat.S_IMODE(path.stat().st_mode) == 0o666, "as any local user reaches a port on loopback"
                with pytest.raises(PortTaken, match=rf"otlp.sock is taken by pid {os.getpid()}.*--{protocol}"):
                    async with sidecar(forward=behind.url, **over(protocol, path)):
                        pass
                assert await reach_socket(protocol, path), "whom it belongs to keeps it"
            assert not path.exists()
        assert len(behind.requests) == 4


async def test_sidecars_in_a_row_over_unix_sockets_whoever_speaks_and_none_to_itself(tmp_path: Path) -> None:
    last, first = tmp_path / "last.sock", tmp_path / "first.sock"
    transports = [Transport.PYTHON] if NATIVE_MISSING else [Transport.PYTHON, Transport.NATIVE]
    for receives, sends in itertools.product(transports, transports):
        async with (
            grpc_collector() as behind,
            sidecar(**over("grpc", last), forward=behind.url, transport=receives),
            sidecar(**over("grpc", first), forward=f"grpc+unix://{last}", transport=sends),
        ):
            if sends is Transport.PYTHON:
                assert await reach_socket("grpc", first)
            else:  # as the native receiver's text says
                options = [("grpc.default_authority", "localhost")]
                async with grpc.aio.insecure_channel(f"unix:{first}", options=options) as channel:
                    await channel.unary_unary(EXPORT, None, None)(traces(), timeout=LIMIT_S)
            assert len(behind.requests) == 1
    with pytest.raises(EndpointError, match="would lead back to this sidecar"):
        async with sidecar(**over("grpc", first), forward=f"grpc+unix://{tmp_path}/./first.sock"):
            pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_is_no_socket_stays_and_says_what_to_do(protocol: str, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    for path, error, text in (
        (file, ListenError, "is not a socket; remove it, or choose another path"),
        (tmp_path / "none" / "x.sock", ListenError, "the directory of .* does not exist; make it"),
        (tmp_path / ("x" * 120), ValueError, "longer than 107 bytes"),
    ):
        with pytest.raises(error, match=text):
            async with sidecar(forward="grpc://localhost:1", **over(protocol, path)):
                pass
    with pytest.raises(ValueError, match="no absolute path"):
        async with sidecar(forward="grpc://localhost:1", **over(protocol, Path("x"))):
            pass
    assert file.read_text() == "data"


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_socket_that_another_took_over_is_left_to_it(protocol: str, tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    async with sidecar(forward="grpc://localhost:1", **over(protocol, path)):
        if protocol == "grpc":
            return  # gRPC removes what is at its path by itself
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    with successor:
        assert path.exists()


# ------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("onward", PROTOCOLS)
@pytest.mark.parametrize("inward", PROTOCOLS)
async def test_headers_that_are_allowed_go_on_and_no_others(inward: str, onward: str) -> None:
    sent = {"x-scope-orgid": "tenant 7", "authorization": "Bearer secret", "x-other": "1"}
    allowed = ("x-scope-orgid", "x-absent")
    async with collector(onward) as behind, sidecar(forward=behind.url, metadata=allowed) as running:
        if inward == "grpc":
            assert (await call(running, traces(), tuple(sent.items())))[0] == "OK"
        else:
            assert (await post(running, traces(), {**PROTOBUF, **{k.title(): v for k, v in sent.items()}}))[0] == 200
        assert (await post(running, traces_json(), {**JSON, **sent}))[0] == 200
    for got in behind.requests:
        assert got.metadata["x-scope-orgid"] == "tenant 7"
        assert not {"authorization", "x-other", "x-absent"} & set(got.metadata)


async def test_headers_that_cannot_go_on_are_refused_not_dropped() -> None:
    async with grpc_collector() as behind, sidecar(forward=behind.url, metadata=("x-tenant", "x-more")) as running:
        large = {"x-tenant": "a" * 2500, "x-more": "b" * 2500}
        status, answer, _ = await post(running, traces(), {**PROTOBUF, **large})
        assert (status, "more than 4096 bytes" in RpcStatus.FromString(answer).message) == (431, True)
        name, text, _ = await call(running, traces(), tuple(large.items()))
        assert (name, "more than 4096 bytes" in text) == ("INVALID_ARGUMENT", True)
        status, answer, _ = await post(running, traces(), {**PROTOBUF, "x-tenant": "grüße"})
        assert (status, "x-tenant" in RpcStatus.FromString(answer).message) == (431, True)
        assert behind.requests == []
        reader, writer = await connect(running)
        twice = b"x-tenant: a\r\nX-Tenant: b\r\n"
        writer.write(head(len(traces()), twice) + traces())
        assert b" 200 " in await reader.readline()
        writer.close()
        assert behind.requests[0].metadata["x-tenant"] == "a, b"


# ---------------------------------------------------------------------------------------------------- loops


@pytest.mark.parametrize("between", PROTOCOLS)
async def test_a_loop_through_a_second_sidecar_ends_at_once_and_for_good(between: str) -> None:
    with free_port() as first, free_port() as second:
        pass  # released: the sidecars shall have them
    one = {between: f"127.0.0.1:{first}", "forward": f"{between}://127.0.0.1:{second}"}
    two = {between: f"127.0.0.1:{second}", "forward": f"{between}://127.0.0.1:{first}"}
    async with sidecar(**one, metrics_listen="127.0.0.1:0") as running, sidecar(**two):
        name, text, _ = await call(running, traces())
        assert name == "FAILED_PRECONDITION" if between == "http" else name in ("FAILED_PRECONDITION", "INTERNAL")
        assert "came back to the sidecar" in text or "508" in text
        status, _, headers = await post(running, traces(), PROTOBUF)
        assert status in (500, 508), "which exporters do not send again"
        assert "Retry-After" not in headers
        lines = (await metrics(running)).splitlines()
        assert 'skewd_refused_requests_total{reason="loop"} 2.0' in lines


async def test_a_chain_of_sidecars_is_no_loop() -> None:
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url) as last,
        sidecar(forward=last.http) as middle,
        sidecar(forward=f"grpc://{middle.grpc}") as first,
    ):
        assert (await call(first, traces()))[0] == "OK"
        assert (await post(first, traces(), PROTOBUF))[0] == 200
    assert [len(each.metadata[HOP_HEADER].split(",")) for each in behind.requests] == [3, 3]


# --------------------------------------------------------------------------------------------------- limits


async def connect(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = str(running.addresses["http"]).rpartition(":")
    return await asyncio.open_connection(host, int(port))


def head(size: int, more: bytes = b"") -> bytes:
    start = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    return start + more + b"Content-Length: %d\r\n\r\n" % size


async def test_a_limit_on_requests_holds_for_both_protocols_and_can_be_set() -> None:
    async with grpc_collector() as behind, sidecar(forward=behind.url, max_request_bytes=70_000) as running:
        large = b"\x7a\xf0\xa2\x04" + bytes(70_000)
        status, answer, _ = await post(running, large, PROTOBUF)
        assert (status, "70000 bytes; send less" in RpcStatus.FromString(answer).message) == (413, True)
        assert (await call(running, large))[0] == "RESOURCE_EXHAUSTED"
        assert behind.requests == []


def limit_http(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """In whoever speaks HTTP."""
    monkeypatch.setattr(f"skewd_sidecar.receive.http.{name}", value)
    if NATIVE_MISSING is None:
        monkeypatch.setattr(f"skewd_sidecar.receive.http_native.{name}", value)


async def test_who_is_slow_is_told_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_http(monkeypatch, "READ_S", 0.1)
    limit_http(monkeypatch, "IDLE_S", 0.3)
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running, asyncio.timeout(LIMIT_S):
        reader, writer = await connect(running)
        writer.write(head(10) + b"123")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"\r\nRetry-After: 1\r\n" in answer
        writer.close()
        for begun in (head(10)[:40], b""):  # a head that never ends, and none at all
            reader, writer = await connect(running)
            writer.write(begun)
            assert await reader.read() == b"", "it is closed"
            writer.close()
        while (await post(running, traces(), PROTOBUF))[0] != 200:  # a client on a busy machine is slow, too
            pass


async def test_connections_over_http_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_http(monkeypatch, "CONNECTIONS_MAX", 2)
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running, asyncio.timeout(LIMIT_S):
        held = [await connect(running) for _ in range(2)]
        reader, writer = held[0]
        writer.write(head(len(traces())) + traces())
        assert b" 200 " in await reader.readline(), "both are there"
        reader, writer = await connect(running)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in answer
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        while True:  # the next turn of the loop sees them gone
            with contextlib.suppress(aiohttp.ClientError):
                if (await post(running, traces(), PROTOBUF))[0] == 200:
                    break


async def test_connections_over_grpc_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.grpc.CONNECTIONS_MAX", 2)  # for the native one see its own tests
    python = Transport.PYTHON
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, transport=python) as running,
        asyncio.timeout(LIMIT_S),
    ):
        host, _, port = running.grpc.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for reader, _ in held:
            assert len(await reader.readexactly(9)) == 9, "the server's settings"
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read(9) == b"", "no more"
        for _, writer in held:
            writer.close()


async def test_too_many_calls_are_told_to_try_again_never_to_give_up() -> None:
    async def one(export: Any) -> tuple[str, int | None]:
        try:
            await export(traces(), timeout=LIMIT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, delay_s(error.trailing_metadata())
        return "OK", None

    def calls(channel: grpc.aio.Channel, count: int) -> list[asyncio.Future[tuple[str, int | None]]]:
        export: Any = channel.unary_unary(EXPORT, None, None)
        return [asyncio.ensure_future(one(export)) for _ in range(count)]

    async with observed() as (behind, running), contextlib.AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(running.grpc, options=options)) for _ in range(5)
        ]
        # A client that does not know yet how many calls it may have at once, or has as many, may be refused by its
        # connection, which gives no delay.
        for channel in channels:
            assert await calls(channel, 1)[0] == ("OK", None)
        behind.hold = asyncio.Event()
        taken = calls(channels[0], REQUESTS_MAX)
        while f"skewd_requests_in_flight {float(REQUESTS_MAX)}" not in (await metrics(running)).splitlines():
            assert not any(each.done() for each in taken)
        too_many = [each for channel in channels[1:] for each in calls(channel, 100)]
        refused = await asyncio.gather(*too_many)
        assert {name for name, _ in refused} == {"UNAVAILABLE"}, "none of them RESOURCE_EXHAUSTED"
        # The pause that is asked for grows while there are too many.
        assert {delay for _, delay in refused} <= {1, 2, 3, 4, 5}
        behind.hold.set()
        assert set(await asyncio.gather(*taken)) == {("OK", None)}


async def test_a_grpc_call_that_never_sends_its_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.grpc.CONNECTION_AGE_S", 0.1)
    monkeypatch.setattr("skewd_sidecar.receive.grpc.CONNECTION_GRACE_S", 0.1)
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, transport=Transport.PYTHON) as running,
        grpc.aio.insecure_channel(running.grpc) as channel,
        asyncio.timeout(LIMIT_S),
    ):
        begin: Any = channel.stream_unary(EXPORT, None, None)
        silent = begin()
        assert await silent.code() is grpc.StatusCode.UNAVAILABLE
        while (await call(running, traces()))[0] != "OK":  # on a busy machine a call may outlast a connection's age
            pass


async def test_noise_is_answered_counted_and_hardly_logged(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("http", "http_native"):  # what other tests made it say within the last minute is forgotten
        monkeypatch.setattr(f"skewd_sidecar.receive.{module}.log", QuietLog("receive"))
    async with observed() as (_, running), asyncio.timeout(LIMIT_S):
        for number in range(20):
            reader, writer = await connect(running)
            noise = b"\x16\x03\x01\x02\x00" if number % 2 else b"GET / HTTP/1.1\r\nHost: x\r\n\x01: \r\n\r\n"
            writer.write(noise)
            assert b" 400 " in await reader.readline()
            writer.close()
        assert (await post(running, traces(), PROTOBUF))[0] == 200
        assert 'skewd_refused_requests_total{reason="not_http"} 20.0' in (await metrics(running)).splitlines()
    said = "".join(capfd.readouterr()).splitlines() + [each.message for each in caplog.records]
    assert len([each for each in said if "is not HTTP" in each]) == 1
    assert len(said) <= 2


# ---------------------------------------------------------------------------------------------------- health


async def get(running: Running, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{running.addresses['metrics']}{path}") as response,
    ):
        return response.status, await response.text()


async def metrics(running: Running) -> str:
    return (await get(running, "/metrics"))[1]


@contextlib.asynccontextmanager
async def observed(**more: Any) -> AsyncIterator[tuple[Collector, Running]]:
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, metrics_listen="127.0.0.1:0", **more) as running,
    ):
        yield behind, running


async def test_alive_and_ready_until_it_stops() -> None:
    async with observed() as (behind, running):
        assert await get(running, "/healthz") == (200, "ok\n")
        assert await get(running, "/readyz") == (200, "ready\n")
        behind.hold = asyncio.Event()
        exporting = asyncio.create_task(call(running, traces()))
        await asyncio.wait_for(behind.arrived.wait(), LIMIT_S)
        lines = (await metrics(running)).splitlines()
        assert "skewd_requests_in_flight 1.0" in lines
        assert f"skewd_bytes_in_flight {float(len(traces()))}" in lines
        running.stop.set()
        while (await get(running, "/readyz"))[0] == 200:
            await asyncio.sleep(0)
        assert await get(running, "/readyz") == (503, "stopping\n")
        assert (await get(running, "/healthz"))[0] == 200, "it is not to be killed while it finishes"
        behind.hold.set()
        assert (await exporting)[0] == "OK"


async def test_a_loop_that_hardly_turns_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.metrics.LAG_MAX_S", -1.0)
    async with observed() as (_, running):
        status, text = await get(running, "/healthz")
        assert (status, "a turn" in text) == (503, True)


async def test_what_was_received_refused_and_added_is_counted() -> None:
    async with observed() as (_, running):
        assert (await call(running, traces()))[0] == "OK"
        assert (await post(running, traces(), PROTOBUF))[0] == 200
        assert (await post(running, traces_json(), JSON))[0] == 200
        assert (await post(running, traces()[:-1], PROTOBUF))[0] == 400
        assert (await post(running, b"{", JSON))[0] == 400
        assert (await post(running, b"", {"Content-Type": "text/plain"}))[0] == 415
        assert (await post(running, b"", PROTOBUF, "/v2/traces"))[0] == 404
        lines = (await metrics(running)).splitlines()
    size = float(len(traces()))
    for line in (
        'skewd_received_requests_total{encoding="protobuf",protocol="grpc"} 1.0',
        'skewd_received_requests_total{encoding="protobuf",protocol="http"} 2.0',
        'skewd_received_requests_total{encoding="json",protocol="http"} 1.0',
        f'skewd_received_bytes_total{{protocol="grpc"}} {size}',
        f'skewd_received_bytes_total{{protocol="http"}} {3 * size - 1}',
        'skewd_refused_requests_total{reason="malformed"} 2.0',
        'skewd_refused_requests_total{reason="content_type"} 1.0',
        'skewd_refused_requests_total{reason="path"} 1.0',
        'skewd_added_latency_seconds_bucket{le="+Inf"} 3.0',
        "skewd_added_latency_seconds_count 3.0",
        "skewd_requests_in_flight 0.0",
        "skewd_bytes_in_flight 0.0",
    ):
        assert line in lines


@needs_native
@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: +5\r\n",
        b"Host: y\r\nContent-Length: 5\r\n",
        b"X: a\r\n b\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\n",
    ],
)
async def test_a_request_with_two_ends_is_refused_with_all_that_follows_it(more: bytes) -> None:
    start = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
    hidden = head(len(traces())) + traces()
    native = Transport.NATIVE
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, transport=native) as running,
        asyncio.timeout(LIMIT_S),
    ):
        reader, writer = await connect(running)
        writer.write(start + more + b"\r\n" + b"0\r\n\r\n" + hidden)
        writer.write_eof()
        answer = await reader.read()
        assert (answer[:12], answer.count(b"HTTP/1.1")) == (b"HTTP/1.1 400", 2)  # the second is in the text
        assert b"Connection: close\r\n" in answer
        writer.close()
        assert (await post(running, traces(), PROTOBUF))[0] == 200
    assert len(behind.requests) == 1


async def test_chunks_and_requests_in_a_row_are_taken() -> None:
    body = traces()
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (body[:7], body[7:]))
    async with grpc_collector() as behind, sidecar(forward=behind.url, mode=Mode.OFF) as running:
        reader, writer = await connect(running)
        for request in (chunked + chunks + b"0\r\n\r\n", head(len(body)) + body):
            writer.write(request)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"content-length: 0\r\n" in answer.lower()
        writer.close()
    assert b"".join(behind.bodies()) == 2 * body
