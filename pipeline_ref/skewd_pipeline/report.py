"""One HTML file that tells what was run, what happened and whether to believe it.

It is made from ``results.json`` alone, holds everything it needs (no script, no font, no picture from elsewhere), and
reads on paper, on a phone, in light and dark. A reader who gives it a minute sees where traces break on this machine,
one trace before and after, one curve, and four sentences with their verdicts. The rest is folded. A mock broker is
called one wherever its numbers are.

Limits: everything that comes from the results is escaped. The page has no more than the file has: what was not run is
said to be not run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from skewd_pipeline import export
from skewd_pipeline.charts import NARROW, WIDE, Picture, loads_picture, rates_picture, story_picture, trace_picture
from skewd_pipeline.confusion import TRUTHS, UNDECIDED, VERDICTS, is_wrong, wrong
from skewd_pipeline.paper import LOSS_MAX, findings
from skewd_pipeline.report_style import PAGE
from skewd_pipeline.results import Results, Run, Separation, load, merged, skew_label
from skewd_pipeline.words import (
    SEND_RECEIVE,
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
    thousands,
    trace_title,
)


class Html(str):
    """Text that is markup already."""


def write(results: Results, path: Path, *, exports: Path | None = None) -> None:
    """Writes the report whole or not at all, and its tables and pictures beside it where ``exports`` says.

    Raises:
        OSError: they cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(render(results), encoding="utf-8")
    os.replace(unfinished, path)
    if exports is None:
        return
    exports.mkdir(parents=True, exist_ok=True)
    for name, table in export.tables(results).items():
        (exports / f"{name}.csv").write_text(table, encoding="utf-8")
    for picture in pictures(results):
        (exports / f"{picture.name}.svg").write_text(picture.file(), encoding="utf-8")


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
        exports: a directory for every table as CSV and every picture as SVG; None: none are written.
    """
    files = [source / "results.json" if source.is_dir() else source for source in sources]
    target = target or files[0].with_name("report.html")
    try:
        write(merged([load(file) for file in files]), target, exports=exports)
    except (OSError, ValueError) as error:
        print(f"skewd: {error}", file=sys.stderr)
        return 1
    print(target)
    if exports is not None:
        print(exports)
    return 0


def pictures(results: Results) -> list[Picture]:
    """Every picture that the results have data for."""
    found = [trace_picture(results.trace)] if results.trace is not None and results.trace.spans else []
    found += [rates_picture(results, *way) for way in _ways(results)]
    for transport in dict.fromkeys(row.transport for row in results.loads):
        found.append(loads_picture([row for row in results.loads if row.transport == transport]))
    return found + [story_picture(run, results.windows) for run in results.long_runs]


def _ways(results: Results) -> list[tuple[str, str, str]]:
    """(rule, stage, direction): the first is the page's one curve."""
    found = [
        (rule, stage, direction)
        for rule in (SPAN_START, SEND_RECEIVE)
        for (_, stage, direction) in by_way(raw_rows(results, rule))
    ]
    return sorted(dict.fromkeys(found), key=lambda way: way != (SPAN_START, *(main_way(results) or ())))


def render(results: Results) -> str:
    """The whole page."""
    drawn = {picture.name: picture for picture in pictures(results)}
    sections: list[tuple[str, str, Callable[[], str]]] = [
        ("paper", "The paper says, we measured, why it differs", lambda: _paper(results)),
        ("claims", "All claims", lambda: _claims(results)),
        ("calibration", "Calibration: what was measured before any clock was skewed", lambda: _calibration(results)),
        ("rates", "Every cell: predicted and measured", lambda: _cells(results, list(drawn.values()))),
        ("loads", "Load hides skew", lambda: _loads(results, drawn)),
        ("throughput", "What the sidecars cost in throughput", lambda: _throughput(results)),
        ("blame", "Not every negative span is skew", lambda: _confusion(results)),
        ("heuristics", "Beside what trace tools do today", lambda: _heuristics(results)),
        ("time", "Over time", lambda: _over_time(results, drawn)),
        ("bounds", "What the bounds were worth", lambda: _bounds(results)),
        ("monitoring", "What monitoring sees", lambda: _probes(results)),
        ("processes", "Processor time", lambda: _processes(results)),
        ("run", "What was run, and on what", lambda: _what_was_run(results)),
    ]
    opened = {"paper"} if results.runs else {"time"}
    folded = [
        f'<details id="{name}"{" open" if name in opened else ""}><summary>{escape(title)}</summary>{body}</details>'
        for name, title, make in sections
        if (body := make())
    ]
    parts = [f"<h1>{escape(headline(results))}</h1>", _alarm(results), _lead(results), *_top(results, drawn), *folded]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>skewd: clock skew and traces</title>\n'
        f"<style>{PAGE}</style></head>\n<body><main>\n{chr(10).join(part for part in parts if part)}\n"
        "</main></body></html>\n"
    )


# -- what stands first -------------------------------------------------------------------------------------------------


def _alarm(results: Results) -> str:
    """What must hold and does not, before anything else is read."""
    bad = failing(results)
    if not bad:
        return ""
    fails = [claim for claim in bad if claim.verdict == "fails"]
    what = (
        f"{len(fails)} of the claims that must hold on any machine {'fail' if len(fails) > 1 else 'fails'}."
        if fails
        else "Inconclusive: the machine was too busy to judge all claims that must hold."
    )
    items = "".join(
        f"<li>{_verdict(claim.verdict)} {escape(claim.statement)}: {escape(claim.figure)}</li>" for claim in bad
    )
    return f'<div class="alarm{"" if fails else " unsure"}"><strong>{what}</strong><ul>{items}</ul></div>'


def _lead(results: Results) -> str:
    if not results.runs and not results.long_runs:
        return "<p>Nothing was run.</p>"
    if not results.runs:
        run = results.long_runs[0]
        return (
            '<p class="lead">Simulated: true time, clocks, wires and messages are made up from a seed. Everything '
            "between them is the code that every node runs. "
            f"The clock of <em>{escape(run.stage)}</em> drifts by {run.drift_ppm:g} ppm against "
            f"<em>{escape(run.reference)}</em>'s; only the report knows.</p>"
        )
    ways = dict.fromkeys((run.stage, run.direction) for run in results.runs)
    skewed = ", then ".join(f"that of <em>{escape(stage)}</em> was set {escape(way)}" for stage, way in ways)
    mock = (
        " Kafka is <strong>librdkafka's mock cluster, not a broker</strong>, and is called a mock below."
        if any(run.broker == "mock" for run in results.runs)
        else ""
    )
    missing = "".join(f" {name_of(row.transport, None)} was not run: {escape(row.reason)}." for row in results.missing)
    return (
        f'<p class="lead">Five processes classify real files with a real model '
        f"({escape(str(results.settings.get('model', 'a model')))}), each on a node with a clock, a <code>skewd</code> "
        f"and a sidecar of its own. One clock lies: {skewed}. No process of that node was told. First the rates were "
        f"predicted from a quiet run, then measured.{mock}{missing}</p>"
    )


def _top(results: Results, drawn: dict[str, Picture]) -> list[str]:
    parts = []
    if results.trace is not None and "trace" in drawn:
        early = [results.trace.spans[place].stage for place in early_spans(results.trace)]
        said = f"As stamped, {' and '.join(early)} seems to start before its own cause. " if early else ""
        parts.append(f"<h2>{escape(trace_title(results.trace))}</h2>")
        parts.append(
            _figure(
                drawn["trace"],
                f"{said}A line across a bar: when the stage truly started, which only the experiment knows. A "
                "small block at its ends: the uncertainty that the tags state, at most "
                f"\u00b1{max(span.uncertainty_us for span in results.trace.spans) / 1e3:.2f} ms.",
            )
        )
    for rule, stage, direction in _ways(results)[:1]:
        parts.append("<h2>How often a child span starts before its parent, over the skew</h2>")
        parts.append(_figure(drawn[f"rates-{rule}-{stage}-{direction}"], _RATES_WORDS, _legend(results)))
    if results.runs:
        parts.append(f'<h2>In four sentences</h2><ol class="four">{"".join(_four(results))}</ol>')
        whole = holding(results.claims)
        parts.append(f'<p class="note">{escape(whole[:1].upper() + whole[1:])}.</p>' if whole else "")
    return parts


_RATES_WORDS = (
    "Lines: predicted from the quiet run, before any clock was skewed. Shaded bars: 99% of the rates to expect from "
    "that in a cell of its size. Marks and thin lines: measured, with what the rate might as well have been (99%). "
    "The paper names where violations begin and gives no rate, so it stands above."
)


_SHAPES = "\u25cf\u25a0\u25b2"


def _legend(results: Results) -> str:
    names = [
        named(rows[0])
        for (_, *way), rows in by_way(raw_rows(results, SPAN_START)).items()
        if tuple(way) == main_way(results)
    ]
    items = [
        f'<li><b class="t{min(place, 2)}">{_SHAPES[min(place, 2)]}</b>{escape(name)}</li>'
        for place, name in enumerate(names)
    ]
    return f'<ul class="legend">{"".join(items)}<li><b class="fixed">\u25c6</b>after rewriting</li></ul>'


def _four(results: Results) -> list[str]:
    """Four sentences, each with its figure and its verdict."""
    start = [row for row in raw_rows(results, SPAN_START) if (row.stage, row.direction) == main_way(results)]
    told = [rate for rate in results.rates if rate.informative]
    agree = sum(rate.agrees for rate in told)
    broken = sorted({row.skew_ms for row in start if row.violations})
    at = 5.0 if 5.0 in broken else broken[0] if broken else max((row.skew_ms for row in start), default=0.0)
    seen = ", ".join(f"{percent(row.violation_rate)} on {named(row)}" for row in start if row.skew_ms == at)
    rates = f"{agree} of the {len(told)} cells that can tell are inside their prediction." if told else ""
    one = "not-run" if not told else "as-predicted" if agree == len(told) else "not-as-predicted"

    least, paced = min((row.outputs_correct for row in results.runs), default=1.0), []
    for rows in by_way(start).values():
        if rows[0].throughput_per_s > 0:
            paced.append(rows[-1].throughput_per_s / rows[0].throughput_per_s)
    slowest = min(paced, default=1.0)
    two = "fails" if least < 1 else "holds" if slowest >= 1 - LOSS_MAX else "inconclusive"

    tagged = [row for row in results.runs if row.mode != "off" and row.rule == SPAN_START]
    misses, spans = sum(row.bound_misses for row in tagged), sum(row.spans - row.spans_unsynchronized for row in tagged)
    mistakes, judged = sum(row.count for row in wrong(results.confusion)), sum(row.count for row in results.confusion)
    verdicts = f", {thousands(mistakes)} of {thousands(judged)} verdicts not so" if judged else ""
    three = "not-run" if not tagged else "fails" if misses or mistakes else "holds"

    fixed = [row.all for row in results.runs if row.mode == "rewrite" and row.all is not None]
    left, edges = sum(each.violations for each in fixed), sum(each.edges for each in fixed)
    within = max((row.residual_max_ns for row in results.runs if row.mode == "rewrite"), default=0)
    four = "not-run" if not fixed else "fails" if left else "holds"
    whole, kept = percent(least, 2) if least < 1 else "100%", percent(slowest) if slowest < 1 else "100%"
    return [
        _sentence(
            f"A clock that is {brief_ms(at)} ms off makes child spans start before their parents."
            if broken else f"No clock that is up to {brief_ms(at)} ms off makes a child span start before its parent.",
            one, f"{seen}. {rates}",
        ),
        _sentence(
            "Throughput and answers do not notice.", two,
            f"{whole} of the answers are right at every skew; of its unskewed rate the slowest transport keeps {kept}.",
        ),
        _sentence(
            "Every bound holds the truth, and the verdicts are right.", three,
            f"{thousands(misses)} of {thousands(spans)} spans with the true offset outside their bound{verdicts}."
            if tagged else "Neither tag nor rewrite was run.",
        ),
        _sentence(
            "After rewriting nothing is inverted beyond the bounds.", four,
            f"{thousands(left)} of {thousands(edges)} edges; the largest gap left inside them is {_us(within / 1e3)}."
            if fixed else "Rewrite was not run.",
        ),
    ]  # fmt: skip


def _sentence(text: str, verdict: str, figure: str) -> str:
    return f"<li><p>{escape(text)} {_verdict(verdict)}</p><span>{escape(figure)}</span></li>"


def _verdict(verdict: str) -> Html:
    return Html(f'<b class="verdict {escape(verdict)}">{escape(verdict.replace("-", " "))}</b>')


# -- what is folded ----------------------------------------------------------------------------------------------------


def _paper(results: Results) -> str:
    if not results.runs:
        return ""
    return (
        "<p>The paper: arXiv 2604.21361. Two rules for what is violated. <em>Span-start</em>: a child span starts "
        "before its parent, as trace viewers show it; such an edge is a stage's work and a hop long. "
        "<em>Send-receive</em>: a message is received before it was sent, the paper's negative span; such an edge is "
        "one hop long.</p>"
        + _table(
            "Every finding of the paper beside this run",
            ("the paper says", "rule", "we measured", "why it differs"),
            [(each.says, each.rule, each.measured, each.why) for each in findings(results)],
            text=(0, 2, 3),
            kind=" class=stack",
        )
    )


def _claims(results: Results) -> str:
    order = ("fails", "inconclusive", "holds", "not-run")
    rows = sorted(results.claims, key=lambda claim: (claim.kind != "must-hold", order.index(claim.verdict)))
    return _table(
        "Must hold: on any machine, or the run fails. Machine: about this one, told and never a failure",
        ("claim", "kind", "verdict", "judged", "wrong", "undecided", "figure"),
        [
            (
                claim.statement or claim.id, claim.kind.replace("-", " "), _verdict(claim.verdict),
                thousands(claim.judged), thousands(claim.wrong), thousands(claim.undecided), claim.figure,
            )
            for claim in rows
        ],
        text=(0, 6),
    )  # fmt: skip


def _calibration(results: Results) -> str:
    return _table(
        "One quiet run of each transport and one as fast as it goes; hop and separation: least / median / 99%",
        (
            "transport",
            "capacity",
            "offered",
            "a stage works at least",
            "hop, ms",
            "separation, ms",
            "threshold",
            "model",
        ),
        [
            (
                name_of(key.split(" ")[0], each.broker, each.client) + key[len(key.split(" ")[0]) :],
                f"{each.capacity_per_s:.0f}/s",
                f"{each.offered_per_s:.0f}/s" + (", halved" if each.halved else ""),
                f"{each.floor_ms:.2f} ms" + ("" if each.floor_chosen else ", given"),
                _spread(each.hop_ms) or f"{each.hop_p50_ms:.2f}",
                _spread(each.separation_ms),
                f"{each.predicted_threshold_ms:.2f} ms",
                f"{each.service_ms['inference']:.1f} ms" if "inference" in each.service_ms else "",
            )
            for key, each in results.calibration.items()
        ],
    )


def _spread(row: Separation | None) -> str:
    return f"{row.min:.2f} / {row.p50:.2f} / {row.p99:.2f}" if row is not None else ""


def _cells(results: Results, drawn: Sequence[Picture]) -> str:
    """One row for each cell and rule, and the curves that do not stand above."""
    modes: dict[tuple[object, ...], dict[str, Run]] = {}
    for row in results.runs:
        modes.setdefault(_cell(row), {})[row.mode] = row
    body = []
    for rule, stage, direction in _ways(results):
        for (_, *way), rows in by_way(raw_rows(results, rule)).items():
            body += [_cell_row(results, row, modes[_cell(row)]) for row in rows if way == [stage, direction]]
    curves = [picture for picture in drawn if picture.name.startswith("rates-")][1:]
    if not body:
        return ""
    return (
        "<p>A cell tells something of a prediction that lies between 2% and 98%. Elsewhere nothing is judged.</p>"
        + _table(
            "Share of violated edges, with its 99% interval where that is wider than the figure",
            ("transport", "clock", "rule", "skew", "predicted", "measured", "judged", "rewritten", "tags say", "bound",
             "missed", "edges"),
            body,
        )
        + "".join(f"<h3>{escape(picture.title)}</h3>{_figure(picture, '', _legend(results))}" for picture in curves)
    )  # fmt: skip


def _cell_row(results: Results, row: Run, modes: dict[str, Run]) -> tuple[str, ...]:
    tag, fixed, rate = modes.get("tag"), modes.get("rewrite"), rate_of(results, row)
    predicted, measured, judged = "", percent(row.violation_rate), ""
    if rate is not None:
        predicted = interval(rate.predicted_rate, rate.predicted_low, rate.predicted_high)
        measured = interval(row.violation_rate, rate.measured_low, rate.measured_high)
        judged = ("inside" if rate.agrees else Html("<b>outside</b>")) if rate.informative else ""
    said = sorted(tag.violation_verdicts.items()) if tag else ()
    bound = tag.uncertainty_ns if tag else None
    return (
        named(row), f"{row.stage} {row.direction}", row.rule, f"{brief_ms(row.skew_ms)} ms", predicted, measured,
        judged, percent(fixed.violation_rate) if fixed else "",
        ", ".join(f"{count} {verdict}" for verdict, count in said),
        f"\u00b1{_us(bound.p50 / 1e3)}" if bound else "", str(max(each.bound_misses for each in modes.values())),
        str(row.edges),
    )  # fmt: skip


def _cell(row: Run) -> tuple[object, ...]:
    return row.transport, row.stage, row.direction, row.skew_ms, row.rule


def _loads(results: Results, drawn: dict[str, Picture]) -> str:
    if not results.loads:
        return ""
    charts = [picture for name, picture in drawn.items() if name.startswith("loads-")]
    return (
        "<p>Messages come at random, the clock is off by the same skew throughout. The busier the model, the longer a "
        "message waits for it, the further apart two spans start, and the fewer of them the skew turns round. A trace "
        "that looks right under load says nothing of the clocks.</p>"
        + "".join(f"<h3>{escape(picture.title)}</h3>{_figure(picture)}" for picture in charts)
        + _table(
            "Separation: the median. Theory: Pollaczek and Khinchine's mean wait for the same service times",
            ("transport", "utilization", "offered", "skew", "violated", "separation", "wait", "in theory", "edges"),
            [
                (
                    named(row), f"{row.utilization:.0%}", f"{row.offered_per_s:.0f}/s", f"{brief_ms(row.skew_ms)} ms",
                    percent(row.violation_rate), f"{row.separation_ms.p50:.1f} ms", f"{row.wait_ms:.1f} ms",
                    f"{row.theory_ms:.1f} ms", str(row.edges),
                )
                for row in results.loads
            ],
        )
    )  # fmt: skip


def _throughput(results: Results) -> str:
    return _table(
        "Unpaced, without skew, with sidecars and without in turn: messages per second, and their ratio (95%)",
        ("transport", "without", "with", "ratio"),
        [
            (
                named(row), _rates(row.without_per_s), _rates(row.with_per_s),
                f"{row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f})",
            )
            for row in results.throughput
        ],
    )  # fmt: skip


def _rates(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


_TRUTH_WORDS = {
    "in order": "in order, and stamped so",
    "clock": "stamped backwards by a clock that is off",
    "not the clock": "stamped backwards, and no clock did it",
    "hidden": "backwards, but stamped in order",
}


def _confusion(results: Results) -> str:
    rows = results.confusion
    if not rows:
        return ""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        counts[row.situation, row.truth, row.verdict] = (
            counts.get((row.situation, row.truth, row.verdict), 0) + row.count
        )
    verdicts = [verdict for verdict in VERDICTS if any(row.verdict == verdict for row in rows)]
    body = []
    for situation in dict.fromkeys(row.situation for row in rows):
        for truth in (truth for truth in TRUTHS if any(key[:2] == (situation, truth) for key in counts)):
            cells = []
            for verdict in verdicts:
                count = counts.get((situation, truth, verdict), 0)
                kind = "maybe" if verdict in UNDECIDED else "bad" if is_wrong(truth, verdict) else "right"
                cells.append(
                    Html(f'<td class="count{f" {kind}" if count else ""}">{thousands(count) if count else ""}</td>')
                )
            body.append((situation, _TRUTH_WORDS[truth], *cells))
    return (
        "<p>A sender that notes its send afterwards may be put aside in between, and the message is received first: "
        "a negative gap between clocks that agree. Here the truth of each edge is known, and so is whether its verdict "
        f"was right: <strong>{thousands(sum(row.count for row in wrong(rows)))} of "
        f"{thousands(sum(row.count for row in rows))}</strong> say something that is not so.</p>"
        + _table(
            "Edges by what is true of them and what was said; green is right, yellow undecided, red wrong",
            ("clocks", "in truth", *verdicts), body,
        )
    )  # fmt: skip


_METHOD_WORDS = {
    "raw": "raw: nothing moved",
    "centring": "centring (Jaeger's rule)",
    "client-server": "client-server (Zipkin's rule)",
    "measured": "measured offsets (ours)",
}


def _heuristics(results: Results) -> str:
    if not results.heuristics:
        return ""
    return (
        "<p>Where a trace looks wrong, tools move the child until it fits. They assume that both ways take equally "
        "long and that a child belongs inside its parent. A measured offset knows nothing of the trace.</p>"
        + _table(
            "The same traces, corrected each way, against the truth. Introduced: orders that were right before",
            ("method", "traces", "skew", "children", "RMS error", "99%", "largest", "orders", "broken before", "left",
             "introduced", "undecided"),
            [
                (
                    _METHOD_WORDS.get(row.method, row.method), row.traces, skew_label(row.skew_ms), row.edges,
                    _us(row.rms_us), _us(row.p99_us), _us(row.max_us), str(row.relations), str(row.violated_before),
                    str(row.left), str(row.introduced), str(row.undecided),
                )
                for row in results.heuristics
            ],
        )
    )  # fmt: skip


def _over_time(results: Results, drawn: dict[str, Picture]) -> str:
    stories = [picture for name, picture in drawn.items() if name.startswith("story-")]
    parts = []
    for run, picture in zip(results.long_runs, stories, strict=True):
        how = "in simulated time, on the code that ships" if run.simulated else "on the real pipeline"
        events = "".join(f"<li>{event.at_s:g} s: {escape(event.text)}</li>" for event in run.events)
        fixed = [window for window in results.windows if (window.run, window.mode) == (run.run, "rewrite")]
        left, edges = sum(window.violations for window in fixed), sum(window.edges for window in fixed)
        between_two = f"; {run.ambiguous} were stamped while the clock was changed" if run.ambiguous else ""
        parts.append(
            f"<h3>{escape(name_of(run.transport, run.broker))}: {run.duration_s:g} s {how}</h3><ol>{events}</ol>"
            + _figure(
                picture,
                "Red dots: as stamped. Blue: predicted from the skew of the moment. Green: after rewriting. Numbers: "
                f"what was done to the clock. {thousands(run.bound_misses)} of {thousands(run.spans)} spans had the "
                f"truth outside their bound{between_two}. Rewritten, {thousands(left)} of {thousands(edges)} edges are "
                f"inverted beyond the bounds. The signal blamed an innocent clock {run.false_alarms} times.",
            )
        )
    return "".join(parts)


def _bounds(results: Results) -> str:
    return _table(
        "Width: of the whole interval, on the nodes that are not the reference. Left: the largest gap that rewriting "
        "left negative inside the bounds; beyond: how many were larger",
        ("transport", "clocks compared over", "spans", "width, median", "greatest", "truth inside", "left", "beyond"),
        [
            (
                named(row), row.path, thousands(row.spans),
                _us(row.width_ns.p50 / 1e3) if row.width_ns else "",
                _us(row.width_ns.max / 1e3) if row.width_ns else "",
                "" if row.coverage is None else percent(row.coverage, 2) if row.coverage < 1 else "100%",
                _us(row.residual_max_ns / 1e3), str(row.residuals_beyond),
            )
            for row in results.bounds
        ],
    )  # fmt: skip


def _probes(results: Results) -> str:
    command = results.probes[0].command if results.probes else ""
    return _table(
        f"{command}, on the skewed node",
        ("the node's clock", "exit", "line", "perfdata"),
        [(probe.situation, str(probe.exit_code), probe.line, probe.perfdata) for probe in results.probes],
        text=(2, 3),
    )


def _processes(results: Results) -> str:
    rows = sorted(results.processes, key=lambda row: -row.seconds)
    return _table("User and system seconds", ("process", "seconds"), [(row.name, f"{row.seconds:.1f}") for row in rows])


def _what_was_run(results: Results) -> str:
    def pairs(values: Iterable[tuple[str, object]]) -> str:
        rows = (f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in values)
        return f"<dl>{''.join(rows)}</dl>"

    return (
        pairs([*results.settings.items(), ("duration", f"{results.seconds:g} s")])
        + f"<h3>On</h3>{pairs(results.host.items())}<h3>With</h3>{pairs(results.versions.items())}"
        + "<p>The same seed gives the same schedule of work. These differ from run to run: "
        + escape(", ".join(results.stochastic))
        + ". What was simulated does not. The clock is skewed, not the application's stamps: everything above the "
        "clock, the OpenTelemetry SDK included, is unmodified.</p>"
    )


# -- markup ------------------------------------------------------------------------------------------------------------


def _figure(picture: Picture, caption: str = "", legend: str = "") -> str:
    """Drawn for wide screens and for narrow ones; the page shows one."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="for-wide">{picture.svg(WIDE)}</div><div class="for-narrow">{picture.svg(NARROW)}</div>'
        f"{legend}{words}</figure>"
    )


def _table(
    caption: str, head: Sequence[str], body: Sequence[Sequence[str]], *, text: Sequence[int] = (), kind: str = ""
) -> str:
    """Cells are escaped unless they are markup; ``text``: the columns that may wrap. Empty without rows."""
    if not body:
        return ""
    heads = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    rows = []
    for cells in body:
        made = []
        for place, cell in enumerate(cells):
            wraps = " class=text" if place in text else ""
            inner = cell if isinstance(cell, Html) else escape(cell)
            tag, scope = ("th", " scope=row") if place == 0 else ("td", "")
            made.append(inner if inner.startswith("<td") else f"<{tag}{scope}{wraps}>{inner}</{tag}>")
        rows.append(f"<tr>{''.join(made)}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _us(value_us: float) -> str:
    return f"{value_us / 1e3:.2f} ms" if value_us >= 1000 else f"{value_us:.0f} \u00b5s" if value_us else "0"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
