"""OTLP over plaintext HTTP/1.1 without aiohttp: the twin of :mod:`skewd_sidecar.receive.http`.

Same surface, same rules (:mod:`skewd_sidecar.receive.http_rules`); requests arrive whole, read by the native
transport's thread, and those that could not be read arrive with the reason. It takes TCP and Unix sockets; TLS is the
other's.

It is stricter about what HTTP is: two lengths, a length that is no number, any transfer coding but ``chunked``, folded
lines, bare line feeds, more than one ``Host`` are refused (400), since who reads them otherwise sees another request.

Limits: those of the rules. Bytes that are arriving are counted together with those of the native gRPC receiver.
A request whose client has gone is given up.
"""

from __future__ import annotations

from collections.abc import Iterable

from skewd.quiet import QuietLog
from skewd_sidecar.budget import Budget
from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import BODY_MAX_BYTES, Metadata
from skewd_sidecar.handler import Handler
from skewd_sidecar.native_hub import Hub
from skewd_sidecar.outcome import INVALID_ARGUMENT, UNAVAILABLE
from skewd_sidecar.patch import ELEMENTS_MAX
from skewd_sidecar.receive.http_rules import (
    BYTES_MAX,
    CONNECTIONS_MAX,
    IDLE_S,
    PATHS,
    READ_S,
    SETTING,
    Answer,
    Head,
    HttpRules,
    Refused,
    cut_short,
    own_fault,
    too_many_bytes,
    too_slow,
)
from skewd_sidecar.receive.metadata import MetadataPicker
from skewd_sidecar.receive.native_listener import NativeListener
from skewd_sidecar.receive.tls import ServerTls

log = QuietLog(__name__)


class NativeHttpReceiver:
    """Listens for export requests and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, listener: NativeListener, rules: HttpRules) -> None:
        self._listener = listener
        self._rules = rules
        self.address = listener.address

    @classmethod
    async def open(
        cls,
        listen: str,
        handler: Handler,
        *,
        body_max_bytes: int = BODY_MAX_BYTES,
        metadata: Iterable[str] = (),
        tls: ServerTls | None = None,
        counts: Counts | None = None,
        budget: Budget | None = None,
        values_max: int = ELEMENTS_MAX,
        held_max_bytes: int = BYTES_MAX,
    ) -> NativeHttpReceiver:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            handler: what answers.
            body_max_bytes: the largest body, before and after decompression.
            metadata: the names, in lower case, of headers that are handed on.
            tls: None; there is none here.
            counts: where to count.
            budget: what conversions are charged to; None for one of their own.
            values_max: values in one JSON body.
            held_max_bytes: of requests that are still arriving, all together.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
        """
        if tls is not None:
            raise ValueError("the native transport has no TLS")
        counts = counts if counts is not None else Counts()
        rules = HttpRules(handler, body_max_bytes, MetadataPicker(metadata), counts, budget, values_max)

        def serve(hub: Hub, fd: int, unix: bool) -> int:
            return hub.listen_http(
                fd,
                _Requests(rules, READ_S),
                unix=unix,
                paths=PATHS,
                body_max_bytes=body_max_bytes,
                held_max_bytes=held_max_bytes,
                connections_max=CONNECTIONS_MAX,
                idle_s=IDLE_S,
                read_s=READ_S,
                metadata=rules.picker.names,
            )

        listener = NativeListener.open(listen, SETTING, serve)
        listener.hub.show(rules.counts)
        return cls(listener, rules)

    async def close(self, grace_s: float) -> None:
        """Takes no more connections, lets requests under way finish within ``grace_s``, and frees the address."""
        self._rules.closing = True
        try:
            await self._listener.close(grace_s)
        finally:
            self._rules.end()


class _Requests:
    """What the hub hands requests to."""

    def __init__(self, rules: HttpRules, read_s: float) -> None:
        self._rules = rules
        self._read_s = read_s

    async def answer(self, head: Head, headers: Metadata, body: bytes, fault: tuple[str, str] | None) -> Answer:
        """The answer to a request whose body is there, or is not for some ``fault``: a word, and more about it."""

        async def read() -> bytes:
            if fault is not None:
                raise self._refused(*fault)
            return body

        if fault is not None and fault[0] == "not_http":
            log.warning("what arrived is not HTTP", setting=SETTING, why=fault[1])
            return self._rules.refusal(head, self._refused(*fault))
        return await self._rules.answer(head, headers, read)

    def _refused(self, word: str, text: str) -> Refused:
        match word:
            case "too_large":
                return self._rules.too_large()
            case "slow":
                return too_slow(self._read_s)
            case "busy":
                return too_many_bytes()
            case "cut_short":
                return cut_short()
            case "not_http":
                return Refused(400, INVALID_ARGUMENT, word, f"the request is not HTTP/1.1 as it should be: {text}")
        return Refused(503, UNAVAILABLE, word, "the body was not read; try again")

    def broken(self) -> Answer:
        """The answer to a request that could not be handled."""
        return self._rules.refusal(Head("", "", None, None), own_fault())

    def turned_away(self, count: int) -> None:
        """So many connections were beyond the limit, and told to come again."""
        self._rules.counts.refused["connections"] += count
        log.warning("too many connections, new ones are told to try again", connections=CONNECTIONS_MAX)
