"""What chronyd, ptp4l and the kernel say, byte by byte: real answers, made-up ones, and garbage."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.kernel_clock import KernelClock
from skewd.sources import chrony_wire, kernel_wire, ptp_wire
from skewd.sources.claim import Claim, Look, Refused, between

S = 1_000_000_000
MS = 1_000_000

# chronyd 4.3's answer to sequence number 12345, taken from a wire; and what its own chronyc printed of it.
TRACKING = bytes.fromhex(
    "060200000021000500000000000000000000303900000000000000007f0000017f0000010000000000000000000000000001000000020000"
    "000000006b03f12630dfa341dd6d8178c6ac2b47d899830ffb475121ecd1997afcc02044e0c609cbdca9bb4100822c06"
)


def tracking(**changed: int) -> bytes:
    """A report of chronyd's with some of its fields changed."""
    at = {"status": (8, "!H"), "reply": (6, "!H"), "reference": (28, "!I"), "leap": (54, "!H"), "ns": (64, "!I")}
    at["stratum"] = (52, "!H")
    at |= {"seconds": (56, "!I"), "correction": (68, "!I"), "delay": (92, "!I"), "dispersion": (96, "!I")}
    data = bytearray(TRACKING)
    for name, value in changed.items():
        offset, form = at[name]
        struct.pack_into(form, data, offset, value)
    return bytes(data)


def word(seconds: float) -> int:
    """chronyd's own way to write a number of seconds."""
    if seconds == 0:
        return 0
    exponent, coefficient = 0, Fraction(seconds)
    while abs(coefficient) >= 1 << 24:
        coefficient, exponent = coefficient / 2, exponent + 1
    while abs(coefficient) < 1 << 23 and exponent > -64 - 25:
        coefficient, exponent = coefficient * 2, exponent - 1
    return ((exponent + 25) & 0x7F) << 25 | int(coefficient) & 0x1FFFFFF


def test_a_real_report_of_chronyd() -> None:
    assert chrony_wire.is_reply(TRACKING, 12345)
    assert not chrony_wire.is_reply(TRACKING, 12346)
    report = chrony_wire.parse(TRACKING)
    assert report.correction.contains(-1091)  # "0.000001091 seconds fast of NTP time"
    assert report.correction.width <= 3
    assert report.root_delay_ns in (5902, 5903)
    assert report.root_dispersion_ns in (1265, 1266)
    assert report.reference_ns == 1795420454_819962689
    assert (report.stratum, report.leap) == (2, 0)


@pytest.mark.parametrize(
    ("raw_ns", "utc"),
    [(1 << 61, Interval(0, 1)), (0, Interval(0, (1 << 62) + 1)), (0, Interval(-(1 << 63), 0))],
    ids=str,
)
def test_no_source_claims_what_no_clock_shows(raw_ns: int, utc: Interval) -> None:
    with pytest.raises(Refused, match="century"):
        Claim(raw_ns, utc)


def test_its_claim_grows_as_the_oscillator_may_wander_and_no_faster_than_it_may_drift() -> None:
    report = chrony_wire.parse(TRACKING)
    half = (report.root_delay_ns + 1) // 2 + report.root_dispersion_ns
    for age_s, growth in ((0, 0), (10, 500), (1000, 5 * MS), (100_000, 20 * S)):
        claimed = report.utc_minus_wall(report.reference_ns + age_s * S, 100, 10)
        assert claimed.width == pytest.approx(2 * (half + growth), abs=20 + age_s // 10)
        assert claimed.contains(report.correction.midpoint)


@given(st.floats(1e-12, 1e6), st.sampled_from([1, -1]))
def test_numbers_are_read_outward(size: float, sign: int) -> None:
    seconds = size * sign
    read = chrony_wire.number_ns(word(seconds))
    exact = Fraction(seconds) * S
    assert read.lo <= exact <= read.hi
    assert read.width <= abs(exact) / (1 << 21) + 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"status": 2}, "not allowed"),
        ({"status": 99}, "status 99"),
        ({"reply": 6}, "no tracking report"),
        ({"reference": 0}, "not synchronized yet"),
        ({"reference": 0x7F7F0101}, "follows its own clock"),
        ({"reference": 0x4C4F434C}, "follows its own clock"),
        ({"stratum": 10, "delay": 0, "dispersion": 0}, "follows its own clock"),
        ({"leap": 3}, "not synchronized yet"),
        ({"leap": 4}, "makes no sense"),
        ({"ns": S}, "makes no sense"),
        ({"delay": word(-1.0)}, "negative error"),
        ({"dispersion": word(17.0)}, "above 16 s"),
        ({"correction": 0x7EFFFFFF}, "another century"),
        ({"correction": 0x7F000000}, "another century"),
        ({"seconds": 0x7FFFFFFE}, "another century"),
    ],
)
def test_what_chronyd_cannot_claim(changed: dict[str, int], says: str) -> None:
    with pytest.raises(Refused, match=says):
        chrony_wire.parse(tracking(**changed))


def test_a_chronyd_that_follows_its_own_clock_is_believed_where_that_is_configured() -> None:
    assert chrony_wire.parse(tracking(reference=0x7F7F0101), allow_local=True).leap == 0


@given(st.binary(max_size=200), st.binary(max_size=120))
def test_garbage_is_refused_or_read(data: bytes, tail: bytes) -> None:
    for candidate in (data, TRACKING[:28] + tail, TRACKING[:10] + data):
        chrony_wire.is_reply(candidate, 12345)
        try:
            report = chrony_wire.parse(candidate)
        except Refused:
            continue
        assert report.utc_minus_wall(S, 100, 10).width >= 0


# -- ptp4l -------------------------------------------------------------------------------------------------------

# linuxptp 3.1.1's answers, taken from its socket; master_offset 75, mean path delay 2038.
STATUS = struct.pack("!qqiiHHQHi8s", 75, 1795420463190600417, 0, 0, 0, 0, 0, 0, 1, b"gm")
SENT = {
    ptp_wire.TIME_STATUS_NP: STATUS,
    ptp_wire.CURRENT_DATA_SET: bytes.fromhex("000100000000004b00000000000007f60000"),
    ptp_wire.PARENT_DATA_SET: bytes.fromhex("e64646fffe66263300010000ffff7fffffff0a0622ffff80e64646fffe662633"),
    ptp_wire.TIME_PROPERTIES_DATA_SET: bytes.fromhex("002500a0"),
    ptp_wire.PORT_PROPERTIES_NP: bytes.fromhex("cabd2efffed0f4cb0001080002763100"),
}
REPLY = bytes.fromhex(
    "0d02003a00000000000000000000000000000000cabd2efffed0f4cb00000007047f"
    "00000000000000004eaf00000200000100062003002500a0"
)


def bodies(*, stamping: int = 0, properties: tuple[int, int] | None = None, **changed: bytes) -> dict[int, bytes]:
    """ptp4l's data sets with some changed."""
    sent = dict(SENT)
    if stamping:
        sent[ptp_wire.PORT_PROPERTIES_NP] = SENT[ptp_wire.PORT_PROPERTIES_NP][:11] + bytes([stamping, 2]) + b"v1\0"
    if properties is not None:
        sent[ptp_wire.TIME_PROPERTIES_DATA_SET] = struct.pack("!hBB", *properties, 0x20)
    return sent | {getattr(ptp_wire, name): value for name, value in changed.items()}


def test_a_real_answer_of_ptp4l() -> None:
    assert not ptp_wire.is_reply(REPLY, ptp_wire.TIME_PROPERTIES_DATA_SET, 8)
    assert ptp_wire.is_reply(REPLY, ptp_wire.TIME_PROPERTIES_DATA_SET, 7)
    assert not ptp_wire.is_reply(REPLY, ptp_wire.CURRENT_DATA_SET, 7)
    assert ptp_wire.body(REPLY) == SENT[ptp_wire.TIME_PROPERTIES_DATA_SET]
    found = ptp_wire.measurement(SENT)
    assert found.ingress_ns == 1795420463190600417
    assert found.interface is None
    # -75, within the mean path delay and the grandmaster's 250 ns.
    assert found.utc_minus_clock == Interval(-75 - 2289, -75 + 2289)
    assert found.leap == 0


def test_a_question_is_one_that_ptp4l_answers() -> None:
    asked = ptp_wire.request(ptp_wire.TIME_STATUS_NP, 0x12345)
    assert len(asked) == 54
    assert asked.hex() == "0d020036" + "00" * 24 + "0001" + "2345047f" + "ff" * 10 + "00000000" + "00010002c000"


def test_tai_needs_a_valid_offset() -> None:
    hardware = ptp_wire.measurement(bodies(stamping=1, properties=(37, 8 | 4)))
    assert hardware.interface == "v1"
    assert hardware.utc_minus_clock.midpoint == -75 - 37 * S
    software = ptp_wire.measurement(bodies(properties=(37, 8 | 4 | 16 | 1)))
    assert software.utc_minus_clock.midpoint == -75
    assert software.leap == 1
    assert ptp_wire.measurement(bodies(properties=(37, 2))).leap == 2


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (bodies(properties=(37, 8)), "tells TAI and does not say validly"),
        (bodies(stamping=1, properties=(37, 8)), "tells TAI and does not say validly"),
        (bodies(properties=(37, 8 | 4)), "not traceable"),
        (bodies(stamping=1), "tells no TAI"),
        (bodies(PARENT_DATA_SET=SENT[0x2002][:20] + b"\xfe" + SENT[0x2002][21:]), "clockAccuracy 0xfe"),
        (bodies(PARENT_DATA_SET=SENT[0x2002][:19] + b"\xf8" + SENT[0x2002][20:]), "own clock .clockClass 248"),
        (bodies(PARENT_DATA_SET=SENT[0x2002][:19] + b"\xbb" + SENT[0x2002][20:]), "lost its primary clock"),
        (bodies(PARENT_DATA_SET=SENT[0x2002][:19] + b"\x63" + SENT[0x2002][20:]), "not locked to a primary clock"),
        (bodies(CURRENT_DATA_SET=bytes(18)), "follows no grandmaster"),
        (bodies(TIME_STATUS_NP=bytes(50)), "follows no grandmaster"),
        (bodies(CURRENT_DATA_SET=b"\0\1" + bytes(8) + b"\x7f" * 8), "makes no sense"),
        (bodies(TIME_STATUS_NP=b"\x7f" * 16 + SENT[0xC000][16:]), "makes no sense"),
        (bodies(TIME_STATUS_NP=SENT[0xC000][:8] + b"\x7f" * 8 + SENT[0xC000][16:]), "makes no sense"),
        (bodies(CURRENT_DATA_SET=b"\0"), "shorter than they should be"),
        ({}, "shorter than they should be"),
    ],
)
def test_what_ptp4l_cannot_claim(sent: dict[int, bytes], says: str) -> None:
    with pytest.raises(Refused, match=says):
        ptp_wire.measurement(sent)


def test_a_grandmaster_that_was_locked_or_is_configured_to_be_utc_is_believed() -> None:
    for clock_class, allowed in ((7, False), (248, True)):
        parent = SENT[0x2002][:19] + bytes([clock_class]) + SENT[0x2002][20:]
        found = ptp_wire.measurement(bodies(PARENT_DATA_SET=parent), allow_local=allowed)
        assert found.root_distance_ns == 250


def test_a_refusal_of_ptp4l() -> None:
    refused = bytearray(REPLY[:48] + struct.pack("!HHHHI", 2, 8, 1, ptp_wire.TIME_PROPERTIES_DATA_SET, 0))
    assert ptp_wire.is_reply(bytes(refused), ptp_wire.TIME_PROPERTIES_DATA_SET, 7)
    with pytest.raises(Refused, match="refuses the question"):
        ptp_wire.body(bytes(refused))


@given(st.binary(max_size=120), st.lists(st.binary(max_size=60), min_size=5, max_size=5))
def test_garbage_of_ptp4l(data: bytes, sets: list[bytes]) -> None:
    for candidate in (data, REPLY[:48] + data):
        if ptp_wire.is_reply(candidate, ptp_wire.CURRENT_DATA_SET, 7):
            try:
                ptp_wire.body(candidate)
            except Refused:
                continue
    try:
        found = ptp_wire.measurement(dict(zip(ptp_wire.QUESTIONS, sets, strict=True)))
    except Refused:
        return
    assert found.utc_minus_clock.width > 0


@given(
    st.lists(st.integers(0, 3 * MS), min_size=8, max_size=40),
    st.integers(-100_000, 100_000),
    st.integers(0, 7),
)
def test_the_hull_of_readings_holds_while_one_of_eight_was_quick(
    held_up: list[int], drift_ppb: int, quick: int
) -> None:
    """Every eighth Sync takes the mean delay; the others are held up by anything."""
    delay = 20_000
    readings = ptp_wire.Readings(100)
    for index, extra in enumerate(held_up):
        raw = index * S
        true = 5 * S + drift_ppb * index
        late = 0 if index % 8 == quick else extra
        reading = true - late
        claim = readings.add(raw, Interval(reading - delay, reading + delay))
        assert (claim is None) == (index < ptp_wire.READINGS_MIN - 1)
        if index >= ptp_wire.READINGS:
            assert claim is not None
            assert claim.contains(true)


# -- the kernel ----------------------------------------------------------------------------------------------------


def kernel(
    state: int = 0, *, pending: int = 0, max_error: int = 1501, est_error: int = 10, status: int = 0x2000
) -> KernelClock:
    return KernelClock(state, status, 0, 10_000, max_error, est_error, 37, pending)


def test_the_kernels_figure() -> None:
    # One microsecond that was rounded off, half a millisecond that it may have grown since, and what is to be slewed.
    assert kernel_wire.claimed(kernel(pending=-2000)) == (Interval(-2_004_000, 2_004_000), 0)
    assert kernel_wire.claimed(kernel(1, status=0x10, pending=3)) == (Interval(-2_005_000, 2_005_000), 1)
    assert [kernel_wire.claimed(kernel(state))[1] for state in (0, 1, 2)] == [0, 1, 2]
    # chronyd's own estimate is rounded down to 0 us where it measures well; its maxerror is true all the same.
    assert kernel_wire.claimed(kernel(est_error=0, max_error=12))[0].hi == 513_000


@pytest.mark.parametrize("est_error", [0, 3, 16_000_000])
@pytest.mark.parametrize("after_s", [0, 1, 64, 2048])
def test_a_zero_that_has_only_grown_is_no_claim(est_error: int, after_s: int) -> None:
    """systemd-timesyncd writes 0 and 0; ptp4l and phc2sys write 0 and leave the other as they found it."""
    with pytest.raises(Refused, match=r"systemd-timesyncd.*'ntp' with the server that timesyncd follows"):
        kernel_wire.claimed(kernel(max_error=500 * after_s, est_error=est_error))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (kernel(5), "not synchronized"),
        (kernel(status=0x40), r"not synchronized; start chronyd \(with rtcsync"),
        (kernel(3), "leap second is in progress"),
        (kernel(4), "or just was"),
        (kernel(max_error=-1), "has only grown"),
        (kernel(max_error=16_000_001), "above 16 s"),
        (kernel(pending=16_000_000_000), "above 16 s"),
    ],
)
def test_what_the_kernel_cannot_claim(found: KernelClock, says: str) -> None:
    with pytest.raises(Refused, match=says):
        kernel_wire.claimed(found)


# -- from wall to raw ----------------------------------------------------------------------------------------------


@given(
    at=st.integers(0, 1000),
    turn=st.integers(0, 1000),
    slews_ppm=st.tuples(*[st.sampled_from([-83_333, -900, 0, 900, 83_333]) | st.integers(-84_000, 84_000)] * 2),
    drift_ppm=st.integers(-100, 100),
    lag_ns=st.integers(1000, MS),
    error_ns=st.integers(-MS, MS),
)
def test_a_claim_holds_whenever_it_was_made(
    at: int, turn: int, slews_ppm: tuple[int, int], drift_ppm: int, lag_ns: int, error_ns: int
) -> None:
    """The wall clock is slewed, as fast as chrony can and turning round meanwhile, and raw drifts, while a daemon is
    asked; it looks at the clocks somewhere in between."""
    made, turned = lag_ns * at // 1000, lag_ns * turn // 1000

    def wall_minus_raw(raw: int) -> int:
        first, second = slews_ppm
        return 7 * S + (first * min(raw, turned) + second * max(raw - turned, 0)) // 1_000_000

    def utc_minus_raw(raw: int) -> int:
        return 8 * S + drift_ppm * raw // 1_000_000

    looks = [
        Look(WallSample(raw, Interval(wall_minus_raw(raw) - 100, wall_minus_raw(raw) + 100)), ppm * 1_000)
        for raw, ppm in zip((0, lag_ns), slews_ppm, strict=True)
    ]
    said = utc_minus_raw(made) - wall_minus_raw(made) + error_ns
    claimed = Interval(said - abs(error_ns), said + abs(error_ns))
    raw, claim = between(looks[0], looks[1], claimed, 100)
    assert claim.contains(utc_minus_raw(raw))
    fastest = max(1_000, *(abs(ppm) + 500 for ppm in slews_ppm))
    assert claim.width <= claimed.width + 400 + 2 * (lag_ns + 200) * (fastest + 100) // 1_000_000 + 10
    (sent, arrived), (left, received) = Claim(raw, claim).proofs()
    assert (arrived - sent, left - received) == (claim.hi, claim.lo)


def test_a_step_while_it_was_asked_voids_the_answer() -> None:
    before, after = WallSample(0, Interval(0, 200)), WallSample(MS, Interval(5000, 5200))
    for set_ppb in ((0, 0), (4_000_000, 0), (-83_333_000, -83_333_000)):
        with pytest.raises(Refused, match="stepped"):
            between(Look(before, set_ppb[0]), Look(after, set_ppb[1]), Interval(0, 0), 100)
    # The same is a slew where the kernel says so.
    assert between(Look(before, 0), Look(after, 5_000_000), Interval(0, 0), 100)[1].contains(5_100)
