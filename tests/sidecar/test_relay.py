"""What lies between the listeners and the next hop: limits, counts, and the node's name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import UNSYNCHRONIZED, Correction
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.outcome import UNAVAILABLE, Outcome, encode_status
from skewd_sidecar.patch import Mode, PatchOptions
from skewd_sidecar.relay import COPIES, Relay
from skewd_sidecar.source import StaticSource


class Held(Forwarders):
    """A next hop that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__({})
        self.go = asyncio.Event()

    async def send(self, signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        await self.go.wait()
        return Outcome.delivered(b"")


def request(spans: int = 1) -> bytes:
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for _ in range(spans):
        scope.spans.add(start_time_unix_nano=5, end_time_unix_nano=6)
    return made.SerializeToString()


def gateway(mode: Mode = Mode.TAG) -> Gateway:
    return Gateway(PatchOptions(mode, "a"), StaticSource("a", 1, 2))


@pytest.mark.parametrize("limit", ["requests", "bytes"])
async def test_beyond_the_limits_it_says_try_again_and_then_takes_more(limit: str) -> None:
    held, counted, body = Held(), gateway(), request()
    # One that is under way, as it came out, and one that is about to be, as it may come out at most.
    under_way_bytes = len(body) + (COPIES - 1) * len(gateway().handle(Signal.TRACES, body).body)
    foreseen = gateway().foresee(Signal.TRACES, body)
    coming_bytes = COPIES * len(body) + (COPIES - 1) * foreseen.growth_bytes + foreseen.notes_bytes
    by_bytes = {"bytes_max": under_way_bytes + coming_bytes}
    limits: dict[str, Any] = {"requests_max": 2} if limit == "requests" else by_bytes
    relay = Relay(counted, held, **limits)
    under_way = [asyncio.create_task(relay(Signal.TRACES, body, None)) for _ in range(2)]
    await asyncio.sleep(0)
    refused = await relay(Signal.TRACES, body, None)
    assert (refused.code, refused.http_status) == (UNAVAILABLE, 503)
    assert refused.retry_after_s is not None
    assert 1.0 <= refused.retry_after_s <= 1.5
    assert "try again" in refused.message
    held.go.set()
    assert all(outcome.ok for outcome in await asyncio.gather(*under_way))
    assert (await relay(Signal.TRACES, body, None)).ok
    assert counted.requests == {("traces", "delivered"): 3, ("traces", "busy"): 1}
    assert counted.spans["tagged"] == 3


async def test_one_request_larger_than_the_limit_is_taken_when_alone_and_a_cancelled_one_makes_room() -> None:
    held = Held()
    relay = Relay(gateway(), held, bytes_max=1)
    alone = asyncio.create_task(relay(Signal.TRACES, request(), None))
    await asyncio.sleep(0)
    assert not (await relay(Signal.TRACES, request(), None)).ok
    alone.cancel()
    await asyncio.wait({alone})
    held.go.set()
    assert (await relay(Signal.TRACES, request(), None)).ok


async def test_a_signal_without_a_next_hop_says_so() -> None:
    outcome = await Relay(gateway(), Forwarders({}))(Signal.LOGS, b"", None)
    assert (outcome.code, outcome.http_status) == (12, 404)
    assert "no next hop for logs" in outcome.message


class Starting:
    """A source that learns its node's name when the daemon starts."""

    node = ""

    def at(self, wall_ns: int) -> Correction:
        return UNSYNCHRONIZED


def test_the_node_is_named_by_the_settings_else_the_source_else_the_host() -> None:
    source = Starting()
    unnamed = Gateway(PatchOptions(Mode.TAG, ""), source, "host")
    named = Gateway(PatchOptions(Mode.TAG, "given"), source, "host")
    assert unnamed.options.node == "host"
    source.node = "daemon's"
    assert b"daemon's" in unnamed.handle(Signal.TRACES, request()).body
    assert b"given" in named.handle(Signal.TRACES, request()).body


def test_a_static_source_refuses_a_negative_uncertainty() -> None:
    with pytest.raises(ValueError, match="-1 ns"):
        StaticSource("a", 0, -1)


@pytest.mark.parametrize("message", ["", "short", "x" * 127, "x" * 128, "é" * 3000])
def test_a_status_is_what_protobuf_reads(message: str) -> None:
    status = RpcStatus.FromString(encode_status(14, message))
    assert status.code == 14
    assert message.startswith(status.message)
    assert len(status.message.encode()) == min(len(message.encode()), 1024)
