"""The experiment itself: five nodes up, one transport after the other, then the figures and the claims.

Nodes stay up from the first cell to the last: what changes between cells is one page's offset and which hop carries the
messages. Tag and rewrite are two sidecars beside each stage, ``off`` is the exporter's direct way; all three see the
very same spans, so the modes are compared pair by pair rather than run by run. What each transport needs is started
when its turn comes (`phase.py`). Figures and claims are queries over the table of edges, at the end.

Limits: a process that dies ends the run. All waits have limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from skewd_pipeline import claims, figures
from skewd_pipeline.calls import compared
from skewd_pipeline.children import ChildFailed, Children
from skewd_pipeline.collector import Collector, Protocol
from skewd_pipeline.display import Display
from skewd_pipeline.edges import FILE, Table, connect
from skewd_pipeline.heuristics import compare
from skewd_pipeline.inband import CLOCK_TOPIC, INBAND_ONLY, InBand, messages_used
from skewd_pipeline.nodes import Nodes
from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.phase import Phase
from skewd_pipeline.ran_on import host, versions
from skewd_pipeline.results import STAGES, ProcessTime, Results
from skewd_pipeline.session import Session, ended

PREPARE_LIMIT_S = 300.0
SHORT_PATH_MAX = 60
"""A directory's path must leave room for a socket's name: 108 bytes in all."""

# Both of OTLP's protocols are forwarded over: the modes differ in what they do to spans, not in how they send.
FORWARD: dict[str, Protocol] = {"off": "http", "tag": "grpc", "rewrite": "http"}


class Experiment:
    """One run. Everything it starts ends with :meth:`run`, however that ends."""

    def __init__(self, options: ExperimentOptions, display: Display) -> None:
        self.options = options
        self.display = display
        self.results = Results(runs=[], host=host(), versions=versions())

    async def run(self) -> Results:
        """Runs all transports, and writes the table of edges.

        Raises:
            ChildFailed: a process did not start, died, or did not answer.
        """
        begun = time.monotonic()
        options = self.options
        async with contextlib.AsyncExitStack() as stack:
            directory = stack.enter_context(short_directory())
            logs = directory / "logs"
            logs.mkdir()
            table = stack.enter_context(Table(directory / "edges.csv"))
            collector = await stack.enter_async_context(Collector())
            children = await stack.enter_async_context(Children(logs))
            drift_ppb = -options.drift_ppb if options.direction == "behind" else options.drift_ppb
            nodes = Nodes(
                directory,
                children,
                skewed=options.stage,
                reference=options.reference,
                drift_ppb=drift_ppb if options.duration_ns is not None else 0,
            )
            session = Session(options, self.display, self.results, directory, table, collector, children, nodes, stack)
            try:
                await self._start(session)
                for transport in options.transports:
                    await Phase(session, transport).run()
                statuses = [await nodes.status(name) for name in STAGES]
            except ChildFailed:
                self._keep_logs(logs)
                raise
            self.display.step("writing the table of edges")
            times = children.processor_time_s()
            self.results.processes = [
                ProcessTime(name=name, seconds=round(each, 2)) for name, each in sorted(times.items())
            ]
            table.write(options.out / FILE)
        self.results.settings = self._settings(session)
        used = {transport: messages_used(statuses) for transport in options.transports if options.inband_only}
        self._judge(session, used)
        self.results.seconds = round(time.monotonic() - begun, 1)
        return self.results

    async def _start(self, session: Session) -> None:
        """Starts nodes and stages."""
        options, display, nodes = self.options, self.display, session.nodes
        items = session.directory / "items"
        display.step("choosing files, and asking the model what is right for each")
        preparing = asyncio.create_task(self._prepare(items, session.children))
        session.stack.push_async_callback(ended, preparing)
        addresses = {mode: await session.collector.listen(mode, FORWARD[mode]) for mode in options.modes}
        if options.inband_only:
            nodes.only = await self._in_band(session)
        clocks = asyncio.create_task(nodes.start_clocks(addresses, progress=display.step))
        session.stack.push_async_callback(ended, clocks)
        # Together, so that a model that cannot be loaded is not first waited for by fifteen processes.
        session.items, _ = await asyncio.gather(preparing, clocks)
        display.step(f"{session.items} files; starting the five stages")
        await nodes.start_stages(
            items=items, model=options.model, stamp_offset_ns=options.stamp_offset_ns, max_age_ns=options.max_age_ns
        )
        await session.probe("no daemon", session.nobody())

    async def _in_band(self, session: Session) -> InBand:
        """How the nodes of this run hear each other, over its one transport."""
        (transport,) = self.options.transports
        if transport != "kafka":
            return InBand(transport)
        opened = await session.broker()
        topic = f"{CLOCK_TOPIC}-{os.getpid()}-{time.time_ns() // 1_000_000:x}"
        await asyncio.to_thread(opened.create_topics, [topic])
        return InBand(transport, str(opened.bootstrap), topic)

    def _judge(self, session: Session, used: dict[str, dict[str, int]]) -> None:
        """Figures and claims, from the table."""
        results, options = self.results, self.options
        with connect(options.out / FILE) as database:
            claims.prepare(database)
            figures.prepare(database)
            results.rates = figures.measure(database, results.rates, seed=str(options.seed))
            per_s = {key: delivered.per_s for key, delivered in session.delivered.items()}
            results.runs = figures.runs(database, results.rates, per_s)
            results.confusion += figures.confusion(database)
            results.bounds = figures.bounds(
                database,
                path=INBAND_ONLY if options.inband_only else "UDP and in-band",
                reference=options.reference,
                messages=used,
            )
            results.trace = figures.trace(database)
            for (transport, skew_ns), traces in session.traces.items():
                broker = session.broker_of(transport)
                name = f"the pipeline's, {transport}{f' ({broker})' if broker else ''}"
                results.heuristics += compare(name, skew_ns / 1e6, traces)
            if results.heuristics:
                results.heuristics = compared(seed=options.seed) + results.heuristics
            results.claims = claims.claims(results, database)

    async def _prepare(self, items: Path, children: Children) -> int:
        arguments = ["-m", "skewd_pipeline.prepare", str(items), str(self.options.seed)]
        if self.options.model is not None:
            arguments.append(self.options.model)
        code, output = await children.once("prepare", arguments, PREPARE_LIMIT_S)
        if code != 0:
            raise ChildFailed(f"the files could not be prepared{children.tail('prepare')}")
        return int(json.loads(output.splitlines()[-1])["items"])

    # -- afterwards ----------------------------------------------------------------------------------------------

    def _settings(self, session: Session) -> dict[str, str | int | float | list[str | float] | None]:
        options = self.options
        return {
            "skews_ms": None if options.skews_ms is None else list(options.skews_ms),
            "stage": options.stage,
            "direction": options.direction,
            "transports": list(options.transports),
            "modes": list(options.modes),
            "messages": options.messages,
            "rate_per_s": options.rate,
            "seed": options.seed,
            "reference": options.reference,
            "service_floor_ms": None if options.service_floor_ns is None else options.service_floor_ns / 1e6,
            "max_age_ms": None if options.max_age_ns is None else options.max_age_ns / 1e6,
            "stamp_offset_ms": options.stamp_offset_ns / 1e6,
            "loads": list(options.loads),
            "duration_s": options.duration_ns / 1e9 if options.duration_ns else None,
            "drift_ppm": options.drift_ppb / 1e3 if options.duration_ns else None,
            "broker": session.broker_label,
            "kafka_clients": options.kafka_clients if "kafka" in options.transports else None,
            "aeron_channel": options.aeron_channel if "aeron" in options.transports else None,
            "inband_only": int(options.inband_only),
            "model": options.model or "magika",
            "demo": int(options.demo),
            "cells": len(session.blocks),
            "blocks": sum(session.blocks.values()),
        }

    def _keep_logs(self, logs: Path) -> None:
        kept = self.options.out / "logs"
        with contextlib.suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
            for log in logs.glob("*.log"):
                shutil.copy(log, kept)
            self.display.line(f"the logs of all processes are in {kept}")


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory with a short path, removed at the end."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= SHORT_PATH_MAX - 20 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="skewd-", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)
