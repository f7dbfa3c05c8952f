"""Which addresses may be peers: what a resolver answers, over time, and what is made of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from skewd.discovery import ADDRESSES_MAX, Discovery, host_addresses, system_resolver
from tests.waiting import LIMIT_S, until


class Resolver:
    """Answers what it is told to."""

    def __init__(self, *answer: str) -> None:
        self.answer: Iterable[str] | Exception = answer
        self.asked = 0
        self.hang: asyncio.Event | None = None

    async def __call__(self, host: str, port: int) -> Iterable[str]:
        self.asked += 1
        if self.hang is not None:
            await self.hang.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def discovering(resolver: Resolver, **options: Any) -> AsyncIterator[tuple[Discovery, list[frozenset[str]]]]:
    told: list[frozenset[str]] = []
    defaults: dict[str, Any] = {
        "static": (),
        "dns": "skewd-peers:9957",
        "listen_port": 9957,
        "keyed": True,
        "own_addresses": lambda: frozenset({"10.0.0.1", "fd00::1", "127.0.0.1"}),
        "jitter": lambda: 0.5,
        "again_s": 0.02,
        "soon_s": 0.01,
        "wait_s": 5.0,
    }
    discovery = Discovery(found=told.append, resolve=resolver, **(defaults | options))
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery, told
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_every_address_of_the_name_is_a_candidate_but_this_hosts_own() -> None:
    resolver = Resolver("10.0.0.2", "10.0.0.1", "::ffff:10.0.0.3", "fd00::0002", "fd00::1", "10.0.0.2")
    async with discovering(resolver, static=("192.0.2.7:9957",)) as (discovery, told):
        await until(lambda: len(told) == 2)
        assert told[0] == {"192.0.2.7:9957"}, "the static ones at once"
        assert told[1] == {"192.0.2.7:9957", "10.0.0.2:9957", "10.0.0.3:9957", "[fd00::2]:9957"}
        assert discovery.candidates == told[1]
        assert discovery.problem is None


async def test_another_daemon_on_this_host_is_a_peer() -> None:
    async with discovering(Resolver("127.0.0.1", "127.0.0.2"), listen_port=9958) as (_, told):
        await until(lambda: len(told) == 2)
        assert told[1] == {"127.0.0.1:9957", "127.0.0.2:9957"}


async def test_where_it_heard_itself_is_no_peer_and_is_remembered_while_it_is_in_the_answer() -> None:
    resolver = Resolver("10.0.0.2", "198.51.100.1")
    async with discovering(resolver) as (discovery, told):
        await until(lambda: len(told) == 2)
        discovery.is_own("198.51.100.1:9957")
        assert told[-1] == {"10.0.0.2:9957"}
        discovery.is_own("203.0.113.9:9957")  # no candidate: an address that was made up
        asked = resolver.asked
        await until(lambda: resolver.asked > asked + 2)
        assert discovery.candidates == {"10.0.0.2:9957"}
        # It leaves the answer and comes back with another owner.
        resolver.answer = ("10.0.0.2",)
        asked = resolver.asked
        await until(lambda: resolver.asked > asked + 2)
        resolver.answer = ("10.0.0.2", "198.51.100.1")
        await until(lambda: "198.51.100.1:9957" in discovery.candidates)


async def test_departed_addresses_are_dropped_and_new_ones_found() -> None:
    resolver = Resolver("10.0.0.2", "10.0.0.3")
    async with discovering(resolver) as (_, told):
        await until(lambda: len(told) == 2)
        resolver.answer = ("10.0.0.3", "10.0.0.4")
        await until(lambda: len(told) == 3)
        assert told[2] == {"10.0.0.3:9957", "10.0.0.4:9957"}
        resolver.answer = ()
        await until(lambda: len(told) == 4)
        assert told[3] == frozenset()


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), UnicodeError("label too long")]
)
async def test_a_failing_dns_keeps_the_last_answer_and_says_so(error: Exception) -> None:
    resolver = Resolver("10.0.0.2")
    async with discovering(resolver) as (discovery, told):
        await until(lambda: len(told) == 2)
        resolver.answer = error
        await until(lambda: discovery.problem is not None)
        assert discovery.candidates == {"10.0.0.2:9957"}
        assert discovery.problem is not None
        assert "skewd-peers:9957 can't be resolved" in discovery.problem.line
        assert "the last 1 addresses stay" in discovery.problem.line
        assert discovery.counters["failed"] >= 1
        resolver.answer = ("10.0.0.5",)
        await until(lambda: discovery.candidates == {"10.0.0.5:9957"})
        assert discovery.problem is None


async def test_a_resolver_that_hangs_is_waited_for_once() -> None:
    resolver = Resolver("10.0.0.2")
    resolver.hang = asyncio.Event()
    async with discovering(resolver, wait_s=0.02) as (discovery, _):
        await until(lambda: discovery.counters["failed"] >= 3)
        assert resolver.asked == 1, "no second one is started meanwhile"
        assert discovery.problem is not None
        assert "no answer within" in discovery.problem.line
        resolver.hang.set()
        await until(lambda: discovery.candidates == {"10.0.0.2:9957"})


async def test_it_looks_sooner_when_told_that_peers_are_gone() -> None:
    resolver = Resolver("10.0.0.2")
    async with discovering(resolver, again_s=3_600.0) as (discovery, told):
        await until(lambda: len(told) == 2)
        resolver.answer = ("10.0.0.3",)
        async with asyncio.timeout(LIMIT_S):
            while discovery.candidates != {"10.0.0.3:9957"}:
                discovery.look_again()
                await asyncio.sleep(0.005)


async def test_without_a_key_nothing_beyond_loopback_is_asked() -> None:
    async with discovering(Resolver("127.0.0.2", "10.0.0.2"), keyed=False) as (discovery, told):
        await until(lambda: len(told) == 2)
        assert told[1] == {"127.0.0.2:9957"}
        assert discovery.problem is not None
        assert "key_file" in discovery.problem.line


async def test_the_number_of_addresses_is_bounded_and_those_in_use_stay() -> None:
    resolver = Resolver("10.200.0.1")
    async with discovering(resolver) as (discovery, told):
        await until(lambda: len(told) == 2)
        resolver.answer = [
            f"10.{n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(256, 256 + 3 * ADDRESSES_MAX)
        ] + ["10.200.0.1"]
        await until(lambda: len(discovery.candidates) == ADDRESSES_MAX)
        assert "10.200.0.1:9957" in discovery.candidates
        assert discovery.problem is not None
        assert f"the first {ADDRESSES_MAX} are used" in discovery.problem.line


async def test_another_static_list_is_told_at_once_and_a_refused_one_changes_nothing() -> None:
    def found(addresses: frozenset[str]) -> None:
        if "bad" in addresses:
            raise ValueError("bad")
        told.append(addresses)

    told: list[frozenset[str]] = []
    discovery = Discovery(static=("a:1",), dns=None, found=found, listen_port=None, keyed=True)
    await discovery.run()
    discovery.set_static(("b:1",))
    with pytest.raises(ValueError, match="bad"):
        discovery.set_static(("bad",))
    assert told == [{"a:1"}, {"b:1"}]
    assert discovery.candidates == {"b:1"}


async def test_without_dns_the_static_list_is_told_once() -> None:
    async with discovering(Resolver(), dns=None, static=("a:9957", "b:9957")) as (_, told):
        await until(lambda: told)
        await asyncio.sleep(0)
        assert told == [{"a:9957", "b:9957"}]


async def test_the_systems_resolver_and_this_hosts_addresses() -> None:
    assert "127.0.0.1" in await system_resolver("localhost", 9957)
    with pytest.raises(OSError):  # noqa: PT011
        await system_resolver("no-such-name.invalid", 9957)
    assert "127.0.0.1" in host_addresses()
