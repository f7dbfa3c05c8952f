"""How many messages a source may send before they cost more than a glance.

Anyone can send from any address, so a table of sources must be bounded, and a bounded table can be flushed by
someone who makes up addresses. Hence two tables. Addresses that were configured, or from which a message came that
only a member could have made in answer to us, are *known*: only such messages put them there. All others are
*strangers*: each is limited, all together are limited, and the oldest gives way to the newest without a known
address ever noticing.

Each entry is one integer, the time at which a steady sender would be back within its rate (GCRA).

Limits: someone who forges a *known* address spends that address's allowance; the protocol therefore lets answers to
its own unguessable nonces past the limiter. During a flood of made-up addresses a genuine new one has to be lucky
to be heard: the nodes it is configured with know it anyway.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``per_s`` messages a second, after a burst of ``burst``."""

    per_s: int
    burst: int


KNOWN = Rate(100, 200)
STRANGER = Rate(20, 40)
STRANGERS = Rate(1000, 2000)


class Limiter:
    """Admission by source, with memory bounded by ``max_known + max_strangers`` entries."""

    def __init__(
        self,
        *,
        max_known: int,
        max_strangers: int = 1024,
        known: Rate = KNOWN,
        stranger: Rate = STRANGER,
        strangers: Rate = STRANGERS,
    ) -> None:
        self._max_known, self._max_strangers = max_known, max_strangers
        self._known_rate, self._stranger_rate, self._strangers_rate = known, stranger, strangers
        self._known: OrderedDict[str, int] = OrderedDict()
        self._strangers: OrderedDict[str, int] = OrderedDict()
        self._all_strangers = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def know(self, address: str) -> None:
        """``address`` is configured, or a member answered from there: the least recently known gives way."""
        if address in self._known:
            self._known.move_to_end(address)
            return
        self._known[address] = self._strangers.pop(address, 0)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)

    def forget(self, address: str) -> None:
        """``address`` is a stranger from now on."""
        self._known.pop(address, None)

    def knows(self, address: str) -> bool:
        """Whether ``address`` is known."""
        return address in self._known

    def admit(self, address: str, now_ns: int) -> bool:
        """Whether one more message from ``address`` is within its rate; counts it if so."""
        if address in self._known:
            due = _spend(self._known[address], now_ns, self._known_rate)
            if due is None:
                return False
            self._known[address] = due
            return True
        due = _spend(self._strangers.get(address, 0), now_ns, self._stranger_rate)
        if due is None:
            return False
        total = _spend(self._all_strangers, now_ns, self._strangers_rate)
        if total is None:
            return False
        self._all_strangers = total
        self._strangers[address] = due
        self._strangers.move_to_end(address)
        if len(self._strangers) > self._max_strangers:
            self._strangers.popitem(last=False)
        return True


def _spend(due_ns: int, now_ns: int, rate: Rate) -> int | None:
    """The next due time after one more message, or ``None`` when the allowance is spent."""
    step = _SECOND // rate.per_s
    allowance = step * rate.burst
    # Further ahead than a spent allowance can be: the clock went back (another epoch). Start afresh.
    if due_ns > now_ns + allowance or due_ns < now_ns:
        due_ns = now_ns
    due_ns += step
    return due_ns if due_ns <= now_ns + allowance else None
