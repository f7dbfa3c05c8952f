"""What one exchange with a time server or a peer proves, and how it is said. The thinking behind ``skewd probe``.

Two clocks, one question and one answer, and nothing assumed about the way. The question says "you read at least this
when I had sent it", the answer "I had sent it by then": one end of the bound each. Everything else on the screen (how
symmetric the way was, whether the server is right) is *not* known, which is why the bound is as wide as the round
trip and the server's own declared error together.

Offsets are the other's time minus this clock's. Each proof is about one instant, at the ends of the exchange; the
bound is about its end, so it is wider by what the two clocks may drift apart in between (``max_drift_ppm`` each) and
by this node's own slewing.

Limits: one exchange. A daemon that asks every second knows far more. Pure: stamps and packets come in, words and
numbers go out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from skewd.bounds.pair import PairBound, pair_limits
from skewd.check import describe, rounded_up, short
from skewd.durations import format_duration
from skewd.interval import Interval
from skewd.links.protocol import Proofs
from skewd.sources.ntp_wire import NtpSample, own_clock
from skewd.wall import WallMap

_LEAP = {0: "none announced", 1: "a leap second will be inserted", 2: "a leap second will be removed"}
_PPB = 1_000_000_000


class NoProof(Exception):
    """The exchange gave nothing that can be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one exchange proved; unknown or without meaning for this kind is None. Times are whole nanoseconds.

    Attributes:
        type: ``ntp`` or ``peer``.
        name: the peer's name, or the server's reference id.
        at_most_ns: what the question proves about the offset, when it was sent; ``at_least_ns`` what the answer
            proves, when it was received.
        error_ns: how far the other's stamps may be from what they are meant to tell, by its own account.
        own_clock: by what a server says that it follows its own clock, which tells nothing of UTC; None if it does not.
    """

    type: str
    address: str
    name: str
    offset_ns: int
    lower_ns: int
    upper_ns: int
    uncertainty_ns: int
    at_most_ns: int
    at_least_ns: int
    error_ns: int
    rtt_ns: int
    held_ns: int
    stratum: int | None = None
    leap: int | None = None
    root_delay_ns: int | None = None
    root_dispersion_ns: int | None = None
    precision_ns: int | None = None
    own_clock: str | None = None
    era: int | None = None
    max_drift_ppm: int | None = None
    max_wander_ppb_per_s: int | None = None

    def data(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "error": None}


def from_ntp(sample: NtpSample, wall: WallMap, *, address: str, drift_ppm: float, wander_ppb_per_s: float) -> Finding:
    """What a server's answer proves about UTC - this wall clock.

    Raises:
        NoProof: its stamps contradict the round trip by more than the error it declares.
    """
    (sent, arrived), (left, received) = sample.proofs()
    limits = pair_limits(drift_ppm, wander_ppb_per_s, 0, 0)
    return Finding(
        type="ntp",
        address=address,
        name=_reference_id(sample),
        **_ends(sent, arrived, left, received, lambda _: Interval(0, 0), wall, limits),
        error_ns=sample.error_ns,
        rtt_ns=sample.delay_ns,
        held_ns=sample.server_transmit_ns - sample.server_receive_ns,
        stratum=sample.stratum,
        leap=sample.leap,
        root_delay_ns=sample.root_delay_ns,
        root_dispersion_ns=sample.root_dispersion_ns,
        precision_ns=sample.precision_ns,
        own_clock=own_clock(sample.stratum, sample.reference_id, sample.root_delay_ns, sample.root_dispersion_ns),
    )


def from_peer(proofs: Proofs, wall: WallMap, *, address: str, drift_ppm: float, wander_ppb_per_s: float) -> Finding:
    """What a peer's answer proves about its wall clock minus this one.

    Raises:
        NoProof: the answer completes no exchange.
    """
    if not proofs.outgoing or not proofs.incoming or proofs.rtt_ns is None:
        raise NoProof(f"{address} answered something that completes no exchange; ask again")
    (sent, arrived), (left, received) = proofs.outgoing[0], proofs.incoming[0]
    peer = proofs.peer
    limits = pair_limits(drift_ppm, wander_ppb_per_s, peer.max_drift_ppm, peer.max_wander_ppb_per_s)

    def there(raw_ns: int) -> Interval:
        moved = abs(raw_ns - peer.wall_raw_at_ns) * peer.wall_slew_ppb // _PPB + 1
        return peer.wall_minus_raw.widen(moved)

    return Finding(
        type="peer",
        address=address,
        name=peer.name,
        **_ends(sent, arrived, left, received, there, wall, limits),
        error_ns=(there(left).width + 1) // 2,
        rtt_ns=proofs.rtt_ns,
        held_ns=left - arrived,
        era=peer.era,
        max_drift_ppm=peer.max_drift_ppm,
        max_wander_ppb_per_s=peer.max_wander_ppb_per_s,
    )


def _ends(
    sent: int,
    arrived: int,
    left: int,
    received: int,
    there: Callable[[int], Interval],
    wall: WallMap,
    limits: tuple[float, float],
) -> dict[str, Any]:
    """The two proofs and the bound they make, as (the other's wall or UTC) - (this wall).

    ``there`` tells the other's wall - raw at a raw instant of its.
    """
    pair = PairBound(max_drift_ppm=limits[0], max_wander_ppb_per_s=limits[1])
    pair.outgoing(sent, arrived)
    pair.incoming(left, received)
    raws = pair.offset(received)
    if raws is None or pair.contradictions:
        raise NoProof("the answer's stamps contradict the round trip; a clock was stepped meanwhile: ask again")
    bound = raws + there(received + raws.hi) - wall.wall_minus_raw(received)
    offset = bound.midpoint
    return {
        "offset_ns": offset,
        "lower_ns": bound.lo,
        "upper_ns": bound.hi,
        "uncertainty_ns": bound.farthest(offset),
        "at_most_ns": arrived - sent + there(arrived).hi - wall.wall_minus_raw(sent).lo,
        "at_least_ns": left - received + there(left).lo - wall.wall_minus_raw(received).hi,
    }


def _reference_id(sample: NtpSample) -> str:
    """Four letters at stratum 1 (GPS, PTP), else an IPv4 address or a hash of another."""
    octets = sample.reference_id.to_bytes(4, "big")
    letters = octets.rstrip(b"\0")
    if sample.stratum == 1 and letters and all(0x20 < octet < 0x7F for octet in letters):
        return letters.decode("ascii")
    return ".".join(map(str, octets))


def explain(finding: Finding) -> str:
    """The screen of ``skewd probe``, ending in a newline."""
    bound = Interval(finding.lower_ns, finding.upper_ns)
    size, spread = describe(finding.offset_ns, bound)
    ntp = finding.type == "ntp"
    other = "UTC" if ntp else finding.name
    what = "an NTP server" if ntp else f"the skewd node {finding.name}"
    # The offset is the other's time minus this clock's: a negative one means that this clock shows too much.
    side = "ahead of" if finding.offset_ns < 0 else "behind"
    where = f"agrees with {other}" if finding.offset_ns == 0 else f"is {size} {side} {other}"
    whose = " by what the server says" if ntp else "'s wall clock"
    rows = [
        ("question", f"left here before it arrived there: {other} - here is at most {_end(finding.at_most_ns, +1)}"),
        ("answer", f"left there before it arrived here: {other} - here is at least {_end(finding.at_least_ns, -1)}"),
        (
            "bound",
            f"{_end(bound.lo, -1)} to {_end(bound.hi, +1)}, {short(rounded_up(bound.width))} wide, "
            "however unequal the two ways are",
        ),
        ("round trip", f"{_length(finding.rtt_ns)} on the way, {_length(finding.held_ns)} there"),
    ]
    if ntp:
        assert finding.root_delay_ns is not None
        assert finding.root_dispersion_ns is not None
        assert finding.precision_ns is not None
        assert finding.leap is not None
        rows += [
            (
                "server",
                f"within {_length(finding.error_ns)} of UTC, by its own account: root delay "
                f"{_length(finding.root_delay_ns)} / 2 + root dispersion {_length(finding.root_dispersion_ns)}"
                f" + precision {_length(finding.precision_ns)}",
            ),
            ("stratum", f"{finding.stratum} (reference {finding.name})"),
            ("leap", _LEAP.get(finding.leap, "unknown")),
        ]
        if finding.own_clock is not None:
            rows.append(
                (
                    "own clock",
                    f"it follows nothing but itself ({finding.own_clock}), so this is not UTC, and as a [[source]] it"
                    " is refused unless allow_local = true",
                )
            )
    else:
        rows += [
            ("peer", f"era {finding.era}, its wall clock known within {_length(finding.error_ns)} of its raw clock"),
            (
                "limits",
                f"its clock drifts by at most {finding.max_drift_ppm} ppm, changing by at most "
                f"{finding.max_wander_ppb_per_s} ppb/s, by its own account",
            ),
        ]
    lines = [f"{finding.address} is {what}; this clock {where} ({spread}){whose if ntp else ''}", ""]
    lines += [f"  {label:<11} {text}" for label, text in rows]
    return "\n".join(lines) + "\n"


def _end(ns: int, towards: int) -> str:
    """An end of a bound with five digits, rounded away from the bound."""
    step = 10 ** max(0, len(str(abs(ns))) - 5)
    rounded = -(-ns // step) * step if towards > 0 else ns // step * step
    return f"{'+' if rounded > 0 else ''}{short(rounded)}"


def _length(ns: int) -> str:
    return short(rounded_up(ns)) if ns >= 0 else format_duration(ns)
