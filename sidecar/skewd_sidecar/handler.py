"""What whoever receives requests needs to know of what comes after it: one call, its answer, how many at once."""

from __future__ import annotations

from typing import Protocol

from skewd_sidecar.gateway import Metadata, Signal
from skewd_sidecar.outcome import Outcome

REQUESTS_MAX = 64
"""Requests under way; a receiver takes in more than that, since what refuses them answers better than it can."""


class Handler(Protocol):
    """What a receiver hands its requests to."""

    async def __call__(
        self,
        signal: Signal,
        body: bytes,
        timeout_s: float | None,
        metadata: Metadata = (),
        *,
        since_s: float | None = None,
    ) -> Outcome:
        """The answer for a decompressed export request.

        Args:
            timeout_s: what the exporter still waits.
            metadata: those of its headers that go on with it.
            since_s: when it had arrived, by ``time.perf_counter``; None for this very moment.
        """
        ...
