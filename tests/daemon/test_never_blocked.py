"""The loop of a real daemon is never blocked, and nobody waits for what hangs: names, disks, readers of logs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd.keys import generate_key_file
from tests.daemon.hanging import DEAD_NAMES, Running


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skn") as name:
        yield Path(name)


def test_dead_names_hold_back_no_living_one_and_no_end(short: Path) -> None:
    generate_key_file(short / "key")
    mesh = f'[mesh]\nlisten = "127.0.0.1:0"\ninterval = "100ms"\nkey_file = "{short}/key"\n'
    a = Running(short / "a", mesh + 'reference = "a"\n', name="a")
    try:
        port = a.ready().addresses["mesh"].rpartition(":")[2]
        peers = [f"{number}.dead:9957" for number in range(8)] + [f"localhost:{port}"]
        config = (
            mesh + f'reference = "a"\npeers = {peers}\ndns = "all.dead:9957"\n'
            '[[source]]\ntype = "ntp"\nname = "s"\naddress = "time.dead"\n'
            f'[[source]]\ntype = "ntp"\nname = "t"\naddress = "localhost:{port}"\n'  # which is no NTP server
        )
        b = Running(short / "b", config, DEAD_NAMES, name="b")
        try:
            b.ready()
            b.until_told(lambda told: any(row["offset_ns"] is not None for row in told["peers"]), "the living peer")
            told = b.until_told(lambda told: told["sources"][1]["server"] is not None, "the living source")
            assert told["sources"][0]["server"] is None
            assert b.stop() == 0  # before any of the names is resolved
        finally:
            b.kill()
        assert a.stop() == 0
    finally:
        a.kill()
