"""The wheel: only our own names in site-packages, and metadata that says what it is."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `tasks.py wheel` builds it, with the backend that is installed: no network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_its_top_level_is_only_ours(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {"skewd", "skewd_sidecar", "skewd_pipeline"} < tops
    assert all(top.startswith("skewd") for top in tops)


def test_it_holds_every_module_and_no_leftovers(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("skewd", "sidecar/skewd_sidecar", "pipeline_ref/skewd_pipeline"):
        base = (ROOT / folder).parent
        modules = {str(path.relative_to(base)) for path in (ROOT / folder).rglob("*.py")}
        assert modules <= names
    assert not [name for name in names if name.endswith((".pyc", ".so")) or "__pycache__" in name]


def test_its_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "skewd"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip()
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "mesh",
        "zmq",
        "kafka",
        "aeron",
        "otel",
        "pipeline",
        "dev",
        "native",
    }


def test_the_heavy_packages_are_extras(metadata: Message) -> None:
    core = [line.partition(";")[0].strip() for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert "typer" in core
    assert "grpcio" in core
    assert not {"confluent-kafka", "magika", "opentelemetry-sdk", "pyzmq"} & set(core)


def test_it_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert "skewd = skewd.cli:main" in archive.read(name).decode()
