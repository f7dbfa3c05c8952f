"""``skewd sidecar`` once its words are understood: configuration, logs, source, service.

Apart from ``commands.py`` because a sidecar lives for months beside each application: the command framework would stay
in its memory (13 MiB) for options that are read once. Plain words are read here; help and mistakes are the framework's.

Limits: its options all have values; those that may be repeated are ``--forward``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from skewd import sd_notify
from skewd.config import ConfigError, Loaded, load_with_origins, salvage
from skewd.durations import parse_duration_ns
from skewd.logs import aloud, configure_logs
from skewd.refused import RefusedError

EX_USAGE = 64

_KEYS = (
    "grpc",
    "http",
    "mode",
    "stamps",
    "balance",
    "dead_letter",
    "attributes",
    "incoming",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
)
"""Options that are keys of ``[sidecar]``, each of one value."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The options of ``skewd sidecar``, as they were given; ``commands.py`` says what each means."""

    config: Path | None = None
    grpc: str | None = None
    http: str | None = None
    forward: tuple[str, ...] = ()
    balance: str | None = None
    dead_letter: str | None = None
    replay: Path | None = None
    mode: str | None = None
    attributes: str | None = None
    incoming: str | None = None
    metrics: str | None = None
    stamps: str | None = None
    node: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    static_offset: str | None = None
    static_uncertainty: str | None = None
    static_reference: str = "utc"
    virtual_clock: str | None = None


_OPTIONS = {f"--{each.name.replace('_', '-')}": each.name for each in fields(Words)}


def plain_words(words: Sequence[str]) -> Words | None:
    """The options, each with its value; None for anything else (help, a mistake): the framework's to answer."""
    found: dict[str, Any] = {}
    left = list(words)[::-1]
    while left:
        option, equals, value = left.pop().partition("=")
        name = _OPTIONS.get(option)
        if name is None or (name in found and name != "forward"):
            return None
        if not equals:
            if not left or left[-1].startswith("-"):
                return None
            value = left.pop()
        if name == "forward":
            found[name] = (*found.get(name, ()), value)
        else:
            found[name] = Path(value) if name in ("config", "replay") else value
    return Words(**found)


def main(words: Words) -> int:
    """Runs a sidecar until SIGINT or SIGTERM; returns the exit code, having said what is wrong."""
    try:
        return run(words)
    except RefusedError as refused:
        aloud(*str(refused).split("\nskewd: "))
        return refused.code


def run(words: Words) -> int:
    """The same.

    Raises:
        RefusedError: it cannot be; the message says why.
    """
    # What is said on the command line is written as it would be in the file, and meets the same rules.
    said = {key: getattr(words, key) for key in _KEYS}
    if words.forward:
        several = json.dumps(words.forward)
        said["forward"] = "" if "" in words.forward else words.forward[0] if len(words.forward) == 1 else several
    for option, value in {**said, "node": words.node, "metrics": words.metrics}.items():
        if value == "":  # an empty variable counts as not set; an empty option is a mistake in a script
            raise RefusedError(f"--{option.replace('_', '-')}: it is empty; write a value or leave it out", EX_USAGE)
    override = {f"SKEWD_SIDECAR__{key.upper()}": value for key, value in said.items() if value is not None}
    if words.node is not None:
        override["SKEWD_NODE__NAME"] = words.node
    loaded = _load(words.config, override)
    settings = loaded.config.sidecar
    configure_logs(loaded.config.log.level, loaded.config.log.format, own_process=True)
    # Otherwise gRPC's core writes a line of its own for each handshake that fails, as often as a network likes.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from skewd.lean import structlog
    from skewd_sidecar.forward.retry import Balance
    from skewd_sidecar.kernel import Choice, choose
    from skewd_sidecar.patch import Incoming, Mode, Placement, Stamps
    from skewd_sidecar.service import SidecarBroken, SidecarSettings, TlsFiles, Transport, serve

    if words.replay is not None:
        return _replay(words.replay, settings)
    source: Any
    if words.static_offset is not None or words.static_uncertainty is not None:
        source = _static_source(
            loaded.config.node.name, words.static_offset, words.static_uncertainty, words.static_reference
        )
    else:
        from skewd.clock import clock_from_option
        from skewd.publish.segment import SegmentReader

        try:
            clock = clock_from_option(words.virtual_clock)
        except (ValueError, OSError) as error:
            raise RefusedError(str(error), EX_USAGE) from None
        source = SegmentReader(
            loaded.config.segment_path,
            node=loaded.config.node.name,
            stamps=settings.stamps,
            max_uncertainty_ns=loaded.config.clock.max_uncertainty,
            clock=clock,
        )
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    wanted = SidecarSettings(
        source=source,
        tls=tls,
        max_request_bytes=settings.max_request_bytes,
        max_request_records=settings.max_request_records,
        max_request_elements=settings.max_request_elements,
        metadata=settings.metadata,
        grpc=settings.grpc,
        http=settings.http,
        forward=settings.forward,
        balance=Balance(settings.balance),
        retry_s=settings.retry / 1e9,
        connect_s=settings.connect_timeout / 1e9,
        attempt_s=settings.attempt_timeout / 1e9,
        age_s=settings.connection_age / 1e9,
        forward_max_bytes=settings.forward_max_bytes or 0,
        max_bytes=settings.max_bytes,
        dead_letter=settings.dead_letter,
        dead_letter_max_bytes=settings.dead_letter_max_bytes,
        kafka_properties=settings.kafka_properties,
        mode=Mode(settings.mode),
        keep_original=settings.keep_original,
        attributes=Placement(settings.attributes),
        incoming=Incoming(settings.incoming),
        stamps=Stamps(settings.stamps),
        kernel=Choice(settings.kernel),
        attribute_prefix=settings.attribute_prefix,
        # A name that nobody chose is this container's, perhaps; the daemon's own is better.
        node="" if loaded.origins["node.name"] == "default" else loaded.config.node.name,
        metrics_listen=words.metrics if words.metrics != "off" else None,
        transport=Transport(settings.transport),
    )

    transports: dict[str, str] = {}

    def ready(addresses: dict[str, Any]) -> None:
        structlog.get_logger().info(
            "the sidecar is ready",
            kernel=choose(wanted.kernel).name,
            mode=settings.mode,
            attributes=settings.attributes,
            incoming=settings.incoming,
            **transports,
        )
        _say_ready(addresses)
        sd_notify.notify("READY=1")

    async def until_told_to_stop() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(wanted, ready, stop, spoken=transports.update)

    from skewd_sidecar.heap import keep_pages

    keep_pages()
    try:
        asyncio.run(until_told_to_stop())
    except ValueError as error:
        raise RefusedError(str(error), EX_USAGE) from None
    except (OSError, SidecarBroken) as error:
        raise RefusedError(str(error)) from None
    return 0


def _replay(path: Path, settings: Any) -> int:
    from skewd_sidecar.forward.dead_letters import NotDeadLetters
    from skewd_sidecar.replay import replay
    from skewd_sidecar.service import kafka_settings

    try:
        told = asyncio.run(
            replay(
                path,
                settings.forward,
                os.environ,
                max_bytes=settings.forward_max_bytes or 0,
                kafka_properties=kafka_settings(settings.kafka_properties),
            )
        )
    except (OSError, NotDeadLetters) as error:
        raise RefusedError(f"--replay: {error}") from None
    except ValueError as error:
        raise RefusedError(str(error), EX_USAGE) from None
    print(f"{told.taken} taken, {told.refused} refused, {told.undelivered} not delivered")
    if told.why:
        print(f"what was not taken is in {path} again; the last: {told.why}", file=sys.stderr)
    if told.damaged:
        what = f"{told.damaged} damaged stretches ({told.damaged_bytes} bytes) were stepped over"
        print(f"{what}; they are kept in {path}.damaged", file=sys.stderr)
    return 0 if not told.why and not told.damaged else 1


def _static_source(node: str, offset: str | None, uncertainty: str | None, reference: str) -> Any:
    from skewd_sidecar.source import StaticSource

    if offset is None or uncertainty is None:
        raise RefusedError("--static-offset and --static-uncertainty are given together or not at all", EX_USAGE)
    if reference != "utc" and not reference.removeprefix("node:"):
        raise RefusedError("--static-reference: write utc, or node:NAME", EX_USAGE)
    if reference != "utc" and not reference.startswith("node:"):
        reference = f"node:{reference}"
    try:
        source = StaticSource(
            node, _duration("--static-offset", offset), _duration("--static-uncertainty", uncertainty), reference
        )
    except ValueError as error:
        raise RefusedError(str(error), EX_USAGE) from None
    aloud("STATIC OFFSET: a test hook; spans are corrected by what was said, not measured", level="warning")
    return source


def _load(path: Path | None, override: Mapping[str, str]) -> Loaded:
    try:
        return load_with_origins(path, {**os.environ, **override})
    except ConfigError as error:
        with contextlib.suppress(ConfigError):
            if salvage(path, {**os.environ, **override}, error).config.log.format == "json":
                configure_logs("info", "json", own_process=True)
        raise RefusedError(
            "\nskewd: ".join(_as_said(problem, override) for problem in error.problems), EX_USAGE
        ) from None


def _as_said(problem: str, override: Mapping[str, str]) -> str:
    """A problem with an option is said of the option, not of the variable that carried it to the rules."""
    for variable in override:
        option = "--" + variable.rpartition("__")[2].lower().replace("name", "node").replace("_", "-")
        problem = problem.replace(f"environment {variable}", option)
    return problem


def _duration(option: str, text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise RefusedError(f"{option}: {error}", EX_USAGE) from None


def _say_ready(addresses: dict[str, Any]) -> None:
    """The one line on standard output that scripts wait for."""
    # What was loaded stays loaded: from here on the collector need not look at it, nor touch its memory.
    gc.collect()
    gc.freeze()
    print(f"READY {json.dumps(addresses)}", flush=True)
