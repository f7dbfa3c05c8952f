"""What must hold: it holds on a good run's table, and each way of breaking something turns the claims it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from skewd_pipeline.claims import claims as every_claim
from skewd_pipeline.claims import exit_code
from skewd_pipeline.edges import EdgeRow
from skewd_pipeline.results import Calibration, Claim, LongRun, Probe, Rate, Results, Throughput
from tests.experiment import sabotage
from tests.experiment.made_rows import failed, good_probes, good_rows, judged, rows_at

OVER_EDGES = {
    "flips", "bounds", "verdicts", "rewritten-gaps", "rewritten-durations", "rewritten-order", "tagged-times",
    "outputs", "delivered",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[EdgeRow]:
    return good_rows()


def test_a_good_run_holds(rows: list[EdgeRow], tmp_path: Path) -> None:
    found = judged(rows, tmp_path)
    assert {name: claim.verdict for name, claim in found.items() if claim.kind == "must-hold"} == (
        dict.fromkeys((*OVER_EDGES, "check"), "holds") | {"signal": "not-run", "heuristics": "not-run"}
    )
    messages, modes = 2 * 4 * 8, 3
    assert found["flips"].judged == messages * 4 * 2
    assert found["delivered"].judged == messages * 5 * modes
    assert found["outputs"].judged == messages
    assert exit_code(found.values()) == 0


@pytest.mark.parametrize("control", sabotage.CONTROLS, ids=lambda control: control.name)
def test_sabotage_turns_its_claims_and_no_other(control: sabotage.Control, rows: list[EdgeRow], tmp_path: Path) -> None:
    found = judged(control.sabotage(rows), tmp_path)
    turned = failed(found)
    assert control.turns <= turned, found
    assert turned <= control.turns | control.may_turn
    assert exit_code(found.values()) == 1


def test_shifted_stamps_are_never_blamed_on_the_clock(tmp_path: Path) -> None:
    rows = [row for row in sabotage.stamps_shifted(rows_at(0)) if row.mode == "tag"]
    said = {row.verdict_span_start for row in rows} | {row.verdict_send_receive for row in rows}
    assert "impossible" in said
    assert "skewed" not in said
    found = judged(sabotage.stamps_shifted(rows_at(0)), tmp_path)
    assert found["verdicts"].verdict == "holds"


def test_a_run_without_bounds_is_inconclusive_and_not_a_success(rows: list[EdgeRow], tmp_path: Path) -> None:
    found = judged(sabotage.unsynchronized(rows), tmp_path)
    assert found["bounds"].verdict == found["rewritten-gaps"].verdict == found["verdicts"].verdict == "inconclusive"
    assert exit_code(found.values()) == 3


def test_an_edge_inside_its_bracket_is_open_and_too_many_of_them_are_inconclusive(tmp_path: Path) -> None:
    rows = rows_at(5_000_000, modes=("off",))
    for row in rows:
        assert row.receiver_start_raw_hi_ns is not None
        row.receiver_start_raw_hi_ns += 20_000_000  # put aside between stamp and reading
    found = judged(rows, tmp_path)
    assert found["flips"].wrong == 0
    assert found["flips"].undecided > 0.1 * (found["flips"].judged + found["flips"].undecided)
    assert found["flips"].verdict == "inconclusive"
    assert exit_code(found.values()) == 3


@pytest.mark.parametrize(
    ("situation", "code", "verdict"),
    [("5 ms", 0, "fails"), ("0 ms", 2, "fails"), ("no daemon", 0, "fails"), ("5 ms", 1, "inconclusive")],
)
def test_a_check_that_is_wrong_fails_and_one_that_cannot_prove_it_is_open(
    situation: str, code: int, verdict: str, rows: list[EdgeRow], tmp_path: Path
) -> None:
    probes = [probe for probe in good_probes() if probe.situation != situation]
    probes.append(Probe(situation=situation, command="", exit_code=code, line="", perfdata="offset=0s", seconds=0.1))
    assert judged(rows_at(0, messages=3), tmp_path, probes)["check"].verdict == verdict


def test_what_was_not_run_is_said_and_decides_nothing(tmp_path: Path) -> None:
    found = judged(rows_at(0, modes=("off",)), tmp_path, [])
    assert {name for name, claim in found.items() if claim.verdict == "not-run"} >= {
        "bounds", "verdicts", "rewritten-gaps", "rewritten-durations", "rewritten-order", "tagged-times", "check",
    }  # fmt: skip
    assert exit_code(found.values()) == 0


def machine(results: Results) -> dict[str, Claim]:
    return {claim.id: claim for claim in every_claim(results, None) if claim.kind == "machine"}


def rate_of(skew_ms: float, rate: float, *, agrees: bool = True, informative: bool = True) -> Rate:
    return Rate(
        transport="zmq", broker=None, stage="inference", direction="behind", rule="span-start", floor_ms=3.8,
        skew_ms=skew_ms, edges=60, violations=round(60 * rate), measured_rate=rate, measured_low=rate,
        measured_high=rate, predicted_rate=rate, predicted_low=rate, predicted_high=rate, separations=60,
        informative=informative, agrees=agrees,
    )  # fmt: skip


def test_this_machines_figures_never_decide() -> None:
    results = Results(
        runs=[], host={}, versions={},
        calibration={
            "zmq": Calibration(
                capacity_per_s=50, offered_per_s=20, floor_ms=0, hop_p50_ms=5.2, predicted_threshold_ms=5.0,
                stage="inference", direction="behind",
            )
        },
        rates=[rate_of(3, 0.0, informative=False), rate_of(4, 0.5, agrees=False), rate_of(5, 0.1)],
        throughput=[
            Throughput(
                transport="zmq", broker=None, without_per_s=[50.0] * 3, with_per_s=[40.0] * 3, ratio=0.8,
                ratio_low=0.79, ratio_high=0.81,
            )
        ],
    )  # fmt: skip
    found = machine(results)
    assert {name: claim.verdict for name, claim in found.items()} == {
        "paper-zmq": "fails", "law-zmq": "fails", "throughput-zmq": "fails",
    }  # fmt: skip
    assert "1 of 2 informative cells" in found["law-zmq"].figure
    assert exit_code(found.values()) == 0


def test_the_papers_finding_is_reproduced_where_nothing_breaks_at_3_ms_and_half_does_at_5() -> None:
    calibration = Calibration(
        capacity_per_s=50, offered_per_s=20, floor_ms=3.8, hop_p50_ms=0.2, predicted_threshold_ms=3.9,
        stage="inference", direction="behind",
    )  # fmt: skip
    results = Results(
        runs=[], host={}, versions={}, calibration={"zmq": calibration}, rates=[rate_of(3, 0.0), rate_of(5, 0.98)]
    )
    assert machine(results)["paper-zmq"].verdict == "holds"
    results.rates = [rate_of(3, 0.02), rate_of(5, 0.98)]
    assert machine(results)["paper-zmq"].verdict == "fails"


def test_a_false_alarm_of_a_long_run_fails() -> None:
    run = LongRun(
        run="zmq", simulated=True, transport="zmq", broker=None, stage="inference", reference="preprocess",
        duration_s=10, window_s=1, drift_ppm=50, rate_per_s=20, floor_ms=3.5, seed=1, events=[], clock=[],
        false_alarms=1,
    )  # fmt: skip
    found = {claim.id: claim for claim in every_claim(Results(runs=[], host={}, versions={}, long_runs=[run]), None)}
    assert found["signal"].verdict == "fails"
