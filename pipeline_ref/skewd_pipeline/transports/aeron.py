"""Hops over Aeron: shared memory on one machine (IPC), or Aeron's reliable UDP.

The problem: Aeron has no descriptor to wait on; whoever wants a message must look. Looking all the time answers in
some microseconds and burns a core, of which this experiment has two for five stages; a sleep adds itself to every
separation that is measured. The insight: sleep, and let it depend on what is being waited for. While work is expected
(within ``AWAKE_S`` of the last message) a waiting inbox looks every ``AWAKE_SLEEP_S``, which costs 6 % of a core; a
``pump`` waits for the clock and not for work, so it looks every ``PUMP_SLEEP_S``; between cells every ``ASLEEP_S`` is
often enough; but for ``ANSWER_S`` after a clock frame, whose answer is on its way, everybody is awake. The sleep
itself is a wait for the daemon's socket, so that its frames need no looking for.

Per hop one stream of work, upstream to downstream, which carries clock frames too, and beside it (stream + 1) one for
the clock frames on their way back; over UDP that one needs a channel of its own at the upstream end. The relay and the
stamps are those of the ZeroMQ hops (``daemon_link.py``), as are the frames (``frames.py``), joined to one buffer.

Messages longer than a packet come in fragments, which are put together as skewd's own link does it
(``skewd/links/fragments.py`` says why not by the binding).

A *media driver* owns the files and the sockets: one for the run (``skewd_pipeline.aeron_driver``), or the user's. The
client library's own answer to a driver that is gone is to end the process; an error handler takes its place here.

Limits: the binding (PyPI ``pyaeron``) needs CPython 3.12 and has wheels for x86_64 Linux only. A term is
``TERM_LENGTH`` long, since Aeron carries an eighth of it as one message: three of them per stream, in sparse files.
A hop that is full, or whose inbox is not there yet, blocks ``send`` for ``SEND_LIMIT_S``. What was sent is with the
driver, which delivers it after ``close`` too, while it runs and the inbox is there. ``READ_AHEAD`` messages are taken
from the stream at most before they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pyaeron
import zmq

from skewd.links.fragments import Assembler, TooLong
from skewd_pipeline.transports import beside
from skewd_pipeline.transports.base import HopConfig, Message, TransportError
from skewd_pipeline.transports.daemon_link import CLOCK_QUEUE, STAMP_AHEAD_S, DaemonLink
from skewd_pipeline.transports.frames import (
    MAX_JOINED_BYTES,
    MalformedFrames,
    decode,
    encode_clock,
    encode_work,
    join,
    split_stamp,
    unjoin,
)

TERM_LENGTH = "16m"
AWAKE_S = 0.5
AWAKE_SLEEP_S = 0.000_15
PUMP_SLEEP_S = 0.001
ASLEEP_S = 0.002
RELAY_S = 0.002
ANSWER_S = 0.004
RETRY_S = 0.000_2
FRAGMENTS = 64
READ_AHEAD = 64
SEND_LIMIT_S = 30.0
DRIVER_TIMEOUT_MS = 10_000
# The client's own thread only keeps the driver informed that we live, and takes its answers when an end is opened.
# Of itself it looks sixty times a second. (The client reads it from the environment, and the user's value stands.)
os.environ.setdefault("AERON_CLIENT_IDLE_SLEEP_DURATION", "50ms")


class _Group:
    """The ends one thread opened, turned together."""

    def __init__(self) -> None:
        self.ends: list[_End] = []

    def turn(self) -> None:
        """One bounded round of relaying at each end; never blocks."""
        now_s = time.monotonic()
        for end in self.ends:
            end.turn(now_s)

    def nap_s(self, usual_s: float) -> float:
        """How long to sleep before the next look: ``usual_s``, less while an answer is on its way to any end."""
        now_s = time.monotonic()
        answers = any(now_s < end.answer_until_s for end in self.ends)
        return min(usual_s, AWAKE_SLEEP_S) if answers else usual_s

    def look(self) -> int:
        """Takes what has arrived on any hop; how much that was."""
        return sum(end.read() for end in self.ends)

    def sleep(self, seconds: float, until: int | None = None) -> bool:
        """Wait; less, and true, when a daemon has something to say, which :meth:`turn` then takes, or ``until``."""
        readable = [end.daemon.socket.fileno() for end in self.ends if end.daemon is not None]
        if until is not None:
            readable.append(until)
        if readable:
            return bool(select.select(readable, [], [], seconds)[0])
        time.sleep(seconds)
        return False

    def add(self, end: _End) -> None:
        """Turns this end with the others from now on."""
        self.ends.append(end)
        beside.register("aeron", self.turn)

    def remove(self, end: _End) -> None:
        """Forgets an end that is being closed."""
        self.ends.remove(end)
        if not self.ends:
            beside.register("aeron", None)


class _ThreadGroup(threading.local):
    def __init__(self) -> None:
        self.group = _Group()


_of_thread = _ThreadGroup()


class _End:
    """What both ends of a hop share: client, streams, the relay between them and the daemon, waiting, closing."""

    def __init__(self, config: HopConfig, neighbour: str) -> None:
        assert config.directory is not None, "HopConfig checked it"
        self._config = config
        self._counters: Counter[str] = Counter()
        self._to_hop: deque[bytes] = deque(maxlen=CLOCK_QUEUE)
        self._assembler = Assembler(MAX_JOINED_BYTES)
        self.pending: deque[Message] = deque()
        self._owner = threading.get_ident()
        self._closed = False
        self._driver_gone: str | None = None
        self._awake_until_s = 0.0
        self.answer_until_s = 0.0
        self._subscription: Any = None
        self._publication: Any = None
        self.daemon: DaemonLink | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        if not pyaeron.is_driver_active(config.directory, DRIVER_TIMEOUT_MS):
            raise TransportError(f"hop {config.name}: no Aeron media driver runs in {config.directory}; start it")
        self._client = self._connect(config.directory)
        try:
            self._open_streams()
            if config.daemon_link is not None:
                self._context = zmq.Context()
                self.daemon = DaemonLink(self._context, config.daemon_link, neighbour, config.name, self._counters)
        except BaseException as error:
            self._give_back()
            if isinstance(error, pyaeron.AeronError):
                raise TransportError(f"hop {config.name}: {_explain(error)}") from error
            raise
        self._group = _of_thread.group
        self._group.add(self)

    def _connect(self, directory: str) -> Any:
        try:
            return pyaeron.Aeron(context=pyaeron.Context(dir=directory, error_handler=self._on_error))
        except pyaeron.AeronError as error:
            raise TransportError(f"hop {self._config.name}: {_explain(error)}") from error

    def _on_error(self, code: int, message: str) -> None:
        """Called by the client's own thread."""
        self._driver_gone = str(message).partition("\n")[0]

    def _open_streams(self) -> None:
        raise NotImplementedError

    def _subscribe(self, channel: str, stream: int) -> Any:
        return self._client.add_subscription(_with_term(channel), stream)

    def _publish(self, channel: str, stream: int) -> Any:
        return self._client.add_publication(_with_term(channel), stream)

    @property
    def counters(self) -> Mapping[str, int]:
        """``sent`` or ``received``, ``malformed``, ``clock_to_neighbour``, ``clock_to_daemon``, ``clock_dropped``, and
        with stamps ``stamps_asked``, ``stamps_sent``, ``stamps_received``."""
        return MappingProxyType(self._counters)

    def check(self) -> None:
        """Refuses use after closing, from another thread, and when the driver is gone.

        Raises:
            TransportError: any of these.
        """
        if self._closed:
            raise TransportError(f"hop {self._config.name}: this end is closed")
        if threading.get_ident() != self._owner:
            raise TransportError(f"hop {self._config.name}: this end belongs to the thread that opened it")
        if self._client.is_closed:
            raise TransportError(
                f"hop {self._config.name}: the Aeron media driver in {self._config.directory} is gone "
                f"({self._driver_gone or 'it closed this client'})"
            )

    # -- relaying -----------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> None:
        """One bounded round of relaying; never blocks, never raises what the caller does not expect."""
        if self._client.is_closed:
            return  # the next call of this end says so
        self.read()
        if self.daemon is None:
            return
        self.daemon.attach(now_s)
        for payload in self.daemon.read():
            if len(self._to_hop) == CLOCK_QUEUE:
                self._counters["clock_dropped"] += 1
            self._to_hop.append(payload)
        # What is wrong with the stream, the next call that sends work says.
        with contextlib.suppress(TransportError):
            while self._to_hop and self._offer(join(encode_clock(self._to_hop[0]))):
                self._to_hop.popleft()
                self._counters["clock_to_neighbour"] += 1
                self.answer_until_s = now_s + ANSWER_S
        self.daemon.drain()

    def read(self) -> int:
        """Takes what the hop has, up to the limits; how many messages of any kind."""
        if self._subscription is None or len(self.pending) >= READ_AHEAD or self._client.is_closed:
            return 0
        try:
            return int(self._subscription.poll(self._take, FRAGMENTS, assemble=False))
        except pyaeron.AeronError:
            return 0  # closed by the client a moment ago: the next call says so

    def _take(self, view: Any, header: Any) -> None:
        # Called from the client's own code, which has no use for an exception.
        try:
            data = self._assembler.add(header.session_id, header.flags, view.tobytes())
            if data is None:
                return
            frames, stamp = split_stamp(unjoin(data))
            arrived = decode(frames)
        except (MalformedFrames, TooLong):
            self._counters["malformed"] += 1
            return
        if isinstance(arrived, bytes):
            if self.daemon is not None:
                self.daemon.give(arrived)
                self.answer_until_s = time.monotonic() + ANSWER_S
            return
        if stamp is not None and self.daemon is not None:
            self.daemon.give(stamp)
            self._counters["stamps_received"] += 1
        self._arrived(arrived)

    def _arrived(self, message: Message) -> None:
        self._counters["malformed"] += 1  # work does not travel upstream

    def _offer(self, data: bytes) -> bool:
        if self._publication is None:
            return True  # there is no way back; the clock frame is dropped
        try:
            return bool(self._publication.offer(data))
        except pyaeron.AeronError as error:
            raise TransportError(f"hop {self._config.name}: {_explain(error)}") from error

    # -- waiting and closing ------------------------------------------------------------------------------------

    def pump(self, timeout_s: float, *, before_send: bool = False, until: int | None = None) -> None:
        """Relay for ``timeout_s`` seconds, less only for ``until``; work that arrives is kept."""
        self.check()
        deadline = time.monotonic() + timeout_s
        asks = before_send and self._config.stamps and self.daemon is not None
        while True:
            self._group.turn()
            beside.turn("aeron")
            rest = deadline - time.monotonic()
            if asks and self.daemon is not None and rest <= STAMP_AHEAD_S:
                self.daemon.ask_stamp(time.monotonic())
                asks = False
            if rest <= 0:
                return
            usual_s = PUMP_SLEEP_S if time.monotonic() < self._awake_until_s else ASLEEP_S
            wait_s = min(rest, self._group.nap_s(usual_s))
            if asks:
                wait_s = min(wait_s, max(rest - STAMP_AHEAD_S, 0.0))
            if self._group.sleep(wait_s, until) and until is not None and select.select([until], [], [], 0)[0]:
                return

    def close(self) -> None:
        """Give everything back. What was sent is with the driver, which delivers it."""
        if self._closed:
            return
        if threading.get_ident() != self._owner:
            raise TransportError(f"hop {self._config.name}: this end belongs to the thread that opened it")
        self._closed = True
        self._group.remove(self)
        self._give_back()

    def _give_back(self) -> None:
        for stream in (self._subscription, self._publication):
            if stream is not None:
                with contextlib.suppress(pyaeron.AeronError):
                    stream.close()
        with contextlib.suppress(pyaeron.AeronError):
            self._client.close()
        if self.daemon is not None:
            self.daemon.socket.close()
        if self._context is not None:
            self._context.term()


class AeronInbox(_End):
    """The downstream end: subscribes to the work, publishes clock frames upstream."""

    def __init__(self, config: HopConfig) -> None:
        """Subscribe and be ready.

        Raises:
            TransportError: there is no driver, or it refuses the channel.
        """
        super().__init__(config, config.upstream)

    def _open_streams(self) -> None:
        channel = self._config.channel
        assert channel is not None, "HopConfig checked it"
        self._subscription = self._subscribe(channel, self._config.stream)
        back = _back_channel(self._config)
        if back is not None and self._config.daemon_link is not None:
            self._publication = self._publish(back, self._config.stream + 1)

    @property
    def address(self) -> str:
        """The channel."""
        return self._config.channel or ""

    def rest(self) -> None:
        """Nothing to do: half a second after the last message it looks seldom."""

    def attend(self) -> None:
        """Nothing to do: the first message is looked for every ``ASLEEP_S``."""

    def _arrived(self, message: Message) -> None:
        self.pending.append(message)
        self._awake_until_s = time.monotonic() + AWAKE_S

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or ``None`` after ``timeout_s`` seconds; relays while it waits."""
        self.check()
        deadline = time.monotonic() + timeout_s
        relayed_at_s = 0.0
        while not self.pending:
            if self._group.look():
                continue
            now_s = time.monotonic()
            if now_s - relayed_at_s >= RELAY_S:
                relayed_at_s = now_s
                self._group.turn()
                beside.turn("aeron")
                if self.pending:
                    break
            rest = deadline - now_s
            if rest <= 0:
                return None
            self.check()
            awake = now_s < self._awake_until_s
            if self._group.sleep(min(rest, self._group.nap_s(AWAKE_SLEEP_S if awake else ASLEEP_S))):
                relayed_at_s = 0.0
        self._counters["received"] += 1
        return self.pending.popleft()


class AeronOutbox(_End):
    """The upstream end: publishes the work, subscribes to clock frames on their way back."""

    def __init__(self, config: HopConfig) -> None:
        """Publish; the neighbour may subscribe later.

        Raises:
            TransportError: there is no driver, or it refuses the channel.
        """
        super().__init__(config, config.downstream)

    def _open_streams(self) -> None:
        channel = self._config.channel
        assert channel is not None, "HopConfig checked it"
        self._publication = self._publish(channel, self._config.stream)
        back = _back_channel(self._config)
        if back is not None and self._config.daemon_link is not None:
            self._subscription = self._subscribe(back, self._config.stream + 1)

    def send(self, message: Message) -> None:
        """Hand over one message; blocks, relaying, while the hop is full or nobody is there yet."""
        self.check()
        stamp = self.daemon.take_stamp() if self.daemon is not None and self._config.stamps else None
        data = join(encode_work(message, stamp))
        if not self._offer(data):
            self._send_when_room(data)
        self._awake_until_s = time.monotonic() + AWAKE_S
        self._counters["stamps_sent"] += stamp is not None
        self._counters["sent"] += 1

    def _send_when_room(self, data: bytes) -> None:
        deadline = time.monotonic() + SEND_LIMIT_S
        while not self._offer(data):
            self.check()
            if time.monotonic() >= deadline:
                raise TransportError(
                    f"hop {self._config.name}: {self._config.downstream} took nothing for {SEND_LIMIT_S:.0f} s; "
                    "see whether it still runs"
                )
            self._group.turn()
            beside.turn("aeron")
            self._group.sleep(RETRY_S)

    def flush(self) -> None:
        """Nothing to wait for: Aeron confirms nothing to the sender. Whatever the relay holds is passed on."""
        self.check()
        self._group.turn()


def _back_channel(config: HopConfig) -> str | None:
    if config.back_channel is not None:
        return config.back_channel
    return config.channel if config.channel is not None and config.channel.startswith("aeron:ipc") else None


def _with_term(channel: str) -> str:
    if "term-length=" in channel:
        return channel
    return f"{channel}{'|' if '?' in channel else '?'}term-length={TERM_LENGTH}"


def _explain(error: Exception) -> str:
    """The one line of Aeron's message that names the reason."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*\(-?\d+\)", line)]
    return f"Aeron says: {lines[-1] if lines else str(error)[:200]}"
