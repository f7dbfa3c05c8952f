"""What travels on a ZeroMQ hop, as bytes: work, and beside it the clocks' conversation. Pure; no socket here.

The problem: two daemons want to compare clocks over the very connection their applications use, since that path is
open, encrypted or firewalled exactly as the work is. The insight: the hop carries two kinds of message, told apart
by their first frame, and the applications pass the daemons' payloads on without looking inside.

- work: ``[b"w", headers as JSON object of text, body]``
- clock: ``[b"c", payload]``

Limits: those of ``base.py`` for work; a clock payload is at most ``MAX_CLOCK_BYTES`` (the daemons' own limit is
1,400 bytes). What is not exactly one of the two is malformed, whoever sent it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from skewd_pipeline.transports.base import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, Message, check_limits

WORK = b"w"
CLOCK = b"c"
ATTACH = b"\x00attach:"
MAX_CLOCK_BYTES = 2048
# JSON escapes a control character into six bytes, so the encoded headers may be longer than the headers.
MAX_HEADER_FRAME_BYTES = 6 * MAX_HEADER_BYTES + 8 * MAX_HEADERS
MAX_FRAME_BYTES = max(MAX_BODY_BYTES, MAX_HEADER_FRAME_BYTES)

_headers_decoder = msgspec.json.Decoder(dict[str, str])
_headers_encoder = msgspec.json.Encoder()


class MalformedFrames(ValueError):
    """What arrived is neither work nor a clock payload."""


def encode_work(message: Message) -> list[bytes]:
    """The frames of a message.

    Raises:
        MessageRefused: it is outside the limits.
    """
    check_limits(message)
    return [WORK, _headers_encoder.encode(message.headers), message.body]


def encode_clock(payload: bytes) -> list[bytes]:
    """The frames that carry a daemon's payload to the neighbour."""
    return [CLOCK, payload]


def encode_attach(neighbour: str) -> bytes:
    """What an application says to its daemon once: this connection leads to that neighbour."""
    return ATTACH + neighbour.encode()


def is_clock_payload(payload: bytes) -> bool:
    """Whether a payload may be relayed.

    An attach frame may not, in particular: it is for an application to say to its own daemon. Relayed from a
    neighbour it would let that neighbour rename itself there.
    """
    return 0 < len(payload) <= MAX_CLOCK_BYTES and not payload.startswith(ATTACH)


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
