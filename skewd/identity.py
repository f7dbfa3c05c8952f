"""Who this node is to its mesh, kept over restarts: its signing key, how often it was started, the keys of others.

Four small files in the state directory, named after the node, readable by the daemon's user only. The **identity**
is the secret half of an Ed25519 key, made at the first start. **starts** counts them, and is written to the disk
before the count is used: sequences of records begin at starts x 2^40 plus 256 a second of the time, so they grow over
restarts (``records.py``), and a machine that is put back to an earlier state repeats none.
**pins** are the public keys of other members as they were first seen in records, **keys** those that they proved to
have in messages (``member_keys.py``).

Without a directory that can be written there is still an identity, new at each start (and kept as soon as there is a
place for it, ``keeping.py``); peers accept the new key once the former one has been silent for a minute
(``member_keys.py``). ``kept`` is False, and whoever starts
the daemon says so.

Limits: the files are trusted as the daemon's own directory is; a damaged identity is an error that names the file,
never silently replaced by another key. Damaged pins are dropped: they are pinned anew on sight.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from skewd.lean import msgspec
from skewd.limits import RESERVED_NAMES
from skewd.links.wire import is_name
from skewd.record_store import PINS_MAX, SEQUENCES_PER_START, Pin, sequence_at
from skewd.records import PUBLIC_KEY_BYTES, private_key, public_key_of
from skewd.state_file import replace_file, write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_STARTS_MAX = (1 << 24) - 1
_FORM = re.compile(r"skewd-identity-1 ([0-9a-f]{64})\n?")
_PINS_BYTES_MAX = PINS_MAX * 256


class IdentityError(ValueError):
    """An identity file that can't be used; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's signing key.

    Attributes:
        key: the secret half; ``public_key`` the other, 32 bytes.
        first_sequence: where this run's sequences begin.
        kept: whether the next start will have the same key; ``reason`` says why not.
        unkept: what is to be kept then (:func:`keep_identity`), once there is a place for it.
    """

    key: Ed25519PrivateKey = field(repr=False)
    public_key: bytes
    first_sequence: int
    kept: bool
    reason: str | None = None
    unkept: bytes | None = field(default=None, repr=False)


def load_identity(directory: Path, node: str) -> Identity:
    """The identity of ``node``, made if there is none yet, as is the directory. Counts a start.

    Raises:
        IdentityError: the file is there and is damaged, or others can read it.
        MeshExtraMissing: ``cryptography`` is not installed.
    """
    path = directory / f"identity-{node}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = _read(path)
        if secret is None:
            secret = secrets.token_bytes(32)
            _make(path, _text(secret))
        starts = _count_start(directory / f"starts-{node}")
    except OSError as error:
        secret = secrets.token_bytes(32)
        key = private_key(secret)
        reason = f"{directory} can't hold this node's identity: {error.strerror}; its key is new at each start"
        return Identity(key, public_key_of(key), 0, False, reason, _text(secret))
    key = private_key(secret)
    first = starts * SEQUENCES_PER_START + sequence_at(time.time_ns())
    return Identity(key, public_key_of(key), first, True)


def keep_identity(directory: Path, node: str, unkept: bytes) -> None:
    """Keeps an identity for which there was no place at the start.

    Raises:
        OSError: there still is none, or another identity is there by now.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"identity-{node}"
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == unkept:
            return
    _make(path, unkept)


def _text(secret: bytes) -> bytes:
    return f"skewd-identity-1 {secret.hex()}\n".encode()


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
            raise IdentityError(f"{path} must be a file that only skewd's user can read; run 'chmod 600 {path}'")
        content = os.read(descriptor, 256)
    finally:
        os.close(descriptor)
    match = _FORM.fullmatch(content.decode("ascii", "replace"))
    if match is None:
        raise IdentityError(
            f"{path} is damaged; restore it, or remove it: the node then gets a new key, which peers accept after "
            "a minute"
        )
    return bytes.fromhex(match[1])


def _count_start(path: Path) -> int:
    content = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        content = file.read(32)
    before = int(content) if content.strip().isdigit() else 0
    starts = min(before + 1, _STARTS_MAX)
    replace_file(path, b"%d\n" % starts, synced=True)
    return starts


def _make(path: Path, content: bytes) -> None:
    """Makes a file whole, on the disk before this returns; one that another daemon of the same name made stays."""
    temporary = path.with_name(f".{path.name}.new")
    write_file(temporary, content, synced=True)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


# A field that is not known is passed over: a later version may add some. What changes a meaning needs another file.
class _KeptPin(msgspec.Struct, frozen=True):
    name: str
    public_key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    first_hand: bool
    sequence: Annotated[int, msgspec.Meta(ge=-1)]  # MessagePack has none above 2^64 - 1, nor has a record
    boot: Annotated[bytes, msgspec.Meta(max_length=16)]


class PinsFile:
    """The keys of other members, as kept by one node."""

    def __init__(self, directory: Path, node: str) -> None:
        self.path = directory / f"pins-{node}"

    def read(self) -> dict[str, Pin]:
        """What was kept; nothing when there is no file or it is damaged."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_PINS_BYTES_MAX + 1)
            kept = msgspec.msgpack.decode(content, type=list[_KeptPin])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        found = [pin for pin in kept if is_name(pin.name) and pin.name not in RESERVED_NAMES][-PINS_MAX:]
        return {pin.name: Pin(pin.public_key, pin.first_hand, pin.sequence, pin.boot) for pin in found}

    def write(self, pins: Mapping[str, Pin]) -> None:
        """Replaces the file, on the disk before this returns.

        Raises:
            OSError: the directory is not there or cannot be written.
        """
        self.write_encoded(encode_pins(pins))

    def write_encoded(self, content: bytes) -> None:
        """The same of what :func:`encode_pins` gave."""
        replace_file(self.path, content, synced=True)


def encode_pins(pins: Mapping[str, Pin]) -> bytes:
    """What the file holds of them: the newest ``PINS_MAX``."""
    kept = [
        _KeptPin(name, pin.public_key, pin.first_hand, pin.sequence, pin.boot)
        for name, pin in list(pins.items())[-PINS_MAX:]
    ]
    return msgspec.msgpack.encode(kept)


class _KeptKey(msgspec.Struct, frozen=True):
    name: str
    public_key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]


class KeysFile:
    """The keys that others proved to have in messages, as kept by one node."""

    def __init__(self, directory: Path, node: str) -> None:
        self.path = directory / f"keys-{node}"

    def read(self) -> dict[str, bytes]:
        """What was kept, by name; nothing when there is no file or it is damaged."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_PINS_BYTES_MAX + 1)
            kept = msgspec.msgpack.decode(content, type=list[_KeptKey])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        return {each.name: each.public_key for each in kept if is_name(each.name) and each.name not in RESERVED_NAMES}

    def write(self, keys: Mapping[str, bytes]) -> None:
        """Replaces the file, on the disk before this returns.

        Raises:
            OSError: the directory is not there or cannot be written.
        """
        self.write_encoded(encode_keys(keys))

    def write_encoded(self, content: bytes) -> None:
        """The same of what :func:`encode_keys` gave."""
        replace_file(self.path, content, synced=True)


def encode_keys(keys: Mapping[str, bytes]) -> bytes:
    """What the file holds of them."""
    return msgspec.msgpack.encode([_KeptKey(*each) for each in keys.items()])
