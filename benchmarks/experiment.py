"""Every run of the experiment that its report stands on, one after the other; then the report.

``python -m benchmarks.experiment [--only NAME...] [--keep DIRECTORY] [--out DIRECTORY]`` (``make experiment``). About
25 minutes on two cores. What is done is kept: ended and begun again, it goes on with the next run. Ends with 1 if
something that must hold does not, with 3 if something could not be judged.

Runs of which one page can tell are told on one (``experiment.html``); all of them, with their commands, their claims
and their rates, in ``experiment.md``. Their raw edges stay beside each run's results, where they were kept: some 10 MB,
which anyone can make again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skewd_pipeline.claims import exit_code
from skewd_pipeline.report import build
from skewd_pipeline.results import RULES, Bounds, Calibration, Claim, Load, Rate, Results, load, merged, skew_label
from skewd_pipeline.words import NAMES, interval, name_of, named, percent

ROOT = Path(__file__).parent.parent
KEPT, REPORTS = ROOT / "build" / "experiment", ROOT / "docs" / "reports"
PAGE, TEXT = "experiment.html", "experiment.md"


@dataclass(frozen=True)
class Part:
    """One run of ``skewd experiment run``; ``on_page``: whether the one page tells of it too."""

    name: str
    title: str
    arguments: tuple[str, ...]
    on_page: bool = True

    def words(self, out: str) -> list[str]:
        """What is typed after ``skewd``."""
        return ["experiment", "run", *self.arguments, "--out", out]


ALL_TRANSPORTS = ("--transports", "zmq,kafka,aeron")
PARTS = (
    Part(
        "zmq",
        "ZeroMQ, the inference stage's clock behind; rising load, an overloaded CPU, five minutes of drift",
        ("--transports", "zmq", "--skews", "0,1,3,4,5,10,50", "--overload", "--loads", "0.2,0.4,0.6,0.8,0.95",
         "--duration", "5m", "--drift", "50ppm"),
    ),
    Part(
        "kafka-aeron",
        "Kafka and Aeron, the inference stage's clock behind; an overloaded CPU",
        ("--transports", "kafka,aeron", "--overload", "--messages", "150"),
    ),
    Part(
        "ahead",
        "The same edge from its other end: the preprocess stage's clock ahead",
        (*ALL_TRANSPORTS, "--stage", "preprocess", "--direction", "ahead", "--messages", "120"),
    ),
    Part(
        "kafka-default",
        "Kafka with its clients' own waits (5 ms of linger)",
        ("--transports", "kafka", "--kafka-clients", "default", "--messages", "120"),
        on_page=False,
    ),
    Part(
        "inband",
        "Clocks compared over the transport under test alone, UDP off",
        (*ALL_TRANSPORTS, "--inband-only", "--messages", "80"),
        on_page=False,
    ),
)  # fmt: skip


def ran(part: Part, kept: Path) -> Path:
    """Runs it unless it was; where its results are, if there are any."""
    out = kept / part.name
    results = out / "results.json"
    if results.exists():
        print(f"{part.name}: kept from before", flush=True)
    else:
        print(f"{part.name}: skewd {shlex.join(part.words(str(out)))}", flush=True)
        subprocess.run([sys.executable, "-m", "skewd", *part.words(str(out))], cwd=ROOT, check=False)
    return results


# -- the text ----------------------------------------------------------------------------------------------------------


def told(done: Sequence[tuple[Part, Results]]) -> str:
    """The page that says what was run, what was predicted and measured, and what held."""
    minutes = sum(results.seconds for _, results in done) / 60
    page = " ".join(f"out/{part.name}" for part, _ in done if part.on_page)
    lines = [
        "# The experiment's last runs",
        "",
        f"`make experiment` makes this page and [the one to share]({PAGE}): {len(done)} runs,",
        f"{minutes:.0f} minutes.",
        "[experiment.md](../experiment.md) says what is run, what is claimed, and how to compute any figure again from",
        "a run's `edges.parquet`. Those files are some 10 MB and not kept here; the commands make them again.",
        "",
        *_table(("", "claim", "runs", "judged", "against it", "open"), _summary(done)),
        "",
        "```sh",
        f"skewd experiment report {page} --out {PAGE}",
        "```",
        "",
    ]
    for part, results in done:
        host = ", ".join(f"{key} {value}" for key, value in results.host.items())
        lines += [f"## {part.title}", "", "```sh", f"skewd {shlex.join(part.words(f'out/{part.name}'))}", "```", ""]
        lines += [f"{results.seconds:.0f} s on {host}.", ""]
        for header, row, rows in _tables(results):
            if rows:
                lines += [*_table(header, map(row, rows)), ""]
        claims = [claim for claim in results.claims if claim.verdict != "not-run"]
        lines += [*_table(("", "claim", "measured"), map(_claim, claims)), ""]
    return "\n".join(lines)


RULES_SAID = {"send-receive": "received before it was sent (the paper's negative span)",
              "span-start": "a child span before its parent"}  # fmt: skip


def _tables(results: Results) -> list[tuple[Sequence[str], Callable[[Any], list[str]], list[Any]]]:
    """Header, how a row is written, and the rows."""
    calibrated = (
        "measured first",
        "takes",
        "is offered",
        "a stage works for",
        "hop, median",
        "separation, least, median",
    )
    rates = [
        ((RULES_SAID[rule], "skew", "predicted (99 %)", "measured", ""), _rate,
         [rate for rate in results.rates if rate.rule == rule])
        for rule in RULES
    ]  # fmt: skip
    return [
        (calibrated, _calibrated, list(results.calibration.items())),
        *rates,
        (("load", "offered", "a child span before its parent", "waits", "in theory"), _load, results.loads),
        (("bounds by", "way", "width: least, median, most", "truth inside", "spans without"), _bound, results.bounds),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _verdict(claim: Claim) -> str:
    return "**FAILS**" if (claim.verdict, claim.kind) == ("fails", "must-hold") else claim.verdict


def _summary(done: Sequence[tuple[Part, Results]]) -> list[list[str]]:
    """What must hold, over all runs."""
    every = merged([Results(runs=[], host={}, versions={}, claims=results.claims) for _, results in done]).claims
    rows = []
    for claim in every:
        runs = [other for _, results in done for other in results.claims if other.id == claim.id]
        count = sum(other.verdict != "not-run" for other in runs)
        if claim.kind == "must-hold" and count:
            counts = (count, claim.judged, claim.wrong, claim.undecided)
            rows.append([_verdict(claim), claim.statement, *(f"{number:,}" for number in counts)])
    return rows


def _calibrated(item: tuple[str, Calibration]) -> list[str]:
    name, known = item
    apart = known.separation_ms
    return [
        name_of(name.split(" ")[0], known.broker, known.client),
        f"{known.capacity_per_s:.0f}/s",
        f"{known.offered_per_s:.1f}/s" + (" (halved: a backlog grew)" if known.halved else ""),
        f"{known.floor_ms:g} ms",
        f"{known.hop_p50_ms:.2f} ms",
        f"{apart.min:.2f} and {apart.p50:.2f} ms" if apart else "-",
    ]


def _rate(rate: Rate) -> list[str]:
    return [
        named(rate),
        skew_label(rate.skew_ms),
        interval(rate.predicted_rate, rate.predicted_low, rate.predicted_high),
        f"{percent(rate.measured_rate)} ({rate.violations} of {rate.edges})",
        "" if rate.agrees else "outside",
    ]


def _load(row: Load) -> list[str]:
    return [
        f"{row.utilization:.0%} of what {NAMES[row.transport]} takes",
        f"{row.offered_per_s:.1f}/s",
        f"{percent(row.violation_rate)} at {skew_label(row.skew_ms)}",
        f"{row.wait_ms:.1f} ms",
        f"{row.theory_ms:.1f} ms",
    ]


def _bound(row: Bounds) -> list[str]:
    width = row.width_ns
    return [
        named(row),
        row.path,
        f"{width.min / 1e3:.1f}, {width.p50 / 1e3:.1f}, {width.max / 1e3:.1f} us" if width else "-",
        "-" if row.coverage is None else percent(row.coverage, 2),
        str(row.spans_unsynchronized),
    ]


def _claim(claim: Claim) -> list[str]:
    kind = "must hold on any machine" if claim.kind == "must-hold" else "this machine"
    return [_verdict(claim), f"`{claim.id}` ({kind}): {claim.statement}", claim.figure]


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.experiment", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a part's name; others are taken from what is kept")
    parser.add_argument("--keep", type=Path, default=KEPT)
    parser.add_argument("--out", type=Path, default=REPORTS)
    options = parser.parse_args(argv)
    files = {
        part: ran(part, options.keep)
        if options.only is None or part.name in options.only
        else options.keep / part.name / "results.json"
        for part in PARTS
    }
    if missing := [part.name for part, file in files.items() if not file.exists()]:
        print(f"no report: not all runs are there ({', '.join(missing)})", flush=True)
        return 1
    if build([file for part, file in files.items() if part.on_page], options.out / PAGE):
        return 1
    done = [(part, load(file)) for part, file in files.items()]
    (options.out / TEXT).write_text(told(done), encoding="utf-8")
    claims = [claim for _, results in done for claim in results.claims]
    bad = [f"{part.name}: {claim.id}: {claim.figure}" for part, results in done for claim in results.claims
           if claim.kind == "must-hold" and claim.verdict in ("fails", "inconclusive")]  # fmt: skip
    print("\n".join(bad) or "everything that must hold holds", flush=True)
    return exit_code(claims)


if __name__ == "__main__":
    sys.exit(main())
