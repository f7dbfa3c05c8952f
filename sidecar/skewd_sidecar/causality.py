"""Whether two stamps of two clocks can be in the order in which their events surely were.

A span received before it was sent is either a clock's lie or a program's mistake, and a tool that cannot tell them
apart teaches its users to ignore it. With a bound on each clock's offset the *true* gap between the two events lies
in an interval, and the sign of that interval's ends says which it is:

| verdict | when | what it tells a person |
| --- | --- | --- |
| ``ordered`` | gap >= 0 and least gap >= 0 | nothing wrong |
| ``skewed`` | gap < 0 and least gap >= 0 | the clock lied; corrected |
| ``indeterminate`` | least gap < 0 <= greatest gap | closer than the clocks can tell |
| ``impossible`` | greatest gap < 0 | not the clock: a late stamp, a wrong parent, a bug |

Two stamps of one node need no bound: they come from one clock, and its offset cancels. What could spoil that is a
step of the clock between them, which shows as a jump of the applied offset (within an era it moves by 5 % of elapsed
time at most): then the bounds are used. A smaller jump cannot turn the order round; the gap then allows for both
explanations.

Limits: a step smaller than the uncertainty can stay hidden, when the applied offset happens to start anew where it was.
Two processes of one node whose SDKs keep time differently (one reads the wall clock, the other anchored itself to it
before) disagree by the size of a step for as long as the anchored one runs; that is not seen from the tags. A tag's
uncertainty must cover the truth: everything here is as right as the tags. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from skewd.bounds.applied import SLEW_MAX_PPB
from skewd.bounds.history import Status
from skewd.interval import Interval

_PPB = 1_000_000_000


class Verdict(StrEnum):
    """The contract's names of ``clock.edge.verdict``."""

    ORDERED = "ordered"
    SKEWED = "skewed"
    INDETERMINATE = "indeterminate"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Stamp:
    """One reading of one node's wall clock and what is known of it.

    Attributes:
        time_ns: as the node's clock showed it (before any correction), ns since 1970.
        offset_ns: to be added to reach the reference timescale.
        uncertainty_ns: the sum is right within this, either way.
        status: ``unsynchronized`` means that the three numbers' meaning is unknown.
        reference: the timescale the offset leads to.
        node: whose clock it was; None if nobody said.
    """

    time_ns: int
    offset_ns: int
    uncertainty_ns: int
    status: Status
    reference: str | None
    node: str | None


def gap(sent: Stamp, received: Stamp) -> Interval | None:
    """Every true gap, received minus sent, that the two stamps allow, in ns.

    None if a side is unsynchronized or the two are on different references: then nothing can be said.
    """
    if Status.UNSYNCHRONIZED in (sent.status, received.status):
        return None
    if sent.reference is None or sent.reference != received.reference:
        return None
    raw = received.time_ns - sent.time_ns
    jump = received.offset_ns - sent.offset_ns
    # One more nanosecond, since applied offsets are rounded.
    if sent.node is not None and sent.node == received.node and abs(jump) <= abs(raw) * SLEW_MAX_PPB // _PPB + 1:
        return Interval(min(raw, raw + jump), max(raw, raw + jump))
    uncertainty = sent.uncertainty_ns + received.uncertainty_ns
    return Interval(raw + jump - uncertainty, raw + jump + uncertainty)


def verdict(raw_gap_ns: int, gap: Interval) -> Verdict:
    """The table above: the gap that the bare stamps show against the gaps that can be true."""
    if gap.lo >= 0:
        return Verdict.SKEWED if raw_gap_ns < 0 else Verdict.ORDERED
    return Verdict.INDETERMINATE if gap.hi >= 0 else Verdict.IMPOSSIBLE


def judge(sent: Stamp, received: Stamp) -> Verdict | None:
    """The verdict on an edge; None when nothing can be said (see :func:`gap`)."""
    possible = gap(sent, received)
    return None if possible is None else verdict(received.time_ns - sent.time_ns, possible)


def stamp_from_attributes(time_ns: int, attributes: Mapping[str, object], prefix: str = "clock.") -> Stamp:
    """The stamp behind a time (start, end or an event) of a tagged or rewritten span.

    Attributes without their contract type are not believed: the stamp is then unsynchronized. Integers and booleans
    may have become text on their way through a backend.

    Args:
        time_ns: as the span has it now.
        attributes: the span's.
        prefix: what the sidecar's attributes begin with.
    """
    node = attributes.get(prefix + "node.name")
    node = node if isinstance(node, str) else None
    offset = _whole(attributes.get(prefix + "offset_ns"))
    uncertainty = _whole(attributes.get(prefix + "uncertainty_ns"))
    reference = attributes.get(prefix + "reference")
    corrected = attributes.get(prefix + "corrected") in (True, "true", "True")
    original = time_ns - offset if corrected and offset is not None else time_ns
    try:
        status = Status(str(attributes.get(prefix + "status")))
    except ValueError:
        status = Status.UNSYNCHRONIZED
    if (
        status is Status.UNSYNCHRONIZED
        or offset is None
        or uncertainty is None
        or uncertainty < 0
        or not isinstance(reference, str)
    ):
        return Stamp(original, 0, 0, Status.UNSYNCHRONIZED, None, node)
    return Stamp(original, offset, uncertainty, status, reference, node)


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return None
