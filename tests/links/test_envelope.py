"""Labels on a shared medium: what was wrapped comes back, anything else is nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.links.envelope import MAX_ENVELOPE_BYTES, Labelled, unwrap, wrap

NAME = st.from_regex(r"[A-Za-z0-9._-]{1,63}", fullmatch=True)


@given(NAME | st.just(""), NAME, st.binary(max_size=1400))
def test_what_is_wrapped_comes_back(receiver: str, sender: str, message: bytes) -> None:
    data = wrap(receiver, sender, message)
    assert unwrap(data) == Labelled(receiver, sender, message)
    assert len(data) <= len(message) + MAX_ENVELOPE_BYTES


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: b"skA1" + data))
def test_anything_else_is_nothing_or_labelled_properly(data: bytes) -> None:
    labelled = unwrap(data)
    if labelled is not None:
        assert wrap(*labelled) == data


@given(NAME, NAME, st.binary(max_size=50), st.integers(0, 140))
def test_what_is_cut_short_is_nothing(receiver: str, sender: str, message: bytes, length: int) -> None:
    labels = len(wrap(receiver, sender, b""))
    if length < labels:
        assert unwrap(wrap(receiver, sender, message)[:length]) is None


@pytest.mark.parametrize(("receiver", "sender"), [("a b", "c"), ("a", ""), ("a", "x" * 64), ("\xff", "c")])
def test_labels_are_names(receiver: str, sender: str) -> None:
    with pytest.raises(ValueError, match="a node's name"):
        wrap(receiver, sender, b"")
