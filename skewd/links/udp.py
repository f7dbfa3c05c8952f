"""The link over UDP: a socket, a reader and a task that asks each peer once an interval.

The stamps are what a link is for, so the socket is read by our own callback, and each datagram is stamped right
after the call that returned it, before any other code runs; a request or reply is stamped right before its bytes
are made and sent. The kernel stamps both too, where it does that, which takes the wait for the scheduler out: what is
received is used with the kernel's stamp at once, and the stamp of a send, which is known after it only, is given to the
protocol, which tells the peer in the next message. An asyncio datagram transport would stamp later, and would keep the
kernel's stamps from us.

Some drivers announce send stamps and never deliver one. When ``_SENDS_WITHOUT_STAMP`` messages in a row had none, they
are not looked for any more (``kernel_gave_none`` counts), and tried again ten minutes later.

Requests are spread over the interval. Names are resolved in the background, side by side, again every half minute, so
neither a slow resolver nor a dead name delays anybody else (``names.py``). Without a key nothing beyond loopback is
listened on or asked.

Limits: one address per configured peer (the first that resolves in the socket's family). A datagram that can't be
sent is counted and forgotten: the next interval asks again. A send stamp that is not there when its answer is, or a
second after the send, is not waited for.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from skewd import kernel_stamps
from skewd.clock import WallSample
from skewd.fanout import Plan
from skewd.kernel_stamps import Sends
from skewd.keys import KeyNeeded
from skewd.links.protocol import LinkProtocol
from skewd.links.shell import OnProofs, Pace, Planned, RawClock, Schedule, Shell
from skewd.links.wire import MAGIC, MAX_MESSAGE_BYTES, VERSIONS, nonce_of
from skewd.names import NAMES, is_numeric, why
from skewd.ports import ListenError, PortTaken, format_address, is_loopback, split_address

_COUNTERS = (
    "send_dropped",
    "send_failed",
    "receive_failed",
    "unresolved",
    "kernel_stamped",  # received with a kernel's stamp that was used
    "kernel_sent",  # the same of sent
    "kernel_unusable",
    "kernel_gave_none",
)
_SENDS_WITHOUT_STAMP = 256
_TRY_AGAIN_S = 600.0
_WAITING = 64
# Of a packet that comes back: Ethernet with two VLAN tags, IPv6 with room for options, UDP, and our header with nonce.
_RETURNED_BYTES = 192
_FIRST_BYTES = re.compile(re.escape(MAGIC) + b"[" + bytes(sorted(VERSIONS)) + b"]")
_BATCH = 64
_RESOLVE_AGAIN_S = 30.0
_RESOLVE_RETRY_S = 2.0
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Sent:
    """A datagram whose send stamp has not come yet."""

    raw_ns: int
    before: WallSample


@dataclass(slots=True)
class _Peer:
    """``resolving`` while its name is asked for; ``due_s``, on the loop's clock, when it is the next time."""

    text: str
    host: str
    port: int
    numeric: bool
    sockaddr: Any = None
    resolving: asyncio.Task[None] | None = None
    due_s: float = 0.0


class UdpLink:
    """Make one with :meth:`open`."""

    def __init__(
        self, sock: socket.socket, shell: Shell, schedule: Pace, stamps: kernel_stamps.SocketStamps | None
    ) -> None:
        self._socket, self._shell, self._stamps = sock, shell, stamps
        self._peers: dict[str, _Peer] = {}
        self._schedule = schedule
        self._changed = asyncio.Event()
        self._resolve_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._unstamped: OrderedDict[bytes, _Sent] = OrderedDict()
        self._sends_stamped = stamps is not None
        self._without_stamp = 0
        self._try_again_s = 0.0

    @classmethod
    async def open(
        cls,
        listen: str,
        protocol: LinkProtocol,
        clock: RawClock,
        on_proofs: OnProofs,
        peers: Sequence[str],
        interval_ns: int,
        *,
        setting: str = "[mesh] listen",
        stamps: kernel_stamps.SocketStamps | None = None,
        plan: Plan | None = None,
    ) -> UdpLink:
        """Listen, and ask ``peers`` once per ``interval_ns``, or those of them that ``plan`` names, when it does.

        Args:
            listen: ``host:port``; port 0 lets the system choose (see :attr:`address`).
            on_proofs: called in the event loop with every message's proofs.
            peers: ``host:port`` each, names or addresses.
            setting: what the user changes to listen elsewhere, for the message.
            stamps: to have the kernel stamp what is received and sent; user space does, if None or if it refuses.
            plan: whom to ask when, in ns of the event loop's clock; its candidates are the caller's business.

        Raises:
            PortTaken: naming the holder.
            ListenError: no such address on this machine.
            KeyNeeded: beyond loopback without a key.
            ValueError: an address that can't be read.
        """
        host, port = split_address(listen)
        loop = asyncio.get_running_loop()
        try:
            family, _, _, _, sockaddr = (await NAMES.find(host, port, flags=socket.AI_PASSIVE))[0]
        except (OSError, UnicodeError) as error:
            raise ListenError(f"{listen} can't be listened on: {why(error)}; choose another with {setting}") from None
        if not protocol.keyed and not is_loopback(str(sockaddr[0])):
            raise KeyNeeded(listen)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                sock.bind(sockaddr)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise PortTaken.at(host, port, "udp", setting=setting) from None
                raise ListenError(
                    f"{listen} can't be listened on: {error.strerror}; choose another with {setting}"
                ) from None
            shell = Shell(protocol, clock, on_proofs, _COUNTERS)
            if stamps is not None and not kernel_stamps.ask_for_stamps(sock, sends=Sends.RETURNED):
                stamps = None
            schedule = Schedule(interval_ns / _S, random.random) if plan is None else Planned(plan)
            link = cls(sock, shell, schedule, stamps)
            link.set_peers(peers)
        except BaseException:
            sock.close()
            raise
        loop.add_reader(sock, link._readable)
        link._tasks = [
            asyncio.create_task(shell.ask(link._schedule, link._changed, link._ask), name="skewd-udp-ask"),
            asyncio.create_task(link._resolve_all(), name="skewd-udp-resolve"),
        ]
        return link

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that are listened on."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    @property
    def counters(self) -> dict[str, int]:
        """What was sent, accepted and refused, by reason."""
        return self._shell.counters

    @property
    def protocol(self) -> LinkProtocol:
        """The protocol behind it, for its peers and targets."""
        return self._shell.protocol

    def set_peers(self, peers: Sequence[str]) -> None:
        """Ask these from now on; those that are no longer among them are forgotten.

        Raises:
            ValueError: an address that can't be read; nothing is changed then.
            KeyNeeded: one beyond loopback, without a key.
        """
        wanted: dict[str, _Peer] = {}
        for text in peers:
            host, port = split_address(text)
            if port == 0:
                raise ValueError(f"'{text}' has port 0; write the port that the peer listens on, as {host}:9957")
            numeric = is_numeric(host)
            if numeric and not self.protocol.keyed and not is_loopback(host):
                raise KeyNeeded(text)
            wanted[text] = self._peers.get(text) or _Peer(text, host, port, numeric)
        for text in self._peers.keys() - wanted.keys():
            resolving = self._peers[text].resolving
            if resolving is not None:
                resolving.cancel()
            self.protocol.forget(text)
            self._schedule.remove(text)
        self._peers = wanted
        for peer in wanted.values():
            if peer.numeric and peer.sockaddr is None:
                self._take_address(peer, socket.AI_NUMERICHOST)
        self._resolve_now.set()
        self._changed.set()

    def is_configured(self, address: str, _name: str = "") -> bool:
        """Whether this is the address of a peer that is asked: as messages from there show it."""
        return any(peer.sockaddr is not None and _text(peer.sockaddr) == address for peer in self._peers.values())

    def on_own(self, told: Callable[[str], None]) -> None:
        """Has ``told`` called with each address, as it is configured, at which this node heard itself."""
        self._shell.on_own = told

    async def close(self) -> None:
        """End the tasks and close the socket."""
        if self._closed:
            return
        self._closed = True
        resolving = [peer.resolving for peer in self._peers.values() if peer.resolving is not None]
        tasks = [*self._tasks, *resolving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    # -- receiving and sending

    def _readable(self) -> None:
        if self._unstamped:
            # First: a stamp that is here sharpens the answer that is here.
            self._collect(_BATCH)
        for number in range(_BATCH):
            try:
                data, source, wall_ns = kernel_stamps.receive(self._socket, MAX_MESSAGE_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                if number == 0:
                    self._collect(_BATCH)  # it is the error queue that was readable
                return
            except OSError:
                self._shell.count("receive_failed")
                return
            stamp = self._shell.clock.raw_ns()
            # What the kernel's stamp means is worked out for authentic messages only: a flood must cost little.
            sharpen = None if wall_ns is None or self._stamps is None else partial(self._sharper, wall_ns)
            send = partial(self._send, to=source, looked=sharpen is not None)
            self._shell.handle(data, _text(source), stamp, send, sharpen)

    def _sharper(self, wall_ns: int, stamp: int) -> int:
        """When a message came at the latest that was read at ``stamp``."""
        assert self._stamps is not None
        sharper = self._stamps.latest_ns(wall_ns, stamp)
        self._shell.count("kernel_unusable" if sharper is None else "kernel_stamped")
        return stamp if sharper is None else sharper

    def _send(self, build: Callable[[int], bytes], to: Any, *, looked: bool) -> None:
        """Stamp and send; ``looked``: whether the clocks were compared just before."""
        before = None
        if self._stamps is not None and self._sends_stamped:
            before = self._stamps.last if looked else self._stamps.look()
        sent_ns = self._shell.clock.raw_ns()
        data = build(sent_ns)
        try:
            self._socket.sendto(data, to)
        except (BlockingIOError, InterruptedError):
            self._shell.count("send_dropped")
        except OSError as error:
            self._shell.count("send_failed")
            self._shell.log.warning("link_send_failed", address=_text(to), error=error.strerror)
        else:
            if before is not None:
                self._unstamped[nonce_of(data)] = _Sent(sent_ns, before)
                if len(self._unstamped) > _WAITING:
                    self._unstamped.popitem(last=False)
                self._without_stamp += 1
                # Most drivers have taken the packet by now, and their stamp is here.
                self._collect(1)
                if self._without_stamp > _SENDS_WITHOUT_STAMP:
                    self._ask_for_no_more()

    def _collect(self, limit: int) -> None:
        """Take the send stamps that have come: the error queue must be emptied whether or not any is of use."""
        if self._stamps is None:
            return
        for packet, stamp in kernel_stamps.returned(self._socket, _RETURNED_BYTES, limit=limit):
            self._without_stamp = 0
            found = _FIRST_BYTES.search(packet)
            nonce = nonce_of(packet[found.start() :]) if found is not None else b""
            # The first stamp of a packet counts: where it passes several devices, each may give one.
            sent = self._unstamped.pop(nonce, None)
            if sent is None:
                continue
            now_ns = self._shell.clock.raw_ns()
            earliest_ns = None
            if now_ns - sent.raw_ns <= _S:
                earliest_ns = self._stamps.earliest_ns(stamp.wall_ns, sent.before, sent.raw_ns, now_ns)
            self._shell.count("kernel_unusable" if earliest_ns is None else "kernel_sent")
            if earliest_ns is not None:
                self.protocol.transmitted(nonce, earliest_ns)

    def _ask_for_no_more(self) -> None:
        """This driver stamps no sends."""
        self._shell.count("kernel_gave_none")
        self._sends_stamped = False
        self._try_again_s = asyncio.get_running_loop().time() + _TRY_AGAIN_S
        self._unstamped.clear()

    def _ask(self, key: Hashable) -> None:
        peer = self._peers.get(str(key))
        if peer is not None and peer.sockaddr is not None:
            if self._stamps is not None:
                self._stamps.look()
                if not self._sends_stamped and asyncio.get_running_loop().time() >= self._try_again_s:
                    self._sends_stamped, self._without_stamp = True, 0
            self._send(self.protocol.prepare(peer.text), peer.sockaddr, looked=True)

    # -- names

    async def _resolve_all(self) -> None:
        """Has each name asked for when it is due, whatever becomes of the others."""
        loop = asyncio.get_running_loop()
        while True:
            self._resolve_now.clear()
            named = [peer for peer in self._peers.values() if not peer.numeric]
            for peer in named:
                if peer.resolving is None and loop.time() >= peer.due_s:
                    peer.resolving = asyncio.create_task(self._resolve(peer), name=f"skewd-udp-resolve-{peer.text}")
            due_s = min((peer.due_s for peer in named if peer.resolving is None), default=None)
            # A timer that sets the event costs a fraction of a timeout that cancels the wait for it.
            timer = None if due_s is None else loop.call_at(due_s, self._resolve_now.set)
            try:
                await self._resolve_now.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _resolve(self, peer: _Peer) -> None:
        try:
            found = await NAMES.find(peer.host, peer.port, family=self._socket.family, flags=self._flags())
        except (OSError, UnicodeError) as error:
            self._unresolved(peer, why(error))
        else:
            self._take(peer, found[0][4])
        finally:
            wait_s = _RESOLVE_RETRY_S if peer.sockaddr is None else _RESOLVE_AGAIN_S
            peer.due_s = asyncio.get_running_loop().time() + wait_s
            peer.resolving = None
            self._resolve_now.set()

    def _take_address(self, peer: _Peer, flags: int) -> None:
        try:
            found = socket.getaddrinfo(
                peer.host, peer.port, family=self._socket.family, type=socket.SOCK_DGRAM, flags=flags | self._flags()
            )
        except OSError:
            self._unresolved(peer, "not an address of the family that is listened on")
        else:
            self._take(peer, found[0][4])

    def _take(self, peer: _Peer, sockaddr: Any) -> None:
        if not self.protocol.keyed and not is_loopback(str(sockaddr[0])):
            self._shell.log.warning("link_peer_needs_key", peer=peer.text, advice=str(KeyNeeded(peer.text)))
            return
        if self._peers.get(peer.text) is not peer:
            return  # removed while its name was being resolved
        peer.sockaddr = sockaddr
        self._schedule.add(peer.text, asyncio.get_running_loop().time())
        self._changed.set()

    def _unresolved(self, peer: _Peer, why: str) -> None:
        self._shell.count("unresolved")
        self._shell.log.warning("link_peer_unresolved", peer=peer.text, error=why)

    def _flags(self) -> int:
        return socket.AI_V4MAPPED if self._socket.family == socket.AF_INET6 else 0


def _text(sockaddr: Any) -> str:
    return format_address(str(sockaddr[0]).removeprefix("::ffff:"), int(sockaddr[1]))
