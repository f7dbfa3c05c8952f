"""Aeron's fragments: every message comes out whole, however polls and sessions cut and mix them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.links.fragments import SENDERS_MAX, Assembler, TooLong

BEGIN, END = 0x80, 0x40


def cut(message: bytes, packet_bytes: int) -> list[tuple[int, bytes]]:
    """As a publication does it."""
    parts = [message[at : at + packet_bytes] for at in range(0, len(message), packet_bytes)]
    last = len(parts) - 1
    return [(BEGIN * (place == 0) | END * (place == last), part) for place, part in enumerate(parts)]


@given(
    messages=st.lists(
        st.tuples(st.integers(0, SENDERS_MAX - 1), st.binary(min_size=1, max_size=60)), min_size=1, max_size=20
    ),
    packet_bytes=st.integers(1, 20),
    choose=st.randoms(use_true_random=False),
)
def test_sessions_may_mix_in_any_way(
    messages: list[tuple[int, bytes]], packet_bytes: int, choose: random.Random
) -> None:
    waiting: dict[int, list[tuple[int, bytes]]] = {}
    for session, message in messages:
        waiting.setdefault(session, []).extend(cut(message, packet_bytes))
    assembler = Assembler(60)
    found: dict[int, list[bytes]] = {}
    while waiting:
        session = choose.choice(sorted(waiting))
        whole = assembler.add(session, *waiting[session].pop(0))
        if whole is not None:
            found.setdefault(session, []).append(whole)
        if not waiting[session]:
            del waiting[session]
    expected: dict[int, list[bytes]] = {}
    for session, message in messages:
        expected.setdefault(session, []).append(message)
    assert found == expected


def test_what_is_torn_is_dropped_and_the_next_is_whole() -> None:
    assembler = Assembler(100)
    assert assembler.add(1, END, b"of a message that began before this one listened") is None
    assert assembler.add(1, BEGIN, b"torn") is None
    assert assembler.add(1, BEGIN, b"d") is None
    assert assembler.add(1, END, b"e") == b"de"
    assert assembler.add(1, BEGIN, b"torn") is None
    assert assembler.add(1, BEGIN | END, b"whole") == b"whole"
    assert assembler.add(1, END, b"of the torn one") is None


def test_memory_has_limits() -> None:
    assembler = Assembler(10)
    with pytest.raises(TooLong, match="10 bytes"):
        assembler.add(1, BEGIN | END, bytes(11))
    assert assembler.add(1, BEGIN, bytes(10)) is None
    with pytest.raises(TooLong):
        assembler.add(1, 0, b"x")
    assert assembler.add(1, 0, b"x") is None
    assert assembler.add(1, END, b"x") is None
    assert assembler.add(1, BEGIN | END, bytes(10)) == bytes(10)
    for session in range(SENDERS_MAX + 1):
        assembler.add(session, BEGIN, b"s")
    assert assembler.add(0, END, b"t") is None, "the oldest gave way"
    assert assembler.add(SENDERS_MAX, END, b"t") == b"st"
