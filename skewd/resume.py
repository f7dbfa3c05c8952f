"""What survives a restart of the daemon: the half-planes of every bound, while the raw clocks are still the same.

A restarted daemon would need minutes to learn again how fast its neighbours drift. Yet nothing it knew has become
false: a half-plane is an inequality about two raw clocks at one instant (``bounds/pair.py``), and holds as long as
both run on. So the half-planes are kept in a small file and taken again, if it is beyond doubt that they are about
the same clocks: the same boot, no suspend, clock source or machine changed since (``kernel_clock.RawFacts``), the same
declared limits here and at the peer, and the peer's own raw clock the one it was, which its first message tells.
What the peer's *wall* clock was is not kept: it may have been stepped meanwhile, and that message tells it, too. What
this host's was is kept, to see whether *it* was stepped meanwhile: who speaks of it from memory is not believed then
(``sources/memory.py``).

What was kept of a source of UTC holds without a message of it, for UTC is not stepped; except by a leap second, which
can only come at the end of a month: sources kept in another month than now, or within the month's last hour, are left
out, and so are those that announce one. The others count once as many were heard as are needed (``UtcSources.enough``).

**Another boot.** Then the raw clock is another, and every offset is void. What may survive is the *drift*: a crystal
that wanders by at most w a second has moved by at most w x T while the machine was off for T, which UTC tells, and 10
ppb/s over a minute is 0.6 ppm, not 100. This is the drift prior: what was known of the drift against UTC at the end of
the boot before, widened by w x the whole time in between. It holds if three things do:

* the raw clock's *nominal* rate is the same in both boots. Often it is not: most kernels measure the TSC anew at each
  boot. ``kernel_clock.rate_basis`` says where hardware gives it, and is empty for the rest, virtual machines above all;
* it is the same oscillator: same machine and processor, as far as their names tell;
* the limit on wander holds while the machine is off and warms up again. That is not what is declared by default, where
  it is about a running clock in its usual surroundings, and nothing here can check it.

So it is an assumption of its own, and off unless ``[clock] drift_over_reboot`` declares it. It serves UTC alone, where
round trips are long and a drift takes hours to learn; against a near peer it is learned within a minute.

The file is a magic word with the version, a BLAKE2s digest of the rest, and MessagePack, each number within what a
clock can show (``skewd/limits.py``): what an older version kept of a member that said more is not taken up. Limits:
``BYTES_MAX``; a
digest finds accidents, not forgeries: whoever can write the daemon's own directory is trusted as the daemon is. What
happened and was undone while no daemon ran (a clock source changed and changed back, a restore from a snapshot that
no device told of) is not noticed here; a jump larger than the bound contradicts the first messages. Pure.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from skewd.bounds.pair import CONSTRAINTS_MAX, PairBound, Proof, pair_limits
from skewd.clock import WallSample
from skewd.interval import Interval
from skewd.kernel_clock import RawFacts, disturbance
from skewd.lean import msgspec
from skewd.limits import DRIFT_MAX_PPM, RAW_MAX_NS, SCALE_MAX_NS, WANDER_MAX_PPB_PER_S, is_raw

BYTES_MAX = 1 << 20
PAIRS_MAX = 512
_MAGIC = b"skewdbd1"
_DIGEST_BYTES = 16
_HEAD = len(_MAGIC) + _DIGEST_BYTES

_Raw = Annotated[int, msgspec.Meta(ge=-RAW_MAX_NS, le=RAW_MAX_NS)]
_Scale = Annotated[int, msgspec.Meta(ge=-SCALE_MAX_NS, le=SCALE_MAX_NS)]
_Wall = Annotated[int, msgspec.Meta(ge=-(SCALE_MAX_NS + RAW_MAX_NS), le=SCALE_MAX_NS + RAW_MAX_NS)]
_Era = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 2)]
_DriftPpm = Annotated[float, msgspec.Meta(ge=0, le=DRIFT_MAX_PPM)]
_WanderPpb = Annotated[float, msgspec.Meta(ge=0, le=WANDER_MAX_PPB_PER_S)]

Proofs = Annotated[tuple[tuple[bool, _Raw, _Scale], ...], msgspec.Meta(max_length=2 * CONSTRAINTS_MAX)]
"""(upper, local_ns, limit_ns) each: :class:`~skewd.bounds.pair.Proof`."""


# A field that is not known is passed over: a later version may add some. What changes a meaning changes the magic word.
class KeptPeer(msgspec.Struct, frozen=True):
    """One peer: which raw clock of it, its declared limits, when it was last heard, and the half-planes."""

    name: Annotated[str, msgspec.Meta(max_length=63)]
    boot: Annotated[bytes, msgspec.Meta(max_length=16)]
    raw_era: _Era
    max_drift_ppm: _DriftPpm
    max_wander_ppb_per_s: _WanderPpb
    heard_ns: _Raw
    proofs: Proofs


class KeptSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """One source of UTC, by what it is configured as."""

    name: str
    type: str
    address: str | None
    heard_ns: _Raw
    proofs: Proofs
    smear: bool = False


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything, and the clock that it is about."""

    node: str
    boot: Annotated[bytes, msgspec.Meta(max_length=16)]
    raw_era: _Era
    clock_source: str | None
    suspended_ns: tuple[_Raw, _Raw]
    machine: int | None
    shift_ns: _Raw
    max_drift_ppm: _DriftPpm
    max_wander_ppb_per_s: _WanderPpb
    at_raw_ns: _Raw
    at_wall_ns: _Wall
    peers: Annotated[tuple[KeptPeer, ...], msgspec.Meta(max_length=PAIRS_MAX)]
    sources: Annotated[tuple[KeptSource, ...], msgspec.Meta(max_length=PAIRS_MAX)]
    rate_basis: str = ""
    """What the raw clock's nominal rate rests on (``kernel_clock.rate_basis``)."""
    wall_minus_raw: tuple[_Scale, _Scale] | None = None
    """This host's wall - raw at ``at_raw_ns``; None on a virtual node, and by a version before this."""

    @property
    def facts(self) -> RawFacts:
        low, high = self.suspended_ns
        return RawFacts(self.clock_source, Interval(min(low, high), max(low, high)), self.machine, self.shift_ns)


def plain(proofs: tuple[Proof, ...]) -> tuple[tuple[bool, int, int], ...]:
    """Half-planes as they are kept; none, where one says what no clock shows (``skewd/limits.py``)."""
    if not all(is_raw(proof.local_ns) and abs(proof.limit_ns) <= SCALE_MAX_NS for proof in proofs):
        return ()
    return tuple((proof.upper, proof.local_ns, proof.limit_ns) for proof in proofs)


def half_planes(kept: Proofs) -> list[Proof]:
    """And back."""
    return [Proof(upper, local_ns, limit_ns) for upper, local_ns, limit_ns in kept]


def encode(kept: Kept) -> bytes:
    """The file's content.

    Raises:
        ValueError: larger than ``BYTES_MAX``, or a number beyond 64 bits.
    """
    try:
        body = msgspec.msgpack.encode(kept)
    except OverflowError as error:
        raise ValueError("a kept number does not fit 64 bits") from error
    if len(body) > BYTES_MAX - _HEAD:
        raise ValueError(f"what is to be kept has {len(body)} bytes, more than {BYTES_MAX}")
    return _MAGIC + hashlib.blake2s(body, digest_size=_DIGEST_BYTES).digest() + body


def decode(content: bytes) -> Kept | None:
    """What a file holds; None when it is damaged, of another version, or not such a file."""
    body = content[_HEAD:]
    digest = hashlib.blake2s(body, digest_size=_DIGEST_BYTES).digest()
    if len(content) > BYTES_MAX or content[:_HEAD] != _MAGIC + digest:
        return None
    try:
        return msgspec.msgpack.decode(body, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # of a string, it is the latter
        return None


def objection(
    kept: Kept, *, node: str, boot: bytes, facts: RawFacts, limits: tuple[float, float], now_raw_ns: int
) -> str | None:
    """Why nothing of it may be used now, in words for a log; None when it may."""
    if kept.node != node:
        return f"they are those of the node {kept.node}"
    if kept.boot != boot:
        return "this is another boot"
    reason = disturbance(kept.facts, facts)
    if reason is not None:
        return f"{reason} since"
    if kept.at_raw_ns > now_raw_ns:
        return "the raw clock reads less than then: the machine was restored from a snapshot"
    if (kept.max_drift_ppm, kept.max_wander_ppb_per_s) != limits:
        return "the declared limits ([clock] max_drift_ppm, max_wander_ppb_per_s) have changed"
    return None


def wall_before(kept: Kept | None, *, boot: bytes, now_raw_ns: int) -> WallSample | None:
    """Where this host's wall clock stood when the file was kept; None where that is not known on this raw clock.

    A wall clock that no slew leads from there to where it is now was stepped while no daemon looked, or slept.
    """
    if kept is None or kept.wall_minus_raw is None or kept.boot != boot or kept.at_raw_ns > now_raw_ns:
        return None
    low, high = kept.wall_minus_raw
    return WallSample(kept.at_raw_ns, Interval(min(low, high), max(low, high)))


def first_raw_era(kept: Kept | None, *, boot: bytes, facts: RawFacts, now_raw_ns: int) -> int:
    """The number of the raw clock's era that a starting daemon is in.

    Peers take a node's (boot, raw era) for one and the same clock, so a daemon that starts within a boot must use a
    number of before for the clock of before only. Without a file it is derived from how long the host has slept.
    """
    if kept is not None and kept.boot == boot:
        same = disturbance(kept.facts, facts) is None and kept.at_raw_ns <= now_raw_ns
        return kept.raw_era if same else (kept.raw_era + 1) & 0x7FFF_FFFF
    return 1 + (max(facts.suspended_ns.midpoint, 0) // 1_000_000 & 0x3FFF_FFFF)


class DriftPrior(NamedTuple):
    """What was known of the drift of UTC against the raw clock, and at which UTC at the earliest."""

    utc_ns: int
    drift_ppb: Interval

    def at(self, utc_ns: int, max_wander_ppb_per_s: float) -> Interval | None:
        """The drift at a later UTC, which is not after ``utc_ns``; None if that is before."""
        elapsed_ns = utc_ns - self.utc_ns
        if elapsed_ns < 0:
            return None
        return self.drift_ppb.widen(math.ceil(max_wander_ppb_per_s * elapsed_ns / 1e9) + 1)


def drift_priors(
    kept: Kept, *, node: str, boot: bytes, limits: tuple[float, float], basis: str
) -> dict[KeptSource, DriftPrior]:
    """What another boot's drift against each source says of this one's; empty where that is nothing.

    Args:
        basis: this boot's ``rate_basis``.
    """
    same = kept.node == node and (kept.max_drift_ppm, kept.max_wander_ppb_per_s) == limits
    if not same or kept.boot == boot or not basis or kept.rate_basis != basis:
        return {}
    found: dict[KeptSource, DriftPrior] = {}
    drift_ppm, wander = pair_limits(*limits, 0, 0)
    for source in kept.sources:
        if source.smear:
            continue  # its rate was not UTC's
        pair = PairBound(max_drift_ppm=drift_ppm, max_wander_ppb_per_s=wander)
        consistent = pair.resume(half_planes(source.proofs))
        offset, drift = pair.offset(kept.at_raw_ns), pair.drift(kept.at_raw_ns)
        if consistent and offset is not None and drift is not None:
            found[source] = DriftPrior(kept.at_raw_ns + offset.lo, drift)
    return found


LEAP_AHEAD_NS = 3_600_000_000_000
"""A source resumed within an hour of a month's end might leap before it has announced that."""


def may_have_leapt(then_wall_ns: int, now_wall_ns: int) -> bool:
    """Whether a leap second may lie between two times, which are roughly right: only where a month ended."""
    months = set()
    for wall_ns in (then_wall_ns, now_wall_ns):
        try:
            at = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
        except (ValueError, OverflowError, OSError):
            return True
        months.add((at.year, at.month))
    return len(months) > 1
