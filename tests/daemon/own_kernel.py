"""Runs Python in a kernel of its own (user-mode Linux), whose clock may be set: the host's is left alone.

That process is started without CAP_SYS_TIME: whatever the code in it did, it could not set the host's clock.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import LIMIT_S

CHECKOUT = Path(__file__).parent.parent.parent


class NoKernelError(Exception):
    """User-mode Linux is not to be had here; the text says why."""


def run_in_own_kernel(code: str, directory: Path, *arguments: str) -> str:
    """What ``code`` prints as the only program of a fresh kernel, on this machine's files.

    Args:
        directory: for its files; they stay.

    Raises:
        NoKernelError: it can't be started here.
    """
    missing = [tool for tool in ("linux.uml", "setpriv") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        raise NoKernelError(f"needs root, user-mode-linux and setpriv; missing: {', '.join(missing) or 'root'}")
    (directory / "inside.py").write_text(code)
    out, init, console = directory / "out", directory / "init.sh", directory / "console"
    init.write_text(
        "#!/bin/sh\n"
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run\n"
        f"PYTHONPATH={CHECKOUT} HOME={directory} {sys.executable} {directory}/inside.py {' '.join(arguments)}"
        f" >{out} 2>&1\n"
        "echo o >/proc/sysrq-trigger\nsleep 60\n"
    )
    init.chmod(0o755)
    uml = ["linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", "quiet"]
    command = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time", *uml, "con=null", "con0=null,fd:1"]
    environment = {**os.environ, "HOME": str(directory), "TMPDIR": str(directory)}
    with console.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
        try:
            process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not out.exists():
        raise NoKernelError("it does not start here: " + console.read_text(errors="replace")[-300:])
    return out.read_text()
