"""The link over ZeroMQ: between daemons, and in-band over the connections that carry the work.

The daemon binds a ROUTER. Another daemon's DEALER may connect to it and ask, as over UDP. Or an *application* of
this node attaches: it owns a ZeroMQ connection to a neighbour's application, connects a DEALER to our ROUTER and
sends the one frame ``b"\\x00attach:" + neighbour`` (again whenever it likes; it must after this daemon's restart).
From then on we ask that neighbour through this application: it carries each frame it gets from us over its own
connection to the neighbour's application, which hands it to its daemon, and back::

    daemon A <-ipc-> application A <-- the work's own connection --> application B <-ipc-> daemon B

An application may also ask for a *stamp* (the frame ``b"\x00stamp"``): it gets ``b"\x00stamp:"`` and a one-way message
that says when this node sent it. It puts that into the next message of its own work, and the application that receives
the work hands it to its daemon as any other frame: so the work itself proves one side of a bound.

So the clocks are compared over the path that carries the work, through whatever carries it. The application needs no
key and no trust: frames are authenticated end to end, and whatever it delays only widens. The name it gives is a
label; who answers is known from the answer.

Sockets are read by our own callback on ZeroMQ's descriptor and stamped right after the read: ``zmq.asyncio`` hands a
frame over one turn of the event loop later. That descriptor is edge-triggered: it must be drained until empty, and
looked at again after each send.

A peer's name is resolved here (``names.py``), again every half minute, and libzmq gets addresses: it would resolve in
the one thread that carries all its connections, and wait for the resolver at the end.

**CURVE.** What leaves this machine goes through CurveZMQ (Curve25519), with key pairs that every node derives from the
mesh key: there is nothing to configure and no public key to hand round. A client's first message is sealed with the
server's public key, which is never sent and known to members only, so:

- an outsider, who can listen and send, reads nothing, and gets nothing past the handshake: not a frame of his reaches
  our code (``handshakes_failed`` counts him);
- sessions have keys of their own, made for each connection and forgotten with it: who records today and steals the mesh
  key tomorrow still can't read it;
- it says nothing about *which* member speaks: all share the pair. That a message is from whom it says, and is no
  replay, is shown by the MAC inside, as on every link.

A ROUTER has one key at a time, that of the ring's first. A DEALER that gets no answer tries the ring's next one, so a
rotation separates nobody. On this machine (``ipc://``, loopback) frames are plain: applications that attach have no
key. A DEALER to loopback tries plain first and then CURVE, as the one there may listen beyond loopback too.

Limits: 64 attachments, the least recently used gives way; 200 stamps a second for all applications together.
Attaching, as asking for stamps, is for this machine's applications: refused on a ROUTER that listens beyond it, and
without a key (what is carried in-band leaves the machine). Frames of one multi-part message have no limit in libzmq: a
member, or a process of this machine, could use that.
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
from hashlib import blake2s
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skewd.keys import KeyNeeded, KeyRing, MeshKey
from skewd.links.protocol import LinkProtocol
from skewd.links.shell import OnProofs, RawClock, Schedule, Shell
from skewd.links.threaded import Budget
from skewd.links.unavailable import LinkUnavailable
from skewd.links.wire import is_name
from skewd.names import NAMES, is_numeric, why
from skewd.ports import ListenError, PortTaken, format_address, is_loopback, split_address

if TYPE_CHECKING:
    import zmq

__all__ = [
    "ASK_STAMP",
    "ATTACH",
    "MAX_ATTACHMENTS",
    "STAMP",
    "CurvePair",
    "LinkUnavailable",
    "ZmqLink",
    "client_pair",
    "server_pair",
]

ATTACH = b"\x00attach:"
ASK_STAMP = b"\x00stamp"
STAMP = b"\x00stamp:"
MAX_ATTACHMENTS = 64
_MAX_FRAME_BYTES = 2048
_BATCH = 64
_TRIES_PER_KEY = 3
_STAMPS_PER_WINDOW = 20
_REBIND_S = 0.05
_REBIND_TRIES = 100
_RESOLVE_AGAIN_S = 30.0
_RESOLVE_RETRY_S = 2.0
_S = 1_000_000_000


class CurvePair(NamedTuple):
    """A key pair of CurveZMQ, each half 40 characters of Z85."""

    public: bytes
    secret: bytes


def server_pair(key: MeshKey) -> CurvePair:
    """The pair of every node that listens, derived from the mesh key."""
    return _derived(key, b"skewd-cs")


def client_pair(key: MeshKey) -> CurvePair:
    """The pair of every node that connects, derived from the mesh key."""
    return _derived(key, b"skewd-cc")


def _derived(key: MeshKey, purpose: bytes) -> CurvePair:
    import zmq
    from zmq.utils import z85

    secret = z85.encode(blake2s(b"CurveZMQ", key=key.secret, digest_size=32, person=purpose).digest())
    return CurvePair(zmq.curve_public(secret), secret)


@dataclass(slots=True)
class _Dealer:
    """A connection to another daemon, where to, and the key that is tried on it (``None``: plain).

    Without a socket while nothing is known that its name resolves to.
    """

    sock: _Socket | None
    endpoint: str
    key: MeshKey | None
    tries: int = 0


@dataclass(slots=True)
class _Attached:
    """An application that carries our frames to a neighbour."""

    routing_id: bytes
    label: str
    address: str


class ZmqLink:
    """Make one with :meth:`open`."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], shell: Shell, interval_ns: int, keys: tuple[MeshKey, ...]
    ) -> None:
        self._context, self._shell, self._keys = context, shell, keys
        self._schedule = Schedule(interval_ns / _S, random.random)
        self._stamps = Budget(_STAMPS_PER_WINDOW)
        self._changed = asyncio.Event()
        self._router: _Socket | None = None
        self._attachable = False
        self._bound_key: MeshKey | None = None
        self._rebinding: asyncio.Task[None] | None = None
        self._dealers: dict[str, _Dealer] = {}
        self._endpoints: dict[str, list[str]] = {}
        self._resolving: list[asyncio.Task[None]] = []
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
        keys: KeyRing | MeshKey | None = None,
        setting: str = "[[link]] address",
    ) -> ZmqLink:
        """Bind at ``address`` and ask ``peers`` and every attached neighbour once per ``interval_ns``.

        Args:
            address: ``ipc:///path`` or ``tcp://host:port`` (port 0 lets the system choose, see :attr:`address`).
            on_proofs: called in the event loop with every message's proofs.
            peers: other daemons' addresses, of the same forms.
            keys: the protocol's, from which CURVE's are derived.
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
            if not _stays_here(text):
                if not protocol.keyed or keys is None:
                    raise KeyNeeded(text)
                if not zmq.has("curve"):
                    raise LinkUnavailable(
                        f"{text} is beyond this machine, and this libzmq has no CURVE; install pyzmq from its wheel"
                    )
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
                "attach_displaced",
                "detached",
                "stamps",
                "stamps_refused",
                "handshakes_failed",
                "keys_tried",
                "unresolved",
            ),
        )
        link = cls(zmq.Context(), shell, interval_ns, _ring(keys))
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
        tasks = [task for task in (self._task, self._rebinding, *self._resolving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in (self._router, *(dealer.sock for dealer in self._dealers.values())):
            if sock is not None:
                sock.close()
        self._context.term()

    def use_keys(self, keys: KeyRing | MeshKey) -> None:
        """From now on send with this key (of several, the first) and accept all of these, inside CURVE and in it.

        Connections that stand go on; new ones are made with the new keys.
        """
        self.protocol.use_keys(keys)
        self._keys = _ring(keys)
        if self._bound_key is not None and self._bound_key != self._keys[0] and self._rebinding is None:
            self._rebinding = asyncio.create_task(self._rebind(), name="skewd-zmq-rebind")

    async def _rebind(self) -> None:
        """Listens with the ring's first key: libzmq takes a key with ``bind`` only, and lets a port go in its time."""
        import zmq

        assert self._router is not None, "it is bound"
        endpoint = self._router.endpoint
        try:
            self._router.unbind(endpoint)
            for _ in range(_REBIND_TRIES):
                try:
                    self._bound_key = self._keys[0]
                    self._router.serve_with(self._bound_key)
                    self._router.bind(endpoint)
                except zmq.ZMQError:
                    await asyncio.sleep(_REBIND_S)
                else:
                    return
            self._shell.log.warning("link_not_bound_again", address=endpoint, advice="restart skewd")
        finally:
            self._rebinding = None

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
        if not _stays_here(address):
            self._bound_key = self._keys[0]
            self._router.serve_with(self._bound_key)
            self._router.watch_handshakes(self._on_handshake_failed)
        try:
            sock.bind(address)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE and address.startswith("tcp://"):
                host, port = split_address(address.removeprefix("tcp://"))
                raise PortTaken.at(host, port, "tcp", setting=setting) from None
            raise ListenError(f"{address} can't be bound: {error.strerror}; choose another with {setting}") from None

    def _on_handshake_failed(self) -> None:
        self._shell.count("handshakes_failed")
        self._shell.log.warning(
            "link_handshake_failed",
            advice="not a member, or one with another mesh key (give all the same [mesh] key_file), "
            "or a daemon of this machine that tried in clear first",
        )

    def _connect(self, address: str) -> None:
        key = self._ways_to(address)[0]
        host, port = ("", 0) if address.startswith("ipc://") else split_address(address.removeprefix("tcp://"))
        if not host or is_numeric(host):
            self._endpoints[address] = [address]
            self._dealers[address] = self._dealer(address, address, key)
        else:
            self._endpoints[address] = []
            self._dealers[address] = _Dealer(None, "", key)
            resolving = asyncio.create_task(self._resolve(address, host, port), name=f"skewd-zmq-resolve-{host}")
            self._resolving.append(resolving)
        self._schedule.add(address, asyncio.get_running_loop().time())

    async def _resolve(self, address: str, host: str, port: int) -> None:
        """Keeps one peer's endpoints current, for ever."""
        while True:
            try:
                found = await NAMES.find(host, port, kind=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                self._shell.count("unresolved")
                self._shell.log.warning("link_peer_unresolved", about=address, peer=address, error=why(error))
            else:
                addresses = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
                # What is plain because its name stays here must stay here, whatever a resolver says.
                near = [one for one in addresses if is_loopback(one) or not is_loopback(host)]
                self._take_endpoints(address, [f"tcp://{format_address(one, port)}" for one in near])
            await asyncio.sleep(_RESOLVE_AGAIN_S if self._endpoints[address] else _RESOLVE_RETRY_S)

    def _take_endpoints(self, address: str, endpoints: list[str]) -> None:
        self._endpoints[address] = endpoints
        former = self._dealers[address]
        if endpoints and former.endpoint not in endpoints:
            if former.sock is not None:
                former.sock.close()
            self._dealers[address] = self._dealer(address, endpoints[0], former.key)

    def _ways_to(self, address: str) -> list[MeshKey | None]:
        """With which keys to try, in order; ``None`` is plain, which never leaves this machine."""
        if address.startswith("ipc://"):
            return [None]
        return [None, *self._keys] if _stays_here(address) else [*self._keys]

    def _dealer(self, address: str, endpoint: str, key: MeshKey | None) -> _Dealer:
        import zmq

        sock = self._context.socket(zmq.DEALER)

        def take(frames: list[bytes], stamp: int) -> None:
            self._from_dealer(address, frames, stamp)

        around = _Socket(sock, take, self._shell)
        # A request that waits for a connection is stale when it leaves: better none.
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 100)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        if key is not None:
            around.connect_with(key)
        try:
            sock.connect(endpoint)
        except zmq.ZMQError as error:
            around.close()
            raise ValueError(f"'{address}' can't be connected to: {error.strerror}; write tcp://host:port") from None
        return _Dealer(around, endpoint, key)

    def _try_next(self, address: str) -> None:
        """Nobody has answered for a while: perhaps the other side has another key of the ring in front, or it is at
        another address of its name.
        """
        dealer = self._dealers[address]
        ways = [(endpoint, key) for endpoint in self._endpoints[address] for key in self._ways_to(address)]
        now = (dealer.endpoint, dealer.key)
        at = ways.index(now) + 1 if now in ways else 0
        if dealer.sock is None or not ways or (len(ways) == 1 and now in ways):
            return
        dealer.sock.close()
        self._dealers[address] = self._dealer(address, *ways[at % len(ways)])
        self._shell.count("keys_tried")

    # -- receiving

    def _from_dealer(self, address: str, frames: list[bytes], stamp: int) -> None:
        if len(frames) != 1:
            self._shell.count("bad_frames")
            return
        self._dealers[address].tries = 0
        self._shell.handle(frames[0], address, stamp, lambda build: self._send(self._dealers[address].sock, build))

    def _from_router(self, frames: list[bytes], stamp: int) -> None:
        if len(frames) != 2:
            self._shell.count("bad_frames")
            return
        routing_id, payload = frames
        if payload.startswith(ATTACH):
            self._attach(routing_id, payload[len(ATTACH) :])
            return
        if payload == ASK_STAMP:
            self._stamp(routing_id)
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
            self._shell.count("attach_displaced")
        self._schedule.add(routing_id, asyncio.get_running_loop().time())
        self._changed.set()

    def _stamp(self, routing_id: bytes) -> None:
        if not self._attachable:
            self._shell.count("attach_refused")
            return
        if self._stamps.spend(asyncio.get_running_loop().time()) > 0:
            self._shell.count("stamps_refused")  # the application sends its work without one
            return
        build = self.protocol.prepare_one_way()
        self._shell.count("stamps")
        self._send(self._router, lambda now_raw_ns: STAMP + build(now_raw_ns), routing_id)

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
            if self._dealers[key].sock is None:
                return  # its name has no address yet
            self._dealers[key].tries += 1
            if self._dealers[key].tries % (_TRIES_PER_KEY + 1) == 0:
                self._try_next(key)
            self._send(self._dealers[key].sock, self.protocol.prepare(key))

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
        self._monitor: zmq.Socket[bytes] | None = None

    @property
    def endpoint(self) -> str:
        import zmq

        endpoint = self._sock.getsockopt(zmq.LAST_ENDPOINT)
        return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else ""

    def serve_with(self, key: MeshKey) -> None:
        """CURVE as the listening side, from the next ``bind`` on."""
        import zmq

        self._sock.setsockopt(zmq.CURVE_SERVER, 1)
        self._sock.setsockopt(zmq.CURVE_SECRETKEY, server_pair(key).secret)

    def connect_with(self, key: MeshKey) -> None:
        """CURVE as the connecting side, from the next ``connect`` on."""
        import zmq

        mine = client_pair(key)
        self._sock.setsockopt(zmq.CURVE_SERVERKEY, server_pair(key).public)
        self._sock.setsockopt(zmq.CURVE_PUBLICKEY, mine.public)
        self._sock.setsockopt(zmq.CURVE_SECRETKEY, mine.secret)

    def bind(self, endpoint: str) -> None:
        self._sock.bind(endpoint)

    def unbind(self, endpoint: str) -> None:
        self._sock.unbind(endpoint)

    def watch_handshakes(self, failed: Callable[[], None]) -> None:
        """Be told of every handshake that fails: nothing of it arrives as a message."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        monitor: zmq.Socket[bytes] = self._sock.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self._monitor = monitor

        def drain() -> None:
            if self._closed:
                return
            for _ in range(_BATCH):
                try:
                    recv_monitor_message(monitor, zmq.NOBLOCK)
                except zmq.ZMQError:
                    return
                failed()
            self._loop.call_soon(drain)

        self._loop.add_reader(monitor.fileno(), drain)
        drain()

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
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fileno())
            self._sock.disable_monitor()
            self._monitor.close(linger=0)
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


def _ring(keys: KeyRing | MeshKey | None) -> tuple[MeshKey, ...]:
    if keys is None:
        return ()
    return keys.keys if isinstance(keys, KeyRing) else (keys,)


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
