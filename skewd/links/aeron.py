"""The link over Aeron: shared memory between processes of one machine, or its reliable UDP, where the work uses them.

Aeron moves messages through a *media driver*: a program, or a few threads inside one, that owns a directory of mapped
files and the UDP sockets. Here the daemon runs a driver of its own inside itself, or joins the one whose directory it
is told. All nodes of a mesh use one stream id. There are two ways to use a channel:

- **shared**: ``aeron:ipc``, or a multicast group. Everybody publishes to it and hears everybody, so peers are named by
  their nodes' names, and labels say for whom a message is (``envelope.py``).
- **unicast**: ``aeron:udp?endpoint=host:port`` is where this node listens; each peer is the channel at which *it*
  listens. Aeron has no way back along a channel, so a reply goes to the peer's own channel: both nodes list each other.
  Which of them answers at which channel is learnt from its answers; until then a reply goes to every channel that has
  not answered.

Aeron can only be polled, and a poll that sleeps a millisecond stamps up to a millisecond late. Polling all the time
would cost a core. But a conversation is short: after anything was sent or heard the thread polls every 50 us for 10 ms
(*awake*), and every 2 ms otherwise (*asleep*). And each round asks twice: the first request wakes the other side's
poller, its answer triggers the second, which finds both sides awake and makes the narrow bound (``second_asks``). What
that costs and gives is measured by ``benchmarks/link_width.py``.

A message with records attached may be longer than a packet and come in fragments, which ``fragments.py`` puts together.
Its receive stamp is that of its last fragment.

Direction: ``both``; ``send`` only publishes, ``receive`` only subscribes. Then nobody is asked: a message an interval
goes out to all, and each that came over such a link proves one side of a bound.

The client library's own answer to a driver that is gone is to end the process. An error handler of ours takes its
place: the client is closed, and opened again with growing pauses, which is said once.

Limits: the binding (PyPI ``pyaeron``) needs CPython 3.12 and has wheels for x86_64 Linux only. 2,000 messages, or
fragments of them, are taken in a second; more wait, and flow control slows whoever sends them. Nothing is encrypted. A
driver's directory is writable by whoever may use it: who can write there can read, drop, delay and replay messages as
on any network, and can stop this link. While a host name is resolved, nothing is received: give addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from skewd.keys import KeyNeeded
from skewd.links import envelope
from skewd.links.channel import Channel, parse_channel
from skewd.links.fragments import Assembler, TooLong
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.links.shell import OnProofs, RawClock, Shell
from skewd.links.threaded import Budget, Condition, Handover, ThreadedLink
from skewd.links.unavailable import LinkUnavailable
from skewd.links.wire import is_name
from skewd.ports import ListenError, PortTaken, format_address

Direction = Literal["both", "send", "receive"]

STREAM = 9957
_MAX_DATA_BYTES = 2048
_AWAKE_S = 0.010
_AWAKE_SLEEP_S = 0.000_05
_ASLEEP_S = 0.002
_FRAGMENTS = 32
_MESSAGES_PER_WINDOW = 200
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_MISSING_PEER_RETRY_S = 30.0
# The driver's counters take 48 MB with its own default, for a thousand times the channels that a node has.
_DRIVER_ENVIRONMENT = {"AERON_COUNTERS_BUFFER_LENGTH": "65536"}

_COUNTERS = ("send_dropped", "not_connected", "not_answered", "no_way_back", "second_asks")
# Written by the polling thread only, so that no count is lost.
_THREAD_COUNTERS = ("bad_labels", "oversized_data", "queue_full", "flooded", "reconnects", "unreachable")


class _Arrived(NamedTuple):
    message: bytes
    sender: str
    received_ns: int


class _Anew(Exception):
    """What was connected to is of no use any more; the message says why."""


@dataclass(slots=True)
class _Session:
    """What lives as long as one connection to a driver."""

    client: Any
    subscription: Any = None
    publications: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class AeronLink(ThreadedLink):
    """Make one with :meth:`open`."""

    def __init__(
        self,
        shell: Shell,
        channel: Channel,
        stream: int,
        peers: Sequence[str],
        interval_ns: int,
        direction: Direction,
        directory: Path | None,
        own_directory: Path,
    ) -> None:
        import pyaeron

        self._pyaeron = pyaeron
        super().__init__(shell, interval_ns, _THREAD_COUNTERS)
        self._channel, self._stream, self._direction = channel, stream, direction
        self._directory, self._own_directory = directory, own_directory
        # Address of a peer -> its label on a shared channel, or its own channel.
        self._peers = {self._address(peer): peer for peer in peers}
        self._second: set[str] = set()
        self._handover: Handover[_Arrived] = Handover(self._take)
        where = f"the media driver in {directory}" if directory is not None else "the media driver"
        self._condition = Condition(shell.protocol.link, f"waiting for {where}")
        # Held by the loop while it offers, by the thread while it tears down.
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._awake_until_s = 0.0
        self._driver_gone: str | None = None

    @classmethod
    async def open(
        cls,
        address: str,
        protocol: LinkProtocol,
        clock: RawClock,
        on_proofs: OnProofs,
        peers: Sequence[str],
        interval_ns: int,
        *,
        own_directory: Path,
        directory: Path | None = None,
        stream: int = STREAM,
        direction: Direction = "both",
        setting: str = "[[link]] address",
    ) -> AeronLink:
        """Subscribe at ``address`` and ask ``peers`` once per ``interval_ns``. Does not wait for a driver.

        Args:
            address: the channel, see :func:`skewd.links.channel.parse_channel`.
            on_proofs: called in the event loop with every message's proofs.
            peers: nodes' names where the channel is shared, else the channels at which they listen.
            own_directory: where the driver inside this process keeps its files; nobody else's.
            directory: of a running driver, which is joined instead.
            stream: the stream id, the same on all nodes of a mesh.
            direction: ``send`` or ``receive`` where only one is possible or allowed.
            setting: what the user changes to listen elsewhere, for the message.

        Raises:
            LinkUnavailable: pyaeron is not installed, or can't be with this interpreter or on this machine.
            PortTaken: naming the holder.
            ListenError: no such address on this machine.
            KeyNeeded: beyond this machine without a key.
            ValueError: an address that can't be read.
        """
        try:
            import pyaeron  # noqa: F401
        except ImportError:
            raise LinkUnavailable(how_to_install(sys.version_info[:2], platform.machine())) from None
        channel = parse_channel(address)
        if not channel.stays_here and not protocol.keyed:
            raise KeyNeeded(address)
        if peers and direction != "both" and (channel.shared or direction == "receive"):
            raise ValueError(f"an aeron link that only {direction}s on {address} asks nobody; remove its peers")
        for peer in peers:
            if channel.shared:
                if not is_name(peer):
                    raise ValueError(f"'{peer[:80]}' is no node's name; peers on {address} are names, as node-b")
                continue
            there = parse_channel(peer)
            if there.shared:
                raise ValueError(f"'{peer[:80]}' is not where one node listens; write its host:port")
            if not there.stays_here and not protocol.keyed:
                raise KeyNeeded(peer)
        if not channel.shared and direction != "send":
            _check_free(channel, setting)

        def proven(proofs: Proofs) -> None:
            link._ask_again(proofs)
            on_proofs(proofs)

        shell = Shell(protocol, clock, proven, _COUNTERS)
        link = cls(shell, channel, stream, peers, interval_ns, direction, directory, own_directory)
        everybody = [""] if direction == "send" and channel.shared else []
        link._start(None if direction == "receive" else [*everybody, *link._peers])
        return link

    @property
    def address(self) -> str:
        """The channel and the stream."""
        return f"{self._channel.uri} stream {self._stream}"

    @property
    def trouble(self) -> str | None:
        """What is wrong with the driver or a channel, and what to do; ``None`` when all is well."""
        return self._condition.trouble

    # -- in the event loop

    def _address(self, peer: str) -> str:
        """How a peer is called in proofs: by its name on a shared channel, by where it listens on others."""
        return f"aeron:{peer}" if self._channel.shared else peer

    def _ask(self, key: Hashable) -> None:
        address = str(key)
        if self._direction == "send":
            self._send(self.protocol.prepare_one_way(), "", (address,))
            return
        self._second.add(address)
        self._request(address)

    def _request(self, address: str) -> None:
        receiver = self._peers[address] if self._channel.shared else ""
        self._send(self.protocol.prepare(address), receiver, (self._publication_of(address),))

    def _ask_again(self, proofs: Proofs) -> None:
        """The peer has answered, so its poller is awake now, as ours is: this is the time to measure."""
        if proofs.rtt_ns is not None and proofs.address in self._second:
            self._second.discard(proofs.address)
            self._shell.count("second_asks")
            asyncio.get_running_loop().call_soon(self._request, proofs.address)

    def _publication_of(self, address: str) -> str:
        return "" if self._channel.shared else address

    def _take(self, arrived: _Arrived) -> None:
        sender = arrived.sender

        def reply(build: Callable[[int], bytes]) -> None:
            ways = self._ways_to(sender)
            if ways:
                self._send(build, sender, ways)
            else:
                self._shell.count("no_way_back")
                self._shell.log.warning(
                    "link_no_way_back", node=sender, advice="it asks, and no peer of this link is it: list its channel"
                )

        self._shell.handle(arrived.message, f"aeron:{sender}", arrived.received_ns, reply)

    def _ways_to(self, name: str) -> tuple[str, ...]:
        if self._direction == "receive" or self._channel.shared:
            return ("",)
        targets = {target.address: target for target in self.protocol.targets()}
        known = tuple(address for address in self._peers if address in targets and targets[address].name == name)
        return known or tuple(
            address
            for address in self._peers
            if address not in targets or targets[address].name is None or targets[address].unanswered
        )

    def _send(self, build: Callable[[int], bytes], receiver: str, ways: Sequence[str]) -> None:
        if self._direction == "receive":
            self._shell.count("not_answered")  # a link that only receives
            return
        if not self._lock.acquire(blocking=False):
            self._shell.count("send_dropped")  # the thread is closing what this would be sent with
            return
        try:
            session = self._session
            if session is None:
                self._shell.count("send_dropped")
                return
            data = envelope.wrap(receiver, self.protocol.name, build(self._shell.clock.raw_ns()))
            for way in ways:
                self._offer(session.publications.get(way), data)
        finally:
            self._lock.release()
        self._awake_until_s = time.monotonic() + _AWAKE_S

    def _offer(self, publication: Any, data: bytes) -> None:
        if publication is None:
            self._shell.count("send_dropped")
            return
        try:
            result = publication.offer(data)
        except self._pyaeron.AeronError:
            self._shell.count("send_dropped")  # closed under us: the thread opens it anew
            return
        if not result:
            late = result is self._pyaeron.NOT_CONNECTED
            self._shell.count("not_connected" if late else "send_dropped")

    # -- in the polling thread

    def _work(self) -> None:
        failures = 0
        with contextlib.ExitStack() as stack:
            driver_directory = self._directory
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    if driver_directory is None:
                        stack.callback(self._start_driver().close)
                        driver_directory = self._own_directory
                    self._run(driver_directory)
                except _Anew as reason:
                    self._condition.wrong(str(reason))
                except self._pyaeron.AeronError as error:
                    self._condition.wrong(self._explain(error))
                except Exception as error:  # a fault of ours or the client's: said, and tried again
                    self._condition.wrong(f"Aeron failed: {type(error).__name__}: {error}")
                if self._stop.is_set():
                    break
                failures = 0 if time.monotonic() - began > 2 * _BACKOFF_S[-1] else failures + 1
                self._counted["reconnects"] += 1
                self._stop.wait(_BACKOFF_S[min(max(failures, 1), len(_BACKOFF_S)) - 1])

    def _start_driver(self) -> Any:
        for name, value in _DRIVER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._own_directory.parent.mkdir(parents=True, exist_ok=True)
        # What a killed process left there is replaced; nobody else uses this directory.
        return self._pyaeron.MediaDriver(dir=str(self._own_directory))

    def _run(self, directory: Path) -> None:
        """From joining a driver to losing it.

        Raises:
            AeronError, _Anew: it is not there, or refuses, or is gone.
        """
        if not self._pyaeron.is_driver_active(str(directory), 2000):
            raise _Anew(f"no Aeron media driver runs in {directory}; start it, or leave [[link]] directory out")
        self._driver_gone = None
        context = self._pyaeron.Context(dir=str(directory), error_handler=self._on_error)
        session = _Session(self._pyaeron.Aeron(context=context))
        try:
            if self._direction != "send":
                session.subscription = session.client.add_subscription(self._channel.uri, self._stream)
            if self._direction != "receive":
                if self._channel.shared:
                    session.publications[""] = session.client.add_publication(self._channel.uri, self._stream)
                else:
                    session.missing = dict(self._peers)
                    self._publish(session)
            self._session = session
            if not session.missing:
                self._condition.well()
            self._poll(session)
        finally:
            with self._lock:
                self._session = None
                session.client.close()

    def _publish(self, session: _Session) -> None:
        """Publications to the peers that have none yet; one that can't be reached keeps nobody else waiting."""
        for address, peer in list(session.missing.items()):
            try:
                session.publications[address] = session.client.add_publication(parse_channel(peer).uri, self._stream)
                del session.missing[address]
            except self._pyaeron.AeronError as error:
                if session.client.is_closed:
                    raise
                self._counted["unreachable"] += 1
                self._condition.wrong(f"{peer}: {self._explain(error)}")

    def _on_error(self, code: int, message: str) -> None:
        """Called by the client's own thread. Without this the library would end the process."""
        self._driver_gone = str(message).partition("\n")[0]

    def _poll(self, session: _Session) -> None:
        budget = Budget(_MESSAGES_PER_WINDOW)
        pause_s = 0.0
        me = self.protocol.name
        raw_ns = self._shell.clock.raw_ns
        assembler = Assembler(_MAX_DATA_BYTES)

        def take(view: Any, header: Any) -> None:
            nonlocal pause_s
            received_ns = raw_ns()
            pause_s = max(pause_s, budget.spend(time.monotonic()))
            try:
                data = assembler.add(header.session_id, header.flags, view.tobytes())
            except TooLong:
                self._counted["oversized_data"] += 1
                return
            if data is None:
                return
            labelled = envelope.unwrap(data)
            if labelled is None:
                self._counted["bad_labels"] += 1
            elif labelled.receiver in ("", me) and labelled.sender != me:
                self._awake_until_s = time.monotonic() + _AWAKE_S
                if not self._handover.put(_Arrived(labelled.message, labelled.sender, received_ns)):
                    self._counted["queue_full"] += 1

        retry_s = time.monotonic() + _MISSING_PEER_RETRY_S
        while not self._stop.is_set():
            count = 0 if session.subscription is None else session.subscription.poll(take, _FRAGMENTS, assemble=False)
            now_s = time.monotonic()
            if pause_s > 0:
                self._counted["flooded"] += 1
                self._stop.wait(pause_s)
                pause_s = 0.0
            elif not count:
                awake = session.subscription is not None and now_s < self._awake_until_s
                time.sleep(_AWAKE_SLEEP_S if awake else _ASLEEP_S)
            if session.client.is_closed:
                raise _Anew(f"the Aeron media driver is gone ({self._driver_gone or 'it closed this client'})")
            if session.missing and now_s >= retry_s:
                self._publish(session)
                retry_s = time.monotonic() + _MISSING_PEER_RETRY_S
                if not session.missing:
                    self._condition.well()

    def _explain(self, error: Exception) -> str:
        """The one line of Aeron's message that names the reason."""
        lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*\(-?\d+\)", line)]
        return f"Aeron says: {lines[-1] if lines else str(error)[:200]}"


def how_to_install(version: tuple[int, int], machine: str) -> str:
    """What to do about a missing binding, for a Python's version and a machine."""
    if version < (3, 12):
        return (
            "the aeron link needs Python 3.12 or newer (its binding, pyaeron, has nothing for "
            f"{version[0]}.{version[1]}); run skewd with one, or use another transport"
        )
    if machine != "x86_64":
        return f"the aeron link needs pyaeron, which has no wheels for {machine}; use another transport"
    return "the aeron link needs pyaeron; install it with: pip install 'skewd[aeron]'"


def _check_free(channel: Channel, setting: str) -> None:
    """The driver would only say so later, and not who has the port.

    Raises:
        PortTaken: naming the holder.
        ListenError: no such address on this machine.
    """
    assert channel.host is not None, "ipc has no port"
    where = format_address(channel.host, channel.port)
    try:
        family, kind, _, _, sockaddr = socket.getaddrinfo(
            channel.host, channel.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.bind(sockaddr)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken.at(channel.host, channel.port, "udp", setting=setting) from None
        raise ListenError(f"{where} can't be listened on: {error.strerror}; choose another with {setting}") from None
