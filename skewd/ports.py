"""Who holds the port we wanted.

"Address already in use" names neither the address nor its user, and whoever reads it at three in the morning needs
both. So the refusal says which address, which process, and which setting chooses another.

Limits: another user's processes show their sockets but not their ids unless we are root; then the text says so.
The process may be gone by the time it is looked for. Linux (and whatever else psutil reads sockets on).
"""

from __future__ import annotations

import errno
import re
import socket
from typing import Literal

Kind = Literal["tcp", "udp", "unix"]

_RESOLVE_S = 1.0
_FORM = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]\s]*))(?::([0-9]{1,5}))?")


class ListenError(OSError):
    """An address that can't be listened on; the message says which, why, and what to change."""

    def __init__(self, message: str, code: int = errno.EADDRNOTAVAIL) -> None:
        super().__init__(code, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class PortTaken(ListenError):
    """An address that we were told to listen on belongs to someone else; the message names the holder and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno.EADDRINUSE)

    @classmethod
    def at(cls, host: str, port: int, kind: Kind = "tcp", *, setting: str) -> PortTaken:
        """The refusal for one address, its holder looked up now.

        Args:
            setting: what to change, as in ``[mesh] listen`` or ``--metrics``.
        """
        where = host if kind == "unix" else f"{format_address(host, port)}/{kind}"
        return cls(f"{where} is taken by {describe_holder(host, port, kind)}; choose another with {setting}")


def format_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """``host:port`` (IPv6 in brackets) as its two parts; port 0 lets the system choose.

    With ``default_port`` the port may be left out, and an IPv6 address's brackets with it.

    Raises:
        ValueError: not of that form; the message says what to write.
    """
    match = _FORM.fullmatch(text)
    host, port = (match[1] or match[2], match[3]) if match else (text, None)
    if match is None and not (default_port is not None and _is_ipv6(text)):
        host = ""
    number = int(port) if port is not None else default_port
    if not host or number is None or number > 65535:
        raise ValueError(f"'{text[:80]}' is not an address; write host:port, as 127.0.0.1:9957 or [::1]:9957")
    return host, number


def _is_ipv6(text: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(text.partition("%")[0]).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address (or the name ``localhost``) that never leaves this machine."""
    if host in ("127.0.0.1", "::1", "localhost"):
        return True  # the usual ones, for which `skewd check` need not load a library
    import ipaddress

    try:
        return ipaddress.ip_address(host.partition("%")[0].removeprefix("::ffff:")).is_loopback
    except ValueError:
        return False


def describe_holder(host: str, port: int, kind: Kind = "tcp") -> str:
    """Who listens there, for a message: ``pid 123 (skewd)``. Never raises.

    Args:
        host: an address or name; for ``unix``, the socket's path (``port`` is then ignored).
    """
    try:
        import psutil
    except ImportError:
        return "another process (install psutil to see which)"
    try:
        wanted = set() if kind == "unix" else _addresses(host)
        connections = psutil.net_connections(kind="unix" if kind == "unix" else kind)
    except (psutil.Error, OSError):
        return "another process (this system does not say which)"
    pid: int | None = None
    found = False
    for connection in connections:
        held = connection.laddr
        if kind == "unix":
            matches = str(held) == host
        elif not held or (kind == "tcp" and connection.status != psutil.CONN_LISTEN):
            continue
        else:
            matches = held.port == port and _overlap(wanted, held.ip)
        if matches:
            found = True
            pid = connection.pid or pid
    if pid is None:
        return "another user's process (run as root to see which)" if found else "a process that is gone by now"
    try:
        return f"pid {pid} ({psutil.Process(pid).name()})"
    except (psutil.Error, OSError):
        return f"pid {pid}"


def _addresses(host: str) -> set[str]:
    """Those of a name, too, unless its resolver takes longer than a message is worth; empty: any."""
    if host in ("", "*"):
        return set()
    from skewd.background import within

    try:
        found = within(_RESOLVE_S, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM))
    except TimeoutError:
        return set()
    except (OSError, UnicodeError):
        return {host}
    return {str(entry[4][0]) for entry in found}


def _overlap(wanted: set[str], held: str) -> bool:
    """Whether a listener on ``held`` is in the way of one on ``wanted`` (empty: everywhere)."""
    everywhere = {"0.0.0.0", "::", "*"}
    return not wanted or held in wanted or held in everywhere or bool(wanted & everywhere)
