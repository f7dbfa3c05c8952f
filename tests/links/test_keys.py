"""The mesh key's file: who may read it, and what it must say."""

import os
import stat
from pathlib import Path

import pytest

from skewd.keys import MeshKey, MeshKeyError, generate_key_file, load_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.key"
    generate_key_file(path)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(MeshKeyError) as error:
        load_key(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_is_generated_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    key = generate_key_file(path)
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.secret.hex() not in repr(key)
    assert generate_key_file(tmp_path / "other.key").key_id != key.key_id


def test_the_mode_is_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        generate_key_file(tmp_path / "mesh.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mesh.key").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(path: Path) -> None:
    key = load_key(path)
    with pytest.raises(MeshKeyError, match="exists and is not overwritten"):
        generate_key_file(path)
    assert load_key(path) == key


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeshKeyError, match=r"mesh\.key can't be written: No such file"):
        generate_key_file(tmp_path / "missing" / "mesh.key")


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    assert "skewd keygen" in complaint(tmp_path / "mesh.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o660])
def test_a_key_that_others_can_touch_is_refused_with_the_fix(path: Path, mode: int) -> None:
    path.chmod(mode)
    text = complaint(path)
    assert f"(mode {mode:04o})" in text
    assert f"chmod 600 {path}" in text
    path.chmod(0o400)
    load_key(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "skewd-key-1\n",
        "skewd-key-2 " + "a" * 64,
        "skewd-key-1 " + "a" * 63,
        "skewd-key-1 " + "g" * 64,
        "skewd-key-1 " + "a" * 64 + "\n\n",
        "x" * 5000,
        "ä" * 40,
    ],
)
def test_what_is_no_key_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    assert "is not a mesh key" in complaint(path)


def test_a_key_of_zeros_is_no_key(path: Path) -> None:
    path.write_text("skewd-key-1 " + "0" * 64)
    assert "zeros" in complaint(path)


def test_other_things_than_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "not a regular file" in complaint(tmp_path / "fifo")
    complaint(tmp_path)


def test_a_kubernetes_secret_volume_may_be_readable(path: Path) -> None:
    """As the kubelet lays it out: name -> ..data/name, ..data -> ..<timestamp>."""
    volume = path.parent / "volume"
    (volume / "..2026_11_23").mkdir(parents=True)
    path.rename(volume / "..2026_11_23" / "mesh.key")
    (volume / "..data").symlink_to("..2026_11_23")
    (volume / "mesh.key").symlink_to("..data/mesh.key")
    target = volume / "..2026_11_23" / "mesh.key"
    target.chmod(0o644)
    load_key(volume / "mesh.key")
    target.chmod(0o664)
    assert "changed by others" in complaint(volume / "mesh.key")
    # A plain file beside it gets no such leave.
    plain = volume / "plain.key"
    plain.write_bytes(target.read_bytes())
    plain.chmod(0o644)
    assert "read by others" in complaint(plain)


def test_a_systemd_credential_may_be_readable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o440)
    complaint(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    load_key(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent / "elsewhere"))
    complaint(path)


def test_keys_are_checked_where_they_are_made() -> None:
    with pytest.raises(MeshKeyError, match="32 bytes"):
        MeshKey(1, b"short")
    with pytest.raises(MeshKeyError, match="id"):
        MeshKey(0, b"x" * 32)
    assert MeshKey.from_secret(b"x" * 32) == MeshKey.from_secret(b"x" * 32)
