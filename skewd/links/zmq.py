"""The link over ZeroMQ: between daemons, and in-band over the connections that carry the work.

The daemon binds a ROUTER. Another daemon's DEALER may connect to it and ask, as over UDP. Or an *application* of
this node attaches: it owns a ZeroMQ connection to a neighbour's application, connects a DEALER to our ROUTER and
sends the one frame ``b"\\x00attach:" + neighbour`` (again whenever it likes; it must after this daemon's restart).
From then on we ask that neighbour through this application: it carries each frame it gets from us over its own
connection to the neighbour's application, which hands it to its daemon, and back::

    daemon A <-ipc-> application A <-- the work's own connection --> application B <-ipc-> daemon B

So the clocks are compared over the path that carries the work, through whatever carries it. The application needs no
key and no trust: frames are authenticated end to end, and whatever it delays only widens. The name it gives is a
label; who answers is known from the answer.

Sockets are read by our own callback on ZeroMQ's descriptor and stamped right after the read: ``zmq.asyncio`` hands a
frame over one turn of the event loop later. That descriptor is edge-triggered: it must be drained until empty, and
looked at again after each send.

Limits: 64 attachments, the least recently used gives way. Attaching is for this machine's applications: refused on a
ROUTER that listens beyond it, and without a key (what is carried in-band leaves the machine). Frames of one
multi-part message have no limit in libzmq, so beyond loopback listen on networks you trust until CURVE comes.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import socket
import stat
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skewd.keys import KeyNeeded
from skewd.links.protocol import LinkProtocol
from skewd.links.shell import OnProofs, RawClock, Schedule, Shell
from skewd.links.unavailable import LinkUnavailable
from skewd.links.wire import is_name
from skewd.ports import ListenError, PortTaken, is_loopback, split_address

if TYPE_CHECKING:
    import zmq

__all__ = ["ATTACH", "MAX_ATTACHMENTS", "LinkUnavailable", "ZmqLink"]

ATTACH = b"\x00attach:"
MAX_ATTACHMENTS = 64
_MAX_FRAME_BYTES = 2048
_BATCH = 64
_S = 1_000_000_000


@dataclass(slots=True)
class _Attached:
    """An application that carries our frames to a neighbour."""

    routing_id: bytes
    label: str
    address: str


class ZmqLink:
    """Make one with :meth:`open`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], shell: Shell, interval_ns: int) -> None:
        self._context, self._shell = context, shell
        self._schedule = Schedule(interval_ns / _S, random.random)
        self._changed = asyncio.Event()
        self._router: _Socket | None = None
        self._attachable = False
        self._dealers: dict[str, _Socket] = {}
        self._attached: OrderedDict[bytes, _Attached] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

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
        setting: str = "[[link]] address",
    ) -> ZmqLink:
        """Bind at ``address`` and ask ``peers`` and every attached neighbour once per ``interval_ns``.

        Args:
            address: ``ipc:///path`` or ``tcp://host:port`` (port 0 lets the system choose, see :attr:`address`).
            on_proofs: called in the event loop with every message's proofs.
            peers: other daemons' addresses, of the same forms.
            setting: what the user changes to listen elsewhere, for the message.

        Raises:
            LinkUnavailable: pyzmq is not installed.
            PortTaken: naming the holder.
            ListenError: the address can't be bound.
            KeyNeeded: beyond this machine without a key.
            ValueError: an address that can't be read.
        """
        try:
            import zmq
        except ImportError:
            raise LinkUnavailable("the zmq link needs pyzmq; install it with: pip install 'skewd[zmq]'") from None
        for text in (address, *peers):
            if not _stays_here(text) and not protocol.keyed:
                raise KeyNeeded(text)
        shell = Shell(
            protocol,
            clock,
            on_proofs,
            (
                "send_dropped",
                "receive_failed",
                "bad_frames",
                "attached",
                "attach_refused",
                "attachments_dropped",
                "detached",
            ),
        )
        link = cls(zmq.Context(), shell, interval_ns)
        try:
            link._bind(address, setting)
            for peer in peers:
                link._connect(peer)
        except BaseException:
            await link.close()
            raise
        link._task = asyncio.create_task(shell.ask(link._schedule, link._changed, link._ask), name="skewd-zmq-ask")
        return link

    @property
    def address(self) -> str:
        """What is bound, as others connect to it."""
        return self._router.endpoint if self._router is not None else ""

    @property
    def counters(self) -> dict[str, int]:
        """What was sent, accepted and refused, by reason."""
        return self._shell.counters

    @property
    def protocol(self) -> LinkProtocol:
        """The protocol behind it, for its peers and targets."""
        return self._shell.protocol

    @property
    def attached(self) -> tuple[str, ...]:
        """The neighbours that applications attached, as they call them, least recently used first."""
        return tuple(entry.label for entry in self._attached.values())

    async def close(self) -> None:
        """End the task, close the sockets and the context."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for sock in (self._router, *self._dealers.values()):
            if sock is not None:
                sock.close()
        self._context.term()

    # -- sockets

    def _bind(self, address: str, setting: str) -> None:
        import zmq

        self._attachable = _stays_here(address) and self.protocol.keyed
        if address.startswith("ipc://"):
            _refuse_living_socket(address.removeprefix("ipc://"), setting)
        sock = self._context.socket(zmq.ROUTER)
        self._router = _Socket(sock, self._from_router, self._shell)
        # Without it, a frame for an application that is gone vanishes without a word.
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.IPV6, int("[" in address))
        try:
            sock.bind(address)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE and address.startswith("tcp://"):
                host, port = split_address(address.removeprefix("tcp://"))
                raise PortTaken.at(host, port, "tcp", setting=setting) from None
            raise ListenError(f"{address} can't be bound: {error.strerror}; choose another with {setting}") from None

    def _connect(self, address: str) -> None:
        import zmq

        sock = self._context.socket(zmq.DEALER)

        def take(frames: list[bytes], stamp: int) -> None:
            self._from_dealer(address, frames, stamp)

        self._dealers[address] = _Socket(sock, take, self._shell)
        # A request that waits for a connection is stale when it leaves: better none.
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 100)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        try:
            sock.connect(address)
        except zmq.ZMQError as error:
            raise ValueError(f"'{address}' can't be connected to: {error.strerror}; write tcp://host:port") from None
        self._schedule.add(address, asyncio.get_running_loop().time())

    # -- receiving

    def _from_dealer(self, address: str, frames: list[bytes], stamp: int) -> None:
        if len(frames) != 1:
            self._shell.count("bad_frames")
            return
        self._shell.handle(frames[0], address, stamp, lambda build: self._send(self._dealers[address], build))

    def _from_router(self, frames: list[bytes], stamp: int) -> None:
        if len(frames) != 2:
            self._shell.count("bad_frames")
            return
        routing_id, payload = frames
        if payload.startswith(ATTACH):
            self._attach(routing_id, payload[len(ATTACH) :])
            return
        entry = self._attached.get(routing_id)
        if entry is not None:
            self._attached.move_to_end(routing_id)
        address = entry.address if entry is not None else f"zmq:{routing_id.hex()[:64]}"
        self._shell.handle(payload, address, stamp, lambda build: self._send(self._router, build, routing_id))

    # -- attachments

    def _attach(self, routing_id: bytes, name: bytes) -> None:
        label = name.decode("ascii", "replace")
        if not self._attachable or not is_name(label):
            self._shell.count("attach_refused")
            if not is_name(label):
                advice = "send the neighbour's node name: letters, digits, '.', '_', '-', 63 at most"
            elif not self.protocol.keyed:
                advice = "what is carried in-band leaves this machine: set [mesh] key_file on both nodes"
            else:
                advice = "applications attach on this machine only: bind the link to ipc:// or loopback"
            self._shell.log.warning("link_attach_refused", advice=advice)
            return
        entry = self._attached.get(routing_id)
        if entry is not None and entry.label == label:
            self._attached.move_to_end(routing_id)
            return
        if entry is not None:
            self._detach(routing_id)
        taken = {other.address for other in self._attached.values()}
        address = f"in-band:{label}"
        number = 1
        while address in taken:
            number += 1
            address = f"in-band:{label}#{number}"
        self._attached[routing_id] = _Attached(routing_id, label, address)
        self._shell.count("attached")
        if len(self._attached) > MAX_ATTACHMENTS:
            self._detach(next(iter(self._attached)))
            self._shell.count("attachments_dropped")
        self._schedule.add(routing_id, asyncio.get_running_loop().time())
        self._changed.set()

    def _detach(self, routing_id: bytes) -> None:
        entry = self._attached.pop(routing_id, None)
        if entry is not None:
            self._schedule.remove(routing_id)
            self.protocol.forget(entry.address)

    # -- sending

    def _ask(self, key: Hashable) -> None:
        if isinstance(key, bytes):
            entry = self._attached.get(key)
            if entry is not None:
                self._send(self._router, self.protocol.prepare(entry.address), entry.routing_id)
        elif isinstance(key, str):
            self._send(self._dealers[key], self.protocol.prepare(key))

    def _send(self, sock: _Socket | None, build: Callable[[int], bytes], routing_id: bytes | None = None) -> None:
        import zmq

        if sock is None:
            return
        try:
            sock.send(build, routing_id)
        except zmq.Again:
            self._shell.count("send_dropped")
        except zmq.ZMQError as error:
            self._shell.count("send_dropped")
            if error.errno == errno.EHOSTUNREACH and routing_id is not None and routing_id in self._attached:
                # The application is gone; it attaches again when it is back.
                self._detach(routing_id)
                self._shell.count("detached")


class _Socket:
    """A ZeroMQ socket on the event loop: drained when its descriptor says so, and after each send."""

    def __init__(self, sock: zmq.Socket[bytes], take: Callable[[list[bytes], int], None], shell: Shell) -> None:
        import zmq

        self._sock, self._take, self._shell = sock, take, shell
        self._closed = False
        self._loop = asyncio.get_running_loop()
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 64),
            (zmq.RCVHWM, 256),
            (zmq.MAXMSGSIZE, _MAX_FRAME_BYTES),
            (zmq.HEARTBEAT_IVL, 5000),
            (zmq.HEARTBEAT_TIMEOUT, 15000),
        ):
            sock.setsockopt(option, value)
        self._descriptor = sock.fileno()
        self._loop.add_reader(self._descriptor, self._drain)

    @property
    def endpoint(self) -> str:
        import zmq

        endpoint = self._sock.getsockopt(zmq.LAST_ENDPOINT)
        return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else ""

    def send(self, build: Callable[[int], bytes], routing_id: bytes | None) -> None:
        import zmq

        data = build(self._shell.clock.raw_ns())
        try:
            self._sock.send_multipart([data] if routing_id is None else [routing_id, data], zmq.NOBLOCK)
        finally:
            # A send may use up the descriptor's signal for what has arrived meanwhile.
            self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        self._sock.close(linger=0)

    def _drain(self) -> None:
        import zmq

        if self._closed:
            return
        try:
            for _ in range(_BATCH):
                frames = [self._sock.recv(zmq.NOBLOCK)]
                stamp = self._shell.clock.raw_ns()
                while self._sock.rcvmore:
                    frame = self._sock.recv(zmq.NOBLOCK)
                    if len(frames) < 3:
                        frames.append(frame)
                self._take(frames, stamp)
        except zmq.Again:
            return
        except zmq.ZMQError:
            self._shell.count("receive_failed")
            return
        except Exception:
            self._shell.failed()
        self._loop.call_soon(self._drain)


def _stays_here(address: str) -> bool:
    """Whether nothing sent to or bound at ``address`` leaves this machine.

    Raises:
        ValueError: neither ``ipc://`` nor ``tcp://host:port``.
    """
    if re.fullmatch(r"ipc://.+", address):
        return True
    if not address.startswith("tcp://"):
        raise ValueError(f"'{address[:80]}' is not a ZeroMQ address; write ipc:///path or tcp://host:port")
    host, _ = split_address(address.removeprefix("tcp://"))
    return is_loopback(host)


def _refuse_living_socket(path: str, setting: str) -> None:
    """libzmq takes a Unix socket's path away from whoever listens there; refuse instead.

    Raises:
        PortTaken: naming the holder.
    """
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise ListenError(f"{path} is there and is no socket; choose another with {setting}")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a process that is gone
        except BlockingIOError:
            pass
        except OSError as error:
            raise ListenError(f"{path} can't be bound: {error.strerror}; choose another with {setting}") from None
    raise PortTaken.at(path, 0, "unix", setting=setting)
