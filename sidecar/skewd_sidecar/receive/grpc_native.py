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
from skewd_sidecar.receive.listen import BACKLOG, UNIX, Address, UnixSocketFile, bind_tcp, bind_unix, name_of
from skewd_sidecar.receive.metadata import MetadataPicker
from skewd_sidecar.receive.tls import ServerTls

BYTES_MAX = 64 * 1024 * 1024
READ_S = 30.0


class NativeGrpcReceiver:
    """Listens for export calls and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, hub: Hub, server: int, address: Address, file: UnixSocketFile | None) -> None:
        self._hub = hub
        self._server = server
        self._file = file
        self.address = address

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
        file = UnixSocketFile(listen, SETTING) if listen.startswith(UNIX) else None
        with bind_tcp(listen, SETTING) if file is None else bind_unix(file, SETTING) as bound:
            bound.listen(BACKLOG)
            address = name_of(bound) if file is None else file.path
            hub = Hub.acquire()
            fd = bound.detach()
        try:
            server = hub.listen(
                fd,
                counted(handler, picker, counts),
                unix=file is not None,
                body_max_bytes=body_max_bytes,
                held_max_bytes=held_max_bytes,
                requests_max=CONCURRENT_MAX,
                connections_max=connections_max,
                streams_max=STREAMS_MAX,
                read_s=READ_S,
                metadata=picker.names,
            )
        except BaseException:
            hub.release()
            if file is not None:
                file.remove()
            raise
        hub.show(counts)
        return cls(hub, server, address, file)

    async def close(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish within ``grace_s``, and frees the address."""
        try:
            await self._hub.close(self._server, grace_s)
        finally:
            self._hub.release()
            if self._file is not None:
                self._file.remove()
