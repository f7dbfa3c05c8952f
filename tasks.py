#!/usr/bin/env python3
"""Everything a checkout can do, without make: ``python3 tasks.py COMMAND [ARGUMENTS]``.

Each command does the set-up that it needs (``tools/setup.py``), and then goes on as a program of ``.venv``. The limits:
POSIX only. Standard library only, and Python 3.8 is enough to start this file: what it installs into is 3.11 or newer.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

from tools import environment, native, pins
from tools.environment import ROOT, VENV, say
from tools.setup import setup

# No restart: xdist would give a test that ended its worker (a hang is ended so) to the next one, again and again.
TEST = ["python", "-m", "pytest", "-n", "2", "--dist", "loadgroup", "--max-worker-restart=0"]
COMMANDS = {
    "setup": ([], "make .venv; build the native kernel and fetch a Kafka broker where the tools for it are"),
    "demo": (["skewd", "experiment", "run", "--demo", "--out", os.path.join("out", "demo")],
             "show the phenomenon and the cure: at most 3 minutes, report in out/demo"),
    "test": (TEST, "the tests that a change needs, two at a time; or those that are named, by path, -k or -m"),
    "test-all": ([*TEST, "-m", "long"], "the tests that take long, which `test` leaves out"),
    "lint": (["ruff", "check"], "ruff"),
    "types": (["mypy"], "mypy --strict"),
    "simulate": (["python", "-m", "tests.simulation.campaign"],
                 "a million bounds against the truth, mutants and broken limits; writes docs/reports/simulation.md"),
    "simulate-mesh": (["python", "-m", "tests.mesh.campaign"],
                      "meshes of up to a thousand members, a thousand attempts of liars; writes docs/reports/mesh.md"),
    "failsafe": (["python", "-m", "tests.failsafe.campaign"],
                 "daemons under every fault, against the truth; writes docs/reports/failsafe.md (root, 10 minutes)"),
    "experiment": (["python", "-m", "benchmarks.experiment"],
                   "the experiment's every run, half an hour; writes docs/reports/experiment.md"),
    "bench": (["python", "-m", "benchmarks.sidecar.compare"],
              "the sidecar against an OpenTelemetry Collector (built once, with Go); writes docs/reports/sidecar.md"),
    "test-neighbours": (["python", "-m", "tests.sidecar.neighbours"],
                        "builds Jaeger and four languages' SDKs (once, minutes) and tests beside them"),
    "fuzz": (["python", "-m", "tests.sidecar.fuzz"],
             "look for bodies on which the patch's twins differ, for 3 minutes; writes docs/reports/fuzz.md"),
    "fuzz-member": (["python", "-m", "tests.mesh.member_fuzz", "--report"],
                    "a member with a valid key says anything to whole daemons, for 10 minutes; writes its part of"
                    " docs/reports/fuzz-daemon.md"),
    "fuzz-parsers": (["python", "-m", "tests.fuzz_parsers", "--report"],
                     "every parser gets what nobody should write, for 10 minutes; writes its part of"
                     " docs/reports/fuzz-daemon.md"),
    "wheel": (["python", "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
              "build the wheels into dist/: skewd's, and skewd-native's where cargo is"),
    "pins": ([], "write requirements/*.txt anew from pyproject.toml (with uv; --upgrade moves to the newest versions)"),
    "clean": ([], "remove what these commands made (.venv, build, dist, caches, out/demo); other results in out/ stay"),
}  # fmt: skip
MADE = ["build", "dist", "out/demo", "sidecar/native/target"]
MADE += [".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"]


def become(program: str, *arguments: str) -> NoReturn:
    """Go on as a program of ``.venv``: Ctrl-C and the exit code are then its own."""
    sys.stdout.flush()
    path = os.path.join(VENV, "bin", program)
    os.execv(path, [path, *arguments])


def clean() -> None:
    environment.remove()
    for name in MADE:
        shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
    for folder, inside, _files in os.walk(ROOT):
        inside[:] = [name for name in inside if name != ".git"]
        if os.path.basename(folder) == "__pycache__":
            inside[:] = []
            shutil.rmtree(folder, ignore_errors=True)


def names_tests(arguments: list[str]) -> bool:
    return any(one.startswith(("-m", "-k")) or os.path.exists(one.partition("::")[0]) for one in arguments)


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        lines = ["  %-16s%s" % (name, says) for name, (_, says) in COMMANDS.items()]
        print("usage: python3 tasks.py COMMAND [ARGUMENTS]\n", *lines, "", "SKEWD_PYTHON=/path/to/python chooses the "
              "interpreter, SKEWD_NO_KAFKA_BROKER=1 leaves out the broker,", "SKEWD_NO_NATIVE=1 the native kernel.",
              sep="\n")  # fmt: skip
        return 0 if argv and argv[0] in ("-h", "--help", "help") else 64
    name, arguments = argv[0], argv[1:]
    os.chdir(ROOT)
    if name == "clean":
        clean()
    elif name == "pins":
        pins.write(arguments)
    else:
        setup(again=name == "setup")
        if name == "setup":
            say("ready: .venv has Python %s" % environment.version(environment.PYTHON))
            return 0
        if name == "test" and not names_tests(arguments):
            arguments = ["-m", "not long", *arguments]
        if name == "lint" and not arguments:
            arguments = ["."]
        if name == "wheel":
            failed = native.wheel(os.path.join(ROOT, "dist"))
            why = failed and "no wheel; " + environment.first_line(failed)
            say("skewd-native: " + (why or "its wheel is in dist"))
        become(*COMMANDS[name][0], *arguments)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
