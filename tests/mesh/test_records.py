"""Records: what is signed, what is refused and why, how much is kept, and how fast they spread."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd import record_store, records
from skewd.bounds.carry import Claim
from skewd.bounds.compose import clock_tag
from skewd.election import Timescale
from skewd.interval import Interval
from skewd.limits import RAW_MAX_NS, RAW_OFFSET_MAX_NS, SCALE_MAX_NS, WIDTH_MAX_NS
from skewd.record_store import PINS_MAX, PROOF_TIMES, RECENT_MAX, Accepted, Pin, Reason, RecordStore, Refused
from skewd.records import (
    BYTES_MAX,
    EDGES_MAX,
    Edge,
    Record,
    RecordError,
    bundle,
    decode,
    private_key,
    public_key_of,
    sign,
    unbundle,
    verify,
)
from tests.mesh.gossip import ROOM, Gossip

pytest.importorskip("cryptography", reason="skewd[mesh] is not installed")

SECOND = 1_000_000_000
BOOT = bytes(range(16))


class Owner:
    """A node that can sign."""

    def __init__(self, name: str, *, seed: int | None = None) -> None:
        self.name = name
        self.key = private_key(random.Random(name if seed is None else seed).randbytes(32))
        self.public_key = public_key_of(self.key)
        self.boot = BOOT

    @property
    def tag(self) -> bytes:
        return clock_tag(self.name, self.public_key, self.boot, 1)

    def record(self, sequence: int = 1, *, about: tuple[bytes, ...] = (), boot: bytes | None = None) -> Record:
        claim = Claim(Interval(-5, 5), Interval(-10, 10), 200_020, 21)
        return Record(
            owner=self.name,
            public_key=self.public_key,
            boot=self.boot if boot is None else boot,
            raw_era=1,
            era=1,
            sequence=sequence,
            raw_ns=sequence * SECOND,
            wall_minus_raw=Interval(100, 300),
            wall_slew_ppb=500_000,
            max_drift_ppm=100,
            max_wander_ppb_per_s=10,
            edges=tuple(Edge(tag, claim) for tag in about),
        )

    def signed(self, sequence: int = 1, *, about: tuple[bytes, ...] = (), boot: bytes | None = None) -> bytes:
        return sign(self.record(sequence, about=about, boot=boot), self.key)


def give(store: RecordStore, data: bytes, via: str | None = "relay", now: int = SECOND) -> Accepted | Refused:
    return store.accept(data, first_hand_owner=via, received_raw_ns=now)


def reason(outcome: Accepted | Refused) -> str:
    return outcome.reason if isinstance(outcome, Refused) else "accepted"


# -- layout ------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9._-]{1,63}", fullmatch=True).filter(lambda name: name not in ("utc", "auto"))
stamps = st.integers(-RAW_MAX_NS, RAW_MAX_NS)
u32 = st.integers(0, (1 << 32) - 1)


def intervals(most_ns: int) -> st.SearchStrategy[Interval]:
    lows = st.integers(-most_ns, most_ns - WIDTH_MAX_NS)
    return st.builds(lambda low, width: Interval(low, low + width), lows, st.integers(0, WIDTH_MAX_NS))


@st.composite
def claims(draw: st.DrawFn, most_ns: int = RAW_OFFSET_MAX_NS) -> Claim:
    limit = draw(st.integers(0, 250_000_000))
    low, high = sorted((draw(st.integers(-limit, limit)), draw(st.integers(-limit, limit))))
    return Claim(draw(intervals(most_ns)), Interval(low, high), limit, draw(u32))


scale_times = st.none() | st.integers(-SCALE_MAX_NS, SCALE_MAX_NS)
timescales = st.builds(
    Timescale, u32, names, names, st.binary(min_size=16, max_size=16), u32, scale_times
)
KEY = private_key(bytes(range(32)))


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    tags = draw(st.lists(st.binary(min_size=12, max_size=12), unique=True, max_size=EDGES_MAX))
    return Record(
        owner=draw(names),
        public_key=public_key_of(KEY),
        boot=draw(st.binary(min_size=16, max_size=16)),
        raw_era=draw(u32),
        era=draw(u32),
        sequence=draw(st.integers(0, (1 << 64) - 1)),
        raw_ns=draw(stamps),
        wall_minus_raw=draw(intervals(SCALE_MAX_NS)),
        wall_slew_ppb=draw(st.integers(0, 1_000_000_000)),
        max_drift_ppm=draw(st.integers(0, 100_000)),
        max_wander_ppb_per_s=draw(st.integers(0, 1_000_000_000)),
        utc=draw(st.none() | claims(SCALE_MAX_NS)),
        timescale=draw(st.none() | timescales),
        edges=tuple(Edge(tag, draw(claims())) for tag in tags),
    )


@settings(max_examples=60, deadline=None)
@given(record=any_record())
def test_a_record_is_read_as_it_was_written_and_stays_small(record: Record) -> None:
    data = sign(record, KEY)
    assert len(data) <= BYTES_MAX
    assert decode(data) == record
    assert decode(data).clock == record.clock
    assert verify(data, record.public_key)


def test_the_largest_record_fits_into_a_message() -> None:
    name = "n" * 63
    farthest = Interval(-RAW_OFFSET_MAX_NS, WIDTH_MAX_NS - RAW_OFFSET_MAX_NS)
    claim = Claim(farthest, Interval(-5, 5), 250_000_000, (1 << 32) - 1)
    record = replace(
        Owner(name).record(),
        owner=name,
        public_key=public_key_of(KEY),
        utc=claim,
        timescale=Timescale(1, name, name, BOOT, 1, -SCALE_MAX_NS),
        edges=tuple(Edge(bytes([index] * 12), claim) for index in range(EDGES_MAX)),
    )
    data = sign(record, KEY)
    assert len(data) <= BYTES_MAX
    store = RecordStore(name)
    store.put_own(data)
    assert data in store.next_for("x", ROOM)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=1_200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    store = RecordStore("me")
    assert reason(give(store, data)) == Reason.MALFORMED
    store.receive(data, first_hand_owner="x", received_raw_ns=1)
    unbundle(data)
    assert len(store.next_for("x", ROOM)) <= ROOM


@settings(max_examples=60, deadline=None)
@given(record=any_record(), at=st.integers(0, BYTES_MAX), flip=st.integers(1, 255), cut=st.integers(0, BYTES_MAX))
def test_tampered_and_truncated_records_are_refused(record: Record, at: int, flip: int, cut: int) -> None:
    data = sign(record, KEY)
    altered = bytearray(data)
    altered[at % len(data)] ^= flip
    store = RecordStore("me")
    assert reason(give(store, bytes(altered))) in (Reason.MALFORMED, Reason.BAD_SIGNATURE)
    assert reason(give(store, data[: cut % len(data)])) == Reason.MALFORMED
    assert reason(give(store, data + b"\0")) == Reason.MALFORMED
    assert len(store) == 0
    assert store.pins() == {}


def test_what_no_record_can_carry_is_an_error_when_it_is_made() -> None:
    record = Owner("a").record()
    claim = Claim(Interval(0, 1), Interval(0, 0), 1, 1)
    for change, named in (
        ({"owner": "a b"}, "node's name"),
        ({"owner": "utc"}, "node's name"),
        ({"sequence": -1}, "sequence"),
        ({"boot": b""}, "boot"),
        ({"raw_ns": RAW_MAX_NS + 1}, "raw_ns"),
        ({"wall_minus_raw": Interval(0, 1 << 48)}, "width"),
        ({"edges": tuple(Edge(bytes([index] * 12), claim) for index in range(13))}, "at most 12"),
        ({"edges": (Edge(bytes(12), claim),) * 2}, "two edges"),
        ({"edges": (Edge(bytes(8), claim),)}, "tag"),
        ({"timescale": Timescale(1, "a b", "a", BOOT, 1, None)}, "origin"),
        ({"max_drift_ppm": 100_001}, "max_drift_ppm"),
    ):
        with pytest.raises(RecordError, match=named):
            replace(record, **change)
    with pytest.raises(RecordError, match="another public key"):
        sign(record, KEY)


def test_the_wall_clock_is_carried_by_its_slew() -> None:
    record = Owner("a").record(sequence=10)
    assert record.wall_minus_raw_at(Interval(10 * SECOND, 10 * SECOND)) == Interval(100, 300)
    assert record.wall_minus_raw_at(Interval(9 * SECOND, 12 * SECOND)) == Interval(100 - 1_000_000, 300 + 1_000_000)


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(records.MeshExtraMissing, match=r"pip install 'skewd\[mesh\]'"):
        private_key(bytes(32))
    with pytest.raises(records.MeshExtraMissing):
        verify(bytes(100), bytes(32))


# -- the store ---------------------------------------------------------------------------------------------------


def test_the_newest_record_is_held_and_replays_are_stale() -> None:
    store, a = RecordStore("me"), Owner("a")
    old, new = a.signed(1), a.signed(2)
    assert reason(give(store, new)) == "accepted"
    assert reason(give(store, old)) == Reason.STALE
    assert reason(give(store, new)) == Reason.STALE
    assert store.records()["a"].sequence == 2
    # Of an older boot: still an older record.
    assert reason(give(store, a.signed(0, boot=bytes(16)))) == Reason.STALE
    assert store.counters["accepted"] == 1
    assert store.counters["stale"] == 3


def test_what_has_expired_does_not_come_back() -> None:
    store, a = RecordStore("me", expire_ns=10 * SECOND), Owner("a")
    data = a.signed(1)
    give(store, data, via="a")
    store.forget_departed(11 * SECOND)
    assert len(store) == 1
    store.forget_departed(12 * SECOND)
    assert len(store) == 0
    assert reason(give(store, data, now=13 * SECOND)) == Reason.STALE
    assert reason(give(store, a.signed(2), now=13 * SECOND)) == "accepted"


def test_a_key_is_pinned_and_another_one_is_refused_when_relayed() -> None:
    store, a, other = RecordStore("me"), Owner("a"), Owner("a", seed=99)
    give(store, a.signed(1), via="a")
    outcome = give(store, other.signed(5, boot=bytes(16)))
    assert reason(outcome) == Reason.KEY_CHANGED
    assert outcome.news is not None
    assert "a" in outcome.news
    assert store.records()["a"].public_key == a.public_key


def test_the_owner_itself_may_bring_another_key_on_a_new_boot_only() -> None:
    store, a, other = RecordStore("me"), Owner("a"), Owner("a", seed=99)
    give(store, a.signed(7), via="a")
    assert reason(give(store, other.signed(1), via="a")) == Reason.KEY_CHANGED
    outcome = give(store, other.signed(1, boot=bytes(16)), via="a")
    assert isinstance(outcome, Accepted)
    assert outcome.news is not None
    assert "new key" in outcome.news
    assert store.counters["key_changes"] == 1
    assert store.records()["a"].public_key == other.public_key
    # The former one speaks up again: two parties claim one name, and the pin stays.
    outcome = give(store, a.signed(8), via="a")
    assert reason(outcome) == Reason.KEY_CHANGED
    assert outcome.news is not None
    assert "two parties" in outcome.news
    assert store.contested == {"a"}


def test_a_replaced_pod_is_taken_again_once_the_former_key_is_silent() -> None:
    store, a, other = RecordStore("me", expire_ns=10 * SECOND), Owner("a"), Owner("a", seed=99)
    give(store, a.signed(7), via="a")
    assert reason(give(store, other.signed(1), via="a", now=5 * SECOND)) == Reason.KEY_CHANGED
    store.forget_departed(20 * SECOND)
    assert reason(give(store, other.signed(1), via="relay", now=20 * SECOND)) == Reason.KEY_CHANGED
    assert reason(give(store, other.signed(1), via="a", now=20 * SECOND)) == "accepted"


def test_a_key_seen_only_in_relayed_records_gives_way_to_the_owner_itself() -> None:
    store, a, forged = RecordStore("me"), Owner("a"), Owner("a", seed=99)
    give(store, forged.signed(1_000), via="liar")
    assert store.clock_of("a", BOOT, 1) is None
    assert reason(give(store, a.signed(1), via="liar")) == Reason.KEY_CHANGED
    assert reason(give(store, a.signed(1), via="a")) == "accepted"
    assert store.clock_of("a", BOOT, 1) == a.tag


def test_members_that_were_met_vouch_for_a_key() -> None:
    store, a, forged = RecordStore("me"), Owner("a"), Owner("a", seed=99)
    give(store, forged.signed(1_000), via="liar")
    give(store, Owner("b").signed(1, about=(a.tag,)), via="b")
    assert reason(give(store, a.signed(1), now=5 * SECOND)) == Reason.KEY_CHANGED  # one may lie
    give(store, Owner("c").signed(1, about=(a.tag,)), via="c")
    assert reason(give(store, a.signed(1), now=10 * SECOND)) == "accepted"
    assert store.records()["a"].public_key == a.public_key
    # Those who were not met vouch for nobody.
    store = RecordStore("me")
    give(store, forged.signed(1_000), via="liar")
    for name in "bcde":
        give(store, Owner(name).signed(1, about=(a.tag,)), via="liar")
    assert reason(give(store, a.signed(1), now=10 * SECOND)) == Reason.KEY_CHANGED


def test_a_first_hand_record_is_of_the_boot_of_the_exchange() -> None:
    store, a = RecordStore("me"), Owner("a")
    outcome = store.accept(a.signed(1), first_hand_owner="a", received_raw_ns=1, first_hand_boot=bytes(16))
    assert reason(outcome) == Reason.WRONG_BOOT
    outcome = store.accept(a.signed(1), first_hand_owner="a", received_raw_ns=1, first_hand_boot=BOOT)
    assert reason(outcome) == "accepted"


def test_a_relayed_record_that_its_owner_then_brings_counts_as_met() -> None:
    store, a = RecordStore("me"), Owner("a")
    data = a.signed(1)
    give(store, data)
    assert store.clock_of("a", BOOT, 1) is None
    assert reason(give(store, data, via="a")) == Reason.STALE
    assert store.clock_of("a", BOOT, 1) == a.tag
    assert "a" in store.confirmed


def test_restored_from_a_copy_a_node_is_taken_again_and_catches_up() -> None:
    store, a = RecordStore("me"), Owner("a")
    give(store, a.signed(900), via="a")
    assert reason(give(store, a.signed(3, boot=bytes(16)), via="relay")) == Reason.STALE
    assert reason(give(store, a.signed(3, boot=bytes(16)), via="a")) == "accepted"
    # And it hears of its own future from others, and goes on from there.
    own = RecordStore("a")
    own.put_own(a.signed(3, boot=bytes(16)))
    assert reason(give(own, a.signed(900))) == Reason.OWN
    assert own.next_sequence() == 901
    assert own.next_sequence(5_000) == 5_000


def test_own_records_of_another_key_are_told() -> None:
    store = RecordStore("a")
    store.put_own(Owner("a").signed(1))
    outcome = give(store, Owner("a", seed=99).signed(2))
    assert reason(outcome) == Reason.OWN
    assert outcome.news is not None
    assert "two nodes of one name" in outcome.news
    with pytest.raises(RecordError, match="above 1"):
        store.put_own(Owner("a").signed(1))
    with pytest.raises(RecordError, match="not this node's own"):
        store.put_own(Owner("b").signed(1))


def test_signatures_are_checked_at_a_limited_rate_and_neighbours_come_first() -> None:
    store = RecordStore("me", checks_per_s=10)
    outcomes = [reason(give(store, Owner(f"o{index}").signed(1))) for index in range(40)]
    assert outcomes.count("accepted") == 16  # 20 at once, less the quarter kept
    assert outcomes.count(Reason.BUSY) == 24
    assert reason(give(store, Owner("near").signed(1), via="near")) == "accepted"
    assert reason(give(store, Owner("late").signed(1), now=3 * SECOND)) == "accepted"


def test_a_flood_of_made_up_owners_leaves_room_for_real_ones() -> None:
    store = RecordStore("me", capacity=40, checks_per_s=1_000)
    real = [Owner(f"real{index}") for index in range(8)]
    for owner in real:
        give(store, owner.signed(1), via=owner.name)
    for index in range(200):
        give(store, Owner(f"fake{index}").signed(1), via="real0", now=(2 + index) * SECOND)
    assert len(store) <= 8 + 10
    assert {owner.name for owner in real} <= set(store.records())
    assert len(store.pins()) <= 8
    # A member that real ones know comes in, however many made-up ones knock.
    far = Owner("far")
    for owner in real[:2]:
        give(store, owner.signed(2, about=(far.tag,)), via=owner.name, now=300 * SECOND)
    assert reason(give(store, far.signed(1), now=302 * SECOND)) == "accepted"
    for index in range(200, 300):
        give(store, Owner(f"fake{index}").signed(1), via="real0", now=(102 + index) * SECOND)
    assert "far" in store.records()
    assert "far" in store.confirmed
    assert store.counters["evicted"] > 100


def test_a_full_store_takes_nobody_but_in_place_of_the_unconfirmed() -> None:
    store = RecordStore("me", capacity=4)
    for name in "abc":
        give(store, Owner(name).signed(1), via=name)
    give(store, Owner("x").signed(1))
    assert reason(give(store, Owner("y").signed(1), via="y")) == "accepted"
    assert set(store.records()) == set("abcy")
    assert reason(give(store, Owner("z").signed(1), via="z")) == Reason.FULL


def test_pins_are_bounded() -> None:
    pins = {f"p{index}": Pin(bytes(32), True, 1) for index in range(PINS_MAX + 50)}
    store = RecordStore("me", pins=pins)
    for name in "abc":
        give(store, Owner(name).signed(1), via=name)
    for sequence in range(2, 60):
        give(store, Owner("a").signed(sequence), via="a")
    assert len(store.pins()) <= PINS_MAX
    assert {"a", "b", "c"} <= set(store.pins())


def test_a_raw_clock_that_jumped_empties_the_store_and_keeps_the_pins() -> None:
    store, a = RecordStore("me"), Owner("a")
    give(store, a.signed(5), via="a", now=10**15)
    store.forget_clock()
    assert len(store) == 0
    assert reason(give(store, a.signed(5), now=5)) == Reason.STALE
    assert reason(give(store, a.signed(6), now=5)) == "accepted"


# -- passing on --------------------------------------------------------------------------------------------------


def test_bundles_hold_what_was_put_in() -> None:
    parts = [b"a" * 10, b"b" * BYTES_MAX]
    assert unbundle(bundle(parts)) == parts
    assert unbundle(bundle(parts)[:-1]) == parts[:1]
    assert unbundle(b"\xff\xff") == []


def test_attachments_keep_to_their_room_and_are_not_sent_back() -> None:
    me, a = RecordStore("me"), Owner("a")
    me.put_own(Owner("me").signed(1))
    give(me, a.signed(1), via="a")
    for room in (0, 10, 100, 250, 400, ROOM):
        assert len(me.next_for("b", room)) <= room
    for _ in range(8):
        assert a.signed(1) not in me.next_for("a", ROOM)
    store = RecordStore("b")
    for _ in range(4):
        store.receive(me.next_for("b", ROOM), first_hand_owner="me", received_raw_ns=1)
    assert set(store.records()) == {"me", "a"}


def test_every_owner_is_given_once_before_any_twice() -> None:
    me = RecordStore("me")
    owners = [Owner(f"o{index}") for index in range(12)]
    data = {owner.signed(1): owner.name for owner in owners}
    for one in data:
        give(me, one)
    room = max(map(len, data)) + 2 + 40
    given = []
    for _ in range(24):
        given += [data[one] for one in unbundle(me.next_for("peer", room)[record_store._WANT.size :])]
    assert sorted(given[:12]) == sorted(data.values())
    assert sorted(given[12:]) == sorted(data.values())


def test_records_reach_everyone_within_rounds() -> None:
    gossip = Gossip(40)
    while not (gossip.complete() and all(len(store.confirmed) == 39 for store in gossip.stores)):
        gossip.step()
        assert gossip.round <= 30
    assert gossip.bytes_sent / gossip.messages <= ROOM


def test_departed_owners_are_forgotten_by_all() -> None:
    gossip = Gossip(12, k=4, edges=4)
    for store in gossip.stores:
        store._expire_ns = 10 * SECOND
    for _ in range(12):
        gossip.step()
    assert gossip.complete()
    gossip.down.add(3)
    for _ in range(40):
        gossip.step()
    gone = gossip.names[3]
    assert all(gone not in store.records() for index, store in enumerate(gossip.stores) if index != 3)


@pytest.mark.parametrize("raw_ns", [-(10**14), 10**14])
def test_signatures_are_checked_and_the_lacking_asked_for_whatever_the_raw_clock_reads(raw_ns: int) -> None:
    """A raw clock may begin anywhere; only differences of it mean anything."""
    store = RecordStore("here", checks_per_s=2)
    for sequence in range(1, 30):
        now = raw_ns + sequence * SECOND
        assert reason(give(store, Owner("one").signed(sequence), now=now)) == "accepted"
    told = store.next_for("peer", ROOM)
    other = RecordStore("peer")
    other.receive(told, first_hand_owner="here", received_raw_ns=raw_ns)
    give(other, Owner("one").signed(1), now=raw_ns)
    give(other, Owner("two").signed(1), now=raw_ns + 1)
    give(other, Owner("one").signed(2), now=raw_ns + 2)
    given = [decode(data).owner for data in unbundle(other.next_for("here", ROOM)[38:])]
    assert given[0] == "two", "what is held there already comes after what is lacking"


def test_own_records_go_out_with_the_first_two_messages_to_a_peer() -> None:
    """The first one is not fresh to a peer that was just started, so what is attached to it is lost."""
    store, mine = RecordStore("mine"), Owner("mine")
    store.next_for("peer", ROOM)  # before there is one
    for sequence in range(40):
        give(store, Owner(f"n{sequence}").signed())
    store.put_own(mine.signed())
    owners = [[decode(data).owner for data in unbundle(store.next_for("peer", ROOM)[38:])] for _ in range(2)]
    assert all("mine" in said for said in owners)
    assert "mine" in [decode(data).owner for data in unbundle(store.next_for(None, ROOM)[38:])]


def test_a_peers_clock_is_known_once_more_than_may_lie_vouch_for_it() -> None:
    """One that was met before it had a record, and is asked rarely, would be left out of every path for minutes."""
    store, met = RecordStore("mine", liars_max=1), Owner("met")
    assert store.clock_of("met", BOOT, 1) is None
    give(store, met.signed())
    assert store.clock_of("met", BOOT, 1) is None, "anybody may have made it"
    for index, name in enumerate(("one", "two")):
        give(store, Owner(name).signed(about=(met.tag,)), via=name)
        store.forget_departed(SECOND * (10 + 2 * index))
        assert (store.clock_of("met", BOOT, 1) == met.tag) == (index == 1)
    assert store.clock_of("met", bytes(16), 1) is None, "nobody vouches for another boot of it"


# -- two words for one number --------------------------------------------------------------------------------------


def two_faced() -> tuple[Owner, bytes, bytes]:
    """An owner and two records of its with one number."""
    a = Owner("a")
    return a, a.signed(5), a.signed(5, boot=b"another boot....")


@pytest.mark.parametrize("first_hand", [True, False])
def test_two_records_with_one_number_convict_their_owner(first_hand: bool) -> None:
    store = RecordStore("me")
    a, one, other = two_faced()
    assert reason(give(store, one, via="a" if first_hand else "relay")) == "accepted"
    assert store.equivocal == {}
    outcome = give(store, other, now=2 * SECOND)
    assert isinstance(outcome, Refused)
    assert outcome.reason == Reason.EQUIVOCAL
    assert outcome.news is not None
    assert store.equivocal == {"a": 2 * SECOND}
    # A proof counts once, in whichever order it comes again.
    for data in (one, other, one):
        assert reason(give(store, data, now=3 * SECOND)) == Reason.STALE
    assert store.equivocal == {"a": 2 * SECOND}
    assert reason(give(store, a.signed(6), via="a")) == "accepted"


def test_a_late_version_convicts_as_well() -> None:
    store = RecordStore("me")
    a, one, other = two_faced()
    for data in (one, a.signed(6), a.signed(7)):
        assert reason(give(store, data)) == "accepted"
    assert reason(give(store, other)) == Reason.EQUIVOCAL


def test_nor_is_it_needed_to_have_seen_either_when_it_was_new() -> None:
    store = RecordStore("me")
    a, one, other = two_faced()
    assert reason(give(store, a.signed(9))) == "accepted"
    assert reason(give(store, one)) == Reason.STALE
    assert reason(give(store, other)) == Reason.EQUIVOCAL


def test_nobody_is_framed() -> None:
    """A member that relays alters a record, or makes one up under the number: the signature is another's, or none."""
    a, one, other = two_faced()
    forged = other[:-64] + one[-64:]
    for order in ((one, forged), (forged, one), (forged, one, forged)):
        store = RecordStore("me")
        give(store, a.signed(4))
        outcomes = [reason(give(store, data)) for data in order]
        assert "accepted" in outcomes
        assert Reason.EQUIVOCAL not in outcomes
        assert store.equivocal == {}
    store = RecordStore("me")
    give(store, one)
    assert reason(give(store, Owner("a", seed=7).signed(5))) == Reason.KEY_CHANGED
    assert store.equivocal == {}
    # What is forged does not cover up what is true either.
    store = RecordStore("me")
    give(store, a.signed(4))
    for data in (forged, one, forged):
        give(store, data)
    assert reason(give(store, other)) == Reason.EQUIVOCAL


def test_both_halves_are_passed_on_until_each_peer_has_them() -> None:
    store, told = RecordStore("me"), RecordStore("peer")
    a, one, other = two_faced()
    give(store, a.signed(4))
    give(told, a.signed(6))
    give(store, one)
    assert reason(give(store, other)) == Reason.EQUIVOCAL
    for _ in range(4):
        told.receive(store.next_for("peer", 600), first_hand_owner="me", received_raw_ns=SECOND)
    assert set(told.equivocal) == {"a"}
    assert told.counters[Reason.EQUIVOCAL] == 1
    # And the owner is not told what is known of it.
    assert all(data not in store.next_for("a", 1000) for data in (one, other))
    given = [store.next_for("peer", 600) for _ in range(20)]
    assert sum(other in attachment for attachment in given) <= PROOF_TIMES


def test_what_is_remembered_is_bounded() -> None:
    store = RecordStore("me", checks_per_s=10**9)
    a = Owner("a")
    give(store, a.signed(1 << 20))
    for sequence in range(RECENT_MAX + 100):
        give(store, a.signed(sequence))
    assert len(store._recent) == RECENT_MAX


def test_an_owner_s_own_record_is_signed_by_the_key_that_it_speaks_under() -> None:
    store, a = RecordStore("me"), Owner("a")
    outcome = store.accept(a.signed(), first_hand_owner="a", received_raw_ns=SECOND, first_hand_key=bytes(32))
    assert reason(outcome) == Reason.WRONG_KEY
    outcome = store.accept(
        a.signed(), first_hand_owner="a", received_raw_ns=SECOND, first_hand_key=public_key_of(a.key)
    )
    assert reason(outcome) == "accepted"
