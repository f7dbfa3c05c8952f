"""``skewd experiment run``: says at once what it will do, does it, and leaves a report.

This file is the front: it must answer within a moment, so nothing heavy is imported before the plan is on the
screen. It also owns the ending. Ctrl-C and SIGTERM cancel the run, which ends every process and removes every file it
made; a process that fails ends it with the tail of its log. ``main`` returns 0 when every claim that could be judged
holds, 1 when one does not or something failed, 128 + n after signal n.

Limits: one run per output directory at a time; results are written whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skewd_pipeline.options import ExperimentOptions
from skewd_pipeline.plan import Group, cells_of, plan, seconds, with_demo

if TYPE_CHECKING:
    from skewd_pipeline.display import Display
    from skewd_pipeline.results import Results

RESULTS = "results.json"
REPORT = "report.html"


def main(options: ExperimentOptions) -> int:
    """Runs the experiment; the exit code."""
    options = with_demo(options)
    if options.simulated:
        return _simulated(options)
    runnable, missing = possible(options.transports)
    for transport, reason in missing.items():
        print(f"skewd experiment: {transport} is not run: {reason}", file=sys.stderr)
    if not runnable:
        return 1
    options = replace(options, transports=runnable)
    groups = plan(options)
    print("\n".join(introduction(options, groups)), flush=True)

    from skewd_pipeline.display import Display, bounds_table, table
    from skewd_pipeline.results import Missing

    with Display(seconds(groups) + _over_time_s(options)) as display:
        results, code = _run_all(options, groups, display)
        if results is None:
            return code
        results.missing = [Missing(transport=transport, reason=reason) for transport, reason in missing.items()]
        display.step("writing the report")
        report = _write(results, options.out)
    display.console.print()
    display.console.print(table(results))
    if results.bounds:
        display.console.print(bounds_table(results))
    for gone in results.missing:
        display.line(f"{gone.transport} is missing: {gone.reason}")
    return _ending(results, report, options, display)


def _ending(results: Results, report: Path, options: ExperimentOptions, display: Display) -> int:
    from skewd_pipeline.display import check_line

    display.line("\nclaims")
    shown = [check for check in results.checks if not options.simulated or check.passed is not None]
    for check in shown:
        display.line(check_line(check))
    if len(shown) < len(results.checks):
        display.line(f"  n/a  {len(results.checks) - len(shown)} more, of the pipeline itself, which was not run")
    bad = [check for check in results.checks if check.passed is False]
    display.line(f"\n{len(bad) or 'no'} claim{'s' if len(bad) != 1 else ''} failed; {results.seconds:.0f} s")
    display.line("\n".join(farewell(options.out, report)))
    return 1 if bad else 0


def introduction(options: ExperimentOptions, groups: Sequence[Group]) -> list[str]:
    """What will be run, in a few lines; needs nothing but the options."""
    skews = ", ".join(f"{skew:g}" for skew in options.skews_ms)
    cells = len({cell.cell for cell in cells_of(groups)})
    return [
        f"skewd experiment: {options.stage}'s clock {options.direction} by {skews} ms; nobody on its node is told",
        "  five stages, each on a virtual node of its own with its own clock, skewd and sidecars",
        f"  {cells} cells on {' and '.join(options.transports)}, {options.messages} messages each at "
        f"{options.rate:g}/s; modes {', '.join(options.modes)} side by side; "
        f"service floor {options.service_floor_ns / 1e6:g} ms",
        *([f"  in {groups[-1].round + 1} rounds with a block of every cell in each"] if groups[-1].round else []),
        *(["  clocks are compared over the transport under test alone; UDP is off"] if options.inband_only else []),
        *_long_run_said(options),
        f"  about {seconds(groups) + _over_time_s(options):.0f} s; results in {options.out}; "
        "Ctrl-C ends it and leaves nothing behind",
    ]


def _over_time_s(options: ExperimentOptions) -> float:
    return (options.duration_ns or 0) / 1e9 * len(options.transports)


def _long_run_said(options: ExperimentOptions) -> list[str]:
    said = []
    if options.floors_ns:
        said.append(f"  and at floors of {', '.join(f'{floor / 1e6:g}' for floor in options.floors_ns)} ms")
    if options.overload:
        said.append("  and with synchronized clocks on an overloaded CPU")
    if options.duration_ns is not None:
        how = "in simulated time" if options.simulated else "on each transport"
        said.append(
            f"  then {options.duration_ns / 1e9:g} s {how}: the clock drifts by {options.drift_ppb / 1000:g} ppm, is "
            "stepped by 20 ms and back, and slewed"
        )
    return said


def _simulated(options: ExperimentOptions) -> int:
    """The long run in simulated time: no process is started."""
    print(f"skewd experiment, simulated: {options.stage}'s clock {options.direction}; no process is started")
    print("\n".join(_long_run_said(options)), flush=True)
    from skewd_pipeline.display import Display, over_time_line
    from skewd_pipeline.results import load
    from skewd_pipeline.simulated import run

    with Display(1.0) as display:
        try:
            measured = load(_results_of(options.separations)).separations if options.separations is not None else []
            results = run(options, measured, lambda share: display.busy("time goes by", share))
        except (OSError, ValueError) as error:
            display.line(f"the experiment failed: {error}")
            return 1
        report = _write(results, options.out)
    for long_run in results.long_runs:
        display.line(over_time_line(long_run, results.windows))
    return _ending(results, report, options, display)


def _results_of(path: Path) -> Path:
    return path / RESULTS if path.is_dir() else path


def farewell(out: Path, report: Path) -> list[str]:
    """Where the report is, and what one might do next."""
    return [
        f"\nreport: {report}",
        "\nnext:",
        f"  xdg-open {report}   # the curves",
        "  skewd experiment run --stage preprocess --direction ahead   # the same edge from its other end",
        "  skewd run   # bound this machine's own clock; then: skewd status, skewd check",
    ]


def possible(transports: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those of the transports that can be run here, and of the others what they lack."""
    from skewd_pipeline.transports import aeron_missing

    reason = aeron_missing() if "aeron" in transports else None
    missing = {} if reason is None else {"aeron": reason}
    return tuple(transport for transport in transports if transport not in missing), missing


def _run_all(options: ExperimentOptions, groups: Sequence[Group], display: Display) -> tuple[Results | None, int]:
    """One run, or in-band only one for each transport, with nodes of its own."""
    if not options.inband_only or len(options.transports) == 1:
        return _run(options, groups, display)
    from skewd_pipeline.claims import claims
    from skewd_pipeline.results import merged

    parts = []
    for transport in options.transports:
        display.line(f"  in-band only: {transport}")
        alone = replace(options, transports=(transport,))
        results, code = _run(alone, plan(alone), display)
        if results is None:
            return None, code
        parts.append(results)
    whole = merged(parts)
    # What does not depend on the run is in each part.
    whole.heuristics = [row for number, row in enumerate(whole.heuristics) if row not in whole.heuristics[:number]]
    whole.checks = claims(whole)
    return whole, 0


def _run(options: ExperimentOptions, groups: Sequence[Group], display: Display) -> tuple[Results | None, int]:
    """The run with its endings: results, or None and the exit code."""
    from skewd_pipeline.broker_plan import BrokerError
    from skewd_pipeline.children import ChildFailed
    from skewd_pipeline.run import Experiment

    caught: list[int] = []

    async def supervised() -> Results:
        task = asyncio.ensure_future(Experiment(options, groups, display).run())

        def stop(number: int) -> None:
            if not caught:
                display.line("stopping: ending every process")
                task.cancel()
            caught.append(number)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(supervised()), 0
    except asyncio.CancelledError:
        display.line("stopped; nothing is left running, no file is left behind")
        return None, 128 + (caught[0] if caught else signal.SIGINT)
    except (ChildFailed, BrokerError, OSError) as error:
        display.line(f"the experiment failed: {error}")
        return None, 1


def _write(results: Results, out: Path) -> Path:
    from skewd_pipeline.report import write
    from skewd_pipeline.results import save

    save(results, out / RESULTS)
    report = out / REPORT
    write(results, report)
    return report


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(ExperimentOptions()))
