"""What an exchange between two nodes costs the link: ``python benchmarks/link_cost.py``.

The problem: microseconds on one machine say little about another. So the cost is told as a multiple of the bare system
calls that any exchange needs, on sockets like the link's, with messages of the same size, in the same run, alternating:
``sendto``, ``recvfrom``, ``sendto``, ``recvfrom``. The microseconds are for people.

An exchange here is both ends of it: the request made, authenticated, sent, read, checked and used, and the reply too.
A node does one such for each peer a second, half of it as the one who asks and half as the one who answers. So a
hundred peers at 1 Hz take the share of a core that is printed; the filter behind the link (``bound_cost.py``) comes on
top. Event loop included; processor time, the median of the rounds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from functools import partial

from skewd.clock import HostClock, read_wall
from skewd.kernel_stamps import SocketStamps
from skewd.keys import MeshKey
from skewd.links.protocol import Attach, LinkProtocol, Self
from skewd.links.udp import UdpLink
from skewd.links.wire import MIN_MESSAGE_BYTES

ROUNDS = 7
EXCHANGES = 500
INTERVAL_NS = 500_000
ATTACHED = bytes(960)
KEY = MeshKey.from_secret(bytes(range(32)))


READING = read_wall(HostClock())


def me(name: str) -> Self:
    """As the daemon describes itself: anew for each message, with its latest reading of the clocks."""
    sample = READING
    return Self(name, name.encode().ljust(16), 1, 1, sample.wall_minus_raw, sample.raw_ns, 500_000, 100, 10)


def bare(request_bytes: int, reply_bytes: int) -> float:
    """Microseconds of processor time for an exchange of nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b:
        for sock in (a, b):
            sock.bind(("127.0.0.1", 0))
        request, reply, to_a, to_b = bytes(request_bytes), bytes(reply_bytes), a.getsockname(), b.getsockname()
        begin = time.process_time()
        for _ in range(EXCHANGES):
            a.sendto(request, to_b)
            b.recvfrom(2048)
            b.sendto(reply, to_a)
            a.recvfrom(2048)
        return (time.process_time() - begin) / EXCHANGES * 1e6


async def linked(attach: Attach | None, stamps: bool) -> float:
    """The same of two nodes' links."""
    clock = HostClock()
    links: list[UdpLink] = []
    for name in ("a", "b"):
        protocol = LinkProtocol(link="udp", key=KEY, describe=partial(me, name), random=os.urandom, attach=attach)
        links.append(
            await UdpLink.open(
                "127.0.0.1:0",
                protocol,
                clock,
                lambda proofs: None,
                [],
                INTERVAL_NS,
                stamps=SocketStamps(clock, lambda: 1_000_000) if stamps else None,
            )
        )
    a, b = links
    try:
        a.set_peers(["{}:{}".format(*b.address)])
        while a.counters["accepted"] < 50:
            await asyncio.sleep(0.005)
        begin, before = time.process_time(), a.counters["accepted"]
        while a.counters["accepted"] < before + EXCHANGES:
            await asyncio.sleep(0.05)
        return (time.process_time() - begin) / (a.counters["accepted"] - before) * 1e6
    finally:
        for link in links:
            await link.close()


def main() -> None:
    cases: tuple[tuple[str, Attach | None, bool, int, int], ...] = (
        ("no attachments, user space's stamps", None, False, MIN_MESSAGE_BYTES, MIN_MESSAGE_BYTES),
        ("no attachments, the kernel's stamps", None, True, MIN_MESSAGE_BYTES, MIN_MESSAGE_BYTES),
        ("960 bytes attached, the kernel's stamps", lambda _, room: ATTACHED[:room], True, 1400, 1296),
    )
    print(f"{'an exchange, both ends':42} {'us':>7} {'bare calls':>11} {'ratio':>6}  100 peers at 1 Hz")
    for title, attach, stamps, request_bytes, reply_bytes in cases:
        costs, bares = [], []
        for _ in range(ROUNDS):
            bares.append(bare(request_bytes, reply_bytes))
            costs.append(asyncio.run(linked(attach, stamps)))
        cost, calls = statistics.median(costs), statistics.median(bares)
        print(f"{title:42} {cost:7.1f} {calls:11.1f} {cost / calls:6.1f}  {cost / 100:.1f} % of a core")


if __name__ == "__main__":
    main()
