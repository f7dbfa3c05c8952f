"""Both twins of the patch say the same of everything, and keep a node's spans in order by the million."""

from __future__ import annotations

import itertools
import random
import re
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.applied import begin, continue_
from skewd.bounds.history import Correction, History, Knot, Status
from skewd.bounds.table import Table, TableKeeper
from skewd.interval import Interval
from skewd_sidecar.gateway import Gateway, Signal
from skewd_sidecar.kernel import Choice, KernelMissing, NativeKernel, PythonKernel, choose
from skewd_sidecar.patch import Mode, PatchOptions
from skewd_sidecar.source import StaticSource
from tests.shares import first
from tests.sidecar import fuzz, twins
from tests.sidecar.otlp_wire import FIXED64, LEN, disordered, field, varint
from tests.sidecar.test_patch import Source, requests, sources
from tests.sidecar.twins import T0, Maker, compare

needs_native = pytest.mark.skipif(
    twins.NATIVE is None, reason=f"{twins.MISSING}; `make setup` builds it where cargo is"
)


@needs_native
@pytest.mark.parametrize("seed", first(3, range(12)))
def test_both_twins_say_the_same_of_a_thousand_odd_requests(seed: int) -> None:
    maker = Maker(random.Random(seed))
    seen: Counter[str] = Counter()
    for _ in range(1000):
        options = maker.options()
        logs = maker.rarely(0.3)
        body, ask, table = maker.request(logs, options.prefix), maker.ask(), maker.table()
        answer = compare(body, logs, options, ask, table, maker.until_ns())
        seen.update(["refused"] if isinstance(answer, str) else answer[1])
    # The generator is worth its name only while all of these occur, and often.
    assert set(seen) == {"refused", "tagged", "rewritten", "unsynchronized", "unchanged", "passed"}
    assert min(seen.values()) > 60, seen


@needs_native
@settings(max_examples=100, deadline=None)
@given(requests(), sources(), st.randoms(use_true_random=False))
def test_both_twins_say_the_same_of_what_hypothesis_thinks_of(
    made: ExportTraceServiceRequest, at: Source, chance: random.Random
) -> None:
    body = disordered(made.SerializeToString(), chance)
    compare(body, False, Maker(chance).options(), at, None)


@needs_native
@settings(deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_both_twins_say_the_same_of_any_bytes(body: bytes, logs: bool) -> None:
    compare(body, logs, PatchOptions(Mode.REWRITE, "n"), lambda _: Correction(1, 1, Status.SYNCHRONIZED, "utc"), None)


@needs_native
@pytest.mark.parametrize("kernel", ["native", "python"])
def test_what_a_source_raises_comes_through(kernel: str) -> None:
    def ask(wall_ns: int) -> Correction:
        raise LookupError("the source is broken")

    body = Maker(random.Random(3), damage=0).request(False, "clock.")
    with pytest.raises(LookupError, match="the source is broken"):
        choose(Choice(kernel)).traces(body, PatchOptions(Mode.TAG, "n"), ask, None)


@needs_native
def test_requests_are_patched_on_several_threads_at_once() -> None:
    native = choose(Choice.NATIVE)
    maker = Maker(random.Random(5), damage=0)
    work = [(maker.request(False, "clock."), maker.options(), maker.ask(), maker.table()) for _ in range(300)]

    def patched(item: tuple[bytes, PatchOptions, twins.Ask, Table | None]) -> object:
        return twins.said(native, item[0], False, item[1], item[2], item[3])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(patched, work)) == [patched(item) for item in work]


def test_the_fuzzer_begins_with_inputs_that_it_understands() -> None:
    for number in range(30):
        fuzz.try_one(fuzz.seed(number))
    fuzz.try_one(b"")
    fuzz.try_one(bytes(200))


def test_a_gateway_counts_spans_and_log_records_apart_and_says_which_kernel_it_has() -> None:
    for choice in (Choice.PYTHON, Choice.AUTO):
        kernel = choose(choice)
        gateway = Gateway(PatchOptions(Mode.TAG, "n"), StaticSource("n", 5, 6), kernel=kernel)
        assert gateway.kernel == kernel.name
        record = field(1, FIXED64, T0)
        logs = gateway.handle(Signal.LOGS, field(1, LEN, field(2, LEN, field(2, LEN, record) + field(2, LEN, b""))))
        traces = gateway.handle(Signal.TRACES, request_of([T0, T0 + 1]))
        gateway.delivered(Signal.LOGS, logs)
        gateway.delivered(Signal.TRACES, traces)
        assert {name: count for name, count in gateway.spans.items() if count} == {"tagged": 2}
        assert {name: count for name, count in gateway.log_records.items() if count} == {"tagged": 1, "unchanged": 1}


def test_a_kernel_is_chosen_by_name_or_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(Choice.PYTHON).name == "python"
    assert choose(Choice.AUTO).name == ("python" if twins.NATIVE is None else "native")
    monkeypatch.setitem(__import__("sys").modules, "skewd_native", None)
    assert isinstance(choose(Choice.AUTO), PythonKernel)
    with pytest.raises(KernelMissing, match=r'skewd-native cannot be loaded .*\[sidecar\] kernel = "auto"'):
        choose(Choice.NATIVE)


def test_a_kernel_of_another_release_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        PATCH_INTERFACE = -1
        __version__ = "9.9"

    monkeypatch.setitem(__import__("sys").modules, "skewd_native", Other)
    assert not isinstance(choose(Choice.AUTO), NativeKernel)
    with pytest.raises(KernelMissing, match=r"skewd-native 9\.9 is not for this skewd"):
        choose(Choice.NATIVE)


# ------------------------------------------------------------------------------------------------ order, by the million


def knots_of_an_hour(chance: random.Random) -> list[Knot]:
    """A daemon's knots while its bound jumps about: each line is continued from the one before, as it does."""
    made = []
    bound, drift = Interval(-5_000_000, 5_000_000), Interval(-100_000, 100_000)
    line = begin(T0, bound, drift)
    wall = T0
    for number in range(2_000):
        made.append(
            Knot(
                1, T0, None, number * 1_000, wall, bound, drift, 11, line.offset_ns, line.slope_ppb,
                chance.choice((Status.SYNCHRONIZED, Status.HOLDOVER)), "utc",
            )
        )  # fmt: skip
        wall += 250_000_000
        middle = chance.choice((0, chance.randrange(-(10**7), 10**7), chance.randrange(-(10**5), 10**5)))
        half = chance.randrange(100, 1_000_000)
        bound = Interval(middle - half, middle + half)
        rate = chance.randrange(-200_000, 200_000)
        drift = Interval(rate - 100, rate + chance.randrange(100, 100_000))
        line = continue_(line, wall, bound, drift, 250_000_000)
    return made


def request_of(starts: list[int]) -> bytes:
    """Spans of 10 ns each at these times, written directly: a million of them must not take a minute."""
    field = b"\x12\x12\x39%b\x41%b"  # span, of 18 bytes: start, end
    eight = struct.Struct("<Q").pack
    spans = b"".join([field % (eight(start), eight(start + 10)) for start in starts])
    scope = b"\x12" + varint(len(spans)) + spans
    return b"\x0a" + varint(len(scope)) + scope


def times_of(body: bytes) -> list[int]:
    """The start of every span, found by its tag before and its end's tag behind."""
    return [int.from_bytes(start, "little") for start in re.findall(rb"\x39(.{8})\x41", body, re.DOTALL)]


@needs_native
@pytest.mark.parametrize("seed", first(1, range(8)))
def test_millions_of_spans_keep_their_order_while_the_bound_is_updated(seed: int) -> None:
    # Eight times this is two million. Each time, a request is rewritten with what is known at that moment: a span of
    # the past with a tighter bound, and the newest ones ahead of the newest knot. What was rewritten once and what is
    # rewritten later must fit together, so all of a node's spans are put in one order at the end.
    chance = random.Random(seed)
    native = choose(Choice.NATIVE)
    options = PatchOptions(Mode.REWRITE, "n")
    history = History(max_uncertainty_ns=1 << 60)
    keeper = TableKeeper(history, 2_000_000_000)
    pairs: list[tuple[int, int]] = []
    for number, knot in enumerate(knots_of_an_hour(chance)):
        history.append(knot)
        if number % 4:
            continue
        near = [knot.wall_ns - chance.randrange(10**10) for _ in range(2)]
        starts = [max(T0, base + chance.randrange(1000)) for base in near for _ in range(130)]
        starts += [knot.wall_ns + chance.randrange(1000) for _ in range(130)]
        # Times close together where one line gives way to the next are those that a mistake would swap.
        starts += [knot.wall_ns + by for by in range(-62, 63) if knot.wall_ns + by >= T0]
        result = native.traces(request_of(starts), options, history.at, keeper.table())
        assert result.actions == {"rewritten": len(starts)}
        moved = times_of(result.body)
        assert len(moved) == len(starts)
        pairs += zip(starts, moved, strict=True)
    assert len(pairs) > 250_000
    pairs.sort()
    assert all(before[1] <= after[1] for before, after in itertools.pairwise(pairs))
