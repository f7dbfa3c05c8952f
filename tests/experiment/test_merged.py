"""Several runs told as one: nothing is counted twice, and the worst that was seen of a claim is what is said of it."""

from __future__ import annotations

import pytest

from skewd_pipeline.results import Calibration, Claim, Results, merged
from tests.experiment.made_results import run_of


def claim(name: str, verdict: str, judged: int, wrong: int = 0) -> Claim:
    return Claim(id=name, kind="must-hold", verdict=verdict, figure=verdict, judged=judged, wrong=wrong)  # type: ignore[arg-type]


def calibration(stage: str, direction: str) -> Calibration:
    return Calibration(
        capacity_per_s=50, offered_per_s=20, floor_ms=3.5, hop_p50_ms=0.2, predicted_threshold_ms=3.7, stage=stage,
        direction=direction,
    )  # fmt: skip


def test_two_ways_of_one_transport_are_not_told_as_one() -> None:
    parts = []
    for client, skew in (("ipc", 5.0), ("udp", 7.0)):
        run = run_of("zmq", skew, "off", "span-start")
        run.client = client
        parts.append(Results(runs=[run], host={}, versions={}))
    with pytest.raises(ValueError, match=r"zmq with ipc, another with udp.*give each its own report"):
        merged(parts)


def test_a_cell_is_told_once() -> None:
    part = Results(runs=[run_of("zmq", 5.0, "off", "span-start")], host={}, versions={})
    with pytest.raises(ValueError, match=r"two of the results have the row 'zmq, inference, behind, 5 ms, off, span-s"):
        merged([part, part])


def test_of_each_claim_the_worst_verdict_counts_and_all_that_was_judged() -> None:
    parts = [
        Results(
            runs=[], host={"cpu": "a"}, versions={}, claims=[claim("flips", "holds", 10), claim("check", "holds", 3)]
        ),
        Results(runs=[], host={"cpu": "b"}, versions={}, claims=[claim("flips", "fails", 5, 2)]),
        Results(runs=[], host={"cpu": "a"}, versions={}, claims=[claim("flips", "inconclusive", 1)]),
        Results(runs=[], host={"cpu": "a"}, versions={}, claims=[claim("check", "not-run", 0)]),
    ]
    found = {each.id: each for each in merged(parts).claims}
    assert {name: (each.verdict, each.figure, each.judged, each.wrong) for name, each in found.items()} == {
        "flips": ("fails", "fails", 16, 2),
        "check": ("holds", "holds", 3, 0),
    }
    assert merged(parts).host == {"cpu": "a / b"}


def test_two_runs_of_one_transport_keep_their_calibrations_apart() -> None:
    behind = Results(runs=[], host={}, versions={}, calibration={"zmq": calibration("inference", "behind")})
    ahead = Results(
        runs=[], host={}, versions={},
        calibration={"zmq": calibration("preprocess", "ahead"), "kafka": calibration("preprocess", "ahead")},
    )  # fmt: skip
    assert set(merged([behind, ahead]).calibration) == {"zmq (inference behind)", "zmq (preprocess ahead)", "kafka"}
    assert merged([behind]) is behind
