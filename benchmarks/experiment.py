"""Every run of the experiment that its report stands on, one after the other; then the report.

``python -m benchmarks.experiment [--only NAME...] [--keep DIRECTORY] [--out DIRECTORY]`` (``make experiment``). About
an hour on two cores that have nothing else to do: on a busy machine separations grow, the rates just above a threshold
fall, and the run says which claim that costs. What is done is kept: ended and begun again, it goes on with the next
run. Ends with 1 if a claim of any page fails.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skewd_pipeline.claims import claims
from skewd_pipeline.report import build
from skewd_pipeline.results import Check, Results, load, merged

ROOT = Path(__file__).parent.parent
KEPT, REPORTS = ROOT / "build" / "experiment", ROOT / "docs" / "reports"
GRID = ("--skews", "0,1,2,3,5,10", "--messages", "1000", "--rate", "60")
FLOORS = ("--floors", "0ms,2ms,8ms", "--overload")
TOO_LARGE = ("separations.csv",)
"""Megabytes, and rebuilt by anyone who runs it."""


@dataclass(frozen=True)
class Part:
    """One run of ``skewd experiment run``."""

    name: str
    arguments: tuple[str, ...]

    def words(self, out: str) -> list[str]:
        """What is typed after ``skewd``."""
        return ["experiment", "run", *self.arguments, "--out", out]


@dataclass(frozen=True)
class Page:
    """One report of some runs."""

    name: str
    title: str
    parts: tuple[Part, ...]
    exports: bool = False


PAGES = (
    Page(
        "experiment",
        "Every transport, both directions, four floors, ten minutes of drift, an overloaded CPU",
        (
            Part("zmq", ("--transports", "zmq", *GRID, *FLOORS, "--duration", "10m", "--drift", "50ppm")),
            Part("kafka-aeron", ("--transports", "kafka,aeron", *GRID, *FLOORS)),
            Part("ahead", ("--transports", "zmq,kafka,aeron", "--stage", "preprocess", "--direction", "ahead", *GRID)),
            Part("ahead-of-the-model", ("--transports", "zmq", "--direction", "ahead", *GRID)),
        ),
        exports=True,
    ),
    Page(
        "experiment-kafka-default",
        "Kafka with its clients' own waits (5 ms of linger): the threshold moves",
        (
            Part(
                "kafka-default",
                ("--transports", "kafka", "--kafka-clients", "default", "--skews", "0,5,8,10,12,15,20",
                 "--messages", "1000", "--rate", "60"),
            ),
        ),
    ),
    Page(
        "experiment-inband",
        "Clocks compared over the transport under test alone, UDP off",
        (
            Part(
                "inband",
                ("--transports", "zmq,kafka,aeron", "--inband-only", "--skews", "0,3,5,10", "--messages", "500",
                 "--rate", "60"),
            ),
        ),
    ),
)  # fmt: skip


def ran(part: Part, kept: Path) -> Path | None:
    """Runs it unless it was; its results, or None if there are none."""
    out = kept / part.name
    results = out / "results.json"
    if results.exists():
        print(f"{part.name}: kept from before", flush=True)
        return results
    print(f"{part.name}: skewd {shlex.join(part.words(str(out)))}", flush=True)
    subprocess.run([sys.executable, "-m", "skewd", *part.words(str(out))], cwd=ROOT, check=False)
    return results if results.exists() else None


def whole(files: Sequence[Path]) -> Results:
    """The runs as one, judged as one."""
    results = merged([load(file) for file in files])
    results.checks = claims(results)
    return results


def told(pages: Sequence[tuple[Page, Results]]) -> str:
    """The page that says what was run and what held."""
    lines = [
        "# The experiment's last runs",
        "",
        "`make experiment` makes this page and the ones it names: all of these runs, an hour on two cores with nothing",
        "else to do. [experiment.md](../experiment.md) says what is run and how it is judged.",
        "",
    ]
    for page, results in pages:
        lines += [f"## [{page.title}]({page.name}.html)", "", "```sh"]
        lines += [f"skewd {shlex.join(part.words(f'out/{part.name}'))}" for part in page.parts]
        extra = f" --exports {page.name}" if page.exports else ""
        outs = " ".join(f"out/{part.name}" for part in page.parts)
        lines += [f"skewd experiment report {outs} --out {page.name}.html{extra}", "```", ""]
        if page.exports:
            lines += [f"Tables as CSV and pictures as PNG: [{page.name}/]({page.name}/).", ""]
        host = ", ".join(f"{key} {value}" for key, value in results.host.items())
        lines += [f"{results.seconds / 60:.0f} minutes on {host}.", "", "| | claim | measured |", "| --- | --- | --- |"]
        lines += [_row(check) for check in results.checks if check.passed is not None]
        lines.append("")
    return "\n".join(lines)


def _row(check: Check) -> str:
    measured = check.measured.replace("|", "\\|")
    return f"| {'holds' if check.passed else '**FAILS**'} | {check.statement} | {measured} |"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.experiment", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a part's name; others are taken from what is kept")
    parser.add_argument("--keep", type=Path, default=KEPT)
    parser.add_argument("--out", type=Path, default=REPORTS)
    options = parser.parse_args(argv)
    done: list[tuple[Page, Results]] = []
    for page in PAGES:
        files = [
            ran(part, options.keep)
            if options.only is None or part.name in options.only
            else options.keep / part.name / "results.json"
            for part in page.parts
        ]
        found = [file for file in files if file is not None and file.exists()]
        if len(found) < len(page.parts):
            print(f"{page.name}: not all of its runs are there; no page", flush=True)
            continue
        exports = options.out / page.name if page.exports else None
        if build(found, options.out / f"{page.name}.html", exports=exports):
            return 1
        if exports is not None:
            for name in TOO_LARGE:
                (exports / name).unlink(missing_ok=True)
        done.append((page, whole(found)))
    if len(done) == len(PAGES):
        (options.out / "experiment.md").write_text(told(done), encoding="utf-8")
    bad = [
        f"{page.name}: {check.statement}" for page, results in done for check in results.checks if check.passed is False
    ]
    print("\n".join(bad) or "every claim holds", flush=True)
    return 1 if bad or len(done) < len(PAGES) else 0


if __name__ == "__main__":
    sys.exit(main())
