"""Steering this node's wall clock towards its reference, slowly, and only where nobody else does (``[discipline]``).

The problem: a daemon that sets clocks can do more harm than one that measures them. It may pull a right clock away,
step it, fight another daemon, leave a strange frequency behind when it dies, or make its own bounds false by moving
the clock they are about. Each has an answer here.

**Never away from the truth.** The bound on reference - wall holds by proof. Where it contains zero the clock may be
right, and nothing is corrected. Where it does not, its end nearest to zero is the part of the error that is *proven*,
and only that is corrected, over ``SETTLE_NS``: so a correction never passes the reference, however late the next
decision comes within that time (a daemon that hangs is killed by its watchdog and its frequency restored before).

**The rate is learned by proof, too.** The reference's time at two instants lies in two intervals, and both were read
against the raw clock, which steering does not touch: their slopes bound the reference's rate, widened by how far
it may have changed since (the declared wander). All pairs within ``LEARN_NS`` hold at once. A learned rate that they
exclude gives way to the middle of what they allow. Within that, it follows a proven error that does not go away (a
clock a little too slow comes to rest a little beyond the bound), at the pace of critical damping. It stays when the
reference falls silent (holdover).

**Only the frequency.** ADJ_FREQUENCY is one number that rules until it is set again, read back exactly, and what the
kernel then does is that rate and nothing else. The kernel's phase loop (ADJ_OFFSET) and adjtime(3) decay by laws of
their own, which bounds would have to follow; ADJ_TICK is coarse; ADJ_SETOFFSET and settimeofday step. The status
bits, STA_UNSYNC among them, are never written: skewd makes no promise to the kernel about its maxerror.

**Bounds first.** A rate takes effect only after it was announced: ``node.will_steer`` widens the knots that are out,
they are published, and then the kernel is told. Other nodes hear of this clock by messages, so they are told, in each,
how fast it *may* be steered until the next (``Pilot.announced_ppb``). That limit is told for ``announce_ns`` before it
is used. It is ``MAX_PPB`` while there is an error to correct, and little more than the learned rate afterwards.

**One hand.** It begins when no time daemon that may set the clock is seen (``time_daemons.py``), the kernel's tick is
the nominal one, no phase or PPS correction is under way, nobody refreshed the kernel's ``maxerror`` for half an hour
(which a daemon outside this container would do), and nothing of it changed for ``announce_ns``. Then at each tick
what is read is compared with what was set. If anything moved, it ends at once, and for good: restarting the daemon
begins anew. The frequency of before is restored if what is there is still ours, and left alone if it is not.

**After a crash.** What was found and what was set is on disk before it is set (``Left``). ``skewd discipline restore``
(``ExecStopPost=``) and the next start undo it, in the same boot, if what is there is still ours.

Limits: ``MAX_PPB`` of the kernel's 500 ppm. A clock that is an hour wrong stays wrong for months: it is never stepped,
and whoever sets it by hand ends the steering. A correction with adjtime(3) under way can't be read from adjtimex
without setting a mode; the bounds follow it, as they do any foreign slew. A peer that has heard nothing for longer
than ``announce_ns`` believes the limit that it heard last. Sources that judge this wall clock by how somebody else
steers it (chronyd, the kernel's maxerror) can't be used with it. Smeared sources are declared to change their rate at
any time, so none is learned from them: a clock whose own rate is 10 ppm off is then kept 0.4 ms beyond the bound.
Pure: values in, a frequency out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from skewd.interval import Interval
from skewd.kernel_clock import TICK_US, KernelClock, frequency_of, rate_ppb
from skewd.lean import msgspec
from skewd.time_daemons import TimeDaemon, may_set

MAX_PPB = 400_000
"""Fastest that the wall clock is steered against the raw clock: the kernel's 500 ppm less a fifth."""

KEEP_PPB = 20_000
"""What a clock that is kept (not led back) may be steered beyond its learned rate."""

SETTLE_NS = 40_000_000_000
"""A proven error is corrected over this long: longer than a hanging daemon lives (watchdog 30 s, and 5 s to die)."""

DECIDE_NS = 1_000_000_000
CALM_NS = 120_000_000_000
"""With hardly a correction for this long, the clock counts as kept."""

LEARN_NS = 512_000_000_000
LEARN_EVERY_NS = 4_000_000_000
LEARN_FROM_NS = 8_000_000_000
"""Shortest time between two instants that tell of the rate."""

ANNOUNCE_NS = 60_000_000_000
"""How long a limit is told to peers before it is used, and the kernel watched before the first change."""

ALONE_NS = 10_000_000_000
"""The same where no peer is told anything."""

REFRESHED_US = 1_100_000
"""A kernel that is called synchronized and whose maxerror (500 us more each second) is below this was told so within
the last 37 minutes: systemd-timesyncd, the laziest, does so at least every 34."""

WORTH_PPB = 100
"""A smaller change of the rate is not worth telling the kernel: a tenth of a microsecond a second."""

_ROUNDED = 1
"""A frequency read back may differ from what was set by this much (of 2^-16 ppm)."""

_UNSYNCHRONIZED = 0x0040
_PPS = 0x0002 | 0x0004
_BY_KERNEL_ALONE = 0x0100 | 0x0200 | 0x0400 | 0x0800 | 0x1000
"""STA_PPSSIGNAL, STA_PPSJITTER, STA_PPSWANDER, STA_PPSERROR, STA_CLOCKERR: no hand sets these."""

_MAX_ERROR_NEAR_US = 15_900_000
"""The kernel itself calls its clock unsynchronized once maxerror has grown to 16 s."""

_PPB = 1_000_000_000


class State(StrEnum):
    """What becomes of the steering; names of ``status --json`` and of the metric."""

    OFF = "off"
    UNABLE = "unable"
    """This process can't: the reason says why."""
    WAITING = "waiting"
    """Somebody else steers, or there is nothing to steer by."""
    WATCHING = "watching"
    """About to begin: nothing may change meanwhile, and peers are told."""
    STEERING = "steering"
    HOLDOVER = "holdover"
    """The reference is silent: the learned rate is kept."""
    STOPPED = "stopped"
    """Another hand moved the clock: ended until the daemon is started anew."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a hand on the kernel's clock would change."""

    frequency: int
    tick_us: int
    status: int
    offset: int

    @classmethod
    def of(cls, kernel: KernelClock) -> Setting:
        """As it was read."""
        return cls(kernel.frequency, kernel.tick_us, kernel.status & ~_BY_KERNEL_ALONE, kernel.pending)

    @property
    def rate_ppb(self) -> int:
        """The wall clock's rate against the raw clock."""
        return rate_ppb(self.tick_us, self.frequency)


@dataclass(frozen=True, slots=True)
class Reference:
    """What is known of the reference at one instant.

    Attributes:
        offset: reference - wall.
        minus_raw: reference - raw.
        wander_ppb_per_s: how fast the reference's rate against the raw clock may change.
        epoch: changes when what was known before says nothing of now.
        heard: whether it was heard in time; false in holdover.
    """

    offset: Interval
    minus_raw: Interval
    wander_ppb_per_s: int
    epoch: object
    heard: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen at one tick.

    Attributes:
        raw_ns: when.
        kernel: the kernel's state; None where it can't be read.
        stepped: the wall clock was stepped since the last look.
        reference: None without a bound.
        obstacle: why this clock is not to be steered (another's daemon, a reference that is this node), or None.
    """

    raw_ns: int
    kernel: KernelClock | None
    stepped: bool
    reference: Reference | None
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """Set the kernel's frequency to this; ``last``: it is the one that was found."""

    frequency: int
    last: bool = False


def owner_seen(daemons: Sequence[TimeDaemon]) -> str | None:
    """Why time daemons that run here forbid to steer, or None."""
    hands = [daemon for daemon in daemons if may_set(daemon)]
    if not hands:
        return None
    names = ", ".join(map(str, hands[:4]))
    return f"{names} may set this clock; stop it (or take CAP_SYS_TIME from it), or set [discipline] mode = 'off'"


def owner_in_kernel(kernel: KernelClock) -> str | None:
    """Why the kernel's state says that another hand steers, or None."""
    if kernel.tick_us != TICK_US:
        return (
            f"the kernel's tick is {kernel.tick_us} us, not {TICK_US}: another hand steers this clock, or did;"
            " when none does any more, set the tick back (adjtimex --tick)"
        )
    if kernel.status & _PPS:
        return "the kernel steers this clock by a PPS signal; leave it so, and set [discipline] mode = 'off'"
    if kernel.pending:
        return "a correction of another hand is under way in the kernel; it is waited for"
    if not kernel.status & _UNSYNCHRONIZED and kernel.max_error_us < REFRESHED_US:
        return (
            "somebody keeps telling the kernel that this clock is synchronized, perhaps from outside of this container;"
            " if that was a daemon that is stopped now, steering begins within 37 minutes after that"
        )
    if abs(rate_ppb(kernel.tick_us, kernel.frequency)) > MAX_PPB:
        return (
            f"the kernel's frequency is {said_ppm(kernel.rate_ppb)}, more than skewd ever sets;"
            " set it back (adjtimex --frequency 0)"
        )
    return None


def meddled(expected: Setting, kernel: KernelClock, max_error_before_us: int) -> str | None:
    """What another hand moved since the last look, or None: what is read is compared with what was set."""
    found = Setting.of(kernel)
    if found.frequency != expected.frequency:
        moved = f"{said_ppm(expected.rate_ppb)} to {said_ppm(rate_ppb(expected.tick_us, found.frequency))}"
        return f"another hand moved the kernel's frequency from {moved}"
    if found.tick_us != expected.tick_us:
        return f"another hand moved the kernel's tick from {expected.tick_us} to {found.tick_us} us"
    if found.offset != expected.offset:
        return "another hand began a correction in the kernel"
    changed = found.status ^ expected.status
    if changed == _UNSYNCHRONIZED and found.status & changed and max_error_before_us >= _MAX_ERROR_NEAR_US:
        changed = 0  # nobody's doing: maxerror has grown to its limit
    if changed:
        return f"another hand changed the kernel's status bits ({expected.status:#06x} to {found.status:#06x})"
    if kernel.max_error_us < max_error_before_us:
        return "another hand told the kernel a new maxerror"
    return None


def said_ppm(ppb: int) -> str:
    """``+12.3 ppm``."""
    return f"{ppb / 1000:+.1f} ppm"


class Controller:
    """Bounds in, the wall clock's rate against the raw clock out.

    Args:
        rate_ppb: the rate found.

    Attributes:
        learned_ppb: the rate that keeps pace with the reference, as far as is known.
        correction_ppb: what the last decision added to it.
    """

    def __init__(self, rate_ppb: int) -> None:
        self.learned_ppb = rate_ppb
        self.correction_ppb = 0
        self._seen: deque[tuple[int, Interval]] = deque(maxlen=LEARN_NS // LEARN_EVERY_NS)
        self._possible = Interval(-MAX_PPB, MAX_PPB)
        self._decided_ns = 0
        self._epoch: object = None

    def decide(self, raw_ns: int, reference: Reference | None) -> int | None:
        """The rate wanted, in ppb; None to leave it as it is: what is known has only now become another reference's.

        Without a reference, or one that is not heard, it is the learned rate.
        """
        if reference is None or not reference.heard:
            self.correction_ppb = 0
            return self.learned_ppb
        if reference.epoch != self._epoch:
            self._epoch = reference.epoch
            self._seen.clear()
            self._seen.append((raw_ns, reference.minus_raw))
            self._possible, self._decided_ns = Interval(-MAX_PPB, MAX_PPB), raw_ns
            return None
        self._learn(raw_ns, reference)
        error = proven_error_ns(reference.offset)
        elapsed, self._decided_ns = min(raw_ns - self._decided_ns, 2 * DECIDE_NS), raw_ns
        if abs(error) <= reference.offset.width:  # one that is on its way back from far tells nothing of the rate
            follow = error * _PPB * elapsed // (4 * SETTLE_NS * SETTLE_NS)
            self.learned_ppb = self._possible.clamp(self.learned_ppb + follow)
        self.correction_ppb = error * _PPB // SETTLE_NS
        return max(-MAX_PPB, min(MAX_PPB, self.learned_ppb + self.correction_ppb))

    def _learn(self, raw_ns: int, reference: Reference) -> None:
        if raw_ns - self._seen[-1][0] < LEARN_EVERY_NS:
            return
        least, most = -MAX_PPB, MAX_PPB
        now = reference.minus_raw
        for at_ns, before in self._seen:
            elapsed = raw_ns - at_ns
            if elapsed < LEARN_FROM_NS:
                break
            # The mean rate since; the rate now may differ by half of what it may have changed.
            changed = reference.wander_ppb_per_s * elapsed // (2 * _PPB) + 1
            least = max(least, (now.lo - before.hi) * _PPB // elapsed - changed)
            most = min(most, -((before.lo - now.hi) * _PPB // elapsed) + changed)
        possible = Interval(least, most) if least <= most else None
        if possible is None:
            # The reference itself was slewed by more than its oscillator wanders.
            self._seen.clear()
            possible = Interval(-MAX_PPB, MAX_PPB)
        elif not possible.contains(self.learned_ppb):
            self.learned_ppb = possible.midpoint
        self._possible = possible
        self._seen.append((raw_ns, reference.minus_raw))


def proven_error_ns(offset: Interval) -> int:
    """The part of reference - wall that is beyond doubt: the end of the bound nearest to zero; 0 if it contains it."""
    return offset.clamp(0)


class Pilot:
    """When to begin, what to set, when to end: looks in, orders out.

    Args:
        announce_ns: how long the kernel is watched, and a limit told to peers, before it is used.

    Attributes:
        state, reason: what becomes of it, and why where that is not as wanted.
        announced_ppb: how fast this clock may be steered until peers hear again; 0 while it is not steered.
    """

    def __init__(self, announce_ns: int = ANNOUNCE_NS) -> None:
        self.state = State.WAITING
        self.reason: str | None = None
        self.announced_ppb = 0
        self.found: Setting | None = None
        """What the kernel had before the first change; None before the beginning."""
        self._announce_ns = announce_ns
        self._expected: Setting | None = None
        self._max_error_us = 0
        self._since_ns = 0
        self._next_ns = 0
        self._usable_ppb = MAX_PPB
        self._raised_ns: int | None = None
        self._erred_ns = 0
        self._controller: Controller | None = None

    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in (State.STOPPED, State.UNABLE)

    @property
    def rate_ppb(self) -> int | None:
        """The wall clock's rate that was set; None while it is not steered."""
        return None if self._controller is None or self._expected is None else self._expected.rate_ppb

    @property
    def learned_ppb(self) -> int | None:
        """The rate learned; None while it is not steered."""
        return None if self._controller is None else self._controller.learned_ppb

    def due(self, raw_ns: int) -> bool:
        """Whether the next look decides by the reference, which must be as of then."""
        return self._controller is not None and raw_ns >= self._next_ns

    def look(self, look: Look) -> Order | None:
        """Takes what is seen; what to set now, if anything.

        After an order, :meth:`obeyed` is called with what the kernel has then, or :meth:`failed`.
        """
        if self.ended():
            return None
        return self._watch(look) if self._controller is None else self._steer(look)

    # -- before ----------------------------------------------------------------------------------------------------

    def _watch(self, look: Look) -> Order | None:
        kernel = look.kernel
        if kernel is None:
            self._wait("the kernel's steering of the clock can't be read")
            return None
        obstacle = look.obstacle or owner_in_kernel(kernel)
        if obstacle is not None:
            self._wait(obstacle)
            return None
        if look.reference is None or not look.reference.heard:
            self._wait("no reference is heard that it could be steered towards; see the sources and peers")
            return None
        setting, before = Setting.of(kernel), self._expected
        moved = None if before is None else meddled(before, kernel, self._max_error_us)
        if before is None or moved is not None or look.stepped:
            self._since_ns = look.raw_ns
            self.reason = None if moved is None else f"{moved}; it is watched anew"
        self.state, self.announced_ppb = State.WATCHING, MAX_PPB
        self._expected, self._max_error_us = setting, kernel.max_error_us
        if look.raw_ns - self._since_ns < self._announce_ns:
            return None
        self.reason = None
        self.found, self._controller = setting, Controller(setting.rate_ppb)
        self.state, self._usable_ppb, self._raised_ns, self._erred_ns = State.STEERING, MAX_PPB, None, look.raw_ns
        return None

    def _wait(self, reason: str) -> None:
        self.state, self.reason, self.announced_ppb, self._expected = State.WAITING, reason, 0, None

    # -- while ---------------------------------------------------------------------------------------------------

    def _steer(self, look: Look) -> Order | None:
        assert self._expected is not None
        assert self._controller is not None
        kernel = look.kernel
        if kernel is None:
            return self._stop("the kernel's steering of the clock can't be read any more", None)
        why = meddled(self._expected, kernel, self._max_error_us)
        if why is None and look.stepped:
            why = "the wall clock was set by another hand"
        if why is not None:
            return self._stop(f"{why}: steering ended; see who does, and restart skewd to steer again", kernel)
        if look.obstacle is not None:
            return self._stop(f"steering ended: {look.obstacle}; restart skewd to steer again", kernel)
        self._expected, self._max_error_us = Setting.of(kernel), kernel.max_error_us
        if look.raw_ns < self._next_ns:
            return None
        self._next_ns = look.raw_ns + DECIDE_NS
        wanted = self._controller.decide(look.raw_ns, look.reference)
        heard = look.reference is not None and look.reference.heard
        self.state = State.STEERING if heard else State.HOLDOVER
        if wanted is None:
            return None
        self._limit(look, wanted)
        rate = max(-self._usable_ppb, min(self._usable_ppb, wanted))
        if abs(rate - self._expected.rate_ppb) < WORTH_PPB:
            return None
        return Order(frequency_of(rate))

    def _limit(self, look: Look, wanted_ppb: int) -> None:
        """What may be used, and what is announced to be used later."""
        now, reference = look.raw_ns, look.reference
        assert self._controller is not None
        assert self.found is not None
        if reference is None or not reference.heard or 2 * abs(self._controller.correction_ppb) > KEEP_PPB:
            self._erred_ns = now
        kept = max(abs(self._controller.learned_ppb), abs(self.found.rate_ppb)) + KEEP_PPB
        if abs(wanted_ppb) > self._usable_ppb:
            if self._raised_ns is None:
                self._raised_ns, self.announced_ppb = now, MAX_PPB
            elif now - self._raised_ns >= self._announce_ns:
                self._raised_ns, self._usable_ppb = None, MAX_PPB
        elif now - self._erred_ns >= CALM_NS:
            self._usable_ppb = min(kept, self._usable_ppb)
            self._raised_ns, self.announced_ppb = None, self._usable_ppb

    def obeyed(self, order: Order, kernel: KernelClock) -> None:
        """An order was carried out: what the kernel has now. That must be what was ordered, and nothing else."""
        assert self._expected is not None
        # A kernel may round; what is further off is not what was ordered, and the next look says whose it is.
        has = kernel.frequency if abs(kernel.frequency - order.frequency) <= _ROUNDED else order.frequency
        self._expected, self._max_error_us = replace(self._expected, frequency=has), kernel.max_error_us

    def failed(self, reason: str) -> None:
        """An order could not be carried out; it is not tried again."""
        self.state, self.reason, self.announced_ppb, self._controller = State.STOPPED, reason, 0, None

    def end(self, kernel: KernelClock | None) -> Order | None:
        """The daemon ends: what is to be restored."""
        return None if self._controller is None else self._stop("the daemon ended", kernel)

    def _stop(self, reason: str, kernel: KernelClock | None) -> Order | None:
        assert self._expected is not None
        assert self.found is not None
        self.state, self.reason, self.announced_ppb, self._controller = State.STOPPED, reason, 0, None
        if kernel is None or kernel.frequency != self._expected.frequency:
            return None  # what is there is another's: it is left alone
        return Order(self.found.frequency, last=True)


# -- what is left on disk ----------------------------------------------------------------------------------------------


_Frequency = Annotated[int, msgspec.Meta(ge=-32_768_000, le=32_768_000)]


class Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a daemon that died leaves behind: all that is needed to undo what it did.

    Attributes:
        boot: which boot of the clock, 32 hex digits; another boot's kernel begins anew.
        found: the frequency before the first change.
        ours: the one set, and the one that was about to be set.
        tick_us: the tick, which was never changed.
    """

    boot: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    found: _Frequency
    ours: Annotated[tuple[_Frequency, ...], msgspec.Meta(max_length=2)]
    tick_us: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


LEFT_BYTES_MAX = 1024


def encode(left: Left) -> bytes:
    """The file's content."""
    return msgspec.json.encode(left) + b"\n"


def decode(content: bytes) -> Left | None:
    """What a file holds; None for what is no such content."""
    try:
        return msgspec.json.decode(content, type=Left)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def to_restore(left: Left, boot: bytes, kernel: KernelClock) -> tuple[int | None, str]:
    """The frequency to restore, or None; and in words what became of it."""
    if left.boot != boot.hex():
        return None, "the frequency that was set belongs to an earlier boot, and went with it"
    if kernel.frequency == left.found:
        return None, "the kernel has the frequency of before"
    if not any(abs(kernel.frequency - ours) <= _ROUNDED for ours in left.ours) or kernel.tick_us != left.tick_us:
        return None, "another hand has set the kernel's frequency since; it is left alone"
    now, before = rate_ppb(left.tick_us, kernel.frequency), rate_ppb(left.tick_us, left.found)
    return left.found, f"the kernel's frequency is restored, from {said_ppm(now)} to {said_ppm(before)}"
