"""Processes of the experiment: heard when ready, explained when they die, ended whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from skewd_pipeline.children import LEASH, ChildFailed, Children, environment
from tests.waiting import LIMIT_S

ECHO = (
    "import sys, json\n"
    "print('noise'); print('READY {\"port\": 7}', flush=True)\n"
    "for line in sys.stdin: print(json.dumps({'event': 'heard', 'it': json.loads(line)}), flush=True)\n"
)
STUBBORN = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('READY {}', flush=True)\ntime.sleep(600)\n"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not gone(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


async def test_a_child_is_ready_answers_and_ends(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = await children.start("echo", ("-c", ECHO))
        assert await children.ready(child) == {"port": 7}
        child.tell({"do": "this"})
        assert await child.answer(LIMIT_S, event="heard") == {"event": "heard", "it": {"do": "this"}}
        pid = child.process.pid
    assert gone(pid)


async def test_a_child_that_dies_ends_every_wait_and_its_log_says_why(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        other = await children.start("other", ("-c", ECHO))
        await children.ready(other)
        await children.start("bad", ("-c", "import sys\nprint('no such key', file=sys.stderr)\nsys.exit(3)"))
        with pytest.raises(ChildFailed, match=r"(?s)bad ended with exit code 3.*no such key"):
            await children.unless_failed(asyncio.sleep(600))
        with pytest.raises(ChildFailed, match="bad ended"):
            await children.ready(other)


async def test_a_silent_child_is_given_up(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = await children.start("mute", ("-c", "import sys\nsys.stdin.read()"))
        with pytest.raises(ChildFailed, match="mute was not ready within 0 s"):
            await children.ready(child, 0.2)
        with pytest.raises(ChildFailed, match="mute did not answer"):
            await child.answer(0.2)


async def test_an_answer_that_reports_an_error_is_one(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        source = 'import sys\nprint(\'{"event": "error", "error": "no model"}\', flush=True)\nsys.stdin.read()'
        child = await children.start("stage", ("-c", source))
        with pytest.raises(ChildFailed, match="stage: no model"):
            await child.answer(LIMIT_S)


async def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_pipeline.children.TERM_LIMIT_S", 0.3)
    async with Children(tmp_path) as children:
        child = await children.start("stubborn", ("-c", STUBBORN))
        await children.ready(child)
        pid = child.process.pid
    assert gone(pid)


async def test_a_short_program_is_run_to_its_end(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        assert await children.once("short", ("-c", "print('out'); raise SystemExit(4)"), LIMIT_S) == (4, "out")
        with pytest.raises(ChildFailed, match="long took longer"):
            await children.once("long", ("-c", "import time\ntime.sleep(600)"), 0.5)


BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
BELOW = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"


async def test_what_each_process_took_is_known_also_of_those_that_ended(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        await children.once("short", ("-c", BURN), 60)
        await children.once("short", ("-c", BURN), 60)
        busy = await children.start("busy", ("-c", BELOW + "print('READY {}', flush=True)\n" + ECHO))
        await children.ready(busy)
        burner = await children.start("burner", ("-c", BURN + STUBBORN))
        await children.ready(burner)
        running = children.processor_time_s()
        await children.end([burner])
        ended = children.processor_time_s()
    stopped = children.processor_time_s()
    assert running.keys() == {"short", "busy", "burner"}
    assert running["short"] > 0.55, "two of that name"
    assert running["busy"] > 0.25, "what it has waited for counts"
    assert running["burner"] > 0.25
    for later in (ended, stopped):
        assert all(later[name] >= seconds for name, seconds in running.items())


def test_children_do_not_inherit_settings_that_would_redirect_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "SKEWD_MESH__LISTEN", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "elsewhere")
    kept = environment()
    assert "elsewhere" not in kept.values()
    assert kept["PATH"] == os.environ["PATH"]


def test_the_leash_ends_a_program_whose_parent_was_killed() -> None:
    inner = "import time\nprint('up', flush=True)\ntime.sleep(600)"
    outer = (
        "import os, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', {LEASH!r}, str(os.getpid()), '0', sys.executable, '-c', "
        f"{inner!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT_S)
        wait_until_gone(pid)
    finally:
        parent.kill()
        parent.wait(LIMIT_S)


def test_the_leash_runs_nothing_for_a_parent_that_is_gone() -> None:
    done = subprocess.run([sys.executable, LEASH, "1", "0", sys.executable, "-c", "print('ran')"], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_leash_lowers_the_priority() -> None:
    said = "import os; print(os.nice(0))"
    words = [sys.executable, LEASH, str(os.getpid()), "7", sys.executable, "-c", said]
    assert int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) == os.nice(0) + 7


def test_the_leash_says_what_it_cannot_run() -> None:
    done = subprocess.run(
        [sys.executable, LEASH, str(os.getpid()), "0", "/nothing/here"], capture_output=True, text=True
    )
    assert done.returncode == 127
    assert "/nothing/here" in done.stderr
