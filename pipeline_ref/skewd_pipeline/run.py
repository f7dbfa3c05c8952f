"""The experiment itself: five nodes up, one clock stepped, messages through, spans read, rows out.

Nodes stay up from the first cell to the last: what changes between cells is one page's offset and which hop carries
the messages. Off, tag and rewrite are three sidecars beside each stage and see the very same spans, so the modes are
compared pair by pair rather than run by run.

Order of things in a cell: every stage but the producer is told the cell and answers that it is armed, then the
producer; the consumer says when it has all messages; every stage flushes its exporters (an acknowledged export is
in the collector's hands, since a sidecar acknowledges only what was acknowledged to it); only then are bodies parsed
and judged, while no message is under way.

Limits: a cell that gets no further within its limit ends with what arrived, and its claims fail; a process that dies
ends the run. All waits have limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from skewd_pipeline.analysis import CellAnalysis, CellFacts, analyse, confuse, joined
from skewd_pipeline.calls import SKEWS_MS as COMPARED_SKEWS_MS
from skewd_pipeline.calls import compared
from skewd_pipeline.children import ChildFailed, Children
from skewd_pipeline.claims import claims
from skewd_pipeline.collector import Collector, Protocol
from skewd_pipeline.confusion import Tally
from skewd_pipeline.display import Display, calls_line, cell_line, over_time_line, overload_line
from skewd_pipeline.heuristics import REAL_CALLS, TraceSpan, call_traces, compare, pipeline_traces
from skewd_pipeline.inband import CLOCK_TOPIC, BoundsTally, InBand, messages_used
from skewd_pipeline.law import law_cells, predict, thresholds
from skewd_pipeline.media import Media
from skewd_pipeline.media import start as start_media
from skewd_pipeline.nodes import Nodes
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.overtime import Story, Trajectory, schedule
from skewd_pipeline.plan import DIRECT, CellPlan, Group, cells_of, over_time, page_offset_ns, seconds
from skewd_pipeline.ran_on import host, versions
from skewd_pipeline.results import STAGES, Probe, Results, Separations, Throughput
from skewd_pipeline.simulated import record
from skewd_pipeline.spans import SpanRecord, spans_of

CELL_GRACE_S = 20.0
LATE_FACTOR = {False: 3.0, True: 1.1}
"""A cell may take this many times as long as its messages do; the long run less, it has no time to make up for."""

BURNERS_PER_CORE = 2
PLAY_NS = 1_000_000_000
"""How often spans are taken and counted in the long run."""

FLUSH_LIMIT_S = 30.0
PROBE_LIMIT_S = 20.0
PREPARE_LIMIT_S = 120.0
SHORT_PATH_MAX = 60
"""A directory's path must leave room for a socket's name: 108 bytes in all."""

# Both of OTLP's protocols are forwarded over: the modes differ in what they do to spans, not in how they send.
FORWARD: dict[str, Protocol] = {"off": "http", "tag": "grpc", "rewrite": "http", DIRECT: "http"}


@dataclass(slots=True)
class _Blocks:
    """What is known of a cell whose last block is yet to come: numbers, and traces where heuristics are compared."""

    parts: list[CellAnalysis] = field(default_factory=list)
    traces: list[list[TraceSpan]] = field(default_factory=list)
    messages: int = 0
    received: int = 0
    gaps: int = 0
    elapsed_ns: int = 0

    def arrived(self, cell: CellPlan, outcome: dict[str, Any]) -> float:
        """Counts a block's messages in; what it delivered by the second."""
        elapsed_ns = outcome["last_ns"] - outcome["first_ns"]
        self.messages += cell.messages
        self.received += outcome["received"]
        if elapsed_ns <= 0:
            return 0.0
        self.gaps += outcome["received"] - 1
        self.elapsed_ns += elapsed_ns
        return float((outcome["received"] - 1) / (elapsed_ns / 1e9))

    @property
    def delivered_per_s(self) -> float:
        """Over the time within blocks."""
        return self.gaps / (self.elapsed_ns / 1e9) if self.elapsed_ns else 0.0


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


class Experiment:
    """One run. Everything it starts ends with :meth:`run`, however that ends."""

    def __init__(self, options: ExperimentOptions, groups: Sequence[Group], display: Display) -> None:
        self.options = options
        self.groups = groups
        self.display = display
        self.results = Results(runs=[], host=host(), versions=versions())
        self._done_s = 0.0
        self._broker_kind: str | None = None
        self._broker_label: str | None = None
        self._media: Media | None = None
        self._bounds = BoundsTally()
        self._tally = Tally()
        self._blocks: dict[str, _Blocks] = {}

    async def run(self) -> Results:
        """Runs all groups.

        Raises:
            ChildFailed: a process did not start, died, or did not answer.
        """
        begun = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(short_directory())
            logs = directory / "logs"
            logs.mkdir()
            collector = await stack.enter_async_context(Collector())
            children = await stack.enter_async_context(Children(logs))
            try:
                await self._run(directory, collector, children, stack)
            except ChildFailed:
                self._keep_logs(logs)
                raise
        self.results.seconds = round(time.monotonic() - begun, 1)
        self.results.settings = self._settings()
        results = self.results
        # Cells end in the last round's order; rows stand in the order that was asked for.
        skews_ms = list(dict.fromkeys(group.skew_ns / 1e6 for group in self.groups))
        for rows in (results.runs, results.floor0, results.floors):
            rows.sort(key=lambda row: (skews_ms.index(row.skew_ms), row.floor_ms))
        predict((*results.runs, *results.floor0, *results.floors), results.separations)
        results.law, results.thresholds = law_cells(results), thresholds(results)
        results.confusion = [*self._tally.rows(), *results.confusion]
        if "tag" in self.options.modes:
            results.heuristics = compared(seed=self.options.seed) + results.heuristics
        self.results.checks = claims(self.results)
        return self.results

    async def _run(
        self, directory: Path, collector: Collector, children: Children, stack: contextlib.AsyncExitStack
    ) -> None:
        options, display = self.options, self.display
        broker: BrokerHandle | None = None
        if "kafka" in options.transports:
            broker = BrokerHandle(options, display)
            stack.push_async_callback(broker.close)
            broker.open()
        items = directory / "items"
        display.step("choosing files, and asking the model what is right for each")
        preparing = asyncio.create_task(self._prepare(items, children))
        stack.push_async_callback(_ended, preparing)
        if "aeron" in options.transports:
            display.step("starting Aeron's media driver" if options.aeron_dir is None else "looking for Aeron's driver")
            self._media = await start_media(
                children, directory, options.aeron_dir, options.aeron_channel, time.time_ns() // 1_000_000
            )
            self.results.versions["aeron"] = self._media.version
        addresses = {mode: await collector.listen(mode, FORWARD[mode]) for mode in (*options.modes, DIRECT)}
        drift_ppb = -options.drift_ppb if options.direction == "behind" else options.drift_ppb
        nodes = Nodes(
            directory,
            children,
            skewed=options.stage,
            reference=options.reference,
            drift_ppb=drift_ppb if options.duration_ns is not None else 0,
        )
        direct = addresses.pop(DIRECT)
        if options.inband_only:
            nodes.only = await self._in_band(broker, children)
        clocks = asyncio.create_task(nodes.start_clocks(addresses, direct, progress=display.step))
        stack.push_async_callback(_ended, clocks)
        # Together, so that a model that cannot be loaded is not first waited for by twenty processes.
        count, _ = await asyncio.gather(preparing, clocks)
        display.step(f"{count} files; starting the five stages")
        await nodes.start_stages(items=items, model=options.model)
        topics: dict[tuple[str, str], str] = {}
        if broker is not None:
            opened = await children.unless_failed(broker.broker())
            self._broker_kind, self._broker_label = str(opened.kind), str(opened.label)
            self.results.versions[f"kafka broker ({opened.kind})"] = str(opened.version)
            if opened.kind == "mock":
                display.line(f"  Kafka is a MOCK in this run: {opened.label}; {opened.reason}")
            run_id = f"skewd-{os.getpid()}-{time.time_ns() // 1_000_000:x}"
            topics = {pair: f"{run_id}-{pair[0]}-{pair[1]}" for pair in pairwise(STAGES)}
            await asyncio.to_thread(opened.create_topics, list(topics.values()))
            bootstrap = str(opened.bootstrap)

        def hops(upstream: str, downstream: str, endpoint: str | None) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            if "zmq" in options.transports:
                where = endpoint or "tcp://127.0.0.1:0"
                found.append({"transport": "zmq", "upstream": upstream, "downstream": downstream, "endpoint": where})
            if broker is not None:
                topic = topics[(upstream, downstream)]
                found.append(
                    {"transport": "kafka", "upstream": upstream, "downstream": downstream, "bootstrap": bootstrap,
                     "topic": topic, "clients": options.kafka_clients}
                )  # fmt: skip
            if self._media is not None:
                found.append(self._media.hop(upstream, downstream))
            return found

        display.step("connecting the stages")
        await nodes.connect(hops)
        display.step("waiting until every clock is bounded")
        await nodes.settled()
        await self._probe("no daemon", self._nobody(directory), children)
        rounds = self.groups[-1].round + 1
        begun = 0
        for group in self.groups:
            if rounds > 1 and group.round == begun:
                begun += 1
                display.step(f"round {begun} of {rounds}", self._at())
            await self._group(group, nodes, collector, children, count)
        for cell in over_time(options):
            self.display.busy(f"{cell.transport} over time", self._at())
            await self._over_time(cell, nodes, collector, children, count)
        statuses = [await nodes.status(name) for name in STAGES]
        used = {transport: messages_used(statuses) for transport in options.transports if options.inband_only}
        self.results.bounds = self._bounds.bounds(
            inband_only=options.inband_only, reference=options.reference, used=used
        )

    async def _in_band(self, broker: BrokerHandle | None, children: Children) -> InBand:
        """How the nodes of this run hear each other, over its one transport."""
        (transport,) = self.options.transports
        if broker is None:
            return InBand(transport)
        opened = await children.unless_failed(broker.broker())
        topic = f"{CLOCK_TOPIC}-{os.getpid()}-{time.time_ns() // 1_000_000:x}"
        await asyncio.to_thread(opened.create_topics, [topic])
        return InBand(transport, str(opened.bootstrap), topic)

    async def _group(self, group: Group, nodes: Nodes, collector: Collector, children: Children, items: int) -> None:
        options = self.options
        self.display.busy(
            f"stepping {options.stage}'s clock to {group.skew_ns / 1e6:g} ms {options.direction}", self._at()
        )
        await nodes.step(page_offset_ns(group.skew_ns, options.direction))
        for cell in group.cells:
            self.display.busy(f"{cell.transport} at {cell.skew_ns / 1e6:g} ms: {cell.purpose}", self._at())
            await self._cell(cell, nodes, collector, children, items)
            self._done_s += seconds([Group(0, (cell,), False)]) - seconds([])
        # In-band a bound may be too wide to prove what the check is asked for; that is not the check's fault.
        if group.probe and not options.inband_only:
            await self._probe(f"{group.skew_ns / 1e6:g} ms", nodes.parts[options.stage].config, children)

    def _at(self) -> float:
        return self._done_s + seconds([]) * 0.75

    async def _calls(self, cell: CellPlan, nodes: Nodes, collector: Collector, children: Children) -> None:
        """The reference's stage calls the skewed one; only the comparison with heuristics wants to know."""
        command: dict[str, Any] = {
            "name": cell.name,
            "transport": cell.transport,
            "messages": cell.messages,
            "floor_ns": cell.floor_ns,
            "exporters": list(cell.exporters),
            "rate": cell.rate,
        }
        server, client = nodes.stage(self.options.stage), nodes.stage(self.options.reference)
        server.tell({"do": "serve-calls", **command})
        serving = await children.unless_failed(server.answer(CELL_GRACE_S, event="serving"))
        client.tell({"do": "call", "address": serving["address"], **command})
        limit_s = CELL_GRACE_S + LATE_FACTOR[False] * cell.messages / (cell.rate or 30.0)
        done = await children.unless_failed(client.answer(limit_s, event="done"))
        for stage in (client, server):
            stage.tell({"do": "finish"})
            await children.unless_failed(stage.answer(FLUSH_LIMIT_S, event="finished"))
        spans = _of_cell(collector.take("tag"), cell.name)
        found = compare(REAL_CALLS, cell.skew_ns / 1e6, call_traces(spans, nodes.truth_ns()))
        self.results.heuristics += found
        self.display.line(calls_line(found, cell.skew_ns / 1e6, done["answered"]))

    async def _cell(self, cell: CellPlan, nodes: Nodes, collector: Collector, children: Children, items: int) -> None:
        if cell.purpose == "calls":
            await self._calls(cell, nodes, collector, children)
            return
        async with self._overloaded(children) if cell.purpose == "overload" else contextlib.nullcontext():
            outcome = await self._messages(cell, nodes, children, items)
        spans = {name: _of_cell(collector.take(name), cell.name) for name in (*self.options.modes, DIRECT)}
        if cell.purpose == "warm-up":
            return
        self._record(cell, outcome, spans, nodes.truth_ns())

    async def _messages(
        self,
        cell: CellPlan,
        nodes: Nodes,
        children: Children,
        items: int,
        meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> dict[str, Any]:
        """Sends a cell's messages through, flushes every exporter, and returns what the consumer says of it.

        Args:
            meanwhile: what is to be done while the messages are under way; given up when they have arrived.
        """
        command: dict[str, Any] = {
            "do": "cell",
            "name": cell.name,
            "transport": cell.transport,
            "messages": cell.messages,
            "floor_ns": cell.floor_ns,
            "exporters": list(cell.exporters),
            "rate": cell.rate,
        }
        followers = [nodes.stage(name) for name in STAGES[1:]]
        producer, consumer = nodes.stage(STAGES[0]), followers[-1]
        for follower in followers:
            follower.tell(command)
        for follower in followers:
            await children.unless_failed(follower.answer(CELL_GRACE_S, event="armed"))
        producer.tell({**command, "items": cell.items(items)})
        limit_s = CELL_GRACE_S + LATE_FACTOR[cell.purpose == "over-time"] * cell.messages / (cell.rate or 30.0)
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
                await _ended(beside)
        for stage in (producer, *followers):
            stage.tell({"do": "finish"})
        for stage in (producer, *followers):
            await children.unless_failed(stage.answer(FLUSH_LIMIT_S, event="finished"))
            if late and stage is consumer:
                self.display.line(f"  {cell.name}: not all messages arrived within {limit_s:.0f} s")
        return outcome

    @contextlib.asynccontextmanager
    async def _overloaded(self, children: Children) -> AsyncIterator[None]:
        """Twice as many busy processes as there are cores, at the stages' own priority."""
        count = BURNERS_PER_CORE * len(os.sched_getaffinity(0))
        burners = [await children.start(f"burner-{number}", ("-c", "while True: pass")) for number in range(count)]
        try:
            yield
        finally:
            await children.end(burners)

    # -- over time -----------------------------------------------------------------------------------------------

    async def _over_time(
        self, cell: CellPlan, nodes: Nodes, collector: Collector, children: Children, items: int
    ) -> None:
        """Messages for as long as was asked, while the clock's story is played; spans are counted as they come."""
        options = self.options
        assert options.duration_ns is not None, "planned only with a duration"
        await nodes.step(0)
        changes = schedule(options.duration_ns, options.drift_ppb, options.direction)
        deviation = Trajectory()
        begin_ns, deviation_ns, rate_ppb = nodes.deviates()
        deviation.line(begin_ns, deviation_ns, rate_ppb)
        story = Story(
            run=f"{cell.transport}{f' ({self._broker_kind})' if cell.transport == 'kafka' else ''}",
            transport=cell.transport,
            stage=options.stage,
            deviation=deviation,
            begin_ns=begin_ns,
            duration_ns=options.duration_ns,
            known={
                (each.rule, each.edge): each.separations_ns
                for each in self.results.separations
                if each.edge is not None and (each.transport, each.floor_ms) == (cell.transport, cell.floor_ns / 1e6)
            },
        )

        def take() -> None:
            for mode in cell.exporters:
                story.add(mode, _of_cell(collector.take(mode), cell.name))

        async def play() -> None:
            waiting = list(changes)
            while True:
                at_ns = nodes.deviates()[0] - begin_ns
                while waiting and at_ns >= waiting[0].at_ns:
                    change = waiting.pop(0)
                    since_ns = nodes.change(step_ns=change.step_ns, steer_ppb=change.steer_ppb)
                    deviation.line(*nodes.deviates(), step=bool(change.step_ns), since_ns=since_ns)
                    self.display.line(f"{cell.transport:<19} {at_ns / 1e9:5.0f} s: the clock is {change.text}")
                take()
                next_ns = waiting[0].at_ns - at_ns if waiting else PLAY_NS
                await asyncio.sleep(min(PLAY_NS, max(next_ns, 1_000_000)) / 1e9)

        await self._messages(cell, nodes, children, items, play)
        take()
        record(
            self.results,
            story,
            changes,
            options,
            transport=cell.transport,
            broker=self._broker_kind if cell.transport == "kafka" else None,
            simulated=False,
        )
        self.display.line(over_time_line(self.results.long_runs[-1], self.results.windows))
        # Where it would have been had nothing been played, for the next transport's turn.
        nodes.change(step_ns=0, steer_ppb=changes[-1].steer_ppb)

    def _record(
        self, cell: CellPlan, outcome: dict[str, Any], spans: dict[str, list[SpanRecord]], truth_ns: dict[str, int]
    ) -> None:
        options = self.options
        blocks = self._blocks.setdefault(cell.cell, _Blocks())
        if cell.last:
            del self._blocks[cell.cell]
        delivered = blocks.arrived(cell, outcome)
        if cell.last and (
            cell.purpose in ("direct", "saturated") or (cell.purpose == "sweep" and cell.skew_ns in (0, 10_000_000))
        ):
            self._keep_throughput(cell, blocks)
        if cell.purpose in ("direct", "saturated"):
            return
        facts = CellFacts(
            transport=cell.transport,
            broker=self._broker_kind if cell.transport == "kafka" else None,
            stage=options.stage,
            direction=options.direction,
            skew_ns=cell.skew_ns,
            floor_ns=cell.floor_ns,
            truth_ns=truth_ns,
            messages=cell.messages,
            outputs_correct=round(outcome["correct"] / cell.messages, 6),
            throughput_per_s=delivered,
            client={"kafka": options.kafka_clients, "aeron": options.aeron_channel}.get(cell.transport),
        )
        if "tag" in cell.exporters:
            situation = "overloaded" if cell.purpose == "overload" else "skewed" if cell.skew_ns else "synchronized"
            confuse(self._tally, spans["tag"], facts, situation)
        if cell.purpose == "overload":
            self.display.line(overload_line(self._tally.rows(), cell.transport))
            return
        if "tag" in cell.exporters and cell.purpose == "sweep" and cell.skew_ns / 1e6 in COMPARED_SKEWS_MS:
            blocks.traces += pipeline_traces(spans["tag"], facts)
        block = analyse({mode: spans[mode] for mode in cell.exporters}, facts)
        blocks.parts.append(block)
        mode = next((mode for mode in ("tag", "rewrite") if mode in cell.exporters), None)
        if mode is not None:
            self._bounds.add(cell.transport, facts.broker, spans[mode], truth_ns, block.rows)
        if cell.last:
            self._complete(cell, blocks)

    def _complete(self, cell: CellPlan, blocks: _Blocks) -> None:
        """A cell of the sweep has all its blocks."""
        found = joined(blocks.parts)
        if blocks.traces:
            broker = f" ({self._broker_kind})" if cell.transport == "kafka" and self._broker_kind else ""
            self.results.heuristics += compare(
                f"the pipeline's, {cell.transport}{broker}", cell.skew_ns / 1e6, blocks.traces
            )
        other_floor = cell.floor_ns != self.options.service_floor_ns
        if cell.skew_ns == 0:
            self._keep_separations(cell, found)
        if cell.purpose == "again":
            self.display.line(f"{cell_line(found.rows, floor=other_floor)}, again")
            return
        rows = {"floor0": self.results.floor0, "floor": self.results.floors}.get(cell.purpose, self.results.runs)
        rows.extend(found.rows)
        if found.rows:
            self.display.line(cell_line(found.rows, floor=other_floor))

    def _keep_throughput(self, cell: CellPlan, blocks: _Blocks) -> None:
        sidecar = "none" if cell.exporters == (DIRECT,) else "+".join(cell.exporters)
        self.results.throughput.append(
            Throughput(
                transport=cell.transport,
                skew_ms=cell.skew_ns / 1e6,
                sidecar=sidecar,
                offered_per_s=cell.rate,
                delivered_per_s=round(blocks.delivered_per_s, 3),
                messages=blocks.messages,
                delivered=blocks.received,
            )
        )
        if cell.purpose != "sweep":
            how = "unpaced" if cell.rate is None else f"{cell.rate:g}/s offered"
            where = "without sidecar" if sidecar == "none" else f"sidecars {sidecar}"
            said = f"{blocks.delivered_per_s:.1f} messages/s delivered"
            self.display.line(f"{cell.transport:<19} {how}, {where}: {said}")

    def _keep_separations(self, cell: CellPlan, found: CellAnalysis) -> None:
        """Of a synchronized cell; those of one that is run again are taken together with the first."""
        known = {(each.transport, each.rule, each.floor_ms, each.edge): each for each in self.results.separations}
        for (rule, edge), separations in found.by_edge_ns.items():
            before = known.get((cell.transport, rule, cell.floor_ns / 1e6, edge))
            if before is not None:
                before.separations_ns = sorted([*before.separations_ns, *separations])
                continue
            self.results.separations.append(
                Separations(
                    transport=cell.transport,
                    rule=rule,
                    edge=edge,
                    floor_ms=cell.floor_ns / 1e6,
                    separations_ns=separations,
                    stage=self.options.stage,
                    direction=self.options.direction,
                )
            )

    async def _prepare(self, items: Path, children: Children) -> int:
        arguments = ["-m", "skewd_pipeline.prepare", str(items), str(self.options.seed)]
        if self.options.model is not None:
            arguments.append(self.options.model)
        code, output = await children.once("prepare", arguments, PREPARE_LIMIT_S)
        if code != 0:
            raise ChildFailed(f"the files could not be prepared{children.tail('prepare')}")
        return int(json.loads(output.splitlines()[-1])["items"])

    # -- skewd check ---------------------------------------------------------------------------------------------

    def _nobody(self, directory: Path) -> Path:
        config = directory / "nobody.toml"
        config.write_text(f'[node]\nname = "nobody"\nruntime_dir = "{directory / "nobody"}"\n')
        return config

    async def _probe(self, situation: str, config: Path, children: Children) -> None:
        """Asks ``skewd check`` as a monitoring system would: its exit code and its one line count."""
        arguments = ("-m", "skewd", "check", "--config", str(config), "--peer", self.options.reference)
        begun = time.monotonic()
        code, output = await children.once(f"check-{situation.replace(' ', '-')}", arguments, PROBE_LIMIT_S)
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

    # -- afterwards ----------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, str | int | float | list[str | float] | None]:
        options = self.options
        return {
            "skews_ms": list(options.skews_ms),
            "stage": options.stage,
            "direction": options.direction,
            "transports": list(options.transports),
            "modes": list(options.modes),
            "messages": options.messages,
            "rate_per_s": options.rate,
            "seed": options.seed,
            "reference": options.reference,
            "service_floor_ms": options.service_floor_ns / 1e6,
            "floors_ms": [floor / 1e6 for floor in options.floors_ns],
            "duration_s": options.duration_ns / 1e9 if options.duration_ns else None,
            "drift_ppm": options.drift_ppb / 1e3 if options.duration_ns else None,
            "broker": self._broker_label,
            "kafka_clients": options.kafka_clients if "kafka" in options.transports else None,
            "aeron_channel": options.aeron_channel if "aeron" in options.transports else None,
            "inband_only": int(options.inband_only),
            "model": options.model or "magika",
            "demo": int(options.demo),
            "cells": len({cell.cell for cell in cells_of(self.groups)}),
            "rounds": self.groups[-1].round + 1,
        }

    def _keep_logs(self, logs: Path) -> None:
        kept = self.options.out / "logs"
        with contextlib.suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
            for log in logs.glob("*.log"):
                shutil.copy(log, kept)
            self.display.line(f"the logs of all processes are in {kept}")


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


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def _of_cell(bodies: Sequence[bytes], cell: str) -> list[SpanRecord]:
    return [span for body in bodies for span in spans_of(body) if span.cell == cell]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory with a short path, removed at the end."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= SHORT_PATH_MAX - 20 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="skewd-", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)
