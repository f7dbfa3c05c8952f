"""A small experiment's table, made up: what a good run over ZeroMQ would have left."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb

from skewd_pipeline import claims, figures
from skewd_pipeline.edges import FILE, Block, EdgeRow, Table, connect, constant, edge_rows
from skewd_pipeline.results import MODES, STAGES, Claim, Probe, Results
from skewd_pipeline.spans import (
    HOST_RAW,
    HOST_RAW_AFTER,
    HOST_RAW_SENT,
    HOST_RAW_SENT_AFTER,
    MESSAGE_ID,
    NOTED,
    RECEIVED,
    SENT,
    AttributeValue,
    SpanRecord,
)

US, MS = 1_000, 1_000_000
T0 = 1_700_000_000_000_000_000
RAW0 = 5_000_000_000_000
BESIDE_NS = 2 * US
"""How far each reading of the host's raw clock lies from the stamp."""


def truth_of(skew_ns: int, *, stage: str = "inference", direction: str = "behind") -> dict[str, int]:
    """By node, what must be added to its wall clock."""
    truth = dict.fromkeys(STAGES, 0)
    truth[stage] = skew_ns if direction == "behind" else -skew_ns
    return truth


def block_of(skew_ns: int, *, messages: int = 8, round: int = 0, purpose: str = "sweep", **more: str) -> Block:
    """A block in which every message came through and was right."""
    settings = {"transport": "zmq", "stage": "inference", "direction": "behind"} | more
    handled = dict.fromkeys(STAGES, "x" * messages) | {STAGES[-1]: "c" * messages}
    return Block(
        transport=settings["transport"],
        broker=None,
        client=None,
        cell=f"zmq {purpose} at {skew_ns / MS:g} ms",
        block=f"zmq-{purpose}-{skew_ns}-{round}",
        purpose=purpose,
        round=round,
        stage=settings["stage"],
        direction=settings["direction"],
        skew_ns=skew_ns,
        floor_ns=3_500 * US,
        rate=40.0,
        messages=messages,
        handled=handled,
    )


def raw_spans(
    block: Block,
    truth_ns: Mapping[str, int],
    *,
    work_ns: int = 3_500 * US,
    delay_ns: int = 200 * US,
    late_every: int = 7,
) -> list[SpanRecord]:
    """One span per stage and message, as the nodes' clocks would have stamped them.

    Args:
        late_every: of so many messages, one is noted by its sender after the receiver had it.
    """  # fmt: skip
    draws = random.Random(f"{block.block}/{work_ns}/{delay_ns}")
    spans = []
    trace = f"{zlib.crc32(block.block.encode()):024x}"
    for number in range(block.messages):
        at_ns = number * 25 * MS
        parent = ""
        for stage in STAGES:
            own_ns, hop_ns = work_ns + draws.randrange(400 * US), delay_ns + draws.randrange(100 * US)
            wall = T0 + at_ns - truth_ns[stage]
            sent = wall + own_ns
            events = {} if stage == STAGES[0] else {RECEIVED: wall}
            attributes: dict[str, AttributeValue] = {
                MESSAGE_ID: f"{block.block}/{number}",
                HOST_RAW: RAW0 + at_ns - BESIDE_NS,
                HOST_RAW_AFTER: RAW0 + at_ns + BESIDE_NS,
            }
            if stage != STAGES[-1]:
                late = late_every and number % late_every == late_every - 1
                events |= {SENT: sent, NOTED: sent + (hop_ns + 300 * US if late else 20 * US)}
                attributes[HOST_RAW_SENT] = RAW0 + at_ns + own_ns - BESIDE_NS
                attributes[HOST_RAW_SENT_AFTER] = RAW0 + at_ns + own_ns + BESIDE_NS
            span_id = f"{number:08x}{STAGES.index(stage):08x}"
            end = sent + 30 * US + (hop_ns + 300 * US)
            spans.append(SpanRecord(span_id, parent, f"{trace}{number:08x}", stage, wall, end, attributes, events))
            parent = span_id
            at_ns += own_ns + hop_ns
    return spans


def tagged(
    spans: Iterable[SpanRecord], truth_ns: Mapping[str, int], *, error_ns: int = 3 * US, uncertainty_ns: int = 9 * US
) -> list[SpanRecord]:
    """The same spans with tags: the truth, wrong by ``error_ns`` on every node but the reference."""
    found = []
    for span in spans:
        reference = span.stage == "preprocess"
        attributes: dict[str, AttributeValue] = {
            **span.attributes,
            "clock.offset_ns": truth_ns[span.stage] + (0 if reference else error_ns),
            "clock.uncertainty_ns": 0 if reference else uncertainty_ns,
            "clock.reference": "node:preprocess",
            "clock.status": "synchronized",
            "clock.node.name": span.stage,
            "clock.corrected": False,
        }
        found.append(replace(span, attributes=attributes))
    return found


def rewritten(spans: Iterable[SpanRecord]) -> list[SpanRecord]:
    """Tagged spans, moved by what their tags say."""
    found = []
    for span in spans:
        by = int(span.attributes["clock.offset_ns"])
        attributes: dict[str, AttributeValue] = {
            **span.attributes,
            "clock.corrected": True,
            "clock.original.start_time_unix_nano": span.start_ns,
            "clock.original.end_time_unix_nano": span.end_ns,
        }
        events = {name: at + by for name, at in span.events.items()}
        found.append(
            replace(span, start_ns=span.start_ns + by, end_ns=span.end_ns + by, events=events, attributes=attributes)
        )
    return found


def all_modes(
    block: Block,
    truth_ns: Mapping[str, int],
    modes: Sequence[str] = MODES,
    *,
    error_ns: int = 3 * US,
    uncertainty_ns: int = 9 * US,
) -> dict[str, list[SpanRecord]]:
    """What each mode's way would have brought."""  # fmt: skip
    raw = raw_spans(block, truth_ns)
    tags = tagged(raw, truth_ns, error_ns=error_ns, uncertainty_ns=uncertainty_ns)
    every = {"off": raw, "tag": tags, "rewrite": rewritten(tags)}
    return {mode: every[mode] for mode in modes}


def rows_at(skew_ns: int, *, round: int = 0, messages: int = 8, modes: Sequence[str] = MODES) -> list[EdgeRow]:
    """One block's rows."""
    block, truth = block_of(skew_ns, round=round, messages=messages), truth_of(skew_ns)
    return list(edge_rows(block, all_modes(block, truth, modes), constant(truth)))


def good_rows() -> list[EdgeRow]:
    """Two rounds at 0, 3, 5 and 10 ms: by span-start every edge breaks between 3.7 and 4.2 ms."""
    return [row for round in range(2) for skew_ms in (0, 3, 5, 10) for row in rows_at(skew_ms * MS, round=round)]


def good_probes() -> list[Probe]:
    """What ``skewd check`` says where it is right."""
    return [
        Probe(
            situation=situation, command="skewd check", exit_code=code, line="said", perfdata="offset=0s", seconds=0.1
        )
        for situation, code in (("no daemon", 3), ("0 ms", 0), ("5 ms", 2))
    ]


def connect_rows(rows: Iterable[EdgeRow], scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database with these rows as its table ``edges``, by way of a file in ``scratch``; its views are made."""
    with Table(scratch / "edges.csv") as table:
        table.add(rows)
        table.write(scratch / FILE)
    database = connect(scratch / FILE)
    claims.prepare(database)
    figures.prepare(database)
    return database


def judged(rows: Sequence[EdgeRow], scratch: Path, probes: Sequence[Probe] | None = None) -> dict[str, Claim]:
    """The claims on these rows, by their names."""
    results = Results(runs=[], host={}, versions={}, probes=list(good_probes() if probes is None else probes))
    with connect_rows(rows, scratch) as database:
        return {claim.id: claim for claim in claims.claims(results, database)}


def failed(found: Mapping[str, Claim]) -> set[str]:
    """The claims that do not hold."""
    return {name for name, claim in found.items() if claim.verdict == "fails"}
