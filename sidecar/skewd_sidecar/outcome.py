"""How a request ended, in the words of both protocols.

An exporter decides by the answer's status whether it sends again, and OTLP has two vocabularies for it: gRPC's codes
and HTTP's. A request that came by one protocol and went on by the other must not change from "try again" to "give
up" on the way, or the reverse. So an outcome carries both, translated once, retryability first, and the delay that
the next hop asks for beside them.

Over gRPC, CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS are retried; over HTTP 429,
502, 503 and 504 are (OTLP specification, "Failures"). RESOURCE_EXHAUSTED is retried only with a RetryInfo beside it:
with one it is 429, without one 413, and a 429 becomes UNAVAILABLE, which needs none.

Limits: as :mod:`skewd_sidecar.rpc_status`. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from skewd_sidecar.rpc_status import encode_retry_info, encode_status, read_retry_after, read_status

__all__ = ["Outcome", "encode_status"]

OK = 0
INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

BUSY_RETRY_AFTER_S = 1.0
"""What exporters are asked to wait when a limit of ours refuses them: longer than requests are usually under way."""

_HTTP_OF_CODE = {
    OK: 200,
    1: 503,  # CANCELLED
    INVALID_ARGUMENT: 400,
    4: 504,  # DEADLINE_EXCEEDED
    7: 403,  # PERMISSION_DENIED
    RESOURCE_EXHAUSTED: 413,
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
    508: FAILED_PRECONDITION,
}
_RETRIED_OVER_HTTP = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one export request.

    Attributes:
        code: gRPC status code.
        http_status: the same for HTTP.
        message: what went wrong and what to do; empty if nothing.
        body: when ok, the serialized export response (which may tell of a partial success).
        details: when not ok, a serialized ``google.rpc.Status`` as the next hop gave it, if it gave one.
        retry_after_s: how long the exporter is asked to wait before it tries again; None: as it likes.
        heard: whether the next hop itself said so; False where nothing came back from it, so that the failure is the
            endpoint's and not this request's.
    """

    code: int
    http_status: int
    message: str = ""
    body: bytes = b""
    details: bytes | None = None
    retry_after_s: float | None = None
    heard: bool = True

    @property
    def ok(self) -> bool:
        """Whether the request was taken."""
        return self.code == OK

    @property
    def retryable(self) -> bool:
        """Whether the specification has exporters send it again: the same answer in both protocols."""
        return self.http_status in _RETRIED_OVER_HTTP

    @classmethod
    def delivered(cls, body: bytes) -> Outcome:
        """Taken by the next hop, which answered ``body``."""
        return cls(OK, 200, body=body)

    @classmethod
    def unheard(cls, message: str) -> Outcome:
        """Nothing came back from the next hop: no connection, or no answer in time."""
        return cls(UNAVAILABLE, _HTTP_OF_CODE[UNAVAILABLE], message, heard=False)

    @classmethod
    def failed(
        cls, code: int, message: str, details: bytes | None = None, retry_after_s: float | None = None
    ) -> Outcome:
        """Failed with a gRPC code; the HTTP status follows from it, and the delay from ``details`` unless given."""
        if retry_after_s is None and details is not None:
            status = read_status(details)
            retry_after_s = status.retry_after_s if status is not None else None
        http_status = _HTTP_OF_CODE.get(code, 500)
        if code == RESOURCE_EXHAUSTED and retry_after_s is not None:
            http_status = 429
        return cls(code, http_status, message, b"", details, retry_after_s)

    @classmethod
    def failed_over_http(
        cls,
        status: int,
        message: str,
        details: bytes | None,
        retry_after: str | None,
        date: str | None = None,
        wall_s: float | None = None,
    ) -> Outcome:
        """Failed with an HTTP status; the gRPC code follows from it.

        A redirect is a failure (an exporter's next hop does not move), and so is any other status below 400.

        Args:
            retry_after, date: the answer's headers of these names.
            wall_s: this host's wall clock, in Unix time, for a date without another beside it.
        """
        default = INVALID_ARGUMENT if 400 <= status < 500 else INTERNAL
        code = _CODE_OF_HTTP.get(status, default)
        retry_after_s = read_retry_after(retry_after, date, wall_s)
        return cls(code, status if status >= 400 else 500, message, b"", details, retry_after_s)

    def status_body(self) -> bytes:
        """What OTLP/HTTP answers in the body of a failure: a ``google.rpc.Status``."""
        return self.details if self.details is not None else encode_status(self.code, self.message)

    def status_json(self) -> str:
        """The same for a request in JSON; of the details, what both sides understand: the delay."""
        said = read_status(self.details) if self.details is not None else None
        status: dict[str, object] = {"code": self.code, "message": said.message if said is not None else self.message}
        if self.retryable and self.retry_after_s is not None:
            delay = f"{self.retry_after_s:.9f}".rstrip("0").rstrip(".") + "s"
            status["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
        return json.dumps(status)

    def grpc_details(self) -> bytes | None:
        """What OTLP/gRPC answers in ``grpc-status-details-bin``; None for nothing.

        Clients insist that its code is the call's, and read the delay nowhere else.
        """
        said = read_status(self.details) if self.details is not None else None
        delay_s = self.retry_after_s if self.retryable else None
        if said is not None and said.code == self.code and (delay_s is None or said.retry_after_s is not None):
            return self.details
        if said is None and delay_s is None:
            return None
        added = () if delay_s is None or (said and said.retry_after_s is not None) else (encode_retry_info(delay_s),)
        kept = said.details if said is not None else ()
        return encode_status(self.code, (said and said.message) or self.message, (*kept, *added))


def own_fault() -> Outcome:
    """The answer where the sidecar itself failed: what was sent may be as it should, so it is worth another attempt."""
    return Outcome(UNAVAILABLE, 503, "the sidecar could not handle the request; its log says why; try again", b"", None,
                   BUSY_RETRY_AFTER_S)  # fmt: skip
