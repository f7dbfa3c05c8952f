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
    SUSPECT_S,
    TENANTS_MAX,
    TOLD_MAX_S,
    Attempt,
    Balance,
    Endpoints,
    concerns_content,
    patience_s,
    retryable,
    size_limit,
    tenant_of,
    told_to_wait_s,
    too_large,
    try_again,
)
from skewd_sidecar.gateway import Metadata
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


AWAY = Outcome.unheard("no connection")


def busy(seconds: float | None = None) -> Outcome:
    """An answer that asks to come again."""
    return Outcome(UNAVAILABLE, 503, "busy", retry_after_s=seconds)


def endpoints(
    count: int, balance: Balance = Balance.ROUND_ROBIN, chance: float = 0.5, probed: bool = False
) -> Endpoints:
    return Endpoints(count, balance, lambda: chance, [probed] * count)


def asked(those: Endpoints, now_s: float, tenant: bytes = b"") -> int | None:
    attempt = those.choose(now_s, tenant)
    return None if attempt is None else attempt.number


def attempt(those: Endpoints, now_s: float, tenant: bytes = b"") -> Attempt:
    found = those.choose(now_s, tenant)
    assert found is not None
    return found


def test_in_turn_and_the_first_that_answers() -> None:
    in_turn, first = endpoints(3), endpoints(3, Balance.FAILOVER)
    assert [asked(in_turn, 0.0) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert [asked(first, 0.0) for _ in range(3)] == [0, 0, 0]
    for each in (in_turn, first):
        each.failed(Attempt(0, b"", 0.0, 0, 0), 0.0, AWAY)
        each.failed(Attempt(1, b"", 0.0, 0, 0), 0.0, busy(100.0))
    assert [asked(in_turn, 0.0) for _ in range(2)] == [2, 2]
    assert asked(first, 0.0) == 2
    tries = attempt(first, BACKOFF_FIRST_S)  # its pause is over: one request tries
    assert tries.number == 0
    assert asked(first, BACKOFF_FIRST_S) == 2  # and one only
    assert first.taken(tries, BACKOFF_FIRST_S)
    assert asked(first, BACKOFF_FIRST_S) == 0
    assert not first.taken(tries, BACKOFF_FIRST_S)


@pytest.mark.parametrize("failure", [AWAY, busy()], ids=["nothing came back", "it said so"])
def test_pauses_double_up_to_a_bound_with_full_jitter(failure: Outcome) -> None:
    chance = random.Random(3)
    for failures, top_s in ((1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, BACKOFF_MAX_S), (200, BACKOFF_MAX_S)):
        drawn = []
        for _ in range(300):
            one = Endpoints(1, Balance.FAILOVER, chance.random)
            for number in range(failures):
                one.failed(attempt(one, 10.0 * number), 10.0 * number, failure)
            drawn.append(one.resting(b"")[0] - 10.0 * (failures - 1))
        assert 0 <= min(drawn) < top_s * 0.05
        assert top_s * 0.95 < max(drawn) <= top_s


@pytest.mark.parametrize("failure", [AWAY, busy()], ids=["nothing came back", "it said so"])
def test_bodies_that_fail_together_are_one_outage(failure: Outcome) -> None:
    one = endpoints(1, chance=1.0)
    together = [attempt(one, 0.0) for _ in range(16)]
    for each in together:
        one.failed(each, 1.0, failure)
    assert one.resting(b"")[0] == 1.0 + BACKOFF_FIRST_S
    one.failed(attempt(one, 2.0), 2.0, failure)  # it was tried again, and still is away
    assert one.resting(b"")[0] == 2.0 + 2 * BACKOFF_FIRST_S


def test_a_failure_that_comes_after_the_recovery_is_none() -> None:
    one = endpoints(1)
    early, late = attempt(one, 0.0), attempt(one, 0.0)
    one.failed(early, 0.1, AWAY)
    assert one.taken(attempt(one, 1.0), 1.1)
    one.failed(late, 1.2, AWAY)
    assert asked(one, 1.2) == 0


def test_what_a_receiver_asks_for_is_kept_to_even_if_another_request_gets_through() -> None:
    one = endpoints(1)
    first, second = attempt(one, 0.0), attempt(one, 0.0)
    one.failed(first, 0.0, busy(30.0))
    assert asked(one, 29.9) is None
    assert one.resting(b"")[0] == 30.0
    one.taken(second, 1.0)
    assert asked(one, 29.9) is None
    assert asked(one, 30.0) == 0


def test_an_endpoint_that_is_not_known_to_be_back_is_tried_by_one_at_a_time() -> None:
    one = endpoints(1)
    one.failed(attempt(one, 0.0), 0.0, AWAY)
    assert not one.up(0)
    tries = attempt(one, 0.06)
    assert asked(one, 0.07) is None
    assert asked(one, 0.06 + PROBE_S) == 0
    one.taken(tries, 1.1)
    assert [asked(one, 1.1), asked(one, 1.1)] == [0, 0]


def test_what_one_tenant_is_told_concerns_no_other_and_what_nobody_hears_concerns_all() -> None:
    one = endpoints(1)
    one.failed(attempt(one, 0.0, b"loud"), 0.0, busy(20.0))
    assert asked(one, 1.0, b"loud") is None
    assert one.resting(b"loud") == (20.0, busy(20.0))
    for quiet in (b"", b"quiet"):
        assert asked(one, 1.0, quiet) == 0
    one.failed(attempt(one, 2.0, b"quiet"), 2.0, AWAY)
    assert [asked(one, 2.0, each) for each in (b"", b"quiet", b"other")] == [None] * 3
    assert one.resting(b"other")[1] == AWAY
    one.proven(0, 2.0)
    assert [asked(one, 2.0, each) for each in (b"other", b"loud")] == [0, None]


def test_a_request_that_alone_hears_nothing_while_others_are_answered_is_its_senders() -> None:
    one = endpoints(1)
    poisoned, fine = attempt(one, 0.0, b"a"), attempt(one, 0.0, b"b")
    one.taken(fine, 1.0)
    assert not one.failed(poisoned, 2.0, AWAY)
    assert asked(one, 2.0, b"a") is None
    assert asked(one, 2.0, b"b") == 0


def test_the_table_of_tenants_is_bounded_and_forgets_who_failed_longest_ago() -> None:
    one = endpoints(1)
    tenants = [number.to_bytes(4, "big") for number in range(TENANTS_MAX + 10)]
    for each in tenants:
        one.failed(attempt(one, 0.0, each), 0.0, busy(300.0))
    assert [asked(one, 1.0, each) for each in tenants[:10]] == [0] * 10
    assert [asked(one, 1.0, each) for each in tenants[10:]] == [None] * TENANTS_MAX
    for each in tenants:
        one.taken(Attempt(0, each, 0.0, 0, 0), 301.0)
    assert not one._pauses


def test_what_is_remembered_of_a_failure_is_bounded() -> None:
    one = endpoints(1)
    one.failed(attempt(one, 0.0), 0.0, Outcome(UNAVAILABLE, 503, "x" * 10_000, details=b"x" * 10_000))
    why = one.resting(b"")[1]
    assert why is not None
    assert (len(why.message), why.details) == (4096, None)


def test_a_tenant_is_its_metadata_less_what_tells_nothing_of_it_and_is_not_to_be_read_from_its_name() -> None:
    key, beside = b"k", {"x-skewd-hop", "authorization"}
    a: Metadata = (("x-scope-orgid", "a"), ("x-skewd-hop", "1"))
    assert tenant_of(a, beside, key) == tenant_of((("x-skewd-hop", "2"), ("x-scope-orgid", "a")), beside, key)
    assert tenant_of((("authorization", "theirs"), ("x-skewd-hop", "1")), beside, key) == b""
    others = [(("x-scope-orgid", "b"),), (("x-scope-orgida", ""),), (("x-scope", "orgida"),)]
    assert len({tenant_of(each, beside, key) for each in [a, *others]}) == 4
    assert tenant_of(a, beside, key) != tenant_of(a, beside, b"another process")


def test_an_endpoint_that_failed_is_left_to_its_probes_while_another_answers() -> None:
    for balance in Balance:
        two = endpoints(2, balance, probed=True)
        two.failed(attempt(two, 0.0), 0.0, AWAY)
        assert [asked(two, 100.0) for _ in range(3)] == [1, 1, 1]
        assert two.away_until_s(0) == 0.05
        two.failed(two.probe(0, 0.05), 0.05, AWAY)
        assert two.away_until_s(0) == 0.05 + 0.1
        two.failed(attempt(two, 100.0), 100.0, AWAY)  # now that none answers, any may
        assert asked(two, 100.01) == 0
        two.proven(0, 101.0)
        assert two.away_until_s(0) is None
        assert asked(two, 101.0) == 0


def test_an_endpoint_that_leaves_requests_without_an_answer_is_asked_last() -> None:
    for balance in Balance:
        two = endpoints(2, balance)
        waits = Attempt(0, b"", 0.0, 0, 0)
        two.begun(waits, 1)
        assert two.other(1, b"", SUSPECT_S)
        assert not two.other(1, b"", SUSPECT_S + 0.1)
        assert [asked(two, SUSPECT_S + 0.1) for _ in range(3)] == [1, 1, 1]
        two.proven(0, SUSPECT_S + 0.2)  # it answered another: it is not hung
        assert 0 in [asked(two, SUSPECT_S + 0.3) for _ in range(2)]
        two.ended(waits, 1)


def test_a_body_goes_first_where_it_has_not_been() -> None:
    first = endpoints(2, Balance.FAILOVER)
    assert [asked(first, 0.0), first.choose(0.0, b"", {0})] == [0, Attempt(1, b"", 0.0, 0, 0)]
    assert first.choose(0.0, b"", {0, 1}) == Attempt(0, b"", 0.0, 0, 0)
    assert first.choose(0.0, b"", {0, 1}, again=False) is None


@pytest.mark.parametrize(
    ("remaining_s", "answering", "patience"), [(10, False, 2), (10, True, 5), (3, False, 1.5), (3, True, 1.5)]
)
def test_patience_leaves_time_for_another_attempt(remaining_s: float, answering: bool, patience: float) -> None:
    assert patience_s(remaining_s, 2.0, answering) == patience


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
