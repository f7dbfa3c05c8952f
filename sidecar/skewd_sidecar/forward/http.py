"""To an OTLP/HTTP endpoint, protobuf: one attempt, bytes out, bytes back.

Limits: answers of ``ANSWER_MAX_BYTES``, ``CONNECTIONS_MAX`` connections. Requests are compressed on the loop's thread
up to ``COMPRESS_HERE_BYTES``, larger ones on another. The environment's HTTP proxies are not used.
"""

from __future__ import annotations

import asyncio
import gzip

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward.transport import ANSWER_MAX_BYTES, limit_s, tls_context
from skewd_sidecar.gateway import Metadata
from skewd_sidecar.outcome import INTERNAL, UNAVAILABLE, Outcome

CONNECTIONS_MAX = 64
COMPRESS_HERE_BYTES = 32 * 1024
_LEVEL = 1
_PROTOBUF = "application/x-protobuf"


class HttpForwarder:
    """One OTLP/HTTP endpoint and signal. Made within the running event loop.

    Raises:
        EndpointError: a certificate file cannot be read.
    """

    def __init__(self, destination: Destination) -> None:
        import aiohttp
        import yarl

        self._destination = destination
        self._errors = (aiohttp.ClientError, OSError)
        scheme = "https" if destination.secure else "http"
        self._url = yarl.URL(f"{scheme}://{destination.target}{destination.path}", encoded=True)
        context = tls_context(destination) if destination.secure else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=context),
            headers=headers_of(destination),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._own = {name.lower() for name in self._session.headers}
        self._timeout = aiohttp.ClientTimeout

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        limit = limit_s(self._destination, timeout_s)
        data = await _compressed(body) if self._destination.gzip else body
        try:
            async with self._session.post(
                self._url,
                data=data,
                headers=[(name, value) for name, value in metadata if name not in self._own],
                timeout=self._timeout(total=limit),
                allow_redirects=False,
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > ANSWER_MAX_BYTES:
                        return too_long(self._destination)
                return outcome_of(
                    self._destination,
                    response.status,
                    # Bytes that are no UTF-8 come as lone surrogates, which neither protocol can pass on.
                    (response.reason or "").encode(errors="replace").decode(),
                    response.content_type,
                    response.headers.get("Retry-After"),
                    response.headers.get("Date"),
                    bytes(answer),
                )
        except TimeoutError:
            return too_late(self._destination, limit)
        except self._errors as error:
            return Outcome.failed(UNAVAILABLE, f"{self._destination}: {error or type(error).__name__}")

    async def close(self) -> None:
        await self._session.close()


async def _compressed(body: bytes) -> bytes:
    if len(body) <= COMPRESS_HERE_BYTES:
        return gzip.compress(body, _LEVEL)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL)  # zlib lets go of the interpreter


def headers_of(destination: Destination) -> dict[str, str]:
    """What every request to a destination says."""
    return {
        "User-Agent": "skewd-sidecar",
        **dict(destination.headers),
        "Content-Type": _PROTOBUF,
        **({"Content-Encoding": "gzip"} if destination.gzip else {}),
    }


def outcome_of(
    destination: Destination,
    status: int,
    reason: str,
    content_type: str,
    retry_after: str | None,
    date: str | None,
    answer: bytes,
) -> Outcome:
    """What an answer means.

    Args:
        content_type: without parameters.
        retry_after, date: the headers of these names.
    """
    protobuf = content_type == _PROTOBUF
    if 200 <= status < 300:
        return Outcome.delivered(answer if protobuf else b"")
    return Outcome.failed_over_http(
        status,
        f"{destination}: HTTP {status} {reason}".rstrip(),
        answer if protobuf and answer else None,
        retry_after,
        date,
    )


def too_late(destination: Destination, limit_s: float) -> Outcome:
    """There was no answer in time."""
    return Outcome.failed(UNAVAILABLE, f"{destination}: no answer within {limit_s:g} s")


def too_long(destination: Destination) -> Outcome:
    """The answer is longer than any that is meant seriously."""
    return Outcome.failed(INTERNAL, f"{destination}: its answer is longer than {ANSWER_MAX_BYTES} bytes")
