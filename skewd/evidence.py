"""A file of evidence: every proof that shaped a bound, and what the daemon concluded, for whoever wants to check it.

**The problem.** A bound that was wrong last Tuesday can't be argued about: the messages are gone. And whether the
declared limits fit a machine can't be judged in a minute, but from a week. So proofs have to be kept, for a week and
for each peer, in less than a megabyte a day; and kept so that the estimator, run again, gives the same bounds to the
last bit.

**The insight.** Many proofs change nothing. One that leaves the set of possible states as it is, and every window of
``bounds/observed.py`` too, might as well never have come: whatever is asked later, the answer is the same
(``PairBound.revision``, ``Observed.revision``). So only proofs that changed something are kept, with a count of the
others, and a file begins with the exact state of every filter. What is kept is nearly random (a round trip's jitter in
nanoseconds), so no compressor helps; but its *size* is steady, and a number is written with about as many bits as it
has (Golomb 1966, Rice 1979; the parameter follows the numbers' mean).

**The form.** A header (``MAGIC`` and the version), then segments: length, CRC-32, kind, content. A segment of *facts*
is MessagePack, one of *proofs* a row of bits. Each file can be read alone: it begins with :class:`About` and a
:class:`Begin` for each pair. A file that was cut off is read up to the cut, and so is one that is damaged.

==========  ==============================================================
About       whose file it is, which run of the raw clock, the limits
Begin       a pair, and the exact state of its filter and of its watch
Learnt      one proof that changed something
Look        an instant: what the daemon concluded there, and published
Step        the wall clock was stepped
Restart     the raw clock was not continuous, all bounds began anew
Gone        a pair is no more
Missed      so many proofs were lost on the way into the file
==========  ==============================================================

Version 1. A later version reads the one before; a field that is added at the end of a fact is left alone by readers
that don't know it. Limits: ``SEGMENT_MAX`` bytes a segment; CRC-32 finds accidents,
not forgeries: a file is as trustworthy as whoever could write it. It holds names of nodes and sources, and when each
message left and came: no address, no key, nothing of what applications do. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Annotated, BinaryIO, NamedTuple

from skewd.bounds.observed import ObservedState
from skewd.bounds.pair import PairState
from skewd.lean import msgspec

VERSION = 1
READS = (1,)
"""Versions that are read: this one, and the one before once there is one."""

MAGIC = b"skewd evidence "
SEGMENT_MAX = 1 << 20
PAIRS_MAX = 1 << 16
NAME_MAX = 255
_BATCH_BITS = 8 * 4096

_HEAD = struct.Struct("!IIB")
_FACTS, _PROOFS = 1, 2
_SPAN = 1 << 63
_SECOND_NS = 1_000_000_000

Name = Annotated[str, msgspec.Meta(max_length=NAME_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=PAIRS_MAX)]

UNWATCHED, WATCHED, EXPECTED, ALONE = 0, 1, 2, 3
"""Whether a proof changed nothing in the watch; or something, by meeting the latest kept one of the other side; or by
meeting one that was left out, which is told with it; or what it changed the next ones change anyway, so that the
other side's may be forgotten."""


class EvidenceError(Exception):
    """It is no evidence that can be read. One line: what is wrong, and what to do."""


class About(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Whose evidence this is, from here on."""

    version: Name
    node: Name
    boot: Annotated[bytes, msgspec.Meta(max_length=16)]
    raw_era: int
    virtual: bool
    clock_source: Annotated[str, msgspec.Meta(max_length=64)] | None
    at_raw_ns: int
    at_wall_ns: int
    max_drift_ppm: float
    max_wander_ppb_per_s: float


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A pair of clocks, this node's raw clock and another one, and all that is known of them.

    Attributes:
        kind: ``peer`` or ``source``.
        clock: names the other clock: two of the same name with different ``clock`` are not the same clock.
        interval_ns: how often it is asked.
        smear: whether it is UTC that is smeared around leap seconds.
        proofs: how many had come by then, as a look counts them.
    """

    pair: Index
    kind: Annotated[str, msgspec.Meta(pattern="^(peer|source)$")]
    name: Name
    clock: Annotated[bytes, msgspec.Meta(max_length=64)]
    interval_ns: Annotated[int, msgspec.Meta(ge=1)]
    smear: bool
    proofs: Count
    state: PairState
    watch: ObservedState


class Learnt(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One proof that changed something.

    Attributes:
        upper: whether it is about the highest offset (a message left here) or the lowest (one arrived here).
        local_ns, limit_ns: the instant on this raw clock, and the limit on the offset there.
        watch: ``UNWATCHED``, ``WATCHED``, ``EXPECTED`` or ``ALONE``.
        expected: the latest proof of the other side (instant, limit), None if there was none.
    """

    pair: Index
    upper: bool
    local_ns: int
    limit_ns: int
    watch: Annotated[int, msgspec.Meta(ge=0, le=3)]
    expected: tuple[int, int] | None = None


class Looked(NamedTuple):
    """One pair at an instant: the bound on the other's raw clock (or UTC) - this raw clock, and on its drift.

    Attributes:
        proofs: how many had come, those left out included; as in ``Begin``, it goes on from there.
    """

    pair: int
    lower_ns: int | None
    upper_ns: int | None
    slowest_ppb: int | None
    fastest_ppb: int | None
    contradictions: int
    proofs: int


class Term(NamedTuple):
    """One pair's part in what was published: its offset at that instant, plus [lower, upper].

    Of a peer that is its wall clock - its raw clock; of a source 0, or a leap second that may have happened.
    """

    pair: int
    lower_ns: int
    upper_ns: int
    others: tuple[int, int] | None = None
    """What other members proved of the same offset."""
    preferred: bool = False


class Published(NamedTuple):
    """A bound as applications got it: reference - wall at a raw instant.

    Attributes:
        basis: ``utc`` (own sources), ``peer`` (one peer's wall clock), or ``other``: made of what isn't kept here.
        terms: what it was made of.
        wall_lower_ns, wall_upper_ns: wall - raw at that instant.
        widened_ns: by how much it was widened for the reading that labels it.
        configured, min_sources: how many sources there are, and how many have to agree; None: more than half.
    """

    raw_ns: int
    lower_ns: int
    upper_ns: int
    basis: str
    terms: tuple[Term, ...]
    wall_lower_ns: int
    wall_upper_ns: int
    widened_ns: int
    configured: int = 0
    min_sources: int | None = None


class Look(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """What the daemon concluded at an instant, from all that came before.

    ``wall_lower_ns``, ``wall_upper_ns``: wall - raw then; ``slew_ppb``: how fast that may have been changing.
    """

    raw_ns: int
    era: int
    wall_lower_ns: int
    wall_upper_ns: int
    slew_ppb: int
    pairs: tuple[Looked, ...]
    published: Published | None


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A pair is no more: forgotten, or no longer configured."""

    pair: Index


class Missed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """So many proofs, or (0) nobody knows how many, were lost on the way into the file: every pair begins anew."""

    proofs: Count


class Step(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The wall clock was stepped; the raw clock was not, so nothing about pairs changes."""

    raw_ns: int
    era: int
    by_ns: int


class Restart(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The raw clock was not continuous (a suspend, another clock source): all pairs are gone."""

    raw_ns: int
    raw_era: int


class Cut(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Not written by anyone: the rest of a file, so many bytes, can't be read."""

    bytes: Count


Fact = About | Begin | Learnt | Look | Gone | Missed | Step | Restart | Cut

_encode = msgspec.msgpack.Encoder().encode
_decode_facts = msgspec.msgpack.Decoder(list[Fact]).decode


def pack(facts: Iterable[Fact]) -> bytes:
    """Facts for the way from the daemon to whoever writes them.

    Raises:
        OverflowError: a number does not fit 64 bits.
    """
    return _encode(list(facts))


def unpack(content: bytes) -> list[Fact]:
    """And back.

    Raises:
        EvidenceError: they are no facts of this version.
    """
    try:
        return _decode_facts(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EvidenceError(f"no evidence of version {VERSION} ({error}); do the versions agree?") from None


# -- numbers as bits ---------------------------------------------------------------------------------------------------


class _Bits:
    """Bits that are written one after another."""

    __slots__ = ("_value", "count")

    def __init__(self) -> None:
        self.count, self._value = 0, 0

    def put(self, value: int, bits: int) -> None:
        self._value = self._value << bits | value
        self.count += bits

    def taken(self) -> bytes:
        """All of them, filled up with zeros to whole bytes."""
        pad = -self.count % 8
        content = (self._value << pad).to_bytes((self.count + pad) // 8, "big")
        self.count, self._value = 0, 0
        return content


class _Row:
    """Bits that are read one after another.

    Raises:
        EvidenceError: there are no more.
    """

    __slots__ = ("_content", "_left", "_place")

    def __init__(self, content: bytes) -> None:
        self._content, self._place, self._left = content, 0, 8 * len(content)

    def get(self, bits: int) -> int:
        if bits > self._left:
            raise EvidenceError("a proof ends too early")
        first, last = self._place >> 3, (self._place + bits + 7) >> 3
        value = int.from_bytes(self._content[first:last], "big") >> (8 * last - self._place - bits)
        self._place += bits
        self._left -= bits
        return value & ((1 << bits) - 1)


_UNARY_MAX = 24
_LENGTH_BITS = 7


class _Size:
    """Numbers of one kind, each written in about as many bits as those before it had."""

    __slots__ = ("_mean",)

    def __init__(self) -> None:
        self._mean = 0  # of the numbers without their sign, times 16

    def _parameter(self) -> int:
        return max((self._mean >> 4).bit_length() - 1, 0)

    def _seen(self, folded: int) -> None:
        # One that is far out must not spoil the next hundred.
        self._mean += (min(folded << 4, (self._mean << 3) + 64) - self._mean) >> 2

    def put(self, bits: _Bits, value: int) -> None:
        folded = value << 1 if value >= 0 else -(value << 1) - 1
        parameter = self._parameter()
        high = folded >> parameter
        if high < _UNARY_MAX:
            bits.put(((1 << high) - 1) << 1, high + 1)
            bits.put(folded & ((1 << parameter) - 1), parameter)
        else:
            bits.put((1 << _UNARY_MAX) - 1, _UNARY_MAX)
            length = folded.bit_length()
            bits.put(length, _LENGTH_BITS)
            bits.put(folded, length)
        self._seen(folded)

    def get(self, row: _Row) -> int:
        parameter, high = self._parameter(), 0
        while high < _UNARY_MAX and row.get(1):
            high += 1
        folded = high << parameter | row.get(parameter) if high < _UNARY_MAX else row.get(row.get(_LENGTH_BITS))
        self._seen(folded)
        return -(folded + 1 >> 1) if folded & 1 else folded >> 1


_SCHEDULE, _OTHER_SIDE, _SAME_SIDE = 0, 1, 2
"""What an instant is told from: when a message was due, the other side's last proof, or the same side's."""

_SHORT = ((0, 1), (2, 2), (6, 3), (7, 3))
"""0 to 3 as bits, the first the most often: (bits, how many)."""

_SLOPE_OVER_NS = 10_000_000_000
_SLOPE_ANEW_NS = 120_000_000_000


class _Side:
    """What the proofs of one side foretell of the next one."""

    def __init__(self) -> None:
        self.local_ns = 0
        self.due_ns = 0  # when the last one was due: timers are late by chance, and not ever later
        self.across_ns = 0
        self.gaps = tuple(_Size() for _ in range(3))
        # Stamps of the kernel's and stamps of this process lie some microseconds apart: whichever is nearer.
        self.limits_ns = [0, 0]
        self.limits = tuple(_Size() for _ in range(2))
        self._limit_ns = 0
        self._base = 0, 0
        self._slope_ppb = 0

    def foretold_ns(self, which: int, local_ns: int) -> int:
        return self.limits_ns[which] + self._slope_ppb * (local_ns - self.local_ns) // _SECOND_NS

    def took(self, local_ns: int, limit_ns: int, which: int) -> None:
        other = self.foretold_ns(1 - which, local_ns)
        self.local_ns, self.limits_ns[which] = local_ns, limit_ns
        self.limits_ns[1 - which] = other
        begun_ns, was_ns = self._base
        elapsed = local_ns - begun_ns
        if elapsed >= _SLOPE_OVER_NS and was_ns:
            self._slope_ppb = (limit_ns - was_ns) * _SECOND_NS // elapsed
        if not 0 <= elapsed < _SLOPE_ANEW_NS:
            self._base = local_ns, limit_ns


class _PairCoder:
    """The proofs of one pair, each told by how it differs from what those before it foretell."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._sides = _Side(), _Side()
        self._rounds = _Size()
        self._expected = tuple(_Size() for _ in range(4))

    def _due(self, gap_ns: int) -> tuple[int, int]:
        """Whole intervals, and a rest."""
        rounds = (2 * gap_ns + self._interval_ns) // (2 * self._interval_ns)
        return rounds, gap_ns - rounds * self._interval_ns

    def put(self, bits: _Bits, learnt: Learnt) -> None:
        number = 0 if learnt.upper else 1
        side, other, local_ns = self._sides[number], self._sides[1 - number], learnt.local_ns
        rounds, rest = self._due(local_ns - side.due_ns)
        across = local_ns - other.local_ns - side.across_ns
        values = (rest, across, local_ns - side.local_ns)
        kind = min(_SCHEDULE, _OTHER_SIDE, _SAME_SIDE, key=lambda one: abs(values[one]))
        bits.put(number, 1)
        bits.put(*_SHORT[learnt.watch])
        bits.put(*_SHORT[kind])
        if kind == _SCHEDULE:
            self._rounds.put(bits, rounds - 1)
        side.gaps[kind].put(bits, values[kind])
        self._follow(side, other, local_ns, kind)
        which = min((0, 1), key=lambda one: abs(learnt.limit_ns - side.foretold_ns(one, local_ns)))
        bits.put(which, 1)
        side.limits[which].put(bits, learnt.limit_ns - side.foretold_ns(which, local_ns))
        side.took(local_ns, learnt.limit_ns, which)
        if learnt.watch == EXPECTED:
            self._put_expected(bits, learnt, other)

    def _follow(self, side: _Side, other: _Side, local_ns: int, kind: int) -> None:
        rounds, rest = self._due(local_ns - side.due_ns)
        side.due_ns += rounds * self._interval_ns + (rest >> 2)
        if kind == _OTHER_SIDE:
            side.across_ns = local_ns - other.local_ns

    def _put_expected(self, bits: _Bits, learnt: Learnt, other: _Side) -> None:
        if learnt.expected is None:
            bits.put(0, 1)
            return
        then_ns, limit_ns = learnt.expected
        rounds, rest = self._due(then_ns - learnt.local_ns)
        bits.put(2 | (rounds != 0), 2)
        if rounds:
            self._rounds.put(bits, rounds + 1)  # rarely another than -1
        self._expected[rounds != 0].put(bits, rest)
        which = min((0, 1), key=lambda one: abs(limit_ns - other.foretold_ns(one, then_ns)))
        bits.put(which, 1)
        self._expected[2 + which].put(bits, limit_ns - other.foretold_ns(which, then_ns))

    def get(self, row: _Row, pair: int) -> Learnt:
        number, watch, kind = row.get(1), _short(row), _short(row)
        side, other = self._sides[number], self._sides[1 - number]
        rounds = self._rounds.get(row) + 1 if kind == _SCHEDULE else 0
        if kind > _SAME_SIDE:
            raise EvidenceError("a proof says what can't be")
        told_from = (side.due_ns + rounds * self._interval_ns, other.local_ns + side.across_ns, side.local_ns)
        local_ns = _in_span(told_from[kind] + side.gaps[kind].get(row))
        self._follow(side, other, local_ns, kind)
        which = row.get(1)
        limit_ns = _in_span(side.foretold_ns(which, local_ns) + side.limits[which].get(row))
        side.took(local_ns, limit_ns, which)
        expected = None
        if watch == EXPECTED and row.get(1):
            rounds = self._rounds.get(row) - 1 if row.get(1) else 0
            then_ns = _in_span(local_ns + self._expected[rounds != 0].get(row) + rounds * self._interval_ns)
            which = row.get(1)
            expected = then_ns, _in_span(other.foretold_ns(which, then_ns) + self._expected[2 + which].get(row))
        return Learnt(pair, number == 0, local_ns, limit_ns, watch, expected)


def _short(row: _Row) -> int:
    return 0 if not row.get(1) else 1 if not row.get(1) else 2 + row.get(1)


def _in_span(value: int) -> int:
    if not -_SPAN <= value < _SPAN:
        raise EvidenceError("a proof says what can't be")
    return value


# -- files -------------------------------------------------------------------------------------------------------------


def _segment(kind: int, content: bytes) -> bytes:
    return _HEAD.pack(len(content), zlib.crc32(bytes([kind]) + content), kind) + content


class Writer:
    """Makes one file's bytes of facts. Give it :class:`About` and every :class:`Begin` first."""

    def __init__(self) -> None:
        self._bits = _Bits()
        self._pairs: dict[int, _PairCoder] = {}
        self._last_pair = 0
        self._waiting = 0
        self._steps = _Size()

    @staticmethod
    def header() -> bytes:
        """What a file begins with."""
        return MAGIC + bytes([VERSION])

    def add(self, fact: Fact) -> bytes:
        """What is to be written now that this fact came; a proof usually waits for others.

        Raises:
            ValueError: a proof of a pair that never began, or a fact too large.
            OverflowError: a number does not fit 64 bits.
        """
        if not isinstance(fact, Learnt):
            content = _encode([fact])
            if len(content) > SEGMENT_MAX:
                raise ValueError(f"a fact of {len(content)} bytes, more than {SEGMENT_MAX}")
            if isinstance(fact, Begin):
                self._pairs[fact.pair] = _PairCoder(fact.interval_ns)
            return self.flush() + _segment(_FACTS, content)
        coder = self._pairs.get(fact.pair)
        if coder is None:
            raise ValueError(f"a proof of pair {fact.pair}, which never began")
        if len(self._pairs) > 1:
            self._steps.put(self._bits, fact.pair - self._last_pair)
            self._last_pair = fact.pair
        coder.put(self._bits, fact)
        self._waiting += 1
        return self.flush() if self._bits.count >= _BATCH_BITS else b""

    def flush(self) -> bytes:
        """What waits."""
        if not self._waiting:
            return b""
        waiting, self._waiting = self._waiting, 0
        return _segment(_PROOFS, waiting.to_bytes(2, "big") + self._bits.taken())


def read(file: BinaryIO, name: str = "it") -> Iterator[Fact]:
    """The facts of one file, in order; a :class:`Cut` last where the rest can't be read.

    Raises:
        EvidenceError: it is no such file, or of a version that this program does not read.
        OSError: it can't be read.
    """
    head = file.read(len(MAGIC) + 1)
    if head[:-1] != MAGIC:
        raise EvidenceError(f"{name} is no evidence; make some with 'skewd record FILE'")
    if head[-1] not in READS:
        wanted = " or ".join(map(str, READS))
        raise EvidenceError(f"{name} is evidence of version {head[-1]}, and this skewd reads {wanted}; use a later one")
    pairs: dict[int, _PairCoder] = {}
    chain = _Chain(pairs)
    while begun := file.read(_HEAD.size):
        lost, facts = len(begun), None
        if len(begun) == _HEAD.size:
            length, checksum, kind = _HEAD.unpack(begun)
            content = file.read(length) if length <= SEGMENT_MAX else b""
            lost += len(content)
            if len(content) == length and zlib.crc32(bytes([kind]) + content) == checksum:
                facts = chain.facts(kind, content)
        if facts is None:
            while part := file.read(1 << 16):
                lost += len(part)
            yield Cut(lost)
            return
        yield from facts


class _Chain:
    """What a reader remembers from segment to segment."""

    def __init__(self, pairs: dict[int, _PairCoder]) -> None:
        self._pairs = pairs
        self._last_pair = 0
        self._steps = _Size()

    def facts(self, kind: int, content: bytes) -> list[Fact] | None:
        """A segment's facts; None where it makes no sense."""
        try:
            if kind == _PROOFS:
                return self._proofs(content)
            return self._plain(unpack(content)) if kind == _FACTS else None
        except (EvidenceError, OverflowError):
            return None

    def _plain(self, facts: list[Fact]) -> list[Fact]:
        for fact in facts:
            if isinstance(fact, Begin):
                self._pairs[fact.pair] = _PairCoder(fact.interval_ns)
            elif isinstance(fact, Learnt | Cut):
                raise EvidenceError("a fact where none of its kind can be")
        return facts

    def _proofs(self, content: bytes) -> list[Fact]:
        row, found = _Row(content), list[Fact]()
        for _ in range(row.get(16)):
            # Of a single pair nothing has to be said.
            pair = next(iter(self._pairs), 0)
            if len(self._pairs) > 1:
                pair = self._last_pair = self._last_pair + self._steps.get(row)
            coder = self._pairs.get(pair)
            if coder is None:
                raise EvidenceError("a proof of a pair that never began")
            found.append(coder.get(row, pair))
        return found
