"""The one table that every figure of the experiment is computed from: a row for each edge, in each mode.

The problem: a figure that was counted while the experiment ran can't be counted again, and a claim that was judged by
the program that made it can't be disagreed with. The insight: keep what happened and nothing else. An edge is one
message's way from one stage to the next; its row has the stamps as that mode's spans gave them to the backend, the
readings of the host's raw clock on both sides of each stamp, what had truly to be added to each clock, the tags, the
verdicts, how often each span arrived, and what became of the message. ``claims.sql`` and `figures.py` only ask
questions of it, so that anyone can ask others: ``duckdb -c "SELECT ... FROM 'edges.parquet'"``.

A row is there for every message that was planned and every pair of neighbouring stages, whether or not any span of it
arrived: what was lost shows as a row without stamps, never as a row that is missing. ``*_made`` is the stage's own
account of whether it handled the message.

The truth is an interval: what must be added to a node's wall clock to reach the reference's, at some instant between
the two raw readings around the stamp. Where no clock is changed, both ends are equal.

Limits: times are int64 nanoseconds; a column that does not apply is empty. Pure, but for `Table`, which holds the rows
in a file of its own until they are written.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import duckdb

from skewd_pipeline.law import violable_edge
from skewd_pipeline.results import MODES, STAGES
from skewd_pipeline.spans import (
    HOST_RAW,
    HOST_RAW_AFTER,
    HOST_RAW_SENT,
    HOST_RAW_SENT_AFTER,
    MESSAGE_ID,
    NOTED,
    RECEIVED,
    SENT,
    SpanRecord,
)
from skewd_sidecar.causality import Stamp, judge, stamp_from_attributes

FILE = "edges.parquet"
OUTCOMES = {"c": "correct", "w": "wrong"}
"""What the consumer says of a message; every other letter, or none, is ``missing``."""

Truth = Callable[[str, int, int], tuple[int, int]]
"""(node, first, last): what must be added to the node's wall clock to reach the reference's, at an instant of the
host's raw clock that lies between these two: the least and the greatest, in ns."""


def constant(truth_ns: Mapping[str, int]) -> Truth:
    """The truth while no clock is changed."""
    return lambda node, first_ns, last_ns: (truth_ns[node], truth_ns[node])


@dataclass(frozen=True, slots=True)
class Block:
    """What is known of a block of messages without looking at its spans.

    Attributes:
        cell: the blocks of one cell share it.
        handled: by stage, a letter for each message, in their order: what the stage says of it. ``-`` is a message
            that it never had; the consumer says ``c`` (a correct answer) or ``w`` (a wrong one).
    """

    transport: str
    broker: str | None
    client: str | None
    cell: str
    block: str
    purpose: str
    round: int
    stage: str
    direction: str
    skew_ns: int
    floor_ns: int
    rate: float | None
    messages: int
    handled: Mapping[str, str]


@dataclass(slots=True)
class EdgeRow:
    """One row. Times in ns, as stamped and, under ``rewrite``, as corrected; see the module for the rest.

    ``counted``: the edge that the skew can violate. ``*_raw_lo_ns`` and ``*_raw_hi_ns``: the host's raw clock before
    and after the stamp. A stage stamps its span's start when it takes the message up, so ``receiver_start`` is also the
    instant of ``receiver_received``.
    """

    transport: str
    broker: str | None
    client: str | None
    cell: str
    block: str
    purpose: str
    round: int
    message: int
    mode: str
    sender: str
    receiver: str
    counted: bool
    stage: str
    direction: str
    skew_ns: int
    floor_ns: int
    rate: float | None
    output: str
    trace_id: str | None = None
    sender_made: bool = False
    receiver_made: bool = False
    sender_copies: int = 0
    receiver_copies: int = 0
    sender_start_ns: int | None = None
    sender_sent_ns: int | None = None
    sender_noted_ns: int | None = None
    sender_end_ns: int | None = None
    receiver_start_ns: int | None = None
    receiver_received_ns: int | None = None
    receiver_end_ns: int | None = None
    sender_start_raw_lo_ns: int | None = None
    sender_start_raw_hi_ns: int | None = None
    sender_sent_raw_lo_ns: int | None = None
    sender_sent_raw_hi_ns: int | None = None
    receiver_start_raw_lo_ns: int | None = None
    receiver_start_raw_hi_ns: int | None = None
    sender_start_truth_lo_ns: int | None = None
    sender_start_truth_hi_ns: int | None = None
    sender_sent_truth_lo_ns: int | None = None
    sender_sent_truth_hi_ns: int | None = None
    receiver_start_truth_lo_ns: int | None = None
    receiver_start_truth_hi_ns: int | None = None
    sender_offset_ns: int | None = None
    sender_uncertainty_ns: int | None = None
    receiver_offset_ns: int | None = None
    receiver_uncertainty_ns: int | None = None
    verdict_span_start: str | None = None
    verdict_send_receive: str | None = None
    verdict_stamp_after_send: str | None = None

    def separation_ns(self, rule: str) -> int | None:
        """The true gap, by stamps and truth; None where a stamp is missing or the truth is not one number."""
        sent_ns, low_ns, high_ns = (
            (self.sender_start_ns, self.sender_start_truth_lo_ns, self.sender_start_truth_hi_ns)
            if rule == "span-start"
            else (self.sender_sent_ns, self.sender_sent_truth_lo_ns, self.sender_sent_truth_hi_ns)
        )
        received_ns = self.receiver_start_ns if rule == "span-start" else self.receiver_received_ns
        if sent_ns is None or received_ns is None or low_ns is None or self.receiver_start_truth_lo_ns is None:
            return None
        if low_ns != high_ns or self.receiver_start_truth_lo_ns != self.receiver_start_truth_hi_ns:
            return None
        return received_ns + self.receiver_start_truth_lo_ns - sent_ns - low_ns


_SQL_TYPES = {"str": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN"}
COLUMNS = {field.name: _SQL_TYPES[str(field.type).split(" ")[0]] for field in dataclasses.fields(EdgeRow)}
_NAMES = tuple(COLUMNS)


def _number(span: SpanRecord) -> int | None:
    """Which message of its block a span is about."""
    last = str(span.attributes.get(MESSAGE_ID, "")).rpartition("/")[2]
    return int(last) if last.isdecimal() else None


def _int(span: SpanRecord, name: str) -> int | None:
    value = span.attributes.get(name)
    return value if isinstance(value, int) else None


@dataclass(slots=True)
class _Arrived:
    """A span as it arrived, and how often."""

    span: SpanRecord
    copies: int = 1


def _by_message(spans: Iterable[SpanRecord]) -> dict[tuple[int, str], _Arrived]:
    """By message and stage."""
    arrived: dict[tuple[int, str], _Arrived] = {}
    for span in spans:
        number = _number(span)
        if number is None:
            continue
        known = arrived.setdefault((number, span.stage), _Arrived(span, 0))
        known.copies += 1
    return arrived


def edge_rows(
    block: Block, spans_by_mode: Mapping[str, Iterable[SpanRecord]], truth: Truth, *, prefix: str = "clock."
) -> Iterator[EdgeRow]:
    """All rows of a block, by message, edge and mode.

    Args:
        spans_by_mode: what came out of each mode's way, all of this block.
    """
    violable = violable_edge(block.stage, block.direction)
    modes = {mode: _by_message(spans_by_mode[mode]) for mode in MODES if mode in spans_by_mode}
    for message in range(block.messages):
        made = {stage: message < len(said) and said[message] != "-" for stage, said in block.handled.items()}
        said = block.handled.get(STAGES[-1], "")
        output = OUTCOMES.get(said[message], "missing") if message < len(said) else "missing"
        for sender, receiver in pairwise(STAGES):
            for mode, arrived in modes.items():
                row = EdgeRow(
                    transport=block.transport,
                    broker=block.broker,
                    client=block.client,
                    cell=block.cell,
                    block=block.block,
                    purpose=block.purpose,
                    round=block.round,
                    message=message,
                    mode=mode,
                    sender=sender,
                    receiver=receiver,
                    counted=(sender, receiver) == violable,
                    stage=block.stage,
                    direction=block.direction,
                    skew_ns=block.skew_ns,
                    floor_ns=block.floor_ns,
                    rate=block.rate,
                    output=output,
                    sender_made=made.get(sender, False),
                    receiver_made=made.get(receiver, False),
                )
                _fill(row, arrived.get((message, sender)), arrived.get((message, receiver)), truth, prefix)
                yield row


def _fill(row: EdgeRow, sender: _Arrived | None, receiver: _Arrived | None, truth: Truth, prefix: str) -> None:
    if sender is not None:
        span = sender.span
        row.trace_id = span.trace_id
        row.sender_copies = sender.copies
        row.sender_start_ns, row.sender_end_ns = span.start_ns, span.end_ns
        row.sender_sent_ns, row.sender_noted_ns = span.events.get(SENT), span.events.get(NOTED)
        row.sender_start_raw_lo_ns, row.sender_start_raw_hi_ns = _int(span, HOST_RAW), _int(span, HOST_RAW_AFTER)
        row.sender_sent_raw_lo_ns, row.sender_sent_raw_hi_ns = (
            _int(span, HOST_RAW_SENT),
            _int(span, HOST_RAW_SENT_AFTER),
        )
        row.sender_start_truth_lo_ns, row.sender_start_truth_hi_ns = _at(
            truth, row.sender, row.sender_start_raw_lo_ns, row.sender_start_raw_hi_ns
        )
        row.sender_sent_truth_lo_ns, row.sender_sent_truth_hi_ns = _at(
            truth, row.sender, row.sender_sent_raw_lo_ns, row.sender_sent_raw_hi_ns
        )
        row.sender_offset_ns, row.sender_uncertainty_ns = _tag(span, prefix)
    if receiver is not None:
        span = receiver.span
        row.receiver_copies = receiver.copies
        row.receiver_start_ns, row.receiver_end_ns = span.start_ns, span.end_ns
        row.receiver_received_ns = span.events.get(RECEIVED)
        row.receiver_start_raw_lo_ns, row.receiver_start_raw_hi_ns = _int(span, HOST_RAW), _int(span, HOST_RAW_AFTER)
        row.receiver_start_truth_lo_ns, row.receiver_start_truth_hi_ns = _at(
            truth, row.receiver, row.receiver_start_raw_lo_ns, row.receiver_start_raw_hi_ns
        )
        row.receiver_offset_ns, row.receiver_uncertainty_ns = _tag(span, prefix)
    if sender is None or receiver is None or row.mode == "off":
        return

    def verdict(sent_ns: int | None, received_ns: int | None) -> str | None:
        if sent_ns is None or received_ns is None:
            return None
        found = judge(_stamp(sent_ns, sender, prefix), _stamp(received_ns, receiver, prefix))
        return "unsynchronized" if found is None else str(found.value)

    row.verdict_span_start = verdict(row.sender_start_ns, row.receiver_start_ns)
    row.verdict_send_receive = verdict(row.sender_sent_ns, row.receiver_received_ns)
    row.verdict_stamp_after_send = verdict(row.sender_noted_ns, row.receiver_received_ns)


def _stamp(time_ns: int, arrived: _Arrived, prefix: str) -> Stamp:
    return stamp_from_attributes(time_ns, arrived.span.attributes, prefix)


def _at(truth: Truth, node: str, first_ns: int | None, last_ns: int | None) -> tuple[int | None, int | None]:
    return (None, None) if first_ns is None or last_ns is None else truth(node, first_ns, last_ns)


def _tag(span: SpanRecord, prefix: str) -> tuple[int | None, int | None]:
    offset_ns, uncertainty_ns = _int(span, prefix + "offset_ns"), _int(span, prefix + "uncertainty_ns")
    return (None, None) if offset_ns is None or uncertainty_ns is None else (offset_ns, uncertainty_ns)


def separations_ns(rows: Iterable[EdgeRow], rule: str, edge: tuple[str, str]) -> list[int]:
    """True gaps of one edge in the order of the messages, each once, whatever modes were run."""
    found: dict[tuple[str, int], int] = {}
    for row in rows:
        if (row.sender, row.receiver) == edge and row.mode != "rewrite":
            gap_ns = row.separation_ns(rule)
            if gap_ns is not None:
                found.setdefault((row.block, row.message), gap_ns)
    return list(found.values())


class Table:
    """Rows on their way into the file. A context manager: the rows kept in ``path`` are gone at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self.rows = 0

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, rows: Iterable[EdgeRow]) -> None:
        """Keeps these rows."""
        for row in rows:
            self._writer.writerow([getattr(row, name) for name in _NAMES])
            self.rows += 1

    def write(self, path: Path) -> None:
        """Writes all rows kept so far as a Parquet file, whole or not at all."""
        self._file.flush()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        with connect() as database:
            # Nothing is guessed: a sample of rows must not decide how the others are read.
            written = database.read_csv(
                str(self._path), header=False, columns=COLUMNS, auto_detect=False, delimiter=",", quotechar='"',
                escapechar='"',
            )  # fmt: skip
            written.write_parquet(str(unfinished), compression="zstd")
        os.replace(unfinished, path)


def connect(path: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A database in memory; with the edges of a run's file, or of several (a pattern), as its table ``edges``."""
    database = duckdb.connect(config={"threads": "1"})
    if path is not None:
        database.read_parquet(str(path)).create("edges")
    return database
