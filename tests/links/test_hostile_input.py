"""A hostile network: counted, limited, in flat memory, and the bounds are what they would be without it."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from skewd.bounds.pair import PairBound
from skewd.kernel_stamps import SocketStamps
from skewd.links.protocol import REASONS, LinkProtocol, Proofs, Received
from skewd.links.udp import UdpLink
from tests.links.hostile import hostile
from tests.links.link_bench import KEY, ExactClock, HostTime, Node, S, assert_true, described, exchange
from tests.shares import first
from tests.waiting import LIMIT_S, until

MS = 1_000_000
SEEDS = 60
RATE = 10_000
FLOOD = 30_000
RECORDED = 50


def genuine_messages() -> list[bytes]:
    """What the nodes that are attacked said on two raw clocks before their present one: requests, replies, one-way."""
    recorded = []
    for boot in (b"an older boot...", b"one before that."):
        a, b = Node("a"), Node("b", ExactClock(0, 10_000))
        for node in (a, b):
            node.change(boot=boot)
        for second in range(1, 4):
            for asker, answerer in ((a, b), (b, a)):
                request = asker.request(answerer.name, second * S)
                received = answerer.receive(request, asker.name, second * S)
                recorded.append(request)
                if received.reply is not None:
                    recorded.append(answerer.reply(received, second * S))
            recorded.append(b.protocol.prepare_one_way()(b.clock.read(second * S)))
    return recorded


def a_run(seed: int, attacked: bool) -> tuple[list[Proofs], list[Proofs], PairBound, Node, int]:
    """A and B exchange for 20 s; in between, A and B get what is hostile, at 10,000 a second for a while each."""
    a, b = Node("a", ExactClock(10**15, 20_000), seed=str(seed)), Node("b", ExactClock(-(10**12), -30_000))
    a_proofs: list[Proofs] = []
    b_proofs: list[Proofs] = []
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    packets = hostile(seed, genuine_messages())
    sent = 0
    overheard: list[bytes] = []

    def take(received: Received, into: list[Proofs]) -> None:
        if received.proofs is not None:
            into.append(received.proofs)

    for second in range(1, 21):
        now = second * S
        if attacked:
            for number, data in enumerate(islice(packets, 100)):
                spoofed = ("a", "b")[number % 2] if number % 3 == 0 else f"10.{number}.{seed}.{second}:{number}"
                for victim in (a, b):
                    received = victim.receive(data, spoofed, now - S // 2 + number * S // RATE)
                    assert received.proofs is None
                    assert received.attachment == b""
                    if received.reply is not None:  # a replayed request of someone not confirmed yet
                        assert len(victim.reply(received, now - S // 2 + number * S // RATE)) <= len(data)
                    sent += victim is a
            for data in overheard:  # what was just said, said again, to both
                assert a.receive(data, "b", now - S // 4).proofs is None
                assert b.receive(data, "a", now - S // 4).proofs is None
                sent += 1
        request = a.request("b", now)
        at_b = b.receive(request, "a", now + MS)
        take(at_b, b_proofs)
        reply = b.reply(at_b, now + 2 * MS)
        take(a.receive(reply, "b", now + 3 * MS), a_proofs)
        overheard = [request, reply]
    for proofs in a_proofs:
        assert_true(proofs, a.clock, b.clock)
        for pair in proofs.outgoing:
            assert bound.outgoing(*pair)
        for pair in proofs.incoming:
            assert bound.incoming(*pair)
    for proofs in b_proofs:
        assert_true(proofs, b.clock, a.clock)
    return a_proofs, b_proofs, bound, a, sent


@pytest.mark.parametrize("seeds", first(1, [range(begin, begin + 10) for begin in range(0, SEEDS, 10)]), ids=str)
def test_bounds_and_proofs_are_what_they_would_be_without_it(seeds: range) -> None:
    for seed in seeds:
        at_a, at_b, bound, a, sent = a_run(seed, attacked=True)
        calm_a, calm_b, calm, _, _ = a_run(seed, attacked=False)
        assert (at_a, at_b) == (calm_a, calm_b)
        now = a.clock.read(20 * S + 3 * MS)
        assert bound.offset(now) == calm.offset(now)
        counters = a.protocol.counters
        # Each is counted, under its reason.
        assert sum(counters[reason] for reason in REASONS) == sent
        for reason in ("oversized", "truncated", "bad_magic", "wrong_key", "bad_mac"):
            assert counters[reason] > 0, reason


def test_ten_thousand_a_second_are_limited_before_they_are_authenticated_and_memory_stays_flat() -> None:
    a, b = Node("a"), Node("b", ExactClock(0, 10_000))
    exchange(a, b, 1 * S)
    exchange(a, b, 2 * S)
    packets = list(islice(hostile(7, genuine_messages()), 5000))

    def flood(start_ns: int) -> None:
        for number in range(FLOOD):
            source = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9"
            received = a.receive(packets[number % len(packets)], source, start_ns + number * S // RATE)
            if received.reply is not None:
                a.reply(received, start_ns + number * S // RATE)

    flood(3 * S)
    gc.collect()
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    before = dict(a.protocol.counters)
    flood(10 * S)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    # The tables were full; entries that are made anew count as traced, those they replaced do not.
    assert grown < 600_000
    sizes = a.protocol.sizes()
    assert sizes["sources"] <= 1024 + 2048
    assert sizes["peers"] == 1
    assert sizes["replies"] <= 256 + 8
    new = {reason: a.protocol.counters[reason] - before[reason] for reason in REASONS}
    assert sum(new.values()) == FLOOD
    # What looks like a message at all is limited to 1,000 a second after a burst of 2,000, whatever it is.
    looked_at = sum(new[reason] for reason in ("wrong_key", "bad_mac", "unconfirmed", "replay", "unknown_nonce"))
    assert looked_at <= 2000 + 1000 * (FLOOD // RATE + 1) + 100
    assert new["rate_limited"] > FLOOD // 4
    assert exchange(a, b, 14 * S)[1].proofs is not None


class Recorded(LinkProtocol):
    """Keeps the first of what it receives, as someone on the path would."""

    recorded: list[bytes]

    def receive(
        self, data: bytes, address: str, received_raw_ns: int, sharpen: Callable[[int], int] | None = None
    ) -> Received:
        if len(self.recorded) < RECORDED:
            self.recorded.append(data)
        return super().receive(data, address, received_raw_ns, sharpen)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_real_socket_under_a_real_flood(tmp_path: Path) -> None:
    """Another process floods one of two nodes from made-up addresses, with replays of what they said."""
    clocks = {"a": HostTime(epoch_ns=10**15, drift_ppb=50_000), "b": HostTime(epoch_ns=-(10**17), drift_ppb=-70_000)}
    proofs: dict[str, list[Proofs]] = {"a": [], "b": []}
    links: dict[str, UdpLink] = {}
    recorded: list[bytes] = []
    try:
        for name, clock in clocks.items():
            protocol = Recorded(link="udp", key=KEY, describe=partial(described, name), random=os.urandom)
            links[name] = await UdpLink.open(
                "127.0.0.1:0",
                protocol,
                clock,
                proofs[name].append,
                [],
                20_000_000,
                stamps=SocketStamps(clock, lambda: 1_000_000),
            )
            protocol.recorded = recorded
        a, b = links["a"], links["b"]
        host, port = a.address
        b.set_peers([f"{host}:{port}"])
        a.set_peers(["{}:{}".format(*b.address)])
        await until(lambda: len(recorded) == RECORDED)
        bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
        before = sum(a.counters[reason] for reason in REASONS)
        completed = len(proofs["a"])
        memory: list[int] = []
        flooder = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).parent / "hostile.py"),
            *(host, str(port), str(100 * FLOOD), str(RATE), "3"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert flooder.stdin is not None
        flooder.stdin.write("\n".join(data.hex() for data in recorded).encode())
        flooder.stdin.close()
        # What the kernel has no room for never comes, on a slow machine most of it: the flood lasts until enough came.
        for enough in (3_000, 12_000):
            while sum(a.counters[reason] for reason in REASONS) <= before + enough:
                await asyncio.sleep(0.01)
            memory.append(rss_bytes())
        flooder.terminate()
        await asyncio.wait_for(flooder.wait(), LIMIT_S)
        assert flooder.returncode == 0
        assert flooder.stdout is not None
        sent = int(await flooder.stdout.read())
        # The rest of the socket's buffer is read when a request after the flood has been answered.
        quiet = len(proofs["a"])
        await until(lambda: len(proofs["a"]) > quiet + 5)
        counters = a.counters
        refused = sum(counters[reason] for reason in REASONS) - before
        assert 12_000 < refused <= sent
        # Whether the flood was fast enough for the limiter is the machine's affair; test_protocol.py shows the limiter.
        assert counters["internal_errors"] == 0
        sizes = a.protocol.sizes()
        assert sizes["sources"] <= 1024 + 2048
        assert sizes["peers"] == 1
        assert memory[1] - memory[0] < 16 << 20
        assert len(proofs["a"]) > completed
        for here, there in (("a", "b"), ("b", "a")):
            for each in proofs[here]:
                assert each.peer.name == there
                assert_true(each, clocks[here], clocks[there])
        for each in proofs["a"]:
            assert all(bound.outgoing(*pair) for pair in each.outgoing)
            assert all(bound.incoming(*pair) for pair in each.incoming)
        assert bound.contradictions == 0
        now = clocks["a"].raw_ns()
        offset = bound.offset(now)
        assert offset is not None
        truth = clocks["b"].at(clocks["a"].true_at(now)) - now
        assert offset.lo - 1 <= truth <= offset.hi + 1
    finally:
        for link in links.values():
            await link.close()
