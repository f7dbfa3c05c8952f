"""Which raw clock of each peer is the present one, and the one-way messages that nobody waits for.

Shared by all links of a daemon (``protocol.py`` says by which rules): a peer's boot and raw era that a fresh message
confirmed over one link hold on every other, and what went out on one link may be answered on another.

Limits: so many peers, one-way messages sent and heard; what nothing confirms expires. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from skewd.links import wire
from skewd.links.wire import Message

_SECOND = 1_000_000_000
_ONE_WAY_SENT = 1024
_ONE_WAY_HEARD = 1024
_ONE_WAY_ANSWERED_NS = 60 * _SECOND  # nobody waits longer for an answer


@dataclass(slots=True)
class _Timebase:
    theirs: tuple[bytes, int]
    ours: tuple[bytes, int]
    confirmed_ns: int


@dataclass(slots=True)
class Broadcast:
    """A one-way message of ours, and who has answered it."""

    receiver: str
    ours: tuple[bytes, int]
    sent_ns: int
    best_ns: int
    answered: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Heard:
    """The newest one-way message of a peer on one raw clock of its, and when it came on ours."""

    ours: tuple[bytes, int]
    nonce: bytes
    sent_ns: int
    received_ns: int


class Timebases:
    """Which boot and raw era of each peer is the present one. Shared by the links of a daemon, it keeps a slow link
    from bringing back what a fast one has seen replaced. Bounded; entries expire when nothing confirms them.

    The one-way messages that were sent and heard are kept here too: what went out on one link may be answered on
    another.
    """

    def __init__(self, *, limit: int = 2048, lifetime_ns: int = 300 * _SECOND) -> None:
        self._limit, self._lifetime_ns = limit, lifetime_ns
        self._entries: OrderedDict[str, _Timebase] = OrderedDict()
        self._sent: OrderedDict[bytes, Broadcast] = OrderedDict()
        self._heard: OrderedDict[tuple[str, tuple[bytes, int]], _Heard] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def current(self, name: str, ours: tuple[bytes, int], now_ns: int) -> tuple[tuple[bytes, int], int] | None:
        """The peer's present raw clock and when (on our raw clock ``ours``) it was last confirmed."""
        entry = self._entries.get(name)
        if entry is None or entry.ours != ours or now_ns - entry.confirmed_ns > self._lifetime_ns:
            return None
        return entry.theirs, entry.confirmed_ns

    def confirm(self, name: str, theirs: tuple[bytes, int], ours: tuple[bytes, int], now_ns: int) -> None:
        """A fresh message of the peer, on this raw clock of its, arrived at ``now_ns``."""
        self._entries[name] = _Timebase(theirs, ours, now_ns)
        self._entries.move_to_end(name)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    # -- one-way messages

    @property
    def one_way(self) -> int:
        """How many one-way messages are remembered, of ours and others."""
        return len(self._sent) + len(self._heard)

    def note_sent(self, nonce: bytes, receiver: str, ours: tuple[bytes, int], sent_ns: int) -> None:
        """A one-way message of ours left at ``sent_ns`` on our raw clock ``ours``."""
        self._sent[nonce] = Broadcast(receiver, ours, sent_ns, sent_ns)
        if len(self._sent) > _ONE_WAY_SENT:
            self._sent.popitem(last=False)

    def sent(self, nonce: bytes) -> Broadcast | None:
        """The one-way message of ours that has this nonce, if it is remembered."""
        return self._sent.get(nonce)

    def note_heard(self, message: Message, ours: tuple[bytes, int], now_ns: int) -> None:
        """A one-way message came; it may be answered unless a newer one of its sender did."""
        key = message.sender.name, message.sender.timebase
        known = self._heard.get(key)
        if known is not None and known.ours == ours and known.sent_ns >= message.sent_ns:
            return
        self._heard[key] = _Heard(ours, message.nonce, message.sent_ns, now_ns)
        self._heard.move_to_end(key)
        while len(self._heard) > _ONE_WAY_HEARD or self._stale(next(iter(self._heard.values())), ours, now_ns):
            self._heard.popitem(last=False)

    @staticmethod
    def _stale(heard: _Heard, ours: tuple[bytes, int], now_ns: int) -> bool:
        return heard.ours != ours or now_ns - heard.received_ns > _ONE_WAY_ANSWERED_NS

    def to_answer(self, receiver: str, ours: tuple[bytes, int]) -> tuple[wire.Answer, ...]:
        """The newest one-way messages that came from ``receiver``, or (empty) from anyone, newest first."""
        answers: list[wire.Answer] = []
        for (name, _), heard in reversed(self._heard.items()):
            if heard.ours == ours and receiver in ("", name):
                answers.append((heard.nonce, heard.received_ns))
                if len(answers) == wire.MAX_ANSWERS:
                    break
        return tuple(answers)
