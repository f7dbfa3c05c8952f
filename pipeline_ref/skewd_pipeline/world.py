"""Nodes whose clocks and wires are made up, and whose estimators are the ones that ship.

The problem: what a node knows of its clock takes real time to come about. The insight: the estimator is told of
instants and reads none. So the true time and the clocks that drift and step along it can be made up, and each
``Node`` here is handed what a real one would have read and heard; its knots go to a ``History``, which answers as a
daemon's would.

Limits: every node exchanges messages with the reference alone, over a wire with a least delay and a jitter, without
loss. Bounds are as wide as that wire makes them, not as this machine would. Pure, from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from skewd.bounds.history import Correction, History
from skewd.clock import WallSample
from skewd.config import Config, MeshConfig, NodeConfig
from skewd.interval import Interval
from skewd.knots import KNOT_PERIOD_NS
from skewd.links.protocol import Proofs
from skewd.node import Node
from skewd_pipeline.overtime import Change, Trajectory
from skewd_pipeline.results import STAGES

SECOND = 1_000_000_000
BEGIN_WALL_NS = 1_700_000_000 * SECOND
TICK_NS = 50_000_000
INTERVAL_NS = 200_000_000
SETTLE_NS = 5 * SECOND
"""Before the story begins, so that every clock is bounded, as the real run waits for it."""

SANDWICH_NS = 200
WIRE_LEAST_NS, WIRE_JITTER_NS = 40_000, 60_000

_PPB = 1_000_000_000


class SimulatedNode:
    """One node: true clocks below, the shipped code above.

    Args:
        drift_ppb: of its oscillator.
        deviation: of its wall clock, by true instants.
        steer_ppb: what its kernel is told at a true instant.
    """

    def __init__(
        self,
        name: str,
        reference: str,
        *,
        drift_ppb: int,
        deviation: Trajectory,
        steer_ppb: Callable[[int], int],
        epoch_ns: int,
    ) -> None:
        self.name = name
        self._drift_ppb = drift_ppb
        self._deviation = deviation
        self._steer_ppb = steer_ppb
        self._epoch_ns = epoch_ns
        config = Config(node=NodeConfig(name=name), mesh=MeshConfig(reference=reference, interval=INTERVAL_NS))
        self.node = Node(config, boot=name.encode().ljust(16)[:16], first=self._sandwich(0), virtual=True)
        self.history = History(stamps="wall")
        self._next_knot_ns = 0

    def raw(self, true_ns: int) -> int:
        return self._epoch_ns + true_ns + self._drift_ppb * true_ns // _PPB

    def wall(self, true_ns: int) -> int:
        """What this node's clock shows."""
        return BEGIN_WALL_NS + true_ns + self._deviation.at(true_ns)

    def _sandwich(self, true_ns: int) -> WallSample:
        raw, wall = self.raw(true_ns), self.wall(true_ns)
        return WallSample(raw, Interval(wall - raw - SANDWICH_NS // 2, wall - raw + SANDWICH_NS // 2))

    def tick(self, true_ns: int) -> None:
        """Reads its clocks, and makes a knot when one is due."""
        stepped = self.node.on_wall(self._sandwich(true_ns), self._steer_ppb(true_ns))
        raw = self.raw(true_ns)
        if stepped or self.node.slew_began or raw >= self._next_knot_ns:
            self._next_knot_ns = raw + KNOT_PERIOD_NS
            knot = self.node.knot(raw)
            if knot is not None:
                self.history.append(knot)
            self.history.tighten(self.node.tightened())

    def exchange(self, peer: SimulatedNode, true_ns: int, choose: random.Random) -> None:
        """Asks the peer once over a wire with a least delay and a jitter on top."""
        t2 = true_ns + WIRE_LEAST_NS + round(choose.expovariate(1 / WIRE_JITTER_NS))
        t3 = t2 + choose.randrange(5_000, 40_000)
        t4 = t3 + WIRE_LEAST_NS + round(choose.expovariate(1 / WIRE_JITTER_NS))
        proofs = Proofs(
            peer=peer.node.describe(),
            link="udp",
            address=f"{peer.name}:9957",
            outgoing=((self.raw(true_ns), peer.raw(t2)),),
            incoming=((peer.raw(t3), self.raw(t4)),),
            rtt_ns=(t4 - true_ns) - (t3 - t2),
        )
        self.node.on_proofs(proofs, self.raw(t4))


class World:
    """The nodes, and true time going on.

    Args:
        changes: what is done to the stage's clock, from ``SETTLE_NS`` on.
        skew_ns: how far behind it is all the time (negative: ahead), beside what the changes do.
    """

    def __init__(
        self,
        *,
        stage: str,
        reference: str,
        drift_ppb: int = 0,
        changes: Sequence[Change] = (),
        skew_ns: int = 0,
        seed: str = "",
    ) -> None:
        at = STAGES.index(stage)
        self.stages = (STAGES[at - 1], stage, STAGES[at + 1])
        self.choose = random.Random(f"world/{seed}")
        self.deviation = Trajectory()
        steers = [(0, -drift_ppb)]
        self.deviation.line(0, -skew_ns, 0)
        for change in changes:
            from_ns = SETTLE_NS + change.at_ns
            steers.append((from_ns, change.steer_ppb))
            self.deviation.line(
                from_ns,
                self.deviation.at(from_ns) + change.step_ns,
                drift_ppb + change.steer_ppb,
                step=bool(change.step_ns),
            )
        still = Trajectory()
        self.nodes = {
            name: SimulatedNode(
                name,
                reference,
                drift_ppb=drift_ppb if name == stage else 0,
                deviation=self.deviation if name == stage else still,
                steer_ppb=(lambda true_ns: _latest(steers, true_ns)) if name == stage else (lambda true_ns: 0),
                epoch_ns=(number + 1) * 3_600 * SECOND,
            )
            for number, name in enumerate(self.stages)
        }
        self._reference = self.nodes[reference]
        self._now_ns = 0
        self._next_exchange_ns = TICK_NS

    def advance(self, to_ns: int) -> None:
        """Lets true time go on."""
        while self._now_ns + TICK_NS <= to_ns:
            self._now_ns += TICK_NS
            for node in self.nodes.values():
                node.tick(self._now_ns)
            if self._now_ns >= self._next_exchange_ns:
                self._next_exchange_ns += INTERVAL_NS
                for node in self.nodes.values():
                    if node is not self._reference:
                        at_ns = self._now_ns + self.choose.randrange(1_000_000, TICK_NS // 2)
                        node.exchange(self._reference, at_ns, self.choose)

    def correction(self, name: str, wall_ns: int) -> Correction:
        """What a stamp of this node deserves, as its sidecar would be told."""
        return self.nodes[name].history.at(wall_ns)


def _latest(steers: Sequence[tuple[int, int]], true_ns: int) -> int:
    return next(rate for from_ns, rate in reversed(steers) if from_ns <= true_ns)
