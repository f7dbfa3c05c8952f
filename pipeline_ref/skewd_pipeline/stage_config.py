"""What ``skewd experiment stage NAME --config FILE`` is told: one file that is the same on every host.

The problem: five processes on three hosts must agree on the transport, on who listens where and on the work, and a
difference between two files is found late and far away. The insight: one file has all of it, and the stage's name, on
the command line, says which part a process takes. What differs between hosts (an address to bind, the sidecar) may be
said per stage, and has a default that is right when every host is set up alike.

Skew comes from the hosts' clocks, whatever they are. ``stamp_offset`` is the other way, that of experiments which add
a number to the stamps that the application makes (arXiv 2604.21361): then every clock is right, the stamps are not,
and no clock tool can see it, let alone cure it. It is here to reproduce such figures, and says so when it is used.

```toml
run = "monday"                                  # a name of its own for each: on every span, and in Kafka's topics
[pipeline]
transport = "zmq"                               # zmq, kafka, aeron
messages = 1000
rate = 40.0                                     # a second
service_floor = "3.5ms"
seed = 1
idle_limit = "60s"                              # who hears nothing for so long ends with what it has
[telemetry]
otlp = "http://127.0.0.1:4318"                  # this host's sidecar; "off" for none
[work]
items = "items"                                 # the files and their labels; made where missing, the same from one seed
[results]
directory = "results"                           # NAME.json
collect = "0.0.0.0:4320"                        # the consumer's: where all sidecars forward to; counts violations
[hops.preprocess]                               # the hop into that stage; likewise inference, postprocess, consumer
endpoint = "tcp://10.0.0.2:5551"                # zmq: where others reach it
[stages.inference]                              # what differs on that stage's host
otlp = "http://127.0.0.1:4318"
listen = "tcp://0.0.0.0:5552"                   # zmq: what it binds, when that is not its endpoint
daemon_link = "ipc:///run/skewd/link.sock"      # its daemon's zmq link, for in-band clock messages
stamp_offset = "-5ms"
```

Kafka: ``[kafka] bootstrap``, ``topic_prefix``, ``clients``. Aeron: ``[aeron] directory`` (or per stage
``aeron_directory``), and per hop ``channel`` and ``back_channel`` (``aeron:udp?endpoint=HOST:PORT``).

Limits: pure but for `load`. A file of at most ``MAX_FILE_BYTES``. ZeroMQ and Aeron are not encrypted here.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from skewd.durations import parse_duration_ns
from skewd.ports import split_address
from skewd_pipeline.options import (
    MESSAGES_MAX,
    RATE_MAX,
    SERVICE_FLOOR_MAX_NS,
    STAGES,
)
from skewd_pipeline.transports.base import HopConfig, KafkaClients, TransportName

MAX_FILE_BYTES = 64 << 10
IDLE_LIMIT_MAX_NS = 3_600_000_000_000
STAMP_OFFSET_MAX_NS = 3_600_000_000_000
FIRST_STREAM = 1000
_RUN = re.compile(r"[A-Za-z0-9._-]{1,60}")


class StageConfigError(ValueError):
    """The file cannot be used; the message names it, the key, and what to write."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class PipelineTable(_Strict, frozen=True):
    """``[pipeline]``."""

    transport: TransportName
    messages: int = 1000
    rate: float = 40.0
    service_floor: str = "3.5ms"
    seed: int = 1
    idle_limit: str = "60s"


class TelemetryTable(_Strict, frozen=True):
    """``[telemetry]``."""

    otlp: str = "http://127.0.0.1:4318"


class WorkTable(_Strict, frozen=True):
    """``[work]``."""

    items: str = "items"
    model: str | None = None


class ResultsTable(_Strict, frozen=True):
    """``[results]``."""

    directory: str = "results"
    collect: str | None = None


class KafkaTable(_Strict, frozen=True):
    """``[kafka]``."""

    bootstrap: str
    topic_prefix: str = "skewd-experiment"
    clients: KafkaClients = "latency"


class AeronTable(_Strict, frozen=True):
    """``[aeron]``."""

    directory: str


class HopTable(_Strict, frozen=True):
    """``[hops.STAGE]``: the hop into that stage."""

    endpoint: str | None = None
    channel: str | None = None
    back_channel: str | None = None


class StageTable(_Strict, frozen=True):
    """``[stages.STAGE]``: what differs there."""

    otlp: str | None = None
    listen: str | None = None
    aeron_directory: str | None = None
    daemon_link: str | None = None
    stamp_offset: str = "0ms"


class StageFile(_Strict, frozen=True):
    """The whole file."""

    pipeline: PipelineTable
    run: str = "run"
    telemetry: TelemetryTable = TelemetryTable()
    work: WorkTable = WorkTable()
    results: ResultsTable = ResultsTable()
    kafka: KafkaTable | None = None
    aeron: AeronTable | None = None
    hops: dict[Literal["preprocess", "inference", "postprocess", "consumer"], HopTable] = {}
    stages: dict[Literal["producer", "preprocess", "inference", "postprocess", "consumer"], StageTable] = {}

    def stage(self, name: str) -> StageTable:
        """What is said of this stage, if anything."""
        return next((table for each, table in self.stages.items() if each == name), StageTable())

    def hop_into(self, downstream: str) -> HopTable:
        """What is said of the hop into this stage, if anything."""
        return next((table for each, table in self.hops.items() if each == downstream), HopTable())


@dataclass(frozen=True, slots=True)
class OneStage:
    """What one stage needs of the file.

    Attributes:
        inbox: the hop from the stage before; None for the producer.
        outbox: the hop to the stage after; None for the consumer.
        otlp: OTLP/HTTP base address; None: no spans are exported.
        collect: the consumer's: ``host:port`` where everybody's spans arrive in the end.
    """

    name: str
    run: str
    inbox: HopConfig | None
    outbox: HopConfig | None
    messages: int
    rate: float
    floor_ns: int
    seed: int
    idle_limit_s: float
    otlp: str | None
    stamp_offset_ns: int
    items: Path
    model: str | None
    results: Path
    collect: str | None


def load(path: Path, name: str) -> OneStage:
    """Reads the file for one stage.

    Raises:
        StageConfigError: it cannot be read, or says what cannot be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StageConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise StageConfigError(f"{path} is longer than {MAX_FILE_BYTES} bytes; is it the right file?")
    try:
        return parse(content.decode(), name, path.parent)
    except (ValueError, UnicodeDecodeError) as error:
        raise StageConfigError(f"{path}: {error}") from None


def parse(text: str, name: str, base: Path = Path()) -> OneStage:
    """One stage's part of the file; relative paths are relative to ``base``, the file's directory.

    Raises:
        ValueError: what is wrong, where, and what to write.
    """
    if name not in STAGES:
        raise ValueError(f"'{name[:40]}' is no stage; choose {', '.join(STAGES[:-1])} or {STAGES[-1]}")
    try:
        told = msgspec.convert(tomllib.loads(text), StageFile)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}; see docs/experiment.md") from None
    if not _RUN.fullmatch(told.run):
        raise ValueError(f"run: '{told.run[:80]}' is no name; use letters, digits, '.', '_' and '-', at most 60")
    pipeline, own = told.pipeline, told.stage(name)
    if not 1 <= pipeline.messages <= MESSAGES_MAX:
        raise ValueError(f"[pipeline] messages: {pipeline.messages} is not between 1 and {MESSAGES_MAX}")
    if not 0 < pipeline.rate <= RATE_MAX:
        raise ValueError(f"[pipeline] rate: {pipeline.rate:g} is not between 0 and {RATE_MAX:g} messages per second")
    otlp = told.telemetry.otlp if own.otlp is None else own.otlp
    if otlp != "off" and not otlp.startswith(("http://", "https://")):
        raise ValueError(f"otlp: '{otlp[:80]}' is no OTLP/HTTP address; write http://127.0.0.1:4318, or off")
    if told.results.collect is not None:
        split_address(told.results.collect)
    floor_ns = _duration("[pipeline] service_floor", pipeline.service_floor, 0, SERVICE_FLOOR_MAX_NS)
    idle_ns = _duration("[pipeline] idle_limit", pipeline.idle_limit, 1_000_000, IDLE_LIMIT_MAX_NS)
    hops = {pair: _hop(told, *pair, at=name) for pair in pairwise(STAGES) if name in pair}
    return OneStage(
        name=name,
        run=told.run,
        inbox=next((hop for (_, downstream), hop in hops.items() if downstream == name), None),
        outbox=next((hop for (upstream, _), hop in hops.items() if upstream == name), None),
        messages=pipeline.messages,
        rate=pipeline.rate,
        floor_ns=floor_ns,
        seed=pipeline.seed,
        idle_limit_s=idle_ns / 1e9,
        otlp=None if otlp == "off" else otlp.rstrip("/"),
        stamp_offset_ns=_duration(
            f"[stages.{name}] stamp_offset", own.stamp_offset, -STAMP_OFFSET_MAX_NS, STAMP_OFFSET_MAX_NS
        ),
        items=base / told.work.items,
        model=told.work.model,
        results=base / told.results.directory / f"{name}.json",
        collect=told.results.collect if name == STAGES[-1] else None,
    )


def _hop(told: StageFile, upstream: str, downstream: str, *, at: str) -> HopConfig:
    """A hop as the stage ``at`` opens it."""
    hop = told.hop_into(downstream)
    own = told.stage(at)
    missing = f"[hops.{downstream}]: the hop into {downstream} needs"
    match told.pipeline.transport:
        case "zmq":
            if hop.endpoint is None:
                raise ValueError(f'{missing} an endpoint; write endpoint = "tcp://HOST:PORT"')
            endpoint = own.listen if at == downstream and own.listen is not None else hop.endpoint
            return HopConfig("zmq", upstream, downstream, endpoint=endpoint, daemon_link=own.daemon_link)
        case "kafka":
            if told.kafka is None:
                raise ValueError('[kafka] is missing; write bootstrap = "HOST:PORT" there')
            # A topic of this run's own is read from its beginning: what was sent before a stage came up is not lost.
            return HopConfig(
                "kafka",
                upstream,
                downstream,
                bootstrap=told.kafka.bootstrap,
                topic=f"{told.kafka.topic_prefix}-{told.run}-{upstream}-{downstream}",
                start_offset=0,
                clients=told.kafka.clients,
            )
        case _:
            directory = own.aeron_directory or (told.aeron.directory if told.aeron is not None else None)
            if directory is None:
                raise ValueError("[aeron] is missing; write directory = the media driver's there")
            if hop.channel is None:
                raise ValueError(f'{missing} a channel; write channel = "aeron:udp?endpoint=HOST:PORT"')
            stream = FIRST_STREAM + 2 * STAGES.index(downstream)
            return HopConfig(
                "aeron",
                upstream,
                downstream,
                directory=directory,
                channel=hop.channel,
                back_channel=hop.back_channel,
                stream=stream,
                daemon_link=own.daemon_link,
            )


def _duration(label: str, text: str, least_ns: int, most_ns: int) -> int:
    try:
        found = parse_duration_ns(text)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    if not least_ns <= found <= most_ns:
        raise ValueError(f"{label}: '{text}' is not between {least_ns / 1e9:g} s and {most_ns / 1e9:g} s")
    return found
