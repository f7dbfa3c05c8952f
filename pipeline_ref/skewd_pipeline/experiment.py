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
    runnable, missing = possible(options.transports)
    for transport, reason in missing.items():
        print(f"skewd experiment: {transport} is not run: {reason}", file=sys.stderr)
    if not runnable:
        return 1
    options = replace(options, transports=runnable)
    groups = plan(options)
    print("\n".join(introduction(options, groups)), flush=True)

    from skewd_pipeline.display import Display, bounds_table, check_line, table
    from skewd_pipeline.results import Missing

    with Display(seconds(groups)) as display:
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
    display.line("\nclaims")
    for check in results.checks:
        display.line(check_line(check))
    bad = [check for check in results.checks if check.passed is False]
    display.line(f"\n{len(bad) or 'no'} claim{'s' if len(bad) != 1 else ''} failed; {results.seconds:.0f} s")
    display.line("\n".join(farewell(options.out, report)))
    return 1 if bad else 0


def introduction(options: ExperimentOptions, groups: Sequence[Group]) -> list[str]:
    """What will be run, in a few lines; needs nothing but the options."""
    skews = ", ".join(f"{skew:g}" for skew in options.skews_ms)
    return [
        f"skewd experiment: {options.stage}'s clock {options.direction} by {skews} ms; nobody on its node is told",
        "  five stages, each on a virtual node of its own with its own clock, skewd and sidecars",
        f"  {len(cells_of(groups))} cells on {' and '.join(options.transports)}, {options.messages} messages each at "
        f"{options.rate:g}/s; modes {', '.join(options.modes)} side by side; "
        f"service floor {options.service_floor_ns / 1e6:g} ms",
        *(["  clocks are compared over the transport under test alone; UDP is off"] if options.inband_only else []),
        f"  about {seconds(groups):.0f} s; results in {options.out}; Ctrl-C ends it and leaves nothing behind",
    ]


def farewell(out: Path, report: Path) -> list[str]:
    """Where the report is, and what one might do next."""
    return [
        f"\nreport: {report}",
        "\nnext:",
        f"  xdg-open {report}                                  # the curves",
        "  skewd experiment run --transports zmq --direction ahead --out out/ahead   # the other way round",
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
