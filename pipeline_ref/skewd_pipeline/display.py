"""What the person at the terminal sees: predictions, then progress, a line for each finished cell, and an ending.

On a terminal the current step and the share of the whole stay in view below the lines; elsewhere (a log, a pipe, CI)
there are only the lines, each complete, none rewritten. The ending is what people remember of a demo, so it is short:
where the transports break, one message's trace before and after, the rates beside their predictions, and what does not
hold. Nothing here is needed to understand the results: they are in ``results.json``.

Limits: the bar counts seconds of the plan's estimate, so it is as right as that. The ending of a run on two transports
has at most ``LINES_MOST`` lines of ``WIDTH`` columns; each claim that does not hold adds one, a third transport a few.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from skewd_pipeline.confusion import NOT_THE_CLOCK
from skewd_pipeline.results import (
    Calibration,
    Confusion,
    Heuristic,
    LongRun,
    Rate,
    Results,
    Run,
    Trace,
    Window,
    skew_label,
)
from skewd_pipeline.words import (
    SPAN_START,
    brief_ms,
    by_way,
    early_spans,
    failing,
    headline,
    holding,
    interval,
    main_way,
    name_of,
    named,
    percent,
    rate_of,
    raw_rows,
    thresholds,
    trace_title,
)

LATE = "stamp-after-send"
EDGES = "edges.parquet"
WIDTH, LINES_MOST = 80, 25
_STAGE_COLUMNS = 12
_STAMPED, _REWRITTEN = "\u2588", "\u2593"


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

    def total(self, total_s: float) -> None:
        """How long the whole takes is now known better."""
        self._total_s = total_s
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total_s)

    def busy(self, text: str, done_s: float) -> None:
        """As :meth:`step`, for what is soon followed by its own line: said on a terminal only."""
        if self._progress is not None:
            self.step(text, done_s)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def lines(self, texts: Iterable[str]) -> None:
        """Lines in rich's markup, as :func:`ending` gives them."""
        for text in texts:
            self.console.print(text)


# -- while it runs -----------------------------------------------------------------------------------------------------


def cell_line(rows: Sequence[Run], *, floor: bool = False) -> str:
    """One finished cell in one line; with its floor, where that is not the sweep's; missed bounds only if any."""
    found = {(row.mode, row.rule): row for row in rows}
    first = rows[0]
    label = named(first) + (f", floor {first.floor_ms:g}" if floor else "")
    parts = [f"{label:<12}{skew_label(float(brief_ms(first.skew_ms))):>8}"]
    raw = found.get(("off", SPAN_START)) or found.get(("tag", SPAN_START))
    if raw is not None:
        parts.append(f"child first {percent(raw.violation_rate):>5}")
    fixed = found.get(("rewrite", SPAN_START))
    if fixed is not None:
        parts.append(f"rewritten {percent(fixed.violation_rate)}")
    tag = found.get(("tag", SPAN_START))
    if tag is not None:
        verdicts = " ".join(f"{count} {name}" for name, count in sorted(tag.violation_verdicts.items()))
        parts.append(f"tags: {verdicts or 'nothing wrong'}")
    if misses := max(row.bound_misses for row in rows):
        parts.append(f"{misses} BOUNDS MISSED")
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
        f"{run.run:<19} over {run.duration_s:g} s: up to {percent(worst)} of a window's child spans first, "
        f"rewritten {fixed}; {run.bound_misses} of {run.spans} spans' bounds missed, {run.false_alarms} false alarms"
    )


# -- before the skewed cells -------------------------------------------------------------------------------------------


def prediction_lines(transport: str, calibration: Calibration, rates: Sequence[Rate]) -> list[str]:
    """What the quiet run leads to expect, said before any clock is skewed."""
    name = name_of(transport, calibration.broker, calibration.client)
    halved = "; a backlog grew, so the rate was halved" if calibration.halved else ""
    said = (
        f"takes {calibration.capacity_per_s:.0f} messages/s, is offered {calibration.offered_per_s:.0f}{halved}; "
        f"a stage works {calibration.floor_ms:.1f} ms at least, a hop takes {calibration.hop_p50_ms:.2f} ms"
    )
    mine = sorted(
        (rate for rate in rates if (rate.transport, rate.rule) == (transport, SPAN_START)),
        key=lambda rate: rate.skew_ms,
    )
    predicted = ", ".join(
        f"{interval(rate.predicted_rate, rate.predicted_low, rate.predicted_high)} at {brief_ms(rate.skew_ms)} ms"
        for rate in mine
    )
    lines = [f"{name} {said}", f"no child span first below {calibration.predicted_threshold_ms:.1f} ms of skew"]
    lines[1] = f"predicted (99%): {lines[1]}" + (f"; {predicted}" if predicted else "")
    return [
        line
        for text, indent in zip(lines, ("  ", "    "), strict=True)
        for line in textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent="    ")
    ]


# -- the ending --------------------------------------------------------------------------------------------------------


def ending(results: Results, report: Path, out: Path) -> list[str]:
    """What stays on the screen: lines of rich's markup, none wider than ``WIDTH``."""
    if not results.runs:
        said = [headline(results), *(over_time_line(run, results.windows) for run in results.long_runs)]
        parts = [[escape(line) for text in said for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]]
    else:
        broken, drawn, rates = _threshold_lines(results), _trace_lines(results.trace), _rate_lines(results)
        if len(broken) <= 2 and len(broken + drawn + rates) + 4 > LINES_MOST:
            drawn = drawn[:-1]  # rather the axis than a rate
        parts = [part for part in (broken, drawn, rates) if part]
    parts.append(
        [
            *(
                f"[yellow]{_fit(f'{name_of(gone.transport, None)} was not run: {gone.reason}')}[/]"
                for gone in results.missing
            ),
            *_claim_lines(results),
            *_next_lines(results, report, out),
        ]
    )
    # Space between the parts as far as the lines allow, the first first.
    spare = max(0, LINES_MOST - sum(map(len, parts)))
    return [line for place, part in enumerate(parts) for line in ([""] if 0 < place <= spare else []) + part]


def _threshold_lines(results: Results) -> list[str]:
    lines = []
    for place, each in enumerate(thresholds(results)):
        start = "and " if place else "On this machine "
        said = f" ({each.predicted()})" if each.predicted_ms is not None else ""
        seen = f": {percent(each.first.violation_rate)} there" if each.first else ""
        text = _fit(f"{start}{each.name} {each.where()}{said}{seen}")
        lines.append(f"[bold]{text}[/]")
    return lines


def _trace_lines(trace: Trace | None) -> list[str]:
    """Five bars as stamped, five rewritten, on one axis."""
    if trace is None or not trace.spans:
        return []
    every = [(span.raw_start_us, span.raw_end_us) for span in trace.spans]
    fixed = [(span.rewritten_start_us, span.rewritten_end_us) for span in trace.spans]
    begin = min(start for start, _ in every + fixed)
    end = max(end for _, end in every + fixed)
    columns = WIDTH - _STAGE_COLUMNS
    scale = columns / max(end - begin, 1.0)

    def bar(place: int, span: tuple[float, float], mark: str) -> tuple[int, str]:
        first = min(int((span[0] - begin) * scale), columns - 1)
        last = max(first + 1, min(round((span[1] - begin) * scale), columns))
        return first, mark * (last - first)

    early = set(early_spans(trace))
    lines = [_fit(f"{trace_title(trace)}: as stamped, then rewritten")]
    for place, span in enumerate(trace.spans):
        first, drawn = bar(place, every[place], _STAMPED)
        said = ""
        if place in early:
            parent_us = every[place - 1][0]
            before = max(1, int((parent_us - begin) * scale) - first)
            said = f" \u25c4 {(parent_us - every[place][0]) / 1e3:.1f} ms before its parent"
            said = f"[bold red]{said}[/]" if len(said) <= columns - first - len(drawn) else ""
            drawn = f"[bold red]{drawn[:before]}[/]{drawn[before:]}"
        lines.append(f"{span.stage:<{_STAGE_COLUMNS}}{' ' * first}{drawn}{said}".rstrip())
    for place, span in enumerate(trace.spans):
        first, drawn = bar(place, fixed[place], _REWRITTEN)
        said = f" \u00b1 {span.uncertainty_us / 1e3:.2f} ms" if place in early else ""
        said = said if len(said) <= columns - first - len(drawn) else ""
        lines.append(f"{span.stage:<{_STAGE_COLUMNS}}{' ' * first}[green]{drawn}{said}[/]")
    return [*lines, _axis(begin, end, scale, columns)]


def _axis(begin_us: float, end_us: float, scale: float, columns: int) -> str:
    """Whole steps of milliseconds under the bars."""
    step_ms = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if step * 1e3 * scale >= 9), 1000)
    cells = [" "] * (columns + _STAGE_COLUMNS)
    at_ms = math.ceil(begin_us / (step_ms * 1e3)) * step_ms  # a whole number, so that it is never -0
    while at_ms * 1e3 <= end_us:
        text = f"{at_ms:g} ms"
        place = _STAGE_COLUMNS + int((at_ms * 1e3 - begin_us) * scale)
        if place + len(text) <= len(cells):
            cells[place : place + len(text)] = text
        at_ms += step_ms
    return f"[dim]{''.join(cells).rstrip()}[/]"


def _rate_lines(results: Results) -> list[str]:
    """For each transport, predicted, measured and rewritten; two transports beside each other."""
    blocks = []
    for (_, *way), rows in by_way(raw_rows(results, SPAN_START)).items():
        if tuple(way) == main_way(results):
            blocks.append(_block(results, rows))
    lines = ["% of child spans that start before their parent, by ms of skew"] if blocks else []
    for left, right in zip_longest(blocks[::2], blocks[1::2], fillvalue=()):
        lines += [_fit(f"{one:<39}  {other}".rstrip()) for one, other in zip_longest(left, right, fillvalue="")]
    return lines


def _block(results: Results, rows: Sequence[Run]) -> list[str]:
    """One transport's table, 39 columns wide; neighbouring skews that show the same share a line."""
    fixed = {row.skew_ms: row for row in results.runs if row.mode == "rewrite" and _cell(row) == _cell(rows[0])}
    shown: list[tuple[list[str], tuple[str, str, str]]] = []
    for row in rows:
        rate = rate_of(results, row)
        after = percent(fixed[row.skew_ms].violation_rate) if row.skew_ms in fixed else "-"
        figures = (
            interval(rate.predicted_rate, rate.predicted_low, rate.predicted_high)
            if rate
            else percent(row.predicted_rate),
            percent(row.violation_rate),
            after,
        )
        if shown and shown[-1][1] == figures:
            shown[-1][0].append(brief_ms(row.skew_ms))
        else:
            shown.append(([brief_ms(row.skew_ms)], figures))
    lines = [f"{name_of(rows[0].transport, rows[0].broker):<10} {'predicted':>9} {'measured':>8} {'rewritten':>9}"]
    for skews, (predicted, measured, after) in shown:
        skew = ", ".join(skews) if len(skews) < 3 else f"{skews[0]}-{skews[-1]}"
        plain = predicted.replace("%", "")
        lines.append(f"{skew}{plain:>{20 - len(skew)}}{measured.removesuffix('%'):>9}{after.removesuffix('%'):>10}")
    return lines


def _cell(row: Run) -> tuple[str, str, str, str]:
    return row.transport, row.stage, row.direction, row.rule


def _claim_lines(results: Results) -> list[str]:
    bad = failing(results)
    lines = []
    for claim in bad:
        colour, word = ("red", "FAILS ") if claim.verdict == "fails" else ("yellow", "unsure")
        text = f"{word} {claim.statement}: {claim.figure}"
        text = text if claim.statement and len(text) <= WIDTH else f"{word} {claim.id}: {claim.figure}"
        lines.append(f"[{colour}]{_fit(text)}[/]")
    if any(claim.verdict == "inconclusive" for claim in bad):
        lines.append(_fit("inconclusive: the machine is too busy to tell; run it again when it is quiet"))
    whole = holding(results.claims)
    return [*lines, f"[green]{_fit(whole)}[/]"] if whole else lines


def _next_lines(results: Results, report: Path, out: Path) -> list[str]:
    """Where the report is, and what one might do next."""
    other = "ahead" if results.runs and results.runs[0].direction == "behind" else "behind"
    stage = "preprocess" if other == "ahead" else "inference"
    again = f"skewd experiment run --stage {stage} --direction {other}  # other end"
    opened, edges = f"report: xdg-open {report}", f"   # every edge: {out / EDGES}"
    return [
        # A path is never cut: one that is too long for the line must still work.
        escape(opened + (edges if results.runs and len(opened + edges) <= WIDTH else "")),
        _fit(f"next:   {again if results.runs else 'skewd experiment run   # the real pipeline'}"),
        _fit("        skewd run  # bound this machine's own clock; then: skewd check"),
    ]


def _fit(text: str, columns: int = WIDTH) -> str:
    """At most so many columns, as markup; what is cut is in the report."""
    return escape(text if len(text) <= columns else f"{text[: columns - 1].rstrip()}\u2026")
