"""The order of a sweep, decided before anything is started."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.law import JUDGED_EDGES_LEAST
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.plan import DIRECT, blocks, cells_of, over_time, page_offset_ns, plan, seconds, truth_ns, with_demo

USUAL = ExperimentOptions()


def test_each_skew_is_one_group_with_a_cell_for_each_transport() -> None:
    *groups, again = plan(USUAL)
    assert [group.skew_ns / 1e6 for group in groups] == list(USUAL.skews_ms)
    # What predicts is measured first and last.
    assert again.skew_ns == 0
    assert [(cell.transport, cell.floor_ns) for cell in again.cells] == [
        ("zmq", 3_500_000), ("kafka", 3_500_000),
    ]  # fmt: skip
    for group in groups:
        assert [cell.transport for cell in group.cells if cell.purpose == "sweep"] == ["zmq", "kafka"]
        assert all(cell.skew_ns == group.skew_ns for cell in group.cells)
    assert [group.skew_ns / 1e6 for group in groups if group.probe] == [0, 5]


def test_every_cell_has_a_name_of_its_own() -> None:
    names = [cell.name for cell in cells_of(plan(with_demo(replace(USUAL, demo=True))))]
    assert len(set(names)) == len(names)


def test_the_cell_without_floor_has_the_largest_skew_that_the_floor_hides_and_a_synchronized_one_predicts_it() -> None:
    found = [cell for cell in cells_of(plan(USUAL)) if cell.purpose == "floor0"]
    assert [(cell.transport, cell.skew_ns, cell.floor_ns) for cell in found] == [
        ("zmq", 0, 0), ("kafka", 0, 0), ("zmq", 3_000_000, 0), ("kafka", 3_000_000, 0),
    ]  # fmt: skip
    none = plan(replace(USUAL, service_floor_ns=0))
    assert not [cell for cell in cells_of(none) if cell.purpose == "floor0"]


def test_other_floors_are_swept_at_every_skew() -> None:
    *groups, again = plan(replace(USUAL, floors_ns=(0, 8_000_000), transports=("zmq",)))
    assert [cell.floor_ns for cell in again.cells] == [3_500_000, 0, 8_000_000]
    for group in groups:
        assert [cell.floor_ns for cell in group.cells if cell.purpose == "floor"] == [0, 8_000_000]
    assert not [cell for cell in cells_of(groups) if cell.purpose == "floor0"]


LONG = replace(USUAL, skews_ms=(0.0, 3.0, 5.0), messages=1010, transports=("zmq",), floors_ns=(0,), overload=True)


def test_cells_long_enough_to_be_judged_are_run_in_rounds_of_short_blocks() -> None:
    groups = plan(LONG)
    assert [group.round for group in groups] == sorted(group.round for group in groups)
    rounds = groups[-1].round + 1
    assert rounds == 20
    for number in range(rounds):
        mine = [group for group in groups if group.round == number]
        assert sorted(group.skew_ns for group in mine) == [0, 3_000_000, 5_000_000], "each skew once a round"
        assert all(group.probe == (number == 0 and group.skew_ns != 3_000_000) for group in mine)
    orders = {tuple(group.skew_ns for group in groups if group.round == number) for number in range(rounds)}
    assert len(orders) > 3, "in an order of its own"
    cells = cells_of(groups)
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.seed for cell in cells}) == len(cells), "no block has the same work"
    swept = [cell for cell in cells if cell.purpose in ("sweep", "floor")]
    by_cell: dict[str, list[int]] = {}
    for cell in swept:
        by_cell.setdefault(cell.cell, []).append(cell.messages)
    assert len(by_cell) == 3 * 2
    assert all(sum(sizes) == 1010 and max(sizes) - min(sizes) <= 1 for sizes in by_cell.values())
    assert [cell.last for cell in swept] == [False] * (len(swept) - 6) + [True] * 6
    once = [cell.purpose for cell in cells if cell.purpose not in ("sweep", "floor")]
    assert sorted(once) == ["calls", "calls", "direct", "overload", "saturated", "saturated", "warm-up"]
    assert [group.skew_ns for group in plan(LONG)] == [group.skew_ns for group in groups], "and the same with one seed"


def test_without_a_synchronized_cell_there_is_nothing_to_share_and_one_round() -> None:
    assert {group.round for group in plan(replace(LONG, skews_ms=(3.0, 5.0)))} == {0}
    asked = plan(replace(LONG, skews_ms=(3.0, 5.0), messages=20, rounds=2))
    assert [(group.round, {cell.messages for cell in group.cells if cell.purpose == "sweep"}) for group in asked] == [
        (0, {10}), (0, {10}), (1, {10}), (1, {10}),
    ]  # fmt: skip


@given(messages=st.integers(1, 100_000), rounds=st.none() | st.integers(1, 50))
def test_blocks_make_up_the_cell(messages: int, rounds: int | None) -> None:
    rounds = rounds and min(rounds, messages)
    sizes = blocks(messages, rounds)
    assert sum(sizes) == messages
    assert max(sizes) - min(sizes) <= 1
    if rounds is None:
        assert len(sizes) == 1 if messages < JUDGED_EDGES_LEAST else 50 <= min(sizes) <= max(sizes) <= 55
    else:
        assert len(sizes) == rounds


def test_the_overloaded_cell_has_synchronized_clocks() -> None:
    cells = cells_of(plan(replace(USUAL, overload=True, transports=("zmq",))))
    assert [cell.skew_ns for cell in cells if cell.purpose == "overload"] == [0]


def test_stages_call_each_other_where_heuristics_are_compared() -> None:
    cells = [cell for cell in cells_of(plan(USUAL)) if cell.purpose == "calls"]
    assert [(cell.skew_ns, cell.exporters) for cell in cells] == [(0, ("tag",)), (5_000_000, ("tag",))]
    assert not [cell for cell in cells_of(plan(replace(USUAL, modes=("off",)))) if cell.purpose == "calls"]


def test_the_long_run_has_a_cell_for_each_transport() -> None:
    assert over_time(USUAL) == []
    cells = over_time(replace(USUAL, duration_ns=600_000_000_000))
    assert [(cell.transport, cell.messages) for cell in cells] == [("zmq", 24_000), ("kafka", 24_000)]


def test_throughput_is_compared_without_skew() -> None:
    cells = [cell for cell in cells_of(plan(USUAL)) if cell.purpose in ("direct", "saturated")]
    assert {cell.skew_ns for cell in cells} == {0}
    assert {(cell.purpose, cell.exporters, cell.rate) for cell in cells} == {
        ("direct", (DIRECT,), 40.0),
        ("saturated", (DIRECT,), None),
        ("saturated", ("tag",), None),
    }
    skewed_only = cells_of(plan(replace(USUAL, skews_ms=(5.0,))))
    assert {cell.purpose for cell in skewed_only} == {"warm-up", "sweep", "calls"}


def test_the_demo_adds_two_large_skews_and_stays_below_two_minutes() -> None:
    demo = with_demo(replace(USUAL, demo=True))
    assert demo.skews_ms == (*USUAL.skews_ms, 50.0, 2000.0)
    assert demo.reference == "preprocess"
    assert seconds(plan(demo)) < 125
    asked = with_demo(replace(USUAL, demo=True, skews_ms=(0.0, 9.0), messages=7))
    assert (asked.skews_ms, asked.messages) == ((0.0, 9.0), 7)
    assert with_demo(USUAL) is USUAL


def test_the_demo_keeps_the_reference_that_was_asked_for() -> None:
    assert with_demo(replace(USUAL, demo=True, reference="consumer")).reference == "consumer"


def test_the_same_seed_gives_the_same_schedule() -> None:
    def schedule(seed: int) -> list[list[int]]:
        return [cell.items(200) for cell in cells_of(plan(replace(USUAL, seed=seed)))]

    assert schedule(1) == schedule(1)
    assert schedule(1) != schedule(2)
    assert all(0 <= item < 200 for items in schedule(1) for item in items)


@pytest.mark.parametrize(("direction", "truth"), [("behind", 5), ("ahead", -5)])
def test_truth_is_what_the_reference_has_more(direction: str, truth: int) -> None:
    offsets = {"producer": 0, "inference": page_offset_ns(5, direction)}
    assert truth_ns(offsets, "producer") == {"producer": 0, "inference": truth}


def test_a_transport_that_cannot_be_run_here_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from skewd_pipeline import transports
    from skewd_pipeline.experiment import possible

    monkeypatch.setattr(transports, "aeron_missing", lambda: "Aeron needs Python 3.12 or newer")
    assert possible(("zmq", "aeron")) == (("zmq",), {"aeron": "Aeron needs Python 3.12 or newer"})
    assert possible(("kafka",)) == (("kafka",), {})
    monkeypatch.setattr(transports, "aeron_missing", lambda: None)
    assert possible(("zmq", "aeron")) == (("zmq", "aeron"), {})
