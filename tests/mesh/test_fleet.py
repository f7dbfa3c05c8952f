"""A mesh of real members in true time: every word of theirs against the truth; ``campaign.py`` in small."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")

from dataclasses import replace

from skewd.records import decode, private_key, sign
from tests.mesh.attempts import Attempt, attempt
from tests.mesh.fleet import Fleet, Lies, Member
from tests.mesh.large import grow, traffic
from tests.mesh.liars import WAYS
from tests.mesh.mutants import made_wrong
from tests.mesh.plays import PLAYS, TRAVEL_S, play
from tests.shares import first
from tests.simulation.world import Wire

SHORT = (
    "the reference dies",
    "half of the direct paths congested",
    "walls are set",
    "configured, and its wall is set",
    "the reference reboots",
    "nodes reboot",
    "churn",
    "utc appears",
)


@pytest.mark.parametrize("name", first(1, SHORT))
def test_whatever_happens_every_bound_holds_and_times_do_not_jump(name: str) -> None:
    outcome = play(next(each for each in PLAYS if each.name == name), 1)
    assert outcome.tally.misses == []
    assert outcome.tally.accused == set()
    assert outcome.jumps == []
    assert outcome.contradictions == 0
    assert outcome.unsettled == 0
    assert outcome.apart_s <= TRAVEL_S
    assert outcome.tally.total > 3_000
    if name == "the reference dies":
        assert outcome.changes > 0
        assert outcome.epochs == 1


@pytest.mark.long
def test_a_run_follows_from_its_seed() -> None:
    assert attempt("several at once", 3) == attempt("several at once", 3)


@pytest.mark.parametrize("way", first(1, sorted(WAYS, key=lambda way: way != "another time for each peer")))
def test_no_single_liar_moves_a_bound_between_honest_members(way: str) -> None:
    outcome = Attempt()
    for seed in (1001, 1002):
        outcome.add(attempt(way, seed))
    assert outcome.tally.misses == []
    assert outcome.tally.accused == set()
    assert outcome.jumps == []
    assert outcome.tally.checks["through others"] > 20
    assert outcome.convicting == outcome.due
    if way in ("bounds shifted", "another time for each peer"):
        assert outcome.due >= 8


@pytest.mark.parametrize(
    ("mutant", "way", "seed"),
    [("one path is enough", "bounds of a nanosecond", 3), ("any suspect is convicted", "bounds of a nanosecond", 3)],
)
def test_protection_that_is_taken_away_is_missed(mutant: str, way: str, seed: int) -> None:
    with made_wrong(mutant):
        outcome = attempt(way, seed)
    assert outcome.tally.misses or outcome.tally.accused


def test_a_congested_direct_path_is_bettered_through_others() -> None:
    slow = Wire(minimum_us=20_000.0, jitter_us=2_000.0)
    fleet = Fleet(
        [f"n{index}" for index in range(6)], 7, wires={("n0", "n1"): slow, ("n1", "n0"): slow}, reference="n1"
    )
    fleet.run(20)
    here = fleet.members["n0"]
    raw = here.oscillator.raw(fleet.true_ns)
    own = here.node.first_hand(raw)["n1"][1].offset
    both = here.node._raw_offset("n1", raw)
    assert both is not None
    assert own.width > 30_000_000
    assert both[0].offset.width < own.width / 10
    assert both[0].offset.contains(round(fleet.raw_between(here, fleet.members["n1"])))
    assert here.node.status(raw)["upper_ns"] - here.node.status(raw)["lower_ns"] < own.width / 10


def test_of_a_departed_member_nothing_is_left() -> None:
    fleet = Fleet([f"n{index}" for index in range(5)], 3, interval_s=16.0, reference="n0", duration_s=1500)
    fleet.run(100)
    fleet.leave("n4")
    for member in fleet.living():
        assert "n4" in {peer["name"] for peer in member.node.status(member.oscillator.raw(fleet.true_ns))["peers"]}
    fleet.run(1_000)
    for member in fleet.living():
        view = member.node.mesh
        assert view is not None
        assert "n4" not in member.membership.store.records()
        assert "n4" not in view.known
        assert "n4" not in {peer["name"] for peer in member.node.status(member.oscillator.raw(fleet.true_ns))["peers"]}
        assert view.agreed


def test_two_records_under_one_number_are_a_proof_that_all_come_to_hold() -> None:
    """What the liar says is true both times, so that nothing but the number gives it away."""

    def attach(member: Member, peer: str | None, room: int, honest: bytes) -> bytes:
        own = member.membership.store._own
        if own is None or peer not in ("n0", "n1"):
            return honest
        record = decode(own)
        other = sign(replace(record, wall_slew_ppb=record.wall_slew_ppb + 1), private_key(member.secret))
        return honest.replace(own, other)

    fleet = Fleet([f"n{index}" for index in range(7)], 5, lies={"n6": Lies(attach=attach)}, reference="n2")
    fleet.run(40)
    for member in fleet.honest():
        assert "n6" in member.membership.store.equivocal
        assert member.node.mesh is not None
        assert member.node.mesh.convicted == {"n6"}
        assert ("equivocation", "n6") in [problem.identity for problem in member.membership.problems()]


@pytest.mark.long
def test_forty_members_are_bounded_within_fifteen_rounds() -> None:
    found = grow(40, "configured", 15, fanout=8)
    assert found.to_reference is not None
    assert found.to_pairs is not None
    assert found.tally.misses == []


@pytest.mark.long
def test_what_is_sent_does_not_grow_with_the_mesh() -> None:
    # In a mesh of few all choose all, and one of each two asks: even less is sent.
    small, large = traffic(30, before=4, rounds=4), traffic(60, before=4, rounds=4)
    assert large.packets[0] < small.packets[0] * 1.5
    assert large.bytes_sent[0] < small.bytes_sent[0] * 1.5
