"""One transport's turn: measure with every clock right, predict, say so, and only then skew.

Connect the stages, warm up, measure the capacity, choose the service floor, predict (`calibration.py`), run the sweep
in rounds (`plan.py`); then what was asked for beside it: calls, an overloaded CPU, rising load, a clock that moves.

If messages wait for each other more and more in a block, the rate is halved, once for each transport, and that is said.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from skewd_pipeline import calibration as quiet
from skewd_pipeline import figures
from skewd_pipeline.children import ChildFailed
from skewd_pipeline.display import calls_line, cell_line, overload_line, prediction_lines
from skewd_pipeline.edges import EdgeRow, separations_ns
from skewd_pipeline.heuristics import REAL_CALLS, call_traces, compare
from skewd_pipeline.law import edge_name, mean_wait_s, violable_edge
from skewd_pipeline.long_run import run_over_time
from skewd_pipeline.media import start as start_media
from skewd_pipeline.plan import CellPlan, Group, Planner, page_offset_ns, seconds, transport_seconds
from skewd_pipeline.results import RULES, STAGES, Calibration, Load, Rate, Separations, Throughput
from skewd_pipeline.session import (
    CELL_GRACE_S,
    FLUSH_LIMIT_S,
    LATE_FACTOR,
    SLOWEST_PER_S,
    Delivered,
    Session,
    command_of,
    of_cell,
)


class Phase:
    """One transport's. After :meth:`run` its cells are in the session's table, its calibration in the results."""

    def __init__(self, session: Session, transport: str) -> None:
        options = session.options
        self.session = session
        self.options = options
        self.display = session.display
        self.transport = transport
        self.planner = Planner(options, transport)
        self.floor_ns = quiet.TRIED_FLOOR_NS if options.service_floor_ns is None else options.service_floor_ns
        self.rate = 0.0
        self.capacity_per_s = 0.0
        self.halved = False
        self._by_rule_ns: dict[str, list[int]] = {}
        self._service_ns: list[int] = []
        """Of the stage at the receiving end of the edge that the skew can violate, where messages wait."""

    async def run(self) -> None:
        """All of it.

        Raises:
            ChildFailed: a process died or did not answer, or nothing came through.
        """
        session, display, options = self.session, self.display, self.options
        begun_s = session.at_s
        await self._connect()
        # In-band only, the hops are all that the clocks are bounded by.
        display.step("waiting until every clock is bounded")
        await session.nodes.settled()
        await session.nodes.step(0)
        await self._measure_capacity()
        display.total(seconds(options, self.capacity_per_s))
        await self._choose_floor()
        calibration = await self._calibrate()
        skews_ms = self._predict(calibration)
        rounds = 0
        for group in self.planner.sweep(skews_ms, self.floor_ns, self.rate):
            if group.round + 1 > rounds:
                rounds = group.round + 1
                display.step(f"{self.transport}: round {rounds}", session.at_s)
            await self._run_group(group)
        await session.nodes.step(0)
        self._tell_cells()
        if options.overload:
            async with session.overloaded():
                await session.block(self.planner.overload(self.floor_ns, self.rate))
            with session.so_far() as database:
                display.line(overload_line(figures.confusion(database), self.transport))
        if options.loads:
            await self._raise_load()
        if options.duration_ns is not None:
            cell = self.planner.over_time(self.floor_ns, self.rate, options.duration_ns)
            await run_over_time(session, cell, options.duration_ns)
        calibration.halved, calibration.offered_per_s = self.halved, self.rate
        session.at_s = begun_s + transport_seconds(options, self.transport, self.capacity_per_s)

    async def _block(self, cell: CellPlan, delivered: Delivered | None = None) -> list[EdgeRow]:
        """Runs a block, and halves the rate of the next ones if a backlog grew in it."""
        rows = await self.session.block(cell, delivered)
        if cell.rate is None or self.halved or not quiet.backlog_grows(quiet.latencies_ns(rows), cell.rate):
            return rows
        self.halved, self.rate = True, round(self.rate / 2, 2)
        self.display.line(
            f"  {cell.cell}: messages waited for each other more and more; from now on {self.rate:g}/s are offered"
        )
        return rows

    async def _connect(self) -> None:
        """Starts what the transport needs, and opens the stages' ends of its hops."""
        session, display, transport = self.session, self.display, self.transport
        hop: Callable[[str, str, str | None], dict[str, Any]]
        if transport == "kafka":
            opened = await session.broker()
            if opened.kind == "mock":
                display.line(f"  Kafka is a MOCK in this run: {opened.label}; {opened.reason}")
            run_id = f"skewd-{os.getpid()}-{time.time_ns() // 1_000_000:x}"
            topics = {pair: f"{run_id}-{pair[0]}-{pair[1]}" for pair in pairwise(STAGES)}
            await asyncio.to_thread(opened.create_topics, list(topics.values()))

            def hop(upstream: str, downstream: str, endpoint: str | None) -> dict[str, Any]:
                return {
                    "transport": "kafka", "upstream": upstream, "downstream": downstream,
                    "bootstrap": str(opened.bootstrap), "topic": topics[(upstream, downstream)],
                    "clients": self.options.kafka_clients,
                }  # fmt: skip

        elif transport == "aeron":
            own = self.options.aeron_dir is None
            display.step("starting Aeron's media driver" if own else "looking for Aeron's driver")
            media = await start_media(
                session.children, session.directory, self.options.aeron_dir, self.options.aeron_channel,
                time.time_ns() // 1_000_000,
            )  # fmt: skip
            session.results.versions["aeron"] = media.version

            def hop(upstream: str, downstream: str, endpoint: str | None) -> dict[str, Any]:
                return media.hop(upstream, downstream)

        else:

            def hop(upstream: str, downstream: str, endpoint: str | None) -> dict[str, Any]:
                where = endpoint or "tcp://127.0.0.1:0"
                return {"transport": "zmq", "upstream": upstream, "downstream": downstream, "endpoint": where}

        display.step(f"{transport}: connecting the stages")
        await session.nodes.connect(lambda upstream, downstream, endpoint: [hop(upstream, downstream, endpoint)])

    # -- before anything is skewed -------------------------------------------------------------------------------

    async def _measure_capacity(self) -> None:
        """What the pipeline takes at most, and what the sidecars take of that."""
        self.display.step(f"{self.transport}: measuring the capacity", self.session.at_s)
        await self._block(self.planner.warm_up(self.floor_ns))
        by_way: dict[tuple[str, ...], list[float]] = {}
        for cell in self.planner.unpaced(self.floor_ns):
            delivered = Delivered()
            await self._block(cell, delivered)
            by_way.setdefault(cell.exporters, []).append(delivered.per_s)
        self.capacity_per_s = max(0.1, min(median(rates) for rates in by_way.values()))
        self.rate = quiet.offered_per_s(self.capacity_per_s, self.options.rate)
        if self.options.rate is not None and self.rate < self.options.rate:
            self.display.line(
                f"  {self.transport}: {self.rate:g}/s are offered instead of {self.options.rate:g}/s: 40 % of the "
                f"{self.capacity_per_s:.0f}/s that the pipeline takes here"
            )
        without, beside = by_way.get(("off",)), by_way.get(("tag",))
        if without and beside:
            ratio, low, high = figures.ratio_of_pairs(without, beside)
            self.session.results.throughput.append(
                Throughput(
                    transport=self.transport,
                    broker=self.session.broker_of(self.transport),
                    without_per_s=[round(each, 2) for each in without],
                    with_per_s=[round(each, 2) for each in beside],
                    ratio=round(ratio, 4),
                    ratio_low=round(low, 4),
                    ratio_high=round(high, 4),
                )
            )

    async def _choose_floor(self) -> None:
        if self.options.service_floor_ns is not None:
            return
        self.display.step(f"{self.transport}: choosing the service floor", self.session.at_s)
        rows = await self._block(self.planner.quiet(self.floor_ns, self.rate))
        self.floor_ns = quiet.chosen_floor_ns(self._separations(rows, "span-start"))

    async def _calibrate(self) -> Calibration:
        """The quiet cell that predicts the others; again at half the rate if a backlog grows in it."""
        self.display.step(f"{self.transport}: predicting", self.session.at_s)
        halved = self.halved
        rows = await self._block(self.planner.calibration(self.floor_ns, self.rate))
        if self.halved and not halved:
            rows = await self._block(self.planner.calibration(self.floor_ns, self.rate, 1))
        self._by_rule_ns = {rule: self._separations(rows, rule) for rule in RULES}
        if not all(self._by_rule_ns.values()) and violable_edge(self.options.stage, self.options.direction):
            raise ChildFailed(f"{self.transport}: no message of the quiet run came through; nothing can be predicted")
        service_ns = quiet.service_ns(rows)
        edge = violable_edge(self.options.stage, self.options.direction)
        self._service_ns = service_ns[edge[1]] if edge else []
        for pair in pairwise(STAGES):
            for rule in RULES:
                self.session.results.separations.append(
                    Separations(
                        transport=self.transport,
                        rule=rule,
                        edge=edge_name(pair),
                        floor_ms=self.floor_ns / 1e6,
                        separations_ns=sorted(separations_ns(rows, rule, pair)),
                        stage=self.options.stage,
                        direction=self.options.direction,
                    )
                )
        starts, hops = self._by_rule_ns["span-start"], self._by_rule_ns["send-receive"]
        return Calibration(
            capacity_per_s=round(self.capacity_per_s, 2),
            offered_per_s=round(self.rate, 2),
            floor_ms=self.floor_ns / 1e6,
            floor_chosen=self.options.service_floor_ns is None,
            hop_p50_ms=round(median(hops) / 1e6, 4),
            predicted_threshold_ms=round(min(starts) / 1e6, 4),
            hop_ms=quiet.separation(hops),
            separation_ms=quiet.separation(starts),
            service_ms={stage: round(median(each) / 1e6, 3) for stage, each in service_ns.items() if each},
            broker=self.session.broker_of(self.transport),
            client=self.session.client(self.transport),
            stage=self.options.stage,
            direction=self.options.direction,
            messages=len(starts),
        )

    def _separations(self, rows: Sequence[EdgeRow], rule: str) -> list[int]:
        edge = violable_edge(self.options.stage, self.options.direction)
        return [] if edge is None else separations_ns(rows, rule, edge)

    def _predict(self, calibration: Calibration) -> tuple[float, ...]:
        """Says what each skew will do, before it is tried; the skews."""
        starts = self._by_rule_ns["span-start"] or [quiet.AIM_NS]
        skews_ms = quiet.swept_skews_ms(self.options.skews_ms, starts)
        calibration.median_skew_ms = round(median(starts) / 1e6, 2)
        known = {rule: separations for rule, separations in self._by_rule_ns.items() if separations}
        predicted: list[Rate] = figures.predictions(
            calibration, self.transport, known, skews_ms, self.options.messages, seed=str(self.options.seed)
        )
        self.session.results.calibration[self.transport] = calibration
        self.session.results.rates += predicted
        for line in prediction_lines(self.transport, calibration, predicted):
            self.display.line(line)
        return skews_ms

    # -- skewed --------------------------------------------------------------------------------------------------

    async def _run_group(self, group: Group) -> None:
        session, options = self.session, self.options
        self.display.busy(
            f"stepping {options.stage}'s clock to {group.skew_ns / 1e6:g} ms {options.direction}", session.at_s
        )
        await session.nodes.step(page_offset_ns(group.skew_ns, options.direction))
        for cell in group.cells:
            self.display.busy(f"{cell.transport} at {cell.skew_ns / 1e6:g} ms", session.at_s)
            if cell.purpose == "calls":
                await self._calls(cell)
                continue
            if self.halved:
                cell = replace(cell, rate=self.rate)
            delivered = session.delivered.setdefault((cell.transport, cell.skew_ns), Delivered())
            await self._block(cell, delivered)
            session.at_s += cell.messages / (cell.rate or SLOWEST_PER_S)
        # In-band a bound may be too wide to prove what the check is asked for; that is not the check's fault.
        if group.probe and not options.inband_only and options.stamp_offset_ns == 0:
            await session.probe(f"{group.skew_ns / 1e6:g} ms", session.nodes.parts[options.stage].config)

    def _tell_cells(self) -> None:
        """A line for each finished cell, from the rows so far."""
        with self.session.so_far() as database:
            rows = [
                row for row in figures.runs(database, self.session.results.rates, {}) if row.transport == self.transport
            ]
        for skew_ms in sorted({row.skew_ms for row in rows}):
            self.display.line(cell_line([row for row in rows if row.skew_ms == skew_ms]))

    async def _raise_load(self) -> None:
        """The same skew at more and more load: what queueing adds to a separation, the clock can't take away."""
        session, options = self.session, self.options
        skew_ns = round(options.load_skew_ms * 1e6)
        await session.nodes.step(page_offset_ns(skew_ns, options.direction))
        hop_s = fmean(self._by_rule_ns["send-receive"]) / 1e9
        # The capacity says how long the slowest stage takes; the quiet run, how its service times scatter.
        scale = 1 / (self.capacity_per_s * fmean(self._service_ns) / 1e9)
        service_s = [each / 1e9 * scale for each in self._service_ns]
        for utilization, cell in zip(
            options.loads, self.planner.loads(self.floor_ns, self.capacity_per_s), strict=True
        ):
            self.display.step(f"{self.transport}: at {utilization:.0%} of the capacity", session.at_s)
            rows = await session.block(cell)
            starts, hops = self._separations(rows, "span-start"), self._separations(rows, "send-receive")
            spread = quiet.separation(starts)
            if spread is None:
                continue
            load = Load(
                transport=self.transport,
                broker=session.broker_of(self.transport),
                utilization=utilization,
                offered_per_s=round(cell.rate or 0.0, 2),
                skew_ms=options.load_skew_ms,
                edges=len(starts),
                violation_rate=round(sum(each < skew_ns for each in starts) / len(starts), 6),
                separation_ms=spread,
                wait_ms=round((fmean(hops) / 1e9 - hop_s) * 1e3, 3),
                theory_ms=round(mean_wait_s(cell.rate or 0.0, service_s) * 1e3, 3),
            )
            session.results.loads.append(load)
            self.display.line(
                f"{self.transport:<19} at {utilization:.0%} of the capacity, {options.load_skew_ms:g} ms: child first "
                f"{load.violation_rate:.0%}; a message waits {load.wait_ms:.1f} ms, in theory {load.theory_ms:.1f} ms"
            )
        await session.nodes.step(0)

    async def _calls(self, cell: CellPlan) -> None:
        """The reference's stage calls the skewed one; only the comparison with heuristics wants to know."""
        session = self.session
        children, nodes = session.children, session.nodes
        command = command_of(cell)
        server, client = nodes.stage(self.options.stage), nodes.stage(self.options.reference)
        server.tell({"do": "serve-calls", **command})
        serving = await children.unless_failed(server.answer(CELL_GRACE_S, event="serving"))
        client.tell({"do": "call", "address": serving["address"], **command})
        limit_s = CELL_GRACE_S + LATE_FACTOR[False] * cell.messages / (cell.rate or SLOWEST_PER_S)
        done = await children.unless_failed(client.answer(limit_s, event="done"))
        for stage in (client, server):
            stage.tell({"do": "finish"})
            await children.unless_failed(stage.answer(FLUSH_LIMIT_S, event="finished"))
        spans = of_cell(session.collector.take("tag"), cell.name)
        found = compare(REAL_CALLS, cell.skew_ns / 1e6, call_traces(spans, nodes.truth_ns()))
        session.results.heuristics += found
        self.display.line(calls_line(found, cell.skew_ns / 1e6, done["answered"]))
