"""Which clock all nodes of a mesh express times on, agreed by nothing but what each says of itself.

**The problem.** Times of different nodes compare only on one *timescale*. Nobody is in charge; nodes restart, the mesh
parts and heals, records of others are seconds old, and a member may lie. A change of timescale moves published time,
so changing too easily is as bad as never agreeing.

**The insight.** A timescale is a *clock*, and the node whose clock it is (its keeper) says so in its own signed
record; everyone else's record names the timescale it follows, which is a vote. So:

- A timescale *lives* while its keeper's own record, of the same boot and raw era, names it and is renewed. Nobody can
  speak for a keeper, and a keeper that does not exist keeps nothing.
- Of living ones, the one that most members follow wins; of equals one that is still its origin's own wall clock, then
  the least name. A newcomer listens before it speaks, finds an established timescale and follows it, whatever its own
  name is. When a partition heals the larger part keeps its timescale.
- A better one must be better without a break for ``hold_ns``, longer than records travel. So all have the same view
  before the first moves, and each move makes the winner's lead larger: that is why it ends.
- When a keeper falls silent its followers *carry the timescale on*: one of them (the least name among those that
  follow it; the next one if that one does not within a step) fixes ``k_ns``, so that from then on the timescale is
  its raw clock plus ``k_ns``. It takes what it published itself at that moment. The origin's name stays, and so does
  the epoch. If nobody has a bound to carry it on, a new timescale is founded.
- What moves is judged by intervals, not by stories: a follower's bound on the old clock and its bound on the new one
  must meet, and then its published time need not move by more than its published uncertainty. If they don't, or if
  the origin changes, the decision says ``new_epoch``.

The two parts of a mesh that was split may both carry one timescale on. Each names its own keeper, so they are
different clocks of one *lineage* (origin and epoch), and are merged as above.

**An origin that returns.** After a reboot its wall clock is a different thing: it follows the carried timescale like
anyone else, though that bears its name. With the same boot (it was cut off) it still keeps its own; whichever
has more followers stays, and its own wall wins a tie. After a restart of the daemon in the same boot within the time
of silence it takes its timescale up again: it finds its own words in the others' records. While the origin keeps its
own timescale (``k_ns`` is None), that is its wall clock, steps and suspends included.

**UTC** counts when more than ``liars`` members claim it first-hand, this node included; a node that is alone needs
only itself. The claim of a single member is not enough for itself either: it would leave everybody else. UTC is taken
when it was claimed without a break for ``hold_ns``, and left when it was not for ``UTC_GONE_NS``.

**Liars.** A member has one vote and its own record. ``epoch`` is a label and no rank, so a huge one gains nothing; a
founder counts on from what more than ``liars`` members say. A vote that leaves living timescales over and over, or a
claim of UTC that comes and goes, counts only after it was steady for ever longer times (an hour at most). A false
successor (a ``k_ns`` that contradicts one's own bounds) is not followed while another may come. What a liar can still
do: decide between two parts of equal size, and delay that by a few ``hold_ns``; make a founding or a hand-over wait
for a few steps; keep ``agreed`` false, by naming something else, until it is convicted (``barred``); turn UTC on and
off at the damped rate, where exactly ``liars`` honest members claim it; become keeper, by having the least name when
one dies. As a keeper it can lie about its own clock, which is what conviction is for, or drop the timescale, which
costs one hand-over: its followers carry it on without it. Whoever relays for others can hold records back, which is
a partition to those behind it.

Limits: ``MEMBERS_MAX`` members; times are this node's raw clock. A bound of the caller's is taken as it is. Where the
graph of the mesh changes faster than ``hold_ns``, ``agreed`` is false and nothing else is promised. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from skewd.interval import Interval
from skewd.links.wire import is_name

MEMBERS_MAX = 4096
"""Members that are looked at; the ones with the oldest records are left out first."""

UTC_GONE_NS = 300_000_000_000
"""How long UTC is kept while too few claim it: a time server may restart meanwhile."""

ERAS_PER_HOUR = 3
"""How many suspends of an origin are followed within an hour; after that its timescale is carried on without it."""

_SECOND = 1_000_000_000
_HOUR_NS = 3600 * _SECOND
_FORGIVEN_NS = 120 * _SECOND
_PENALTY_NS = 60 * _SECOND
_FREE_CHANGES = 3
_PATIENCE_STEPS = 8
_U32 = 1 << 32
_I64 = 1 << 63
_NO_BOOT = bytes(16)


@dataclass(frozen=True, slots=True)
class Timescale:
    """A clock that times are expressed on. Two nodes use the same one if and only if all fields are equal.

    Attributes:
        epoch: a label that tells the timescales of one origin apart, u32. Kept by hand-overs; never a rank.
        origin: ``utc``, or the node whose wall clock it began as: what ``clock.reference`` names.
        keeper: the node whose clock it is now; ``utc`` for UTC, which needs none.
        keeper_boot: with ``keeper_raw_era``, the keeper's unbroken raw clock; 16 bytes, zeros for UTC.
        k_ns: the timescale is the keeper's raw clock plus this; None: it is the origin's own wall clock (or UTC).

    Raises:
        ValueError: a field that no record can carry, named.
    """

    epoch: int
    origin: str
    keeper: str
    keeper_boot: bytes
    keeper_raw_era: int
    k_ns: int | None = None

    def __post_init__(self) -> None:
        for field in ("epoch", "keeper_raw_era"):
            if not 0 <= getattr(self, field) < _U32:
                raise ValueError(f"{field} is between 0 and {_U32 - 1}, not {getattr(self, field)}")
        for name in (self.origin, self.keeper):
            if not is_name(name):
                raise ValueError(f"'{name[:80]}' is not a node name")
        if len(self.keeper_boot) != 16:
            raise ValueError(f"a boot id has 16 bytes, this one {len(self.keeper_boot)}")
        if self.k_ns is not None and not -_I64 <= self.k_ns < _I64:
            raise ValueError(f"k_ns {self.k_ns} does not fit 64 bits")

    @property
    def lineage(self) -> tuple[str, int]:
        """What hand-overs keep: origin and epoch."""
        return self.origin, self.epoch

    @property
    def clock(self) -> tuple[str, str, bytes, int, int | None]:
        """What tells the time, without its label: equal clocks show equal times."""
        return self.origin, self.keeper, self.keeper_boot, self.keeper_raw_era, self.k_ns

    @property
    def carried(self) -> bool:
        """Whether it is carried on by a raw clock, no longer the origin's wall."""
        return self.k_ns is not None


UTC = Timescale(0, "utc", "utc", _NO_BOOT, 0)
"""UTC itself; always this value."""


@dataclass(frozen=True, slots=True)
class Member:
    """Another node, by the newest record of its own that is known here.

    Attributes:
        name: whose record; ``boot`` (16 bytes) and ``raw_era`` name its raw clock.
        age_ns: how long ago that record was made, or (if that is not known) arrived.
        timescale: what it names; None while it has none.
        claims_utc: whether it bounds UTC first-hand.
        barred: convicted of lying, or else not to be counted: no vote, no claim, no keeper.
    """

    name: str
    boot: bytes
    raw_era: int
    age_ns: int
    timescale: Timescale | None = None
    claims_utc: bool = False
    barred: bool = False


@dataclass(frozen=True, slots=True)
class Own:
    """What this node knows for itself at the moment of the decision.

    Attributes:
        boot, raw_era: its own raw clock.
        claims_utc: whether it bounds UTC first-hand (a bound in holdover counts while it is good enough to publish).
        bound: what it knows of ``timescale - own raw`` now, of any timescale; None if it has no bound, or none that
            is narrow enough to be published.
        applied_ns: what it publishes as ``timescale - own raw`` now, for its present timescale; None if nothing.
    """

    boot: bytes
    raw_era: int
    claims_utc: bool
    bound: Callable[[Timescale], Interval | None]
    applied_ns: int | None = None


class Reason(StrEnum):
    """Why the timescale changed."""

    CONFIGURED = "configured"
    FOUNDED = "founded"  # nobody had one
    JOINED = "joined"  # the first one after the start
    RESUMED = "resumed"  # this node's own, after a restart of the daemon
    HANDED_OVER = "handed over"  # the keeper fell silent, another one carries it on
    TOOK_OVER = "took over"  # the same, and it is this node
    RAW_CLOCK_BEGAN_ANEW = "the keeper's raw clock began anew"
    MERGED = "partition healed"
    LOST = "lost"  # the keeper fell silent, and nobody could carry it on: another one
    UTC_APPEARED = "utc appeared"
    UTC_VANISHED = "utc vanished"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to publish on.

    Attributes:
        timescale: to be named in this node's record; None in the first moments.
        reference: ``utc`` or the origin's bare name, as ``clock.reference`` has it without ``node:``.
        agreed: every fresh member names the same clock (vacuously true for a node alone).
        changed: why it is another one than at the last call; None if it is not.
        new_epoch: published time may have moved by more than its uncertainty: history keeps both.
        epochs: how many times that was so on this node, this time included.
        utc_claims: how many claims of UTC count, one's own included.
        alive: the timescale's keeper is heard (true for UTC while enough claim it, and for a configured node that is).
    """

    timescale: Timescale | None
    reference: str | None
    agreed: bool
    changed: Reason | None
    new_epoch: bool
    epochs: int
    utc_claims: int
    alive: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """The waits of an election, ns; they grow with the interval and, as records take longer, with the mesh.

    Attributes:
        join_ns: how long a newcomer listens.
        gone_ns: a keeper that was not heard of for so long is gone.
        fresh_ns: records of others count for so long.
        step_ns: how long the next in line waits for the one before it.
        hold_ns: how long another timescale must have been better.
    """

    join_ns: int
    gone_ns: int
    fresh_ns: int
    step_ns: int
    hold_ns: int

    @classmethod
    def of(cls, interval_ns: int, nodes: int) -> Timing:
        """For a mesh of so many nodes that are asked every ``interval_ns``."""
        gone = max(10 * interval_ns, 15 * _SECOND, nodes * interval_ns // 16)
        return cls(
            join_ns=min(3 * interval_ns, 5 * _SECOND),
            gone_ns=gone,
            fresh_ns=max(gone, nodes * interval_ns // 4),
            step_ns=5 * interval_ns,
            hold_ns=gone,
        )


class Election:
    """One node's part in it.

    Args:
        name: this node's.
        interval_ns: how often peers are asked.
        liars: how many members may lie (``[mesh] liars``).
        reference: ``auto``; or ``utc`` or a node's name, and there is no election.
    """

    def __init__(self, name: str, *, interval_ns: int, liars: int = 1, reference: str = "auto") -> None:
        raise NotImplementedError

    def decide(self, now_ns: int, own: Own, members: Iterable[Member]) -> Decision:
        """The timescale now. Call it about once an interval, and with every member that is known.

        Args:
            now_ns: this node's raw clock.
            own: what it knows for itself.
            members: all others; departed ones may be left out.
        """
        raise NotImplementedError
