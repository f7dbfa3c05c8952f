"""A network of a test's own, with daemons, time servers that lie and truths that are known; and the judges.

The network is a namespace with nothing but loopback in it, made by a thread of this process: daemons listen on their
default ports, beside those of other tests and of this machine. UTC is the host's wall clock here. Each daemon's wall
clock is that plus what its page says (``--virtual-clock``, or ``machine.py``), so what it should say is known at any
instant, and :meth:`Daemon.look` compares everything that it tells with it: ``skewd check``, ``skewd now``, ``/readyz``,
the status, and the published segment.

Needs root, for the namespaces; ``lacking()`` says what else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from skewd import cli
from skewd.api_client import NoDaemonError, get_now, get_status
from skewd.clock import HostClock, VirtualClock, VirtualPage
from skewd.interval import Interval
from skewd.reader import NoBound, Now
from tests import waiting
from tests.failsafe.machine import Machine
from tests.sources.test_local_sources import number, tracking
from tests.sources.test_ntp_source import packet

ROOT = Path(__file__).parents[2]
S = 1_000_000_000
HOUR_NS = 3600 * S
WIDE = ("--warning", "500ms", "--critical", "800ms")
"""Thresholds that a correct bound keeps on a machine of any speed, and none of the lies told here does."""

SURE = "500ms"
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_ROUNDING_NS = 2_000
_HOST = HostClock()
_POWERLESS = ("setpriv", "--pdeathsig", "KILL", "--bounding-set", "-sys_time", "--inh-caps", "-sys_time")


def lacking() -> str:
    """What this machine lacks for it, in words; empty when it can."""
    if os.geteuid() != 0:
        return "root"
    lacks = [name for name in ("setpriv", "unshare", "mount") if not shutil.which(name)]
    if lacks:
        return f"the program {lacks[0]}"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True)
    return "permission to make namespaces" if tried.returncode else ""


class NotStarted(AssertionError):
    """A daemon refused to start; the message has what it said."""


class Lab:
    """The network and all that is in it; a context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.nodes: dict[str, Daemon] = {}

    def __enter__(self) -> Self:
        self.root = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="skf")))
        made: list[int] = []
        maker = threading.Thread(target=lambda: made.append(_new_network()))
        maker.start()
        maker.join()
        if not made:
            self._stack.close()
            raise OSError("no network namespace can be made here")
        self._network = made[0]
        self._stack.callback(os.close, self._network)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.kill()
        self._stack.close()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread in the network: its sockets and children stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as here:
            if libc.setns(self._network, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "can't enter the network")
            try:
                yield
            finally:
                if libc.setns(here.fileno(), _CLONE_NEWNET):
                    os._exit(70)  # a thread in the wrong network would spoil whatever it does next

    def listen(self, host: str, port: int) -> socket.socket:
        """A UDP socket there, closed with the lab."""
        with self.inside():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
        self._stack.callback(made.close)
        return made

    def serve(self, host: str, port: int, answer: Callable[[bytes], list[bytes]]) -> None:
        """Answers every datagram there as told, from a thread that ends with the lab."""
        listener = self.listen(host, port)
        listener.settimeout(0.05)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    data, source = listener.recvfrom(2048)
                    for reply in answer(data):
                        listener.sendto(reply, source)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(ended.set)

    def get(self, address: str, path: str) -> int:
        """The status code of an HTTP request there; 0 when nobody answers."""
        host, _, port = address.rpartition(":")
        with self.inside():
            out = socket.socket()
        with out, contextlib.suppress(OSError, IndexError, ValueError):
            out.settimeout(2)
            out.connect((host, int(port)))
            out.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return int(out.recv(64).split()[1])
        return 0


def _new_network() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "can't make a network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class TimeServer:
    """An NTP server that does as it is told.

    Attributes:
        lie_ns: how far its UTC is off.
        how: ``right``, ``silent``, ``kiss``, ``unsynchronized`` (stratum 16), ``local`` (its own
            clock).
        asked, answered: how often.
    """

    def __init__(self, lab: Lab, host: str, *, lie_ns: int = 0, how: str = "right") -> None:
        self.lie_ns, self.how, self.asked, self.answered = lie_ns, how, 0, 0
        lab.serve(host, 123, self._answer)

    def _answer(self, question: bytes) -> list[bytes]:
        self.asked += 1
        if self.how == "silent" or len(question) < 48:
            return []
        self.answered += 1
        stratum, leap, reference = {
            "kiss": (0, 3, b"DENY"),
            "unsynchronized": (16, 3, b"\0\0\0\0"),
            "local": (10, 0, bytes((127, 127, 1, 0))),
        }.get(self.how, (1, 0, b"GPS\0"))
        now = time.time_ns() + self.lie_ns
        data = packet(question, now, now, stratum=stratum, leap=leap, reference_id=reference)
        return [data[:4] + struct.pack("!II", 0, 0 if self.how == "local" else 6) + data[12:]]


class Chronyd:
    """A chronyd on the usual port, which measures its machine's clock whenever it is asked, until it is told not to."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self._machine, self._measures = machine, True
        self._measured_ns, self._correction_s, self.asked = 0, 0.0, 0
        lab.serve("127.0.0.1", 323, self._answer)

    def rest(self) -> None:
        """It measures no more: what it says is from memory, as between two polls."""
        self._measure()
        self._measures = False

    def measure(self) -> None:
        """It measures again, from now on."""
        self._measures = True

    def _measure(self) -> None:
        self._measured_ns, self._correction_s = time.time_ns(), -self._machine.offset_ns / 1e9

    def _answer(self, question: bytes) -> list[bytes]:
        self.asked += 1
        if self._measures:
            self._measure()
        data = bytearray(tracking(question, correction_s=self._correction_s))
        struct.pack_into("!III", data, 56, 0, self._measured_ns // S, self._measured_ns % S)
        struct.pack_into("!II", data, 92, number(0.00005), number(0.00002))  # root delay and dispersion
        return [bytes(data)]


@dataclass(frozen=True)
class Look:
    """What a daemon and its commands said at one moment.

    Attributes:
        status: ``skewd status --json``; None when it did not answer.
        exit, line: of ``skewd check``.
        ready: the code of ``/readyz``, 0 for none.
        published: what ``skewd.now()`` gives, None for no bound.
        wrong: what was told that is not true; empty for nothing.
    """

    status: dict[str, Any] | None
    exit: int
    line: str
    ready: int
    published: Interval | None
    wrong: tuple[str, ...]

    @property
    def word(self) -> str:
        """The status's word."""
        return "no answer" if self.status is None else str(self.status["status"])

    @property
    def problems(self) -> frozenset[str]:
        """The codes."""
        return frozenset() if self.status is None else frozenset(one["code"] for one in self.status["problems"])

    @property
    def ok(self) -> bool:
        """Whether anything says that all is well."""
        return self.exit == 0 or self.ready == 200 or self.published is not None or self.word == "synchronized"

    def __str__(self) -> str:
        told = self.status or {}
        return (
            f"{self.word} on {told.get('reference')}, check {self.exit} '{self.line}', readyz {self.ready},"
            f" {sorted(self.problems)}, {told.get('messages')}"
        )


@dataclass
class Daemon:
    """One ``skewd run`` and the truth about its clock.

    Args:
        text: its configuration but for ``[node]``.
        clock: its page, or its machine.
        allowed: what its reference may be: ``utc`` and nodes' names.
        program: the module that is run.
        state: its state directory, if not one of its own.
        mounts: files laid over others for it alone, as ``{"/etc/hosts": ...}``.
    """

    lab: Lab
    name: str
    text: str
    clock: VirtualPage | Machine
    allowed: frozenset[str] = frozenset()
    program: str = "skewd"
    state: str | None = None
    mounts: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    metrics: str | None = None
    lies: bool = False
    """Whether what it says of its own clock is nothing to compare with."""

    def __post_init__(self) -> None:
        self.directory = self.lab.root / self.name
        self.directory.mkdir()
        self.config, self.log = self.directory / "skewd.toml", self.directory / "log"
        self.config.write_text(
            f'[node]\nname = "{self.name}"\nruntime_dir = "{self.directory}/run"\n'
            f'state_dir = "{self.state or self.directory / "state"}"\n{self.text}\n'
        )
        self.lab.nodes[self.name] = self
        self._now = self._reader()

    def _reader(self) -> Now:
        clock = HostClock() if isinstance(self.clock, Machine) else VirtualClock(self.clock)
        return Now(self.directory / "run" / "clock.shm", clock)

    def start(self) -> None:
        """Starts it and waits until it listens.

        Raises:
            NotStarted: it refused.
        """
        words = ["run", "--config", str(self.config)]
        if isinstance(self.clock, Machine):
            command = ["tests.failsafe.machine", str(self.clock.path), *words]
        else:
            command = [self.program, *words, "--virtual-clock", f"page={self.clock.path}"]
        mounted = "".join(f"mount --bind {over} {place} && " for place, over in self.mounts.items())
        wrapped = ["unshare", "--mount", "sh", "-c", f'{mounted}exec "$@"', "sh"] if mounted else []
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SKEWD_", "OTEL_"))}
        with self.lab.inside(), self.log.open("a") as errors:
            self.process = subprocess.Popen(
                [*_POWERLESS, *wrapped, sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**clean, **self.environment},
            )
        assert self.process.stdout is not None
        can_read, _, _ = select.select([self.process.stdout], [], [], waiting.LIMIT_S)
        line = self.process.stdout.readline() if can_read else "nothing"
        if not line.startswith("READY"):
            raise NotStarted(f"{self.name} said {line!r}: {self.log.read_text()[-1000:]}")
        self.metrics = json.loads(line.removeprefix("READY"))["metrics"]
        self._now = self._reader()  # one that knew the daemon before goes by its last word for two seconds

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> int:
        """Ends it in order; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(waiting.LIMIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """Ends it."""
        if self.process is not None:
            if isinstance(self.clock, Machine):
                self.clock.hang_disk(False)
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

    # -- what it says

    def status(self) -> dict[str, Any] | None:
        """As the local API tells; None when nobody answers."""
        try:
            return get_status(self.directory / "run" / "skewd.sock")
        except NoDaemonError:
            return None

    def check(self) -> tuple[int, str]:
        """``skewd check``: exit code and message."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            code = cli.check(["--json", "--config", str(self.config), *WIDE])
        return code, str(json.loads(said.getvalue())["message"])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of an administrator's on this node."""
        return subprocess.run(
            [sys.executable, "-m", "skewd", *words, "--config", str(self.config)],
            check=False,
            capture_output=True,
            text=True,
            timeout=waiting.LIMIT_S,
            cwd=ROOT,
        )

    def waitsync(self) -> int:
        """``skewd waitsync``, with little time."""
        return self.run("waitsync", "--max-uncertainty", SURE, "--timeout", "300ms").returncode

    def look(self) -> Look:
        """Asks everything at one moment, and compares it with the truth."""
        while True:
            page = self.clock.offset_ns
            before = _HOST.raw_ns(), self._true_now_ns()
            status = self.status()
            after = _HOST.raw_ns(), self._true_now_ns()
            if self.clock.offset_ns == page:  # else it was stepped meanwhile, and nobody knows which clock was meant
                break
        wrong = [] if status is None else list(self._untrue(status, before[0], after[0]))
        code, line = self.check()
        if code == 0 and not all(abs(self._offset_ns("utc", at)) < 500_000_000 for at in (before[0], after[0])):
            wrong.append(f"check is OK ({line}), and the clock is an hour off")
        ready = self.lab.get(self.metrics, "/readyz") if self.metrics else 0
        published = self._published(wrong)
        self._told_now(wrong)
        return Look(status, code, line, ready, published, tuple(wrong))

    def _untrue(self, status: dict[str, Any], before_ns: int, after_ns: int) -> Iterator[str]:
        if status["status"] == "unsynchronized" or status["lower_ns"] is None:
            return
        reference = str(status["reference"]).removeprefix("node:")
        if reference not in self.allowed:
            yield f"{status['status']} on {reference}, which nobody asked for"
            return
        if reference != "utc" and self.lab.nodes[reference].lies:
            return
        scale = (status.get("mesh") or {}).get("timescale")
        if scale is not None and scale["carried"]:
            return  # a raw clock's: the mesh's own campaign judges these
        true = [self._offset_ns(reference, at) for at in (before_ns, after_ns)]
        if not (status["lower_ns"] - _ROUNDING_NS <= max(true) and min(true) <= status["upper_ns"] + _ROUNDING_NS):
            yield f"the offset to {reference} is {true[0]} ns, outside [{status['lower_ns']}, {status['upper_ns']}]"
        if min(abs(one - status["offset_ns"]) for one in true) > status["uncertainty_ns"] + _ROUNDING_NS:
            yield f"the offset to {reference} is {true[0]} ns, not {status['offset_ns']} +-{status['uncertainty_ns']}"

    def _told_now(self, wrong: list[str]) -> None:
        """What ``skewd now --json`` says; on UTC compared with it."""
        before = time.time_ns()
        try:
            told = get_now(self.directory / "run" / "skewd.sock")
        except NoDaemonError:
            return
        after, earliest_ns, latest_ns = time.time_ns(), told["earliest_ns"], told["latest_ns"]
        if told["status"] == "unsynchronized" or earliest_ns is None or told["reference"] != "utc":
            return
        if not (earliest_ns - _ROUNDING_NS <= after and before <= latest_ns + _ROUNDING_NS):
            wrong.append(f"skewd now is [{earliest_ns - before}, {latest_ns - before}] ns from UTC")

    def _published(self, wrong: list[str]) -> Interval | None:
        """What ``skewd.now()`` says; on UTC compared with it."""
        before = time.time_ns()
        try:
            found = self._now()
        except NoBound:
            return None
        after = time.time_ns()
        if self.allowed == {"utc"} and not (found.lo - _ROUNDING_NS <= after and before <= found.hi + _ROUNDING_NS):
            wrong.append(f"skewd.now() is {found.midpoint - before} ns from UTC, and claims +-{found.width // 2}")
        return found

    def _true_now_ns(self) -> int:
        return time.time_ns()

    def _offset_ns(self, reference: str, host_raw_ns: int) -> int:
        """The truth: reference - this wall clock."""
        there = 0 if reference == "utc" else self.lab.nodes[reference].clock.deviation_ns(host_raw_ns)
        return there - self.clock.deviation_ns(host_raw_ns)

    def must_live(self) -> None:
        """Nothing may end it.

        Raises:
            AssertionError: it ended.
        """
        if not self.alive:
            assert self.process is not None
            raise AssertionError(f"the daemon ended ({self.process.returncode}): {self.log.read_text()[-1500:]}")

    # -- watching

    def watch(self, rounds: int, enough: Callable[[], bool] = lambda: True) -> list[Look]:
        """Looks so many times, each when the daemon's own account has gone on, and until there was enough to see."""
        looks: list[Look] = []
        limit = time.monotonic() + waiting.LIMIT_S
        seen_s = -1.0
        while len(looks) < rounds or not enough():
            self.must_live()
            look = self.look()
            looks.append(look)
            if look.status is None and len(looks) > 2:
                break
            assert time.monotonic() < limit, f"not enough to see within {waiting.LIMIT_S:g} s: {look}"
            seen_s = -1.0 if look.status is None else look.status["uptime_s"]
            waiting.wait_until(partial(self._older_than, seen_s + 0.15), "the daemon's own time to go on")
        return looks

    def _older_than(self, uptime_s: float) -> bool:
        told = self.status() if self.alive else None
        return told is None or told["uptime_s"] >= uptime_s

    def until(self, true: Callable[[Look], object], what: str) -> list[Look]:
        """Looks until something is true of a look; all that was seen, that look last."""
        looks: list[Look] = []

        def found() -> bool:
            self.must_live()
            looks.append(self.look())
            return bool(true(looks[-1]))

        try:
            waiting.wait_until(found, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {looks[-1]}\n{self.log.read_text()[-1000:]}") from None
        return looks


def page(lab: Lab, name: str, offset_ns: int) -> VirtualPage:
    """A clock for a node."""
    return VirtualPage.create(lab.root / f"{name}.clock", offset_ns=offset_ns, epoch_ns=len(lab.nodes) * 10**15)


def plain(line: str) -> str:
    """A line without what is another figure in each run."""
    line = re.sub(r"\d+(\.\d+)?(?= ?(ns|us|ms|s|m|h)\b)", "N", line)
    return re.sub(r"/\S*/skf\w+", "", line).replace("|", "/")
