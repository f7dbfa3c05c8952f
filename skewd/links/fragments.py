"""Messages that Aeron carries in fragments, put together again. Pure.

Whatever is longer than a packet (1,376 bytes with Aeron's own MTU) travels in fragments, and a poll takes as many of
them as have arrived by then, up to its limit. The binding (PyPI ``pyaeron``) can put them together, but it keeps what
is unfinished with the very object that it was given as handler: one that is another at each poll, as a bound method
is, loses every message whose fragments two polls took, without a word. And it sets no limit: whoever publishes chooses
how long a message is, up to 16 MB, and how many sessions leave one unfinished. So fragments are asked for one by one
and put together here, by the flags of their headers: a fragment says whether it begins and whether it ends a message,
and within a session (one publication as one subscriber sees it) they come in order and without gaps.

Limits: ``max_bytes`` a message, unfinished ones of ``SENDERS_MAX`` sessions. A channel that is told to be unreliable
has gaps; what they tear is put together wrongly, and refused by whoever reads it.
"""

from __future__ import annotations

SENDERS_MAX = 16
_BEGIN, _END = 0x80, 0x40


class TooLong(ValueError):
    """A message beyond the limit; what is left of it is passed over."""


class Assembler:
    """Of one subscription.

    Args:
        max_bytes: the longest message taken.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._unfinished: dict[int, bytearray] = {}

    def add(self, session: int, flags: int, fragment: bytes) -> bytes | None:
        """The message that this fragment completes, if it does.

        Raises:
            TooLong: with this fragment it is over the limit.
        """
        whole = bool(flags & _BEGIN and flags & _END)
        message = bytearray() if flags & _BEGIN else self._unfinished.get(session)
        if message is None:
            return None
        if flags & _BEGIN:
            self._unfinished.pop(session, None)  # one that was torn
        if len(message) + len(fragment) > self._max_bytes:
            self._unfinished.pop(session, None)
            raise TooLong(f"more than {self._max_bytes} bytes")
        if whole:
            return fragment
        message += fragment
        if flags & _END:
            del self._unfinished[session]
            return bytes(message)
        if flags & _BEGIN:
            if len(self._unfinished) >= SENDERS_MAX:  # one that went in the middle of a message
                self._unfinished.pop(next(iter(self._unfinished)))
            self._unfinished[session] = message
        return None
