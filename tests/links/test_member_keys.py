"""One member is one member: what another member, with the mesh's key, can make a node believe of a third. Nothing."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.links import wire
from skewd.links.protocol import LinkProtocol, Received, Timebases
from skewd.links.wire import Kind
from skewd.member_keys import COMPUTED_PER_S, KEYS_MAX, SILENT_NS, TOLD_NS, MemberKeys, exchange_key, tag_of
from skewd.records import private_key, public_key_of
from tests.links.link_bench import KEY, Node, S, described, exchange, member_keys

MS = 1_000_000


def acquainted() -> tuple[Node, Node]:
    """Two nodes that know each other; the time is now 3 s."""
    a, b = Node("a"), Node("b")
    exchange(a, b, 1 * S)
    exchange(a, b, 2 * S)
    return a, b


def forged(kind: Kind, sender: Node, at_ns: int, **fields: Any) -> bytes:
    """What a member can make in another's name: all of it authentic under the key that all share."""
    fields = {"nonce": os.urandom(16), "sender": wire.packed(sender.me), "receiver": "b", **fields}
    return wire.draft(KEY.key_id, KEY.secret, kind=kind, **fields)(at_ns)


def resigned(data: bytes, **patches: bytes) -> bytes:
    """A message under the mesh's key, changed by a member: ``at_60=...`` replaces the bytes from there."""
    body = bytearray(data[:-16])
    for at, content in patches.items():
        begin = int(at.removeprefix("at_"))
        body[begin : begin + len(content)] = content
    return bytes(body) + wire._mac(KEY.secret, body, body[4])


def codes(node: Node, at_ns: int) -> list[tuple[str, str]]:
    assert node.member_keys is not None
    return [problem.identity for problem in node.member_keys.problems(at_ns)]


def nothing(received: Received) -> bool:
    return received.proofs is None and received.attachment == b""


class TestAnotherMember:
    """C holds the mesh's key, hears everything, and wants B to believe something of A."""

    def test_a_request_in_a_s_name_proves_nothing(self) -> None:
        a, b = acquainted()
        received = b.receive(forged(Kind.REQUEST, a, 3 * S - MS), "a", 3 * S)
        assert (nothing(received), received.error) == (True, "old_version")
        assert ("version-mismatch", "a") in codes(b, 3 * S)
        assert exchange(a, b, 4 * S)[0].error is None

    def test_nor_does_it_with_a_s_public_key(self) -> None:
        a, b = acquainted()
        assert a.member_keys is not None
        identity = a.member_keys.identity(b"", KEY.secret)
        received = b.receive(forged(Kind.REQUEST, a, 3 * S - MS, identity=identity), "a", 3 * S)
        assert (nothing(received), received.error) == (True, "unconfirmed")
        received = b.receive(forged(Kind.ONE_WAY, a, 3 * S - MS, identity=identity), "a", 3 * S)
        assert (nothing(received), received.error) == (True, "unbound")

    def test_an_answer_to_a_nonce_that_it_read_on_the_path(self) -> None:
        a, b = acquainted()
        exchange(b, a, 2 * S)
        nonce = wire.nonce_of(b.request("a", 3 * S))
        answer = {"answers": nonce, "received_ns": 3 * S}
        assert a.member_keys is not None
        for more, error in (
            ({}, "old_version"),
            ({"identity": a.member_keys.identity(b"", KEY.secret)}, "unbound"),
        ):
            received = b.receive(forged(Kind.REPLY, a, 3 * S + 1, **answer, **more), "a", 3 * S + MS)
            assert (nothing(received), received.error) == (True, error)

    def test_with_a_key_of_its_own_it_is_not_a(self) -> None:
        a, b = acquainted()
        c = Node("a", seed="another")
        assert nothing(exchange(c, b, 3 * S)[0])
        at_b = b.receive(c.request("b", 4 * S), "a", 4 * S)
        assert (nothing(at_b), at_b.error, at_b.reply) == (True, "other_identity", None)
        assert ("duplicate-name", "a") in codes(b, 5 * S)
        # A itself is heard as ever, and when C is gone nothing is said any more.
        assert exchange(a, b, 6 * S)[0].error is None
        assert ("duplicate-name", "a") not in codes(b, 6 * S + TOLD_NS)

    def test_a_s_first_message_can_t_be_altered(self) -> None:
        """C sits on the path when A introduces itself, moves the send stamp and authenticates it anew."""
        a, b = Node("a"), Node("b")
        late = resigned(a.request("b", S), at_44=struct.pack(">q", S + 500 * MS))
        at_b = b.receive(late, "a", S + MS)
        at_a = a.receive(b.reply(at_b, S + MS), "b", S + 2 * MS)
        assert (nothing(at_a), at_a.error) == (True, "altered")
        # So A vouches for no such stamp: what B learns from the next exchanges holds none of it.
        for second in (2, 3, 4):
            at_b, at_a = exchange(a, b, second * S)
            for received in (at_b, at_a):
                if received.proofs is not None:
                    assert all(sent != S + 500 * MS for sent, _ in received.proofs.incoming)
        assert at_b.proofs is not None

    def test_nor_can_a_nonce_of_a_s_be_used_to_introduce_it_anew(self) -> None:
        """C swallows A's request and introduces A to B with the same nonce and a stamp of its own."""
        a, b = acquainted()
        assert a.member_keys is not None
        exchange(b, a, 2 * S + MS)
        nonce = wire.nonce_of(a.request("b", 3 * S))
        identity = a.member_keys.identity(b"", KEY.secret)
        false = forged(Kind.REQUEST, a, 3 * S + 500 * MS, nonce=nonce, identity=identity)
        at_b = b.receive(false, "a", 3 * S + MS)
        at_a = a.receive(b.reply(at_b, 3 * S + MS), "b", 3 * S + 2 * MS)
        assert (nothing(at_a), at_a.error) == (True, "altered")
        for second in (4, 5):
            at_b, _ = exchange(a, b, second * S)
            assert at_b.proofs is not None
            assert all(sent != 3 * S + 500 * MS for sent, _ in at_b.proofs.incoming)

    def test_a_s_words_are_not_replaced_by_a_downgrade(self) -> None:
        """A's introduction, stripped of its identity: B takes it for a node of the version before, if it never met A;
        the first time that A gets through, that is over for good."""
        a, b = Node("a"), Node("b")
        stripped = resigned(a.request("b", S), at_6=b"\0\0", at_276=bytes(44))
        assert b.receive(stripped, "a", S).error == "unconfirmed"
        exchange(a, b, 2 * S)
        exchange(a, b, 3 * S)
        assert b.receive(forged(Kind.REQUEST, a, 4 * S), "a", 4 * S).error == "old_version"

    def test_an_answer_for_another_key_is_not_taken(self) -> None:
        """C asks B under its own name and hands B's answer, or B's nonce, on as A's."""
        a, b = acquainted()
        c = Node("c")
        exchange(c, b, 3 * S)
        reply = b.reply(b.receive(c.request("b", 4 * S), "c", 4 * S), 4 * S)
        assert a.receive(reply, "b", 4 * S).error == "wrong_receiver"
        # A request of C's that answers a reply to A: no exchange of A's and C's stamps comes of it.
        nonce = wire.nonce_of(b.reply(b.receive(a.request("b", 5 * S), "a", 5 * S), 5 * S))
        assert c.member_keys is not None
        assert b.member_keys is not None
        mixed = wire.draft(
            KEY.key_id,
            KEY.secret,
            kind=Kind.REQUEST,
            nonce=bytes(15) + b"n",
            answers=nonce,
            received_ns=5 * S,
            sender=wire.packed(c.me),
            receiver="b",
            identity=c.member_keys.identity(b.member_keys.public_key, KEY.secret),
            pair=c.member_keys.secret_with(b.member_keys.public_key, KEY.secret),
        )(5 * S + 10)
        received = b.receive(mixed, "c", 5 * S + MS)
        assert received.proofs is not None
        assert (received.proofs.peer.name, received.proofs.outgoing) == ("c", ())

    def test_a_one_way_message_needs_its_sender_s_signature(self) -> None:
        shared = Timebases()
        a, b, topic = Node("a"), Node("b", timebases=shared), Node("b", timebases=shared, seed="topic")
        exchange(b, a, S)
        data = a.protocol.prepare_one_way()(2 * S)
        received = topic.receive(data, "topic", 2 * S + MS)
        assert received.proofs is not None
        assert (received.proofs.incoming, received.proofs.public_key) == (
            ((2 * S, 2 * S + MS),),
            a.member_keys and a.member_keys.public_key,
        )
        later = resigned(a.protocol.prepare_one_way()(3 * S), at_44=struct.pack(">q", 3 * S + MS))
        assert topic.receive(later, "topic", 3 * S + 2 * MS).error == "bad_mac"
        assert topic.receive(forged(Kind.ONE_WAY, a, 4 * S, receiver=""), "topic", 4 * S).error == "old_version"

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(Kind), st.integers(0, 3 * S), st.booleans(), st.booleans(), st.binary(max_size=64))
    def test_whatever_it_sends(self, kind: Kind, at_ns: int, keyed: bool, answering: bool, attachment: bytes) -> None:
        a, b = acquainted()
        assert a.member_keys is not None
        nonce = wire.nonce_of(b.request("a", 2 * S + 5 * MS))
        data = forged(
            kind,
            a,
            at_ns,
            attachment=attachment,
            identity=a.member_keys.identity(b"", KEY.secret) if keyed else None,
            **({"answers": nonce} if answering and kind is not Kind.ONE_WAY else {}),
        )
        assert nothing(b.receive(data, "a", 3 * S))


class TestKeys:
    def test_both_ends_and_nobody_else_have_a_pair_s_secret(self) -> None:
        a, b, c = (member_keys(name) for name in "abc")
        secret = a.secret_with(b.public_key, KEY.secret)
        assert secret == b.secret_with(a.public_key, KEY.secret)
        assert secret != c.secret_with(a.public_key, KEY.secret)
        assert secret != a.secret_with(b.public_key, bytes(32))

    @given(st.binary(min_size=32, max_size=32))
    @settings(max_examples=50, deadline=None)
    def test_the_curve_s_two_forms_are_one_key(self, secret: bytes) -> None:
        key = private_key(secret)
        ours = MemberKeys("a", key)
        other = X25519PrivateKey.generate()
        there = other.public_key().public_bytes_raw()
        here = X25519PublicKey.from_public_bytes(exchange_key(public_key_of(key)))
        assert other.exchange(here) == ours._exchange.exchange(X25519PublicKey.from_public_bytes(there))

    @pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
    def test_a_key_that_shares_a_secret_with_everybody_is_none(self, point: bytes) -> None:
        b = Node("b")
        identity = wire.Identity(point, bytes(8), wire.admission_of(point, KEY.secret))
        data = forged(Kind.REQUEST, Node("a"), S, identity=identity)
        assert b.receive(data, "a", S).error in ("bad_mac", "malformed")

    def test_a_stranger_has_nothing_computed(self) -> None:
        """Made-up keys under version 3 cost a look and one short MAC."""
        b = Node("b")
        assert b.member_keys is not None
        for number in range(1000):
            identity = wire.Identity(os.urandom(32), tag_of(b.member_keys.public_key), os.urandom(4))
            data = forged(Kind.REQUEST, Node("a", old=True), S, identity=identity, pair=bytes(32))
            b.receive(data, f"x{number}", S + number)
        assert len(b.member_keys) == 0
        assert b.protocol.counters["bad_mac"] == 1000

    def test_a_member_has_so_many_computed_a_second(self) -> None:
        b = Node("b")
        assert b.member_keys is not None
        for number in range(5 * COMPUTED_PER_S):
            key = os.urandom(32)
            identity = wire.Identity(key, bytes(8), wire.admission_of(key, KEY.secret))
            b.receive(forged(Kind.REQUEST, Node("a", old=True), S, identity=identity), f"x{number}", S + number)
        assert len(b.member_keys) <= 2 * COMPUTED_PER_S
        assert b.protocol.counters["rate_limited"] >= 3 * COMPUTED_PER_S

    def test_tables_are_bounded(self) -> None:
        b = member_keys("b")
        for number in range(KEYS_MAX + 10):
            b.confirm(f"n{number}", bytes(32), S)
            b.confirm(f"o{number}", b"", S)
        assert len(b) == KEYS_MAX

    def test_a_message_for_a_key_that_this_node_had_once_heals(self) -> None:
        """B lost its disk. A asks it under the pair's key of before, is not understood, and introduces itself anew."""
        a, _ = acquainted()
        b2 = Node("b", seed="another disk")
        b2.change(boot=b"the second boot.")
        begin = 3 * S + SILENT_NS
        errors = []
        for number in range(5):
            at_b = b2.receive(a.request("b", begin + number * S), "a", begin + number * S)
            errors.append(at_b.error)
            if at_b.reply is not None:
                at_a = a.receive(b2.reply(at_b, begin + number * S), "b", begin + number * S)
        assert errors == ["former_identity"] * 3 + ["unconfirmed", None]
        assert at_a.proofs is not None
        assert b2.member_keys is not None
        assert at_a.proofs.public_key == b2.member_keys.public_key
        assert a.member_keys is not None
        assert a.member_keys.key_changes == 1

    def test_answers_that_get_lost_do_not_silence_the_requests(self) -> None:
        a, b = acquainted()
        used = [b.receive(a.request("b", second * S), "a", second * S).proofs is not None for second in range(3, 23)]
        assert sum(used) >= 10

    def test_pins_are_kept(self) -> None:
        a, b = acquainted()
        assert b.member_keys is not None
        kept = b.member_keys.pins()
        again = Node("b", options={"member_keys": member_keys("b", pinned=kept)})
        again.receive(a.request("b", 3 * S), "a", 3 * S)
        impostor = Node("a", seed="another")
        exchange(impostor, again, 4 * S)
        assert again.receive(impostor.request("b", 5 * S), "a", 5 * S).error == "other_identity"
        exchange(a, again, 6 * S)
        assert exchange(a, again, 7 * S)[0].proofs is not None


class TestNames:
    def test_a_double_of_this_node_s_name_is_seen_by_its_first_message(self) -> None:
        a, double = Node("a"), Node("a", seed="another")
        # On one machine even the boot is the same.
        assert a.receive(double.request("x", S), "x", S).error == "duplicate_name"
        assert ("duplicate-name", "a") in codes(a, S)
        assert ("duplicate-name", "a") not in codes(a, S + TOLD_NS + 1)

    def test_a_copy_of_this_node_with_its_key_too(self) -> None:
        a, copy = Node("a"), Node("a")
        copy.change(boot=b"another boot....")
        assert a.receive(copy.request("x", S), "x", S).error == "duplicate_name"


class TestVersions:
    @pytest.mark.parametrize("asker_is_old", [False, True])
    def test_the_version_before_is_understood_and_said(self, asker_is_old: bool) -> None:
        old, new = Node("o", old=True), Node("n")
        asker, answerer = (old, new) if asker_is_old else (new, old)
        for second in (1, 2, 3):
            at_answerer, at_asker = exchange(asker, answerer, second * S)
        assert at_answerer.proofs is not None
        assert at_asker.proofs is not None
        assert codes(new, 4 * S) == [("old-protocol", "o")]
        assert codes(new, 4 * S + TOLD_NS) == []

    def test_old_readers_of_a_topic_understand_new_writers(self) -> None:
        old, new = Node("o", old=True), Node("n")
        exchange(old, new, S)
        data = new.protocol.prepare_one_way()(2 * S)
        assert old.receive(data, "topic", 2 * S + MS).proofs is not None

    def test_once_upgraded_the_version_before_is_over(self) -> None:
        old, new = Node("o", old=True), Node("n")
        exchange(new, old, 1 * S)
        exchange(new, old, 2 * S)
        upgraded = Node("o")
        exchange(new, upgraded, 3 * S)
        assert codes(new, 4 * S) == []
        received = new.receive(old.request("n", 4 * S), "o", 4 * S)
        assert (nothing(received), received.error) == (True, "old_version")
        # Both sides say so: the older one counts and logs a message of a newer version.
        assert old.receive(new.reply(received, 4 * S), "n", 4 * S).error == "bad_version"
        assert codes(new, 4 * S) == [("version-mismatch", "o")]

    def test_it_can_be_refused_from_the_start(self) -> None:
        old, new = Node("o", old=True), Node("n", options={"member_keys": member_keys("n", accept_old=False)})
        received = new.receive(old.request("n", S), "o", S)
        assert received.error == "old_version"
        assert old.receive(new.reply(received, S), "n", S).error == "bad_version"
        assert exchange(new, old, 2 * S)[1].error == "old_version"

    @pytest.mark.parametrize("version", [1, 4, 255])
    def test_a_version_further_away_is_said_with_its_address(self, version: int) -> None:
        a, b = acquainted()
        data = bytearray(a.request("b", 3 * S))
        data[4] = version
        assert b.receive(bytes(data), "192.0.2.7:9957", 3 * S).error == "bad_version"
        assert b.member_keys is not None
        problem = b.member_keys.problems(3 * S)[0]
        assert problem.identity == ("version-mismatch", "192.0.2.7:9957")
        assert f"version {version} " in problem.text
        assert b.member_keys.problems(3 * S + TOLD_NS + 1) == []

    def test_a_flood_of_versions_is_limited_and_told_of_a_few(self) -> None:
        b = Node("b")
        data = bytearray(Node("a").request("b", S))
        data[4] = 9
        for number in range(5000):
            b.receive(bytes(data), f"x{number}", S + number)
        assert b.protocol.counters["rate_limited"] > 2500
        assert len(codes(b, S + 5000)) <= 32


def test_without_a_key_for_the_mesh_pairs_have_keys_all_the_same() -> None:
    a, b = Node("a", key=None), Node("b", key=None)
    for second in (1, 2, 3):
        at_b, at_a = exchange(a, b, second * S)
    assert at_b.proofs is not None
    assert at_a.proofs is not None
    assert a.member_keys is not None
    assert at_b.proofs.public_key == a.member_keys.public_key


def test_a_changed_key_does_not_continue_what_was_known() -> None:
    """The same boot and raw clock, another key: nothing is used before it is fresh under that key."""
    a, b = acquainted()
    again = Node("a", seed="its state directory can't be written")
    at = 3 * S + SILENT_NS + S
    assert exchange(again, b, at)[0].error == "unconfirmed"
    at_b, _ = exchange(again, b, at + S)
    assert at_b.proofs is not None
    assert again.member_keys is not None
    assert at_b.proofs.public_key == again.member_keys.public_key
    assert b.receive(a.request("b", at + 2 * S), "a", at + 2 * S).error == "other_identity"


def test_a_protocol_without_keys_is_the_version_before() -> None:
    me = described("a")
    protocol = LinkProtocol(link="udp", key=KEY, describe=lambda: replace(me), random=os.urandom)
    assert protocol.request("b", S)[4] == wire.OLD_VERSION
