"""Facts on the Resource, attributes that arrive, and log records: what a reader of parsed messages sees of them.

By the kernel that a sidecar would use and by the Python one, so that this holds with and without the native one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from skewd.bounds.history import UNSYNCHRONIZED, Correction, Status
from skewd_sidecar.kernel import Choice, Kernel, choose
from skewd_sidecar.patch import FACTS, Incoming, Mode, PatchOptions, PatchResult, Placement
from tests.sidecar.otlp_wire import FIXED64, LEN, field, fields
from tests.sidecar.test_patch import (
    T0,
    Source,
    add,
    always,
    attributes,
    never,
    options,
    request,
    requests,
    sources,
)

KERNELS = {kernel.name: kernel for kernel in (choose(), choose(Choice.PYTHON))}
ON_RESOURCE = [Placement.RESOURCE, Placement.MINIMAL]
ON_SPAN = {"clock.reference", "clock.status", "clock.corrected"}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]


def traces(body: bytes, opts: PatchOptions, at: Source) -> PatchResult:
    """By every kernel there is, which must agree."""
    results = [kernel.traces(body, opts, at, None) for kernel in KERNELS.values()]
    assert all(each == results[0] for each in results)
    return results[0]


def logs(body: bytes, opts: PatchOptions, at: Source) -> PatchResult:
    results = [kernel.logs(body, opts, at, None) for kernel in KERNELS.values()]
    assert all(each == results[0] for each in results)
    return results[0]


def effective(body: bytes) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every span with what is said of it, there or on its Resource."""
    for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
        common = {key: value for key, value in attributes(batch.resource).items() if key.startswith("clock.")}
        for scope in batch.scope_spans:
            for span in scope.spans:
                yield span, common | attributes(span)


# ------------------------------------------------------------------------------------------- facts on the Resource


@settings(max_examples=150, deadline=None)
@given(requests(), sources(), st.sampled_from([Mode.TAG, Mode.REWRITE]), st.sampled_from(ON_RESOURCE))
def test_what_is_said_of_a_span_is_the_same_wherever_it_is_written(
    made: ExportTraceServiceRequest, at: Source, mode: Mode, placement: Placement
) -> None:
    for batch in made.resource_spans:  # keys of others may occur twice, which `attributes` would refuse
        for scope in batch.scope_spans:
            for span in scope.spans:
                del span.attributes[:]
    body = made.SerializeToString()
    here, there = traces(body, options(mode), at), traces(body, options(mode, placement=placement), at)
    assert here.actions == there.actions
    for (span, on_span), (other, anywhere) in zip(effective(here.body), effective(there.body), strict=True):
        if not on_span:
            continue  # without any time: it passes as it came, whatever its Resource says
        if on_span["clock.status"] == "unsynchronized":
            on_span.pop("clock.reference", None)
            anywhere.pop("clock.reference", None)  # of the spans beside it
        if placement is Placement.MINIMAL:
            on_span = {key: value for key, value in on_span.items() if "original" not in key}
        assert on_span == anywhere
        times = (span.start_time_unix_nano, span.end_time_unix_nano)
        assert times == (other.start_time_unix_nano, other.end_time_unix_nano)
        assert [e.time_unix_nano for e in span.events] == [e.time_unix_nano for e in other.events]


@settings(max_examples=150, deadline=None)
@given(requests(), sources(), st.sampled_from([Mode.TAG, Mode.REWRITE]), st.sampled_from(ON_RESOURCE))
def test_a_second_pass_changes_nothing_wherever_it_is_written(
    made: ExportTraceServiceRequest, at: Source, mode: Mode, placement: Placement
) -> None:
    opts = options(mode, placement=placement)
    first = traces(made.SerializeToString(), opts, at)
    second = traces(first.body, opts, at)
    assert second.body == first.body
    assert second.actions.get("rewritten", 0) == 0


@pytest.mark.parametrize("placement", ON_RESOURCE)
def test_the_node_is_said_once_and_spans_say_what_is_their_own(placement: Placement) -> None:
    opts = options(Mode.REWRITE, placement=placement)
    body = traces(request({}, {}, {"start": 5, "end": 6}).SerializeToString(), opts, always(-3_000_000)).body
    (batch,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert attributes(batch.resource) == {"clock.node.name": "node-a"}
    first, _, early = batch.scope_spans[0].spans
    own = {
        "clock.offset_ns": -3_000_000,
        "clock.uncertainty_ns": 50_000,
        "clock.reference": "utc",
        "clock.status": "synchronized",
        "clock.corrected": True,
    }
    originals = {"clock.original.start_time_unix_nano": T0, "clock.original.end_time_unix_nano": T0 + 1000}
    assert attributes(first) == (own if placement is Placement.MINIMAL else own | originals)
    assert attributes(early) == own | {"clock.corrected": False}, "its times would have left their range"


def test_a_resource_stays_the_same_whatever_the_clock_does() -> None:
    """What receives spans tells services apart by their Resources: a status that comes and goes made new ones."""

    def at(wall_ns: int) -> Correction:
        return UNSYNCHRONIZED if wall_ns > T0 + 10**9 else Correction(7, 8, Status.HOLDOVER, "node:b")

    late = {"start": T0 + 2 * 10**9, "end": T0 + 2 * 10**9}
    seen = set()
    for mode in (Mode.TAG, Mode.REWRITE):
        opts = options(mode, placement=Placement.RESOURCE)
        orders: list[list[dict[str, int]]] = [[{}, late], [late, {}], [{}], [late]]
        for order in orders:
            body = traces(request(*order).SerializeToString(), opts, at).body
            (batch,) = ExportTraceServiceRequest.FromString(body).resource_spans
            seen.add(batch.resource.SerializeToString())
            for span, times in zip(batch.scope_spans[0].spans, order, strict=True):
                assert ON_SPAN & set(attributes(span)) == (ON_SPAN - {"clock.reference"} if times else ON_SPAN)
    assert len(seen) == 1


def test_a_resource_is_found_wherever_it_is_and_made_where_there_is_none() -> None:
    scope = field(2, LEN, field(2, LEN, field(7, FIXED64, T0)))
    resource = Resource()
    add(resource, "service.name", "s")
    given = field(1, LEN, resource.SerializeToString(), pad=1)
    opts = options(placement=Placement.RESOURCE)
    for inside, others in ((scope + given, ["service.name"]), (given + scope, ["service.name"]), (scope, [])):
        body = traces(field(1, LEN, inside), opts, always(5)).body
        (batch,) = ExportTraceServiceRequest.FromString(body).resource_spans
        assert set(attributes(batch.resource)) == {"clock.node.name", *others}
    # One that occurs twice is merged, so the last occurrence is the one to add to, and the first is left.
    body = traces(field(1, LEN, given + scope + field(1, LEN, b"")), opts, always(5)).body
    assert fields(fields(body)[0].value)[0].raw == given
    (batch,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert set(attributes(batch.resource)) == {"clock.node.name", "service.name"}


def test_a_batch_without_spans_gets_nothing() -> None:
    body = field(1, LEN, field(1, LEN, b"") + field(2, LEN, b""))
    assert traces(body, options(placement=Placement.RESOURCE), always(5)).body == body


def test_a_span_takes_from_its_resource_what_it_lacks() -> None:
    there = options(Mode.REWRITE, placement=Placement.MINIMAL)
    body = traces(request({}).SerializeToString(), there, always(1000, reference="node:b")).body
    for placement in Placement:
        opts = options(Mode.REWRITE, placement=placement)
        assert traces(body, opts, always(7, reference="node:b")).actions == {"unchanged": 1}
        assert traces(body, opts, never).body == body
        again = traces(body, opts, always(-4000))
        assert again.actions == {"rewritten": 1}
        ((span, said),) = effective(again.body)
        assert span.start_time_unix_nano == T0 - 4000
        assert (said["clock.reference"], said["clock.corrected"]) == ("utc", True)
        (batch,) = ExportTraceServiceRequest.FromString(again.body).resource_spans
        assert attributes(batch.resource) == {"clock.node.name": "node-a"}
    relied = request({}, {"attributes": {"clock.offset_ns": 1000}})
    for name, value in (("reference", "node:b"), ("status", "synchronized"), ("corrected", True)):
        add(relied.resource_spans[0].resource, f"clock.{name}", value)
    again = traces(relied.SerializeToString(), options(Mode.REWRITE, placement=Placement.RESOURCE), always(-4000))
    (batch,) = ExportTraceServiceRequest.FromString(again.body).resource_spans
    assert attributes(batch.resource)["clock.reference"] == "node:b", "other spans may rely on it"
    own = request({"attributes": {"clock.corrected": False}})
    add(own.resource_spans[0].resource, "clock.corrected", True)
    add(own.resource_spans[0].resource, "clock.reference", "utc")
    assert traces(own.SerializeToString(), options(Mode.REWRITE), always(5)).actions == {"rewritten": 1}


# --------------------------------------------------------------------------------------------- what arrives as ours


@settings(max_examples=100, deadline=None)
@given(requests(), sources(), st.sampled_from([Mode.TAG, Mode.REWRITE]), st.sampled_from(Placement))
def test_replaced_is_as_if_nothing_of_ours_had_arrived(
    made: ExportTraceServiceRequest, at: Source, mode: Mode, placement: Placement
) -> None:
    for batch in made.resource_spans:
        add(batch.resource, "clock.corrected", True)
        add(batch.resource, "clock.offset_ns", 7)
    claimed = made.SerializeToString()
    for batch in made.resource_spans:
        owners: list[Any] = [batch.resource, *(span for scope in batch.scope_spans for span in scope.spans)]
        for owner in owners:
            kept = [each for each in owner.attributes if each.key not in OURS_AND_LOGS]
            del owner.attributes[:]
            owner.attributes.extend(kept)
    opts = options(mode, placement=placement, incoming=Incoming.REPLACE)
    result = traces(claimed, opts, at)
    trusted = traces(made.SerializeToString(), options(mode, placement=placement), at)
    spans = [span for batch in made.resource_spans for scope in batch.scope_spans for span in scope.spans]
    timed = [
        each.start_time_unix_nano or each.end_time_unix_nano or any(event.time_unix_nano for event in each.events)
        for each in spans
    ]
    assert result.actions.get("unchanged", 0) == len(spans) - sum(map(bool, timed))
    assert result.actions == trusted.actions
    parse = ExportTraceServiceRequest.FromString
    assert parse(result.body) == parse(trusted.body)
    assert traces(claimed, options(Mode.OFF, incoming=Incoming.REPLACE), at).body == claimed


OURS_AND_LOGS = {
    f"clock.{name}"
    for name in (
        *FACTS, "offset_ns", "uncertainty_ns", "original.start_time_unix_nano", "original.end_time_unix_nano",
        "original.time_unix_nano", "original.observed_time_unix_nano", "end.offset_ns",
    )
}  # fmt: skip


# --------------------------------------------------------------------------------------------------- log records


def log_request(*times: int, observed: int = T0 + 77, **said: Any) -> ExportLogsServiceRequest:
    made = ExportLogsServiceRequest()
    batch = made.resource_logs.add()
    add(batch.resource, "service.name", "s")
    for time in times:
        record = batch.scope_logs.add().log_records.add(
            time_unix_nano=time, observed_time_unix_nano=observed, severity_number=9, trace_id=b"t" * 16, flags=1
        )
        record.body.string_value = "said"
        for key, value in said.items():
            add(record, key.replace("__", "."), value)
    return made


def records(body: bytes) -> list[Any]:
    parsed = ExportLogsServiceRequest.FromString(body)
    return [record for batch in parsed.resource_logs for scope in batch.scope_logs for record in scope.log_records]


@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
def test_a_log_record_is_corrected_by_its_time_and_keeps_all_else(mode: Mode) -> None:
    made = log_request(T0, level="info")
    result = logs(made.SerializeToString(), options(mode), always(-5_000))
    (record,) = records(result.body)
    moved = mode is Mode.REWRITE
    found = attributes(record)
    assert found.pop("level") == "info"
    assert found == {
        "clock.offset_ns": -5_000,
        "clock.uncertainty_ns": 50_000,
        "clock.reference": "utc",
        "clock.status": "synchronized",
        "clock.node.name": "node-a",
        "clock.corrected": moved,
        **({"clock.original.time_unix_nano": T0, "clock.original.observed_time_unix_nano": T0 + 77} if moved else {}),
    }
    assert record.observed_time_unix_nano == (T0 + 77 - 5_000 if moved else T0 + 77)
    assert record.time_unix_nano == (T0 - 5_000 if moved else T0)
    del record.attributes[1:]
    record.time_unix_nano, record.observed_time_unix_nano = T0, T0 + 77
    assert record == made.resource_logs[0].scope_logs[0].log_records[0]
    assert result.actions == {"rewritten" if moved else "tagged": 1}
    again = logs(result.body, options(mode), always(-6_000) if moved else always(-5_000))
    assert again.body == result.body


def test_a_log_record_of_another_reference_is_rebased() -> None:
    body = log_request(T0).SerializeToString()
    for keep in (True, False):
        opts = options(Mode.REWRITE, keep_original=keep)
        there = logs(body, opts, always(9_000, reference="node:b")).body
        again = logs(there, opts, always(-1_000))
        assert again.actions == {"rewritten": 1}
        assert again.body == logs(body, opts, always(-1_000)).body


@pytest.mark.parametrize("incoming", Incoming)
@pytest.mark.parametrize("mode", [Mode.TAG, Mode.REWRITE])
def test_a_log_record_without_a_time_passes_unchanged(mode: Mode, incoming: Incoming) -> None:
    body = log_request(0, 0, observed=0).SerializeToString()
    opts = options(mode, incoming=incoming)
    assert (logs(body, opts, always(5)).body, logs(body, opts, always(5)).actions) == (body, {"unchanged": 2})
    claimed = log_request(0, observed=0, **{"clock.status": "synchronized"}).SerializeToString()
    (record,) = records(logs(claimed, opts, always(5)).body)
    assert ("clock.status" in attributes(record)) is (incoming is Incoming.TRUST)


def test_log_records_share_their_facts_too() -> None:
    body = logs(log_request(T0, T0 + 1).SerializeToString(), options(placement=Placement.RESOURCE), always(5)).body
    (batch,) = ExportLogsServiceRequest.FromString(body).resource_logs
    assert set(attributes(batch.resource)) == {"clock.node.name", "service.name"}
    own = {"clock.offset_ns", "clock.uncertainty_ns", *ON_SPAN}
    assert all(set(attributes(record)) == own for record in records(body))


def test_unsynchronized_log_records_say_so() -> None:
    (record,) = records(logs(log_request(T0).SerializeToString(), options(Mode.REWRITE), never).body)
    assert attributes(record) == {
        "clock.status": "unsynchronized",
        "clock.node.name": "node-a",
        "clock.corrected": False,
    }
