"""What a member of a mesh is told by its node: rows for all that is bounded, with trust, path, state and link.

The nodes are real ones in a simulated fleet (``fleet.py``), so that the rows can be held against the truth.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from skewd.bounds.compose import FirstHand, Here, compose
from skewd.bounds.pair import PairBound
from skewd.check import OK, UNKNOWN, judge
from skewd.clock import WallSample
from skewd.config import Config, MeshConfig, NodeConfig
from skewd.hearsay import MeshView
from skewd.interval import Interval
from skewd.links.protocol import Proofs, Self
from skewd.node import PEER_GONE_NS, Node
from skewd.over_links import LINKS_MAX, OverLinks
from skewd.publish import prometheus
from skewd.records import Record
from skewd.status_view import render_status
from skewd.telling import ROWS_MAX
from tests.mesh.fleet import Fleet, Lies
from tests.simulation.world import SECOND, Wire

MS = 1_000_000


def told_by(fleet: Fleet, name: str) -> dict[str, Any]:
    """The status as a daemon of this member would tell it."""
    member = fleet.members[name]
    now = member.oscillator.raw(fleet.true_ns)
    return member.node.status(now) | {"mesh": msgspec.to_builtins(member.membership.told(now))}


def rows(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in status["peers"]}


def truth(fleet: Fleet, here: str, there: str) -> int:
    return fleet.wall_between(fleet.members[here], fleet.members[there])


@pytest.fixture(scope="module")
def sparse() -> Fleet:
    """Ten members that ask two others each: most clocks are known through the mesh only."""
    fleet = Fleet([f"n{number}" for number in range(10)], 1, fanout=2)
    fleet.run(60)
    return fleet


def test_members_known_through_the_mesh_only_have_rows(sparse: Fleet) -> None:
    composed = 0
    for here in sparse.names:
        status = told_by(sparse, here)
        assert set(rows(status)) == set(sparse.names) - {here}
        assert status["peers_left_out"] == 0
        for name, row in rows(status).items():
            assert list(row) == list(status["peers"][0]), "all rows have the same columns"
            assert row["lower_ns"] <= truth(sparse, here, name) <= row["upper_ns"]
            if len(row["path"]) > 1 or row["age_s"] < 3:
                assert row["state"] == "synchronized"
            if row["trust"] == "first-hand":
                assert row["path"][0] == [name]
                assert (row["state"] == "holdover") <= (row["age_s"] > 3)
                assert row["link"] == row["lower_link"] == row["upper_link"] == "udp"
                continue
            composed += 1
            assert row["trust"] == "composed"
            assert (row["address"], row["link"], row["rtt_min_ns"], row["heard_s"]) == (None, None, None, None)
            assert row["links"] == []
            assert 0 < row["age_s"] < 30
            assert isinstance(row["drift_ppb"], int)
            assert {path[-1] for path in row["path"]} == {name}
            disjoint = [(a, b) for a, b in itertools.combinations(row["path"], 2) if not set(a[:-1]) & set(b[:-1])]
            assert disjoint, "f + 1 = 2 paths that share nobody"
    assert composed > 20


class _Chain(Fleet):
    """Everybody hears the one before and the one after, and nobody else."""

    def _passes(self, one: str, other: str) -> bool:
        return abs(self.names.index(one) - self.names.index(other)) == 1


class _Ring(Fleet):
    """The same, and the first and the last hear each other."""

    def _passes(self, one: str, other: str) -> bool:
        return abs(self.names.index(one) - self.names.index(other)) in (1, len(self.names) - 1)


def test_two_chains_round_a_ring_vouch_for_everybody() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    ring = _Ring(names, 4)
    ring.run(60)
    for place, name in enumerate(names):
        status = told_by(ring, name)
        assert status["mesh"]["agreed"] is True
        assert set(rows(status)) == set(names) - {name}
        assert not any(one.code == "members-unvouched" for one in ring.members[name].membership.problems())
        assert rows(status)[names[(place + 3) % 6]]["trust"] == "composed"


def test_members_that_too_few_vouch_for_do_not_count_and_are_not_spoken_for() -> None:
    names = ["a", "b", "c", "d", "e"]
    chain = _Chain(names, 4)
    chain.run(60)
    told = {name: told_by(chain, name) for name in names}
    assert len({status["mesh"]["timescale"]["origin"] for status in told.values()}) > 1
    for place, name in enumerate(names):
        assert told[name]["mesh"]["members"] == 5
        assert set(rows(told[name])) == set(names[max(0, place - 1) : place + 2]) - {name}, "nobody by hearsay"
        assert told[name]["mesh"]["agreed"] is False
        (said,) = (one.text for one in chain.members[name].membership.problems() if one.code == "members-unvouched")
        strangers = set(names) - set(names[max(0, place - 1) : place + 2])
        assert said.startswith(f"fewer than 2 members vouch for {', '.join(sorted(strangers))}, so")

    believing = _Chain(names, 4, liars=0)
    believing.run(60)
    for name in names:
        status = told_by(believing, name)
        assert status["mesh"]["agreed"] is True
        assert set(rows(status)) == set(names) - {name}
        assert not any(one.code == "members-unvouched" for one in believing.members[name].membership.problems())


@pytest.mark.long
def test_a_peer_that_was_asked_but_once_is_bounded_by_others_as_well(sparse: Fleet) -> None:
    """A single exchange a minute ago must not hide what two disjoint paths say now."""
    checked = 0
    for here in sparse.names:
        member = sparse.members[here].membership
        now = sparse.members[here].oscillator.raw(sparse.true_ns)
        own = {
            name: FirstHand(member.store.clock_of(name, declared.boot, declared.raw_era), known.offset, known.drift_ppb)
            for name, (declared, known) in member.node.first_hand(now).items()
        }
        for name, row in rows(told_by(sparse, here)).items():
            if row["trust"] == "composed" or row["age_s"] < 30:
                continue
            without = {other: bound for other, bound in own.items() if other != name}
            records = member.store.records()
            composed = compose(here=Here(here, b"no tag"), now_raw_ns=now, first_hand=without, records=records)
            if name in composed:
                checked += 1
                raw = member.node._raw_offset(name, now)
                assert raw is not None
                assert raw[0].offset.width < composed[name].interval.width + 300_000
                assert row["path"][1:], "and the row says through whom"
    assert checked > 5


def test_own_peers_come_first_then_the_others_by_name(sparse: Fleet) -> None:
    for here in sparse.names:
        told = [(row["trust"] != "first-hand", row["name"]) for row in told_by(sparse, here)["peers"]]
        assert told == sorted(told)


def test_the_reference_has_trust_and_path(sparse: Fleet) -> None:
    own = told_by(sparse, "n0")
    assert (own["reference"], own["trust"], own["path"]) == ("node:n0", "first-hand", [])
    for here in sparse.names[1:]:
        status = told_by(sparse, here)
        row = rows(status)["n0"]
        assert (status["reference"], status["trust"], status["path"]) == ("node:n0", row["trust"], row["path"])


def test_a_check_against_a_composed_peer_says_over_whom(sparse: Fleet) -> None:
    status = told_by(sparse, "n3")
    name, row = next((name, row) for name, row in rows(status).items() if row["trust"] == "composed")
    result = judge(status, warning_ns=100 * MS, critical_ns=100 * MS, peer=name)
    assert result.code == OK
    via = ", ".join(">".join(path[:-1]) for path in row["path"])
    assert f"[composed via {via}]" in result.line
    assert (result.data["trust"], result.data["rtt_min_ns"]) == ("composed", None)
    stale = judge(status, warning_ns=100 * MS, critical_ns=100 * MS, peer=name, max_age_s=0.001)
    assert stale.code == UNKNOWN
    assert "its oldest record is" in stale.line


def test_metrics_of_composed_peers_and_of_the_mesh(sparse: Fleet) -> None:
    status = told_by(sparse, "n3")
    composed = {name for name, row in rows(status).items() if row["trust"] == "composed"}
    values = metrics(status)
    for name, row in rows(status).items():
        assert values["skewd_peer_offset_seconds", name] == row["offset_ns"] / 1e9
        assert values["skewd_peer_offset_lower_seconds", name] == row["lower_ns"] / 1e9
        assert (("skewd_peer_last_exchange_timestamp_seconds", name) in values) == (name not in composed)
        assert (("skewd_peer_rtt_min_seconds", name) in values) == (name not in composed)
        assert values["skewd_peer_first_hand", name] == (name not in composed)
    assert values["skewd_mesh_members", ""] == 10
    assert values["skewd_mesh_bounded_members", ""] == 9
    assert values["skewd_mesh_agreed", ""] == 1
    assert values["skewd_mesh_disputed", ""] == 0
    assert values["skewd_mesh_reference_epochs_total", ""] == status["mesh"]["epochs"]
    assert values["skewd_mesh_oldest_record_seconds", ""] == status["mesh"]["oldest_record_s"]
    assert values["skewd_mesh_records_total", "accepted"] == status["mesh"]["records"]["accepted"] > 0
    assert values["skewd_mesh_records_total", "bad_signature"] == 0
    assert not [key for key in values if key[0] == "skewd_mesh_convicted"]


def metrics(status: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Samples by name and first label."""
    text = prometheus.exposition(prometheus.registry(lambda: status, {"version": "0"}, lambda: 1e9)).decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.long
def test_a_departed_member_goes_from_rows_and_metrics() -> None:
    fleet = Fleet(["n0", "n1", "n2", "n3"], 3, fanout=2, duration_s=1500.0)
    fleet.run(20)
    assert ("skewd_peer_offset_seconds", "n3") in metrics(told_by(fleet, "n1"))
    fleet.stop("n3")
    for _ in range(20):
        fleet.run(PEER_GONE_NS / SECOND / 18)
        for member in fleet.living():
            member.node.forget_departed(member.oscillator.raw(fleet.true_ns))
    status = told_by(fleet, "n1")
    assert set(rows(status)) == {"n0", "n2"}
    assert not [key for key in metrics(status) if key[1] == "n3"]


def test_a_congested_peer_is_narrowed_by_others_and_the_row_says_by_whom() -> None:
    slow = Wire(jitter_us=20_000.0)
    wires = {("n1", "n2"): slow, ("n2", "n1"): slow}
    fleet = Fleet([f"n{number}" for number in range(6)], 5, wires=wires)
    fleet.run(40)
    row = rows(told_by(fleet, "n1"))["n2"]
    assert row["trust"] == "first-hand"
    assert row["path"][0] == ["n2"]
    assert len(row["path"]) >= 3, "its own path, and two disjoint ones"
    assert row["lower_ns"] <= truth(fleet, "n1", "n2") <= row["upper_ns"]
    own = fleet.members["n1"].node.peers["n2"].pair.offset(fleet.members["n1"].oscillator.raw(fleet.true_ns))
    assert own is not None
    assert row["upper_ns"] - row["lower_ns"] < own.width
    assert "first-hand, also via " in render_status(told_by(fleet, "n1"))


def lying(record: Record) -> Record:
    """Each claim, moved by 3 s: what no honest node can confirm."""
    return replace(
        record,
        edges=tuple(
            replace(edge, claim=edge.claim._replace(offset=edge.claim.offset.shift(3 * SECOND)))
            if hasattr(edge.claim, "_replace")
            else replace(edge, claim=replace(edge.claim, offset=edge.claim.offset.shift(3 * SECOND)))
            for edge in record.edges
        ),
    )


def test_a_convicted_member_is_told_everywhere() -> None:
    fleet = Fleet([f"n{number}" for number in range(6)], 7, lies={"n4": Lies(record=lying)})
    fleet.run(60)
    status = told_by(fleet, "n1")
    assert status["mesh"]["convicted"] == ["n4"]
    assert {name for name, row in rows(status).items() if row["state"] == "convicted"} == {"n4"}
    assert metrics(status)["skewd_mesh_convicted", "n4"] == 1
    screen = render_status(status)
    assert "\n  convicted     n4\n" in screen
    result = judge(status, warning_ns=100 * MS, critical_ns=100 * MS, peer="n4")
    assert "[CONVICTED: what it says of clocks contradicts the others" in result.line


# -- without a fleet -------------------------------------------------------------------------------------------------


def alone() -> Node:
    first = WallSample(0, Interval(1_790_000_000 * SECOND, 1_790_000_000 * SECOND + 100))
    config = Config(node=NodeConfig(name="here"), mesh=MeshConfig(reference="here"))
    return Node(config, boot=b"1" * 16, first=first, virtual=False)


def proofs(name: str, at_ns: int, *, link: str = "udp", way_ns: int = 50_000) -> Proofs:
    """An exchange with a peer whose raw clock reads what this one's does."""
    there = Self(
        name=name, boot=b"2" * 16, raw_era=1, era=1, wall_minus_raw=Interval(0, 10), wall_raw_at_ns=at_ns,
        wall_slew_ppb=0, max_drift_ppm=100, max_wander_ppb_per_s=10,
    )  # fmt: skip
    out, back = (at_ns - 2 * way_ns, at_ns - way_ns), (at_ns - way_ns, at_ns)
    return Proofs(there, link, f"{link}:{name}", (out,), (back,), 2 * way_ns)


def test_rows_are_bounded_and_what_is_left_out_is_counted() -> None:
    node = alone()
    node.on_proofs(proofs("own", SECOND), SECOND)
    strangers = frozenset(f"m{number:03}" for number in range(ROWS_MAX + 20))
    node.mesh = MeshView(0, disputed=strangers)
    status = node.status(SECOND)
    assert len(status["peers"]) == ROWS_MAX
    assert [row["name"] for row in status["peers"][:3]] == ["own", "m000", "m001"]
    assert status["peers_left_out"] == 21
    assert "  and 21 more members\n" in render_status(status)
    row = status["peers"][1]
    assert (row["state"], row["trust"], row["lower_ns"], row["age_s"]) == ("disputed", "composed", None, None)
    result = judge(status, warning_ns=MS, critical_ns=MS, peer="m270")
    assert "and 257 more" in result.line
    result = judge(status, warning_ns=MS, critical_ns=MS, peer="m000")
    assert result.code == UNKNOWN
    assert "too few others tell of it" in result.line


def test_each_end_of_a_bound_says_which_link_gave_it() -> None:
    node = alone()
    at = SECOND
    for _ in range(5):
        at += SECOND
        node.on_proofs(proofs("there", at, link="kafka", way_ns=3 * MS), at)
    row = node.status(at)["peers"][0]
    assert (row["link"], row["lower_link"], row["upper_link"]) == ("kafka", "kafka", "kafka")
    at += SECOND
    node.on_proofs(proofs("there", at, link="udp"), at)
    at += SECOND
    node.on_proofs(proofs("there", at, link="kafka", way_ns=3 * MS), at)
    row = node.status(at)["peers"][0]
    # Kafka was heard last, but it made nothing narrower.
    assert row["address"] == "kafka:there"
    assert (row["link"], row["lower_link"], row["upper_link"]) == ("udp", "udp", "udp")
    assert [(one["link"], one["rtt_min_ns"], one["messages"]) for one in row["links"]] == [
        ("udp", 100_000, 1),
        ("kafka", 6 * MS, 6),
    ]
    # One way over another link is enough to give one end.
    at += SECOND
    one_way = replace(proofs("there", at, link="zmq", way_ns=1_000), outgoing=(), rtt_ns=None)
    node.on_proofs(one_way, at)
    row = node.status(at)["peers"][0]
    assert (row["link"], row["lower_link"], row["upper_link"]) == ("udp+zmq", "zmq", "udp")
    at += 61 * SECOND
    node.on_proofs(proofs("there", at, link="kafka", way_ns=3 * MS), at)
    assert [one["link"] for one in node.status(at)["peers"][0]["links"]] == ["kafka"]


def test_of_a_resumed_bound_the_link_is_not_known() -> None:
    before, pair = (PairBound(max_drift_ppm=100, max_wander_ppb_per_s=10) for _ in range(2))
    before.outgoing(0, 50)
    before.incoming(50, 100)
    pair.resume(before.proofs())
    links = OverLinks(pair)
    assert links.ends() == (None, None)
    links.heard("udp", "a", SECOND, 10 * MS)
    pair.outgoing(SECOND, SECOND + 5 * MS)
    links.proved(True, SECOND)
    assert links.ends() == (None, None), "the message told nothing new"


@pytest.mark.parametrize("seed", range(4))
def test_without_the_link_that_is_named_the_end_would_lie_farther_out(seed: int) -> None:
    choose = random.Random(seed)
    names = ("udp", "zmq", "kafka")
    merged, *rest = (PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20) for _ in range(4))
    without, links = dict(zip(names, rest, strict=True)), OverLinks(merged)
    at, farther, checked = 0, 0, 0
    for _ in range(300):
        at += choose.randrange(1, 2 * SECOND)
        name = choose.choice(names)
        out, back = choose.randrange(1000, 3 * MS), choose.randrange(1000, 3 * MS)
        links.heard(name, "there", at + out + back, out + back)
        merged.outgoing(at, at + out)
        links.proved(True, at)
        merged.incoming(at + out, at + out + back)
        links.proved(False, at + out + back)
        for left_out, pair in without.items():
            if left_out != name:
                pair.outgoing(at, at + out)
                pair.incoming(at + out, at + out + back)
        at += out + back
        bound, (lower, upper) = merged.offset(at), links.ends()
        assert bound is not None
        if lower is None or upper is None:
            continue
        low, high = without[lower].offset(at), without[upper].offset(at)
        if low is not None and high is not None:
            checked += 2
            farther += (low.lo < bound.lo) + (high.hi > bound.hi)
    assert checked > 400
    assert farther > 0.97 * checked


def test_links_of_a_peer_are_bounded() -> None:
    links = OverLinks(PairBound(max_drift_ppm=1, max_wander_ppb_per_s=1))
    for number in range(100):
        links.heard(f"l{number}", "a", number, 5)
    assert len(links.told(100)) == LINKS_MAX


def test_members_who_disagree_are_a_note_and_no_failure(sparse: Fleet) -> None:
    status = told_by(sparse, "n3")
    status["mesh"] = status["mesh"] | {"agreed": False}
    result = judge(status, warning_ns=100 * MS, critical_ns=100 * MS)
    assert result.code == OK
    assert "[the reference is not agreed upon by all members]" in result.line
    assert "node:n0, NOT named by all" in render_status(status)
