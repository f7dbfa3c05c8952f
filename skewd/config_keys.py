"""Every key of the configuration, said once: its type, its default, how it is written and within which limits.

The reader (``config.py``), the environment's names, ``config show`` and the messages for mistakes are all derived
from these classes, so a key is added by adding a field. Durations are whole nanoseconds under the key's own name.
What may only be known from several keys together is the reader's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from skewd.lean import msgspec
from skewd.ports import is_loopback, split_address
from skewd.written import (
    FORWARD,
    HEADERS_MAX,
    INTAKE,
    LISTEN,
    NODE_NAME,
    PATH,
    PLAIN,
    PREFIX,
    TOPIC,
    Written,
    choice,
    duration,
    many,
    parse_header,
    parse_link_peer,
    parse_peer,
    parse_reference,
    whole,
)


def default_node_name() -> str:
    """The host's name, with what a node name cannot hold replaced by '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:63]
    return name if name.strip("-.") else "node"


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[node]``: who this is, and where it keeps its socket and its memory."""

    name: Annotated[str, NODE_NAME] = msgspec.field(default_factory=default_node_name)
    runtime_dir: Annotated[Path, PATH] = Path("/run/skewd")
    state_dir: Annotated[Path, PATH] = Path("/var/lib/skewd")


class ClockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[clock]``: what this node's oscillator is declared to keep within, and when a bound is too wide to be used."""

    max_drift_ppm: Annotated[int, whole(1, 100_000)] = 100
    max_wander_ppb_per_s: Annotated[int, whole(1, 1_000_000)] = 10
    max_uncertainty: Annotated[int, duration("1us", "1h")] = 1_000_000_000
    """Nanoseconds; a bound with a larger uncertainty counts as unsynchronized."""
    drift_over_reboot: bool = False
    """Whether this oscillator keeps to its limit on wander while the machine is off and warms up (``resume.py``)."""


POOL_MAX = 16
"""Servers of one pool at most."""


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[source]]``: something that tells UTC."""

    type: Annotated[str, choice("ntp", "chrony", "ptp", "phc", "kernel")]
    name: Annotated[str, PLAIN] = ""
    """Never empty: the type and address when none is given."""
    address: Annotated[str | None, PLAIN] = None
    """``host:port`` for ntp (123 is added); a socket or device path, or None for the usual one, for the others."""
    interval: Annotated[int, duration("100ms", "24h")] = 0
    """Nanoseconds; never 0: when not given, 16 s for ntp and 1 s for the others, which are on this machine."""
    smear: bool = False
    """Whether this source smears leap seconds; smeared and unsmeared sources are never mixed."""
    prefer: bool = False
    """Whether it decides where exactly half of the sources agree; it changes nothing where more than half do."""
    pool: bool = False
    """ntp only: several of the name's addresses are asked, each a source of its own (``slots``)."""
    pool_size: Annotated[int, whole(2, POOL_MAX)] = 4
    """How many addresses of a pool are asked; it counts as that many configured sources."""
    allow_local: bool = False
    """Whether it is believed though it follows its own clock: for closed networks whose UTC that clock is."""

    def slots(self) -> tuple[SourceConfig, ...]:
        """The sources that this entry stands for: itself, or one for each server of a pool, named ``name#1`` on."""
        if not self.pool:
            return (self,)
        return tuple(
            msgspec.structs.replace(self, name=f"{self.name}#{number}") for number in range(1, self.pool_size + 1)
        )

    def __post_init__(self) -> None:
        if not self.interval:
            msgspec.structs.force_setattr(self, "interval", 16_000_000_000 if self.type == "ntp" else 1_000_000_000)
        if not self.name:
            msgspec.structs.force_setattr(self, "name", f"{self.type}:{self.address}" if self.address else self.type)


class UtcConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[utc]``: when the sources together say what UTC is."""

    min_sources: Annotated[int | None, Written(kind=int, parse=whole(1, 64).parse)] = None
    """How many sources must agree; more than half of those configured when not given."""


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[mesh]``: the peers, and how they are measured over UDP."""

    listen: Annotated[str | None, LISTEN] = ""
    """``host:port``; port 0 picks one; None (written ``"off"``) for no UDP. Never empty: when not given, see
    :func:`usual_listen`."""
    key_file: Annotated[Path | None, PATH] = None
    key: Annotated[str | None, choice("none")] = None
    """``none``: the configuration says in words that this mesh has no key; on loopback only."""
    peers: Annotated[tuple[str, ...], many(parse_peer)] = ()
    dns: Annotated[str | None, Written(kind=str, parse=parse_peer)] = None
    """``name:port``; every address of the name is a peer, this node's own excepted."""
    interval: Annotated[int, duration("10ms", "1h")] = 1_000_000_000
    """Nanoseconds between exchanges with a peer."""
    fanout: Annotated[int, whole(1, 64)] = 8
    """How many of the known members are measured directly, the reference besides."""
    oldest_protocol: Annotated[int, whole(2, 3)] = 2
    """The oldest version of the mesh protocol that is believed of nodes that never spoke a newer one."""
    liars: Annotated[int, whole(0, 8)] = 1
    """How many members may lie without harm: what others say counts when one more than this say it."""
    reference: Annotated[str, Written(kind=str, parse=parse_reference)] = "auto"
    """``auto``, ``utc``, or a node's bare name (``node:x`` may be written too)."""

    def __post_init__(self) -> None:
        if self.listen == "":
            msgspec.structs.force_setattr(self, "listen", usual_listen(self.peers, self.dns, self.key_file))


MESH_PORT = 9957


def usual_listen(peers: Sequence[str], dns: str | None, key_file: Path | None) -> str | None:
    """Where a node listens that was not told where: nowhere unless a peer is named.

    With a key on every interface, since the peers ask from wherever they are; without one, or where each peer is on
    this machine, on loopback. IPv6 is listened on (and IPv4 besides, on the same socket) where a peer is written so.
    """
    if not peers and dns is None:
        return None
    hosts = [split_address(peer)[0] for peer in (*peers, *(() if dns is None else (dns,)))]
    six = any(":" in host for host in hosts)
    if key_file is None or all(is_loopback(host) for host in hosts):
        return f"[::1]:{MESH_PORT}" if six else f"127.0.0.1:{MESH_PORT}"
    return f"[::]:{MESH_PORT}" if six else f"0.0.0.0:{MESH_PORT}"


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[link]]``: a transport that carries the work and, in-band, the clock messages."""

    transport: Annotated[str, choice("zmq", "kafka", "aeron")]
    address: Annotated[str, PLAIN]
    """zmq: ``tcp://host:port`` or ``ipc://path`` that the daemon binds; kafka: the bootstrap ``host:port``; aeron: the
    channel to listen on."""
    topic: Annotated[str | None, TOPIC] = None
    """kafka only, where it is required."""
    peers: Annotated[tuple[str, ...], many(parse_link_peer)] = ()
    """zmq: addresses; kafka: nodes' names; aeron: channels, on a shared channel nodes' names."""
    direction: Annotated[str, choice("both", "send", "receive")] = "both"
    """kafka and aeron: ``send`` or ``receive`` where only one is possible or allowed."""
    stream: Annotated[int | None, Written(kind=int, parse=whole(1, 2**31 - 1).parse)] = None
    """aeron only: the stream id, the same on all nodes; 9957 when not given."""
    directory: Annotated[Path | None, PATH] = None
    """aeron only: of a running media driver; the daemon runs one of its own when not given."""
    properties: Annotated[Path | None, PATH] = None
    """kafka only: a file of client settings for TLS and SASL."""


class SidecarConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[sidecar]``: what is received, what is done to spans, and where they go."""

    grpc: Annotated[str | None, INTAKE] = "127.0.0.1:4317"
    http: Annotated[str | None, INTAKE] = "127.0.0.1:4318"
    """``host:port`` or ``unix:///path``; None (written ``"off"``) for none."""
    tls_certificate: Annotated[Path | None, PATH] = None
    """Of both listeners, PEM; with it TLS is spoken, and nothing else."""
    tls_key: Annotated[Path | None, PATH] = None
    tls_client_ca: Annotated[Path | None, PATH] = None
    """Clients must show a certificate that one of these authorities signed."""
    max_request_bytes: Annotated[int, whole(64 * 1024, 64 * 1024 * 1024)] = 16 * 1024 * 1024
    """Before and after decompression."""
    max_request_records: Annotated[int, whole(1, 1 << 24)] = 65_536
    """Spans or log records in one request."""
    max_request_elements: Annotated[int, whole(1024, 1 << 26)] = 2_097_152
    """What else one request holds: batches, scopes, attributes, events, links; values in JSON."""
    metadata: Annotated[tuple[str, ...], many(parse_header, HEADERS_MAX)] = ()
    """Names of request headers that go on with the request, in lower case."""
    forward: Annotated[str | tuple[str, ...] | None, FORWARD] = None
    balance: Annotated[str, choice("round_robin", "failover")] = "round_robin"
    """How several next hops share the work."""
    retry: Annotated[int, duration("0s", "60s")] = 1_000_000_000
    """Nanoseconds: how long the sidecar itself tries again, within the exporter's time."""
    connect_timeout: Annotated[int, duration("10ms", "60s")] = 3_000_000_000
    """Nanoseconds: how long a connection to a next hop may take to be made."""
    attempt_timeout: Annotated[int, duration("10ms", "60s")] = 2_000_000_000
    """Nanoseconds: how long a next hop may be silent before a request is sent to another one."""
    connection_age: Annotated[int, duration("1s", "24h")] = 300_000_000_000
    """Nanoseconds: how old a connection to a next hop gets before another takes its place."""
    forward_max_bytes: Annotated[int | None, whole(4096, 1 << 30)] = None
    """The largest request the next hop takes; what is usual for its protocol when not given."""
    max_bytes: Annotated[int, whole(1 << 20, 1 << 40)] = 128 << 20
    """Memory for requests under way."""
    dead_letter: Annotated[Path | None, PATH] = None
    """A file for requests that the next hop refused for good; nowhere by default."""
    dead_letter_max_bytes: Annotated[int, whole(1 << 16, 1 << 40)] = 64 << 20
    kafka_properties: Annotated[Path | None, PATH] = None
    """A file of the Kafka client's settings for TLS and SASL."""
    mode: Annotated[str, choice("off", "tag", "rewrite")] = "tag"
    stamps: Annotated[str, choice("unknown", "wall")] = "unknown"
    """``wall`` if the applications are known to read the wall clock at both ends of a span."""
    keep_original: bool = True
    attributes: Annotated[str, choice("span", "resource", "minimal")] = "span"
    """Where attributes go: all on each span; what a batch has in common on its Resource; or that, and no originals."""
    incoming: Annotated[str, choice("trust", "replace")] = "trust"
    """What becomes of attributes under our names that arrive: believed, or removed."""
    kernel: Annotated[str, choice("auto", "native", "python")] = "auto"
    """What patches: ``auto`` is the native kernel where it is installed."""
    attribute_prefix: Annotated[str, PREFIX] = "clock."
    transport: Annotated[str, choice("auto", "native", "python")] = "auto"
    """Who speaks gRPC: the native extension where it is installed and fits, it alone, or gRPC's own library."""


class SpoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[spool]``: where spans wait on disk while the collector is away; nowhere by default."""

    path: Annotated[Path | None, PATH] = None
    max_bytes: Annotated[int, whole(1 << 20, 1 << 40)] = 256 << 20


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[metrics]``: Prometheus, health and the page."""

    listen: Annotated[str | None, LISTEN] = "127.0.0.1:9956"


class CheckConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[check]``: the thresholds of ``skewd check``, nanoseconds."""

    warning: Annotated[int, duration("1ns", "24h")] = 1_000_000
    critical: Annotated[int, duration("1ns", "24h")] = 3_000_000


class ClockBoundConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[clockbound]``: shared memory that AWS's ClockBound clients read."""

    enabled: bool = False
    directory: Annotated[Path, PATH] = Path("/var/run/clockbound")


class DisciplineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[discipline]``: whether this daemon steers the clock; it never does unless told to."""

    mode: Annotated[str, choice("off", "slew")] = "off"


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[log]``: to standard error."""

    level: Annotated[str, choice("debug", "info", "warning", "error")] = "info"
    format: Annotated[str, choice("text", "json")] = "text"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything, in force. Durations are nanoseconds, paths absolute. ``Config()`` is what an empty file gives."""

    node: NodeConfig = msgspec.field(default_factory=NodeConfig)
    clock: ClockConfig = ClockConfig()
    source: tuple[SourceConfig, ...] = ()
    utc: UtcConfig = UtcConfig()
    mesh: MeshConfig = MeshConfig()
    link: tuple[LinkConfig, ...] = ()
    sidecar: SidecarConfig = SidecarConfig()
    spool: SpoolConfig = SpoolConfig()
    metrics: MetricsConfig = MetricsConfig()
    check: CheckConfig = CheckConfig()
    clockbound: ClockBoundConfig = ClockBoundConfig()
    discipline: DisciplineConfig = DisciplineConfig()
    log: LogConfig = LogConfig()

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """Every source of UTC that is configured, the servers of pools one by one."""
        return tuple(slot for source in self.source for slot in source.slots())

    @property
    def meshed(self) -> bool:
        """Whether this node measures others, or lets itself be measured."""
        mesh = self.mesh
        return mesh.listen is not None or bool(mesh.peers) or mesh.dns is not None or bool(self.link)

    @property
    def keyless(self) -> bool:
        """Whether it does so without a key: whoever is on this machine could speak as a peer."""
        return self.meshed and self.mesh.key_file is None

    @property
    def socket_path(self) -> Path:
        """The Unix socket that the daemon answers on."""
        return self.node.runtime_dir / "skewd.sock"

    @property
    def evidence_path(self) -> Path:
        """The socket where the daemon's own user gets evidence; as long a name as the other one's."""
        return self.node.runtime_dir / "proof.sock"

    @property
    def segment_path(self) -> Path:
        """The shared memory that the daemon publishes bounds in."""
        return self.node.runtime_dir / "clock.shm"


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeConfig,
    "clock": ClockConfig,
    "source": SourceConfig,
    "utc": UtcConfig,
    "mesh": MeshConfig,
    "link": LinkConfig,
    "sidecar": SidecarConfig,
    "spool": SpoolConfig,
    "metrics": MetricsConfig,
    "check": CheckConfig,
    "clockbound": ClockBoundConfig,
    "discipline": DisciplineConfig,
    "log": LogConfig,
}
TABLES = ("source", "link")
"""Sections that may be written several times, as ``[[source]]``."""
