"""What is run, in which order: each phase of a transport as a list, before it is started.

First, with every clock right: a warm-up; unpaced pairs, without sidecars and with them in turn, which give the capacity
and what the sidecars take of it; a quiet cell that chooses the service floor, and one that predicts (`calibration.py`).
Then the sweep, in rounds of short blocks: each round has one block of every skew, 0 ms always among them, in an order
of its own, drawn from the seed (a randomized block design). A machine does not stay as it was: a broker's compiler
warms up, a neighbour wakes. Whatever changes is then shared by all cells alike, and the cell at 0 ms shows it.

Limits: pure; nothing is known here about how long a cell really takes, only how long its messages do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skewd_pipeline.calibration import FAR_SKEW_MS, PAPERS_SKEWS_MS
from skewd_pipeline.options import ExperimentOptions

BLOCK_MESSAGES = 50
WARM_UP_MESSAGES = 30
UNPACED_MESSAGES = 40
UNPACED_PAIRS = 3
QUIET_MESSAGES = 40
CALIBRATION_MESSAGES_LEAST = 60
CALIBRATION_MESSAGES_MOST = 1_000
CALLS_MAX = 500
LOAD_MESSAGES = 300
PROBED_SKEWS_MS = (0.0, 5.0)
COMPARED_SKEWS_MS = (0.0, 5.0)
"""Where stages call each other too, for the comparison with heuristics."""

CALLS = "calls"
"""In place of a transport: calls have a socket of their own."""

# What a block costs beside its messages, and a step of the clock; from runs on two cores.
BLOCK_OVERHEAD_S = 0.35
STEP_OVERHEAD_S = 0.4
START_S = 22.0
TRANSPORT_S = {"zmq": 1.0, "kafka": 14.0, "aeron": 1.0}
REPORT_S = 5.0
NOMINAL_CAPACITY_PER_S = 60.0
"""Of the machine, for the progress display's estimate, as long as it is not measured."""


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One block of messages.

    Attributes:
        name: unique in this run.
        cell: the same for all blocks of a cell, which are counted as one; for people too.
        purpose: ``warm-up`` (not kept), ``unpaced`` (not judged by its edges' rates), ``quiet`` (chooses the floor),
            ``calibration`` (predicts), ``sweep``, ``load`` (queueing), ``overload`` (a busy CPU), ``calls`` (of the
            skewed stage by the reference's), ``over-time`` (a clock that is not constant).
        exporters: where spans go, by mode.
        rate: messages a second; None: unpaced.
        seed: of the order of the items, and of the times of messages that are sent at random ones.
        poisson: whether messages are sent at random times instead of evenly spaced ones.
    """

    name: str
    cell: str
    purpose: str
    transport: str
    skew_ns: int
    floor_ns: int
    messages: int
    rate: float | None
    exporters: tuple[str, ...]
    seed: str
    round: int = 0
    poisson: bool = False

    def items(self, available: int) -> list[int]:
        """Which item each message carries: the same for the same seed."""
        chosen = random.Random(self.seed)
        return [chosen.randrange(available) for _ in range(self.messages)]

    def sent_at_s(self) -> list[float] | None:
        """When each message is sent, from the beginning; None: evenly spaced, or as fast as the pipeline takes them."""
        if not self.poisson or self.rate is None:
            return None
        draws, at_s, times = random.Random(f"{self.seed}/times"), 0.0, []
        for _ in range(self.messages):
            times.append(round(at_s, 6))
            at_s += draws.expovariate(self.rate)
        return times


@dataclass(frozen=True, slots=True)
class Group:
    """Everything done at one skew in one round."""

    skew_ns: int
    cells: tuple[CellPlan, ...]
    probe: bool
    """Whether ``skewd check`` is asked here."""
    round: int = 0


class Planner:
    """Makes the cells of one transport.

    Args:
        options: as `options.as_run` gives them.
    """

    def __init__(self, options: ExperimentOptions, transport: str) -> None:
        self._options = options
        self._transport = transport

    def cell(
        self,
        purpose: str,
        *,
        messages: int,
        floor_ns: int,
        rate: float | None,
        skew_ns: int = 0,
        exporters: Sequence[str] | None = None,
        round: int = 0,
        number: int = 0,
        poisson: bool = False,
        transport: str | None = None,
    ) -> CellPlan:
        """One block; ``number`` tells blocks of the same purpose apart."""
        transport = self._transport if transport is None else transport
        said = f"{transport} {purpose}" + (f" at {skew_ns / 1e6:g} ms" if purpose in ("sweep", CALLS) else "")
        name = f"{said} {round}.{number}".replace(" ", "-")
        return CellPlan(
            name=name,
            cell=said if purpose != "load" else f"{said} {number}",
            purpose=purpose,
            transport=transport,
            skew_ns=skew_ns,
            floor_ns=floor_ns,
            messages=messages,
            rate=rate,
            exporters=self._options.modes if exporters is None else tuple(exporters),
            seed=f"{self._options.seed}/{name}",
            round=round,
            poisson=poisson,
        )

    def warm_up(self, floor_ns: int) -> CellPlan:
        """So that nothing is measured of a connection's first messages."""
        return self.cell("warm-up", messages=WARM_UP_MESSAGES, floor_ns=floor_ns, rate=None)

    def unpaced(self, floor_ns: int) -> list[CellPlan]:
        """Pairs: without sidecars (``off``) and with one (``tag``), in the other order each time."""
        ways = [("off",), ("tag",)] if {"off", "tag"} <= set(self._options.modes) else [self._options.modes[:1]]
        orders = [ways if pair % 2 == 0 else ways[::-1] for pair in range(UNPACED_PAIRS)]
        return [
            self.cell(
                "unpaced",
                messages=min(UNPACED_MESSAGES, 2 * self._options.messages),
                floor_ns=floor_ns,
                rate=None,
                exporters=exporters,
                number=number,
            )
            for number, exporters in enumerate(way for order in orders for way in order)
        ]

    def quiet(self, floor_ns: int, rate: float, number: int = 0) -> CellPlan:
        """The cell that chooses the service floor."""
        messages = min(QUIET_MESSAGES, self._options.messages)
        return self.cell("quiet", messages=messages, floor_ns=floor_ns, rate=rate, number=number)

    def calibration(self, floor_ns: int, rate: float, number: int = 0) -> CellPlan:
        """The cell that predicts the sweep's."""
        asked = self._options.messages
        messages = max(min(CALIBRATION_MESSAGES_LEAST, 2 * asked), min(CALIBRATION_MESSAGES_MOST, asked))
        return self.cell("calibration", messages=messages, floor_ns=floor_ns, rate=rate, number=number)

    def sweep(self, skews_ms: Sequence[float], floor_ns: int, rate: float) -> list[Group]:
        """All rounds, each with a block of every skew."""
        options = self._options
        groups = []
        for number, messages in enumerate(blocks(options.messages, options.rounds)):
            order = [round(skew_ms * 1e6) for skew_ms in skews_ms]
            random.Random(f"{options.seed}/{self._transport}/round/{number}").shuffle(order)
            for skew_ns in order:
                cells = [
                    self.cell("sweep", messages=messages, floor_ns=floor_ns, rate=rate, skew_ns=skew_ns, round=number)
                ]
                if number == 0 and self._calls_at(skew_ns):
                    cells.append(
                        self.cell(
                            CALLS,
                            messages=min(CALLS_MAX, options.messages),
                            floor_ns=floor_ns,
                            rate=rate,
                            skew_ns=skew_ns,
                            exporters=("tag",),
                            transport=CALLS,
                        )
                    )
                probe = number == 0 and self._first and skew_ns / 1e6 in PROBED_SKEWS_MS
                groups.append(Group(skew_ns, tuple(cells), probe, number))
        return groups

    @property
    def _first(self) -> bool:
        return self._transport == self._options.transports[0]

    def _calls_at(self, skew_ns: int) -> bool:
        asked = self._first and not self._options.demo and "tag" in self._options.modes
        return asked and skew_ns / 1e6 in COMPARED_SKEWS_MS

    def loads(self, floor_ns: int, capacity_per_s: float) -> list[CellPlan]:
        """One cell for each utilization that was asked for, all at the same skew; their messages come at random."""
        return [
            self.cell(
                "load",
                messages=max(self._options.messages, LOAD_MESSAGES),
                floor_ns=floor_ns,
                rate=utilization * capacity_per_s,
                skew_ns=round(self._options.load_skew_ms * 1e6),
                number=number,
                poisson=True,
            )
            for number, utilization in enumerate(self._options.loads)
        ]

    def overload(self, floor_ns: int, rate: float) -> CellPlan:
        """Synchronized clocks on an overloaded CPU."""
        return self.cell("overload", messages=self._options.messages, floor_ns=floor_ns, rate=rate)

    def over_time(self, floor_ns: int, rate: float, duration_ns: int) -> CellPlan:
        """The long run."""
        messages = max(1, round(duration_ns / 1e9 * rate))
        return self.cell("over-time", messages=messages, floor_ns=floor_ns, rate=rate)


def blocks(messages: int, rounds: int | None = None) -> list[int]:
    """How many messages each block of a cell has, in the rounds that were asked for; not asked, some 50 a block."""
    if rounds is None:
        rounds = max(2, messages // BLOCK_MESSAGES) if messages > 1 else 1
    whole, rest = divmod(messages, rounds)
    return [whole + (number < rest) for number in range(rounds)]


def seconds(options: ExperimentOptions, capacity_per_s: float = NOMINAL_CAPACITY_PER_S) -> float:
    """About how long a run takes, without set-up of the checkout."""
    return START_S + REPORT_S + sum(transport_seconds(options, each, capacity_per_s) for each in options.transports)


def transport_seconds(options: ExperimentOptions, transport: str, capacity_per_s: float) -> float:
    """About how long one transport's phase takes."""
    rate = 0.4 * capacity_per_s if options.rate is None else min(options.rate, 0.4 * capacity_per_s)
    skews_ms = options.skews_ms or (*PAPERS_SKEWS_MS, 4.0, FAR_SKEW_MS)
    rounds = len(blocks(options.messages, options.rounds))
    unpaced = WARM_UP_MESSAGES + 2 * UNPACED_PAIRS * min(UNPACED_MESSAGES, 2 * options.messages)
    paced = QUIET_MESSAGES + CALIBRATION_MESSAGES_LEAST + options.messages * len(skews_ms)
    paced += options.messages if options.overload else 0
    stepped = rounds * len(skews_ms) * (STEP_OVERHEAD_S + BLOCK_OVERHEAD_S) + 10 * BLOCK_OVERHEAD_S
    loads = sum(max(options.messages, LOAD_MESSAGES) / (each * capacity_per_s) for each in options.loads)
    return (
        TRANSPORT_S[transport] + unpaced / capacity_per_s + paced / rate + stepped + loads
        + (options.duration_ns or 0) / 1e9
    )  # fmt: skip


def truth_ns(offsets_ns: Mapping[str, int], reference: str) -> dict[str, int]:
    """By node, what its wall clock lacks to the reference's, from the pages' offsets."""
    return {node: offsets_ns[reference] - offset for node, offset in offsets_ns.items()}


def page_offset_ns(skew_ns: int, direction: str) -> int:
    """What the skewed node's wall clock shows beyond the host's."""
    return -skew_ns if direction == "behind" else skew_ns
