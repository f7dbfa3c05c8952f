"""Two programs on virtual clocks that stamp an exchange by the kernel: ``answer PAGE HOST`` and ``ask PAGE HOST N``.

The far end says in a second message when its first one left. The near end prints, for each exchange, its raw clock at
the send and at the receive, and the bound on (far raw - near raw) that the four stamps prove; one JSON list a line.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

from skewd.clock import HostClock, NodeClock, WallSample, clock_from_option, read_wall
from skewd.interval import Interval
from skewd.kernel_stamps import Received, ask_for_stamps, receive, sent
from skewd.stamps import raw_of_stamp
from skewd.wall import WallMap

PORT = 7200
HOST = HostClock()
TICK_MS = 20


class End:
    """One socket with kernel stamps, on a node's clock."""

    def __init__(self, clock: NodeClock, host: str) -> None:
        self.clock = clock
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if not ask_for_stamps(self.sock):
            sys.exit("SO_TIMESTAMPING is refused")
        self.wall = WallMap(read_wall(HOST))

    def look(self) -> WallSample:
        """Compare the host's clocks, as the daemon does at each tick."""
        sample = read_wall(HOST, attempts=10)
        if self.wall.sample(sample):
            sys.exit("the wall clock was stepped")
        return sample

    def raw(self, wall_ns: int | None, before: WallSample) -> Interval:
        """The node's raw instants of a stamp made since ``before``."""
        if wall_ns is None:
            sys.exit("a packet without a stamp")
        host = raw_of_stamp(wall_ns, before, self.look(), self.wall.slew_ppb())
        if host is None:
            sys.exit("the wall clock was stepped")
        return Interval(self.clock.at_host_raw(host.lo), self.clock.at_host_raw(host.hi))

    def send(self, data: bytes, to: object = None) -> Interval:
        """Send, and the raw instants at which the kernel did."""
        before = self.look()
        if to is None:
            self.sock.send(data)
        else:
            self.sock.sendto(data, to)  # type: ignore[call-overload]
        if not self._ready(0, 5000):
            sys.exit("no stamp of a send")
        return self.raw(sent(self.sock)[-1].wall_ns, before)

    def receive(self, limit_s: float) -> tuple[Received, Interval]:
        """The next packet, and the raw instants at which the kernel got it."""
        for _ in range(int(limit_s * 1000 / TICK_MS)):
            before = self.wall.latest
            if self._ready(select.POLLIN, TICK_MS):
                received = receive(self.sock, 2048)
                return received, self.raw(received.wall_ns, before)
            self.look()
        sys.exit("nothing came")

    def _ready(self, events: int, limit_ms: int) -> bool:
        poll = select.poll()
        poll.register(self.sock, events)
        return bool(poll.poll(limit_ms))


def answer(clock: NodeClock, host: str) -> None:
    end = End(clock, host)
    end.sock.bind((host, PORT))
    print("READY", flush=True)
    while True:
        received, came = end.receive(60.0)
        left = end.send(b"answer", received.address)
        end.send(struct.pack("!qq", came.hi, left.lo), received.address)


def ask(clock: NodeClock, host: str, count: int) -> None:
    end = End(clock, host)
    end.sock.connect((host, PORT))
    for _ in range(count):
        asked = end.send(b"?")
        _, answered = end.receive(5.0)
        more, _ = end.receive(5.0)
        came, left = struct.unpack("!qq", more.data)
        print(json.dumps([asked.lo, answered.hi, left - answered.hi, came - asked.lo]))


if __name__ == "__main__":
    role, page, address, *more = sys.argv[1:]
    if role == "answer":
        answer(clock_from_option(f"page={page}"), address)
    else:
        ask(clock_from_option(f"page={page}"), address, int(more[0]))
