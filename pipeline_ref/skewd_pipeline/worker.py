"""A stage at work: follows commands, carries messages, makes spans. Started by ``stages.py``, which gave this process
its node's clock before anything here was imported.

Two stamps deserve care, since one rule of violation rests on them: ``message.sent`` is made just before the message
is handed to the transport, ``message.received`` just after it was handed to us. So an edge's true gap is never
negative, whatever the scheduler does. ``message.noted`` is what many programs do instead: stamped once the
transport has taken the message, which on a busy machine may be after the receiver had it. While a stage has nothing
to do it waits in the transport (``pump``), which also carries the clocks' conversation. Between cells it waits there
for a command, and those ends that look for work of their own accord rest.

| command | answer |
| --- | --- |
| ``{"do": "listen", "hops": [hop, ...]}`` | ``{"event": "listening", "addresses": {transport: address}}`` |
| ``{"do": "connect", "hops": [hop, ...]}`` | ``{"event": "connected"}``: outboxes opened |
| ``{"do": "cell", ...}`` (see `stage_orders.Cell`) | ``{"event": "armed"}``, later ``{"event": "done", ...}`` |
| ``{"do": "serve-calls", ...}`` (see `calls_stage.py`) | ``{"event": "serving", "address": address}`` |
| ``{"do": "call", "address": address, ...}`` | ``{"event": "done", "answered": count}`` |
| ``{"do": "finish"}`` | ends the cell if it still runs; spans flushed; ``{"event": "finished", ...}`` |

Limits: one cell at a time; messages of another cell are counted and dropped; a message that cannot be worked on is
counted and dropped, its span marked as an error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from skewd_pipeline.calls_stage import make_calls, serve_calls
from skewd_pipeline.items import digest_of
from skewd_pipeline.spans import HOST_RAW, HOST_RAW_AFTER, HOST_RAW_SENT, HOST_RAW_SENT_AFTER
from skewd_pipeline.stage_orders import Cell, StageConfig
from skewd_pipeline.telemetry import Telemetry
from skewd_pipeline.transports import HopConfig, Inbox, Message, Outbox, beside, open_inbox, open_outbox

LOOK_S = 0.05
"""How long a stage waits for a message before it looks whether the cell is to be finished."""

IDLE_S = 5.0
"""How long it waits between cells in one go; a command ends the wait."""

SWITCH_S = 0.0005
"""How long the exporters' threads may keep the interpreter from the one that carries messages. Python's usual 5 ms
would be seen in the separations: serializing a batch takes about that long, every few seconds, in every stage."""

COMMANDS_MAX = 64
BODY_PLAIN_MAX = 16 << 20
"""A compressed body may not unfold to more than this."""

CELL_HEADER = "skewd-cell"
SENT_HEADER = "skewd-sent-ns"
"""The producer's wall clock when it made the message: what a stage judges a message's age by."""
ID_HEADER = "skewd-message"
ITEM_HEADER = "skewd-item"

FORWARDED = (CELL_HEADER, ID_HEADER, ITEM_HEADER, SENT_HEADER)
_MESSAGING_SYSTEM = {"zmq": "zeromq", "kafka": "kafka", "aeron": "aeron"}


class Commands:
    """The input's lines, read by a thread of their own so that a running cell can be finished.

    Args:
        reads: whether there are any; else somebody else sets ``finish``.
    """

    def __init__(self, *, reads: bool = True) -> None:
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(COMMANDS_MAX)
        self.finish = threading.Event()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """A descriptor that becomes readable with each command that comes after :meth:`next` has found none."""
        if not reads:
            return
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            try:
                command = json.loads(line)
            except ValueError:
                continue
            if command.get("do") == "finish":
                self.finish.set()
            self._put(command)
        self.finish.set()
        self._put(None)

    def _put(self, command: dict[str, Any] | None) -> None:
        self._queue.put(command)
        os.eventfd_write(self.bell, 1)

    def next(self, timeout_s: float) -> dict[str, Any] | None:
        """The next command.

        Raises:
            queue.Empty: none within ``timeout_s``.
        """
        if timeout_s:
            return self._queue.get(timeout=timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)  # before looking: what comes after the look rings again
        return self._queue.get_nowait()


def say(event: str, **more: Any) -> None:
    """One answer."""
    print(json.dumps({"event": event, **more}), flush=True)


class Work:
    """What each stage does to a message's body; the model and the files are loaded where they are needed."""

    def __init__(self, config: StageConfig) -> None:
        self._stage = config.stage
        if config.stage in ("producer", "consumer"):
            from skewd_pipeline.corpus import load_items

            self._items = load_items(Path(config.items))
            self._expected = {item.digest: item for item in self._items}
        elif config.stage == "inference":
            from skewd_pipeline.model import load_model

            self._model = load_model(config.model)
            self._model(b"def first():\n    return 'the first call initialises'\n" * 40)

    def first(self, index: int) -> tuple[str, bytes]:
        """The producer's: an item's identity and its bytes, compressed."""
        item = self._items[index]
        return item.digest, zlib.compress(item.body, 1)

    def do(self, digest: str, body: bytes) -> bytes:
        """What this stage makes of a body.

        Raises:
            ValueError: the body is not what the stage before makes.
        """
        if self._stage == "preprocess":
            unfold = zlib.decompressobj()
            plain = unfold.decompress(body, BODY_PLAIN_MAX)
            if not unfold.eof:
                raise ValueError(f"not a whole compressed body, or one of more than {BODY_PLAIN_MAX} bytes")
            return plain
        if self._stage == "inference":
            label = self._model(body)
            return json.dumps({"label": label, "digest": digest_of(body), "bytes": len(body)}).encode()
        if self._stage == "postprocess":
            return json.dumps({"item": digest, **json.loads(body)}, sort_keys=True).encode()
        return body

    def correct(self, digest: str, body: bytes) -> bool:
        """The consumer's: whether the answer is the expected one, and about the item that was sent."""
        answer = json.loads(body)
        expected = self._expected.get(digest)
        if expected is None:
            raise ValueError("not one of the items here; give the producer and the consumer the same file of items")
        return answer["item"] == digest and expected.is_correct(answer["digest"], answer["label"])


class Stage:
    """A stage: its ends of the hops, its telemetry, its work, and the loop."""

    def __init__(self, config: StageConfig, commands: Commands) -> None:
        self.name = config.stage
        self._commands = commands
        self._work = Work(config)
        self._telemetry = Telemetry(config)
        self._inboxes: dict[str, Inbox] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._stamp_offset_ns = config.stamp_offset_ns
        self._max_age_ns = config.max_age_ns
        self._handled = bytearray()

    def run(self) -> None:
        """Follows commands until the input ends."""
        while True:
            try:
                idle = self._idle_end()
                command = self._commands.next(0 if idle else IDLE_S)
            except queue.Empty:
                if idle is not None:
                    with beside.seldom():
                        idle.pump(IDLE_S, until=self._commands.bell)
                continue
            if command is None:
                return
            self._obey(command)

    def _idle_end(self) -> Inbox | Outbox | None:
        # ZeroMQ's and Aeron's ends carry the clocks' conversation; one turns all that this thread opened.
        ends = (open_ends.get(name) for name in ("zmq", "aeron") for open_ends in (self._inboxes, self._outboxes))
        return next((end for end in ends if end is not None), None)

    def _obey(self, command: dict[str, Any]) -> None:
        match command.pop("do", None):
            case "listen":
                for hop in command["hops"]:
                    self.listen(HopConfig.from_dict(hop))
                say("listening", addresses={name: inbox.address for name, inbox in self._inboxes.items()})
            case "connect":
                for hop in command["hops"]:
                    self.connect(HopConfig.from_dict(hop))
                say("connected")
            case "cell":
                say("done", **self.cell(Cell(**command), armed=lambda name: say("armed", cell=name)))
            case "serve-calls":
                self._serve_calls(Cell(**command))
            case "call":
                self._call(command.pop("address"), Cell(**command))
            case "finish":
                self._commands.finish.clear()
                say("finished", flushed=self.flush(), handled=self._handled.decode())
            case other:
                raise ValueError(f"unknown command {other!r}")

    def listen(self, hop: HopConfig) -> None:
        """Opens the inbox of a hop.

        Raises:
            TransportError: it cannot be.
        """
        inbox = self._inboxes[hop.transport] = open_inbox(hop)
        inbox.rest()

    def connect(self, hop: HopConfig) -> None:
        """Opens the outbox of a hop.

        Raises:
            TransportError: it cannot be.
        """
        self._outboxes[hop.transport] = open_outbox(hop)

    def flush(self) -> bool:
        """Exports the spans that wait; True when all of it was acknowledged in time."""
        return self._telemetry.flush()

    def _ends(self) -> list[Inbox | Outbox]:
        return [*self._outboxes.values(), *self._inboxes.values()]

    def counters(self) -> dict[str, int]:
        """What the ends counted, summed by name."""
        total: Counter[str] = Counter()
        for end in self._ends():
            total.update(end.counters)
        return dict(total)

    def close(self) -> None:
        """Delivers what was sent and gives all ends back.

        Raises:
            TransportError: something could not be delivered.
        """
        for end in self._ends():
            end.close()

    def cell(self, cell: Cell, *, armed: Callable[[str], None]) -> dict[str, Any]:
        """Carries one cell's messages; what became of them. ``armed`` is called when the first may come.

        ``handled`` has a letter for each message: ``-`` for one that this stage never had, else ``x``; the consumer's
        is ``c`` where the answer was correct and ``w`` where it was wrong.

        Raises:
            TransportError: a hop is broken.
        """
        self._telemetry.use(cell.exporters)
        self._handled = bytearray(b"-" * cell.messages)
        inbox = self._inboxes.get(cell.transport)
        if inbox is not None:
            inbox.attend()
        # What start-up left behind need not be looked at again by the collector in the middle of a message.
        gc.collect()
        gc.freeze()
        armed(cell.name)
        try:
            outcome = self._produce(cell) if self.name == "producer" else self._follow(cell)
        finally:
            if inbox is not None:
                inbox.rest()
        return {**outcome, "handled": self._handled.decode()}

    def _note(self, message_id: str, letter: str) -> None:
        """Notes what became of a message; one that is none of this cell's is not noted."""
        number = message_id.rpartition("/")[2]
        if number.isdecimal() and int(number) < len(self._handled):
            self._handled[int(number)] = ord(letter)

    def _too_old(self, message: Message) -> bool:
        """Whether this stage's wall clock says that the message is older than allowed, as real pipelines ask it."""
        sent = message.headers.get(SENT_HEADER, "")
        return self._max_age_ns is not None and sent.isdecimal() and time.time_ns() - int(sent) > self._max_age_ns

    def _stamp(self) -> int | None:
        """The time now as this application stamps it; None leaves it to the SDK, which reads the wall clock."""
        return None if self._stamp_offset_ns == 0 else time.time_ns() + self._stamp_offset_ns

    def _serve_calls(self, cell: Cell) -> None:
        self._telemetry.use(cell.exporters)
        idle = self._idle_end()
        serve_calls(
            cell,
            self._telemetry,
            listening=lambda address: say("serving", address=address),
            ended=self._commands.finish.is_set,
            idle=lambda: idle.pump(0) if idle is not None else None,
        )

    def _call(self, address: str, cell: Cell) -> None:
        self._telemetry.use(cell.exporters)
        idle = self._idle_end()
        right = make_calls(
            cell,
            self._telemetry,
            address,
            ended=self._commands.finish.is_set,
            wait=idle.pump if idle is not None else time.sleep,
        )
        say("done", answered=right)

    def _produce(self, cell: Cell) -> dict[str, int]:
        outbox = self._outboxes[cell.transport]
        begun_ns = time.monotonic_ns()
        sent = 0
        for number, index in enumerate(cell.items or ()):
            if cell.rate is not None:
                at_s = number / cell.rate if cell.sent_at_s is None else cell.sent_at_s[number]
                wait_ns = begun_ns + round(at_s * 1e9) - time.monotonic_ns()
                if wait_ns > 0:
                    outbox.pump(wait_ns / 1e9)
            if self._commands.finish.is_set():
                break
            message_id = f"{cell.name}/{number}"
            before_ns = _host_raw_ns()
            span = self._telemetry.tracer.start_span("producer send", kind=SpanKind.PRODUCER, start_time=self._stamp())
            after_ns = _host_raw_ns()
            floor_ends_ns = time.monotonic_ns() + cell.floor_ns
            self._describe(span, cell, message_id, before_ns, after_ns)
            digest, body = self._work.first(index)
            headers = {CELL_HEADER: cell.name, ID_HEADER: message_id, ITEM_HEADER: digest}
            headers[SENT_HEADER] = str(time.time_ns())
            self._note(message_id, "x")
            self._send(outbox, span, Message(headers, body), floor_ends_ns)
            sent += 1
        outbox.flush()
        return {"sent": sent}

    def _follow(self, cell: Cell) -> dict[str, int]:
        inbox, outbox = self._inboxes[cell.transport], self._outboxes.get(cell.transport)
        received = correct = strange = failed = too_old = 0
        first_ns = last_ns = 0
        heard_ns = time.monotonic_ns()
        while received < cell.messages and not self._commands.finish.is_set():
            message = inbox.receive(LOOK_S)
            if message is None:
                if cell.idle_limit_s is not None and time.monotonic_ns() - heard_ns > cell.idle_limit_s * 1e9:
                    break
                continue
            before_ns = _host_raw_ns()
            received_ns = time.time_ns() + self._stamp_offset_ns
            after_ns = _host_raw_ns()
            now_ns = time.monotonic_ns()
            if message.headers.get(CELL_HEADER) != cell.name:
                strange += 1
                continue
            received += 1
            heard_ns = now_ns
            first_ns, last_ns = first_ns or now_ns, now_ns
            span = self._telemetry.tracer.start_span(
                f"{self.name} process",
                context=self._telemetry.propagator.extract(message.headers),
                kind=SpanKind.CONSUMER,
                start_time=received_ns,
            )
            span.add_event("message.received", timestamp=received_ns)
            message_id = message.headers.get(ID_HEADER, "")
            self._describe(span, cell, message_id, before_ns, after_ns)
            self._note(message_id, "x")
            if self._too_old(message):
                too_old += 1
                span.add_event("message.dropped", timestamp=self._stamp())
                span.end(self._stamp())
                continue
            digest = message.headers.get(ITEM_HEADER, "")
            try:
                body = self._work.do(digest, message.body)
                if outbox is None:
                    right = self._work.correct(digest, body)
                    correct += right
                    self._note(message_id, "c" if right else "w")
            except Exception as error:  # the user's model may raise anything; the message is lost, the stage is not
                failed += 1
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
                span.end(self._stamp())
                print(f"{self.name}: {type(error).__name__} on {digest[:12]}: {error}", file=sys.stderr, flush=True)
                continue
            if outbox is None:
                inbox.pump(max(0, now_ns + cell.floor_ns - time.monotonic_ns()) / 1e9)
                span.end(self._stamp())
            else:
                forwarded = {key: message.headers[key] for key in FORWARDED if key in message.headers}
                self._send(outbox, span, Message(forwarded, body), now_ns + cell.floor_ns)
        if outbox is not None:
            outbox.flush()
        return {
            "received": received,
            "correct": correct,
            "strange": strange,
            "failed": failed,
            "too_old": too_old,
            "first_ns": first_ns,
            "last_ns": last_ns,
        }

    def _describe(self, span: Span, cell: Cell, message_id: str, before_ns: int, after_ns: int) -> None:
        span.set_attributes(
            {
                "skewd.experiment.cell": cell.name,
                "messaging.message.id": message_id,
                "messaging.system": _MESSAGING_SYSTEM[cell.transport],
                HOST_RAW: before_ns,
                HOST_RAW_AFTER: after_ns,
            }
        )

    def _send(self, outbox: Outbox, span: Span, message: Message, floor_ends_ns: int) -> None:
        self._telemetry.propagator.inject(message.headers, context=set_span_in_context(span))
        rest_ns = floor_ends_ns - time.monotonic_ns()
        if rest_ns > 0:
            outbox.pump(rest_ns / 1e9, before_send=True)
        before_ns = _host_raw_ns()
        span.add_event("message.sent", timestamp=self._stamp())
        after_ns = _host_raw_ns()
        outbox.send(message)
        span.add_event("message.noted", timestamp=self._stamp())
        span.set_attributes({HOST_RAW_SENT: before_ns, HOST_RAW_SENT_AFTER: after_ns})
        span.end(self._stamp())


def _host_raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def serve(config: StageConfig) -> None:
    """Says READY, then follows commands until the input ends. What goes wrong is said as an answer, and raised."""
    sys.setswitchinterval(SWITCH_S)
    try:
        commands = Commands()
        stage = Stage(config, commands)
        print("READY {}", flush=True)
        stage.run()
    except Exception as error:
        say("error", error=f"{type(error).__name__}: {error}")
        raise
