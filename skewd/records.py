"""Records: what a node says of itself and of the clocks that it measures, signed, as bytes.

**A record** is one node's word at one instant of its own raw clock: how its wall clock stands to that clock, its
declared limits, UTC if it has sources, the timescale it follows, and up to ``EDGES_MAX`` claims about other clocks
(``bounds/carry.py``). Its owner signs it with a key of its own (Ed25519), so that whoever passes it on can delay it or
withhold it and nothing else. Old records stay true: a claim about an instant is carried to now by whoever uses it.

Which of them are kept and passed on is ``record_store.py``'s affair. Limits: ``BYTES_MAX`` bytes each; what no record
can carry, and what no clock shows (``skewd/limits.py``), is a :class:`RecordError`, whatever bytes came. Pure;
``cryptography`` computes signatures (``skewd[mesh]``).

Layout (big-endian, version 1): version u8 | flags u8 (1 UTC, 2 timescale, 4 its k) | owner: length u8, bytes |
boot 16 | raw era u32 | era u32 | sequence u64 | raw i64 | wall - raw: low i64, width u48 | slew ppb u32 |
drift ppm u32 | wander ppb/s u32 | UTC: claim | timescale: epoch u32, origin, keeper (length u8, bytes), keeper's
boot 16, raw era u32, k i64 | edges u8, each: clock's tag 12, claim | public key 32 | signature 64, over a prefix
and all before it. A claim is offset: low i64, width u48 | drift ppb: low i32, high i32 | its limit ppb u32 |
wander ppb/s u32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skewd.bounds.carry import Claim
from skewd.bounds.compose import TAG_BYTES, clock_tag
from skewd.election import Timescale
from skewd.interval import Interval
from skewd.limits import RAW_MAX_NS, RAW_OFFSET_MAX_NS, RESERVED_NAMES, SCALE_MAX_NS, WIDTH_MAX_NS, sayable
from skewd.links.wire import (
    MAX_DRIFT_PPM,
    MAX_NAME_BYTES,
    MAX_SLEW_PPB,
    MAX_WANDER_PPB_PER_S,
    is_name,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = 1
BYTES_MAX = 960
"""The largest signed record."""

EDGES_MAX = 12
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_PREFIX = b"skewd record 1\0"
_HAS_UTC, _HAS_TIMESCALE, _HAS_K = 1, 2, 4
_CLOCK = struct.Struct(">16sIIQqqHIIII")
_CLAIM = struct.Struct(">qHIiiII")
_SCALE = struct.Struct(">16sI")
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_SECOND_NS = 1_000_000_000


class MeshExtraMissing(RuntimeError):
    """Keys and signatures need a package that is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "members of a mesh are told apart by their keys, which needs the package 'cryptography': pip install"
            " 'skewd[mesh]'"
        )


class RecordError(ValueError):
    """A record that can't be encoded, or bytes that are none; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A claim about another clock, which is named by its tag (:func:`~skewd.bounds.compose.clock_tag`)."""

    clock: bytes
    claim: Claim


@dataclass(frozen=True, slots=True)
class Record:
    """What one node says, at its own raw instant ``raw_ns``.

    Attributes:
        owner: the node's name; ``public_key`` the key that signs for it.
        boot, raw_era, era: as in ``links.wire.Self``.
        sequence: grows with each record of this key.
        wall_minus_raw: at ``raw_ns``; it moves by at most ``wall_slew_ppb`` while the era lasts.
        max_drift_ppm, max_wander_ppb_per_s: the oscillator's declared limits.
        utc: UTC - own raw clock by own sources, or None.
        timescale: what the owner follows, or None.
        edges: claims about peers that it measures itself; at most ``EDGES_MAX``.

    Raises:
        RecordError: a field that no record can carry.
    """

    owner: str
    public_key: bytes
    boot: bytes
    raw_era: int
    era: int
    sequence: int
    raw_ns: int
    wall_minus_raw: Interval
    wall_slew_ppb: int
    max_drift_ppm: int
    max_wander_ppb_per_s: int
    utc: Claim | None = None
    timescale: Timescale | None = None
    edges: tuple[Edge, ...] = ()
    clock: bytes = field(init=False, compare=False)
    """The tag of the owner's raw clock."""

    def __post_init__(self) -> None:
        if not is_name(self.owner) or self.owner in RESERVED_NAMES:
            raise RecordError(f"'{self.owner[:80]}' can't own a record: it is no node's name")
        _sized("public key", self.public_key, PUBLIC_KEY_BYTES)
        _sized("boot id", self.boot, 16)
        for name, value, most in (
            ("raw_era", self.raw_era, _U32),
            ("era", self.era, _U32),
            ("sequence", self.sequence, _U64),
            ("wall_slew_ppb", self.wall_slew_ppb, MAX_SLEW_PPB),
            ("max_drift_ppm", self.max_drift_ppm, MAX_DRIFT_PPM),
            ("max_wander_ppb_per_s", self.max_wander_ppb_per_s, MAX_WANDER_PPB_PER_S),
        ):
            _within(name, value, 0, most)
        _within("raw_ns", self.raw_ns, -RAW_MAX_NS, RAW_MAX_NS)
        _interval("wall_minus_raw", self.wall_minus_raw, SCALE_MAX_NS)
        if self.utc is not None:
            _interval("utc", self.utc.offset, SCALE_MAX_NS)
        if len(self.edges) > EDGES_MAX:
            raise RecordError(f"a record has at most {EDGES_MAX} edges, not {len(self.edges)}")
        for edge in self.edges:
            _sized("clock's tag", edge.clock, TAG_BYTES)
            _interval("edge", edge.claim.offset, RAW_OFFSET_MAX_NS)
        if len({edge.clock for edge in self.edges}) < len(self.edges):
            raise RecordError("a record has two edges to one clock; keep the narrower one")
        scale = self.timescale
        if scale is not None:
            _within("timescale epoch", scale.epoch, 0, _U32)
            _within("keeper's raw era", scale.keeper_raw_era, 0, _U32)
            _sized("keeper's boot id", scale.keeper_boot, 16)
            if not is_name(scale.origin) or not is_name(scale.keeper):
                raise RecordError(f"a timescale's origin and keeper are names, not {(scale.origin, scale.keeper)}")
            if scale.k_ns is not None:
                _within("k_ns", scale.k_ns, -SCALE_MAX_NS, SCALE_MAX_NS)
        object.__setattr__(self, "clock", clock_tag(self.owner, self.public_key, self.boot, self.raw_era))

    def wall_minus_raw_at(self, raw_ns: Interval) -> Interval:
        """wall - raw of the owner at an instant of its raw clock, if no step lies between; rounded outward."""
        longest = max(abs(raw_ns.lo - self.raw_ns), abs(raw_ns.hi - self.raw_ns))
        return self.wall_minus_raw.widen(-(-self.wall_slew_ppb * longest // _SECOND_NS))


def claimable(claim: Claim, most_ns: int = RAW_OFFSET_MAX_NS) -> bool:
    """Whether a record can carry it; one wider than three days is worth nothing anyway.

    Args:
        most_ns: how far from zero it may be: of two raw clocks, or ``SCALE_MAX_NS`` of UTC and a raw clock.
    """
    return sayable(claim.offset, most_ns)


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RecordError(f"a record's {name} is between {least} and {most}, not {value}")


def _sized(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise RecordError(f"a record's {name} has {size} bytes, not {len(value)}")


def _interval(name: str, value: Interval, most_ns: int) -> None:
    _within(f"{name}'s lower end", value.lo, -most_ns, most_ns)
    _within(f"{name}'s upper end", value.hi, -most_ns, most_ns)
    _within(f"{name}'s width", value.width, 0, WIDTH_MAX_NS)


# -- signing -----------------------------------------------------------------------------------------------------


def private_key(secret: bytes) -> Ed25519PrivateKey:
    """The signing key of 32 secret bytes.

    Raises:
        MeshExtraMissing: ``cryptography`` is not installed.
        ValueError: not 32 bytes.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise MeshExtraMissing from None
    return Ed25519PrivateKey.from_private_bytes(secret)


def public_key_of(key: Ed25519PrivateKey) -> bytes:
    """Its public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def sign(record: Record, key: Ed25519PrivateKey) -> bytes:
    """The record as it is sent.

    Raises:
        RecordError: the record names another public key than this one's.
    """
    if record.public_key != public_key_of(key):
        raise RecordError(f"the record of {record.owner} names another public key than the one that signs it")
    content = _encode(record)
    return content + key.sign(_PREFIX + content)


def verify(data: bytes, public_key: bytes) -> bool:
    """Whether the owner of ``public_key`` signed these bytes.

    Raises:
        MeshExtraMissing: ``cryptography`` is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise MeshExtraMissing from None
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            data[-SIGNATURE_BYTES:], _PREFIX + data[:-SIGNATURE_BYTES]
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _encode(record: Record) -> bytes:
    scale, utc, wall = record.timescale, record.utc, record.wall_minus_raw
    flags = (_HAS_UTC if utc else 0) | (_HAS_TIMESCALE if scale else 0)
    flags |= _HAS_K if scale is not None and scale.k_ns is not None else 0
    parts = [
        bytes((VERSION, flags)),
        _text(record.owner),
        _CLOCK.pack(
            record.boot,
            record.raw_era,
            record.era,
            record.sequence,
            record.raw_ns,
            wall.lo,
            wall.width >> 32,
            wall.width & _U32,
            record.wall_slew_ppb,
            record.max_drift_ppm,
            record.max_wander_ppb_per_s,
        ),
    ]
    if utc is not None:
        parts.append(_encode_claim(utc))
    if scale is not None:
        parts += [
            scale.epoch.to_bytes(4, "big"),
            _text(scale.origin),
            _text(scale.keeper),
            _SCALE.pack(scale.keeper_boot, scale.keeper_raw_era),
        ]
        if scale.k_ns is not None:
            parts.append(scale.k_ns.to_bytes(8, "big", signed=True))
    parts.append(bytes((len(record.edges),)))
    for edge in record.edges:
        parts += [edge.clock, _encode_claim(edge.claim)]
    parts.append(record.public_key)
    return b"".join(parts)


def _text(name: str) -> bytes:
    encoded = name.encode("ascii")
    return bytes((len(encoded),)) + encoded


def _encode_claim(claim: Claim) -> bytes:
    offset, drift = claim.offset, claim.drift_ppb
    return _CLAIM.pack(
        offset.lo,
        offset.width >> 32,
        offset.width & _U32,
        drift.lo,
        drift.hi,
        claim.drift_limit_ppb,
        claim.wander_ppb_per_s,
    )


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        begin, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise RecordError("a record ends early")
        return self.data[begin : self.at]

    def text(self) -> str:
        return self.take(self.take(1)[0]).decode("ascii")

    def claim(self) -> Claim:
        low, high_bits, low_bits, slowest, fastest, limit, wander = _CLAIM.unpack(self.take(_CLAIM.size))
        return Claim(Interval(low, low + (high_bits << 32 | low_bits)), Interval(slowest, fastest), limit, wander)


def decode(data: bytes) -> Record:
    """What these bytes say; whether they are authentic :func:`verify` tells.

    Raises:
        RecordError: they are no record of this version, in words. Nothing else, whatever the bytes.
    """
    if len(data) > BYTES_MAX:
        raise RecordError(f"a record has at most {BYTES_MAX} bytes, this one {len(data)}")
    try:
        return _decode(_Reader(data))
    except RecordError:
        raise
    except ValueError as error:  # an interval upside down, a claim beyond its limit, a name that is no ASCII
        raise RecordError(str(error)) from None


def _decode(reader: _Reader) -> Record:
    version, flags = reader.take(2)
    if version != VERSION or flags & ~(_HAS_UTC | _HAS_TIMESCALE | _HAS_K):
        raise RecordError(f"a record of version {version} with flags {flags}; this is version {VERSION}")
    owner = reader.text()
    boot, raw_era, era, sequence, raw_ns, wall, high_bits, low_bits, slew, drift, wander = _CLOCK.unpack(
        reader.take(_CLOCK.size)
    )
    utc = reader.claim() if flags & _HAS_UTC else None
    scale = None
    if flags & _HAS_TIMESCALE:
        epoch = int.from_bytes(reader.take(4), "big")
        origin, keeper = reader.text(), reader.text()
        keeper_boot, keeper_raw_era = _SCALE.unpack(reader.take(_SCALE.size))
        k_ns = int.from_bytes(reader.take(8), "big", signed=True) if flags & _HAS_K else None
        scale = Timescale(epoch, origin, keeper, keeper_boot, keeper_raw_era, k_ns)
    elif flags & _HAS_K:
        raise RecordError("a record has a timescale's k and no timescale")
    count = reader.take(1)[0]
    if count > EDGES_MAX:
        raise RecordError(f"a record has at most {EDGES_MAX} edges, not {count}")
    edges = tuple(Edge(reader.take(TAG_BYTES), reader.claim()) for _ in range(count))
    public_key = reader.take(PUBLIC_KEY_BYTES)
    reader.take(SIGNATURE_BYTES)
    if reader.at != len(reader.data):
        raise RecordError(f"a record has {len(reader.data) - reader.at} bytes too many")
    return Record(
        owner,
        public_key,
        boot,
        raw_era,
        era,
        sequence,
        raw_ns,
        Interval(wall, wall + (high_bits << 32 | low_bits)),
        slew,
        drift,
        wander,
        utc,
        scale,
        edges,
    )


def peek_owner(data: bytes) -> str:
    """The owner that the bytes name, unchecked; empty when they can't be a record."""
    if len(data) < 3 or len(data) > BYTES_MAX or not 0 < data[2] <= MAX_NAME_BYTES:
        return ""
    return data[3 : 3 + data[2]].decode("ascii", "replace")


# -- several in one attachment -----------------------------------------------------------------------------------


def bundle(records: Iterable[bytes]) -> bytes:
    """Signed records as one attachment: each with its length (u16) before it."""
    return b"".join(len(data).to_bytes(2, "big") + data for data in records)


def unbundle(attachment: bytes) -> list[bytes]:
    """The records of an attachment, as far as it makes sense; never raises. Each is still to be checked."""
    found: list[bytes] = []
    at = 0
    while at + 2 <= len(attachment):
        size = int.from_bytes(attachment[at : at + 2], "big")
        at += 2
        if not 0 < size <= min(BYTES_MAX, len(attachment) - at):
            break
        found.append(attachment[at : at + size])
        at += size
    return found
