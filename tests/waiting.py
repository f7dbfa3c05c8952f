"""Waiting for what must happen, on a machine of any speed.

The problem: a limit that is right on one machine fails on one that is slower, or busy. The insight: a limit must only
keep a test from hanging, so there is one, far beyond what anything takes, and no verdict hangs on it.

Limits: ``LIMIT_S`` lies below ``faulthandler_timeout`` (pyproject.toml), so that what was waited for is said before all
stacks are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 120.0
_POLL_S = 0.01


async def until(condition: Callable[[], Any], what: str = "what was waited for") -> Any:
    """Turns the loop until ``condition()`` holds; what it told then.

    Raises:
        AssertionError: it never did; the message says ``what``.
    """
    limit = time.monotonic() + LIMIT_S
    while not (told := condition()):
        assert time.monotonic() < limit, f"not within {LIMIT_S:g} s: {what}"
        await asyncio.sleep(_POLL_S)
    return told


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The same, where no loop turns."""
    limit = time.monotonic() + LIMIT_S
    while not (told := condition()):
        assert time.monotonic() < limit, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(_POLL_S)
    return told
