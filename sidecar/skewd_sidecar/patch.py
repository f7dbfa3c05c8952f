"""Writes a clock's correction into serialized spans, without ever parsing them.

A span in OTLP is a few hundred bytes of which a correction concerns eight or sixteen. Decoding it into objects and
encoding it again costs an order of magnitude more than the change, and loses what the decoder does not know. But the
times are ``fixed64``, so they can be shifted in place, and an attribute is one more field at the end of its span:
the wire format needs only to be *walked*, and three nested lengths repaired. The result is an edit list over the
received bytes; what is not edited is the received bytes.

The rules, which a native twin of this module obeys too:

- Fields come in any order. Of a singular scalar that occurs twice the last one counts, and every occurrence is
  shifted. A field of ours with another wire type is an unknown field. Unknown fields, groups included, are kept byte
  for byte, and so is every length that did not change, however it was encoded.
- A singular submessage that occurs twice (a Resource, a KeyValue's value) is merged: what both hold counts.
- Attributes are upserted: all of ours that a span carries go, one of each is appended. A key that occurs twice within
  one KeyValue counts with its last value.
- A time of 0, or none, means "unknown": it is never shifted and never created. A shift that would leave 1..2^64-1
  anywhere in a span is not done at all: that span keeps its times and is tagged instead.
- Malformed (a length past its message's end, a field 0, wire types 6 and 7, a group that does not match, varints
  longer than they may be): the request is refused whole, in every mode alike.
- ``clock.corrected = true`` on the reference in force passes unchanged. On another reference a rewrite re-bases from
  the originals; where that cannot be done (no bound now, no originals and no offset), and under ``tag``, which moves
  nothing, the span passes unchanged, since what it says of itself is still true.

- What arrives under our names is believed (``Incoming.TRUST``) or taken for an application's claim
  (``Incoming.REPLACE``): then it is removed, from the Resource too, and times are raw stamps, whatever it says of them.

**Where it is written** (``Placement``). Four facts are the same for nearly every span of a batch: reference, status,
node and whether times were moved. They may be written once, on the Resource, as the first span patched there has
them, and a span carries only those in which it differs, beside what is its own: offset, uncertainty, originals. A
reader therefore takes a fact that a span lacks from its Resource, and so does this module, wherever it writes itself.
Facts that a trusted Resource brought along stay, since spans that pass unchanged may rely on them.

Log records are patched by the same rules: ``time_unix_nano`` is their only time. ``observed_time_unix_nano`` was
stamped by whoever observed the record, which was not this sidecar, so it is not ours to move. A record without a time
says nothing that a clock could correct, and passes unchanged.

The tag speaks for the whole span: the uncertainty covers the bound at its start, at its end and at its events, all
as seen from the start's offset. So a clock that was stepped in the middle of a span is not hidden by the tag. A span
whose end no bound covers is unsynchronized.

Limits: what lies deeper than the fields read here (links, the values of other people's attributes, the attributes of
events) is carried unread: whether it is well-formed is for the receiver to say. Offsets and
uncertainties fit in 64 bits. Groups nest ``GROUPS_MAX`` deep. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import lru_cache
from typing import TypeAlias

from skewd.bounds.history import Correction, Status
from skewd.bounds.table import Table

GROUPS_MAX = 100
"""Deepest nesting of (deprecated, unknown) groups that is skipped; protobuf's own limit."""

PREFIX_MAX_BYTES = 64
"""Longest attribute prefix, in UTF-8."""

_MASK = (1 << 64) - 1
_FIXED64 = struct.Struct("<Q")
_TEXTS_MAX = 64
_OTHER_VALUES = (0x21, 0x2A, 0x32, 0x3A, 0x40)  # AnyValue's other members: a oneof, so the last member counts

_OFFSET = "offset_ns"
_UNCERTAINTY = "uncertainty_ns"
_REFERENCE = "reference"
_STATUS = "status"
_NODE = "node.name"
_CORRECTED = "corrected"
_ORIGINAL_START = "original.start_time_unix_nano"
_ORIGINAL_END = "original.end_time_unix_nano"
_ORIGINAL_TIME = "original.time_unix_nano"
_ORIGINALS = (_ORIGINAL_START, _ORIGINAL_END, _ORIGINAL_TIME)
FACTS = (_REFERENCE, _STATUS, _NODE, _CORRECTED)
"""What is usually the same for a whole batch, and may be said once, on its Resource."""

NAMES = (_OFFSET, _UNCERTAINTY, *FACTS, *_ORIGINALS)
"""The attributes that are ours, without their prefix, in the order in which they are appended."""


class Mode(StrEnum):
    """What happens to a span: nothing, attributes only, or times and attributes."""

    OFF = "off"
    TAG = "tag"
    REWRITE = "rewrite"


class Placement(StrEnum):
    """Where attributes go: all on each span; facts on the Resource; or that, and no originals."""

    SPAN = "span"
    RESOURCE = "resource"
    MINIMAL = "minimal"


class Incoming(StrEnum):
    """What becomes of attributes under our names that arrive: believed, or removed unread."""

    TRUST = "trust"
    REPLACE = "replace"


class Action(StrEnum):
    """What happened to a span or log record: contract names of ``skewd_spans_total{action}``."""

    TAGGED = "tagged"
    REWRITTEN = "rewritten"
    UNSYNCHRONIZED = "unsynchronized"
    UNCHANGED = "unchanged"
    PASSED = "passed"


class MalformedRequest(ValueError):
    """The body is not a protobuf message of the kind it should be; the message says where it ends to be one."""


@dataclass(frozen=True, slots=True)
class PatchOptions:
    """How spans are patched.

    Attributes:
        mode: what is done to them.
        node: the node that made the stamps, for ``clock.node.name``.
        prefix: what the attributes' names begin with.
        keep_original: whether a rewritten span carries its times from before (never under ``Placement.MINIMAL``).
        placement: where the attributes go.
        incoming: what becomes of attributes under our names that arrive.

    Raises:
        ValueError: the prefix is empty or longer than ``PREFIX_MAX_BYTES``.
    """

    mode: Mode
    node: str
    prefix: str = "clock."
    keep_original: bool = True
    placement: Placement = Placement.SPAN
    incoming: Incoming = Incoming.TRUST

    def __post_init__(self) -> None:
        if not 0 < len(self.prefix.encode()) <= PREFIX_MAX_BYTES:
            raise ValueError(
                f"the attribute prefix {self.prefix[:80]!r} has {len(self.prefix.encode())} bytes; "
                f"it needs 1 to {PREFIX_MAX_BYTES}, as 'clock.'"
            )


@dataclass(frozen=True, slots=True)
class PatchResult:
    """The request to send on, how many spans or log records it holds, and how many were treated how (``Action``)."""

    body: bytes
    spans: int
    actions: dict[str, int]


CorrectionAt: TypeAlias = Callable[[int], Correction]
"""The correction for a stamp (ns since 1970) of the node's wall clock."""


def patch_traces(
    body: bytes, options: PatchOptions, correction_at: CorrectionAt, table: Table | None = None
) -> PatchResult:
    """Corrects every span of a serialized ``ExportTraceServiceRequest``.

    Args:
        body: the request as received, not compressed.
        options: what to do.
        correction_at: asked for stamps that the table does not cover. Not called under ``off``.
        table: answers most stamps at less cost; None for none.

    Raises:
        MalformedRequest: the body cannot be walked to its end; nothing of it should be sent on.
    """
    return _patch(body, options, _asking(correction_at, table), _Record.SPAN)


def patch_logs(
    body: bytes, options: PatchOptions, correction_at: CorrectionAt, table: Table | None = None
) -> PatchResult:
    """Corrects every log record of a serialized ``ExportLogsServiceRequest``; otherwise as :func:`patch_traces`."""
    return _patch(body, options, _asking(correction_at, table), _Record.LOG)


def _asking(correction_at: CorrectionAt, table: Table | None) -> CorrectionAt:
    """The table where it answers, the source elsewhere. The native twin does the same."""
    if table is None:
        return correction_at
    in_table = table.at

    def at(wall_ns: int) -> Correction:
        found = in_table(wall_ns)
        return correction_at(wall_ns) if found is None else found

    return at


def _patch(body: bytes, options: PatchOptions, correction_at: CorrectionAt, record: _Record) -> PatchResult:
    walk = _Walk(body, options, correction_at, record)
    try:
        walk.children(0, len(body), 0x0A, walk.batch)
    except IndexError:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {len(body)}") from None
    return PatchResult(walk.result(), sum(walk.actions.values()), walk.actions)


def check_message(body: bytes) -> None:
    """Walks the top-level fields of any message: enough to notice that it was cut short.

    Raises:
        MalformedRequest: its fields do not add up to its length.
    """
    position, end = 0, len(body)
    try:
        while position < end:
            tag, position = _tag(body, position)
            position = _skip(body, tag, position)
    except IndexError:
        position = end + 1
    if position != end:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {end}")


# ---------------------------------------------------------------------------------------------- reading the wire


def _varint(body: bytes, position: int, longest: int = 10) -> tuple[int, int]:
    """The varint at ``position`` and where it ends. At most ``longest`` bytes; bits beyond the 64th are dropped."""
    byte = body[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift, last = byte & 0x7F, 7, position + longest
    position += 1
    while position < last:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, position
        shift += 7
    raise MalformedRequest(f"malformed OTLP body: a varint longer than {longest} bytes ends at byte {position}")


def _tag(body: bytes, position: int) -> tuple[int, int]:
    tag, after = _varint(body, position, 5)
    if not 8 <= tag < 1 << 32:
        raise _no_field(tag, position)
    return tag, after


def _skip(body: bytes, tag: int, position: int) -> int:
    """Where the value of a field with this tag ends. It may lie past the message's end: the caller compares."""
    kind = tag & 7
    if kind == 2:
        size, position = _varint(body, position, 5)
        return position + size
    if kind == 0:
        return _varint(body, position)[1]
    if kind == 5:
        return position + 4
    if kind == 1:
        return position + 8
    if kind != 3:
        raise MalformedRequest(f"malformed OTLP body: wire type {kind} has no value to skip, at byte {position}")
    open_groups = [tag >> 3]
    while open_groups:
        tag, position = _tag(body, position)
        kind = tag & 7
        if kind == 3:
            open_groups.append(tag >> 3)
            if len(open_groups) > GROUPS_MAX:
                raise MalformedRequest(f"malformed OTLP body: groups nest deeper than {GROUPS_MAX}, at byte {position}")
        elif kind == 4:
            if open_groups.pop() != tag >> 3:
                raise MalformedRequest(f"malformed OTLP body: a group ends that did not begin, at byte {position}")
        else:
            position = _skip(body, tag, position)
    return position


def _no_field(tag: int, position: int) -> MalformedRequest:
    return MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {position}")


def _overrun(end: int) -> MalformedRequest:
    return MalformedRequest(f"malformed OTLP body: a field runs past the end of its message, at byte {end}")


def _key(body: bytes, position: int, end: int) -> bytes:
    """The key of the KeyValue that fills ``position`` to ``end``: the last one, empty if there is none."""
    key = b""
    while position < end:
        tag, position = _tag(body, position)
        if tag == 0x0A:
            size, position = _varint(body, position, 5)
            key = body[position : position + size]
            position += size
        else:
            position = _skip(body, tag, position)
    if position != end:
        raise _overrun(end)
    return key


_Value: TypeAlias = str | int | bool | None


def _value(body: bytes, position: int, end: int) -> _Value:
    """A KeyValue's value if it is a string, a boolean or an integer; None otherwise, unreadable ones included."""
    parts = []
    while position < end:
        tag, position = _tag(body, position)
        stop = _skip(body, tag, position)
        if tag == 0x12:
            size, position = _varint(body, position, 5)
            parts.append(body[position : position + size])
        position = stop
    # A submessage that occurs twice is merged, which for the wire format means: concatenated.
    content = b"".join(parts)
    value: _Value = None
    position = 0
    try:
        while position < len(content):
            tag, position = _tag(content, position)
            stop = _skip(content, tag, position)
            if stop > len(content):
                return None
            if tag == 0x0A:
                size, position = _varint(content, position, 5)
                value = content[position : position + size].decode()
            elif tag == 0x10:
                value = _varint(content, position)[0] != 0
            elif tag == 0x18:
                value = _varint(content, position)[0]
                value -= (value >> 63) << 64
            elif tag in _OTHER_VALUES:
                value = None
            position = stop
    except (IndexError, ValueError):
        return None
    return value


# ---------------------------------------------------------------------------------------------- writing the wire


def _encode_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value >> 56 and not value >> 63:  # nine bytes: every time of our age, written without a loop
        return bytes(
            (
                value & 0x7F | 0x80,
                value >> 7 & 0x7F | 0x80,
                value >> 14 & 0x7F | 0x80,
                value >> 21 & 0x7F | 0x80,
                value >> 28 & 0x7F | 0x80,
                value >> 35 & 0x7F | 0x80,
                value >> 42 & 0x7F | 0x80,
                value >> 49 & 0x7F | 0x80,
                value >> 56,
            )
        )
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(tag: int, content: bytes) -> bytes:
    return _encode_varint(tag) + _encode_varint(len(content)) + content


def _attribute(tag: int, key: bytes, value: bytes) -> bytes:
    """A field with this tag that holds a KeyValue whose AnyValue is ``value``."""
    return _field(tag, _field(0x0A, key) + _field(0x12, value))


class _IntAttribute:
    """An integer attribute whose bytes before the number are made once for each length of the number."""

    def __init__(self, tag: int, key: bytes) -> None:
        # A value of n zero bytes has the right lengths; they are cut off again.
        self._heads = [_attribute(tag, key, b"\x18" + bytes(n))[: -n or None] for n in range(11)]

    def encode(self, value: int) -> bytes:
        number = _encode_varint(value & _MASK)
        return self._heads[len(number)] + number


class _Attributes:
    """Our attributes in bytes, for one prefix and one kind of owner; what repeats is made once."""

    def __init__(self, prefix: str, tag: int) -> None:
        self.prefix = prefix.encode()
        keys = {name: self.prefix + name.encode() for name in NAMES}
        self.names = {key: name for name, key in keys.items()}
        self.offset, self.uncertainty = (_IntAttribute(tag, keys[name]) for name in (_OFFSET, _UNCERTAINTY))
        self.originals = tuple(_IntAttribute(tag, keys[name]) for name in _ORIGINALS)
        self._keys = keys
        self._tag = tag
        self._made: dict[tuple[str, str | bool], bytes] = {}

    def fact(self, name: str, value: str | bool) -> bytes:
        """One of ``FACTS``."""
        made = self._made.get((name, value))
        if made is None:
            if len(self._made) >= _TEXTS_MAX:
                self._made.clear()
            content = bytes((0x10, value)) if isinstance(value, bool) else _field(0x0A, value.encode())
            made = self._made[name, value] = _attribute(self._tag, self._keys[name], content)
        return made


@lru_cache(maxsize=32)
def _attributes_of(prefix: str, tag: int) -> _Attributes:
    return _Attributes(prefix, tag)


# ------------------------------------------------------------------------------------------------------ the walk

# The way down: field 1 of the request is ResourceSpans or ResourceLogs, field 2 of that are its scopes, and field 2 of
# those the spans or log records.


class _Record(Enum):
    """What is patched; the value is the tag of its attributes."""

    SPAN = 0x4A
    LOG = 0x32


_Ours: TypeAlias = list[tuple[str, int, int, int]]
"""Attributes of ours that arrived: name, where the field begins, where its KeyValue begins, where it ends."""


class _Walk:
    """One request on its way through: what is edited where, and what happened to its spans."""

    __slots__ = (
        "_at",
        "_attributes",
        "_body",
        "_edits",
        "_facts",
        "_inherited",
        "_keep",
        "_mode",
        "_node",
        "_on_resource",
        "_originals",
        "_ours_may_occur",
        "_record",
        "_resource_attributes",
        "_said",
        "_shifted",
        "_trust",
        "actions",
    )

    def __init__(self, body: bytes, options: PatchOptions, correction_at: CorrectionAt, record: _Record) -> None:
        self._body = body
        self._mode = options.mode
        self._node = options.node
        self._trust = options.incoming is Incoming.TRUST or options.mode is Mode.OFF
        self._on_resource = options.placement is not Placement.SPAN
        self._keep = options.keep_original and options.placement is not Placement.MINIMAL
        self._at = correction_at
        self._attributes = _attributes_of(options.prefix, record.value)
        self._resource_attributes = _attributes_of(options.prefix, 0x0A)
        start, end, time = self._attributes.originals
        self._originals = (start, end) if record is _Record.SPAN else (time, time)
        self._record = self._span if record is _Record.SPAN else self._log
        # One search in C saves looking at the key of every attribute in the usual case.
        self._ours_may_occur = self._mode is not Mode.OFF and self._attributes.prefix in body
        # (from, to, replacement) in order of position; None holds the place of what is not known yet.
        self._edits: list[tuple[int, int, bytes] | None] = []
        self._shifted: bytearray | None = None
        # Of the batch under way: facts that its Resource brought along, facts that it will carry (None until a span
        # decides them), and for what spans have in common with it or not, the bytes that remain for them to say.
        self._inherited: dict[str, _Value] = {}
        self._facts: tuple[_Value, ...] | None = None
        self._said: dict[tuple[str | None, Status, bool], bytes] = {}
        self.actions: dict[str, int] = {}

    def result(self) -> bytes:
        """The request with all edits made."""
        edits = [edit for edit in self._edits if edit is not None]
        if not edits:
            return self._body if self._shifted is None else bytes(self._shifted)
        source = memoryview(self._body if self._shifted is None else self._shifted)
        pieces: list[bytes | memoryview] = []
        cursor = 0
        for begin, end, replacement in edits:
            pieces.append(source[cursor:begin])
            pieces.append(replacement)
            cursor = end
        pieces.append(source[cursor:])
        return b"".join(pieces)

    def children(self, position: int, end: int, wanted: int, walk: Callable[[int, int], int]) -> int:
        """Walks the fields ``wanted`` of a message, each of them with ``walk``; returns by how many bytes it grows."""
        body, edits = self._body, self._edits
        growth = 0
        while position < end:
            tag = body[position]
            if tag >= 0x80:
                tag, position = _tag(body, position)
            else:
                position += 1
            if tag != wanted:
                if tag < 8:
                    raise _no_field(tag, position - 1)
                position = _skip(body, tag, position)
                continue
            size_at = position
            size, position = _varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise _overrun(end)
            place = len(edits)
            edits.append(None)
            growth += self._resize(place, size_at, position, stop, walk(position, stop))
            position = stop
        if position != end:
            raise _overrun(end)
        return growth

    def _resize(self, place: int, size_at: int, begin: int, stop: int, grown: int) -> int:
        """Writes a length anew, at its place among the edits, if it changed; returns by how much the field grows."""
        if not grown:
            return 0
        encoded = _encode_varint(stop - begin + grown)
        self._edits[place] = (size_at, begin, encoded)
        return grown + len(encoded) - (begin - size_at)

    def batch(self, position: int, end: int) -> int:
        """Walks one ResourceSpans or ResourceLogs; returns by how many bytes it grows.

        The Resource is read before any span, wherever it lies, and written after all of them.
        """
        body, edits = self._body, self._edits
        inside: list[tuple[int, int, int, _Ours | None]] = []  # None: scope spans
        while position < end:
            tag_at = position
            tag, position = _tag(body, position)
            if tag not in (0x0A, 0x12):
                position = _skip(body, tag, position)
                continue
            size_at = position
            size, position = _varint(body, position, 5)
            if position + size > end:
                raise _overrun(end)
            ours = self._resource(position, position + size) if tag == 0x0A else None
            inside.append((size_at, position, position + size, ours))
            position += size
        if position != end:
            raise _overrun(end)

        if self._inherited:
            self._inherited = {}
        if self._trust:
            for _, _, _, ours in inside:
                for name, _, begin, stop in ours or ():
                    if name in FACTS:
                        self._inherited[name] = _value(body, begin, stop)
        self._facts = None
        if self._on_resource:
            self._said = {}
        growth = 0
        resources: list[tuple[int, int, int, int, int, int]] = []
        for size_at, begin, stop, ours in inside:
            place = len(edits)
            edits.append(None)
            if ours is None:
                growth += self._resize(place, size_at, begin, stop, self.children(begin, stop, 0x12, self._record))
                continue
            cut = 0
            if not self._trust:
                for _, tag_at, _, behind in ours:
                    edits.append((tag_at, behind, b""))
                    cut += behind - tag_at
            resources.append((place, size_at, begin, stop, cut, len(edits)))
            edits.append(None)
        added = self._lacking()
        for number, (place, size_at, begin, stop, cut, addition) in enumerate(resources, 1):
            grown = -cut
            if added and number == len(resources):
                edits[addition] = (stop, stop, added)
                grown += len(added)
            growth += self._resize(place, size_at, begin, stop, grown)
        if added and not resources:
            edits.append((end, end, _field(0x0A, added)))
            growth += len(_field(0x0A, added))
        return growth

    def _resource(self, position: int, end: int) -> _Ours:
        """Reads a Resource: which of its attributes are ours."""
        body, names = self._body, self._attributes.names
        ours: _Ours = []
        while position < end:
            tag_at = position
            tag, position = _tag(body, position)
            if tag != 0x0A:
                position = _skip(body, tag, position)
                continue
            size, position = _varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise _overrun(end)
            name = names.get(_key(body, position, stop))
            if name is not None:
                ours.append((name, tag_at, position, stop))
            position = stop
        if position != end:
            raise _overrun(end)
        return ours

    def _lacking(self) -> bytes:
        """The facts that the Resource of this batch has yet to be given."""
        if self._facts is None:
            return b""
        return b"".join(
            self._resource_attributes.fact(name, value)
            for name, value in zip(FACTS, self._facts, strict=True)
            if name not in self._inherited and isinstance(value, str | bool)
        )

    def _facts_said(self, reference: str | None, status: Status, corrected: bool) -> bytes:
        """The attributes with these facts, as far as the Resource does not say the same."""
        what = (reference, status, corrected)
        said = self._said.get(what)
        if said is None:
            own: tuple[str | bool | None, ...] = (reference, status.value, self._node, corrected)
            if self._on_resource and self._facts is None:
                self._facts = tuple(self._inherited.get(name, fact) for name, fact in zip(FACTS, own, strict=True))
            theirs = self._facts if self._facts is not None else (None,) * len(FACTS)
            said = self._said[what] = b"".join(
                self._attributes.fact(name, fact)
                for name, fact, their in zip(FACTS, own, theirs, strict=True)
                if fact is not None and not (type(fact) is type(their) and fact == their)
            )
        return said

    def _span(self, position: int, end: int) -> int:
        """Walks one span and decides on it; returns by how many bytes it grows."""
        body = self._body
        ours_may_occur = self._ours_may_occur
        start_at = end_at = 0  # 0 is never the place of a span's field
        more_starts: list[int] | None = None
        more_ends: list[int] | None = None
        events: list[list[int]] | None = None
        ours: _Ours | None = None
        while position < end:
            tag_at = position
            tag = body[position]
            if tag >= 0x80:
                tag, position = _tag(body, position)
            else:
                position += 1
            if tag == 0x4A:  # attributes
                size = body[position]
                if size >= 0x80:
                    size, position = _varint(body, position, 5)
                else:
                    position += 1
                stop = position + size
                if stop > end:
                    raise _overrun(end)
                # Nearly every KeyValue is a short key and then a short value. Seen in one glance; others are walked.
                key: bytes | None = None
                if size > 3 and body[position] == 0x0A:
                    value_at = position + 2 + body[position + 1]
                    if value_at + 1 < stop and body[value_at] == 0x12 and body[position + 1] < 0x80:
                        value_size = body[value_at + 1]
                        if value_size < 0x80 and value_at + 2 + value_size == stop:
                            key = body[position + 2 : value_at] if ours_may_occur else b""
                if key is None:
                    key = _key(body, position, stop)
                if ours_may_occur:
                    name = self._attributes.names.get(key)
                    if name is not None:
                        if ours is None:
                            ours = []
                        ours.append((name, tag_at, position, stop))
                position = stop
            elif tag == 0x39:  # start_time_unix_nano
                if start_at:
                    more_starts = [*(more_starts or ()), start_at]
                start_at = position
                position += 8
            elif tag == 0x41:  # end_time_unix_nano
                if end_at:
                    more_ends = [*(more_ends or ()), end_at]
                end_at = position
                position += 8
            elif tag == 0x5A:  # events
                size, position = _varint(body, position, 5)
                stop = position + size
                if stop > end:
                    raise _overrun(end)
                times = _event_times(body, position, stop)
                if times:
                    if events is None:
                        events = []
                    events.append(times)
                position = stop
            elif tag < 8:
                raise _no_field(tag, tag_at)
            elif tag & 7 == 2:  # ids, name, links, status
                size = body[position]
                if size >= 0x80:
                    size, position = _varint(body, position, 5)
                else:
                    position += 1
                position += size
            else:
                position = _skip(body, tag, position)
        if position != end:
            raise _overrun(end)

        return self._decide(ours, end, start_at, more_starts, end_at, more_ends, events)

    def _log(self, position: int, end: int) -> int:
        """Walks one log record and decides on it; returns by how many bytes it grows."""
        body = self._body
        time_at = 0
        more: list[int] | None = None
        ours: _Ours | None = None
        while position < end:
            tag_at = position
            tag, position = _tag(body, position)
            if tag == 0x32:  # attributes
                size, position = _varint(body, position, 5)
                stop = position + size
                if stop > end:
                    raise _overrun(end)
                name = self._attributes.names.get(_key(body, position, stop)) if self._ours_may_occur else None
                if not self._ours_may_occur:
                    _key(body, position, stop)
                if name is not None:
                    ours = [*(ours or ()), (name, tag_at, position, stop)]
                position = stop
            elif tag == 0x09:  # time_unix_nano
                if time_at:
                    more = [*(more or ()), time_at]
                time_at = position
                position += 8
            else:
                position = _skip(body, tag, position)
        if position != end:
            raise _overrun(end)
        if self._mode is not Mode.OFF and not (time_at and _FIXED64.unpack_from(body, time_at)[0]):
            if ours is not None and not self._trust:
                return self._count(Action.UNCHANGED) + self._upsert(ours, end, b"")
            return self._count(Action.UNCHANGED)
        return self._decide(ours, end, time_at, more, 0, None, None)

    def _decide(
        self,
        ours: _Ours | None,
        end: int,
        start_at: int,
        more_starts: list[int] | None,
        end_at: int,
        more_ends: list[int] | None,
        events: list[list[int]] | None,
    ) -> int:
        """What becomes of one span (or log record: its time is its start); returns by how many bytes it grows.

        Args:
            ours: its attributes of ours.
            end: where it ends.
            start_at, end_at: where its times are, 0 for none; ``more_...``: where earlier occurrences of them are.
            events: the places of each event's time.
        """
        body = self._body
        if self._mode is Mode.OFF:
            return self._count(Action.PASSED)
        start = _FIXED64.unpack_from(body, start_at)[0] if start_at else 0
        finish = _FIXED64.unpack_from(body, end_at)[0] if end_at else 0
        undo = 0  # what an earlier correction on another reference had added
        rebased = False
        if self._trust and (ours is not None or self._inherited):
            before = self._before(ours or [], start, finish)
            if before is not None:
                reference, undone = before
                if self._mode is Mode.TAG or undone is None:
                    return self._count(Action.UNCHANGED)
                now = self._at((start or finish) - undone)
                if now.status is Status.UNSYNCHRONIZED or now.reference == reference:
                    return self._count(Action.UNCHANGED)
                undo, rebased = undone, True

        # The correction is the start's; the uncertainty, from there, covers the end and the events as well.
        anchor = (start or finish) - undo
        correction = self._at(anchor)
        reference_now, offset = correction.reference, correction.offset_ns
        uncertainty = correction.uncertainty_ns
        known = correction.status is not Status.UNSYNCHRONIZED
        if known and finish and finish - undo != anchor:
            at_end = self._at(finish - undo)
            if at_end.status is Status.UNSYNCHRONIZED or at_end.reference != reference_now:
                known = False
            else:
                uncertainty = max(uncertainty, at_end.uncertainty_ns + abs(at_end.offset_ns - offset))
        if not known:
            if rebased:
                return self._count(Action.UNCHANGED)
            added = self._facts_said(None, Status.UNSYNCHRONIZED, False)
            return self._count(Action.UNSYNCHRONIZED) + self._upsert(ours, end, added)

        shift = offset - undo
        event_shifts: list[int] = []
        if events is not None:
            for times in events:
                time = _FIXED64.unpack_from(body, times[-1])[0]
                event_shift = 0
                if time:
                    event_shift = shift
                    at_event = self._at(time - undo)
                    # An event stamped where nothing is known (an application may hand in any time) goes with its span.
                    if at_event.status is not Status.UNSYNCHRONIZED and at_event.reference == reference_now:
                        event_shift = at_event.offset_ns - undo
                        uncertainty = max(uncertainty, at_event.uncertainty_ns + abs(at_event.offset_ns - offset))
                event_shifts.append(event_shift)

        rewritten = False
        if self._mode is Mode.REWRITE:
            moves: list[tuple[int, int, int]] = []
            if start:
                moves.append((start_at, start, shift))
                if more_starts is not None:
                    moves.extend((at, _FIXED64.unpack_from(body, at)[0], shift) for at in more_starts)
            if finish:
                moves.append((end_at, finish, shift))
                if more_ends is not None:
                    moves.extend((at, _FIXED64.unpack_from(body, at)[0], shift) for at in more_ends)
            if events is not None:
                for times, by in zip(events, event_shifts, strict=True):
                    if by:
                        moves.extend((at, _FIXED64.unpack_from(body, at)[0], by) for at in times)
            rewritten = self._move(moves)
            if rebased and not rewritten:
                return self._count(Action.UNCHANGED)
        attributes = self._attributes
        added = (
            attributes.offset.encode(offset)
            + attributes.uncertainty.encode(uncertainty)
            + self._facts_said(reference_now, correction.status, rewritten)
        )
        if not rewritten:
            return self._count(Action.TAGGED) + self._upsert(ours, end, added)
        if self._keep:
            if start:
                added += self._originals[0].encode(start - undo)
            if finish:
                added += self._originals[1].encode(finish - undo)
        return self._count(Action.REWRITTEN) + self._upsert(ours, end, added)

    def _before(self, ours: _Ours, start: int, finish: int) -> tuple[_Value, int | None] | None:
        """What an earlier correction left: its reference and what it had added to the times (None: it cannot be told).

        None altogether if the span was not corrected. Of an attribute that occurs twice the last one counts; a fact
        that the span lacks is the Resource's.
        """
        corrected = self._inherited.get(_CORRECTED)
        for name, _, begin, end in ours:
            if name == _CORRECTED:
                corrected = _value(self._body, begin, end)
        if corrected is not True:
            return None
        values = {name: _value(self._body, begin, end) for name, _, begin, end in ours}
        reference = values.get(_REFERENCE) if _REFERENCE in values else self._inherited.get(_REFERENCE)
        offset = values.get(_OFFSET)
        if self._record == self._log:
            originals: tuple[tuple[int, str], ...] = ((start, _ORIGINAL_TIME),)
        else:
            originals = ((start, _ORIGINAL_START), (finish, _ORIGINAL_END))
        for time, name in originals:
            original = values.get(name)
            if time and type(original) is int:
                return reference, time - (original & _MASK)
        return reference, offset if type(offset) is int else None

    def _move(self, moves: list[tuple[int, int, int]]) -> bool:
        """Shifts (place, time, by) all, or (if one would leave its range) none. Zeros stay."""
        for _, time, by in moves:
            if time and not 0 < time + by <= _MASK:
                return False
        if self._shifted is None:
            self._shifted = bytearray(self._body)
        for at, time, by in moves:
            if time:
                _FIXED64.pack_into(self._shifted, at, time + by)
        return True

    def _upsert(self, ours: _Ours | None, end: int, added: bytes) -> int:
        growth = len(added)
        cut = end
        if ours is not None:
            growth -= sum(stop - begin for _, begin, _, stop in ours)
            # Ours at the very end, as a sidecar leaves them, are one cut together with what replaces them.
            while ours and ours[-1][3] == cut:
                cut = ours.pop()[1]
            self._edits.extend((begin, stop, b"") for _, begin, _, stop in ours)
        self._edits.append((cut, end, added))
        return growth

    def _count(self, action: Action) -> int:
        """Counts, and returns 0: a span that is only counted does not grow."""
        self.actions[action] = self.actions.get(action, 0) + 1
        return 0


def _event_times(body: bytes, position: int, end: int) -> list[int]:
    """The places of an event's ``time_unix_nano``: usually one."""
    times: list[int] = []
    while position < end:
        tag = body[position]
        if tag >= 0x80:
            tag, position = _tag(body, position)
        else:
            position += 1
        if tag == 0x09:
            times.append(position)
            position += 8
        elif tag < 8:
            raise _no_field(tag, position - 1)
        else:
            position = _skip(body, tag, position)
    if position != end:
        raise _overrun(end)
    return times
