"""The loop of a real daemon is never blocked, and nobody waits for what hangs: names, disks, readers of logs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd.keys import generate_key_file, rotate_key_file
from skewd.publish.segment import NAME, SegmentReader
from tests.daemon.hanging import DEAD_NAMES, HUNG_DISK, OFTEN, Running, with_little_room
from tests.waiting import LIMIT_S, wait_until


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skn") as name:
        yield Path(name)


def test_dead_names_hold_back_no_living_one_and_no_end(short: Path) -> None:
    generate_key_file(short / "key")
    mesh = f'[mesh]\nlisten = "127.0.0.1:0"\ninterval = "100ms"\nkey_file = "{short}/key"\n'
    a = Running(short / "a", mesh + 'reference = "a"\n', name="a")
    try:
        port = a.ready().addresses["mesh"].rpartition(":")[2]
        peers = [f"{number}.dead:9957" for number in range(8)] + [f"localhost:{port}"]
        config = (
            mesh + f'reference = "a"\npeers = {peers}\ndns = "all.dead:9957"\n'
            '[[source]]\ntype = "ntp"\nname = "s"\naddress = "time.dead"\n'
            f'[[source]]\ntype = "ntp"\nname = "t"\naddress = "localhost:{port}"\n'  # which is no NTP server
        )
        b = Running(short / "b", config, DEAD_NAMES, name="b")
        try:
            b.ready()
            b.until_told(lambda told: any(row["offset_ns"] is not None for row in told["peers"]), "the living peer")
            told = b.until_told(lambda told: told["sources"][1]["server"] is not None, "the living source")
            assert told["sources"][0]["server"] is None
            assert b.stop() == 0  # before any of the names is resolved
        finally:
            b.kill()
        assert a.stop() == 0
    finally:
        a.kill()


def codes(told: dict[str, Any]) -> set[str]:
    return {problem["code"] for problem in told["problems"]}


def test_a_hung_disk_stops_neither_the_stamps_nor_the_end(short: Path) -> None:
    (short / "state").mkdir()
    key = short / "state" / "mesh.key"
    generate_key_file(key)
    daemon = Running(short, f'[mesh]\nlisten = "127.0.0.1:0"\nreference = "n"\nkey_file = "{key}"\n', HUNG_DISK)
    try:
        daemon.ready()
        daemon.until_told(lambda told: "state-not-kept" not in codes(told), "a state that is kept")
        (short / "hangs").touch()
        rotate_key_file(key)  # so that it is read again, which hangs as well
        told = daemon.until_told(lambda told: "state-not-kept" in codes(told), "the disk to be told of")
        said = next(problem for problem in told["problems"] if problem["code"] == "state-not-kept")
        assert "a write has been under way for" in said["text"]
        assert said["severity"] == "warning"
        reader = SegmentReader(daemon.runtime / NAME)
        first = wait_until(lambda: reader.latest, "a knot")
        wait_until(lambda: reader.latest and reader.latest.raw_ns > first.raw_ns + 10**9, "knots of the next second")
        daemon.until_told(lambda later: later["uptime_s"] > told["uptime_s"], "the next status")
        assert daemon.stop() == 0  # while the writes hang on
    finally:
        daemon.kill()


def test_a_full_and_a_read_only_state_directory_are_told_until_they_are_over(short: Path) -> None:
    state = short / "state"
    state.mkdir()
    daemon = Running(short, '[mesh]\nlisten = "off"\n', OFTEN, through=with_little_room(state, "32k"))
    try:
        daemon.ready()
        inside = Path(f"/proc/{daemon.process.pid}/root{state}")
        assert "state-not-kept" not in codes(daemon.status())
        kept = inside / "bounds-n"
        wait_until(kept.exists, "the bounds to be kept")

        with pytest.raises(OSError, match="No space left"):
            (inside / "filler").write_bytes(bytes(1 << 16))
        told = daemon.until_told(lambda told: "state-not-kept" in codes(told), "the full disk to be told of")
        said = next(problem for problem in told["problems"] if problem["code"] == "state-not-kept")
        assert "No space left on device" in said["text"]
        assert said["subject"] == str(state)
        assert "[node] state_dir" in said["remedy"]
        assert kept.stat().st_size > 0  # what was kept before is not lost for it
        (inside / "filler").unlink()
        daemon.until_told(lambda told: "state-not-kept" not in codes(told), "it to be over")

        def remount(how: str) -> None:
            words = ["nsenter", "-m", "-t", str(daemon.process.pid), "mount", "-o", f"remount,{how}", str(state)]
            subprocess.run(words, check=True, timeout=LIMIT_S)

        remount("ro")
        told = daemon.until_told(lambda told: "state-not-kept" in codes(told), "the read-only directory to be told of")
        assert any("Read-only file system" in problem["text"] for problem in told["problems"])
        remount("rw")
        daemon.until_told(lambda told: "state-not-kept" not in codes(told), "it to be over as well")
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_an_identity_for_which_there_was_no_place_is_kept_once_there_is(short: Path) -> None:
    generate_key_file(short / "key")
    (short / "state").touch()  # no directory
    mesh = f'[mesh]\nlisten = "127.0.0.1:0"\nkey_file = "{short}/key"\n'
    daemon = Running(short, mesh, OFTEN)
    try:
        daemon.ready()
        daemon.until_told(
            lambda told: any("signing key will be another" in problem["text"] for problem in told["problems"]),
            "what is not kept",
        )
        (short / "state").unlink()
        daemon.until_told(lambda told: "state-not-kept" not in codes(told), "it to be over")
        identity = (short / "state" / "identity-n").read_text()
        assert identity.startswith("skewd-identity-1 ")
        assert daemon.stop() == 0
        again = Running(short, mesh, OFTEN)
        try:
            again.ready()
            assert (short / "state" / "identity-n").read_text() == identity
        finally:
            again.kill()
    finally:
        daemon.kill()


NOISY = """
import threading
from skewd import daemon
tick = daemon.Daemon.tick
def noisy(self):
    for _ in range(50):
        self._log.warning("x" * 400)
    tick(self)
daemon.Daemon.tick = noisy
"""
"""Twenty kilobytes of log lines a tick."""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_nobody_reads_stops_neither_the_stamps_nor_the_end(short: Path, form: str) -> None:
    daemon = Running(short, f'[mesh]\nlisten = "off"\nreference = "n"\n[log]\nformat = "{form}"\n', NOISY)
    try:
        daemon.ready()
        reader = SegmentReader(daemon.runtime / NAME)
        first = wait_until(lambda: reader.latest, "a knot")
        seconds = 2 * 10**9  # a pipe holds 64 KiB: half a second of lines
        wait_until(lambda: reader.latest and reader.latest.raw_ns > first.raw_ns + seconds, "knots of later")
        told = daemon.until_told(lambda told: True, "a status")
        daemon.until_told(lambda later: later["uptime_s"] > told["uptime_s"], "the next status")
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_what_was_logged_before_the_end_is_read_after_it(short: Path) -> None:
    daemon = Running(short, '[mesh]\nlisten = "off"\n[log]\nlevel = "debug"\n')
    try:
        daemon.ready()
        assert daemon.stop() == 0
        assert daemon.process.stderr is not None
        lines = daemon.process.stderr.read().splitlines()
        assert any(" unsynchronized " in line or " problem " in line for line in lines), lines
    finally:
        daemon.kill()
