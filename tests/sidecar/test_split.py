"""Requests taken apart on the wire: the parts together say what the whole said, for any request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd_sidecar.forward.split import NotARequest, by_trace, mergeable, records, split
from tests.sidecar.otlp_wire import field


def length(key: int, content: bytes) -> bytes:
    return field(key, 2, content)


def number(key: int, value: int) -> bytes:
    return field(key, 0, value)


def message(*fields: bytes) -> bytes:
    return b"".join(fields)


def test_a_busy_machine_fails_no_property() -> None:
    """Timings of Hypothesis are of the machine, not of the code: see the tests' ``conftest.py``."""
    given_by_all = settings.default
    assert given_by_all is not None
    assert given_by_all.deadline is None
    assert HealthCheck.too_slow in given_by_all.suppress_health_check


ids = st.binary(min_size=16, max_size=16) | st.sampled_from([b"a" * 16, b"b" * 16, b""])
small = st.binary(max_size=12)


@st.composite
def containers(draw: st.DrawFn, item: int, items: st.SearchStrategy[bytes]) -> bytes:
    """A message with items at any place among other fields, known and unknown; the other fields keep their order."""
    others = st.one_of(
        st.builds(lambda key: length(1, length(1, length(1, key))), st.sampled_from([b"k", b"other" * 3])),
        st.builds(lambda url: length(3, url), st.sampled_from([b"one", b"two"])),
        st.builds(lambda value: number(77, value), st.integers(0, 2**64 - 1)),
        st.builds(lambda value: field(78, 1, value), st.integers(0, 2**64 - 1)),
        st.builds(lambda value: b"\xfb\x04" + number(1, value) + b"\xfc\x04", st.integers(0, 300)),  # a group, 79
    )
    if item == 1:  # nothing may stand beside the items of a request that protobuf would not keep apart
        others = st.builds(lambda value: number(77, value), st.integers(0, 2**64 - 1))
    fields = draw(st.lists(items.map(lambda content: length(item, content)) | others, max_size=5))
    return message(*fields)


spans = st.builds(
    lambda trace, name, unknown: message(length(1, trace), length(5, name), length(99, unknown)),
    ids,
    st.sampled_from([b"n", b"long" * 10]),
    small,
)
requests = containers(1, containers(2, containers(2, spans)))


def told(body: bytes) -> list[Any]:
    """What a request says of each of its records, in order; and of each container that has none."""
    said: list[Any] = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        scopes = list(resource.scope_spans)
        around = without(resource, "scope_spans")
        if not scopes:
            said.append((around,))
        for scope in scopes:
            spans = [span.SerializeToString(deterministic=True) for span in scope.spans]
            within = without(scope, "spans")
            said.extend((around, within, span) for span in spans or [b"none"])
    return said


def without(container: Any, items: str) -> bytes:
    rest = type(container)()
    rest.CopyFrom(container)
    rest.ClearField(items)
    return bytes(rest.SerializeToString(deterministic=True))


def beside_all(body: bytes) -> bytes:
    return without(ExportTraceServiceRequest.FromString(body), "resource_spans")


@settings(max_examples=50)
@given(requests, st.integers(1, 400))
def test_the_parts_of_any_request_together_say_what_it_said(body: bytes, max_bytes: int) -> None:
    parts = split(body, max_bytes)
    assert [each for part in parts for each in told(part)] == told(body)
    assert all(beside_all(part) == beside_all(body) for part in parts)
    for part in parts:
        assert len(part) <= max_bytes or len(told(part)) <= 1
    assert sum(map(records, parts)) == records(body)
    if len(body) <= max_bytes:
        assert parts == [body]


@settings(max_examples=50)
@given(requests)
def test_a_part_per_trace_holds_that_trace_and_all_together_say_what_the_whole_said(body: bytes) -> None:
    parts = by_trace(body)
    assert len({key for key, _ in parts}) == len(parts)
    for key, part in parts:
        held = [
            span.trace_id.hex()
            for resource in ExportTraceServiceRequest.FromString(part).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert set(held) <= {key}
        assert beside_all(part) == beside_all(body)
    assert sorted(each for _, part in parts for each in told(part)) == sorted(told(body))


@settings(max_examples=30)
@given(st.lists(requests, max_size=4))
def test_mergeable_requests_behind_each_other_are_one_with_the_content_of_all(bodies: list[bytes]) -> None:
    bodies = [body for body in bodies if mergeable(body)]
    assert told(b"".join(bodies)) == [each for body in bodies for each in told(body)]


@pytest.mark.parametrize("kind", [ExportLogsServiceRequest, ExportMetricsServiceRequest])
def test_logs_and_metrics_have_the_same_shape(kind: Any) -> None:
    request = kind()
    logs = kind is ExportLogsServiceRequest
    resource = (request.resource_logs if logs else request.resource_metrics).add()
    resource.resource.attributes.add(key="service.name").value.string_value = "x"
    scope = (resource.scope_logs if logs else resource.scope_metrics).add()
    for number in range(50):
        if logs:
            scope.log_records.add(severity_number=number % 24)
        else:
            scope.metrics.add(name=f"m{number}")
    parts = split(request.SerializeToString(), 100)
    assert len(parts) > 2
    again = kind()
    for part in parts:
        assert len(part) <= 100
        one = kind.FromString(part)
        (held,) = one.resource_logs if logs else one.resource_metrics
        assert held.resource == resource.resource
        again.MergeFromString(part)
    found = []
    for each in again.resource_logs if logs else again.resource_metrics:
        for inner in each.scope_logs if logs else each.scope_metrics:
            found += inner.log_records if logs else inner.metrics
    assert found == list(scope.log_records if logs else scope.metrics)
    assert records(request.SerializeToString()) == 50


def test_what_stands_beside_the_items_makes_a_request_unfit_to_merge() -> None:
    one = length(1, b"")
    assert mergeable(b"")
    assert mergeable(one + one)
    assert not mergeable(one + length(2, b"dictionary"))
    assert not mergeable(one + b"\x0a\x05x")  # cut short
    assert not mergeable(b"\x08\x01")


@pytest.mark.parametrize(
    "body",
    [b"\x0a\x05x", b"\x0e", b"\x0b\x08\x01", b"\x0a" + b"\xff" * 11, length(1, length(2, length(2, b"\x0a\x10short")))],
    ids=["cut", "wire type 6", "group without end", "endless number", "span"],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(NotARequest, match="not an export request"):
        by_trace(body)


def test_a_large_request_of_as_many_traces_as_spans_is_split_in_linear_time() -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(3000):
        scope.spans.add(trace_id=number.to_bytes(16, "big"), name="x" * 20)
    parts = by_trace(request.SerializeToString())
    assert [key for key, _ in parts] == [f"{number:032x}" for number in range(3000)]
