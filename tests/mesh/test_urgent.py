"""The record of the timescale's keeper goes first: all must see that it lives."""

from __future__ import annotations

from skewd.interval import Interval
from skewd.records import Record, RecordStore, decode, private_key, public_key_of, sign, unbundle

SECOND = 1_000_000_000
ATTACHMENT = 1_000


def signed(owner: str, sequence: int) -> bytes:
    key = private_key(owner.encode().ljust(32, b"."))
    record = Record(
        owner=owner,
        public_key=public_key_of(key),
        boot=owner.encode().ljust(16, b"."),
        raw_era=1,
        era=1,
        sequence=sequence,
        raw_ns=sequence * SECOND,
        wall_minus_raw=Interval(0, 100),
        wall_slew_ppb=1_000,
        max_drift_ppm=100,
        max_wander_ppb_per_s=10,
    )
    return sign(record, key)


def store_of_twenty() -> RecordStore:
    store = RecordStore("here")
    store.put_own(signed("here", 1))
    for number in range(20):
        store.accept(signed(f"n{number:02}", 1), first_hand_owner=f"n{number:02}", received_raw_ns=SECOND)
    return store


def sent(store: RecordStore, peer: str) -> list[str]:
    attachment = store.next_for(peer, ATTACHMENT)
    return [decode(data).owner for data in unbundle(attachment[38:])]


def test_a_new_version_of_the_keeper_is_in_the_next_message_to_each_peer_once() -> None:
    store = store_of_twenty()
    store.urgent = "n07"
    for sequence in (2, 3):
        store.accept(signed("n07", sequence), first_hand_owner="n07", received_raw_ns=sequence * SECOND)
        for peer in ("n01", "n02", "n03"):
            assert "n07" in sent(store, peer)
    assert "n07" not in sent(store, "n07"), "it knows itself"
    told = [sent(store, "n01") for _ in range(6)]
    assert sum("n07" in owners for owners in told) <= 1, "the others have their turn, too"


def test_the_keeper_itself_says_so_in_every_message() -> None:
    store = store_of_twenty()
    assert sum("here" in sent(store, "n01") for _ in range(9)) < 9
    store.urgent = "here"
    assert all("here" in sent(store, "n02") for _ in range(9))


def test_everybody_else_keeps_their_turn() -> None:
    """Whatever is in each message: no owner is passed on once and never again."""
    for urgent in ("here", "n07"):
        store = store_of_twenty()
        store.urgent = urgent
        told: dict[str, int] = {}
        for sequence in range(2, 80):
            store.accept(signed("n07", sequence), first_hand_owner="n07", received_raw_ns=sequence * SECOND)
            owners = sent(store, "n01")
            assert len(owners) == len(set(owners)), "nobody twice in one message"
            for owner in owners:
                told[owner] = told.get(owner, 0) + 1
        others = [f"n{number:02}" for number in range(20) if number not in (1, 7)]
        assert min(told.get(name, 0) for name in others) >= 3


def test_signatures_are_checked_on_a_raw_clock_below_zero_as_on_any_other() -> None:
    store = RecordStore("here", checks_per_s=10)
    begin = -(10**15)
    for second in range(100):
        data = signed("far", second + 1)
        outcome = store.accept(data, first_hand_owner="near", received_raw_ns=begin + second * SECOND)
        assert type(outcome).__name__ == "Accepted", outcome
