"""The same nodes over every transport: the truth is inside every bound, whoever asked, in one process or several."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from skewd.keys import MeshKey
from skewd.links.protocol import Timebases
from skewd.links.wire import MAX_MESSAGE_BYTES
from skewd_pipeline.kafka_broker import free_ports
from tests.links.link_bench import KEY, OTHER_KEY
from tests.links.media import NAMES, Direction, Medium, Member, child, fresh_topic, pages, true_bound, udp_places
from tests.waiting import until

ONE_WAY = ["kafka-mock", "aeron-ipc", "aeron-udp", pytest.param("kafka-apache", marks=pytest.mark.real_kafka)]
ALL = ["zmq", *ONE_WAY]


@pytest.fixture
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    kind = request.param
    if kind == "zmq":
        ports = free_ports(len(NAMES))
        return Medium("zmq", {name: f"tcp://127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)})
    if kind == "aeron-ipc":
        return Medium("aeron", directory=str(request.getfixturevalue("driver_directory")))
    if kind == "aeron-udp":
        request.getfixturevalue("aeron_possible")
        return Medium("aeron", udp_places(), directory=str(tmp_path))
    broker = request.getfixturevalue("mock_broker" if kind == "kafka-mock" else "apache_broker")
    return Medium("kafka", bootstrap=broker.bootstrap, topic=fresh_topic())


Start = Callable[..., "contextlib.AbstractAsyncContextManager[Member]"]


@contextlib.asynccontextmanager
async def opened(
    medium: Medium, member: Member, *peers: str, direction: Direction = "both", **options: Any
) -> AsyncIterator[Member]:
    member.link = await medium.open(member, peers, direction=direction, **options)
    try:
        yield member
    finally:
        await member.link.close()


def others(name: str, names: tuple[str, ...]) -> list[str]:
    return [other for other in names if other != name]


@pytest.mark.parametrize("medium", ALL, indirect=True)
@pytest.mark.parametrize("count", [2, 5])
async def test_the_truth_is_inside_every_bound(medium: Medium, count: int) -> None:
    names = NAMES[:count]
    clocks = pages(None, names)
    members = [Member(name, clocks[name], link=medium.transport) for name in names]
    async with contextlib.AsyncExitStack() as stack:
        for member in members:
            await stack.enter_async_context(opened(medium, member, *others(member.name, names)))
        pairs = [(one, other) for one in members for other in members if one is not other]
        await until(lambda: all(one.complete(other.name) >= 4 for one, other in pairs))
        for one, other in pairs:
            one.bound(other)
            assert {proofs.link for proofs in one.of(other.name)} == {medium.transport}
            assert one.link.counters["internal_errors"] == 0
            assert getattr(one.link, "trouble", None) is None


@pytest.mark.parametrize("medium", ALL, indirect=True)
async def test_in_processes_of_their_own(medium: Medium, tmp_path: Path) -> None:
    names = NAMES[:3]
    clocks = pages(tmp_path, names)
    here = Member(names[0], clocks[names[0]], link=medium.transport)
    async with (
        child(medium, names[1], clocks[names[1]], others(names[1], names)) as second,
        child(medium, names[2], clocks[names[2]], others(names[2], names)) as third,
        opened(medium, here, *names[1:]),
    ):
        await until(lambda: all(here.complete(name) >= 5 for name in names[1:]))
        for name in names[1:]:
            true_bound(here.page, clocks[name], [(one.outgoing, one.incoming) for one in here.of(name)])
    for name, told in ((names[1], second), (names[2], third)):
        assert told["counters"]["internal_errors"] == 0
        for peer in others(name, names):
            pairs = [(outgoing, incoming) for who, outgoing, incoming, _ in told["proofs"] if who == peer]
            assert sum(rtt is not None for who, _, _, rtt in told["proofs"] if who == peer) >= 1
            true_bound(clocks[name], clocks[peer], pairs)


@pytest.mark.parametrize("medium", ALL, indirect=True)
async def test_the_largest_messages_pass(medium: Medium) -> None:
    names = NAMES[:2]
    clocks = pages(None, names)
    wanted = bytes(range(256)) * 6
    a, b = (Member(name, clocks[name], link=medium.transport, attach=lambda _, size: wanted[:size]) for name in names)
    sizes: list[int] = []
    receive = b.protocol.receive

    def measured(data: bytes, *more: Any) -> Any:
        sizes.append(len(data))
        return receive(data, *more)

    b.protocol.receive = measured  # type: ignore[assignment,method-assign]
    async with opened(medium, a, names[1]), opened(medium, b, names[0]):
        await until(lambda: any(proofs.attachment for proofs in b.of(names[0])))
        await until(lambda: any(proofs.attachment for proofs in a.of(names[1])))
    assert max(sizes) == MAX_MESSAGE_BYTES
    assert {proofs.attachment for proofs in b.of(names[0])} - {b""} <= {
        wanted[:size] for size in range(len(wanted) + 1)
    }


@pytest.mark.parametrize("medium", ONE_WAY, indirect=True)
async def test_one_way_links_in_opposite_directions_make_whole_exchanges(
    medium: Medium, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A sends over one medium, B over another: neither can be answered, and both are bounded from both sides."""
    back = Medium(
        medium.transport,
        udp_places() if medium.places else {},
        medium.bootstrap,
        fresh_topic(),
        str(tmp_path / "back") if medium.places else medium.directory,
    )
    options = {"stream": 4242} if medium.transport == "aeron" else {}
    names = NAMES[:2]
    clocks = pages(None, names)
    shared = {name: Timebases() for name in names}
    there = [Member(name, clocks[name], link=medium.transport, timebases=shared[name]) for name in names]
    backwards = [Member(name, clocks[name], link=medium.transport, timebases=shared[name]) for name in names]
    async with (
        opened(medium, there[0], names[1], direction="send"),
        opened(medium, there[1], names[0], direction="receive"),
        opened(back, backwards[0], names[1], direction="receive", **options),
        opened(back, backwards[1], names[0], direction="send", **options),
    ):
        await until(lambda: there[1].complete(names[0]) >= 3 and backwards[0].complete(names[1]) >= 3)
        there[1].bound(backwards[0])
        backwards[0].bound(there[1])
        assert there[0].proofs == backwards[1].proofs == []
        for one in (there[0], backwards[1]):
            assert one.link.counters["one_way"] > 0
            assert one.link.counters["requests"] == one.link.counters["replies"] == 0


@pytest.mark.parametrize("medium", ONE_WAY, indirect=True)
async def test_one_way_alone_proves_nothing(medium: Medium) -> None:
    names = NAMES[:2]
    clocks = pages(None, names)
    a, b = (Member(name, clocks[name], link=medium.transport) for name in names)
    async with (
        opened(medium, a, names[1], direction="send"),
        opened(medium, b, names[0], direction="receive"),
    ):
        await until(lambda: b.link.counters["one_way_unconfirmed"] >= 5)
    assert a.proofs == b.proofs == []


@pytest.mark.parametrize("medium", ONE_WAY, indirect=True)
async def test_another_key_is_counted_and_moves_nothing(medium: Medium) -> None:
    names = NAMES[:3]
    clocks = pages(None, names)
    keys: list[MeshKey] = [KEY, KEY, OTHER_KEY]
    a, b, stranger = (
        Member(name, clocks[name], link=medium.transport, key=key) for name, key in zip(names, keys, strict=True)
    )
    async with (
        opened(medium, a, *others(names[0], names)),
        opened(medium, b, *others(names[1], names)),
        opened(medium, stranger, *others(names[2], names)),
    ):
        await until(lambda: a.link.counters["wrong_key"] >= 5 and a.complete(names[1]) >= 3)
        a.bound(b)
    assert a.of(names[2]) == b.of(names[2]) == stranger.proofs == []
