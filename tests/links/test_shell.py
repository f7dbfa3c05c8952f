"""When whom is asked; how many messages a source may send; what is said how often."""

import structlog
from hypothesis import given
from hypothesis import strategies as st

from skewd.links.limiter import Limiter, Rate
from skewd.links.shell import Schedule
from skewd.quiet import QuietLog

S = 1_000_000_000


class TestSchedule:
    def test_the_first_questions_come_sooner_then_one_per_interval(self) -> None:
        schedule = Schedule(10.0, lambda: 1.0)
        assert schedule.wait_s(0.0) is None
        schedule.add("a", 100.0)
        asked = []
        now = 100.0
        for _ in range(8):
            assert schedule.take(now) == ["a"]
            asked.append(round(now, 6))
            wait = schedule.wait_s(now)
            assert wait is not None
            now += wait
        assert asked == [100.0, 100.1, 100.2, 100.3, 110.3, 120.3, 130.3, 140.3]

    def test_a_short_interval_is_kept_from_the_start(self) -> None:
        schedule = Schedule(0.01, lambda: 1.0)
        schedule.add("a", 0.0)
        schedule.take(0.0)
        assert schedule.wait_s(0.0) == 0.01

    def test_a_delay_is_not_made_up_for(self) -> None:
        schedule = Schedule(1.0, lambda: 1.0)
        schedule.add("a", 0.0)
        for now in (0.0, 0.11, 0.22, 0.33, 1.34):
            assert schedule.take(now) == ["a"]
        assert schedule.take(50.0) == ["a"]
        assert schedule.take(50.0) == []
        assert schedule.wait_s(50.0) == 0.5

    def test_many_are_spread_over_the_interval(self) -> None:
        phases = iter(range(100))
        schedule = Schedule(1.0, lambda: next(phases) / 100)
        for key in range(100):
            schedule.add(key, 0.0)
        for now in (0.0, 0.11, 0.22, 0.33):
            assert len(schedule.take(now)) == 100
        assert 40 <= len(schedule.take(1.08)) <= 60

    def test_who_is_removed_is_asked_no_more_and_nobody_is_asked_twice(self) -> None:
        schedule = Schedule(1.0, lambda: 1.0)
        schedule.add("a", 0.0)
        schedule.add("b", 0.0)
        schedule.take(0.0)
        schedule.add("a", 0.0)
        assert schedule.take(0.0) == []
        schedule.remove("a")
        schedule.remove("never")
        assert schedule.take(5.0) == ["b"]


class TestLimiter:
    @given(st.lists(st.integers(0, S), max_size=300), st.integers(-(10**18), 10**18))
    def test_no_more_than_burst_and_rate(self, gaps: list[int], start: int) -> None:
        limiter = Limiter(max_known=4, stranger=Rate(10, 5))
        now = start
        admitted = 0
        for gap in gaps:
            now += gap
            admitted += limiter.admit("x", now)
        assert admitted <= 5 + (now - start) * 10 // S + 1

    def test_a_steady_sender_within_the_rate_is_never_refused(self) -> None:
        limiter = Limiter(max_known=4, stranger=Rate(10, 1))
        assert all(limiter.admit("x", number * S // 10) for number in range(100))

    def test_all_strangers_together_are_limited_and_bounded(self) -> None:
        limiter = Limiter(max_known=4, max_strangers=10, strangers=Rate(100, 50))
        assert sum(limiter.admit(str(number), S) for number in range(1000)) == 50
        assert len(limiter) <= 10

    def test_the_known_are_untouched_by_strangers_and_bounded_themselves(self) -> None:
        limiter = Limiter(max_known=2, strangers=Rate(1, 1))
        limiter.know("a")
        for number in range(100):
            limiter.admit(str(number), S)
        assert limiter.admit("a", S)
        limiter.know("b")
        limiter.know("a")
        limiter.know("c")
        assert (limiter.knows("a"), limiter.knows("b"), limiter.knows("c")) == (True, False, True)
        limiter.forget("a")
        assert not limiter.knows("a")

    def test_a_clock_that_went_back_silences_nobody_for_long(self) -> None:
        limiter = Limiter(max_known=4, known=Rate(10, 2))
        limiter.know("a")
        assert limiter.admit("a", 1000 * S)
        assert limiter.admit("a", 1 * S)


def test_a_complaint_is_said_once_a_minute_with_how_many_were_kept_back() -> None:
    now = 0
    log = QuietLog("test", lambda: now)
    with structlog.testing.capture_logs() as said:
        for _ in range(10):
            log.warning("noise", address="x")
        log.warning("other")
        now = 61 * S
        log.warning("noise", address="y")
    assert [(line["event"], line.get("address"), line.get("kept_back")) for line in said] == [
        ("noise", "x", None),
        ("other", None, None),
        ("noise", "y", 9),
    ]


def test_a_complaint_about_one_does_not_hide_the_same_about_another() -> None:
    log = QuietLog("test", lambda: 0)
    with structlog.testing.capture_logs() as said:
        for about in (1, 2, 1):
            log.info("it is back", about=about, which=about)
        try:
            raise ValueError("wrong")
        except ValueError as error:
            log.error("a fault", exc_info=error)
    assert [(line["log_level"], line.get("which")) for line in said] == [("info", 1), ("info", 2), ("error", None)]
    assert "about" not in said[0]
    assert isinstance(said[2]["exc_info"], ValueError)
