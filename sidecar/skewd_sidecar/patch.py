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
- Attributes are upserted: all of ours that a span carries go, one of each is appended. A key that occurs twice within
  one KeyValue counts with its last value.
- A time of 0, or none, means "unknown": it is never shifted and never created. A shift that would leave 1..2^64-1
  anywhere in a span is not done at all: that span keeps its times and is tagged instead.
- Malformed (a length past its message's end, a field 0, wire types 6 and 7, a group that does not match, varints
  longer than they may be): the request is refused whole, in every mode alike.
- ``clock.corrected = true`` on the reference in force passes unchanged. On another reference a rewrite re-bases from
  the originals; where that cannot be done (no bound now, no originals and no offset), and under ``tag``, which moves
  nothing, the span passes unchanged, since what it says of itself is still true.

The tag speaks for the whole span: the uncertainty covers the bound at its start, at its end and at its events, all
as seen from the start's offset. So a clock that was stepped in the middle of a span is not hidden by the tag. A span
whose end no bound covers is unsynchronized.

Limits: what lies deeper than the fields read here (the resource, links, the values of other people's attributes, the
attributes of events) is carried unread: whether it is well-formed is for the receiver to say. Offsets and
uncertainties fit in 64 bits. Groups nest ``GROUPS_MAX`` deep. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from skewd.bounds.history import Correction, Status

GROUPS_MAX = 100
"""Deepest nesting of (deprecated, unknown) groups that is skipped; protobuf's own limit."""

PREFIX_MAX_BYTES = 64
"""Longest attribute prefix, in UTF-8."""

_MASK = (1 << 64) - 1
_FIXED64 = struct.Struct("<Q")
_FACTS_MAX = 64
_OTHER_VALUES = (0x21, 0x2A, 0x32, 0x3A, 0x40)  # AnyValue's other members: a oneof, so the last member counts

_OFFSET = "offset_ns"
_UNCERTAINTY = "uncertainty_ns"
_REFERENCE = "reference"
_STATUS = "status"
_NODE = "node.name"
_CORRECTED = "corrected"
_ORIGINAL_START = "original.start_time_unix_nano"
_ORIGINAL_END = "original.end_time_unix_nano"
NAMES = (_OFFSET, _UNCERTAINTY, _REFERENCE, _STATUS, _NODE, _CORRECTED, _ORIGINAL_START, _ORIGINAL_END)
"""The attributes that are ours, without their prefix, in the order in which they are appended."""


class Mode(StrEnum):
    """What happens to a span: nothing, attributes only, or times and attributes."""

    OFF = "off"
    TAG = "tag"
    REWRITE = "rewrite"


class Action(StrEnum):
    """What happened to a span: contract names of ``skewd_spans_total{action}``."""

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
        keep_original: whether a rewritten span carries its times from before.

    Raises:
        ValueError: the prefix is empty or longer than ``PREFIX_MAX_BYTES``.
    """

    mode: Mode
    node: str
    prefix: str = "clock."
    keep_original: bool = True

    def __post_init__(self) -> None:
        if not 0 < len(self.prefix.encode()) <= PREFIX_MAX_BYTES:
            raise ValueError(
                f"the attribute prefix {self.prefix[:80]!r} has {len(self.prefix.encode())} bytes; "
                f"it needs 1 to {PREFIX_MAX_BYTES}, as 'clock.'"
            )


@dataclass(frozen=True, slots=True)
class PatchResult:
    """The request to send on, how many spans it holds, and how many of them were treated how (see ``Action``)."""

    body: bytes
    spans: int
    actions: dict[str, int]


def patch_traces(body: bytes, options: PatchOptions, correction_at: Callable[[int], Correction]) -> PatchResult:
    """Corrects every span of a serialized ``ExportTraceServiceRequest``.

    Args:
        body: the request as received, not compressed.
        options: what to do.
        correction_at: the correction for a stamp (ns since 1970) of the node's wall clock. Not called under ``off``.

    Raises:
        MalformedRequest: the body cannot be walked to its end; nothing of it should be sent on.
    """
    walk = _Walk(body, options, correction_at)
    try:
        walk.messages(0, len(body), 0)
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
        raise MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {position}")
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


def _value(body: bytes, position: int, end: int) -> str | int | bool | None:
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
    value: str | int | bool | None = None
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


def _attribute(key: bytes, value: bytes) -> bytes:
    """Span field 9: a KeyValue whose AnyValue is ``value``."""
    return _field(0x4A, _field(0x0A, key) + _field(0x12, value))


class _IntAttribute:
    """An integer attribute whose bytes before the number are made once for each length of the number."""

    def __init__(self, key: bytes) -> None:
        # A value of n zero bytes has the right lengths; they are cut off again.
        self._heads = [_attribute(key, b"\x18" + bytes(n))[: -n or None] for n in range(11)]

    def encode(self, value: int) -> bytes:
        number = _encode_varint(value & _MASK)
        return self._heads[len(number)] + number


class _Attributes:
    """Our attributes in bytes, for one set of options; what repeats from span to span is made once."""

    def __init__(self, options: PatchOptions) -> None:
        self.prefix = options.prefix.encode()
        self.keys = {name: self.prefix + name.encode() for name in NAMES}
        self.names = {key: name for name, key in self.keys.items()}
        self._offset = _IntAttribute(self.keys[_OFFSET])
        self._uncertainty = _IntAttribute(self.keys[_UNCERTAINTY])
        self.original_start = _IntAttribute(self.keys[_ORIGINAL_START])
        self.original_end = _IntAttribute(self.keys[_ORIGINAL_END])
        self._node = self._text(_NODE, options.node)
        self._corrected = tuple(_attribute(self.keys[_CORRECTED], bytes((0x10, flag))) for flag in (0, 1))
        self.unsynchronized = self._text(_STATUS, Status.UNSYNCHRONIZED) + self._node + self._corrected[0]
        self._facts: dict[tuple[str | None, Status, bool], bytes] = {}
        self._last: tuple[int, int, str | None, Status, bool] | None = None
        self._last_bytes = b""

    def _text(self, name: str, text: str) -> bytes:
        return _attribute(self.keys[name], _field(0x0A, text.encode()))

    def measured(self, correction: Correction, uncertainty_ns: int, corrected: bool) -> bytes:
        """All but the originals."""
        what = (correction.offset_ns, uncertainty_ns, correction.reference, correction.status, corrected)
        if what != self._last:
            facts = self._facts.get(what[2:])
            if facts is None:
                if len(self._facts) >= _FACTS_MAX:
                    self._facts.clear()
                reference = b"" if correction.reference is None else self._text(_REFERENCE, correction.reference)
                facts = reference + self._text(_STATUS, correction.status) + self._node + self._corrected[corrected]
                self._facts[what[2:]] = facts
            self._last_bytes = self._offset.encode(what[0]) + self._uncertainty.encode(uncertainty_ns) + facts
            self._last = what
        return self._last_bytes


@lru_cache(maxsize=16)
def _attributes_of(options: PatchOptions) -> _Attributes:
    return _Attributes(options)


# ------------------------------------------------------------------------------------------------------ the walk

# The way down: field 1 of the request is ResourceSpans, field 2 of that ScopeSpans, field 2 of that Span.
_DESCENT = (0x0A, 0x12, 0x12)


class _Walk:
    """One request on its way through: what is edited where, and what happened to its spans."""

    __slots__ = ("_at", "_attributes", "_body", "_edits", "_keep", "_mode", "_ours_may_occur", "_shifted", "actions")

    def __init__(self, body: bytes, options: PatchOptions, correction_at: Callable[[int], Correction]) -> None:
        self._body = body
        self._mode = options.mode
        self._keep = options.keep_original
        self._at = correction_at
        self._attributes = _attributes_of(options)
        # One search in C saves looking at the key of every attribute in the usual case.
        self._ours_may_occur = self._mode is not Mode.OFF and self._attributes.prefix in body
        # (from, to, replacement) in order of position; None holds the place of a length that is not known yet.
        self._edits: list[tuple[int, int, bytes] | None] = []
        self._shifted: bytearray | None = None
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

    def messages(self, position: int, end: int, level: int) -> int:
        """Walks one message of the descent; returns by how many bytes it grows."""
        body, edits, wanted = self._body, self._edits, _DESCENT[level]
        growth = 0
        while position < end:
            tag = body[position]
            if tag >= 0x80:
                tag, position = _tag(body, position)
            else:
                position += 1
            if tag != wanted:
                if tag < 8:
                    raise MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {position - 1}")
                position = _skip(body, tag, position)
                continue
            size_at = position
            size, position = _varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise _overrun(end)
            place = len(edits)
            edits.append(None)
            grown = self._span(position, stop) if level == 2 else self.messages(position, stop, level + 1)
            if grown:
                encoded = _encode_varint(size + grown)
                edits[place] = (size_at, position, encoded)
                growth += grown + len(encoded) - (position - size_at)
            position = stop
        if position != end:
            raise _overrun(end)
        return growth

    def _span(self, position: int, end: int) -> int:
        """Walks one span and decides on it; returns by how many bytes it grows."""
        body = self._body
        ours_may_occur = self._ours_may_occur
        start_at = end_at = 0  # 0 is never the place of a span's field
        more_starts: list[int] | None = None
        more_ends: list[int] | None = None
        events: list[list[int]] | None = None
        ours: list[tuple[str, int, int, int]] | None = None
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
            elif tag & 7 == 2:  # ids, name, links, status
                size = body[position]
                if size >= 0x80:
                    size, position = _varint(body, position, 5)
                else:
                    position += 1
                position += size
                if tag < 8:
                    raise MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {tag_at}")
            else:
                if tag < 8:
                    raise MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {tag_at}")
                position = _skip(body, tag, position)
        if position != end:
            raise _overrun(end)

        if self._mode is Mode.OFF:
            return self._count(Action.PASSED)
        start = _FIXED64.unpack_from(body, start_at)[0] if start_at else 0
        finish = _FIXED64.unpack_from(body, end_at)[0] if end_at else 0
        undo = 0  # what an earlier correction on another reference had added
        rebased = False
        if ours is not None:
            before = self._before(ours, start, finish)
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
            return self._count(Action.UNSYNCHRONIZED) + self._upsert(ours, end, self._attributes.unsynchronized)

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
        added = self._attributes.measured(correction, uncertainty, rewritten)
        if not rewritten:
            return self._count(Action.TAGGED) + self._upsert(ours, end, added)
        if self._keep:
            if start:
                added += self._attributes.original_start.encode(start - undo)
            if finish:
                added += self._attributes.original_end.encode(finish - undo)
        return self._count(Action.REWRITTEN) + self._upsert(ours, end, added)

    def _before(
        self, ours: list[tuple[str, int, int, int]], start: int, finish: int
    ) -> tuple[str | int | bool | None, int | None] | None:
        """What an earlier correction left: its reference and what it had added to the times (None: it cannot be told).

        None altogether if the span was not corrected. Of an attribute that occurs twice the last one counts.
        """
        corrected = None
        for name, _, begin, end in ours:
            if name == _CORRECTED:
                corrected = _value(self._body, begin, end)
        if corrected is not True:
            return None
        values = {name: _value(self._body, begin, end) for name, _, begin, end in ours}
        reference = values.get(_REFERENCE)
        offset = values.get(_OFFSET)
        for time, name in ((start, _ORIGINAL_START), (finish, _ORIGINAL_END)):
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

    def _upsert(self, ours: list[tuple[str, int, int, int]] | None, end: int, added: bytes) -> int:
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
            raise MalformedRequest(f"malformed OTLP body: no field has the tag {tag}, at byte {position - 1}")
        else:
            position = _skip(body, tag, position)
    if position != end:
        raise _overrun(end)
    return times
