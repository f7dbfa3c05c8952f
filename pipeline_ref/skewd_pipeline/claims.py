"""What the experiment claims, and what this run has to say of each claim.

The problem: a claim such as "90 % of the spans are early at 5 ms" is about the machine it was first seen on, and fails
on the next one although nothing is wrong; while a claim that cannot fail says nothing. The insight: there are two
kinds, and only one decides. What **must hold** holds on any machine, edge by edge, without a tolerance, and ends the
run with exit code 1 where it does not. What is **this machine's** (rates beside their prediction, the threshold,
throughput) is predicted first and then shown beside the prediction; it never decides.

Those that must hold are the views of ``claims.sql`` over the one table, but for three that are not about edges: what
``skewd check`` said, the 30 s signal of a long run, and the comparison with heuristics. Whether each can fail is shown
by sabotaged runs (tests/experiment/test_sabotage.py).

On a machine so busy that a tenth or more of what a claim is about cannot be judged (stamps and the readings on both
sides of them lie too far apart, spans had no bound), the claim is ``inconclusive``, and so is the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Literal

import duckdb

from skewd_pipeline.heuristics import OURS
from skewd_pipeline.results import Claim, LongRun, Probe, Rate, Results, skew_label

UNDECIDED_MAX = 0.1
EXIT_FAILED = 1
EXIT_INCONCLUSIVE = 3

STATEMENTS = {
    "flips": "an edge comes out backwards exactly if its separation, by the host's raw clock, is below the skew",
    "bounds": "the true offset is inside clock.offset_ns +- clock.uncertainty_ns on every span",
    "verdicts": "no verdict says what is not so, and none is open that the bounds can decide",
    "rewritten-gaps": "rewritten, every gap is the true one within the two spans' uncertainty: no order is inverted "
    "beyond it",
    "rewritten-durations": "rewriting changes no span's duration by more than its two ends are uncertain",
    "rewritten-order": "rewriting keeps the order of one node's spans",
    "tagged-times": "tagging moves no time",
    "outputs": "the pipeline's outputs are right at every skew",
    "delivered": "every span that was made reached the backend once, in every mode",
    "check": "`skewd check` is right: 2 at 5 ms, 0 at 0 ms, 3 without a daemon",
    "signal": "the 30 s signal never blames a clock that turned no edge round",
    "heuristics": "correcting by measured offsets breaks no order that was right",
}
EXPECTED_EXITS = {"5 ms": (2,), "0 ms": (0,), "no daemon": (3,)}
CANNOT_PROVE = 1


def prepare(database: duckdb.DuckDBPyConnection) -> None:
    """Makes the views of ``claims.sql`` over the database's table ``edges``."""
    database.execute(resources.files("skewd_pipeline").joinpath("claims.sql").read_text())


def claims(results: Results, database: duckdb.DuckDBPyConnection | None) -> list[Claim]:
    """Every claim, judged.

    Args:
        results: with everything but the claims filled in.
        database: prepared; None where no edges were measured (a simulated run).
    """
    found = [] if database is None else _over_edges(database)
    found += [_check(results.probes), _signal(results.long_runs), _heuristics(results)]
    return [*found, *_thresholds(results), *_law(results.rates), *_throughput(results)]


def exit_code(claims: Iterable[Claim]) -> int:
    """0: all that must hold holds; 1: something does not; 3: something could not be judged."""
    decisive = {claim.verdict for claim in claims if claim.kind == "must-hold"}
    if "fails" in decisive:
        return EXIT_FAILED
    return EXIT_INCONCLUSIVE if "inconclusive" in decisive else 0


def _must(name: str, judged: int, wrong: int, undecided: int, figure: str) -> Claim:
    verdict: Literal["holds", "fails", "inconclusive", "not-run"]
    if wrong:
        verdict = "fails"
    elif not judged and not undecided:
        verdict = "not-run"
    else:
        verdict = "inconclusive" if undecided > UNDECIDED_MAX * (judged + undecided) else "holds"
    return Claim(
        id=name,
        kind="must-hold",
        verdict=verdict,
        figure=figure,
        statement=STATEMENTS[name],
        judged=judged,
        wrong=wrong,
        undecided=undecided,
    )


_THINGS = {
    "bounds": "spans",
    "rewritten-durations": "spans",
    "rewritten-order": "pairs of spans",
    "tagged-times": "spans",
    "outputs": "messages",
    "delivered": "spans",
}
"""What a claim is about, where it is not edges."""


def _over_edges(database: duckdb.DuckDBPyConnection) -> list[Claim]:
    found = {
        str(name): (judged, wrong, undecided, cell, worst)
        for name, judged, wrong, undecided, cell, worst in database.execute("FROM must_hold").fetchall()
    }
    widest = database.execute("SELECT max(uncertainty_ns) FROM spans WHERE mode <> 'off'").fetchone()
    listed = []
    for name in list(STATEMENTS)[:9]:
        judged, wrong, undecided, cell, worst = found.get(name, (0, 0, 0, None, 0))
        figure = f"{wrong} of {judged} {_THINGS.get(name, 'edges')}"
        if wrong:
            figure += f"; {worst} of them in {cell}"
        if undecided:
            figure += f"; {undecided} more could not be judged"
        if name == "bounds" and widest is not None and widest[0] is not None:
            figure += f"; the widest bound +-{widest[0] / 1e3:.0f} us"
        listed.append(_must(name, judged, wrong, undecided, figure))
    return listed


def _check(probes: Sequence[Probe]) -> Claim:
    asked = [probe for probe in probes if probe.situation in EXPECTED_EXITS]
    # "Cannot prove" is an answer, and never a wrong one; but it leaves open what was asked.
    unproven = [probe for probe in asked if probe.exit_code == CANNOT_PROVE]
    wrong = [
        probe
        for probe in asked
        if probe not in unproven and (probe.exit_code not in EXPECTED_EXITS[probe.situation] or not probe.perfdata)
    ]
    said = ", ".join(f"{probe.situation}: exit {probe.exit_code}" for probe in asked) or "not asked"
    if wrong:
        said += f" ({wrong[0].line})"
    return _must("check", len(asked) - len(unproven), len(wrong), len(unproven), said)


def _signal(long_runs: Sequence[LongRun]) -> Claim:
    samples = sum(len(run.clock) for run in long_runs)
    wrong = sum(run.false_alarms for run in long_runs)
    return _must("signal", samples, wrong, 0, f"{wrong} of {samples} samples" if samples else "no long run")


def _heuristics(results: Results) -> Claim:
    ours = [row for row in results.heuristics if row.method == OURS]
    relations, wrong = sum(row.relations for row in ours), sum(row.introduced for row in ours)
    said = f"{wrong} of {relations} relations" if ours else "not compared in this run"
    return _must("heuristics", relations, wrong, 0, said)


# -- this machine's figures --------------------------------------------------------------------------------------------


def _machine(name: str, statement: str, holds: bool | None, figure: str) -> Claim:
    verdict: Literal["holds", "fails", "not-run"] = "not-run" if holds is None else "holds" if holds else "fails"
    return Claim(id=name, kind="machine", verdict=verdict, figure=figure, statement=statement)


def _thresholds(results: Results) -> list[Claim]:
    """The paper's finding, by the rule that shows it: reproduced here, or why not."""
    statement = "the paper's finding: 0 up to 3 ms, clear at 5 ms"
    found = []
    for transport, calibration in results.calibration.items():
        name = f"paper-{transport}"
        rates = {
            rate.skew_ms: rate
            for rate in results.rates
            if rate.rule == "span-start"
            and (rate.transport, rate.stage, rate.direction)
            == (transport.split(" ")[0], calibration.stage, calibration.direction)
        }
        at_three, at_five = rates.get(3.0), rates.get(5.0)
        if at_three is None or at_five is None:
            found.append(_machine(name, statement, None, "needs cells at 3 and 5 ms"))
            continue
        said = f"{at_three.measured_rate:.1%} at 3 ms, {at_five.measured_rate:.1%} at 5 ms"
        reproduced = at_three.violations == 0 and at_five.measured_rate >= 0.5
        if not reproduced and calibration.separation_ms is not None:
            said += f"; not reproduced, because here the median separation is {calibration.separation_ms.p50:.1f} ms"
            said += f" (its hop takes {calibration.hop_p50_ms:.1f} ms)"
        found.append(_machine(name, statement, reproduced, said))
    return found


def _law(rates: Sequence[Rate]) -> list[Claim]:
    statement = "the measured rate lies in the interval predicted before the cell was run (99 %)"
    found = []
    for transport in dict.fromkeys(rate.transport for rate in rates):
        informative = [rate for rate in rates if rate.transport == transport and rate.informative and rate.skew_ms]
        outside = [rate for rate in informative if not rate.agrees]
        said = f"{len(informative) - len(outside)} of {len(informative)} informative cells"
        if outside:
            said += "; not " + ", ".join(
                f"{rate.rule} at {skew_label(rate.skew_ms)}: {rate.measured_rate:.0%} for {rate.predicted_low:.0%} to "
                f"{rate.predicted_high:.0%}"
                for rate in outside[:4]
            )
        found.append(_machine(f"law-{transport}", statement, not outside if informative else None, said))
    return found


def _throughput(results: Results) -> list[Claim]:
    statement = "unpaced, the sidecars take nothing of the throughput that the pairs can show"
    return [
        _machine(
            f"throughput-{row.transport}",
            statement,
            row.ratio_high >= 1.0,
            f"{row.ratio:.1%} of that without ({row.ratio_low:.1%} to {row.ratio_high:.1%}, "
            f"{len(row.with_per_s)} pairs)",
        )
        for row in results.throughput
    ]
