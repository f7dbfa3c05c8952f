"""Where requests come in and where they go: addresses as people and the OpenTelemetry specification write them.

The next hop is named by ``--forward``, else ``[sidecar] forward``, else ``OTEL_EXPORTER_OTLP_*``, which exporters of
every language already understand. That environment usually names *this sidecar*, since it was put in the exporters'
way; a sidecar that took it for its own next hop would send every request to itself, each time with one more
connection. So a destination is compared with the listeners' own addresses, after resolution, before it is used.

Schemes: ``grpc://``, ``grpcs://`` (port 4317 unless given), ``grpc+unix:///path`` (a Unix socket), ``http://``,
``https://`` (80 and 443, as for any URL; ``/v1/traces`` and its like are appended), ``kafka://`` (brokers with commas
between, port 9092; the traces' topic as path, the others' as query). From the environment: the endpoints (per signal
too), protocol, headers, timeout (milliseconds, as specified), compression, certificate, client key and client
certificate; all but endpoint and protocol also apply to a next hop given by other means. With no protocol given,
``http/protobuf`` as specified, except towards port 4317, which is registered for gRPC.

Limits: a loop through a second sidecar or a load balancer is not seen here. Pure: resolution is the caller's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from skewd.ports import format_address, split_address
from skewd_sidecar.gateway import Signal

TIMEOUT_S = 10.0
"""How long the next hop may take, unless the environment says otherwise: the specification's default."""

MAX_BYTES = {"grpc": 4 * 1024 * 1024, "http": 0, "kafka": 1_000_000}
"""The largest request that receivers take by default: gRPC's libraries; no common limit; Kafka's clients."""

CONNECT_S = 3.0
"""How long a connection to the next hop may take to be made: a first packet that is lost is sent again after 1 s."""

AGE_S = 300.0
"""How old a connection to the next hop gets before another takes its place: names may have moved meanwhile."""

HOPS_MAX = 64
KAFKA_TOPICS = {
    Signal.TRACES: "otlp_spans",
    Signal.METRICS: "otlp_metrics",
    Signal.LOGS: "otlp_logs",
    Signal.PROFILES: "otlp_profiles",
}
"""Topics unless others are named: those of the OpenTelemetry Collector's Kafka exporter and receiver."""

_UNIX = "grpc+unix://"
_UNIX_PATH_MAX_BYTES = 107
_KAFKA_PORT = 9092
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_ENV = "OTEL_EXPORTER_OTLP_"


class EndpointError(ValueError):
    """An address that cannot be used; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Destination:
    """The next hop of one signal.

    Attributes:
        protocol: ``grpc`` or ``http``.
        secure: whether TLS is spoken.
        host, port: where; for a Unix socket its absolute path, and 0.
        path: of the request, for HTTP.
        headers: sent with every request, names in lower case.
        timeout_s: limit for one request.
        gzip: whether requests are compressed.
        max_bytes: the largest request it takes, not compressed; 0 for no known limit.
        brokers: for Kafka, all of them: ``host:port``, with commas between.
        topic: for Kafka.
        connect_s: limit for one connection to be made.
        age_s: how old a connection gets.
        certificate, client_key, client_certificate: PEM files; None for the system's roots, and no client side.
    """

    protocol: str
    secure: bool
    host: str
    port: int
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = TIMEOUT_S
    gzip: bool = False
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None
    max_bytes: int = 0
    brokers: str = ""
    topic: str = ""
    connect_s: float = CONNECT_S
    age_s: float = AGE_S

    @property
    def unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.host.startswith("/")

    @property
    def target(self) -> str:
        """``host:port``, an IPv6 address in brackets; ``unix:/path``."""
        return f"unix:{self.host}" if self.unix else format_address(self.host, self.port)

    def __str__(self) -> str:
        if self.protocol == "kafka":
            return f"kafka://{self.brokers}/{self.topic}"
        if self.unix:
            return f"{_UNIX}{self.host}"
        return f"{self.protocol}{'s' if self.secure else ''}://{self.target}{self.path}"


def destinations(forward: str | None, environment: Mapping[str, str]) -> dict[Signal, Destination]:
    """The next hop of each signal; a signal that has none is left out.

    Args:
        forward: an address with its scheme; None to take the environment's.
        environment: for ``OTEL_EXPORTER_OTLP_*``.

    Raises:
        EndpointError: no next hop at all, or one that cannot be used.
    """
    found = {}
    for signal in Signal:
        destination = _named(forward, signal) if forward else _from_environment(environment, signal)
        if destination is not None:
            found[signal] = _with_environment(destination, environment, signal)
    if not found:
        raise EndpointError(
            "nowhere to forward to; give --forward grpc://HOST:4317 (or grpcs, http, https), "
            "[sidecar] forward, or OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return found


def next_hops(
    forward: str | Sequence[str] | None,
    environment: Mapping[str, str],
    max_bytes: int = 0,
    connect_s: float = CONNECT_S,
    age_s: float = AGE_S,
) -> dict[Signal, tuple[Destination, ...]]:
    """The next hops of each signal; a signal that has none is left out.

    Args:
        forward: one address with its scheme, or several; none to take the environment's.
        environment: for ``OTEL_EXPORTER_OTLP_*``.
        max_bytes: the largest request they take; 0 for what is usual: ``MAX_BYTES`` of the protocol.
        connect_s: how long a connection may take to be made.
        age_s: how old it gets.

    Raises:
        EndpointError: no next hop at all, or one that cannot be used.
    """
    several: list[str | None] = [forward] if forward is None or isinstance(forward, str) else [*forward] or [None]
    if len(several) > HOPS_MAX:
        raise EndpointError(f"forward: there are {len(several)} addresses; at most {HOPS_MAX}")
    found: dict[Signal, list[Destination]] = {}
    for each in several:
        for signal, destination in destinations(each, environment).items():
            known = found.setdefault(signal, [])
            destination = replace(
                destination,
                max_bytes=max_bytes or MAX_BYTES[destination.protocol],
                connect_s=connect_s,
                age_s=age_s,
            )
            if destination in known:
                raise EndpointError(f"forward: '{each}' is given twice; remove one")
            known.append(destination)
    return {signal: tuple(each) for signal, each in found.items()}


def _split(text: str, origin: str, schemes: tuple[str, ...]) -> tuple[SplitResult, str, int | None]:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise EndpointError(f"{origin}: '{text}' is not an address: {error}") from None
    if url.scheme not in schemes or not host or "://" not in text:
        example = "grpc://collector:4317" if "grpc" in schemes else "http://collector:4318"
        raise EndpointError(f"{origin}: '{text}' is not an address this can send to; write for example {example}")
    if url.username is not None or url.query or url.fragment:
        raise EndpointError(f"{origin}: '{text}' has a user, query or fragment; give credentials in {_ENV}HEADERS")
    return url, host, port


def _named(forward: str, signal: Signal) -> Destination:
    if forward.startswith("kafka://"):
        return _kafka(forward, signal)
    if forward.startswith(_UNIX):
        path = forward.removeprefix(_UNIX)
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > _UNIX_PATH_MAX_BYTES:
            raise EndpointError(
                f"forward: '{forward[:200]}' is not a Unix socket's address; write {_UNIX} and an absolute path of at "
                f"most {_UNIX_PATH_MAX_BYTES} bytes, as {_UNIX}/run/otlp.sock"
            )
        return Destination("grpc", False, path, 0)
    url, host, port = _split(forward, "forward", ("grpc", "grpcs", "http", "https"))
    path = url.path.rstrip("/")
    if url.scheme.startswith("grpc"):
        if path:
            raise EndpointError(f"forward: '{forward}' has a path, which gRPC does not use; leave '{path}' out")
        return Destination("grpc", url.scheme == "grpcs", host, port or 4317)
    for each in Signal:
        if path.endswith(each.http_path):
            base = forward[: forward.rindex(each.http_path)]
            raise EndpointError(f"forward: '{forward}' names one signal's path, which is appended here; write {base}")
    secure = url.scheme == "https"
    return Destination("http", secure, host, port or (443 if secure else 80), path + signal.http_path)


def _kafka(forward: str, signal: Signal) -> Destination:
    """``kafka://host:port,host:port/topic?metrics=topic&logs=topic``; the path's topic is the traces'."""
    url = urlsplit(forward)
    example = "kafka://broker:9092/otlp_spans"
    brokers = []
    for each in url.netloc.split(","):
        try:
            brokers.append(split_address(each, _KAFKA_PORT))
        except ValueError as error:
            raise EndpointError(f"forward: '{forward}': {error}; write for example {example}") from None
    if "@" in url.netloc or url.fragment or not all(host for host, _ in brokers):
        raise EndpointError(
            f"forward: '{forward}' is not an address of brokers; write for example {example}, and credentials in "
            "[sidecar] kafka_properties"
        )
    topics = {str(each): topic for each, topic in KAFKA_TOPICS.items()}
    if path := url.path.strip("/"):
        topics["traces"] = path
    for name, topic in parse_qsl(url.query, keep_blank_values=True):
        if name not in topics:
            raise EndpointError(f"forward: '{forward}': '{name}' is no signal; choose from {', '.join(topics)}")
        topics[name] = topic
    for topic in topics.values():
        if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            raise EndpointError(f"forward: '{topic}' is no topic's name; use letters, digits, '.', '_' or '-'")
    host, port = brokers[0]
    return Destination(
        "kafka",
        False,
        host,
        port,
        brokers=",".join(format_address(*each) for each in brokers),
        topic=topics[signal],
    )


def _setting(environment: Mapping[str, str], signal: Signal, name: str) -> tuple[str, str] | None:
    """The variable that rules for this signal and its value; an empty one is as good as none."""
    for variable in (f"{_ENV}{signal.name}_{name}", f"{_ENV}{name}"):
        value = environment.get(variable, "").strip()
        if value:
            return variable, value
    return None


def _from_environment(environment: Mapping[str, str], signal: Signal) -> Destination | None:
    setting = _setting(environment, signal, "ENDPOINT")
    if setting is None:
        return None
    variable, text = setting
    protocol = _setting(environment, signal, "PROTOCOL")
    if "://" not in text and protocol is not None and protocol[1] == "grpc":
        insecure = _setting(environment, signal, "INSECURE")
        text = ("http://" if insecure is not None and insecure[1].lower() == "true" else "https://") + text
    url, host, port = _split(text, variable, ("http", "https"))
    secure = url.scheme == "https"
    spoken = protocol[1] if protocol is not None else "grpc" if port == 4317 else "http/protobuf"
    if spoken == "grpc":
        return Destination("grpc", secure, host, port or 4317)
    if spoken != "http/protobuf":
        assert protocol is not None
        raise EndpointError(f"{protocol[0]}: '{spoken}' is not spoken here; write grpc or http/protobuf")
    path = url.path if variable == f"{_ENV}{signal.name}_ENDPOINT" else url.path.rstrip("/") + signal.http_path
    return Destination("http", secure, host, port or (443 if secure else 80), path or "/")


def _with_environment(destination: Destination, environment: Mapping[str, str], signal: Signal) -> Destination:
    headers: dict[str, str] = {}
    timeout_s = TIMEOUT_S
    setting = _setting(environment, signal, "HEADERS")
    if setting is not None:
        for pair in setting[1].split(","):
            name, equals, value = pair.partition("=")
            if not pair.strip():
                continue
            if not equals or not name.strip():
                raise EndpointError(f"{setting[0]}: '{name.strip()}' has no value; write name=value,name=value")
            name, value = unquote(name.strip()).lower(), unquote(value.strip())
            if not _HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise EndpointError(f"{setting[0]}: '{name[:80]}' is not a header of printable ASCII; mend it")
            headers[name] = value
    setting = _setting(environment, signal, "TIMEOUT")
    if setting is not None:
        if not setting[1].isascii() or not setting[1].isdecimal() or int(setting[1]) == 0:
            raise EndpointError(f"{setting[0]}: '{setting[1]}' is not a number of milliseconds; write 10000 for 10 s")
        timeout_s = int(setting[1]) / 1000
    setting = _setting(environment, signal, "COMPRESSION")
    if setting is not None and setting[1] not in ("gzip", "none"):
        raise EndpointError(f"{setting[0]}: '{setting[1]}' is not offered; write gzip or none")
    files = {name: _setting(environment, signal, name.upper()) for name in _FILES}
    certificate, client_key, client_certificate = (None if s is None else s[1] for s in files.values())
    return replace(
        destination,
        headers=tuple(headers.items()),
        timeout_s=timeout_s,
        gzip=setting is not None and setting[1] == "gzip",
        certificate=certificate,
        client_key=client_key,
        client_certificate=client_certificate,
    )


_FILES = ("certificate", "client_key", "client_certificate")


def reached_listener(
    addresses: Iterable[str], port: int, listeners: Iterable[tuple[str, int]], own_addresses: Iterable[str]
) -> tuple[str, int] | None:
    """The listener that a destination would reach, None if it leads elsewhere.

    Args:
        addresses: what the destination's host resolves to.
        port: the destination's.
        listeners: addresses (numeric) and ports listened on.
        own_addresses: this host's, which a listener on 0.0.0.0 or :: answers to.
    """
    targets = {_numeric(address) for address in addresses}
    own = {_numeric(address) for address in own_addresses}
    for host, listening in listeners:
        if listening != port:
            continue
        here = _numeric(host)
        for target in targets:
            if target == here or (target.is_unspecified and here.is_loopback):
                return host, listening
            if here.is_unspecified and (target.is_loopback or target.is_unspecified or target in own):
                return host, listening
    return None


def _numeric(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    value = ipaddress.ip_address(address.partition("%")[0])
    return (value.ipv4_mapped or value) if isinstance(value, ipaddress.IPv6Address) else value
