"""Whom this node asks, how often: a few, chosen so that the mesh holds together, and never more as it grows.

**The problem.** Asking everybody costs each node as much as there are nodes. Asking a few at random changes whom, and
each change throws a bound away that took minutes to become narrow.

**The insight.** Rendezvous hashing (Thaler and Ravishankar 1998): each node gives every member a score, a hash of both
names, and asks the ``k`` highest. It needs no coordination, is the same after a restart, and a member that comes or
goes changes only the choices that it is or was part of: one per node on average, if that. The choices of all nodes
together make a random graph with at least ``k`` ways into it from each node (both ends of an exchange learn from it).

A member is its name, and where it is asked is an address whose name is learnt from its answers. So addresses of
unknown names are asked a few times, so many an interval and no more. Those that are not chosen are asked rarely, so
that one which left or came back is seen. One that would be chosen and is silent is asked now and then, and the next
best is asked instead. The sum is bounded, whatever the number of members: :func:`requests_max`.

Both ends of an exchange learn the same, so one of two that have chosen each other is enough: the one with the greater
name does not ask while it is asked over the same link, and asks again as soon as it is not. In a small mesh, where all
choose all, that halves what is sent.

The reference is asked by everyone, and would be asked ``n`` times an interval in a mesh of ``n``. Beyond
``DIRECT_MAX`` members it is asked less often in proportion, so its load stays that of ``DIRECT_MAX``; in between its
bound is kept narrow by what others measured.

Limits: how many ask a given node is a matter of chance, near ``k`` and rarely above 2.5 ``k``. While
``k`` or fewer addresses are known, all are asked every interval, silent ones too. In a large mesh names are learnt at
``LEARNING`` addresses an interval: until then the choice is among the names that are known, and addresses. Pure:
nanoseconds of any monotonic clock, randomness handed in.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2s

ADDRESSES_MAX = 2048
DIRECT_MAX = 64
"""Members up to which everyone asks the reference every interval."""

LEARNING = 2
"""Addresses without a name that are asked in one interval, at most."""

RARE = 1
"""Addresses that are not chosen and are asked in one interval, at most."""

RARELY_NS = 60_000_000_000
TRIES = 4
"""Requests in a row without an answer, over as many intervals, after which an address counts as silent."""

TOGETHER = 4
"""Requests due within this part of an interval are sent together, at most ``TOGETHER_MAX`` before their time."""

TOGETHER_MAX = 16
WAITING_INTERVALS = 4
"""A silent address that would be chosen is asked every so many intervals, while another is asked in its place."""

_START_NS = 100_000_000
_START_ROUNDS = 4
_PERSON = b"skewd-fo"


def score(own: str, member: str) -> bytes:
    """How much ``own`` prefers ``member``: the higher the better. Any two names give independent scores."""
    return blake2s(f"{own}\0{member}".encode(), digest_size=16, person=_PERSON).digest()


def choose(own: str, members: Iterable[str], k: int, always: frozenset[str] = frozenset()) -> frozenset[str]:
    """The members that ``own`` asks: the ``k`` of highest score, and those of ``always`` that are members.

    Args:
        own: this node's name; never part of the choice.
        members: names, in any order.
        k: how many.
        always: asked besides, as the reference is.
    """
    others = {member for member in members if member != own}
    best = heapq.nlargest(k, others, key=lambda member: (score(own, member), member))
    return frozenset(best) | (always & others)


class Role(StrEnum):
    """Why an address is asked, and so how often."""

    CHOSEN = "chosen"  # every interval
    ALWAYS = "always"  # the reference: every interval, less often in a large mesh
    WAITING = "waiting"  # would be chosen, and does not answer
    LEARNING = "learning"  # its name is not known yet
    RARE = "rare"  # to see whether it (still) lives


def requests_max(k: int, always: int = 1) -> float:
    """The most requests that a node sends in one interval on average, start excepted, in a mesh of any size."""
    return k + always + k / WAITING_INTERVALS + LEARNING + RARE


@dataclass(slots=True)
class _Address:
    order: bytes  # in which learning takes its turn: another one in each node, so that not all ask the same at once
    name: str | None = None
    role: Role = Role.LEARNING
    asked: int = 0
    unanswered: int = 0
    unanswered_since_ns: int = 0
    silent: bool = False
    next_ns: int = 0
    last_ns: int | None = None


class Plan:
    """Which addresses are due when.

    Args:
        own: this node's name.
        interval_ns: between two requests to a chosen address.
        k: how many are chosen (``[mesh] fanout``).
        phase: a number from 0 to 1, to spread requests over the interval.
    """

    def __init__(self, own: str, *, interval_ns: int, k: int, phase: Callable[[], float]) -> None:
        self._own, self._interval_ns, self._k, self._phase = own, interval_ns, k, phase
        self._addresses: dict[str, _Address] = {}
        self._always: frozenset[str] = frozenset()
        self._stale = True
        self._askers: dict[str, int] = {}
        # Those that are asked at a pace of their own, and those that share what is left of an interval.
        self._paced: list[str] = []
        self._shared: list[str] = []
        self._shared_at_ns: int | None = None

    def __len__(self) -> int:
        return len(self._addresses)

    def candidates(self, addresses: Iterable[str], now_ns: int) -> frozenset[str]:
        """The addresses that there are; what is known of those that stay is kept. Returns those that were dropped.

        At most ``ADDRESSES_MAX``; of more, those that were there before are kept, then the least.
        """
        wanted = set(addresses)
        if len(wanted) > ADDRESSES_MAX:
            wanted = set(sorted(wanted, key=lambda text: (text not in self._addresses, text))[:ADDRESSES_MAX])
        gone = frozenset(self._addresses.keys() - wanted)
        for address in gone:
            del self._addresses[address]
        for address in sorted(wanted - self._addresses.keys()):
            self._addresses[address] = _Address(next_ns=now_ns, order=score(self._own, address))
            self._stale = True
        self._stale = self._stale or bool(gone)
        return gone

    def always(self, names: frozenset[str]) -> None:
        """Who is asked besides the chosen ones: the reference's keeper."""
        if names != self._always:
            self._always = names
            self._stale = True

    def asked_by(self, name: str, now_ns: int) -> None:
        """``name`` has asked this node: while it does, it need not be asked back (if its name is the lesser one)."""
        if name < self._own:
            self._askers.pop(name, None)
            self._askers[name] = now_ns
            if len(self._askers) > ADDRESSES_MAX:
                self._askers.pop(next(iter(self._askers)))

    def answered(self, address: str, name: str) -> None:
        """A fresh answer came from ``address``, by ``name``. An address that is no candidate is not looked at."""
        state = self._addresses.get(address)
        if state is None:
            return
        if state.name != name or state.silent:
            self._stale = True
        state.name, state.unanswered, state.silent = name, 0, False

    def role(self, address: str) -> Role | None:
        """Why ``address`` is asked; None if it is no candidate."""
        self._assign()
        state = self._addresses.get(address)
        return None if state is None else state.role

    def name_of(self, address: str) -> str | None:
        """Who answers at ``address``, if that is known."""
        state = self._addresses.get(address)
        return None if state is None else state.name

    def chosen(self) -> frozenset[str]:
        """The addresses that are asked every interval, the reference's included."""
        self._assign()
        return frozenset(a for a, s in self._addresses.items() if s.role in (Role.CHOSEN, Role.ALWAYS))

    def names(self) -> frozenset[str]:
        """The names that answer."""
        return frozenset(s.name for s in self._addresses.values() if s.name is not None and not s.silent)

    def never_answered(self) -> frozenset[str]:
        """The addresses that were asked often enough to have answered, and never did."""
        return frozenset(a for a, s in self._addresses.items() if s.silent and s.name is None)

    def anyone_silent(self) -> bool:
        """Whether an address that was asked does not answer any more: perhaps it has moved."""
        return any(state.silent for state in self._addresses.values())

    def take(self, now_ns: int) -> list[str]:
        """The addresses that are due; each counts as asked now. A delay of the caller's is not made up for."""
        self._assign()
        due = [address for address in self._paced if self._addresses[address].next_ns <= now_ns]
        if due:
            due += self._brought_on(now_ns)
        due = [address for address in due if not self._spared(self._addresses[address], now_ns)]
        if self._shared and self._shared_due_ns() <= now_ns:
            self._shared_at_ns = now_ns
            for role, most in ((Role.LEARNING, LEARNING), (Role.RARE, RARE)):
                states = self._addresses
                those = [a for a in self._shared if states[a].role is role and states[a].next_ns <= now_ns]
                due += heapq.nsmallest(
                    most, those, key=lambda address: (states[address].next_ns, states[address].order)
                )
        for address in due:
            self._asked(self._addresses[address], now_ns)
        return due

    def _brought_on(self, now_ns: int) -> list[str]:
        """Who is due soon is asked at once, when somebody is due: to wake up costs more than to ask."""
        soon_ns = now_ns + self._interval_ns // TOGETHER
        states = ((address, self._addresses[address]) for address in self._paced)
        soon = [address for address, s in states if now_ns < s.next_ns <= soon_ns and s.asked >= _START_ROUNDS]
        return soon[:TOGETHER_MAX]

    def _spared(self, state: _Address, now_ns: int) -> bool:
        """Whether a request that is due is left out, for the other side asks; the next one is due an interval later."""
        if state.role is not Role.CHOSEN or state.name is None or state.asked < _START_ROUNDS:
            return False
        asked_ns = self._askers.get(state.name)
        if asked_ns is None or not 0 <= now_ns - asked_ns <= self._interval_ns * 3 // 2:
            return False
        state.next_ns = max(state.next_ns + self._interval_ns, now_ns + self._interval_ns // 2)
        return True

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until an address may be due; None when there are none."""
        self._assign()
        waits = [self._addresses[address].next_ns for address in self._paced]
        if self._shared:
            waits.append(self._shared_due_ns())
        return max(0, min(waits) - now_ns) if waits else None

    # -- the choice

    def _assign(self) -> None:
        """Gives every address its role; done when something changed."""
        if not self._stale:
            return
        self._stale = False
        everyone = len(self._addresses) <= self._k
        roles = dict.fromkeys(self._addresses, Role.CHOSEN) if everyone else self._chosen_roles()
        for address, state in self._addresses.items():
            learning = state.name is None and not state.silent
            role = roles.get(address, Role.LEARNING if learning else Role.RARE)
            if role is state.role:
                continue
            state.role = role
            if state.last_ns is not None:
                # Counted from when it was asked last, so that one which changes its role often is not asked often.
                state.next_ns = state.last_ns + self._gap_ns(role)
        self._paced = [a for a, s in self._addresses.items() if s.role not in (Role.LEARNING, Role.RARE)]
        self._shared = [a for a, s in self._addresses.items() if s.role in (Role.LEARNING, Role.RARE)]

    def _chosen_roles(self) -> dict[str, Role]:
        named: dict[str, str] = {}
        unnamed = []
        for address, state in sorted(self._addresses.items()):
            if state.name is None:
                if not state.silent:
                    unnamed.append(address)
            elif state.name != self._own and (
                state.name not in named or self._rank(address) < self._rank(named[state.name])
            ):
                named[state.name] = address
        speaking = [name for name, address in named.items() if not self._addresses[address].silent]
        best = choose(self._own, speaking, self._k)
        roles = {named[name]: Role.WAITING for name in choose(self._own, named, self._k)}
        roles |= {named[name]: Role.CHOSEN for name in best}
        # While few names are known addresses stand for themselves; none is equal to a name, as it has a port.
        for address in choose(self._own, unnamed, self._k - len(best)):
            roles[address] = Role.CHOSEN
        for name in self._always & named.keys() - best:
            roles[named[name]] = Role.ALWAYS
        return roles

    def _rank(self, address: str) -> tuple[bool, bool, str]:
        """Of several addresses of one name one that answers is asked, and the one that is asked already."""
        state = self._addresses[address]
        return state.silent, state.role in (Role.LEARNING, Role.RARE), address

    # -- the pace

    def _gap_ns(self, role: Role) -> int:
        if role is Role.ALWAYS:
            return self._interval_ns * max(len(self._addresses), DIRECT_MAX) // DIRECT_MAX
        if role is Role.WAITING:
            return self._interval_ns * WAITING_INTERVALS
        if role is Role.RARE:
            return max(RARELY_NS, self._interval_ns)
        return self._interval_ns

    def _asked(self, state: _Address, now_ns: int) -> None:
        state.asked += 1
        if not state.unanswered:
            state.unanswered_since_ns = now_ns
        state.unanswered += 1
        silence_ns = now_ns - state.unanswered_since_ns
        if not state.silent and state.unanswered >= TRIES and silence_ns >= (TRIES - 1) * self._interval_ns:
            state.silent = self._stale = True
        gap = self._gap_ns(state.role)
        if state.role in (Role.CHOSEN, Role.ALWAYS):
            # The second request is what gives the other side its round trip; then they are spread.
            if state.asked < _START_ROUNDS:
                gap = min(gap, _START_NS)
            elif state.asked == _START_ROUNDS:
                gap = round(gap * (0.5 + self._phase() / 2))
        # In step with before, unless the caller was late.
        state.next_ns = max(state.next_ns + gap, now_ns + gap // 2)
        state.last_ns = now_ns

    def _shared_due_ns(self) -> int:
        """When the next of those that share may be asked."""
        free = 0 if self._shared_at_ns is None else self._shared_at_ns + self._interval_ns
        return max(free, min(self._addresses[address].next_ns for address in self._shared))
