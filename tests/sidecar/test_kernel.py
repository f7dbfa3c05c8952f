"""Both twins of the patch say the same of everything, and keep a node's spans in order by the million."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from skewd.bounds.history import Correction, Status
from skewd_sidecar.kernel import Choice, KernelMissing, NativeKernel, PythonKernel, choose
from skewd_sidecar.patch import Mode, PatchOptions
from tests.sidecar import twins
from tests.sidecar.otlp_wire import disordered
from tests.sidecar.test_patch import Source, requests, sources
from tests.sidecar.twins import Maker, compare

needs_native = pytest.mark.skipif(
    twins.NATIVE is None, reason=f"{twins.MISSING}; `make setup` builds it where cargo is"
)


@needs_native
@pytest.mark.parametrize("seed", range(12))
def test_both_twins_say_the_same_of_a_thousand_odd_requests(seed: int) -> None:
    maker = Maker(random.Random(seed))
    seen: Counter[str] = Counter()
    for _ in range(1000):
        options = maker.options()
        logs = maker.rarely(0.3)
        answer = compare(maker.request(logs, options.prefix), logs, options, maker.ask(), maker.table())
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
