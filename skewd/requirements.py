"""What the configuration asks for that this node has not: why it may not call itself synchronized.

The problem: a node that hears nobody still has a clock. It founds a timescale of its own, agrees with itself to the
nanosecond, and a check that looks at the width of the bound says OK, while an address is misspelt, a port is blocked,
a name does not resolve, or the key is another mesh's.

The insight: isolation is told from health only by what was *asked for*. Somebody wrote down peers and sources. As long
as none of them was heard since the start, the node does not have what its configuration asks for, whatever it believes
of itself, and whatever it remembers from before a restart. This node's own clock is a reference only where the
configuration says so by its name, or while others are there who follow it.

So there is one place, without state, that both decides (:func:`blocked`) and says why (:func:`problems`). All outputs
follow: ``Node.reference_estimate`` gives nothing while a node is blocked.

Who is asked for: the addresses of ``[mesh] peers`` and of ``[mesh] dns``, and the peers of each ``[[link]]``; this
node's own address among them is nobody. A DNS name that was never resolved asks for somebody who is not known yet. One
that has this node's address alone asks for nobody (yet): then a source of UTC is enough, and without one the node has
nothing to compare its clock with.

Limits: heard is who completed an exchange since the start; a peer that answers wrongly was heard. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from skewd.durations import format_duration
from skewd.problems import Problem

if TYPE_CHECKING:
    from skewd.config import Config

LOST_INTERVALS = 10
LOST_AT_LEAST_NS = 15_000_000_000
"""Peers that were heard count as lost when none was for so long."""

SHOWN_MAX = 8
"""Peers named one by one."""


class Asked(NamedTuple):
    """What the configuration asks for.

    Attributes:
        name: this node's.
        reference: ``[mesh] reference``.
        peers: where peers are asked (on media that all share: their names), this node's own address left out.
        own: addresses of ``[mesh] peers`` that turned out to be this node's own.
        dns: ``[mesh] dns``.
        resolved: whether it was ever resolved; true without it.
        sources: how many sources are configured.
        meshed: whether there is a mesh or a link at all, ``keyless``: and whether it has no key.
        lost_after_ns: how long all peers may be silent.
    """

    name: str
    reference: str
    peers: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    dns: str | None = None
    resolved: bool = True
    sources: int = 0
    meshed: bool = False
    keyless: bool = False
    lost_after_ns: int = LOST_AT_LEAST_NS

    @property
    def anybody(self) -> bool:
        """Whether somebody else is asked for."""
        return bool(self.peers) or not self.resolved


class Has(NamedTuple):
    """What the node has.

    Attributes:
        heard: those of ``Asked.peers`` that were heard since the start.
        silent: those that were asked often enough to have answered, and never did.
        members: how many others are known now, whoever they are.
        silence_ns: how long ago anybody was heard last; None if nobody was since the start.
        sources_heard: whether any of the configured sources was heard with a bound since the start.
        sources: how many sources there are, those that were found on this machine included.
        found: what was found on this machine (``chrony``, ``ptp``, ``kernel``), where no source is configured.
        reference: what is the reference now: ``utc``, a node's name, or None.
    """

    heard: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    members: int = 0
    silence_ns: int | None = None
    sources_heard: bool = False
    sources: int = 0
    found: str | None = None
    reference: str | None = None


def asked_by(
    config: Config,
    *,
    over_udp: frozenset[str] | None = None,
    own: frozenset[str] = frozenset(),
    resolved: bool = False,
) -> Asked:
    """What a configuration asks for.

    Args:
        over_udp: the addresses that are known now, from ``[mesh] peers`` and ``dns``; those of the former if None.
        own: of ``[mesh] peers``, those that are this node's own.
        resolved: whether ``[mesh] dns`` was ever resolved.
    """
    mesh = config.mesh
    # Who is only sent to can't be heard over that link.
    beside = {peer for link in config.link if link.direction != "send" for peer in link.peers}
    return Asked(
        config.node.name,
        mesh.reference,
        peers=(frozenset(mesh.peers) if over_udp is None else over_udp) | beside,
        own=own,
        dns=mesh.dns,
        resolved=resolved or mesh.dns is None,
        sources=len(config.sources),
        meshed=config.meshed,
        keyless=config.keyless,
        lost_after_ns=lost_after_ns(mesh.interval),
    )


def lost_after_ns(interval_ns: int) -> int:
    """How long all peers may be silent before they count as lost, where they are asked every ``interval_ns``."""
    return max(LOST_INTERVALS * interval_ns, LOST_AT_LEAST_NS)


def blocked(asked: Asked, *, heard: bool, sources_enough: bool) -> str | None:
    """The code of what keeps this node from being synchronized at all; None while nothing does.

    Args:
        heard: whether any of ``asked.peers`` was heard since the start.
        sources_enough: whether as many of the configured sources as are needed were heard since the start, each with
            a bound.
    """
    if asked.anybody and not heard:
        return "peers-unheard"
    if asked.sources and not sources_enough:
        return "sources-below-minimum"
    return None


def problems(asked: Asked, has: Has) -> list[Problem]:
    """What is asked for and lacking, or to be known about it. What is over is not told."""
    found: list[Problem] = []
    if asked.keyless:
        found.append(
            Problem(
                "keyless-mesh",
                "",
                "this mesh has no key ([mesh] key): every process on this machine could speak as one of its peers",
                "write a key with 'skewd keygen FILE', and name it in [mesh] key_file on every node",
            )
        )
    found += _of_peers(asked, has)
    if asked.sources and not has.sources_heard:
        found.append(Problem("sources-unheard", "", "no source has answered yet", "see what each source says"))
    named = asked.reference == asked.name
    if not asked.anybody and not asked.sources and not has.sources and not has.members and not named:
        found.append(
            Problem(
                "nothing-to-compare",
                "",
                "there is nothing to compare this clock with: no source of UTC, and nobody else in the mesh"
                if asked.meshed
                else "there is nothing to compare this clock with: no source of UTC and no peer",
                "add [[source]] or [mesh] peers",
            )
        )
    if asked.meshed and has.found in _SOURCES_TO_ADD and has.reference not in (None, "utc") and not _fixed(asked):
        found.append(
            Problem(
                "source-found-unused",
                has.found or "",
                f"{_SOURCES_TO_ADD[has.found or '']} was found on this machine and goes unused: in a mesh only"
                " configured sources count, for all nodes must have the same reference",
                f"add [[source]] type = \"{has.found}\", or set [mesh] reference to the node that it shall be",
            )
        )
    return found


_SOURCES_TO_ADD = {"chrony": "a chronyd that keeps time", "ptp": "a ptp4l that keeps time"}


def _fixed(asked: Asked) -> bool:
    """Whether the reference is a node that the configuration names."""
    return asked.reference not in ("auto", "utc")


def _of_peers(asked: Asked, has: Has) -> Iterable[Problem]:
    for address in sorted(asked.own)[:SHOWN_MAX]:
        yield Problem("own-address", address, f"{address} of [mesh] peers is this node itself, and is not asked", "")
    if not asked.anybody:
        if asked.own or asked.dns is not None:
            lists = [*(["[mesh] peers"] if asked.own else []), *([f"[mesh] dns {asked.dns}"] if asked.dns else [])]
            what = " and ".join(lists)
            yield Problem(
                "peers-none-yet",
                "",
                f"{what} has no address but this node's own: nobody else is in the mesh yet",
                "start another node, or add [[source]] where this one shall do without",
            )
        return
    if not has.heard:
        yield Problem("peers-unheard", "", _nobody(asked), _REMEDY)
        return
    unheard = sorted((asked.peers & has.silent) - has.heard)
    for place, address in enumerate(unheard[:SHOWN_MAX]):
        more = f" (nor have {len(unheard) - SHOWN_MAX} others)" if place == SHOWN_MAX - 1 < len(unheard) - 1 else ""
        yield Problem("peer-unheard", address, f"the peer {address} has not answered since the start{more}", _REMEDY)
    if has.silence_ns is not None and has.silence_ns > asked.lost_after_ns:
        yield Problem(
            "peers-lost",
            "",
            f"no peer is heard any more; the last one was {format_duration(has.silence_ns)} ago",
            "check that they run, and that the network lets their messages pass",
        )


_REMEDY = "check the address, that skewd runs there, that the network lets UDP pass, and that the key is the same"


def _nobody(asked: Asked) -> str:
    if not asked.peers:
        return f"no peer is known: [mesh] dns {asked.dns} was not resolved since the start"
    names = sorted(asked.peers)
    more = f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else ""
    unresolved = "" if asked.resolved else f"; [mesh] dns {asked.dns} was not resolved"
    return f"no configured peer was heard since the start ({', '.join(names[:SHOWN_MAX])}{more}){unresolved}"
