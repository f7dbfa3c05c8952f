"""How much a body holds, counted before anything is made of it.

A patch makes more than it is given: an attribute costs a hundred bytes, and the record that gets six of them may have
come as eleven, or, compressed, as a hundredth of one. So the bytes that came say little about the memory that they will
take; what is in them does. This walks down to the spans or log records, which takes no memory and stops at the first
that is one too many, and says what was found. Whoever admits requests knows then what the patched one will be.

**Records** are spans and log records. **Elements** are what the patch keeps notes of beside them: batches, Resources
and scopes always, and in a long body (``DEEP_BYTES``) the attributes, times, events and links within the records, too;
in a shorter one they cannot be many.

Limits: it refuses what it cannot walk, in the words of the patch. A record's inside is walked only in a long body, so
what is wrong there may be left for the patch to find. Pure; a native twin (``census.rs``) counts the same.
"""

from __future__ import annotations

from typing import NamedTuple

from skewd_sidecar.patch.wire import MalformedRequest, no_field, overrun, read_tag, read_varint, skip_value

RECORDS_MAX = 65_536
"""Spans or log records in a request: eight times what a Collector batches by default."""
ELEMENTS_MAX = 2_097_152
"""Elements in a request: as many as 16 MiB of the smallest attributes that say something."""
DEEP_BYTES = 256 * 1024
"""Bodies longer than this are counted down to the attributes of their records."""

_IN_SPAN = frozenset((0x4A, 0x5A, 0x6A, 0x39, 0x41))  # attributes, events, links, start, end
_IN_LOG_RECORD = frozenset((0x32, 0x09))  # attributes, time
_EVENTS = 0x5A
_EVENT_TIME = 0x09


class TooMuch(ValueError):
    """A request holds more than one may; the message says what, and which key of the configuration allows more."""


class Census(NamedTuple):
    """What a body holds; see the module's text. A count beyond its limit is no more than one beyond it."""

    records: int
    elements: int


def take_census(body: bytes, logs: bool, records_max: int = RECORDS_MAX, elements_max: int = ELEMENTS_MAX) -> Census:
    """Counts what a serialized ``ExportTraceServiceRequest`` or ``ExportLogsServiceRequest`` holds.

    Args:
        body: the request, not compressed.
        logs: which of both it is.
        records_max, elements_max: beyond which the count ends.

    Raises:
        MalformedRequest: it cannot be walked.
    """
    count = _Count(body, logs, records_max, elements_max)
    try:
        count.request()
    except _Enough:
        pass
    except IndexError:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {len(body)}") from None
    return Census(count.records, count.elements)


def refuse_too_much(census: Census, records_max: int = RECORDS_MAX, elements_max: int = ELEMENTS_MAX) -> None:
    """
    Raises:
        TooMuch: a count is beyond its limit.
    """
    if census.records > records_max:
        raise TooMuch(
            f"the request holds more than {records_max} spans or log records; send fewer at once, "
            "or raise [sidecar] max_request_records"
        )
    if census.elements > elements_max:
        raise TooMuch(
            f"the request holds more than {elements_max} parts (batches, scopes, attributes, events, links, metrics, "
            "JSON values); send fewer at once, or raise [sidecar] max_request_elements"
        )


def count_fields(body: bytes, elements_max: int = ELEMENTS_MAX) -> Census:
    """Counts the outermost fields of any message, which is what is looked at of metrics and profiles.

    Raises:
        MalformedRequest: its fields do not add up to its length; in the words of ``check_message``.
    """
    position, end, count = 0, len(body), 0
    try:
        while position < end and count <= elements_max:
            count += 1
            tag, position = read_tag(body, position)
            position = skip_value(body, tag, position)
    except IndexError:
        position = end + 1
    if position > end:
        raise MalformedRequest(f"malformed OTLP body: it ends inside a field, at byte {end}")
    return Census(0, count)


class _Enough(Exception):
    """A limit is passed: what comes after it changes nothing."""


class _Count:
    """The counts of one body, and the walk that makes them."""

    __slots__ = ("_body", "_deep", "_elements_max", "_inside", "_logs", "_records_max", "elements", "records")

    def __init__(self, body: bytes, logs: bool, records_max: int, elements_max: int) -> None:
        self._body = body
        self._logs = logs
        self._inside = _IN_LOG_RECORD if logs else _IN_SPAN
        self._deep = len(body) > DEEP_BYTES
        self._records_max = records_max
        self._elements_max = elements_max
        self.records = self.elements = 0

    def _element(self) -> None:
        self.elements += 1
        if self.elements > self._elements_max:
            raise _Enough

    def request(self) -> None:
        body, position, end = self._body, 0, len(self._body)
        while position < end:
            tag, position = read_tag(body, position)
            if tag != 0x0A:
                position = skip_value(body, tag, position)
                continue
            self._element()
            position = self._batch(*self._content(position, end))
        if position != end:
            raise overrun(end)

    def _content(self, position: int, end: int) -> tuple[int, int]:
        """The content of the LEN field whose length is at ``position``."""
        size, begin = read_varint(self._body, position, 5)
        if begin + size > end:
            raise overrun(end)
        return begin, begin + size

    def _batch(self, position: int, end: int) -> int:
        body = self._body
        while position < end:
            tag, position = read_tag(body, position)
            if tag not in (0x0A, 0x12):
                position = skip_value(body, tag, position)
                continue
            self._element()
            begin, position = self._content(position, end)
            if tag == 0x12:
                self._scope(begin, position)
            elif self._deep:
                self._resource(begin, position)
        if position != end:
            raise overrun(end)
        return end

    def _resource(self, position: int, end: int) -> None:
        body = self._body
        while position < end:
            tag, position = read_tag(body, position)
            if tag == 0x0A:
                self._element()
            position = skip_value(body, tag, position)
        if position != end:
            raise overrun(end)

    def _scope(self, position: int, end: int) -> None:
        """The innermost loop: it steps over records by their length."""
        body, deep, most = self._body, self._deep, self._records_max
        while position < end:
            tag = body[position]
            if tag >= 0x80:
                tag, position = read_tag(body, position)
            else:
                position += 1
            if tag != 0x12:
                if tag < 8:
                    raise no_field(tag, position - 1)
                position = skip_value(body, tag, position)
                continue
            self.records += 1
            if self.records > most:
                raise _Enough
            size, position = read_varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise overrun(end)
            if deep:
                self._record(position, stop)
            position = stop
        if position != end:
            raise overrun(end)

    def _record(self, position: int, end: int) -> None:
        body, inside, events = self._body, self._inside, not self._logs
        while position < end:
            tag = body[position]
            if tag >= 0x80:
                tag, position = read_tag(body, position)
            else:
                position += 1
                if tag < 8:
                    raise no_field(tag, position - 1)
            if tag in inside:
                self._element()
                if tag == _EVENTS and events:
                    begin, position = self._content(position, end)
                    self._event(begin, position)
                    continue
            position = skip_value(body, tag, position)
        if position != end:
            raise overrun(end)

    def _event(self, position: int, end: int) -> None:
        body = self._body
        while position < end:
            tag, position = read_tag(body, position)
            if tag == _EVENT_TIME:
                self._element()
            position = skip_value(body, tag, position)
        if position != end:
            raise overrun(end)
