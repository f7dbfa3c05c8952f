"""``skewd run`` once its words are understood: configuration, logs, clock, daemon.

Apart from ``commands.py`` because a daemon lives for months: the command framework would stay in its memory (7 MiB)
for two options that are read once.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skewd.config import ConfigError, LogConfig, load_config, load_with_origins, not_yet, salvage

EX_USAGE = 64


def plain_options(words: Sequence[str]) -> dict[str, str] | None:
    """``run``'s two options, each with a value; None for anything else (help, a mistake): the framework's to answer."""
    options: dict[str, str] = {}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name not in ("--config", "--virtual-clock") or name in options:
            return None
        if not equals:
            if not left or left[0].startswith("-"):
                return None
            value = left.pop(0)
        options[name] = value
    return options


def run(config: Path | None, virtual_clock: str | None) -> int:
    """Runs this node's daemon until SIGINT or SIGTERM; returns the exit code, having said what is wrong."""
    try:
        loaded = load_with_origins(config, os.environ)
    except ConfigError as error:
        return refused(config, os.environ, error)
    from skewd.background import leave
    from skewd.logs import aloud, configure_logs, finish_logs

    configure_logs(loaded.config.log.level, loaded.config.log.format, own_process=True)
    from skewd.clock import clock_from_option

    aloud(*not_yet(loaded.config), level="warning")
    try:
        clock = clock_from_option(virtual_clock)
    except (ValueError, OSError) as error:
        aloud(str(error))
        return EX_USAGE
    if clock.virtual:
        aloud("VIRTUAL CLOCK: a test hook; nothing here says anything about this host's time", level="warning")
    from skewd import daemon

    code = daemon.run(loaded.config, clock, _say_ready, lambda: load_config(config, os.environ))
    finish_logs()
    return leave(code)


def refused(config: Path | None, environment: Mapping[str, str], error: ConfigError) -> int:
    """Says why a configuration is refused, in the form that it asks for as far as it can be read."""
    from skewd.logs import aloud, configure_logs

    try:
        log = salvage(config, environment, error).config.log
    except ConfigError:
        log = LogConfig()
    if log.format == "json":
        configure_logs("info", "json", own_process=True)
    aloud(*error.problems)
    return EX_USAGE


def _say_ready(addresses: dict[str, Any]) -> None:
    """The one line on standard output that scripts wait for."""
    # What was loaded stays loaded: from here on the collector need not look at it, nor touch its memory.
    gc.collect()
    gc.freeze()
    print(f"READY {json.dumps(addresses)}", flush=True)
