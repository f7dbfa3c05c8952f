"""Carries out what ``discipline.py`` orders: reads the kernel, keeps what must survive a crash, sets the frequency.

The daemon calls :meth:`Steering.look` at each of its ticks, publishes the bounds if that says so, and then calls
:meth:`Steering.act`: a rate never takes effect before the bounds that allow for it are out. Before the first change,
and before each further one, the state file says what was found and what is being set; without a place for it nothing
is ever set. It is removed once the frequency of before is back, or another hand has taken over. The file is written in
a thread (``background.Keeper``): an order waits for it, and a later one takes its place; meanwhile the rate stays.

Limits: the file is not flushed to the disk, since a crash of the machine resets the kernel as well. Time daemons are
looked for every ``OWNERS_EVERY_S`` seconds, in a thread that nobody waits for; a daemon that moves something in between
is noticed by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from skewd import discipline, time_daemons
from skewd.background import DISK
from skewd.discipline import Left, Look, Order, Pilot, Reference, State
from skewd.kernel_clock import Adjuster, KernelClock, rate_ppb
from skewd.node import Node
from skewd.problems import Problem, of_error
from skewd.state_file import StateFile
from skewd.status import DisciplineRow
from skewd.time_daemons import TimeDaemon

_CODES = {State.UNABLE: "discipline-unable", State.STOPPED: "discipline-stopped"}

OWNERS_EVERY_S = 10.0
KIND = "steering"


class Kept(Protocol):
    """How the state file is kept: a :class:`~skewd.background.Keeper` of :func:`keep_or_remove`."""

    def keep(self, content: bytes) -> None: ...

    @property
    def written(self) -> bytes | None: ...

    @property
    def error(self) -> str | None: ...


def keep_or_remove(file: StateFile, content: bytes) -> None:
    """Writes the file, or removes it where there is nothing to say.

    Raises:
        OSError: it can't be written or removed.
    """
    if content:
        file.write(content)
    else:
        file.remove()


class AtOnce:
    """The file, kept by who waits for the disk: for simulations."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self.written: bytes | None = None
        self.error: str | None = None

    def keep(self, content: bytes) -> None:
        """Writes it now."""
        try:
            keep_or_remove(self._file, content)
        except OSError as error:
            self.written, self.error = None, error.strerror
        else:
            self.written, self.error = content, None


class Log(Protocol):
    """Where it is said."""

    def info(self, event: str, **facts: Any) -> Any: ...

    def warning(self, event: str, **facts: Any) -> Any: ...


def owners_here() -> Sequence[TimeDaemon] | None:
    """The time daemons of this machine, or of this container; None if other processes are hidden from this one."""
    return time_daemons.running() if time_daemons.others_visible() else None


class Steering:
    """The steering of one node's clock.

    Args:
        node: whose bounds must allow for it.
        adjuster: the kernel; None where there is none to be had, and ``unable`` says why.
        file: what survives a crash; ``kept`` writes it, at once by default.
        announce_ns: how long the kernel is watched, and peers told, before anything is set.
        owners: the time daemons seen here, or None if they can't be seen; itself None where none can touch this
            clock (a virtual one).
    """

    def __init__(
        self,
        node: Node,
        adjuster: Adjuster | None,
        file: StateFile,
        log: Log,
        *,
        announce_ns: int,
        owners: Callable[[], Sequence[TimeDaemon] | None] | None,
        unable: str | None = None,
        kept: Kept | None = None,
    ) -> None:
        self._node, self._adjuster, self._file, self._log = node, adjuster, file, log
        self._kept = AtOnce(file) if kept is None else kept
        self._waiting: tuple[Order, bytes] | None = None
        self._owners = owners
        self._daemons: Sequence[TimeDaemon] | None = None if owners is not None else ()
        self._looked = False
        self._reference: Reference | None = None
        self._referred_ns = -discipline.DECIDE_NS
        self._pilot = Pilot(announce_ns)
        if adjuster is None:
            self._pilot.state, self._pilot.reason = State.UNABLE, unable
        self._order: Order | None = None
        self._said: tuple[State, str | None] = (State.OFF, None)

    async def watch_owners(self) -> None:
        """Looks for time daemons again and again."""
        while self._owners is not None:
            with contextlib.suppress(OSError):  # no thread to be had: the next time, then
                self._daemons, self._looked = await DISK.call(self._owners), True
            await asyncio.sleep(OWNERS_EVERY_S)

    def look(self, raw_ns: int, stepped: bool) -> bool:
        """One tick. True: publish the node's bounds now, and then call :meth:`act`.

        Args:
            raw_ns: now.
            stepped: the wall clock was stepped since the last tick.
        """
        self._order = None
        if self._adjuster is None or self._pilot.ended():
            self._say()
            return False
        if self._pilot.due(raw_ns) or raw_ns - self._referred_ns >= discipline.DECIDE_NS:
            self._reference, self._referred_ns = self._reference_now(raw_ns), raw_ns
        before = self._pilot.rate_ppb
        kernel = self._adjuster.read()
        order = self._pilot.look(Look(raw_ns, kernel, stepped, self._reference, self._obstacle()))
        self._node.steer_limit_ppb = self._pilot.announced_ppb
        if order is not None and not order.last:
            self._waiting = (order, self._left(order))
            self._kept.keep(self._waiting[1])
        ended = self._pilot.ended()
        if ended:
            self._waiting = None
        if order is None or not order.last:  # of a last one the file tells already
            order = self._ready()
        if order is not None:
            self._order = order
            assert self._pilot.found is not None
            self._node.will_steer(rate_ppb(self._pilot.found.tick_us, order.frequency))
        elif ended and before is not None and kernel is not None:
            # Another hand has it: what was ours is over.
            self._node.will_steer(kernel.rate_ppb)
            self._forget()
        self._say()
        return self._order is not None

    def act(self) -> None:
        """Carries out what :meth:`look` prepared; what is refused ends the steering."""
        order, self._order = self._order, None
        if order is None:
            return
        assert self._adjuster is not None
        try:
            kernel = self._adjuster.set_frequency(order.frequency)
            if not order.last:
                self._pilot.obeyed(order, kernel)
        except OSError as error:
            self._pilot.failed(f"the kernel's frequency can't be set: {error.strerror or error}")
            self._node.steer_limit_ppb = 0
            self._say()
            return
        if order.last:
            self._forget()
            self._log.info("the kernel's frequency of before is restored")

    def close(self, publish: Callable[[], None]) -> None:
        """Restores what was found, if what is there is still ours."""
        if self._adjuster is None:
            return
        kernel = self._adjuster.read()
        begun = self._pilot.rate_ppb is not None
        self._order = self._pilot.end(kernel)
        if self._order is not None and self._pilot.found is not None:
            self._node.will_steer(self._pilot.found.rate_ppb)
            publish()
            self.act()
        elif begun and kernel is not None:
            self._forget()

    def abandon(self, publish: Callable[[], None]) -> None:
        """It failed by a fault of the program's own: restores what was found, as at the end, and is over."""
        try:
            self.close(publish)
        finally:
            self._pilot.failed("an error of skewd's own, see its log; restart it to begin anew")
            self._node.steer_limit_ppb = 0
            self._order = None

    def told(self) -> DisciplineRow:
        """For a status."""
        pilot = self._pilot
        return DisciplineRow(
            mode="slew",
            state=pilot.state.value,
            reason=pilot.reason,
            rate_ppb=pilot.rate_ppb,
            learned_ppb=pilot.learned_ppb,
            found_ppb=None if pilot.found is None else pilot.found.rate_ppb,
            limit_ppb=pilot.announced_ppb,
        )

    def problems(self) -> list[Problem]:
        """What keeps the clock from being steered."""
        state, reason = self._pilot.state, self._pilot.reason
        if reason is None and self._kept.error is not None:
            wrong = f"{self._file.path} can't be kept as it should be: {self._kept.error}"
            return [Problem("state-not-kept", str(self._file.path), wrong, "make its directory writable, with room")]
        if reason is None:
            return []
        code = _CODES.get(state, "discipline-waiting")
        return [of_error(code, "", f"[discipline] {state.value}: {reason}")]

    # -- parts ---------------------------------------------------------------------------------------------------

    def _reference_now(self, raw_ns: int) -> Reference | None:
        node = self._node
        estimate = node.reference_estimate(raw_ns)
        if estimate is None or estimate.name == f"node:{node.name}":
            return None
        minus_raw = estimate.bound + node.wall.wall_minus_raw(raw_ns)
        epoch = (node.raw_era, estimate.name, *estimate.epoch)
        return Reference(estimate.bound, minus_raw, estimate.wander_ppb_per_s, epoch, estimate.heard)

    def _obstacle(self) -> str | None:
        # One that becomes the reference while it steers, since all others left, is in holdover.
        if self._pilot.rate_ppb is None and self._node.reference_name() == self._node.name:
            return "the reference is this node itself, there is nothing to steer towards; set [mesh] reference"
        if (source := self._node.steered_by_source) is not None:
            return f"source {source} judges this clock by how another steers it; take it out, name servers instead"
        if self._daemons is None and self._looked:
            return (
                "whether a time daemon runs can't be seen from here; install the drop-in discipline.conf (ProtectProc=)"
            )
        if self._daemons is None:
            return "it is not known yet which time daemons run here"
        return discipline.owner_seen(self._daemons)

    def _left(self, order: Order) -> bytes:
        """What the file says while an order is about to be carried out."""
        pilot = self._pilot
        assert pilot.found is not None
        assert self._adjuster is not None
        kernel = self._adjuster.read()
        now = pilot.found.frequency if kernel is None else kernel.frequency
        return discipline.encode(
            Left(self._node.boot.hex(), pilot.found.frequency, (now, order.frequency), pilot.found.tick_us)
        )

    def _ready(self) -> Order | None:
        """The order that waits, once the file says what is about to be set; where that fails it is over."""
        if self._waiting is None:
            return None
        order, content = self._waiting
        if self._kept.written == content:
            self._waiting = None
            return order
        if self._kept.error is not None:
            self._waiting = None
            self._pilot.failed(
                f"{self._file.path.parent} can't be written ({self._kept.error}), and without it a crash would leave"
                " the kernel's frequency changed; make it writable, or choose another [node] state_dir"
            )
            self._node.steer_limit_ppb = 0
        return None

    def _forget(self) -> None:
        """Nothing is left to undo."""
        self._waiting = None
        self._kept.keep(b"")

    def _say(self) -> None:
        pilot = self._pilot
        if (pilot.state, pilot.reason) == self._said:
            return
        self._said = (pilot.state, pilot.reason)
        said = f"discipline: {pilot.state.value}"
        if pilot.reason is not None:
            said = f"{said}: {pilot.reason}"
        elif pilot.state is State.STEERING:
            said = "this clock is steered by skewd; nobody else may set it meanwhile"
        if pilot.ended():
            self._log.warning(said)
        else:
            self._log.info(said)


class NotRestoredError(Exception):
    """A frequency of ours is left in the kernel, and could not be undone; the message says what to do."""


def restore(
    file: StateFile, boot: bytes, read: Callable[[], KernelClock | None], adjuster: Callable[[], Adjuster]
) -> str | None:
    """Undoes what a daemon that died left: what became of it, in words; None if nothing was left.

    Args:
        boot: which boot of the clock this is.
        read: reads the kernel's state.
        adjuster: makes what can set it, once that is needed; may raise OSError.

    Raises:
        NotRestoredError: it should have been restored and was not.
    """
    content = file.read(discipline.LEFT_BYTES_MAX)
    if content is None:
        if os.path.exists(file.path):  # unlike Path.exists, no error where the directory is another's
            raise NotRestoredError(f"{file.path} can't be read; run this as root, or as the user that skewd runs as")
        return None
    left = discipline.decode(content)
    if left is None:
        raise NotRestoredError(
            f"{file.path} is damaged: the kernel's frequency may be skewd's still;"
            " look with 'adjtimex --print', and remove the file"
        )
    try:
        kernel = read()
        if kernel is None:
            raise NotRestoredError(f"the kernel's steering of the clock can't be read; {file.path} is kept")
        frequency, said = discipline.to_restore(left, boot, kernel)
        if frequency is not None:
            adjuster().set_frequency(frequency)
        file.remove()
    except OSError as error:
        raise NotRestoredError(
            f"the kernel's frequency is as a skewd that died left it ({error.strerror or error});"
            " run 'skewd discipline restore' as root"
        ) from error
    return said
