"""What rides along with messages: from fresh ones only, each once, within the room there is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.links import wire
from skewd.links.protocol import Attach, Timebases
from tests.links.link_bench import KEY, Node, S, exchange

MS = 1_000_000


def speaking(name: str, attach: Attach | None = None, **options: object) -> Node:
    return Node(name, options={"attach": attach or (lambda peer, room: f"{name} to {peer}".encode()), **options})


def test_both_directions_carry_one_once_the_sender_is_fresh() -> None:
    a, b = speaking("a"), speaking("b")
    at_b, at_a = exchange(a, b, 1 * S)
    assert (at_b.sender, at_b.attachment, at_b.error) == ("a", b"", "unconfirmed")
    assert (at_a.sender, at_a.attachment) == ("b", b"b to a")
    at_b, at_a = exchange(a, b, 2 * S)
    # A did not know the name behind the address before; now it does.
    assert (at_b.sender, at_b.attachment) == ("a", b"a to b")
    assert at_b.proofs is not None
    assert at_b.proofs.attachment == b"a to b"
    assert (at_a.sender, at_a.attachment) == ("b", b"b to a")


def test_a_replay_and_a_message_that_answers_nothing_hand_nothing_on() -> None:
    a, b = speaking("a"), speaking("b")
    exchange(a, b, 1 * S)
    exchange(a, b, 2 * S)
    request = a.request("b", 3 * S)
    assert b.receive(request, "a", 3 * S).attachment == b"a to b"
    assert b.receive(request, "a", 4 * S).error == "replay"
    # The reply was lost, so the next request echoes nothing new: a proof, and no attachment.
    received = b.receive(a.request("b", 5 * S), "a", 5 * S)
    assert received.proofs is not None
    assert received.attachment == b""


def test_from_one_way_messages_too_once_they_answer_something() -> None:
    shared = Timebases()
    a, b_udp = speaking("a"), Node("b", timebases=shared)
    b = Node("b", timebases=shared, seed="t")
    exchange(b_udp, a, S)
    received = b.receive(a.protocol.prepare_one_way()(2 * S), "topic", 2 * S)
    assert received.proofs is not None
    assert received.attachment == b""
    a.receive(b.protocol.prepare_one_way()(3 * S), "topic", 3 * S)
    received = b.receive(a.protocol.prepare_one_way()(4 * S), "topic", 4 * S)
    assert received.attachment == b"a to None"


def test_requests_are_padded_for_the_reply_and_only_where_something_may_be_attached() -> None:
    a, b = speaking("a", lambda peer, room: bytes(room)), speaking("b", lambda peer, room: bytes(room))
    plain = Node("p")
    assert len(plain.request("b", S)) == wire.MIN_MESSAGE_BYTES
    at_b = b.receive(plain.request("b", S), "p", S)
    assert len(b.reply(at_b, S)) == wire.MIN_MESSAGE_BYTES  # no room: nothing is attached
    request = a.request("b", S)
    assert len(request) == wire.MAX_MESSAGE_BYTES
    assert len(b.reply(b.receive(request, "a", S), S)) == wire.MAX_MESSAGE_BYTES
    small = speaking("s", request_bytes=500)
    assert len(small.request("b", S)) == 500


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=wire.MAX_ATTACHMENT_BYTES), st.integers(wire.MIN_MESSAGE_BYTES, wire.MAX_MESSAGE_BYTES))
def test_whatever_is_attached_arrives_as_it_was_and_a_reply_is_never_larger(content: bytes, size: int) -> None:
    a = speaking("a", lambda peer, room: b"", request_bytes=size)
    b = speaking("b", lambda peer, room: content[:room])
    request = a.request("b", S)
    assert len(request) == size
    reply = b.reply(b.receive(request, "a", S), S)
    assert len(reply) <= len(request)
    assert a.receive(reply, "b", S).attachment == content[: size - wire.MIN_MESSAGE_BYTES]


def test_more_than_there_is_room_for_is_left_out_and_counted() -> None:
    a, b = speaking("a", lambda peer, room: bytes(room + 1)), speaking("b")
    at_b, at_a = exchange(a, b, S)
    assert at_a.attachment == b"b to a"
    assert at_b.error == "unconfirmed"
    assert a.protocol.counters["attachments_dropped"] == 1


def test_a_length_beyond_the_message_is_refused() -> None:
    a = Node("a")
    data = bytearray(
        wire.draft(
            KEY.key_id,
            KEY.secret,
            kind=wire.Kind.REQUEST,
            nonce=b"n" * 16,
            sender=wire.packed(Node("b").me),
            receiver="a",
            attachment=b"0123456789",
        )(10)
    )
    data[272:274] = (11).to_bytes(2, "big")
    forged = bytes(data[:-16]) + wire._mac(KEY.secret, data[:-16])
    assert a.receive(forged, "b", S).error == "malformed"


def test_a_size_that_no_message_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="336 to 1400"):
        speaking("a", request_bytes=2000)
