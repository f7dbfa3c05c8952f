"""Hops over ZeroMQ, and the clocks' conversation relayed beside the work.

The problem: a daemon that compares clocks with its neighbour needs a path there. The pipeline already has one, and
its delays are the ones that matter. But the path belongs to the application, which is busy: it waits for work,
computes, sleeps. The insight: an application that waits *in the transport* can pass a few small frames from its
daemon to its neighbour while it waits, at the cost of a poll over two more sockets. It needs no key, nobody trusts
it, and however late it relays, a bound only gets wider, never wrong.

Per hop one DEALER at each end (downstream binds, upstream connects); per end one more DEALER to this node's daemon,
which is told once (and again every ``REATTACH_S``, for a daemon that was restarted) which neighbour it leads to:

    daemon A  <- ipc ->  stage A  <===== hop: work, and clock frames both ways =====>  stage B  <- ipc ->  daemon B

With ``stamps`` the work carries the daemon's stamps too (``daemon_link.py``).

All ends a thread opened are turned together: a stage that waits in its inbox also relays for its outbox. Work goes
first, always: a message that is here is returned before any clock frame is touched, and the relay gets a turn when
there is none, when the stage pumps, or at the latest every ``TURN_S`` of receiving without a pause.

Limits: ``HIGH_WATER`` messages wait on each side of a hop, plus ``READ_AHEAD`` that were read to get at the clock
frames between them; a full hop blocks ``send`` for ``SEND_LIMIT_S``, then it fails. Of clock frames the newest
``CLOCK_QUEUE`` are kept in each direction. ``close`` of an outbox waits ``LINGER_S`` at most for the neighbour to take
what was sent; ZeroMQ acknowledges nothing, so a neighbour that dies loses what it had. Nothing is encrypted: loopback
and trusted networks. A frame over the size limit costs its sender the connection.
"""

from __future__ import annotations

import math
import select
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from types import MappingProxyType

import zmq

from skewd_pipeline.transports import beside
from skewd_pipeline.transports.base import HopConfig, Message, TransportError
from skewd_pipeline.transports.daemon_link import (
    CLOCK_QUEUE,
    FRAMES_PER_TURN,
    REATTACH_S,
    STAMP_AHEAD_S,
    DaemonLink,
)
from skewd_pipeline.transports.frames import (
    MAX_FRAME_BYTES,
    MalformedFrames,
    decode,
    encode_clock,
    encode_work,
    split_stamp,
)

__all__ = ["CLOCK_QUEUE", "HIGH_WATER", "LINGER_S", "READ_AHEAD", "REATTACH_S", "ZmqInbox", "ZmqOutbox"]

HIGH_WATER = 256
READ_AHEAD = 64
SEND_LIMIT_S = 30.0
LINGER_S = 5.0
TURN_S = 0.001
# The longest wait in one poll while a clock frame waits that somebody had no room for: how late it may be.
SLICE_S = 0.05
# zmq_poll counts whole milliseconds; the rest of a pump below this is slept.
POLL_GRAIN_S = 0.001


class _Group:
    """The ends one thread opened, turned together."""

    def __init__(self) -> None:
        self.poller = zmq.Poller()
        self.ends: list[_End] = []
        self.turned_at = 0.0
        self._until: int | None = None

    def watch(self, until: int | None) -> None:
        """From now on a wait is over when this descriptor is readable, too; None: no longer."""
        if self._until is not None:
            self.poller.unregister(self._until)
        if until is not None:
            self.poller.register(until, zmq.POLLIN)
        self._until = until

    def wait(self, timeout_s: float, first: _End | None = None) -> bool:
        """Waits for anything at any end, at most ``timeout_s``, then lets each end relay what there is.

        ``first`` has its own hop read before the others are served; when that brings work, the rest waits for the
        next turn, since the caller has something better to do.

        Returns:
            whether the descriptor that is watched besides is readable.
        """
        if timeout_s > 0:
            now = time.monotonic()
            due_s = min((end.due_s(now) for end in self.ends), default=math.inf)
            timeout_s = min(timeout_s, max(due_s, POLL_GRAIN_S))
        ready = dict(self.poller.poll(max(0, int(timeout_s * 1000))))
        now = time.monotonic()
        if first is not None and first.hop in ready:
            first.read_hop()
            if first.pending:
                return False
        self.turned_at = now
        for end in self.ends:
            end.turn(ready, now)
        return self._until is not None and self._until in ready

    def add(self, end: _End) -> None:
        """Turns this end with the others from now on."""
        for socket in end.sockets():
            self.poller.register(socket, zmq.POLLIN)
        self.ends.append(end)
        beside.register("zmq", self.turn)

    def turn(self) -> None:
        """One bounded round of relaying; never blocks."""
        self.wait(0)

    def remove(self, end: _End) -> None:
        """Forgets an end that is being closed."""
        for socket in end.sockets():
            if socket in self.poller:
                self.poller.unregister(socket)
        self.ends.remove(end)
        if not self.ends:
            beside.register("zmq", None)


class _ThreadGroup(threading.local):
    def __init__(self) -> None:
        self.group = _Group()


_of_thread = _ThreadGroup()


class _End:
    """What both ends of a hop share: the two sockets, the relay between them, waiting, closing."""

    def __init__(self, config: HopConfig, neighbour: str, *, takes_work: bool) -> None:
        self._config = config
        self._takes_work = takes_work
        self._counters: Counter[str] = Counter()
        self._to_hop: deque[bytes] = deque(maxlen=CLOCK_QUEUE)
        self.pending: deque[Message] = deque()
        self._owner = threading.get_ident()
        self._closed = False
        # A context of its own: closing this end then waits for this end's messages, whatever else the thread opened.
        self._context = zmq.Context()
        self.hop = self._context.socket(zmq.DEALER)
        self.daemon: DaemonLink | None = None
        try:
            self.hop.set(zmq.SNDHWM, HIGH_WATER)
            self.hop.set(zmq.RCVHWM, HIGH_WATER)
            self.hop.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            # Only clock frames go upstream, and they are worth no waiting.
            self.hop.set(zmq.LINGER, 0 if takes_work else int(LINGER_S * 1000))
            self.hop.set(zmq.RECONNECT_IVL, 20)
            self.hop.set(zmq.RECONNECT_IVL_MAX, 1000)
            self._open_hop()
            if config.daemon_link is not None:
                self.daemon = DaemonLink(self._context, config.daemon_link, neighbour, config.name, self._counters)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        # An end that is forgotten instead of closed: the collector would wait for its context for ever, in any thread.
        self._if_forgotten = weakref.finalize(self, _give_back, self._context, self.sockets())
        self._if_forgotten.atexit = False
        self._group = _of_thread.group
        self._group.add(self)

    def _open_hop(self) -> None:
        raise NotImplementedError

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The sockets to wait for."""
        return [self.hop] if self.daemon is None else [self.hop, self.daemon.socket]

    @property
    def counters(self) -> Mapping[str, int]:
        """``sent`` or ``received``, ``malformed``, ``clock_to_neighbour``, ``clock_to_daemon``, ``clock_dropped``, and
        with stamps ``stamps_asked``, ``stamps_sent``, ``stamps_received``."""
        return MappingProxyType(self._counters)

    def check(self) -> None:
        """Refuses use after closing and from another thread.

        Raises:
            TransportError: either.
        """
        if self._closed:
            raise TransportError(f"hop {self._config.name}: this end is closed")
        if threading.get_ident() != self._owner:
            raise TransportError(f"hop {self._config.name}: this end belongs to the thread that opened it")

    # -- relaying -----------------------------------------------------------------------------------------------

    def turn(self, ready: Mapping[object, int], now: float) -> None:
        """One bounded round of relaying for the sockets that are ready; never blocks."""
        if self.hop in ready:
            self.read_hop()
        if self.daemon is None:
            return
        self.daemon.attach(now)
        if self.daemon.socket in ready:
            self._read_daemon(self.daemon)
        while self._to_hop and self._try_send(self.hop, encode_clock(self._to_hop[0])):
            self._to_hop.popleft()
            self._counters["clock_to_neighbour"] += 1
        self.daemon.drain()

    def due_s(self, now: float) -> float:
        """How long this end may be left alone when nothing arrives."""
        if self.daemon is None:
            return math.inf
        return SLICE_S if self._to_hop or self.daemon.holds else max(0.0, self.daemon.attach_at - now)

    def read_hop(self) -> None:
        """Takes what the hop has: work is kept for ``receive``, clock frames go to the daemon. Stops at limits."""
        for _ in range(FRAMES_PER_TURN):
            if len(self.pending) >= READ_AHEAD:
                # Until receive() makes room the hop is not looked at, or a full inbox would make every poll return.
                self._group.poller.unregister(self.hop)
                return
            try:
                frames, stamp = split_stamp(self.hop.recv_multipart(zmq.NOBLOCK))
                arrived = decode(frames)
            except zmq.Again:
                return
            except MalformedFrames:
                self._counters["malformed"] += 1
                continue
            if isinstance(arrived, bytes):
                if self.daemon is not None:
                    self.daemon.give(arrived)
            elif self._takes_work:
                if stamp is not None and self.daemon is not None:
                    self.daemon.give(stamp)  # first: every moment it is held here widens what it proves
                    self._counters["stamps_received"] += 1
                self.pending.append(arrived)
                return
            else:
                self._counters["malformed"] += 1

    def take(self) -> Message:
        """The oldest message that was read."""
        if len(self.pending) == READ_AHEAD:
            self._group.poller.register(self.hop, zmq.POLLIN)
        self._counters["received"] += 1
        return self.pending.popleft()

    def _read_daemon(self, daemon: DaemonLink) -> None:
        for payload in daemon.read():
            if len(self._to_hop) == CLOCK_QUEUE:  # the deque drops its oldest: the newest measures best
                self._counters["clock_dropped"] += 1
            self._to_hop.append(payload)

    @staticmethod
    def _try_send(socket: zmq.Socket[bytes], frames: list[bytes]) -> bool:
        try:
            socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    # -- waiting and closing ------------------------------------------------------------------------------------

    def pump(self, timeout_s: float, *, before_send: bool = False, until: int | None = None) -> None:
        """Relay for ``timeout_s`` seconds, less only for ``until``; work that arrives is kept."""
        self.check()
        self._group.watch(until)
        try:
            self._pump(timeout_s, before_send)
        finally:
            self._group.watch(None)

    def _pump(self, timeout_s: float, before_send: bool) -> None:
        deadline = time.monotonic() + timeout_s
        stamp_at = deadline - STAMP_AHEAD_S if before_send and self._config.stamps else None
        self._group.wait(0)
        while (rest := deadline - time.monotonic()) > 0:
            if stamp_at is not None:
                if stamp_at - time.monotonic() < POLL_GRAIN_S:
                    self._ask_stamp()
                    stamp_at = None
                else:
                    rest = stamp_at - time.monotonic()
            if rest < POLL_GRAIN_S and stamp_at is None:
                self._sleep(deadline)
            else:
                if self._group.wait(beside.slice_of(rest, rest, "zmq")):
                    return
            beside.turn("zmq")
        if stamp_at is not None:  # nothing to wait for: for the next one
            self._ask_stamp()

    def _ask_stamp(self) -> None:
        if self.daemon is not None:
            self.daemon.ask_stamp(time.monotonic())

    def _sleep(self, deadline: float) -> None:
        """The last part of a wait, which is below the grain of ZeroMQ's poll; a stamp that comes is looked for."""
        if self.daemon is not None and self._config.stamps:
            readable = [self.daemon.socket.fileno()]
            select.select(readable, [], [], max(0.0, deadline - time.monotonic()))
            self._read_daemon(self.daemon)
        time.sleep(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Send what is left, wait ``LINGER_S`` at most for the neighbour to take it, give all sockets back."""
        if self._closed:
            return
        self.check()
        self._closed = True
        self._group.remove(self)
        for socket in self.sockets():
            socket.close()
        self._context.term()
        self._if_forgotten.detach()


class ZmqInbox(_End):
    """The downstream end: binds, receives work, relays clock frames."""

    def __init__(self, config: HopConfig) -> None:
        """Bind and be ready.

        Raises:
            TransportError: the endpoint is taken or makes no sense.
        """
        super().__init__(config, config.upstream, takes_work=True)

    def _open_hop(self) -> None:
        endpoint = self._config.endpoint
        assert endpoint is not None, "HopConfig checked it"
        try:
            self.hop.bind(endpoint)
        except zmq.ZMQError as error:
            why = f"{endpoint} is taken{_holder(endpoint)}" if error.errno == zmq.EADDRINUSE else str(error)
            raise TransportError(f"hop {self._config.name}: cannot listen at {endpoint}: {why}") from error

    @property
    def address(self) -> str:
        """The endpoint this end is bound to, with its real port."""
        return self.hop.get_string(zmq.LAST_ENDPOINT)

    def rest(self) -> None:
        """Nothing to do: waiting for a socket costs nothing."""

    def attend(self) -> None:
        """Nothing to do: what arrives wakes whoever waits."""

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or ``None`` after ``timeout_s`` seconds; relays while it waits."""
        self.check()
        now = time.monotonic()
        deadline = now + timeout_s
        if now - self._group.turned_at > TURN_S:
            self._group.wait(0, first=None if self.pending else self)
        while not self.pending:
            rest = deadline - time.monotonic()
            # Rounded up to the poll's grain, or the last part of a wait would be a busy loop.
            wait_s = max(rest, 0) + POLL_GRAIN_S if rest > 0 else 0
            self._group.wait(beside.slice_of(wait_s, wait_s, "zmq"), first=self)
            if not self.pending:
                beside.turn("zmq")
            if rest <= 0:
                break
        return self.take() if self.pending else None


class ZmqOutbox(_End):
    """The upstream end: connects, sends work, relays clock frames."""

    def __init__(self, config: HopConfig) -> None:
        """Connect; the neighbour may bind later.

        Raises:
            TransportError: the endpoint makes no sense.
        """
        super().__init__(config, config.downstream, takes_work=False)

    def _open_hop(self) -> None:
        endpoint = self._config.endpoint
        assert endpoint is not None, "HopConfig checked it"
        try:
            self.hop.connect(endpoint)
        except zmq.ZMQError as error:
            raise TransportError(f"hop {self._config.name}: cannot connect to {endpoint}: {error}") from error

    def send(self, message: Message) -> None:
        """Hand over one message; blocks, relaying, while the hop is full."""
        self.check()
        stamp = self.daemon.take_stamp() if self.daemon is not None and self._config.stamps else None
        frames = encode_work(message, stamp)
        self._counters["stamps_sent"] += stamp is not None
        if not self._try_send(self.hop, frames):
            self._send_when_room(frames)
        self._counters["sent"] += 1

    def _send_when_room(self, frames: list[bytes]) -> None:
        deadline = time.monotonic() + SEND_LIMIT_S
        poller = self._group.poller
        poller.register(self.hop, zmq.POLLIN | zmq.POLLOUT)
        try:
            while not self._try_send(self.hop, frames):
                if time.monotonic() >= deadline:
                    raise TransportError(
                        f"hop {self._config.name}: {self._config.downstream} took nothing for {SEND_LIMIT_S:.0f} s "
                        f"and {HIGH_WATER} messages wait; see whether it still runs"
                    )
                self._group.wait(beside.slice_of(SLICE_S, SLICE_S, "zmq"))
                beside.turn("zmq")
        finally:
            poller.register(self.hop, zmq.POLLIN)

    def flush(self) -> None:
        """Nothing to wait for: ZeroMQ confirms nothing. Whatever the relay holds is passed on."""
        self.check()
        self._group.wait(0)


def _give_back(context: zmq.Context[zmq.Socket[bytes]], sockets: list[zmq.Socket[bytes]]) -> None:
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def _holder(endpoint: str) -> str:
    """Who holds a TCP endpoint, in words to append, or nothing where that is not known."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not colon or not port.isdigit():
        return ""
    from skewd.ports import describe_holder

    return f" by {describe_holder(host, int(port))}"
