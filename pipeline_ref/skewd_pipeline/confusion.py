"""Whether a verdict was right: what truly happened, against what the tags made of it.

The problem: on one host, with one clock, a loaded scheduler alone makes some stamps come out backwards (a sender is
put aside between handing a message over and noting that it did). A tool that blames the clock for every negative span
is wrong about those, and a tool that blames nothing is of no use. The insight: the experiment knows, for each edge,
both the stamped gap and the true one, and their signs say whose fault a negative gap is.

| truth | stamped gap | true gap | right verdicts | wrong ones |
| --- | --- | --- | --- | --- |
| ``in order`` | >= 0 | >= 0 | ordered | impossible, skewed |
| ``clock`` | < 0 | >= 0 | skewed | impossible, ordered |
| ``not the clock`` | < 0 | < 0 | impossible | skewed, ordered |
| ``hidden`` | >= 0 | < 0 | impossible | ordered, skewed |

``indeterminate`` is never wrong: it says that the clocks cannot tell. How often it is said is what the table shows.

Limits: pure; truths are as right as the pages of the virtual clocks, which is exact but for a step in the middle of an
edge; such edges are left out by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from skewd_pipeline.results import Confusion

IN_ORDER, CLOCK, NOT_THE_CLOCK, HIDDEN = "in order", "clock", "not the clock", "hidden"
TRUTHS = (IN_ORDER, CLOCK, NOT_THE_CLOCK, HIDDEN)
VERDICTS = ("ordered", "skewed", "indeterminate", "impossible", "unsynchronized")

RIGHT = {IN_ORDER: "ordered", CLOCK: "skewed", NOT_THE_CLOCK: "impossible", HIDDEN: "impossible"}
UNDECIDED = ("indeterminate", "unsynchronized")


def truth_of(stamped_gap_ns: int, true_gap_ns: int) -> str:
    """Which of the four an edge is."""
    if stamped_gap_ns >= 0:
        return IN_ORDER if true_gap_ns >= 0 else HIDDEN
    return CLOCK if true_gap_ns >= 0 else NOT_THE_CLOCK


def is_wrong(truth: str, verdict: str) -> bool:
    """Whether the verdict says something that is not so."""
    return verdict not in UNDECIDED and verdict != RIGHT[truth]


class Tally:
    """Counts (situation, transport, rule, truth, verdict)."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, str, str]] = Counter()

    def add(self, situation: str, transport: str, rule: str, truth: str, verdict: str) -> None:
        """One edge."""
        self._counts[(situation, transport, rule, truth, verdict)] += 1

    def rows(self) -> list[Confusion]:
        """All counts, in the order of the tables above."""
        order = {name: place for place, name in enumerate((*TRUTHS, *VERDICTS))}
        return [
            Confusion(situation=situation, transport=transport, rule=rule, truth=truth, verdict=verdict, count=count)
            for (situation, transport, rule, truth, verdict), count in sorted(
                self._counts.items(), key=lambda item: (*item[0][:3], order[item[0][3]], order[item[0][4]])
            )
        ]


def wrong(rows: Iterable[Confusion]) -> list[Confusion]:
    """The counts of verdicts that say something that is not so."""
    return [row for row in rows if row.count and is_wrong(row.truth, row.verdict)]
