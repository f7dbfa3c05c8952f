"""The shipped units, judged by systemd's own tools without running them; and what they must never say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
UNITS = CHECKOUT / "systemd"
SERVICES = ("skewd.service", "skewd-sidecar.service")

# Of 100, by `systemd-analyze security`. What is left is what a daemon on the network needs: sockets, the host's
# network, world-readable bounds; and for the daemon, reading adjtimex().
EXPOSURE_MAX = {"skewd.service": 16, "skewd-sidecar.service": 15}

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: str) -> dict[str, list[str]]:
    """A unit's settings, every assignment of each."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.systemd
@needs_analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    # The program is not installed where tests run, and `verify` looks for it.
    for name in SERVICES:
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/bin/skewd", shutil.which("true") or ""))
    drop_in = tmp_path / "skewd.service.d"
    drop_in.mkdir()
    for conf in UNITS.glob("*.conf"):
        text = conf.read_text().replace("/usr/bin/skewd", shutil.which("true") or "")
        (drop_in / conf.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.systemd
@needs_analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_it_is_exposed_little(unit: str) -> None:
    threshold = f"--threshold={EXPOSURE_MAX[unit]}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", threshold, "--no-pager", UNITS / unit],
        check=False,
        capture_output=True,
        text=True,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file offline (needs systemd 250)")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
@pytest.mark.systemd
def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", UNITS / "skewd.sysusers"], check=True, capture_output=True
    )
    fields = (tmp_path / "etc/passwd").read_text().split(":")
    assert fields[0] == settings("skewd.service")["User"][0]
    assert fields[6].strip().endswith("nologin")


@pytest.mark.parametrize("unit", SERVICES)
def test_it_may_not_set_a_clock(unit: str) -> None:
    said = settings(unit)
    assert said["CapabilityBoundingSet"] == [""]
    assert said["AmbientCapabilities"] == [""]
    assert said["NoNewPrivileges"] == ["yes"]
    # The daemon reads adjtimex(), which ProtectClock refuses altogether; without the capability it sets nothing.
    assert said["ProtectClock"] == ["no" if unit == "skewd.service" else "yes"]


def test_a_drop_in_lets_it_steer_and_never_step() -> None:
    said = settings("discipline.conf")
    assert said["CapabilityBoundingSet"] == said["AmbientCapabilities"] == ["CAP_SYS_TIME"]
    assert (said["ProtectClock"], said["PrivateUsers"], said["ProtectProc"]) == (["no"], ["no"], ["default"])
    assert said["ExecStopPost"] == ["/usr/bin/skewd discipline restore"]
    # What steps a clock is privileged, and not among what is let through again.
    unit = settings("skewd.service")
    assert "~@privileged @resources" in unit["SystemCallFilter"]
    allowed = " ".join(line for line in unit["SystemCallFilter"] if not line.startswith("~")).split()
    assert not {"@clock", "clock_settime", "settimeofday", "stime"} & set(allowed)
    assert "SystemCallFilter" not in said


def test_readers_keep_what_they_mounted() -> None:
    """A preserved runtime directory of a dynamic user would be out of every reader's reach; see the unit."""
    said = settings("skewd.service")
    assert said["RuntimeDirectory"] == ["skewd"]
    assert said["RuntimeDirectoryPreserve"] == ["yes"]
    assert said["RuntimeDirectoryMode"] == ["0755"]
    assert "DynamicUser" not in said


def test_test_hooks_are_in_nothing_that_is_shipped() -> None:
    shipped = [path for folder in ("systemd", "deploy") for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
    assert len(shipped) >= 7
    for path in shipped:
        for hook in ("virtual-clock", "virtual_clock", "static-offset", "static-uncertainty"):
            assert hook not in path.read_text().lower(), f"{path} mentions {hook}"
