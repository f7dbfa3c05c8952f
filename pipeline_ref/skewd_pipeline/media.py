"""Aeron for one run: the media driver, and which channel and stream each hop gets.

The driver is a child process with a fresh directory in the run's own (``aeron_driver.py``), or the one that
``--aeron-dir`` names, which is used and left as it was. All hops share its two UDP ports, told apart by their streams;
over shared memory there are no ports at all.

Limits: one machine, loopback. Streams of a user's driver are numbered from ``FIRST_STREAM`` plus something of the run's
own, so that a sender that was killed a moment ago is not heard by the next run.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from skewd_pipeline.children import ChildFailed, Children
from skewd_pipeline.options import STAGES

FIRST_STREAM = 1000
STREAMS_PER_RUN = 2 * len(STAGES)


@dataclass(frozen=True, slots=True)
class Media:
    """What the hops need to know."""

    directory: Path
    version: str
    channel: str
    back_channel: str
    first_stream: int

    def hop(self, upstream: str, downstream: str) -> dict[str, Any]:
        """A hop's configuration (``transports/base.py``), without the daemon's link."""
        number = list(pairwise(STAGES)).index((upstream, downstream))
        return {
            "transport": "aeron",
            "upstream": upstream,
            "downstream": downstream,
            "directory": str(self.directory),
            "channel": self.channel,
            "back_channel": self.back_channel,
            "stream": self.first_stream + 2 * number,
        }


async def start(children: Children, directory: Path, given: Path | None, medium: str, run_number: int) -> Media:
    """Starts the driver, or takes the given one.

    Args:
        directory: the run's own.
        given: a running driver's directory.
        medium: ``ipc`` or ``udp``.
        run_number: something that differs between runs, for the streams.

    Raises:
        ChildFailed: it did not start.
    """
    if given is None:
        where = directory / "aeron"
        driver = await children.start("aeron-driver", ("-m", "skewd_pipeline.aeron_driver", str(where), medium))
        version = str((await children.ready(driver))["version"])
    else:
        import pyaeron

        if not pyaeron.is_driver_active(str(given), 10_000):
            raise ChildFailed(f"no Aeron media driver runs in {given} (--aeron-dir); start it, or leave the option out")
        where, version = given, f"{pyaeron.aeron_version}, the driver in {given}"
    if medium == "udp":
        work, back = (f"aeron:udp?endpoint=127.0.0.1:{port}" for port in free_udp_ports(2))
    else:
        work = back = "aeron:ipc"
    first = FIRST_STREAM + STREAMS_PER_RUN * (run_number % 100_000)
    return Media(where, version, work, back, first)


def free_udp_ports(count: int) -> list[int]:
    """UDP ports of loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
