"""Messages that nobody replies to: what they prove, when they are believed, and how they make exchanges."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.links import wire
from skewd.links.protocol import Proofs, Received, Timebases
from skewd.links.wire import nonce_of
from tests.links.link_bench import KEY, ExactClock, Node, S, assert_true, exchange

MS = 1_000_000


def proofs_of(received: Received) -> Proofs:
    assert received.proofs is not None, received.error
    return received.proofs


def one_way(node: Node, true_ns: int, to: str = "") -> bytes:
    return node.protocol.prepare_one_way(to)(node.clock.read(true_ns))


def round_of(nodes: list[Node], true_ns: int, delay_ns: int = MS) -> list[Received]:
    """Each node broadcasts, and each other one hears it, ``delay_ns`` later and 10 ms apart."""
    heard = []
    for number, sender in enumerate(nodes):
        now = true_ns + number * 10 * MS
        data = one_way(sender, now)
        heard += [node.receive(data, "topic", now + delay_ns) for node in nodes if node is not sender]
    return heard


def test_it_is_used_once_another_link_has_confirmed_the_sender_s_raw_clock() -> None:
    shared = Timebases()
    a = Node("a", ExactClock(1000))
    b_udp, b_kafka = (
        Node("b", ExactClock(-50), timebases=shared),
        Node("b", ExactClock(-50), timebases=shared, seed="k"),
    )
    held = one_way(a, S)
    received = b_kafka.receive(held, "topic", 2 * S)
    assert (received.proofs, received.reply, received.error) == (None, None, "one_way_unconfirmed")
    exchange(b_udp, a, 3 * S)
    data = one_way(a, 4 * S)
    proofs = proofs_of(b_kafka.receive(data, "topic", 5 * S))
    assert proofs.incoming == ((4 * S + 1000, 5 * S - 50),)
    assert (proofs.outgoing, proofs.rtt_ns, proofs.peer) == ((), None, a.me)
    assert b_kafka.protocol.counters["one_way_unconfirmed"] == 1
    assert b_kafka.protocol.counters["replies"] == 0
    # Within the same raw clock a delayed one is true and wide, and used once.
    assert proofs_of(b_kafka.receive(held, "topic", 60 * S)).incoming == ((S + 1000, 60 * S - 50),)
    assert b_kafka.receive(held, "topic", 61 * S).error == "replay"
    assert b_kafka.receive(data, "topic", 61 * S).error == "replay"


def test_an_old_boot_s_is_refused_whatever_is_replayed() -> None:
    shared = Timebases()
    b_udp, b_topic = Node("b", timebases=shared), Node("b", timebases=shared, seed="t")
    a = Node("a", ExactClock(7))
    exchange(b_udp, a, S)
    recorded = [one_way(a, (2 + number) * S) for number in range(5)]
    a2 = Node("a", ExactClock(10**15))
    a2.change(boot=b"the second boot.")
    exchange(b_udp, a2, 20 * S)
    for number, data in enumerate(recorded):
        assert b_topic.receive(data, "topic", (21 + number) * S).error == "one_way_unconfirmed"
    assert proofs_of(b_topic.receive(one_way(a2, 30 * S), "topic", 31 * S)).peer.boot == b"the second boot."
    # What nothing has confirmed for long is not believed either.
    assert b_topic.receive(one_way(a2, 32 * S), "topic", 400 * S).error == "one_way_unconfirmed"


def test_one_topic_makes_whole_exchanges_for_all_who_write_and_read_it() -> None:
    nodes = [Node(name, ExactClock(number * 10**12, 10_000 * number)) for number, name in enumerate("abcd")]
    for second in range(1, 4):
        round_of(nodes, second * S)
    clocks = {node.name: node.clock for node in nodes}
    heard = round_of(nodes, 5 * S)
    receivers = [here for there in nodes for here in nodes if here is not there]
    for here, received in zip(receivers, heard, strict=True):
        proofs = proofs_of(received)
        assert_true(proofs, here.clock, clocks[proofs.peer.name])
        assert len(proofs.outgoing) == len(proofs.incoming) == 1
        assert proofs.rtt_ns is not None
        assert here.protocol.counters["replies"] == 0
    for here in nodes:
        assert set(here.protocol.peers(here.clock.read(6 * S))) == {"a", "b", "c", "d"} - {here.name}


def test_what_goes_out_on_one_link_is_answered_on_another() -> None:
    """a -> b over one link, b -> a over another; neither has a way back of its own."""
    shared_a, shared_b = Timebases(), Timebases()
    a_out, a_in = Node("a", timebases=shared_a), Node("a", timebases=shared_a, seed="in")
    b_out, b_in = Node("b", timebases=shared_b), Node("b", timebases=shared_b, seed="in")
    assert b_in.receive(one_way(a_out, 1 * S, "b"), "aeron", 1 * S + MS).error == "one_way_unconfirmed"
    at_a = proofs_of(a_in.receive(one_way(b_out, 2 * S, "a"), "kafka", 2 * S + 3 * MS))
    assert at_a.outgoing == ((1 * S, 1 * S + MS),)
    assert at_a.incoming == ((2 * S, 2 * S + 3 * MS),)
    assert at_a.rtt_ns == 4 * MS
    at_b = proofs_of(b_in.receive(one_way(a_out, 3 * S, "b"), "aeron", 3 * S + MS))
    assert at_b.outgoing == ((2 * S, 2 * S + 3 * MS),)
    assert at_b.rtt_ns == 4 * MS


def test_a_broadcast_may_be_answered_by_many_and_counts_once_for_each() -> None:
    nodes = [Node(name) for name in "abc"]
    a, b, c = nodes
    for second in range(1, 3):
        round_of(nodes, second * S)
    data = one_way(a, 4 * S)
    for node in (b, c):
        assert proofs_of(node.receive(data, "topic", 4 * S + MS))
    for node in (b, c):
        first = proofs_of(a.receive(one_way(node, 5 * S), "topic", 5 * S + MS))
        assert first.outgoing == ((4 * S, 4 * S + MS),)
        again = proofs_of(a.receive(one_way(node, 6 * S), "topic", 6 * S + MS))
        assert (again.outgoing, again.rtt_ns) == ((), None)


def test_a_message_for_another_node_and_our_own_are_ignored() -> None:
    a, b, c = (Node(name) for name in "abc")
    for second in range(1, 4):
        round_of([a, b, c], second * S)
    assert c.receive(one_way(a, 5 * S, "b"), "topic", 5 * S).error == "wrong_receiver"
    assert a.receive(one_way(a, 5 * S), "topic", 5 * S).error == "own_message"
    other = one_way(b, 5 * S, "a")
    assert len(wire.decode(other, wire.secrets_of(KEY)).others) == 1


def test_a_sharper_stamp_of_a_broadcast_is_used_and_told() -> None:
    nodes = [Node(name) for name in "abc"]
    a, b, _ = nodes
    for second in range(1, 3):
        round_of(nodes, second * S)
    data = one_way(a, 4 * S)
    b.receive(data, "topic", 4 * S + MS)
    a.protocol.transmitted(nonce_of(data), 4 * S + MS // 2)
    answer = proofs_of(a.receive(one_way(b, 5 * S), "topic", 5 * S + MS))
    assert answer.outgoing == ((4 * S + MS // 2, 4 * S + MS),)
    told = proofs_of(b.receive(one_way(a, 6 * S), "topic", 6 * S + MS))
    assert told.incoming == ((4 * S + MS // 2, 4 * S + MS), (6 * S, 6 * S + MS))


def test_our_own_two_raw_clocks_never_meet() -> None:
    a, b = Node("a"), Node("b")
    for second in range(1, 3):
        round_of([a, b], second * S)
    b.receive(one_way(a, 4 * S), "topic", 4 * S + MS)
    answer = one_way(b, 5 * S)
    a.change(raw_era=1)
    assert a.receive(answer, "topic", 5 * S + MS).error == "one_way_unconfirmed"
    # And what was heard on the former clock is answered no more.
    assert wire.decode(one_way(a, 6 * S), wire.secrets_of(KEY)).others != ()
    a.change(raw_era=2)
    assert wire.decode(one_way(a, 7 * S), wire.secrets_of(KEY)).others == ()


def test_tables_are_bounded_whoever_sends() -> None:
    b = Node("b")
    for number in range(3000):
        other = Node(f"n{number}")
        b.receive(one_way(other, S + number * MS), "topic", S + number * MS)
        one_way(b, S + number * MS)
    assert b.protocol.sizes()["one_way"] <= 2048
    assert b.protocol.sizes()["peers"] == 0
    data = one_way(b, 10 * S)
    assert len(data) <= wire.MAX_MESSAGE_BYTES
    assert len(wire.decode(data, wire.secrets_of(KEY)).others) == wire.MAX_ANSWERS


def test_a_late_answer_of_the_old_boot_does_not_bring_it_back() -> None:
    a, b = Node("a"), Node("b")
    for second in range(1, 3):
        round_of([a, b], second * S)
    b_asks = one_way(b, 4 * S)
    a.receive(b_asks, "topic", 4 * S + MS)
    late = one_way(a, 5 * S)
    a2 = Node("a")
    a2.change(boot=b"the second boot.")
    for second in range(6, 8):
        round_of([a2, b], second * S)
    assert b.receive(late, "topic", 9 * S).error == "one_way_unconfirmed"
    assert b.protocol.peers(9 * S)["a"].boot == b"the second boot."


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4), st.booleans()), max_size=60))
def test_any_mixture_of_old_messages_proves_only_what_is_true(picks: list[tuple[int, int, bool]]) -> None:
    """An attacker holds every message of three boots of A and delivers them to B in any order, any number of times."""
    clocks = [ExactClock(0, 50_000), ExactClock(7 * S, -80_000), ExactClock(-(10**16), 0)]
    b = Node("b", ExactClock(10**12, 20_000))
    held: list[tuple[int, bytes]] = []
    now = S
    for number, clock in enumerate(clocks):
        boot = Node("a", clock)
        boot.change(boot=bytes([number + 1]) * 16)
        for _ in range(4):
            from_b = one_way(b, now)
            boot.receive(from_b, "topic", now + MS)
            data = one_way(boot, now + 2 * MS)
            held += [(number, data), (number, one_way(boot, now + 3 * MS))]
            received = b.receive(data, "topic", now + 4 * MS)
            if received.proofs is not None:
                assert received.proofs.peer.boot == boot.me.boot
                assert_true(received.proofs, b.clock, clock)
            now += S
    assert b.protocol.peers(b.clock.read(now))["a"].boot == bytes([3]) * 16
    for index, wait, b_sends in picks:
        now += wait * S
        if b_sends:
            one_way(b, now)
        number, data = held[index % len(held)]
        received = b.receive(data, "topic", now)
        if received.proofs is not None:
            assert number == 2, "an old boot's message was used"
            assert_true(received.proofs, b.clock, clocks[number])


@pytest.mark.parametrize("kind", [wire.Kind.REQUEST, wire.Kind.REPLY])
def test_a_list_of_answers_is_a_one_way_message_s_only(kind: wire.Kind) -> None:
    a = Node("a")
    data = wire.draft(
        KEY.key_id,
        KEY.secret,
        kind=kind,
        nonce=b"n" * 16,
        sender=wire.packed(Node("b").me),
        receiver="a",
        others=[(b"x" * 16, 5)],
    )(10)
    assert a.receive(data, "b", S).error == "malformed"
