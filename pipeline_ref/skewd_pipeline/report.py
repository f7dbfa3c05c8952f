"""One HTML file that tells what was run, what happened and whether to believe it.

It is made from ``results.json`` alone, holds everything it needs (no script, no font, no picture from elsewhere), and
reads on paper, on a phone, in light and dark. What a reader must know first stands first: the threshold is no
constant of nature but the pipeline's minimum separation. A mock broker is called one wherever its numbers are.

Limits: pictures need matplotlib (the extra ``pipeline``); without it the tables stand alone and the report says so.
Everything that comes from the results is escaped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from skewd_pipeline import export
from skewd_pipeline.claims import claims
from skewd_pipeline.confusion import TRUTHS, UNDECIDED, VERDICTS, is_wrong, wrong
from skewd_pipeline.export import NEAR_MS
from skewd_pipeline.heuristics import HEURISTICS, OURS, REAL_CALLS
from skewd_pipeline.law import exceptions
from skewd_pipeline.results import Check, Confusion, Heuristic, LawCell, Results, Run, load, merged, skew_label

if TYPE_CHECKING:
    from skewd_pipeline.charts import Picture


def write(results: Results, path: Path, *, exports: Path | None = None) -> None:
    """Writes the report whole or not at all, and its tables and pictures beside it where ``exports`` says.

    Raises:
        OSError: they cannot be written.
    """
    drawn = _Drawn(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(_page(results, drawn), encoding="utf-8")
    os.replace(unfinished, path)
    if exports is not None:
        _write_exports(results, drawn, exports)


def main(arguments: Sequence[str]) -> int:
    """``RESULTS [REPORT]``: rebuilds a report; the exit code."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m skewd_pipeline.report RESULTS.json [REPORT.html]", file=sys.stderr)
        return 64
    return build([Path(arguments[0])], Path(arguments[1]) if len(arguments) == 2 else None)


def build(sources: Sequence[Path], target: Path | None, *, exports: Path | None = None) -> int:
    """Makes one report of one or more ``results.json`` (or the directories that hold them); the exit code.

    Args:
        target: the page; None: ``report.html`` beside the first.
        exports: a directory for every table as CSV and every picture as PNG; None: none are written.
    """
    files = [source / "results.json" if source.is_dir() else source for source in sources]
    target = target or files[0].with_name("report.html")
    try:
        results = merged([load(file) for file in files])
        if len(files) > 1:
            results.checks = claims(results)  # each sentence once, of all runs together
        write(results, target, exports=exports)
    except (OSError, ValueError) as error:
        print(f"skewd: {error}", file=sys.stderr)
        return 1
    print(target)
    if exports is not None:
        print(exports)
    return 0


def headline(results: Results) -> str:
    """The first line: where the threshold lies and why."""
    floor_ms = next((run.floor_ms for run in results.runs), 0.0)
    transports = {run.transport for run in results.runs}
    values = [
        each.separations_ns[0]
        for each in results.separations
        if each.rule == "span-start" and each.floor_ms == floor_ms and each.transport in transports
        if each.separations_ns
    ]
    if values and floor_ms:
        return (
            f"The threshold lies at the pipeline's minimum separation: here {min(values) / 1e6:.1f} ms, "
            f"because each stage works for at least {floor_ms:g} ms"
        )
    if results.long_runs and not results.runs:
        fixed = sum(window.violations for window in results.windows if window.mode == "rewrite")
        return (
            "A clock drifts, is stepped and slewed; traces run backwards as its skew says, and "
            + ("not once" if not fixed else f"{fixed} times")
            + " after correction"
        )
    return "Violations begin where the skew exceeds the pipeline's minimum separation, and nowhere else"


def render(results: Results) -> str:
    """The whole page."""
    return _page(results, _Drawn(results))


def _page(results: Results, drawn: _Drawn) -> str:
    sections = [
        ("law", "When a trace runs backwards", _law(results, drawn)),
        ("floors", "Whose threshold it is", _thresholds(results, drawn)),
        ("time", "Over time", _over_time(results, drawn)),
        ("blame", "Not every negative span is skew", _confusion(results.confusion)),
        ("heuristics", "Beside what trace tools do today", _heuristics(results, drawn)),
        ("tags", "What the tags say, and whether to believe them", _tags(drawn)),
        ("worth", "What the bounds were worth, per transport", _worth(results)),
        ("monitoring", "What monitoring sees", _probes(results)),
        ("cost", "What it costs", _throughput(results)),
        ("claims", _claims_title(results.checks), _claims(results.checks)),
        ("rows", "All rows", _all_rows(results)),
        ("run", "What was run", _what_was_run(results)),
    ]
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in shown)
    parts = [
        f"<h1>{escape(headline(results))}</h1>",
        _lead(results),
        _tiles(results),
        f"<nav>{links}</nav>",
        drawn.missing,
        *(f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' for name, title, body in shown),
    ]
    title = "skewd: clock skew and traces"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{_STYLE}</style></head>\n'
        f"<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    )


class _Drawn:
    """The pictures by kind; none, and a word about it, without matplotlib."""

    def __init__(self, results: Results) -> None:
        self.missing = ""
        self._pictures: dict[str, list[Picture]] = {}
        try:
            from skewd_pipeline import charts

            self._pictures = {
                "curves": charts.curves(results),
                "agreement": charts.agreement(results),
                "floors": charts.floors(results),
                "heuristics": charts.heuristics(results),
                "verdicts": charts.verdicts(results),
                "bounds": charts.bounds(results),
            }
            for run in results.long_runs:
                self._pictures[f"story {run.run}"] = [
                    charts.story(run, results.windows, wide=wide) for wide in (True, False)
                ]
        except ImportError as error:
            self._pictures = {}
            self.missing = f"<p>(No pictures: the package {escape(str(error.name))} is not installed.)</p>"

    def all(self) -> list[Picture]:
        """Every picture."""
        return [picture for pictures in self._pictures.values() for picture in pictures]

    def panels(self, *kinds: str, caption: str = "") -> str:
        """Pictures of a column's width, beside each other where there is room."""
        pictures = [picture for kind in kinds for picture in self._pictures.get(kind, ())]
        if not pictures:
            return ""
        drawn = "".join(
            f'<div role="img" aria-label="{escape(picture.label)}">{picture.svg()}</div>' for picture in pictures
        )
        words = f"<figcaption>{caption}</figcaption>" if caption else ""
        return f'<figure><div class="panels">{drawn}</div>{words}</figure>'

    def story(self, run: str, caption: str) -> str:
        """The one that is drawn for wide screens and for narrow ones."""
        pictures = self._pictures.get(f"story {run}", ())
        drawn = "".join(
            f'<div class="{kind}" role="img" aria-label="{escape(picture.label)}">{picture.svg()}</div>'
            for picture, kind in zip(pictures, ("for-wide", "for-narrow"), strict=False)
        )
        return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>" if drawn else ""


def _lead(results: Results) -> str:
    if not results.runs and not results.long_runs:
        return "<p>No cell was run.</p>"
    if not results.runs:
        run = results.long_runs[0]
        return (
            f'<p class="lead">Simulated: true time, clocks, wires and messages are made up from a seed. Everything '
            f"between them is the code that every node runs: the estimator, the history of its bounds, and the writer "
            f"of corrections. The clock of <em>{escape(run.stage)}</em> drifts by {run.drift_ppm:g} ppm against "
            f"<em>{escape(run.reference)}</em>'s; only the report knows.</p>"
        )
    broker = next((run.broker for run in results.runs if run.broker), None)
    mock = (
        ' Kafka here is <strong>librdkafka\'s mock cluster, not a broker</strong>; its rows are marked "mock".'
        if broker == "mock"
        else ""
    )
    model = escape(str(results.settings.get("model", "a model")))
    ways: dict[str, list[str]] = {}
    for row in results.runs:
        if row.direction not in ways.setdefault(row.stage, []):
            ways[row.stage].append(row.direction)
    skewed = "; then ".join(
        f"at <em>{escape(stage)}</em>, was set {escape(' and '.join(directions))}" for stage, directions in ways.items()
    )
    return (
        f'<p class="lead">Five processes classify real files with a real model ({model}). Each runs on a node of its '
        f"own: own clock, own <code>skewd</code>, own sidecar. One clock, {skewed}; no process of that node was told. "
        "The same spans then went through the sidecar "
        f"three ways: as they were, tagged, and rewritten.{mock}</p>"
    )


def _tiles(results: Results) -> str:
    tiles: list[tuple[str, str]] = []
    start = [run for run in results.runs if run.rule == "span-start"]
    broken = [run for run in start if run.mode == "off" and run.skew_ms == 5.0]
    for run in broken:
        way = f", {run.stage} {run.direction}" if len(broken) > len({each.transport for each in broken}) else ""
        what = f"of child spans start before their parent at 5 ms on {_name(run)}{way}"
        tiles.append((f"{run.violation_rate:.0%}", what))
    fixed = [run.all for run in start if run.mode == "rewrite" and run.all is not None]
    if fixed:
        count = sum(each.violations for each in fixed)
        tiles.append(
            (f"{count}", f"of {_thousands(sum(each.edges for each in fixed))} after rewrite, all skews together")
        )
    tagged = [run for run in start if run.mode != "off"]
    if tagged:
        misses = sum(run.bound_misses for run in tagged)
        spans = sum(run.spans for run in tagged)
        tiles.append((f"{misses}", f"of {_thousands(spans)} spans with the true offset outside their bound"))
    widths = [run.uncertainty_ns.p50 for run in tagged if run.uncertainty_ns]
    if widths:
        tiles.append((f"±{sorted(widths)[len(widths) // 2] / 1e3:.0f} µs", "the usual bound on a node's offset"))
    tiles += _more_tiles(results)
    items = "".join(f"<li><b>{escape(value)}</b> {escape(text)}</li>" for value, text in tiles)
    return f'<ul class="tiles">{items}</ul>' if items else ""


def _more_tiles(results: Results) -> list[tuple[str, str]]:
    tiles = []
    if results.long_runs:
        fixed = [window for window in results.windows if window.mode == "rewrite"]
        if fixed:
            count, edges = sum(window.violations for window in fixed), sum(window.edges for window in fixed)
            tiles.append((f"{count}", f"of {_thousands(edges)} after rewrite while the clock drifts, steps and slews"))
        if not results.runs:
            misses = sum(run.bound_misses for run in results.long_runs)
            spans = sum(run.spans for run in results.long_runs)
            tiles.append((f"{misses}", f"of {_thousands(spans)} spans with the true offset outside their bound"))
    if results.law:
        agree = sum(cell.agrees for cell in results.law)
        tiles.append((f"{agree} of {len(results.law)}", "cells where the rate is what the law predicts, within 99%"))
    calls = [row for row in results.heuristics if (row.edges, row.skew_ms) == ("synchronous", 5.0)]
    calls = [row for row in calls if row.traces == REAL_CALLS] or calls
    ours = [row.rms_us for row in calls if row.method == OURS and row.rms_us > 0]
    others = [row.rms_us for row in calls if row.method in HEURISTICS]
    if ours and others:
        tiles.append(
            (f"{min(others) / max(ours):.0f} \u00d7", "nearer the true start than the best heuristic, on calls at 5 ms")
        )
    return tiles


def _law(results: Results, drawn: _Drawn) -> str:
    if not results.runs:
        return ""
    far = sorted({run.skew_ms for run in results.runs if run.skew_ms > NEAR_MS})
    beyond = f" Beyond the curves: {', '.join(map(skew_label, far))}, in the table of all rows." if far else ""
    words = (
        "<p>Let two events truly be <em>d</em> apart, and the clock that stamps one of them be off by a skew "
        "<em>s</em> that shrinks the gap. The stamps then show <em>d</em> - <em>s</em>, which is negative exactly when "
        "<em>s</em> exceeds <em>d</em>. So the rate over the skew is the distribution of separations, which one "
        "synchronized run measures: P(violation | <em>s</em>) = F(<em>s</em>). A clock that is behind breaks the edges "
        "that come in, one that is ahead those that go out.</p>"
    )
    caption = (
        "Dots: how many edges look violated as the clocks stamped them. Line: what the true separations, measured "
        "without skew and drawn below, predict; the band has 99% of the rates that they lead to expect (Thatcher's "
        f"interval: both samples are allowed for). Squares: after rewrite.{beyond}"
    )
    return words + drawn.panels("curves", caption=caption) + _exceptions(results.law)


def _exceptions(cells: Sequence[LawCell]) -> str:
    if not cells:
        return ""
    wrong = exceptions(cells)
    share = f"{len(cells) - len(wrong)} of {len(cells)} cells are inside their 99% interval"
    own = [cell for cell in cells if cell.own_rate is not None]
    apart = max((abs((cell.own_rate or 0.0) - cell.measured_rate) for cell in own), default=0.0)
    edge_by_edge = (
        " By the host's raw clock, in which no node's clock has a part, the edges of each cell that were closer "
        f"together than the skew are as many as were violated, to {apart:.1%} in every one of {len(own)} cells."
        if own
        else ""
    )
    body = [
        (
            f"{cell.transport} ({cell.broker})" if cell.broker else cell.transport,
            cell.edge.replace(">", " \u2192 "),
            cell.rule,
            f"{cell.floor_ms:g} ms",
            skew_label(cell.skew_ms),
            f"{cell.predicted_rate:.1%}",
            f"{cell.predicted_low:.1%} to {cell.predicted_high:.1%}",
            f"{cell.measured_rate:.1%}",
            f"{cell.measured_low:.1%} to {cell.measured_high:.1%}",
            "" if cell.own_rate is None else f"{cell.own_rate:.1%}",
            "yes" if cell.agrees else "NO",
        )
        for cell in cells
    ]
    head = (
        "transport", "edge", "rule", "floor", "skew", "predicted", "to be expected", "measured", "its own 99%",
        "own separations", "inside",
    )  # fmt: skip
    said = (
        f"<p>{share}.{edge_by_edge}</p>"
        if not wrong
        else f"<p>{share}; the exceptions are listed.{edge_by_edge} Where that holds and the prediction does not, the "
        "pipeline's separations changed between the cells: another load, another F.</p>"
        + _table(head[:-1], [row[:-1] for row, cell in zip(body, cells, strict=True) if not cell.agrees])
    )
    every = f"<summary>Prediction over measurement, all {len(body)} cells</summary>{_table(head, body)}"
    return f"{said}<details>{every}</details>"


def _thresholds(results: Results, drawn: _Drawn) -> str:
    if not results.thresholds:
        return ""
    body = [
        (
            f"{each.transport} ({each.broker})" if each.broker else each.transport,
            each.rule,
            each.edge.replace(">", " \u2192 "),
            f"{each.floor_ms:g} ms" if each.floor_ms else "none",
            "" if each.derived_ms is None else f"{each.derived_ms:.2f} ms",
            f"{each.predicted_ms:.2f} ms",
            "" if each.none_at_ms is None else f"{each.none_at_ms:g} ms",
            "none seen" if each.some_at_ms is None else f"{each.some_at_ms:g} ms",
        )
        for each in sorted(results.thresholds, key=lambda each: (each.rule, each.transport, each.floor_ms))
    ]
    head = ("transport", "rule", "edge", "floor", "derived", "predicted", "no violation up to", "first at")
    return (
        "<p>The threshold is the pipeline's minimum separation, not a constant of nature. Derived: the service floor "
        "plus the least one-way delay. Predicted: the least separation that the synchronized run saw. Change the floor "
        "and the threshold moves with it.</p>"
        + drawn.panels("floors", "agreement", caption="Lines: predicted. Dots: measured. Numbers: the floors, ms.")
        + _table(head, body)
    )


def _over_time(results: Results, drawn: _Drawn) -> str:
    parts = []
    for run in results.long_runs:
        events = "".join(f"<li><b>{_minutes(event.at_s)}</b> {escape(event.text)}</li>" for event in run.events)
        windows = [window for window in results.windows if window.run == run.run and window.mode == "rewrite"]
        unsure = sum(window.indeterminate for window in windows if window.rule == "span-start")
        ambiguous = (
            f" {unsure} rewritten child span{'s are' if unsure != 1 else ' is'} early by less than the bound says, at "
            "the readings that the step back showed twice: nobody can tell which of the two they were."
            if unsure
            else ""
        )
        how = "in simulated time, on the code that ships" if run.simulated else "on the real pipeline"
        broker = f" ({run.broker})" if run.broker else ""
        parts.append(
            f"<h3>{escape(run.transport)}{escape(broker)}: {_minutes(run.duration_s)} {how}</h3>"
            f"<ol class='events'>{events}</ol>"
            + drawn.story(
                run.run,
                "The law holds at every instant with the skew of that instant, so the rate falls, rises or settles as "
                "the skew does, and nobody fixed anything in between. The bound follows: the truth stays inside it on "
                f"{_thousands(run.spans - run.bound_misses)} of {_thousands(run.spans)} spans, through steps and "
                f"slews; the signal blamed an innocent clock {run.false_alarms} times.{ambiguous}",
            )
        )
    return "".join(parts)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


_TRUTH_WORDS = {
    "in order": "in order, and stamped so",
    "clock": "stamped backwards by a clock that is off",
    "not the clock": "stamped backwards, and no clock did it",
    "hidden": "backwards, but stamped in order",
}


_SITUATIONS = ("synchronized", "overloaded", "skewed", "over time")


def _confusion(rows: Sequence[Confusion]) -> str:
    if not rows:
        return ""
    mistakes = sum(row.count for row in wrong(rows))
    total = sum(row.count for row in rows)
    loaded = any(row.situation == "overloaded" for row in rows)
    return (
        "<p>A sender that notes its send after the fact may be put aside in between, and on a busy machine the message "
        "is received first: a negative gap between clocks that agree. A tool that blames the clock for it is wrong. "
        "Here the truth of each edge is known, and so is whether its verdict was right: "
        f"<strong>{_thousands(mistakes)} of {_thousands(total)}</strong> say something that is not so.</p>"
        + _verdict_table(rows, by_rule=False)
        + '<p class="note"><span class="key right"></span> right <span class="key unsure"></span> undecided: closer '
        'than the clocks can tell <span class="key wrong"></span> wrong'
        + (". <em>Overloaded</em>: synchronized clocks, twice as many busy processes as cores" if loaded else "")
        + ".</p>"
        + f"<details><summary>By rule; stamp-after-send is the late stamp</summary>"
        f"{_verdict_table(rows, by_rule=True)}</details>"
    )


def _verdict_table(rows: Sequence[Confusion], *, by_rule: bool) -> str:
    groups: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for row in rows:
        cells = groups.setdefault((row.situation, row.rule if by_rule else ""), {})
        cells[row.truth, row.verdict] = cells.get((row.truth, row.verdict), 0) + row.count
    order = {name: place for place, name in enumerate(_SITUATIONS)}
    verdicts = [verdict for verdict in VERDICTS if any(row.verdict == verdict for row in rows)]
    body, before = [], ("", "")
    for (situation, rule), cells in sorted(groups.items(), key=lambda item: (order.get(item[0][0], 9), item[0][1])):
        for truth in (truth for truth in TRUTHS if any(key[0] == truth for key in cells)):
            counts = []
            for verdict in verdicts:
                count = cells.get((truth, verdict), 0)
                kind = "unsure" if verdict in UNDECIDED else "wrong" if is_wrong(truth, verdict) else "right"
                said = _thousands(count) if count else ""
                counts.append(f'<td class="count {kind if count else "none"}">{said}</td>')
            new = before != (situation, rule)
            before = (situation, rule)
            first = f"<td>{escape(situation) if new else ''}</td>"
            first += f"<td>{escape(rule) if new else ''}</td>" if by_rule else ""
            body.append(f"<tr>{first}<td>{escape(_TRUTH_WORDS[truth])}</td>{''.join(counts)}</tr>")
    names = ("clocks", *(("rule",) if by_rule else ()), "in truth")
    heads = "".join(f"<th>{escape(each)}</th>" for each in names)
    heads += "".join(f'<th class="count">{escape(each)}</th>' for each in verdicts)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


_METHOD_WORDS = {
    "raw": "raw: nothing moved",
    "centring": "centring (Jaeger's rule)",
    "client-server": "client-server (Zipkin's rule)",
    OURS: "measured offsets (ours)",
}


def _heuristics(results: Results, drawn: _Drawn) -> str:
    rows = results.heuristics
    if not rows:
        return ""

    def table(some: Sequence[Heuristic], *, skews: bool) -> str:
        head = (
            "method", "traces", *(("skew",) if skews else ()), "children", "RMS error", "p99", "largest", "orders",
            "broken before", "left", "introduced", "undecided",
        )  # fmt: skip
        return _table(
            head,
            [
                (
                    _METHOD_WORDS.get(row.method, row.method),
                    row.traces,
                    *((skew_label(row.skew_ms),) if skews else ()),
                    row.edges,
                    _microseconds(row.rms_us),
                    _microseconds(row.p99_us),
                    _microseconds(row.max_us),
                    str(row.relations),
                    str(row.violated_before),
                    str(row.left),
                    str(row.introduced),
                    str(row.undecided),
                )
                for row in some
            ],
        )

    shown = [row for row in rows if row.skew_ms == 5.0]
    return (
        "<p>Where a trace looks wrong, tools move the child until it fits, on the assumption that both ways take "
        "equally long and that a child belongs inside its parent. Neither need be so: a child that nobody waits for is "
        "pulled into a parent that had long ended. A measured offset knows nothing of the trace. On the same traces, "
        "with the truth known:</p>"
        + drawn.panels(
            "heuristics",
            caption="Calls at many skews, made up; the tags on them are those of the shipped estimator on simulated "
            "wires. With no skew at all the heuristics move nothing and are exact, while a measured offset is off by "
            "its error.",
        )
        + (f"<p>At 5 ms:</p>{table(shown, skews=False)}" if shown else "")
        + '<p class="note"><em>Orders</em>: pairs of stamps of a parent and its child, or of two spans of a host, in '
        "their true order. <em>Introduced</em>: the stamps had it right, the correction turned it round. "
        "<em>Undecided</em>: turned round by less than the two spans' stated uncertainty.</p>"
        + f"<details><summary>All {len(rows)} comparisons</summary>{table(rows, skews=True)}</details>"
    )


def _microseconds(value: float) -> str:
    return f"{value / 1e3:.2f} ms" if value >= 1000 else f"{value:.0f} \u00b5s" if value else "0"


def _tags(drawn: _Drawn) -> str:
    return drawn.panels(
        "verdicts",
        "bounds",
        caption="Tags move nothing; they let a reader judge. <b>skewed</b>: the clock lied. <b>ordered</b>: nothing "
        "wrong. <b>indeterminate</b>: closer than the clocks can tell. <b>impossible</b> (a bug, not a clock) would be "
        "counted too. Bounds: only the experiment knows the injected offset, and a dot above its bar would be a bound "
        "that was wrong.",
    )


def _worth(results: Results) -> str:
    body = [
        (
            f"{row.transport} ({row.broker})" if row.broker else row.transport,
            row.path,
            _microseconds(row.width_ns.p50 / 1e3) if row.width_ns else "-",
            _microseconds(row.width_ns.max / 1e3) if row.width_ns else "-",
            "-" if row.coverage is None else f"{row.coverage:.4%}",
            _microseconds(row.residual_max_ns / 1e3),
            str(row.residuals_beyond),
        )
        for row in results.bounds
    ]
    missing = "".join(f"<p>{escape(row.transport)} was not run: {escape(row.reason)}.</p>" for row in results.missing)
    if not body:
        return missing
    head = ("transport", "clocks compared over", "width, median", "greatest", "truth inside", "residual", "beyond")
    return (
        missing
        + _table(head, body, text_columns=(1,))
        + "<p>The width is that of the whole interval on the nodes that are not the reference. A residual is a "
        "send-receive gap that rewriting left negative, within the two spans' summed uncertainty; none may be "
        "beyond.</p>"
    )


def _probes(results: Results) -> str:
    if not results.probes:
        return ""
    body = [(probe.situation, str(probe.exit_code), probe.line, probe.perfdata) for probe in results.probes]
    return (
        "<p><code>"
        + escape(results.probes[0].command)
        + "</code> on the skewed node.</p>"
        + _table(("the node's clock", "exit", "line", "perfdata"), body, text_columns=(2, 3))
    )


def _throughput(results: Results) -> str:
    if not results.throughput:
        return ""
    body = [
        (
            row.transport + (" (mock)" if row.transport == "kafka" and _broker(results) == "mock" else ""),
            skew_label(row.skew_ms),
            {"none": "none: straight to the collector"}.get(row.sidecar, row.sidecar),
            "as fast as it goes" if row.offered_per_s is None else f"{row.offered_per_s:g}/s",
            f"{row.delivered_per_s:.1f}/s",
            f"{row.delivered} of {row.messages}",
        )
        for row in results.throughput
    ]
    head = ("transport", "skew", "sidecars", "offered", "delivered", "messages")
    return _table(head, body, text_columns=(2,))


def _claims_title(checks: Sequence[Check]) -> str:
    judged = [check for check in checks if check.passed is not None]
    return f"Claims: {sum(check.passed is True for check in judged)} of {len(judged)} hold"


def _claims(checks: Sequence[Check]) -> str:
    marks = {True: ("yes", "holds"), False: ("no", "FAILS"), None: ("na", "n/a")}

    def items(some: Iterable[Check]) -> str:
        return "".join(
            f'<li class="{marks[check.passed][0]}"><b>{marks[check.passed][1]}</b> {escape(check.statement)} '
            f"<span>{escape(check.measured)}</span></li>"
            for check in some
        )

    judged = sorted((check for check in checks if check.passed is not None), key=lambda check: check.passed is True)
    others = [check for check in checks if check.passed is None]
    if not checks:
        return ""
    rest = (
        f'<details><summary>{len(others)} not applicable to this run</summary><ul class="claims">{items(others)}</ul>'
        "</details>"
        if others
        else ""
    )
    return f'<ul class="claims">{items(judged)}</ul>{rest}'


def _all_rows(results: Results) -> str:
    head = (
        "transport", "skew", "stage", "floor", "mode", "rule", "edges", "violations", "rate", "predicted",
        "verdicts of violations", "negative within bound", "bound", "largest error", "misses",
        "separation min / p50 / p99", "msg/s", "correct",
    )  # fmt: skip
    body = []
    for run in (*results.runs, *results.floor0, *results.floors):
        separation = run.separation_ms
        residuals = f"{len(run.residuals_ns)}, to {max(run.residuals_ns) / 1e3:.0f} µs" if run.residuals_ns else ""
        body.append(
            (
                _name(run),
                f"{skew_label(run.skew_ms)} {run.direction}",
                run.stage,
                f"{run.floor_ms:g} ms",
                run.mode,
                run.rule,
                str(run.edges),
                str(run.violations),
                f"{run.violation_rate:.1%}",
                "" if run.predicted_rate is None else f"{run.predicted_rate:.1%}",
                ", ".join(f"{count} {name}" for name, count in sorted(run.violation_verdicts.items())),
                residuals,
                f"±{run.uncertainty_ns.p50 / 1e3:.0f} µs" if run.uncertainty_ns else "",
                f"{run.error_ns.max / 1e3:.0f} µs" if run.error_ns else "",
                "" if run.mode == "off" else str(run.bound_misses),
                f"{separation.min:.2f} / {separation.p50:.2f} / {separation.p99:.2f} ms" if separation else "",
                f"{run.throughput_per_s:.1f}",
                f"{run.outputs_correct:.1%}",
            )
        )
    if not body:
        return ""
    table = _table(head, body, text_columns=(10,))
    return f"<details><summary>{len(body)} rows: each cell, mode and rule</summary>{table}</details>"


def _what_was_run(results: Results) -> str:
    def pairs(values: Iterable[tuple[str, object]]) -> str:
        rows = "".join(
            f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in values
        )
        return f"<dl>{rows}</dl>"

    stochastic = ", ".join(results.stochastic)
    return (
        pairs([*results.settings.items(), ("duration", f"{results.seconds:g} s")])
        + "<h3>On</h3>"
        + pairs(results.host.items())
        + "<h3>With</h3>"
        + pairs(results.versions.items())
        + "<p>The same seed gives the same schedule of work. These differ from run to run: "
        + escape(stochastic)
        + ". What was simulated does not. The clock is skewed, not the application's stamps: everything above "
        "the clock, the OpenTelemetry SDK included, is unmodified.</p>"
    )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _write_exports(results: Results, drawn: _Drawn, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in export.tables(results).items():
        (directory / f"{name}.csv").write_text(table, encoding="utf-8")
    for picture in drawn.all():
        (directory / f"{picture.name}.png").write_bytes(picture.png())
    if drawn.missing:
        print("skewd: no PNG: the package matplotlib is not installed", file=sys.stderr)


def _broker(results: Results) -> str | None:
    return next((run.broker for run in results.runs if run.broker), None)


def _name(run: Run) -> str:
    return f"{run.transport} ({run.broker})" if run.broker else run.transport


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _table(head: Sequence[str], body: Iterable[Sequence[str]], *, text_columns: Sequence[int] = ()) -> str:
    heads = "".join(f"<th>{escape(each)}</th>" for each in head)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=text' if place in text_columns else ''}>{escape(cell)}</td>" for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in body
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


_STYLE = """
:root { --paper:#fdfcfa; --ink:#1c1b19; --muted:#6b675f; --grid:#e4e0d8; --card:#f4f1ea;
  --raw:#c8442d; --fixed:#1f7a5c; --law:#4a6fa5; --skewed:#c8442d; --unsure:#d9a441;
  --right:#d7eae1; --maybe:#f6e7c6; --bad:#f3c6bd; }
@media (prefers-color-scheme: dark) { :root { --paper:#15161a; --ink:#ece9e2; --muted:#9a968d; --grid:#30323a;
  --card:#1e2026; --raw:#ff7a61; --fixed:#4fc39a; --law:#86aee6; --skewed:#e8664e; --unsure:#d9a441;
  --right:#1c4536; --maybe:#4d3d17; --bad:#6b2a1f; } }
* { box-sizing:border-box; }
html { scroll-behavior:smooth; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  Roboto,"Helvetica Neue",sans-serif; overflow-wrap:break-word; }
main { max-width:68rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:clamp(1.5rem,3.4vw,2.3rem); line-height:1.2; font-weight:650; letter-spacing:-.015em; margin:0 0 1rem;
  max-width:26em; text-wrap:balance; }
h2 { font-size:1.35rem; line-height:1.3; letter-spacing:-.01em; margin:3.5rem 0 .75rem; }
h3 { font-size:1rem; margin:1.5rem 0 .5rem; color:var(--muted); }
.lead { max-width:44em; font-size:1.08rem; } p { max-width:48em; } .note { color:var(--muted); font-size:.9rem; }
code { font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
a { color:var(--law); text-decoration:none; } a:hover { text-decoration:underline; }
nav { display:flex; flex-wrap:wrap; gap:.3rem 1.1rem; font-size:.92rem; padding:.7rem 0; margin:0 0 1rem;
  border-top:1px solid var(--grid); border-bottom:1px solid var(--grid); }
.tiles { list-style:none; display:grid; grid-template-columns:repeat(auto-fill,minmax(min(14rem,100%),1fr));
  gap:.75rem; padding:0; margin:2rem 0; }
.tiles li { background:var(--card); border-radius:.6rem; padding:1rem 1.1rem; color:var(--muted); font-size:.92rem;
  line-height:1.35; }
.tiles b { display:block; font-size:1.9rem; line-height:1.2; color:var(--ink); font-weight:650; margin-bottom:.2rem;
  font-variant-numeric:tabular-nums; }
figure { margin:1.25rem 0 1.5rem; } figure svg { display:block; width:100%; height:auto; }
.panels { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr)); gap:1.75rem 2.25rem; }
.panels > div { max-width:36rem; }
.for-narrow { display:none; }
@media (max-width:46rem) { .for-wide { display:none; } .for-narrow { display:block; } }
figcaption { color:var(--muted); font-size:.92rem; max-width:52em; margin-top:.75rem; }
.events { margin:.5rem 0 1rem; padding-left:1.4rem; color:var(--muted); font-size:.92rem; display:grid;
  grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr)); gap:.1rem 2rem; }
.events b { color:var(--ink); font-weight:600; font-variant-numeric:tabular-nums; margin-right:.3rem; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; width:100%; margin:.5rem 0; }
th { text-align:left; font-weight:600; color:var(--muted); padding:.35rem .8rem .35rem 0; vertical-align:bottom;
  border-bottom:1px solid var(--muted); }
td { padding:.35rem .8rem .35rem 0; border-bottom:1px solid var(--grid); white-space:nowrap; vertical-align:top; }
td.text { white-space:normal; min-width:12rem; overflow-wrap:anywhere; }
th.count { text-align:right; padding-right:.7rem; }
td.count { text-align:right; padding:.35rem .7rem; border-left:2px solid var(--paper); min-width:5.5rem; }
.right { background:var(--right); } .unsure { background:var(--maybe); } .wrong { background:var(--bad); }
td.wrong { font-weight:700; }
.key { display:inline-block; width:.9em; height:.9em; border-radius:.2em; vertical-align:-.1em; margin-left:.8em; }
.key:first-child { margin-left:0; }
.claims { list-style:none; padding:0; } .claims li { padding:.4rem 0 .4rem 4.2rem; border-bottom:1px solid var(--grid);
  position:relative; } .claims b { position:absolute; left:0; font-size:.85rem; line-height:1.8; }
.claims span { display:block; color:var(--muted); font-size:.9rem; overflow-wrap:anywhere; }
.yes b { color:var(--fixed); } .no b { color:var(--raw); } .na b { color:var(--muted); }
details { margin:1rem 0; } summary { cursor:pointer; font-weight:600; margin-bottom:.5rem; }
dl { display:grid; grid-template-columns:fit-content(40%) 1fr; gap:.2rem 1.5rem; margin:0; font-size:.92rem; }
dt { color:var(--muted); overflow-wrap:anywhere; } dd { margin:0; overflow-wrap:anywhere; min-width:0; }
@media print { main { max-width:none; } details, nav { display:none; } }
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
