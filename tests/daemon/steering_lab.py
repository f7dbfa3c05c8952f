"""A steered node and its reference in a simulated world: the real Node, WallMap, History and Steering, no waiting.

At every tick everything that anybody is told is compared with the truth: this node's bound, what readers of its
segment compute, what spans of the last minute are corrected by, and what the *other* node believes of this one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from skewd.bounds.history import History, Knot, Status
from skewd.clock import WallSample
from skewd.config import Config, MeshConfig, NodeConfig
from skewd.interval import Interval
from skewd.knots import KNOT_PERIOD_NS
from skewd.links.protocol import Proofs
from skewd.node import Node
from skewd.reader import reference_time
from skewd.state_file import StateFile
from skewd.steering import KIND, Steering
from tests.daemon.steered_world import Kernel, Wall
from tests.simulation.world import SECOND, Oscillator, Wire, set_going

TICK_NS = 50_000_000
ANNOUNCE_NS = 10 * SECOND


@dataclass
class Said:
    """Keeps what would be logged."""

    lines: list[str] = field(default_factory=list)

    def info(self, event: str, **_: Any) -> None:
        self.lines.append(event)

    def warning(self, event: str, **_: Any) -> None:
        self.lines.append(event)


class Lab:
    """``here`` is steered towards the wall clock of ``there``."""

    def __init__(
        self,
        directory: Path,
        *,
        offset_ns: int = 0,
        drift_ppm: float = 0.0,
        frequency: int = 0,
        style: str = "still",
        wire: Wire | None = None,
        seed: int = 1,
        until_s: float = 2000.0,
        reference: str = "there",
    ) -> None:
        self._reference = reference
        self.choose = choose = random.Random(seed)
        self.wire = wire or Wire()
        here = Oscillator(123_456_789, 100_000.0, 10.0)
        there = Oscillator(-987_654_321, 100_000.0, 10.0)
        if style == "still":
            here.drift_ppb = drift_ppm * 1000
            here.go(until_s, 0.0)
            there.go(until_s, 0.0)
        else:
            set_going(style, here, there, choose, until_s)
        self.here, self.there = Wall(here, -offset_ns), Wall(there)
        self.kernel = Kernel(self.here, frequency)
        self.true_ns = 0
        self.directory = directory
        self.log = Said()
        self.peer = Node(
            _config("there", "there"), boot=b"there".ljust(16), first=self._sample(self.there), virtual=False
        )
        self.linked = True
        self._untold, self._set_raw_ns = False, 0
        self.checks = 0
        self.errors_ns: list[int] = []
        """reference - wall, by tick."""
        self.start()

    def start(self) -> None:
        """A daemon begins, in place of one before, which is simply gone."""
        self.node = Node(
            _config("here", self._reference), boot=b"here".ljust(16), first=self._sample(self.here), virtual=False
        )
        self.history = History(stamps="wall")
        self.latest: Knot | None = None
        self.file = StateFile(self.directory, "here", KIND)
        self.steering = Steering(self.node, self.kernel, self.file, self.log, announce_ns=ANNOUNCE_NS, owners=None)
        self._began_ns = self.true_ns
        self._next_knot_ns = 0

    def set_by_hand(self, by_ns: int) -> None:
        """Somebody steps this node's wall clock, after this tick."""
        self.here.steps.append((self.true_ns + 10, by_ns))
        # The other node can't know before it is told; what it believes until then is of the clock before.
        self._untold, self._set_raw_ns = True, self.here.oscillator.raw(self.true_ns) + 10

    # -- time passes -----------------------------------------------------------------------------------------------

    def run(self, seconds: float, *, act: bool = True) -> None:
        end = self.true_ns + round(seconds * SECOND)
        while self.true_ns < end:
            self.true_ns += TICK_NS
            if self.linked and self.true_ns % SECOND == 0:
                self._exchange()
            self.kernel.now_ns = self.true_ns
            self.tick(act)
            self._check()

    def tick(self, act: bool = True) -> None:
        """What the daemon does again and again."""
        self.peer.on_wall(self._sample(self.there), 0)
        kernel = self.kernel.read()
        stepped = self.node.on_wall(self._sample(self.here), None if kernel is None else kernel.rate_ppb)
        raw = self.here.oscillator.raw(self.true_ns)
        steers = self.steering.look(raw, stepped)
        if stepped or steers or self.node.slew_began or raw >= self._next_knot_ns:
            self.publish()
        if steers and act:
            self.steering.act()

    def publish(self) -> None:
        raw = self.here.oscillator.raw(self.true_ns)
        self._next_knot_ns = raw + KNOT_PERIOD_NS
        knot = self.node.knot(raw)
        if knot is not None:
            self.history.append(knot)
            self.latest = knot
        better = self.node.tightened()
        self.history.tighten(better)
        self.latest = next((one for one in better if self.latest and one.raw_ns == self.latest.raw_ns), self.latest)

    def _sample(self, wall: Wall) -> WallSample:
        raw = wall.oscillator.raw(self.true_ns)
        difference = wall.read(self.true_ns) - raw
        return WallSample(raw, Interval(difference - 150, difference + 50))

    def _exchange(self) -> None:
        here, there = self.here.oscillator, self.there.oscillator
        t1 = self.true_ns - 2_000_000 - self.choose.randrange(20_000_000)
        t2 = t1 + self.wire.delay_ns(self.choose, True)
        t3 = t2 + 20_000
        t4 = t3 + self.wire.delay_ns(self.choose, False)
        if t4 > self.true_ns:
            return  # it comes too late to be of this tick; as good as lost
        answered = ((here.raw(t1), there.raw(t2)),), ((there.raw(t3), here.raw(t4)),)
        asked = ((there.raw(t3), here.raw(t4)),), ((here.raw(t1), there.raw(t2)),)
        rtt_ns = (t4 - t1) - (t3 - t2)
        declared = self.node.describe()
        self.node.on_proofs(Proofs(self.peer.describe(), "udp", "there:9957", *answered, rtt_ns), here.raw(t4))
        self.peer.on_proofs(Proofs(declared, "udp", "here:9957", *asked, rtt_ns), there.raw(t4))
        self._untold &= declared.wall_raw_at_ns < self._set_raw_ns

    # -- and the truth -------------------------------------------------------------------------------------------

    def truth(self, true_ns: int | None = None) -> int:
        """reference - wall."""
        at = self.true_ns if true_ns is None else true_ns
        return self.there.read(at) - self.here.read(at)

    def _check(self) -> None:
        now, truth = self.true_ns, self.truth()
        self.errors_ns.append(truth)
        raw = self.here.oscillator.raw(now)
        estimate = self.node.reference_estimate(raw)
        if estimate is not None:
            assert estimate.bound.contains(truth), (now / SECOND, estimate.bound, truth)
            self.checks += 1
        if self.latest is not None and self.latest.bound is not None:
            # A reader asks until the next tick, by the knot that is out now.
            for later in (0, self.choose.randrange(TICK_NS)):
                said = reference_time(self.latest, self.here.oscillator.raw(now + later))
                assert said.contains(self.there.read(now + later)), (now / SECOND, later)
                self.checks += 1
        for ago_s in (self.choose.random() / 2, 60 * self.choose.random()):
            then = now - round(ago_s * SECOND)
            if then > self._began_ns + SECOND:
                found = self.history.at(self.here.read(then))
                if found.status is not Status.UNSYNCHRONIZED:
                    wrong = abs(self.truth(then) - found.offset_ns)
                    assert wrong <= found.uncertainty_ns, (now / SECOND, ago_s, wrong, found)
                    self.checks += 1
        seen = self.peer.peer_estimate("here", self.there.oscillator.raw(now))
        if seen is not None and not self._untold:
            assert seen.bound.contains(-truth), (now / SECOND, seen.bound, -truth)
            self.checks += 1

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = msgspec.to_builtins(self.steering.told())
        return told


def _config(name: str, reference: str) -> Config:
    return Config(node=NodeConfig(name=name), mesh=MeshConfig(reference=reference))
