"""A real systemd as PID 1 of its own namespaces, for tests that must see a unit start, say READY, and die.

A unit file can be checked without running it, and such a check passes for a service that never says READY, or whose
sandbox forbids what it needs. Only systemd itself can tell. It runs wherever root, unshare and systemd exist: pid,
mount, network, uts, ipc and cgroup namespaces of its own, a cgroup of its own, and without CAP_SYS_TIME, so that
nothing in it can move the machine's clock. The directories a service writes (/run, /var/lib, /tmp, /etc) are private
file systems that vanish with it, and the only units it knows are those the test gives it.

Limits: no journald (units write their output to files), no D-Bus (systemctl uses systemd's private socket), no udev;
where cgroup controllers are not delegated, MemoryMax= and TasksMax= are accepted and not enforced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import psutil

from tests.waiting import LIMIT_S, wait_until

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
LAUNCHER = "/run/lab/bin/skewd"
"""The command ``skewd`` inside, for drop-ins; run by the Python that runs the tests, with its packages."""

# sys.executable of a virtual environment links to the base interpreter, which alone is bound inside.
PYTHON = f"/run/lab/python/{Path(os.path.realpath(sys.executable)).relative_to(os.path.realpath(sys.base_prefix))}"
"""The interpreter of the tests as it is called inside; it needs :func:`python_environment`."""

_CAP_SYS_TIME = 25

# What the host's own targets would pull in is none of the test's business; the shipped units only order by them.
_TARGETS = ("lab", "sysinit", "basic", "shutdown", "network", "multi-user", "umount", "final", "exit")


def missing() -> list[str]:
    """What this machine lacks to run it, each item in words; empty when it can."""
    lacks = [f"the program {name}" for name in ("unshare", "nsenter", "setpriv", "systemctl") if not shutil.which(name)]
    if not any(Path(place, "systemd").exists() for place in ("/usr/lib/systemd", "/lib/systemd")):
        lacks.append("systemd")
    if os.geteuid() != 0:
        lacks.append("root")
    if lacks:
        return lacks
    if not _cgroup_parents():
        return ["a writable cgroup file system"]
    trial = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--cgroup", "true"]
    if subprocess.run(trial, check=False, capture_output=True).returncode:
        return ["permission to make namespaces"]
    return []


def _cgroup_parents() -> list[Path]:
    """Where cgroups for it go: one per hierarchy that systemd itself uses (named v1 and v2, or v2 alone)."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            mounts.setdefault("", Path(fields.split()[4]))
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounts.setdefault("name=systemd", Path(fields.split()[4]))
    parents = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in mounts:
            parents.append(mounts[controllers] / path.lstrip("/"))
    return [parent for parent in parents if os.access(parent, os.W_OK)]


class PrivateSystemd:
    """A context manager: systemd is up inside, and everything it started is gone after.

    Args:
        scratch: an empty directory; ``scratch/out`` is /run/lab/out inside, writable by every user there.
        units: unit files and drop-ins by name (``skewd.service``, ``skewd.service.d/lab.conf``).
        etc: files added to /etc, by path below it.
    """

    def __init__(self, scratch: Path, units: Mapping[str, str], *, etc: Mapping[str, str] | None = None) -> None:
        self.out = scratch / "out"
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None
        self._cgroups: list[Path] = []
        for name in ("stage", "units", "bin", "etc", "out"):
            (scratch / name).mkdir(parents=True)
        self.out.chmod(0o777)
        for target in _TARGETS:
            self._write("units", f"{target}.target", "[Unit]\nDefaultDependencies=no\n")
        for name, text in units.items():
            self._write("units", name, text)
        self._write("units", "skewd.sysusers", (CHECKOUT / "systemd/skewd.sysusers").read_text())
        for name, text in (etc or {}).items():
            self._write("etc", name, text)
        self._write("bin", "skewd", _launcher()).chmod(0o755)

    def _write(self, area: str, name: str, text: str) -> Path:
        path = self._scratch / area / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> None:
        for parent in _cgroup_parents():
            cgroup = parent / f"skewd-test-{os.getpid()}-{self._scratch.name}"
            cgroup.mkdir()
            self._cgroups.append(cgroup)
        joins = " && ".join(f"echo $$ > '{cgroup}/cgroup.procs'" for cgroup in self._cgroups)
        command = [
            *("sh", "-c", joins + ' && exec "$@"', "sh"),
            # The signal reaches unshare if this process is killed outright, and --kill-child passes it on to PID 1.
            *("setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_time", "--inh-caps=-sys_time"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"),
            *("sh", str(HERE / "systemd-as-init.sh"), str(self._scratch)),
            *(sys.base_prefix, sysconfig.get_path("purelib"), str(CHECKOUT)),
        ]
        with (self.out / "systemd.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, "systemd answers inside its namespaces")
        held = int(self._status_field("CapBnd"), 16) | int(self._status_field("CapPrm"), 16)
        assert not held >> _CAP_SYS_TIME & 1, "systemd must not hold CAP_SYS_TIME here"

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"systemd ended:\n{self.log()}"
        try:
            children = psutil.Process(self._process.pid).children()
            if not children or children[0].name() != "systemd":
                return False
        except psutil.NoSuchProcess:  # one of those that come before it ended while it was looked at
            return False
        self._init = children[0]
        return self.run("systemctl", "show", "--property=Version", check=False).returncode == 0

    def _status_field(self, name: str) -> str:
        assert self._init is not None
        for line in Path(f"/proc/{self._init.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split(":")[1].strip()
        raise AssertionError(f"the kernel names no {name}")

    def _end(self) -> None:
        """Kills PID 1 of the namespace, with which the kernel ends every process in it; then the empty cgroups go."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._process.pid).children():
                    child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LIMIT_S)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(LIMIT_S)
        for cgroup in self._cgroups:
            wait_until(partial(_removed, cgroup), f"{cgroup} is empty and removed")

    def run(self, *command: str, check: bool = True, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as root or as ``user`` (in no group), within ``LIMIT_S``.

        Raises:
            AssertionError: it failed and ``check`` is true; the message has its output and systemd's log.
        """
        assert self._init is not None, "systemd is not up"
        identity = ("setpriv", f"--reuid={user}", "--regid=65534", "--clear-groups") if user else ()
        done = subprocess.run(
            [
                *("nsenter", f"--target={self._init.pid}", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"),
                *("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *python_environment(), *identity, *command),
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=LIMIT_S,
        )
        assert done.returncode == 0 or not check, (
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()}"
        )
        return done

    def systemctl(self, *arguments: str) -> str:
        """``systemctl`` inside; its output. Fails the test when it fails."""
        return self.run("systemctl", "--no-pager", *arguments).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """The named properties of a unit, as systemd says them."""
        output = self.systemctl("show", unit, f"--property={','.join(properties)}")
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def log(self) -> str:
        """What systemd and the units wrote, for a failing test's message (the last 4,000 characters of each)."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(self.out.iterdir())
        )


def python_environment() -> list[str]:
    """``NAME=value`` settings the launcher's Python needs at its place inside."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or sys.base_prefix == "/usr":
        return []
    library = Path(sysconfig.get_config_var("LIBDIR")).relative_to(sys.base_prefix)
    return [f"LD_LIBRARY_PATH=/run/lab/python/{library}"]


def _launcher() -> str:
    return (
        f"#!{PYTHON} -B\n"
        "import sys\n"
        "checkout = '/run/lab/checkout'\n"
        "sys.path[:0] = [checkout, checkout + '/sidecar', checkout + '/pipeline_ref', '/run/lab/packages']\n"
        "from skewd.cli import main\n"
        "sys.exit(main())\n"
    )


def _removed(cgroup: Path) -> bool:
    """Removes a cgroup and those below it, deepest first; False while a dying process still holds one."""
    try:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True
