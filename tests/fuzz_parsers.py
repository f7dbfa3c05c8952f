"""Every parser of bytes that others write, on bytes that nobody should write.

``python -m tests.fuzz_parsers --minutes 10`` gives each target (:func:`targets`) its share of the time. A target has
valid samples, which are mutated (bits, bytes, numbers at the edges of 8 to 64 bits in either order, cuts, copies,
splices of two samples), and where an outer seal (a MAC, a digest, a CRC, a signature) would stop everything at the
door, it is made anew over the mutated content. What is read is *used* as the daemon would: proofs go into a filter and
what follows is packed for the segment, records are composed, kept bounds are resumed and kept again.

What must hold: an input is read or refused with the parser's own exception, no other; it costs a bounded time; memory
does not grow. The seed is printed, and a failure names target, seed and input in hex.

Limits: mutation without coverage feedback. The member fuzzer (``tests/mesh/member_fuzz.py``) is for what is authentic.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import random
import secrets
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2s
from pathlib import Path
from typing import Any

from skewd import api_client, discipline, evidence, replay_view, resume, status
from skewd.bounds.carry import Claim
from skewd.bounds.compose import FirstHand, Here, clock_tag, compose, judge
from skewd.bounds.history import Knot, Status
from skewd.clock import HostClock, WallSample
from skewd.config import Config, ConfigError, MeshConfig, NodeConfig, SourceConfig, parse_config
from skewd.identity import IdentityError, KeysFile, PinsFile, load_identity
from skewd.interval import Interval
from skewd.kernel_clock import (
    KernelClock,
    RawFacts,
    disruption_marker,
    is_new_generation,
    is_vmclock,
    monotonic_shift_ns,
    rate_basis,
)
from skewd.keys import MeshKey, MeshKeyError, load_keys
from skewd.links import envelope, wire
from skewd.links.fragments import Assembler, TooLong
from skewd.links.protocol import LinkProtocol, Proofs, Self, Timebases
from skewd.member_keys import MemberKeys
from skewd.node import Node
from skewd.publish import clockbound_layout, segment
from skewd.record_store import Pin, RecordStore
from skewd.records import Edge, Record, RecordError, bundle, decode, private_key, public_key_of, sign, unbundle
from skewd.replay import replayed
from skewd.sources import chrony_wire, kernel_wire, ntp_wire, phc_wire, ptp_wire
from skewd.sources.claim import Claim as UtcClaim
from skewd.sources.claim import Look, Refused, between
from skewd.stamps import raw_of_stamp, receive_stamp, send_stamp
from tests import fuzz_report
from tests.evidence.test_evidence import SAMPLE as EVIDENCE
from tests.mesh.hostile_values import EDGES
from tests.mesh.member_fuzz import MEMORY_SLACK, growth, resident_bytes

S = 1_000_000_000
WALL_NS = 1_790_000_000 * S
SLOWEST_S = 2.0
"""Of processor time that one input may cost. Few need a millisecond; the rest is for a slow machine."""

KEY = MeshKey.from_secret(b"fuzzed".ljust(32, b"."))
SIGNING = private_key(bytes(range(32)))
PUBLIC = public_key_of(SIGNING)
BOOT = bytes(range(16))


@dataclass
class Target:
    """One parser.

    Attributes:
        samples: valid inputs.
        use: reads an input and uses what it says.
        refused: what it may raise.
        seal: makes the outer seal anew over a mutated input.
        pool: what was mutated once and could be read; it is mutated further, so that oddities add up.
    """

    name: str
    samples: list[bytes]
    use: Callable[[bytes], object]
    refused: tuple[type[Exception], ...] = ()
    seal: Callable[[bytes], bytes] = lambda data: data
    pool: list[bytes] = field(default_factory=list)


@dataclass
class Outcome:
    """Of one target: inputs, how many were refused, the slowest, what the memory did."""

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    grown: int = 0
    failures: list[str] = field(default_factory=list)


# -- mutation ----------------------------------------------------------------------------------------------------------


def mutated(choose: random.Random, target: Target) -> bytes:
    """An input near a sample, or far from all."""
    data = bytearray(choose.choice(target.pool if target.pool and choose.random() < 0.5 else target.samples))
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3, 8))):
        at = choose.randrange(len(data) + 1)
        kind = choose.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << choose.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
        elif kind in (2, 3):
            size = choose.choice((1, 2, 4, 8))
            number = choose.choice(EDGES) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, choose.choice(("big", "little")))
        elif kind == 4:
            del data[at : at + choose.choice((1, 2, 4, 8, 64, len(data)))]
        elif kind == 5:
            data[at:at] = choose.randbytes(choose.choice((1, 2, 8, 64)))
        elif kind == 6:
            part = data[at : at + choose.choice((1, 8, 32, 200))]
            data[at:at] = part * choose.choice((1, 1, 2, 20))
        elif kind == 7:
            other = choose.choice(target.samples)
            data[at:] = other[choose.randrange(len(other) + 1) :]
        else:
            data[at:at] = choose.choice(_WORDS)
    return bytes(data[:70_000])


_WORDS = (b"\0", b"\n", b"=", b'"', b"[", b"]", b"{", b"}", b"-", b"1e999", b"nan", b"inf", b"-9223372036854775808",
          b"18446744073709551616", b"9" * 400, b"\xc0\x80", b"\xff\xff\xff\xff", b"true", b"null", b"utc")  # fmt: skip


# -- what is read is used ----------------------------------------------------------------------------------------------


def node(**more: Any) -> Node:
    """One that follows whoever is called ``a``."""
    config = Config(
        node=NodeConfig(name="here"),
        mesh=MeshConfig(reference=more.pop("reference", "a")),
        source=tuple(SourceConfig(type="ntp", name=name, address="x", interval=S) for name in more.pop("sources", ())),
    )
    return Node(config, boot=BOOT, first=WallSample(5 * S, Interval(WALL_NS, WALL_NS + 200)), virtual=True)


def published(here: Node, now_ns: int) -> None:
    """All that the daemon would publish and keep of it."""
    knot = here.knot(now_ns)
    if knot is not None:
        segment._pack(1, knot)
    facts = RawFacts("tsc", Interval(0, 1), None, 0)
    resume.encode(here.keep(facts, now_ns))
    for name in here.peers:
        here.peer_estimate(name, now_ns)
    here.utc_selection(now_ns)


def use_message(data: bytes) -> None:
    message = wire.decode(data, wire.secrets_of(KEY))
    here, now = node(reference=message.sender.name), 10 * S
    proofs = Proofs(
        message.sender,
        "udp",
        "x",
        ((6 * S, message.received_ns),),
        ((message.sent_ns, now), *(((message.told[1], 7 * S),) if message.told else ())),
        (now - 6 * S) - (message.sent_ns - message.received_ns),
    )
    for _ in range(2):
        here.on_proofs(proofs, now)
        published(here, now)
        now += S


def use_claimed(data: bytes) -> None:
    wire.claimed_sender(data)
    use_message(data)


def seal_message(data: bytes) -> bytes:
    if len(data) < 16:
        return data
    content = data[: -wire.MAC_BYTES]
    return content + wire._mac(KEY.secret, content)


class Conversation:
    """Two nodes that have spoken; from then on the one that is attacked hears what the other never said."""

    def __init__(self) -> None:
        choose = random.Random("conversation")
        self.now_ns = 10 * S
        self.keys = {"a": MemberKeys("a", SIGNING), "here": MemberKeys("here", private_key(bytes(32)))}
        self.ends = {
            name: LinkProtocol(
                link="udp",
                key=KEY,
                describe=partial(_said, name),
                random=choose.randbytes,
                timebases=Timebases(),
                member_keys=keys,
                attach=lambda peer, room: _attachment()[:room],
            )
            for name, keys in self.keys.items()
        }
        self.said: list[bytes] = []
        for _ in range(4):
            for asking, answering in (("a", "here"), ("here", "a")):
                request = self.ends[asking].prepare(answering)(self._later())
                received = self.ends[answering].receive(request, asking, self._later())
                answer = b"" if received.reply is None else received.reply(self._later())
                self.ends[asking].receive(answer, answering, self._later())
                self.said += [request] if asking == "a" else [answer]
        self.said.append(self.ends["a"].prepare_one_way()(self._later()))
        self.secret = self.keys["a"].secret_with(self.keys["here"].public_key, KEY.secret)

    def _later(self) -> int:
        self.now_ns += 5_000_000
        return self.now_ns

    def use(self, data: bytes) -> None:
        """The attacked one hears it, and answers if it does."""
        received = self.ends["here"].receive(data, "a", self._later())
        if received.reply is not None:
            received.reply(self._later())
        self.ends["here"].peers(self.now_ns)

    def seal(self, data: bytes) -> bytes:
        """The MAC of the pair, or where the message is of the version before, of all."""
        if len(data) < wire.MIN_MESSAGE_BYTES:
            return data
        content = data[: -wire.MAC_BYTES]
        if content[4] == wire.VERSION:
            return content + wire._mac(self.secret, content, wire.VERSION)
        return content + wire._mac(KEY.secret, content)


def use_record(data: bytes) -> None:
    record = decode(data)
    here = Here("here", clock_tag("here", PUBLIC, BOOT, 1))
    first = {
        name: FirstHand(clock, Interval(-1000, 1000), Interval(-100, 100))
        for name, clock in ((record.owner, record.clock), ("m", clock_tag("m", PUBLIC, BOOT, 1)))
        if name != "here"
    }
    records = {record.owner: record, "m": _record("m", about=(record.clock, here.clock))}
    for liars in (0, 1):
        composed = compose(here=here, now_raw_ns=20 * S, first_hand=first, records=records, liars_max=liars)
        judge(
            here=here, now_raw_ns=20 * S, first_hand=first, records=records, liars_max=liars, composed=composed
        )


def seal_record(data: bytes) -> bytes:
    content = bytearray(data[:-64])
    if len(content) > 32:
        content[-32:] = PUBLIC
    return bytes(content) + SIGNING.sign(b"skewd record 1\0" + bytes(content))


def use_attachment(data: bytes) -> None:
    unbundle(data)
    store = RecordStore("here")
    store.receive(data, first_hand_owner="a", received_raw_ns=S, first_hand_boot=BOOT)
    store.next_for("a", 1000)
    store.forget_departed(2 * S)


def use_envelope(data: bytes) -> None:
    envelope.unwrap(data)


def use_fragments(data: bytes) -> None:
    assembler = Assembler(1024)
    at = 0
    while at + 3 <= len(data):
        session, flags, size = data[at], data[at + 1], data[at + 2]
        with contextlib.suppress(TooLong):
            assembler.add(session, flags, data[at + 3 : at + 3 + size])
        at += 3 + size


def use_kept(data: bytes) -> None:
    kept = resume.decode(data)
    if kept is None:
        return
    facts = RawFacts("tsc", Interval(0, 1), None, 0)
    resume.objection(kept, node="here", boot=BOOT, facts=facts, limits=(100.0, 10.0), now_raw_ns=30 * S)
    here = node(sources=("ntp",))
    here.raw_era = resume.first_raw_era(kept, boot=BOOT, facts=facts, now_raw_ns=30 * S)
    here.describe()
    here.resume(kept)
    for peer in kept.peers[:4]:
        if wire.is_name(peer.name) and len(peer.boot) == 16 and peer.name not in ("utc", "auto"):
            said = Self(peer.name, peer.boot, peer.raw_era, 1, Interval(WALL_NS, WALL_NS), 0, 0, 100, 10)
            here.on_proofs(Proofs(said, "udp", "x", ((29 * S, 29 * S),), ((29 * S, 30 * S),), 0), 30 * S)
    published(here, 30 * S)
    for basis in ("", kept.rate_basis):
        resume.drift_priors(kept, node=kept.node, boot=bytes(16), limits=(100.0, 10.0), basis=basis)


def seal_kept(data: bytes) -> bytes:
    body = data[24:]
    return b"skewdbd1" + blake2s(body, digest_size=16).digest() + body


def use_ntp(data: bytes) -> None:
    sample = ntp_wire.parse(data, nonce=b"n" * 8, sent_raw_ns=S, received_raw_ns=2 * S, near_wall_ns=WALL_NS)
    _use_utc(*sample.proofs(), sample.leap)


def seal_ntp(data: bytes) -> bytes:
    return data[:24] + b"n" * 8 + data[32:]


def _use_utc(outgoing: tuple[int, int], incoming: tuple[int, int], leap: int) -> None:
    here = node(reference="utc", sources=("ntp",))
    for now in (2 * S, 3 * S):
        here.on_utc("ntp", [outgoing], [incoming], now, leap)
        published(here, now)


def _looks() -> tuple[Look, Look]:
    wall = Interval(WALL_NS, WALL_NS + 200)
    return Look(WallSample(2 * S, wall)), Look(WallSample(2 * S + 100_000, wall))


def _claimed(utc_minus_wall: Interval, leap: int) -> None:
    claim = UtcClaim(*between(*_looks(), utc_minus_wall, 100), leap)
    _use_utc(*claim.proofs(), claim.leap)


def use_chrony(data: bytes) -> None:
    if chrony_wire.is_reply(data, 12345):
        tracking = chrony_wire.parse(data)
        _claimed(tracking.utc_minus_wall(WALL_NS, 100, 10), tracking.leap)


def seal_chrony(data: bytes) -> bytes:
    return _CHRONY[:4] + data[4:16] + _CHRONY[16:20] + data[20:]


_CHRONY = bytes.fromhex(
    "060200000021000500000000000000000000303900000000000000007f0000017f0000010000000000000000000000000001000000020000"
    "000000006b03f12630dfa341dd6d8178c6ac2b47d899830ffb475121ecd1997afcc02044e0c609cbdca9bb4100822c06"
)


def use_ptp(data: bytes) -> None:
    """Five data sets behind each other, each with its length."""
    bodies: dict[int, bytes] = {}
    at = 0
    for number, question in enumerate(ptp_wire.QUESTIONS):
        size = int.from_bytes(data[at : at + 2], "big")
        answer = data[at + 2 : at + 2 + size]
        at += 2 + size
        if ptp_wire.is_reply(answer, question, number):
            bodies[question] = ptp_wire.body(answer)
        else:
            bodies[question] = answer
    found = ptp_wire.measurement(bodies)
    readings = ptp_wire.Readings(100)
    claim = None
    for second in range(ptp_wire.READINGS_MIN):
        claim = readings.add(2 * S + second, Interval(WALL_NS, WALL_NS) + found.utc_minus_clock)
    assert claim is not None
    made = UtcClaim(2 * S, claim, found.leap)
    _use_utc(*made.proofs(), made.leap)


def use_phc(data: bytes) -> None:
    for way in phc_wire.Ways:
        found = phc_wire.crossing(way, data[: way.value.size].ljust(way.value.size, b"\0"))
        if found is not None:
            raw = phc_wire.raw_of(found, *_looks())
            if raw is not None:
                made = UtcClaim(raw.hi, Interval(found.phc_ns - raw.hi, found.phc_ns - raw.lo))
                _use_utc(*made.proofs(), made.leap)


def use_kernel(data: bytes) -> None:
    fields = struct.unpack("<iiqqqqiq", data[:52].ljust(52, b"\0"))
    _claimed(*kernel_wire.claimed(KernelClock(*fields)))


def use_stamps(data: bytes) -> None:
    """Ancillary messages as a kernel gives them: level, kind, length, content."""
    control: list[tuple[int, int, bytes]] = []
    at = 0
    while at + 3 <= len(data):
        control.append((data[at], data[at + 1], data[at + 3 : at + 3 + data[at + 2]]))
        at += 3 + data[at + 2]
    for wall_ns in (receive_stamp(control), getattr(send_stamp(control), "wall_ns", None)):
        if wall_ns is not None:
            raw_of_stamp(wall_ns, _looks()[0].sample, _looks()[1].sample, 1_000_000)


def use_machine(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    is_vmclock(data)
    if len(data) >= 64:
        disruption_marker(data)
    is_new_generation(data)
    monotonic_shift_ns(text)
    rate_basis("tsc", text, text)


def use_discipline(data: bytes) -> None:
    left = discipline.decode(data)
    if left is not None:
        discipline.encode(left)
        discipline.to_restore(left, bytes.fromhex(left.boot), KernelClock(0, 0, left.ours[0] if left.ours else 0,
                                                                          left.tick_us, 0, 0, 0))  # fmt: skip


def use_config(data: bytes) -> None:
    parse_config(data, Path("fuzz.toml"), {})


def use_environment(data: bytes) -> None:
    peers = data.decode("utf-8", "surrogateescape")
    parse_config(None, None, {"SKEWD_MESH__PEERS": peers, "SKEWD_MESH__KEY": "none", "SKEWD_NODE__NAME": "x"})


def use_status(data: bytes) -> None:
    """An answer of whatever listens on the daemon's socket."""
    told = api_client._parse(data, "socket")
    for lenient in (False, True):
        with contextlib.suppress(status.UnreadableStatus):
            status.decode(told, odd_is_unknown=lenient)


def use_evidence(data: bytes) -> None:
    replay = replayed(evidence.read(io.BytesIO(data)), candidates=True)
    replay_view.told(replay)
    replay_view.render(replay, calibrate=True)


def seal_evidence(data: bytes) -> bytes:
    """The header as it was, each segment's checksum right."""
    begin = len(evidence.MAGIC) + 1
    made = bytearray(evidence.Writer.header() + data[begin:])
    at, head = begin, evidence._HEAD.size
    while at + head <= len(made):
        length, _, kind = evidence._HEAD.unpack_from(made, at)
        length = min(length, len(made) - at - head)
        content = bytes(made[at + head : at + head + length])
        evidence._HEAD.pack_into(made, at, length, zlib.crc32(bytes([kind]) + content), kind)
        at += head + length
    return bytes(made)


def _evidence() -> list[bytes]:
    """The first facts of the sample that is kept of this format."""
    writer = evidence.Writer()
    data = writer.header()
    for fact in list(evidence.read(io.BytesIO(EVIDENCE.read_bytes())))[:14]:
        data += writer.add(fact)
    return [data + writer.flush()]


def use_clockbound(data: bytes) -> None:
    for layout in (clockbound_layout.V1, clockbound_layout.V2):
        clockbound_layout.is_header(layout, data)


class Files:
    """Parsers that read a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def _written(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def pins(self, data: bytes) -> None:
        self._written("pins-here", data)
        file = PinsFile(self.directory, "here")
        pins = file.read()
        store = RecordStore("here", pins=pins)
        store.receive(_attachment(), first_hand_owner="a", received_raw_ns=S, first_hand_boot=BOOT)
        file.write(store.pins())

    def member_keys(self, data: bytes) -> None:
        self._written("keys-here", data)
        pinned = KeysFile(self.directory, "here").read()
        keys = MemberKeys("here", SIGNING, pinned=pinned)
        for name in list(pinned)[:3]:
            keys.key_of(name)
            with contextlib.suppress(wire.Refused):
                keys.secret_with(pinned[name], KEY.secret)

    def identity(self, data: bytes) -> None:
        half = data.find(b"|")
        self._written("identity-here", data[:half] if half >= 0 else data)
        self._written("starts-here", data[half + 1 :] if half >= 0 else b"")
        found = load_identity(self.directory, "here")
        assert 0 <= found.first_sequence < 1 << 64

    def keys(self, data: bytes) -> None:
        load_keys(self._written("key", data))

    def segment(self, data: bytes) -> None:
        path = self._written("clock.shm", data.ljust(segment._FILE_BYTES, b"\0"))
        reader = segment.SegmentReader(path, clock=HostClock())
        try:
            _ = (reader.node, reader.latest, reader.newest(), reader.at(WALL_NS), reader.table())
            reader.at(time.time_ns())
        finally:
            reader.close()


# -- valid samples -----------------------------------------------------------------------------------------------------


def _said(name: str = "a") -> Self:
    return Self(name, BOOT, 1, 1, Interval(WALL_NS, WALL_NS + 200), 4 * S, 500_000, 100, 10)


def _messages() -> list[bytes]:
    made = []
    for kind in wire.Kind:
        one_way = kind is wire.Kind.ONE_WAY
        build = wire.draft(
            KEY.key_id,
            KEY.secret,
            kind=kind,
            nonce=b"n" * 16,
            answers=wire.NO_NONCE if one_way else b"a" * 16,
            received_ns=0 if one_way else 6 * S,
            sender=wire.packed(_said()),
            receiver="here",
            told=(b"t" * 16, 5 * S),
            others=((b"o" * 16, 5 * S),) if one_way else (),
            attachment=_attachment(),
        )
        made.append(build(8 * S))
    return made


def _record(name: str = "a", about: tuple[bytes, ...] = (), **more: Any) -> Record:
    claim = Claim(Interval(-1000, 1000), Interval(-10, 10), 200_020, 21)
    return Record(
        owner=name,
        public_key=PUBLIC,
        boot=BOOT,
        raw_era=1,
        era=1,
        sequence=5,
        raw_ns=10 * S,
        wall_minus_raw=Interval(WALL_NS, WALL_NS + 300),
        wall_slew_ppb=500_000,
        max_drift_ppm=100,
        max_wander_ppb_per_s=10,
        edges=tuple(Edge(tag, claim) for tag in about),
        **more,
    )


def _records() -> list[bytes]:
    from skewd.election import UTC, Timescale

    here, m = clock_tag("here", PUBLIC, BOOT, 1), clock_tag("m", PUBLIC, BOOT, 1)
    utc = Claim(Interval(WALL_NS, WALL_NS + 1000), Interval(-10, 10), 200_020, 21)
    return [
        sign(_record(), SIGNING),
        sign(_record(about=(here, m), timescale=UTC, utc=utc), SIGNING),
        sign(_record(about=(m,), timescale=Timescale(1, "a", "a", BOOT, 1, WALL_NS)), SIGNING),
    ]


def _attachment() -> bytes:
    return RecordStore("a").next_for("here", 38).ljust(38, b"\0") + bundle(_records()[:2])


def _kept() -> list[bytes]:
    here = node(reference="auto", sources=("ntp",))
    for name in ("a", "b"):
        here.on_proofs(Proofs(_said(name), "udp", "x", ((6 * S, 7 * S),), ((7 * S, 8 * S),), 100), 8 * S)
    here.on_utc("ntp", [(6 * S, WALL_NS)], [(WALL_NS, 7 * S)], 8 * S)
    return [resume.encode(here.keep(RawFacts("tsc", Interval(0, 1), None, 0), 9 * S, "tsc x"))]


def _ntp() -> list[bytes]:
    stamp = (1_790_000_000 + 2_208_988_800) << 32
    head = struct.pack("!BBbb2i4s", 0o44, 2, 6, -20, 1 << 8, 1 << 8, b"\x7f\1\1\2")
    return [head + struct.pack("!Q8sQQ", stamp, b"n" * 8, stamp, stamp + 1000)]


def _ptp() -> list[bytes]:
    status_np = ptp_wire._STATUS.pack(-50, WALL_NS, 0, 0, 0, 0, 0, 0, 1, bytes(8))
    current = ptp_wire._CURRENT.pack(1, -50 << 16, 3_000 << 16)
    parent = ptp_wire._PARENT.pack(bytes(10), 0, 0, 0, 0, 0, 6, 0x21, 0, 0, bytes(8))
    properties = ptp_wire._PROPERTIES.pack(37, 0, 0)
    port = ptp_wire._PORT.pack(bytes(10), 1, 0, 4) + b"eth0"
    sets = {
        ptp_wire.TIME_STATUS_NP: status_np,
        ptp_wire.CURRENT_DATA_SET: current,
        ptp_wire.PARENT_DATA_SET: parent,
        ptp_wire.TIME_PROPERTIES_DATA_SET: properties,
        ptp_wire.PORT_PROPERTIES_NP: port,
    }
    made = []
    for whole in (False, True):
        data = b""
        for number, question in enumerate(ptp_wire.QUESTIONS):
            answer = sets[question]
            if whole:
                asked = bytearray(ptp_wire.request(question, number))
                struct.pack_into("!HHH", asked, 48, 1, 2 + len(answer), question)
                answer = bytes(asked) + answer
            data += len(answer).to_bytes(2, "big") + answer
        made.append(data)
    return made


def _phc() -> list[bytes]:
    made = []
    for way in phc_wire.Ways:
        data = phc_wire.question(way)
        for index in range(0, len(data) - 16 * 8, 16):
            struct.pack_into("@qII", data, index + 16, 2 + 1_790_000_000 * (index // 16 % 2), 50_000 + index, 0)
        made.append(bytes(data))
    return made


def _segment(path: Path) -> list[bytes]:
    writer = segment.SegmentWriter(path, node="here", boot=BOOT, virtual=False)
    for number in range(60):
        at = time.time_ns() - 30 * S + number * S // 4
        writer.publish(
            Knot(
                1 + number // 40, at - S, at, at, at + number, Interval(-100, 100), Interval(-5, 5), 10, 0, 0,
                Status.SYNCHRONIZED, "utc",
            )
        )  # fmt: skip
    writer.heartbeat()
    data = path.read_bytes()[: segment._HEADER_BYTES + 60 * segment._RECORD_BYTES]
    writer.close()
    return [data]


def seal_segment(data: bytes) -> bytes:
    """The header as it was, each record's checksum right, the heartbeat of now."""
    made = bytearray(_SEGMENT_HEAD[: segment._HEADER_BYTES] + data[segment._HEADER_BYTES :])
    at = segment._HEADER_BYTES
    while at + segment._RECORD_BYTES <= len(made):
        body = bytes(made[at : at + segment._RECORD.size])
        struct.pack_into("<I", made, at + segment._RECORD.size, zlib.crc32(body))
        at += segment._RECORD_BYTES
    struct.pack_into("<q", made, segment._HEARTBEAT_AT, time.monotonic_ns())
    return bytes(made)


_SEGMENT_HEAD = b""


def targets(directory: Path) -> list[Target]:
    """All of them."""
    global _SEGMENT_HEAD
    files = Files(directory / "files")
    segments = _segment(directory / "clock.shm")
    _SEGMENT_HEAD = segments[0]
    config = Path(__file__).parents[1] / "systemd" / "skewd.toml"
    pins = PinsFile(directory, "here")
    pins.write({"a": Pin(PUBLIC, True, 5, BOOT), "b": Pin(bytes(32), False)})
    plain = json.dumps({"node": "x", "status": "synchronized", "peers": [{"name": "a", "lower_ns": -5, "upper_ns": 5}]})
    http = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    message = _messages()
    conversation = Conversation()
    kept_keys = KeysFile(directory, "here")
    kept_keys.write({"a": PUBLIC, "b": bytes(range(32))})
    return [
        Target("message", message, use_message, (wire.Refused,), seal_message),
        Target("message, unsealed", message, use_claimed, (wire.Refused,)),
        Target("conversation", conversation.said, conversation.use, (), conversation.seal),
        Target("record", _records(), use_record, (RecordError,)),
        Target("attachment", [_attachment()], use_attachment),
        Target("signed record", _records(), lambda data: use_attachment(bytes(38) + bundle([data])), (), seal_record),
        Target("envelope", [envelope.wrap("here", "a", message[0])], use_envelope),
        Target("fragments", [b"\1\x80\5hello\1\x40\5world\2\xc0\3abc\1\0\2xx"], use_fragments),
        Target("kept bounds", _kept(), use_kept, (), seal_kept),
        Target("pins", [pins.path.read_bytes()], files.pins),
        Target("member keys", [kept_keys.path.read_bytes()], files.member_keys),
        Target("identity", [b"skewd-identity-1 " + b"0f" * 32 + b"\n|12\n"], files.identity, (IdentityError,)),
        Target("mesh keys", [b"skewd-key-1 " + b"0e" * 32 + b"\n"], files.keys, (MeshKeyError,)),
        Target("steering left", [discipline.encode(discipline.Left(BOOT.hex(), 5, (5, 6), 10_000))], use_discipline),
        Target("segment", segments, files.segment, (), seal_segment),
        Target("segment, unsealed", segments, files.segment),
        Target("NTP", _ntp(), use_ntp, (ntp_wire.NtpRefused,), seal_ntp),
        Target("chrony", [_CHRONY], use_chrony, (Refused,), seal_chrony),
        Target("PTP", _ptp(), use_ptp, (Refused,)),
        Target("PHC", _phc(), use_phc, (Refused,)),
        Target("adjtimex", [struct.pack("<iiqqqqiq", 0, 0x2001, 5, 10_000, 1234, 5, 37, 0)], use_kernel, (Refused,)),
        Target("kernel stamps", [b"\1\x25\x18" + struct.pack("@llll", 5, 6, 0, 0)[:24]], use_stamps),
        Target("machine", [b"monotonic 5 6\nboottime 1 2\n", b"flags : tsc_known_freq\n", bytes(112)], use_machine),
        Target("configuration", [config.read_bytes(), b'[mesh]\nlisten = "off"\n'], use_config, (ConfigError,)),
        Target("environment", [b'["127.0.0.1:9958", "localhost:9959"]'], use_environment, (ConfigError,)),
        Target("evidence", _evidence(), use_evidence, (evidence.EvidenceError,), seal_evidence),
        Target("status", [http + plain.encode()], use_status, (api_client.NoDaemonError,)),
        Target("ClockBound", [clockbound_layout.header(clockbound_layout.V2, 4)], use_clockbound),
    ]


# -- running -----------------------------------------------------------------------------------------------------------


def fuzz(target: Target, seed: int, *, seconds: float, inputs: int | None = None) -> Outcome:
    """Mutates and reads for so long, or so many inputs."""
    choose = random.Random(f"parsers/{target.name}/{seed}")
    outcome = Outcome()
    for sample in target.samples:
        _one(target, target.seal(sample), outcome, must_be_read=True)
    longest = 2 * max(len(sample) for sample in target.samples)
    sizes = [resident_bytes()]
    begun = looked = time.monotonic()
    while (inputs is None or outcome.inputs < inputs) and time.monotonic() - begun < seconds:
        data = mutated(choose, target)
        read = _one(target, target.seal(data), outcome)
        if outcome.failures:
            return outcome
        if read and choose.random() < 0.1 and len(data) <= longest:
            target.pool.append(data)
            if len(target.pool) > 64:
                target.pool.pop(choose.randrange(64))
        if time.monotonic() - looked > min(1.0, seconds / 20):
            gc.collect()
            looked = time.monotonic()
            sizes.append(resident_bytes())
    outcome.grown = growth(sizes)
    return outcome


def _one(target: Target, data: bytes, outcome: Outcome, *, must_be_read: bool = False) -> bool:
    outcome.inputs += 1
    begun = time.thread_time()
    try:
        target.use(data)
    except target.refused as refused:
        outcome.refused += 1
        if must_be_read:
            outcome.failures.append(f"{target.name}: a valid sample is refused: {refused}")
        return False
    except Exception as error:
        where = _where(error)
        outcome.failures.append(f"{target.name}: {error!r} at {where}, input {data[:4000].hex()}")
        return False
    finally:
        took = time.thread_time() - begun
        outcome.slowest_s = max(outcome.slowest_s, took)
        if took > SLOWEST_S:
            outcome.failures.append(f"{target.name}: {took:.1f} s, input {data[:4000].hex()}")
    return True


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


@contextlib.contextmanager
def all_targets() -> Iterator[list[Target]]:
    """All targets, with a directory for those that need files."""
    with tempfile.TemporaryDirectory(prefix="skf") as name:
        yield targets(Path(name))


def report(outcomes: list[tuple[str, Outcome]], seed: int, minutes: float) -> None:
    """The parsers' section of the page."""
    total = sum(outcome.inputs for _, outcome in outcomes)
    failures = sum(len(outcome.failures) for _, outcome in outcomes)
    rows = [
        (name, outcome.inputs, outcome.refused, f"{outcome.slowest_s * 1e3:.1f} ms", f"{outcome.grown >> 10} KiB")
        for name, outcome in outcomes
    ]
    fuzz_report.write(
        "parsers",
        [
            f"The last run: seed {seed}, {minutes:g} minutes on {fuzz_report.machine()}; {total} inputs,"
            f" {failures} other exceptions, 0 exits. Memory: by how much the resident size of the second half was above"
            " the greatest of the first.",
            "",
            *fuzz_report.table(("parser", "inputs", "refused by an exception", "slowest", "memory"), *rows),
        ],
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_parsers", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long, all targets together")
    parser.add_argument("--seed", type=int, default=None, help="without it, another each time")
    parser.add_argument("--only", default=None, help="the name of one target")
    parser.add_argument("--report", action="store_true", help="write docs/reports/fuzz-daemon.md")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    failed = 0
    outcomes: list[tuple[str, Outcome]] = []
    with all_targets() as every:
        chosen = [target for target in every if options.only in (None, target.name)]
        for target in chosen:
            outcome = fuzz(target, seed, seconds=options.minutes * 60 / len(chosen))
            outcomes.append((target.name, outcome))
            wrong = bool(outcome.failures) or outcome.grown > MEMORY_SLACK
            failed += wrong
            print(
                f"{target.name:18} {outcome.inputs:9} inputs, {outcome.refused:9} refused, slowest "
                f"{outcome.slowest_s * 1e3:7.2f} ms, memory {outcome.grown >> 10:+6} KiB{'  FAILED' if wrong else ''}",
                flush=True,
            )
            for failure in outcome.failures:
                print(f"  {failure}", flush=True)
    print("failed" if failed else "nothing failed", flush=True)
    if options.report:
        report(outcomes, seed, options.minutes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
