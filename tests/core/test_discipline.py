"""What to set, and when not to: the thinking of ``[discipline]`` without a clock; and the only call that sets one."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd import discipline, hostclock
from skewd.clock import HostClock, VirtualClock, VirtualPage, clock_from_option
from skewd.discipline import (
    KEEP_PPB,
    MAX_PPB,
    SETTLE_NS,
    Controller,
    Left,
    Look,
    Pilot,
    Reference,
    Setting,
    State,
    decode,
    encode,
    meddled,
    owner_in_kernel,
    owner_seen,
    proven_error_ns,
    to_restore,
)
from skewd.interval import Interval
from skewd.kernel_clock import KernelClock, frequency_of, rate_ppb
from skewd.time_daemons import TimeDaemon, others_visible

SECOND = 1_000_000_000
QUIET = KernelClock(5, 0x40, 0, 10_000, 16_000_000, 16_000_000, 0)
RATES = st.integers(-MAX_PPB, MAX_PPB)


@given(RATES)
def test_a_rate_is_the_frequency_that_is_set_for_it(rate: int) -> None:
    assert abs(rate_ppb(10_000, frequency_of(rate)) - rate) <= 1
    assert abs(frequency_of(rate)) < 500 * 65_536


@given(truth=st.integers(-(10**12), 10**12), below=st.integers(0, 10**9), above=st.integers(0, 10**9))
def test_a_correction_never_passes_the_truth(truth: int, below: int, above: int) -> None:
    """Whatever the true offset within the bound: what is corrected lies between zero and it."""
    bound = Interval(truth - below, truth + above)
    error = proven_error_ns(bound)
    assert min(0, truth) <= error <= max(0, truth)
    assert (error == 0) == bound.contains(0)
    controller = Controller(0)
    controller.decide(0, Reference(bound, bound, 10, "epoch", True))
    rate = controller.decide(SECOND, Reference(bound, bound, 10, "epoch", True))
    assert rate is not None
    assert abs(rate) <= MAX_PPB
    # Kept for as long as a hanging daemon can live, it still does not pass it (by more than rounding).
    assert abs(controller.correction_ppb) * SETTLE_NS // SECOND <= abs(truth) + SETTLE_NS // SECOND


@given(RATES, RATES, st.integers(0, 500_000), st.randoms(use_true_random=False))
def test_the_true_rate_is_never_excluded(found: int, true_rate: int, half_ns: int, choose: Any) -> None:
    """A steady reference, seen within an uncertainty: the learned rate comes as near as that can tell."""
    controller = Controller(found)
    for second in range(0, 200, 4):
        at = second * SECOND
        true = true_rate * second
        shift = choose.randint(-half_ns, half_ns)
        seen = Interval(true + shift - half_ns, true + shift + half_ns)
        controller.decide(at, Reference(Interval(-half_ns - 1, half_ns + 1), seen, 10, "epoch", True))
    # 4 half widths over the longest time, and half of what may have changed in it.
    assert abs(controller.learned_ppb - true_rate) <= 4 * half_ns * SECOND // (196 * SECOND) + 10 * 196 + 3


def test_what_is_learned_outlives_silence_and_ends_with_the_reference() -> None:
    controller = Controller(5_000)
    assert controller.decide(0, None) == 5_000
    nothing = Interval(-10, 10)
    for second in range(0, 40, 4):
        controller.decide(second * SECOND, Reference(nothing, nothing.shift(second * 30_000), 10, "one", True))
    learned = controller.learned_ppb
    assert abs(learned - 30_000) < 500
    silent = Reference(Interval(-9, 9).shift(10**6), nothing, 10, "one", False)
    assert controller.decide(50 * SECOND, silent) == learned
    assert controller.decide(51 * SECOND, Reference(nothing, nothing, 10, "another", True)) is None
    assert controller.learned_ppb == learned


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tick_us": 9_999}, "tick is 9999 us, not 10000"),
        ({"status": 0x42}, "PPS"),
        ({"pending": -7}, "correction of another hand"),
        ({"status": 0x01, "max_error_us": 100_000}, "keeps telling the kernel"),
        ({"frequency": frequency_of(-450_000)}, "-450.0 ppm, more than skewd ever sets"),
    ],
)
def test_a_kernel_that_another_hand_steers(change: dict[str, Any], says: str) -> None:
    assert owner_in_kernel(QUIET) is None
    assert says in (owner_in_kernel(replace(QUIET, **change)) or "")


def test_a_kernel_that_nobody_refreshed_for_long_is_free() -> None:
    assert owner_in_kernel(replace(QUIET, status=0x01, state=0, max_error_us=1_200_000)) is None


def test_time_daemons_that_may_set_the_clock_own_it() -> None:
    assert owner_seen([]) is None
    assert owner_seen([TimeDaemon("chronyd", 1, False)]) is None
    for owner in (TimeDaemon("chronyd", 1, True), TimeDaemon("ptp4l", 1, True), TimeDaemon("ntpd", 1, None)):
        assert "may set this clock; stop it" in (owner_seen([TimeDaemon("chronyd", 2, False), owner]) or "")


def test_what_the_kernel_does_by_itself_is_no_hand() -> None:
    synchronized = replace(QUIET, status=0x01, state=0, max_error_us=15_999_000)
    expected = Setting.of(synchronized)
    assert meddled(expected, replace(synchronized, max_error_us=15_999_500), 15_999_000) is None
    # maxerror reached 16 s: the kernel itself calls the clock unsynchronized.
    assert meddled(expected, replace(synchronized, status=0x41, max_error_us=16_000_000), 15_999_000) is None
    assert meddled(expected, replace(synchronized, status=0x41, max_error_us=16_000_000), 2_000_000) is not None
    assert meddled(expected, replace(synchronized, status=0x1F01), 15_999_000) is None  # its own bits
    assert meddled(expected, replace(synchronized, status=0x11), 15_999_000) is not None  # a leap second announced


def test_a_faster_rate_is_announced_before_it_is_used() -> None:
    """What peers were told this clock may do is all that it does, until a new limit was told for long enough."""
    pilot, kernel, announce = Pilot(60 * SECOND), QUIET, 60 * SECOND
    now, right, wrong = 0, Interval(-1_000, 1_000), Interval(5_000_000, 5_001_000)

    def seconds(count: int, offset: Interval) -> list[int]:
        nonlocal kernel, now
        announced = []
        for _ in range(count):
            now += SECOND
            order = pilot.look(Look(now, kernel, False, Reference(offset, Interval(0, 1), 10, "one", True), None))
            announced.append(pilot.announced_ppb)
            if order is not None:
                kernel = replace(kernel, frequency=order.frequency)
                pilot.obeyed(order, kernel)
            assert abs(pilot.rate_ppb or 0) <= min(announced)
        return announced

    assert seconds(60, right) == [MAX_PPB] * 60
    assert pilot.state is State.WATCHING
    seconds(130, right)
    assert (pilot.state, pilot.announced_ppb) == (State.STEERING, KEEP_PPB)  # it is kept: peers need allow for little
    told = seconds(announce // SECOND, wrong)
    assert set(told) == {MAX_PPB}
    assert pilot.rate_ppb is not None
    assert KEEP_PPB - 10 <= pilot.rate_ppb <= KEEP_PPB  # as fast as had been told before
    seconds(2, wrong)
    assert pilot.rate_ppb == pytest.approx(5_000_000 * SECOND // SETTLE_NS, abs=2)
    seconds(200, right)
    assert pilot.announced_ppb == KEEP_PPB


def test_a_kernel_that_rounds_is_no_hand() -> None:
    pilot = Pilot(0)
    reference = Reference(Interval(10**6, 10**6 + 10), Interval(0, 1), 10, "one", True)
    kernel = QUIET
    for second in range(6):
        order = pilot.look(Look(second * SECOND, kernel, False, reference, None))
        if order is not None:
            kernel = replace(kernel, frequency=order.frequency - 1)
            pilot.obeyed(order, kernel)
    assert pilot.state is State.STEERING
    assert pilot.rate_ppb == pytest.approx(25_000, abs=2)
    assert to_restore(Left("00", 0, (kernel.frequency + 1,), 10_000), b"\0", kernel)[0] == 0


def test_other_processes_are_seen_or_hidden(tmp_path: Path) -> None:
    assert not others_visible(tmp_path)
    (tmp_path / "1").mkdir()
    assert others_visible(tmp_path)


LEFT = Left("ab" * 16, 5, (7, 9), 10_000)


def test_what_is_left_on_disk_is_read_again_or_refused() -> None:
    assert decode(encode(LEFT)) == LEFT
    for wrong in (b"", b"{}", b"[1]", encode(LEFT)[:20], encode(LEFT).replace(b'"found":5', b'"found":99999999999')):
        assert decode(wrong) is None
    for found, expected in ((7, 5), (9, 5), (5, None), (12, None)):
        assert to_restore(LEFT, b"\xab" * 16, replace(QUIET, frequency=found))[0] == expected
    assert to_restore(LEFT, b"\xab" * 16, replace(QUIET, frequency=7, tick_us=9_000))[0] is None
    assert to_restore(LEFT, b"\xac" * 16, replace(QUIET, frequency=7))[0] is None


@given(st.binary(max_size=200))
def test_no_bytes_break_it(content: bytes) -> None:
    decode(content)


# -- the shell -----------------------------------------------------------------------------------------------------


def test_this_very_process_may_not_set_a_clock() -> None:
    assert not hostclock.may_set_clocks()
    with pytest.raises(OSError, match=r"lacks CAP_SYS_TIME; install the drop-in discipline\.conf"):
        hostclock.KernelAdjuster()


def test_only_the_frequency_is_ever_set() -> None:
    """clock_adjtime replaced by one that only notes what it was asked for."""
    asked = []

    def clock_adjtime(clock: int, argument: Any) -> int:
        timex = argument._obj
        asked.append((clock, timex.modes, timex.freq))
        return 5

    adjuster = hostclock.KernelAdjuster(clock_adjtime)
    assert adjuster.set_frequency(-12_345).frequency == -12_345
    assert asked == [(0, 0x0002, -12_345)]  # CLOCK_REALTIME, ADJ_FREQUENCY
    adjuster.read()  # and reading it later sets nothing
    assert adjuster._timex.modes == 0

    def refuses(clock: int, argument: Any) -> int:
        ctypes.set_errno(1)
        return -1

    refusing = hostclock.KernelAdjuster(refuses)
    with pytest.raises(OSError, match="clock_adjtime: Operation not permitted"):
        refusing.set_frequency(1)
    assert refusing._timex.modes == 0


# -- the virtual clock's kernel ------------------------------------------------------------------------------------


def rate_seen_ppb(page: VirtualPage) -> tuple[int, int]:
    """How fast its wall clock moved against the host's while something was computed: at least, at most."""
    host, readings = HostClock(), []
    for _ in range(2):
        before = host.wall_ns()
        ahead = page.wall_ns()
        readings.append((ahead - host.wall_ns(), ahead - before, page.raw_ns()))
        while page.raw_ns() - readings[0][2] < SECOND // 20:
            pass
    elapsed = readings[1][2] - readings[0][2]
    least = (readings[1][0] - readings[0][1]) * SECOND // elapsed
    most = (readings[1][1] - readings[0][0]) * SECOND // elapsed
    return least, most


def test_a_virtual_wall_clock_is_slewed_and_its_raw_clock_is_not(tmp_path: Any) -> None:
    page = VirtualPage.create(tmp_path / "page", offset_ns=10**9, epoch_ns=10**15, steerable=True)
    other = VirtualPage.open(tmp_path / "page")
    assert other.steerable
    kernel = other.set_frequency(frequency_of(400_000))
    assert (kernel.frequency, kernel.tick_us, kernel.status) == (frequency_of(400_000), 10_000, 0x40)
    least, most = rate_seen_ppb(page)
    assert least <= 400_000 <= most
    before, wall = page.raw_ns(), page.wall_ns()
    page.adjust(frequency=0)  # the rate changes, the reading does not jump
    assert 0 <= page.wall_ns() - wall <= (page.raw_ns() - before) * 1.001
    assert page.read() == replace(QUIET, frequency=0)
    page.adjust(tick_us=10_100, status=0x01, max_error_us=5)
    assert other.read() == KernelClock(0, 0x01, 0, 10_100, 5, 5, 0)
    before = HostClock().raw_ns()
    assert before <= page.raw_ns() - 10**15 <= HostClock().raw_ns()


def test_a_virtual_clock_is_steerable_only_if_it_was_made_so() -> None:
    page = VirtualPage.create(None)
    assert page.read() is None
    with pytest.raises(OSError, match="emulates no kernel to steer"):
        page.set_frequency(0)
    clock = clock_from_option("offset=3ms,steerable=yes")
    assert isinstance(clock, VirtualClock)
    assert clock.page.steerable
    with pytest.raises(ValueError, match="steerable=yes"):
        clock_from_option("steerable=no")


def test_its_limits_fit_together() -> None:
    # A hanging daemon is gone, and its frequency restored, before a correction could pass the reference.
    assert SETTLE_NS > (30 + 5) * SECOND
    assert discipline.MAX_PPB + discipline.KEEP_PPB < 500_000
