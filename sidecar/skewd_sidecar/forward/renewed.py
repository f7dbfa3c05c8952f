"""What is made anew when it is too old, while those who use the old one finish with it: connections of libraries.

gRPC's library and aiohttp keep a connection for as long as it works, to where its name led when it was made. A new
channel or session resolves the name again.

Limits: made when it is used, not before. What cannot be made anew (a certificate that cannot be read just now) leaves
the old one in use for a while longer. Time and chance are handed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from skewd_sidecar.endpoint import EndpointError

Thing = TypeVar("Thing")


@dataclass(eq=False)
class Held(Generic[Thing]):
    """One that is in use by some."""

    thing: Thing
    end_s: float
    users: int = 0
    retired: bool = False


class Renewed(Generic[Thing]):
    """See the module's text. Made within the running event loop.

    Args:
        make: makes one; raises :class:`EndpointError` where it cannot.
        close: ends one that nobody uses.
        age_s: how old one gets, less up to an eighth at random.
        clock: seconds that do not go back.
        chance: evenly distributed in [0, 1).

    Raises:
        EndpointError: the first cannot be made.
    """

    def __init__(
        self,
        make: Callable[[], Thing],
        close: Callable[[Thing], Awaitable[None]],
        age_s: float,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._make = make
        self._close = close
        self._age_s = age_s
        self._clock = clock
        self._chance = chance
        self._closing: set[asyncio.Task[None]] = set()
        self._held = self._new()

    def take(self) -> Held[Thing]:
        """The one to use now; to be given back."""
        held = self._held
        if self._clock() >= held.end_s:
            try:
                self._held = self._new()
            except EndpointError:
                held.end_s = self._clock() + self._age_s / 16
            else:
                held.retired = True
                self._end(held)
                held = self._held
        held.users += 1
        return held

    def give_back(self, held: Held[Thing]) -> None:
        """It is not used any more."""
        held.users -= 1
        self._end(held)

    async def close(self) -> None:
        """Ends all of them."""
        self._held.retired = True
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._close(self._held.thing)

    def _new(self) -> Held[Thing]:
        return Held(self._make(), self._clock() + self._age_s * (1 - self._chance() / 8))

    def _end(self, held: Held[Thing]) -> None:
        if held.retired and not held.users and held is not self._held:
            task = asyncio.ensure_future(self._ended(held.thing))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _ended(self, thing: Thing) -> None:
        await self._close(thing)
