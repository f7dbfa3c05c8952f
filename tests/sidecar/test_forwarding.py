"""Requests that go out together end apart, whatever the next hop says: with a next hop that plays a part."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import structlog
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from skewd_sidecar.endpoint import Destination
from skewd_sidecar.forward import Forwarders
from skewd_sidecar.forward.counters import Counters
from skewd_sidecar.forward.dead_letters import DeadLetters, NotDeadLetters, read
from skewd_sidecar.forward.hops import Hops
from skewd_sidecar.forward.lanes import Lanes
from skewd_sidecar.forward.retry import Balance, told_to_wait_s, try_again
from skewd_sidecar.gateway import Gateway, Metadata, Signal
from skewd_sidecar.outcome import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE, Outcome
from skewd_sidecar.patch import Mode, PatchOptions
from skewd_sidecar.relay import COPIES, Relay
from skewd_sidecar.replay import replay
from skewd_sidecar.source import StaticSource
from tests.sidecar.sidecar_lab import grpc_collector, http_collector, sidecar
from tests.waiting import LIMIT_S, until

TAKEN = Outcome.delivered(b"")
BAD = Outcome.failed(INVALID_ARGUMENT, "a span has no name")


def request(*names: str, size: int = 0) -> bytes:
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for name in names:
        scope.spans.add(name=name, trace_state="x" * size)
    return made.SerializeToString()


def names(body: bytes) -> list[str]:
    told = ExportTraceServiceRequest.FromString(body)
    return [span.name for each in told.resource_spans for scope in each.scope_spans for span in scope.spans]


class Hop:
    """A next hop: answers as told, when told, and remembers what it was sent."""

    def __init__(self, answer: Callable[[bytes], Outcome] = lambda body: TAKEN) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []
        self.metadata: list[Metadata] = []
        self.go = asyncio.Event()
        self.go.set()
        self.came = asyncio.Event()
        self.cancelled = 0
        self.closed = False

    async def send(self, body: bytes, timeout_s: float | None, metadata: Metadata = ()) -> Outcome:
        self.bodies.append(body)
        self.metadata.append(metadata)
        self.came.set()
        assert timeout_s is not None
        assert timeout_s > 0
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.answer(body)

    async def close(self) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [name for body in self.bodies for name in names(body)]

    @property
    def sent(self) -> list[list[str]]:
        return [names(body) for body in self.bodies]


def way(
    *hops: Hop,
    counters: Counters | None = None,
    letters: DeadLetters | None = None,
    signal: Signal = Signal.TRACES,
    balance: Balance = Balance.FAILOVER,
    retry_s: float = 0.0,
    max_bytes: int = 0,
    chance: Callable[[], float] = lambda: 0.0,
) -> Lanes:
    counted = counters or Counters()
    endpoints = [
        (Destination("grpc", False, "hop", number + 1, max_bytes=max_bytes), hop) for number, hop in enumerate(hops)
    ]
    return Lanes(signal, Hops(signal, endpoints, balance, retry_s, chance, counted), counted, letters)


async def joined(lanes: Lanes, hop: Hop, *bodies: bytes, metadata: Metadata = ()) -> list[Outcome]:
    """Sends one request, and while that is under way all others, which therefore share a body."""
    hop.go.clear()
    hop.came.clear()
    tasks = [asyncio.create_task(lanes.send(request("first"), LIMIT_S, metadata))]
    await hop.came.wait()
    tasks += [asyncio.create_task(lanes.send(body, LIMIT_S, metadata)) for body in bodies]
    await asyncio.sleep(0)
    hop.go.set()
    return list(await asyncio.gather(*tasks))[1:]


# ------------------------------------------------------------------------------------------------ together and apart


async def test_requests_that_come_while_one_is_under_way_share_a_body_and_its_acknowledgement() -> None:
    hop = Hop()
    lanes = way(hop)
    outcomes = await joined(lanes, hop, request("a"), request("b", "c"), request("d"))
    assert hop.sent == [["first"], ["a", "b", "c", "d"]]
    assert outcomes == [TAKEN] * 3
    assert (lanes.counters.requests["traces"], lanes.counters.batches["traces"]) == (4, 2)
    assert lanes.counters.bytes["traces"] == sum(map(len, hop.bodies))
    assert lanes.held_bytes == 0


async def test_nothing_is_acknowledged_before_the_next_hop_has_it() -> None:
    hop = Hop()
    hop.go.clear()
    lanes = way(hop)
    tasks = [asyncio.create_task(lanes.send(request(name), LIMIT_S, ())) for name in "ab"]
    await hop.came.wait()
    assert not any(task.done() for task in tasks)
    assert lanes.held_bytes == 2 * len(request("a"))
    hop.go.set()
    assert await asyncio.gather(*tasks) == [TAKEN, TAKEN]


async def test_requests_with_different_metadata_never_share_a_body() -> None:
    hop = Hop()
    lanes = way(hop)
    hop.go.clear()
    tenants: list[Metadata] = [(("tenant", "a"),), (("tenant", "b"),), ()]
    tasks = [
        asyncio.create_task(lanes.send(request(f"{n}{t}"), LIMIT_S, of)) for n in "123" for t, of in enumerate(tenants)
    ]
    await hop.came.wait()
    hop.go.set()
    assert await asyncio.gather(*tasks) == [TAKEN] * 9
    for body, metadata in zip(hop.sent, hop.metadata, strict=True):
        assert {name[1] for name in body} == {str(tenants.index(metadata))}
    assert len(hop.bodies) < 9


@pytest.mark.parametrize("kind", ["profiles", "unknown field"])
async def test_what_would_not_merge_by_concatenation_goes_alone(kind: str) -> None:
    hop = Hop()
    lanes = way(hop, signal=Signal.PROFILES if kind == "profiles" else Signal.TRACES)
    beside = b"" if kind == "profiles" else b"\xaa\x06\x01x"
    await joined(lanes, hop, request("a") + beside, request("b") + beside)
    assert hop.sent[1:] == [["a"], ["b"]]


@pytest.mark.parametrize("bad", range(5))
async def test_of_requests_that_were_sent_together_only_the_bad_one_is_refused_and_kept(
    bad: int, tmp_path: Path
) -> None:
    counters = Counters()
    letters = DeadLetters(tmp_path / "letters", 10_000, counters, lambda: 7)
    hop = Hop(lambda body: BAD if str(bad) in names(body) else TAKEN)
    lanes = way(hop, counters=counters, letters=letters)
    bodies = [request(str(number)) for number in range(5)]
    metadata = (("tenant", "é"),)
    outcomes = await joined(lanes, hop, *bodies, metadata=metadata)
    assert outcomes == [BAD if number == bad else TAKEN for number in range(5)]
    taken = [name for body in hop.sent if str(bad) not in body for name in body]
    assert sorted(taken) == sorted(["first", *(str(number) for number in range(5) if number != bad)])
    (letter,) = read(tmp_path / "letters")
    assert (letter.body, letter.signal, letter.metadata) == (bodies[bad], Signal.TRACES, metadata)
    assert (letter.time_unix_nano, letter.code, letter.message) == (7, INVALID_ARGUMENT, "a span has no name")
    assert (counters.refused["traces"], counters.letters["kept"]) == (1, 1)
    assert counters.splits["traces"] >= 1
    assert lanes.held_bytes == 0


async def test_credentials_that_are_refused_are_refused_to_all_without_asking_again() -> None:
    hop = Hop(lambda body: Outcome.failed(16, "who are you?"))
    outcomes = await joined(way(hop), hop, request("a"), request("b"))
    assert [outcome.code for outcome in outcomes] == [16, 16]
    assert len(hop.bodies) == 2


async def test_a_failure_that_passes_is_told_to_all_with_its_hint() -> None:
    away = Outcome.failed_over_http(429, "slowly", None, "9")
    hop = Hop(lambda body: away)
    outcomes = await joined(way(hop), hop, request("a"), request("b"))
    for outcome in outcomes:
        assert (outcome.code, outcome.http_status, outcome.message) == (UNAVAILABLE, 429, "slowly")
        assert outcome.retry_after_s is not None
        assert 0 < outcome.retry_after_s <= 9


async def test_a_partial_success_of_a_shared_body_is_told_to_all_and_then_each_learns_its_own() -> None:
    rejected = ExportTraceServiceResponse()
    rejected.partial_success.rejected_spans = 2
    rejected.partial_success.error_message = "too old"
    hop = Hop(lambda body: Outcome.delivered(rejected.SerializeToString()) if "old" in names(body) else TAKEN)
    lanes = way(hop)
    outcomes = await joined(lanes, hop, request("old"), request("new"))
    for outcome in outcomes:
        told = ExportTraceServiceResponse.FromString(outcome.body).partial_success
        assert (outcome.ok, told.rejected_spans) == (True, 2)
        assert told.error_message == "of 2 requests that were sent on together: too old"
    old, new = await joined(lanes, hop, request("old"), request("new"))
    assert (ExportTraceServiceResponse.FromString(old.body), new) == (rejected, TAKEN)


async def test_an_exporter_that_gives_up_leaves_and_a_body_that_nobody_waits_for_is_not_sent() -> None:
    hop = Hop()
    lanes = way(hop)
    hop.go.clear()
    under_way = asyncio.create_task(lanes.send(request("under way"), LIMIT_S, ()))
    await hop.came.wait()
    gathered = [asyncio.create_task(lanes.send(request(name), LIMIT_S, ())) for name in ("gone", "stays")]
    await asyncio.sleep(0)
    gathered[0].cancel()
    under_way.cancel()
    await asyncio.wait({gathered[0], under_way})
    hop.go.set()
    assert await gathered[1] == TAKEN
    assert hop.cancelled == 1
    assert hop.sent == [["under way"], ["stays"]]
    assert lanes.held_bytes == 0


async def test_one_that_has_no_time_left_is_told_so_while_others_that_were_sent_with_it_wait_on() -> None:
    hop = Hop()
    hop.go.clear()
    lanes = way(hop)
    first = asyncio.create_task(lanes.send(request("first"), LIMIT_S, ()))
    await hop.came.wait()
    hop.came.clear()
    hasty = asyncio.create_task(lanes.send(request("hasty"), 0.01, ()))
    patient = asyncio.create_task(lanes.send(request("patient"), LIMIT_S, ()))
    told = await hasty
    assert (told.code, "not taken within 0.01 s" in told.message) == (UNAVAILABLE, True)
    assert told.retry_after_s == 1
    assert not patient.done()
    hop.go.set()
    assert [await first, await patient] == [TAKEN, TAKEN]
    assert lanes.counters.expired["traces"] == 1


async def test_closing_tells_who_waits_to_try_again() -> None:
    hop = Hop()
    hop.go.clear()
    lanes = way(hop)
    tasks = [asyncio.create_task(lanes.send(request("a"), LIMIT_S, ()))]
    await hop.came.wait()
    tasks.append(asyncio.create_task(lanes.send(request("b"), LIMIT_S, ())))
    await asyncio.sleep(0)
    await lanes.close()
    outcomes = [*await asyncio.gather(*tasks), await lanes.send(request("c"), LIMIT_S, ())]
    assert {(each.code, each.message) for each in outcomes} == {(UNAVAILABLE, "the sidecar is stopping")}
    assert hop.closed
    assert lanes.held_bytes == 0


async def test_who_is_alone_and_hangs_up_takes_its_body_along() -> None:
    hop = Hop()
    hop.go.clear()
    lanes = way(hop)
    alone = asyncio.create_task(lanes.send(request("a"), LIMIT_S, ()))
    await hop.came.wait()
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert (hop.cancelled, lanes.held_bytes) == (1, 0)
    hop.go.set()
    assert await lanes.send(request("b"), LIMIT_S, ()) == TAKEN


async def test_a_fault_of_ours_is_told_to_those_it_concerns_and_the_lane_goes_on() -> None:
    def fails(body: bytes) -> Outcome:
        if "fault" in names(body):
            raise RuntimeError("a fault")
        return TAKEN

    lanes = way(Hop(fails))
    with structlog.testing.capture_logs() as lines:
        told = await lanes.send(request("fault"), LIMIT_S, ())
    assert (told.code, told.http_status) == (UNAVAILABLE, 503)
    assert "its log says why; try again" in told.message
    assert [(line["log_level"], line["event"], line["signal"]) for line in lines] == [
        ("error", "forwarding failed", Signal.TRACES)
    ]
    assert await lanes.send(request("next"), LIMIT_S, ()) == TAKEN


# ------------------------------------------------------------------------------------------------------ too large


def takes(limit: int, says: bool) -> Callable[[bytes], Outcome]:
    def answer(body: bytes) -> Outcome:
        if len(body) <= limit:
            return TAKEN
        if says:
            return Outcome.failed(RESOURCE_EXHAUSTED, f"received message larger than max ({len(body)} vs. {limit})")
        return Outcome.failed_over_http(413, "HTTP 413", None, None)

    return answer


@pytest.mark.parametrize("says", [True, False], ids=["says its limit", "says nothing"])
async def test_a_request_larger_than_the_next_hop_takes_is_split_and_the_limit_remembered(says: bool) -> None:
    hop = Hop(takes(100_000, says))
    lanes = way(hop)
    wanted = [str(number) for number in range(300)]
    assert (await lanes.send(request(*wanted, size=1000), LIMIT_S, ())) == TAKEN
    assert [name for body in hop.bodies if len(body) <= 100_000 for name in names(body)] == wanted
    assert lanes.counters.splits["traces"] == 1
    before = len(hop.bodies)
    assert (await lanes.send(request(*wanted, size=1000), LIMIT_S, ())) == TAKEN
    assert all(len(body) <= 100_000 for body in hop.bodies[before:])
    outcomes = await joined(lanes, hop, *(request(name, size=40_000) for name in "abc"))
    assert outcomes == [TAKEN] * 3
    assert all(len(body) <= 100_000 for body in hop.bodies[before:])


async def test_a_configured_limit_is_never_tried() -> None:
    hop = Hop()
    lanes = way(hop, max_bytes=5000)
    assert await lanes.send(request(*map(str, range(100)), size=500), LIMIT_S, ()) == TAKEN
    assert all(len(body) <= 5000 for body in hop.bodies)
    assert hop.names == [str(number) for number in range(100)]


async def test_a_part_that_is_refused_is_a_partial_success_and_kept(tmp_path: Path) -> None:
    counters = Counters()
    hop = Hop(lambda body: BAD if "13" in names(body) else TAKEN)
    lanes = way(hop, counters=counters, letters=DeadLetters(tmp_path / "x", 10**6, counters, lambda: 0), max_bytes=4000)
    outcome = await lanes.send(request(*map(str, range(40)), size=500), LIMIT_S, ())
    told = ExportTraceServiceResponse.FromString(outcome.body).partial_success
    (letter,) = read(tmp_path / "x")
    assert outcome.ok
    assert (told.rejected_spans, told.error_message) == (
        len(names(letter.body)),
        "part of the request was refused: a span has no name",
    )
    assert "13" in names(letter.body)
    assert sorted(hop.names, key=int) == [str(number) for number in range(40)]


async def test_one_span_that_is_larger_than_the_next_hop_takes_is_refused_alone() -> None:
    hop = Hop(takes(100_000, True))
    lanes = way(hop)
    made = ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    for number in range(5):
        scope.spans.add(name=str(number), trace_state="x" * (200_000 if number == 2 else 1))
    outcome = await lanes.send(made.SerializeToString(), LIMIT_S, ())
    assert ExportTraceServiceResponse.FromString(outcome.body).partial_success.rejected_spans == 1
    assert sorted(name for body in hop.bodies if len(body) <= 100_000 for name in names(body)) == ["0", "1", "3", "4"]
    alone = await lanes.send(request("huge", size=200_000), LIMIT_S, ())
    assert alone.code == RESOURCE_EXHAUSTED


async def test_a_part_that_fails_for_now_has_the_exporter_send_all_again() -> None:
    hop = Hop(lambda body: try_again("busy", 3) if "30" in names(body) else TAKEN)
    outcome = await way(hop, max_bytes=4000).send(request(*map(str, range(40)), size=500), LIMIT_S, ())
    assert (outcome.code, outcome.retry_after_s) == (UNAVAILABLE, 3)


# ------------------------------------------------------------------------------------------------ several endpoints


async def test_work_is_shared_in_turn_or_given_to_the_first_that_answers() -> None:
    for balance, wanted in ((Balance.ROUND_ROBIN, [2, 2]), (Balance.FAILOVER, [4, 0])):
        hops = Hop(), Hop()
        lanes = way(*hops, balance=balance)
        for number in range(4):
            assert await lanes.send(request(str(number)), LIMIT_S, ()) == TAKEN
        assert [len(hop.bodies) for hop in hops] == wanted


@pytest.mark.parametrize("balance", list(Balance))
async def test_an_endpoint_that_is_away_is_not_noticed_by_exporters(balance: Balance) -> None:
    gone, there = Hop(lambda body: try_again("gone", 60)), Hop()
    lanes = way(gone, there, balance=balance, retry_s=5, chance=lambda: 1.0)
    for number in range(6):
        assert await lanes.send(request(str(number)), LIMIT_S, ()) == TAKEN
    assert len(gone.bodies) == 1  # it asked for a minute, and gets it
    assert len(there.bodies) == 6
    assert lanes.counters.retries["traces"] == 1
    assert [(state.endpoint, state.up) for state in lanes.hops.states()] == [
        ("grpc://hop:1", False),
        ("grpc://hop:2", True),
    ]


async def test_a_body_that_hung_everywhere_goes_where_something_came_back_since() -> None:
    answers = [Outcome.unheard("hung"), TAKEN, TAKEN]
    first, second = Hop(lambda body: answers.pop(0)), Hop(lambda body: Outcome.unheard("hung"))
    second.go.clear()
    lanes = way(first, second, retry_s=1e-9, chance=lambda: 1.0)
    sending = asyncio.create_task(lanes.send(request("a"), LIMIT_S, ()))
    await asyncio.wait_for(second.came.wait(), LIMIT_S)
    await until(lambda: b"" in first.bodies, "a probe")
    second.go.set()
    assert await sending == TAKEN
    assert [len(names(body)) for body in first.bodies] == [1, 0, 1]
    await lanes.close()


async def test_one_endpoint_is_tried_again_within_the_bound_and_then_the_exporter_is_told_when() -> None:
    answers = [Outcome.failed(UNAVAILABLE, "restarting")] * 2
    hop = Hop(lambda body: answers.pop() if answers else TAKEN)
    lanes = way(hop, retry_s=5)
    assert await lanes.send(request("a"), LIMIT_S, ()) == TAKEN
    assert len(hop.bodies) == 3

    away = Hop(lambda body: Outcome.failed_over_http(502, "HTTP 502", None, None))
    lanes = way(away, retry_s=30)
    assert (await lanes.send(request("a"), LIMIT_S, ())).http_status == 502
    assert len(away.bodies) == 5

    rests = Hop(lambda body: try_again("overloaded", 40))
    lanes = way(rests, retry_s=30)
    for _ in range(3):
        told = await lanes.send(request("a"), LIMIT_S, ())
        assert told.message == "overloaded"
        assert 0 < (told_to_wait_s(told) or 0) <= 40
    assert len(rests.bodies) == 1


async def test_who_comes_while_the_next_hop_rests_is_told_all_that_the_last_one_was() -> None:
    failed = Outcome.failed(10, "because", RpcStatus(code=10, message="because").SerializeToString())
    hop = Hop(lambda body: failed)
    lanes = way(hop, chance=lambda: 1.0)
    assert await lanes.send(request("a"), LIMIT_S, ()) == failed
    told = await lanes.send(request("b"), LIMIT_S, ())
    assert len(hop.bodies) == 1, "it rests"
    assert (told.code, told.http_status, told.message, told.details) == (10, 503, "because", failed.details)
    assert told.status_body() == failed.status_body()


async def test_the_log_says_once_a_minute_which_next_hop_takes_nothing_and_that_it_is_back() -> None:
    outcomes = [Outcome.failed(UNAVAILABLE, "away")] * 3 + [TAKEN, Outcome.failed(UNAVAILABLE, "again"), TAKEN]
    hop = Hop(lambda body: outcomes.pop(0))
    lanes = way(hop)
    with structlog.testing.capture_logs() as lines:
        while outcomes:
            await lanes.send(request("a"), LIMIT_S, ())
    assert [(line["log_level"], line["event"], str(line["next_hop"])) for line in lines] == [
        ("warning", "a next hop takes nothing, exporters are told to try again", "grpc://hop:1"),
        ("info", "a next hop answers again", "grpc://hop:1"),
    ]


async def test_no_wake_up_is_left_behind_by_one_that_came_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    turns: list[asyncio.TimerHandle] = []
    later = loop.call_later

    def remember(delay: float, *what: Any, **more: Any) -> asyncio.TimerHandle:
        turns.append(later(delay, *what, **more))
        return turns[-1]

    monkeypatch.setattr(loop, "call_later", remember)
    hop = Hop()
    lanes = way(hop)
    lanes.limits.gather_s = lanes.limits.hold_s = LIMIT_S
    await joined(lanes, hop, request("b"), request("c"))
    assert turns, "they would have waited"
    assert all(each.cancelled() for each in turns)


async def test_retries_end_with_the_exporters_own_time() -> None:
    hop = Hop(lambda body: Outcome.failed(UNAVAILABLE, "away"))
    lanes = way(hop, retry_s=60, chance=lambda: 1.0)
    assert (await lanes.send(request("a"), 0.05, ())).code == UNAVAILABLE
    assert len(hop.bodies) == 1


# --------------------------------------------------------------------------------------------------- dead letters


async def test_dead_letters_are_private_bounded_and_survive_being_moved_away(
    tmp_path: Path,
) -> None:
    path, counters = tmp_path / "letters", Counters()
    letters = DeadLetters(path, 1000, counters, lambda: 1)
    body = b"\n\x00" * 150
    for _ in range(4):
        await letters.keep(Signal.LOGS, body, (), BAD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size <= 1000
    assert [letter.body for letter in read(path)] == [body] * 2
    assert dict(counters.letters) == {"kept": 2, "dropped": 2}
    path.rename(tmp_path / "taken")
    await letters.keep(Signal.LOGS, body, (), BAD)
    assert len(list(read(path))) == 1


async def test_a_file_that_cannot_be_written_is_said_once_and_counted(
    tmp_path: Path,
) -> None:
    counters = Counters()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "missing" / "letters", tmp_path / "link"):
        letters = DeadLetters(path, 1000, counters, lambda: 1)
        with structlog.testing.capture_logs() as said:
            for _ in range(2):
                await letters.keep(Signal.LOGS, b"", (), BAD)
        assert [each["file"] for each in said] == [str(path)]
    assert dict(counters.letters) == {"failed": 4}
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("damage", [b"x", b'{"bytes": -1}\n', b'{"bytes": 3}\nab', b"{}\n", b"[]\n"])
def test_what_is_no_dead_letter_is_named(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(damage)
    with pytest.raises(NotDeadLetters, match="holds no dead letter"):
        list(read(tmp_path / "x"))


async def test_dead_letters_are_sent_again_and_what_is_not_taken_stays(tmp_path: Path) -> None:
    path, letters = tmp_path / "letters", DeadLetters(tmp_path / "letters", 10_000, Counters(), lambda: 1)
    for name in ("good", "bad", "fine"):
        await letters.keep(Signal.TRACES, request(name), (("tenant", name),), BAD)
    async with grpc_collector() as behind:
        behind.refuse = lambda body: (
            (grpc.StatusCode.INVALID_ARGUMENT, "still bad", ()) if "bad" in names(body) else None
        )
        told = await replay(path, behind.url, {})
        assert (told.taken, told.refused, told.undelivered) == (2, 1, 0)
        assert "still bad" in told.why
        assert [names(each.body) for each in behind.requests] == [["good"], ["bad"], ["fine"]]
        assert [each.metadata["tenant"] for each in behind.requests] == ["good", "bad", "fine"]
        assert [names(letter.body) for letter in read(path)] == [["bad"]]
        behind.refuse = None
        assert (await replay(path, behind.url, {})).taken == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="letters"):
        await replay(path, "grpc://localhost:1", {})


async def test_a_damaged_file_is_named_and_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(b"nonsense")
    with pytest.raises(NotDeadLetters):
        await replay(path, "grpc://localhost:1", {})
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"letters": b"nonsense"}


# ----------------------------------------------------------------------------------------------------- overload


async def test_under_overload_memory_keeps_its_bound_refusals_have_a_hint_and_recovery_is_at_once() -> None:
    hop = Hop()
    destination = Destination("grpc", False, "hop", 1)
    forwarders = Forwarders({Signal.TRACES: destination}, connect=lambda signal, destination: hop)
    gateway = Gateway(PatchOptions(Mode.OFF, "a"), StaticSource("a", 1, 2))
    body = request("x", size=10_000)
    full = 10 * COPIES * len(body)
    foreseen = gateway.foresee(Signal.TRACES, body)
    assert foreseen.growth_bytes == 0
    relay = Relay(gateway, forwarders, bytes_max=full + foreseen.notes_bytes)
    hop.go.clear()
    tasks = [asyncio.create_task(relay(Signal.TRACES, body, LIMIT_S)) for _ in range(30)]
    await hop.came.wait()
    refused = [task.result() for task in tasks if task.done()]
    assert len(refused) == 20
    assert all(outcome.retryable and 1 <= (outcome.retry_after_s or 0) <= 5 for outcome in refused)
    assert COPIES * forwarders.held_bytes == full
    # Exporters that hang up make room only where nothing is held for them any more.
    waiting = [task for task in tasks if not task.done()]
    for task in waiting[1:]:
        task.cancel()
    await asyncio.wait(waiting[1:])
    assert COPIES * forwarders.held_bytes == full
    assert not (await relay(Signal.TRACES, body, LIMIT_S)).ok
    hop.go.set()
    assert (await waiting[0]).ok
    assert forwarders.held_bytes == 0
    assert all(
        outcome.ok for outcome in await asyncio.gather(*(relay(Signal.TRACES, body, LIMIT_S) for _ in range(10)))
    )
    await forwarders.close()


# ---------------------------------------------------------------------------------------------- the whole sidecar


async def test_small_requests_of_many_exporters_reach_a_real_collector_in_fewer_bodies(tmp_path: Path) -> None:
    async with grpc_collector() as behind:
        behind.hold = asyncio.Event()
        destination = Destination("grpc", False, "localhost", int(behind.url.rpartition(":")[2]))
        forwarders = Forwarders({Signal.TRACES: destination})
        tasks = [asyncio.create_task(forwarders.send(Signal.TRACES, request(str(n)), LIMIT_S)) for n in range(40)]
        await asyncio.wait_for(behind.arrived.wait(), LIMIT_S)
        behind.hold.set()
        assert all(outcome.ok for outcome in await asyncio.gather(*tasks))
        assert sorted((name for body in behind.bodies() for name in names(body)), key=int) == [
            str(n) for n in range(40)
        ]
        assert len(behind.bodies()) < 10
        assert (forwarders.counters.requests["traces"], forwarders.counters.batches["traces"]) == (
            40,
            len(behind.bodies()),
        )
        assert [state.up for state in forwarders.endpoints()] == [True]
        await forwarders.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_sidecar_splits_what_a_real_receiver_is_too_small_for(protocol: str, monkeypatch: Any) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    collector = grpc_collector(max_bytes=300_000) if protocol == "grpc" else http_collector(max_bytes=300_000)
    async with collector as behind, sidecar(forward=behind.url, grpc=None) as running:
        body = request(*map(str, range(1000)), size=900)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                running.http + "/v1/traces", data=body, headers={"Content-Type": "application/x-protobuf"}
            ) as response,
        ):
            assert response.status == 200
        assert [name for part in behind.bodies() for name in names(part)] == [str(n) for n in range(1000)]
        assert len(behind.bodies()) >= 3


async def test_a_scrape_tells_what_was_forwarded_and_which_next_hop_answers(tmp_path: Path) -> None:
    async with (
        grpc_collector() as behind,
        sidecar(
            forward=[behind.url, "grpc://localhost:1"],
            http=None,
            metrics_listen="127.0.0.1:0",
            dead_letter=tmp_path / "letters",
        ) as running,
        grpc.aio.insecure_channel(running.grpc) as channel,
        aiohttp.ClientSession() as session,
    ):
        behind.refuse = lambda body: (grpc.StatusCode.INVALID_ARGUMENT, "bad", ()) if "bad" in names(body) else None
        export: Any = channel.unary_unary(f"/{Signal.TRACES.grpc_service}/Export", None, None)
        for _ in range(3):
            assert await export(request("good"), timeout=LIMIT_S) == b""
        with pytest.raises(grpc.aio.AioRpcError, match="bad"):
            await export(request("bad"), timeout=LIMIT_S)
        async with session.get(f"http://{running.addresses['metrics']}/metrics") as response:
            lines = (await response.text()).splitlines()
        bodies = behind.bodies()[:3]
        for line in (
            'skewd_forwarded_requests_total{signal="traces"} 3.0',
            'skewd_forwarded_batches_total{signal="traces"} 3.0',
            f'skewd_forwarded_bytes_total{{signal="traces"}} {float(sum(map(len, bodies)))}',
            'skewd_forward_refused_total{signal="traces"} 1.0',
            'skewd_dead_letters_total{result="kept"} 1.0',
            "skewd_forward_held_bytes 0.0",
            f'skewd_next_hop_up{{endpoint="{behind.url}",signal="traces"}} 1.0',
            'skewd_next_hop_up{endpoint="grpc://localhost:1",signal="traces"} 0.0',
        ):
            assert line in lines
        assert any(line.startswith('skewd_forward_retries_total{signal="traces"} ') for line in lines)
    assert len(list(read(tmp_path / "letters"))) == 1


async def test_a_sidecar_moves_on_to_another_collector_when_one_goes_away() -> None:
    async with http_collector() as first, http_collector() as second, aiohttp.ClientSession() as session:
        first.fail_http = unavailable
        async with sidecar(forward=[first.url, second.url], balance=Balance.FAILOVER, grpc=None) as running:
            for number in range(5):
                async with session.post(
                    running.http + "/v1/traces",
                    data=request(str(number)),
                    headers={"Content-Type": "application/x-protobuf"},
                ) as response:
                    assert response.status == 200
        assert [name for body in second.bodies() for name in names(body)] == [str(number) for number in range(5)]
        assert len(first.bodies()) == 1


def unavailable() -> Any:
    from aiohttp import web

    return web.Response(status=503, headers={"Retry-After": "30"})
