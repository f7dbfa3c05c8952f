"""What a node tells of itself: the status that ``skewd status``, the check, the metrics and the page are made of.

``node.py`` knows; here it is put into words and rows. One dictionary serves every reader, so that they can't disagree.
Its keys are promised to programs: one that is not known is None, none is ever left out. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skewd.assumptions import violations
from skewd.bounds.history import Status
from skewd.durations import format_duration

if TYPE_CHECKING:
    from skewd.node import Node, Peer


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
    told["peers"] = [_peer_row(node, name, peer, now_raw_ns) for name, peer in sorted(node.peers.items())]
    told["sources"] = _source_rows(node, now_raw_ns)
    told["links"] = []
    told["virtual"] = node.virtual
    told["contradictions"] = node.contradictions
    told["uptime_s"] = round(node.uptime_ns(now_raw_ns) / 1e9, 3)
    told["messages"] = _messages(node, told, now_raw_ns)
    return told


def _peer_row(node: Node, name: str, peer: Peer, now_raw_ns: int) -> dict[str, Any]:
    estimate = node.peer_estimate(name, now_raw_ns)
    age_ns = now_raw_ns - peer.heard_ns
    late = node.is_late(peer, now_raw_ns)
    return {
        "name": name,
        "address": peer.address,
        "link": peer.link,
        "offset_ns": estimate.bound.midpoint if estimate else None,
        "lower_ns": estimate.bound.lo if estimate else None,
        "upper_ns": estimate.bound.hi if estimate else None,
        "drift_ppb": estimate.drift_ppb.midpoint if estimate else None,
        "rtt_min_ns": peer.rtt.least_ns(),
        "age_s": round(max(age_ns, 0) / 1e9, 3),
        "trust": "first-hand",
        "state": "pending" if estimate is None else "holdover" if late else "synchronized",
        "assumptions": peer.observed.told(now_raw_ns),
    }


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
        messages += violations(row["name"], row["assumptions"])
    if node.contradictions:
        messages.append(
            f"{node.contradictions} contradictions: a clock moved by more than its declared limits"
            " ([clock] max_drift_ppm, max_wander_ppb_per_s), or a raw clock jumped"
        )
    return messages
