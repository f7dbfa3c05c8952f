"""What a node tells of itself: the status that ``skewd status``, the check, the metrics and the page are made of.

``node.py`` knows; here it becomes a :class:`~skewd.status.NodeStatus`, and what is wrong becomes problems.

Of the members of a mesh each has one row. ``trust`` says what its bound rests on: own exchanges (``first-hand``) or
f + 1 disjoint paths over what others say (``composed``); ``path`` lists the paths, and a first-hand row with more than
its own one was narrowed by others. ``lower_link`` and ``upper_link`` name the links that gave the two ends by own
exchanges (``over_links.py``). ``age_s`` is the time since this node heard the peer, or for a composed row the age of
the oldest record used.

Limits: ``ROWS_MAX`` rows of members; ``peers_left_out`` counts the others. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from skewd import assumptions, requirements
from skewd.bounds.compose import COMPOSED, FIRST_HAND
from skewd.bounds.history import Status
from skewd.durations import format_duration
from skewd.lean import msgspec
from skewd.problems import Problem
from skewd.status import Assumptions, LinkUse, NodeStatus, PeerRow, SourceRow

if TYPE_CHECKING:
    from skewd.estimate import Estimate
    from skewd.node import Node, Peer
    from skewd.utc import Source

ROWS_MAX = 256
"""Rows of members told at most."""


def status(node: Node, now_raw_ns: int) -> NodeStatus:
    """What the node knows, still without what is wrong: see docs for the fields; unknown is None."""
    estimate = node.reference_estimate(now_raw_ns)
    reference = node.reference_name()
    peers, left_out = _member_rows(node, now_raw_ns)
    told = NodeStatus(
        node=node.name,
        era=node.wall.era,
        reference=None if reference is None else "utc" if reference == "utc" else f"node:{reference}",
        peers=peers,
        peers_left_out=left_out,
        peers_configured=len(node.asked.peers),
        peers_heard=len(node.peers),
        peers_bounded=sum(peer.pair.known for peer in node.peers.values()),
        sources=_source_rows(node, now_raw_ns),
        virtual=node.virtual,
        contradictions=node.contradictions,
        uptime_s=round(node.uptime_ns(now_raw_ns) / 1e9, 3),
        at_ns=now_raw_ns + node.wall.wall_minus_raw(now_raw_ns).midpoint,
    )
    if estimate is None:
        return told
    offset = node.offset_applied(estimate, now_raw_ns)
    uncertainty = estimate.bound.farthest(offset)
    trust, path = _reference_trust(node, estimate, now_raw_ns)
    return msgspec.structs.replace(
        told,
        status=node.status_with(estimate, uncertainty).value,
        offset_ns=offset,
        lower_ns=estimate.bound.lo,
        upper_ns=estimate.bound.hi,
        uncertainty_ns=uncertainty,
        drift_ppb=estimate.drift_ppb.midpoint,
        age_s=round(max(estimate.age_ns, 0) / 1e9, 3),
        trust=trust,
        path=path,
    )


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


def _member_rows(node: Node, now_raw_ns: int) -> tuple[list[PeerRow], int]:
    """The rows of all peers and of members that are known through the mesh only, and how many had no room.

    Own peers come first, then the others, by name.
    """
    names = sorted(node.peers)
    if (view := node.mesh) is not None:
        names += sorted((view.known.keys() | view.convicted | view.disputed) - node.peers.keys() - {node.name, "utc"})
    shown = names[:ROWS_MAX]
    return [_member_row(node, name, now_raw_ns) for name in shown], len(names) - len(shown)


def _member_row(node: Node, name: str, now_raw_ns: int) -> PeerRow:
    peer, estimate = node.peers.get(name), node.peer_estimate(name, now_raw_ns)
    basis = _basis(node, name, now_raw_ns)
    own = peer is not None and basis.trust == FIRST_HAND
    lower_link, upper_link = peer.links.ends() if peer is not None and own else (None, None)
    age_ns = now_raw_ns - peer.heard_ns if peer is not None and own else None if estimate is None else estimate.age_ns
    return PeerRow(
        name=name,
        address=None if peer is None else peer.address,
        link="+".join(sorted({link for link in (lower_link, upper_link) if link})) or (peer.link if peer else None),
        offset_ns=estimate.bound.midpoint if estimate else None,
        lower_ns=estimate.bound.lo if estimate else None,
        upper_ns=estimate.bound.hi if estimate else None,
        drift_ppb=estimate.drift_ppb.midpoint if estimate else None,
        rtt_min_ns=None if peer is None else peer.rtt.least_ns(),
        age_s=None if age_ns is None else round(max(age_ns, 0) / 1e9, 3),
        heard_s=None if peer is None else round(max(now_raw_ns - peer.heard_ns, 0) / 1e9, 3),
        trust=basis.trust,
        path=basis.path,
        state=_state(node, name, estimate, basis),
        lower_link=lower_link,
        upper_link=upper_link,
        links=[] if peer is None else [LinkUse(**use) for use in peer.links.told(now_raw_ns)],
        assumptions=None if peer is None else _observed(peer, now_raw_ns),
    )


def _observed(pair: Peer | Source, now_raw_ns: int) -> Assumptions:
    return msgspec.convert(pair.observed.told(now_raw_ns), Assumptions)


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


def _source_rows(node: Node, now_raw_ns: int) -> list[SourceRow]:
    known, selection = node.utc_selection(now_raw_ns)
    bounds = {source.name: (bound, index) for index, (source, bound) in enumerate(known)}
    rows: list[SourceRow] = []
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
        rows.append(
            SourceRow(
                name=source.name,
                type=source.type,
                offset_ns=bound.midpoint if bound else None,
                lower_ns=bound.lo if bound else None,
                upper_ns=bound.hi if bound else None,
                rtt_min_ns=source.rtt.least_ns(),
                root_distance_ns=source.root_distance_ns,
                stratum=source.stratum,
                age_s=None if source.heard_ns is None else round((now_raw_ns - source.heard_ns) / 1e9, 3),
                state=state,
                leap=("none", "insert", "delete")[source.leap],
                smear=source.smear,
                configured=not node.sources_found,
                assumptions=_observed(source, now_raw_ns),
            )
        )
    return rows


def problems(node: Node, told: NodeStatus, now_raw_ns: int) -> list[Problem]:
    """What is wrong, as far as the node itself knows.

    Args:
        told: the status at that instant.
    """
    found: list[Problem] = []
    if node.virtual:
        wrong = "this is a VIRTUAL node: its clocks are a test's stand-ins, not this machine's"
        found.append(Problem("virtual-clock", "", wrong, ""))
    found += requirements.problems(node.asked, node.has(now_raw_ns))
    about_reference = _about_reference(node, told, now_raw_ns)
    # Where there is nobody to begin with, that is all there is to say.
    nobody = node.blocked is not None or any(one.code == "nothing-to-compare" for one in found)
    if about_reference is not None and not nobody:
        found.append(about_reference)
    if any(source.leap_at_ns is not None for source in node.sources.values()):
        wrong = "a leap second is announced: around it the bound is as wide as both readings of UTC"
        found.append(Problem("leap-announced", "", wrong, ""))
    for source in told.sources:
        if source.state in ("falseticker", "unreachable"):
            wrong = f"source {source.name} is {source.state}"
            found.append(Problem(f"source-{source.state}", source.name or "", wrong, ""))
    observed = [(row.name, row.assumptions) for row in told.peers]
    observed += [(row.name, row.assumptions) for row in told.sources]
    for name, pair in observed:
        if pair is not None:
            found += assumptions.problems(name or "", pair)
    return found


def _about_reference(node: Node, told: NodeStatus, now_raw_ns: int) -> Problem | None:
    """Why there is no good bound on the reference."""
    reference = node.reference_name()
    if reference is None and not node.sources and not node.peers:
        return None  # said above
    if reference is None and node.mesh is not None:
        wrong = "joining the mesh: listening which reference it follows"
        return Problem("joining", "", wrong, "wait some seconds")
    if told.offset_ns is None and reference == "utc":
        if not node.sources:
            wrong = "the reference is utc, and neither this node nor enough others have it"
            return Problem("utc-unknown", "", wrong, "add [[source]]")
        if node.utc_selection(now_raw_ns)[0] and node.sources_short is not None:
            return None  # said with who is lacking (``source_set.py``)
        if node.utc_selection(now_raw_ns)[0]:
            wrong = "the sources disagree and no majority tells which is right"
            return Problem("sources-disagree", "", wrong, "add a source")
        return Problem("sources-unheard", "", "no source has answered yet", "see what each source says")
    if told.offset_ns is None and reference == node.name:
        wrong = "the reference is this node's own clock, and nobody else goes by it"
        remedy = f'see why no peer is heard; if it is meant to be the reference, write [mesh] reference = "{node.name}"'
        return Problem("reference-unheard", node.name, wrong, remedy)
    if told.offset_ns is None:
        wrong = f"no bound for the reference node '{reference}' yet"
        return Problem("reference-unheard", reference or "", wrong, "see whether it is among [mesh] peers, and up")
    if told.status == Status.UNSYNCHRONIZED.value:
        limit = format_duration(node.config.clock.max_uncertainty)
        width = format_duration(told.uncertainty_ns or 0)
        wrong = f"the bound (+-{width}) is wider than [clock] max_uncertainty ({limit})"
        return Problem("bound-too-wide", "", wrong, "name a nearer source or peer, or raise that limit")
    if told.status == Status.HOLDOVER.value:
        wrong = f"holdover: the reference was last heard {told.age_s or 0:.0f} s ago, the bound grows"
        return Problem("holdover", "", wrong, "see whether the reference runs and can be reached")
    return None
