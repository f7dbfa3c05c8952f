"""All runs that the experiment's report stands on: they can be started, and their account leaves nothing out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from benchmarks import experiment as every_run
from skewd import commands
from skewd_pipeline import experiment
from skewd_pipeline.options import TRANSPORTS, ExperimentOptions
from skewd_pipeline.plan import seconds
from skewd_pipeline.results import STAGES, save
from tests.experiment.made_results import demo, failing, whole


@pytest.fixture(scope="module")
def options() -> dict[str, ExperimentOptions]:
    """What each part's words ask for."""
    seen: list[ExperimentOptions] = []

    def run(asked: ExperimentOptions) -> int:
        seen.append(asked)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "main", run)
        for part in every_run.PARTS:
            result = CliRunner().invoke(commands.app, part.words("out"))
            assert result.exit_code == 0, result.output
    return dict(zip((part.name for part in every_run.PARTS), seen, strict=True))


def test_every_transport_and_situation_has_its_run(options: dict[str, ExperimentOptions]) -> None:
    behind = [each for each in options.values() if each.direction == "behind" and not each.inband_only]
    assert {transport for each in behind for transport in each.transports} == set(TRANSPORTS)
    assert set(options["ahead"].transports) == set(options["inband"].transports) == set(TRANSPORTS)
    assert options["zmq"].loads == (0.2, 0.4, 0.6, 0.8, 0.95)
    assert (options["zmq"].duration_ns or 0) >= 300 * 10**9, "long enough to drift through what separates edges"
    assert {3.0, 5.0} <= set(options["zmq"].skews_ms or ())
    assert options["kafka-default"].kafka_clients == "default"
    assert sum(each.overload for each in options.values()) == 2


def test_all_of_it_is_planned_for_35_minutes_at_most(options: dict[str, ExperimentOptions]) -> None:
    # As often as nodes are started, at the capacity of two cores.
    alone = [
        replace(each, transports=(transport,))
        for each in options.values()
        for transport in (each.transports if each.inband_only else each.transports[:0])
    ] + [each for each in options.values() if not each.inband_only]
    assert sum(seconds(each, 45.0) for each in alone) <= 35 * 60


def test_the_runs_of_the_page_can_be_told_on_one(options: dict[str, ExperimentOptions]) -> None:
    cells = [
        (transport, each.stage, each.direction)
        for part, each in zip(every_run.PARTS, options.values(), strict=True)
        if part.on_page
        for transport in each.transports
    ]
    assert len(set(cells)) == len(cells)


def test_the_account_has_every_command_rate_and_claim_and_says_first_what_fails() -> None:
    done = [(every_run.PARTS[0], whole()), (every_run.PARTS[1], failing())]
    said = every_run.told(done)
    for part, results in done:
        assert f"skewd {' '.join(part.words(f'out/{part.name}'))}" in said
        for claim in results.claims:
            assert (f"`{claim.id}`" in said) == any(
                other.id == claim.id and other.verdict != "not-run" for _, each in done for other in each.claims
            )
    first_table = said[: said.index("## ")]
    assert "**FAILS**" in first_table
    rows = len(re.findall(r"\| \d+ of \d+ \||\(\d+ of \d+\)", said))
    assert rows == sum(len(results.rates) for _, results in done)
    assert "the paper's negative span" in said
    widths = {line.count(" | ") for line in first_table.splitlines() if line.startswith("| ")}
    assert len(widths) == 1, "one table, no cell lost"


def test_with_all_runs_kept_the_page_and_the_account_are_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    out.mkdir()
    for stage, part in zip(STAGES, every_run.PARTS, strict=False):
        results = msgspec.structs.replace(demo(), claims=[])
        for run in results.runs:
            run.stage = stage  # so that no two have one cell
        save(results, kept / part.name / "results.json")
    words = ["--only", "none", "--keep", str(kept), "--out", str(out)]
    assert every_run.main(words) == 0
    assert {path.name for path in out.iterdir()} == {"experiment.html", "experiment.md"}
    (kept / every_run.PARTS[0].name / "results.json").unlink()
    assert every_run.main(words) == 1
    assert "not all runs are there (zmq)" in capsys.readouterr().out
