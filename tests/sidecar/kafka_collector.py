"""A real OpenTelemetry Collector at both sides of Kafka: its Kafka receiver behind the sidecar's topics, and its Kafka
exporter, whose messages the sidecar's are to be like.

Built once, with Go, by the Collector's own builder of ``collector/builder.yaml`` into ``build/otelcol/``:
``make test-neighbours`` does it, at low priority, and it takes about a minute of processor time. ``make test`` uses it
where it is. The receiver's configuration is the one that docs/operations.md tells users to take, read from there.

Limits: what differs from the documentation is in ``collector/from_kafka.yaml``: addresses, topics, and waits.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.sidecar import targets
from skewd_sidecar.gateway import Signal

HERE = Path(__file__).parent / "collector"
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
VERSION = re.findall(r"^  version: (\S+)$", (HERE / "builder.yaml").read_text(), re.MULTILINE)[0]
BINARY = targets.collector_binary(HERE / "builder.yaml")


def build() -> Path:
    """The binary, built if it is not there.

    Raises:
        RuntimeError: there is no Go, or it could not build it.
    """
    try:
        return targets.build_collector(plan=HERE / "builder.yaml")
    except targets.NoCollector as problem:
        raise RuntimeError(str(problem)) from None


def documented() -> str:
    """The receiver's configuration in docs/operations.md."""
    (text,) = re.findall(
        r"^```yaml\n(receivers:\n  kafka:\n.*?)^```$", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(text)


def _environment(broker: str, topics: Mapping[Signal, str], **more: str) -> dict[str, str]:
    named = {f"TEST_{signal.name}": topics[signal] for signal in (Signal.TRACES, Signal.METRICS, Signal.LOGS)}
    return targets.clean_environment(TEST_BROKER=broker, **named, **more)


@contextlib.contextmanager
def from_kafka(broker: str, topics: Mapping[Signal, str], to: str, scratch: Path) -> Iterator[Callable[[], None]]:
    """One that reads ``topics`` and sends on to ``to`` (host:port, gRPC). It is started, not waited for.

    Yields what raises, with its words, if it has ended.
    """
    told = scratch / "documented.yaml"
    told.write_text(documented())
    words = [str(BINARY), "--config", f"file:{told}", "--config", f"file:{HERE / 'from_kafka.yaml'}"]
    with targets.process(words, _environment(broker, topics, TEST_OUT=to), "the Collector") as child:

        def check() -> None:
            if child.poll() is not None:
                raise targets.Broken(f"the Collector ended ({child.returncode})")

        yield check


@contextlib.contextmanager
def to_kafka(broker: str, topics: Mapping[Signal, str]) -> Iterator[str]:
    """One that writes what it is sent into ``topics``; where it takes it (``grpc://``), once it does."""
    port = targets.free_port()
    env = _environment(broker, topics, TEST_IN=f"127.0.0.1:{port}")
    words = [str(BINARY), "--config", f"file:{HERE / 'to_kafka.yaml'}"]
    with targets.process(words, env, "the Collector") as child:
        limit = time.monotonic() + targets.STARTED_LIMIT_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if child.poll() is not None or time.monotonic() > limit:
                raise targets.Broken("the Collector did not listen")
            time.sleep(0.05)
        yield f"grpc://127.0.0.1:{port}"
