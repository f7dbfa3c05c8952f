"""The set-up: three parts that need nothing of each other, made side by side.

The problem: a fresh machine's first command waits for packages, for a compiler and for a broker's jars. The insight:
the packages in ``.venv``, the sidecar's native kernel and the jars of a Kafka broker depend on nothing of each other,
so each is made by a process of its own, all at once. Only the packages must succeed; what the other two lack or
complain of is one line, and is not tried again until its sources or tools change, or somebody asks for a set-up.

A note in ``.venv`` (``STAMP``) says what each part was made from, so a second call costs one short process and no
network. The limits: a part has ``LIMIT_S``; a ``.venv`` of other pins, another place or another interpreter is made
anew rather than repaired.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from tools import environment, native
from tools.environment import BUILD, ROOT, STAMP, say

PROJECT = os.path.join(ROOT, "pyproject.toml")
LIBS, POM = os.path.join(BUILD, "kafka", "libs"), os.path.join(ROOT, "pipeline_ref", "kafka", "pom.xml")


class Part(NamedTuple):
    """A part of the set-up that a machine can do without."""

    switch_off: str
    tools: tuple[str, ...]
    sources: list[str]
    instead: str


OPTIONAL = {
    "native kernel": Part("SKEWD_NO_NATIVE", ("cargo",), native.sources(),
                          "spans are patched by the Python kernel, with the same result at more cost"),
    "Kafka broker": Part("SKEWD_NO_KAFKA_BROKER", ("java", "mvn"), [POM],
                         "Kafka runs will use librdkafka's mock cluster and say so"),
}  # fmt: skip


def digest(*paths: str) -> str:
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            found.update(os.path.relpath(path, ROOT).encode() + file.read())
    return found.hexdigest()


def compare(again: bool) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What was made, what is due (each part with what it is made from), and the interpreter that was asked for."""
    made: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError), open(STAMP, encoding="utf-8") as file:
        made = json.load(file)
    # Asked for once is asked for until another one is.
    asked = os.environ.get("SKEWD_PYTHON") or made.get("asked") or ""
    wanted: dict[str, Any] = {"packages": [digest(environment.PINS), ROOT, asked], "skewd": digest(PROJECT)}
    for name, part in OPTIONAL.items():
        if not os.environ.get(part.switch_off):
            wanted[name] = digest(*part.sources)
    runs = environment.version(environment.PYTHON)
    if not runs or made.get("runs") != runs or made.get("packages") != wanted["packages"]:
        made = {}
    # What failed is tried again with other tools, too.
    failed = {part for part, tools in made.get("failed", {}).items() if again or tools != found(part)}
    return made, {part: source for part, source in wanted.items() if made.get(part) != source or part in failed}, asked


def found(part: str) -> list[str | None]:
    return [shutil.which(tool) for tool in OPTIONAL[part].tools]


def start(part: str, asked: str) -> subprocess.Popen[bytes] | None:
    """Begin to make an optional part; None where the tools for it are missing."""
    if not all(found(part)):
        return None
    if part == "native kernel":
        command, variables = native.COMMAND, native.VARIABLES
    else:
        python = next((path for path, _ in environment.chosen(asked)), sys.executable)
        command = [python, "-m", "skewd_pipeline.kafka_jars", LIBS, POM]
        variables = {"PYTHONPATH": os.path.join(ROOT, "pipeline_ref")}
    with open(log_of(part), "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
                                stdout=log, stderr=log, start_new_session=True)  # fmt: skip


def log_of(part: str) -> str:
    return os.path.join(BUILD, "setup-%s.log" % part.split()[0].lower())


def finish(part: str, process: subprocess.Popen[bytes] | None) -> bool:
    """Wait for an optional part, and say what can't be had without it; did it come about?"""
    if process is None:
        why = "%s not here" % " and ".join("%s is" % tool for tool in OPTIONAL[part].tools if not shutil.which(tool))
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(environment.LIMIT_S)
        if process.returncode == 0:
            return True
        with open(log_of(part), encoding="utf-8", errors="replace") as log:
            why = "%s; details: %s" % (environment.first_line(log.read()), log_of(part))
    say("%s: left out (%s); %s" % (part, why, OPTIONAL[part].instead))
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    # Not killed at once: what fetches the jars has Maven to end, which is in a session of its own.
    for number, limit_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, None)):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
            return


def setup(again: bool = False) -> None:
    """Make what is due, and nothing where nothing is; ``again``: what failed before, too."""
    if not compare(again)[1]:
        return
    os.makedirs(BUILD, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the parts are ended, too
    running: dict[str, subprocess.Popen[bytes] | None] = {}
    with open(os.path.join(BUILD, "setup.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make -j lint types` sets up twice at once: the second finds it done
        made, todo, asked = compare(again)
        try:
            running.update((part, start(part, asked)) for part in OPTIONAL if part in todo)
            if "packages" in todo:
                environment.make(asked)
            elif "skewd" in todo:
                environment.install_project()
            failed = {part: found(part) for part, process in running.items() if not finish(part, process)}
            if "native kernel" in todo and "native kernel" not in failed:
                native.install()
        finally:
            for process in running.values():
                if process is not None and process.poll() is None:
                    end(process)
        failed.update((part, tools) for part, tools in made.get("failed", {}).items() if part not in todo)
        with open(STAMP, "w", encoding="utf-8") as file:
            json.dump({**made, **todo, "failed": failed, "asked": asked,
                       "runs": environment.version(environment.PYTHON)}, file)  # fmt: skip
