"""OTLP over gRPC, in bytes, without gRPC's own library: the twin of :mod:`skewd_sidecar.receive.grpc`.

Same surface, same answers; a tenth of the CPU for a small request. It serves plaintext HTTP/2; TLS stays with the
other.

Limits: a message of ``BODY_MAX_BYTES`` after decompression (RESOURCE_EXHAUSTED), ``CONCURRENT_MAX`` requests and
``BYTES_MAX`` arriving bytes at once (UNAVAILABLE, which exporters try again), ``CONNECTIONS_MAX`` connections: the one
longest without a request gives way to a new one. Times are the transport's own: 10 s to begin, 30 s to send a request
or take an answer, and after 30 s of silence a question whether the peer is still there.
"""

from __future__ import annotations

from skewd_sidecar.gateway import BODY_MAX_BYTES
from skewd_sidecar.native_hub import Hub
from skewd_sidecar.receive.listen import BACKLOG, bind_tcp, name_of
from skewd_sidecar.relay import BYTES_MAX, REQUESTS_MAX, Handler

CONCURRENT_MAX = 4 * REQUESTS_MAX
CONNECTIONS_MAX = 1024
STREAMS_MAX = 128
SETTING = "--grpc or [sidecar] grpc"


class NativeGrpcReceiver:
    """Listens for export calls and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, hub: Hub, server: int, address: tuple[str, int]) -> None:
        self._hub = hub
        self._server = server
        self.address = address

    @classmethod
    async def open(
        cls,
        listen: str,
        handler: Handler,
        *,
        body_max_bytes: int = BODY_MAX_BYTES,
        held_max_bytes: int = BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
    ) -> NativeGrpcReceiver:
        """Listens on ``host:port`` (port 0 picks one).

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp`.
        """
        with bind_tcp(listen, SETTING) as bound:
            bound.listen(BACKLOG)
            address = name_of(bound)
            hub = Hub.acquire()
            try:
                server = hub.listen(
                    bound.detach(),
                    handler,
                    unix=False,
                    body_max_bytes=body_max_bytes,
                    held_max_bytes=held_max_bytes,
                    requests_max=CONCURRENT_MAX,
                    connections_max=connections_max,
                    streams_max=STREAMS_MAX,
                )
            except BaseException:
                hub.release()
                raise
        return cls(hub, server, address)

    async def close(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish within ``grace_s``, and frees the port."""
        try:
            await self._hub.close(self._server, grace_s)
        finally:
            self._hub.release()
