"""A real chronyd, and a wall clock that another hand steps under it.

No test may step this machine's clock. So chronyd runs with a few lines of C in front of its calls, which add what
stands in a file to every reading of the wall clock; the daemon's clock is stepped by the same file.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.check import OK, judge
from skewd.clock import HostClock
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig, SourceConfig
from skewd.daemon import Daemon
from tests.daemon.source_lab import TimeServer, time_servers
from tests.sources.private_network import PrivateNetwork, missing
from tests.waiting import LIMIT_S, until

S = 1_000_000_000
MS = 1_000_000
POLL_S = 4

_SHIFTED = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift_ns;

__attribute__((constructor)) static void open_shift(void) {
  int file = open(getenv("SHIFT_FILE"), O_RDONLY);
  shift_ns = mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, id, now);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    int64_t ns = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + *shift_ns;
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
  }
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec at;
  int failed = clock_gettime(CLOCK_REALTIME, &at);
  now->tv_sec = at.tv_sec;
  now->tv_usec = at.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *out) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (out) *out = at.tv_sec;
  return at.tv_sec;
}

/* The kernel's stamps of packets are of the clock that is not shifted. */
int setsockopt(int s, int level, int name, const void *value, socklen_t size) {
  if (level == SOL_SOCKET && (name == SO_TIMESTAMP || name == SO_TIMESTAMPNS || name == SO_TIMESTAMPING)) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return syscall(SYS_setsockopt, s, level, name, value, size);
}
"""

LACKING = missing("chronyd", "cc")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)} (Debian's chrony and gcc)"),
]


class ShiftedHost(HostClock):
    """This host's clocks, the wall clock shifted by what stands in the file."""

    page: mmap.mmap

    def wall_ns(self) -> int:
        return super().wall_ns() + self.step_ns

    @property
    def step_ns(self) -> int:
        return int(struct.unpack_from("q", self.page)[0])


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skd") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def host(short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShiftedHost]:
    """The clock that chronyd and the daemon have."""
    (short / "shift").write_bytes(bytes(mmap.PAGESIZE))
    with (short / "shift").open("r+b") as file:
        page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    monkeypatch.setattr(ShiftedHost, "page", page, raising=False)
    monkeypatch.setattr("skewd.sources.local.HostClock", ShiftedHost)
    yield ShiftedHost()
    page.close()


@contextlib.asynccontextmanager
async def chronyd(short: Path, server: TimeServer, user: str = "root") -> AsyncIterator[Path]:
    """A chronyd on the shifted clock that follows a server; its socket."""
    (short / "shifted.c").write_text(_SHIFTED)
    library = short / "shifted.so"
    built = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(short / "shifted.c")]
    await asyncio.to_thread(subprocess.run, built, check=True, timeout=LIMIT_S)
    host, _, port = server.address.rpartition(":")
    socket = short / "c" / "chronyd.sock"
    (short / "chrony.conf").write_text(
        f"server {host} port {port} minpoll 2 maxpoll 2 iburst\nport 0\ncmdport 0\n"
        f"bindcmdaddress {socket}\npidfile {short}/chronyd.pid\n"
    )
    powerless = ["setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_time", "--inh-caps=-sys_time"]
    program = shutil.which("chronyd")
    assert program is not None
    with (short / "chronyd.log").open("wb") as log:
        process = subprocess.Popen(
            [*powerless, program, "-x", "-d", "-u", user, "-f", str(short / "chrony.conf")],
            env={**os.environ, "LD_PRELOAD": str(library), "SHIFT_FILE": str(short / "shift")},
            stdout=log,
            stderr=log,
        )
    try:
        yield socket
    finally:
        process.kill()
        process.wait()


def daemon_beside(socket: Path, short: Path, host: ShiftedHost) -> Daemon:
    config = Config(
        node=NodeConfig(name="n", runtime_dir=short, state_dir=short),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
        source=(SourceConfig(type="chrony", address=str(socket), interval=250 * MS),),
    )
    return Daemon(config, host)


def looked(daemon: Daemon, host: ShiftedHost) -> dict[str, Any]:
    """The status; where it has a bound, it holds the truth, and no check calls a clock right that is not."""
    told = daemon.status()
    truth = -host.step_ns
    if told["lower_ns"] is not None:
        assert told["lower_ns"] <= truth <= told["upper_ns"], told
    if abs(truth) > 2 * MS:
        assert judge(told, warning_ns=MS, critical_ns=3 * MS).code != OK
    return told


async def test_no_step_is_answered_by_what_chronyd_remembers(host: ShiftedHost, short: Path) -> None:
    async with time_servers(1) as (server,), chronyd(short, server) as socket:
        daemon = daemon_beside(socket, short, host)
        async with daemon.running():
            await until(lambda: daemon.status()["status"] == "synchronized", "chronyd's first word")
            await until(lambda: daemon.status()["sources"][0]["answers"]["used"] > 5, "some more")
            for by_ns in (2 * S, -300_000, -50 * MS, 300_000, 3600 * S, -3600 * S):
                era = daemon.status()["era"]
                struct.pack_into("q", host.page, 0, host.step_ns + by_ns)
                await until(lambda: daemon.status()["era"] != era, "the step to be seen")  # noqa: B023
                # One poll of chronyd's, in which it remembers; the second one at the latest counts.
                end, waited = time.monotonic() + POLL_S + 1, 0
                while time.monotonic() < end:
                    told = looked(daemon, host)
                    waited += "foreign-step" in [problem["code"] for problem in told["problems"]]
                    await asyncio.sleep(0.02)
                # A jump of 10 s chronyd sees itself, and says that it follows nothing.
                assert waited or abs(by_ns) > 10 * S

                def over() -> bool:
                    told = looked(daemon, host)
                    waiting = "foreign-step" in [problem["code"] for problem in told["problems"]]
                    return told["status"] == "synchronized" and not waiting

                await until(over, f"chronyd's next word, after a step of {by_ns} ns")


async def test_chronyds_answers_that_can_not_come_back_are_named(short: Path, host: ShiftedHost) -> None:
    """It runs as another user, and skewd's directory is closed to that one."""
    run = short / "run"
    run.mkdir(mode=0o700)
    with PrivateNetwork(short):  # as everywhere here: nothing outside is reached
        async with time_servers(1) as (server,), chronyd(short, server, user="nobody") as socket:
            daemon = daemon_beside(socket, run, host)
            async with daemon.running():
                await until(
                    lambda: "source-answer-lost" in [problem["code"] for problem in daemon.status()["problems"]],
                    "the cause",
                )
                (told,) = [one for one in daemon.status()["problems"] if one["code"] == "source-answer-lost"]
                assert told["remedy"].startswith(f"chmod o+x {run}")
                run.chmod(0o711)
                await until(lambda: daemon.status()["status"] == "synchronized", "the remedy to help")
                assert daemon.status()["problems"] == []
