"""What real SDKs sent (``captures/``), sent through a sidecar: nothing of it changes but what should."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import Mode
from tests.sidecar.exact import REQUEST, corrected, items, neutral
from tests.sidecar.sidecar_lab import Addresses, Collector, Running, grpc_collector, http_collector, sidecar
from tests.waiting import LIMIT_S

RECORDED = Path(__file__).parent / "captures" / "recorded"
LANGUAGES = ("python", "javascript", "java", "go")
TYPES = {"bin": "application/x-protobuf", "json": "application/json"}


def signal_of(file: Path) -> Signal:
    return Signal(file.stem.rpartition("-")[2])


async def post_json(body: bytes, signal: Signal, running: Running) -> None:
    kind = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(running.http + signal.http_path, data=body, headers=kind) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, kind["Content-Type"]), await answer.text()


async def send(file: Path, running: Addresses) -> None:
    """Sends a recorded body as its exporter did."""
    if "-grpc-" in file.name:
        path = f"/{signal_of(file).grpc_service}/Export"
        async with grpc.aio.insecure_channel(running.grpc) as channel:
            await channel.unary_unary(path, None, None)(file.read_bytes(), timeout=LIMIT_S)
        return
    kind = {"Content-Type": TYPES[file.suffix[1:]]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(running.http + signal_of(file).http_path, data=file.read_bytes(), headers=kind) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, kind["Content-Type"])


async def through(files: list[Path], onward: str, mode: Mode) -> dict[Path, bytes]:
    """What arrives behind a sidecar, for each."""
    arrived = {}
    behind: Collector
    async with (
        grpc_collector() if onward == "grpc" else http_collector() as behind,
        sidecar(forward=behind.url, mode=mode) as running,
    ):
        for file in files:
            await send(file, running)
            (only,) = behind.requests
            behind.requests.clear()
            assert only.signal is signal_of(file)
            arrived[file] = only.body
    return arrived


def assert_corrected(before: Any, after: Any, signal: Signal, mode: Mode) -> None:
    if signal is not Signal.METRICS:
        for item in items(before):
            corrected(item, mode)
    assert after == before


def test_each_sdk_was_recorded_by_each_protocol_with_all_kinds_of_content() -> None:
    names = {file.name for file in RECORDED.iterdir()}
    ways = [(language, way, "bin") for language in LANGUAGES for way in ("grpc", "http")]
    ways.append(("javascript", "json", "json"))
    assert names == {
        f"{one}-{way}-{signal}.{end}" for one, way, end in ways for signal in ("traces", "logs", "metrics")
    }
    assert sum(file.stat().st_size for file in RECORDED.iterdir()) < 300_000
    for language in LANGUAGES:
        request = REQUEST[Signal.TRACES].FromString((RECORDED / f"{language}-http-traces.bin").read_bytes())
        (parent,) = (span for span in items(request) if span.name == "parent ünïcode")
        kinds = {each.value.WhichOneof("value") for each in parent.attributes}
        assert kinds >= {"string_value", "bool_value", "int_value", "double_value", "array_value"}
        assert len(parent.events) == len(parent.links) == 2
        assert parent.start_time_unix_nano == 1_790_000_000_123_456_789
        assert {span.kind for span in items(request)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("onward", ["grpc", "http"])
async def test_captures_arrive_with_everything_but_times_and_ours_byte_identical(onward: str, mode: Mode) -> None:
    files = sorted(RECORDED.glob("*.bin"))
    for file, after in (await through(files, onward, mode)).items():
        before, signal = file.read_bytes(), signal_of(file)
        if signal is Signal.METRICS or mode is Mode.OFF:
            assert after == before, file.name
        assert neutral(after, signal) == neutral(before, signal), file.name
        kind = REQUEST[signal]
        assert_corrected(kind.FromString(before), kind.FromString(after), signal, mode)


def from_json(text: bytes, signal: Signal) -> Any:
    """OTLP/JSON read by protobuf's own reader, which wants ids in base64 where OTLP says hexadecimal."""

    said = replaced(json.loads(text), lambda written: base64.b64encode(bytes.fromhex(written)).decode())
    return json_format.ParseDict(said, REQUEST[signal]())


def as_json(request: Any, integers: Callable[[str], Any]) -> bytes:
    """A request in OTLP/JSON, by protobuf's own writer; 64-bit integers, which it writes as strings, as asked for."""
    said = json_format.MessageToDict(request)
    said = replaced(said, lambda written: base64.b64decode(written).hex())
    return json.dumps(replaced(said, integers, ("intValue", "timeUnixNano", "startTimeUnixNano", "asInt"))).encode()


def replaced(
    value: Any,
    change: Callable[[str], Any],
    named: tuple[str, ...] = ("traceId", "spanId", "parentSpanId"),
    key: str = "",
) -> Any:
    if isinstance(value, dict):
        return {name: replaced(each, change, named, name) for name, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, change, named) for each in value]
    return change(value) if key in named else value


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("onward", ["grpc", "http"])
async def test_json_arrives_with_everything_but_times_and_ours_equal(onward: str, mode: Mode) -> None:
    files = sorted(RECORDED.glob("*.json"))
    assert files
    for file, after in (await through(files, onward, mode)).items():
        signal = signal_of(file)
        assert_corrected(from_json(file.read_bytes(), signal), REQUEST[signal].FromString(after), signal, mode)


@pytest.mark.parametrize("integers", [str, int], ids=["strings", "numbers"])
async def test_integers_of_64_bits_in_json_stay_exact(integers: Callable[[str], Any]) -> None:
    largest = 0
    async with http_collector() as behind, sidecar(forward=behind.url, mode=Mode.REWRITE) as running:
        for file in sorted(RECORDED.glob("*.bin")):
            signal = signal_of(file)
            before = REQUEST[signal].FromString(file.read_bytes())
            largest = max(largest, file.read_bytes().count(b"\x18" + b"\xff" * 8 + b"\x7f"))  # an int_value of 2^63 - 1
            await post_json(as_json(before, integers), signal, running)
            assert_corrected(before, REQUEST[signal].FromString(behind.requests[-1].body), signal, Mode.REWRITE)
    assert largest
