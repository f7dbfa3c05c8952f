"""A simulated wall clock whose rate is set, and the kernel that sets it: adjtimex(2) in the simulation's true time."""

from __future__ import annotations

from bisect import bisect_right

from skewd.kernel_clock import TICK_US, KernelClock, rate_ppb
from tests.simulation.world import SECOND, UNIX_NS, Oscillator


class Wall:
    """A wall clock: its raw clock, steered and stepped."""

    def __init__(self, oscillator: Oscillator, ahead_ns: int = 0) -> None:
        self.oscillator, self.ahead_ns = oscillator, ahead_ns
        self.steps: list[tuple[int, int]] = []
        self._turns: list[tuple[int, int, int]] = []
        """From a raw instant on: how far it was slewed until then, and the rate since, ppb."""

    def steer(self, true_ns: int, rate: int) -> None:
        """From now on the kernel is set to this rate, ppb."""
        raw = self.oscillator.raw(true_ns)
        self._turns.append((raw, self._slewed_ns(raw), rate))

    def _slewed_ns(self, raw_ns: int) -> int:
        index = bisect_right(self._turns, raw_ns, key=lambda turn: turn[0]) - 1
        if index < 0:
            return 0
        since, before, rate = self._turns[index]
        return before + (raw_ns - since) * rate // SECOND

    def read(self, true_ns: int) -> int:
        """Its reading at a true instant."""
        raw = self.oscillator.raw(true_ns)
        stepped = sum(by_ns for at_ns, by_ns in self.steps if true_ns >= at_ns)
        return UNIX_NS + raw - self.oscillator.epoch_ns + self.ahead_ns + self._slewed_ns(raw) + stepped


class Kernel:
    """What steers a wall clock. ``now_ns`` (true) is moved by who plays it."""

    def __init__(self, wall: Wall, frequency: int = 0) -> None:
        self.wall, self.now_ns = wall, 0
        self.frequency, self.tick_us, self.status, self.max_error_us = frequency, TICK_US, 0x40, 16_000_000
        self.pending = 0
        self.refuses: OSError | None = None
        """Raised when it is told a frequency."""
        self.told: list[int] = []
        """Every frequency it was told."""
        wall.steer(0, rate_ppb(self.tick_us, frequency))

    def read(self) -> KernelClock | None:
        state = 5 if self.status & 0x40 else 0
        return KernelClock(
            state, self.status, self.frequency, self.tick_us, self.max_error_us, self.max_error_us, 0, self.pending
        )

    def set_frequency(self, frequency: int) -> KernelClock:
        if self.refuses is not None:
            raise self.refuses
        self.told.append(frequency)
        self.hand(frequency=frequency)
        kernel = self.read()
        assert kernel is not None
        return kernel

    def hand(self, **values: int) -> None:
        """Somebody sets some of it."""
        for name, value in values.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        self.wall.steer(self.now_ns, rate_ppb(self.tick_us, self.frequency))
