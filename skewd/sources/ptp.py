"""ptp4l on this machine, asked over its management socket.

With software stamps ptp4l speaks of the wall clock; with hardware stamps of the network card's (``phc.py``). Either
way that clock's relation to the raw clock is kept as a short history (``wall.py``), so that the instant at which a Sync
came in, which ptp4l gives on its clock, is known on raw. What the answers mean is in ``ptp_wire.py``.

After a step of that clock its measurements count again once they are from after it (``memory.py``).

Limits: ptp4l's socket belongs to root unless it is told otherwise (``uds_ro_address`` of linuxptp 4, or
``uds_address`` in a directory that this user may enter). A step of a network card's clock is told by nobody, and
noticed from 1000 ppm of the interval on (1 ms at one second); the hull of readings covers smaller ones as far as they
are not all after it. A hardware clock that is slewed faster than that looks stepped, and makes no claims meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from skewd.clock import NodeClock
from skewd.sources.claim import Claim, Refused
from skewd.sources.local import AnswerLost, HostWall, exchange, unix_socket
from skewd.sources.memory import FromBefore, Memory, Sampled, Steps
from skewd.sources.phc import Phc, device_of
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
_SLACK_NS = 1_000_000


class PtpReader:
    """Asks ptp4l for its last measurement.

    Args:
        address: the path of its socket; None for the usual ones.
        directory: where our end of the socket goes.
        steps: those of the host's wall clock; its own account of them by default.
        allow_local: believe a grandmaster that follows its own clock.
    """

    def __init__(
        self,
        address: str | None,
        clock: NodeClock,
        directory: Path,
        max_drift_ppm: int,
        *,
        steps: Steps | None = None,
        allow_local: bool = False,
    ) -> None:
        self._addresses: tuple[str, ...] = USUAL if address is None else (address,)
        self._clock, self._directory, self._max_drift_ppm = clock, directory, max_drift_ppm
        self._readings = Readings(max_drift_ppm)
        self._sampled: Sampled = HostWall(clock)
        self._phc: Phc | None = None
        self._interface: str | None = None
        self._map = WallMap(self._sampled.sample())
        self._host_steps = steps or Steps(self._sampled)
        self._steps, self._memory = self._host_steps, Memory(self._host_steps)
        self._seen_steps, self._allow_local = self._steps.count, allow_local
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
        self._steps.look()
        before_ns = self._map.latest.raw_ns
        stepped = self._map.sample(self._sampled.sample(), self._sampled.rate_ppb())
        if stepped and self._seen_steps == self._steps.count:
            self._steps.look(set_since_ns=before_ns)  # seen by the finer account of its rates alone
        if self._seen_steps != self._steps.count:
            self._seen_steps = self._steps.count
            self._map = WallMap(self._sampled.sample())
            self._readings.clear()
        now = self._clock.raw_ns()
        if not self._memory.judge(found.ingress_ns, _SLACK_NS).believed:
            raise FromBefore("the clock that ptp4l speaks of was stepped; its next measurements are waited for")
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
        if claim is None:
            return None
        return Claim(
            raw_ns, claim, found.leap, root_distance_ns=found.root_distance_ns, reference_ns=found.ingress_ns
        )

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
        self._steps = self._host_steps if self._phc is None else Steps(self._sampled)
        self._memory, self._seen_steps = Memory(self._steps), self._steps.count
        self._readings.clear()

    def close(self) -> None:
        """Closes the hardware clock, if one is open."""
        if self._phc is not None:
            self._phc.close()
            self._phc = None
            self._interface = None
            self._sampled = HostWall(self._clock)
            self._steps = self._host_steps

    async def _ask(self) -> Measurement:
        missing: list[str] = []
        lost: AnswerLost | None = None
        for address in self._addresses:
            try:
                found = await self._ask_at(address)
            except OSError as error:
                missing.append(str(error))
                lost = error if isinstance(error, AnswerLost) else lost
                continue
            self._addresses = (address, *(other for other in self._addresses if other != address))
            return found
        if lost is not None:
            raise lost
        raise OSError(f"ptp4l does not answer ({'; '.join(missing)})")

    async def _ask_at(self, address: str) -> Measurement:
        bodies: dict[int, bytes] = {}
        async with unix_socket(address, self._directory, "ptp4l") as sock:
            for question in QUESTIONS:
                self._sequence = sequence = (self._sequence + 1) & 0xFFFF

                def answers(data: bytes, question: int = question, sequence: int = sequence) -> bool:
                    return is_reply(data, question, sequence)

                asked = request(question, sequence)
                bodies[question] = body(await exchange(sock, asked, answers, MAX_REPLY_BYTES, "ptp4l"))
        return measurement(bodies, allow_local=self._allow_local)
