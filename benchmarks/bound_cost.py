"""What one message costs the filter: ``python benchmarks/bound_cost.py``.

The problem: microseconds on one machine say little about another. So the cost of an observation (``bounds/pair.py``)
is told as a multiple of something every message needs anyway and that is timed in the same run, alternating: one keyed
BLAKE2s over a message's 256 bytes, of which sender and receiver compute one each. The microseconds are for people.

Cases differ in how often a message changes the set: rarely (heavy jitter), at each message (none), out of order
(the echoes that a responder gets), once in 16 s (NTP). Processor time, the median of the rounds.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable

from skewd.bounds.pair import PairBound

ROUNDS = 7
EXCHANGES = 600
SECOND = 1_000_000_000

Message = tuple[bool, int, int]


def messages(gap_s: float, fixed_ns: int, jitter_ns: int, *, late: bool = False) -> list[Message]:
    """Both messages of each exchange: (outgoing?, sent, received), each by its own clock, while the drift wanders."""
    choose = random.Random(7)
    offset, drift, made = 0.0, 50_000.0, []
    for index in range(1, EXCHANGES + 1):
        push = choose.choice((-20, 20))
        offset += drift * gap_s + push * gap_s * gap_s / 2
        drift += push * gap_s
        sent = round(index * gap_s * SECOND)
        there, back = (fixed_ns + round(choose.expovariate(1 / (jitter_ns or 1))) for _ in range(2))
        arrived = sent + there + round(offset)
        made += [(True, sent, arrived + 1), (False, arrived - 1, sent + there + back)]
    if late:
        for index in range(0, len(made) - 3, 4):
            made[index], made[index + 2] = made[index + 2], made[index]
    return made


def observe(made: list[Message]) -> None:
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    for outgoing, sent, received in made:
        if outgoing:
            bound.outgoing(sent, received)
        else:
            bound.incoming(sent, received)
    assert bound.contradictions == 0


def ask(made: list[Message]) -> None:
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    for outgoing, sent, received in made[:200]:
        (bound.outgoing if outgoing else bound.incoming)(sent, received)
    begin = made[200][1]
    for step in range(len(made)):
        bound.offset(begin + step * 1_000_000)


def authenticate(made: list[Message]) -> None:
    for _ in made:
        hashlib.blake2s(b"m" * 256, key=b"k" * 32, digest_size=16).digest()


def microseconds(work: Callable[[list[Message]], None], made: list[Message]) -> float:
    begin = time.process_time_ns()
    work(made)
    return (time.process_time_ns() - begin) / len(made) / 1000


def main() -> None:
    cases: list[tuple[str, Callable[[list[Message]], None], list[Message]]] = [
        ("1 Hz, 100 us and jitter of 50 us", observe, messages(1, 50_000, 50_000)),
        ("1 Hz, every other one late", observe, messages(1, 50_000, 50_000, late=True)),
        ("1 Hz, no jitter: each message counts", observe, messages(1, 50_000, 0)),
        ("1 Hz, heavy jitter of 1 ms", observe, messages(1, 50_000, 1_000_000)),
        ("100 Hz, jitter of 50 us", observe, messages(0.01, 50_000, 50_000)),
        ("every 16 s", observe, messages(16, 50_000, 50_000)),
        ("offset(t) asked", ask, messages(1, 50_000, 50_000)),
    ]
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in cases}
    for _ in range(ROUNDS):
        for name, work, made in cases:
            unit = microseconds(authenticate, made)
            measured[name].append((microseconds(work, made), unit))
    print(f"{'an observation':40} {'us':>8} {'x one BLAKE2s':>14}")
    for name, pairs in measured.items():
        cost = statistics.median(cost for cost, _ in pairs)
        ratio = statistics.median(cost / unit for cost, unit in pairs)
        print(f"{name:40} {cost:8.1f} {ratio:14.1f}")


if __name__ == "__main__":
    main()
