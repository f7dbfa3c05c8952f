"""An NTP server's answers, its stamps moved: ``HOST SERVER_PORT NANOSECONDS``. A server on a clock that is wrong.

Listens on port 123 of HOST and asks the real server on the same host; everything but the stamps is that server's.
"""

from __future__ import annotations

import socket
import struct
import sys

_ERA = 1 << 64


def main(host: str, server_port: int, shift_ns: int) -> None:
    shift = (shift_ns << 32) // 1_000_000_000
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back,
    ):
        front.bind((host, 123))
        back.connect((host, server_port))
        back.settimeout(0.5)
        print("READY", flush=True)
        while True:
            question, client = front.recvfrom(2048)
            back.send(question)
            try:
                answer = bytearray(back.recv(2048))
            except (TimeoutError, ConnectionRefusedError):
                continue
            for at in (16, 32, 40):  # reference, receive and transmit; the origin is the client's
                (stamp,) = struct.unpack_from("!Q", answer, at)
                struct.pack_into("!Q", answer, at, (stamp + shift) % _ERA)
            front.sendto(answer, client)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
