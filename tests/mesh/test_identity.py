"""A node keeps its key and its count of starts; what can't be used is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")

from skewd.identity import IdentityError, KeysFile, PinsFile, load_identity
from skewd.record_store import SEQUENCES_PER_START, Pin


def test_the_key_stays_and_sequences_grow_over_restarts(tmp_path: Path) -> None:
    first = load_identity(tmp_path, "a")
    second = load_identity(tmp_path, "a")
    assert first.public_key == second.public_key
    assert first.kept
    assert second.first_sequence // SEQUENCES_PER_START - first.first_sequence // SEQUENCES_PER_START == 1
    assert load_identity(tmp_path, "b").public_key != first.public_key
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob(".*"))


def test_the_secret_is_not_shown(tmp_path: Path) -> None:
    identity = load_identity(tmp_path, "a")
    secret = (tmp_path / "identity-a").read_text().split()[1]
    assert secret not in repr(identity)


def test_a_directory_that_is_missing_is_made_for_its_user_only(tmp_path: Path) -> None:
    missing = tmp_path / "not" / "yet"
    one, two = load_identity(missing, "a"), load_identity(missing, "a")
    assert one.kept
    assert one.public_key == two.public_key
    assert missing.stat().st_mode & 0o777 == 0o700


def test_without_a_directory_the_key_is_new_each_time_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = tmp_path / "file" / "state"
    one, two = load_identity(missing, "a"), load_identity(missing, "a")
    assert one.public_key != two.public_key
    assert not one.kept
    assert one.reason is not None
    assert str(missing) in one.reason


@pytest.mark.parametrize("content", ["", "skewd-identity-1 00", "skewd-key-1 " + "0" * 64])
def test_a_damaged_identity_is_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identity-a"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=str(path)):
        load_identity(tmp_path, "a")
    assert path.read_text() == content


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_identity(tmp_path, "a")
    path = tmp_path / "identity-a"
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_identity(tmp_path, "a")
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_identity(tmp_path, "a")


def test_pins_are_kept_and_damage_is_survived(tmp_path: Path) -> None:
    file = PinsFile(tmp_path, "a")
    assert file.read() == {}
    pins = {"b": Pin(bytes(32), True, 1 << 41, bytes(16)), "c": Pin(bytes(range(32)), False, 5, bytes(16))}
    file.write(pins)
    assert file.read() == pins
    whole = file.path.read_bytes()
    keys = KeysFile(tmp_path, "a")
    keys.write({"b": bytes(32)})
    keys.path.write_bytes(keys.path.read_bytes().replace(b"name", b"na\xffe"))
    assert keys.read() == {}
    for damaged in (whole[:-3], whole.replace(b"boot", b"b\xff\xfft"), whole.replace(b"\xa1b", b"\xa1\xff"), b"\xc1"):
        file.path.write_bytes(damaged)
        assert file.read() == {}
    with pytest.raises(OSError, match="missing"):
        PinsFile(tmp_path / "missing", "a").write(pins)


def test_keys_are_kept_and_what_is_damaged_is_none(tmp_path: Path) -> None:
    file = KeysFile(tmp_path, "a")
    assert file.read() == {}
    keys = {"b": bytes(range(32)), "c": bytes(32)}
    file.write(keys)
    assert file.read() == keys
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert file.read() == {}


def test_a_state_that_is_put_back_repeats_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of the disk has the count of starts of then; the time goes on."""
    monkeypatch.setattr("time.time_ns", lambda: 1_790_000_000 * 10**9)
    load_identity(tmp_path, "a")
    kept = (tmp_path / "starts-a").read_bytes()
    first = load_identity(tmp_path, "a").first_sequence
    (tmp_path / "starts-a").write_bytes(kept)
    monkeypatch.setattr("time.time_ns", lambda: 1_790_000_010 * 10**9)
    assert load_identity(tmp_path, "a").first_sequence == first + 2560
