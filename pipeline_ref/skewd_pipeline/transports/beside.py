"""What else a thread should look after while one of its ends waits.

The problem: a stage may own ends of two transports, and only one of them carries the clocks' conversation. Waiting in
the other would silence it. The insight: whoever has something to turn says so, per thread; whoever waits asks.

While a thread's owner expects no work, ``EVERY_S`` would be a hundred wakes a second for a conversation that has time:
:func:`seldom` makes it ``SELDOM_S``.

Limits: one turner per thread and transport (all ends of a transport in a thread are one group); a turner never blocks
and never raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

# How long a wait elsewhere may leave the conversation alone. A late frame widens a bound, it never falsifies it.
EVERY_S = 0.01
SELDOM_S = 0.1


class _Beside(threading.local):
    def __init__(self) -> None:
        self.turns: dict[str, Callable[[], None]] = {}
        self.every_s = EVERY_S


_beside = _Beside()


def register(transport: str, turn: Callable[[], None] | None) -> None:
    """From now on this thread's waits elsewhere call ``turn``; ``None``: nothing to turn any more."""
    if turn is None:
        _beside.turns.pop(transport, None)
    else:
        _beside.turns[transport] = turn


@contextlib.contextmanager
def seldom() -> Iterator[None]:
    """In here this thread waits for no work, so what is beside is turned every ``SELDOM_S`` only."""
    _beside.every_s = SELDOM_S
    try:
        yield
    finally:
        _beside.every_s = EVERY_S


def slice_of(rest_s: float, longest_s: float, waiting: str = "") -> float:
    """How long to wait in one go: what is left, at most ``longest_s``, less when there is something else to turn.

    Args:
        waiting: the transport in which one waits, which turns itself.
    """
    others = _beside.turns.keys() - {waiting}
    return max(0.0, min(rest_s, longest_s if not others else _beside.every_s))


def turn(waiting: str = "") -> None:
    """Turns whatever is registered, but not the transport in which one waits."""
    for transport, each in list(_beside.turns.items()):
        if transport != waiting:
            each()
