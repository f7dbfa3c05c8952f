"""Real daemons among members that are older, newer, false or doubles: what each is believed, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from skewd.clock import VirtualClock, VirtualPage, read_wall
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.failures import StartError
from skewd.interval import Interval
from skewd.keys import KeyRing, generate_key_file, load_keys
from skewd.links import wire
from skewd.links.protocol import LinkProtocol, Proofs, Self
from skewd.links.udp import UdpLink
from skewd.member_keys import MemberKeys
from skewd.probe import probe
from skewd.records import private_key
from skewd.wall import WallMap
from tests.waiting import LIMIT_S, until

MS = 1_000_000
INTERVAL_NS = 50 * MS


def free_udp_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


@dataclass
class Stub:
    """A node that is nothing but a link: with a key of its own, or (``old``) of the protocol's version before."""

    name: str
    keys: KeyRing
    old: bool = False
    offset_ns: int = 0
    secret: bytes = field(default_factory=lambda: random.Random(7).randbytes(32))
    proofs: list[Proofs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = VirtualClock(VirtualPage.create(None, offset_ns=self.offset_ns, epoch_ns=5 * 10**15))
        wall = WallMap(read_wall(self.clock))
        latest = wall.latest
        me = Self(
            self.name, os.urandom(16), 1, 1, latest.wall_minus_raw, latest.raw_ns, wall.slew_ppb(), 100, 10
        )  # fmt: skip
        self.me = me
        self.protocol = LinkProtocol(
            link="udp",
            key=self.keys,
            describe=lambda: me,
            random=os.urandom,
            member_keys=None if self.old else MemberKeys(self.name, private_key(self.secret)),
        )

    @contextlib.asynccontextmanager
    async def running(self, *peers: str) -> AsyncIterator[str]:
        link = await UdpLink.open(
            "127.0.0.1:0", self.protocol, self.clock, self.proofs.append, peers, INTERVAL_NS
        )  # fmt: skip
        try:
            host, port = link.address
            yield f"{host}:{port}"
        finally:
            await link.close()


@dataclass
class World:
    """Daemons in one directory, with one mesh key."""

    directory: Path
    stack: contextlib.AsyncExitStack

    def __post_init__(self) -> None:
        self.key_file = self.directory / "mesh.key"
        generate_key_file(self.key_file)
        self.keys = load_keys(self.key_file)

    async def start(self, name: str, *peers: str, place: str = "", **mesh: Any) -> tuple[Daemon, str]:
        """A daemon and where it listens."""
        config = Config(
            node=NodeConfig(
                name=name, runtime_dir=self.directory / f"run{place}{name}", state_dir=self.directory / f"state{place}"
            ),
            mesh=MeshConfig(
                **{"listen": "127.0.0.1:0", "peers": peers, "key_file": self.key_file, "interval": INTERVAL_NS, **mesh}
            ),
            metrics=MetricsConfig(listen=None),
        )  # fmt: skip
        daemon = Daemon(config, VirtualClock(VirtualPage.create(None, epoch_ns=random.randrange(10**15))))
        ready = await self.stack.enter_async_context(daemon.running())
        return daemon, ready["mesh"]

    async def stub(self, stub: Stub, *peers: str) -> str:
        return await self.stack.enter_async_context(stub.running(*peers))


@pytest.fixture
async def world(short: Path) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        yield World(short, stack)


def codes(daemon: Daemon) -> set[tuple[str, str]]:
    return {(problem["code"], problem["subject"]) for problem in daemon.status()["problems"]}


def peer(daemon: Daemon, name: str) -> dict[str, Any]:
    return next((row for row in daemon.status()["peers"] if row["name"] == name), {"lower_ns": None})


def bounded(daemon: Daemon, name: str) -> Callable[[], bool]:
    return lambda: peer(daemon, name)["lower_ns"] is not None


def counters(daemon: Daemon) -> dict[str, int]:
    return dict(daemon.status()["links"][0]["counters"])


async def test_the_version_before_and_this_one_bound_each_other_and_it_is_said(world: World) -> None:
    old = Stub("old", world.keys, old=True)
    address = await world.stub(old)
    daemon, _ = await world.start("new", address)
    await until(bounded(daemon, "old"), "a bound on the older node")
    await until(lambda: len(old.proofs) > 5, "proofs at the older node")
    assert ("old-protocol", "old") in codes(daemon)
    assert not {code for code, _ in codes(daemon)} & {"version-mismatch", "duplicate-name"}


async def test_two_of_this_version_say_nothing_of_versions_and_use_a_pair_s_key(world: World) -> None:
    a, address = await world.start("a")
    b, _ = await world.start("b", address)
    await until(lambda: bounded(a, "b")() and bounded(b, "a")(), "both bounds")
    for daemon in (a, b):
        assert not {code for code, _ in codes(daemon)} & {"old-protocol", "version-mismatch", "duplicate-name"}
        for reason in ("old_version", "unbound", "altered", "former_identity", "other_identity", "bad_mac"):
            assert counters(daemon)[reason] == 0


async def test_without_a_key_for_the_mesh_a_pair_has_one_all_the_same(world: World) -> None:
    """Each is configured with the other: in a mesh without a key nobody else is believed."""
    ports = free_udp_ports(2)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    keyless: dict[str, Any] = {"key_file": None, "key": "none", "oldest_protocol": 3}
    a, _ = await world.start("a", addresses[1], listen=addresses[0], **keyless)
    b, _ = await world.start("b", addresses[0], listen=addresses[1], **keyless)
    await until(lambda: bounded(a, "b")() and bounded(b, "a")(), "both bounds, with nothing of version 2 believed")
    assert ("keyless-mesh", "") in codes(a)


async def test_where_the_version_before_is_not_accepted_both_sides_say_so(world: World) -> None:
    daemon, listen = await world.start("new", oldest_protocol=3)
    old = Stub("old", world.keys, old=True)
    address = await world.stub(old, listen)
    await until(lambda: ("version-mismatch", "old") in codes(daemon), "the newer side to say so")
    await until(lambda: old.protocol.counters["bad_version"] > 0, "the older side to notice")
    assert not bounded(daemon, "old")()
    assert old.proofs == []
    told = next(row for row in daemon.status()["problems"] if row["code"] == "version-mismatch")
    assert address in told["text"]
    assert "oldest_protocol" in told["remedy"]


async def test_who_spoke_this_version_once_is_not_believed_in_the_one_before_after_a_restart_too(world: World) -> None:
    stub = Stub("x", world.keys)
    async with contextlib.AsyncExitStack() as first:
        address = await first.enter_async_context(stub.running())
        config_world = World.__new__(World)
        config_world.__dict__ |= world.__dict__ | {"stack": first}
        daemon, _ = await config_world.start("new", address)
        await until(bounded(daemon, "x"), "a bound")
    daemon, listen = await world.start("new")
    await world.stub(Stub("x", world.keys, old=True, offset_ns=10**12), listen)
    await until(lambda: ("version-mismatch", "x") in codes(daemon), "the downgrade to be said")
    assert not bounded(daemon, "x")()
    assert counters(daemon)["accepted"] == 0


async def test_a_version_further_away_is_said_with_its_address(world: World) -> None:
    daemon, listen = await world.start("new")
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), remote_addr=("127.0.0.1", int(listen.split(":")[1]))
    )
    host, port = transport.get_extra_info("sockname")
    data = bytearray(Stub("later", world.keys).protocol.request("new", 1))
    data[4] = wire.VERSION + 1
    transport.sendto(bytes(data))
    await until(lambda: ("version-mismatch", f"{host}:{port}") in codes(daemon), "the version to be said")
    transport.close()


async def test_two_nodes_of_one_name_are_seen_by_each_other_and_by_a_third(world: World) -> None:
    one, first = await world.start("twin")
    other, second = await world.start("twin", first, place="elsewhere")
    await until(lambda: ("duplicate-name", "twin") in codes(one), "the first to see its double")
    third, _ = await world.start("third", first, second)
    await until(lambda: ("duplicate-name", "twin") in codes(third), "a third to see two of one name")
    # One of them is believed and stays believed.
    await until(bounded(third, "twin"), "a bound on the one that came first")
    assert other.node.name == "twin"


async def test_another_member_can_t_speak_into_a_first_hand_bound(world: World) -> None:
    """It has the mesh's key, the victim's name, boot and public key, and the victim's address is not even needed."""
    victim = Stub("victim", world.keys)
    address = await world.stub(victim)
    daemon, listen = await world.start("n", address)
    await until(bounded(daemon, "victim"), "a bound on the victim")
    assert victim.protocol._member_keys is not None
    key = world.keys.sending
    public = victim.protocol._member_keys.identity(b"", key.secret)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=("127.0.0.1", int(listen.split(":")[1]))
    )
    me = wire.packed(replace(victim.me, wall_minus_raw=Interval(0, 0)))
    for number in range(200):
        for kind in wire.Kind:
            for identity in (None, public):
                data = wire.draft(
                    key.key_id, key.secret, kind=kind, nonce=os.urandom(16), sender=me, receiver="n", identity=identity
                )(victim.clock.raw_ns() + 3600 * 10**9)
                transport.sendto(data)
        if number % 10 == 0:
            await asyncio.sleep(0)
    heard = len(victim.proofs)
    await until(lambda: len(victim.proofs) > heard + 5, "the victim to be heard on")
    refused = counters(daemon)
    assert refused["old_version"] + refused["unbound"] + refused["unconfirmed"] + refused["rate_limited"] >= 200
    row = peer(daemon, "victim")
    assert daemon.status()["contradictions"] == 0
    assert row["upper_ns"] - row["lower_ns"] < 3600 * 10**9
    assert ("version-mismatch", "victim") in codes(daemon)
    transport.close()


async def test_without_the_package_a_mesh_is_one_clear_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(StartError, match=r"pip install 'skewd\[mesh\]'"):
        await world.start("n", "127.0.0.1:9")


@pytest.mark.parametrize("oldest", [2, 3])
async def test_a_probe_is_answered_and_leaves_no_trace(world: World, oldest: int) -> None:
    daemon, listen = await world.start("n", oldest_protocol=oldest)
    clock = VirtualClock(VirtualPage.create(None))
    finding = await asyncio.to_thread(
        probe, listen, clock, kind="peer", key=world.keys.sending, drift_ppm=100, wander_ppb_per_s=10, timeout_s=LIMIT_S
    )
    assert finding.name == "n"
    assert daemon.status()["peers"] == []
    assert daemon._member_keys is not None
    assert daemon._member_keys.pins() == {}
    assert not {code for code, _ in codes(daemon)} & {"old-protocol", "version-mismatch"}
