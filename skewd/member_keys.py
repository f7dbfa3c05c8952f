"""Whose word a message is: a key for each pair of members, and which public key each name has.

**The problem.** All nodes of a mesh share one key. A message's MAC under that key says "from one of us", so any member
could speak in the name of any other, and what a node knows first-hand of an honest peer would rest on the honesty of
all.

**The insight.** Each node has a key of its own already: the Ed25519 key that signs its records. Its curve is X25519's
in other coordinates, so the same key makes a secret with each other node's public key that nobody else can compute
(RFC 7748, section 4.1; that one key may serve both is proven by Thormarker, "On using the same key pair for Ed25519
and an X25519 based KEM", 2021). So a public key is all that a node must know of another one, there are no
certificates, and what speaks in messages is what signs records. A pair's secret is derived from the two and from the
mesh's key: whoever lacks the mesh's key is still nobody. What is for everybody (a topic, a publication) has no pair;
its sender signs it.

**Whose key?** A name's key is *pinned* when its first fresh message comes: one that answers a nonce of ours under that
very key. Another key for the name is refused, and the two are told as ``duplicate-name``, until the pinned one has
proven nothing for ``silent_ns``. A name that was once pinned is never believed again under the mesh's key alone: who
strips a message of its identity gains nothing.

**A version older** than this one has no identity in its messages. Such a message is believed of a name that has no key
yet, unless the configuration forbids it, and ``old-protocol`` says so: what is known of that peer first-hand rests on
the key that all share.

**Cost.** A pair's secret takes about 70 us and is kept. Nobody but a member has one computed (a message's *admission*
is a MAC under the mesh's key), ``COMPUTED_PER_S`` a second at most. Signatures: ``CHECKED_PER_S`` a second.

Limits: pinning trusts the first sight. A member can make up names; each then is a member of its own. ``KEYS_MAX`` names
and as many secrets are kept, the least recently used go. Pure; our own raw clock is handed in; ``cryptography``
computes.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, blake2s, sha512
from typing import TYPE_CHECKING, TypeVar

from skewd.links import wire
from skewd.links.wire import Identity, Refused
from skewd.problems import Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEYS_MAX = 4096
SILENT_NS = 60_000_000_000
"""For how long a key has proven nothing when another one may take its name."""

COMPUTED_PER_S = 100
CHECKED_PER_S = 500
TOLD_NS = 60_000_000_000
"""For how long after the last such message a problem is told."""

_TOLD_MAX = 16
_P = 2**255 - 19
_S = 1_000_000_000


def tag_of(public_key: bytes) -> bytes:
    """Eight bytes that name a receiver's key in a message."""
    return blake2s(public_key, digest_size=wire.TAG_BYTES, person=b"skewdtag").digest()


def exchange_key(public_key: bytes) -> bytes:
    """The X25519 public key of an Ed25519 public key: the same point in the other form of the curve."""
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    if y % _P == 1:
        raise ValueError("the neutral point is no public key")
    return ((1 + y) * pow(1 - y, -1, _P) % _P).to_bytes(32, "little")


class _Allowance:
    """So many a second, twice as many at once."""

    def __init__(self, per_s: int) -> None:
        self._per_s, self._left, self._at_ns = per_s, 2.0 * per_s, 0

    def spend(self, now_ns: int) -> bool:
        gone_ns, self._at_ns = max(now_ns - self._at_ns, 0), now_ns
        self._left = min(2.0 * self._per_s, self._left + gone_ns * self._per_s / _S)
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class _Pinned:
    public_key: bytes
    heard_ns: int | None
    """When it last proved something; None: not since this daemon's start."""


class MemberKeys:
    """One node's own key and those of the others, shared by its links. Not thread-safe.

    Args:
        name: this node's.
        key: its signing key (``identity.py``).
        pinned: public keys by name, as kept from before.
        accept_old: whether messages without an identity, of the version before, are believed of names without a key.
        silent_ns: see ``SILENT_NS``.

    Attributes:
        public_key: this node's own, 32 bytes.
    """

    def __init__(
        self,
        name: str,
        key: Ed25519PrivateKey,
        *,
        pinned: Mapping[str, bytes] | None = None,
        accept_old: bool = True,
        silent_ns: int = SILENT_NS,
    ) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.name, self.accept_old = name, accept_old
        self.public_key = key.public_key().public_bytes_raw()
        self._key, self._tag = key, tag_of(self.public_key)
        # The scalar that Ed25519 makes of the secret is made so (RFC 8032, section 5.1.5); X25519 clamps it.
        self._exchange = X25519PrivateKey.from_private_bytes(sha512(key.private_bytes_raw()).digest()[:32])
        self._silent_ns = silent_ns
        self._pinned: OrderedDict[str, _Pinned] = OrderedDict(
            (name, _Pinned(public_key, None)) for name, public_key in (pinned or {}).items()
        )
        self._shared: OrderedDict[bytes, bytes] = OrderedDict()
        self._secrets: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._identities: OrderedDict[tuple[bytes, bytes], Identity] = OrderedDict()
        self._computed, self._checked = _Allowance(COMPUTED_PER_S), _Allowance(CHECKED_PER_S)
        self._began_ns: int | None = None
        self._old: OrderedDict[str, int] = OrderedDict()
        self._told: OrderedDict[tuple[str, str], tuple[int, Problem]] = OrderedDict()
        # Apart, for anybody can send these.
        self._versions: OrderedDict[tuple[str, str], tuple[int, Problem]] = OrderedDict()
        self.key_changes = 0

    def __len__(self) -> int:
        return max(len(self._pinned), len(self._secrets), len(self._shared), len(self._identities), len(self._old))

    # -- keys ----------------------------------------------------------------------------------------------------

    def identity(self, receiver: bytes, secret: bytes) -> Identity:
        """What this node's messages say of its key, to whoever has the public key ``receiver`` (empty: anyone).

        Args:
            secret: the mesh's, that the message goes out under.
        """
        found = self._identities.get((receiver, secret))
        if found is None:
            tag = tag_of(receiver) if receiver else bytes(wire.TAG_BYTES)
            found = Identity(self.public_key, tag, wire.admission_of(self.public_key, secret))
            _put(self._identities, (receiver, secret), found)
        return found

    def secret_with(
        self, public_key: bytes, secret: bytes, now_ns: int | None = None, identity: Identity | None = None
    ) -> bytes:
        """The pair's secret, under one secret of the mesh.

        Args:
            now_ns: counts against ``COMPUTED_PER_S``, where another's message has it computed.
            identity: of a message that is not authentic yet; only an admitted one has a secret computed.

        Raises:
            Refused: ``bad_mac`` (not admitted, or no such key), ``rate_limited``.
        """
        found = self._secrets.get((public_key, secret))
        if found is not None:
            self._secrets.move_to_end((public_key, secret))
            return found
        if identity is not None and not hmac.compare_digest(
            wire.admission_of(public_key, secret), identity.admission
        ):
            raise Refused("bad_mac")
        if now_ns is not None and not self._computed.spend(now_ns):
            raise Refused("rate_limited")
        first, second = sorted((self.public_key, public_key))
        content = self._shared_with(public_key) + first + second
        made = blake2b(content, key=secret, digest_size=32, person=b"skewd-pair").digest()
        _put(self._secrets, (public_key, secret), made)
        return made

    def _shared_with(self, public_key: bytes) -> bytes:
        found = self._shared.get(public_key)
        if found is None:
            from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

            try:
                found = self._exchange.exchange(X25519PublicKey.from_public_bytes(exchange_key(public_key)))
            except ValueError:  # a point of small order: its holder could share a secret with everybody
                raise Refused("bad_mac") from None
            _put(self._shared, public_key, found)
        return found

    def secret_of(self, identity: Identity, secret: bytes, now_ns: int) -> bytes:
        """The same for a message that came, with its identity.

        Raises:
            Refused: as :meth:`secret_with`; ``former_identity``: it was made for a key that this node had once.
        """
        if identity.receiver_tag != self._tag:
            raise Refused("former_identity")
        return self.secret_with(identity.public_key, secret, now_ns, identity)

    def sign(self, content: bytes) -> bytes:
        """Our signature of a one-way message."""
        return self._key.sign(_SIGNED + content)

    def check(self, public_key: bytes, signature: bytes, content: bytes, now_ns: int) -> None:
        """Whether the holder of ``public_key`` signed a one-way message.

        Raises:
            Refused: ``bad_mac`` (it did not), ``rate_limited``.
        """
        if not self._checked.spend(now_ns):
            raise Refused("rate_limited")
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _SIGNED + content)
        except (InvalidSignature, ValueError):
            raise Refused("bad_mac") from None

    # -- names ---------------------------------------------------------------------------------------------------

    def key_of(self, name: str) -> bytes:
        """The pinned key of a name; empty while there is none."""
        pinned = self._pinned.get(name)
        return b"" if pinned is None else pinned.public_key

    def judge(self, name: str, public_key: bytes, address: str, now_ns: int) -> None:
        """Whether a message of ``name``, bound to ``public_key`` (empty: to none), may be believed.

        Raises:
            Refused: ``other_identity`` (another key has the name), ``old_version`` (no identity, and it needs one).
        """
        if self._began_ns is None or now_ns < self._began_ns:
            self._began_ns = now_ns
        pinned = self._pinned.get(name)
        if not public_key:
            if pinned is None and self.accept_old:
                return
            why = "does not say who it is" if pinned is None else "says no more who it is, as it did before"
            remedy = (
                "upgrade it; or accept the version before with [mesh] oldest_protocol = 2"
                if pinned is None
                else "upgrade it again, or see who speaks in its name; to go back, remove the file keys-NODE from the"
                " state directories and restart"
            )
            self._tell(
                Problem(
                    "version-mismatch",
                    name,
                    f"{name} at {address} speaks version {wire.OLD_VERSION} of the mesh protocol and {why}; its"
                    " messages are refused",
                    remedy,
                ),
                now_ns,
            )
            raise Refused("old_version")
        if pinned is None or pinned.public_key == public_key:
            return
        heard_ns = self._began_ns if pinned.heard_ns is None else pinned.heard_ns
        if 0 <= now_ns - heard_ns <= self._silent_ns:
            self.duplicate(name, address, now_ns)
            raise Refused("other_identity")

    def duplicate(self, name: str, address: str, now_ns: int) -> None:
        """Somebody at ``address`` claims a name that another key has, perhaps our own."""
        mine = name == self.name
        whose = "this node's name" if mine else f"the name {name}, which another node has"
        self._tell(
            Problem(
                "duplicate-name",
                name,
                f"a node at {address} claims {whose}",
                "give each node its own [node] name; after cloning a machine remove identity-NAME and its files from"
                f" the copy's state directory (a node that lost its key is believed after {TOLD_NS // _S} s)",
            ),
            now_ns,
        )

    def confirm(self, name: str, public_key: bytes, now_ns: int) -> None:
        """A fresh message, which was judged, proved that who has ``public_key`` (empty: anyone) speaks as ``name``."""
        if not public_key:
            _put(self._old, name, now_ns)
            return
        pinned = self._pinned.get(name)
        if pinned is not None and pinned.public_key == public_key:
            pinned.heard_ns = now_ns
            self._pinned.move_to_end(name)
            return
        self.key_changes += pinned is not None
        self._old.pop(name, None)
        _put(self._pinned, name, _Pinned(public_key, now_ns))

    def note_version(self, address: str, version: int, now_ns: int) -> None:
        """A message of a version that this one does not know came from ``address``."""
        older = version < wire.OLD_VERSION
        self._tell(
            Problem(
                "version-mismatch",
                address,
                f"a node at {address} speaks version {version} of the mesh protocol, this one {wire.OLD_VERSION} and"
                f" {wire.VERSION}",
                f"upgrade {'that' if older else 'this'} node; one version apart they understand each other",
            ),
            now_ns,
            self._versions,
        )

    def _tell(
        self,
        problem: Problem,
        now_ns: int,
        told: OrderedDict[tuple[str, str], tuple[int, Problem]] | None = None,
    ) -> None:
        told = self._told if told is None else told
        told[problem.identity] = (now_ns, problem)
        told.move_to_end(problem.identity)
        if len(told) > _TOLD_MAX:
            told.popitem(last=False)

    def pins(self) -> dict[str, bytes]:
        """The public keys that are to be kept, by name."""
        return {name: pinned.public_key for name, pinned in self._pinned.items()}

    def problems(self, now_ns: int) -> list[Problem]:
        """What is wrong now, or was within ``TOLD_NS``."""
        noted = (*self._told.values(), *self._versions.values())
        told = [problem for at_ns, problem in noted if 0 <= now_ns - at_ns <= TOLD_NS]
        lately_ns = max(TOLD_NS, self._silent_ns)
        told += [
            Problem(
                "old-protocol",
                name,
                f"{name} speaks version {wire.OLD_VERSION} of the mesh protocol: what is known of its clock first-hand"
                " rests on the key that all members share",
                "upgrade it",
            )
            for name, at_ns in self._old.items()
            if 0 <= now_ns - at_ns <= lately_ns
        ]
        return told


_SIGNED = b"skewd message 3\0"


Key = TypeVar("Key")
Value = TypeVar("Value")


def _put(table: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Puts it last; the first one goes when there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > KEYS_MAX:
        table.popitem(last=False)
