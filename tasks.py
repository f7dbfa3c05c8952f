#!/usr/bin/env python3
"""Everything a checkout can do, without make: ``python3 tasks.py COMMAND [ARGUMENTS]``.

The problem: one command on a fresh machine must end in a working checkout, though nobody knows which Python it has,
whether that Python runs at all, and whether every package has a wheel for it. The insight: ask rather than assume.
Each interpreter found is run before it is believed (a version manager's shim may exist and still fail), the newest
that runs gets the pinned packages, wheels only, and one that lacks a wheel is named together with that package before
the next one is tried. A stamp in ``.venv`` says what it was made from, so a second call costs one short process and
no network.

One part is compiled, where cargo is: the sidecar's native kernel. It makes the sidecar cheaper and nothing else, so
whatever goes wrong with it is one line, and the Python kernel does the work.

The limits: POSIX only; no dependency is ever compiled, so a platform without wheels (musl, say) is told so and no more;
a ``.venv`` with another stamp, or none, is made anew rather than repaired. Standard library only, and Python 3.8 is
enough to start this file: what it *installs into* is 3.11 or newer.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Callable, Iterator, List, Mapping, NamedTuple, NoReturn, Tuple

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "skewd-setup.json")
BUILD = os.path.join(ROOT, "build")
LOG = os.path.join(BUILD, "setup.log")
PINS = os.path.join(ROOT, "requirements", "all.txt")
PROJECT = os.path.join(ROOT, "pyproject.toml")
POM = os.path.join(ROOT, "pipeline_ref", "kafka", "pom.xml")
NATIVE = os.path.join(ROOT, "sidecar", "native")

NEWEST, OLDEST = (3, 14), (3, 11)
WANTED = "CPython 3.14, 3.13, 3.12 or 3.11"
OLDEST_PIP = (22, 3)  # the first with `pip --python`

# ---------------------------------------------------------------------------------------------------------------------
# Deciding (pure: what the tests import)


class Python(NamedTuple):
    """An interpreter that was run and answered."""

    path: str
    version: tuple[int, ...]
    implementation: str = "cpython"
    free_threaded: bool = False
    venv: bool = True  # can it make a virtual environment,
    ensurepip: bool = True  # and put pip into it?
    pip: tuple[int, ...] | None = None  # version of its own pip

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))


def candidates(found: list[Python]) -> list[Python]:
    """Those that could run skewd, newest first. The free-threaded builds have few wheels and are left out."""
    fit = [p for p in found if p.implementation == "cpython" and not p.free_threaded]
    return sorted((p for p in fit if OLDEST <= p.version[:2] <= NEWEST), key=lambda p: p.version, reverse=True)


def lender(found: list[Python]) -> Python | None:
    """The interpreter whose pip may install into an environment that has none: the one with the newest pip."""
    able = [p for p in found if p.pip is not None and p.pip[:2] >= OLDEST_PIP]
    return max(able, key=lambda p: p.pip or (), default=None)


def unreachable(output: str) -> bool:
    """Did pip or uv fail because it could not reach a package index? Then another interpreter would fail alike."""
    signs = r"Retrying \(|Failed to (fetch|connect)|error sending request|dns error|[Nn]etwork (is|was) "
    return re.search(signs, output) is not None


def without_wheel(output: str) -> list[str]:
    """The ``name==version`` that pip or uv could find no wheel for, from what it printed; [] if it failed otherwise."""
    if unreachable(output):
        return []
    pin = r"([A-Za-z0-9][\w.-]*==[\w.!+-]*\w)"
    found = re.findall(r"No matching distribution found for " + pin, output)
    found += re.findall(pin + r"\s+has\s+no\s+(?:usable\s+)?wheels?", output)
    return sorted(set(found))


def install_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for pip and uv: a user's say in *where* packages come from is kept, in *what happens* is not.

    ``PIP_USER``, ``PIP_TARGET``, ``PIP_CONSTRAINT``, ``UV_PYTHON`` and their like would install something else, or
    somewhere else; ``PYTHONPATH`` could hide a missing package.
    """
    where = r"INDEX|FIND_LINKS|CERT|PROXY|TRUSTED_HOST|INSECURE_HOST|TIMEOUT|RETRIES|CACHE|KEYRING|CONFIG_FILE|OFFLINE"
    where += r"|NATIVE_TLS|LINK_MODE|CONCURRENT"
    kept = {}
    for name, value in environ.items():
        if name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            continue
        if name.startswith(("PIP_", "UV_")) and not re.search(where, name):
            continue
        kept[name] = value
    # Set rather than left out: a pip.conf could say otherwise, and the environment wins over it.
    kept.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1",
                UV_PYTHON_DOWNLOADS="never")  # fmt: skip
    return kept


def left_to_do(stamp: Mapping[str, Any] | None, wanted: Mapping[str, Any], runs: str | None) -> str:
    """What a checkout needs: ``"nothing"``, ``"project"`` (its own metadata changed) or ``"all"``.

    ``stamp`` is what the environment says it was made from, ``runs`` the version its interpreter gives when asked
    (None if it cannot be run). A new bug-fix release under the same environment is no reason to make it again.
    """
    if stamp is None or runs is None or stamp.get("python", "").split(".")[:2] != runs.split(".")[:2]:
        return "all"
    if any(stamp.get(key) != wanted[key] for key in ("pins", "root", "asked")):
        return "all"
    return "nothing" if stamp.get("project") == wanted["project"] else "project"


def extras(project: str) -> list[str]:
    """The extras that pyproject.toml names, but for the one whose distribution is built here and is on no index."""
    section = re.search(r"^\[project\.optional-dependencies\]$(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    names = re.findall(r"^([\w-]+) *= *\[", section.group(1), re.MULTILINE) if section else []
    return [name for name in names if name != "native"]


def pin_problem(text: str) -> str | None:
    """What makes a file of pins unfit to be kept: a host, a path of this machine, a line without hashes."""
    for line in text.splitlines():
        if "://" in line or re.search(r"(^|[\s@])(/|\.\./|file:)", line) or line.startswith("-"):
            return "it names a host or a path: " + line.strip()
    bare = [one.split()[0] for one in text.replace("\\\n", " ").splitlines() if one.strip() and "--hash=" not in one]
    return "no hash for " + ", ".join(bare) if bare else None


# ---------------------------------------------------------------------------------------------------------------------
# Looking at this machine

PROBE = """
import importlib.util as u, json, sys, sysconfig
has = lambda name: u.find_spec(name) is not None
pip = __import__("pip").__version__ if has("pip") else None
print(json.dumps({
    "path": sys.executable, "base": None if sys.prefix == sys.base_prefix else sys._base_executable,
    "version": list(sys.version_info[:3]), "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "venv": has("venv"), "ensurepip": has("ensurepip"), "pip": pip}))
"""


def probe(path: str) -> Python | None:
    """Run ``path`` and let it say what it is; None if it does not run. An environment's python stands for its base."""
    try:
        done = subprocess.run([path, "-I", "-c", PROBE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=20, check=True)  # fmt: skip
        said = json.loads(done.stdout.decode().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    if said["base"] and said["base"] != path:
        return probe(said["base"])
    pip = tuple(int(part) for part in re.findall(r"\d+", said["pip"])) if said["pip"] else None
    return Python(said["path"], tuple(said["version"]), said["implementation"], said["free_threaded"], said["venv"],
                  said["ensurepip"], pip)  # fmt: skip


def interpreter_paths(environ: Mapping[str, str]) -> list[str]:
    """Every file that might be a Python for us: on PATH (all of them: the first may be broken), pyenv's, uv's."""
    home = os.path.expanduser("~")
    path = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    exact = ["python3.%d" % minor for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    names = [(folder, [*exact, "python3", "python"]) for folder in path]
    pyenvs = [environ.get("PYENV_ROOT", ""), os.path.join(home, ".pyenv")]
    pyenvs += [os.path.dirname(folder) for folder in path if os.path.basename(folder) == "shims"]
    data = environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    uvs = [environ.get("UV_PYTHON_INSTALL_DIR", ""), os.path.join(data, "uv", "python")]
    for pattern in [os.path.join(r, "versions", "*", "bin") for r in pyenvs if r] + [
        os.path.join(r, "*", "bin") for r in uvs if r
    ]:
        names += [(folder, exact) for folder in sorted(glob.glob(pattern))]
    every = [os.path.join(folder, name) for folder, wanted in names for name in wanted]
    seen = {os.path.realpath(p): p for p in reversed([sys.executable, *every]) if p and os.access(p, os.X_OK)}
    return [p for p in seen.values() if not os.path.isdir(p)]


def interpreters() -> list[Python]:
    """Every one that runs, whatever its version: one that is too old for skewd may still lend its pip."""
    return list({p.path: p for p in map(probe, interpreter_paths(os.environ)) if p is not None}.values())


def chosen(found: list[Python]) -> list[Python]:
    """The interpreters to try, in order: the one asked for, else every one that fits."""
    asked = os.environ.get("SKEWD_PYTHON")
    if not asked:
        return candidates(found)
    one = probe(shutil.which(asked) or asked)
    if one is None or not candidates([one]):
        what = "does not run" if one is None else "is %s %s" % (one.implementation, one.text)
        fail("SKEWD_PYTHON=%s %s: name a %s, or leave it unset" % (asked, what, WANTED))
    return [one]


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# ---------------------------------------------------------------------------------------------------------------------
# Setting up


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def fail(text: str, code: int = 1) -> NoReturn:
    print("setup: " + text, file=sys.stderr, flush=True)
    raise SystemExit(code)


def tail(output: str, lines: int = 12) -> str:
    return "\n".join("    " + line for line in output.strip().splitlines()[-lines:])


def logged(command: list[str], timeout_s: float = 1800) -> tuple[bool, str]:
    """Run a command of the set-up, its output into the log: (did it succeed, what it printed)."""
    os.makedirs(BUILD, exist_ok=True)
    with open(LOG, "a+", encoding="utf-8", errors="replace") as log:
        log.write("$ %s\n" % " ".join(command))
        log.flush()
        start = os.fstat(log.fileno()).st_size
        try:
            code = subprocess.run(command, cwd=ROOT, env=install_environment(os.environ), stdin=subprocess.DEVNULL,
                                  stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s).returncode  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, str(error)
        log.seek(start)
        return code == 0, log.read()


Installer = Callable[[List[str]], Tuple[bool, str]]
NO_VENV = "install the system package python3-venv (or python3-pip where there is none), or uv, and run this again"
STRICT = ["--only-binary", ":all:", "--require-hashes", "-r", PINS]
EDITABLE = ["--no-deps", "--no-build-isolation", "-e", ROOT]


VENV_HAS = {"bin", "lib", "lib64", "include", "share", "etc", "pyvenv.cfg", ".gitignore", ".lock", "CACHEDIR.TAG"}


def remove_venv() -> None:
    """Remove ``.venv``, or what an interrupted removal left of it, but nothing that somebody put there."""
    inside = set(os.listdir(VENV)) if os.path.isdir(VENV) else set()
    if os.path.islink(VENV) or not inside <= VENV_HAS | {os.path.basename(STAMP)}:
        fail("%s is not just a virtual environment: move it away, and run this again" % VENV)
    shutil.rmtree(VENV, ignore_errors=True)


def uv_installer(uv: str, python: Python | None) -> tuple[Installer | None, str]:
    """An environment made with uv (``python`` None: the one that is there), or None and why not."""
    if python is not None:
        remove_venv()
        made, output = logged([uv, "venv", "--quiet", "--no-project", "--python", python.path, VENV])
        if not made:
            return None, output
    base = [uv, "pip", "install", "--python", VENV_PYTHON, "--no-progress"]
    return (lambda arguments: logged([*base, "--compile-bytecode", *arguments])), ""


def pip_installer(python: Python | None) -> tuple[Installer | None, str]:
    """The same with the standard library's venv and pip, its own or, where ensurepip is left out, another one's."""
    if python is not None:
        remove_venv()
        made, output = False, "%s has no venv module" % python.path
        if python.venv and python.ensurepip:
            made, output = logged([python.path, "-I", "-m", "venv", VENV])
        if python.venv and not made:
            remove_venv()
            made, output = logged([python.path, "-I", "-m", "venv", "--without-pip", VENV])
        if not made:
            return None, output
    base = [VENV_PYTHON, "-I", "-m", "pip"]
    if not logged([*base, "--version"])[0]:
        other = lender(interpreters())
        if other is None:
            return None, "no pip to install with"
        base = [other.path, "-I", "-m", "pip", "--python", VENV_PYTHON]
    return (lambda arguments: logged([*base, "install", "--no-color", "--progress-bar", "off", *arguments])), ""


def installers(python: Python | None) -> Iterator[tuple[str, Installer | None, str]]:
    """The ways to install here, best first; each makes its environment only when it is asked for."""
    uv = shutil.which("uv")
    if uv is not None:
        yield ("uv", *uv_installer(uv, python))
    yield ("pip", *pip_installer(python))


def first_line(output: str) -> str:
    """The one line of an installer's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)error: (?!Exception)", line)]
    return (errors[:1] or lines[-1:] or ["no output"])[0][:300]


def make_environment() -> None:
    """A new ``.venv`` with every pinned package, from the newest interpreter that has a wheel for each."""
    found = interpreters()
    able = chosen(found)
    if not able:
        others = ", ".join(sorted("%s (%s)" % (p.path, p.text) for p in found)) or "none that runs"
        fail("skewd needs %s; found: %s. Install the system packages python3 and python3-venv, or let uv get one "
             "(uv python install 3.13); SKEWD_PYTHON=/path/to/python names one by hand" % (WANTED, others))  # fmt: skip
    why: list[str] = []
    ruled_out = set()
    tried, output = False, ""
    for python in able:
        if python.version[:2] in ruled_out:
            continue
        for name, install, output in installers(python):
            if install is not None:
                tried = True
                say("Python %s (%s): installing the pinned packages with %s" % (python.text, python.path, name))
                done, output = install(STRICT)
                if done:
                    return
            lacking = without_wheel(output)
            if lacking:
                ruled_out.add(python.version[:2])
                why.append("Python %s is ruled out: no wheel for %s" % (python.text, ", ".join(lacking)))
                say(why[-1])
                break
            why.append("Python %s, %s: %s" % (python.text, name, first_line(output)))
            say(why[-1])
        if unreachable(output):
            fail("the package index cannot be reached. The first set-up needs it, or a mirror: PIP_INDEX_URL or pip's "
                 "configuration, UV_DEFAULT_INDEX for uv. Details: %s" % LOG)  # fmt: skip
    if not tried:
        fail(NO_VENV)
    fail("no Python here could take every pinned package, and nothing is ever compiled. The end of %s:\n%s"
         % (LOG, tail(output)))  # fmt: skip


def install_project() -> None:
    output = ""
    for _name, install, output in installers(None):
        if install is not None:
            done, output = install(EDITABLE)
            if done:
                return
    fail("skewd itself could not be installed; the end of %s:\n%s" % (LOG, tail(output)))


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """`make -j lint types` sets up twice at once: the second waits, and finds it done."""
    import fcntl

    os.makedirs(BUILD, exist_ok=True)
    with open(os.path.join(BUILD, "setup.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def venv_version() -> str | None:
    try:
        done = subprocess.run([VENV_PYTHON, "-I", "-c", "import platform; print(platform.python_version())"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20,
                              check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip()


def what_is_left() -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    wanted: dict[str, Any] = {"pins": digest(PINS), "project": digest(PROJECT), "root": ROOT,
                              "asked": os.environ.get("SKEWD_PYTHON")}  # fmt: skip
    try:
        stamp: dict[str, Any] | None = json.loads(read(STAMP))
    except ValueError:
        stamp = None
    if stamp is not None and wanted["asked"] is None:
        wanted["asked"] = stamp.get("asked")  # asked for once is asked for until another one is
    return left_to_do(stamp, wanted, venv_version()), wanted, stamp


def setup(explicit: bool = False) -> None:
    """Make ``.venv`` what the pins and pyproject.toml say; do nothing where it is."""
    if what_is_left()[0] != "nothing":
        with one_at_a_time():
            left, wanted, stamp = what_is_left()
            if left == "all":
                if stamp is not None and venv_version() is None:
                    say("the interpreter of .venv is gone: making it anew")
                os.makedirs(BUILD, exist_ok=True)
                open(LOG, "w").close()
                make_environment()
            if left != "nothing":
                install_project()
                kept = {"native": stamp.get("native")} if stamp is not None and left == "project" else {}
                with open(STAMP, "w", encoding="utf-8") as file:
                    json.dump(dict(wanted, python=venv_version(), **kept), file)
    build_native(explicit)
    fetch_kafka(explicit)
    if explicit:
        say("ready: .venv has Python %s" % venv_version())


def native_digest() -> str:
    """Of all that the native kernel is built from."""
    names = [os.path.join(NATIVE, name) for name in ("Cargo.toml", "pyproject.toml")]
    for folder, inside, files in os.walk(os.path.join(NATIVE, "src")):
        inside.sort()
        names += [os.path.join(folder, name) for name in files]
    every = "".join("%s %s\n" % (os.path.relpath(name, NATIVE), digest(name)) for name in sorted(names))
    return hashlib.sha256(every.encode()).hexdigest()


def native_wheel(out: str) -> tuple[bool, str]:
    """Build the native kernel's wheel into ``out``: (was it built, what was printed)."""
    maturin = os.path.join(VENV, "bin", "maturin")
    target = os.path.join(BUILD, "native", "target")
    return logged([maturin, "build", "--release", "--manifest-path", os.path.join(NATIVE, "Cargo.toml"),
                   "--interpreter", VENV_PYTHON, "--target-dir", target, "--out", out])  # fmt: skip


def build_native(explicit: bool) -> None:
    """The sidecar's native kernel, built where cargo is and put into ``.venv``; again only when its sources changed."""
    if os.environ.get("SKEWD_NO_NATIVE") or not os.path.isdir(NATIVE):
        return
    folder = os.path.join(BUILD, "native")
    wheels, fresh, stamp = (os.path.join(folder, name) for name in ("wheels", "wheels.new", "stamp"))
    wanted = native_digest()
    if json.loads(read(STAMP) or "{}").get("native") == wanted:
        return
    said = read(stamp).split()
    if said == ["failed", wanted] and not explicit:
        return
    instead = "spans are patched by the Python kernel, with the same result at more cost"
    if said != ["built", wanted] and shutil.which("cargo") is None:
        if explicit:
            say("native kernel: not built, cargo is not here; " + instead)
        return
    with one_at_a_time():
        done, output = True, ""
        if said != ["built", wanted] or not glob.glob(os.path.join(wheels, "*.whl")):
            say("native kernel: building it with cargo (once for each change of it)")
            shutil.rmtree(fresh, ignore_errors=True)
            done, output = native_wheel(fresh)
            done = done and bool(glob.glob(os.path.join(fresh, "*.whl")))
            if done:
                shutil.rmtree(wheels, ignore_errors=True)
                os.rename(fresh, wheels)
            os.makedirs(folder, exist_ok=True)
            with open(stamp, "w", encoding="utf-8") as file:
                file.write("%s %s\n" % ("built" if done else "failed", wanted))
        if done:
            done = False
            arguments = ["--no-deps", "--no-index", "--force-reinstall", *glob.glob(os.path.join(wheels, "*.whl"))]
            for _name, install, output in installers(None):
                if install is not None and not done:
                    done, output = install(arguments)
        if done:
            with open(STAMP, encoding="utf-8") as file:
                made_from = json.load(file)
            with open(STAMP, "w", encoding="utf-8") as file:
                json.dump(dict(made_from, native=wanted), file)
        else:
            say("native kernel: not built (%s); %s. Details: %s" % (first_line(output)[:200], instead, LOG))


def fetch_kafka(explicit: bool) -> None:
    """The Kafka broker's jars, once, where Java and Maven are. Without them the experiment says that it mocks one."""
    if os.environ.get("SKEWD_NO_KAFKA_BROKER"):
        return
    folder = os.path.join(BUILD, "kafka")
    libs, fresh, stamp = (os.path.join(folder, name) for name in ("libs", "libs.new", "stamp"))
    wanted = digest(POM)
    said = read(stamp).split()
    if said == ["fetched", wanted] or (said == ["failed", wanted] and not explicit):
        return
    instead = "Kafka runs will use librdkafka's mock cluster and say so"
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        if explicit:
            say("Kafka broker: not fetched, Java and Maven are not both here; " + instead)
        return
    say("Kafka broker: fetching its jars with Maven (once, 45 MB)")
    with one_at_a_time():
        shutil.rmtree(fresh, ignore_errors=True)
        command = [maven, "-q", "-B", "-f", POM, "dependency:copy-dependencies", "-DoutputDirectory=" + fresh]
        done, output = logged(command, timeout_s=300)
        done = done and bool(glob.glob(os.path.join(fresh, "kafka_*.jar")))
        if done:
            shutil.rmtree(libs, ignore_errors=True)
            os.rename(fresh, libs)
        else:
            shutil.rmtree(fresh, ignore_errors=True)
            why = next((line for line in output.splitlines() if "ERROR" in line), first_line(output))
            say("Kafka broker: not fetched (%s); %s" % (why[:200], instead))
        os.makedirs(folder, exist_ok=True)
        with open(stamp, "w", encoding="utf-8") as file:
            file.write("%s %s\n" % ("fetched" if done else "failed", wanted))


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def become(program: str, *arguments: str) -> NoReturn:
    """Go on as a program of ``.venv``: Ctrl-C and the exit code are then its own."""
    setup()
    sys.stdout.flush()
    os.execv(os.path.join(VENV, "bin", program), [os.path.join(VENV, "bin", program), *arguments])


def run_setup(arguments: list[str]) -> None:
    """make .venv with every pinned package; build the native kernel and fetch a Kafka broker where the tools are"""
    setup(explicit=True)


def run_demo(arguments: list[str]) -> None:
    """show the phenomenon and the cure: at most 3 minutes, report in out/demo"""
    become("skewd", "experiment", "run", "--demo", "--out", os.path.join("out", "demo"), *arguments)


def run_test(arguments: list[str]) -> None:
    """the tests, two at a time"""
    # No restart: xdist would give a test that ended its worker (a hang is ended so) to the next one, again and again.
    become("python", "-m", "pytest", "-n", "2", "--dist", "loadgroup", "--max-worker-restart=0", *arguments)


def run_simulate(arguments: list[str]) -> None:
    """a million bounds against the truth, mutants and broken limits; writes docs/reports/simulation.md"""
    become("python", "-m", "tests.simulation.campaign", *arguments)


def run_simulate_mesh(arguments: list[str]) -> None:
    """meshes of up to a thousand members, a thousand attempts of liars; writes docs/reports/mesh.md"""
    become("python", "-m", "tests.mesh.campaign", *arguments)


def run_experiment(arguments: list[str]) -> None:
    """the experiment's every run, an hour on an idle machine; writes docs/reports/experiment.md and its pages"""
    become("python", "-m", "benchmarks.experiment", *arguments)


def run_bench(arguments: list[str]) -> None:
    """the sidecar against an OpenTelemetry Collector (built once, with Go); writes docs/reports/sidecar.md"""
    become("python", "-m", "benchmarks.sidecar.compare", *arguments)


def run_test_neighbours(arguments: list[str]) -> None:
    """builds Jaeger and four languages' SDKs (once, minutes) and tests beside them; writes docs/reports/sidecar.md"""
    become("python", "-m", "tests.sidecar.neighbours", *arguments)


def run_lint(arguments: list[str]) -> None:
    """ruff"""
    become("ruff", "check", *(arguments or ["."]))


def run_types(arguments: list[str]) -> None:
    """mypy --strict"""
    become("mypy", *arguments)


def run_wheel(arguments: list[str]) -> None:
    """build the wheels into dist/: skewd's, and skewd-native's where cargo is"""
    setup()
    if shutil.which("cargo") is None:
        say("skewd-native: no wheel, cargo is not here")
    else:
        done, output = native_wheel(os.path.join(ROOT, "dist"))
        say("skewd-native: its wheel is in dist" if done else "skewd-native: no wheel; %s" % first_line(output))
    become("python", "-m", "hatchling", "build", "-t", "wheel", "-d", "dist", *arguments)


def run_fuzz(arguments: list[str]) -> None:
    """look for bodies on which the patch's twins differ, for 3 minutes; writes docs/reports/fuzz.md"""
    become("python", "-m", "tests.sidecar.fuzz", *arguments)


def run_clean(arguments: list[str]) -> None:
    """remove what these commands made (.venv, build, dist, caches, out/demo); other results in out/ stay"""
    if os.path.lexists(VENV):
        remove_venv()
    names = [
        "build",
        "dist",
        os.path.join("out", "demo"),
        os.path.join("sidecar", "native", "target"),
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
    ]
    for name in names:
        shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
    for folder, inside, _files in os.walk(ROOT):
        inside[:] = [name for name in inside if name != ".git"]
        if os.path.basename(folder) == "__pycache__":
            inside[:] = []
            shutil.rmtree(folder, ignore_errors=True)


def run_pins(arguments: list[str]) -> None:
    """write requirements/*.txt anew from pyproject.toml (needs uv; --upgrade moves to the newest versions)"""
    uv = shutil.which("uv")
    if uv is None:
        fail("pins are made by uv, which is not on PATH: install it (pip install uv) and run this again")
    common = ["--universal", "--python-version", "%d.%d" % OLDEST, "--generate-hashes", "--only-binary", ":all:",
              "--no-annotate", "--no-header", "--no-emit-index-url", "--quiet"]  # fmt: skip
    run = os.path.join(ROOT, "requirements", "run.txt")
    every = [word for name in extras(read(PROJECT)) for word in ("--extra", name)]
    for path, chosen in ((PINS, every), (run, ["--extra", "zmq", "--extra", "mesh", "--constraints", PINS])):
        command = [uv, "pip", "compile", PROJECT, *common, *chosen, *arguments, "--output-file", path]
        if subprocess.run(command, cwd=ROOT, env=install_environment(os.environ), stdout=subprocess.DEVNULL).returncode:
            fail("uv could not resolve pyproject.toml: see above")
        problem = pin_problem(read(path))
        if problem:
            fail("%s must not be kept: %s" % (path, problem))
        say("wrote %s" % os.path.relpath(path, ROOT))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "setup": run_setup, "demo": run_demo, "test": run_test, "lint": run_lint, "types": run_types, "wheel": run_wheel,
    "simulate": run_simulate, "simulate-mesh": run_simulate_mesh, "bench": run_bench,
    "experiment": run_experiment,
    "test-neighbours": run_test_neighbours, "fuzz": run_fuzz, "clean": run_clean, "pins": run_pins,
}  # fmt: skip


def main(argv: list[str]) -> int:
    if os.name != "posix":
        fail("skewd runs on Linux; on Windows, run this inside WSL")
    if sys.version_info < (3, 8):
        fail("this script needs Python 3.8 to start, skewd itself %s; this is %s" % (WANTED, sys.version.split()[0]))
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: python3 tasks.py COMMAND [ARGUMENTS]\n")
        for name, command in COMMANDS.items():
            print("  %-8s %s" % (name, command.__doc__))
        print(
            "\nSKEWD_PYTHON=/path/to/python chooses the interpreter, SKEWD_NO_KAFKA_BROKER=1 leaves out the broker,"
            "\nSKEWD_NO_NATIVE=1 the native kernel."
        )
        return 0 if argv else 64
    if argv[0] not in COMMANDS:
        fail("no command %r: one of %s" % (argv[0], ", ".join(COMMANDS)), 64)
    os.chdir(ROOT)
    COMMANDS[argv[0]](argv[1:])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
