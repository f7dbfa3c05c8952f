"""The campaign in small: one seed of every scenario, each mutant noticed, each claim on steps and widths."""

from __future__ import annotations

import pytest

from skewd.bounds.history import Status
from tests.shares import first
from tests.simulation.campaign import (
    CLAIMED_JITTER_US,
    CLAIMED_RTT_US,
    LARGE,
    STEPPED,
    Figures,
    catching,
    report,
)
from tests.simulation.measures import after_step, beyond, widths
from tests.simulation.mutants import MUTANTS
from tests.simulation.runner import Outcome, Scenario, run
from tests.simulation.scenarios import ALL, PAIRS, ZERO

# A day of smearing and the many ways to leap take seconds each: one of each kind is enough for every change.
SHORT = [
    scenario
    for scenario in ALL
    if not scenario.name.startswith(("leap", "smear"))
    or scenario.name in ("leap: a second inserted", "leap: a second deleted", "smear: its end, second by second")
]
REST = [scenario for scenario in ALL if scenario not in SHORT]


@pytest.mark.parametrize("scenario", first(len(SHORT), SHORT + REST), ids=lambda scenario: scenario.name)
def test_within_the_limits_nothing_is_missed(scenario: Scenario) -> None:
    outcome = run(scenario, 101)
    assert outcome.checks > 2_000
    assert (outcome.misses, outcome.worst_ns, outcome.contradictions, outcome.disorder) == (0, 0.0, 0, 0)
    if scenario.node:
        assert Status.SYNCHRONIZED in outcome.statuses


@pytest.mark.long
def test_a_run_follows_from_its_seed() -> None:
    for scenario in (PAIRS[3], ALL[-1]):
        assert run(scenario, 5) == run(scenario, 5)
        assert run(scenario, 5) != run(scenario, 6)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_estimator_is_noticed(mutant: str) -> None:
    assert catching(mutant, [scenario for scenario in PAIRS if scenario.wire == ZERO])


@pytest.mark.parametrize("scenario", STEPPED, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("share", LARGE)
def test_a_large_step_is_seen_within_two_exchanges(scenario: Scenario, share: float) -> None:
    for seed in range(3):
        found = after_step(scenario, seed, share)
        assert found.exchanges in (1, 2)
        assert found.lasted_s <= 2 * scenario.interval_s


def test_a_drift_beyond_its_limit_is_contradicted() -> None:
    found = beyond(Scenario("beyond", style="limit", wire=ZERO), 1, 1.05, 1.0)
    assert found.exchanges is not None


def test_widths_are_as_claimed() -> None:
    row = widths(CLAIMED_RTT_US, CLAIMED_JITTER_US, duration_s=400, style="walk")
    assert row.to_rtt <= 1.2
    assert row.added_us <= 350
    assert row.narrower >= 0.15
    assert row.narrower_silent >= 0.6


@pytest.mark.parametrize("style", first(2, ["walk", "bang", "limit"]))
@pytest.mark.parametrize("rtt_us", [30.0, 200.0, 10_000.0])
def test_no_sound_filter_could_be_narrower(rtt_us: float, style: str) -> None:
    row = widths(rtt_us, rtt_us / 4, duration_s=300, style=style)
    assert 1.0 <= row.to_optimum <= 1.02
    assert 1.0 <= row.to_optimum_silent <= 1.02


@pytest.mark.parametrize("name", ["node: slewed by 400 ppm", "local: all of them and a server"])
def test_the_applied_offset_stays_inside_where_the_drift_is_poorly_known(name: str) -> None:
    outcome = run(next(scenario for scenario in ALL if scenario.name == name), 3)
    assert outcome.instants > 10_000
    assert outcome.strayed * 20 < outcome.knots


def test_an_answer_with_one_reading_of_a_leap_second_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd.utc.LEAP_BEFORE_NS", -1_000_000_000)
    scenario = next(scenario for scenario in ALL if scenario.name == "leap: a second inserted")
    assert run(scenario, 101).misses > 0


def test_a_report_says_what_does_not_hold() -> None:
    figures = Figures(seeds=1, outcomes={"one": Outcome(checks=10, misses=1)}, caught={"some": []})
    figures.table = [widths(CLAIMED_RTT_US, CLAIMED_JITTER_US, duration_s=90)]
    claims = figures.claims()
    assert not claims["no miss and no contradiction within the limits: 1"]
    assert not claims["mutant 'some' is caught, by 0 scenarios"]
    assert "**NO**" in report(figures)
