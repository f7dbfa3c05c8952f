"""What the tests of the links share: nodes with exact made-up clocks, and real clocks that differ."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from skewd.interval import Interval
from skewd.keys import KeyRing, MeshKey
from skewd.links.protocol import LinkProtocol, Proofs, Received, Self, Timebases
from skewd.member_keys import MemberKeys
from skewd.records import private_key

KEY = MeshKey.from_secret(bytes(range(32)))
OTHER_KEY = MeshKey.from_secret(bytes(range(1, 33)))
S = 1_000_000_000


def described(name: str, /, **changes: object) -> Self:
    base = Self(
        name=name,
        boot=name.encode().ljust(16, b"\x01")[:16],
        raw_era=0,
        era=0,
        wall_minus_raw=Interval(1_790_000_000 * S, 1_790_000_000 * S + 200),
        wall_raw_at_ns=5,
        wall_slew_ppb=500_000,
        max_drift_ppm=100,
        max_wander_ppb_per_s=10,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def member_keys(name: str, seed: str = "", **options: Any) -> MemberKeys:
    """A node's own key, always the same for one name and seed."""
    secret = blake2b(f"key {name} {seed}".encode(), digest_size=32).digest()
    return MemberKeys(name, private_key(secret), **options)


def random_bytes(seed: str) -> Callable[[int], bytes]:
    """Distinct, repeatable stand-ins for randomness."""
    counter = itertools.count()
    return lambda size: blake2b(f"{seed} {next(counter)}".encode(), digest_size=size).digest()


@dataclass
class ExactClock:
    """raw(t) = epoch + t x (1 + drift), exactly; a reading is its floor. t: true time, integer ns."""

    epoch_ns: int = 0
    drift_ppb: int = 0

    def at(self, true_ns: int | Fraction) -> Fraction:
        return self.epoch_ns + true_ns * (1 + Fraction(self.drift_ppb, S))

    def read(self, true_ns: int) -> int:
        return self.epoch_ns + true_ns + true_ns * self.drift_ppb // S

    def true_at(self, reading: int) -> Fraction:
        return (reading - self.epoch_ns) / (1 + Fraction(self.drift_ppb, S))


_SHARED: WeakKeyDictionary[Timebases, MemberKeys] = WeakKeyDictionary()


def shared_keys(name: str, timebases: Timebases | None, seed: str = "") -> MemberKeys:
    """A node's keys: the links of one daemon share them as they share their timebases."""
    made = member_keys(name, seed)
    return made if timebases is None else _SHARED.setdefault(timebases, made)


@dataclass
class Node:
    """A node of the made-up world: its protocol and its clock."""

    name: str
    clock: ExactClock = field(default_factory=ExactClock)
    key: KeyRing | MeshKey | None = KEY
    timebases: Timebases | None = None
    seed: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    old: bool = False
    """Whether it speaks the version before, which has no identities."""

    def __post_init__(self) -> None:
        self.me = described(self.name)
        self.member_keys: MemberKeys | None = None
        if not self.old:
            self.member_keys = shared_keys(self.name, self.timebases, self.seed)
        self.protocol = LinkProtocol(
            link="udp",
            key=self.key,
            describe=lambda: self.me,
            random=random_bytes(self.name + self.seed),
            timebases=self.timebases,
            **{"member_keys": self.member_keys, **self.options},
        )

    def change(self, **changes: object) -> None:
        self.me = replace(self.me, **changes)  # type: ignore[arg-type]

    def request(self, to: str, true_ns: int) -> bytes:
        return self.protocol.request(to, self.clock.read(true_ns))

    def receive(self, data: bytes, source: str, true_ns: int) -> Received:
        return self.protocol.receive(data, source, self.clock.read(true_ns))

    def reply(self, received: Received, true_ns: int) -> bytes:
        assert received.reply is not None
        return received.reply(self.clock.read(true_ns))


def exchange(a: Node, b: Node, true_ns: int, delay_ns: int = 1000) -> tuple[Received, Received]:
    """A asks B; what came of the request at B and of the reply at A."""
    at_b = b.receive(a.request(b.name, true_ns), a.name, true_ns + delay_ns)
    at_a = a.receive(b.reply(at_b, true_ns + delay_ns), b.name, true_ns + 2 * delay_ns)
    return at_b, at_a


def assert_true(proofs: Proofs, local: ExactClock, remote: ExactClock) -> None:
    """Every pair's claim against the truth, within the reading's one ns: nothing arrives before it leaves."""
    for sent_local, received_remote in proofs.outgoing:
        assert remote.at(local.true_at(sent_local)) < received_remote + 1
    for sent_remote, received_local in proofs.incoming:
        assert local.at(remote.true_at(sent_remote)) < received_local + 1


class HostTime(ExactClock):
    """A made-up node's clock over the host's raw clock as true time, to be read for real."""

    def raw_ns(self) -> int:
        return self.read(host_raw_ns())

    def at_host_raw(self, host_raw_ns: int) -> int:
        return self.read(host_raw_ns)


def host_raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
