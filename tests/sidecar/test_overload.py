"""More than can go on, for a few seconds: a short play of ``benchmarks/sidecar/overload.py``, and what it must show."""

from __future__ import annotations

import pytest

from benchmarks.sidecar.overload import MIB, Scene, play, unfit
from benchmarks.sidecar.work import request
from tests.shares import first

SECONDS = 1.5
SPANS = 512
HOP_SPANS_PER_S = 16_000.0
LIMIT_BYTES = 32 * MIB


@pytest.mark.parametrize("protocol", first(1, ["http", "grpc"]))
def test_a_flood_is_refused_in_words_that_keep_the_data_and_leaves_nothing_behind(protocol: str) -> None:
    connections, streams = (12, 8) if protocol == "grpc" else (96, 1)
    said = play(Scene(protocol, SPANS, HOP_SPANS_PER_S, connections, streams), SECONDS, LIMIT_BYTES)
    assert said["acknowledged"] > 0
    assert said["refused"] > 0
    assert said["lost"] == 0
    assert unfit(said) == []
    assert said["recovery_s"] is not None
    # Beside what is admitted, the transport holds what is arriving: each sender's request, in pieces and put together.
    arriving = 2 * connections * streams * len(request(SPANS))
    assert said["peak_bytes"] - said["idle_bytes"] <= said["bound_bytes"] + arriving
