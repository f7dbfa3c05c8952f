"""One answer in two protocols' words: whether to try again, and when, is the same in both."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from hypothesis import given
from hypothesis import strategies as st

from skewd_sidecar.hop import HOP_HEADER, HOPS_MAX, HopMark, RequestLoops
from skewd_sidecar.outcome import Outcome, encode_status
from skewd_sidecar.rpc_status import encode_retry_info, read_retry_after, read_status, write_retry_after


def packed(*details: ErrorInfo | RetryInfo) -> list[AnyMessage]:
    out = []
    for each in details:
        out.append(AnyMessage())
        out[-1].Pack(each)
    return out


def retry_info(seconds: int, nanos: int = 0) -> RetryInfo:
    return RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))


def status(code: int, *details: ErrorInfo | RetryInfo) -> bytes:
    return bytes(RpcStatus(code=code, message="because", details=packed(*details)).SerializeToString())


def delay_of(details: bytes | None) -> float | None:
    assert details is not None
    for each in RpcStatus.FromString(details).details:
        info = RetryInfo()
        if each.Unpack(info):
            return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


@given(st.integers(0, 3600), st.integers(0, 999_999_999))
def test_a_delay_is_read_as_the_library_writes_it_and_written_as_it_reads(seconds: int, nanos: int) -> None:
    read = read_status(status(14, ErrorInfo(reason="full"), retry_info(seconds, nanos)))
    assert read is not None
    assert read.retry_after_s is not None
    assert read.retry_after_s == pytest.approx(min(seconds + nanos / 1e9, 3600.0))
    assert (read.code, read.message, len(read.details)) == (14, "because", 2)
    written = encode_status(14, "because", [encode_retry_info(read.retry_after_s)])
    assert delay_of(written) == pytest.approx(read.retry_after_s)


@given(st.binary(max_size=80))
def test_no_bytes_of_a_next_hop_make_it_raise(noise: bytes) -> None:
    for body in (noise, encode_status(14, "x", [noise]), encode_status(14, "x", [encode_retry_info(5)[:-1] + noise])):
        outcome = Outcome.failed(14, "unavailable", body)
        assert outcome.retryable
        outcome.grpc_details(), outcome.status_body()
        json.loads(outcome.status_json())


def test_negative_and_absurd_delays_are_none_or_cut() -> None:
    assert Outcome.failed(14, "", status(14, retry_info(-5))).retry_after_s is None
    assert Outcome.failed(14, "", status(14, retry_info(10**9))).retry_after_s == 3600
    assert read_retry_after("1" * 40, None) == 3600


@pytest.mark.parametrize(
    ("text", "date", "delay_s"),
    [
        ("7", None, 7.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", 30.0),
        ("Fri, 31 Dec 1999 23:59:29 GMT", "Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None, None),
        ("-7", None, None),
        ("7.5", None, None),
        ("soon", "Fri, 31 Dec 1999 23:59:59 GMT", None),
        (None, None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_same_clock(
    text: str | None, date: str | None, delay_s: object
) -> None:
    assert read_retry_after(text, date) == delay_s


def test_a_delay_in_http_is_never_shorter_than_asked() -> None:
    assert [write_retry_after(each) for each in (0.0, 0.001, 1.0, 1.5)] == ["0", "1", "1", "2"]


def test_resource_exhausted_is_retried_only_with_a_delay() -> None:
    final = Outcome.failed(8, "quota", status(8))
    assert (final.retryable, final.http_status) == (False, 413)
    again = Outcome.failed(8, "quota", status(8, retry_info(3)))
    assert (again.retryable, again.http_status, again.retry_after_s) == (True, 429, 3.0)
    # A 413 that names a time stays final over gRPC, where the delay alone would make it retryable.
    large = Outcome.failed_over_http(413, "large", None, "7")
    assert (large.retryable, large.code, large.grpc_details()) == (False, 8, None)


def test_from_http_to_grpc_the_delay_goes_along_with_what_else_was_said() -> None:
    outcome = Outcome.failed_over_http(429, "slow down", status(8, ErrorInfo(reason="full")), "7")
    assert (outcome.code, outcome.retryable) == (14, True)
    details = outcome.grpc_details()
    assert delay_of(details) == 7.0
    said = RpcStatus.FromString(details or b"")
    assert said.code == outcome.code, "clients refuse details whose code is not the call's"
    assert said.details[0] == packed(ErrorInfo(reason="full"))[0]
    assert json.loads(outcome.status_json()) == {
        "code": 14,
        "message": "because",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}],
    }


def test_what_the_next_hop_said_over_grpc_is_relayed_as_it_is() -> None:
    details = status(14, retry_info(2), ErrorInfo(reason="x"))
    assert Outcome.failed(14, "", details).grpc_details() == details
    assert Outcome.failed(14, "plain").grpc_details() is None


# --------------------------------------------------------------------------------------------------- hops


def test_a_request_carries_the_sidecars_it_passed_and_is_refused_where_it_has_been() -> None:
    first, second = HopMark("a"), HopMark("b")
    metadata = first.onward(())
    assert metadata == ((HOP_HEADER, "a"),)
    metadata = second.onward((("authorization", "x"), *metadata, ("z-tenant", "7")))
    assert metadata == (("authorization", "x"), (HOP_HEADER, "a,b"), ("z-tenant", "7"))
    for each in (first, second):
        with pytest.raises(RequestLoops, match="forward to the collector"):
            each.onward(metadata)


def test_a_row_of_sidecars_is_bounded_however_it_is_written() -> None:
    metadata = HopMark("0").onward(())
    for number in range(1, HOPS_MAX):
        metadata = HopMark(str(number)).onward(metadata)
    with pytest.raises(RequestLoops, match=f"more than {HOPS_MAX}"):
        HopMark("x").onward(metadata)
    with pytest.raises(RequestLoops):
        HopMark("x").onward(((HOP_HEADER, "y" * 10_000),))
