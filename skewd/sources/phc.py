"""Hardware clocks (PHC), read against the raw clock as closely as the device allows.

The ways are those of ``phc_wire.py``, the closest first: one that the device or this kernel does not have is not tried
again, one that fails once (a bus that was busy) is, next time. Where none is had, the clock is read by
`clock_gettime` in a sandwich of raw readings, a microsecond or so wide. The log says which way it is.

A PHC by itself says what time it has and not how wrong that is. The one kind that does (AWS's ENA, a file
``phc_error_bound`` beside the device, on UTC) is a source of its own; for the others ask the ptp4l that steers them.

Nothing here is remembered: clock and error are read anew each time, against raw, so a step of the wall clock is nothing
to it.

Limits: a call lasts some tens of microseconds, in which the daemon waits. Such a clock announces no leap second; other
sources do, and half of them are believed for all (``node.py``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from skewd.clock import HostClock, NodeClock, WallSample, read_wall
from skewd.interval import Interval
from skewd.lean import structlog
from skewd.sources.claim import ERROR_MAX_NS, Claim, Refused
from skewd.sources.local import HostWall
from skewd.sources.phc_wire import Ways, crossing, question, raw_of

_NOT_HAD = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}

Ioctl = Callable[[int, int, bytearray], object]


class Phc:
    """A hardware clock beside a node's raw clock.

    Args:
        ioctl: calls the kernel.

    Attributes:
        way: how the last reading was made: ``PRECISE``, ``EXTENDED_RAW``, ``EXTENDED``, ``OFFSET`` or ``gettime``.

    Raises:
        OSError: the device can't be opened; the message says what to do.
    """

    virtual = False

    def __init__(self, device: str, clock: NodeClock, ioctl: Ioctl = fcntl.ioctl) -> None:
        try:
            self._descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(
                f"{device} can't be opened: {error.strerror}; a udev rule or group must let this user read it, "
                "and under systemd the drop-in phc-device.conf"
            ) from None
        # The kernel's rule for clocks behind a file: FD_TO_CLOCKID.
        self._id = (~self._descriptor << 3) | 3
        self._clock, self._device, self._ioctl = clock, device, ioctl
        self._host = HostWall(HostClock())
        self._ways = list(Ways)
        self.way: str | None = None
        self._log = structlog.get_logger("skewd.sources.phc")

    def raw_ns(self) -> int:
        return self._clock.raw_ns()

    def wall_ns(self) -> int:
        return time.clock_gettime_ns(self._id)

    def sample(self) -> WallSample:
        """PHC - raw.

        Raises:
            OSError: the device is no clock.
        """
        for way in tuple(self._ways):
            found = self._stamped(way)
            if found is not None:
                self._say(way.name)
                return found
        self._say("gettime")
        return read_wall(self, width_ns=2_000, attempts=5)

    def rate_ppb(self) -> int:
        """The rate that it is steered to: nobody tells."""
        return 0

    def _stamped(self, way: Ways) -> WallSample | None:
        """PHC - raw as the kernel stamps it in one way; None where it doesn't."""
        data = question(way)
        before = self._host.before()
        try:
            self._ioctl(self._descriptor, way.value.number, data)
        except OSError as error:
            if error.errno in _NOT_HAD:
                self._ways.remove(way)
            return None
        after = self._host.after()
        found = crossing(way, data)
        host_raw = None if found is None else raw_of(found, before, after)
        if found is None or host_raw is None:
            return None
        first, last = self._clock.at_host_raw(host_raw.lo), self._clock.at_host_raw(host_raw.hi)
        return WallSample(last, Interval(found.phc_ns - last, found.phc_ns - first))

    def _say(self, way: str) -> None:
        if way != self.way:
            self.way = way
            self._log.info("phc_read_by", device=self._device, way=way)

    def close(self) -> None:
        """Closes the device."""
        os.close(self._descriptor)


def device_of(interface: str, root: Path = Path("/sys/class/net")) -> str:
    """The PHC of a network interface.

    Raises:
        Refused: it has none, or the name is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.@:-]{1,15}", interface) or interface in (".", ".."):
        raise Refused("ptp4l names an interface that can be none")
    found = sorted((root / interface / "device" / "ptp").glob("ptp[0-9]*"))
    if not found:
        raise Refused(f"the hardware clock of {interface} is not to be found; ptp4l steers it, not the wall clock")
    return f"/dev/{found[0].name}"


class PhcReader:
    """Reads a hardware clock that declares its own error.

    Raises:
        OSError: the device can't be opened.
    """

    def __init__(self, device: str, clock: NodeClock, root: Path = Path("/sys/class/ptp")) -> None:
        self._device = device
        self._phc = Phc(device, clock)
        self._bound = root / Path(device).name / "device" / "phc_error_bound"

    async def __call__(self) -> Claim:
        """The claim.

        Raises:
            Refused: the clock declares no error.
        """
        try:
            error = int(self._bound.read_text())
        except (OSError, ValueError):
            raise Refused(
                f"{self._device} says what time it has and not how wrong that is; "
                "use type = 'ptp' with the ptp4l that steers it"
            ) from None
        if not 0 < error < ERROR_MAX_NS:
            raise Refused(f"{self._device} is not synchronized: it declares an error of {error} ns")
        sample = self._phc.sample()
        return Claim(sample.raw_ns, sample.wall_minus_raw + Interval(-error, error), root_distance_ns=error)

    def close(self) -> None:
        """Closes the device."""
        self._phc.close()
