"""Writes a clock's correction into serialized spans, without ever parsing them.

A span in OTLP is a few hundred bytes of which a correction concerns eight or sixteen. Decoding it into objects and
encoding it again costs an order of magnitude more than the change, and loses what the decoder does not know. But the
times are ``fixed64``, so they can be shifted in place, and an attribute is one more field at the end of its span:
the wire format needs only to be *walked*, and three nested lengths repaired. The result is an edit list over the
received bytes; what is not edited is the received bytes.

The rules, which a native twin of this package obeys too:

- Fields come in any order. Of a singular scalar that occurs twice the last one counts, and every occurrence is
  shifted. A field of ours with another wire type is an unknown field. Unknown fields, groups included, are kept byte
  for byte, and so is every length that did not change, however it was encoded.
- A singular submessage that occurs twice (a Resource, a KeyValue's value) is merged: what both hold counts.
- Attributes are upserted: all of ours that a span carries go, one of each is appended. A key that occurs twice within
  one KeyValue counts with its last value.
- A time of 0, or none, means "unknown": it is never shifted and never created. A shift that would leave 1..2^64-1
  anywhere in a span is not done at all: that span keeps its times and is tagged instead.
- Malformed (a length past its message's end, a field 0, wire types 6 and 7, a group that does not match, varints
  longer than they may be): the request is refused whole, in every mode alike.
- ``clock.corrected = true`` on the reference in force passes unchanged. On another reference a rewrite re-bases from
  the originals; where that cannot be done (no bound now, no originals and no offset), and under ``tag``, which moves
  nothing, the span passes unchanged, since what it says of itself is still true.

- What the node's clock did not stamp is left as it is. A stamp later than the node's own reading (``until_ns``) is
  asked of the source, which knows what the clock can have shown: a span with such a start or end is unsynchronized, and
  such an event stays.
- What arrives under our names is believed (``Incoming.TRUST``) or taken for an application's claim
  (``Incoming.REPLACE``): then it is removed, from the Resource too, and times are raw stamps, whatever it says of them.

**A rewrite keeps a span's shape** (``Stamps``). What lay between start and end stays there, in order. Where nobody
knows how stamps were taken, all of a span move by the start's offset: an SDK that anchors itself to one reading of the
wall clock counts on from there whatever becomes of the clock, and a constant keeps every order. Where each is known to
be a reading of the wall clock, each moves by the offset of its own instant: over minutes a clock drifts, and a step
inside a span leaves its end as right as its start. Two eras of a clock can claim one reading; if that would turn the
order of what lies between start and end, all move by the start's after all.

The tag speaks for the whole span: ``t + offset`` is right within the uncertainty for its start, its end and its
events. What moved by its own offset is right within its own uncertainty; all else counts as seen from the start's
offset, so a clock that was stepped in the middle of a span is not hidden by the tag. Where stamps are the wall's and
the offsets of start and end differ by more than either is uncertain, the end's is told (``end.offset_ns``). A span
whose end no bound covers is unsynchronized. An event that none covers goes with its span.

**Where it is written** (``Placement``). The node's name never changes, and may be written once, on the Resource. A
reader takes a fact that a span lacks from its Resource, and so does this module. Facts that a trusted Resource brought
along stay, since spans that pass unchanged may rely on them, and a span does not say them again.

Log records are patched by the same rules: ``time_unix_nano`` is their start, and ``observed_time_unix_nano`` an end
that is not needed: the same SDK on the same node stamps it, as a rule. Where no bound covers it, this node's clock did
not stamp it: it stays, and the record is corrected by its time. A record with only an observed time is corrected by it;
one with neither, and a span with no time at its start, its end and its events, says nothing that a clock could correct,
and passes unchanged.

On its way a body meets ``batch.py`` (down to the spans), ``span.py`` or ``log_record.py`` (what lies where in one),
``decision.py`` (what becomes of it), ``edits.py`` (what that does to the bytes). ``attributes.py`` is what we write,
``facts.py`` who says what is common, ``wire.py`` the format. Before all of them ``census.py`` counts what there is.

Limits: what lies deeper than the fields read here (links, the values of other people's attributes, the attributes of
events) is carried unread: whether it is well-formed is for the receiver to say. Offsets and
uncertainties fit in 64 bits. Groups nest ``GROUPS_MAX`` deep. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from skewd.bounds.history import Correction
from skewd.bounds.table import ALWAYS_NS, Table
from skewd_sidecar.patch.attributes import FACTS, NAMES, RESOURCE, Record, attributes_of
from skewd_sidecar.patch.batch import Walk
from skewd_sidecar.patch.census import (
    ELEMENTS_MAX,
    RECORDS_MAX,
    Census,
    TooMuch,
    count_fields,
    refuse_too_much,
    take_census,
)
from skewd_sidecar.patch.decision import Decision
from skewd_sidecar.patch.edits import Edits
from skewd_sidecar.patch.facts import Facts
from skewd_sidecar.patch.log_record import LogRecordReader
from skewd_sidecar.patch.options import (
    PREFIX_MAX_BYTES,
    Action,
    CorrectionAt,
    Incoming,
    Mode,
    PatchOptions,
    PatchResult,
    Placement,
    Stamps,
)
from skewd_sidecar.patch.span import SpanReader
from skewd_sidecar.patch.wire import GROUPS_MAX, MalformedRequest, check_message

__all__ = [
    "ELEMENTS_MAX", "FACTS", "GROUPS_MAX", "NAMES", "PREFIX_MAX_BYTES", "RECORDS_MAX", "Action", "Census",
    "CorrectionAt", "Incoming", "MalformedRequest", "Mode", "PatchOptions", "PatchResult", "Placement", "Stamps",
    "TooMuch", "check_message", "count_fields", "patch_logs", "patch_traces", "record_growth_bytes",
    "refuse_too_much", "take_census",
]  # fmt: skip


def patch_traces(
    body: bytes,
    options: PatchOptions,
    correction_at: CorrectionAt,
    table: Table | None = None,
    until_ns: int | None = None,
) -> PatchResult:
    """Corrects every span of a serialized ``ExportTraceServiceRequest``.

    Args:
        body: the request as received, not compressed.
        options: what to do.
        correction_at: asked for stamps that the table does not cover. Not called under ``off``.
        table: answers most stamps at less cost; None for none.
        until_ns: what the node's clock reads. The table is not asked beyond it, and an event later than it of which
            the source knows nothing stays as it is. None: nobody looked.

    Raises:
        MalformedRequest: the body cannot be walked to its end; nothing of it should be sent on.
    """
    return _patch(body, options, _asking(correction_at, table, until_ns), until_ns, Record.SPAN)


def patch_logs(
    body: bytes,
    options: PatchOptions,
    correction_at: CorrectionAt,
    table: Table | None = None,
    until_ns: int | None = None,
) -> PatchResult:
    """Corrects every log record of a serialized ``ExportLogsServiceRequest``; otherwise as :func:`patch_traces`."""
    return _patch(body, options, _asking(correction_at, table, until_ns), until_ns, Record.LOG)


def record_growth_bytes(options: PatchOptions) -> int:
    """The most by which one span or log record grows, in bytes: what a patched request will be follows from a census.

    Of references, which are the source's, the name is taken to be as long as the node's, or 64 bytes.
    """
    if options.mode is Mode.OFF:
        return 0
    node = len(options.node.encode())
    texts = max(node, 64) + node + 16  # reference, node, status
    # Each with a tag, and three lengths and tags of what it is in; a number has ten bytes at most.
    attributes = sum(12 + len(options.prefix.encode()) + len(name) for name in NAMES)
    return attributes + texts + 10 * (len(NAMES) - len(FACTS)) + 8


def _asking(correction_at: CorrectionAt, table: Table | None, until_ns: int | None) -> CorrectionAt:
    """The table where it answers, the source elsewhere. The native twin does the same."""
    if table is None:
        return correction_at
    in_table = table.at
    until = ALWAYS_NS if until_ns is None else until_ns

    def at(wall_ns: int) -> Correction:
        found = in_table(wall_ns) if wall_ns <= until else None
        return correction_at(wall_ns) if found is None else found

    return at


def _patch(
    body: bytes, options: PatchOptions, correction_at: CorrectionAt, until_ns: int | None, record: Record
) -> PatchResult:
    attributes = attributes_of(options.prefix, record.value)
    facts = Facts(
        options.node, options.placement is not Placement.SPAN, attributes, attributes_of(options.prefix, RESOURCE)
    )
    edits = Edits(body)
    decision = Decision(body, options, correction_at, until_ns, record, attributes, facts, edits)
    # One search in C saves looking at the key of every attribute in the usual case.
    ours_may_occur = options.mode is not Mode.OFF and attributes.prefix in body
    names = attributes.names if ours_may_occur else None
    if record is Record.SPAN:
        read = SpanReader(body, names, decision.span).read
    else:
        read = LogRecordReader(body, names, decision.log_record).read
    try:
        Walk(body, attributes.names, options.trusts, read, facts, edits).request()
    except IndexError:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {len(body)}") from None
    return PatchResult(edits.result(), sum(decision.actions.values()), decision.actions)
