"""The truth that a simulation knows: two nodes' clocks, the wire between them, and servers of UTC.

Time here is true time, in whole ns since the simulation began. An oscillator's reading is its epoch, plus that time,
plus a deviation that moves exactly as the declared limits say: piecewise constant acceleration (the wander), which
stops where the drift reaches its limit. Readings are rounded down, as a counter's are. Everything follows from a
seed; nothing is read from this machine.

The deviation is a float of at most some seconds, exact to a ten-thousandth of a nanosecond. Limits: the sum of two
oscillators' motions is as adversarial as the chosen style; the worst case of a pair is "bang", where both swing at
their full wander, in opposite directions.
"""

from __future__ import annotations

import math
import random
import struct
from bisect import bisect_right
from dataclasses import dataclass, field

SECOND = 1_000_000_000
UNIX_NS = 1_790_000_000 * SECOND
"""UTC when a simulation begins."""


@dataclass
class Oscillator:
    """One raw clock: within ``drift_max_ppb`` and ``wander`` ppb/s of true time."""

    epoch_ns: int
    drift_max_ppb: float
    wander: float
    drift_ppb: float = 0.0
    _t: float = 0.0
    _deviation: float = 0.0
    _starts: list[float] = field(default_factory=list)
    _pieces: list[tuple[float, float, float]] = field(default_factory=list)
    _jumps: list[tuple[int, int]] = field(default_factory=list)

    def go(self, seconds: float, direction: float) -> None:
        """Moves on with ``direction`` (-1 .. 1) of the wander allowed, stopping at the drift limit."""
        rate = direction * self.wander
        limit = math.copysign(self.drift_max_ppb, rate)
        until_limit = max((limit - self.drift_ppb) / rate, 0.0) if rate else math.inf
        for part, accel in ((min(seconds, until_limit), rate), (seconds - min(seconds, until_limit), 0.0)):
            if part > 0:
                self._starts.append(self._t)
                self._pieces.append((self._deviation, self.drift_ppb, accel))
                self._deviation += self.drift_ppb * part + accel * part * part / 2
                self.drift_ppb += accel * part
                self._t += part

    def jump(self, at_ns: int, by_ns: int) -> None:
        """From ``at_ns`` on the clock reads ``by_ns`` more: beyond any limit (or a suspend, where it reads less)."""
        self._jumps.append((at_ns, by_ns))

    def deviation(self, true_ns: int) -> float:
        """Reading - epoch - true time."""
        t = true_ns / SECOND
        index = max(bisect_right(self._starts, t) - 1, 0)
        deviation, drift, accel = self._pieces[index]
        t -= self._starts[index]
        found = deviation + drift * t + accel * t * t / 2
        for at_ns, by_ns in self._jumps:
            if true_ns >= at_ns:
                found += by_ns
        return found

    def raw(self, true_ns: int) -> int:
        return self.epoch_ns + true_ns + math.floor(self.deviation(true_ns))


def set_going(style: str, here: Oscillator, there: Oscillator, choose: random.Random, until_s: float) -> None:
    """Lets two oscillators move until ``until_s`` (and some seconds more), in one of the styles of ``STYLES``."""
    passed = 0.0
    sign = choose.choice((-1, 1))
    if style == "limit":
        here.drift_ppb, there.drift_ppb = -sign * here.drift_max_ppb, sign * there.drift_max_ppb
    elif style == "crossing":
        here.drift_ppb, there.drift_ppb = sign * here.drift_max_ppb, -sign * there.drift_max_ppb
    elif style != "same":
        here.drift_ppb = choose.uniform(-1, 1) * here.drift_max_ppb
        there.drift_ppb = choose.uniform(-1, 1) * there.drift_max_ppb
    turn = -sign
    while passed <= until_s:
        turn = -turn
        if style == "bang":
            # Lengths of every size: short swings test the corners, long ones run into the drift limit.
            step = choose.choice((0.3, 3.0, 30.0, 300.0)) * choose.uniform(0.5, 2.0)
            one, other = float(turn), float(-turn)
        elif style in ("limit", "still", "same"):
            step, one, other = until_s + 1, 0.0, 0.0
        elif style == "crossing":
            # From one drift limit to the other and back, both at full wander, opposite ways.
            step, one, other = 2 * here.drift_max_ppb / here.wander, float(-turn), float(turn)
        elif style == "temperature":
            # A room that warms and cools over half an hour; both feel it, not equally.
            step, one, other = 900.0, 0.8 * turn, 0.5 * turn
        else:
            step, one, other = 1.0, choose.uniform(-1, 1), choose.uniform(-1, 1)
        here.go(step, one)
        there.go(step, other)
        passed += step


STYLES = ("bang", "limit", "crossing", "still", "same", "temperature", "walk")


@dataclass
class Wall:
    """A node's wall clock: its raw clock, slewed, stepped, and running on through a suspend."""

    oscillator: Oscillator
    ahead_ns: int = 0
    slew_ppb: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)

    def read(self, true_ns: int) -> int:
        raw = self.oscillator.raw(true_ns)
        slewed = (raw - self.oscillator.epoch_ns) * self.slew_ppb // SECOND
        stepped = sum(by_ns for at_ns, by_ns in self.steps if true_ns >= at_ns)
        return UNIX_NS + raw - self.oscillator.epoch_ns + self.ahead_ns + slewed + stepped


@dataclass(frozen=True)
class Wire:
    """How long messages take: a minimum each way, a jitter on top, never less than nothing."""

    minimum_us: float = 100.0
    jitter: str = "exponential"
    jitter_us: float = 50.0
    asymmetry: float = 0.0
    """Share of the minimum that the way there has too much, and the way back too little (-1 .. 1)."""

    def delay_ns(self, choose: random.Random, there: bool) -> int:
        minimum = self.minimum_us * (1 + self.asymmetry if there else 1 - self.asymmetry)
        if self.jitter == "exponential":
            extra = choose.expovariate(1.0) * self.jitter_us
        elif self.jitter == "heavy":
            extra = min((choose.paretovariate(1.1) - 1) * self.jitter_us, 5e6)
        elif self.jitter == "queue":
            # Mostly nothing, at times a full buffer on the way there only.
            extra = choose.random() * self.jitter_us * (20 if there and choose.random() < 0.3 else 0.1)
        elif self.jitter == "sometimes":
            extra = 0.0 if choose.random() < 0.5 else choose.expovariate(1.0) * self.jitter_us
        else:
            extra = 0.0
        return round((minimum + extra) * 1000)


@dataclass(frozen=True)
class Server:
    """An NTP server: off UTC by less than it declares, unless it is ``false_by_us``."""

    name: str
    error_us: float = 200.0
    false_by_us: float = 0.0

    def utc(self, true_ns: int) -> int:
        """What its clock says: UTC and an error that swings between the ends of what is declared."""
        swing = math.sin(true_ns / SECOND / 37.0 + len(self.name)) * self.error_us + self.false_by_us
        return UNIX_NS + true_ns + math.floor(swing * 1000)

    def answer(self, nonce: bytes, received_ns: int, left_ns: int) -> bytes:
        """The packet, as RFC 5905 lays it out; a root delay of half the error's size, the rest dispersion."""
        delay = math.ceil(self.error_us / 2 * 1e-6 * 65536)
        dispersion = math.ceil(self.error_us * 0.75e-6 * 65536)
        head = struct.pack("!BBbbIII", 0o44, 2, 6, -30, delay, dispersion, 0x7F000001)
        stamps = [_ntp(self.utc(at_ns)) for at_ns in (received_ns, left_ns)]
        return head + struct.pack("!Q8sQQ", stamps[0], nonce, *stamps)


def _ntp(unix_ns: int) -> int:
    seconds, nanoseconds = divmod(unix_ns, SECOND)
    return ((seconds + 2_208_988_800) % (1 << 32) << 32) | (nanoseconds << 32) // SECOND
