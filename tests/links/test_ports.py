"""Addresses as people write them, and who holds one."""

import os
import socket
from pathlib import Path

import pytest

from skewd.ports import PortTaken, describe_holder, format_address, is_loopback, split_address

ME = f"pid {os.getpid()} ("


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("127.0.0.1:9957", None, ("127.0.0.1", 9957)),
        ("[::1]:0", None, ("::1", 0)),
        ("node-b.example:65535", None, ("node-b.example", 65535)),
        ("*:5", None, ("*", 5)),
        ("time.example", 123, ("time.example", 123)),
        ("time.example:1123", 123, ("time.example", 1123)),
        ("::1", 123, ("::1", 123)),
        ("[::1]", 123, ("::1", 123)),
        ("fe80::1%lo", 123, ("fe80::1%lo", 123)),
    ],
)
def test_addresses_as_people_write_them(text: str, default: int | None, expected: tuple[str, int]) -> None:
    assert split_address(text, default) == expected


@pytest.mark.parametrize("text", ["", "host", ":5", "host:", "host:70000", "host:-1", "a:b:5", "::1", "[::1]", "a b:1"])
def test_what_is_no_address_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        split_address(text)


def test_formatting_is_the_reverse() -> None:
    for host in ("127.0.0.1", "::1"):
        assert split_address(format_address(host, 5)) == (host, 5)


def test_loopback() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "*", "example", "2001:db8::1"):
        assert not is_loopback(host)


def test_the_holder_of_a_tcp_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert describe_holder("127.0.0.1", port).startswith(ME)
        assert describe_holder("localhost", port, "tcp").startswith(ME)
        assert describe_holder("0.0.0.0", port, "tcp").startswith(ME)
        assert not describe_holder("127.0.0.1", port, "udp").startswith(ME)


def test_the_holder_of_a_udp_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 0))
        port = server.getsockname()[1]
        assert describe_holder("127.0.0.1", port, "udp").startswith(ME)
        error = PortTaken.at("127.0.0.1", port, "udp", setting="[mesh] listen")
        assert str(error).startswith(f"127.0.0.1:{port}/udp is taken by {ME}")
        assert str(error).endswith("choose another with [mesh] listen")
        assert isinstance(error, OSError)


def test_the_holder_of_a_unix_socket_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert describe_holder(path, 0, "unix").startswith(ME)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert describe_holder("127.0.0.1", port) == "a process that is gone by now"
