"""A node in virtual time, recorded and replayed: the same to the last bit, right, small, and honest about limits."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.bounds.observed import Verdict
from skewd.evidence import Begin, Fact, Gone, Learnt, Look, Missed, Restart, read
from skewd.replay import CANDIDATES, Extreme, Replay, judgement, judgements, replayed, same_but_latest
from skewd.replay_view import render, told
from skewd.tap import QUEUE_MAX, Listener, Tap
from tests.evidence.worlds import SECOND, World, content_of


def recorded(world: World, rounds: int, seconds: int = 60) -> list[Fact]:
    """What a listener gets of so many rounds; it begins to listen when three exchanges are over."""
    world.run(3)
    world.tap.listen(world.listener)
    facts: list[Fact] = []
    for _ in range(rounds):
        world.run(seconds)
        facts += world.taken()
    return facts


def through_a_file(facts: list[Fact], **options: bool) -> Replay:
    back = list(read(io.BytesIO(content_of(facts))))
    assert back == facts
    return replayed(back, **options)


def same_as_the_node(replay: Replay, world: World) -> None:
    """Every filter and every watch is the daemon's own: whatever is asked of it later, the answer is the same."""
    subjects = {subject.key: subject for subject in world.node.subjects()}
    assert {(live.begin.kind, live.begin.name) for live in replay.live.values()} == subjects.keys()
    for live in replay.live.values():
        subject = subjects[live.begin.kind, live.begin.name]
        assert same_but_latest(live.pair.state(), subject.pair.state())
        mine, own = live.watch.state(), subject.observed.state()
        assert mine._replace(upper=None, lower=None) == own._replace(upper=None, lower=None)
        now = world.raw(world.true_ns)
        assert live.watch.told(now) == subject.observed.told(now)
        for later_s in (-5, 0, 60, 3_600):
            at = now + later_s * SECOND
            assert (live.pair.offset(at), live.pair.drift(at)) == (subject.pair.offset(at), subject.pair.drift(at))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    jitter_us=st.sampled_from([1, 40, 2_000]),
    told_later=st.booleans(),
    reference=st.sampled_from(["there", "utc"]),
    wander=st.sampled_from([0, 10, 200]),
)
def test_a_replay_is_the_daemon_to_the_last_bit(
    seed: int, jitter_us: int, told_later: bool, reference: str, wander: int
) -> None:
    world = World(
        reference,
        jitter_ns=jitter_us * 1_000,
        told=told_later,
        seed=seed,
        look_every_ns=20 * SECOND,
        wander_ppb_per_s=wander,
        # Twenty ppm to and fro: with a small limit on wander that contradicts it, again and again.
        wandered_ns=lambda true_ns: 20 * abs(true_ns % (120 * SECOND) - 60 * SECOND) // 1_000_000,
    )
    facts = recorded(world, 6, 50)
    replay = through_a_file(facts)
    same_as_the_node(replay, world)
    assert replay.compared == replay.identical > 20
    assert replay.published_compared == replay.published_identical > 10
    assert replay.first_difference is None


def test_replayed_bounds_are_those_that_were_published_and_hold_the_truth() -> None:
    world = World("there", look_every_ns=5 * SECOND, wandered_ns=lambda true_ns: -31 * true_ns // 1_000_000)
    replay = through_a_file(recorded(world, 5), bounds=True)
    knots = {knot.raw_ns: knot for knot in world.knots}
    published = [row for row in replay.bounds or [] if row["kind"] == "published"]
    assert len(published) > 50
    for row in published:
        bound = knots[row["raw_ns"]].bound
        assert bound is not None
        assert (row["lower_ns"], row["upper_ns"]) == (bound.lo, bound.hi)
    raw = [row for row in replay.bounds or [] if row["name"] == "there"]
    for row in raw:
        # The instant is on this raw clock; a thousandth of its drift in a second is far below a nanosecond.
        true_ns = round((row["raw_ns"] - 77 * SECOND) / (1 + 12_000 / SECOND))
        truth = world.raw_there(true_ns) - row["raw_ns"]
        assert row["lower_ns"] - 2 <= truth <= row["upper_ns"] + 2


def test_what_befalls_a_pair_is_replayed_too() -> None:
    """A reboot of the peer, a suspend of this machine, a contradiction, a peer that is forgotten."""
    world = World("utc", look_every_ns=10 * SECOND)
    facts = recorded(world, 2)
    world.raw_era, world.wandered_ns = 2, lambda true_ns: 9_000 * SECOND + true_ns // 100_000
    world.run(60)
    facts += world.taken()
    world.node.on_raw_disturbed(world.sample())
    world.tap.restarted(world.raw(world.true_ns))
    world.run(60)
    facts += world.taken()
    world.wandered_ns = lambda true_ns: 9_001 * SECOND + true_ns // 100_000  # its raw clock jumps by a second
    world.run(60)
    facts += world.taken()
    replay = through_a_file(facts)
    same_as_the_node(replay, world)
    assert replay.restarts == 1
    assert replay.pairs["peer", "there"].contradictions == 1
    assert replay.pairs["peer", "there"].beginnings >= 3
    assert replay.compared == replay.identical
    world.node.forget_departed(world.raw(world.true_ns) + 10_000 * SECOND)
    world.publish()
    world.true_ns += 20 * SECOND
    world.publish()
    facts += world.taken()
    assert any(isinstance(fact, Gone) for fact in facts)
    same_as_the_node(through_a_file(facts), world)


def test_a_listener_that_comes_later_needs_nothing_from_before() -> None:
    world = World(look_every_ns=10 * SECOND)
    recorded(world, 3)
    late = Listener(lambda: None, 10 * SECOND)
    world.tap.listen(late)
    world.run(90)
    replay = through_a_file(late.take(world.tap.anew))
    same_as_the_node(replay, world)
    assert replay.compared == replay.identical > 0
    assert world.tap.listeners == 2
    world.tap.leave(late)
    world.tap.leave(world.listener)
    world.run(5)
    assert late.take(world.tap.anew) == []


def test_a_listener_that_does_not_keep_up_has_a_gap_and_no_wrong_bound() -> None:
    world = World(look_every_ns=10 * SECOND)
    facts = recorded(world, 1)
    for _ in range(QUEUE_MAX + 5):
        world.listener.put(Learnt(0, True, 1, 1, 0))
    world.run(30)
    lost = world.taken()
    assert isinstance(lost[0], Missed)
    assert lost[0].proofs > QUEUE_MAX
    facts += lost
    world.run(60)
    facts += world.taken()
    replay = through_a_file(facts)
    same_as_the_node(replay, world)
    assert replay.missed == lost[0].proofs
    assert replay.compared == replay.identical


def test_a_record_can_begin_anew_anywhere() -> None:
    """As at the beginning of the next file: what a replay knows is all that the next one needs."""
    world = World("there", look_every_ns=10 * SECOND)
    facts = recorded(world, 4)
    for cut in random.Random(3).sample(range(20, len(facts)), 8):
        before = replayed(facts[:cut])
        begun = before.snapshot()
        assert sum(isinstance(fact, Begin) for fact in begun) == 2
        replay = through_a_file([*begun, *facts[cut:]])
        same_as_the_node(replay, world)
        assert replay.compared == replay.identical
        whole = replayed([*facts[:cut], *begun, *facts[cut:]])
        assert told(whole) == told(replayed(facts))


def test_a_changed_bound_is_noticed() -> None:
    world = World(look_every_ns=10 * SECOND)
    facts = recorded(world, 1)
    at = next(index for index, fact in enumerate(facts) if isinstance(fact, Look) and fact.pairs)
    look = facts[at]
    assert isinstance(look, Look)
    assert look.pairs[0].upper_ns is not None
    changed = look.pairs[0]._replace(upper_ns=look.pairs[0].upper_ns + 1)
    facts[at] = Look(
        look.raw_ns,
        look.era,
        look.wall_lower_ns,
        look.wall_upper_ns,
        look.slew_ppb,
        (changed, *look.pairs[1:]),
        look.published,
    )
    replay = replayed(facts)
    assert replay.identical == replay.compared - 1
    assert "DIFFERENT" in render(replay, calibrate=False)
    assert replay.first_difference is not None


@pytest.mark.parametrize("jitter_us", [3, 40, 1_000, 10_000])
def test_a_peer_takes_less_than_a_megabyte_a_day(jitter_us: int) -> None:
    """Two hours at the default rates, of a peer whose kernel stamps are told: three proofs a second."""
    world = World("there", jitter_ns=jitter_us * 1_000)
    facts = recorded(world, 12, 600)
    indices = {fact.pair for fact in facts if isinstance(fact, Begin) and fact.kind == "peer"}
    of_the_peer = [fact for fact in facts if not isinstance(fact, Begin | Learnt) or fact.pair in indices]
    size = len(content_of(of_the_peer))
    assert 12 * size < 1_000_000, f"{12 * size} bytes a day"
    replay = through_a_file(facts)
    assert replay.compared == replay.identical
    assert replay.pairs["peer", "there"].proofs > 3 * 6_500


# -- what a record says of the limits ----------------------------------------------------------------------------------


def rising(from_s: int, ppb_per_s: int, for_s: int) -> Any:
    """A clock whose drift rises for a while and stays; exact in integers, as far as nanoseconds go."""

    def wandered_ns(true_ns: int) -> int:
        elapsed = min(max(true_ns - from_s * SECOND, 0), for_s * SECOND)
        after = max(true_ns - (from_s + for_s) * SECOND, 0)
        return ppb_per_s * elapsed * elapsed // (2 * SECOND**2) + ppb_per_s * for_s * after // SECOND

    return wandered_ns


def test_a_wander_beyond_the_limit_is_told_with_what_it_was_at_least() -> None:
    """200 ppb/s for 150 s, where the pair may do 20: proven, and the limit to declare covers it."""
    world = World("there", jitter_ns=5_000, wandered_ns=rising(300, 200, 150))
    replay = through_a_file(recorded(world, 15), candidates=True)
    drift, wander = judgements(replay.pairs["peer", "there"])
    assert wander.verdict is Verdict.VIOLATED
    assert 20 < wander.at_least <= 200
    assert wander.refuted is not None
    assert 20 <= wander.refuted <= 200
    assert not wander.jump
    assert wander.declare is not None
    assert wander.declare >= 200
    assert drift.verdict is Verdict.WITHIN
    text = render(replay, calibrate=True)
    assert "DOES NOT FIT" in text
    assert "raise it on the node whose clock it is" in text


def test_a_clock_within_its_limits_fits() -> None:
    world = World("utc", jitter_ns=5_000, wandered_ns=lambda true_ns: 3 * true_ns // 1_000_000)
    replay = through_a_file(recorded(world, 60), candidates=True)
    for key, expected in ((("peer", "there"), 3_000 - 12_000), (("source", "near"), -12_000)):
        drift, wander = judgements(replay.pairs[key])
        assert drift.verdict is Verdict.WITHIN
        assert drift.at_least <= abs(expected) <= (drift.at_most or 0)
        assert wander.at_least == 0
        assert not wander.jump
        assert wander.refuted is None
    assert judgements(replay.pairs["peer", "there"])[1].verdict is Verdict.WITHIN
    assert "[clock] max_drift_ppm = 100: fits this clock, by 1 sources of UTC" in render(replay, calibrate=True)


def test_a_jump_is_no_wander() -> None:
    world = World("there", jitter_ns=5_000, wandered_ns=lambda true_ns: 5_000_000 if true_ns > 200 * SECOND else 0)
    replay = through_a_file(recorded(world, 8), candidates=True)
    _, wander = judgements(replay.pairs["peer", "there"])
    assert wander.jump
    assert wander.verdict is Verdict.VIOLATED
    assert wander.declare is None
    assert "a clock jumped, or a stamp lies" in render(replay, calibrate=True)


def test_a_judgement_says_no_more_than_it_can() -> None:
    nothing = judgement({}, 20.0)
    assert (nothing.verdict, nothing.at_most, nothing.declare) == (Verdict.UNKNOWN, None, None)
    coarse = judgement({8 * SECOND: Extreme(0, 900, 5), 32 * SECOND: Extreme(0, 60, 3)}, 20.0)
    assert (coarse.verdict, coarse.at_most, coarse.window_s, coarse.declare) == (Verdict.UNKNOWN, 60, 32, None)
    fits = judgement({8 * SECOND: Extreme(0, 9, 5)}, 20.0)
    assert (fits.verdict, fits.declare) == (Verdict.WITHIN, 20.0)
    barely = judgement({8 * SECOND: Extreme(3, 19, 5)}, 20.0)
    assert (barely.verdict, barely.declare) == (Verdict.WITHIN, 50.0)
    refuted = judgement({8 * SECOND: Extreme(0, 19, 5)}, 20.0, {0.1, 1.0})
    assert (refuted.verdict, refuted.refuted, refuted.jump) == (Verdict.VIOLATED, 20.0, False)
    assert judgement({}, 20.0, set(CANDIDATES)).jump


def test_a_restart_of_the_raw_clock_ends_all_pairs() -> None:
    world = World()
    replay = replayed([*recorded(world, 1), Restart(1, 2)])
    assert replay.live == {}


def test_a_fault_of_the_taps_own_costs_no_proof() -> None:
    """It ends the evidence and nothing else; whoever asks next has a tap that works."""
    world = World()
    recorded(world, 1)
    world.tap._on_fault = lambda _: world.tap.close()
    world.tap._entries = None  # type: ignore[assignment]
    before = world.node.subjects()[0].pair.latest_local_ns
    world.run(5)
    after = world.node.subjects()[0].pair.latest_local_ns
    assert before is not None
    assert after is not None
    assert after > before + 4 * SECOND
    assert world.listener.closed
    again = Tap(world.node, lambda: "tsc", lambda: world.raw(world.true_ns), world.failed)
    late = Listener(lambda: None, SECOND)
    again.listen(late)
    world.tap.leave(world.listener)  # as its door does, when it has noticed
    world.run(20)
    replay = through_a_file(late.take(again.anew))
    assert sum(summary.kept for summary in replay.pairs.values()) > 20
