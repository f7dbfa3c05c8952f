"""Log lines: to standard error, one a line, as text for people or JSON for machines.

Standard output belongs to answers (``READY {...}``, ``--json``), so nothing may be logged there by default, neither by
us nor by a library. Set once, by the command that runs for long; the level can be changed later.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from skewd.lean import structlog

_NUMBERS = logging.getLevelNamesMapping()
_least = logging.INFO


def configure_logs(level: str, form: str) -> None:
    """Sends our own lines and those of libraries (from ``warning`` up) to standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``text`` or ``json``.
    """
    render = structlog.processors.JSONRenderer(default=str) if form == "json" else _render_text
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[_drop_lesser, *shared, structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Changes the level of a process that logs already; loggers in use follow."""
    global _least
    _least = _NUMBERS[level.upper()]
    logging.getLogger().setLevel(max(_least, logging.WARNING))


def _drop_lesser(logger: object, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _NUMBERS.get(method.upper(), logging.ERROR) < _least:  # ``exception`` is an error
        raise structlog.DropEvent
    return line


def _render_text(logger: object, method: str, line: MutableMapping[str, Any]) -> str:
    """``2026-01-02T03:04:05Z info what happened key=value``; values with spaces are quoted."""
    head = " ".join(str(line.pop(key)) for key in ("time", "level", "event") if key in line)
    trace = line.pop("exception", None)
    rest = "".join(f" {key}={_value(value)}" for key, value in line.items())
    return f"{head}{rest}" + (f"\n{trace}" if trace else "")


def _value(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text and text.isprintable() and not any(mark in text for mark in ' "=') else json.dumps(text)
