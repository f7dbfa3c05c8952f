"""What a lying member tells its neighbours about its timescale, in place of the truth. One liar, many ways."""

from __future__ import annotations

from dataclasses import replace

from skewd.election import UTC, Timescale
from tests.mesh.election_world import ROUND_NS, Lie, Node, Rumour, World

EPOCH_MAX = (1 << 32) - 1


def _own(node: Node, epoch: int) -> Timescale:
    return Timescale(epoch, node.name, node.name, node.boot, node.raw_era)


def huge_epochs(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """A new timescale of its own every few seconds, each of a huge epoch."""
    return replace(honest, timescale=_own(liar, EPOCH_MAX - world.now_ns // (7 * ROUND_NS)))


def steady_huge_epoch(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, timescale=_own(liar, EPOCH_MAX))


def ancient_epochs(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, timescale=_own(liar, 0))


def keeper_that_is_not(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, timescale=Timescale(1, "aaa", "aaa", bytes(16), 1))


def somebody_elses_name(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """In the name of a node that keeps nothing of the kind."""
    other = world.nodes[min(name for name in world.nodes if name != liar.name)]
    return replace(honest, timescale=_own(other, 0))


def false_successor(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """Carries on what the others have, an hour off."""
    said = honest.timescale
    if said is None or said == UTC:
        return honest
    raw = liar.clock.raw(world.now_ns)
    k_ns = 10**18 + world.now_ns - raw + 3600 * 10**9
    return replace(
        honest,
        timescale=replace(said, keeper=liar.name, keeper_boot=liar.boot, keeper_raw_era=liar.raw_era, k_ns=k_ns),
    )


def false_utc(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, timescale=Timescale(1, "utc", liar.name, liar.boot, liar.raw_era, 0), claims_utc=True)


def flapping_vote(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """Now for one, now for another of all that are named."""
    named = {node.timescale for node in world.nodes.values()} - {UTC, None}
    own = [*sorted(named, key=repr), _own(liar, 1)]
    return replace(honest, timescale=own[world.now_ns // (9 * ROUND_NS) % len(own)])


def flapping_utc(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, claims_utc=world.now_ns // (40 * ROUND_NS) % 2 == 0)


def two_tongues(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """Another timescale to each neighbour, under one number: who hears both has the proof."""
    return replace(honest, timescale=_own(liar, sum(listener.encode())))


def many_boots(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """A new boot every few seconds, with a timescale of that boot."""
    boot = (world.now_ns // (5 * ROUND_NS)).to_bytes(16, "big")
    return replace(honest, boot=boot, timescale=Timescale(1, liar.name, liar.name, boot, 1))


def many_eras(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """Keeps what it keeps, and suspends every few seconds."""
    era = 1 + world.now_ns // (20 * ROUND_NS)
    return replace(honest, raw_era=era, timescale=Timescale(1, liar.name, liar.name, liar.boot, era))


def drops_what_it_keeps(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    """Honest until it is the keeper; then a timescale of its own every few seconds."""
    said = honest.timescale
    if said is None or said.keeper != liar.name:
        return honest
    return replace(honest, timescale=_own(liar, world.now_ns // (30 * ROUND_NS)))


def silent(world: World, liar: Node, honest: Rumour, listener: str) -> Rumour:
    return replace(honest, timescale=None)


ALL: tuple[Lie, ...] = (
    huge_epochs,
    steady_huge_epoch,
    ancient_epochs,
    keeper_that_is_not,
    somebody_elses_name,
    false_successor,
    false_utc,
    flapping_vote,
    flapping_utc,
    two_tongues,
    many_boots,
    many_eras,
    drops_what_it_keeps,
    silent,
)
