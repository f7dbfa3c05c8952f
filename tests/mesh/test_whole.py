"""Filters, records, stores, bounds and verdicts together: a mesh in rounds, every bound against the truth."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from skewd.bounds.carry import Claim
from skewd.bounds.compose import COMPOSED, Composed, FirstHand, Here, clock_tag, compose, judge
from skewd.bounds.mesh import Verdict
from skewd.bounds.pair import PairBound, pair_limits
from skewd.interval import Interval
from skewd.record_store import Accepted, RecordStore
from skewd.records import Edge, Record, private_key, public_key_of, sign
from tests.mesh.worlds import DRIFT_PPM, WANDER, Clock

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")

LIMITS = pair_limits(DRIFT_PPM, WANDER, DRIFT_PPM, WANDER)
ROOM = 1_060
BEGIN = -550.0


@dataclass
class Node:
    """One node as the daemon would be, without sockets."""

    name: str
    seed: int
    lie_ns: int = 0
    pairs: dict[str, PairBound] = field(default_factory=dict)
    boots: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose = random.Random(self.seed)
        self.clock = Clock.made(choose)
        self.key = private_key(choose.randbytes(32))
        self.boot = choose.randbytes(16)
        self.public_key = public_key_of(self.key)
        self.store = RecordStore(self.name)

    @property
    def here(self) -> Here:
        return Here(self.name, clock_tag(self.name, self.public_key, self.boot, 1))

    def first_hand(self, now_ns: int) -> dict[str, FirstHand]:
        found = {}
        for name, pair in self.pairs.items():
            offset, drift = pair.offset(now_ns), pair.drift(now_ns)
            if offset is not None and drift is not None:
                found[name] = FirstHand(self.store.clock_of(name, self.boots[name], 1), offset, drift)
        return found

    def publish(self, now_ns: int) -> None:
        edges = []
        for known in self.first_hand(now_ns).values():
            claim = Claim.of(known.offset, known.drift_ppb, *LIMITS)
            if known.clock is not None and claim is not None:
                edges.append(Edge(known.clock, replace(claim, offset=claim.offset.shift(self.lie_ns))))
        record = Record(
            owner=self.name,
            public_key=self.public_key,
            boot=self.boot,
            raw_era=1,
            era=1,
            sequence=self.store.next_sequence(),
            raw_ns=now_ns,
            wall_minus_raw=Interval(0, 200),
            wall_slew_ppb=0,
            max_drift_ppm=DRIFT_PPM,
            max_wander_ppb_per_s=WANDER,
            edges=tuple(edges),
        )
        self.store.put_own(sign(record, self.key))

    def take(self, attachment: bytes, sender: Node, now_ns: int) -> None:
        for outcome in self.store.receive(
            attachment, first_hand_owner=sender.name, received_raw_ns=now_ns, first_hand_boot=sender.boot
        ):
            assert isinstance(outcome, Accepted) or outcome.reason in ("stale", "own"), outcome

    def look(self, now_ns: int) -> tuple[dict[str, Composed], Verdict]:
        first_hand, records = self.first_hand(now_ns), self.store.records()
        found = compose(here=self.here, now_raw_ns=now_ns, first_hand=first_hand, records=records)
        verdict = judge(here=self.here, now_raw_ns=now_ns, first_hand=first_hand, records=records, composed=found)
        return found, verdict


class Mesh:
    """``count`` nodes, of which each asks ``k`` others once a second over a network with jitter."""

    def __init__(self, seed: int, count: int, k: int, *, lie_ns: int = 0) -> None:
        self.choose = random.Random(seed)
        self.nodes = [Node(f"node-{index}", self.choose.randrange(1 << 30)) for index in range(count)]
        self.liar = self.nodes[-1] if lie_ns else None
        if self.liar is not None:
            self.liar.lie_ns = lie_ns
        self.asks = {
            node.name: self.choose.sample([other for other in self.nodes if other is not node], k)
            for node in self.nodes
        }
        self.round = 0

    @property
    def t(self) -> float:
        return BEGIN + self.round

    def message(self, sender: Node, receiver: Node, t: float) -> float:
        """One message and what it proves to its receiver; when it arrived."""
        arrived = t + 0.0001 + self.choose.expovariate(1 / 0.0001)
        sent_ns, received_ns = sender.clock.raw(t) - 1, receiver.clock.raw(arrived) + 1
        pair = receiver.pairs.setdefault(
            sender.name, PairBound(max_drift_ppm=LIMITS[0], max_wander_ppb_per_s=LIMITS[1])
        )
        receiver.boots[sender.name] = sender.boot
        pair.incoming(sent_ns, received_ns)
        # The answer, or the next message, tells the sender when this one arrived.
        back = sender.pairs.setdefault(
            receiver.name, PairBound(max_drift_ppm=LIMITS[0], max_wander_ppb_per_s=LIMITS[1])
        )
        sender.boots[receiver.name] = receiver.boot
        back.outgoing(sent_ns, received_ns)
        receiver.take(sender.store.next_for(receiver.name, ROOM), sender, received_ns)
        return arrived

    def step(self) -> None:
        self.round += 1
        for node in self.nodes:
            now_ns = node.clock.raw(self.t)
            node.publish(now_ns)
            node.store.forget_departed(now_ns)
        for node in self.nodes:
            for other in self.asks[node.name]:
                arrived = self.message(node, other, self.t + self.choose.random() * 0.5)
                self.message(other, node, arrived)

    def check(self) -> tuple[int, int, set[str]]:
        """Every bound of every honest node against the truth: bounds, composed ones, and who was convicted."""
        bounds = composed = 0
        convicted = set()
        t = self.t + 0.9
        for node in self.nodes:
            if node is self.liar:
                continue
            found, verdict = node.look(node.clock.raw(t))
            for other in self.nodes:
                bound = found.get(other.name)
                if bound is None or other is node:
                    continue
                truth = (other.clock.epoch_ns - node.clock.epoch_ns) + other.clock.gained(t) - node.clock.gained(t)
                assert bound.interval.lo - 2 <= truth <= bound.interval.hi + 2, (node.name, other.name, bound)
                bounds += 1
                composed += bound.trust == COMPOSED
            if verdict.convicted is not None:
                convicted.add(verdict.convicted)
        return bounds, composed, convicted


def test_every_pair_is_bounded_within_rounds_and_every_bound_holds() -> None:
    mesh = Mesh(1, 16, 3)
    everything = 16 * 15
    rounds = None
    for _ in range(30):
        mesh.step()
        if mesh.round % 5 == 0:
            bounds, composed, convicted = mesh.check()
            assert not convicted
            if bounds == everything and rounds is None:
                rounds = mesh.round
                assert composed > everything // 3
    assert rounds is not None


@pytest.mark.parametrize("lie_ns", [-5_000_000, 2_000_000])
def test_a_member_with_a_valid_key_that_lies_is_convicted_and_moves_no_bound(lie_ns: int) -> None:
    mesh = Mesh(2, 14, 3, lie_ns=lie_ns)
    everywhere: set[str] = set()
    for _ in range(20):
        mesh.step()
        if mesh.round % 5 == 0:
            everywhere |= mesh.check()[2]
    assert mesh.liar is not None
    assert everywhere == {mesh.liar.name}
