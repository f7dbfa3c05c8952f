"""Negative controls: on tables that real runs left, each way of breaking something turns the claims it should.

Two more are broken for real: an application that shifts its stamps while its clock is right, and one that drops what
its clock, ten seconds ahead, calls too old.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd_pipeline.edges import EdgeRow, connect
from skewd_pipeline.results import Results, load
from tests.experiment import sabotage
from tests.experiment.made_rows import failed, judged

pytestmark = pytest.mark.long


def read_back(path: Path) -> list[EdgeRow]:
    """The rows of a run's file."""
    with connect(path) as database:
        names = [str(name) for name, *_ in database.execute("DESCRIBE edges").fetchall()]
        return [
            EdgeRow(**dict(zip(names, values, strict=True))) for values in database.execute("FROM edges").fetchall()
        ]


def run(scratch: Path, *arguments: str) -> tuple[int, Results, list[EdgeRow]]:
    """A real run over ZeroMQ: its exit code, its results, its rows."""
    out = scratch / "out"
    done = subprocess.run(
        [sys.executable, "-m", "skewd", "experiment", "run", "--transports", "zmq", "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1_000,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    )
    assert (out / "results.json").exists(), done.stdout
    return done.returncode, load(out / "results.json"), read_back(out / "edges.parquet")


@pytest.fixture
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def rows() -> Iterator[list[EdgeRow]]:
    """Of one good run, with an overloaded block in which some stamps come late."""
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    code, results, rows = run(path, "--skews", "5", "--messages", "40", "--overload")
    assert code in (0, 3), results.claims
    yield rows
    shutil.rmtree(path)


def test_what_is_not_sabotaged_holds(rows: list[EdgeRow], tmp_path: Path) -> None:
    assert failed(judged(rows, tmp_path)) == set()


@pytest.mark.parametrize("control", sabotage.CONTROLS, ids=lambda control: control.name)
def test_sabotage_turns_its_claims_and_no_other(control: sabotage.Control, rows: list[EdgeRow], tmp_path: Path) -> None:
    broken = control.sabotage(rows)
    if broken == rows:
        pytest.skip("nothing in this run to break: no stamp came late")
    turned = failed(judged(broken, tmp_path))
    assert control.turns <= turned
    assert turned <= control.turns | control.may_turn


def verdicts(rows: list[EdgeRow]) -> set[str | None]:
    tagged = [row for row in rows if row.mode == "tag"]
    return {row.verdict_span_start for row in tagged} | {row.verdict_send_receive for row in tagged}


def test_stamps_that_an_application_shifts_fail_the_run_and_no_clock_is_blamed(scratch: Path) -> None:
    code, results, rows = run(scratch, "--stamp-offset", "-5ms", "--skews", "0", "--messages", "20")
    assert code == 1
    assert failed({claim.id: claim for claim in results.claims if claim.kind == "must-hold"}) == {
        "flips", "rewritten-gaps",
    }  # fmt: skip
    assert "impossible" in verdicts(rows)
    assert "skewed" not in verdicts(rows)
    assert {probe.situation for probe in results.probes} == {"no daemon"}, "the clock is right, and nobody is asked"


def test_dropping_what_a_wrong_clock_calls_too_old_costs_outputs_and_nothing_else(scratch: Path) -> None:
    # Far more than anything waits here: only the clock that is ahead makes a message so old.
    code, results, rows = run(
        scratch, "--direction", "ahead", "--skews", "10s", "--max-age", "5s", "--messages", "10"
    )  # fmt: skip
    assert code == 1
    assert failed({claim.id: claim for claim in results.claims if claim.kind == "must-hold"}) == {"outputs"}
    swept = {(row.skew_ns > 0, row.output) for row in rows if row.purpose == "sweep"}
    assert swept == {(False, "correct"), (True, "missing")}
    beyond = [row for row in rows if row.skew_ns > 0 and row.sender == "postprocess"]
    assert not any(row.sender_made or row.sender_copies for row in beyond), "what was dropped is not called lost"
