"""A daemon on a clock that is really set: in a kernel of its own (user-mode Linux), so that the host's is left alone.

That process is started without CAP_SYS_TIME: whatever the code in it did, it could not set the host's clock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent

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
        for by in (0.005, -0.05, 3600, -3600):
            era = daemon.node.wall.era
            time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + by)
            end = time.monotonic() + 20
            while daemon.node.wall.era == era and time.monotonic() < end:
                await asyncio.sleep(0.001)
            print("STEP", by, daemon.node.wall.era - era, daemon.node.wall.last_step_ns)

asyncio.run(main())
"""


@pytest.mark.skipif(shutil.which("linux.uml") is None, reason="user-mode-linux is not installed")
@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="needs root and setpriv")
def test_the_kernel_tells_of_every_real_step(tmp_path: Path) -> None:
    (tmp_path / "inside.py").write_text(_INSIDE)
    out, init = tmp_path / "out", tmp_path / "init.sh"
    init.write_text(
        "#!/bin/sh\n"
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run\n"
        f"PYTHONPATH={CHECKOUT} HOME={tmp_path} {sys.executable} {tmp_path}/inside.py >{out} 2>&1\n"
        "echo o >/proc/sysrq-trigger\nsleep 60\n"
    )
    init.chmod(0o755)
    uml = ["linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", "quiet"]
    command = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", *uml, "con=null", "con0=null,fd:1"]
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True, env=environment
        )
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not out.exists():
        pytest.skip("user-mode Linux does not start here: " + (tmp_path / "console").read_text(errors="replace")[-300:])
    said = [line.split() for line in out.read_text().splitlines() if line.startswith(("BY", "STEP"))]
    assert said[0] == ["BY", "timerfd"], out.read_text()
    assert len(said) == 5, out.read_text()
    for _, by, eras, size in said[1:]:
        assert int(eras) == 1
        assert abs(int(size) - float(by) * 1e9) < 2_000_000
