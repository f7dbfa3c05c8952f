"""The native gRPC receiver: what it answers to, what it withstands, and how it stops.

What it has in common with the one of HTTP is tested with that, in ``test_native_receivers.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import socket
import struct
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.rpc.status_pb2 import Status as RpcStatus

from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import INTERNAL, UNAVAILABLE, Outcome
from tests.sidecar.http2_lab import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    TRACES,
    block,
    call,
    connected,
    frame,
    message,
    request_block,
    settings,
    status,
)
from tests.sidecar.native_lab import BODY, Handled, served, transport_threads
from tests.sidecar.sidecar_lab import NATIVE_MISSING
from tests.waiting import LIMIT_S, until, wait_until

pytestmark = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))
if NATIVE_MISSING is None:
    from skewd_sidecar.native_hub import Hub
    from skewd_sidecar.receive.grpc_native import NativeGrpcReceiver


def of(receiver: NativeGrpcReceiver) -> tuple[str, int]:
    assert isinstance(receiver.address, tuple)
    return receiver.address


# --------------------------------------------------------------------------------------------------- ordinary calls


@pytest.mark.parametrize("compression", list(grpc.Compression))
@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_bodies_arrive_as_they_were_sent(size: int, compression: grpc.Compression) -> None:
    body = random.Random(size).randbytes(size)
    answer = Outcome.delivered(body)
    async with (
        served(Handled(answer)) as serving,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{serving.address[1]}", options=[("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        for signal in Signal:
            call_it = channel.unary_unary(f"/{signal.grpc_service}/Export", None, None)
            assert await call_it(body, compression=compression, timeout=LIMIT_S) == body
        assert [(signal, got) for signal, got, *_ in serving.handled.requests] == [(each, body) for each in Signal]
        await serving.settled(connections=1)


async def test_a_failure_keeps_its_code_message_and_details() -> None:
    details = RpcStatus(code=9, message="\x00 läuft").SerializeToString()
    failed = Outcome.failed(9, "100 % läuft\nnicht", details)
    async with (
        served(Handled(failed)) as serving,
        grpc.aio.insecure_channel(f"127.0.0.1:{serving.address[1]}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(TRACES, None, None)(b"", timeout=LIMIT_S)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error.value.details() == failed.message
        trailing: Any = error.value.trailing_metadata()
        assert trailing.get("grpc-status-details-bin") == failed.details


async def test_details_too_long_for_a_header_are_left_out_and_the_failure_arrives() -> None:
    details = RpcStatus(code=UNAVAILABLE, message="d" * 100_000).SerializeToString()
    failed = Outcome.failed(UNAVAILABLE, "m" * 100_000, details)
    async with (
        served(Handled(failed)) as serving,
        grpc.aio.insecure_channel(f"127.0.0.1:{serving.address[1]}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary(TRACES, None, None)(b"", timeout=LIMIT_S)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error.value.details() == "m" * 1024


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (RuntimeError("on purpose"), UNAVAILABLE),
        (Outcome.failed(INTERNAL, "no text: \ud800"), UNAVAILABLE),
        (asyncio.CancelledError(), UNAVAILABLE),
    ],
    ids=["raises", "answers what cannot be sent", "is cancelled"],
)
async def test_whatever_a_handler_does_its_client_is_answered(answer: Any, code: int) -> None:
    async def broken(
        signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = (), *, since_s: float | None = None
    ) -> Outcome:
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    receiver = await NativeGrpcReceiver.open("127.0.0.1:0", broken)
    with structlog.testing.capture_logs() as said:
        async with connected(of(receiver)) as peer, asyncio.timeout(LIMIT_S):
            peer.send(call(1, b""))
            assert status(await peer.until_end(1)) == str(code)
    faults = [] if isinstance(answer, asyncio.CancelledError) else ["a request could not be handled"]
    assert [line["event"] for line in said] == faults
    await receiver.close(0)


async def test_the_deadline_is_told_to_the_handler_which_is_cancelled_once_it_has_passed() -> None:
    async with served(Handled(hold=asyncio.Event())) as serving, connected(serving.address) as peer:
        peer.send(call(1, b"x", ("grpc-timeout", "1S")))
        await serving.handled.cancelled.wait()
        timeout_s = serving.handled.requests[0][2]
        assert timeout_s is not None
        assert 0 < timeout_s <= 1
        assert status(await peer.until_end(1)) == "4"
        await serving.settled(connections=1)


async def test_a_request_that_is_reset_is_cancelled() -> None:
    async with served(Handled(hold=asyncio.Event())) as serving, connected(serving.address) as peer:
        peer.send(call(1, b"x"))
        await serving.handled.arrived.wait()
        peer.send(frame(RST_STREAM, 0, 1, struct.pack("!I", 8)))
        await serving.handled.cancelled.wait()
        await serving.settled(connections=1)


# --------------------------------------------------------------------------------------------------- odd requests

ODD: dict[str, tuple[str, list[bytes]]] = {
    "another path": ("12", [frame(HEADERS, END_HEADERS | END_STREAM, 1, request_block(path="/x/y"))]),
    "no content type": ("http 415", [frame(HEADERS, END_HEADERS | END_STREAM, 1, request_block(kind=None))]),
    "another content type": (
        "http 415",
        [frame(HEADERS, END_HEADERS | END_STREAM, 1, request_block(kind="application/grpcx"))],
    ),
    "GET": ("http 405", [frame(HEADERS, END_HEADERS | END_STREAM, 1, request_block(method="GET"))]),
    "no message": ("13", [frame(HEADERS, END_HEADERS | END_STREAM, 1, request_block())]),
    "half a prefix": (
        "13",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, END_STREAM, 1, b"\0\0\0")],
    ),
    "half a message": (
        "13",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, END_STREAM, 1, message(b"four")[:-1])],
    ),
    "two messages": (
        "13",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, END_STREAM, 1, message(b"a") + message(b"b"))],
    ),
    "a flag of 2": (
        "13",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, END_STREAM, 1, message(b"a", 2))],
    ),
    "compressed, unsaid": (
        "13",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, END_STREAM, 1, message(gzip.compress(b"a"), 1))],
    ),
    "no gzip": ("13", [call(1, b"", ("grpc-encoding", "gzip"))[:-5] + message(b"", 1)]),
    "another encoding": ("12", [call(1, b"a", ("grpc-encoding", "zstd"))]),
    "a timeout that is none": ("13", [call(1, b"a", ("grpc-timeout", "1.5S"))]),
    "a timeout of 0": ("4", [frame(HEADERS, END_HEADERS, 1, request_block(("grpc-timeout", "0S")))]),
    "more than the limit": (
        "8",
        [frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, 0, 1, struct.pack("!BI", 0, 1001))],
    ),
    "more than the limit once decompressed": (
        "8",
        [
            frame(HEADERS, END_HEADERS, 1, request_block(("grpc-encoding", "gzip"))),
            frame(DATA, END_STREAM, 1, message(gzip.compress(bytes(1001)), 1)),
        ],
    ),
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_requests_are_refused_and_the_connection_goes_on(name: str) -> None:
    expected, frames = ODD[name]
    async with served(body_max_bytes=1000) as serving, connected(serving.address) as peer:
        peer.send(*frames)
        assert status(await peer.until_end(1)) == expected
        assert serving.handled.requests == []
        peer.send(call(3, bytes(1000), ("grpc-encoding", "gzip")))
        assert (await peer.until_end(3))[1].content == message(b"taken")
        await serving.settled(connections=1)


@pytest.mark.parametrize(
    ("more", "timeout_s"),
    [((), None), ((("grpc-encoding", "identity"),), None), ((("grpc-timeout", "99999999H"),), 99_999_999 * 3600.0)],
)
async def test_what_is_rare_but_right_is_taken(more: tuple[tuple[str, str], ...], timeout_s: float | None) -> None:
    async with served() as serving, connected(serving.address) as peer:
        whole = frame(HEADERS, 0, 1, request_block(*more)[:20])
        whole += frame(CONTINUATION, END_HEADERS, 1, request_block(*more)[20:])
        body = message(b"in pieces")
        whole += b"".join(frame(DATA, 0, 1, body[at : at + 1]) for at in range(len(body)))
        whole += frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("a-trailer", "x")]))
        for at in range(len(whole)):  # byte for byte
            peer.send(whole[at : at + 1])
            await peer.writer.drain()
        assert (await peer.until_end(1))[1].content == message(b"taken")
        ((_, got, left_s, _),) = serving.handled.requests
        assert got == b"in pieces"
        assert (left_s is None) == (timeout_s is None)
        if left_s is not None and timeout_s is not None:
            assert timeout_s - LIMIT_S < left_s <= timeout_s


# --------------------------------------------------------------------------------------------------- hostile peers


async def test_noise_is_no_protocol() -> None:
    noise = random.Random(1)
    async with served() as serving:
        for number in range(150):
            first = noise.randbytes(noise.randrange(1, 400))
            if number % 3 == 1:
                first = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + first
            if number % 3 == 2:
                first = PREFACE + first
            async with connected(serving.address, first) as peer:
                await peer.sent_all()
                await peer.closed()
        await serving.settled()
        assert serving.hub.stats["panics"] == 0
        assert await serving.works()


async def test_frames_that_make_no_sense_cost_their_connection_at_most() -> None:
    noise = random.Random(2)
    good = [settings(), call(1, b"a"), call(3, b"b" * 300), frame(RST_STREAM, 0, 1, bytes(4))]
    async with served() as serving:
        for _ in range(250):
            sent = bytearray(b"".join(noise.choices(good, k=3)))
            for _ in range(noise.randrange(1, 6)):  # bytes changed, put in, taken out
                at = noise.randrange(len(sent))
                sent[at : at + noise.randrange(2)] = noise.randbytes(noise.randrange(3))
            for _ in range(noise.randrange(3)):  # and whole frames of any kind
                kind, flags, stream = noise.randrange(12), noise.randrange(256), noise.choice([0, 1, 2, 5, 1 << 31])
                sent += frame(kind, flags, stream, noise.randbytes(noise.choice([0, 4, 5, 8, 60])))
            async with connected(serving.address, PREFACE, settings(), bytes(sent)) as peer:
                await peer.sent_all()
                await peer.closed()
        await serving.settled()
        assert serving.hub.stats["panics"] == 0
        assert await serving.works()


async def test_half_a_frame_and_then_nothing_holds_up_nobody() -> None:
    whole = PREFACE + settings() + call(1, b"x" * 100)
    async with served() as serving, contextlib.AsyncExitStack() as stack:
        cuts = range(1, len(whole), 7)
        for cut in cuts:
            await stack.enter_async_context(connected(serving.address, whole[:cut]))
        assert await serving.works()
        await stack.aclose()
        await serving.settled()
    assert {body for _, body, *_ in serving.handled.requests} <= {BODY, b"x" * 100}


async def test_headers_are_bounded() -> None:
    async with served() as serving:
        async with connected(serving.address) as peer:
            large = request_block(*((f"x-{number}", "v" * 1000) for number in range(20)))
            parts = [large[at : at + 16000] for at in range(0, len(large), 16000)]
            peer.send(frame(HEADERS, END_STREAM, 1, parts[0]))
            for part in parts[1:]:
                peer.send(frame(CONTINUATION, END_HEADERS if part is parts[-1] else 0, 1, part))
            assert status(await peer.until_end(1)) in ("http 431", "reset 1", f"goaway {ENHANCE_YOUR_CALM}")
        async with connected(serving.address) as peer:  # headers that never end
            peer.send(frame(HEADERS, END_STREAM, 1, request_block()))
            with contextlib.suppress(ConnectionError):
                for _ in range(5000):
                    peer.send(frame(CONTINUATION, 0, 1, block([("x", "y" * 4000)])))
                    await peer.writer.drain()
            await peer.closed()
        assert serving.handled.requests == []
        await serving.settled()
        assert await serving.works()


@pytest.mark.parametrize("whole", [True, False], ids=["requests", "heads"])
async def test_a_peer_that_resets_all_it_asks_for_is_closed(whole: bool) -> None:
    async with served(Handled(hold=asyncio.Event())) as serving, connected(serving.address) as peer:

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for stream in range(1, 40_001, 2):
                    start = call(stream, b"x") if whole else frame(HEADERS, END_HEADERS, stream, request_block())
                    peer.send(start, frame(RST_STREAM, 0, stream, struct.pack("!I", 8)))
                    if stream % 64 == 1:
                        await peer.writer.drain()
                        await asyncio.sleep(0)

        flooding = asyncio.ensure_future(flood())
        while await peer.frame() is not None:  # else it would wait here for ever
            pass
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        await serving.settled()
        serving.handled.hold = None
        assert await serving.works()


async def test_small_floods_of_what_must_be_answered_are_bounded() -> None:
    async with served() as serving, connected(serving.address) as peer:
        peer.send(*([settings()] * 3000), *([frame(6, 0, 0, bytes(8))] * 3000), *([frame(DATA, 0, 1)] * 3000))
        await peer.sent_all()
        await peer.closed()
        await serving.settled()
        assert await serving.works()


async def test_a_client_that_takes_no_answer_is_not_waited_for_by_others() -> None:
    async with served(Handled(Outcome.delivered(bytes(500_000)))) as serving, contextlib.AsyncExitStack() as stack:
        stalled = await stack.enter_async_context(connected(serving.address, PREFACE, settings(window=0)))
        stalled.send(*(call(2 * number + 1, b"x") for number in range(100)))
        while len(serving.handled.requests) < 100:
            await asyncio.sleep(0.005)
        async with connected(serving.address, PREFACE, settings(window=1 << 20)) as peer:
            peer.send(frame(8, 0, 0, struct.pack("!I", 1 << 20)), call(1, b"x"))
            got = await peer.until_end(1)
            assert sum(len(each.content) for each in got if each.kind == DATA) == 500_005
        await stack.aclose()
        await serving.settled()


async def test_bytes_of_requests_that_stay_unfinished_are_bounded() -> None:
    async with served(held_max_bytes=200_000) as serving, contextlib.AsyncExitStack() as stack:
        statuses = []
        for _ in range(4):
            peer = await stack.enter_async_context(connected(serving.address))
            peer.send(
                frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, 0, 1, struct.pack("!BI", 0, 1 << 23))
            )
            peer.send(*(frame(DATA, 0, 1, bytes(10_000)) for _ in range(6)))
            peer.send(frame(6, 0, 0, bytes(8)))
            statuses.append(peer)
        refused = status(await statuses[-1].until_end(1))
        assert refused == str(UNAVAILABLE)
        assert serving.hub.stats["held_bytes"] <= 200_000
        await stack.aclose()
        await serving.settled()
        assert await serving.works()


async def test_requests_that_were_given_up_are_bounded_while_nobody_takes_them() -> None:
    async with served(held_max_bytes=20_000, metadata=["tenant"]) as serving:
        with contextlib.ExitStack() as stack:  # blocking, and with it the loop that would take them
            for _ in range(60):
                peer = stack.enter_context(socket.create_connection(serving.address))
                peer.sendall(PREFACE + settings() + call(1, b"x", ("tenant", "7" * 100)))
            wait_until(lambda: serving.hub.stats["refused"] > 0, "a refusal")
        wait_until(lambda: serving.hub.stats["requests"] == 0, "their end")
        assert 10_000 < serving.hub.stats["held_bytes"] <= 20_000
        await serving.settled()
        assert len(serving.handled.requests) < 35
        assert await serving.works()


async def test_a_request_that_trickles_in_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.grpc_native.READ_S", 0.1)
    async with served() as serving, connected(serving.address) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, 0, 1, struct.pack("!BI", 0, 1 << 20)))
        ended = asyncio.ensure_future(peer.until_end(1))
        while not ended.done():  # it is never silent
            peer.send(frame(DATA, 0, 1, b"."))
            await asyncio.sleep(0.005)
        assert status(await ended) == str(UNAVAILABLE)
        await serving.settled(connections=1)


async def test_a_request_that_does_not_arrive_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.grpc_native.READ_S", 0.05)
    async with served() as serving, connected(serving.address) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, request_block()), frame(DATA, 0, 1, message(b"four")[:-1]))
        assert status(await peer.until_end(1)) == str(UNAVAILABLE)
        await serving.settled(connections=1)


async def test_requests_beyond_the_limit_are_told_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_sidecar.receive.grpc_native.CONCURRENT_MAX", 2)
    async with served(Handled(hold=asyncio.Event())) as serving, connected(serving.address) as peer:
        peer.send(call(1, b"a"), call(3, b"b"), call(5, b"c"))
        assert status(await peer.until_end(5)) == str(UNAVAILABLE)
        assert serving.handled.hold is not None
        serving.handled.hold.set()
        await peer.until_end(3)
        assert [body for _, body, *_ in serving.handled.requests] == [b"a", b"b"]
        await serving.settled(connections=1)


async def test_a_thousand_idle_connections_keep_nobody_out() -> None:
    async with served(connections_max=900) as serving, contextlib.AsyncExitStack() as stack:
        busy = await stack.enter_async_context(connected(serving.address))
        busy.send(call(1, b"x"))
        await busy.until_end(1)
        idle = []
        for number in range(1000):
            first = (PREFACE, settings()) if number % 2 else (b"P",)
            idle.append(await stack.enter_async_context(connected(serving.address, *first)))
            if number % 100 == 0:
                busy.send(call(2 * number + 3, b"x"))  # used lately, and so kept
                assert (await busy.until_end(2 * number + 3))[1].content == message(b"taken")
        assert await serving.works()
        await idle[0].closed()  # gave way
        assert serving.hub.stats["connections"] <= 900
        busy.send(call(9999, b"x"))
        assert (await busy.until_end(9999))[1].content == message(b"taken")
        await stack.aclose()
        await serving.settled()


# --------------------------------------------------------------------------------------------- faults, and the end


async def test_a_listener_that_ends_unbidden_is_told() -> None:
    async with served() as serving, connected(serving.address) as peer:
        peer.send(call(1, b"x"))
        await peer.until_end(1)
        assert not serving.hub.lost
        serving.hub._transport.panic_once(6)
        async with connected(serving.address):
            assert "listener" in await serving.hub.until_lost()


async def test_a_listener_that_never_began_is_told() -> None:
    hub = Hub.acquire()
    hub._transport.panic_once(4)
    receiver = await NativeGrpcReceiver.open("127.0.0.1:0", Handled())
    async with asyncio.timeout(LIMIT_S):
        assert "listener" in await hub.until_lost()
    await receiver.close(0)
    hub.release()


async def test_a_stop_frees_the_port_lets_requests_finish_and_tells_clients_to_go() -> None:
    handled = Handled(hold=asyncio.Event())
    receiver = await NativeGrpcReceiver.open("127.0.0.1:0", handled)
    async with connected(of(receiver)) as idle, connected(of(receiver)) as peer:
        peer.send(call(1, b"x"))
        await handled.arrived.wait()
        closing = asyncio.ensure_future(receiver.close(LIMIT_S))
        goaway = await idle.frame()
        assert goaway is not None
        assert goaway.kind == GOAWAY
        while await idle.frame() is not None:
            pass
        while True:  # the listener is closed within a turn of the transport's loop
            try:
                _, writer = await asyncio.open_connection(*of(receiver))
                writer.close()
            except ConnectionRefusedError:
                break
        assert not closing.done()
        assert handled.hold is not None
        handled.hold.set()
        assert (await peer.until_end(1))[-2].content == message(b"taken")
        await asyncio.wait_for(closing, LIMIT_S)


async def test_a_stop_without_patience_tells_clients_to_try_again() -> None:
    handled = Handled(hold=asyncio.Event())
    receiver = await NativeGrpcReceiver.open("127.0.0.1:0", handled)
    async with connected(of(receiver)) as peer, connected(of(receiver), b"PRI * HT"):
        peer.send(call(1, b"x"))
        await handled.arrived.wait()
        closing = asyncio.ensure_future(receiver.close(0.05))
        assert status(await peer.until_end(1)) == str(UNAVAILABLE)
        await asyncio.wait_for(closing, LIMIT_S)
    assert handled.cancelled.is_set()
    await until(lambda: transport_threads() == 0, "the end of the transport's thread")


async def test_unix_sockets_are_served(tmp_path: Path) -> None:
    path = str(tmp_path / "otlp.sock")
    handled = Handled()
    receiver = await NativeGrpcReceiver.open(f"unix://{path}", handled, metadata=["tenant"])
    assert receiver.address == path
    # The authority that gRPC's C core makes of a path is refused: see the receiver's text.
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        answer = await channel.unary_unary(TRACES, None, None)(
            b"x", timeout=LIMIT_S, metadata=[("tenant", "7"), ("b", "c"), ("tenant", "8")]
        )
    assert answer == b"taken"
    assert handled.requests[0][3] == (("tenant", "7, 8"),)
    await receiver.close(0)
    assert not Path(path).exists()


async def test_headers_that_cannot_go_on_refuse_their_request() -> None:
    async with served(metadata=["tenant"]) as serving, connected(serving.address) as peer:
        peer.send(call(1, b"x", ("tenant", "n\xe4")))
        assert status(await peer.until_end(1)) == "3"
        assert serving.handled.requests == []
