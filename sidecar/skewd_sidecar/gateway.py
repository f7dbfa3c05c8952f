"""What becomes of a request on its way through: policy, in bytes and out bytes.

A sidecar stands in the export path of everything a process says about itself, so the safest thing it can do with
most of it is nothing. Spans and log records are corrected; metrics and profiles go on as the very bytes that came,
after a look at their outermost fields that catches a body cut short. A span for which no bound is known goes on at
once, and says so: no request ever waits for the clock to be known. That is as true where the clock cannot be read: a
source that raises an exception knows nothing of a stamp.

How much a request will be is known before it is made (:meth:`Gateway.foresee`): a request is counted first, and refused
if it holds more than one may.

Limits: a request of ``BODY_MAX_BYTES`` at most, decompressed; the receivers enforce it while they read. ``records_max``
spans or log records and ``elements_max`` parts in one. Pure; :meth:`Gateway.handle` may be called on several threads.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias, TypeVar

from skewd.bounds.history import UNSYNCHRONIZED, Correction, CorrectionSource
from skewd.bounds.table import Table
from skewd.quiet import QuietLog
from skewd_sidecar.counts import Counts, Reading
from skewd_sidecar.kernel import Kernel, choose
from skewd_sidecar.patch import (
    ELEMENTS_MAX,
    RECORDS_MAX,
    Action,
    PatchOptions,
    PatchResult,
    check_message,
    count_fields,
    record_growth_bytes,
    refuse_too_much,
)

T = TypeVar("T")

Metadata: TypeAlias = tuple[tuple[str, str], ...]
"""What of a request's headers goes on with it: names in lower case, sorted; only those that the settings allow."""

BODY_MAX_BYTES = 16 * 1024 * 1024
"""The largest request taken, after decompression: four times what OTLP receivers take by default."""


log = QuietLog(__name__)


class Signal(StrEnum):
    """What a request carries; the value is its path segment over HTTP."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"
    PROFILES = "profiles"

    @property
    def http_path(self) -> str:
        """The path that OTLP/HTTP defines."""
        return "/v1development/profiles" if self is Signal.PROFILES else f"/v1/{self.value}"

    @property
    def grpc_service(self) -> str:
        """The service that OTLP/gRPC defines; its one method is ``Export``."""
        name = {
            Signal.TRACES: "trace.v1.Trace",
            Signal.METRICS: "metrics.v1.Metrics",
            Signal.LOGS: "logs.v1.Logs",
            Signal.PROFILES: "profiles.v1development.Profiles",
        }[self]
        return f"opentelemetry.proto.collector.{name}Service"


class Foreseen(NamedTuple):
    """What a request will need.

    Attributes:
        growth_bytes: by how much it grows, at most.
        notes_bytes: what the patch keeps in mind meanwhile.
    """

    growth_bytes: int
    notes_bytes: int


class Gateway:
    """Patches requests and counts what was delivered.

    Args:
        options: how spans are patched; an empty ``node`` means: as the source names it.
        source: what the node's stamps deserve.
        fallback_node: the name used while neither knows one.
        kernel: what patches; the native one where there is one.
        records_max: spans or log records in one request.
        elements_max: what else one may hold: see :mod:`skewd_sidecar.patch.census`.

    Attributes:
        spans: delivered spans by action.
        log_records: delivered log records by action.
        requests: requests by signal and result (``delivered``, ``malformed``, ``too_many``, ``busy``, ``loop``,
            ``fault``, or ``failed`` downstream).
        clock_faults: how often the source could not be asked.
        counts: what receivers and forwarders count.
    """

    def __init__(
        self,
        options: PatchOptions,
        source: CorrectionSource,
        fallback_node: str = "unknown",
        kernel: Kernel | None = None,
        records_max: int = RECORDS_MAX,
        elements_max: int = ELEMENTS_MAX,
    ) -> None:
        self._named = bool(options.node)
        self._options = options if self._named else replace(options, node=fallback_node)
        self._source = source
        # Not every source has a table: one that says something else at every call (a test's) is simply asked.
        self._table: Callable[[], Table | None] = getattr(source, "table", lambda: None)
        self._reading: Callable[[], int | None] = getattr(source, "reading_ns", lambda: None)
        self._kernel = choose() if kernel is None else kernel
        self._records_max = records_max
        self._elements_max = elements_max
        self._asking = threading.Lock()  # sources are for one thread, patches for several
        self._growth: tuple[PatchOptions | None, int] = (None, 0)
        self.spans: Counter[str] = Counter({action.value: 0 for action in Action})
        self.log_records: Counter[str] = Counter({action.value: 0 for action in Action})
        self.requests: Counter[tuple[str, str]] = Counter()
        self.counts = Counts()
        self.clock_faults = 0
        about = "Times that the clock's source failed; what was asked for went on as unsynchronized."
        self.counts.readings.append(
            Reading("skewd_clock_source_faults_total", about, "counter", (), lambda: {(): self.clock_faults})
        )

    @property
    def options(self) -> PatchOptions:
        """The options in force. A daemon that starts after its sidecar still names the node."""
        if not self._named:
            node = self._of_source(lambda: self._source.node, "")
            if node and node != self._options.node:
                self._options = replace(self._options, node=node)
        return self._options

    @property
    def virtual(self) -> bool:
        """Whether corrections come from a test's stand-in rather than a node's own clock."""
        return bool(getattr(self._source, "virtual", False))

    @property
    def kernel(self) -> str:
        """Which twin patches: ``native`` or ``python``."""
        return self._kernel.name

    @property
    def inline_bytes(self) -> int:
        """How long a body may be that is counted and patched at once; a longer one would keep others waiting."""
        return self._kernel.inline_bytes

    def foresee(self, signal: Signal, body: bytes) -> Foreseen:
        """What a request will need, counted before anything is made of it.

        Raises:
            MalformedRequest, TooMuch: refuse it; retrying would not help.
        """
        if signal not in (Signal.TRACES, Signal.LOGS):
            refuse_too_much(count_fields(body, self._elements_max), self._records_max, self._elements_max)
            return Foreseen(0, 0)
        census = self._kernel.census(body, signal is Signal.LOGS, self._records_max, self._elements_max)
        refuse_too_much(census, self._records_max, self._elements_max)
        options = self._options
        if self._growth[0] is not options:
            self._growth = (options, record_growth_bytes(options))
        kernel = self._kernel
        # What is written on a Resource its first span does not carry.
        return Foreseen(
            self._growth[1] * census.records,
            kernel.record_bytes * census.records + kernel.element_bytes * census.elements,
        )

    def handle(self, signal: Signal, body: bytes) -> PatchResult:
        """The request to send on instead of ``body``.

        Raises:
            MalformedRequest: refuse it; retrying would not help.
        """
        if signal in (Signal.TRACES, Signal.LOGS):
            with self._asking:
                options, (table, until_ns) = self.options, self._known()
            patch = self._kernel.traces if signal is Signal.TRACES else self._kernel.logs
            return patch(body, options, self._at, table, until_ns)
        check_message(body)
        return PatchResult(body, 0, {})

    def _known(self) -> tuple[Table | None, int | None]:
        """The table, and what the clock reads. Without a reading nothing is known ahead of each stamp."""
        nothing: tuple[Table | None, int | None] = (None, None)
        return self._of_source(lambda: (self._table(), self._reading()), nothing)

    def _at(self, wall_ns: int) -> Correction:
        with self._asking:
            return self._of_source(lambda: self._source.at(wall_ns), UNSYNCHRONIZED)

    def _of_source(self, ask: Callable[[], T], otherwise: T) -> T:
        """What the source says; ``otherwise`` if it fails: a clock's fault costs no request."""
        try:
            return ask()
        except Exception as error:
            self.clock_faults += 1
            why = f"{type(error).__name__}: {error}"
            log.error("the clock cannot be asked; spans go on as unsynchronized", why=why)
            return otherwise

    def delivered(self, signal: Signal, result: PatchResult) -> None:
        """Counts a request that the next hop has acknowledged: an exporter's retries are not counted twice."""
        (self.log_records if signal is Signal.LOGS else self.spans).update(result.actions)
        self.requests[signal.value, "delivered"] += 1

    def undelivered(self, signal: Signal, why: str) -> None:
        """Counts a request that was refused here, or ``failed`` downstream: the words of ``requests``."""
        self.requests[signal.value, why] += 1
