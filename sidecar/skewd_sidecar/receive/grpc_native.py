"""OTLP over gRPC, in bytes, without gRPC's own library: the twin of :mod:`skewd_sidecar.receive.grpc`.

Same surface, same answers; an eighth of the CPU for a small request. It serves plaintext HTTP/2; TLS is the other's.

Clients made with gRPC's C core (Python, C++, Ruby and others) call a Unix socket by an authority that RFC 3986 does not
allow (``run%2Fotlp.sock``), which this refuses unless their channel's ``grpc.default_authority`` is set. So Unix
sockets are the other's, too, unless ``transport = "native"`` demands otherwise.

Limits: a message of ``body_max_bytes`` after decompression (RESOURCE_EXHAUSTED: it is final). ``CONCURRENT_MAX``
requests and ``BYTES_MAX`` arriving bytes at once (UNAVAILABLE, which exporters try again), ``STREAMS_MAX`` requests a
connection, beyond which clients wait on their side. ``CONNECTIONS_MAX`` connections: the one longest without a request
gives way to a new one. A request has ``READ_S`` to arrive. Other times are the transport's own: 10 s to begin, 30 s to
take an answer, and after 30 s of silence a question whether the peer is still there.
"""

from __future__ import annotations

from collections.abc import Iterable

from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import BODY_MAX_BYTES
from skewd_sidecar.handler import Handler
from skewd_sidecar.native_hub import Hub
from skewd_sidecar.receive.grpc_common import CONCURRENT_MAX, CONNECTIONS_MAX, SETTING, STREAMS_MAX, counted
from skewd_sidecar.receive.metadata import MetadataPicker
from skewd_sidecar.receive.native_listener import NativeListener
from skewd_sidecar.receive.tls import ServerTls

BYTES_MAX = 64 * 1024 * 1024
READ_S = 30.0


class NativeGrpcReceiver:
    """Listens for export calls and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, listener: NativeListener) -> None:
        self._listener = listener
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
        held_max_bytes: int = BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
    ) -> NativeGrpcReceiver:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            handler: what answers.
            body_max_bytes: the largest message, after decompression.
            metadata: the names, in lower case, of headers that are handed on.
            tls: None; there is none here.
            counts: where to count.
            held_max_bytes: of requests that are still arriving, all together.
            connections_max: at once.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
        """
        if tls is not None:
            raise ValueError("the native transport has no TLS")
        counts = counts if counts is not None else Counts()
        picker = MetadataPicker(metadata)

        def serve(hub: Hub, fd: int, unix: bool) -> int:
            return hub.listen(
                fd,
                counted(handler, picker, counts),
                unix=unix,
                body_max_bytes=body_max_bytes,
                held_max_bytes=held_max_bytes,
                requests_max=CONCURRENT_MAX,
                connections_max=connections_max,
                streams_max=STREAMS_MAX,
                read_s=READ_S,
                metadata=picker.names,
            )

        listener = NativeListener.open(listen, SETTING, serve)
        listener.hub.show(counts)
        return cls(listener)

    async def close(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish within ``grace_s``, and frees the address."""
        await self._listener.close(grace_s)
