"""The command line: ``check`` and ``now`` here, everything else in ``commands.py``.

A monitoring system runs ``skewd check`` every few seconds on every node, and a script may call ``skewd now`` in a
loop. What they cost is the import of what they use, so these two load neither the command framework nor any library of
the daemon's. Their options are told here once, and read twice: in a dozen lines of our own as long as all is plain,
by the standard library for help and for whatever is not. All others are for people and services, where a tenth of a
second is nothing.

Exit codes: ``check`` has those of monitoring plugins (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, and 3 for whatever goes
wrong, never a traceback's 1). Elsewhere 64 means that the command line or the configuration is wrong (trying again
is useless), 1 that it could not be done now.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from skewd.durations import parse_duration_ns

TYPE_CHECKING = False  # as in typing, without what it costs
if TYPE_CHECKING:
    from skewd.config import Salvaged

EX_USAGE = 64
EX_INTERRUPTED = 130

CHECK_HELP = "Judge this node's clock for a monitoring system: exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."
NOW_HELP = "Print the reference's time, earliest and latest, as this node knows it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["check"]:
            return _briefly(check, words[1:])
        if words[:1] == ["now"]:
            return _briefly(now, words[1:])
        if words[:1] == ["run"]:
            from skewd import start

            options = start.plain_options(words[1:])
            if options is not None:
                file = options.get("--config")
                return start.run(None if file is None else Path(file), options.get("--virtual-clock"))
        if words[:1] == ["sidecar"]:
            from skewd import start_sidecar

            plain = start_sidecar.plain_words(words[1:])
            if plain is not None:
                return start_sidecar.main(plain)
        from skewd.commands import dispatch

        return dispatch(words)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output went away: nothing is left to say, not even at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _briefly(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """Runs a command that ends before there is garbage worth looking for, neither now nor at the interpreter's end."""
    gc.disable()
    try:
        return command(words)
    finally:
        gc.freeze()
        gc.enable()


class _UsageError(Exception):
    """The words of a command make no sense; the message says which."""


class _Option(NamedTuple):
    """One option of ``check`` or ``now``; a flag without ``metavar``."""

    name: str
    help: str
    metavar: str = ""
    duration: bool = False
    short: str = ""

    @property
    def key(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


_COMMON = (
    _Option("--config", "the daemon's configuration; default /etc/skewd/skewd.toml", "FILE"),
    _Option("--json", "answer as one JSON object"),
)
_CHECK = (
    *_COMMON,
    _Option("--peer", "judge against this peer instead of the reference", "NAME"),
    _Option("--warning", "default: [check] warning, 1ms; a bare number is seconds", "D", duration=True, short="-w"),
    _Option("--critical", "default: [check] critical, 3ms", "D", duration=True, short="-c"),
    _Option("--strict", "CRITICAL, not WARNING, if --critical cannot be proven"),
    _Option("--max-age", "UNKNOWN if last heard longer ago; default 60s or 4 intervals", "D", duration=True),
    _Option("--assumptions", "judge whether clocks keep to their declared drift and wander"),
    _Option("--timeout", "UNKNOWN if the daemon has not answered by then; default 2s", "D", duration=True, short="-t"),
    _Option("--version", "print the version and end", short="-V"),
    _Option("--record", "with --assumptions: by what 'skewd record' wrote, not by the daemon", "FILE"),
)


def _parsed(command: str, description: str, known: Sequence[_Option], words: Sequence[str]) -> Any:
    """The options' values by their keys.

    Raises:
        _UsageError: the words make no sense.
        SystemExit: help was asked for, and printed.
    """
    options = _plainly(known, words)
    return _carefully(command, description, known, words) if options is None else options


def _plainly(known: Sequence[_Option], words: Sequence[str]) -> SimpleNamespace | None:
    """The values, where all words are known options written out; None for everything else."""
    by_name = {name: option for option in known for name in (option.name, option.short) if name}
    values: dict[str, Any] = {option.key: None if option.metavar else False for option in known}
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        option = by_name.get(name)
        if option is None or (equals and not option.metavar):
            return None
        if not option.metavar:
            values[option.key] = True
            continue
        if not equals:
            if not left or left[0].startswith("-"):
                return None
            value = left.pop(0)
        try:
            values[option.key] = _duration(value) if option.duration else value
        except ValueError:
            return None
    return SimpleNamespace(**values)


def _carefully(command: str, description: str, known: Sequence[_Option], words: Sequence[str]) -> Any:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise _UsageError(f"{message}; see 'skewd {command} --help'")

    def duration(text: str) -> int:
        try:
            return _duration(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = Parser(prog=f"skewd {command}", description=description, allow_abbrev=False)
    for option in known:
        names = [name for name in (option.short, option.name) if name]
        if option.metavar:
            kind = duration if option.duration else str
            parser.add_argument(*names, metavar=option.metavar, help=option.help, type=kind)
        else:
            parser.add_argument(*names, help=option.help, action="store_true")
    return parser.parse_args(words)


def _duration(text: str) -> int:
    """A duration above zero; monitoring plugins write bare numbers, and mean seconds."""
    bare = text.strip()
    if bare.replace(".", "", 1).isdecimal():
        text = f"{'0' if bare.startswith('.') else ''}{bare.rstrip('.')}s"
    value = parse_duration_ns(text)
    if value <= 0:
        raise ValueError(f"'{text}' is not above zero; write one that is, as 1ms")
    return value


def check(words: Sequence[str]) -> int:
    """``skewd check``: one line with performance data, or JSON; whatever goes wrong is UNKNOWN."""
    from skewd.check import UNKNOWN, unknown

    as_json = "--json" in words
    if "-V" in words or "--version" in words:
        from skewd import __version__

        print(f"skewd {__version__}")
        return 0
    try:
        result = _judge(words)
    except _UsageError as error:
        result = unknown(f"usage: {error}")
    except Exception as error:  # an exit code of 1 would be a WARNING about the clock, which nobody gave
        import traceback

        traceback.print_exc()
        result = unknown(f"this command failed ({type(error).__name__}: {error}); this is a mistake of skewd's")
    print(json.dumps(result.data) if as_json else f"{result.line} | {result.perfdata}")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    return result.code if 0 <= result.code <= UNKNOWN else UNKNOWN


def _judge(words: Sequence[str]) -> Any:
    from skewd.api_client import TIMEOUT_S, NoDaemonError, get_status
    from skewd.check import judge, short, unknown

    options = _parsed("check", CHECK_HELP, _CHECK, words)
    if options.assumptions and (options.warning or options.critical):
        raise _UsageError(
            "--assumptions has no --warning or --critical; the limits are [clock] max_drift_ppm and so on"
        )
    if options.record is not None:
        return _judge_record(options)
    from skewd.config import ConfigError

    try:
        config, problems, doubtful = in_force(options.config)
    except ConfigError as error:
        return unknown(error.problems[0], peer=options.peer)
    said = ""
    if problems:
        more = f" and {len(problems) - 1} more, see 'skewd config check'" if problems[1:] else ""
        said = f"configuration: {problems[0]}{more}"
    warning_ns = options.warning or config.check.warning
    critical_ns = options.critical or config.check.critical
    if warning_ns > critical_ns:
        raise _UsageError(
            f"--warning {short(warning_ns)} is above --critical {short(critical_ns)}; give both, warning the smaller"
        )
    longest_ns = max([config.mesh.interval, *(source.interval for source in config.source)])
    max_age_s = (options.max_age or max(60_000_000_000, 4 * longest_ns)) / 1e9
    try:
        status = get_status(config.socket_path, timeout_s=(options.timeout or round(TIMEOUT_S * 1e9)) / 1e9)
    except NoDaemonError as error:
        return unknown(str(error), warning_ns=warning_ns, critical_ns=critical_ns, peer=options.peer, said=said)
    if options.assumptions:
        from skewd import assumptions

        return assumptions.judge(status, peer=options.peer, strict=options.strict, max_age_s=max_age_s, said=said)
    return judge(
        status,
        warning_ns=warning_ns,
        critical_ns=critical_ns,
        peer=options.peer,
        strict=options.strict,
        max_age_s=max_age_s,
        said=said,
        thresholds_known="check" not in doubtful or bool(options.warning and options.critical),
    )


def in_force(path: str | os.PathLike[str] | None) -> Salvaged:
    """What a running daemon was configured with, as far as that can be read now, and what is wrong with it.

    A mistake in a file that the daemon has not read yet must not hide the daemon from those who ask it.

    Raises:
        ConfigError: a file is named that does not exist.
    """
    from skewd.config import ConfigError, Salvaged, load_config, salvage

    try:
        return Salvaged(load_config(path, os.environ), (), frozenset())
    except ConfigError as error:
        return salvage(path, os.environ, error)


def _judge_record(options: Any) -> Any:
    """The same verdict by a record, which needs neither a daemon nor its configuration."""
    from skewd import assumptions
    from skewd.check import unknown
    from skewd.record_commands import load
    from skewd.refused import RefusedError
    from skewd.replay_view import as_status

    if not options.assumptions:
        raise _UsageError("--record goes with --assumptions")
    try:
        found = load(Path(options.record), candidates=True)
    except RefusedError as error:
        return unknown(str(error), peer=options.peer)
    return assumptions.judge(as_status(found), peer=options.peer, strict=options.strict)


def now(words: Sequence[str]) -> int:
    """``skewd now``: exit 0 with a time and its bound, 1 without."""
    from skewd.api_client import NoDaemonError, get_now
    from skewd.config import ConfigError

    try:
        options = _parsed("now", NOW_HELP, _COMMON, words)
        config, problems, _ = in_force(options.config)
    except (_UsageError, ConfigError) as error:
        print(f"skewd now: {error}", file=sys.stderr)
        return EX_USAGE
    for problem in problems:
        print(f"skewd now: {problem}", file=sys.stderr)
    from skewd.status import NowAnswer, UnreadableStatus, decode_now

    said, answered = NowAnswer(), True
    try:
        said = decode_now(get_now(config.socket_path))
    except (NoDaemonError, UnreadableStatus) as error:
        answered = False
        print(f"skewd now: {error}", file=sys.stderr)
    time_ns = said.time
    if options.json:
        known = {"earliest_ns": said.earliest_ns, "latest_ns": said.latest_ns, "reference": said.reference}
        print(json.dumps((known if time_ns is not None else dict.fromkeys(known)) | {"status": said.status}))
    elif time_ns is not None:
        print(f"{utc_text(time_ns.midpoint)} +-{_half(time_ns.width)} ({said.reference}, {said.status})")
    elif answered:
        print("unknown: no bound on the reference; 'skewd status' says why", file=sys.stderr)
    return 0 if time_ns is not None else 1


def utc_text(ns: int) -> str:
    """``2026-01-02T03:04:05.000000006Z`` for nanoseconds since 1970."""
    whole, rest = divmod(ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"


def _half(width_ns: int) -> str:
    from skewd.check import rounded_up, short

    return short(rounded_up((width_ns + 1) // 2))


if __name__ == "__main__":
    sys.exit(main())
