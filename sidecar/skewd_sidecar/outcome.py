"""How a request ended, in the words of both protocols.

An exporter decides by the answer's status whether it sends again, and OTLP has two vocabularies for it: gRPC's codes
and HTTP's. A request that came by one protocol and went on by the other must not change from "try again" to "give
up" on the way, or the reverse. So an outcome carries both, translated once, retryability first.

Over gRPC, CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS are retried; over HTTP 429,
502, 503 and 504 are (OTLP specification, "Failures"). RESOURCE_EXHAUSTED is retried only with a RetryInfo beside it,
so a 429 becomes UNAVAILABLE.

Limits: retry delays are relayed within a protocol, not translated. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

OK = 0
INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

_HTTP_OF_CODE = {
    OK: 200,
    1: 503,  # CANCELLED
    INVALID_ARGUMENT: 400,
    4: 504,  # DEADLINE_EXCEEDED
    7: 403,  # PERMISSION_DENIED
    RESOURCE_EXHAUSTED: 429,
    10: 503,  # ABORTED
    11: 503,  # OUT_OF_RANGE
    UNIMPLEMENTED: 404,
    UNAVAILABLE: 503,
    15: 503,  # DATA_LOSS
    16: 401,  # UNAUTHENTICATED
}
_CODE_OF_HTTP = {
    401: 16,
    403: 7,
    404: UNIMPLEMENTED,
    405: UNIMPLEMENTED,
    413: RESOURCE_EXHAUSTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
_MESSAGE_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one export request.

    Attributes:
        code: gRPC status code.
        http_status: the same for HTTP.
        message: what went wrong and what to do; empty if nothing.
        body: when ok, the serialized export response (which may tell of a partial success).
        details: when not ok, a serialized ``google.rpc.Status`` as the next hop gave it, if it gave one.
        retry_after: an HTTP ``Retry-After`` of the next hop.
    """

    code: int
    http_status: int
    message: str = ""
    body: bytes = b""
    details: bytes | None = None
    retry_after: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the request was taken."""
        return self.code == OK

    @classmethod
    def delivered(cls, body: bytes) -> Outcome:
        """Taken by the next hop, which answered ``body``."""
        return cls(OK, 200, body=body)

    @classmethod
    def failed(cls, code: int, message: str, details: bytes | None = None) -> Outcome:
        """Failed with a gRPC code; the HTTP status follows from it."""
        return cls(code, _HTTP_OF_CODE.get(code, 500), message=message, details=details)

    @classmethod
    def failed_over_http(cls, status: int, message: str, details: bytes | None, retry_after: str | None) -> Outcome:
        """Failed with an HTTP status; the gRPC code follows from it.

        A redirect is a failure (an exporter's next hop does not move), and so is any other status below 400.
        """
        default = INVALID_ARGUMENT if 400 <= status < 500 else INTERNAL
        code = _CODE_OF_HTTP.get(status, default)
        return cls(code, status if status >= 400 else 500, message, b"", details, retry_after)

    def status_body(self) -> bytes:
        """What OTLP/HTTP answers in the body of a failure: a ``google.rpc.Status``."""
        return self.details if self.details is not None else encode_status(self.code, self.message)


def encode_status(code: int, message: str) -> bytes:
    """A serialized ``google.rpc.Status`` of a code (0..16) and a message (cut at 1 KiB)."""
    text = message.encode()[:_MESSAGE_MAX_BYTES].decode(errors="ignore").encode()
    size = len(text)
    length = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((0x08, code, 0x12)) + length + text
