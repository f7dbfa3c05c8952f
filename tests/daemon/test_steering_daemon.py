"""Real daemons that steer a virtual node's clock: over real sockets, with a real state file, killed and restored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd import discipline
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.config import Config, DisciplineConfig, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.kernel_clock import frequency_of
from skewd.keys import generate_key_file
from tests.waiting import LIMIT_S, until, wait_until

MS = 1_000_000
SLEW = DisciplineConfig(mode="slew")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        generate_key_file(Path(name) / "key")
        yield Path(name)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of watching instead of a minute."""
    monkeypatch.setattr(discipline, "ANNOUNCE_NS", 1_000 * MS)


def mesh(root: Path, *peers: str) -> MeshConfig:
    """With a key: by a mesh without one no clock is steered."""
    return MeshConfig(listen="127.0.0.1:0", peers=peers, interval=250 * MS, reference="a", key_file=root / "key")


def node(root: Path, name: str) -> NodeConfig:
    return NodeConfig(name=name, runtime_dir=root / name, state_dir=root)


@pytest.fixture
async def reference(short: Path) -> AsyncIterator[tuple[VirtualPage, str]]:
    """Node a: its clock's page, and its address."""
    page = VirtualPage.create(None)
    config = Config(node=node(short, "a"), mesh=mesh(short), metrics=MetricsConfig(listen=None))
    async with Daemon(config, VirtualClock(page)).running() as addresses:
        yield page, addresses["mesh"]


def ahead(page: VirtualPage, of: VirtualPage) -> tuple[int, int]:
    """page's wall clock minus the other's: at least, at most."""
    before = of.wall_ns()
    here = page.wall_ns()
    return here - of.wall_ns(), here - before


async def test_a_daemon_leads_its_clock_to_the_reference(short: Path, reference: tuple[VirtualPage, str]) -> None:
    there, address = reference
    here = VirtualPage.create(short / "page", offset_ns=20 * MS, epoch_ns=10**15, steerable=True)
    found = frequency_of(3_000)
    here.adjust(frequency=found)
    config = Config(
        node=node(short, "b"), mesh=mesh(short, address), metrics=MetricsConfig(listen="127.0.0.1:0"), discipline=SLEW
    )
    daemon = Daemon(config, VirtualClock(here))
    async with daemon.running():
        told = await until(
            lambda: (
                (s := daemon.status())["discipline"]["state"] == "steering"
                and s["discipline"]["rate_ppb"] < -300_000
                and s
            ),
            "that it steers",
        )
        assert told["discipline"]["found_ppb"] == pytest.approx(3_000, abs=1)
        assert told["messages"][1:] == []
        kernel = here.read()
        assert kernel is not None
        assert kernel.frequency < 0
        assert (short / "steering-b").exists()
        began = ahead(here, there)
        for _ in range(50):
            before, said, after = ahead(here, there), daemon.status(), ahead(here, there)
            # reference - wall moved from the one to the other while it was said.
            assert said["lower_ns"] <= -min(before[0], after[0])
            assert said["upper_ns"] >= -max(before[1], after[1])
            await asyncio.sleep(0.02)
        await until(lambda: ahead(here, there)[1] < began[0], "that it comes nearer")
    kernel = here.read()
    assert kernel is not None
    assert kernel.frequency == found
    assert not (short / "steering-b").exists()


async def test_another_hand_is_said(short: Path, reference: tuple[VirtualPage, str]) -> None:
    here = VirtualPage.create(None, offset_ns=20 * MS, epoch_ns=10**15, steerable=True)
    followed = mesh(short, reference[1])
    config = Config(node=node(short, "b"), mesh=followed, metrics=MetricsConfig(listen=None), discipline=SLEW)
    daemon = Daemon(config, VirtualClock(here))
    async with daemon.running():
        await until(lambda: (daemon.status()["discipline"]["rate_ppb"] or 0) < -300_000, "that it steers")
        here.adjust(frequency=frequency_of(42_000))
        told = await until(lambda: (s := daemon.status())["discipline"]["state"] == "stopped" and s, "that it ends")
        assert any("another hand moved the kernel's frequency" in message for message in told["messages"])
    kernel = here.read()
    assert kernel is not None
    assert kernel.frequency == frequency_of(42_000), "it is another's, and left alone"


@pytest.mark.parametrize("clock", ["virtual", "host"])
async def test_what_cannot_steer_says_so_and_goes_on(
    short: Path, reference: tuple[VirtualPage, str], clock: str
) -> None:
    """A virtual clock without an emulated kernel; and this machine's, which no test may set (``conftest.py``)."""
    followed = mesh(short, reference[1])
    config = Config(node=node(short, "b"), mesh=followed, metrics=MetricsConfig(listen=None), discipline=SLEW)
    daemon = Daemon(config, VirtualClock(VirtualPage.create(None)) if clock == "virtual" else HostClock())
    async with daemon.running():
        told = daemon.status()
        assert told["discipline"]["state"] == "unable"
        says = "emulates no kernel to steer" if clock == "virtual" else "lacks CAP_SYS_TIME"
        assert [message for message in told["messages"] if says in message]
        await until(lambda: daemon.status()["offset_ns"] is not None, "a bound all the same")


async def test_what_a_dead_daemon_left_is_undone_by_the_next(short: Path) -> None:
    here = VirtualPage.create(short / "page", steerable=True)
    here.adjust(frequency=77)
    # Not even steering itself.
    config = Config(node=node(short, "b"), mesh=mesh(short), metrics=MetricsConfig(listen=None))
    daemon = Daemon(config, VirtualClock(here))
    left = discipline.Left(daemon.node.boot.hex(), -5, (77,), 10_000)
    (short / "steering-b").write_bytes(discipline.encode(left))
    async with daemon.running():
        kernel = here.read()
        assert kernel is not None
        assert kernel.frequency == -5
        assert daemon.status()["discipline"]["state"] == "off"
    assert not (short / "steering-b").exists()


# -- in processes of their own ---------------------------------------------------------------------------------------

_RUN = (
    "import sys; from skewd import discipline; discipline.ANNOUNCE_NS = 10**9;"
    " from skewd.cli import main; sys.exit(main(sys.argv[1:]))"
)
_POWERLESS = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"] if os.geteuid() == 0 else []


@pytest.mark.long
@pytest.mark.skipif(bool(_POWERLESS) and shutil.which("setpriv") is None, reason="needs setpriv, as root")
def test_a_killed_daemon_is_restored_by_the_command(short: Path) -> None:
    here = VirtualPage.create(short / "page", offset_ns=60 * MS, epoch_ns=10**15, steerable=True)
    here.adjust(frequency=frequency_of(-8_000))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SKEWD_", "OTEL_"))}

    def command(name: str, *words: str, peers: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
        more = {
            "SKEWD_NODE__NAME": name,
            "SKEWD_NODE__RUNTIME_DIR": f"{short}/{name}",
            "SKEWD_NODE__STATE_DIR": str(short),
            "SKEWD_MESH__LISTEN": "127.0.0.1:0",
            "SKEWD_MESH__KEY_FILE": str(short / "key"),
            "SKEWD_MESH__INTERVAL": "500ms",
            "SKEWD_MESH__REFERENCE": "a",
            "SKEWD_MESH__PEERS": json.dumps(peers),
            "SKEWD_METRICS__LISTEN": "off",
        }
        if peers:
            more["SKEWD_DISCIPLINE__MODE"] = "slew"
        return [*_POWERLESS, sys.executable, "-c", _RUN, *words], {**env, **more}

    def frequency() -> int:
        kernel = here.read()
        assert kernel is not None
        return kernel.frequency

    with contextlib.ExitStack() as stack:

        def start(words: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen[str], dict[str, Any]]:
            process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY "), line
            return process, json.loads(line.removeprefix("READY "))

        _, ready = start(*command("a", "run", "--virtual-clock", "offset=0ms"))
        page = f"page={short}/page"
        b, _ = start(*command("b", "run", "--virtual-clock", page, peers=(ready["mesh"],)))
        # A minute and a half would pass before it came to rest.
        wait_until(lambda: frequency() < frequency_of(-300_000), "that it steers")

        words, environment = command("b", "status", peers=(ready["mesh"],))
        screen = subprocess.run(
            words, env=environment, check=True, capture_output=True, text=True, timeout=LIMIT_S
        ).stdout
        assert "  steered by    skewd, -" in screen
        words, environment = command("b", "status", "-f", "prometheus", peers=(ready["mesh"],))
        metrics = subprocess.run(
            words, env=environment, check=True, capture_output=True, text=True, timeout=LIMIT_S
        ).stdout
        assert 'skewd_discipline_state{state="waiting"} 0.0' in metrics
        assert "skewd_discipline_rate_ratio -0.000" in metrics

        restore = command("b", "discipline", "restore", "--virtual-clock", page)

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                restore[0], env=restore[1], check=False, capture_output=True, text=True, timeout=LIMIT_S
            )

        running = run()
        assert (running.returncode, "another skewd" in running.stderr) == (1, True)  # it restores when it ends
        b.send_signal(signal.SIGKILL)
        b.wait()
        assert frequency() != frequency_of(-8_000)
        done = run()
        assert (done.returncode, done.stderr) == (0, "")
        assert "restored" in done.stdout
        assert done.stdout.strip().endswith("to -8.0 ppm")
        assert frequency() == frequency_of(-8_000)
        assert run().stdout == "skewd: nothing was left to restore\n"
