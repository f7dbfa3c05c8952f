"""``skewd run`` once its words are understood: configuration, logs, clock, daemon.

Apart from ``commands.py`` because a daemon lives for months: the command framework would stay in its memory (7 MiB)
for two options that are read once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skewd.config import ConfigError, load_config, load_with_origins, not_yet

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
        return _refused(*error.problems)
    for line in not_yet(loaded.config):
        print(f"skewd: {line}", file=sys.stderr)
    from skewd.clock import clock_from_option
    from skewd.logs import configure_logs

    configure_logs(loaded.config.log.level, loaded.config.log.format)
    try:
        clock = clock_from_option(virtual_clock)
    except (ValueError, OSError) as error:
        return _refused(str(error))
    if clock.virtual:
        print("skewd: VIRTUAL CLOCK: a test hook; nothing here says anything about this host's time", file=sys.stderr)
    from skewd import daemon

    return daemon.run(loaded.config, clock, _say_ready, lambda: load_config(config, os.environ))


def _refused(*lines: str) -> int:
    for line in lines:
        print(f"skewd: {line}", file=sys.stderr)
    return EX_USAGE


def _say_ready(addresses: dict[str, Any]) -> None:
    """The one line on standard output that scripts wait for."""
    # What was loaded stays loaded: from here on the collector need not look at it, nor touch its memory.
    gc.collect()
    gc.freeze()
    print(f"READY {json.dumps(addresses)}", flush=True)
