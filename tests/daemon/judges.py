"""What everybody outside a daemon can see of it: exit codes, readiness, published bounds. And a server of UTC.

Daemons are processes of their own, ``skewd run`` with a file, and are judged by what they say to operators and
programs, never by their insides.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from skewd.api_client import get_status
from skewd.config import load_config
from skewd.reader import NoBound, Now
from tests.sources.test_ntp_source import packet
from tests.waiting import LIMIT_S, wait_until


class UtcServer:
    """An NTP server on loopback, whose UTC is this machine's wall clock; a thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                question, sender = self._socket.recvfrom(512)
            except OSError:
                return
            if len(question) < 48:
                return  # what close() sends
            self._socket.sendto(packet(question, time.time_ns()), sender)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join(LIMIT_S)
        self._socket.close()


@contextlib.contextmanager
def utc_source() -> Iterator[str]:
    """A [[source]] that tells UTC."""
    server = UtcServer()
    try:
        yield f'[[source]]\ntype = "ntp"\naddress = "{server.address}"\ninterval = "100ms"\n'
    finally:
        server.close()


def dead_address() -> str:
    """Where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@dataclass(frozen=True)
class Verdicts:
    """What was said at about one moment: by the check, by ``waitsync``, by ``/readyz``, and to readers of the bound."""

    check: int
    check_line: str
    waitsync: int
    waitsync_line: str
    readyz: int
    readyz_text: str
    bound: bool

    @property
    def healthy(self) -> bool:
        """Whether anybody was told that this clock may be relied upon."""
        return self.check == 0 or self.waitsync == 0 or self.readyz == 200 or self.bound

    @property
    def all_well(self) -> bool:
        """Whether everybody was told so."""
        return (self.check, self.waitsync, self.readyz, self.bound) == (0, 0, 200, True)


class RunningDaemon:
    """``skewd run`` with a configuration, by default in a process on a virtual clock."""

    def __init__(self, directory: Path, name: str, text: str, *, virtual: str | None = None) -> None:
        self.home = directory / name
        self.home.mkdir(exist_ok=True)
        self.file = directory / f"{name}.toml"
        self.file.write_text(
            f'[node]\nname = "{name}"\nruntime_dir = "{self.home}"\nstate_dir = "{self.home}"\n'
            f'[metrics]\nlisten = "127.0.0.1:0"\n{text}'
        )
        self.words = ["--config", str(self.file)]
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SKEWD_", "OTEL_"))}
        more = ["--virtual-clock", virtual] if virtual is not None else []
        self.errors = directory / f"{name}.err"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skewd", "run", *self.words, *more],
                stdout=subprocess.PIPE, stderr=errors, env=env, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("READY "), self.errors.read_text()
        self.ready: dict[str, Any] = json.loads(line.removeprefix("READY "))
        self.mesh = str(self.ready["mesh"])

    @property
    def status(self) -> dict[str, Any]:
        return get_status(load_config(self.file, {}).socket_path)

    def codes(self) -> set[str]:
        """Of the problems that it tells now."""
        return {problem["code"] for problem in self.status["problems"]}

    def has_run(self, seconds: float) -> None:
        """Waits until it has run for so long by its own word."""
        wait_until(lambda: self.status["uptime_s"] >= seconds, f"{seconds} s of running")

    def judged(self) -> Verdicts:
        """Asks everybody; the processes are the commands that operators start."""
        check = _command("check", *self.words, "--warning", "500ms", "--critical", "500ms")
        waited = _command("waitsync", *self.words, "--max-uncertainty", "500ms", "--timeout", "300ms")
        try:
            with urlopen(f"http://{self.ready['metrics']}/readyz", timeout=LIMIT_S) as answer:
                readyz, text = answer.status, answer.read().decode()
        except HTTPError as error:
            readyz, text = error.code, error.read().decode()
        try:
            Now(self.home / "clock.shm")()
            bound = True
        except NoBound as error:
            bound = "virtual" in str(error)  # it has one, for those who are on this clock
        return Verdicts(check[0], check[1], waited[0], waited[1], readyz, text, bound)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.communicate(timeout=LIMIT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()


Start = Callable[..., RunningDaemon]


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[Start]:
    """Starts daemons by name and configuration, and ends them. ``KEY`` stands for the directory's key file."""
    with contextlib.ExitStack() as stack:

        def one(name: str, text: str, **more: str) -> RunningDaemon:
            daemon = RunningDaemon(directory, name, text.replace('"KEY"', f'"{directory}/key"'), **more)
            stack.callback(daemon.close)
            return daemon

        yield one


def _command(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "skewd", *words], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr
