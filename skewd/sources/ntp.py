"""One NTP server, asked once an interval over UDP.

Every question has its own socket: a fresh port and a random nonce, so that whoever answers in the server's place must
have seen the question. Answers are stamped on the raw clock right after the read, by our own callback; packets that
are no answer to the question are counted, and the real one is waited for.

A server may refuse. Asked to slow down (``RATE``), the interval doubles and stays so; asked to go away (``DENY``,
``RSTR``), it is not asked again until a restart. Three failures in a row make the source unreachable; it is asked on,
at the next of its resolved addresses.

Limits: one server per source. Stamps are user space's. No authentication (a source that needs it reaches us through
chrony); a truthful server behind a liar on the path only gets wider, as long as the liar can't forge its packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import structlog

from skewd.ports import split_address
from skewd.quiet import QuietLog
from skewd.sources.ntp_wire import MAX_PACKET_BYTES, KissOfDeath, NtpRefused, NtpSample, parse, request

__all__ = ["KissOfDeath", "NtpRefused", "NtpSample", "NtpSource", "State", "parse", "request"]

NTP_PORT = 123
_S = 1_000_000_000
_FAILURES_BEFORE_UNREACHABLE = 3
_RETRY_S = 2.0
_SLOWEST_S = 1024.0
_BATCH = 32


class State(StrEnum):
    """Whether a source answers; what its answers are worth is decided elsewhere."""

    PENDING = "pending"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


class Clocks(Protocol):
    """A node's raw clock (the stamps) and wall clock (only to tell which 136-year era an answer is from)."""

    def raw_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


class NtpSource:
    """Make one with :meth:`open`.

    Attributes:
        state: ``pending`` until the first answer, or until three questions went unanswered.
        reason: why the last question gave no sample, in words; ``None`` if it gave one.
        last: the last sample.
        counters: questions and answers, by what came of them.
    """

    def __init__(
        self,
        name: str,
        address: str,
        clock: Clocks,
        on_sample: Callable[[NtpSample], None],
        interval_ns: int,
        timeout_ns: int,
        random: Callable[[int], bytes],
    ) -> None:
        self.name, self.address = name, address
        self.state = State.PENDING
        self.reason: str | None = None
        self.last: NtpSample | None = None
        self.counters = dict.fromkeys(
            (
                "sent",
                "samples",
                "negative_delay",
                "timeouts",
                "failed",
                "wrong_origin",
                "malformed",
                "unsynchronized",
                "kiss",
            ),
            0,
        )
        self._host, self._port = split_address(address, NTP_PORT)
        self._clock, self._on_sample, self._random = clock, on_sample, random
        self._interval_s, self._timeout_s = interval_ns / _S, timeout_ns / _S
        self._failures = 0
        self._eager = True
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("skewd.sources.ntp")
        self._quiet = QuietLog("skewd.sources.ntp")

    @classmethod
    async def open(
        cls,
        name: str,
        address: str,
        clock: Clocks,
        on_sample: Callable[[NtpSample], None],
        interval_ns: int,
        *,
        timeout_ns: int = _S,
        random: Callable[[int], bytes] = os.urandom,
    ) -> NtpSource:
        """Start asking at once; nothing is waited for.

        Args:
            name: the source's name, for logs and status.
            address: ``host`` or ``host:port``.
            on_sample: called in the event loop with each sample.
            interval_ns: between questions; the first failures are tried again sooner.

        Raises:
            ValueError: an address that can't be read.
        """
        source = cls(name, address, clock, on_sample, interval_ns, timeout_ns, random)
        source._task = asyncio.create_task(source._run(), name=f"skewd-ntp-{name}")
        return source

    @property
    def interval_ns(self) -> int:
        """Between questions, now: longer than asked for once the server has said ``RATE``."""
        return round(self._interval_s * _S)

    @property
    def stopped(self) -> bool:
        """Whether the server has sent us away for good."""
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            outcome = await self._ask()
            if isinstance(outcome, NtpSample):
                self._take(outcome)
            elif self._refused(outcome):
                return
            await asyncio.sleep(min(self._interval_s, _RETRY_S) if self._eager else self._interval_s)

    def _take(self, sample: NtpSample) -> None:
        self._failures = 0
        self._eager = False
        self.reason = None
        self.last = sample
        self.counters["samples"] += 1
        if sample.delay_ns < 0:
            self.counters["negative_delay"] += 1
            self._quiet.warning("ntp_negative_delay", source=self.name, delay_ns=sample.delay_ns)
        self._become(State.REACHABLE)
        try:
            self._on_sample(sample)
        except Exception:
            self.counters["failed"] += 1
            self._quiet.warning("ntp_internal_error", source=self.name, exc_info=True)

    def _refused(self, outcome: NtpRefused | OSError) -> bool:
        """Note a question without a sample; true when the server is not to be asked again."""
        self._failures += 1
        self.reason = str(outcome)
        if isinstance(outcome, KissOfDeath) and outcome.code in ("DENY", "RSTR"):
            self.reason = f"{outcome}: not asked again; choose another server for source '{self.name}'"
            self._become(State.UNREACHABLE)
            return True
        if isinstance(outcome, KissOfDeath) and outcome.code == "RATE":
            self._eager = False
            self._interval_s = max(self._interval_s, min(2 * self._interval_s, _SLOWEST_S))
            self.reason = f"{outcome}: now asked every {self._interval_s:g} s"
        if self._failures >= _FAILURES_BEFORE_UNREACHABLE:
            self._eager = False
            self._become(State.UNREACHABLE)
        return False

    def _become(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        say = self._log.warning if state is State.UNREACHABLE else self._log.info
        say(f"ntp_{state.value}", source=self.name, address=self.address, reason=self.reason)

    async def _ask(self) -> NtpSample | NtpRefused | OSError:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        except TimeoutError:
            self.counters["failed"] += 1
            return OSError(f"{self._host} did not resolve within {self._timeout_s:g} s")
        except (OSError, UnicodeError) as error:
            self.counters["failed"] += 1
            return OSError(f"{self._host} does not resolve: {getattr(error, 'strerror', None) or error}")
        family, _, _, _, sockaddr = found[self._failures % len(found)]
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(sockaddr)
                return await self._exchange(sock)
        except OSError as error:
            self.counters["failed"] += 1
            return OSError(f"{self.address} can't be reached: {error.strerror}")

    async def _exchange(self, sock: socket.socket) -> NtpSample | NtpRefused | OSError:
        loop = asyncio.get_running_loop()
        question, nonce = request(self._random)
        done: asyncio.Future[NtpSample | NtpRefused | OSError] = loop.create_future()

        def readable() -> None:
            for _ in range(_BATCH):
                if done.done():
                    return
                outcome = self._read(sock, nonce, sent_raw_ns)
                if outcome is None:
                    return
                if isinstance(outcome, NtpRefused) and outcome.reason in ("wrong_origin", "malformed"):
                    continue
                done.set_result(outcome)

        sent_raw_ns = self._clock.raw_ns()
        sock.send(question)
        self.counters["sent"] += 1
        loop.add_reader(sock, readable)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await done
        except TimeoutError:
            self.counters["timeouts"] += 1
            return OSError(f"{self.address} did not answer within {self._timeout_s:g} s")
        finally:
            with contextlib.suppress(ValueError):
                loop.remove_reader(sock)

    def _read(self, sock: socket.socket, nonce: bytes, sent_raw_ns: int) -> NtpSample | NtpRefused | OSError | None:
        """What the next datagram is worth; ``None`` when there is none."""
        try:
            data = sock.recv(MAX_PACKET_BYTES + 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self.counters["failed"] += 1
            return OSError(f"{self.address} can't be reached: {error.strerror}")
        received_raw_ns = self._clock.raw_ns()
        try:
            return parse(
                data,
                nonce=nonce,
                sent_raw_ns=sent_raw_ns,
                received_raw_ns=received_raw_ns,
                near_wall_ns=self._clock.wall_ns(),
            )
        except NtpRefused as refused:
            self.counters[refused.reason] += 1
            return refused
