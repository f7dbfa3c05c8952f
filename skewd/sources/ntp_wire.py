"""What an NTP answer proves about UTC: the packet's fields, read exactly, and the two proofs they make.

A server does not bound its clock (it may be slewing) but UTC: its stamps are within root delay / 2 + root dispersion
of it, by its own account. So its receive stamp, moved up by that much, is an upper end of UTC at an instant after our
send; its transmit stamp, moved down, a lower end at an instant before our receive. Both hold whatever the delays.

The field codec is ntplib's. Its stamps are floats, though, which at today's date step by 477 ns: the 64-bit stamps
are read from the packet as integers. Our request says nothing about us: its transmit stamp is 64 random bits, and an
answer must name exactly these. NTP's seconds wrap in 2036; each stamp is the one nearest to the local wall clock,
which may be 68 years wrong.

**Who may call itself UTC.** A server without a reference serves its own clock if it is told to, with an error of zero,
and says so in its reference id: chrony's ``local`` (127.127.1.1), ntpd's local clock (127.127.1.x, ``LOCL``), Windows'
``LOCL``. So does, whatever its id, a server ten or more steps from a reference clock to which it has no distance at all
(ntpd's orphan mode). :func:`own_clock` names it; who believes it is decided elsewhere.

Limits: we believe what the server says of its own error. A server whose stamps contradict its round trip (negative
delay) has at least that much more error than it says, and both proofs are moved outward by it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import ntplib

from skewd.limits import ERROR_MAX_NS

PACKET_BYTES = 48
MAX_PACKET_BYTES = 1024
NONCE_BYTES = 8
UNSYNCHRONIZED_LEAP = 3
MAX_STRATUM = 15

_NTP_TO_UNIX_S = 2_208_988_800
_SECOND = 1_000_000_000
_ERA_S = 1 << 32
_STAMPS = struct.Struct("!8sQQ")
_STAMPS_AT = 24
_MAX_PRECISION = 6
_SERVER_MODE = 4


class NtpRefused(Exception):
    """An answer that is not used; ``reason`` is its counter, the text says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class KissOfDeath(NtpRefused):
    """The server asks us to stop (``DENY``, ``RSTR``) or to ask less (``RATE``); ``code`` is its four letters."""

    def __init__(self, code: str) -> None:
        super().__init__("kiss", f"the server refuses with '{code}'")
        self.code = code


@dataclass(frozen=True, slots=True)
class NtpSample:
    """One answer, as exact as the packet.

    Attributes:
        sent_raw_ns: our raw clock before the request left; ``received_raw_ns`` after the answer came.
        server_receive_ns: UTC since 1970 by the server's clock when it received the request, rounded up.
        server_transmit_ns: the same when it answered, rounded down.
        root_delay_ns: to the server's primary source and back; ``root_dispersion_ns`` its error towards it; rounded up.
        leap: 0 none, 1 the day's last minute has 61 seconds, 2 it has 59.
        precision_ns: the server's clock's reading precision, rounded up.
        reference_id: four bytes naming the server's own source.
    """

    sent_raw_ns: int
    received_raw_ns: int
    server_receive_ns: int
    server_transmit_ns: int
    root_delay_ns: int
    root_dispersion_ns: int
    leap: int
    stratum: int
    precision_ns: int
    poll: int
    reference_id: int

    @property
    def delay_ns(self) -> int:
        """The round trip without the server's holding time; negative if the server's stamps contradict it."""
        return (self.received_raw_ns - self.sent_raw_ns) - (self.server_transmit_ns - self.server_receive_ns)

    @property
    def root_distance_ns(self) -> int:
        """How far from UTC the server's clock may be, by its own account."""
        return (self.root_delay_ns + 1) // 2 + self.root_dispersion_ns + self.precision_ns

    @property
    def error_ns(self) -> int:
        """How far from UTC the server's stamps may be."""
        return self.root_distance_ns + max(0, -self.delay_ns)

    def outgoing(self) -> tuple[int, int]:
        """(our raw clock at the send, an upper end of UTC at an instant after it)."""
        return self.sent_raw_ns, self.server_receive_ns + self.error_ns

    def incoming(self) -> tuple[int, int]:
        """(a lower end of UTC at an instant before the receive, our raw clock at the receive)."""
        return self.server_transmit_ns - self.error_ns, self.received_raw_ns

    def proofs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """``outgoing()`` and ``incoming()``: proofs about (UTC - our raw clock), as between two clocks."""
        return self.outgoing(), self.incoming()


LOCAL_STRATUM = 10
"""From here on a server without any distance to a reference clock has none."""

_LOCAL_CLOCK = 0x7F7F0100
_LOCAL_NAMES = frozenset({b"LOCL", b"LCL"})
_NO_DISTANCE_NS = 15_259
"""The least that an NTP packet can say."""


def own_clock(stratum: int, reference_id: int, root_delay_ns: int, root_dispersion_ns: int) -> str | None:
    """By what a server says that it follows no reference but its own clock, in words; None if it follows one."""
    if reference_id & 0xFFFFFF00 == _LOCAL_CLOCK:
        return f"its reference id is 127.127.1.{reference_id & 0xFF}"
    letters = reference_id.to_bytes(4, "big").rstrip(b"\0")
    if letters in _LOCAL_NAMES:
        return f"its reference id is '{letters.decode()}'"
    if stratum >= LOCAL_STRATUM and root_delay_ns == 0 and root_dispersion_ns <= _NO_DISTANCE_NS:
        return f"it is at stratum {stratum} with no distance to a reference clock"
    return None


def request(random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """A request and the nonce that its answer must name.

    Args:
        random: that many unguessable bytes.
    """
    nonce = random(NONCE_BYTES)
    if len(nonce) != NONCE_BYTES or not any(nonce):
        raise ValueError("the source of randomness gives no random bytes")
    packet: bytes = ntplib.NTPPacket(version=4, mode=3).to_data()
    return packet[: PACKET_BYTES - NONCE_BYTES] + nonce, nonce


def parse(data: bytes, *, nonce: bytes, sent_raw_ns: int, received_raw_ns: int, near_wall_ns: int) -> NtpSample:
    """The sample in an answer.

    Args:
        nonce: what :func:`request` gave with the request.
        near_wall_ns: the local wall clock, ns since 1970, to tell which 136-year era a stamp is from.

    Raises:
        KissOfDeath: the server does not want to be asked (so often).
        NtpRefused: with reason ``malformed``, ``wrong_origin`` (not an answer to this request) or
            ``unsynchronized`` (the server itself does not know the time).
    """
    if not PACKET_BYTES <= len(data) <= MAX_PACKET_BYTES:
        raise NtpRefused("malformed", f"an answer of {len(data)} bytes")
    packet = ntplib.NTPPacket()
    try:
        packet.from_data(data)
    except ntplib.NTPException:
        raise NtpRefused("malformed", "not an NTP packet") from None
    origin, receive, transmit = _STAMPS.unpack_from(data, _STAMPS_AT)
    if origin != nonce:
        raise NtpRefused("wrong_origin", "an answer to another request")
    if packet.mode != _SERVER_MODE or not 1 <= packet.version <= 4:
        raise NtpRefused("malformed", f"an answer of mode {packet.mode}, version {packet.version}")
    if packet.stratum == 0 and packet.ref_id == 0:
        raise NtpRefused("unsynchronized", "the server has no time (stratum 0, and no reference)")
    if packet.stratum == 0:
        raise KissOfDeath(_code(packet.ref_id))
    if packet.stratum > MAX_STRATUM or packet.leap == UNSYNCHRONIZED_LEAP:
        raise NtpRefused(
            "unsynchronized", f"the server is not synchronized (stratum {packet.stratum}, leap {packet.leap})"
        )
    if receive == 0 or transmit == 0:
        raise NtpRefused("unsynchronized", "the server's stamps are empty")
    if packet.precision > _MAX_PRECISION:
        raise NtpRefused("malformed", f"the server claims to read its clock within 2^{packet.precision} seconds")
    sample = NtpSample(
        sent_raw_ns=sent_raw_ns,
        received_raw_ns=received_raw_ns,
        server_receive_ns=_to_unix_ns(receive, near_wall_ns, round_up=True),
        server_transmit_ns=_to_unix_ns(transmit, near_wall_ns, round_up=False),
        root_delay_ns=_short_ns(packet.root_delay),
        root_dispersion_ns=_short_ns(packet.root_dispersion),
        leap=packet.leap,
        stratum=packet.stratum,
        precision_ns=_SECOND << packet.precision if packet.precision >= 0 else (_SECOND >> -packet.precision) + 1,
        poll=packet.poll,
        reference_id=packet.ref_id,
    )
    if sample.root_delay_ns // 2 + sample.root_dispersion_ns >= ERROR_MAX_NS:
        raise NtpRefused("unsynchronized", "the server is farther than 16 s from its own source, by its own account")
    # It held the question for less than no time, or for longer than was waited for the answer: by so much its own
    # stamps contradict each other, or ours.
    held_ns = sample.server_transmit_ns - sample.server_receive_ns
    if held_ns < -ERROR_MAX_NS or sample.delay_ns < -ERROR_MAX_NS:
        raise NtpRefused("malformed", f"the server's two stamps are {held_ns} ns apart, which no server's are")
    return sample


def _to_unix_ns(stamp: int, near_wall_ns: int, *, round_up: bool) -> int:
    """Nanoseconds since 1970 of a 64-bit stamp (32 bits of seconds since 1900, 32 of fraction), nearest to a time."""
    seconds, fraction = stamp >> 32, stamp & 0xFFFF_FFFF
    unix_s = seconds - _NTP_TO_UNIX_S
    near_s = near_wall_ns // _SECOND
    unix_s += (near_s - unix_s + _ERA_S // 2) // _ERA_S * _ERA_S
    scaled = fraction * _SECOND
    return unix_s * _SECOND + (-(-scaled >> 32) if round_up else scaled >> 32)


def _short_ns(seconds: float) -> int:
    """Nanoseconds, rounded up, of a 16.16 field; ntplib's float of it is exact."""
    return -(-int(seconds * 65536) * _SECOND // 65536)


def _code(reference_id: int) -> str:
    letters = reference_id.to_bytes(4, "big").rstrip(b"\0")
    return letters.decode("ascii") if letters.isalnum() else letters.hex()
