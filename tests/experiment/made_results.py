"""Results as a good run on a quiet machine would leave them, made up."""

from __future__ import annotations

from functools import cache

from skewd_pipeline import report
from skewd_pipeline.calls import compared
from skewd_pipeline.law import law_cells, thresholds
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.results import (
    MODES,
    RULES,
    AllEdges,
    Check,
    Confusion,
    Heuristic,
    Probe,
    Results,
    Run,
    Separation,
    Separations,
    Spread,
    Throughput,
)
from skewd_pipeline.simulated import long_run

SKEWS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 2000.0)


def run_of(transport: str, skew_ms: float, mode: str, rule: str, *, floor_ms: float = 3.5) -> Run:
    """One row: on ZeroMQ every edge breaks beyond 3.7 ms, on Kafka half of them, and the others beyond 5.5 ms."""
    threshold = 0.2 if rule == "send-receive" else floor_ms + 0.2
    raw = 0.0 if skew_ms < threshold else 0.5 if transport == "kafka" and skew_ms <= 5 else 1.0
    violations = 0 if mode == "rewrite" else round(100 * raw)
    said = {"skewed": violations} if mode == "tag" and violations else {}
    tags = mode != "off"
    return Run(
        transport=transport,
        broker="mock" if transport == "kafka" else None,
        stage="inference",
        direction="behind",
        skew_ms=skew_ms,
        mode=mode,
        rule=rule,
        messages=100,
        edges=100,
        violations=violations,
        violation_rate=violations / 100,
        predicted_rate=None if mode == "rewrite" else raw,
        verdicts={**said, "ordered": 100 - violations} if tags else {},
        violation_verdicts=said,
        residual_max_ns=0,
        residuals_ns=[12_000] if mode == "rewrite" and rule == "send-receive" else [],
        bound_misses=0,
        throughput_per_s=40.0,
        outputs_correct=1.0,
        separation_ms=Separation(threshold, threshold, threshold + 0.2, threshold + 2),
        floor_ms=floor_ms,
        uncertainty_ns=Spread(0, 90_000, 150_000) if tags else None,
        error_ns=Spread(0, 20_000, 60_000) if tags else None,
        spans=500,
        times_changed=0 if mode == "tag" else None,
        durations_changed=0 if mode == "rewrite" else None,
        order_changed=0 if mode == "rewrite" else None,
        shorter_separations=round(100 * raw),
        all=AllEdges(400, violations, {"ordered": 400 - violations, **said} if tags else {}, said),
    )


@cache
def over_time() -> Results:
    """A short story of a clock, in simulated time."""
    return long_run(
        ExperimentOptions(
            duration_ns=40_000_000_000, drift_ppb=90_000, service_floor_ns=1_000_000, simulated=True, rate=10.0
        ),
        (),
    )


@cache
def calls() -> list[Heuristic]:
    """Heuristics on a few calls."""
    return compared(skews_ms=(0.0, 5.0), traces=40)


def confusion_rows() -> list[Confusion]:
    """An overloaded CPU, whose late stamps are nobody's clock's fault."""
    return [
        Confusion(
            situation=situation, transport="zmq", rule="stamp-after-send", truth=truth, verdict=verdict, count=count
        )
        for situation, truth, verdict, count in (
            ("synchronized", "in order", "ordered", 396),
            ("synchronized", "in order", "indeterminate", 4),
            ("skewed", "clock", "skewed", 390),
            ("skewed", "clock", "indeterminate", 10),
            ("overloaded", "in order", "ordered", 350),
            ("overloaded", "not the clock", "impossible", 44),
            ("overloaded", "not the clock", "indeterminate", 6),
        )
    ]


def made_results() -> Results:
    """All of it."""
    results = _made()
    results.law, results.thresholds = law_cells(results), thresholds(results)
    story = over_time()
    results.windows, results.long_runs = list(story.windows), list(story.long_runs)
    results.separations = [*results.separations, *story.separations]
    results.confusion = confusion_rows()
    results.heuristics = list(calls())
    return results


def _made() -> Results:
    runs = [
        run_of(transport, skew, mode, rule)
        for transport in ("zmq", "kafka")
        for skew in SKEWS
        for mode in MODES
        for rule in RULES
    ]
    return Results(
        runs=runs,
        host={"system": "Linux", "cores": 2},
        versions={"python": "3.13.0"},
        settings={"skews_ms": list(SKEWS), "seed": 1, "model": "magika", "broker": "librdkafka mock (a mock)"},
        floor0=[run_of("zmq", 3.0, mode, rule, floor_ms=0.0) for mode in MODES for rule in RULES],
        separations=[
            Separations(
                transport=transport,
                rule=rule,
                floor_ms=3.5,
                separations_ns=[
                    (5_500_000 if transport == "kafka" and n >= 50 else base) + n * 1_000 for n in range(100)
                ],
            )
            for transport in ("zmq", "kafka")
            for rule, base in (("send-receive", 200_000), ("span-start", 3_700_000))
        ],
        throughput=[
            Throughput(
                transport=transport,
                skew_ms=skew,
                sidecar=sidecar,
                offered_per_s=offered,
                delivered_per_s=delivered,
                messages=100,
                delivered=100,
            )
            for transport in ("zmq", "kafka")
            for skew, sidecar, offered, delivered in (
                (0.0, "off+tag+rewrite", 40.0, 40.0),
                (0.0, "none", 40.0, 40.1),
                (0.0, "tag", None, 100.0),
                (0.0, "none", None, 105.0),
                (10.0, "off+tag+rewrite", 40.0, 39.9),
            )
        ],
        probes=[
            Probe(situation=situation, command="skewd check", exit_code=code, line="x", perfdata="y=1", seconds=0.1)
            for situation, code in (("no daemon", 3), ("0 ms", 0), ("5 ms", 2))
        ],
        checks=[Check(name="one", statement="a <claim>", passed=False, measured="3 & 4")],
        seconds=99.0,
    )


@cache
def made_page() -> str:
    """The report on it."""
    return report.render(made_results())
