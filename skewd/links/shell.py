"""What the links' shells have in common: when to ask whom, and one message's way through the protocol.

The order matters. The receive stamp is taken by the shell right after the read. Then a reply, if one is due, is
stamped and sent before anything else, so that the time we hold it is short. Only then the proofs are handed on.

Limits: whatever goes wrong inside is logged and counted, never raised: a daemon must not die of what a network sent
it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable
from typing import Protocol

from skewd.fanout import Plan
from skewd.links.protocol import LinkProtocol, Proofs
from skewd.quiet import QuietLog

_SECOND_NS = 1_000_000_000
_START_ROUNDS = 4
_START_INTERVAL_S = 0.1
_LATER = 0.02  # of an interval: who was brought on leaves the next beginning to the other side

# What a person can do about a refused message; other reasons are the network's noise and only counted.
_ADVICE = {
    "wrong_key": "another mesh key: give both nodes the same [mesh] key_file",
    "bad_mac": "altered on the way, or made with another secret",
    "malformed": "authentic, but says what no clock shows: see what is wrong with that node, or with its clocks",
    "bad_version": "another version of the protocol: upgrade the older node",
    "duplicate_name": "another node has this node's name: give each its own [node] name",
    "too_many_peers": "the table of peers is full: new peers are not measured",
    "rate_limited": "more messages than any peer sends: see where they come from",
    "own_clock_went_back": "this node's raw clock went back within one exchange",
}


class RawClock(Protocol):
    """All that a link asks of a clock: CLOCK_MONOTONIC_RAW, or a virtual node's, in nanoseconds."""

    def raw_ns(self) -> int: ...


OnProofs = Callable[[Proofs], None]


class Schedule:
    """When to ask whom: each key once per interval, the first few times sooner (the second request is what gives
    the other side its round trip), then spread so that many peers are not asked at once. Pure; seconds, any epoch.
    """

    def __init__(self, interval_s: float, phase: Callable[[], float]) -> None:
        self._interval_s, self._phase = interval_s, phase
        self._keys: dict[Hashable, tuple[float, int]] = {}

    def add(self, key: Hashable, now_s: float) -> None:
        """Ask ``key`` from now on; nothing changes if it is asked already."""
        self._keys.setdefault(key, (now_s, 0))

    def remove(self, key: Hashable) -> None:
        """Ask ``key`` no more."""
        self._keys.pop(key, None)

    def take(self, now_s: float) -> list[Hashable]:
        """Who is due now; each is due again later. A delay of the caller's is not made up for."""
        due = [key for key, (at_s, _) in self._keys.items() if at_s <= now_s]
        for key in due:
            asked = self._keys[key][1] + 1
            if asked < _START_ROUNDS:
                gap_s = min(self._interval_s, _START_INTERVAL_S)
            elif asked == _START_ROUNDS:
                gap_s = self._interval_s * (0.5 + self._phase() / 2)
            else:
                gap_s = self._interval_s
            at_s = max(self._keys[key][0] + gap_s, now_s + gap_s / 2)
            self._keys[key] = (at_s, asked)
        return due

    def wait_s(self, now_s: float) -> float | None:
        """How long until someone is due; ``None`` when nobody is asked."""
        return max(0.0, min(at_s for at_s, _ in self._keys.values()) - now_s) if self._keys else None


class Pace(Protocol):
    """Who is asked when: a :class:`Schedule`, or a fan-out's plan (:class:`Planned`)."""

    def add(self, key: Hashable, now_s: float) -> None: ...

    def remove(self, key: Hashable) -> None: ...

    def take(self, now_s: float) -> list[Hashable]: ...

    def wait_s(self, now_s: float) -> float | None: ...


class Planned:
    """A plan (``skewd/fanout.py``) as the pace of a link. Who the candidates are the plan is told by others."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def add(self, key: Hashable, now_s: float) -> None:
        """Nothing: the plan knows its candidates."""

    def remove(self, key: Hashable) -> None:
        """Nothing, as before."""

    def take(self, now_s: float) -> list[Hashable]:
        """Who is due now."""
        return list(self._plan.take(round(now_s * _SECOND_NS)))

    def wait_s(self, now_s: float) -> float | None:
        """How long until someone is due; ``None`` when nobody is asked."""
        wait_ns = self._plan.wait_ns(round(now_s * _SECOND_NS))
        return None if wait_ns is None else wait_ns / _SECOND_NS


class Shell:
    """One link's protocol with its clock, its listener and its counters.

    Args:
        own_counters: names of what the shell itself counts.
    """

    def __init__(
        self, protocol: LinkProtocol, clock: RawClock, on_proofs: OnProofs, own_counters: tuple[str, ...]
    ) -> None:
        self.protocol, self.clock = protocol, clock
        self.log = QuietLog(f"skewd.links.{protocol.link}")
        self._on_proofs = on_proofs
        self.on_own: Callable[[str], None] | None = None
        """Told the address, as it is configured, at which this node heard itself."""
        protocol.counters |= dict.fromkeys(("internal_errors", *own_counters), 0)

    @property
    def counters(self) -> dict[str, int]:
        """The protocol's counters and the shell's."""
        return dict(self.protocol.counters)

    def count(self, name: str) -> None:
        """One more of the shell's own."""
        self.protocol.counters[name] += 1

    def handle(
        self,
        data: bytes,
        address: str,
        received_raw_ns: int,
        send: Callable[[Callable[[int], bytes]], object],
        sharpen: Callable[[int], int] | None = None,
    ) -> None:
        """One message's way; ``send`` stamps and sends a reply, ``sharpen`` as of the protocol. Never raises."""
        try:
            received = self.protocol.receive(data, address, received_raw_ns, sharpen)
            if received.reply is not None:
                send(received.reply)
            if received.proofs is not None:
                self._on_proofs(received.proofs)
            if received.error == "own_message" and self.on_own is not None:
                asked = self.protocol.asked_at(data)
                if asked is not None:
                    self.on_own(asked)
            advice = _ADVICE.get(received.error or "")
            if advice is not None:
                self.log.warning(f"link_{received.error}", address=address, advice=advice)
        except Exception:
            self.failed()

    async def ask(self, schedule: Pace, changed: asyncio.Event, ask: Callable[[Hashable], None]) -> None:
        """Call ``ask`` for whoever is due, for ever; ``changed`` says that the schedule has new entries."""
        loop = asyncio.get_running_loop()
        while True:
            changed.clear()
            for key in schedule.take(loop.time()):
                try:
                    ask(key)
                except Exception:
                    self.failed()
            # A timer that sets the event costs a fraction of a timeout that cancels the wait for it.
            wait_s = schedule.wait_s(loop.time())
            timer = None if wait_s is None else loop.call_later(wait_s, changed.set)
            try:
                await changed.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def failed(self) -> None:
        """Something of our own broke (called from an ``except``): say it, count it, go on."""
        self.count("internal_errors")
        error = sys.exc_info()[1]
        if self.protocol.on_fault is not None and isinstance(error, Exception):
            self.protocol.on_fault(error)
        else:
            self.log.warning("link_internal_error", exc_info=True)
