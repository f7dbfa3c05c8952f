"""Run a command that must not outlive whoever started it: ``python -m skewd_pipeline.guard [--remove DIR] -- COMMAND``.

The problem: a Java broker started for an experiment survives when the experiment is killed outright, and holds ports
and files for ever. Neither a handler nor ``atexit`` runs then. The insight: a pipe closes whatever way its holder
dies. The guard's standard input is a pipe from whoever started it; at its end the guard ends the command, waits for
it, removes the directories it was told, and goes. When the command ends by itself the directories stay: its log is in
one of them, and whoever started it is there to read it.

It ignores SIGTERM and SIGINT, which reach the whole process group: the command acts on them, the guard follows it.

Limits: a command that ignores SIGTERM for ``GRACE_S`` is killed; grandchildren in the same process group too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command to its end, or to the end of standard input; its exit status (128 + n for signal n)."""
    parser = argparse.ArgumentParser(prog="skewd_pipeline.guard", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--remove", action="append", default=[], metavar="DIR", help="remove this after standard input ended"
    )
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        # A handler, not SIG_IGN: the command would inherit being deaf.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(options.command, stdin=subprocess.DEVNULL)
    alone = threading.Event()
    threading.Thread(target=_end_with_input, args=(child, alone), daemon=True).start()
    code = child.wait()
    if alone.is_set():
        for directory in options.remove:
            shutil.rmtree(directory, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _end_with_input(child: subprocess.Popen[bytes], alone: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    alone.set()
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
        return
    child.kill()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # The reading thread may still sit in its read; leaving the ordinary way would wait for its lock.
    os._exit(code)
