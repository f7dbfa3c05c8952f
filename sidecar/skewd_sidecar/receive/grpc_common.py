"""What both of gRPC's receivers do, whoever speaks it: their limits, and what comes before a request's handler."""

from __future__ import annotations

from skewd_sidecar.counts import Counts
from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.handler import REQUESTS_MAX, Handler
from skewd_sidecar.outcome import INVALID_ARGUMENT, Outcome
from skewd_sidecar.receive.metadata import MetadataPicker, MetadataRefused

STREAMS_MAX = 2 * REQUESTS_MAX
CONCURRENT_MAX = 16 * REQUESTS_MAX
CONNECTIONS_MAX = 1024
SETTING = "--grpc or [sidecar] grpc"


def counted(handler: Handler, picker: MetadataPicker, counts: Counts) -> Handler:
    """A handler that counts requests, and of their headers hands on those that go on.

    Requests whose headers cannot go on are refused.
    """

    async def handle(
        signal: Signal, body: bytes, timeout_s: float | None, metadata: Metadata = (), *, since_s: float | None = None
    ) -> Outcome:
        counts.received["grpc", "protobuf"] += 1
        counts.received_bytes["grpc"] += len(body)
        if metadata:
            try:
                metadata = picker.of_pairs(metadata)
            except MetadataRefused as error:
                counts.refused["metadata"] += 1
                return Outcome.failed(INVALID_ARGUMENT, str(error))
        return await handler(signal, body, timeout_s, metadata, since_s=since_s)

    return handle
