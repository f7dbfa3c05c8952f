"""Is this node's clock good enough to begin, will it be, or never? The decision behind ``skewd waitsync``.

    skewd waitsync [--max-uncertainty 1ms] [--timeout 60s] [--config FILE]

It waits until this node is synchronized with its reference and knows the offset within ``--max-uncertainty``, so that
what depends on the time can be started after it (``ExecStartPre=``, an init container). Exit codes:

======  ==================================================================================
0       ready; the line on standard output says against what, and how sure
1       not within ``--timeout``; the line on standard error says what was lacking
2       it can never succeed: no daemon came within ``--timeout``, or one has neither a source nor a peer
64      the command line or the configuration is wrong
======  ==================================================================================

A daemon that is not there may be starting, or being restarted, and is waited for like one that is slow: only when the
time is over is it said that there is none.
``holdover`` is not ready: the bound may be narrow enough, but nobody has confirmed it lately.

Limits: ready means ready now; what depends on it staying so asks ``skewd check``. Pure: it judges one status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from skewd.check import describe, rounded_up, short
from skewd.problems import Severity
from skewd.status import NodeStatus, decode

SEARCHED_S = 15.0
"""After this time a daemon has found a source on its machine, if there is one (``source_set.FIND_S``, and some)."""


class Outcome(IntEnum):
    """What is to be done; ready, late and never are exit codes."""

    READY = 0
    WAIT = 1
    NEVER = 2
    SEARCHING = 3
    """As things are it is never; but the daemon has just begun to look at what this machine has."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The outcome, and the reason in one line."""

    outcome: Outcome
    reason: str


def readiness(told: NodeStatus | Mapping[str, Any], *, max_uncertainty_ns: int, may_hear: bool) -> Readiness:
    """Judges a daemon's status, as read or as told.

    Args:
        max_uncertainty_ns: the largest uncertainty that is good enough.
        may_hear: whether the configuration names anything (a source, a peer, a link) that may still be heard.

    Raises:
        UnreadableStatus: it makes no sense.
    """
    status = decode(told)
    bound, offset, reference = status.bound, status.offset_ns, status.reference
    if bound is not None and offset is not None:
        uncertainty = bound.farthest(offset)
        if status.status == "synchronized" and uncertainty <= max_uncertainty_ns:
            size, spread = describe(offset, bound)
            where = "" if offset == 0 else f"{size} {'ahead of' if offset < 0 else 'behind'} "
            return Readiness(Outcome.READY, f"{status.node}: {where or 'agrees with '}{reference} ({spread})")
    if not may_hear and not status.sources and not status.peers:
        searching = not status.virtual and status.uptime_s is not None and status.uptime_s < SEARCHED_S
        return Readiness(
            Outcome.SEARCHING if searching else Outcome.NEVER,
            "there is no source and no peer to compare this clock with; add [[source]] or [mesh] peers",
        )
    if bound is None or offset is None:
        return Readiness(Outcome.WAIT, f"no bound on {reference or 'any reference'} yet{_said(status)}")
    if status.status == "synchronized":
        return Readiness(
            Outcome.WAIT,
            f"the bound against {reference} is +-{short(rounded_up(uncertainty))}, wider than "
            f"--max-uncertainty {short(max_uncertainty_ns)}; a nearer source or peer narrows it",
        )
    return Readiness(Outcome.WAIT, f"this node is {status.status}{_said(status)}")


def _said(status: NodeStatus) -> str:
    """The gravest thing that the daemon finds wrong, apart from being a test's."""
    for problem in status.problems:
        if problem.code != "virtual-clock" and "VIRTUAL" not in problem.text and problem.severity != Severity.INFO:
            return f" ({' '.join(problem.line.split())[:200]})"
    return ""
