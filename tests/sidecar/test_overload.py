"""More than can go on, for a few seconds: a short play of ``benchmarks/sidecar/overload.py``, and what it must show."""

from __future__ import annotations

import pytest

from benchmarks.sidecar.overload import Scene, play, unfit
from skewd_sidecar.relay import BYTES_MAX, REQUESTS_MAX

SECONDS = 1.5
SPANS = 128
HOP_SPANS_PER_S = 8000.0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_flood_is_refused_in_words_that_keep_the_data_and_leaves_nothing_behind(protocol: str) -> None:
    connections, streams = (24, 8) if protocol == "grpc" else (192, 1)
    assert connections * streams > REQUESTS_MAX
    said = play(Scene(protocol, SPANS, HOP_SPANS_PER_S, connections, streams), SECONDS)
    assert said["acknowledged"] > 0
    assert said["refused"] > 0
    assert said["lost"] == 0
    assert unfit(said) == []
    assert said["recovery_s"] is not None
    assert said["peak_bytes"] - said["idle_bytes"] <= BYTES_MAX
