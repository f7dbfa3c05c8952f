"""What may block, and what must not wait for it: with work that hangs for as long as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skewd import background, names
from skewd.background import Busy, Keeper, LineWriter, Pool, joined, within
from skewd.names import QUICK_THREADS, Names
from tests.waiting import LIMIT_S, until, wait_until


class Gate:
    """Work that hangs until the gate is opened; ``count`` of those that came, ``most`` at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.count = self.inside = self.most = 0

    def __call__(self) -> int:
        with self.lock:
            self.count += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(LIMIT_S)
        with self.lock:
            self.inside -= 1
        return self.count


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


class TestPool:
    async def test_outcomes_come_back_to_the_loop(self) -> None:
        pool = Pool("t", 2)
        here = threading.get_ident()
        assert await pool.call(threading.get_ident) != here
        with pytest.raises(ZeroDivisionError):
            await pool.call(lambda: 1 // 0)

    async def test_threads_and_what_waits_are_limited(self, gate: Gate) -> None:
        pool = Pool("t", 3, waiting_max=4)
        under_way = [pool.call(gate) for _ in range(3)]
        await until(lambda: gate.count == 3, "three threads")
        under_way += [pool.call(gate) for _ in range(4)]
        with pytest.raises(Busy, match="too much is under way"):
            await pool.call(gate)
        gate.open.set()
        await asyncio.gather(*under_way)
        assert (gate.count, gate.most) == (7, 3)

    async def test_threads_end_without_work_and_are_made_again(self) -> None:
        pool = Pool("t-idle", 2, idle_s=0.01)
        await pool.call(lambda: None)
        await until(lambda: not any(t.name == "t-idle" for t in threading.enumerate()), "the thread to end")
        assert await pool.call(lambda: 5) == 5

    def test_nobody_waits_for_them(self, gate: Gate) -> None:
        pool = Pool("t", 1)

        async def begin() -> None:
            pool.call(gate)
            await until(lambda: gate.count == 1, "the work to begin")

        asyncio.run(begin())  # returns, while the work goes on
        assert gate.inside == 1
        gate.open.set()
        wait_until(lambda: gate.inside == 0, "the work to end")

    async def test_a_thread_is_waited_for_so_long_and_no_longer(self, gate: Gate) -> None:
        thread = threading.Thread(target=gate, daemon=True)
        thread.start()
        assert not await joined(thread, 0.01)
        gate.open.set()
        assert await joined(thread, LIMIT_S)

    def test_within(self, gate: Gate) -> None:
        assert within(LIMIT_S, lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            within(LIMIT_S, lambda: 1 // 0)
        with pytest.raises(TimeoutError):
            within(0.01, gate)


_LEFT = """
import asyncio, atexit, threading
from skewd.background import joined, leave
hung = threading.Thread(target=threading.Event().wait, daemon=True)
atexit.register(lambda: hung.join())  # as a library's clean-up
hung.start()
assert not asyncio.run(joined(hung, 0.01))
print("said", flush=False)
raise SystemExit(leave(3))
"""


def test_a_thread_that_was_left_behind_is_not_waited_for_by_its_librarys_clean_up() -> None:
    done = subprocess.run([sys.executable, "-c", _LEFT], capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "")


class TestNames:
    def resolver(self, gate: Gate) -> Names:
        def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
            if host.endswith(".dead"):
                gate()
                raise OSError(5, "no server answers")
            return [(2, 2, 17, "", ("192.0.2.1", port))]

        return Names(resolve)

    async def test_a_dead_name_holds_no_other_back(self, gate: Gate) -> None:
        found = self.resolver(gate)
        dead = [asyncio.ensure_future(found.find(f"{n}.dead", 1)) for n in range(QUICK_THREADS - 1)]
        await until(lambda: gate.inside == QUICK_THREADS - 1, "the dead ones to be asked for")
        assert (await found.find("alive", 7))[0][4] == ("192.0.2.1", 7)
        assert not any(one.done() for one in dead)
        gate.open.set()
        assert all(isinstance(one, OSError) for one in await asyncio.gather(*dead, return_exceptions=True))

    async def test_whoever_asks_for_a_name_that_is_asked_for_waits_for_the_same_answer(self, gate: Gate) -> None:
        found = self.resolver(gate)
        for _ in range(50):
            with pytest.raises(TimeoutError, match="no answer within"):
                await found.find("a.dead", 1, limit_s=0.0)
        last = asyncio.ensure_future(found.find("a.dead", 1))
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(OSError, match="no server answers"):
            await last
        assert gate.count == 1

    async def test_names_that_were_slow_wait_for_each_other_only(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(names, "SLOW_S", -1.0)  # all are
        found = self.resolver(gate)
        gate.open.set()
        many = [f"{n}.dead" for n in range(QUICK_THREADS * 2)]
        await asyncio.gather(*(found.find(name, 1) for name in many), return_exceptions=True)
        gate.open.clear()
        gate.most = gate.count = 0
        again = [asyncio.ensure_future(found.find(name, 1)) for name in many]
        await until(lambda: gate.inside == names.SLOW_THREADS, "the slow ones to be asked for")
        await found.find("new", 1)
        gate.open.set()
        await asyncio.gather(*again, return_exceptions=True)
        assert gate.most == names.SLOW_THREADS

    async def test_an_address_needs_no_thread(self) -> None:
        found = Names(lambda *_, **__: 1 / 0)  # type: ignore[arg-type]
        assert (await found.find("127.0.0.1", 5))[0][4] == ("127.0.0.1", 5)
        assert (await found.find("::1", 5))[0][4][:2] == ("::1", 5)

    async def test_an_impossible_name(self) -> None:
        with pytest.raises((OSError, UnicodeError)):
            await Names().find("a" * 300, 1)


class TestKeeper:
    async def test_unchanged_content_is_not_written_again(self) -> None:
        written: list[bytes] = []
        keeper = Keeper(written.append)
        for content in (b"a", b"a", b"b", b"b", b"a"):
            keeper.keep(content)
            assert await keeper.finish(LIMIT_S)
        assert written == [b"a", b"b", b"a"]

    async def test_of_those_that_wait_the_latest_is_written(self, gate: Gate) -> None:
        written: list[bytes] = []

        def write(content: bytes) -> None:
            gate()
            written.append(content)

        keeper = Keeper(write)
        for number in range(100):
            keeper.keep(b"%d" % number)
        await until(lambda: gate.inside == 1, "the first to be under way")
        assert not await keeper.finish(0.0)
        gate.open.set()
        assert await keeper.finish(LIMIT_S)
        assert written == [b"0", b"99"]

    async def test_what_failed_is_tried_again_and_told_meanwhile(self) -> None:
        full = [True]

        def write(content: bytes) -> None:
            if full[0]:
                raise OSError(28, "No space left on device")

        keeper = Keeper(write)
        keeper.keep(b"a")
        assert not await keeper.finish(LIMIT_S)
        assert keeper.trouble == "No space left on device"
        full[0] = False
        keeper.keep(b"a")
        assert await keeper.finish(LIMIT_S)
        assert keeper.trouble is None

    async def test_a_write_that_takes_too_long_is_told(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:

        def write(content: bytes) -> None:
            gate()

        keeper = Keeper(write)
        keeper.keep(b"a")
        assert keeper.trouble is None
        monkeypatch.setattr(background, "OVERDUE_S", -1.0)
        assert "has been under way for" in str(keeper.trouble)
        gate.open.set()
        assert await keeper.finish(LIMIT_S)
        assert keeper.trouble is None


class TestLineWriter:
    def test_a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
            lines = LineWriter(stream, lambda count: f"{count} dropped\n")
            for number in range(20_000):
                lines.write(f"{number:0100}\n")  # far more than a pipe and the queue hold
            lines.flush()
            assert lines.lost > 0
            assert not lines.drain(0.0)
            got: list[bytes] = []
            thread = threading.Thread(target=lambda: got.extend(iter(reader.readline, b"end\n")), daemon=True)
            thread.start()
            assert lines.drain(LIMIT_S)
            lines.write("end\n")
            thread.join(LIMIT_S)
            said = [line for line in got if b"dropped" in line]
            assert sum(int(line.split()[0]) for line in said) == lines.lost
            assert len(got) - len(said) == 20_000 - lines.lost
            numbers = [int(line) for line in got if b"dropped" not in line]
            assert numbers == sorted(numbers)

    def test_a_stream_without_a_descriptor_is_written_at_once(self) -> None:
        text = io.StringIO()
        LineWriter(text, str).write("x\n")
        assert text.getvalue() == "x\n"

    def test_a_reader_that_has_gone_is_no_error(self, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w")
        lines = LineWriter(stream, str)
        lines.write("x\n")
        assert lines.drain(LIMIT_S)
        lines.write("y\n")
        assert lines.drain(LIMIT_S)
        with contextlib.suppress(BrokenPipeError):
            stream.close()
