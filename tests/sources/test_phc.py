"""Hardware clocks through a kernel played by the test: every way to stamp one, found at run time; and their layouts."""

from __future__ import annotations

import errno
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.clock import HostClock, NodeClock, VirtualClock, VirtualPage, WallSample
from skewd.interval import Interval
from skewd.sources.claim import Look
from skewd.sources.phc import Phc
from skewd.sources.phc_wire import CROSS_NS, SAMPLES, Crossing, Ways, crossing, question, raw_of
from tests.sources.at_once import at_once, wall_minus_raw

S = 1_000_000_000
US = 1_000
PHC_MINUS_WALL = 37 * S + 123
PRECISE, EXTENDED, OFFSET = 0xC0403D08, 0xC4C03D09, 0x43403D05


def moment(ns: int) -> bytes:
    return struct.pack("@qII", ns // S, ns % S, 0)


def raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class Kernel:
    """Answers the ioctls that it has, as the kernel does, with a PHC that is ahead of the wall clock."""

    def __init__(self, *has: Ways, late: int = 0, fails: dict[Ways, int] | None = None) -> None:
        self.has, self.late_ns, self.fails = set(has), late, fails or {}
        self.asked: list[Ways] = []

    def __call__(self, descriptor: int, number: int, data: bytearray) -> None:
        samples, clock, *reserved = struct.unpack_from("@IiII", data)
        if number == PRECISE:
            way = Ways.PRECISE
            assert len(data) == 64
        elif number == EXTENDED:
            way = Ways.EXTENDED_RAW if clock else Ways.EXTENDED
            assert (len(data), clock, reserved) == (1216, clock and time.CLOCK_MONOTONIC_RAW, [0, 0])
        else:
            assert (number, len(data)) == (OFFSET, 832)
            way = Ways.OFFSET
        self.asked.append(way)
        if way in self.fails:
            raise OSError(self.fails[way], "made to fail")
        if way not in self.has:
            raise OSError(errno.EINVAL if way is Ways.EXTENDED_RAW else errno.EOPNOTSUPP, "not had")
        read = raw_ns if way is Ways.EXTENDED_RAW else time.time_ns
        if way is Ways.PRECISE:
            wall, raw = at_once(raw_ns)
            data[:48] = moment(wall + PHC_MINUS_WALL) + moment(wall) + moment(raw)
            return
        assert 1 <= samples <= 25
        shows = [lambda: read() - self.late_ns, lambda: time.time_ns() + PHC_MINUS_WALL]
        # In OFFSET the reading after one is the reading before the next.
        order = [*(shows * samples), shows[0]] if way is Ways.OFFSET else [*shows, shows[0]] * samples
        stamps = b"".join(moment(show()) for show in order)
        data[16 : 16 + len(stamps)] = stamps


@pytest.fixture
def device(tmp_path: Path) -> str:
    (tmp_path / "ptp0").touch()
    return str(tmp_path / "ptp0")


def holds(sample: WallSample, clock: NodeClock) -> bool:
    """PHC - raw: the PHC is ahead of this machine's wall clock, which may be slewed by a little meanwhile."""
    truth = wall_minus_raw(clock.raw_ns) + PHC_MINUS_WALL
    return sample.wall_minus_raw.widen(20 * US).contains(truth) and sample.raw_ns <= clock.raw_ns()


@pytest.mark.parametrize(
    ("has", "way"),
    [
        (tuple(Ways), "PRECISE"),
        ((Ways.EXTENDED_RAW, Ways.EXTENDED, Ways.OFFSET), "EXTENDED_RAW"),
        ((Ways.EXTENDED, Ways.OFFSET), "EXTENDED"),
        ((Ways.OFFSET,), "OFFSET"),
        ((), "gettime"),
    ],
)
@pytest.mark.parametrize("virtual", [False, True])
def test_the_closest_way_that_is_had_is_found_and_kept(
    device: str, monkeypatch: pytest.MonkeyPatch, has: tuple[Ways, ...], way: str, virtual: bool
) -> None:
    monkeypatch.setattr(Phc, "wall_ns", lambda self: time.time_ns() + PHC_MINUS_WALL)
    clock: NodeClock = VirtualClock(VirtualPage.create(None, epoch_ns=10**15)) if virtual else HostClock()
    kernel = Kernel(*has)
    phc = Phc(device, clock, kernel)
    for _ in range(3):
        assert holds(phc.sample(), clock)
        assert phc.way == way
    tried = list(Ways)[: [*[each.name for each in Ways], "gettime"].index(way) + 1]
    assert kernel.asked[: len(tried)] == tried
    assert kernel.asked[len(tried) :] == ([Ways[way]] * 2 if has else [])  # what is not had is not tried again
    phc.close()


def test_a_way_that_fails_once_is_tried_again(device: str) -> None:
    kernel = Kernel(*Ways, fails={Ways.PRECISE: errno.ETIMEDOUT})
    phc = Phc(device, HostClock(), kernel)
    assert holds(phc.sample(), HostClock())
    assert phc.way == "EXTENDED_RAW"
    kernel.fails.clear()
    assert holds(phc.sample(), HostClock())
    assert phc.way == "PRECISE"
    phc.close()


def test_stamps_that_are_not_of_the_call_are_not_believed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phc, "wall_ns", lambda self: time.time_ns() + PHC_MINUS_WALL)
    phc = Phc(device, HostClock(), Kernel(Ways.EXTENDED_RAW, Ways.EXTENDED, Ways.OFFSET, late=S))
    assert holds(phc.sample(), HostClock())
    assert phc.way == "gettime"
    phc.close()


def test_a_file_that_is_no_clock(device: str) -> None:
    """The real kernel refuses every way, and then the reading itself."""
    phc = Phc(device, HostClock())
    with pytest.raises(OSError, match="argument"):
        phc.sample()
    phc.close()
    with pytest.raises(OSError, match=r"can't be opened.*phc-device.conf"):
        Phc(device + "none", HostClock())


def test_the_numbers_are_the_kernels() -> None:
    """_IOWR and _IOW of '=', as linux/ptp_clock.h has them, with the structures' sizes."""

    def number(direction: int, size: int, command: int) -> int:
        return direction << 30 | size << 16 | ord("=") << 8 | command

    assert Ways.PRECISE.value.number == number(3, 3 * 16 + 16, 8)
    assert Ways.EXTENDED.value.number == Ways.EXTENDED_RAW.value.number == number(3, 16 + 25 * 3 * 16, 9)
    assert Ways.OFFSET.value.number == number(1, 16 + 51 * 16, 5)


def test_the_narrowest_triple_is_taken_and_nonsense_is_left_out() -> None:
    data = question(Ways.EXTENDED)
    triples = [(900, 5, 100), (100, 50, 900), (200, 60, 250), (0, 0, 0), (300, 70, 2 * S)]
    for index, triple in enumerate(triples[:SAMPLES]):
        data[16 + 48 * index : 16 + 48 * (index + 1)] = b"".join(moment(S + ns) for ns in triple)
    assert crossing(Ways.EXTENDED, data) == Crossing(S + 0, S + 0, S + 0, False)
    data[16 + 48 * 3 : 16 + 48 * 4] = struct.pack("@qII", 1, S, 0) * 3
    assert crossing(Ways.EXTENDED, data) == Crossing(S + 60, S + 200, S + 250, False)
    assert crossing(Ways.EXTENDED, question(Ways.EXTENDED)[:16] + bytes(1200)) is None
    assert crossing(Ways.OFFSET, b"short") is None
    assert crossing(Ways.PRECISE, bytes(64)) is None
    precise = moment(7) + moment(8) + moment(5 * S) + bytes(16)
    assert crossing(Ways.PRECISE, precise) == Crossing(7, 5 * S - CROSS_NS, 5 * S + CROSS_NS, True)


@given(st.sampled_from(list(Ways)), st.binary(max_size=1216))
def test_garbage_of_a_driver(way: Ways, garbage: bytes) -> None:
    found = crossing(way, garbage.ljust(way.value.size, b"\1")[: way.value.size])
    assert found is None or found.first_ns <= found.last_ns


@given(
    read_at=st.integers(0, 1000),
    stamps=st.tuples(st.integers(0, 20 * US), st.integers(0, 20 * US)),
    slew_ppm=st.integers(-84_000, 84_000),
    width=st.integers(0, 400),
)
def test_a_wall_stamp_is_carried_to_raw_outward_under_any_slew(
    read_at: int, stamps: tuple[int, int], slew_ppm: int, width: int
) -> None:
    lag = 100 * US
    instant = 30 * US + 40 * US * read_at // 1000

    def wall(raw: int) -> int:
        return 9 * S + raw + raw * slew_ppm // 1_000_000

    looks = [
        Look(WallSample(raw, Interval(wall(raw) - raw - width // 2, wall(raw) - raw + width // 2)), slew_ppm * 1_000)
        for raw in (0, lag)
    ]
    found = Crossing(5, wall(instant - stamps[0]), wall(instant + stamps[1]), False)
    raw = raw_of(found, *looks)
    assert raw is not None
    assert raw.contains(instant)


def test_a_wall_stamp_over_a_step_is_none() -> None:
    looks = [Look(WallSample(0, Interval(0, 99))), Look(WallSample(50 * US, Interval(5 * US, 5 * US + 99)))]
    assert raw_of(Crossing(5, 20 * US, 21 * US, False), *looks) is None
    # A raw stamp needs no wall clock; it only has to be of the call.
    for first, last in ((20 * US, 20 * US + 9), (50 * US - 3, 50 * US)):
        assert raw_of(Crossing(5, first, first + 9, True), *looks) == Interval(first, last)
    assert raw_of(Crossing(5, 60 * US, 60 * US + 9, True), *looks) is None
