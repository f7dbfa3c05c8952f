"""What becomes of one span: left alone, tagged, rewritten, or told to be unsynchronized.

A reader has found where its times and attributes of ours lie. Here it is asked what they say, what an earlier
correction left, and what the node's clock deserves at each instant; then edits are made and the outcome is counted.
The rules are the package's.

A log record is decided on as a span whose end is its observed time, with one difference: an observed time that no
bound covers stays as it is. Without any time there is nothing to correct, in either: such a record passes as it came.
Pure, given a pure source of corrections.
"""

from __future__ import annotations

from itertools import pairwise

from skewd.bounds.history import Status
from skewd.bounds.table import ALWAYS_NS
from skewd_sidecar.patch.attributes import (
    CORRECTED,
    END_OFFSET,
    OFFSET,
    ORIGINAL_END,
    ORIGINAL_OBSERVED,
    ORIGINAL_START,
    ORIGINAL_TIME,
    REFERENCE,
    Attributes,
    Ours,
    Record,
)
from skewd_sidecar.patch.edits import Edits
from skewd_sidecar.patch.facts import Facts
from skewd_sidecar.patch.options import Action, CorrectionAt, Mode, PatchOptions, Placement, Stamps
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
        "_wall",
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
        self._wall = options.stamps is Stamps.WALL
        start, end, time, observed = attributes.originals
        self._originals = (start, end) if record is Record.SPAN else (time, observed)
        self._facts = facts
        self._edits = edits
        self.actions: dict[str, int] = {}

    def log_record(
        self,
        ours: Ours | None,
        end: int,
        time_at: int,
        more: list[int] | None,
        observed_at: int,
        more_observed: list[int] | None,
    ) -> int:
        """As :meth:`span`; a record without a time passes unchanged, but for claims under our names."""
        return self.span(ours, end, time_at, more, observed_at, more_observed, None)

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
        """What becomes of one span (or log record: its times are start and end); returns by how many bytes it grows.

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
        undo = undo_end = 0  # what an earlier correction on another reference had added, to the end too
        rebased, end_moves = False, True
        if self._trust and (ours is not None or self._facts.inherited):
            before = self._before(ours or [], start, finish)
            if before is not None:
                reference, undone, undone_end = before
                if self._mode is Mode.TAG or undone is None:
                    return self._count(Action.UNCHANGED)
                now = self._at((start or finish) - undone)
                if now.status is Status.UNSYNCHRONIZED or now.reference == reference:
                    return self._count(Action.UNCHANGED)
                undo, rebased = undone, True
                undo_end, end_moves = (0, False) if undone_end is None else (undone_end, True)

        # The tag is the start's. What moves by an offset that is not its own is off by the difference.
        anchor = (start or finish) - undo
        correction = self._at(anchor)
        reference_now, offset = correction.reference, correction.offset_ns
        shift = offset - undo
        own_uncertainty = uncertainty = correction.uncertainty_ns
        known = correction.status is not Status.UNSYNCHRONIZED
        end_offset = offset
        if known and start and finish and end_moves and (finish - undo_end != anchor or undo_end != undo):
            at_end = self._at(finish - undo_end)
            if at_end.status is Status.UNSYNCHRONIZED or at_end.reference != reference_now:
                known, end_moves = self._record is Record.LOG, False
            else:
                end_offset = at_end.offset_ns
                own_uncertainty = max(own_uncertainty, at_end.uncertainty_ns)
                uncertainty = max(uncertainty, at_end.uncertainty_ns + abs(shift - (end_offset - undo_end)))
        surely = own_uncertainty  # of start and end
        if not known:
            if rebased:
                return self._count(Action.UNCHANGED)
            added = self._facts.said(None, Status.UNSYNCHRONIZED, False)
            return self._count(Action.UNSYNCHRONIZED) + self._edits.upsert(ours, end, added)
        if rebased and max(uncertainty, abs(shift + undo_end)) >> 63:
            return self._count(Action.UNCHANGED)  # what it says of itself cannot be

        event_shifts: list[tuple[int, int, int]] = []  # time, by the start's, by its own
        if events is not None:
            for times in events:
                time = FIXED64.unpack_from(body, times[-1])[0]
                shared = own = 0
                if time:
                    shared = own = shift
                    at_event = self._at(time - undo)
                    # An event stamped where nothing is known (an application may hand in any time) goes with its span.
                    if at_event.status is not Status.UNSYNCHRONIZED and at_event.reference == reference_now:
                        own = at_event.offset_ns - undo
                        own_uncertainty = max(own_uncertainty, at_event.uncertainty_ns)
                        uncertainty = max(uncertainty, at_event.uncertainty_ns + abs(own - shift))
                    elif time - undo > self._until and (not finish or time > finish):
                        shared = own = 0  # another clock's
                event_shifts.append((time, shared, own))

        rewritten = each_its_own = False
        end_deserves = end_offset if self._wall else offset
        if self._mode is Mode.REWRITE:
            # What was corrected before has its shape already, and moves as one from one timescale to the other.
            each_its_own = (
                self._wall and not rebased and _in_order(start, shift, finish, end_offset * end_moves, event_shifts)
            )
            end_shift = (end_offset if each_its_own else shift) * end_moves
            moves: list[tuple[int, int, int]] = []
            if start:
                moves.append((start_at, start, shift))
                if more_starts is not None:
                    moves.extend((at, FIXED64.unpack_from(body, at)[0], shift) for at in more_starts)
            if finish and end_shift:
                moves.append((end_at, finish, end_shift))
                if more_ends is not None:
                    moves.extend((at, FIXED64.unpack_from(body, at)[0], end_shift) for at in more_ends)
            if events is not None:
                for times, (_, shared, own) in zip(events, event_shifts, strict=True):
                    by = own if each_its_own else shared
                    if by:
                        moves.extend((at, FIXED64.unpack_from(body, at)[0], by) for at in times)
            rewritten = self._edits.move(moves)
            if rebased and not rewritten:
                return self._count(Action.UNCHANGED)
            if rewritten:
                end_deserves = end_shift + undo_end
                if each_its_own:
                    uncertainty = own_uncertainty
        attributes = self._attributes
        added = (
            attributes.offset.encode(offset)
            + attributes.uncertainty.encode(uncertainty)
            + self._facts.said(reference_now, correction.status, rewritten)
        )
        if rewritten and self._keep:
            if start:
                added += self._originals[0].encode(start - undo)
            if finish and end_moves:
                added += self._originals[1].encode(finish - undo_end)
        if self._record is Record.SPAN and start and finish and abs(end_deserves - offset) > surely:
            added += attributes.end_offset.encode(end_deserves)
        return self._count(Action.REWRITTEN if rewritten else Action.TAGGED) + self._edits.upsert(ours, end, added)

    def _before(self, ours: Ours, start: int, finish: int) -> tuple[Value, int | None, int | None] | None:
        """What an earlier correction left: its reference, what it had added (None: it cannot be told), and to the end.

        The last is None where it left the end. None altogether if the span was not corrected. Of an attribute that
        occurs twice the last one counts; a fact that the span lacks is the Resource's.
        """
        corrected = self._facts.inherited.get(CORRECTED)
        for name, _, begin, end in ours:
            if name == CORRECTED:
                corrected = read_value(self._body, begin, end)
        if corrected is not True:
            return None
        values = {name: read_value(self._body, begin, end) for name, _, begin, end in ours}
        reference = values.get(REFERENCE) if REFERENCE in values else self._facts.inherited.get(REFERENCE)
        is_log = self._record is Record.LOG
        first = values.get(ORIGINAL_TIME if is_log else ORIGINAL_START)
        last = values.get(ORIGINAL_OBSERVED if is_log else ORIGINAL_END)
        offset, end_offset = values.get(OFFSET), values.get(END_OFFSET)
        undone = offset if type(offset) is int else None
        undone_end = end_offset if type(end_offset) is int and not is_log else None
        kept = finish and type(last) is int
        if kept:
            assert type(last) is int
            undone = undone_end = finish - (last & UINT64_MAX)
        if start and type(first) is int:
            undone = start - (first & UINT64_MAX)
            if is_log and not kept:
                return reference, undone, None
        elif not start:
            undone_end = undone
        return reference, undone, undone if undone_end is None else undone_end

    def _count(self, action: Action) -> int:
        """Counts, and returns 0: a span that is only counted does not grow."""
        self.actions[action] = self.actions.get(action, 0) + 1
        return 0


def _in_order(start: int, shift: int, finish: int, end_shift: int, events: list[tuple[int, int, int]]) -> bool:
    """Whether what lies between start and end stays there, in order, if each moves by its own offset. 0 is no time."""
    inside = [(time, time + own) for time, _, own in events if time >= max(start, 1) and (not finish or time <= finish)]
    if start and finish and start > finish:
        return True  # nothing lies in between
    if start:
        inside.append((start, start + shift))
    if finish:
        inside.append((finish, finish + end_shift))
    inside.sort()
    return all(one[1] <= other[1] for one, other in pairwise(inside))
