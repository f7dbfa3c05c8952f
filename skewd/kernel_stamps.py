"""Kernel stamps on a datagram socket (Linux ``SO_TIMESTAMPING``): asked for, and read where they come.

A receive stamp arrives with its packet. A send stamp comes back on the socket's error queue, for IPv4 and IPv6 alike
but in messages of their own; the queue must be emptied, or the socket stays "readable" for ever. Nothing is waited
for: the kernel stamps a send before the driver has the packet, so once an answer is here its stamp is too, or never
will be. Some drivers announce send stamps and deliver none, some kernels and sandboxes refuse the option: then there
are none, and user space's stamps serve.

Which send a stamp belongs to: a socket that asks one question numbers its sends. A socket that stays open must not: a
send that fails may or may not have been numbered, and a stamp one send too *late* would make a proof false. There the
packet itself comes back with its stamp (``Sends.RETURNED``), and its content says which it was.

Limits: stamps by software; a network card's own are not asked for. Packets come back only where the kernel lets them
(``net.core.tstamp_allow_data``, on by default). The stamps are the *host's* wall clock, whatever clock the node is on;
``stamps.py`` says what they mean in raw, and :meth:`NodeClock.at_host_raw` in the node's raw.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from enum import IntFlag
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


class Sends(IntFlag):
    """How sends are stamped: not at all, numbered, or with the packet returned."""

    NOT = 0
    NUMBERED = _TX_SOFTWARE | _OPT_ID | _OPT_TSONLY
    RETURNED = _TX_SOFTWARE


class Received(NamedTuple):
    """A datagram, whom it is from, and the host's wall clock when the kernel got it, if it says."""

    data: bytes
    address: Any
    wall_ns: int | None


def ask_for_stamps(sock: socket.socket, *, sends: Sends = Sends.NUMBERED) -> bool:
    """Ask the kernel to stamp what this socket receives and, unless told otherwise, what it sends.

    False where it refuses; the socket works as before.
    """
    flags = _RX_SOFTWARE | _SOFTWARE | sends
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
    return [stamp for _, stamp in returned(sock, 0)]


def returned(sock: socket.socket, size: int, *, limit: int = _BATCH) -> list[tuple[bytes, SendStamp]]:
    """The same where packets come back: the first ``size`` bytes of each, the headers of all layers included.

    Not more than ``limit``: what is left keeps the socket readable.
    """
    stamps: list[tuple[bytes, SendStamp]] = []
    for _ in range(limit):
        try:
            data, control, _, _ = sock.recvmsg(size, _CONTROL_BYTES, socket.MSG_ERRQUEUE)
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            break
        stamp = send_stamp(control)
        if stamp is not None:
            stamps.append((data, stamp))
    return stamps


class RawAtHost(Protocol):
    """A node's clock, as far as stamps need it."""

    def at_host_raw(self, host_raw_ns: int) -> int: ...


class SocketStamps:
    """The stamps of a socket that stays open, as raw instants of the node.

    Args:
        clock: the node's.
        slew_ppb: how fast the host's wall clock may be moving against its raw clock, now.

    Attributes:
        last: what was seen at the last look.
    """

    def __init__(self, clock: RawAtHost, slew_ppb: Callable[[], int]) -> None:
        self._clock, self._slew_ppb = clock, slew_ppb
        self.last = read_wall(_HOST)
        self._readings: deque[WallSample] = deque([self.last], maxlen=_READINGS)

    def look(self) -> WallSample:
        """Compare the host's clocks now. Worth it before a question: the closer to the answer, the sharper."""
        self.last = reading = read_wall(_HOST)
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

    def earliest_ns(self, wall_ns: int, before: WallSample, sent_raw_ns: int, now_raw_ns: int) -> int | None:
        """The node's raw clock when a packet left at the earliest, by the kernel's stamp of its send.

        Args:
            wall_ns: the stamp.
            before: a look taken shortly before the send: here a stamp that is too late would be believed, so the
                readings it is measured from are known to lie on either side of it, and not guessed from the stamp.
            sent_raw_ns: the node's raw clock, read before the send.
            now_raw_ns: the same, read after the stamp was.

        Returns:
            None if the stamp is of no use: the wall clock was stepped meanwhile, or it contradicts the other two.
        """
        host = raw_of_stamp(wall_ns, before, self.look(), self._slew_ppb())
        if host is None:
            return None
        earliest_ns = self._clock.at_host_raw(host.lo)
        if earliest_ns > now_raw_ns or self._clock.at_host_raw(host.hi) < sent_raw_ns:
            return None
        return max(earliest_ns, sent_raw_ns)
