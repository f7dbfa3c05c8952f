"""``docs/reports/fuzz-daemon.md``: what both fuzzers found the last time that they ran for long.

Each fuzzer has a section of its own, between two comments, and replaces nothing else. Limits: figures are of the
machine that they were made on, which the page says.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

REPORT = Path(__file__).parents[1] / "docs" / "reports" / "fuzz-daemon.md"


def machine() -> str:
    """What it ran on, in a few words."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} processors ({model}), Python {platform.python_version()}"


def write(section: str, lines: list[str]) -> None:
    """Replaces one section of the page."""
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    text = REPORT.read_text()
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{REPORT} has no section {section}; it begins with {begin} and ends with {end}")
    tail = rest.partition(end)[2]
    REPORT.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}")


def table(*rows: tuple[object, ...]) -> list[str]:
    """Rows of a table, the first of them its head."""
    head, *others = rows
    found = ["| " + " | ".join(str(cell) for cell in head) + " |", "|" + " --- |" * len(head)]
    return found + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in others]
