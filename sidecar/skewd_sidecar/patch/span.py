"""Where in a span the fields lie that concern a clock: its times, its events' times, attributes of ours.

This is the innermost loop: it sees every field of every span, and steps over nearly all of them. What most spans are
made of (short fields, attributes of a short key and a short value) is therefore seen without a call; whatever looks
otherwise takes the way round through ``wire.py``, with the same result. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from skewd_sidecar.patch.attributes import Ours
from skewd_sidecar.patch.wire import no_field, overrun, read_key, read_tag, read_varint, skip_value

Decide: TypeAlias = Callable[
    [Ours | None, int, int, list[int] | None, int, list[int] | None, list[list[int]] | None], int
]
"""What a span's places are handed to: see ``Decision.span``."""


class SpanReader:
    """Reads the spans of one body.

    Args:
        names: by key, those of our attributes; None where none can occur, so that no key need be looked at.
        decide: what becomes of each span.
    """

    __slots__ = ("_body", "_decide", "_names")

    def __init__(self, body: bytes, names: Mapping[bytes, str] | None, decide: Decide) -> None:
        self._body = body
        self._names = names
        self._decide = decide

    def read(self, position: int, end: int) -> int:
        """Reads one span and has it decided on; returns by how many bytes it grows."""
        body = self._body
        names = self._names
        start_at = end_at = 0  # 0 is never the place of a span's field
        more_starts: list[int] | None = None
        more_ends: list[int] | None = None
        events: list[list[int]] | None = None
        ours: Ours | None = None
        while position < end:
            tag_at = position
            tag = body[position]
            if tag >= 0x80:
                tag, position = read_tag(body, position)
            else:
                position += 1
            if tag == 0x4A:  # attributes
                size = body[position]
                if size >= 0x80:
                    size, position = read_varint(body, position, 5)
                else:
                    position += 1
                stop = position + size
                if stop > end:
                    raise overrun(end)
                # Nearly every KeyValue is a short key and then a short value. Seen in one glance; others are walked.
                key: bytes | None = None
                if size > 3 and body[position] == 0x0A:
                    value_at = position + 2 + body[position + 1]
                    if value_at + 1 < stop and body[value_at] == 0x12 and body[position + 1] < 0x80:
                        value_size = body[value_at + 1]
                        if value_size < 0x80 and value_at + 2 + value_size == stop:
                            key = body[position + 2 : value_at] if names is not None else b""
                if key is None:
                    key = read_key(body, position, stop)
                if names is not None:
                    name = names.get(key)
                    if name is not None:
                        if ours is None:
                            ours = []
                        ours.append((name, tag_at, position, stop))
                position = stop
            elif tag == 0x39:  # start_time_unix_nano
                if start_at:
                    if more_starts is None:
                        more_starts = []
                    more_starts.append(start_at)
                start_at = position
                position += 8
            elif tag == 0x41:  # end_time_unix_nano
                if end_at:
                    if more_ends is None:
                        more_ends = []
                    more_ends.append(end_at)
                end_at = position
                position += 8
            elif tag == 0x5A:  # events
                size, position = read_varint(body, position, 5)
                stop = position + size
                if stop > end:
                    raise overrun(end)
                times = _event_times(body, position, stop)
                if times:
                    if events is None:
                        events = []
                    events.append(times)
                position = stop
            elif tag < 8:
                raise no_field(tag, tag_at)
            elif tag & 7 == 2:  # ids, name, links, status
                size = body[position]
                if size >= 0x80:
                    size, position = read_varint(body, position, 5)
                else:
                    position += 1
                position += size
            else:
                position = skip_value(body, tag, position)
        if position != end:
            raise overrun(end)

        return self._decide(ours, end, start_at, more_starts, end_at, more_ends, events)


def _event_times(body: bytes, position: int, end: int) -> list[int]:
    """The places of an event's ``time_unix_nano``: usually one."""
    times: list[int] = []
    while position < end:
        tag = body[position]
        if tag >= 0x80:
            tag, position = read_tag(body, position)
        else:
            position += 1
        if tag == 0x09:
            times.append(position)
            position += 8
        elif tag < 8:
            raise no_field(tag, position - 1)
        else:
            position = skip_value(body, tag, position)
    if position != end:
        raise overrun(end)
    return times
