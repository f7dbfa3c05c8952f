"""What a daemon on this machine says of UTC, as proofs that the filter takes.

NTP answers are messages, and a message proves something by having travelled. chronyd, ptp4l and the kernel send no
messages: they *claim*, at one instant, that UTC lies within an interval of a clock of this machine (the wall clock,
or a network card's). The insight: a claim about UTC - raw at one instant is two inequalities, which is what a pair of
messages without any delay would have proven, so the same set-membership filter takes it. What is left to do is to
carry the claim to the raw clock honestly: the clock it is about was read before the question and after the answer,
the claim was made in between, and the whole is widened by what the clocks can have moved meanwhile. chrony may slew
the wall clock by up to 83,333 ppm; the kernel's settings tell, read on both sides of the question like the clocks.

Is it sound to intersect claims over time? The intersection of true statements is true, so the question is whether
each claim alone is true, for a false one stays in the set until drift and wander have grown past it, and many claims
that are each right *nearly* always are together wrong rather often. So each source must state what it can stand by,
at its instant, alone; its wire module says how it does.

Limits: all is said under the declared limits of this node's oscillator, and as far as the daemon in question is
truthful. Settings that are changed and changed back within one question (some 0.3 ms) are not seen; a clock moved by
them beyond ``SLEW_MAX_PPM`` x that time reads as stepped. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.limits import ERROR_MAX_NS, SCALE_MAX_NS, is_raw, within
from skewd.wall import passage, rates_ppb

__all__ = ["DELETE", "ERROR_MAX_NS", "INSERT", "NO_LEAP", "PPM", "Claim", "Look", "Refused", "between"]

PPM = 1_000_000

NO_LEAP, INSERT, DELETE = 0, 1, 2


class Refused(Exception):
    """A reading that is no claim. The text is for a person: what is wrong, and what to do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """UTC - raw lay in ``utc_minus_raw`` at the raw instant ``raw_ns``.

    Attributes:
        leap: 0 none announced, 1 the day's last minute has 61 seconds, 2 it has 59.
        root_distance_ns: how far from UTC what it follows may be, by its own account; None where it does not tell.
        stratum: how many servers away from a reference clock it is; None where it does not tell.
        reference_ns: by its own count, when what it says was measured: claims with the same one rest on the same
            measurement; None where each claim is a measurement.
        settled: nothing is mixed into it that was measured on the clock of before a step (``memory.py``).

    Raises:
        Refused: no clock shows that (``skewd/limits.py``).
    """

    raw_ns: int
    utc_minus_raw: Interval
    leap: int = NO_LEAP
    root_distance_ns: int | None = None
    stratum: int | None = None
    reference_ns: int | None = None
    settled: bool = True

    def __post_init__(self) -> None:
        if not (is_raw(self.raw_ns) and within(self.utc_minus_raw, SCALE_MAX_NS)):
            raise Refused("what it says puts UTC more than a century from this machine's clocks; see its own status")

    def proofs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The outgoing and the incoming proof of ``NtpSample.proofs``, both about the one instant."""
        return (self.raw_ns, self.raw_ns + self.utc_minus_raw.hi), (self.raw_ns + self.utc_minus_raw.lo, self.raw_ns)


@dataclass(frozen=True, slots=True)
class Look:
    """The wall clock compared with raw, and the rate that the kernel's tick and frequency were set to, 0 if untold.

    Before a question the settings are read first and the clocks then, after it the other way round: so settings that
    change once, at whatever moment, are among the two that were read.
    """

    sample: WallSample
    set_ppb: int = 0


def between(before: Look, after: Look, utc_minus_wall: Interval, max_drift_ppm: int) -> tuple[int, Interval]:
    """UTC - raw at ``after``'s raw instant, if UTC - wall lay in ``utc_minus_wall`` at some instant between two looks.

    Raises:
        Refused: the wall clock was stepped in between, so nobody knows which wall clock was meant.
    """
    first, last = before.sample, after.sample
    wall_minus_raw = passage(first, last, rates_ppb(before.set_ppb, after.set_ppb))
    if wall_minus_raw is None:
        raise Refused("the wall clock was stepped while it was asked; asked again")
    elapsed = max(last.raw_ns - first.raw_ns, 0) + first.wall_minus_raw.width
    return last.raw_ns, (wall_minus_raw + utc_minus_wall).widen(elapsed * max_drift_ppm // PPM + 1)
