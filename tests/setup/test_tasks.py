"""The set-up script, by what it decides and by what a checkout of it does with fake interpreters and installers.

A real set-up needs a network and half a minute, so it is not repeated here: scripts stand in for the interpreters,
uv and Maven, and everything between them is the real thing, in a checkout of its own.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
REAL = f"{sys.version_info[0]}.{sys.version_info[1]}"


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
        for name in ("tasks.py", "pyproject.toml", "requirements/all.txt", "pipeline_ref/kafka/pom.xml"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)

    def run(
        self, *arguments: str, kafka: bool = False, native: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), **environment}
        if not kafka:
            env["SKEWD_NO_KAFKA_BROKER"] = "1"
        if not native:
            env["SKEWD_NO_NATIVE"] = "1"
        return subprocess.run(
            [sys.executable, str(self.root / "tasks.py"), *arguments],
            env=env, cwd=self.home, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def fake_python(self, name: str, version: str) -> Path:
        """An interpreter that says it is ``version`` and can do nothing else."""
        path = self.bin / name
        said = {
            "path": str(path), "base": None, "version": [int(part) for part in version.split(".")],
            "implementation": "cpython", "free_threaded": False, "venv": True, "ensurepip": True, "pip": None,
        }  # fmt: skip
        return script(path, f"echo '{json.dumps(said)}'\n")

    def fake_uv(self, no_wheel_for: Path | None = None) -> None:
        """A uv that makes an environment around the interpreter that runs these tests, and installs nothing into it."""
        script(
            self.bin / "uv",
            f"""echo "$@" >> "{self.home}/uv.calls"
case "$*" in
  "venv "*) mkdir -p "{self.venv}/bin"; ln -s "{sys.executable}" "{self.venv}/bin/python"
            touch "{self.venv}/pyvenv.cfg"; echo "$@" > "{self.home}/venv.call" ;;
  *--require-hashes*) if grep -q -- "{no_wheel_for}" "{self.home}/venv.call"; then
      echo "  cause: Because somelib==1.2.3 has no usable wheels and you require somelib==1.2.3, we can conclude"
      exit 1
    fi ;;
esac
""",
        )

    def fake_native(self, *, cargo: bool = True, fails: bool = False) -> None:
        """The native kernel's sources, and a cargo; maturin comes with what a fake uv installs."""
        for name in ("Cargo.toml", "pyproject.toml", "src/lib.rs"):
            path = self.root / "sidecar" / "native" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("one\n")
        if cargo:
            script(self.bin / "cargo", "exit 0\n")
        built = "echo 'error: linker `cc` not found'; exit 1" if fails else 'touch "$2/skewd_native-0-abi3.whl"'
        script(
            self.venv / "bin" / "maturin",
            f"""echo called >> "{self.home}/maturin.calls"
while [ "$1" != --out ]; do shift; done; mkdir -p "$2"; {built}
""",
        )

    def uv_calls(self) -> list[str]:
        path = self.home / "uv.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_script_parses_on_the_oldest_python_that_may_start_it() -> None:
    ast.parse((ROOT / "tasks.py").read_text(), feature_version=(3, 8))


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse((ROOT / "tasks.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_candidates_are_the_supported_cpythons_newest_first(tasks: ModuleType) -> None:
    found = [
        tasks.Python("/a/python3.11", (3, 11, 2)),
        tasks.Python("/a/python3.15", (3, 15, 0)),
        tasks.Python("/a/python3.10", (3, 10, 13)),
        tasks.Python("/a/pypy", (3, 13, 9), implementation="pypy"),
        tasks.Python("/a/python3.14t", (3, 14, 1), free_threaded=True),
        tasks.Python("/a/python3.14", (3, 14, 0)),
        tasks.Python("/b/python3.11", (3, 11, 7)),
    ]
    assert [p.path for p in tasks.candidates(found)] == ["/a/python3.14", "/b/python3.11", "/a/python3.11"]


def test_the_newest_pip_that_can_work_on_another_environment_is_lent(tasks: ModuleType) -> None:
    old = tasks.Python("/a", (3, 8, 18), pip=(22, 2, 1))
    none = tasks.Python("/b", (3, 13, 0))
    some = tasks.Python("/c", (3, 11, 2), pip=(23, 0, 1))
    best = tasks.Python("/d", (3, 10, 1), pip=(24, 2))
    assert tasks.lender([old, none, some, best]) == best
    assert tasks.lender([old, none]) is None


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
        ("OSError: [Errno 28] No space left on device", []),
        # Without a network pip says the same words; what it said before them is what counts.
        ("WARNING: Retrying (Retry(total=0)) after\nERROR: No matching distribution found for attrs==1.0", []),
    ],
)
def test_a_missing_wheel_is_told_from_other_failures(tasks: ModuleType, output: str, packages: list[str]) -> None:
    assert tasks.without_wheel(output) == packages


@pytest.mark.parametrize(
    "output",
    [
        "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken",
        "error: Failed to fetch: `somewhere`\n  Caused by: dns error",
        "Because the packages were not cached and the network was disabled",
    ],
)
def test_an_unreachable_index_is_recognised(tasks: ModuleType, output: str) -> None:
    assert tasks.unreachable(output)


def test_the_users_say_in_where_packages_come_from_is_kept_and_no_other(tasks: ModuleType) -> None:
    kept = tasks.install_environment(
        {
            "HOME": "/home/a", "PIP_INDEX_URL": "mirror", "PIP_CERT": "pem", "PIP_FIND_LINKS": "/wheels",
            "UV_DEFAULT_INDEX": "mirror", "UV_CACHE_DIR": "/cache", "PIP_TARGET": "/t", "PIP_PREFIX": "/p",
            "PIP_NO_BINARY": ":all:", "PIP_CONSTRAINT": "c.txt", "PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1",
            "UV_PYTHON": "3.9", "UV_SYSTEM_PYTHON": "1", "PYTHONPATH": "/x", "PYTHONHOME": "/y", "VIRTUAL_ENV": "/z",
        }
    )  # fmt: skip
    assert {name: kept[name] for name in kept if not name.startswith(("PIP_", "UV_"))} == {"HOME": "/home/a"}
    assert {name for name in kept if name.startswith("UV_")} == {
        "UV_DEFAULT_INDEX",
        "UV_CACHE_DIR",
        "UV_PYTHON_DOWNLOADS",
    }
    assert (kept["PIP_INDEX_URL"], kept["PIP_CERT"], kept["PIP_FIND_LINKS"]) == ("mirror", "pem", "/wheels")
    assert (kept["PIP_USER"], kept["PIP_REQUIRE_VIRTUALENV"]) == ("0", "0")
    assert not {"PIP_TARGET", "PIP_PREFIX", "PIP_NO_BINARY", "PIP_CONSTRAINT"} & set(kept)


WANTED = {"pins": "p", "project": "j", "root": "/here", "asked": None}
MADE = {**WANTED, "python": "3.13.0"}


@pytest.mark.parametrize(
    ("stamp", "runs", "left"),
    [
        (MADE, "3.13.0", "nothing"),
        (MADE, "3.13.4", "nothing"),
        (MADE, "3.14.0", "all"),
        (MADE, None, "all"),
        (None, "3.13.0", "all"),
        ({}, "3.13.0", "all"),
        ({**MADE, "pins": "older"}, "3.13.0", "all"),
        ({**MADE, "root": "/moved/from"}, "3.13.0", "all"),
        ({**MADE, "asked": "python3.11"}, "3.13.0", "all"),
        ({**MADE, "project": "older"}, "3.13.0", "project"),
    ],
)
def test_what_a_stamp_leaves_to_do(
    tasks: ModuleType, stamp: dict[str, str] | None, runs: str | None, left: str
) -> None:
    assert tasks.left_to_do(stamp, WANTED, runs) == left


def test_interpreters_are_looked_for_past_the_first_and_in_version_managers(tasks: ModuleType, tmp_path: Path) -> None:
    broken = script(tmp_path / "root" / "shims" / "python3.13", "exit 127\n")
    behind = script(tmp_path / "usr" / "python3.13", f'exec "{sys.executable}" "$@"\n')
    managed = script(tmp_path / "root" / "versions" / "3.12.9" / "bin" / "python3.12", "exit 1\n")
    named = script(tmp_path / "pyenv" / "versions" / "3.11.1" / "bin" / "python3.11", "exit 1\n")
    by_uv = script(tmp_path / "uv" / "cpython-3.14.0" / "bin" / "python3.14", "exit 1\n")
    environ = {
        "PATH": os.pathsep.join([str(broken.parent), str(tmp_path / "not-there"), str(behind.parent)]),
        "PYENV_ROOT": str(tmp_path / "pyenv"), "UV_PYTHON_INSTALL_DIR": str(tmp_path / "uv"),
    }  # fmt: skip
    paths = tasks.interpreter_paths(environ)
    assert {str(p) for p in (broken, behind, managed, named, by_uv)} <= set(paths)
    assert tasks.probe(str(broken)) is None
    answered = tasks.probe(str(behind))
    assert answered.version == sys.version_info[:3]
    # These tests run in an environment; its base is what another environment is to be made from.
    assert Path(answered.path).resolve() == Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


def test_an_interpreter_that_lacks_a_wheel_is_named_with_the_package_and_the_next_one_is_taken(
    checkout: Checkout,
) -> None:
    lacking = checkout.fake_python("python3.14", "3.14.99")
    checkout.fake_uv(no_wheel_for=lacking)
    done = checkout.run("setup")
    assert done.returncode == 0, done.stderr
    assert "Python 3.14.99 is ruled out: no wheel for somelib==1.2.3" in done.stdout
    assert f"ready: .venv has Python {REAL}." in done.stdout
    assert not any("--no-build-isolation" in call and "--require-hashes" in call for call in checkout.uv_calls())

    calls = len(checkout.uv_calls())
    again = checkout.run("setup")
    assert again.returncode == 0
    assert len(checkout.uv_calls()) == calls, "a second set-up must have nothing to do"


def test_changed_metadata_installs_the_project_alone_and_changed_pins_everything(checkout: Checkout) -> None:
    checkout.fake_uv()
    assert checkout.run("setup").returncode == 0

    before = len(checkout.uv_calls())
    (checkout.root / "pyproject.toml").write_text("# changed\n")
    assert checkout.run("setup").returncode == 0
    (call,) = checkout.uv_calls()[before:]
    assert call.endswith(f"--no-deps --no-build-isolation -e {checkout.root}")

    before = len(checkout.uv_calls())
    (checkout.root / "requirements" / "all.txt").write_text("# changed\n")
    assert checkout.run("setup").returncode == 0
    assert [call.split()[0] for call in checkout.uv_calls()[before:]] == ["venv", "pip", "pip"]


def test_an_environment_whose_interpreter_is_gone_is_made_anew(checkout: Checkout) -> None:
    checkout.fake_uv()
    assert checkout.run("setup").returncode == 0
    (checkout.venv / "bin" / "python").unlink()
    (checkout.venv / "bin" / "python").symlink_to("/not/there/python3")
    done = checkout.run("setup")
    assert done.returncode == 0, done.stderr
    assert "the interpreter of .venv is gone" in done.stdout
    assert (checkout.venv / "bin" / "python").exists()


def test_a_folder_that_is_not_an_environment_is_never_removed(checkout: Checkout) -> None:
    checkout.fake_uv()
    checkout.venv.mkdir()
    (checkout.venv / "thesis.txt").write_text("years of work")
    for command in ("setup", "clean"):
        done = checkout.run(command)
        assert done.returncode == 1
        assert "move it away" in done.stderr
    assert (checkout.venv / "thesis.txt").exists()


def test_an_interpreter_asked_for_that_does_not_run_is_an_error_that_names_it(checkout: Checkout) -> None:
    shim = script(checkout.bin / "broken", "exit 127\n")
    done = checkout.run("setup", SKEWD_PYTHON=str(shim))
    assert done.returncode == 1
    assert f"SKEWD_PYTHON={shim} does not run" in done.stderr
    assert not checkout.venv.exists()


def test_the_kafka_broker_is_fetched_once(checkout: Checkout) -> None:
    checkout.fake_uv()
    script(checkout.bin / "java", "exit 0\n")
    script(
        checkout.bin / "mvn",
        f'echo called >> "{checkout.home}/mvn.calls"\n'
        'for a; do case "$a" in -DoutputDirectory=*) d="${a#*=}"; mkdir -p "$d"; touch "$d/kafka_2.13-x.jar"\n'
        "esac; done\n",
    )
    for _ in range(2):
        assert checkout.run("setup", kafka=True).returncode == 0
    assert (checkout.home / "mvn.calls").read_text() == "called\n"
    assert [p.name for p in (checkout.root / "build" / "kafka" / "libs").iterdir()] == ["kafka_2.13-x.jar"]


def test_a_broker_that_cannot_be_fetched_is_one_line_and_no_failure(checkout: Checkout) -> None:
    checkout.fake_uv()
    script(checkout.bin / "java", "exit 0\n")
    script(checkout.bin / "mvn", "echo '[ERROR] Could not resolve it'; echo '[ERROR] more'; exit 1\n")
    done = checkout.run("setup", kafka=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "not fetched" in line]
    assert "Could not resolve it" in line
    assert "mock" in line
    assert not (checkout.root / "build" / "kafka" / "libs").exists()


def test_the_native_kernel_is_built_once_for_each_change_of_it(checkout: Checkout) -> None:
    checkout.fake_uv()
    assert checkout.run("setup").returncode == 0
    checkout.fake_native()
    for count in (1, 1, 2, 2):
        if count == 2:
            (checkout.root / "sidecar" / "native" / "src" / "lib.rs").write_text("two\n")
        done = checkout.run("setup", native=True)
        assert done.returncode == 0, done.stderr
        assert (checkout.home / "maturin.calls").read_text().split() == ["called"] * count
    installed = [call for call in checkout.uv_calls() if "skewd_native-0-abi3.whl" in call]
    assert len(installed) == 2
    assert all("--no-deps --no-index --force-reinstall" in call for call in installed)
    # Another environment gets the wheel that is there.
    (checkout.root / "requirements" / "all.txt").write_text("# changed\n")
    assert checkout.run("setup", native=True).returncode == 0
    assert (checkout.home / "maturin.calls").read_text().split() == ["called"] * 2
    assert "skewd_native-0-abi3.whl" in checkout.uv_calls()[-1]


def test_a_native_kernel_that_cannot_be_built_is_one_line_and_no_failure(checkout: Checkout) -> None:
    checkout.fake_uv()
    assert checkout.run("setup").returncode == 0
    checkout.fake_native(cargo=False)
    done = checkout.run("setup", native=True, PATH=f"{checkout.bin}:{checkout.home}")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "native kernel" in line]
    assert "cargo is not here" in line
    assert not (checkout.home / "maturin.calls").exists()

    checkout.fake_native(fails=True)
    done = checkout.run("setup", native=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "not built" in line]
    assert "linker `cc` not found" in line
    assert "Python kernel" in line


def test_unknown_commands_and_none_are_usage_errors_that_list_the_commands(checkout: Checkout) -> None:
    for arguments in (["frobnicate"], []):
        done = checkout.run(*arguments)
        assert done.returncode == 64
        for name in ("setup", "demo", "test", "lint", "types", "clean", "wheel", "pins"):
            assert name in done.stdout + done.stderr


def test_clean_leaves_other_results(checkout: Checkout) -> None:
    checkout.fake_uv()
    assert checkout.run("setup").returncode == 0
    for name in ("out/demo/report.html", "out/mine/results.json", "dist/a.whl", "skewd/__pycache__/a.pyc"):
        (checkout.root / name).parent.mkdir(parents=True)
        (checkout.root / name).touch()
    assert checkout.run("clean").returncode == 0
    left = {str(p.relative_to(checkout.root)) for p in checkout.root.rglob("*") if p.is_file()}
    assert left == {
        "tasks.py", "pyproject.toml", "requirements/all.txt", "pipeline_ref/kafka/pom.xml", "out/mine/results.json",
    }  # fmt: skip
