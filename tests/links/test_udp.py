"""The UDP link for real, on loopback: nodes whose clocks differ, strangers, restarts, taken ports."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from skewd import kernel_stamps
from skewd.keys import KeyNeeded, MeshKey
from skewd.links import udp
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.links.udp import UdpLink
from skewd.ports import ListenError, PortTaken
from skewd.stamps import SendStamp
from tests.links.link_bench import KEY, OTHER_KEY, ExactClock, HostTime, S, assert_true, described, member_keys
from tests.waiting import until

INTERVAL_NS = 20_000_000


class Daemon:
    """A node with one UDP link, its clock, and the proofs it was handed."""

    def __init__(
        self,
        name: str,
        clock: HostTime,
        key: MeshKey | None = KEY,
        boot: bytes | None = None,
        stamped: bool = False,
    ) -> None:
        self.name, self.clock = name, clock
        self.stamps = kernel_stamps.SocketStamps(clock, lambda: 1_000_000) if stamped else None
        self.me = described(name, **({"boot": boot} if boot else {}))
        self.protocol = LinkProtocol(
            link="udp", key=key, describe=lambda: self.me, random=os.urandom, member_keys=member_keys(name)
        )
        self.proofs: list[Proofs] = []
        self.link: UdpLink

    async def open(self, *peers: str, listen: str = "127.0.0.1:0") -> str:
        self.link = await UdpLink.open(
            listen, self.protocol, self.clock, self.proofs.append, peers, INTERVAL_NS, stamps=self.stamps
        )
        host, port = self.link.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def of(self, name: str) -> list[Proofs]:
        return [proofs for proofs in self.proofs if proofs.peer.name == name]

    def complete(self, name: str) -> list[Proofs]:
        return [proofs for proofs in self.of(name) if proofs.rtt_ns is not None]


def assert_bounds(local: Daemon, remote: Daemon, name: str) -> None:
    for proofs in local.of(name):
        assert_true(proofs, local.clock, remote.clock)


Start = Callable[..., Daemon]


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


async def test_both_nodes_learn_the_truth_though_one_asks(start: Start) -> None:
    a = start("a", HostTime(epoch_ns=10**15, drift_ppb=50_000))
    b = start("b", HostTime(epoch_ns=-(10**17), drift_ppb=-70_000))
    address = await b.open()
    await a.open(address)
    await until(lambda: len(a.complete("b")) >= 5 and len(b.complete("a")) >= 5)
    assert_bounds(a, b, "b")
    assert_bounds(b, a, "a")
    peer = a.protocol.peers(a.clock.raw_ns())["b"]
    assert peer.address == address
    assert peer.rtt_min_ns is not None
    assert 0 < peer.rtt_min_ns < S
    assert a.link.counters["accepted"] >= 5
    assert a.link.counters["internal_errors"] == b.link.counters["internal_errors"] == 0


async def test_three_nodes_and_one_in_its_own_list(start: Start) -> None:
    nodes = [start(name, HostTime(epoch_ns=number * 10**14)) for number, name in enumerate("abc")]
    addresses = [await node.open() for node in nodes]
    for node in nodes:
        node.link.set_peers(addresses)
    await until(lambda: all(len(a.complete(b.name)) >= 3 for a in nodes for b in nodes if a is not b))
    for a in nodes:
        for b in nodes:
            if a is not b:
                assert_bounds(a, b, b.name)
        assert set(a.protocol.peers(a.clock.raw_ns())) == {"a", "b", "c"} - {a.name}
        assert a.link.counters["own_message"] > 0


async def test_a_wrong_key_is_counted_and_ignored(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime(), key=OTHER_KEY)
    address = await a.open()
    await b.open(address)
    await until(lambda: a.link.counters["wrong_key"] >= 3)
    assert a.proofs == b.proofs == []
    assert a.link.counters["replies"] == 0
    assert b.protocol.targets()[0].unanswered >= 3
    assert b.protocol.targets()[0].name is None


async def test_a_peer_that_restarts_is_known_by_its_new_boot(start: Start) -> None:
    a = start("a", HostTime())
    b = start("b", HostTime(epoch_ns=10**12), boot=b"1" * 16)
    address = await b.open()
    await a.open(address)
    await until(lambda: len(a.complete("b")) >= 3)
    await b.link.close()
    b2 = start("b", HostTime(epoch_ns=-(10**12)), boot=b"2" * 16)
    await b2.open(listen=address)
    await until(lambda: [proofs for proofs in a.complete("b") if proofs.peer.boot == b"2" * 16])
    for proofs in a.of("b"):
        assert_true(proofs, a.clock, (b if proofs.peer.boot == b"1" * 16 else b2).clock)
    assert a.link.counters["timebase_changes"] == 1
    await until(lambda: b2.complete("a"))
    assert_bounds(b2, a, "a")


async def test_noise_is_counted_and_changes_nothing(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await a.open()
    await b.open(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        noise.connect(a.link.address)
        for size in (0, 1, 335, 336, 1400, 1401, 9000):
            with contextlib.suppress(ConnectionRefusedError):
                noise.send(os.urandom(size) if size != 336 else b"skwd\x02\x01".ljust(336, b"x"))
    await until(lambda: a.link.counters["oversized"] == 2 and a.link.counters["truncated"] == 3)
    await until(lambda: a.link.counters["wrong_key"] == 1 and a.link.counters["bad_magic"] == 1)
    await until(lambda: len(a.complete("b")) >= 3)
    assert a.link.counters["internal_errors"] == 0


async def test_a_listener_that_fails_does_not_end_the_link(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await b.open()

    def fail(proofs: Proofs) -> None:
        a.proofs.append(proofs)
        raise RuntimeError("of the listener's own")

    a.link = await UdpLink.open("127.0.0.1:0", a.protocol, a.clock, fail, [address], INTERVAL_NS)
    await until(lambda: len(a.proofs) >= 3)
    assert a.link.counters["internal_errors"] >= 3


async def test_peers_by_name_and_peers_that_are_gone(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    port = (await b.open()).rpartition(":")[2]
    await a.open(f"localhost:{port}", "no-such-host.invalid:9957", f"{'x' * 70}.invalid:9957")
    await until(lambda: a.complete("b"))
    assert a.complete("b")[0].address == f"localhost:{port}"
    await until(lambda: a.link.counters["unresolved"] >= 2)
    c = start("c", HostTime())
    a.link.set_peers([await c.open()])
    assert a.protocol.targets() == ()
    heard = b.link.counters["replies"]
    await until(lambda: len(a.complete("c")) >= 5)
    # One may have been on its way.
    assert b.link.counters["replies"] <= heard + 1


async def test_over_ipv6_too(start: Start) -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    a, b = start("a", HostTime()), start("b", HostTime(epoch_ns=5))
    address = await b.open(listen="[::1]:0")
    await a.open(address, listen="[::1]:0")
    await until(lambda: a.complete("b") and b.complete("a"))
    assert_bounds(a, b, "b")


async def test_a_taken_port_names_its_holder(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await a.open()
    with pytest.raises(PortTaken) as taken:
        await b.open(listen=address)
    text = str(taken.value)
    assert text.startswith(f"{address}/udp is taken by pid {os.getpid()} (")
    assert text.endswith("; choose another with [mesh] listen")


async def test_addresses_that_cannot_be_used_are_refused_with_the_fix(start: Start) -> None:
    a = start("a", HostTime())
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0 can't be listened on: .*choose another"):
        await a.open(listen="192.0.2.1:0")
    with pytest.raises(ListenError, match="can't be listened on"):
        await a.open(listen=f"{'x' * 70}:0")
    with pytest.raises(ValueError, match="write host:port"):
        await a.open(listen="9957")
    with pytest.raises(ValueError, match="port that the peer listens on"):
        await a.open("127.0.0.1:0")


async def test_without_a_key_nothing_leaves_this_machine(start: Start) -> None:
    a, b = start("a", HostTime(), key=None), start("b", HostTime(), key=None)
    with pytest.raises(KeyNeeded, match=r"0\.0\.0\.0:0 is beyond loopback.*keygen"):
        await a.open(listen="0.0.0.0:0")
    with pytest.raises(KeyNeeded, match=r"192\.0\.2\.1:9957"):
        await a.open("192.0.2.1:9957")
    address = await b.open()
    await a.open(address)
    await until(lambda: a.complete("b"))


async def test_closing_twice_and_a_clean_port_afterwards(start: Start) -> None:
    a, b = start("a", HostTime()), start("b", HostTime())
    address = await a.open("127.0.0.1:9")
    await a.link.close()
    await a.link.close()
    await b.open(listen=address)


def test_the_made_up_clocks_are_what_they_say() -> None:
    clock = HostTime(epoch_ns=-5, drift_ppb=100_000)
    earlier = clock.raw_ns()
    assert clock.raw_ns() >= earlier
    assert ExactClock(3, 1000).read(10**9) == 10**9 + 3 + 1000


async def test_the_kernel_stamps_what_is_received_and_nothing_arrives_before_it_left(start: Start) -> None:
    a = start("a", HostTime(epoch_ns=10**15, drift_ppb=50_000), stamped=True)
    b = start("b", HostTime(epoch_ns=-(10**17), drift_ppb=-70_000), stamped=True)
    await a.open(await b.open())
    await until(lambda: len(a.complete("b")) >= 10 and len(b.complete("a")) >= 10)
    assert_bounds(a, b, "b")
    assert_bounds(b, a, "a")
    for node in (a, b):
        if not node.link.counters["kernel_stamped"]:
            pytest.skip("this kernel gives no stamps")


async def test_stamps_that_contradict_the_clock_are_not_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose stamps are ten minutes off, either way: user space's serve, and the proofs hold."""
    real, off_ns = kernel_stamps.receive, itertools.cycle((-600 * S, 600 * S))

    def wrong(sock: socket.socket, size: int) -> kernel_stamps.Received:
        return real(sock, size)._replace(wall_ns=time.time_ns() + next(off_ns))

    monkeypatch.setattr(kernel_stamps, "receive", wrong)
    a = start("a", HostTime(epoch_ns=10**15), stamped=True)
    b = start("b", HostTime(), stamped=True)
    await a.open(await b.open())
    await until(lambda: len(a.complete("b")) >= 10)
    assert_bounds(a, b, "b")
    assert_bounds(b, a, "a")
    assert a.link.counters["kernel_stamped"] == 0


@pytest.mark.parametrize("off_ns", [-600 * S, 600 * S], ids=["early", "late"])
async def test_send_stamps_that_contradict_the_clock_are_not_used(
    start: Start, monkeypatch: pytest.MonkeyPatch, off_ns: int
) -> None:
    real = kernel_stamps.returned

    def wrong(sock: socket.socket, size: int, *, limit: int) -> list[tuple[bytes, SendStamp]]:
        return [(data, SendStamp(0, stamp.wall_ns + off_ns)) for data, stamp in real(sock, size, limit=limit)]

    monkeypatch.setattr(kernel_stamps, "returned", wrong)
    a = start("a", HostTime(epoch_ns=10**15), stamped=True)
    b = start("b", HostTime(), stamped=True)
    await a.open(await b.open())
    await until(lambda: len(a.complete("b")) >= 10 and len(b.complete("a")) >= 10)
    assert_bounds(a, b, "b")
    assert_bounds(b, a, "a")
    for node in (a, b):
        assert node.link.counters["kernel_sent"] == node.link.counters["sharpened"] == 0


async def test_a_driver_that_stamps_no_sends_is_left_alone_and_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    real = kernel_stamps.returned

    def none(sock: socket.socket, size: int, *, limit: int) -> list[tuple[bytes, SendStamp]]:
        nonlocal asked
        asked += limit == 1
        real(sock, size)
        return []

    monkeypatch.setattr(kernel_stamps, "returned", none)
    monkeypatch.setattr(udp, "_SENDS_WITHOUT_STAMP", 5)
    a, b = start("a", HostTime(epoch_ns=5), stamped=True), start("b", HostTime())
    await a.open(await b.open())
    await until(lambda: a.link.counters["kernel_gave_none"] == 1)
    looked, complete = asked, len(a.complete("b"))
    await until(lambda: len(a.complete("b")) >= complete + 5)
    assert asked == looked
    monkeypatch.setattr(kernel_stamps, "returned", real)
    a.link._try_again_s = 0.0  # ten minutes later
    await until(lambda: a.link.counters["kernel_sent"] or a.link.counters["kernel_gave_none"] > 1)
    assert_bounds(a, b, "b")


async def test_a_send_that_fails_gives_no_other_message_its_stamp(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stamp is found by what its packet says, so lost sends shift nothing."""
    a = start("a", HostTime(epoch_ns=10**15, drift_ppb=40_000), stamped=True)
    b = start("b", HostTime(), stamped=True)
    await a.open(await b.open())
    asks = itertools.count()
    real = a.protocol.prepare

    def now_and_then_too_large(address: str) -> Callable[[int], bytes]:
        build = real(address)
        return build if next(asks) % 3 else lambda now: build(now) + bytes(70_000)

    monkeypatch.setattr(a.protocol, "prepare", now_and_then_too_large)
    await until(lambda: a.link.counters["send_failed"] >= 5 and len(a.complete("b")) >= 15)
    assert_bounds(a, b, "b")
    assert_bounds(b, a, "a")
    if not a.link.counters["kernel_sent"]:
        pytest.skip("this kernel gives no stamps of sends")
    assert b.link.counters["sharpened"] > 0
