"""Shortest paths against brute force, contradictions, and who is convicted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds.mesh import Mesh
from skewd.interval import Interval

Bounds = list[tuple[int, int, int, int]]

bounds = st.integers(2, 8).flatmap(
    lambda count: st.lists(
        st.tuples(
            st.integers(0, count - 1), st.integers(0, count - 1), st.integers(-(10**6), 10**6), st.integers(0, 10**6)
        ),
        max_size=20,
    )
)


def brute_force(made: Bounds) -> tuple[dict[tuple[int, int], int], set[int]]:
    """Floyd and Warshall: all shortest paths, and who lies on a negative closed walk."""
    nodes = sorted({node for a, b, _, _ in made for node in (a, b)})
    length = {(a, a): 0 for a in nodes}
    for a, b, low, width in made:
        for start, end, weight in ((a, b, low + width), (b, a, -low)):
            length[start, end] = min(weight, length.get((start, end), weight))
    for middle in nodes:
        for a in nodes:
            for b in nodes:
                if (a, middle) in length and (middle, b) in length:
                    way = length[a, middle] + length[middle, b]
                    length[a, b] = min(way, length.get((a, b), way))
    return length, {a for a in nodes if length[a, a] < 0}


def built(made: Bounds) -> Mesh:
    mesh = Mesh()
    for a, b, low, width in made:
        mesh.constrain(str(a), str(b), Interval(low, low + width))
    return mesh


@settings(max_examples=150, deadline=None)
@given(made=bounds)
def test_offsets_are_those_of_brute_force(made: Bounds) -> None:
    mesh = built(made)
    length, broken = brute_force(made)
    assert (mesh.contradiction() is not None) == bool(broken)
    nodes = {node for a, b, _, _ in made for node in (a, b)}
    for a in nodes:
        for b in nodes:
            if any((a, bad) in length for bad in broken) or (a, b) not in length:
                assert mesh.offset(str(a), str(b)) is None
            else:
                assert mesh.offset(str(a), str(b)) == Interval(-length[b, a], length[a, b])


@settings(max_examples=150, deadline=None)
@given(made=bounds)
def test_a_contradiction_is_a_negative_cycle_in_order(made: Bounds) -> None:
    cycle = built(made).contradiction()
    if cycle is None:
        return
    weights: dict[tuple[str, str], int] = {}
    for a, b, low, width in made:
        for start, end, weight in ((a, b, low + width), (b, a, -low)):
            key = (str(start), str(end))
            weights[key] = min(weight, weights.get(key, weight))
    assert len(set(cycle)) == len(cycle)
    assert sum(weights[pair] for pair in zip(cycle, [*cycle[1:], cycle[0]], strict=True)) < 0


@settings(max_examples=200, deadline=None)
@given(
    truth=st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=8),
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 99), st.integers(0, 99))),
)
def test_true_bounds_never_contradict_and_imply_true_ones(
    truth: list[int], pairs: list[tuple[int, int, int, int]]
) -> None:
    mesh = Mesh()
    count = len(truth)
    for a, b, below, above in pairs:
        offset = truth[b % count] - truth[a % count]
        mesh.constrain(str(a % count), str(b % count), Interval(offset - below, offset + above), by=str(a % count))
    assert mesh.contradiction() is None
    assert mesh.verdict().convicted is None
    assert mesh.verdict().disputed == frozenset()
    for one in mesh.nodes:
        for other in mesh.nodes:
            found = mesh.offset(one, other)
            assert found is None or found.contains(truth[int(other)] - truth[int(one)])


def test_bounds_on_a_pair_intersect_and_owners_are_kept_apart() -> None:
    mesh = Mesh()
    mesh.constrain("a", "b", Interval(0, 10))
    mesh.constrain("b", "a", Interval(-8, 5))
    assert mesh.offset("a", "b") == Interval(0, 8)
    assert mesh.offset("b", "a") == Interval(-8, 0)
    assert mesh.offset("a", "c") is None
    assert mesh.offset("a", "a") == Interval(0, 0)
    mesh.constrain("a", "b", Interval(9, 12), by="a")
    assert mesh.contradiction() is not None
    assert mesh.offset("a", "b") is None


def test_a_contradiction_elsewhere_leaves_other_components_alone() -> None:
    mesh = Mesh()
    mesh.constrain("a", "b", Interval(1, 2))
    mesh.constrain("x", "y", Interval(1, 2), by="x")
    mesh.constrain("y", "x", Interval(1, 2), by="y")
    assert mesh.offset("a", "b") == Interval(1, 2)
    assert mesh.offset("x", "y") is None
    assert sorted(mesh.contradiction() or []) == ["x", "y"]


def star(honest: int, *, contradicted: int) -> Mesh:
    """Honest nodes that all agree, and a liar whose word contradicts that of some of them."""
    mesh = Mesh()
    names = [f"h{index}" for index in range(honest)]
    for one in names:
        for other in names:
            if one != other:
                mesh.constrain(one, other, Interval(-10, 10), by=one)
    for index, one in enumerate(names[: max(contradicted, 1)]):
        mesh.constrain(one, "liar", Interval(-10, 10), by=one)
        lie = 1_000 + index if index < contradicted else 0
        mesh.constrain("liar", one, Interval(lie - 5, lie + 5), by="liar")
    return mesh


def test_a_liar_contradicted_by_three_is_convicted() -> None:
    verdict = star(5, contradicted=3).verdict()
    assert verdict.convicted == "liar"
    assert verdict.disputed == frozenset()
    assert len(verdict.cycles) >= 3


def test_one_word_against_another_is_disputed() -> None:
    mesh = Mesh()
    mesh.constrain("h", "liar", Interval(-10, 10), by="h")
    mesh.constrain("liar", "h", Interval(990, 1_010), by="liar")
    mesh.constrain("h", "other", Interval(-10, 10), by="h")
    verdict = mesh.verdict()
    assert verdict.convicted is None
    assert verdict.disputed == {"h", "liar"}
    assert verdict.suspects == {"h", "liar"}


def test_more_liars_allowed_need_more_independent_cycles() -> None:
    mesh = Mesh()
    for index in range(3):
        mesh.constrain(f"h{index}", "liar", Interval(-10, 10), by=f"h{index}")
    mesh.constrain("liar", "h0", Interval(500, 510), by="liar")
    mesh.constrain("liar", "h1", Interval(500, 510), by="liar")
    assert mesh.verdict(1).convicted == "liar"
    assert mesh.verdict(2).convicted is None
    assert "liar" in mesh.verdict(2).disputed
    mesh.constrain("liar", "h2", Interval(500, 510), by="liar")
    assert mesh.verdict(2).convicted == "liar"
    assert mesh.verdict(3).convicted is None
    assert mesh.verdict(0).convicted is None


def test_a_third_partys_claim_makes_it_a_participant() -> None:
    mesh = Mesh()
    for one, other in (("a", "b"), ("c", "d"), ("e", "f")):
        mesh.constrain(one, other, Interval(0, 1), by=one)
        mesh.constrain(one, other, Interval(5, 6), by="gossip")
    assert mesh.verdict().convicted == "gossip"


def test_a_clock_ahead_of_itself() -> None:
    mesh = Mesh()
    mesh.constrain("a", "a", Interval(0, 3), by="a")
    assert mesh.contradiction() is None
    mesh.constrain("a", "a", Interval(2, 3), by="a")
    assert mesh.contradiction() == ["a"]
    with pytest.raises(ValueError, match="negative"):
        mesh.verdict(-1)
