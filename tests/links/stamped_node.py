"""A node with a UDP link on a virtual clock, for tests over a wire: ``NAME PAGE LISTEN PEER|- COUNT kernel|user``.

It says READY once it listens. After COUNT completed exchanges it prints one JSON list a message, ``[outgoing, incoming,
round trip]``, and at last its link's counters. With a COUNT of 0 it answers until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from skewd.clock import HostClock, clock_from_option, read_wall
from skewd.kernel_stamps import SocketStamps
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Proofs, Self
from skewd.links.udp import UdpLink
from skewd.wall import WallMap
from tests.links.link_bench import member_keys
from tests.waiting import LIMIT_S

KEY = MeshKey.from_secret(bytes(range(32)))
INTERVAL_NS = 20_000_000


async def main(name: str, page: str, listen: str, peer: str, count: int, stamps: str) -> None:
    clock = clock_from_option(f"page={page}")
    wall = WallMap(read_wall(HostClock()))

    def slew_ppb() -> int:
        wall.sample(read_wall(HostClock()))
        return wall.slew_ppb()

    sample = read_wall(clock)
    me = Self(name, name.encode().ljust(16, b"-"), 0, 0, sample.wall_minus_raw, sample.raw_ns, 500_000, 100, 10)
    keys = member_keys(me.name)
    protocol = LinkProtocol(link="udp", key=KEY, describe=lambda: me, random=os.urandom, member_keys=keys)
    seen: list[Proofs] = []
    link = await UdpLink.open(
        listen,
        protocol,
        clock,
        seen.append,
        [] if peer == "-" else [peer],
        INTERVAL_NS,
        stamps=SocketStamps(clock, slew_ppb) if stamps == "kernel" else None,
    )
    print("READY", flush=True)
    async with asyncio.timeout(LIMIT_S):
        while not count or sum(proofs.rtt_ns is not None for proofs in seen) < count:
            await asyncio.sleep(0.01)
            if not count:
                seen.clear()
    await link.close()
    for proofs in seen:
        print(json.dumps([proofs.outgoing, proofs.incoming, proofs.rtt_ns]))
    print(json.dumps(link.counters), flush=True)


if __name__ == "__main__":
    name, page, listen, peer, count, stamps = sys.argv[1:]
    asyncio.run(main(name, page, listen, peer, int(count), stamps))
