"""A daemon on a clock that is really set, in a kernel of its own (``own_kernel.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.own_kernel import NoKernelError, run_in_own_kernel

_INSIDE = """
import asyncio, sys, time
from pathlib import Path
from skewd import daemon as running
from skewd.clock import HostClock
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig

async def main():
    running.TICK_S = 60.0  # nobody looks: what is seen, the kernel has told
    directory = Path("/run")
    config = Config(
        node=NodeConfig(name="a", runtime_dir=directory, state_dir=directory),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
    )
    daemon = running.Daemon(config, HostClock())
    async with daemon.running():
        print("BY", daemon.status()["clock"]["steps_seen_by"])
        await asyncio.sleep(0.2)
        for by in (0.005, -0.05, 3600, -3600):
            era = daemon.node.wall.era
            time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + by)
            rounds, end = 0, time.monotonic() + 60
            while daemon.node.wall.era == era and time.monotonic() < end:
                await asyncio.sleep(0)  # one round of the event loop: it asks the kernel which descriptors are ready
                rounds += 1
            print("STEP", by, daemon.node.wall.era - era, daemon.node.wall.last_step_ns, rounds)

asyncio.run(main())
"""


@pytest.mark.long
def test_the_kernel_tells_of_every_real_step_at_once(tmp_path: Path) -> None:
    """The next time that the daemon waits for anything: what that takes is what waking up takes.

    ``benchmarks/step_latency.py`` says how long.
    """
    try:
        out = run_in_own_kernel(_INSIDE, tmp_path)
    except NoKernelError as error:
        pytest.skip(f"user-mode Linux: {error}")
    said = [line.split() for line in out.splitlines() if line.startswith(("BY", "STEP"))]
    assert said[0] == ["BY", "timerfd"], out
    assert len(said) == 5, out
    for _, by, eras, size, rounds in said[1:]:
        assert int(eras) == 1
        assert abs(int(size) - float(by) * 1e9) < 2_000_000
        assert int(rounds) <= 3, out
