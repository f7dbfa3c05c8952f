"""Where in a log record the fields lie that concern a clock: its two times, and attributes of ours.

``time_unix_nano`` takes the place of a span's start, ``observed_time_unix_nano`` that of its end. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from skewd_sidecar.patch.attributes import Ours
from skewd_sidecar.patch.wire import overrun, read_key, read_tag, read_varint, skip_value

Decide: TypeAlias = Callable[[Ours | None, int, int, list[int] | None, int, list[int] | None], int]
"""What a record's places are handed to: see ``Decision.log_record``."""


class LogRecordReader:
    """Reads the log records of one body; the arguments are those of ``SpanReader``."""

    __slots__ = ("_body", "_decide", "_names")

    def __init__(self, body: bytes, names: Mapping[bytes, str] | None, decide: Decide) -> None:
        self._body = body
        self._names = names
        self._decide = decide

    def read(self, position: int, end: int) -> int:
        """Reads one log record and has it decided on; returns by how many bytes it grows."""
        body, names = self._body, self._names
        time_at = observed_at = 0
        more: list[int] | None = None
        more_observed: list[int] | None = None
        ours: Ours | None = None
        while position < end:
            tag_at = position
            tag, position = read_tag(body, position)
            if tag == 0x32:  # attributes
                size, position = read_varint(body, position, 5)
                stop = position + size
                if stop > end:
                    raise overrun(end)
                key = read_key(body, position, stop)
                name = names.get(key) if names is not None else None
                if name is not None:
                    ours = [*(ours or ()), (name, tag_at, position, stop)]
                position = stop
            elif tag == 0x09:  # time_unix_nano
                if time_at:
                    if more is None:
                        more = []
                    more.append(time_at)
                time_at = position
                position += 8
            elif tag == 0x59:  # observed_time_unix_nano
                if observed_at:
                    more_observed = [*(more_observed or ()), observed_at]
                observed_at = position
                position += 8
            else:
                position = skip_value(body, tag, position)
        if position != end:
            raise overrun(end)
        return self._decide(ours, end, time_at, more, observed_at, more_observed)
