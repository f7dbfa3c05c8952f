"""Every table of the results as CSV, for whoever wants to draw their own picture.

One file for each kind of row, one column for each of its fields in the order of ``results.py``; what is itself a table
(verdicts, spreads) becomes a column for each of its keys, and lists of separations a row for each value.

Limits: text as CSV has it (RFC 4180, CRLF); empty means null. Pure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from skewd_pipeline.results import Results

LEFT_OUT = ("residuals_ns",)


def tables(results: Results) -> dict[str, str]:
    """By name (``rows``, ``rates``, ``windows``, ...), the CSV of each table that has a row."""
    kinds: dict[str, Iterable[Mapping[str, Any]]] = {
        "rows": map(_flat, results.runs),
        "calibration": ({"transport": name, **_flat(each)} for name, each in results.calibration.items()),
        "rates": map(_flat, results.rates),
        "loads": map(_flat, results.loads),
        "windows": map(_flat, results.windows),
        "clock": ({"run": run.run, **_flat(sample)} for run in results.long_runs for sample in run.clock),
        "events": ({"run": run.run, **_flat(event)} for run in results.long_runs for event in run.events),
        "confusion": map(_flat, results.confusion),
        "heuristics": map(_flat, results.heuristics),
        "bounds": map(_flat, results.bounds),
        "throughput": map(_flat, results.throughput),
        "trace": map(_flat, results.trace.spans if results.trace is not None else ()),
        "processes": map(_flat, results.processes),
        "claims": map(_flat, results.claims),
        "separations": (
            {
                "transport": each.transport,
                "rule": each.rule,
                "floor_ms": each.floor_ms,
                "edge": each.edge,
                "stage": each.stage,
                "direction": each.direction,
                "separation_ns": value,
            }
            for each in results.separations
            for value in each.separations_ns
        ),
    }
    made = {name: _csv(list(rows)) for name, rows in kinds.items()}
    return {name: text for name, text in made.items() if text}


def _flat(row: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(row).items():
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in value.items() if not isinstance(inner, Mapping)}
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}.{place}": inner for place, inner in enumerate(value)}
        else:
            found[name] = value
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
