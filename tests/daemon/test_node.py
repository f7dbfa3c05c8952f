"""A node's knowledge, driven by simulated clocks and messages: no socket, no real clock, no waiting."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from skewd.bounds.history import History, Status
from skewd.clock import WallSample
from skewd.config import Config, MeshConfig, NodeConfig, SourceConfig
from skewd.estimate import LEAD_NS
from skewd.interval import Interval
from skewd.knots import KNOT_PERIOD_NS
from skewd.links.protocol import Proofs
from skewd.node import PEER_GONE_NS, PEERS_MAX, Node
from skewd.reader import NoBound, reference_time

SECOND = 1_000_000_000
MS = 1_000_000


@dataclass
class Clocks:
    """A node's clocks as functions of true time (ns)."""

    epoch_ns: int = 0
    drift_ppb: int = 0
    wall_ahead_ns: int = 0

    def raw(self, true_ns: int) -> int:
        return self.epoch_ns + true_ns + true_ns * self.drift_ppb // SECOND

    def wall(self, true_ns: int) -> int:
        return 1_700_000_000 * SECOND + true_ns + true_ns * self.drift_ppb // SECOND + self.wall_ahead_ns

    def sample(self, true_ns: int) -> WallSample:
        difference = self.wall(true_ns) - self.raw(true_ns)
        return WallSample(self.raw(true_ns), Interval(difference - 150, difference + 50))


class Mesh:
    """Two nodes that exchange messages with random delays, in true time."""

    def __init__(self, here: Clocks, there: Clocks, reference: str = "there", seed: int = 1) -> None:
        self.choose = random.Random(seed)
        self.true_ns = 0
        self.clocks = {"here": here, "there": there}
        self.nodes = {
            name: Node(
                Config(node=NodeConfig(name=name), mesh=MeshConfig(reference=reference)),
                boot=name.encode().ljust(16),
                first=clocks.sample(0),
                virtual=False,
            )
            for name, clocks in self.clocks.items()
        }
        self.knots: list[object] = []
        self.history = History(stamps="wall")
        self._next_knot_ns = 0

    def exchange(self) -> None:
        """here asks, there answers; both learn."""
        here, there = self.clocks["here"], self.clocks["there"]
        t1 = self.true_ns
        t2 = t1 + 40_000 + self.choose.randrange(300_000)
        t3 = t2 + 20_000
        t4 = t3 + 40_000 + self.choose.randrange(300_000)
        self.nodes["here"].on_proofs(
            Proofs(
                peer=self.nodes["there"].describe(),
                link="udp",
                address="there:9957",
                outgoing=((here.raw(t1), there.raw(t2)),),
                incoming=((there.raw(t3), here.raw(t4)),),
                rtt_ns=(t4 - t1) - (t3 - t2),
            ),
            here.raw(t4),
        )
        self.true_ns = t4

    def run(self, seconds: float, *, exchanges: bool = True) -> None:
        end = self.true_ns + round(seconds * SECOND)
        next_exchange = self.true_ns
        node = self.nodes["here"]
        while self.true_ns < end:
            self.true_ns += 20 * MS
            stepped = False
            for name, clocks in self.clocks.items():
                changed = self.nodes[name].on_wall(clocks.sample(self.true_ns))
                stepped |= changed and name == "here"
            if exchanges and self.true_ns >= next_exchange:
                next_exchange = self.true_ns + SECOND
                self.exchange()
            now = self.clocks["here"].raw(self.true_ns)
            if stepped or node.slew_began or now >= self._next_knot_ns:
                self._next_knot_ns = now + KNOT_PERIOD_NS
                knot = node.knot(now)
                if knot is not None:
                    self.history.append(knot)
                self.history.tighten(node.tightened())

    def truth(self, true_ns: int | None = None) -> int:
        at = self.true_ns if true_ns is None else true_ns
        return self.clocks["there"].wall(at) - self.clocks["here"].wall(at)

    def told(self) -> dict[str, Any]:
        return self.nodes["here"].status(self.clocks["here"].raw(self.true_ns))


def drifting() -> Mesh:
    return Mesh(
        Clocks(epoch_ns=77 * SECOND, drift_ppb=30_000, wall_ahead_ns=5 * MS), Clocks(epoch_ns=-3, drift_ppb=-20_000)
    )


def test_every_past_stamp_is_corrected_within_its_uncertainty() -> None:
    mesh = drifting()
    mesh.run(30)
    checked = 0
    for true_ns in range(2 * SECOND, 30 * SECOND, 37 * MS):
        correction = mesh.history.at(mesh.clocks["here"].wall(true_ns))
        assert correction.status is Status.SYNCHRONIZED
        assert correction.reference == "node:there"
        assert abs(correction.offset_ns - mesh.truth(true_ns)) <= correction.uncertainty_ns
        assert correction.uncertainty_ns < 700_000
        checked += 1
    assert checked > 700
    told = mesh.told()
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]
    assert told["status"] == "synchronized"


def test_a_step_is_a_local_fact() -> None:
    """The wall clock is set back by 7 ms: a new era at once, with the old bound on the raw clocks."""
    mesh = drifting()
    mesh.run(20)
    before = mesh.told()
    step_true = mesh.true_ns
    mesh.clocks["here"].wall_ahead_ns -= 7 * MS
    mesh.run(1, exchanges=False)
    told = mesh.told()
    assert told["era"] == 2
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]
    width = told["upper_ns"] - told["lower_ns"]
    assert width < (before["upper_ns"] - before["lower_ns"]) + 60_000
    for true_ns in range(step_true - SECOND, mesh.true_ns, 11 * MS):
        correction = mesh.history.at(mesh.clocks["here"].wall(true_ns) + (7 * MS if true_ns <= step_true else 0))
        assert abs(correction.offset_ns - mesh.truth(true_ns) + (7 * MS if true_ns <= step_true else 0)) <= (
            correction.uncertainty_ns
        )


def test_the_reference_may_be_stepped_too() -> None:
    mesh = drifting()
    mesh.run(10)
    mesh.clocks["there"].wall_ahead_ns += 40 * MS
    mesh.run(3)
    told = mesh.told()
    assert told["era"] == 1
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]
    correction = mesh.history.at(mesh.clocks["here"].wall(mesh.true_ns - 50 * MS))
    assert abs(correction.offset_ns - mesh.truth()) <= correction.uncertainty_ns + 10_000


def test_silence_is_holdover_and_grows() -> None:
    mesh = drifting()
    mesh.run(20)
    narrow = mesh.told()
    mesh.run(60, exchanges=False)
    told = mesh.told()
    assert told["status"] == "holdover"
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]
    assert told["uncertainty_ns"] > narrow["uncertainty_ns"]
    assert any("holdover" in message for message in told["messages"])


def test_too_wide_a_bound_is_unsynchronized_and_said() -> None:
    mesh = drifting()
    mesh.run(2)
    config = mesh.nodes["here"].config
    clock = msgspec.structs.replace(config.clock, max_uncertainty=5 * MS)
    mesh.nodes["here"].reconfigure(msgspec.structs.replace(config, clock=clock))
    mesh.run(60, exchanges=False)
    told = mesh.told()
    assert told["status"] == "unsynchronized"
    assert any("max_uncertainty" in message for message in told["messages"])


def test_a_peers_reboot_begins_a_new_bound() -> None:
    mesh = drifting()
    mesh.run(5)
    mesh.clocks["there"] = Clocks(epoch_ns=5, drift_ppb=-20_000)
    mesh.nodes["there"] = Node(
        Config(node=NodeConfig(name="there"), mesh=MeshConfig(reference="there")),
        boot=b"another".ljust(16),
        first=mesh.clocks["there"].sample(mesh.true_ns),
        virtual=False,
    )
    mesh.run(5)
    told = mesh.told()
    assert told["contradictions"] == 0
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]


def test_a_suspended_host_forgets_what_it_knew() -> None:
    mesh = drifting()
    mesh.run(5)
    mesh.nodes["here"].on_raw_disturbed(mesh.clocks["here"].sample(mesh.true_ns))
    assert mesh.told()["offset_ns"] is None
    assert mesh.nodes["here"].describe().raw_era == 2
    assert mesh.nodes["here"].describe().era == 2


def test_a_jump_of_the_raw_clock_is_a_contradiction_that_is_said() -> None:
    mesh = drifting()
    mesh.run(5)
    mesh.clocks["there"].epoch_ns += 80 * MS
    mesh.clocks["there"].wall_ahead_ns += 80 * MS
    mesh.run(5)
    told = mesh.told()
    assert told["contradictions"] >= 1
    assert told["lower_ns"] <= mesh.truth() <= told["upper_ns"]
    assert any("declared limits" in message for message in told["messages"])


def test_auto_names_the_least_member_on_both_sides() -> None:
    mesh = Mesh(Clocks(), Clocks(), reference="auto")
    assert mesh.nodes["here"].reference_name() is None
    assert any("nothing to compare" in message for message in mesh.told()["messages"])
    mesh.exchange()
    assert mesh.nodes["here"].reference_name() == "here"


def test_peers_are_limited_and_the_departed_forgotten() -> None:
    mesh = drifting()
    mesh.exchange()
    node = mesh.nodes["here"]
    template = mesh.nodes["there"].describe()
    for number in range(PEERS_MAX + 20):
        node.on_proofs(
            Proofs(replace(template, name=f"p{number}"), "udp", "x:1", ((0, 10),), ((0, 10),), None), SECOND + number
        )
    peers = node.status(2 * SECOND)["peers"]
    assert len(peers) == PEERS_MAX
    node.forget_departed(PEER_GONE_NS + SECOND + 100)
    names = {peer["name"] for peer in node.status(PEER_GONE_NS + SECOND + 100)["peers"]}
    assert "p275" in names
    assert "p50" not in names


def utc_node(*names: str) -> Node:
    names = names or ("s1", "s2", "s3")
    sources = tuple(SourceConfig(type="ntp", name=name, address="x", interval=SECOND) for name in names)
    return Node(
        Config(node=NodeConfig(name="n"), source=sources), boot=bytes(16), first=Clocks().sample(0), virtual=False
    )


def feed(node: Node, name: str, error_ns: int, at_ns: int = 0) -> None:
    utc = 1_700_000_000 * SECOND + error_ns
    node.on_utc(name, [(at_ns, utc + at_ns + 2 * MS)], [(utc + at_ns + 1 * MS, at_ns + 2 * MS)], at_ns)


def test_a_falseticker_is_outvoted_and_named() -> None:
    node = utc_node()
    assert node.status(0)["offset_ns"] is None
    assert any("no source has answered" in message for message in node.status(0)["messages"])
    feed(node, "s1", 0)
    feed(node, "s2", 100_000)
    feed(node, "s3", SECOND)
    told = node.status(3 * MS)
    assert told["reference"] == "utc"
    assert told["lower_ns"] <= 0 <= told["upper_ns"]
    states = {source["name"]: source["state"] for source in told["sources"]}
    assert states == {"s1": "truechimer", "s2": "truechimer", "s3": "falseticker"}
    assert "source s3 is falseticker" in told["messages"]


DAY = 86_400 * SECOND
MIDNIGHT = (1_700_000_000 * SECOND // DAY + 1) * DAY
"""The first midnight of UTC after the simulated clocks begin."""


@pytest.mark.parametrize(("leap", "jump"), [(1, -SECOND), (2, SECOND)])
@pytest.mark.parametrize("leaps", [True, False])
@pytest.mark.parametrize("announcing", [("s1", "s2"), ("s1",)])
def test_around_a_leap_second_the_bound_is_the_hull(
    leap: int, jump: int, leaps: bool, announcing: tuple[str, ...]
) -> None:
    """A leap is announced; it happens, or was announced for another month. The bound holds either way."""
    node = utc_node("s1", "s2")
    begin = MIDNIGHT - 1_700_000_000 * SECOND  # raw at midnight, as the clocks here are
    checked = {"before": 0, "around": 0, "after": 0}
    for seconds in range(-20, 40):
        at = begin + seconds * SECOND
        node.on_wall(Clocks().sample(at))
        # Reading by reading UTC repeats a second (or skips one); each source does so at a moment of its own.
        for name, late in (("s1", -1), ("s2", 3)):
            utc = 1_700_000_000 * SECOND + at + (jump if leaps and seconds >= late else 0)
            # Where the second source never announces what it does, the first one is half of all.
            announced = leap if seconds < 15 and name in announcing else 0
            node.on_utc(name, [(at, utc + 2 * MS)], [(utc + MS, at + 2 * MS)], at + 2 * MS, announced)
        told = node.status(at + 3 * MS)
        assert told["offset_ns"] is not None, seconds
        truth = jump if leaps and seconds >= 0 else 0
        assert told["lower_ns"] <= truth <= told["upper_ns"], seconds
        when = "before" if seconds < -3 else "around" if seconds < 13 else "after"
        if -2 <= seconds < 8:
            assert told["lower_ns"] <= min(0, jump)
            assert told["upper_ns"] >= max(0, jump)
        elif when != "around":
            assert told["uncertainty_ns"] < 20 * MS, seconds
        if seconds < 0:
            assert any("leap second is announced" in message for message in told["messages"])
        checked[when] += 1
    assert told["contradictions"] == 0
    assert min(checked.values()) >= 10
    assert not any("leap second" in message for message in told["messages"])


def test_a_smear_is_followed_without_a_contradiction() -> None:
    """UTC as a smearing server tells it: another rate at once, for a day."""
    sources = (SourceConfig(type="ntp", name="s", address="x", interval=SECOND, smear=True),)
    node = Node(
        Config(node=NodeConfig(name="n"), source=sources), boot=bytes(16), first=Clocks().sample(0), virtual=False
    )
    for seconds in range(0, 4000, 16):
        at = seconds * SECOND
        smeared = max(0, seconds - 1000) * -11_574  # ns: a second in a day
        utc = 1_700_000_000 * SECOND + at + smeared
        node.on_wall(Clocks().sample(at))
        node.on_utc("s", [(at, utc + 10_000)], [(utc + 5_000, at + 15_000)], at + 15_000, 1)
        told = node.status(at + 8 * SECOND)
        now = max(0, seconds + 8 - 1000) * -11_574
        assert told["lower_ns"] <= now <= told["upper_ns"], seconds
        # In the first second of all the wall clock may be slewed as fast as the kernel can.
        assert told["uncertainty_ns"] < (5 * MS if seconds else 20 * MS)
    assert told["contradictions"] == 0
    assert told["sources"][0]["smear"] is True


def test_found_sources_give_way_to_a_mesh() -> None:
    """All nodes of a mesh need the same reference, and not all may have found a source."""
    mesh = Mesh(Clocks(), Clocks(), reference="auto")
    node = mesh.nodes["here"]
    node.found_source(SourceConfig(type="kernel"))
    assert node.reference_name() == "utc"
    feed(node, "kernel", 0)
    assert node.status(3 * MS)["sources"][0]["configured"] is False
    mesh.exchange()
    assert node.reference_name() == "here"


def test_no_majority_is_said_plainly() -> None:
    node = utc_node()
    feed(node, "s1", 0)
    feed(node, "s2", SECOND)
    told = node.status(3 * MS)
    assert told["offset_ns"] is None
    assert any("no majority" in message for message in told["messages"])


def test_reference_time_from_a_knot_holds_the_truth() -> None:
    mesh = drifting()
    mesh.run(10)
    knot = mesh.history.latest
    assert knot is not None
    for later in (0, 100 * MS, 3 * SECOND):
        at = mesh.true_ns + LEAD_NS + later
        time = reference_time(knot, mesh.clocks["here"].raw(at))
        assert time.contains(mesh.clocks["there"].wall(at))
        assert time.width < 2 * MS
    lost = Node(Config(), boot=bytes(16), first=Clocks().sample(0), virtual=False)
    assert lost.knot(0) is None
    with pytest.raises(NoBound, match="skewd status"):
        reference_time(replace(knot, bound=None), 0)


def test_a_slew_that_begins_between_two_knots_is_covered() -> None:
    """Stamps made before the next knot are judged by the last one, which did not know of the slew: it is widened."""
    mesh = drifting()
    mesh.run(20)
    here = mesh.clocks["here"]
    for step in range(200):
        if step >= 20:
            here.wall_ahead_ns += 10_000  # 500 ppm of 20 ms
        mesh.run(0.02, exchanges=step % 50 == 0)
        assert mesh.nodes["here"].wall.era == 1
        stamp, truth = here.wall(mesh.true_ns), mesh.truth()
        correction = mesh.history.at(stamp)
        assert abs(correction.offset_ns - truth) <= correction.uncertainty_ns, step


class TestWhatIsSaidOfOneself:
    """The same words serve many messages, as long as fresh ones would tell nothing more."""

    def node(self) -> tuple[Node, Clocks]:
        clocks = Clocks()
        node = Node(Config(node=NodeConfig(name="here")), boot=bytes(15) + b"1", first=clocks.sample(0), virtual=False)
        for step in range(1, 200):  # ten seconds: the slew is known by now
            node.on_wall(clocks.sample(step * 50 * MS))
        return node, clocks

    def test_it_is_repeated_for_a_quarter_of_a_second(self) -> None:
        node, clocks = self.node()
        said = node.describe()
        node.on_wall(clocks.sample(10 * SECOND))
        assert node.describe() is said
        node.on_wall(clocks.sample(10 * SECOND + 250 * MS))
        assert node.describe().wall_raw_at_ns == clocks.raw(10 * SECOND + 250 * MS)

    def test_a_step_is_told_at_once(self) -> None:
        node, clocks = self.node()
        said = node.describe()
        clocks.wall_ahead_ns += 5 * MS
        assert node.on_wall(clocks.sample(10 * SECOND))
        assert node.describe().era == said.era + 1
        assert node.describe().wall_minus_raw.contains(clocks.wall(10 * SECOND) - clocks.raw(10 * SECOND))

    def test_a_faster_slew_is_told_at_once(self) -> None:
        node, clocks = self.node()
        said = node.describe()
        clocks.wall_ahead_ns += 30_000  # 600 ppm over 50 ms
        assert not node.on_wall(clocks.sample(10 * SECOND))
        assert node.describe().wall_slew_ppb > said.wall_slew_ppb

    def test_a_wide_reading_is_replaced_by_the_next_narrow_one(self) -> None:
        node, clocks = self.node()
        narrow = clocks.sample(10 * SECOND + 300 * MS)
        wide = clocks.sample(10 * SECOND + 250 * MS)
        node.on_wall(WallSample(wide.raw_ns, wide.wall_minus_raw.widen(20_000)))
        assert node.describe().wall_minus_raw.width > 40_000
        node.on_wall(narrow)
        assert node.describe().wall_minus_raw == narrow.wall_minus_raw


def test_a_peer_that_is_not_the_reference_makes_no_knot_narrower() -> None:
    mesh = Mesh(Clocks(), Clocks(wall_ahead_ns=3 * MS))
    mesh.run(5)
    node = mesh.nodes["here"]
    node.tightened()
    other = Node(
        Config(node=NodeConfig(name="other")), boot=b"o" * 16, first=mesh.clocks["there"].sample(0), virtual=False
    )
    now = mesh.true_ns
    proof = Proofs(other.describe(), "udp", "other:1", ((now, now + 50_000),), ((now + 50_000, now + 90_000),), 90_000)
    node.on_proofs(proof, now + 90_000)
    assert node.tightened() == []
    assert node.peer_estimate("other", now) is not None


def test_the_reference_node_itself_says_how_well_it_foretells_its_wall_clock() -> None:
    """A stamp of its own needs no correction, but what the reference reads at a raw instant is its wall clock."""
    clocks = Clocks(epoch_ns=10**12)
    slewed = 300_000  # ppb, against its raw clock

    def sample(true_ns: int) -> WallSample:
        reading = clocks.sample(true_ns)
        return WallSample(reading.raw_ns, reading.wall_minus_raw.shift(true_ns * slewed // SECOND))

    config = Config(node=NodeConfig(name="here"), mesh=MeshConfig(reference="here"))
    node = Node(config, boot=bytes(16), first=sample(0), virtual=False)
    history, checks = History(stamps="wall"), 0
    for tick in range(1, 80):
        now = tick * 250 * MS
        node.on_wall(sample(now))
        knot = node.knot(clocks.raw(now))
        assert knot is not None
        history.append(knot)
        history.tighten(node.tightened())
        for newest in (knot, history.latest):
            assert newest is not None
            for later in (0, 100 * MS, 249 * MS):
                reads = clocks.wall(now + later) + (now + later) * slewed // SECOND
                assert reference_time(newest, clocks.raw(now + later)).contains(reads)
                checks += 1
        correction = history.at(clocks.wall(now) + now * slewed // SECOND)
        assert correction.offset_ns == 0
    assert checks > 400
