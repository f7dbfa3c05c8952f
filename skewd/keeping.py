"""What a daemon leaves for the one after it, written while it runs and never waited for.

Kept in ``[node] state_dir`` are the bounds (``resume.py``), the keys of other members by their records and by their
messages, and this node's own identity where there was no place for it at the start (``identity.py``). Each has a
thread's attention (``background.Keeper``): a slow or hung disk costs the loop nothing. What can't be written is a
problem (``state-not-kept``) for as long as it can't, and is tried again each time it is offered.

The keys of members are flushed to the disk, since they must outlast a crash of the machine; so they are written when
one of them has changed, and otherwise every ``PINS_EVERY_NS``: what else is beside a key, the number of its owner's
newest record, changes with every record.

Bounds that were learnt under no key, or under another one, must never be taken up as the present key's. So the keys of
messages are written one round after they were offered first, when the bounds of that moment are written.

Limits: at the end what is under way is waited for ``LAST_S``, and then left. After a crash of the machine a member's
record may be replayed that is older than the newest seen, by ``PINS_EVERY_NS`` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from skewd.background import Keeper
from skewd.problems import Problem

if TYPE_CHECKING:
    from skewd.identity import Identity, KeysFile, PinsFile
    from skewd.record_store import Pin
    from skewd.state_file import StateFile

PINS_EVERY_NS = 300_000_000_000
LAST_S = 1.0


class Keeping:
    """One daemon's. Used within the running event loop.

    Args:
        bounds: the file of the bounds; its directory is where all is kept.
    """

    def __init__(self, bounds: StateFile) -> None:
        self._directory = bounds.path.parent
        self._bounds = Keeper(bounds.write)
        self._pins: Keeper | None = None
        self._pinned: frozenset[tuple[str, bytes, bytes]] = frozenset()
        self._pinned_ns: int | None = None
        self._keys: Keeper | None = None
        self._keys_offered: dict[str, bytes] | None = None
        self._keys_written: dict[str, bytes] | None = None
        self._identity: Keeper | None = None
        self._unkept = b""

    def keep_bounds(self, content: bytes) -> None:
        """The bounds, encoded, as they are now."""
        self._bounds.keep(content)

    def keep_pins(self, file: PinsFile, pins: Mapping[str, Pin], now_ns: int, *, last: bool = False) -> None:
        """The keys of members, if it is time.

        Args:
            now_ns: CLOCK_MONOTONIC.
            last: this is the end.
        """
        from skewd.identity import encode_pins

        keys = frozenset((name, pin.public_key, pin.boot) for name, pin in pins.items())
        if self._pins is None:
            self._pins = Keeper(file.write_encoded)
        due = self._pinned_ns is None or now_ns - self._pinned_ns >= PINS_EVERY_NS
        if due or last or keys != self._pinned or self._pins.trouble is not None:
            self._pins.keep(encode_pins(pins))
            self._pinned, self._pinned_ns = keys, now_ns

    def keep_keys(self, file: KeysFile, keys: Mapping[str, bytes], *, last: bool = False) -> None:
        """The keys that peers speak under, if they changed; those of the call before, but for the ``last`` time."""
        from skewd.identity import encode_keys

        if self._keys is None:
            self._keys = Keeper(file.write_encoded)
        due, self._keys_offered = self._keys_offered, dict(keys)
        if last:
            due = self._keys_offered
        if due is not None and (due != self._keys_written or self._keys.trouble is not None):
            self._keys.keep(encode_keys(due))
            self._keys_written = due

    def keep_identity(self, node: str, identity: Identity) -> None:
        """This node's own key, if it is not kept yet."""
        if identity.unkept is None:
            return
        from skewd.identity import keep_identity

        if self._identity is None:
            self._identity = Keeper(lambda content: keep_identity(self._directory, node, content))
            self._unkept = identity.unkept
        self._identity.keep(self._unkept)

    async def finish(self) -> None:
        """Waits ``LAST_S`` at most for what is under way."""
        keepers = (self._bounds, self._pins, self._keys, self._identity)
        await asyncio.gather(*(keeper.finish(LAST_S) for keeper in keepers if keeper is not None))

    def problems(self) -> list[Problem]:
        """What is not kept, and why."""
        keepers = (
            (self._bounds, "bounds will not survive a restart"),
            (self._pins, "the keys of members will not survive a restart"),
            (self._keys, "the keys of peers will not survive a restart"),
            (self._identity, "this node's signing key will be another after a restart"),
        )
        wrong = [
            f"{lost} ({self._directory}: {keeper.trouble})"
            for keeper, lost in keepers
            if keeper is not None and keeper.trouble is not None
        ]
        remedy = f"make {self._directory} writable, with room, or choose another [node] state_dir; it is tried again"
        return [Problem("state-not-kept", str(self._directory), "; ".join(wrong), remedy)] if wrong else []
