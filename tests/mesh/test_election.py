"""The election: rules one by one, by what a node decides from what it sees; then whole meshes, from seeds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.election import UTC, UTC_GONE_NS, Decision, Election, Member, Own, Reason, Timescale, Timing
from skewd.interval import Interval
from tests.mesh import election_lies
from tests.mesh.election_world import Lie, World
from tests.shares import first

S = 1_000_000_000
SETTLED_ROUNDS = 120
"""Within so many rounds after the last change all nodes of a part name one timescale that lives there..."""
UTC_LOST_ROUNDS = UTC_GONE_NS // S + SETTLED_ROUNDS
"""...and where UTC was lost, it is waited for first."""


def boot(name: str) -> bytes:
    return name.encode().ljust(16, b"-")


def walls(name: str, epoch: int = 1) -> Timescale:
    """A node's own wall clock as a timescale."""
    return Timescale(epoch, name, name, boot(name), 1)


def carried(timescale: Timescale, by: str, k_ns: int = 0) -> Timescale:
    return replace(timescale, keeper=by, keeper_boot=boot(by), keeper_raw_era=1, k_ns=k_ns)


def member(name: str, names: Timescale | None = None, *, age_s: float = 1, utc: bool = False) -> Member:
    return Member(name, boot(name), 1, round(age_s * S), names, utc)


class Seat:
    """One node's election, asked once a second."""

    def __init__(self, name: str = "m", *, liars: int = 1, reference: str = "auto") -> None:
        self.election = Election(name, interval_ns=S, liars=liars, reference=reference)
        self.now_s = 1_000
        self.name = name
        self.bounds: dict[Timescale, Interval] = {}
        self.applied_ns: int | None = None
        self.raw_era = 1
        self.utc = self.utc_lives = False
        self.last: Decision | None = None
        self.reasons: list[Reason] = []

    def see(self, *members: Member, seconds: int = 1) -> Decision:
        """Sees the same for so long; the last decision."""
        for _ in range(seconds):
            own = Own(boot(self.name), self.raw_era, self.utc, self.bounds.get, self.applied_ns, self.utc_lives)
            self.last = self.election.decide(self.now_s * S, own, members)
            if self.last.changed is not None:
                self.reasons.append(self.last.changed)
            self.now_s += 1
        assert self.last is not None
        return self.last


TIMING = Timing.of(S, 3)
GONE_S, HOLD_S, STEP_S = (ns // S for ns in (TIMING.gone_ns, TIMING.hold_ns, TIMING.step_ns))


# -- beginnings


def test_a_node_alone_listens_and_then_keeps_its_own_wall_clock() -> None:
    seat = Seat("m")
    assert seat.see().timescale is None
    decision = seat.see(seconds=5)
    assert decision.timescale == walls("m")
    assert (decision.reference, decision.agreed, decision.alive, decision.epochs) == ("m", True, True, 1)
    assert seat.reasons == [Reason.FOUNDED]


def test_a_newcomer_follows_what_it_finds_whatever_its_name() -> None:
    seat = Seat("a")
    decision = seat.see(member("x", walls("x")), member("y", walls("x")), seconds=4)
    assert decision.timescale == walls("x")
    assert decision.agreed
    assert seat.see(member("x", walls("x")), member("y", walls("x")), seconds=200).timescale == walls("x")
    assert seat.reasons == [Reason.JOINED]


def test_of_two_that_begin_at_once_the_least_name_founds() -> None:
    low, high = Seat("a"), Seat("b")
    assert low.see(member("b"), seconds=4).timescale == walls("a")
    assert high.see(member("a"), seconds=4).timescale is None
    assert high.see(member("a", walls("a"))).timescale == walls("a")


def test_who_should_found_and_does_not_is_not_waited_for_for_ever() -> None:
    seat = Seat("b")
    assert seat.see(member("a"), seconds=3 + STEP_S + 1).timescale == walls("b")


def test_a_newcomer_waits_for_the_record_of_a_keeper_it_only_heard_of() -> None:
    seat = Seat("a")
    assert seat.see(member("y", walls("x")), seconds=GONE_S).timescale is None
    assert seat.see(member("y", walls("x")), member("x", walls("x"))).timescale == walls("x")


def test_two_singletons_that_meet_agree_on_the_lesser_name_after_a_while() -> None:
    low, high = Seat("a"), Seat("b")
    low.see(seconds=10)
    high.see(seconds=10)
    assert low.see(member("b", walls("b")), seconds=HOLD_S + 2).timescale == walls("a")
    high.bounds = {walls("b"): Interval(0, 0), walls("a"): Interval(5, 9)}
    assert high.see(member("a", walls("a")), seconds=HOLD_S).timescale == walls("b")
    decision = high.see(member("a", walls("a")))
    assert (decision.timescale, decision.changed, decision.new_epoch) == (walls("a"), Reason.MERGED, True)
    assert decision.epochs == 2


def test_a_daemon_that_was_restarted_takes_its_own_up_again_and_nobody_moves() -> None:
    keeper = Seat("x")
    assert keeper.see(member("y", walls("x")), seconds=4).timescale == walls("x")
    assert keeper.reasons == [Reason.RESUMED]
    follower = Seat("y")
    follower.see(member("x", walls("x")), seconds=5)
    assert follower.see(member("x"), seconds=GONE_S - 2).timescale == walls("x")
    assert follower.reasons == [Reason.JOINED]


def test_what_it_carried_before_a_restart_is_believed_from_more_than_may_lie() -> None:
    said = carried(walls("o"), "x", k_ns=77)
    assert Seat("x").see(member("y", said), seconds=4).timescale is None
    assert Seat("x").see(member("y", said), member("z", said), seconds=4).timescale == said


# -- a keeper falls silent


def follower_of(keeper: str, name: str, *others: str) -> Seat:
    seat = Seat(name)
    seat.bounds[walls(keeper)] = Interval(100, 300)
    seat.applied_ns = 180
    seat.see(member(keeper, walls(keeper)), *(member(o, walls(keeper)) for o in others), seconds=6)
    return seat


def test_the_least_follower_carries_the_timescale_on_from_what_it_published() -> None:
    seat = follower_of("k", "m", "z")
    seat.see(member("k", walls("k"), age_s=GONE_S), member("z", walls("k")))
    assert seat.last is not None
    assert seat.last.timescale == walls("k")
    decision = seat.see(member("k", walls("k"), age_s=GONE_S + 1), member("z", walls("k")), seconds=STEP_S + 1)
    assert decision.timescale == carried(walls("k"), "m", k_ns=180)
    assert (decision.reference, decision.new_epoch, decision.epochs) == ("k", False, 1)
    assert seat.reasons == [Reason.JOINED, Reason.TOOK_OVER]


def test_what_was_published_outside_the_bound_is_not_carried_on() -> None:
    seat = follower_of("k", "m")
    seat.applied_ns = 5_000
    decision = seat.see(seconds=GONE_S + STEP_S + 3)
    assert decision.timescale == carried(walls("k"), "m", k_ns=300)


def test_the_others_wait_for_their_turn_and_follow() -> None:
    seat = follower_of("k", "m", "b")
    gone = member("k", walls("k"), age_s=GONE_S + 1)
    assert seat.see(gone, member("b", walls("k")), seconds=STEP_S + 2).timescale == walls("k")
    successor = carried(walls("k"), "b", k_ns=9)
    # Not before it is known that published time need not move.
    assert seat.see(gone, member("b", successor)).timescale == walls("k")
    seat.bounds[successor] = Interval(290, 320)
    decision = seat.see(gone, member("b", successor))
    assert (decision.timescale, decision.changed, decision.new_epoch) == (successor, Reason.HANDED_OVER, False)


def test_if_the_first_in_line_can_not_the_next_one_does() -> None:
    seat = follower_of("k", "m", "b")
    gone = member("k", walls("k"), age_s=GONE_S + 1)
    decision = seat.see(gone, member("b", walls("k")), seconds=2 * STEP_S + 1)
    assert decision.timescale == carried(walls("k"), "m", k_ns=180)


def test_if_nobody_has_a_bound_to_carry_it_on_a_new_one_is_founded_and_it_says_so() -> None:
    seat = Seat("m")
    seat.see(member("k", walls("k", epoch=4)), seconds=6)
    decision = seat.see(seconds=200)
    assert decision.timescale is not None
    assert decision.timescale.lineage == ("m", 1)
    assert seat.reasons == [Reason.JOINED, Reason.LOST]
    assert decision.epochs == 2


def test_a_successor_that_contradicts_ones_bounds_is_not_followed() -> None:
    seat = follower_of("k", "m")
    false = carried(walls("k"), "liar", k_ns=1)
    seat.bounds[false] = Interval(3_600 * S, 3_600 * S + 1)
    decision = seat.see(member("liar", false), seconds=GONE_S + STEP_S + 3)
    assert decision.timescale == carried(walls("k"), "m", k_ns=180)


def test_one_that_contradicts_them_and_has_followers_is_followed_as_a_new_epoch() -> None:
    seat = follower_of("k", "m", "z")
    other = carried(walls("k"), "b", k_ns=1)
    seat.bounds[other] = Interval(900, 1_000)
    decision = seat.see(member("b", other), member("z", other), seconds=GONE_S + 2)
    assert decision.timescale == other
    assert decision.epochs == 2


def test_a_keeper_that_names_something_else_loses_its_followers_at_once() -> None:
    seat = follower_of("k", "m", "z")
    decision = seat.see(member("k", walls("k", epoch=2)), member("z", walls("k")), seconds=STEP_S + 1)
    assert decision.timescale == carried(walls("k"), "m", k_ns=180)


def test_a_convicted_keeper_loses_its_followers() -> None:
    seat = follower_of("k", "m", "z")
    convicted = replace(member("k", walls("k")), barred=True)
    decision = seat.see(convicted, member("z", walls("k")), seconds=STEP_S + 1)
    assert decision.timescale == carried(walls("k"), "m", k_ns=180)
    assert not decision.agreed, "z has not moved yet"
    assert seat.see(convicted, member("z", decision.timescale)).agreed, "the convicted one is not counted"


# -- an origin comes back


def test_after_a_reboot_an_origin_follows_what_bears_its_name() -> None:
    scale = carried(walls("k"), "b")
    seat = Seat("k")
    own = Own(b"another boot    ", 1, False, seat.bounds.get)
    for second in range(30):
        decision = seat.election.decide(second * S, own, [member("b", scale), member("m", scale)])
    assert decision.timescale == scale
    assert decision.reference == "k"


def test_an_origin_that_was_cut_off_joins_those_who_went_on_without_it() -> None:
    seat = Seat("k")
    seat.see(seconds=10)
    scale = carried(walls("k"), "b")
    seat.bounds = {walls("k"): Interval(50, 50), scale: Interval(40, 60)}
    others = (member("b", scale), member("m", scale))
    assert seat.see(*others, seconds=HOLD_S).timescale == walls("k")
    decision = seat.see(*others)
    assert (decision.timescale, decision.changed, decision.new_epoch) == (scale, Reason.MERGED, False)


def test_its_own_wall_clock_wins_a_tie() -> None:
    seat = Seat("k")
    seat.see(seconds=10)
    assert seat.see(member("b", carried(walls("k"), "b")), seconds=100).timescale == walls("k")


def test_a_suspended_origin_keeps_its_wall_clock_and_a_carrier_loses_what_it_carried() -> None:
    seat = Seat("k")
    seat.see(member("m", walls("k")), seconds=10)
    seat.raw_era = 2
    decision = seat.see(member("m", walls("k")))
    assert decision.timescale == replace(walls("k"), keeper_raw_era=2)
    assert (decision.changed, decision.new_epoch) == (Reason.RAW_CLOCK_BEGAN_ANEW, False)

    carrier = follower_of("k", "m")
    carrier.see(seconds=GONE_S + STEP_S + 3)
    carrier.raw_era = 2
    decision = carrier.see()
    assert (decision.timescale, decision.changed) == (None, Reason.RAW_CLOCK_BEGAN_ANEW)


def test_followers_go_with_an_origin_that_was_suspended_but_not_every_time() -> None:
    seat = follower_of("k", "m")
    eras = []
    for era in range(2, 8):
        again = replace(walls("k"), keeper_raw_era=era)
        seat.bounds[again] = Interval(150, 250)
        if seat.last is not None and seat.last.timescale is not None:
            seat.bounds[seat.last.timescale] = Interval(100, 300)
        decision = seat.see(replace(member("k", again), raw_era=era), seconds=STEP_S + 2)
        assert decision.timescale is not None
        eras.append(decision.timescale.keeper)
    assert eras[:3] == ["k", "k", "k"]
    assert eras[-1] == "m", "then it is carried on without it"


# -- UTC


def test_utc_needs_more_claims_than_may_lie_this_nodes_own_included() -> None:
    seat = Seat("m")
    seat.utc = True
    decision = seat.see(member("k", walls("k")), seconds=100)
    assert (decision.reference, decision.utc_claims) == ("k", 1)
    decision = seat.see(member("k", walls("k"), utc=True), seconds=HOLD_S)
    assert decision.reference == "k", "not in a hurry"
    decision = seat.see(member("k", walls("k"), utc=True), seconds=2)
    assert (decision.timescale, decision.reference, decision.utc_claims) == (UTC, "utc", 2)
    assert seat.reasons[-1] is Reason.UTC_APPEARED
    assert decision.epochs == 2


def test_a_node_alone_with_a_source_has_utc() -> None:
    seat = Seat("m")
    seat.utc = True
    assert seat.see(seconds=5).timescale == UTC


def test_who_has_utc_by_live_sources_does_not_leave_it_for_those_who_come_later() -> None:
    """They may be many, and agree, and be there for long."""
    seat = Seat("m")
    seat.utc = seat.utc_lives = True
    seat.see(seconds=5)
    others = [member(name, walls("a")) for name in ("a", "b", "c")]
    decision = seat.see(*others, seconds=2 * UTC_GONE_NS // S)
    assert (decision.timescale, decision.agreed) == (UTC, False)
    # In holdover it is kept as long as any UTC is, and then left.
    seat.utc_lives = False
    assert seat.see(*others, seconds=UTC_GONE_NS // S - 1).timescale == UTC
    assert seat.see(*others, seconds=10).timescale == walls("a")
    assert seat.reasons == [Reason.JOINED, Reason.UTC_VANISHED]


def test_a_node_that_was_alone_on_utc_begins_there() -> None:
    seat = Seat("m")
    seat.election = Election("m", interval_ns=S, on_utc=True)
    seat.utc = seat.utc_lives = True
    decision = seat.see(member("a", walls("a")), seconds=60)
    assert (decision.timescale, decision.epochs, seat.reasons) == (UTC, 1, [])


def test_a_newcomer_with_the_only_source_follows_what_is_there() -> None:
    """It never was on UTC; one claim is not enough, and the others are there already."""
    seat = Seat("m")
    seat.utc = seat.utc_lives = True
    assert seat.see(member("a", walls("a")), member("b", walls("a")), seconds=60).timescale == walls("a")


def test_utc_outlasts_a_source_that_is_away_for_a_while() -> None:
    seat = Seat("m")
    seat.see(member("a", UTC, utc=True), member("b", UTC, utc=True), seconds=5)
    decision = seat.see(member("a", UTC), member("b", UTC), seconds=UTC_GONE_NS // S - 1)
    assert (decision.timescale, decision.alive) == (UTC, False)
    seat.see(member("a", UTC, utc=True), member("b", UTC, utc=True))
    decision = seat.see(member("a", UTC), member("b", UTC), seconds=UTC_GONE_NS // S - 1)
    assert decision.timescale == UTC
    assert seat.reasons == [Reason.JOINED]
    # Then it is gone: the least name founds, the others follow.
    seat.see(member("a", walls("a")), member("b", UTC), seconds=10)
    assert seat.reasons == [Reason.JOINED, Reason.UTC_VANISHED]
    assert seat.last is not None
    assert seat.last.timescale == walls("a")


def test_a_claim_that_comes_and_goes_counts_for_less_and_less() -> None:
    seat = Seat("m")
    seat.utc = True
    times = 0
    for minute in range(240):
        claims = minute % 8 < 2
        before = seat.last.timescale if seat.last is not None else None
        seat.see(member("k", walls("k"), utc=claims), seconds=60)
        assert seat.last is not None
        times += (seat.last.timescale == UTC) and before != UTC
    assert times <= 8, "of 30 times that it was claimed"


# -- what a record is worth


def test_an_epoch_is_a_label() -> None:
    seat = follower_of("k", "m", "z")
    huge = walls("a", epoch=(1 << 32) - 1)
    members = member("k", walls("k")), member("z", walls("k")), member("a", huge)
    assert seat.see(*members, seconds=300).timescale == walls("k")


def test_a_founder_counts_on_from_what_more_than_may_lie_have_said() -> None:
    for epochs, founded in (((7,), 1), ((7, (1 << 32) - 1), 8), ((3, 5, (1 << 32) - 1), 6)):
        seat = Seat("b")
        # They follow a keeper that nobody has heard of for long.
        lost = [member(f"x{number}", walls("gone", epoch)) for number, epoch in enumerate(epochs)]
        decision = seat.see(*lost, seconds=GONE_S + 10)
        assert decision.timescale == walls("b", founded)


def test_a_timescale_that_can_not_be_is_nobodys_vote() -> None:
    seat = Seat("m")
    for false in (
        Timescale(1, "utc", "k", boot("k"), 1, 0),
        Timescale(0, "k", "utc", bytes(16), 0, None),
        Timescale(1, "a", "k", boot("k"), 1, None),
    ):
        assert not false.coherent
        decision = seat.see(member("k", false), member("z", false), seconds=30)
        assert decision.timescale == walls("m") or decision.timescale is None
        assert not decision.agreed


def test_stale_records_neither_vote_nor_keep_agreement_away() -> None:
    seat = follower_of("k", "m")
    members = member("k", walls("k")), member("z", walls("z"), age_s=100), member("y", walls("z"), age_s=100)
    decision = seat.see(*members, seconds=100)
    assert decision.timescale == walls("k")
    assert decision.agreed
    assert not seat.see(member("k", walls("k")), member("z", walls("z"))).agreed


def test_a_configured_reference_is_not_elected() -> None:
    seat = Seat("m", reference="x")
    decision = seat.see(member("a", walls("a")))
    assert (decision.reference, decision.alive, decision.agreed) == ("x", False, False)
    named = Timescale(0, "x", "x", boot("x"), 1)
    decision = seat.see(member("x", named))
    assert (decision.timescale, decision.alive, decision.agreed) == (named, True, True)
    # It is rebooted: its wall clock is what was asked for, whatever it reads now.
    decision = seat.see(replace(member("x", named), boot=bytes(16)))
    assert (decision.reference, decision.new_epoch, decision.epochs) == ("x", False, 1)
    assert Seat("x", reference="x").see().timescale == named
    assert Seat("m", reference="utc").see(member("a", walls("a"))).timescale == UTC


NAMES = st.sampled_from(("a", "m", "z", "utc", "auto"))
TIMESCALES = st.builds(
    Timescale,
    st.integers(0, (1 << 32) - 1),
    NAMES,
    NAMES,
    st.sampled_from((bytes(16), boot("a"), boot("m"))),
    st.integers(0, 2),
    st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
) | st.just(UTC)
MEMBERS = st.lists(
    st.builds(
        Member,
        NAMES,
        st.sampled_from((bytes(16), boot("a"), boot("z"))),
        st.integers(0, 2),
        st.integers(-S, 40 * S),
        st.none() | TIMESCALES,
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
)


@given(st.lists(st.tuples(MEMBERS, st.integers(1, 30), st.integers(0, 2)), max_size=12), st.integers(0, 2))
def test_whatever_records_say_a_decision_comes_of_it(seen: list[tuple[list[Member], int, int]], liars: int) -> None:
    seat = Seat("m", liars=liars)
    for members, seconds, raw_era in seen:
        seat.raw_era = raw_era
        epochs = 0 if seat.last is None else seat.last.epochs
        decision = seat.see(*members, seconds=seconds)
        assert decision.timescale is None or decision.timescale.coherent
        assert decision.reference == (None if decision.timescale is None else decision.timescale.origin)
        assert 0 <= decision.epochs - epochs <= seconds
        again = seat.see(*members)
        assert (again.changed is None) == (again.timescale == decision.timescale)


# -- whole meshes


def names(count: int, pick: random.Random) -> list[str]:
    made = [f"n{number:03d}" for number in range(count)]
    pick.shuffle(made)
    return made


def disturb(world: World, pick: random.Random, times: int) -> None:
    """Restarts, reboots, suspends, departures, newcomers, partitions, sources of UTC."""
    for number in range(times):
        name = pick.choice(sorted(world.nodes))
        what = pick.choice(("down", "daemon", "reboot", "suspend", "part", "heal", "new", "utc"))
        if what == "down":
            world.nodes[name].up = False
        elif what in ("daemon", "reboot"):
            world.restart(name, boot=what == "reboot")
        elif what == "suspend":
            world.suspend(name)
        elif what == "part":
            sides = {node: pick.randint(0, 1) for node in world.nodes}
            world.cut = lambda node, sides=sides: sides.get(node, 0)  # type: ignore[misc]
        elif what == "heal":
            world.cut = lambda node: 0
        elif what == "new":
            world.add(f"a{number}", pick.sample(sorted(world.nodes), min(2, len(world.nodes))))
        else:
            world.nodes[name].utc = not world.nodes[name].utc
        world.run(pick.randint(1, 60))


def check_changes(world: World) -> None:
    """No change moved published time by more than its published uncertainty, unless it said so and why."""
    for change in world.changes:
        decision = change.decision
        if decision.new_epoch:
            # A hand-over too, if the successor's clock is beyond what this node knew: bounds of different nodes differ.
            apart = change.was is None or change.will is None or change.was.intersect(change.will) is None
            assert apart or decision.changed in (
                Reason.MERGED,
                Reason.UTC_APPEARED,
                Reason.UTC_VANISHED,
                Reason.LOST,
            ), change
            continue
        if change.published_ns is None or decision.timescale is None or change.was is None:
            continue
        assert change.will is not None, change
        uncertainty_ns = change.was.farthest(change.published_ns)
        moved_ns = abs(change.will.clamp(change.published_ns) - change.published_ns)
        assert moved_ns <= uncertainty_ns, change
        # And the clocks themselves are as near as both bounds say.
        old, new = change.old, decision.timescale
        assert old is not None
        before, after = world.value_ns(old, change.at_ns), world.value_ns(new, change.at_ns)
        if before is not None and after is not None and decision.changed is Reason.TOOK_OVER:
            assert abs(after - before) <= uncertainty_ns, change


@pytest.mark.parametrize("seeds", first(1, (range(5), *(range(begin, begin + 15) for begin in range(5, 200, 15)))))
def test_once_changes_stop_all_name_one_timescale(seeds: range) -> None:
    for seed in seeds:
        pick = random.Random(seed)
        world = World(seed)
        world.mesh(names(pick.choice((2, 3, 4, 5, 6, 8, 10)), pick))
        world.run(20)
        disturb(world, pick, pick.randint(1, 6))
        if pick.random() < 0.5:
            world.cut = lambda node: 0
        had_utc = any(node.timescale == UTC for node in world.nodes.values())
        most = UTC_LOST_ROUNDS if had_utc else SETTLED_ROUNDS
        rounds = world.until_settled(most)
        assert rounds < most, f"seed {seed}"
        before = len(world.changes)
        world.run(60)
        assert len(world.changes) == before, f"seed {seed}: {world.changes[before:]}"
        for node in world.nodes.values():
            assert not node.up or (node.decision is not None and node.decision.agreed), f"seed {seed}"
        check_changes(world)


@pytest.mark.parametrize(("seed", "count"), first(1, [(0, 30), (1, 60)]))
def test_the_same_in_larger_meshes(seed: int, count: int) -> None:
    pick = random.Random(1_000 + seed)
    world = World(seed)
    world.mesh(names(count, pick))
    world.run(20)
    disturb(world, pick, 2)
    world.cut = lambda node: 0
    most = UTC_LOST_ROUNDS if any(node.timescale == UTC for node in world.nodes.values()) else SETTLED_ROUNDS
    assert world.until_settled(most) < most
    check_changes(world)


@pytest.mark.parametrize("seed", first(2, (5, 6, 0, 1, 2, 3, 4, 7)))
def test_newcomers_never_displace_a_living_reference(seed: int) -> None:
    pick = random.Random(seed)
    world = World(seed)
    established = names(pick.randint(2, 8), pick)
    world.mesh(established)
    assert world.until_settled(SETTLED_ROUNDS) < SETTLED_ROUNDS
    (reference,) = {node.timescale for node in world.nodes.values()}
    for number in range(3 * len(established)):
        world.add(f"a{number:02d}", pick.sample(sorted(world.nodes), 1))
        world.run(pick.randint(0, 3))
    world.run(60)
    assert {node.timescale for node in world.nodes.values()} == {reference}
    assert all(change.decision.changed in (Reason.JOINED, Reason.FOUNDED) for change in world.changes)


@pytest.mark.parametrize("seed", first(4, range(12)))
def test_when_a_keeper_dies_time_goes_on_without_a_new_epoch(seed: int) -> None:
    """Keeper after keeper, in one connected mesh: the name stays, and nobody's published time may move."""
    pick = random.Random(seed)
    world = World(seed)
    members = names(pick.randint(4, 12), pick)
    world.mesh(members)
    for place, name in enumerate(members):
        for further in (1, 2):  # a ring, and every second one: two may go
            world.links.add(frozenset((name, members[(place + further) % len(members)])))
    world.run(40)
    assert world.settled()
    (origin,) = {node.timescale.origin for node in world.nodes.values() if node.timescale is not None}
    for _ in range(2):
        (keeper,) = {node.timescale.keeper for node in world.nodes.values() if node.up and node.timescale is not None}
        world.nodes[keeper].up = False
        assert world.until_settled(60) < 60
    late = [change for change in world.changes if change.decision.changed not in (Reason.JOINED, Reason.FOUNDED)]
    assert {change.decision.changed for change in late} <= {Reason.TOOK_OVER, Reason.HANDED_OVER}
    assert not [change for change in late if change.decision.new_epoch]
    assert {node.timescale.origin for node in world.nodes.values() if node.timescale is not None} == {origin}
    check_changes(world)


# -- a liar


@pytest.mark.parametrize("lie", election_lies.ALL, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("seed", first(1, (3, 0, 1, 2)))
def test_one_liar_can_neither_keep_the_others_apart_nor_move_them_on_and_on(lie: Lie, seed: int) -> None:
    pick = random.Random(seed)
    honest = names(pick.choice((3, 4, 5, 6)), pick)
    liar = "a000" if seed % 2 else "z000"
    world = World(seed)
    members = list(honest)
    members.insert(pick.randint(0, len(honest)), liar)
    world.mesh(members)
    for pair in pairwise(honest):
        world.links.add(frozenset(pair))  # the liar does not hold the mesh together
    if "utc" in lie.__name__:
        world.nodes[honest[0]].utc = True
    if seed >= 2:
        world.corrupt(liar, lie)
    world.run(60)
    world.corrupt(liar, lie)
    if pick.random() < 0.5:
        world.restart(pick.choice(honest), boot=True)
    else:
        sides = {node: pick.randint(0, 1) for node in world.nodes}
        world.cut = lambda node, sides=sides: sides[node]  # type: ignore[misc]
        world.run(60)
        world.cut = lambda node: 0
    most = 2 * SETTLED_ROUNDS
    assert world.until_settled(most) < most
    before = len(world.changes)
    world.run(240)
    assert world.settled()
    changes = Counter(change.node for change in world.changes[before:])
    assert max((count for node, count in changes.items() if node != liar), default=0) <= 2
    check_changes(world)
