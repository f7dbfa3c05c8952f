"""What the person at the terminal sees: a plan at once, then progress, a line for each finished cell, a table.

On a terminal the current step and the share of the whole stay in view below the lines; elsewhere (a log, a pipe, CI)
there are only the lines, each complete, none rewritten. Nothing here is needed to understand the results: they are in
``results.json``.

Limits: the bar counts seconds of the plan's estimate, so it is as right as that.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from skewd_pipeline.confusion import NOT_THE_CLOCK
from skewd_pipeline.results import Check, Confusion, Heuristic, LongRun, Results, Run, Window, skew_label

LATE = "stamp-after-send"


class Display:
    """Use as a context manager around the whole run."""

    def __init__(self, total_s: float, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(highlight=False, soft_wrap=True)
        self._total_s = total_s
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said: set[str] = set()
        if self.console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._task = self._progress.add_task("starting", total=self._total_s)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, text: str, done_s: float | None = None) -> None:
        """What is being done now. Off a terminal it is a line of its own, once however often it is said."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)
            if done_s is not None:
                self._progress.update(self._task, completed=min(done_s, self._total_s))
        elif text not in self._said:
            self._said.add(text)
            self.console.print(f"  {text}", markup=False)

    def busy(self, text: str, done_s: float) -> None:
        """As :meth:`step`, for what is soon followed by its own line: said on a terminal only."""
        if self._progress is not None:
            self.step(text, done_s)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)


def cell_line(rows: Sequence[Run], *, floor: bool = False) -> str:
    """One finished cell in one line; with its floor, where that is not the sweep's."""
    found = {(row.mode, row.rule): row for row in rows}
    first = rows[0]
    label = transport_label(first) + (f", floor {first.floor_ms:g}" if floor else "")
    parts = [f"{label:<19} {skew_label(first.skew_ms):>5}"]
    raw = found.get(("off", "span-start")) or found.get(("tag", "span-start"))
    if raw is not None:
        parts.append(f"child first {_percent(raw.violation_rate):>6}")
    tag = found.get(("tag", "span-start"))
    if tag is not None:
        verdicts = " ".join(f"{count} {name}" for name, count in sorted(tag.violation_verdicts.items()))
        parts.append(f"tags: {verdicts or 'nothing wrong':<13}")
    fixed = found.get(("rewrite", "span-start"))
    if fixed is not None:
        parts.append(f"rewritten {_percent(fixed.violation_rate)}")
    bound = next((row.uncertainty_ns for row in rows if row.uncertainty_ns), None)
    if bound is not None:
        misses = max(row.bound_misses for row in rows)
        parts.append(f"bound +-{bound.p50 / 1e3:.0f} us, {misses} misses")
    return "  ".join(parts)


def overload_line(rows: Sequence[Confusion], transport: str) -> str:
    """What was said of stamps that a busy CPU made come out backwards."""
    late = [row for row in rows if (row.situation, row.transport, row.rule) == ("overloaded", transport, LATE)]
    total, backwards = sum(row.count for row in late), [row for row in late if row.truth == NOT_THE_CLOCK]
    said = ", ".join(f"{row.count} {row.verdict}" for row in backwards)
    count = sum(row.count for row in backwards)
    return (
        f"{transport:<19} overloaded CPU, clocks synchronized: {count} of {total} late stamps negative: {said or '-'}"
    )


def calls_line(rows: Sequence[Heuristic], skew_ms: float, answered: int) -> str:
    """How far from the true start each method puts a call's server span."""
    said = ", ".join(f"{row.method} {row.rms_us:.0f} us" for row in rows if row.edges == "synchronous")
    return f"{'calls':<19} {skew_label(skew_ms):>5}  {answered} answered; starts off by, RMS: {said}"


def over_time_line(run: LongRun, windows: Sequence[Window]) -> str:
    """A long run in one line."""
    mine = [window for window in windows if window.run == run.run and window.rule == "span-start"]
    worst = max((window.violation_rate for window in mine if window.mode in ("off", "tag")), default=None)
    fixed = sum(window.violations for window in mine if window.mode == "rewrite")
    return (
        f"{run.run:<19} over {run.duration_s:g} s: up to {_percent(worst)} of a window's child spans first, "
        f"rewritten {fixed}; {run.bound_misses} of {run.spans} spans' bounds missed, {run.false_alarms} false alarms"
    )


def table(results: Results) -> Table:
    """All cells of the sweep, one line for each transport and skew; narrow enough for 80 columns."""
    found = Table(
        box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1), pad_edge=False, caption_justify="left"
    )
    found.add_column("\ntransport", no_wrap=True)
    headings = (
        ("", "skew"), ("child", "first"), ("pre-", "dicted"), ("re-", "written"), ("received", "first"),
        ("skewed/", "unsure"), ("bound", "us"), ("mis-", "ses"),
    )  # fmt: skip
    for first, second in headings:
        found.add_column(f"{first}\n{second}", justify="right", no_wrap=True)
    cells: dict[tuple[str, float, float], dict[tuple[str, str], Run]] = {}
    for row in (*results.runs, *results.floor0):
        cells.setdefault((row.transport, row.skew_ms, row.floor_ms), {})[(row.mode, row.rule)] = row
    for (_, _, floor_ms), rows in sorted(cells.items(), key=lambda cell: (not cell[0][2], cell[0][0])):
        any_row = next(iter(rows.values()))
        start = rows.get(("off", "span-start")) or rows.get(("tag", "span-start"))
        event = rows.get(("off", "send-receive")) or rows.get(("tag", "send-receive"))
        tag, fixed = rows.get(("tag", "span-start")), rows.get(("rewrite", "span-start"))
        bound = next((row.uncertainty_ns for row in rows.values() if row.uncertainty_ns), None)
        said = tag.violation_verdicts if tag else {}
        found.add_row(
            transport_label(any_row, wide=False) + ("" if floor_ms else "*"),
            skew_label(any_row.skew_ms),
            _percent(start.violation_rate if start else None),
            _percent(start.predicted_rate if start else None),
            _percent(fixed.violation_rate if fixed else None),
            _percent(event.violation_rate if event else None),
            f"{said.get('skewed', 0)}/{said.get('indeterminate', 0)}" if tag else "-",
            f"{bound.p50 / 1e3:.0f}" if bound else "-",
            str(max(row.bound_misses for row in rows.values())),
        )
    if any(not row.floor_ms for row in (*results.runs, *results.floor0)):
        found.caption = "* without the service floor"
    if any(row.client == "default" for row in results.runs):
        found.caption = f"{found.caption or ''}\nKafka's clients with their own waits (5 ms of linger)".strip()
    return found


def bounds_table(results: Results) -> Table:
    """What the bounds were worth, one line for each transport."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1), pad_edge=False)
    for heading in ("transport", "clocks compared", "width p50", "max", "truth inside", "residual max", "beyond"):
        found.add_column(heading, justify="left" if heading in ("transport", "clocks compared") else "right")
    for row in results.bounds:
        width = row.width_ns
        found.add_row(
            f"{row.transport} {row.broker}" if row.broker else row.transport,
            row.path,
            f"{width.p50 / 1e3:.0f} us" if width else "-",
            f"{width.max / 1e3:.0f} us" if width else "-",
            _percent(row.coverage),
            f"{row.residual_max_ns / 1e3:.0f} us",
            str(row.residuals_beyond),
        )
    return found


def transport_label(row: Run, *, wide: bool = True) -> str:
    """``zmq``, ``kafka mock``, ``aeron ipc``: a mock is never shown without saying so."""
    unusual = row.client if row.client != "latency" and (wide or row.client != "default") else None
    parts = (row.transport, row.broker, unusual)
    return " ".join(part for part in parts if part)


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    # A share that is not quite nothing or not quite all must not be shown as if it were.
    return f"{share:.1%}" if 0 < share < 0.005 or 0.995 < share < 1 else f"{share:.0%}"


def check_line(check: Check) -> str:
    """One claim in one line."""
    mark = {True: "ok  ", False: "FAIL", None: "n/a "}[check.passed]
    return f"  {mark} {check.statement}: {check.measured}"
