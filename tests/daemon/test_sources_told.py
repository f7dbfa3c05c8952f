"""What the daemon tells of its time servers beyond their bounds."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from skewd.clock import VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from tests.sources.test_ntp_source import Server, packet
from tests.waiting import LIMIT_S


async def test_an_announced_leap_second_is_said_with_the_source_that_says_so() -> None:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Server(lambda question, received: [packet(question, received, leap=1)]), local_addr=("127.0.0.1", 0)
    )
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        config = Config(
            node=NodeConfig(name="a", runtime_dir=Path(name), state_dir=Path(name)),
            mesh=MeshConfig(listen=None),
            metrics=MetricsConfig(listen=None),
            source=(SourceConfig(type="ntp", name="n", address=server.address, interval=100_000_000),),
        )
        daemon = Daemon(config, VirtualClock(VirtualPage.create(None)))
        try:
            async with daemon.running(), asyncio.timeout(LIMIT_S):
                while (row := daemon.status()["sources"][0])["leap"] != "insert":
                    await asyncio.sleep(0.02)
                assert (row["stratum"], row["server"], row["counters"]["kiss"]) == (1, server.address, 0)
                said = daemon.status()["messages"]
                assert any("source n announces a leap second (insert)" in message for message in said)
        finally:
            transport.close()
