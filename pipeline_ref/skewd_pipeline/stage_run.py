"""``skewd experiment stage NAME --config FILE``: one stage anywhere, until its messages are through.

The stages are those of ``skewd experiment run``; what is different is who tells them. There, one parent on one machine;
here nobody: each reads the same file (``stage_config.py``), opens its ends, carries the run's messages, and writes what
became of them. The clock is the host's own. Start the consumer first and the producer last: what is sent to nobody
waits, and its separation is then the waiting. The consumer may also collect the spans of all stages (behind their
sidecars) and counts, edge by edge, what a backend would see and what the tags say of it.

Ends when all messages came, when none came for ``idle_limit``, or on SIGTERM or SIGINT, always with what there is.
Exit codes: 0 all messages through and right, every span exported; 1 not; 64 the file can't be used; 128 + n after
signal n.

Limits: the truth is not known on real hosts, so nothing here says whether a bound held. At most ``COLLECT_GRACE_S``
is waited for late spans.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from skewd.ports import split_address
from skewd_pipeline.options import STAGES
from skewd_pipeline.plan import CellPlan
from skewd_pipeline.stage_config import OneStage, StageConfigError, load

COLLECT_GRACE_S = 20.0
COLLECT_POLL_S = 0.2
EX_USAGE = 64


class EdgeCounts(msgspec.Struct, kw_only=True):
    """What the collected spans say of all edges, by one rule.

    ``negative``: received before it was sent, as a backend sees it. ``verdicts``: by the tags, of all edges, and
    ``negative_verdicts`` of those; without tags both are empty.
    """

    rule: str
    edges: int
    negative: int
    verdicts: dict[str, int]
    negative_verdicts: dict[str, int]
    gap_ms: dict[str, float]


class StageResult(msgspec.Struct, kw_only=True):
    """``NAME.json``. ``first_ns`` and ``last_ns`` are of this host's monotonic clock."""

    run: str
    stage: str
    host: str
    transport: str
    messages: int
    sent: int | None = None
    received: int | None = None
    correct: int | None = None
    failed: int = 0
    strange: int = 0
    too_old: int = 0
    first_ns: int = 0
    last_ns: int = 0
    flushed: bool = False
    stamp_offset_ns: int = 0
    service_floor_ms: float = 0.0
    counters: dict[str, int] = {}
    spans_collected: int | None = None
    edges: list[EdgeCounts] = []


def main(name: str, path: Path) -> int:
    """Runs the stage; the exit code."""
    try:
        told = load(path, name)
    except StageConfigError as error:
        print(f"skewd experiment stage: {error}", file=sys.stderr)
        return EX_USAGE
    if told.stamp_offset_ns:
        print(
            f"skewd experiment stage: {name} adds {told.stamp_offset_ns / 1e6:g} ms to the STAMPS it makes; its clock "
            "is as right as it was, so no bound on a clock shows this and no correction of clocks cures it",
            file=sys.stderr,
        )
    from skewd_pipeline.broker_plan import BrokerError
    from skewd_pipeline.corpus import CorpusError
    from skewd_pipeline.model import ModelError
    from skewd_pipeline.transports import TransportError

    try:
        return _run(told)
    except (TransportError, CorpusError, ModelError, BrokerError, OSError) as error:
        print(f"skewd experiment stage: {error}", file=sys.stderr)
        return 1


def _run(told: OneStage) -> int:
    from skewd_pipeline.stage_orders import Cell, StageConfig
    from skewd_pipeline.worker import Commands, Stage

    items = _items(told)
    commands = Commands(reads=False)
    caught: list[int] = []

    def stop(number: int, _frame: object) -> None:
        caught.append(number)
        commands.finish.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    exporters = {} if told.otlp is None else {"otlp": told.otlp}
    config = StageConfig(told.name, "", exporters, told.model, str(told.items), stamp_offset_ns=told.stamp_offset_ns)
    with _collecting(told) as collected:
        stage = Stage(config, commands)
        _make_topics(told)
        if told.inbox is not None:
            stage.listen(told.inbox)
        if told.outbox is not None:
            stage.connect(told.outbox)
        plan = CellPlan(
            told.run, told.run, "stage", _transport(told), 0, told.floor_ns, told.messages, told.rate, (*exporters,),
            f"{told.seed}/{told.run}",
        )  # fmt: skip
        cell = Cell(
            name=told.run,
            transport=plan.transport,
            messages=told.messages,
            floor_ns=told.floor_ns,
            exporters=list(exporters),
            rate=told.rate,
            items=plan.items(items) if told.name == STAGES[0] else None,
            idle_limit_s=told.idle_limit_s,
        )
        outcome = stage.cell(cell, armed=_ready)
        flushed = stage.flush()
        result = StageResult(
            run=told.run,
            stage=told.name,
            host=platform.node(),
            transport=plan.transport,
            messages=told.messages,
            flushed=flushed,
            stamp_offset_ns=told.stamp_offset_ns,
            service_floor_ms=told.floor_ns / 1e6,
            counters=stage.counters(),
            **_outcome(told, outcome),
        )
        stage.close()
        if collected is not None:
            collected.count(result, commands.finish)
    _write(result, told.results)
    print(msgspec.json.encode(result).decode(), flush=True)
    if caught:
        return 128 + caught[0]
    through = result.sent if told.name == STAGES[0] else result.received
    right = told.name != STAGES[-1] or result.correct == told.messages
    return 0 if through == told.messages and right and flushed and not result.failed else 1


def _ready(_cell: str) -> None:
    print("READY {}", flush=True)


def _transport(told: OneStage) -> str:
    hop = told.inbox or told.outbox
    assert hop is not None, "every stage has a neighbour"
    return hop.transport


def _outcome(told: OneStage, outcome: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in outcome.items() if name != "handled"}
    if told.name != STAGES[-1]:
        kept.pop("correct", None)
    return kept


def _items(told: OneStage) -> int:
    """The files to work on, made where missing; how many. Only the two ends need them.

    Raises:
        CorpusError, ModelError: there are none, or nobody to label them.
    """
    if told.name not in (STAGES[0], STAGES[-1]):
        return 0
    from skewd_pipeline.corpus import load_items, save_items

    if not told.items.exists():
        told.items.parent.mkdir(parents=True, exist_ok=True)
        save_items(told.items, told.model, seed=told.seed)
    return len(load_items(told.items))


def _make_topics(told: OneStage) -> None:
    """On Kafka, the topics of this stage's hops, where they are missing and may be made."""
    topics = [hop.topic for hop in (told.inbox, told.outbox) if hop is not None and hop.topic is not None]
    if not topics:
        return
    from skewd_pipeline.kafka_broker import external

    hop = told.inbox or told.outbox
    assert hop is not None
    assert hop.bootstrap is not None, "HopConfig checked it"
    external(hop.bootstrap).create_topics(topics)


def _write(result: StageResult, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    os.replace(unfinished, path)


# -- collecting ------------------------------------------------------------------------------------------------------


class _Collected:
    """Everybody's spans, taken by an event loop in a thread of its own."""

    def __init__(self, told: OneStage) -> None:
        from skewd_pipeline.collector import Collector

        self._told = told
        self._loop = asyncio.new_event_loop()
        self._collector = Collector()
        self._thread = threading.Thread(target=self._loop.run_forever, name="collector", daemon=True)
        self._thread.start()
        host, port = split_address(told.collect or "")
        self._call(self._collector.listen("all", "http", host=host, port=port))

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def count(self, result: StageResult, stop: threading.Event) -> None:
        """Waits for late spans, within limits, and says of the run's edges what they show."""
        from skewd_pipeline.spans import SpanRecord, spans_of

        found: dict[str, SpanRecord] = {}
        deadline = time.monotonic() + COLLECT_GRACE_S
        while True:
            for body in self._call(self._take()):
                found.update((span.span_id, span) for span in spans_of(body) if span.cell == self._told.run)
            complete = len(found) >= len(STAGES) * self._told.messages
            if complete or time.monotonic() >= deadline or stop.wait(COLLECT_POLL_S):
                break
        result.spans_collected = len(found)
        result.edges = edge_counts(list(found.values()))

    async def _take(self) -> list[bytes]:
        return self._collector.take("all")

    def close(self) -> None:
        """Stops listening."""
        with contextlib.suppress(Exception):
            self._call(self._collector.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@contextlib.contextmanager
def _collecting(told: OneStage) -> Iterator[_Collected | None]:
    if told.collect is None:
        yield None
        return
    collected = _Collected(told)
    try:
        yield collected
    finally:
        collected.close()


def edge_counts(spans: Sequence[Any]) -> list[EdgeCounts]:
    """What spans say of their edges, by both rules; verdicts where they are tagged. Pure."""
    from skewd_pipeline.pairs import edges, quantile, verdict_of
    from skewd_pipeline.results import RULES

    rows = []
    for rule in RULES:
        found = list(edges(spans, rule))
        gaps = sorted(edge.gap_ns for edge in found)
        tagged = [edge for edge in found if any(key.endswith("clock.status") for key in edge.receiver.attributes)]
        judged = [(edge, verdict_of(edge)) for edge in tagged]
        rows.append(
            EdgeCounts(
                rule=rule,
                edges=len(found),
                negative=sum(edge.gap_ns < 0 for edge in found),
                verdicts=dict(Counter(verdict for _, verdict in judged)),
                negative_verdicts=dict(Counter(verdict for edge, verdict in judged if edge.gap_ns < 0)),
                gap_ms={
                    name: round(quantile(gaps, share) / 1e6, 4)
                    for name, share in (("min", 0.0), ("p1", 0.01), ("p50", 0.5), ("p99", 0.99))
                }
                if gaps
                else {},
            )
        )
    return rows
