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
DAY = 86_400 * SECOND
UNIX_NS = 1_790_000_000 * SECOND
"""UTC when a simulation begins, if no leap second says otherwise."""


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

    def drift(self, true_ns: int) -> float:
        """The rate beyond that of true time, in ppb."""
        t = true_ns / SECOND
        index = max(bisect_right(self._starts, t) - 1, 0)
        _, drift, accel = self._pieces[index]
        return drift + accel * (t - self._starts[index])

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
    unix_ns: int = UNIX_NS
    _steered: list[tuple[int, int, int, int]] = field(default_factory=list)

    def steer(self, at_ns: int, ppb: int) -> None:
        """From ``at_ns`` on, later than the last time, the kernel's tick is set so that it runs this much faster."""
        raw = self.oscillator.raw(at_ns)
        self._steered.append((at_ns, raw, self._steered_ns(at_ns, raw), ppb))

    def _steered_ns(self, true_ns: int, raw: int) -> int:
        index = bisect_right(self._steered, true_ns, key=lambda piece: piece[0]) - 1
        if index < 0:
            return 0
        _, since, ahead, ppb = self._steered[index]
        return ahead + (raw - since) * ppb // SECOND

    def rate_ppb(self, true_ns: int) -> int | None:
        """What its kernel would say of tick and frequency; None if nobody steers it."""
        index = bisect_right(self._steered, true_ns, key=lambda piece: piece[0]) - 1
        return None if not self._steered else 0 if index < 0 else self._steered[index][3]

    def read(self, true_ns: int) -> int:
        raw = self.oscillator.raw(true_ns)
        slewed = (raw - self.oscillator.epoch_ns) * self.slew_ppb // SECOND
        if self._steered:
            slewed += self._steered_ns(true_ns, raw)
        stepped = sum(by_ns for at_ns, by_ns in self.steps if true_ns >= at_ns)
        return self.unix_ns + raw - self.oscillator.epoch_ns + self.ahead_ns + slewed + stepped


@dataclass(frozen=True)
class Leap:
    """A leap second at a midnight of UTC.

    Attributes:
        at_s: when the day ends, by the reading of UTC before the leap.
        kind: 1 a second is inserted, 2 one is deleted.
        happens: whether what is announced comes true.
        smear_s: spread over this long, the midnight in its middle; 0 for at once.
    """

    at_s: float
    kind: int = 1
    happens: bool = True
    smear_s: float = 0.0


@dataclass(frozen=True)
class Utc:
    """UTC as a true time goes by, and who may say what around a leap second.

    Which reading is right while a second repeats is a matter of taste: POSIX has no name for 23:59:60, kernels set
    their clocks at its begin, daemons a little later. So near the leap both readings are legitimate, and a bound must
    hold **both**: from ``BOTH_FROM_S`` before the midnight until ``BOTH_UNTIL_S`` after it. Before and after that there
    is one. Smeared, there is one all the time: that of the smear.
    """

    leap: Leap | None = None

    @property
    def begin_ns(self) -> int:
        """At true time 0."""
        if self.leap is None:
            return UNIX_NS
        return (UNIX_NS // DAY + 2) * DAY - round(self.leap.at_s * SECOND)

    def reading(self, true_ns: int, late_s: float = 0.0) -> int:
        """UTC, by somebody who leaps ``late_s`` late."""
        return self.begin_ns + true_ns + self._leapt(true_ns, late_s)

    def _leapt(self, true_ns: int, late_s: float) -> int:
        leap = self.leap
        if leap is None or not leap.happens:
            return 0
        by_ns = -SECOND if leap.kind == 1 else SECOND
        if leap.smear_s:
            share = (true_ns / SECOND - leap.at_s) / leap.smear_s + 0.5
            return math.floor(by_ns * min(max(share, 0.0), 1.0))
        return by_ns if true_ns >= self.leaps_at(late_s) else 0

    def leaps_at(self, late_s: float = 0.0) -> int:
        """When: a deleted second is the day's last one, an inserted one comes after it."""
        assert self.leap is not None
        return round((self.leap.at_s + late_s - (self.leap.kind == 2)) * SECOND)

    def legitimate(self, true_ns: int) -> tuple[int, ...]:
        """The readings that a bound has to hold, and would be right to give."""
        leap, plain = self.leap, self.begin_ns + true_ns
        if leap is None or leap.smear_s:
            return (self.reading(true_ns),)
        by_ns = -SECOND if leap.kind == 1 else SECOND
        if -BOTH_FROM_S <= true_ns / SECOND - leap.at_s <= BOTH_UNTIL_S:
            return plain, plain + by_ns
        return (self.reading(true_ns),)

    def announced(self, true_ns: int, late_s: float = 0.0) -> int:
        """The leap indicator of somebody who leaps ``late_s`` late: until a second after that."""
        leap = self.leap
        if leap is None or leap.smear_s or true_ns >= self.leaps_at(late_s) + SECOND:
            return 0
        return leap.kind


BOTH_FROM_S, BOTH_UNTIL_S = 1.5, 8.0
"""A quarter of a second and more inside of what ``node.py`` promises, for knots are made as often."""


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
    announces: bool = True
    late_s: float = 0.0
    """How long after the leap second it leaps."""

    def utc(self, true_ns: int, utc: Utc) -> int:
        """What its clock says: UTC and an error that swings between the ends of what is declared."""
        swing = math.sin(true_ns / SECOND / 37.0 + len(self.name)) * self.error_us + self.false_by_us
        return utc.reading(true_ns, self.late_s) + math.floor(swing * 1000)

    def answer(self, nonce: bytes, received_ns: int, left_ns: int, utc: Utc) -> bytes:
        """The packet, as RFC 5905 lays it out; a root delay of half the error's size, the rest dispersion."""
        delay = math.ceil(self.error_us / 2 * 1e-6 * 65536)
        dispersion = math.ceil(self.error_us * 0.75e-6 * 65536)
        leap = utc.announced(left_ns, self.late_s) if self.announces else 0
        head = struct.pack("!BBbbIII", leap << 6 | 0o44, 2, 6, -30, delay, dispersion, 0x7F000001)
        stamps = [_ntp(self.utc(at_ns, utc)) for at_ns in (received_ns, left_ns)]
        return head + struct.pack("!Q8sQQ", stamps[0], nonce, *stamps)


def _ntp(unix_ns: int) -> int:
    seconds, nanoseconds = divmod(unix_ns, SECOND)
    return ((seconds + 2_208_988_800) % (1 << 32) << 32) | (nanoseconds << 32) // SECOND
