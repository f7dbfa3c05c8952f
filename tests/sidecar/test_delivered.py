"""Delivered means delivered: a next hop that said 2xx has the request, whatever is wrong with the rest of its answer.

Each oddity is met by a served sidecar, in both transports: its exporter is told success, and the next hop was sent the
request once.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from email.utils import formatdate
from time import time

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from skewd_sidecar.forward.codings import decoded
from skewd_sidecar.forward.http import StatusSeen
from skewd_sidecar.service import Transport
from tests.sidecar import sidecar_lab
from tests.sidecar.raw_http import RawServer, raw_server, says
from tests.sidecar.sidecar_lab import Running, sidecar
from tests.waiting import LIMIT_S

transport = sidecar_lab.transport

REJECTED = ExportTraceServiceResponse()
REJECTED.partial_success.rejected_spans = 2
REJECTED.partial_success.error_message = "too old"
SAID = REJECTED.SerializeToString()

PROTOBUF = b"Content-Type: application/x-protobuf\r\n"
OK = b"HTTP/1.1 200 OK\r\n" + PROTOBUF
SIZE = b"Content-Length: %d\r\n" % len(SAID)

# What is wrong, and whether what the answer says of a partial success is known all the same.
ODD: dict[str, tuple[bytes, bool]] = {
    "nothing": (OK + SIZE + b"\r\n" + SAID, True),
    "another success": (b"HTTP/1.1 202 Accepted\r\n" + PROTOBUF + SIZE + b"\r\n" + SAID, True),
    "a body that is cut": (OK + SIZE + b"\r\n" + SAID[:-1], False),
    "no body": (OK + SIZE + b"\r\n", False),
    "chunks that are none": (OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", False),
    "chunks that are cut": (OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nab", False),
    "a chunk that is longer than it says": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", False),
    "a header of 20 KB": (OK + b"X-Trace: " + b"x" * 20_000 + b"\r\n" + SIZE + b"\r\n" + SAID, True),
    "a header of 200 KB": (OK + b"X-Trace: " + b"x" * 200_000 + b"\r\n" + SIZE + b"\r\n" + SAID, False),
    "different lengths": (OK + SIZE + b"Content-Length: 3\r\n\r\n" + SAID, False),
    "a length that is none": (OK + b"Content-Length: x\r\n\r\n", False),
    "a header that ends in its middle": (OK + b"Content-Len", False),
    "a coding that nobody knows": (OK + SIZE + b"Content-Encoding: br\r\n\r\n" + SAID, False),
    "no gzip, though it says so": (OK + SIZE + b"Content-Encoding: gzip\r\n\r\n" + SAID, False),
    "an announcement before it": (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + SIZE + b"\r\n" + SAID, True),
}
# Where the two transports may differ in how much they can save of an answer, but not in what it means.
ODD_TO_SOME = {
    "a folded header": OK + b"X: a\r\n b\r\n" + SIZE + b"\r\n" + SAID,
    "two equal lengths": OK + SIZE + SIZE + b"\r\n" + SAID,
    "a line that is no header": OK + b"no header\r\n" + SIZE + b"\r\n" + SAID,
    "a length beside chunks": OK + SIZE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


async def exported(running: Running, session: aiohttp.ClientSession) -> tuple[int, dict[str, str], bytes]:
    """What an exporter is told of a request."""
    headers = {"Content-Type": "application/x-protobuf"}
    async with session.post(running.http + "/v1/traces", data=b"\n\x00", headers=headers) as response:
        return response.status, dict(response.headers), await response.read()


async def told(behind: RawServer, transport: Transport) -> tuple[int, dict[str, str], bytes]:
    async with sidecar(forward=behind.url, grpc=None) as running, aiohttp.ClientSession() as session:
        return await asyncio.wait_for(exported(running, session), LIMIT_S)


@pytest.mark.parametrize("name", [*ODD, *ODD_TO_SOME])
async def test_a_success_is_one_whatever_is_wrong_with_its_answer(name: str, transport: Transport) -> None:
    answer, readable = ODD[name] if name in ODD else (ODD_TO_SOME[name], None)
    async with raw_server(says(answer)) as behind:
        status, _, body = await told(behind, transport)
        assert (status, len(behind.sent)) == (200, 1)
    assert body in ([SAID] if readable else [b""] if readable is False else [SAID, b""])


@pytest.mark.parametrize("answer", [OK + SIZE + b"\r\n", OK + b"X: ", b"HTTP/1.1 200 OK\r\n"])
async def test_a_success_whose_answer_never_ends_is_one_before_the_exporters_time_is_over(
    answer: bytes, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(int(2 * LIMIT_S * 1000)))
    async with raw_server(says(answer, ends=False)) as behind:
        status, _, _ = await told(behind, transport)
        assert (status, len(behind.sent)) == (200, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\nx",
        b"HTTP/1.1 400 Bad Request\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
async def test_a_refusal_is_one_whatever_is_wrong_with_its_answer(answer: bytes, transport: Transport) -> None:
    async with raw_server(says(answer)) as behind:
        status, _, _ = await told(behind, transport)
        assert (status, len(behind.sent)) == (400, 1)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP"])
async def test_a_coded_answer_is_decoded(coding: str, transport: Transport) -> None:
    body = zlib.compress(SAID) if coding == "deflate" else gzip.compress(SAID)
    head = OK + f"Content-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with raw_server(says(head + body)) as behind:
        status, headers, said = await told(behind, transport)
        assert (status, said) == (200, SAID)
        assert "Content-Encoding" not in headers
        assert b"accept-encoding: identity\r\n" in behind.heads[0].lower()


@pytest.mark.parametrize("date", ["", "Date: yesterday\r\n"])
async def test_a_retry_after_date_without_a_date_beside_it_is_compared_with_our_clock(
    date: str, transport: Transport
) -> None:
    until = formatdate(time() + 1000, usegmt=True)
    answer = f"HTTP/1.1 503 No\r\nRetry-After: {until}\r\n{date}Content-Length: 0\r\n\r\n".encode()
    async with raw_server(says(answer)) as behind:
        status, headers, _ = await told(behind, transport)
        assert status == 503
        assert 1000 - LIMIT_S < int(headers["Retry-After"]) <= 1001


def test_a_status_is_seen_once_its_line_is_whole_and_only_the_last_one() -> None:
    whole = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 207 M\xc3\xb6glich\r\n"
    for cut in range(len(whole)):
        seen = StatusSeen()
        assert not seen.feed(whole[:cut])
        before = seen.status
        assert before is None
        assert seen.feed(whole[cut:])
        assert (seen.status, seen.reason) == (207, "Möglich")
        assert not seen.feed(b"HTTP/1.1 500 No\r\n")
        assert seen.status == 207
    for nothing in (b"SSH-2.0-x\r\n", b"HTTP/1.1 20 OK\r\n", b"HTTP/2 200 OK\r\n", b"x" * 100_000):
        seen = StatusSeen()
        assert not seen.feed(nothing)
        assert not seen.feed(b"HTTP/1.1 200 OK\r\n")
        assert seen.status is None


def test_codings_are_undone_within_a_limit() -> None:
    twice = gzip.compress(zlib.compress(b"x"))
    assert decoded(twice, "deflate, gzip", 100) == b"x"
    assert decoded(b"x", None, 0) == decoded(b"x", " identity ,", 0) == b"x"
    raw = zlib.compressobj(wbits=-15)
    assert decoded(raw.compress(b"abc") + raw.flush(), "deflate", 3) == b"abc"
    assert decoded(gzip.compress(bytes(1001)), "gzip", 1000) is None
    assert decoded(gzip.compress(bytes(1000)), "gzip", 1000) == bytes(1000)
    cut = gzip.compress(b"x")[:-1]
    for answer, coding in ((b"", "gzip"), (cut, "gzip"), (b"x", "br"), (twice, "gzip,gzip,gzip,gzip")):
        assert decoded(answer, coding, 1000) is None
