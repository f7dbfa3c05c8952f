"""Real daemons, in processes of their own, for which something hangs for ever: a resolver, or a disk.

The stand-ins are put under the standard library's names before anything of skewd is loaded, so that nothing of skewd
knows of them. What hangs in them hangs as in the kernel: it can't be interrupted, nor taken back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pytest

from skewd.api_client import NoDaemonError, get_status
from tests.waiting import LIMIT_S, wait_until

DEAD_NAMES = """
import socket, threading
found = socket.getaddrinfo
def resolve(host, *more, **options):
    if str(host).endswith(".dead"):
        threading.Event().wait()
    return found(host, *more, **options)
socket.getaddrinfo = resolve
"""
"""Whatever ends in ``.dead`` is never resolved."""

HUNG_DISK = """
import os, threading, time
from pathlib import Path
from skewd import daemon
daemon.HOUSEKEEPING_NS = 50_000_000
try:
    from skewd import background
    background.OVERDUE_S = 0.2
except ImportError:
    pass
opened = os.open
def hanging(path, flags, *more, **options):
    if Path(str(path)).parent.name == "state" and (Path(str(path)).parent.parent / "hangs").exists():
        threading.Event().wait()
    return opened(path, flags, *more, **options)
os.open = hanging
"""
"""Whatever opens a file in the directory ``state`` hangs, once there is a file ``hangs`` beside it."""

OFTEN = """
from skewd import daemon
daemon.HOUSEKEEPING_NS = 50_000_000
"""
"""What is done every ten seconds is done twenty times a second."""

_RUN = """
import sys
from skewd.cli import main
sys.exit(main())
"""


class Running:
    """``skewd run`` with a stand-in.

    Args:
        directory: for its files; short, since it holds a Unix socket.
        config: TOML without ``[node]``, ``[metrics]`` and ``[log]``.
        stand_in: Python text that is run first.
        through: a command that the daemon is started by.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        stand_in: str = "",
        *,
        name: str = "n",
        through: Iterable[str] = (),
        stderr: int | IO[Any] | None = subprocess.PIPE,
    ) -> None:
        self.directory, self.runtime = directory, directory / "run"
        directory.mkdir(exist_ok=True)
        file = directory / "skewd.toml"
        file.write_text(
            f'[node]\nname = "{name}"\nruntime_dir = "{self.runtime}"\nstate_dir = "{directory / "state"}"\n'
            f'[metrics]\nlisten = "127.0.0.1:0"\n{config}'
        )
        words = [sys.executable, "-c", stand_in + _RUN, "run", "--config", str(file)]
        self.process = subprocess.Popen([*through, *words], stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.addresses: dict[str, Any] = {}

    def ready(self) -> Running:
        """Waits until it says so."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("READY "), (line, self.process.stderr and self.process.stderr.read())
        self.addresses = json.loads(line.removeprefix("READY "))
        return self

    @property
    def socket(self) -> Path:
        return self.runtime / "skewd.sock"

    def status(self) -> dict[str, Any]:
        """What it tells; empty while it does not."""
        try:
            return get_status(self.socket)
        except NoDaemonError:
            return {}

    def until_told(self, condition: Any, what: str) -> dict[str, Any]:
        """Waits until its status fulfils ``condition``."""

        def told() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"the daemon ended while waiting for {what}"
            status = self.status()
            return status if status and condition(status) else None

        return dict(wait_until(told, what))

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def with_little_room(directory: Path, size: str) -> list[str]:
    """What starts a command that has a file system of so little room in ``directory``, of its own. Skips without."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare")
    prefix = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} none "$0" && exec "$@"', str(directory)]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace")
    return prefix
