"""What failures mean and which endpoint is asked when: policy alone."""

from __future__ import annotations

import random

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from skewd_sidecar.forward.retry import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    PROBE_S,
    TOLD_MAX_S,
    Balance,
    Endpoints,
    concerns_content,
    retryable,
    size_limit,
    told_to_wait_s,
    too_large,
    try_again,
)
from skewd_sidecar.outcome import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE, Outcome
from skewd_sidecar.relay import RETRY_FIRST_S, RETRY_MAX_S, Overload


def with_retry_info(code: int, seconds: int, nanos: int = 0) -> Outcome:
    status = Status(code=code)
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return Outcome.failed(code, "wait", status.SerializeToString())


def http(status: int, retry_after: str | None = None) -> Outcome:
    return Outcome.failed_over_http(status, f"HTTP {status}", None, retry_after)


@pytest.mark.parametrize("code", range(1, 17))
def test_the_codes_that_are_tried_again_are_the_specifications(code: int) -> None:
    assert retryable(Outcome.failed(code, "x")) == (code in (1, 4, 10, 11, 14, 15))
    assert retryable(with_retry_info(code, 1)) == (code in (1, 4, 8, 10, 11, 14, 15))


@pytest.mark.parametrize(
    ("status", "again"), [(400, False), (413, False), (429, True), (500, False), (502, True), (503, True)]
)
def test_the_http_statuses_that_are_tried_again(status: int, again: bool) -> None:
    assert retryable(http(status)) is again


@pytest.mark.parametrize(
    ("outcome", "limit"),
    [
        (http(413), None),
        (Outcome.failed(RESOURCE_EXHAUSTED, "grpc: received message larger than max (5000 vs. 4000)"), 4000),
        (Outcome.failed(RESOURCE_EXHAUSTED, "Received message larger than max (5000 vs 4000)"), 4000),
        (Outcome.failed(RESOURCE_EXHAUSTED, "grpc: received message after decompression larger than max 4000"), None),
        (Outcome.failed(RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4000: 5000"), 4000),
        (
            Outcome.failed(11, "Error, decoded message length too large: found 5000 bytes, the limit is: 4000 bytes"),
            4000,
        ),
    ],
)
def test_a_refusal_for_size_is_known_by_what_receivers_say(outcome: Outcome, limit: int | None) -> None:
    assert too_large(outcome)
    assert not retryable(outcome)
    assert concerns_content(outcome)
    assert size_limit(outcome) == limit


def test_other_refusals_are_not_for_size_and_some_concern_no_content() -> None:
    assert not too_large(Outcome.failed(RESOURCE_EXHAUSTED, "quota"))
    assert not too_large(Outcome.failed(INVALID_ARGUMENT, "message larger than max"))
    assert concerns_content(Outcome.failed(INVALID_ARGUMENT, "x"))
    assert not any(concerns_content(Outcome.failed(code, "x")) for code in (7, RESOURCE_EXHAUSTED, 12, 16))


def test_how_long_a_receiver_asks_to_be_left_alone_is_bounded() -> None:
    assert told_to_wait_s(with_retry_info(UNAVAILABLE, 3, 500_000_000)) == 3.5
    assert told_to_wait_s(http(503, "7")) == 7
    assert told_to_wait_s(http(503, "999999")) == TOLD_MAX_S
    assert told_to_wait_s(Outcome.failed(UNAVAILABLE, "x")) is None


def test_our_own_hint_asks_for_a_second_at_least_and_may_be_like_another_failure() -> None:
    hint = try_again("busy", 2.5)
    assert (hint.code, hint.http_status, hint.retry_after_s) == (UNAVAILABLE, 503, 2.5)
    assert told_to_wait_s(Outcome.failed(UNAVAILABLE, "", hint.grpc_details())) == 2.5
    assert try_again("x", 0).retry_after_s == 1.0
    assert (try_again("x", 1, like=http(429)).http_status, try_again("x", 1, like=http(429)).code) == (429, UNAVAILABLE)


def endpoints(count: int, balance: Balance = Balance.ROUND_ROBIN, chance: float = 0.5) -> Endpoints:
    return Endpoints(count, balance, lambda: chance)


def test_in_turn_and_the_first_that_answers() -> None:
    in_turn, first = endpoints(3), endpoints(3, Balance.FAILOVER)
    assert [in_turn.choose(0.0) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert [first.choose(0.0) for _ in range(3)] == [0, 0, 0]
    for each in (in_turn, first):
        each.failed(0, 0.0, None)
        each.failed(1, 0.0, 100.0)
    assert [in_turn.choose(0.0) for _ in range(2)] == [2, 2]
    assert first.choose(0.0) == 2
    assert first.choose(BACKOFF_FIRST_S) == 0  # its pause is over: one request tries
    assert first.choose(BACKOFF_FIRST_S) == 2  # and one only
    assert first.answered(0)
    assert first.choose(BACKOFF_FIRST_S) == 0
    assert not first.answered(0)


def test_pauses_double_up_to_a_bound_with_full_jitter() -> None:
    chance = random.Random(3)
    for failures, top_s in ((1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, BACKOFF_MAX_S), (200, BACKOFF_MAX_S)):
        drawn = []
        for _ in range(300):
            one = Endpoints(1, Balance.FAILOVER, chance.random)
            for _ in range(failures):
                one.failed(0, 10.0, None)
            drawn.append(one.next_at_s() - 10.0)
        assert 0 <= min(drawn) < top_s * 0.05
        assert top_s * 0.95 < max(drawn) <= top_s


def test_what_a_receiver_asks_for_is_kept_to_even_if_another_request_gets_through() -> None:
    one = endpoints(1)
    one.failed(0, 0.0, 30.0)
    assert one.choose(29.9) is None
    assert one.next_at_s() == 30.0
    one.answered(0)
    assert one.choose(29.9) is None
    assert one.choose(30.0) == 0


def test_an_endpoint_that_is_not_known_to_be_back_is_tried_by_one_at_a_time() -> None:
    one = endpoints(1)
    one.failed(0, 0.0, None)
    assert one.away(0)
    assert one.choose(0.06) == 0
    assert one.choose(0.07) is None
    assert one.choose(0.06 + PROBE_S) == 0
    one.answered(0)
    assert [one.choose(1.1), one.choose(1.1)] == [0, 0]


def test_who_is_refused_for_overload_is_asked_away_longer_while_it_lasts_but_for_seconds_only() -> None:
    overload = Overload(lambda: 0.0)
    assert overload.refused(100.0) == RETRY_FIRST_S
    assert overload.refused(103.0) == 3.0
    for second in range(104, 200):
        delay_s = overload.refused(float(second))
    assert delay_s == RETRY_MAX_S
    assert overload.refused(300.0) == RETRY_FIRST_S
    spread = Overload(random.Random(1).random)
    assert len({spread.refused(1.0) for _ in range(20)}) == 20
