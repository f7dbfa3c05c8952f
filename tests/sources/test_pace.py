"""When a time server is asked next."""

from hypothesis import given
from hypothesis import strategies as st

from skewd.sources.pace import SLOWEST_S, SOON_S, Pace


def test_a_burst_then_ever_less_often_up_to_the_interval() -> None:
    pace = Pace(64.0)
    assert [pace.answered() for _ in range(10)] == [2, 2, 2, 4, 8, 16, 32, 64, 64, 64]


def test_a_short_interval_is_kept_from_the_start() -> None:
    pace = Pace(0.5)
    assert {pace.answered() for _ in range(10)} == {0.5}


def test_a_lost_answer_is_asked_for_again_soon_and_a_silent_server_at_the_interval() -> None:
    pace = Pace(16.0)
    for _ in range(10):
        pace.answered()
    assert [pace.failed() for _ in range(5)] == [2, 2, 16, 16, 16]
    assert pace.silent
    assert [pace.answered() for _ in range(7)] == [2, 2, 2, 4, 8, 16, 16]
    assert not pace.silent


def test_one_lost_answer_makes_no_burst() -> None:
    pace = Pace(16.0)
    for _ in range(10):
        pace.answered()
    pace.failed()
    assert [pace.answered() for _ in range(4)] == [4, 8, 16, 16]


def test_a_server_that_wants_less_is_never_hurried_again() -> None:
    pace = Pace(16.0)
    assert pace.slow_down() == 32
    assert [pace.answered(), pace.failed(), pace.failed(), pace.failed(), pace.answered()] == [32] * 5
    for _ in range(20):
        pace.slow_down()
    assert pace.interval_s == SLOWEST_S
    long = Pace(4000.0)
    assert long.slow_down() == 4000


@given(st.floats(0.1, 86_400), st.lists(st.sampled_from(["answered", "failed", "slow_down"]), max_size=50))
def test_never_longer_than_the_interval_nor_shorter_than_soon(interval_s: float, events: list[str]) -> None:
    pace = Pace(interval_s)
    slowed = False
    for event in events:
        gap_s = getattr(pace, event)()
        slowed |= event == "slow_down"
        assert min(SOON_S, interval_s) <= gap_s <= pace.interval_s
        assert not slowed or gap_s == pace.interval_s
