"""ptp4l on this machine, asked over its management socket, and hardware clocks (PHC).

With software stamps ptp4l speaks of the wall clock; with hardware stamps of the network card's, which is then read
here in a sandwich of raw readings. Either way that clock's relation to the raw clock is kept as a short history
(``wall.py``), so that the instant at which a Sync came in, which ptp4l gives on its clock, is known on raw. What the
answers mean is in ``ptp_wire.py``.

A PHC by itself says what time it has and not how wrong that is. The one kind that does (AWS's ENA, a file
``phc_error_bound`` beside the device, on UTC) is a source of its own; for the others ask the ptp4l that steers them.

Limits: ptp4l's socket belongs to root unless it is told otherwise (``uds_ro_address`` of linuxptp 4, or
``uds_address`` in a directory that this user may enter). Readings of a PHC are `clock_gettime` on the device, a
microsecond or so wide; the narrower cross-stamping ioctls are not used. A step of the clock between a Sync and our
reading is noticed from 1000 ppm of the interval on (1 ms at one second); the hull of readings covers smaller ones as
far as they are not all after it.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Protocol

from skewd.clock import Clock, WallSample, read_wall
from skewd.interval import Interval
from skewd.sources.claim import ERROR_MAX_NS, Claim, Refused
from skewd.sources.local import HostWall, exchange, unix_socket
from skewd.sources.ptp_wire import (
    MAX_REPLY_BYTES,
    QUESTIONS,
    Measurement,
    Readings,
    body,
    is_reply,
    measurement,
    request,
)
from skewd.wall import WallMap

USUAL = ("/run/ptp4lro", "/run/ptp4l")
SILENT_AFTER_NS = 30_000_000_000


class Sampled(Protocol):
    """A clock that can be read against raw."""

    def sample(self) -> WallSample: ...


class Phc:
    """A hardware clock beside a node's raw clock.

    Raises:
        OSError: the device can't be opened; the message says what to do.
    """

    virtual = False

    def __init__(self, device: str, clock: Clock) -> None:
        try:
            self._descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(
                f"{device} can't be opened: {error.strerror}; a udev rule or group must let this user read it, "
                "and under systemd the drop-in phc-device.conf"
            ) from None
        # The kernel's rule for clocks behind a file: FD_TO_CLOCKID.
        self._id = (~self._descriptor << 3) | 3
        self._clock = clock

    def raw_ns(self) -> int:
        return self._clock.raw_ns()

    def wall_ns(self) -> int:
        return time.clock_gettime_ns(self._id)

    def sample(self) -> WallSample:
        """A sandwich of PHC - raw.

        Raises:
            OSError: the device is no clock.
        """
        return read_wall(self, width_ns=2_000, attempts=5)

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


class PtpReader:
    """Asks ptp4l for its last measurement.

    Args:
        address: the path of its socket; None for the usual ones.
        directory: where our end of the socket goes.
    """

    def __init__(self, address: str | None, clock: Clock, directory: Path, max_drift_ppm: int) -> None:
        self._addresses: tuple[str, ...] = USUAL if address is None else (address,)
        self._clock, self._directory, self._max_drift_ppm = clock, directory, max_drift_ppm
        self._readings = Readings(max_drift_ppm)
        self._sampled: Sampled = HostWall(clock)
        self._phc: Phc | None = None
        self._interface: str | None = None
        self._map = WallMap(self._sampled.sample())
        self._era = self._map.era
        self._ingress_ns: int | None = None
        self._heard_raw_ns = clock.raw_ns()
        self._sequence = 0

    async def __call__(self) -> Claim | None:
        """A claim; None when no Sync came in since the last one, or too few came yet.

        Raises:
            Refused: ptp4l is there and makes no claim.
            OSError: it is not there.
        """
        found = await self._ask()
        self._follow(found.interface)
        self._map.sample(self._sampled.sample())
        if self._map.era != self._era:
            self._era = self._map.era
            self._readings.clear()
            raise Refused("the clock that ptp4l speaks of was stepped; its next measurements are waited for")
        now = self._clock.raw_ns()
        if found.ingress_ns == self._ingress_ns:
            if now - self._heard_raw_ns > SILENT_AFTER_NS:
                raise Refused("ptp4l has had no Sync message for half a minute; see its log")
            return None
        latest = self._map.latest
        raw_ns = found.ingress_ns - latest.wall_minus_raw.midpoint
        if not now - SILENT_AFTER_NS < raw_ns <= now:
            raise Refused("ptp4l's last measurement is old, or of another clock than it says")
        self._ingress_ns, self._heard_raw_ns = found.ingress_ns, now
        # The clock's offset to raw at that instant, and the instant's own uncertainty, far below a nanosecond's worth.
        clock_minus_raw = self._map.wall_minus_raw(raw_ns).widen(2)
        claim = self._readings.add(raw_ns, clock_minus_raw + found.utc_minus_clock)
        return None if claim is None else Claim(raw_ns, claim, found.leap)

    def _follow(self, interface: str | None) -> None:
        """Turns to the clock that ptp4l speaks of."""
        if interface == self._interface:
            return
        self.close()
        if interface is not None:
            self._phc = Phc(device_of(interface), self._clock)
        self._interface = interface
        self._sampled = self._phc or HostWall(self._clock)
        self._map = WallMap(self._sampled.sample())
        self._era = self._map.era
        self._readings.clear()

    def close(self) -> None:
        """Closes the hardware clock, if one is open."""
        if self._phc is not None:
            self._phc.close()
            self._phc = None
            self._interface = None
            self._sampled = HostWall(self._clock)

    async def _ask(self) -> Measurement:
        missing: list[str] = []
        for address in self._addresses:
            try:
                found = await self._ask_at(address)
            except OSError as error:
                missing.append(str(error))
                continue
            self._addresses = (address, *(other for other in self._addresses if other != address))
            return found
        raise OSError(f"ptp4l does not answer ({'; '.join(missing)})")

    async def _ask_at(self, address: str) -> Measurement:
        bodies: dict[int, bytes] = {}
        async with unix_socket(address, self._directory, "ptp4l") as sock:
            for question in QUESTIONS:
                self._sequence = sequence = (self._sequence + 1) & 0xFFFF

                def answers(data: bytes, question: int = question, sequence: int = sequence) -> bool:
                    return is_reply(data, question, sequence)

                bodies[question] = body(await exchange(sock, request(question, sequence), answers, MAX_REPLY_BYTES))
        return measurement(bodies)


class PhcReader:
    """Reads a hardware clock that declares its own error.

    Raises:
        OSError: the device can't be opened.
    """

    def __init__(self, device: str, clock: Clock, root: Path = Path("/sys/class/ptp")) -> None:
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
        return Claim(sample.raw_ns, sample.wall_minus_raw + Interval(-error, error))

    def close(self) -> None:
        """Closes the device."""
        self._phc.close()
