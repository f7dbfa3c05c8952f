"""The ZeroMQ link for real: between daemons, and in-band through two applications that carry its frames."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from skewd.keys import KeyNeeded, KeyRing, MeshKey
from skewd.links import zmq as zmq_link
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.links.zmq import (
    ASK_STAMP,
    ATTACH,
    MAX_ATTACHMENTS,
    STAMP,
    LinkUnavailable,
    ZmqLink,
    client_pair,
    server_pair,
)
from skewd.ports import ListenError, PortTaken
from tests.links.link_bench import KEY, OTHER_KEY, HostTime, assert_true, described, member_keys
from tests.waiting import LIMIT_S, until

INTERVAL_NS = 20_000_000


class Daemon:
    """A node with one ZeroMQ link, its clock, and the proofs it was handed."""

    def __init__(self, name: str, clock: HostTime, key: KeyRing | MeshKey | None = KEY) -> None:
        self.name, self.clock, self.key = name, clock, key
        self.me = described(name)
        self.protocol = LinkProtocol(
            link="zmq", key=key, describe=lambda: self.me, random=os.urandom, member_keys=member_keys(name)
        )
        self.proofs: list[Proofs] = []
        self.link: ZmqLink

    async def open(self, *peers: str, listen: str = "tcp://127.0.0.1:0") -> str:
        self.link = await ZmqLink.open(
            listen, self.protocol, self.clock, self.proofs.append, peers, INTERVAL_NS, keys=self.key
        )
        return self.link.address

    def complete(self, name: str) -> list[Proofs]:
        return [proofs for proofs in self.proofs if proofs.peer.name == name and proofs.rtt_ns is not None]


class Application:
    """What a pipeline's stage does: owns the work's connection, and carries clock frames over it both ways."""

    def __init__(self, context: zmq.asyncio.Context, daemon: str, neighbour: str) -> None:
        self.hop = context.socket(zmq.DEALER)
        self.daemon = context.socket(zmq.DEALER)
        self.neighbour = neighbour
        self.carried = 0
        self.daemon.connect(daemon)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.daemon.send(ATTACH + self.neighbour.encode())
        self._tasks = [asyncio.create_task(self._out()), asyncio.create_task(self._in())]

    async def _out(self) -> None:
        while True:
            await self.hop.send_multipart([b"c", await self.daemon.recv()])
            self.carried += 1

    async def _in(self) -> None:
        while True:
            kind, *frames = await self.hop.recv_multipart()
            if kind == b"c":
                await self.daemon.send(frames[0])

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.hop.close(linger=0)
        self.daemon.close(linger=0)


Start = Callable[..., Daemon]
Dealer = Callable[[str], zmq.asyncio.Socket]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    daemons: list[Daemon] = []

    def make(name: str, *args: object, **options: object) -> Daemon:
        daemon = Daemon(name, *args, **options)  # type: ignore[arg-type]
        daemons.append(daemon)
        return daemon

    yield make
    for daemon in daemons:
        if hasattr(daemon, "link"):
            await daemon.link.close()


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def dealer(context: zmq.asyncio.Context) -> Iterator[Dealer]:
    """An application's DEALER, connected; closed at the end."""
    sockets = []

    def connect(address: str) -> zmq.asyncio.Socket:
        sock = context.socket(zmq.DEALER)
        sockets.append(sock)
        sock.connect(address)
        return sock

    yield connect
    for sock in sockets:
        sock.close(linger=0)


def ipc(tmp_path: Path, name: str) -> str:
    return f"ipc://{tmp_path}/{name}.sock"


async def test_daemons_over_tcp(start: Start) -> None:
    a = start("a", HostTime(epoch_ns=10**15, drift_ppb=90_000))
    b = start("b", HostTime(epoch_ns=-(10**17), drift_ppb=-90_000))
    address = await b.open()
    assert address.startswith("tcp://127.0.0.1:")
    await a.open(address)
    await until(lambda: len(a.complete("b")) >= 5 and len(b.complete("a")) >= 5)
    for proofs in a.proofs:
        assert_true(proofs, a.clock, b.clock)
        assert proofs.address == address
    for proofs in b.proofs:
        assert_true(proofs, b.clock, a.clock)
    assert a.link.counters["internal_errors"] == b.link.counters["internal_errors"] == 0


async def test_a_daemon_that_comes_up_later_is_found(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await b.open()
    await b.link.close()
    await a.open(address)
    await until(lambda: a.link.counters["send_dropped"] >= 3)
    await b.open(listen=address)
    await until(lambda: a.complete("b"))


async def test_in_band_over_the_work_s_own_connection(
    start: Start, context: zmq.asyncio.Context, tmp_path: Path
) -> None:
    a = start("a", HostTime(epoch_ns=10**15, drift_ppb=50_000))
    b = start("b", HostTime(epoch_ns=-(10**15), drift_ppb=-50_000))
    up = Application(context, await a.open(listen=ipc(tmp_path, "a")), "b")
    down = Application(context, await b.open(listen=ipc(tmp_path, "b")), "a")
    port = down.hop.bind_to_random_port("tcp://127.0.0.1")
    up.hop.connect(f"tcp://127.0.0.1:{port}")
    await up.start()
    await down.start()
    # Work flows over the same connection.
    await up.hop.send_multipart([b"w", b"{}", b"work"])
    await until(lambda: len(a.complete("b")) >= 5 and len(b.complete("a")) >= 5)
    for proofs in a.proofs:
        assert_true(proofs, a.clock, b.clock)
        assert proofs.address == "in-band:b"
    for proofs in b.proofs:
        assert_true(proofs, b.clock, a.clock)
    assert a.link.attached == ("b",)
    assert a.protocol.peers(a.clock.raw_ns())["b"].address == "in-band:b"

    # The application repeats itself: nothing changes. It goes: the attachment goes with it. It comes back.
    await up.daemon.send(ATTACH + b"b")
    seen = len(a.complete("b"))
    await until(lambda: len(a.complete("b")) > seen)
    assert a.link.counters["attached"] == 1
    await up.stop()
    await until(lambda: a.link.attached == ())
    assert a.protocol.targets() == ()
    again = Application(context, a.link.address, "b")
    again.hop.connect(f"tcp://127.0.0.1:{port}")
    await again.start()
    seen = len(a.complete("b"))
    await until(lambda: len(a.complete("b")) > seen)
    await again.stop()
    await down.stop()


async def test_one_side_attached_is_enough(start: Start, context: zmq.asyncio.Context, tmp_path: Path) -> None:
    a, b = start("a", HostTime()), start("b", HostTime(epoch_ns=10**9))
    up = Application(context, await a.open(listen=ipc(tmp_path, "a")), "what-the-app-calls-it")
    down = Application(context, await b.open(listen=ipc(tmp_path, "b")), "a")
    port = down.hop.bind_to_random_port("tcp://127.0.0.1")
    up.hop.connect(f"tcp://127.0.0.1:{port}")
    down._tasks = [asyncio.create_task(down._out()), asyncio.create_task(down._in())]
    await up.start()
    await until(lambda: len(a.complete("b")) >= 3 and len(b.complete("a")) >= 3)
    assert b.link.attached == ()
    # The name is the peer's own, whatever the application calls it.
    assert {proofs.peer.name for proofs in a.proofs} == {"b"}
    await up.stop()
    await down.stop()


async def test_an_application_of_another_mesh_is_counted_and_ignored(
    start: Start, context: zmq.asyncio.Context, tmp_path: Path
) -> None:
    a, b = start("a", HostTime()), start("b", HostTime(), key=OTHER_KEY)
    up = Application(context, await a.open(listen=ipc(tmp_path, "a")), "b")
    down = Application(context, await b.open(listen=ipc(tmp_path, "b")), "a")
    port = down.hop.bind_to_random_port("tcp://127.0.0.1")
    up.hop.connect(f"tcp://127.0.0.1:{port}")
    await up.start()
    await down.start()
    await until(lambda: a.link.counters["wrong_key"] >= 2 and b.link.counters["wrong_key"] >= 2)
    assert a.proofs == b.proofs == []
    await up.stop()
    await down.stop()


async def test_attachments_are_bounded_and_the_least_recently_used_gives_way(
    start: Start, dealer: Dealer, tmp_path: Path
) -> None:
    a = start("a", HostTime())
    address = await a.open(listen=ipc(tmp_path, "a"))
    sockets = []
    for number in range(MAX_ATTACHMENTS + 2):
        sock = dealer(address)
        sockets.append(sock)
        await sock.send(ATTACH + f"n{number}".encode())
        await until(lambda: a.link.counters["attached"] == len(sockets))
        if number == MAX_ATTACHMENTS - 1:
            await sockets[0].send(ATTACH + b"n0")
            await until(lambda: a.link.attached[-1] == "n0")
    assert len(a.link.attached) == MAX_ATTACHMENTS
    assert a.link.counters["attach_displaced"] == 2
    assert "n0" in a.link.attached
    assert "n1" not in a.link.attached
    assert "n2" not in a.link.attached


async def test_two_hops_to_one_neighbour_are_two_addresses(start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a = start("a", HostTime())
    address = await a.open(listen=ipc(tmp_path, "a"))
    for _ in range(2):
        await dealer(address).send(ATTACH + b"b")
    await until(lambda: {target.address for target in a.protocol.targets()} == {"in-band:b", "in-band:b#2"})


@pytest.mark.parametrize("name", [b"", b"a b", b"\xff", b"x" * 64])
async def test_names_that_no_node_has_are_refused(name: bytes, start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a = start("a", HostTime())
    await dealer(await a.open(listen=ipc(tmp_path, "a"))).send(ATTACH + name)
    await until(lambda: a.link.counters["attach_refused"] == 1)
    assert a.link.attached == ()


async def test_without_a_key_nothing_is_carried_in_band(start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a, b = start("a", HostTime(), key=None), start("b", HostTime(), key=None)
    address = await a.open(listen=ipc(tmp_path, "a"))
    await dealer(address).send(ATTACH + b"b")
    await until(lambda: a.link.counters["attach_refused"] == 1)
    # Between daemons of this machine it serves.
    await b.open(address, listen=ipc(tmp_path, "b"))
    await until(lambda: b.complete("a") and a.complete("b"))


async def test_a_stamp_for_the_work_proves_one_side_and_is_used_once(
    start: Start, dealer: Dealer, tmp_path: Path
) -> None:
    a, b = start("a", HostTime()), start("b", HostTime(epoch_ns=7_000_000_000))
    of_a, of_b = await a.open(listen=ipc(tmp_path, "a")), await b.open(listen=ipc(tmp_path, "b"))
    sender, receiver = dealer(of_a), dealer(of_b)
    await sender.send(ASK_STAMP)
    answer = await sender.recv()
    assert answer.startswith(STAMP)
    # Nobody ever spoke with a: authentic, and perhaps from a boot long ago.
    await receiver.send(answer.removeprefix(STAMP))
    await until(lambda: b.link.counters["one_way_unconfirmed"] == 1)
    assert b.proofs == []
    await b.link.close()
    await b.open(of_a, listen=ipc(tmp_path, "b2"))
    await until(lambda: bool(b.complete("a")))
    again = dealer(b.link.address)
    await sender.send(ASK_STAMP)
    stamp = (await sender.recv()).removeprefix(STAMP)
    await again.send(stamp)
    await until(lambda: any(proofs.address.startswith("zmq:") for proofs in b.proofs))
    await again.send(stamp)
    await until(lambda: b.link.counters["replay"] == 1)
    for proofs in b.proofs:
        assert_true(proofs, b.clock, a.clock)


async def test_stamps_are_limited_and_need_a_key(start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a, keyless = start("a", HostTime()), start("b", HostTime(), key=None)
    application = dealer(await a.open(listen=ipc(tmp_path, "a")))
    for _ in range(1000):
        await application.send(ASK_STAMP)
    await until(lambda: a.link.counters["stamps"] + a.link.counters["stamps_refused"] == 1000)
    assert 10 <= a.link.counters["stamps"] < 1000
    await dealer(await keyless.open(listen=ipc(tmp_path, "b"))).send(ASK_STAMP)
    await until(lambda: keyless.link.counters["attach_refused"] == 1)
    assert keyless.link.counters["stamps"] == 0


async def test_without_a_key_nothing_beyond_this_machine(start: Start) -> None:
    a = start("a", HostTime(), key=None)
    with pytest.raises(KeyNeeded, match="tcp://0"):
        await a.open(listen="tcp://0.0.0.0:0")
    with pytest.raises(KeyNeeded, match="tcp://192"):
        await a.open("tcp://192.0.2.1:5")


# -- beyond this machine: CURVE -------------------------------------------------------------------------------------


class Wire:
    """A TCP relay that keeps what passes: somebody who listens on the path."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            ways = ((reader, back), (there, writer))
            self._tasks |= {asyncio.create_task(self._pass(*way)) for way in ways}

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                self.seen += data
                writer.write(data)
        writer.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def test_the_pairs_come_from_the_key_and_from_nothing_else() -> None:
    pairs = [server_pair(KEY), client_pair(KEY), server_pair(OTHER_KEY), client_pair(OTHER_KEY)]
    assert len({pair.public for pair in pairs} | {pair.secret for pair in pairs}) == 8
    assert server_pair(MeshKey.from_secret(KEY.secret)) == pairs[0]
    assert all(zmq.curve_public(pair.secret) == pair.public for pair in pairs)


async def test_beyond_this_machine_nothing_travels_in_clear(start: Start) -> None:
    # Bound on all addresses, so it speaks CURVE; the other end is reached through loopback, and finds that out.
    a, b = start("name-of-a", HostTime(epoch_ns=10**15)), start("name-of-b", HostTime())
    wire = Wire()
    try:
        through = await wire.start(port_of(await b.open(listen="tcp://0.0.0.0:0")))
        await a.open(through)
        await until(lambda: len(a.complete("name-of-b")) >= 3 and len(b.complete("name-of-a")) >= 3)
        for proofs in a.proofs:
            assert_true(proofs, a.clock, b.clock)
        assert a.link.counters["keys_tried"] >= 1
        curve = wire.seen[wire.seen.index(b"CURVE") :]
        for secret in (b"skwd", b"name-of-a", b"name-of-b", server_pair(KEY).public, zmq_raw(server_pair(KEY).public)):
            assert secret not in curve
    finally:
        await wire.stop()


def zmq_raw(public: bytes) -> bytes:
    from zmq.utils import z85

    return z85.decode(public)


async def test_on_loopback_frames_are_plain_for_applications_have_no_key(start: Start) -> None:
    a, b = start("name-of-a", HostTime()), start("name-of-b", HostTime())
    wire = Wire()
    try:
        await a.open(await wire.start(port_of(await b.open())))
        await until(lambda: a.complete("name-of-b"))
        assert b"name-of-a" in wire.seen
    finally:
        await wire.stop()


async def test_an_outsider_gets_nothing_past_the_handshake(
    start: Start, dealer: Dealer, context: zmq.asyncio.Context
) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    port = port_of(await a.open(listen="tcp://0.0.0.0:0"))
    await b.open(f"tcp://127.0.0.1:{port}")
    await until(lambda: b.complete("a"))
    before = dict(a.link.counters)
    # In clear; with a key of another mesh; and what is no ZeroMQ at all.
    in_clear = dealer(f"tcp://127.0.0.1:{port}")
    # While a connection is being refused there is no pipe to send into: then nothing is sent, which is as good.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(in_clear.send_multipart([b"x" * 500] * 1000), LIMIT_S)
    stranger = context.socket(zmq.DEALER)
    mine = client_pair(OTHER_KEY)
    stranger.curve_serverkey, stranger.curve_publickey, stranger.curve_secretkey = (
        server_pair(OTHER_KEY).public,
        mine.public,
        mine.secret,
    )
    stranger.connect(f"tcp://127.0.0.1:{port}")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stranger.send(b"x"), LIMIT_S)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(os.urandom(3000))
    await until(lambda: a.link.counters["handshakes_failed"] >= before["handshakes_failed"] + 3)
    seen = len(b.complete("a"))
    await until(lambda: len(b.complete("a")) > seen + 2)
    for reason in ("bad_frames", "truncated", "oversized", "bad_magic", "rate_limited", "wrong_key"):
        assert a.link.counters[reason] == before[reason], reason
    stranger.close(linger=0)
    writer.close()
    del reader


async def test_a_rotation_separates_nobody(start: Start) -> None:
    old, both, new = KeyRing((KEY,)), KeyRing((OTHER_KEY, KEY)), KeyRing((OTHER_KEY,))
    a, b = start("a", HostTime(), key=old), start("b", HostTime(), key=old)
    port = port_of(await a.open(listen="tcp://0.0.0.0:0"))
    await b.open(f"tcp://127.0.0.1:{port}")
    await until(lambda: b.complete("a"))
    # The new key comes in second, then first; one node is ahead of the other.
    for node in (a, b):
        node.link.use_keys(KeyRing((KEY, OTHER_KEY)))
    a.link.use_keys(both)
    c = start("c", HostTime(), key=KeyRing((KEY, OTHER_KEY)))
    await c.open(f"tcp://127.0.0.1:{port}")
    seen = len(b.complete("a"))
    await until(lambda: len(b.complete("a")) > seen + 2 and len(c.complete("a")) > 2)
    b.link.use_keys(both)
    for node in (a, b):
        node.link.use_keys(new)
    # Who comes now with the new key alone is let in; who has the old one alone is not.
    late, left = start("late", HostTime(), key=new), start("left", HostTime(), key=old)
    await late.open(f"tcp://127.0.0.1:{port}")
    failed = a.link.counters["handshakes_failed"]
    await left.open(f"tcp://127.0.0.1:{port}")
    seen = len(b.complete("a"))
    await until(lambda: len(late.complete("a")) > 2 and len(b.complete("a")) > seen + 2)
    await until(lambda: a.link.counters["handshakes_failed"] > failed)
    assert left.proofs == []


async def test_beyond_this_machine_without_curve_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda _: False)
    with pytest.raises(LinkUnavailable, match="this libzmq has no CURVE"):
        await start("a", HostTime()).open(listen="tcp://0.0.0.0:0")


async def test_noise_is_counted_and_changes_nothing(start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await a.open(listen=ipc(tmp_path, "a"))
    await b.open(address, listen=ipc(tmp_path, "b"))
    noise = dealer(address)
    await noise.send(os.urandom(100))
    await noise.send(b"\x00" * 336)
    await noise.send(b"")
    await noise.send_multipart([b"one", b"two"])
    await noise.send_multipart([b"many"] * 100)
    await until(lambda: a.link.counters["bad_frames"] == 2 and a.link.counters["truncated"] == 2)
    await until(lambda: a.link.counters["bad_magic"] == 1)
    await noise.send(os.urandom(5000))  # over the limit: libzmq ends the connection
    seen = len(a.complete("b"))
    await until(lambda: len(a.complete("b")) > seen + 2)
    assert a.link.counters["internal_errors"] == 0


async def test_a_burst_is_drained_to_its_end(start: Start, dealer: Dealer, tmp_path: Path) -> None:
    a = start("a", HostTime())
    noise = dealer(await a.open(listen=ipc(tmp_path, "a")))
    for _ in range(1000):
        await noise.send(b"x")
    await until(lambda: a.link.counters["truncated"] == 1000)


async def test_a_taken_address_names_its_holder(start: Start, tmp_path: Path) -> None:
    a, b, c = start("a", HostTime()), start("b", HostTime()), start("c", HostTime())
    address = await a.open()
    with pytest.raises(PortTaken, match=rf"/tcp is taken by pid {os.getpid()} \(.*choose another with \[\[link\]\]"):
        await b.open(listen=address)
    path = ipc(tmp_path, "c")
    await c.open(listen=path)
    with pytest.raises(PortTaken, match=rf"c\.sock is taken by pid {os.getpid()} \("):
        await b.open(listen=path)


async def test_a_socket_file_left_behind_is_no_obstacle(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "a.sock"))
    a = start("a", HostTime())
    assert await a.open(listen=ipc(tmp_path, "a")) == ipc(tmp_path, "a")
    (tmp_path / "file.sock").write_text("not a socket")
    with pytest.raises(ListenError, match="is no socket"):
        await start("b", HostTime()).open(listen=ipc(tmp_path, "file"))


async def test_addresses_that_cannot_be_used_are_refused_with_the_fix(start: Start, tmp_path: Path) -> None:
    a = start("a", HostTime())
    with pytest.raises(ValueError, match=r"write ipc:///path or tcp://host:port"):
        await a.open(listen="udp://127.0.0.1:5")
    with pytest.raises(ValueError, match="write host:port"):
        await a.open("tcp://127.0.0.1")
    with pytest.raises(ListenError, match="can't be bound"):
        await a.open(listen=ipc(tmp_path / "missing", "a"))
    with pytest.raises(ListenError, match="can't be bound"):
        await a.open(listen=f"ipc://{tmp_path}/{'x' * 120}")


async def test_without_pyzmq_the_message_says_what_to_install(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(LinkUnavailable, match=r"pip install 'skewd\[zmq\]'"):
        await start("a", HostTime()).open()


async def test_closing_twice(start: Start) -> None:
    a = start("a", HostTime())
    address = await a.open()
    await a.link.close()
    await a.link.close()
    with contextlib.closing(socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))):
        pass


async def test_names_are_resolved_side_by_side_and_libzmq_waits_for_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, found, over = HostTime(), socket.getaddrinfo, threading.Event()
    told = ["127.0.0.9"]  # where nobody listens

    def resolve(host: str, port: int, *more: Any, **options: Any) -> Any:
        if host == "dead.test":
            over.wait()
        return found(told[0] if host == "alive.test" else host, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(zmq_link, "_RESOLVE_AGAIN_S", 0.05)
    a, b = start("a", clock), start("b", clock)
    try:
        port = (await a.open(listen="tcp://0.0.0.0:0")).rpartition(":")[2]
        await b.open("tcp://dead.test:9957", f"tcp://alive.test:{port}")
        told[0] = "127.0.0.1"  # it has moved
        await until(lambda: len(b.complete("a")) >= 3, "answers from where the name leads now")
        await b.link.close()  # while the dead name is asked for
    finally:
        over.set()


async def test_a_name_that_stays_here_is_never_connected_beyond(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    b = start("b", HostTime())
    await b.open("tcp://localhost:9957")
    await asyncio.sleep(0)
    await until(lambda: not [task for task in b.link._resolving if task.done()], "the name to be asked for")
    assert b.link._dealers["tcp://localhost:9957"].sock is None
