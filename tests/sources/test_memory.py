"""What is remembered of a clock, and when: reports of before a step are never believed, those of after it soon are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.sources.memory import SETTLED_AFTER, Judgement, Memory, Steps

S = 1_000_000_000
MS = 1_000_000
SLACK_NS = 50 * MS
EPOCH_NS = 1_790_000_000 * S


def believe(memory: Memory, reference_ns: int, slack_ns: int) -> bool:
    return memory.judge(reference_ns, slack_ns).believed


class Wall:
    """A clock that is stepped at will, at the raw instants that the test gives it."""

    def __init__(self) -> None:
        self.raw_ns, self.minus_raw_ns, self.told = 100 * S, EPOCH_NS, False

    def sample(self) -> WallSample:
        return WallSample(self.raw_ns, Interval(self.minus_raw_ns - 200, self.minus_raw_ns + 200))

    def rate_ppb(self) -> int:
        return 0

    def reads(self, at_raw_ns: int) -> int:
        return at_raw_ns + self.minus_raw_ns

    # As a watch on it.

    def again(self) -> bool:
        told, self.told = self.told, False
        return told

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


STEPS = st.one_of(
    st.sampled_from([300_000, -300_000, S, -S, 3600 * S, -3600 * S]),
    st.integers(-2 * S, 2 * S).filter(bool),
)


@given(st.data(), st.lists(STEPS, min_size=1, max_size=3), st.booleans())
def test_no_report_of_before_a_step_is_believed_and_every_second_one_of_after_is(
    data: st.DataObject, sizes: list[int], was_asked_before: bool
) -> None:
    """A daemon that is asked every second and measures when it likes; whose memory is of the clock as it was then."""
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps)
    measured = wall.reads(wall.raw_ns - data.draw(st.integers(0, 64 * S)))
    if was_asked_before:
        assert believe(memory, measured, SLACK_NS)
    for size in sizes:
        # Some measure between the last question and the step.
        wall.raw_ns += data.draw(st.integers(1, 2 * S))
        if data.draw(st.booleans()):
            measured = wall.reads(wall.raw_ns - data.draw(st.integers(0, 100 * MS)))
        wall.raw_ns += data.draw(st.integers(1, S))
        wall.minus_raw_ns += size
        wall.told = True
        if data.draw(st.booleans()):
            assert steps.look()
        wall.raw_ns += data.draw(st.integers(1, S))
        for _ in range(data.draw(st.integers(1, 3))):
            steps.look()
            assert not believe(memory, measured, SLACK_NS)
            assert memory.waiting
            wall.raw_ns += S
    # Two measurements after it are enough, and one as a rule.
    for _ in range(2):
        wall.raw_ns += 16 * S
        measured = wall.reads(wall.raw_ns - S)
        steps.look()
        if believe(memory, measured, SLACK_NS):
            break
    assert not memory.waiting


def test_a_daemon_that_steps_the_clock_itself_is_believed_at_once() -> None:
    """It measures, steps, and tells of the measurement on the clock as it is now."""
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps)
    assert believe(memory, wall.reads(wall.raw_ns), SLACK_NS)
    wall.raw_ns += 16 * S
    measured_raw_ns = wall.raw_ns
    wall.raw_ns += 20 * MS
    wall.minus_raw_ns += 5 * S
    wall.told = True
    steps.look()
    assert believe(memory, wall.reads(measured_raw_ns), SLACK_NS)


def test_a_step_that_nobody_tells_is_found_by_looking() -> None:
    wall = Wall()
    steps = Steps(wall)
    for size, seen in ((0, False), (100_000, False), (300_000, True), (-300_000, True)):
        wall.raw_ns += 125 * MS
        wall.minus_raw_ns += size
        assert steps.look() is seen, size
    assert steps.count == 2


def test_a_step_that_somebody_else_saw_counts_once() -> None:
    wall = Wall()
    steps = Steps(wall)
    since = wall.raw_ns
    wall.raw_ns += 10 * MS
    wall.minus_raw_ns += S
    assert steps.look()
    wall.raw_ns += MS
    assert not steps.look(set_since_ns=since)
    since = wall.raw_ns
    wall.raw_ns += MS
    assert steps.look(set_since_ns=since)
    assert steps.count == 2


def test_more_steps_than_are_kept() -> None:
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps)
    measured = wall.reads(wall.raw_ns)
    assert believe(memory, measured, SLACK_NS)
    for _ in range(100):
        wall.raw_ns += S
        wall.minus_raw_ns += S
        wall.told = True
        steps.look()
        assert not believe(memory, measured, SLACK_NS)
    wall.raw_ns += S
    assert believe(memory, wall.reads(wall.raw_ns), SLACK_NS)


@given(STEPS.filter(lambda size: abs(size) > 20 * MS), st.integers(0, 64 * S))
def test_a_step_while_no_process_looked_is_found_by_the_next_one(size: int, measured_ago_ns: int) -> None:
    """What was measured before it is not believed, and what was measured after it is."""
    wall = Wall()
    before = wall.sample()
    measured = wall.reads(wall.raw_ns - measured_ago_ns)
    wall.raw_ns += 10 * S
    assert Steps(wall, wall, before).inherited == 0
    wall.minus_raw_ns += size
    steps = Steps(wall, wall, before)
    memory = Memory(steps)
    assert steps.inherited == steps.count == 1
    for _ in range(3):
        wall.raw_ns += S
        steps.look()
        assert not believe(memory, measured, SLACK_NS)
    for _ in range(2):
        wall.raw_ns += 16 * S
        steps.look()
        if believe(memory, wall.reads(wall.raw_ns - S), SLACK_NS):
            break
    assert not memory.waiting


def test_a_slew_while_no_process_looked_is_no_step() -> None:
    wall = Wall()
    before = wall.sample()
    wall.raw_ns += 10 * S
    wall.minus_raw_ns += 500_000 * 10
    assert Steps(wall, wall, before).count == 0



def settled(by_ns: int, spread_ns: int = 70_000, spread_after_ns: int = 70_000) -> list[bool]:
    """Of ten reports after a step, whether nothing of before is mixed into them."""
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps, mixes=True)
    assert memory.judge(wall.reads(wall.raw_ns), SLACK_NS, spread_ns) == Judgement(True)
    wall.minus_raw_ns += by_ns
    wall.told = True
    wall.raw_ns += MS
    steps.look()
    found = []
    for _ in range(10):
        wall.raw_ns += 4 * S
        steps.look()
        for _ in range(3):  # asked more often than it measures
            worth = memory.judge(wall.reads(wall.raw_ns), SLACK_NS, spread_after_ns)
        assert worth.believed
        assert worth.settled == (worth.wrong_ns == 0)
        assert worth.settled or worth.wrong_ns >= 2 * abs(by_ns)
        found.append(worth.settled)
    return found


def test_while_a_daemon_mixes_before_and_after_twice_the_step_is_added() -> None:
    late = [False] * (SETTLED_AFTER - 1) + [True] * (11 - SETTLED_AFTER)
    assert settled(300_000) == late
    assert settled(-2 * S, spread_after_ns=500_000_000) == late
    # What was mixed would be uncertain by a good part of the step, and this is not.
    assert settled(-2 * S) == [True] * 10


def test_a_daemon_that_was_emptied_mixes_nothing() -> None:
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps, mixes=True)
    assert memory.judge(wall.reads(wall.raw_ns), SLACK_NS, 70_000).settled
    wall.minus_raw_ns += 300_000
    wall.told = True
    wall.raw_ns += S
    steps.look()
    memory.emptied()
    wall.raw_ns += S
    assert memory.judge(wall.reads(wall.raw_ns), SLACK_NS, 70_000) == Judgement(True)
    # And what it was emptied of before the next step does not count for that one.
    memory.emptied()
    wall.minus_raw_ns += 300_000
    wall.told = True
    wall.raw_ns += MS
    steps.look()
    wall.raw_ns += 4 * S
    steps.look()
    assert not memory.judge(wall.reads(wall.raw_ns), SLACK_NS, 70_000).settled


def test_after_a_suspend_no_size_of_a_step_is_known() -> None:
    wall = Wall()
    steps = Steps(wall, wall)
    memory = Memory(steps, mixes=True)
    assert memory.judge(wall.reads(wall.raw_ns), SLACK_NS, 70_000).settled
    wall.raw_ns += MS
    wall.minus_raw_ns += 5 * S
    steps.look(disturbed=True)
    wall.raw_ns += 4 * S
    steps.look()
    assert memory.judge(wall.reads(wall.raw_ns), SLACK_NS, 70_000).settled is False
