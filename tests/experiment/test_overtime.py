"""A clock's story: the schedule, the truth about it, and the windows, on the shipped code in simulated time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.interval import Interval
from skewd_pipeline.law import prediction_interval
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.overtime import STEP_NS, Story, Trajectory, false_alarms, schedule
from skewd_pipeline.results import STAGES, Results, Separations, Window
from skewd_pipeline.simulated import long_run
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_AFTER, RECEIVED, SENT, SpanRecord

SECOND = 1_000_000_000
MS = 1_000_000
# Drift enough for a short run: what ten minutes at 50 ppm do, in one and a half at 90 ppm and a low floor.
SHORT = ExperimentOptions(
    duration_ns=90 * SECOND, drift_ppb=90_000, service_floor_ns=1_500_000, simulated=True, rate=20.0
)


@pytest.fixture(scope="module")
def behind() -> Results:
    return long_run(SHORT, ())


@given(st.integers(10, 100_000), st.integers(1, 90_000), st.sampled_from(["behind", "ahead"]))
def test_the_story_ends_where_it_began(duration_s: int, drift_ppb: int, direction: str) -> None:
    duration_ns = duration_s * SECOND
    changes = schedule(duration_ns, drift_ppb, direction)
    assert [change.what for change in changes] == ["drift", "step", "step", "slew", "hold"]
    own = -drift_ppb if direction == "behind" else drift_ppb
    deviation = Trajectory()
    deviation.line(0, 0, 0)
    for change in changes:
        deviation.line(
            change.at_ns, deviation.at(change.at_ns) + change.step_ns, own + change.steer_ppb, step=bool(change.step_ns)
        )
        # A kernel takes 500 ppm at most.
        assert abs(change.steer_ppb) <= 500_000
    assert abs(deviation.at(duration_ns)) <= 10 + duration_ns // SECOND
    assert deviation.at(duration_ns) == deviation.at(changes[-1].at_ns)
    just_before = changes[1].at_ns - 1
    assert deviation.at(just_before) == own * just_before // SECOND
    assert abs(deviation.at(changes[1].at_ns) - deviation.at(just_before)) == pytest.approx(STEP_NS, abs=2)
    assert deviation.near_step(changes[1].at_ns)
    assert not deviation.near_step(changes[3].at_ns + SECOND)


def test_lines_come_in_order() -> None:
    deviation = Trajectory()
    assert deviation.at(5) == 0
    deviation.line(10, 7, 0)
    assert deviation.at(5) == 7
    with pytest.raises(ValueError, match="earlier"):
        deviation.line(9, 0, 0)


@given(
    lines=st.lists(
        st.tuples(
            st.integers(0, 10**9), st.integers(0, 10**8), st.integers(-(10**8), 10**8), st.integers(-(10**5), 10**5)
        ),
        min_size=1,
        max_size=6,
    ),
    instant=st.integers(0, 7 * 10**9),
    before=st.integers(0, 10**8),
    after=st.integers(0, 10**8),
    when=st.floats(0, 1),
)
def test_the_truth_is_among_what_is_possible_wherever_a_process_had_to_wait(
    lines: list[tuple[int, int, int, int]], instant: int, before: int, after: int, when: float
) -> None:
    """Each change happens somewhere between two notes, each stamp too."""
    noted, real = Trajectory(), Trajectory()
    at = shown = rate = 0
    for trajectory in (noted, real):
        trajectory.line(0, 0, 0)
    for wait, doing, step, new_rate in lines:
        since = at + wait
        changed, done = since + round(doing * when), since + doing
        shown += rate * (changed - at) // SECOND + step
        rate = new_rate
        real.line(changed, shown, rate)
        shown += rate * (done - changed) // SECOND
        noted.line(done, shown, rate, step=True, since_ns=since)
        at = done
    possible = noted.between(instant - before, instant + after)
    truth = real.at(instant)
    assert any(each.widen(3 * len(lines)).contains(truth) for each in possible)
    if len(possible) == 1:
        assert possible[0].width <= 10**5 * (before + after) // SECOND + 30


def test_only_a_stamp_from_the_middle_of_a_change_has_two_truths() -> None:
    deviation = Trajectory()
    deviation.line(0, -3 * MS, 0)
    deviation.line(1_010 * MS, 17 * MS, 0, step=True, since_ns=1_000 * MS)
    before, after = Interval(-3 * MS, -3 * MS), Interval(17 * MS, 17 * MS)
    for first, last, expected in (
        (900, 999, [before]),
        (999, 1_000, [before, after]),
        (1_002, 1_003, [before, after]),
        (1_009, 1_020, [before, after]),
        (1_010, 1_020, [after]),
        (900, 2_000, [before, after]),
    ):
        found = deviation.between(first * MS, last * MS)
        assert [each.midpoint for each in found] == [each.midpoint for each in expected], (first, last)
        assert all(each.width <= 8 for each in found)


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "said_ms", "ambiguous", "missed"),
    [
        (90, 92, 3, 0, 0),
        (90, 92, -17, 0, 1),
        (112, 113, -17, 0, 0),
        (112, 113, 3, 0, 1),
        # The process waited between the stamp and its note, or the experiment before it noted the step.
        (90, 130, 3, 1, 0),
        (90, 130, -17, 1, 0),
        (103, 104, -17, 1, 0),
        (103, 104, 9, 1, 1),
    ],
)
def test_a_bound_misses_only_when_it_holds_no_truth_that_is_possible(
    before_ms: int, after_ms: int, said_ms: int, ambiguous: int, missed: int
) -> None:
    deviation = Trajectory()
    deviation.line(0, -3 * MS, 0)
    deviation.line(110 * MS, 17 * MS, 0, step=True, since_ns=100 * MS)
    story = Story(
        run="r", transport="zmq", stage="inference", deviation=deviation, begin_ns=0, duration_ns=20 * SECOND, known={}
    )
    said: dict[str, str | bool | int | float] = {
        HOST_RAW: before_ms * MS,
        HOST_RAW_AFTER: after_ms * MS,
        "clock.offset_ns": said_ms * MS,
        "clock.uncertainty_ns": 100_000,
    }
    story.add("tag", [SpanRecord("s", "", "t", "inference", 1, 2, said, {})])
    assert (story.spans, story.ambiguous, story.bound_misses) == (1, ambiguous, missed)


def windows(results: Results, **wanted: object) -> list[Window]:
    return [each for each in results.windows if all(getattr(each, key) == value for key, value in wanted.items())]


def test_the_rate_follows_the_skew_and_rewriting_keeps_it_at_zero(behind: Results) -> None:
    into = windows(behind, mode="off", rule="span-start", direction="behind")
    out = windows(behind, mode="off", rule="span-start", direction="ahead")
    assert len(into) == len(out) == 60
    early, drifted = into[2], [each for each in into if 26 <= each.start_s < 30]
    assert early.violation_rate == 0
    assert all(each.violation_rate > 0.5 for each in drifted), "2.3 ms behind and more, separations from 1.7 ms"
    stepped = [each for each in into if 33 <= each.start_s < 48]
    assert all(each.violation_rate == 0 and each.skew_ms[2] < -14 for each in stepped)
    assert all(each.violation_rate == 1 for each in out if 33 <= each.start_s < 48)
    assert all(each.violation_rate == 0 for each in (*into[-6:], *out[-6:])), "held where it should be"
    fixed = windows(behind, mode="rewrite")
    assert len(fixed) == 240
    assert sum(each.violations for each in fixed) == 0
    # Only stamps in the readings that the step back repeated are unsure, and negative hops within the bound.
    assert sum(each.indeterminate for each in fixed if each.rule == "span-start") <= 4


def test_each_window_is_predicted(behind: Results) -> None:
    judged = [each for each in windows(behind, mode="off") if each.predicted_rate is not None]
    assert len(judged) == 240
    apart = 0
    for each in judged:
        assert each.predicted_rate is not None
        count = round(each.predicted_rate * 2000)
        least, greatest = prediction_interval(count, 2000, each.edges)
        apart += not least <= each.violations <= greatest
    assert apart <= 0.05 * len(judged)


def test_edge_by_edge_the_law_is_exact(behind: Results) -> None:
    for each in windows(behind, mode="off"):
        assert each.own_rate == each.violation_rate


def test_the_truth_is_inside_the_bound_through_steps_and_slews(behind: Results) -> None:
    (run,) = behind.long_runs
    assert (run.bound_misses, run.spans_unsynchronized) == (0, 0)
    assert run.spans == 90 * 20 * 3 * 2
    assert len(run.clock) == 241
    for sample in run.clock:
        if sample.least_ms is not None and sample.greatest_ms is not None:
            assert sample.least_ms <= sample.skew_ms <= sample.greatest_ms
    assert sum(sample.least_ms is not None for sample in run.clock) > 235
    assert {event.what for event in run.events} == {"drift", "step", "slew", "hold"}


def test_the_signal_goes_down_while_the_clock_turns_edges_round_and_not_otherwise(behind: Results) -> None:
    (run,) = behind.long_runs
    assert run.false_alarms == 0
    assert run.clock[1].health_clock, "nothing has happened yet"
    down = [sample.at_s for sample in run.clock if not sample.health_clock]
    assert down, "the clock was off by 20 ms"
    # Every moment at which the clock had turned a child span round is one at which the signal was down.
    late = [sample for sample in run.clock if 34 < sample.at_s < 48]
    assert late
    assert not any(sample.health_clock or sample.clock_innocent for sample in late)
    assert not [row for row in behind.confusion if row.truth == "clock" and row.verdict in ("ordered", "impossible")]
    assert not [row for row in behind.confusion if row.truth == "in order" and row.verdict in ("skewed", "impossible")]


def test_ahead_is_the_mirror_image() -> None:
    short = replace(SHORT, duration_ns=40 * SECOND, direction="ahead", reference="postprocess", rate=10.0)
    results = long_run(short, ())
    stepped = [each for each in windows(results, mode="off", rule="span-start", direction="behind")
               if 15 <= each.start_s < 21]  # fmt: skip
    assert stepped
    assert all(each.violation_rate == 1 for each in stepped), "ahead, and stepped back beyond the reference"
    assert sum(each.violations for each in windows(results, mode="rewrite")) == 0
    assert results.long_runs[0].bound_misses == 0


def test_the_same_seed_gives_the_same_story() -> None:
    short = replace(SHORT, duration_ns=10 * SECOND)
    assert long_run(short, ()) == long_run(short, ())
    assert long_run(short, ()).windows != long_run(replace(short, seed=2), ()).windows


def test_measured_separations_are_drawn_from() -> None:
    short = replace(SHORT, duration_ns=10 * SECOND, transports=("zmq",))
    measured = [
        Separations(transport="zmq", rule=rule, floor_ms=1.5, edge=edge, separations_ns=[value] * 5)
        for edge in ("preprocess>inference", "inference>postprocess")
        for rule, value in (("send-receive", 400_000), ("span-start", 5 * MS))
    ]
    results = long_run(short, measured)
    assert results.long_runs[0].run == "zmq, simulated"
    before = [each for each in windows(results, mode="off", direction="ahead") if 4 <= each.start_s < 5]
    # 20 ms ahead after the step: everything breaks, and all of it was predicted.
    assert [each.violation_rate for each in before] == [each.predicted_rate for each in before] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"no separations of preprocess>inference on zmq with a floor of 1\.5 ms"):
        long_run(short, measured[2:])


def test_spans_may_come_late_twice_and_without_a_parent() -> None:
    deviation = Trajectory()
    deviation.line(0, -7 * MS, 0)
    story = Story(
        run="r", transport="zmq", stage="inference", deviation=deviation, begin_ns=0, duration_ns=20 * SECOND, known={}
    )

    def span(number: int, place: int) -> SpanRecord:
        at = number * 100 * MS + place * 4 * MS
        shown = at - (7 * MS if STAGES[place] == "inference" else 0)
        events = {SENT: shown + 3 * MS, RECEIVED: shown}
        parent = f"{number}-{place - 1}" if place else ""
        return SpanRecord(
            f"{number}-{place}", parent, str(number), STAGES[place], shown, shown + 3 * MS, {HOST_RAW: at}, events
        )

    spans = [span(number, place) for number in range(100) for place in range(5)]
    story.add("off", reversed(spans))
    story.add("off", spans)
    found = {(each.rule, each.direction): 0 for each in story.windows()}
    for each in story.windows():
        found[each.rule, each.direction] += each.violations
        assert each.violation_rate == (each.direction == "behind")
    assert found == {(rule, way): 100 * (way == "behind") for rule in ("send-receive", "span-start")
                     for way in ("behind", "ahead")}  # fmt: skip
    assert false_alarms(story.clock()) == 0
