"""``.venv``: the pinned packages, on the newest Python that really runs.

The problem: nobody knows which Pythons a machine has, which of them run (a version manager's shim may exist and
still fail), and whether every package has a wheel for them. The insight: ask rather than assume. An interpreter is run
before it is believed, the newest goes first, and the next one is tried where a package has no wheel or no environment
can be made; each that is passed over is one line.

The limits: wheels only, each with its hash, so no dependency is ever compiled. uv installs where it is and nothing is
said to pip about where packages come from; else the standard library's venv, with the pip that it puts there. A
``.venv`` without the note that a set-up leaves in it (``STAMP``) is somebody else's, and stays. Python 3.8 is enough.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from typing import Iterator, Mapping, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "skewd-setup.json")
PINS = os.path.join(ROOT, "requirements", "all.txt")
OURS = [os.path.join(ROOT, *path) for path in (("skewd",), ("sidecar", "skewd_sidecar"),
                                               ("pipeline_ref", "skewd_pipeline"))]  # fmt: skip
LOG = os.path.join(BUILD, "setup-packages.log")

MINORS = (14, 13, 12, 11)
WANTED = "CPython 3.14, 3.13, 3.12 or 3.11"
LIMIT_S = 1800
PROBE = """
import sys, sysconfig
fits = sys.version_info[0] == 3 and sys.version_info[1] in %r and sys.implementation.name == "cpython"
print("3.%%d" %% sys.version_info[1] if fits and not sysconfig.get_config_var("Py_GIL_DISABLED") else "")
""" % (MINORS,)
SELDOM_IMPORTED = r"/(tests?|pip|mypy|mypyc|fontTools|lexers|transformers)/"
# How a user tells pip where packages come from: uv would not listen.
PIP_SOURCES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def fail(text: str) -> NoReturn:
    print("setup: " + text, file=sys.stderr, flush=True)
    raise SystemExit(1)


def version(python: str) -> str:
    """``3.13``, say, if this file runs and can run skewd; else nothing."""
    try:
        done = subprocess.run([python, "-I", "-c", PROBE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=20, check=True)  # fmt: skip
        return done.stdout.decode().strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def interpreters(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that run, and their versions, newest first: all on PATH (the first may be broken), pyenv's and uv's."""
    home = os.path.expanduser("~")
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if os.path.isabs(folder)]
    pyenvs = [environ.get("PYENV_ROOT"), os.path.join(home, ".pyenv")]
    pyenvs += [os.path.dirname(folder) for folder in folders if os.path.basename(folder) == "shims"]
    data = environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    roots = [os.path.join(root, "versions") for root in pyenvs if root]
    roots += [environ.get("UV_PYTHON_INSTALL_DIR") or os.path.join(data, "uv", "python")]
    for root in roots:
        folders += sorted(glob.glob(os.path.join(root, "*", "bin")))
    seen = set()
    for minor in MINORS:
        for folder in folders:
            path = os.path.join(folder, "python3.%d" % minor)
            real = os.path.realpath(path)
            if os.path.basename(real) == os.path.basename(path):
                path = real  # an environment, whose python is a link, may go away; a shim's link leads to its manager
            if path not in seen and os.path.isfile(path):
                seen.add(path)
                if version(path) == "3.%d" % minor:
                    yield path, "3.%d" % minor


def chosen(asked: str) -> Iterator[tuple[str, str]]:
    """The interpreters to try, in order: the one asked for, else every one that fits."""
    if not asked:
        yield from interpreters(os.environ)
    elif version(shutil.which(asked) or asked):
        yield shutil.which(asked) or asked, version(shutil.which(asked) or asked)
    else:
        fail("SKEWD_PYTHON=%s does not run, or is no %s" % (asked, WANTED))


def install_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """For pip and uv: a user's say in where packages come from is kept; in what happens (PIP_TARGET, say) it is not."""
    where = r"INDEX|FIND_LINKS|CERT|PROXY|_HOST|TIMEOUT|RETRIES|CACHE|KEYRING|CONFIG_FILE|OFFLINE|NATIVE_TLS|LINK_MODE"
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    kept = {
        name: value
        for name, value in environ.items()
        if name not in drop and (not name.startswith(("PIP_", "UV_")) or re.search(where, name))
    }
    # Set rather than left out: a pip.conf could say otherwise, and the environment wins over it.
    return dict(kept, PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", UV_PYTHON_DOWNLOADS="never")


def run(command: list[str], log: str = LOG) -> str | None:
    """Run a command of the set-up; None if it succeeded, else what it printed, which is also in the log."""
    try:
        done = subprocess.run(command, cwd=ROOT, env=install_environment(os.environ), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S)  # fmt: skip
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        code, output = 1, str(error)
    with open(log, "a", encoding="utf-8") as file:
        file.write("$ %s\n%s\n" % (" ".join(command), output))
    return output if code else None


def first_line(output: str) -> str:
    """The one line of a failed program's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)error(\[\w+\])?: (?!Exception)", line)]
    return (errors[:1] or lines[-1:] or ["no output"])[0][:200]


def unreachable(output: str) -> bool:
    """Did pip or uv fail because it could not reach a package index? Then another interpreter would fail alike."""
    signs = r"Retrying \(|Failed to (fetch|connect)|error sending request|dns error|[Nn]etwork (is|was) "
    return re.search(signs, output) is not None


def without_wheel(output: str) -> list[str]:
    """The ``name==version`` that pip or uv could find no wheel for; [] if it failed for another reason."""
    if unreachable(output):
        return []
    pin = r"([A-Za-z0-9][\w.-]*==[\w.!+-]*\w)"
    found = re.findall(r"No matching distribution found for " + pin, output)
    return sorted({*found, *re.findall(pin + r"\s+has\s+no\s+(?:usable\s+)?wheels?", output)})


def steps(uv: str | None, python: str) -> list[list[str]]:
    """The commands that make ``.venv``, put every pinned package into it, and then skewd itself."""
    make = [python, "-I", "-m", "venv", VENV]
    install = [PYTHON, "-I", "-m", "pip", "install", "--no-compile"]
    if uv:
        make = [uv, "venv", "--quiet", "--no-project", "--allow-existing", "--python", python, VENV]
        install = [uv, "pip", "install", "--python", PYTHON]
    # Every package is pinned, so there is nothing to resolve; `--require-hashes` would refuse `-e`.
    pinned = [*install, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", PINS]
    return [make, pinned, [*install, "--no-deps", "--no-build-isolation", "-e", ROOT]]


def installers() -> list[str | None]:
    """uv, if there is one that knows where packages come from, and then pip."""
    uv = None if any(os.environ.get(name) for name in PIP_SOURCES) else shutil.which("uv")
    return [uv, None] if uv else [None]


def remove() -> None:
    """Remove ``.venv``, if a set-up made it."""
    if os.path.lexists(VENV) and (os.path.islink(VENV) or not os.path.isfile(STAMP)):
        fail("%s was not made by this set-up: move it away, and run this again" % VENV)
    if os.path.lexists(VENV):
        # Renamed first: what an interrupted removal leaves must not look like somebody else's.
        old = os.path.join(BUILD, "removed-venv-%d" % os.getpid())
        os.rename(VENV, old)
        shutil.rmtree(old, ignore_errors=True)


def make(asked: str) -> None:
    """A new ``.venv`` with every pinned package and skewd, from the newest interpreter that has a wheel for each."""
    why: dict[str, str] = {}
    lacking = set()
    open(LOG, "w").close()
    for python, minor in chosen(asked):
        for uv in installers():
            if minor in lacking:
                continue
            remove()
            os.makedirs(VENV)
            open(STAMP, "w").close()
            say("Python %s (%s): installing the pinned packages with %s" % (minor, python, "uv" if uv else "pip"))
            for step in steps(uv, python):
                output = run(step)
                if output is not None:
                    break
            else:
                # Half of the bytecode that pip would make: a quarter of a minute. A failure costs time later, no more.
                # Of our own modules, too: where PYTHONDONTWRITEBYTECODE is set, nobody would do it later, and the two
                # dozen processes of a demo would each compile them at their start.
                run([PYTHON, "-I", "-m", "compileall", "-q", "-x", SELDOM_IMPORTED, os.path.join(VENV, "lib"), *OURS])
                return
            missing = without_wheel(output)
            if missing:
                lacking.add(minor)
                why[minor] = "no wheel for " + ", ".join(missing)
            elif step[-1] == VENV:
                why[minor] = "no environment can be made: install python3-venv, or uv"
            else:
                why[minor] = first_line(output)
            say("Python %s is passed over: %s" % (minor, why[minor]))
            if unreachable(output) and not uv:
                fail("the package index cannot be reached. The first set-up needs it, or a mirror: PIP_INDEX_URL or "
                     "pip's configuration, UV_DEFAULT_INDEX for uv. Details: %s" % LOG)  # fmt: skip
    if not why:
        fail("no %s here runs. Install the system packages python3 and python3-venv, or let uv get one (uv python "
             "install 3.13); SKEWD_PYTHON=/path/to/python names one by hand" % WANTED)  # fmt: skip
    fail("no Python here could take the pinned packages (%s). Details: %s"
         % ("; ".join("%s: %s" % item for item in why.items()), LOG))  # fmt: skip


def install_project() -> None:
    """skewd itself again: its metadata changed."""
    if all(run(steps(uv, "")[-1]) is not None for uv in installers()):
        fail("skewd itself could not be installed into .venv: see %s, or remove .venv and run this again" % LOG)
