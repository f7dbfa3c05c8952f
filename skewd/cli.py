"""The command line: ``check`` and ``now`` here, everything else in ``commands.py``.

A monitoring system runs ``skewd check`` every few seconds on every node, and a script may call ``skewd now`` in a
loop. What they cost is the import of what they use, so these two are parsed by the standard library and load neither
the command framework nor any library of the daemon's. All others are for people and services, where a tenth of a
second is nothing.

Exit codes: ``check`` has those of monitoring plugins (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, and 3 for whatever goes
wrong, never a traceback's 1). Elsewhere 64 means that the command line or the configuration is wrong (trying again
is useless), 1 that it could not be done now.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from skewd.durations import parse_duration_ns

EX_USAGE = 64
EX_INTERRUPTED = 130

CHECK_HELP = "Judge this node's clock for a monitoring system: exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."
NOW_HELP = "Print the reference's time, earliest and latest, as this node knows it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["check"]:
            return check(words[1:])
        if words[:1] == ["now"]:
            return now(words[1:])
        if words[:1] == ["run"]:
            from skewd import start

            options = start.plain_options(words[1:])
            if options is not None:
                file = options.get("--config")
                return start.run(None if file is None else Path(file), options.get("--virtual-clock"))
        from skewd.commands import dispatch

        return dispatch(words)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output went away: nothing is left to say, not even at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _UsageError(Exception):
    """The words of a command make no sense; the message says which."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see 'skewd {self.prog.split()[-1]} --help'")


def _duration(text: str) -> int:
    try:
        value = parse_duration_ns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above zero; write one that is, as 1ms")
    return value


def _parser(name: str, description: str) -> _Parser:
    parser = _Parser(prog=f"skewd {name}", description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="the daemon's configuration; default /etc/skewd/skewd.toml")
    parser.add_argument("--json", action="store_true", help="answer as one JSON object")
    return parser


def check(words: Sequence[str]) -> int:
    """``skewd check``: one line with performance data, or JSON; whatever goes wrong is UNKNOWN."""
    from skewd.check import UNKNOWN, unknown

    as_json = "--json" in words
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
    from skewd.api_client import NoDaemonError, get_status
    from skewd.check import judge, short, unknown
    from skewd.config import ConfigError, load_config

    parser = _parser("check", CHECK_HELP)
    parser.add_argument("--peer", metavar="NAME", help="judge against this peer instead of the reference")
    parser.add_argument("--warning", type=_duration, metavar="D", help="default: [check] warning, 1ms")
    parser.add_argument("--critical", type=_duration, metavar="D", help="default: [check] critical, 3ms")
    parser.add_argument("--strict", action="store_true", help="CRITICAL, not WARNING, if --critical cannot be proven")
    parser.add_argument(
        "--max-age", type=_duration, metavar="D", help="UNKNOWN if last heard longer ago; default 60s or 4 intervals"
    )
    parser.add_argument(
        "--assumptions", action="store_true", help="judge whether clocks keep to their declared drift and wander"
    )
    options = parser.parse_args(words)
    if options.assumptions and (options.warning or options.critical):
        raise _UsageError(
            "--assumptions has no --warning or --critical; the limits are [clock] max_drift_ppm and so on"
        )
    try:
        config = load_config(options.config, os.environ)
    except ConfigError as error:
        more = f" (and {len(error.problems) - 1} more; see 'skewd config check')" if len(error.problems) > 1 else ""
        return unknown(f"{error.problems[0]}{more}", peer=options.peer)
    warning_ns = options.warning or config.check.warning
    critical_ns = options.critical or config.check.critical
    if warning_ns > critical_ns:
        raise _UsageError(
            f"--warning {short(warning_ns)} is above --critical {short(critical_ns)}; give both, warning the smaller"
        )
    longest_ns = max([config.mesh.interval, *(source.interval for source in config.source)])
    max_age_s = (options.max_age or max(60_000_000_000, 4 * longest_ns)) / 1e9
    try:
        status = get_status(config.socket_path)
    except NoDaemonError as error:
        return unknown(str(error), warning_ns=warning_ns, critical_ns=critical_ns, peer=options.peer)
    if options.assumptions:
        from skewd import assumptions

        return assumptions.judge(status, peer=options.peer, strict=options.strict, max_age_s=max_age_s)
    return judge(
        status,
        warning_ns=warning_ns,
        critical_ns=critical_ns,
        peer=options.peer,
        strict=options.strict,
        max_age_s=max_age_s,
    )


def now(words: Sequence[str]) -> int:
    """``skewd now``: exit 0 with a time and its bound, 1 without."""
    from skewd.api_client import NoDaemonError, get_now
    from skewd.config import ConfigError, load_config

    try:
        options = _parser("now", NOW_HELP).parse_args(words)
        config = load_config(options.config, os.environ)
    except (_UsageError, ConfigError) as error:
        print(f"skewd now: {error}", file=sys.stderr)
        return EX_USAGE
    said: dict[str, Any] = {}
    try:
        said = get_now(config.socket_path)
    except NoDaemonError as error:
        print(f"skewd now: {error}", file=sys.stderr)
    earliest, latest = said.get("earliest_ns"), said.get("latest_ns")
    known = isinstance(earliest, int) and isinstance(latest, int) and earliest <= latest
    answer = {
        "earliest_ns": earliest if known else None,
        "latest_ns": latest if known else None,
        "reference": said.get("reference") if known else None,
        "status": said.get("status") or "unsynchronized",
    }
    if options.json:
        print(json.dumps(answer))
    elif isinstance(earliest, int) and isinstance(latest, int) and known:
        middle = (earliest + latest) // 2
        print(f"{utc_text(middle)} +-{_half(latest - earliest)} ({answer['reference']}, {answer['status']})")
    elif said:
        print("unknown: no bound on the reference; 'skewd status' says why", file=sys.stderr)
    return 0 if known else 1


def utc_text(ns: int) -> str:
    """``2026-01-02T03:04:05.000000006Z`` for nanoseconds since 1970."""
    whole, rest = divmod(ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"


def _half(width_ns: int) -> str:
    from skewd.check import rounded_up, short

    return short(rounded_up((width_ns + 1) // 2))


if __name__ == "__main__":
    sys.exit(main())
