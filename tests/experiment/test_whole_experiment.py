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
from skewd_pipeline.heuristics import REAL_CALLS
from skewd_pipeline.results import STAGES, Run, load
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


@pytest.mark.long
def test_a_short_sweep(scratch: Path) -> None:
    process = started(scratch, "--skews", "0,5", "--messages", "20", "--rounds", "2", "--floors", "0ms", "--overload")
    try:
        output, _ = process.communicate(timeout=1_000)
    finally:
        process.kill()
    # Exit code 1 would be a claim about rates or throughput that a busy machine does not bear out.
    assert process.returncode in (0, 1), output
    assert "report: " in output
    results = load(scratch / "out" / "results.json")
    assert (scratch / "out" / "report.html").stat().st_size > 20_000

    def run(skew_ms: float, mode: str, rule: str) -> Run:
        (found,) = [row for row in results.runs if (row.skew_ms, row.mode, row.rule) == (skew_ms, mode, rule)]
        return found

    assert len(results.runs) == 2 * 3 * 2
    for row in results.runs:
        assert (row.outputs_correct, row.edges, row.spans, row.spans_missing) == (1.0, 20, 100, 0), row
        assert row.all is not None
        assert row.all.edges == 80
    assert run(0, "off", "span-start").violations == 0
    # At 5 ms the law itself is the test: what is violated is what was closer together than 5 ms.
    raw = run(5, "off", "send-receive")
    assert raw.violations > 0, "20 messages, none through within 5 ms"
    for rule in ("send-receive", "span-start"):
        tag, fixed = run(5, "tag", rule), run(5, "rewrite", rule)
        assert tag.violations == run(5, "off", rule).violations
        assert set(tag.violation_verdicts) <= {"skewed", "indeterminate"}
        assert tag.times_changed == 0
        assert (fixed.durations_changed, fixed.order_changed) == (0, 0)
        assert fixed.all is not None
        assert fixed.all.violations == 0
        for row in (tag, fixed):
            assert (row.bound_misses, row.spans_unsynchronized) == (0, 0)
    # By the host's raw clock, in which the skewed one has no part, as many edges were closer together as are violated.
    for cell in results.law:
        assert cell.own_rate is not None
        assert abs(cell.own_rate - cell.measured_rate) <= 0.1, "readings beside the stamps, 20 messages"
    assert {(cell.rule, cell.floor_ms) for cell in results.law} == {
        (rule, floor) for rule in ("send-receive", "span-start") for floor in (0.0, 3.5)
    }
    assert {len(each.separations_ns) for each in results.separations} == {20}, "of both rounds, taken together"
    assert (results.settings["rounds"], "round 2 of 2" in output) == (2, True)
    assert {(row.messages, row.delivered) for row in results.throughput if row.offered_per_s} == {(20, 20)}
    assert {each.edge for each in results.separations} == {">".join(pair) for pair in pairwise(STAGES)}
    assert {row.situation for row in results.confusion} == {"synchronized", "skewed", "overloaded"}
    assert wrong(results.confusion) == []
    calls = [row for row in results.heuristics if row.traces == REAL_CALLS and row.method == "measured"]
    assert {(row.edges, row.skew_ms) for row in calls} == {
        (edges, skew) for edges in ("synchronous", "asynchronous") for skew in (0.0, 5.0)
    }
    assert all((row.spans, row.left, row.introduced) == (20, 0, 0) for row in calls)
    assert all(row.rms_us < 1000 for row in calls)
    pipelines = [row for row in results.heuristics if row.traces == "the pipeline's, zmq" and row.method == "measured"]
    assert pipelines
    assert sum(row.left + row.introduced for row in pipelines) == 0
    probes = {probe.situation: probe for probe in results.probes}
    assert {name: probe.exit_code for name, probe in probes.items()} == {"no daemon": 3, "0 ms": 0, "5 ms": 2}
    assert re.search(r"\b(4\.9\d*|5(\.\d+)?) ms behind", probes["5 ms"].line)
    assert all(probe.perfdata for probe in probes.values())
    assert {path.name for path in scratch.iterdir()} == {"out"}
    assert {path.name for path in (scratch / "out").iterdir()} == {"results.json", "report.html"}


@pytest.mark.long
def test_in_band_only_over_aeron(scratch: Path) -> None:
    pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
    process = started(
        scratch, "--transports", "aeron", "--inband-only", "--skews", "5", "--messages", "15", "--modes", "tag,rewrite"
    )
    try:
        output, _ = process.communicate(timeout=1_000)
    finally:
        process.kill()
    assert process.returncode in (0, 1), output
    assert "UDP is off" in output
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
    process = started(scratch, "--messages", "20", "--duration", "12s", "--drift", "90ppm", "--rate", "20")
    try:
        output, _ = process.communicate(timeout=1_000)
    finally:
        process.kill()
    assert process.returncode in (0, 1), output
    assert "stepped by +20 ms: now ahead" in output
    results = load(scratch / "out" / "results.json")
    (long_run,) = results.long_runs
    assert not long_run.simulated
    assert [event.what for event in long_run.events] == ["drift", "step", "step", "slew", "hold"]
    assert (long_run.bound_misses, long_run.false_alarms, long_run.spans_unsynchronized) == (0, 0, 0)
    assert long_run.spans > 12 * 20 * 5 * 2 * 0.9
    raw = [window for window in results.windows if window.mode == "off" and window.own_rate is not None]
    assert len(raw) == 4 * 12
    # Readings lie beside the stamps, and a busy machine puts a stage aside in between now and then.
    apart = sum(abs((window.own_rate or 0.0) - window.violation_rate) * window.edges for window in raw)
    assert apart <= 0.05 * sum(window.edges for window in raw)
    ahead = [window for window in results.windows if window.direction == "ahead" and window.rule == "send-receive"]
    between = [window for window in ahead if window.mode == "off" and 5 <= window.start_s < 6]
    assert [round(window.skew_ms[1]) for window in between] == [20]
    assert sum(window.violations for window in between) > 0, "20 ms ahead, and no hop of 20 messages took less"
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
    assert (scratch / "out" / "report.html").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_process_and_no_file(scratch: Path, number: signal.Signals) -> None:
    process = started(scratch, "--skews", "0", "--messages", "5000")
    children: list[psutil.Process] = []
    try:
        # In the middle of starting for one, with messages under way for the other.
        read_until(process, "starting 5 daemons" if number == signal.SIGTERM else "skewd check", 1_000)
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
