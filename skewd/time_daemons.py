"""Who steers this machine's clock: the time daemons that run here, and whether they may set it at all.

Somebody who reads that a clock is 5 ms wrong asks at once who keeps it. So the running processes are looked through
for the usual daemons. A name alone would blame a ``chronyd -x`` in a container that may not touch the clock: what
counts is whether the process holds the capability CAP_SYS_TIME, which the kernel tells anyone.

Limits: only processes that can be seen from here (not those outside a container); a capability within a user
namespace of its own is taken for a real one; a program of another name that sets the clock is not known. ptp4l
steers a network card's clock, or this one where it stamps in software: it is named, and never called a second hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skewd.problems import Problem

NAMES = frozenset({"chronyd", "ntpd", "ntp-daemon", "systemd-timesyncd", "phc2sys", "ptp4l", "timemaster"})
_SHORTENED = {name[:15]: name for name in NAMES if len(name) > 15}
_CAP_SYS_TIME = 1 << 25
_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True, order=True)
class TimeDaemon:
    """One that runs; ``may_set`` None: its capabilities cannot be read."""

    name: str
    pid: int
    may_set: bool | None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}{', may not set the clock' if self.may_set is False else ''})"


def running(proc: Path = Path("/proc")) -> list[TimeDaemon]:
    """The time daemons that run here, as far as they can be seen; never raises."""
    import psutil

    found = []
    try:
        for process in psutil.process_iter(["name"]):
            name = process.info["name"] or ""
            name = _SHORTENED.get(name, name)
            if name in NAMES:
                found.append(TimeDaemon(name, process.pid, _may_set(proc / str(process.pid) / "status")))
    except (psutil.Error, OSError):
        pass
    return sorted(found)


def others_visible(proc: Path = Path("/proc")) -> bool:
    """Whether processes of others are seen from here at all; systemd's ProtectProc=invisible hides them."""
    return (proc / "1").is_dir()


def _may_set(status: Path) -> bool | None:
    try:
        lines = status.read_text().splitlines()
        held = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
        return bool(int(held, 16) & _CAP_SYS_TIME)
    except (OSError, StopIteration, IndexError, ValueError):
        return None


def may_set(daemon: TimeDaemon) -> bool:
    """Whether it may set a clock, as far as is known; who can't be looked at may."""
    return daemon.may_set is not False


def steered_by(daemons: Sequence[TimeDaemon]) -> str:
    """One line: who steers this clock."""
    hands = [daemon for daemon in daemons if daemon.may_set is not False]
    if hands:
        return ", ".join(map(str, hands[:_SHOWN_MAX]))
    if daemons:
        return f"nobody seen here; {', '.join(map(str, daemons[:_SHOWN_MAX]))}"
    return "nobody seen here (chronyd, ntpd, systemd-timesyncd, phc2sys)"


def too_many_hands(daemons: Sequence[TimeDaemon]) -> Problem | None:
    """What is wrong where two of them may set one clock; else None."""
    hands = {daemon.name: daemon for daemon in daemons if daemon.may_set is not False and daemon.name != "ptp4l"}
    # timemaster runs the others and steers nothing itself.
    hands.pop("timemaster", None)
    if len(hands) < 2:
        return None
    wrong = f"{' and '.join(map(str, hands.values()))} may all set this clock"
    return Problem("time-daemons-compete", "", wrong, "stop all but one")
