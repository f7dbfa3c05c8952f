"""Clocks, virtual clocks and the wall map."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.clock import HostClock, VirtualClock, VirtualPage, WallSample, clock_from_option, read_wall
from skewd.interval import Interval
from skewd.kernel_clock import frequency_of
from skewd.wall import SLEW_MAX_PPM, WallMap

SECOND = 1_000_000_000
MS = 1_000_000


def test_a_sandwich_holds_the_difference_and_is_narrow() -> None:
    host = HostClock()
    samples = [read_wall(host) for _ in range(50)]
    first = samples[0].wall_minus_raw.widen(1 * MS)
    assert all(first.intersect(sample.wall_minus_raw) for sample in samples)
    assert min(sample.wall_minus_raw.width for sample in samples) < 100_000


def test_a_page_is_one_clock_for_every_process(tmp_path: Path) -> None:
    page = VirtualPage.create(tmp_path / "clock", offset_ns=5 * MS, epoch_ns=12_345 * SECOND)
    code = (
        "import sys; from skewd.clock import clock_from_option, HostClock;"
        "c = clock_from_option('page=' + sys.argv[1]); h = HostClock();"
        "a = h.wall_ns(); w = c.wall_ns(); b = h.wall_ns(); print(w - b, w - a)"
    )

    def seen() -> tuple[int, int]:
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "clock")], check=True, capture_output=True, text=True
        ).stdout
        low, high = map(int, out.split())
        return low, high

    low, high = seen()
    assert low <= 5 * MS <= high
    page.step_to(-2 * SECOND)
    low, high = seen()
    assert low <= -2 * SECOND <= high
    assert page.offset_ns == -2 * SECOND
    page.close()


@pytest.mark.parametrize("steerable", [False, True])
@pytest.mark.parametrize("waits_in", ["wall", "raw"])
@pytest.mark.parametrize("by_ns", [20 * MS, -20 * MS])
def test_a_step_in_the_middle_of_a_reading_shows_no_time_that_the_clock_never_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_ns: int, waits_in: str, steerable: bool
) -> None:
    """A kernel's clock is read whole. Here a process waits inside of it for longer than it takes to be stepped."""
    page = VirtualPage.create(tmp_path / "clock", steerable=steerable, drift_ppb=1_000)
    other = VirtualPage.open(tmp_path / "clock")
    now = [SECOND]
    read_wall_first: list[str] = []

    def wait(where: str) -> int:
        read = now[0]
        if where == waits_in and read == SECOND and (where == "wall" or read_wall_first):
            now[0] += 5 * MS
            other.step_to(by_ns)
        if where == "wall":
            read_wall_first.append(where)
        return read

    class Host(HostClock):
        def raw_ns(self) -> int:
            return wait("raw")

        def wall_ns(self) -> int:
            return wait("wall")

    monkeypatch.setattr(page, "_host", Host())
    shown = page.wall_ns()
    assert shown == page.wall_ns() == now[0] + by_ns + page.deviation_ns(now[0]) - page.offset_ns


def test_whoever_steps_a_page_tells_all_who_watch_it(tmp_path: Path) -> None:
    """As a kernel tells who waits for its clock to be set; of another rate nobody is told, nor by a kernel."""
    page = VirtualPage.create(tmp_path / "clock", steerable=True)
    watches = [page.watch(), VirtualPage.open(tmp_path / "clock").watch()]
    try:
        [watch.again() for watch in watches]  # opening the page tells, too
        page.adjust(frequency=77)
        assert not select.select(watches, [], [], 0)[0]
        step = "import sys; from skewd.clock import VirtualPage; VirtualPage.open(sys.argv[1]).step_to(5)"
        for _ in range(2):
            subprocess.run([sys.executable, "-c", step, str(tmp_path / "clock")], check=True)
            assert select.select(watches, [], [], 0)[0] == watches
            assert all(watch.again() for watch in watches)
            assert not select.select(watches, [], [], 0)[0]
            assert not any(watch.again() for watch in watches)
        page.step_to(6)
        assert select.select(watches, [], [], 0)[0] == watches
    finally:
        for watch in watches:
            watch.close()


def test_a_page_without_a_file_tells_its_own_process() -> None:
    page = VirtualPage.create(None, steerable=True)
    watch, left = page.watch(), page.watch()
    left.close()
    left.close()
    page.adjust(frequency=77)
    assert not watch.again()
    page.step_to(5)
    page.step_to(6)
    assert select.select([watch], [], [], 0)[0]
    assert watch.again()
    assert not select.select([watch], [], [], 0)[0]
    assert not watch.again()
    watch.close()


def test_a_page_that_is_gone_can_not_be_watched(tmp_path: Path) -> None:
    page = VirtualPage.create(tmp_path / "clock")
    (tmp_path / "clock").unlink()
    with pytest.raises(OSError, match="No such file"):
        page.watch()


def test_raw_has_its_own_epoch_and_is_never_stepped() -> None:
    page = VirtualPage.create(None, epoch_ns=1_000 * SECOND)
    clock = VirtualClock(page)
    before = HostClock().raw_ns()
    page.step_to(10 * SECOND)
    assert before <= clock.raw_ns() - 1_000 * SECOND <= HostClock().raw_ns()


def test_drift_moves_both_clocks_alike() -> None:
    """wall - raw is constant on a drifting virtual node: nothing local tells the drift."""
    at = HostClock().raw_ns() - 1_000 * SECOND
    clock = clock_from_option(f"offset=5ms,drift=20ppm,at={at}")
    host = HostClock()
    a = host.wall_ns()
    offset = clock.wall_ns() - a
    b = host.wall_ns()
    # 5 ms + 20 ppm x 1000 s = 25 ms, give or take how long the three calls took.
    assert 25 * MS - (b - a) - 10_000 <= offset <= 25 * MS + (b - a) + 10_000
    assert clock.virtual


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5ms", "key=value"),
        ("offset=5", "5ms"),
        ("speed=3", "unknown key 'speed'"),
        ("drift=20", "20ppm"),
        ("at=soon", "whole number"),
        ("drift=200000ppm", "10 %"),
    ],
)
def test_a_wrong_virtual_clock_is_refused_with_the_fix(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        clock_from_option(text)


def test_not_a_page(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * 64)
    with pytest.raises(ValueError, match="not a virtual clock's page"):
        VirtualPage.open(tmp_path / "other")


def reading(raw_ns: int, difference_ns: int, width_ns: int = 200) -> WallSample:
    return WallSample(raw_ns, Interval(difference_ns, difference_ns + width_ns))


def test_steps_begin_eras_that_share_the_gap() -> None:
    wall = WallMap(reading(0, 1_000 * SECOND))
    assert not wall.sample(reading(20 * MS, 1_000 * SECOND + 100))
    assert wall.era == 1
    assert wall.sample(reading(40 * MS, 1_000 * SECOND - 5 * MS))
    assert wall.era == 2
    assert wall.last_step_ns == -5 * MS - 100
    # The step lies between 20 and 40 ms of raw: old readings up to 40 ms, new ones from 20 ms.
    assert wall.previous_end_wall_ns is not None
    assert wall.previous_end_wall_ns >= 1_000 * SECOND + 40 * MS
    assert wall.era_begin_wall_ns <= 1_000 * SECOND + 20 * MS - 5 * MS


@given(st.integers(-SLEW_MAX_PPM, SLEW_MAX_PPM), st.integers(0, 3_000))
def test_no_slew_of_the_kernel_is_taken_for_a_step(ppm: int, width: int) -> None:
    wall = WallMap(reading(0, 0, width))
    for i in range(1, 200):
        raw = i * 20 * MS
        assert not wall.sample(reading(raw, raw * ppm // 1_000_000, width))
        difference = wall.wall_minus_raw(raw + 10 * MS)
        assert difference.intersect(
            Interval((raw + 10 * MS) * ppm // 1_000_000, (raw + 10 * MS) * ppm // 1_000_000 + width)
        )


@given(st.integers(30_000, 10 * SECOND), st.sampled_from([-1, 1]))
def test_every_step_beyond_the_stated_limit_is_seen(size: int, sign: int) -> None:
    wall = WallMap(reading(0, 0))
    wall.sample(reading(20 * MS, 0))
    assert wall.sample(reading(40 * MS, sign * size))


def test_the_slew_allowance_settles() -> None:
    wall = WallMap(reading(0, 0))
    assert wall.slew_ppb() >= 1_000_000
    for i in range(1, 1_000):
        wall.sample(reading(i * 20 * MS, 0))
    assert wall.slew_ppb() < 1_250


def test_whoever_made_the_page_can_ask_how_far_off_it_is() -> None:
    page = VirtualPage.create(None, offset_ns=5 * MS, drift_ppb=-50_000, steerable=True)
    at = HostClock().raw_ns()
    page.adjust(frequency=frequency_of(50_000))
    assert abs(page.rate_ppb()) <= 3, "the steering makes up for the drift"
    assert abs(page.deviation_ns(at + 100 * SECOND) - page.deviation_ns(at)) < 500
    page.adjust(frequency=0)
    assert page.rate_ppb() == -50_000
    page.step_to(-7 * MS)
    now = HostClock().raw_ns()
    assert page.deviation_ns(now + 100 * SECOND) - page.deviation_ns(now) == -5 * MS
    before = HostClock().wall_ns()
    seen = page.wall_ns() - page.deviation_ns(HostClock().raw_ns())
    assert before - 1_000 <= seen <= HostClock().wall_ns() + 1_000
    assert VirtualPage.create(None, offset_ns=3, drift_ppb=7).rate_ppb() == 7
