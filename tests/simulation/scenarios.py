"""The scenarios: what clocks and networks do, each declared in a few lines. All keep within the declared limits."""

from __future__ import annotations

from tests.simulation.runner import Scenario
from tests.simulation.world import Server, Wire

ZERO = Wire(minimum_us=0, jitter="none")
NEAR = Wire(minimum_us=15, jitter_us=10)
HEAVY = Wire(minimum_us=100, jitter="heavy", jitter_us=200)
FAR = Wire(minimum_us=15_000, jitter_us=2_000)
MINUTES = ((120.0, 60.0), (240.0, 180.0))
YEARS = 315_576_000_000_000_000
"""Ten of uptime."""

PAIRS = [
    # The wire.
    Scenario("exponential jitter"),
    Scenario("next door", wire=NEAR),
    Scenario("far away", wire=FAR),
    Scenario("heavy tails", wire=HEAVY),
    Scenario("no delay at all", wire=ZERO),
    Scenario("no delay, half of the time", wire=Wire(minimum_us=0, jitter="sometimes", jitter_us=80)),
    Scenario("all of the delay there", wire=Wire(asymmetry=1.0)),
    Scenario("all of the delay back", wire=Wire(asymmetry=-1.0, jitter="none")),
    Scenario("a queue that fills one way", wire=Wire(jitter="queue", jitter_us=400)),
    Scenario("half is lost", wire=NEAR, loss=0.5),
    Scenario("nearly all is lost", loss=0.95, duration_s=1200),
    Scenario("duplicates", duplicate=0.5, late_s=3.0),
    Scenario("out of order by seconds", wire=NEAR, late_s=8.0),
    Scenario("out of order by minutes", wire=ZERO, late_s=240.0),
    Scenario("one way only, there", one_way="there", wire=NEAR),
    Scenario("one way only, back", one_way="back", wire=NEAR),
    # Silence.
    Scenario("gaps of minutes", gaps=MINUTES),
    Scenario("gaps of minutes, no delay", wire=ZERO, gaps=MINUTES),
    Scenario("gaps, loss, reordering, duplicates", gaps=MINUTES, loss=0.3, duplicate=0.2, late_s=5.0),
    Scenario("fifteen minutes of silence", wire=ZERO, duration_s=1500, gaps=((200.0, 900.0),)),
    # The oscillators.
    Scenario("at the drift limit", style="limit", wire=ZERO, interval_s=4.0, duration_s=2400),
    Scenario("at the drift limit, real delays", style="limit", wire=NEAR),
    Scenario("from one drift limit to the other", style="crossing", limits=(2, 10), wire=ZERO, duration_s=1200),
    Scenario("temperature", style="temperature", duration_s=3600, interval_s=4.0),
    Scenario("random walk", style="walk", wire=NEAR),
    Scenario("steady", style="still", wire=NEAR),
    Scenario("steady and alike", style="same", wire=ZERO, gaps=MINUTES),
    Scenario("good oscillators, declared so", limits=(1, 1), wire=NEAR, gaps=MINUTES),
    Scenario("poor oscillators, declared so", limits=(500, 200), wire=NEAR, gaps=MINUTES),
    # How often.
    Scenario("ten a second", interval_s=0.1, duration_s=90, wire=NEAR),
    Scenario("every 16 seconds", interval_s=16.0, duration_s=6000),
    Scenario("every 64 seconds, no delay", interval_s=64.0, duration_s=24_000, wire=ZERO),
    Scenario("after ten years of uptime", epoch_ns=YEARS, wire=ZERO, gaps=MINUTES),
]

_A = Server("a", error_us=150)
_B = Server("b", error_us=400)
_LIAR = Server("liar", error_us=100, false_by_us=40_000)

NODES = [
    Scenario("node: a peer", node=True, duration_s=60),
    Scenario("node: a peer, loss and duplicates", node=True, duration_s=60, loss=0.4, duplicate=0.3, late_s=2.0),
    Scenario("node: own clock set back", node=True, duration_s=60, own_steps=((20.0, -7_000_000), (33.3, -900_000))),
    Scenario("node: own clock set forward", node=True, duration_s=60, own_steps=((21.7, 3_600_000_000_000),)),
    Scenario("node: the peer's clock set", node=True, duration_s=60, peer_steps=((20.0, 40_000_000), (40.2, -800_000))),
    Scenario("node: own clock set by 5 us", node=True, duration_s=60, own_steps=((20.0, 5_000), (40.0, -5_000))),
    Scenario("node: slewed by 400 ppm", node=True, duration_s=60, slew_ppm=400),
    Scenario("node: suspended", node=True, duration_s=90, suspends=((30.0, 20.0),)),
    Scenario("node: silence", node=True, duration_s=150, gaps=((30.0, 90.0),)),
    Scenario("node: one server", node=True, duration_s=60, servers=(_A,), wire=FAR),
    Scenario("node: three servers, one lies", node=True, duration_s=60, servers=(_A, _B, _LIAR), loss=0.2),
    Scenario("node: a server, a set clock, a suspend", node=True, duration_s=90, servers=(_A,),
             own_steps=((25.0, 2_000_000_000),), suspends=((50.0, 10.0),)),
]  # fmt: skip

_STEPS = tuple((15.03 + 7.31 * index, -1 if index % 2 else 1) for index in range(6))

NODES += [
    # The bounds before and after such a step overlap: what both allow would not hold around the news.
    Scenario(f"node: the peer's clock set by {size_us} us", node=True, duration_s=60,
             peer_steps=tuple((at, sign * size_us * 1000) for at, sign in _STEPS))
    for size_us in (150, 300)
]  # fmt: skip

ALL = [*PAIRS, *NODES]
