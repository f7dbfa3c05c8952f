"""What OTLP over HTTP asks of a request and of its answer, whoever speaks HTTP: aiohttp or the native transport.

A receiver has the head of a request and its body, or the reason why there is none; everything else is decided here, so
that both receivers say the same. Decompression is done here rather than by a server (``inflate.py`` says why). JSON
becomes the protobuf that says the same, and its answers become JSON. Answers to refusals carry a ``google.rpc.Status``,
as OTLP/HTTP asks, with a text that says what to change.

A client can be slow, silent or many. So the head of a request, and the pause between two, has ``IDLE_S``; a body
``READ_S``; bodies that are arriving share ``BYTES_MAX``; and there are ``CONCURRENT_MAX`` requests and
``CONNECTIONS_MAX`` connections. Whoever comes beyond that is told to try again, and when.

A body can be small and become much. It is decompressed where it is if little comes out (``INLINE_BYTES``), and in one
of ``THREADS`` threads otherwise, so that the loop turns meanwhile; who waits for a thread is charged to the budget that
all requests share (``budget.py``). JSON is counted first (``json_census.py``) and charged for all that it will take;
long bodies are converted in a thread, one at a time.

Compression: gzip, which the specification asks for, and deflate and zlib, which cost nothing more. zstd, snappy and
lz4, which some exporters offer, need libraries that Python (before 3.14) has not; they are refused with what to set.

Limits: a body of ``body_max_bytes`` before and after decompression. A JSON body is ``values_max`` values, and takes no
more than ``Budget.most_for_one``; beyond that it is refused for good. The reader of JSON holds Python's lock while it
reads a body. What is given up while a thread has it is not charged any more, but is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from skewd.quiet import QuietLog
from skewd_sidecar.budget import Budget, Charge
from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.handler import REQUESTS_MAX, Handler
from skewd_sidecar.outcome import (
    BUSY_RETRY_AFTER_S,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Outcome,
)
from skewd_sidecar.patch import ELEMENTS_MAX, Census, MalformedRequest, TooMuch, refuse_too_much
from skewd_sidecar.receive.inflate import NotCompressed, TooLong, inflated
from skewd_sidecar.receive.json_census import take_json_census
from skewd_sidecar.receive.metadata import MetadataPicker, MetadataRefused
from skewd_sidecar.rpc_status import write_retry_after

log = QuietLog(__name__)

CONCURRENT_MAX = 4 * REQUESTS_MAX
BYTES_MAX = 64 * 1024 * 1024
CONNECTIONS_MAX = 1024
READ_S = 30.0
IDLE_S = 75.0
"""Longer than exporters pause: metrics are sent every 60 s by default."""
INLINE_BYTES = 64 * 1024
JSON_INLINE_BYTES = 32 * 1024
THREADS = 2
SETTING = "--http or [sidecar] http"
PATHS = {signal.http_path: signal for signal in Signal}

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
_JSON_ANSWER = f"{JSON}; charset=utf-8"
_T = TypeVar("_T")
_ENCODINGS = ("gzip", "deflate", "zlib", "identity", "")


class Refused(Exception):
    """The request is answered without looking at what it holds; ``reason`` is the word that it is counted under."""

    def __init__(self, http_status: int, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.http_status, self.code, self.reason, self.message = http_status, code, reason, message


@dataclass(slots=True)
class Head:
    """The head of a request.

    Attributes:
        path: without a query.
        content_type, content_encoding: the headers as they came; None for none.
        content_length: in bytes; 0 if it is not said.
    """

    method: str
    path: str
    content_type: str | None
    content_encoding: str | None
    content_length: int = 0

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case."""
        return (self.content_type or "").partition(";")[0].strip().lower()


@dataclass(slots=True)
class Answer:
    """The answer to a request; ``headers`` beside the content type, ``close``: the last one on its connection."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


_NOTHING = Answer(200, PROTOBUF, b"")
"""What nearly all are answered. Nobody changes it."""


HTTP_STOPPING = Answer(503, PROTOBUF, b"", (("Retry-After", "1"),), close=True)
"""What is told when there is nobody left who would look at the request."""


class HttpRules:
    """The way of a request between a server of HTTP and a handler.

    Args:
        handler: what answers.
        body_max_bytes: the largest body, before and after decompression.
        picker: of the headers that are handed on.
        counts: where to count.
        budget: what conversions are charged to; None for one of their own.
        values_max: values in one JSON body.

    Attributes:
        closing: new requests are told to try again.
        held_bytes: of bodies that are arriving.
        idle: set while no request is under way.
    """

    def __init__(
        self,
        handler: Handler,
        body_max_bytes: int,
        picker: MetadataPicker,
        counts: Counts,
        budget: Budget | None = None,
        values_max: int = ELEMENTS_MAX,
    ) -> None:
        self.picker = picker
        self.body_max_bytes = body_max_bytes
        self.counts = counts
        self.closing = False
        self.held_bytes = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._handler = handler
        self._active = 0
        self._budget = budget if budget is not None else Budget(2 * BYTES_MAX)
        self._values_max = values_max
        self._threads: ThreadPoolExecutor | None = None
        self._inflating = asyncio.Semaphore(THREADS)
        self._converting = asyncio.Lock()

    def end(self) -> None:
        """Ends the threads, if there are any."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, head: Head, headers: Iterable[tuple[str, str]], read: Callable[[], Awaitable[bytes]]
    ) -> Answer:
        """The answer to one request.

        Args:
            head: what the request says of itself.
            headers: those that the picker picked by its ``names``, each in lower case.
            read: gives the body, or raises :class:`Refused`. Not called if the head says enough.
        """
        if self.closing or self._active >= CONCURRENT_MAX:
            why = "is shutting down" if self.closing else "has too many requests under way"
            reason = "stopping" if self.closing else "busy"
            return self.refusal(head, Refused(503, UNAVAILABLE, reason, f"the sidecar {why}; try again"))
        self._active += 1
        self.idle.clear()
        try:
            signal, is_json, encoding = self._check(head)
            metadata = self._metadata(headers)
            body = await read()
            since_s = None
            if is_json or encoding:
                since_s = time.perf_counter()
            if is_json:
                body = await self._converted(signal, encoding, body)
            elif encoding:
                body = await self._inflated(encoding, body)
            self.counts.received["http", "json" if is_json else "protobuf"] += 1
            self.counts.received_bytes["http"] += len(body)
            outcome = await self._handler(signal, body, None, metadata, since_s=since_s)
        except Refused as refused:
            return self.refusal(head, refused)
        except Exception as error:
            log.error("a request could not be handled", exc_info=error)
            return self.refusal(head, own_fault())
        finally:
            self._active -= 1
            if not self._active:
                self.idle.set()
        return _answer(outcome, signal if is_json else None)

    def refusal(self, head: Head, refused: Refused) -> Answer:
        """The answer to a request that is refused; it is counted."""
        self.counts.refused[refused.reason] += 1
        delay_s = BUSY_RETRY_AFTER_S if refused.http_status == 503 else None
        outcome = Outcome(refused.code, refused.http_status, refused.message, b"", None, delay_s)
        answer = _failure(outcome, head.media_type == JSON)
        if refused.http_status == 405:
            answer.headers += (("Allow", "POST"),)
        answer.close = self.closing
        return answer

    def _check(self, head: Head) -> tuple[Signal, bool, str]:
        """What the head of the request says: the signal, whether it is JSON, and how it is compressed (empty: not).

        Raises:
            Refused: what can be refused by the head alone.
        """
        signal = PATHS.get(head.path)
        if signal is None:
            where = f"nothing is at {head.path[:100]}; POST to {', '.join(PATHS)}"
            raise Refused(404, UNIMPLEMENTED, "path", where)
        if head.method != "POST":
            what = f"{head.method[:20]} is not for {head.path}; POST an export request"
            raise Refused(405, UNIMPLEMENTED, "path", what)
        # Nearly all say just this; the rest is to be taken apart.
        is_json = head.content_type != PROTOBUF and head.media_type != PROTOBUF
        if is_json and head.media_type != JSON:
            given = (head.content_type or "missing")[:100]
            what = f"the content type is {given}; send {PROTOBUF} or {JSON}"
            raise Refused(415, INVALID_ARGUMENT, "content_type", what)
        encoding = (head.content_encoding or "").strip().lower()
        if encoding not in _ENCODINGS:
            what = f"the content encoding is {encoding[:100]}; set the exporter's compression to gzip or none"
            raise Refused(415, INVALID_ARGUMENT, "content_encoding", what)
        if head.content_length > self.body_max_bytes:
            raise self.too_large()
        return signal, is_json, "" if encoding == "identity" else encoding

    def _metadata(self, headers: Iterable[tuple[str, str]]) -> Metadata:
        try:
            return self.picker.of_pairs(headers)
        except MetadataRefused as error:
            raise Refused(431, INVALID_ARGUMENT, "metadata", str(error)) from None

    async def _inflated(self, encoding: str, body: bytes) -> bytes:
        """A compressed body as it was.

        Raises:
            Refused: it is too large, or not what was announced, or too many wait.
        """
        at_once = self._inflated_inline(encoding, body)
        if at_once is not None:
            return at_once
        charge = self._charged(len(body))
        try:
            async with self._inflating:
                return await self._aside(self._inflate, encoding, body)
        finally:
            charge.set(0)

    def _inflated_inline(self, encoding: str, body: bytes) -> bytes | None:
        """The same if little comes out; None if it is more.

        Raises:
            Refused: it is not what was announced.
        """
        if len(body) > INLINE_BYTES or self.body_max_bytes <= INLINE_BYTES:
            return None
        try:
            return inflated(encoding, body, INLINE_BYTES)
        except TooLong:
            return None
        except NotCompressed as error:
            raise _malformed(str(error)) from None

    def _inflate(self, encoding: str, body: bytes) -> bytes:
        try:
            return inflated(encoding, body, self.body_max_bytes)
        except TooLong:
            raise self.too_large() from None
        except NotCompressed as error:
            raise _malformed(str(error)) from None

    async def _converted(self, signal: Signal, encoding: str, sent: bytes) -> bytes:
        """JSON as protobuf.

        Raises:
            Refused: it is not OTLP/JSON, or too much.
        """
        text = self._inflated_inline(encoding, sent) if encoding else sent
        if text is not None and len(text) <= JSON_INLINE_BYTES:
            charge = self._charged(0)
            try:
                self._admit_tree(self._tree_bytes(text), charge)
                body = _to_protobuf(signal, text)
            finally:
                charge.set(0)
        else:
            charge = self._charged(len(sent if text is None else text))
            try:
                async with self._converting:
                    if text is None:
                        async with self._inflating:
                            text = await self._aside(self._inflate, encoding, sent)
                    self._admit_tree(await self._aside(self._tree_bytes, text), charge)
                    body = await self._aside(_to_protobuf, signal, text)
            finally:
                charge.set(0)
        if len(body) > self.body_max_bytes:
            raise self.too_large()
        return body

    def _tree_bytes(self, text: bytes) -> int:
        """The memory that a JSON body will take.

        Raises:
            Refused: it is too much for one.
        """
        most = self._budget.most_for_one
        census = take_json_census(text, self._values_max, most)
        try:
            refuse_too_much(Census(0, census.values), elements_max=self._values_max)
        except TooMuch as error:
            raise _too_many(str(error)) from None
        if census.tree_bytes > most:
            raise _too_many(
                f"to read the JSON would take {census.tree_bytes >> 20} MiB, and one request may take {most >> 20}; "
                "send less at once or in protobuf, or raise [sidecar] max_bytes"
            )
        return census.tree_bytes

    def _admit_tree(self, tree_bytes: int, charge: Charge) -> None:
        """
        Raises:
            Refused: others have that memory now.
        """
        if not self._budget.admits(tree_bytes - charge.size, own=charge.size):
            raise too_many_bytes()
        charge.set(tree_bytes)

    def _charged(self, size: int) -> Charge:
        """
        Raises:
            Refused: there is not so much left.
        """
        if not self._budget.admits(size):
            raise too_many_bytes()
        return Charge(self._budget, size)

    async def _aside(self, work: Callable[..., _T], *given: object) -> _T:
        """In a thread."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "otlp-http")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    def too_large(self) -> Refused:
        """The body is larger than the limit."""
        limit = self.body_max_bytes
        why = f"the body is larger than {limit} bytes; send less at once, or raise [sidecar] max_request_bytes"
        return Refused(413, RESOURCE_EXHAUSTED, "too_large", why)


def own_fault() -> Refused:
    """The sidecar itself failed."""
    return Refused(503, UNAVAILABLE, "fault", "the sidecar could not handle the request; its log says why; try again")


def too_many_bytes() -> Refused:
    """Bodies take more memory than they may, all together."""
    return Refused(503, UNAVAILABLE, "busy", "the sidecar has too many bytes under way; try again")


def too_slow(limit_s: float) -> Refused:
    """The body did not arrive in time."""
    return Refused(503, UNAVAILABLE, "slow", f"the body did not arrive within {limit_s:g} s; try again")


def cut_short() -> Refused:
    """The client went away in the middle of its body."""
    return Refused(400, INVALID_ARGUMENT, "cut_short", "the connection ended before the body did")


def _too_many(why: str) -> Refused:
    return Refused(413, RESOURCE_EXHAUSTED, "too_many", why)


def _to_protobuf(signal: Signal, text: bytes) -> bytes:
    """
    Raises:
        Refused: it is not OTLP/JSON.
    """
    # Loaded by the first request in JSON: the message classes are the largest part of a sidecar otherwise.
    from skewd_sidecar.receive.otlp_json import to_protobuf

    try:
        return to_protobuf(signal, text)
    except MalformedRequest as error:
        raise Refused(400, INVALID_ARGUMENT, "malformed", str(error)) from None


def _malformed(why: str) -> Refused:
    return Refused(400, INVALID_ARGUMENT, "malformed", f"malformed body: {why}")


def _answer(outcome: Outcome, json_of: Signal | None) -> Answer:
    """The answer as protobuf or, for a request in JSON of some signal, as JSON."""
    if not outcome.ok:
        return _failure(outcome, json_of is not None)
    if json_of is None:
        return Answer(200, PROTOBUF, outcome.body) if outcome.body else _NOTHING
    from skewd_sidecar.receive.otlp_json import answer_to_json

    return Answer(200, _JSON_ANSWER, answer_to_json(json_of, outcome.body).encode())


def _failure(outcome: Outcome, in_json: bool) -> Answer:
    delay_s = outcome.retry_after_s
    headers = (("Retry-After", write_retry_after(delay_s)),) if delay_s is not None else ()
    if in_json:
        return Answer(outcome.http_status, _JSON_ANSWER, outcome.status_json().encode(), headers)
    return Answer(outcome.http_status, PROTOBUF, outcome.status_body(), headers)
