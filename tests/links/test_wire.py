"""The layout, its limits, and what happens to bytes that are not a message."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.interval import Interval
from skewd.keys import KeyRing, MeshKey
from skewd.limits import RAW_MAX_NS, SCALE_MAX_NS, WIDTH_MAX_NS
from skewd.links import wire
from skewd.links.wire import Kind, Refused, Self
from tests.links.link_bench import KEY, OTHER_KEY, described

RAW = st.integers(-RAW_MAX_NS, RAW_MAX_NS)
U32 = st.integers(0, (1 << 32) - 1)
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,63}", fullmatch=True)
SELVES = st.builds(
    Self,
    name=NAMES,
    boot=st.binary(min_size=16, max_size=16),
    raw_era=U32,
    era=U32,
    wall_minus_raw=st.builds(
        lambda low, width: Interval(low, min(low + width, SCALE_MAX_NS)),
        st.integers(-SCALE_MAX_NS, SCALE_MAX_NS),
        st.integers(0, WIDTH_MAX_NS),
    ),
    wall_raw_at_ns=RAW,
    wall_slew_ppb=st.integers(0, wire.MAX_SLEW_PPB),
    max_drift_ppm=st.integers(0, wire.MAX_DRIFT_PPM),
    max_wander_ppb_per_s=st.integers(0, wire.MAX_WANDER_PPB_PER_S),
)
NONCES = st.binary(min_size=16, max_size=16).filter(any)


def draft(**fields: Any) -> Callable[[int], bytes]:
    fields["sender"] = wire.packed(fields.pop("sender", described("a")))
    defaults: dict[str, Any] = {"kind": Kind.REQUEST, "nonce": b"n" * 16, "receiver": "b"}
    return wire.draft(KEY.key_id, KEY.secret, **(defaults | fields))


def message(sent_ns: int = 100, received_ns: int = 50, answers: bytes = b"a" * 16, **fields: Any) -> bytes:
    return draft(answers=answers, received_ns=received_ns, **fields)(sent_ns)


def decode(data: bytes, key: KeyRing | MeshKey | None = KEY) -> wire.Message:
    return wire.decode(data, wire.secrets_of(key))


def reason(data: bytes, key: KeyRing | MeshKey | None = KEY) -> str:
    with pytest.raises(Refused) as refused:
        decode(data, key)
    return refused.value.reason


@given(
    SELVES,
    st.sampled_from((Kind.REQUEST, Kind.REPLY)),
    NONCES,
    NONCES,
    st.tuples(RAW, RAW),
    st.one_of(st.just(""), NAMES),
)
def test_what_was_written_is_read(
    sender: Self, kind: Kind, nonce: bytes, answers: bytes, stamps: tuple[int, int], receiver: str
) -> None:
    received_ns, sent_ns = sorted(stamps)
    data = message(sent_ns, received_ns, answers, kind=kind, nonce=nonce, sender=sender, receiver=receiver)
    assert len(data) == wire.MIN_MESSAGE_BYTES
    assert wire.answered_nonce(data) == answers
    decoded = decode(data)
    assert (decoded.kind, decoded.nonce, decoded.answers, decoded.sent_ns, decoded.received_ns) == (
        kind,
        nonce,
        answers,
        sent_ns,
        received_ns,
    )
    assert decoded.sender == sender
    assert decoded.receiver == receiver


def test_every_flipped_bit_is_noticed() -> None:
    data = message()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert reason(bytes(flipped)) in ("bad_magic", "bad_version", "bad_kind", "wrong_key", "bad_mac")


def test_every_truncation_is_noticed() -> None:
    data = message()
    assert {reason(data[:size]) for size in range(len(data))} == {"truncated"}


def test_longer_messages_of_later_versions_are_read_up_to_the_limit() -> None:
    assert reason(message() + bytes(wire.MAX_MESSAGE_BYTES - wire.MIN_MESSAGE_BYTES)) == "bad_mac"
    assert reason(message() + bytes(wire.MAX_MESSAGE_BYTES - wire.MIN_MESSAGE_BYTES + 1)) == "oversized"


@given(st.binary(max_size=1500))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert reason(data) in ("oversized", "truncated", "bad_magic")


@given(st.binary(min_size=324, max_size=1300))
def test_random_bytes_behind_a_true_header_are_refused(tail: bytes) -> None:
    header = struct.pack(">4sBBHI", b"skwd", wire.OLD_VERSION, 1, 0, KEY.key_id)
    assert reason(header + tail) == "bad_mac"


def test_another_key_is_told_by_its_id_and_another_secret_by_its_mac() -> None:
    assert reason(message(), OTHER_KEY) == "wrong_key"
    assert reason(message(), None) == "wrong_key"
    assert reason(message(), MeshKey(KEY.key_id, OTHER_KEY.secret)) == "bad_mac"


def test_an_authentic_message_that_says_what_cannot_be_is_refused() -> None:
    assert reason(message(sent_ns=49)) == "malformed"
    assert decode(message(sent_ns=49, answers=wire.NO_NONCE)).sent_ns == 49


@given(st.data())
def test_an_authentic_message_of_random_content_never_raises_anything_else(data: st.DataObject) -> None:
    body = bytearray(message()[:-16])
    patch = data.draw(st.binary(min_size=1, max_size=260))
    at = data.draw(st.integers(12, len(body) - len(patch))) if len(patch) < len(body) - 12 else 12
    body[at : at + len(patch)] = patch[: len(body) - at]
    forged = bytes(body) + wire._mac(KEY.secret, body)
    outcome = "used"
    try:
        assert wire.is_name(decode(forged).sender.name)
    except Refused as refused:
        outcome = refused.reason
    assert outcome in ("used", "malformed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a" * 64),
        ("name", "a b"),
        ("name", "ä"),
        ("name", "a\n"),
        ("boot", b"short"),
        ("raw_era", -1),
        ("era", 1 << 32),
        ("max_drift_ppm", wire.MAX_DRIFT_PPM + 1),
        ("max_wander_ppb_per_s", -1),
        ("wall_slew_ppb", -1),
        ("wall_raw_at_ns", RAW_MAX_NS + 1),
        ("wall_raw_at_ns", -RAW_MAX_NS - 1),
        ("wall_minus_raw", Interval(0, SCALE_MAX_NS + 1)),
        ("wall_minus_raw", Interval(-(1 << 63), -(1 << 63))),
        ("wall_minus_raw", Interval(0, WIDTH_MAX_NS + 1)),
    ],
)
def test_a_node_cannot_describe_itself_so(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        described("a", **{field: value})


@pytest.mark.parametrize(
    "said",
    [
        {"sent_ns": RAW_MAX_NS + 1},
        {"sent_ns": (1 << 63) - 1},
        {"received_ns": -RAW_MAX_NS - 1},
        {"received_ns": -(1 << 63), "answers": wire.NO_NONCE},
        {"told": (b"t" * 16, -(1 << 63))},
        {"kind": Kind.ONE_WAY, "answers": wire.NO_NONCE, "others": [(b"o" * 16, -RAW_MAX_NS - 1)]},
    ],
    ids=str,
)
def test_a_stamp_that_no_raw_clock_shows_makes_the_message_malformed(said: dict[str, Any]) -> None:
    assert reason(message(**said)) == "malformed"


def test_whom_a_message_claims_to_be_from_can_be_read_before_it_is_checked() -> None:
    assert wire.claimed_sender(message()) == "a"
    forged = message()[:-1] + b"?"
    assert wire.claimed_sender(forged) == "a"
    assert wire.claimed_sender(message()[:100]) is None
    for length in (0, 64, 255):
        odd = bytearray(message())
        odd[120] = length
        assert wire.claimed_sender(bytes(odd)) is None


@given(
    st.lists(st.tuples(NONCES, st.integers(-1000, 1000)), max_size=wire.MAX_ANSWERS),
    st.one_of(st.none(), st.tuples(NONCES, st.integers(-1000, 1000))),
    st.binary(max_size=wire.MAX_ATTACHMENT_BYTES - wire.ANSWER_BYTES * wire.MAX_ANSWERS),
    st.integers(0, wire.MAX_MESSAGE_BYTES),
)
def test_what_a_one_way_message_brings_along_is_read(
    others: list[wire.Answer], told: wire.Answer | None, attachment: bytes, size: int
) -> None:
    data = draft(kind=Kind.ONE_WAY, others=others, told=told, attachment=attachment, size=size)(1000)
    assert size <= len(data) <= wire.MAX_MESSAGE_BYTES
    decoded = decode(data)
    assert (decoded.others, decoded.told, decoded.attachment) == (tuple(others), told, attachment)
    assert (decoded.key_id, wire.nonce_of(data)) == (KEY.key_id, decoded.nonce)
