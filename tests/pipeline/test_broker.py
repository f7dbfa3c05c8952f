"""Which broker there is and why, and that nothing of it stays, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd_pipeline import kafka_broker
from skewd_pipeline.broker_plan import (
    BrokerError,
    check_topics,
    choose,
    cluster_id,
    java_major,
    kafka_version,
    server_properties,
    tail,
)
from skewd_pipeline.kafka_broker import Broker, default_libs, open_broker
from tests.waiting import LIMIT_S

FOUND: dict[str, str | int | None] = {"java": 17, "kafka": "4.3.1", "libs": "libs", "librdkafka": "2.16.0"}


@pytest.mark.parametrize(
    ("given", "kind", "version", "reason"),
    [
        ({"bootstrap": "here:9092"}, "external", "unknown", "the broker at here:9092 was given"),
        ({}, "apache", "4.3.1", "Java 17 and the jars of Apache Kafka 4.3.1 are here"),
        ({"prefer": "apache"}, "apache", "4.3.1", "Java 17 and the jars"),
        ({"prefer": "mock"}, "mock", "2.16.0", "the mock was asked for"),
        ({"java": None}, "mock", "2.16.0", "there is no java on the PATH"),
        ({"java": 11}, "mock", "2.16.0", "Java 11 is too old"),
        ({"kafka": None}, "mock", "2.16.0", "jars are not in libs"),
    ],
)
def test_the_realest_broker_that_is_possible_is_chosen_and_the_reason_given(
    given: dict[str, str | None], kind: str, version: str, reason: str
) -> None:
    plan = choose(**{"bootstrap": None, "prefer": "auto", **FOUND, **given})  # type: ignore[arg-type]
    assert (plan.kind, plan.version) == (kind, version)
    assert reason in plan.reason
    assert "\n" not in plan.reason


def test_a_real_broker_that_was_asked_for_is_not_replaced_by_a_mock() -> None:
    with pytest.raises(BrokerError, match="no Apache Kafka: there is no java"):
        choose(bootstrap=None, prefer="apache", java=None, kafka="4.3.1", libs="libs", librdkafka="2.16.0")


@pytest.mark.parametrize(
    ("said", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "24-ea" 2025-03-18', 24),
        ("bash: java: command not found", None),
    ],
)
def test_javas_version_is_read(said: str, major: int | None) -> None:
    assert java_major(said) == major


def test_kafkas_version_is_that_of_the_brokers_jar() -> None:
    assert kafka_version(["kafka-clients-4.3.1.jar", "kafka_2.13-4.3.1.jar", "scala-library-2.13.18.jar"]) == "4.3.1"
    assert kafka_version(["kafka-clients-4.3.1.jar"]) is None


@given(st.binary(min_size=16, max_size=16))
def test_a_cluster_id_has_kafkas_form_and_is_no_option(random16: bytes) -> None:
    made = cluster_id(random16)
    assert len(made) == 22
    assert not made.startswith("-")


def test_the_brokers_configuration_stays_on_loopback() -> None:
    settings = dict(line.split("=", 1) for line in server_properties("/data", 1234, 5678).splitlines())
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:1234,CONTROLLER://127.0.0.1:5678"
    assert settings["log.dirs"] == "/data"
    assert settings["auto.create.topics.enable"] == "false"


@pytest.mark.parametrize("name", ["", ".", "..", "with space", "a/b", "x" * 250])
def test_a_name_that_kafka_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a topic"):
        check_topics(["fine", name])


def test_a_log_is_told_by_its_end() -> None:
    assert tail("\n".join(str(number) for number in range(100)), 3) == "97\n98\n99"
    assert len(tail("x" * 10_000)) == 300


def test_the_mock_is_called_a_mock_and_ends_with_its_context() -> None:
    others = _children("skewd_pipeline.kafka_mock")
    with open_broker(prefer="mock") as broker:
        assert broker.kind == "mock"
        assert "mock" in broker.label
        broker.create_topics(["one", "two", "one"])
        (process,) = (each for each in _children("skewd_pipeline.kafka_mock") if each not in others)
        assert _listens(broker.bootstrap)
    assert not process.is_running()
    assert not _listens(broker.bootstrap)


def test_the_mock_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    owner = _start_owner("prefer='mock'")
    bootstrap = _bootstrap_of(owner)
    owner.kill()
    owner.wait()
    _until(lambda: not _listens(bootstrap))


def test_an_external_broker_keeps_what_it_had_and_loses_what_we_made(mock_broker: Broker) -> None:
    with open_broker(mock_broker.bootstrap) as broker:
        assert (broker.kind, broker.version) == ("external", "unknown")
        assert broker.bootstrap in broker.reason
    assert _listens(mock_broker.bootstrap)


def test_an_external_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skewd_pipeline.kafka_broker.REQUEST_LIMIT_S", 0.3)
    with pytest.raises(BrokerError, match=r"no Kafka broker answers at 127\.0\.0\.1:1"), open_broker("127.0.0.1:1"):
        pass


# -- a broker that does not start, played by a "java" of our own ------------------------------------------------------


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a ``java`` on the PATH that claims version 17 and does what the given shell lines say; gives the jars."""

    def make(lines: str) -> Path:
        programs, libs, temporary = (tmp_path / name for name in ("bin", "libs", "tmp"))
        for directory in (programs, libs, temporary):
            directory.mkdir()
        java = programs / "java"
        java.write_text(f'#!/bin/sh\n[ "$1" = -version ] && echo \'openjdk version "17.0.1"\' && exit 0\n{lines}\n')
        java.chmod(0o755)
        (libs / "kafka_2.13-4.3.1.jar").touch()
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        return libs

    return make


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("echo cannot format; exit 1", r"storage was not formatted.*\n.*cannot format"),
        ('case "$*" in *StorageTool*) exit 0;; esac; echo no memory; exit 3', r"ended with status 3.*\n.*no memory"),
        ('case "$*" in *StorageTool*) exit 0;; esac; echo asleep; exec sleep 600', r"does not answer.*\n.*asleep"),
        (
            'case "$*" in *StorageTool*) exit 0;; esac; trap "" TERM; echo deaf; while :; do sleep 0.1; done',
            r"does not answer.*\n.*deaf",
        ),
    ],
    ids=["format fails", "ends at once", "never answers", "never answers and is deaf"],
)
def test_a_broker_that_does_not_start_shows_its_log_and_leaves_nothing(
    fake_java: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str, complaint: str
) -> None:
    libs = fake_java(lines)
    monkeypatch.setattr("skewd_pipeline.kafka_broker.START_LIMIT_S", 1.0)
    monkeypatch.setattr("skewd_pipeline.kafka_broker.STOP_LIMIT_S", 1.0)
    others = _children("java")
    with pytest.raises(BrokerError, match=complaint), open_broker(libs=libs, prefer="apache"):
        pass
    assert list((tmp_path / "tmp").iterdir()) == []
    assert _children("java") == others
    assert _children("sleep 600") == []


def test_a_port_taken_in_between_is_tried_again(
    fake_java: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libs = fake_java(f'case "$*" in *StorageTool*) exit 0;; esac; echo try >> {tmp_path}/tries; exit 1')
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        monkeypatch.setattr(kafka_broker, "free_ports", lambda count: [somebody.getsockname()[1]] * count)
        with pytest.raises(BrokerError, match="ended with status 1"), open_broker(libs=libs, prefer="apache"):
            pass
    assert (tmp_path / "tries").read_text().splitlines() == ["try"] * kafka_broker.ATTEMPTS
    assert list((tmp_path / "tmp").iterdir()) == []


def test_giving_up_while_it_starts_leaves_nothing(fake_java: Callable[[str], Path], tmp_path: Path) -> None:
    libs = fake_java('case "$*" in *StorageTool*) exit 0;; esac; exec sleep 600')
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_broker(libs=libs, prefer="apache", progress=tell):
        pass
    assert "starting Apache Kafka 4.3.1" in told[0]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert _children("sleep 600") == []


# -- the real one -----------------------------------------------------------------------------------------------------


@pytest.mark.real_kafka
def test_a_real_broker_serves_and_makes_topics_of_one_partition(apache_broker: Broker) -> None:
    assert apache_broker.kind == "apache"
    assert apache_broker.version == kafka_version(path.name for path in default_libs().glob("*.jar"))
    assert apache_broker.label == f"Apache Kafka {apache_broker.version}"
    name = f"topic-{uuid.uuid4().hex}"
    apache_broker.create_topics([name])
    apache_broker.create_topics([name])
    topics = apache_broker._client().list_topics(timeout=LIMIT_S).topics
    assert len(topics[name].partitions) == 1
    apache_broker.delete_topics([name, "was-never-there"])
    _until(lambda: name not in apache_broker._client().list_topics(timeout=LIMIT_S).topics)


@pytest.mark.real_kafka
def test_on_an_external_broker_our_topics_go_and_others_stay(apache_broker: Broker) -> None:
    theirs, ours = f"theirs-{uuid.uuid4().hex}", f"ours-{uuid.uuid4().hex}"
    apache_broker.create_topics([theirs])
    with open_broker(apache_broker.bootstrap) as external:
        external.create_topics([theirs, ours])
    _until(lambda: ours not in apache_broker._client().list_topics(timeout=LIMIT_S).topics)
    assert theirs in apache_broker._client().list_topics(timeout=LIMIT_S).topics


@pytest.mark.real_kafka
@pytest.mark.parametrize("end", ["its context", "the death of whoever started it"])
def test_of_a_real_broker_nothing_stays(apache_possible: None, tmp_path: Path, end: str) -> None:
    owner = _start_owner("prefer='apache', warm_messages=2000", TMPDIR=str(tmp_path))
    bootstrap = _bootstrap_of(owner)
    group = psutil.Process(owner.pid).children(recursive=True)
    assert any("kafka.Kafka" in process.cmdline() for process in group)
    assert [path.name[:12] for path in tmp_path.iterdir() if path.name.startswith("skewd")] == ["skewd-kafka-"]
    if end == "its context":
        assert owner.stdin is not None
        owner.stdin.close()
    else:
        owner.send_signal(signal.SIGKILL)
    owner.wait(LIMIT_S)
    _until(lambda: not any(process.is_running() for process in group))
    _until(lambda: not [path for path in tmp_path.iterdir() if path.name.startswith("skewd")])
    assert not _listens(bootstrap)


def _start_owner(options: str, **environment: str) -> subprocess.Popen[str]:
    """A process that opens a broker, says where, and closes it when its input ends."""
    script = (
        "import sys\nfrom skewd_pipeline.kafka_broker import open_broker\n"
        f"with open_broker({options}) as broker:\n    print(broker.bootstrap, flush=True)\n    sys.stdin.read()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _bootstrap_of(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    bootstrap = owner.stdout.readline().strip()
    assert _listens(bootstrap)
    return bootstrap


def _listens(bootstrap: str) -> bool:
    host, _, port = bootstrap.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LIMIT_S).close()
    except OSError:  # refused, or reset while it ends
        return False
    return True


def _children(text: str) -> list[psutil.Process]:
    """Our own descendants whose command line contains ``text``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if text in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
