"""Kernel stamps on a datagram socket (Linux ``SO_TIMESTAMPING``): asked for, and read where they come.

A receive stamp arrives with its packet. A send stamp comes back on the socket's error queue, for IPv4 and IPv6 alike
but in messages of their own; the queue must be emptied, or the socket stays "readable" for ever. Nothing is waited
for: the kernel stamps a send before the driver has the packet, so once an answer is here its stamp is too, or never
will be. Some drivers announce send stamps and deliver none, some kernels and sandboxes refuse the option: then there
are none, and user space's stamps serve.

Limits: stamps by software; a network card's own are not asked for. The stamps are the *host's* wall clock, whatever
clock the node is on; ``stamps.py`` says what they mean in raw, and :meth:`NodeClock.at_host_raw` in the node's raw.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from skewd.clock import HostClock, WallSample, read_wall
from skewd.stamps import SO_TIMESTAMPING, SendStamp, raw_of_stamp, receive_stamp, send_stamp

_TX_SOFTWARE = 1 << 1
_RX_SOFTWARE = 1 << 3
_SOFTWARE = 1 << 4
_OPT_ID = 1 << 7
_OPT_TSONLY = 1 << 11
_CONTROL_BYTES = 512
_BATCH = 64
_READINGS = 16
_READ_AGAIN_NS = 2_000_000
_CLEARANCE_NS = 200_000
_HOST = HostClock()


class Received(NamedTuple):
    """A datagram, whom it is from, and the host's wall clock when the kernel got it, if it says."""

    data: bytes
    address: Any
    wall_ns: int | None


def ask_for_stamps(sock: socket.socket, *, sends: bool = True) -> bool:
    """Ask the kernel to stamp what this socket receives and, unless told otherwise, what it sends.

    False where it refuses; the socket works as before.
    """
    flags = _RX_SOFTWARE | _SOFTWARE | (_TX_SOFTWARE | _OPT_ID | _OPT_TSONLY if sends else 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, flags)
    except OSError:
        return False
    return True


def receive(sock: socket.socket, size: int) -> Received:
    """The next datagram of a non-blocking socket, cut off at ``size``.

    Raises:
        BlockingIOError: there is none.
        OSError: the network's, as from ``recv``.
    """
    data, control, _, address = sock.recvmsg(size, _CONTROL_BYTES)
    return Received(data, address, receive_stamp(control))


def sent(sock: socket.socket) -> list[SendStamp]:
    """Empties the error queue of a non-blocking socket: the send stamps that have come since the last time."""
    stamps: list[SendStamp] = []
    for _ in range(_BATCH):
        try:
            _, control, _, _ = sock.recvmsg(0, _CONTROL_BYTES, socket.MSG_ERRQUEUE)
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            break
        stamp = send_stamp(control)
        if stamp is not None:
            stamps.append(stamp)
    return stamps


class RawAtHost(Protocol):
    """A node's clock, as far as stamps need it."""

    def at_host_raw(self, host_raw_ns: int) -> int: ...


class ReceiveStamps:
    """Receive stamps of a socket that stays open, as raw instants of the node.

    Args:
        clock: the node's.
        slew_ppb: how fast the host's wall clock may be moving against its raw clock, now.
    """

    def __init__(self, clock: RawAtHost, slew_ppb: Callable[[], int]) -> None:
        self._clock, self._slew_ppb = clock, slew_ppb
        self._readings: deque[WallSample] = deque([read_wall(_HOST)], maxlen=_READINGS)

    def look(self) -> WallSample:
        """Compare the host's clocks now. Worth it before a question: the closer to the answer, the sharper."""
        reading = read_wall(_HOST)
        if reading.raw_ns - self._readings[-1].raw_ns >= _READ_AGAIN_NS:
            self._readings.append(reading)
        return reading

    def latest_ns(self, wall_ns: int, read_raw_ns: int) -> int | None:
        """The node's raw clock when a packet had come at the latest, not after ``read_raw_ns``, when it was read.

        None if the stamp is of no use. A step of the wall clock is no danger: the reading that a stamp is measured
        from was made before the stamp, or the wall clock was set back and the answer is too late, which is outward.
        """
        after = self.look()
        came_before_ns = wall_ns - after.wall_minus_raw.hi - _CLEARANCE_NS
        before = next((one for one in reversed(self._readings) if one.raw_ns < came_before_ns), None)
        if before is None:
            return None
        host = raw_of_stamp(wall_ns, before, after, self._slew_ppb())
        if host is None or self._clock.at_host_raw(host.lo) > read_raw_ns:
            return None
        return min(self._clock.at_host_raw(host.hi), read_raw_ns)
