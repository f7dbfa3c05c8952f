"""OTLP over gRPC, in bytes.

gRPC hands a request over as bytes if nobody asks for more, and decompresses it by itself (gzip and deflate, stopping
at the limit). So the export services are generic handlers without serializers: no OpenTelemetry class is loaded, and
no span is parsed.

Whoever is too many must be told to try again, and gRPC's own refusal, RESOURCE_EXHAUSTED, says the opposite to OTLP's
exporters. So a connection has ``STREAMS_MAX`` calls at once, beyond which clients wait on their side, and the relay
refuses in its own words long before gRPC's limit on calls, ``CONCURRENT_MAX``, is reached.

Limits: a message of ``body_max_bytes`` after decompression (gRPC answers RESOURCE_EXHAUSTED: it is final).
``CONNECTIONS_MAX`` connections, each asked to come again after ``CONNECTION_AGE_S``: gRPC has no limit on how long a
request may take to arrive, and ``CONNECTION_GRACE_S`` after that age calls that still have not are ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from skewd.ports import ListenError, PortTaken, format_address, split_address
from skewd.quiet import QuietLog
from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import BODY_MAX_BYTES, Metadata, Signal
from skewd_sidecar.handler import Handler
from skewd_sidecar.outcome import Outcome, own_fault
from skewd_sidecar.receive.grpc_common import CONCURRENT_MAX, CONNECTIONS_MAX, SETTING, STREAMS_MAX, counted
from skewd_sidecar.receive.listen import UNIX, Address, UnixSocketFile, bind_tcp, name_of
from skewd_sidecar.receive.metadata import MetadataPicker
from skewd_sidecar.receive.tls import ServerTls

CONNECTION_AGE_S = 300.0
CONNECTION_GRACE_S = 60.0
HANDSHAKE_S = 10.0

log = QuietLog(__name__)

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcReceiver:
    """Listens for export calls and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, server: grpc.aio.Server, address: Address, file: UnixSocketFile | None) -> None:
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
    ) -> GrpcReceiver:
        """Listens on ``host:port`` (port 0 picks one) or ``unix:///path``.

        Args:
            listen: where.
            handler: what answers.
            body_max_bytes: the largest message, after decompression.
            metadata: the names, in lower case, of headers that are handed on.
            tls: the certificates; None for none.
            counts: where to count.

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp` and ``UnixSocketFile``.
        """
        server = grpc.aio.server(
            maximum_concurrent_rpcs=CONCURRENT_MAX,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", body_max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", STREAMS_MAX),
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
                ("grpc.max_connection_age_ms", round(CONNECTION_AGE_S * 1000)),
                ("grpc.max_connection_age_grace_ms", round(CONNECTION_GRACE_S * 1000)),
                ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1000)),
            ],
        )
        export = _exporter(counted(handler, MetadataPicker(metadata), counts if counts is not None else Counts()))
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    signal.grpc_service,
                    # No deserializer, no serializer: bytes in, bytes out.
                    {"Export": grpc.unary_unary_rpc_method_handler(export(signal), None, None)},
                )
                for signal in Signal
            )
        )
        file = None
        address: Address
        if listen.startswith(UNIX):
            file = UnixSocketFile(listen, SETTING)
            address, where = file.path, f"unix:{file.path}"
        else:
            # gRPC takes no socket, so the address is tried out and left again.
            with bind_tcp(listen, SETTING) as tried:
                host, port = name_of(tried)
            if split_address(listen)[1] == 0:
                port = 0
            address, where = (host, port), format_address(host, port)
        try:
            port = (
                server.add_secure_port(where, _credentials(tls)) if tls is not None else server.add_insecure_port(where)
            )
        except RuntimeError:
            if isinstance(address, str):
                fix = "make its directory writable for the sidecar's user, or choose another path"
                raise ListenError(f"{SETTING}: cannot listen on '{address}'; {fix}") from None
            raise PortTaken.at(*address, setting=SETTING) from None
        if file is not None:
            file.bound()
        await server.start()
        return cls(server, address if isinstance(address, str) else (address[0], port), file)

    async def close(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish within ``grace_s``, and frees the address."""
        await self._server.stop(grace_s)
        if self._file is not None:
            self._file.remove()


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """What gRPC asks again for each connection."""
    given = tls.current()

    def configuration() -> grpc.ServerCertificateConfiguration:
        chain = [(given.key, given.certificate)]
        return grpc.ssl_server_certificate_configuration(chain, given.client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        current = tls.current()
        if current is given:
            return None
        given = current
        return configuration()

    # The stubs do not know that None stands for "as before".
    fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, require_client_authentication=tls.mutual)


def _exporter(handler: Handler) -> Callable[[Signal], Callable[[bytes, _Context], Awaitable[bytes]]]:
    def of_signal(signal: Signal) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        async def export(request: bytes, context: _Context) -> bytes:
            # Values of bytes are among them, which no picker picks.
            metadata = cast("Metadata", context.invocation_metadata() or ())
            try:
                outcome = await handler(signal, request, context.time_remaining(), metadata)
            except Exception as error:
                log.error("a request could not be handled", exc_info=error)
                outcome = own_fault()
            if not outcome.ok:
                await _abort(context, outcome)
            return outcome.body

        return export

    return of_signal


async def _abort(context: _Context, outcome: Outcome) -> NoReturn:
    details = outcome.grpc_details()
    trailing = (("grpc-status-details-bin", details),) if details is not None else ()
    await context.abort(_CODES.get(outcome.code, grpc.StatusCode.UNKNOWN), outcome.message, trailing)
    raise AssertionError("abort returned")
