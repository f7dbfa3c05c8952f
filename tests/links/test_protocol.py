"""What messages prove, to whom; what replays, strangers and floods can't do."""

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skewd.links import wire
from skewd.links.protocol import REASONS, Proofs, Received, Timebases
from skewd.member_keys import COMPUTED_PER_S
from tests.links.link_bench import KEY, OTHER_KEY, ExactClock, Node, S, assert_true, described, exchange

MS = 1_000_000
EPOCHS = st.integers(-(10**18), 10**18)
DRIFTS = st.integers(-100_000, 100_000)
CLOCKS = st.builds(ExactClock, EPOCHS, DRIFTS)


def decode(data: bytes) -> wire.Message:
    """What two nodes of the version before say to each other."""
    return wire.decode(data, wire.secrets_of(KEY))


def proofs_of(received: Received) -> Proofs:
    assert received.proofs is not None
    return received.proofs


def acquainted(**options: int) -> tuple[Node, Node]:
    """Two nodes that know each other: B from A's second request, A from B's first reply. The time is now 3 s."""
    a, b = Node("a", ExactClock(5, 0), options=options), Node("b", ExactClock(-7, 0), options=options)
    exchange(a, b, 1 * S)
    exchange(a, b, 2 * S)
    return a, b


def test_both_sides_get_both_proofs() -> None:
    a, b = Node("a", ExactClock(1000)), Node("b", ExactClock(-50))
    first_b, first_a = exchange(a, b, 1 * S, delay_ns=100)
    assert proofs_of(first_a).outgoing == ((1 * S + 1000, 1 * S + 100 - 50),)
    assert proofs_of(first_a).incoming == ((1 * S + 100 - 50, 1 * S + 200 + 1000),)
    assert proofs_of(first_a).rtt_ns == 200
    assert proofs_of(first_a).peer == b.me
    assert (proofs_of(first_a).link, proofs_of(first_a).address) == ("udp", "b")
    assert first_b.error == "unconfirmed"
    assert first_b.proofs is None

    second_b, _ = exchange(a, b, 2 * S, delay_ns=100)
    # The echo makes the first request worth something too.
    assert proofs_of(second_b).incoming == ((1 * S + 1000, 1 * S + 50), (2 * S + 1000, 2 * S + 50))
    assert proofs_of(second_b).outgoing == ((1 * S + 100 - 50, 1 * S + 200 + 1000),)
    assert proofs_of(second_b).rtt_ns == 200

    third_b, _ = exchange(a, b, 3 * S, delay_ns=100)
    assert proofs_of(third_b).incoming == ((3 * S + 1000, 3 * S + 50),)
    assert len(proofs_of(third_b).outgoing) == 1


@settings(max_examples=60, deadline=None)
@given(
    CLOCKS,
    CLOCKS,
    st.lists(
        st.tuples(
            st.booleans(),  # who asks
            st.integers(0, 3 * S),  # after the previous one
            st.integers(0, S),  # there
            st.integers(0, 100 * MS),  # held
            st.integers(0, S),  # back
            st.booleans(),  # whether the reply arrives
            st.booleans(),  # whether the request arrives twice
        ),
        max_size=25,
    ),
)
def test_every_proof_is_true_whatever_clocks_and_delays(
    clock_a: ExactClock,
    clock_b: ExactClock,
    steps: list[tuple[bool, int, int, int, int, bool, bool]],
) -> None:
    a, b = Node("a", clock_a), Node("b", clock_b)
    events: list[tuple[int, int, Any]] = []
    now = 0
    # Everything happens in the order of true time; exchanges overlap, overtake each other and get lost.
    for number, (a_asks, gap, there, held, back, arrives, twice) in enumerate(steps):
        now += gap
        asker, answerer = (a, b) if a_asks else (b, a)
        events.append((now, number, ("ask", asker, answerer, there, held, back, arrives, twice)))
    order = len(steps)
    seen = 0
    while events:
        events.sort(key=lambda event: event[:2])
        now, _, event = events.pop(0)
        order += 1
        what, asker, answerer, *rest = event
        if what == "ask":
            there, held, back, arrives, twice = rest
            data = asker.request(answerer.name, now)
            events.append((now + there, order, ("asked", asker, answerer, data, held, back, arrives)))
            if twice:
                events.append((now + there + back, order, ("asked", asker, answerer, data, held, back, False)))
        elif what == "asked":
            data, held, back, arrives = rest
            received = answerer.receive(data, asker.name, now)
            if received.proofs is not None:
                seen += 1
                assert_true(received.proofs, answerer.clock, asker.clock)
            if received.reply is not None:
                events.append((now + held, order, ("reply", asker, answerer, received, back, arrives)))
        elif what == "reply":
            received, back, arrives = rest
            data = answerer.reply(received, now)
            if arrives:
                events.append((now + back, order, ("answered", asker, answerer, data)))
        else:
            received = asker.receive(rest[0], answerer.name, now)
            assert received.reply is None
            if received.proofs is not None:
                seen += 1
                assert_true(received.proofs, asker.clock, answerer.clock)
    assert seen or not any(step[5] for step in steps)


def test_the_names_of_addresses_are_learnt_from_answers() -> None:
    a, b = Node("a", old=True), Node("b", old=True)
    request = a.request("10.0.0.1:9957", 1 * S)
    assert decode(request).receiver == ""
    reply = b.reply(b.receive(request, "a", 1 * S), 1 * S)
    a.receive(reply, "10.0.0.1:9957", 1 * S + 10)
    assert [(target.address, target.name, target.unanswered) for target in a.protocol.targets()] == [
        ("10.0.0.1:9957", "b", 0)
    ]
    peer = a.protocol.peers(1 * S + 10)["b"]
    assert (peer.address, peer.boot, peer.raw_era, peer.rtt_min_ns) == ("10.0.0.1:9957", b.me.boot, 0, 10)
    assert peer.last_exchange_raw_ns == 1 * S + 10
    assert decode(a.request("10.0.0.1:9957", 2 * S)).receiver == "b"


def test_an_address_that_goes_to_another_node_is_learnt_anew() -> None:
    a, _ = acquainted()
    c = Node("c")
    for second in (3, 4, 5):
        assert c.receive(a.request("b", second * S), "a", second * S).error == "wrong_receiver"
    request = a.request("b", 7 * S)
    received = a.receive(c.reply(c.receive(request, "a", 7 * S), 7 * S), "b", 7 * S)
    assert proofs_of(received).peer.name == "c"


def test_a_wrong_key_is_counted_and_ignored() -> None:
    a, stranger = Node("a"), Node("b", key=OTHER_KEY)
    received = a.receive(stranger.request("a", S), "b", S)
    assert (received.proofs, received.reply, received.error) == (None, None, "wrong_key")
    same_id = Node("b", key=replace(OTHER_KEY, key_id=KEY.key_id))
    received = a.receive(same_id.request("a", S), "b", S)
    assert (received.proofs, received.reply, received.error) == (None, None, "bad_mac")
    keyless = Node("b", key=None)
    assert a.receive(keyless.request("a", S), "b", S).error == "wrong_key"
    assert a.protocol.counters["wrong_key"] == 2
    assert a.protocol.counters["bad_mac"] == 1
    assert a.protocol.counters["accepted"] == 0
    assert a.protocol.peers(S) == {}


def test_without_a_key_two_nodes_still_understand_each_other() -> None:
    a, b = Node("a", key=None), Node("b", key=None)
    assert not a.protocol.keyed
    assert proofs_of(exchange(a, b, S)[1])


def test_messages_for_another_node_are_ignored() -> None:
    a, b = acquainted()
    c = Node("c")
    received = c.receive(a.request("b", 3 * S), "a", 3 * S)
    assert (received.proofs, received.reply, received.error) == (None, None, "wrong_receiver")
    reply = b.reply(b.receive(a.request("b", 4 * S), "a", 4 * S), 4 * S)
    assert c.receive(reply, "b", 4 * S).error == "wrong_receiver"


def test_our_own_messages_and_our_name_s_double_are_ignored() -> None:
    a, b = acquainted()
    assert a.receive(a.request("b", 3 * S), "b", 3 * S).error == "wrong_receiver"
    assert a.receive(a.request("elsewhere", 3 * S), "elsewhere", 3 * S).error == "own_message"
    double = Node("a")
    double.change(boot=b"another boot....")
    received = a.receive(double.request("a", 3 * S), "x", 3 * S)
    assert (received.error, received.reply) == ("duplicate_name", None)
    assert b.receive(a.request("b", 4 * S), "a", 4 * S).error is None


class TestReplays:
    def test_a_duplicate_is_used_once(self) -> None:
        a, b = acquainted()
        request = a.request("b", 3 * S)
        received = b.receive(request, "a", 3 * S)
        reply = b.reply(received, 3 * S)
        again = b.receive(request, "a", 4 * S)
        assert (again.error, again.reply, again.proofs) == ("replay", None, None)
        assert a.receive(reply, "b", 3 * S).error is None
        assert a.receive(reply, "b", 3 * S).error == "unknown_nonce"

    def test_a_stranger_s_duplicate_is_answered_once(self) -> None:
        a, b = Node("a"), Node("b")
        request = a.request("b", S)
        b.reply(b.receive(request, "a", S), S)
        again = b.receive(request, "x", S)
        assert (again.error, again.reply) == ("replay", None)

    def test_reordered_requests_are_used_and_the_newest_words_stay(self) -> None:
        a, b = acquainted()
        early = a.request("b", 3 * S)
        a.change(era=1)
        late = a.request("b", 4 * S)
        assert proofs_of(b.receive(late, "a", 5 * S)).peer.era == 1
        reordered = proofs_of(b.receive(early, "a", 6 * S))
        assert reordered.incoming == ((a.clock.read(3 * S), b.clock.read(6 * S)),)
        assert reordered.peer.era == 1

    def test_older_than_the_window_is_refused(self) -> None:
        a, b = acquainted()
        held_back = a.request("b", 3 * S)
        for number in range(100):
            exchange(a, b, 4 * S + number * S)
        assert b.receive(held_back, "a", 200 * S).error == "replay"

    def test_an_old_boot_s_messages_never_replace_the_present_one(self) -> None:
        a, b = acquainted()
        recorded = [a.request("b", (3 + number) * S) for number in range(5)]
        a2 = Node("a", ExactClock(10**15))
        a2.change(boot=b"the second boot.")
        exchange(a2, b, 20 * S)
        at_b, _ = exchange(a2, b, 21 * S)
        assert proofs_of(at_b).peer.boot == b"the second boot."
        for number, data in enumerate(recorded):
            received = b.receive(data, "a", (22 + number) * S)
            assert (received.proofs, received.error) == (None, "unconfirmed")
        assert b.protocol.peers(30 * S)["a"].boot == b"the second boot."
        at_b, _ = exchange(a2, b, 31 * S)
        assert proofs_of(at_b).peer.boot == b"the second boot."

    def test_not_even_after_the_receiver_forgot_everything(self) -> None:
        a, b = acquainted()
        recorded = a.request("b", 3 * S)
        b = Node("b")  # its daemon restarted
        received = b.receive(recorded, "a", 10 * S)
        assert (received.proofs, received.error) == (None, "unconfirmed")
        # The reply goes to whoever replayed; only the present A could answer it, and it asked nothing like that.
        a2 = Node("a")
        a2.change(boot=b"the second boot.")
        assert a2.receive(b.reply(received, 10 * S), "b", 10 * S).error == "unknown_nonce"
        assert b.protocol.peers(11 * S) == {}

    def test_a_late_answer_of_the_old_boot_does_not_bring_it_back(self) -> None:
        a, b = Node("a"), Node("b")
        exchange(b, a, 1 * S)
        late = a.reply(a.receive(b.request("a", 2 * S), "b", 2 * S), 2 * S)
        a2 = Node("a")
        a2.change(boot=b"the second boot.")
        exchange(b, a2, 3 * S)
        assert b.receive(late, "a", 4 * S).error == "old_timebase"
        assert b.protocol.peers(4 * S)["a"].boot == b"the second boot."
        assert b.protocol.counters["timebase_changes"] == 1

    def test_links_of_one_daemon_share_what_they_know_of_boots(self) -> None:
        shared = Timebases()
        a, b_udp, b_zmq = Node("a"), Node("b", timebases=shared), Node("b", timebases=shared, seed="zmq")
        exchange(b_udp, a, 1 * S)
        exchange(b_zmq, a, 2 * S)
        held_back = a.request("b", 3 * S)
        a2 = Node("a")
        a2.change(boot=b"the second boot.")
        exchange(b_udp, a2, 4 * S)
        assert b_zmq.receive(held_back, "a", 5 * S).proofs is None
        # What is fresh to one link is known to the other.
        assert b_zmq.receive(a2.request("b", 5 * S), "a", 5 * S).error == "unconfirmed"  # it introduces itself
        exchange(a2, b_zmq, 5 * S)
        assert proofs_of(b_zmq.receive(a2.request("b", 6 * S), "a", 6 * S)).peer.boot == b"the second boot."

    def test_a_new_raw_era_is_a_new_clock(self) -> None:
        a, b = acquainted()
        a.change(raw_era=1, era=1)
        assert b.receive(a.request("b", 3 * S), "a", 3 * S).error == "unconfirmed"
        exchange(a, b, 4 * S)
        at_b, _ = exchange(a, b, 5 * S)
        assert proofs_of(at_b).peer.raw_era == 1
        assert len(b.protocol.peers(5 * S)) == 1


def test_two_raw_clocks_of_a_peer_never_meet_in_one_exchange() -> None:
    """A peer that answers on another raw clock than it asked on is not taken at its word."""
    a, b = Node("a", old=True), Node("b", old=True)
    reply = decode(b.reply(b.receive(a.request("b", S), "a", S), S))
    a.change(raw_era=1)
    mixed = wire.draft(
        KEY.key_id,
        KEY.secret,
        kind=wire.Kind.REQUEST,
        nonce=b"n" * 16,
        answers=reply.nonce,
        received_ns=S + 10,
        sender=wire.packed(a.me),
        receiver="b",
    )(S + 20)
    received = b.receive(mixed, "a", S + 30)
    assert (received.proofs, received.error) == (None, "unconfirmed")


def test_two_of_our_own_raw_clocks_never_meet_in_one_exchange() -> None:
    a, b = acquainted()
    request = a.request("b", 3 * S)
    reply = b.reply(b.receive(request, "a", 3 * S), 3 * S)
    a.change(raw_era=1)
    assert a.receive(reply, "b", 3 * S).error == "unknown_nonce"
    # The echo of the last exchange is of the former clock, too.
    assert wire.answered_nonce(a.request("b", 4 * S)) == wire.NO_NONCE
    request = a.request("b", 5 * S)
    a.change(raw_era=0)
    assert a.receive(b.reply(b.receive(request, "a", 5 * S), 5 * S), "b", 5 * S).proofs is None
    assert a.protocol.counters["own_timebase_changes"] == 2


def test_answers_that_come_too_late_are_not_used() -> None:
    a, b = acquainted()
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S)
    assert a.receive(reply, "b", 14 * S).error == "unknown_nonce"


def test_a_raw_clock_that_runs_backwards_proves_nothing() -> None:
    a, b = acquainted()
    reply = b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S)
    assert a.receive(reply, "b", 2 * S).error == "own_clock_went_back"


def test_peers_that_fall_silent_are_forgotten() -> None:
    a, b = acquainted()
    assert set(a.protocol.peers(3 * S)) == {"b"}
    assert a.protocol.peers(400 * S) == {}
    assert set(b.protocol.peers(3 * S)) == {"a"}
    assert b.protocol.peers(400 * S) == {}


def test_the_smallest_round_trip_is_of_the_last_minutes() -> None:
    a, b = Node("a"), Node("b")
    exchange(a, b, 1 * S, delay_ns=10)
    exchange(a, b, 2 * S, delay_ns=500)
    assert a.protocol.peers(3 * S)["b"].rtt_min_ns == 20
    for number in range(20):
        exchange(a, b, (100 + 20 * number) * S, delay_ns=500)
    assert a.protocol.peers(481 * S)["b"].rtt_min_ns == 1000


def test_an_address_is_forgotten_on_request() -> None:
    a, b = acquainted()
    request = a.request("b", 3 * S)
    a.protocol.forget("b")
    assert a.protocol.targets() == ()
    assert a.receive(b.reply(b.receive(request, "a", 3 * S), 3 * S), "b", 3 * S).error == "unknown_nonce"
    a.protocol.forget("never known")


class TestFloods:
    def test_spoofed_sources_flush_no_peer_and_grow_no_table(self) -> None:
        a, b = acquainted()
        before = a.protocol.peers(3 * S)
        body = a.request("b", 3 * S)
        forged = bytearray(body)
        forged[100] ^= 1

        def flood(start_ns: int) -> None:
            for number in range(20_000):
                a.receive(bytes(forged), f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9", start_ns + number)

        flood(3 * S)
        sizes = a.protocol.sizes()
        gc.collect()
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
        flood(4 * S)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - base
        tracemalloc.stop()
        assert a.protocol.sizes() == sizes
        assert sizes["sources"] <= 1024 + 2048
        # Other numbers in the same table: what a few integers' sizes differ by, not 20,000 entries.
        assert grown < 300_000
        assert a.protocol.peers(3 * S) == before
        assert a.protocol.counters["rate_limited"] > 30_000
        assert a.protocol.counters["rate_limited"] + a.protocol.counters["wrong_receiver"] == 40_000
        # A known peer is still heard, in both directions, in the middle of it.
        at_b, at_a = exchange(a, b, 4 * S + 20_001)
        assert proofs_of(at_b)
        assert proofs_of(at_a)
        assert b.receive(a.request("b", 5 * S), "a", 5 * S).proofs
        exchange(b, a, 5 * S)
        assert a.receive(b.request("a", 6 * S), "b", 6 * S).proofs

    def test_whoever_forges_a_peer_s_address_cannot_silence_its_answers(self) -> None:
        a, b = acquainted()
        exchange(b, a, 2 * S)
        forged = b"skwd\x02\x02" + bytes(330)
        for number in range(5000):
            a.receive(forged, "b", 3 * S + number)
        assert a.protocol.counters["rate_limited"] > 4000
        assert proofs_of(exchange(a, b, 3 * S + 5001)[1])
        assert proofs_of(exchange(b, a, 3 * S + 5002)[1])

    def test_a_flood_that_copies_a_nonce_is_limited_all_the_same(self) -> None:
        a, b = acquainted()
        reply = bytearray(b.reply(b.receive(a.request("b", 3 * S), "a", 3 * S), 3 * S))
        reply[200] ^= 1
        for number in range(5000):
            a.receive(bytes(reply), f"x{number}", 3 * S + number)
        assert a.protocol.counters["bad_mac"] < 2100
        assert a.protocol.counters["rate_limited"] > 2900

    def test_one_stranger_is_limited_alone(self) -> None:
        a, b = Node("a"), Node("b")
        noise = b"skwd\x02\x01" + bytes(330)
        for number in range(1000):
            a.receive(noise, "x", S + number)
        assert a.protocol.counters["rate_limited"] > 900
        assert a.receive(b.request("a", S), "b", S + 2000).error == "unconfirmed"

    def test_replays_of_many_nodes_fill_no_table(self) -> None:
        b = Node("b", options={"max_peers": 8})
        for number in range(2000):
            other = Node(f"n{number}")
            received = b.receive(other.request("b", S), f"s{number}", S + number * MS)
            if received.reply is not None:
                b.reply(received, S + number * MS)
        sizes = b.protocol.sizes()
        assert sizes["peers"] == 0
        assert sizes["replies"] <= 256
        counters = b.protocol.counters
        assert counters["unconfirmed"] + counters["rate_limited"] == 2000
        # A pair's key is made for so many a second only.
        assert 2 * COMPUTED_PER_S <= counters["unconfirmed"] <= 4 * COMPUTED_PER_S + 1

    def test_more_peers_than_fit_are_refused_and_no_known_one_gives_way(self) -> None:
        a = Node("a", options={"max_peers": 2})
        b, c, d = Node("b"), Node("c"), Node("d")
        for peer in (b, c):
            assert proofs_of(exchange(a, peer, S)[1])
        assert exchange(a, d, 2 * S)[1].error == "too_many_peers"
        assert set(a.protocol.peers(2 * S)) == {"b", "c"}
        for second in range(3, 400, 10):
            exchange(a, b, second * S)
        assert proofs_of(exchange(a, d, 400 * S)[1])
        assert set(a.protocol.peers(400 * S)) == {"b", "d"}

    def test_unanswered_requests_are_bounded_and_expire(self) -> None:
        a = Node("a")
        for number in range(100):
            a.request("gone", S + number)
        assert a.protocol.sizes()["requests"] == 8
        a.request("gone", 20 * S)
        assert a.protocol.sizes()["requests"] == 1
        a = Node("a", options={"max_peers": 4})
        for number in range(100):
            a.request(f"gone{number}", S)
        assert a.protocol.sizes()["addresses"] == 4
        assert a.protocol.sizes()["requests"] == 4

    def test_unanswered_replies_are_bounded(self) -> None:
        a, b = acquainted()
        for number in range(100):
            received = b.receive(a.request("b", 3 * S + number), "a", 3 * S + number)
            b.reply(received, 3 * S + number)
        # Those to requests under the pair's key, and to introductions, each within their limit.
        assert b.protocol.sizes()["replies"] <= 8 + 50


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1500), st.text(max_size=20), st.integers(-(1 << 62), 1 << 62))
def test_no_bytes_raise(data: bytes, source: str, now_ns: int) -> None:
    a, _ = acquainted()
    received = a.protocol.receive(data, source, now_ns)
    assert received.error in REASONS
    assert received.proofs is None
    assert received.reply is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_altered_messages_prove_nothing(data: st.DataObject) -> None:
    a, b = acquainted()
    request = bytearray(a.request("b", 3 * S))
    at = data.draw(st.integers(0, len(request) - 1))
    request[at] ^= data.draw(st.integers(1, 255))
    received = b.receive(bytes(request[: data.draw(st.integers(0, len(request)))]), "a", 3 * S)
    assert (received.proofs, received.reply) == (None, None)
    assert received.error is not None


@settings(max_examples=50, deadline=None)
@given(st.integers(wire.MIN_MESSAGE_BYTES, wire.MAX_MESSAGE_BYTES))
def test_a_reply_is_never_larger_than_its_request(size: int) -> None:
    a, b = Node("a"), Node("b")
    request = a.request("b", S)
    longer = request[:-16].ljust(size - 16, b"\0")
    longer += wire._mac(KEY.secret, longer)
    reply = b.reply(b.receive(longer, "a", S), S)
    assert len(reply) <= size


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=60))
def test_any_mixture_of_old_messages_proves_only_what_is_true(picks: list[tuple[int, int]]) -> None:
    """An attacker holds every message of three boots of A and delivers them to B in any order, any number of times."""
    clocks = [ExactClock(0, 50_000), ExactClock(7 * S, -80_000), ExactClock(-(10**16), 0)]
    b = Node("b", ExactClock(10**12, 20_000))
    boots = []
    for number, clock in enumerate(clocks):
        boot = Node("a", clock)
        boot.change(boot=bytes([number + 1]) * 16)
        boots.append(boot)
    held: list[tuple[int, bytes]] = []
    now = S
    for number, boot in enumerate(boots):
        for _ in range(4):
            held.append((number, boot.request("b", now)))
            at_b, _ = exchange(boot, b, now)
            if at_b.proofs is not None:
                assert at_b.proofs.peer.boot == boot.me.boot
            now += S
    for index, wait in picks:
        now += wait * S
        number, data = held[index % len(held)]
        received = b.receive(data, "a", now)
        if received.proofs is not None:
            assert number == 2, "an old boot's message was used"
            assert_true(received.proofs, b.clock, clocks[number])


def test_what_a_node_says_travels_with_every_message() -> None:
    a, b = acquainted()
    a.change(era=3, wall_raw_at_ns=77)
    at_b, _ = exchange(a, b, 3 * S)
    assert proofs_of(at_b).peer == a.me
    assert b.protocol.peers(3 * S)["a"].described == a.me


def test_a_source_of_randomness_that_gives_none_is_an_error() -> None:
    a = Node("a")
    a.protocol._random = lambda size: bytes(size)
    with pytest.raises(ValueError, match="random"):
        a.request("b", S)


def test_names_are_checked_where_a_node_is_described() -> None:
    with pytest.raises(ValueError, match="node name"):
        described("not a name")
