"""OTLP over gRPC, in bytes.

gRPC hands a request over as bytes if nobody asks for more, and decompresses it by itself. So the three export
services are generic handlers without serializers: no OpenTelemetry class is loaded, and no span is parsed.

Limits: a message of ``BODY_MAX_BYTES`` after decompression (gRPC answers RESOURCE_EXHAUSTED), and
``CONCURRENT_MAX`` calls: four times what the relay admits, whose refusal, unlike gRPC's own, is retried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeAlias

import grpc
import grpc.aio

from skewd.ports import PortTaken, format_address, split_address
from skewd_sidecar.gateway import BODY_MAX_BYTES, Signal
from skewd_sidecar.outcome import Outcome
from skewd_sidecar.receive.listen import bind_tcp, name_of
from skewd_sidecar.relay import REQUESTS_MAX, Handler

CONCURRENT_MAX = 4 * REQUESTS_MAX
SETTING = "--grpc or [sidecar] grpc"

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcReceiver:
    """Listens for export calls and hands them to a handler. Made by :meth:`open`."""

    def __init__(self, server: grpc.aio.Server, address: tuple[str, int]) -> None:
        self._server = server
        self.address = address

    @classmethod
    async def open(cls, listen: str, handler: Handler, *, body_max_bytes: int = BODY_MAX_BYTES) -> GrpcReceiver:
        """Listens on ``host:port`` (port 0 picks one).

        Raises:
            ValueError, PortTaken, OSError: as :func:`skewd_sidecar.receive.listen.bind_tcp`.
        """
        # gRPC takes no socket, so the address is tried out and left again.
        with bind_tcp(listen, SETTING) as tried:
            host, port = name_of(tried)
        if split_address(listen)[1] == 0:
            port = 0
        server = grpc.aio.server(
            maximum_concurrent_rpcs=CONCURRENT_MAX,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", body_max_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    signal.grpc_service,
                    # No deserializer, no serializer: bytes in, bytes out.
                    {"Export": grpc.unary_unary_rpc_method_handler(_export(signal, handler), None, None)},
                )
                for signal in Signal
            )
        )
        try:
            port = server.add_insecure_port(format_address(host, port))
        except RuntimeError:
            raise PortTaken.at(host, port, setting=SETTING) from None
        await server.start()
        return cls(server, (host, port))

    async def close(self, grace_s: float) -> None:
        """Takes no more calls, lets those under way finish within ``grace_s``, and frees the port."""
        await self._server.stop(grace_s)


def _export(signal: Signal, handler: Handler) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    async def export(request: bytes, context: _Context) -> bytes:
        outcome = await handler(signal, request, context.time_remaining())
        if not outcome.ok:
            await _abort(context, outcome)
        return outcome.body

    return export


async def _abort(context: _Context, outcome: Outcome) -> NoReturn:
    details = outcome.grpc_details()
    trailing = (("grpc-status-details-bin", details),) if details is not None else ()
    await context.abort(_CODES.get(outcome.code, grpc.StatusCode.UNKNOWN), outcome.message, trailing)
    raise AssertionError("abort returned")
