"""Results as runs of several kinds would leave them, made up: a good demo, a failing one, a busy one, a long one."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache

from skewd_pipeline.results import (
    MODES,
    RULES,
    STAGES,
    AllEdges,
    Bounds,
    Calibration,
    Claim,
    ClockEvent,
    ClockSample,
    Confusion,
    Heuristic,
    Load,
    LongRun,
    Missing,
    Probe,
    ProcessTime,
    Rate,
    Results,
    Run,
    Separation,
    Separations,
    Spread,
    Throughput,
    Trace,
    TraceSpan,
    Window,
)

EDGES = 200
SKEWS = {"zmq": (0.0, 3.0, 4.02, 5.0, 10.0, 50.0), "kafka": (0.0, 3.0, 5.0, 5.31, 10.0, 50.0)}
LEAST_MS = {("zmq", "span-start"): 3.74, ("kafka", "span-start"): 4.62}
LEAST_MS |= {("zmq", "send-receive"): 0.12, ("kafka", "send-receive"): 0.84}
BROKER = {"kafka": "mock"}
WIDE = 4.0
"""How much longer a slow Kafka's separations are."""


@cache
def separations(transport: str, rule: str, slower_ms: float = 0.0) -> tuple[int, ...]:
    """A least value, a body, and a tail: 1,000 of them, ascending, ns."""
    width = 0.28 if transport == "zmq" else 0.69
    values = (
        LEAST_MS[transport, rule] + slower_ms + width * (-math.log(1 - (number + 0.5) / 1000)) ** 1.2
        for number in range(1000)
    )
    return tuple(round(value * 1e6) for value in values)


def share(transport: str, rule: str, skew_ms: float, slower_ms: float = 0.0) -> float:
    """The share of separations that are shorter."""
    return bisect_left(separations(transport, rule, slower_ms), round(skew_ms * 1e6)) / 1000


def run_of(transport: str, skew_ms: float, mode: str, rule: str, slower_ms: float = 0.0) -> Run:
    """One row, as the law has it."""
    predicted = share(transport, rule, skew_ms, slower_ms)
    violations = 0 if mode == "rewrite" else round(EDGES * predicted)
    said = {"skewed": violations} if mode == "tag" and violations else {}
    tags = mode != "off"
    values = separations(transport, rule, slower_ms)
    return Run(
        transport=transport,
        broker=BROKER.get(transport),
        stage="inference",
        direction="behind",
        skew_ms=skew_ms,
        mode=mode,
        rule=rule,
        messages=EDGES,
        edges=EDGES,
        violations=violations,
        violation_rate=violations / EDGES,
        predicted_rate=None if mode == "rewrite" else predicted,
        verdicts={**said, "ordered": EDGES - violations} if tags else {},
        violation_verdicts=said,
        residual_max_ns=12_000 if mode == "rewrite" and rule == "send-receive" else 0,
        residuals_ns=[12_000] if mode == "rewrite" and rule == "send-receive" else [],
        bound_misses=0,
        throughput_per_s=40.0 - 0.01 * skew_ms,
        outputs_correct=1.0,
        separation_ms=Separation(values[0] / 1e6, values[10] / 1e6, values[500] / 1e6, values[990] / 1e6),
        floor_ms=3.6,
        uncertainty_ns=Spread(0, 46_000, 81_000) if tags else None,
        error_ns=Spread(0, 9_000, 38_000) if tags else None,
        spans=5 * EDGES,
        all=AllEdges(4 * EDGES, violations, {"ordered": 4 * EDGES - violations, **said} if tags else {}, said),
        client="latency" if transport == "kafka" else None,
    )


def rate_of(transport: str, skew_ms: float, rule: str, slower_ms: float = 0.0) -> Rate:
    """Prediction beside measurement, as the runs of the same cell have it."""
    predicted = share(transport, rule, skew_ms, slower_ms)
    by = 0.09 if 0.02 < predicted < 0.98 else 0.0
    return Rate(
        transport=transport,
        broker=BROKER.get(transport),
        stage="inference",
        direction="behind",
        rule=rule,
        floor_ms=3.6,
        skew_ms=skew_ms,
        edges=EDGES,
        violations=round(EDGES * predicted),
        measured_rate=round(EDGES * predicted) / EDGES,
        measured_low=max(0.0, predicted - by),
        measured_high=min(1.0, predicted + by),
        predicted_rate=predicted,
        predicted_low=max(0.0, predicted - by),
        predicted_high=min(1.0, predicted + by),
        separations=1000,
        informative=0.02 <= predicted <= 0.98,
        agrees=True,
    )


def calibration_of(transport: str, slower_ms: float = 0.0) -> Calibration:
    """What the quiet run said."""
    hop, start = (separations(transport, rule, slower_ms) for rule in RULES)
    return Calibration(
        capacity_per_s=151.0 if transport == "zmq" else 118.0,
        offered_per_s=40.0,
        floor_ms=3.6,
        hop_p50_ms=round(hop[500] / 1e6, 3),
        predicted_threshold_ms=start[0] / 1e6,
        hop_ms=Separation(hop[0] / 1e6, hop[10] / 1e6, hop[500] / 1e6, hop[990] / 1e6),
        separation_ms=Separation(start[0] / 1e6, start[10] / 1e6, start[500] / 1e6, start[990] / 1e6),
        service_ms={stage: 5.6 if stage == "inference" else 3.7 for stage in STAGES},
        median_skew_ms=SKEWS[transport][2 if transport == "zmq" else 3],
        broker=BROKER.get(transport),
        client="latency" if transport == "kafka" else None,
        stage="inference",
        direction="behind",
        messages=1000,
    )


def trace() -> Trace:
    """One message through all stages, the inference stage's clock 5 ms behind."""
    spans, at_us = [], 0.0
    for stage, work_us in zip(STAGES, (3700.0, 3720.0, 5600.0, 3690.0, 3650.0), strict=True):
        off_us = 5000.0 if stage == "inference" else 0.0
        spans.append(
            TraceSpan(
                stage=stage,
                raw_start_us=at_us - off_us,
                raw_end_us=at_us + work_us - off_us,
                rewritten_start_us=at_us + 12,
                rewritten_end_us=at_us + work_us + 12,
                true_start_us=at_us,
                uncertainty_us=46.0 if off_us else 20.0,
            )
        )
        at_us += work_us + 220
    return Trace(
        transport="zmq", broker=None, stage="inference", direction="behind", skew_ms=5.0, trace_id="4f", spans=spans
    )


def claims() -> list[Claim]:
    """As a good run leaves them."""
    must = (
        ("bounds", "the true offset lies inside the bound on every span", 24_000),
        ("order", "after rewriting, nothing is inverted beyond the bounds", 19_200),
        ("verdicts", "no verdict says something that is not so", 19_200),
        ("outputs", "the pipeline's answers are right at every skew", 2_400),
    )
    return [
        *(
            Claim(id=id_, kind="must-hold", verdict="holds", figure=f"0 of {judged:,}", statement=said, judged=judged)
            for id_, said, judged in must
        ),
        Claim(
            id="rates",
            kind="machine",
            verdict="holds",
            figure="3 of 3 informative cells",
            statement="the rates are inside their predictions",
            judged=3,
        ),
        Claim(id="aeron", kind="machine", verdict="not-run", figure="no such cell", statement="a <claim> & more"),
    ]


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


def heuristic_rows() -> list[Heuristic]:
    """Two skews, three methods."""
    return [
        Heuristic(
            traces="calls, made up",
            method=method,
            edges="synchronous",
            skew_ms=skew,
            spans=120,
            rms_us=rms,
            p99_us=2 * rms,
            max_us=3 * rms,
            relations=400,
            violated_before=200 if skew else 0,
            left=0,
            introduced=0 if method == "measured" else 40,
        )
        for skew in (0.0, 5.0)
        for method, rms in (("raw", 1000 * skew), ("centring", 180.0 * skew), ("measured", 14.0))
    ]


def over_time() -> Results:
    """A short story of a clock: it drifts, is stepped by 20 ms and back."""

    def skew_ms(at_s: float) -> float:
        return 0.05 * at_s + (-20.0 if 60 <= at_s < 80 else 0.0) + 3

    def rate(direction: str, at_s: float) -> float:
        return share("zmq", "span-start", skew_ms(at_s) if direction == "behind" else -skew_ms(at_s))

    run = LongRun(
        run="inference (simulated)",
        simulated=True,
        transport="zmq",
        broker=None,
        stage="inference",
        reference="producer",
        duration_s=120.0,
        window_s=10.0,
        drift_ppm=50.0,
        rate_per_s=20.0,
        floor_ms=3.6,
        seed=1,
        events=[
            ClockEvent(at_s=0.0, what="drift", text="drifts by +50 ppm"),
            ClockEvent(at_s=60.0, what="step", text="stepped by +20 ms: now ahead"),
            ClockEvent(at_s=80.0, what="step", text="stepped back by 20 ms"),
        ],
        clock=[
            ClockSample(
                at_s=float(at),
                skew_ms=skew_ms(at),
                least_ms=None if at < 2 else skew_ms(at) - 0.05,
                greatest_ms=None if at < 2 else skew_ms(at) + 0.06,
                health_clock=at < 30,
                health_any=at < 30,
                clock_innocent=at < 20,
            )
            for at in range(121)
        ],
        spans=12_000,
        ambiguous=4,
    )
    windows = [
        Window(
            run=run.run,
            mode=mode,
            rule="span-start",
            direction=direction,
            start_s=float(start),
            end_s=start + 10.0,
            skew_ms=(skew_ms(start), skew_ms(start + 5), skew_ms(start + 10)),
            edges=EDGES,
            violations=0 if mode == "rewrite" else round(EDGES * rate(direction, start + 5)),
            violation_rate=0.0 if mode == "rewrite" else rate(direction, start + 5),
            predicted_rate=None if mode == "rewrite" else rate(direction, start + 5),
            spans=2 * EDGES,
        )
        for start in range(0, 120, 10)
        for direction in ("behind", "ahead")
        for mode in ("off", "rewrite")
    ]
    return Results(runs=[], host={"cores": 2}, versions={}, windows=windows, long_runs=[run], seconds=3.0)


def demo(slower_kafka_ms: float = 0.0) -> Results:
    """As a good demo leaves it; Kafka may be slower than any threshold of the paper's."""
    slower = {"zmq": 0.0, "kafka": slower_kafka_ms}
    return Results(
        runs=[
            run_of(transport, skew, mode, rule, slower[transport])
            for transport, skews in SKEWS.items()
            for skew in skews
            for mode in MODES
            for rule in RULES
        ],
        host={"system": "Linux", "cores": 2},
        versions={"python": "3.13.0"},
        settings={"seed": 1, "model": "magika", "broker": "librdkafka mock (a mock)"},
        calibration={transport: calibration_of(transport, slower[transport]) for transport in SKEWS},
        claims=claims(),
        rates=[
            rate_of(transport, skew, rule, slower[transport])
            for transport, skews in SKEWS.items()
            for skew in skews
            if skew
            for rule in RULES
        ],
        separations=[
            Separations(
                transport=transport,
                rule=rule,
                floor_ms=3.6,
                separations_ns=list(separations(transport, rule, slower[transport])),
            )
            for transport in SKEWS
            for rule in RULES
        ],
        throughput=[
            Throughput(
                transport=transport,
                broker=BROKER.get(transport),
                without_per_s=[150.0, 151.0, 149.0],
                with_per_s=[149.0, 150.0, 149.5],
                ratio=0.997,
                ratio_low=0.985,
                ratio_high=1.01,
            )
            for transport in SKEWS
        ],
        trace=trace(),
        processes=[ProcessTime(name="inference", seconds=8.4), ProcessTime(name="skewd of inference", seconds=0.4)],
        confusion=confusion_rows(),
        probes=[
            Probe(situation=situation, command="skewd check", exit_code=code, line="x", perfdata="y=1", seconds=0.1)
            for situation, code in (("no daemon", 3), ("0 ms", 0), ("5 ms", 2))
        ],
        seconds=99.0,
    )


def failing() -> Results:
    """A bound that was wrong once, and rates that are not as predicted."""
    results = demo()
    results.claims[0] = Claim(
        id="bounds",
        kind="must-hold",
        verdict="fails",
        figure="3 of 24,000 spans: zmq 5 ms",
        statement="the true offset lies inside the bound on every span",
        judged=24_000,
        wrong=3,
    )
    for run in results.runs:
        if (run.transport, run.skew_ms, run.mode) == ("zmq", 5.0, "tag"):
            run.bound_misses = 3
    for rate in results.rates:
        if (rate.transport, rate.skew_ms, rate.rule) == ("zmq", 4.02, "span-start"):
            rate.agrees, rate.measured_rate = False, 0.2
    return results


def busy() -> Results:
    """A machine too busy to judge one of the claims."""
    results = demo()
    results.claims[1] = Claim(
        id="order",
        kind="must-hold",
        verdict="inconclusive",
        figure="9,000 of 19,200 edges undecided",
        statement="after rewriting, nothing is inverted beyond the bounds",
        judged=10_200,
        undecided=9_000,
    )
    return results


def whole() -> Results:
    """With everything that a full experiment adds."""
    results = demo()
    results.heuristics = heuristic_rows()
    results.loads = [
        Load(
            transport="zmq",
            broker=None,
            utilization=utilization,
            offered_per_s=170 * utilization,
            skew_ms=4.02,
            edges=EDGES,
            violation_rate=rate,
            separation_ms=Separation(3.74, 3.76, median, 5 * median),
            wait_ms=wait,
            theory_ms=1.1 * wait,
        )
        for utilization, rate, median, wait in ((0.2, 0.45, 4.1, 0.6), (0.5, 0.3, 5.2, 2.6), (0.8, 0.12, 9.9, 11.0))
    ]
    story = over_time()
    results.windows, results.long_runs = list(story.windows), list(story.long_runs)
    results.bounds = [
        Bounds(
            transport=transport,
            broker=BROKER.get(transport),
            path="UDP and in-band",
            spans=12_000,
            spans_unsynchronized=0,
            coverage=1.0,
            width_ns=Spread(20_000, 92_000, 162_000),
            width_p50_ns={"inference": 92_000},
            residual_max_ns=12_000,
            residuals_beyond=0,
            messages={"udp": 900},
        )
        for transport in SKEWS
    ]
    results.missing = [Missing(transport="aeron", reason="no wheel of pyaeron for this Python")]
    return results


@cache
def made_page() -> str:
    """The report on all of it."""
    from skewd_pipeline import report

    return report.render(whole())
