"""Traces of a service that calls another, made up, with clocks that are off and the tags that real bounds give them.

The problem: the reference pipeline passes messages on, and nobody in it waits for an answer; but what trace tools'
heuristics are made for are calls, where a client waits for a server. The insight: of a call only the times need to be
made up. The clocks' bounds are those of the shipped estimator (``world.World``), so each span carries the tag that
it would carry on a real node.

A trace is one request at a gateway on the reference host: a call to a worker on the skewed host (with work inside it,
on the same host), whose answer takes longer on its way back than the question did, as answers do; an audit record that
the worker writes after it has answered; a message that the gateway sends and forgets; and, for one in ten, a second
call that the gateway gives up on while the worker goes on. The last three are asynchronous: their truth is to lie
outside of their parents.

Limits: one worker, one level of calls; delays are drawn, each on its own. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from skewd.bounds.history import Status
from skewd_pipeline.heuristics import TraceSpan, compare
from skewd_pipeline.results import Heuristic
from skewd_pipeline.world import SETTLE_NS, World

TRACES = 400
EVERY_NS = 40_000_000
SKEWS_MS = (0.0, 1.0, 2.0, 5.0, 10.0)
NAME = "calls, simulated"
GIVEN_UP = 0.1


def call_traces(world: World, gateway: str, worker: str, count: int, seed: str) -> list[list[TraceSpan]]:
    """``count`` traces, stamped by the world's clocks and tagged by its nodes."""
    choose = random.Random(f"calls/{seed}")
    world.advance(SETTLE_NS)
    traces = []
    for number in range(count):
        begin_ns = SETTLE_NS + number * EVERY_NS
        world.advance(begin_ns + 2 * EVERY_NS)  # an exporter's spans are a little old when they are tagged
        traces.append(_trace(world, gateway, worker, begin_ns, f"{number:04d}", choose))
    return traces


def _trace(
    world: World, gateway: str, worker: str, begin_ns: int, trace_id: str, choose: random.Random
) -> list[TraceSpan]:
    spans: list[TraceSpan] = []

    def span(
        name: str, parent: str, host: str, kind: str, start_ns: int, end_ns: int, asynchronous: bool = False
    ) -> None:
        node = world.nodes[host]
        stamped = node.wall(start_ns)
        said = world.correction(host, stamped)
        known = said.status is not Status.UNSYNCHRONIZED
        spans.append(
            TraceSpan(
                span_id=f"{trace_id}/{name}",
                parent_id=f"{trace_id}/{parent}" if parent else "",
                trace_id=trace_id,
                host=host,
                kind=kind,
                start_ns=stamped,
                end_ns=node.wall(end_ns),
                true_start_ns=world.nodes[gateway].wall(start_ns),
                true_end_ns=world.nodes[gateway].wall(end_ns),
                asynchronous=asynchronous,
                offset_ns=said.offset_ns if known else None,
                uncertainty_ns=said.uncertainty_ns if known else None,
            )
        )

    def delay_ns(least_us: float, typical_us: float) -> int:
        return round(1e3 * (least_us + choose.expovariate(1 / typical_us)))

    def call(name: str, at_ns: int, gives_up_ns: int | None) -> int:
        """A call; when the client has its answer, or gave up."""
        there, back = delay_ns(100, 120), delay_ns(150, 500)
        work = delay_ns(2_000, 4_000)
        served = at_ns + there
        answered = served + work
        returned = answered + back if gives_up_ns is None else at_ns + gives_up_ns
        outlived = returned < answered
        span(name, "gateway", gateway, "client", at_ns, returned)
        span(f"{name}/server", name, worker, "server", served, answered, asynchronous=outlived)
        inside = served + work // 5
        span(f"{name}/work", f"{name}/server", worker, "internal", inside, inside + work // 2)
        if gives_up_ns is None:
            written = answered + delay_ns(100, 800)
            span("audit", f"{name}/server", worker, "internal", written, written + delay_ns(500, 4_000), True)
        return returned

    at_ns = begin_ns + delay_ns(100, 200)
    at_ns = call("call", at_ns, None) + delay_ns(50, 200)
    sent = at_ns + delay_ns(20, 30)
    span("send", "gateway", gateway, "producer", at_ns, sent)
    taken = sent + delay_ns(100, 400)
    span("consume", "send", worker, "consumer", taken, taken + delay_ns(1_000, 3_000), True)
    at_ns = sent + delay_ns(20, 100)
    if choose.random() < GIVEN_UP:
        at_ns = call("late", at_ns, 1_500_000) + delay_ns(20, 100)
    span("gateway", "", gateway, "server", begin_ns, at_ns)
    return spans


def compared(
    *, direction: str = "behind", skews_ms: Sequence[float] = SKEWS_MS, traces: int = TRACES, seed: int = 1
) -> list[Heuristic]:
    """Raw, both heuristics and ours on calls to a worker whose clock is off, at each skew."""
    gateway, worker = "preprocess", "inference"
    rows = []
    for skew_ms in skews_ms:
        skew_ns = round(skew_ms * 1e6) * (1 if direction == "behind" else -1)
        world = World(stage=worker, reference=gateway, skew_ns=skew_ns, seed=f"{seed}/{skew_ms:g}")
        made = call_traces(world, gateway, worker, traces, f"{seed}/{skew_ms:g}")
        rows += compare(NAME, skew_ms, made)
    return rows
