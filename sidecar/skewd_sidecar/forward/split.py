"""Takes serialized export requests apart and puts them together, without parsing what they hold.

Export requests of all signals have one shape: a request holds ``ResourceX`` messages, which hold ``ScopeX`` messages,
which hold the records (spans, log records, metrics), and what stands beside them (the resource, the scope, the schema
URLs) is said once for all of them. Two facts of protobuf's wire format make both directions cheap. Serialized messages
that consist of repeated fields only are *concatenated* to merge them: two requests behind each other are one request
with the content of both. And a part of a request is made by copying byte ranges: the records that belong to it, and
of every message around them all fields that are not such items, in their order. So each part says what the whole said
of its records, unknown fields included, and only lengths are written anew.

- ``split``: parts of at most so many bytes, records in their order.
- ``by_trace``: one part per trace id, for a log keyed by it.
- ``mergeable``: whether a request consists of its repeated field alone, so that another may follow it.

Profiles hold a dictionary beside their items, which indices point into: they are never merged, and a part of them
carries the whole dictionary.

Limits: a record is never divided, so a part with one record that is larger than allowed comes out larger; a metric
counts as one record with all its data points. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Iterator

_ITEM_FIELDS = (1, 2, 2)  # ResourceX in a request, ScopeX in a ResourceX, records in a ScopeX
_RECORD_LEVEL = len(_ITEM_FIELDS)
_HEAD_MAX_BYTES = 6  # an item's tag is one byte, its length at most five
_TRACE_ID = 1
_GROUPS_MAX = 100


class NotARequest(ValueError):
    """The bytes cannot be walked as an export request; the message says where."""


def mergeable(body: bytes) -> bool:
    """Whether ``body`` consists of ``ResourceX`` messages only, so that requests like it merge by concatenation."""
    position, end = 0, len(body)
    try:
        while position < end:
            if body[position] != 0x0A:  # field 1, with a length: in the one form that serializers write
                return False
            size, position = _read_varint(body, position + 1)
            position += size
    except (IndexError, NotARequest):
        return False
    return position == end


def records(body: bytes) -> int:
    """How many spans, log records or metrics a request holds.

    Raises:
        NotARequest: it cannot be walked.
    """
    return _records(body, 0, len(body), 0)


def split(body: bytes, max_bytes: int) -> list[bytes]:
    """The request in parts of at most ``max_bytes``, whose union it is; itself, alone, if it is small enough.

    Args:
        body: a serialized export request.
        max_bytes: of one part. Only a part with a single record may be larger.

    Raises:
        NotARequest: it cannot be walked.
    """
    if len(body) <= max_bytes:
        return [body]
    return _parts(body, 0, len(body), 0, max_bytes)


def by_trace(body: bytes) -> list[tuple[str, bytes]]:
    """The request as one part per trace: the trace id in lower-case hex, and the request with that trace's spans.

    Spans without a trace id, and messages that hold no span, are together in one part with an empty id. In the order
    in which the traces first occur.

    Args:
        body: a serialized ``ExportTraceServiceRequest``.

    Raises:
        NotARequest: it cannot be walked.
    """
    found = _grouped(body, 0, len(body), 0)
    if len(found) == 1:
        return [(key.hex(), body) for key in found]
    return [(key.hex(), content) for key, content in found.items()]


# -------------------------------------------------------------------------------------------------------- parts


def _parts(body: bytes, begin: int, end: int, level: int, max_bytes: int) -> list[bytes]:
    """The content of a message as contents of at most ``max_bytes``."""
    if level == _RECORD_LEVEL:
        return [body[begin:end]]
    beside = b"".join(body[at:stop] for is_item, at, stop, _ in _pieces(body, begin, end, level) if not is_item)
    made: list[bytes] = []
    items: list[bytes] = []
    size = len(beside)
    for is_item, at, stop, content_at in _pieces(body, begin, end, level):
        if not is_item:
            continue
        if len(beside) + stop - at <= max_bytes:
            fitting = [body[at:stop]]
        else:
            room = max_bytes - len(beside) - _HEAD_MAX_BYTES
            fitting = [_item(level, content) for content in _parts(body, content_at, stop, level + 1, room)]
        for item in fitting:
            if items and size + len(item) > max_bytes:
                made.append(beside + b"".join(items))
                items, size = [], len(beside)
            items.append(item)
            size += len(item)
    if items or not made:
        made.append(beside + b"".join(items))
    return made


def _grouped(body: bytes, begin: int, end: int, level: int) -> dict[bytes, bytes]:
    """A message's content by trace id: of each trace that has spans below, its own spans and what stands beside."""
    beside = bytearray()
    found: dict[bytes, list[bytes]] = {}
    for is_item, at, stop, content_at in _pieces(body, begin, end, level):
        if not is_item:
            beside += body[at:stop]
        elif level == _RECORD_LEVEL - 1:
            found.setdefault(_trace_id(body, content_at, stop), []).append(body[at:stop])
        else:
            for key, content in _grouped(body, content_at, stop, level + 1).items():
                found.setdefault(key, []).append(_item(level, content))
    if not found:
        return {b"": bytes(beside)}
    return {key: b"".join((beside, *items)) for key, items in found.items()}


def _item(level: int, content: bytes) -> bytes:
    return bytes((_ITEM_FIELDS[level] << 3 | 2,)) + _varint(len(content)) + content


def _pieces(body: bytes, begin: int, end: int, level: int) -> Iterator[tuple[bool, int, int, int]]:
    """Each field of a message: whether it is an item, where it begins and ends, and where its content does."""
    wanted = _ITEM_FIELDS[level]
    for number, wire, at, content_at, stop in _fields(body, begin, end):
        yield number == wanted and wire == 2, at, stop, content_at


def _records(body: bytes, begin: int, end: int, level: int) -> int:
    return sum(
        1 if level == _RECORD_LEVEL - 1 else _records(body, content_at, stop, level + 1)
        for is_item, _, stop, content_at in _pieces(body, begin, end, level)
        if is_item
    )


def _trace_id(body: bytes, begin: int, end: int) -> bytes:
    found = b""
    for number, wire, _, content_at, stop in _fields(body, begin, end):
        if number == _TRACE_ID and wire == 2:
            found = body[content_at:stop]
    return found


# ---------------------------------------------------------------------------------------------- the wire format


def _fields(body: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field: number, wire type, where it begins, where its content begins, where it ends."""
    try:
        while position < end:
            at = position
            tag, position = _read_varint(body, position)
            content_at, stop = _skip(body, tag, position, 0)
            if stop > end:
                break
            yield tag >> 3, tag & 7, at, content_at, stop
            position = stop
    except IndexError:
        position = -1
    if position != end:
        raise NotARequest(f"not an export request: a field ends past its message, before byte {end}")


def _skip(body: bytes, tag: int, position: int, depth: int) -> tuple[int, int]:
    """Where the content of the field with this tag begins and ends."""
    wire = tag & 7
    if wire == 2:
        size, position = _read_varint(body, position)
        return position, position + size
    if wire == 0:
        return position, _read_varint(body, position)[1]
    if wire == 1:
        return position, position + 8
    if wire == 5:
        return position, position + 4
    if wire != 3 or depth >= _GROUPS_MAX:
        raise NotARequest(f"not an export request: no field has the tag {tag}, before byte {position}")
    begin = position
    while True:
        inner, position = _read_varint(body, position)
        if inner & 7 == 4:
            return begin, position
        position = _skip(body, inner, position, depth + 1)[1]


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    byte = body[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        position += 1
        byte = body[position]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise NotARequest(f"not an export request: a number is too long, before byte {position}")
    return value, position + 1


def _varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
