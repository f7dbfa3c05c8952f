"""The report's pictures: small SVG, written by hand, in the page's colours.

A picture must be readable on a white page and on a black one, on a desk and on a phone, and weigh little. So it names
classes instead of colours (``report_style.py`` has them), and each is drawn twice, for wide screens and for narrow
ones, of which the page shows one. What is long (titles, legends) is the page's own text, which wraps; in the picture
are only axes and short words. Distributions are drawn through their quantiles, never through their points.

Limits: the width of a word is estimated; short words have room to spare. Skews beyond ``NEAR_MS`` stand in columns of
their own, right of a gap in the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from skewd_pipeline.report_style import PICTURE_FILE
from skewd_pipeline.results import STAGES, Load, LongRun, Results, Run, Separations, Trace, Window
from skewd_pipeline.words import (
    brief_ms,
    by_way,
    early_spans,
    named,
    percent,
    rate_of,
    raw_rows,
    trace_title,
)

NEAR_MS = 12.0
PAPER_NONE_MS, PAPER_CLEAR_MS = 3.0, 5.0
WIDE, NARROW = 960.0, 360.0
_QUANTILES, _SAMPLES = 60, 200
_LETTER = 6.9
"""How wide a letter is, at most on average."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """One picture: its file's name, and how it is drawn at a width."""

    name: str
    title: str
    description: str
    draw: Callable[[Drawing], None]

    def svg(self, width: float, style: str = "") -> str:
        """The drawing as an element; with its style if it is to stand alone."""
        drawing = Drawing(width)
        self.draw(drawing)
        place = f"{self.name}-{'w' if width == WIDE else 'n'}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(drawing.height)}" role="img" '
            f'aria-labelledby="{place}-t {place}-d"><title id="{place}-t">{escape(self.title)}</title>'
            f'<desc id="{place}-d">{escape(self.description)}</desc>{style}{"".join(drawing.parts)}</svg>'
        )

    def file(self) -> str:
        """The wide one as a file of its own."""
        return self.svg(WIDE, f"<style>{PICTURE_FILE}</style>") + "\n"


class Drawing:
    """Elements of one picture, and how far down they reach."""

    def __init__(self, width: float) -> None:
        self.width, self.height, self.parts = width, 0.0, list[str]()
        self.narrow = width < 600

    def line(self, points: Iterable[Point], kind: str) -> None:
        """Through all points."""
        self.parts.append(f'<polyline class="{kind}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>')

    def area(self, points: Iterable[Point], kind: str) -> None:
        """Inside all points."""
        self.parts.append(f'<polygon class="{kind}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>')

    def stroke(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """One straight line."""
        self.parts.append(f'<path class="{kind}" d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A rectangle; at least a hair wide."""
        size = f'width="{_n(max(width, 0.5))}" height="{_n(max(height, 0.5))}"'
        self.parts.append(f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" {size}/>')

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Words whose middle is at this height."""
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y + 4.5)}"{at} class="{kind}">{escape(words)}</text>')

    def mark(self, x: float, y: float, place: int, kind: str, size: float = 4.5) -> None:
        """A transport's own shape: circle, square, triangle."""
        if place == 0:
            self.parts.append(f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}"/>')
        elif place == 1:
            self.box(x - size, y - size, 2 * size, 2 * size, kind)
        else:
            self.area([(x, y - size * 1.2), (x + size * 1.1, y + size), (x - size * 1.1, y + size)], kind)


class Panel:
    """A rectangle of a drawing with two scales."""

    def __init__(
        self, drawing: Drawing, left: float, top: float, right: float, height: float, x: Point, y: Point
    ) -> None:
        self.drawing, self.left, self.top, self.right, self.height = drawing, left, top, right, height
        self._x, self._y = x, y
        drawing.height = max(drawing.height, top + height)

    def x(self, value: float) -> float:
        """Across."""
        low, high = self._x
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Down; held inside."""
        low, high = self._y
        share = (value - low) / ((high - low) or 1.0)
        return self.top + (1 - min(max(share, 0.0), 1.0)) * self.height

    def rules(self, values: Iterable[float], said: Callable[[float], str]) -> None:
        """Lines across, each with its value on the left."""
        for value in values:
            self.drawing.stroke(self.left, self.y(value), self.right, self.y(value), "rule")
            self.drawing.text(self.left - 8, self.y(value), said(value), "quiet", "end")

    def below(self, values: Iterable[float], said: Callable[[float], str]) -> None:
        """Values of the axis across, below it."""
        bottom = self.top + self.height
        for value in values:
            self.drawing.text(self.x(value), bottom + 14, said(value), "quiet", "middle")
        self.drawing.height = max(self.drawing.height, bottom + 24)


def _n(value: float) -> str:
    """Tenths are enough for any eye."""
    said = f"{value:.1f}".removesuffix(".0")
    return "0" if said == "-0" else said


def _steps(low: float, high: float, most: int) -> list[float]:
    """Round values from one to the other."""
    span = max(high - low, 1e-9)
    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if span / s <= most), span)
    first = -(-low // step)
    return [round((first + number) * step, 6) for number in range(int(high / step - first + 1e-9) + 1)]


# -- one trace ---------------------------------------------------------------------------------------------------------


def trace_picture(trace: Trace) -> Picture:
    """One message as stamped, and below, on the same axis, as rewritten."""

    def draw(to: Drawing) -> None:
        left, row = (86.0 if to.narrow else 100.0), 24.0
        starts = [each for span in trace.spans for each in (span.raw_start_us, span.rewritten_start_us)]
        ends = [each for span in trace.spans for each in (span.raw_end_us, span.rewritten_end_us)]
        across = (min(starts) / 1e3, max(ends) / 1e3)
        rows = len(trace.spans) * row
        both = [Panel(to, left, top, to.width - 12, rows, across, (0.0, 1.0)) for top in (22.0, 22.0 + rows + 34.0)]
        for at in _steps(*across, 4 if to.narrow else 10):
            to.stroke(both[0].x(at), both[0].top, both[0].x(at), both[1].top + rows, "rule")
        early = early_spans(trace)
        for panel, words, fixed in zip(both, ("as stamped", "rewritten"), (False, True), strict=True):
            to.text(0, panel.top - 11, words, "fixed" if fixed else "")
            for place, span in enumerate(trace.spans):
                start_us, end_us = (
                    (span.rewritten_start_us, span.rewritten_end_us) if fixed else (span.raw_start_us, span.raw_end_us)
                )
                x, end, y = panel.x(start_us / 1e3), panel.x(end_us / 1e3), panel.top + place * row
                kind = "fixed plain" if fixed else "early plain" if place in early else "bar"
                to.text(0, y + row / 2, span.stage, "quiet")
                to.box(x, y + 4, end - x, row - 8, kind)
                true = panel.x(span.true_start_us / 1e3)
                to.stroke(true, y + 1, true, y + row - 1, "ink")
                if fixed:
                    for at_us in (start_us, end_us):
                        low, high = (panel.x((at_us + by) / 1e3) for by in (-span.uncertainty_us, span.uncertainty_us))
                        to.box(low, y + row / 2 - 3, high - low, 6, "ink plain")
                elif place in early:
                    parent = panel.x(trace.spans[place - 1].raw_start_us / 1e3)
                    to.stroke(parent, y - row, parent, y + row, "early")
                    _beside(to, x, end, y + row / 2, (trace.spans[place - 1].raw_start_us - start_us) / 1e3)
        both[1].below(_steps(*across, 4 if to.narrow else 10), lambda at: f"{at:g} ms")

    early = ", ".join(trace.spans[place].stage for place in early_spans(trace)) or "no stage"
    return Picture(
        "trace", f"{trace_title(trace)}: as stamped, and rewritten",
        f"Bars of five stages on one time axis, twice. As stamped, {early} starts before its parent; rewritten, each "
        "stage starts after the one before it.", draw,
    )  # fmt: skip


def _beside(to: Drawing, start: float, end: float, y: float, before_ms: float) -> None:
    """The longest words that fit right of a bar, or left of it."""
    for words in (
        f"starts {before_ms:.1f} ms before its parent",
        f"{before_ms:.1f} ms before parent",
        f"-{before_ms:.1f} ms",
    ):
        wide = len(words) * _LETTER
        if end + 8 + wide < to.width:
            to.text(end + 8, y, words, "early")
            return
        if start - 8 - wide > 100:
            to.text(start - 8, y, words, "early", "end")
            return


# -- the rate over the skew --------------------------------------------------------------------------------------------


def rates_picture(results: Results, rule: str, stage: str, direction: str) -> Picture:
    """Every transport's rate over the skew: predicted, measured, rewritten, and what the paper saw."""
    groups = [rows for (_, *way), rows in by_way(raw_rows(results, rule)).items() if way == [stage, direction]]
    skews = sorted({row.skew_ms for rows in groups for row in rows})
    near = [skew for skew in skews if skew <= NEAR_MS] or skews
    far = [skew for skew in skews if skew not in near]
    right_ms = max(max(near, default=0.0), PAPER_CLEAR_MS) * 1.05

    def draw(to: Drawing) -> None:
        slot = 40.0 if to.narrow else 64.0
        edge = to.width - 14 - slot * len(far)
        panel = Panel(to, 46, 46, edge, 190.0 if to.narrow else 300.0, (-0.25, right_ms), (0.0, 1.0))

        def across(skew_ms: float) -> float:
            return edge + slot * (far.index(skew_ms) + 0.6) if skew_ms in far else panel.x(skew_ms)

        _paper_strip(to, panel)
        panel.rules((0.0, 0.25, 0.5, 0.75, 1.0), lambda share: f"{share:.0%}")
        for skew in far:
            to.stroke(across(skew) - slot * 0.35, panel.y(0), across(skew) + slot * 0.35, panel.y(0), "axis")
            to.text(across(skew), panel.y(0) + 14, brief_ms(skew), "quiet", "middle")
        panel.below(_steps(0, right_ms, 6 if to.narrow else 12), lambda at: f"{at:g}")
        to.text((46 + edge) / 2, panel.y(0) + 34, "ms of skew", "quiet", "middle")
        to.height = panel.y(0) + 44
        for place, rows in enumerate(groups):
            kind, shift = f"t{min(place, 2)}", (place - (len(groups) - 1) / 2) * 7.0
            known = known_separations(results.separations, rows[0])
            if known:
                to.line([(panel.x(at), panel.y(share)) for at, share in quantiles(known, right_ms)], kind)
            for row in rows:
                x, rate = across(row.skew_ms) + shift, rate_of(results, row)
                if rate is not None:
                    low, high = panel.y(rate.predicted_low), panel.y(rate.predicted_high)
                    to.box(x - 5, high, 10, max(low - high, 2), f"{kind} soft")
                    if rate.measured_high > rate.measured_low:
                        to.stroke(x, panel.y(rate.measured_low), x, panel.y(rate.measured_high), kind)
                to.mark(x, panel.y(row.violation_rate), place, kind)
            fixed = [row for row in results.runs if row.mode == "rewrite" and _same_way(row, rows[0])]
            for row in fixed:
                to.area(_diamond(across(row.skew_ms) + shift, panel.y(row.violation_rate)), "fixed")

    said = (
        "a child span starts before its parent" if rule == "span-start" else "a message is received before it was sent"
    )
    shares = "; ".join(
        f"{named(rows[0])}: "
        + ", ".join(f"{percent(row.violation_rate)} at {brief_ms(row.skew_ms)} ms" for row in rows)
        for rows in groups
    )
    name = f"rates-{rule}-{stage}-{direction}"
    return Picture(name, f"How often {said}, {stage}'s clock {direction}", f"Rate over skew. {shares}.", draw)


def _paper_strip(to: Drawing, panel: Panel) -> None:
    """What the paper reports, above the plot: it gives no rates, so no point is drawn for it."""
    none, clear, y = panel.x(PAPER_NONE_MS), panel.x(PAPER_CLEAR_MS), 28.0
    to.stroke(panel.x(0), y, none, y, "ink")
    to.stroke(clear, y, panel.right, y, "ink bold")
    for x in (none, clear):
        to.stroke(x, y - 4, x, panel.y(0), "dashed")
    to.text(panel.x(0), 12, "paper: none" if to.narrow else "the paper: none up to 3 ms", "quiet")
    to.text(clear, 12, "clear" if to.narrow else "clear at 5 ms", "quiet")


def _diamond(x: float, y: float) -> list[Point]:
    return [(x, y - 4.5), (x + 4.5, y), (x, y + 4.5), (x - 4.5, y)]


def _same_way(one: Run, other: Run) -> bool:
    def way(row: Run) -> tuple[str, ...]:
        return row.transport, row.stage, row.direction, row.rule

    return way(one) == way(other)


def known_separations(known: Iterable[Separations], run: Run) -> Sequence[int]:
    """The quiet run's separations of the very edge that this row counts; else of its whole direction."""
    at = STAGES.index(run.stage) - (run.direction == "behind")
    edge = f"{STAGES[at]}>{STAGES[at + 1]}" if 0 <= at < len(STAGES) - 1 else ""
    same = [
        each for each in known if (each.transport, each.rule, each.floor_ms) == (run.transport, run.rule, run.floor_ms)
    ]
    same.sort(key=lambda each: (each.edge != edge, (each.stage, each.direction) != (run.stage, run.direction)))
    return next((each.separations_ns for each in same if each.edge in (edge, None) and each.separations_ns), ())


def quantiles(values_ns: Sequence[int], right_ms: float) -> list[Point]:
    """A distribution function as a few points: (ms, share), up to ``right_ms``."""
    points = [(0.0, 0.0), (values_ns[0] / 1e6, 0.0)]
    for number in range(1, _QUANTILES + 1):
        points.append((values_ns[number * len(values_ns) // _QUANTILES - 1] / 1e6, number / _QUANTILES))
    inside = [point for point in points if point[0] <= right_ms]
    beyond = next((point for point in points if point[0] > right_ms), None)
    if beyond is None:
        return [*inside, (right_ms, 1.0)]
    (x1, y1), (x2, y2) = inside[-1], beyond
    return [*inside, (right_ms, y1 + (y2 - y1) * (right_ms - x1) / (x2 - x1))]


# -- load --------------------------------------------------------------------------------------------------------------


def loads_picture(loads: Sequence[Load]) -> Picture:
    """One transport's cells under load: the same skew, fewer violations; the wait beside its theory."""
    rows = sorted(loads, key=lambda load: load.utilization)
    first = rows[0]

    def draw(to: Drawing) -> None:
        across, top = (0.0, 1.0), 26.0
        most = max(max(load.wait_ms, load.theory_ms) for load in rows) * 1.1
        halves = (
            ("of child spans start before their parent", 1.0, "rate"),
            ("ms of waiting; dashed: in theory", most, "wait"),
        )
        for words, high, said in halves:
            panel = Panel(to, 46, top, to.width - 24, 110, across, (0.0, high))
            to.text(46, top - 13, words, "quiet")
            if said == "rate":
                panel.rules((0.0, 0.5, 1.0), lambda share: f"{share:.0%}")
                points = [(panel.x(load.utilization), panel.y(load.violation_rate)) for load in rows]
            else:
                panel.rules(_steps(0, most, 4), lambda value: f"{value:g}")
                to.line([(panel.x(load.utilization), panel.y(load.theory_ms)) for load in rows], "ink guess")
                points = [(panel.x(load.utilization), panel.y(load.wait_ms)) for load in rows]
            for x, y in points:
                to.mark(x, y, 0, "t0")
            top += 110 + 44
        panel.below((0.0, 0.25, 0.5, 0.75, 1.0), lambda share: f"{share:.0%}")

    shares = ", ".join(f"{percent(load.violation_rate)} at {load.utilization:.0%}" for load in rows)
    title = f"{named(first)} at {brief_ms(first.skew_ms)} ms of skew, over the model's utilization"
    return Picture(f"loads-{first.transport}", title, f"Rates: {shares}.", draw)


# -- over time ---------------------------------------------------------------------------------------------------------


def story_picture(run: LongRun, windows: Sequence[Window]) -> Picture:
    """A clock's story: its skew, the bound around the truth, both edges' rates, and the signal."""
    scale = 60.0 if run.duration_s >= 300 else 1.0
    clock = run.clock[:: max(1, len(run.clock) // _SAMPLES)]

    def draw(to: Drawing) -> None:
        across, tops = (0.0, run.duration_s / scale), [26.0]

        def panel(height: float, low: float, high: float, words: str) -> Panel:
            made = Panel(to, 50, tops[0], to.width - 24, height, across, (low, high))
            to.text(50, tops[0] - 13, words, "quiet")
            tops[0] += height + 34
            for event in run.events:
                x = made.x(event.at_s / scale)
                to.stroke(x, made.top, x, made.top + height, "dashed")
            return made

        skews = [sample.skew_ms for sample in clock] or [0.0]
        skew = panel(110, min(*skews, 0.0), max(*skews, 1.0), "ms behind the reference, in truth")
        skew.rules(_steps(min(*skews, 0.0), max(*skews, 1.0), 5), lambda value: f"{value:g}")
        for number, event in enumerate(run.events, 1):
            to.text(skew.x(event.at_s / scale) + 4, skew.top + 6, str(number), "quiet")
        for begin, end in pairwise([-1.0, *(e.at_s for e in run.events if e.what == "step"), run.duration_s + 1]):
            piece = [sample for sample in clock if begin <= sample.at_s < end]  # a step is a gap, not a slope
            to.line([(skew.x(sample.at_s / scale), skew.y(sample.skew_ms)) for sample in piece], "ink")

        bounded = [
            (s.at_s / scale, (s.least_ms - s.skew_ms) * 1e3, (s.greatest_ms - s.skew_ms) * 1e3)
            for s in clock
            if s.least_ms is not None and s.greatest_ms is not None
        ]
        usual = sorted(max(-low, high) for _, low, high in bounded)
        width = usual[len(usual) // 2] if usual else 1.0
        limit = max(3 * width, 1.0)
        doubt = panel(70, -limit, limit, "\u00b5s: the bound around the truth")
        low, high = ([(doubt.x(row[0]), doubt.y(row[side])) for row in bounded] for side in (1, 2))
        to.area([*low, *reversed(high)], "fixed soft")
        doubt.rules((-width, 0.0, width), lambda value: f"{value:+.0f}" if value else "0")

        for direction, words in (("behind", f"child spans first, into {run.stage}"), ("ahead", f"out of {run.stage}")):
            mine = [w for w in windows if (w.run, w.rule, w.direction) == (run.run, "span-start", direction)]
            if not mine:
                continue
            rates = panel(90, 0.0, 1.0, words)
            rates.rules((0.0, 0.5, 1.0), lambda share: f"{share:.0%}")
            _windows(to, rates, mine, scale)

        signal = panel(44, 0.0, 2.0, "the clock did it / the signal blames it")
        times = [sample.at_s / scale for sample in clock]
        for row, kind, down in (
            (1.55, "ink plain", [not sample.clock_innocent for sample in clock]),
            (0.65, "early plain", [not sample.health_clock for sample in clock]),
        ):
            for start, stop in stretches(times, down):
                to.box(signal.x(start), signal.y(row), signal.x(stop) - signal.x(start), 12, kind)
        signal.below(_steps(*across, 5 if to.narrow else 10), lambda at: f"{at:g} {'min' if scale > 1 else 's'}")

    events = "; ".join(f"{event.at_s:g} s: {event.text}" for event in run.events)
    name = "story-" + "".join(letter if letter.isalnum() else "-" for letter in run.run.lower()).strip("-")
    return Picture(name, f"A clock's story over {run.duration_s:g} s: {run.run}", f"What was done: {events}.", draw)


def _windows(to: Drawing, panel: Panel, mine: Sequence[Window], scale: float) -> None:
    """Predicted as a line, as stamped as dots, rewritten as a line."""
    mode = "off" if any(window.mode == "off" for window in mine) else "tag"

    def middle(window: Window) -> float:
        return panel.x((window.start_s + window.end_s) / 2 / scale)

    raw = [window for window in mine if window.mode == mode]
    to.line([(middle(w), panel.y(w.predicted_rate)) for w in raw if w.predicted_rate is not None], "t0")
    for window in raw:
        to.mark(middle(window), panel.y(window.violation_rate), 0, "early", 2.6)
    to.line([(middle(w), panel.y(w.violation_rate)) for w in mine if w.mode == "rewrite"], "fixed bold")


def stretches(times: Sequence[float], down: Sequence[bool]) -> list[Point]:
    """(begin, end) of each stretch of samples that are down."""
    found: list[Point] = []
    for at, (was, now) in zip(times, pairwise([False, *down]), strict=True):
        if now and not was:
            found.append((at, times[-1]))
        elif was and not now:
            found[-1] = (found[-1][0], at)
    return found
