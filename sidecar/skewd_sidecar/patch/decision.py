"""What becomes of one span: left alone, tagged, rewritten, or told to be unsynchronized.

A reader has found where its times and attributes of ours lie. Here it is asked what they say, what an earlier
correction left, and what the node's clock deserves at each instant; then edits are made and the outcome is counted.
The rules are the package's.

A log record is decided on as a span that has a start and nothing else. Without any time there is nothing to correct, in
either: such a record passes as it came. Pure, given a pure source of corrections.
"""

from __future__ import annotations

from skewd.bounds.history import Status
from skewd.bounds.table import ALWAYS_NS
from skewd_sidecar.patch.attributes import (
    CORRECTED,
    OFFSET,
    ORIGINAL_END,
    ORIGINAL_START,
    ORIGINAL_TIME,
    REFERENCE,
    Attributes,
    Ours,
    Record,
)
from skewd_sidecar.patch.edits import Edits
from skewd_sidecar.patch.facts import Facts
from skewd_sidecar.patch.options import Action, CorrectionAt, Mode, PatchOptions, Placement
from skewd_sidecar.patch.wire import FIXED64, UINT64_MAX, Value, read_value


class Decision:
    """Decides on the spans or log records of one body, one after another.

    Args:
        correction_at: what the node's clock deserves.
        until_ns: what it reads; None where nobody looked.
        record: which of both they are.
        attributes: ours in bytes, as they carry them.
        facts: of the batch under way.
        edits: takes what is to be done to the body.
    """

    __slots__ = (
        "_at",
        "_attributes",
        "_body",
        "_edits",
        "_facts",
        "_keep",
        "_mode",
        "_originals",
        "_record",
        "_trust",
        "_until",
        "actions",
    )

    def __init__(
        self,
        body: bytes,
        options: PatchOptions,
        correction_at: CorrectionAt,
        until_ns: int | None,
        record: Record,
        attributes: Attributes,
        facts: Facts,
        edits: Edits,
    ) -> None:
        self._body = body
        self._mode = options.mode
        self._trust = options.trusts
        self._keep = options.keep_original and options.placement is not Placement.MINIMAL
        self._at = correction_at
        self._until = ALWAYS_NS if until_ns is None else until_ns
        self._record = record
        self._attributes = attributes
        start, end, time = attributes.originals
        self._originals = (start, end) if record is Record.SPAN else (time, time)
        self._facts = facts
        self._edits = edits
        self.actions: dict[str, int] = {}

    def log_record(self, ours: Ours | None, end: int, time_at: int, more: list[int] | None) -> int:
        """As :meth:`span`; a record without a time passes unchanged, but for claims under our names."""
        if self._mode is not Mode.OFF and not (time_at and FIXED64.unpack_from(self._body, time_at)[0]):
            return self._timeless(ours, end)
        return self.span(ours, end, time_at, more, 0, None, None)

    def _timeless(self, ours: Ours | None, end: int) -> int:
        """What has no time says nothing that a clock could correct: it passes, but for claims under our names."""
        if ours is not None and not self._trust:
            return self._count(Action.UNCHANGED) + self._edits.upsert(ours, end, b"")
        return self._count(Action.UNCHANGED)

    def _has_time(self, events: list[list[int]] | None) -> bool:
        """Whether one of these events has a time."""
        return any(FIXED64.unpack_from(self._body, at)[0] for times in events or () for at in times)

    def span(
        self,
        ours: Ours | None,
        end: int,
        start_at: int,
        more_starts: list[int] | None,
        end_at: int,
        more_ends: list[int] | None,
        events: list[list[int]] | None,
    ) -> int:
        """What becomes of one span (or log record: its time is its start); returns by how many bytes it grows.

        Args:
            ours: its attributes of ours.
            end: where it ends.
            start_at, end_at: where its times are, 0 for none; ``more_...``: where earlier occurrences of them are.
            events: the places of each event's time.
        """
        body = self._body
        if self._mode is Mode.OFF:
            return self._count(Action.PASSED)
        start = FIXED64.unpack_from(body, start_at)[0] if start_at else 0
        finish = FIXED64.unpack_from(body, end_at)[0] if end_at else 0
        if not start and not finish and not self._has_time(events):
            return self._timeless(ours, end)
        undo = 0  # what an earlier correction on another reference had added
        rebased = False
        if self._trust and (ours is not None or self._facts.inherited):
            before = self._before(ours or [], start, finish)
            if before is not None:
                reference, undone = before
                if self._mode is Mode.TAG or undone is None:
                    return self._count(Action.UNCHANGED)
                now = self._at((start or finish) - undone)
                if now.status is Status.UNSYNCHRONIZED or now.reference == reference:
                    return self._count(Action.UNCHANGED)
                undo, rebased = undone, True

        # The correction is the start's; the uncertainty, from there, covers the end and the events as well.
        anchor = (start or finish) - undo
        correction = self._at(anchor)
        reference_now, offset = correction.reference, correction.offset_ns
        uncertainty = correction.uncertainty_ns
        known = correction.status is not Status.UNSYNCHRONIZED
        if known and finish and finish - undo != anchor:
            at_end = self._at(finish - undo)
            if at_end.status is Status.UNSYNCHRONIZED or at_end.reference != reference_now:
                known = False
            else:
                uncertainty = max(uncertainty, at_end.uncertainty_ns + abs(at_end.offset_ns - offset))
        if not known:
            if rebased:
                return self._count(Action.UNCHANGED)
            added = self._facts.said(None, Status.UNSYNCHRONIZED, False)
            return self._count(Action.UNSYNCHRONIZED) + self._edits.upsert(ours, end, added)

        shift = offset - undo
        event_shifts: list[int] = []
        if events is not None:
            for times in events:
                time = FIXED64.unpack_from(body, times[-1])[0]
                event_shift = 0
                if time:
                    event_shift = shift
                    at_event = self._at(time - undo)
                    # An event stamped where nothing is known (an application may hand in any time) goes with its span.
                    if at_event.status is not Status.UNSYNCHRONIZED and at_event.reference == reference_now:
                        event_shift = at_event.offset_ns - undo
                        uncertainty = max(uncertainty, at_event.uncertainty_ns + abs(at_event.offset_ns - offset))
                    elif time - undo > self._until:
                        event_shift = 0  # another clock's
                event_shifts.append(event_shift)

        rewritten = False
        if self._mode is Mode.REWRITE:
            moves: list[tuple[int, int, int]] = []
            if start:
                moves.append((start_at, start, shift))
                if more_starts is not None:
                    moves.extend((at, FIXED64.unpack_from(body, at)[0], shift) for at in more_starts)
            if finish:
                moves.append((end_at, finish, shift))
                if more_ends is not None:
                    moves.extend((at, FIXED64.unpack_from(body, at)[0], shift) for at in more_ends)
            if events is not None:
                for times, by in zip(events, event_shifts, strict=True):
                    if by:
                        moves.extend((at, FIXED64.unpack_from(body, at)[0], by) for at in times)
            rewritten = self._edits.move(moves)
            if rebased and not rewritten:
                return self._count(Action.UNCHANGED)
        attributes = self._attributes
        added = (
            attributes.offset.encode(offset)
            + attributes.uncertainty.encode(uncertainty)
            + self._facts.said(reference_now, correction.status, rewritten)
        )
        if not rewritten:
            return self._count(Action.TAGGED) + self._edits.upsert(ours, end, added)
        if self._keep:
            if start:
                added += self._originals[0].encode(start - undo)
            if finish:
                added += self._originals[1].encode(finish - undo)
        return self._count(Action.REWRITTEN) + self._edits.upsert(ours, end, added)

    def _before(self, ours: Ours, start: int, finish: int) -> tuple[Value, int | None] | None:
        """What an earlier correction left: its reference and what it had added to the times (None: it cannot be told).

        None altogether if the span was not corrected. Of an attribute that occurs twice the last one counts; a fact
        that the span lacks is the Resource's.
        """
        corrected = self._facts.inherited.get(CORRECTED)
        for name, _, begin, end in ours:
            if name == CORRECTED:
                corrected = read_value(self._body, begin, end)
        if corrected is not True:
            return None
        values = {name: read_value(self._body, begin, end) for name, _, begin, end in ours}
        reference = values.get(REFERENCE) if REFERENCE in values else self._facts.inherited.get(REFERENCE)
        offset = values.get(OFFSET)
        if self._record is Record.LOG:
            originals: tuple[tuple[int, str], ...] = ((start, ORIGINAL_TIME),)
        else:
            originals = ((start, ORIGINAL_START), (finish, ORIGINAL_END))
        for time, name in originals:
            original = values.get(name)
            if time and type(original) is int:
                return reference, time - (original & UINT64_MAX)
        return reference, offset if type(offset) is int else None

    def _count(self, action: Action) -> int:
        """Counts, and returns 0: a span that is only counted does not grow."""
        self.actions[action] = self.actions.get(action, 0) + 1
        return 0
