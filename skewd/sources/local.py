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
import fcntl
import secrets
import socket
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from skewd.clock import Clock, HostClock, WallSample, read_wall
from skewd.hostclock import KernelReader
from skewd.lean import structlog
from skewd.quiet import QuietLog
from skewd.sources.claim import Claim, Look, Refused
from skewd.sources.memory import FromBefore
from skewd.sources.ntp import State

TIMEOUT_S = 1.0
OUTCOMES = ("used", "unchanged", "refused", "unusable", "timeout", "failed")
"""How a question ends: it gave a bound; nothing new; whoever answered is not to be believed, or said no; what came was
no answer; nothing came; or it could not be asked, or whoever is asked is not there."""

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
        waiting: whether that is because the clock was stepped, and what is remembered is from before
            (``memory.py``): no failure, so the state stays.
        lost: why the answer to the last question could not come back; ``None`` otherwise.
        answers: how many questions ended how (``OUTCOMES``).
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
        self.waiting = False
        self.lost: AnswerLost | None = None
        self.answers = dict.fromkeys(OUTCOMES, 0)
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
                self.answers["used" if claim is not None else "unchanged"] += 1
                if claim is not None:
                    self.last = claim
                    self._on_claim(claim)
                    self._failures, self.reason, self.waiting, self.lost = 0, None, False, None
                    self._become(State.REACHABLE)
            except FromBefore as before:
                self.answers["refused"] += 1
                self._waits(str(before))
            except (Refused, OSError) as error:
                self.answers[_outcome(error)] += 1
                self._failed(str(error))
                self.lost = error if isinstance(error, AnswerLost) else None
            except Exception:
                self.answers["failed"] += 1
                self._failed("an error of skewd's own, see its log")
                self._quiet.warning("source_internal_error", source=self.name, exc_info=True)
            await asyncio.sleep(self._interval_s)

    def _waits(self, reason: str) -> None:
        if not self.waiting:
            self._log.warning("source_waits", source=self.name, reason=reason)
        self._failures, self.reason, self.waiting, self.lost = 0, reason, True, None

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self.reason, self.waiting, self.lost = reason, False, None
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


class NoAnswer(OSError):
    """Nothing came back in time."""


class AnswerLost(NoAnswer):
    """Whoever was asked did answer, and the answer could not come back.

    Attributes:
        cause: why, in words.
        remedy: what to do.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause, self.remedy = cause, remedy


def _outcome(error: Refused | OSError) -> str:
    if isinstance(error, Refused):
        return "refused"
    return "timeout" if isinstance(error, NoAnswer) else "failed"


def _no_answer(sock: socket.socket, who: str) -> NoAnswer:
    """What it means that a daemon did not answer in time.

    The kernel tells whether the other side of a Unix socket has taken our question from its queue. If it has, and no
    answer came, then it could not send one: our end of the socket is a file, which it must find and may write to.
    """
    silent = f"no answer within {TIMEOUT_S:g} s"
    if sock.family != socket.AF_UNIX:
        return NoAnswer(silent)
    untaken = bytearray(4)
    try:
        fcntl.ioctl(sock, termios.TIOCOUTQ, untaken)
        sock.connect(sock.getpeername())  # fails where whoever took it has ended since
    except OSError:
        return NoAnswer(silent)
    if any(untaken):
        return NoAnswer(f"{silent}: {who} has not taken the question, so it hangs or is stopped")
    directory = Path(str(sock.getsockname())).parent
    closed = next((one for one in (directory, *directory.parents) if not _others_may_enter(one)), None)
    cause = "it sees other directories than skewd" if closed is None else f"{closed} is closed to other users"
    fix = f"mount {directory} at the same path for {who}" if closed is None else f"chmod o+x {closed}"
    return AnswerLost(
        f"{who} takes the questions and its answers can't come back, since it can't reach skewd's socket in"
        f" {directory}: {cause}",
        f"{fix}, choose another [node] runtime_dir, or let {who} be asked over UDP",
    )


def _others_may_enter(directory: Path) -> bool:
    try:
        return bool(directory.stat().st_mode & 0o001)
    except OSError:
        return True


async def exchange(
    sock: socket.socket, question: bytes, is_reply: Callable[[bytes], bool], size: int, who: str = "it"
) -> bytes:
    """Sends a datagram and gives the first that answers it.

    Args:
        who: whom it is sent to, for the message.

    Raises:
        NoAnswer: nothing came within ``TIMEOUT_S``; the message says why, where that can be told.
        OSError: the other side is not there.
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
        raise _no_answer(sock, who) from None
    raise OSError(f"none of {_DATAGRAMS_MAX} answers was to the question")
