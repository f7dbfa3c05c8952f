"""What a failure means, which endpoint is asked next, and when: policy, outcomes and times in, decisions out.

OTLP knows two kinds of failure. One passes (the receiver is away, restarting, overloaded), and the request is sent
again; the other does not, and sending again would only repeat it. A receiver may say how long to leave it alone:
then nothing is sent there until that time, whoever asks. Where it does not say, the pause doubles with each failure
and is drawn evenly from nothing to that length ("full jitter"), so that many senders do not come back in step.

An endpoint that failed is not believed to be back before one request has come through: after its pause one request is
let through at a time (one in ``PROBE_S``), and the first that gets an answer opens it for all.

Limits: a pause of our own is at most ``BACKOFF_MAX_S``, one that a receiver asks for at most ``TOLD_MAX_S``. Pure:
time and chance are handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache

from skewd_sidecar.outcome import RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, Outcome

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
PROBE_S = 1.0
TOLD_MAX_S = 300.0

_RETRYABLE = frozenset((1, 4, 10, 11, UNAVAILABLE, 15))
_ABOUT_THE_SENDER = frozenset((7, UNIMPLEMENTED, 16))
_TOO_LARGE_HTTP = 413
_SIZE_CODES = frozenset((RESOURCE_EXHAUSTED, 11))
# As gRPC's implementations say it: C++, Go and JavaScript; Java; Rust (tonic, whose code is OUT_OF_RANGE).
_SIZE_LIMIT = re.compile(
    r"larger than max(?:imum)?\b(?:[^()]*\(\d+ vs\.? (?P<c>\d+)\))?"
    r"|exceeds maximum size (?P<java>\d+)"
    r"|message length too large(?:.*limit is:? (?P<rust>\d+))?",
    re.IGNORECASE,
)


def retryable(outcome: Outcome) -> bool:
    """Whether the same request may succeed later (OTLP specification, "Failures")."""
    if outcome.code in _RETRYABLE:
        return not too_large(outcome)
    return outcome.code == RESOURCE_EXHAUSTED and not too_large(outcome) and _retry_info_s(outcome) is not None


def too_large(outcome: Outcome) -> bool:
    """Whether the receiver refused a request for its size."""
    return outcome.http_status == _TOO_LARGE_HTTP or (
        outcome.code in _SIZE_CODES and _SIZE_LIMIT.search(outcome.message) is not None
    )


def size_limit(outcome: Outcome) -> int | None:
    """The largest message the receiver takes, where a refusal names it, as gRPC's own do."""
    found = _SIZE_LIMIT.search(outcome.message)
    number = found.group("c") or found.group("java") or found.group("rust") if found is not None else None
    return int(number) if number else None


def concerns_content(outcome: Outcome) -> bool:
    """Whether a permanent failure may be due to a part of a request; else (credentials, service, quota) to none."""
    if outcome.code == RESOURCE_EXHAUSTED:
        return too_large(outcome)
    return outcome.code not in _ABOUT_THE_SENDER


def told_to_wait_s(outcome: Outcome, wall_s: float) -> float | None:
    """How long the receiver asks to be left alone, None if it does not say; at most ``TOLD_MAX_S``.

    Args:
        outcome: of a failed request.
        wall_s: seconds since 1970, for a ``Retry-After`` that is a date.
    """
    told = _retry_info_s(outcome)
    if told is None and outcome.retry_after is not None:
        told = _retry_after_s(outcome.retry_after.strip(), wall_s)
    return None if told is None else min(max(told, 0.0), TOLD_MAX_S)


def try_again(message: str, delay_s: float, like: Outcome | None = None) -> Outcome:
    """A failure that passes, with the hint when to come again in both protocols' words, rounded up to seconds.

    Args:
        message: why.
        delay_s: when to come again.
        like: a failure that passes, whose codes it has.
    """
    seconds = max(1, math.ceil(delay_s))
    code, http_status = (UNAVAILABLE, 503) if like is None else (like.code, like.http_status)
    return Outcome(code, http_status, message, b"", _status_with_retry_info(code, message, seconds), str(seconds))


@lru_cache(maxsize=32)
def _status_with_retry_info(code: int, message: str, seconds: int) -> bytes:
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    status = Status(code=code, message=message[:1024])
    info = RetryInfo()
    info.retry_delay.seconds = seconds
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


def _retry_info_s(outcome: Outcome) -> float | None:
    if not outcome.details:
        return None
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    try:
        for each in Status.FromString(outcome.details).details:
            info = RetryInfo()
            if each.Is(RetryInfo.DESCRIPTOR) and each.Unpack(info):
                return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    except DecodeError:
        pass  # what cannot be read says nothing
    return None


def _retry_after_s(text: str, wall_s: float) -> float | None:
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return parsedate_to_datetime(text).timestamp() - wall_s
    except (ValueError, TypeError, OverflowError):
        return None


class Balance(StrEnum):
    """How several endpoints share the work: in turn, or the first that answers."""

    ROUND_ROBIN = "round_robin"
    FAILOVER = "failover"


@dataclass(slots=True)
class _State:
    failures: int = 0
    rests_until_s: float = -math.inf
    told_until_s: float = -math.inf


class Endpoints:
    """Which of several endpoints is asked. Times are seconds of any clock that does not go back.

    Args:
        count: how many there are; they are numbered from 0.
        balance: how they share the work.
        random: evenly distributed in [0, 1).
    """

    def __init__(self, count: int, balance: Balance, random: Callable[[], float]) -> None:
        self._states = [_State() for _ in range(count)]
        self._balance = balance
        self._random = random
        self._next = 0

    def choose(self, now_s: float) -> int | None:
        """The endpoint to ask now; None while all rest."""
        count = len(self._states)
        first = self._next if self._balance is Balance.ROUND_ROBIN else 0
        for step in range(count):
            number = (first + step) % count
            state = self._states[number]
            if state.rests_until_s > now_s:
                continue
            if state.failures:
                state.rests_until_s = now_s + PROBE_S
            self._next = (number + 1) % count
            return number
        return None

    def next_at_s(self) -> float:
        """When the first of them ends its rest."""
        return min(state.rests_until_s for state in self._states)

    def answered(self, number: int) -> bool:
        """It took a request, or refused it for good: it is there. Whether it had been away."""
        state = self._states[number]
        was_away = state.failures > 0
        state.failures = 0
        state.rests_until_s = state.told_until_s
        return was_away

    def failed(self, number: int, now_s: float, told_s: float | None) -> bool:
        """It could not take a request; ``told_s``: how long it asks for. Whether that is news."""
        state = self._states[number]
        was_there = state.failures == 0
        state.failures += 1
        if told_s is not None:
            state.told_until_s = max(state.told_until_s, now_s + told_s)
        pause_s = self._random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(state.failures - 1, 16))
        state.rests_until_s = max(state.told_until_s, now_s + pause_s)
        return was_there

    def away(self, number: int) -> bool:
        """Whether its last request failed."""
        return self._states[number].failures > 0
