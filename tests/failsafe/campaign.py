"""All cells, and what they came to: ``python -m tests.failsafe.campaign [--only TEXT] [--jobs N] [--json FILE]``.

(``make failsafe``.) Writes docs/reports/failsafe.md and the table in docs/operations.md, unless only some cells were
asked for. Exit 0: every cell is fail-safe, but for those in ``NOT_YET``; 1: one is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests import conftest, waiting
from tests.failsafe import cells
from tests.failsafe.lab import ROOT, Look, lacking, plain
from tests.failsafe.not_yet import BEFORE, NOT_YET

assert not conftest._held(), "importing it gives up setting clocks"

REPORT, OPERATIONS = ROOT / "docs" / "reports" / "failsafe.md", ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- failsafe: written by tests/failsafe/campaign.py -->", "<!-- failsafe: end -->"
_LINE_MAX = 140
_OF_THE_TEST = ("virtual-clock", "own-address", "source-failing")
"""Problems that are there for the test's sake, or that come and go with each answer."""


def played(config: str, fault: str, limit_s: float) -> dict[str, Any]:
    """A cell's outcome as plain data."""
    waiting.LIMIT_S = limit_s
    begun = time.monotonic()
    try:
        result = cells.run(config, fault)
    except Exception as error:  # one cell must not end the campaign
        result = cells.Result(
            config, fault, cells.EXPECTED[config, fault], None, None, (f"{type(error).__name__}: {error}",)
        )
    during = result.during
    return {
        "config": config,
        "fault": fault,
        "end": result.expected.end,
        "faults": list(result.faults),
        "waitsync": result.waitsync,
        "last": _told(result.last),
        "during": None if during is None else {"waitsync": during[1], "last": _told(during[0])},
        "took_s": round(time.monotonic() - begun, 1),
    }


def _told(look: Look | None) -> dict[str, Any] | None:
    if look is None:
        return None
    said = {"status": look.word, "exit": look.exit, "line": plain(look.line), "ready": look.ready}
    return {**said, "problems": sorted(look.problems)}


def answers(one: dict[str, Any]) -> tuple[str, ...]:
    """The table's columns for an outcome."""
    last = one["last"]
    if last is None:
        return ("no answer", "-", "-", "-")
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[last["exit"]]
    codes = ", ".join(f"`{code}`" for code in last["problems"] if code not in _OF_THE_TEST)
    line = last["line"].replace(" [VIRTUAL CLOCK: a test hook, not this host's time]", "")
    line = re.sub(r" \([^)]*:99[^)]*\)", "", line)
    line = re.sub(r"\bann\b", "this node", re.sub(r"\b(bob|cyd)\b", "a peer", line))
    line = line if len(line) <= _LINE_MAX else line[: _LINE_MAX - 3] + "..."
    return (f"{last['exit']} {word}: {line}", str(one["waitsync"]), str(last["ready"]), codes or "none")


def table(results: Iterable[dict[str, Any]]) -> list[str]:
    """What each says, one row for cells that say the same."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in results:
        while_it_lasts = answers(one["during"]) if one.get("during") else answers(one)
        rows.setdefault((one["fault"], *while_it_lasts), []).append(one["config"])
    lines = [
        "| what happens | to | `skewd check` | `waitsync` | `/readyz` | problems |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    order = list(cells.FAULTS)
    for (fault, *said), configs in sorted(rows.items(), key=lambda row: order.index(row[0][0])):
        lines.append(f"| {cells.FAULTS[fault][2]} | {', '.join(configs)} | {' | '.join(said)} |")
    return lines


def report(results: list[dict[str, Any]]) -> str:
    """docs/reports/failsafe.md."""
    failed = [one for one in results if one["faults"]]
    lines = [
        "# Fail-safe by default: every documented configuration under every fault",
        "",
        "Real daemons in a network namespace of their own, on clocks whose truth is known, with time servers, peers",
        "and strangers that do what they are told. Each cell is one configuration under one fault. Whatever happens,",
        "the status, `skewd check`, `skewd now` and the published segment are compared with the truth the whole time,",
        "and neither `skewd check` nor `skewd waitsync` may end with 0, nor `/readyz` with 200, while the node has not",
        "what its configuration asks for. Written by `python3 tasks.py failsafe` (`make failsafe`); the same cells are",
        "tests ([tests/failsafe](../../tests/failsafe)).",
        "",
        f"**{len(results)} cells, {len(results) - len(failed)} as they must be.** Before the daemon was made fail-safe"
        f" {len(results) - sum((one['config'], one['fault']) in BEFORE for one in results)} were.",
        "",
        "## Configurations",
        "",
        *(f"- *{name}*: {what}" for name, what in cells.CONFIGS.items()),
        "",
        "## Cells",
        "",
        "*Must end*: `ok`, all judges say that all is well; `refused`, no judge ever says so; `warned`, there is a",
        "bound, and the check is not OK.",
        "",
        "| fault | configuration | must end | now | before |",
        "| --- | --- | --- | --- | --- |",
    ]
    order = list(cells.FAULTS)
    for one in sorted(results, key=lambda one: order.index(one["fault"])):
        cell = one["config"], one["fault"]
        now = "**fails**: " + _brief(one["faults"][0]) if one["faults"] else "as it must be"
        before = _brief(BEFORE.get(cell, "as it must be"))
        lines.append(f"| {cells.FAULTS[one['fault']][2]} | {one['config']} | {one['end']} | {now} | {before} |")
    lines += ["", "## What each says at the end", "", *table(results), ""]
    return "\n".join(lines)


def _brief(text: str) -> str:
    text = plain(" ".join(text.split()))
    return text if len(text) <= 160 else text[:157] + "..."


def put_table(results: list[dict[str, Any]]) -> None:
    """The table in docs/operations.md, between its two marks."""
    text = OPERATIONS.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{OPERATIONS} lacks the marks between which the table goes")
    OPERATIONS.write_text(f"{before}{BEGIN}\n{chr(10).join(table(results))}\n{END}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="failsafe", description="every documented configuration under every fault")
    parser.add_argument("--only", default="", help="cells whose name, CONFIGURATION/FAULT, has this text")
    parser.add_argument("--json", type=Path, help="write the outcomes there too")
    parser.add_argument("--limit", type=float, default=waiting.LIMIT_S, help="seconds that anything may take")
    parser.add_argument("--jobs", type=int, default=2, help="how many cells at once (2)")
    options = parser.parse_args(arguments)
    if lacking():
        print(f"this needs {lacking()}", file=sys.stderr)
        return 1
    wanted = [cell for cell in cells.EXPECTED if options.only in "/".join(cell)]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for task in [pool.submit(played, *cell, options.limit) for cell in wanted]:
            results.append(task.result())
            one = results[-1]
            ended = f"FAILS {_brief(one['faults'][0])}" if one["faults"] else "holds"
            print(f"{one['config']}/{one['fault']}: {ended} ({one['took_s']} s)", flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    failed = {(one["config"], one["fault"]) for one in results if one["faults"]}
    print(f"{len(results)} cells, {len(failed)} fail, {len(failed - NOT_YET.keys())} of them unexpectedly")
    if not options.only:
        REPORT.write_text(report(results))
        put_table(results)
        print(f"wrote {REPORT} and the table in {OPERATIONS}")
    return 1 if failed - NOT_YET.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
