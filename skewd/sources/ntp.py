"""One NTP server, asked over UDP: at most as often as ``pace.py`` allows.

Every question has its own socket: a fresh port and a random nonce, so that whoever answers in the server's place must
have seen the question. Sends and receives are stamped on the raw clock as close to the calls as can be, and sharpened
by the kernel's own stamps where it gives any (``stamps.py``): each sample falls back to ours by itself. Packets that
are no answer to the question are counted, and the real one is waited for.

A name may have several addresses. One that answers is kept; after a failure the next is asked, and after the last the
name is resolved again. A server may refuse. Asked to slow down (``RATE``), the interval doubles and stays so; asked to
go away (``DENY``, ``RSTR``), that address is not asked again until a restart. Three failures in a row make the source
unreachable; it is asked on.

A server that follows its own clock is refused (``ntp_wire.own_clock``), unless it is configured that its clock is UTC.

Limits: one server at a time per source. No authentication (a source that needs it reaches us through chrony); a
truthful server behind a liar on the path only gets wider, as long as the liar can't forge its packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from skewd import kernel_stamps
from skewd.clock import HostClock, WallSample, read_wall
from skewd.interval import Interval
from skewd.lean import structlog
from skewd.names import NAMES, Found, why
from skewd.ports import format_address, split_address
from skewd.quiet import QuietLog
from skewd.sources.ntp_wire import MAX_PACKET_BYTES, KissOfDeath, NtpRefused, NtpSample, own_clock, parse, request
from skewd.sources.pace import Pace
from skewd.sources.pool import NobodyLeft
from skewd.stamps import raw_of_stamp
from skewd.wall import SLEW_MAX_PPM

__all__ = ["KissOfDeath", "NtpRefused", "NtpSample", "NtpSource", "State", "parse", "request"]

NTP_PORT = 123
_S = 1_000_000_000
_BATCH = 32
_ADDRESSES_MAX = 16
_DENIED_MAX = 256
_LEAPS = ("none", "insert", "delete")
_HOST = HostClock()

Resolve = Callable[[bool], Awaitable[Found]]
"""Gives what ``getaddrinfo`` does; told whether whoever was asked last is to be given up. Raises OSError when there is
no address to ask."""


def _kernel_limit_ppb() -> int:
    return SLEW_MAX_PPM * 1_000


class State(StrEnum):
    """Whether a source answers; what its answers are worth is decided elsewhere."""

    PENDING = "pending"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


class Clocks(Protocol):
    """A node's raw clock (the stamps) and wall clock (only to tell which 136-year era an answer is from)."""

    def raw_ns(self) -> int: ...

    def wall_ns(self) -> int: ...

    def at_host_raw(self, host_raw_ns: int) -> int: ...


@dataclass(slots=True)
class _Question:
    """One question on its way: our stamps, and the kernel's once it has given them."""

    nonce: bytes
    before: WallSample
    sent_raw_ns: int
    sent_wall_ns: int | None = None


class NtpSource:
    """Make one with :meth:`open`.

    Attributes:
        state: ``pending`` until the first answer, or until three questions went unanswered.
        reason: why the last question gave no sample, in words; ``None`` if it gave one.
        last: the last sample.
        counters: questions and answers, by what came of them; ``kernel_sent`` and ``kernel_received`` count the
            samples sharpened at that end by a kernel's stamp, ``kernel_unusable`` stamps that were not believed.
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
        slew_ppb: Callable[[], int],
        allow_local: bool,
        resolve: Resolve | None,
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
                "own_clock",
                "kiss",
                "kernel_sent",
                "kernel_received",
                "kernel_unusable",
            ),
            0,
        )
        self._host, self._port = split_address(address, NTP_PORT)
        self._clock, self._on_sample, self._random, self._slew_ppb = clock, on_sample, random, slew_ppb
        self._allow_local, self._resolver = allow_local, resolve
        self._timeout_s = timeout_ns / _S
        self._pace = Pace(interval_ns / _S)
        self._addresses: list[tuple[int, Any]] = []
        self._denied: dict[Any, None] = {}
        self._server: Any = None
        self._give_up = False
        self._leap = 0
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
        slew_ppb: Callable[[], int] = _kernel_limit_ppb,
        allow_local: bool = False,
        resolve: Resolve | None = None,
    ) -> NtpSource:
        """Start asking at once; nothing is waited for.

        Args:
            name: the source's name, for logs and status.
            address: ``host`` or ``host:port``.
            on_sample: called in the event loop with each sample.
            interval_ns: between questions at most; the first come sooner, and so do those after a failure.
            slew_ppb: how fast the host's wall clock may be moving against its raw clock, now.
            allow_local: believe a server that follows its own clock.
            resolve: which addresses to ask, instead of all that the name has (``pool.py``).

        Raises:
            ValueError: an address that can't be read.
        """
        source = cls(name, address, clock, on_sample, interval_ns, timeout_ns, random, slew_ppb, allow_local, resolve)
        source._task = asyncio.create_task(source._run(), name=f"skewd-ntp-{name}")
        return source

    @property
    def interval_ns(self) -> int:
        """Between questions at most: longer than asked for once the server has said ``RATE``."""
        return round(self._pace.interval_s * _S)

    @property
    def leap(self) -> str:
        """``insert`` or ``delete`` while the server announces a leap second for the end of the UTC day, or ``none``."""
        return _LEAPS[self._leap]

    def describe(self) -> dict[str, Any]:
        """What ``skewd status --json`` says of it beyond the bound; unknown is None."""
        last = self.last
        return {
            "server": None if self._server is None else format_address(str(self._server[0]), int(self._server[1])),
            "stratum": None if last is None else last.stratum,
            "counters": dict(self.counters),
        }

    @property
    def answers(self) -> dict[str, int]:
        """How many questions ended how: see :data:`skewd.sources.local.OUTCOMES`."""
        counters = self.counters
        refused = counters["unsynchronized"] + counters["own_clock"] + counters["kiss"]
        unusable = counters["wrong_origin"] + counters["malformed"]
        return {
            "used": counters["samples"],
            "refused": refused,
            "unusable": unusable,
            "timeout": counters["timeouts"],
            "failed": counters["failed"],
        }

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
            outcome: NtpSample | NtpRefused | OSError | None
            try:
                outcome = await self._ask()
            except Exception:
                self.counters["failed"] += 1
                self._quiet.warning("ntp_internal_error", source=self.name, exc_info=True)
                outcome = OSError("an error of skewd's own, see its log")
            if outcome is None:
                return
            await asyncio.sleep(self._take(outcome) if isinstance(outcome, NtpSample) else self._refused(outcome))

    def _take(self, sample: NtpSample) -> float:
        """Hand a sample on; seconds until the next question."""
        self.reason = None
        self.last = sample
        self.counters["samples"] += 1
        if sample.delay_ns < 0:
            self.counters["negative_delay"] += 1
            self._quiet.warning("ntp_negative_delay", source=self.name, delay_ns=sample.delay_ns)
        if sample.leap != self._leap:
            self._leap = sample.leap
            self._log.warning("ntp_leap_announced", source=self.name, leap=self.leap)
        self._become(State.REACHABLE)
        try:
            self._on_sample(sample)
        except Exception:
            self.counters["failed"] += 1
            self._quiet.warning("ntp_internal_error", source=self.name, exc_info=True)
        return self._pace.answered()

    def _refused(self, outcome: NtpRefused | OSError) -> float:
        """Note a question without a sample; seconds until the next."""
        self.reason = str(outcome)
        if isinstance(outcome, KissOfDeath) and outcome.code == "RATE":
            gap_s = self._pace.slow_down()
            self.reason = f"{outcome}: now asked every {gap_s:g} s"
        else:
            gap_s = self._pace.failed()
            asked = self._addresses.pop(0)[1] if self._addresses else None
            self._give_up = self._pace.silent
            if isinstance(outcome, KissOfDeath) and outcome.code in ("DENY", "RSTR"):
                self._denied[asked], self._give_up = None, True
                if len(self._denied) > _DENIED_MAX:
                    del self._denied[next(iter(self._denied))]
                self.reason = f"{outcome}: not asked again; choose another server for source '{self.name}'"
        if self._pace.silent:
            self._become(State.UNREACHABLE)
        return gap_s

    def _become(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        say = self._log.warning if state is State.UNREACHABLE else self._log.info
        say(f"ntp_{state.value}", source=self.name, address=self.address, reason=self.reason)

    async def _ask(self) -> NtpSample | NtpRefused | OSError | None:
        """What became of one question; ``None`` when every address has sent us away."""
        if not self._addresses:
            failure = await self._resolve()
            if failure is not None:
                return failure
            if not self._addresses and self._resolver is not None:
                return OSError("every server of the pool that others do not ask already has sent us away")
            if not self._addresses:
                self._become(State.UNREACHABLE)
                return None
        family, self._server = self._addresses[0]
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                kernel_stamps.ask_for_stamps(sock)
                sock.connect(self._server)
                return await self._exchange(sock)
        except OSError as error:
            return self._unreachable(error)

    async def _resolve(self) -> OSError | None:
        """Find the addresses to ask, those that sent us away left out."""
        try:
            if self._resolver is not None:
                found = await self._resolver(self._give_up)
            else:
                found = await NAMES.find(self._host, self._port, limit_s=self._timeout_s)
        except TimeoutError:
            self.counters["failed"] += 1
            return OSError(f"{self._host} did not resolve within {self._timeout_s:g} s")
        except NobodyLeft as nobody:
            self.counters["failed"] += 1
            return nobody
        except (OSError, UnicodeError) as error:
            self.counters["failed"] += 1
            return OSError(f"{self._host} does not resolve: {why(error)}")
        addresses = [(int(family), sockaddr) for family, _, _, _, sockaddr in found if sockaddr not in self._denied]
        self._addresses = addresses[:_ADDRESSES_MAX]
        return None

    def _unreachable(self, error: OSError) -> OSError:
        self.counters["failed"] += 1
        return OSError(f"{self.address} can't be reached: {error.strerror}")

    async def _exchange(self, sock: socket.socket) -> NtpSample | NtpRefused | OSError:
        loop = asyncio.get_running_loop()
        data, nonce = request(self._random)
        done: asyncio.Future[NtpSample | NtpRefused | OSError] = loop.create_future()

        def readable() -> None:
            # The kernel stamped the question before the answer could come: its stamp is here now, or will never be.
            for stamp in kernel_stamps.sent(sock):
                if stamp.number == 0 and question.sent_wall_ns is None:
                    question.sent_wall_ns = stamp.wall_ns
            for _ in range(_BATCH):
                if done.done():
                    return
                outcome = self._read(sock, question)
                if outcome is None:
                    return
                if isinstance(outcome, NtpRefused) and outcome.reason in ("wrong_origin", "malformed"):
                    continue
                done.set_result(outcome)

        question = _Question(nonce, read_wall(_HOST), self._clock.raw_ns())
        sock.send(data)
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

    def _read(self, sock: socket.socket, question: _Question) -> NtpSample | NtpRefused | OSError | None:
        """What the next datagram is worth; ``None`` when there is none."""
        try:
            data, _, received_wall_ns = kernel_stamps.receive(sock, MAX_PACKET_BYTES + 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            return self._unreachable(error)
        received_raw_ns = self._clock.raw_ns()
        after = read_wall(_HOST)
        ours = Interval(question.sent_raw_ns, max(question.sent_raw_ns, received_raw_ns))
        sent = self._sharpened(question.sent_wall_ns, question.before, after, ours)
        received = self._sharpened(received_wall_ns, question.before, after, ours)
        if sent is not None and received is not None and sent.lo > received.hi:
            self.counters["kernel_unusable"] += 2
            sent = received = None
        try:
            sample = parse(
                data,
                nonce=question.nonce,
                sent_raw_ns=ours.lo if sent is None else sent.lo,
                received_raw_ns=received_raw_ns if received is None else received.hi,
                near_wall_ns=self._clock.wall_ns(),
            )
            own = own_clock(sample.stratum, sample.reference_id, sample.root_delay_ns, sample.root_dispersion_ns)
            if own is not None and not self._allow_local:
                raise NtpRefused(
                    "own_clock",
                    f"the server follows its own clock, which tells nothing of UTC: {own}; give it a reference, or"
                    " another source; in a closed network whose UTC it is, write allow_local = true",
                )
        except NtpRefused as refused:
            self.counters[refused.reason] += 1
            return refused
        except Exception:  # a fault of our own must not end the wait for the true answer
            self.counters["malformed"] += 1
            self._quiet.warning("ntp_internal_error", source=self.name, exc_info=True)
            return NtpRefused("malformed", "an answer that skewd failed to read; report it with the log")
        self.counters["kernel_sent"] += sent is not None
        self.counters["kernel_received"] += received is not None
        return sample

    def _sharpened(self, wall_ns: int | None, before: WallSample, after: WallSample, ours: Interval) -> Interval | None:
        """The node's raw instants of a kernel's stamp, within our own two; None where there is no (usable) stamp."""
        if wall_ns is None:
            return None
        raw = raw_of_stamp(wall_ns, before, after, self._slew_ppb())
        if raw is not None:
            at = self._clock.at_host_raw
            raw = ours.intersect(Interval(at(raw.lo), at(raw.hi)))
        if raw is None:
            self.counters["kernel_unusable"] += 1
        return raw
