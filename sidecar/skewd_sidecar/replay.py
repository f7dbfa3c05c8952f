"""Sends dead letters again: what was refused for good, once the reason is mended.

The entries go to the next hop one after the other, as they are: their times were corrected when they were first sent,
and with the headers that they had. What is taken is done; what is refused again, or cannot be delivered now, is kept.

A sidecar may go on writing to the file meanwhile: it is renamed first (to ``NAME.replay``), and what is not taken is
appended under the old name. If a replay is interrupted, the next one takes up that file.

Limits: one entry at a time. What an interrupted replay had sent, the next one sends again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skewd_sidecar.endpoint import next_hops
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.dead_letters import append, read
from skewd_sidecar.forward.retry import retryable


@dataclass(slots=True)
class Replayed:
    """What became of the entries; ``why``: the last failure's message."""

    taken: int = 0
    refused: int = 0
    undelivered: int = 0
    why: str = ""


async def replay(
    path: Path,
    forward: str | Sequence[str] | None,
    environment: Mapping[str, str],
    *,
    max_bytes: int = 0,
    kafka_properties: Mapping[str, str] | None = None,
) -> Replayed:
    """Sends the entries of a dead-letter file; what is not taken stays in it.

    Args:
        path: of the file.
        forward: the next hop, or several; none for the environment's.
        environment: for ``OTEL_EXPORTER_OTLP_*``.
        max_bytes: the largest request the next hop takes; 0 for what is usual.
        kafka_properties: the Kafka client's settings.

    Raises:
        OSError: the file cannot be read or renamed.
        NotDeadLetters: it is damaged; what was not sent until there is in ``NAME.replay``.
        EndpointError: nowhere to send to, or it cannot be used.
    """
    forwarders = Forwarders(next_hops(forward, environment, max_bytes), kafka_properties=kafka_properties)
    told = Replayed()
    try:
        under_way = path.with_name(path.name + ".replay")
        if not under_way.exists():  # else an earlier replay was interrupted
            os.rename(path, under_way)
        for letter in read(under_way):
            outcome = await forwarders.send(letter.signal, letter.body, None, letter.metadata)
            if outcome.ok:
                told.taken += 1
                continue
            append(path, letter.encode())
            told.why = outcome.message
            if retryable(outcome):
                told.undelivered += 1
            else:
                told.refused += 1
        os.unlink(under_way)
    finally:
        await forwarders.close()
    return told
