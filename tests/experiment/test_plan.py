"""The order of a sweep, decided before anything is started."""

from __future__ import annotations

from dataclasses import replace

import pytest

from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.plan import DIRECT, cells_of, page_offset_ns, plan, seconds, truth_ns, with_demo

USUAL = ExperimentOptions()


def test_each_skew_is_one_group_with_a_cell_for_each_transport() -> None:
    groups = plan(USUAL)
    assert [group.skew_ns / 1e6 for group in groups] == list(USUAL.skews_ms)
    for group in groups:
        assert [cell.transport for cell in group.cells if cell.purpose == "sweep"] == ["zmq", "kafka"]
        assert all(cell.skew_ns == group.skew_ns for cell in group.cells)
    assert [group.skew_ns / 1e6 for group in groups if group.probe] == [0, 5]


def test_every_cell_has_a_name_of_its_own() -> None:
    names = [cell.name for cell in cells_of(plan(with_demo(replace(USUAL, demo=True))))]
    assert len(set(names)) == len(names)


def test_the_cell_without_floor_has_the_largest_skew_that_the_floor_hides() -> None:
    (zmq, kafka) = [cell for cell in cells_of(plan(USUAL)) if cell.purpose == "floor0"]
    assert (zmq.transport, kafka.transport) == ("zmq", "kafka")
    assert (zmq.floor_ns, zmq.skew_ns) == (0, 3_000_000)
    none = plan(replace(USUAL, service_floor_ns=0))
    assert not [cell for cell in cells_of(none) if cell.purpose == "floor0"]


def test_throughput_is_compared_without_skew() -> None:
    cells = [cell for cell in cells_of(plan(USUAL)) if cell.purpose in ("direct", "saturated")]
    assert {cell.skew_ns for cell in cells} == {0}
    assert {(cell.purpose, cell.exporters, cell.rate) for cell in cells} == {
        ("direct", (DIRECT,), 40.0),
        ("saturated", (DIRECT,), None),
        ("saturated", ("tag",), None),
    }
    skewed_only = cells_of(plan(replace(USUAL, skews_ms=(5.0,))))
    assert {cell.purpose for cell in skewed_only} == {"warm-up", "sweep"}


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
