"""In-band only: what nodes are configured with, and what their daemons exchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from skewd.config import parse_config
from skewd_pipeline.inband import InBand, messages_used
from skewd_pipeline.nodes import node_toml


def toml(only: InBand | None, tmp_path: Path) -> str:
    return node_toml(
        "inference", tmp_path, key=tmp_path / "key", peers=(), reference="preprocess", link="ipc:///tmp/l", only=only
    )


@pytest.mark.parametrize("transport", ["zmq", "aeron", "kafka"])
def test_a_node_speaks_no_udp_and_believes_the_one_path_there_is(transport: str, tmp_path: Path) -> None:
    only = InBand(transport, "127.0.0.1:9092", "clocks") if transport == "kafka" else InBand(transport)
    config = parse_config(toml(only, tmp_path).encode(), Path("node.toml"), {}).config
    assert (config.mesh.listen, config.mesh.liars, config.mesh.peers) == (None, 0, ())
    links = [(link.transport, link.address, link.topic) for link in config.link]
    assert links[0] == ("zmq", "ipc:///tmp/l", None)
    assert links[1:] == ([("kafka", "127.0.0.1:9092", "clocks")] if transport == "kafka" else [])


def test_otherwise_udp_is_on(tmp_path: Path) -> None:
    config = parse_config(toml(None, tmp_path).encode(), Path("node.toml"), {}).config
    assert config.mesh.listen == "127.0.0.1:0"
    assert config.mesh.liars == 1


def test_the_daemons_counters_are_summed_over_nodes_and_links() -> None:
    statuses: list[dict[str, object]] = [
        {"links": [{"counters": {"requests": 1, "stamps": 2, "else": 9}}, {"counters": {"requests": 3}}]},
        {"links": [{"counters": {"accepted": 5}}]},
        {},
    ]
    assert messages_used(statuses) == {"requests": 4, "stamps": 2, "accepted": 5}
