"""What a node tells of itself: the status that ``skewd status``, the check, the metrics and the page are made of.

``node.py`` knows; here it is put into words and rows. One dictionary serves every reader, so that they can't disagree.
Its keys are promised to programs: one that is not known is None, none is ever left out.

Of the members of a mesh each has one row. ``trust`` says what its bound rests on: own exchanges (``first-hand``) or
f + 1 disjoint paths over what others say (``composed``); ``path`` lists the paths, and a first-hand row with more than
its own one was narrowed by others. ``lower_link`` and ``upper_link`` name the links that gave the two ends by own
exchanges (``over_links.py``). ``age_s`` is the time since this node heard the peer, or for a composed row the age of
the oldest record used.

Limits: ``ROWS_MAX`` rows of members; ``peers_left_out`` counts the others. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from skewd.assumptions import violations
from skewd.bounds.compose import COMPOSED, FIRST_HAND
from skewd.bounds.history import Status
from skewd.durations import format_duration

if TYPE_CHECKING:
    from skewd.estimate import Estimate
    from skewd.node import Node

ROWS_MAX = 256
"""Rows of members told at most."""


def status(node: Node, now_raw_ns: int) -> dict[str, Any]:
    """``skewd status --json``: see docs for the fields; unknown is None."""
    estimate = node.reference_estimate(now_raw_ns)
    reference = node.reference_name()
    told: dict[str, Any] = {
        "node": node.name,
        "era": node.wall.era,
        "status": Status.UNSYNCHRONIZED.value,
        "reference": None if reference is None else "utc" if reference == "utc" else f"node:{reference}",
        "offset_ns": None,
        "lower_ns": None,
        "upper_ns": None,
        "uncertainty_ns": None,
        "drift_ppb": None,
        "age_s": None,
        "trust": None,
        "path": [],
    }
    if estimate is not None:
        offset = node.offset_applied(estimate, now_raw_ns)
        uncertainty = estimate.bound.farthest(offset)
        told |= {
            "status": node.status_with(estimate, uncertainty).value,
            "offset_ns": offset,
            "lower_ns": estimate.bound.lo,
            "upper_ns": estimate.bound.hi,
            "uncertainty_ns": uncertainty,
            "drift_ppb": estimate.drift_ppb.midpoint,
            "age_s": round(max(estimate.age_ns, 0) / 1e9, 3),
        }
        told["trust"], told["path"] = _reference_trust(node, estimate, now_raw_ns)
    told["peers"], told["peers_left_out"] = _member_rows(node, now_raw_ns)
    told["sources"] = _source_rows(node, now_raw_ns)
    told["links"] = []
    told["mesh"] = None
    told["virtual"] = node.virtual
    told["contradictions"] = node.contradictions
    told["uptime_s"] = round(node.uptime_ns(now_raw_ns) / 1e9, 3)
    told["messages"] = _messages(node, told, now_raw_ns)
    return told


class _Basis(NamedTuple):
    """What the bound on a member rests on.

    Attributes:
        trust: ``first-hand`` or ``composed``.
        path: the paths it was proven over, each the names after this node, the member's included; ``[name]`` is by own
            exchanges. Those that prove one end of a composed bound are disjoint; the two ends may have different ones.
        told_ns: age of the oldest record used; None if none was.
    """

    trust: str
    path: list[list[str]]
    told_ns: int | None = None


def _basis(node: Node, name: str, at_raw_ns: int) -> _Basis:
    peer, view = node.peers.get(name), node.mesh
    own = None if peer is None else peer.pair.offset(at_raw_ns)
    direct = [[name]] if own is not None else []
    if view is None:
        return _Basis(FIRST_HAND, direct)
    wall = view.wall(name)
    timebase = peer.declared.timebase if peer is not None else wall.timebase if wall is not None else None
    others = view.heard(name, at_raw_ns, timebase)
    if others is None:
        return _Basis(FIRST_HAND if peer is not None else COMPOSED, direct)
    paths = [list(path) for path in dict.fromkeys(view.known[name].composed.paths) if path != (name,)]
    if own is None:
        return _Basis(COMPOSED, paths, others.age_ns)
    both = own.intersect(others.offset)
    if both is None or both == own:
        return _Basis(FIRST_HAND, direct)
    return _Basis(FIRST_HAND, direct + paths, others.age_ns)


def _reference_trust(node: Node, estimate: Estimate, at_raw_ns: int) -> tuple[str, list[list[str]]]:
    """Trust and path of the bound on the reference; no path leads to a clock of one's own, or to own sources."""
    timescale = None if node.mesh is None else node.mesh.timescale
    name = node.reference_name() if timescale is None else timescale.keeper
    if name is None or name == node.name:
        return FIRST_HAND, []
    if name != "utc":
        return _basis(node, name, at_raw_ns)[:2]
    if not estimate.told_by_others or node.mesh is None or "utc" not in node.mesh.known:
        return FIRST_HAND, []
    return COMPOSED, [list(path) for path in dict.fromkeys(node.mesh.known["utc"].composed.paths)]


def _member_rows(node: Node, now_raw_ns: int) -> tuple[list[dict[str, Any]], int]:
    """The rows of all peers and of members that are known through the mesh only, and how many had no room.

    Own peers come first, then the others, by name.
    """
    names = sorted(node.peers)
    if (view := node.mesh) is not None:
        names += sorted((view.known.keys() | view.convicted | view.disputed) - node.peers.keys() - {node.name, "utc"})
    shown = names[:ROWS_MAX]
    return [_member_row(node, name, now_raw_ns) for name in shown], len(names) - len(shown)


def _member_row(node: Node, name: str, now_raw_ns: int) -> dict[str, Any]:
    peer, estimate = node.peers.get(name), node.peer_estimate(name, now_raw_ns)
    basis = _basis(node, name, now_raw_ns)
    own = peer is not None and basis.trust == FIRST_HAND
    lower_link, upper_link = peer.links.ends() if peer is not None and own else (None, None)
    age_ns = now_raw_ns - peer.heard_ns if peer is not None and own else None if estimate is None else estimate.age_ns
    return {
        "name": name,
        "address": None if peer is None else peer.address,
        "link": "+".join(sorted({link for link in (lower_link, upper_link) if link})) or (peer.link if peer else None),
        "offset_ns": estimate.bound.midpoint if estimate else None,
        "lower_ns": estimate.bound.lo if estimate else None,
        "upper_ns": estimate.bound.hi if estimate else None,
        "drift_ppb": estimate.drift_ppb.midpoint if estimate else None,
        "rtt_min_ns": None if peer is None else peer.rtt.least_ns(),
        "age_s": None if age_ns is None else round(max(age_ns, 0) / 1e9, 3),
        "heard_s": None if peer is None else round(max(now_raw_ns - peer.heard_ns, 0) / 1e9, 3),
        "trust": basis.trust,
        "path": basis.path,
        "state": _state(node, name, estimate, basis),
        "lower_link": lower_link,
        "upper_link": upper_link,
        "links": [] if peer is None else peer.links.told(now_raw_ns),
        "assumptions": None if peer is None else peer.observed.told(now_raw_ns),
    }


def _state(node: Node, name: str, estimate: Estimate | None, basis: _Basis) -> str:
    if node.mesh is not None:
        if name in node.mesh.convicted:
            return "convicted"
        known = node.mesh.known.get(name)
        if name in node.mesh.disputed or (known is not None and known.composed.disputed):
            return "disputed"
    if estimate is None:
        return "pending"
    # A peer that is not asked any more, for others are now, is kept up by what those say.
    kept_up = basis.told_ns is not None and estimate._replace(age_ns=basis.told_ns).heard
    return "synchronized" if estimate.heard or kept_up else "holdover"


def _source_rows(node: Node, now_raw_ns: int) -> list[dict[str, Any]]:
    known, selection = node.utc_selection(now_raw_ns)
    bounds = {source.name: (bound, index) for index, (source, bound) in enumerate(known)}
    statuses: list[dict[str, Any]] = []
    for source in node.sources.values():
        bound, index = bounds.get(source.name, (None, -1))
        if source.state == "unreachable":
            state = "unreachable"
        elif index in selection.truechimers:
            state = "truechimer"
        elif index in selection.falsetickers:
            state = "falseticker"
        else:
            state = "pending"
        statuses.append(
            {
                "name": source.name,
                "type": source.type,
                "offset_ns": bound.midpoint if bound else None,
                "lower_ns": bound.lo if bound else None,
                "upper_ns": bound.hi if bound else None,
                "rtt_min_ns": source.rtt.least_ns(),
                "age_s": None if source.heard_ns is None else round((now_raw_ns - source.heard_ns) / 1e9, 3),
                "state": state,
                "leap": ("none", "insert", "delete")[source.leap],
                "smear": source.smear,
                "configured": not node.sources_found,
                "assumptions": source.observed.told(now_raw_ns),
            }
        )
    return statuses


def _messages(node: Node, told: dict[str, Any], now_raw_ns: int) -> list[str]:
    """What is wrong, and what to do about it, in order of weight."""
    messages: list[str] = []
    reference = node.reference_name()
    if node.virtual:
        messages.append("this is a VIRTUAL node: its clocks are a test's stand-ins, not this machine's")
    if reference is None and not node.sources and not node.peers:
        if node.config.mesh.peers:
            messages.append("no peer has answered yet; check that they run, and that the key is the same")
        else:
            messages.append("nothing to compare this clock with; add [[source]] or [mesh] peers")
    elif reference is None and node.mesh is not None:
        messages.append("joining the mesh: listening which reference it follows; this takes some seconds")
    elif told["offset_ns"] is None:
        if reference == "utc" and not node.sources:
            messages.append("the reference is utc, and neither this node nor enough others have it; add [[source]]")
        elif reference == "utc":
            messages.append(
                "the sources disagree and no majority tells which is right; add a source"
                if node.utc_selection(now_raw_ns)[0]
                else "no source has answered yet"
            )
        else:
            messages.append(f"no bound for the reference node '{reference}' yet; is it among [mesh] peers, and up?")
    elif told["status"] == Status.UNSYNCHRONIZED.value:
        limit = format_duration(node.config.clock.max_uncertainty)
        width = format_duration(told["uncertainty_ns"])
        messages.append(f"the bound (+-{width}) is wider than [clock] max_uncertainty ({limit})")
    elif told["status"] == Status.HOLDOVER.value:
        messages.append(f"holdover: the reference was last heard {told['age_s']:.0f} s ago, the bound grows")
    if any(source.leap_at_ns is not None for source in node.sources.values()):
        messages.append("a leap second is announced; around it the bound is as wide as both readings of UTC")
    for source in told["sources"]:
        if source["state"] in ("falseticker", "unreachable"):
            messages.append(f"source {source['name']} is {source['state']}")
    for row in (*told["peers"], *told["sources"]):
        messages += violations(row["name"], row["assumptions"]) if row["assumptions"] is not None else []
    if node.contradictions:
        messages.append(
            f"{node.contradictions} contradictions: a clock moved by more than its declared limits"
            " ([clock] max_drift_ppm, max_wander_ppb_per_s), or a raw clock jumped"
        )
    return messages
