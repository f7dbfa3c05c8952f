"""The scenarios: what clocks and networks do, each declared in a few lines. All keep within the declared limits."""

from __future__ import annotations

from tests.simulation.runner import Scenario
from tests.simulation.world import Leap, Server, Wire

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

_INSERTED, _DELETED, _NONE = Leap(60.0), Leap(60.0, kind=2), Leap(60.0, happens=False)
_KERNEL_LEAPS = ((60.0, -1_000_000_000),)
_LATE = Server("late", error_us=200, late_s=9.7)
_SILENT = Server("silent", error_us=300, announces=False, late_s=0.4)
_DAY, _LONG, _WATCHED = 86_400.0, 93_600.0, (512.0, 6.0)

LEAPS = [
    Scenario("leap: a second inserted", node=True, duration_s=100, servers=(_A, _B), leap=_INSERTED),
    Scenario("leap: inserted, one server", node=True, duration_s=100, servers=(_A,), leap=_INSERTED, wire=FAR),
    Scenario("leap: inserted, half announce it", node=True, duration_s=100, servers=(_A, _SILENT), leap=_INSERTED),
    Scenario("leap: inserted, one leaps 9.7 s late", node=True, duration_s=100, servers=(_A, _B, _LATE),
             leap=_INSERTED, loss=0.2),
    Scenario("leap: inserted, silence around it", node=True, duration_s=130, servers=(_A, _B), leap=_INSERTED,
             gaps=((40.0, 50.0),)),
    Scenario("leap: inserted, and the kernel's clock set", node=True, duration_s=100, servers=(_A, _B),
             leap=_INSERTED, own_steps=_KERNEL_LEAPS),
    Scenario("leap: a second deleted", node=True, duration_s=100, servers=(_A, _B), leap=_DELETED),
    Scenario("leap: deleted, half announce it, one late", node=True, duration_s=100,
             servers=(_A, _LATE, Server("mute", announces=False), Server("mute too", announces=False)), leap=_DELETED),
    Scenario("leap: announced, and none comes", node=True, duration_s=100, servers=(_A, _B), leap=_NONE),
    Scenario("leap: chronyd tracks, the kernel leaps", node=True, duration_s=100, claims=("chrony",),
             leap=_INSERTED, own_steps=_KERNEL_LEAPS),
    Scenario("leap: a hardware clock and a server", node=True, duration_s=100, servers=(_A,), claims=("phc",),
             leap=_INSERTED),
    Scenario("smear: 24 hours", node=True, duration_s=_LONG, interval_s=64.0, watched=_WATCHED, style="temperature",
             servers=(_A, _B), leap=Leap(_LONG / 2, smear_s=_DAY)),
    Scenario("smear: 24 hours, deleted, bang-bang", node=True, duration_s=_LONG, interval_s=64.0, watched=_WATCHED,
             servers=(_A, _B), leap=Leap(_LONG / 2, kind=2, smear_s=_DAY)),
    Scenario("smear: 20 hours", node=True, duration_s=_LONG, interval_s=64.0, watched=_WATCHED, style="limit",
             servers=(_A, _B), leap=Leap(_LONG / 2, smear_s=72_000.0)),
    *(Scenario(f"smear: its {when}, second by second", node=True, duration_s=200, style="limit", servers=(_A,),
               wire=ZERO, leap=Leap(100 + half * _DAY / 2, smear_s=_DAY))
      for when, half in (("begin", 1), ("end", -1))),
]  # fmt: skip

LOCAL = [
    Scenario("local: chronyd", node=True, duration_s=90, claims=("chrony",)),
    Scenario("local: chronyd slews by up to 83,333 ppm", node=True, duration_s=90, claims=("chrony",), steered=True),
    Scenario("local: a peer, own clock slewed by up to 83,333 ppm", node=True, duration_s=90, steered=True),
    Scenario("local: the kernel's maxerror", node=True, duration_s=60, claims=("kernel",), slew_ppm=300),
    Scenario("local: ptp4l", node=True, duration_s=90, claims=("ptp",), wire=NEAR),
    Scenario("local: a hardware clock", node=True, duration_s=60, claims=("phc",)),
    Scenario("local: all of them and a server", node=True, duration_s=60, claims=("chrony", "kernel", "ptp", "phc"),
             servers=(_A,), wire=NEAR),
    Scenario("restarted twice on a ramp of temperature, a peer", node=True, duration_s=180, style="temperature",
             restarts=(70.0, 120.0)),
    Scenario("restarted on a ramp of temperature, servers", node=True, duration_s=150, style="temperature",
             servers=(_A, _B), restarts=(70.0,), gaps=((72.0, 40.0),)),
]  # fmt: skip

ALL = [*PAIRS, *NODES, *LEAPS, *LOCAL]
