"""Log lines: to standard error, one a line, as text for people or JSON for machines.

Standard output belongs to answers (``READY {...}``, ``--json``), so nothing may be logged there by default, neither by
us nor by a library. Set once, by the command that runs for long; the level can be changed later.

Whoever reads standard error may stop reading, and a pipe that is full would hold up whoever logs. So lines wait in a
bounded queue for a thread of their own, what finds it full is dropped, and a line says how many were
(``background.LineWriter``). At the end of the process what is left is waited for, ``LAST_S`` at most.

Who asks for JSON parses every line, so all of them must be: tracebacks, warnings, why the start failed, and what
libraries in C (librdkafka, gRPC, Aeron) write to file descriptor 2 past Python. So with ``json`` a process of our own
keeps standard error for itself and puts a pipe in its place, which a thread reads and wraps line by line.

Limits: what a process writes past Python in the moment in which a signal kills it may be lost in that pipe; a stray
line is cut at ``STRAY_BYTES_MAX``.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

from skewd.background import LineWriter
from skewd.lean import structlog

_NUMBERS = logging.getLevelNamesMapping()
_least = logging.INFO
_lines: LineWriter | None = None

_json = False

LAST_S = 1.0
"""How long the last lines are waited for."""

STRAY_BYTES_MAX = 8192


def configure_logs(level: str, form: str, *, own_process: bool = False) -> None:
    """Sends our own lines and those of libraries (from ``warning`` up) to standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``text`` or ``json``.
        own_process: whether all that this process writes there is to be JSON, if that is the form.
    """
    global _json, _lines
    _json = form == "json"
    if _lines is None:
        atexit.register(finish_logs)  # before the next one, so that it is called after it
    render = structlog.processors.JSONRenderer(default=str) if form == "json" else _render_text
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]

    def dropped(count: int) -> str:
        line = {"event": "log lines were dropped: standard error was not read", "lines": count, "level": "warning"}
        line["time"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return str(render(None, 'warning', line)) + "\n"

    _lines = LineWriter(_stray_lines_as_json() if _json and own_process else sys.stderr, dropped)
    stream = cast(TextIO, _lines)
    structlog.configure(
        processors=[_drop_lesser, *shared, structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
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


def aloud(*lines: str, level: str = "error") -> None:
    """Says what must be seen, as why this process ends: as log lines where those are JSON, else as all commands do."""
    for line in lines:
        if _json:
            getattr(structlog.get_logger(), level)(line)
        else:
            finish_logs()  # the lines before it come first
            print(f"skewd: {line}", file=sys.stderr)


def _stray_lines_as_json() -> TextIO:
    """Puts a pipe where standard error is, and logs what comes through it; what was there before is given back."""
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    thread = threading.Thread(target=_wrap_stray_lines, args=(reading,), name="skewd-stderr", daemon=True)
    thread.start()

    def give_back() -> None:
        sys.stderr.flush()
        os.dup2(own.fileno(), 2)  # the pipe has no writer any more, so the thread comes to its end
        thread.join(1.0)

    atexit.register(give_back)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda raised: _uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)
    sys.unraisablehook = lambda raised: _uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)
    return own


def _uncaught(kind: type[BaseException], raised: BaseException | None, traceback: TracebackType | None) -> None:
    if raised is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        structlog.get_logger().error("uncaught exception", exc_info=(kind, raised, traceback))


def _wrap_stray_lines(reading: int) -> None:
    rest = b""
    while part := os.read(reading, 1 << 16):
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > STRAY_BYTES_MAX:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _log_stray_line(line)
    _log_stray_line(rest)
    os.close(reading)


def _log_stray_line(line: bytes) -> None:
    text = line[:STRAY_BYTES_MAX].decode("utf-8", "replace").strip()
    if text:
        structlog.get_logger().warning(text, logger="stderr")


def finish_logs() -> None:
    """Waits ``LAST_S`` at most until what was logged is out."""
    if _lines is not None:
        _lines.drain(LAST_S)


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
