"""The sidecar against an OpenTelemetry Collector that does the same work: ``make bench``, ``--help`` for what else.

The problem: what a hop costs depends on the core, on who else uses it, and on the requests. So both run in the same
session, in turn, the order turning too, at least three times; the same generator sends the same bytes to both, the
same sink acknowledges; and what is compared is the processor time of the process, whose ratio survives a busy machine.

For each kind of traffic (gRPC and HTTP; large batches and small ones):

- **CPU**: user and system seconds for a million spans, and microseconds for a request, with 16 requests under way.
- **spans/s**: with generator and sink on the same cores, so a lower limit for both.
- **memory**: the most that was resident, in a process started for this measurement.
- **added latency**: the median of one request at a time, less the same straight to the sink.
- **bytes**: a span's size before and after, for each way to write its attributes.

The work is checked, not believed: every span that was acknowledged has to have reached the sink, with the times that it
should have.

Without Go, or with ``--alone``, the sidecar is measured alone, and the report says so.

Limits: loopback, plain text, no compression. A closed loop: the faster answer gets more requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.sidecar import report, targets, work
from benchmarks.sidecar.targets import Broken, NoCollector, Sink, Target
from benchmarks.sidecar.work import CASES, SPAN_BYTES, Case

OURS, SLIM, PEER = "sidecar", "sidecar, minimal", "Collector"
MIB = 1 << 20
SETTINGS = ("span", "resource", "minimal")


@dataclass(frozen=True)
class Effort:
    """How much is done: requests that are measured, by spans in each; those before; those for the latency."""

    large: int = 500
    small: int = 6000
    warm: float = 0.2
    alone: int = 300
    repetitions: int = 3

    def requests(self, case: Case) -> int:
        return self.large if case.spans > 100 else self.small


QUICK = Effort(large=12, small=60, alone=10, repetitions=1)


@dataclass(frozen=True)
class Measured:
    """One target, one case, one repetition."""

    target: str
    case: str
    cpu_s_per_million: float
    us_per_request: float
    spans_per_s: float
    peak_bytes: int
    idle_bytes: int
    p50_us: float
    bytes_per_span: float


def measure(name: str, target: Target, sink: Sink, case: Case, effort: Effort) -> Measured:
    """Loads a target that was just started.

    Raises:
        Broken: it refused something, lost something, or did not do the work.
    """
    port, requests = target.ports[case.protocol], effort.requests(case)
    idle, _ = targets.memory_bytes(target.pid)
    targets.load(case.protocol, port, case.spans, requests=max(1, int(requests * effort.warm)))
    sink.stats()
    before = targets.cpu_ns(target.pid)
    said = targets.load(case.protocol, port, case.spans, requests=requests)
    used_ns = targets.cpu_ns(target.pid) - before
    came = sink.stats()
    if said["refused"] or said["ok"] != requests:
        raise Broken(f"{name}, {case.name}: {said['refused']:.0f} of {requests} requests were refused")
    if came["spans"] != requests * case.spans:
        raise Broken(f"{name}, {case.name}: {requests * case.spans} spans acknowledged, {came['spans']} arrived")
    if (wrong := work.check_corrected(came["last"])) is not None:
        raise Broken(f"{name}, {case.name}: {wrong}")
    alone = targets.load(case.protocol, port, case.spans, requests=effort.alone, connections=1, streams=1)
    return Measured(
        name,
        case.name,
        used_ns / 1e9 / (requests * case.spans) * 1e6,
        used_ns / 1e3 / requests,
        requests * case.spans / said["seconds"],
        targets.memory_bytes(target.pid)[1],
        idle,
        alone["p50_us"],
        came["bytes"] / came["spans"],
    )


def session(binary: Path | None, effort: Effort, cases: tuple[Case, ...]) -> list[Measured]:
    """All measurements, the targets in turn."""
    found: list[Measured] = []
    with targets.sink() as sink:
        for repetition in range(effort.repetitions):
            for case in cases:
                straight = targets.load(
                    case.protocol, sink.port, case.spans, requests=effort.alone, connections=1, streams=1
                )
                found.append(Measured("sink", case.name, 0, 0, 0, 0, 0, straight["p50_us"], 0))
                names = [OURS, SLIM] if binary is None else [OURS, PEER, SLIM]
                for name in names if repetition % 2 else reversed(names):
                    with started(name, binary, case, sink) as target:
                        found.append(measure(name, target, sink, case, effort))
                    one = found[-1]
                    print(
                        f"bench: {one.case:15} {name:16} {one.cpu_s_per_million:6.2f} CPU-s per million spans, "
                        f"{one.us_per_request:6.0f} us a request, {one.peak_bytes / MIB:4.0f} MiB",
                        file=sys.stderr,
                        flush=True,
                    )
    return found


def started(name: str, binary: Path | None, case: Case, sink: Sink) -> contextlib.AbstractContextManager[Target]:
    """A new process of one of the targets."""
    if name == PEER:
        assert binary is not None
        return targets.collector(binary, case.protocol, sink.port)
    # The default is not named.
    return targets.sidecar(case.protocol, sink.port, settings={"attributes": "minimal"} if name == SLIM else {})


def active(target: Target) -> str:
    """Which kernel and transport a sidecar says that it uses, from its metrics; empty for others."""
    found = []
    for line in re.findall(r"^skewd_(?:build|transport)_info\{(.*)\}", target.scrape(), re.MULTILINE):
        said = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if "side" in said:
            found.append(f"{said.get('protocol', 'grpc')} {said['side']} {said.get('transport')}")
        else:
            found += [f"{key} {value}" for key, value in sorted(said.items()) if key not in ("component", "virtual")]
    return ", ".join(found)


def bytes_after(requests: int = 4) -> dict[tuple[str, str], float | None]:
    """Bytes a span, behind the sidecar, by mode and by ``[sidecar] attributes``; None where it has no such setting."""
    found: dict[tuple[str, str], float | None] = {}
    with targets.sink() as sink:
        for mode in ("tag", "rewrite"):
            for setting in SETTINGS:
                # The default is not named: a version without the key refuses it.
                more = {} if setting == SETTINGS[0] else {"attributes": setting}
                try:
                    with targets.sidecar("http", sink.port, mode, settings=more) as target:
                        sink.stats()
                        targets.load("http", target.ports["http"], 512, requests=requests)
                        came = sink.stats()
                        found[mode, setting] = came["bytes"] / came["spans"]
                except Broken as error:
                    if "attributes" not in str(error):
                        raise
                    found[mode, setting] = None
    return found


def versions(binary: Path | None) -> list[str]:
    skewd = Path(sys.executable).with_name("skewd")
    said = [", ".join(subprocess.run([skewd, "--version"], capture_output=True, text=True).stdout.split("\n")[:-1])]
    if binary is not None:
        named = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
        go = subprocess.run(["go", "version"], capture_output=True, text=True).stdout.split() if _has("go") else []
        said.append(f"{named} (OpenTelemetry Collector core and transform processor){', ' + go[2] if go else ''}")
    return said


def _has(program: str) -> bool:
    import shutil

    return shutil.which(program) is not None


def ratios(found: list[Measured], ours_is: str, case: Case, of: Callable[[Measured], float]) -> list[float]:
    """Collector / sidecar, repetition by repetition."""
    ours = [of(one) for one in found if (one.target, one.case) == (ours_is, case.name)]
    peer = [of(one) for one in found if (one.target, one.case) == (PEER, case.name)]
    return [theirs / mine for mine, theirs in zip(ours, peer, strict=False)]


def written(
    found: list[Measured],
    sizes: dict[tuple[str, str], float | None],
    effort: Effort,
    about: list[str],
    why_alone: str | None,
    cases: tuple[Case, ...] = CASES,
) -> str:
    """The report's section."""

    def values(target: str, case: Case, of: Callable[[Measured], float]) -> list[float]:
        return [of(one) for one in found if (one.target, one.case) == (target, case.name)]

    rows, others = [], []
    for case in cases:
        straight = median(values("sink", case, lambda one: one.p50_us))
        for target in (OURS, SLIM, PEER):
            if not (cost := values(target, case, lambda one: one.cpu_s_per_million)):
                continue
            rows.append(
                [
                    case.name,
                    target,
                    report.spread(cost),
                    report.spread(values(target, case, lambda one: one.us_per_request), "{:.0f}"),
                    report.spread(values(target, case, lambda one: one.spans_per_s / 1000), "{:.0f}k"),
                    report.spread(values(target, case, lambda one: one.peak_bytes / MIB), "{:.0f}"),
                    report.spread([us - straight for us in values(target, case, lambda one: one.p50_us)], "{:.0f}"),
                ]
            )
        for ours in (OURS, SLIM):
            if ratio := ratios(found, ours, case, lambda one: one.cpu_s_per_million):
                memory = ratios(found, ours, case, lambda one: one.peak_bytes)
                reached = "yes" if median(ratio) >= case.wanted else "**no**"
                smaller = "yes" if median(memory) >= 1 else "**no**"
                others.append([case.name, ours, report.spread(ratio), f"{case.wanted:g}", reached])
                others[-1] += [report.spread(memory), smaller]
    parts = [
        "## What it costs, beside an OpenTelemetry Collector",
        "`make bench` writes this (`benchmarks/sidecar/compare.py` says how it measures). Both rewrite: start, end and "
        "event times move by 3 ms; the Collector's transform processor upserts three attributes, the sidecar its eight "
        '(as it is configured at first) or two and four more for each Resource (`attributes = "minimal"`); both '
        f"acknowledge what the next hop acknowledged. Spans of {SPAN_BYTES} bytes, 16 requests under "
        f"way, {effort.repetitions} repetitions in turn: medians, with the lowest and highest.",
        "\n".join(f"- {line}" for line in [report.machine(), *about]),
    ]
    if why_alone is not None:
        parts.append(f"**The sidecar alone: {why_alone}.**")
    head = ["", "", "CPU-s per million spans", "CPU us a request", "spans/s", "peak MiB", "added p50, us"]
    parts.append(report.table(head, rows))
    if others:
        head = ["Collector / sidecar", "", "CPU", "wanted", "reached", "peak memory", "at most the Collector's"]
        parts.append(report.table(head, others))
    named = {SETTINGS[0]: "`span` (the default)", **{name: f"`{name}`" for name in SETTINGS[1:]}}
    rows = [
        [named[setting], *(_size(sizes, mode, setting) for mode in ("tag", "rewrite"))]
        for setting in SETTINGS
        if any((mode, setting) in sizes for mode in ("tag", "rewrite"))
    ]
    if rows:
        if theirs := values(PEER, cases[0], lambda one: one.bytes_per_span):
            rows.append(["the Collector's three attributes", "", f"{theirs[0]:.1f} (+{theirs[0] - SPAN_BYTES:.1f})"])
        parts.append(
            f"Bytes a span, {SPAN_BYTES} before (512 spans a request, with their share of what surrounds them):"
        )
        parts.append(report.table(["`[sidecar] attributes`", "tag", "rewrite"], rows))
    return "\n\n".join(parts)


def _size(sizes: dict[tuple[str, str], float | None], mode: str, setting: str) -> str:
    if (mode, setting) not in sizes:
        return ""
    after = sizes[mode, setting]
    return "not in this version" if after is None else f"{after:.1f} (+{after - SPAN_BYTES:.1f})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests, once: does it all still run?")
    parser.add_argument("--alone", action="store_true", help="without the Collector")
    parser.add_argument("--collector", metavar="FILE", help="this Collector instead of one built here")
    parser.add_argument("--repetitions", type=int, metavar="N", help="3 unless given")
    parser.add_argument("--cases", metavar="LIST", help="grpc-512,grpc-10,http-512,http-10; all unless given")
    parser.add_argument("--json", metavar="FILE", help="every measurement, too")
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"instead of docs/reports/{report.REPORT.name}")
    chosen = parser.parse_args(argv)
    effort = QUICK if chosen.quick else Effort()
    if chosen.repetitions:
        effort = Effort(**{**asdict(effort), "repetitions": chosen.repetitions})
    cases: tuple[Case, ...] = CASES
    if chosen.cases:
        named = {f"{case.protocol}-{case.spans}": case for case in CASES}
        try:
            cases = tuple(named[name] for name in chosen.cases.split(","))
        except KeyError as error:
            parser.error(f"--cases: no case {error}; write some of {', '.join(named)}")
    binary, why_alone = None, None
    if chosen.alone:
        why_alone = "asked for with --alone"
    else:
        try:
            binary = targets.build_collector(chosen.collector)
        except NoCollector as error:
            why_alone = str(error)
            print(f"bench: the sidecar alone: {error}", file=sys.stderr, flush=True)
    found = session(binary, effort, cases)
    about = versions(binary)
    with targets.sink() as sink, targets.sidecar("grpc", sink.port, metrics=True) as target:
        about.append(f"the sidecar says: {active(target)}")
    text = written(found, {} if chosen.quick else bytes_after(), effort, about, why_alone, cases)
    if chosen.json:
        Path(chosen.json).write_text(json.dumps([asdict(one) for one in found], indent=1))
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    elif not chosen.quick and cases == CASES:
        report.put("cost", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
