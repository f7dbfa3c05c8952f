"""What a run of the experiment has at hand, and what it does with it again and again: one block of messages.

Order of things in a block: every stage but the producer is told the block and answers that it is armed, then the
producer; the consumer says when it has all messages; every stage flushes its exporters (an acknowledged export is in
the collector's hands, since a sidecar acknowledges only what was acknowledged to it) and says which messages it
handled; only then are bodies parsed and made rows of the table (`edges.py`), while no message is under way.

Limits: a block that gets no further within its limit ends with what arrived, and its claims fail; a process that dies
ends the run. All waits have limits, which only guard against hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from skewd_pipeline import claims, figures
from skewd_pipeline.children import ChildFailed, Children
from skewd_pipeline.collector import Collector
from skewd_pipeline.display import Display
from skewd_pipeline.edges import Block, EdgeRow, Table, Truth, connect, constant, edge_rows
from skewd_pipeline.heuristics import TraceSpan, pipeline_traces
from skewd_pipeline.nodes import Nodes
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.plan import CellPlan
from skewd_pipeline.results import STAGES, Probe, Results
from skewd_pipeline.spans import SpanRecord, spans_of

CELL_GRACE_S = 60.0
LATE_FACTOR = {False: 3.0, True: 1.1}
"""A block may take this many times as long as its messages do; the long run less, it has no time to make up for."""

SLOWEST_PER_S = 5.0
"""What a pipeline is given time for while its capacity is not known."""

IDLE_LIMIT_S = 5.0
"""Where a stage drops messages, the others end a block when none came for so long."""

BURNERS_PER_CORE = 2
FLUSH_LIMIT_S = 120.0
PROBE_LIMIT_S = 60.0
PROBE_AGAIN_S = 30.0
"""For so long `skewd check` is asked again while it cannot prove what it is asked for: bounds narrow after a step."""


class Interrupted(Exception):
    """The user asked to stop while a thread was waiting; never shown."""


class BrokerHandle:
    """A Kafka broker, opened and closed in a thread of its own since both wait for other processes."""

    def __init__(self, options: ExperimentOptions, display: Display) -> None:
        self._options = options
        self._display = display
        self._stack = contextlib.ExitStack()
        self._given_up = threading.Event()
        self._task: asyncio.Task[Any] | None = None

    def open(self) -> None:
        """Begins to open it; :meth:`broker` waits."""

        def work() -> Any:
            from skewd_pipeline.kafka_broker import open_broker

            return self._stack.enter_context(open_broker(self._options.kafka_bootstrap, progress=self._told))

        self._task = asyncio.create_task(asyncio.to_thread(work))

    def _told(self, text: str) -> None:
        if self._given_up.is_set():
            raise Interrupted
        self._display.step(text)

    async def broker(self) -> Any:
        """The broker, once it answers."""
        assert self._task is not None, "open() comes first"
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Ends it, wherever the opening was."""
        self._given_up.set()
        if self._task is not None:
            with contextlib.suppress(BaseException):
                await asyncio.shield(self._task)
            await asyncio.to_thread(self._stack.close)


@dataclass(slots=True)
class Delivered:
    """What the consumer said of a cell's blocks."""

    messages: int = 0
    received: int = 0
    gaps: int = 0
    elapsed_ns: int = 0

    def add(self, block: CellPlan, outcome: dict[str, Any]) -> float:
        """Counts a block in; what it delivered by the second."""
        elapsed_ns = outcome["last_ns"] - outcome["first_ns"]
        self.messages += block.messages
        self.received += outcome["received"]
        if elapsed_ns <= 0:
            return 0.0
        self.gaps += outcome["received"] - 1
        self.elapsed_ns += elapsed_ns
        return float((outcome["received"] - 1) / (elapsed_ns / 1e9))

    @property
    def per_s(self) -> float:
        """Over the time within blocks."""
        return self.gaps / (self.elapsed_ns / 1e9) if self.elapsed_ns else 0.0


@dataclass(slots=True)
class Session:
    """One run's processes, files and results.

    Attributes:
        items: how many files there are to classify.
        at_s: how far the run is, of what it was estimated to take.
        delivered: by transport and skew, what arrived of the sweep's cells.
        traces: by transport and skew, those that heuristics are compared on.
        blocks: by cell, how many were run.
    """

    options: ExperimentOptions
    display: Display
    results: Results
    directory: Path
    table: Table
    collector: Collector
    children: Children
    nodes: Nodes
    stack: contextlib.AsyncExitStack
    items: int = 0
    at_s: float = 0.0
    broker_kind: str | None = None
    broker_label: str | None = None
    delivered: dict[tuple[str, int], Delivered] = field(default_factory=dict)
    traces: dict[tuple[str, int], list[list[TraceSpan]]] = field(default_factory=dict)
    blocks: Counter[str] = field(default_factory=Counter)
    _broker: BrokerHandle | None = None

    # -- Kafka's broker ------------------------------------------------------------------------------------------

    async def broker(self) -> Any:
        """The run's broker, started when it is first needed."""
        if self._broker is None:
            self._broker = BrokerHandle(self.options, self.display)
            self.stack.push_async_callback(self._broker.close)
            self._broker.open()
        opened = await self.children.unless_failed(self._broker.broker())
        self.broker_kind, self.broker_label = str(opened.kind), str(opened.label)
        self.results.versions[f"kafka broker ({opened.kind})"] = str(opened.version)
        return opened

    def broker_of(self, transport: str) -> str | None:
        """``apache``, ``external`` or ``mock``; None where the transport has no broker."""
        return self.broker_kind if transport == "kafka" else None

    def client(self, transport: str) -> str | None:
        """How the transport's clients were set, where that can be chosen."""
        return {"kafka": self.options.kafka_clients, "aeron": self.options.aeron_channel}.get(transport)

    # -- a block of messages -------------------------------------------------------------------------------------

    async def block(self, cell: CellPlan, delivered: Delivered | None = None) -> list[EdgeRow]:
        """Runs one block at a constant truth, keeps its rows and returns them; of a warm-up, none are kept."""
        truth_ns = self.nodes.truth_ns()
        outcome, handled = await self.messages(cell)
        spans = {mode: of_cell(self.collector.take(mode), cell.name) for mode in self.options.modes}
        if cell.purpose == "warm-up":
            return []
        if delivered is not None:
            delivered.add(cell, outcome)
        if cell.purpose == "sweep" and self._compares(cell):
            known = self.traces.setdefault((cell.transport, cell.skew_ns), [])
            known += pipeline_traces(spans["tag"], truth_ns)
        rows = self.rows(cell, handled, {mode: spans[mode] for mode in cell.exporters}, constant(truth_ns))
        self.table.add(rows)
        return rows

    def _compares(self, cell: CellPlan) -> bool:
        return not self.options.demo and "tag" in cell.exporters and cell.skew_ns in (0, 5_000_000)

    def rows(
        self, cell: CellPlan, handled: dict[str, str], spans: dict[str, list[SpanRecord]], truth: Truth
    ) -> list[EdgeRow]:
        """The table's rows of a block."""
        block = Block(
            transport=cell.transport,
            broker=self.broker_of(cell.transport),
            client=self.client(cell.transport),
            cell=cell.cell,
            block=cell.name,
            purpose=cell.purpose,
            round=cell.round,
            stage=self.options.stage,
            direction=self.options.direction,
            skew_ns=cell.skew_ns,
            floor_ns=cell.floor_ns,
            rate=cell.rate,
            messages=cell.messages,
            handled=handled,
        )
        self.blocks[cell.cell] += 1
        return list(edge_rows(block, spans, truth))

    async def messages(
        self, cell: CellPlan, meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Sends a block's messages through and flushes every exporter.

        Args:
            meanwhile: what is to be done while the messages are under way; given up when they have arrived.

        Returns:
            what the consumer says of the block, and by stage which messages it handled.
        """
        children, nodes = self.children, self.nodes
        command = {"do": "cell", **command_of(cell)}
        if self.options.max_age_ns is not None:
            command["idle_limit_s"] = IDLE_LIMIT_S
        followers = [nodes.stage(name) for name in STAGES[1:]]
        producer, consumer = nodes.stage(STAGES[0]), followers[-1]
        for follower in followers:
            follower.tell(command)
        for follower in followers:
            await children.unless_failed(follower.answer(CELL_GRACE_S, event="armed"))
        producer.tell({**command, "items": cell.items(self.items), "sent_at_s": cell.sent_at_s()})
        limit_s = CELL_GRACE_S + LATE_FACTOR[cell.purpose == "over-time"] * cell.messages / (cell.rate or SLOWEST_PER_S)
        late = False
        outcome: dict[str, Any] = {"received": 0, "correct": 0, "first_ns": 0, "last_ns": 0}
        beside = asyncio.create_task(meanwhile()) if meanwhile is not None else None
        try:
            outcome |= await children.unless_failed(_within(limit_s, consumer.answers, "done"))
        except TimeoutError:
            late = True
        finally:
            if beside is not None:
                if beside.done():
                    beside.result()
                await ended(beside)
        stages = dict(zip(STAGES, (producer, *followers), strict=True))
        for stage in stages.values():
            stage.tell({"do": "finish"})
        handled = {}
        for name, stage in stages.items():
            finished = await children.unless_failed(stage.answer(FLUSH_LIMIT_S, event="finished"))
            handled[name] = str(finished["handled"])
        if late:
            self.display.line(f"  {cell.cell}: not all messages arrived within {limit_s:.0f} s")
        return outcome, handled

    @contextlib.asynccontextmanager
    async def overloaded(self) -> AsyncIterator[None]:
        """Twice as many busy processes as there are cores, at the stages' own priority."""
        count = BURNERS_PER_CORE * len(os.sched_getaffinity(0))
        burners = [await self.children.start(f"burner-{number}", ("-c", "while True: pass")) for number in range(count)]
        try:
            yield
        finally:
            await self.children.end(burners)

    @contextlib.contextmanager
    def so_far(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The table as it is by now."""
        snapshot = self.directory / "so-far.parquet"
        self.table.write(snapshot)
        with connect(snapshot) as database:
            claims.prepare(database)
            figures.prepare(database)
            yield database

    # -- skewd check ---------------------------------------------------------------------------------------------

    def nobody(self) -> Path:
        """The configuration of a node that no daemon runs on."""
        config = self.directory / "nobody.toml"
        config.write_text(f'[node]\nname = "nobody"\nruntime_dir = "{self.directory / "nobody"}"\n')
        return config

    async def probe(self, situation: str, config: Path) -> None:
        """Asks ``skewd check`` as a monitoring system would: its exit code and its one line count.

        While it says that it cannot prove what it is asked for, it is asked again: after a step bounds first narrow.
        """
        arguments = ("-m", "skewd", "check", "--config", str(config), "--peer", self.options.reference)
        deadline = time.monotonic() + PROBE_AGAIN_S
        name = f"check-{situation.replace(' ', '-')}"
        while True:
            begun = time.monotonic()
            code, output = await self.children.once(name, arguments, PROBE_LIMIT_S)
            if code != claims.CANNOT_PROVE or time.monotonic() > deadline:
                break
        line, _, perfdata = output.partition("|")
        probe = Probe(
            situation=situation,
            command=f"skewd check --peer {self.options.reference}",
            exit_code=code,
            line=line.strip().replace(str(config.parent), "<the node's directory>"),
            perfdata=perfdata.strip(),
            seconds=round(time.monotonic() - begun, 3),
        )
        self.results.probes.append(probe)
        self.display.line(f"skewd check         {situation:>9}: exit {code}: {probe.line}")


def command_of(cell: CellPlan) -> dict[str, Any]:
    """What a stage is told of a block (`stage_orders.Cell`), but for what to do and the producer's part."""
    return {
        "name": cell.name,
        "transport": cell.transport,
        "messages": cell.messages,
        "floor_ns": cell.floor_ns,
        "exporters": list(cell.exporters),
        "rate": cell.rate,
    }


async def _within(limit_s: float, answers: asyncio.Queue[dict[str, Any]], event: str) -> dict[str, Any]:
    """The next answer of this kind.

    Raises:
        TimeoutError: none within ``limit_s``.
        ChildFailed: the stage reported an error.
    """
    async with asyncio.timeout(limit_s):
        while True:
            answer = await answers.get()
            if answer.get("event") == "error":
                raise ChildFailed(f"a stage failed: {answer.get('error')}")
            if answer.get("event") == event:
                return answer


async def ended(task: asyncio.Task[Any]) -> None:
    """Gives a task up, whatever it was doing."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def of_cell(bodies: Sequence[bytes], block: str) -> list[SpanRecord]:
    """The spans of one block among what a collector took."""
    return [span for body in bodies for span in spans_of(body) if span.cell == block]
