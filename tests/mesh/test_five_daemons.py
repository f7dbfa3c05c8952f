"""The whole thing for real: five daemons in namespaces, over each transport alone, every bound against the truth.

See ``five_nodes.py`` for how the truth is known. Every look at the mesh, in whatever state it is, checks all bounds
that any daemon names at that moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest

from skewd.clock import VirtualClock
from skewd.interval import Interval
from skewd.reader import Now
from tests.mesh.five_nodes import (
    NAMES,
    PORT,
    RATE_PPM,
    Answer,
    Mesh,
    Network,
    Node,
    Relay,
    address,
    agreed,
    gone,
    mesh,
    network,
    others,
    over_aeron,
    over_kafka,
    over_udp,
    over_zmq,
    whole,
)
from tests.waiting import LIMIT_S

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")
pytestmark = pytest.mark.long

MS = 1_000_000
STEP_NS = 5 * MS


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


def counters(told: dict[str, Any], link: int = 0) -> dict[str, int]:
    return dict(told["links"][link]["counters"])


def settled(told: list[dict[str, Any]]) -> bool:
    return agreed(told) is not None and whole(told)


def test_over_udp_with_the_kernels_stamps(net: Network) -> None:
    with mesh(net, over_udp()) as five:
        five.start()
        before = [answer.status for answer in five.until(settled, "one reference, and a bound on everybody")]
        keeper = five.node(str(agreed(before)))
        five.watch(40)
        after = [answer.status for answer in five.look()]
        assert whole(after)
        for was, now in zip(before, after, strict=True):
            for stamps in ("kernel_stamped", "kernel_sent"):
                assert counters(now)[stamps] > counters(was)[stamps] > 0, stamps
            assert counters(now)["bad_mac"] == counters(now)["internal_errors"] == 0
            assert now["contradictions"] == 0
            assert now["mesh"]["convicted"] == now["mesh"]["disputed"] == []

        _commands_agree(five, next(node for node in five.nodes if node is not keeper))
        _rubbish_is_counted(five)
        stepped = next(node for node in five.nodes if node is not keeper)
        _a_wall_step_is_told(five, stepped)
        _the_reference_dies_and_comes_back(five, keeper)
        assert five.checked > 1000
        quiet(five)


def _commands_agree(five: Mesh, node: Node) -> None:
    """What an administrator types, on one of the nodes."""
    said = node.skewd("waitsync", "--max-uncertainty", "50ms", "--timeout", "60s")
    assert said.returncode == 0, said.stderr
    for peer in NAMES:
        if peer != node.name:
            said = node.skewd("check", "--peer", peer, "--warning", "500ms", "--critical", "900ms")
            assert said.returncode == 0, (said.stdout, said.stderr)
    said = node.skewd("check", "--peer", "nobody")
    assert said.returncode == 3, (said.stdout, said.stderr)
    screen = node.skewd("status").stdout
    assert f"{node.name}: synchronized" in screen
    assert all(f"\n{peer} " in screen for peer in NAMES if peer != node.name)
    # Three ways to the reference's time: the API, the command that prints it, and shared memory.
    origin = five.node(node.status()["mesh"]["timescale"]["origin"])
    now = node.ask_now()
    truth = (
        now.host_wall_minus_raw
        + Interval(now.before_ns, now.after_ns)
        + Interval(*sorted(origin.ahead_ns(at) for at in (now.before_ns, now.after_ns)))
    )
    said_ns = Interval(now.status["earliest_ns"], now.status["latest_ns"])
    assert said_ns.intersect(truth) is not None
    assert now.status["reference"] == f"node:{origin.name}"
    reader = Now(node.directory / "run" / "clock.shm", VirtualClock(node.page))
    its = VirtualClock(origin.page)
    earliest, read, latest = its.wall_ns(), reader(), its.wall_ns()
    assert read.lo <= latest
    assert read.hi >= earliest
    assert read.width < 50 * MS


def _rubbish_is_counted(five: Mesh) -> None:
    """Random bytes, and what looks like a message, from somebody on the same wire."""
    before = [counters(answer.status) for answer in five.look()]

    def send() -> None:
        with five.net.inside(five.net.hub), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for index in range(len(NAMES)):
                for size in (0, 1, 47, 320, 1400, 1400, 9000):
                    out.sendto(os.urandom(size), (address(index), PORT))

    sender = threading.Thread(target=send)
    sender.start()
    sender.join()

    def refused(told: list[dict[str, Any]]) -> bool:
        def count(one: dict[str, int]) -> int:
            return sum(one[name] for name in ("truncated", "bad_magic", "oversized", "rate_limited"))

        return all(count(counters(one)) >= count(was) + 6 for one, was in zip(told, before, strict=True))

    five.until(refused, "the rubbish counted")


def _a_wall_step_is_told(five: Mesh, stepped: Node) -> None:
    """Somebody steps one node's wall clock: it knows at once, the others soon, and nothing else moves."""
    was = stepped.status()
    raw_widths = {row["name"]: row["upper_ns"] - row["lower_ns"] for row in was["peers"]}
    stepped.page.step_to(stepped.page.offset_ns + STEP_NS)
    deadline = time.monotonic() + LIMIT_S
    while True:
        told = [(node, node.ask()) for node in five.nodes]
        if all(_row_holds(five, node, answer, stepped) for node, answer in told):
            break
        assert time.monotonic() < deadline, five.report(answer for _, answer in told)
        time.sleep(0.02)
    now = stepped.status()
    assert now["era"] == was["era"] + 1
    # The network was not measured anew: the step is a fact about one clock, known to a microsecond.
    for row in now["peers"]:
        assert row["upper_ns"] - row["lower_ns"] < 4 * raw_widths[row["name"]] + 20_000
    assert "the wall clock was stepped" in stepped.log.read_text()
    five.watch(20)
    assert agreed([answer.status for answer in five.look()])


def _row_holds(five: Mesh, here: Node, answer: Answer, stepped: Node) -> bool:
    """Whether a node bounds the stepped clock as it is now, and not as it was."""
    rows = [row for row in answer.status["peers"] if here is stepped or row["name"] == stepped.name]
    for row in rows:
        there = five.node(row["name"])
        truth = [there.ahead_ns(at) - here.ahead_ns(at) for at in (answer.before_ns, answer.after_ns)]
        if row["lower_ns"] is None or not (row["lower_ns"] - 2 <= max(truth) and row["upper_ns"] + 2 >= min(truth)):
            return False
    return True


def _the_reference_dies_and_comes_back(five: Mesh, keeper: Node) -> None:
    """Another carries the timescale on, and nobody's published time moves by more than it was unsure of."""
    published: dict[str, list[tuple[Answer, int, int]]] = {}

    def note() -> list[dict[str, Any]]:
        told = []
        for node in five.living:
            answer = node.ask()
            told.append(answer.status)
            five.check_peers(answer, node)
            five.check_reference(answer, node)
            assert answer.status["offset_ns"] is not None, five.report([answer])
            # What is published as the reference's time, against the host's raw clock.
            at = node.ahead_ns(answer.after_ns) + answer.host_wall_minus_raw.midpoint + answer.status["offset_ns"]
            published.setdefault(node.name, []).append((answer, at, answer.status["uncertainty_ns"]))
        return told

    epochs = [one["mesh"]["epochs"] for one in note() if one["node"] != keeper.name]
    keeper.end(signal.SIGKILL)
    assert gone(keeper)
    deadline = time.monotonic() + LIMIT_S
    while True:
        told = note()
        follows = agreed(told)
        if follows not in (None, keeper.name):
            break
        assert time.monotonic() < deadline, five.report(node.ask() for node in five.living)
        time.sleep(0.05)
    for _ in range(20):
        told = note()
    assert all(one["mesh"]["timescale"]["carried"] for one in told)
    assert all(one["reference"] == f"node:{keeper.name}" for one in told), "whose timescale it is does not change"
    assert [one["mesh"]["epochs"] for one in told] == epochs, "not a new epoch"
    for name, samples in published.items():
        for (one, at, unsure), (other, later, _) in pairwise(samples):
            passed = other.after_ns - one.before_ns
            moved = abs(later - at)
            # The host's wall clock is read in a sandwich, which is wide when this process was made to wait.
            read = one.host_wall_minus_raw.width + other.host_wall_minus_raw.width
            most = unsure + passed * RATE_PPM // 1_000_000 + read + 1_000
            keepers = [answer.status["mesh"]["timescale"]["keeper"] for answer in (one, other)]
            assert moved <= most, f"{name} moved by {moved} ns, at most {most}: {unsure} {read} {keepers}"
    _one_carried_scale(five, str(follows))

    keeper.start()
    keeper.ready()
    answers = five.until(lambda told: len(told) == len(NAMES) and settled(told), "the old reference follows")
    assert agreed([answer.status for answer in answers]) == follows
    assert [answer.status["mesh"]["epochs"] for answer in answers if answer.status["node"] != keeper.name] == epochs
    _one_carried_scale(five, str(follows))


def _one_carried_scale(five: Mesh, keeper: str) -> None:
    """A timescale carried on is its keeper's raw clock and a constant: one that all bounds of all nodes contain."""
    constant: Interval | None = None
    for _ in range(10):
        for node in five.living:
            answer = node.ask()
            told = answer.status
            assert told["mesh"]["timescale"]["keeper"] == keeper
            assert told["mesh"]["timescale"]["carried"]
            bound = Interval(told["lower_ns"], told["upper_ns"])
            wall = answer.host_wall_minus_raw + node.ahead(answer)
            found = (wall + bound - five.node(keeper).raw(answer)).widen(100)
            constant = found if constant is None else constant.intersect(found)
            assert constant is not None, f"{node.name} follows another timescale"


# -- over one other transport only


def only(five: Mesh, transport: str) -> list[dict[str, Any]]:
    """All five agree over one link each, know each other by nothing else, and tell each other of the others."""
    five.start()
    five.until(settled, "one reference, and a bound on everybody")
    five.watch(40)
    told = [answer.status for answer in five.look()]
    for one in told:
        assert [link["transport"] for link in one["links"]] == [transport]
        assert {row["link"] for row in one["peers"]} == {transport}
        assert one["contradictions"] == 0
        assert one["mesh"]["members"] == len(NAMES)
        assert one["mesh"]["convicted"] == one["mesh"]["disputed"] == []
        assert counters(one)["internal_errors"] == counters(one)["bad_mac"] == 0
        assert one["mesh"]["records"]["accepted"] > 0
    assert five.checked > 100
    five.until(lambda told: all(one["mesh"]["oldest_record_s"] < 10 for one in told), "records as fresh as they come")
    return told


def a_peer_dies(five: Mesh) -> None:
    """One that is killed takes nobody along, and is back at once when it is started again."""
    victim = next(node for node in five.nodes if node.name != agreed([a.status for a in five.look()]))
    victim.end(signal.SIGKILL)
    five.watch(20)
    victim.start()
    victim.ready()
    five.until(lambda told: len(told) == len(NAMES) and settled(told), "all five again")


def quiet(five: Mesh) -> None:
    """What their logs say is little, and no fault of ours."""
    for node in five.nodes:
        log = node.log.read_text()
        assert "Traceback" not in log, log
        assert len(log.splitlines()) < 40, log


def rubbish(five: Mesh, kind: socket.SocketKind) -> None:
    """Random bytes at every node's port, which are nobody's: all go on as before."""

    def send() -> None:
        with five.net.inside(five.net.hub):
            for index in range(len(NAMES)):
                with socket.socket(socket.AF_INET, kind) as out, contextlib.suppress(OSError):
                    out.settimeout(LIMIT_S)
                    out.connect((address(index), PORT))
                    for size in (1, 47, 320, 1400, 1400):
                        out.send(os.urandom(size))

    sender = threading.Thread(target=send)
    sender.start()
    sender.join()
    five.watch(20)
    assert settled([answer.status for answer in five.look()])


def test_over_zeromq_only(net: Network) -> None:
    pytest.importorskip("zmq", reason="skewd[zmq] is not installed")
    with mesh(net, over_zmq, udp=False) as five:
        only(five, "zmq")
        rubbish(five, socket.SOCK_STREAM)
        a_peer_dies(five)
        quiet(five)


def test_over_aeron_only(net: Network) -> None:
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
    with mesh(net, over_aeron, udp=False) as five:
        only(five, "aeron")
        rubbish(five, socket.SOCK_DGRAM)
        a_peer_dies(five)
        quiet(five)


@pytest.mark.real_kafka
def test_over_kafka_only(net: Network) -> None:
    """Over Apache Kafka where Java and its jars are, over librdkafka's mock elsewhere."""
    kafka = pytest.importorskip("skewd_pipeline.kafka_broker", reason="confluent-kafka is not installed")
    with (
        kafka.open_broker(warm_messages=2000) as broker,
        Relay(net, int(broker.bootstrap.rpartition(":")[2])) as relay,
        mesh(net, over_kafka(broker.bootstrap, "skewd-five"), udp=False) as five,
    ):
        only(five, "kafka")
        a_peer_dies(five)
        relay.close()
        five.until(lambda told: all(one["links"][0]["trouble"] for one in told), "the broker's absence is said")
        relay.open()
        five.until(
            lambda told: settled(told) and not any(one["links"][0]["trouble"] for one in told), "the broker is back"
        )
        quiet(five)


# -- who does not ask everybody


def chain(index: int) -> list[int]:
    return [index + 1] if index + 1 < len(NAMES) else []


def two_and_three(index: int) -> list[int]:
    """The first two ask everybody; the other three know nothing of each other."""
    return others(index) if index < 2 else []


def composed(told: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (one["node"], row["name"]): row
        for one in told
        for row in one["peers"]
        if row["trust"] == "composed" and row["lower_ns"] is not None
    }


def test_a_chain_that_believes_everybody(net: Network) -> None:
    with mesh(net, over_udp(chain), liars=0) as five:
        five.start()
        five.until(settled, "one reference, and a bound on everybody")
        five.watch(40)
        told = [answer.status for answer in five.look()]
        assert agreed(told)
        rows = composed(told)
        unasked = {(a, b) for i, a in enumerate(NAMES) for j, b in enumerate(NAMES) if abs(i - j) > 1}
        assert rows.keys() == unasked
        for (here, there), row in rows.items():
            first, last = NAMES.index(here), NAMES.index(there)
            step = 1 if last > first else -1
            assert row["path"] == [[NAMES[place] for place in range(first + step, last + step, step)]]
            assert row["link"] is row["rtt_min_ns"] is None
        assert len(five.widths_ns["composed"]) > 100
        far = five.nodes[0]
        said = far.skewd("check", "--peer", NAMES[-1], "--warning", "500ms", "--critical", "900ms")
        assert said.returncode == 0, said.stdout
        assert "composed via bob>cyd>dan" in said.stdout
        quiet(five)


def test_where_one_may_lie_two_disjoint_paths_bound_a_node_that_is_not_asked(net: Network) -> None:
    with mesh(net, over_udp(two_and_three), liars=1) as five:
        five.start()
        five.until(settled, "one reference, and a bound on everybody")
        five.watch(40)
        told = [answer.status for answer in five.look()]
        assert agreed(told)
        rows = composed(told)
        two, three = NAMES[:2], NAMES[2:]
        assert rows.keys() == {(a, b) for a in three for b in three if a != b}
        for row in rows.values():
            ways = [set(path[:-1]) for path in row["path"]]
            assert any(not a & b for a, b in combinations(ways, 2)), "liars + 1 paths that share nobody"
            assert set(two) <= set[str]().union(*ways), "over the two that both know"
        assert len(five.widths_ns["composed"]) > 100
        quiet(five)
