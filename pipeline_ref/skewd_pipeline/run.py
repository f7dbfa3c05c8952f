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
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from skewd_pipeline.analysis import CellFacts, analyse, predict
from skewd_pipeline.children import ChildFailed, Children
from skewd_pipeline.claims import claims
from skewd_pipeline.collector import Collector, Protocol
from skewd_pipeline.display import Display, cell_line
from skewd_pipeline.inband import CLOCK_TOPIC, BoundsTally, InBand, messages_used
from skewd_pipeline.media import Media
from skewd_pipeline.media import start as start_media
from skewd_pipeline.nodes import Nodes
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.plan import DIRECT, CellPlan, Group, cells_of, page_offset_ns, seconds
from skewd_pipeline.results import STAGES, Probe, Results, Separations, Throughput
from skewd_pipeline.spans import SpanRecord, spans_of

CELL_GRACE_S = 20.0
FLUSH_LIMIT_S = 30.0
PROBE_LIMIT_S = 20.0
PREPARE_LIMIT_S = 120.0
SHORT_PATH_MAX = 60
"""A directory's path must leave room for a socket's name: 108 bytes in all."""

# Both of OTLP's protocols are forwarded over: the modes differ in what they do to spans, not in how they send.
FORWARD: dict[str, Protocol] = {"off": "http", "tag": "grpc", "rewrite": "http", DIRECT: "http"}
PACKAGES = (
    "skewd", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "grpcio", "aiohttp", "pyzmq",
    "confluent-kafka", "pyaeron", "magika", "onnxruntime",
)  # fmt: skip


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
        predict((*self.results.runs, *self.results.floor0), self.results.separations)
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
        nodes = Nodes(directory, children, skewed=options.stage, reference=options.reference)
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
        for group in self.groups:
            await self._group(group, nodes, collector, children, count)
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

    async def _cell(self, cell: CellPlan, nodes: Nodes, collector: Collector, children: Children, items: int) -> None:
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
        limit_s = CELL_GRACE_S + 3 * cell.messages / (cell.rate or 30.0)
        late = False
        try:
            outcome = await children.unless_failed(_within(limit_s, consumer.answers, "done"))
        except TimeoutError:
            late, outcome = True, {}
        for stage in (producer, *followers):
            stage.tell({"do": "finish"})
        for stage in (producer, *followers):
            await children.unless_failed(stage.answer(FLUSH_LIMIT_S, event="finished"))
            if late and stage is consumer:
                self.display.line(f"  {cell.name}: not all messages arrived within {limit_s:.0f} s")
        spans = {name: _of_cell(collector.take(name), cell.name) for name in (*self.options.modes, DIRECT)}
        if cell.purpose == "warm-up":
            return
        if late:
            outcome = {"received": 0, "correct": 0, "first_ns": 0, "last_ns": 0, **outcome}
        self._record(cell, outcome, spans, nodes.truth_ns())

    def _record(
        self, cell: CellPlan, outcome: dict[str, Any], spans: dict[str, list[SpanRecord]], truth_ns: dict[str, int]
    ) -> None:
        options = self.options
        elapsed_ns = outcome["last_ns"] - outcome["first_ns"]
        delivered = (outcome["received"] - 1) / (elapsed_ns / 1e9) if elapsed_ns > 0 else 0.0
        if cell.purpose in ("direct", "saturated") or (cell.purpose == "sweep" and cell.skew_ns in (0, 10_000_000)):
            sidecar = "none" if cell.exporters == (DIRECT,) else "+".join(cell.exporters)
            self.results.throughput.append(
                Throughput(
                    transport=cell.transport,
                    skew_ms=cell.skew_ns / 1e6,
                    sidecar=sidecar,
                    offered_per_s=cell.rate,
                    delivered_per_s=round(delivered, 3),
                    messages=cell.messages,
                    delivered=outcome["received"],
                )
            )
            if cell.purpose != "sweep":
                how = "unpaced" if cell.rate is None else f"{cell.rate:g}/s offered"
                where = "without sidecar" if sidecar == "none" else f"sidecars {sidecar}"
                self.display.line(f"{cell.transport:<19} {how}, {where}: {delivered:.1f} messages/s delivered")
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
        found = analyse({mode: spans[mode] for mode in cell.exporters}, facts)
        mode = next((mode for mode in ("tag", "rewrite") if mode in cell.exporters), None)
        if mode is not None:
            self._bounds.add(cell.transport, facts.broker, spans[mode], truth_ns, found.rows)
        (self.results.floor0 if cell.purpose == "floor0" else self.results.runs).extend(found.rows)
        if cell.skew_ns == 0 or cell.purpose == "floor0":
            self.results.separations.extend(
                Separations(
                    transport=cell.transport, rule=rule, floor_ms=cell.floor_ns / 1e6, separations_ns=separations
                )
                for rule, separations in found.separations_ns.items()
            )
        if found.rows:
            self.display.line(cell_line(found.rows))

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
            "broker": self._broker_label,
            "kafka_clients": options.kafka_clients if "kafka" in options.transports else None,
            "aeron_channel": options.aeron_channel if "aeron" in options.transports else None,
            "inband_only": int(options.inband_only),
            "model": options.model or "magika",
            "demo": int(options.demo),
            "cells": len(cells_of(self.groups)),
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


def host() -> dict[str, str | int | float]:
    """What the figures depend on that is not in the settings."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load_1min_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
