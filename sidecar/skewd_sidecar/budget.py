"""The memory that requests under way may take, all together: one account for whoever takes some.

What is charged is what a request is about to need, before it needs it: a receiver charges for what it converts, the
relay for what it patches and sends on. Who finds too little left tells its exporter to try again.

Limits: one alone is always admitted, since otherwise it could never be; how much one alone may need is bounded by
``most_for_one``, and what needs more is refused for good. An account, not an allocator: nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Callable

LEAST_FOR_ONE_BYTES = 64 * 1024 * 1024
"""What one request may always make, beside what it was: a small budget is for many at once, not against large ones."""


class Budget:
    """One account.

    Args:
        max_bytes: what all may have together.
        elsewhere: bytes that are held for requests that have given theirs back already; none by default.

    Attributes:
        held_bytes: charged now.
    """

    def __init__(self, max_bytes: int, elsewhere: Callable[[], int] = lambda: 0) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._elsewhere = elsewhere

    @property
    def most_for_one(self) -> int:
        """The bytes that one request may make beside its own."""
        return max(self.max_bytes, LEAST_FOR_ONE_BYTES)

    def admits(self, size: int, own: int = 0) -> bool:
        """Whether ``size`` more bytes are left, for one that has ``own`` of those that are charged."""
        held = max(self.held_bytes, self._elsewhere()) - own
        return held <= 0 or held + own + size <= self.max_bytes

    def charge(self, size: int) -> None:
        """Takes so many bytes, or gives them back (less than 0)."""
        self.held_bytes += size


class Charge:
    """What one request is charged, from here to ``set(0)``.

    Args:
        size: bytes.
    """

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size
        budget.charge(size)

    def set(self, size: int) -> None:
        """Charges so many bytes instead."""
        self._budget.charge(size - self.size)
        self.size = size
