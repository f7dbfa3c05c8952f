"""Which source of UTC this machine has anyway, when none is configured.

chronyd is asked first, since it tells the most; then ptp4l; the kernel's own figure comes last. What counts is that a
claim is made, not that a socket exists: a chronyd that follows nothing is passed over. No server beyond this machine
is ever asked.

Limits: the first that is found stays, also if a better one starts later; name it as [[source]] then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from skewd.clock import NodeClock
from skewd.sources.chrony import ChronyReader
from skewd.sources.claim import Refused
from skewd.sources.kernel import KernelReader
from skewd.sources.local import Reader
from skewd.sources.ptp import PtpReader


class Found(NamedTuple):
    """``chrony``, ``ptp`` or ``kernel``, or None; and why those that are here and came before it make no claim."""

    kind: str | None
    refusals: tuple[str, ...]


async def find(clock: NodeClock, directory: Path, max_drift_ppm: int, max_wander_ppb_per_s: int) -> Found:
    """The first that makes a claim.

    Args:
        directory: where our end of a Unix socket goes.
    """
    refusals: list[str] = []
    kinds: list[tuple[str, Callable[[], Reader]]] = [
        ("chrony", lambda: ChronyReader(None, clock, directory, max_drift_ppm, max_wander_ppb_per_s)),
        ("ptp", lambda: PtpReader(None, clock, directory, max_drift_ppm)),
        ("kernel", lambda: KernelReader(clock, max_drift_ppm)),
    ]
    for kind, make in kinds:
        reader = make()
        try:
            await reader()  # None, too: there is no claim yet, and there will be one
            return Found(kind, tuple(refusals))
        except Refused as refused:
            refusals.append(f"{kind}: {refused}")
        except OSError:
            continue  # it is not here
        finally:
            reader.close()
    return Found(None, tuple(refusals))
