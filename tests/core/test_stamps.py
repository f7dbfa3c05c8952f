"""What a kernel's stamp means in raw, and the messages it comes in."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.stamps import SendStamp, raw_of_stamp, receive_stamp, send_stamp

S = 1_000_000_000
LIMIT_PPB = 1_000_000
STAMP = (1, 37, struct.pack("@llllll", 7, 5, 0, 0, 0, 0))


def error(number: int = 42, origin: int = 4, what: int = 9) -> bytes:
    return struct.pack("=IBBBBII", number, origin, 0, 0, 0, 0, what) + bytes(16)


def reading(raw_ns: int, wall_minus_raw: int, width: int = 0) -> WallSample:
    return WallSample(raw_ns, Interval(wall_minus_raw - width, wall_minus_raw + width))


def test_a_receive_stamp_is_the_first_of_three() -> None:
    assert receive_stamp([(0, 8, b"else"), STAMP]) == 7 * S + 5
    assert receive_stamp([]) is None
    assert receive_stamp([(1, 37, bytes(48))]) is None
    assert receive_stamp([(1, 37, b"short")]) is None


def test_a_send_stamp_names_its_send_over_either_protocol() -> None:
    for level, kind in ((0, 11), (41, 25)):
        assert send_stamp([STAMP, (level, kind, error())]) == SendStamp(9, 7 * S + 5)
        assert send_stamp([(level, kind, error()), STAMP]) == SendStamp(9, 7 * S + 5)
        # An ICMP error is in the same queue, and no stamp.
        assert send_stamp([STAMP, (level, kind, error(number=111, origin=2))]) is None
        assert send_stamp([(level, kind, error())]) is None
        assert send_stamp([STAMP, (level, kind, error()[:10])]) is None
    assert send_stamp([STAMP]) is None


@given(
    st.integers(-(10**18), 10**18),
    st.integers(0, S),
    st.integers(0, S),
    st.integers(-LIMIT_PPB, LIMIT_PPB),
    st.integers(-LIMIT_PPB, LIMIT_PPB),
    st.integers(0, 10**6),
)
def test_the_instant_is_within_under_any_slew(
    wall_minus_raw: int, first: int, second: int, rate_1: int, rate_2: int, width: int
) -> None:
    """The rate changes once, at the instant of the stamp."""
    at, end = first, first + second
    there = wall_minus_raw + rate_1 * first // S
    last = there + rate_2 * second // S
    raw = raw_of_stamp(at + there, reading(0, wall_minus_raw, width), reading(end, last, width), LIMIT_PPB)
    assert raw is not None
    assert raw.lo <= at <= raw.hi
    assert raw.width <= 4 * width + 2 * end * LIMIT_PPB // S + 10


@given(st.integers(-S, S), st.integers(0, 1000), st.integers(0, 10**8), st.booleans())
def test_a_step_is_noticed_or_covered(step: int, width: int, gap: int, after_it: bool) -> None:
    at = gap // 2
    wall = at + (step if after_it else 0)
    raw = raw_of_stamp(wall, reading(0, 0, width), reading(gap, step, width), 2_000)
    if raw is None:
        assert abs(step) > 2 * width + gap * 2_000 // S + 2
    else:
        assert abs(step) <= 2 * width + (gap + 2 * width) * 2_000 // S + 4
        assert raw is not None
        assert raw.lo <= at <= raw.hi
