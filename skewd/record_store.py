"""Records held and passed on: the newest of each member, under keys that stay theirs, within limits.

**Order.** ``sequence`` grows as long as the key lives, over restarts too (``identity.py`` keeps a count of starts). So
the newest of two records of one owner is the one with the higher sequence, whoever brings it: a replay is *stale*, and
what has expired here does not come back round the mesh.

**Whose key?** The mesh key tells members from strangers and not one member from another, so a name's public key is
*pinned* when it is first seen. Another key for a pinned name is refused, with two exceptions, both counted and said:

- the owner itself brings it, first-hand, in a message that is bound to that key, which says that the former one has
  been silent for a while; or (in a message of the protocol's version before) on a boot that is new (a machine that lost
  its disk), or after nothing new under the former key came for ``expire_ns`` (a pod that was replaced), or in place of
  a key that was only ever seen in relayed records;
- at least ``liars_max`` + 1 *confirmed* members (``bounds/confirm.py``) claim something about a clock with that key:
  one of them is honest, and has taken the new key first-hand.

A message is bound to its sender's key (``member_keys.py``), so the owner's own record must be signed by that very key.
If the former key then speaks up first-hand again, two parties claim one name: it is ``contested``, and whoever composes
should exclude it.

**Passing on.** Each message has room for about one record of others' hundreds, and hears the same from many sides. So
each attachment begins with what its sender holds of one slice of all owners: 256 bits, one for each owner by a hash
that changes from message to message (once nobody new turns up, every other time without the eighth that was renewed
longest ago). The answer gives a record of an owner that is not among them: little is wasted while anyone is unknown.
Own records go out in the first two and every ``OWN_EVERY``-th message to a peer (in a large mesh every
``OWN_EVERY_OF_MANY``-th); when nothing is lacking the newest received go first, and each peer is given every owner
once before any of them twice.

**Two words for one number.** An owner gives each number to one record. Two records of one key with one number and
different content are a proof that their owner tells different things to different members, and anybody can check it.
So of each owner the newest versions are remembered for a while (``RECENT_MAX`` of all), old ones that arrive late as
well. Once both signatures are checked, the owner is *equivocal*: both records are passed on to every peer
(``PROOF_TIMES`` times), so each member comes to hold the proof itself, and whoever composes and votes should leave the
owner out. A proof counts once: what is proven of an owner's later numbers counts anew.

**Limits.** At most ``capacity`` owners, ``BYTES_MAX`` bytes each; owners that are not confirmed take at most a quarter
of that, so a member that makes up names crowds out only others like them. Signatures are checked only for what would
be kept, and at most ``checks_per_s`` a second. Pins: ``PINS_MAX``, those of held records are never dropped. Pure: no
clock is read, no file opened; ``cryptography`` computes signatures (``skewd[mesh]``).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from typing import NamedTuple

from skewd.bounds.compose import clock_tag
from skewd.bounds.confirm import spread
from skewd.records import SIGNATURE_BYTES, Record, RecordError, bundle, decode, peek_owner, unbundle, verify
from skewd.records import VERSION as RECORD_VERSION

OWN_EVERY = 4
OWN_EVERY_OF_MANY = 8
"""The same where more than ``MANY`` are known, and a message has room for one record: others' are needed more."""
MANY = 64
RICH_EDGES = 8
"""A record with fewer claims (in a small mesh: for a third of all) counts as lacking, so that a better one comes."""

URGENT_EVERY = 3
"""A new version of the keeper's record is in the next message to each peer, but in one of so many at most."""
PINS_MAX = 4_096
CAPACITY = 2_048
SEQUENCES_PER_START = 1 << 40
"""The sequences of a daemon's run begin at the count of its starts times this, and the time (:func:`sequence_at`)."""

RECENT_MAX = 1_024
"""So many versions of all owners' records are remembered, to be compared with what comes later."""

PROOFS_MAX = 16
PROOF_TIMES = 3
"""Each peer is given both halves of a proof so many times: a message may get lost, or be not fresh."""

EXPIRE_NS = 300_000_000_000

_SECOND_NS = 1_000_000_000


class Reason(StrEnum):
    """Why a record was not taken: the names of the store's counters."""

    MALFORMED = "malformed"
    OWN = "own"  # our own, come back
    STALE = "stale"  # not newer than what is, or was, held
    BUSY = "busy"  # too many signatures to check this second
    BAD_SIGNATURE = "bad_signature"
    KEY_CHANGED = "key_changed"  # another key than the pinned one, without the right to change it
    WRONG_BOOT = "wrong_boot"  # first-hand, of another boot than the exchange
    WRONG_KEY = "wrong_key"  # first-hand, signed by another key than the exchange was bound to
    EQUIVOCAL = "equivocal"  # one number, two contents: a proof against the owner
    FULL = "full"


class Accepted(NamedTuple):
    """A record was taken. ``news`` is what a person should be told, if anything."""

    record: Record
    news: str | None = None


class Refused(NamedTuple):
    """A record was not taken. ``news`` is what a person should be told, if anything."""

    reason: Reason
    news: str | None = None


@dataclass(slots=True)
class Pin:
    """A name's public key.

    Attributes:
        public_key: 32 bytes; ``former`` the one before a change.
        first_hand: whether the owner brought it itself.
        sequence: the highest seen under this key.
    """

    public_key: bytes
    first_hand: bool
    sequence: int = -1
    boot: bytes = b""
    former: bytes | None = None


@dataclass(slots=True)
class _Held:
    record: Record
    data: bytes
    received_ns: int
    via: str | None
    first_hand: bool
    confirmed: bool
    bit: int


@dataclass(slots=True)
class _Turn:
    """One peer: messages to it, whose records it was given or gave (bits), what it said it holds."""

    count: int = 0
    given: int = 0
    wanted: tuple[int, int, int, int] | None = None
    urgent: int = -1
    urgent_count: int = -URGENT_EVERY
    proofs: dict[tuple[str, int, int], int] = field(default_factory=dict)
    """How often it was given which half of a proof: owner, number, 0 or 1."""


class _Proof(NamedTuple):
    """Two signed records of one key with one number."""

    sequence: int
    public_key: bytes
    halves: tuple[bytes, bytes]
    at_ns: int


def sequence_at(wall_ns: int) -> int:
    """Where sequences begin within a start: grows with the time, so that a state that was put back repeats none."""
    return (max(wall_ns, 0) // _SECOND_NS << 8) % (SEQUENCES_PER_START // 2)


def _mixed(place: int, salt: int) -> int:
    """A bit of 256 for an owner's place, another one for each salt."""
    return ((place ^ salt * 0x9E3779B9) * 0x85EBCA6B & 0xFFFFFFFF) >> 24


def _place(owner: str) -> int:
    return int.from_bytes(blake2s(owner.encode(), digest_size=4, person=b"skewdrng").digest(), "big")


class RecordStore:
    """The newest record of each owner, within limits. Pure; not thread-safe.

    Args:
        own_name: this node's name.
        capacity: owners held at most.
        liars_max: f, how many members may lie.
        checks_per_s: signatures checked a second at most; twice as many at once after silence.
        expire_ns: a record that is not renewed for this long is dropped.
        pins: what ``identity.py`` kept.
    """

    def __init__(
        self,
        own_name: str,
        *,
        capacity: int = CAPACITY,
        liars_max: int = 1,
        checks_per_s: int = 250,
        expire_ns: int = EXPIRE_NS,
        pins: Mapping[str, Pin] | None = None,
    ) -> None:
        self.own_name = own_name
        self._capacity, self._liars_max, self._expire_ns = capacity, liars_max, expire_ns
        self._unconfirmed_max = max(capacity // 4, 1)
        self._checks_per_s = checks_per_s
        self._allowance = 2.0 * checks_per_s
        self._allowance_at_ns: int | None = None
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently passed on first
        self._fresh: OrderedDict[str, None] = OrderedDict()  # versions not passed on yet, oldest first
        self._unconfirmed: OrderedDict[str, None] = OrderedDict()
        self._pins: OrderedDict[str, Pin] = OrderedDict(pins or {})
        self.urgent: str | None = None
        """Whose record goes to everyone at once: the keeper's, for all must see that it lives."""
        self._own: bytes | None = None
        self._own_key = b""
        self._own_sequence = -1
        self._turns: OrderedDict[str, _Turn] = OrderedDict()
        self._bits = list(range(capacity))
        self._ring: list[tuple[int, str]] = []  # held owners by their place
        self._wants = 0
        self._new_at = 0  # that many wants were told when the last owner came that was not held
        self._contested: OrderedDict[str, None] = OrderedDict()
        self._recent: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._proofs: OrderedDict[str, _Proof] = OrderedDict()
        self.counters: dict[str, int] = dict.fromkeys(("accepted", "key_changes", "evicted", "expired", *Reason), 0)
        self._votes: dict[bytes, int] = {}
        self._vouchers: frozenset[str] = frozenset()
        self._refreshed_ns: int | None = None

    # -- our own -------------------------------------------------------------------------------------------------

    def put_own(self, data: bytes) -> None:
        """This node's newest record, signed; it is passed on from now on.

        Raises:
            RecordError: not a record of this node, or not newer than the last (use :meth:`next_sequence`).
        """
        record = decode(data)
        if record.owner != self.own_name:
            raise RecordError(f"the record of {record.owner} is not this node's own ({self.own_name})")
        if record.sequence <= self._own_sequence:
            raise RecordError(f"sequence {record.sequence} is not above {self._own_sequence}, which is in use already")
        self._own, self._own_key, self._own_sequence = data, record.public_key, record.sequence

    def next_sequence(self, least: int = 0) -> int:
        """The next own record's sequence: at least ``least`` (from ``identity.py``), and above all that was seen."""
        return max(self._own_sequence + 1, least)

    # -- what others say -----------------------------------------------------------------------------------------

    def accept(
        self,
        data: bytes,
        *,
        first_hand_owner: str | None,
        received_raw_ns: int,
        first_hand_boot: bytes | None = None,
        first_hand_key: bytes = b"",
    ) -> Accepted | Refused:
        """Takes a record that came with an authentic, fresh message.

        Never raises for what the bytes are.

        Args:
            first_hand_owner: the message's sender.
            received_raw_ns: now, on our raw clock.
            first_hand_boot: the boot that the sender's message named; its own record must be of the same.
            first_hand_key: the key that the sender's message was bound to, empty if to none: its own record's must be
                the same.

        Raises:
            MeshExtraMissing: ``cryptography`` is not installed.
        """
        outcome = self._accept(data, first_hand_owner, received_raw_ns, first_hand_boot, first_hand_key)
        self.counters["accepted" if isinstance(outcome, Accepted) else outcome.reason] += 1
        return outcome

    def _accept(
        self, data: bytes, sender: str | None, now_ns: int, boot: bytes | None, key: bytes
    ) -> Accepted | Refused:
        # Most of what comes is known already: that is told from two fields, before anything is decoded.
        known = self._held.get(peek_owner(data))
        if known is not None and known.data == data:
            met = sender == known.record.owner and boot in (None, known.record.boot)
            if met and key in (b"", known.record.public_key):
                self._met(known, now_ns)
            return Refused(Reason.STALE)
        try:
            record = decode(data)
        except RecordError:
            news = None
            if data[:1] and data[0] > RECORD_VERSION:
                news = f"{sender} passes on records of version {data[0]}, newer than this node reads; upgrade this node"
            return Refused(Reason.MALFORMED, news)
        owner = record.owner
        if owner == self.own_name:
            return self._come_back(record, data, now_ns)
        first_hand = sender == owner
        if first_hand and boot is not None and boot != record.boot:
            return Refused(Reason.WRONG_BOOT)
        if first_hand and key not in (b"", record.public_key):
            return Refused(Reason.WRONG_KEY)
        self._refresh(now_ns)
        attested = self._votes.get(record.clock, 0) > self._liars_max
        pin = self._pins.get(owner)
        changed = pin is not None and pin.public_key != record.public_key
        if pin is not None and changed:
            refused = self._key_change(pin, record, first_hand, attested or (first_hand and key != b""), data, now_ns)
            if refused is not None:
                return refused
        elif pin is not None and record.sequence <= pin.sequence and not (first_hand and record.boot != pin.boot):
            return self._compare(record, data, now_ns) or Refused(Reason.STALE)
        if pin is not None and not changed:
            proof = self._compare(record, data, now_ns)
            if proof is not None:
                return proof
        confirmed = first_hand or attested or (pin is not None and pin.first_hand and not changed)
        if not self._room(owner, confirmed):
            return Refused(Reason.FULL)
        if not self._may_check(now_ns, first_hand):
            return Refused(Reason.BUSY)
        if not verify(data, record.public_key):
            return Refused(Reason.BAD_SIGNATURE)
        news = None
        if pin is None or changed:
            former = pin.public_key if pin is not None and pin.first_hand else None
            if pin is not None:
                self.counters["key_changes"] += 1
                how = "brought it itself on a new boot" if first_hand else "other members vouch for it"
                news = (
                    f"{owner} has a new key {record.public_key.hex()[:16]} (it was {pin.public_key.hex()[:16]}): {how}"
                )
            pin = self._pins[owner] = Pin(record.public_key, first_hand, former=former)
        pin.sequence, pin.boot = record.sequence, record.boot
        pin.first_hand = pin.first_hand or first_hand
        self._make_room(owner, confirmed)
        before = self._held.get(owner)
        was_confirmed = before is not None and before.confirmed
        bit = before.bit if before is not None else self._bits.pop()
        held = _Held(record, data, now_ns, sender, first_hand, confirmed or was_confirmed, bit)
        self._held[owner] = held
        self._remember(record, data)
        self._turn_of(sender).given |= 1 << bit
        self._held.move_to_end(owner, last=False)
        if before is None:
            insort(self._ring, (_place(owner), owner))
            self._new_at = self._wants
        if held.confirmed:
            self._unconfirmed.pop(owner, None)
        else:
            self._unconfirmed[owner] = None
        self._pins.move_to_end(owner)
        self._bound_pins()
        return Accepted(record, news)

    def _remember(self, record: Record, data: bytes) -> None:
        self._recent[record.owner, record.sequence] = data
        self._recent.move_to_end((record.owner, record.sequence))
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def _compare(self, record: Record, data: bytes, now_ns: int) -> Refused | None:
        """Whether this record of the pinned key, with one that is remembered, is a proof against their owner.

        What is remembered may be forged itself: a signature that was not needed so far is checked when it is.
        """
        owner, sequence = record.owner, record.sequence
        other = self._recent.get((owner, sequence))
        if other is None:
            self._remember(record, data)
            return None
        proven = self._proofs.get(owner)
        if other == data or (proven is not None and sequence <= proven.sequence):
            return None
        if not self._may_check(now_ns, False):
            return Refused(Reason.BUSY)
        if not verify(data, record.public_key):
            return Refused(Reason.BAD_SIGNATURE)
        # The same content under another signature is no second word: only who has the key can sign, and may sign twice.
        if data[:-SIGNATURE_BYTES] == other[:-SIGNATURE_BYTES]:
            return None
        if not verify(other, record.public_key) or decode(other).public_key != record.public_key:
            self._remember(record, data)
            return None
        self._proofs[owner] = _Proof(sequence, record.public_key, (other, data), now_ns)
        self._proofs.move_to_end(owner)
        if len(self._proofs) > PROOFS_MAX:
            self._proofs.popitem(last=False)
        return Refused(
            Reason.EQUIVOCAL,
            f"{owner} signed two records with the number {sequence} and different words, which proves that it lies",
        )

    def _met(self, held: _Held, now_ns: int) -> None:
        """The owner itself brought the version that is held."""
        held.first_hand = held.confirmed = True
        self._pins[held.record.owner].first_hand = True
        self._unconfirmed.pop(held.record.owner, None)

    def _come_back(self, record: Record, data: bytes, now_ns: int) -> Refused:
        """Our own record: one of a later sequence than ours is from before our state was restored from a copy."""
        if record.public_key != self._own_key:
            return Refused(
                Reason.OWN, f"someone signs records as {self.own_name} with another key: two nodes of one name?"
            )
        if record.sequence > self._own_sequence and self._may_check(now_ns, False) and verify(data, self._own_key):
            self._own_sequence = record.sequence
        return Refused(Reason.OWN)

    def _key_change(
        self, pin: Pin, record: Record, first_hand: bool, attested: bool, data: bytes, now_ns: int
    ) -> Refused | None:
        """Why the pinned key may not be replaced by this record's; None when it may."""
        owner = record.owner
        if first_hand and pin.former == record.public_key:
            if self._may_check(now_ns, True) and verify(data, record.public_key) and owner not in self._contested:
                self._contested[owner] = None
                if len(self._contested) > self._capacity:
                    self._contested.popitem(last=False)
                return Refused(Reason.KEY_CHANGED, f"two parties with different keys claim to be {owner}")
            return Refused(Reason.KEY_CHANGED)
        silent = owner not in self._held
        if attested or (first_hand and (silent or not pin.first_hand or record.boot != pin.boot)):
            return None
        return Refused(
            Reason.KEY_CHANGED,
            f"a record of {owner} with another key ({record.public_key.hex()[:16]}) than the pinned one "
            f"({pin.public_key.hex()[:16]}) was refused",
        )

    def _may_check(self, now_ns: int, first_hand: bool) -> bool:
        """Whether one more signature may be checked now; a quarter is kept for what neighbours say of themselves."""
        most = 2.0 * self._checks_per_s
        before_ns = now_ns if self._allowance_at_ns is None else self._allowance_at_ns
        gone = max(now_ns - before_ns, 0)
        self._allowance = min(most, self._allowance + gone * self._checks_per_s / _SECOND_NS)
        self._allowance_at_ns = max(now_ns, before_ns)
        if self._allowance < (1 if first_hand else max(1, most / 4)):
            return False
        self._allowance -= 1
        return True

    # -- limits --------------------------------------------------------------------------------------------------

    def _room(self, owner: str, confirmed: bool) -> bool:
        if owner in self._held or len(self._held) < self._capacity:
            return True
        return confirmed and bool(self._unconfirmed)

    def _make_room(self, owner: str, confirmed: bool) -> None:
        if owner in self._held:
            return
        crowded = len(self._held) >= self._capacity
        if (crowded and confirmed) or (not confirmed and len(self._unconfirmed) >= self._unconfirmed_max):
            self._drop(next(iter(self._unconfirmed)))
            self.counters["evicted"] += 1

    def _drop(self, owner: str) -> None:
        held = self._held.pop(owner, None)
        self._unconfirmed.pop(owner, None)
        if held is None:
            return
        self._bits.append(held.bit)
        self._ring.remove((_place(owner), owner))
        if not held.confirmed:
            self._pins.pop(owner, None)

    def _bound_pins(self) -> None:
        if len(self._pins) <= PINS_MAX:
            return
        for first_hand in (False, True):
            for name, pin in self._pins.items():
                if name not in self._held and pin.first_hand == first_hand:
                    del self._pins[name]
                    return

    def _refresh(self, now_ns: int) -> None:
        """Who is confirmed, once a second."""
        if self._refreshed_ns is not None and abs(now_ns - self._refreshed_ns) < _SECOND_NS:
            return
        self._refreshed_ns = now_ns
        records = {name: held.record for name, held in self._held.items()}
        met = {record.clock: name for name, record in records.items() if self._pins[name].first_hand}
        found = spread(met, set(met.values()), records, self._liars_max)
        votes: dict[bytes, int] = {}
        names = set(found.values())
        for name, held in self._held.items():
            if name not in names:
                if held.confirmed and not self._pins[name].first_hand:
                    held.confirmed = False
                    self._unconfirmed[name] = None
                continue
            if not held.confirmed:
                held.confirmed = True
                self._unconfirmed.pop(name, None)
            for edge in held.record.edges:
                votes[edge.clock] = votes.get(edge.clock, 0) + 1
        self._votes = votes
        keeper = None if self.urgent is None else records.get(self.urgent)
        self._vouchers = frozenset(
            name
            for name, record in records.items()
            if keeper is not None and any(edge.clock == keeper.clock for edge in record.edges)
        )

    def forget_departed(self, now_raw_ns: int) -> None:
        """Drops the records of owners that were not renewed for ``expire_ns``. Call it about once a second."""
        gone = [name for name, held in self._held.items() if now_raw_ns - held.received_ns > self._expire_ns]
        for name in gone:
            self._drop(name)
        self.counters["expired"] += len(gone)
        self._refresh(now_raw_ns)

    def forget_clock(self) -> None:
        """Our own raw clock was not continuous: instants of before mean nothing now. Pins and sequences stay."""
        for owner in list(self._unconfirmed):
            self._drop(owner)
        self._held.clear()
        self._unconfirmed.clear()
        self._votes = {}
        self._refreshed_ns = None
        self._allowance_at_ns = None
        for turn in self._turns.values():
            turn.given = 0
        self._bits = list(range(self._capacity))
        self._ring.clear()

    # -- passing on ----------------------------------------------------------------------------------------------

    def next_for(self, peer: str | None, max_bytes: int) -> bytes:
        """What to attach to the next message to ``peer`` (None: not known by name yet): see :func:`unbundle`.

        At most ``max_bytes``; empty when nothing fits.
        """
        turn = self._turn_of(peer)
        if max_bytes < _WANT.size:
            return b""
        own = self._own
        chosen: list[bytes] = []
        room = max_bytes - _WANT.size
        # Twice at first, for the first message to a peer is not fresh to it; and to whoever is not known yet.
        every = OWN_EVERY if len(self._ring) <= MANY else OWN_EVERY_OF_MANY
        due = peer is None or turn.count % every == 0 or turn.count < 2 or not self._held
        if own is not None and due and len(own) + 2 <= room:
            chosen.append(own)
            room -= len(own) + 2
        turn.count += own is not None
        room = self._add_proof(turn, peer, chosen, room)
        urgent = None if self.urgent is None else self._held.get(self.urgent)
        if urgent is not None and self.urgent != peer and urgent.via != peer:
            sequence = urgent.record.sequence
            spaced = turn.count >= turn.urgent_count + URGENT_EVERY
            if sequence > turn.urgent and spaced and len(urgent.data) + 2 <= room:
                chosen.append(urgent.data)
                turn.urgent, turn.urgent_count = sequence, turn.count
                turn.given |= 1 << urgent.bit
                room -= len(urgent.data) + 2
        if turn.wanted is not None and room >= _SMALLEST:
            lacking = self._lacking(turn.wanted, peer, room)
            turn.wanted = None
            if lacking is not None and lacking.data not in chosen:
                chosen.append(lacking.data)
                turn.given |= 1 << lacking.bit
                room -= len(lacking.data) + 2
        for again in (False, True):
            if room < _SMALLEST:
                break
            if again:
                turn.given = 0
            sent: list[str] = []
            for owner, held in self._in_turn():
                if turn.given >> held.bit & 1 or owner == peer or held.via == peer or len(held.data) + 2 > room:
                    continue
                if again and held.data in chosen:
                    continue
                chosen.append(held.data)
                sent.append(owner)
                turn.given |= 1 << held.bit
                room -= len(held.data) + 2
                if room < _SMALLEST:
                    break
            for owner in sent:
                self._held.move_to_end(owner)
            if sent:
                break
        if not chosen and own is not None and len(own) + 2 <= room:
            chosen.append(own)
        return self._want() + bundle(chosen)

    def _add_proof(self, turn: _Turn, peer: str | None, chosen: list[bytes], room: int) -> int:
        """Adds the halves of a proof that this peer was given least often; the room that is left."""
        if not self._proofs or peer is None:
            return room
        halves = [
            (turn.proofs.get((owner, proof.sequence, half), 0), owner, proof.sequence, half, data)
            for owner, proof in self._proofs.items()
            if owner != peer
            for half, data in enumerate(proof.halves)
        ]
        for given, owner, sequence, half, data in sorted(halves):
            if given < PROOF_TIMES and len(data) + 2 <= room and data not in chosen:
                chosen.append(data)
                turn.proofs[owner, sequence, half] = given + 1
                room -= len(data) + 2
        if len(turn.proofs) > 4 * PROOFS_MAX:
            turn.proofs.clear()
        return room

    def _in_turn(self) -> Iterator[tuple[str, _Held]]:
        """Who has measured the keeper first: all need two such paths to it; then the others, as their turn is."""
        for owner in self._vouchers:
            held = self._held.get(owner)
            if held is not None:
                yield owner, held
        yield from self._held.items()

    def _want(self) -> bytes:
        """Whose records are held here, for one slice of the ring after another."""
        depth = max(0, (len(self._ring) // _SLICE_MAX).bit_length())
        self._wants += 1
        number, salt = self._wants % (1 << depth), self._wants & 0xFF
        entries = self._slice(depth, number)
        since: int | None = None
        if self._wants - self._new_at > _SETTLED and (self._wants >> depth) % 2 and entries:
            # Nobody new for a while: every other time, the eighth renewed longest ago is said to be lacking as well.
            times = sorted(self._held[owner].received_ns for _, owner in entries)
            since = times[len(times) // 8]
        held = 0
        for place, owner in entries:
            has = self._held[owner]
            # One from its owner's first moments, with next to nothing in it, is as good as none.
            if len(has.record.edges) >= self._rich and (since is None or has.received_ns >= since):
                held |= 1 << _mixed(place, salt)
        return _WANT.pack(salt, depth, number, held.to_bytes(32, "big"))

    @property
    def _rich(self) -> int:
        return min(RICH_EDGES, len(self._ring) // 3)

    def _slice(self, depth: int, number: int) -> list[tuple[int, str]]:
        width = 1 << (32 - depth)
        first = bisect_left(self._ring, (number * width, ""))
        return self._ring[first : bisect_left(self._ring, ((number + 1) * width, ""))]

    def _lacking(self, wanted: tuple[int, int, int, int], peer: str | None, room: int) -> _Held | None:
        """A record of an owner of whom the peer says that it holds none."""
        salt, depth, number, held = wanted
        best: _Held | None = None
        best_rank = (False, False, 0)
        for place, owner in self._slice(depth, number):
            if not held >> _mixed(place, salt) & 1 and owner != peer:
                found = self._held[owner]
                rank = (owner in self._vouchers, len(found.record.edges) >= self._rich, found.received_ns)
                newer = best is None or rank > best_rank
                if newer and found.via != peer and len(found.data) + 2 <= room:
                    best, best_rank = found, rank
        return best

    def _turn_of(self, peer: str | None) -> _Turn:
        name = peer or ""
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = _Turn()
            if len(self._turns) > _TURNS_MAX:
                self._turns.popitem(last=False)
        return turn

    def receive(
        self,
        attachment: bytes,
        *,
        first_hand_owner: str,
        received_raw_ns: int,
        first_hand_boot: bytes | None = None,
        first_hand_key: bytes = b"",
    ) -> list[Accepted | Refused]:
        """Takes all that was attached to an authentic, fresh message; see :meth:`accept`."""
        if len(attachment) < _WANT.size:
            return []
        salt, depth, number, held = _WANT.unpack_from(attachment)
        if depth <= 16:
            wanted = (salt, depth, number & (1 << depth) - 1, int.from_bytes(held, "big"))
            self._turn_of(first_hand_owner).wanted = wanted
        return [
            self.accept(
                data,
                first_hand_owner=first_hand_owner,
                received_raw_ns=received_raw_ns,
                first_hand_boot=first_hand_boot,
                first_hand_key=first_hand_key,
            )
            for data in unbundle(attachment[_WANT.size :])
        ]

    # -- what is held --------------------------------------------------------------------------------------------

    def records(self) -> dict[str, Record]:
        """The newest record of each owner but ourselves."""
        return {name: held.record for name, held in self._held.items()}

    def received_ns(self, owner: str) -> int | None:
        """When its newest record came, on our raw clock; None while none is held."""
        held = self._held.get(owner)
        return None if held is None else held.received_ns

    def clock_of(self, name: str, boot: bytes, raw_era: int) -> bytes | None:
        """The tag of a peer's raw clock for edges and ``FirstHand.clock``.

        None until it brought a record itself, or more members than may lie vouch for its key on this very clock: one
        that is met once and then asked rarely would wait for minutes.
        """
        pin, held = self._pins.get(name), self._held.get(name)
        if pin is None:
            return None
        vouched = (
            held is not None
            and held.confirmed
            and (held.record.boot, held.record.raw_era) == (boot, raw_era)
            and held.record.public_key == pin.public_key
        )
        return clock_tag(name, pin.public_key, boot, raw_era) if pin.first_hand or vouched else None

    def pins(self) -> dict[str, Pin]:
        """What ``identity.py`` should keep: the keys of confirmed owners."""
        return {name: pin for name, pin in self._pins.items() if pin.first_hand or name not in self._unconfirmed}

    @property
    def contested(self) -> frozenset[str]:
        """Names that two parties with different keys claim."""
        return frozenset(self._contested)

    @property
    def equivocal(self) -> dict[str, int]:
        """Owners against whom there is a proof, and when (on our raw clock) it was complete."""
        return {
            owner: proof.at_ns
            for owner, proof in self._proofs.items()
            if (pin := self._pins.get(owner)) is not None and pin.public_key == proof.public_key
        }

    @property
    def confirmed(self) -> frozenset[str]:
        """Owners that surely are members, as of the last second."""
        return frozenset(name for name, held in self._held.items() if held.confirmed)

    def __len__(self) -> int:
        return len(self._held)


_TURNS_MAX = 4_096
_SLICE_MAX = 128
_SETTLED = 64
_WANT = struct.Struct(">BBI32s")
_SMALLEST = 168  # of a signed record and its length
