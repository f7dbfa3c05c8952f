"""The set-up, by what a checkout of it does with fake interpreters and installers.

A real set-up needs a network and a minute, so it is not repeated here: scripts stand in for the interpreters, uv, cargo
and Maven, and everything between them is the real thing, in a checkout of its own.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import environment

ROOT = Path(__file__).parents[2]
OFF = {"SKEWD_NO_NATIVE": "1", "SKEWD_NO_KAFKA_BROKER": "1"}


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


class Checkout:
    """A checkout with nothing but what the set-up reads, and a PATH and home of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.venv = self.root / ".venv"
        for path in (self.bin, self.home):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "tools", self.root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        for name in (
            "tasks.py", "pyproject.toml", "requirements/all.txt", "pipeline_ref/kafka/pom.xml",
            *(f"pipeline_ref/skewd_pipeline/{name}.py" for name in ("__init__", "kafka_jars", "broker_plan")),
        ):  # fmt: skip
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        for name in ("Cargo.toml", "src/lib.rs"):
            (self.root / "sidecar" / "native" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "sidecar" / "native" / name).write_text("one\n")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # Of the machine's own programs only those that the scripts need: no uv, cargo or Maven but what a test makes.
        env = {"PATH": f"{self.bin}:{self.shell_tools()}", "HOME": str(self.home), **OFF, **variables}
        return subprocess.run(
            [sys.executable, str(self.root / "tasks.py"), *arguments],
            env=env, cwd=self.home, capture_output=True, text=True, timeout=170, check=False,
        )  # fmt: skip

    def shell_tools(self) -> Path:
        folder = self.home / "tools"
        if not folder.exists():
            folder.mkdir()
            for name in ("cat", "chmod", "ls", "mkdir", "seq", "sleep", "touch"):
                (folder / name).symlink_to(str(shutil.which(name)))
        return folder

    def python(self, version: str, *, folder: Path | None = None, pip: str = "", venv: str = "") -> Path:
        """An interpreter that says it is ``version``; what it is asked for to make is noted (`calls`).

        Args:
            pip: what the pip of its environments does, in shell.
            venv: what making an environment does before.
        """
        path = (folder or self.bin) / f"python{version}"
        inside = script(
            self.home / f"inside-{path.parent.parent.name}-{version}",
            f"""case "$*" in
  *" -c "*) echo {version} ;;
  *" compileall "*) echo "$*" > "{self.home}/compiled" ;;
  *" pip "*) echo "{version} pip $*" >> "{self.home}/calls"; {pip or ":"} ;;
  *) echo "$*" >> "{self.home}/calls" ;;
esac
""",
        )
        return script(
            path,
            f"""case "$*" in
  *" -c "*) echo {version} ;;
  *" venv "*) echo "{version} venv" >> "{self.home}/calls"; {venv or ":"}
    for into; do :; done; mkdir -p "$into/bin" "$into/lib/python{version}/site-packages"
    cat "{inside}" > "$into/bin/python"; chmod 755 "$into/bin/python" ;;
  *kafka_jars*) exec "{sys.executable}" "$@" ;;
esac
""",
        )

    def uv(self, does: str = "") -> None:
        """A uv that makes environments as the interpreter that it is told does."""
        script(
            self.bin / "uv",
            f"""echo "uv $*" >> "{self.home}/calls"
case "$*" in venv*) while [ "$1" != --python ]; do shift; done; "$2" -I -m venv "$3" ;; *) {does or ":"} ;; esac
""",
        )

    def cargo(self, does: str = "") -> None:
        built = self.root / "build" / "native" / "target" / "release"
        source = self.root / "sidecar" / "native" / "src" / "lib.rs"
        does = does or f'mkdir -p "{built}"; cat "{source}" > "{built}/libskewd_native.so"'
        script(self.bin / "cargo", f'echo cargo >> "{self.home}/calls"\n{does}\n')

    def maven(self, does: str = 'mkdir -p "$d"; touch "$d/kafka_2.13-9.9.9.jar"') -> None:
        script(self.bin / "java", "exit 0\n")
        find = 'for a; do case "$a" in -DoutputDirectory=*) d="${a#*=}";; esac; done'
        script(self.bin / "mvn", f'echo mvn >> "{self.home}/calls"\n{find}\n{does}\n')

    def calls(self) -> list[str]:
        """What was asked of all these since the last time."""
        path = self.home / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def installed(self) -> list[str]:
        """The same, with only the versions and kinds of what made the environment."""
        kinds = []
        for call in self.calls():
            version, kind, *words = call.split()
            name = "project" if "-e" in words else "pins" if "--require-hashes" in words else kind
            kinds.append(f"{version} {name}")
        return kinds


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def lines_with(text: str, done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (done.stdout + done.stderr).splitlines() if text in line]


def test_the_set_up_starts_on_an_older_python_with_the_standard_library_alone() -> None:
    for path in (ROOT / "tasks.py", *(ROOT / "tools").glob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "tools"}, path


# --- Which interpreter


def test_the_newest_that_runs_is_taken_past_broken_shims_and_others_builds(checkout: Checkout) -> None:
    pyenv = checkout.home / "pyenv"
    script(pyenv / "shims" / "python3.14", "exit 127\n")
    script(checkout.bin / "python3.14", "echo\n")  # one that runs and can't run skewd: free-threaded, or no CPython
    checkout.python("3.12")
    newest = checkout.python("3.13", folder=pyenv / "versions" / "3.13.9" / "bin")
    checkout.python("3.11", folder=checkout.home / ".pyenv" / "versions" / "3.11.1" / "bin")
    activated = checkout.home / "venv" / "bin"
    activated.mkdir(parents=True)
    (activated / "python3.13").symlink_to(newest)
    path = f"{activated}:{pyenv / 'shims'}:{checkout.bin}:{checkout.shell_tools()}"
    done = checkout.run("setup", PATH=path)
    assert done.returncode == 0, done.stderr
    assert f"Python 3.13 ({newest})" in done.stdout
    assert "ready: .venv has Python 3.13" in done.stdout
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]


def test_a_shim_that_is_a_link_to_its_manager_is_run_by_its_own_name(checkout: Checkout) -> None:
    manager = checkout.python("3.13", folder=checkout.home / "manager").rename(checkout.home / "manager" / "manage")
    text = manager.read_text().replace("#!/bin/sh", '#!/bin/sh\ncase "$0" in *python3.13) ;; *) exit 64 ;; esac')
    manager.write_text(text)
    (checkout.bin / "python3.13").symlink_to(manager)
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]


def test_a_real_interpreter_says_what_it_is_and_what_does_not_run_says_nothing(tmp_path: Path) -> None:
    assert environment.version(sys.executable) == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert environment.version(str(script(tmp_path / "python3.13", "exit 127\n"))) == ""
    assert environment.version(str(tmp_path / "not-there")) == ""


def test_without_a_wheel_the_package_is_named_and_the_next_older_python_is_taken(checkout: Checkout) -> None:
    lacks = "echo 'ERROR: No matching distribution found for somelib==1.2.3'; exit 1"
    checkout.python("3.14", pip=lacks)
    checkout.python("3.14", folder=checkout.home / ".pyenv" / "versions" / "3.14.0" / "bin")
    checkout.python("3.13")
    done = checkout.run("setup")
    assert done.returncode == 0, done.stderr
    assert "Python 3.14 is passed over: no wheel for somelib==1.2.3" in done.stdout
    assert checkout.installed() == ["3.14 venv", "3.14 pins", "3.13 venv", "3.13 pins", "3.13 project"]


def test_where_no_python_runs_one_line_says_what_to_install(checkout: Checkout) -> None:
    script(checkout.bin / "python3.13", "exit 127\n")
    done = checkout.run("setup")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "python3 and python3-venv" in line
    assert not checkout.venv.exists()


def test_one_that_can_make_no_environment_is_passed_over(checkout: Checkout) -> None:
    checkout.python("3.13", venv="echo 'ensurepip is not available'; exit 1")
    done = checkout.run("setup")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "python3-venv" in line
    checkout.python("3.12")
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 venv", "3.12 venv", "3.12 pins", "3.12 project"]


def test_an_index_that_cannot_be_reached_is_one_line_and_no_other_python_is_tried(checkout: Checkout) -> None:
    checkout.python("3.14", pip="echo 'WARNING: Retrying (Retry(total=0)) after'; exit 1")
    checkout.python("3.13")
    done = checkout.run("setup")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "index cannot be reached" in line
    assert checkout.installed() == ["3.14 venv", "3.14 pins"]


def test_an_interpreter_is_chosen_by_hand_and_stays_chosen(checkout: Checkout) -> None:
    checkout.python("3.14")
    asked = checkout.python("3.12", folder=checkout.home / "mine")
    assert checkout.run("setup", SKEWD_PYTHON=str(asked)).returncode == 0
    assert checkout.installed() == ["3.12 venv", "3.12 pins", "3.12 project"]
    assert checkout.run("setup").returncode == 0
    assert checkout.calls() == []
    shim = script(checkout.bin / "broken", "exit 127\n")
    done = checkout.run("setup", SKEWD_PYTHON=str(shim))
    assert done.returncode == 1
    assert f"SKEWD_PYTHON={shim} does not run" in done.stderr
    assert checkout.calls() == []
    assert checkout.venv.exists()


# --- What installs


@pytest.mark.parametrize(
    ("output", "packages"),
    [
        ("ERROR: No matching distribution found for msgspec==0.18.6\n", ["msgspec==0.18.6"]),
        (
            "error: No solution found\n  cause: Because confluent-kafka==2.16.1 has no\n wheels with a matching tag",
            ["confluent-kafka==2.16.1"],
        ),
        ("Because types-psutil==7.2.2.20261111 has no usable wheels and you", ["types-psutil==7.2.2.20261111"]),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", []),
        # Without a network pip says the same words; what it said before them is what counts.
        ("WARNING: Retrying (Retry(total=0)) after\nERROR: No matching distribution found for attrs==1.0", []),
        ("error: Failed to fetch: `somewhere`\n  Caused by: dns error\nBecause attrs==1.0 has no wheels", []),
    ],
)
def test_a_missing_wheel_is_told_from_other_failures(output: str, packages: list[str]) -> None:
    assert environment.without_wheel(output) == packages


def test_the_users_say_in_where_packages_come_from_is_kept_and_no_other() -> None:
    kept = environment.install_environment(
        {
            "HOME": "/home/a", "PIP_INDEX_URL": "mirror", "PIP_CERT": "pem", "PIP_FIND_LINKS": "/wheels",
            "PIP_PROXY": "p", "HTTPS_PROXY": "q", "UV_DEFAULT_INDEX": "mirror", "UV_CACHE_DIR": "/cache",
            "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PIP_NO_BINARY": ":all:", "PIP_CONSTRAINT": "c", "PIP_USER": "1",
            "UV_PYTHON": "3.9", "UV_SYSTEM_PYTHON": "1", "PYTHONPATH": "/x", "PYTHONHOME": "/y", "VIRTUAL_ENV": "/z",
        }
    )  # fmt: skip
    assert kept == {
        "HOME": "/home/a", "PIP_INDEX_URL": "mirror", "PIP_CERT": "pem", "PIP_FIND_LINKS": "/wheels", "PIP_PROXY": "p",
        "HTTPS_PROXY": "q", "UV_DEFAULT_INDEX": "mirror", "UV_CACHE_DIR": "/cache",
        "PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_PYTHON_DOWNLOADS": "never",
    }  # fmt: skip


def test_only_wheels_with_their_hashes_are_installed_and_then_skewd_without_isolation(checkout: Checkout) -> None:
    checkout.python("3.13")
    assert checkout.run("setup").returncode == 0
    _, pins, project = checkout.calls()
    assert "--only-binary :all: --require-hashes -r" in pins
    assert project.endswith(f"--no-deps --no-build-isolation -e {checkout.root}")


def test_our_own_modules_are_compiled_too(checkout: Checkout) -> None:
    checkout.python("3.12")
    assert checkout.run("setup").returncode == 0
    compiled = (checkout.home / "compiled").read_text().split()
    ours = ("skewd", "sidecar/skewd_sidecar", "pipeline_ref/skewd_pipeline")
    assert {str(checkout.root / folder) for folder in ours} <= set(compiled)


def test_uv_installs_where_it_is_unless_pip_was_told_where_packages_are(checkout: Checkout) -> None:
    checkout.python("3.13")
    checkout.uv()
    assert checkout.run("setup").returncode == 0
    calls = checkout.calls()
    assert [call.split()[:2] for call in calls] == [["uv", "venv"], ["3.13", "venv"], ["uv", "pip"], ["uv", "pip"]]
    assert "--only-binary :all: --require-hashes -r" in calls[2]
    (checkout.root / "requirements" / "all.txt").write_text("# changed\n")
    assert checkout.run("setup", PIP_INDEX_URL="mirror").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]


def test_where_uv_fails_pip_is_tried(checkout: Checkout) -> None:
    checkout.python("3.13")
    checkout.uv("echo 'error: Failed to fetch: `somewhere`'; exit 2")
    done = checkout.run("setup")
    assert done.returncode == 0, done.stderr
    assert len(lines_with("passed over: error: Failed to fetch", done)) == 1
    assert checkout.installed()[-3:] == ["3.13 venv", "3.13 pins", "3.13 project"]


# --- What is made again, and what is left alone


def test_a_second_set_up_does_nothing_changed_metadata_skewd_alone_changed_pins_all(checkout: Checkout) -> None:
    checkout.python("3.13")
    assert checkout.run("setup").returncode == 0
    checkout.calls()
    assert checkout.run("setup").returncode == 0
    assert checkout.calls() == []
    (checkout.root / "pyproject.toml").write_text("# changed\n")
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 project"]
    (checkout.root / "requirements" / "all.txt").write_text("# changed\n")
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]
    checkout.root.rename(checkout.root.with_name("moved"))
    checkout.root = checkout.root.with_name("moved")
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]


def test_an_environment_that_does_not_run_or_is_half_made_is_made_anew(checkout: Checkout) -> None:
    checkout.python("3.13", pip="exit 1")
    assert checkout.run("setup").returncode == 1
    checkout.python("3.13")
    assert checkout.run("setup").returncode == 0
    checkout.calls()
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.run("setup").returncode == 0
    assert checkout.installed() == ["3.13 venv", "3.13 pins", "3.13 project"]
    assert [path.name for path in checkout.root.joinpath("build").glob("removed*")] == []


@pytest.mark.parametrize("holds", ["thesis.txt", "pyvenv.cfg"])
def test_an_environment_that_someone_else_made_is_left_alone(checkout: Checkout, holds: str) -> None:
    checkout.python("3.13")
    checkout.venv.mkdir()
    (checkout.venv / holds).write_text("years of work")
    for command in ("setup", "clean"):
        done = checkout.run(command)
        assert done.returncode == 1
        assert "move it away" in done.stderr
    assert (checkout.venv / holds).read_text() == "years of work"


# --- The parts that may be missing


def test_the_parts_are_made_side_by_side(checkout: Checkout) -> None:
    # Each waits until the two others have begun.
    wait = f"""touch "{checkout.home}/began-$$"; tries=0
while set -- "{checkout.home}"/began-*; [ $# -lt 3 ]; do
  tries=$((tries + 1)); [ $tries -lt 3000 ] || exit 1; sleep 0.02
done"""
    checkout.python("3.13", pip=f'case "$*" in *require*) {wait};; esac')
    checkout.cargo(f"""({wait})
mkdir -p "{checkout.root}/build/native/target/release"
touch "{checkout.root}/build/native/target/release/libskewd_native.so" """)
    checkout.maven(f'({wait}); mkdir -p "$d"; touch "$d/kafka_2.13-9.9.9.jar"')
    done = checkout.run("setup", SKEWD_NO_NATIVE="", SKEWD_NO_KAFKA_BROKER="")
    assert done.returncode == 0, done.stderr
    assert lines_with("left out", done) == []


def test_a_failure_of_the_packages_ends_the_other_parts(checkout: Checkout) -> None:
    on = {"SKEWD_NO_NATIVE": "", "SKEWD_NO_KAFKA_BROKER": ""}
    runs = f'echo $$ > "{checkout.home}/pid-$$.new"; touch "{checkout.home}/began-$$"; exec sleep 170'
    checkout.cargo(runs)
    checkout.maven(runs)
    begun = f'set -- "{checkout.home}"/began-*; [ $# -ge 2 ] || sleep 0.02'
    checkout.python("3.13", pip=f"for _ in $(seq 3000); do {begun}; done; exit 1")
    assert checkout.run("setup", **on).returncode == 1
    pids = [int(path.read_text()) for path in checkout.home.glob("pid-*")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_native_kernel_is_built_once_for_each_change_of_it(checkout: Checkout) -> None:
    checkout.python("3.13")
    checkout.cargo()
    source = checkout.root / "sidecar" / "native" / "src" / "lib.rs"
    for text, calls in (("one\n", 4), ("one\n", 0), ("two\n", 1), ("two\n", 0)):
        source.write_text(text)
        done = checkout.run("setup", SKEWD_NO_NATIVE="")
        assert done.returncode == 0, done.stderr
        assert len(checkout.calls()) == calls
        (built,) = checkout.venv.glob("lib/python3.13/site-packages/skewd_native*.so")
        assert built.read_text() == text
    # Another environment gets it, too.
    (checkout.root / "requirements" / "all.txt").write_text("# changed\n")
    assert checkout.run("setup", SKEWD_NO_NATIVE="").returncode == 0
    assert len(list(checkout.venv.glob("lib/python3.13/site-packages/skewd_native*.so"))) == 1


def test_what_the_machine_lacks_is_one_line_each_and_made_once_it_is_there(checkout: Checkout) -> None:
    checkout.python("3.13")
    on = {"SKEWD_NO_NATIVE": "", "SKEWD_NO_KAFKA_BROKER": ""}
    done = checkout.run("setup", **on)
    assert done.returncode == 0, done.stderr
    native, kafka = lines_with("left out", done)
    assert "cargo" in native
    assert "Python kernel" in native
    assert "java" in kafka
    assert "mvn" in kafka
    assert "mock" in kafka
    done = checkout.run("wheel", **on)
    assert lines_with("left out", done) == [], "said once"
    assert lines_with("no wheel; cargo is not here", done)
    assert "hatchling build -t wheel -d dist" in checkout.calls()[-1]
    checkout.calls()
    checkout.cargo()
    checkout.maven()
    done = checkout.run("setup", **on)
    assert lines_with("left out", done) == []
    assert sorted(checkout.calls()) == ["cargo", "mvn"]
    assert (checkout.root / "build" / "kafka" / "libs" / "kafka_2.13-9.9.9.jar").exists()


def test_what_fails_is_one_line_each_and_tried_again_when_a_set_up_is_asked_for(checkout: Checkout) -> None:
    checkout.python("3.13")
    checkout.cargo("echo 'error: linker `cc` not found'; echo more; exit 101")
    checkout.maven("echo '[ERROR] Could not resolve it'; echo '[ERROR] more'; exit 1")
    on = {"SKEWD_NO_NATIVE": "", "SKEWD_NO_KAFKA_BROKER": ""}
    for command, expected in (("types", ["cargo", "mvn"]), ("types", []), ("setup", ["cargo", "mvn"])):
        script(checkout.venv / "bin" / "mypy", "exit 0\n") if checkout.venv.exists() else None
        done = checkout.run(command, **on)
        assert sorted(call for call in checkout.calls() if call in {"cargo", "mvn"}) == expected
        said = lines_with("left out", done)
        assert len(said) == len(expected)
        if said:
            assert "linker `cc` not found" in said[0]
            assert "Could not resolve it" in said[1]
    assert done.returncode == 0


def test_the_brokers_jars_are_fetched_once_for_each_change_of_what_names_them(checkout: Checkout) -> None:
    checkout.python("3.13")
    checkout.maven()
    assert checkout.run("setup", SKEWD_NO_KAFKA_BROKER="").returncode == 0
    assert checkout.calls().count("mvn") == 1
    assert checkout.run("setup", SKEWD_NO_KAFKA_BROKER="").returncode == 0
    assert checkout.calls() == []
    checkout.maven('mkdir -p "$d"; touch "$d/kafka_2.13-10.0.0.jar"')
    (checkout.root / "pipeline_ref" / "kafka" / "pom.xml").write_text("<project/>")
    assert checkout.run("setup", SKEWD_NO_KAFKA_BROKER="").returncode == 0
    assert [path.name for path in (checkout.root / "build" / "kafka" / "libs").iterdir()] == ["kafka_2.13-10.0.0.jar"]


# --- Commands


@pytest.mark.parametrize(
    ("arguments", "pytest_gets"),
    [
        (["test"], "-m not long"),
        (["test", "-x"], "-m not long -x"),
        (["test", "-k", "wheel"], "-k wheel"),
        (["test", "-m", "long or not long"], "-m long or not long"),
        (["test", "tools/pins.py::test_it", "-x"], "tools/pins.py::test_it -x"),
        (["test-all"], "-m long"),
        (["test-all", "-x"], "-m long -x"),
    ],
)
def test_test_runs_what_a_change_needs_or_what_is_named(
    checkout: Checkout, arguments: list[str], pytest_gets: str
) -> None:
    checkout.python("3.13")
    assert checkout.run(*arguments).returncode == 0
    assert checkout.calls()[-1].endswith(f"--max-worker-restart=0 {pytest_gets}")


def test_unknown_commands_and_none_are_usage_errors_that_list_the_commands(checkout: Checkout) -> None:
    for arguments in (["frobnicate"], []):
        done = checkout.run(*arguments)
        assert done.returncode == 64
        for name in ("setup", "demo", "test", "test-all", "lint", "types", "clean", "wheel", "pins"):
            assert name in done.stdout + done.stderr


def test_make_knows_every_command(checkout: Checkout) -> None:
    listed = [line.split()[0] for line in checkout.run("--help").stdout.splitlines() if line.startswith("  ")]
    (known,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("COMMANDS := ")]
    assert sorted(known.split()[2:]) == sorted(listed)


def test_clean_leaves_other_results(checkout: Checkout) -> None:
    checkout.python("3.13")
    before = {path for path in checkout.root.rglob("*") if path.is_file()}
    assert checkout.run("setup").returncode == 0
    for name in ("out/demo/report.html", "out/mine/results.json", "dist/a.whl", "skewd/__pycache__/a.pyc"):
        (checkout.root / name).parent.mkdir(parents=True)
        (checkout.root / name).touch()
    assert checkout.run("clean").returncode == 0
    left = {path for path in checkout.root.rglob("*") if path.is_file()}
    assert left == before | {checkout.root / "out/mine/results.json"}
