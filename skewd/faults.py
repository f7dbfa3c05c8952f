"""Faults of skewd's own: kept where they happen, counted, said, and never the end of the daemon.

The problem: an exception that nobody expected, raised inside the daemon's one loop, ends what all others rely on: no
bound is published any more, by any part. The service manager starts the daemon again, the same message comes again,
and after some starts it gives up.

The insight: what is published needs the clocks and first-hand bounds, and nothing else. Each other part (mesh code, a
source, a link, the steering) is entered through a guard here. If it raises, the part is *counted* by name, a problem
*says* where for ``TOLD_NS``, the log has the traceback once a minute, and the caller does without what the part would
have given: that, each caller decides.

Limits: ``WHERE_MAX`` places; only ``Exception``: an order to end goes through. A guard is no repair. What the part had
half done stays half done, so whoever guards a state also says what becomes of it (``Daemon._mesh_failed``).
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from skewd.problems import Problem
from skewd.quiet import QuietLog

TOLD_NS = 300_000_000_000
"""How long after a fault ``status`` names it: 5 minutes."""

WHERE_MAX = 32

PARTS = ("mesh", "source", "link", "discipline", "clockbound", "publish", "state", "status", "evidence", "loop")
"""What is counted by itself: ``skewd_faults_total{part}``."""

_CODES = {"mesh": "mesh-fault", "source": "source-fault", "link": "link-fault", "publish": "publish-fault"}
_DOES = {
    "mesh-fault": "this node goes on with the bounds that it measures itself",
    "source-fault": "what this source says is left out",
    "link-fault": "the message that caused it is dropped",
    "publish-fault": "unsynchronized is published until it is over",
    "internal-fault": "the rest goes on",
}


class Faults:
    """All of one daemon's.

    Args:
        monotonic_ns: for how long ago one was.
    """

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._log = QuietLog("skewd.faults", monotonic_ns)
        self._last: OrderedDict[tuple[str, str], tuple[int, int, str]] = OrderedDict()
        self.counts: dict[str, int] = dict.fromkeys(PARTS, 0)
        """Since the start, by part."""

    def failed(self, part: str, where: str, error: BaseException) -> None:
        """``error`` was raised in ``part`` (one of ``PARTS``), at ``where``, and is over with this."""
        self.counts[part] += 1
        count = self._last.pop((part, where), (0, 0, ""))[1] + 1
        self._last[part, where] = (self._monotonic_ns(), count, type(error).__name__)
        if len(self._last) > WHERE_MAX:
            self._last.popitem(last=False)
        self._log.error("internal_fault", about=(part, where), part=part, where=where, exc_info=error)

    @contextlib.contextmanager
    def guard(self, part: str, where: str, then: Callable[[], object] | None = None) -> Iterator[None]:
        """What is raised inside goes no further; after it ``then`` is called, guarded as well."""
        try:
            yield
        except Exception as error:
            self.failed(part, where, error)
            if then is not None:
                with self.guard(part, where):
                    then()

    def on_loop_error(self, context: dict[str, Any]) -> None:
        """A callback of the event loop raised: for ``loop.set_exception_handler``."""
        error = context.get("exception")
        self.failed("loop", "callback", error if error is not None else RuntimeError(str(context.get("message"))))

    def problems(self) -> list[Problem]:
        """Those of the last minutes."""
        now = self._monotonic_ns()
        found: list[Problem] = []
        for (part, where), (at_ns, count, kind) in self._last.items():
            if now - at_ns <= TOLD_NS:
                code = _CODES.get(part, "internal-fault")
                found.append(
                    Problem(
                        code,
                        where,
                        f"skewd's own code failed in {part} ({kind}, {count} times); {_DOES[code]}",
                        "report it with the log, which has the traceback",
                    )
                )
        return found
