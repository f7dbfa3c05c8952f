"""Nodes with virtual clocks of known truth on every transport, in this process and in others.

``python -m tests.links.media JSON`` is one node in a process of its own: it says READY, takes part until its standard
input ends, and then prints its proofs and counters as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from skewd.bounds.pair import PairBound
from skewd.clock import VirtualClock, VirtualPage
from skewd.interval import Interval
from skewd.keys import KeyRing, MeshKey
from skewd.links.protocol import Attach, LinkProtocol, Proofs, Timebases
from tests.links.link_bench import KEY, described, host_raw_ns, shared_keys
from tests.waiting import LIMIT_S

Direction = Literal["both", "send", "receive"]
INTERVAL_NS = 50_000_000
NAMES = ("node-a", "node-b", "node-c", "node-d", "node-e")


@dataclass(frozen=True)
class Medium:
    """How nodes reach each other. ``places``: where each listens, for what is no shared medium."""

    transport: str
    places: dict[str, str] = field(default_factory=dict)
    bootstrap: str = ""
    topic: str = ""
    directory: str = ""

    async def open(
        self,
        member: Member,
        peers: Sequence[str],
        *,
        direction: Direction = "both",
        interval_ns: int = INTERVAL_NS,
        **options: Any,
    ) -> Any:
        """The member's link on it, towards ``peers`` (names)."""
        if self.transport == "zmq":
            from skewd.links.zmq import ZmqLink

            there = [self.places[peer] for peer in peers]
            options = {"keys": member.key, **options}
            here = self.places[member.name]
            return await ZmqLink.open(
                here, member.protocol, member.clock, member.proofs.append, there, interval_ns, **options
            )
        if self.transport == "kafka":
            from skewd.links.kafka import KafkaLink

            return await KafkaLink.open(
                self.bootstrap,
                self.topic,
                member.protocol,
                member.clock,
                member.proofs.append,
                peers if direction == "both" else [],
                interval_ns,
                direction=direction,
                **options,
            )
        from skewd.links.aeron import AeronLink

        shared = not self.places
        own = Path(self.directory) / member.name
        options = {"directory": Path(self.directory) / "driver" if shared else None, **options}
        names = peers if direction == "both" else []
        return await AeronLink.open(
            "aeron:ipc" if shared else self.places[member.name],
            member.protocol,
            member.clock,
            member.proofs.append,
            names if shared else [self.places[peer] for peer in peers if direction != "receive"],
            interval_ns,
            own_directory=own,
            direction=direction,
            **options,
        )


class Member:
    """A node: a virtual clock, its links' protocols, and the proofs that it was handed."""

    def __init__(
        self,
        name: str,
        page: VirtualPage,
        *,
        link: str,
        key: KeyRing | MeshKey | None = KEY,
        attach: Attach | None = None,
        timebases: Timebases | None = None,
    ) -> None:
        self.name, self.page, self.key = name, page, key
        self.clock = VirtualClock(page)
        self.me = described(name)
        self.protocol = LinkProtocol(
            link=link,
            key=key,
            describe=lambda: self.me,
            random=os.urandom,
            attach=attach,
            timebases=timebases,
            member_keys=shared_keys(name, timebases),
        )
        self.proofs: list[Proofs] = []
        self.link: Any = None

    def of(self, name: str) -> list[Proofs]:
        """The proofs about one peer."""
        return [proofs for proofs in self.proofs if proofs.peer.name == name]

    def complete(self, name: str) -> int:
        """How many exchanges with one peer were completed."""
        return sum(proofs.rtt_ns is not None for proofs in self.of(name))

    def bound(self, peer: Member) -> Interval:
        """The bound on the peer's raw clock minus ours, now; the truth lies in it, or this fails."""
        pairs = [(proofs.outgoing, proofs.incoming) for proofs in self.of(peer.name)]
        return true_bound(self.page, peer.page, pairs)


def true_bound(local: VirtualPage, remote: VirtualPage, pairs: Iterable[tuple[Any, Any]]) -> Interval:
    """What ``pairs`` of (outgoing, incoming) prove now of ``remote`` seen from ``local``, checked against the truth."""
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    for outgoing, incoming in pairs:
        for sent, received in outgoing:
            bound.outgoing(sent, received)
        for sent, received in incoming:
            bound.incoming(sent, received)
    host = host_raw_ns()
    here = local.at_host_raw(host)
    truth = remote.at_host_raw(host) - here
    interval = bound.offset(here)
    assert bound.contradictions == 0
    assert interval is not None, "no bound"
    assert interval.lo - 2 <= truth <= interval.hi + 2, f"{truth} is not in {interval}"
    return interval


def pages(directory: Path | None, names: Sequence[str] = NAMES) -> dict[str, VirtualPage]:
    """Clocks that differ by far more than any transport could hide, and drift apart."""
    made = {}
    for number, name in enumerate(names):
        path = None if directory is None else directory / f"{name}.clock"
        made[name] = VirtualPage.create(
            path, offset_ns=number * 10**6, drift_ppb=(-1) ** number * 30_000 * number, epoch_ns=number * 10**15
        )
    return made


def free_udp_ports(count: int) -> list[int]:
    """UDP ports of loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def udp_places(names: Sequence[str] = NAMES) -> dict[str, str]:
    """A place on loopback for each."""
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, free_udp_ports(len(names)), strict=True)}


def fresh_topic() -> str:
    """A topic that nobody has used."""
    return f"skewd-clock-{uuid.uuid4().hex[:12]}"


@contextlib.asynccontextmanager
async def child(
    medium: Medium, name: str, page: VirtualPage, peers: Sequence[str], direction: Direction = "both"
) -> AsyncIterator[dict[str, Any]]:
    """A node in a process of its own; what it yields has ``proofs`` and ``counters`` once it has ended."""
    told: dict[str, Any] = {}
    arguments = json.dumps(
        {"medium": asdict(medium), "name": name, "page": str(page.path), "peers": list(peers), "direction": direction}
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.links.media",
        arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            assert await process.stdout.readline() == b"READY\n"
        yield told
        process.stdin.close()
        async with asyncio.timeout(LIMIT_S):
            told |= json.loads(await process.stdout.readline())
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _main(arguments: dict[str, Any]) -> None:
    medium = Medium(**arguments["medium"])
    member = Member(arguments["name"], VirtualPage.open(arguments["page"]), link=medium.transport)
    direction = cast(Direction, arguments["direction"])
    link = await medium.open(member, arguments["peers"], direction=direction)
    print("READY", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await link.close()
    proofs = [[one.peer.name, one.outgoing, one.incoming, one.rtt_ns] for one in member.proofs]
    print(json.dumps({"proofs": proofs, "counters": link.counters}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
