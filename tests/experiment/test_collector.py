"""The collector's stand-in: bodies by mode, as they came."""

from __future__ import annotations

import gzip

import aiohttp
import grpc
import pytest

from skewd_pipeline import collector as module
from skewd_pipeline.collector import Collector

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOBUF = {"content-type": "application/x-protobuf"}


async def test_bodies_are_kept_by_mode_and_protocol_as_they_came() -> None:
    async with Collector() as collector, aiohttp.ClientSession() as session:
        plain = await collector.listen("off", "http")
        rpc = await collector.listen("tag", "grpc")
        assert plain.startswith("http://127.0.0.1:")
        async with session.post(f"{plain}/v1/traces", data=b"one", headers=PROTOBUF) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        packed = {**PROTOBUF, "content-encoding": "gzip"}
        async with session.post(f"{plain}/v1/traces", data=gzip.compress(b"two"), headers=packed) as answer:
            assert answer.status == 200
        async with grpc.aio.insecure_channel(rpc.removeprefix("grpc://")) as channel:
            export = channel.unary_unary(EXPORT, None, None)
            assert await export(b"three", compression=grpc.Compression.Gzip) == b""
        assert collector.take("off") == [b"one", b"two"]
        assert collector.take("tag") == [b"three"]
        assert collector.take("off") == []


async def test_a_full_collector_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODIES_MAX_BYTES", 4)
    async with Collector() as collector, aiohttp.ClientSession() as session:
        plain, rpc = await collector.listen("off", "http"), await collector.listen("tag", "grpc")
        async with session.post(f"{plain}/v1/traces", data=b"12345", headers=PROTOBUF) as answer:
            assert answer.status == 429
        async with grpc.aio.insecure_channel(rpc.removeprefix("grpc://")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(EXPORT, None, None)(b"12345")
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert collector.take("off") == collector.take("tag") == []
