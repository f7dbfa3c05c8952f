"""What the kernel's stamp of a packet says about this node's raw clock, rounded outward.

User space stamps a packet before the call that sends it and after the call that returns it: tens of microseconds,
and whatever the scheduler adds, away from the wire. The kernel stamps at the driver, but with the *wall* clock, which
may be slewed or stepped. So the two clocks are compared before the exchange and after it (``clock.read_wall``). What
wall - raw was in between follows from both readings and how far a slew can have gone and come back (``wall.passage``);
a stamp minus that is an interval of raw instants. Of a send its lower end is used, of a receive its upper one, and
never more than user space's own stamp already proves.

If the two readings are further apart than the slew explains, the wall clock was stepped or began to be steered: the
stamp is not used. A smaller step is covered, whichever side of it the stamp is on.

Limits: a wall clock that is stepped away and back between the two readings goes unnoticed (an exchange lasts
milliseconds), unless the stamp contradicts user space's. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.wall import passage

SOL_SOCKET = 1
SO_TIMESTAMPING = 37
"""The option and its control message, ``SCM_TIMESTAMPING``: three timespecs, the first by software."""

_SECOND_NS = 1_000_000_000
_TIMESPEC = struct.Struct("@ll")
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_ERROR_MESSAGES = ((0, 11), (41, 25))  # (SOL_IP, IP_RECVERR), (SOL_IPV6, IPV6_RECVERR)
_ENOMSG = 42
_ORIGIN_TIMESTAMPING = 4

ControlMessages = Iterable[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class SendStamp:
    """When the kernel gave a packet to the driver: wall clock, and the number of the send on its socket, from 0."""

    number: int
    wall_ns: int


def receive_stamp(control: ControlMessages) -> int | None:
    """The wall clock, ns, when the kernel got a packet from the driver; None where it does not say."""
    for level, kind, data in control:
        if (level, kind) == (SOL_SOCKET, SO_TIMESTAMPING) and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            # All zero: the kernel stamped this packet by other means only (hardware).
            return seconds * _SECOND_NS + nanoseconds if seconds or nanoseconds else None
    return None


def send_stamp(control: ControlMessages) -> SendStamp | None:
    """The send stamp that a message of the error queue carries; None if it is about something else."""
    control = list(control)
    wall_ns = receive_stamp(control)
    if wall_ns is None:
        return None
    for level, kind, data in control:
        if (level, kind) in _ERROR_MESSAGES and len(data) >= _EXTENDED_ERROR.size:
            number, origin, *_, what = _EXTENDED_ERROR.unpack_from(data)
            if (number, origin) == (_ENOMSG, _ORIGIN_TIMESTAMPING):
                return SendStamp(what, wall_ns)
    return None


def raw_of_stamp(wall_ns: int, before: WallSample, after: WallSample, slew_ppb: int) -> Interval | None:
    """The raw instants at which the wall clock may have read ``wall_ns``; None if it was stepped in between.

    Args:
        wall_ns: the kernel's stamp, made between the two readings.
        before: raw and wall clock compared before the stamp was made, and ``after`` after it.
        slew_ppb: how fast wall - raw may have been moving.
    """
    between = passage(before, after, Interval(-slew_ppb, slew_ppb))
    return None if between is None else (-between).shift(wall_ns)
