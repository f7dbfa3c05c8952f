"""Fetching the broker's jars, with a "mvn" of our own on the PATH."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from skewd_pipeline.kafka_jars import NOT_WANTED, cache_libs, fetch, pom

FETCHES = 'for a in "$@"; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done; mkdir -p "$d"\n'


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a fake Maven is put; each call leaves a line in ``calls``."""
    path = tmp_path / "bin" / "mvn"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.delenv(NOT_WANTED, raising=False)
    return path


def write(maven: Path, script: str) -> None:
    maven.write_text(f"#!/bin/sh\necho called >> {maven.parent / 'calls'}\n{FETCHES}{script}\n")
    maven.chmod(0o755)


def calls(maven: Path) -> int:
    return len((maven.parent / "calls").read_text().splitlines())


def test_jars_are_fetched_once_and_whole(maven: Path, tmp_path: Path) -> None:
    write(maven, 'touch "$d/kafka_2.13-9.9.9.jar" "$d/other.jar"')
    libs, said = tmp_path / "kafka" / "libs", list[str]()
    assert fetch(libs, said.append) is None
    assert sorted(path.name for path in libs.iterdir()) == ["kafka_2.13-9.9.9.jar", "other.jar"]
    assert sorted(path.name for path in libs.parent.iterdir()) == ["libs", "stamp"]
    assert all("fetching Apache Kafka's jars" in text for text in said)
    assert fetch(libs) is None
    assert calls(maven) == 1


def test_a_failure_is_said_and_not_tried_again_until_its_note_is_removed(maven: Path, tmp_path: Path) -> None:
    write(maven, "echo '[ERROR] no way to any repository'; exit 1")
    libs = tmp_path / "kafka" / "libs"
    assert fetch(libs) == "Maven says: [ERROR] no way to any repository"
    assert fetch(libs) == f"fetching them failed before; remove {libs.with_name('stamp')} to try again"
    assert calls(maven) == 1
    assert [path.name for path in libs.parent.iterdir()] == ["stamp"]
    libs.with_name("stamp").unlink()
    write(maven, "true")
    assert fetch(libs) == "Maven fetched no broker"


def test_the_set_ups_note_of_a_failure_counts(maven: Path, tmp_path: Path) -> None:
    write(maven, "exit 1")
    named = pom()
    assert named is not None
    (tmp_path / "stamp").write_text(f"failed {hashlib.sha256(named.read_bytes()).hexdigest()}\n")
    assert "failed before" in str(fetch(tmp_path / "libs"))
    assert not (maven.parent / "calls").exists()


def test_interrupting_ends_maven_and_leaves_nothing(maven: Path, tmp_path: Path) -> None:
    write(maven, "exec sleep 60")

    class Interrupted(Exception):
        pass

    def stop(_: str) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        fetch(tmp_path / "kafka" / "libs", stop)
    assert list((tmp_path / "kafka").iterdir()) == []


def test_what_is_missing_is_named(maven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(maven.parent))
    assert fetch(tmp_path / "libs") == "Maven, which would fetch them, is not on the PATH"
    write(maven, "exit 1")
    monkeypatch.setenv(NOT_WANTED, "1")
    assert fetch(tmp_path / "libs") == f"{NOT_WANTED} is set"


def test_outside_of_a_checkout_they_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_libs() == Path("/c/skewd/kafka/libs")
