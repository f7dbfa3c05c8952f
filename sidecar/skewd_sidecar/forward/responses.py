"""Export responses of requests that were joined or split: what each exporter is told of what was not taken.

A response is empty, or holds a *partial success*: how many records the receiver rejected, and why. All signals'
responses have the same layout.

Of requests that went out together the receiver's count cannot be divided: it does not say whose records they were. Each
exporter is told the whole count and that it is of all; so nobody whose records were rejected is left believing that
they were taken, while the sum over exporters is too high. Of a request that went out in parts the counts add up.

Limits: a response that cannot be read is passed on as it is. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable


def of_joined(response: bytes, requests: int) -> tuple[bytes, bool]:
    """What each of the exporters is told, and whether anything was rejected."""
    read = _read(response)
    if read is None or not read[0]:
        return response, False
    return _written(read[0], f"of {requests} requests that were sent on together: {read[1]}"), True


def of_parts(responses: Iterable[bytes], rejected: int = 0, why: str = "") -> bytes:
    """What the exporter of a request is told that went out in parts.

    Args:
        responses: of the parts that were taken.
        rejected: records in the parts that were refused.
        why: they were.
    """
    words = [why] if why else []
    for response in responses:
        read = _read(response)
        if read is not None:
            rejected += read[0]
            if read[1] and read[1] not in words:
                words.append(read[1])
    return _written(rejected, "; ".join(words)) if rejected or words else b""


def _read(response: bytes) -> tuple[int, str] | None:
    """Rejected records and the message; None for a response without a partial success."""
    if not response:
        return None
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        told = ExportTraceServiceResponse.FromString(response)
    except DecodeError:
        return None
    if not told.HasField("partial_success"):
        return None
    return told.partial_success.rejected_spans, told.partial_success.error_message


def _written(rejected: int, message: str) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    told = ExportTraceServiceResponse()
    told.partial_success.rejected_spans = rejected
    told.partial_success.error_message = message[:4096]
    return bytes(told.SerializeToString())
