"""The experiment's processes: started on a leash, heard when they are ready, ended whatever happens.

The problem: two dozen processes, any of which may fail to start, die half-way or refuse to end, and a user who
presses Ctrl-C at the worst moment. The insight: treat them alike. Each is a session of its own (so that the
terminal's Ctrl-C reaches only the experiment, which then ends them in order), writes its complaints to a log of its
own, says ``READY {...}`` on its output when it is, and every wait for one is a wait for the failure of all: the first
that dies ends the waiting, with the tail of the log that explains it.

What each costs is read from the kernel (:meth:`Children.processor_time_s`), so that a run can say how much of the
machine its observers took from the observed.

Limits: start-up ``START_LIMIT_S``; ``TERM_LIMIT_S`` from the request to end until SIGKILL; lines of output up to
``LINE_MAX`` bytes; of answers ``ANSWERS_MAX`` wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

START_LIMIT_S = 180.0
TERM_LIMIT_S = 5.0
LINE_MAX = 1 << 20
ANSWERS_MAX = 1_000
TAIL_LINES = 15
LEASH = str(Path(__file__).with_name("leash.py"))

T = TypeVar("T")


class ChildFailed(RuntimeError):
    """A process did not start, died or fell silent; the message has the tail of its log."""


class Child:
    """One process. Made by :meth:`Children.start`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path, used: _Used) -> None:
        self.name = name
        self.used = used
        self.process = process
        self.log = log
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue(ANSWERS_MAX)
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.ending = False

    def tell(self, command: Mapping[str, Any]) -> None:
        """Writes one line of JSON to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def answer(self, limit_s: float, *, event: str | None = None) -> dict[str, Any]:
        """Its next answer; with ``event``, answers to earlier questions are passed over.

        Raises:
            ChildFailed: none came within ``limit_s``, or it reported an error.
        """
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    answer = await self.answers.get()
                    if answer.get("event") == "error":
                        raise ChildFailed(f"{self.name}: {answer.get('error')}{self.tail()}")
                    if event is None or answer.get("event") == event:
                        return answer
        except TimeoutError:
            raise ChildFailed(f"{self.name} did not answer within {limit_s:.0f} s{self.tail()}") from None

    def tail(self) -> str:
        """The end of its log, as lines to append to a message; empty when it wrote nothing."""
        return tail_of(self.log)

    def signal(self, number: int) -> None:
        """Sends a signal to its whole process group; gone already is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def tail_of(log: Path) -> str:
    """The end of a log, as lines to append to a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode(errors="replace").strip().splitlines()[-TAIL_LINES:]
    except OSError:
        return ""
    if not lines:
        return " (its log is empty)"
    return "; the end of its log:\n" + "\n".join(f"    {line}" for line in lines)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our own environment for children, without settings that would redirect them (OTEL_*, SKEWD_*, proxies)."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SKEWD_")) and not name.lower().endswith("_proxy")
    }
    kept.update({"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"})
    kept.update(extra or {})
    return kept


@dataclass(slots=True)
class _Used:
    """A process's processor time, as last read."""

    name: str
    process: asyncio.subprocess.Process | subprocess.Popen[bytes]
    seconds: float = 0.0

    def read(self) -> None:
        """Reads it again, unless the process was waited for: its number may be another's by now."""
        if self.process.returncode is None:
            # Between its end and our waiting for it the kernel keeps its times; once they are gone, the last ones stay.
            with contextlib.suppress(OSError, IndexError, ValueError):
                self.seconds = max(self.seconds, processor_time_s(self.process.pid))


def processor_time_s(pid: int) -> float:
    """User's and system's seconds of a process, and of those below it that it has waited for.

    Raises:
        OSError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _leash(niceness: int) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", LEASH, str(os.getpid()), str(niceness))


def _finish(process: subprocess.Popen[bytes], used: _Used) -> bytes:
    """What it printed until its end; for a thread of its own, since it waits."""
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, resources = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    used.seconds = resources.ru_utime + resources.ru_stime
    return output


class Children:
    """All of them. Use as an asynchronous context manager: leaving it ends every one."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        # Libraries drop things into the temporary directory; they go where the logs go.
        self._environment = environment({"TMPDIR": str(logs)})
        self._used: list[_Used] = []
        self._children: list[Child] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[ChildFailed] | None = None

    async def __aenter__(self) -> Children:
        self._failure = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, name: str, arguments: Sequence[str], *, niceness: int = 0) -> Child:
        """Starts ``arguments`` (a Python module call's arguments) and follows it; readiness is awaited apart.

        Args:
            name: for people and for the log's file name.
            arguments: what follows the interpreter: ``("-m", "skewd", "run", ...)``.
            niceness: by how much its priority is lowered.
        """
        log = self._logs / f"{name}.log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *_leash(niceness),
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env=self._environment,
                limit=LINE_MAX,
            )
        used = _Used(name, process)
        self._used.append(used)
        child = Child(name, process, log, used)
        self._children.append(child)
        for coroutine in (self._listen(child), self._watch(child)):
            task = asyncio.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return child

    def tail(self, name: str) -> str:
        """The end of the log of the process of this name."""
        return tail_of(self._logs / f"{name}.log")

    async def once(self, name: str, arguments: Sequence[str], limit_s: float) -> tuple[int, str]:
        """Runs a short program to its end; its exit code and what it printed. Its complaints go to the log.

        Raises:
            ChildFailed: it took longer than ``limit_s``, or another process died meanwhile.
        """
        log = self._logs / f"{name}.log"
        with log.open("wb") as file:
            # Not asyncio's: it throws away what the kernel says of a process when one waits for it.
            process = subprocess.Popen(
                [*_leash(0), sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env=self._environment,
            )
        used = _Used(name, process)
        self._used.append(used)
        running = asyncio.get_running_loop().run_in_executor(None, _finish, process, used)
        try:
            output = await self.unless_failed(asyncio.wait_for(asyncio.shield(running), limit_s))
        except TimeoutError:
            raise ChildFailed(f"{name} took longer than {limit_s:.0f} s{tail_of(log)}") from None
        finally:
            if not running.done():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await running
        assert process.returncode is not None, "it was waited for"
        return process.returncode, output.decode(errors="replace").strip()

    def processor_time_s(self) -> dict[str, float]:
        """By name, the seconds of processor time of each process started so far, those that ended included.

        Of one that was ended it is what it had taken when it was asked to; of one that died, what was last read.
        Processes of one name are taken together.
        """
        found: dict[str, float] = {}
        for used in self._used:
            used.read()
            found[used.name] = found.get(used.name, 0.0) + used.seconds
        return found

    async def ready(self, child: Child, limit_s: float = START_LIMIT_S) -> dict[str, Any]:
        """What it said with READY.

        Raises:
            ChildFailed: it, or another, failed, or it took too long.
        """
        try:
            return await self.unless_failed(asyncio.wait_for(asyncio.shield(child.ready), limit_s))
        except TimeoutError:
            raise ChildFailed(f"{child.name} was not ready within {limit_s:.0f} s{child.tail()}") from None

    async def unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, given up as soon as any child dies.

        Raises:
            ChildFailed: one died; the message says which and why.
        """
        assert self._failure is not None
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._failure), return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise self._failure.result()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _listen(self, child: Child) -> None:
        assert child.process.stdout is not None
        while True:
            try:
                line = await child.process.stdout.readline()
            except ValueError:  # a longer line than LINE_MAX: nothing of ours
                continue
            if not line:
                child.used.read()
                return
            text = line.decode(errors="replace").strip()
            try:
                if text.startswith("READY ") and not child.ready.done():
                    child.ready.set_result(json.loads(text.removeprefix("READY ")))
                elif text.startswith("{"):
                    child.answers.put_nowait(json.loads(text))
            except (ValueError, asyncio.QueueFull):
                continue

    async def _watch(self, child: Child) -> None:
        code = await child.process.wait()
        if not child.ending and self._failure is not None and not self._failure.done():
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self._failure.set_result(ChildFailed(f"{child.name} {how}{child.tail()}"))

    async def end(self, children: Sequence[Child]) -> None:
        """Ends these, which have nothing to put in order."""
        for child in children:
            child.ending = True
            child.used.read()
            child.signal(signal.SIGKILL)
        for child in children:
            await child.process.wait()
            self._children.remove(child)

    async def stop(self) -> None:
        """Ends all of them: asks, waits, kills. Never raises; safe to call twice."""
        children, self._children = self._children, []
        for child in children:
            child.ending = True
            child.used.read()
        # The newest first: stages before the sidecars they export to, sidecars before the daemons they read.
        for child in reversed(children):
            if child.process.stdin is not None:
                with contextlib.suppress(Exception):
                    child.process.stdin.close()
            child.signal(signal.SIGTERM)
        waits = [asyncio.ensure_future(child.process.wait()) for child in children]
        if waits:
            _, late = await asyncio.wait(waits, timeout=TERM_LIMIT_S)
            for child in children:
                if child.process.returncode is None:
                    child.signal(signal.SIGKILL)
            if late:
                await asyncio.wait(late, timeout=TERM_LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
