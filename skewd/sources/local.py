"""What the sources on this machine have in common: asked once an interval, and what becomes of the answers.

A source of this kind is a function that reads one daemon, socket or device and gives a claim (``claim.py``), or
raises with a reason in words. Here is the loop around it: after a claim the source is reachable; after three failures
in a row it is unreachable, keeps being asked, and says why. Nothing a daemon answers can end it.

The wall clock these daemons speak of is this host's, even where the node's own clocks are a test's stand-ins.

Limits: one question at a time; an answer is waited for at most a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from skewd.clock import Clock, HostClock, WallSample, read_wall
from skewd.hostclock import KernelReader
from skewd.lean import structlog
from skewd.quiet import QuietLog
from skewd.sources.claim import Claim, Look, Refused
from skewd.sources.ntp import State

TIMEOUT_S = 1.0
_FAILURES_BEFORE_UNREACHABLE = 3
_DATAGRAMS_MAX = 32
_S = 1_000_000_000


class HostWall:
    """The host's wall clock beside a node's raw clock: what the daemons of this machine speak of."""

    virtual = False

    def __init__(self, clock: Clock) -> None:
        self._clock, self._host = clock, HostClock()
        self._kernel = KernelReader()

    def raw_ns(self) -> int:
        return self._clock.raw_ns()

    def wall_ns(self) -> int:
        return self._host.wall_ns()

    def sample(self) -> WallSample:
        """A sandwich of host wall - raw."""
        return read_wall(self)

    def rate_ppb(self) -> int:
        """The rate that the kernel's tick and frequency are set to now; 0 where it can't be read."""
        return self._kernel.rate_ppb() or 0

    def before(self) -> Look:
        """The look before a question."""
        set_ppb = self.rate_ppb()
        return Look(self.sample(), set_ppb)

    def after(self) -> Look:
        """The look after it."""
        sample = self.sample()
        return Look(sample, self.rate_ppb())


class Reader(Protocol):
    """One question: a claim, or None when there is nothing new.

    Raises:
        Refused, OSError: there is no claim; the text says why.
    """

    async def __call__(self) -> Claim | None: ...

    def close(self) -> None:
        """Lets go of what is open."""


class LocalSource:
    """Asks ``read`` at once and then once an interval. ``close`` ends it.

    Args:
        read: asks; it is closed with the source.
        on_claim: called in the event loop with each claim.

    Attributes:
        state: ``pending`` until the first claim, or until three questions gave none.
        reason: why the last question gave no claim, in words; ``None`` if it gave one.
    """

    def __init__(
        self,
        name: str,
        read: Reader,
        on_claim: Callable[[Claim], None],
        interval_ns: int,
    ) -> None:
        self.name = name
        self.state = State.PENDING
        self.reason: str | None = None
        self.last: Claim | None = None
        self._read, self._on_claim, self._interval_s = read, on_claim, interval_ns / _S
        self._failures = 0
        self._log = structlog.get_logger("skewd.sources.local")
        self._quiet = QuietLog("skewd.sources.local")
        self._task = asyncio.create_task(self._run(), name=f"skewd-source-{name}")

    async def close(self) -> None:
        """Stop asking."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._read.close()

    async def _run(self) -> None:
        while True:
            try:
                claim = await self._read()
                if claim is not None:
                    self.last = claim
                    self._on_claim(claim)
                    self._failures, self.reason = 0, None
                    self._become(State.REACHABLE)
            except (Refused, OSError) as error:
                self._failed(str(error))
            except Exception:
                self._failed("an error of skewd's own, see its log")
                self._quiet.warning("source_internal_error", source=self.name, exc_info=True)
            await asyncio.sleep(self._interval_s)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self.reason = reason
        if self._failures >= _FAILURES_BEFORE_UNREACHABLE:
            self._become(State.UNREACHABLE)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            say = self._log.warning if state is State.UNREACHABLE else self._log.info
            say(f"source_{state.value}", source=self.name, reason=self.reason)


@contextlib.asynccontextmanager
async def unix_socket(server: str, directory: Path, who: str) -> AsyncIterator[socket.socket]:
    """A datagram socket connected to the Unix socket of a daemon, with an address of its own that it can answer to.

    Raises:
        OSError: it can't be reached; the message says what to do.
    """
    mine = directory / f"{who}.{secrets.token_hex(4)}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.bind(str(mine))
        except OSError as error:
            raise OSError(
                f"no socket can be made in {directory}: {error.strerror or error}; see [node] runtime_dir"
            ) from None
        try:
            mine.chmod(0o666)  # the daemon answers to it as a user of its own
            try:
                sock.connect(server)
            except PermissionError:
                raise OSError(f"{server} may not be opened by this user; see the documentation of sources") from None
            except OSError as error:
                raise OSError(f"{server} can't be reached: {error.strerror or error}; does {who} run?") from None
            yield sock
        finally:
            mine.unlink(missing_ok=True)


async def exchange(sock: socket.socket, question: bytes, is_reply: Callable[[bytes], bool], size: int) -> bytes:
    """Sends a datagram and gives the first that answers it.

    Raises:
        OSError: nothing came within ``TIMEOUT_S``, or the other side is not there.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await loop.sock_sendall(sock, question)
            for _ in range(_DATAGRAMS_MAX):
                data = await loop.sock_recv(sock, size)
                if is_reply(data):
                    return data
    except TimeoutError:
        raise OSError(f"no answer within {TIMEOUT_S:g} s") from None
    raise OSError(f"none of {_DATAGRAMS_MAX} answers was to the question")
