"""Many sources, some of them wrong: which interval do most agree on?

Each source states an interval that it claims holds the true value. Sources that are right have the true value in
common, so their intervals share at least that point; a source whose interval is elsewhere is wrong, whoever it is.
Marzullo's algorithm (Marzullo 1984; RFC 5905 section 11.2.1) finds the points that the most intervals share by
sweeping over the ends, in n log n.

An answer is given only when more than half of the sources share it: without a majority nobody can tell who lies, and
picking one would be a guess.

What is proven by that? If most of the sources are right, the true value is shared by most of the sources, so it lies in
the hull of all points that more than half share: :func:`majority`. It need not lie where the *most* meet. A liar that
agrees with two honest wide sources beside a third, narrow one makes a place that more share than the truth. So the
bound is the majority's hull, a little wider where the sources' widths differ, and Marzullo's place says who is to be
called a truechimer.

And while some of n configured sources are not heard? If at most f = (n - 1) // 2 of all n are wrong, then of m that are
heard at least m - f are right, whoever the silent ones are: the bound is what m - f of them share (:func:`shared`).

Limits: it is the majority that is trusted, so a majority of sources wrong in the same way wins. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skewd.interval import Interval


@dataclass(frozen=True, slots=True)
class Selection:
    """The smallest interval that the most sources share (None without a majority), and who shares it, by index."""

    interval: Interval | None
    truechimers: tuple[int, ...]
    falsetickers: tuple[int, ...]


def select(intervals: Sequence[Interval]) -> Selection:
    """Marzullo's intersection of ``intervals`` (ns, one per source).

    Without a majority ``interval`` is None, and nobody is a truechimer or a falseticker. Where several places are
    shared by equally many, the true value lies in one of them and nobody knows which: the hull is returned.
    """
    # Lower ends sort before upper ends at the same value: closed intervals that touch share that point.
    ends = sorted([(interval.lo, 0) for interval in intervals] + [(interval.hi, 1) for interval in intervals])
    most, count = 0, 0
    places: list[Interval] = []
    for index, (value, upper) in enumerate(ends):
        if upper:
            count -= 1
            continue
        count += 1
        if count > most:
            most, places = count, []
        if count == most:
            # If the next end is a lower one, this place is replaced by it; else the place ends there.
            places.append(Interval(value, ends[index + 1][0]))
    if most * 2 <= len(intervals):
        return Selection(None, (), ())
    agree = tuple(
        index
        for index, interval in enumerate(intervals)
        if any(interval.lo <= place.lo and place.hi <= interval.hi for place in places)
    )
    hull = places[0]
    for place in places[1:]:
        hull = hull.hull(place)
    return Selection(hull, agree, tuple(index for index in range(len(intervals)) if index not in agree))


def majority(intervals: Sequence[Interval]) -> Interval | None:
    """The hull of all points that more than half of ``intervals`` share; None where no point is.

    It holds the true value whenever more than half of them do.
    """
    return shared(intervals, len(intervals) // 2 + 1)


def shared(intervals: Sequence[Interval], count: int) -> Interval | None:
    """The hull of all points that ``count`` or more of ``intervals`` share; None where no point is.

    It holds the true value whenever at least ``count`` of them do. ``count`` is at least 1.
    """
    ends = sorted([(interval.lo, 0) for interval in intervals] + [(interval.hi, 1) for interval in intervals])
    sharing, lowest, highest = 0, None, None
    for value, upper in ends:
        if not upper:
            sharing += 1
            if sharing == count and lowest is None:
                lowest = value
        else:
            if sharing == count:
                highest = value
            sharing -= 1
    return None if lowest is None or highest is None else Interval(lowest, highest)
