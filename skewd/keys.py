"""The mesh key: one secret that says "this message is from one of us".

Whoever holds it can claim any offset, so it is worth a file of its own, readable by one user. The usual accident is
a key copied with its mode lost, so a file that others can read is refused with the command that repairs it. Two
places deliver secrets with wider modes on purpose and guard them otherwise: a Kubernetes Secret volume (readable by
the pod only) and systemd's credentials directory (readable by the unit only). Both are recognised and accepted, as
long as nobody else can write there.

The file is one line of text, ``skewd-key-1 <64 hex digits>``. The key's public id is derived from the secret, so
that two nodes with different keys tell so from a message's header, and nobody has to number keys.

Limits: one key per file (rotation comes with a second line, later); one secret for the whole mesh, so it tells
members from strangers and not one member from another.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import Path

SECRET_BYTES = 32
_FORM = re.compile(r"skewd-key-1 ([0-9a-f]{64})\n?")
_MAX_FILE_BYTES = 1024


class MeshKeyError(ValueError):
    """A key file that can't be used; the message names the file and what to do."""


class KeyNeeded(MeshKeyError):
    """Something beyond this machine was asked for without a key."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is beyond loopback, which needs a mesh key; write one with 'skewd keygen FILE', "
            "give it to every node and set [mesh] key_file"
        )


@dataclass(frozen=True, slots=True)
class MeshKey:
    """A secret and its public id (a u32, never 0: that one stands for "no key")."""

    key_id: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise MeshKeyError(f"a mesh key has {SECRET_BYTES} bytes, this one {len(self.secret)}")
        if not any(self.secret):
            raise MeshKeyError("a mesh key of zeros is no key; make one with 'skewd keygen FILE'")
        if not 0 < self.key_id < 1 << 32:
            raise MeshKeyError(f"a mesh key's id is between 1 and {(1 << 32) - 1}, not {self.key_id}")

    @classmethod
    def from_secret(cls, secret: bytes) -> MeshKey:
        """The key of ``secret`` (32 bytes) under its derived id."""
        derived = int.from_bytes(blake2s(secret, digest_size=4, person=b"skewd-id").digest(), "big")
        return cls(derived or 1, secret)


def generate_key_file(path: str | os.PathLike[str]) -> MeshKey:
    """Write a fresh key to a new file with mode 0600.

    Raises:
        MeshKeyError: the file exists (never overwritten: other nodes may rely on it) or can't be written.
    """
    key = MeshKey.from_secret(secrets.token_bytes(SECRET_BYTES))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise MeshKeyError(f"{path} exists and is not overwritten; choose another name or remove it first") from None
    except OSError as error:
        raise MeshKeyError(f"{path} can't be written: {error.strerror}; choose another directory") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"skewd-key-1 {key.secret.hex()}\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key(path: str | os.PathLike[str]) -> MeshKey:
    """The key in ``path``.

    Raises:
        MeshKeyError: missing, unreadable, open to others, or not a key file; the message says what to do.
    """
    try:
        # Non-blocking, so that a FIFO in the key's place can't stop the daemon from starting.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MeshKeyError(f"{path} is missing; write a key with 'skewd keygen {path}'") from None
    except OSError as error:
        raise MeshKeyError(f"{path} can't be read: {error.strerror}; let the user that runs skewd own it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MeshKeyError(f"{path} is not a regular file; write a key with 'skewd keygen FILE'")
        _check_mode(Path(path), stat.S_IMODE(status.st_mode))
        content = os.read(descriptor, _MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    match = _FORM.fullmatch(content.decode("ascii", "replace"))
    if match is None:
        raise MeshKeyError(f"{path} is not a mesh key (one line, 'skewd-key-1' and 64 hex digits); use 'skewd keygen'")
    try:
        return MeshKey.from_secret(bytes.fromhex(match[1]))
    except MeshKeyError as error:
        raise MeshKeyError(f"{path}: {error}") from None


def _check_mode(path: Path, mode: int) -> None:
    managed = _managed_directory(path)
    forbidden = 0o022 if managed else 0o077
    if mode & forbidden:
        verb = "changed" if mode & 0o022 else "read"
        raise MeshKeyError(f"{path} can be {verb} by others (mode {mode:04o}); run 'chmod 600 {path}'")


def _managed_directory(path: Path) -> bool:
    """Whether ``path`` lies in a Kubernetes Secret volume or in systemd's credentials directory of this unit."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and path.resolve().is_relative_to(Path(credentials).resolve()):
        return True
    # The kubelet swaps a Secret's content atomically: name -> ..data/name, ..data -> ..<timestamp>/, and a file
    # elsewhere does not look like that by accident.
    target = path.resolve().parent
    return (path.parent / "..data").is_symlink() and target.name.startswith("..") and target != path.parent.resolve()
