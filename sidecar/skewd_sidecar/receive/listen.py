"""Taking a port or a Unix socket, or saying who has it.

gRPC shares a taken port silently (SO_REUSEPORT, its default) and explains any other failure with a stack trace of C++
names; asyncio says "address already in use". Both listeners therefore take their address here first, with the
system's own error at hand.

A Unix socket is a file that outlives whoever made it. One that nobody answers on is replaced, one that somebody does
is not (gRPC by itself would take it from a running process), and what is no socket is left alone. Any local user may
connect, as to a port on loopback; the directory's permissions say who gets so far.

Limits: the first address that a host name resolves to, IPv4 before IPv6. Two processes that replace the same
left-over socket in the same instant are not told apart.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TypeAlias

from skewd.ports import ListenError, PortTaken, format_address, split_address

BACKLOG = 128
UNIX = "unix://"
UNIX_PATH_BYTES_MAX = 107
UNIX_MODE = 0o666

Address: TypeAlias = tuple[str, int] | str
"""Where a listener listens: host and port, or the path of a Unix socket."""


def show_address(address: Address) -> str:
    """As it is written in settings: ``127.0.0.1:4317`` or ``unix:///run/skewd/otlp.sock``."""
    return UNIX + address if isinstance(address, str) else format_address(*address)


class UnixSocketFile:
    """The file of a Unix socket: made free before it is bound, opened to all after, removed at the end.

    Args:
        listen: ``unix:///path``.
        setting: what to change if it fails.

    Raises:
        ValueError: no absolute path, or too long.
        PortTaken: somebody listens there.
        ListenError: something that is no socket is there, or it cannot be told; the message says what to do.
    """

    def __init__(self, listen: str, setting: str) -> None:
        self.path = path = listen.removeprefix(UNIX)
        self._made: tuple[int, int] | None = None
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{setting}: '{listen}' has no absolute path; write unix:///run/skewd/otlp.sock")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ValueError(f"{setting}: '{path}' is longer than {UNIX_PATH_BYTES_MAX} bytes, Linux's limit")
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            if not os.path.isdir(os.path.dirname(path)):
                fix = "make it, or choose another path"
                raise ListenError(f"{setting}: the directory of '{path}' does not exist; {fix}", errno.ENOENT) from None
            return
        except OSError as error:
            raise ListenError(f"{setting}: '{path}' cannot be looked at: {error.strerror}", error.errno or 0) from None
        if not stat.S_ISSOCK(found.st_mode):
            raise ListenError(f"{setting}: '{path}' is not a socket; remove it, or choose another path", errno.EEXIST)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                self._remove_stale(setting)
                return
            except BlockingIOError:
                pass  # its queue is full: it is there
            except FileNotFoundError:
                return
            except OSError as error:
                raise ListenError(
                    f"{setting}: whether somebody listens on '{path}' cannot be told: {error.strerror}; "
                    "remove it if nobody does, or choose another path",
                    error.errno or 0,
                ) from None
        raise PortTaken.at(path, 0, "unix", setting=setting)

    def _remove_stale(self, setting: str) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ListenError(
                f"{setting}: '{self.path}' is left over and cannot be removed: {error.strerror}", error.errno or 0
            ) from None

    def bound(self) -> None:
        """To be called once it is bound."""
        os.chmod(self.path, UNIX_MODE)
        made = os.stat(self.path)
        self._made = made.st_dev, made.st_ino

    def remove(self) -> None:
        """Removes what was bound, unless another took its place."""
        with suppress(OSError):
            there = os.lstat(self.path)
            if (there.st_dev, there.st_ino) == self._made:
                os.unlink(self.path)


def bind_unix(file: UnixSocketFile, setting: str) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        ListenError: it cannot be made; the message says why.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(file.path)
        file.bound()
    except OSError as error:
        bound.close()
        raise ListenError(
            f"{setting}: cannot listen on '{file.path}': {error.strerror}; "
            "make its directory writable for the sidecar's user, or choose another path",
            error.errno or 0,
        ) from None
    return bound


def bind_tcp(listen: str, setting: str) -> socket.socket:
    """A bound socket that does not listen yet.

    Args:
        listen: ``host:port``; port 0 picks one.
        setting: what to change if it fails, as ``--http or [sidecar] http``.

    Raises:
        ValueError: ``listen`` is not ``host:port``.
        PortTaken: someone listens there; the message says who.
        OSError: the address cannot be bound for another reason; the message says which address.
    """
    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(error.errno, f"{setting}: the host of '{listen}' cannot be found: {error.strerror}") from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host != "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        if port:
            bound.listen(BACKLOG)  # two sockets may bind where nobody listens; only one may listen
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken.at(host, port, setting=setting) from None
        raise OSError(error.errno, f"{setting}: cannot listen on {listen}: {error.strerror}") from None
    return bound


def name_of(bound: socket.socket) -> tuple[str, int]:
    """Address and port of a bound socket."""
    name = bound.getsockname()
    return str(name[0]), int(name[1])
