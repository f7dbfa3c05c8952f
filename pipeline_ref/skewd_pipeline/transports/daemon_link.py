"""An end's line to its own node's daemon: attaching, relaying, and stamps for the work itself.

The problem: whatever carries the work, the daemon wants the same two things of it. It wants its frames *relayed* to
the neighbour's daemon and back, and it wants the work itself to prove something: a message of a stage leaves and
arrives exactly like any other, and nothing arrives before it leaves. The insight: a stage need not be trusted with
either. It asks its daemon for a *stamp*, a one-way message that the daemon signs and stamps on its own raw clock,
lets the next work message carry it, and the stage that receives the work hands the stamp to its daemon at once. A
stamp that was asked for too early, or is handed over late, makes a wider proof, never a false one.

One DEALER per end, connected to the daemon's ZeroMQ link (``skewd/links/zmq.py``), whichever transport the hop uses.
What is said on it: ``attach`` (so that the daemon asks this neighbour through us), ``stamp``, and payloads both ways.

Limits: of payloads the newest ``CLOCK_QUEUE`` wait for the daemon; a stamp is asked for every ``STAMP_GAP_S`` at
most, which is below what the daemons' limiter allows a stranger; one stamp is kept, and used once. Attaching is said
again every ``REATTACH_S``, for a daemon that was restarted. Never blocks.
"""

from __future__ import annotations

from collections import Counter, deque

import zmq

from skewd_pipeline.transports.base import TransportError
from skewd_pipeline.transports.frames import (
    ASK_STAMP,
    MAX_CLOCK_BYTES,
    STAMP,
    encode_attach,
    is_clock_payload,
)

CLOCK_QUEUE = 16
CLOCK_HIGH_WATER = 64
FRAMES_PER_TURN = 16
REATTACH_S = 2.0
ATTACH_RETRY_S = 0.05
STAMP_GAP_S = 0.06
STAMP_AHEAD_S = 0.001
"""How long before a send its stamp is asked for: a daemon on this machine answers in a fraction of it."""


class DaemonLink:
    """One end's connection to its daemon.

    Args:
        context: of the end; closing it is the end's affair.
        address: the daemon's ZeroMQ link, ``ipc://...``.
        neighbour: the node that the hop leads to.
        hop: the hop's name, for messages.
        counters: the end's; ``clock_to_daemon``, ``clock_dropped``, ``malformed`` and ``stamps_asked`` are counted.
        relays: whether the daemon's own messages may go over the hop (on Kafka they have a link of their own).

    Raises:
        TransportError: the address makes no sense.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        neighbour: str,
        hop: str,
        counters: Counter[str],
        *,
        relays: bool = True,
    ) -> None:
        self._counters = counters
        self._relays = relays
        self._attach_frame = encode_attach(neighbour)
        self.attach_at = 0.0
        """When it is said again where this end leads."""
        self._attached = not relays
        self._to_daemon: deque[bytes] = deque(maxlen=CLOCK_QUEUE)
        self._stamp: bytes | None = None
        self._stamp_at = 0.0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.set(zmq.SNDHWM, CLOCK_HIGH_WATER)
        self.socket.set(zmq.RCVHWM, CLOCK_HIGH_WATER)
        self.socket.set(zmq.MAXMSGSIZE, MAX_CLOCK_BYTES)
        self.socket.set(zmq.LINGER, 0)
        # Without a daemon nothing is queued for it: an old clock frame is worth nothing.
        self.socket.set(zmq.IMMEDIATE, 1)
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.socket.close()
            raise TransportError(f"hop {hop}: no daemon link at '{address}': {error}") from error

    @property
    def holds(self) -> bool:
        """Whether there is something that the daemon did not take yet."""
        return bool(self._to_daemon)

    def attach(self, now_s: float) -> None:
        """Say where this end leads, when that is due."""
        if self._relays and now_s >= self.attach_at:
            said = self._try_send(self._attach_frame)
            self._attached |= said
            self.attach_at = now_s + (REATTACH_S if said else ATTACH_RETRY_S)

    def read(self) -> list[bytes]:
        """What the daemon wants carried to the neighbour, oldest first; a stamp is kept for the next work."""
        found: list[bytes] = []
        for _ in range(FRAMES_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            payload = frames[0] if len(frames) == 1 else b""
            if payload.startswith(STAMP) and is_clock_payload(payload[len(STAMP) :]):
                self._stamp = payload[len(STAMP) :]
            elif self._relays and is_clock_payload(payload):
                found.append(payload)
            else:
                self._counters["malformed"] += 1
        return found

    def give(self, payload: bytes) -> None:
        """Hand the daemon what came from the neighbour, in order, as soon as it takes it."""
        if len(self._to_daemon) == CLOCK_QUEUE:  # the deque drops its oldest: the newest measures best
            self._counters["clock_dropped"] += 1
        self._to_daemon.append(payload)
        self.drain()

    def drain(self) -> None:
        """Try again what the daemon has not taken."""
        # Before it was told where this end leads, the daemon would not know from whom a payload is.
        while self._attached and self._to_daemon:
            if not self._try_send(self._to_daemon[0]):
                return
            self._to_daemon.popleft()
            self._counters["clock_to_daemon"] += 1

    def ask_stamp(self, now_s: float) -> bool:
        """Ask for a stamp for the next work, unless the last was asked for a moment ago; whether it was asked."""
        if now_s < self._stamp_at or not self._attached or not self._try_send(ASK_STAMP):
            return False
        self._stamp = None  # an older one is worth less
        self._stamp_at = now_s + STAMP_GAP_S
        self._counters["stamps_asked"] += 1
        return True

    def take_stamp(self) -> bytes | None:
        """The stamp that came, once."""
        stamp, self._stamp = self._stamp, None
        return stamp

    def _try_send(self, payload: bytes) -> bool:
        try:
            self.socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
