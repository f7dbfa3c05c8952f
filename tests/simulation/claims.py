"""What the daemons and devices of a simulated node claim about UTC, byte for byte, read by the code that ships.

chronyd, the kernel, ptp4l and a hardware clock are each as wrong as they declare, and not more: chronyd's regression
is right to its dispersion at its last measurement, its frequency to 1 ppm, and the oscillator wanders on from there;
the kernel was told an error that was true then; each of ptp4l's Syncs was delayed by the wire's own jitter; a hardware
clock is off by nearly what it declares.

What runs of ``skewd``: ``chrony_wire.parse`` and ``utc_minus_wall``, ``kernel_wire.claimed``, ``ptp_wire.measurement``
and ``Readings``, and ``claim.between`` and ``Claim.proofs``. Not the sockets and files around them.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.kernel_clock import KernelClock
from skewd.sources import chrony_wire, kernel_wire, ptp_wire
from skewd.sources.claim import Claim, Look, between
from tests.simulation.world import SECOND, Utc, Wall, Wire

ASKING_NS = 150_000
"""From the reading before to the daemon's answer, and from there to the reading after."""

DAEMON_EVERY_NS = 16 * SECOND
DELAY_NS, DISPERSION_NS = 400_000, 100_000
PTP_ACCURACY, PTP_ACCURACY_NS = 0x25, 10_000
PHC_ERROR_NS = 20_000


def sample(wall: Wall, true_ns: int) -> WallSample:
    """A sandwich around ``true_ns``, as wide as usual."""
    raw = wall.oscillator.raw(true_ns)
    difference = wall.read(true_ns) - raw
    return WallSample(raw, Interval(difference - 150, difference + 50))


def _around(wall: Wall, true_ns: int, utc_minus_wall: Interval, max_drift_ppm: int) -> tuple[int, Interval]:
    # Settings first and the clocks then, and after it the other way round.
    before_ns, after_ns = true_ns - ASKING_NS, true_ns + ASKING_NS
    before = Look(sample(wall, before_ns), wall.rate_ppb(before_ns - 1_000) or 0)
    after = Look(sample(wall, after_ns), wall.rate_ppb(after_ns + 1_000) or 0)
    return between(before, after, utc_minus_wall, max_drift_ppm)


class Chronyd:
    """It measures every 16 s and is asked at any time."""

    def __init__(self, wall: Wall, utc: Utc, choose: random.Random, limits: tuple[int, int]) -> None:
        self._wall, self._utc, self._choose, self._limits = wall, utc, choose, limits
        self._measured_ns = -1

    def __call__(self, true_ns: int) -> Claim:
        wall, utc = self._wall, self._utc
        if self._measured_ns < 0 or true_ns - self._measured_ns > DAEMON_EVERY_NS:
            self._measured_ns = true_ns
            self._wrong_ns = self._choose.uniform(-0.95, 0.95) * (DELAY_NS / 2 + DISPERSION_NS)
            self._wrong_ppb = self._choose.uniform(-1000, 1000)
        since = wall.oscillator.raw(true_ns) - wall.oscillator.raw(self._measured_ns)
        rate = 1 + wall.oscillator.drift(self._measured_ns) / SECOND
        elapsed = since / rate * (1 + self._wrong_ppb / SECOND)
        leapt = utc.reading(true_ns) - utc.reading(self._measured_ns) - (true_ns - self._measured_ns)
        believed = utc.reading(self._measured_ns) + leapt + self._wrong_ns + elapsed
        correction = Fraction(round(believed) - wall.read(true_ns), SECOND)
        dispersion = Fraction(DISPERSION_NS + since // 1_000_000, SECOND)
        at = divmod(utc.reading(self._measured_ns), SECOND)
        data = struct.pack("!BBBBHHHHHHIII", 6, 2, 0, 0, 33, 5, 0, 0, 0, 0, 0, 0, 0) + struct.pack(
            "!I16sHHHHIII9I",
            *(0x7F000001, bytes(16), 1, 0, 2, utc.announced(true_ns), at[0] >> 32, at[0] & 0xFFFFFFFF, at[1]),
            *(chrony_word(correction), 0, 0, 0, 0, 0, chrony_word(Fraction(DELAY_NS, SECOND)), chrony_word(dispersion)),
            0,
        )
        tracking = chrony_wire.parse(data)
        claimed = tracking.utc_minus_wall(wall.read(true_ns), *self._limits)
        return Claim(*_around(wall, true_ns, claimed, self._limits[0]), tracking.leap)


def chrony_word(seconds: Fraction) -> int:
    """chronyd's way to write a number of seconds: 7 bits of exponent, 25 of coefficient."""
    if not seconds:
        return 0
    exponent = 0
    while abs(seconds) >= 1 << 24:
        seconds, exponent = seconds / 2, exponent + 1
    while abs(seconds) < 1 << 23:
        seconds, exponent = seconds * 2, exponent - 1
    return (exponent + 25 & 0x7F) << 25 | int(seconds) & 0x1FFFFFF


class Kernel:
    """Told every 16 s how wrong its clock may be; its own 500 us a second on top."""

    def __init__(self, wall: Wall, utc: Utc, choose: random.Random, limits: tuple[int, int]) -> None:
        self._wall, self._utc, self._limits = wall, utc, limits
        self._told_ns, self._error_us = -1, 0

    def __call__(self, true_ns: int) -> Claim:
        if self._told_ns < 0 or true_ns - self._told_ns > DAEMON_EVERY_NS:
            self._told_ns = true_ns
            self._error_us = abs(self._utc.reading(true_ns) - self._wall.read(true_ns)) // 1000 + 1
            self._error_us += self._error_us % 500 == 0  # or it would look like a 0 that has only grown
        grown_us = (true_ns - self._told_ns) // SECOND * 500
        found = KernelClock(
            state=self._utc.announced(true_ns),
            status=0x2001,
            frequency=0,
            tick_us=10_000,
            max_error_us=self._error_us + grown_us,
            estimated_error_us=7,
            tai_offset_s=37,
        )
        utc_minus_wall, leap = kernel_wire.claimed(found)
        return Claim(*_around(self._wall, true_ns, utc_minus_wall, self._limits[0]), leap)


class Ptp4l:
    """It steers nothing here and says how far the wall clock is from a grandmaster that tells UTC."""

    def __init__(self, wall: Wall, utc: Utc, choose: random.Random, limits: tuple[int, int], wire: Wire) -> None:
        self._wall, self._utc, self._choose, self._wire = wall, utc, choose, wire
        self._readings = ptp_wire.Readings(limits[0])
        self._delay_ns = round((wire.minimum_us + wire.jitter_us) * 1000)

    def __call__(self, true_ns: int) -> Claim | None:
        held_ns = self._wire.delay_ns(self._choose, True)
        grandmaster = self._utc.reading(true_ns) + round(math.sin(true_ns / SECOND / 40) * 0.95 * PTP_ACCURACY_NS)
        offset = self._wall.read(true_ns) - grandmaster + held_ns - self._delay_ns
        leap = self._utc.announced(true_ns)
        found = ptp_wire.measurement(
            {
                ptp_wire.TIME_STATUS_NP: struct.pack(
                    "!qqiiHHQHi8s", offset, self._wall.read(true_ns), 0, 0, 0, 0, 0, 0, 1, bytes(8)
                ),
                ptp_wire.CURRENT_DATA_SET: struct.pack("!Hqq", 1, offset << 16, self._delay_ns << 16),
                ptp_wire.PARENT_DATA_SET: struct.pack(
                    "!10sBBHIBBBHB8s", bytes(10), 0, 0, 0, 0, 128, 6, PTP_ACCURACY, 0, 128, bytes(8)
                ),
                ptp_wire.TIME_PROPERTIES_DATA_SET: struct.pack("!hBB", 37, leap, 0),
                ptp_wire.PORT_PROPERTIES_NP: struct.pack("!10sBBB", bytes(10), 9, 0, 4) + b"eth0",
            }
        )
        clock = sample(self._wall, true_ns)
        claimed = self._readings.add(clock.raw_ns, clock.wall_minus_raw + found.utc_minus_clock)
        return None if claimed is None else Claim(clock.raw_ns, claimed, found.leap)


class Phc:
    """A network card's clock on UTC that declares its error, as AWS's do."""

    def __init__(self, wall: Wall, utc: Utc, choose: random.Random, limits: tuple[int, int]) -> None:
        self._wall, self._utc = wall, utc

    def __call__(self, true_ns: int) -> Claim:
        raw = self._wall.oscillator.raw(true_ns)
        wrong = round(math.sin(true_ns / SECOND / 3) * 0.98 * PHC_ERROR_NS)
        difference = self._utc.reading(true_ns) + wrong - raw
        return Claim(raw, Interval(difference - 500 - PHC_ERROR_NS, difference + 300 + PHC_ERROR_NS))


def claimant(
    kind: str, wall: Wall, utc: Utc, choose: random.Random, limits: tuple[int, int], wire: Wire
) -> Callable[[int], Claim | None]:
    """Who makes the claims of a source of this type."""
    if kind == "ptp":
        return Ptp4l(wall, utc, choose, limits, wire)
    makers: dict[str, Callable[..., Callable[[int], Claim]]] = {"chrony": Chronyd, "kernel": Kernel, "phc": Phc}
    return makers[kind](wall, utc, choose, limits)
