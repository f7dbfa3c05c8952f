"""What broken sidecars, exporters and applications would have made of a good run's table.

Each takes the rows of a run and gives them back as they would have been with one part broken; verdicts are judged anew
from the broken tags, as a sidecar would. `CONTROLS` says which claims each must turn, and which others it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skewd.bounds.history import Status
from skewd_pipeline.edges import EdgeRow
from skewd_sidecar.causality import Stamp, judge

MS, US = 1_000_000, 1_000
Sabotage = Callable[[Sequence[EdgeRow]], list[EdgeRow]]
Tag = tuple[int | None, int | None]
"""An offset and its uncertainty; both None: no bound."""

_VERDICTS = ("verdict_span_start", "verdict_send_receive", "verdict_stamp_after_send")
_STAMPS = {
    "sender": ("sender_start_ns", "sender_sent_ns", "sender_noted_ns", "sender_end_ns"),
    "receiver": ("receiver_start_ns", "receiver_received_ns", "receiver_end_ns"),
}


def _moved(row: EdgeRow, end: str, by_ns: int) -> EdgeRow:
    """All of one span's stamps moved."""
    changes: dict[str, Any] = {
        name: getattr(row, name) + by_ns for name in _STAMPS[end] if getattr(row, name) is not None
    }
    return replace(row, **changes)


def _offset(row: EdgeRow, end: str) -> int | None:
    return row.sender_offset_ns if end == "sender" else row.receiver_offset_ns


def _stamp(row: EdgeRow, end: str, time_ns: int) -> Stamp:
    """A stamp as it was before any correction, with the row's tag."""
    offset = _offset(row, end)
    uncertainty = row.sender_uncertainty_ns if end == "sender" else row.receiver_uncertainty_ns
    node = row.sender if end == "sender" else row.receiver
    if offset is None or uncertainty is None:
        return Stamp(time_ns, 0, 0, Status.UNSYNCHRONIZED, "", node)
    original = time_ns - (offset if row.mode == "rewrite" else 0)
    return Stamp(original, offset, uncertainty, Status.SYNCHRONIZED, "node:preprocess", node)


def judged_anew(row: EdgeRow) -> EdgeRow:
    """The same row with the verdicts that its tags lead to."""
    if row.mode == "off" or row.sender_start_ns is None or row.receiver_start_ns is None:
        return row

    def verdict(sent_ns: int | None, received_ns: int | None) -> str | None:
        if sent_ns is None or received_ns is None:
            return None
        found = judge(_stamp(row, "sender", sent_ns), _stamp(row, "receiver", received_ns))
        return "unsynchronized" if found is None else str(found.value)

    return replace(
        row,
        verdict_span_start=verdict(row.sender_start_ns, row.receiver_start_ns),
        verdict_send_receive=verdict(row.sender_sent_ns, row.receiver_received_ns),
        verdict_stamp_after_send=verdict(row.sender_noted_ns, row.receiver_received_ns),
    )


def _tagged_with(rows: Sequence[EdgeRow], new: Callable[[EdgeRow, str], Tag]) -> list[EdgeRow]:
    """Rows whose tags are ``new(row, end)``: (offset, uncertainty); rewritten stamps move with their offsets."""
    found = []
    for row in rows:
        if row.mode == "off":
            found.append(row)
            continue
        changed = row
        for end in ("sender", "receiver"):
            before = _offset(row, end)
            offset, uncertainty = new(row, end)
            if before is not None and row.mode == "rewrite":
                changed = _moved(changed, end, (offset or 0) - before)
            tag: dict[str, Any] = {f"{end}_offset_ns": offset, f"{end}_uncertainty_ns": uncertainty}
            changed = replace(changed, **tag)
        found.append(judged_anew(changed))
    return found


def _tag(row: EdgeRow, end: str) -> Tag:
    return (
        (row.sender_offset_ns, row.sender_uncertainty_ns)
        if end == "sender"
        else (row.receiver_offset_ns, row.receiver_uncertainty_ns)
    )


def _node(row: EdgeRow, end: str) -> str:
    return row.sender if end == "sender" else row.receiver


def offset_off(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """The inference node's sidecar is 1 ms off."""

    def new(row: EdgeRow, end: str) -> Tag:
        offset, uncertainty = _tag(row, end)
        off = offset is not None and _node(row, end) == "inference"
        return (offset or 0) + MS if off else offset, uncertainty

    return _tagged_with(rows, new)


def bound_too_tight(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Every bound is 30 us too tight."""

    def new(row: EdgeRow, end: str) -> Tag:
        offset, uncertainty = _tag(row, end)
        return offset, None if uncertainty is None else max(0, uncertainty - 30 * US)

    return _tagged_with(rows, new)


def tags_swapped(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """The inference node's spans get the postprocess node's tags, and the other way round."""
    other = {"inference": "postprocess", "postprocess": "inference"}
    tags: dict[tuple[str, int, str, str], Tag] = {}
    for row in rows:
        for end in ("sender", "receiver"):
            tags[(row.block, row.message, row.mode, _node(row, end))] = _tag(row, end)

    def new(row: EdgeRow, end: str) -> Tag:
        node = _node(row, end)
        return tags.get((row.block, row.message, row.mode, other.get(node, node)), (None, None))

    return _tagged_with(rows, new)


def unsynchronized(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """No span has a bound."""
    return _tagged_with(rows, lambda row, end: (None, None))


def clock_blamed(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Every edge that comes out backwards is called ``skewed``, as a tool would that knows no other cause."""
    found = []
    for row in rows:
        late = row.mode == "tag" and row.verdict_stamp_after_send == "impossible"
        found.append(replace(row, verdict_stamp_after_send="skewed") if late else row)
    return found


def nothing_decided(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Every verdict is ``indeterminate``, which is never wrong."""
    return [replace(row, verdict_span_start="indeterminate") if row.mode == "tag" else row for row in rows]


def stamps_shifted(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """The inference stage's application adds -5 ms to its stamps; no clock is touched."""
    found = []
    for row in rows:
        changed = row
        for end in ("sender", "receiver"):
            if _node(row, end) == "inference":
                changed = _moved(changed, end, -5 * MS)
        found.append(judged_anew(changed))
    return found


def _one_in_a_thousand(rows: Sequence[EdgeRow], copies: int) -> list[EdgeRow]:
    """One span in a thousand of those that were tagged arrives so often; the first always."""
    names = [(row.block, row.message, row.mode, row.sender) for row in rows if row.mode == "tag"]
    chosen = set(names[::1000])
    found = []
    for row in rows:
        changed = row
        for end in ("sender", "receiver"):
            if (row.block, row.message, row.mode, _node(row, end)) not in chosen:
                continue
            changes: dict[str, Any] = {f"{end}_copies": copies}
            changed = replace(changed, **changes)
            if not copies:
                gone: dict[str, Any] = dict.fromkeys((*_STAMPS[end], f"{end}_offset_ns", f"{end}_uncertainty_ns"))
                verdicts: dict[str, Any] = dict.fromkeys(
                    ("verdict_span_start", "verdict_send_receive", "verdict_stamp_after_send")
                )
                changed = replace(changed, **gone, **verdicts)
        found.append(changed)
    return found


def spans_dropped(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """One span in a thousand does not arrive."""
    return _one_in_a_thousand(rows, 0)


def spans_duplicated(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """One span in a thousand arrives twice."""
    return _one_in_a_thousand(rows, 2)


def messages_too_old(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """A stage drops messages that its own wall clock calls too old: nothing of them is made beyond it."""
    found = []
    for row in rows:
        if row.skew_ns < 5 * MS:
            found.append(row)
            continue
        beyond = row.sender in ("inference", "postprocess")
        gone: dict[str, Any] = dict.fromkeys(_STAMPS["receiver"]) if beyond else {}
        gone |= dict.fromkeys(_STAMPS["sender"]) if row.sender == "postprocess" else {}
        gone |= {"receiver_made": False, "receiver_copies": 0} if beyond else {}
        gone |= {"sender_made": False, "sender_copies": 0} if row.sender == "postprocess" else {}
        if beyond:
            gone |= dict.fromkeys(_VERDICTS)
        found.append(replace(row, output="missing", **gone))
    return found


def duration_changed(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Rewriting moves a span's end by a microsecond more than its start's and its own uncertainty allow."""
    return [
        replace(row, sender_end_ns=row.sender_end_ns + 2 * (row.sender_uncertainty_ns or 0) + US)
        if row.mode == "rewrite" and row.message == 1 and row.sender == "producer" and row.sender_end_ns is not None
        else row
        for row in rows
    ]


def order_changed(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Rewriting puts one of a node's spans before the one that came first; the node has no edge that this inverts."""
    return [
        _moved(row, "sender", -round(2.5e9 / row.rate))
        if row.mode == "rewrite" and row.sender == "producer" and row.message == 1 and row.rate is not None
        else row
        for row in rows
    ]


def time_moved_by_tagging(rows: Sequence[EdgeRow]) -> list[EdgeRow]:
    """Tagging moves the consumer's spans by a nanosecond."""
    return [_moved(row, "receiver", 1) if row.mode == "tag" and row.receiver == "consumer" else row for row in rows]


@dataclass(frozen=True, slots=True)
class Control:
    """A sabotage, the claims that it must turn, and those that it may turn beside them."""

    sabotage: Sabotage
    turns: frozenset[str]
    may_turn: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """As the function is called."""
        return getattr(self.sabotage, "__name__", "sabotage")


def _control(sabotage: Sabotage, *turns: str, may: tuple[str, ...] = ()) -> Control:
    return Control(sabotage, frozenset(turns), frozenset(may))


CONTROLS = (
    _control(offset_off, "bounds", "verdicts", "rewritten-gaps"),
    # Whether an error of a microsecond shows in a rewritten gap depends on how close the raw readings lie.
    _control(bound_too_tight, "bounds", may=("rewritten-gaps", "verdicts", "rewritten-durations")),
    _control(tags_swapped, "bounds", "verdicts", "rewritten-gaps"),
    _control(stamps_shifted, "flips", "rewritten-gaps"),
    _control(spans_dropped, "delivered"),
    _control(spans_duplicated, "delivered"),
    _control(messages_too_old, "outputs"),
    _control(clock_blamed, "verdicts"),
    _control(nothing_decided, "verdicts"),
    _control(duration_changed, "rewritten-durations"),
    _control(order_changed, "rewritten-order", "rewritten-gaps"),
    _control(time_moved_by_tagging, "tagged-times"),
)
