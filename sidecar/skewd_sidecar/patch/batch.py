"""The way down a request: to its batches, to their Resource and scopes, and to the spans or log records in those.

Field 1 of the request is ResourceSpans or ResourceLogs, field 2 of that are its scopes, and field 2 of those the spans
or log records; so one walk does for both signals. On the way back up each message tells by how much it grew, and its
length is repaired if it did. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skewd_sidecar.patch.attributes import FACTS, RESOURCE, Ours
from skewd_sidecar.patch.edits import Edits
from skewd_sidecar.patch.facts import Facts
from skewd_sidecar.patch.wire import (
    encode_field,
    no_field,
    overrun,
    read_key,
    read_tag,
    read_value,
    read_varint,
    skip_value,
)


class Walk:
    """One body on its way through.

    Args:
        names: by key, those of our attributes.
        trust: whether what a Resource brought along under them is believed.
        read: reads one span or log record, from where it begins to where it ends; returns by how much it grows.
        facts: of the batch under way.
        edits: takes what is to be done to the body.
    """

    __slots__ = ("_body", "_edits", "_facts", "_names", "_read", "_trust")

    def __init__(
        self,
        body: bytes,
        names: Mapping[bytes, str],
        trust: bool,
        read: Callable[[int, int], int],
        facts: Facts,
        edits: Edits,
    ) -> None:
        self._body = body
        self._names = names
        self._trust = trust
        self._read = read
        self._facts = facts
        self._edits = edits

    def request(self) -> None:
        """Walks all of it.

        Raises:
            IndexError: it ends inside a field.
            MalformedRequest: it cannot be walked.
        """
        self.children(0, len(self._body), 0x0A, self.batch)

    def children(self, position: int, end: int, wanted: int, walk: Callable[[int, int], int]) -> int:
        """Walks the fields ``wanted`` of a message, each of them with ``walk``; returns by how many bytes it grows."""
        body, edits = self._body, self._edits
        growth = 0
        while position < end:
            tag = body[position]
            if tag >= 0x80:
                tag, position = read_tag(body, position)
            else:
                position += 1
            if tag != wanted:
                if tag < 8:
                    raise no_field(tag, position - 1)
                position = skip_value(body, tag, position)
                continue
            size_at = position
            size, position = read_varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise overrun(end)
            place = edits.place()
            growth += edits.resize(place, size_at, position, stop, walk(position, stop))
            position = stop
        if position != end:
            raise overrun(end)
        return growth

    def batch(self, position: int, end: int) -> int:
        """Walks one ResourceSpans or ResourceLogs; returns by how many bytes it grows.

        The Resource is read before any span, wherever it lies, and written after all of them.
        """
        body, edits = self._body, self._edits
        inside: list[tuple[int, int, int, Ours | None]] = []  # None: scope spans
        while position < end:
            tag_at = position
            tag, position = read_tag(body, position)
            if tag not in (0x0A, 0x12):
                position = skip_value(body, tag, position)
                continue
            size_at = position
            size, position = read_varint(body, position, 5)
            if position + size > end:
                raise overrun(end)
            ours = self._resource(position, position + size) if tag == 0x0A else None
            inside.append((size_at, position, position + size, ours))
            position += size
        if position != end:
            raise overrun(end)

        self._facts.begin(
            (name, read_value(body, begin, stop))
            for _, _, _, ours in (inside if self._trust else ())
            for name, _, begin, stop in ours or ()
            if name in FACTS
        )
        growth = 0
        resources: list[tuple[int, int, int, int, int, int]] = []
        for size_at, begin, stop, ours in inside:
            place = edits.place()
            if ours is None:
                growth += edits.resize(place, size_at, begin, stop, self.children(begin, stop, 0x12, self._read))
                continue
            cut = 0
            if not self._trust:
                for _, tag_at, _, behind in ours:
                    edits.append(tag_at, behind, b"")
                    cut += behind - tag_at
            resources.append((place, size_at, begin, stop, cut, edits.place()))
        added = self._facts.lacking()
        for number, (place, size_at, begin, stop, cut, addition) in enumerate(resources, 1):
            grown = -cut
            if added and number == len(resources):
                edits.fill(addition, stop, stop, added)
                grown += len(added)
            growth += edits.resize(place, size_at, begin, stop, grown)
        if added and not resources:
            resource = encode_field(RESOURCE, added)
            edits.append(end, end, resource)
            growth += len(resource)
        return growth

    def _resource(self, position: int, end: int) -> Ours:
        """Reads a Resource: which of its attributes are ours."""
        body, names = self._body, self._names
        ours: Ours = []
        while position < end:
            tag_at = position
            tag, position = read_tag(body, position)
            if tag != 0x0A:
                position = skip_value(body, tag, position)
                continue
            size, position = read_varint(body, position, 5)
            stop = position + size
            if stop > end:
                raise overrun(end)
            name = names.get(read_key(body, position, stop))
            if name is not None:
                ours.append((name, tag_at, position, stop))
            position = stop
        if position != end:
            raise overrun(end)
        return ours
