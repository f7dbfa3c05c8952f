"""What an NTP answer proves, to the nanosecond, and which answers prove nothing."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.sources.ntp_wire import (
    MAX_PACKET_BYTES,
    PACKET_BYTES,
    KissOfDeath,
    NtpRefused,
    NtpSample,
    own_clock,
    parse,
    request,
)

S = 1_000_000_000
NONCE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
NTP_TO_UNIX_S = 2_208_988_800
WALL_NS = 1_795_000_000 * S


def stamp(unix_ns: int) -> int:
    """The 64-bit stamp at or just below a time."""
    return ((unix_ns + NTP_TO_UNIX_S * S) << 32) // S & ((1 << 64) - 1)


def answer(
    *,
    receive: int = stamp(WALL_NS),
    transmit: int = stamp(WALL_NS + 1000),
    origin: bytes = NONCE,
    leap: int = 0,
    version: int = 4,
    mode: int = 4,
    stratum: int = 2,
    precision: int = -20,
    root_delay: int = 0,
    root_dispersion: int = 0,
    reference_id: bytes = b"\x7f\x00\x00\x01",
) -> bytes:
    first = leap << 6 | version << 3 | mode
    return struct.pack(
        "!BBbbII4sQ8sQQ",
        first,
        stratum,
        6,
        precision,
        root_delay,
        root_dispersion,
        reference_id,
        0,
        origin,
        receive,
        transmit,
    )


def sample(data: bytes, sent: int = 0, received: int = 5000, near: int = WALL_NS) -> NtpSample:
    return parse(data, nonce=NONCE, sent_raw_ns=sent, received_raw_ns=received, near_wall_ns=near)


def refused(data: bytes) -> NtpRefused:
    with pytest.raises(NtpRefused) as error:
        sample(data)
    return error.value


def test_a_request_says_nothing_about_us_but_64_random_bits() -> None:
    data, nonce = request(lambda size: b"\xaa" * size)
    assert data == bytes([4 << 3 | 3]) + bytes(39) + b"\xaa" * 8
    assert nonce == b"\xaa" * 8
    assert len(data) == PACKET_BYTES
    with pytest.raises(ValueError, match="random"):
        request(bytes)


@given(st.integers(0, 1 << 32), st.integers(0, (1 << 32) - 1), st.integers(-(1 << 31) + 2, (1 << 31) - 2))
def test_stamps_are_exact_in_any_era(unix_s: int, fraction: int, wall_error_s: int) -> None:
    bits = (unix_s + NTP_TO_UNIX_S) << 32 | fraction
    near = (unix_s + wall_error_s) * S
    read = sample(answer(receive=bits & ((1 << 64) - 1) or 1, transmit=bits & ((1 << 64) - 1) or 1), near=near)
    if bits & ((1 << 64) - 1):
        exact = unix_s * S * 2**32 + fraction * S  # in 2^-32 ns
        assert exact <= read.server_receive_ns * 2**32 < exact + 2**32
        assert exact - 2**32 < read.server_transmit_ns * 2**32 <= exact


def test_the_rollover_of_2036_is_seen_from_both_sides() -> None:
    rollover_s = (1 << 32) - NTP_TO_UNIX_S  # 2036-02-07 06:28:16 UTC
    before, after = (rollover_s - 1) * S, (rollover_s + 1) * S
    for near in (before, after, rollover_s * S, WALL_NS):
        assert sample(answer(receive=stamp(before), transmit=stamp(after)), near=near).server_receive_ns == before
        assert sample(answer(receive=stamp(before), transmit=stamp(after)), near=near).server_transmit_ns == after


def test_the_proofs_are_widened_by_what_the_server_says_of_itself() -> None:
    read = sample(answer(root_delay=3, root_dispersion=5, precision=-10))
    # 3/65536 s, 5/65536 s and 2^-10 s, each rounded up.
    assert (read.root_delay_ns, read.root_dispersion_ns, read.precision_ns) == (45777, 76294, 976563)
    error = 22889 + 76294 + 976563
    assert read.error_ns == error
    assert read.outgoing() == (0, read.server_receive_ns + error)
    assert read.incoming() == (read.server_transmit_ns - error, 5000)
    assert read.proofs() == (read.outgoing(), read.incoming())
    assert (read.stratum, read.leap, read.poll, read.reference_id) == (2, 0, 6, 0x7F000001)


@given(
    st.integers(-(10**18), 10**18),
    st.integers(0, S),
    st.integers(0, S),
    st.integers(0, S),
    st.integers(-S, S),
    st.integers(0, 16),
)
def test_the_proofs_hold_while_the_server_is_as_good_as_it_says(
    raw_minus_utc: int, there: int, held: int, back: int, server_error: int, precision: int
) -> None:
    """True UTC: sent at WALL_NS. The server's clock is wrong by less than its root dispersion says."""
    dispersion = -(-abs(server_error) * 65536 // S)
    data = answer(
        receive=stamp(WALL_NS + there + server_error),
        transmit=stamp(WALL_NS + there + held + server_error),
        root_dispersion=dispersion,
        precision=-precision,
    )
    read = sample(data, sent=WALL_NS + raw_minus_utc, received=WALL_NS + there + held + back + raw_minus_utc)
    (sent_raw, utc_after), (utc_before, received_raw) = read.proofs()
    assert -raw_minus_utc <= utc_after - sent_raw
    assert -raw_minus_utc >= utc_before - received_raw


@given(st.integers(-S, S))
def test_a_negative_delay_leaves_the_proofs_without_contradiction(transmit_lead: int) -> None:
    read = sample(answer(transmit=stamp(WALL_NS + transmit_lead)), sent=0, received=5000)
    (sent_raw, utc_after), (utc_before, received_raw) = read.proofs()
    assert utc_after - sent_raw >= utc_before - received_raw
    if transmit_lead > 5001:
        assert read.delay_ns < 0


def test_answers_to_something_else_are_refused() -> None:
    assert refused(answer(origin=b"\x01\x02\x03\x04\x05\x06\x07\x09")).reason == "wrong_origin"
    assert refused(answer(origin=bytes(8))).reason == "wrong_origin"
    assert refused(answer(mode=3)).reason == "malformed"
    assert refused(answer(mode=5)).reason == "malformed"
    assert refused(answer(version=0)).reason == "malformed"
    assert refused(answer(version=5)).reason == "malformed"


@pytest.mark.parametrize("apart_s", [-17, 17, -(1 << 30), 1 << 30])
def test_a_server_whose_two_stamps_are_far_apart_is_refused(apart_s: int) -> None:
    assert refused(answer(transmit=stamp(WALL_NS + apart_s * 10**9))).reason == "malformed"


def test_a_server_that_does_not_know_the_time_is_refused() -> None:
    assert refused(answer(stratum=16)).reason == "unsynchronized"
    assert refused(answer(stratum=255)).reason == "unsynchronized"
    assert refused(answer(leap=3)).reason == "unsynchronized"
    assert refused(answer(transmit=0)).reason == "unsynchronized"
    assert refused(answer(receive=0)).reason == "unsynchronized"
    assert refused(answer(root_dispersion=16 << 16)).reason == "unsynchronized"
    assert refused(answer(root_delay=0xFFFFFFFF)).reason == "unsynchronized"
    assert refused(answer(precision=7)).reason == "malformed"
    assert sample(answer(leap=1)).leap == 1
    assert sample(answer(stratum=15)).stratum == 15


def test_a_server_that_names_no_reference_has_no_time() -> None:
    """Stratum 0 with letters is a refusal; with none there is just nothing that it follows."""
    found = refused(answer(stratum=0, leap=3, reference_id=bytes(4)))
    assert not isinstance(found, KissOfDeath)
    assert (found.reason, "has no time" in str(found)) == ("unsynchronized", True)


@pytest.mark.parametrize(
    ("says", "own"),
    [
        ({"reference_id": b"\x7f\x7f\1\1"}, "127.127.1.1"),
        ({"reference_id": b"\x7f\x7f\1\0", "root_delay": 30, "root_dispersion": 700}, "127.127.1.0"),
        ({"reference_id": b"LOCL", "stratum": 1}, "'LOCL'"),
        ({"stratum": 10}, "stratum 10 with no distance"),
        ({"stratum": 15, "root_dispersion": 1}, "stratum 15 with no distance"),
        ({"stratum": 9}, None),
        ({"stratum": 10, "root_delay": 1}, None),
        ({"stratum": 10, "root_dispersion": 2}, None),
        ({"reference_id": b"GPS\0", "stratum": 1}, None),
        ({"reference_id": b"\x7f\x7f\x1c\0", "stratum": 2}, None),
    ],
)
def test_who_follows_its_own_clock(says: dict[str, Any], own: str | None) -> None:
    read = sample(answer(**says))
    found = own_clock(read.stratum, read.reference_id, read.root_delay_ns, read.root_dispersion_ns)
    assert (own is None) == (found is None)
    assert own is None or own in str(found)


@pytest.mark.parametrize(("letters", "code"), [(b"DENY", "DENY"), (b"RATE", "RATE"), (b"X\xff\x00\x01", "58ff0001")])
def test_a_kiss_of_death_is_believed_only_in_answer_to_us(letters: bytes, code: str) -> None:
    kiss = refused(answer(stratum=0, leap=3, reference_id=letters))
    assert isinstance(kiss, KissOfDeath)
    assert (kiss.reason, kiss.code) == ("kiss", code)
    assert refused(answer(stratum=0, reference_id=letters, origin=bytes(8))).reason == "wrong_origin"


@given(st.binary(max_size=MAX_PACKET_BYTES + 10))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert refused(data).reason in ("malformed", "wrong_origin")


@given(st.binary(min_size=24, max_size=24), st.binary(min_size=16, max_size=16), st.binary(max_size=50))
def test_any_fields_in_answer_to_us_give_a_sample_or_a_refusal(head: bytes, stamps: bytes, tail: bytes) -> None:
    try:
        read = sample(head + NONCE + stamps + tail)
    except NtpRefused:
        return
    (sent_raw, utc_after), (utc_before, received_raw) = read.proofs()
    assert utc_after - sent_raw >= utc_before - received_raw


def test_extension_fields_are_ignored() -> None:
    assert sample(answer() + bytes(100)) == sample(answer())
    assert refused(answer()[:-1]).reason == "malformed"
    assert refused(answer() + bytes(MAX_PACKET_BYTES)).reason == "malformed"
