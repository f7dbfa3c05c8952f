"""What is pinned is what pyproject.toml asks for, what the code imports is declared, no file names a registry."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.pins import extras, problem

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"skewd": "skewd", "skewd_sidecar": "sidecar/skewd_sidecar", "skewd_pipeline": "pipeline_ref/skewd_pipeline"}


def asked_for(*extras: str) -> set[str]:
    """The names that pyproject.toml asks for, our own extras resolved."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        requirements += [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    names: set[str] = {canonicalize_name(r.name) for r in requirements if r.name != "skewd"}
    for requirement in requirements:
        if requirement.name == "skewd":
            names |= asked_for(*requirement.extras)
    return names


def pins(name: str) -> dict[str, set[str]]:
    """Package name -> its pins (several where Python versions differ), each with at least one sha256."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    found: dict[str, set[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        pin, *hashes = line.split(" --hash=")
        assert hashes, f"no hash: {line[:80]}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), pin
        requirement = Requirement(" ".join(pin.split()))
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"not one version: {pin}"
        found.setdefault(canonicalize_name(requirement.name), set()).add(" ".join(pin.split()))
    return found


def test_every_dependency_is_pinned_with_hashes() -> None:
    # The native kernel is built here, and is on no index.
    assert asked_for(*PROJECT["optional-dependencies"]) - {"skewd-native"} <= set(pins("all.txt"))
    assert asked_for("zmq") <= set(pins("run.txt"))


def test_what_an_installation_gets_is_what_was_tested() -> None:
    tested, installed = pins("all.txt"), pins("run.txt")
    assert set(installed) < set(tested)
    # The versions; on which implementations a package is needed may differ with what else asks for it.
    versions = {name: {pin.partition(" ;")[0] for pin in installed[name]} for name in installed}
    assert versions == {name: {pin.partition(" ;")[0] for pin in tested[name]} for name in installed}
    assert not {"pytest", "confluent-kafka", "magika"} & set(installed)


def test_the_extras_that_are_pinned_are_all_but_the_native_kernel() -> None:
    named = set(PROJECT["optional-dependencies"])
    assert set(extras((ROOT / "pyproject.toml").read_text())) == named - {"native"}


def test_the_native_kernel_that_is_asked_for_is_the_one_that_is_here() -> None:
    crate = tomllib.loads((ROOT / "sidecar" / "native" / "Cargo.toml").read_text())
    assert PROJECT["optional-dependencies"]["native"] == [f"skewd-native=={crate['package']['version']}"]
    # No lock file is kept: a dependency without an exact version would be whatever is newest.
    for name, wanted in crate["dependencies"].items():
        version = wanted if isinstance(wanted, str) else wanted["version"]
        assert re.fullmatch(r"=\d+\.\d+\.\d+", version), f"{name} {version}"


@pytest.mark.parametrize("name", ["all.txt", "run.txt"])
def test_pins_name_no_host_and_no_path(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert problem(text) is None
    assert "://" not in text


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.invalid/simple",
        "--find-links /srv/wheels",
        "a @ https://example.invalid/a.whl",
        "a @ file:a.whl",
        "-e ../a",
        "a==1.0",
    ],
)
def test_pins_that_must_not_be_kept_are_recognised(line: str) -> None:
    good = "b==2 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    assert problem(good) is None
    assert problem(good + line + "\n") is not None


def third_party_imports(folder: Path) -> dict[str, str]:
    """Top-level module -> one file that imports it, for what is neither ours nor the standard library's."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    found[top] = str(path.relative_to(ROOT))
    return found


def test_every_import_of_a_shipped_package_is_a_declared_dependency() -> None:
    declared = asked_for("pipeline", "aeron", "native")  # all extras but the one for development
    provided = packages_distributions()
    imported = {m: path for folder in OURS.values() for m, path in third_party_imports(ROOT / folder).items()}
    for module, path in imported.items():
        # What this Python can't have is named as its module.
        providers = {canonicalize_name(name) for name in provided.get(module, [module])}
        assert providers & declared, f"{path} imports {module}, which pyproject.toml does not declare"


def test_no_file_names_a_package_registry() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # In pieces, or this file would be found.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "repo.maven" + ".apache.org", "repo1.maven" + ".org"]
    hosts += ["registry.npm" + "js.org", "proxy.golang" + ".org", "static.crates" + ".io", "index.crates" + ".io"]
    pattern = re.compile("|".join(map(re.escape, hosts)).encode())
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [str(f.relative_to(ROOT)) for f in files if f.is_file() and pattern.search(f.read_bytes())] == []
