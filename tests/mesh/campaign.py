"""The whole campaign on meshes: growth, traffic, plays, liars, protections taken away; and the report.

``python -m tests.mesh.campaign [--seeds N] [--liars N] [--largest N] [--processes N] [--keep DIRECTORY] [--out FILE]``
(``make simulate-mesh``). Ends with 1 if anything that is claimed does not hold. All follows from seeds but memory and
processor time, which are measured. What is done is kept (``parts.py``): ended and begun again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from skewd.fanout import requests_max
from tests.mesh.attempts import NEIGHBOURS, ROUNDS, Attempt, attempt
from tests.mesh.catching import catch
from tests.mesh.large import FANOUT, Congested, Growth, Traffic, congested, grow, memory, traffic
from tests.mesh.liars import WAYS
from tests.mesh.mutants import MUTANTS
from tests.mesh.parts import Parts
from tests.mesh.plays import PLAYS, TRAVEL_S, Played, play_named

SEEDS, LIARS = 4, 48
GROWN = (10, 30, 100, 200)
SENT = (10, 30, 100, 200, 1000)
HELD = (10, 30, 100, 200)
ROOT = Path(__file__).parent.parent.parent
REPORT, KEPT = ROOT / "docs" / "reports" / "mesh.md", ROOT / "build" / "mesh-campaign"


@dataclass
class Figures:
    """Everything that was found."""

    seeds: int
    liars: int
    largest: int = max(GROWN)
    grown: list[Growth] = field(default_factory=list)
    sent: list[Traffic] = field(default_factory=list)
    plays: dict[str, Played] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    held: dict[int, float] = field(default_factory=dict)
    caught: dict[str, str] = field(default_factory=dict)
    congested: Congested | None = None

    def claims(self) -> dict[str, bool]:
        """What must hold, and whether it does."""
        attempts, plays = list(self.attempts.values()), list(self.plays.values())
        tallies = [one.tally for one in attempts] + [one.tally for one in plays] + [one.tally for one in self.grown]
        checks, misses = sum(tally.total for tally in tallies), sum(len(tally.misses) for tally in tallies)
        accused = sum(len(tally.accused) for tally in tallies)
        count = sum(one.count for one in attempts)
        first = sum(tally.checks["first-hand"] for tally in tallies)
        through = sum(tally.checks["through others"] for tally in tallies)
        due, convicting = sum(one.due for one in attempts), sum(one.convicting for one in attempts)
        unable = sum(one.unable for one in attempts)
        jumps = sum(len(one.jumps) for one in plays) + sum(len(one.jumps) for one in attempts)
        changes = sum(one.changes for one in plays)
        apart = max((one.apart_s for one in plays), default=0.0)
        unsettled = sum(one.unsettled for one in plays)
        largest = max(self.grown, key=lambda one: (one.nodes, one.reference == "configured"))
        elected = max(self.grown, key=lambda one: (one.nodes, one.reference == "auto"))
        packets = max(one.packets[0] for one in self.sent)
        large = [one for one in self.sent if one.nodes >= 100] or self.sent[-1:]
        flat = max(
            max(by) / min(by) for by in ([one.packets[0] for one in large], [one.bytes_sent[0] for one in large])
        )
        least, most = large[0], large[-1]
        requests = requests_max(FANOUT)
        slow = self.congested
        return {
            f"{largest.nodes} nodes, reference configured: every one bounded against it within 15 rounds:"
            f" {largest.to_reference}": (largest.to_reference or 99) <= 15,
            f"and every pair within 60: {largest.to_pairs}": (largest.to_pairs or 99) <= 60,
            f"{elected.nodes} nodes, reference elected: every pair within 60 rounds: {elected.to_pairs}; all name one"
            f" after {elected.to_named}, are bounded against it after {elected.to_reference}": (
                (elected.to_pairs or 99) <= 60 and (elected.to_reference or 99) <= 60
            ),
            f"at any size a node sends no more than a constant, {2 * requests:g} packets a round on average (2 for each"
            f" of at most {requests:g} requests): {packets:.1f}": packets <= 2 * requests,
            f"and flat from {least.nodes} to {most.nodes} nodes: packets {least.packets[0]:.1f} and"
            f" {most.packets[0]:.1f}, bytes {least.bytes_sent[0]:,.0f} and {most.bytes_sent[0]:,.0f},"
            f" {flat:.2f} x at most": flat <= 1.3,
            f"no wrong bound in {checks:,} ({first:,} first-hand, {through:,} through others): {misses}": misses == 0,
            f"at least 1,000 attempts of a single liar with a valid key: {count:,}": count >= 1000,
            f"no honest member convicted: {accused}": accused == 0,
            f"contradicted by {NEIGHBOURS} honest neighbours or more, a liar is convicted by every honest member that"
            f" can know: {convicting} of {due} ({unable} can not: one other member is all that they hear through)": (
                0 < due == convicting
            ),
            f"a hand-over never moves published time by more than its uncertainty: {changes} changes, {jumps} do": (
                jumps == 0 and changes > 0
            ),
            f"connected members name one reference or say that they don't, but for {TRAVEL_S:g} s: {apart:g} s": (
                apart <= TRAVEL_S
            ),
            f"all plays end with one reference that all know of: {unsettled} do not": unsettled == 0,
            f"a congested direct path is bettered through others: {slow.bettered if slow else 0} of"
            f" {slow.pairs if slow else 0} pairs": slow is not None and 0 < slow.pairs == slow.bettered,
            **{f"without protection, '{name}', it is noticed": bool(by) for name, by in self.caught.items()},
        }


def say(text: str) -> None:
    print(text, flush=True)


def run(seeds: int, liars: int, largest: int, keep: Path, workers: int | None) -> Figures:
    """Everything."""
    figures = Figures(seeds, liars, largest)
    with ProcessPoolExecutor(workers) as processes:
        parts = Parts(keep, processes, __name__)
        grown = [
            parts.run(grow, nodes, reference, 60)
            for nodes in sorted(GROWN, reverse=True)
            if nodes <= largest
            for reference in ("configured", "auto")
        ]
        tried: dict[str, list[Future[Attempt]]] = {
            way: [parts.run(attempt, way, seed) for seed in range(liars)] for way in WAYS
        }
        sent = [parts.run(traffic, nodes) for nodes in SENT if nodes <= 5 * largest]
        held = {nodes: parts.run(memory, nodes) for nodes in HELD if nodes <= largest}
        caught = {mutant: parts.run(catch, mutant) for mutant in MUTANTS}
        slow = parts.run(congested, seeds)
        played = {what.name: [parts.run(play_named, what.name, seed) for seed in range(seeds)] for what in PLAYS}
        say(f"{parts.kept} parts are kept from before, {parts.new} are run")
        for name, futures in played.items():
            total = figures.plays[name] = Played()
            for future in futures:
                total.add(future.result())
            say(f"{name}: {total.tally.total:,} checks, {total.tally.misses[:3]} {total.jumps[:3]}"
                f" apart {total.apart_s:g} s, unsettled {total.unsettled}")  # fmt: skip
        for way, attempts in tried.items():
            sum_of = figures.attempts[way] = Attempt()
            for each in attempts:
                sum_of.add(each.result())
            say(f"{way}: {sum_of.tally.total:,} checks, {sum_of.tally.misses[:3]} {sorted(sum_of.tally.accused)[:3]}"
                f" convicting {sum_of.convicting} of {sum_of.due}")  # fmt: skip
        for name, noticed in caught.items():
            figures.caught[name] = noticed.result()
            say(f"mutant '{name}': {figures.caught[name] or 'NOT NOTICED'}")
        figures.congested = slow.result()
        figures.held = {nodes: one.result() for nodes, one in held.items()}
        figures.sent = [one.result() for one in sent]
        figures.grown = sorted((one.result() for one in grown), key=lambda one: (one.nodes, one.reference))
    return figures


def report(figures: Figures) -> str:
    """The page."""
    slow = figures.congested
    assert slow is not None
    lines = [
        "# Simulated meshes: who is bounded when, what it costs, what a liar can do",
        "",
        "Meshes of members that run the code that ships (`LinkProtocol`, `Node`, `Membership`, `RecordStore`,",
        "`compose`, `judge`, `Election`, `Plan`), without a socket, in true time that only the simulation knows: true",
        "clocks that move as their limits allow, messages that take random times and get lost. Everything that any",
        "honest member says is compared with the truth. Written by",
        "",
        "```",
        f"python3 tasks.py simulate-mesh --seeds {figures.seeds} --liars {figures.liars} --largest {figures.largest}",
        "```",
        "",
        "(`make simulate-mesh` runs more of it), and the same each time on one machine, but for memory and processor",
        "time. What runs: [tests/mesh](../../tests/mesh).",
        "",
        "## What is claimed",
        "",
        "| claim: figure | holds |",
        "| --- | --- |",
        *(f"| {text} | {'yes' if holds else '**NO**'} |" for text, holds in figures.claims().items()),
        "",
        "## As the mesh grows",
        "",
        "All members start at once, knowing each other's addresses and nothing else; k = 8, f = 1, one probe round a",
        "second. In rounds: until all name one reference, know that all do, are bounded against it; until every pair",
        "is bounded, first-hand or through others. Ages of the records held at the end, in seconds.",
        "",
        "| nodes | reference | all name it | all know | bounded against it | every pair | median age | 95 % | oldest |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {one.nodes} | {one.reference} | {one.to_named or '-'} | {one.to_agreed or '-'} |"
            f" {one.to_reference or '-'} | {one.to_pairs or '-'} |"
            f" {one.ages_s[0]:.1f} | {one.ages_s[1]:.1f} | {one.ages_s[2]:.1f} |"
            for one in figures.grown
        ),
        "",
        "What each sends in one round (rounds 7 to 12), mean and most of all members; the reference is configured. Two",
        "members that choose each other ask once for both, and where there are few all choose all: so a small mesh",
        "sends less, and what is sent grows to its limit until there are many more members than k. Up to 64 of them",
        "ask the reference in one round, however many there are: that is the most that one member sends. Memory (of",
        "one member, Python objects) and processor time (its share of the simulation's) are measured here, without",
        "composing; for that see `benchmarks/mesh_cost.py`.",
        "",
        "| nodes | requests | most | packets | most | bytes | most | KiB of memory | ms of CPU a round |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {one.nodes} | {one.requests[0]:.1f} | {one.requests[1]:.1f} | {one.packets[0]:.1f} |"
            f" {one.packets[1]:.1f} | {one.bytes_sent[0]:,.0f} | {one.bytes_sent[1]:,.0f} |"
            f" {f'{figures.held[one.nodes]:,.0f}' if one.nodes in figures.held else '-'} | {one.cpu_ms:.1f} |"
            for one in figures.sent
        ),
        "",
        "## Whatever happens",
        "",
        "Small meshes, nobody lies. *Changes*: of the clock that keeps the timescale, as each member's knots saw them,",
        "without a new epoch; *new epochs*: at most told by one member, the first timescale included.",
        "",
        "| what happens | bounds checked | wrong | changes | that moved time too far | epochs | apart (s) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {one.tally.total:,} | {len(one.tally.misses)} | {one.changes} | {len(one.jumps)} |"
            f" {one.epochs} | {one.apart_s:g} |"
            for name, one in figures.plays.items()
        ),
        "",
        f"A direct path of 20 ms each way in a mesh of 100 us: {slow.own_us:,.0f} us wide by own exchanges,"
        f" {slow.with_others_us:,.0f} us with",
        f"what f + 1 disjoint paths say (medians of {slow.pairs}).",
        "",
        "## Liars with a valid key",
        "",
        f"One among 6 to 12 members, {ROUNDS} rounds each. *Convicted*: attempts in which some honest member convicts",
        "it; not every lie contradicts anything, and one that does not moves nothing.",
        "",
        "| how it lies | attempts | bounds checked | through others | wrong | honest ones convicted | convicted |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {way} | {one.count} | {one.tally.total:,} | {one.tally.checks['through others']:,} |"
            f" {len(one.tally.misses)} | {len(one.tally.accused)} | {one.convicted} |"
            for way, one in figures.attempts.items()
        ),
        "",
        "## Protections taken away",
        "",
        "The code made wrong on purpose; a campaign that does not notice is no evidence.",
        "",
        "| what is missing | noticed by |",
        "| --- | --- |",
        *(f"| {name} | {by or '**nothing**'} |" for name, by in figures.caught.items()),
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simulate-mesh", description="meshes, liars, protections taken away, report")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each play ({SEEDS})")
    parser.add_argument("--liars", type=int, default=LIARS, help=f"seeds of each way to lie ({LIARS})")
    parser.add_argument("--largest", type=int, default=max(GROWN), help=f"largest whole mesh ({max(GROWN)})")
    parser.add_argument("--processes", type=int, help="how many run at once (one for each processor)")
    parser.add_argument("--keep", type=Path, default=KEPT, help="what is done already (build/mesh-campaign)")
    parser.add_argument("--out", type=Path, default=REPORT, help="where the report goes (docs/reports/mesh.md)")
    options = parser.parse_args(argv)
    figures = run(options.seeds, options.liars, options.largest, options.keep, options.processes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report(figures))
    claims = figures.claims()
    for text, holds in claims.items():
        say(f"{'ok  ' if holds else 'FAIL'} {text}")
    say(f"wrote {options.out}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
