"""chronyd's own account of this machine's clock: one question and one answer of its monitoring protocol.

The `tracking` report says by how much the wall clock should be corrected, and how wrong that may be: the root
dispersion (which chronyd lets grow since its last measurement) and half of the root delay. So at the instant of the
report UTC lies in wall + correction +- (root dispersion + root delay / 2). This is how NTS, hardware stamps and
reference clocks reach us: whatever chronyd uses.

chronyd's dispersion grows by its own estimate of its frequency's error and by `maxclockerror` (1 ppm by default),
which is less than an oscillator may do that wanders within its declared limits. Its growth since the last measurement
is therefore ours in addition: wander x age^2 / 2, at most twice the drift limit x age. Each claim then stands alone,
and claims may be intersected over time (``claim.py``).

Numbers have a 7-bit exponent and a 25-bit coefficient, read exactly and rounded outward by one unit in the last place.

Limits: chronyd's regression is believed to be within delay / 2 + dispersion of the truth, as an NTP client's clients
believe it. With `local` it follows nothing, and is refused. Layout of protocol version 6 (chrony 2 to 4). Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from skewd.interval import Interval
from skewd.limits import SCALE_MAX_NS, within
from skewd.sources.claim import DELETE, ERROR_MAX_NS, INSERT, NO_LEAP, PPM, Refused
from skewd.sources.ntp_wire import own_clock

REPLY_BYTES = 104
MAX_REPLY_BYTES = 1024
_VERSION, _REQUEST, _REPLY, _TRACKING, _TRACKING_REPLY = 6, 1, 2, 33, 5
_ASK = struct.Struct("!BBBBHHIII")
_HEADER = struct.Struct("!BBBBHHHHHHIII")
_BODY = struct.Struct("!I16sHHHHIII9I")
_NO_HIGH_SECONDS = 0x7FFFFFFF
_UNSYNCHRONIZED = 3
_S = 1_000_000_000
_STATUS = {2: "it is not allowed here (cmdallow)", 3: "it is too old or too new for it", 4: "it is not synchronized"}


@dataclass(frozen=True, slots=True)
class Tracking:
    """The tracking report, in ns, every value rounded outward.

    Attributes:
        correction: what is to be added to the wall clock for UTC.
        root_delay_ns: to the primary source and back; ``root_dispersion_ns`` its error towards it, at the report.
        reference_ns: UTC since 1970 of the last measurement that chronyd used.
        leap: see :class:`skewd.sources.claim.Claim`.
    """

    correction: Interval
    root_delay_ns: int
    root_dispersion_ns: int
    reference_ns: int
    stratum: int
    leap: int

    @property
    def root_distance_ns(self) -> int:
        """How far from UTC chronyd's estimate may be, by its own account."""
        return (self.root_delay_ns + 1) // 2 + self.root_dispersion_ns

    def utc_minus_wall(self, wall_ns: int, max_drift_ppm: int, max_wander_ppb_per_s: int) -> Interval:
        """UTC - wall at the report, which was made when the wall clock read about ``wall_ns``."""
        age_ns = max(0, wall_ns + self.correction.hi - self.reference_ns)
        wandered = max_wander_ppb_per_s * age_ns * age_ns // (2 * _S * _S)
        growth = min(wandered, 2 * max_drift_ppm * age_ns // PPM) + 1
        return self.correction.widen(self.root_distance_ns + growth)


class FollowsNothing(Refused):
    """chronyd has no measurement that it goes by."""


def request(sequence: int) -> bytes:
    """The question; padded to the answer's length, as chronyd demands."""
    return _ASK.pack(_VERSION, _REQUEST, 0, 0, _TRACKING, 0, sequence & 0xFFFFFFFF, 0, 0).ljust(REPLY_BYTES, b"\0")


def number_ns(word: int) -> Interval:
    """One of chronyd's floating-point numbers of seconds, in ns."""
    exponent, coefficient = word >> 25, word & 0x1FFFFFF
    exponent = (exponent - 128 if exponent >= 64 else exponent) - 25
    coefficient = coefficient - (1 << 25) if coefficient >= 1 << 24 else coefficient
    if coefficient == 0:
        return Interval(0, 0)
    low, high = (coefficient - 1) * _S, (coefficient + 1) * _S
    if exponent >= 0:
        return Interval(low << exponent, high << exponent)
    return Interval(low >> -exponent, -(-high >> -exponent))


def is_reply(data: bytes, sequence: int) -> bool:
    """Whether a datagram answers the question with this sequence number; others are to be ignored."""
    if len(data) < _HEADER.size:
        return False
    version, kind, _, _, command, _, _, _, _, _, answered, _, _ = _HEADER.unpack_from(data)
    return (version, kind, command, answered) == (_VERSION, _REPLY, _TRACKING, sequence & 0xFFFFFFFF)


def parse(data: bytes, *, allow_local: bool = False) -> Tracking:
    """The report in a datagram that :func:`is_reply` accepts.

    Args:
        allow_local: believe a chronyd that follows its own clock.

    Raises:
        FollowsNothing: chronyd is not synchronized.
        Refused: it refused, follows itself, or the answer can't be read.
    """
    if len(data) < _HEADER.size:
        raise Refused(f"chronyd's answer of {len(data)} bytes is too short; is it chronyd that answers?")
    _, _, _, _, _, reply, status, *_ = _HEADER.unpack_from(data)
    if status:
        raise Refused(f"chronyd refuses to say how it tracks: {_STATUS.get(status, f'status {status}')}")
    if reply != _TRACKING_REPLY or len(data) < _HEADER.size + _BODY.size:
        raise Refused("chronyd's answer is no tracking report that this version knows; chrony 2 to 4 give one")
    reference, _, _, _, stratum, leap, high, low, ns, correction, _, _, _, _, _, delay, dispersion, _ = (
        _BODY.unpack_from(data, _HEADER.size)
    )
    if leap == _UNSYNCHRONIZED or reference == 0:
        raise FollowsNothing("chronyd is not synchronized yet; see chronyc sources")
    if leap not in (NO_LEAP, INSERT, DELETE) or ns >= _S:
        raise Refused("chronyd's report makes no sense; is it chronyd that answers?")
    root_delay, root_dispersion = number_ns(delay), number_ns(dispersion)
    if root_delay.hi < 0 or root_dispersion.hi < 0:
        raise Refused("chronyd reports a negative error, which makes no sense")
    own = own_clock(stratum, reference, root_delay.hi, root_dispersion.hi)
    if own is not None and not allow_local:
        raise Refused(
            f"chronyd follows its own clock ('local'), which tells nothing of UTC: {own}; give it a server; in a closed"
            " network whose UTC it is, write allow_local = true"
        )
    if (root_delay.hi + 1) // 2 + root_dispersion.hi > ERROR_MAX_NS:
        raise Refused("chronyd's own error is above 16 s; see chronyc tracking")
    seconds = (0 if high == _NO_HIGH_SECONDS else high << 32) + low
    reference_ns, corrected = seconds * _S + ns, number_ns(correction)
    # Of an age beyond a century nothing could be said of the clock that grew since.
    if not within(corrected, SCALE_MAX_NS) or not 0 <= reference_ns <= SCALE_MAX_NS:
        raise Refused("chronyd's report is of another century; see chronyc tracking")
    return Tracking(corrected, root_delay.hi, root_dispersion.hi, reference_ns, stratum, leap)
