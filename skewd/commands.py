"""Every command but the two that must start fast (``cli.py`` has those, and the exit codes).

This is where the three parts meet: the daemon, the sidecar and the experiment are loaded by the command that runs
them and by no other, so ``skewd keygen`` needs no sidecar, and ``skewd run`` no pipeline. Nothing is decided here:
words become settings, settings go to the part, and what it refuses is said in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from skewd import __version__, cli
from skewd.config import ConfigError, Loaded, Salvaged, load_with_origins, not_yet
from skewd.durations import parse_duration_ns
from skewd.refused import RefusedError as _RefusedError

app = typer.Typer(
    name="skewd",
    help="How far is this clock from the others, how sure are we, and what does that mean for your traces?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check or show the configuration.", no_args_is_help=True, rich_markup_mode=None)
experiment_app = typer.Typer(
    help="The reference pipeline under clock skew, with and without the sidecar.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
discipline_app = typer.Typer(
    help="What [discipline] did to the kernel's clock.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(config_app, name="config")
app.add_typer(discipline_app, name="discipline")
app.add_typer(experiment_app, name="experiment")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration; default /etc/skewd/skewd.toml, where there is one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]

WATCH_INTERVAL_S = 1.0
WAIT_INTERVAL_S = 0.1


def dispatch(words: Sequence[str]) -> int:
    """Runs the command that the words name; returns its exit code."""
    try:
        code = app(args=list(words), prog_name="skewd", standalone_mode=False)
    except _RefusedError as refused:
        print(f"skewd: {refused}", file=sys.stderr)
        return refused.code
    except typer.TyperException as error:
        _show_usage(error)
        return cli.EX_USAGE
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return cli.EX_INTERRUPTED
    return code if isinstance(code, int) else 0


def _show_usage(error: typer.TyperException) -> None:
    show = getattr(error, "show", None)
    if show is not None:
        show()
    else:
        print(f"skewd: {error.format_message()}", file=sys.stderr)


def version_text() -> str:
    """skewd's version, Python's, and which kernel patches spans."""
    from skewd_sidecar.kernel import choose

    python = f"{platform.python_version()} ({platform.python_implementation()})"
    return f"skewd {__version__}\npython {python}\npatch: {choose().name}"


def _version(wanted: bool) -> None:
    if wanted:
        print(version_text())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the versions and exit.")
    ] = False,
) -> None:
    pass


# Parsed by cli.py before this module is loaded; listed here for `skewd --help`.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("check", help=cli.CHECK_HELP, context_settings=_PASSED_ON, rich_help_panel=None)
def _check(context: typer.Context) -> int:
    return cli.check(context.args)


@app.command("now", help=cli.NOW_HELP, context_settings=_PASSED_ON)
def _now(context: typer.Context) -> int:
    return cli.now(context.args)


@app.command()
def run(
    config: ConfigOption = None,
    virtual_clock: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="For tests: run on a made-up clock (offset=5ms,drift=20ppm,at=RAW, or page=FILE)."
        ),
    ] = None,
) -> int:
    """Run this node's daemon until SIGINT or SIGTERM. SIGHUP reads the configuration again."""
    from skewd import start

    return start.run(config, virtual_clock)


@app.command()
def status(
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    form: Annotated[
        str | None, typer.Option("-f", "--format", metavar="FORM", help="plain, json or prometheus.")
    ] = None,
) -> int:
    """Show this node, its sources, its peers, what is wrong and what to do."""
    from skewd.api_client import NoDaemonError, get_status

    if form not in (None, *_FORMS) or (as_json and form not in (None, "json")):
        raise _RefusedError(f"--format: '{form}' is unknown here; write one of {', '.join(_FORMS)}", cli.EX_USAGE)
    form = "json" if as_json else form or "plain"
    socket_path = _in_force(config).config.socket_path

    def screen() -> tuple[str, int]:
        try:
            told = get_status(socket_path)
        except NoDaemonError as error:
            return f"{error}\n", 1
        return _status_text(told, form, indent=None if watch else 2), 0

    if not watch:
        text, code = screen()
        (sys.stdout if code == 0 else sys.stderr).write(text if code == 0 else f"skewd: {text}")
        return code
    # Not as an exception, which is lost when it comes within a destructor; a second Ctrl-C is one.
    ended = threading.Event()

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ended.set()

    signal.signal(signal.SIGINT, end)
    with contextlib.suppress(KeyboardInterrupt):
        if form == "plain" and sys.stdout.isatty():
            from skewd.watch import watch as watch_on_terminal

            watch_on_terminal(lambda: screen()[0], WATCH_INTERVAL_S, ended)
        while not ended.is_set():
            text, code = screen()
            (sys.stdout if code == 0 else sys.stderr).write(text)
            sys.stdout.flush()
            ended.wait(WATCH_INTERVAL_S)
    return 0


_FORMS = ("plain", "json", "prometheus")


def _status_text(told: dict[str, Any], form: str, indent: int | None) -> str:
    if form == "json":
        return json.dumps(told, indent=indent) + "\n"
    from skewd.status import UnreadableStatus, decode

    if form == "prometheus":
        from skewd.publish import prometheus

        build = {"version": str(told.get("version") or "unknown"), "virtual": str(told.get("virtual") is True).lower()}
        try:
            return prometheus.exposition(prometheus.registry(lambda: told, build, time.time)).decode()
        except UnreadableStatus as error:
            raise _RefusedError(str(error)) from None
    from skewd import time_daemons
    from skewd.status_view import render_status

    if told.get("virtual") is True:  # whoever steers this machine's clock, a test's is another
        return render_status(told)
    daemons = time_daemons.running()
    wrong = time_daemons.too_many_hands(daemons)
    status = decode(told, odd_is_unknown=True)
    return render_status(status if wrong is None else status.and_problem(wrong), time_daemons.steered_by(daemons))


@discipline_app.command("restore")
def discipline_restore(
    config: ConfigOption = None,
    virtual_clock: Annotated[str | None, typer.Option(metavar="TEXT", hidden=True)] = None,
) -> int:
    """Restore the kernel's frequency, if a daemon that died left it changed (ExecStopPost= of its unit)."""
    from skewd import daemon, steering
    from skewd.clock import clock_from_option
    from skewd.failures import StartError
    from skewd.state_file import StateFile

    found = _in_force(config)
    if "node" in found.doubtful:
        raise _RefusedError(
            "what is wrong with [node] may hide what was left; mend it, and run this again", cli.EX_USAGE
        )
    node = found.config.node
    try:
        clock = clock_from_option(virtual_clock)
    except (ValueError, OSError) as error:
        raise _RefusedError(str(error), cli.EX_USAGE) from None
    file = StateFile(node.state_dir, node.name, steering.KIND)
    try:
        with daemon.locked(node.runtime_dir):
            said = steering.restore(
                file, daemon.boot_id(clock), lambda: daemon.kernel_clock(clock), lambda: daemon.adjuster(clock)
            )
    except (StartError, steering.NotRestoredError) as error:
        raise _RefusedError(str(error)) from None
    print(f"skewd: {said or 'nothing was left to restore'}")
    return 0


@app.command()
def waitsync(
    config: ConfigOption = None,
    max_uncertainty: Annotated[str, typer.Option(metavar="D", help="How sure is sure enough.")] = "1ms",
    timeout: Annotated[str, typer.Option(metavar="D", help="How long to wait.")] = "60s",
) -> int:
    """Wait until this clock is known well enough: exit 0 ready, 1 not in time, 2 it can never be."""
    from skewd.api_client import TIMEOUT_S, NoDaemonError, SlowDaemonError, get_status
    from skewd.status import UnreadableStatus
    from skewd.waitsync import Outcome, readiness

    limit_ns = _above_zero("--max-uncertainty", max_uncertainty)
    timeout_s = _above_zero("--timeout", timeout) / 1e9
    in_force = _in_force(config)
    names = in_force.config
    may_hear = bool(names.source or names.mesh.peers or names.mesh.dns or names.link or in_force.problems)
    deadline = time.monotonic() + timeout_s
    outcome, lacking, found = Outcome.NEVER, "nothing was heard from the daemon", None
    while (left := deadline - time.monotonic()) > 0:
        try:
            found = readiness(
                get_status(names.socket_path, timeout_s=min(TIMEOUT_S, left)),
                max_uncertainty_ns=limit_ns,
                may_hear=may_hear,
            )
        except NoDaemonError as error:
            # It may be starting, or being restarted; one that is there and slow, or was there, is no "never".
            if not (isinstance(error, SlowDaemonError) and found is not None and left < TIMEOUT_S):
                lacking = str(error)  # else the time was over before it could answer: what it said last counts
            if isinstance(error, SlowDaemonError):
                outcome = Outcome.WAIT
        except UnreadableStatus as error:
            outcome, lacking = Outcome.WAIT, str(error)
        else:
            outcome = Outcome.NEVER if found.outcome is Outcome.SEARCHING else Outcome.WAIT
            lacking = found.reason
            if found.outcome is Outcome.READY:
                print(found.reason)
                return 0
            if found.outcome is Outcome.NEVER:
                raise _RefusedError(lacking, Outcome.NEVER)
        time.sleep(max(0.0, min(WAIT_INTERVAL_S, deadline - time.monotonic())))
    raise _RefusedError(f"not ready within {timeout}: {lacking}", outcome)


@app.command()
def probe(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST or HOST:PORT of an NTP server or a node.")],
    config: ConfigOption = None,
    kind: Annotated[str | None, typer.Option("--as", metavar="KIND", help="ntp or peer; default: ask as both.")] = None,
    timeout: Annotated[str, typer.Option(metavar="D", help="How long it may take.")] = "2s",
    as_json: JsonOption = False,
) -> int:
    """Measure one NTP server or one peer once, without a daemon, and explain what was learnt."""
    from skewd.clock import HostClock
    from skewd.keys import MeshKeyError, load_key
    from skewd.probe import KINDS, ProbeFailed
    from skewd.probe import probe as measure
    from skewd.probe_view import explain

    if kind not in (None, *KINDS):
        raise _RefusedError(f"--as: '{kind}' is unknown; write one of {', '.join(KINDS)}", cli.EX_USAGE)
    timeout_s = _above_zero("--timeout", timeout) / 1e9
    in_force = _load(config).config
    key, no_key = None, None
    if in_force.mesh.key_file is not None:
        try:
            key = load_key(in_force.mesh.key_file)
        except (MeshKeyError, OSError) as error:
            no_key = str(error)
    try:
        found = measure(
            address,
            HostClock(),
            kind=kind,
            key=key,
            no_key=no_key,
            drift_ppm=in_force.clock.max_drift_ppm,
            wander_ppb_per_s=in_force.clock.max_wander_ppb_per_s,
            timeout_s=timeout_s,
        )
    except ValueError as error:
        raise _RefusedError(str(error), cli.EX_USAGE) from None
    except ProbeFailed as error:
        if as_json:
            print(json.dumps({"address": address, "type": kind, "offset_ns": None, "error": str(error)}))
            return 1
        raise _RefusedError(str(error)) from None
    sys.stdout.write(json.dumps(found.data()) + "\n" if as_json else explain(found))
    return 0


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist yet.")],
    rotate: Annotated[bool, typer.Option(help="Take the next step from FILE's key to a new one.")] = False,
) -> int:
    """Write a new mesh key; every node of a mesh has the same one."""
    from skewd.keys import MeshKeyError, Rotation, generate_key_file, rotate_key_file

    try:
        if rotate:
            step, ring = rotate_key_file(file)
            ids = [f"{each.key_id:08x}" for each in ring.keys]
            then = f"copy it to every node; once all have it, run 'skewd keygen --rotate {file}' again"
            said = {
                Rotation.ADDED: f"step 1 of 3: {ids[-1]} is accepted from now on, {ids[0]} still sends; {then}",
                Rotation.PROMOTED: f"step 2 of 3: {ids[0]} sends from now on, {ids[-1]} is still accepted; {then}",
                Rotation.RETIRED: f"step 3 of 3: {ids[0]} stands alone; copy it to every node",
            }
            print(f"{file}: {said[step]}")
            return 0
        key = generate_key_file(file)
    except (MeshKeyError, OSError) as error:
        raise _RefusedError(str(error)) from None
    print(f"{file}: key {key.key_id:08x}; copy it to every node, and name it there in [mesh] key_file")
    return 0


@app.command()
def record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; an older one becomes FILE.1.")],
    config: ConfigOption = None,
    duration: Annotated[
        str | None, typer.Option(metavar="D", help="For how long; default: until SIGINT or SIGTERM.")
    ] = None,
    every: Annotated[
        str, typer.Option(metavar="D", help="How often the daemon's own bounds are kept beside the proofs.")
    ] = "5m",
    max_bytes: Annotated[int, typer.Option(metavar="N", help="Bytes of a file; then the next is begun.")] = 16 << 20,
    keep: Annotated[int, typer.Option(metavar="N", help="Older files that are kept.")] = 4,
) -> int:
    """Keep what the daemon learns, so that its bounds can be checked and its limits judged later."""
    from skewd import record_commands
    from skewd.recorder import KEEP_MAX, MAX_BYTES_LEAST

    look_ns = _above_zero("--every", every)
    if not 100_000_000 <= look_ns <= 3_600_000_000_000:
        raise _RefusedError(f"--every: '{every}' is not from 100ms to 1h", cli.EX_USAGE)
    if max_bytes < MAX_BYTES_LEAST:
        raise _RefusedError(f"--max-bytes: {max_bytes} is too small; write {MAX_BYTES_LEAST} or more", cli.EX_USAGE)
    if not 0 <= keep <= KEEP_MAX:
        raise _RefusedError(f"--keep: {keep} is not from 0 to {KEEP_MAX}", cli.EX_USAGE)
    return record_commands.record(
        _in_force(config).config.evidence_path,
        file,
        duration_ns=None if duration is None else _above_zero("--duration", duration),
        look_ns=look_ns,
        max_bytes=max_bytes,
        older=keep,
    )


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A record; FILE.1 and so on are read first.")],
    as_json: JsonOption = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Say whether the declared limits fit, and which would. Takes longer.")
    ] = False,
    bounds: Annotated[bool, typer.Option("--bounds", help="With --json: list every replayed bound.")] = False,
) -> int:
    """Compute the daemon's bounds again from a record, compare, and say what it tells of the limits."""
    from skewd import record_commands

    if bounds and not as_json:
        raise _RefusedError("--bounds lists bounds as JSON; add --json", cli.EX_USAGE)
    return record_commands.replay(file, as_json=as_json, calibrate=calibrate, bounds=bounds)


@config_app.command("check")
def config_check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The file to check, as --config.")] = None,
    config: ConfigOption = None,
) -> int:
    """Say whether a configuration is right, and every mistake that it has."""
    loaded = _load(_one_file(file, config))
    if loaded.config.mesh.key_file is not None:
        from skewd.keys import MeshKeyError, is_to_come, load_key

        try:
            if is_to_come(loaded.config.mesh.key_file):
                print(
                    f"note: [mesh] key_file: {loaded.config.mesh.key_file} is not there (yet), or not for this user; "
                    "systemd brings it when the service starts (LoadCredential=)"
                )
            else:
                load_key(loaded.config.mesh.key_file)
        except (MeshKeyError, OSError) as error:
            where = loaded.origins["mesh.key_file"].replace("file", str(loaded.path))
            raise _RefusedError(f"{where}: [mesh] key_file: {error}", cli.EX_USAGE) from None
    for line in not_yet(loaded.config):
        print(f"note: {line}")
    written = list(loaded.origins.values())
    variables = sum(origin.startswith("environment") for origin in written)
    where = str(loaded.path) if loaded.path is not None else "no file, all defaults"
    print(f"ok: {where}" + (f", and {variables} from the environment" if variables else ""))
    return 0


@config_app.command("show")
def config_show(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The file to show, as --config.")] = None,
    config: ConfigOption = None,
) -> int:
    """Print the configuration in force as TOML, and where each value came from."""
    from skewd.config_show import show_config

    sys.stdout.write(show_config(_load(_one_file(file, config))))
    return 0


@app.command()
def sidecar(
    config: ConfigOption = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="OTLP/gRPC in; unix:///path for a socket, 'off' for none.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="OTLP/HTTP in; unix:///path for a socket, 'off' for none.")
    ] = None,
    forward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Where spans go: grpc://, grpcs://, grpc+unix://, http://, https:// or kafka://; may be repeated.",
        ),
    ] = None,
    balance: Annotated[
        str | None, typer.Option(metavar="HOW", help="Between several --forward: round_robin or failover.")
    ] = None,
    dead_letter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keeps requests that are refused for good.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send a file of dead letters again, and end.")
    ] = None,
    mode: Annotated[str | None, typer.Option(metavar="MODE", help="off, tag or rewrite.")] = None,
    attributes: Annotated[
        str | None, typer.Option(metavar="WHERE", help="span, resource or minimal: where attributes go.")
    ] = None,
    incoming: Annotated[
        str | None, typer.Option(metavar="WHAT", help="trust or replace: clock attributes that arrive.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Prometheus; none by default.")] = None,
    stamps: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="wall, if all spans read the wall clock at both ends; or unknown."),
    ] = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Whose spans these are; else the daemon's.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(metavar="FILE", help="PEM; speak TLS on both.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's key, PEM.")] = None,
    tls_client_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="PEM; clients need a certificate of this authority.")
    ] = None,
    static_offset: Annotated[
        str | None, typer.Option(metavar="D", help="For tests: correct by this, without a daemon.")
    ] = None,
    static_uncertainty: Annotated[str | None, typer.Option(metavar="D", help="For tests: right within this.")] = None,
    static_reference: Annotated[str, typer.Option(metavar="NAME", help="For tests: utc, or node:NAME.")] = "utc",
    virtual_clock: Annotated[str | None, typer.Option(metavar="TEXT", hidden=True)] = None,
) -> int:
    """Take OTLP from applications, correct or tag its spans, and forward it, until SIGINT or SIGTERM."""
    from skewd import start_sidecar

    return start_sidecar.run(
        start_sidecar.Words(
            config=config,
            grpc=grpc,
            http=http,
            forward=tuple(forward or ()),
            balance=balance,
            dead_letter=dead_letter,
            replay=replay,
            mode=mode,
            attributes=attributes,
            incoming=incoming,
            metrics=metrics,
            stamps=stamps,
            node=node,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            static_offset=static_offset,
            static_uncertainty=static_uncertainty,
            static_reference=static_reference,
            virtual_clock=virtual_clock,
        )
    )


@experiment_app.command("run")
def experiment_run(
    skews: Annotated[
        str | None,
        typer.Option(
            "--skews",
            "--skew",
            metavar="LIST",
            help="Milliseconds (0,1,2.5) or units; default 0,3,5,10, the predicted median, one far beyond.",
        ),
    ] = None,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="The stage whose clock is skewed.")] = "inference",
    direction: Annotated[str, typer.Option(metavar="WAY", help="behind or ahead.")] = "behind",
    transports: Annotated[
        str | None,
        typer.Option("--transports", "--transport", metavar="LIST", help="zmq,kafka,aeron; default zmq,kafka."),
    ] = None,
    modes: Annotated[
        str | None, typer.Option("--modes", "--mode", metavar="LIST", help="off,tag,rewrite; default all.")
    ] = None,
    messages: Annotated[int | None, typer.Option(metavar="N", help="Messages in each cell.")] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Messages offered per second; at most, and by default, 40 % of the capacity."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Run each cell in N blocks, turn about; default: blocks of some 50 messages."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same schedule of work.")] = 1,
    reference: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="The unskewed stage that is the reference; default the producer."),
    ] = None,
    service_floor: Annotated[
        str,
        typer.Option(metavar="D", help="Each stage's work lasts at least this long; auto puts the median gap at 4 ms."),
    ] = "auto",
    max_age: Annotated[
        str | None, typer.Option(metavar="D", help="The skewed stage drops messages older than this by its own clock.")
    ] = None,
    stamp_offset: Annotated[
        str, typer.Option(metavar="D", help="Added to the skewed stage's own stamps; its clock is left as it is.")
    ] = "0ms",
    loads: Annotated[
        str | None, typer.Option(metavar="LIST", help="Also at these shares of the capacity, at 5 ms: 0.2,0.5,0.9.")
    ] = None,
    overload: Annotated[
        bool, typer.Option("--overload", help="Also with synchronized clocks on an overloaded CPU.")
    ] = False,
    duration: Annotated[
        str | None, typer.Option(metavar="D", help="Also for this long while the clock drifts, is stepped and slewed.")
    ] = None,
    drift: Annotated[
        str, typer.Option(metavar="RATE", help="How fast it runs away then, towards --direction.")
    ] = "50ppm",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="That run alone, in simulated time: seconds, no processes.")
    ] = False,
    separations: Annotated[
        Path | None, typer.Option(metavar="RESULTS", help="Simulate with the separations that a run measured.")
    ] = None,
    kafka_bootstrap: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Use this broker instead of starting one.")
    ] = None,
    kafka_clients: Annotated[
        str, typer.Option(metavar="HOW", help="latency: nothing waits; default: the client's own waits (linger 5 ms).")
    ] = "latency",
    aeron_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Use this running Aeron media driver instead of starting one.")
    ] = None,
    aeron_channel: Annotated[str, typer.Option(metavar="MEDIUM", help="ipc or udp.")] = "ipc",
    inband_only: Annotated[
        bool, typer.Option("--inband-only", help="Compare clocks over the transport under test alone, UDP off.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:CALLABLE", help="Your model: bytes in, a label out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results.json and report.html go.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The short form: 3 minutes on 2 cores.")] = False,
) -> int:
    """Skew one stage's clock, step by step, and see what breaks with and without the sidecar."""
    from skewd_pipeline.options import (
        DIRECTIONS,
        MODES,
        STAGES,
        TRANSPORTS,
        ExperimentOptions,
        default_reference,
        parse_drift_ppb,
        parse_loads,
        parse_names,
        parse_service_floor_ns,
        parse_skews,
    )

    given: dict[str, Any] = {}
    try:
        if skews is not None:
            given["skews_ms"] = parse_skews(skews)
        if transports is not None:
            given["transports"] = parse_names("--transports", transports, TRANSPORTS)
        if loads is not None:
            given["loads"] = parse_loads(loads)
        if max_age is not None:
            given["max_age_ns"] = _duration("--max-age", max_age)
        if duration is not None:
            given["duration_ns"] = _duration("--duration", duration)
            # A long run needs one synchronized cell to be predicted by; a sweep beside it is run if asked for.
            if "skews_ms" not in given:
                given["skews_ms"] = (0.0,)
        if modes is not None:
            given["modes"] = parse_names("--modes", modes, MODES)
        numbers = (("messages", messages), ("rate", rate), ("rounds", rounds))
        given |= {key: value for key, value in numbers if value is not None}
        options = ExperimentOptions(
            stage=stage,
            direction=direction,
            seed=seed,
            # Of a stage or direction that does not exist, the options say so.
            reference=reference
            or (default_reference(stage, direction) if stage in STAGES and direction in DIRECTIONS else STAGES[0]),
            service_floor_ns=parse_service_floor_ns(service_floor),
            stamp_offset_ns=_duration("--stamp-offset", stamp_offset),
            overload=overload,
            drift_ppb=parse_drift_ppb(drift),
            simulated=simulated,
            separations=separations,
            kafka_bootstrap=kafka_bootstrap,
            kafka_clients=kafka_clients,
            aeron_dir=aeron_dir,
            aeron_channel=aeron_channel,
            inband_only=inband_only,
            model=model,
            out=out if out is not None else Path("out/demo" if demo else "out/experiment"),
            demo=demo,
            **given,
        )
    except ValueError as error:
        raise _RefusedError(str(error), cli.EX_USAGE) from None
    try:
        from skewd_pipeline import experiment
    except ModuleNotFoundError as error:
        _missing(error)
    code = experiment.main(options)
    return code if isinstance(code, int) else 0


@experiment_app.command("stage")
def experiment_stage(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="producer, preprocess, inference, postprocess or consumer.")
    ],
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="One file for all stages and hosts.")],
) -> int:
    """Run one stage of the pipeline on this host, with the clock it has."""
    try:
        from skewd_pipeline import stage_run
    except ModuleNotFoundError as error:
        _missing(error)
    try:
        return stage_run.main(name, config)
    except ModuleNotFoundError as error:
        _missing(error)


@experiment_app.command("report")
def experiment_report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="results.json of one or more runs, or their directories.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page to write; default report.html beside the first.")
    ] = None,
    exports: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Every table as CSV and every picture as SVG go there.")
    ] = None,
) -> int:
    """Make one HTML page of what runs left behind, and with --exports every table as CSV and picture as SVG."""
    try:
        from skewd_pipeline import report
    except ModuleNotFoundError as error:
        _missing(error)
    return report.build(results, out, exports=exports)


def _missing(error: ModuleNotFoundError) -> NoReturn:
    """A library that only this command needs is not installed; a module of our own that is missing is our fault."""
    if (error.name or "").startswith("skewd"):
        raise error
    raise _RefusedError(
        f"this command needs the Python package '{error.name}'; install it with pip install 'skewd[pipeline]'"
    ) from None


def _in_force(path: Path | None) -> Salvaged:
    """For commands that ask a running daemon, which a mistake in a file that it has not read must not hide."""
    try:
        found = cli.in_force(path)
    except ConfigError as error:
        raise _RefusedError("\nskewd: ".join(error.problems), cli.EX_USAGE) from None
    for problem in found.problems:
        print(f"skewd: {problem}", file=sys.stderr)
    return found


def _load(path: Path | None) -> Loaded:
    try:
        return load_with_origins(path, os.environ)
    except ConfigError as error:
        raise _RefusedError("\nskewd: ".join(error.problems), cli.EX_USAGE) from None


def _one_file(file: Path | None, config: Path | None) -> Path | None:
    if file is not None and config is not None and file != config:
        raise _RefusedError("a file is named twice; name it once, as FILE or with --config", cli.EX_USAGE)
    return file if file is not None else config


def _duration(option: str, text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise _RefusedError(f"{option}: {error}", cli.EX_USAGE) from None


def _above_zero(option: str, text: str) -> int:
    value = _duration(option, text)
    if value <= 0:
        raise _RefusedError(f"{option}: '{text}' is not above zero; write one that is, as 1ms", cli.EX_USAGE)
    return value
