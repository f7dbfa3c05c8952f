"""What a mesh costs a node each second: ``python benchmarks/mesh_cost.py [NODES ...]``.

The problem: bounds through others are computed for all of N nodes at once, in Python, and records are decoded, checked
and kept. Milliseconds on one machine say little about another, so each cost is told as a multiple of one observation of
``bounds/pair.py`` (the same that every message costs), timed in the same run, alternating.

The mesh: every node measures ``k`` = 8 others and is measured by about as many, and each record carries 12 edges. One
member lies, so that verdicts have something to find. Memory is what the records of all others take in a store.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from skewd.bounds.compose import Composed, compose, judge
from skewd.bounds.mesh import Verdict
from skewd.bounds.pair import PairBound
from skewd.record_store import RecordStore
from skewd.records import decode, private_key, public_key_of, sign, verify
from tests.mesh.worlds import World, make, make_record, member

ROUNDS = 5
SECOND = 1_000_000_000


def observe(count: int = 2_000) -> float:
    """Microseconds of one observation, 1 Hz with jitter."""
    choose = random.Random(7)
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    stamps = [(index * SECOND, 100_000 + round(choose.expovariate(1 / 50_000))) for index in range(count // 2)]
    begin = time.process_time_ns()
    for sent, delay in stamps:
        bound.outgoing(sent, sent + delay)
        bound.incoming(sent + delay, sent + 2 * delay)
    return (time.process_time_ns() - begin) / count / 1_000


def timed(work: Callable[[], object], count: int = 1) -> float:
    begin = time.process_time_ns()
    for _ in range(count):
        work()
    return (time.process_time_ns() - begin) / count / 1_000


def passing(world: World, size: int) -> tuple[float, float, int]:
    """Microseconds to choose an attachment and to take a record, and bytes per record held."""
    choose = random.Random(5)
    secret = private_key(choose.randbytes(32))
    owner = member(choose, "owner")
    owner.key = public_key_of(secret)
    edges = list(next(iter(world.records.values())).edges)
    records = [sign(make_record(owner, -1.0, edges, sequence), secret) for sequence in range(1, 101)]
    tracemalloc.start()
    store = RecordStore("here", checks_per_s=10**9, capacity=max(size, 4) * 4)
    for index in range(size - 1):
        each = member(choose, f"m{index}")
        key = private_key(each.key)
        each.key = public_key_of(key)
        data = sign(make_record(each, -1.0, edges), key)
        store.accept(data, first_hand_owner=each.name, received_raw_ns=SECOND)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    peers = [f"m{index}" for index in range(min(size - 1, 16))]
    turns = iter(range(10**9))
    choose_us = timed(lambda: store.next_for(peers[next(turns) % len(peers)], 1_060), 200)
    coming = iter(records)
    take_us = timed(lambda: store.accept(next(coming), first_hand_owner="owner", received_raw_ns=SECOND), 100)
    return choose_us, take_us, held // max(size - 1, 1)


def bounds(world: World) -> dict[str, Composed]:
    return compose(here=world.here, now_raw_ns=world.now_ns, first_hand=world.first_hand, records=world.records)


def verdict(world: World, found: dict[str, Composed]) -> Verdict:
    return judge(
        here=world.here,
        now_raw_ns=world.now_ns,
        first_hand=world.first_hand,
        records=world.records,
        composed=found,
    )


def main(sizes: list[int]) -> None:
    choose = random.Random(1)
    secret = private_key(choose.randbytes(32))
    unit = statistics.median(observe() for _ in range(ROUNDS))
    print(f"one observation: {unit:.1f} us\n")
    print(f"{'what':44} {'ms':>9} {'x one observation':>18}")

    def tell(what: str, work: Callable[[], object], count: int = 1) -> None:
        pairs = [(timed(work, count), observe(400)) for _ in range(ROUNDS)]
        cost = statistics.median(cost for cost, _ in pairs)
        ratio = statistics.median(cost / unit for cost, unit in pairs)
        print(f"{what:44} {cost / 1000:9.3f} {ratio:18.1f}")

    for size in sizes:
        world = make(random.Random(size), nodes=size, degree=8, liar=True, oldest_s=60)
        found = bounds(world)
        print(f"-- {size} nodes: {len(found)} bounded, {len(world.first_hand)} of them first-hand")
        tell(f"all bounds at once, {size} nodes", partial(bounds, world))
        tell(f"the verdict on all, {size} nodes", partial(verdict, world, found))
        choose_us, take_us, held = passing(world, size)
        print(f"{'   choosing an attachment':44} {choose_us / 1000:9.3f} {choose_us / unit:18.1f}")
        print(f"{'   taking a new record, signature checked':44} {take_us / 1000:9.3f} {take_us / unit:18.1f}")
        print(f"   memory: {held} bytes a record held, {held * (size - 1) / 1e6:.1f} MB for all")
    record = next(iter(world.records.values()))
    owner = member(choose, "owner")
    owner.key = public_key_of(secret)
    own = make_record(owner, -1.0, list(record.edges))
    data = sign(own, secret)
    print(f"-- one record, {len(data)} bytes")
    tell("signing it", lambda: sign(own, secret), 50)
    tell("checking its signature", lambda: verify(data, own.public_key), 50)
    tell("reading it", lambda: decode(data), 50)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10, 50, 200, 1_000])
