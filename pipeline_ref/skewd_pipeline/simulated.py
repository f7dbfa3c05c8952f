"""The long run in seconds: the code that ships, driven over simulated time, from a seed.

The problem: ten minutes of drift take ten minutes, and a day takes a day; nobody waits that long to see an idea, and
no test may. The insight: the estimator, the history of bounds and the writer of corrections are pure. So the true
time, the clocks, the wires and the messages can be made up, and everything between them be the code of every real
node: bounds come from the estimator (``world.py``), serialized OTLP goes through ``patch_traces``, and what comes out
is read and judged as the real experiment's spans are.

Three stages take part: the one whose clock moves, and its two neighbours, one of which is the reference. Separations
are drawn from a model (a floor, a least hop, and tails), or from a synchronized run's own, when its results.json is
given. The distribution that predicts is drawn apart from the one that is measured, as in a real run.

`run` is the shell around it that says what it ran on.

Limits: no queue, no scheduler, no loss: messages take what is drawn for them, and each on its own. A draw from
measured separations takes hop and work independently. The bound's width follows from the simulated wire, not from
this machine.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd_pipeline.calls import compared
from skewd_pipeline.claims import claims
from skewd_pipeline.law import edge_name
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.overtime import Change, Story, events, false_alarms, schedule
from skewd_pipeline.ran_on import host, versions
from skewd_pipeline.results import MODES, LongRun, Results, Separations
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_SENT, RECEIVED, SENT, STAGE, SpanRecord, spans_of
from skewd_pipeline.world import SECOND, SETTLE_NS, World
from skewd_sidecar.patch import Mode, PatchOptions, patch_traces

EXPORT_NS = 5 * SECOND
RATE = 40.0
FLOOR_NS = 3_500_000
"""What is simulated when nobody says at which rate and with which service floor."""

KNOWN = 2_000
"""Separations of each edge that a model's synchronized run has."""

Draw = Callable[[random.Random], tuple[int, int]]
"""What a message takes on one edge: the sending stage's work and the hop, ns."""


def model_draw(floor_ns: int) -> Draw:
    """A stage's work and a hop like those of the pipeline over ZeroMQ: a least value, a body, a tail."""

    def draw(choose: random.Random) -> tuple[int, int]:
        work = floor_ns + 40_000 + choose.lognormvariate(11.0, 0.5)
        hop = 90_000 + choose.lognormvariate(11.4, 0.6)
        if choose.random() < 0.03:
            work += choose.expovariate(1 / 2e6)
        if choose.random() < 0.03:
            hop += choose.expovariate(1 / 1.5e6)
        return round(work), round(hop)

    return draw


def measured_draw(starts_ns: Sequence[int], hops_ns: Sequence[int]) -> Draw:
    """Separations as a run measured them."""

    def draw(choose: random.Random) -> tuple[int, int]:
        start, hop = choose.choice(starts_ns), choose.choice(hops_ns)
        return max(0, start - hop), min(hop, start)

    return draw


def draws_for(stages: Sequence[str], floor_ns: int, measured: Sequence[Separations], transport: str) -> dict[str, Draw]:
    """By edge: from the measured separations of this transport and floor, else from the model.

    Raises:
        ValueError: there are separations, but none of this edge.
    """
    found = {}
    for edge in pairwise(stages):
        name = edge_name(edge)
        if not measured:
            found[name] = model_draw(floor_ns)
            continue
        mine = {
            each.rule: each.separations_ns
            for each in measured
            if (each.transport, each.edge, each.floor_ms) == (transport, name, floor_ns / 1e6) and each.separations_ns
        }
        if len(mine) < 2:
            raise ValueError(
                f"--separations: that run has no separations of {name} on {transport} with a floor of "
                f"{floor_ns / 1e6:g} ms; it has "
                + ", ".join(sorted({f"{each.edge} on {each.transport} at {each.floor_ms:g} ms" for each in measured}))
            )
        found[name] = measured_draw(mine["span-start"], mine["send-receive"])
    return found


def _message(
    stages: Sequence[str], begin_ns: int, draws: Mapping[str, Draw], choose: random.Random
) -> Iterator[tuple[str, int, int, bytes, bytes, bytes]]:
    """Each stage's part in a message: its name, true start, true send, trace, span and parent."""
    trace, parent, at_ns = choose.randbytes(16), b"", begin_ns
    edges = [edge_name((a, b)) for a, b in pairwise(stages)]
    for name, edge in zip(stages, [*edges, edges[-1]], strict=True):
        span = choose.randbytes(8)
        work, hop = draws[edge](choose)
        yield name, at_ns, at_ns + work, trace, span, parent
        at_ns, parent = at_ns + work + hop, span


class Traffic:
    """Messages at an even rate through the three stages, their spans exported every ``EXPORT_NS`` in three modes."""

    def __init__(self, world: World, draws: Mapping[str, Draw], rate: float, seed: str) -> None:
        self._world = world
        self._draws = draws
        self._rate = rate
        self._choose = random.Random(f"traffic/{seed}")
        self._sent = 0

    def until(self, begin_ns: int, to_ns: int) -> dict[str, list[SpanRecord]]:
        """By mode, the spans of all messages that begin before ``to_ns``, as they come out of the sidecars.

        True time goes on to where an exporter would have sent them.
        """
        requests = {name: ExportTraceServiceRequest() for name in self._world.stages}
        scopes = {}
        for name, request in requests.items():
            resource = request.resource_spans.add()
            attribute = resource.resource.attributes.add()
            attribute.key, attribute.value.string_value = STAGE, name
            scopes[name] = resource.scope_spans.add()
        while (at_ns := begin_ns + round(self._sent / self._rate * SECOND)) < to_ns:
            self._sent += 1
            for name, start, sent, trace, span_id, parent in _message(
                self._world.stages, at_ns, self._draws, self._choose
            ):
                node = self._world.nodes[name]
                span = scopes[name].spans.add()
                span.trace_id, span.span_id, span.parent_span_id = trace, span_id, parent
                span.name = f"{name} process"
                span.start_time_unix_nano = node.wall(start)
                span.end_time_unix_nano = node.wall(sent + 15_000)
                attribute = span.attributes.add()
                attribute.key, attribute.value.int_value = HOST_RAW, start
                attribute = span.attributes.add()
                attribute.key, attribute.value.int_value = HOST_RAW_SENT, sent
                if parent:
                    event = span.events.add()
                    event.name, event.time_unix_nano = RECEIVED, node.wall(start)
                event = span.events.add()
                event.name, event.time_unix_nano = SENT, node.wall(sent)
        self._world.advance(to_ns + SECOND)
        found: dict[str, list[SpanRecord]] = {mode: [] for mode in MODES}
        for name, request in requests.items():
            body = request.SerializeToString()
            history = self._world.nodes[name].history
            for mode in MODES:
                patched = patch_traces(body, PatchOptions(mode=Mode(mode), node=name), history.at).body
                found[mode] += spans_of(patched)
        return found


def known_separations(draws: Mapping[str, Draw], count: int, seed: str) -> dict[tuple[str, str], list[int]]:
    """What a synchronized run would have measured, ascending, by rule and edge."""
    choose = random.Random(f"known/{seed}")
    found: dict[tuple[str, str], list[int]] = {}
    for name, draw in draws.items():
        drawn = [draw(choose) for _ in range(count)]
        found["send-receive", name] = sorted(hop for _, hop in drawn)
        found["span-start", name] = sorted(work + hop for work, hop in drawn)
    return found


def long_run(
    options: ExperimentOptions, measured: Sequence[Separations], progress: Callable[[float], None] = lambda share: None
) -> Results:
    """The whole run, for each transport asked for when its separations were measured, else for one model.

    Args:
        progress: told the share that is done.

    Raises:
        ValueError: the measured separations do not fit the options.
    """
    assert options.duration_ns is not None, "the options refuse a simulated run without one"
    results = Results(runs=[], host={}, versions={})
    transports = tuple(dict.fromkeys(options.transports)) if measured else ("model",)
    for number, transport in enumerate(transports):

        def told(share: float, number: int = number) -> None:
            progress((number + share) / len(transports))

        _long_run(options, measured, transport, results, told)
    return results


def run(
    options: ExperimentOptions, measured: Sequence[Separations], progress: Callable[[float], None] = lambda share: None
) -> Results:
    """The whole simulated experiment: the long run, its settings and its claims.

    Raises:
        ValueError: the measured separations do not fit the options.
    """
    begun = time.monotonic()
    results = long_run(options, measured, progress)
    results.heuristics = compared(seed=options.seed)
    results.host, results.versions = host(), versions()
    results.settings = {
        "simulated": 1,
        "stage": options.stage,
        "direction": options.direction,
        "reference": options.reference,
        "rate_per_s": RATE if options.rate is None else options.rate,
        "seed": options.seed,
        "service_floor_ms": (FLOOR_NS if options.service_floor_ns is None else options.service_floor_ns) / 1e6,
        "duration_s": (options.duration_ns or 0) / 1e9,
        "drift_ppm": options.drift_ppb / 1e3,
        "separations": "as a run measured them" if measured else "of a model",
    }
    # All else follows from the seed.
    results.stochastic = ["seconds", "host.load_1min_before"]
    results.claims = claims(results, None)
    results.seconds = round(time.monotonic() - begun, 1)
    return results


def _long_run(
    options: ExperimentOptions,
    measured: Sequence[Separations],
    transport: str,
    results: Results,
    progress: Callable[[float], None],
) -> None:
    duration_ns = options.duration_ns or 0
    rate = RATE if options.rate is None else options.rate
    floor_ns = _floor_ns(options, measured, transport)
    seed = f"{options.seed}/{transport}"
    changes = schedule(duration_ns, options.drift_ppb, options.direction)
    world = World(
        stage=options.stage,
        reference=options.reference,
        drift_ppb=-options.drift_ppb if options.direction == "behind" else options.drift_ppb,
        changes=changes,
        seed=seed,
    )
    draws = draws_for(world.stages, floor_ns, measured, transport)
    known = known_separations(draws, KNOWN, seed)
    if measured:
        # What predicts is what that run measured: the draws are other samples of it.
        known = {
            (each.rule, each.edge): each.separations_ns
            for each in measured
            if each.edge is not None
            and each.edge in draws
            and (each.transport, each.floor_ms) == (transport, floor_ns / 1e6)
        }
    run = f"{transport}, simulated"
    story = Story(
        run=run,
        transport=transport,
        stage=options.stage,
        deviation=world.deviation,
        begin_ns=SETTLE_NS,
        duration_ns=duration_ns,
        known=known,
    )
    world.advance(SETTLE_NS)
    traffic = Traffic(world, draws, rate, seed)
    for to_ns in range(SETTLE_NS + EXPORT_NS, SETTLE_NS + duration_ns + EXPORT_NS, EXPORT_NS):
        spans = traffic.until(SETTLE_NS, min(to_ns, SETTLE_NS + duration_ns))
        for mode in MODES:
            story.add(mode, spans[mode])
        progress(min(1.0, (to_ns - SETTLE_NS) / duration_ns))
    record(
        results,
        story,
        changes,
        options,
        transport=transport,
        broker=None,
        simulated=True,
        rate=rate,
        floor_ns=floor_ns,
    )
    results.separations += [
        Separations(transport=transport, rule=rule, edge=edge, floor_ms=floor_ns / 1e6, separations_ns=values)
        for (rule, edge), values in known.items()
    ]


def _floor_ns(options: ExperimentOptions, measured: Sequence[Separations], transport: str) -> int:
    """As asked; else that of the run whose separations are drawn from."""
    if options.service_floor_ns is not None:
        return options.service_floor_ns
    return next((round(each.floor_ms * 1e6) for each in measured if each.transport == transport), FLOOR_NS)


def record(
    results: Results,
    story: Story,
    changes: Sequence[Change],
    options: ExperimentOptions,
    *,
    transport: str,
    broker: str | None,
    simulated: bool,
    rate: float,
    floor_ns: int,
) -> None:
    """Adds a story to the results; the real long run's too."""
    clock = story.clock()
    results.windows += story.windows()
    results.confusion += story.tally.rows()
    results.long_runs.append(
        LongRun(
            run=story.run,
            simulated=simulated,
            transport=transport,
            broker=broker,
            stage=options.stage,
            reference=options.reference,
            duration_s=(options.duration_ns or 0) / 1e9,
            window_s=story.window_ns / 1e9,
            drift_ppm=options.drift_ppb / 1e3,
            rate_per_s=rate,
            floor_ms=floor_ns / 1e6,
            seed=options.seed,
            events=events(changes),
            clock=clock,
            spans=story.spans,
            spans_unsynchronized=story.unsynchronized,
            bound_misses=story.bound_misses,
            ambiguous=story.ambiguous,
            false_alarms=false_alarms(clock),
        )
    )
