"""What an older version wrote is read for ever: one stored packet, record, segment and state of each version there was.

``make.py`` made the files, each directory by the version that it is named after. A version that can't read one of them
has broken a rolling upgrade: it must read what the version before wrote, or say in words that it does not.
"""

from __future__ import annotations

import shutil
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from skewd import hostclock, resume
from skewd.identity import KeysFile, PinsFile, load_identity
from skewd.keys import load_keys
from skewd.links import wire
from skewd.links.protocol import LinkProtocol
from skewd.links.wire import Kind
from skewd.member_keys import MemberKeys
from skewd.publish.segment import SegmentReader
from skewd.records import decode, private_key, public_key_of, verify
from tests.formats import make

HERE = Path(__file__).parent
VERSIONS = ("2-shared-key", "3-pair-keys")
BOUND = ("introduction", "signed-one-way", "paired-request", "paired-reply", "reply-to-introduction")
A, B = (MemberKeys(name, private_key(make.SECRETS[name])) for name in "ab")


@pytest.fixture(params=VERSIONS)
def stored(request: pytest.FixtureRequest) -> Path:
    return HERE / str(request.param)


def packet(path: Path) -> wire.Message:
    """As node b reads it."""
    secrets = wire.secrets_of(make.KEY)
    return wire.decode(path.read_bytes(), secrets, lambda who, key_id: B.secret_of(who, secrets[key_id], 0))


def test_the_present_version_is_stored() -> None:
    assert VERSIONS[-1].startswith(f"{wire.VERSION}-")
    assert {path.name for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit()} == set(VERSIONS)


@pytest.mark.parametrize("name", ["request", "reply", "one-way"])
def test_packets_under_the_mesh_s_key(stored: Path, name: str) -> None:
    message = packet(stored / f"{name}.packet")
    one_way = name == "one-way"
    assert (message.kind, message.sender, message.receiver) == (
        Kind[name.replace("-", "_").upper()],
        make.SELF,
        "b",
    )
    assert (message.nonce, message.told, message.attachment) == (
        make.MESSAGE["nonce"],
        make.MESSAGE["told"],
        make.MESSAGE["attachment"],
    )
    assert message.sent_ns == make.SENT_NS
    assert message.others == (make.OTHERS if one_way else ())
    if not one_way:
        assert (message.answers, message.received_ns) == (make.ANSWERED, make.RECEIVED_NS)
    assert (message.public_key, message.bound, message.signature) == (b"", False, b"")


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("name", BOUND)
def test_packets_with_an_identity(version: str, name: str) -> None:
    path = HERE / version / f"{name}.packet"
    message = packet(path)
    assert (message.sender, message.attachment, message.sent_ns) == (make.SELF, b"attached", make.SENT_NS)
    assert message.public_key == A.public_key
    assert message.bound == name.endswith(("paired-request", "paired-reply", "to-introduction"))
    assert message.echoed_ns == (make.RECEIVED_NS if name == "reply-to-introduction" else None)
    if name == "signed-one-way":
        B.check(A.public_key, message.signature, wire.signed_content(path.read_bytes()), 0)
    # Two versions are understood: what is not under the pair's key is what the version before sends and reads.
    assert (path.read_bytes()[4] == wire.OLD_VERSION) == (not message.bound)


@pytest.mark.parametrize("name", ["request", "introduction", "paired-request"])
def test_a_stored_request_is_answered(name: str) -> None:
    """By a whole node, not by its decoder alone; the answer is of the version that it was asked in."""
    me = replace(make.SELF, name="b", boot=bytes(range(1, 17)))
    node = LinkProtocol(
        link="udp", key=make.KEY, describe=lambda: me, random=lambda size: bytes([1] * size), member_keys=B
    )
    received = node.receive((HERE / "3-pair-keys" / f"{name}.packet").read_bytes(), "a", 9 * make.S)
    assert received.error == "unconfirmed"
    assert received.reply is not None
    assert received.reply(9 * make.S)[4] == (wire.OLD_VERSION if name == "request" else wire.VERSION)


def test_records(stored: Path) -> None:
    data = (stored / "record").read_bytes()
    assert decode(data) == make.record()
    assert verify(data, make.record().public_key)


def test_bounds(stored: Path) -> None:
    assert resume.decode((stored / "bounds-a").read_bytes()) == make.kept()


def test_keys_and_identity(stored: Path, tmp_path: Path) -> None:
    for path in stored.iterdir():
        shutil.copy(path, tmp_path)
        (tmp_path / path.name).chmod(0o600)
    assert PinsFile(tmp_path, "a").read() == make.PINS
    identity = load_identity(tmp_path, "a")
    assert identity.public_key == public_key_of(private_key(make.SECRETS["a"]))
    assert identity.first_sequence >> 40 == 4
    assert load_keys(tmp_path / "mesh.key").sending == make.KEY
    kept = KeysFile(tmp_path, "a").read()
    assert kept == ({} if stored.name == "2-shared-key" else {"b": make.PINS["b"].public_key})


def test_the_segment(stored: Path, tmp_path: Path) -> None:
    content = bytearray(zlib.decompress((stored / "clock.shm.z").read_bytes()))
    # As if its daemon ran here and now.
    struct.pack_into("<q", content, 168, time.monotonic_ns())
    struct.pack_into("<q", content, 176, hostclock.shift_ns())
    struct.pack_into("<q", content, 184, hostclock.suspended_ns().hi - hostclock.slept_shift_ns())
    path = tmp_path / "clock.shm"
    path.write_bytes(content)
    reader = SegmentReader(path)
    for knot in make.knots()[-20:]:
        correction = reader.at(knot.wall_ns)
        assert (correction.offset_ns, correction.uncertainty_ns) == (knot.applied_ns, 100)
    assert reader.node == "a"
    assert reader.latest == make.knots()[-1]
    reader.close()


@pytest.mark.parametrize("change", ["version", "more", "less"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("bounds-a", lambda data: resume.decode(data) is None),
        ("record", lambda data: not _decodes(data)),
        ("request.packet", lambda data: wire.refusal(data) is not None or not _authentic(data)),
    ],
)
def test_what_is_of_another_version_or_cut_is_refused_and_not_misread(
    stored: Path, name: str, read: Callable[[bytes], bool], change: str
) -> None:
    data = bytearray((stored / name).read_bytes())
    at = {"bounds-a": 7, "record": 0, "request.packet": 4}[name]
    if change == "version":
        data[at] += 7
    elif change == "more":
        data += b"\0"
    else:
        del data[-1]
    assert read(bytes(data))


def _decodes(data: bytes) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True


def _authentic(data: bytes) -> bool:
    try:
        wire.decode(data, wire.secrets_of(make.KEY))
    except wire.Refused:
        return False
    return True
