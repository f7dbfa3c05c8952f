"""What all ways to a next hop have in common: one attempt, a limit in time, certificates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from skewd_sidecar.endpoint import Destination, EndpointError
from skewd_sidecar.gateway import Metadata
from skewd_sidecar.outcome import Outcome

ANSWER_MAX_BYTES = 4 * 1024 * 1024


class Forwarder(Protocol):
    """Sends requests of one signal to one next hop."""

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        """One attempt; never raises for what the next hop or the network does.

        Args:
            body: the serialized export request.
            timeout_s: what the exporter still waits; the destination's own limit applies too.
            metadata: sent beside the destination's own headers, which win.
        """
        ...

    async def close(self) -> None:
        """Closes the connections; requests under way fail."""
        ...


def limit_s(destination: Destination, timeout_s: float | None) -> float:
    """How long one attempt may take: the exporter's time, within the destination's."""
    return destination.timeout_s if timeout_s is None else min(timeout_s, destination.timeout_s)


def headers(destination: Destination, metadata: Metadata) -> Metadata:
    """What is sent beside a request over gRPC: the destination's own headers win."""
    return tuple({**dict(metadata), **dict(destination.headers)}.items()) if metadata else destination.headers


def content(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EndpointError(f"the certificate or key '{path}' cannot be read: {error.strerror or error}") from None


def tls_context(destination: Destination) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=destination.certificate)
        if destination.client_certificate is not None:
            context.load_cert_chain(destination.client_certificate, destination.client_key)
    except OSError as error:  # an unreadable file, or ssl.SSLError for its content
        raise EndpointError(f"the certificates for {destination} cannot be used: {error}") from None
    return context
