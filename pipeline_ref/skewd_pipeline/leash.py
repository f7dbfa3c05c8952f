"""A program that ends when whoever started it does: ``python leash.py PARENT_PID NICENESS PROGRAM ARGUMENTS...``.

The experiment starts two dozen processes. When it ends it ends them; when it is killed it cannot. Linux can: a
process may ask for a signal at its parent's death (prctl PR_SET_PDEATHSIG), and keeps that wish through exec. Asking
between fork and exec inside a threaded program is unsafe, so this small program asks and then becomes the other.
For the same reason it is the one that lowers the program's priority, by NICENESS.

Limits: Linux; the signal comes when the *thread* that started us ends, so start it from one that lives as long as
the program. Where prctl is missing the program runs without a leash. Standard library only; run as a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    parent, niceness, program = int(arguments[0]), int(arguments[1]), arguments[2:]
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        return 1
    if niceness:
        os.nice(niceness)
    try:
        os.execv(program[0], program)
    except OSError as error:
        print(f"cannot run {program[0]}: {error}", file=sys.stderr)
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
