"""What becomes of a request on its way through: policy, in bytes and out bytes.

A sidecar stands in the export path of everything a process says about itself, so the safest thing it can do with
most of it is nothing. Spans and log records are corrected; metrics and profiles go on as the very bytes that came,
after a look at their outermost fields that catches a body cut short. A span for which no bound is known goes on at
once, and says so: no request ever waits for the clock to be known.

Limits: a request of ``BODY_MAX_BYTES`` at most, decompressed; the receivers enforce it while they read. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import TypeAlias

from skewd.bounds.history import CorrectionSource
from skewd.bounds.table import Table
from skewd_sidecar.counts import Counts
from skewd_sidecar.kernel import Kernel, choose
from skewd_sidecar.patch import Action, PatchOptions, PatchResult, check_message

Metadata: TypeAlias = tuple[tuple[str, str], ...]
"""What of a request's headers goes on with it: names in lower case, sorted; only those that the settings allow."""

BODY_MAX_BYTES = 16 * 1024 * 1024
"""The largest request taken, after decompression: four times what OTLP receivers take by default."""


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


class Gateway:
    """Patches requests and counts what was delivered.

    Args:
        options: how spans are patched; an empty ``node`` means: as the source names it.
        source: what the node's stamps deserve.
        fallback_node: the name used while neither knows one.
        kernel: what patches; the native one where there is one.

    Attributes:
        spans: delivered spans by action.
        log_records: delivered log records by action.
        requests: requests by signal and result (``delivered``, ``malformed``, ``busy``, ``loop``, or ``failed``
            downstream).
        counts: what receivers and forwarders count.
    """

    def __init__(
        self,
        options: PatchOptions,
        source: CorrectionSource,
        fallback_node: str = "unknown",
        kernel: Kernel | None = None,
    ) -> None:
        self._named = bool(options.node)
        self._options = options if self._named else replace(options, node=fallback_node)
        self._source = source
        # Not every source has a table: one that says something else at every call (a test's) is simply asked.
        self._table: Callable[[], Table | None] = getattr(source, "table", lambda: None)
        self._kernel = choose() if kernel is None else kernel
        self.spans: Counter[str] = Counter({action.value: 0 for action in Action})
        self.log_records: Counter[str] = Counter({action.value: 0 for action in Action})
        self.requests: Counter[tuple[str, str]] = Counter()
        self.counts = Counts()

    @property
    def options(self) -> PatchOptions:
        """The options in force. A daemon that starts after its sidecar still names the node."""
        if not self._named:
            node = self._source.node
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

    def handle(self, signal: Signal, body: bytes) -> PatchResult:
        """The request to send on instead of ``body``.

        Raises:
            MalformedRequest: refuse it; retrying would not help.
        """
        if signal is Signal.TRACES:
            return self._kernel.traces(body, self.options, self._source.at, self._table())
        if signal is Signal.LOGS:
            return self._kernel.logs(body, self.options, self._source.at, self._table())
        check_message(body)
        return PatchResult(body, 0, {})

    def delivered(self, signal: Signal, result: PatchResult) -> None:
        """Counts a request that the next hop has acknowledged: an exporter's retries are not counted twice."""
        (self.log_records if signal is Signal.LOGS else self.spans).update(result.actions)
        self.requests[signal.value, "delivered"] += 1

    def undelivered(self, signal: Signal, why: str) -> None:
        """Counts a request that was refused here (``malformed``, ``busy``, ``loop``) or ``failed`` downstream."""
        self.requests[signal.value, why] += 1
