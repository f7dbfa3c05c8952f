"""Four real daemons in a keyed mesh, two of which never exchange a message: what each door of the daemon tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from skewd.cli import main
from skewd.config import MeshConfig
from skewd.keys import generate_key_file, rotate_key_file
from tests.daemon.test_daemon import MS, Bench
from tests.waiting import until


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        yield Path(name)


@pytest.fixture
async def bench(short: Path) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        yield Bench(short, stack)


async def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """A command's exit code and what it printed, while the daemons go on."""
    capsys.readouterr()
    code = await asyncio.to_thread(main, list(words))
    return code, capsys.readouterr().out


async def test_a_member_that_is_never_asked_is_told_by_all_doors(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    key = bench.root / "mesh.key"
    generate_key_file(key)
    rotate_key_file(key)  # two keys are in use, as in the midst of a rotation

    def mesh(*peers: str) -> MeshConfig:
        return MeshConfig(listen="127.0.0.1:0", peers=peers, interval=100 * MS, key_file=key)

    middle = []
    for name in ("b", "c"):
        await bench.start(name, offset_ns=-3 * MS, mesh=mesh())
        middle.append(bench.addresses[name]["mesh"])
    a = await bench.start("a", mesh=mesh(*middle))
    await bench.start("d", offset_ns=8 * MS, mesh=mesh(*middle))

    def row() -> dict[str, Any] | None:
        found = [row for row in a.status()["peers"] if row["name"] == "d" and row["lower_ns"] is not None]
        return found[0] if found else None

    told = await until(row, "a bound on a member that is never asked")
    assert told["trust"] == "composed"
    assert sorted(told["path"]) == [["b", "d"], ["c", "d"]]
    assert told["lower_ns"] <= 8 * MS <= told["upper_ns"]
    assert {row["link"] for row in a.status()["peers"] if row["trust"] == "first-hand"} == {"udp"}
    await until(lambda: a.status()["mesh"]["agreed"] and a.status()["mesh"]["members"] == 4, "agreement")

    file = bench.root / "a.toml"
    file.write_text(
        f'[node]\nname = "a"\nruntime_dir = "{bench.root}/a"\nstate_dir = "{bench.root}"\n[mesh]\nkey_file = "{key}"\n'
    )
    code, out = await said(
        capsys, "check", "--peer", "d", "--warning", "5ms", "--critical", "7ms", "--config", str(file)
    )
    assert (code, out.split(":")[0]) == (2, "CRITICAL")
    assert "[composed via b, c]" in out or "[composed via c, b]" in out
    code, out = await said(capsys, "status", "--config", str(file))
    assert code == 0
    assert "\nmesh\n  members       4; 3 of the others bounded" in out
    assert ", named by all\n" in out
    assert "composed via " in out
    async with aiohttp.ClientSession() as http, http.get(f"http://{bench.addresses['a']['metrics']}/metrics") as answer:
        text = await answer.text()
    assert 'skewd_peer_offset_upper_seconds{peer="d"}' in text
    assert 'skewd_peer_last_exchange_timestamp_seconds{peer="d"}' not in text
    assert "\nskewd_mesh_members 4.0\n" in text
    async with aiohttp.ClientSession() as http, http.get(f"http://{bench.addresses['a']['metrics']}/") as answer:
        assert answer.status == 200

    # A stranger who holds the key is answered, padded requests and all, and nobody takes it for a member.
    code, out = await said(capsys, "probe", middle[0], "--as", "peer", "--json", "--config", str(file))
    probed = json.loads(out)
    assert (code, probed["name"]) == (0, "b")
    count = bench.daemons["b"].status()["mesh"]["records"]["accepted"]
    await until(lambda: bench.daemons["b"].status()["mesh"]["records"]["accepted"] > count + 6, "more rounds")
    status = bench.daemons["b"].status()
    assert status["mesh"]["members"] == 4
    assert {row["name"] for row in status["peers"]} == {"a", "c", "d"}
    assert status["mesh"]["convicted"] == status["mesh"]["disputed"] == []
