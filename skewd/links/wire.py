"""What a link's messages look like: one layout, one size, authenticated as a whole.

A message answers another one and wants to be answered. So one shape serves both directions: it carries its own
nonce and send stamp, the nonce of the message it answers and when that one was received, and what the sender says
about itself. All 320 bytes, always: a reply can't be larger than what provoked it, and a length tells nothing.

::

    0  magic "skwd" | version u8 | kind u8 | flags u16 (0) | key id u32
    12 nonce 16 | answered nonce 16 (zeros: none) | sent i64 | received i64 (of the answered message)
    60 boot 16 | raw era u32 | era u32 | wall - raw: low i64, high i64, at raw i64 | slew ppb u32 | drift ppm u32
       | wander ppb/s u32
    120 sender: length u8, 63 bytes | receiver: length u8, 63 bytes (length 0: whoever answers here)
    248 zeros, room for later fields (a kernel's transmit stamp) | the last 16 bytes: keyed BLAKE2s over all before

Big-endian; stamps are nanoseconds of the sender's *raw* clock, any epoch. Messages longer than 320 bytes (at most
512) are read as well, fields at the same places, so a later sender may add some.

Limits: the MAC tells members of the mesh from strangers, not one member from another. Nothing is encrypted: names,
raw clocks and bounds are readable on the path.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s

from skewd.interval import Interval
from skewd.keys import SECRET_BYTES, MeshKey

MAGIC = b"skwd"
VERSION = 1
MESSAGE_BYTES = 320
MAX_MESSAGE_BYTES = 512
NONCE_BYTES = 16
NO_NONCE = bytes(NONCE_BYTES)
MAC_BYTES = 16
MAX_NAME_BYTES = 63

_HEADER = struct.Struct(">4sBBHI")
_BODY = struct.Struct(">16s16sqq16sIIqqqIIIB63sB63s")
_SENT = struct.Struct(">q")
_ANSWERS_AT = _HEADER.size + NONCE_BYTES
_SENT_AT = _ANSWERS_AT + NONCE_BYTES
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_PERSON = b"skewd-l1"
_I64 = 1 << 63
_U32 = 1 << 32

MAX_DRIFT_PPM = 100_000
MAX_WANDER_PPB_PER_S = 1_000_000_000
MAX_SLEW_PPB = 1_000_000_000


class Kind(IntEnum):
    """Whether the sender wants an answer (3 is kept for a transmit stamp that follows its message)."""

    REQUEST = 1
    REPLY = 2


class Refused(Exception):
    """A message that is not used; ``reason`` is the counter it goes to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Self:
    """What a node says about itself in every message.

    Attributes:
        name: the node's name, its identity in the mesh: 1 to 63 of ``A-Z a-z 0-9 . _ -``.
        boot: 16 bytes, new for every boot; ``raw_era`` counts discontinuities of the raw clock within it. The two
            together name one unbroken raw clock; no proof spans two of them.
        era: counts every discontinuity, wall steps included.
        wall_minus_raw: what wall - raw was at raw instant ``wall_raw_at_ns``, in ns.
        wall_slew_ppb: how fast wall - raw may move after it, at most.
        max_drift_ppm: the oscillator's declared limit; ``max_wander_ppb_per_s`` that of its drift's rate of change.

    Raises:
        ValueError: a field that no message can carry, named.
    """

    name: str
    boot: bytes
    raw_era: int
    era: int
    wall_minus_raw: Interval
    wall_raw_at_ns: int
    wall_slew_ppb: int
    max_drift_ppm: int
    max_wander_ppb_per_s: int

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(
                f"'{self.name[:80]}' is not a node name; use 1 to {MAX_NAME_BYTES} letters, digits, '.', '_', '-'"
            )
        if len(self.boot) != 16:
            raise ValueError(f"a boot id has 16 bytes, this one {len(self.boot)}")
        for field, limit in (
            ("raw_era", _U32 - 1),
            ("era", _U32 - 1),
            ("wall_slew_ppb", MAX_SLEW_PPB),
            ("max_drift_ppm", MAX_DRIFT_PPM),
            ("max_wander_ppb_per_s", MAX_WANDER_PPB_PER_S),
        ):
            value = getattr(self, field)
            if not 0 <= value <= limit:
                raise ValueError(f"{field} is between 0 and {limit}, not {value}")
        for stamp in (self.wall_minus_raw.lo, self.wall_minus_raw.hi, self.wall_raw_at_ns):
            if not -_I64 <= stamp < _I64:
                raise ValueError(f"{stamp} ns does not fit 64 bits")

    @property
    def timebase(self) -> tuple[bytes, int]:
        """The one unbroken raw clock that this node's stamps are read from."""
        return self.boot, self.raw_era


@dataclass(frozen=True, slots=True)
class Message:
    """One authentic message, decoded. ``received_ns`` is meaningless where ``answers`` is ``NO_NONCE``."""

    kind: Kind
    nonce: bytes
    answers: bytes
    sent_ns: int
    received_ns: int
    sender: Self
    receiver: str


def is_name(text: str) -> bool:
    """Whether ``text`` can name a node."""
    return _NAME.fullmatch(text) is not None


def secret_of(key: MeshKey | None) -> tuple[int, bytes]:
    """Key id and secret; without a key, id 0 and zeros, which serves on loopback only."""
    return (0, bytes(SECRET_BYTES)) if key is None else (key.key_id, key.secret)


def refusal(data: bytes) -> str | None:
    """Why this can't be a message, from its size and first bytes alone; ``None`` when it may be one."""
    if len(data) > MAX_MESSAGE_BYTES:
        return "oversized"
    if len(data) < MESSAGE_BYTES:
        return "truncated"
    if data[:4] != MAGIC:
        return "bad_magic"
    if data[4] != VERSION:
        return "bad_version"
    if data[5] not in (Kind.REQUEST, Kind.REPLY):
        return "bad_kind"
    return None


def answered_nonce(data: bytes) -> bytes:
    """The nonce that a message (``refusal`` has passed it) claims to answer; not yet authentic."""
    return data[_ANSWERS_AT:_SENT_AT]


def draft(
    key: MeshKey | None,
    *,
    kind: Kind,
    nonce: bytes,
    answers: bytes,
    received_ns: int,
    sender: Self,
    receiver: str,
) -> Callable[[int], bytes]:
    """A message that lacks only its send stamp: call it with the raw clock's reading to have its bytes.

    Everything slow happens here, so that little but the MAC lies between the stamp and the send.
    """
    key_id, secret = secret_of(key)
    name, peer = sender.name.encode(), receiver.encode()
    message = bytearray(MESSAGE_BYTES - MAC_BYTES)
    _HEADER.pack_into(message, 0, MAGIC, VERSION, kind, 0, key_id)
    _BODY.pack_into(
        message,
        _HEADER.size,
        nonce,
        answers,
        0,
        received_ns,
        sender.boot,
        sender.raw_era,
        sender.era,
        sender.wall_minus_raw.lo,
        sender.wall_minus_raw.hi,
        sender.wall_raw_at_ns,
        sender.wall_slew_ppb,
        sender.max_drift_ppm,
        sender.max_wander_ppb_per_s,
        len(name),
        name,
        len(peer),
        peer,
    )

    def stamped(sent_ns: int) -> bytes:
        _SENT.pack_into(message, _SENT_AT, sent_ns)
        return bytes(message) + _mac(secret, message)

    return stamped


def decode(data: bytes, key: MeshKey | None) -> Message:
    """The authentic message in ``data``.

    Raises:
        Refused: for the reasons of ``refusal``, or ``wrong_key`` (another key's id), ``bad_mac`` (altered, or made
            with another secret), ``malformed`` (authentic, but says what can't be).
    """
    reason = refusal(data)
    if reason is not None:
        raise Refused(reason)
    key_id, secret = secret_of(key)
    _, _, kind, _, claimed = _HEADER.unpack_from(data)
    if claimed != key_id:
        raise Refused("wrong_key")
    if not hmac.compare_digest(_mac(secret, data[:-MAC_BYTES]), data[-MAC_BYTES:]):
        raise Refused("bad_mac")
    (
        nonce,
        answers,
        sent_ns,
        received_ns,
        boot,
        raw_era,
        era,
        wall_lo,
        wall_hi,
        wall_at,
        slew,
        drift,
        wander,
        name_length,
        name,
        peer_length,
        peer,
    ) = _BODY.unpack_from(data, _HEADER.size)
    try:
        sender = Self(
            name[:name_length].decode("ascii"),
            boot,
            raw_era,
            era,
            Interval(wall_lo, wall_hi),
            wall_at,
            slew,
            drift,
            wander,
        )
        receiver = peer[:peer_length].decode("ascii")
    except ValueError:
        raise Refused("malformed") from None
    # What is answered was received before the answer was sent: the sender's raw clock does not run backwards.
    backwards = answers != NO_NONCE and sent_ns < received_ns
    if (receiver and not is_name(receiver)) or nonce == NO_NONCE or backwards or max(name_length, peer_length) > 63:
        raise Refused("malformed")
    return Message(Kind(kind), nonce, answers, sent_ns, received_ns, sender, receiver)


def _mac(secret: bytes, content: bytes | bytearray) -> bytes:
    return blake2s(content, key=secret, digest_size=MAC_BYTES, person=_PERSON).digest()
