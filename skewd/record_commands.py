"""``skewd record`` and ``skewd replay``, once their words are understood.

Exit codes: ``record`` 0 when it ended as asked, 1 when there is no daemon or the file can't be written; ``replay`` 0
when the bounds replayed are the daemon's own, 1 when they differ, 64 for a file that is not there, 65 for one that
can't be read.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from skewd.api_client import NoDaemonError
from skewd.evidence import EvidenceError
from skewd.recorder import Files, NotWrittenError, Recorder, Stream, facts_of, parts
from skewd.recorder import record as keep
from skewd.refused import RefusedError
from skewd.replay import Replay, replayed
from skewd.replay_view import render, told

EX_USAGE, EX_DATA = 64, 65


def record(
    socket_path: Path,
    file: Path,
    *,
    duration_ns: int | None,
    look_ns: int,
    max_bytes: int,
    older: int,
) -> int:
    """Records until SIGINT, SIGTERM, or for so long.

    Raises:
        RefusedError: it can't, or can't go on.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        recorder = Recorder(Files(file, max_bytes=max_bytes, keep=older))
        keep(
            lambda: Stream(socket_path, look_ns),
            recorder,
            stop,
            duration_s=None if duration_ns is None else duration_ns / 1e9,
            say=lambda text: print(f"skewd: {text}", file=sys.stderr, flush=True),
        )
    except (NoDaemonError, EvidenceError, NotWrittenError) as error:
        raise RefusedError(str(error)) from None
    sys.stdout.write(summary(file, recorder.replay, recorder.written))
    return 0


def summary(file: Path, replay: Replay, written: int) -> str:
    """One line when it is over."""
    proofs = sum(max(pair.proofs, pair.kept) for pair in replay.pairs.values())
    kept = sum(pair.kept for pair in replay.pairs.values())
    lost = f", {replay.missed} lost" if replay.missed else ""
    return (
        f"{file}: {proofs} proofs of {len(replay.pairs)} pairs, {kept} of them changed something{lost};"
        f" {written} bytes; the daemon's bounds replayed: {replay.identical} of {replay.compared} identical\n"
    )


def load(file: Path, *, candidates: bool = False, bounds: bool = False) -> Replay:
    """A record of one file or, with those that were written before it, of several.

    Raises:
        RefusedError: it is not there, or can't be read.
    """
    paths = parts(file)
    if not paths:
        raise RefusedError(f"{file} does not exist; make it with 'skewd record {file}'", EX_USAGE)
    try:
        found = replayed(facts_of(paths), candidates=candidates, bounds=bounds)
    except EvidenceError as error:
        raise RefusedError(str(error), EX_DATA) from None
    except OSError as error:
        raise RefusedError(f"{error.filename or file}: {error.strerror or error}", EX_DATA) from None
    if found.about is None:
        raise RefusedError(f"{file} holds nothing that can be read; it was cut off at its beginning", EX_DATA)
    return found


def replay(file: Path, *, as_json: bool, calibrate: bool, bounds: bool) -> int:
    """Says what a record says.

    Raises:
        RefusedError: as :func:`load`.
    """
    found = load(file, candidates=calibrate, bounds=bounds)
    sys.stdout.write(json.dumps(told(found)) + "\n" if as_json else render(found, calibrate=calibrate))
    same = (found.compared, found.published_compared) == (found.identical, found.published_identical)
    return 0 if same else 1
