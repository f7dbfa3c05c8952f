"""Makes one file of each format, as the version that this runs under writes it: ``make.py DIRECTORY``.

Made once for each version of a format, kept for ever, and read by ``test_formats.py`` of every later version. To make
the files of an older version, run this file from a checkout of now with ``PYTHONPATH`` at a checkout of then. What
depends on chance or time (nonces, the segment's identity and heartbeat) is in the files as it happened; what they say
is the same for all and stands in ``SAID`` here.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

from skewd.bounds.carry import Claim
from skewd.bounds.history import Knot, Status
from skewd.election import Timescale
from skewd.identity import PinsFile
from skewd.interval import Interval
from skewd.keys import MeshKey
from skewd.links import wire
from skewd.links.wire import Kind, Self
from skewd.publish.segment import SegmentWriter
from skewd.record_store import Pin
from skewd.records import Edge, Record, private_key, public_key_of, sign
from skewd.resume import Kept, KeptPeer, KeptSource, encode

S = 1_000_000_000
KEY = MeshKey.from_secret(bytes(range(32)))
SECRETS = {name: bytes([ord(name)]) * 32 for name in "ab"}
BOOT = bytes(range(16))
UTC_NS = 1_790_000_000 * S
SELF = Self("a", BOOT, 7, 9, Interval(UTC_NS, UTC_NS + 200), 5 * S, 500_000, 100, 10)
MESSAGE: dict[str, Any] = {
    "nonce": bytes(range(16, 32)),
    "told": (bytes(range(32, 48)), 6 * S),
    "attachment": b"attached",
    "receiver": "b",
}
SENT_NS, RECEIVED_NS = 7 * S, 6 * S + 5
ANSWERED = bytes(range(48, 64))
OTHERS = ((bytes(range(64, 80)), 3 * S), (bytes(range(80, 96)), 4 * S))


def record(name: str = "a") -> Record:
    claim = Claim(Interval(-5_000, 5_000), Interval(-10, 10), 200_020, 21)
    return Record(
        owner=name,
        public_key=public_key_of(private_key(SECRETS[name])),
        boot=BOOT,
        raw_era=7,
        era=9,
        sequence=(3 << 40) + 5,
        raw_ns=8 * S,
        wall_minus_raw=Interval(UTC_NS, UTC_NS + 200),
        wall_slew_ppb=500_000,
        max_drift_ppm=100,
        max_wander_ppb_per_s=10,
        utc=Claim(Interval(UTC_NS, UTC_NS + 90_000), Interval(-7, 7), 100_020, 10),
        timescale=Timescale(2, "a", "b", bytes(range(1, 17)), 4, UTC_NS),
        edges=(Edge(bytes(range(12)), claim), Edge(bytes(range(12, 24)), claim)),
    )


def kept() -> Kept:
    proofs = ((True, 8 * S, 5_000), (False, 8 * S, -5_000))
    return Kept(
        node="a",
        boot=BOOT,
        raw_era=7,
        clock_source="tsc",
        suspended_ns=(10, 20),
        machine=None,
        shift_ns=0,
        max_drift_ppm=100.0,
        max_wander_ppb_per_s=10.0,
        at_raw_ns=8 * S,
        at_wall_ns=UTC_NS,
        peers=(KeptPeer("b", BOOT, 4, 100.0, 10.0, 8 * S, proofs),),
        sources=(KeptSource("ntp", "ntp", "192.0.2.1", 8 * S, proofs),),
        rate_basis="a basis",
    )


def knots() -> list[Knot]:
    return [
        Knot(
            era=1,
            era_begin_wall_ns=UTC_NS - S,
            previous_end_wall_ns=None,
            raw_ns=number * S // 4,
            wall_ns=UTC_NS + number * S // 4,
            bound=Interval(number * 1_000 - 100, number * 1_000 + 100),
            drift_ppb=Interval(3_000, 5_000),
            wander_ppb_per_s=21,
            applied_ns=number * 1_000,
            applied_slope_ppb=4_000,
            status=Status.SYNCHRONIZED,
            reference="node:b",
            epoch=3,
        )
        for number in range(40)
    ]


PINS = {"b": Pin(public_key_of(private_key(SECRETS["b"])), True, 17, BOOT)}


def packets() -> dict[str, bytes]:
    """What the version before sends, and, where this is a version with keys, what it sends itself."""
    own: dict[str, Any] = {"sender": wire.packed(SELF), **MESSAGE}
    answering: dict[str, Any] = {"answers": ANSWERED, "received_ns": RECEIVED_NS}
    made = {
        "request": wire.draft(KEY.key_id, KEY.secret, kind=Kind.REQUEST, **own, **answering)(SENT_NS),
        "reply": wire.draft(KEY.key_id, KEY.secret, kind=Kind.REPLY, **own, **answering)(SENT_NS),
        "one-way": wire.draft(KEY.key_id, KEY.secret, kind=Kind.ONE_WAY, **own, others=OTHERS)(SENT_NS),
    }
    try:
        from skewd.member_keys import MemberKeys
    except ImportError:
        return made
    a = MemberKeys("a", private_key(SECRETS["a"]))
    b = public_key_of(private_key(SECRETS["b"]))
    anyone, paired = a.identity(b"", KEY.secret), a.identity(b, KEY.secret)
    pair = a.secret_with(b, KEY.secret)
    echo: dict[str, Any] = {**own, "told": (ANSWERED, RECEIVED_NS)}
    for name, fields in {
        "introduction": {**own, "kind": Kind.REQUEST, "identity": anyone},
        "signed-one-way": {**own, "kind": Kind.ONE_WAY, "others": OTHERS, "identity": anyone, "sign": a.sign},
        "paired-request": {**own, **answering, "kind": Kind.REQUEST, "identity": paired, "pair": pair},
        "paired-reply": {**own, **answering, "kind": Kind.REPLY, "identity": paired, "pair": pair},
        "reply-to-introduction": {**echo, **answering, "kind": Kind.REPLY, "identity": paired, "pair": pair},
    }.items():
        made[name] = wire.draft(KEY.key_id, KEY.secret, **fields)(SENT_NS)
    return made


def main(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, data in packets().items():
        (directory / f"{name}.packet").write_bytes(data)
    (directory / "record").write_bytes(sign(record(), private_key(SECRETS["a"])))
    (directory / "bounds-a").write_bytes(encode(kept()))
    PinsFile(directory, "a").write(PINS)
    (directory / "identity-a").write_text(f"skewd-identity-1 {SECRETS['a'].hex()}\n")
    (directory / "starts-a").write_text("3\n")
    (directory / "mesh.key").write_text(f"skewd-key-1 {KEY.secret.hex()}\n")
    try:
        from skewd.identity import KeysFile
    except ImportError:
        pass
    else:
        KeysFile(directory, "a").write({"b": PINS["b"].public_key})
    writer = SegmentWriter(directory / "clock.shm", node="a", boot=BOOT, virtual=False)
    for knot in knots():
        writer.publish(knot)
    segment = (directory / "clock.shm").read_bytes()
    writer.close()
    (directory / "clock.shm.z").write_bytes(zlib.compress(segment, 9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
