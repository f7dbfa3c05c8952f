"""What will be run, in which order: the whole sweep as a list, before anything is started.

Cells with the same skew stand together, so the clock is stepped once for all of them, and whatever is compared (two
transports, with and without sidecar, floor and no floor) is measured within seconds of each other. The unskewed
group has the comparisons of throughput, and a cell without a floor that predicts the one in the group of the largest
skew below the floor: those show that the floor, not the transport, is what keeps violations away. ``--floors`` runs
every skew at other floors too.

A machine does not stay as it was: a broker's compiler warms up, a neighbour wakes, and the synchronized cell then
predicts another pipeline than the one that a skewed cell measured a quarter of an hour later. So a cell that is long
enough for its rate to be judged is run in blocks, and the sweep in rounds: each round has one block of every cell, its
skews in an order of its own, drawn from the seed (a randomized block design). Whatever changes is then shared by all
cells alike. Short sweeps take the synchronized cells first and last instead.

Limits: pure; nothing is known here about how long a cell really takes, only how long its messages do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from skewd_pipeline.law import JUDGED_EDGES_LEAST
from skewd_pipeline.options import ExperimentOptions

DEMO_EXTRA_SKEWS_MS = (50.0, 2000.0)
DEMO_MESSAGES = 100
WARM_UP_MESSAGES = 30
SATURATED_MESSAGES_MAX = 250
CALLS_MAX = 500
BLOCK_MESSAGES = 50
PROBED_SKEWS_MS = (0.0, 5.0)
COMPARED_SKEWS_MS = (0.0, 5.0)
"""Where stages call each other too, for the comparison with heuristics."""

CALLS = "calls"
"""In place of a transport: calls have a socket of their own."""

DIRECT = "direct"
"""The exporter that passes no sidecar."""

# What a cell costs beside its messages, and a group beside its cells; from runs on two cores.
CELL_OVERHEAD_S = 0.3
GROUP_OVERHEAD_S = 0.3
START_S = 12.0
REPORT_S = 4.0


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One run of messages: a cell, or a block of one.

    Attributes:
        name: unique in this run.
        cell: the same for all blocks of a cell, which are counted as one.
        purpose: ``warm-up`` (not reported), ``sweep``, ``floor0``, ``floor`` (another one), ``direct`` (no sidecar),
            ``saturated`` (unpaced), ``again`` (only its separations count), ``overload`` (a busy CPU), ``calls``
            (of the skewed stage by the reference's), ``over-time`` (a clock that is not constant).
        exporters: where spans go: sidecar modes, or ``direct``.
        rate: messages a second; None: unpaced.
        seed: of the order of the items.
        last: whether the cell is complete with it.
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
    last: bool = True

    def items(self, available: int) -> list[int]:
        """Which item each message carries: the same for the same seed."""
        chosen = random.Random(self.seed)
        return [chosen.randrange(available) for _ in range(self.messages)]


@dataclass(frozen=True, slots=True)
class Group:
    """Everything done at one skew."""

    skew_ns: int
    cells: tuple[CellPlan, ...]
    probe: bool
    """Whether ``skewd check`` is asked here."""
    round: int = 0


def with_demo(options: ExperimentOptions) -> ExperimentOptions:
    """The options as run: the demo's short form where the user left the defaults."""
    if not options.demo:
        return options
    usual = ExperimentOptions()
    return replace(
        options,
        skews_ms=usual.skews_ms + DEMO_EXTRA_SKEWS_MS if options.skews_ms == usual.skews_ms else options.skews_ms,
        messages=DEMO_MESSAGES if options.messages == usual.messages else options.messages,
    )


def plan(options: ExperimentOptions) -> list[Group]:
    """The groups in order. ``options`` as :func:`with_demo` gives them."""
    skews = [round(skew * 1e6) for skew in options.skews_ms]
    predicts = 0 in skews and len(skews) > 1
    rounds = blocks(options.messages, options.rounds if predicts else options.rounds or 1)
    groups = []
    for number, messages in enumerate(rounds):
        order = list(skews)
        if number:
            random.Random(f"{options.seed}/round/{number}").shuffle(order)
        for skew_ns in order:
            swept = _swept(options, skew_ns)
            if len(rounds) > 1:
                swept = [
                    replace(
                        cell,
                        name=f"{cell.name}-{number}",
                        seed=f"{cell.seed}-{number}",
                        messages=messages,
                        last=number == len(rounds) - 1,
                    )
                    for cell in swept
                ]
            if number == 0:
                first = skew_ns == skews[0]
                cells = (*(_warm_up(options, skew_ns) if first else ()), *swept, *_besides(options, skew_ns))
            else:
                cells = tuple(swept)
            groups.append(Group(skew_ns, cells, number == 0 and skew_ns / 1e6 in PROBED_SKEWS_MS, number))
    if predicts and len(rounds) == 1:
        again = [
            replace(
                cell, purpose="again", name=f"{cell.name}-again", cell=f"{cell.name}-again", seed=f"{cell.seed}-again"
            )
            for cell in _swept(options, 0)
            if cell.purpose != "floor0"
        ]
        groups.append(Group(0, tuple(again), probe=False))
    return groups


def blocks(messages: int, rounds: int | None = None) -> list[int]:
    """How many messages each block of a cell has, in the rounds that were asked for.

    Not asked, a cell is one block below :data:`~skewd_pipeline.law.JUDGED_EDGES_LEAST` messages.
    """
    if rounds is None:
        rounds = messages // BLOCK_MESSAGES if messages >= JUDGED_EDGES_LEAST else 1
    whole, rest = divmod(messages, rounds)
    return [whole + (number < rest) for number in range(rounds)]


def _planned(
    options: ExperimentOptions,
    skew_ns: int,
    purpose: str,
    transport: str,
    *,
    floor_ns: int | None = None,
    messages: int | None = None,
    paced: bool = True,
    exporters: tuple[str, ...] | None = None,
) -> CellPlan:
    """One cell; what is not given is as the options have it."""
    exporters = options.modes if exporters is None else exporters
    at_floor = f"-{(floor_ns or 0) / 1e6:g}ms" if purpose == "floor" else ""
    name = f"{skew_ns / 1e6:g}ms-{transport}-{purpose}{at_floor}-{'+'.join(exporters)}"
    return CellPlan(
        name=name,
        cell=name,
        purpose=purpose,
        transport=transport,
        skew_ns=skew_ns,
        floor_ns=options.service_floor_ns if floor_ns is None else floor_ns,
        messages=options.messages if messages is None else messages,
        rate=options.rate if paced else None,
        exporters=exporters,
        seed=f"{options.seed}/{name}",
    )


def _warm_up(options: ExperimentOptions, skew_ns: int) -> list[CellPlan]:
    """So that nothing is measured of a connection's first messages."""
    messages = min(max(WARM_UP_MESSAGES, options.messages // 5), options.messages)
    return [
        _planned(options, skew_ns, "warm-up", transport, messages=messages, exporters=(*options.modes, DIRECT))
        for transport in options.transports
    ]


def _swept(options: ExperimentOptions, skew_ns: int) -> list[CellPlan]:
    """The cells whose rates the law predicts from each other."""
    below_floor = [
        skew for skew in (round(each * 1e6) for each in options.skews_ms) if 0 < skew <= options.service_floor_ns
    ]
    without_floor_at = max(below_floor, default=None)
    cells = [_planned(options, skew_ns, "sweep", transport) for transport in options.transports]
    if without_floor_at is not None and skew_ns in (0, without_floor_at) and 0 not in options.floors_ns:
        cells += [_planned(options, skew_ns, "floor0", transport, floor_ns=0) for transport in options.transports]
    return cells + [
        _planned(options, skew_ns, "floor", transport, floor_ns=floor_ns)
        for floor_ns in options.floors_ns
        for transport in options.transports
    ]


def _besides(options: ExperimentOptions, skew_ns: int) -> list[CellPlan]:
    """What is measured once beside the sweep: throughput, an overloaded CPU, calls."""
    cells: list[CellPlan] = []
    if skew_ns == 0:
        beside = "tag" if "tag" in options.modes else options.modes[0]
        saturated = min(SATURATED_MESSAGES_MAX, 3 * options.messages)
        cells += [
            _planned(options, skew_ns, "direct", transport, exporters=(DIRECT,)) for transport in options.transports
        ]
        cells += [
            _planned(options, skew_ns, "saturated", transport, messages=saturated, paced=False, exporters=(exporter,))
            for transport in options.transports
            for exporter in (beside, DIRECT)
        ]
        if options.overload:
            cells += [_planned(options, skew_ns, "overload", transport) for transport in options.transports]
    if skew_ns / 1e6 in COMPARED_SKEWS_MS and "tag" in options.modes:
        messages = min(CALLS_MAX, options.messages)
        cells.append(_planned(options, skew_ns, "calls", CALLS, exporters=("tag",), messages=messages))
    return cells


def cells_of(groups: Iterable[Group]) -> list[CellPlan]:
    """All cells, or their blocks, in order."""
    return [cell for group in groups for cell in group.cells]


def over_time(options: ExperimentOptions) -> list[CellPlan]:
    """The long run's cells, one for each transport; none without ``--duration``."""
    if options.duration_ns is None:
        return []
    return [
        CellPlan(
            name=f"over-time-{transport}",
            cell=f"over-time-{transport}",
            purpose="over-time",
            transport=transport,
            skew_ns=0,
            floor_ns=options.service_floor_ns,
            messages=round(options.duration_ns / 1e9 * options.rate),
            rate=options.rate,
            exporters=options.modes,
            seed=f"{options.seed}/over-time-{transport}",
        )
        for transport in options.transports
    ]


def seconds(groups: Iterable[Group], unpaced_rate: float = 110.0) -> float:
    """About how long it will take, without set-up of the checkout."""
    groups = list(groups)
    total = START_S + REPORT_S
    before_ns = 0
    for group in groups:
        total += GROUP_OVERHEAD_S + abs(group.skew_ns - before_ns) / 1e9
        before_ns = group.skew_ns
        total += sum(CELL_OVERHEAD_S + cell.messages / (cell.rate or unpaced_rate) for cell in group.cells)
    return total


def truth_ns(offsets_ns: Mapping[str, int], reference: str) -> dict[str, int]:
    """By node, what its wall clock lacks to the reference's, from the pages' offsets."""
    return {node: offsets_ns[reference] - offset for node, offset in offsets_ns.items()}


def page_offset_ns(skew_ns: int, direction: str) -> int:
    """What the skewed node's wall clock shows beyond the host's."""
    return -skew_ns if direction == "behind" else skew_ns
