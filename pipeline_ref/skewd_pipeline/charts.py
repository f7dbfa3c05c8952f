"""The report's pictures, as inline SVG that takes its colours from the page.

A picture drawn once must be readable on a white page and on a black one. Matplotlib can only draw in fixed colours,
so it is given colours that nothing else uses, and these are replaced by CSS variables in the finished SVG: the
page's style then decides, also when the reader switches between light and dark.

Limits: text stays text, in the reader's font; widths were computed for another one, so labels have room to spare.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from skewd_pipeline.results import RULES, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for CSS variables until the drawing is done.
_VARIABLES = {
    "#010203": "--ink",
    "#020304": "--muted",
    "#030405": "--grid",
    "#040506": "--paper",
    "#050607": "--raw",
    "#060708": "--fixed",
    "#070809": "--law",
    "#08090a": "--skewed",
    "#090a0b": "--unsure",
}
INK, MUTED, GRID, PAPER, RAW, FIXED, LAW, SKEWED, UNSURE = _VARIABLES
NEAR_MS = 12.0
"""Skews beyond this are in the tables, not in the curves."""

RULE_TITLES = {
    "span-start": "a child span starts before its parent",
    "send-receive": "a message is received before it was sent",
}


def curves(results: Results) -> str:
    """Violation rate over skew: a panel for each transport and rule, raw beside rewritten and predicted."""
    transports = list(dict.fromkeys(run.transport for run in results.runs))
    figure, panels = _figure(len(transports), len(RULES), 10.4, 3.0 * len(transports) + 0.3)
    for row, transport in enumerate(transports):
        for column, rule in enumerate(("span-start", "send-receive")):
            axes = panels[row][column]
            runs = [run for run in results.runs if run.transport == transport and run.rule == rule]
            _curve(axes, runs, results, transport, rule)
            title = f"{_label(runs)}: {RULE_TITLES[rule]}"
            axes.set_title(title, loc="left", fontsize=11, color=INK)
    _legend(figure, panels)
    return _svg(figure, "curves")


def _curve(axes: Axes, runs: Sequence[Run], results: Results, transport: str, rule: str) -> None:
    near = [run for run in runs if run.skew_ms <= NEAR_MS]
    right = max((run.skew_ms for run in near), default=1.0) * 1.04 or 1.0
    for known in results.separations:
        floor_ms = near[0].floor_ms if near else 0.0
        if (known.transport, known.rule, known.floor_ms) != (transport, rule, floor_ms) or not known.separations_ns:
            continue
        values = [value / 1e6 for value in known.separations_ns]
        xs, ys = [0.0], [0.0]
        for number, value in enumerate(values):
            xs += [value, value]
            ys += [number / len(values), (number + 1) / len(values)]
        axes.plot(
            [*xs, max(right, xs[-1])], [*ys, 1.0], color=LAW, linewidth=1.2, label="predicted: separations at 0 ms"
        )
        axes.axvline(values[0], color=LAW, linewidth=0.8, linestyle=(0, (2, 3)))
        if values[0] < right:
            on_left = values[0] > right / 4
            axes.annotate(
                f"least separation {values[0]:.2g} ms",
                (values[0], 0.5) if on_left else (right, 0.1),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9.5,
                color=MUTED,
            )
    raw = _of_mode(near, "off") or _of_mode(near, "tag")
    axes.plot(
        [run.skew_ms for run in raw], [run.violation_rate for run in raw],
        color=RAW, marker="o", markersize=6, linewidth=0, label="measured, uncorrected",
    )  # fmt: skip
    fixed = _of_mode(near, "rewrite")
    axes.plot(
        [run.skew_ms for run in fixed], [run.violation_rate for run in fixed],
        color=FIXED, marker="s", markersize=4.5, linewidth=1.6, label="after rewrite",
    )  # fmt: skip
    axes.set_xlim(-0.3, right)
    axes.set_ylim(-0.04, 1.06)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("injected skew, ms", fontsize=9.5, color=MUTED)


def verdicts(results: Results) -> str:
    """What the tags say of the edges at each skew: shares of skewed, indeterminate and ordered."""
    transports = list(dict.fromkeys(run.transport for run in results.runs))
    figure, panels = _figure(1, len(transports), 10.4, 3.0)
    for column, transport in enumerate(transports):
        axes = panels[0][column]
        runs = [
            run
            for run in results.runs
            if run.transport == transport and run.mode == "tag" and run.rule == "send-receive" and run.edges
        ]
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
        axes.set_xlabel("injected skew, ms", fontsize=9.5, color=MUTED)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_title(f"{label}: verdicts on the sends", loc="left", fontsize=11, color=INK)
    _legend(figure, panels)
    return _svg(figure, "verdicts")


def bounds(results: Results) -> str:
    """How wide the bounds were, and how far off the offsets in them: the error must stay below the bound."""
    transports = list(dict.fromkeys(run.transport for run in results.runs))
    figure, panels = _figure(1, len(transports), 10.4, 3.0)
    for column, transport in enumerate(transports):
        axes = panels[0][column]
        runs = [
            run
            for run in results.runs
            if run.transport == transport and run.mode == "tag" and run.rule == "span-start" and run.uncertainty_ns
        ]
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
        axes.set_xlabel("injected skew, ms", fontsize=9.5, color=MUTED)
        axes.set_title(f"{label}: \u00b5s, over all spans of all nodes", loc="left", fontsize=11, color=INK)
    _legend(figure, panels)
    return _svg(figure, "bounds")


def _label(runs: Sequence[Run]) -> str:
    """The transport as it is called in the report: a mock broker is never left out."""
    transport = runs[0].transport if runs else ""
    broker = next((run.broker for run in runs if run.broker), None)
    return f"{transport} ({broker})" if broker else transport


def _legend(figure: Figure, panels: list[list[Any]]) -> None:
    """One legend for the whole figure, below it."""
    found: dict[str, Any] = {}
    for axes in (axes for row in panels for axes in row):
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    figure.legend(
        list(found.values()), list(found), loc="outside lower left", ncols=len(found), frameon=False, fontsize=10,
        labelcolor=INK,
    )  # fmt: skip


def _of_mode(runs: Iterable[Run], mode: str) -> list[Run]:
    return sorted((run for run in runs if run.mode == mode), key=lambda run: run.skew_ms)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Any]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels: list[list[Any]] = figure.subplots(rows, columns, squeeze=False).tolist()
    for panel in (axes for row in panels for axes in row):
        panel.set_facecolor("none")
        for name, spine in panel.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(MUTED)
        panel.grid(axis="y", color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(colors=MUTED, labelsize=9.5, length=0)
    return figure, panels


def _svg(figure: Figure, salt: str) -> str:
    import matplotlib

    text = io.StringIO()
    # Ids made from the salt: figures on one page must not share them, and the same results give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for name in set(re.findall(r'id="([^"]+)"', svg)):
        svg = re.sub(rf'(id="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>{salt}-{name}", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
