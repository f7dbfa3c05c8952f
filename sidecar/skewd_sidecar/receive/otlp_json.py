"""OTLP/JSON to the protobuf bytes that say the same, and an answer back to JSON.

Everything behind the receivers works on serialized protobuf, so JSON becomes that at the door and there is one path.
The tables that say how are made from the message classes of ``opentelemetry-proto``; only the walk is our own, because
the protobuf library's own reader takes about 100 us a span, reads ids as base64, where OTLP has hexadecimal, and may
take a 64-bit integer through a float. Here no integer does: a time of the year 2026 has 61 bits, a float 53.

What is accepted (OTLP specification, "JSON Protobuf Encoding", and the protobuf JSON mapping beneath it): field names
in lowerCamelCase or as in the ``.proto`` files; ids in hexadecimal of either case; enums as numbers or names; 64-bit
integers as decimal strings or numbers; ``"NaN"``, ``"Infinity"``, ``"-Infinity"``; base64 of either alphabet; null for
absent. Unknown fields are ignored. Whatever else is wrong is refused, with the path to it.

Limits: ``DEPTH_MAX`` messages within each other, as protobuf readers have it. The memory that a body takes meanwhile is
many times its size; whoever calls counts it first (:mod:`skewd_sidecar.receive.json_census`). Pure. Loaded by the first
request in JSON.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias, cast

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.profiles.v1development import profiles_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import MalformedRequest

DEPTH_MAX = 100

_EXACT_MAX = 1 << 53  # floats above it skip integers
_FIELD_MAX = 1 << 64
_FLOAT_TEXT_MAX = 400  # digits; more say nothing that a double holds
_SMALL = tuple(bytes((value,)) for value in range(0x80))

_REQUESTS: dict[Signal, type[Message]] = {
    Signal.TRACES: trace_service_pb2.ExportTraceServiceRequest,
    Signal.METRICS: metrics_service_pb2.ExportMetricsServiceRequest,
    Signal.LOGS: logs_service_pb2.ExportLogsServiceRequest,
    Signal.PROFILES: profiles_service_pb2.ExportProfilesServiceRequest,
}
_RESPONSES: dict[Signal, type[Message]] = {
    Signal.TRACES: trace_service_pb2.ExportTraceServiceResponse,
    Signal.METRICS: metrics_service_pb2.ExportMetricsServiceResponse,
    Signal.LOGS: logs_service_pb2.ExportLogsServiceResponse,
    Signal.PROFILES: profiles_service_pb2.ExportProfilesServiceResponse,
}
_ID_BYTES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "profile_id": 16}

_Encode: TypeAlias = Callable[[Any, int], bytes]
"""A field's value, and how deep it stands, to its bytes, tag included."""


class _BadValue(ValueError):
    """A value that its field cannot hold; the path grows on the way out."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(why)
        self.why, self.path = why, path

    def within(self, step: str) -> _BadValue:
        joint = "." if self.path and not self.path.startswith("[") else ""
        return _BadValue(self.why, step + joint + self.path)


def to_protobuf(signal: Signal, body: bytes) -> bytes:
    """The serialized export request that a JSON body means.

    Raises:
        MalformedRequest: it is no JSON, or not of this signal's form; the message says where.
    """
    try:
        tree = _DECODER.decode(body)
        if not isinstance(tree, dict):
            raise _BadValue("the request is not an object")
        return _encode_message(_table(cast(Descriptor, _REQUESTS[signal].DESCRIPTOR)), tree, 1)
    except _BadValue as error:
        where = f"{error.path[:200]}: " if error.path else ""
        raise MalformedRequest(f"malformed OTLP/JSON: {where}{error.why}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"malformed OTLP/JSON: {error}") from None
    except RecursionError:
        raise MalformedRequest(f"malformed OTLP/JSON: nested deeper than {DEPTH_MAX}") from None


def answer_to_json(signal: Signal, answer: bytes) -> str:
    """A serialized export response as JSON: what was partly refused. One that cannot be read says nothing."""
    try:
        return json_format.MessageToJson(_RESPONSES[signal].FromString(answer), indent=None)
    except DecodeError:
        return "{}"


def _float(text: str) -> float | int:
    """A JSON number with a fraction or an exponent; if it is an integer that a float may miss, that integer.

    One that no field of integers holds stays a float: written out it may have three hundred digits.
    """
    value = float(text)
    if value.is_integer() and _EXACT_MAX <= abs(value) <= _FIELD_MAX and len(text) <= _FLOAT_TEXT_MAX:
        numerator, denominator = Decimal(text).as_integer_ratio()
        if denominator == 1:
            return numerator
    return value


_DECODER = msgspec.json.Decoder(float_hook=_float)


class _Table:
    """How the fields of one message are written: by either name, their number, their oneof and their writer."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, tuple[int, int, _Encode]] = {}


_TABLES: dict[str, _Table] = {}


def _table(message: Descriptor) -> _Table:
    table = _TABLES.get(message.full_name)
    if table is None:
        table = _TABLES[message.full_name] = _Table()  # before its fields: messages hold themselves
        for field in message.fields:
            oneof = field.containing_oneof
            # Members of a oneof exclude each other; a field that is alone in one excludes only itself.
            group = -1 - oneof.index if oneof is not None and len(oneof.fields) > 1 else field.number
            entry = (field.number, group, _writer(field))
            table.fields[field.name] = table.fields[field.json_name] = entry
    return table


def _encode_message(table: _Table, tree: dict[str, Any], depth: int) -> bytes:
    """
    Raises:
        _BadValue: something in it cannot be.
    """
    if depth > DEPTH_MAX:
        raise _BadValue(f"nested deeper than {DEPTH_MAX}")
    fields = table.fields
    parts: dict[int, tuple[int, bytes]] = {}
    key = ""
    try:
        for key, value in tree.items():
            entry = fields.get(key)
            if entry is None or value is None:
                continue
            number, group, encode = entry
            if group in parts:
                raise _BadValue("is there twice, or beside another of which only one can be")
            parts[group] = number, encode(value, depth)
    except _BadValue as error:
        raise error.within(key[:60]) from None
    if len(parts) == 1:
        return next(iter(parts.values()))[1]
    return b"".join([content for _, content in sorted(parts.values())])


def _writer(field: FieldDescriptor) -> _Encode:
    kind = field.type
    if kind == FieldDescriptor.TYPE_MESSAGE:
        assert field.message_type is not None
        return _messages(field, field.message_type)
    write, wire = _scalar(field)
    tag = _varint(field.number << 3 | wire)
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        return _one_text(tag, kept=field.has_presence)
    if field.is_repeated:
        if wire == 2:
            return _each(lambda value: tag + _delimited(write(value)))
        packed = _varint(field.number << 3 | 2)
        return _packed(packed, write)
    # Presence is kept where it means something: in a oneof, and where the .proto says optional.
    absent = None if field.has_presence else write(_ZERO[field.cpp_type])

    def encode(value: Any, depth: int) -> bytes:
        content = write(value)
        if content == absent:
            return b""
        return tag + _delimited(content) if wire == 2 else tag + content

    return encode


def _one_text(tag: bytes, *, kept: bool) -> _Encode:
    """The commonest field by far, written out; ``kept``: even if it is empty."""
    heads = tuple(tag + size for size in _SMALL)

    def encode(value: Any, depth: int) -> bytes:
        if not isinstance(value, str):
            raise _BadValue(f"{_shown(value)} is not text")
        content = value.encode()
        size = len(content)
        if size < 0x80:
            return heads[size] + content if size or kept else b""
        return tag + _varint(size) + content

    return encode


def _messages(field: FieldDescriptor, message: Descriptor) -> _Encode:
    tag = _varint(field.number << 3 | 2)
    table = _table(message)

    def one(value: Any, depth: int) -> bytes:
        if not isinstance(value, dict):
            raise _BadValue(f"{_shown(value)} is not an object")
        content = _encode_message(table, value, depth + 1)
        return tag + _varint(len(content)) + content

    def many(value: Any, depth: int) -> bytes:
        parts = []
        for each in _list(value):
            try:
                parts.append(one(each, depth))
            except _BadValue as error:
                raise error.within(f"[{len(parts)}]") from None
        return b"".join(parts)

    return many if field.is_repeated else one


def _each(write: Callable[[Any], bytes]) -> _Encode:
    def encode(value: Any, depth: int) -> bytes:
        parts = []
        for each in _list(value):
            try:
                parts.append(write(each))
            except _BadValue as error:
                raise error.within(f"[{len(parts)}]") from None
        return b"".join(parts)

    return encode


def _packed(tag: bytes, write: Callable[[Any], bytes]) -> _Encode:
    def encode(value: Any, depth: int) -> bytes:
        content = bytearray()  # rather than a list of pieces, each of which takes several times its bytes
        for number, each in enumerate(_list(value)):
            try:
                content += write(each)
            except _BadValue as error:
                raise error.within(f"[{number}]") from None
        return b"".join((tag, _varint(len(content)), content)) if content else b""

    return encode


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _BadValue(f"{_shown(value)} is not a list")
    return value


# ------------------------------------------------------------------------------------------------ single values

_ZERO: Mapping[int, Any] = {
    FieldDescriptor.CPPTYPE_STRING: "",  # of bytes, too: their JSON is text
    FieldDescriptor.CPPTYPE_BOOL: False,
    FieldDescriptor.CPPTYPE_ENUM: 0,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.0,
    FieldDescriptor.CPPTYPE_FLOAT: 0.0,
    FieldDescriptor.CPPTYPE_INT32: 0,
    FieldDescriptor.CPPTYPE_INT64: 0,
    FieldDescriptor.CPPTYPE_UINT32: 0,
    FieldDescriptor.CPPTYPE_UINT64: 0,
}
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def _scalar(field: FieldDescriptor) -> tuple[Callable[[Any], bytes], int]:
    """What writes a field's value without its tag, and the wire type."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return _text, 2
    if kind == FieldDescriptor.TYPE_BYTES:
        size = _ID_BYTES.get(field.name)
        return (_base64 if size is None else _hexadecimal(size)), 2
    if kind == FieldDescriptor.TYPE_BOOL:
        return _bool, 0
    if kind == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return _enum(field.enum_type), 0
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return _double("<d"), 1
    if kind == FieldDescriptor.TYPE_FLOAT:
        return _double("<f"), 5
    return _INTEGERS[kind]


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _BadValue(f"{_shown(value)} is not text")
    return value.encode()


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _BadValue(f"{_shown(value)} is not text in base64")
    try:
        padded = value + "=" * (-len(value) % 4)
        return base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise _BadValue(f"{_shown(value)} is not base64") from None


def _hexadecimal(size: int) -> Callable[[Any], bytes]:
    """An id of so many bytes, or none."""
    digits = re.compile(rf"(?:[0-9a-fA-F]{{{2 * size}}})?")

    def write(value: Any) -> bytes:
        if not isinstance(value, str) or digits.fullmatch(value) is None:
            raise _BadValue(f"{_shown(value)} is not {2 * size} hexadecimal digits, as OTLP/JSON writes ids")
        return bytes.fromhex(value)

    return write


def _bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise _BadValue(f"{_shown(value)} is not true or false")
    return b"\x01" if value else b"\x00"


def _enum(enum: EnumDescriptor) -> Callable[[Any], bytes]:
    numbers = {each.name: each.number for each in enum.values}

    def write(value: Any) -> bytes:
        number = numbers.get(value) if isinstance(value, str) else None
        if number is None:
            if isinstance(value, str) and _INTEGER.fullmatch(value) is None:
                raise _BadValue(f"{_shown(value)} is no {enum.name}; write its number")
            number = _integer(value, -(1 << 31), (1 << 31) - 1)
        return _varint(number & _MASK)

    return write


def _double(form: str) -> Callable[[Any], bytes]:
    pack = struct.Struct(form).pack

    def write(value: Any) -> bytes:
        if isinstance(value, str):
            special = _SPECIAL.get(value)
            if special is not None:
                return pack(special)
            if _NUMBER.fullmatch(value) is None:
                raise _BadValue(f"{_shown(value)} is not a number")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise _BadValue(f"{_shown(value)} is not a number")
        try:
            number = float(value)
            if number in (_SPECIAL["Infinity"], _SPECIAL["-Infinity"]):
                raise OverflowError
            return pack(number)
        except OverflowError:
            raise _BadValue(f"{_shown(value)} is out of range") from None

    return write


_MASK = (1 << 64) - 1


def _integer(value: Any, lowest: int, highest: int) -> int:
    number = None
    if isinstance(value, str):
        if _INTEGER.fullmatch(value) is not None:
            number = int(value)
        elif _NUMBER.fullmatch(value) is not None:
            number = _exact(value)
    elif isinstance(value, float):
        # Between both it was made an integer when it was read, if it is one; beyond it is out of range.
        number = int(value) if value.is_integer() and not _EXACT_MAX <= abs(value) <= _FIELD_MAX else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None:
        raise _BadValue(f"{_shown(value)} is not an integer")
    if not lowest <= number <= highest:
        raise _BadValue(f"{_shown(value)} is out of range; it is from {lowest} to {highest}")
    return number


def _exact(text: str) -> int | None:
    """The integer that a number with a fraction or an exponent is, if it is one that fits any field."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    if abs(number) >= 1 << 64 or number != number.to_integral_value():
        return None
    return int(number)


def _unsigned(bits: int) -> Callable[[Any], bytes]:
    highest = (1 << bits) - 1
    return lambda value: _varint(_integer(value, 0, highest))


def _signed(bits: int) -> Callable[[Any], bytes]:
    highest = (1 << (bits - 1)) - 1
    return lambda value: _varint(_integer(value, -highest - 1, highest) & _MASK)


def _zigzag(bits: int) -> Callable[[Any], bytes]:
    highest = (1 << (bits - 1)) - 1

    def write(value: Any) -> bytes:
        number = _integer(value, -highest - 1, highest)
        return _varint(number << 1 if number >= 0 else (-number << 1) - 1)

    return write


def _fixed(form: str, lowest: int, highest: int) -> Callable[[Any], bytes]:
    pack = struct.Struct(form).pack
    return lambda value: pack(_integer(value, lowest, highest))


_INTEGERS: Mapping[int, tuple[Callable[[Any], bytes], int]] = {
    FieldDescriptor.TYPE_INT32: (_signed(32), 0),
    FieldDescriptor.TYPE_INT64: (_signed(64), 0),
    FieldDescriptor.TYPE_UINT32: (_unsigned(32), 0),
    FieldDescriptor.TYPE_UINT64: (_unsigned(64), 0),
    FieldDescriptor.TYPE_SINT32: (_zigzag(32), 0),
    FieldDescriptor.TYPE_SINT64: (_zigzag(64), 0),
    FieldDescriptor.TYPE_FIXED32: (_fixed("<I", 0, (1 << 32) - 1), 5),
    FieldDescriptor.TYPE_FIXED64: (_fixed("<Q", 0, _MASK), 1),
    FieldDescriptor.TYPE_SFIXED32: (_fixed("<i", -(1 << 31), (1 << 31) - 1), 5),
    FieldDescriptor.TYPE_SFIXED64: (_fixed("<q", -(1 << 63), (1 << 63) - 1), 1),
}


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _shown(value: Any) -> str:
    """A value, short enough for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{str(value)[:40]}'"
