"""The form of evidence: what is written is what is read, whatever happened to the file in between."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewd.bounds.observed import Observed
from skewd.bounds.pair import PairBound
from skewd.evidence import (
    ALONE,
    EXPECTED,
    MAGIC,
    SEGMENT_MAX,
    About,
    Begin,
    Cut,
    EvidenceError,
    Fact,
    Gone,
    Learnt,
    Missed,
    Restart,
    Step,
    Writer,
    pack,
    read,
    unpack,
)
from skewd.replay import replayed
from skewd.replay_view import told
from tests.evidence.worlds import World, content_of

ABOUT = About("1.2.3", "here", b"boot", 1, False, "tsc", 5, 1_700_000_000_000_000_000, 100.0, 10.0)
SAMPLE = Path(__file__).parent / "version-1.skewd"


def begin(pair: int, interval_ns: int = 1_000_000_000) -> Begin:
    bound = PairBound(max_drift_ppm=200, max_wander_ppb_per_s=20)
    watch = Observed(max_drift_ppm=200, max_wander_ppb_per_s=20)
    return Begin(pair, "peer", f"peer-{pair}", b"boot 1", interval_ns, False, 0, bound.state(), watch.state())


INSTANTS = st.integers(-(1 << 60), 1 << 60)
LEARNT = st.builds(
    lambda pair, upper, local_ns, limit_ns, watch, expected: Learnt(
        pair, upper, local_ns, limit_ns, watch, expected if watch == EXPECTED else None
    ),
    st.integers(0, 2),
    st.booleans(),
    INSTANTS | st.integers(0, 10**10),
    INSTANTS | st.integers(-(10**5), 10**5),
    st.integers(0, ALONE),
    st.none() | st.tuples(INSTANTS, INSTANTS),
)
OTHERS = (
    st.builds(Gone, st.integers(0, 2))
    | st.builds(Missed, st.integers(0, 9))
    | st.builds(Step, INSTANTS, st.integers(1, 99), INSTANTS)
    | st.builds(Restart, INSTANTS, st.integers(1, 99))
    | st.builds(begin, st.integers(0, 2), st.integers(1, 10**12))
)


@given(st.lists(LEARNT | OTHERS, max_size=60))
def test_what_is_written_is_read(facts: list[Fact]) -> None:
    whole = [ABOUT, begin(0), begin(1), begin(2), *facts]
    assert list(read(io.BytesIO(content_of(whole)))) == whole


@given(st.lists(LEARNT | OTHERS, max_size=20), st.integers(0, 4_000))
def test_a_file_that_was_cut_off_is_read_up_to_the_cut(facts: list[Fact], kept: int) -> None:
    whole = [ABOUT, begin(0), begin(1), begin(2), *facts]
    content = content_of(whole)
    kept = min(max(kept, len(MAGIC) + 1), len(content))
    found = list(read(io.BytesIO(content[:kept])))
    last = found[-1] if found else None
    if isinstance(last, Cut):
        found.pop()
        assert 0 < last.bytes <= kept
    assert found == whole[: len(found)]


@given(st.lists(LEARNT, min_size=1, max_size=20), st.data())
def test_a_damaged_file_gives_facts_that_are_true_and_no_others(facts: list[Fact], data: st.DataObject) -> None:
    whole = [ABOUT, begin(0), begin(1), begin(2), *facts]
    content = bytearray(content_of(whole))
    at = data.draw(st.integers(len(MAGIC) + 1, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    found = list(read(io.BytesIO(bytes(content))))
    cut = found.pop()
    assert isinstance(cut, Cut)
    assert found == whole[: len(found)]


@given(st.binary(max_size=300), st.sampled_from([1, 2, 3, 0]))
def test_segments_that_anybody_made_end_the_file_and_nothing_else(content: bytes, kind: int) -> None:
    """The checksum is right, so whoever made it meant it."""
    begun = content_of([ABOUT, begin(0)])
    made = struct.pack("!IIB", len(content), zlib.crc32(bytes([kind]) + content), kind) + content
    found = list(read(io.BytesIO(begun + made)))
    assert found[:2] == [ABOUT, begin(0)]


@given(st.binary(max_size=200))
def test_what_comes_from_a_socket_is_facts_or_refused(content: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        unpack(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no evidence; make some with 'skewd record FILE'"),
        (b"[node]\nname = 'here'\n", "is no evidence"),
        (MAGIC + b"\x63", "is evidence of version 99, and this skewd reads 1; use a later one"),
    ],
)
def test_what_is_no_evidence_is_refused_in_a_line(content: bytes, says: str) -> None:
    with pytest.raises(EvidenceError, match=says.replace("(", r"\(")) as caught:
        list(read(io.BytesIO(content), "out.skewd"))
    assert str(caught.value).startswith("out.skewd ")
    assert "\n" not in str(caught.value)


def test_a_segment_that_claims_to_be_huge_is_not_read_into_memory() -> None:
    content = content_of([ABOUT]) + struct.pack("!IIB", SEGMENT_MAX + 1, 0, 1) + b"x" * 10
    assert list(read(io.BytesIO(content))) == [ABOUT, Cut(19)]


def test_a_proof_of_a_pair_that_never_began_cannot_be_written() -> None:
    writer = Writer()
    with pytest.raises(ValueError, match="never began"):
        writer.add(Learnt(3, True, 1, 1, 0))


def test_facts_travel() -> None:
    facts: list[Fact] = [ABOUT, begin(0), Learnt(0, True, 1, 2, EXPECTED, (3, 4))]
    assert unpack(pack(facts)) == facts


def test_a_file_of_version_1_is_read_for_ever() -> None:
    """Written by the first version that wrote any. What it says was told by that version too."""
    with SAMPLE.open("rb") as file:
        found = replayed(read(file), candidates=True, bounds=True)
    assert told(found) == json.loads(SAMPLE.with_suffix(".json").read_text())
    assert found.compared == found.identical > 0
    assert found.published_compared == found.published_identical > 0


def sample() -> list[Fact]:
    """How the sample was made: kept, so that one of a later version can be."""
    world = World("utc", look_every_ns=30_000_000_000, seed=7)
    world.run(3)
    world.tap.listen(world.listener)
    facts = []
    for _ in range(4):
        world.run(50)
        world.tap.stepped(world.raw(world.true_ns), 7_000_000)
        facts += world.taken()
    world.raw_era = 2  # the peer's machine slept
    world.run(60)
    facts += [*world.taken(), Missed(0)]
    return facts


if __name__ == "__main__":
    facts = sample()
    SAMPLE.write_bytes(content_of(facts))
    SAMPLE.with_suffix(".json").write_text(json.dumps(told(replayed(facts, candidates=True, bounds=True)), indent=1))
