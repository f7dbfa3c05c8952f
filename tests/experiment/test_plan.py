"""The order of a run, decided before anything is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.options import ExperimentOptions, as_run
from skewd_pipeline.plan import (
    BLOCK_MESSAGES,
    CALLS,
    UNPACED_PAIRS,
    CellPlan,
    Group,
    Planner,
    blocks,
    page_offset_ns,
    seconds,
    transport_seconds,
    truth_ns,
)

USUAL = ExperimentOptions()
SKEWS_MS = (0.0, 3.0, 4.12, 5.0, 10.0, 50.0)
MS = 1_000_000


def planner(transport: str = "zmq", **changes: object) -> Planner:
    return Planner(replace(USUAL, **changes), transport)  # type: ignore[arg-type]


def swept(groups: Iterable[Group]) -> list[CellPlan]:
    return [cell for group in groups for cell in group.cells if cell.purpose == "sweep"]


@given(st.integers(2, 700), st.none() | st.integers(1, 12), st.integers(0, 1000))
def test_each_round_has_every_skew_once_and_0_among_them(messages: int, rounds: int | None, seed: int) -> None:
    rounds = rounds and min(rounds, messages)
    groups = planner(messages=messages, rounds=rounds, seed=seed).sweep(SKEWS_MS, 3 * MS, 18.0)
    assert [group.round for group in groups] == sorted(group.round for group in groups)
    by_round = Counter((group.round, group.skew_ns) for group in groups)
    count = len({number for number, _ in by_round})
    assert by_round == Counter((number, round(skew * MS)) for number in range(count) for skew in SKEWS_MS)
    by_cell = Counter[str]()
    for cell in swept(groups):
        by_cell[cell.cell] += cell.messages
        assert (cell.floor_ns, cell.rate, cell.exporters) == (3 * MS, 18.0, ("off", "tag", "rewrite"))
    assert by_cell == Counter({f"zmq sweep at {skew:g} ms": messages for skew in SKEWS_MS})


def test_rounds_have_orders_of_their_own() -> None:
    groups = planner(messages=1000).sweep(SKEWS_MS, 0, 18.0)
    orders = {tuple(group.skew_ns for group in groups if group.round == number) for number in range(20)}
    assert len(orders) > 10
    other = planner("kafka", messages=1000).sweep(SKEWS_MS, 0, 18.0)
    assert [group.skew_ns for group in groups] != [group.skew_ns for group in other]


def everything(options: ExperimentOptions) -> list[CellPlan]:
    cells = []
    for transport in options.transports:
        plan = Planner(options, transport)
        cells += [plan.warm_up(0), *plan.unpaced(0), plan.quiet(0, 18.0), plan.quiet(0, 18.0, 1)]
        cells += [plan.calibration(0, 18.0), plan.calibration(0, 9.0, 1), plan.overload(0, 18.0)]
        cells += [cell for group in plan.sweep(SKEWS_MS, 0, 18.0) for cell in group.cells]
        cells += [*plan.loads(0, 45.0), plan.over_time(0, 18.0, 60 * 10**9)]
    return cells


@pytest.mark.parametrize("demo", [True, False])
def test_every_block_has_a_name_and_work_of_its_own(demo: bool) -> None:
    cells = everything(as_run(replace(USUAL, demo=demo, loads=(0.2, 0.5, 0.9))))
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.seed for cell in cells}) == len(cells)
    assert not any(" " in cell.name for cell in cells), "it is half of each message's identity"


def test_the_same_seed_gives_the_same_schedule() -> None:
    options = replace(USUAL, loads=(0.5,))
    once, again, other = everything(options), everything(options), everything(replace(options, seed=2))
    assert once == again
    assert [cell.items(200) for cell in once] == [cell.items(200) for cell in again]
    assert [cell.sent_at_s() for cell in once] == [cell.sent_at_s() for cell in again]
    assert [cell.items(200) for cell in once] != [cell.items(200) for cell in other]
    assert [cell.cell for cell in once] != [cell.cell for cell in other], "the order of the skews too"
    assert all(0 <= item < 200 for cell in once for item in cell.items(200))


def test_unpaced_pairs_are_run_in_alternate_order() -> None:
    cells = planner().unpaced(3 * MS)
    ways = [cell.exporters for cell in cells]
    assert len(ways) == 2 * UNPACED_PAIRS
    pairs = [tuple(ways[place : place + 2]) for place in range(0, len(ways), 2)]
    assert pairs[:2] == [(("off",), ("tag",)), (("tag",), ("off",))]
    assert all(pair == pairs[number % 2] for number, pair in enumerate(pairs))
    assert {(cell.rate, cell.skew_ns, cell.floor_ns) for cell in cells} == {(None, 0, 3 * MS)}
    alone = planner(modes=("rewrite",)).unpaced(0)
    assert {cell.exporters for cell in alone} == {("rewrite",)}, "nothing to compare, but a capacity to know"


def test_what_predicts_is_long_enough_and_no_longer_than_its_cells() -> None:
    assert planner(messages=200).calibration(0, 18.0).messages == 200
    assert planner(messages=40).calibration(0, 18.0).messages == 60
    assert planner(messages=10).calibration(0, 18.0).messages == 20
    assert planner(messages=10).quiet(0, 18.0).messages == 10
    assert {planner(messages=10).calibration(0, 18.0, number).skew_ns for number in range(2)} == {0}


def test_skewd_check_is_asked_once_in_the_first_transports_first_round() -> None:
    groups = planner(messages=200).sweep(SKEWS_MS, 0, 18.0)
    assert sorted((group.skew_ns, group.round) for group in groups if group.probe) == [(0, 0), (5 * MS, 0)]
    assert not [group for group in planner("kafka").sweep(SKEWS_MS, 0, 18.0) if group.probe]


def test_stages_call_each_other_in_the_first_transport_and_not_in_the_demo() -> None:
    def calls(plan: Planner) -> list[CellPlan]:
        return [cell for group in plan.sweep(SKEWS_MS, 0, 18.0) for cell in group.cells if cell.purpose == "calls"]

    found = calls(planner(messages=200))
    assert {(cell.transport, cell.skew_ns, cell.exporters, cell.round) for cell in found} == {
        (CALLS, 0, ("tag",), 0), (CALLS, 5 * MS, ("tag",), 0),
    }  # fmt: skip
    assert len(found) == 2
    assert calls(planner("kafka")) == []
    assert calls(planner(demo=True)) == []
    assert calls(planner(modes=("off", "rewrite"))) == [], "nobody tags what is to be compared"


def test_at_rising_load_messages_come_at_random_times_at_one_skew() -> None:
    cells = planner(loads=(0.2, 0.95), messages=50).loads(0, 45.0)
    assert [cell.rate for cell in cells] == pytest.approx([9.0, 42.75])
    assert [cell.cell for cell in cells] == ["zmq load 0", "zmq load 1"]
    assert {(cell.skew_ns, cell.messages, cell.poisson) for cell in cells} == {(5 * MS, 300, True)}
    (long,) = planner(loads=(0.5,), messages=20_000).loads(0, 40.0)
    times = long.sent_at_s()
    assert times is not None
    assert (len(times), times[0]) == (20_000, 0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 0
    # Poisson: gaps are exponential, so as many are longer than their mean as e says.
    assert fmean(gaps) == pytest.approx(1 / 20, rel=0.03)
    assert sum(gap > 1 / 20 for gap in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)
    even = planner().calibration(0, 20.0)
    assert (even.poisson, even.sent_at_s()) == (False, None)


def test_the_overloaded_and_the_long_run_have_clocks_as_they_are() -> None:
    assert planner(messages=70).overload(0, 18.0).skew_ns == 0
    assert planner(messages=70).overload(0, 18.0).messages == 70
    assert planner().over_time(0, 18.0, 600 * 10**9).messages == 10_800


@given(messages=st.integers(1, 100_000), rounds=st.none() | st.integers(1, 50))
def test_blocks_make_up_the_cell(messages: int, rounds: int | None) -> None:
    rounds = rounds and min(rounds, messages)
    sizes = blocks(messages, rounds)
    assert sum(sizes) == messages
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    if rounds is not None:
        assert len(sizes) == rounds
    elif messages >= 2 * BLOCK_MESSAGES:
        assert BLOCK_MESSAGES <= min(sizes) < 2 * BLOCK_MESSAGES
    else:
        assert len(sizes) == min(2, messages)


def test_the_demo_is_short_and_shows_what_the_whole_does() -> None:
    demo = as_run(replace(USUAL, demo=True))
    assert demo.skews_ms is None
    assert demo.transports == ("zmq", "kafka")
    assert (demo.messages, demo.rounds) == (60, 3)
    assert as_run(replace(USUAL, demo=True, messages=7, rounds=2)).messages == 7
    assert as_run(replace(USUAL, demo=True, rounds=2)).rounds == 2
    assert as_run(USUAL) is USUAL


def test_what_is_said_to_take_longer_has_more_to_do() -> None:
    assert seconds(replace(USUAL, demo=True, messages=60, rounds=3)) < 180, "as the README says, on two cores"
    least = transport_seconds(USUAL, "zmq", 45.0)
    assert least > (200 * 6 + 100) / (0.4 * 45.0), "its messages alone"
    for more in (
        {"messages": 400},
        {"rounds": 20},
        {"skews_ms": tuple(map(float, range(9)))},
        {"overload": True},
        {"loads": (0.5,)},
        {"duration_ns": 60 * 10**9},
        {"rate": 5.0},
    ):
        assert transport_seconds(replace(USUAL, **more), "zmq", 45.0) > least, more
    assert transport_seconds(USUAL, "zmq", 20.0) > least
    assert transport_seconds(USUAL, "kafka", 45.0) > least
    both = seconds(USUAL) - seconds(replace(USUAL, transports=("zmq",)))
    assert both == pytest.approx(transport_seconds(USUAL, "kafka", 60.0))


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
