"""Records passed on among N nodes in rounds: each asks k others, one attachment each way. No clocks, no network."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from unittest import mock

from skewd.bounds.carry import Claim
from skewd.bounds.compose import clock_tag
from skewd.interval import Interval
from skewd.record_store import RecordStore
from skewd.records import EDGES_MAX, Edge, Record, _encode

SECOND = 1_000_000_000
ROOM = 1_060
"""Bytes for an attachment in a message of 1,400."""


@dataclass
class Gossip:
    """``nodes`` nodes, one round a second. Signatures are not computed: they cost, and tell nothing here."""

    nodes: int
    k: int = 8
    seed: int = 1
    room: int = ROOM
    edges: int = EDGES_MAX
    down: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        choose = self.choose = random.Random(self.seed)
        self.names = [f"node-{index:04}.example" for index in range(self.nodes)]
        self.keys = [choose.randbytes(32) for _ in self.names]
        self.boot = bytes(16)
        self.tags = [clock_tag(name, key, self.boot, 1) for name, key in zip(self.names, self.keys, strict=True)]
        self.asks = [
            choose.sample([other for other in range(self.nodes) if other != index], min(self.k, self.nodes - 1))
            for index in range(self.nodes)
        ]
        self.stores = [RecordStore(name, checks_per_s=100_000) for name in self.names]
        self.near: list[list[int]] = [[] for _ in self.names]
        for index, asked in enumerate(self.asks):
            for other in asked:
                self.near[index].append(other)
                self.near[other].append(index)
        self.round = 0
        self.bytes_sent = 0
        self.messages = 0

    def record(self, index: int) -> bytes:
        near = sorted(set(self.near[index]))
        claim = Claim(Interval(-(1 << 50), 100_000 - (1 << 50)), Interval(-50_000, 50_000), 200_020, 21)
        edges = [Edge(self.tags[other], claim) for other in self.choose.sample(near, min(len(near), self.edges))]
        record = Record(
            owner=self.names[index],
            public_key=self.keys[index],
            boot=self.boot,
            raw_era=1,
            era=1,
            sequence=self.round,
            raw_ns=self.round * SECOND,
            wall_minus_raw=Interval(0, 200),
            wall_slew_ppb=500_000,
            max_drift_ppm=100,
            max_wander_ppb_per_s=10,
            edges=tuple(edges),
        )
        return _encode(record) + bytes(64)

    def step(self) -> None:
        self.round += 1
        now = self.round * SECOND
        with mock.patch("skewd.record_store.verify", return_value=True):
            for index, store in enumerate(self.stores):
                if index not in self.down:
                    store.put_own(self.record(index))
                    store.forget_departed(now)
            order = [(index, other) for index, asked in enumerate(self.asks) for other in asked]
            self.choose.shuffle(order)
            for index, other in order:
                if self.down.isdisjoint((index, other)):
                    self._send(index, other, now)
                    self._send(other, index, now)

    def _send(self, sender: int, receiver: int, now: int) -> None:
        attachment = self.stores[sender].next_for(self.names[receiver], self.room)
        self.bytes_sent += len(attachment)
        self.messages += 1
        self.stores[receiver].receive(attachment, first_hand_owner=self.names[sender], received_raw_ns=now)

    def complete(self) -> bool:
        return all(len(store) == self.nodes - 1 for store in self.stores)

    def ages(self) -> list[int]:
        """Rounds since each held record was made."""
        return [self.round - record.sequence for store in self.stores for record in store.records().values()]
