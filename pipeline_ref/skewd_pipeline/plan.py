"""What will be run, in which order: the whole sweep as a list, before anything is started.

Cells with the same skew stand together, so the clock is stepped once for all of them, and whatever is compared (two
transports, with and without sidecar, floor and no floor) is measured within seconds of each other. The unskewed
group has the comparisons of throughput, and a cell without a floor that predicts the one in the group of the largest
skew below the floor: those show that the floor, not the transport, is what keeps violations away. ``--floors`` runs
every skew at other floors too.

Limits: pure; nothing is known here about how long a cell really takes, only how long its messages do.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from skewd_pipeline.options import ExperimentOptions

DEMO_EXTRA_SKEWS_MS = (50.0, 2000.0)
DEMO_MESSAGES = 100
WARM_UP_MESSAGES_MAX = 30
SATURATED_MESSAGES_MAX = 250
CALLS_MAX = 500
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
    """One run of messages.

    Attributes:
        name: unique in this run.
        purpose: ``warm-up`` (not reported), ``sweep``, ``floor0``, ``floor`` (another one), ``direct`` (no sidecar),
            ``saturated`` (unpaced), ``again`` (only its separations count), ``overload`` (a busy CPU), ``calls``
            (of the skewed stage by the reference's), ``over-time`` (a clock that is not constant).
        exporters: where spans go: sidecar modes, or ``direct``.
        rate: messages a second; None: unpaced.
        seed: of the order of the items.
    """

    name: str
    purpose: str
    transport: str
    skew_ns: int
    floor_ns: int
    messages: int
    rate: float | None
    exporters: tuple[str, ...]
    seed: str

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
    below_floor = [skew for skew in skews if 0 < skew <= options.service_floor_ns]
    without_floor_at = max(below_floor, default=None)
    warm_up = min(WARM_UP_MESSAGES_MAX, options.messages)
    saturated = min(SATURATED_MESSAGES_MAX, 3 * options.messages)
    groups = []
    for number, skew_ns in enumerate(skews):
        cells: list[CellPlan] = []

        def add(
            purpose: str,
            transport: str,
            *,
            floor_ns: int = options.service_floor_ns,
            messages: int = options.messages,
            paced: bool = True,
            exporters: tuple[str, ...] = options.modes,
            skew_ns: int = skew_ns,
            cells: list[CellPlan] = cells,
        ) -> None:
            at_floor = f"-{floor_ns / 1e6:g}ms" if purpose == "floor" else ""
            name = f"{skew_ns / 1e6:g}ms-{transport}-{purpose}{at_floor}-{'+'.join(exporters)}"
            cells.append(
                CellPlan(
                    name=name,
                    purpose=purpose,
                    transport=transport,
                    skew_ns=skew_ns,
                    floor_ns=floor_ns,
                    messages=messages,
                    rate=options.rate if paced else None,
                    exporters=exporters,
                    seed=f"{options.seed}/{name}",
                )
            )

        if number == 0:
            for transport in options.transports:
                add("warm-up", transport, messages=warm_up, exporters=(*options.modes, DIRECT))
        for transport in options.transports:
            add("sweep", transport)
        if skew_ns == 0:
            beside = "tag" if "tag" in options.modes else options.modes[0]
            for transport in options.transports:
                add("direct", transport, exporters=(DIRECT,))
            for transport in options.transports:
                for exporter in (beside, DIRECT):
                    add("saturated", transport, messages=saturated, paced=False, exporters=(exporter,))
        if without_floor_at is not None and skew_ns in (0, without_floor_at) and 0 not in options.floors_ns:
            for transport in options.transports:
                add("floor0", transport, floor_ns=0)
        for floor_ns in options.floors_ns:
            for transport in options.transports:
                add("floor", transport, floor_ns=floor_ns)
        if skew_ns == 0 and options.overload:
            for transport in options.transports:
                add("overload", transport)
        if skew_ns / 1e6 in COMPARED_SKEWS_MS and "tag" in options.modes:
            add("calls", CALLS, exporters=("tag",), messages=min(CALLS_MAX, options.messages))
        groups.append(Group(skew_ns, tuple(cells), skew_ns / 1e6 in PROBED_SKEWS_MS))
    if 0 in skews and len(skews) > 1:
        # The distribution that predicts the others is taken again at the end: a machine does not stay as it was.
        again = [
            replace(cell, purpose="again", name=f"{cell.name}-again", seed=f"{cell.seed}-again")
            for group in groups
            for cell in group.cells
            if group.skew_ns == 0 and cell.purpose in ("sweep", "floor")
        ]
        groups.append(Group(0, tuple(again), probe=False))
    return groups


def cells_of(groups: Iterable[Group]) -> list[CellPlan]:
    """All cells, in order."""
    return [cell for group in groups for cell in group.cells]


def over_time(options: ExperimentOptions) -> list[CellPlan]:
    """The long run's cells, one for each transport; none without ``--duration``."""
    if options.duration_ns is None:
        return []
    return [
        CellPlan(
            name=f"over-time-{transport}",
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
