"""A fleet of simulated nodes that run the real code: links, records, composition, election, without a socket.

Time is true time, in whole ns since the simulation began, and known to the simulation only. Each member has an
oscillator that moves as its limits allow (``tests/simulation/world.py``), a wall clock that may be stepped, and what a
daemon has besides its sockets: ``Node``, ``LinkProtocol`` and ``Membership``. Messages are bytes; they take a random
time each way, may be lost, and are cut off by a partition. Everything follows from the seed.

A *liar* is a member with a valid key. It runs the real code too, but its stamps towards each peer are shifted by what
``Lies`` says, its records are altered before they are signed, and what it passes on is its own affair (``liars.py``).

What it costs: a signature is checked, and a record decoded, once for all members, for the same bytes have the same
outcome. A real fleet cannot share that; all else is done as often as there.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from unittest import mock

from skewd import record_store, records
from skewd.bounds.history import History, Knot
from skewd.clock import WallSample
from skewd.config import ClockConfig, Config, MeshConfig, NodeConfig, SourceConfig
from skewd.election import Timescale
from skewd.interval import Interval
from skewd.keys import MeshKey
from skewd.links.protocol import LinkProtocol, Self, Timebases
from skewd.member_keys import MemberKeys
from skewd.membership import Membership, new_plan
from skewd.node import Node
from skewd.record_store import SEQUENCES_PER_START, RecordStore
from skewd.records import Record, private_key
from tests.simulation.world import SECOND, UNIX_NS, Oscillator, Wall, Wire, set_going

KEY = MeshKey.from_secret(b"simulated fleet".ljust(32, b"."))
TURN_NS = SECOND // 2
"""How often a member reads its clocks and takes its turn, if it asks once a second."""

_verify = lru_cache(maxsize=32_768)(records.verify)
_decode = lru_cache(maxsize=16_384)(records.decode)


def forget() -> None:
    """What was checked before is checked again."""
    _verify.cache_clear()
    _decode.cache_clear()


@dataclass
class Lies:
    """What a liar does; by default nothing.

    Attributes:
        shift_ns: by how much the stamps that it tells a peer are off, at a true time.
        record: its own record, altered before it is signed.
        describe: what it says about itself in messages.
        attach: what it attaches: from itself, the peer, the room, and what an honest member would attach.
        contradicts: so many of its honest neighbours together contradict it, whichever they are; 0: perhaps none.
    """

    shift_ns: Callable[[str, int], int] = lambda peer, true_ns: 0
    record: Callable[[Record], Record] = lambda record: record
    describe: Callable[[Self], Self] = lambda said: said
    attach: Callable[[Member, str | None, int, bytes], bytes] = lambda member, peer, room, honest: honest
    contradicts: int = 0


@dataclass
class Published:
    """What a member publishes: its knots, and what came of changes of the timescale."""

    history: History = field(default_factory=lambda: History(stamps="wall"))
    latest: Knot | None = None
    scale: Timescale | None = None
    epochs: int = 0
    changes: int = 0
    """Of the clock that keeps the timescale, with no new epoch told."""
    jumps: list[str] = field(default_factory=list)
    """Such changes that moved published time by more than the published uncertainty."""
    blind_ns: int = -(1 << 62)
    """When what it knew of the keeper's wall clock was last of before a step, or a reboot."""


@dataclass
class Member:
    """One simulated daemon, and the truth about its clocks."""

    name: str
    oscillator: Oscillator
    wall: Wall
    node: Node
    protocol: LinkProtocol
    membership: Membership
    secret: bytes
    born_ns: int
    starts: int = 1
    lies: Lies | None = None
    alive: bool = True
    utc: bool = False
    sent: Counter[str] = field(default_factory=Counter)
    published: Published = field(default_factory=Published)
    said: list[str] = field(default_factory=list)
    keys: MemberKeys = field(kw_only=True)

    def sample(self, true_ns: int) -> WallSample:
        raw = self.oscillator.raw(true_ns)
        difference = self.wall.read(true_ns) - raw
        return WallSample(raw, Interval(difference - 100, difference + 100))


class Fleet:
    """All members and what is between them.

    Args:
        names: the members.
        seed: all chance.
        fanout, liars, reference, interval_s: as configured (``[mesh]``).
        wire: delays of each message; ``wires`` overrides it for some (sender, receiver).
        loss: share of the messages that are lost.
        style: how the oscillators move (``world.STYLES``).
        lies: who lies, and how.
        steady: members whose oscillators keep to 1 ppm and 1 ppb/s, and are declared to.
        utc: members with a source of UTC of their own, which answers from ``utc_from_s`` on.
        duration_s: how long the simulation will be at most.
        composing: whether records are composed into bounds: it is most of the cost.
        publishing: whether knots are made.
    """

    def __init__(
        self,
        names: Iterable[str],
        seed: int,
        *,
        fanout: int = 8,
        liars: int = 1,
        reference: str = "auto",
        interval_s: float = 1.0,
        wire: Wire | None = None,
        wires: dict[tuple[str, str], Wire] | None = None,
        loss: float = 0.0,
        style: str = "bang",
        lies: dict[str, Lies] | None = None,
        steady: Iterable[str] = (),
        utc: Iterable[str] = (),
        utc_from_s: float = 0.0,
        duration_s: float = 900.0,
        composing: bool = True,
        publishing: bool = False,
    ) -> None:
        self.choose = random.Random(f"fleet/{seed}")
        self.true_ns = 0
        self.names = list(names)
        self.members: dict[str, Member] = {}
        self.clocks: dict[tuple[str, bytes], Member] = {}
        """Whoever had this boot last, the dead included: whose raw clock that is."""
        self.configured = None if reference == "auto" else reference
        self._mesh = MeshConfig(fanout=fanout, liars=liars, reference=reference, interval=round(interval_s * SECOND))
        self._turn_ns = round(interval_s * TURN_NS)
        self._wire, self._wires, self._loss = wire or Wire(jitter_us=50.0), wires or {}, loss
        self._style, self._lies, self._duration_s = style, lies or {}, duration_s
        self.steady = frozenset(steady)
        self._utc, self._utc_from_ns = set(utc), round(utc_from_s * SECOND)
        self._composing, self._publishing = composing, publishing
        self._parts: dict[str, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        for name in self.names:
            self.start(name)

    # -- what happens to members ---------------------------------------------------------------------------------

    def start(self, name: str, *, reboot: bool = True, disk: bool = True) -> Member:
        """Starts a member, or starts it again: a reboot gives it another raw clock, a lost disk another key."""
        old = self.members.get(name)
        choose = random.Random(f"{name}/{self.choose.random()}")
        if old is None or reboot:
            drift, wander = (1_000.0, 1.0) if name in self.steady else (100_000.0, 10.0)
            oscillator = Oscillator(choose.randrange(-(10**14), 10**14), drift, wander)
            mirror = Oscillator(0, drift, wander)
            set_going(self._style, oscillator, mirror, choose, self._duration_s + 100)
            wall = Wall(oscillator, choose.randrange(-(10**7), 10**7), choose.randrange(-300_000, 300_000))
            boot = choose.randbytes(16)
        else:
            oscillator, wall, boot = old.oscillator, old.wall, old.node.boot
        sources = (SourceConfig(type="ntp", name="ntp", address="ntp", interval=SECOND),) if name in self._utc else ()
        clock = ClockConfig(max_drift_ppm=1, max_wander_ppb_per_s=1) if name in self.steady else ClockConfig()
        config = Config(node=NodeConfig(name=name), clock=clock, mesh=self._mesh, source=sources)
        raw = oscillator.raw(self.true_ns)
        difference = wall.read(self.true_ns) - raw
        first = WallSample(raw, Interval(difference - 100, difference + 100))
        node = Node(config, boot=boot, first=first, virtual=True)
        lies = self._lies.get(name)
        kept = old if disk else None
        secret = kept.secret if kept else choose.randbytes(32)
        starts = kept.starts + 1 if kept else 1
        said: list[str] = []
        membership = Membership(
            node,
            RecordStore(name, liars_max=self._mesh.liars, pins=kept.membership.store.pins() if kept else None),
            private_key(secret),
            plan=new_plan(config, choose.random),
            first_sequence=starts * SEQUENCES_PER_START,
            say=lambda text, warning: said.append(text),
        )
        if not self._composing:
            membership._compose = lambda records, now_raw_ns: None  # type: ignore[method-assign]
        member_keys = MemberKeys(name, private_key(secret), pinned=old.keys.pins() if old and disk else None)
        protocol = LinkProtocol(
            link="udp",
            key=KEY,
            describe=(lambda: lies.describe(node.describe())) if lies else node.describe,
            random=choose.randbytes,
            timebases=Timebases(),
            member_keys=member_keys,
            attach=lambda peer, room: self._attach(member, peer, room),
        )
        member = Member(
            name, oscillator, wall, node, protocol, membership, secret, self.true_ns, starts, lies,
            utc=name in self._utc, said=said, keys=member_keys,
        )  # fmt: skip
        membership.alter = lies.record if lies else None
        if old is not None:
            old.alive = False
        membership.begin(raw)
        membership.plan.candidates((other for other in self.names if other != name), raw)
        self.members[name] = self.clocks[name, boot] = member
        self._at(self.true_ns + choose.randrange(self._turn_ns), lambda: self._turn(member))
        self._at(self.true_ns + choose.randrange(self._turn_ns), lambda: self._due(member))
        return member

    def stop(self, name: str) -> None:
        """It is gone at once, without a word; others may still look for it."""
        self.members[name].alive = False

    def join(self, name: str) -> Member:
        """A new name: everybody is told its address, as by DNS."""
        self.names.append(name)
        self._tell_names()
        return self.start(name)

    def leave(self, name: str) -> None:
        """It stops and its name is taken out of DNS."""
        self.stop(name)
        self.names.remove(name)
        self._tell_names()

    def _tell_names(self) -> None:
        for member in self.living():
            others = [name for name in self.names if name != member.name]
            member.membership.plan.candidates(others, member.oscillator.raw(self.true_ns))

    def step_wall(self, name: str, by_ns: int) -> None:
        """Its wall clock is set; the kernel tells the daemon at once."""
        member = self.members[name]
        member.wall.steps.append((self.true_ns, by_ns))
        if member.alive:
            member.node.on_wall(member.sample(self.true_ns))
            if self._publishing:
                self._publish(member, member.oscillator.raw(self.true_ns))

    def part(self, *groups: Iterable[str]) -> None:
        """From now on only members of one group hear each other; those in no group are one more."""
        self._parts = {name: number for number, group in enumerate(groups, 1) for name in group}

    def heal(self) -> None:
        self._parts = {}

    def part_of(self, name: str) -> int:
        """Which part of a partition it is in."""
        return self._parts.get(name, 0)

    # -- time ----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Goes on by so much true time."""
        end = self.true_ns + round(seconds * SECOND)
        with mock.patch.object(record_store, "verify", _verify), mock.patch.object(record_store, "decode", _decode):
            while self._events and self._events[0][0] <= end:
                self.true_ns, _, happen = heapq.heappop(self._events)
                happen()
        self.true_ns = end

    def _at(self, true_ns: int, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (true_ns, next(self._serial), happen))

    def _turn(self, member: Member) -> None:
        if not member.alive:
            return
        now, node = self.true_ns, member.node
        node.on_wall(member.sample(now))
        raw = member.oscillator.raw(now)
        if member.utc and now >= self._utc_from_ns:
            self._ask_utc(member)
        member.membership.turn(raw)
        node.forget_departed(raw)
        if self._publishing:
            self._publish(member, raw)
        self._at(now + self._turn_ns, lambda: self._turn(member))

    def _publish(self, member: Member, raw: int) -> None:
        """The next knot, and whether a change of the timescale moved what was published."""
        node, published = member.node, member.published
        if self.blind(member, raw):
            published.blind_ns = self.true_ns
        knot = node.knot(raw)
        view = node.mesh
        if knot is None or view is None:
            return
        before = published.latest
        told = published.history.at(knot.wall_ns) if before is not None else None
        published.history.append(knot)
        published.history.tighten(node.tightened())
        changed = published.scale is not None and view.timescale != published.scale
        if (
            changed
            and told is not None
            and before is not None
            and before.bound is not None
            and knot.bound is not None
            and before.era == knot.era
            and published.epochs == view.epochs
        ):
            published.changes += 1
            moved = abs(told.offset_ns - knot.applied_ns)
            if moved > told.uncertainty_ns:
                published.jumps.append(f"{member.name}: by {moved} ns, +-{told.uncertainty_ns} was published")
        if knot.bound is not None:
            published.scale, published.epochs = view.timescale, view.epochs
        published.latest = knot

    def _ask_utc(self, member: Member) -> None:
        """Its server of UTC answers, after a random delay each way."""
        now = self.true_ns
        there, back = self._wire.delay_ns(self.choose, True), self._wire.delay_ns(self.choose, False)
        asked = max(now - there - back, member.born_ns)
        answered = max(now - back, asked)
        raw, utc = member.oscillator.raw, UNIX_NS + answered
        member.node.on_utc("ntp", [(raw(asked), utc)], [(utc, raw(now))], raw(now))

    def _due(self, member: Member) -> None:
        if not member.alive:
            return
        plan, now = member.membership.plan, member.oscillator.raw(self.true_ns)
        for address in plan.take(now):
            member.sent["requests"] += 1
            request = member.protocol.prepare(address)(self._stamp(member, address, self.true_ns))
            self._send(member, address, request)
        wait = plan.wait_ns(now)
        self._at(self.true_ns + max(wait or 0, 10_000_000), lambda: self._due(member))

    def _stamp(self, member: Member, peer: str, true_ns: int) -> int:
        """What the member says its raw clock reads, to this peer."""
        return member.oscillator.raw(true_ns) + (member.lies.shift_ns(peer, true_ns) if member.lies else 0)

    def _attach(self, member: Member, peer: str | None, room: int) -> bytes:
        honest = member.membership.attach(peer, room)
        return honest if member.lies is None else member.lies.attach(member, peer, room, honest)

    def _passes(self, one: str, other: str) -> bool:
        return self.part_of(one) == self.part_of(other) and (not self._loss or self.choose.random() >= self._loss)

    def _send(self, member: Member, to: str, data: bytes) -> None:
        member.sent["packets"] += 1
        member.sent["bytes"] += len(data)
        if self._passes(member.name, to):
            delay = self._wires.get((member.name, to), self._wire).delay_ns(self.choose, True)
            self._at(self.true_ns + delay, lambda: self._arrive(to, member.name, data))

    def _arrive(self, to: str, sender: str, data: bytes) -> None:
        member = self.members.get(to)
        if member is None or not member.alive:
            return
        received = member.protocol.receive(data, sender, self._stamp(member, sender, self.true_ns))
        if received.reply is not None:
            left = self.true_ns + self.choose.randrange(20_000)
            build = received.reply
            self._at(left, lambda: self._send(member, sender, build(self._stamp(member, sender, self.true_ns))))
        if received.proofs is not None:
            now = member.oscillator.raw(self.true_ns)
            member.node.on_proofs(received.proofs, now)
            if received.proofs.asked:
                member.membership.plan.asked_by(received.proofs.peer.name, now)
            member.membership.heard(received.proofs, now)

    # -- truth ---------------------------------------------------------------------------------------------------

    def living(self) -> list[Member]:
        """Everybody that runs."""
        return [member for member in self.members.values() if member.alive]

    def honest(self) -> list[Member]:
        """Those that do not lie."""
        return [member for member in self.living() if member.lies is None]

    def clock(self, name: str, timebase: Sequence[object] | None) -> Member | None:
        """Whose raw clock that is, dead or alive; None if it is a liar's, or nobody's."""
        if timebase is None:
            return None
        found = self.clocks.get((name, timebase[0]))  # type: ignore[arg-type]
        return None if found is None or found.lies is not None else found

    def blind(self, here: Member, raw: int) -> bool:
        """Whether the wall clock that ``here`` takes for the reference was set and it can't know yet."""
        scale = None if here.node.mesh is None else here.node.mesh.timescale
        if scale is None or scale.k_ns is not None or scale.keeper in (here.name, "utc"):
            return False
        found = here.node._raw_offset(scale.keeper, raw)
        keeper = self.members.get(scale.keeper)
        return (
            found is None
            or keeper is None
            or (found[1].timebase[0], found[1].era) != (keeper.node.boot, keeper.node.wall.era)
        )

    def raw_between(self, here: Member, there: Member) -> float:
        """there's raw - here's raw, now, to a fraction of a nanosecond beyond whole epochs."""
        epochs = there.oscillator.epoch_ns - here.oscillator.epoch_ns
        return epochs + (there.oscillator.deviation(self.true_ns) - here.oscillator.deviation(self.true_ns))

    def wall_between(self, here: Member, there: Member) -> int:
        """there's wall - here's wall, now."""
        return there.wall.read(self.true_ns) - here.wall.read(self.true_ns)
