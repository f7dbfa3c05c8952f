"""chronyd on this machine, asked over UDP on loopback or over its Unix socket.

UDP needs no permission and is asked first; the Unix socket needs chronyd's user or root, and is tried where UDP gives
nothing (chronyd may be told ``cmdport 0``). What the answer means is in ``chrony_wire.py``.

What it remembers of the wall clock from before somebody else stepped it is no claim (``memory.py``).

Limits: only this machine's chronyd can be asked, for another's speaks of another clock.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from skewd.clock import Clock
from skewd.ports import is_loopback, split_address
from skewd.sources.chrony_wire import MAX_REPLY_BYTES, FollowsNothing, is_reply, parse, request
from skewd.sources.claim import Claim, between
from skewd.sources.local import AnswerLost, HostWall, exchange, unix_socket
from skewd.sources.memory import FromBefore, Memory, Steps

PORT = 323
_SLACK_NS = 50_000_000
"""By how much the instant that chronyd names may be off what the wall clock showed then, besides its correction."""

USUAL = ("127.0.0.1:323", "[::1]:323", "/run/chrony/chronyd.sock")


class ChronyReader:
    """Asks for one tracking report at a time.

    Args:
        address: ``host:port`` on loopback, or a path; None for the usual ones.
        directory: where our end of a Unix socket goes.
        steps: those of the host's wall clock; its own account of them by default.
        allow_local: believe a chronyd that follows its own clock.

    Raises:
        ValueError: an address beyond loopback.
    """

    def __init__(
        self,
        address: str | None,
        clock: Clock,
        directory: Path,
        max_drift_ppm: int,
        max_wander_ppb_per_s: int,
        *,
        steps: Steps | None = None,
        allow_local: bool = False,
    ) -> None:
        self._addresses: tuple[str, ...] = USUAL if address is None else (address,)
        self._wall, self._directory = HostWall(clock), directory
        self._max_drift_ppm, self._max_wander = max_drift_ppm, max_wander_ppb_per_s
        self._steps = steps or Steps(self._wall)
        self._memory, self._allow_local = Memory(self._steps, mixes=True), allow_local
        for one in self._addresses:
            if not one.startswith("/") and not is_loopback(split_address(one, PORT)[0]):
                raise ValueError(f"{one} is another machine's chronyd, which speaks of another clock; use 127.0.0.1")

    async def __call__(self) -> Claim:
        """The claim, from the first address that answers.

        Raises:
            Refused: chronyd is there and makes no claim.
            OSError: it is not there.
        """
        missing: list[str] = []
        lost: AnswerLost | None = None
        for address in self._addresses:
            try:
                claim = await self._ask(address)
            except OSError as error:
                missing.append(f"{address}: {error.strerror or error}")
                lost = error if isinstance(error, AnswerLost) else lost
                continue
            self._addresses = (address, *(other for other in self._addresses if other != address))
            return claim
        if lost is not None:
            raise lost  # the one address where chronyd is
        raise OSError(f"chronyd does not answer ({'; '.join(missing)})")

    def close(self) -> None:
        """Nothing stays open between questions."""

    async def _ask(self, address: str) -> Claim:
        sequence = secrets.randbits(32)
        async with self._connected(address) as sock:
            before = self._wall.before()
            data = await exchange(
                sock, request(sequence), lambda data: is_reply(data, sequence), MAX_REPLY_BYTES, "chronyd"
            )
            after = self._wall.after()
        self._steps.look()
        try:
            tracking = parse(data, allow_local=self._allow_local)
        except FollowsNothing:
            self._memory.emptied()
            raise
        correction, distance_ns = tracking.correction, tracking.root_distance_ns
        slack_ns = _SLACK_NS + max(abs(correction.lo), abs(correction.hi))
        worth = self._memory.judge(tracking.reference_ns, slack_ns, distance_ns)
        if not worth.believed:
            raise FromBefore(
                "the wall clock was stepped, and chronyd still speaks of the clock of before; its next measurement is"
                " waited for; 'chronyc reset sources' makes it forget and measure at once"
            )
        claimed = tracking.utc_minus_wall(after.sample.wall_at_ns(), self._max_drift_ppm, self._max_wander)
        claimed = claimed.widen(worth.wrong_ns)
        return Claim(
            *between(before, after, claimed, self._max_drift_ppm),
            tracking.leap,
            settled=worth.settled,
            root_distance_ns=tracking.root_distance_ns,
            stratum=tracking.stratum,
            reference_ns=tracking.reference_ns,
        )

    @contextlib.asynccontextmanager
    async def _connected(self, address: str) -> AsyncIterator[socket.socket]:
        if address.startswith("/"):
            async with unix_socket(address, self._directory, "chronyd") as sock:
                yield sock
            return
        host, port = split_address(address, PORT)
        if host == "localhost":
            host = "127.0.0.1"  # what the name means here, without asking a resolver that may hang
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((host, port))
            yield sock
