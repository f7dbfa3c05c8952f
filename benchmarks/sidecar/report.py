"""``docs/reports/sidecar.md``: sections that are written by different benchmarks, each leaving the others alone.

A section is what stands between its two marks. Pure, but for the file.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reports" / "sidecar.md"
SECTIONS = ("cost", "overload", "neighbours")
_HEAD = """# The sidecar: what it costs, what it bears, and who stands beside it

Written by the benchmarks named in each section. All of it is of one machine that has two cores and other work to do:
ratios of one run say more than figures.
"""


def replaced(text: str, section: str, content: str) -> str:
    """The report with one section's content exchanged (appended in the order of ``SECTIONS`` if it is new)."""
    found = dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", text, re.DOTALL))
    found[section] = "\n" + content.strip() + "\n\n"
    parts = [f"<!-- begin {name} -->\n{found[name]}<!-- end {name} -->\n" for name in SECTIONS if name in found]
    return "\n".join([_HEAD, *parts])


def put(section: str, content: str, path: Path = REPORT) -> None:
    """Writes one section."""
    text = path.read_text() if path.exists() else ""
    path.write_text(replaced(text, section, content))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """``median (lowest to highest)``."""
    if not values:
        return ""
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def machine() -> str:
    """What this ran on, without saying which machine it was."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
