"""A name of many time servers: which of its addresses is asked by whom.

The problem: the majority is counted by configured sources, and a pool is configured by one name. If its servers were
one source, asked in turn, then a liar among them would be believed alone as long as its turn lasts.

The insight: each of ``size`` slots is a source of its own (``name#1``, ``name#2``, ...), with a filter and a vote of
its own, and no two slots ask the same address. A slot whose server stays silent or refuses gives the address back and
takes one that nobody asks; what it knew of the server before is void.

Limits: the slots count as that many configured sources, whether the name has as many addresses or not; one that has no
address says so. The servers of a pool may belong to one hand, which nobody here can see. Used within the running event
loop; the system's resolver decides how long an answer is kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from skewd.names import NAMES, Found

FAILED_MAX = 64
"""Addresses remembered as failed at most; they are asked again when there is no other."""

WAIT_S = 2.0
"""How long the system's resolver is waited for."""


class NobodyLeft(OSError):
    """A pool has no server that nobody asks yet."""


async def system_resolver(host: str, port: int) -> Found:
    """All addresses of a name.

    Raises:
        OSError: it has none, or nobody answers.
        UnicodeError: it is no possible name.
    """
    return await NAMES.find(host, port, limit_s=WAIT_S)


class Pool:
    """The addresses of one name, handed out one to a slot.

    Args:
        on_change: called with a slot's name when it turns to another server.
        resolve: how the name is resolved.
    """

    def __init__(
        self,
        host: str,
        port: int,
        on_change: Callable[[str], None],
        resolve: Callable[[str, int], Awaitable[Found]] = system_resolver,
    ) -> None:
        self._host, self._port = host, port
        self._on_change, self._resolve = on_change, resolve
        self._held: dict[str, tuple[Any, Any, Any, Any, Any]] = {}
        self._failed: dict[Any, None] = {}

    async def take(self, slot: str, give_up: bool) -> Found:
        """The address that ``slot`` is to ask from now on.

        Args:
            give_up: not that of before again, unless there is no other.

        Raises:
            NobodyLeft: the name has no address that no other slot asks.
            OSError: it has none at all, or nobody answers.
        """
        if slot in self._held and not give_up:
            return [self._held[slot]]
        found = await self._resolve(self._host, self._port)
        before = self._held.pop(slot, None)
        if before is not None:
            self._failed.pop(before[4], None)
            self._failed[before[4]] = None
            if len(self._failed) > FAILED_MAX:
                del self._failed[next(iter(self._failed))]
        held = {entry[4] for entry in self._held.values()}
        free = [entry for entry in found if entry[4] not in held]
        if not free:
            raise NobodyLeft(
                f"{self._host} has {len({entry[4] for entry in found})} addresses, and all are asked already; lower"
                " pool_size, or [utc] min_sources"
            )
        # Those that failed come last, the one that failed longest ago first.
        order = {address: place for place, address in enumerate(self._failed)}
        chosen = min(free, key=lambda entry: order.get(entry[4], -1))
        self._held[slot] = chosen
        if before is not None and chosen[4] != before[4]:
            self._on_change(slot)
        return [chosen]

    def give_back(self, slot: str) -> None:
        """The slot asks no more."""
        self._held.pop(slot, None)
