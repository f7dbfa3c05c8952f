"""What a quiet run says, and what follows for the rest of the experiment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline.calibration import (
    AIM_NS,
    FAR_SKEW_MS,
    FARTHEST_SKEW_MS,
    FLOOR_STEP_NS,
    PAPERS_SKEWS_MS,
    TRIED_FLOOR_NS,
    backlog_grows,
    chosen_floor_ns,
    latencies_ns,
    offered_per_s,
    separation,
    service_ns,
    swept_skews_ms,
)
from skewd_pipeline.edges import EdgeRow, constant, edge_rows
from skewd_pipeline.results import STAGES, Separation
from tests.experiment.made_rows import MS, US, all_modes, block_of, raw_spans, rows_at, truth_of

SEPARATIONS = st.lists(st.integers(0, 100 * MS), min_size=1, max_size=60)


@given(st.floats(0.5, 1e5), st.none() | st.floats(0.01, 1e5))
def test_at_most_two_fifths_of_the_capacity_are_offered(capacity_per_s: float, asked: float | None) -> None:
    offered = offered_per_s(capacity_per_s, asked)
    assert 0 < offered <= 0.4 * capacity_per_s
    if asked is None:
        assert offered > 0.4 * capacity_per_s - 0.1 - 1e-9, "and not much less"
    else:
        assert offered == asked or (offered < asked and offered == offered_per_s(capacity_per_s, None))


def test_a_pipeline_that_hardly_moves_is_still_offered_something() -> None:
    assert offered_per_s(0.1, None) == 0.1


@given(SEPARATIONS)
def test_the_floor_puts_the_median_at_4_ms_or_as_near_as_the_hop_allows(separations_ns: list[int]) -> None:
    floor_ns = chosen_floor_ns(separations_ns)
    assert floor_ns >= 0
    assert floor_ns % FLOOR_STEP_NS == 0
    # Each message takes by as much longer as the floor is higher, down to no floor at all. The calmest ten are judged.
    tens = [separations_ns[begin : begin + 10] for begin in range(0, len(separations_ns), 10)]
    calmest_ns = min(median(ten) for ten in tens if len(ten) == 10 or len(tens) == 1)
    then_ns = calmest_ns + floor_ns - TRIED_FLOOR_NS
    if floor_ns:
        assert abs(then_ns - AIM_NS) <= FLOOR_STEP_NS / 2
    else:
        assert then_ns >= AIM_NS - FLOOR_STEP_NS / 2


def test_the_median_comes_to_4_ms_on_a_pipeline_that_is_run_with_the_floor() -> None:
    def quiet(work_ns: int) -> list[int]:
        block, truth = block_of(0, messages=40), truth_of(0)
        rows = edge_rows(block, {"off": raw_spans(block, truth, work_ns=work_ns)}, constant(truth))
        return [row.separation_ns("span-start") or 0 for row in rows if row.counted]

    assert median(quiet(chosen_floor_ns(quiet(TRIED_FLOOR_NS)))) == pytest.approx(AIM_NS, abs=50 * US)


def test_a_moment_in_which_the_machine_did_something_else_moves_no_floor() -> None:
    calm = [3_200 * US] * 40
    assert chosen_floor_ns([*calm[:10], *[90_000 * US] * 30]) == chosen_floor_ns(calm)


def test_nothing_that_arrived_chooses_nothing() -> None:
    with pytest.raises(ValueError, match="no message of the quiet run arrived"):
        chosen_floor_ns([])


@given(SEPARATIONS)
def test_the_sweep_has_the_papers_skews_the_median_and_one_that_breaks_everything(separations_ns: list[int]) -> None:
    skews = swept_skews_ms(None, separations_ns)
    assert list(skews) == sorted(set(skews))
    assert set(PAPERS_SKEWS_MS) <= set(skews)
    assert round(median(separations_ns) / 1e6, 2) in skews
    assert FAR_SKEW_MS <= skews[-1] <= FARTHEST_SKEW_MS
    assert skews[-1] * 1e6 >= 2 * max(separations_ns) or skews[-1] == FARTHEST_SKEW_MS


def test_a_slow_hop_moves_the_far_end_and_no_further_than_is_waited_for() -> None:
    assert swept_skews_ms(None, [4 * MS])[-1] == 50
    assert swept_skews_ms(None, [4 * MS, 61 * MS])[-1] == 130
    assert swept_skews_ms(None, [4 * MS, 4 * MS, 9_000 * MS])[-1] == 500


def test_skews_that_were_asked_for_are_swept_and_0_with_them() -> None:
    assert swept_skews_ms((7.0, 2.0), [4 * MS]) == (0.0, 2.0, 7.0)
    assert swept_skews_ms((0.0,), [4 * MS]) == (0.0,)


def test_separations_are_told_in_milliseconds() -> None:
    assert separation([number * MS for number in range(100, -1, -1)]) == Separation(0.0, 1.0, 50.0, 99.0)
    assert separation([1_234_567]) == Separation(1.2346, 1.2346, 1.2346, 1.2346)
    assert separation([]) is None


def quiet_rows(messages: int = 6) -> list[EdgeRow]:
    block, truth = block_of(7 * MS, messages=messages), truth_of(7 * MS)
    return list(edge_rows(block, all_modes(block, truth), constant(truth)))


def test_each_stages_work_is_known_once_a_message() -> None:
    found = service_ns(quiet_rows())
    assert list(found) == list(STAGES)
    for stage in STAGES[:-1]:
        assert len(found[stage]) == 6
        assert all(3_500 * US <= each < 3_900 * US for each in found[stage])
    assert len(found["consumer"]) == 6


def test_a_messages_latency_is_by_the_hosts_clock_and_not_by_the_one_that_is_off() -> None:
    skewed, straight = latencies_ns(quiet_rows()), latencies_ns(rows_at(0, messages=6))
    for took in (*skewed, *straight):
        # Four times work and hop; no clock that is off by 7 ms is in it.
        assert 4 * 3_700 * US - 4 * US <= took <= 4 * 4_200 * US
    lost = [
        replace(row, receiver_start_raw_lo_ns=None) if row.message == 2 and row.receiver == "consumer" else row
        for row in quiet_rows()
    ]
    assert len(latencies_ns(lost)) == 5


def waited(rate_per_s: float, service_s: Sequence[float]) -> list[int]:
    """What messages take at one server that takes them in turn, sent evenly."""
    took, free_s = [], 0.0
    for number, each in enumerate(service_s):
        sent_s = number / rate_per_s
        free_s = max(free_s, sent_s) + each
        took.append(round((free_s - sent_s) * 1e9))
    return took


@given(st.integers(0, 10**9), st.floats(0.2, 0.8), st.integers(30, 300))
def test_a_server_that_keeps_up_has_no_backlog(seed: int, share: float, messages: int) -> None:
    draws = random.Random(seed)
    service_s = [draws.uniform(0.5, 1.5) / 50 for _ in range(messages)]
    assert not backlog_grows(waited(50 * share / 1.5, service_s), 50 * share / 1.5)


@given(st.integers(0, 10**9), st.floats(1.2, 4.0), st.integers(30, 300))
def test_a_server_that_cannot_keep_up_has_one(seed: int, share: float, messages: int) -> None:
    draws = random.Random(seed)
    service_s = [draws.uniform(0.8, 1.2) / 50 for _ in range(messages)]
    assert backlog_grows(waited(50 * share, service_s), 50 * share)


def test_one_slow_message_or_a_few_milliseconds_are_no_backlog() -> None:
    quiet = [20 * MS] * 60
    assert not backlog_grows(quiet, 20.0)
    assert not backlog_grows([*quiet[:-1], 5_000 * MS], 20.0)
    assert not backlog_grows([4 * MS] * 40 + [9 * MS] * 20, 20.0), "longer, but by less than one message's turn"
    assert not backlog_grows([4 * MS, 900 * MS], 20.0), "too few to tell"
