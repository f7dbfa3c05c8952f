"""What a run of the experiment leaves behind: ``results.json``, its shape and its reading.

One row (`Run`) for each transport, skew, mode and rule, with the keys other tools may rely on; what was calibrated and
predicted before anything was skewed; the claims and what they measured; and what a reader needs to judge the numbers
(host, versions, seed, the kind of Kafka broker, processor time). Every figure about edges is a query over the one table
beside it, ``edges.parquet`` (see `edges.py`). The report is made from this file alone, so it can be rebuilt anywhere.

Limits: reading is strict about types and tolerant of unknown keys (a newer version's file still reads).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

SCHEMA = 2
MODES = ("off", "tag", "rewrite")
RULES = ("send-receive", "span-start")
STAGES = ("producer", "preprocess", "inference", "postprocess", "consumer")

# Which of the numbers differ from run to run though the seed is the same: said in the file itself.
STOCHASTIC = (
    "violations",
    "violation_rate",
    "predicted_rate",
    "verdicts",
    "violation_verdicts",
    "residual_max_ns",
    "throughput_per_s",
    "separation_ms",
    "uncertainty_ns",
    "error_ns",
    "all",
    "bounds",
    "calibration",
    "rates",
    "claims.figure",
    "loads",
    "processes",
    "trace",
    "windows.edges",
    "windows.violations",
    "windows.violation_rate",
    "windows.predicted_rate",
    "long_runs.clock",
    "confusion.count",
    "heuristics",
)


class Separation(msgspec.Struct, frozen=True):
    """How far apart the two instants of an edge truly were, in ms, whatever the clocks said."""

    min: float
    p1: float
    p50: float
    p99: float


class Spread(msgspec.Struct, frozen=True):
    """Smallest, middle and largest of some nanoseconds."""

    min: int
    p50: int
    max: int


class AllEdges(msgspec.Struct, frozen=True):
    """The same counts over every edge between neighbouring stages, not only the one the skew can violate."""

    edges: int
    violations: int
    verdicts: dict[str, int]
    violation_verdicts: dict[str, int]


class Run(msgspec.Struct, kw_only=True):
    """One row: a cell of the sweep in one sidecar mode, by one rule.

    ``edges`` counts one edge per message: the skewed stage's incoming one when it is behind, its outgoing one when
    ahead. ``violations`` compares times as a backend sees them; under ``rewrite``, a send-receive gap inside the
    two spans' summed uncertainty counts as ``indeterminate`` and its size is in ``residuals_ns``.
    ``violation_verdicts`` are the verdicts of the violating edges, ``verdicts`` those of all counted ones.
    ``bound_misses``: tagged spans of the cell for which the injected offset lay outside
    ``clock.offset_ns`` +- ``clock.uncertainty_ns``; ``error_ns`` is the distance between the two.
    ``client``: on Kafka, how its clients were set: ``latency`` or ``default``; on Aeron the medium.
    """

    transport: str
    broker: str | None
    stage: str
    direction: str
    skew_ms: float
    mode: str
    rule: str
    messages: int
    edges: int
    violations: int
    violation_rate: float
    predicted_rate: float | None
    verdicts: dict[str, int]
    residual_max_ns: int
    bound_misses: int
    throughput_per_s: float
    outputs_correct: float
    separation_ms: Separation | None
    floor_ms: float
    violation_verdicts: dict[str, int] = {}
    residuals_ns: list[int] = []
    uncertainty_ns: Spread | None = None
    error_ns: Spread | None = None
    spans: int = 0
    spans_missing: int = 0
    spans_duplicated: int = 0
    spans_unsynchronized: int = 0
    all: AllEdges | None = None
    client: str | None = None


class Calibration(msgspec.Struct, kw_only=True):
    """What a quiet run and an unpaced one said of one transport, before any clock was skewed.

    ``capacity_per_s``: messages delivered per second when as many are sent as the pipeline takes. ``offered_per_s``:
    what the sweep offers, at most 40 % of that. ``floor_ms``: how long each stage works at least; ``floor_chosen``
    says whether it was chosen so that the median separation comes to 4 ms. ``hop_ms``: send to receive;
    ``separation_ms``: span start to span start, both of the edge that the skew can violate. ``service_ms``: by stage,
    the median of its work. ``predicted_threshold_ms``: the least separation, below which no skew violates an edge.
    ``halved``: a backlog grew, and the rate was halved once.
    """

    capacity_per_s: float
    offered_per_s: float
    floor_ms: float
    hop_p50_ms: float
    predicted_threshold_ms: float
    floor_chosen: bool = True
    hop_ms: Separation | None = None
    separation_ms: Separation | None = None
    service_ms: dict[str, float] = {}
    median_skew_ms: float | None = None
    """The predicted median, at which the sweep has a cell of its own."""
    broker: str | None = None
    client: str | None = None
    stage: str = ""
    direction: str = ""
    messages: int = 0
    halved: bool = False


class Rate(msgspec.Struct, kw_only=True):
    """Prediction and measurement in one cell, by one rule.

    ``predicted_rate``: the share of the quiet run's separations shorter than the skew, known before the cell was run;
    ``predicted_low`` and ``predicted_high`` hold 99 % of the rates that a cell of this size would have if the pipeline
    stayed as it was, and ``measured_low`` and ``measured_high`` 99 % of what the measured rate might as well have been:
    both by block bootstrap (see `law.py`). ``informative``: predicted between 2 and 98 %.
    """

    transport: str
    broker: str | None
    stage: str
    direction: str
    rule: str
    floor_ms: float
    skew_ms: float
    edges: int
    violations: int
    measured_rate: float
    measured_low: float
    measured_high: float
    predicted_rate: float
    predicted_low: float
    predicted_high: float
    separations: int
    informative: bool
    agrees: bool


class Load(msgspec.Struct, kw_only=True):
    """What queueing does to the same skew: one cell at one utilization, messages sent at random (Poisson).

    ``wait_ms``: the mean time a message waits for the model, and ``theory_ms`` what Pollaczek and Khinchine's formula
    gives for an M/G/1 queue of the same service times. Both are part of the separation, since ``message.received`` is
    stamped when a stage takes a message up.
    """

    transport: str
    broker: str | None
    utilization: float
    offered_per_s: float
    skew_ms: float
    edges: int
    violation_rate: float
    separation_ms: Separation
    wait_ms: float
    theory_ms: float


class Throughput(msgspec.Struct, kw_only=True):
    """Unpaced at 0 ms: messages delivered per second without sidecars and with them, in turn.

    ``ratio``: with by without, the mean over the pairs; ``ratio_low`` and ``ratio_high`` bound it at 95 %.
    """

    transport: str
    broker: str | None
    without_per_s: list[float]
    with_per_s: list[float]
    ratio: float
    ratio_low: float
    ratio_high: float


class TraceSpan(msgspec.Struct, kw_only=True):
    """One bar of the picture: microseconds from the trace's true beginning."""

    stage: str
    raw_start_us: float
    raw_end_us: float
    rewritten_start_us: float
    rewritten_end_us: float
    true_start_us: float
    uncertainty_us: float


class Trace(msgspec.Struct, kw_only=True):
    """One real message through all stages, as stamped and as rewritten."""

    transport: str
    broker: str | None
    stage: str
    direction: str
    skew_ms: float
    trace_id: str
    spans: list[TraceSpan]


class ProcessTime(msgspec.Struct, kw_only=True):
    """User and system seconds of one process of the run, and what it did."""

    name: str
    seconds: float


class Separations(msgspec.Struct, kw_only=True):
    """Every separation of an unskewed cell, sorted: the distribution that predicts all the others.

    ``edge``: of which edge, as ``preprocess>inference``; None: of the one that the run's own skew can violate.
    ``stage`` and ``direction``: of the run that measured it, for which several on one page tell them apart.
    """

    transport: str
    rule: str
    floor_ms: float
    separations_ns: list[int]
    edge: str | None = None
    stage: str | None = None
    direction: str | None = None


class Window(msgspec.Struct, kw_only=True):
    """What a backend would have seen in one stretch of a long run, by one rule, on one edge, in one mode.

    ``skew_ms``: how far the clock truly was off towards ``direction`` at the window's edges' instants, least, mean
    and greatest. ``violations``: negative gaps; under ``rewrite`` those beyond the two spans' summed uncertainty, and
    ``indeterminate`` the ones within it. ``own_rate``:
    the share of the window's edges that were closer together than the skew of their moment, by the host's raw clock.
    ``bound_misses``: spans whose tag did not hold the truth. ``ambiguous``: spans stamped while the clock was being
    changed, so that two truths are possible: a miss only where the tag holds neither.
    """

    run: str
    mode: str
    rule: str
    direction: str
    start_s: float
    end_s: float
    skew_ms: tuple[float, float, float]
    edges: int
    violations: int
    violation_rate: float
    predicted_rate: float | None
    own_rate: float | None = None
    indeterminate: int = 0
    verdicts: dict[str, int] = {}
    spans: int = 0
    bound_misses: int = 0
    ambiguous: int = 0


class ClockEvent(msgspec.Struct, kw_only=True):
    """What was done to the clock of a long run: ``drift``, ``step``, ``slew``, ``hold``."""

    at_s: float
    what: str
    text: str


class ClockSample(msgspec.Struct, kw_only=True):
    """One moment of a long run: what the clock truly did, and what was said of it.

    ``skew_ms``: how far the clock is behind the reference (negative: ahead); ``least_ms`` and ``greatest_ms``: the
    bound on that, from the tags; None while there is none. ``health_clock``: the signal: true while no child span
    was ``skewed`` for 30 s. ``clock_innocent``: the truth: none was turned round by the clock for 30 s.
    ``health_any``: no ``skewed`` and no ``impossible`` one.
    """

    at_s: float
    skew_ms: float
    least_ms: float | None
    greatest_ms: float | None
    health_clock: bool
    health_any: bool
    clock_innocent: bool


class LongRun(msgspec.Struct, kw_only=True):
    """A run over time: its clock's story. Its rates are the ``windows`` with the same ``run``."""

    run: str
    simulated: bool
    transport: str
    broker: str | None
    stage: str
    reference: str
    duration_s: float
    window_s: float
    drift_ppm: float
    rate_per_s: float
    floor_ms: float
    seed: int
    events: list[ClockEvent]
    clock: list[ClockSample]
    spans: int = 0
    spans_unsynchronized: int = 0
    bound_misses: int = 0
    ambiguous: int = 0
    """Spans stamped while the clock was being changed: see :class:`Window`."""
    false_alarms: int = 0
    """Samples at which the signal blamed a clock that had turned no edge round."""


class Confusion(msgspec.Struct, kw_only=True):
    """How many edges of one truth got one verdict.

    ``truth``: ``in order`` (stamped so, and so it was), ``clock`` (stamped backwards by clocks that were off),
    ``not the clock`` (backwards in truth and in the stamps: a late stamp), ``hidden`` (backwards, stamped in order).
    """

    situation: str
    transport: str
    rule: str
    truth: str
    verdict: str
    count: int


class Heuristic(msgspec.Struct, kw_only=True):
    """One way of correcting traces, on the same traces, against the truth.

    ``edges``: ``synchronous`` (a caller that waits), ``asynchronous`` (one that does not) or ``all``. Errors are of
    the corrected starts of the edges' receiving spans against the true ones. ``left``: relations of order that were
    true, looked violated before and still do; ``introduced``: that were true and looked so, and no longer do;
    ``undecided``: turned round by less than the two spans' summed uncertainty, so that nothing is claimed of them.
    """

    traces: str
    method: str
    edges: str
    skew_ms: float
    spans: int
    rms_us: float
    p99_us: float
    max_us: float
    relations: int
    violated_before: int
    left: int
    introduced: int
    undecided: int = 0


class Missing(msgspec.Struct, kw_only=True):
    """A transport that was asked for and cannot be run here, and what it lacks."""

    transport: str
    reason: str


class Bounds(msgspec.Struct, kw_only=True):
    """What the clocks' bounds were worth on one transport, over the spans of its tagged cells.

    ``width_ns`` is that of the whole interval (twice the uncertainty) on the nodes that are not the reference,
    ``width_p50_ns`` the middle one by node; ``coverage`` the share of spans whose true offset lay inside (None: no span
    had a bound); ``residual_max_ns`` the largest send-receive gap still negative after rewrite and within the summed
    uncertainty, ``residuals_beyond`` how many were beyond it; ``messages`` what the daemons exchanged.
    """

    transport: str
    broker: str | None
    path: str
    spans: int
    spans_unsynchronized: int
    coverage: float | None
    width_ns: Spread | None
    width_p50_ns: dict[str, int]
    residual_max_ns: int
    residuals_beyond: int
    messages: dict[str, int]


class Probe(msgspec.Struct, kw_only=True):
    """What ``skewd check`` said on the skewed node."""

    situation: str
    command: str
    exit_code: int
    line: str
    perfdata: str
    seconds: float


class Claim(msgspec.Struct, kw_only=True):
    """One statement and what this run has to say of it.

    ``kind``: ``must-hold`` on any machine, or about this ``machine``. ``judged``: how many edges, spans or messages it
    was decided on; ``wrong``: how many of them speak against it; ``undecided``: how many could not be judged.
    """

    id: str
    kind: Literal["must-hold", "machine"]
    verdict: Literal["holds", "fails", "inconclusive", "not-run"]
    figure: str
    statement: str = ""
    judged: int = 0
    wrong: int = 0
    undecided: int = 0


class Results(msgspec.Struct, kw_only=True):
    """The whole of ``results.json``."""

    schema: int = SCHEMA
    runs: list[Run]
    host: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, str | int | float | list[str | float] | None] = {}
    calibration: dict[str, Calibration] = {}
    claims: list[Claim] = []
    rates: list[Rate] = []
    loads: list[Load] = []
    throughput: list[Throughput] = []
    trace: Trace | None = None
    processes: list[ProcessTime] = []
    windows: list[Window] = []
    long_runs: list[LongRun] = []
    confusion: list[Confusion] = []
    heuristics: list[Heuristic] = []
    separations: list[Separations] = []
    bounds: list[Bounds] = []
    missing: list[Missing] = []
    probes: list[Probe] = []
    stochastic: list[str] = msgspec.field(default_factory=lambda: list(STOCHASTIC))
    seconds: float = 0.0


def skew_label(skew_ms: float) -> str:
    """``5 ms``, ``2 s``."""
    return f"{skew_ms / 1000:g} s" if skew_ms >= 1000 else f"{skew_ms:g} ms"


def save(results: Results, path: Path) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    os.replace(unfinished, path)


def load(path: Path) -> Results:
    """Reads a ``results.json``.

    Raises:
        ValueError: it is none, or one of a newer schema; the message says which.
        OSError: it cannot be read.
    """
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a results.json of `skewd experiment run`: {error}") from error
    if results.schema > SCHEMA:
        raise ValueError(f"{path} has schema {results.schema}, this version reads up to {SCHEMA}; upgrade skewd")
    return results


def merged(parts: list[Results]) -> Results:
    """Several runs of the experiment as one, for one report: say, each transport's from a machine of its own.

    Raises:
        ValueError: two of them hold the same cell, which one report cannot show; the message says which.
    """
    first, *more = parts
    if not more:
        return first
    runs = [run for part in parts for run in part.runs]
    seen: set[tuple[str, ...]] = set()
    clients: dict[str, str | None] = {}
    for run in runs:
        cell = (run.transport, run.stage, run.direction, skew_label(run.skew_ms), run.mode, run.rule)
        if cell in seen:
            raise ValueError(f"two of the results have the row '{', '.join(cell)}'; give each its own report")
        seen.add(cell)
        if (other := clients.setdefault(run.transport, run.client)) != run.client:
            raise ValueError(
                f"one of the results has {run.transport} with {other}, another with {run.client}: a page has one curve "
                "for a transport; give each its own report"
            )
    stories = [run.run for part in parts for run in part.long_runs]
    if twice := next((name for name in stories if stories.count(name) > 1), None):
        raise ValueError(f"two of the results have the long run '{twice}'; give each its own report")
    return Results(
        runs=runs,
        host=_joined([part.host for part in parts]),
        versions={key: str(value) for key, value in _joined([part.versions for part in parts]).items()},
        settings=_joined([part.settings for part in parts]),
        calibration=_calibrations(parts),
        claims=_claims(parts),
        rates=[row for part in parts for row in part.rates],
        loads=[row for part in parts for row in part.loads],
        throughput=[row for part in parts for row in part.throughput],
        trace=next((part.trace for part in parts if part.trace is not None), None),
        processes=[row for part in parts for row in part.processes],
        windows=[row for part in parts for row in part.windows],
        long_runs=[row for part in parts for row in part.long_runs],
        confusion=[row for part in parts for row in part.confusion],
        heuristics=[row for part in parts for row in part.heuristics],
        separations=[row for part in parts for row in part.separations],
        bounds=[row for part in parts for row in part.bounds],
        missing=[row for part in parts for row in part.missing],
        probes=[row for part in parts for row in part.probes],
        stochastic=first.stochastic,
        seconds=sum(part.seconds for part in parts),
    )


def _calibrations(parts: Sequence[Results]) -> dict[str, Calibration]:
    """By transport; where two runs calibrated one, also by stage and direction."""
    found: dict[str, Calibration] = {}
    for part in parts:
        for transport, calibration in part.calibration.items():
            twice = sum(transport in other.calibration for other in parts) > 1
            found[f"{transport} ({calibration.stage} {calibration.direction})" if twice else transport] = calibration
    return found


_WORST_FIRST = ("fails", "inconclusive", "holds", "not-run")


def _claims(parts: Sequence[Results]) -> list[Claim]:
    """Each claim once: with the worst verdict that a run gave it, that run's figure, and all runs' counts."""
    found: dict[str, list[Claim]] = {}
    for part in parts:
        for claim in part.claims:
            found.setdefault(claim.id, []).append(claim)
    joined = []
    for same in found.values():
        worst = min(same, key=lambda claim: _WORST_FIRST.index(claim.verdict))
        counts = {name: sum(getattr(claim, name) for claim in same) for name in ("judged", "wrong", "undecided")}
        joined.append(msgspec.structs.replace(worst, **counts))
    return joined


def _joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each key's value where all agree, and else the different ones side by side."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table[key] for table in tables if key in table]
        same = all(value == values[0] for value in values)
        joined[key] = values[0] if same else " / ".join(dict.fromkeys(str(value) for value in values))
    return joined
