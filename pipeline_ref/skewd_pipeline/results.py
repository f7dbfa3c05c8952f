"""What a run of the experiment leaves behind: ``results.json``, its shape and its reading.

One row (`Run`) for each transport, skew, mode and rule, with the keys other tools may rely on, and everything a
reader needs to judge the numbers: host, versions, seed, the kind of Kafka broker, the checks and what they
measured. The report is made from this file alone, so it can be rebuilt anywhere.

Limits: reading is strict about types and tolerant of unknown keys (a newer version's file still reads).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

SCHEMA = 1
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
    "law.measured_*",
    "law.predicted_*",
    "law.agrees",
    "law.own_rate",
    "shorter_separations",
    "thresholds.*_ms",
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
    times_changed: int | None = None
    durations_changed: int | None = None
    order_changed: int | None = None
    all: AllEdges | None = None
    client: str | None = None
    shorter_separations: int | None = None
    """How many of this cell's own edges were closer together than the skew, by the host's raw clock alone."""


class Throughput(msgspec.Struct, kw_only=True):
    """Messages delivered to the consumer per second, in one situation; ``offered_per_s`` None means unpaced."""

    transport: str
    skew_ms: float
    sidecar: str
    offered_per_s: float | None
    delivered_per_s: float
    messages: int
    delivered: int


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


class LawCell(msgspec.Struct, kw_only=True):
    """Prediction over measurement in one skewed cell, by one rule; see ``law.py`` for the intervals.

    ``measured_low`` and ``measured_high``: Clopper and Pearson's 99 % interval of the measured rate alone.
    ``predicted_low`` and ``predicted_high``: the measured rates that the ``separations`` of the synchronized run do
    not refute at 99 % (Thatcher's interval: both samples are allowed for). ``agrees``: the measured rate is in it.
    ``own_rate``: the share of this very cell's separations, by the host's raw clock, that were shorter than the skew.
    It is the measured rate if the law holds edge by edge (up to readings that are microseconds apart); where it is, and
    the prediction is not, it was the pipeline that changed between cells.
    """

    transport: str
    broker: str | None
    edge: str
    direction: str
    rule: str
    floor_ms: float
    skew_ms: float
    edges: int
    violations: int
    measured_rate: float
    measured_low: float
    measured_high: float
    separations: int
    predicted_rate: float
    predicted_low: float
    predicted_high: float
    agrees: bool
    own_rate: float | None = None


class Threshold(msgspec.Struct, kw_only=True):
    """Where violations begin: derived from the floor and the least hop, predicted by the least separation, measured.

    ``none_at_ms``: the largest skew of the grid up to which no edge was violated; ``some_at_ms``: the least with one.
    """

    transport: str
    broker: str | None
    rule: str
    edge: str
    direction: str
    floor_ms: float
    derived_ms: float | None
    predicted_ms: float
    separations: int
    none_at_ms: float | None
    some_at_ms: float | None


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


class Check(msgspec.Struct, kw_only=True):
    """One statement the experiment makes, and whether this run bears it out. ``passed`` None: not applicable."""

    name: str
    statement: str
    passed: bool | None
    measured: str


class Results(msgspec.Struct, kw_only=True):
    """The whole of ``results.json``."""

    schema: int = SCHEMA
    runs: list[Run]
    host: dict[str, str | int | float]
    versions: dict[str, str]
    settings: dict[str, str | int | float | list[str | float] | None] = {}
    throughput: list[Throughput] = []
    floor0: list[Run] = []
    floors: list[Run] = []
    law: list[LawCell] = []
    thresholds: list[Threshold] = []
    windows: list[Window] = []
    long_runs: list[LongRun] = []
    confusion: list[Confusion] = []
    heuristics: list[Heuristic] = []
    separations: list[Separations] = []
    bounds: list[Bounds] = []
    missing: list[Missing] = []
    probes: list[Probe] = []
    checks: list[Check] = []
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
        throughput=[row for part in parts for row in part.throughput],
        floor0=[row for part in parts for row in part.floor0],
        floors=[row for part in parts for row in part.floors],
        law=[row for part in parts for row in part.law],
        thresholds=[row for part in parts for row in part.thresholds],
        windows=[row for part in parts for row in part.windows],
        long_runs=[row for part in parts for row in part.long_runs],
        confusion=[row for part in parts for row in part.confusion],
        heuristics=[row for part in parts for row in part.heuristics],
        separations=[row for part in parts for row in part.separations],
        bounds=[row for part in parts for row in part.bounds],
        missing=[row for part in parts for row in part.missing],
        probes=[row for part in parts for row in part.probes],
        checks=[row for part in parts for row in part.checks],
        stochastic=first.stochastic,
        seconds=sum(part.seconds for part in parts),
    )


def _joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each key's value where all agree, and else the different ones side by side."""
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table[key] for table in tables if key in table]
        same = all(value == values[0] for value in values)
        joined[key] = values[0] if same else " / ".join(dict.fromkeys(str(value) for value in values))
    return joined
