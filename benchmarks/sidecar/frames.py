"""As little HTTP/2 as a gRPC call needs: frames, and the header blocks of one unary call.

A load generator must cost next to nothing, or it is what gets measured on a machine with few cores. A gRPC library
costs more for each call than the sidecar that it would measure. But the requests of a benchmark are all alike: their
header block is a constant (literals that enter no table, so it means the same whenever it is sent), and of an answer
only its outline matters: a call that succeeded has a DATA frame, a call that failed has none. So nothing here decodes
a header.

Limits: for benchmarks on loopback only. Pure.
"""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW_MAX = (1 << 31) - 1
WINDOW_AT_FIRST = 65535
FRAME_AT_FIRST = 16384

_HEAD = struct.Struct("!IBI")


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(content) << 8 | kind, flags, stream) + content


def settings(**values: int) -> bytes:
    """A SETTINGS frame: ``table``, ``window``, ``frame``."""
    number = {"table": 1, "window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", number[name], value) for name, value in values.items()))


def window_update(stream: int, by: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, by.to_bytes(4, "big"))


def literal(name: str, value: str) -> bytes:
    """A header field, literal and without indexing (RFC 7541, 6.2.2). Both parts are shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_headers(authority: str, path: str) -> bytes:
    """The header block of a unary call."""
    head = b"\x83\x86" + literal(":path", path) + literal(":authority", authority)  # :method POST, :scheme http
    return head + literal("te", "trailers") + literal("content-type", "application/grpc")


ANSWER_HEADERS = b"\x88" + literal("content-type", "application/grpc")  # :status 200
ANSWER_MESSAGE = bytes(5)
TRAILERS_OK = literal("grpc-status", "0")


class Frames:
    """Cuts what arrives into frames: ``(kind, flags, stream, content)``."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        held = self._held
        held += data
        found, at, size = [], 0, len(held)
        while size - at >= 9:
            head, flags, stream = _HEAD.unpack_from(held, at)
            end = at + 9 + (head >> 8)
            if end > size:
                break
            found.append((head & 255, flags, stream & WINDOW_MAX, bytes(held[at + 9 : end])))
            at = end
        del held[:at]
        return found


def settings_of(content: bytes) -> dict[int, int]:
    """The values in a SETTINGS frame, by number (4: window of a new stream; 5: largest frame)."""
    return dict(struct.iter_unpack("!HI", content))
