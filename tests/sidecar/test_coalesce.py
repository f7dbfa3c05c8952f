"""Who goes with whom and when: policy alone, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_sidecar.forward.coalesce import Gathering, Limits

LIMITS = Limits(requests_max=4, joined_max_bytes=100, in_flight_max=3, gather_s=0.010, hold_s=0.002)


def waiting(count: int, size: int = 1, at_s: float = 0.0, limits: Limits = LIMITS) -> Gathering[int]:
    gathering: Gathering[int] = Gathering(limits)
    for number in range(count):
        gathering.add(number, size, True, at_s)
    return gathering


def test_who_is_alone_never_waits_and_what_comes_meanwhile_gathers_until_that_ends() -> None:
    gathering = waiting(1)
    assert gathering.due(in_flight=0, now_s=0.0)
    assert gathering.take() == [0]
    for number in (1, 2):
        gathering.add(number, 1, True, 0.001)
        assert not gathering.due(in_flight=1, now_s=0.001)
    gathering.idle(0.003)
    assert gathering.due(in_flight=0, now_s=0.003)
    assert gathering.take() == [1, 2]
    assert gathering.due_in_s(0, 0.004) is None


def test_as_many_as_went_last_are_expected_but_not_for_long() -> None:
    gathering = waiting(3)
    assert gathering.take() == [0, 1, 2]
    gathering.idle(1.0)
    gathering.add(3, 1, True, 1.0001)
    assert gathering.due_in_s(0, 1.0001) == pytest.approx(0.002)
    gathering.add(4, 1, True, 1.001)
    assert not gathering.due(0, 1.0015)
    gathering.add(5, 1, True, 1.0016)
    assert gathering.due(0, 1.0016)
    assert gathering.take() == [3, 4, 5]
    # Fewer come: after the hold those go, and fewer are expected from then on.
    gathering.idle(2.0)
    gathering.add(6, 1, True, 2.001)
    assert not gathering.due(0, 2.002)
    assert gathering.due(0, 2.0031)
    assert gathering.take() == [6]
    gathering.add(7, 1, True, 3.0)
    assert gathering.due(0, 3.0)


def test_a_far_next_hop_is_not_waited_for_beyond_the_gathering_time_nor_beyond_what_may_be_under_way() -> None:
    gathering = waiting(2, at_s=5.0)
    assert gathering.due_in_s(1, 5.004) == pytest.approx(0.006)
    assert gathering.due(1, 5.0101)
    assert gathering.due(2, 5.0101)
    assert gathering.due_in_s(3, 9.0) is None


def test_a_full_body_goes_beside_what_is_under_way() -> None:
    assert waiting(4).due(1, 0.0)
    assert waiting(2, size=50).due(1, 0.0)
    assert not waiting(2, size=49).due(1, 0.0)
    assert waiting(6).take() == [0, 1, 2, 3]
    assert waiting(3, size=40).take() == [0, 1]
    assert waiting(3).take(single=True) == [0]


def test_a_request_that_may_not_be_joined_goes_alone_at_once() -> None:
    gathering = waiting(1)
    gathering.add(1, 101, True, 0.0)
    gathering.add(2, 1, False, 0.0)
    gathering.add(3, 1, True, 0.0)
    assert gathering.due(1, 0.0)
    assert [gathering.take() for _ in range(4)] == [[0], [1], [2], [3]]


@given(st.lists(st.tuples(st.integers(0, 130), st.booleans()), min_size=1, max_size=30), st.booleans())
def test_all_leave_once_in_their_order_within_the_limits(requests: list[tuple[int, bool]], single: bool) -> None:
    gathering: Gathering[int] = Gathering(LIMITS)
    for number, (size, joinable) in enumerate(requests):
        gathering.add(number, size, joinable, 0.0)
    left: list[int] = []
    while len(gathering):
        assert gathering.due(0, 1.0)
        batch = gathering.take(single)
        assert 1 <= len(batch) <= (1 if single else 4)
        if len(batch) > 1:
            assert sum(requests[number][0] for number in batch) <= 100
            assert all(requests[number][1] for number in batch)
        left += batch
    assert left == list(range(len(requests)))
    assert gathering.take() == []
