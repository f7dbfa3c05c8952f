"""The experiment as a user runs it: every process real, small enough for a busy machine."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from skewd_pipeline.confusion import wrong
from skewd_pipeline.edges import connect
from skewd_pipeline.heuristics import REAL_CALLS
from skewd_pipeline.results import MODES, RULES, STAGES, Run, load
from tests.waiting import LIMIT_S

RUN = [sys.executable, "-m", "skewd", "experiment", "run", "--transports", "zmq"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a path short enough for sockets; the experiment's temporary files go there."""
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def started(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RUN, "--out", str(scratch / "out"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    )


def read_until(process: subprocess.Popen[str], words: str, limit_s: float) -> list[str]:
    """Lines of output up to the first with ``words``."""
    assert process.stdout is not None
    deadline = time.monotonic() + limit_s
    lines: list[str] = []
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1.0)[0]:
            line = process.stdout.readline()
            lines.append(line)
            if words in line:
                return lines
            if not line:
                break
    process.kill()
    raise AssertionError(f"no line with {words!r} in:\n{''.join(lines)}")


def ended(process: subprocess.Popen[str]) -> str:
    """What a run said, once it is over and nothing that must hold failed."""
    try:
        output, _ = process.communicate(timeout=1_000)
    finally:
        process.kill()
    # 3: the machine was too busy to judge one of them.
    assert process.returncode in (0, 3), output
    return output


def test_a_short_sweep_leaves_its_table_its_figures_and_a_page(scratch: Path) -> None:
    output = ended(started(scratch, "--skews", "5", "--messages", "10", "--rounds", "2", "--service-floor", "3ms"))
    out = scratch / "out"
    assert {path.name for path in scratch.iterdir()} == {"out"}
    assert {path.name for path in out.iterdir()} == {"results.json", "edges.parquet", "report.html"}
    results = load(out / "results.json")
    must = {claim.id: claim.verdict for claim in results.claims if claim.kind == "must-hold"}
    assert must.pop("signal") == "not-run"
    assert must.keys() == {
        "flips", "bounds", "verdicts", "rewritten-gaps", "rewritten-durations", "rewritten-order", "tagged-times",
        "outputs", "delivered", "check", "heuristics",
    }  # fmt: skip
    assert set(must.values()) <= {"holds", "inconclusive"}
    # 0 is always swept, and first of all what is offered, predicted and worked for is measured.
    assert {(run.skew_ms, run.mode, run.rule) for run in results.runs} == {
        (skew, mode, rule) for skew in (0, 5) for mode in MODES for rule in RULES
    }
    for run in results.runs:
        assert (run.edges, run.spans, run.spans_missing, run.outputs_correct) == (10, 50, 0, 1.0), run
    calibration = results.calibration["zmq"]
    assert (calibration.floor_ms, calibration.floor_chosen, calibration.messages) == (3.0, False, 20)
    assert calibration.offered_per_s <= 0.4 * calibration.capacity_per_s + 0.01 or calibration.offered_per_s == 0.1
    assert calibration.separation_ms is not None
    assert calibration.separation_ms.min == calibration.predicted_threshold_ms > 3
    assert {(rate.rule, rate.skew_ms) for rate in results.rates} == {(rule, skew) for rule in RULES for skew in (0, 5)}
    # Predicted first, and only then skewed.
    assert output.index("predicted (99%)") < output.index("zmq: round 1") < output.index("zmq: round 2")
    with connect(out / "edges.parquet") as database:
        counted = database.execute(
            "SELECT mode, count(*), count(*) FILTER (receiver_start_ns < sender_start_ns) FROM edges "
            "WHERE purpose = 'sweep' AND skew_ns = 5000000 AND counted GROUP BY mode"
        ).fetchall()
    assert {mode: (count, wrong) for mode, count, wrong in counted} == {
        run.mode: (10, run.violations) for run in results.runs if (run.skew_ms, run.rule) == (5, "span-start")
    }, "what results.json says is one query away"


@pytest.mark.long
def test_everything_that_may_stand_beside_a_sweep(scratch: Path) -> None:
    output = ended(
        started(scratch, "--skews", "5", "--messages", "40", "--rounds", "2", "--overload", "--loads", "0.3,0.6")
    )
    results = load(scratch / "out" / "results.json")

    def run(skew_ms: float, mode: str, rule: str) -> Run:
        (found,) = [row for row in results.runs if (row.skew_ms, row.mode, row.rule) == (skew_ms, mode, rule)]
        return found

    assert run(0, "off", "span-start").violations == 0
    assert run(5, "off", "send-receive").violations > 0, "40 messages, none through within 5 ms"
    for rule in RULES:
        tag, fixed = run(5, "tag", rule), run(5, "rewrite", rule)
        assert tag.violations == run(5, "off", rule).violations
        assert set(tag.violation_verdicts) <= {"skewed", "indeterminate"}
        assert fixed.violations == 0
        for row in (tag, fixed):
            assert (row.bound_misses, row.spans_unsynchronized) == (0, 0)
    assert results.calibration["zmq"].floor_chosen
    assert {each.edge for each in results.separations} == {">".join(pair) for pair in pairwise(STAGES)}
    assert {row.situation for row in results.confusion} == {"synchronized", "skewed", "overloaded"}
    assert wrong(results.confusion) == []
    assert [load.utilization for load in results.loads] == [0.3, 0.6]
    for load_row in results.loads:
        assert load_row.edges >= 0.9 * 300
        assert load_row.theory_ms > 0
    assert [len(row.without_per_s) == len(row.with_per_s) == 3 for row in results.throughput] == [True]
    calls = [row for row in results.heuristics if row.traces == REAL_CALLS and row.method == "measured"]
    assert {(row.edges, row.skew_ms) for row in calls} == {
        (edges, skew) for edges in ("synchronous", "asynchronous") for skew in (0.0, 5.0)
    }
    assert all((row.spans, row.left, row.introduced) == (40, 0, 0) for row in calls)
    pipelines = [row for row in results.heuristics if row.traces == "the pipeline's, zmq" and row.method == "measured"]
    assert {row.skew_ms for row in pipelines} == {0.0, 5.0}
    probes = {probe.situation: probe for probe in results.probes}
    assert probes.keys() == {"no daemon", "0 ms", "5 ms"}
    assert re.search(r"\b(4\.9\d*|5(\.\d+)?) ms behind", probes["5 ms"].line)
    assert results.trace is not None or run(5, "off", "span-start").violations == 0
    assert {path.name for path in scratch.iterdir()} == {"out"}
    assert "at 60% of the capacity" in output


@pytest.mark.long
def test_in_band_only_over_aeron(scratch: Path) -> None:
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
    words = ("--transports", "aeron", "--inband-only", "--skews", "5", "--messages", "15", "--modes", "tag,rewrite")
    assert "UDP is off" in ended(started(scratch, *words))
    results = load(scratch / "out" / "results.json")
    assert {(row.transport, row.client) for row in results.runs} == {("aeron", "ipc")}
    assert all(row.outputs_correct == 1.0 and row.bound_misses == 0 for row in results.runs)
    (bounds,) = results.bounds
    assert (bounds.path, bounds.coverage, bounds.spans_unsynchronized) == ("in-band only", 1.0, 0)
    assert bounds.width_ns is not None
    assert set(bounds.width_p50_ns) == {"producer", "inference", "postprocess", "consumer"}
    assert bounds.messages["stamps"] > 0
    assert bounds.messages["accepted"] > bounds.messages["replies"]
    assert "aeron" in results.versions
    assert {path.name for path in scratch.iterdir()} == {"out"}


@pytest.mark.long
def test_a_short_story_of_a_drifting_clock(scratch: Path) -> None:
    output = ended(started(scratch, "--messages", "20", "--duration", "12s", "--drift", "90ppm", "--rate", "20"))
    assert "stepped by +20 ms: now ahead" in output
    results = load(scratch / "out" / "results.json")
    (long_run,) = results.long_runs
    assert not long_run.simulated
    assert [event.what for event in long_run.events] == ["drift", "step", "step", "slew", "hold"]
    assert (long_run.bound_misses, long_run.false_alarms, long_run.spans_unsynchronized) == (0, 0, 0)
    # What a busy machine stamps after the story's end is in none of its windows.
    total = 5 * 2 * round(12 * long_run.rate_per_s)
    assert total // 2 < long_run.spans <= total
    signal_claim = next(claim for claim in results.claims if claim.id == "signal")
    assert (signal_claim.verdict, signal_claim.judged) == ("holds", len(long_run.clock))
    assert len([window for window in results.windows if window.mode == "off"]) == 4 * 12
    ahead = [window for window in results.windows if window.direction == "ahead" and window.rule == "send-receive"]
    between = [window for window in ahead if window.mode == "off" and 5 <= window.start_s < 6]
    assert [round(window.skew_ms[1]) for window in between] == [20]
    assert sum(window.violations for window in between) > 0, "20 ms ahead, and not one hop took less"
    assert sum(window.violations for window in results.windows if window.mode == "rewrite") == 0
    assert wrong(results.confusion) == []


def test_a_simulated_story_starts_no_process(scratch: Path) -> None:
    process = started(scratch, "--simulated", "--duration", "20s", "--rate", "10")
    output, _ = process.communicate(timeout=1_000)
    assert process.returncode == 0, output
    assert "no process is started" in output
    results = load(scratch / "out" / "results.json")
    assert results.long_runs[0].simulated
    assert results.settings["separations"] == "of a model"
    assert {path.name for path in (scratch / "out").iterdir()} == {"results.json", "report.html"}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_process_and_no_file(scratch: Path, number: signal.Signals) -> None:
    process = started(scratch, "--skews", "0", "--messages", "5000")
    children: list[psutil.Process] = []
    try:
        # In the middle of starting for one, with messages under way for the other.
        read_until(process, "starting 5 daemons" if number == signal.SIGTERM else "zmq: predicting", 1_000)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        output, _ = process.communicate(timeout=1_000)
        assert process.returncode == 128 + number, output
        assert "nothing is left running" in output
        _, alive = psutil.wait_procs(children, timeout=LIMIT_S)
        assert alive == []
        assert list(scratch.iterdir()) == []
    finally:
        process.kill()
        process.wait(20)
        for child in children:
            if child.is_running():
                child.kill()


def test_a_model_that_cannot_be_loaded_is_explained(scratch: Path) -> None:
    process = started(scratch, "--model", "no_such_module:classify", "--messages", "5")
    try:
        output, _ = process.communicate(timeout=1_000)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "importing no_such_module failed" in output
    assert "Traceback" not in output
    assert {path.name for path in scratch.iterdir()} <= {"out"}
