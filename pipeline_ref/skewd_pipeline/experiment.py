"""``skewd experiment run``: says at once what it will do, does it, and leaves a report.

This file is the front: it must answer within a moment, so nothing heavy is imported before the plan is on the
screen. It also owns the ending. Ctrl-C and SIGTERM cancel the run, which ends every process and removes every file it
made; a process that fails ends it with the tail of its log. ``main`` returns 0 when every claim that must
hold does, 1 when one does not or something failed, 3 when the machine was too busy to judge one, 128 + n after signal
n.

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

from skewd_pipeline.options import ExperimentOptions, as_run
from skewd_pipeline.plan import seconds

if TYPE_CHECKING:
    from skewd_pipeline.display import Display
    from skewd_pipeline.results import Results

RESULTS = "results.json"
REPORT = "report.html"


def main(options: ExperimentOptions) -> int:
    """Runs the experiment; the exit code."""
    options = as_run(options)
    if options.simulated:
        return _simulated(options)
    runnable, missing = possible(options.transports)
    for transport, reason in missing.items():
        print(f"skewd experiment: {transport} is not run: {reason}", file=sys.stderr)
    if not runnable:
        return 1
    options = replace(options, transports=runnable)
    print("\n".join(introduction(options)), flush=True)

    from skewd_pipeline.display import Display
    from skewd_pipeline.results import Missing

    with Display(seconds(options)) as display:
        results, code = _run_all(options, display)
        if results is None:
            return code
        results.missing = [Missing(transport=transport, reason=reason) for transport, reason in missing.items()]
        display.step("writing the report")
        report = _write(results, options.out)
    return _ending(results, report, options, display)


def _ending(results: Results, report: Path, options: ExperimentOptions, display: Display) -> int:
    from skewd_pipeline.claims import exit_code
    from skewd_pipeline.display import ending

    display.lines(ending(results, report, options.out))
    return exit_code(results.claims)


def introduction(options: ExperimentOptions) -> list[str]:
    """What will be run, in a few lines; needs nothing but the options."""
    if options.skews_ms is None:
        skews = "0, 3, 5, 10 ms, the predicted median and one far beyond"
    else:
        skews = ", ".join(f"{skew:g}" for skew in options.skews_ms) + " ms"
    rate = "40 % of what it takes" if options.rate is None else f"at most {options.rate:g}/s"
    floor = "chosen" if options.service_floor_ns is None else f"{options.service_floor_ns / 1e6:g} ms"
    return [
        f"skewd experiment: {options.stage}'s clock {options.direction} by {skews}; nobody on its node is told",
        "  five stages, each on a virtual node of its own with its own clock, skewd and sidecars",
        f"  on {' and '.join(options.transports)}: measured with every clock right, then predicted, then skewed",
        f"  {options.messages} messages a skew, {rate} offered; modes {', '.join(options.modes)} side by side; "
        f"service floor {floor}",
        *(["  clocks are compared over the transport under test alone; UDP is off"] if options.inband_only else []),
        *_long_run_said(options),
        f"  about {seconds(options):.0f} s; results in {options.out}; Ctrl-C ends it and leaves nothing behind",
    ]


def _long_run_said(options: ExperimentOptions) -> list[str]:
    said = []
    if options.loads:
        shares = ", ".join(f"{load:.0%}" for load in options.loads)
        said.append(f"  and at {options.load_skew_ms:g} ms with {shares} of the capacity offered")
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


def possible(transports: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those of the transports that can be run here, and of the others what they lack."""
    from skewd_pipeline.transports import aeron_missing

    reason = aeron_missing() if "aeron" in transports else None
    missing = {} if reason is None else {"aeron": reason}
    return tuple(transport for transport in transports if transport not in missing), missing


def _run_all(options: ExperimentOptions, display: Display) -> tuple[Results | None, int]:
    """One run, or in-band only one for each transport, with nodes of its own."""
    if not options.inband_only or len(options.transports) == 1:
        return _run(options, display)
    from skewd_pipeline.results import merged

    parts = []
    for transport in options.transports:
        display.line(f"  in-band only: {transport}")
        alone = replace(options, transports=(transport,), out=options.out / transport)
        results, code = _run(alone, display)
        if results is None:
            return None, code
        parts.append(results)
    whole = merged(parts)
    # What does not depend on the run is in each part.
    whole.heuristics = [row for number, row in enumerate(whole.heuristics) if row not in whole.heuristics[:number]]
    return whole, 0


def _run(options: ExperimentOptions, display: Display) -> tuple[Results | None, int]:
    """The run with its endings: results, or None and the exit code."""
    from skewd_pipeline.broker_plan import BrokerError
    from skewd_pipeline.children import ChildFailed
    from skewd_pipeline.run import Experiment

    caught: list[int] = []

    async def supervised() -> Results:
        task = asyncio.ensure_future(Experiment(options, display).run())

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
