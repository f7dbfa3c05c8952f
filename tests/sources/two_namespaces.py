"""Two network namespaces with a wire between them, and programs that run in them; all of it gone at the end.

Needs root and iproute2; :func:`two_namespaces` skips the test, and says so, where they lack. What runs there runs
without CAP_SYS_TIME: nothing a test starts can touch this machine's clock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
NEAR = "10.77.0.1"
FAR = ("10.77.0.2", "10.77.0.3", "10.77.0.4")
NEAR_6 = "fd77::1"
FAR_6 = "fd77::2"


@dataclass
class Namespaces:
    """``near`` has one address, ``far`` has three (and one of IPv6 each)."""

    near: str
    far: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, where: str, arguments: Sequence[str]) -> list[str]:
        """``arguments`` as run in a namespace."""
        drop = ["setpriv", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time"]
        return ["ip", "netns", "exec", where, *drop, *arguments]

    def start(self, where: str, arguments: Sequence[str], *, log: Path) -> subprocess.Popen[str]:
        """Start a program in a namespace; its standard output is the caller's to read, its errors are in ``log``."""
        with log.open("w") as errors:
            process = subprocess.Popen(
                self.command(where, arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            )
        self.started.append(process)
        return process

    def python(self, where: str, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """The same, of a Python program; returns once it has said ``READY``."""
        process = self.start(where, [sys.executable, "-u", *arguments], log=log)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("READY"), f"{arguments} said {line!r}\n{log.read_text()}"
        return process


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=LIMIT_S)


@contextlib.contextmanager
def two_namespaces() -> Iterator[Namespaces]:
    """Made, connected, and taken down again with all that was started in them."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("setpriv"):
        pytest.skip("needs root, iproute2 and setpriv to make network namespaces")
    made = Namespaces(f"skewd-{os.getpid()}-n", f"skewd-{os.getpid()}-f")
    with contextlib.ExitStack() as stack:
        try:
            for name in (made.near, made.far):
                _ip("netns", "add", name)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, timeout=LIMIT_S)
            _ip("link", "add", "w0", "netns", made.near, "type", "veth", "peer", "name", "w0", "netns", made.far)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, four, six in ((made.near, [NEAR], NEAR_6), (made.far, FAR, FAR_6)):
            for address in four:
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "w0")
            _ip("-n", name, "address", "add", f"{six}/64", "dev", "w0", "nodad")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "w0", "up")
        stack.callback(_end, made.started)
        yield made


def _end(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
