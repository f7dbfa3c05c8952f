"""The report's pictures, as inline SVG that takes its colours from the page, and as PNG.

A picture drawn once must be readable on a white page and on a black one. Matplotlib can only draw in fixed colours,
so it is given colours that nothing else uses, and these are replaced by CSS variables in the finished SVG: the
page's style then decides, also when the reader switches between light and dark. For a PNG the same figure is drawn
in the light page's colours.

A picture must also be readable on a phone. So each panel is a picture of its own, drawn at the width of a column, and
the page lays them out; the one that needs width, a clock's story, is drawn twice.

Limits: text stays text, in the reader's font; widths were computed for another one, so labels have room to spare.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from skewd_pipeline.export import NEAR_MS
from skewd_pipeline.heuristics import METHODS
from skewd_pipeline.law import prediction_interval, separations_for, shorter
from skewd_pipeline.results import Heuristic, LongRun, Results, Run, Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for CSS variables until the drawing is done, and what they are on a light page.
_VARIABLES = {
    "#010203": ("--ink", "#1c1b19"),
    "#020304": ("--muted", "#6b675f"),
    "#030405": ("--grid", "#e4e0d8"),
    "#040506": ("--paper", "#fdfcfa"),
    "#050607": ("--raw", "#c8442d"),
    "#060708": ("--fixed", "#1f7a5c"),
    "#070809": ("--law", "#4a6fa5"),
    "#08090a": ("--skewed", "#c8442d"),
    "#090a0b": ("--unsure", "#d9a441"),
}
INK, MUTED, GRID, PAPER, RAW, FIXED, LAW, SKEWED, UNSURE = _VARIABLES
COLUMN, PAGE = 5.2, 10.4
"""Inches: of a column, and of two."""

BAND_POINTS = 60
CURVE_POINTS = 400

RULE_TITLES = {
    "span-start": "a child span starts before its parent",
    "send-receive": "a message is received before it was sent",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing: its name (of a file, and of its ids), what it shows for those who cannot see it, and itself."""

    name: str
    label: str
    figure: Figure

    def svg(self) -> str:
        """Inline SVG in the page's colours."""
        return _svg(self.figure, self.name)

    def png(self) -> bytes:
        """The same on a light page; the figure is recoloured for it, so this comes last."""
        return _png(self.figure)


# -- the law -----------------------------------------------------------------------------------------------------------


def curves(results: Results) -> list[Picture]:
    """For each transport, skewed stage, direction and rule: the rate over the skew, above the separations that explain
    it."""
    found = []
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for rule in RULE_TITLES:
        for run in results.runs:
            if run.rule == rule:
                groups.setdefault((run.transport, run.direction, run.stage, rule), []).append(run)
    for (transport, direction, stage, rule), runs in sorted(groups.items(), key=lambda item: item[0][:3]):
        label = f"{_label(runs)}, {stage} {direction}"
        figure, (above, below) = _stacked(COLUMN, 4.0, (3, 1))
        right = _right(runs)
        _curve(above, runs, results, right)
        above.set_title(f"{label}: {RULE_TITLES[rule]}", loc="left", fontsize=10.5, color=INK)
        _histogram(below, runs, results, right)
        _legend(figure, [above])
        name = f"law-{transport}-{stage}-{direction}-{rule}"
        found.append(Picture(name, f"Violation rate over skew, {label}: {RULE_TITLES[rule]}", figure))
    return found


def _right(runs: Sequence[Run]) -> float:
    return max((run.skew_ms for run in runs if run.skew_ms <= NEAR_MS), default=1.0) * 1.04 or 1.0


def _known(runs: Sequence[Run], results: Results) -> Sequence[int]:
    known = separations_for(results.separations, runs[0]) if runs else None
    return known.separations_ns if known is not None else ()


def _steps(values_ns: Sequence[int], right_ms: float) -> tuple[list[float], list[float]]:
    """A distribution function as points, at most about ``CURVE_POINTS`` of them."""
    every = max(1, len(values_ns) // CURVE_POINTS)
    xs, ys = [0.0], [0.0]
    for number in range(0, len(values_ns), every):
        at = min(number + every, len(values_ns)) / len(values_ns)
        xs += [values_ns[number] / 1e6] * 2
        ys += [ys[-1], at]
    return [*xs, max(right_ms, xs[-1])], [*ys, 1.0]


def _curve(axes: Axes, runs: Sequence[Run], results: Results, right: float) -> None:
    values = _known(runs, results)
    near = [run for run in runs if run.skew_ms <= NEAR_MS]
    edges = max((run.edges for run in near), default=0)
    if values and edges:
        grid = [right * place / BAND_POINTS for place in range(BAND_POINTS + 1)]
        band = [prediction_interval(shorter(values, round(at * 1e6)), len(values), edges) for at in grid]
        axes.fill_between(
            grid, [low / edges for low, _ in band], [high / edges for _, high in band], color=LAW, alpha=0.16,
            linewidth=0, label="its 99% interval",
        )  # fmt: skip
        axes.plot(*_steps(values, right), color=LAW, linewidth=1.4, label="predicted at 0 ms")
    raw = _of_mode(near, "off") or _of_mode(near, "tag")
    axes.plot(
        [run.skew_ms for run in raw], [run.violation_rate for run in raw],
        color=RAW, marker="o", markersize=6, linewidth=0, label="measured",
    )  # fmt: skip
    fixed = _of_mode(near, "rewrite")
    axes.plot(
        [run.skew_ms for run in fixed], [run.violation_rate for run in fixed],
        color=FIXED, marker="s", markersize=4.5, linewidth=1.6, label="after rewrite",
    )  # fmt: skip
    axes.set_xlim(-0.3, right)
    axes.set_ylim(-0.05, 1.06)
    _percent(axes)


def _histogram(axes: Axes, runs: Sequence[Run], results: Results, right: float) -> None:
    """The separations; what lies left of a skew's line is what that skew breaks."""
    values = [value / 1e6 for value in _known(runs, results)]
    bins = 80
    if values:
        axes.hist([value for value in values if value <= right], bins=bins, range=(0, right), color=LAW,
                  histtype="stepfilled")  # fmt: skip
        axes.axvline(values[0], color=INK, linewidth=0.9)
        on_left = values[0] > right / 2
        axes.annotate(
            f"least {values[0]:.2g} ms", (values[0], 0.82), xycoords=("data", "axes fraction"),
            xytext=(-4 if on_left else 4, 0), textcoords="offset points", ha="right" if on_left else "left",
            va="center", fontsize=9, color=INK,
        )  # fmt: skip
        beyond = sum(value > right for value in values) / len(values)
        if beyond >= 0.005:
            axes.annotate(
                f"{beyond:.0%} beyond \u2192", (1, 0.4), xycoords="axes fraction", ha="right", va="center", fontsize=9,
                color=MUTED,
            )  # fmt: skip
    for run in runs:
        if run.skew_ms <= NEAR_MS:
            axes.axvline(run.skew_ms, color=RAW, linewidth=0.7, linestyle=(0, (2, 3)))
    axes.set_xlim(-0.3, right)
    axes.set_yticks([])
    axes.set_xlabel("separations, ms; dotted: the skews", fontsize=9, color=MUTED)


def agreement(results: Results) -> list[Picture]:
    """Prediction over measurement, a dot for each cell."""
    if not results.law:
        return []
    figure, (axes,) = _stacked(COLUMN, 4.2, (1,))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    for agrees, colour, label in ((True, LAW, "inside its 99% interval"), (False, RAW, "outside")):
        cells = [cell for cell in results.law if cell.agrees == agrees]
        if not cells:
            continue
        axes.vlines(
            [cell.predicted_rate for cell in cells], [cell.predicted_low for cell in cells],
            [cell.predicted_high for cell in cells], color=colour, linewidth=5, alpha=0.16,
        )  # fmt: skip
        axes.plot(
            [cell.predicted_rate for cell in cells], [cell.measured_rate for cell in cells], color=colour, marker="o",
            markersize=5, linewidth=0, label=label,
        )  # fmt: skip
    for axis, text in ((axes.set_xlabel, "predicted from the synchronized cells"), (axes.set_ylabel, "measured")):
        axis(text, fontsize=9.5, color=MUTED)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.xaxis.set_major_formatter(_as_percent)
    _percent(axes)
    axes.set_title("each cell: measured over predicted", loc="left", fontsize=10.5, color=INK)
    _legend(figure, [axes])
    return [Picture("agreement", "Measured over predicted violation rates, a dot for each cell", figure)]


def floors(results: Results) -> list[Picture]:
    """The same law at other service floors: the threshold moves with the least separation."""
    rows = [run for run in (*results.runs, *results.floor0, *results.floors) if run.rule == "span-start"]
    mode = "off" if any(run.mode == "off" for run in rows) else "tag"
    rows = [run for run in rows if run.mode == mode]
    found = []
    for transport, stage, direction in dict.fromkeys((run.transport, run.stage, run.direction) for run in rows):
        mine = [run for run in rows if (run.transport, run.stage, run.direction) == (transport, stage, direction)]
        known = sorted({run.floor_ms for run in mine})
        if len(known) < 2:
            continue
        figure, (axes,) = _stacked(COLUMN, 4.2, (1,))
        right = max(_right(mine), max(known) * 1.25)
        shades = [0.35 + 0.65 * place / max(1, len(known) - 1) for place in range(len(known))]
        for floor_ms, shade in zip(known, shades, strict=True):
            cells = sorted((run for run in mine if run.floor_ms == floor_ms), key=lambda run: run.skew_ms)
            values = _known(cells, results)
            if values:
                axes.plot(*_steps(values, right), color=LAW, alpha=shade, linewidth=1.4)
                axes.annotate(
                    f"{floor_ms:g} ms", (values[len(values) // 10] / 1e6, 0.1), xytext=(5, 0),
                    textcoords="offset points", fontsize=9.5, color=LAW, va="center", annotation_clip=True,
                )  # fmt: skip
            axes.plot(
                [run.skew_ms for run in cells], [run.violation_rate for run in cells], color=RAW, alpha=shade,
                marker="o", markersize=5, linewidth=0,
            )  # fmt: skip
        axes.set_xlim(-0.3, right)
        axes.set_ylim(-0.05, 1.06)
        _percent(axes)
        axes.set_xlabel("skew, ms", fontsize=9.5, color=MUTED)
        title = f"{_label(mine)}, {stage} {direction}: floors of {', '.join(f'{floor:g}' for floor in known)} ms"
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        label = f"Violation rate over skew at several floors, {transport}, {stage} {direction}"
        found.append(Picture(f"floors-{transport}-{stage}-{direction}", label, figure))
    return found


# -- over time ---------------------------------------------------------------------------------------------------------


def story(run: LongRun, windows: Sequence[Window], *, wide: bool) -> Picture:
    """A clock's story: its skew, what is left of the doubt, both edges' rates, and the signal."""
    width, height = (PAGE, 7.4) if wide else (COLUMN, 7.4)
    figure, (skew, doubt, into, out, signal) = _stacked(width, height, (2.2, 1.5, 1.7, 1.7, 1.2))
    unit, scale = ("minutes", 60.0) if run.duration_s >= 300 else ("seconds", 1.0)
    times = [sample.at_s / scale for sample in run.clock]

    skew.axhline(0, color=MUTED, linewidth=0.7)
    steps = [event.at_s for event in run.events if event.what == "step"]
    for begin, end in pairwise([-1.0, *steps, run.duration_s + 1]):  # a step is a gap, not a slope
        piece = [sample for sample in run.clock if begin <= sample.at_s < end]
        skew.plot([s.at_s / scale for s in piece], [s.skew_ms for s in piece], color=INK, linewidth=1.6)
    _named(skew, "ms behind the reference: what the clock truly did" if wide else "ms behind: the truth")

    bounded = [sample for sample in run.clock if sample.least_ms is not None and sample.greatest_ms is not None]
    at = [sample.at_s / scale for sample in bounded]
    low = [((sample.least_ms or 0.0) - sample.skew_ms) * 1e3 for sample in bounded]
    high = [((sample.greatest_ms or 0.0) - sample.skew_ms) * 1e3 for sample in bounded]
    usual = sorted(max(-a, b) for a, b in zip(low, high, strict=True))
    limit = 3 * usual[len(usual) // 2] if usual else 1.0
    doubt.fill_between(at, low, high, color=FIXED, alpha=0.3, linewidth=0)
    doubt.axhline(0, color=INK, linewidth=0.9)
    doubt.set_ylim(-limit, limit)
    _named(doubt, "\u00b5s: the bound around the truth (the line)" if wide else "\u00b5s: bound around the truth")

    for axes, direction, text in ((into, "behind", f"into {run.stage}"), (out, "ahead", f"out of {run.stage}")):
        mine = [
            window
            for window in windows
            if (window.run, window.rule, window.direction) == (run.run, "span-start", direction)
        ]
        raw = [window for window in mine if window.mode == "off"] or [window for window in mine if window.mode == "tag"]
        fixed = [window for window in mine if window.mode == "rewrite"]
        predicted = [window for window in raw if window.predicted_rate is not None]
        axes.plot(
            [_middle(window, scale) for window in predicted], [window.predicted_rate or 0.0 for window in predicted],
            color=LAW, linewidth=1.4, label="predicted from the skew",
        )  # fmt: skip
        axes.plot(
            [_middle(window, scale) for window in raw], [window.violation_rate for window in raw], color=RAW,
            marker="o", markersize=3.4, linewidth=0, label="child spans first, as stamped",
        )  # fmt: skip
        axes.plot(
            [_middle(window, scale) for window in fixed], [window.violation_rate for window in fixed], color=FIXED,
            linewidth=2, label="after rewrite",
        )  # fmt: skip
        axes.set_ylim(-0.07, 1.09)
        _percent(axes)
        _named(axes, f"edges {text}")

    for place, (text, colour, down) in enumerate(
        (("the clock turned child spans round", INK, [not sample.clock_innocent for sample in run.clock]),
         ("the 30 s signal blames it", SKEWED, [not sample.health_clock for sample in run.clock]))
    ):  # fmt: skip
        signal.broken_barh(_stretches(times, down), (1.5 - 1.3 * place, 0.5), facecolors=colour, linewidth=0)
        signal.annotate(
            text,
            (0, 1.5 - 1.3 * place + 0.62),
            xycoords=("axes fraction", "data"),
            fontsize=9,
            color=MUTED,
            va="bottom",
        )
    signal.set_ylim(0, 2.75)
    signal.set_yticks([])
    signal.grid(visible=False)
    signal.set_xlabel(unit, fontsize=9.5, color=MUTED)

    for number, event in enumerate(run.events, 1):
        for axes in (skew, doubt, into, out, signal):
            axes.axvline(event.at_s / scale, color=MUTED, linewidth=0.7, linestyle=(0, (1, 3)))
        skew.annotate(
            str(number), (event.at_s / scale, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", fontsize=9.5, color=MUTED, va="top",
        )  # fmt: skip
    for axes in (skew, doubt, into, out, signal):
        axes.set_xlim(0, run.duration_s / scale)
        if axes is not signal:
            axes.tick_params(labelbottom=False)
    _legend(figure, [into], columns=3 if wide else 1)
    name = f"story-{re.sub('[^a-z]+', '-', run.run.lower()).strip('-')}-{'wide' if wide else 'narrow'}"
    return Picture(name, f"A clock's story over {run.duration_s:g} s: {run.run}", figure)


def _middle(window: Window, scale: float) -> float:
    return (window.start_s + window.end_s) / 2 / scale


def _stretches(times: Sequence[float], down: Sequence[bool]) -> list[tuple[float, float]]:
    """(begin, length) of each stretch of samples that are down."""
    found: list[tuple[float, float]] = []
    begin: float | None = None
    for at, is_down in zip(times, down, strict=True):
        if is_down and begin is None:
            begin = at
        elif not is_down and begin is not None:
            found.append((begin, at - begin))
            begin = None
    if begin is not None:
        found.append((begin, times[-1] - begin))
    return found


# -- beside the heuristics ---------------------------------------------------------------------------------------------


def heuristics(results: Results) -> list[Picture]:
    """Errors over the skew, and what corrections broke, for each method on calls."""
    names = list(dict.fromkeys(row.traces for row in results.heuristics if row.edges == "synchronous"))
    if not names:
        return []
    rows = [row for row in results.heuristics if row.traces == names[0]]
    styles = {"raw": (RAW, "o"), "centring": (UNSURE, "^"), "client-server": (INK, "v"), "measured": (FIXED, "s")}
    found = []
    panels: tuple[tuple[str, str, str, Callable[[Heuristic], float], bool], ...] = (
        ("errors", "synchronous", "RMS error of starts, calls, \u00b5s", lambda row: row.rms_us, True),
        ("introduced", "asynchronous", "orders broken by correcting, children nobody waits for",
         lambda row: row.introduced / row.relations if row.relations else 0.0, False),
    )  # fmt: skip
    for name, edges, title, value, logarithmic in panels:
        figure, (axes,) = _stacked(COLUMN, 3.6, (1,))
        for method in METHODS:
            mine = sorted((row for row in rows if (row.method, row.edges) == (method, edges)), key=lambda r: r.skew_ms)
            shown = [(row.skew_ms, value(row)) for row in mine if value(row) > 0 or not logarithmic]
            colour, marker = styles[method]
            axes.plot(
                [skew for skew, _ in shown], [value for _, value in shown], color=colour, marker=marker, markersize=5,
                linewidth=1.4, label="measured offsets (ours)" if method == "measured" else method,
            )  # fmt: skip
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(bottom=-0.002)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("skew, ms", fontsize=9.5, color=MUTED)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        _legend(figure, [axes], columns=2)
        found.append(Picture(f"heuristics-{name}", f"{title}, for each method over the skew", figure))
    return found


# -- tags --------------------------------------------------------------------------------------------------------------


def verdicts(results: Results) -> list[Picture]:
    """What the tags say of the edges at each skew: shares of skewed, indeterminate and ordered."""
    found = []
    for runs in _tagged(results, "send-receive"):
        figure, (axes,) = _stacked(COLUMN, 3.2, (1,))
        label, labels = _label(runs), [f"{run.skew_ms:g}" for run in runs]
        bottom = [0.0] * len(runs)
        said = (("skewed", SKEWED), ("indeterminate", UNSURE), ("ordered", FIXED), ("impossible", INK))
        for verdict, colour in (*said, ("unsynchronized", GRID)):
            shares = [run.verdicts.get(verdict, 0) / run.edges for run in runs]
            if not any(shares) and verdict in ("impossible", "unsynchronized"):
                continue
            axes.bar(labels, shares, bottom=bottom, color=colour, width=0.72, label=verdict)
            bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
        axes.set_ylim(0, 1.0)
        axes.set_xlabel("skew, ms", fontsize=9.5, color=MUTED)
        _percent(axes)
        axes.set_title(
            f"{label}, {runs[0].stage} {runs[0].direction}: verdicts on the sends", loc="left", fontsize=10.5, color=INK
        )
        _legend(figure, [axes], columns=3)
        name = f"verdicts-{runs[0].transport}-{runs[0].stage}-{runs[0].direction}"
        found.append(Picture(name, f"Verdicts on the edges of the tagged run, {label}", figure))
    return found


def bounds(results: Results) -> list[Picture]:
    """How wide the bounds were, and how far off the offsets in them: the error must stay below the bound."""
    found = []
    for every in _tagged(results, "span-start"):
        runs = [run for run in every if run.uncertainty_ns]
        if not runs:
            continue
        figure, (axes,) = _stacked(COLUMN, 3.2, (1,))
        label, places = _label(runs), range(len(runs))
        for place, run in zip(places, runs, strict=True):
            if run.uncertainty_ns is None or run.error_ns is None:
                continue
            axes.plot(
                [place, place], [run.error_ns.max / 1e3, run.uncertainty_ns.max / 1e3],
                color=GRID, linewidth=1, zorder=1,
            )  # fmt: skip
        widest = [run.uncertainty_ns.max / 1e3 for run in runs if run.uncertainty_ns]
        errors = [run.error_ns.max / 1e3 for run in runs if run.error_ns]
        axes.plot(
            places, widest, color=LAW, marker="_", markersize=16, linewidth=0, markeredgewidth=2, label="widest bound"
        )
        axes.plot(places, errors, color=RAW, marker="o", markersize=5, linewidth=0, label="largest error")
        axes.set_xticks(list(places), [f"{run.skew_ms:g}" for run in runs])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("skew, ms", fontsize=9.5, color=MUTED)
        title = f"{label}, {runs[0].stage} {runs[0].direction}: \u00b5s, all spans of all nodes"
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        _legend(figure, [axes], columns=2)
        name = f"bounds-{runs[0].transport}-{runs[0].stage}-{runs[0].direction}"
        found.append(Picture(name, f"Widest bound and largest error in each cell, {label}", figure))
    return found


def _tagged(results: Results, rule: str) -> list[list[Run]]:
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(results.runs, key=lambda run: run.skew_ms):
        if run.mode == "tag" and run.rule == rule and run.edges:
            groups.setdefault((run.transport, run.stage, run.direction), []).append(run)
    return list(groups.values())


# -- drawing -----------------------------------------------------------------------------------------------------------


def _label(runs: Sequence[Run]) -> str:
    """The transport as it is called in the report: a mock broker is never left out."""
    transport = runs[0].transport if runs else ""
    broker = next((run.broker for run in runs if run.broker), None)
    return f"{transport} ({broker})" if broker else transport


def _legend(figure: Figure, panels: Sequence[Axes], columns: int = 2) -> None:
    """One legend for the whole figure, below it."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if not found:
        return
    figure.legend(
        list(found.values()), list(found), loc="outside lower left", ncols=min(len(found), columns), frameon=False,
        fontsize=9.5, labelcolor=INK,
    )  # fmt: skip


def _named(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9.5, color=MUTED, pad=3)


def _as_percent(value: float, _: object) -> str:
    return f"{value:.0%}"


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(_as_percent)


def _of_mode(runs: Iterable[Run], mode: str) -> list[Run]:
    return sorted((run for run in runs if run.mode == mode), key=lambda run: run.skew_ms)


def _stacked(width: float, height: float, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Panels below each other, of these heights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(ratios), 1, squeeze=False, gridspec_kw={"height_ratios": list(ratios)})
    panels: list[Axes] = [row[0] for row in grid.tolist()]
    for panel in panels:
        panel.set_facecolor("none")
        for name, spine in panel.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(MUTED)
        panel.grid(axis="y", color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(which="both", colors=MUTED, labelsize=9.5, length=0)
    return figure, panels


def _svg(figure: Figure, salt: str) -> str:
    """Ids are numbered and have the salt: no two figures share one, and the same results give the same bytes."""
    svg = _drawn(figure, salt)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    numbers: dict[str, int] = {}
    svg = re.sub(
        r'(\bid="|url\(#|href="#)([^")]+)',
        lambda found: f"{found[1]}{salt}-{numbers.setdefault(found[2], len(numbers))}",
        svg,
    )
    for colour, (variable, _) in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _drawn(figure: Figure, salt: str) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _png(figure: Figure) -> bytes:
    """Drawn in the light page's colours: every colour that stands for a variable is exchanged."""
    from matplotlib.artist import Artist

    def exchange(artist: Artist) -> None:
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            getter, setter = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if getter is not None and setter is not None:
                with_light = _light(getter())
                if with_light is not None:
                    setter(with_light)
        for child in artist.get_children():
            exchange(child)

    exchange(figure)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_tick_params(which="both", labelcolor=_VARIABLES[MUTED][1])
            for line in axis.get_gridlines():
                line.set_color(_VARIABLES[GRID][1])
    figure.set_facecolor(_VARIABLES[PAPER][1])
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, facecolor=_VARIABLES[PAPER][1], metadata={"Software": None})
    return data.getvalue()


def _light(colour: Any) -> Any:
    """The colour of a light page for one that stands for a variable; None for any other."""
    from matplotlib.colors import to_hex, to_rgba, to_rgba_array

    try:
        every = to_rgba_array(colour)
    except (TypeError, ValueError):
        return None
    changed = [
        (*to_rgba(_VARIABLES[to_hex(each)][1])[:3], each[3]) if to_hex(each) in _VARIABLES else tuple(each)
        for each in every
    ]
    if not changed or all(to_hex(each) not in _VARIABLES for each in every):
        return None
    return changed[0] if len(changed) == 1 else changed
