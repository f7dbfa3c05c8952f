"""What systemd hears: through a path, through an abstract address, or not at all, and never at the caller's cost."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewd import sd_notify
from tests.waiting import LIMIT_S


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(LIMIT_S)
        yield receiver


def test_a_path_is_told(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    assert sd_notify.notify("READY=1\nSTATUS=ok µ", environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert manager.recv(100) == "READY=1\nSTATUS=ok µ".encode()


def test_an_abstract_address_is_told(manager: socket.socket) -> None:
    name = f"skewd-test-{secrets.token_hex(8)}"
    manager.bind(f"\0{name}")
    assert sd_notify.notify("WATCHDOG=1", environ={"NOTIFY_SOCKET": f"@{name}"})
    assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1", "/" + "x" * 200, "/nowhere/notify", "@\udcff"])
def test_no_manager_is_no_error(address: str) -> None:
    assert not sd_notify.notify("READY=1", environ={"NOTIFY_SOCKET": address})
    assert not sd_notify.notify("READY=1", environ={})


def test_a_manager_that_does_not_read_never_blocks(manager: socket.socket, tmp_path: Path) -> None:
    manager.bind(str(tmp_path / "notify"))
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    said = [sd_notify.notify("WATCHDOG=1", environ=environ) for _ in range(queue + 2)]
    assert said[0]
    assert not said[-1]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_limit(environ: dict[str, str], expected: int | None) -> None:
    assert sd_notify.watchdog_interval_ns(environ=environ) == expected
