"""Aeron's media driver in a process of its own: ``python -m skewd_pipeline.aeron_driver DIRECTORY [MEDIUM]``.

The problem: Aeron's clients are nothing without a driver, the program that owns the files and the sockets; and a
driver inside one of the stages would take that stage's processor time and end with it. The insight: the binding has
the driver with it, so a process that runs nothing else makes a driver as good as a separately installed one.

Its agents sleep ``IDLE`` when there is nothing to do, instead of Aeron's up to a millisecond, which over UDP would be
added twice to every message, and instead of spinning, for which there are no cores here. Over shared memory (MEDIUM
``ipc``) no message passes through the driver: it then sleeps ``IDLE_IPC``, which only opening and closing ends feel.

Prints ``READY {"directory": ..., "version": ...}`` and serves until its standard input ends. The directory must not
exist or be a dead driver's; it is removed by whoever owns the one above it.

Limits: the driver's counters are cut to a hundredth of what Aeron takes; enough for a few hundred streams.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata

IDLE = "100us"
IDLE_IPC = "2ms"
_AGENTS = ("CONDUCTOR", "SENDER", "RECEIVER", "SHARED", "SHAREDNETWORK")


def settings(medium: str) -> dict[str, str]:
    """The driver's environment for hops over ``ipc`` or ``udp``."""
    idle = IDLE_IPC if medium == "ipc" else IDLE
    return {
        "AERON_COUNTERS_BUFFER_LENGTH": "262144",
        **{f"AERON_{agent}_IDLE_STRATEGY": "aeron_idle_strategy_sleeping" for agent in _AGENTS[1:]},
        **{f"AERON_{agent}_IDLE_STRATEGY_INIT_ARGS": idle for agent in _AGENTS[1:]},
    }


def main(arguments: list[str]) -> int:
    """Serves until standard input ends."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["ipc"], ["udp"]):
        print("usage: python -m skewd_pipeline.aeron_driver DIRECTORY [ipc|udp]", file=sys.stderr)
        return 64
    for name, value in settings(*arguments[1:] or ["udp"]).items():
        os.environ.setdefault(name, value)  # the user's own settings stand
    import pyaeron

    try:
        driver = pyaeron.MediaDriver(dir=arguments[0])
    except pyaeron.AeronError as error:
        print(f"Aeron's media driver did not start in {arguments[0]}: {error}", file=sys.stderr)
        return 1
    said = {"directory": arguments[0], "version": f"{pyaeron.aeron_version}, pyaeron {metadata.version('pyaeron')}"}
    print(f"READY {json.dumps(said)}", flush=True)
    while os.read(0, 4096):
        pass
    driver.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
