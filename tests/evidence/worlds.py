"""A node with a peer and a source in virtual time, and whoever listens to its evidence: no socket, no waiting."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from skewd.bounds.history import Knot
from skewd.clock import WallSample
from skewd.config import ClockConfig, Config, MeshConfig, NodeConfig, SourceConfig
from skewd.evidence import Fact, Writer
from skewd.interval import Interval
from skewd.links.protocol import Proofs, Self
from skewd.node import Node
from skewd.tap import Listener, Tap

SECOND = 1_000_000_000
EPOCH_NS = 1_800_000_000 * SECOND


def no_drift(_: int) -> int:
    return 0


class World:
    """``here`` measures ``there`` each second and UTC each 16, by messages with random delays, in true time.

    Args:
        reference: what ``here`` publishes: ``there`` or ``utc``.
        wandered_ns: how far ``there``'s raw clock is ahead of where a clock without drift would be, at a true time.
        jitter_ns: each way takes 30 us and, exponentially, so much more on average.
        told: whether each answer brings a second, sharper proof of the message before, as kernel stamps do.
    """

    def __init__(
        self,
        reference: str = "there",
        *,
        wandered_ns: Callable[[int], int] = no_drift,
        jitter_ns: int = 40_000,
        told: bool = True,
        seed: int = 1,
        look_every_ns: int = 300 * SECOND,
        wander_ppb_per_s: int = 10,
        drift_ppm: int = 100,
    ) -> None:
        self.choose = random.Random(seed)
        self.true_ns = 0
        self.here_drift_ppb = 12_000
        self.wall_ahead_ns = 5_000_000
        self.wandered_ns, self.jitter_ns, self.told = wandered_ns, jitter_ns, told
        self.boot, self.raw_era = b"there", 1
        self.limits = (drift_ppm, wander_ppb_per_s)
        config = Config(
            node=NodeConfig(name="here"),
            clock=ClockConfig(max_drift_ppm=drift_ppm, max_wander_ppb_per_s=wander_ppb_per_s),
            mesh=MeshConfig(reference=reference),
            source=(SourceConfig(name="near", type="ntp", address="192.0.2.1", interval=16 * SECOND),),
        )
        self.node = Node(config, boot=b"here".ljust(16), first=self.sample(), virtual=True)
        self.tap = Tap(self.node, lambda: "tsc", lambda: self.raw(self.true_ns), self.failed)
        self.listener = Listener(lambda: None, look_every_ns)
        self.knots: list[Knot] = []
        self._earlier: tuple[int, int] | None = None

    def failed(self, error: Exception) -> None:
        raise AssertionError("the tap failed") from error

    # -- clocks

    def raw(self, true_ns: int) -> int:
        return 77 * SECOND + true_ns + true_ns * self.here_drift_ppb // SECOND

    def raw_there(self, true_ns: int) -> int:
        return 5 * SECOND + true_ns + self.wandered_ns(true_ns)

    def sample(self) -> WallSample:
        difference = EPOCH_NS - 77 * SECOND + self.wall_ahead_ns
        return WallSample(self.raw(self.true_ns), Interval(difference - 150, difference + 50))

    def described(self) -> Self:
        there = self.raw_there(self.true_ns)
        return Self(
            name="there",
            boot=self.boot.ljust(16),
            raw_era=self.raw_era,
            era=1,
            wall_minus_raw=Interval(EPOCH_NS - 5 * SECOND - 100, EPOCH_NS - 5 * SECOND + 100),
            wall_raw_at_ns=there,
            wall_slew_ppb=1_000,
            max_drift_ppm=self.limits[0],
            max_wander_ppb_per_s=self.limits[1],
        )

    def delay(self) -> int:
        return 30_000 + round(self.choose.expovariate(1 / self.jitter_ns))

    # -- messages

    def exchange(self) -> None:
        t1 = self.true_ns
        t2 = t1 + self.delay()
        t3 = t2 + 20_000
        t4 = t3 + self.delay()
        incoming = [(self.raw_there(t3), self.raw(t4))]
        if self.told and self._earlier is not None:
            incoming.insert(0, self._earlier)
        # The kernel's stamp of the answer's departure, told with the next one.
        self._earlier = self.raw_there(t3 + 8_000), self.raw(t4)
        self.true_ns = t4
        self.node.on_proofs(
            Proofs(
                peer=self.described(),
                link="udp",
                address="192.0.2.2:9957",
                outgoing=((self.raw(t1), self.raw_there(t2)),),
                incoming=tuple(incoming),
                rtt_ns=(t4 - t1) - (t3 - t2),
            ),
            self.raw(t4),
        )

    def ask_utc(self) -> None:
        t1 = self.true_ns
        t2 = t1 + 5 * self.delay()
        t4 = t2 + 5 * self.delay()
        self.true_ns = t4
        self.node.on_utc(
            "near",
            [(self.raw(t1), EPOCH_NS + t2 + 100_000)],
            [(EPOCH_NS + t2 - 100_000, self.raw(t4))],
            self.raw(t4),
        )

    def publish(self) -> None:
        now = self.raw(self.true_ns)
        knot = self.node.knot(now)
        if knot is not None:
            self.knots.append(knot)
        self.tap.look(now, knot)

    def run(self, seconds: int) -> None:
        """One exchange a second, at times that a real loop would give."""
        for _ in range(seconds):
            at = self.true_ns + SECOND
            self.true_ns = at + self.choose.randrange(2_000_000)
            self.node.on_wall(self.sample())
            self.exchange()
            if self.true_ns // SECOND % 16 == 0:
                self.ask_utc()
            self.publish()
            self.true_ns = max(at, self.true_ns)

    # -- evidence

    def taken(self) -> list[Fact]:
        return self.listener.take(self.tap.anew)


def content_of(facts: Iterator[Fact] | list[Fact]) -> bytes:
    """One file of them."""
    writer = Writer()
    return b"".join([writer.header(), *(writer.add(fact) for fact in facts), writer.flush()])
