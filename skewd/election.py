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
when it was claimed without a break for ``hold_ns``, and left when it was not for ``UTC_GONE_NS``. But who is on UTC by
sources of its own that tell it now does not leave it: whoever comes later and brings another timescale, with however
many followers, knows less. (The others can't follow a single claim, so the mesh does not agree then; a second member
with a source, or a lower ``liars``, mends that.)

**Liars.** A member has one vote and its own record. ``epoch`` is a label and no rank, so a huge one gains nothing; a
founder counts on from what more than ``liars`` members say. A vote that leaves living timescales over and over, or a
claim of UTC that comes and goes, counts only after it was steady for ever longer times (an hour at most). A false
successor (a ``k_ns`` that contradicts one's own bounds) is not followed while another may come. What a liar can still
do: decide between two parts of equal size, and delay that by a few ``hold_ns``; make a founding or a hand-over wait
for a few steps; keep ``agreed`` false, by naming something else, until it is convicted (``barred``); turn UTC on and
off at the damped rate, where exactly ``liars`` honest members claim it; become keeper, by having the least name when
one dies. As a keeper it can lie about its own clock, which is what conviction is for, or drop the timescale, which
costs one hand-over: its followers carry it on without it. Two records of one owner with one number and different
words are a proof of lying: the caller passes both on and bars their owner, else it could hold two parts of equal size
apart. Whoever relays for others can hold records back, which is a partition to those behind it.

Limits: ``MEMBERS_MAX`` members; times are this node's raw clock. A bound of the caller's is taken as it is. Where the
graph of the mesh changes faster than ``hold_ns``, ``agreed`` is false and nothing else is promised. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from skewd.interval import Interval

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

    What arrives from others is checked for its form by ``records.py``, for its meaning by :attr:`coherent`.
    """

    epoch: int
    origin: str
    keeper: str
    keeper_boot: bytes
    keeper_raw_era: int
    k_ns: int | None = None

    @property
    def lineage(self) -> tuple[str, int]:
        """What hand-overs keep: origin and epoch."""
        return self.origin, self.epoch

    @property
    def clock(self) -> tuple[str, str, bytes, int, int | None]:
        """What tells the time, without its label: equal clocks show equal times."""
        return self.origin, self.keeper, self.keeper_boot, self.keeper_raw_era, self.k_ns

    @property
    def coherent(self) -> bool:
        """Whether there can be such a clock: UTC is kept by nobody, and a wall clock by whose it is."""
        if "utc" in (self.origin, self.keeper):
            return self == UTC
        return self.k_ns is not None or self.origin == self.keeper

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
        barred: convicted of lying: no vote, no keeper, not waited for to agree. Others should come to see the same (by
            shared records, by a proof that is passed on); who bars a keeper alone is alone. Its claim of UTC counts
            as ever, as liars are allowed for there.
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
        utc_lives: whether sources of its own tell UTC now, and not in holdover.
    """

    boot: bytes
    raw_era: int
    claims_utc: bool
    bound: Callable[[Timescale], Interval | None]
    applied_ns: int | None = None
    utc_lives: bool = False


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
        on_utc: whether this node was on UTC by its own sources before there was anybody else.
    """

    def __init__(
        self, name: str, *, interval_ns: int, liars: int = 1, reference: str = "auto", on_utc: bool = False
    ) -> None:
        self.name = name
        self._interval_ns, self._liars, self._configured = interval_ns, liars, reference
        self._timescale: Timescale | None = UTC if on_utc and reference == "auto" else None
        self._epochs = int(self._timescale is not None)
        self._epoch_founded = 0
        # When this node began to look for a timescale: at the start, or since its own lives no more.
        self._seeking_ns: int | None = None
        self._began_ns: int | None = None
        self._confirmed_ns = 0
        self._challenger: tuple[Timescale, int] | None = None
        # What lived beside the present timescale: not its successors, whatever they are called.
        self._rivals: frozenset[Timescale] = frozenset()
        self._records = _Records()
        self._utc_since_ns: int | None = None
        self._utc_last_ns: int | None = None
        self._eras_followed: list[int] = []

    def decide(self, now_ns: int, own: Own, members: Iterable[Member]) -> Decision:
        """The timescale now. Call it about once an interval, and with every member that is known.

        Args:
            now_ns: this node's raw clock.
            own: what it knows for itself.
            members: all others; departed ones may be left out.
        """
        view = _View(self, now_ns, own, members)
        if self._began_ns is None:
            self._began_ns = self._seeking_ns = now_ns
        before = self._timescale
        change = self._fixed(view) if self._configured != "auto" else self._elect(view)
        changed, new_epoch = None, False
        if change is not None and change[0] != self._timescale:
            timescale, changed = change
            new_epoch = not self._continuous(view, self._timescale, timescale)
            self._epochs += new_epoch
            self._timescale, self._challenger, self._seeking_ns = timescale, None, None
            self._confirmed_ns = now_ns
        elif self._timescale != before:
            changed = Reason.RAW_CLOCK_BEGAN_ANEW
        current = self._timescale
        return Decision(
            timescale=current,
            reference=None if current is None else current.origin,
            agreed=current is not None
            and all(m.timescale is not None and m.timescale.clock == current.clock for m in view.fresh.values()),
            changed=changed,
            new_epoch=new_epoch,
            epochs=self._epochs,
            utc_claims=view.utc_claims,
            alive=current is not None and view.lives(current),
        )

    # -- changes

    def _continuous(self, view: _View, old: Timescale | None, new: Timescale) -> bool:
        """Whether the change moves published time by no more than its published uncertainty: both bounds meet.

        A configured node's clock is what was asked for, its reboots included.
        """
        if old is None:
            return False
        if old.clock == new.clock or (self._configured != "auto" and old.origin == new.origin):
            return True
        if old.lineage != new.lineage:
            return False
        was, will = view.bound(old), view.bound(new)
        return was is not None and will is not None and was.intersect(will) is not None

    def _fixed(self, view: _View) -> tuple[Timescale, Reason] | None:
        if self._configured == "utc":
            return UTC, Reason.CONFIGURED
        name = self._configured
        if name == self.name:
            boot, raw_era = view.own.boot, view.own.raw_era
        elif name in view.members:
            boot, raw_era = view.members[name].boot, view.members[name].raw_era
        elif self._timescale is not None:
            return None
        else:
            boot, raw_era = _NO_BOOT, 0
        return Timescale(0, name, name, boot, raw_era), Reason.CONFIGURED

    def _elect(self, view: _View) -> tuple[Timescale, Reason] | None:
        self._own_clock(view)
        current = self._timescale
        utc = self._utc(view)
        if current == UTC and utc:
            self._seeking_ns = None
            return None
        if utc and current is not None:
            return UTC, Reason.UTC_APPEARED
        if utc and view.utc_votes >= max((view.support(t) for t in view.living), default=0):
            return (UTC, Reason.JOINED) if self._listened(view) else None
        if current is not None and current != UTC and view.lives(current):
            self._seeking_ns = None
            return self._compare(view, current)
        if self._seeking_ns is None:
            self._seeking_ns = view.now_ns
        self._challenger = None
        if current is None:
            return self._join(view) if self._listened(view) else None
        if current == UTC:
            change = self._settle(view, view.now_ns - self._seeking_ns)
            return None if change is None else (change[0], Reason.UTC_VANISHED)
        return self._succeed(view, current, view.now_ns - self._seeking_ns)

    def _own_clock(self, view: _View) -> None:
        """What this node keeps ends with its raw clock, unless it is its own wall clock: that goes on."""
        current, own = self._timescale, view.own
        if current is None or current.keeper != self.name or current == UTC:
            return
        if (current.keeper_boot, current.keeper_raw_era) == (own.boot, own.raw_era):
            return
        if current.carried or current.keeper_boot != own.boot:
            self._timescale, self._began_ns, self._seeking_ns = None, view.now_ns, view.now_ns
        else:
            self._timescale = replace(current, keeper_raw_era=own.raw_era)

    def _listened(self, view: _View) -> bool:
        return self._began_ns is not None and view.now_ns - self._began_ns >= view.timing.join_ns

    # -- a timescale that lives

    def _compare(self, view: _View, current: Timescale) -> tuple[Timescale, Reason] | None:
        """Leaves a living timescale for a better one that was better all the time."""
        self._rivals = frozenset(view.living) - {current}
        best = min([*view.living, current], key=view.preference)
        if view.preference(best) >= view.preference(current):
            self._challenger = None
            return None
        if self._challenger is None or self._challenger[0] != best:
            self._challenger = best, view.now_ns
        hold_ns, since_ns = view.timing.hold_ns, self._challenger[1]
        # Its keeper was heard of meanwhile: what was cut off just now is no place to go to. And a timescale on which
        # there is no bound yet is waited for.
        heard = view.age_ns(best.keeper) <= hold_ns // 2
        waited_ns = view.now_ns - since_ns
        if waited_ns < hold_ns or not heard or (view.bound(best) is None and waited_ns < hold_ns + view.patience_ns):
            return None
        return best, Reason.MERGED

    # -- none yet

    def _join(self, view: _View) -> tuple[Timescale, Reason] | None:
        mine = [t for t in view.votes if t.keeper == self.name and view.mine(t)]
        # One's own wall clock is that whoever says so; a carried one rests on a number that was forgotten here.
        mine = [t for t in mine if not t.carried or view.votes[t] > self._liars]
        if mine:
            return min(mine, key=view.preference), Reason.RESUMED
        return self._settle(view, view.now_ns - view.timing.join_ns - (self._began_ns or 0))

    def _settle(self, view: _View, waited_ns: int) -> tuple[Timescale, Reason] | None:
        """The best that lives; else, when it is this node's turn, a new one."""
        if view.living:
            return min(view.living, key=view.preference), Reason.JOINED
        if view.utc_votes > self._liars and self._timescale is None:
            return UTC, Reason.JOINED
        # Somebody follows what can't be seen to live from here: its keeper's record may be on the way.
        rumoured = any(t != self._timescale for t in view.votes) or (self._timescale is None and view.utc_votes > 0)
        turn = sorted([self.name, *view.fresh]).index(self.name)
        if waited_ns < (view.timing.gone_ns if rumoured else 0) + turn * view.timing.step_ns:
            return None
        return self._found(view), Reason.FOUNDED

    def _found(self, view: _View) -> Timescale:
        # More members than may lie say an epoch of at least this, or it is this node's own.
        said = sorted((t.epoch for m in view.fresh.values() if (t := m.timescale) is not None), reverse=True)
        believed = said[self._liars] if len(said) > self._liars else 0
        self._epoch_founded = min(max(believed, self._epoch_founded) + 1, _U32 - 1)
        return Timescale(self._epoch_founded, self.name, self.name, view.own.boot, view.own.raw_era)

    # -- a keeper that is gone

    def _succeed(self, view: _View, current: Timescale, waited_ns: int) -> tuple[Timescale, Reason] | None:
        step_ns, patience_ns = view.timing.step_ns, view.patience_ns
        was = view.bound(current)
        same = [t for t in view.living if t.lineage == current.lineage]
        undecided = False
        for successor in sorted(same, key=view.preference):
            again = successor.keeper == current.keeper
            if again and not self._may_begin_anew(view, current, successor):
                continue
            will = view.bound(successor)
            meet = was is not None and will is not None and was.intersect(will) is not None
            # One that contradicts this node's bounds is followed only if more follow it than may lie. One that has no
            # bound yet is waited for: its continuity can be judged then, and nothing goes without a bound meanwhile.
            believed = will is not None and view.support(successor) > self._liars
            if was is None or meet or believed or waited_ns >= patience_ns:
                if again:
                    self._eras_followed.append(view.now_ns)
                rival = successor in self._rivals
                name = Reason.MERGED if rival else Reason.RAW_CLOCK_BEGAN_ANEW if again else Reason.HANDED_OVER
                return successor, name
            undecided = undecided or will is None
        best = min((t for t in view.living if t not in same), key=view.preference, default=None)
        if best is not None and view.preference(best) < view.preference(current):
            return best, Reason.MERGED
        if undecided:
            return None
        heirs = {m.name for m in view.fresh.values() if m.timescale == current} - {current.keeper}
        turn = sorted(heirs | {self.name}).index(self.name)
        if was is not None:
            if waited_ns < (turn + 1) * step_ns:
                return None
            return self._carry(view, current, was), Reason.TOOK_OVER
        if waited_ns < patience_ns + turn * step_ns:
            return None
        return (self._found(view) if best is None else best), Reason.LOST

    def _carry(self, view: _View, current: Timescale, was: Interval) -> Timescale:
        own = view.own
        k_ns = was.midpoint if own.applied_ns is None else was.clamp(own.applied_ns)
        return replace(current, keeper=self.name, keeper_boot=own.boot, keeper_raw_era=own.raw_era, k_ns=k_ns)

    def _may_begin_anew(self, view: _View, current: Timescale, successor: Timescale) -> bool:
        """An origin's wall clock goes over its suspends; whoever does it all the time can't keep a timescale."""
        if successor.carried or current.carried or successor.keeper_boot != current.keeper_boot:
            return False
        self._eras_followed = [at for at in self._eras_followed if view.now_ns - at < _HOUR_NS]
        return successor.keeper_raw_era > current.keeper_raw_era and len(self._eras_followed) < ERAS_PER_HOUR

    # -- UTC

    def _utc(self, view: _View) -> bool:
        """Whether UTC is the timescale: taken late, left later."""
        now = view.now_ns
        available = view.utc_claims > (self._liars if view.fresh else 0)
        if available:
            self._utc_last_ns = now
            if self._utc_since_ns is None:
                self._utc_since_ns = now
        else:
            self._utc_since_ns = None
        if self._timescale == UTC:
            if self._utc_last_ns is None or view.own.utc_lives:
                self._utc_last_ns = now  # taken by the word of others; or one's own sources tell it
            return available or now - self._utc_last_ns < UTC_GONE_NS
        if self._timescale is None:
            return available
        return self._utc_since_ns is not None and now - self._utc_since_ns >= view.timing.hold_ns


@dataclass(slots=True)
class _Habits:
    """What a member did, for the damping."""

    timescale: Timescale | None = None
    changes: int = 0
    changed_ns: int = 0
    claims: bool = False
    drops: int = 0
    claimed_ns: int = 0


class _Records:
    """How steady each member is: who changes its mind over and over is not counted for a while."""

    def __init__(self) -> None:
        self._habits: dict[str, _Habits] = {}

    def see(self, now_ns: int, members: Mapping[str, Member], excused: Callable[[Member, Timescale], bool]) -> None:
        """Takes what all members say now."""
        for name in [name for name in self._habits if name not in members]:
            if now_ns - self._habits[name].changed_ns > _HOUR_NS or len(self._habits) > 2 * MEMBERS_MAX:
                del self._habits[name]
        for name, member in members.items():
            habits = self._habits.get(name)
            if habits is None:
                habits = self._habits[name] = _Habits(changed_ns=now_ns)
            while habits.changes and now_ns - habits.changed_ns > _FORGIVEN_NS + _penalty_ns(habits.changes):
                habits.changes -= 1
                habits.changed_ns += _FORGIVEN_NS
            said, before = member.timescale, habits.timescale
            if said is not None and said != before:
                if before is not None and not excused(member, before):
                    habits.changes += 1
                    habits.changed_ns = now_ns
                habits.timescale = said
            if member.claims_utc and not habits.claims:
                habits.claimed_ns = now_ns
            elif habits.claims and not member.claims_utc:
                habits.drops += 1
            habits.claims = member.claims_utc

    def votes(self, name: str, now_ns: int) -> bool:
        """Whether the member's vote counts."""
        habits = self._habits.get(name)
        return habits is None or now_ns - habits.changed_ns >= _penalty_ns(habits.changes)

    def claims(self, name: str, now_ns: int) -> bool:
        """Whether its claim of UTC counts, if it makes one."""
        habits = self._habits.get(name)
        return habits is None or now_ns - habits.claimed_ns >= _penalty_ns(habits.drops)


def _penalty_ns(times: int) -> int:
    if times <= _FREE_CHANGES:
        return 0
    return min(_PENALTY_NS << min(times - _FREE_CHANGES - 1, 10), _HOUR_NS)


class _View:
    """The mesh as one node sees it at one moment."""

    def __init__(self, election: Election, now_ns: int, own: Own, members: Iterable[Member]) -> None:
        self.now_ns, self.own = now_ns, own
        self._election = election
        known = sorted((m for m in members if m.name != election.name), key=lambda m: (m.age_ns, m.name))
        known = [m if m.timescale is None or m.timescale.coherent else replace(m, timescale=None) for m in known]
        self.members = {m.name: m for m in reversed(known[:MEMBERS_MAX])}
        self.timing = Timing.of(election._interval_ns, len(self.members) + 1)
        timing, records = self.timing, election._records
        self.fresh = {n: m for n, m in self.members.items() if not m.barred and m.age_ns <= timing.fresh_ns}
        heard = {n: m for n, m in self.members.items() if m.age_ns <= timing.fresh_ns}
        self._confirm()
        records.see(now_ns, heard, self._excused)
        self.votes: dict[Timescale, int] = {}
        for name, member in self.fresh.items():
            if member.timescale is not None and records.votes(name, now_ns):
                self.votes[member.timescale] = self.votes.get(member.timescale, 0) + 1
        self.utc_votes = self.votes.pop(UTC, 0)
        current = election._timescale
        if current is not None and current != UTC:
            self.votes[current] = self.votes.get(current, 0) + 1
        self.lineages: dict[tuple[str, int], int] = {}
        for timescale, count in self.votes.items():
            self.lineages[timescale.lineage] = self.lineages.get(timescale.lineage, 0) + count
        self.living = [timescale for timescale in self.votes if self.lives(timescale)]
        # Of barred ones too: as many false claims as may be are allowed for, and who is barred where may differ.
        self.utc_claims = own.claims_utc + sum(
            m.claims_utc and records.claims(name, now_ns) for name, m in heard.items()
        )

    def _confirm(self) -> None:
        current = self._election._timescale
        if current is None:
            return
        keeper = self.fresh.get(current.keeper)
        if keeper is not None and keeper.timescale == current and _same_clock(keeper, current):
            self._election._confirmed_ns = max(self._election._confirmed_ns, self.now_ns - keeper.age_ns)

    @property
    def patience_ns(self) -> int:
        """How long is waited for what should come, before something worse is taken."""
        return _PATIENCE_STEPS * self.timing.step_ns

    def age_ns(self, name: str) -> int:
        """How old the newest record of a node is; this node's own is new."""
        return 0 if name == self._election.name else self.members[name].age_ns

    def mine(self, timescale: Timescale) -> bool:
        """Whether this node's present raw clock is the one that keeps it."""
        return (timescale.keeper, timescale.keeper_boot, timescale.keeper_raw_era) == (
            self._election.name,
            self.own.boot,
            self.own.raw_era,
        )

    def lives(self, timescale: Timescale) -> bool:
        """Whether its keeper says so, and lately."""
        election = self._election
        if timescale == UTC:
            return self.utc_claims > (election._liars if self.fresh else 0) or election._configured == "utc"
        current = timescale == election._timescale
        if timescale.keeper == election.name:
            return current and self.mine(timescale)
        keeper = self.members.get(timescale.keeper)
        if keeper is None:
            return (
                current
                and election._configured == "auto"
                and self.now_ns - election._confirmed_ns <= self.timing.gone_ns
            )
        if keeper.barred or not _same_clock(keeper, timescale):
            return False
        if keeper.timescale == timescale:
            return keeper.age_ns <= self.timing.gone_ns
        # A keeper whose daemon was just restarted names nothing until it has listened.
        waiting = current and keeper.timescale is None
        return waiting and self.now_ns - election._confirmed_ns <= self.timing.gone_ns

    def support(self, timescale: Timescale) -> int:
        """How many follow exactly this clock."""
        return self.votes.get(timescale, 0)

    def preference(self, timescale: Timescale) -> tuple[int, str, int, int, bool, str, bytes, int, int]:
        """The less the better: the followers of its lineage, then of itself, each then by what is nearer its origin.

        Every node that sees the same records orders all timescales alike.
        """
        return (
            -self.lineages.get(timescale.lineage, 0),
            timescale.origin,
            timescale.epoch,
            -self.support(timescale),
            timescale.carried,
            timescale.keeper,
            timescale.keeper_boot,
            timescale.keeper_raw_era,
            timescale.k_ns or 0,
        )

    def bound(self, timescale: Timescale) -> Interval | None:
        """timescale - own raw; exact for what this node carries."""
        if timescale.k_ns is not None and self.mine(timescale):
            return Interval(timescale.k_ns, timescale.k_ns)
        return self.own.bound(timescale)

    def _excused(self, member: Member, before: Timescale) -> bool:
        """Whether a member had a reason to leave a timescale: it lived no more, or the member came to ours."""
        if before == UTC or member.timescale == UTC or member.timescale == self._election._timescale:
            return True
        if before.keeper == member.name:
            # It gave up what it kept: for another's, or because its raw clock ended. For one more of its own: no.
            ended = not _same_clock(member, before)
            return ended or (member.timescale is not None and member.timescale.keeper != member.name)
        return not self.lives_for_all(before)

    def lives_for_all(self, timescale: Timescale) -> bool:
        keeper = self.members.get(timescale.keeper)
        if timescale.keeper == self._election.name:
            return timescale == self._election._timescale
        return keeper is not None and keeper.timescale == timescale and keeper.age_ns <= self.timing.gone_ns


def _same_clock(member: Member, timescale: Timescale) -> bool:
    return (member.boot, member.raw_era) == (timescale.keeper_boot, timescale.keeper_raw_era)
