"""What a request costs a sidecar for each byte that came: processor time, and memory beyond what it was charged for.

A body that is worth a look at all is worth one at a hundred times its length: of protobuf, the same bytes again and
again are a body (repeated fields go on), and of JSON, the same value in a list. So whatever a fuzzer finds is made
long, where a cost that grows faster than the length shows.

Limits: of the process's memory Linux tells the highest since it was asked to forget (``clear_refs``); what is taken
from pages that were there already isn't seen, so the figure is from below. Time is the process's own, and of a machine
that is busy otherwise: the limits are an order of magnitude above what is usual, and are tried a second time.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skewd.bounds.table import Table
from skewd_sidecar.gateway import Gateway, Signal
from skewd_sidecar.kernel import Kernel
from skewd_sidecar.patch import MalformedRequest, PatchOptions, TooMuch
from skewd_sidecar.receive.json_census import take_json_census
from skewd_sidecar.receive.otlp_json import to_protobuf
from skewd_sidecar.relay import COPIES

LONG_BYTES = 256 * 1024
NS_PER_BYTE = 4000
FLAT_BYTES = 6 << 20
FLAT_NS = 50_000_000
_SELF = Path("/proc/self")


class Given:
    """A source that says what it is given."""

    node = "a"

    def __init__(self, ask: Callable[[int], Any], table: Table | None) -> None:
        self.at = ask
        self.table = lambda: table


def measured(work: Callable[[], object]) -> tuple[int, int]:
    """Processor time (ns) and memory (bytes, beyond that of before) that something takes; it may refuse."""
    (_SELF / "clear_refs").write_text("5")
    before = _kib("VmRSS")
    began = time.process_time_ns()
    with contextlib.suppress(MalformedRequest, TooMuch):
        work()
    return time.process_time_ns() - began, (_kib("VmHWM") - before) * 1024


def _kib(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", (_SELF / "status").read_text())
    assert found is not None
    return int(found[1])


def check(work: Callable[[], object], length: int, charged: int, slower: int, what: str) -> None:
    """Compares with the limits; ``slower``: by how much this process is, since it is watched.

    Raises:
        AssertionError: it costs more.
    """
    limit_ns = FLAT_NS + slower * NS_PER_BYTE * length
    for last in (False, True):
        took_ns, took_bytes = measured(work)
        assert took_bytes <= charged + FLAT_BYTES, f"{what}: {took_bytes} bytes, charged for {charged}"
        if took_ns <= limit_ns:
            return
        assert not last, f"{what}: {took_ns // length} ns for each of {length} bytes"


def check_protobuf(
    body: bytes, logs: bool, options: PatchOptions, ask: Callable[[int], Any], table: Table | None, kernel: Kernel,
    slower: int = 1,
) -> None:  # fmt: skip
    """What the relay does with a body, made long.

    Raises:
        AssertionError: it costs more than it may.
    """
    if not body:
        return
    long = body * (LONG_BYTES // len(body) + 1)
    signal = Signal.LOGS if logs else Signal.TRACES
    gateway = Gateway(options, Given(ask, table), kernel=kernel)
    charged = COPIES * len(long)
    try:
        foreseen = gateway.foresee(signal, long)
    except (MalformedRequest, TooMuch):
        check(lambda: gateway.foresee(signal, long), len(long), charged, slower, f"{kernel.name} census")
        return
    charged += (COPIES - 1) * foreseen.growth_bytes + foreseen.notes_bytes

    def work() -> None:
        gateway.foresee(signal, long)
        gateway.handle(signal, long)

    check(work, len(long), charged, slower, f"{kernel.name} kernel")


SHELLS = {
    Signal.TRACES: [
        (b'{"resourceSpans":[', b"]}"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[', b"]}]}]}"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[', b"]}]}]}]}"),
    ],
    Signal.METRICS: [
        (
            b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"bucketCounts":[',
            b"]}]}}]}]}]}",
        ),
        (
            b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"explicitBounds":[',
            b"]}]}}]}]}]}",
        ),
    ],
    Signal.LOGS: [(b'{"ignored":[', b"]}")],
}
JSON_SEEDS = (
    b"{}", b"[]", b"0", b'"1"', b"1.5e300", b"18446744073709551615", b'"\\u00e9"', b'{"startTimeUnixNano":"1"}',
    b'{"key":"k","value":{"stringValue":"v"}}', b'{"k":{"arrayValue":{"values":[{}]}}}', b"null",
)  # fmt: skip


def check_json(value: bytes, choice: int, slower: int = 1) -> None:
    """What the receiver does with JSON that holds some value very often.

    Raises:
        AssertionError: it costs more than it may.
    """
    shells = [(signal, *shell) for signal, each in SHELLS.items() for shell in each]
    signal, begin, end = shells[choice % len(shells)]
    text = begin + b",".join([value] * (LONG_BYTES // (len(value) + 1) + 1)) + end
    charged = take_json_census(text).tree_bytes + len(text)

    def work() -> None:
        take_json_census(text, 1)  # the exact count, too
        to_protobuf(signal, text)

    check(work, len(text), charged, slower, "JSON")
