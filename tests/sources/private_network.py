"""A network of a test's own, for real time daemons: they can neither reach nor disturb anything outside it.

Every process started in it has lost CAP_SYS_TIME, so that nothing can set this machine's clock, and dies with the
tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

from tests.waiting import LIMIT_S

_TOOLS = ("unshare", "nsenter", "setpriv", "ip")
_POWERLESS = ("setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_time", "--inh-caps=-sys_time")


def missing(*programs: str) -> list[str]:
    """What this machine lacks for it, and which of the named programs; in words."""
    lacks = [f"the program {name}" for name in (*_TOOLS, *programs) if not shutil.which(name)]
    if os.geteuid() != 0:
        lacks.append("root")
    if not lacks and subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        lacks.append("permission to make a network namespace")
    return lacks


class PrivateNetwork:
    """A context manager: a network namespace with loopback up.

    Args:
        scratch: an existing directory, for what the daemons write.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started: list[subprocess.Popen[bytes]] = []
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(
            [*_POWERLESS, "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*reversed(self._started), self._holder]:
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()

    @property
    def pid(self) -> int:
        """A process in it, by which others can name it."""
        assert self._holder is not None
        return self._holder.pid

    def run(self, *command: str) -> None:
        """Runs a command in it to its end.

        Raises:
            CalledProcessError: it failed.
        """
        subprocess.run([*self._inside(), *command], check=True, timeout=LIMIT_S)

    def start(self, name: str, *command: str) -> Path:
        """Starts a command in it; what it says goes to the file that is returned."""
        said = self._scratch / f"{name}.log"
        with said.open("wb") as log:
            self._started.append(subprocess.Popen([*self._inside(), *command], stdout=log, stderr=log))
        return said

    def _inside(self) -> list[str]:
        return [*_POWERLESS, "nsenter", f"--target={self.pid}", "--net"]
