"""What else a thread should look after while one of its ends waits.

The problem: a stage may own ends of two transports, and only one of them carries the clocks' conversation. Waiting in
the other would silence it. The insight: whoever has something to turn says so, per thread; whoever waits asks.

Limits: one turner per thread (all ZeroMQ ends of a thread are one group); a turner never blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# How long a wait elsewhere may leave the conversation alone. A late frame widens a bound, it never falsifies it.
EVERY_S = 0.01


class _Beside(threading.local):
    turn: Callable[[], None] | None = None


_beside = _Beside()


def register(turn: Callable[[], None] | None) -> None:
    """From now on this thread's waits elsewhere call ``turn``; ``None``: nothing to turn any more."""
    _beside.turn = turn


def slice_of(rest_s: float, longest_s: float) -> float:
    """How long to wait in one go: what is left, at most ``longest_s``, less when there is something to turn."""
    return max(0.0, min(rest_s, longest_s if _beside.turn is None else EVERY_S))


def turn() -> None:
    """Turns whatever is registered; does nothing otherwise."""
    if _beside.turn is not None:
        _beside.turn()
