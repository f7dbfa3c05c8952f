"""Telling systemd how this service is: ready, stopping, alive.

A service of ``Type=notify`` is up when it says so, not when its process exists; with ``WatchdogSec=`` it is killed
and restarted when it stops saying that it lives. Both are one datagram of ``KEY=value`` lines to the socket named in
``NOTIFY_SOCKET``, little enough that no library is needed for it.

Without systemd (no such variable) everything here does nothing, so callers need not ask. Limits: a lost or refused
notification is not retried, for the next one follows soon and a service must not fall because its supervisor did; a
full socket never blocks the caller. File descriptors, barriers and the vsock form of the address are not supported.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, *, environ: Mapping[str, str] | None = None) -> bool:
    """Sends ``state``, such as ``"READY=1\\nSTATUS=3 peers, bound 40 us"``, to the service manager.

    ``environ`` stands in for ``os.environ``. True when the datagram was handed over; False when no manager asked for
    notifications, or it could not take this one. Never raises for a manager that is gone, and never waits for one.

    Source: sd_notify(3). A leading ``@`` of the address means Linux's abstract name space.
    """
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval_ns(*, environ: Mapping[str, str] | None = None) -> int | None:
    """How often to send ``WATCHDOG=1``: half the limit systemd set, as sd_watchdog_enabled(3) advises.

    ``environ`` stands in for ``os.environ``. None when no watchdog waits for this process: none is configured, or
    it was meant for another process (``WATCHDOG_PID``) of which this is a child.
    """
    variables = os.environ if environ is None else environ
    limit_us = variables.get("WATCHDOG_USEC", "")
    if not (limit_us.isascii() and limit_us.isdigit()) or int(limit_us) == 0:
        return None
    if variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit_us) * 1_000 // 2
