"""What a hostile network sends: made from a seed. Run as a program, it sends it: ``HOST PORT COUNT RATE SEED``.

The program takes genuine messages to replay and to alter from its standard input, one a line, in hex. It sends from
made-up loopback addresses, at ``RATE`` a second if it can, until SIGTERM or ``COUNT``; then it says how many it sent.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

from skewd.interval import Interval
from skewd.keys import MeshKey
from skewd.links import wire

WRONG_KEY = MeshKey.from_secret(b"somebody else's secret, 32 bytes")


def hostile(seed: int, genuine: list[bytes]) -> Iterator[bytes]:
    """Without end: random bytes, cut and stretched messages, replays, alterations, other keys."""
    choose = random.Random(seed)
    header = struct.Struct(">4sBBHI")
    true_id = header.unpack_from(genuine[0])[4]
    me = wire.Self("evil", b"e" * 16, 0, 0, Interval(0, 1), 0, 0, 0, 0)
    while True:
        what = choose.randrange(8)
        base = bytearray(choose.choice(genuine))
        if what == 0:
            yield choose.randbytes(choose.randrange(1500))
        elif what == 1:
            yield bytes(base[: choose.randrange(len(base))])
        elif what == 2:
            yield bytes(base) + choose.randbytes(choose.randrange(1, 3000))
        elif what == 3:
            yield bytes(base)
        elif what == 4:
            for _ in range(choose.randrange(1, 4)):
                base[choose.randrange(len(base))] ^= choose.randrange(1, 256)
            yield bytes(base)
        elif what == 5:
            size = choose.randrange(wire.MIN_MESSAGE_BYTES, wire.MAX_MESSAGE_BYTES + 1)
            yield header.pack(b"skwd", wire.VERSION, choose.randrange(1, 4), 0, true_id) + choose.randbytes(size - 12)
        else:
            claimed = WRONG_KEY.key_id if what == 6 else true_id
            build = wire.draft(
                claimed,
                WRONG_KEY.secret,
                kind=choose.choice(list(wire.Kind)),
                nonce=choose.randbytes(16),
                sender=wire.packed(me),
                receiver="",
                attachment=choose.randbytes(choose.randrange(1000)),
            )
            yield build(choose.randrange(1 << 62))


def main(host: str, port: str, count: str, rate: str, seed: str) -> None:
    genuine = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    choose = random.Random(int(seed))
    packets = hostile(int(seed), genuine)
    sockets = []
    for number in range(200):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.{choose.randrange(1, 255)}.{number}.{choose.randrange(1, 255)}", 0))
        sockets.append(sock)
    prepared = [next(packets) for _ in range(2000)]
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    begin, sent = time.monotonic(), 0
    for number in range(int(count)):
        if ended:
            break
        ahead = number / int(rate) - (time.monotonic() - begin)
        if ahead > 0.002:
            time.sleep(ahead)
        with contextlib.suppress(OSError):
            sockets[number % len(sockets)].sendto(prepared[number % len(prepared)], (host, int(port)))
            sent += 1
    print(sent)


if __name__ == "__main__":
    main(*sys.argv[1:])
