"""The screen of ``skewd status``: a daemon's status in, text for a person out.

It is read in a hurry, so it answers in this order: how is this node, what is wrong and what to do, then the sources
and peers that say so. Offsets are the other clock minus this one (add it to this node's time); an uncertainty is
rounded up so that what is printed still covers the bound. Unknown is said as ``-``, never as zero.

Limits: at most ``ROWS_MAX`` rows of a kind, the rest is counted; names of at most 63 characters. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from skewd import assumptions
from skewd.bounds.compose import COMPOSED
from skewd.check import VIRTUAL, describe, rounded_up, short
from skewd.interval import Interval
from skewd.links.protocol import REASONS
from skewd.problems import Severity
from skewd.status import (
    DisciplineRow,
    KernelRow,
    LinkRow,
    MeshRow,
    NodeStatus,
    PeerRow,
    SourceRow,
    ToldProblem,
    decode,
)

ROWS_MAX = 50
NAME_MAX = 63
_UNKNOWN = "-"

_Bounded = NodeStatus | PeerRow | SourceRow


def render_status(told: NodeStatus | Mapping[str, Any], steered: str | None = None) -> str:
    """The whole screen, ending in a newline. Missing or odd fields are shown as unknown; it never fails.

    Args:
        told: what the daemon says, as read or as told.
        steered: who steers this machine's clock, if that was looked up.
    """
    status = decode(told, odd_is_unknown=True)
    sections = [_this_node(status, steered), _wrong(status), _known(status), _mesh(status), _sources(status)]
    sections += [_peers(status), _links(status)]
    sections = [lines for lines in sections if lines]
    # Names and messages are others' words: they must not move the cursor or recolour the screen.
    return "\n\n".join("\n".join(_printable(line) for line in lines) for lines in sections) + "\n"


def _this_node(status: NodeStatus, steered: str | None) -> list[str]:
    node = _word(status.node)
    lines = []
    if status.virtual:
        lines.append(f"*** {VIRTUAL} ***")
    lines.append(f"{node}: {_word(status.status)}")
    against = status.reference[: NAME_MAX + 5] if status.reference else "no reference"
    bound, offset = status.bound, status.applied_ns
    if bound is None or offset is None:
        lines.append(f"  how far       unknown against {against}")
    else:
        if against == f"node:{node}":
            lines.append("  how far       this node is the reference")
        elif offset == 0:
            lines.append(f"  how far       agrees with {against}")
        else:
            size = describe(offset, bound)[0]
            lines.append(f"  how far       {size} {'ahead of' if offset < 0 else 'behind'} {against}")
        if bound.width or offset:
            lines.append(f"  how sure      {describe(offset, bound)[1]}  (the reference lies {_span(bound)} from here)")
    for label, text in _facts(status, steered):
        lines.append(f"  {label:<13} {text}")
    return lines


def _facts(status: NodeStatus, steered: str | None) -> Iterator[tuple[str, str]]:
    if status.drift_ppb is not None:
        yield "drift", f"{_drift(status.drift_ppb)} against the reference"
    if status.age_s is not None:
        yield "last heard", _age(status.age_s)
    limits = assumptions.summary(status)
    if limits:
        yield "limits", limits
    own = _own_steering(status.discipline)
    if own or steered:
        yield "steered by", own or str(steered)
    if status.clock is not None and status.clock.kernel is not None:
        yield "kernel clock", _kernel(status.clock.kernel)
    steps = status.era - 1 if status.era is not None and status.era > 0 else None
    # The first era is the start; each further one began with a step, or with a suspend.
    said = "" if steps is None else ", no step seen" if steps == 0 else f", {steps} step{'s' * (steps > 1)} seen"
    yield "era", f"{_UNKNOWN if status.era is None else status.era}{said}{_since(status)}"
    if status.metrics:
        yield "metrics", f"http://{status.metrics}/metrics"


_LEAPS = {
    "none": "no leap second announced",
    "insert": "a leap second will be inserted at the end of the UTC day",
    "delete": "a second will be left out at the end of the UTC day",
    "in progress": "a leap second is in progress",
    "occurred": "a leap second just was",
}


def _kernel(kernel: KernelRow) -> str:
    """What the kernel holds of its clock: scale, leap state, and the rate that it is steered at."""
    tai, rate = kernel.tai_offset_s, kernel.rate_ppb
    scale = "TAI - UTC not set" if tai is None else f"TAI - UTC {tai} s"
    leap = _LEAPS.get(kernel.leap or "", "leap state unknown")
    return f"{scale}; {leap}" + ("" if rate is None else f"; steered at {_drift(rate)}")


def _own_steering(discipline: DisciplineRow | None) -> str | None:
    """What the daemon itself does to this clock."""
    if discipline is None or discipline.state not in ("steering", "holdover"):
        return None
    rate, learned = discipline.rate_ppb, discipline.learned_ppb
    if rate is None or learned is None:
        return "skewd"
    said = f"skewd, {rate / 1000:+.1f} ppm"
    if discipline.state == "holdover":
        return f"{said}, kept while the reference is silent"
    correcting = rate - learned
    return said if abs(correcting) < 100 else f"{said}, of which {correcting / 1000:+.1f} ppm lead it to the reference"


def _since(status: NodeStatus) -> str:
    uptime = status.uptime_s
    if uptime is None or not 0 <= uptime < 1e10:
        return ""
    minutes = int(uptime // 60)
    if minutes < 2:
        return f" in {uptime:.0f} s"
    return f" in {minutes} min" if minutes < 120 else f" in {minutes // 60} h"


def _wrong(status: NodeStatus) -> list[str]:
    """What is wrong, and what to do, the gravest first."""
    wrong = [one for one in status.problems if one.severity != Severity.INFO]
    if not wrong:
        return ["nothing is wrong"]
    return ["what is wrong, and what to do", *_told(wrong, "!")]


def _known(status: NodeStatus) -> list[str]:
    """What is worth knowing, and nobody's fault."""
    known = [one for one in status.problems if one.severity == Severity.INFO]
    return ["worth knowing", *_told(known, "-")] if known else []


def _told(problems: Sequence[ToldProblem], mark: str) -> list[str]:
    lines = []
    for one in problems[:ROWS_MAX]:
        lines.append(f"  {mark} {' '.join(one.text.split())}")
        if one.remedy:
            lines.append(f"    -> {' '.join(one.remedy.split())}")
    return [*lines, *_rest(len(problems))]


def _mesh(status: NodeStatus) -> list[str]:
    """What all members together say: how many they are, whether they agree, who lies."""
    if status.mesh is None:
        return []
    return ["mesh", *(f"  {label:<13} {text}" for label, text in _mesh_facts(status.mesh))]


def _mesh_facts(mesh: MeshRow) -> Iterator[tuple[str, str]]:
    if mesh.members is not None:
        known = "" if mesh.bounded is None else f"; {mesh.bounded} of the others bounded"
        yield "members", f"{mesh.members}{known}" + ("" if mesh.asked is None else f", {mesh.asked} asked from here")
    timescale = mesh.timescale
    if timescale is None:
        yield "reference", "none yet"
    else:
        origin = _word(timescale.origin)
        named = "named by all" if mesh.agreed else "NOT named by all"
        yield "reference", f"{origin if origin == 'utc' else f'node:{origin}'}, {named}"
        if timescale.carried:
            yield "carried on by", f"{_word(timescale.keeper)}, with {origin}'s time"
    for label, names in (("convicted", mesh.convicted), ("disputed", mesh.disputed), ("contested", mesh.contested)):
        if names:
            yield label, _names(names, 8)
    if mesh.oldest_record_s is not None:
        yield "oldest record", _age(mesh.oldest_record_s).removesuffix(" ago")


def _names(names: Sequence[str], most: int) -> str:
    shown = ", ".join(_printable(name[:NAME_MAX]) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _sources(status: NodeStatus) -> list[str]:
    columns: list[tuple[str, Callable[[SourceRow], str]]] = [
        ("source", lambda row: _word(row.name)),
        ("type", lambda row: _word(row.type) + (" (found)" if row.configured is False else "")),
        ("offset", lambda row: _signed(row)),
        ("bound", lambda row: _uncertainty(row)),
        ("best RTT", lambda row: _short(row.rtt_min_ns)),
        ("root", lambda row: _root(row)),
        ("heard", lambda row: _age(row.age_s)),
        ("answers", lambda row: _answers(row)),
        ("state", lambda row: _word(row.state)),
    ]
    return _table(status.sources, columns, "no sources of UTC; [[source]] adds one")


def _root(row: SourceRow) -> str:
    """How far from UTC its server may be and how many servers from a reference clock, by its own account."""
    stratum = "" if row.stratum is None else f" (stratum {row.stratum})"
    return f"{_short(row.root_distance_ns)}{stratum}"


def _answers(row: SourceRow) -> str:
    """``40 of 42`` questions gave a bound; questions to which there was nothing new are left out."""
    asked = sum(row.answers.values()) - row.answers.get("unchanged", 0)
    return f"{row.answers.get('used', 0)} of {asked}" if asked > 0 else _UNKNOWN


def _peers(status: NodeStatus) -> list[str]:
    columns: list[tuple[str, Callable[[PeerRow], str]]] = [
        ("peer", lambda row: _word(row.name)),
        ("address", lambda row: _word(row.address)),
        ("offset", lambda row: _signed(row)),
        ("bound", lambda row: _uncertainty(row)),
        ("best RTT", lambda row: _short(row.rtt_min_ns)),
        ("drift", lambda row: _drift(row.drift_ppb)),
        ("heard", lambda row: _age(row.age_s)),
        ("trust", _trust),
        ("state", lambda row: _word(row.state)),
    ]
    if any(row.link for row in status.peers):
        columns.insert(2, ("link", lambda row: _word(row.link)))
    lines = _table(status.peers, columns, "no peers; [mesh] peers adds one")
    return [*lines, f"  and {status.peers_left_out} more members"] if status.peers_left_out > 0 else lines


def _trust(row: PeerRow) -> str:
    """What a bound rests on: ``composed via n2, n3>n5`` where others are relied upon."""
    via = _via(row.path)
    trust = _word(row.trust)
    if not via:
        return trust
    return f"{trust} via {via}" if trust == COMPOSED else f"{trust}, also via {via}"


def _via(path: Sequence[Sequence[str]]) -> str:
    """The nodes between here and the peer, one entry for each path."""
    return _names(list(dict.fromkeys(">".join(way[:-1]) for way in path if len(way) > 1)), 4)


def _links(status: NodeStatus) -> list[str]:
    columns: list[tuple[str, Callable[[LinkRow], str]]] = [
        ("link", lambda row: _word(row.transport)),
        ("address", lambda row: _word(row.address)),
        ("state", _link_state),
        ("accepted", lambda row: str(row.counters.get("accepted", _UNKNOWN))),
        ("refused", _refused),
    ]
    return _table(status.links, columns, "") if status.links else []


def _link_state(row: LinkRow) -> str:
    """Whether it works, and which way; what is wrong is among the problems."""
    state = "down" if row.trouble else "up"
    way = {"send": ", sends only", "receive": ", receives only"}.get(row.direction or "", "")
    return state + way


_REFUSALS = frozenset(REASONS) - {"unconfirmed", "one_way_unconfirmed", "own_message"} | {
    "bad_frames",
    "attach_refused",
    "handshakes_failed",
    "bad_records",
    "bad_labels",
    "oversized_data",
}
"""Counters of a link that count messages that were turned away; a new peer's first ones are ``unconfirmed``, and one's
own, heard where the list has this node's address, are no refusals."""


def _refused(row: LinkRow) -> str:
    """Messages turned away, and the commonest reasons."""
    refused = {key: value for key, value in row.counters.items() if key in _REFUSALS and value > 0}
    if not refused:
        return "0" if row.counters else _UNKNOWN
    most = sorted(refused, key=lambda key: (-refused[key], key))[:3]
    return f"{sum(refused.values())} ({', '.join(f'{key} {refused[key]}' for key in most)})"


_Row = TypeVar("_Row")


def _table(rows: Sequence[_Row], columns: Sequence[tuple[str, Callable[[_Row], str]]], empty: str) -> list[str]:
    if not rows:
        return [empty]
    cells = [[heading for heading, _ in columns]]
    cells += [[show(row) for _, show in columns] for row in rows[:ROWS_MAX]]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [*lines, *_rest(len(rows))]


def _rest(count: int) -> list[str]:
    return [f"  and {count - ROWS_MAX} more; see --json"] if count > ROWS_MAX else []


def _word(value: str | None) -> str:
    return (_printable(value[:NAME_MAX]) if value is not None else "") or _UNKNOWN


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


def _signed(row: _Bounded) -> str:
    bound, offset = row.bound, row.applied_ns
    if bound is None or offset is None:
        return _UNKNOWN
    return f"{'-' if offset < 0 else '+'}{describe(offset, bound)[0]}"


def _uncertainty(row: _Bounded) -> str:
    bound, offset = row.bound, row.applied_ns
    return _UNKNOWN if bound is None or offset is None else describe(offset, bound)[1]


def _span(bound: Interval) -> str:
    return f"{_outward(bound.lo, -1)} to {_outward(bound.hi, +1)}"


def _outward(ns: int, towards: int) -> str:
    """An end of a bound with four digits, rounded away from the bound."""
    step = 10 ** max(0, len(str(abs(ns))) - 4)
    rounded = -(-ns // step) * step if towards > 0 else ns // step * step
    return f"{'+' if rounded > 0 else ''}{short(rounded)}"


def _short(value: int | None) -> str:
    return _UNKNOWN if value is None or value < 0 else short(rounded_up(value))


def _drift(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value / 1000:+.3g} ppm"


def _age(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.1f} s ago" if value < 120 else f"{value / 60:.0f} min ago"
