"""A member that says anything: a fuzzer with a valid key and valid signatures, against the whole daemon.

``python -m tests.mesh.member_fuzz --minutes 10`` runs two worlds, one after the other (``--only`` names one):

* **inside**: a whole :class:`~skewd.daemon.Daemon` in this process, on a virtual clock that only this program moves, so
  hours pass in minutes and everything follows from the seed. It is restarted over and over with what it kept.
* **outside**: ``skewd run`` as a process of its own, that hears the same member over UDP on loopback.

The member is real code (``Node``, ``LinkProtocol``, ``Membership``), and its messages are made by the project's own
encoders. :class:`Hostile` sits before them and changes any field: each message as it is drafted, each record before it
is signed. It plays *parts*: an ordinary member, or the reference; a clock that is consistent and extreme, or one field
that makes no sense; reserved names; rubbish in the attachment. Two honest members speak in between, so that there are
bounds to be composed, and truth to be compared with.

What must hold, always: no exception leaves the daemon, none is contained in it either (``skewd_faults_total`` is 0, as
what is refused is refused where it is decoded), a knot is published within a second of virtual time, the segment is
readable, ``status`` is JSON and metrics, the honest members' bounds hold the truth, memory does not grow.

Limits: the in-process world has no sockets; the process has the transport UDP only. The member has one key; it speaks
in many names, and in another member's too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from skewd.api_client import NoDaemonError, SlowDaemonError, get_status
from skewd.bounds.carry import Claim
from skewd.bounds.compose import clock_tag
from skewd.clock import HostClock, VirtualClock, VirtualPage, WallSample
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.election import Timescale
from skewd.interval import Interval
from skewd.keys import KeyFile, KeyRing, generate_key_file
from skewd.links import wire
from skewd.links.protocol import LinkProtocol, Self, Timebases
from skewd.member_keys import MemberKeys
from skewd.membership import Membership, new_plan
from skewd.node import Node
from skewd.publish import prometheus
from skewd.publish.segment import NAME, SegmentReader
from skewd.record_store import RecordStore
from skewd.records import Edge, Record, bundle, decode, private_key, public_key_of, sign
from tests import fuzz_report
from tests.mesh.hostile_values import S, ends, forced, i64, unsigned
from tests.waiting import LIMIT_S

EVIL = "a-evil"  # the least name: it founds the timescale where there is an election
HONEST = ("m1", "m2")
VICTIM = "victim"
PARTS = ("ordinary", "reference", "keeper")
"""What the victim takes the member for: one of many, the configured reference, the one that the election finds."""

UNIX_NS = 1_790_000_000 * S
STEP_NS = 2_000_000
WANT_BYTES = 38
MEMORY_SLACK = 6 << 20
"""What the resident size of a process may vary by: the allocator's own pages."""

SETTLED = 15
"""After so many starts, some 15 minutes of virtual time, all that expires has begun to."""

BLOCKS_SLACK = 5_000
"""What Python's allocated blocks (:func:`sys.getallocatedblocks`, half a million) may vary by, as tables fill."""


class Broken(AssertionError):
    """Something that must hold did not."""


class Host:
    """The time of this world: both clocks of the machine that its nodes live on."""

    def __init__(self) -> None:
        self.ns = 10**6 * S

    def raw_ns(self) -> int:
        return self.ns

    def wall_ns(self) -> int:
        return UNIX_NS + self.ns

    def pass_ns(self, by_ns: int) -> None:
        self.ns += by_ns


class Peer:
    """A member without sockets: the real code, on a clock that differs from the host's by two constants."""

    def __init__(
        self, host: Any, name: str, ring: KeyRing, choose: random.Random, hostile: Hostile | None = None
    ) -> None:
        self.host, self.name, self.choose, self.hostile = host, name, choose, hostile
        self._ring = ring
        self.key = private_key(choose.randbytes(32))
        self.public_key = public_key_of(self.key)
        self.births = 0
        self.born()

    def born(self) -> None:
        """A new boot, under the same key: another one would be refused for a minute."""
        choose = self.choose
        self.births += 1
        self.epoch_ns, self.offset_ns = choose.randrange(-(10**15), 10**15), choose.randrange(-(10**8), 10**8)
        config = Config(node=NodeConfig(name=self.name), mesh=MeshConfig(interval=S))
        self.node = Node(config, boot=choose.randbytes(16), first=self.sample(), virtual=True)
        self.membership = Membership(
            self.node,
            RecordStore(self.name),
            self.key,
            plan=new_plan(config, choose.random),
            first_sequence=self.births << 40,
        )
        self.protocol = LinkProtocol(
            link="udp",
            key=self._ring,
            describe=self.describe,
            random=choose.randbytes,
            timebases=Timebases(),
            attach=self.attach,
            member_keys=MemberKeys(self.name, self.key),
        )
        self.membership.begin(self.raw_ns())

    def raw_ns(self) -> int:
        return int(self.host.raw_ns()) + self.epoch_ns

    def sample(self) -> WallSample:
        raw = self.raw_ns()
        minus = int(self.host.wall_ns()) + self.offset_ns - raw
        return WallSample(raw, Interval(minus, minus + 200))

    def describe(self) -> Self:
        said = self.node.describe()
        return said if self.hostile is None else self.hostile.said(said)

    def attach(self, peer: str | None, room: int) -> bytes:
        honest = self.membership.attach(peer, room)
        return honest if self.hostile is None else self.hostile.attached(self, honest, room)

    def turn(self) -> None:
        self.node.on_wall(self.sample())
        self.membership.turn(self.raw_ns())

    def speaking(self) -> contextlib.AbstractContextManager[Any]:
        """While what it says is drafted: a hostile one's words are changed on the way."""
        if self.hostile is None:
            return contextlib.nullcontext()
        # Wherever the drafts are made: the protocol asks the wire for them by its module.
        return mock.patch.object(wire, "draft", self.hostile.drafting(wire.draft))

    def ask(self, address: str) -> bytes:
        with self.speaking():
            return self.protocol.prepare(address)(self.raw_ns())

    def one_way(self, receiver: str) -> bytes:
        with self.speaking():
            return self.protocol.prepare_one_way(receiver)(self.raw_ns())

    def hear(self, data: bytes, address: str) -> bytes | None:
        """What it answers."""
        with self.speaking():
            received = self.protocol.receive(data, address, self.raw_ns())
            answer = None if received.reply is None else received.reply(self.raw_ns())
        if received.proofs is not None:
            # A hostile one's own bookkeeping may choke on what it says.
            with contextlib.suppress(*(() if self.hostile is None else (Exception,))):
                self.node.on_proofs(received.proofs, self.raw_ns())
                self.membership.heard(received.proofs, self.raw_ns())
        return answer


class Hostile:
    """What a member's words become. It says *something* false in most of its messages, and all of it in some."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose
        self.counts: Counter[str] = Counter()
        self.sequence = 1
        self.still = False
        """Whether it is honest for now: only who is believed can be followed."""
        self.new_part()

    def new_part(self) -> None:
        """Another way to be hostile, for a while."""
        choose = self.choose
        self.rate = choose.choice((0.0, 0.1, 0.5, 0.9))
        edge = choose.choice((59, 60, 61, 62, 63))
        self.raw_shift_ns = choose.choice((0, 0, 0, 1, -1)) * ((1 << edge) - choose.randrange(1 << 58))
        self.wall = choose.choice((None, None, *(sign * ((1 << bits) + by) for bits in (60, 61, 62, 63)
                                                 for sign in (1, -1) for by in (-1, 0, 1, -(10**17)))))  # fmt: skip
        self.limits = choose.choice(
            (
                None,
                (wire.MAX_SLEW_PPB, wire.MAX_DRIFT_PPM, wire.MAX_WANDER_PPB_PER_S),
                (0, 0, 0),
                (wire.MAX_SLEW_PPB + 1, wire.MAX_DRIFT_PPM + 1, wire.MAX_WANDER_PPB_PER_S + 1),
            )
        )
        self.name = choose.choice((None,) * 12 + ("utc", "auto", "x" * 63, VICTIM, HONEST[0]))
        self.records = choose.choice(("own", "own", "own", "none", "rubbish"))

    def _now_and_then(self) -> bool:
        return self.choose.random() < self.rate

    # -- messages

    def said(self, honest: Self) -> Self:
        """What it says about itself in messages."""
        if self.still:
            return honest
        choose, changes = self.choose, dict[str, Any]()
        changes["wall_raw_at_ns"] = _clip(honest.wall_raw_at_ns + self.raw_shift_ns)
        if self.wall is not None:
            changes["wall_minus_raw"] = Interval(_clip(self.wall), _clip(self.wall + choose.choice((0, 200, S))))
        if self.limits is not None:
            slew, drift, wander = self.limits
            changes |= {"wall_slew_ppb": slew, "max_drift_ppm": drift, "max_wander_ppb_per_s": wander}
        if self.name is not None and self.choose.random() < 0.5:
            changes["name"] = self.name
        if self._now_and_then():
            field = choose.choice(("wall_minus_raw", "wall_raw_at_ns", "era", "raw_era", "slew", "drift", "wander"))
            self.counts[f"message {field}"] += 1
            if field == "wall_minus_raw":
                changes[field] = Interval(*ends(choose, honest.wall_minus_raw.lo))
            elif field == "wall_raw_at_ns":
                changes[field] = i64(choose, honest.wall_raw_at_ns)
            elif field in ("era", "raw_era"):
                changes[field] = unsigned(choose, 32)
            elif field == "slew":
                changes["wall_slew_ppb"] = unsigned(choose, 32, wire.MAX_SLEW_PPB)
            elif field == "drift":
                changes["max_drift_ppm"] = unsigned(choose, 32, wire.MAX_DRIFT_PPM)
            else:
                changes["max_wander_ppb_per_s"] = unsigned(choose, 32, wire.MAX_WANDER_PPB_PER_S)
        return forced(honest, **changes)

    def drafting(self, real: Callable[..., Callable[[int], bytes]]) -> Callable[..., Callable[[int], bytes]]:
        """In the place of ``wire.draft``: the same, with some fields changed."""
        if self.still:
            return real

        def draft(*arguments: Any, **said: Any) -> Callable[[int], bytes]:
            choose = self.choose
            if said.get("received_ns"):
                said["received_ns"] = _clip(said["received_ns"] + self.raw_shift_ns)
            if said.get("told") is not None:
                said["told"] = (said["told"][0], _clip(said["told"][1] + self.raw_shift_ns))
            said["others"] = [(nonce, _clip(at_ns + self.raw_shift_ns)) for nonce, at_ns in said.get("others", ())]
            changed_stamp = False
            if self._now_and_then():
                field = choose.choice(("received_ns", "told", "others", "sent_ns", "attachment", "receiver", "answers"))
                self.counts[f"message {field}"] += 1
                if field == "received_ns":
                    said[field] = i64(choose, said.get(field, 0))
                elif field == "told":
                    said[field] = (choose.choice((choose.randbytes(16), said["nonce"])), i64(choose))
                elif field == "others":
                    said[field] = [
                        (nonce, i64(choose, at_ns)) for nonce, at_ns in said[field] or ((choose.randbytes(16), 0),)
                    ]
                elif field == "attachment":
                    said[field] = choose.randbytes(choose.randrange(len(said.get(field, b"")) + 1))
                elif field == "receiver":
                    said[field] = choose.choice(("", VICTIM, "x" * 63, "utc", "?"))
                elif field == "answers":
                    said[field] = choose.choice((said["nonce"], choose.randbytes(16)))
                else:
                    changed_stamp = True
            build = real(*arguments, **said)

            def stamped(sent_ns: int) -> bytes:
                shifted = _clip(sent_ns + self.raw_shift_ns)
                return build(i64(choose, shifted) if changed_stamp else shifted)

            return stamped

        return draft

    # -- records

    def attached(self, peer: Peer, honest: bytes, room: int) -> bytes:
        """What goes along: mostly a hostile record of its own, signed."""
        if self.still or self.records == "none" or self.choose.random() < 0.3:
            return honest
        if self.records == "rubbish":
            return self.choose.randbytes(self.choose.randrange(room + 1))
        try:
            data = sign(self.record(peer), peer.key)
        except Exception:  # what no encoder can write
            self.counts["record unwritable"] += 1
            return honest
        return honest[:WANT_BYTES] + bundle([data]) if len(data) + WANT_BYTES + 2 <= room else honest

    def record(self, peer: Peer) -> Record:
        """Its own record: what an honest member would say, and then some of it otherwise."""
        choose, node = self.choose, peer.node
        self.sequence += 1
        own = peer.membership.store._own
        assert own is not None
        base = decode(own)
        tags = [
            clock_tag(name, record.public_key, record.boot, record.raw_era)
            for name, record in peer.membership.store.records().items()
        ]
        choose.shuffle(tags)
        edges = tuple(Edge(tag, self.claim(Interval(-1000, 1000))) for tag in tags[: choose.randrange(5)])
        changes: dict[str, Any] = {
            "sequence": base.sequence + self.sequence if choose.random() < 0.998 else (1 << 64) - 1,
            "raw_ns": _clip(peer.raw_ns() + self.raw_shift_ns),
            "edges": edges,
            "public_key": peer.public_key,
            "boot": node.boot,
        }
        if self.wall is not None:
            changes["wall_minus_raw"] = Interval(_clip(self.wall), _clip(self.wall + 200))
        if choose.random() < 0.5:
            changes["utc"] = self.claim(Interval(*ends(choose, UNIX_NS)))
        if choose.random() < 0.7:
            changes["timescale"] = self.timescale(base, node)
        if self._now_and_then():
            field = choose.choice(("raw_ns", "wall_minus_raw", "slew", "drift", "wander", "era", "raw_era", "owner"))
            self.counts[f"record {field}"] += 1
            if field == "raw_ns":
                changes[field] = i64(choose, base.raw_ns)
            elif field == "wall_minus_raw":
                low, high = ends(choose, base.wall_minus_raw.lo)
                changes[field] = Interval(low, min(high, low + (1 << 48) - 1))
            elif field in ("era", "raw_era"):
                changes[field] = unsigned(choose, 32)
            elif field == "owner":
                changes[field] = choose.choice(("utc", "auto", VICTIM, HONEST[0], "made-up", "x" * 63))
            elif field == "slew":
                changes["wall_slew_ppb"] = unsigned(choose, 32, wire.MAX_SLEW_PPB)
            elif field == "drift":
                changes["max_drift_ppm"] = unsigned(choose, 32, wire.MAX_DRIFT_PPM)
            else:
                changes["max_wander_ppb_per_s"] = unsigned(choose, 32, wire.MAX_WANDER_PPB_PER_S)
        return forced(base, **changes)

    def claim(self, about: Interval) -> Claim:
        """A claim about any clock."""
        choose = self.choose
        low, high = ends(choose, about.lo)
        limit = choose.choice((0, 1, 200_020, 250_000_000, unsigned(choose, 31)))
        slowest, fastest = sorted((choose.randint(-limit, limit), choose.choice((-limit, 0, limit))))
        if self._now_and_then():
            slowest, fastest = -(1 << 31), (1 << 31) - 1
        return forced(
            Claim(Interval(0, 0), Interval(0, 0), 0, 0),
            offset=Interval(low, min(high, low + (1 << 48) - 1)),
            drift_ppb=Interval(slowest, fastest),
            drift_limit_ppb=limit,
            wander_ppb_per_s=unsigned(choose, 32),
        )

    def timescale(self, base: Record, node: Node) -> Timescale:
        """What it follows, or says to keep."""
        choose = self.choose
        names = (EVIL, VICTIM, *HONEST, "utc", "nobody")
        own = choose.random() < 0.6
        return forced(
            base.timescale or Timescale(1, base.owner, base.owner, node.boot, node.raw_era),
            epoch=unsigned(choose, 32),
            origin=base.owner if own else choose.choice(names),
            keeper=base.owner if own else choose.choice(names),
            keeper_boot=node.boot if own else choose.randbytes(16),
            keeper_raw_era=node.raw_era if own else unsigned(choose, 32),
            k_ns=choose.choice((None, i64(choose, UNIX_NS))),
        )


def _clip(value: int) -> int:
    return max(-(1 << 63), min((1 << 63) - 1, value))


# -- inside ------------------------------------------------------------------------------------------------------------


class Inside:
    """A daemon in this process, on time that only :meth:`step` moves."""

    def __init__(self, directory: Path, seed: int, part: str) -> None:
        self.choose = random.Random(f"member-fuzz/{seed}/{part}")
        self.part, self.seed, self.directory = part, seed, directory
        self.host = Host()
        self.key_file = directory / "mesh.key"
        generate_key_file(self.key_file)
        ring = KeyFile(self.key_file).keys
        self.hostile = Hostile(self.choose)
        self.evil = Peer(self.host, EVIL, ring, self.choose, self.hostile)
        self.honest = [Peer(self.host, name, ring, self.choose) for name in HONEST]
        page = VirtualPage.create(directory / "page", at_host_raw_ns=self.host.ns, epoch_ns=3 * 10**15)
        page._host = self.host  # type: ignore[assignment]
        self.clock = VirtualClock(page)
        self.reader = SegmentReader(directory / "run" / NAME)
        self.messages = self.published = self.restarts = 0
        self.unknown_ns = self.host.ns
        """When the daemon last had nothing to publish."""
        self.next_part = self.next_turn = self.next_still = self.still_until = self.followed = 0

    @property
    def config(self) -> Config:
        reference = EVIL if self.part == "reference" else "auto"
        return Config(
            node=NodeConfig(name=VICTIM, runtime_dir=self.directory / "run", state_dir=self.directory / "state"),
            mesh=MeshConfig(
                listen="127.0.0.1:0", key_file=self.key_file, interval=S, reference=reference, liars=self.seed % 2
            ),
            metrics=MetricsConfig(listen=None),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Daemon]:
        """A daemon of this node; the one before has ended."""
        self.host.pass_ns(S)
        self.unknown_ns = self.host.ns
        daemon = Daemon(self.config, self.clock)
        async with daemon.running():
            assert daemon._links.udp is not None
            self.shell = daemon._links.udp._shell
            yield daemon
        self.restarts += 1

    def to_victim(self, data: bytes, sender: Peer) -> None:
        """A message arrives; what is answered goes back."""
        self.messages += 1
        self.host.pass_ns(50_000)
        answers: list[bytes] = []
        at = self.clock.raw_ns()
        self.shell.handle(data, sender.name, at, lambda build: answers.append(build(self.clock.raw_ns())))
        self.host.pass_ns(50_000)
        for answer in answers:
            sender.hear(answer, VICTIM)

    def asked_by_victim(self, peer: Peer) -> None:
        """The victim asks, and hears what the peer answers."""
        request = self.shell.protocol.prepare(peer.name)(self.clock.raw_ns())
        self.host.pass_ns(50_000)
        answer = peer.hear(request, VICTIM)
        if answer is not None:
            self.to_victim(answer, peer)

    def step(self, daemon: Daemon) -> None:
        """Some messages, and a tick."""
        choose = self.choose
        if self.part == "keeper" and daemon.node.mesh is not None:
            scale = daemon.node.mesh.timescale
            follows = scale is not None and scale.keeper == EVIL
            self.followed += follows
            # Honest at first, and again now and then, for as long as it takes to be followed.
            if self.messages >= self.next_still:
                self.next_still = self.messages + 4_000
                self.still_until = self.messages + 1_500
            self.hostile.still = self.messages < self.still_until and not follows
            if follows:
                self.still_until = 0
        if self.messages >= self.next_part:
            self.next_part = self.messages + choose.randrange(20, 300)
            self.hostile.new_part()
            if choose.random() < 0.3 and not self.hostile.still:
                self.evil.born()
        for _ in range(choose.randrange(1, 6)):
            kind = choose.random()
            with contextlib.suppress(*_UNWRITABLE):
                if kind < 0.4:
                    self.asked_by_victim(self.evil)
                elif kind < 0.9:
                    self.to_victim(self.evil.ask(VICTIM), self.evil)
                else:
                    self.to_victim(self.evil.one_way(choose.choice(("", VICTIM))), self.evil)
        if self.host.ns >= self.next_turn:
            self.next_turn = self.host.ns + S // 2
            for peer in self.honest:
                self.to_victim(peer.ask(VICTIM), peer)
                self.asked_by_victim(peer)
                self._between(peer, self.honest[0] if peer is self.honest[1] else self.honest[1])
                with contextlib.suppress(*_UNWRITABLE):
                    self._between(peer, self.evil)
            for peer in (*self.honest, self.evil):
                with contextlib.suppress(*(_UNWRITABLE if peer is self.evil else ())):
                    peer.turn()
        self.host.pass_ns(choose.choice((STEP_NS, 10 * STEP_NS, 50 * STEP_NS, S // 4)))
        if choose.random() < 0.002:
            self.host.pass_ns(choose.choice((10, 100, 1000)) * S)
        daemon.tick()
        if daemon.node.reference_estimate(self.clock.raw_ns()) is None:
            self.unknown_ns = self.host.ns

    def _between(self, one: Peer, other: Peer) -> None:
        answer = other.hear(one.ask(other.name), one.name)
        if answer is not None:
            one.hear(answer, other.name)

    def check(self, daemon: Daemon) -> None:
        """All that must hold."""
        faults = sum(daemon._faults.counts.values())
        if faults or self.shell.counters["internal_errors"]:
            raise Broken(f"faults were contained: {daemon._faults.counts}, {self.shell.counters['internal_errors']}")
        told = daemon.status()
        json.dumps(told)
        prometheus.exposition(prometheus.registry(daemon.told, {"version": "0"}, lambda: 0.0))
        daemon.now()
        daemon._tidy()
        wrong = [one for one in told["problems"] if one["code"] == "state-unwritable" or one["code"].endswith("-fault")]
        if wrong:
            raise Broken(str(wrong))
        latest = self.reader.latest
        if latest is not None:
            self.reader.at(self.clock.wall_ns())
            self.published += 1
            age_ns = self.clock.wall_ns() - latest.wall_ns
            if self.host.ns - self.unknown_ns > S and abs(age_ns) > S:
                raise Broken(f"nothing is published: the newest knot is {age_ns} ns old")
        for peer in self.honest:
            row = next((row for row in told["peers"] if row["name"] == peer.name), None)
            if row is None or row["lower_ns"] is None or row["path"] != [[peer.name]]:
                continue
            truth = peer.sample().wall_at_ns() - self.clock.wall_ns()
            if not row["lower_ns"] - 400 <= truth <= row["upper_ns"] + 400:
                raise Broken(f"{peer.name} is at {truth}, the bound [{row['lower_ns']}, {row['upper_ns']}]")


_UNWRITABLE = (ValueError, OverflowError, struct.error)


async def inside(
    directory: Path, seed: int, part: str, *, seconds: float, messages: int | None = None
) -> dict[str, Any]:
    """One world, for so long (or so many messages); what it came to.

    Raises:
        Broken: something did not hold; the message names the seed.
    """
    world = Inside(directory, seed, part)
    begun, sizes = time.monotonic(), list[int]()

    def over() -> bool:
        return time.monotonic() - begun > seconds or (messages is not None and world.messages >= messages)

    while not over():
        async with world.running() as daemon:
            try:
                until = world.messages + 2_000
                for number in range(1_000_000):
                    world.step(daemon)
                    if number % 20 == 0:
                        world.check(daemon)
                        await asyncio.sleep(0)
                        if world.messages > until or over():
                            break
                world.check(daemon)
            except Exception as error:
                raise Broken(f"seed {seed}, part {part}, message {world.messages}: {error!r}") from error
        gc.collect()
        sizes.append(sys.getallocatedblocks())
    return {
        "part": part,
        "seed": seed,
        "messages": world.messages,
        "restarts": world.restarts,
        "virtual_s": (world.host.ns - 10**15) // S,
        "checked": world.published,
        "ticks_as_keeper": world.followed,
        "hostile": dict(world.hostile.counts),
        "counters": {name: count for name, count in world.shell.counters.items() if count},
        "sizes": sizes,
    }


def resident_bytes(pid: int | str = "self") -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(sizes: list[int]) -> int:
    """By how much the second half is larger than the first was at its largest; the first tenth is warming up."""
    warm = sizes[len(sizes) // 10 :]
    half = len(warm) // 2
    return max(warm[half:]) - max(warm[:half]) if half else 0


# -- outside -----------------------------------------------------------------------------------------------------------


class Outside:
    """``skewd run`` over UDP, as a service manager starts it."""

    def __init__(self, directory: Path, seed: int, part: str) -> None:
        self.choose = random.Random(f"member-fuzz-outside/{seed}/{part}")
        self.directory, self.part = directory, part
        self.key_file = directory / "mesh.key"
        generate_key_file(self.key_file)
        ring = KeyFile(self.key_file).keys
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(0.02)
        self.hostile = Hostile(self.choose)
        self.evil = Peer(HostClock(), EVIL, ring, self.choose, self.hostile)
        self.port = _free_port()
        self.config = directory / "skewd.toml"
        reference = EVIL if part == "reference" else "auto"
        self.config.write_text(
            f'[node]\nname = "{VICTIM}"\nruntime_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
            f'[metrics]\nlisten = "off"\n[sidecar]\ngrpc = "off"\nhttp = "off"\n'
            f'[mesh]\nlisten = "127.0.0.1:{self.port}"\nkey_file = "{self.key_file}"\ninterval = "100ms"\n'
            f'peers = ["127.0.0.1:{self.sock.getsockname()[1]}"]\nreference = "{reference}"\n'
        )
        self.messages = self.restarts = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.directory / "log").open("ab") as log:
            command = [sys.executable, "-m", "skewd", "run", "--config", str(self.config)]
            command += ["--virtual-clock", "offset=1ms"]
            if os.geteuid() == 0:
                command = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", *command]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            code = process.wait(LIMIT_S)
            if code != 0:
                raise Broken(f"the daemon ended with {code}: {(self.directory / 'log').read_text()[-3000:]}")
            self.restarts += 1
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def speak(self) -> None:
        """A message or an answer."""
        choose = self.choose
        if choose.random() < 0.01:
            self.hostile.new_part()
            if choose.random() < 0.3:
                self.evil.born()
        if choose.random() < 0.02:
            with contextlib.suppress(Exception):
                self.evil.membership.turn(self.evil.raw_ns())
        self.speak_now()

    def speak_now(self) -> None:
        """The same, in the part that it plays now."""
        there = ("127.0.0.1", self.port)
        self.evil.node.on_wall(self.evil.sample())
        with contextlib.suppress(OSError, *_UNWRITABLE):
            self.sock.sendto(self.evil.ask(VICTIM), there)
            self.messages += 1
        for _ in range(8):
            try:
                data, source = self.sock.recvfrom(2048)
            except OSError:
                return
            with contextlib.suppress(*_UNWRITABLE):
                answer = self.evil.hear(data, VICTIM)
                if answer is not None:
                    self.sock.sendto(answer, source)
                    self.messages += 1
            self.sock.settimeout(0.001)
        self.sock.settimeout(0.02)


def rubbish(path: Path, choose: random.Random) -> None:
    """What no HTTP client says, to the local API."""
    said = choose.choice(
        (
            choose.randbytes(choose.randrange(1, 4000)),
            b"GET /v1/status HTTP/1.1\r\n" + b"x" * choose.randrange(20_000),
            b"POST /v1/now HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"GET /" + b"%00" * 50 + b" HTTP/1.0\r\n\r\n",
            b"GET /v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        )
    )
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.1)
        client.connect(str(path))
        client.sendall(said)
        client.recv(100)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def outside(directory: Path, seed: int, part: str, *, seconds: float, restart_s: float = 60.0) -> dict[str, Any]:
    """A process for so long, restarted with what it kept; what it came to.

    Raises:
        Broken: it ended, answered nothing, or contained a fault.
    """
    world = Outside(directory, seed, part)
    end, sizes, faults = time.monotonic() + seconds, list[int](), 0
    accepted = grown = 0
    during: list[int] = []
    while time.monotonic() < end:
        with world.running() as process:
            until = min(end, time.monotonic() + restart_s)
            warm = time.monotonic() + min(restart_s, seconds) / 4
            looked = time.monotonic() + 1
            told: dict[str, Any] = {}
            while time.monotonic() < until or not told:
                world.speak()
                if process.poll() is not None:
                    log = (directory / "log").read_text()[-3000:]
                    raise Broken(f"seed {seed}, part {part}: the daemon ended: {log}")
                if time.monotonic() >= looked:
                    looked = time.monotonic() + 1
                    rubbish(directory / "run" / "skewd.sock", world.choose)
                    if looked > warm and process.poll() is None:
                        during.append(resident_bytes(process.pid))
                    with contextlib.suppress(NoDaemonError, SlowDaemonError):
                        told = get_status(directory / "run" / "skewd.sock")
                    if time.monotonic() > until + LIMIT_S:
                        raise Broken(f"seed {seed}, part {part}: no status")
            sizes.append(resident_bytes(process.pid))
            grown = max(grown, growth(during))
            during.clear()
            faults += sum(told.get("faults", {}).values())
            counters = told["links"][0]["counters"]
            accepted += counters["accepted"]
            if faults or counters["internal_errors"]:
                raise Broken(f"seed {seed}, part {part}: contained faults {told.get('faults')}")
    world.sock.close()
    return {
        "part": part,
        "seed": seed,
        "messages": world.messages,
        "accepted": accepted,
        "restarts": world.restarts,
        "sizes": sizes,
        "grown_while_it_ran": grown,
        "faults": faults,
    }


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mesh.member_fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long, all worlds together")
    parser.add_argument("--seed", type=int, default=None, help="of the first world; without it, another each time")
    parser.add_argument("--only", choices=("inside", "outside"), default=None)
    parser.add_argument("--report", action="store_true", help="write docs/reports/fuzz-daemon.md")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    share = {"inside": 0.8, "outside": 0.2} if options.only is None else {options.only: 1.0}
    seconds = options.minutes * 60
    failed = 0
    grown = 0
    resident: list[int] = []
    outsides: list[dict[str, Any]] = []
    end = time.monotonic() + seconds * share.get("inside", 0)
    number = 0
    total = Counter[str]()
    while time.monotonic() < end:
        part = PARTS[number % len(PARTS)]
        with tempfile.TemporaryDirectory(prefix="skf") as name:
            each = min(max(10.0, seconds * share["inside"] / len(PARTS)), end - time.monotonic())
            try:
                found = asyncio.run(inside(Path(name), seed + number, part, seconds=each))
            except Broken as broken:
                print(f"BROKEN {broken}", flush=True)
                failed += 1
            else:
                # Tables are full after some starts; what comes after is judged.
                settled = found["sizes"][SETTLED:]
                grown = max(grown, growth(settled) if len(settled) > SETTLED else 0)
                resident.append(resident_bytes())
                total.update({key: found[key] for key in _TOTALS})
                total.update({"hostile fields": sum(found["hostile"].values())})
                total.update({f"inside {name}": count for name, count in found["counters"].items()})
                print(json.dumps(found), flush=True)
        number += 1
    if number:
        print(f"inside: {dict(total)}; blocks grew by {grown}, resident size by {growth(resident)} bytes", flush=True)
        failed += grown > BLOCKS_SLACK or growth(resident) > MEMORY_SLACK
    for part in ("reference", "keeper") if "outside" in share else ():
        with tempfile.TemporaryDirectory(prefix="skf") as name:
            try:
                found = outside(Path(name), seed, part, seconds=seconds * share["outside"] / 2)
            except Broken as broken:
                print(f"BROKEN {broken}", flush=True)
                failed += 1
            else:
                print(json.dumps(found), flush=True)
                failed += found["grown_while_it_ran"] > MEMORY_SLACK
                outsides.append(found)
    print("failed" if failed else "nothing failed", flush=True)
    if options.report:
        report(total, outsides, seed, options.minutes, grown, growth(resident), failed)
    return 1 if failed else 0


_TOTALS = ("messages", "restarts", "virtual_s", "checked", "ticks_as_keeper")


def report(
    total: Counter[str],
    outsides: list[dict[str, Any]],
    seed: int,
    minutes: float,
    blocks: int,
    resident: int,
    failed: int,
) -> None:
    """The member's section of the page."""
    messages, accepted = (sum(found[key] for found in outsides) for key in ("messages", "accepted"))
    outside_grown = max((found["grown_while_it_ran"] for found in outsides), default=0)
    fuzz_report.write(
        "member",
        [
            f"The last run: seed {seed}, {minutes:g} minutes on {fuzz_report.machine()}:"
            f" {'something failed' if failed else '0 exits, 0 faults, 0 false bounds'}.",
            "",
            *fuzz_report.table(
                ("", "inside", "outside"),
                ("messages that it sent", total["messages"], messages),
                ("hostile fields, beside those of hostile clocks", total["hostile fields"], ""),
                ("times that everything was checked", total["checked"], ""),
                ("virtual time", f"{total['virtual_s'] / 3600:.1f} h", ""),
                ("starts of the daemon", total["restarts"], sum(found["restarts"] for found in outsides)),
                ("ticks at which it was the elected keeper", total["ticks_as_keeper"], ""),
                ("messages that the last starts used", total["inside accepted"], accepted),
                ("messages that they refused as malformed", total["inside malformed"], ""),
                ("growth of memory", f"{blocks} of 250,000 blocks; {resident >> 10} KiB", f"{outside_grown >> 10} KiB"),
            ),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
