"""What the kernel tells of its clocks: understood, and really read here. Nothing is ever set."""

from __future__ import annotations

import os
import select
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skewd import hostclock
from skewd.hostclock import KernelReader, MachineWatch, SetWatch
from skewd.interval import Interval
from skewd.kernel_clock import (
    KernelClock,
    RawFacts,
    continued,
    disturbance,
    is_new_generation,
    monotonic_shift_ns,
    rate_basis,
    rate_ppb,
)
from skewd.publish.segment import SegmentWriter
from tests.waiting import LIMIT_S


def kernel(**more: int) -> KernelClock:
    fields = {
        "state": 0,
        "status": 0x2001,
        "frequency": 0,
        "tick_us": 10_000,
        "max_error_us": 500,
        "estimated_error_us": 20,
        "tai_offset_s": 37,
    }
    return KernelClock(**(fields | more))


def test_rates() -> None:
    assert rate_ppb(10_000, 0) == 0
    assert rate_ppb(10_000, 500 << 16) == 500_000
    assert rate_ppb(9_167, 0) == -83_300_000  # chrony at its fastest
    assert kernel(frequency=-(3 << 15)).rate_ppb == -1_500


@pytest.mark.parametrize(
    ("state", "status", "leap"),
    [
        (0, 0x2001, "none"),
        (0, 0x2011, "insert"),
        (1, 0x2011, "insert"),
        (0, 0x2021, "delete"),
        (2, 0x2021, "delete"),
        (3, 0x2011, "in progress"),
        (4, 0x2001, "occurred"),
        (5, 0x2040, "none"),
    ],
)
def test_leap_state(state: int, status: int, leap: str) -> None:
    assert kernel(state=state, status=status).leap == leap


def test_what_is_told() -> None:
    assert kernel().told() == {
        "rate_ppb": 0,
        "tick_us": 10_000,
        "synchronized": True,
        "max_error_ns": 500_000,
        "estimated_error_ns": 20_000,
        "leap": "none",
        "tai_offset_s": 37,
    }
    unset = kernel(state=5, status=0x40, tai_offset_s=0).told()
    assert (unset["synchronized"], unset["tai_offset_s"]) == (False, None)


def cpuinfo(*flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu {' '.join(flags)}\nbogomips\t: 6000\n\n" * 2


@pytest.mark.parametrize(
    ("source", "flags", "fixed"),
    [
        ("tsc", ("tsc", "tsc_known_freq"), True),
        ("tsc", ("tsc", "constant_tsc"), False),  # the kernel measures it at each boot
        ("tsc", ("tsc", "tsc_known_freq", "hypervisor"), False),  # the hypervisor measured it
        ("kvm-clock", ("tsc_known_freq", "hypervisor"), False),
        ("hpet", ("tsc",), True),
        ("acpi_pm", ("tsc",), True),
        ("hpet", ("hypervisor",), False),
        ("refined-jiffies", (), False),
        (None, ("tsc_known_freq",), False),
    ],
)
def test_where_the_nominal_rate_is_the_same_at_each_boot(
    source: str | None, flags: tuple[str, ...], fixed: bool
) -> None:
    found = rate_basis(source, cpuinfo(*flags), "m1 6.18")
    assert bool(found) is fixed
    assert not fixed or found == f"{source} A CPU @ 3 GHz m1 6.18"
    assert rate_basis(source, "processor : 0\nFeatures : fp asimd\n", "m1 6.18") == ""


def test_what_ends_a_raw_clock() -> None:
    before = RawFacts("tsc", Interval(0, 300), 7, 0)
    assert disturbance(before, RawFacts("tsc", Interval(250, 9_000), 7, 0)) is None
    assert disturbance(before, RawFacts(None, Interval(0, 300), 7, 0)) is None  # not told is no change
    slept = disturbance(before, RawFacts("tsc", Interval(2_000_000_000, 2_000_000_400), 7, 0))
    assert slept is not None
    assert "slept for 2 s" in slept
    assert "from tsc to hpet" in str(disturbance(before, RawFacts("hpet", Interval(0, 300), 7, 0)))
    assert "restored or moved" in str(disturbance(before, RawFacts("tsc", Interval(0, 300), 8, 0)))
    assert "time namespace" in str(disturbance(before, RawFacts("tsc", Interval(0, 300), 7, 5)))


def test_the_time_slept_is_kept_as_closely_as_all_readings_tell() -> None:
    facts = continued(RawFacts("tsc", Interval(0, 300), None, 0), RawFacts("tsc", Interval(200, 90_000), None, 0))
    assert facts.suspended_ns == Interval(200, 300)


def test_offsets_of_a_time_namespace() -> None:
    assert monotonic_shift_ns("monotonic           0         0\nboottime            0         0\n") == 0
    assert monotonic_shift_ns("monotonic       86400 500\nboottime        3 0\n") == 86_400_000_000_500
    assert monotonic_shift_ns("monotonic          -2 500000000\n") == -1_500_000_000
    assert monotonic_shift_ns("monotonic x y\nnonsense") == 0


def test_events_of_a_new_generation() -> None:
    event = b"change@/devices/platform/VMGENCTR:00\0ACTION=change\0SUBSYSTEM=platform\0NEW_VMGENID=1\0SEQNUM=9\0"
    assert is_new_generation(event)
    assert not is_new_generation(event.replace(b"=1\0SEQ", b"=0\0SEQ"))
    assert not is_new_generation(b"add@/devices/x\0NEW_VMGENID=1\0")
    assert not is_new_generation(b"libudev\0")


def vmclock_page(marker: int, sequence: int = 2, magic: int = 0x4B4C4356) -> bytes:
    return struct.pack("<IIHBBIQ", magic, 0x70, 1, 1, 0, sequence, marker).ljust(4096, b"\0")


def test_a_machine_watched_through_its_page(tmp_path: Path) -> None:
    page = tmp_path / "vmclock0"
    page.write_bytes(vmclock_page(5))
    watch = MachineWatch(page)
    assert watch.kind == "vmclock"
    first = watch.marker()
    with page.open("r+b") as file:
        file.write(vmclock_page(6, sequence=3))  # half written
        file.flush()
        assert watch.marker() == first
        file.seek(0)
        file.write(vmclock_page(6, sequence=4))
        file.flush()
        assert watch.marker() != first
    assert not watch.take()
    watch.close()


@pytest.mark.parametrize("content", [b"", b"x" * 24, vmclock_page(1, magic=1)])
def test_another_page_is_not_taken_for_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    watch = MachineWatch(tmp_path / "page")
    assert watch.kind != "vmclock"
    watch.close()


def test_the_kernel_is_read_where_it_allows() -> None:
    reader = KernelReader()
    found = reader.read()
    if found is None:
        pytest.skip("adjtimex is refused here")
    assert 9_000 <= found.tick_us <= 11_000
    assert 0 <= found.state <= 5
    rate = reader.rate_ppb()
    assert rate is not None
    assert abs(rate) <= 100_000_000


def test_a_set_watch_wakes_and_waits_again() -> None:
    """The clock itself is left alone: the timer's own end stands in for a set."""
    try:
        watch = SetWatch(at_s=1)
    except OSError as error:
        pytest.skip(f"no timerfd here: {error}")
    try:
        assert select.select([watch], [], [], LIMIT_S)[0]
        assert watch.again() is False
        assert not select.select([watch], [], [], 0)[0]
        assert watch.again() is False
    finally:
        watch.close()


def test_the_time_slept_is_read_closely() -> None:
    readings = [hostclock.suspended_ns() for _ in range(50)]
    both: Interval | None = readings[0]
    for reading in readings[1:]:
        assert both is not None
        both = both.intersect(reading)
    assert both is not None


_READ = """
import sys
from skewd.publish.segment import SegmentReader
from skewd.reader import NoBound, Now
reader = SegmentReader(sys.argv[1])
print(reader.refresh(), reader.problem)
try:
    Now(sys.argv[1])()
except NoBound as error:
    print(error)
"""


def in_time_namespace(offset: int, *command: Any) -> subprocess.CompletedProcess[str]:
    # In a user namespace of its own: shifting a clock takes CAP_SYS_TIME, which tests give up over the machine's.
    words = ["unshare", "--user", "--map-root-user", "--time", "--fork", f"--monotonic={offset}"]
    return subprocess.run([*words, *command], capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare")
def test_a_reader_in_another_time_namespace_is_refused_with_a_line(tmp_path: Path) -> None:
    if in_time_namespace(1000, "true").returncode != 0:
        pytest.skip("no time namespaces here")
    writer = SegmentWriter(tmp_path / "clock.shm", node="a", boot=bytes(16), virtual=False)
    code = [sys.executable, "-c", _READ, tmp_path / "clock.shm"]
    other = in_time_namespace(1000, *code)
    assert other.returncode == 0, other.stderr
    assert other.stdout.startswith("False is of another time namespace than this process")
    assert "off by 1000 s" in other.stdout
    assert other.stdout.count("run both in one") == 2
    same = in_time_namespace(0, *code)
    assert same.stdout.startswith("True None")
    writer.close()
