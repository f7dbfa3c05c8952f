"""Corrections for a stretch of time, as numbers that a loop can work through without asking anybody.

A sidecar asks three or four times per span what a stamp deserves, and ``History.at`` answers from objects, in
microseconds: more than everything else that is done to a span. But between two knots the answer is nothing more than
a few straight lines: the applied offset is one by definition, and each end of the bound is what the knot before and
the knot after allow, each of them a line but for the wander of the drift, a parabola so flat (a nanosecond over a
second) that a chord stands in for it. So the newest stretch of time is worked out in advance, as **pieces**, once for
each new knot; a stamp costs a search and a dozen multiplications, in any language.

The chord is always on the outer side, and all is rounded outward: a table's uncertainty may exceed the history's by
``EXCESS_MAX_NS`` and is never below it. The offset is the history's own to the nanosecond.

A table answers only where nothing but two knots matters: one era, later than 30 s after its step, the same epoch of
the reference, ends that do not exclude each other, an uncertainty within the limit. And only until ``ahead_ns`` after
the newest knot, for which that knot would answer even if no other ever came. Everywhere else it says None, and
whoever asks it goes to the source. Limits: ``SPAN_NS`` back from the newest knot. Pure; exact integers.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skewd.bounds.history import Correction, History, Knot, Status, rates_before

SPAN_NS = 30_000_000_000
"""How far back from the newest knot a table reaches: most spans are exported within seconds of their end."""

PIECE_MAX_NS = 1_000_000_000
"""A piece is at most this long, so that the chord stays near its parabola."""

EXCESS_MAX_NS = 8
"""How much wider than the history a table may be, where wander is at most 20 ppb/s."""

_PPB = 1_000_000_000
_SECOND_NS = 1_000_000_000
_PACKED = struct.Struct("<16s16s13q")
_STATUSES = tuple(Status)

ALWAYS_NS = 1 << 100
"""Later than every stamp, for pieces without an end."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The correction for readings of the wall clock from ``begin_ns`` to before ``end_ns``.

    The applied offset is ``applied_ns + applied_slope_ppb x (t - applied_from_ns) // 10^9``; an end of the bound is
    ``(ns, ppb)`` read as ``ns + ppb x (t - begin_ns) / 10^9``, rounded outward. The bound lies above both lower ends
    and below both upper ones; where there is only one, it is there twice.
    """

    begin_ns: int
    end_ns: int
    applied_from_ns: int
    applied_ns: int
    applied_slope_ppb: int
    lower: tuple[int, int]
    lower_too: tuple[int, int]
    upper: tuple[int, int]
    upper_too: tuple[int, int]
    status: Status
    reference: str | None


class Table:
    """Pieces in order of time.

    Args:
        pieces: in order, not overlapping; gaps are allowed.
        max_uncertainty_ns: a wider answer is left to the source.
    """

    __slots__ = ("_begins", "_last", "max_uncertainty_ns", "pieces")

    def __init__(self, pieces: Iterable[Piece], max_uncertainty_ns: int) -> None:
        self.pieces: Sequence[Piece] = tuple(pieces)
        self.max_uncertainty_ns = max_uncertainty_ns
        self._begins = [piece.begin_ns for piece in self.pieces]

    def at(self, wall_ns: int) -> Correction | None:
        """The correction for a stamp of the wall clock; None: ask the source."""
        index = bisect_right(self._begins, wall_ns) - 1
        if index < 0:
            return None
        piece = self.pieces[index]
        if wall_ns >= piece.end_ns:
            return None
        since = wall_ns - piece.begin_ns
        applied = piece.applied_ns + piece.applied_slope_ppb * (wall_ns - piece.applied_from_ns) // _PPB
        (low, low_ppb), (low_too, low_too_ppb) = piece.lower, piece.lower_too
        (high, high_ppb), (high_too, high_too_ppb) = piece.upper, piece.upper_too
        lo = max(low + low_ppb * since // _PPB, low_too + low_too_ppb * since // _PPB)
        hi = min(high - -high_ppb * since // _PPB, high_too - -high_too_ppb * since // _PPB)
        uncertainty = max(hi - applied, applied - lo, 0)
        if uncertainty > self.max_uncertainty_ns:
            return None
        return Correction(applied, uncertainty, piece.status, piece.reference)

    def packed(self) -> tuple[bytes, list[str]]:
        """The pieces for another language: records of little-endian numbers, and the references by number.

        A record: begin and end (16 bytes each); then, 8 bytes each: applied from, applied, its slope, the four ends as
        ns and ppb, the status's place in ``Status``, and the reference's number (-1 for none).
        """
        references: list[str] = []
        records = []
        for piece in self.pieces:
            if piece.reference is not None and piece.reference not in references:
                references.append(piece.reference)
            records.append(
                _PACKED.pack(
                    piece.begin_ns.to_bytes(16, "little", signed=True),
                    piece.end_ns.to_bytes(16, "little", signed=True),
                    piece.applied_from_ns,
                    piece.applied_ns,
                    piece.applied_slope_ppb,
                    *piece.lower,
                    *piece.lower_too,
                    *piece.upper,
                    *piece.upper_too,
                    _STATUSES.index(piece.status),
                    -1 if piece.reference is None else references.index(piece.reference),
                )
            )
        return b"".join(records), references


class TableKeeper:
    """Keeps the table of a history up to date: only pieces whose knots changed are worked out again.

    Args:
        history: what is tabulated.
        ahead_ns: how long after the newest knot it is still believed, if nothing else comes.
    """

    def __init__(self, history: History, ahead_ns: int) -> None:
        self._history = history
        self._ahead_ns = ahead_ns
        self._revision = -1
        self._table = Table((), 0)
        self._known: dict[int, tuple[Knot, Knot | None, int, list[Piece]]] = {}

    def table(self) -> Table:
        """The table of all that the history holds by now; the same object while that is the same."""
        if self._history.revision != self._revision:
            self._revision = self._history.revision
            self._table = Table(self._pieces(), self._history.max_uncertainty_ns)
        return self._table

    def _pieces(self) -> list[Piece]:
        knots, settled_ns = self._history.newest_era()
        known, self._known = self._known, {}
        pieces: list[Piece] = []
        if not knots:
            return pieces
        settled_ns = max(settled_ns, knots[-1].wall_ns - SPAN_NS)
        for number, knot in enumerate(knots):
            after = knots[number + 1] if number + 1 < len(knots) else None
            begin_ns = max(knot.wall_ns, settled_ns)
            end_ns = knot.wall_ns + self._ahead_ns if after is None else after.wall_ns
            if begin_ns >= end_ns:
                continue
            entry = known.get(begin_ns)
            if entry is None or entry[2] != end_ns or entry[0] != knot or entry[1] != after:
                entry = (knot, after, end_ns, pieces_between(knot, after, begin_ns, end_ns))
            self._known[begin_ns] = entry
            pieces += entry[3]
        return pieces


def constant(correction: Correction) -> Table:
    """The table of a source that always says the same."""
    offset, by = correction.offset_ns, correction.uncertainty_ns
    lower, upper = (offset - by, 0), (offset + by, 0)
    piece = Piece(
        -ALWAYS_NS, ALWAYS_NS, 0, offset, 0, lower, lower, upper, upper, correction.status, correction.reference
    )
    return Table([piece], by)


def pieces_between(knot: Knot, after: Knot | None, begin_ns: int, end_ns: int) -> list[Piece]:
    """The pieces from ``begin_ns`` to ``end_ns``, within the reign of ``knot``; [] where they cannot be said so.

    Args:
        knot: the knot that rules; ``begin_ns`` is not before it.
        after: the next one of its era, not before ``end_ns``; None for the newest knot.
    """
    if knot.bound is None:
        return []
    if after is not None and (after.bound is None or after.reference != knot.reference):
        after = None
    elif after is not None and after.epoch != knot.epoch:
        return []  # a hull there, which is not what two ends can say
    pieces = []
    while begin_ns < end_ns:
        stop = min(end_ns, begin_ns + PIECE_MAX_NS)
        drift, wander = knot.drift_ppb, knot.wander_ppb_per_s
        lower, upper = _ends(knot, begin_ns, stop, drift.lo, drift.hi, wander)
        lower_too, upper_too = lower, upper
        if after is not None:
            rates = rates_before(after, knot)
            # Backwards in time the fastest rate leads lowest.
            lower_too, upper_too = _ends(after, begin_ns, stop, rates.hi, rates.lo, after.wander_ppb_per_s)
            if _may_exclude(knot, after, begin_ns, stop):
                return []
        pieces.append(
            Piece(
                begin_ns,
                stop,
                knot.wall_ns,
                knot.applied_ns,
                knot.applied_slope_ppb,
                lower,
                lower_too,
                upper,
                upper_too,
                knot.status,
                knot.reference,
            )
        )
        begin_ns = stop
    return pieces


def _ends(
    knot: Knot, begin_ns: int, end_ns: int, low_ppb: int, high_ppb: int, wander_ppb_per_s: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The lower and the upper end from ``begin_ns`` to ``end_ns``, all of it on one side of the knot.

    The parabola w e^2 / 2 lies, between e1 and e2, below its chord, whose slope is w (e1 + e2) / 2.
    """
    assert knot.bound is not None
    first, last = begin_ns - knot.wall_ns, end_ns - knot.wall_ns
    wandered = -(-wander_ppb_per_s * first * first // (2 * _SECOND_NS))
    chord_ppb = -(-wander_ppb_per_s * (first + last) // (2 * _SECOND_NS))
    lower = (knot.bound.lo + (low_ppb * first - wandered) // _PPB, low_ppb - chord_ppb)
    upper = (knot.bound.hi - (-(high_ppb * first + wandered)) // _PPB, high_ppb + chord_ppb)
    return lower, upper


def _may_exclude(knot: Knot, after: Knot, begin_ns: int, end_ns: int) -> bool:
    """Whether the two knots' bounds might exclude each other somewhere; where they do, the history takes a hull.

    Without wander the bounds are narrower, and their ends straight: two straight lines that do not cross at the two
    ends of a stretch do not cross within it.
    """
    assert knot.bound is not None
    assert after.bound is not None
    rates = rates_before(after, knot)
    for at in (begin_ns, end_ns):
        forth, back = at - knot.wall_ns, at - after.wall_ns
        lo, hi = knot.bound.lo + knot.drift_ppb.lo * forth // _PPB, knot.bound.hi + knot.drift_ppb.hi * forth // _PPB
        lo_too, hi_too = after.bound.lo + rates.hi * back // _PPB, after.bound.hi + rates.lo * back // _PPB
        if lo > hi_too - 2 or lo_too > hi - 2:
            return True
    return False
