"""Whether the sidecar is alive, and whether it takes requests.

Alive means that its event loop turns: everything else waits for that. The question is itself answered by the loop, so
a loop that stands gives no answer, which a probe understands; one that turns too slowly is found by timing two of its
turns. Only a question costs anything: a sidecar that nobody asks has no timer.

Ready means that its listeners are up and what they take goes on, with a bound or, while none is known, marked as
unsynchronized: the clock is no reason to send an application's spans elsewhere.

Limits: a loop that was slow a moment ago and is not while it is asked looks well.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

LAG_MAX_S = 2.0
"""A loop that takes longer for a turn is not alive: exporters time out after 10 s, several turns a request."""


@dataclass
class Health:
    """What is answered to probes.

    Attributes:
        ready: whether requests are taken.
        why: if not, in a few words.
        fault: what broke for good, for a sidecar that is about to end; else empty.
    """

    ready: bool = False
    why: str = "starting"
    fault: str = ""


async def loop_lag_s() -> float:
    """Seconds that the event loop takes for a turn, measured over two."""
    began_s = time.perf_counter()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return (time.perf_counter() - began_s) / 2
