"""Asking the daemon: the answers, and every way in which none comes."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from skewd.api_client import NoDaemonError, get_now, get_status
from tests.cli.fake_daemon import FakeDaemon, status_of


def test_an_answer(fake_daemon: FakeDaemon) -> None:
    fake_daemon.answers = {"/v1/status": status_of(0, 0), "/v1/now": {"earliest_ns": 1}}
    assert get_status(fake_daemon.socket_path) == status_of(0, 0)
    assert get_now(fake_daemon.socket_path) == {"earliest_ns": 1}


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match=r"skewd\.sock does not exist; start one with 'skewd run'"):
        get_status(tmp_path / "skewd.sock")


def test_one_that_has_ended(fake_daemon: FakeDaemon) -> None:
    fake_daemon.close()
    with pytest.raises(NoDaemonError, match="nobody listens on"):
        get_status(fake_daemon.socket_path)


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match="cannot be asked"):
        get_status(tmp_path / ("x" * 200))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "does not answer as a skewd daemon"),
        (b"SSH-2.0-x\r\n\r\n", "does not answer as a skewd daemon"),
        (b"HTTP/1.0 200 OK\r\n", "does not answer as a skewd daemon"),
        (b"HTTP/1.0 500 Oops\r\n\r\n{}", "answered 500"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "no status that can be read"),
        (b"HTTP/1.0 200 OK\r\n\r\n{", "no status that can be read"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "no status that can be read"),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff", "no status that can be read"),
    ],
)
def test_answers_that_are_none(fake_daemon: FakeDaemon, answer: bytes, says: str) -> None:
    fake_daemon.answers = {"/v1/status": answer}
    with pytest.raises(NoDaemonError, match=says):
        get_status(fake_daemon.socket_path)


def test_a_path_that_it_does_not_know(fake_daemon: FakeDaemon) -> None:
    with pytest.raises(NoDaemonError, match="answered 404"):
        get_status(fake_daemon.socket_path)


def test_one_that_dribbles_is_given_up_as_a_whole(fake_daemon: FakeDaemon) -> None:
    fake_daemon.answers = {"/v1/status": b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 10_000}
    fake_daemon.parts_delay_s = 0.05
    before = time.monotonic()
    with pytest.raises(NoDaemonError, match=r"did not answer within 0\.3 s"):
        get_status(fake_daemon.socket_path, timeout_s=0.3)
    assert time.monotonic() - before >= 0.29


def test_one_that_is_stopped_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)  # the kernel connects; nobody reads
        with pytest.raises(NoDaemonError, match="did not answer"):
            get_status(tmp_path / "s", timeout_s=0.2)


def test_one_that_never_ends_is_given_up(fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd.api_client.ANSWER_BYTES_MAX", 1000)
    fake_daemon.answers = {"/v1/status": b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 5000}
    with pytest.raises(NoDaemonError, match="does not answer as a skewd daemon"):
        get_status(fake_daemon.socket_path)
