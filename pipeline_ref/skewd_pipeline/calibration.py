"""What a quiet run says of a pipeline on this machine, and what follows for the rest of the experiment.

The problem: a fixed rate, floor and skew make one machine idle and drown another, and what then looks like a finding is
the machine's. The insight: measure first, with every clock right. An unpaced run gives the capacity; at most 40 % of it
is offered, so that no queue lengthens what the clocks are to shorten. A quiet run at that rate gives the hop and the
separations; the service floor is moved until the median separation is 4 ms, so that the paper's skews (3, 5, 10 ms) lie
on both sides of it wherever the hop allows. A second quiet run, with that floor, gives the separations that predict
every skewed cell before it is run.

Limits: what is quiet here need not stay so; a load that comes later is told by the backlog it makes. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from skewd_pipeline.edges import EdgeRow
from skewd_pipeline.options import STAGES
from skewd_pipeline.results import Separation

SHARE_OFFERED = 0.4
AIM_NS = 4_000_000
TRIED_FLOOR_NS = 3_000_000
"""The floor of the first quiet run, from which the right one is computed."""

FLOOR_STEP_NS = 50_000
CALM_MESSAGES = 10
PAPERS_SKEWS_MS = (0.0, 3.0, 5.0, 10.0)
FAR_SKEW_MS = 50.0
FARTHEST_SKEW_MS = 500.0
"""A step back is waited for as long as it is wide: further beyond says no more."""

_GROWN = 1.5


def offered_per_s(capacity_per_s: float, asked_per_s: float | None) -> float:
    """What the sweep offers: as asked, but at most 40 % of the capacity."""
    most = math.floor(capacity_per_s * SHARE_OFFERED * 10) / 10
    most = max(most, 0.1)
    return most if asked_per_s is None else min(asked_per_s, most)


def chosen_floor_ns(separations_ns: Sequence[int]) -> int:
    """The service floor at which the median separation will be 4 ms, from those with ``TRIED_FLOOR_NS``; never below 0.

    Judged by the calmest stretch of the run: a moment in which the machine did something else says nothing of the hop.

    Args:
        separations_ns: in the order of the messages.

    Raises:
        ValueError: no separations.
    """
    if not separations_ns:
        raise ValueError("no message of the quiet run arrived, so no service floor can be chosen")
    stretches = [
        separations_ns[begin : begin + CALM_MESSAGES] for begin in range(0, len(separations_ns), CALM_MESSAGES)
    ]
    whole = [stretch for stretch in stretches if len(stretch) == CALM_MESSAGES] or stretches
    wanted_ns = TRIED_FLOOR_NS + AIM_NS - min(median(stretch) for stretch in whole)
    return max(0, round(wanted_ns / FLOOR_STEP_NS) * FLOOR_STEP_NS)


def swept_skews_ms(asked_ms: Sequence[float] | None, separations_ns: Sequence[int]) -> tuple[float, ...]:
    """The skews of a sweep, ascending, 0 among them: as asked, or the paper's, the predicted median, one far beyond."""
    if asked_ms is not None:
        return tuple(sorted({0.0, *asked_ms}))
    median_ms = round(median(separations_ns) / 1e6, 2)
    beyond_ms = min(max(FAR_SKEW_MS, math.ceil(2 * max(separations_ns) / 1e7) * 10.0), FARTHEST_SKEW_MS)
    return tuple(sorted({*PAPERS_SKEWS_MS, median_ms, beyond_ms}))


def separation(values_ns: Sequence[int]) -> Separation | None:
    """Least, 1 %, middle and 99 % of some separations, in ms; None of none."""
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    places = (round(share * (len(ordered) - 1)) for share in (0, 0.01, 0.5, 0.99))
    return Separation(*(round(ordered[place] / 1e6, 4) for place in places))


def service_ns(rows: Iterable[EdgeRow]) -> dict[str, list[int]]:
    """How long each stage worked on each message, from taking it up to sending it on; the consumer until its end."""
    found: dict[str, list[int]] = {stage: [] for stage in STAGES}
    seen: set[tuple[str, int, str]] = set()
    for row in rows:
        key = (row.block, row.message, row.sender)
        if row.mode == "rewrite" or key in seen:
            continue
        seen.add(key)
        if row.sender_start_ns is not None and row.sender_sent_ns is not None:
            found[row.sender].append(row.sender_sent_ns - row.sender_start_ns)
        if row.receiver == STAGES[-1] and row.receiver_start_ns is not None and row.receiver_end_ns is not None:
            found[row.receiver].append(row.receiver_end_ns - row.receiver_start_ns)
    return found


def latencies_ns(rows: Iterable[EdgeRow]) -> list[int]:
    """How long each message truly took from the producer's start to the consumer's, in the order of the messages."""
    begun: dict[int, int] = {}
    ended: dict[int, int] = {}
    for row in rows:
        if row.mode == "rewrite":
            continue
        if row.sender == STAGES[0] and row.sender_start_raw_lo_ns is not None:
            begun[row.message] = row.sender_start_raw_lo_ns
        if row.receiver == STAGES[-1] and row.receiver_start_raw_lo_ns is not None:
            ended[row.message] = row.receiver_start_raw_lo_ns
    return [ended[message] - begun[message] for message in sorted(begun) if message in ended]


def backlog_grows(took_ns: Sequence[int], rate_per_s: float) -> bool:
    """Whether messages waited for each other more and more: the last third took longer by more than one message's turn.

    Args:
        took_ns: what each message took, in order.
    """
    third = len(took_ns) // 3
    if third < 2:
        return False
    first, last = median(took_ns[:third]), median(took_ns[-third:])
    return last > first * _GROWN and last - first > 1e9 / rate_per_s
