"""What the terminal shows: predictions, cells, and the ending that people remember."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from skewd_pipeline.display import LINES_MOST, WIDTH, Display, cell_line, ending, prediction_lines
from skewd_pipeline.results import Missing, Results
from tests.experiment.made_results import busy, calibration_of, demo, failing, over_time, rate_of, run_of, whole

GOOD = """\
On this machine ZeroMQ breaks between 3 and 4.02 ms (predicted 3.7): 63% there
and Kafka mock breaks between 3 and 5 ms (predicted 4.6): 46% there
One message over ZeroMQ, inference 5 ms behind: as stamped, then rewritten
producer    ████████████
preprocess              ████████████
inference            ██████████████████ ◄ 1.1 ms before its parent
postprocess                                            █████████████
consumer                                                            ████████████
producer    ▓▓▓▓▓▓▓▓▓▓▓▓
preprocess              ▓▓▓▓▓▓▓▓▓▓▓▓
inference                            ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ ± 0.05 ms
postprocess                                            ▓▓▓▓▓▓▓▓▓▓▓▓▓
consumer                                                            ▓▓▓▓▓▓▓▓▓▓▓▓
            0 ms           5 ms            10 ms           15 ms           20 ms
% of child spans that start before their parent, by ms of skew
ZeroMQ     predicted measured rewritten  Kafka mock predicted measured rewritten
0, 3               0        0         0  0, 3               0        0         0
4.02      63 (54-72)       63         0  5         46 (37-55)       46         0
5        97 (88-100)       97         0  5.31      63 (54-72)       63         0
10, 50           100      100         0  10              99.6     99.5         0
                                         50               100      100         0
all 4 claims that must hold on any machine hold: 0 of 64,800 checks failed
report: xdg-open out/demo/report.html   # every edge: out/demo/edges.parquet
next:   skewd experiment run --stage preprocess --direction ahead  # other end
        skewd run  # bound this machine's own clock; then: skewd check"""


def shown(results: Results) -> list[str]:
    """The ending as it is read, without its colours."""
    return [Text.from_markup(line).plain for line in ending(results, Path("out/demo/report.html"), Path("out/demo"))]


def test_the_ending_of_a_good_demo() -> None:
    assert shown(demo()) == GOOD.splitlines()


@pytest.mark.parametrize("slower_ms", [0.0, 0.7, 4.0])
def test_the_ending_fits_a_terminal(slower_ms: float) -> None:
    lines = shown(demo(slower_ms))
    assert len(lines) <= LINES_MOST
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("made", [failing, busy, whole, over_time])
def test_no_line_of_any_ending_wraps(made: Callable[[], Results]) -> None:
    assert all(len(line) <= WIDTH for line in shown(made()))


def test_no_rate_is_left_out_where_every_skew_shows_another() -> None:
    results = demo()
    for transport in ("zmq", "kafka"):
        rows = [row for row in results.runs if (row.transport, row.mode, row.rule) == (transport, "off", "span-start")]
        for place, row in enumerate(rows):
            row.violation_rate = 0.1 * place
    lines = shown(results)
    assert len(lines) == LINES_MOST
    heading = next(place for place, line in enumerate(lines) if "predicted measured" in line)
    measured = [line[20:29].strip() for line in lines[heading + 1 : heading + 7]]
    assert measured == ["0", "10", "20", "30", "40", "50"]


def test_the_headline_states_no_threshold_that_the_run_did_not_show() -> None:
    assert shown(demo(4.0))[1] == "and Kafka mock breaks between 5.31 and 10 ms (predicted 8.6): 83% there"
    quiet = demo()
    quiet.runs = [run_of("zmq", skew, "off", "span-start") for skew in (0.0, 3.0)]
    assert shown(quiet)[0] == "On this machine ZeroMQ does not break up to 3 ms (predicted 3.7)"
    late = demo()
    late.runs = [run_of("zmq", skew, "tag", "span-start") for skew in (5.0, 10.0)]
    assert shown(late)[0].startswith("On this machine ZeroMQ breaks at 5 ms, the least skew run")


def test_what_does_not_hold_has_a_line_each_and_nothing_says_that_all_is_well() -> None:
    said = "\n".join(shown(failing()))
    assert "FAILS  bounds: 3 of 24,000 spans: zmq 5 ms" in said
    assert "hold:" not in said
    said = "\n".join(shown(busy()))
    assert "unsure order: 9,000 of 19,200 edges undecided" in said
    assert "the machine is too busy to tell" in said
    assert "hold:" not in said


def test_a_transport_that_was_not_run_is_named() -> None:
    results = demo()
    results.missing = [Missing(transport="aeron", reason="no [wheel]")]
    assert "Aeron was not run: no [wheel]" in shown(results)


def test_a_trace_that_is_in_order_shows_nothing_early() -> None:
    results = demo()
    assert results.trace is not None
    for span in results.trace.spans:
        span.raw_start_us, span.raw_end_us = span.rewritten_start_us, span.rewritten_end_us
    assert "before its parent" not in "\n".join(shown(results)[:15])


def test_a_simulated_long_run_ends_with_its_own_few_lines() -> None:
    lines = shown(over_time())
    assert lines[0].startswith("A clock drifts, is stepped and slewed")
    assert any(line.startswith("inference (simulated)") for line in lines)
    assert len(lines) < 12


def test_predictions_are_said_before_anything_is_measured() -> None:
    rates = [rate_of("zmq", skew, "span-start") for skew in (3.0, 4.02, 5.0)]
    for rate in rates:
        rate.violations, rate.measured_rate = 0, 0.0
    lines = prediction_lines("zmq", calibration_of("zmq"), rates)
    assert max(map(len, lines)) <= WIDTH
    said = " ".join(" ".join(lines).split())
    assert "ZeroMQ takes 151 messages/s, is offered 40; a stage works 3.6 ms at least, a hop takes 0.30 ms" in said
    assert "no child span first below 3.7 ms of skew; 0% at 3 ms, 63% (54-72%) at 4.02 ms, 97% (88-100%) at 5" in said
    assert "Kafka mock takes" in prediction_lines("kafka", calibration_of("kafka"), [])[0]


def test_a_finished_cell_has_a_line_and_missed_bounds_are_loud() -> None:
    rows = [run_of("kafka", 5.31, mode, "span-start") for mode in ("off", "tag", "rewrite")]
    assert cell_line(rows) == "Kafka mock   5.31 ms  child first   63%  rewritten 0%  tags: 126 skewed"
    rows[1].bound_misses = 2
    assert cell_line(rows).endswith("2 BOUNDS MISSED")


def test_the_ending_is_printed_as_it_is_made_off_a_terminal() -> None:
    console = Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=WIDTH)
    with Display(1.0, console) as display:
        display.lines(ending(demo(), Path("out/demo/report.html"), Path("out/demo")))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == GOOD + "\n"
