"""What ClockBound's clients compute holds the truth, on simulated clocks that use up their declared limits."""

from __future__ import annotations

import random

import pytest

from skewd.clock import WallSample
from skewd.config import Config, NodeConfig, SourceConfig
from skewd.interval import Interval
from skewd.node import Node
from skewd.publish.clockbound_layout import VOID_AFTER_NS, Claim, ClockStatus, claim

MS, SECOND = 1_000_000, 1_000_000_000
WALL = 1_700_000_000 * SECOND
STEP_NS = 250 * MS
LATE_NS = 20 * MS


class World:
    """One node's clocks as functions of true time, which only goes on; UTC is true time.

    The oscillator's rate wanders bang-bang at the declared limit; the wall clock is slewed at a constant rate and may
    be stepped.
    """

    def __init__(self, choose: random.Random, slew_ppb: int, ahead_ns: int) -> None:
        self.choose = choose
        self.true_ns = 0
        self.slew_ppb, self.ahead_ns = slew_ppb, ahead_ns
        self._rate_ppb, self._way = choose.uniform(-90_000, 90_000), choose.choice((-1, 1))
        self._raw_ahead_ns = self._slewed_ns = 0.0

    def go_on(self, by_ns: int, *, turn: bool = True) -> None:
        if turn and self.choose.random() < 0.05:
            self._way = -self._way
        seconds = by_ns / SECOND
        self._raw_ahead_ns += self._rate_ppb * seconds + self._way * 10 * seconds * seconds / 2
        self._rate_ppb += self._way * 10 * seconds
        if abs(self._rate_ppb) > 95_000:
            self._way = -1 if self._rate_ppb > 0 else 1
        self.true_ns += by_ns
        self._slewed_ns = self.slew_ppb * self.raw() / SECOND

    def raw(self) -> int:
        return self.true_ns + round(self._raw_ahead_ns)

    def wall(self) -> int:
        return WALL + self.raw() + round(self._slewed_ns) + self.ahead_ns

    def monotonic(self) -> int:
        return 50 * SECOND + self.raw() + round(self._slewed_ns)

    def sample(self) -> WallSample:
        difference = self.wall() - self.raw()
        return WallSample(self.raw(), Interval(difference - 150, difference + 50))

    def exchange(self, node: Node) -> None:
        """One question to a time server, under way for 20 us to 2 ms either way."""
        sent = self.raw()
        self.go_on(self.choose.randrange(20_000, 2 * MS), turn=False)
        there = WALL + self.true_ns
        self.go_on(self.choose.randrange(20_000, 2 * MS), turn=False)
        node.on_utc("s", [(sent, there)], [(there, self.raw())], self.raw())

    def told(self, said: Claim) -> int:
        """How far off this clock may be, as a client computes it; its coarse clock is late."""
        age = max(self.monotonic() - self.choose.randrange(LATE_NS + 1) - said.as_of_ns, 0)
        return said.bound_ns + int(age / 1e9 * said.drift_ppb)


def claimed(world: World, node: Node) -> Claim:
    """As the daemon does: the coarse clock first, the raw clock after it."""
    as_of = world.monotonic() - world.choose.randrange(4 * MS)
    world.go_on(world.choose.randrange(MS), turn=False)
    estimate = node.reference_estimate(world.raw())
    assert estimate is not None
    return claim(
        estimate.bound,
        estimate.drift_ppb,
        estimate.wander_ppb_per_s,
        node.status_of(estimate),
        as_of_ns=as_of,
        late_ns=LATE_NS,
        max_bound_ns=SECOND,
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_truth_lies_within_what_clients_compute(seed: int) -> None:
    choose = random.Random(seed)
    world = World(choose, slew_ppb=choose.randrange(-50_000, 50_001), ahead_ns=choose.randrange(-20 * MS, 20 * MS))
    sources = (SourceConfig(type="ntp", name="s", address="x", interval=SECOND),)
    node = Node(Config(node=NodeConfig(name="n"), source=sources), boot=bytes(16), first=world.sample(), virtual=False)
    world.exchange(node)
    checks = 0
    widest = 0
    for second in range(60):
        world.exchange(node)
        if second == 40:  # a step of the wall clock, seen by the daemon's next look
            world.ahead_ns += 7 * MS
        for quarter in range(4):
            stepped = node.on_wall(world.sample())
            assert stepped == (second == 40 and quarter == 0)
            said = claimed(world, node)
            assert said.status is ClockStatus.SYNCHRONIZED
            for _ in range(3):
                world.go_on(choose.randrange(STEP_NS // 3), turn=False)
                assert abs(WALL + world.true_ns - world.wall()) <= world.told(said)
                checks += 1
        widest = world.told(said) - abs(WALL + world.true_ns - world.wall())
    assert checks == 720
    assert widest < 10 * MS, "true, and of use"
    # The daemon dies: its last claim stands until it is void.
    said = claimed(world, node)
    while world.monotonic() < said.as_of_ns + VOID_AFTER_NS - 10 * SECOND:
        world.go_on(10 * SECOND)
        assert abs(WALL + world.true_ns - world.wall()) <= world.told(said)
