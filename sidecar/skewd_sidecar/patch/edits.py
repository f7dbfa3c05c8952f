"""What is done to a body: a list of edits over the bytes that arrived, and times written in place.

A time keeps its size, so it is shifted in a copy of the whole body, made when the first is. Whatever changes a length
is an edit (from, to, replacement), in order of position; the lengths of the messages around it lie before it and are
known after it, so their place in the list is taken first and filled last. All is put together once, at the end.

Limits: of one body, as many edits as it has messages and attributes of ours. Pure.
"""

from __future__ import annotations

from skewd_sidecar.patch.attributes import Ours
from skewd_sidecar.patch.wire import FIXED64, UINT64_MAX, encode_varint


class Edits:
    """Those of one body."""

    __slots__ = ("_body", "_list", "_shifted")

    def __init__(self, body: bytes) -> None:
        self._body = body
        # (from, to, replacement) in order of position; None holds the place of what is not known yet.
        self._list: list[tuple[int, int, bytes] | None] = []
        self._shifted: bytearray | None = None

    def place(self) -> int:
        """Takes the next place in the list, for what is known later."""
        self._list.append(None)
        return len(self._list) - 1

    def fill(self, place: int, begin: int, end: int, replacement: bytes) -> None:
        """What belongs to a place that was taken."""
        self._list[place] = (begin, end, replacement)

    def append(self, begin: int, end: int, replacement: bytes) -> None:
        """Replaces these bytes, which lie behind all that was edited so far."""
        self._list.append((begin, end, replacement))

    def resize(self, place: int, size_at: int, begin: int, stop: int, grown: int) -> int:
        """Writes a length anew, at its place among the edits, if it changed; returns by how much the field grows."""
        if not grown:
            return 0
        encoded = encode_varint(stop - begin + grown)
        self._list[place] = (size_at, begin, encoded)
        return grown + len(encoded) - (begin - size_at)

    def move(self, moves: list[tuple[int, int, int]]) -> bool:
        """Shifts (place, time, by) all, or (if one would leave its range) none. Zeros stay."""
        for _, time, by in moves:
            if time and not 0 < time + by <= UINT64_MAX:
                return False
        if self._shifted is None:
            self._shifted = bytearray(self._body)
        for at, time, by in moves:
            if time:
                FIXED64.pack_into(self._shifted, at, time + by)
        return True

    def upsert(self, ours: Ours | None, end: int, added: bytes) -> int:
        """Removes attributes of ours and adds others at their message's ``end``; returns by how many bytes it grows."""
        growth = len(added)
        cut = end
        if ours is not None:
            growth -= sum(stop - begin for _, begin, _, stop in ours)
            # Ours at the very end, as a sidecar leaves them, are one cut together with what replaces them.
            while ours and ours[-1][3] == cut:
                cut = ours.pop()[1]
            self._list.extend((begin, stop, b"") for _, begin, _, stop in ours)
        self._list.append((cut, end, added))
        return growth

    def result(self) -> bytes:
        """The request with all edits made."""
        edits = [edit for edit in self._list if edit is not None]
        if not edits:
            return self._body if self._shifted is None else bytes(self._shifted)
        source = memoryview(self._body if self._shifted is None else self._shifted)
        pieces: list[bytes | memoryview] = []
        cursor = 0
        for begin, end, replacement in edits:
            pieces.append(source[cursor:begin])
            pieces.append(replacement)
            cursor = end
        pieces.append(source[cursor:])
        return b"".join(pieces)
