"""A sidecar is bounded by what it will make of a request, not by what came: it counts, charges and refuses first.

Each bomb here is a few kilobytes that the sidecar before would have blown up to hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import re
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import UNSYNCHRONIZED, Correction
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.kernel import Choice, Kernel, PythonKernel, choose
from skewd_sidecar.outcome import Outcome
from skewd_sidecar.patch import (
    Action,
    MalformedRequest,
    Mode,
    PatchOptions,
    PatchResult,
    record_growth_bytes,
    take_census,
)
from skewd_sidecar.patch.census import DEEP_BYTES
from skewd_sidecar.receive import http_rules
from skewd_sidecar.receive.inflate import inflated
from skewd_sidecar.relay import Relay
from skewd_sidecar.source import StaticSource
from skewd_sidecar.transport import Transport
from tests.sidecar import cost, twins
from tests.sidecar.sidecar_lab import TRANSPORTS, grpc_collector, needs_native, sidecar, transport
from tests.sidecar.test_receiving import call, post
from tests.waiting import LIMIT_S, until

__all__ = ["transport"]

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
GZIP = {"Content-Encoding": "gzip"}
T0 = 1_790_000_000_000_000_001
KERNELS = [pytest.param(Choice.NATIVE, marks=needs_native), Choice.PYTHON]
MIB = 1 << 20
PEAK_BYTES = 160 * MIB
"""What a bomb may make a sidecar grow by: its bytes as they come out of gzip, and the budget of those under way."""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def field(number: int, content: bytes) -> bytes:
    """A field of wire type LEN."""
    length, size = b"", len(content)
    while size >= 0x80:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + content


def in_scope(records: bytes) -> bytes:
    return field(1, field(2, records))


EMPTY = field(2, b"")
TIMED = field(2, b"\x39" + T0.to_bytes(8, "little"))
LOG = field(2, b"\x09" + T0.to_bytes(8, "little"))
BATCH = field(1, b"")
EVENT = field(11, b"\x09" + T0.to_bytes(8, "little"))
LINK = field(13, b"")
ATTRIBUTE = field(9, b"")
MILLION = 1_000_000

BOMBS: dict[str, tuple[Signal, bytes]] = {
    "empty spans": (Signal.TRACES, in_scope(EMPTY * MILLION)),
    "spans": (Signal.TRACES, in_scope(TIMED * MILLION)),
    "log records": (Signal.LOGS, in_scope(LOG * MILLION)),
    "batches": (Signal.TRACES, BATCH * (3 * MILLION)),
    "scopes": (Signal.LOGS, field(1, field(2, b"") * (3 * MILLION))),
    "events": (Signal.TRACES, in_scope(field(2, b"\x39" + T0.to_bytes(8, "little") + EVENT * 1_200_000))),
    "links": (Signal.TRACES, in_scope(field(2, LINK * (3 * MILLION)))),
    "attributes": (Signal.TRACES, in_scope(field(2, ATTRIBUTE * (3 * MILLION)))),
    "times": (Signal.TRACES, in_scope(field(2, (b"\x39" + T0.to_bytes(8, "little")) * 1_800_000))),
    "metrics": (Signal.METRICS, BATCH * (3 * MILLION)),
}

_SERVE = """
import asyncio, json, sys
from skewd_sidecar.kernel import Choice
from skewd_sidecar.service import SidecarSettings, StaticSource, serve

given = json.loads(sys.argv[1])
given["kernel"] = Choice(given.get("kernel", "auto"))
settings = SidecarSettings(source=StaticSource("a", 1, 2), **given)
asyncio.run(serve(settings, lambda a: print(json.dumps(a), flush=True), asyncio.Event()))
"""


class Process:
    """A sidecar in a process of its own, whose memory can be asked for."""

    def __init__(self, pid: int, addresses: dict[str, str]) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.grpc, self.http = addresses["grpc"], f"http://{addresses['http']}"

    def _bytes(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1]) * 1024

    @property
    def peak_bytes(self) -> int:
        return self._bytes("VmHWM")


@asynccontextmanager
async def process(**given: Any) -> AsyncIterator[Process]:
    words = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "retry_s": 0.0} | given
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, json.dumps(words), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            yield Process(child.pid, json.loads(await child.stdout.readline()))
    finally:
        child.kill()
        await child.wait()


async def send(protocol: str, to: Any, of: Signal, body: bytes) -> tuple[str, str]:
    """Sends a protobuf body, compressed; the status and its words."""
    if protocol == "http":
        status, answer, _ = await post(to.http, gzip.compress(body), PROTOBUF | GZIP, of.http_path)
        return str(status), RpcStatus.FromString(answer).message if status != 200 else ""
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(to.grpc, options=options) as channel:
        export = channel.unary_unary(f"/{of.grpc_service}/Export", None, None)
        try:
            await export(body, timeout=LIMIT_S, compression=grpc.Compression.Gzip)
        except grpc.aio.AioRpcError as error:
            trailing: Any = error.trailing_metadata() or ()
            details = [value for key, value in trailing if key == "grpc-status-details-bin"]
            said = [each for status in details for each in RpcStatus.FromString(status).details]
            asked = [each for each in said if each.Is(RetryInfo.DESCRIPTOR)]
            return error.code().name + ("+RetryInfo" if asked else ""), error.details() or ""
    return "OK", ""


TOO_MUCH = {"grpc": "RESOURCE_EXHAUSTED", "http": "413"}
OK = {"grpc": "OK", "http": "200"}
TRY_AGAIN = {"grpc": "UNAVAILABLE+RetryInfo", "http": "503"}


# ------------------------------------------------------------------------------------------------- whole sidecars


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_bombs_are_refused_for_good_by_name_and_take_no_memory(kind: Transport) -> None:
    kernel = "python" if kind is Transport.PYTHON else "native"
    async with grpc_collector() as behind, process(transport=kind, kernel=kernel, forward=behind.url) as running:
        for protocol in ("grpc", "http"):  # what is loaded once is no bomb's
            assert (await send(protocol, running, Signal.TRACES, in_scope(TIMED)))[0] == OK[protocol]
        before = running.peak_bytes
        for name, (of, body) in BOMBS.items():
            for protocol in ("grpc", "http"):
                status, words = await send(protocol, running, of, body)
                if name == "times" and kernel == "native":  # which keeps as much in mind as came, and no more
                    assert status == OK[protocol], (name, protocol, words)
                    continue
                assert status == TOO_MUCH[protocol], (name, protocol, status, words)
                assert "raise [sidecar] max_" in words, (name, protocol, words)
        assert running.peak_bytes - before < PEAK_BYTES
        assert (await send("grpc", running, Signal.TRACES, in_scope(TIMED)))[0] == "OK"


JSON_BOMBS: dict[str, tuple[Signal, bytes]] = {
    "bucketCounts": (
        Signal.METRICS,
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"bucketCounts":['
        + b",".join([b"0"] * (8 * MILLION - 100))
        + b"]}]}}]}]}]}",
    ),
    "objects": (Signal.TRACES, b'{"resourceSpans":[' + b",".join([b"{}"] * 900_000) + b"]}"),
    "ignored": (Signal.TRACES, b'{"x":[' + b",".join([b"[]"] * 900_000) + b"]}"),
}


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_json_bombs_are_refused_before_they_are_read(kind: Transport) -> None:
    async with grpc_collector() as behind, process(transport=kind, forward=behind.url) as running:
        small = b'{"resourceSpans":[]}'
        assert (await post(running.http, small, JSON))[0] == 200
        before = running.peak_bytes
        for name, (of, text) in JSON_BOMBS.items():
            for headers, body in ((JSON | GZIP, gzip.compress(text)), (JSON, text)):
                status, answer, _ = await post(running.http, body, headers, of.http_path)
                assert status == 413, (name, answer)
                assert "raise [sidecar] max_" in json.loads(answer)["message"], name
        assert running.peak_bytes - before < PEAK_BYTES
        assert (await post(running.http, small, JSON))[0] == 200


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_the_limits_can_be_set(protocol: str, transport: Transport) -> None:
    async with (
        grpc_collector() as behind,
        sidecar(forward=behind.url, max_request_records=10, max_request_elements=1024) as running,
    ):
        assert (await send(protocol, running, Signal.TRACES, in_scope(TIMED * 10)))[0] == OK[protocol]
        status, words = await send(protocol, running, Signal.TRACES, in_scope(TIMED * 11))
        assert (status, "more than 10 spans" in words) == (TOO_MUCH[protocol], True)
        assert "max_request_records" in words
        status, words = await send(protocol, running, Signal.METRICS, BATCH * 1025)
        assert (status, "max_request_elements" in words) == (TOO_MUCH[protocol], True)
        assert len(behind.requests) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_will_come_out_is_what_is_admitted_by(protocol: str, transport: Transport) -> None:
    body = in_scope(TIMED * 1500)  # 20 KB, of which more than ten times as much comes
    async with grpc_collector() as behind, sidecar(forward=behind.url, max_bytes=MIB) as running:
        behind.hold = asyncio.Event()
        held = asyncio.create_task(send(protocol, running, Signal.TRACES, body))
        await until(lambda: behind.requests, "the first is under way")
        assert (await send(protocol, running, Signal.TRACES, body))[0] == TRY_AGAIN[protocol]
        behind.hold.set()
        assert (await held)[0] == OK[protocol]
        assert (await send(protocol, running, Signal.TRACES, body))[0] == OK[protocol]


@pytest.mark.parametrize("kernel", KERNELS)
async def test_spans_without_any_time_pass_as_they_came(kernel: Choice, transport: Transport) -> None:
    body = in_scope(EMPTY * 3 + field(2, field(5, b"name") + field(11, b"")))
    async with grpc_collector() as behind, sidecar(forward=behind.url, kernel=kernel, mode=Mode.REWRITE) as running:
        assert (await send("grpc", running, Signal.TRACES, body))[0] == "OK"
        assert behind.bodies() == [body]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_span_whose_event_alone_has_a_time_says_that_it_is_unsynchronized(kernel: Choice) -> None:
    gateway = Gateway(PatchOptions(Mode.TAG, "a"), Unknown(), kernel=choose(kernel))
    assert gateway.handle(Signal.TRACES, in_scope(field(2, EVENT))).actions == {Action.UNSYNCHRONIZED.value: 1}
    assert gateway.handle(Signal.TRACES, in_scope(field(2, field(11, b"\x09" + bytes(8))))).actions == {
        Action.UNCHANGED.value: 1
    }


class Unknown:
    """A source that knows nothing."""

    node = "a"

    def at(self, wall_ns: int) -> Correction:
        return UNSYNCHRONIZED


# -------------------------------------------------------------------------------- others are served meanwhile


class Slow(PythonKernel):
    """A kernel that waits, with a long body, until it is told to go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()

    def traces(self, body: bytes, *more: Any) -> PatchResult:
        if len(body) > self.inline_bytes:
            self.begun.set()
            assert self.go.wait(LIMIT_S), "others were not served meanwhile"
        return super().traces(body, *more)


class Taking(Forwarders):
    """A next hop that takes everything."""

    def __init__(self) -> None:
        super().__init__({})

    async def send(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        return Outcome.delivered(b"")


async def test_others_are_served_while_a_long_body_is_patched() -> None:
    kernel = Slow()
    relay = Relay(Gateway(PatchOptions(Mode.TAG, "a"), StaticSource("a", 1, 2), kernel=kernel), Taking())
    try:
        long = asyncio.create_task(relay(Signal.TRACES, in_scope(TIMED * 10_000), None))
        await until(kernel.begun.is_set, "the long one is being patched")
        assert (await relay(Signal.TRACES, in_scope(TIMED), None)).ok
        assert not long.done()
        kernel.go.set()
        assert (await long).ok
        assert relay.budget.held_bytes == 0
    finally:
        kernel.go.set()
        relay.close()


@pytest.mark.parametrize("form", ["protobuf", "json"])
async def test_others_are_served_while_a_long_body_is_inflated(
    form: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Event()
    def slow(encoding: str, body: bytes, limit: int) -> bytes:
        if limit > http_rules.INLINE_BYTES:
            begun.set()
            assert go.wait(LIMIT_S), "others were not served meanwhile"
        return inflated(encoding, body, limit)

    monkeypatch.setattr("skewd_sidecar.receive.http_rules.inflated", slow)
    if form == "protobuf":
        body, headers = in_scope(TIMED * 10_000), PROTOBUF
    else:
        body, headers = b'{"resourceSpans":[' + b",".join([b"{}"] * 30_000) + b"]}", JSON
    small = gzip.compress(in_scope(TIMED))
    async with grpc_collector() as behind, sidecar(forward=behind.url) as running:
        long = asyncio.create_task(post(running, gzip.compress(body), headers | GZIP))
        try:
            await until(begun.is_set, "the long one is being inflated")
            assert (await post(running, small, PROTOBUF | GZIP))[0] == 200
            assert (await post(running, b'{"resourceSpans":[]}', JSON))[0] == 200
            assert (await call(running, in_scope(TIMED)))[0] == "OK"
            assert not long.done()
        finally:
            go.set()
        assert (await long)[0] == 200


# ------------------------------------------------------------------------------------------------- the counts


def said(kernel: Kernel, body: bytes, logs: bool, records_max: int, elements_max: int) -> Any:
    try:
        return kernel.census(body, logs, records_max, elements_max)
    except MalformedRequest as error:
        return str(error)


@needs_native
def test_both_kernels_count_the_same() -> None:
    chance = random.Random(14)
    native, python = choose(Choice.NATIVE), choose(Choice.PYTHON)
    for number in range(3000):
        maker = twins.Maker(random.Random(number))
        logs = number % 2 == 0
        body = maker.request(logs, "clock.")
        if number % 10 == 0 and body:
            body *= DEEP_BYTES // len(body) + 1
        limits = chance.choice(((1 << 30, 1 << 30), (chance.randrange(9), 1 << 30), (1 << 30, chance.randrange(20))))
        assert said(native, body, logs, *limits) == said(python, body, logs, *limits), (number, body[:200])


def test_what_is_counted_is_what_is_there() -> None:
    request = ExportTraceServiceRequest()
    for _ in range(3):
        batch = request.resource_spans.add()
        batch.resource.attributes.add(key="a")
        scope = batch.scope_spans.add()
        for _ in range(50):
            span = scope.spans.add(start_time_unix_nano=1, end_time_unix_nano=2, name="x" * 2000)
            span.attributes.add(key="a")
            span.events.add(time_unix_nano=3)
            span.links.add()
    body = request.SerializeToString()
    assert len(body) > DEEP_BYTES
    assert take_census(body, False) == (150, 3 * (1 + 1 + 1 + 1) + 150 * (2 + 1 + 2 + 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_record_grows_by_more_than_foreseen(kernel: Choice) -> None:
    chosen = choose(kernel)
    for number in range(2000):
        maker = twins.Maker(random.Random(number))
        options, ask, table = maker.options(), maker.ask(), maker.table()
        logs = number % 2 == 0
        body = maker.request(logs, options.prefix)
        try:
            records = chosen.census(body, logs, 1 << 30, 1 << 30).records
            patched = (chosen.logs if logs else chosen.traces)(body, options, ask, table).body
        except MalformedRequest:
            continue
        assert len(patched) - len(body) <= record_growth_bytes(options) * records, (number, options)


# --------------------------------------------------------------------------------------------- for each byte that came


def options_of(mode: Mode) -> PatchOptions:
    return PatchOptions(mode, "node-a")


COSTLY = {
    "spans": TIMED,
    "empty spans": EMPTY,
    "events": field(2, EVENT * 50),
    "times": field(2, (b"\x39" + T0.to_bytes(8, "little")) * 20_000),
    "attributes": field(2, ATTRIBUTE * 50),
    "overlong tags": field(2, b"\xda\x80\x00\x00" * 50),
    "ours": field(2, b"\x39" + T0.to_bytes(8, "little") + field(9, field(1, b"clock.offset_ns")) * 50),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
@pytest.mark.parametrize("what", COSTLY)
def test_memory_is_what_was_charged_and_time_grows_with_the_length(kernel: Choice, mode: Mode, what: str) -> None:
    source = StaticSource("a", 1, 2)
    cost.check_protobuf(in_scope(COSTLY[what]), False, options_of(mode), source.at, source.table(), choose(kernel), 4)


@pytest.mark.parametrize("value", cost.JSON_SEEDS)
def test_json_takes_what_was_charged_wherever_it_stands(value: bytes) -> None:
    for choice in range(sum(map(len, cost.SHELLS.values()))):
        cost.check_json(value, choice, 4)
