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
from enum import StrEnum

from skewd_sidecar.outcome import RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, Outcome

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
PROBE_S = 1.0
TOLD_MAX_S = 300.0

_ABOUT_THE_SENDER = frozenset((7, UNIMPLEMENTED, 16))
# As it is said over HTTP, by Kafka, and by gRPC's implementations: C++, Go and JavaScript; Java; Rust (tonic). A code
# does not tell: RESOURCE_EXHAUSTED may be a quota, and tonic's is OUT_OF_RANGE.
_TOO_LARGE = re.compile(
    r"HTTP 413|message size too large|larger than max(?:imum)?\b(?:[^()]*\(\d+ vs\.? (?P<c>\d+)\))?"
    r"|exceeds maximum size (?P<java>\d+)"
    r"|message length too large(?:.*limit is:? (?P<rust>\d+))?",
    re.IGNORECASE,
)
_TOO_LARGE_CODES = frozenset((RESOURCE_EXHAUSTED, 11))


def too_large(outcome: Outcome) -> bool:
    """Whether the receiver refused a request for its size."""
    return outcome.code in _TOO_LARGE_CODES and _TOO_LARGE.search(outcome.message) is not None


def retryable(outcome: Outcome) -> bool:
    """Whether the same request may succeed later (OTLP specification, "Failures")."""
    return outcome.retryable and not too_large(outcome)


def size_limit(outcome: Outcome) -> int | None:
    """The largest message the receiver takes, where a refusal names it, as gRPC's own do."""
    found = _TOO_LARGE.search(outcome.message)
    number = found.group("c") or found.group("java") or found.group("rust") if found is not None else None
    return int(number) if number else None


def concerns_content(outcome: Outcome) -> bool:
    """Whether a permanent failure may be due to a part of a request; else (credentials, service, quota) to none."""
    if outcome.code == RESOURCE_EXHAUSTED:
        return too_large(outcome)
    return outcome.code not in _ABOUT_THE_SENDER


def told_to_wait_s(outcome: Outcome) -> float | None:
    """How long the receiver asks to be left alone, None if it does not say; at most ``TOLD_MAX_S``."""
    return None if outcome.retry_after_s is None else min(max(outcome.retry_after_s, 0.0), TOLD_MAX_S)


def try_again(message: str, delay_s: float, like: Outcome | None = None) -> Outcome:
    """A failure that passes, with the hint when to come again.

    Args:
        message: why.
        delay_s: when to come again; at least a second, so that a hint never asks for haste.
        like: a failure that passes, whose codes and details it has.
    """
    delay_s = max(1.0, delay_s)
    if like is None:
        return Outcome(UNAVAILABLE, 503, message, retry_after_s=delay_s)
    # Details with a delay in them would say another one.
    details = like.details if like.retry_after_s is None else None
    return Outcome(like.code, like.http_status, message, b"", details, delay_s)


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

    def failed(self, number: int, now_s: float, told_s: float | None) -> None:
        """It could not take a request; ``told_s``: how long it asks for."""
        state = self._states[number]
        state.failures += 1
        if told_s is not None:
            state.told_until_s = max(state.told_until_s, now_s + told_s)
        pause_s = self._random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(state.failures - 1, 16))
        state.rests_until_s = max(state.told_until_s, now_s + pause_s)

    def away(self, number: int) -> bool:
        """Whether its last request failed."""
        return self._states[number].failures > 0
