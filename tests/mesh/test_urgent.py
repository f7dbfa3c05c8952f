"""The record of the timescale's keeper goes first: all must see that it lives."""

from __future__ import annotations

from dataclasses import replace

from skewd.interval import Interval
from skewd.links.protocol import Proofs
from skewd.record_store import RecordStore
from skewd.records import Record, bundle, decode, private_key, public_key_of, sign, unbundle
from tests.mesh.fleet import Fleet

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


def test_the_keeper_is_in_the_next_message_to_each_peer_when_it_is_newer() -> None:
    store = store_of_twenty()
    store.urgent = "n07"
    for sequence in (4, 7):
        store.accept(signed("n07", sequence), first_hand_owner="n07", received_raw_ns=sequence * SECOND)
        for peer in ("n01", "n02", "n03"):
            assert any("n07" in sent(store, peer) for _ in range(3))
    assert "n07" not in sent(store, "n07"), "it knows itself"
    told = [sent(store, "n01") for _ in range(6)]
    assert sum("n07" in owners for owners in told) <= 2, "the others have their turn, too"


def test_news_of_keys_are_said_now_and_then_however_often_a_member_makes_them() -> None:
    said: list[str] = []
    fleet = Fleet(["n0", "n1", "n2"], 3)
    fleet.run(20)
    member = fleet.members["n0"]
    membership, now = member.membership, member.oscillator.raw(fleet.true_ns)
    membership._say = lambda text, warning: said.append(text)
    described = fleet.members["n1"].node.describe()
    for number in range(50):
        key = private_key(bytes([number + 1]) * 32)
        forged = replace(decode(signed("n2", 9)), public_key=public_key_of(key), sequence=1 << 50)
        attachment = bytes(38) + bundle([sign(forged, key)])
        membership.heard(Proofs(described, "udp", "n1", (), (), None, attachment), now + number * SECOND // 10)
    assert membership.store.counters["key_changed"] >= 50
    assert len(said) == 1
    assert "n2" in said[0]
