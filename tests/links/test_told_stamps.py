"""The kernel's stamp of a send: what it sharpens here, what it is worth to the peer, and what it can't be used for."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.links import wire
from skewd.links.protocol import Proofs, Received
from skewd.links.wire import nonce_of
from tests.links.link_bench import KEY, ExactClock, Node, S, assert_true, exchange

EPOCHS = st.integers(-(10**18), 10**18)
CLOCKS = st.builds(ExactClock, EPOCHS, st.integers(-100_000, 100_000))
US = 1000


def proofs_of(received: Received) -> Proofs:
    assert received.proofs is not None, received.error
    return received.proofs


def acquainted(*, old: bool = False) -> tuple[Node, Node]:
    """Two nodes on one clock, to keep the numbers readable; the time is now 3 s."""
    a, b = Node("a", old=old), Node("b", old=old)
    exchange(a, b, 1 * S)
    exchange(a, b, 2 * S)
    return a, b


def test_a_request_s_stamp_sharpens_what_its_answer_proves() -> None:
    a, b = acquainted()
    request = a.request("b", 3 * S)
    a.protocol.transmitted(nonce_of(request), 3 * S + 40 * US)
    reply = b.reply(b.receive(request, "a", 3 * S + 50 * US), 3 * S + 60 * US)
    proofs = proofs_of(a.receive(reply, "b", 3 * S + 70 * US))
    assert proofs.outgoing == ((3 * S + 40 * US, 3 * S + 50 * US),)
    assert proofs.rtt_ns == 20 * US
    # A user stamp that is later than the kernel's is no reason to believe the earlier one.
    request = a.request("b", 4 * S)
    a.protocol.transmitted(nonce_of(request), 4 * S - 1)
    reply = b.reply(b.receive(request, "a", 4 * S + 50 * US), 4 * S + 60 * US)
    assert proofs_of(a.receive(reply, "b", 4 * S + 70 * US)).outgoing == ((4 * S, 4 * S + 50 * US),)


def test_a_reply_s_stamp_reaches_the_peer_with_the_next_message() -> None:
    a, b = acquainted()
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S + 10 * US), 3 * S + 20 * US)
    b.protocol.transmitted(nonce_of(reply), 3 * S + 45 * US)
    first = proofs_of(a.receive(reply, "b", 3 * S + 60 * US))
    assert first.incoming == ((3 * S + 20 * US, 3 * S + 60 * US),)
    assert first.rtt_ns == 50 * US
    _, answered = exchange(a, b, 4 * S, delay_ns=500 * US)
    second = proofs_of(answered)
    assert second.incoming[0] == (3 * S + 45 * US, 3 * S + 60 * US)
    assert second.rtt_ns == 25 * US  # of the earlier exchange, now that its end is known better
    assert a.protocol.counters["sharpened"] == 1
    # Told once more, it is worth nothing more.
    _, answered = exchange(a, b, 5 * S)
    assert len(proofs_of(answered).incoming) == 1
    # And the reply's own sender uses it too, for the echo.
    assert b.protocol.counters["sharpened"] == 0


def test_a_reply_s_stamp_sharpens_what_the_echo_proves_to_its_sender() -> None:
    a, b = acquainted()
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S + 10 * US), 3 * S + 20 * US)
    b.protocol.transmitted(nonce_of(reply), 3 * S + 45 * US)
    a.receive(reply, "b", 3 * S + 60 * US)
    echoed = proofs_of(b.receive(a.request("b", 4 * S), "a", 4 * S + 10 * US))
    assert echoed.outgoing == ((3 * S + 45 * US, 3 * S + 60 * US),)
    assert echoed.rtt_ns == (60 - 0) * US - (45 - 10) * US


def test_a_request_s_stamp_is_told_in_the_reply_to_the_other_side_s_request() -> None:
    a, b = acquainted()
    exchange(b, a, 2 * S + 5)
    request = a.request("b", 3 * S)
    a.protocol.transmitted(nonce_of(request), 3 * S + 30 * US)
    received = b.receive(request, "a", 3 * S + 50 * US)
    a.receive(b.reply(received, 3 * S + 60 * US), "b", 3 * S + 70 * US)
    _, answered = exchange(b, a, 4 * S)
    assert (3 * S + 30 * US, 3 * S + 50 * US) in proofs_of(answered).incoming


def test_what_is_told_of_a_message_that_never_came_proves_nothing() -> None:
    a, b = acquainted()
    lost = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S)
    b.protocol.transmitted(nonce_of(lost), 3 * S + 10)
    _, answered = exchange(a, b, 4 * S)
    assert len(proofs_of(answered).incoming) == 1
    assert a.protocol.counters["sharpened"] == 0


def test_what_is_told_on_another_raw_clock_proves_nothing() -> None:
    a, b = acquainted(old=True)
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S)
    a.receive(reply, "b", 3 * S + 20 * US)
    b.change(raw_era=1)  # it begins anew and knows nothing of the stamp; an attacker could not tell it either
    forged = wire.draft(
        KEY.key_id,
        KEY.secret,
        kind=wire.Kind.REQUEST,
        nonce=b"n" * 16,
        sender=wire.packed(b.me),
        receiver="a",
        told=(nonce_of(reply), 3 * S + 10 * US),
    )(4 * S)
    received = a.receive(forged, "b", 4 * S)
    assert (received.proofs, received.error) == (None, "unconfirmed")
    assert a.protocol.counters["sharpened"] == 0


def test_a_stamp_beyond_the_message_that_tells_it_is_refused_as_a_whole() -> None:
    a, b = acquainted()
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S)
    a.receive(reply, "b", 3 * S + 20 * US)
    lie = wire.draft(
        KEY.key_id,
        KEY.secret,
        kind=wire.Kind.REQUEST,
        nonce=b"n" * 16,
        sender=wire.packed(b.me),
        receiver="a",
        told=(nonce_of(reply), 4 * S + 1),
    )(4 * S)
    assert a.receive(lie, "b", 4 * S + 5).error == "malformed"


def test_a_replay_tells_nothing_again() -> None:
    a, b = acquainted()
    exchange(b, a, 2 * S + 5)
    exchange(b, a, 2 * S + 10_000)
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S + 10 * US), 3 * S + 20 * US)
    b.protocol.transmitted(nonce_of(reply), 3 * S + 30 * US)
    a.receive(reply, "b", 3 * S + 60 * US)
    telling = b.request("a", 4 * S)
    assert len(proofs_of(a.receive(telling, "b", 4 * S + 10)).incoming) == 2
    assert a.receive(telling, "b", 5 * S).error == "replay"
    assert a.protocol.counters["sharpened"] == 1


def test_tables_of_stamps_are_bounded() -> None:
    b = Node("b", options={"max_peers": 8})
    for number in range(100):
        peer = Node(f"n{number}")
        reply = b.reply(b.receive(peer.request("b", S + number * S), f"s{number}", S + number * S), S + number * S)
        b.protocol.transmitted(nonce_of(reply), S + number * S + 5)
    assert len(b.protocol._told) <= 8
    b.protocol.transmitted(b"nothing of ours.", 5)


@settings(max_examples=80, deadline=None)
@given(
    CLOCKS,
    CLOCKS,
    st.lists(
        st.tuples(
            st.booleans(),  # who asks
            st.integers(0, 3 * S),  # after the previous one
            st.tuples(st.integers(0, 300_000), st.integers(0, 300_000)),  # from each stamp to the wire
            st.tuples(st.integers(0, S), st.integers(0, S)),  # there and back
            st.integers(0, 100_000_000),  # held
            st.tuples(st.sampled_from(("never", "at once", "late")), st.integers(0, 100)),  # the stamps: when, how far
            st.booleans(),  # whether the reply arrives
        ),
        max_size=25,
    ),
)
def test_every_proof_is_true_with_stamps_of_any_lateness(
    clock_a: ExactClock, clock_b: ExactClock, steps: list[tuple[Any, ...]]
) -> None:
    """A stamp lies anywhere between user space's and the departure, and comes at once, after the answer, or never."""
    a, b = Node("a", clock_a), Node("b", clock_b)
    events: list[tuple[int, int, Any]] = []
    now = order = 0
    for step in steps:
        now += step[1]
        order += 1
        events.append((now, order, ("ask", *step)))

    def later(at: int, *event: Any) -> None:
        nonlocal order
        order += 1
        events.append((at, order, event))

    def departs(node: Node, data: bytes, at: int, wait: int, stamp: tuple[str, int], after: int) -> int:
        """When the message leaves; the kernel's stamp is that, or a share of the way to it, rounded down."""
        when, share = stamp
        if when != "never":
            raw = node.clock.read(at + wait * share // 100)
            later(at + wait if when == "at once" else after, "stamped", node, nonce_of(data), raw)
        return at + wait

    def check(received: Received, here: Node, there: Node) -> None:
        if received.proofs is not None:
            assert_true(received.proofs, here.clock, there.clock)

    while events:
        events.sort(key=lambda event: event[:2])
        now, _, event = events.pop(0)
        what, *rest = event
        if what == "ask":
            a_asks, _, waits, ways, held, stamp, arrives = rest
            asker, answerer = (a, b) if a_asks else (b, a)
            data = asker.request(answerer.name, now)
            left = departs(asker, data, now, waits[0], stamp, now + 3 * S)
            later(left + ways[0], "asked", asker, answerer, data, waits[1], ways[1], held, stamp, arrives)
        elif what == "asked":
            asker, answerer, data, *more = rest
            received = answerer.receive(data, asker.name, now)
            check(received, answerer, asker)
            later(now + more[2], "reply", asker, answerer, received, *more)
        elif what == "reply":
            asker, answerer, received, wait, way, _, stamp, arrives = rest
            if received.reply is None:
                continue
            data = answerer.reply(received, now)
            left = departs(answerer, data, now, wait, stamp, now + 3 * S)
            if arrives:
                later(left + way, "answered", asker, answerer, data)
        elif what == "answered":
            asker, answerer, data = rest
            check(asker.receive(data, answerer.name, now), asker, answerer)
        else:
            node, nonce, raw = rest
            node.protocol.transmitted(nonce, raw)
