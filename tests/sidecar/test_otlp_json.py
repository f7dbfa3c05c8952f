"""OTLP/JSON means the same as protobuf: any message of any signal, written in any form that JSON allows."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import random
import tracemalloc
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from skewd_sidecar.gateway import Signal
from skewd_sidecar.patch import MalformedRequest
from skewd_sidecar.receive.json_census import take_json_census
from skewd_sidecar.receive.otlp_json import DEPTH_MAX, answer_to_json, to_protobuf

REQUESTS: dict[Signal, type[Message]] = {
    Signal.TRACES: ExportTraceServiceRequest,
    Signal.METRICS: ExportMetricsServiceRequest,
    Signal.LOGS: ExportLogsServiceRequest,
    Signal.PROFILES: ExportProfilesServiceRequest,
}
IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "profile_id": 16}
BITS = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_FIXED32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FIXED64: (0, (1 << 64) - 1),
}


def some_value(field: Any, rng: random.Random) -> Any:
    if field.type in BITS:
        low, high = BITS[field.type]
        return rng.choice((low, high, 0, 1, rng.randint(low, high), rng.randint(low, high) >> 20))
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(("", "plain", 'quote " \\ \n\t\u0000', "grüße 時計 🕰", "123", "x" * 200))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, IDS[field.name])) if field.name in IDS else rng.randint(0, 9))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([each.number for each in field.enum_type.values])
    return rng.choice((0.0, -0.0, 1.5, -1e300, 5e-324, 2.0**53 + 2, 1e22, math.inf, -math.inf, math.nan, rng.random()))


def fill(message: Message, rng: random.Random, depth: int = 0) -> None:
    """Any fields, any values; of a oneof one."""
    oneofs: list[Any] = list(message.DESCRIPTOR.oneofs)
    chosen = {oneof.name: rng.choice(list(oneof.fields)).name for oneof in oneofs}
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if (oneof is not None and chosen[oneof.name] != field.name) or rng.random() < 0.25:
            continue
        count = rng.choice((1, 1, 2)) if field.is_repeated else 1
        for _ in range(count):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                if depth < 9:
                    own = getattr(message, field.name)
                    if not field.is_repeated:
                        own.SetInParent()
                    fill(own.add() if field.is_repeated else own, rng, depth + 1)
            elif field.is_repeated:
                getattr(message, field.name).append(some_value(field, rng))
            else:
                setattr(message, field.name, some_value(field, rng))


def written(field: Any, value: Any, rng: random.Random) -> Any:
    """A value in one of the forms that JSON has for it."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return tree(value, rng)
    if field.type in BITS:
        return rng.choice((value, str(value)))
    if field.type == FieldDescriptor.TYPE_BYTES:
        if field.name in IDS:
            return rng.choice((value.hex(), value.hex().upper()))
        return rng.choice((base64.b64encode(value), base64.urlsafe_b64encode(value).rstrip(b"="))).decode()
    if field.type == FieldDescriptor.TYPE_ENUM:
        names = field.enum_type.values_by_number
        return rng.choice((value, names[value].name))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        if math.isnan(value) or math.isinf(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return rng.choice((value, repr(value), int(value) if value.is_integer() and str(value) != "-0.0" else value))
    return value


def tree(message: Message, rng: random.Random) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        name = rng.choice((field.name, field.json_name))
        out[name] = [written(field, each, rng) for each in value] if field.is_repeated else written(field, value, rng)
    if rng.random() < 0.2:
        out["ofTheFuture"] = rng.choice(({"a": [1]}, None, "x"))
    absent = [each for each in message.DESCRIPTOR.fields if each.name not in out and each.json_name not in out]
    if absent and rng.random() < 0.2:
        out[rng.choice(absent).json_name] = None
    items = list(out.items())
    rng.shuffle(items)
    return dict(items)


@pytest.mark.parametrize("signal", list(Signal))
def test_any_message_in_any_form_becomes_the_bytes_that_protobuf_writes(signal: Signal) -> None:
    rng = random.Random(f"otlp {signal}")
    seen = 0
    for _ in range(400):
        message = REQUESTS[signal]()
        fill(message, rng)
        body = json.dumps(tree(message, rng)).encode()
        wanted = message.SerializeToString(deterministic=True)
        assert to_protobuf(signal, body) == wanted
        seen += len(wanted)
    assert seen > 100_000, "the messages are worth comparing"


def span(fields: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "a"}, fields]}]}]}).encode()


def read_span(body: bytes) -> Any:
    request = ExportTraceServiceRequest.FromString(to_protobuf(Signal.TRACES, body))
    return request.resource_spans[0].scope_spans[0].spans[1]


@pytest.mark.parametrize(
    "text", ["1790000000000000001", '"1790000000000000001"', "1790000000000000001.0", "1.790000000000000001e18"]
)
def test_no_integer_goes_through_a_float(text: str) -> None:
    body = span({"startTimeUnixNano": "@"}).replace(b'"@"', text.encode())
    assert read_span(body).start_time_unix_nano == 1_790_000_000_000_000_001
    negative = text.replace("1", "-1", 1).encode()
    body = span({"attributes": [{"key": "k", "value": {"intValue": "@"}}]}).replace(b'"@"', negative)
    assert read_span(body).attributes[0].value.int_value == -1_790_000_000_000_000_001


def test_a_double_is_what_the_text_says_to_the_last_bit() -> None:
    for text in ("9007199254740993.5", "0.1", "1e22", "-0.0", "123456789012345678901234567890", "5e-324"):
        body = span({"attributes": [{"key": "k", "value": {"doubleValue": "@"}}]}).replace(b'"@"', text.encode())
        assert str(read_span(body).attributes[0].value.double_value) == str(float(text))


def test_what_is_there_though_empty_stays_there() -> None:
    found = read_span(span({"attributes": [{"key": "k", "value": {"stringValue": ""}}, {"key": "l", "value": {}}]}))
    assert found.attributes[0].value.WhichOneof("value") == "string_value"
    assert found.attributes[1].HasField("value")
    assert read_span(span({"parentSpanId": ""})).parent_span_id == b""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"traceId": "zz" * 16}, "spans[1].traceId: 'zzzz"),
        ({"traceId": "ab" * 8}, "not 32 hexadecimal digits"),
        ({"spanId": base64.b64encode(b"12345678").decode()}, "not 16 hexadecimal digits"),
        ({"startTimeUnixNano": -1}, "startTimeUnixNano: '-1' is out of range"),
        ({"startTimeUnixNano": 1 << 64}, "out of range"),
        ({"startTimeUnixNano": "99999999999999999999"}, "out of range"),
        ({"startTimeUnixNano": 1.5}, "'1.5' is not an integer"),
        ({"startTimeUnixNano": "1_0"}, "is not an integer"),
        ({"startTimeUnixNano": True}, "true is not an integer"),
        ({"kind": "SPAN_KIND_SIDEWAYS"}, "is no SpanKind; write its number"),
        ({"name": 5}, "name: '5' is not text"),
        ({"events": {}}, "events: an object is not a list"),
        ({"events": [{}, 7]}, "spans[1].events[1]: '7' is not an object"),
        ({"events": [None]}, "events[0]: null is not an object"),
        ({"status": []}, "status: a list is not an object"),
        ({"attributes": [{"key": "k", "value": {"boolValue": 1}}]}, "boolValue: '1' is not true or false"),
        ({"attributes": [{"key": "k", "value": {"bytesValue": "é"}}]}, "is not base64"),
        ({"attributes": [{"key": "k", "value": {"doubleValue": "nan"}}]}, "'nan' is not a number"),
        ({"attributes": [{"value": {"intValue": 1, "stringValue": "a"}}]}, "only one can be"),
        ({"traceState": "a", "trace_state": "b"}, "trace_state: is there twice"),
    ],
)
def test_what_cannot_be_is_refused_with_the_path_to_it(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(MalformedRequest) as error:
        to_protobuf(Signal.TRACES, span(fields))
    assert text in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"7", b"{", b'{"resourceSpans": [', b"\xff{}", b'{"resourceSpans": 7}', b"{}x", b"NaN"),
        *(b'{"resourceSpans": [{"schemaUrl": "\\ud800"}]}', b'{"resourceSpans": [{"schemaUrl": "\xff"}]}', b"1" * 5000),
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="malformed OTLP/JSON"):
        to_protobuf(Signal.TRACES, body)


def names_of(message: Any, seen: dict[str, list[str]]) -> list[str]:
    """The field names of a message and all below it."""
    if message.full_name not in seen:
        seen[message.full_name] = [each.json_name for each in message.fields]
        for field in message.fields:
            if field.message_type is not None:
                names_of(field.message_type, seen)
    return sorted({name for names in seen.values() for name in names})


NAMES = sorted({name for request in REQUESTS.values() for name in names_of(request.DESCRIPTOR, {})})
ODD = st.sampled_from(["", "NaN", "Infinity", "1e400", "-0", "1.5", "00", "9" * 30, "ab" * 16, "é", "SPAN_KIND_SERVER"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ODD | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
)


@given(st.sampled_from(list(Signal)), TREES, st.sampled_from(["spans", "metrics", "logRecords", "profiles"]))
def test_whatever_it_holds_it_is_taken_or_refused_as_malformed(signal: Signal, inner: Any, name: str) -> None:
    way = {"spans": "Spans", "metrics": "Metrics", "logRecords": "Logs", "profiles": "Profiles"}[name]
    tree = {f"resource{way}": [{f"scope{way}": [{name: inner if isinstance(inner, list) else [inner]}]}]}
    for each in (inner, tree):
        try:
            taken = to_protobuf(signal, json.dumps(each).encode())
        except MalformedRequest:
            continue
        REQUESTS[signal].FromString(taken)


def nested(depth: int) -> bytes:
    """An attribute whose list holds a list, and so on; with the four around it so many messages deep."""
    value = '{"arrayValue":{"values":[' * depth + '{"intValue":1}' + "]}}" * depth
    inner = '{"spans":[{"attributes":[{"key":"k","value":' + value + "}]}]}"
    return ('{"resourceSpans":[{"scopeSpans":[' + inner + "]}]}").encode()


def test_nesting_is_bounded_before_anything_breaks() -> None:
    deepest = to_protobuf(Signal.TRACES, nested((DEPTH_MAX - 6) // 2))
    assert ExportTraceServiceRequest.FromString(deepest), "what is accepted can be read by others"
    for depth in ((DEPTH_MAX - 6) // 2 + 1, 5_000, 200_000):
        with pytest.raises(MalformedRequest, match=f"nested deeper than {DEPTH_MAX}"):
            to_protobuf(Signal.TRACES, nested(depth))
    for unknown in (b'{"u":' * 200_000 + b"1" + b"}" * 200_000, b"[" * 900_000):
        with pytest.raises(MalformedRequest):
            to_protobuf(Signal.TRACES, unknown)


@pytest.mark.parametrize("text", [b"[" + b"0," * 999 + b"0]", b"{}" * 1000, b'["a,b{[",' * 1000, b'"\\\\",,' * 500])
def test_values_are_counted_before_any_is_made(text: bytes) -> None:
    assert take_json_census(text, 999).values >= 1000
    assert take_json_census(text, 1001).values <= 2500


@pytest.mark.parametrize("text", [b'"' + b"{[," * 1000, b'["' + b'\\"{,' * 1000 + b'"]', b'["' + b"," * 1000 + b"\\"])
def test_what_stands_in_texts_is_no_value(text: bytes) -> None:
    assert take_json_census(text, 100).values <= 1
    assert take_json_census(text, 10_000).values > 100, "the quick count is from above"


@pytest.mark.parametrize(
    "part", [b"{}", b"[]", b"[[]]", b'{"k":{}}', b"0", b"1.5e300", b'"\\u00e9"', '"🕰aaaaaaaaaaaa"'.encode(), b'""']
)
def test_a_tree_takes_no_more_than_was_counted(part: bytes) -> None:
    text = b'{"resourceMetrics":[' + b",".join([part] * 20_000) + b"]}"
    said = take_json_census(text).tree_bytes
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedRequest):
            to_protobuf(Signal.METRICS, text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= said + 100_000


def test_answers_become_json() -> None:
    answer = ExportTraceServiceResponse()
    assert json.loads(answer_to_json(Signal.TRACES, answer.SerializeToString())) == {}
    answer.partial_success.rejected_spans = (1 << 53) + 1
    answer.partial_success.error_message = 'two "of" them'
    said = json.loads(answer_to_json(Signal.TRACES, answer.SerializeToString()))
    assert said == {"partialSuccess": {"rejectedSpans": str((1 << 53) + 1), "errorMessage": 'two "of" them'}}
    metrics = ExportMetricsServiceResponse()
    metrics.partial_success.rejected_data_points = 1
    assert "rejectedDataPoints" in answer_to_json(Signal.METRICS, metrics.SerializeToString())
    assert answer_to_json(Signal.LOGS, b"\xff\xff") == "{}"
