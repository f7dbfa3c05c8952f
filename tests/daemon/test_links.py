"""Daemons that know each other over one ``[[link]]`` and nothing else; and what they say of one that is not there."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from skewd.clock import VirtualClock, VirtualPage
from skewd.config import Config, LinkConfig, MeshConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.failures import StartError
from skewd.keys import generate_key_file, rotate_key_file
from skewd.status_view import render_status
from skewd_pipeline.kafka_broker import free_ports, open_broker
from tests.daemon.test_daemon import MS, Bench
from tests.links.media import free_udp_ports, fresh_topic
from tests.waiting import until

NAMES = ("a", "b")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        async with contextlib.AsyncExitStack() as stack:
            yield Bench(Path(name), stack)


@pytest.fixture(params=["zmq", "kafka", "aeron"])
def links(request: pytest.FixtureRequest) -> Iterator[dict[str, LinkConfig]]:
    """The one link of each of two nodes, or of more."""
    if request.param == "zmq":
        ports = free_ports(2)
        # Bound beyond loopback, so it is CURVE that they speak.
        places = [f"tcp://0.0.0.0:{port}" for port in ports]
        peers = [(f"tcp://127.0.0.1:{ports[1]}",), ()]
        yield {
            name: LinkConfig(transport="zmq", address=place, peers=there)
            for name, place, there in zip(NAMES, places, peers, strict=True)
        }
    elif request.param == "kafka":
        with open_broker(prefer="mock") as broker:
            link = LinkConfig(transport="kafka", address=broker.bootstrap, topic=fresh_topic())
            yield dict.fromkeys(NAMES, link)
    else:
        pytest.importorskip("pyaeron", reason="pyaeron is not here: it needs Python 3.12 and x86_64")
        one, other = (f"127.0.0.1:{port}" for port in free_udp_ports(2))
        yield {
            "a": LinkConfig(transport="aeron", address=one, peers=(other,)),
            "b": LinkConfig(transport="aeron", address=other, peers=(one,), stream=9957),
        }


async def test_one_link_is_enough(bench: Bench, links: dict[str, LinkConfig]) -> None:
    key = bench.root / "mesh.key"
    generate_key_file(key)
    mesh = MeshConfig(listen=None, interval=100 * MS, reference="a", key_file=key)
    a, b = [await bench.start(name, offset_ns=5 * MS * (name == "b"), mesh=mesh, link=(links[name],)) for name in NAMES]
    told = await until(lambda: (said := b.status())["offset_ns"] is not None and said, "a bound")
    assert told["lower_ns"] <= -5 * MS <= told["upper_ns"]
    assert told["reference"] == "node:a"
    peers = await until(lambda: [peer for peer in a.status()["peers"] if peer["offset_ns"] is not None], "one at a")
    assert peers[0]["lower_ns"] <= 5 * MS <= peers[0]["upper_ns"]
    assert peers[0]["link"] == links["a"].transport
    (row,) = b.status()["links"]
    assert (row["transport"], row["trouble"], row["direction"]) == (links["b"].transport, None, "both")
    assert row["counters"]["accepted"] > 0
    assert f"{links['b'].transport}  " in render_status(b.status())

    # A key that changes under them reaches this link, too.
    rotate_key_file(key)
    for daemon in (a, b):
        daemon.reload_keys()
    rotate_key_file(key)
    a.reload_keys()
    accepted = b.status()["links"][0]["counters"]["accepted"]
    await until(lambda: b.status()["links"][0]["counters"]["accepted"] > accepted + 3, "messages with the new key")
    assert b.status()["links"][0]["counters"]["wrong_key"] == 0


async def test_a_broker_that_is_not_there_keeps_nobody_from_starting(bench: Bench) -> None:
    (port,) = free_ports(1)
    link = LinkConfig(transport="kafka", address=f"127.0.0.1:{port}", topic="t", direction="receive")
    a = await bench.start("a", mesh=MeshConfig(listen=None, reference="a", key="none"), link=(link,))
    said = await until(lambda: [line for line in a.status()["messages"] if "no Kafka broker answers" in line], "a word")
    assert said[0].startswith(f"link kafka 127.0.0.1:{port}: ")
    screen = render_status(a.status())
    assert "down, receives only" in screen
    assert "no Kafka broker answers" in screen


@pytest.mark.parametrize(
    ("link", "module", "says"),
    [
        (LinkConfig(transport="kafka", address="127.0.0.1:9", topic="t"), "confluent_kafka", r"'skewd\[kafka\]'"),
        (LinkConfig(transport="zmq", address="tcp://127.0.0.1:0"), "zmq", r"'skewd\[zmq\]'"),
        (LinkConfig(transport="aeron", address="aeron:ipc"), "pyaeron", "pyaeron"),
    ],
)
async def test_a_library_that_is_missing_is_one_line(
    bench: Bench, link: LinkConfig, module: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = Config(
        node=NodeConfig(name="a", runtime_dir=bench.root / "a", state_dir=bench.root),
        mesh=MeshConfig(listen=None, key="none"),
        link=(link,),
    )
    with pytest.raises(StartError, match=says) as refused:
        async with Daemon(config, VirtualClock(VirtualPage.create(None))).running():
            pass
    assert "\n" not in str(refused.value)
