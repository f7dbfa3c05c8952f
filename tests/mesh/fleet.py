"""A fleet of simulated nodes that run the real code: links, records, composition, election, without a socket.

Time is true time, in whole ns since the simulation began, and known to the simulation only. Each member has an
oscillator that moves as its limits allow (``tests/simulation/world.py``), a wall clock that may be stepped, and what a
daemon has besides its sockets: ``Node``, ``LinkProtocol`` and ``Membership``. Messages are bytes; they take a random
time each way, may be lost, and are cut off by a partition. Everything follows from the seed.

A *liar* is a member with a valid key. It runs the real code too, but its stamps towards each peer are shifted by what
``Lies`` says, and its records are altered before they are signed.

What it costs: signatures are checked once for all members (the same bytes have the same signature), which a real
fleet cannot share.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from skewd.clock import WallSample
from skewd.config import Config, MeshConfig, NodeConfig
from skewd.interval import Interval
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Timebases
from skewd.membership import Membership, simulated
from skewd.node import Node
from skewd.records import Record
from tests.simulation.world import SECOND, Oscillator, Wall, Wire, set_going

KEY = MeshKey.from_secret(b"simulated fleet".ljust(32, b"."))
TURN_NS = SECOND // 2
"""How often a member reads its clocks and takes its turn."""

Alter = Callable[[Record], Record]


@dataclass
class Lies:
    """What a liar does: shifts per peer (ns, of the stamps it tells), and its records altered."""

    shift_ns: Callable[[str], int] = lambda peer: 0
    record: Alter = lambda record: record


@dataclass
class Member:
    """One simulated daemon, and the truth about its clocks."""

    name: str
    oscillator: Oscillator
    wall: Wall
    node: Node
    protocol: LinkProtocol
    membership: Membership
    born_ns: int
    lies: Lies | None = None
    alive: bool = True
    sent: Counter[str] = field(default_factory=Counter)

    def sample(self, true_ns: int) -> WallSample:
        raw = self.oscillator.raw(true_ns)
        difference = self.wall.read(true_ns) - raw
        return WallSample(raw, Interval(difference - 100, difference + 100))


class Fleet:
    """All members and what is between them.

    Args:
        names: the members.
        seed: all chance.
        interval_s, fanout, liars, reference: as configured (``[mesh]``).
        wire: delays of each message; ``wires`` overrides it for some (sender, receiver).
        loss: share of the messages that are lost.
        utc: members with a source of UTC of their own.
    """

    def __init__(
        self,
        names: Iterable[str],
        seed: int,
        *,
        fanout: int = 8,
        liars: int = 1,
        reference: str = "auto",
        wire: Wire | None = None,
        wires: dict[tuple[str, str], Wire] | None = None,
        loss: float = 0.0,
        style: str = "bang",
        lies: dict[str, Lies] | None = None,
        duration_s: float = 900.0,
    ) -> None:
        self.choose = random.Random(f"fleet/{seed}")
        self.true_ns = 0
        self.names = list(names)
        self.members: dict[str, Member] = {}
        self.bytes_received: Counter[str] = Counter()
        self._config = MeshConfig(fanout=fanout, liars=liars, reference=reference)
        self._wire, self._wires, self._loss = wire or Wire(jitter_us=50.0), wires or {}, loss
        self._style, self._lies, self._duration_s = style, lies or {}, duration_s
        self._parts: dict[str, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        for name in self.names:
            self.start(name)

    # -- what happens to members ---------------------------------------------------------------------------------

    def start(self, name: str, *, reboot: bool = True) -> Member:
        """Starts a member, or starts it again: a reboot gives it another raw clock."""
        old = self.members.get(name)
        choose = random.Random(f"{name}/{self.choose.random()}")
        if old is None or reboot:
            drift, wander = 100_000.0, 10.0
            oscillator = Oscillator(choose.randrange(-(10**14), 10**14), drift, wander)
            mirror = Oscillator(0, drift, wander)
            set_going(self._style, oscillator, mirror, choose, self._duration_s + 100)
            wall = Wall(oscillator, choose.randrange(-(10**7), 10**7))
            boot = choose.randbytes(16)
        else:
            oscillator, wall, boot = old.oscillator, old.wall, old.node.boot
        config = Config(node=NodeConfig(name=name), mesh=self._config)
        raw = oscillator.raw(self.true_ns)
        difference = wall.read(self.true_ns) - raw
        first = WallSample(raw, Interval(difference - 100, difference + 100))
        node = Node(config, boot=boot, first=first, virtual=True)
        lies = self._lies.get(name)
        membership = simulated(node, choose.randbytes, choose.random)
        membership.alter = lies.record if lies else None
        protocol = LinkProtocol(
            link="udp",
            key=KEY,
            describe=node.describe,
            random=choose.randbytes,
            timebases=Timebases(),
            attach=membership.attach,
        )
        member = Member(name, oscillator, wall, node, protocol, membership, self.true_ns, lies)
        membership.plan.candidates((other for other in self.names if other != name), raw)
        self.members[name] = member
        self._at(self.true_ns + choose.randrange(TURN_NS), lambda: self._turn(member))
        self._at(self.true_ns + choose.randrange(TURN_NS), lambda: self._due(member))
        return member

    def stop(self, name: str) -> None:
        self.members[name].alive = False

    def part(self, *groups: Iterable[str]) -> None:
        """From now on only members of one group hear each other; those in no group are one more."""
        self._parts = {name: number for number, group in enumerate(groups, 1) for name in group}

    def heal(self) -> None:
        self._parts = {}

    # -- time ----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = self.true_ns + round(seconds * SECOND)
        while self._events and self._events[0][0] <= end:
            self.true_ns, _, happen = heapq.heappop(self._events)
            happen()
        self.true_ns = end

    def _at(self, true_ns: int, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (true_ns, next(self._serial), happen))

    def _turn(self, member: Member) -> None:
        if not member.alive or self.members[member.name] is not member:
            return
        member.node.on_wall(member.sample(self.true_ns))
        member.membership.turn(member.oscillator.raw(self.true_ns))
        self._at(self.true_ns + TURN_NS, lambda: self._turn(member))

    def _due(self, member: Member) -> None:
        if not member.alive or self.members[member.name] is not member:
            return
        plan, now = member.membership.plan, member.oscillator.raw(self.true_ns)
        for address in plan.take(now):
            self._ask(member, address)
        wait = plan.wait_ns(now)
        self._at(self.true_ns + max(wait or 0, 10_000_000), lambda: self._due(member))

    def _stamp(self, member: Member, peer: str, true_ns: int) -> int:
        """What the member says its raw clock reads, to this peer."""
        return member.oscillator.raw(true_ns) + (member.lies.shift_ns(peer) if member.lies else 0)

    def _passes(self, one: str, other: str) -> bool:
        return self._parts.get(one, 0) == self._parts.get(other, 0) and self.choose.random() >= self._loss

    def _delay(self, one: str, other: str) -> int:
        return self._wires.get((one, other), self._wire).delay_ns(self.choose, True)

    def _ask(self, member: Member, address: str) -> None:
        if not member.alive:
            return
        request = member.protocol.prepare(address)(self._stamp(member, address, self.true_ns))
        self._send(member, address, request)

    def _send(self, member: Member, to: str, data: bytes) -> None:
        member.sent["packets"] += 1
        member.sent["bytes"] += len(data)
        if self._passes(member.name, to):
            arrives = self.true_ns + self._delay(member.name, to)
            self._at(arrives, lambda: self._arrive(to, member.name, data))

    def _arrive(self, to: str, sender: str, data: bytes) -> None:
        member = self.members.get(to)
        if member is None or not member.alive:
            return
        self.bytes_received[to] += len(data)
        received = member.protocol.receive(data, sender, self._stamp(member, sender, self.true_ns))
        if received.reply is not None:
            left = self.true_ns + self.choose.randrange(20_000)
            build = received.reply
            self._at(left, lambda: self._send(member, sender, build(self._stamp(member, sender, self.true_ns))))
        now = member.oscillator.raw(self.true_ns)
        if received.proofs is not None:
            member.node.on_proofs(received.proofs, now)
            member.membership.heard(received.proofs, now)

    # -- truth ---------------------------------------------------------------------------------------------------

    def living(self) -> list[Member]:
        return [member for member in self.members.values() if member.alive]

    def honest(self) -> list[Member]:
        return [member for member in self.living() if member.lies is None]

    def raw_between(self, here: Member, there: Member) -> int:
        """there's raw - here's raw, now."""
        return there.oscillator.raw(self.true_ns) - here.oscillator.raw(self.true_ns)

    def wall_between(self, here: Member, there: Member) -> int:
        """there's wall - here's wall, now."""
        return there.wall.read(self.true_ns) - here.wall.read(self.true_ns)
