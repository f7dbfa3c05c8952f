"""What travels on a hop, as bytes: work, and beside it the clocks' conversation. Pure; no socket here.

The problem: two daemons want to compare clocks over the very connection their applications use, since that path is
open, encrypted or firewalled exactly as the work is. The insight: the hop carries two kinds of message, told apart
by their first frame, and the applications pass the daemons' payloads on without looking inside.

- work: ``[b"w", headers as JSON object of text, body]``, and as a fourth frame the sending daemon's stamp, if any
- clock: ``[b"c", payload]``

ZeroMQ carries these frames as they are. Aeron carries one buffer: the number of frames, their lengths, the frames
(:func:`join`, :func:`unjoin`).

Limits: those of ``base.py`` for work; a clock payload is at most ``MAX_CLOCK_BYTES`` (the daemons' own limit is
1,400 bytes). What is not exactly one of the two is malformed, whoever sent it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from skewd_pipeline.transports.base import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, Message, check_limits

WORK = b"w"
CLOCK = b"c"
ATTACH = b"\x00attach:"
ASK_STAMP = b"\x00stamp"
STAMP = b"\x00stamp:"
MAX_CLOCK_BYTES = 2048
# JSON escapes a control character into six bytes, so the encoded headers may be longer than the headers.
MAX_HEADER_FRAME_BYTES = 6 * MAX_HEADER_BYTES + 8 * MAX_HEADERS
MAX_FRAME_BYTES = max(MAX_BODY_BYTES, MAX_HEADER_FRAME_BYTES)
MAX_FRAMES = 4
MAX_JOINED_BYTES = 1 + 4 * MAX_FRAMES + 1 + MAX_HEADER_FRAME_BYTES + MAX_BODY_BYTES + MAX_CLOCK_BYTES

_headers_decoder = msgspec.json.Decoder(dict[str, str])
_headers_encoder = msgspec.json.Encoder()


class MalformedFrames(ValueError):
    """What arrived is neither work nor a clock payload."""


def encode_work(message: Message, stamp: bytes | None = None) -> list[bytes]:
    """The frames of a message, and of the daemon's stamp that it carries.

    Raises:
        MessageRefused: it is outside the limits.
    """
    check_limits(message)
    frames = [WORK, _headers_encoder.encode(message.headers), message.body]
    return frames if stamp is None else [*frames, stamp]


def encode_clock(payload: bytes) -> list[bytes]:
    """The frames that carry a daemon's payload to the neighbour."""
    return [CLOCK, payload]


def encode_attach(neighbour: str) -> bytes:
    """What an application says to its daemon once: this connection leads to that neighbour."""
    return ATTACH + neighbour.encode()


def is_clock_payload(payload: bytes) -> bool:
    """Whether a payload may be relayed.

    An attach frame may not, in particular: it is for an application to say to its own daemon. Relayed from a
    neighbour it would let that neighbour rename itself there; a request for a stamp would have our daemon answer us.
    """
    return 0 < len(payload) <= MAX_CLOCK_BYTES and not payload.startswith((ATTACH, ASK_STAMP))


def split_stamp(frames: Sequence[bytes]) -> tuple[Sequence[bytes], bytes | None]:
    """The frames without the stamp that came with work, and the stamp; any other frames are left to `decode`."""
    if len(frames) == 4 and frames[0] == WORK and is_clock_payload(frames[3]):
        return frames[:3], frames[3]
    return frames, None


def join(frames: Sequence[bytes]) -> bytes:
    """The frames as one buffer."""
    return b"".join((struct.pack(f"<B{len(frames)}I", len(frames), *map(len, frames)), *frames))


def unjoin(data: bytes) -> list[bytes]:
    """The frames of a buffer that `join` made.

    Raises:
        MalformedFrames: it is none.
    """
    count = data[0] if data else 0
    if not 1 <= count <= MAX_FRAMES or len(data) < 1 + 4 * count:
        raise MalformedFrames(f"{len(data)} bytes that say they are {count} frames")
    lengths = struct.unpack_from(f"<{count}I", data, 1)
    at = 1 + 4 * count
    if at + sum(lengths) != len(data):
        raise MalformedFrames(f"{len(data)} bytes whose frames should make {at + sum(lengths)}")
    frames = []
    for length in lengths:
        frames.append(data[at : at + length])
        at += length
    return frames


def decode(frames: Sequence[bytes]) -> Message | bytes:
    """A message, or the payload of a clock frame.

    Raises:
        MalformedFrames: neither; the message says which rule was broken.
    """
    if len(frames) == 3 and frames[0] == WORK:
        if len(frames[1]) > MAX_HEADER_FRAME_BYTES or len(frames[2]) > MAX_BODY_BYTES:
            raise MalformedFrames("work over the size limit")
        try:
            headers = _headers_decoder.decode(frames[1])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedFrames(f"headers are not a JSON object of text: {error}") from error
        return Message(headers, frames[2])
    if len(frames) == 2 and frames[0] == CLOCK:
        if not is_clock_payload(frames[1]):
            raise MalformedFrames("a clock payload that may not be relayed")
        return frames[1]
    raise MalformedFrames(f"{len(frames)} frames that begin with {frames[0][:8]!r}" if frames else "no frames")
