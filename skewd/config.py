"""The configuration: what a person wrote, checked whole, before anything starts.

The problem: a daemon that guards clocks must not run on a guess. A misspelt key that is silently ignored, or a bare
``5`` that one reader takes for seconds and the next for milliseconds, shows up as a wrong bound weeks later.

The insight: say every key once, as a typed field with its default, its limits and how it is written, and derive the
rest from that one statement: reading a file, reading the environment, naming the nearest known key for an unknown
one, and showing what is in force and where it came from. All mistakes of a file are reported together, each with the
file, the key and what to write instead.

Sources, later ones win: defaults, the TOML file, the environment. ``SKEWD_MESH__LISTEN`` is ``[mesh] listen``;
``SKEWD_MESH__PEERS`` and the tables ``SKEWD_SOURCE`` and ``SKEWD_LINK`` are JSON arrays; an empty variable counts as
not set; ``SKEWD_CONFIG`` names the file. Variables without the double underscore are left alone unless they look
like a misspelt key (Kubernetes sets ``SKEWD_SERVICE_HOST`` for a Service of that name).

Limits: a file of at most 1 MiB; 64 sources, 64 links, 1024 peers. Whether a file exists, a port is free or a key can
be read is found out by whoever uses it; the one thing read here is the file itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from skewd.config_keys import (
    SECTIONS,
    TABLES,
    CheckConfig,
    ClockBoundConfig,
    ClockConfig,
    Config,
    DisciplineConfig,
    LinkConfig,
    LogConfig,
    MeshConfig,
    MetricsConfig,
    NodeConfig,
    SidecarConfig,
    SourceConfig,
    SpoolConfig,
    UtcConfig,
)
from skewd.lean import msgspec
from skewd.ports import is_loopback, split_address
from skewd.written import (
    NODE_NAME,
    Duration,
    Written,
    address_parts,
    either,
    exact_duration,
    nearest,
    ntp_address,
    parse_peer,
    zmq_host,
)

__all__ = [
    "DEFAULT_FILE",
    "CheckConfig",
    "ClockBoundConfig",
    "ClockConfig",
    "Config",
    "ConfigError",
    "DisciplineConfig",
    "LinkConfig",
    "Loaded",
    "LogConfig",
    "MeshConfig",
    "MetricsConfig",
    "NodeConfig",
    "Salvaged",
    "SidecarConfig",
    "SourceConfig",
    "SpoolConfig",
    "UtcConfig",
    "exact_duration",
    "how_written",
    "load_config",
    "load_with_origins",
    "not_yet",
    "parse_config",
    "salvage",
    "split_address",
]

DEFAULT_FILE = Path("/etc/skewd/skewd.toml")
FILE_BYTES_MAX = 1 << 20
TABLES_MAX = 64
SOCKET_PATH_BYTES_MAX = 107
"""What Linux allows for the path of a Unix socket."""
PROBLEMS_MAX = 50
_LINES_LEFT_OUT_MAX = 50


class ConfigError(ValueError):
    """A configuration that is refused. ``problems`` has a line for each mistake: where, which key, and the fix."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where it came from."""

    config: Config
    path: Path | None
    """The file, or None when there was none."""
    origins: dict[str, str]
    """Origin of every ``section.key`` (and of ``source`` and ``link`` whole): ``default``, ``file``, or
    ``environment SKEWD_...``."""


def load_config(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Config:
    """The configuration of a file (None: ``SKEWD_CONFIG``, else the default file if it exists) and an environment.

    Raises:
        ConfigError: anything is wrong with it, a named file that does not exist included.
    """
    return load_with_origins(path, env).config


def load_with_origins(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Loaded:
    """As :func:`load_config`, with the origin of every key.

    Raises:
        ConfigError: anything is wrong with it.
    """
    named = path if path is not None else env.get("SKEWD_CONFIG") or None
    file = DEFAULT_FILE if named is None else Path(named)
    said_by = "--config" if path is not None else "SKEWD_CONFIG"
    try:
        with open(file, "rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if named is not None:
            problem = f"{file}: {said_by} names it, and it does not exist; write it or name another"
            raise ConfigError([problem]) from None
        return parse_config(None, None, env)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([f"{file}: cannot be read ({reason}); check its owner and mode"]) from None
    return parse_config(data, file, env)


def parse_config(data: bytes | None, path: Path | None, env: Mapping[str, str]) -> Loaded:
    """The configuration that a file's bytes and an environment give. Pure, but for the host's name.

    Raises:
        ConfigError: with every problem that was found.
    """
    written = _read_toml(data, str(path)) if data is not None else {}
    reading = _Reading()
    place = str(path) if path is not None else "configuration"
    for section, value in written.items():
        reading.section(section, value, place)
    for name in sorted(env):
        reading.variable(name, env[name])
    config = reading.finish()
    return Loaded(config, path, reading.origins)


def _read_toml(data: bytes, file: str) -> dict[str, Any]:
    import tomllib  # only where there is a file: `skewd check` counts milliseconds

    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([f"{file}: larger than {FILE_BYTES_MAX} bytes; is it the right file?"])
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: not UTF-8 text at byte {error.start}; save it as UTF-8"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"{file}: not valid TOML: {error or 'nested too deeply'}; correct that line"]) from None


class Salvaged(NamedTuple):
    """What is right of a configuration that is refused.

    Attributes:
        config: what can be read, and defaults for the rest; rules between keys are not looked at.
        problems: what is wrong, a line for each.
        doubtful: the sections that something is wrong with.
    """

    config: Config
    problems: tuple[str, ...]
    doubtful: frozenset[str]


def salvage(path: str | os.PathLike[str] | None, env: Mapping[str, str], error: ConfigError) -> Salvaged:
    """For commands that only ask a running daemon: its socket is found whatever else is wrong with the configuration.

    Args:
        error: why it is refused.

    Raises:
        ConfigError: ``error``, where a file is named that does not exist: another daemon would be asked.
    """
    named = path if path is not None else env.get("SKEWD_CONFIG") or None
    data = b""
    try:
        with open(DEFAULT_FILE if named is None else named, "rb") as stream:
            data = stream.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        if named is not None:
            raise error from None
    except (OSError, ValueError):
        pass
    text = data.decode("utf-8", "replace")
    reading, odd = _Reading(), set[str]()
    for section, value in _sections_that_parse(text, odd):
        reading.section(section, value, "")
    directory = re.search(r"""(?m)^[ \t]*runtime_dir[ \t]*=[ \t]*(["'])(.+?)\1""", text)
    if "runtime_dir" not in reading.values["node"] and directory is not None:  # under a heading that is misspelt
        reading.section("node", {"runtime_dir": directory[2]}, "")
    for name in sorted(env):
        reading.variable(name, env[name])
    said = "\n".join((*error.problems, *reading.problems))
    odd |= {name for name in SECTIONS if f"[{name}]" in said or f"environment SKEWD_{name.upper()}__" in said}
    return Salvaged(reading.salvaged(), error.problems, frozenset(odd))


def _sections_that_parse(text: str, odd: set[str]) -> Iterator[tuple[str, Any]]:
    """Each section of a file on its own, without the lines that TOML does not allow; ``odd`` gets their sections."""
    import tomllib

    tables: dict[str, list[Any]] = {name: [] for name in TABLES}
    for part in re.split(r"(?m)^(?=[ \t]*\[)", text)[: 4 * TABLES_MAX]:
        lines, name = part.splitlines(), re.sub(r"[^a-z_].*", "", part.lstrip("[ \t"), flags=re.DOTALL)
        for _ in range(_LINES_LEFT_OUT_MAX):
            try:
                found = tomllib.loads("\n".join(lines))
            except (tomllib.TOMLDecodeError, RecursionError) as error:
                odd.add(name)
                line = re.search(r"at line (\d+)", str(error))
                if not lines[1:]:
                    break
                del lines[min(int(line[1]) if line else len(lines), len(lines)) - 1]
                continue
            for section, value in found.items():
                if section in tables and isinstance(value, list):
                    tables[section] += value
                else:
                    yield section, value
            break
    yield from ((name, items) for name, items in tables.items() if items)


class _Reading:
    """Collects values, their origins and every problem, section by section."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS if section not in TABLES}
        self.tables: dict[str, list[dict[str, Any]]] = {section: [] for section in TABLES}
        self.places: dict[str, str] = {}
        """Where each ``section.key`` was written, for messages."""
        self.origins: dict[str, str] = {
            **{f"{section}.{key}": "default" for section in self.values for key in _keys(section)},
            **dict.fromkeys(TABLES, "default"),
        }

    def section(self, section: str, value: object, place: str) -> None:
        """What the file says under one top-level name."""
        if section not in SECTIONS:
            # A key written above the first [section], or a section's name misspelt: they look alike here.
            owners = [name for name in SECTIONS if section in _keys(name)]
            if owners and not isinstance(value, dict):
                advice = f"; it belongs under {either(tuple(_heading(name) for name in owners))}"
            else:
                advice = nearest(section, tuple(SECTIONS)) or f"; the sections are {', '.join(SECTIONS)}"
            label, what = (f"[{section[:60]}]", "section") if isinstance(value, dict) else (f"{section[:60]}", "key")
            self.problem(place, label, f"unknown {what}{advice}")
        elif section in TABLES:
            if not isinstance(value, list):
                fix = f"write [[{section}]], with two brackets: there can be several"
                self.problem(place, f"[{section}]", fix)
                return
            self.table(section, value, place, "file")
        elif not isinstance(value, dict):
            several = isinstance(value, list)
            fix = f"write [{section}], with one bracket: there is only one" if several else "is a section"
            self.problem(place, f"[{section}]", f"{fix}; its keys are {', '.join(_keys(section))}")
        else:
            for key, item in self.known(section, value, place, f"[{section}]"):
                self.take(self.values[section], section, key, item, place, f"[{section}] {key}", "file")

    def table(self, section: str, items: list[Any], place: str, origin: str) -> None:
        """Every ``[[section]]``; what was said before under this name is replaced whole."""
        self.tables[section] = []
        self.origins[section] = origin
        self.places[section] = place
        if len(items) > TABLES_MAX:
            self.problem(place, f"[[{section}]]", f"is written {len(items)} times; at most {TABLES_MAX}")
            return
        for number, item in enumerate(items, 1):
            heading = f"[[{section}]] {number}"
            if not isinstance(item, dict):
                self.problem(place, heading, f"is not a table of keys; its keys are {', '.join(_keys(section))}")
                continue
            taken: dict[str, Any] = {}
            failed = len(self.problems)
            for key, value in self.known(section, item, place, heading):
                self.take(taken, section, key, value, place, f"{heading} {key}", origin)
            for field in msgspec.structs.fields(SECTIONS[section]):
                if field.required and field.name not in item:
                    self.problem(place, heading, f'has no {field.name}; add {field.name} = "..."')
            if failed == len(self.problems):
                self.tables[section].append(taken)

    def known(self, section: str, items: Mapping[str, Any], place: str, heading: str) -> Iterator[tuple[str, Any]]:
        keys = _keys(section)
        for key, value in items.items():
            if key in keys:
                yield key, value
            else:
                advice = nearest(key, keys) or f"; the keys are {', '.join(keys)}"
                self.problem(place, f"{heading} {key[:60]}", f"unknown key{advice}")

    def variable(self, name: str, text: str) -> None:
        """One variable of the environment; those that are not ours are left alone."""
        if not name.startswith("SKEWD_") or name == "SKEWD_CONFIG" or not text:
            return
        target = _variables().get(name)
        if target is None:
            close = nearest(name, tuple(_variables()), cutoff=0.8)
            collapsed = {known.replace("__", "_"): known for known in _variables()}
            if "__" in name:
                self.problem(f"environment {name}", "", f"unknown key{close or '; see skewd config show'}")
            elif name in collapsed:
                self.problem(f"environment {name}", "", f"needs two underscores; write {collapsed[name]}")
            return
        section, key = target
        place = f"environment {name}"
        if key is None:
            items = self.json_array(place, text, '[{"type": "kernel"}]')
            if items is not None:
                self.table(section, items, place, place)
            return
        value: Any = text
        kind = _written(section, key).kind
        if kind == list[str] or (kind == str | list[str] and text.lstrip().startswith("[")):
            value = self.json_array(place, text, '["10.0.0.5:9957"]')
            if value is None:
                return
        self.take(self.values[section], section, key, value, place, "", place)

    def json_array(self, place: str, text: str, example: str) -> list[Any] | None:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            value = None
        if isinstance(value, list):
            return value
        self.problem(place, "", f"is not a JSON array; write it as {example}")
        return None

    def take(
        self, into: dict[str, Any], section: str, key: str, value: object, place: str, label: str, origin: str
    ) -> None:
        """One value: its type, then its limits."""
        rule = _written(section, key)
        if origin.startswith("environment") and isinstance(value, str) and rule.kind in (int, bool):
            value = _from_text(value, rule.kind)
        if section in self.values:
            self.origins[f"{section}.{key}"] = origin
            self.places[f"{section}.{key}"] = place
        try:
            checked = _typed(value, rule.kind)
            # Empty text for something optional: the way to say "not set" where TOML has no null.
            into[key] = None if checked == "" and _default(section, key) is None else rule.parse(checked)
        except ValueError as error:
            into.pop(key, None)
            self.problem(place, label, str(error))

    def problem(self, place: str, label: str, message: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{place}: {label}: {message}" if label else f"{place}: {message}")

    def finish(self) -> Config:
        """The whole, after the rules that span several keys.

        Raises:
            ConfigError: there was any problem.
        """
        if not self.problems:
            sources = [self.source(number, item) for number, item in enumerate(self.tables["source"], 1)]
            links = [LinkConfig(**item) for item in self.tables["link"]]
            sections = {section: SECTIONS[section](**values) for section, values in self.values.items()}
            config = Config(**sections, source=tuple(sources), link=tuple(links))  # type: ignore[arg-type]
            self.whole(config)
            if not self.problems:
                return config
        raise ConfigError(self.problems)

    def salvaged(self) -> Config:
        """What was right, and defaults for the rest."""
        sources = [self.source(number, item) for number, item in enumerate(self.tables["source"], 1)]
        links = [LinkConfig(**item) for item in self.tables["link"]]
        sections = {section: SECTIONS[section](**values) for section, values in self.values.items()}
        return Config(**sections, source=tuple(sources), link=tuple(links))  # type: ignore[arg-type]

    def source(self, number: int, item: dict[str, Any]) -> SourceConfig:
        """One source: which address it needs depends on its type."""
        place, heading, kind = self.places["source"], f"[[source]] {number}", item["type"]
        address = item.get("address")
        if kind == "ntp":
            if address is None:
                self.problem(place, heading, 'is of type ntp and has no address; add address = "host:123"')
            else:
                try:
                    address = ntp_address(address)
                except ValueError as error:
                    self.problem(place, f"{heading} address", str(error))
        elif kind == "kernel" and address is not None:
            self.problem(place, f"{heading} address", "has no meaning for the kernel's own estimate; remove it")
        elif kind in ("ptp", "phc") and address is not None and not address.startswith("/"):
            what = "ptp4l's socket, as /run/ptp4l" if kind == "ptp" else "the clock's device, as /dev/ptp0"
            self.problem(place, f"{heading} address", f"'{address}' is no path; write that of {what}")
        elif kind == "chrony" and address is not None and not address.startswith("/"):
            try:
                address = ntp_address(address, 323)
                if not is_loopback(split_address(address)[0]):
                    fix = "is another machine's chronyd, which speaks of another clock; write 127.0.0.1:323 or a path"
                    self.problem(place, f"{heading} address", f"'{address}' {fix}")
            except ValueError as error:
                self.problem(place, f"{heading} address", str(error))
        return SourceConfig(**{**item, "address": address})

    def whole(self, config: Config) -> None:
        """Rules between keys."""
        self.sources(config)
        if config.node.name in ("auto", "utc"):
            fix = f"'{config.node.name}' has a meaning in [mesh] reference; name the node otherwise"
            self.rule("node.name", "[node] name", fix)
        socket_bytes = len(os.fsencode(config.socket_path))
        if socket_bytes > SOCKET_PATH_BYTES_MAX:
            excess = socket_bytes - SOCKET_PATH_BYTES_MAX
            self.rule(
                "node.runtime_dir",
                "[node] runtime_dir",
                f"is {excess} bytes too long for a Unix socket in it (Linux allows {SOCKET_PATH_BYTES_MAX}); "
                "choose a shorter path",
            )
        if config.check.warning > config.check.critical:
            self.rule(
                "check.warning",
                "[check] warning",
                f"{exact_duration(config.check.warning)} is above critical "
                f"({exact_duration(config.check.critical)}); make it the smaller one",
            )
        if config.mesh.listen is None:
            for key, given in (("peers", bool(config.mesh.peers)), ("dns", config.mesh.dns is not None)):
                if given:
                    fix = "is for UDP, which [mesh] listen turns off; remove one of the two"
                    self.rule(f"mesh.{key}", f"[mesh] {key}", fix)
        if config.discipline.mode == "slew":
            self.steered(config)
        self.sidecar(config)
        self.links(config)
        if config.mesh.key is not None and config.mesh.key_file is not None:
            fix = '"none" says that there is no key, and key_file names one; remove one of the two'
            self.rule("mesh.key", "[mesh] key", fix)
        if config.mesh.key_file is None:
            self.without_key(config)

    def sources(self, config: Config) -> None:
        """Sources together: their names, their number, and who smears."""
        names = [source.name for source in config.sources]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.rule("source", "[[source]]", f"two are named '{name}'; give each a name of its own")
        if len(names) > TABLES_MAX:
            fix = f"with the servers of their pools they are {len(names)}; at most {TABLES_MAX}, so lower pool_size"
            self.rule("source", "[[source]]", fix)
        for source in config.source:
            if source.pool and source.type != "ntp":
                self.rule("source", "[[source]] pool", f"'{source.name}' is of type {source.type}; only ntp has pools")
        needed = config.utc.min_sources
        if needed is not None and needed > len(names):
            have = f"and {len(names)} are configured" if names else "and no [[source]] is configured"
            self.rule("utc.min_sources", "[utc] min_sources", f"{needed} must agree, {have}; lower it, or add some")
        smeared = {source.name for source in config.source if source.smear}
        if smeared and len(smeared) < len(config.source):
            fix = (
                "and others don't; around a leap second they differ by up to a second, so give all or none smear = true"
            )
            self.rule("source", "[[source]] smear", f"'{min(smeared)}' smears {fix}")

    def steered(self, config: Config) -> None:
        """What a steered clock can't be steered by."""
        if config.keyless:
            fix = (
                "slew would steer this clock by what a mesh without a key says, and anyone on this machine could speak"
                " in it; name a key ([mesh] key_file), or leave the mesh out"
            )
            self.rule("discipline.mode", "[discipline] mode", fix)
        if config.mesh.reference == config.node.name:
            self.rule(
                "discipline.mode",
                "[discipline] mode",
                "slew steers towards the reference, and [mesh] reference is this node itself; write off here, or"
                " another reference",
            )
        for source in config.source:
            if source.type in ("chrony", "kernel"):
                self.rule(
                    "discipline.mode",
                    "[discipline] mode",
                    f"slew can't follow [[source]] {source.name}: {source.type} judges this clock as whoever else"
                    " steers it; write off here, or name servers (type = 'ntp')",
                )

    def sidecar(self, config: Config) -> None:
        """A certificate and its key go together, and both with a demand on clients."""
        sidecar = config.sidecar
        for key, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(sidecar, key) is not None and getattr(sidecar, other) is None:
                self.rule(f"sidecar.{key}", f"[sidecar] {key}", f"is useless without {other}; give both or neither")
        if sidecar.tls_client_ca is not None and sidecar.tls_certificate is None:
            fix = "demands certificates of clients, but there is no TLS; give tls_certificate and tls_key too"
            self.rule("sidecar.tls_client_ca", "[sidecar] tls_client_ca", fix)
        if sidecar.grpc is not None and sidecar.grpc.startswith("unix:") and sidecar.grpc == sidecar.http:
            self.rule("sidecar.http", "[sidecar] http", "is the same socket as grpc; give each its own path")

    def links(self, config: Config) -> None:
        seen: set[tuple[str, str, str | None]] = set()
        for number, link in enumerate(config.link, 1):
            heading = f"[[link]] {number}"
            if (link.transport, link.address, link.topic) in seen:
                self.rule("link", heading, f"is the same as another ({link.transport} {link.address}); remove one")
            seen.add((link.transport, link.address, link.topic))
            for key in ("topic", "stream", "directory", "properties"):
                if getattr(link, key) is not None and link.transport not in _LINK_KEYS[key]:
                    self.rule("link", f"{heading} {key}", f"has no meaning for {link.transport}; remove it")
            if link.transport == "kafka" and link.topic is None:
                self.rule("link", heading, 'is of transport kafka and has no topic; add topic = "skewd-clock"')
            if link.transport == "zmq" and link.direction != "both":
                self.rule("link", f"{heading} direction", "has no meaning for zmq, which always answers; remove it")
            try:
                if link.transport == "zmq":
                    zmq_host(link.address)
                    for peer in link.peers:
                        zmq_host(peer)
                elif link.transport == "kafka":
                    for bootstrap in link.address.split(","):
                        parse_peer(bootstrap)
                    self.names(heading, link, one_way=link.direction != "both")
                else:
                    self.aeron(heading, link)
            except ValueError as error:
                self.rule("link", heading, str(error))

    def aeron(self, heading: str, link: LinkConfig) -> None:
        """
        Raises:
            ValueError: a channel that can't be.
        """
        from skewd.links.channel import parse_channel

        if parse_channel(link.address).shared:
            self.names(heading, link, one_way=link.direction != "both")
            return
        for peer in link.peers:
            if parse_channel(peer).shared:
                raise ValueError(f"peer '{peer}' is not where one node listens; write its host:port")
        if link.direction == "receive" and link.peers:
            self.rule("link", f"{heading} peers", "are asked, which a link that only receives can't; remove them")
        if link.direction != "receive" and not link.peers:
            self.rule("link", heading, "has no peers, so it could not even answer; list where they listen")

    def names(self, heading: str, link: LinkConfig, *, one_way: bool) -> None:
        """Peers of a medium that all share are named.

        Raises:
            ValueError: one that is no node's name.
        """
        for peer in link.peers:
            NODE_NAME.parse(peer)
        if one_way and link.peers:
            fix = f"are asked, which a link that only {link.direction}s can't; remove them"
            self.rule("link", f"{heading} peers", fix)

    def without_key(self, config: Config) -> None:
        """Nothing that is not signed leaves the machine, or is believed from beyond it."""
        mesh = config.mesh
        fix = (
            "without [mesh] key_file anyone there could move this clock; "
            "write a key with 'skewd keygen FILE' and name it"
        )
        if mesh.listen is not None and not is_loopback(address_parts(mesh.listen)[0]):
            self.rule(
                "mesh.listen", "[mesh] listen", f"{mesh.listen} is beyond loopback: {fix}, or listen on 127.0.0.1:9957"
            )
        far = [peer for peer in mesh.peers if not is_loopback(address_parts(peer)[0])]
        if far:
            self.rule("mesh.peers", "[mesh] peers", f"{far[0]} is beyond loopback: {fix}")
        if mesh.dns is not None and not is_loopback(address_parts(mesh.dns)[0]):
            self.rule("mesh.dns", "[mesh] dns", f"{mesh.dns} is beyond loopback: {fix}")
        for number, link in enumerate(config.link, 1):
            for address in _link_addresses(link):
                try:
                    host = _LINK_HOST[link.transport](address)
                except ValueError:
                    continue  # said above
                if host is not None and not is_loopback(host):
                    self.rule("link", f"[[link]] {number}", f"{address} is beyond loopback: {fix}")
        if config.keyless and mesh.key is None and not self.problems:
            given = {"listen": mesh.listen, "peers": mesh.peers, "dns": mesh.dns}
            made_by = {f"mesh.{key}": f"[mesh] {key}" for key, value in given.items() if value}
            made_by |= {"link": "[[link]]"} if config.link else {}
            key, label = next((key, label) for key, label in made_by.items() if key in self.places)
            self.rule(key, label, f"makes a mesh, which has no key: {KEY_FIX}")

    def rule(self, key: str, label: str, message: str) -> None:
        place = self.places.get(key, "configuration")
        self.problem(place, "" if place == f"environment {_variable(key)}" else label, message)


KEY_FIX = (
    "write one with 'skewd keygen FILE' and name it as key_file; or, where everybody on this machine may move this"
    ' clock, write key = "none" (loopback only)'
)
"""What to do about a mesh without a key."""

_LINK_KEYS = {"topic": ("kafka",), "stream": ("aeron",), "directory": ("aeron",), "properties": ("kafka",)}
"""Keys of ``[[link]]`` that some transports only have."""


def _aeron_host(text: str) -> str | None:
    from skewd.links.channel import parse_channel

    return parse_channel(text).host


_LINK_HOST: dict[str, Callable[[str], str | None]] = {
    "zmq": zmq_host,
    "kafka": lambda text: address_parts(text)[0],
    "aeron": _aeron_host,
}


def _link_addresses(link: LinkConfig) -> tuple[str, ...]:
    """Where a link's messages come from and go to."""
    if link.transport == "kafka":
        return tuple(link.address.split(","))
    return (link.address, *(peer for peer in link.peers if ":" in peer))


def not_yet(config: Config) -> list[str]:
    """Keys that are understood and set, but that this version does not act upon: a line for each, to be said aloud."""
    lines = []
    if config.spool.path is not None:
        lines.append("[spool] path: this version keeps no spool; clients retry instead")
    return lines


def _keys(section: str) -> tuple[str, ...]:
    return SECTIONS[section].__struct_fields__


def _heading(section: str) -> str:
    return f"[[{section}]]" if section in TABLES else f"[{section}]"


def _default(section: str, key: str) -> object:
    for field in msgspec.structs.fields(SECTIONS[section]):
        if field.name == key:
            return field.default
    return msgspec.NODEFAULT


_HINTS: dict[str, dict[str, Any]] = {}


def _written(section: str, key: str) -> Written:
    """How a key is written; a plain type is written as itself."""
    if section not in _HINTS:
        _HINTS[section] = get_type_hints(SECTIONS[section], include_extras=True)
    hint = _HINTS[section][key]
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Written):
            return extra
    return Written(kind=hint, parse=lambda value: value)


def how_written(section: str, key: str, value: object) -> Any:
    """A value that is in force, as TOML would hold it; None for one that is not set."""
    return _written(section, key).show(value)


def _variable(dotted: str) -> str:
    section, _, key = dotted.partition(".")
    return f"SKEWD_{section}__{key}".upper() if key else f"SKEWD_{section}".upper()


def _variables() -> dict[str, tuple[str, str | None]]:
    """Every variable that is known, and the section and key it sets (no key: a whole table)."""
    known: dict[str, tuple[str, str | None]] = {}
    for section in SECTIONS:
        if section in TABLES:
            known[_variable(section)] = (section, None)
        else:
            known.update({_variable(f"{section}.{key}"): (section, key) for key in _keys(section)})
    return known


_KINDS: dict[Any, tuple[str, str]] = {
    str: ("text", 'it in quotes, as "..."'),
    int: ("a whole number", "it without quotes or a decimal point, as 8"),
    bool: ("true or false", "true or false, without quotes"),
    list[str]: ("a list of texts", 'it in brackets, as ["...", "..."]'),
    str | list[str]: ("text or a list of texts", 'it as "..." or ["...", "..."]'),
}


def _typed(value: object, kind: Any) -> Any:
    """The value, if it has the type that is to be written.

    Raises:
        ValueError: it has another one; the message says what to write.
    """
    if kind is Duration:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f'{value} has no unit; write "{value}ms", "{value}us" or "{value}s" (ns, us, ms, s, m, h)')
        if not isinstance(value, str):
            raise ValueError(f'{_brief(value)} is not a duration; write a number and a unit, as "5ms", "250us" or "1s"')
        return value
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        what, fix = _KINDS[kind]
        raise ValueError(f"{_brief(value)} is not {what}; write {fix}") from None


def _from_text(text: str, kind: Any) -> object:
    """A number or a truth value from the environment; the text itself when it is neither."""
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text


def _brief(value: object) -> str:
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
