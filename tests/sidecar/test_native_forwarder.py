"""The native gRPC forwarder, beside its twin: to a proper server, to odd ones, to none."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward import Forwarder, GrpcForwarder
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome
from skewd_sidecar.service import Transport
from tests.sidecar.http2_lab import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    GRPC,
    HEADERS,
    PING,
    REFUSED_STREAM,
    RST_STREAM,
    Peer,
    block,
    frame,
    message,
    scripted,
    settings,
)
from tests.sidecar.sidecar_lab import NATIVE_MISSING, TRANSPORTS, free_port, grpc_collector, needs_native
from tests.waiting import LIMIT_S, until

if NATIVE_MISSING is None:
    from skewd_sidecar.forward.grpc_native import NativeGrpcForwarder
    from skewd_sidecar.native_hub import Hub

OK_HEAD = frame(HEADERS, END_HEADERS, 1, block([(":status", "200"), GRPC]))


def trailers(*fields: tuple[str, str], stream: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block(fields))


def only(*fields: tuple[str, str], stream: int = 1) -> bytes:
    """Headers and trailers in one."""
    return trailers((":status", "200"), GRPC, *fields, stream=stream)


def good(body: bytes = b"", stream: int = 1) -> bytes:
    """A whole answer that says OK."""
    head = frame(HEADERS, END_HEADERS, stream, block([(":status", "200"), GRPC]))
    return head + frame(DATA, 0, stream, message(body)) + trailers(("grpc-status", "0"), stream=stream)


@contextlib.asynccontextmanager
async def forwarding(
    by: Transport, port: int, host: str = "127.0.0.1", of: Signal = Signal.TRACES, **more: Any
) -> AsyncIterator[Forwarder]:
    destination = Destination("grpc", False, host, port, **({"timeout_s": LIMIT_S} | more))
    forwarder: Forwarder
    forwarder = NativeGrpcForwarder(of, destination) if by is Transport.NATIVE else GrpcForwarder(of, destination)
    try:
        async with asyncio.timeout(2 * LIMIT_S):
            yield forwarder
    finally:
        await forwarder.close()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


# --------------------------------------------------------------------------------------------- to a proper server


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("size", [0, 1, 40_000, 3_000_000])
@pytest.mark.parametrize("by", TRANSPORTS)
async def test_bodies_and_answers_arrive(by: Transport, size: int, compressed: bool) -> None:
    body = random.Random(size).randbytes(size)
    async with grpc_collector() as behind:
        behind.answer = body
        for signal in Signal:
            async with forwarding(by, port_of(behind.url), of=signal, gzip=compressed) as forwarder:
                assert await forwarder.send(body, None) == Outcome.delivered(body)
        assert [(each.signal, each.body) for each in behind.requests] == [(each, body) for each in Signal]


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_metadata_goes_along_and_our_own_wins(by: Transport) -> None:
    passed: Metadata = (("api-key", "theirs"), ("tenant", "7"))
    async with (
        grpc_collector() as behind,
        forwarding(by, port_of(behind.url), headers=(("api-key", "ours"),)) as forwarder,
    ):
        for metadata in (passed, ()):
            assert (await forwarder.send(b"x", LIMIT_S, metadata)).ok
    first, second = (each.metadata for each in behind.requests)
    assert (first["api-key"], first["tenant"]) == ("ours", "7")
    assert second["api-key"] == "ours"
    assert "tenant" not in second


@needs_native
async def test_a_header_that_cannot_be_sent_fails_its_request_only() -> None:
    async with grpc_collector() as behind, forwarding(Transport.NATIVE, port_of(behind.url)) as forwarder:
        outcome = await forwarder.send(b"x", None, (("a b", "c"),))
        assert outcome.code == 13
        assert "'a b'" in outcome.message
        assert (await forwarder.send(b"x", None, (("a", "c"),))).ok


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_a_failure_comes_back_whole(by: Transport) -> None:
    async with grpc_collector() as behind, forwarding(by, port_of(behind.url)) as forwarder:
        behind.fail_grpc = (grpc.StatusCode.ABORTED, "100 % läuft\nnicht", (("grpc-status-details-bin", b"\x00\xff"),))
        outcome = await forwarder.send(b"x", None)
    assert outcome.code == 10
    assert outcome.message.endswith(": 100 % läuft\nnicht")
    assert outcome.details == b"\x00\xff"


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_many_at_once_are_all_answered_though_the_server_takes_few(by: Transport) -> None:
    async with grpc_collector() as behind, forwarding(by, port_of(behind.url)) as forwarder:
        bodies = [bytes([number]) * 2000 for number in range(250)]
        outcomes = await asyncio.gather(*(forwarder.send(body, None) for body in bodies))
    assert all(outcome.ok for outcome in outcomes)
    assert sorted(behind.bodies()) == bodies


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_a_deadline_ends_the_wait(by: Transport) -> None:
    async with grpc_collector() as behind, forwarding(by, port_of(behind.url)) as forwarder:
        behind.hold = asyncio.Event()
        assert (await forwarder.send(b"x", 0.1)).code == 4
        behind.hold.set()
        assert (await forwarder.send(b"x", None)).ok


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_a_cancelled_request_leaves_nothing_and_others_go_on(by: Transport) -> None:
    async with grpc_collector() as behind, forwarding(by, port_of(behind.url)) as forwarder:
        behind.hold = asyncio.Event()
        sending = asyncio.ensure_future(forwarder.send(b"first", None))
        await behind.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        behind.hold.set()
        assert (await forwarder.send(b"second", None)).ok
        if by is Transport.NATIVE:
            hub = Hub.acquire()
            await until(lambda: not hub.stats["calls"], "the end of the call")
            hub.release()


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_unix_sockets_are_called(by: Transport, tmp_path: Path) -> None:
    path = str(tmp_path / "otlp.sock")

    async def taken(request: bytes, context: Any) -> bytes:
        return request[::-1]

    server = grpc.aio.server()
    service = {"Export": grpc.unary_unary_rpc_method_handler(taken)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(Signal.LOGS.grpc_service, service),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    async with forwarding(by, 0, path, Signal.LOGS) as forwarder:
        assert (await forwarder.send(b"abc", None)).body == b"cba"
    await server.stop(0)


# -------------------------------------------------------------------------------------------------- to odd servers


async def quiet(peer: Peer, stream: int) -> None:
    """Never answers."""


def says(*frames: bytes) -> Any:
    async def answer(peer: Peer, stream: int) -> None:
        peer.send(*frames)

    return answer


def hangs_up_after(*frames: bytes) -> Any:
    async def answer(peer: Peer, stream: int) -> None:
        peer.send(*frames)
        await peer.close()

    return answer


ODD: dict[str, tuple[int, Any]] = {
    "trailers only": (7, says(only(("grpc-status", "7"), ("grpc-message", "no%20way")))),
    "a status that is none": (2, says(only(("grpc-status", "x")))),
    "a status beyond all": (2, says(only(("grpc-status", "17")))),
    "no status": (2, says(OK_HEAD, frame(DATA, END_STREAM, 1, message(b"x")))),
    "HTTP 503": (14, says(trailers((":status", "503")))),
    "HTTP 404": (12, says(trailers((":status", "404")))),
    "a page": (
        2,
        says(
            frame(HEADERS, END_HEADERS, 1, block([(":status", "200"), ("content-type", "text/html")])),
            frame(DATA, END_STREAM, 1, b"<html>"),
        ),
    ),
    "reset: internal": (13, says(frame(RST_STREAM, 0, 1, struct.pack("!I", 2)))),
    "reset: calm": (8, says(frame(RST_STREAM, 0, 1, struct.pack("!I", 11)))),
    "gone away, in anger": (14, says(frame(GOAWAY, 0, 0, struct.pack("!II", 0, 11)))),
    "hung up": (14, hangs_up_after()),
    "hung up in an answer": (14, hangs_up_after(OK_HEAD)),
    "a frame larger than allowed": (14, says(struct.pack("!IBI", (1 << 24) - 1 << 8, 0, 1))),
    "no HTTP/2": (14, hangs_up_after(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
}


@needs_native
@pytest.mark.parametrize("name", ODD)
async def test_an_odd_answer_is_a_failure_and_never_more(name: str) -> None:
    code, answer = ODD[name]
    async with scripted(answer) as port, forwarding(Transport.NATIVE, port) as forwarder:
        outcome = await forwarder.send(b"x", None)
    assert outcome.code == code, outcome
    assert f"127.0.0.1:{port}: " in outcome.message
    if name == "trailers only":
        assert outcome.message.endswith(": no way")


SENT_BEFORE_OK = {
    "nothing": b"",
    "half a prefix": b"\0\0\0",
    "half a message": message(b"abc")[:-1],
    "no gzip": message(b"abc", 1),
}


@pytest.mark.parametrize("sent", SENT_BEFORE_OK.values(), ids=SENT_BEFORE_OK)
@pytest.mark.parametrize("by", TRANSPORTS)
async def test_ok_is_success_whatever_is_wrong_with_the_message_before_it(by: Transport, sent: bytes) -> None:
    asked = 0

    async def answer(peer: Peer, stream: int) -> None:
        nonlocal asked
        asked += 1
        frames = [frame(DATA, 0, stream, sent)] if sent else []
        head = frame(HEADERS, END_HEADERS, stream, block([(":status", "200"), GRPC, ("grpc-encoding", "gzip")]))
        peer.send(head, *frames, trailers(("grpc-status", "0"), stream=stream))

    async with scripted(answer) as port, forwarding(by, port) as forwarder:
        assert await forwarder.send(b"x", None) == Outcome.delivered(b"")
    assert asked == 1


@pytest.mark.parametrize("ends", [True, False], ids=["with its end", "without"])
@pytest.mark.parametrize("by", TRANSPORTS)
async def test_an_answer_that_is_too_long_is_left_out(by: Transport, ends: bool) -> None:
    if ends:
        async with grpc_collector() as behind, forwarding(by, port_of(behind.url)) as forwarder:
            behind.answer = bytes((4 << 20) + 1)
            assert await forwarder.send(b"x", None) == Outcome.delivered(b"")
            assert len(behind.requests) == 1
        return
    endless = says(OK_HEAD, frame(DATA, 0, 1, struct.pack("!BI", 0, (4 << 20) + 1)))
    async with scripted(endless) as port, forwarding(by, port) as forwarder:
        assert await forwarder.send(b"x", None) == Outcome.delivered(b"")


@pytest.mark.parametrize("by", TRANSPORTS)
async def test_a_compressed_answer_in_small_frames_with_padded_details(by: Transport) -> None:
    packed = message(gzip.compress(b"answer"), 1)
    head = frame(HEADERS, END_HEADERS, 1, block([(":status", "200"), GRPC, ("grpc-encoding", "gzip")]))
    pieces = [frame(DATA, 0, 1, packed[at : at + 1]) for at in range(len(packed))]
    async with (
        scripted(says(head, *pieces, trailers(("grpc-status", "0")))) as port,
        forwarding(by, port) as forwarder,
    ):
        assert await forwarder.send(b"x", None) == Outcome.delivered(b"answer")
    padded = only(("grpc-status", "3"), ("grpc-status-details-bin", "AA=="))
    async with scripted(says(padded)) as port, forwarding(by, port) as forwarder:
        assert (await forwarder.send(b"x", None)).details == b"\0"


@needs_native
@pytest.mark.parametrize("how", ["refused", "left out by a GOAWAY"])
async def test_what_the_server_did_not_take_is_sent_once_more(how: str) -> None:
    asked = 0

    async def answer(peer: Peer, stream: int) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            peer.send(good(b"taken", stream))
        elif how == "refused":
            peer.send(frame(RST_STREAM, 0, stream, struct.pack("!I", REFUSED_STREAM)))
        else:
            peer.send(frame(GOAWAY, 0, 0, bytes(8)))
            await peer.close()

    async with scripted(answer) as port, forwarding(Transport.NATIVE, port) as forwarder:
        assert await forwarder.send(b"x", None) == Outcome.delivered(b"taken")
    assert asked == 2


@needs_native
async def test_a_server_that_refuses_for_ever_is_asked_twice() -> None:
    asked = 0

    async def answer(peer: Peer, stream: int) -> None:
        nonlocal asked
        asked += 1
        peer.send(frame(RST_STREAM, 0, stream, struct.pack("!I", REFUSED_STREAM)))

    async with scripted(answer) as port, forwarding(Transport.NATIVE, port) as forwarder:
        assert (await forwarder.send(b"x", None)).code == 14
    assert asked == 2


@needs_native
async def test_a_connection_that_the_server_closed_in_between_costs_no_request() -> None:
    async def answer_and_leave(peer: Peer, stream: int) -> None:
        peer.send(good(b"taken", stream))
        await peer.close()

    async with scripted(answer_and_leave) as port, forwarding(Transport.NATIVE, port) as forwarder:
        hub = Hub.acquire()
        for _ in range(5):
            assert await forwarder.send(b"x", None) == Outcome.delivered(b"taken")
            await until(lambda: not hub.stats["next_hops"], "the end of the connection")
        hub.release()


@needs_native
async def test_the_next_hop_is_found_again_soon_after_its_return() -> None:
    with free_port() as port:
        async with forwarding(Transport.NATIVE, port) as forwarder:
            for _ in range(30):  # at once, though nobody is there
                outcome = await forwarder.send(b"x", None)
                assert outcome.code == 14
                assert "refused" in outcome.message
            for _ in range(2):  # and again after it went away
                async with grpc_collector(port):
                    async with asyncio.timeout(LIMIT_S):
                        while not (await forwarder.send(b"x", None)).ok:
                            await asyncio.sleep(0.01)


@needs_native
async def test_a_server_that_hangs_up_at_once_is_not_hammered() -> None:
    met = 0

    async def hang_up(peer: Peer, stream: int) -> None:
        nonlocal met
        met += 1

    async with scripted(hang_up, greet=False) as port, forwarding(Transport.NATIVE, port) as forwarder:
        for _ in range(200):
            assert (await forwarder.send(b"x", None)).code == 14
    assert met < 50


@needs_native
async def test_a_server_that_fell_silent_is_given_up_at_the_deadline_and_asked_whether_it_lives() -> None:
    asked = asyncio.Event()

    async def stalled(peer: Peer, stream: int) -> None:
        peer.send(settings(window=0))
        got = b""
        while piece := await peer.reader.read(65536):
            got += piece
            if frame(PING, 0, 0, b"")[3:] in got:
                asked.set()

    async with scripted(stalled, greet=False) as port, forwarding(Transport.NATIVE, port) as forwarder:
        while not asked.is_set():
            assert (await forwarder.send(bytes(100_000), 0.05)).code == 4


@needs_native
async def test_noise_from_the_next_hop_is_a_failure() -> None:
    noise = random.Random(3)

    async def answer(peer: Peer, stream: int) -> None:
        sent = bytearray(settings() + good(b"x"))
        for _ in range(noise.randrange(1, 6)):
            at = noise.randrange(len(sent))
            sent[at : at + noise.randrange(3)] = noise.randbytes(noise.randrange(3))
        peer.send(bytes(sent), noise.randbytes(noise.choice([0, 0, 50])))

    before = len(os.listdir("/proc/self/fd"))
    hub = Hub.acquire()
    async with scripted(answer, greet=False) as port:
        for _ in range(100):
            async with forwarding(Transport.NATIVE, port) as forwarder:
                await forwarder.send(b"x", 0.1)
    await until(lambda: not (hub.stats["calls"] or hub.stats["next_hops"]), "the end of all calls")
    assert hub.stats["panics"] == 0
    hub.release()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1, "its descriptors to be closed")


@needs_native
async def test_a_fault_in_a_call_fails_that_call() -> None:
    async with grpc_collector() as behind, forwarding(Transport.NATIVE, port_of(behind.url)) as forwarder:
        hub = Hub.acquire()
        with structlog.testing.capture_logs() as said:
            for what in (3, 4):
                hub._transport.panic_once(what)
                assert (await forwarder.send(b"x", None)).code == 14  # a fault of ours: worth another attempt
                assert (await forwarder.send(b"x", None)).ok
        assert any("a fault in the native transport" in line["event"] for line in said)
        assert not hub.lost
        hub.release()


@needs_native
async def test_should_the_thread_die_calls_fail_at_once_and_the_log_says_it() -> None:
    async with scripted(quiet) as port, forwarding(Transport.NATIVE, port) as forwarder:
        sending = asyncio.ensure_future(forwarder.send(b"x", None))
        await asyncio.sleep(0)
        hub = Hub.acquire()
        hub._transport.panic_once(5)
        with structlog.testing.capture_logs() as said:
            for outcome in (await forwarder.send(b"x", None), await sending, await forwarder.send(b"x", None)):
                assert outcome.code == 14
                assert "has ended" in outcome.message
        assert [line["event"] for line in said] == ["the native transport has ended"]
        assert hub.lost == "the native transport has ended"
        hub.release()


@needs_native
async def test_closing_fails_what_is_under_way() -> None:
    async with scripted(quiet) as port:
        async with forwarding(Transport.NATIVE, port) as forwarder:
            sending = asyncio.ensure_future(forwarder.send(b"x", None))
            await asyncio.sleep(0)
        outcome = await asyncio.wait_for(sending, LIMIT_S)
        assert outcome.code == 14
