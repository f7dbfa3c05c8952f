"""The link over UDP: a socket, a reader and a task that asks each peer once an interval.

The stamps are what a link is for, so the socket is read by our own callback, and each datagram is stamped right
after the call that returned it, before any other code runs; a request or reply is stamped right before its bytes
are made and sent. What is received is stamped by the kernel too, where it does that, which takes the wait for the
scheduler out. An asyncio datagram transport would stamp later, and would keep the kernel's stamps from us.

Requests are spread over the interval. Names are resolved in the background, again every half minute, so a slow
resolver delays nobody. Without a key nothing beyond loopback is listened on or asked.

Limits: one address per configured peer (the first that resolves in the socket's family). A datagram that can't be
sent is counted and forgotten: the next interval asks again. Sends are stamped by user space only: the stamp is in
the message, and the kernel's comes after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from skewd import kernel_stamps
from skewd.keys import KeyNeeded
from skewd.links.protocol import LinkProtocol
from skewd.links.shell import OnProofs, RawClock, Schedule, Shell
from skewd.links.wire import MAX_MESSAGE_BYTES
from skewd.ports import ListenError, PortTaken, format_address, is_loopback, split_address

_COUNTERS = ("send_dropped", "send_failed", "receive_failed", "unresolved", "kernel_stamped", "kernel_unusable")
_BATCH = 64
_RESOLVE_AGAIN_S = 30.0
_RESOLVE_RETRY_S = 2.0
_S = 1_000_000_000


@dataclass(slots=True)
class _Peer:
    text: str
    host: str
    port: int
    numeric: bool
    sockaddr: Any = None


class UdpLink:
    """Make one with :meth:`open`."""

    def __init__(
        self, sock: socket.socket, shell: Shell, interval_ns: int, stamps: kernel_stamps.ReceiveStamps | None
    ) -> None:
        self._socket, self._shell, self._stamps = sock, shell, stamps
        self._peers: dict[str, _Peer] = {}
        self._schedule = Schedule(interval_ns / _S, random.random)
        self._changed = asyncio.Event()
        self._resolve_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

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
        stamps: kernel_stamps.ReceiveStamps | None = None,
    ) -> UdpLink:
        """Listen, and ask ``peers`` once per ``interval_ns``.

        Args:
            listen: ``host:port``; port 0 lets the system choose (see :attr:`address`).
            on_proofs: called in the event loop with every message's proofs.
            peers: ``host:port`` each, names or addresses.
            setting: what the user changes to listen elsewhere, for the message.
            stamps: to have the kernel stamp what is received; user space does, if None or if the kernel refuses.

        Raises:
            PortTaken: naming the holder.
            ListenError: no such address on this machine.
            KeyNeeded: beyond loopback without a key.
            ValueError: an address that can't be read.
        """
        host, port = split_address(listen)
        loop = asyncio.get_running_loop()
        try:
            family, _, _, _, sockaddr = (
                await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
            )[0]
        except (OSError, UnicodeError) as error:
            raise ListenError(f"{listen} can't be listened on: {_why(error)}; choose another with {setting}") from None
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
            if stamps is not None and not kernel_stamps.ask_for_stamps(sock, sends=False):
                stamps = None
            link = cls(sock, shell, interval_ns, stamps)
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
            numeric = _is_numeric(host)
            if numeric and not self.protocol.keyed and not is_loopback(host):
                raise KeyNeeded(text)
            wanted[text] = self._peers.get(text) or _Peer(text, host, port, numeric)
        for text in self._peers.keys() - wanted.keys():
            self.protocol.forget(text)
            self._schedule.remove(text)
        self._peers = wanted
        for peer in wanted.values():
            if peer.numeric and peer.sockaddr is None:
                self._take_address(peer, socket.AI_NUMERICHOST)
        self._resolve_now.set()

    async def close(self) -> None:
        """End the tasks and close the socket."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    # -- receiving and sending

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                data, source, wall_ns = kernel_stamps.receive(self._socket, MAX_MESSAGE_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._shell.count("receive_failed")
                return
            stamp = self._shell.clock.raw_ns()
            if wall_ns is not None and self._stamps is not None:
                sharper = self._stamps.latest_ns(wall_ns, stamp)
                self._shell.count("kernel_unusable" if sharper is None else "kernel_stamped")
                stamp = stamp if sharper is None else sharper
            address = _text(source)
            self._shell.handle(data, address, stamp, partial(self._send, to=source))
            if self._schedule.brought_on(address, asyncio.get_running_loop().time()):
                self._ask(address)
                self._changed.set()

    def _send(self, build: Callable[[int], bytes], to: Any) -> None:
        try:
            self._socket.sendto(build(self._shell.clock.raw_ns()), to)
        except (BlockingIOError, InterruptedError):
            self._shell.count("send_dropped")
        except OSError as error:
            self._shell.count("send_failed")
            self._shell.log.warning("link_send_failed", address=_text(to), error=error.strerror)

    def _ask(self, key: Hashable) -> None:
        peer = self._peers.get(str(key))
        if peer is not None and peer.sockaddr is not None:
            if self._stamps is not None:
                self._stamps.look()
            self._send(self.protocol.prepare(peer.text), peer.sockaddr)

    # -- names

    async def _resolve_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._resolve_now.clear()
            named = [peer for peer in self._peers.values() if not peer.numeric]
            for peer in named:
                try:
                    found = await loop.getaddrinfo(
                        peer.host, peer.port, family=self._socket.family, type=socket.SOCK_DGRAM, flags=self._flags()
                    )
                except (OSError, UnicodeError) as error:
                    self._unresolved(peer, _why(error))
                else:
                    self._take(peer, found[0][4])
            missing = any(peer.sockaddr is None for peer in named)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_RETRY_S if missing else _RESOLVE_AGAIN_S):
                    await self._resolve_now.wait()

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


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _why(error: OSError | UnicodeError) -> str:
    """In words; a name with an impossible label fails in the codec, not in the resolver."""
    return str(getattr(error, "strerror", None) or error)


def _text(sockaddr: Any) -> str:
    return format_address(str(sockaddr[0]).removeprefix("::ffff:"), int(sockaddr[1]))
