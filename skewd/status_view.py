"""The screen of ``skewd status``: a daemon's status in, text for a person out.

It is read in a hurry, so it answers in this order: how is this node, what is wrong and what to do, then the sources
and peers that say so. Offsets are the other clock minus this one (add it to this node's time); an uncertainty is
rounded up so that what is printed still covers the bound. Unknown is said as ``-``, never as zero.

Limits: at most ``ROWS_MAX`` rows of a kind, the rest is counted; names of at most 63 characters. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skewd import assumptions
from skewd.bounds.compose import COMPOSED
from skewd.check import VIRTUAL, describe, rounded_up, short
from skewd.interval import Interval
from skewd.links.protocol import REASONS

ROWS_MAX = 50
NAME_MAX = 63
_UNKNOWN = "-"

_Row = Mapping[str, Any]


def render_status(status: Mapping[str, Any], steered: str | None = None) -> str:
    """The whole screen, ending in a newline. Missing or odd fields are shown as unknown; it never fails.

    Args:
        status: what the daemon says.
        steered: who steers this machine's clock, if that was looked up.
    """
    sections = [_this_node(status, steered), _wrong(status), _mesh(status), _sources(status), _peers(status)]
    sections = [lines for lines in sections if lines]
    links = _links(status)
    if links:
        sections.append(links)
    # Names and messages are others' words: they must not move the cursor or recolour the screen.
    return "\n\n".join("\n".join(_printable(line) for line in lines) for lines in sections) + "\n"


def _this_node(status: Mapping[str, Any], steered: str | None) -> list[str]:
    node = _word(status, "node")
    lines = []
    if status.get("virtual") is True:
        lines.append(f"*** {VIRTUAL} ***")
    clock_status = _word(status, "status")
    lines.append(f"{node}: {clock_status}")
    reference = status.get("reference")
    against = str(reference)[: NAME_MAX + 5] if reference else "no reference"
    bound = _bound(status)
    if bound is None:
        lines.append(f"  how far       unknown against {against}")
    else:
        offset = _offset(status, bound)
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


def _facts(status: Mapping[str, Any], steered: str | None) -> Iterator[tuple[str, str]]:
    drift = status.get("drift_ppb")
    if _is_number(drift):
        yield "drift", f"{_drift(drift)} against the reference"
    age = status.get("age_s")
    if _is_number(age):
        yield "last heard", _age(age)
    limits = assumptions.summary(status)
    if limits:
        yield "limits", limits
    own = _own_steering(status)
    if own or steered:
        yield "steered by", own or str(steered)
    kernel = (status.get("clock") or {}).get("kernel")
    if kernel:
        yield "kernel clock", _kernel(kernel)
    era = status.get("era")
    steps = era - 1 if isinstance(era, int) and not isinstance(era, bool) and era > 0 else None
    # The first era is the start; each further one began with a step, or with a suspend.
    said = "" if steps is None else ", no step seen" if steps == 0 else f", {steps} step{'s' * (steps > 1)} seen"
    yield "era", f"{_word(status, 'era')}{said}{_since(status)}"
    metrics = status.get("metrics")
    if metrics:
        yield "metrics", f"http://{metrics}/metrics"


_LEAPS = {
    "none": "no leap second announced",
    "insert": "a leap second will be inserted at the end of the UTC day",
    "delete": "a second will be left out at the end of the UTC day",
    "in progress": "a leap second is in progress",
    "occurred": "a leap second just was",
}


def _kernel(kernel: Mapping[str, Any]) -> str:
    """What the kernel holds of its clock: scale, leap state, and the rate that it is steered at."""
    tai = kernel.get("tai_offset_s")
    scale = f"TAI - UTC {tai} s" if _is_number(tai) else "TAI - UTC not set"
    leap = _LEAPS.get(str(kernel.get("leap")), "leap state unknown")
    rate = kernel.get("rate_ppb")
    return f"{scale}; {leap}" + (f"; steered at {_drift(rate)}" if _is_number(rate) else "")


def _own_steering(status: Mapping[str, Any]) -> str | None:
    """What the daemon itself does to this clock."""
    discipline = status.get("discipline")
    if not isinstance(discipline, dict) or discipline.get("state") not in ("steering", "holdover"):
        return None
    rate, learned = discipline.get("rate_ppb"), discipline.get("learned_ppb")
    if not isinstance(rate, int) or not isinstance(learned, int):
        return "skewd"
    said = f"skewd, {rate / 1000:+.1f} ppm"
    if discipline["state"] == "holdover":
        return f"{said}, kept while the reference is silent"
    correcting = rate - learned
    return said if abs(correcting) < 100 else f"{said}, of which {correcting / 1000:+.1f} ppm lead it to the reference"


def _since(status: Mapping[str, Any]) -> str:
    uptime = status.get("uptime_s")
    if not isinstance(uptime, int | float) or not 0 <= uptime < 1e10:
        return ""
    minutes = int(uptime // 60)
    if minutes < 2:
        return f" in {uptime:.0f} s"
    return f" in {minutes} min" if minutes < 120 else f" in {minutes // 60} h"


def _wrong(status: Mapping[str, Any]) -> list[str]:
    """Each message of the daemon is ``what is wrong; what to do``."""
    messages = status.get("messages")
    messages = [str(message) for message in messages] if isinstance(messages, list) else []
    if not messages:
        return ["nothing is wrong"]
    lines = ["what is wrong, and what to do"]
    for message in messages[:ROWS_MAX]:
        wrong, _, remedy = " ".join(message.split()).partition("; ")
        lines.append(f"  ! {wrong}")
        if remedy:
            lines.append(f"    -> {remedy}")
    return [*lines, *_rest(len(messages))]


def _mesh(status: Mapping[str, Any]) -> list[str]:
    """What all members together say: how many they are, whether they agree, who lies."""
    mesh = status.get("mesh")
    if not isinstance(mesh, dict):
        return []
    return ["mesh", *(f"  {label:<13} {text}" for label, text in _mesh_facts(mesh))]


def _mesh_facts(mesh: _Row) -> Iterator[tuple[str, str]]:
    members, bounded, asked = mesh.get("members"), mesh.get("bounded"), mesh.get("asked")
    if isinstance(members, int):
        known = f"; {bounded} of the others bounded" if isinstance(bounded, int) else ""
        yield "members", f"{members}{known}" + (f", {asked} asked from here" if isinstance(asked, int) else "")
    timescale = mesh.get("timescale")
    if not isinstance(timescale, dict):
        yield "reference", "none yet"
    else:
        origin = _word(timescale, "origin")
        named = "named by all" if mesh.get("agreed") is True else "NOT named by all"
        yield "reference", f"{origin if origin == 'utc' else f'node:{origin}'}, {named}"
        if timescale.get("carried") is True:
            yield "carried on by", f"{_word(timescale, 'keeper')}, with {origin}'s time"
    for label in ("convicted", "disputed", "contested"):
        names = mesh.get(label)
        if isinstance(names, list) and names:
            yield label, _names(names, 8)
    oldest = mesh.get("oldest_record_s")
    if _is_number(oldest):
        yield "oldest record", _age(oldest).removesuffix(" ago")


def _names(names: Sequence[object], most: int) -> str:
    shown = ", ".join(_printable(str(name)[:NAME_MAX]) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _sources(status: Mapping[str, Any]) -> list[str]:
    columns: list[tuple[str, Callable[[_Row], str]]] = [
        ("source", lambda row: _word(row, "name")),
        ("type", lambda row: _word(row, "type") + (" (found)" if row.get("configured") is False else "")),
        ("offset", lambda row: _signed(row)),
        ("bound", lambda row: _uncertainty(row)),
        ("heard", lambda row: _age(row.get("age_s"))),
        ("state", lambda row: _word(row, "state")),
    ]
    return _table(_rows(status, "sources"), columns, "no sources of UTC; [[source]] adds one")


def _peers(status: Mapping[str, Any]) -> list[str]:
    columns: list[tuple[str, Callable[[_Row], str]]] = [
        ("peer", lambda row: _word(row, "name")),
        ("address", lambda row: _word(row, "address")),
        ("offset", lambda row: _signed(row)),
        ("bound", lambda row: _uncertainty(row)),
        ("best RTT", lambda row: _short(row.get("rtt_min_ns"))),
        ("drift", lambda row: _drift(row.get("drift_ppb"))),
        ("heard", lambda row: _age(row.get("age_s"))),
        ("trust", _trust),
        ("state", lambda row: _word(row, "state")),
    ]
    rows = _rows(status, "peers")
    if any(row.get("link") for row in rows):
        columns.insert(2, ("link", lambda row: _word(row, "link")))
    lines = _table(rows, columns, "no peers; [mesh] peers adds one")
    left_out = status.get("peers_left_out")
    return [*lines, f"  and {left_out} more members"] if isinstance(left_out, int) and left_out > 0 else lines


def _trust(row: _Row) -> str:
    """What a bound rests on: ``composed via n2, n3>n5`` where others are relied upon."""
    via = _via(row.get("path"))
    trust = _word(row, "trust")
    if not via:
        return trust
    return f"{trust} via {via}" if trust == COMPOSED else f"{trust}, also via {via}"


def _via(path: object) -> str:
    """The nodes between here and the peer, one entry for each path."""
    if not isinstance(path, list):
        return ""
    ways = [">".join(str(name) for name in way[:-1]) for way in path if isinstance(way, list) and len(way) > 1]
    return _names(list(dict.fromkeys(ways)), 4)


def _links(status: Mapping[str, Any]) -> list[str]:
    rows = _rows(status, "links")
    if not rows:
        return []
    columns: list[tuple[str, Callable[[_Row], str]]] = [
        ("link", lambda row: _word(row, "transport")),
        ("address", lambda row: _word(row, "address")),
        ("state", _link_state),
        ("accepted", lambda row: _count(row, "accepted")),
        ("refused", _refused),
    ]
    return _table(rows, columns, "")


def _link_state(row: _Row) -> str:
    """Whether it works, and which way; what is wrong is among the messages."""
    state = "down" if row.get("trouble") else "up"
    way = {"send": ", sends only", "receive": ", receives only"}.get(str(row.get("direction")), "")
    return state + way


_REFUSALS = frozenset(REASONS) - {"unconfirmed", "one_way_unconfirmed"} | {
    "bad_frames",
    "attach_refused",
    "handshakes_failed",
    "bad_records",
    "bad_labels",
    "oversized_data",
}
"""Counters of a link that count messages that were turned away; a new peer's first ones are ``unconfirmed``."""


def _counters(row: _Row) -> Mapping[str, Any]:
    counters = row.get("counters")
    return counters if isinstance(counters, dict) else {}


def _count(row: _Row, key: str) -> str:
    value = _counters(row).get(key)
    return str(value) if isinstance(value, int) else _UNKNOWN


def _refused(row: _Row) -> str:
    """Messages turned away, and the commonest reasons."""
    refused = {
        str(key): value
        for key, value in _counters(row).items()
        if key in _REFUSALS and isinstance(value, int) and value > 0
    }
    if not refused:
        return "0" if _counters(row) else _UNKNOWN
    most = sorted(refused, key=lambda key: (-refused[key], key))[:3]
    return f"{sum(refused.values())} ({', '.join(f'{key} {refused[key]}' for key in most)})"


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


def _rows(status: Mapping[str, Any], key: str) -> list[_Row]:
    rows = status.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _word(row: _Row, key: str) -> str:
    value = row.get(key)
    return (_printable(str(value)[:NAME_MAX]) if value is not None else "") or _UNKNOWN


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


def _bound(row: _Row) -> Interval | None:
    lower, upper = row.get("lower_ns"), row.get("upper_ns")
    if isinstance(lower, int) and isinstance(upper, int) and lower <= upper:
        return Interval(lower, upper)
    return None


def _offset(row: _Row, bound: Interval) -> int:
    offset = row.get("offset_ns")
    return bound.clamp(offset) if isinstance(offset, int) else bound.midpoint


def _signed(row: _Row) -> str:
    bound = _bound(row)
    if bound is None:
        return _UNKNOWN
    offset = _offset(row, bound)
    return f"{'-' if offset < 0 else '+'}{describe(offset, bound)[0]}"


def _uncertainty(row: _Row) -> str:
    bound = _bound(row)
    return _UNKNOWN if bound is None else describe(_offset(row, bound), bound)[1]


def _span(bound: Interval) -> str:
    return f"{_outward(bound.lo, -1)} to {_outward(bound.hi, +1)}"


def _outward(ns: int, towards: int) -> str:
    """An end of a bound with four digits, rounded away from the bound."""
    step = 10 ** max(0, len(str(abs(ns))) - 4)
    rounded = -(-ns // step) * step if towards > 0 else ns // step * step
    return f"{'+' if rounded > 0 else ''}{short(rounded)}"


def _short(value: object) -> str:
    return short(rounded_up(value)) if isinstance(value, int) and value >= 0 else _UNKNOWN


def _drift(value: object) -> str:
    return f"{value / 1000:+.3g} ppm" if isinstance(value, int | float) else _UNKNOWN


def _age(value: object) -> str:
    if not isinstance(value, int | float):
        return _UNKNOWN
    return f"{value:.1f} s ago" if value < 120 else f"{value / 60:.0f} min ago"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
