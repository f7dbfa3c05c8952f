"""A step that the daemon has not seen yet, seen by whoever is about to use what the daemon said.

The problem: a daemon looks at its clocks every few milliseconds, or when the kernel tells and it gets to run; on a
machine without a free core that is a while. A stamp that was taken after a step and asked about before the daemon's
next look would be judged by the clock before the step, and be wrong by all of it. The insight: whoever asks is on the
same machine and has the same two clocks. The newest knot says where the wall clock was on the raw one; a reading of
both, taken *after* the stamps arrived, says where it is. If the two agree, no step lies between the daemon's last look
and that reading, hence none between that look and any stamp that came before the reading. If they do not, then a
stamp of the last moments is from before the step or from after it, nobody can say which, and gets the hull of both:
what is known anyway of the first, and of the second what the knot says of the raw clock, which was not stepped.

How far the two may differ without a step: as far as the knot's own rates lead (they hold whatever the wall clock is
slewed by), and ``noted_ns`` for the readings themselves.

Limits: a step smaller than that is not seen here, only by the daemon's next look; nor are two that cancel out between
two looks of the daemon, which nobody can see. Pure: readings are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from skewd.bounds.history import UNSYNCHRONIZED, Correction, Knot, carried
from skewd.interval import Interval

NOTED_NS = 5_000
"""What a knot's foretold reading and a sandwich of the host's clocks may be apart for no reason."""

NOTED_VIRTUAL_NS = 50_000
"""The same where a clock is read by a program and not by one instruction: a virtual node's."""

_PPB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Unseen:
    """A step since ``knot`` was made.

    Attributes:
        knot: the newest one.
        moved_ns: by how much wall - raw has moved since then.
        wall_minus_raw: as it is now, when the wall clock reads ``wall_ns``.
        from_wall_ns: stamps from this reading on may have been taken after the step.
    """

    knot: Knot
    moved_ns: Interval
    wall_minus_raw: Interval
    wall_ns: int
    from_wall_ns: int

    def judged(self, wall_ns: int, known: Correction, max_uncertainty_ns: int) -> Correction:
        """What a stamp deserves for which the history, knowing of no step, says ``known``."""
        knot = self.knot
        if wall_ns < self.from_wall_ns or known.reference is None:
            return known
        if knot.bound is None or knot.reference != known.reference:
            return UNSYNCHRONIZED
        stretch = Interval(wall_ns - self.wall_minus_raw.hi, wall_ns - self.wall_minus_raw.lo).shift(-knot.raw_ns)
        after = (
            carried(stretch.lo, knot.drift_ppb, knot.wander_ppb_per_s)
            .hull(carried(stretch.hi, knot.drift_ppb, knot.wander_ppb_per_s))
            # Since then it may have been slewed on.
            .widen(max(self.wall_ns - wall_ns, 0) * knot.drift_ppb.width // _PPB + 2)
        )
        bound = knot.bound + after - self.moved_ns
        uncertainty = max(known.uncertainty_ns, bound.farthest(known.offset_ns))
        if uncertainty > max_uncertainty_ns:
            return UNSYNCHRONIZED
        return Correction(known.offset_ns, uncertainty, known.status, known.reference)


def unseen(knot: Knot, before_ns: int, wall_ns: int, after_ns: int, noted_ns: int, ago_ns: int) -> Unseen | None:
    """The step since a knot, by a reading of the wall clock between two of the raw one; None when there was none.

    Args:
        knot: the newest one, as it was known *before* the reading.
        before_ns, after_ns: raw readings; ``wall_ns`` the one in between.
        noted_ns: see :data:`NOTED_NS`.
        ago_ns: the daemon's last look lay at most so long before its newest knot's instant.
    """
    was_ns = knot.wall_ns - knot.raw_ns
    lo, hi = wall_ns - after_ns - was_ns, wall_ns - before_ns - was_ns
    elapsed = abs(after_ns - knot.raw_ns)
    # In plain numbers: this is asked for each request, and for each stamp that no table answers.
    if max(hi, -lo) <= elapsed * knot.drift_ppb.width // _PPB + noted_ns:
        return None
    now = Interval(wall_ns - after_ns, wall_ns - before_ns)
    return Unseen(knot, Interval(lo, hi), now, wall_ns, wall_ns - (after_ns - before_ns) - elapsed - ago_ns)
