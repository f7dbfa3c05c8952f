"""Who asks, and how much of the daemon one asker can take: from pure policies to floods of a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from skewd.api_client import get_now, get_status
from skewd.clock import VirtualClock, VirtualPage
from skewd.config import Config, MeshConfig, MetricsConfig, NodeConfig
from skewd.daemon import Daemon
from skewd.publish import doors, fresh
from skewd.publish.doors import ASKERS_MAX, Door, Gate, Limits
from skewd.publish.fresh import Fresh
from skewd.status import NodeStatus
from tests.waiting import LIMIT_S, until

MS = 1_000_000


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="skq") as name:
        yield Path(name)


class TestFresh:
    def test_who_asks_now_and_then_gets_what_was_just_made(self) -> None:
        now, made = [0], [0]

        def make() -> int:
            made[0] += 1
            now[0] += 30 * MS
            return made[0]

        answer = Fresh(make, lambda: now[0])
        for number in range(1, 20):
            assert answer.get() == number
            now[0] += fresh.SHARE * 30 * MS

    def test_a_flood_shares_one_that_is_made_as_often_as_its_cost_allows(self) -> None:
        now, made = [0], [0]

        def make() -> int:
            made[0] += 1
            now[0] += 10 * MS
            return made[0]

        answer = Fresh(make, lambda: now[0])
        saved = fresh.SAVED_NS // (10 * MS)
        told = [answer.get() for _ in range(1000)]
        assert told[-1] <= saved + 1
        now[0] += fresh.SHARE * 10 * MS - 1
        last = [answer.get() for _ in range(1000)][-1]
        assert last <= told[-1] + 1
        now[0] += fresh.SHARE * 10 * MS
        assert answer.get() == last + 1

    def test_what_is_made_of_it_is_made_once_and_counts(self) -> None:
        now, made = [0], [0]

        def body(value: str) -> bytes:
            made[0] += 1
            now[0] += 100 * MS
            return value.encode()

        answer = Fresh(lambda: "a", lambda: now[0])
        for _ in range(100):
            assert answer.derived("json", body) == b"a"
        assert made == [1]
        now[0] += (fresh.SHARE - 1) * 100 * MS - 1
        answer.derived("json", body)
        assert made == [1]
        now[0] += fresh.SHARE * 100 * MS
        answer.derived("json", body)
        assert made == [2]

    @given(st.lists(st.integers(0, 10**9)), st.integers(1, 10**9))
    def test_at_most_its_share_of_the_time_goes_into_it(self, gaps: list[int], cost: int) -> None:
        now, spent = [0], [0]

        def make() -> None:
            now[0] += cost
            spent[0] += cost

        answer = Fresh(make, lambda: now[0])
        answer.get()
        for gap in gaps:
            now[0] += gap
            answer.get()
        assert (spent[0] - cost - fresh.SAVED_NS) * fresh.SHARE <= now[0]

    def test_what_raises_is_not_kept(self) -> None:
        outcomes: Iterator[int | None] = iter([None, 5])

        def make() -> int:
            outcome = next(outcomes)
            if outcome is None:
                raise ValueError("no")
            return outcome

        answer = Fresh(make, lambda: 0)
        with pytest.raises(ValueError, match="no"):
            answer.get()
        assert answer.get() == 5


class TestGate:
    def test_one_asker_has_its_places_and_no_more(self) -> None:
        gate = Gate(Limits(places=2, all_places=3))
        assert [gate.enter("a", 0.0) is not None for _ in range(3)] == [True, True, False]
        assert gate.enter("b", 0.0) is not None
        assert gate.enter("c", 0.0) is None, "all places are taken"
        gate.leave("a")
        assert gate.enter("c", 0.0) is not None

    @given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
    def test_nobody_is_served_faster_than_its_pace(self, gaps: list[float]) -> None:
        limits = Limits(per_s=10.0, all_per_s=1e9, burst=5)
        gate, now, served = Gate(limits), 0.0, []
        for gap in gaps:
            now += gap
            wait = gate.enter("a", now)
            assert wait is not None
            served.append(now + wait)
            gate.leave("a")
            now = max(now, served[-1])
        for first, at in enumerate(served):
            count = sum(at <= other < at + 1.0 - 1e-6 for other in served[first:])
            assert count <= limits.per_s + limits.burst + 1

    def test_the_table_of_askers_is_limited(self) -> None:
        gate = Gate(Limits(places=1, all_places=10**9, all_per_s=1e9))
        for number in range(ASKERS_MAX):
            assert gate.enter(number, 0.0) is not None
        assert gate.enter("one more", 0.0) is None
        gate.leave(0)
        assert gate.enter("one more", 1000.0) is not None


@contextlib.asynccontextmanager
async def serving(path: Path, limits: Limits | None = None) -> AsyncIterator[Door]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    door = Door({"/": lambda: web.Response(text="here"), "/big": lambda: web.Response(body=bytes(8 << 20))}, limits)
    door.listen(listener)
    try:
        yield door
    finally:
        await door.close()


def connected(path: Path, request: bytes = b"") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(LIMIT_S)
    sock.connect(str(path))
    if request:
        sock.sendall(request)
    return sock


def received(sock: socket.socket) -> bytes:
    told = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            told += part
    return told


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class TestDoor:
    async def test_one_request_a_connection(self, short: Path) -> None:
        async with serving(short / "s"):
            told = await asyncio.to_thread(lambda: received(connected(short / "s", GET + GET)))
            assert told.count(b"200 OK") == 1
            for request, says in [
                (b"GET /none HTTP/1.0\r\n\r\n", b" 404 "),
                (b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", b" 405 "),
                (b"HEAD / HTTP/1.0\r\n\r\n", b" 200 "),
                (b"nonsense\r\n\r\n", b" 400 "),
            ]:
                told = await asyncio.to_thread(lambda sent: received(connected(short / "s", sent)), request)
                assert says in told, request

    async def test_who_leaves_connections_is_turned_away_and_cut_off(
        self, short: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doors, "LIFETIME_S", 0.5)
        async with serving(short / "s", Limits(places=4)) as door:
            idle = [connected(short / "s") for _ in range(4)]
            await until(lambda: len(door._visits) == 4, "four to be in")
            told = await asyncio.to_thread(lambda: received(connected(short / "s")))
            assert b" 503 " in told
            assert b"Retry-After: 1" in told
            for sock in idle:
                assert await asyncio.to_thread(received, sock) == b""  # the daemon ended it
            assert b"200 OK" in await asyncio.to_thread(lambda: received(connected(short / "s", GET)))

    async def test_who_does_not_read_its_answer_is_cut_off(self, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doors, "LIFETIME_S", 0.5)
        async with serving(short / "s") as door:
            slow = connected(short / "s", GET.replace(b"/ ", b"/big "))
            await until(lambda: door.refused == 1 and not door._visits, "it to be cut off")
            assert len(await asyncio.to_thread(received, slow)) < 8 << 20

    async def test_who_asks_too_often_waits(self, short: Path) -> None:
        async with serving(short / "s", Limits(per_s=20.0, burst=5)) as door:

            def ask() -> float:
                began = time.monotonic()
                for _ in range(25):
                    assert b"200 OK" in received(connected(short / "s", GET))
                return time.monotonic() - began

            assert await asyncio.to_thread(ask) >= (25 - 5 - 2) / 20.0
            assert door.refused == 0

    async def test_the_end_waits_for_no_asker(self, short: Path) -> None:
        async with serving(short / "s") as door:
            idle = [connected(short / "s") for _ in range(3)]
            slow = connected(short / "s", GET.replace(b"/ ", b"/big "))
            await until(lambda: len(door._visits) == 4, "four to be in")
        for sock in (*idle, slow):
            assert len(await asyncio.to_thread(received, sock)) < 8 << 20
        assert not door._visits


_FLOOD = """
import os, socket, sys, threading
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
def connect():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(sys.argv[1])
    return sock
kept = []
def leave():
    while True:
        try:
            kept.append(connect())
        except OSError:
            pass
        del kept[:-300]
def ask():
    while True:
        try:
            sock = connect()
            sock.sendall(b"GET /v1/status HTTP/1.0\\r\\n\\r\\n")
            while sock.recv(65536):
                pass
        except OSError:
            pass
threads = [threading.Thread(target=work, daemon=True) for work in (leave, ask, ask)]
for thread in threads:
    thread.start()
print("flooding", flush=True)
sys.stdin.read()
"""


async def test_a_local_user_that_floods_takes_neither_the_loop_nor_the_answers_of_others(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    os.chmod(short, 0o755)
    config = Config(
        node=NodeConfig(name="n", runtime_dir=short / "run", state_dir=short / "state"),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen="127.0.0.1:0"),
    )
    daemon = Daemon(config, VirtualClock(VirtualPage.create(None)))
    made, spent, told = [0], [0], daemon.told

    def count() -> NodeStatus:
        made[0] += 1
        began = time.monotonic_ns()
        status = told()
        spent[0] += time.monotonic_ns() - began
        return status

    monkeypatch.setattr(daemon, "told", count)
    async with daemon.running() as ready:
        path = Path(ready["socket"])
        flood = subprocess.Popen(
            [sys.executable, "-c", _FLOOD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert flood.stdout is not None
            assert await asyncio.to_thread(flood.stdout.readline) == b"flooding\n"
            before, spent_before, began = made[0], spent[0], time.monotonic_ns()
            for _ in range(20):
                assert (await asyncio.to_thread(get_status, path, timeout_s=LIMIT_S))["node"] == "n"
                assert "status" in await asyncio.to_thread(get_now, path, timeout_s=LIMIT_S)
            async with aiohttp.ClientSession() as session:
                for target in ("metrics", "readyz", "", "healthz") * 3:
                    async with session.get(f"http://{ready['metrics']}/{target}") as answer:
                        assert answer.status in (200, 503)
            took_ns = time.monotonic_ns() - began
            assert flood.poll() is None
            # However many asked, it took its share of the time (and once more for the log, every ten seconds; and the
            # one under way).
            dearest = max(1, spent_before // max(before, 1))
            assert spent[0] - spent_before <= took_ns // fresh.SHARE + fresh.SAVED_NS + 10 * dearest + took_ns // 10**8
        finally:
            flood.kill()
            flood.wait(LIMIT_S)
            for stream in (flood.stdin, flood.stdout):
                if stream is not None:
                    stream.close()
        assert not daemon.ticker.done()


async def test_many_checks_at_once_are_all_answered(short: Path) -> None:
    config = Config(
        node=NodeConfig(name="n", runtime_dir=short / "run", state_dir=short / "state"),
        mesh=MeshConfig(listen=None),
        metrics=MetricsConfig(listen=None),
    )
    daemon = Daemon(config, VirtualClock(VirtualPage.create(None)))
    async with daemon.running() as ready:
        answers: list[str] = []

        def ask() -> None:
            answers.append(get_status(Path(ready["socket"]), timeout_s=LIMIT_S)["node"])

        threads = [threading.Thread(target=ask) for _ in range(60)]
        for thread in threads:
            thread.start()
        await until(lambda: len(answers) == 60, "all answers")
        for thread in threads:
            thread.join(LIMIT_S)
