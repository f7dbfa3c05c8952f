"""Which requests go out together, and when: policy, sizes and times in, counts out.

A request costs a next hop and us far more than the bytes in it: ten spans by themselves cost nearly what five hundred
do. Waiting to fill a batch would trade that for delay. So who is alone never waits; what comes while a body is under
way, gathers, and goes when that ends: the bodies are as large as the load makes them.

The answer to a body sets all its exporters free at once, and a moment later they are back with their next requests.
The first of them should not run off alone. So a lane expects as many as went last, for ``HOLD_S`` at most; if fewer
come, fewer are expected from then on. An exporter that is alone is expected alone, and is not held.

A next hop that is far away would make the wait for an answer a round trip, so what has gathered for ``GATHER_S`` goes
anyway, beside what is under way.

A lane is what may share a body: one signal, one next hop, identical metadata. Requests leave a lane in the order in
which they came.

Limits: ``REQUESTS_MAX`` requests and ``JOINED_MAX_BYTES`` in one body (a larger request goes alone), ``IN_FLIGHT_MAX``
bodies under way in a lane. How many wait is bounded by the relay's admission. Pure: the caller has the clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

REQUESTS_MAX = 256
JOINED_MAX_BYTES = 1024 * 1024
IN_FLIGHT_MAX = 16
GATHER_S = 0.010
HOLD_S = 0.002

Item = TypeVar("Item")


@dataclass(slots=True)
class Limits:
    """See the module's text. All lanes of a signal share one; ``joined_max_bytes`` falls to what the next hop takes."""

    requests_max: int = REQUESTS_MAX
    joined_max_bytes: int = JOINED_MAX_BYTES
    in_flight_max: int = IN_FLIGHT_MAX
    gather_s: float = GATHER_S
    hold_s: float = HOLD_S


class Gathering(Generic[Item]):
    """What waits in one lane. Times are seconds of any clock that does not go back."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Item, int, bool, float]] = deque()
        self._bytes = 0
        self._alone = 0
        self._expected = 1
        self._idle_since_s = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def expects_one(self) -> bool:
        """Whether nothing waits, and the last body was one request."""
        return self._expected == 1 and not self._waiting

    def add(self, item: Item, size_bytes: int, joinable: bool, now_s: float) -> None:
        """One more waits. ``joinable``: whether other requests may be in one body with it."""
        alone = not joinable or size_bytes > self._limits.joined_max_bytes
        self._waiting.append((item, size_bytes, alone, now_s))
        self._bytes += size_bytes
        self._alone += alone

    def idle(self, now_s: float) -> None:
        """The last body under way has ended."""
        self._idle_since_s = now_s

    def due(self, in_flight: int, now_s: float) -> bool:
        """Whether the next body goes now, with so many under way."""
        due_in_s = self.due_in_s(in_flight, now_s)
        return due_in_s is not None and due_in_s <= 0

    def due_in_s(self, in_flight: int, now_s: float) -> float | None:
        """How long until time alone makes the next body due, 0 for now; None if something else has to happen first."""
        waiting, limits = self._waiting, self._limits
        if not waiting or in_flight >= limits.in_flight_max:
            return None
        full = self._alone or self._bytes >= limits.joined_max_bytes or len(waiting) >= limits.requests_max
        if full or (in_flight == 0 and len(waiting) >= self._expected):
            return 0.0
        oldest_s = waiting[0][3]
        until_s = oldest_s + limits.gather_s
        if in_flight == 0:
            until_s = min(until_s, max(oldest_s, self._idle_since_s) + limits.hold_s)
        return max(0.0, until_s - now_s)

    def take(self, single: bool = False) -> list[Item]:
        """The requests of the next body, at least one of those that wait; ``single``: exactly one."""
        taken: list[Item] = []
        size = 0
        while self._waiting:
            item, bytes_, alone, _ = self._waiting[0]
            if taken and (
                alone
                or single
                or len(taken) >= self._limits.requests_max
                or size + bytes_ > self._limits.joined_max_bytes
            ):
                break
            self._waiting.popleft()
            self._bytes -= bytes_
            self._alone -= alone
            size += bytes_
            taken.append(item)
            if alone:
                break
        self._expected = max(1, len(taken))
        return taken
