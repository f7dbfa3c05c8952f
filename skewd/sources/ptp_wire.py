"""ptp4l's own account: management messages on its Unix socket, and what they claim about UTC.

ptp4l says how far its clock (the wall clock with software stamps, else the network card's) was from the grandmaster
when the last Sync message came in, and how long messages take on average. With offset = local - master,

* a Sync did not arrive before it left: offset <= master_offset + mean path delay, for *every* Sync;
* the other side is known only as well as the delay requests between Syncs say: a Sync that was held up shows a
  master_offset that is too large by as much, and one reading can't tell.

So one reading is no bound. A claim is the *hull* of the last ``READINGS`` readings, each +- (mean path delay + the
grandmaster's own accuracy): it is wrong only if all of them were held up by more than the mean delay. Such a claim
stands alone, at the instant of the latest Sync, and claims may be intersected over time (``claim.py``).

Which scale: with PTP_TIMESCALE the grandmaster tells TAI, and UTC follows only if it also says that its offset is
valid. Without it ptp4l's own grandmasters with software stamps tell UTC. ptp4l subtracts the offset itself where it
steers the wall clock, and uses the grandmaster's only if it is valid *and* traceable, else a built-in constant.

Who may tell UTC: a grandmaster says by its clockClass (IEEE 1588, table 4) whether it is locked to a primary clock (6),
or was and still keeps within what it declares (7). Every other class is its own clock, or an application's: it is
refused, unless it is configured that its clock is UTC.

Limits: asymmetry of the path beyond its mean delay is not seen by PTP, and not by us. A grandmaster that says that
its accuracy is unknown (0xFE, ptp4l's default) claims nothing, and is refused. Pure.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from skewd.interval import Interval
from skewd.limits import RAW_MAX_NS, SCALE_MAX_NS
from skewd.sources.claim import DELETE, INSERT, NO_LEAP, PPM, Refused

TIME_STATUS_NP = 0xC000
CURRENT_DATA_SET = 0x2001
PARENT_DATA_SET = 0x2002
TIME_PROPERTIES_DATA_SET = 0x2003
PORT_PROPERTIES_NP = 0xC004
QUESTIONS = (TIME_PROPERTIES_DATA_SET, PARENT_DATA_SET, PORT_PROPERTIES_NP, CURRENT_DATA_SET, TIME_STATUS_NP)
"""In this order: the one that changes fastest last."""

MAX_REPLY_BYTES = 1500
READINGS = 8
READINGS_MIN = 4

_HEADER = struct.Struct("!BBHBBHqI10sHBb")
_MANAGEMENT = struct.Struct("!10sBBBB")
_TLV = struct.Struct("!HHH")
_BODY_AT = _HEADER.size + _MANAGEMENT.size + _TLV.size
_MANAGEMENT_TYPE, _PTP_V2, _CONTROL, _LOG_INTERVAL = 0x0D, 2, 4, 0x7F
_TLV_MANAGEMENT, _TLV_ERROR = 1, 2
_STATUS = struct.Struct("!qqiiHHQHi8s")
_CURRENT = struct.Struct("!Hqq")
_PARENT = struct.Struct("!10sBBHIBBBHB8s")
_PROPERTIES = struct.Struct("!hBB")
_PORT = struct.Struct("!10sBBB")
_LEAP_61, _LEAP_59, _UTC_VALID, _PTP_TIMESCALE, _TRACEABLE = 1, 2, 4, 8, 16
_SOFTWARE = 0
_S = 1_000_000_000
# IEEE 1588 table 6: how far from its scale a grandmaster's clock may be, in ns, from 0x20 on.
_ACCURACY_NS = (
    *(25, 100, 250, 1_000, 2_500, 10_000, 25_000, 100_000, 250_000),
    *(1_000_000, 2_500_000, 10_000_000, 25_000_000, 100_000_000, 250_000_000, _S, 10 * _S),
)
_PATH_MAX_NS = 16 * _S
_LOCKED = (6, 7)
_CLASSES = {
    13: "tells an application's time",
    14: "tells an application's time",
    52: "has lost its primary clock",
    58: "has lost its application's clock",
    187: "has lost its primary clock",
    193: "has lost its application's clock",
    248: "follows its own clock",
    255: "is a clock that only follows",
}


def request(question: int, sequence: int, identity: bytes = bytes(8)) -> bytes:
    """GET of one data set, to every port of the ptp4l that reads it."""
    body = _MANAGEMENT.pack(b"\xff" * 10, 0, 0, 0, 0) + _TLV.pack(_TLV_MANAGEMENT, 2, question)
    sender = identity[:8].ljust(8, b"\0") + b"\0\1"
    length = _HEADER.size + len(body)
    return (
        _HEADER.pack(
            *(_MANAGEMENT_TYPE, _PTP_V2, length, 0, 0, 0, 0, 0),
            *(sender, sequence & 0xFFFF, _CONTROL, _LOG_INTERVAL),
        )
        + body
    )


def is_reply(data: bytes, question: int, sequence: int) -> bool:
    """Whether a datagram answers this question; others are to be ignored."""
    if len(data) < _BODY_AT:
        return False
    kind, _, _, _, _, _, _, _, _, answered, _, _ = _HEADER.unpack_from(data)
    tlv, _, subject = _TLV.unpack_from(data, _HEADER.size + _MANAGEMENT.size)
    if tlv == _TLV_ERROR:  # its subject comes after the error's number
        (subject,) = struct.unpack_from("!H", data, _BODY_AT) if len(data) >= _BODY_AT + 2 else (None,)
    return bool(kind & 0x0F == _MANAGEMENT_TYPE and answered == sequence & 0xFFFF and subject == question)


def body(data: bytes) -> bytes:
    """The data set in an answer.

    Raises:
        Refused: ptp4l refuses.
    """
    tlv, length, _ = _TLV.unpack_from(data, _HEADER.size + _MANAGEMENT.size)
    if tlv != _TLV_MANAGEMENT:
        raise Refused("ptp4l refuses the question; this version knows linuxptp 3 and 4")
    return data[_BODY_AT : _BODY_AT - 2 + length]


@dataclass(frozen=True, slots=True)
class Measurement:
    """ptp4l's last measurement.

    Attributes:
        ingress_ns: its clock when the Sync came in.
        utc_minus_clock: UTC less that clock then, as far as one reading says (see above).
        interface: the network interface of a hardware clock; None when the clock is the wall clock.
        leap: see :class:`skewd.sources.claim.Claim`.
        root_distance_ns: how far from UTC the grandmaster's clock may be, by its own account.
    """

    ingress_ns: int
    utc_minus_clock: Interval
    interface: str | None
    leap: int
    root_distance_ns: int


def measurement(bodies: dict[int, bytes], *, allow_local: bool = False) -> Measurement:
    """What the data sets of :data:`QUESTIONS` say together.

    Args:
        allow_local: believe a grandmaster that follows its own clock.

    Raises:
        Refused: ptp4l follows nobody, or UTC can't be had from what it follows; the text says which.
    """
    try:
        offset, ingress, _, _, _, _, _, _, present, _ = _STATUS.unpack_from(bodies[TIME_STATUS_NP])
        steps, _, delay = _CURRENT.unpack_from(bodies[CURRENT_DATA_SET])
        _, _, _, _, _, _, clock_class, accuracy, _, _, _ = _PARENT.unpack_from(bodies[PARENT_DATA_SET])
        utc_offset, flags, _ = _PROPERTIES.unpack_from(bodies[TIME_PROPERTIES_DATA_SET])
        _, _, stamping, size = _PORT.unpack_from(bodies[PORT_PROPERTIES_NP])
    except (KeyError, struct.error):
        raise Refused("ptp4l's answers are shorter than they should be; this version knows linuxptp 3 and 4") from None
    if not present or steps == 0 or ingress == 0:
        raise Refused("ptp4l follows no grandmaster; see its log, and pmc 'GET PORT_DATA_SET'")
    if not 0x20 <= accuracy < 0x20 + len(_ACCURACY_NS):
        raise Refused(
            f"the grandmaster does not say how well it knows UTC (clockAccuracy {accuracy:#04x}); "
            "set it there (clockAccuracy), or use another source"
        )
    if clock_class not in _LOCKED and not allow_local:
        what = _CLASSES.get(clock_class, "is not locked to a primary clock")
        raise Refused(
            f"the grandmaster {what} (clockClass {clock_class}), which tells nothing of UTC; lock it to one and let it"
            " say so (clockClass 6); in a closed network whose UTC it is, write allow_local = true"
        )
    hardware = stamping != _SOFTWARE
    tai = bool(flags & _PTP_TIMESCALE)
    if tai and not flags & _UTC_VALID:
        raise Refused("the grandmaster tells TAI and does not say validly how far that is from UTC (currentUtcOffset)")
    if tai and not hardware and not flags & _TRACEABLE:
        raise Refused("the grandmaster's UTC offset is not traceable, and ptp4l uses a constant of its own instead")
    if hardware and not tai:
        raise Refused("the grandmaster tells no TAI, and what a hardware clock holds then is not defined")
    name = bodies[PORT_PROPERTIES_NP][_PORT.size : _PORT.size + size].decode("ascii", "replace")
    error = -(-abs(delay) >> 16) + 1 + _ACCURACY_NS[accuracy - 0x20]
    if error > _PATH_MAX_NS or abs(offset) > RAW_MAX_NS or not 0 < ingress <= SCALE_MAX_NS:
        raise Refused("ptp4l's mean path delay, offset or time makes no sense")
    # With a hardware clock the offset is TAI's; where ptp4l steers the wall clock it has subtracted it already.
    utc_minus_clock = -offset - (utc_offset * _S if tai and hardware else 0)
    leap = INSERT if flags & _LEAP_61 else DELETE if flags & _LEAP_59 else NO_LEAP
    return Measurement(
        ingress,
        Interval(utc_minus_clock - error, utc_minus_clock + error),
        name if hardware else None,
        leap,
        _ACCURACY_NS[accuracy - 0x20],
    )


class Readings:
    """The last readings of UTC - raw, and the hull of them that is a claim."""

    def __init__(self, max_drift_ppm: int) -> None:
        self._max_drift_ppm = max_drift_ppm
        self._kept: deque[tuple[int, Interval]] = deque(maxlen=READINGS)

    def clear(self) -> None:
        """Forgets all: the clock that they are about was stepped."""
        self._kept.clear()

    def add(self, raw_ns: int, utc_minus_raw: Interval) -> Interval | None:
        """The claim at ``raw_ns``, the raw instant of the newest reading; None while there are too few."""
        self._kept.append((raw_ns, utc_minus_raw))
        if len(self._kept) < READINGS_MIN:
            return None
        hull = utc_minus_raw
        for at_ns, reading in self._kept:
            hull = hull.hull(reading.widen(abs(raw_ns - at_ns) * self._max_drift_ppm // PPM + 1))
        return hull
