"""One HTML file that tells what was run, what happened and whether to believe it.

It is made from ``results.json`` alone, holds everything it needs (no script, no font, no picture from elsewhere), and
reads on paper, on a phone, in light and dark. What a reader must know first stands first: the threshold is no
constant of nature but the pipeline's minimum separation. A mock broker is called one wherever its numbers are.

Limits: pictures need matplotlib (the extra ``experiment``); without it the tables stand alone and the report says so.
Everything that comes from the results is escaped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from skewd_pipeline.results import Check, Results, Run, load, merged, skew_label


def write(results: Results, path: Path) -> None:
    """Writes the report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(render(results), encoding="utf-8")
    os.replace(unfinished, path)


def main(arguments: Sequence[str]) -> int:
    """``RESULTS [REPORT]``: rebuilds a report; the exit code."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m skewd_pipeline.report RESULTS.json [REPORT.html]", file=sys.stderr)
        return 64
    return build([Path(arguments[0])], Path(arguments[1]) if len(arguments) == 2 else None)


def build(sources: Sequence[Path], target: Path | None) -> int:
    """Makes one report of one or more ``results.json`` (or the directories that hold them); the exit code.

    Without ``target`` it is ``report.html`` beside the first.
    """
    files = [source / "results.json" if source.is_dir() else source for source in sources]
    target = target or files[0].with_name("report.html")
    try:
        write(merged([load(file) for file in files]), target)
    except (OSError, ValueError) as error:
        print(f"skewd: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


def headline(results: Results) -> str:
    """The first line: where the threshold lies and why."""
    least = [each for each in results.separations if each.rule == "span-start" and each.floor_ms > 0]
    values = [each.separations_ns[0] for each in least if each.separations_ns]
    floor_ms = next((run.floor_ms for run in results.runs), 0.0)
    if not values or not floor_ms:
        return "Violations begin where the skew exceeds the pipeline's minimum separation, and nowhere else"
    return (
        f"The threshold lies at the pipeline's minimum separation: here {min(values) / 1e6:.1f} ms, "
        f"because each stage works for at least {floor_ms:g} ms"
    )


def render(results: Results) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(headline(results))}</h1>",
        _lead(results),
        _tiles(results),
        _pictures(results),
        _floor0(results),
        _probes(results),
        _throughput(results),
        _claims(results.checks),
        _all_rows(results),
        _what_was_run(results),
    ]
    title = "skewd: clock skew and traces"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{_STYLE}</style></head>\n'
        f"<body><main>\n{chr(10).join(part for part in parts if part)}\n</main></body></html>\n"
    )


def _lead(results: Results) -> str:
    if not results.runs:
        return "<p>No cell was run.</p>"
    first = results.runs[0]
    broker = next((run.broker for run in results.runs if run.broker), None)
    mock = (
        ' Kafka here is <strong>librdkafka\'s mock cluster, not a broker</strong>; its rows are marked "mock".'
        if broker == "mock"
        else ""
    )
    model = escape(str(results.settings.get("model", "a model")))
    return (
        f'<p class="lead">Five processes classify real files with a real model ({model}). Each runs on a node of its '
        f"own: own clock, own <code>skewd</code>, own sidecar. One clock, at <em>{escape(first.stage)}</em>, was set "
        f"{escape(first.direction)}; no process of that node was told. The same spans then went through the sidecar "
        f"three ways: as they were, tagged, and rewritten.{mock}</p>"
    )


def _tiles(results: Results) -> str:
    tiles: list[tuple[str, str]] = []
    start = [run for run in results.runs if run.rule == "span-start"]
    broken = [run for run in start if run.mode == "off" and run.skew_ms == 5.0]
    for run in broken:
        tiles.append((f"{run.violation_rate:.0%}", f"of child spans start before their parent at 5 ms on {_name(run)}"))
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
    items = "".join(f"<li><b>{escape(value)}</b> {escape(text)}</li>" for value, text in tiles)
    return f'<ul class="tiles">{items}</ul>' if items else ""


def _pictures(results: Results) -> str:
    if not results.runs:
        return ""
    try:
        from skewd_pipeline import charts

        curves, verdicts, bounds = charts.curves(results), charts.verdicts(results), charts.bounds(results)
    except ImportError as error:
        return f"<p>(No pictures: the package {escape(str(error.name))} is not installed.)</p>"
    far = sorted({run.skew_ms for run in results.runs if run.skew_ms > charts.NEAR_MS})
    beyond = f" {', '.join(map(skew_label, far))}: see the table below." if far else ""
    return (
        "<h2>When a trace runs backwards</h2>"
        + _picture(
            curves,
            "Violation rate over injected skew, for each transport and rule",
            "Dots: how many edges look violated as the clocks stamped them. Line: what the true separations, measured "
            "once without skew, predict; an edge breaks exactly when the skew exceeds its separation. Squares: after "
            f"rewrite.{beyond}",
        )
        + "<h2>What the tags say</h2>"
        + _picture(
            verdicts,
            "Verdicts on the edges of the tagged run",
            "Tags move nothing; they let a reader judge. <b>skewed</b>: the clock lied. <b>ordered</b>: nothing wrong. "
            "<b>indeterminate</b>: closer than the clocks can tell. <b>impossible</b> (a bug, not a clock) would be "
            "counted too.",
        )
        + "<h2>Whether to believe it</h2>"
        + _picture(
            bounds,
            "Widest bound and largest error in each cell",
            "Only the experiment knows the injected offset. A dot above its bar would be a bound that was wrong.",
        )
    )


def _picture(svg: str, label: str, caption: str) -> str:
    return (
        f'<figure><div class="wide" role="img" aria-label="{escape(label)}">{svg}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _floor0(results: Results) -> str:
    rows = []
    for without in results.floor0:
        if without.mode not in ("off", "tag") or without.rule != "span-start":
            continue
        beside = [
            run
            for run in results.runs
            if (run.transport, run.skew_ms, run.mode, run.rule)
            == (without.transport, without.skew_ms, without.mode, without.rule)
        ]
        if without.mode == "tag" and any(row.mode == "off" for row in results.floor0):
            continue
        rows += [*beside[:1], without]
    if not rows:
        return ""
    body = [
        (
            _name(run),
            f"{run.floor_ms:g} ms" if run.floor_ms else "none",
            f"{run.separation_ms.min:.2f} ms" if run.separation_ms else "-",
            skew_label(run.skew_ms),
            f"{run.violation_rate:.1%}",
        )
        for run in rows
    ]
    return (
        "<h2>The same skew, without the floor</h2><p>Take away each stage's least duration and the threshold moves "
        "to the new minimum separation: the figure is the pipeline's, not the clock's.</p>"
        + _table(("transport", "service floor", "least separation", "skew", "child spans starting too early"), body)
    )


def _probes(results: Results) -> str:
    if not results.probes:
        return ""
    body = [(probe.situation, str(probe.exit_code), probe.line, probe.perfdata) for probe in results.probes]
    return (
        "<h2>What monitoring sees</h2><p><code>"
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
    return "<h2>What it costs</h2>" + _table(head, body, text_columns=(2,))


def _claims(checks: Iterable[Check]) -> str:
    checks = list(checks)
    if not checks:
        return ""
    marks = {True: ("yes", "holds"), False: ("no", "FAILS"), None: ("na", "n/a")}
    items = "".join(
        f'<li class="{marks[check.passed][0]}"><b>{marks[check.passed][1]}</b> {escape(check.statement)} '
        f"<span>{escape(check.measured)}</span></li>"
        for check in checks
    )
    judged = [check for check in checks if check.passed is not None]
    held = sum(check.passed is True for check in judged)
    return f'<h2>Claims: {held} of {len(judged)} hold</h2><ul class="claims">{items}</ul>'


def _all_rows(results: Results) -> str:
    head = (
        "transport", "skew", "floor", "mode", "rule", "edges", "violations", "rate", "predicted",
        "verdicts of violations", "negative within bound", "bound", "largest error", "misses",
        "separation min / p50 / p99", "msg/s", "correct",
    )  # fmt: skip
    body = []
    for run in (*results.runs, *results.floor0):
        separation = run.separation_ms
        residuals = f"{len(run.residuals_ns)}, to {max(run.residuals_ns) / 1e3:.0f} µs" if run.residuals_ns else ""
        body.append(
            (
                _name(run),
                f"{skew_label(run.skew_ms)} {run.direction}",
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
    return f"<details><summary>All {len(body)} rows</summary>{_table(head, body, text_columns=(9,))}</details>"


def _what_was_run(results: Results) -> str:
    def pairs(values: Iterable[tuple[str, object]]) -> str:
        rows = "".join(
            f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in values
        )
        return f"<dl>{rows}</dl>"

    stochastic = ", ".join(results.stochastic)
    return (
        "<h2>What was run</h2>"
        + pairs([*results.settings.items(), ("duration", f"{results.seconds:g} s")])
        + "<h3>On</h3>"
        + pairs(results.host.items())
        + "<h3>With</h3>"
        + pairs(results.versions.items())
        + "<p>The same seed gives the same schedule of work. These differ from run to run: "
        + escape(stochastic)
        + ". The clock is skewed, not the application's stamps: everything above the clock, the OpenTelemetry SDK "
        "included, is unmodified.</p>"
    )


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


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
  --raw:#c8442d; --fixed:#1f7a5c; --law:#4a6fa5; --skewed:#c8442d; --unsure:#d9a441; }
@media (prefers-color-scheme: dark) { :root { --paper:#15161a; --ink:#ece9e2; --muted:#9a968d; --grid:#30323a;
  --card:#1e2026; --raw:#ff7a61; --fixed:#4fc39a; --law:#86aee6; --skewed:#e8664e; --unsure:#d9a441; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  Roboto,"Helvetica Neue",sans-serif; }
main { max-width:64rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:clamp(1.5rem,3.4vw,2.2rem); line-height:1.2; font-weight:650; letter-spacing:-.015em; margin:0 0 1rem;
  max-width:26em; text-wrap:balance; }
h2 { font-size:1.25rem; margin:3rem 0 .75rem; } h3 { font-size:1rem; margin:1.5rem 0 .5rem; color:var(--muted); }
.lead { max-width:44em; font-size:1.08rem; } p { max-width:48em; }
code { font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
.tiles { list-style:none; display:grid; grid-template-columns:repeat(auto-fit,minmax(11rem,1fr)); gap:.75rem; padding:0;
  margin:2rem 0; }
.tiles li { background:var(--card); border-radius:.6rem; padding:1rem 1.1rem; color:var(--muted); font-size:.92rem;
  line-height:1.35; }
.tiles b { display:block; font-size:1.9rem; line-height:1.2; color:var(--ink); font-weight:650; margin-bottom:.2rem;
  font-variant-numeric:tabular-nums; }
figure { margin:0 0 1rem; } figure svg { display:block; width:100%; min-width:40rem; height:auto; }
figcaption { color:var(--muted); font-size:.92rem; max-width:52em; margin-top:.5rem; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; width:100%; }
th { text-align:left; font-weight:600; color:var(--muted); padding:.35rem .9rem .35rem 0; vertical-align:bottom;
  border-bottom:1px solid var(--muted); }
td { padding:.35rem .9rem .35rem 0; border-bottom:1px solid var(--grid); white-space:nowrap; vertical-align:top; }
td.text { white-space:normal; min-width:12rem; overflow-wrap:anywhere; }
.claims { list-style:none; padding:0; } .claims li { padding:.4rem 0 .4rem 4.2rem; border-bottom:1px solid var(--grid);
  position:relative; } .claims b { position:absolute; left:0; font-size:.85rem; line-height:1.8; }
.claims span { display:block; color:var(--muted); font-size:.9rem; overflow-wrap:anywhere; }
.yes b { color:var(--fixed); } .no b { color:var(--raw); } .na b { color:var(--muted); }
details { margin:2rem 0; } summary { cursor:pointer; font-weight:600; margin-bottom:1rem; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.2rem 1.5rem; margin:0; font-size:.92rem; }
dt { color:var(--muted); } dd { margin:0; overflow-wrap:anywhere; }
@media print { main { max-width:none; } details { display:none; } }
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
