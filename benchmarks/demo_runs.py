"""Ten demos on one machine, at rest and made slower in turn: ``python -m benchmarks.demo_runs``.

The problem: a demo that holds where it was written says nothing of the next machine. The insight: one machine can be
made worse in ways that differ: busy loops beside it, one core instead of two, half of the processor time, no real
broker. What must hold has to hold in all of them, and this machine's figures may differ as they like. Writes
docs/reports/demo.md.

Limits: half of the processor time needs root and cgroups (v1 or v2), and comes in slices of 5 ms, as no slower machine
has them; where it is not to be had, that run is left out and the page says so. About half an hour.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skewd_pipeline.ran_on import host
from skewd_pipeline.results import Results, load

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reports" / "demo.md"
OUT = ROOT / "out" / "demo-runs"
SLICE_US = 5_000
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Situation:
    """One way of running the demo."""

    name: str
    busy_loops: int = 0
    cores: str | None = None
    share: float | None = None
    mock: bool = False


SITUATIONS = (
    Situation("at rest"),
    Situation("one busy loop", busy_loops=1),
    Situation("two busy loops", busy_loops=2),
    Situation("one core", cores="0"),
    Situation("half the processor time", share=0.5),
    Situation("mock broker", mock=True),
    Situation("at rest"),
    Situation("two busy loops", busy_loops=2),
    Situation("one busy loop", busy_loops=1),
    Situation("at rest"),
)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def limited(share: float | None) -> Iterator[list[str] | None]:
    """Words to put before a command so that it gets this share of the machine; None where that can't be had."""
    if share is None:
        yield []
        return
    quota_us = round(SLICE_US * len(os.sched_getaffinity(0)) * share)
    old = CGROUPS / "cpu" / "cpu.cfs_quota_us"
    group = (old.parent if old.exists() else CGROUPS) / f"skewd-demo-{os.getpid()}"
    try:
        group.mkdir()
        if old.exists():
            (group / "cpu.cfs_period_us").write_text(str(SLICE_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text(f"{quota_us} {SLICE_US}")
    except OSError:
        yield None
        return
    try:
        yield ["sh", "-c", f'echo $$ > "{group}/cgroup.procs"; exec "$@"', "sh"]
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def run(situation: Situation, out: Path) -> tuple[int, float] | None:
    """The demo's exit code and how long it took; None where the situation can't be made."""
    command = [sys.executable, "-m", "skewd", "experiment", "run", "--demo", "--out", str(out)]
    if situation.cores is not None:
        command = ["taskset", "-c", situation.cores, *command]
    environment = {**os.environ, **({"SKEWD_NO_KAFKA_BROKER": "1"} if situation.mock else {})}
    out.mkdir(parents=True, exist_ok=True)
    with busy(situation.busy_loops), limited(situation.share) as before:
        if before is None:
            return None
        begun = time.monotonic()
        with (out / "terminal.txt").open("w") as terminal:
            done = subprocess.run([*before, *command], cwd=ROOT, env=environment, stdout=terminal, stderr=terminal)
        return done.returncode, time.monotonic() - begun


def row(situation: Situation, code: int, took_s: float, results: Results | None) -> str:
    """One line of the page."""
    if results is None:
        return f"| {situation.name} | {code} | {took_s:.0f} | the run failed | | | | |"
    decisive = [claim for claim in results.claims if claim.kind == "must-hold" and claim.verdict != "not-run"]
    held = sum(claim.verdict == "holds" for claim in decisive)
    judged, open_ = sum(claim.judged for claim in decisive), sum(claim.undecided for claim in decisive)
    seconds = sum(process.seconds for process in results.processes)
    model_ms = next(iter(results.calibration.values())).service_ms.get("inference", 0.0)
    rates = []
    for transport, calibration in results.calibration.items():
        at = {rate.skew_ms: rate for rate in results.rates if (rate.transport, rate.rule) == (transport, "span-start")}
        said = ", ".join(f"{at[skew].measured_rate:.0%}" for skew in (3.0, 5.0, 10.0) if skew in at)
        predicted = ", ".join(f"{at[skew].predicted_rate:.0%}" for skew in (3.0, 5.0, 10.0) if skew in at)
        mock = " (mock)" if calibration.broker == "mock" else ""
        rates.append(
            f"{transport}{mock}: {said} (predicted {predicted}); {calibration.offered_per_s:g} of "
            f"{calibration.capacity_per_s:.0f}/s, floor {calibration.floor_ms:g} ms, "
            f"hop {calibration.hop_p50_ms:.2f} ms"
        )
    return (
        f"| {situation.name} | {code} | {took_s:.0f} | {held} of {len(decisive)} | {judged:,}, {open_:,} open | "
        f"{model_ms:.1f} | {seconds:.0f} | {'<br>'.join(rates)} |"
    )


def page(rows: list[str], left_out: list[str]) -> str:
    """The page that says what was run and what came of it."""
    where = ", ".join(f"{key} {value}" for key, value in host().items())
    lines = [
        "# Ten demos on one machine",
        "",
        "`python -m benchmarks.demo_runs` makes this page: the demo as `make demo` runs it, after set-up, at rest and",
        "in situations that make the machine worse. What must hold on any machine decides the exit code. Rates are",
        "those of child spans that start before their parent at 3, 5 and 10 ms of skew; they are this machine's, in",
        "its situation.",
        "",
        f"On {where}; {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
        "| situation | exit | s | must hold: holds | judged | the model, ms | processor s | rates |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        *[f"Left out: {name}; it can't be made here." for name in left_out],
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Runs all of them; 0 if every demo's exit code was 0."""
    rows: list[str] = []
    left_out: list[str] = []
    worst = 0
    for number, situation in enumerate(SITUATIONS, 1):
        out = OUT / f"{number}-{situation.name.replace(' ', '-')}"
        ran = run(situation, out)
        if ran is None:
            left_out.append(situation.name)
            continue
        code, took_s = ran
        worst = max(worst, code)
        results = load(out / "results.json") if code in (0, 1, 3) and (out / "results.json").exists() else None
        rows.append(row(situation, code, took_s, results))
        print(rows[-1], flush=True)
        PAGE.write_text(page(rows, left_out))
    return worst


if __name__ == "__main__":
    sys.exit(main())
