"""The long run: messages for as long as was asked, while one clock drifts, is stepped and is slewed.

What is done to the clock, and what each moment's traces make of it, is `overtime.py`; this carries it out. The rows go
into the same table as every other block's, each with the truth of its own instants, so the same claims judge them.

Limits: the spans of the whole run are kept until its end, so it may last an hour at most (`options.py`).
"""

from __future__ import annotations

import asyncio

from skewd_pipeline.display import over_time_line
from skewd_pipeline.overtime import Story, Trajectory, schedule
from skewd_pipeline.plan import CellPlan
from skewd_pipeline.session import Session, of_cell
from skewd_pipeline.simulated import record
from skewd_pipeline.spans import SpanRecord

PLAY_NS = 1_000_000_000
"""How often spans are taken and counted."""


async def run_over_time(session: Session, cell: CellPlan, duration_ns: int) -> None:
    """Messages for as long as was asked, while the clock's story is played; spans are counted as they come."""
    options, nodes, collector = session.options, session.nodes, session.collector
    session.display.busy(f"{cell.transport} over time", session.at_s)
    changes = schedule(duration_ns, options.drift_ppb, options.direction)
    deviation = Trajectory()
    begin_ns, deviation_ns, rate_ppb = nodes.deviates()
    deviation.line(begin_ns, deviation_ns, rate_ppb)
    story = Story(
        run=f"{cell.transport}{f' ({session.broker_kind})' if cell.transport == 'kafka' else ''}",
        transport=cell.transport,
        stage=options.stage,
        deviation=deviation,
        begin_ns=begin_ns,
        duration_ns=duration_ns,
        known={
            (each.rule, each.edge): each.separations_ns
            for each in session.results.separations
            if each.edge is not None and (each.transport, each.floor_ms) == (cell.transport, cell.floor_ns / 1e6)
        },
    )

    kept: dict[str, list[SpanRecord]] = {mode: [] for mode in cell.exporters}

    def take() -> None:
        for mode in cell.exporters:
            spans = of_cell(collector.take(mode), cell.name)
            story.add(mode, spans)
            kept[mode] += spans

    def truth(node: str, first_ns: int, last_ns: int) -> tuple[int, int]:
        """The nodes' clocks stand still, but for the one whose story is played."""
        if node != options.stage:
            return 0, 0
        possible = deviation.between(first_ns, last_ns)
        return -max(each.hi for each in possible), -min(each.lo for each in possible)

    async def play() -> None:
        waiting = list(changes)
        while True:
            at_ns = nodes.deviates()[0] - begin_ns
            while waiting and at_ns >= waiting[0].at_ns:
                change = waiting.pop(0)
                since_ns = nodes.change(step_ns=change.step_ns, steer_ppb=change.steer_ppb)
                deviation.line(*nodes.deviates(), step=bool(change.step_ns), since_ns=since_ns)
                session.display.line(f"{cell.transport:<19} {at_ns / 1e9:5.0f} s: the clock is {change.text}")
            take()
            next_ns = waiting[0].at_ns - at_ns if waiting else PLAY_NS
            await asyncio.sleep(min(PLAY_NS, max(next_ns, 1_000_000)) / 1e9)

    _, handled = await session.messages(cell, play)
    take()
    session.table.add(session.rows(cell, handled, kept, truth))
    record(
        session.results,
        story,
        changes,
        options,
        transport=cell.transport,
        broker=session.broker_of(cell.transport),
        simulated=False,
        rate=cell.rate or 0.0,
        floor_ns=cell.floor_ns,
    )
    session.display.line(over_time_line(session.results.long_runs[-1], session.results.windows))
    # Where it would have been had nothing been played, for the next transport's turn.
    nodes.change(step_ns=0, steer_ppb=changes[-1].steer_ppb)
