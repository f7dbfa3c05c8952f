"""Taking a port, or saying who has it.

gRPC shares a taken port silently (SO_REUSEPORT, its default) and explains any other failure with a stack trace of C++
names; asyncio says "address already in use". Both listeners therefore take their address here first, with the
system's own error at hand.

Limits: the first address that a host name resolves to, IPv4 before IPv6.
"""

from __future__ import annotations

import errno
import socket

from skewd.ports import PortTaken, split_address

BACKLOG = 128


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
