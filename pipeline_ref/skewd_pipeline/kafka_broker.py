"""A Kafka broker for the length of an experiment: the user's, a real one started here, or a mock. Nothing stays.

The problem: a broker is a second program, slow to start, slow until it is warm, and it leaves a data directory, two
ports and a process group behind whenever something goes wrong on the way. The insight: treat it as one value with one
owner. ``open_broker`` is a context manager; whatever happens inside it, or while it starts, the process group is
ended by its id and the directory removed; a ``guard`` does the same if this process is killed outright. What was
started and why is in ``kind``, ``version`` and ``reason`` (the decision itself: ``broker_plan.py``).

A JVM that has just started is slow: its first ten thousand requests are interpreted. So a real broker gets
``WARM_MESSAGES`` through before anybody measures.

Limits: starting takes at most ``START_LIMIT_S`` and is tried ``ATTEMPTS`` times (somebody may take a free port before
the broker does); the broker's heap is ``HEAP_MIB``; of its log the last lines are kept for the error message.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from skewd_pipeline.broker_plan import (
    MIN_JAVA,
    BrokerError,
    Kind,
    Plan,
    Prefer,
    check_topics,
    choose,
    cluster_id,
    java_major,
    kafka_version,
    server_properties,
    tail,
)
from skewd_pipeline.corpus import repository_root
from skewd_pipeline.kafka_jars import cache_libs, fetch
from skewd_pipeline.transports.kafka import (
    COMMON,
    FETCH_WAIT_MS,
    MOCK_CLUSTER,
    consumer_settings,
    producer_settings,
)

LIBS = Path("build/kafka/libs")
LIBS_VARIABLE = "SKEWD_KAFKA_LIBS"
START_LIMIT_S = 40.0
STOP_LIMIT_S = 8.0
REQUEST_LIMIT_S = 15.0
WARM_LIMIT_S = 20.0
WARM_MESSAGES = 50_000
WARM_TOPIC = "skewd-warm-up"
ATTEMPTS = 3
HEAP_MIB = 512
# Two cores are shared with five stages: one collector thread and the first compiler tier leave them the most, and
# answer fastest at a few hundred requests a second (measured: 1.0 ms a hop instead of 1.3).
JVM_OPTIONS = (
    f"-Xmx{HEAP_MIB}m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


@dataclass(slots=True)
class Broker:
    """A broker that answers.

    Args:
        kind: "external", "apache" or "mock".
        version: of Apache Kafka, of librdkafka for the mock, "unknown" for an external one.
        bootstrap: ``host:port``.
        reason: one line: why this kind.
    """

    kind: Kind
    version: str
    bootstrap: str
    reason: str
    _log: Path | None = None
    _admin: AdminClient | None = field(default=None, repr=False)
    _created: list[str] = field(default_factory=list, repr=False)

    @property
    def label(self) -> str:
        """How results name it; a mock is called one."""
        if self.kind == "apache":
            return f"Apache Kafka {self.version}"
        if self.kind == "external":
            return f"Kafka at {self.bootstrap}"
        return f"librdkafka mock {self.version} (a mock, not a broker)"

    def create_topics(self, names: Iterable[str]) -> None:
        """Make topics of one partition and wait until each has a leader; one that exists is left as it is.

        Raises:
            BrokerError: the broker refuses, or does not answer in time.
            ValueError: a name that Kafka does not take.
        """
        wanted = check_topics(names)
        if not wanted:
            return
        admin = self._client()
        if self.kind != "mock":  # the mock makes a topic when it is asked about it, and knows no other way
            _create(admin, wanted, self._created)
        _await_leaders(admin, wanted)

    def delete_topics(self, names: Iterable[str]) -> None:
        """Remove topics, if they are there. The mock keeps them: it cannot."""
        wanted = check_topics(names)
        if self.kind == "mock" or not wanted:
            return
        for name, future in self._client().delete_topics(wanted, operation_timeout=REQUEST_LIMIT_S).items():
            try:
                future.result(timeout=REQUEST_LIMIT_S)
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise BrokerError(f"topic '{name}' was not removed: {error.args[0].str()}") from error
            if name in self._created:
                self._created.remove(name)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the broker's log; empty for an external broker and the mock."""
        return _read_tail(self._log, lines)

    def forget(self) -> None:
        """Gives the client back, which would look for the broker for ever after its end."""
        self._admin = None

    def _client(self) -> AdminClient:
        if self._admin is None:
            # Errors are raised; a log line for each attempt to reach a broker that just ended helps nobody.
            self._admin = AdminClient({**COMMON, "bootstrap.servers": self.bootstrap, "log_level": 0})
        return self._admin


def external(bootstrap: str) -> Broker:
    """The broker there, which somebody else runs and keeps.

    Raises:
        BrokerError: it does not answer.
    """
    broker = Broker("external", "unknown", bootstrap, f"the broker at {bootstrap} was given")
    try:
        cluster = broker._client().list_topics(timeout=REQUEST_LIMIT_S)
    except ck.KafkaException as error:
        raise BrokerError(
            f"no Kafka broker answers at {bootstrap}: {error.args[0].str()}; see whether it runs and is reachable"
        ) from error
    if str(cluster.cluster_id).startswith(MOCK_CLUSTER):
        broker.kind = "mock"
    return broker


@contextlib.contextmanager
def open_broker(
    bootstrap: str | None = None,
    *,
    libs: Path | None = None,
    prefer: Prefer = "auto",
    warm_messages: int = WARM_MESSAGES,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Broker]:
    """A broker that answers, for the length of the ``with``.

    Args:
        bootstrap: the user's own broker; on it, topics made here are removed at the end.
        libs: the directory of Apache Kafka's jars; ``default_libs()`` if not given.
        prefer: "auto" takes a real broker where one can run and the mock elsewhere; "apache" or "mock" only that.
        warm_messages: how many messages go through a real broker before it is handed out.
        progress: is told, one line each and again every half second, what is being waited for. What it raises ends
            the waiting.

    Raises:
        BrokerError: it does not start or does not answer; with the end of its log.
    """
    libs = libs or default_libs()
    java = None if bootstrap or prefer == "mock" else _find_java()
    not_fetched = fetch(libs, _Slowly(progress)) if java is not None and java >= MIN_JAVA else None
    plan = choose(
        bootstrap=bootstrap,
        prefer=prefer,
        java=java,
        not_fetched=not_fetched,
        kafka=kafka_version(path.name for path in libs.glob("*.jar")),
        libs=str(libs),
        librdkafka=ck.libversion()[0],
    )
    if plan.kind == "external":
        assert bootstrap is not None, "choose() takes external only when a bootstrap address was given"
        with _external(bootstrap) as broker:
            yield broker
    elif plan.kind == "apache":
        with _apache(plan, libs, _Slowly(progress)) as broker:
            if warm_messages:
                _warm(broker, warm_messages, _Slowly(progress))
            yield broker
    else:
        progress(f"starting librdkafka's mock: {plan.reason}")
        with _mock(plan) as broker:
            yield broker


def default_libs() -> Path:
    """Where the jars are: ``$SKEWD_KAFKA_LIBS``, else ``build/kafka/libs`` here or in the checkout, else the cache."""
    if named := os.environ.get(LIBS_VARIABLE):
        return Path(named)
    if LIBS.is_dir():
        return LIBS
    root = repository_root()
    return root / LIBS if root is not None else cache_libs()


class _Slowly:
    """Passes on what is being waited for, at once and then every half second."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._next = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.5
            self._tell(text)


@contextlib.contextmanager
def _external(bootstrap: str) -> Iterator[Broker]:
    broker = external(bootstrap)
    broker.kind = "external"  # whatever speaks there: it was given, and results name it by its address
    try:
        yield broker
    finally:
        with contextlib.suppress(BrokerError, TimeoutError):
            broker.delete_topics(broker._created)
        broker.forget()


@contextlib.contextmanager
def _mock(plan: Plan) -> Iterator[Broker]:
    broker: Broker | None = None
    process = subprocess.Popen(
        [sys.executable, "-m", "skewd_pipeline.kafka_mock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None, "asked for above"
        # Its own limit on starting makes it say something, or end, in time.
        said = process.stdout.readline()
        if not said:
            _, errors = process.communicate(timeout=STOP_LIMIT_S)
            raise BrokerError(f"librdkafka's mock did not start:\n{tail(errors.decode(errors='replace'))}")
        broker = Broker("mock", plan.version, json.loads(said)["bootstrap"], plan.reason)
        yield broker
    finally:
        if broker is not None:
            broker.forget()
        _end(process)


@contextlib.contextmanager
def _apache(plan: Plan, libs: Path, progress: Callable[[str], None]) -> Iterator[Broker]:
    for attempt in range(1, ATTEMPTS + 1):
        progress(f"starting Apache Kafka {plan.version}")
        directory = Path(tempfile.mkdtemp(prefix="skewd-kafka-"))
        process: subprocess.Popen[bytes] | None = None
        broker: Broker | None = None
        try:
            log = directory / "broker.log"
            ports = free_ports(2)
            properties = directory / "server.properties"
            properties.write_text(server_properties(str(directory / "data"), *ports))
            identity = cluster_id(secrets.token_bytes(16))
            _format(libs, properties, identity, log)
            process = _start(libs, properties, log, directory)
            broker = Broker("apache", plan.version, f"127.0.0.1:{ports[0]}", plan.reason, log)
            if not _answers(broker, identity, process, progress):
                ended = process.poll() is not None
                if ended and attempt < ATTEMPTS and not all(_is_free(port) for port in ports):
                    continue
                raise BrokerError(
                    f"Apache Kafka {plan.version} "
                    f"{f'ended with status {process.returncode}' if ended else 'does not answer'}; "
                    f"the end of its log{_how_to_see_more(libs)}:\n{broker.log_tail() or '(it is empty)'}"
                )
            yield broker
            return
        finally:
            if broker is not None:
                broker.forget()
            if process is not None:
                _end(process)
            shutil.rmtree(directory, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        # As the broker does: a connection that is still winding down is not in the way.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _how_to_see_more(libs: Path) -> str:
    if any(libs.glob("slf4j-simple-*.jar")):
        return ""
    return " (without org.slf4j:slf4j-simple 1.7 among its jars it says little)"


def _find_java() -> int | None:
    java = shutil.which("java")
    if java is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=REQUEST_LIMIT_S, check=False)
        return java_major(said.stderr + said.stdout)
    return None


def _java(libs: Path, main_class: str, *arguments: str) -> list[str]:
    return ["java", *JVM_OPTIONS, "-cp", f"{libs.resolve()}/*", main_class, *arguments]


def _format(libs: Path, properties: Path, identity: str, log: Path) -> None:
    command = _java(libs, "kafka.tools.StorageTool", "format", "-t", identity, "-c")
    with log.open("ab") as output:
        try:
            subprocess.run(
                [*command, str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=START_LIMIT_S,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise BrokerError(
                f"Apache Kafka's storage was not formatted; the end of the log:\n{_read_tail(log)}"
            ) from error


def _start(libs: Path, properties: Path, log: Path, directory: Path) -> subprocess.Popen[bytes]:
    guarded = [sys.executable, "-m", "skewd_pipeline.guard", "--remove", str(directory), "--"]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*guarded, *_java(libs, "kafka.Kafka", str(properties))],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Where Java leaves its own files (performance data, a dump) is removed with the rest.
            cwd=directory,
            # A group of its own: an interrupt at the terminal is for the experiment, which ends the broker last.
            start_new_session=True,
        )


def _answers(broker: Broker, identity: str, process: subprocess.Popen[bytes], progress: Callable[[str], None]) -> bool:
    """Waits until the broker takes a request; false when it ended or takes too long."""
    host, _, port = broker.bootstrap.partition(":")
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        progress(f"starting Apache Kafka {broker.version}")
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            time.sleep(0.05)
            continue
        with contextlib.suppress(ck.KafkaException):
            # A broker is registered some moments after its port is open. By its identity it is known from another
            # one that took the port first.
            cluster = broker._client().list_topics(timeout=1.0)
            if cluster.brokers and str(cluster.cluster_id) == identity:
                return True
        time.sleep(0.05)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads its own group, and the group: first asked, then killed; both by id."""
    streams: list[IO[bytes] | None] = [process.stdin, process.stdout, process.stderr]
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in streams:
            if stream is not None:
                stream.close()


def _create(admin: AdminClient, names: list[str], created: list[str]) -> None:
    topics = [NewTopic(name, num_partitions=1, replication_factor=1) for name in names]
    for name, future in admin.create_topics(topics, operation_timeout=REQUEST_LIMIT_S).items():
        try:
            future.result(timeout=REQUEST_LIMIT_S)
            created.append(name)
        except ck.KafkaException as error:
            if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                raise BrokerError(f"topic '{name}' was not created: {error.args[0].str()}") from error


def _await_leaders(admin: AdminClient, names: list[str]) -> None:
    deadline = time.monotonic() + REQUEST_LIMIT_S
    waiting = list(names)
    while waiting:
        if time.monotonic() >= deadline:
            raise BrokerError(f"topic '{waiting[0]}' has no leader after {REQUEST_LIMIT_S:.0f} s")
        try:
            topic = admin.list_topics(waiting[0], timeout=REQUEST_LIMIT_S).topics[waiting[0]]
        except ck.KafkaException as error:
            raise BrokerError(f"the broker does not tell of topic '{waiting[0]}': {error.args[0].str()}") from error
        if topic.error is None and 0 in topic.partitions and topic.partitions[0].leader >= 0:
            waiting.pop(0)
        else:
            time.sleep(0.02)


def _warm(broker: Broker, messages: int, progress: Callable[[str], None]) -> None:
    """Pass messages through a topic of its own until the JVM has compiled what a message takes."""
    broker.create_topics([WARM_TOPIC])
    producer = ck.Producer(producer_settings(broker.bootstrap))
    consumer = ck.Consumer(consumer_settings(broker.bootstrap, FETCH_WAIT_MS))
    body = bytes(1024)
    received = 0
    deadline = time.monotonic() + WARM_LIMIT_S
    try:
        consumer.assign([ck.TopicPartition(WARM_TOPIC, 0, 0)])
        for number in range(messages):
            progress(f"warming the broker: {number} of {messages} messages")
            while True:
                try:
                    producer.produce(WARM_TOPIC, body, partition=0)
                    break
                except BufferError:
                    producer.poll(0.01)
            producer.poll(0)
            received += _count(consumer.consume(500, 0))
            if time.monotonic() >= deadline:
                break
        while received < messages and time.monotonic() < deadline:
            progress(f"warming the broker: {received} of {messages} messages came back")
            producer.poll(0)
            received += _count(consumer.consume(500, 0.1))
    finally:
        consumer.close()
        producer.purge()
        producer.flush(1.0)
        broker.delete_topics([WARM_TOPIC])


def _count(records: list[Any]) -> int:
    return sum(record.error() is None for record in records)


def _read_tail(log: Path | None, lines: int = 20) -> str:
    if log is None:
        return ""
    with contextlib.suppress(OSError):
        return tail(log.read_text(errors="replace"), lines)
    return ""
