"""What a failure means, which endpoint is asked next, and when: policy, outcomes and times in, decisions out.

OTLP knows two kinds of failure. One passes (the receiver is away, restarting, overloaded), and the request is sent
again; the other does not, and sending again would only repeat it. A receiver may say how long to leave it alone:
then nothing is sent there until that time, whoever asks. Where it does not say, the pause doubles with each failure
and is drawn evenly from nothing to that length ("full jitter"), so that many senders do not come back in step.

Whose failure is it? What an endpoint *says* ("not now", "too many") it says to the one who asked, and another tenant
may be welcome: so a pause that was answered belongs to the endpoint and the sender's metadata together. Where *nothing
comes back* (no connection, no answer in time) the failure is the endpoint's, and everybody's; unless others were
answered meanwhile, for then it is that request's.

Pauses count outages, not requests: of many that were under way when a connection broke, the first failure counts, and
the others are the same outage. A success that comes late does not make it longer either.

An endpoint that failed is not believed to be back before something has come through. Where others can take the work,
that is a probe beside the traffic (:class:`~skewd_sidecar.forward.hops.Hops` sends it), and no exporter waits for it.
Else, after its pause, one request is let through at a time (one in ``PROBE_S``), and the first that gets an answer
opens it for all. An endpoint that has left a request without an answer for ``SUSPECT_S``, and has answered no other
meanwhile, is asked last.

Limits: a pause of our own is at most ``BACKOFF_MAX_S``, one that a receiver asks for at most ``TOLD_MAX_S``. Of
``TENANTS_MAX`` pairs of endpoint and tenant is known that they pause; beyond that the one that failed longest ago is
forgotten, and costs a request that is asked too early. Pure: time and chance are handed in.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from skewd_sidecar.gateway import Metadata
from skewd_sidecar.outcome import RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED, Outcome

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
PROBE_S = 1.0
TOLD_MAX_S = 300.0
SUSPECT_S = 1.0
TENANTS_MAX = 1024
_REMEMBERED_BYTES = 4096

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


def tenant_of(metadata: Metadata, beside: Collection[str], key: bytes) -> bytes:
    """Who sends, as an endpoint sees it: a digest of the metadata, empty for none; it tells nobody what was in it.

    Args:
        metadata: what is sent along.
        beside: names that tell nothing of the sender: those that are overridden, and our own.
        key: makes the digest this process's own, so that nobody can find out by guessing; 64 bytes at most.
    """
    told = [pair for pair in metadata if pair[0] not in beside]
    if not told:
        return b""
    digest = hashlib.blake2b(key=key, digest_size=16)
    for text in (each for pair in sorted(told) for each in pair):
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def patience_s(remaining_s: float, attempt_s: float, answering: bool) -> float:
    """How long an attempt may go without an answer, while another endpoint could take the body.

    Args:
        remaining_s: what the exporter still waited when the attempt began.
        attempt_s: as configured, for an endpoint that is silent.
        answering: whether the endpoint has answered something since the attempt began: it is slow, then, and not hung,
            and a second attempt would only make it slower.
    """
    return remaining_s / 2 if answering else min(attempt_s, remaining_s / 2)


class Attempt(NamedTuple):
    """One body's way to one endpoint, as :meth:`Endpoints.choose` gave it.

    Attributes:
        number: of the endpoint.
        tenant: who sends.
        began_s: when.
        outage, pause: the endpoint's and the tenant's last failure by then, which a failure of this is no sequel of.
    """

    number: int
    tenant: bytes
    began_s: float
    outage: int
    pause: int


@dataclass(slots=True)
class _Pause:
    """What fails, and how long it is left alone."""

    last: int = 0  # the number of its last failure, in the order of all
    failures: int = 0
    rests_until_s: float = -math.inf
    told_until_s: float = -math.inf
    why: Outcome | None = None


@dataclass(slots=True)
class _State(_Pause):
    heard_s: float = -math.inf
    up: bool = True
    under_way: dict[int, float] = field(default_factory=dict)  # when each began, the oldest first


class Endpoints:
    """Which of several endpoints is asked. Times are seconds of any clock that does not go back.

    Args:
        count: how many there are; they are numbered from 0.
        balance: how they share the work.
        random: evenly distributed in [0, 1).
        probed: of each, whether it is probed beside the traffic once it has failed.
    """

    def __init__(
        self, count: int, balance: Balance, random: Callable[[], float], probed: Sequence[bool] = ()
    ) -> None:
        self._states = [_State() for _ in range(count)]
        self._probed = tuple(probed) or (False,) * count
        self._pauses: OrderedDict[tuple[int, bytes], _Pause] = OrderedDict()
        self._balance = balance
        self._random = random
        self._next = 0
        self._failures = 0

    def choose(
        self, now_s: float, tenant: bytes = b"", tried: Collection[int] = (), *, again: bool = True
    ) -> Attempt | None:
        """The endpoint to ask now; None while all rest.

        Args:
            tenant: who sends.
            tried: those that this body has been to, which are asked after the others.
            again: whether they are asked at all.
        """
        count = len(self._states)
        first = self._next if self._balance is Balance.ROUND_ROBIN else 0
        best: tuple[tuple[bool, bool, bool], int] | None = None
        for step in range(count):
            number = (first + step) % count
            if self._rest_s(number, tenant) > now_s or (not again and number in tried):
                continue
            state = self._states[number]
            away = state.failures > 0 and self._probed[number]
            rank = (away, self._suspect(state, now_s), number in tried)
            if best is None or rank < best[0]:
                best = rank, number
            if rank == (False, False, False):
                break
        if best is None:
            return None
        number = best[1]
        self._next = (number + 1) % count
        state, pause = self._states[number], self._pauses.get((number, tenant))
        for each in (state, pause):
            if each is not None and each.failures:
                each.rests_until_s = now_s + PROBE_S
        return Attempt(number, tenant, now_s, state.last, pause.last if pause is not None else 0)

    def other(self, number: int, tenant: bytes, now_s: float) -> bool:
        """Whether another endpoint would take a body of this tenant now, as far as is known."""
        return any(
            each != number
            and not state.failures
            and not self._suspect(state, now_s)
            and self._rest_s(each, tenant) <= now_s
            for each, state in enumerate(self._states)
        )

    def resting(self, tenant: bytes) -> tuple[float, Outcome | None]:
        """When the first of them ends its rest, and what that one rests for."""
        number = min(range(len(self._states)), key=lambda each: self._rest_s(each, tenant))
        state, pause = self._states[number], self._pauses.get((number, tenant))
        if pause is not None and pause.rests_until_s >= state.rests_until_s:
            return pause.rests_until_s, pause.why
        return state.rests_until_s, state.why

    def begun(self, attempt: Attempt, key: int) -> None:
        """An attempt is under way, by a number of its own."""
        self._states[attempt.number].under_way[key] = attempt.began_s

    def ended(self, attempt: Attempt, key: int) -> None:
        """It is not any more."""
        self._states[attempt.number].under_way.pop(key, None)

    def answering(self, attempt: Attempt) -> bool:
        """Whether the endpoint has answered anything since the attempt began."""
        return self._states[attempt.number].heard_s > attempt.began_s

    def taken(self, attempt: Attempt, now_s: float) -> bool:
        """It took the body, or refused it for good. Whether it had taken nothing before."""
        was_up = self._states[attempt.number].up
        self.proven(attempt.number, now_s)
        key = (attempt.number, attempt.tenant)
        pause = self._pauses.get(key)
        if pause is not None:
            pause.failures = 0
            pause.rests_until_s = pause.told_until_s
            if pause.told_until_s <= now_s:
                del self._pauses[key]
        return not was_up

    def proven(self, number: int, now_s: float) -> None:
        """Something came back from it."""
        state = self._states[number]
        state.heard_s = now_s
        state.up = True
        state.failures = 0
        state.rests_until_s = state.told_until_s = -math.inf
        state.why = None

    def failed(self, attempt: Attempt, now_s: float, outcome: Outcome) -> bool:
        """It could not take the body now. Whether the failure is the endpoint's, and everybody's."""
        state = self._states[attempt.number]
        if not outcome.heard and (attempt.outage != state.last or not self.answering(attempt)):
            self._failed(state, attempt.outage, now_s, outcome)
            state.up = state.failures == 0  # which it is where the outage is over
            return True
        if outcome.heard:
            self.proven(attempt.number, now_s)
        state.up = False
        key = (attempt.number, attempt.tenant)
        pause = self._pauses.get(key)
        if pause is None:
            pause = self._pauses[key] = _Pause()
            if len(self._pauses) > TENANTS_MAX:
                self._pauses.popitem(last=False)
        self._pauses.move_to_end(key)
        self._failed(pause, attempt.pause, now_s, outcome)
        return False

    def _failed(self, pause: _Pause, known: int, now_s: float, outcome: Outcome) -> None:
        """One more failure; a sequel of the last, if the attempt began before that was known."""
        told_s = told_to_wait_s(outcome)
        if told_s is not None:
            pause.told_until_s = max(pause.told_until_s, now_s + told_s)
        if known == pause.last:
            self._failures += 1
            pause.last = self._failures
            pause.failures += 1
            pause.why = _remembered(outcome)
            pause_s = self._random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(pause.failures - 1, 16))
            pause.rests_until_s = now_s + pause_s
        pause.rests_until_s = max(pause.rests_until_s, pause.told_until_s)

    def probe(self, number: int, now_s: float) -> Attempt:
        """A probe of an endpoint, beside the traffic. Traffic does not go there meanwhile."""
        state = self._states[number]
        state.rests_until_s = max(state.rests_until_s, now_s + PROBE_S)
        return Attempt(number, b"", now_s, state.last, 0)

    def away_until_s(self, number: int) -> float | None:
        """When an endpoint that failed may be asked again; None for one that has not."""
        state = self._states[number]
        return state.rests_until_s if state.failures else None

    def up(self, number: int) -> bool:
        """Whether its last answer was none that asks to try again."""
        return self._states[number].up

    def _rest_s(self, number: int, tenant: bytes) -> float:
        until_s = self._states[number].rests_until_s
        pause = self._pauses.get((number, tenant)) if self._pauses else None
        return until_s if pause is None else max(until_s, pause.rests_until_s)

    def _suspect(self, state: _State, now_s: float) -> bool:
        oldest_s = next(iter(state.under_way.values()), math.inf)
        return now_s - oldest_s > SUSPECT_S and state.heard_s < oldest_s


def _remembered(outcome: Outcome) -> Outcome:
    """What is kept of a failure for those who come while it lasts: bounded."""
    details = outcome.details
    if details is not None and len(details) > _REMEMBERED_BYTES:
        details = None
    if details is outcome.details and len(outcome.message) <= _REMEMBERED_BYTES:
        return outcome
    return replace(outcome, message=outcome.message[:_REMEMBERED_BYTES], details=details)
